//! A call with two servers, one of which lies in every way that a server can.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hallway::bench::link::LinkConfig;
use hallway::bench::profile::Profile;
use hallway::bench::proxy::{Proxy, ProxyConfig};
use hallway::clock;
use hallway::rendezvous::policy::DIALS_PER_ADDRESS;
use hallway_tests::Hall;
use hallway_tests::hall::{self, NodeArgs, quic, socket_in};
use hallway_tests::liar::Liar;
use hallway_tests::process::Process;
use hallway_tests::sound::{Recording, longest_gap};
use hallway_tests::stranger::first_packet;

/// What a busy machine may add to a silence.
const BUSY: Duration = Duration::from_millis(300);

/// Real time is what is tested here: nothing happens that could be waited for.
fn pass_time(span: Duration) {
    std::thread::sleep(span);
}

/// Handshakes begun towards a socket that answers nobody: first packets, by the connection id that they begin with.
fn dials_at(victim: &UdpSocket) -> usize {
    victim.set_nonblocking(true).unwrap();
    let (mut buffer, mut dials) = ([0; 2048], HashSet::new());
    while let Ok(length) = victim.recv(&mut buffer) {
        dials.insert(first_packet(&buffer[..length]).expect("nothing but handshakes comes here"));
    }
    dials.len()
}

/// What came of a call that a liar had a hand in.
struct Outcome {
    /// The longest silence of each, after they have had time to find out.
    gaps: [Duration; 2],
    /// Handshakes begun at the address that the liar named.
    dials: usize,
    liar: Liar,
}

/// Two talk for a while with an honest server that is far and a liar that is near.
fn with_a_liar(more: &[&str], settled: Duration) -> Outcome {
    let hall = Hall::open();
    let victim = UdpSocket::bind("127.0.0.1:0").unwrap();
    let liar = Liar::start(quic(victim.local_addr().unwrap()).parse().unwrap());
    // The honest server is farther away, so that nobody has a reason to prefer it.
    let link = Profile::symmetric("15 ms", LinkConfig { delay_ms: 15.0, ..LinkConfig::default() }, 7);
    let proxies = [(); 2].map(|()| Proxy::start(ProxyConfig::new(link.clone())).unwrap());
    let honest = proxies.each_ref().map(|proxy| {
        proxy.set_b(socket_in(&hall.at));
        format!("{}/p2p/{}", quic(proxy.addr_of_b().unwrap()), hall.server.peer_id())
    });
    let heards = ["ana", "ben"].map(|name| hall.path(&format!("{name}-heard.wav")));
    let start = |name: &str, hz: u32, heard: &std::path::Path, honest: &str| {
        let args =
            NodeArgs::humming(hz, heard).with(&["--at", honest, "--at", &liar.at, "--wait"]).with(more);
        hall::node(hall.dir.path(), "kitchen", name, args)
    };
    let mut nodes = [start("ana", 440, &heards[0], &honest[0]), start("ben", 620, &heards[1], &honest[1])];
    let ids = nodes.each_ref().map(Process::peer_id);
    let heard =
        [(0, 1), (1, 0)].map(|(me, other)| nodes[me].wait_hearing(&ids[other])["at_ns"].as_u64().unwrap());
    let heard = heard[0].max(heard[1]);
    pass_time(settled + Duration::from_secs(14));
    let end = clock::now_ns();
    nodes.iter_mut().for_each(Process::leave);
    let gaps = [0, 1].map(|i| {
        for event in nodes[i].named("peer").iter().filter(|event| event["at_ns"].as_u64().unwrap() < end) {
            if event["peer_id"] == ids[1 - i].as_str() {
                let after = event["at_ns"].as_u64().unwrap().saturating_sub(heard) / 1_000_000;
                println!(
                    "{} {after} ms after: {} {} {}",
                    nodes[i].name, event["state"], event["path"], event["reason"]
                );
                assert_ne!(event["state"], "left", "{}", nodes[i].story());
            } else {
                assert_ne!(event["state"], "connected", "somebody who is not there: {event}");
            }
        }
        let recording = Recording::of(&nodes[i], &heards[i]);
        let found_out = heard + u64::try_from(settled.as_nanos()).unwrap();
        println!("{} at first: {:?}", nodes[i].name, longest_gap(recording.between(heard, found_out)));
        let gap = longest_gap(recording.between(found_out, end));
        println!("{} heard nothing for {gap:?}", nodes[i].name);
        gap
    });
    let dials = dials_at(&victim);
    println!("{dials} handshakes at the address that the liar named; {:?}", liar.deeds());
    assert!(dials <= 2 * DIALS_PER_ADDRESS, "{dials}");
    assert!(liar.deeds().told.load(Ordering::Relaxed) > 20, "{:?}", liar.deeds());
    Outcome { gaps, dials, liar }
}

#[test]
fn a_call_through_servers_goes_on_by_the_honest_one() {
    let Outcome { gaps, dials, liar } = with_a_liar(&["--path", "relay"], Duration::from_secs(9));
    let deeds = liar.deeds();
    assert!(deeds.voice.load(Ordering::Relaxed) > 100, "it had its chance: {deeds:?}");
    assert!(deeds.forged.load(Ordering::Relaxed) > 20, "it took its chance: {deeds:?}");
    assert_eq!(dials, 0, "who hides behind servers dials nobody");
    for gap in gaps {
        assert!(gap < Duration::from_millis(300) + BUSY, "{gap:?}");
    }
}

#[test]
fn a_direct_call_does_not_notice_the_liar() {
    let Outcome { gaps, dials, .. } = with_a_liar(&[], Duration::from_secs(1));
    assert!(dials > 0, "the liar was believed");
    for gap in gaps {
        assert!(gap < Duration::from_millis(300) + BUSY, "{gap:?}");
    }
}
