//! Dialling a node back from another port, so that it learns what its router lets in (RFC 5780 section 4.4: there a STUN
//! server answers from its other port or address).
//!
//! The node says a port only; the address is the one that the server sees it at, and that the handshake of its connection
//! has proven, so nobody can send a server to a third party. Behind a NAT or on a machine of several people it may be
//! somebody else's port: so it is none of the well-known ones, and one at a time. One QUIC handshake is begun, from a
//! socket of its own and under an identity of its own.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::AsyncWriteExt as _;
use libp2p::{
    Multiaddr, StreamProtocol,
    core::{
        Endpoint, Transport as _,
        transport::{DialOpts, ListenerId, PortUse},
    },
    identity::Keypair,
};
use tokio::time::{Instant, timeout};

use super::{
    limits::STREAM_PATIENCE,
    policy::scope_of_ip,
    store::Prefix,
    streams::{Inbound, OpenError, Opener, Target},
    wire::{self, ReadError},
};
use crate::{
    session::bucket::Bucket,
    transport::{self, QuicTransport},
};

/// One request and its answer on a stream.
pub const DIAL_BACK_PROTOCOL: StreamProtocol = StreamProtocol::new("/hallway/dial-back/1");
/// How long a node is given to be heard.
pub const DIAL_BACK_PATIENCE: Duration = Duration::from_millis(1500);
/// Nodes dialled back by one server: this many at once …
pub const DIAL_BACK_BURST: u32 = 16;
/// … and this many a second for long.
pub const DIAL_BACKS_PER_SECOND: u32 = 4;
/// The lowest port dialled: those below belong to services.
pub const LEAST_PORT: u16 = 1024;
/// Longest message of either side.
const MAX_MESSAGE: usize = 64;

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    /// UDP port of the node as servers see it.
    #[prost(uint32, tag = "1")]
    port: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(enumeration = "Outcome", tag = "1")]
    outcome: i32,
}

/// What came of it, as the server saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Outcome {
    /// Not understood, or too often.
    Refused = 0,
    /// The node answered.
    Reached = 1,
    /// Nothing came back.
    Silent = 2,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DialBackError {
    /// No stream to the server.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The server's answer cannot be read; an older one does not know the protocol.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The question could not be sent.
    #[error("writing: {0}")]
    Write(#[from] std::io::Error),
    /// The server does not answer.
    #[error("the server does not answer")]
    Patience(#[from] tokio::time::error::Elapsed),
}

/// Asks a server to dial the port at which it and others see us.
///
/// # Errors
/// See [`DialBackError`].
pub async fn ask(opener: &Opener, server: &Target, port: u16) -> Result<Outcome, DialBackError> {
    let mut stream = timeout(STREAM_PATIENCE, opener.open(server, DIAL_BACK_PROTOCOL)).await??.stream;
    wire::write(&mut stream, &Request { port: port.into() }).await?;
    let answer: Response = timeout(STREAM_PATIENCE, wire::read(&mut stream, MAX_MESSAGE)).await??;
    Ok(answer.outcome())
}

/// A server's part.
#[derive(Debug)]
pub(super) struct DialBacks {
    pace: Mutex<Bucket>,
    /// Who is being dialled.
    busy: Mutex<HashSet<Prefix>>,
    from: Vec<IpAddr>,
}

/// The right to be dialled, ended by dropping it.
struct Turn<'a> {
    busy: &'a Mutex<HashSet<Prefix>>,
    of: Prefix,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.of);
    }
}

impl DialBacks {
    /// `from`: the server's own addresses, where it was told to be at certain ones.
    pub(super) fn new(now: std::time::Instant, from: Vec<IpAddr>) -> Self {
        let pace = Mutex::new(Bucket::per_second(DIAL_BACK_BURST, DIAL_BACKS_PER_SECOND, now));
        Self { pace, busy: Mutex::default(), from }
    }

