//! What goes wrong around a call, and what people then hear and read.

// All of this file is test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use hallway_tests::Hall;
use hallway_tests::hall::{self, NodeArgs, file};
use hallway_tests::process::{Process, SOON};
use hallway_tests::sound::{self, Recording};
use rustix::process::Signal;
use serde_json::Value;

/// A node that lost its server registers again by itself this long after the server is back.
const BACK_WITHIN: Duration = Duration::from_secs(15);
/// Who is gone without a word is known to be gone after this time.
const MISSED_WITHIN: Duration = Duration::from_secs(15);
/// What a busy machine may add to either.
const BUSY: Duration = Duration::from_secs(5);

fn at_ns(event: &Value) -> u64 {
    event["at_ns"].as_u64().expect("a moment")
}

fn wait_rendezvous(node: &Process, mark: usize, state: &str, within: Duration) -> Value {
    node.wait_after(mark, &format!("rendezvous {state}"), within, |event| {
        event["event"] == "rendezvous" && event["state"] == state
    })
}

/// Every `stats` event about this peer after a moment.
fn figures(node: &Process, peer_id: &str, after_ns: u64) -> Vec<Value> {
    let mut stats = node.named("stats");
    stats.retain(|event| event["peer_id"] == peer_id && at_ns(event) > after_ns);
    stats
}

fn worst(stats: &[Value], figure: &str) -> f64 {
    stats.iter().filter_map(|event| event[figure].as_f64()).fold(0.0, f64::max)
}

#[test]
fn a_call_goes_on_without_its_server_and_both_register_again_when_it_is_back() {
    let mut hall = Hall::open();
    let names = ["ana", "ben"];
    let said = |name: &str| hall.path(&format!("{name}.wav"));
    let heard = |name: &str| hall.path(&format!("{name}-heard.wav"));
    let [saids, heards] = [names.map(said), names.map(heard)];
    let mut nodes: Vec<Process> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        sound::write_speech(&saids[i], 30 + i as u64, 90.0);
        let args = NodeArgs { input: file(&saids[i]), output: file(&heards[i]), ..NodeArgs::default() };
        nodes.push(hall.node("kitchen", name, args.with(&["--input-start", "first-peer"])));
    }
    nodes[0].wait_hearing(&nodes[1].peer_id());
    nodes[1].wait_hearing(&nodes[0].peer_id());
    for node in &nodes {
        wait_rendezvous(node, 0, "registered", SOON);
    }
    let marks: Vec<usize> = nodes.iter().map(Process::mark).collect();

    hall.server.kill();
    for (node, mark) in nodes.iter().zip(&marks) {
        wait_rendezvous(node, *mark, "lost", SOON);
    }
    let marks: Vec<usize> = nodes.iter().map(Process::mark).collect();
    hall.reopen();
    let back = Instant::now();
    for (node, mark) in nodes.iter().zip(&marks) {
        wait_rendezvous(node, *mark, "registered", BACK_WITHIN + BUSY);
        println!("{} registered again {:?} after the server was back", node.name, back.elapsed());
    }
    // A newcomer finds both at the new server.
    let mut cem = hall.node("kitchen", "cem", NodeArgs::default());
    for node in &nodes {
        cem.wait_peer(&node.peer_id(), "connected");
    }
    cem.leave();
    nodes.iter_mut().for_each(Process::leave);

    for (me, other) in [(0, 1), (1, 0)] {
        let (me, other) = (&nodes[me], &nodes[other]);
        let states = me.named("peer").into_iter().filter(|e| e["peer_id"] == other.peer_id().as_str());
        let states: Vec<Value> = states.map(|event| event["state"].clone()).collect();
        assert!(!states.contains(&"reconnecting".into()), "{states:?}");
        assert_eq!(states.iter().filter(|state| *state == "connected").count(), 1, "{states:?}");
        let summary = me.wait_named("summary");
        let peers = summary["peers"].as_array().unwrap();
        let total = peers.iter().find(|peer| peer["peer_id"] == other.peer_id().as_str()).expect("the other");
        assert_eq!(total["loss_pct"].as_f64(), Some(0.0), "no frame was lost: {total}");
    }
}

