//! Rooms of several people: who gets in, who hears whom, who comes and goes.

// All of this file is test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::time::Duration;

use hallway_tests::Hall;
use hallway_tests::hall::{self, NodeArgs};
use hallway_tests::process::{Process, SOON, run};
use hallway_tests::sound::{Recording, amplitude, peak};

/// A `stats` event that is at least this much later than a moment.
fn wait_until(node: &Process, at_ns: u64) {
    node.wait("later figures", SOON, |event| {
        event["event"] == "stats" && event["at_ns"].as_u64().is_some_and(|at| at >= at_ns)
    });
}

fn invite(hall: &Hall, room: &str) -> String {
    run(hall.dir.path(), ["invite", room], &[]).out.trim().to_owned()
}

#[test]
fn only_who_holds_the_secret_gets_in_and_the_call_goes_on_meanwhile() {
    let hall = Hall::open();
    let invited = invite(&hall, "kitchen");
    let hum = |hz: u32| NodeArgs { input: format!("tone:{hz}"), ..NodeArgs::default() };
    let mut ana = hall.node(&invited, "ana", hum(440));
    let mut ben = hall.node(&invited, "ben", hum(610));
    for (me, other) in [(&ana, &ben), (&ben, &ana)] {
        assert_eq!(me.wait_peer(&other.peer_id(), "connected")["verified"], true);
        me.wait_hearing(&other.peer_id());
    }

    // Another secret, no secret, and another room altogether; each alone with its own kind.
    let patient = ["--require-peer", "--timeout", "4s"];
    let mut eve = hall.node(&invite(&hall, "kitchen"), "eve", hum(500));
    let mut guest = hall.node("kitchen", "guest", hum(520));
    let mut elsewhere = hall.node(&invite(&hall, "cellar"), "elsewhere", hum(540).with(&patient));
    for refused in [&mut eve, &mut guest] {
        let code = refused.wait_exit(SOON);
        assert_eq!(code, Some(5), "{}", refused.story());
        let said = refused.last_words();
        assert!(said.contains("another secret") && said.contains("hallway invite"), "{said}");
        let error = refused.named("error");
        assert!(error.iter().any(|event| event["code"] == "refused"), "{}", refused.story());
        assert!(refused.named("first_audio").is_empty(), "they heard something");
        assert_eq!(refused.events().last().unwrap()["event"], "summary");
    }
    assert_eq!(elsewhere.wait_exit(SOON), Some(3), "{}", elsewhere.story());
    assert!(elsewhere.named("peer").is_empty(), "rooms are worlds of their own\n{}", elsewhere.story());
    assert!(elsewhere.named("warning").is_empty(), "{}", elsewhere.story());
    let said = elsewhere.last_words();
    assert!(said.contains("nobody came within 4s") && said.contains("--timeout"), "{said}");

    ana.leave();
    ben.leave();
    for (me, other) in [(&ana, &ben), (&ben, &ana)] {
        let strangers =
            me.named("peer").into_iter().filter(|event| event["peer_id"] != other.peer_id().as_str());
        let let_in: Vec<_> = strangers.filter(|event| event["state"] == "connected").collect();
        assert!(let_in.is_empty(), "{let_in:?}");
        let summary = me.wait_named("summary");
        let peers = summary["peers"].as_array().unwrap();
        assert_eq!(peers.len(), 1, "{summary}");
        assert!(peers[0]["loss_pct"].as_f64().unwrap() < 1.0, "{summary}");
        let states: Vec<_> = me
            .named("peer")
            .into_iter()
            .filter(|event| event["peer_id"] == other.peer_id().as_str())
            .collect();
        assert!(states.iter().all(|event| event["state"] != "reconnecting"), "{states:?}");
    }
}

#[test]
fn one_who_was_here_first_is_not_driven_out_by_a_stranger_with_another_secret() {
    let hall = Hall::open();
    let patient = ["--wait"];
    let mut ana = hall.node(&invite(&hall, "kitchen"), "ana", NodeArgs::default().with(&patient));
    ana.wait("its registration", SOON, |event| {
        event["event"] == "rendezvous" && event["state"] == "registered"
    });
    let mut eve = hall.node(&invite(&hall, "kitchen"), "eve", NodeArgs::default());
    assert_eq!(eve.wait_exit(SOON), Some(5), "{}", eve.story());
    assert!(ana.is_running(), "{}", ana.story());
    ana.leave();
}

const NAMES: [&str; 10] = ["ana", "ben", "cem", "dia", "eli", "fay", "gus", "hal", "ivy", "jon"];

