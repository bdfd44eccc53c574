//! The rendezvous server as a program: what it says, what it keeps to itself, how it goes.

// All of this file is test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::time::Duration;

use futures::StreamExt;
use hallway::transport::{Authenticated, Config, QuicTransport};
use hallway_tests::Hall;
use hallway_tests::hall::{NodeArgs, QUIC4, QUIC6, TCP4};
use hallway_tests::process::{Process, SOON};
use libp2p::identity::Keypair;
use libp2p::rendezvous::{Cookie, ErrorCode, Namespace, client};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder};
use rustix::process::Signal;

#[test]
fn it_tells_who_comes_and_goes_and_leaves_in_order_when_asked() {
    let mut hall = Hall::open();
    let mut ana = hall.node("kitchen", "ana", NodeArgs::default());
    let mut ben = hall.node("kitchen", "ben", NodeArgs::default());
    for node in [&ana, &ben] {
        let id = node.peer_id();
        hall.server.wait("its registration", SOON, |event| {
            event["event"] == "registered" && event["peer_id"] == id.as_str()
        });
    }
    let id = ben.peer_id();
    ben.leave();
    let gone = hall
        .server
        .wait("its goodbye", SOON, |event| event["event"] == "expired" && event["peer_id"] == id.as_str());
    assert_eq!(gone["left"], true, "{gone}");
    let stats = hall.server.wait_named("stats");
    assert!(stats["at_ns"].is_u64(), "{stats}");
    // Who is in which room is nobody's business: not even the name of the room is known here.
    let all = String::from_utf8(hall.server.stdout()).unwrap() + &hall.server.stderr();
    assert!(!all.contains("kitchen"), "{all}");

    let mark = ana.mark();
    hall.server.signal(Signal::TERM);
    assert_eq!(hall.server.wait_exit(SOON), Some(0), "{}", hall.server.story());
    ana.wait_after(mark, "the loss of the server", SOON, |event| {
        event["event"] == "rendezvous" && event["state"] == "lost"
    });
    assert!(ana.is_running());
    ana.leave();
}

#[test]
fn one_server_serves_quic_and_tcp_in_both_families() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home").display().to_string();
    let mut listen = vec![QUIC4, TCP4];
    if std::net::UdpSocket::bind("[::1]:0").is_ok() {
        listen.push(QUIC6);
    }
    let mut args = vec!["rendezvous", "--data-dir", &home, "--json"];
    listen.iter().for_each(|addr| args.extend(["--listen", addr]));
    let mut server = Process::start(dir.path(), "server", &args, &[]);
    assert_eq!(server.listen().len(), listen.len(), "{}", server.story());
    let names = ["ana", "ben", "cem"];
    let mut nodes: Vec<Process> = names
        .iter()
        .zip(server.listen())
        .map(|(name, addr)| {
            let at = format!("{addr}/p2p/{}", server.peer_id());
            hallway_tests::hall::node(dir.path(), "kitchen", name, NodeArgs::default().with(&["--at", &at]))
        })
        .collect();
    for me in &nodes {
        for other in nodes.iter().filter(|other| other.name != me.name) {
            me.wait_peer(&other.peer_id(), "connected");
        }
    }
    nodes.iter_mut().for_each(Process::leave);
    server.leave();
}

type Connections = tokio::sync::mpsc::Receiver<Authenticated>;

#[derive(NetworkBehaviour)]
struct Client {
    rendezvous: client::Behaviour,
}

/// libp2p's own client, over our transport; connections are refused where nobody holds the receiver.
fn client() -> (Swarm<Client>, Connections) {
    let keypair = Keypair::generate_ed25519();
    let (quic, connections) = QuicTransport::new(Config::new(&keypair).unwrap());
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| quic)
        .unwrap()
        .with_behaviour(|keypair| Client { rendezvous: client::Behaviour::new(keypair.clone()) })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build();
    (swarm, connections)
}

async fn next(swarm: &mut Swarm<Client>) -> client::Event {
    let event = async {
        loop {
            if let SwarmEvent::Behaviour(ClientEvent::Rendezvous(event)) = swarm.select_next_some().await {
                return event;
            }
        }
    };
    tokio::time::timeout(SOON, event).await.expect("an answer")
}

async fn discover(
    swarm: &mut Swarm<Client>,
    server: PeerId,
    name: Option<&str>,
    cookie: Option<Cookie>,
) -> client::Event {
    let namespace = name.map(|name| Namespace::new(name.to_owned()).unwrap());
    swarm.behaviour_mut().rendezvous.discover(namespace, cookie, None, server);
    next(swarm).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_with_libp2ps_own_client_learns_of_no_room_and_nobody() {
    let hall = Hall::open();
    let mut ana = hall.node("kitchen", "ana", NodeArgs::default());
    let id = ana.peer_id();
    hall.server.wait("its registration", SOON, |event| {
        event["event"] == "registered" && event["peer_id"] == id.as_str()
    });

    let (mut swarm, _connections) = client();
    let server: PeerId = hall.server.peer_id().parse().unwrap();
    swarm.dial(hall.at.parse::<Multiaddr>().unwrap()).unwrap();
    let connecting = async {
        while !swarm.is_connected(&server) {
            swarm.select_next_some().await;
        }
    };
    tokio::time::timeout(SOON, connecting).await.expect("a connection");
    let all = discover(&mut swarm, server, None, None).await;
    let refused = matches!(&all, client::Event::DiscoverFailed { error: ErrorCode::InvalidNamespace, .. });
    assert!(refused, "everything was told: {all:?}");
    // Not by the room's plain name either.
    let named = discover(&mut swarm, server, Some("kitchen"), None).await;
    let client::Event::Discovered { registrations, cookie, .. } = &named else { panic!("{named:?}") };
    assert!(registrations.is_empty(), "{registrations:?}");
    // A cookie of one namespace opens no other.
    let again = discover(&mut swarm, server, None, Some(cookie.clone())).await;
    assert!(matches!(again, client::Event::DiscoverFailed { .. }), "{again:?}");
    let refusal = hall.server.wait_named("refused");
    assert_eq!(refusal["why"], "namespace", "{refusal}");
    ana.leave();
}
