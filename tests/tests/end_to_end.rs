//! Two people, one rendezvous server, real programs: what they hear and what they are told.

// All of this file is test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::path::Path;
use std::time::Duration;

use hallway_tests::hall::{self, NodeArgs, QUIC4, QUIC6, TCP4, file};
use hallway_tests::process::{Process, SOON, run};
use hallway_tests::sound::{self, Recording, amplitude};
use hallway_tests::{Hall, skipped};
use serde_json::Value;

/// What every `stats` event has; a figure may be null, a name may not be missing.
const STATS: [&str; 18] = [
    "path",
    "rtt_ms",
    "one_way_ms",
    "jitter_ms",
    "loss_pct",
    "recovered_pct",
    "concealed_pct",
    "late_pct",
    "target_delay_ms",
    "buffer_ms",
    "mouth_to_ear_ms",
    "mouth_to_ear_stages_ms",
    "drift_ppm",
    "send_kbps",
    "recv_kbps",
    "frame_ms",
    "level_dbov",
    "at_ns",
];
const STAGES: [&str; 7] = ["capture", "encode", "send", "network", "jitter_buffer", "decode", "playback"];

#[test]
fn two_people_hear_each_other_and_are_told_so_in_the_words_of_the_contract() {
    let hall = Hall::open();
    let names = ["ana", "ben"];
    let said = |name: &str| hall.path(&format!("{name}.wav"));
    let heard = |name: &str| hall.path(&format!("{name}-heard.wav"));
    let mut nodes: Vec<Process> = (1..)
        .zip(names)
        .map(|(seed, name)| {
            sound::write_speech(&said(name), seed, 4.0);
            let args =
                NodeArgs { input: file(&said(name)), output: file(&heard(name)), ..NodeArgs::default() };
            hall.node("kitchen", name, args.with(&["--input-start", "first-peer", "--for", "8s"]))
        })
        .collect();
    for node in &mut nodes {
        let code = node.wait_exit(SOON);
        assert_eq!(code, Some(0), "{}", node.story());
        assert_eq!(node.stderr(), "", "a call without trouble is silent on standard error");
    }
    for (me, other) in [(0, 1), (1, 0)] {
        let (me, other) = (&nodes[me], &nodes[other]);
        check_events(me, other, &hall);
        check_recording(me, &heard(&me.name));
        let report = sound::heard(other, &said(&other.name), me, &heard(&me.name));
        let signal = report.signal.unwrap_or_else(|| panic!("{:?}\n{}", report.signal_error, me.story()));
        println!("{}: {:?}, {:.1} % damaged", report.name, signal.lag_ms, signal.damaged_pct);
        assert!(signal.frames > 60, "{signal:?}");
        assert!(signal.damaged_pct < 10.0, "{signal:?}");
        assert!((3.0..150.0).contains(&signal.lag_ms.p50), "{signal:?}");
        assert!(signal.unheard_start_ms < 2000.0, "{signal:?}");
    }
}

#[test]
fn who_is_quiet_sends_little_where_that_is_asked_for_and_nobody_misses_anything() {
    let hall = Hall::open();
    let said = hall.path("said.wav");
    sound::write_speech(&said, 1, 2.0);
    let args = NodeArgs { input: file(&said), output: "null".into(), ..NodeArgs::default() };
    let speaks = ["--input-start", "first-peer", "--dtx", "on", "--for", "9s"];
    let mut ana = hall.node("kitchen", "ana", args.with(&speaks));
    let args = NodeArgs { input: "silence".into(), output: "null".into(), ..NodeArgs::default() };
    let mut ben = hall.node("kitchen", "ben", args.with(&["--for", "9s"]));
    for node in [&mut ana, &mut ben] {
        assert_eq!(node.wait_exit(SOON), Some(0), "{}", node.story());
    }
    let stats = ana.named("stats");
    let paused = |event: &&Value| event["policy"]["paused"] == true;
    // The first second of a pause holds some of what went before; what is left is mostly acknowledgements of the other voice.
    let rates: Vec<f64> =
        stats.iter().filter(paused).skip(1).map(|e| e["send_kbps"].as_f64().unwrap()).collect();
    let speaking = stats.iter().filter_map(|e| e["send_kbps"].as_f64()).fold(0.0, f64::max);
    assert!(rates.len() >= 2 && rates.iter().all(|rate| *rate < 0.4 * speaking), "{rates:?} of {speaking}");
    assert!(ben.named("stats").iter().all(|e| e["policy"]["paused"] == false), "it was not asked for");
    for event in ben.named("stats").iter().skip(4) {
        assert!(event["concealed_pct"].as_f64().unwrap_or(0.0) < 5.0, "{event}\n{}", ben.story());
    }
}

