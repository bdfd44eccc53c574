#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct Lab {
    store: Store,
    now: Instant,
    changes: Vec<Change>,
}

fn lab(limits: Limits) -> Lab {
    Lab { store: Store::new(limits, [3; 32]), now: Instant::now(), changes: Vec::new() }
}

fn peer(n: u32) -> PeerId {
    let mut bytes = vec![0x12, 0x20];
    bytes.extend([0; 28]);
    bytes.extend(n.to_be_bytes());
    PeerId::from_bytes(&bytes).unwrap()
}

impl Lab {
    fn candidate(&self, namespace: &str, n: u32) -> Candidate {
        Candidate {
            room: self.store.room(namespace),
            door: None,
            peer: peer(n),
            prefix: Prefix::Local,
            record: n.to_be_bytes().as_slice().into(),
            form: Form::Legacy,
            addresses: vec![],
            ttl: Some(60),
            held_by: None,
        }
    }

    fn register(&mut self, namespace: &str, n: u32) -> Result<Duration, Status> {
        self.keep(self.candidate(namespace, n))
    }

    fn keep(&mut self, candidate: Candidate) -> Result<Duration, Status> {
        self.changes.clear();
        self.store.register(self.now, candidate, &mut self.changes)
    }

    fn listed(&self, namespace: &str) -> usize {
        self.store.everybody(self.store.room(namespace), &peer(u32::MAX)).len()
    }
}

#[test]
fn thirty_two_registrations_of_a_peer_are_kept_and_the_next_is_refused() {
    let mut lab = lab(Limits::default());
    for n in 0..32 {
        lab.register(&format!("room {n}"), 1).unwrap();
    }
    assert_eq!(lab.register("one more", 1), Err(Status::Unavailable));
    lab.register("room 3", 1).expect("renewing one of them is not one more");
    lab.register("one more", 2).expect("another peer still has its own share");
}

#[test]
fn a_namespace_holds_its_bound_and_refuses_one_more() {
    let mut lab = lab(Limits::default());
    for n in 0..256 {
        lab.register("hall", n).unwrap();
    }
    assert_eq!(lab.register("hall", 256), Err(Status::Unavailable));
    assert!(lab.store.unregister(lab.store.room("hall"), &peer(7), &mut Vec::new()));
    lab.register("hall", 256).expect("somebody left");
}

#[test]
fn one_public_address_has_a_bound_and_the_local_network_has_none() {
    let mut lab = lab(Limits { per_prefix: 3, ..Limits::default() });
    for (n, expected) in (0..5).zip([true, true, true, false, false]) {
        let prefix = Prefix::of(&format!("/ip6/2001:db9::{n}/udp/1/quic-v1").parse().unwrap());
        let candidate = Candidate { prefix, ..lab.candidate("hall", n) };
        assert_eq!(lab.keep(candidate).is_ok(), expected, "{n}");
    }
    let other = Prefix::of(&"/ip6/2001:db9:0:1::1/udp/1/quic-v1".parse().unwrap());
    lab.keep(Candidate { prefix: other, ..lab.candidate("hall", 9) }).expect("another /64");
    for n in 10..20 {
        lab.register("hall", n).unwrap();
    }
}

#[test]
fn when_all_is_full_the_peer_with_most_gives_way_and_equals_are_refused() {
    let mut lab = lab(Limits { total: 6, ..Limits::default() });
    for n in 0..4 {
        lab.register(&format!("flood {n}"), 1).unwrap();
    }
    lab.register("hall", 2).unwrap();
    lab.register("hall", 3).unwrap();
    lab.register("hall", 4).expect("the flood gives way");
    assert_eq!(lab.changes[0], Change::Gone { room: lab.store.room("flood 0"), peer: peer(1) });
    lab.register("hall", 5).unwrap();
    assert_eq!(lab.store.len(), 6);
    lab.register("hall", 6).expect("two against none: the flood gives way once more");
    assert_eq!(lab.register("hall", 7), Err(Status::Unavailable), "everybody holds one");
}

#[test]
fn lifetimes_are_granted_within_bounds() {
    let mut lab = lab(Limits::default());
    for (asked, granted) in [
        (None, Ok(7200)),
        (Some(9), Err(Status::InvalidTtl)),
        (Some(10), Ok(10)),
        (Some(7200), Ok(7200)),
        (Some(72 * 3600), Ok(7200)),
        (Some(72 * 3600 + 1), Err(Status::InvalidTtl)),
        (Some(u64::MAX), Err(Status::InvalidTtl)),
    ] {
        let candidate = Candidate { ttl: asked, ..lab.candidate("hall", 1) };
        assert_eq!(lab.keep(candidate), granted.map(Duration::from_secs), "{asked:?}");
    }
}

