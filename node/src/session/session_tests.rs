use super::*;
use crate::invite::{Invite, Secret};
use libp2p_identity::Keypair;
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const ONE_WAY: Duration = Duration::from_millis(60);

fn identity(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).unwrap()
}

fn peer(seed: u8) -> PeerId {
    identity(seed).public().to_peer_id()
}

fn local(seed: u8, room: &str, secret: Option<u8>) -> Local {
    let secret = secret.map(|byte| Secret::from_bytes([byte; 32]));
    let invite =
        Invite { room: room.parse().unwrap(), secret, rendezvous: Vec::new(), terms: Default::default() };
    Local::new(&identity(seed), &invite.secrets()).unwrap()
}

/// What a link does to datagrams.
#[derive(Clone, Copy, Default)]
struct Link {
    loss: f64,
    duplicate: f64,
    flip: f64,
    jitter: f64,
}

/// Two sessions and the link between them, in virtual time.
struct World {
    start: Instant,
    now: Instant,
    ends: [Option<Session>; 2],
    link: Link,
    luck: ChaCha8Rng,
    flying: Vec<(Instant, usize, Vec<u8>)>,
    /// Everything ever sent, with its destination.
    tape: Vec<(usize, Vec<u8>)>,
    events: [Vec<(Duration, Event)>; 2],
}

impl World {
    fn new(link: Link, seed: u64, locals: [&Local; 2]) -> Self {
        let now = Instant::now();
        let ends = [0, 1].map(|at| Some(Session::new(locals[at], locals[1 - at].peer(), now)));
        let luck = ChaCha8Rng::seed_from_u64(seed);
        let events = [Vec::new(), Vec::new()];
        Self { start: now, now, ends, link, luck, flying: Vec::new(), tape: Vec::new(), events }
    }

    fn end(&mut self, at: usize) -> &mut Session {
        self.ends[at].as_mut().unwrap()
    }

    fn connect(&mut self, at: usize) {
        let now = self.now;
        self.end(at).connect(now);
        self.pump();
    }

    fn say(&mut self, at: usize, text: &[u8]) {
        let now = self.now;
        self.end(at).send_message(now, text.to_vec()).unwrap();
        self.pump();
    }

    /// Sends what is to be sent and collects what happened.
    fn pump(&mut self) {
        for at in [0, 1] {
            let Some(end) = self.ends[at].as_mut() else { continue };
            while let Some(mut datagram) = end.poll_transmit(self.now) {
                assert!(datagram.len() <= MAX_DATAGRAM);
                self.tape.push((1 - at, datagram.clone()));
                let copies = 1 + usize::from(self.luck.random_bool(self.link.duplicate));
                for _ in 0..copies {
                    if self.luck.random_bool(self.link.loss) {
                        continue;
                    }
                    if self.luck.random_bool(self.link.flip) {
                        let bit = self.luck.random_range(0..datagram.len() * 8);
                        datagram[bit / 8] ^= 1 << (bit % 8);
                    }
                    let delay = ONE_WAY.mul_f64(1.0 + self.link.jitter * self.luck.random::<f64>());
                    self.flying.push((self.now + delay, 1 - at, datagram.clone()));
                }
            }
            while let Some(event) = end.poll_event() {
                self.events[at].push((self.now - self.start, event));
            }
        }
    }

