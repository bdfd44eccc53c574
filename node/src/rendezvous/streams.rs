//! The rendezvous protocols as a part of a node's Swarm: it hands accepted streams to the [`Server`](super::Server), and
//! opens streams for the [`Client`](super::Client), dialling the server where needed.
//!
//! Why not `libp2p-stream`: there, each closed connection leaves a channel behind (a stranger could grow a server without
//! bound), a second stream between two polls is lost, and nobody says on which connection a stream came. The last is
//! what the raw observed address and every bound by origin need.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::future::{Either, select};

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, InboundUpgrade, OutboundUpgrade, UpgradeInfo, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        CloseConnection, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId,
        DialError, FromSwarm, NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol,
        THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
        handler::{
            AddressChange, ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::{
    dial_back::DIAL_BACK_PROTOCOL,
    limits::{
        ACCEPT_BACKLOG, CONNECTIONS_PER_PEER, STREAM_BURST, STREAMS_PER_CONNECTION, STREAMS_PER_SECOND,
    },
    wire::{RENDEZVOUS_PROTOCOL, WATCH_PROTOCOL},
};
use crate::{forward::wire::FORWARD_PROTOCOL, session::bucket::Bucket, text::clean_line};

/// Addresses of one server that are tried.
pub const MAX_SERVER_ADDRESSES: usize = 8;

/// Streams asked for and not yet given, of all clients of a node.
pub const MAX_PENDING_OPENS: usize = 64;

// ---- what the two sides get ---------------------------------------------------------------------------------------

/// TCP is tried this much later than QUIC: on a healthy network QUIC is there by then.
pub const HEAD_START: Duration = Duration::from_millis(250);
/// A QUIC handshake with a server that takes longer is begun anew beside the first, and again: QUIC repeats what got lost
/// late and at ever longer intervals, a fresh one at once and whole.
pub const DIAL_BESIDE_AFTER: [Duration; 6] = {
    let (soon, later, late) =
        (Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(800));
    [soon, soon, later, later, late, late]
};

/// Least time between two dials to one target, however many wait for it.
pub const DIAL_BESIDE_LEAST: Duration = Duration::from_millis(100);

pub(crate) fn is_quic(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| matches!(part, Protocol::QuicV1))
}

/// Of two failures the one that says more.
fn worse(quic: OpenError, other: OpenError) -> OpenError {
    if matches!(other, OpenError::WrongIdentity { .. } | OpenError::Unsupported) { other } else { quic }
}

/// A rendezvous server, as a user names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Its identity; `None` trusts whoever answers at the addresses.
    pub peer: Option<PeerId>,
    /// Where to dial, without `/p2p/…`. The first [`MAX_SERVER_ADDRESSES`] are tried at once.
    pub addresses: Vec<Multiaddr>,
}

impl Target {
    /// The server that `addr` names; a `/p2p/…` at its end is the identity to be checked.
    pub fn from_multiaddr(addr: &Multiaddr) -> Self {
        let mut addr = addr.clone();
        let peer = match addr.iter().last() {
            Some(Protocol::P2p(peer)) => {
                addr.pop();
                Some(peer)
            }
            _ => None,
        };
        Self { peer, addresses: if addr.is_empty() { Vec::new() } else { vec![addr] } }
    }
}

/// A stream that somebody opened to us.
pub struct Inbound {
    /// Who, proven by the connection.
    pub peer: PeerId,
    /// For which protocol.
    pub protocol: StreamProtocol,
    /// The stream.
    pub stream: Stream,
    /// The raw address at which we see the peer, now and after a migration. Ends with the connection.
    pub addr: watch::Receiver<Multiaddr>,
    /// Counts the stream on its connection while it lives.
    pub permit: OwnedSemaphorePermit,
}

/// Accepted streams, for [`Server::spawn`](super::Server::spawn).
pub struct Incoming(mpsc::Receiver<Inbound>);

