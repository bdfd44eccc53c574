//! Clients and servers that mean harm.

use super::*;

#[tokio::test(start_paused = true)]
async fn both_forms_of_record_are_kept_and_a_bad_one_is_answered() {
    let mut server = Rendezvous::start();
    let (standard, legacy, forger) = (Outsider::new(), Outsider::new(), Outsider::new());
    let register = |record| {
        let ns = Some("hall".to_owned());
        Request::register(Register { ns, signed_peer_record: Some(record), ttl: Some(60) })
    };
    for (who, form) in [(&standard, Form::Standard), (&legacy, Form::Legacy)] {
        let record = sign(&who.keypair, &[address()], form).unwrap();
        let answer = who.ask(&server.target(), register(record)).await.unwrap().register_response.unwrap();
        assert_eq!((answer.status, answer.ttl), (Some(0), Some(60)));
    }
    let others = sign(&legacy.keypair, &[], Form::Legacy).unwrap();
    let many = records::signed(&forger.keypair, records::addresses(17));
    for (record, status, why) in [
        (vec![7; 100], Status::InvalidSignedPeerRecord, Refusal::Record),
        (many, Status::InvalidSignedPeerRecord, Refusal::Record),
        (others, Status::NotAuthorized, Refusal::NotYours),
    ] {
        let answer = forger.ask(&server.target(), register(record)).await.unwrap().register_response.unwrap();
        assert_eq!(answer.status, Some(status.into()));
        let peer = forger.keypair.public().into();
        loop {
            match server.events.recv().await.unwrap() {
                ServerEvent::Refused { peer: of, why: reported } => {
                    assert_eq!((of, reported), (peer, why));
                    break;
                }
                event => assert!(matches!(event, ServerEvent::Registered { .. }), "{event:?}"),
            }
        }
    }
    let everybody = Request::discover(Discover { ns: Some("hall".into()), ..Discover::default() });
    let found = forger.ask(&server.target(), everybody).await.unwrap().discover_response.unwrap();
    assert_eq!(found.registrations.len(), 2);
    let everything = Request::discover(Discover::default());
    let refused = forger.ask(&server.target(), everything).await.unwrap().discover_response.unwrap();
    assert_eq!((refused.status, refused.registrations.len()), (Some(Status::InvalidNamespace.into()), 0));
}

