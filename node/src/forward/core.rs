//! What the forwarder decides: who is in which room, who may send how much to whom. Pure; `S` is where a member's
//! datagrams go, which this file never looks into.
//!
//! [`Core::open`] and [`Core::close`] per control stream, [`Core::bind`] when it is known where a member is reached,
//! [`Core::forward`] per datagram; after open, bind and close: wake [`Core::take_woken`].

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use libp2p::PeerId;
use serde::Serialize;

use super::wire::{Refusal, read_up};
use crate::rendezvous::store::{Prefix, Room};

/// Bounds of a forwarder. Rates are of what it sends on behalf of somebody, headers of UDP and QUIC estimated.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Rooms at a time. Default 4,096.
    pub rooms: usize,
    /// Members of one room. Default 64: more people than a mesh carries. At most 255.
    pub members: usize,
    /// Sessions in all. Default 10,000.
    pub sessions: usize,
    /// Of them kept for those whose room has somebody in it already: members go before strangers. Default 1,000.
    pub sessions_reserved: usize,
    /// Sessions of one peer. Default 8.
    pub per_peer: usize,
    /// Sessions from one public IPv4 address or IPv6 /64. Default 1,024.
    pub per_prefix: usize,
    /// What one member may have sent on, summed over its receivers, kb/s. Default 8,000: music to fifteen others.
    pub sender_kbps: u32,
    /// What one room may have sent on, kb/s. Default 64,000.
    pub room_kbps: u32,
    /// What all rooms together may have sent on, kb/s. Default 1,000,000. 0: nothing is forwarded.
    pub total_kbps: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rooms: 4096,
            members: 64,
            sessions: 10_000,
            sessions_reserved: 1_000,
            per_peer: 8,
            per_prefix: 1024,
            sender_kbps: 8_000,
            room_kbps: 64_000,
            total_kbps: 1_000_000,
        }
    }
}

/// Every bucket holds what its rate gives in this time: bursts pass, floods do not.
pub const BURST: Duration = Duration::from_millis(250);
/// Sessions of one member in one room: it moves from one connection to another. The oldest gives way.
pub const MAX_SESSIONS_OF_MEMBER: usize = 3;
/// Bytes around a forwarded payload on the wire: IP, UDP, QUIC, and our own header.
const OVERHEAD: u64 = 70;

/// One control stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u64);

/// What a control stream stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// Of the room, in datagrams.
    pub handle: u32,
    /// Of the member.
    pub index: u8,
}

/// A datagram that was not sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Not readable.
    Malformed,
    /// The sender is in no such room.
    NotAMember,
    /// A bucket is empty: the sender's own, or that of its room or the server.
    Rate,
    /// None of the receivers is there.
    Nobody,
}

/// What a forwarder holds and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Rooms now.
    pub forward_rooms: usize,
    /// Sessions now.
    pub forward_sessions: usize,
    /// Datagrams taken and sent on since the start; one for several receivers counts once for each.
    pub relayed: u64,
    /// Bytes of them, without headers.
    pub relayed_bytes: u64,
    /// Dropped because a bucket was empty.
    pub over_rate: u64,
    /// Dropped for any other reason.
    pub unforwardable: u64,
}

/// Bytes by time.
#[derive(Debug)]
struct Tokens {
    have: u64,
    most: u64,
    per_second: u64,
    at: Instant,
}

impl Tokens {
    fn new(kbps: u32, now: Instant) -> Self {
        let per_second = u64::from(kbps).saturating_mul(125);
        let most = per_second.saturating_mul(BURST.as_millis() as u64).checked_div(1000).unwrap_or(0);
        Self { have: most, most, per_second, at: now }
    }

    fn has(&mut self, now: Instant, bytes: u64) -> bool {
        let passed = now.saturating_duration_since(self.at);
        let nanos = u128::from(self.per_second).saturating_mul(passed.as_nanos());
        let gained = u64::try_from(nanos.checked_div(1_000_000_000).unwrap_or(0)).unwrap_or(u64::MAX);
        if gained > 0 {
            (self.have, self.at) = (self.have.saturating_add(gained).min(self.most), now.max(self.at));
        }
        self.have >= bytes
    }

