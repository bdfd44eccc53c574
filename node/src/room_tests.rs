use super::*;
use crate::session::keys::{OpenError, Opener, Sealer};
use distribution::SWITCH_AFTER;
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

/// A node as far as rooms matter: the room, the media thread's keys, what it was told.
struct Node {
    peer: PeerId,
    room: Room,
    sealer: Option<Sealer>,
    openers: BTreeMap<PeerId, Opener>,
    sessions: BTreeSet<PeerId>,
    events: Vec<Output>,
}

/// Frames sealed by one node at one time.
struct Frame {
    from: PeerId,
    at: Instant,
    datagram: Vec<u8>,
}

/// Nodes with reliable, ordered, slow sessions between them, in virtual time.
struct World {
    now: Instant,
    nodes: BTreeMap<PeerId, Node>,
    gone: Vec<(Node, Instant)>,
    luck: ChaCha8Rng,
    /// Messages under way; each pair's stay in order.
    flying: Vec<(Instant, PeerId, PeerId, Vec<u8>)>,
    dials: Vec<(Instant, PeerId, PeerId)>,
    frames: Vec<Frame>,
}

impl World {
    fn new(seed: u64) -> Self {
        let (now, luck) = (Instant::now(), ChaCha8Rng::seed_from_u64(seed));
        Self {
            now,
            nodes: BTreeMap::new(),
            gone: vec![],
            luck,
            flying: vec![],
            dials: vec![],
            frames: vec![],
        }
    }

    /// Adds a node that reaches one random member, if there is any.
    fn join(&mut self) -> PeerId {
        let key = libp2p_identity::Keypair::ed25519_from_bytes(self.luck.random::<[u8; 32]>()).unwrap();
        let peer = key.public().to_peer_id();
        let contact = self.some_member();
        let room = Room::new(peer, &format!("node {peer}"), vec![]);
        let (openers, sessions) = (BTreeMap::new(), BTreeSet::new());
        self.nodes.insert(peer, Node { peer, room, sealer: None, openers, sessions, events: vec![] });
        self.pump();
        if let Some(contact) = contact {
            self.establish(peer, contact);
        }
        peer
    }

    fn some_member(&mut self) -> Option<PeerId> {
        let at = self.luck.random_range(0..self.nodes.len().max(1));
        self.nodes.keys().nth(at).copied()
    }

    fn establish(&mut self, a: PeerId, b: PeerId) {
        if a == b || !self.nodes.contains_key(&a) || !self.nodes.contains_key(&b) {
            return;
        }
        if !self.nodes[&a].sessions.contains(&b) {
            for (me, other) in [(a, b), (b, a)] {
                let node = self.nodes.get_mut(&me).unwrap();
                node.sessions.insert(other);
                node.room.handle_established(self.now, other, vec![]);
            }
        }
        self.pump();
    }

    /// Whoever lost its only contact while it joined finds the others by the rendezvous server.
    fn rendezvous(&mut self) {
        let peers: Vec<_> = self.nodes.keys().copied().collect();
        for a in &peers {
            peers.iter().for_each(|b| self.establish(*a, *b));
        }
    }

    /// Takes a node out: with a word to the others, or as if killed, which they notice after a while.
    fn leave(&mut self, peer: PeerId, politely: bool) {
        if politely {
            self.nodes.get_mut(&peer).unwrap().room.leave();
            self.pump();
        }
        let node = self.nodes.remove(&peer).unwrap();
        if !politely {
            for other in node.sessions.clone() {
                if let Some(other) = self.nodes.get_mut(&other) {
                    other.sessions.remove(&peer);
                    other.room.handle_left(self.now, peer, Departure::Lost);
                }
            }
        }
        self.gone.push((node, self.now));
        self.pump();
    }

    fn pump(&mut self) {
        let peers: Vec<_> = self.nodes.keys().copied().collect();
        for peer in peers {
            while let Some(output) = self.nodes.get_mut(&peer).unwrap().room.poll_output(self.now) {
                self.carry_out(peer, output);
            }
        }
    }

