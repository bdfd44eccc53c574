//! People behind real NATs, in network namespaces: a handful of cells of the matrix that `scripts/netlab` runs.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::time::{Duration, Instant};

use hallway_tests::netlab::kind::Rung;
use hallway_tests::netlab::{Kind, Lab, Outcome, cell, unavailable};
use hallway_tests::process::SOON;
use hallway_tests::skipped;

/// One way from a host to the server.
const DELAY: Duration = Duration::from_millis(15);

/// What a busy machine may add to any of the times below.
const BUSY: Duration = Duration::from_millis(1500);

/// A call between the two, `None` where this machine has no laboratory.
fn call(a: Kind, b: Kind) -> Option<Outcome> {
    if let Some(why) = unavailable() {
        skipped(&why);
        return None;
    }
    let outcome = cell::call([a, b], DELAY, Duration::from_secs(6)).unwrap();
    println!("{a} and {b}: {outcome:?}");
    Some(outcome)
}

#[test]
fn two_behind_nats_that_rewrite_ports_punch_a_hole() {
    let Some(outcome) = call(Kind::Rewriting, Kind::Double) else { return };
    assert_eq!(outcome.rung(), Some(Rung::Punched));
    assert!(outcome.first_audio.unwrap() < Duration::from_millis(1500) + BUSY, "{outcome:?}");
}

#[test]
fn a_host_without_nat_is_called_by_one_behind_a_random_nat() {
    let Some(outcome) = call(Kind::Open, Kind::Symmetric) else { return };
    assert_eq!(outcome.rung(), Some(Rung::Direct));
    assert!(outcome.first_audio.unwrap() < Duration::from_secs(1) + BUSY, "{outcome:?}");
}

#[test]
fn two_whose_nats_allow_no_direct_path_hear_each_other_by_the_server() {
    let Some(outcome) = call(Kind::Symmetric, Kind::Symmetric) else { return };
    assert_eq!(outcome.rung(), Some(Rung::Relayed));
    assert!(outcome.first_audio.unwrap() < Duration::from_millis(800) + BUSY, "{outcome:?}");
}

#[test]
fn one_whose_network_drops_udp_is_heard_over_tcp_within_two_seconds() {
    let Some(outcome) = call(Kind::NoUdp, Kind::Symmetric) else { return };
    assert_eq!(outcome.rungs.iter().flatten().max(), Some(&Rung::Tcp), "{outcome:?}");
    assert!(outcome.first_audio.unwrap() < Duration::from_secs(2) + BUSY, "{outcome:?}");
}

#[test]
fn two_who_may_use_nothing_but_tcp_443_hear_each_other_within_two_seconds() {
    let Some(outcome) = call(Kind::Only443, Kind::Only443) else { return };
    assert_eq!(outcome.rung(), Some(Rung::Tcp));
    assert!(outcome.first_audio.unwrap() < Duration::from_secs(2) + BUSY, "{outcome:?}");
}

#[test]
fn a_router_that_gives_ports_is_asked_for_one_and_gets_it_back() {
    if let Some(why) = unavailable() {
        return skipped(&why);
    }
    if !Lab::has_upnp() {
        return skipped("no miniupnpd");
    }
    given_and_given_back(&Lab::new([Kind::Upnp, Kind::Open], DELAY).unwrap());
}