#[test]
fn a_server_that_is_not_there_is_waited_for_and_said_so() {
    let dir = tempfile::tempdir().unwrap();
    // A port where nobody answers, and one that refuses at once.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent_at = hall::quic(silent.local_addr().unwrap());
    let refusing_port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let refusing_at = format!("/ip4/127.0.0.1/tcp/{refusing_port}");
    let node =
        |name: &str, more: &[&str]| hall::node(dir.path(), "kitchen", name, NodeArgs::default().with(more));
    let mut silence = node("silence", &["--at", &silent_at]);
    let mut refusal = node("refusal", &["--at", &refusing_at]);
    let mut hurried = node("hurried", &["--at", &silent_at, "--require-peer", "--timeout", "2s"]);

    assert_eq!(hurried.wait_exit(SOON), Some(3), "{}", hurried.story());
    let said = hurried.last_words();
    assert!(said.contains("nobody came within 2s") && said.contains("--at"), "{said}");
    assert_eq!(hurried.events().last().unwrap()["event"], "summary");

    for (waiting, at) in [(&mut silence, &silent_at), (&mut refusal, &refusing_at)] {
        let warning = waiting.wait_named("warning");
        assert_eq!(warning["code"], "rendezvous_lost");
        assert!(warning["message"].as_str().unwrap().contains(at.as_str()), "{warning}");
        assert!(warning["hint"].as_str().unwrap().contains("tries again"), "{warning}");
        assert!(waiting.is_running(), "a node waits");
        waiting.leave();
    }
}

#[test]
fn a_node_that_came_before_its_server_finds_it_by_itself() {
    let mut hall = Hall::listening(hall::TCP4);
    hall.server.leave();
    let mut ana = hall.node("kitchen", "ana", NodeArgs::default());
    wait_rendezvous(&ana, 0, "lost", SOON);
    hall.reopen();
    wait_rendezvous(&ana, 0, "registered", SOON);
    ana.leave();
}

#[test]
fn a_server_that_is_not_the_one_named_is_told_apart() {
    let hall = Hall::open();
    let (place, _) = hall.at.split_once("/p2p/").unwrap();
    let expected = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
    let false_at = format!("{place}/p2p/{expected}");
    let args = NodeArgs::default().with(&["--at", &false_at]);
    let mut ana = hall::node(hall.dir.path(), "kitchen", "ana", args);
    let warning = ana.wait_named("warning");
    let message = warning["message"].as_str().unwrap();
    assert!(message.contains(expected) && message.contains(&hall.server.peer_id()), "{message}");
    ana.leave();
    assert!(hall.server.named("registered").is_empty(), "nothing was told to the wrong server");
}

#[test]
fn whoever_is_asked_to_go_says_goodbye_and_finishes_the_recording() {
    let hall = Hall::open();
    let heard = |name: &str| hall.path(&format!("{name}-heard.wav"));
    let start = |name: &str, hz: u32| hall.node("kitchen", name, NodeArgs::humming(hz, &heard(name)));
    let mut ana = start("ana", 440);
    let mut others = [start("ben", 500), start("cem", 560), start("dia", 620)];
    for other in &others {
        ana.wait_hearing(&other.peer_id());
        other.wait_hearing(&ana.peer_id());
    }
    for (other, signal) in others.iter_mut().zip([Signal::TERM, Signal::INT, Signal::HUP]) {
        let id = other.peer_id();
        let asked = Instant::now();
        other.signal(signal);
        assert_eq!(other.wait_exit(SOON), Some(0), "{signal:?}: {}", other.story());
        let took = asked.elapsed();
        let left = ana.wait_peer_after(0, &id, "left", Duration::from_secs(10));
        let told = asked.elapsed();
        println!("{signal:?}: gone after {took:?}, known to be after {told:?}");
        assert!(took < Duration::from_secs(2) + BUSY / 5, "{signal:?} took {took:?}");
        assert!(told < Duration::from_secs(3) + BUSY / 5, "{signal:?} was told after {told:?}");
        assert_eq!(left["reason"], "said goodbye");
        assert_eq!(other.events().last().unwrap()["event"], "summary");
        let recording = Recording::of(other, &heard(&other.name));
        let played = (at_ns(&other.wait_named("summary")) - recording.started_ns) as f64 * 1e-9;
        assert!((recording.seconds() - played).abs() < 0.7, "{} s of {played} s", recording.seconds());
    }
    ana.leave();
}