    /// Lets time pass, from one thing that happens to the next.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        self.pump();
        loop {
            let arrivals = self.flying.iter().map(|(at, ..)| *at).min();
            let timeouts = self.ends.iter().flatten().filter_map(Session::poll_timeout).min();
            let Some(next) = [arrivals, timeouts].into_iter().flatten().min().filter(|at| *at <= until)
            else {
                break;
            };
            assert!(next > self.now || arrivals == Some(next), "a timeout in the past spins");
            self.now = next.max(self.now);
            let now = self.now;
            for (_, to, datagram) in self.flying.extract_if(.., |(at, ..)| *at <= now).collect::<Vec<_>>() {
                if let Some(end) = self.ends[to].as_mut() {
                    end.handle_datagram(now, &datagram);
                }
            }
            self.pump();
        }
        self.now = until;
    }

    fn kinds(&self, at: usize) -> Vec<Event> {
        self.events[at].iter().map(|(_, event)| event.clone()).collect()
    }

    fn messages(&self, at: usize) -> Vec<Vec<u8>> {
        let message = |event: &(Duration, Event)| match &event.1 {
            Event::Message(message) => Some(message.clone()),
            _ => None,
        };
        self.events[at].iter().filter_map(message).collect()
    }

    fn established_at(&self, at: usize) -> Option<Duration> {
        self.events[at].iter().find(|(_, e)| matches!(e, Event::Established { .. })).map(|(time, _)| *time)
    }
}

fn two(link: Link, seed: u64) -> World {
    World::new(link, seed, [&local(1, "kitchen", Some(7)), &local(2, "kitchen", Some(7))])
}

fn established(link: Link, seed: u64) -> World {
    let mut world = two(Link::default(), seed);
    world.connect(0);
    world.run(Duration::from_secs(1));
    assert!(world.end(0).is_established() && world.end(1).is_established());
    world.events = [Vec::new(), Vec::new()];
    world.link = link;
    world
}

fn is_established(event: &Event) -> bool {
    matches!(event, Event::Established { .. })
}

#[test]
fn on_another_way_to_the_peer_what_waits_for_an_answer_is_said_at_once() {
    let mut world = two(Link::default(), 1);
    world.connect(0);
    // The only way so far led nowhere.
    world.flying.clear();
    world.run(Duration::from_millis(5));
    let now = world.now;
    (0..2).for_each(|at| world.end(at).hurry(now));
    world.pump();
    world.run(Duration::from_millis(5) + 3 * ONE_WAY);
    assert!(world.end(1).is_established(), "three trips from then on, no wait");
    world.run(ONE_WAY);
    assert!(world.end(0).is_established());
    let said = world.tape.len();
    let now = world.now;
    (0..2).for_each(|at| world.end(at).hurry(now));
    world.pump();
    assert_eq!(world.tape.len(), said, "an established session has nothing to say again");
}

#[test]
fn a_handshake_takes_three_one_way_trips_and_a_confirmation() {
    let mut world = two(Link::default(), 1);
    world.connect(0);
    world.run(Duration::from_secs(2));
    assert_eq!(world.established_at(1), Some(ONE_WAY * 3));
    assert_eq!(world.established_at(0), Some(ONE_WAY * 4));
    assert_eq!(world.kinds(0).len() + world.kinds(1).len(), 2);
}

#[test]
fn at_30_percent_loss_95_of_100_handshakes_take_at_most_3_seconds() {
    let locals = [local(1, "kitchen", Some(7)), local(2, "kitchen", Some(7))];
    for hint in [None, Some(ONE_WAY * 2)] {
        let mut times: Vec<Duration> = (0..300)
            .map(|seed| {
                let mut world =
                    World::new(Link { loss: 0.3, ..Link::default() }, seed, [&locals[0], &locals[1]]);
                for at in [0, 1] {
                    if let Some(rtt) = hint {
                        world.end(at).set_rtt_hint(rtt);
                    }
                }
                world.connect(0);
                world.run(Duration::from_secs(11));
                let both = [world.established_at(0), world.established_at(1)];
                both.into_iter().map(|time| time.unwrap_or(Duration::MAX)).max().unwrap()
            })
            .collect();
        times.sort();
        let percentile = |p: usize| times[times.len() * p / 100];
        println!(
            "handshake at 30 % loss, 60 ms one way, hint {hint:?}: p50 {:?} p90 {:?} p95 {:?} p99 {:?} max {:?}",
            percentile(50),
            percentile(90),
            percentile(95),
            percentile(99),
            times.last().unwrap()
        );
        assert!(percentile(95) <= Duration::from_secs(3));
        assert!(percentile(99) <= Duration::from_secs(8));
    }
}

