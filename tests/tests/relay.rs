//! Voice that goes through a server: over UDP and TCP, hidden addresses, servers that die, shut down or are blocked, and
//! the way back to a direct path.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use hallway::bench::link::LinkConfig;
use hallway::bench::profile::Profile;
use hallway::bench::proxy::{Proxy, ProxyConfig};
use hallway::clock;
use hallway_tests::Hall;
use hallway_tests::guest::Guest;
use hallway_tests::hall::{self, NodeArgs, QUIC4, TCP4, quic, socket_of};
use hallway_tests::process::{Process, SOON};
use hallway_tests::sound::{Recording, longest_gap};
use libp2p::identity::Keypair;
use rustix::process::Signal;
use serde_json::Value;

/// What a busy machine may add to any of the times below.
const BUSY: Duration = Duration::from_millis(1500);
const SECOND_NS: u64 = 1_000_000_000;

/// Real time is what is tested here: nothing happens that could be waited for.
fn pass_time(span: Duration) {
    std::thread::sleep(span);
}

/// Two nodes that hum at each other, with these further arguments, and what each has heard.
struct Pair {
    nodes: [Process; 2],
    ids: [String; 2],
    heards: [std::path::PathBuf; 2],
}

impl Pair {
    fn start(hall: &Hall, more: [&[&str]; 2]) -> Pair {
        let names = ["ana", "ben"];
        let heards = names.map(|name| hall.path(&format!("{name}-heard.wav")));
        let nodes = [0, 1].map(|i| {
            let args = NodeArgs::humming([440, 620][i], &heards[i]).with(more[i]);
            hall.node("kitchen", names[i], args)
        });
        let ids = [nodes[0].peer_id(), nodes[1].peer_id()];
        Pair { nodes, ids, heards }
    }

    /// Waits until each hears the other.
    fn hear(&self) {
        (0..2).for_each(|i| _ = self.nodes[i].wait_hearing(&self.ids[1 - i]));
    }

    /// Waits until each tells, after its mark, that the other's voice takes such a path.
    fn wait_path(&self, marks: [usize; 2], path: &str, within: Duration) {
        for (i, mark) in marks.into_iter().enumerate() {
            self.nodes[i].wait_after(mark, &format!("path {path}"), within, |event| {
                event["peer_id"] == self.ids[1 - i].as_str() && event["path"] == path
            });
        }
    }

    fn marks(&self) -> [usize; 2] {
        [self.nodes[0].mark(), self.nodes[1].mark()]
    }

    /// `peer` events of one about the other.
    fn told(&self, i: usize) -> Vec<Value> {
        let mut told = self.nodes[i].named("peer");
        told.retain(|event| event["peer_id"] == self.ids[1 - i].as_str());
        told
    }

    /// Both leave. Gives the longest silence that each heard between two moments.
    fn gaps(mut self, from_ns: u64, to_ns: u64) -> [Duration; 2] {
        self.nodes.iter_mut().for_each(Process::leave);
        [0, 1].map(|i| {
            let recording = Recording::of(&self.nodes[i], &self.heards[i]);
            let gap = longest_gap(recording.between(from_ns, to_ns));
            println!("{} heard nothing for {gap:?}", self.nodes[i].name);
            gap
        })
    }
}

/// Whether a server says that it passes on what this member sends.
fn begins_for(event: &Value, id: &str) -> bool {
    event["event"] == "relayed" && event["peer_id"] == id && event["began"] == true
}

fn states(told: &[Value]) -> Vec<&str> {
    told.iter().filter_map(|event| event["state"].as_str()).collect()
}

