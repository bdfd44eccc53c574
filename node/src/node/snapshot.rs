//! Everything that a node knows at one moment, for whoever comes late: a screen, a client of the control socket.

use libp2p::{Multiaddr, PeerId};
use serde::Serialize;

use super::*;
use crate::{
    controls::Hearing,
    events::{PathKind, Processing, Sending},
    media::MediaStats,
    meters::Meters,
    trust::Standing,
};

/// What [`Command::Snapshot`] gives. Fields that events have too mean the same there.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // docs/events.md describes each
pub struct Snapshot {
    pub version: &'static str,
    pub room: String,
    pub open: bool,
    pub since_start_ms: f64,
    #[serde(serialize_with = "events::display")]
    pub peer_id: PeerId,
    pub name: String,
    #[serde(serialize_with = "events::display_all")]
    pub listen: Vec<Multiaddr>,
    pub servers: Vec<Server>,
    pub controls: Controls,
    /// What is done to our voice, and what it costs; as the `processing` event last told.
    pub processing: Processing,
    /// Seconds until nobody new is let in, 0 when that is over; `None`: no end.
    pub closes_in_s: Option<u64>,
    /// The invite is for one guest.
    pub single_use: bool,
    /// The file that what is said in writing is kept in.
    pub history: Option<String>,
    /// What the microphone captures is sent now.
    pub speaking: bool,
    /// Loudness of the microphone now, sent or not.
    pub level_dbov: f32,
    /// As `--input` would take it.
    pub input: String,
    /// The device that it turned out to be; `None` where it is no device, or is lost now.
    pub input_device: Option<String>,
    pub output: String,
    pub output_device: Option<String>,
    /// How we send; `None` in the first second.
    pub policy: Option<Sending>,
    pub people: Vec<Person>,
}

/// A rendezvous server, as the `rendezvous` event last told of it.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Server {
    #[serde(serialize_with = "events::display")]
    pub addr: Multiaddr,
    #[serde(serialize_with = "events::display_option")]
    pub peer_id: Option<PeerId>,
    pub state: RendezvousState,
}

/// Somebody else, as the `peer`, `volume` and `stats` events last told.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Person {
    #[serde(serialize_with = "events::display")]
    pub peer_id: PeerId,
    pub name: Option<String>,
    pub state: PeerState,
    pub path: Option<PathKind>,
    #[serde(flatten)]
    pub outlook: events::Outlook,
    pub verified: bool,
    /// What we know of this name and key; `None` until the name is known.
    pub trust: Option<Standing>,
    /// Words to compare aloud; `None` until both sides have drawn them.
    pub compare: Option<String>,
    /// Loudness now, before volume; `None` while there is no voice.
    pub level_dbov: Option<f32>,
    #[serde(flatten)]
    pub hearing: Hearing,
    pub stats: Option<Box<PeerStats>>,
}

impl Node {
    /// Everything that is known now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let meters = self.media.meters();
        let mut people: Vec<Person> =
            self.peers.iter().filter_map(|(id, peer)| self.person(id, peer, &meters)).collect();
        people.sort_by_key(|person| person.peer_id);
        Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            room: self.config.invite.room.to_string(),
            open: self.config.invite.is_open(),
            since_start_ms: self.since_start(),
            peer_id: self.me,
            name: self.room.name().to_owned(),
            listen: self.listening.clone(),
            servers: self.servers.clone(),
            controls: self.controls,
            processing: self.processing,
            closes_in_s: self.closes_in_s(),
            single_use: self.config.invite.terms.host.is_some(),
            history: self.history(),
            speaking: meters.is_open(),
            level_dbov: meters.own().dbov(),
            input: self.devices.input.asked.clone(),
            input_device: self.devices.input.device.clone(),
            output: self.devices.output.asked.clone(),
            output_device: self.devices.output.device.clone(),
            policy: self.last_stats.as_ref().map(MediaStats::sending),
            people,
        }
    }

    pub(super) fn closes_in_s(&self) -> Option<u64> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.config.invite.terms.expires.map(|at| at.saturating_sub(since.as_secs()))
    }

    pub(super) fn history(&self) -> Option<String> {
        self.config.history.as_ref().map(|path| path.display().to_string())
    }

    /// Those that the outside was told of and that have not left.
    fn person(&self, id: &PeerId, peer: &Peer, meters: &Meters) -> Option<Person> {
        let state = peer.told.filter(|state| *state != PeerState::Left)?;
        Some(Person {
            peer_id: *id,
            name: peer.name.clone(),
            state,
            path: peer.paths.route().path().map(|path| path.kind()),
            outlook: self.outlook(id, Instant::now()),
            verified: self.is_verified(peer),
            trust: peer.name.as_ref().map(|name| self.config.trust.standing(id, name)),
            compare: self.room.words(id).map(|words| words.join(" ")),
            level_dbov: meters.voice(id),
            hearing: self.config.volumes.of(id),
            stats: peer.figures.clone(),
        })
    }
}
