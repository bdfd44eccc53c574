//! Our client at our server.

use super::*;

#[tokio::test(start_paused = true)]
async fn two_watchers_see_each_other_without_asking_twice() {
    let server = Rendezvous::start();
    let began = Instant::now();
    let mut ana = Node::join(server.target(), "hall");
    let (peer, addr) = (PeerId::from(server.keypair.public()), server.addr.clone());
    let asked = ClientEvent::Asked { server: peer, addr: addr.clone() };
    let connected = ClientEvent::Connected { server: peer, addr, push: true };
    assert_eq!([ana.hears(Some).await, ana.hears(Some).await], [asked, connected]);
    ana.registered().await;
    let mut ben = Node::join(server.target(), "hall");
    assert_eq!(ben.sees(ana.peer).await.1, Via::Initial);
    let (addresses, via) = ana.sees(ben.peer).await;
    assert_eq!((addresses.len(), via), (1, Via::Pushed));
    assert_eq!(began.elapsed(), Duration::ZERO, "no timer was needed");
}

#[tokio::test(start_paused = true)]
async fn the_observed_address_is_raw_and_people_in_other_rooms_are_not_seen() {
    let server = Rendezvous::start();
    let mut ana = Node::join(server.target(), "hall");
    let mut ben = Node::join(server.target(), "attic");
    let observed =
        ana.hears(|e| if let ClientEvent::Observed { addr } = e { Some(addr) } else { None }).await;
    assert!(observed.to_string().starts_with("/memory/"), "{observed}");
    let ben_hears =
        ben.hears(|e| if let ClientEvent::OtherKeys { count } = e { Some(count) } else { None }).await;
    assert_eq!(ben_hears, 1, "ana is at the same door with another key");
    ana.hears(|e| (e == ClientEvent::OtherKeys { count: 1 }).then_some(())).await;
    ben.client.leave().await;
    ana.hears(|e| (e == ClientEvent::OtherKeys { count: 0 }).then_some(())).await;
    assert!(ana.people_heard().is_empty());
}

