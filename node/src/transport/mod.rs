//! libp2p's transport over our own QUIC endpoint.
//!
//! libp2p's stock QUIC transport switches datagrams and migration off and keeps its connections to itself. This
//! one gives libp2p the streams of a connection and hands the very same connection, once its PeerId is proven by
//! the TLS certificate, to the media plane, which uses its datagrams. One UDP socket per IP family, one NAT
//! mapping, one authentication.
//!
//! 1. `config` sets QUIC up: timers, buffers, our congestion controller.
//! 2. `listener` binds a socket and accepts.
//! 3. [`QuicTransport`] dials from those sockets and proves who answered.
//! 4. `muxer` lends the streams to libp2p.
//! 5. `drive` runs all that on the media thread, in step with the sound card.

mod addr;
mod config;
mod congestion;
mod drive;
mod listener;
mod muxer;
mod pace;
mod socket;
mod tls;
pub mod wss;

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::SelectAll};
use libp2p::{
    Multiaddr, PeerId,
    core::transport::{DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent},
};
use quinn::rustls::pki_types::CertificateDer;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};

pub use addr::{has_ipv6, ip_of, is_dialable, is_tcp, may_have_address, to_multiaddr, to_socket_addr};
use config::INITIAL_RTT;
pub use config::{Config, ConfigError, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, KEEP_ALIVE};
pub use congestion::{MediaController, PathMetrics};
pub use drive::{Drive, Driver, MAX_LOOKS, Tasks, drive};
use listener::Listener;
pub use listener::RETRY_ABOVE_HALF_OPEN;
pub use muxer::{Muxer, Stream};
use pace::Pace;
pub use pace::{
    HANDSHAKE_EVERY, HANDSHAKE_EVERY_PER_ORIGIN, HANDSHAKES_AT_ONCE, HANDSHAKES_AT_ONCE_PER_ORIGIN,
    MAX_PACED_ORIGINS,
};
use socket::Marked;
pub use socket::{Ceiling, EXPEDITED};

/// Authenticated connections that may wait for the media plane to take them. More than that at once are refused.
pub const MAX_WAITING_CONNECTIONS: usize = 256;

/// QUIC repeats a handshake's packets after this, and waits twice as long after it (RFC 9002 section 6.2).
const FIRST_REPEAT: Duration = INITIAL_RTT.saturating_mul(3);

/// A QUIC connection whose far end has proven its PeerId.
#[derive(Debug, Clone)]
pub struct Authenticated {
    /// Who is at the far end, from the certificate.
    pub peer: PeerId,
    /// The connection itself: datagrams for media, statistics. Its streams belong to libp2p.
    pub connection: quinn::Connection,
    /// True where we dialled. Decides who starts the end-to-end handshake.
    pub dialer: bool,
}

/// Why a QUIC connection or socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be made or bound: another program has the port, or the family is switched off.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// QUIC refused to start dialling: the address cannot be reached from this socket.
    #[error("cannot dial: {0}")]
    Connect(#[from] quinn::ConnectError),
    /// The connection ended, or never came up.
    #[error("connection: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// No answer within [`HANDSHAKE_TIMEOUT`]: wrong address, or a firewall that drops UDP.
    #[error("no answer within {} s: wrong address, nobody there, or UDP is blocked", HANDSHAKE_TIMEOUT.as_secs())]
    HandshakeTimedOut,
    /// Another connection with the same place was there first.
    #[error("another connection got there first")]
    Outrun,
    /// The far end showed no certificate that names a PeerId. Not a hallway node.
    #[error("the far end did not prove a PeerId")]
    NoIdentity,
    /// [`MAX_WAITING_CONNECTIONS`] connections wait already.
    #[error("too many new connections at once")]
    Busy,
}

/// A libp2p transport that shares its QUIC connections with the media plane.
pub struct QuicTransport {
    config: Config,
    listeners: SelectAll<Listener>,
    /// Endpoints for dialling in a family that nothing listens on: index 0 is IPv4, 1 is IPv6.
    dialers: HashMap<bool, quinn::Endpoint>,
    shared: Shared,
    waker: Option<Waker>,
}

/// What every handshake needs when it is done.
#[derive(Clone)]
pub(crate) struct Shared {
    authenticated: mpsc::Sender<Authenticated>,
    half_open: Arc<AtomicUsize>,
    /// Tells with which place a connection stands now, whoever dialled.
    arrived: broadcast::Sender<SocketAddr>,
    /// Where QUIC runs on the media thread: how often a stranger's handshake is answered there.
    pace: Option<Arc<Mutex<Pace>>>,
}

impl Shared {
    /// Whether another handshake towards us, from there, may begin now.
    pub(crate) fn may_begin(&self, from: &Multiaddr) -> bool {
        let free = |pace: &Arc<Mutex<Pace>>| {
            pace.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now(), from)
        };
        self.pace.as_ref().is_none_or(free)
    }

    pub(crate) fn half_open(&self) -> usize {
        self.half_open.load(Ordering::Relaxed)
    }

    /// Waits for the handshake, proves the PeerId and hands the connection over. Also what `Incoming` resolves to.
    pub(crate) fn finish(self, connecting: quinn::Connecting, dialer: bool) -> Upgrade {
        let guard = HalfOpen::new(self.half_open.clone());
        let began = Instant::now();
        async move {
            let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
                .await
                .map_err(|_| Error::HandshakeTimedOut)??;
            drop(guard);
            let peer = proven_peer(&connection).ok_or(Error::NoIdentity)?;
            let handed = Authenticated { peer, connection: connection.clone(), dialer };
            self.authenticated.try_send(handed).map_err(|_| Error::Busy)?;
            // What still dials there need not go on. Who dialled cannot know whether the end of the handshake came there; where
            // nothing was repeated yet, it is repeated soon. An error means that nobody dials.
            if !dialer || began.elapsed() < FIRST_REPEAT {
                let _ = self.arrived.send(connection.remote_address());
            }
            Ok((peer, Muxer::new(connection)))
        }
        .boxed()
    }
}

