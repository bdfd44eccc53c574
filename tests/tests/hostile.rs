//! Strangers and members who mean no good, against whole programs: the call goes on, memory stays, nothing raw is printed.

// All of this file is test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hallway::invite::Invite;
use hallway::room::control::{CONTROL_VERSION, Control, Hello, Listed};
use hallway_tests::Hall;
use hallway_tests::hall::{NodeArgs, file, quic};
use hallway_tests::process::{Process, SOON, run};
use hallway_tests::sound;
use hallway_tests::stranger::{Stranger, first_packet, garbage, pelt, variations};
use libp2p::{Multiaddr, PeerId};
use tokio::time::timeout;

/// A stranger that proves nothing is turned out after this time, a slow machine granted.
const TURNED_OUT_WITHIN: Duration = Duration::from_secs(15 + 10);
/// Memory that an attack may cost.
const MOST_GROWTH_KB: u64 = 20 * 1024;

/// Two people with speech in a private room, and a third with the plain interface.
struct Call {
    hall: Hall,
    invite: Invite,
    ana: Process,
    ben: Process,
    plain: Process,
    before_kb: Option<u64>,
}

impl Call {
    fn start() -> Call {
        let hall = Hall::open();
        let text = run(hall.dir.path(), ["invite", "kitchen"], &[]).out;
        let mut nodes = (40..).zip(["ana", "ben"]).map(|(seed, name)| {
            let said = hall.path(&format!("{name}.wav"));
            sound::write_speech(&said, seed, 60.0);
            let args = NodeArgs { input: file(&said), ..NodeArgs::default() };
            hall.node(text.trim(), name, args.with(&["--input-start", "first-peer"]))
        });
        let (ana, ben) = (nodes.next().unwrap(), nodes.next().unwrap());
        drop(nodes);
        let home = hall.path("home-plain").display().to_string();
        let args = ["join", text.trim(), "--name", "plain", "--data-dir", &home, "--at", &hall.at];
        let sound = ["--input", "silence", "--output", "null", "--listen", hallway_tests::hall::QUIC4];
        let plain = Process::start(hall.dir.path(), "plain", args.iter().chain(&sound), &[]);
        ana.wait_hearing(&ben.peer_id());
        ben.wait_hearing(&ana.peer_id());
        ana.wait("three in the room", SOON, |event| event["event"] == "peer" && event["name"] == "plain");
        let first = ana.wait_hearing(&ben.peer_id())["at_ns"].as_u64().unwrap();
        ana.wait("a call that runs", SOON, |event| {
            event["event"] == "stats" && event["at_ns"].as_u64().unwrap() > first + 2_000_000_000
        });
        let before_kb = ana.rss_kb();
        Call { hall, invite: text.trim().parse().unwrap(), ana, ben, plain, before_kb }
    }

    fn victim(&self) -> (String, PeerId) {
        (self.ana.listen()[0].clone(), self.ana.peer_id().parse().unwrap())
    }

    /// Nobody noticed anything.
    fn leave_unhurt(mut self) {
        if let (Some(before), Some(after)) = (self.before_kb, self.ana.rss_kb()) {
            println!("memory: {before} KiB before, {after} KiB after");
            assert!(after < before + MOST_GROWTH_KB, "memory grew from {before} to {after} KiB");
        }
        for node in [&mut self.ana, &mut self.ben, &mut self.plain] {
            assert!(node.is_running(), "{}", node.story());
            node.leave();
        }
        let ben = self.ben.peer_id();
        let summary = self.ana.wait_named("summary");
        let peers = summary["peers"].as_array().unwrap();
        let total = peers.iter().find(|peer| peer["peer_id"] == ben.as_str()).expect("ben");
        assert!(total["loss_pct"].as_f64().unwrap() < 2.0, "{total}");
        assert!(total["concealed_pct"].as_f64().unwrap() < 3.0, "{total}");
        let states = self.ana.named("peer").into_iter().filter(|event| event["peer_id"] == ben.as_str());
        let states: Vec<_> = states.map(|event| event["state"].as_str().unwrap().to_owned()).collect();
        assert!(!states.contains(&"reconnecting".to_owned()), "{states:?}");
        assert_eq!(states.iter().filter(|state| *state == "connected").count(), 1, "{states:?}");

        for node in [&self.ana, &self.ben] {
            let out = node.stdout();
            for line in out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let event: serde_json::Value = serde_json::from_slice(line).expect("nothing but JSON");
                is_clean(&event, &node.name);
            }
        }
        let lines = String::from_utf8(self.plain.stdout()).expect("text");
        assert!(lines.lines().count() > 3, "{lines}");
        for line in lines.lines() {
            assert!(!line.chars().any(unprintable), "plain lines: {line:?}");
        }
        for node in [&self.ana, &self.ben, &self.plain] {
            assert!(!node.stderr().chars().any(|c| c != '\n' && unprintable(c)), "{:?}", node.stderr());
        }
        drop(self.hall);
    }
}

