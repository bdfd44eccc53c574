//! What a rendezvous server answers: registrations and watchers together. Pure; the streams are in `server`.
//!
//! After any call: send [`Hub::take_happened`] on as events and wake [`Hub::take_woken`].

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId};

use super::{
    limits::Limits,
    record::{self, Form},
    store::{Candidate, Change, Door, Page, Prefix, Room, Store},
    watchers::{News, WatchId, Watchers},
    wire::{
        DOOR_LEN, Discover, MAX_NAMESPACE, MAX_REPLY, Register, RegisterResponse, Snapshot, Status,
        WatchEvent,
    },
};

/// Entries of one DISCOVER answer, when the client names no smaller limit.
pub const MAX_PAGE: usize = 256;

/// Bytes of records in one message, with room left for the rest of it.
const RECORDS_PER_MESSAGE: usize = MAX_REPLY - 1024;

/// Who asks: proven by the connection.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Identity.
    pub peer: PeerId,
    /// Origin.
    pub prefix: Prefix,
}

/// A record that was checked to be of the peer that sent it. Made outside the hub, as a signature takes long to verify.
#[derive(Clone, Debug)]
pub struct Presented {
    record: Arc<[u8]>,
    form: Form,
    addresses: Vec<Multiaddr>,
    ttl: Option<u64>,
}

impl Presented {
    /// Checks a record.
    ///
    /// # Errors
    /// `InvalidSignedPeerRecord`, or `NotAuthorized` when it is another peer's.
    pub fn check(peer: &PeerId, record: Option<&[u8]>, ttl: Option<u64>) -> Result<Self, Status> {
        let record = record.ok_or(Status::InvalidSignedPeerRecord)?;
        let verified = record::verify(record).map_err(|_| Status::InvalidSignedPeerRecord)?;
        if verified.peer != *peer {
            return Err(Status::NotAuthorized);
        }
        Ok(Self { record: record.into(), form: verified.form, addresses: verified.addresses, ttl })
    }
}

/// What the operator may want to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// A registration was kept or renewed.
    Registered {
        /// Who.
        peer: PeerId,
        /// For how long; one that a watch holds lives as long as that.
        ttl: Duration,
        /// How many this peer now has.
        of_peer: usize,
    },
    /// A registration ended: by its age, by the death of its watch, or by the peer's word.
    Expired {
        /// Whose.
        peer: PeerId,
        /// The peer said so.
        left: bool,
    },
    /// A request was refused.
    Refused {
        /// Whose.
        peer: PeerId,
        /// Why.
        why: Status,
    },
}

/// An open watch.
#[derive(Clone, Copy, Debug)]
pub struct Watching {
    /// Its number.
    pub id: WatchId,
    guest: Guest,
    room: Room,
    door: Option<Door>,
}

/// All that a server remembers.
#[derive(Debug)]
pub struct Hub {
    store: Store,
    watchers: Watchers,
    changes: Vec<Change>,
    happened: Vec<Happened>,
    woken: BTreeSet<WatchId>,
    refused: u64,
}

impl Hub {
    /// Empty. `seed` must be random and secret.
    pub fn new(limits: Limits, seed: [u8; 32]) -> Self {
        Self {
            store: Store::new(limits.clone(), seed),
            watchers: Watchers::new(limits),
            changes: Vec::new(),
            happened: Vec::new(),
            woken: BTreeSet::new(),
            refused: 0,
        }
    }

    /// Registrations, namespaces, watchers, refusals so far.
    pub fn counts(&self) -> (usize, usize, usize, u64) {
        (self.store.len(), self.store.rooms(), self.watchers.len(), self.refused)
    }

    /// REGISTER: seconds granted.
    ///
    /// # Errors
    /// The status to answer with.
    pub fn register(
        &mut self,
        now: Instant,
        guest: Guest,
        namespace: Option<&str>,
        presented: Result<Presented, Status>,
    ) -> Result<u64, Status> {
        let outcome = valid(namespace)
            .and_then(|ns| Ok((self.store.room(ns), presented?)))
            .and_then(|(room, presented)| self.keep(now, guest, room, None, presented, None));
        self.counted(guest, outcome).map(|ttl| ttl.as_secs())
    }

    /// UNREGISTER.
    pub fn unregister(&mut self, guest: Guest, namespace: Option<&str>) {
        if let Ok(namespace) = valid(namespace) {
            self.leave_room(guest, self.store.room(namespace));
        }
    }