/// Names, fields and order of one node's events.
fn check_events(me: &Process, other: &Process, hall: &Hall) {
    let events = me.events();
    let lines = me.stdout().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    assert_eq!(lines, events.len(), "nothing but events on standard output");
    assert!(events.iter().all(|event| event["at_ns"].is_u64()), "every event has its moment");
    let other_id = other.peer_id();
    let position = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        events.iter().position(wanted).unwrap_or_else(|| panic!("no {what}\n{}", me.story()))
    };
    let named = |name: &'static str| position(name, &|event| event["event"] == name);
    let rendezvous = |state: &'static str| {
        position(state, &|event| event["event"] == "rendezvous" && event["state"] == state)
    };
    let peer = |state: &'static str| {
        position(state, &|e| e["event"] == "peer" && e["state"] == state && e["peer_id"] == other_id.as_str())
    };

    let ready = &events[named("ready")];
    assert_eq!(named("ready"), 0);
    assert_eq!(ready["version"], env!("CARGO_PKG_VERSION"));
    assert!(ready["listen"][0].as_str().unwrap().starts_with("/ip4/127.0.0.1/udp/"), "{ready}");

    let joined = &events[named("joined")];
    assert_eq!((&joined["room"], joined["since_start_ms"].is_f64()), (&Value::from("kitchen"), true));

    let (connected, registered) = (rendezvous("connected"), rendezvous("registered"));
    assert!(connected < registered);
    for event in [&events[connected], &events[registered]] {
        assert_eq!(event["addr"], hall.at.as_str());
        assert_eq!(event["peer_id"], hall.server.peer_id().as_str());
    }

    for start in ["input_started", "output_started"] {
        let card = &events[named(start)];
        assert_eq!((card["sample_rate_hz"].as_u64(), card["channels"].as_u64()), (Some(48_000), Some(1)));
        assert!(card["period_ms"].as_f64().unwrap() > 0.0);
    }

    // Who was reached from outside may never have dialled: `connecting` is told by at least one of the two.
    assert!(peer("discovered") < peer("connected"));
    let dialled = |node: &Process| node.named("peer").iter().any(|event| event["state"] == "connecting");
    assert!(dialled(me) || dialled(other), "one of them dialled");
    let connected = &events[peer("connected")];
    assert_eq!(
        (connected["name"].as_str(), connected["path"].as_str()),
        (Some(&*other.name), Some("direct"))
    );
    assert_eq!(connected["verified"], false, "an open room proves nobody");

    let first = &events[position("first_audio", &|event| event["event"] == "first_audio")];
    assert_eq!(first["peer_id"], other_id.as_str());
    assert!(first["since_start_ms"].as_f64().unwrap() >= connected["since_start_ms"].as_f64().unwrap());

    let stats: Vec<&Value> = events.iter().filter(|event| event["event"] == "stats").collect();
    assert!(stats.len() >= 4, "once a second: {}", stats.len());
    for event in &stats {
        assert_eq!(event["peer_id"], other_id.as_str());
        for field in STATS {
            assert!(event.get(field).is_some(), "{field} is missing in {event}");
        }
    }
    let known = stats[stats.len() - 2];
    // Drift is measured over more than the seconds of this call.
    let no_numbers = ["path", "mouth_to_ear_stages_ms", "drift_ppm"];
    for field in STATS.iter().filter(|field| !no_numbers.contains(field)) {
        assert!(known[*field].is_number(), "{field} is not known after a call: {known}");
    }
    let stages: f64 =
        STAGES.iter().map(|stage| known["mouth_to_ear_stages_ms"][stage].as_f64().unwrap()).sum();
    let whole = known["mouth_to_ear_ms"].as_f64().unwrap();
    assert!((stages - whole).abs() < 1.0 + 0.1 * whole, "stages sum to {stages}, mouth to ear is {whole}");

    let summary = events.last().unwrap();
    assert_eq!(summary["event"], "summary");
    assert_eq!(events.iter().filter(|event| event["event"] == "summary").count(), 1);
    for field in ["since_start_ms", "cpu_s", "max_rss_kb"] {
        assert!(summary[field].as_f64().unwrap() > 0.0, "{field}: {summary}");
    }
    let total = &summary["peers"][0];
    assert_eq!(total["peer_id"], other_id.as_str());
    let percentile = |name: &str| total["mouth_to_ear_ms"][name].as_f64().unwrap();
    assert!(percentile("p50") <= percentile("p95") && percentile("p95") <= percentile("p99"), "{total}");
}

