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
use libp2p::{Multiaddr, Swarm, identify, identity::Keypair, swarm::SwarmEvent};
use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, sleep, timeout},
};

use super::Transport;
use crate::{
    nat::Filtering,
    node::swarm::{self, Behaviour, BehaviourEvent},
    rendezvous::{
        self, Opener, Target,
        dial_back::{self, Outcome},
    },
    transport::{self, Authenticated},
};

/// How long a server that has just answered may take to answer again and to say how it sees us.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a server may take to say how it sees us, once it has answered.
const SEEN_PATIENCE: Duration = Duration::from_secs(1);
/// How long a socket may take to be there.
const SOCKET_PATIENCE: Duration = Duration::from_millis(200);

/// Tries it in one family. Takes about two seconds where somebody is not let in.
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
    let Some(seen) = visitor.seen else { return Filtering::Unknown };
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
    if visitor.seen_from != Some(seen.ip()) {
        return None;
    }
    visitor.ask(&server, seen.port()).await
}

/// Somebody whom nobody knows, with a socket of its own.
struct Visitor {
    swarm: Swarm<Behaviour>,
    authenticated: Receiver<Authenticated>,
    opener: Opener,
    /// Where the server sees us over UDP, and at which address at all.
    seen: Option<SocketAddr>,
    seen_from: Option<IpAddr>,
    called_from: HashSet<SocketAddr>,
}

impl Visitor {
    fn new() -> Option<Self> {
        let (behaviour, opener) = rendezvous::Behaviour::client();
        let setup = swarm::Setup {
            certificate: None,
            rendezvous: behaviour,
            lan: false,
            drive: None,
            ceiling: None,
            idle_timeout: Duration::from_secs(60),
            max_connections: 16,
            max_per_origin: swarm::NODE_CONNECTIONS_PER_ORIGIN,
        };
        let built = swarm::build(&Keypair::generate_ed25519(), setup);
        let (swarm, authenticated) =
            built.inspect_err(|error| tracing::info!(%error, "filtering is not examined")).ok()?;
        let (seen, seen_from, called_from) = (None, None, HashSet::new());
        Some(Self { swarm, authenticated, opener, seen, seen_from, called_from })
    }

    async fn listening(v6: bool) -> Option<Self> {
        let mut visitor = Self::new()?;
        let addr = if v6 { "/ip6/::/udp/0/quic-v1" } else { "/ip4/0.0.0.0/udp/0/quic-v1" };
        visitor.swarm.listen_on(addr.parse().ok()?).ok()?;
        // What is dialled before the socket is there is dialled from another one.
        visitor.run(sleep(SOCKET_PATIENCE)).await;
        Some(visitor)
    }

    /// Asks a server to call this port. `None`: no answer.
    async fn ask(&mut self, server: &Target, port: u16) -> Option<Outcome> {
        let opener = self.opener.clone();
        let answer = self.run(timeout(PATIENCE, dial_back::ask(&opener, server, port))).await.ok()?.ok();
        let until = Instant::now() + SEEN_PATIENCE;
        while self.seen_from.is_none() && Instant::now() < until {
            self.run(sleep(Duration::from_millis(20))).await;
        }
        answer
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
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { info, .. })) => {
                self.seen = transport::to_socket_addr(&info.observed_addr).or(self.seen);
                self.seen_from = transport::ip_of(&info.observed_addr).or(self.seen_from);
            }
            _ => {}
        }
    }

    /// Whether somebody at such an address got in. What a server did not try says nothing.
    fn judged(&self, outcome: Option<Outcome>, at: impl Fn(IpAddr) -> bool) -> Option<bool> {
        let came = self.called_from.iter().any(|from| at(from.ip()));
        (came || outcome == Some(Outcome::Silent)).then_some(came)
    }
}
