//! Whole Swarms over libp2p's memory transport with noise and yamux, in virtual time: nothing here waits for real.

#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm,
    core::{Transport as _, muxing::StreamMuxerBox, transport::MemoryTransport, upgrade::Version},
    identity::Keypair,
    noise, rendezvous as stock,
    swarm::{self, NetworkBehaviour, SwarmEvent},
    yamux,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

use super::{
    client::{LostWhy, Via},
    limits::{STREAM_GRACE, STREAM_PATIENCE, STREAMS_PER_CONNECTION, WATCH_IDLE},
    record::{Form, sign, tests as records},
    server::{Refusal, Status},
    streams::OpenError,
    wire::{
        self, Discover, MAX_REQUEST, RENDEZVOUS_PROTOCOL, Register, Request, Response, WATCH_PROTOCOL, Watch,
        WatchEvent, WatchRequest,
    },
    *,
};

const DOOR: [u8; 16] = [9; 16];

/// A memory address that no other test of this process uses.
fn address() -> Multiaddr {
    static NEXT: AtomicU64 = AtomicU64::new(0x7264_0000);
    format!("/memory/{}", NEXT.fetch_add(1, Ordering::Relaxed)).parse().unwrap()
}

fn new_swarm<B: NetworkBehaviour>(keypair: &Keypair, behaviour: B) -> Swarm<B> {
    let transport = MemoryTransport::new()
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair).unwrap())
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    Swarm::new(transport, behaviour, keypair.public().into(), swarm::Config::with_tokio_executor())
}

/// Polls a Swarm for ever. Aborting the task is a crash of the node.
fn drive<B>(mut swarm: Swarm<B>) -> JoinHandle<()>
where
    B: NetworkBehaviour<ToSwarm: Send, ConnectionHandler: Send> + Send,
{
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    })
}

struct Rendezvous {
    keypair: Keypair,
    addr: Multiaddr,
    server: Server,
    events: mpsc::Receiver<ServerEvent>,
    crash: oneshot::Sender<()>,
    swarm: JoinHandle<()>,
}

impl Rendezvous {
    fn start() -> Self {
        Self::start_as(Keypair::generate_ed25519(), address())
    }

    fn start_as(keypair: Keypair, addr: Multiaddr) -> Self {
        let (behaviour, incoming) = Behaviour::server();
        let mut swarm = new_swarm(&keypair, behaviour);
        let listener = swarm.listen_on(addr.clone()).unwrap();
        let (server, events) = Server::spawn(ServerConfig::default(), incoming);
        let (crash, mut crashed) = oneshot::channel();
        let swarm = tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = swarm.select_next_some() => {}
                    _ = &mut crashed => break,
                }
            }
            // A memory port outlives its listener otherwise.
            swarm.remove_listener(listener);
        });
        Self { keypair, addr, server, events, crash, swarm }
    }

    fn target(&self) -> Target {
        Target { peer: Some(self.keypair.public().into()), addresses: vec![self.addr.clone()] }
    }

    async fn crash(self) -> (Keypair, Multiaddr) {
        drop(self.crash);
        self.swarm.await.unwrap();
        (self.keypair, self.addr)
    }
}

/// A node's network without a client.
struct Outsider {
    keypair: Keypair,
    opener: Opener,
    swarm: JoinHandle<()>,
}

impl Outsider {
    fn new() -> Self {
        let keypair = Keypair::generate_ed25519();
        let (behaviour, opener) = Behaviour::client();
        let swarm = drive(new_swarm(&keypair, behaviour));
        Self { keypair, opener, swarm }
    }

    async fn ask(&self, target: &Target, request: Request) -> Result<Response, wire::ReadError> {
        let mut stream = self.opener.open(target, RENDEZVOUS_PROTOCOL).await.unwrap().stream;
        wire::write(&mut stream, &request).await.unwrap();
        wire::read(&mut stream, wire::MAX_RESPONSE).await
    }
}

struct Node {
    peer: PeerId,
    client: Client,
    events: mpsc::Receiver<ClientEvent>,
    swarm: JoinHandle<()>,
}