impl Incoming {
    /// The next one; `None` when the Swarm is gone.
    pub async fn next(&mut self) -> Option<Inbound> {
        self.0.recv().await
    }
}

/// A stream that we opened.
pub struct Opened {
    /// To whom, proven by the connection.
    pub peer: PeerId,
    /// The stream.
    pub stream: Stream,
    /// The address at which we reach the peer.
    pub addr: watch::Receiver<Multiaddr>,
}

/// Why a stream could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Nobody answers at the addresses. Try again later.
    #[error("cannot be reached: {detail}")]
    Unreachable {
        /// Every address with its error.
        detail: String,
    },
    /// Another identity answers than the one asked for. Trying again will not help; the address or the identity given
    /// is wrong, or somebody stands between.
    #[error("expected {expected}, but {obtained} answers")]
    WrongIdentity {
        /// As configured.
        expected: PeerId,
        /// As proven.
        obtained: PeerId,
    },
    /// The peer does not speak the protocol. Where protocols are negotiated lazily, as in the program, this shows at the
    /// first read instead: [`is_not_spoken`](super::wire::ReadError::is_not_spoken).
    #[error("the protocol is not spoken there")]
    Unsupported,
    /// The connection ended meanwhile. Try again.
    #[error("the connection ended")]
    Closed,
    /// Too many streams are being opened by this node. Try again later.
    #[error("too many streams are being opened")]
    Busy,
}

/// Opens streams to servers over the Swarm that runs the [`Behaviour`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Opener(mpsc::Sender<Command>);

impl Opener {
    /// Opens a stream, on the best connection to the target or on a new one. Where it has QUIC addresses and others, the
    /// others follow after [`HEAD_START`]: UDP that is dropped silently costs no more than that.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(&self, target: &Target, protocol: StreamProtocol) -> Result<Opened, OpenError> {
        let with = |addresses| Target { peer: target.peer, addresses };
        let (quic, others): (Vec<_>, Vec<_>) = target.addresses.iter().cloned().partition(is_quic);
        if others.is_empty() {
            return self.open_over_quic(target.clone(), protocol).await;
        }
        if quic.is_empty() {
            return self.open_at(target.clone(), protocol).await;
        }
        let first = pin!(self.open_over_quic(with(quic), protocol.clone()));
        let second = pin!(async {
            tokio::time::sleep(HEAD_START).await;
            self.open_at(with(others), protocol).await
        });
        match select(first, second).await {
            Either::Left((Ok(opened), _)) | Either::Right((Ok(opened), _)) => Ok(opened),
            Either::Left((Err(error), second)) => second.await.map_err(|second| worse(error, second)),
            Either::Right((Err(second), first)) => first.await.map_err(|error| worse(error, second)),
        }
    }

    async fn open_over_quic(&self, target: Target, protocol: StreamProtocol) -> Result<Opened, OpenError> {
        let again = async {
            for wait in DIAL_BESIDE_AFTER {
                tokio::time::sleep(wait).await;
                // An error means that the Swarm is gone, which the opening notices too.
                let _ = self.0.send(Command::DialBeside { target: target.clone() }).await;
            }
            std::future::pending().await
        };
        tokio::select! {
            opened = self.open_at(target.clone(), protocol) => opened,
            never = again => never,
        }
    }

    async fn open_at(&self, target: Target, protocol: StreamProtocol) -> Result<Opened, OpenError> {
        let (reply, opened) = oneshot::channel();
        let command = Command::Open { target, ask: Ask { protocol, reply } };
        self.0.send(command).await.map_err(|_| OpenError::Closed)?;
        opened.await.map_err(|_| OpenError::Closed)?
    }

    /// Closes every connection to a peer that no longer answers, so that the next stream takes a new one.
    pub async fn close(&self, peer: PeerId) {
        // An error means that the Swarm is gone, and its connections with it.
        let _ = self.0.send(Command::Close { peer }).await;
    }
}