    /// Whether somebody from there may be dialled now: one at a time of each public IPv4 address or IPv6 /64.
    fn turn(&self, of: Prefix) -> Option<Turn<'_>> {
        let new = self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(of);
        if !new && of != Prefix::Local {
            return None;
        }
        let free = self.pace.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now().into_std());
        let turn = Turn { busy: &self.busy, of };
        free.then_some(turn)
    }

    /// From where somebody is to be dialled: the address that nodes know, of the same family and as far away, or whichever
    /// the system takes.
    fn from(&self, place: SocketAddr) -> IpAddr {
        let any =
            if place.is_ipv6() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
        let fits =
            |ip: &&IpAddr| ip.is_ipv6() == place.is_ipv6() && scope_of_ip(**ip) == scope_of_ip(place.ip());
        self.from.iter().find(fits).copied().unwrap_or(any)
    }

    /// Serves one stream.
    pub(super) async fn serve(&self, mut inbound: Inbound) -> Result<(), DialBackError> {
        let request: Request =
            timeout(STREAM_PATIENCE, wire::read(&mut inbound.stream, MAX_MESSAGE)).await??;
        let seen = inbound.addr.borrow().clone();
        let place = place(&seen, request.port);
        let outcome = match place.and_then(|place| Some((place, self.turn(Prefix::of(&seen))?))) {
            Some((place, _turn)) => dial(place, self.from(place)).await,
            None => Outcome::Refused,
        };
        let answer = Response { outcome: outcome.into() };
        timeout(STREAM_PATIENCE, wire::write(&mut inbound.stream, &answer)).await??;
        Ok(timeout(STREAM_PATIENCE, inbound.stream.close()).await??)
    }
}

/// Where to dial: the peer's own IP address, at the port that it says.
fn place(seen: &Multiaddr, port: u32) -> Option<SocketAddr> {
    let ip = transport::ip_of(seen)?;
    scope_of_ip(ip)?;
    let port = u16::try_from(port).ok().filter(|port| *port >= LEAST_PORT)?;
    Some(SocketAddr::new(ip, port))
}

async fn dial(place: SocketAddr, from: IpAddr) -> Outcome {
    // Nobody is to take this connection for one of the server's.
    let config = match transport::Config::new(&Keypair::generate_ed25519()) {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!(%error, "nobody is dialled back");
            return Outcome::Refused;
        }
    };
    let (mut transport, _connections) = QuicTransport::new(config);
    if let Err(error) = transport.listen_on(ListenerId::next(), transport::to_multiaddr((from, 0).into())) {
        tracing::info!(%error, "nobody is dialled back from here");
        return Outcome::Refused;
    }
    let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
    let Ok(dial) = transport.dial(transport::to_multiaddr(place), opts) else { return Outcome::Refused };
    match timeout(DIAL_BACK_PATIENCE, dial).await {
        Ok(Ok(_connection)) => Outcome::Reached,
        _ => Outcome::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_asks_is_dialled_at_a_port_that_exists() {
        let seen: Multiaddr = "/ip4/8.8.8.8/udp/4001/quic-v1".parse().unwrap();
        assert_eq!(place(&seen, 7700), Some("8.8.8.8:7700".parse().unwrap()));
        assert_eq!(
            place(&"/ip6/2600::1/tcp/4001".parse().unwrap(), 1024),
            Some("[2600::1]:1024".parse().unwrap())
        );
        assert_eq!(place(&seen, 0), None);
        assert_eq!(place(&seen, 53), None);
        assert_eq!(place(&seen, 1023), None);
        assert_eq!(place(&seen, 65_536), None);
        assert_eq!(place(&"/ip4/224.0.0.1/udp/1/quic-v1".parse().unwrap(), 7700), None);
        assert_eq!(place(&"/dns4/x/udp/1/quic-v1".parse().unwrap(), 7700), None);
    }

    #[tokio::test]
    async fn an_address_is_dialled_once_at_a_time() {
        let backs = DialBacks::new(std::time::Instant::now(), Vec::new());
        let [one, other] = [Prefix::V4([8, 8, 8, 8]), Prefix::V4([9, 9, 9, 9])];
        let turn = backs.turn(one);
        assert!(turn.is_some() && backs.turn(one).is_none() && backs.turn(other).is_some());
        drop(turn);
        assert!(backs.turn(one).is_some());
        assert!(backs.busy.lock().unwrap().is_empty(), "nothing is kept of who was dialled");
    }

    #[test]
    fn it_is_dialled_from_an_address_as_far_away_as_itself() {
        let from = ["10.0.0.1", "192.0.2.1", "2600::1"].map(|ip| ip.parse().unwrap());
        let backs = DialBacks::new(std::time::Instant::now(), from.to_vec());
        let from = |place: &str| backs.from(place.parse().unwrap()).to_string();
        assert_eq!(from("8.8.8.8:7700"), "192.0.2.1");
        assert_eq!(from("192.168.1.2:7700"), "10.0.0.1");
        assert_eq!(from("[2600::2]:7700"), "2600::1");
        assert_eq!(from("[fd00::2]:7700"), "::");
        assert_eq!(from("127.0.0.1:7700"), "0.0.0.0");
    }

    #[tokio::test]
    async fn nobody_there_is_silence() {
        let trap = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(dial(trap.local_addr().unwrap(), Ipv4Addr::LOCALHOST.into()).await, Outcome::Silent);
        let mut first = [0; 2048];
        assert!(trap.recv(&mut first).unwrap() >= 1200, "a handshake was begun");
    }
}