    fn carry_out(&mut self, peer: PeerId, output: Output) {
        let delay = Duration::from_millis(self.luck.random_range(5..200));
        let node = self.nodes.get_mut(&peer).unwrap();
        match output.clone() {
            Output::Send { to, message } => {
                let last = self
                    .flying
                    .iter()
                    .filter(|(_, f, t, _)| *f == peer && *t == to)
                    .map(|(at, ..)| *at)
                    .max();
                let at = (self.now + delay).max(last.unwrap_or(self.now));
                self.flying.push((at, peer, to, message));
            }
            Output::Seal(key) => match &mut node.sealer {
                Some(sealer) => sealer.use_key(&key),
                none => *none = Some(Sealer::new(&key)),
            },
            Output::Open { peer: whose, key } => {
                node.openers.entry(whose).or_default().install(self.now, key);
            }
            Output::Forget { peer: whose } => {
                node.openers.remove(&whose);
            }
            Output::Dial { peer: whom, .. } => self.dials.push((self.now + delay, peer, whom)),
            Output::Close { peer: whom } => {
                node.sessions.remove(&whom);
                if let Some(other) = self.nodes.get_mut(&whom) {
                    other.sessions.remove(&peer);
                    let now = self.now;
                    let lost = other.room.members().any(|member| member.peer == peer);
                    if lost && !matches!(other.events.last(), Some(Output::Refused { .. })) {
                        // What is under way to it arrives first, as in a session's goodbye.
                        self.flying.push((now + delay, peer, whom, vec![]));
                    }
                }
                return;
            }
            _ => {}
        }
        if !matches!(output, Output::Send { .. }) {
            self.nodes.get_mut(&peer).unwrap().events.push(output);
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += Duration::from_millis(5);
            let now = self.now;
            let mut due: Vec<_> = self.flying.extract_if(.., |(at, ..)| *at <= now).collect();
            due.sort_by_key(|(at, ..)| *at);
            for (_, from, to, message) in due {
                if let Some(node) = self.nodes.get_mut(&to) {
                    node.room.handle_message(now, from, &message);
                }
            }
            for (_, from, to) in self.dials.extract_if(.., |(at, ..)| *at <= now).collect::<Vec<_>>() {
                self.establish(from, to);
            }
            self.pump();
        }
    }

    /// Everybody speaks: one frame each, kept.
    fn speak(&mut self) -> Vec<usize> {
        let first = self.frames.len();
        for node in self.nodes.values_mut() {
            let mut datagram = Vec::new();
            node.sealer.as_mut().unwrap().seal(b"speech", &mut datagram).unwrap();
            self.frames.push(Frame { from: node.peer, at: self.now, datagram });
        }
        (first..self.frames.len()).collect()
    }

    fn hears(node: &mut Node, frame: &Frame, now: Instant) -> bool {
        let mut out = Vec::new();
        node.openers
            .get_mut(&frame.from)
            .is_some_and(|opener| opener.open(now, &frame.datagram, &mut out).is_ok())
    }

    fn everyone_hears_everyone(&mut self) -> Result<(), String> {
        for at in self.speak() {
            let frame = &self.frames[at];
            for node in self.nodes.values_mut().filter(|node| node.peer != frame.from) {
                if !Self::hears(node, frame, self.now) {
                    return Err(format!(
                        "{} does not hear {}: {:?}",
                        node.peer,
                        frame.from,
                        node.openers.get(&frame.from).map(Opener::stats)
                    ));
                }
            }
        }
        Ok(())
    }
}

fn joined(node: &Node) -> usize {
    node.events.iter().filter(|event| matches!(event, Output::Joined { .. })).count()
}

#[test]
fn a_mesh_forms_from_any_one_member_and_everybody_hears_everybody() {
    for count in 2..=MAX_MEMBERS {
        let mut world = World::new(count as u64);
        for _ in 0..count {
            world.join();
            world.run(Duration::from_millis(100));
        }
        world.run(Duration::from_secs(3));
        for node in world.nodes.values() {
            assert_eq!(node.room.members().count(), count - 1);
            assert_eq!(joined(node), count - 1);
        }
        world.everyone_hears_everyone().unwrap();
    }
}