#[derive(Debug)]
enum Command {
    Open { target: Target, ask: Ask },
    DialBeside { target: Target },
    Close { peer: PeerId },
}

/// A stream that somebody waits for.
pub struct Ask {
    protocol: StreamProtocol,
    reply: oneshot::Sender<Result<Opened, OpenError>>,
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ask").field(&self.protocol).finish()
    }
}

// ---- behaviour ----------------------------------------------------------------------------------------------------

/// Part of a Swarm's behaviour. Reports no events.
pub struct Behaviour {
    role: Role,
    connections: HashMap<PeerId, BTreeMap<u64, Connection>>,
    established: u64,
    pending: Vec<Pending>,
    actions: VecDeque<ToSwarm<Infallible, Ask>>,
    /// Connections that somebody else opened for a purpose of its own.
    left_alone: HashSet<ConnectionId>,
    /// Dials that another one beside them has outrun.
    outrun: HashSet<ConnectionId>,
}

enum Role {
    Client(mpsc::Receiver<Command>),
    Server(mpsc::Sender<Inbound>),
}

struct Connection {
    id: ConnectionId,
    /// Where we dialled; `None` when the peer did.
    dialled: Option<Multiaddr>,
}

impl Connection {
    fn is_quic(&self) -> bool {
        self.dialled.as_ref().is_some_and(is_quic)
    }
}

struct Pending {
    target: Target,
    dials: HashSet<ConnectionId>,
    /// The last of them.
    dialled: Instant,
    asks: Vec<Ask>,
}

impl Behaviour {
    /// For a node that uses rendezvous servers.
    pub fn client() -> (Self, Opener) {
        let (commands, receiver) = mpsc::channel(MAX_PENDING_OPENS);
        (Self::new(Role::Client(receiver)), Opener(commands))
    }

    /// For a rendezvous server.
    pub fn server() -> (Self, Incoming) {
        let (accepted, incoming) = mpsc::channel(ACCEPT_BACKLOG);
        (Self::new(Role::Server(accepted)), Incoming(incoming))
    }

    fn new(role: Role) -> Self {
        Self {
            role,
            connections: HashMap::new(),
            established: 0,
            pending: Vec::new(),
            actions: VecDeque::new(),
            left_alone: HashSet::new(),
            outrun: HashSet::new(),
        }
    }

    /// No stream of ours will be opened on this connection, which is being dialled.
    pub fn leave_alone(&mut self, id: ConnectionId) {
        self.left_alone.insert(id);
    }

    /// A connection that was to be left alone never came up.
    pub fn forget(&mut self, id: ConnectionId) {
        self.left_alone.remove(&id);
    }

    /// Connections and dials remembered.
    #[cfg(test)]
    #[allow(clippy::arithmetic_side_effects)]
    pub(crate) fn remembered(&self) -> usize {
        self.connections.len() + self.pending.len() + self.actions.len() + self.outrun.len()
    }

    fn handler(&self, peer: PeerId, addr: &Multiaddr) -> Handler {
        let accept = match &self.role {
            Role::Server(accepted) => Some(accepted.clone()),
            Role::Client(_) => None,
        };
        Handler {
            peer,
            addr: watch::Sender::new(bare(addr)),
            accept,
            asks: VecDeque::new(),
            open: Arc::new(Semaphore::new(STREAMS_PER_CONNECTION)),
            pace: Bucket::per_second(STREAM_BURST, STREAMS_PER_SECOND, Instant::now()),
        }
    }

    fn connection_to(&self, target: &Target) -> Option<(PeerId, ConnectionId)> {
        // QUIC before TCP, then the newest.
        let newest = |peer: &PeerId| {
            let of = self.connections.get(peer)?;
            let (_, best) = of.iter().max_by_key(|(opened, c)| (c.is_quic(), **opened))?;
            Some((*peer, best.id))
        };
        if let Some(peer) = target.peer {
            return newest(&peer);
        }
        let is_at = |c: &Connection| c.dialled.as_ref().is_some_and(|a| target.addresses.contains(a));
        let peer = self.connections.iter().find(|(_, of)| of.values().any(is_at))?.0;
        newest(peer)
    }