/// Whether the server ends the stream; how long that takes in virtual time.
async fn cut(stream: &mut libp2p::Stream) -> Duration {
    let began = Instant::now();
    let mut rest = Vec::new();
    // A reset is as good an end as a clean one.
    let _ = stream.read_to_end(&mut rest).await;
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_says_nothing_or_one_byte_a_time_is_cut_after_ten_seconds() {
    let server = Rendezvous::start();
    let stranger = Outsider::new();
    for protocol in [WATCH_PROTOCOL, RENDEZVOUS_PROTOCOL] {
        let mut idle = stranger.opener.open(&server.target(), protocol.clone()).await.unwrap().stream;
        idle.flush().await.unwrap();
        assert_eq!(cut(&mut idle).await.as_secs(), STREAM_PATIENCE.as_secs());

        let stream = stranger.opener.open(&server.target(), protocol).await.unwrap().stream;
        let (mut reader, mut writer) = stream.split();
        let drip = tokio::spawn(async move {
            writer.write_all(&[200, 1]).await.unwrap();
            while writer.write_all(&[0]).await.is_ok() && writer.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let began = Instant::now();
        let _ = reader.read(&mut [0; 1]).await;
        assert_eq!(began.elapsed().as_secs(), STREAM_PATIENCE.as_secs());
        drip.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn oversize_prefixes_and_garbage_end_their_stream_and_hurt_nobody_else() {
    let server = Rendezvous::start();
    let mut ana = Node::join(server.target(), "hall");
    ana.registered().await;
    let stranger = Outsider::new();
    let mut oversize = Vec::new();
    prost::encoding::encode_varint(MAX_REQUEST as u64 + 1, &mut oversize);
    for bytes in [oversize, vec![0xff; 32], vec![4, 0xff, 0xff, 0xff, 0xff], vec![0]] {
        for protocol in [WATCH_PROTOCOL, RENDEZVOUS_PROTOCOL] {
            let mut stream = stranger.opener.open(&server.target(), protocol).await.unwrap().stream;
            stream.write_all(&bytes).await.unwrap();
            stream.flush().await.unwrap();
            assert_eq!(cut(&mut stream).await, Duration::ZERO, "{bytes:?}");
        }
    }
    let mut ben = Node::join(server.target(), "hall");
    ben.sees(ana.peer).await;
    assert!(ana.hears(Some).await != ClientEvent::PeerGone { peer: ben.peer });
}

#[tokio::test(start_paused = true)]
async fn sixteen_streams_of_a_connection_are_served_and_the_next_is_dropped() {
    let server = Rendezvous::start();
    let stranger = Outsider::new();
    let mut held = Vec::new();
    for _ in 0..STREAMS_PER_CONNECTION {
        let mut stream = stranger.opener.open(&server.target(), RENDEZVOUS_PROTOCOL).await.unwrap().stream;
        stream.flush().await.unwrap();
        held.push(stream);
    }
    let mut one_more = stranger.opener.open(&server.target(), RENDEZVOUS_PROTOCOL).await.unwrap().stream;
    assert_eq!(cut(&mut one_more).await, Duration::ZERO);
    let question = Request::discover(Discover { ns: Some("hall".into()), ..Discover::default() });
    wire::write(&mut held[15], &question).await.unwrap();
    let answer: Response = wire::read(&mut held[15], wire::MAX_RESPONSE).await.unwrap();
    assert_eq!(answer.discover_response.unwrap().status, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_ninth_watch_is_refused_with_a_goodbye_and_chatter_on_one_ends_it() {
    let server = Rendezvous::start();
    let stranger = Outsider::new();
    let mut held = Vec::new();
    for expected_bye in std::iter::repeat_n(None, 8).chain([Some(Status::Unavailable)]) {
        let mut stream = stranger.opener.open(&server.target(), WATCH_PROTOCOL).await.unwrap().stream;
        wire::write(&mut stream, &watch(&stranger.keypair)).await.unwrap();
        let first: WatchEvent = wire::read(&mut stream, wire::MAX_RESPONSE).await.unwrap();
        assert_eq!(first.bye.map(|bye| Status::try_from(bye.status).unwrap()), expected_bye);
        held.push(stream);
    }
    let (mut reader, mut writer) = held.swap_remove(0).split();
    let began = Instant::now();
    for _ in 0..60 {
        let refresh = watch(&stranger.keypair).watch.unwrap().presence;
        let _ = wire::write(&mut writer, &WatchRequest { refresh, ..WatchRequest::default() }).await;
    }
    let mut answers = 0;
    while wire::read::<WatchEvent, _>(&mut reader, wire::MAX_RESPONSE).await.is_ok() {
        answers += 1;
    }
    assert!((10..40).contains(&answers), "{answers}");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn two_hundred_bogus_visitors_do_not_keep_an_honest_one_out() {
    let server = Rendezvous::start();
    let mut bogus = Vec::new();
    for n in 0..200 {
        let stranger = Outsider::new();
        let mut stream = stranger.opener.open(&server.target(), WATCH_PROTOCOL).await.unwrap().stream;
        let mut request = watch(&stranger.keypair);
        request.watch.as_mut().unwrap().namespace = format!("guess {n}");
        wire::write(&mut stream, &request).await.unwrap();
        bogus.push((stranger, stream));
    }
    let began = Instant::now();
    let mut ana = Node::join(server.target(), "hall");
    ana.registered().await;
    let mut counts = 0;
    let mut ben = Node::join(server.target(), "hall");
    ana.hears(|e| {
        counts += u32::from(matches!(e, ClientEvent::OtherKeys { .. }));
        matches!(e, ClientEvent::Peer { .. }).then_some(())
    })
    .await;
    ben.sees(ana.peer).await;
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(counts <= 5, "{counts} messages of strangers");
}

/// A server that does as `answer` says, on the watch protocol.
fn liar(answer: impl Fn(&Keypair) -> Vec<u8> + Send + 'static) -> Target {
    let (keypair, addr) = (Keypair::generate_ed25519(), address());
    let (behaviour, mut incoming) = Behaviour::server();
    let mut swarm = new_swarm(&keypair, behaviour);
    swarm.listen_on(addr.clone()).unwrap();
    drive(swarm);
    let target = Target { peer: Some(keypair.public().into()), addresses: vec![addr] };
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(mut inbound) = incoming.next().await {
            let _ = inbound.stream.write_all(&answer(&keypair)).await;
            let _ = inbound.stream.flush().await;
            held.push(inbound);
        }
    });
    target
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_after_ten_seconds() {
    let began = Instant::now();
    let mut ana = Node::join(liar(|_| Vec::new()), "hall");
    assert_eq!(ana.loses().await.0, LostWhy::Silent);
    assert_eq!(began.elapsed().as_secs(), WATCH_IDLE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn records_that_a_server_invents_are_nobody_and_huge_messages_end_the_stream() {
    let real = Keypair::generate_ed25519();
    let known: PeerId = real.public().into();
    let mut ana = Node::join(
        liar(move |_| {
            let good = records::signed(&real, vec![address()]);
            let mut forged = records::signed(&Keypair::generate_ed25519(), vec![address()]);
            *forged.last_mut().unwrap() ^= 1;
            let mut bytes = Vec::new();
            for record in [forged, vec![1; 50], good] {
                bytes.extend(wire::framed(&WatchEvent { arrived: Some(record), ..WatchEvent::default() }));
            }
            bytes.extend([0xff, 0xff, 0xff, 0x7f]);
            bytes
        }),
        "hall",
    );
    assert_eq!(ana.sees_anybody().await, known);
    assert!(matches!(ana.loses().await.0, LostWhy::Broken { .. }));
}

#[tokio::test(start_paused = true)]
async fn eight_connections_of_one_identity_are_served_and_a_ninth_is_closed() {
    let server = Rendezvous::start();
    let keypair = Keypair::generate_ed25519();
    let question = || Request::discover(Discover { ns: Some("hall".into()), ..Discover::default() });
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_PER_PEER {
        let visitor = Outsider::as_peer(keypair.clone());
        visitor.ask(&server.target(), question()).await.unwrap();
        held.push(visitor);
    }
    let ninth = Outsider::as_peer(keypair.clone());
    let opened = ninth.opener.open(&server.target(), RENDEZVOUS_PROTOCOL).await;
    if let Ok(mut opened) = opened {
        let _ = wire::write(&mut opened.stream, &question()).await;
        assert!(wire::read::<Response, _>(&mut opened.stream, wire::MAX_RESPONSE).await.is_err());
    }
    held.swap_remove(0).crash().await;
    Outsider::new().ask(&server.target(), question()).await.unwrap();
    let again = Outsider::as_peer(keypair);
    again.ask(&server.target(), question()).await.unwrap();
}
