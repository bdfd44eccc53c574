//! What a node and a server keep to, whatever others want of them: the user's ceiling, a flooding member, reflection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use hallway::bench::link::LinkConfig;
use hallway::bench::profile::Profile;
use hallway::bench::proxy::{Proxy, ProxyConfig};
use hallway::forward::wire::up;
use hallway::invite::Invite;
use hallway::transport::{Config, QuicTransport};
use hallway_tests::flood::Flooder;
use hallway_tests::guest::Guest;
use hallway_tests::hall::{NodeArgs, quic, socket_in, socket_of};
use hallway_tests::process::{Process, SOON};
use hallway_tests::stranger::Stranger;
use hallway_tests::{Hall, skipped};
use libp2p::core::Endpoint;
use libp2p::core::transport::{DialOpts, PortUse, Transport};
use libp2p::identity::Keypair;
use tokio::sync::Mutex;

/// Each test wants the machine for itself: what another one takes away would be laid at the door of whoever is measured.
static ALONE: Mutex<()> = Mutex::const_new(());

#[test]
fn a_users_ceiling_holds_within_five_percent_over_any_five_seconds() {
    const KBPS: f64 = 200.0;
    let _alone = ALONE.blocking_lock();
    let hall = Hall::open();
    let link = Profile::symmetric("1 ms", LinkConfig { delay_ms: 1.0, ..LinkConfig::default() }, 7);
    let proxy = Proxy::start(ProxyConfig::new(link)).unwrap();
    let stand_ins = [proxy.addr_of_a().unwrap(), proxy.addr_of_b().unwrap()].map(quic);
    let node = |name: &str, at: &str, more: &[&str]| {
        let args = NodeArgs { input: "tone:440".into(), ..NodeArgs::default() };
        hall.node("kitchen", name, args.with(&["--announce", at, "--path", "direct"]).with(more))
    };
    let mut ana = node("ana", &stand_ins[0], &["--max-rate", "200"]);
    let mut ben = node("ben", &stand_ins[1], &[]);
    proxy.set_a(socket_of(&ana));
    proxy.set_b(socket_of(&ben));
    ben.wait_hearing(&ana.peer_id());
    let began = Instant::now();
    let mut samples = vec![(0.0, 0)];
    while began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(250));
        let counts = proxy.counts().ab;
        samples.push((began.elapsed().as_secs_f64(), counts.delivered_bytes));
    }
    ana.leave();
    ben.leave();
    let window = |i: usize| {
        let end = samples.iter().skip(i).find(|(at, _)| at - samples[i].0 >= 5.0)?;
        Some((end.1 - samples[i].1) as f64 * 8e-3 / (end.0 - samples[i].0))
    };
    let rates: Vec<f64> = (1..samples.len()).filter_map(window).collect();
    let worst = rates.iter().copied().fold(0.0, f64::max);
    let least = rates.iter().copied().fold(f64::MAX, f64::min);
    // What the link hands over late counts in a later window.
    let late = proxy.counts().timing.late_max_us as f64 * 1e-6;
    println!("a ceiling of {KBPS} kb/s: {least:.1} to {worst:.1} kb/s over 5 s, at most {late:.3} s late");
    assert!(worst <= KBPS * (1.05 + late / 5.0), "{worst} kb/s");
    assert!(least > KBPS * 0.4, "{least} kb/s: it still speaks");
    // The codec keeps to its share, so that hardly anything is lost.
    let summary = ben.wait_named("summary");
    let loss = summary["peers"][0]["loss_pct"].as_f64().unwrap();
    println!("{loss:.2} % of the packets were held back");
    assert!(loss < 10.0, "{loss} %");
}

/// What a flood may cost the others.
const MOST_LOSS_PCT: f64 = 1.0;
const MOST_MEMORY_KB: u64 = 20 * 1024;
/// What a flooder is to send, and the least that makes it a flood of that size.
const FLOOD_MBPS: f64 = 104.0;
const LEAST_MBPS: f64 = 100.0;
const FLOOD_FOR: Duration = Duration::from_secs(6);

/// Two who hum at each other, how they fare while somebody floods, and what it cost.
struct Victims {
    ana: Process,
    ben: Process,
    mark: usize,
}

impl Victims {
    fn talking(hall: &Hall, more: &[&str]) -> Victims {
        let humming = || NodeArgs { input: "tone:440".into(), ..NodeArgs::default() }.with(more);
        let (ana, ben) = (hall.node("kitchen", "ana", humming()), hall.node("kitchen", "ben", humming()));
        ana.wait_hearing(&ben.peer_id());
        Victims { ana, ben, mark: 0 }
    }