#[test]
fn a_registration_ends_with_its_lifetime_unless_it_is_renewed() {
    let mut lab = lab(Limits::default());
    lab.register("hall", 1).unwrap();
    lab.register("hall", 2).unwrap();
    lab.now += 50 * SECOND;
    lab.register("hall", 2).unwrap();
    assert_eq!(lab.changes, [], "the same addresses are no news");
    lab.now += 10 * SECOND;
    assert_eq!(lab.store.next_expiry(), Some(lab.now));
    let mut changes = Vec::new();
    assert_eq!(lab.store.expire(lab.now, &mut changes), [peer(1)]);
    assert_eq!(changes, [Change::Gone { room: lab.store.room("hall"), peer: peer(1) }]);
    assert_eq!(lab.listed("hall"), 1);
}

#[test]
fn what_a_watch_holds_lives_with_it_and_four_seconds_longer() {
    let mut lab = lab(Limits::default());
    let (room, watch) = (lab.store.room("hall"), WatchId(1));
    lab.keep(Candidate { held_by: Some(watch), ..lab.candidate("hall", 1) }).unwrap();
    lab.now += 3600 * SECOND;
    assert_eq!(lab.store.expire(lab.now, &mut Vec::new()), []);
    lab.store.release(lab.now, watch, room, &peer(1));
    assert_eq!(lab.store.next_expiry(), Some(lab.now + STREAM_GRACE));
    assert_eq!(lab.store.expire(lab.now + STREAM_GRACE, &mut Vec::new()), [peer(1)]);
}

#[test]
fn a_watch_that_dies_late_does_not_release_what_its_successor_holds() {
    let mut lab = lab(Limits::default());
    let room = lab.store.room("hall");
    lab.keep(Candidate { held_by: Some(WatchId(1)), ..lab.candidate("hall", 1) }).unwrap();
    lab.keep(Candidate { held_by: Some(WatchId(2)), ..lab.candidate("hall", 1) }).unwrap();
    lab.store.release(lab.now, WatchId(1), room, &peer(1));
    assert_eq!(lab.store.next_expiry(), None);
    assert!(lab.store.holds(WatchId(2), room, &peer(1)));
}

#[test]
fn pages_follow_each_other_and_then_bring_only_news() {
    let mut lab = lab(Limits::default());
    for n in 0..5 {
        lab.register("hall", n).unwrap();
    }
    let mut cookie: Option<Vec<u8>> = None;
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let page = lab.store.discover(lab.now, &peer(99), "hall", cookie.as_deref(), 2, 10_000).unwrap();
        sizes.push(page.entries.len());
        cookie = Some(page.cookie);
    }
    assert_eq!(sizes, [2, 2, 1, 0]);
    lab.register("hall", 5).unwrap();
    let page = lab.store.discover(lab.now, &peer(99), "hall", cookie.as_deref(), 2, 10_000).unwrap();
    assert_eq!(page.entries.len(), 1);
}

#[test]
fn a_cookie_of_another_namespace_or_another_run_is_refused() {
    let mut lab = lab(Limits::default());
    lab.register("hall", 1).unwrap();
    let cookie = lab.store.discover(lab.now, &peer(9), "hall", None, 9, 9999).unwrap().cookie;
    let ask = |store: &Store, ns: &str, cookie: &[u8]| {
        store.discover(lab.now, &peer(9), ns, Some(cookie), 9, 9999).map(|p| p.entries.len())
    };
    assert_eq!(ask(&lab.store, "hall", &cookie), Ok(0));
    assert_eq!(ask(&lab.store, "attic", &cookie), Err(Status::InvalidCookie));
    assert_eq!(ask(&lab.store, "hall", &cookie[..7]), Err(Status::InvalidCookie));
    assert_eq!(ask(&Store::new(Limits::default(), [4; 32]), "hall", &cookie), Err(Status::InvalidCookie));
}

#[test]
fn a_client_that_registers_in_one_form_is_shown_that_form_only() {
    let mut lab = lab(Limits::default());
    lab.register("hall", 1).unwrap();
    lab.keep(Candidate { form: Form::Standard, ..lab.candidate("hall", 2) }).unwrap();
    let seen = |n| lab.store.discover(lab.now, &peer(n), "hall", None, 9, 9999).unwrap().entries.len();
    assert_eq!((seen(1), seen(2), seen(3)), (1, 1, 2));
}

#[test]
fn who_is_in_the_room_under_the_next_days_name_too_is_no_other_key() {
    let mut lab = lab(Limits::default());
    let door = lab.store.door(&[1; 16]);
    for (n, namespace) in [(1, "today"), (1, "tomorrow"), (2, "today"), (2, "tomorrow"), (3, "theirs")] {
        let candidate = Candidate { door: Some(door), ..lab.candidate(namespace, n) };
        lab.keep(candidate).unwrap();
    }
    for namespace in ["today", "tomorrow"] {
        assert_eq!(lab.store.other_keys(door, lab.store.room(namespace)), 1, "{namespace}");
    }
    lab.store.unregister(lab.store.room("today"), &peer(1), &mut lab.changes);
    assert_eq!(lab.store.other_keys(door, lab.store.room("tomorrow")), 1);
}