#[test]
fn both_calling_at_once_end_in_one_session() {
    for seed in 0..40 {
        let mut world = two(Link { loss: 0.2, jitter: 1.0, ..Link::default() }, seed);
        world.connect(0);
        world.connect(1);
        world.run(Duration::from_secs(8));
        for at in [0, 1] {
            let sessions = world.kinds(at).iter().filter(|event| is_established(event)).count();
            assert_eq!(sessions, 1, "seed {seed}: {:?}", world.events[at]);
        }
        world.link = Link::default();
        world.say(0, b"ping");
        world.say(1, b"pong");
        world.run(Duration::from_secs(1));
        assert_eq!((world.messages(1), world.messages(0)), (vec![b"ping".to_vec()], vec![b"pong".to_vec()]));
    }
}

#[test]
fn a_wrong_secret_is_refused_on_both_sides() {
    for (mine, theirs) in [(Some(1), Some(2)), (None, Some(2)), (Some(1), None)] {
        let mut world =
            World::new(Link::default(), 1, [&local(1, "kitchen", mine), &local(2, "kitchen", theirs)]);
        world.connect(0);
        world.run(Duration::from_secs(15));
        assert_eq!(world.kinds(0), [Event::Refused { reason: Refusal::WrongSecret, by: Side::Them }]);
        assert_eq!(world.kinds(1), [Event::Refused { reason: Refusal::WrongSecret, by: Side::Us }]);
        assert!(world.events[0][0].0 < Duration::from_secs(1));
    }
}

#[test]
fn another_room_is_no_alarm() {
    let mut world =
        World::new(Link::default(), 1, [&local(1, "kitchen", Some(1)), &local(2, "garden", Some(1))]);
    world.connect(0);
    world.run(Duration::from_secs(15));
    assert_eq!(world.kinds(0), [Event::NotThisRoom]);
    assert_eq!(world.kinds(1), []);
}

#[test]
fn a_single_refusal_makes_us_ask_again_and_only_its_repetition_is_believed() {
    for reason in [handshake::NOT_THIS_ROOM, 1, 2] {
        let mut world = two(Link::default(), 1);
        let now = world.now;
        world.end(0).connect(now);
        let hello = world.end(0).poll_transmit(now).unwrap();
        let id = u64::from_be_bytes(hello[2..10].try_into().unwrap());
        world.end(0).handle_datagram(now, &handshake::refusal(id, reason));
        assert_eq!(world.end(0).poll_transmit(now), Some(hello));
        world.end(0).handle_datagram(now, &handshake::refusal(id, 3));
        world.end(0).handle_datagram(now, &handshake::refusal(id ^ 1, 3));
        assert_eq!(world.end(0).poll_event(), None);
        assert!(world.end(0).is_connecting());
        world.run(Duration::from_secs(2));
        assert!(world.end(0).is_established(), "the honest answer still counts");
    }
}

#[test]
fn an_open_room_needs_only_its_name() {
    let mut world = World::new(Link::default(), 1, [&local(1, "lobby", None), &local(2, "lobby", None)]);
    world.connect(1);
    world.run(Duration::from_secs(2));
    assert!(world.end(0).is_established() && world.end(1).is_established());
}

#[test]
fn somebody_else_with_the_secret_is_not_taken_for_the_peer_that_was_called() {
    // The transport says "peer 2"; peer 3, who is in the room too, answers.
    let (ana, eve) = (local(1, "kitchen", Some(7)), local(3, "kitchen", Some(7)));
    for caller in [0, 1] {
        let mut world = World::new(Link::default(), 1, [&ana, &eve]);
        let now = world.now;
        world.ends[0] = Some(Session::new(&ana, peer(2), now));
        world.connect(caller);
        world.run(Duration::from_secs(15));
        assert!(!world.kinds(0).iter().any(is_established), "{:?}", world.kinds(0));
        assert!(!world.end(0).is_established());
    }
}