    /// DISCOVER: entries and cookie.
    ///
    /// # Errors
    /// The status to answer with; above all `InvalidNamespace` to whoever asks for everything.
    pub fn discover(
        &mut self,
        now: Instant,
        guest: Guest,
        asked: &Discover,
    ) -> Result<(Vec<Register>, Vec<u8>), Status> {
        let limit = asked.limit.map_or(MAX_PAGE, |n| usize::try_from(n).unwrap_or(MAX_PAGE)).min(MAX_PAGE);
        let page = valid(asked.ns.as_deref()).and_then(|ns| {
            let cookie = asked.cookie.as_deref();
            let page = self.store.discover(now, &guest.peer, ns, cookie, limit, RECORDS_PER_MESSAGE)?;
            Ok((ns, page))
        });
        let (namespace, Page { entries, cookie }) = self.counted(guest, page)?;
        let of_entry = |(record, left): (Arc<[u8]>, Duration)| Register {
            ns: Some(namespace.to_owned()),
            signed_peer_record: Some(record.to_vec()),
            ttl: Some(left.as_secs()),
        };
        Ok((entries.into_iter().map(of_entry).collect(), cookie))
    }

    /// Opens a watch: what to remember it by, and the first messages, with everybody who is there.
    ///
    /// # Errors
    /// The status to say goodbye with. A presence that is refused does not end the watch; it is answered inside.
    pub fn open_watch(
        &mut self,
        now: Instant,
        guest: Guest,
        namespace: &str,
        door: &[u8],
        presented: Option<Result<Presented, Status>>,
        observed: &Multiaddr,
    ) -> Result<(Watching, Vec<WatchEvent>), Status> {
        let opened = valid(Some(namespace)).and_then(|ns| {
            let door = match door.len() {
                0 => None,
                DOOR_LEN => Some(self.store.door(door)),
                _ => return Err(Status::InternalError),
            };
            let room = self.store.room(ns);
            let id = self.watchers.open(guest.peer, guest.prefix, room, door)?;
            Ok(Watching { id, guest, room, door })
        });
        let watching = self.counted(guest, opened)?;
        let mut first = WatchEvent { observed: Some(observed.to_vec()), ..WatchEvent::default() };
        if let Some(presented) = presented {
            first.registered = Some(self.present(now, &watching, presented));
        }
        first.other_keys = watching.door.map(|door| self.store.other_keys(door, watching.room));
        // What happened up to here is in the list that follows.
        self.watchers.take(watching.id);
        let mut messages = self.everybody(&watching);
        if let Some(start) = messages.first_mut() {
            first.snapshot = start.snapshot.take();
            *start = first;
        }
        Ok((watching, messages))
    }

    /// A watch's own registration: its first, or new addresses.
    pub fn present(
        &mut self,
        now: Instant,
        watching: &Watching,
        presented: Result<Presented, Status>,
    ) -> RegisterResponse {
        let outcome = presented.and_then(|presented| {
            let Watching { id, guest, room, door } = *watching;
            self.keep(now, guest, room, door, presented, Some(id))
        });
        match self.counted(watching.guest, outcome) {
            Ok(ttl) => RegisterResponse {
                status: Some(Status::Ok.into()),
                status_text: None,
                ttl: Some(ttl.as_secs()),
            },
            Err(status) => refusal(status),
        }
    }

    /// A watch ends. With a goodbye its registration ends too, without one it lives a moment longer.
    pub fn close_watch(&mut self, now: Instant, watching: &Watching, goodbye: bool) {
        self.watchers.close(watching.id);
        let Watching { id, guest, room, .. } = *watching;
        if goodbye && self.store.holds(id, room, &guest.peer) {
            self.leave_room(guest, room);
        }
        self.store.release(now, id, room, &guest.peer);
    }

    /// What a watcher has not heard, as messages; and whether the count at its door has changed.
    pub fn unheard(&mut self, watching: &Watching) -> (Vec<WatchEvent>, bool) {
        let unheard = self.watchers.take(watching.id);
        let mut messages = if unheard.resync { self.everybody(watching) } else { Vec::new() };
        messages.extend(unheard.news.into_iter().map(|news| match news {
            News::Arrived(record) => WatchEvent { arrived: Some(record.to_vec()), ..WatchEvent::default() },
            News::Gone(peer) => WatchEvent { gone: Some(peer.to_bytes()), ..WatchEvent::default() },
            News::Displaced => {
                WatchEvent { registered: Some(refusal(Status::Unavailable)), ..WatchEvent::default() }
            }
        }));
        (messages, unheard.door)
    }

