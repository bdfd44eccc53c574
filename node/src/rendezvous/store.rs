//! Who is registered where: pure, with the time as an argument.
//!
//! A namespace is kept as a keyed hash under a key of this process, whatever clients call their rooms: the memory of a
//! server never holds a name. Cookies are not kept at all; they carry a position in the order of registrations.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use super::{
    limits::{Limits, MAX_TTL_ASKED, STREAM_GRACE},
    policy::{Scope, scope_of_ip},
    record::Form,
    watchers::WatchId,
    wire::{DEFAULT_TTL_SECS, Status},
};

/// Most registrations that a watcher is told of at its door.
pub const MAX_OTHER_KEYS: u32 = 999;

/// Bits of a cookie that count registrations; the rest tell one run of a server from the next.
const COOKIE_COUNT_BITS: u32 = 40;

/// A namespace, unreadable. Equal namespaces are equal within one process only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Room([u8; 16]);

/// A door tag, unreadable in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Door([u8; 16]);

/// What shares one bound: a public IPv4 address, or an IPv6 /64, which one customer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prefix {
    /// Loopback, private, or no IP at all: not counted.
    Local,
    /// A public IPv4 address.
    V4([u8; 4]),
    /// The first 64 bits of a public IPv6 address.
    V6(u64),
}

impl Prefix {
    /// Of the address that a connection comes from.
    pub fn of(addr: &Multiaddr) -> Self {
        let ip = match addr.iter().next() {
            Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
            Some(Protocol::Ip6(ip)) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
            _ => return Self::Local,
        };
        match (scope_of_ip(ip), ip) {
            (Some(Scope::Public), IpAddr::V4(ip)) => Self::V4(ip.octets()),
            (Some(Scope::Public), IpAddr::V6(ip)) => Self::V6((ip.to_bits() >> 64) as u64),
            _ => Self::Local,
        }
    }
}

/// A registration that asks to be kept. Its record has been verified, and is of the peer that sent it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Namespace.
    pub room: Room,
    /// Door tag, if the client gave one.
    pub door: Option<Door>,
    /// Who.
    pub peer: PeerId,
    /// From where.
    pub prefix: Prefix,
    /// Signed envelope.
    pub record: Arc<[u8]>,
    /// Its form.
    pub form: Form,
    /// Addresses in it: a registration with the same ones is no news to watchers.
    pub addresses: Vec<Multiaddr>,
    /// Seconds asked for.
    pub ttl: Option<u64>,
    /// The watch that keeps it alive; without one the lifetime does.
    pub held_by: Option<WatchId>,
}

/// What watchers should hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// New, or with new addresses.
    Arrived {
        /// Where.
        room: Room,
        /// Who.
        peer: PeerId,
        /// Signed envelope.
        record: Arc<[u8]>,
    },
    /// No longer registered.
    Gone {
        /// Where.
        room: Room,
        /// Who.
        peer: PeerId,
    },
    /// The number of registrations at a door is another.
    Door(Door),
}

/// One answer to DISCOVER.
#[derive(Debug)]
pub struct Page {
    /// Signed envelopes and the time they have left.
    pub entries: Vec<(Arc<[u8]>, Duration)>,
    /// For the next question.
    pub cookie: Vec<u8>,
}

/// All registrations. After any change, hand the [`Change`]s to the watchers; call [`Store::expire`] at
/// [`Store::next_expiry`].
#[derive(Debug)]
pub struct Store {
    limits: Limits,
    key: hmac::Key,
    run: u64,
    count: u64,
    entries: BTreeMap<u64, Entry>,
    rooms: HashMap<Room, BTreeMap<PeerId, u64>>,
    peers: HashMap<PeerId, BTreeSet<u64>>,
    prefixes: HashMap<Prefix, usize>,
    /// Who is registered at a door, and how often.
    doors: HashMap<Door, BTreeMap<PeerId, u32>>,
    expiries: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct Entry {
    room: Room,
    door: Option<Door>,
    peer: PeerId,
    prefix: Prefix,
    record: Arc<[u8]>,
    form: Form,
    addresses: Vec<Multiaddr>,
    ttl: Duration,
    held_by: Option<WatchId>,
    expires: Option<Instant>,
}

impl Store {
    /// An empty store. `seed` must be random and secret: it hides the names.
    pub fn new(limits: Limits, seed: [u8; 32]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &seed);
        let run = first_eight(hmac::sign(&key, b"run").as_ref());
        Self {
            limits,
            key,
            run: run.wrapping_shl(COOKIE_COUNT_BITS),
            count: 0,
            entries: BTreeMap::new(),
            rooms: HashMap::new(),
            peers: HashMap::new(),
            prefixes: HashMap::new(),
            doors: HashMap::new(),
            expiries: BTreeSet::new(),
        }
    }