#[test]
fn nobody_answering_ends_in_a_timeout() {
    let mut world = two(Link { loss: 1.0, ..Link::default() }, 1);
    world.connect(0);
    world.run(Duration::from_secs(20));
    assert_eq!(world.events[0], [(HANDSHAKE_TIMEOUT, Event::TimedOut)]);
    assert!(world.tape.len() < 40, "{} datagrams to a silent peer", world.tape.len());
    assert_eq!(world.end(0).poll_timeout(), None, "an idle session wants nothing");
}

#[test]
fn an_old_call_that_arrives_late_delays_ours_by_two_seconds_at_most() {
    let mut old = two(Link::default(), 2);
    old.connect(0);
    let (_, stale) = old.tape[0].clone();
    let mut world = two(Link::default(), 2);
    let now = world.now;
    world.end(1).handle_datagram(now, &stale);
    world.connect(1);
    world.run(Duration::from_secs(3));
    for at in [0, 1] {
        assert_eq!(world.kinds(at).iter().filter(|event| is_established(event)).count(), 1);
        assert!(world.established_at(at).unwrap() <= CALL_ANYWAY + ONE_WAY * 4);
    }
}

#[test]
fn a_peer_of_another_version_is_told_so() {
    let (ana, ben) = (local(1, "kitchen", Some(7)), local(2, "kitchen", Some(7)));
    let mut world = World::new(Link::default(), 1, [&ana, &ben]);
    let now = world.now;
    world.end(0).connect(now);
    let mut hello = world.end(0).poll_transmit(now).unwrap();
    hello[10] = VERSION + 1;
    world.end(1).handle_datagram(now, &hello);
    let answer = world.end(1).poll_transmit(now).unwrap();
    assert_eq!(answer, handshake::refusal(u64::from_be_bytes(hello[2..10].try_into().unwrap()), 3));
    world.end(0).handle_datagram(now, &answer);
    world.end(0).handle_datagram(now, &answer);
    assert_eq!(world.end(0).poll_event(), Some(Event::Refused { reason: Refusal::Version, by: Side::Them }));
}

#[test]
fn messages_arrive_once_and_in_order_through_loss_duplicates_reordering_and_bit_flips() {
    for (seed, link) in [
        Link { loss: 0.3, ..Link::default() },
        Link { duplicate: 0.5, jitter: 2.0, ..Link::default() },
        Link { loss: 0.2, duplicate: 0.3, flip: 0.1, jitter: 1.0 },
    ]
    .into_iter()
    .enumerate()
    {
        let mut world = established(link, seed as u64);
        let text = |n: usize| format!("message {n} ").repeat(n * 7 % 200).into_bytes();
        for n in 0..120 {
            world.say(n % 2, &text(n));
            world.run(Duration::from_millis(50));
        }
        world.run(Duration::from_secs(20));
        for at in [0, 1] {
            let expected: Vec<_> = (0..120).filter(|n| n % 2 != at).map(text).collect();
            assert!(world.messages(at) == expected, "end {at}, link {seed}");
            assert_eq!(world.events[at].len(), 60, "nothing but messages: {:?}", world.kinds(at).last());
        }
    }
}

#[test]
fn a_session_is_set_up_through_flipped_bits() {
    for seed in 0..300 {
        let mut world = two(Link { flip: 0.1, ..Link::default() }, seed);
        world.connect(0);
        world.run(Duration::from_secs(10));
        assert!(world.end(0).is_established() && world.end(1).is_established(), "{seed}: {:?}", world.events);
    }
}

#[test]
fn an_idle_session_lives_for_hours_at_30_percent_loss_and_changes_its_keys() {
    let mut world = established(Link { loss: 0.3, ..Link::default() }, 5);
    world.run(Duration::from_secs(2 * 3600));
    assert_eq!((world.kinds(0), world.kinds(1)), (vec![], vec![]));
    world.say(0, b"still there?");
    world.run(Duration::from_secs(5));
    assert_eq!(world.messages(1), [b"still there?"]);
    let epochs: std::collections::BTreeSet<_> =
        world.tape.iter().filter_map(|(_, d)| cipher::parse(d)).map(|(_, nonce)| nonce >> 40).collect();
    assert!(epochs.len() >= 115, "{} epochs in two hours", epochs.len());
}

