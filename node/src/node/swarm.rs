//! libp2p as hallway uses it: identify, ping, local discovery and the rendezvous protocols over our transport.

#![allow(missing_docs, reason = "the derived BehaviourEvent cannot be documented; everything else here is")]

use std::{sync::Arc, time::Duration};

use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder, connection_limits,
    core::{Transport as _, transport::dummy::DummyTransport, upgrade},
    dns, identify,
    identity::Keypair,
    mdns, noise, ping,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, yamux,
};
use tokio::sync::mpsc;

use super::origins;
use crate::{
    rendezvous,
    transport::{
        self, Authenticated, Ceiling, QuicTransport,
        wss::{self, Wss},
    },
};

/// What identify calls us: no version of the system, no name of the machine.
pub const AGENT: &str = concat!("hallway/", env!("CARGO_PKG_VERSION"));
/// Our name among libp2p protocols; identify tells it to every peer.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/hallway/1");
/// Connections of one peer at a time: a few paths and their successors.
pub const MAX_CONNECTIONS_PER_PEER: u32 = 8;
/// Connections to a node from one public IPv4 address or IPv6 /64: a full room behind one router, twice over.
pub const NODE_CONNECTIONS_PER_ORIGIN: usize = 64;
/// Connections to a rendezvous server from one public IPv4 address or IPv6 /64: an office, or a carrier's shared address.
pub const SERVER_CONNECTIONS_PER_ORIGIN: usize = 256;
/// Handshakes towards us at a time.
pub const MAX_PENDING_INCOMING: u32 = 256;