#[test]
fn who_hides_behind_the_server_is_heard_and_never_dialled() {
    let hall = Hall::open();
    let pair = Pair::start(&hall, [&["--path", "relay"], &[]]);
    pair.hear();
    pair.wait_path([0, 0], "relayed", SOON);
    let ready = pair.nodes[0].wait_named("ready");
    assert_eq!(ready["listen"].as_array().map(Vec::len), Some(0), "it listens nowhere: {ready}");
    let stats = pair.nodes[1].wait_named("stats");
    let remote = stats["remote"].as_str().unwrap();
    assert!(remote.ends_with("/p2p-circuit") && hall.at.starts_with(remote.trim_end_matches("/p2p-circuit")));
    assert!(stats["rtt_ms"].as_f64().unwrap() > 0.0);
    for i in 0..2 {
        let told = pair.told(i);
        assert!(!states(&told).contains(&"connecting"), "nobody dials: {told:?}");
        assert!(told.iter().all(|event| event["path"] != "direct"), "{told:?}");
    }
    let id = pair.ids[0].clone();
    hall.server.wait("a relayed event", SOON, |event| begins_for(event, &id));
    let now = clock::now_ns();
    pass_time(Duration::from_secs(3));
    let gaps = pair.gaps(now, now + 3 * SECOND_NS);
    assert!(gaps.iter().all(|gap| *gap < Duration::from_millis(200) + BUSY / 5), "{gaps:?}");
    let ended = hall.server.wait("its end", SOON, |event| {
        event["event"] == "relayed" && event["peer_id"] == id.as_str() && event["began"] == false
    });
    assert!(ended["datagrams"].as_u64().unwrap() > 100, "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_the_room_before_it_is_registered_is_let_in_as_soon_as_it_is() {
    let hall = Hall::open();
    let keypair = Keypair::generate_ed25519();
    let namespace = "any namespace that is long enough for a room";
    let guest = Guest::enter_after(Duration::from_millis(100), keypair, &hall.at, namespace, 1).await;
    assert_eq!(guest.members.iter().map(|(_, peer)| *peer).collect::<Vec<_>>(), [guest.peer]);
}

#[test]
fn three_members_behind_a_server_hear_each_other_over_udp_and_tcp() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home").display().to_string();
    let args = ["rendezvous", "--data-dir", &home, "--json", "--listen", QUIC4, "--listen", TCP4];
    let mut server = Process::start(dir.path(), "server", args, &[]);
    let at = |kind: &str| {
        let addr = server.listen().into_iter().find(|addr| addr.contains(kind)).unwrap();
        format!("{addr}/p2p/{}", server.peer_id())
    };
    let (quic, tcp) = (at("/udp/"), at("/tcp/"));
    let mut nodes: Vec<Process> = [("ana", "relay", &quic), ("ben", "relay", &quic), ("cem", "tcp", &tcp)]
        .into_iter()
        .map(|(name, path, at)| {
            let args = NodeArgs { input: "tone:440".into(), ..NodeArgs::default() };
            hall::node(dir.path(), "kitchen", name, args.with(&["--path", path, "--at", at]))
        })
        .collect();
    for me in &nodes {
        for other in nodes.iter().filter(|other| other.name != me.name) {
            me.wait_hearing(&other.peer_id());
            let wanted = if me.name == "cem" { "tcp" } else { "relayed" };
            let id = other.peer_id();
            me.wait("its path", SOON, |event| event["peer_id"] == id.as_str() && event["path"] == wanted);
        }
    }
    nodes.iter_mut().for_each(Process::leave);
    server.leave();
}

#[test]
fn where_udp_is_dropped_silently_they_hear_each_other_over_tcp_within_two_seconds() {
    // A port where TCP is served, and where UDP goes into a socket that nobody reads.
    let dir = tempfile::tempdir().unwrap();
    let silent = loop {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        if TcpListener::bind(silent.local_addr().unwrap()).is_ok() {
            break silent;
        }
    };
    let port = silent.local_addr().unwrap().port();
    let server = hall::serve(dir.path(), "server", &format!("/ip4/127.0.0.1/tcp/{port}"));
    let at = format!("/ip4/127.0.0.1/udp/{port}/quic-v1/p2p/{}", server.peer_id());
    let start = |name: &str| {
        let args = NodeArgs { input: "tone:440".into(), ..NodeArgs::default() };
        hall::node(dir.path(), "kitchen", name, args.with(&["--path", "relay", "--at", &at]))
    };
    let mut ana = start("ana");
    ana.wait("its registration", SOON, |event| {
        event["event"] == "rendezvous" && event["state"] == "registered"
    });
    let mut ben = start("ben");
    let first = ben.wait_hearing(&ana.peer_id())["since_start_ms"].as_f64().unwrap();
    println!("first audio over TCP {first:.0} ms after launch");
    assert!(first < 2000.0 + BUSY.as_secs_f64() * 1e3, "{first} ms\n{}", ben.story());
    ben.wait("its path", SOON, |event| event["event"] == "stats" && event["path"] == "tcp");
    ana.leave();
    ben.leave();
}