#[test]
fn a_killed_peer_is_noticed_within_15_seconds() {
    let mut world = established(Link { loss: 0.1, ..Link::default() }, 6);
    world.run(Duration::from_secs(31));
    let killed = world.now;
    world.ends[1] = None;
    world.run(Duration::from_secs(15));
    assert_eq!(world.kinds(0), [Event::Lost]);
    assert!(world.start + world.events[0][0].0 - killed <= LOST_AFTER);
    assert!(!world.end(0).is_established());
}

#[test]
fn a_blackout_of_5_seconds_loses_neither_session_nor_message() {
    let mut world = established(Link::default(), 7);
    world.link.loss = 1.0;
    world.say(0, b"into the dark");
    world.run(Duration::from_secs(5));
    world.link.loss = 0.0;
    world.run(MAX_RETRY * 5);
    assert_eq!(world.kinds(1), [Event::Message(b"into the dark".to_vec())]);
    assert_eq!(world.kinds(0), []);
}

#[test]
fn a_goodbye_is_heard_at_once_and_a_forged_one_never() {
    let mut world = established(Link::default(), 8);
    let forged = [&[CHANNEL][..], &[0; 12], &[6; 20]].concat();
    let now = world.now;
    world.end(1).handle_datagram(now, &forged);
    let last_words = vec![b'w'; 6000];
    world.end(0).send_message(now, last_words.clone()).unwrap();
    world.end(0).close(now);
    world.run(Duration::from_secs(1));
    assert_eq!(world.kinds(1), [Event::Message(last_words), Event::Closed]);
    assert!(!world.end(0).is_established() && !world.end(1).is_established());
    assert_eq!(world.end(1).send_message(now, vec![1]), Err(SendError::NotEstablished));
}

#[test]
fn a_restarted_peer_shakes_hands_anew_and_the_old_session_stands_until_then() {
    for seed in 0..20 {
        let mut world = established(Link { loss: 0.2, ..Link::default() }, seed);
        let fresh = local(2, "kitchen", Some(7));
        let now = world.now;
        world.ends[1] = Some(Session::new(&fresh, peer(1), now));
        world.connect(1);
        world.run(Duration::from_secs(8));
        assert_eq!(world.kinds(0).len(), 1, "{:?}", world.kinds(0));
        assert!(matches!(world.kinds(0)[0], Event::Established { replaced: true, .. }));
        assert!(matches!(world.kinds(1)[0], Event::Established { replaced: false, .. }));
        world.link = Link::default();
        world.say(0, b"welcome back");
        world.say(1, b"hello again");
        world.run(Duration::from_secs(3));
        assert_eq!(world.messages(1), [b"welcome back"]);
        assert_eq!(world.messages(0), [b"hello again"]);
    }
}

#[test]
fn an_unfinished_handshake_leaves_the_established_session_alone() {
    let mut world = established(Link::default(), 9);
    // Somebody with a wrong secret calls under the peer's name.
    let wrong = local(2, "kitchen", Some(99));
    let now = world.now;
    let mut impostor = Session::new(&wrong, peer(1), now);
    impostor.connect(now);
    for _ in 0..200 {
        while let Some(datagram) = impostor.poll_transmit(world.now) {
            let now = world.now;
            world.end(0).handle_datagram(now, &datagram);
        }
        let mine: Vec<_> = std::iter::from_fn(|| {
            let now = world.now;
            world.end(0).poll_transmit(now)
        })
        .collect();
        for datagram in mine {
            impostor.handle_datagram(world.now, &datagram);
        }
        world.now += Duration::from_millis(10);
    }
    assert_eq!(impostor.poll_event(), Some(Event::Refused { reason: Refusal::WrongSecret, by: Side::Them }));
    world.run(Duration::from_millis(500));
    assert_eq!(world.kinds(0), [Event::Refused { reason: Refusal::WrongSecret, by: Side::Us }]);
    world.say(0, b"still us");
    world.say(1, b"indeed");
    world.run(Duration::from_secs(1));
    assert_eq!(
        (world.messages(1), world.messages(0)),
        (vec![b"still us".to_vec()], vec![b"indeed".to_vec()])
    );
}