/// What could command a terminal or hide text: controls, and marks of direction and format.
fn unprintable(c: char) -> bool {
    let hides = ['\u{ad}', '\u{61c}', '\u{feff}'].contains(&c);
    let formats = ('\u{200b}'..='\u{200f}').contains(&c) || ('\u{2028}'..='\u{202e}').contains(&c);
    c.is_control() || hides || formats || ('\u{2060}'..='\u{206f}').contains(&c)
}

/// No text anywhere in an event could command a terminal.
fn is_clean(value: &serde_json::Value, who: &str) {
    match value {
        serde_json::Value::String(text) => assert!(!text.chars().any(unprintable), "{who}: {text:?}"),
        serde_json::Value::Array(all) => all.iter().for_each(|value| is_clean(value, who)),
        serde_json::Value::Object(all) => all.values().for_each(|value| is_clean(value, who)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_with_garbage_of_every_kind_do_not_hurt_a_call() {
    let call = tokio::task::spawn_blocking(Call::start).await.unwrap();
    let (addr, ana) = call.victim();
    let other_secret = Invite::generate("kitchen".parse().unwrap(), Vec::new());
    let other_room = Invite::generate("cellar".parse().unwrap(), Vec::new());
    let no_secret = Invite::open("kitchen".parse().unwrap());
    let mut sent = 0;
    let mut held = Vec::new();
    for (seed, room) in (0..).zip([&other_secret, &other_room, &no_secret]) {
        let mut stranger = Stranger::new();
        let connection = stranger.dial(&addr).await;
        let hello = stranger.hello(room, ana);
        sent += pelt(&connection, garbage(seed, 3000)).await;
        sent += pelt(&connection, variations(seed, &hello)).await;
        held.push((stranger, connection));
    }
    // Streams full of garbage: more than may be open, more than fits, half said and left standing.
    let (_, connection) = &held[0];
    let mut streams = Vec::new();
    for i in 0..100u8 {
        let opened = timeout(Duration::from_millis(50), connection.open_bi()).await;
        let Ok(Ok((mut send, receive))) = opened else { break };
        let _ = timeout(Duration::from_millis(100), send.write_all(&vec![i; 200_000])).await;
        streams.push((send, receive));
    }
    println!("{sent} datagrams, {} streams", streams.len());
    assert!(sent > 9000 && streams.len() > 10);
    let one_way = timeout(Duration::from_secs(1), connection.open_uni()).await;
    assert!(one_way.is_err() || one_way.is_ok_and(|opened| opened.is_err()), "no one-way streams");
    // A crowd that comes and goes.
    let mut crowd = Vec::new();
    for seed in 0..20 {
        let mut stranger = Stranger::new();
        let connection = stranger.dial(&addr).await;
        pelt(&connection, garbage(100 + seed, 40)).await;
        crowd.push((stranger, connection));
    }
    drop(crowd);
    tokio::time::sleep(Duration::from_secs(1)).await;
    tokio::task::spawn_blocking(move || call.leave_unhurt()).await.unwrap();
}

/// Commands to a terminal, text that runs backwards, and what only looks like nothing.
const HOSTILE_NAME: &str = "\u{1b}]52;c;aGFsbHdheQ==\u{7}\u{1b}[2J\u{9b}31m\u{202e}\u{200b}eve\r\n{\"event\":\"summary\"}\u{0}\u{2028}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_who_means_no_good_hurts_nobody_but_himself() {
    let call = tokio::task::spawn_blocking(Call::start).await.unwrap();
    // Somewhere that a liar would like the others to call.
    let third_party = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let there: Multiaddr = quic(third_party.local_addr().unwrap()).parse().unwrap();
    let mut eve = Stranger::new();
    let mut members = Vec::new();
    for node in [&call.ana, &call.ben] {
        let (addr, id) = (node.listen()[0].clone(), node.peer_id().parse().unwrap());
        let connection = eve.dial(&addr).await;
        members.push(eve.join(connection, &call.invite, id).await);
    }
    for member in &mut members {
        let hello = |name: &str| {
            let hello =
                Hello { version: CONTROL_VERSION, features: u64::MAX, name: name.into(), addresses: vec![] };
            Control::Hello(hello).encode()
        };
        member.say(hello(HOSTILE_NAME));
        let place = hallway::room::chat::Place { run: 1, number: 1, first: 1 };
        member.say(Control::Chat { id: 7, text: HOSTILE_NAME.repeat(20), place }.encode());
        let listed = (0..16).map(|_| Listed { peer: PeerId::random(), addresses: vec![there.clone()] });
        member.say(Control::Members(listed.collect()).encode());
        member.listen(Duration::from_millis(300)).await;
        for (i, noise) in garbage(7, 60).into_iter().enumerate() {
            // Every kind of message that there is, and some that there are not, with nonsense in it.
            let kind = u16::try_from(i % 24).unwrap().to_be_bytes();
            // A room's own goodbye and refusal would only end his own session.
            if ![5, 6].contains(&kind[1]) {
                member.say([&kind[..], &noise].concat());
            }
            member.listen(Duration::from_millis(5)).await;
        }
        for i in 0..40 {
            member.say(hello(&format!("{i}{HOSTILE_NAME}")));
        }
        member.listen(Duration::from_millis(500)).await;
        // What was said once is said again, changed and cut; and sound that no key opens.
        let sent: Vec<Vec<u8>> = member.sent.clone();
        for (seed, datagram) in (0..).zip(sent.iter().take(6)) {
            pelt(&member.connection, variations(seed, datagram)).await;
        }
        pelt(&member.connection, sent).await;
        let media = garbage(9, 4000).into_iter().filter(|datagram| datagram.first() == Some(&0x01));
        pelt(&member.connection, media.cycle().take(4000)).await;
        member.listen(Duration::from_millis(300)).await;
    }
    let eve_id = eve.peer_id().to_string();
    let seen = call.ana.wait_peer(&eve_id, "connected");
    assert!(seen["name"].as_str().unwrap().contains("eve"), "{seen}");
    let chat = call.ana.wait_named("chat");
    assert!(chat["text"].as_str().unwrap().contains("eve"), "{chat}");
    call.ana.wait_peer(&eve_id, "connected");

    // On a liar's word an address is called a few times at most, by each who believes him.
    let mut calls: HashMap<SocketAddr, HashSet<Vec<u8>>> = HashMap::new();
    let mut packet = [0; 2048];
    while let Ok((length, from)) = third_party.try_recv_from(&mut packet) {
        let call = first_packet(&packet[..length]).expect("nothing but handshakes comes here");
        calls.entry(from).or_default().insert(call);
    }
    println!("calls to the third party: {:?}", calls.values().map(HashSet::len).collect::<Vec<_>>());
    assert!(!calls.is_empty(), "the lie was believed");
    for (from, handshakes) in &calls {
        assert!(handshakes.len() <= 3, "{} calls from {from}", handshakes.len());
    }
    tokio::task::spawn_blocking(move || call.leave_unhurt()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_never_speak_or_only_babble_are_turned_out() {
    let hall = Hall::open();
    let args = NodeArgs { input: "tone:440".into(), ..NodeArgs::default() };
    let mut ana = hall.node("kitchen", "ana", args);
    let addr = ana.listen()[0].clone();
    let [mut silent, mut babbling] = [Stranger::new(), Stranger::new()];
    let connections = [silent.dial(&addr).await, babbling.dial(&addr).await];
    let babble = connections[1].clone();
    let babbler = tokio::spawn(async move {
        for seed in 0.. {
            pelt(&babble, garbage(seed, 10)).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let came = Instant::now();
    for connection in connections {
        let closed = timeout(TURNED_OUT_WITHIN, connection.closed()).await;
        println!("{closed:?} after {:?}", came.elapsed());
        assert!(
            matches!(closed, Ok(quinn::ConnectionError::ApplicationClosed(_))),
            "still there after {:?}: {closed:?}",
            came.elapsed()
        );
    }
    babbler.abort();
    assert!(ana.named("peer").is_empty(), "strangers are no news: {}", ana.story());
    ana.leave();
}