#[test]
fn an_eleventh_person_is_refused_by_those_it_asks_and_disturbs_nobody() {
    let mut world = World::new(1);
    for _ in 0..MAX_MEMBERS {
        world.join();
        world.run(Duration::from_secs(1));
    }
    world.run(Duration::from_secs(3));
    let late = world.join();
    world.run(Duration::from_secs(2));
    assert!(
        world.nodes[&late]
            .events
            .iter()
            .any(|e| matches!(e, Output::Refused { reason: RoomRefusal::Full, .. }))
    );
    let late = world.nodes.remove(&late).unwrap();
    assert!(late.openers.is_empty(), "nobody gave it a key");
    assert!(world.nodes.values().all(|node| node.room.members().count() == MAX_MEMBERS - 1));
    world.everyone_hears_everyone().unwrap();
}

#[test]
fn whom_a_full_room_turns_away_is_told_so_and_gets_nothing_else() {
    let (now, mut room) = (Instant::now(), Room::new(PeerId::random(), "me", vec![]));
    for _ in 1..MAX_MEMBERS {
        assert!(room.handle_established(now, PeerId::random(), vec![]));
    }
    while room.poll_output(now).is_some() {}
    let late = PeerId::random();
    assert!(!room.handle_established(now, late, vec![]), "the caller must not let it hear us");
    let told: Vec<_> = std::iter::from_fn(|| room.poll_output(now)).collect();
    let refusal = Control::Refused(RoomRefusal::Full).encode();
    assert_eq!(told, [Output::Send { to: late, message: refusal }, Output::Close { peer: late }]);
    assert!(room.members().all(|member| member.peer != late));
}

#[test]
fn who_turns_us_away_is_no_member_of_ours_either() {
    let (now, mut room, other) =
        (Instant::now(), Room::new(PeerId::random(), "me", vec![]), PeerId::random());
    room.handle_established(now, other, vec![]);
    while room.poll_output(now).is_some() {}
    room.handle_message(now, other, &Control::Refused(RoomRefusal::Full).encode());
    let told: Vec<_> = std::iter::from_fn(|| room.poll_output(now)).collect();
    let (forget, refused) =
        (Output::Forget { peer: other }, Output::Refused { peer: other, reason: RoomRefusal::Full });
    assert!(told.contains(&forget) && told.contains(&refused), "{told:?}");
    assert_eq!(room.members().count(), 0);
}

#[test]
fn a_number_of_a_line_fits_what_every_reader_of_json_holds() {
    let (now, mut room, member) =
        (Instant::now(), Room::new(PeerId::random(), "me", vec![]), PeerId::random());
    room.handle_established(now, member, vec![]);
    for _ in 0..1000 {
        assert!(room.say(now, "hi").unwrap() <= MAX_CHAT_ID);
    }
    while room.poll_output(now).is_some() {}
    room.handle_message(
        now,
        member,
        &Control::Chat { id: u64::MAX, text: "hi".into(), place: Place { run: 1, number: 1, first: 1 } }
            .encode(),
    );
    let text = "hi".to_owned();
    assert_eq!(room.poll_output(now), Some(Output::Chat { peer: member, id: MAX_CHAT_ID, text }));
}

#[test]
fn a_restarted_member_gets_keys_again_and_is_not_announced_as_a_second_person() {
    let mut world = World::new(2);
    let (ana, ben) = (world.join(), world.join());
    world.run(Duration::from_secs(2));
    let room = Room::new(ben, "Ben again", vec![]);
    let fresh = Node {
        peer: ben,
        room,
        sealer: None,
        openers: BTreeMap::new(),
        sessions: BTreeSet::new(),
        events: vec![],
    };
    world.nodes.insert(ben, fresh);
    world.nodes.get_mut(&ana).unwrap().sessions.clear();
    world.pump();
    world.establish(ana, ben);
    world.run(Duration::from_secs(2));
    assert_eq!(joined(&world.nodes[&ana]), 1);
    assert!(world.nodes[&ana].events.contains(&Output::Renamed { peer: ben, name: "Ben again".into() }));
    world.everyone_hears_everyone().unwrap();
}