    fn open(&mut self, target: Target, ask: Ask) {
        if let Some((peer_id, id)) = self.connection_to(&target) {
            self.actions.push_back(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::One(id),
                event: ask,
            });
            return;
        }
        self.pending.retain_mut(|p| {
            p.asks.retain(|ask| !ask.reply.is_closed());
            !p.asks.is_empty()
        });
        if let Some(same) = self.pending.iter_mut().find(|p| p.target == target) {
            if same.asks.len() < MAX_PENDING_OPENS {
                same.asks.push(ask);
            } else {
                let _ = ask.reply.send(Err(OpenError::Busy));
            }
            return;
        }
        if self.pending.len() >= MAX_PENDING_OPENS {
            let _ = ask.reply.send(Err(OpenError::Busy));
            return;
        }
        let dials = dials(&target);
        if dials.is_empty() || target.addresses.is_empty() {
            let _ = ask.reply.send(Err(OpenError::Unreachable { detail: "no address is known".into() }));
            return;
        }
        self.pending.push(Pending {
            target,
            dials: dials.iter().map(DialOpts::connection_id).collect(),
            dialled: Instant::now(),
            asks: vec![ask],
        });
        self.actions.extend(dials.into_iter().map(|opts| ToSwarm::Dial { opts }));
    }

    /// Dials a target once more that has not answered yet; once, where several wait for it.
    fn dial_beside(&mut self, now: Instant, target: &Target) {
        let due = |p: &&mut Pending| {
            p.target == *target && now.saturating_duration_since(p.dialled) >= DIAL_BESIDE_LEAST
        };
        let Some(pending) = self.pending.iter_mut().find(due) else { return };
        pending.dialled = now;
        let dials = dials(target);
        pending.dials.extend(dials.iter().map(DialOpts::connection_id));
        self.actions.extend(dials.into_iter().map(|opts| ToSwarm::Dial { opts }));
    }

    fn established(&mut self, peer: PeerId, id: ConnectionId, dialled: Option<Multiaddr>) {
        if self.left_alone.contains(&id) {
            return;
        }
        if self.outrun.remove(&id) {
            let connection = CloseConnection::One(id);
            self.actions.push_back(ToSwarm::CloseConnection { peer_id: peer, connection });
            return;
        }
        self.established = self.established.saturating_add(1);
        self.connections.entry(peer).or_default().insert(self.established, Connection { id, dialled });
        let (ready, waiting): (Vec<Pending>, _) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|p| p.target.peer == Some(peer) || p.dials.contains(&id));
        self.pending = waiting;
        self.outrun.extend(ready.iter().flat_map(|p| &p.dials).filter(|dial| **dial != id));
        for ask in ready.into_iter().flat_map(|p| p.asks) {
            self.actions.push_back(ToSwarm::NotifyHandler {
                peer_id: peer,
                handler: NotifyHandler::One(id),
                event: ask,
            });
        }
    }

    fn dial_failed(&mut self, id: ConnectionId, error: &DialError) {
        self.outrun.remove(&id);
        let Some(at) = self.pending.iter().position(|p| p.dials.contains(&id)) else { return };
        let Some(pending) = self.pending.get_mut(at) else { return };
        pending.dials.remove(&id);
        // Where somebody else answers, a dial beside this one would find no better.
        if !pending.dials.is_empty() && !matches!(error, DialError::WrongPeerId { .. }) {
            return;
        }
        let pending = self.pending.swap_remove(at);
        self.outrun.extend(&pending.dials);
        let error = match (error, pending.target.peer) {
            (DialError::WrongPeerId { obtained, .. }, Some(expected)) => {
                OpenError::WrongIdentity { expected, obtained: *obtained }
            }
            (error, _) => OpenError::Unreachable { detail: in_words(error) },
        };
        for ask in pending.asks {
            let _ = ask.reply.send(Err(error.clone()));
        }
    }

    fn closed(&mut self, peer: PeerId, id: ConnectionId) {
        self.left_alone.remove(&id);
        if let Some(of) = self.connections.get_mut(&peer) {
            of.retain(|_, c| c.id != id);
            if of.is_empty() {
                self.connections.remove(&peer);
            }
        }
    }
}