/// A node behind the router of side A gets a port, and the router gets it back.
fn given_and_given_back(lab: &Lab) {
    let (mut server, at) = cell::serve(lab);
    let mut ana = cell::node(lab, "a", &at, &[]);
    let is_mapped = || lab.rules_of("a-router").unwrap().contains("dnat ip to 192.168.1.130");
    let mapped_is = |wanted: bool| {
        let until = Instant::now() + SOON;
        while is_mapped() != wanted {
            assert!(Instant::now() < until, "{}\n{}", lab.rules_of("a-router").unwrap(), ana.story());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    mapped_is(true);
    ana.signal(rustix::process::Signal::TERM);
    mapped_is(false);
    assert_eq!(ana.wait_exit(SOON), Some(0));
    server.leave();
}

#[test]
fn a_router_that_speaks_pcp_or_nat_pmp_alone_gives_a_port_too() {
    if let Some(why) = unavailable() {
        return skipped(&why);
    }
    if !Lab::has_upnp() {
        return skipped("no miniupnpd");
    }
    // The first byte of both protocols' requests is their version: 2 is PCP (RFC 6887), 0 NAT-PMP (RFC 6886).
    for (protocol, deaf_to) in [("pcp", "!= 2"), ("nat_pmp", "2")] {
        let lab = Lab::new([Kind::Upnp, Kind::Open], DELAY).unwrap();
        lab.add_rules("insert rule inet filter input udp dport 1900 drop").unwrap();
        lab.add_rules(&format!("insert rule inet filter input udp dport 5351 @th,64,8 {deaf_to} drop"))
            .unwrap();
        let said = cell::doctor_in(&lab, 1).unwrap();
        println!("{protocol}: {said}");
        for spoken in ["upnp", "pcp", "nat_pmp"] {
            assert_eq!(said["router"][spoken], spoken == protocol, "{spoken}: {said}");
        }
        assert!(said["router"]["external"].is_string() && said["verdict"]["rung"] == "direct", "{said}");
        given_and_given_back(&lab);
    }
}

#[test]
fn who_hides_behind_a_server_shows_its_address_to_no_member_in_packets_or_records() {
    if let Some(why) = unavailable() {
        return skipped(&why);
    }
    let lab = Lab::new([Kind::Open, Kind::Open], DELAY).unwrap();
    let (mut server, at) = cell::serve(&lab);
    let hidden = [11, 10, 1, 130];
    let text = hidden.map(|byte: u8| byte.to_string()).join(".");
    // Who hides nothing shows what is looked for: were it looked for in the wrong way, nothing would be found here either.
    for (path, shown) in [("relay", false), ("auto", true)] {
        lab.link(1).capture();
        let trace = lab.scratch().join(format!("{path}.log")).display().to_string();
        let mut ana = cell::node(&lab, "a", &at, &["--path", path]);
        let mut ben = cell::node(&lab, "b", &at, &["--log-level", "trace", "--log-file", &trace]);
        ben.wait_hearing(&ana.peer_id());
        ana.wait_hearing(&ben.peer_id());
        std::thread::sleep(Duration::from_secs(if shown { 2 } else { 8 }));
        ana.leave();
        ben.leave();
        let packets = lab.link(1).captured().concat();
        let showing = packets.iter().filter(|packet| packet.windows(4).any(|bytes| bytes == hidden)).count();
        println!("--path {path}: {showing} of {} packets at the other member's link", packets.len());
        assert!(packets.len() > 300, "{}", packets.len());
        assert_eq!(showing > 0, shown, "its address in {showing} packets of --path {path}");
        let told = [ben.stdout(), std::fs::read(&trace).unwrap()].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains(&ana.peer_id()));
        assert_eq!(told.contains(&text), shown, "its address in what the other was told, --path {path}");
    }
    server.leave();
}

#[test]
fn the_doctor_tells_networks_apart() {
    if let Some(why) = unavailable() {
        return skipped(&why);
    }
    for (kind, mapping, filtering, rung) in [
        (Kind::Open, "none", "endpoint_independent", "direct"),
        (Kind::Cone, "endpoint_independent", "endpoint_independent", "punched"),
        (Kind::Restricted, "endpoint_independent", "address_dependent", "punched"),
        (Kind::Rewriting, "endpoint_independent", "address_and_port_dependent", "punched"),
        (Kind::Symmetric, "address_and_port_dependent", "address_and_port_dependent", "relayed"),
        (Kind::Only443, "unknown", "unknown", "tcp"),
    ] {
        let said = cell::doctor(kind, 2).unwrap();
        println!("{kind}: {said}");
        assert_eq!(said["ipv4"]["filtering"], filtering, "{kind}: {said}");
        assert_eq!(said["verdict"]["rung"], rung, "{kind}: {said}");
        assert_eq!(said["ipv4"]["mapping"], mapping, "{kind}: {said}");
        assert_eq!(said["udp"], kind != Kind::Only443, "{kind}: {said}");
        assert_eq!(said["tcp"], true, "{kind}: {said}");
    }
    let said = cell::doctor(Kind::Restricted, 1).unwrap();
    assert_eq!(said["ipv4"]["filtering"], "at_most_address_dependent", "one server cannot tell: {said}");
}