#[test]
fn chat_is_cleaned_and_a_flood_of_it_is_cut() {
    let mut world = World::new(3);
    let (ana, ben) = (world.join(), world.join());
    world.run(Duration::from_secs(1));
    let now = world.now;
    let id = world.nodes.get_mut(&ana).unwrap().room.say(now, "hi\u{1b}[2J\nthere").unwrap();
    world.pump();
    world.run(Duration::from_secs(1));
    assert!(world.nodes[&ben].events.contains(&Output::Chat { peer: ana, id, text: "hi[2J there".into() }));
    for n in 0..100_000 {
        let place = Place { run: 9, number: n + 1, first: 1 };
        let message = Control::Chat { id: n, text: "spam".into(), place }.encode();
        let now = world.now;
        world.nodes.get_mut(&ben).unwrap().room.handle_message(now, ana, &message);
    }
    world.pump();
    let lines = world.nodes[&ben].events.iter().filter(|e| matches!(e, Output::Chat { .. })).count();
    assert!(lines <= MAX_TALK as usize + 1, "{lines}");
    let long = "x".repeat(MAX_CHAT_BYTES + 1);
    let said = world.nodes.get_mut(&ana).unwrap().room.say(now, &long);
    assert_eq!(said, Err(ChatError::TooLong { length: MAX_CHAT_BYTES + 1 }));
}

#[test]
fn a_member_that_changes_its_key_without_end_is_not_followed() {
    let (now, mut room, member) =
        (Instant::now(), Room::new(PeerId::random(), "me", vec![]), PeerId::random());
    room.handle_established(now, member, vec![]);
    let mut key = crate::session::keys::OwnKey::random();
    for _ in 0..1000 {
        key.renew();
        room.handle_message(now, member, &Control::Key(key.export()).encode());
    }
    let taken =
        std::iter::from_fn(|| room.poll_output(now)).filter(|o| matches!(o, Output::Open { .. })).count();
    assert_eq!(taken, MAX_KEY_CHANGES as usize);
}

#[test]
fn a_member_that_names_victims_makes_us_dial_each_three_times_at_most() {
    let (now, mut room, member) =
        (Instant::now(), Room::new(PeerId::random(), "me", vec![]), PeerId::random());
    room.handle_established(now, member, vec![]);
    let victim = Listed { peer: PeerId::random(), addresses: vec!["/ip4/192.0.2.9/udp/53".parse().unwrap()] };
    for _ in 0..1000 {
        room.handle_message(now, member, &Control::Members(vec![victim.clone()]).encode());
        let strangers = (0..10).map(|_| Listed { peer: PeerId::random(), addresses: vec![] }).collect();
        room.handle_message(now, member, &Control::Members(strangers).encode());
    }
    let dials: Vec<_> = std::iter::from_fn(|| room.poll_output(now))
        .filter_map(|output| match output {
            Output::Dial { peer, by, .. } => {
                assert_eq!(by, member, "the name of who said so goes with it");
                Some(peer)
            }
            _ => None,
        })
        .collect();
    assert_eq!(dials.iter().filter(|peer| **peer == victim.peer).count(), MAX_DIALS as usize);
    assert!(dials.len() <= MAX_DIALLED + MAX_DIALS as usize);
}

#[test]
fn strangers_and_malformed_messages_change_nothing() {
    let (now, mut room, stranger) =
        (Instant::now(), Room::new(PeerId::random(), "me", vec![]), PeerId::random());
    while room.poll_output(now).is_some() {}
    for message in
        [Control::Leave.encode(), Control::KeyAck { kid: 1 }.encode(), vec![], vec![0, 1], vec![9, 9]]
    {
        room.handle_message(now, stranger, &message);
    }
    assert_eq!((room.poll_output(now), room.ignored()), (None, 5));
}

