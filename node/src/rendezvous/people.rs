//! Who a server says is in the room, as far as signatures bear it out. Pure.
//!
//! A server can hide people and show old records, but it cannot invent anybody: each record is verified here, and its
//! addresses are cut down to those that may be dialled.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId};

use super::{
    client::{ClientEvent, Via},
    policy::{Scope, usable},
    record,
};

/// People of one room that are remembered. More are not heard of; a mesh carries far fewer.
pub const MAX_PEOPLE: usize = 256;

/// How long somebody may be missing from the list of a server that we found again, before we call it an absence: after
/// a restart all others have to find it again too.
pub const RELIST_GRACE: Duration = Duration::from_secs(30);

/// The people of one room.
#[derive(Debug)]
pub(crate) struct People {
    ourselves: PeerId,
    known: HashMap<PeerId, Known>,
    list: u64,
    skipped: u64,
}

#[derive(Debug)]
struct Known {
    addresses: Vec<Multiaddr>,
    list: u64,
    gone_at: Option<Instant>,
}

impl People {
    pub(crate) fn new(ourselves: PeerId) -> Self {
        Self { ourselves, known: HashMap::new(), list: 0, skipped: 0 }
    }

    /// A record: news, unless it is invalid, our own, or says what we know.
    pub(crate) fn told(&mut self, record: &[u8], via: Via, server: Scope) -> Option<ClientEvent> {
        let verified = match record::verify(record) {
            Ok(verified) => verified,
            Err(error) => {
                self.skipped = self.skipped.saturating_add(1);
                tracing::debug!(%error, skipped = self.skipped, "the server shows a record that is not to be trusted");
                return None;
            }
        };
        let peer = verified.peer;
        if peer == self.ourselves {
            return None;
        }
        let addresses = usable(&peer, &verified.addresses, server);
        if let Some(known) = self.known.get_mut(&peer) {
            known.list = self.list;
            known.gone_at = None;
            if known.addresses == addresses {
                return None;
            }
            known.addresses.clone_from(&addresses);
        } else if self.known.len() < MAX_PEOPLE {
            let known = Known { addresses: addresses.clone(), list: self.list, gone_at: None };
            self.known.insert(peer, known);
        } else {
            return None;
        }
        Some(ClientEvent::Peer { peer, addresses, via })
    }

    /// No longer listed: news, if we knew of them.
    pub(crate) fn gone(&mut self, peer: PeerId) -> Option<ClientEvent> {
        self.known.remove(&peer).map(|_| ClientEvent::PeerGone { peer })
    }

    /// A whole list begins.
    pub(crate) fn list_begins(&mut self) {
        self.list = self.list.saturating_add(1);
    }

    /// It is complete: whoever was not on it is gone, at once or at `gone_at`.
    pub(crate) fn list_ends(&mut self, gone_at: Option<Instant>) -> Vec<ClientEvent> {
        let missing: Vec<PeerId> =
            self.known.iter().filter(|(_, k)| k.list != self.list).map(|(peer, _)| *peer).collect();
        let mut news = Vec::new();
        for peer in missing {
            match (gone_at, self.known.get_mut(&peer)) {
                (Some(when), Some(known)) => known.gone_at = known.gone_at.or(Some(when)),
                _ => news.extend(self.gone(peer)),
            }
        }
        news
    }

    /// When [`People::overdue`] has something to say.
    pub(crate) fn next_overdue(&self) -> Option<Instant> {
        self.known.values().filter_map(|k| k.gone_at).min()
    }

    /// Those whose grace is over.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<ClientEvent> {
        let over: Vec<PeerId> = self
            .known
            .iter()
            .filter(|(_, k)| k.gone_at.is_some_and(|when| when <= now))
            .map(|(peer, _)| *peer)
            .collect();
        over.into_iter().filter_map(|peer| self.gone(peer)).collect()
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use libp2p::identity::Keypair;

    use super::*;
    use crate::rendezvous::record::{Form, tests as records};

    fn of(event: &Option<ClientEvent>) -> Option<(PeerId, usize)> {
        match event {
            Some(ClientEvent::Peer { peer, addresses, .. }) => Some((*peer, addresses.len())),
            _ => None,
        }
    }

    #[test]
    fn each_person_is_news_once_and_again_with_new_addresses() {
        let (ben, mut people) = (Keypair::generate_ed25519(), People::new(PeerId::random()));
        let peer = ben.public().into();
        for (addresses, expected) in
            [(1, Some((peer, 1))), (1, None), (2, Some((peer, 2))), (12, Some((peer, 8)))]
        {
            let record = records::signed(&ben, records::addresses(addresses));
            assert_eq!(of(&people.told(&record, Via::Pushed, Scope::Public)), expected);
        }
        assert!(people.gone(peer).is_some());
        assert!(people.gone(peer).is_none());
    }

    #[test]
    fn we_are_not_a_stranger_to_ourselves_and_forgeries_are_nobody() {
        let ana = Keypair::generate_ed25519();
        let mut people = People::new(ana.public().into());
        let mut record = record::sign(&ana, &records::addresses(1), Form::Standard).unwrap();
        assert!(people.told(&record, Via::Initial, Scope::Public).is_none());
        record[60] ^= 1;
        assert!(people.told(&record, Via::Initial, Scope::Public).is_none());
        assert_eq!(people.skipped, 1);
    }

    #[test]
    fn a_server_on_the_internet_cannot_send_us_into_our_own_network() {
        let (ben, mut people) = (Keypair::generate_ed25519(), People::new(PeerId::random()));
        let addresses =
            ["/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/192.168.1.1/udp/1/quic-v1", "/ip4/9.9.9.9/udp/1/quic-v1"];
        let record = records::signed(&ben, addresses.map(|a| a.parse().unwrap()).to_vec());
        assert_eq!(of(&people.told(&record, Via::Initial, Scope::Public)).unwrap().1, 1);
        assert_eq!(of(&people.told(&record, Via::Initial, Scope::Private)).unwrap().1, 2);
    }

    #[test]
    fn two_hundred_and_fifty_six_people_are_remembered_and_no_more() {
        let mut people = People::new(PeerId::random());
        for expected in std::iter::repeat_n(true, MAX_PEOPLE).chain([false]) {
            let record = records::signed(&Keypair::generate_ed25519(), vec![]);
            assert_eq!(people.told(&record, Via::Initial, Scope::Public).is_some(), expected);
        }
    }

    #[test]
    fn after_a_restart_the_missing_have_thirty_seconds_to_come_back() {
        let mut people = People::new(PeerId::random());
        let (ben, cleo) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let see = |people: &mut People, who: &Keypair| {
            people.told(&records::signed(who, vec![]), Via::Initial, Scope::Public).is_some()
        };
        people.list_begins();
        assert!(see(&mut people, &ben) && see(&mut people, &cleo));
        assert_eq!(people.list_ends(None).len(), 0);
        let back = Instant::now();
        people.list_begins();
        assert_eq!(people.list_ends(Some(back + RELIST_GRACE)).len(), 0);
        assert!(!see(&mut people, &ben), "ben was never away");
        assert_eq!(people.next_overdue(), Some(back + RELIST_GRACE));
        let gone = people.overdue(back + RELIST_GRACE);
        assert!(matches!(gone[..], [ClientEvent::PeerGone { peer }] if peer == PeerId::from(cleo.public())));
    }
}