    /// Registrations at a watcher's door under other keys.
    pub fn other_keys(&self, watching: &Watching) -> Option<u32> {
        watching.door.map(|door| self.store.other_keys(door, watching.room))
    }

    /// The room that a namespace stands for, where this peer is registered in it.
    pub fn membership(&self, peer: &PeerId, namespace: &str) -> Option<Room> {
        let room = self.store.room(valid(Some(namespace)).ok()?);
        self.is_in(room, peer).then_some(room)
    }

    /// Whether this peer is registered in a room.
    pub fn is_in(&self, room: Room, peer: &PeerId) -> bool {
        self.store.is_in(room, peer)
    }

    /// When [`Hub::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.store.next_expiry()
    }

    /// Ends what has lived its time.
    pub fn expire(&mut self, now: Instant) {
        let expired = self.store.expire(now, &mut self.changes);
        self.happened.extend(expired.into_iter().map(|peer| Happened::Expired { peer, left: false }));
        self.tell();
    }

    /// For the operator, once.
    pub fn take_happened(&mut self) -> Vec<Happened> {
        std::mem::take(&mut self.happened)
    }

    /// Watches with something unheard, once.
    pub fn take_woken(&mut self) -> BTreeSet<WatchId> {
        std::mem::take(&mut self.woken)
    }

    fn keep(
        &mut self,
        now: Instant,
        guest: Guest,
        room: Room,
        door: Option<Door>,
        presented: Presented,
        held_by: Option<WatchId>,
    ) -> Result<Duration, Status> {
        let Presented { record, form, addresses, ttl } = presented;
        let Guest { peer, prefix } = guest;
        let candidate = Candidate { room, door, peer, prefix, record, form, addresses, ttl, held_by };
        let kept = self.store.register(now, candidate, &mut self.changes);
        self.tell();
        if let Ok(ttl) = kept {
            self.happened.push(Happened::Registered { peer, ttl, of_peer: self.store.of_peer(&peer) });
        }
        kept
    }

    fn leave_room(&mut self, guest: Guest, room: Room) {
        if self.store.unregister(room, &guest.peer, &mut self.changes) {
            self.happened.push(Happened::Expired { peer: guest.peer, left: true });
            self.tell();
        }
    }

    fn tell(&mut self) {
        let woken = self.watchers.tell(&self.changes);
        self.changes.clear();
        self.woken.extend(woken);
    }

    fn counted<T>(&mut self, guest: Guest, outcome: Result<T, Status>) -> Result<T, Status> {
        if let Err(why) = outcome {
            self.refused = self.refused.saturating_add(1);
            self.happened.push(Happened::Refused { peer: guest.peer, why });
        }
        outcome
    }

    /// Never empty: an empty room is one empty list.
    fn everybody(&self, watching: &Watching) -> Vec<WatchEvent> {
        let mut lists: Vec<Vec<Vec<u8>>> = vec![Vec::new()];
        let mut bytes = 0usize;
        for record in self.store.everybody(watching.room, &watching.guest.peer) {
            let cost = record.len().saturating_add(8);
            bytes = bytes.saturating_add(cost);
            if bytes > RECORDS_PER_MESSAGE {
                lists.push(Vec::new());
                bytes = cost;
            }
            if let Some(list) = lists.last_mut() {
                list.push(record.to_vec());
            }
        }
        let last = lists.len().saturating_sub(1);
        let of_list = |(at, records)| WatchEvent {
            snapshot: Some(Snapshot { records, more: at != last }),
            ..WatchEvent::default()
        };
        lists.into_iter().enumerate().map(of_list).collect()
    }
}

fn refusal(status: Status) -> RegisterResponse {
    RegisterResponse { status: Some(status.into()), status_text: Some(status.in_words().into()), ttl: None }
}