    /// The name under which a namespace is kept here.
    pub fn room(&self, namespace: &str) -> Room {
        Room(self.hidden(b"room", namespace.as_bytes()))
    }

    /// The name under which a door is kept here.
    pub fn door(&self, tag: &[u8]) -> Door {
        Door(self.hidden(b"door", tag))
    }

    fn hidden(&self, what: &[u8], name: &[u8]) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(what);
        context.update(name);
        let mut out = [0; 16];
        for (to, from) in out.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        out
    }

    /// Registrations in all.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is registered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Namespaces with somebody in them.
    pub fn rooms(&self) -> usize {
        self.rooms.len()
    }

    /// Registrations of one peer.
    pub fn of_peer(&self, peer: &PeerId) -> usize {
        self.peers.get(peer).map_or(0, BTreeSet::len)
    }

    /// Keeps a registration, in place of an earlier one by the same peer in the same namespace. Returns its lifetime.
    ///
    /// # Errors
    /// `InvalidTtl` outside the bounds, `Unavailable` at a limit. Nothing changes then.
    pub fn register(
        &mut self,
        now: Instant,
        candidate: Candidate,
        changes: &mut Vec<Change>,
    ) -> Result<Duration, Status> {
        let ttl = self.granted(candidate.ttl)?;
        let earlier = self.rooms.get(&candidate.room).and_then(|r| r.get(&candidate.peer)).copied();
        if earlier.is_none() {
            self.make_place(&candidate, changes)?;
        }
        let earlier = earlier.and_then(|at| self.take_out(at));
        let news =
            earlier.as_ref().is_none_or(|e| e.addresses != candidate.addresses || e.form != candidate.form);
        if news {
            changes.push(Change::Arrived {
                room: candidate.room,
                peer: candidate.peer,
                record: Arc::clone(&candidate.record),
            });
        }
        let earlier_door = earlier.and_then(|e| e.door);
        if earlier_door != candidate.door {
            changes.extend(earlier_door.into_iter().chain(candidate.door).map(Change::Door));
        }
        let expires = match candidate.held_by {
            Some(_) => None,
            None => now.checked_add(ttl),
        };
        self.put_in(Entry {
            room: candidate.room,
            door: candidate.door,
            peer: candidate.peer,
            prefix: candidate.prefix,
            record: candidate.record,
            form: candidate.form,
            addresses: candidate.addresses,
            ttl,
            held_by: candidate.held_by,
            expires,
        });
        Ok(ttl)
    }

    /// Takes one registration away, if it is there.
    pub fn unregister(&mut self, room: Room, peer: &PeerId, changes: &mut Vec<Change>) -> bool {
        let at = self.rooms.get(&room).and_then(|r| r.get(peer)).copied();
        at.is_some_and(|at| self.remove(at, changes).is_some())
    }

    /// A watch ended without a goodbye: what it held lives on for [`STREAM_GRACE`].
    pub fn release(&mut self, now: Instant, watch: WatchId, room: Room, peer: &PeerId) {
        let Some(at) = self.rooms.get(&room).and_then(|r| r.get(peer)).copied() else { return };
        let Some(entry) = self.entries.get_mut(&at).filter(|e| e.held_by == Some(watch)) else { return };
        entry.held_by = None;
        entry.expires = now.checked_add(STREAM_GRACE);
        self.expiries.extend(entry.expires.map(|when| (when, at)));
    }

    /// Whether this peer is registered in a room.
    pub fn is_in(&self, room: Room, peer: &PeerId) -> bool {
        self.rooms.get(&room).is_some_and(|peers| peers.contains_key(peer))
    }

    /// Whether this watch keeps a registration alive.
    pub fn holds(&self, watch: WatchId, room: Room, peer: &PeerId) -> bool {
        let at = self.rooms.get(&room).and_then(|r| r.get(peer));
        at.and_then(|at| self.entries.get(at)).is_some_and(|e| e.held_by == Some(watch))
    }

    /// When [`Store::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.expiries.first().map(|(when, _)| *when)
    }

    /// Takes away what has lived its time; returns who.
    pub fn expire(&mut self, now: Instant, changes: &mut Vec<Change>) -> Vec<PeerId> {
        let mut expired = Vec::new();
        while let Some((when, at)) = self.expiries.first().copied().filter(|(when, _)| *when <= now) {
            match self.remove(at, changes) {
                Some(entry) => expired.push(entry.peer),
                None => _ = self.expiries.remove(&(when, at)),
            }
        }
        expired
    }

    /// Everybody in a namespace but `but`: signed envelopes.
    pub fn everybody(&self, room: Room, but: &PeerId) -> Vec<Arc<[u8]>> {
        let Some(peers) = self.rooms.get(&room) else { return Vec::new() };
        let others = peers.iter().filter(|(peer, _)| *peer != but);
        others.filter_map(|(_, at)| self.entries.get(at)).map(|e| Arc::clone(&e.record)).collect()
    }

    /// A page of a namespace, oldest first: what came after the cookie, at most `limit` entries and about `room_for` bytes.
    ///
    /// A client that registers in one form of signed record gets that form only: rust-libp2p discards a whole answer
    /// that holds one record it cannot verify.
    ///
    /// # Errors
    /// `InvalidCookie` when it is of another namespace or an earlier run.
    pub fn discover(
        &self,
        now: Instant,
        asker: &PeerId,
        namespace: &str,
        cookie: Option<&[u8]>,
        limit: usize,
        room_for: usize,
    ) -> Result<Page, Status> {
        let since = match cookie {
            Some(cookie) => self.position(cookie, namespace)?,
            None => 0,
        };
        let mut after = since;
        let form = self
            .peers
            .get(asker)
            .and_then(|of| of.first())
            .and_then(|at| self.entries.get(at))
            .map(|e| e.form);
        let mut ordered: Vec<u64> =
            self.rooms.get(&self.room(namespace)).into_iter().flat_map(BTreeMap::values).copied().collect();
        ordered.sort_unstable();
        let mut entries = Vec::new();
        let mut bytes = 0usize;
        for at in ordered.into_iter().filter(|at| *at > since) {
            let Some(entry) = self.entries.get(&at) else { continue };
            if form.is_some_and(|form| form != entry.form) {
                continue;
            }
            // A namespace and a few tags go with every record.
            bytes =
                bytes.saturating_add(entry.record.len()).saturating_add(namespace.len()).saturating_add(32);
            if entries.len() >= limit || bytes > room_for {
                break;
            }
            after = at;
            let left = entry.expires.map_or(entry.ttl, |when| when.saturating_duration_since(now));
            entries.push((Arc::clone(&entry.record), left));
        }
        let mut cookie = (self.run | after).to_be_bytes().to_vec();
        cookie.extend_from_slice(namespace.as_bytes());
        Ok(Page { entries, cookie })
    }

    /// Those at a door who are not in `room`. Around midnight everybody is in two rooms, today's and the next day's.
    pub fn other_keys(&self, door: Door, room: Room) -> u32 {
        let Some(peers) = self.doors.get(&door) else { return 0 };
        let in_room = self.rooms.get(&room);
        let others = peers.keys().filter(|peer| in_room.is_none_or(|room| !room.contains_key(peer)));
        others.take(MAX_OTHER_KEYS as usize).fold(0, |n, _| n.saturating_add(1))
    }

    fn granted(&self, asked: Option<u64>) -> Result<Duration, Status> {
        let asked = Duration::from_secs(asked.unwrap_or(DEFAULT_TTL_SECS));
        if asked < self.limits.min_ttl || asked > MAX_TTL_ASKED {
            return Err(Status::InvalidTtl);
        }
        Ok(asked.min(self.limits.max_ttl))
    }

    fn make_place(&mut self, candidate: &Candidate, changes: &mut Vec<Change>) -> Result<(), Status> {
        let held = self.of_peer(&candidate.peer);
        let in_room = self.rooms.get(&candidate.room).map_or(0, BTreeMap::len);
        let from_prefix = self.prefixes.get(&candidate.prefix).copied().unwrap_or(0);
        if held >= self.limits.per_peer
            || in_room >= self.limits.per_namespace
            || (candidate.prefix != Prefix::Local && from_prefix >= self.limits.per_prefix)
        {
            return Err(Status::Unavailable);
        }
        if self.entries.len() >= self.limits.total {
            // Fair shares: a flood by few gives way to the many. Looking at every peer is bounded by `total`.
            let most = self.peers.values().max_by_key(|of| of.len());
            let gives_way =
                most.filter(|of| of.len() >= held.saturating_add(2)).and_then(|of| of.first()).copied();
            self.remove(gives_way.ok_or(Status::Unavailable)?, changes);
        }
        Ok(())
    }

    fn put_in(&mut self, entry: Entry) {
        self.count = self.count.saturating_add(1);
        let at = self.count;
        self.rooms.entry(entry.room).or_default().insert(entry.peer, at);
        self.peers.entry(entry.peer).or_default().insert(at);
        if entry.prefix != Prefix::Local {
            let n = self.prefixes.entry(entry.prefix).or_default();
            *n = n.saturating_add(1);
        }
        if let Some(door) = entry.door {
            let n = self.doors.entry(door).or_default().entry(entry.peer).or_default();
            *n = n.saturating_add(1);
        }
        self.expiries.extend(entry.expires.map(|when| (when, at)));
        self.entries.insert(at, entry);
    }

    fn take_out(&mut self, at: u64) -> Option<Entry> {
        let entry = self.entries.remove(&at)?;
        if let Some(peers) = self.rooms.get_mut(&entry.room) {
            peers.remove(&entry.peer);
            if peers.is_empty() {
                self.rooms.remove(&entry.room);
            }
        }
        if let Some(of) = self.peers.get_mut(&entry.peer) {
            of.remove(&at);
            if of.is_empty() {
                self.peers.remove(&entry.peer);
            }
        }
        if let Some(n) = self.prefixes.get_mut(&entry.prefix) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                self.prefixes.remove(&entry.prefix);
            }
        }
        if let Some(door) = entry.door
            && let Some(peers) = self.doors.get_mut(&door)
        {
            if let Some(n) = peers.get_mut(&entry.peer) {
                *n = n.saturating_sub(1);
                if *n == 0 {
                    peers.remove(&entry.peer);
                }
            }
            if peers.is_empty() {
                self.doors.remove(&door);
            }
        }
        if let Some(when) = entry.expires {
            self.expiries.remove(&(when, at));
        }
        Some(entry)
    }

    fn remove(&mut self, at: u64, changes: &mut Vec<Change>) -> Option<Entry> {
        let entry = self.take_out(at)?;
        changes.push(Change::Gone { room: entry.room, peer: entry.peer });
        changes.extend(entry.door.map(Change::Door));
        Some(entry)
    }

    fn position(&self, cookie: &[u8], namespace: &str) -> Result<u64, Status> {
        let (number, of) = cookie.split_first_chunk::<8>().ok_or(Status::InvalidCookie)?;
        let number = u64::from_be_bytes(*number);
        let counts = 1u64.wrapping_shl(COOKIE_COUNT_BITS).wrapping_sub(1);
        if number & !counts != self.run || of != namespace.as_bytes() {
            return Err(Status::InvalidCookie);
        }
        Ok(number & counts)
    }
}

fn first_eight(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b))
}

#[cfg(test)]
mod tests;
