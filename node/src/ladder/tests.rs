use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use libp2p::Multiaddr;

use super::*;
use crate::path::SendError;

/// A path whose every property a test can set.
pub(crate) struct Wire {
    id: usize,
    kind: PathKind,
    place: Multiaddr,
    pub(crate) received: AtomicU64,
    rtt_ms: AtomicU64,
    open: AtomicBool,
    leaving: AtomicBool,
    sent: AtomicUsize,
}

pub(crate) fn wire(id: usize, kind: PathKind, rtt_ms: u64) -> Arc<Wire> {
    wire_to(id, id, kind, rtt_ms)
}

/// To the place with that number.
fn wire_to(place: usize, id: usize, kind: PathKind, rtt_ms: u64) -> Arc<Wire> {
    Arc::new(Wire {
        id,
        kind,
        place: format!("/ip4/192.0.2.1/udp/{place}/quic-v1").parse().unwrap(),
        received: AtomicU64::new(0),
        rtt_ms: AtomicU64::new(rtt_ms),
        open: AtomicBool::new(true),
        leaving: AtomicBool::new(false),
        sent: AtomicUsize::new(0),
    })
}

impl Path for Wire {
    fn send(&self, _: Bytes) -> Result<(), SendError> {
        self.sent.fetch_add(1, Relaxed);
        Ok(())
    }
    fn rtt(&self) -> Duration {
        Duration::from_millis(self.rtt_ms.load(Relaxed))
    }
    fn stats(&self) -> hallway_codec::PathStats {
        hallway_codec::PathStats::default()
    }
    fn bytes(&self) -> (u64, u64) {
        (0, self.received.load(Relaxed))
    }
    fn is_dialer(&self) -> bool {
        true
    }
    fn kind(&self) -> PathKind {
        self.kind
    }
    fn remote(&self) -> Multiaddr {
        self.place.clone()
    }
    fn id(&self) -> usize {
        self.id
    }
    fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }
    fn close(&self, _: CloseReason) {
        self.open.store(false, Relaxed);
    }
    fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }
    fn measured(&self, rtt: Duration) {
        self.rtt_ms.store(rtt.as_millis() as u64, Relaxed);
    }
}

/// A ladder in virtual time, on whose paths voice comes or not.
struct Lab {
    now: Instant,
    paths: Paths,
    told: Vec<(u64, Why, usize)>,
    ms: u64,
}

impl Lab {
    fn new() -> Self {
        Self { now: Instant::now(), paths: Paths::default(), told: Vec::new(), ms: 0 }
    }

    fn add(&mut self, wire: &Arc<Wire>) {
        assert!(self.paths.add(self.now, wire.clone()));
        self.step(&[]);
    }

    fn step(&mut self, alive: &[&Arc<Wire>]) {
        self.paths.look(self.now);
        while let Some((question, path)) = self.paths.poll_probe(self.now) {
            if alive.iter().any(|wire| wire.id == path.id()) {
                self.paths.handle_answer(self.now, path.id(), question);
            }
        }
        if let Some(why) = self.paths.choose(self.now, |_| true) {
            self.told.push((self.ms, why, self.paths.used.unwrap_or(0)));
        }
    }

    /// For so long; voice comes on the first of these, answers on all of them.
    fn run(&mut self, ms: u64, alive: &[&Arc<Wire>]) {
        for _ in 0..ms / 20 {
            (self.ms, self.now) = (self.ms + 20, self.now + Duration::from_millis(20));
            if let Some(wire) = alive.first() {
                wire.received.fetch_add(100, Relaxed);
            }
            self.step(alive);
        }
    }
}

#[test]
fn the_first_that_works_is_used_and_the_best_is_kept() {
    let (tcp, relay, direct) =
        (wire(1, PathKind::Tcp, 30), wire(2, PathKind::Relayed, 60), wire(3, PathKind::Direct, 90));
    let mut lab = Lab::new();
    lab.add(&tcp);
    lab.run(100, &[&tcp]);
    lab.add(&relay);
    lab.run(100, &[&tcp]);
    assert_eq!(lab.paths.used, Some(1), "a relay that never answered is not used");
    lab.run(500, &[&tcp, &relay]);
    assert_eq!(lab.paths.used, Some(2));
    lab.add(&direct);
    lab.run(3000, &[&direct, &relay, &tcp]);
    assert_eq!(lab.paths.used, Some(3), "a lower rung wins although it is slower");
    let whys: Vec<_> = lab.told.iter().map(|(_, why, id)| (*why, *id)).collect();
    assert_eq!(whys, [(Why::First, 1), (Why::Better, 2), (Why::Better, 3)]);
}