/// Tones that are no multiples of each other, far enough apart to be told apart in half a second.
fn tone(person: usize) -> u32 {
    310 + 97 * person as u32
}

#[test]
fn ten_people_all_hear_each_other_while_some_come_and_go_and_an_eleventh_is_told_that_the_room_is_full() {
    let hall = Hall::open();
    let invited = invite(&hall, "assembly");
    let heard = |name: &str| hall.path(&format!("{name}-heard.wav"));
    // Ten nodes of a debug build share this machine: larger periods cost less.
    let start = |person: usize, name: &str| {
        let args = NodeArgs::humming(tone(person), &heard(name)).with(&["--period-ms", "10"]);
        hall.node(&invited, name, args)
    };
    let meet = |nodes: &[Process]| {
        for (i, me) in nodes.iter().enumerate() {
            for (_, other) in nodes.iter().enumerate().filter(|(j, _)| *j != i) {
                let id = other.peer_id();
                assert_eq!(me.wait_peer(&id, "connected")["name"], other.name.as_str());
                me.wait_hearing(&id);
            }
        }
    };

    // 1. Eight talk, then two more come.
    let mut nodes: Vec<Process> = (0..8).map(|person| start(person, NAMES[person])).collect();
    meet(&nodes);
    nodes.extend((8..10).map(|person| start(person, NAMES[person])));
    meet(&nodes);
    let all_here = newest(&nodes, "first_audio");
    nodes.iter().for_each(|node| wait_until(node, all_here + 2_500_000_000));

    // 2. The eleventh.
    let mut late = hall.node(&invited, "kim", NodeArgs::default());
    assert_eq!(late.wait_exit(SOON), Some(5), "{}", late.story());
    let said = late.last_words();
    assert!(said.contains("full") && said.contains("another room"), "{said}");

    // 3. Two go, one of them without a word; the place of one is taken.
    let mut gone: Vec<Process> = nodes.drain(..2).collect();
    let ids: Vec<String> = gone.iter().map(Process::peer_id).collect();
    gone[0].leave();
    gone[1].kill();
    for node in &nodes {
        for id in &ids {
            node.wait_peer(id, "left");
        }
    }
    let lou = start(10, "lou");
    nodes.push(lou);
    meet(&nodes);
    let again = newest(&nodes, "first_audio");
    nodes.iter().for_each(|node| wait_until(node, again + 2_500_000_000));
    nodes.iter().for_each(|node| node.signal(rustix::process::Signal::TERM));
    for node in &mut nodes {
        assert_eq!(node.wait_exit(SOON), Some(0), "{}", node.story());
    }

    // 4. What they heard: in the first full room everybody else, later neither of the two who had gone.
    let second = 1_000_000_000;
    for (i, me) in nodes.iter().enumerate() {
        let own = i + 2;
        let recording = Recording::of(me, &heard(&me.name));
        let full = recording.between(all_here + second, all_here + 2 * second);
        let later = recording.between(again + second, again + 2 * second);
        assert!(peak(&recording.samples) < 0.999, "{} heard clipping: {}", me.name, peak(&recording.samples));
        for person in 0..11 {
            let [then, now] = [full, later].map(|sound| amplitude(sound, f64::from(tone(person))));
            let (was_here, is_here) = (person < 10 && own != 10, person >= 2);
            if person != own {
                let who = NAMES.get(person).unwrap_or(&"lou");
                assert_eq!(then > 0.02, was_here, "{}: {who} at {then:.4} in the full room", me.name);
                assert_eq!(now > 0.02, is_here, "{}: {who} at {now:.4} in the end", me.name);
            }
        }
        assert!(amplitude(full, f64::from(tone(own))) < 0.01, "{} hears itself", me.name);
    }
}

/// The moment of the last such event of all.
fn newest(nodes: &[Process], name: &str) -> u64 {
    let all = nodes.iter().flat_map(|node| node.named(name));
    all.filter_map(|event| event["at_ns"].as_u64()).max().expect("an event")
}

#[test]
fn two_rooms_of_one_name_on_two_servers_do_not_meet() {
    let (here, there) = (Hall::open(), Hall::open());
    let patient = ["--require-peer", "--timeout", "3s"];
    let mut ana = here.node("kitchen", "ana", NodeArgs::default().with(&patient));
    let mut ben = hall::node(
        there.dir.path(),
        "kitchen",
        "ben",
        NodeArgs::default().with(&["--at", &there.at]).with(&patient),
    );
    for node in [&mut ana, &mut ben] {
        assert_eq!(node.wait_exit(SOON + Duration::from_secs(3)), Some(3), "{}", node.story());
    }
}