#[test]
fn neither_one_who_is_killed_nor_one_who_is_stopped_hurts_the_others() {
    let hall = Hall::open();
    let hum = |hz: u32| NodeArgs { input: format!("tone:{hz}"), ..NodeArgs::default() };
    let mut ana = hall.node("kitchen", "ana", hum(440));
    let mut ben = hall.node("kitchen", "ben", hum(500));
    let mut killed = hall.node("kitchen", "killed", hum(560));
    let stopped = hall.node("kitchen", "stopped", hum(620));
    let everybody = [&ana, &ben, &killed, &stopped].map(Process::peer_id);
    for node in [&ana, &ben, &killed, &stopped] {
        for id in everybody.iter().filter(|id| **id != node.peer_id()) {
            node.wait_hearing(id);
        }
    }
    let mark_ns = newest(&ana);
    let rss_before = ana.rss_kb();
    stopped.signal(Signal::STOP);
    killed.kill();
    let gone = Instant::now();
    for node in [&ana, &ben] {
        for id in [&everybody[2], &everybody[3]] {
            let left = node.wait_peer_after(0, id, "left", MISSED_WITHIN + BUSY);
            println!("{}: {} left after {:?}", node.name, left["name"], gone.elapsed());
            assert_eq!(left["reason"], "connection lost");
        }
    }
    for (me, other) in [(&ana, &ben), (&ben, &ana)] {
        let stats = figures(me, &other.peer_id(), mark_ns + 500_000_000);
        assert!(stats.len() >= 5, "figures go on: {}", stats.len());
        assert!(worst(&stats, "loss_pct") < 5.0, "{}", worst(&stats, "loss_pct"));
        let concealed: f64 = stats.iter().filter_map(|event| event["concealed_pct"].as_f64()).sum();
        assert!(concealed / (stats.len() as f64) < 2.0, "{concealed} over {} seconds", stats.len());
    }
    if let (Some(before), Some(after)) = (rss_before, ana.rss_kb()) {
        assert!(after < before + 20 * 1024, "memory grew from {before} to {after} KiB");
    }
    // The stopped one wakes, and finds its way back by itself.
    let mark = ana.mark();
    stopped.signal(Signal::CONT);
    ana.wait_peer_after(mark, &everybody[3], "connected", SOON + BACK_WITHIN);
    ana.leave();
    ben.leave();
}

fn newest(node: &Process) -> u64 {
    node.events().iter().map(at_ns).max().unwrap_or_default()
}

#[test]
fn a_call_outlives_the_reader_of_its_events() {
    let hall = Hall::open();
    let mut ben = hall.node("kitchen", "ben", NodeArgs { input: "tone:500".into(), ..NodeArgs::default() });
    // As when the script that read the events has died.
    let home = hall.path("home-deaf").display().to_string();
    let args = ["join", "kitchen", "--name", "deaf", "--json", "--data-dir", &home, "--at", &hall.at];
    let sound = ["--input", "tone:440", "--output", "null", "--listen", hall::QUIC4];
    let mut deaf = Process::start_without_reader(hall.dir.path(), "deaf", args.iter().chain(&sound));
    let connected =
        ben.wait("somebody", SOON, |event| event["event"] == "peer" && event["state"] == "connected");
    let id = connected["peer_id"].as_str().unwrap().to_owned();
    let first = at_ns(&ben.wait_hearing(&id));
    ben.wait("three seconds of it", SOON, |event| {
        event["event"] == "stats" && at_ns(event) > first + 3_000_000_000
    });
    assert!(deaf.is_running(), "{}", deaf.story());
    deaf.leave();
    ben.leave();
}
