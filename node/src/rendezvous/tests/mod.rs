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
    limits::{CONNECTIONS_PER_PEER, STREAM_GRACE, STREAM_PATIENCE, STREAMS_PER_CONNECTION, WATCH_IDLE},
    record::{Form, sign, tests as records},
    server::{Refusal, Status},
    wire::{
        self, Discover, MAX_REQUEST, RENDEZVOUS_PROTOCOL, Register, Request, Response, WATCH_PROTOCOL, Watch,
        WatchEvent, WatchRequest,
    },
    *,
};

mod hostile;
mod interop;
mod together;

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
    Swarm::new(transport, behaviour, keypair.public().into(), as_nodes_do())
}

/// As the program's own Swarm: protocols offered alone are used before they are agreed upon.
fn as_nodes_do() -> swarm::Config {
    swarm::Config::with_tokio_executor().with_substream_upgrade_protocol_override(Version::V1Lazy)
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
        Self::as_peer(Keypair::generate_ed25519())
    }

    async fn crash(self) {
        self.swarm.abort();
        // It was aborted: an error by design.
        let _ = self.swarm.await;
    }

    fn as_peer(keypair: Keypair) -> Self {
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

    fn people_heard(&mut self) -> Vec<ClientEvent> {
        let mut heard = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            if matches!(event, ClientEvent::Peer { .. }) {
                heard.push(event);
            }
        }
        heard
    }

    async fn sees_anybody(&mut self) -> PeerId {
        self.hears(|e| if let ClientEvent::Peer { peer, .. } = e { Some(peer) } else { None }).await
    }

    async fn misses(&mut self, who: PeerId) {
        self.hears(|e| (e == ClientEvent::PeerGone { peer: who }).then_some(())).await;
    }
}

fn watch(keypair: &Keypair) -> WatchRequest {
    let record = sign(keypair, &[address()], Form::Standard).unwrap();
    let presence = Some(wire::Presence { signed_peer_record: record, ttl: 0 });
    let watch = Watch { namespace: "hall".into(), door: DOOR.to_vec(), presence };
    WatchRequest { watch: Some(watch), ..WatchRequest::default() }
}