/// The recording is a valid WAV of everything from `output_started` to the end.
fn check_recording(me: &Process, path: &Path) {
    let recording = Recording::of(me, path);
    let summary = me.wait_named("summary")["at_ns"].as_u64().unwrap();
    let played = (summary - recording.started_ns) as f64 * 1e-9;
    assert!((recording.seconds() - played).abs() < 0.7, "{} s of {played} s", recording.seconds());
    let spec = hound::WavReader::open(path).unwrap().spec();
    assert_eq!((spec.channels, spec.sample_rate), (1, 48_000));
}

/// Two humming nodes until both hear each other, and what they heard.
fn hum(hall: &Hall, listen: &str) {
    let heard = |name: &str| hall.path(&format!("{name}-heard.wav"));
    let mut ana = hall.node("attic", "ana", NodeArgs { listen, ..NodeArgs::humming(440, &heard("ana")) });
    let mut ben = hall.node("attic", "ben", NodeArgs { listen, ..NodeArgs::humming(610, &heard("ben")) });
    for (listener, talker) in [(&ana, &ben), (&ben, &ana)] {
        let first = listener.wait_hearing(&talker.peer_id())["at_ns"].as_u64().unwrap();
        listener.wait("a second of sound", SOON, |event| {
            event["event"] == "stats" && event["at_ns"].as_u64().unwrap() > first + 1_500_000_000
        });
    }
    ana.leave();
    ben.leave();
    for (listener, talker, hz, own) in [(&ana, &ben, 610.0, 440.0), (&ben, &ana, 440.0, 610.0)] {
        let recording = Recording::of(listener, &heard(&listener.name));
        let first = listener.wait_hearing(&talker.peer_id())["at_ns"].as_u64().unwrap();
        let sound = recording.between(first + 500_000_000, first + 1_500_000_000);
        assert!((0.05..0.15).contains(&amplitude(sound, hz)), "{}", amplitude(sound, hz));
        assert!(amplitude(sound, own) < 0.01, "nobody hears their own voice");
    }
}

#[test]
fn a_call_stands_on_ipv6_alone() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        return skipped("this machine has no IPv6");
    }
    hum(&Hall::listening(QUIC6), QUIC6);
}

#[test]
fn people_meet_at_a_server_that_is_reached_by_tcp_only() {
    let hall = Hall::listening(TCP4);
    assert!(hall.at.contains("/tcp/"), "{}", hall.at);
    hum(&hall, QUIC4);
}

#[test]
fn an_invite_that_names_the_server_is_all_that_is_needed() {
    let hall = Hall::open();
    let printed = run(hall.dir.path(), ["invite", "kitchen", "--at", &hall.at], &[]);
    let invite = printed.out.trim();
    let mut ana = hall::node(hall.dir.path(), invite, "ana", NodeArgs::default());
    let mut ben = hall::node(hall.dir.path(), invite, "ben", NodeArgs::default());
    for (me, other) in [(&ana, &ben), (&ben, &ana)] {
        let connected = me.wait_peer(&other.peer_id(), "connected");
        assert_eq!(connected["verified"], true, "who holds the secret is verified");
        assert_eq!(me.wait_named("joined")["open"], false);
    }
    ana.leave();
    ben.leave();
    let secret = invite.split("secret=").nth(1).unwrap().split('&').next().unwrap();
    for node in [&ana, &ben, &hall.server] {
        let out = String::from_utf8_lossy(&node.stdout()).into_owned() + &node.stderr();
        assert!(!out.contains(secret), "{} printed the secret", node.name);
    }
}

#[test]
fn people_on_one_network_find_each_other_without_a_server() {
    if !has_multicast() {
        return skipped("no interface of this machine carries multicast");
    }
    let dir = tempfile::tempdir().unwrap();
    // Nobody else on the real network has this room.
    let printed = run(dir.path(), ["invite", "porch"], &[]);
    let invite = printed.out.trim().to_owned();
    let lan = |name: &str| {
        let home = dir.path().join(name).display().to_string();
        let sound = ["--input", "tone:440", "--output", "null", "--data-dir", &home];
        let args = ["join", &invite, "--name", name, "--json"].into_iter().chain(sound);
        Process::start(dir.path(), name, args, &[])
    };
    let (mut ana, mut ben) = (lan("ana"), lan("ben"));
    for (me, other) in [(&ana, &ben), (&ben, &ana)] {
        me.wait_hearing(&other.peer_id());
        assert!(me.named("rendezvous").is_empty());
    }
    ana.leave();
    ben.leave();
}

/// Whether a datagram to a group comes back to this machine, as mDNS needs it.
fn has_multicast() -> bool {
    use std::net::{Ipv4Addr, UdpSocket};
    let group = Ipv4Addr::new(239, 255, 83, 17);
    let heard = || -> std::io::Result<bool> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(b"anybody", (group, socket.local_addr()?.port()))?;
        Ok(socket.recv(&mut [0; 16])? == 7)
    };
    heard().unwrap_or(false)
}