#[test]
fn a_polite_leaver_is_gone_at_once_and_its_session_is_closed() {
    let mut world = World::new(4);
    let (ana, ben) = (world.join(), world.join());
    world.run(Duration::from_secs(1));
    world.leave(ben, true);
    world.run(Duration::from_millis(300));
    let left = Output::Left { peer: ben, departure: Departure::Left };
    let events = &world.nodes[&ana].events;
    assert!(events.contains(&left) && events.contains(&Output::Forget { peer: ben }));
    assert!(!world.nodes[&ana].sessions.contains(&ben));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_is_there_hears_all_who_left_nothing_later_and_who_came_nothing_earlier(
        seed in any::<u64>(),
        steps in proptest::collection::vec((0u8..10, 0u64..1500), 4..24),
    ) {
        let mut world = World::new(seed);
        world.join();
        world.join();
        let mut arrivals: Vec<(PeerId, Instant)> = Vec::new();
        for (step, pause) in steps {
            // Somebody comes or goes while all talk.
            world.speak();
            let crowd = world.nodes.len();
            if crowd < 2 || (step < 6 && crowd < MAX_MEMBERS) {
                // A pause long enough that the frames before count as earlier for everybody's media thread.
                let at = world.now;
                world.run(Duration::from_millis(5));
                let peer = world.join();
                arrivals.push((peer, at));
            } else if let Some(peer) = world.some_member() {
                world.leave(peer, step % 2 == 0);
            }
            for _ in 0..pause / 50 {
                world.run(Duration::from_millis(50));
                world.speak();
            }
        }
        world.run(Duration::from_secs(1));
        world.rendezvous();
        world.run(Duration::from_secs(4));
        let result = world.everyone_hears_everyone();
        prop_assert!(result.is_ok(), "{result:?}");

        let now = world.now;
        // The leaver heard what was to be heard; the others knew of it within the 200 ms of a message.
        for (mut node, left) in std::mem::take(&mut world.gone) {
            let end = left + Duration::from_millis(200) + SWITCH_AFTER + Duration::from_millis(10);
            let leaver = node.peer;
            for frame in world.frames.iter().filter(|frame| frame.at > end && frame.from != leaver) {
                prop_assert!(!World::hears(&mut node, frame, left), "a leaver reads on");
            }
        }
        for (peer, at) in arrivals {
            let Some(node) = world.nodes.get_mut(&peer) else { continue };
            for frame in world.frames.iter().filter(|frame| frame.at <= at) {
                let mut out = Vec::new();
                if let Some(opener) = node.openers.get_mut(&frame.from) {
                    let result = opener.open(now, &frame.datagram, &mut out);
                    prop_assert!(matches!(result, Err(OpenError::UnknownKey { .. })), "the past is read: {result:?}");
                }
            }
        }
    }
}

/// What a lone room sends to one peer, as messages.
fn sent_to(room: &mut Room, now: Instant, peer: PeerId) -> Vec<Control> {
    let mut sent = Vec::new();
    while let Some(output) = room.poll_output(now) {
        if let Output::Send { to, message } = output
            && to == peer
        {
            sent.extend(Control::decode(&message).unwrap());
        }
    }
    sent
}

fn lines(sent: &[Control]) -> Vec<(u64, String)> {
    let line = |control: &Control| match control {
        Control::Chat { text, place, .. } => Some((place.number, text.clone())),
        _ => None,
    };
    sent.iter().filter_map(line).collect()
}