    fn take(&mut self, bytes: u64) {
        self.have = self.have.saturating_sub(bytes);
    }
}

struct Member<S> {
    peer: PeerId,
    /// Oldest first; the newest that is bound is sent to.
    sessions: Vec<(SessionId, Option<S>)>,
    tokens: Tokens,
    relayed: u64,
    bytes: u64,
}

struct Open<S> {
    room: Room,
    members: BTreeMap<u8, Member<S>>,
    indices: HashMap<PeerId, u8>,
    tokens: Tokens,
}

struct Holder {
    session: Session,
    peer: PeerId,
    prefix: Prefix,
}

/// All rooms of a forwarder.
pub struct Core<S> {
    limits: Limits,
    open: HashMap<u32, Open<S>>,
    handles: HashMap<Room, u32>,
    sessions: HashMap<SessionId, Holder>,
    peers: HashMap<PeerId, usize>,
    prefixes: HashMap<Prefix, usize>,
    tokens: Tokens,
    next_session: u64,
    next_handle: u32,
    draining: bool,
    woken: BTreeSet<SessionId>,
    stats: Stats,
}

impl<S: Clone> Core<S> {
    /// Without rooms. Handles count from `first_handle`, so that those of an earlier run mean nothing.
    pub fn new(limits: Limits, first_handle: u32, now: Instant) -> Self {
        Self {
            tokens: Tokens::new(limits.total_kbps, now),
            limits,
            open: HashMap::new(),
            handles: HashMap::new(),
            sessions: HashMap::new(),
            peers: HashMap::new(),
            prefixes: HashMap::new(),
            next_session: 0,
            next_handle: first_handle,
            draining: false,
            woken: BTreeSet::new(),
            stats: Stats::default(),
        }
    }

    /// Takes a member of `room` in; the caller has seen that it is one.
    ///
    /// # Errors
    /// Why not.
    pub fn open(
        &mut self,
        now: Instant,
        peer: PeerId,
        prefix: Prefix,
        room: Room,
        to: Option<S>,
    ) -> Result<Session, Refusal> {
        self.may_open(&peer, prefix, room)?;
        let handle = match self.handles.get(&room) {
            Some(handle) => *handle,
            None => self.make_room(now, room),
        };
        let sender_kbps = self.limits.sender_kbps;
        let open = self.open.get_mut(&handle).ok_or(Refusal::Full)?;
        let index = match open.indices.get(&peer) {
            Some(index) => *index,
            None => {
                let free = (0..=u8::MAX).find(|index| !open.members.contains_key(index));
                let index = free.ok_or(Refusal::RoomFull)?;
                let tokens = Tokens::new(sender_kbps, now);
                let member = Member { peer, sessions: Vec::new(), tokens, relayed: 0, bytes: 0 };
                open.members.insert(index, member);
                open.indices.insert(peer, index);
                index
            }
        };
        self.next_session = self.next_session.saturating_add(1);
        let id = SessionId(self.next_session);
        let member = open.members.get_mut(&index).ok_or(Refusal::Full)?;
        let oldest = member.sessions.first().map(|(id, _)| *id);
        let gives_way = oldest.filter(|_| member.sessions.len() >= MAX_SESSIONS_OF_MEMBER);
        member.sessions.push((id, to));
        let session = Session { id, handle, index };
        self.sessions.insert(id, Holder { session, peer, prefix });
        let count = self.peers.entry(peer).or_default();
        *count = count.saturating_add(1);
        if prefix != Prefix::Local {
            let count = self.prefixes.entry(prefix).or_default();
            *count = count.saturating_add(1);
        }
        if let Some(old) = gives_way {
            self.woken.insert(old);
            self.close(old);
        }
        self.wake_room(handle);
        Ok(session)
    }