/// A server whose identity is known is dialled at all its addresses at once, else each by itself.
fn dials(target: &Target) -> Vec<DialOpts> {
    let addresses = target.addresses.iter().take(MAX_SERVER_ADDRESSES).cloned();
    match target.peer {
        Some(peer) => {
            let opts = DialOpts::peer_id(peer).condition(PeerCondition::Always);
            vec![opts.addresses(addresses.collect()).build()]
        }
        None => addresses.map(|a| DialOpts::unknown_peer_id().address(a).build()).collect(),
    }
}

/// An address as it was dialled, without the identity that libp2p puts at its end.
fn bare(addr: &Multiaddr) -> Multiaddr {
    let mut addr = addr.clone();
    if let Some(Protocol::P2p(_)) = addr.iter().last() {
        addr.pop();
    }
    addr
}

/// The last cause of a failed dial, in one line.
pub(crate) fn in_words(error: &DialError) -> String {
    let DialError::Transport(of_each) = error else { return clean_line(&error.to_string()) };
    let lines = of_each.iter().map(|(addr, error)| {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        format!("{addr}: {cause}")
    });
    // A server that closes a connection gives a reason in its own words.
    clean_line(&lines.collect::<Vec<_>>().join("; "))
}

/// One peer has opened as many connections as one may.
#[derive(Debug, thiserror::Error)]
#[error("at most {CONNECTIONS_PER_PEER} connections of one peer")]
struct TooManyConnections;

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let held = self.connections.get(&peer).map_or(0, BTreeMap::len);
        if matches!(self.role, Role::Server(_)) && held >= CONNECTIONS_PER_PEER {
            return Err(ConnectionDenied::new(TooManyConnections));
        }
        Ok(self.handler(peer, remote))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, addr))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(e) => {
                let dialled = e.endpoint.is_dialer().then(|| bare(e.endpoint.get_remote_address()));
                self.established(e.peer_id, e.connection_id, dialled);
            }
            FromSwarm::ConnectionClosed(e) => self.closed(e.peer_id, e.connection_id),
            FromSwarm::DialFailure(e) => self.dial_failed(e.connection_id, e.error),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            let Role::Client(commands) = &mut self.role else { return Poll::Pending };
            match commands.poll_recv(cx) {
                Poll::Ready(Some(Command::Open { target, ask })) => self.open(target, ask),
                Poll::Ready(Some(Command::DialBeside { target })) => {
                    self.dial_beside(Instant::now(), &target)
                }
                Poll::Ready(Some(Command::Close { peer })) => self
                    .actions
                    .push_back(ToSwarm::CloseConnection { peer_id: peer, connection: CloseConnection::All }),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

// ---- handler ------------------------------------------------------------------------------------------------------

/// The part of it that sits on one connection.
pub struct Handler {
    peer: PeerId,
    addr: watch::Sender<Multiaddr>,
    accept: Option<mpsc::Sender<Inbound>>,
    asks: VecDeque<Ask>,
    open: Arc<Semaphore>,
    pace: Bucket,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Ask;
    type ToBehaviour = Infallible;
    type InboundProtocol = Protocols;
    type OutboundProtocol = Protocols;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Ask;

    fn listen_protocol(&self) -> SubstreamProtocol<Protocols> {
        let all = vec![WATCH_PROTOCOL, FORWARD_PROTOCOL, RENDEZVOUS_PROTOCOL, DIAL_BACK_PROTOCOL];
        SubstreamProtocol::new(Protocols(if self.accept.is_some() { all } else { Vec::new() }), ())
    }

    fn on_behaviour_event(&mut self, ask: Ask) {
        if self.asks.len() < MAX_PENDING_OPENS {
            self.asks.push_back(ask);
        } else {
            let _ = ask.reply.send(Err(OpenError::Busy));
        }
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Protocols, Ask, Infallible>> {
        match self.asks.pop_front() {
            Some(ask) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Protocols(vec![ask.protocol.clone()]), ask),
            }),
            None => Poll::Pending,
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Protocols, Protocols, (), Ask>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol),
                ..
            }) => self.accepted(stream, protocol),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, _),
                info: ask,
            }) => {
                let opened = Opened { peer: self.peer, stream, addr: self.addr.subscribe() };
                // Whoever asked may have given up: the stream ends with the message.
                let _ = ask.reply.send(Ok(opened));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, info: ask }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    StreamUpgradeError::Apply(never) => match never {},
                    StreamUpgradeError::Timeout | StreamUpgradeError::Io(_) => OpenError::Closed,
                };
                let _ = ask.reply.send(Err(error));
            }
            ConnectionEvent::AddressChange(AddressChange { new_address }) => {
                self.addr.send_replace(bare(new_address));
            }
            _ => {}
        }
    }
}

