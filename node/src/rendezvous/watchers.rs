//! Who wants to hear of which room, and what they have not heard yet. Pure.
//!
//! News waits in a bounded queue per watcher. When one reads too slowly its queue is dropped as a whole and it gets a new
//! list instead: nothing is missed, and nothing grows.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use libp2p::PeerId;

use super::{
    limits::Limits,
    store::{Change, Door, Prefix, Room},
    wire::Status,
};

/// One watch, for the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchId(pub u64);

/// What a watcher is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Somebody came, or has new addresses: signed envelope.
    Arrived(Arc<[u8]>),
    /// Somebody is no longer registered.
    Gone(PeerId),
    /// Its own registration was taken away.
    Displaced,
}

/// Everything that a watcher has not heard.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unheard {
    /// News was dropped: send everybody, before the rest.
    pub resync: bool,
    /// In order.
    pub news: Vec<News>,
    /// The count at its door has changed.
    pub door: bool,
}

/// All watchers. [`Watchers::tell`] says whom to wake; they then [`Watchers::take`].
#[derive(Debug)]
pub struct Watchers {
    limits: Limits,
    last: u64,
    by_id: HashMap<WatchId, Watcher>,
    by_room: HashMap<Room, BTreeSet<WatchId>>,
    by_door: HashMap<Door, BTreeSet<WatchId>>,
    by_peer: HashMap<PeerId, BTreeSet<WatchId>>,
    of_prefix: HashMap<Prefix, usize>,
}

#[derive(Debug)]
struct Watcher {
    peer: PeerId,
    prefix: Prefix,
    room: Room,
    door: Option<Door>,
    queue: VecDeque<News>,
    resync: bool,
    door_changed: bool,
}

impl Watchers {
    /// Nobody yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            last: 0,
            by_id: HashMap::new(),
            by_room: HashMap::new(),
            by_door: HashMap::new(),
            by_peer: HashMap::new(),
            of_prefix: HashMap::new(),
        }
    }

    /// Open watches.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether nobody watches.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Opens a watch.
    ///
    /// # Errors
    /// `Unavailable` at a limit.
    pub fn open(
        &mut self,
        peer: PeerId,
        prefix: Prefix,
        room: Room,
        door: Option<Door>,
    ) -> Result<WatchId, Status> {
        let of_peer = self.by_peer.get(&peer).map_or(0, BTreeSet::len);
        let of_prefix = self.of_prefix.get(&prefix).copied().unwrap_or(0);
        if of_peer >= self.limits.watches_per_peer
            || of_prefix >= self.limits.watches_per_prefix
            || self.by_id.len() >= self.limits.watches_total
        {
            return Err(Status::Unavailable);
        }
        self.last = self.last.checked_add(1).ok_or(Status::Unavailable)?;
        let id = WatchId(self.last);
        self.by_room.entry(room).or_default().insert(id);
        self.by_peer.entry(peer).or_default().insert(id);
        if let Some(door) = door {
            self.by_door.entry(door).or_default().insert(id);
        }
        if prefix != Prefix::Local {
            self.of_prefix.insert(prefix, of_prefix.saturating_add(1));
        }
        let watcher =
            Watcher { peer, prefix, room, door, queue: VecDeque::new(), resync: false, door_changed: false };
        self.by_id.insert(id, watcher);
        Ok(id)
    }

    /// Ends a watch.
    pub fn close(&mut self, id: WatchId) {
        let Some(watcher) = self.by_id.remove(&id) else { return };
        leave(&mut self.by_room, &watcher.room, id);
        leave(&mut self.by_peer, &watcher.peer, id);
        if let Some(door) = watcher.door {
            leave(&mut self.by_door, &door, id);
        }
        if let Some(n) = self.of_prefix.get_mut(&watcher.prefix) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                self.of_prefix.remove(&watcher.prefix);
            }
        }
    }

    /// Queues what changed for everybody concerned; returns whom to wake.
    pub fn tell(&mut self, changes: &[Change]) -> BTreeSet<WatchId> {
        let mut woken = BTreeSet::new();
        for change in changes {
            let (room, about, news) = match change {
                Change::Arrived { room, peer, record } => (room, peer, News::Arrived(Arc::clone(record))),
                Change::Gone { room, peer } => (room, peer, News::Gone(*peer)),
                Change::Door(door) => {
                    for id in self.by_door.get(door).into_iter().flatten() {
                        if let Some(watcher) = self.by_id.get_mut(id) {
                            watcher.door_changed = true;
                            woken.insert(*id);
                        }
                    }
                    continue;
                }
            };
            for id in self.by_room.get(room).into_iter().flatten() {
                let Some(watcher) = self.by_id.get_mut(id) else { continue };
                let news = match (&news, watcher.peer == *about) {
                    (News::Gone(_), true) => News::Displaced,
                    (_, true) => continue,
                    (news, false) => news.clone(),
                };
                watcher.queue(news, self.limits.pending);
                woken.insert(*id);
            }
        }
        woken
    }

    /// Takes what this watcher has not heard.
    pub fn take(&mut self, id: WatchId) -> Unheard {
        let Some(watcher) = self.by_id.get_mut(&id) else { return Unheard::default() };
        Unheard {
            resync: std::mem::take(&mut watcher.resync),
            news: watcher.queue.drain(..).collect(),
            door: std::mem::take(&mut watcher.door_changed),
        }
    }
}

