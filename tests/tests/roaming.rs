//! Somebody's address changes in a call, as from Wi-Fi to mobile: real networks in namespaces, a real change of devices. Who
//! dialled is decided by the NATs: whoever is behind one can only dial.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::time::Duration;

use hallway::clock;
use hallway_tests::netlab::{Kind, Lab, cell, unavailable};
use hallway_tests::process::{Process, SOON};
use hallway_tests::skipped;
use hallway_tests::sound::{Recording, longest_gap};
use serde_json::Value;

/// One way from a host to the server.
const DELAY: Duration = Duration::from_millis(15);
/// What a busy machine may add.
const BUSY: Duration = Duration::from_secs(1);
const SECOND_NS: u64 = 1_000_000_000;

/// Real time is what is tested here: nothing happens that could be waited for.
fn pass_time(span: Duration) {
    std::thread::sleep(span);
}

/// `a` moves from one network to another while it talks with `b`. Gives how long each of the two heard nothing.
fn moved(from: Kind, to: Kind, other: Kind, more: &[&str]) -> Option<[Duration; 2]> {
    if let Some(why) = unavailable() {
        skipped(&why);
        return None;
    }
    let mut lab = Lab::new([from, other], DELAY).unwrap();
    lab.add_mobile(to, DELAY).unwrap();
    let (mut server, at) = cell::serve(&lab);
    let heards = ["a", "b"].map(|side| lab.scratch().join(format!("{side}.wav")));
    let outputs = heards.each_ref().map(|heard| format!("file:{}", heard.display()));
    let mut nodes = [("a", &outputs[0]), ("b", &outputs[1])]
        .map(|(side, output)| cell::node(&lab, side, &at, &[&["--output", output.as_str()], more].concat()));
    let ids = nodes.each_ref().map(Process::peer_id);
    for (me, other) in [(0, 1), (1, 0)] {
        nodes[me].wait_hearing(&ids[other]);
        nodes[me].wait("a direct path", SOON, |event| {
            event["event"] == "stats" && (event["path"] == "direct" || event["path"] == "punched")
        });
    }
    pass_time(Duration::from_secs(4));
    let marks = nodes.each_ref().map(Process::mark);
    let left = clock::now_ns();
    lab.roam().unwrap();
    pass_time(Duration::from_secs(8));
    let end = clock::now_ns();
    nodes.iter_mut().for_each(Process::leave);
    server.leave();
    let gaps = [0, 1].map(|i| {
        let (node, told) = (&nodes[i], nodes[i].events());
        let told: Vec<&Value> = told.iter().skip(marks[i]).filter(|event| event["event"] == "peer").collect();
        let until_end = told.iter().take_while(|event| event["at_ns"].as_u64().unwrap() < end);
        assert!(
            until_end
                .clone()
                .all(|event| event["state"] == "path_changed" || event["state"] == "reconnecting"),
            "nobody leaves or joins: {told:?}"
        );
        for event in until_end {
            let after = event["at_ns"].as_u64().unwrap().saturating_sub(left) / 1_000_000;
            println!(
                "{} after {after} ms: {} {} {}",
                node.name, event["state"], event["path"], event["reason"]
            );
        }
        let gap = longest_gap(Recording::of(node, &heards[i]).between(left - SECOND_NS, end));
        println!("{from} to {to}, with {other}: {} heard nothing for {gap:?}", node.name);
        gap
    });
    Some(gaps)
}

#[test]
fn whoever_dialled_may_move_and_is_gone_for_a_second_at_most() {
    for gap in moved(Kind::Preserving, Kind::Rewriting, Kind::Open, &[]).into_iter().flatten() {
        assert!(gap <= Duration::from_secs(1) + BUSY, "{gap:?}");
    }
}

#[test]
fn whoever_was_dialled_may_move_and_is_gone_for_three_seconds_at_most() {
    for gap in moved(Kind::Open, Kind::Rewriting, Kind::Preserving, &[]).into_iter().flatten() {
        assert!(gap <= Duration::from_secs(3) + BUSY, "{gap:?}");
    }
}

#[test]
fn without_a_server_to_help_out_a_direct_path_is_made_anew_in_the_same_time() {
    let direct = &["--path", "direct"];
    for gap in moved(Kind::Preserving, Kind::Rewriting, Kind::Open, direct).into_iter().flatten() {
        assert!(gap <= Duration::from_secs(1) + BUSY, "{gap:?}");
    }
    for gap in moved(Kind::Open, Kind::Rewriting, Kind::Preserving, direct).into_iter().flatten() {
        assert!(gap <= Duration::from_secs(3) + BUSY, "{gap:?}");
    }
}