#[test]
fn of_two_connections_to_one_place_the_one_in_use_is_kept_whatever_the_other_measured_once() {
    for (place, kept) in [(7, true), (8, false)] {
        let (used, spare) = (wire_to(7, 1, PathKind::Direct, 60), wire_to(place, 2, PathKind::Direct, 60));
        let mut lab = Lab::new();
        lab.add(&used);
        lab.add(&spare);
        lab.run(1000, &[&used, &spare]);
        // A queue stands on the way: what is in use sees it.
        used.measured(Duration::from_millis(300));
        lab.run(2000, &[&used, &spare]);
        assert_eq!(lab.paths.used == Some(1), kept, "place {place}");
    }
}

#[test]
fn a_path_that_falls_silent_is_left_within_half_a_second_and_taken_again_when_it_is_back() {
    let (relay, direct) = (wire(2, PathKind::Relayed, 60), wire(3, PathKind::Direct, 20));
    let mut lab = Lab::new();
    lab.add(&direct);
    lab.add(&relay);
    lab.run(3000, &[&direct, &relay]);
    lab.told.clear();
    lab.run(4000, &[&relay]);
    let (at, why, id) = lab.told[0];
    assert_eq!((why, id), (Why::Silent, 2));
    assert!(at <= 3500, "left after {} ms", at - 3000);
    lab.run(5000, &[&direct, &relay]);
    assert_eq!(lab.told.last().map(|told| (told.1, told.2)), Some((Why::Better, 3)));
    assert_eq!(lab.told.len(), 2, "{:?}", lab.told);
}

#[test]
fn a_path_that_comes_and_goes_is_barred_for_longer_each_time() {
    let (relay, direct) = (wire(2, PathKind::Relayed, 60), wire(3, PathKind::Direct, 20));
    let mut lab = Lab::new();
    lab.add(&direct);
    lab.add(&relay);
    for _ in 0..60 {
        lab.run(500, &[&direct, &relay]);
        lab.run(500, &[&relay]);
    }
    assert!(lab.told.len() <= 14, "30 s of flapping: {:?}", lab.told);
}

#[test]
fn a_path_that_answers_but_loses_the_voice_is_left_for_one_that_does_not_however_slow() {
    let (liar, honest) = (wire(1, PathKind::Relayed, 10), wire(2, PathKind::Relayed, 90));
    let mut lab = Lab::new();
    lab.add(&liar);
    lab.add(&honest);
    lab.paths.expect_to_be_heard(lab.now);
    let mut on_liar = 0;
    for _ in 0..120 {
        let used = lab.paths.used;
        on_liar += u32::from(used == Some(1));
        // Four reports a second; the liar lets one packet in ten through.
        for _ in 0..4 {
            let heard = if used == Some(1) { (5, 45) } else { (50, 0) };
            lab.paths.handle_heard(lab.now, heard.0, heard.1);
            lab.run(250, &[&honest, &liar]);
        }
    }
    assert_eq!(lab.told.get(1).map(|told| (told.1, told.2)), Some((Why::Losing, 2)), "{:?}", lab.told);
    assert!(lab.told[1].0 <= 5000, "left after {} ms", lab.told[1].0);
    assert!(on_liar < 5, "{on_liar} of 120 s by the liar: {:?}", lab.told);
}

#[test]
fn a_better_rung_that_lost_the_voice_is_tried_again_ever_later() {
    let (direct, relay) = (wire(1, PathKind::Direct, 10), wire(2, PathKind::Relayed, 90));
    let mut lab = Lab::new();
    lab.add(&direct);
    lab.add(&relay);
    lab.paths.expect_to_be_heard(lab.now);
    let mut on_direct = 0;
    for _ in 0..4 * 180 {
        let bad = lab.paths.used == Some(1);
        on_direct += u32::from(bad);
        lab.paths.handle_heard(lab.now, if bad { 5 } else { 50 }, if bad { 45 } else { 0 });
        lab.run(250, &[&relay, &direct]);
    }
    let tries = lab.told.iter().filter(|told| told.1 == Why::Better).count();
    assert!((2..=4).contains(&tries) && on_direct < 4 * 25, "{on_direct} of 720: {:?}", lab.told);
}

