//! What a server tells its operator.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;

/// What the operator may want to see. Holds no namespaces and no addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ServerEvent {
    /// A registration was kept or renewed.
    Registered {
        /// Who.
        #[serde(rename = "peer_id", serialize_with = "as_text")]
        peer: PeerId,
        /// Seconds granted; one that a watch holds lives as long as that.
        ttl_s: u64,
        /// How many registrations this peer now has.
        of_peer: usize,
    },
    /// A registration ended.
    Expired {
        /// Whose.
        #[serde(rename = "peer_id", serialize_with = "as_text")]
        peer: PeerId,
        /// `true`: the peer said goodbye. `false`: by its age, or its stream died.
        left: bool,
    },
    /// Datagrams of a peer are passed on to others of its room: the first was, or the last.
    Relayed {
        /// Whose.
        #[serde(rename = "peer_id", serialize_with = "as_text")]
        peer: PeerId,
        /// It begins; else it has ended.
        began: bool,
        /// Datagrams passed on, one for several receivers counted once for each; 0 when it begins.
        datagrams: u64,
        /// Bytes of them.
        bytes: u64,
    },
    /// A request was refused. Reported at a bounded rate.
    Refused {
        /// Whose.
        #[serde(rename = "peer_id", serialize_with = "as_text")]
        peer: PeerId,
        /// Why.
        why: Refusal,
    },
    /// Now and then.
    Stats(Stats),
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Missing, empty or too long: above all, the question for all namespaces.
    Namespace,
    /// Malformed, forged or too large.
    Record,
    /// Lifetime outside the bounds.
    Ttl,
    /// Of another namespace or run.
    Cookie,
    /// The record is another peer's.
    NotYours,
    /// Cannot be understood.
    Request,
    /// A limit is reached.
    Limit,
    /// More datagrams were to be passed on than is allowed.
    Rate,
    /// The server shuts down.
    Draining,
    /// This server passes no datagrams on.
    Off,
}

impl From<forward::wire::Refusal> for Refusal {
    fn from(why: forward::wire::Refusal) -> Self {
        use forward::wire::Refusal as Why;
        match why {
            Why::Malformed => Self::Request,
            Why::NotAMember => Self::Namespace,
            Why::RoomFull | Why::Full => Self::Limit,
            Why::Rate => Self::Rate,
            Why::Draining => Self::Draining,
            Why::Off => Self::Off,
        }
    }
}

/// What a server holds and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Registrations now.
    pub registrations: usize,
    /// Namespaces with somebody in them.
    pub namespaces: usize,
    /// Watches now.
    pub watchers: usize,
    /// Streams now.
    pub streams: usize,
    /// Requests and streams refused since the start.
    pub refused: u64,
    /// Messages pushed to watchers since the start.
    pub pushed: u64,
    /// Events dropped since the start because nobody took them.
    pub events_dropped: u64,
    /// The forwarder's.
    #[serde(flatten)]
    pub forward: forward::Stats,
}

fn as_text<S: serde::Serializer>(peer: &PeerId, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(peer)
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        match status {
            Status::InvalidNamespace => Self::Namespace,
            Status::InvalidSignedPeerRecord => Self::Record,
            Status::InvalidTtl => Self::Ttl,
            Status::InvalidCookie => Self::Cookie,
            Status::NotAuthorized => Self::NotYours,
            Status::Unavailable => Self::Limit,
            Status::Ok | Status::InternalError => Self::Request,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_json_objects_as_the_contract_names_them() {
        let peer = PeerId::random();
        let refused = ServerEvent::Refused { peer, why: Refusal::Limit };
        let json = serde_json::to_value(refused).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "event": "refused", "peer_id": peer.to_string(), "why": "limit" })
        );
        let json =
            serde_json::to_value(ServerEvent::Stats(Stats { watchers: 3, ..Stats::default() })).unwrap();
        assert_eq!((json.get("event"), json.get("watchers")), (Some(&"stats".into()), Some(&3.into())));
    }
}