#[tokio::test(start_paused = true)]
async fn new_addresses_are_pushed_to_the_others() {
    let server = Rendezvous::start();
    let mut ana = Node::join(server.target(), "hall");
    let mut ben = Node::join(server.target(), "hall");
    ana.sees(ben.peer).await;
    let moved = vec![address(), address()];
    ben.client.set_addresses(moved.clone());
    ben.registered().await;
    assert_eq!(ana.sees(ben.peer).await.0, moved);
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_is_heard_at_once_and_a_crash_within_fifteen_seconds() {
    let server = Rendezvous::start();
    let mut ana = Node::join(server.target(), "hall");
    let (ben, cleo) = (Node::join(server.target(), "hall"), Node::join(server.target(), "hall"));
    let (first, second) = (ana.sees_anybody().await, ana.sees_anybody().await);
    assert!([first, second].contains(&ben.peer) && [first, second].contains(&cleo.peer));

    let began = Instant::now();
    ben.client.leave().await;
    ana.misses(ben.peer).await;
    assert_eq!(began.elapsed(), Duration::ZERO);

    cleo.swarm.abort();
    ana.misses(cleo.peer).await;
    assert!(
        began.elapsed() >= STREAM_GRACE && began.elapsed() < STREAM_GRACE + WATCH_IDLE,
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_is_heard_at_once_whatever_else_the_client_is_about() {
    let server = Rendezvous::start();
    let mut ana = Node::join(server.target(), "hall");
    ana.registered().await;
    for steps in 0..40 {
        let mut ben = Node::join(server.target(), "hall");
        ben.registered().await;
        ana.sees(ben.peer).await;
        let began = Instant::now();
        // Another door means another stream.
        ben.client.set_door([7; 16]);
        for _ in 0..steps {
            tokio::task::yield_now().await;
        }
        ben.client.leave().await;
        ana.misses(ben.peer).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "after {steps} steps");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_falls_silent_is_gone_after_ten_seconds_and_the_grace() {
    let server = Rendezvous::start();
    let mut ana = Node::join(server.target(), "hall");
    ana.registered().await;
    let mute = Outsider::new();
    let mut stream = mute.opener.open(&server.target(), WATCH_PROTOCOL).await.unwrap().stream;
    wire::write(&mut stream, &watch(&mute.keypair)).await.unwrap();
    let peer = mute.keypair.public().into();
    ana.sees(peer).await;
    let began = Instant::now();
    ana.misses(peer).await;
    assert_eq!(began.elapsed().as_secs(), (WATCH_IDLE + STREAM_GRACE).as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_restarted_server_is_found_again_and_nobody_is_reported_gone() {
    let server = Rendezvous::start();
    let mut ana = Node::join(server.target(), "hall");
    let mut ben = Node::join(server.target(), "hall");
    ana.sees(ben.peer).await;
    ben.sees(ana.peer).await;

    let (keypair, addr) = server.crash().await;
    let down = Instant::now();
    let mut tries = 0;
    while down.elapsed() < Duration::from_secs(10) {
        let (why, retry_in) = ana.loses().await;
        assert!(
            matches!(why, LostWhy::Broken { .. } | LostWhy::Unreachable { .. } | LostWhy::Silent),
            "{why:?}"
        );
        assert!(retry_in >= Duration::from_millis(500));
        tries += 1;
    }
    assert!((3..=20).contains(&tries), "{tries} tries in ten seconds");

    let _server = Rendezvous::start_as(keypair, addr);
    let up = Instant::now();
    for node in [&mut ana, &mut ben] {
        let mut gone = 0;
        node.hears(|e| {
            gone += u32::from(matches!(e, ClientEvent::PeerGone { .. }));
            matches!(e, ClientEvent::Registered { .. }).then_some(())
        })
        .await;
        assert_eq!(gone, 0);
    }
    assert!(up.elapsed() <= Duration::from_secs(15), "{:?}", up.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_shuts_down_says_so() {
    let server = Rendezvous::start();
    let mut ana = Node::join(server.target(), "hall");
    ana.registered().await;
    let began = Instant::now();
    server.server.shutdown().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(ana.loses().await.0, LostWhy::Closing);
}

#[tokio::test(start_paused = true)]
async fn another_identity_than_the_expected_is_named() {
    let server = Rendezvous::start();
    let obtained = server.keypair.public().into();
    let expected = PeerId::random();
    let mut ana = Node::join(Target { peer: Some(expected), ..server.target() }, "hall");
    assert_eq!(ana.loses().await.0, LostWhy::WrongIdentity { expected, obtained });
}

#[tokio::test(start_paused = true)]
async fn an_address_without_identity_is_enough_and_one_where_nobody_is_is_unreachable() {
    let server = Rendezvous::start();
    let anybody = Target { peer: None, addresses: vec![address(), server.addr.clone()] };
    let mut ana = Node::join(anybody.clone(), "hall");
    ana.registered().await;
    let mut ben = Node::join(Target::from_multiaddr(&address()), "hall");
    assert!(matches!(ben.loses().await.0, LostWhy::Unreachable { .. }));
}

#[test]
fn a_multiaddr_names_the_identity_at_its_end() {
    let peer = PeerId::random();
    let bare: Multiaddr = "/ip4/9.9.9.9/udp/1/quic-v1".parse().unwrap();
    let full = bare.clone().with_p2p(peer).unwrap();
    assert_eq!(Target::from_multiaddr(&full), Target { peer: Some(peer), addresses: vec![bare.clone()] });
    assert_eq!(Target::from_multiaddr(&bare), Target { peer: None, addresses: vec![bare] });
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_connections_that_have_ended() {
    let (behaviour, _incoming) = Behaviour::server();
    let (keypair, addr) = (Keypair::generate_ed25519(), address());
    let mut swarm = new_swarm(&keypair, behaviour);
    swarm.listen_on(addr.clone()).unwrap();
    let target = Target::from_multiaddr(&addr);
    for _ in 0..5 {
        let visitor = Outsider::new();
        let opener = visitor.opener.clone();
        let target = target.clone();
        let opened =
            tokio::spawn(async move { opener.open(&target, RENDEZVOUS_PROTOCOL).await.map(|o| o.stream) });
        loop {
            if let SwarmEvent::ConnectionEstablished { .. } = swarm.select_next_some().await {
                break;
            }
        }
        visitor.swarm.abort();
        loop {
            if let SwarmEvent::ConnectionClosed { .. } = swarm.select_next_some().await {
                break;
            }
        }
        drop(opened.await);
        assert_eq!(swarm.behaviour().remembered(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn streams_share_a_connection_and_a_closed_one_is_dialled_anew() {
    let server = Rendezvous::start();
    let ana = Outsider::new();
    let unknown = StreamProtocol::new("/nobody/speaks/this");
    let anybody = Target { peer: None, ..server.target() };
    let first = ana.opener.open(&server.target(), RENDEZVOUS_PROTOCOL).await.unwrap();
    let second = ana.opener.open(&anybody, RENDEZVOUS_PROTOCOL).await.unwrap();
    assert_eq!(first.peer, second.peer);
    assert!(first.addr.same_channel(&second.addr), "one connection");
    // Used before it is agreed upon: that nobody speaks it shows at the first read.
    let mut third = ana.opener.open(&anybody, unknown).await.unwrap();
    wire::write(&mut third.stream, &WatchRequest::default()).await.unwrap();
    let answer = wire::read::<WatchEvent, _>(&mut third.stream, 100).await;
    assert!(answer.as_ref().is_err_and(wire::ReadError::is_not_spoken), "{answer:?}");
    ana.opener.close(first.peer).await;
    let mut addr = first.addr;
    assert!(addr.changed().await.is_err(), "its end is the connection's end");
    ana.opener.open(&anybody, RENDEZVOUS_PROTOCOL).await.unwrap();
}

#[tokio::test]
async fn over_tcp_the_observed_address_is_the_very_one_of_the_connection() {
    let (behaviour, incoming) = Behaviour::server();
    let server_key = Keypair::generate_ed25519();
    let mut swarm = tcp_swarm(&server_key, behaviour);
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let (_server, _events) = Server::spawn(ServerConfig::default(), incoming);
    let addr = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    let (sent_from, mut seen_from) = mpsc::channel(1);
    let _swarm = tokio::spawn(async move {
        loop {
            if let SwarmEvent::ConnectionEstablished { endpoint, .. } = swarm.select_next_some().await {
                sent_from.send(endpoint.get_remote_address().clone()).await.unwrap();
            }
        }
    });
    let keypair = Keypair::generate_ed25519();
    let (behaviour, opener) = Behaviour::client();
    let _node = drive(tcp_swarm(&keypair, behaviour));
    let config = ClientConfig::new(Target::from_multiaddr(&addr), keypair, "hall".into(), DOOR);
    let (_client, mut events) = Client::spawn(config, opener).unwrap();
    let observed = loop {
        if let ClientEvent::Observed { addr } = events.recv().await.unwrap() {
            break addr;
        }
    };
    assert_eq!(Some(observed), seen_from.recv().await);
}

fn tcp_swarm<B: NetworkBehaviour>(keypair: &Keypair, behaviour: B) -> Swarm<B> {
    let transport = libp2p::tcp::tokio::Transport::default()
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair).unwrap())
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    Swarm::new(transport, behaviour, keypair.public().into(), as_nodes_do())
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_never_reads_is_cut_and_the_others_hear_everything() {
    let server = Rendezvous::start();
    let deaf = Outsider::new();
    let stream = deaf.opener.open(&server.target(), WATCH_PROTOCOL).await.unwrap().stream;
    let (_unread, mut writer) = stream.split();
    wire::write(&mut writer, &watch(&deaf.keypair)).await.unwrap();
    let keep_alive = tokio::spawn(async move {
        let still_here = WatchRequest { keep_alive: Some(wire::Empty {}), ..WatchRequest::default() };
        while wire::write(&mut writer, &still_here).await.is_ok() {
            tokio::time::sleep(crate::rendezvous::limits::KEEP_ALIVE).await;
        }
    });
    let mut ana = Node::join(server.target(), "hall");
    ana.sees(deaf.keypair.public().into()).await;
    // About 400 kB of news: more than yamux lets anybody have on the way.
    let long: Multiaddr = format!("/memory/1/http-path/{}", "x".repeat(400)).parse().unwrap();
    for _ in 0..120 {
        let visitor = Outsider::new();
        let record = records::signed(&visitor.keypair, vec![long.clone(); 8]);
        let ns = Some("hall".to_owned());
        let register = Request::register(Register { ns, signed_peer_record: Some(record), ttl: Some(3600) });
        visitor.ask(&server.target(), register).await.unwrap();
        ana.sees(visitor.keypair.public().into()).await;
    }
    ana.misses(deaf.keypair.public().into()).await;
    keep_alive.await.unwrap();
}