#[test]
fn a_line_waits_for_a_member_that_was_lost_and_not_for_one_that_left_or_comes_later() {
    let (now, me) = (Instant::now(), PeerId::random());
    let [lost, left, later] = [PeerId::random(), PeerId::random(), PeerId::random()];
    let mut room = Room::new(me, "me", vec![]);
    room.handle_established(now, lost, vec![]);
    room.handle_established(now, left, vec![]);
    room.say(now, "one").unwrap();
    assert_eq!(lines(&sent_to(&mut room, now, lost)), [(1, "one".to_owned())]);
    room.handle_left(now, lost, Departure::Lost);
    room.handle_message(now, left, &Control::Leave.encode());
    room.say(now, "two").unwrap();
    assert_eq!(lines(&sent_to(&mut room, now, lost)), [], "there is no session to say it in");
    for peer in [later, left, lost] {
        room.handle_established(now, peer, vec![]);
        let wanted = if peer == lost { vec![(1, "one".to_owned()), (2, "two".to_owned())] } else { vec![] };
        assert_eq!(lines(&sent_to(&mut room, now, peer)), wanted);
    }
    // Half an hour is too long.
    room.handle_left(now, lost, Departure::Lost);
    room.say(now + WAIT_FOR_THE_LOST, "three").unwrap();
    room.handle_established(now + WAIT_FOR_THE_LOST, lost, vec![]);
    assert_eq!(lines(&sent_to(&mut room, now + WAIT_FOR_THE_LOST, lost)), []);
}

#[test]
fn people_who_come_and_vanish_for_ever_do_not_pile_up() {
    let (mut now, mut room) = (Instant::now(), Room::new(PeerId::random(), "me", vec![]));
    for _ in 0..500 {
        let peer = PeerId::random();
        room.handle_established(now, peer, vec![]);
        room.say(now, "hello").unwrap();
        while room.poll_output(now).is_some() {}
        room.handle_left(now, peer, Departure::Lost);
        now += Duration::from_secs(1);
    }
    assert!(room.mail.len() <= MAX_AWAY + 1, "{}", room.mail.len());
}

#[test]
fn after_its_time_a_room_takes_those_who_were_in_and_nobody_new() {
    let (now, member, late) = (Instant::now(), PeerId::random(), PeerId::random());
    let closes = Some(now + Duration::from_secs(60));
    let mut room = Room::new(PeerId::random(), "me", vec![]).with_terms(Terms { closes, host: None });
    assert!(room.handle_established(now, member, vec![]));
    let after = now + Duration::from_secs(60);
    assert!(!room.handle_established(after, late, vec![]));
    assert!(sent_to(&mut room, after, late).contains(&Control::Refused(RoomRefusal::Closed)));
    room.handle_left(after, member, Departure::Lost);
    assert!(room.handle_established(after, member, vec![]), "it was in");
    assert_eq!(room.members().count(), 1);
}

#[test]
fn a_room_for_one_guest_takes_the_first_and_the_guest_takes_nobody_but_the_host() {
    let (now, host) = (Instant::now(), PeerId::random());
    let [guest, thief] = [PeerId::random(), PeerId::random()];
    let terms = Terms { closes: None, host: Some(host) };
    let mut at_host = Room::new(host, "host", vec![]).with_terms(terms);
    let mut at_guest = Room::new(guest, "guest", vec![]).with_terms(terms);
    assert!(!at_guest.handle_established(now, thief, vec![]), "a thief cannot play the host");
    assert!(at_guest.handle_established(now, host, vec![]));
    assert!(at_host.handle_established(now, guest, vec![]));
    assert!(!at_host.handle_established(now, thief, vec![]));
    assert!(sent_to(&mut at_host, now, thief).contains(&Control::Refused(RoomRefusal::Used)));
    at_host.handle_left(now, guest, Departure::Left);
    assert!(!at_host.handle_established(now, thief, vec![]), "used is used");
    assert!(at_host.handle_established(now, guest, vec![]));
}

#[test]
fn members_see_the_same_words_and_new_ones_in_each_session() {
    let mut world = World::new(5);
    let (ana, ben, cem) = (world.join(), world.join(), world.join());
    world.run(Duration::from_secs(2));
    let words = |world: &World, a: PeerId, b: PeerId| world.nodes[&a].room.words(&b).expect("words");
    let before = words(&world, ana, ben);
    assert_eq!(before, words(&world, ben, ana));
    assert_eq!(words(&world, ana, cem), words(&world, cem, ana));
    assert_ne!(before, words(&world, ana, cem));
    assert!(world.nodes[&ana].events.contains(&Output::Words { peer: ben, words: before }));
}
