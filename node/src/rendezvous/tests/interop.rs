//! libp2p's own client and server.

use super::*;

#[derive(NetworkBehaviour)]
struct StockClient {
    rendezvous: stock::client::Behaviour,
}

#[tokio::test(start_paused = true)]
async fn libp2ps_own_client_registers_discovers_and_leaves_at_our_server() {
    let server = Rendezvous::start();
    let hall = stock::Namespace::from_static("hall");
    let mut ana = Node::join(server.target(), "hall");
    ana.registered().await;

    let keypair = Keypair::generate_ed25519();
    let peer: PeerId = keypair.public().into();
    let behaviour = StockClient { rendezvous: stock::client::Behaviour::new(keypair.clone()) };
    let mut swarm = new_swarm(&keypair, behaviour);
    swarm.add_external_address(address());
    swarm.dial(server.addr.clone()).unwrap();
    let rendezvous_node = server.keypair.public().into();
    let step = |swarm: &mut Swarm<StockClient>, event| match event {
        SwarmEvent::ConnectionEstablished { .. } => {
            let rendezvous = &mut swarm.behaviour_mut().rendezvous;
            rendezvous.register(hall.clone(), rendezvous_node, None).unwrap();
            None
        }
        SwarmEvent::Behaviour(StockClientEvent::Rendezvous(event)) => Some(event),
        _ => None,
    };
    let next = async |swarm: &mut Swarm<StockClient>| loop {
        let event = swarm.select_next_some().await;
        if let Some(event) = step(swarm, event) {
            return event;
        }
    };
    let event = next(&mut swarm).await;
    assert!(matches!(event, stock::client::Event::Registered { ttl: 7200, .. }), "{event:?}");
    assert_eq!(ana.sees(peer).await.1, Via::Pushed);

    let ask = |swarm: &mut Swarm<StockClient>, ns, cookie| {
        swarm.behaviour_mut().rendezvous.discover(ns, cookie, None, rendezvous_node);
    };
    ask(&mut swarm, Some(hall.clone()), None);
    let stock::client::Event::Discovered { registrations, cookie, .. } = next(&mut swarm).await else {
        panic!("not discovered")
    };
    let mut found: Vec<_> = registrations.iter().map(|r| r.record.peer_id()).collect();
    found.sort();
    let mut expected = vec![ana.peer, peer];
    expected.sort();
    assert_eq!(found, expected);

    ask(&mut swarm, Some(hall.clone()), Some(cookie));
    let event = next(&mut swarm).await;
    assert!(
        matches!(&event, stock::client::Event::Discovered { registrations, .. } if registrations.is_empty()),
        "{event:?}"
    );

    ask(&mut swarm, None, None);
    let event = next(&mut swarm).await;
    let refused = matches!(
        event,
        stock::client::Event::DiscoverFailed { error: stock::ErrorCode::InvalidNamespace, .. }
    );
    assert!(refused, "{event:?}");

    swarm.behaviour_mut().rendezvous.unregister(hall.clone(), rendezvous_node);
    let _swarm = drive(swarm);
    ana.misses(peer).await;
}

#[derive(NetworkBehaviour)]
struct StockServer {
    rendezvous: stock::server::Behaviour,
}

fn stock_server() -> (Target, JoinHandle<()>) {
    let (keypair, addr) = (Keypair::generate_ed25519(), address());
    let behaviour = StockServer { rendezvous: stock::server::Behaviour::new(Default::default()) };
    let mut swarm = new_swarm(&keypair, behaviour);
    swarm.listen_on(addr.clone()).unwrap();
    (Target { peer: Some(keypair.public().into()), addresses: vec![addr] }, drive(swarm))
}

#[tokio::test(start_paused = true)]
async fn our_client_polls_a_server_that_cannot_push() {
    let (target, _server) = stock_server();
    let mut ana = Node::join(target.clone(), "hall");
    let ttl = ana.hears(|e| if let ClientEvent::Registered { ttl } = e { Some(ttl) } else { None }).await;
    assert_eq!(ttl, Duration::from_secs(7200), "it insists on its least");
    ana.hears(|e| matches!(e, ClientEvent::Connected { push: false, .. }).then_some(())).await;

    let began = Instant::now();
    let mut ben = Node::join(target, "hall");
    ben.sees(ana.peer).await;
    assert_eq!(ana.sees(ben.peer).await.1, Via::Polled);
    assert!(began.elapsed() <= Duration::from_secs(6), "{:?}", began.elapsed());
    let moved = vec![address(), address()];
    ben.client.set_addresses(moved.clone());
    assert_eq!(ana.sees(ben.peer).await.0, moved);
    ben.client.leave().await;
    ana.misses(ben.peer).await;
}

#[tokio::test(start_paused = true)]
async fn a_polled_server_that_goes_is_lost() {
    let (target, server) = stock_server();
    let mut ana = Node::join(target, "hall");
    ana.registered().await;
    server.abort();
    ana.loses().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_serves_no_rendezvous_is_named_as_such() {
    let (keypair, addr) = (Keypair::generate_ed25519(), address());
    let mut swarm = new_swarm(&keypair, swarm::dummy::Behaviour);
    swarm.listen_on(addr.clone()).unwrap();
    let _swarm = drive(swarm);
    let mut ana = Node::join(Target::from_multiaddr(&addr), "hall");
    assert_eq!(ana.loses().await.0, LostWhy::NotARendezvous);
}