fn valid(namespace: Option<&str>) -> Result<&str, Status> {
    namespace.filter(|ns| !ns.is_empty() && ns.len() <= MAX_NAMESPACE).ok_or(Status::InvalidNamespace)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use libp2p::identity::Keypair;
    use prost::Message as _;

    use super::*;
    use crate::rendezvous::record::{MAX_RECORD, tests as records};

    struct Person {
        keypair: Keypair,
        guest: Guest,
        /// Signed once: a record says in which second it was.
        record: Vec<u8>,
    }

    fn person() -> Person {
        let keypair = Keypair::generate_ed25519();
        let record = records::signed(&keypair, records::addresses(1));
        Person { guest: Guest { peer: keypair.public().into(), prefix: Prefix::Local }, keypair, record }
    }

    impl Person {
        fn record(&self, addresses: usize) -> Vec<u8> {
            records::signed(&self.keypair, records::addresses(addresses))
        }

        fn presented(&self) -> Result<Presented, Status> {
            Presented::check(&self.guest.peer, Some(&self.record), Some(60))
        }
    }

    fn hub() -> Hub {
        Hub::new(Limits::default(), [5; 32])
    }

    fn here() -> Multiaddr {
        "/ip4/127.0.0.1/udp/9/quic-v1".parse().unwrap()
    }

    #[test]
    fn asking_for_every_namespace_is_refused_and_leaks_nothing() {
        let (mut hub, ana, now) = (hub(), person(), Instant::now());
        hub.register(now, ana.guest, Some("hall"), ana.presented()).unwrap();
        for ns in [None, Some(String::new()), Some("n".repeat(256))] {
            let asked = Discover { ns, ..Discover::default() };
            assert_eq!(hub.discover(now, person().guest, &asked), Err(Status::InvalidNamespace));
        }
        let asked = Discover { ns: Some("n".repeat(255)), ..Discover::default() };
        assert!(hub.discover(now, person().guest, &asked).unwrap().0.is_empty());
    }

    #[test]
    fn bad_records_and_those_of_others_have_their_own_answers() {
        let (mut hub, ana, ben, now) = (hub(), person(), person(), Instant::now());
        let mut forged = ana.record.clone();
        *forged.last_mut().unwrap() ^= 1;
        let cases = [
            (None, Status::InvalidSignedPeerRecord),
            (Some(vec![1, 2, 3]), Status::InvalidSignedPeerRecord),
            (Some(vec![0; MAX_RECORD + 1]), Status::InvalidSignedPeerRecord),
            (Some(ana.record(17)), Status::InvalidSignedPeerRecord),
            (Some(forged), Status::InvalidSignedPeerRecord),
            (Some(ben.record.clone()), Status::NotAuthorized),
        ];
        for (record, expected) in cases {
            let presented = Presented::check(&ana.guest.peer, record.as_deref(), None);
            assert_eq!(hub.register(now, ana.guest, Some("hall"), presented), Err(expected));
        }
        assert_eq!(hub.counts(), (0, 0, 0, 6));
    }

    #[test]
    fn a_watch_registers_and_lists_and_hears_of_the_next_in_one_push() {
        let (mut hub, ana, ben, now) = (hub(), person(), person(), Instant::now());
        let enter = |hub: &mut Hub, p: &Person| {
            hub.open_watch(now, p.guest, "hall", &[1; 16], Some(p.presented()), &here()).unwrap()
        };
        let (ana_watches, first) = enter(&mut hub, &ana);
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].registered.as_ref().unwrap().status, Some(0));
        assert_eq!(first[0].observed, Some(here().to_vec()));
        assert_eq!(first[0].other_keys, Some(0));
        assert_eq!(first[0].snapshot, Some(Snapshot::default()));
        let (_, first) = enter(&mut hub, &ben);
        assert_eq!(first[0].snapshot.as_ref().unwrap().records, std::slice::from_ref(&ana.record));
        assert!(hub.take_woken().contains(&ana_watches.id));
        let (messages, _) = hub.unheard(&ana_watches);
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].arrived, Some(ben.record.clone()));
    }

    #[test]
    fn goodbye_ends_a_registration_at_once_and_silence_after_the_grace() {
        let (mut hub, ana, ben, now) = (hub(), person(), person(), Instant::now());
        let (ana_watches, _) = hub.open_watch(now, ana.guest, "hall", &[], None, &here()).unwrap();
        for goodbye in [true, false] {
            let (ben_watches, _) =
                hub.open_watch(now, ben.guest, "hall", &[], Some(ben.presented()), &here()).unwrap();
            hub.unheard(&ana_watches);
            hub.close_watch(now, &ben_watches, goodbye);
            assert_eq!(hub.unheard(&ana_watches).0.len(), usize::from(goodbye));
            assert_eq!(hub.counts().0, usize::from(!goodbye));
        }
        hub.expire(hub.next_expiry().unwrap());
        assert_eq!(hub.unheard(&ana_watches).0[0].gone, Some(ben.guest.peer.to_bytes()));
    }

    #[test]
    fn a_late_goodbye_does_not_end_what_the_next_watch_holds() {
        let (mut hub, ana, now) = (hub(), person(), Instant::now());
        let mut enter =
            || hub.open_watch(now, ana.guest, "hall", &[], Some(ana.presented()), &here()).unwrap().0;
        let (old, _new) = (enter(), enter());
        hub.close_watch(now, &old, true);
        assert_eq!(hub.counts().0, 1);
    }

    #[test]
    fn a_full_room_is_listed_in_messages_within_the_bound() {
        let (mut hub, now) = (hub(), Instant::now());
        for _ in 0..256 {
            let p = person();
            let presented = Presented::check(&p.guest.peer, Some(&p.record(16)), None);
            hub.register(now, p.guest, Some("hall"), presented).unwrap();
        }
        let (_, messages) = hub.open_watch(now, person().guest, "hall", &[], None, &here()).unwrap();
        assert!(messages.len() > 1 && messages.iter().all(|m| m.encoded_len() <= MAX_REPLY));
        let lists: Vec<_> = messages.iter().map(|m| m.snapshot.as_ref().unwrap()).collect();
        assert_eq!(lists.iter().map(|s| s.records.len()).sum::<usize>(), 256);
        assert!(lists.iter().rev().skip(1).all(|s| s.more) && !lists.last().unwrap().more);

        let mut cookie = None;
        let mut found = 0;
        loop {
            let asked = Discover { ns: Some("hall".into()), limit: Some(u64::MAX), cookie };
            let (entries, next) = hub.discover(now, person().guest, &asked).unwrap();
            let answer = super::super::wire::Response::discovered(Ok((entries.clone(), next.clone())));
            assert!(answer.encoded_len() <= MAX_REPLY);
            if entries.is_empty() {
                break;
            }
            found += entries.len();
            cookie = Some(next);
        }
        assert_eq!(found, 256);
    }

    #[test]
    fn another_key_at_the_door_is_counted_and_never_listed() {
        let (mut hub, ana, ben, now) = (hub(), person(), person(), Instant::now());
        let (ana_watches, _) =
            hub.open_watch(now, ana.guest, "hall, right", &[1; 16], Some(ana.presented()), &here()).unwrap();
        let (ben_watches, first) =
            hub.open_watch(now, ben.guest, "hall, wrong", &[1; 16], Some(ben.presented()), &here()).unwrap();
        assert_eq!(first[0].other_keys, Some(1));
        assert_eq!(first[0].snapshot, Some(Snapshot::default()));
        assert_eq!(hub.unheard(&ana_watches), (vec![], true));
        assert_eq!(hub.other_keys(&ana_watches), Some(1));
        hub.close_watch(now, &ben_watches, true);
        assert_eq!(hub.unheard(&ana_watches), (vec![], true));
        assert_eq!(hub.other_keys(&ana_watches), Some(0));
    }

    #[test]
    fn a_door_tag_of_another_length_is_refused() {
        let (mut hub, ana, now) = (hub(), person(), Instant::now());
        for door in [&[1u8; 15][..], &[1; 17]] {
            assert!(hub.open_watch(now, ana.guest, "hall", door, None, &here()).is_err());
        }
        assert_eq!(hub.counts().2, 0);
    }

    #[test]
    fn a_refused_presence_still_watches() {
        let (mut hub, ana, now) = (hub(), person(), Instant::now());
        let refused = Some(Err(Status::InvalidSignedPeerRecord));
        let (_, first) = hub.open_watch(now, ana.guest, "hall", &[], refused, &here()).unwrap();
        assert_eq!(first[0].registered.as_ref().unwrap().status, Some(101));
        assert_eq!(hub.counts().2, 1);
    }

    #[test]
    fn a_thousand_greedy_strangers_leave_room_for_an_honest_pair() {
        let (mut hub, now) = (hub(), Instant::now());
        for n in 0..1000 {
            let stranger = person();
            let presented = stranger.presented();
            for room in 0..33 {
                let namespace = format!("guess {n} {room}");
                let _ = hub.register(now, stranger.guest, Some(&namespace), presented.clone());
                let _ = hub.open_watch(now, stranger.guest, &namespace, &[1; 16], None, &here());
            }
        }
        let (registrations, _, watchers, _) = hub.counts();
        assert_eq!((registrations, watchers), (10_000, 8000));
        let (ana, ben) = (person(), person());
        let mut seen = Vec::new();
        for honest in [&ana, &ben] {
            let presented = Some(honest.presented());
            let (_, first) = hub.open_watch(now, honest.guest, "hall", &[2; 16], presented, &here()).unwrap();
            assert_eq!(first[0].registered.as_ref().unwrap().status, Some(0));
            seen = first[0].snapshot.clone().unwrap().records;
        }
        assert_eq!(seen, std::slice::from_ref(&ana.record));
    }
}