#[test]
fn a_door_counts_those_who_hold_another_key() {
    let mut lab = lab(Limits::default());
    let door = lab.store.door(&[1; 16]);
    for (n, namespace) in ["mine", "mine", "theirs", "hers"].into_iter().enumerate() {
        let candidate = Candidate { door: Some(door), ..lab.candidate(namespace, n as u32) };
        lab.keep(candidate).unwrap();
        assert!(lab.changes.contains(&Change::Door(door)));
    }
    let mine = lab.store.room("mine");
    assert_eq!(lab.store.other_keys(door, mine), 2);
    assert_eq!(lab.store.other_keys(door, lab.store.room("hers")), 3);
    lab.store.unregister(lab.store.room("theirs"), &peer(2), &mut lab.changes);
    assert_eq!(lab.store.other_keys(door, mine), 1);
    assert_eq!(lab.store.other_keys(lab.store.door(&[2; 16]), mine), 0);
}

#[test]
fn names_of_rooms_are_not_kept() {
    let mut lab = lab(Limits::default());
    lab.register("zanzibar", 1).unwrap();
    let memory = format!("{:?}", lab.store);
    assert!(memory.contains("Entry") && !memory.contains("zanzibar"));
    assert_ne!(lab.store.room("zanzibar"), Store::new(Limits::default(), [4; 32]).room("zanzibar"));
}

#[derive(Clone, Debug)]
enum Step {
    Register { room: u8, peer: u32, ttl: u64, watch: Option<u64>, door: Option<u8> },
    Unregister { room: u8, peer: u32 },
    Release { room: u8, peer: u32, watch: u64 },
    Pass { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..4, 0u32..6, 5u64..200, proptest::option::of(0u64..5), proptest::option::of(0u8..3))
            .prop_map(|(room, peer, ttl, watch, door)| Step::Register { room, peer, ttl, watch, door }),
        (0u8..4, 0u32..6).prop_map(|(room, peer)| Step::Unregister { room, peer }),
        (0u8..4, 0u32..6, 0u64..5).prop_map(|(room, peer, watch)| Step::Release { room, peer, watch }),
        (0u64..90).prop_map(|seconds| Step::Pass { seconds }),
    ]
}

proptest! {
    #[test]
    fn every_index_agrees_with_the_entries_after_any_history(steps in proptest::collection::vec(step(), 0..120)) {
        let limits = Limits { total: 12, per_peer: 3, per_namespace: 4, per_prefix: 2, ..Limits::default() };
        let mut lab = lab(limits.clone());
        for step in steps {
            match step {
                Step::Register { room, peer: n, ttl, watch, door } => {
                    let door = door.map(|d| lab.store.door(&[d; 16]));
                    let prefix = if n < 3 { Prefix::Local } else { Prefix::V4([9, 9, 9, (n % 2) as u8]) };
                    let held_by = watch.map(WatchId);
                    let candidate = Candidate { ttl: Some(ttl), held_by, door, prefix, ..lab.candidate(&room.to_string(), n) };
                    let _ = lab.keep(candidate);
                }
                Step::Unregister { room, peer: n } => {
                    lab.store.unregister(lab.store.room(&room.to_string()), &peer(n), &mut Vec::new());
                }
                Step::Release { room, peer: n, watch } => {
                    lab.store.release(lab.now, WatchId(watch), lab.store.room(&room.to_string()), &peer(n));
                }
                Step::Pass { seconds } => {
                    lab.now += Duration::from_secs(seconds);
                    lab.store.expire(lab.now, &mut Vec::new());
                }
            }
            let s = &lab.store;
            prop_assert!(s.entries.len() <= limits.total);
            prop_assert!(s.peers.values().all(|of| !of.is_empty() && of.len() <= limits.per_peer));
            prop_assert!(s.rooms.values().all(|of| !of.is_empty() && of.len() <= limits.per_namespace));
            prop_assert!(s.prefixes.values().all(|n| *n > 0 && *n <= limits.per_prefix));
            prop_assert_eq!(s.peers.values().map(BTreeSet::len).sum::<usize>(), s.entries.len());
            prop_assert_eq!(s.rooms.values().map(BTreeMap::len).sum::<usize>(), s.entries.len());
            let at_doors: u32 = s.doors.values().flat_map(BTreeMap::values).sum();
            prop_assert_eq!(at_doors as usize, s.entries.values().filter(|e| e.door.is_some()).count());
            prop_assert_eq!(s.expiries.len(), s.entries.values().filter(|e| e.expires.is_some()).count());
            prop_assert!(s.entries.values().all(|e| e.expires.is_some() != e.held_by.is_some()));
            prop_assert!(s.next_expiry().is_none_or(|when| when > lab.now));
        }
    }
}