impl Watcher {
    fn queue(&mut self, news: News, bound: usize) {
        if self.queue.len() >= bound {
            self.queue.retain(|n| *n == News::Displaced);
            self.queue.truncate(1);
            self.resync = true;
        }
        // After a resync is due, arrivals are in the list anyway; the queue may fill and be dropped again.
        self.queue.push_back(news);
    }
}

fn leave<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<WatchId>>, key: &K, id: WatchId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::store::Store;

    fn arrived(room: Room, peer: PeerId) -> Change {
        Change::Arrived { room, peer, record: peer.to_bytes().into() }
    }

    fn rooms() -> (Room, Room, Door) {
        let store = Store::new(Limits::default(), [1; 32]);
        (store.room("hall"), store.room("attic"), store.door(&[0; 16]))
    }

    #[test]
    fn a_watcher_hears_of_its_own_room_and_not_of_itself() {
        let (hall, attic, _) = rooms();
        let mut watchers = Watchers::new(Limits::default());
        let (ana, ben) = (PeerId::random(), PeerId::random());
        let id = watchers.open(ana, Prefix::Local, hall, None).unwrap();
        let woken = watchers.tell(&[arrived(hall, ana), arrived(attic, ben)]);
        assert!(woken.is_empty());
        let woken = watchers.tell(&[arrived(hall, ben), Change::Gone { room: hall, peer: ben }]);
        assert_eq!(woken, [id].into());
        let news = vec![News::Arrived(ben.to_bytes().into()), News::Gone(ben)];
        assert_eq!(watchers.take(id), Unheard { news, ..Unheard::default() });
        assert_eq!(watchers.take(id), Unheard::default());
    }

    #[test]
    fn sixty_four_news_wait_and_one_more_turns_them_into_a_new_list() {
        let (hall, ..) = rooms();
        let mut watchers = Watchers::new(Limits::default());
        let id = watchers.open(PeerId::random(), Prefix::Local, hall, None).unwrap();
        for _ in 0..64 {
            watchers.tell(&[arrived(hall, PeerId::random())]);
        }
        assert!(!watchers.by_id.get(&id).unwrap().resync);
        watchers.tell(&[arrived(hall, PeerId::random())]);
        let unheard = watchers.take(id);
        assert!(unheard.resync);
        assert_eq!(unheard.news.len(), 1);
        for _ in 0..10_000 {
            watchers.tell(&[arrived(hall, PeerId::random())]);
        }
        assert!(watchers.take(id).news.len() <= 64);
    }

    #[test]
    fn eight_watches_of_a_peer_are_served_and_a_ninth_is_refused() {
        let (hall, ..) = rooms();
        let mut watchers = Watchers::new(Limits { watches_total: 9, ..Limits::default() });
        let (ana, ben) = (PeerId::random(), PeerId::random());
        let first = watchers.open(ana, Prefix::Local, hall, None).unwrap();
        for _ in 1..8 {
            watchers.open(ana, Prefix::Local, hall, None).unwrap();
        }
        assert_eq!(watchers.open(ana, Prefix::Local, hall, None), Err(Status::Unavailable));
        watchers.open(ben, Prefix::Local, hall, None).unwrap();
        assert_eq!(watchers.open(ben, Prefix::Local, hall, None), Err(Status::Unavailable), "nine in all");
        watchers.close(first);
        watchers.open(ana, Prefix::Local, hall, None).unwrap();
    }

    #[test]
    fn one_public_address_has_a_bound_on_watches_and_gets_its_places_back() {
        let (hall, ..) = rooms();
        let mut watchers = Watchers::new(Limits { watches_per_prefix: 3, ..Limits::default() });
        let mut open = |n| watchers.open(PeerId::random(), Prefix::V4([9, 9, 9, n]), hall, None);
        let first = open(1).unwrap();
        assert!(open(1).is_ok() && open(1).is_ok());
        assert_eq!(open(1), Err(Status::Unavailable));
        assert!(open(2).is_ok());
        watchers.close(first);
        watchers.open(PeerId::random(), Prefix::V4([9, 9, 9, 1]), hall, None).unwrap();
    }

    #[test]
    fn a_closed_watch_leaves_nothing_behind() {
        let (hall, _, door) = rooms();
        let mut watchers = Watchers::new(Limits::default());
        let id = watchers.open(PeerId::random(), Prefix::Local, hall, Some(door)).unwrap();
        watchers.close(id);
        watchers.close(id);
        assert!(
            watchers.is_empty()
                && watchers.by_room.is_empty()
                && watchers.by_door.is_empty()
                && watchers.by_peer.is_empty()
        );
        assert!(watchers.tell(&[arrived(hall, PeerId::random()), Change::Door(door)]).is_empty());
    }

    #[test]
    fn many_changes_at_a_door_are_one_piece_of_news_and_a_displaced_peer_is_told() {
        let (hall, _, door) = rooms();
        let mut watchers = Watchers::new(Limits::default());
        let ana = PeerId::random();
        let id = watchers.open(ana, Prefix::Local, hall, Some(door)).unwrap();
        for _ in 0..100 {
            watchers.tell(&[Change::Door(door)]);
        }
        watchers.tell(&[Change::Gone { room: hall, peer: ana }]);
        assert_eq!(watchers.take(id), Unheard { resync: false, news: vec![News::Displaced], door: true });
    }
}
