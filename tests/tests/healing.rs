//! Two people whose network fails between them, and how soon they hear each other once it is back. No server passes
//! anything on here; what changes when one does is in `relay.rs`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::time::Duration;

use hallway::bench::link::LinkConfig;
use hallway::bench::profile::Profile;
use hallway::bench::proxy::{Proxy, ProxyConfig};
use hallway::clock;
use hallway_tests::Hall;
use hallway_tests::hall::{NodeArgs, quic, socket_of};
use hallway_tests::process::Process;
use hallway_tests::sound::{Recording, loudness};

/// What a busy machine may add.
const BUSY: Duration = Duration::from_millis(1500);
/// A window in which loudness is measured.
const WINDOW_NS: u64 = 100_000_000;

/// Real time is what is tested here: nothing happens that could be waited for.
fn pass_time_until(moment_ns: u64) {
    std::thread::sleep(Duration::from_nanos(moment_ns.saturating_sub(clock::now_ns())));
}

/// Cuts the link between two people for this long. Gives, for each of the two, how long after the link was back its voice
/// was heard again.
fn cut(span: Duration) -> [Duration; 2] {
    let hall = Hall::open();
    let wan = Profile::symmetric("20 ms", LinkConfig { delay_ms: 20.0, ..LinkConfig::default() }, 7);
    let proxy = Proxy::start(ProxyConfig::new(wan)).unwrap();
    let names = ["ana", "ben"];
    let heards = names.map(|name| hall.path(&format!("{name}-heard.wav")));
    let stand_ins = [proxy.addr_of_a().unwrap(), proxy.addr_of_b().unwrap()].map(quic);
    let mut nodes: Vec<Process> = (0..2)
        .map(|i| {
            let hz = [440, 620][i];
            let args =
                NodeArgs::humming(hz, &heards[i]).with(&["--announce", &stand_ins[i], "--path", "direct"]);
            hall.node("kitchen", names[i], args)
        })
        .collect();
    proxy.set_a(socket_of(&nodes[0]));
    proxy.set_b(socket_of(&nodes[1]));
    let ids = [nodes[0].peer_id(), nodes[1].peer_id()];
    let heard = [1, 0].map(|other| nodes[1 - other].wait_hearing(&ids[other])["at_ns"].as_u64().unwrap());
    let settled = heard.into_iter().max().unwrap() + 3_000_000_000;
    pass_time_until(settled);
    let cut = clock::now_ns();
    proxy.black_out(span);
    let back = cut + span.as_nanos() as u64;
    pass_time_until(back + 8_000_000_000);
    nodes.iter_mut().for_each(Process::leave);

    [0, 1].map(|i| {
        let recording = Recording::of(&nodes[i], &heards[i]);
        let before = loudness(recording.between(cut - 1_000_000_000, cut));
        let silent = loudness(recording.between(back - 1_000_000_000, back));
        assert!(before > 0.01 && silent < before / 4.0, "{}: {before} before, {silent} in the cut", names[i]);
        let again = (0..75)
            .map(|step| back + step * WINDOW_NS)
            .find(|from| loudness(recording.between(*from, from + WINDOW_NS)) > before / 2.0);
        let again = again.unwrap_or_else(|| panic!("{} hears nobody\n{}", names[i], nodes[i].story()));
        let after = Duration::from_nanos(again + WINDOW_NS - back);
        println!("{span:?} of silence: {} hears the other again after {after:?}", names[i]);
        after
    })
}

#[test]
fn after_five_seconds_without_a_network_both_are_heard_again_within_a_second() {
    for after in cut(Duration::from_secs(5)) {
        assert!(after < Duration::from_secs(1) + BUSY, "{after:?}");
    }
}

#[test]
fn after_half_a_minute_they_call_each_other_again_and_are_heard_within_three_seconds() {
    for after in cut(Duration::from_secs(30)) {
        assert!(after < Duration::from_secs(3) + BUSY, "{after:?}");
    }
}

#[test]
#[ignore = "takes six minutes: cargo test --workspace -p hallway-tests --test healing -- --ignored"]
fn after_five_minutes_they_are_heard_within_five_seconds() {
    for after in cut(Duration::from_secs(300)) {
        assert!(after < Duration::from_secs(5) + BUSY, "{after:?}");
    }
}