type Upgrade = BoxFuture<'static, Result<(PeerId, Muxer), Error>>;

impl QuicTransport {
    /// A transport for this identity, and the channel on which every authenticated connection appears.
    ///
    /// # Errors
    /// Where the identity cannot sign a certificate.
    pub fn new(config: Config) -> (Self, mpsc::Receiver<Authenticated>) {
        let (authenticated, receiver) = mpsc::channel(MAX_WAITING_CONNECTIONS);
        let pace = config.paced.then(|| Arc::new(Mutex::new(Pace::new(Instant::now()))));
        let (arrived, _) = broadcast::channel(MAX_WAITING_CONNECTIONS);
        let shared = Shared { authenticated, half_open: Arc::new(AtomicUsize::new(0)), arrived, pace };
        (Self { config, listeners: SelectAll::new(), dialers: HashMap::new(), shared, waker: None }, receiver)
    }

    /// The endpoint to dial `remote` from: a listening one where possible, so that the NAT mapping is shared.
    fn endpoint_for(&mut self, remote: SocketAddr, port_use: PortUse) -> Result<quinn::Endpoint, Error> {
        let reuse = port_use == PortUse::Reuse;
        if reuse && let Some(listener) = self.listeners.iter().find(|listener| listener.can_dial(remote)) {
            return Ok(listener.endpoint().clone());
        }
        if reuse && let Some(endpoint) = self.dialers.get(&remote.is_ipv6()) {
            return Ok(endpoint.clone());
        }
        let any: SocketAddr = if remote.is_ipv6() {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        };
        let endpoint = self.new_endpoint(None, bind(any)?)?;
        if reuse {
            self.dialers.insert(remote.is_ipv6(), endpoint.clone());
        }
        Ok(endpoint)
    }
}

impl QuicTransport {
    fn new_endpoint(
        &self,
        server: Option<quinn::ServerConfig>,
        socket: UdpSocket,
    ) -> Result<quinn::Endpoint, Error> {
        let Config { endpoint, runtime, ceiling, .. } = &self.config;
        let Some(ceiling) = ceiling else {
            return Ok(quinn::Endpoint::new(endpoint.clone(), server, socket, runtime.clone())?);
        };
        let inner = runtime.wrap_udp_socket(socket.try_clone()?)?;
        let marked = Arc::new(Marked::new(inner, socket, ceiling.clone()));
        Ok(quinn::Endpoint::new_with_abstract_socket(endpoint.clone(), server, marked, runtime.clone())?)
    }
}

impl Transport for QuicTransport {
    type Output = (PeerId, Muxer);
    type Error = Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<Error>> {
        let local = to_socket_addr(&addr).ok_or(TransportError::MultiaddrNotSupported(addr))?;
        let socket = bind(local).map_err(|e| TransportError::Other(e.into()))?;
        let endpoint =
            self.new_endpoint(Some(self.config.server.clone()), socket).map_err(TransportError::Other)?;
        let listener = Listener::new(id, endpoint, self.shared.clone()).map_err(TransportError::Other)?;
        self.listeners.push(listener);
        self.dialers.remove(&local.is_ipv6());
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let Some(listener) = self.listeners.iter_mut().find(|listener| listener.id() == id) else {
            return false;
        };
        listener.close();
        true
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Upgrade, TransportError<Error>> {
        let remote = to_socket_addr(&addr)
            .filter(|remote| remote.port() != 0 && !remote.ip().is_unspecified())
            .ok_or(TransportError::MultiaddrNotSupported(addr))?;
        let endpoint = self.endpoint_for(remote, opts.port_use).map_err(TransportError::Other)?;
        let client = self.config.client.clone();
        let shared = self.shared.clone();
        let arrivals = shared.arrived.subscribe();
        Ok(async move {
            // The name is not checked: the certificate proves a PeerId. It must only be a valid one, and short.
            let connecting = endpoint.connect_with(client, remote, "l")?;
            tokio::select! {
                biased;
                finished = shared.finish(connecting, true) => finished,
                () = outrun(arrivals, remote) => Err(Error::Outrun),
            }
        }
        .boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Upgrade, Error>> {
        if let Poll::Ready(Some(event)) = self.listeners.poll_next_unpin(cx) {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Waits until a connection with this place stands.
async fn outrun(mut arrivals: broadcast::Receiver<SocketAddr>, place: SocketAddr) {
    loop {
        match arrivals.recv().await {
            Ok(arrived) if arrived == place => return,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return std::future::pending().await,
        }
    }
}

/// Counts one handshake that is not finished yet, for as long as it lives.
struct HalfOpen(Arc<AtomicUsize>);

impl HalfOpen {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The PeerId in the far end's certificate, whose signature TLS has verified already.
fn proven_peer(connection: &quinn::Connection) -> Option<PeerId> {
    let certificates = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    libp2p_tls::certificate::parse(certificates.first()?).ok().map(|certificate| certificate.peer_id())
}

fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
