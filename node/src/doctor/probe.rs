//! Gathers the facts: every address of every server is dialled, once, by somebody whom nobody knows.

use std::{
    collections::HashMap,
    net::SocketAddr,
    num::NonZeroU16,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, Swarm, identify, ping,
    swarm::{
        ConnectionId, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use super::{Clock, Facts, Family, Router, SOCKET_PATIENCE, Server, Transport, filtering, stranger};
use crate::{
    audio,
    nat::{Filtering, Observations},
    node::{
        portmap, root_cause,
        swarm::{self, Behaviour, BehaviourEvent},
    },
    rendezvous::{self, Scope, Target, scope_of},
    transport::{self, Authenticated, wss},
};

/// Addresses of servers that are tried: they may all be of one, and neither side lets more connections of one peer in.
pub const MAX_ADDRESSES: usize = swarm::MAX_CONNECTIONS_PER_PEER as usize;
/// How often a server is pinged.
const PING_EVERY: Duration = Duration::from_millis(100);
/// How long servers are pinged after the last one answered.
const LISTEN_FOR: Duration = Duration::from_millis(1500);
/// How long the router may take.
const ROUTER_PATIENCE: Duration = Duration::from_millis(2500);
/// This version was written after that: 2026-11-01 UTC.
const WRITTEN: Duration = Duration::from_secs(1_793_491_200);
/// Older than this no program is in use.
const LONG_AFTER: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// What is to be examined.
#[derive(Debug, Clone)]
pub struct Options {
    /// Addresses of servers.
    pub servers: Vec<Multiaddr>,
    /// How long a server may take to answer.
    pub patience: Duration,
    /// Whether the router is asked for a port.
    pub map_port: bool,
}

struct Probe {
    swarm: Swarm<Behaviour>,
    servers: Vec<Server>,
    dials: HashMap<ConnectionId, usize>,
    observations: Observations,
    /// The far end of each QUIC connection.
    observers: HashMap<ConnectionId, SocketAddr>,
    listening: Vec<SocketAddr>,
    pings: HashMap<ConnectionId, Vec<Duration>>,
    connections: Vec<Authenticated>,
    began: Instant,
}

/// Examines. Takes a few seconds; where servers are silent, `patience`.
///
/// # Errors
/// Where no socket can be had.
pub async fn examine(options: &Options) -> Result<Facts, swarm::Error> {
    let (mut swarm, mut authenticated, _opener) = stranger()?;
    swarm.behaviour_mut().ping = ping::Behaviour::new(ping::Config::new().with_interval(PING_EVERY));
    for addr in ["/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::/udp/0/quic-v1"] {
        if let Ok(addr) = addr.parse()
            && let Err(error) = swarm.listen_on(addr)
        {
            tracing::info!(%error, "one IP family cannot be listened on");
        }
    }
    let mut probe = Probe {
        swarm,
        servers: Vec::new(),
        dials: HashMap::new(),
        observations: Observations::default(),
        observers: HashMap::new(),
        listening: Vec::new(),
        pings: HashMap::new(),
        connections: Vec::new(),
        began: Instant::now(),
    };
    // The listeners' addresses come first: what is dialled before is dialled from other ports. A family without any does
    // not tell that it has none.
    let listen_until = Instant::now() + SOCKET_PATIENCE;
    probe.run(&mut authenticated, listen_until, Probe::knows_its_addresses).await;
    probe.began = Instant::now();
    for addr in options.servers.iter().take(MAX_ADDRESSES) {
        probe.dial(addr);
    }
    let router = tokio::spawn(ask_router(probe.local_port().filter(|_| options.map_port)));
    let until = probe.began + options.patience;
    probe.run(&mut authenticated, until, |probe| probe.dials.is_empty()).await;
    if probe.servers.iter().any(|server| server.connected_after_ms.is_some()) {
        probe.run(&mut authenticated, Instant::now() + LISTEN_FOR, |_| false).await;
    }
    let reached: Vec<(Multiaddr, Transport)> = probe
        .servers
        .iter()
        .filter(|server| server.connected_after_ms.is_some())
        .map(|server| (server.addr.clone(), server.transport))
        .collect();
    let filtering = tokio::join!(filtering::examine(&reached, false), filtering::examine(&reached, true));
    let router = router.await.unwrap_or_default();
    Ok(probe.facts(router, filtering.into()))
}

impl Probe {
    fn dial(&mut self, addr: &Multiaddr) {
        let target = Target::from_multiaddr(addr);
        let Some(bare) = target.addresses.first().cloned() else { return };
        let transport = match () {
            () if wss::is_wss(&bare) => Transport::Wss,
            () if transport::is_tcp(&bare) => Transport::Tcp,
            () => Transport::Quic,
        };
        let opts = match target.peer {
            Some(peer) => {
                DialOpts::peer_id(peer).addresses(vec![bare]).condition(PeerCondition::Always).build()
            }
            None => DialOpts::unknown_peer_id().address(bare).build(),
        };
        let (id, index) = (opts.connection_id(), self.servers.len());
        let failed = self.swarm.dial(opts).err();
        if failed.is_none() {
            self.dials.insert(id, index);
        }
        let error = failed.map(|error| root_cause(&error));
        self.servers.push(Server { addr: addr.clone(), transport, connected_after_ms: None, error });
    }

    /// Lets things happen until then, or until it is done.
    async fn run(
        &mut self,
        authenticated: &mut tokio::sync::mpsc::Receiver<Authenticated>,
        until: Instant,
        done: impl Fn(&Self) -> bool,
    ) {
        while !done(self) {
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle(event),
                Some(connection) = authenticated.recv() => self.connections.push(connection),
                () = tokio::time::sleep_until(until.into()) => return,
            }
        }
    }

    fn handle(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                self.listening.extend(transport::to_socket_addr(&address));
            }
            // Only those we asked are believed.
            SwarmEvent::ConnectionEstablished { connection_id, endpoint, .. } if endpoint.is_dialer() => {
                let observer = transport::to_socket_addr(endpoint.get_remote_address());
                self.observers.extend(observer.map(|observer| (connection_id, observer)));
                let after = self.began.elapsed().as_secs_f64() * 1000.0;
                if let Some(server) = self.dials.remove(&connection_id).and_then(|i| self.servers.get_mut(i))
                {
                    server.connected_after_ms = Some(after);
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some(server) = self.dials.remove(&connection_id).and_then(|i| self.servers.get_mut(i))
                {
                    server.error = Some(rendezvous::streams::in_words(&error));
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event {
                connection, result: Ok(rtt), ..
            })) => {
                self.pings.entry(connection).or_default().push(rtt);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                connection_id,
                info,
                ..
            })) => {
                let observer = self.observers.get(&connection_id);
                if let (Some(observer), Some(seen)) =
                    (observer, transport::to_socket_addr(&info.observed_addr))
                {
                    self.observations.add(*observer, seen);
                }
            }
            _ => {}
        }
    }

    /// Whether each family has told an address that others may know.
    fn knows_its_addresses(&self) -> bool {
        let far = |addr: &SocketAddr| !addr.ip().is_loopback();
        [false, true].iter().all(|v6| self.listening.iter().any(|addr| addr.is_ipv6() == *v6 && far(addr)))
    }

    /// Our IPv4 port, where the address is one of a private network.
    fn local_port(&self) -> Option<NonZeroU16> {
        let private = |addr: &SocketAddr| scope_of(&transport::to_multiaddr(*addr)) == Some(Scope::Private);
        let addr = self.listening.iter().find(|addr| addr.is_ipv4() && private(addr))?;
        NonZeroU16::new(addr.port())
    }

    fn family(&self, v6: bool, filtering: Filtering) -> Family {
        let far = |addr: &&SocketAddr| {
            addr.is_ipv6() == v6
                && scope_of(&transport::to_multiaddr(**addr)).is_some_and(|scope| scope > Scope::Loopback)
        };
        let link_local = |addr: &SocketAddr| match addr.ip() {
            std::net::IpAddr::V4(ip) => ip.is_link_local(),
            std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        Family {
            addresses: self
                .listening
                .iter()
                .filter(far)
                .filter(|addr| !link_local(addr))
                .map(SocketAddr::ip)
                .collect(),
            seen_at: self.observations.all(v6),
            mapping: self.observations.mapping(v6, &self.listening),
            filtering,
        }
    }

    fn facts(self, router: Option<Router>, [v4, v6]: [Filtering; 2]) -> Facts {
        let quickest = self.pings.values().filter(|pings| pings.len() >= 3).min_by_key(|pings| {
            let mut sorted = (*pings).clone();
            sorted.sort();
            sorted.get(sorted.len() / 2).copied()
        });
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let rtt_ms = quickest.map(|pings| {
            let mut sorted = pings.clone();
            sorted.sort();
            sorted.get(sorted.len() / 2).map_or(0.0, |rtt| ms(*rtt))
        });
        // RFC 3550's idea of jitter: how much one differs from the next.
        let jitter_ms = quickest.map(|pings| {
            let steps = pings.iter().zip(pings.iter().skip(1)).map(|(a, b)| ms(a.abs_diff(*b)));
            steps.sum::<f64>() / pings.len().saturating_sub(1).max(1) as f64
        });
        let mtu = self.connections.iter().map(|c| c.connection.stats().path.current_mtu).max();
        Facts {
            version: env!("CARGO_PKG_VERSION"),
            ipv4: self.family(false, v4),
            ipv6: self.family(true, v6),
            router,
            rtt_ms,
            jitter_ms,
            mtu_bytes: mtu,
            clock: clock(),
            sound: audio::list_devices(),
            servers: self.servers,
        }
    }
}

/// Asks the router what it speaks, and for a port that is given back at once. `None`: it was not asked, or said nothing in
/// time.
async fn ask_router(port: Option<NonZeroU16>) -> Option<Router> {
    let port = port?;
    let client = portmapper::Client::new(portmap::config());
    let asked = tokio::time::timeout(ROUTER_PATIENCE, client.probe()).await;
    let found = asked.ok()?.ok()?.ok()?;
    let mut router = Router { upnp: found.upnp, pcp: found.pcp, nat_pmp: found.nat_pmp, external: None };
    if router.upnp || router.pcp || router.nat_pmp {
        let mut external = client.watch_external_address();
        client.update_local_port(port);
        let given = tokio::time::timeout(ROUTER_PATIENCE, external.wait_for(Option::is_some)).await;
        router.external = given.ok().and_then(Result::ok).and_then(|given| *given);
        client.deactivate();
        if router.external.is_some() {
            tokio::time::sleep(portmap::GIVE_BACK).await;
        }
    }
    Some(router)
}

/// The clock of this machine against the age of this version.
fn clock() -> Clock {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clock { unix_s: now.as_secs(), plausible: now.checked_sub(WRITTEN).is_some_and(|age| age < LONG_AFTER) }
}