#[test]
fn a_refusal_never_ends_an_established_session_nor_another_handshake() {
    let mut world = established(Link::default(), 10);
    let ids: Vec<u64> = world
        .tape
        .iter()
        .filter_map(|(_, d)| match Datagram::parse(d)? {
            Datagram::Hello { id, .. } => Some(id),
            _ => None,
        })
        .collect();
    let now = world.now;
    world.end(0).connect(now);
    for id in ids.into_iter().chain([0, u64::MAX]) {
        for reason in 0..=255 {
            world.end(0).handle_datagram(now, &handshake::refusal(id, reason));
            world.end(1).handle_datagram(now, &handshake::refusal(id, reason));
        }
    }
    world.run(Duration::from_secs(2));
    assert_eq!(world.kinds(0).len(), 1);
    assert!(matches!(world.kinds(0)[0], Event::Established { replaced: true, .. }));
}

#[test]
fn replaying_everything_ever_sent_changes_nothing() {
    let mut world = established(Link::default(), 11);
    for n in 0..50u8 {
        world.say(usize::from(n % 2), &[n; 300]);
        world.run(Duration::from_millis(40));
    }
    world.run(Duration::from_secs(2));
    world.events = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        for (to, datagram) in world.tape.clone() {
            let now = world.now;
            world.end(to).handle_datagram(now, &datagram);
            world.end(1 - to).handle_datagram(now, &datagram);
        }
        world.run(Duration::from_secs(4));
    }
    world.run(Duration::from_secs(20));
    assert_eq!((world.kinds(0), world.kinds(1)), (vec![], vec![]));
    world.say(0, b"after");
    world.run(Duration::from_secs(1));
    assert_eq!(world.messages(1), [b"after"]);
}

#[test]
fn a_hundred_thousand_forgeries_move_nothing() {
    let mut world = established(Link::default(), 12);
    let good = world.tape.iter().rev().find(|(to, d)| *to == 1 && d[0] == CHANNEL).unwrap().1.clone();
    let mut luck = ChaCha8Rng::seed_from_u64(12);
    let now = world.now;
    let before = world.end(1).stats();
    for _ in 0..100_000 {
        let mut forged = good.clone();
        forged.resize(luck.random_range(13..80), 0);
        luck.fill(&mut forged[7..]);
        world.end(1).handle_datagram(now, &forged);
    }
    assert_eq!(world.end(1).stats().opened, before.opened);
    assert_eq!(world.end(1).stats().rejected, before.rejected + 100_000);
    world.say(0, b"unharmed");
    world.run(Duration::from_secs(1));
    assert_eq!(world.kinds(1), [Event::Message(b"unharmed".to_vec())]);
}

#[test]
fn a_peer_that_calls_without_end_is_answered_a_bounded_number_of_times() {
    let mut world = two(Link::default(), 13);
    let caller = local(1, "kitchen", Some(7));
    let start = world.now;
    for n in 0..1000u64 {
        let mut call = Session::new(&caller, peer(2), start);
        let now = start + Duration::from_millis(n * 5);
        call.connect(now);
        let hello = call.poll_transmit(now).unwrap();
        world.end(1).handle_datagram(now, &hello);
    }
    assert_eq!(world.end(1).stats().limited, 1000 - u64::from(MAX_CALLS) - 4);
}