    fn may_open(&self, peer: &PeerId, prefix: Prefix, room: Room) -> Result<(), Refusal> {
        if self.limits.total_kbps == 0 {
            return Err(Refusal::Off);
        }
        if self.draining {
            return Err(Refusal::Draining);
        }
        let open = self.handles.get(&room).and_then(|handle| self.open.get(handle));
        let known = open.is_some_and(|open| open.indices.contains_key(peer));
        if !known && open.is_some_and(|open| open.members.len() >= self.limits.members.min(255)) {
            return Err(Refusal::RoomFull);
        }
        let of = |count: Option<&usize>| count.copied().unwrap_or(0);
        // A lonely newcomer leaves the last places to those who are waited for.
        let reserved = if open.is_some() { 0 } else { self.limits.sessions_reserved };
        let full = self.sessions.len() >= self.limits.sessions.saturating_sub(reserved)
            || (open.is_none() && self.open.len() >= self.limits.rooms)
            || of(self.peers.get(peer)) >= self.limits.per_peer
            || (prefix != Prefix::Local && of(self.prefixes.get(&prefix)) >= self.limits.per_prefix);
        if full { Err(Refusal::Full) } else { Ok(()) }
    }

    fn make_room(&mut self, now: Instant, room: Room) -> u32 {
        while self.open.contains_key(&self.next_handle) {
            self.next_handle = self.next_handle.wrapping_add(1);
        }
        let handle = self.next_handle;
        self.next_handle = handle.wrapping_add(1);
        let tokens = Tokens::new(self.limits.room_kbps, now);
        self.open.insert(handle, Open { room, members: BTreeMap::new(), indices: HashMap::new(), tokens });
        self.handles.insert(room, handle);
        handle
    }

    /// A control stream ended. Gives what was relayed for its member, where that was its last one.
    pub fn close(&mut self, id: SessionId) -> Option<(PeerId, u64, u64)> {
        let Holder { session: Session { handle, index, .. }, peer, prefix } = self.sessions.remove(&id)?;
        less(&mut self.peers, &peer);
        less(&mut self.prefixes, &prefix);
        let open = self.open.get_mut(&handle)?;
        let member = open.members.get_mut(&index)?;
        member.sessions.retain(|(session, _)| *session != id);
        if !member.sessions.is_empty() {
            return None;
        }
        let totals = (peer, member.relayed, member.bytes);
        open.members.remove(&index);
        open.indices.remove(&peer);
        if open.members.is_empty() {
            self.handles.remove(&open.room);
            self.open.remove(&handle);
        }
        self.wake_room(handle);
        Some(totals)
    }

    /// A member's datagrams of this room are to go there from now on. False where it is in no such room.
    pub fn bind(&mut self, peer: &PeerId, handle: u32, to: S) -> bool {
        let Some(open) = self.open.get_mut(&handle) else { return false };
        let Some(index) = open.indices.get(peer) else { return false };
        let newest = open.members.get_mut(index).and_then(|member| member.sessions.last_mut());
        let Some((_, bound)) = newest else { return false };
        *bound = Some(to);
        true
    }

    /// Whether a session still stands: a fourth one of its member has pushed it out, or not.
    pub fn is_open(&self, id: SessionId) -> bool {
        self.sessions.contains_key(&id)
    }

    /// Everybody in a room: number and identity.
    pub fn members(&self, handle: u32) -> Vec<(u8, PeerId)> {
        let members = self.open.get(&handle).into_iter().flat_map(|open| &open.members);
        members.map(|(index, member)| (*index, member.peer)).collect()
    }

    /// One datagram of `from`: where to send it on, with the header that its receivers get in front of its payload. Adds
    /// the receivers to `to`.
    ///
    /// # Errors
    /// Why it goes nowhere.
    pub fn forward(
        &mut self,
        now: Instant,
        from: &PeerId,
        datagram: &[u8],
        to: &mut Vec<S>,
    ) -> Result<Relay, Dropped> {
        let outcome = self.decide(now, from, datagram, to);
        match outcome {
            Ok(_) => {}
            Err(Dropped::Rate) => self.stats.over_rate = self.stats.over_rate.saturating_add(1),
            Err(_) => self.stats.unforwardable = self.stats.unforwardable.saturating_add(1),
        }
        outcome
    }

