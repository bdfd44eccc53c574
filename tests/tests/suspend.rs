//! A machine that sleeps for a minute in a call, on either side of the connection.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::path::PathBuf;
use std::time::Duration;

use hallway::clock;
use hallway_tests::Hall;
use hallway_tests::hall::NodeArgs;
use hallway_tests::process::Process;
use hallway_tests::sound::{Recording, loudness};
use libp2p::PeerId;
use rustix::process::Signal;

/// How long it sleeps.
const ASLEEP: Duration = Duration::from_secs(60);
/// What a busy machine may add.
const BUSY: Duration = Duration::from_millis(1500);
const SECOND_NS: u64 = 1_000_000_000;
/// A window in which loudness is measured.
const WINDOW_NS: u64 = 100_000_000;

struct Pair {
    nodes: [Process; 2],
    ids: [String; 2],
    heards: [PathBuf; 2],
    /// Which of the two sleeps.
    sleeper: usize,
    before_kb: Option<u64>,
}

impl Pair {
    /// Two in a room of their own; the one that dials sleeps, or the other one.
    fn talking(hall: &Hall, room: &str, dialler_sleeps: bool) -> Pair {
        let heards = ["ana", "ben"].map(|name| hall.path(&format!("{room}-{name}.wav")));
        let nodes = [0, 1].map(|i| {
            hall.node(
                room,
                &format!("{}-{room}", ["ana", "ben"][i]),
                NodeArgs::humming([440, 620][i], &heards[i]),
            )
        });
        let ids = nodes.each_ref().map(Process::peer_id);
        (0..2).for_each(|i| _ = nodes[i].wait_hearing(&ids[1 - i]));
        // Whose bytes come first dials first.
        let bytes = ids.each_ref().map(|id| id.parse::<PeerId>().unwrap().to_bytes());
        let dialler = usize::from(bytes[1] < bytes[0]);
        let sleeper = if dialler_sleeps { dialler } else { 1 - dialler };
        Pair { nodes, ids, heards, sleeper, before_kb: None }
    }
}

#[test]
fn after_a_minute_of_sleep_both_are_heard_again_within_two_seconds_and_without_the_delay_of_a_minute() {
    let hall = Hall::open();
    let mut pairs = [Pair::talking(&hall, "one", true), Pair::talking(&hall, "two", false)];
    std::thread::sleep(Duration::from_secs(4));
    let slept = clock::now_ns();
    for pair in &mut pairs {
        pair.before_kb = pair.nodes[pair.sleeper].rss_kb();
        pair.nodes[pair.sleeper].signal(Signal::STOP);
    }
    std::thread::sleep(ASLEEP);
    let woken = clock::now_ns();
    pairs.iter().for_each(|pair| pair.nodes[pair.sleeper].signal(Signal::CONT));
    std::thread::sleep(Duration::from_secs(10));
    for mut pair in pairs {
        let after_kb = pair.nodes[pair.sleeper].rss_kb();
        pair.nodes.iter_mut().for_each(Process::leave);
        for i in 0..2 {
            let (node, other) = (&pair.nodes[i], &pair.ids[1 - i]);
            let recording = Recording::of(node, &pair.heards[i]);
            let before = loudness(recording.between(slept - SECOND_NS, slept));
            let again = (0..90)
                .map(|step| woken + step * WINDOW_NS)
                .find(|from| loudness(recording.between(*from, from + WINDOW_NS)) > before / 2.0);
            let again = again.unwrap_or_else(|| panic!("{} hears nobody\n{}", node.name, node.story()));
            let after = Duration::from_nanos(again + WINDOW_NS - woken);
            let newest =
                node.named("stats").into_iter().rfind(|stats| stats["peer_id"] == other.as_str()).unwrap();
            let delay = newest["mouth_to_ear_ms"].as_f64().unwrap();
            let slept = if i == pair.sleeper { "slept" } else { "waited" };
            println!("{} {slept}: hears the other after {after:?}, {delay:.0} ms late", node.name);
            assert!(after <= Duration::from_secs(2) + BUSY, "{after:?}\n{}", node.story());
            assert!(delay < 200.0, "{delay} ms");
            assert!(node.named("peer").iter().all(|event| event["peer_id"] == other.as_str()), "no ghosts");
        }
        println!("memory of who slept: {:?} to {after_kb:?} KiB", pair.before_kb);
        if let (Some(before), Some(after)) = (pair.before_kb, after_kb) {
            assert!(after < before + 8 * 1024, "{before} to {after} KiB");
        }
    }
}