/// Why the network part could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The identity cannot be used for TLS.
    #[error(transparent)]
    Identity(#[from] transport::ConfigError),
    /// TCP's encryption could not be set up.
    #[error("noise: {0}")]
    Noise(#[from] noise::Error),
    /// The certificate for WebSocket over TLS is of no use.
    #[error(transparent)]
    Certificate(#[from] wss::CertificateError),
    /// A limit, a behaviour or a socket.
    #[error("network: {0}")]
    Setup(String),
}

/// The protocols of a node or of a rendezvous server.
#[derive(NetworkBehaviour)]
pub struct Behaviour {
    /// Bounds connections in all, of a peer, and unfinished ones.
    pub limits: connection_limits::Behaviour,
    /// Bounds connections from one address.
    pub origins: origins::Behaviour,
    /// Tells others who we are.
    pub identify: identify::Behaviour,
    /// Notices TCP connections that died.
    pub ping: ping::Behaviour,
    /// Finding each other, as client or as server.
    pub rendezvous: rendezvous::Behaviour,
    /// Finding each other on the local network, where that is wanted and works.
    pub mdns: Toggle<mdns::tokio::Behaviour>,
}

/// What differs between a node and a rendezvous server.
pub struct Setup {
    /// What a server that listens on WebSocket over TLS shows there.
    pub certificate: Option<wss::Certificate>,
    /// The rendezvous protocols, as client or as server.
    pub rendezvous: rendezvous::Behaviour,
    /// Look for nodes on the local network, and be found there.
    pub lan: bool,
    /// Connections that nobody uses are closed after this time. Media is invisible to libp2p: a node keeps them.
    pub idle_timeout: Duration,
    /// Where QUIC's tasks run; `None` for the tokio runtime that polls the swarm.
    pub drive: Option<transport::Drive>,
    /// Marks what is sent over UDP as voice, counts it, and keeps it under the user's ceiling. A server forwards for
    /// others, and does without.
    pub ceiling: Option<Arc<Ceiling>>,
    /// Connections at a time.
    pub max_connections: u32,
    /// Connections at a time from one public IPv4 address or IPv6 /64.
    pub max_per_origin: usize,
}

impl Setup {
    /// Of one that does nothing out of the ordinary: its own runtime and sockets, no certificate, connections of a node.
    pub fn plain(rendezvous: rendezvous::Behaviour) -> Self {
        Self {
            certificate: None,
            rendezvous,
            lan: false,
            idle_timeout: Duration::from_secs(3600),
            drive: None,
            ceiling: None,
            max_connections: 64,
            max_per_origin: NODE_CONNECTIONS_PER_ORIGIN,
        }
    }
}

/// A swarm over our QUIC transport and TCP, and the channel of its authenticated QUIC connections.
///
/// # Errors
/// See [`Error`].
pub fn build(
    keypair: &Keypair,
    setup: Setup,
) -> Result<(Swarm<Behaviour>, mpsc::Receiver<Authenticated>), Error> {
    let mut config = transport::Config::new(keypair)?;
    if let Some(drive) = setup.drive {
        config = config.driven_by(Arc::new(drive));
    }
    if let Some(ceiling) = setup.ceiling {
        config = config.marked(ceiling);
    }
    let (quic, authenticated) = QuicTransport::new(config);
    let fail = |e: &dyn std::fmt::Display| Error::Setup(e.to_string());
    let limits = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(MAX_PENDING_INCOMING))
        .with_max_established_per_peer(Some(MAX_CONNECTIONS_PER_PEER))
        .with_max_established(Some(setup.max_connections));
    let peer_id = keypair.public().to_peer_id();
    let lan = if setup.lan {
        let found = mdns::tokio::Behaviour::new(mdns::Config::default(), peer_id);
        found.inspect_err(|error| tracing::warn!(%error, "no discovery on the local network")).ok()
    } else {
        None
    };
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        origins: origins::Behaviour::new(setup.max_per_origin),
        identify: identify::Behaviour::new(
            identify::Config::new(PROTOCOL.to_string(), keypair.public())
                .with_agent_version(AGENT.to_owned())
                .with_hide_listen_addrs(true),
        ),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_secs(15))),
        rendezvous: setup.rendezvous,
        mdns: lan.into(),
    };
    let noise = noise::Config::new(keypair)?;
    let sockets =
        || tcp::tokio::Transport::new(tcp::Config::new().nodelay(true)).map(|stream, _| lean(stream));
    let wss = Wss::new(sockets(), setup.certificate)?
        .upgrade(upgrade::Version::V1Lazy)
        .authenticate(noise.clone())
        .multiplex(yamux::Config::default());
    let transports = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_other_transport(|_| {
            sockets()
                .upgrade(upgrade::Version::V1Lazy)
                .authenticate(noise)
                .multiplex(yamux::Config::default())
        })
        .map_err(|e| fail(&e))?
        .with_other_transport(|_| quic)
        .map_err(|e| fail(&e))?
        .with_other_transport(|_| wss)
        .map_err(|e| fail(&e))?;
    let with_timeout = |config: libp2p::swarm::Config| {
        config
            .with_idle_connection_timeout(setup.idle_timeout)
            // A protocol that is offered alone needs no answer before the first message: one round trip less.
            .with_substream_upgrade_protocol_override(upgrade::Version::V1Lazy)
    };
    let swarm = match resolver() {
        Ok(()) => transports
            .with_dns()
            .map_err(|e| fail(&e))?
            .with_behaviour(|_| behaviour)
            .map_err(|e| fail(&e))?
            .with_swarm_config(with_timeout)
            .with_connection_timeout(transport::HANDSHAKE_TIMEOUT)
            .build(),
        // A machine without a resolver configuration still joins by addresses.
        Err(error) => {
            tracing::warn!(%error, "names cannot be looked up on this machine; addresses work");
            transports
                .with_behaviour(|_| behaviour)
                .map_err(|e| fail(&e))?
                .with_swarm_config(with_timeout)
                .with_connection_timeout(transport::HANDSHAKE_TIMEOUT)
                .build()
        }
    };
    Ok((swarm, authenticated))
}

/// Bytes that may wait unsent in a TCP socket. What the socket holds cannot be dropped any more when it has become old.
pub const TCP_UNSENT: u32 = 16 * 1024;

/// Keeps the queue in a TCP socket short.
pub fn lean(stream: tcp::tokio::TcpStream) -> tcp::tokio::TcpStream {
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(&stream.0).set_tcp_notsent_lowat(TCP_UNSENT) {
        tracing::debug!(%error, "a TCP socket keeps its long queue");
    }
    stream
}

/// Whether this machine says how names are looked up. Asked first, since the builder is lost with the answer.
fn resolver() -> std::io::Result<()> {
    dns::tokio::Transport::system(DummyTransport::<()>::new()).map(drop)
}