/// A direct path and a relay, both alive; our voice gets lost on the direct one, which is left for it.
fn left_for_a_relay() -> (Lab, Arc<Wire>, Arc<Wire>) {
    let (direct, relay) = (wire(1, PathKind::Direct, 10), wire(2, PathKind::Relayed, 90));
    let mut lab = Lab::new();
    lab.add(&direct);
    lab.add(&relay);
    lab.paths.expect_to_be_heard(lab.now);
    while lab.paths.used == Some(1) {
        lab.paths.handle_heard(lab.now, 5, 45);
        lab.run(260, &[&relay, &direct]);
    }
    assert_eq!(lab.told.last().map(|told| (told.1, told.2)), Some((Why::Losing, 2)));
    (lab, direct, relay)
}

#[test]
fn a_fresh_connection_to_where_the_voice_got_lost_is_barred_like_the_one_before() {
    let (mut lab, direct, relay) = left_for_a_relay();
    let left = lab.ms;
    direct.open.store(false, Relaxed);
    let fresh = wire_to(1, 3, PathKind::Direct, 10);
    lab.add(&fresh);
    for _ in 0..28 {
        lab.paths.handle_heard(lab.now, 50, 0);
        lab.run(260, &[&relay, &fresh]);
        assert!(lab.paths.direct_works(lab.now), "nothing is gained by yet another connection");
        assert!(lab.paths.barred_until(lab.now).is_some());
    }
    assert_eq!(lab.paths.used, Some(2), "{:?}", lab.told);
    lab.run(1500, &[&relay, &fresh]);
    let (at, why, id) = *lab.told.last().unwrap();
    assert_eq!((why, id), (Why::Better, 3), "{:?}", lab.told);
    assert!((7700..8600).contains(&(at - left)), "{} ms", at - left);
}

#[test]
fn another_place_is_not_barred() {
    let (mut lab, _direct, relay) = left_for_a_relay();
    let elsewhere = wire(3, PathKind::Direct, 10);
    lab.add(&elsewhere);
    lab.run(260, &[&relay, &elsewhere]);
    assert_eq!(lab.paths.used, Some(3));
}

#[test]
fn a_path_that_loses_a_part_is_better_than_a_dead_one() {
    let (mut lab, direct, relay) = left_for_a_relay();
    lab.run(1300, &[&relay, &direct]);
    lab.told.clear();
    let died = lab.ms;
    lab.run(2000, &[&direct]);
    let (at, why, id) = lab.told[0];
    assert_eq!((why, id), (Why::Silent, 1));
    assert!(at - died < 1500, "long before the bar ends: {} ms", at - died);
}

#[test]
fn where_no_path_is_better_nobody_is_blamed_and_the_best_rung_is_kept() {
    let (direct, relay, tcp) =
        (wire(1, PathKind::Direct, 10), wire(2, PathKind::Relayed, 90), wire(3, PathKind::Tcp, 90));
    let all = [&direct, &relay, &tcp];
    let mut lab = Lab::new();
    all.into_iter().for_each(|wire| lab.add(wire));
    lab.paths.expect_to_be_heard(lab.now);
    let mut on_direct = 0;
    for _ in 0..4 * 180 {
        on_direct += u32::from(lab.paths.used == Some(1));
        lab.paths.handle_heard(lab.now, 5, 45);
        lab.run(250, &all);
    }
    assert!(lab.told.len() <= 10 && on_direct > 4 * 130, "{on_direct} of 720: {:?}", lab.told);
}

#[test]
fn reports_that_do_not_come_say_nothing_of_a_direct_path_on_which_none_ever_came() {
    let (direct, relay) = (wire(1, PathKind::Direct, 10), wire(2, PathKind::Relayed, 90));
    let mut lab = Lab::new();
    lab.add(&direct);
    lab.add(&relay);
    lab.paths.expect_to_be_heard(lab.now);
    lab.run(20_000, &[&direct, &relay]);
    assert_eq!(lab.told.len(), 1, "{:?}", lab.told);
    // After the first report two silent windows are needed: reports get lost too.
    lab.paths.handle_heard(lab.now, 50, 0);
    lab.run(2500, &[&direct, &relay]);
    lab.paths.handle_heard(lab.now, 50, 0);
    lab.run(1500, &[&direct, &relay]);
    assert_eq!(lab.told.len(), 1, "{:?}", lab.told);
    lab.run(5000, &[&direct, &relay]);
    assert_eq!(lab.told.last().map(|told| (told.1, told.2)), Some((Why::Losing, 2)), "{:?}", lab.told);
}

#[test]
fn a_relay_through_which_nobody_ever_says_to_hear_us_is_left() {
    let (one, two) = (wire(1, PathKind::Relayed, 10), wire(2, PathKind::Relayed, 90));
    let mut lab = Lab::new();
    lab.add(&one);
    lab.add(&two);
    lab.paths.expect_to_be_heard(lab.now);
    lab.run(8000, &[&one, &two]);
    let left = lab.told[1];
    assert_eq!((left.1, left.2), (Why::Losing, 2));
    assert!((5000..6200).contains(&left.0), "{} ms", left.0);
}