impl Node {
    fn join(target: Target, namespace: &str) -> Self {
        let Outsider { keypair, opener, swarm } = Outsider::new();
        let peer = keypair.public().into();
        let mut config = ClientConfig::new(target, keypair, namespace.into(), DOOR);
        config.addresses = vec![address()];
        config.seed = 7;
        let (client, events) = Client::spawn(config, opener).unwrap();
        Self { peer, client, events, swarm }
    }

    /// The first event that `pick` wants; the others are passed over.
    async fn hears<T>(&mut self, mut pick: impl FnMut(ClientEvent) -> Option<T>) -> T {
        let heard = async {
            loop {
                if let Some(heard) = pick(self.events.recv().await.expect("the client lives")) {
                    return heard;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(120), heard).await.expect("it should hear of it")
    }

    async fn registered(&mut self) {
        self.hears(|e| matches!(e, ClientEvent::Registered { .. }).then_some(())).await;
    }

    async fn sees(&mut self, who: PeerId) -> (Vec<Multiaddr>, Via) {
        self.hears(|e| match e {
            ClientEvent::Peer { peer, addresses, via } if peer == who => Some((addresses, via)),
            _ => None,
        })
        .await
    }

    async fn loses(&mut self) -> (LostWhy, Duration) {
        self.hears(|e| match e {
            ClientEvent::Lost { why, retry_in } => Some((why, retry_in)),
            _ => None,
        })
        .await
    }

    async fn misses(&mut self, who: PeerId) {
        self.hears(|e| (e == ClientEvent::PeerGone { peer: who }).then_some(())).await;
    }
}

// ---- our client, our server ----------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn two_watchers_see_each_other_without_asking_twice() {
    let server = Rendezvous::start();
    let began = Instant::now();
    let mut ana = Node::join(server.target(), "hall");
    let connected = ana.hears(Some).await;
    let expected = ClientEvent::Connected {
        server: server.keypair.public().into(),
        addr: server.addr.clone(),
        push: true,
    };
    assert_eq!(connected, expected);
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

impl Node {
    fn people_heard(&mut self) -> Vec<ClientEvent> {
        let mut heard = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            if matches!(event, ClientEvent::Peer { .. }) {
                heard.push(event);
            }
        }
        heard
    }
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

impl Node {
    async fn sees_anybody(&mut self) -> PeerId {
        self.hears(|e| if let ClientEvent::Peer { peer, .. } = e { Some(peer) } else { None }).await
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

fn watch(keypair: &Keypair) -> WatchRequest {
    let record = sign(keypair, &[address()], Form::Standard).unwrap();
    let presence = Some(wire::Presence { signed_peer_record: record, ttl: 0 });
    let watch = Watch { namespace: "hall".into(), door: DOOR.to_vec(), presence };
    WatchRequest { watch: Some(watch), ..WatchRequest::default() }
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

// ---- libp2p's own client and server --------------------------------------------------------------------------------

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
    let hall = Some(stock::Namespace::from_static("hall"));
    ask(&mut swarm, hall.clone(), None);
    let stock::client::Event::Discovered { registrations, cookie, .. } = next(&mut swarm).await else {
        panic!("not discovered")
    };
    let mut found: Vec<_> = registrations.iter().map(|r| r.record.peer_id()).collect();
    found.sort();
    let mut expected = vec![ana.peer, peer];
    expected.sort();
    assert_eq!(found, expected);

    ask(&mut swarm, hall.clone(), Some(cookie));
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

    swarm.behaviour_mut().rendezvous.unregister(hall.unwrap(), rendezvous_node);
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

// ---- hostile clients -----------------------------------------------------------------------------------------------

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

// ---- hostile servers -----------------------------------------------------------------------------------------------

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

// ---- streams -------------------------------------------------------------------------------------------------------

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
    assert_eq!(ana.opener.open(&anybody, unknown).await.err(), Some(OpenError::Unsupported));
    ana.opener.close(first.peer).await;
    let mut addr = first.addr;
    assert!(addr.changed().await.is_err(), "its end is the connection's end");
    ana.opener.open(&anybody, RENDEZVOUS_PROTOCOL).await.unwrap();
}