    fn decide(
        &mut self,
        now: Instant,
        from: &PeerId,
        datagram: &[u8],
        to: &mut Vec<S>,
    ) -> Result<Relay, Dropped> {
        let up = read_up(datagram).ok_or(Dropped::Malformed)?;
        let open = self.open.get_mut(&up.handle).ok_or(Dropped::NotAMember)?;
        let sender = *open.indices.get(from).ok_or(Dropped::NotAMember)?;
        let before = to.len();
        for receiver in up.receivers.iter().filter(|receiver| **receiver != sender) {
            let bound = open.members.get(receiver);
            to.extend(bound.and_then(|m| m.sessions.iter().rev().find_map(|(_, bound)| bound.clone())));
        }
        let copies = to.len().saturating_sub(before) as u64;
        if copies == 0 {
            return Err(Dropped::Nobody);
        }
        let payload = datagram.len().saturating_sub(up.payload_at) as u64;
        let cost = payload.saturating_add(OVERHEAD).saturating_mul(copies);
        let member = open.members.get_mut(&sender).ok_or(Dropped::NotAMember)?;
        let enough = member.tokens.has(now, cost) && open.tokens.has(now, cost) && self.tokens.has(now, cost);
        if !enough {
            to.truncate(before);
            return Err(Dropped::Rate);
        }
        for tokens in [&mut member.tokens, &mut open.tokens, &mut self.tokens] {
            tokens.take(cost);
        }
        let first = member.relayed == 0;
        let bytes = payload.saturating_mul(copies);
        member.relayed = member.relayed.saturating_add(copies);
        member.bytes = member.bytes.saturating_add(bytes);
        self.stats.relayed = self.stats.relayed.saturating_add(copies);
        self.stats.relayed_bytes = self.stats.relayed_bytes.saturating_add(bytes);
        Ok(Relay { handle: up.handle, sender, payload_at: up.payload_at, first })
    }

    /// Refuses newcomers from now on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Sessions with something new to be told, once.
    pub fn take_woken(&mut self) -> BTreeSet<SessionId> {
        std::mem::take(&mut self.woken)
    }

    /// What it holds and did.
    pub fn stats(&self) -> Stats {
        Stats { forward_rooms: self.open.len(), forward_sessions: self.sessions.len(), ..self.stats }
    }

    /// Most that one member may have sent on, kb/s.
    pub fn sender_kbps(&self) -> u32 {
        self.limits.sender_kbps
    }

    fn wake_room(&mut self, handle: u32) {
        let Some(open) = self.open.get(&handle) else { return };
        let sessions = open.members.values().flat_map(|member| &member.sessions);
        self.woken.extend(sessions.map(|(id, _)| *id));
    }
}

/// How to send a datagram on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Of the room.
    pub handle: u32,
    /// The sender's number.
    pub sender: u8,
    /// Where the payload begins in what came.
    pub payload_at: usize,
    /// The first of this member.
    pub first: bool,
}