impl Handler {
    fn accepted(&mut self, stream: Stream, protocol: StreamProtocol) {
        let Some(accept) = &self.accept else { return };
        let Ok(permit) = Arc::clone(&self.open).try_acquire_owned() else {
            tracing::debug!(peer = %self.peer, "stream refused: too many on one connection");
            return;
        };
        if !self.pace.take(Instant::now()) {
            tracing::debug!(peer = %self.peer, "stream refused: too many a second");
            return;
        }
        let inbound = Inbound { peer: self.peer, protocol, stream, addr: self.addr.subscribe(), permit };
        if accept.try_send(inbound).is_err() {
            tracing::debug!(peer = %self.peer, "stream refused: the server is busy or stopped");
        }
    }
}

/// Negotiates one of these protocols and yields the stream as it is.
#[derive(Debug)]
pub struct Protocols(Vec<StreamProtocol>);

impl UpgradeInfo for Protocols {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Protocols {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl OutboundUpgrade<Stream> for Protocols {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial_id(action: &ToSwarm<Infallible, Ask>) -> Option<ConnectionId> {
        match action {
            ToSwarm::Dial { opts } => Some(opts.connection_id()),
            _ => None,
        }
    }

    #[test]
    fn somebody_else_at_the_address_is_named_though_another_dial_still_waits() {
        let (mut behaviour, _opener) = Behaviour::client();
        let (expected, obtained) = (PeerId::random(), PeerId::random());
        let address: Multiaddr = "/ip4/192.0.2.1/udp/4001/quic-v1".parse().unwrap();
        let target = Target { peer: Some(expected), addresses: vec![address.clone()] };
        let (reply, mut opened) = oneshot::channel();
        behaviour.open(target.clone(), Ask { protocol: WATCH_PROTOCOL, reply });
        for _ in 0..2 {
            behaviour.dial_beside(Instant::now() + Duration::from_millis(200), &target);
        }
        let ids: Vec<ConnectionId> = behaviour.actions.iter().filter_map(dial_id).collect();
        let [first, beside] = *ids else { panic!("{ids:?}") };
        let error = DialError::WrongPeerId { obtained, address };
        behaviour.dial_failed(first, &error);
        let expected = OpenError::WrongIdentity { expected, obtained };
        assert_eq!(opened.try_recv().unwrap().err(), Some(expected));
        behaviour.dial_failed(beside, &DialError::Aborted);
        behaviour.actions.clear();
        assert_eq!(behaviour.remembered(), 0);
    }
}
