//! libp2p as hallway uses it: identify, ping, local discovery and the rendezvous protocols over our transport.

use std::time::Duration;

use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder, connection_limits, identify,
    identity::Keypair,
    mdns, noise, ping,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, yamux,
};
use tokio::sync::mpsc;

use crate::{
    rendezvous,
    transport::{self, Authenticated, QuicTransport},
};

/// What identify calls us: no version of the system, no name of the machine.
pub const AGENT: &str = concat!("hallway/", env!("CARGO_PKG_VERSION"));
/// Our name among libp2p protocols; identify tells it to every peer.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/hallway/1");
/// Connections of one peer at a time: a few paths and their successors.
pub const MAX_CONNECTIONS_PER_PEER: u32 = 8;
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
    /// A limit, a behaviour or a socket.
    #[error("network: {0}")]
    Setup(String),
}

/// The protocols of a node or of a rendezvous server.
#[derive(NetworkBehaviour)]
pub struct Behaviour {
    pub limits: connection_limits::Behaviour,
    pub identify: identify::Behaviour,
    pub ping: ping::Behaviour,
    pub rendezvous: rendezvous::Behaviour,
    pub mdns: Toggle<mdns::tokio::Behaviour>,
}

/// What differs between a node and a rendezvous server.
pub struct Setup {
    /// The rendezvous protocols, as client or as server.
    pub rendezvous: rendezvous::Behaviour,
    /// Look for nodes on the local network, and be found there.
    pub lan: bool,
    /// Connections that nobody uses are closed after this time. Media is invisible to libp2p: a node keeps them.
    pub idle_timeout: Duration,
    /// Connections at a time.
    pub max_connections: u32,
}

/// A swarm over our QUIC transport and TCP, and the channel of its authenticated QUIC connections.
///
/// # Errors
/// See [`Error`].
pub fn build(keypair: &Keypair, setup: Setup) -> Result<(Swarm<Behaviour>, mpsc::Receiver<Authenticated>), Error> {
    let (quic, authenticated) = QuicTransport::new(transport::Config::new(keypair)?);
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
        identify: identify::Behaviour::new(
            identify::Config::new(PROTOCOL.to_string(), keypair.public())
                .with_agent_version(AGENT.to_owned())
                .with_hide_listen_addrs(true),
        ),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_secs(15))),
        rendezvous: setup.rendezvous,
        mdns: lan.into(),
    };
    let transports = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_tcp(tcp::Config::new().nodelay(true), noise::Config::new, yamux::Config::default)?
        .with_other_transport(|_| quic)
        .map_err(|e| fail(&e))?;
    let idle_timeout = setup.idle_timeout;
    // A machine without a resolver configuration still joins by addresses.
    let swarm = match transports.with_dns() {
        Ok(builder) => builder
            .with_behaviour(|_| behaviour)
            .map_err(|e| fail(&e))?
            .with_swarm_config(|config| config.with_idle_connection_timeout(idle_timeout))
            .build(),
        Err(error) => return Err(fail(&error)),
    };
    Ok((swarm, authenticated))
}