fn less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::{
        forward::wire::up,
        rendezvous::{limits::Limits as StoreLimits, store::Store},
    };

    fn room(name: &str) -> Room {
        Store::new(StoreLimits::default(), [7; 32]).room(name)
    }

    fn core(limits: Limits) -> (Core<&'static str>, Instant) {
        let now = Instant::now();
        (Core::new(limits, 1000, now), now)
    }

    fn enter(core: &mut Core<&'static str>, now: Instant, peer: PeerId, at: &'static str) -> Session {
        core.open(now, peer, Prefix::Local, room("hall"), Some(at)).unwrap()
    }

    fn sent(
        core: &mut Core<&'static str>,
        now: Instant,
        from: &PeerId,
        datagram: &[u8],
    ) -> Vec<&'static str> {
        let mut to = Vec::new();
        let _ = core.forward(now, from, datagram, &mut to);
        to
    }

    #[test]
    fn one_upload_reaches_those_it_names_and_nobody_else() {
        let (mut core, now) = core(Limits::default());
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        let at = ["ana", "ben", "cem", "dee"];
        let handle = enter(&mut core, now, peers[0], at[0]).handle;
        (1..4).for_each(|i| assert_eq!(enter(&mut core, now, peers[i], at[i]).handle, handle));
        assert_eq!(sent(&mut core, now, &peers[0], &up(handle, &[1, 3], b"x")), ["ben", "dee"]);
        assert_eq!(sent(&mut core, now, &peers[2], &up(handle, &[0, 1, 2, 3], b"x")), ["ana", "ben", "dee"]);
        let relay = core.forward(now, &peers[1], &up(handle, &[0], b"x"), &mut Vec::new()).unwrap();
        assert_eq!((relay.sender, relay.handle), (1, handle));
        assert_eq!(core.stats().relayed, 6);
    }

    #[test]
    fn who_is_not_in_the_room_sends_nothing_into_it() {
        let (mut core, now) = core(Limits::default());
        let (ana, ben, eve) = (PeerId::random(), PeerId::random(), PeerId::random());
        let handle = enter(&mut core, now, ana, "ana").handle;
        enter(&mut core, now, ben, "ben");
        let elsewhere = core.open(now, eve, Prefix::Local, room("cellar"), Some("eve")).unwrap();
        assert_ne!(elsewhere.handle, handle);
        let mut to = Vec::new();
        let datagram = up(handle, &[0, 1], b"x");
        assert_eq!(core.forward(now, &eve, &datagram, &mut to), Err(Dropped::NotAMember));
        assert_eq!(core.forward(now, &PeerId::random(), &datagram, &mut to), Err(Dropped::NotAMember));
        assert_eq!(core.forward(now, &ana, &up(handle, &[9], b"x"), &mut to), Err(Dropped::Nobody));
        assert_eq!(core.forward(now, &ana, &datagram[..3], &mut to), Err(Dropped::Malformed));
        assert!(!core.bind(&eve, handle, "eve") && to.is_empty());
        assert_eq!(core.stats().unforwardable, 4);
    }

    #[test]
    fn one_who_left_neither_sends_nor_gets() {
        let (mut core, now) = core(Limits::default());
        let (ana, ben) = (PeerId::random(), PeerId::random());
        let handle = enter(&mut core, now, ana, "ana").handle;
        let bens = enter(&mut core, now, ben, "ben");
        core.take_woken();
        assert_eq!(core.close(bens.id), Some((ben, 0, 0)));
        assert_eq!(core.take_woken().len(), 1, "ana hears of it");
        assert!(sent(&mut core, now, &ana, &up(handle, &[1], b"x")).is_empty());
        assert!(sent(&mut core, now, &ben, &up(handle, &[0], b"x")).is_empty());
    }

    #[test]
    fn a_member_that_moves_is_reached_where_it_bound_last_and_keeps_its_number() {
        let (mut core, now) = core(Limits::default());
        let (ana, ben) = (PeerId::random(), PeerId::random());
        let first = enter(&mut core, now, ana, "over tcp");
        let handle = first.handle;
        enter(&mut core, now, ben, "ben");
        let second = core.open(now, ana, Prefix::Local, room("hall"), None).unwrap();
        assert_eq!((second.handle, second.index), (handle, first.index));
        let datagram = up(handle, &[first.index], b"x");
        assert_eq!(sent(&mut core, now, &ben, &datagram), ["over tcp"], "until the new one is bound");
        assert!(core.bind(&ana, handle, "over udp"));
        assert_eq!(sent(&mut core, now, &ben, &datagram), ["over udp"]);
        core.close(second.id);
        assert_eq!(sent(&mut core, now, &ben, &datagram), ["over tcp"]);
        (0..MAX_SESSIONS_OF_MEMBER).for_each(|_| _ = enter(&mut core, now, ana, "again"));
        assert!(!core.is_open(first.id), "the oldest gave way");
    }

    #[test]
    fn a_flooding_member_is_cut_to_its_rate_and_the_others_are_not() {
        let (mut core, mut now) = core(Limits::default());
        let (eve, ana, ben) = (PeerId::random(), PeerId::random(), PeerId::random());
        let handle = enter(&mut core, now, eve, "eve").handle;
        enter(&mut core, now, ana, "ana");
        enter(&mut core, now, ben, "ben");
        let (mut flood, mut voice) = (0u64, 0);
        // 100 Mb/s from eve beside 200 packets a second from ana, for 2 s.
        for _ in 0..2000 {
            now += Duration::from_millis(1);
            for _ in 0..12 {
                flood += sent(&mut core, now, &eve, &up(handle, &[1, 2], &[0; 1000])).len() as u64 * 1070;
            }
            if voice % 5 == 0 {
                assert_eq!(sent(&mut core, now, &ana, &up(handle, &[2], &[1; 160])), ["ben"]);
            }
            voice += 1;
        }
        let kbps = flood * 8 / 2 / 1000;
        assert!((7_000..=9_100).contains(&kbps), "{kbps} kb/s");
        assert!(core.stats().over_rate > 10_000);
    }

    #[test]
    fn every_limit_holds_and_at_the_limit_all_is_well() {
        let limits = Limits { members: 3, ..Limits::default() };
        let (mut core_, now) = core(limits);
        let hall = room("hall");
        let open = |core: &mut Core<_>, peer, prefix, room| core.open(now, peer, prefix, room, Some("x"));
        for _ in 0..3 {
            assert!(open(&mut core_, PeerId::random(), Prefix::Local, hall).is_ok());
        }
        assert_eq!(open(&mut core_, PeerId::random(), Prefix::Local, hall), Err(Refusal::RoomFull));

        let (mut core_, _) = core(Limits { rooms: 2, ..Limits::default() });
        let ana = PeerId::random();
        assert!(open(&mut core_, ana, Prefix::Local, room("a")).is_ok());
        assert!(open(&mut core_, ana, Prefix::Local, room("b")).is_ok());
        assert_eq!(open(&mut core_, ana, Prefix::Local, room("c")), Err(Refusal::Full));
        assert!(open(&mut core_, PeerId::random(), Prefix::Local, room("b")).is_ok());

        let (mut core_, _) = core(Limits { per_peer: 2, per_prefix: 3, ..Limits::default() });
        let net = Prefix::V4([9, 9, 9, 9]);
        assert!(
            open(&mut core_, ana, net, room("a")).is_ok() && open(&mut core_, ana, net, room("b")).is_ok()
        );
        assert_eq!(open(&mut core_, ana, net, room("c")), Err(Refusal::Full));
        assert!(open(&mut core_, PeerId::random(), net, room("a")).is_ok());
        assert_eq!(open(&mut core_, PeerId::random(), net, room("a")), Err(Refusal::Full));
        assert!(open(&mut core_, PeerId::random(), Prefix::Local, room("a")).is_ok());

        let (mut core_, _) = core(Limits { total_kbps: 0, ..Limits::default() });
        assert_eq!(open(&mut core_, ana, net, hall), Err(Refusal::Off));
        let (mut core_, _) = core(Limits::default());
        core_.drain();
        assert_eq!(open(&mut core_, ana, net, hall), Err(Refusal::Draining));
    }

    #[test]
    fn the_last_places_are_kept_for_those_who_are_waited_for() {
        let (mut core, now) = core(Limits { sessions: 4, sessions_reserved: 2, ..Limits::default() });
        let mut open = |name: &str| core.open(now, PeerId::random(), Prefix::Local, room(name), Some("x"));
        assert!(open("a").is_ok() && open("b").is_ok());
        assert_eq!(open("c"), Err(Refusal::Full), "a stranger");
        assert!(open("a").is_ok() && open("b").is_ok());
        assert_eq!(open("a"), Err(Refusal::Full));
    }

    #[test]
    fn nothing_is_left_when_all_have_gone() {
        let (mut core, now) = core(Limits::default());
        let net = Prefix::V6(9);
        let sessions: Vec<_> = (0..200)
            .map(|i| core.open(now, PeerId::random(), net, room(["a", "b", "c"][i % 3]), Some("x")))
            .filter_map(Result::ok)
            .collect();
        assert_eq!(sessions.len(), 3 * 64);
        sessions.iter().for_each(|session| _ = core.close(session.id));
        assert_eq!((core.open.len(), core.handles.len(), core.sessions.len()), (0, 0, 0));
        assert_eq!((core.peers.len(), core.prefixes.len()), (0, 0));
    }
}