/// Two servers, a call through one of them, which then ends in some way. Gives the gaps.
fn through_two_servers(end: Signal) -> [Duration; 2] {
    let hall = Hall::open();
    let second = hall::serve(hall.dir.path(), "second", QUIC4);
    let also = hall::address(&second);
    let more: &[&str] = &["--path", "relay", "--at", &also];
    let pair = Pair::start(&hall, [more, more]);
    pair.hear();
    // The ways of both through both servers work, and have been compared for a while.
    for (server, id) in
        [&hall.server, &second].into_iter().flat_map(|of| pair.ids.each_ref().map(|id| (of, id)))
    {
        server.wait("a way through it", SOON, |event| begins_for(event, id));
    }
    pass_time(Duration::from_secs(3));
    let used = pair.nodes[0].named("stats").pop().expect("figures");
    let used = used["remote"].as_str().unwrap().trim_end_matches("/p2p-circuit").to_owned();
    let mut victim = if hall.at.starts_with(&used) { hall.server } else { second };
    let began = clock::now_ns();
    victim.signal(end);
    victim.wait_exit(SOON);
    pass_time(Duration::from_secs(5));
    for i in 0..2 {
        let told = pair.told(i);
        assert!(!states(&told).contains(&"left") && !states(&told).contains(&"reconnecting"), "{told:?}");
        let now = pair.nodes[i].named("stats").pop().unwrap();
        assert!(!now["remote"].as_str().unwrap().starts_with(&used), "{now}\n{}", pair.nodes[i].story());
    }
    pair.gaps(began - SECOND_NS, began + 5 * SECOND_NS)
}

#[test]
fn when_the_server_of_a_call_is_killed_another_takes_over_within_three_seconds() {
    for gap in through_two_servers(Signal::KILL) {
        assert!(gap < Duration::from_secs(3) + BUSY / 3, "{gap:?}");
    }
}

#[test]
fn a_server_that_shuts_down_is_left_before_it_ends_and_hardly_anything_is_missed() {
    for gap in through_two_servers(Signal::TERM) {
        assert!(gap <= Duration::from_millis(200) + BUSY / 5, "{gap:?}");
    }
}

/// Two nodes whose direct paths lead through a link, which is dead for a while at first; the server is reached beside it.
fn over_a_link(hall: &Hall, more: &[&str], dead: Duration) -> (Pair, Proxy) {
    let link = Profile::symmetric("10 ms", LinkConfig { delay_ms: 10.0, ..LinkConfig::default() }, 7);
    let proxy = Proxy::start(ProxyConfig::new(link)).unwrap();
    proxy.black_out(dead);
    let stand_ins = [proxy.addr_of_a().unwrap(), proxy.addr_of_b().unwrap()].map(quic);
    let args = stand_ins.each_ref().map(|at| [&["--announce", at.as_str()], more].concat());
    let pair = Pair::start(hall, [&args[0], &args[1]]);
    proxy.set_a(socket_of(&pair.nodes[0]));
    proxy.set_b(socket_of(&pair.nodes[1]));
    pair.hear();
    (pair, proxy)
}

/// The same with a call that has been on the direct path for a while.
fn on_a_link(hall: &Hall, more: &[&str]) -> (Pair, Proxy) {
    let (pair, proxy) = over_a_link(hall, more, Duration::ZERO);
    pair.wait_path([0, 0], "direct", SOON);
    pass_time(Duration::from_secs(3));
    (pair, proxy)
}

#[test]
fn a_direct_path_that_dies_is_replaced_by_the_server_at_once_and_taken_again_when_it_is_back() {
    let hall = Hall::open();
    let (pair, proxy) = on_a_link(&hall, &[]);
    let marks = pair.marks();
    let cut = clock::now_ns();
    proxy.black_out(Duration::from_secs(12));
    pair.wait_path(marks, "relayed", Duration::from_secs(1) + BUSY);
    pass_time(Duration::from_nanos((cut + 12 * SECOND_NS).saturating_sub(clock::now_ns())));
    let marks = pair.marks();
    pair.wait_path(marks, "direct", Duration::from_secs(10) + BUSY);
    for i in 0..2 {
        let told = pair.told(i);
        assert!(!states(&told).contains(&"left"), "{told:?}");
        let changes: Vec<&Value> = told.iter().filter(|event| event["state"] == "path_changed").collect();
        assert!(changes.iter().all(|event| event["reason"].is_string()), "{changes:?}");
    }
    let end = clock::now_ns();
    for gap in pair.gaps(cut - SECOND_NS, end) {
        assert!(gap < Duration::from_secs(1) + BUSY / 3, "{gap:?}");
    }
}