#[test]
fn a_path_that_loses_the_voice_is_left_although_the_reports_over_tcp_do_not_count_it() {
    let (one, two) = (wire(1, PathKind::Relayed, 10), wire(2, PathKind::Relayed, 90));
    let mut lab = Lab::new();
    lab.add(&one);
    lab.add(&two);
    lab.paths.expect_to_be_heard(lab.now);
    for _ in 0..20 {
        lab.paths.handle_missed(lab.now, 45);
        lab.paths.handle_heard(lab.now, 5, 0);
        lab.run(260, &[&one, &two]);
    }
    assert_eq!(lab.told.get(1).map(|told| (told.1, told.2)), Some((Why::Losing, 2)));
}

#[test]
fn of_spare_direct_paths_one_stays_while_a_relay_is_used() {
    let (mut lab, direct, _relay) = left_for_a_relay();
    let fresh = wire_to(1, 3, PathKind::Direct, 10);
    lab.add(&fresh);
    lab.paths.close_spare();
    assert_eq!((direct.is_open(), fresh.is_open(), lab.paths.used), (false, true, Some(2)));
}

#[test]
fn where_there_is_no_other_path_a_lossy_one_is_kept_and_half_of_the_voice_is_enough() {
    let (one, two) = (wire(1, PathKind::Relayed, 10), wire(2, PathKind::Relayed, 90));
    let mut lab = Lab::new();
    lab.add(&one);
    lab.paths.expect_to_be_heard(lab.now);
    lab.run(8000, &[&one]);
    assert_eq!(lab.told.len(), 1, "nobody says that we are heard: {:?}", lab.told);
    lab.add(&two);
    lab.paths.expect_to_be_heard(lab.now);
    for _ in 0..40 {
        lab.paths.handle_heard(lab.now, 30, 20);
        lab.run(250, &[&one, &two]);
    }
    assert_eq!(lab.told.len(), 1, "{:?}", lab.told);
}

#[test]
fn both_paths_are_sent_on_while_one_takes_over() {
    let (relay, direct) = (wire(2, PathKind::Relayed, 60), wire(3, PathKind::Direct, 20));
    let mut lab = Lab::new();
    lab.add(&relay);
    lab.run(1000, &[&relay]);
    lab.add(&direct);
    lab.run(20, &[&direct, &relay]);
    lab.paths.route().send(Bytes::new()).unwrap();
    assert_eq!((relay.sent.load(Relaxed), direct.sent.load(Relaxed)), (1, 1));
    lab.run(OVERLAP.as_millis() as u64 + 200, &[&direct, &relay]);
    lab.paths.route().send(Bytes::new()).unwrap();
    assert_eq!((relay.sent.load(Relaxed), direct.sent.load(Relaxed)), (1, 2));
}

#[test]
fn a_relay_that_shuts_down_is_left_before_it_ends() {
    let (one, two) = (wire(1, PathKind::Relayed, 20), wire(2, PathKind::Tcp, 90));
    let mut lab = Lab::new();
    lab.add(&one);
    lab.add(&two);
    lab.run(1000, &[&one, &two]);
    one.leaving.store(true, Relaxed);
    lab.run(40, &[&one, &two]);
    assert_eq!(lab.told.last().map(|told| (told.1, told.2)), Some((Why::Leaving, 2)));
}

#[test]
fn equal_paths_do_not_flap_and_the_last_one_gone_is_told() {
    let (one, two) = (wire(1, PathKind::Direct, 20), wire(2, PathKind::Direct, 18));
    let mut lab = Lab::new();
    lab.add(&one);
    lab.add(&two);
    lab.run(3000, &[&one, &two]);
    assert_eq!(lab.told, [(0, Why::First, 1)]);
    lab.paths.close_all(CloseReason::Goodbye);
    assert!(lab.paths.is_empty() && lab.paths.used().is_none());
    lab.add(&wire(4, PathKind::Direct, 1));
    lab.paths.open[0].path.close(CloseReason::Goodbye);
    lab.step(&[]);
    assert_eq!(lab.told.last().map(|told| told.1), Some(Why::Gone));
}

#[test]
fn a_ninth_path_is_refused() {
    let mut lab = Lab::new();
    (1..=MAX_PATHS).for_each(|id| lab.add(&wire(id, PathKind::Direct, 1)));
    assert!(!lab.paths.add(lab.now, wire(9, PathKind::Direct, 1)));
}