#[test]
fn bounds_hold_exactly() {
    let mut world = established(Link::default(), 14);
    let now = world.now;
    let end = world.end(0);
    assert_eq!(end.send_message(now, vec![0; MAX_MESSAGE]), Ok(()));
    let too_long = |length, most| Err(SendError::TooLong { length, most });
    assert_eq!(end.send_message(now, vec![0; MAX_MESSAGE + 1]), too_long(MAX_MESSAGE + 1, MAX_MESSAGE));
    assert_eq!(
        end.send_unreliable(now, &[0; MAX_UNRELIABLE + 1]),
        too_long(MAX_UNRELIABLE + 1, MAX_UNRELIABLE)
    );
    for n in 0..MAX_UNRELIABLE_QUEUE as u8 + 5 {
        end.send_unreliable(now, &[n; MAX_UNRELIABLE]).unwrap();
    }
    while end.send_message(now, vec![0; MAX_MESSAGE]).is_ok() {}
    assert_eq!(end.send_message(now, vec![0; MAX_MESSAGE]), Err(SendError::QueueFull));
    world.run(Duration::from_secs(10));
    let first = world.kinds(1).into_iter().find_map(|event| match event {
        Event::Unreliable(message) => Some(message[0]),
        _ => None,
    });
    assert_eq!(first, Some(5), "the oldest went first");
    assert!(world.messages(1).iter().all(|message| message.len() == MAX_MESSAGE));
    assert_eq!(world.messages(1).len(), MAX_QUEUED / (MAX_MESSAGE + arq::MESSAGE_COST));
}

#[test]
fn nothing_secret_or_said_is_readable_on_the_wire() {
    let mut world = established(Link::default(), 15);
    let marker = b"the marker that must not be seen";
    world.say(0, marker);
    let now = world.now;
    world.end(0).send_unreliable(now, marker).unwrap();
    world.run(Duration::from_secs(1));
    let identity_key = identity(1).public().encode_protobuf();
    for (_, datagram) in &world.tape {
        for needle in [&marker[..8], b"kitchen", &[7; 8], &identity_key[4..]] {
            assert!(!datagram.windows(needle.len()).any(|window| window == needle));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_in_any_phase_neither_panic_nor_establish(
        datagrams in proptest::collection::vec((0u8..4, proptest::collection::vec(any::<u8>(), 0..300)), 1..40),
        phase in 0u8..4,
    ) {
        let mut world = two(Link::default(), 1);
        match phase {
            0 => {}
            1 => world.connect(1),
            2 => { world.connect(0); world.run(ONE_WAY); }
            _ => { world.connect(0); world.run(ONE_WAY * 2); }
        }
        let now = world.now;
        let before = [0, 1].map(|at| world.end(at).is_established());
        for (kind, mut bytes) in datagrams {
            let head: &[u8] = match kind { 0 => &[HANDSHAKE, 1], 1 => &[HANDSHAKE, 2], 2 => &[HANDSHAKE, 3], _ => &[CHANNEL] };
            bytes.splice(0..0, head.iter().copied());
            for at in [0, 1] {
                world.end(at).handle_datagram(now, &bytes);
            }
        }
        prop_assert_eq!([0, 1].map(|at| world.end(at).is_established()), before);
        // Whatever was thrown in, the honest handshake comes through.
        world.connect(0);
        world.run(Duration::from_secs(10));
        prop_assert!(world.end(0).is_established() && world.end(1).is_established());
    }

    #[test]
    fn mutated_datagrams_of_a_real_handshake_never_panic(
        at in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<bool>(),
    ) {
        let mut world = two(Link::default(), 2);
        world.connect(0);
        world.run(Duration::from_secs(1));
        let (to, mut datagram) = at.get(&world.tape).clone();
        let index = byte.index(datagram.len());
        if cut { datagram.truncate(index) } else { datagram[index] ^= flip }
        let mut fresh = two(Link::default(), 3);
        let now = fresh.now;
        fresh.connect(1 - to);
        fresh.end(to).handle_datagram(now, &datagram);
        world.end(to).handle_datagram(now, &datagram);
        fresh.run(Duration::from_secs(5));
        prop_assert!(fresh.end(0).is_established() && fresh.end(1).is_established());
    }
}
