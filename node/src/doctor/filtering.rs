//! Whom the network lets in: a fresh socket writes to one address of one server, and is then called from another port of it
//! and, where there is a second server, from an address that it never wrote to (RFC 5780 section 4.4).

use std::{
    collections::HashSet,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, Swarm, identify,
    swarm::{ConnectionId, SwarmEvent},
};
use tokio::{
    sync::mpsc::Receiver,
    time::{sleep, timeout},
};

use super::{SOCKET_PATIENCE, Transport, stranger};
use crate::{
    nat::Filtering,
    node::swarm::{Behaviour, BehaviourEvent},
    rendezvous::{
        Opener, Target,
        dial_back::{self, Outcome},
    },
    transport::{self, Authenticated},
};

/// How long a server that has just answered may take to answer again and to say how it sees us.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a server may take to say how it sees us, once it has answered.
const SEEN_PATIENCE: Duration = Duration::from_secs(1);
/// Tries it in one family. Takes more than three seconds where nobody is let in.
pub(super) async fn examine(reached: &[(Multiaddr, Transport)], v6: bool) -> Filtering {
    let ip_of = |addr: &Multiaddr| transport::ip_of(addr).filter(|ip| ip.is_ipv6() == v6);
    let quic = reached.iter().filter(|(_, transport)| *transport == Transport::Quic);
    let Some((first, first_ip)) = quic.filter_map(|(addr, _)| Some((addr, ip_of(addr)?))).next() else {
        return Filtering::Unknown;
    };
    let Some(mut visitor) = Visitor::listening(v6).await else { return Filtering::Unknown };
    let server = Target::from_multiaddr(first);
    // The first question only makes the server see this socket: nobody is dialled at port 0.
    visitor.ask(&server, 0).await;
    let Some(seen) = visitor.seen() else { return Filtering::Unknown };
    let outcome = visitor.ask(&server, seen.port()).await;
    let other_port = visitor.judged(outcome, |ip| ip == first_ip);
    let elsewhere = reached.iter().find(|(addr, _)| ip_of(addr).is_some_and(|ip| ip != first_ip));
    let second = match elsewhere {
        Some((addr, _)) => visitor.run(ask_from_elsewhere(addr, seen)).await,
        None => None,
    };
    let other_address = visitor.judged(second, |ip| ip != first_ip);
    Filtering::judge(other_port, other_address)
}

/// Asks another server to call the socket that is seen there: over a connection of its own, so that the socket never writes
/// to it. `None` where that server sees this machine at another address: its call would go elsewhere.
async fn ask_from_elsewhere(addr: &Multiaddr, seen: SocketAddr) -> Option<Outcome> {
    let mut visitor = Visitor::new()?;
    let server = Target::from_multiaddr(addr);
    visitor.ask(&server, 0).await?;
    if visitor.seen_from() != Some(seen.ip()) {
        return None;
    }
    visitor.ask(&server, seen.port()).await
}

/// Somebody whom nobody knows, with a socket of its own.
struct Visitor {
    swarm: Swarm<Behaviour>,
    authenticated: Receiver<Authenticated>,
    opener: Opener,
    listens: bool,
    /// Connections that it has dialled: who calls it does not know how it is seen.
    dialled: HashSet<ConnectionId>,
    /// Where the server sees it.
    observed: Option<Multiaddr>,
    called_from: HashSet<SocketAddr>,
}

impl Visitor {
    fn new() -> Option<Self> {
        let built = stranger().inspect_err(|error| tracing::info!(%error, "filtering is not examined"));
        let (swarm, authenticated, opener) = built.ok()?;
        let (dialled, called_from) = Default::default();
        Some(Self { swarm, authenticated, opener, listens: false, dialled, observed: None, called_from })
    }

    async fn listening(v6: bool) -> Option<Self> {
        let mut visitor = Self::new()?;
        let addr = if v6 { "/ip6/::/udp/0/quic-v1" } else { "/ip4/0.0.0.0/udp/0/quic-v1" };
        visitor.swarm.listen_on(addr.parse().ok()?).ok()?;
        // What is dialled before the socket is there is dialled from another one.
        visitor.wait(SOCKET_PATIENCE, |visitor| visitor.listens).await;
        Some(visitor)
    }

    /// Where the server sees its socket.
    fn seen(&self) -> Option<SocketAddr> {
        self.observed.as_ref().and_then(transport::to_socket_addr)
    }

    /// At which address it is seen, whatever the transport.
    fn seen_from(&self) -> Option<IpAddr> {
        self.observed.as_ref().and_then(transport::ip_of)
    }

    /// Asks a server to call this port. `None`: no answer.
    async fn ask(&mut self, server: &Target, port: u16) -> Option<Outcome> {
        let opener = self.opener.clone();
        let answer = self.run(timeout(PATIENCE, dial_back::ask(&opener, server, port))).await.ok()?.ok();
        self.wait(SEEN_PATIENCE, |visitor| visitor.observed.is_some()).await;
        answer
    }

    /// Lets things happen until that is so, or for this long.
    async fn wait(&mut self, patience: Duration, done: impl Fn(&Self) -> bool) {
        let mut end = pin!(sleep(patience));
        while !done(self) {
            tokio::select! {
                () = &mut end => return,
                event = self.swarm.select_next_some() => self.handle(event),
                Some(_) = self.authenticated.recv() => {}
            }
        }
    }

    /// Lets things happen meanwhile.
    async fn run<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                event = self.swarm.select_next_some() => self.handle(event),
                Some(_) = self.authenticated.recv() => {}
            }
        }
    }

    fn handle(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::IncomingConnection { send_back_addr, .. } => {
                self.called_from.extend(transport::to_socket_addr(&send_back_addr));
            }
            SwarmEvent::NewListenAddr { .. } => self.listens = true,
            SwarmEvent::ConnectionEstablished { connection_id, endpoint, .. } if endpoint.is_dialer() => {
                self.dialled.insert(connection_id);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                connection_id,
                info,
                ..
            })) if self.dialled.contains(&connection_id) => self.observed = Some(info.observed_addr),
            _ => {}
        }
    }

    /// Whether somebody at such an address got in. What a server did not try says nothing.
    fn judged(&self, outcome: Option<Outcome>, at: impl Fn(IpAddr) -> bool) -> Option<bool> {
        let came = self.called_from.iter().any(|from| at(from.ip()));
        (came || outcome == Some(Outcome::Silent)).then_some(came)
    }
}