#[test]
fn a_call_that_climbs_from_the_server_to_a_direct_path_loses_no_frame() {
    let hall = Hall::open();
    // No direct path until it is said so.
    let (pair, proxy) = over_a_link(&hall, &[], Duration::from_secs(3600));
    pair.wait_path([0, 0], "relayed", SOON);
    pass_time(Duration::from_secs(3));
    let (marks, heard) = (pair.marks(), clock::now_ns());
    for i in 0..2 {
        assert!(pair.told(i).iter().all(|event| event["path"] != "direct"), "{:?}", pair.told(i));
    }
    proxy.black_out(Duration::ZERO);
    pair.wait_path(marks, "direct", SOON);
    pass_time(Duration::from_secs(5));
    for (i, mark) in marks.into_iter().enumerate() {
        let stats = pair.nodes[i].events().into_iter().skip(mark).filter(|event| event["event"] == "stats");
        let lost: Vec<f64> = stats.filter_map(|stats| stats["loss_pct"].as_f64()).collect();
        println!("{} lost {lost:?} %", pair.nodes[i].name);
        assert!(lost.len() >= 4 && lost.iter().all(|lost| *lost == 0.0), "{lost:?}");
    }
    let end = clock::now_ns();
    for gap in pair.gaps(heard, end) {
        assert!(gap < Duration::from_millis(60) + BUSY / 10, "{gap:?}");
    }
}

/// The NAT of one side forgets its mapping in a call that has no other path.
fn rebound(a: bool) -> [Duration; 2] {
    let hall = Hall::open();
    let (pair, mut proxy) = on_a_link(&hall, &["--path", "direct"]);
    let began = clock::now_ns();
    if a { proxy.rebind_a() } else { proxy.rebind_b() }.unwrap();
    pass_time(Duration::from_secs(5));
    for i in 0..2 {
        let told = pair.told(i);
        assert!(!states(&told).contains(&"left"), "no join is shown again: {told:?}");
        assert_eq!(states(&told).iter().filter(|state| **state == "connected").count(), 1, "{told:?}");
    }
    pair.gaps(began - SECOND_NS, began + 5 * SECOND_NS)
}

#[test]
fn when_either_sides_nat_forgets_its_mapping_the_voice_is_gone_for_half_a_second_at_most() {
    for a in [true, false] {
        for gap in rebound(a) {
            assert!(gap <= Duration::from_millis(500) + BUSY / 3, "{gap:?}");
        }
    }
}

#[test]
fn a_call_that_began_over_tcp_moves_to_udp_when_that_works_again() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home").display().to_string();
    let args = ["rendezvous", "--data-dir", &home, "--json", "--listen", QUIC4, "--listen", TCP4];
    let server = Process::start(dir.path(), "server", args, &[]);
    let find = |kind: &str| server.listen().into_iter().find(|addr| addr.contains(kind)).unwrap();
    let (udp, tcp, id) = (find("/udp/"), find("/tcp/"), server.peer_id());
    // Ana's UDP to the server leads through a link that is dead at first.
    let link = Profile::symmetric("5 ms", LinkConfig { delay_ms: 5.0, ..LinkConfig::default() }, 7);
    let proxy = Proxy::start(ProxyConfig::new(link)).unwrap();
    proxy.set_b(socket_of(&server));
    proxy.black_out(Duration::from_secs(8));
    let blocked = clock::now_ns();
    let through = quic(proxy.addr_of_b().unwrap());
    let heards = ["ana", "ben"].map(|name| dir.path().join(format!("{name}-heard.wav")));
    let start = |name: &str, hz: u32, heard: &std::path::Path, at: &[String]| {
        let mut args = NodeArgs::humming(hz, heard).with(&["--path", "relay"]);
        at.iter().for_each(|at| args.more.extend(["--at".into(), format!("{at}/p2p/{id}")]));
        hall::node(dir.path(), "kitchen", name, args)
    };
    let mut ana = start("ana", 440, &heards[0], &[through, tcp]);
    let mut ben = start("ben", 620, &heards[1], &[udp]);
    let (ana_id, ben_id) = (ana.peer_id(), ben.peer_id());
    ana.wait_hearing(&ben_id);
    ben.wait_hearing(&ana_id);
    let heard = clock::now_ns();
    ana.wait("voice over TCP", SOON, |event| event["event"] == "stats" && event["path"] == "tcp");
    ana.wait("the way over UDP", Duration::from_secs(18) + BUSY, |event| {
        event["state"] == "path_changed" && event["path"] == "relayed"
    });
    println!(
        "over UDP again {:?} after it was blocked for 8 s",
        Duration::from_nanos(clock::now_ns() - blocked)
    );
    pass_time(Duration::from_secs(4));
    let end = clock::now_ns();
    ana.leave();
    ben.leave();
    for (node, file) in [(&ana, &heards[0]), (&ben, &heards[1])] {
        let gap = longest_gap(Recording::of(node, file).between(heard + SECOND_NS, end));
        println!("{} heard nothing for {gap:?}", node.name);
        assert!(gap < Duration::from_millis(500) + BUSY / 5, "{gap:?}\n{}", ana.story());
    }
}