    /// Both leave; what ana missed of ben while she was flooded stays below the bound.
    fn judge(mut self, what: &str, mbps: f64, memory: [Option<u64>; 2]) {
        let ben = self.ben.peer_id();
        self.ana.leave();
        self.ben.leave();
        let stats = self.ana.events().into_iter().skip(self.mark);
        let lost: Vec<f64> = stats
            .filter(|e| e["event"] == "stats" && e["peer_id"] == ben.as_str())
            .filter_map(|e| e["loss_pct"].as_f64())
            .collect();
        let mean = lost.iter().sum::<f64>() / lost.len() as f64;
        println!(
            "{what}: {mbps:.0} Mb/s left the flooder; ana lost {mean:.2} % of ben; memory {memory:?} KiB"
        );
        if let [Some(before), Some(after)] = memory {
            assert!(after < before + MOST_MEMORY_KB, "{before} to {after} KiB");
        }
        assert!(lost.len() >= 4, "{lost:?}");
        // Who cannot send as much has no processor left, and neither have the victims.
        if mbps < LEAST_MBPS {
            return skipped(&format!("loss in a flood {what}: this machine sends no {LEAST_MBPS:.0} Mb/s"));
        }
        assert!(mean < MOST_LOSS_PCT, "{lost:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_sends_a_hundred_megabits_disturbs_nobody_and_fills_no_memory() {
    let _alone = ALONE.lock().await;
    let hall = Hall::open();
    let mut victims = Victims::talking(&hall, &[]);
    let (eve, invite) = (Stranger::new(), "kitchen".parse::<Invite>().unwrap());
    let flooder = Flooder::dial(&eve.keypair, &victims.ana.listen()[0]).await;
    let ana = victims.ana.peer_id().parse().unwrap();
    let mut member = eve.join(flooder.connection.clone(), &invite, ana).await;
    member.listen(Duration::from_secs(1)).await;
    victims.mark = victims.ana.mark();
    let before = victims.ana.rss_kb();
    let voice = [&[1u8][..], &[0x55; 1100]].concat();
    let (mbps, _) =
        tokio::join!(flooder.flood(voice.into(), FLOOD_MBPS, FLOOD_FOR), member.listen(FLOOD_FOR));
    let after = victims.ana.rss_kb();
    victims.judge("at a node", mbps, [before, after]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_sends_a_hundred_megabits_to_the_server_disturbs_nobody_there() {
    let _alone = ALONE.lock().await;
    let hall = Hall::open();
    let mut victims = Victims::talking(&hall, &["--path", "relay"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let namespace = "kitchen".parse::<Invite>().unwrap().secrets().namespace(now);
    let eve = Keypair::generate_ed25519();
    let guest = Guest::enter(eve.clone(), &hall.at, &namespace, 3).await;
    let flooder = Flooder::dial(&eve, &hall.at).await;
    let everybody: Vec<u8> = guest.members.iter().map(|(number, _)| *number).collect();
    victims.mark = victims.ana.mark();
    let before = hall.server.rss_kb();
    let voice = up(guest.handle, &everybody, &[&[1u8][..], &[0x55; 1100]].concat());
    let mbps = flooder.flood(voice, FLOOD_MBPS, FLOOD_FOR).await;
    let after = hall.server.rss_kb();
    victims.judge("at the server", mbps, [before, after]);
    hall.server
        .wait("the flooder is told of", SOON, |event| event["event"] == "refused" && event["why"] == "rate");
}

/// The first packets of a handshake that goes no further.
async fn first_flight() -> Vec<Vec<u8>> {
    let trap = UdpSocket::bind("127.0.0.1:0").unwrap();
    trap.set_read_timeout(Some(SOON)).unwrap();
    let (mut transport, _connections) =
        QuicTransport::new(Config::new(&Keypair::generate_ed25519()).unwrap());
    let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
    let dial = transport.dial(quic(trap.local_addr().unwrap()).parse().unwrap(), opts).unwrap();
    let dial = tokio::spawn(dial);
    let flight = tokio::task::spawn_blocking(move || {
        let mut packets = Vec::new();
        let mut buffer = [0u8; 2048];
        let mut receive = || trap.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec());
        while let Some(packet) = receive() {
            packets.push(packet);
            // The others of a flight follow at once.
            trap.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        }
        packets
    });
    let flight = flight.await.unwrap();
    dial.abort();
    flight
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_many_half_open_handshakes_a_spoofed_first_packet_draws_less_than_three_times_its_size() {
    let _alone = ALONE.lock().await;
    let hall = Hall::open();
    let server = socket_in(&hall.at);
    let mut flights = Vec::new();
    for _ in 0..48 {
        let flight = first_flight().await;
        assert!(!flight.is_empty(), "a client says hello");
        flights.push(flight);
    }
    let mut ratios = Vec::new();
    for flight in flights {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sent: usize = flight.iter().map(Vec::len).sum();
        flight.iter().for_each(|packet| _ = socket.send_to(packet, server).unwrap());
        ratios.push((socket, sent));
    }
    // Everything that the server says without ever hearing from these addresses again.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let ratios: Vec<f64> = ratios
        .into_iter()
        .map(|(socket, sent)| {
            socket.set_nonblocking(true).unwrap();
            let mut buffer = [0u8; 2048];
            let drawn: usize = std::iter::from_fn(|| socket.recv(&mut buffer).ok()).sum();
            drawn as f64 / sent as f64
        })
        .collect();
    let (early, late) = ratios.split_at(40);
    let worst = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
    println!("drawn before Retry at most {:.2}, under Retry at most {:.2} times", worst(early), worst(late));
    assert!(worst(late) <= 3.0 && worst(late) > 0.0, "{late:?}");
    assert!(worst(late) < 1.0, "a Retry is small: {late:?}");
    // An honest node gets in meanwhile.
    let mut ana: Process = hall.node("kitchen", "ana", NodeArgs::default());
    ana.wait("its registration", SOON, |event| {
        event["event"] == "rendezvous" && event["state"] == "registered"
    });
    ana.leave();
}
