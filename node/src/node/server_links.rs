//! The rendezvous servers of a node: one client for each server and each name that the room bears today.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{StreamExt, stream::BoxStream, stream::SelectAll};
use libp2p::{Multiaddr, PeerId, identity::Keypair};
use tokio::sync::oneshot;

use crate::{
    invite::RoomSecrets,
    rendezvous::{
        Client, ClientConfig, ClientError, ClientEvent, Opener, Scope, Target, policy::dialable, scope_of,
        wire::DOOR_LEN,
    },
    transport::to_socket_addr,
};

/// How long a registration holds without being renewed. Short: a crashed node should not stay listed.
pub const REGISTRATION_TTL: Duration = Duration::from_secs(120);
/// Clocks of two members may be apart by this much around midnight, when the room's name changes.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(600);
/// How often the day is looked up.
const ROTATION_CHECK: Duration = Duration::from_secs(60);

struct Server {
    /// The first of its addresses as the person gave it, by which it is called outside.
    addr: Multiaddr,
    /// All of them: they are tried at once.
    target: Target,
    /// The address that answered; shows how far away it is where `addr` is a name.
    reached: Option<Multiaddr>,
    peer: Option<PeerId>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Connected,
    Registered,
    Lost,
}

struct Link {
    server: usize,
    namespace: String,
    client: Client,
}

/// See the module's text.
pub struct ServerLinks {
    servers: Vec<Server>,
    links: Vec<Link>,
    events: SelectAll<BoxStream<'static, (usize, ClientEvent)>>,
    keypair: Keypair,
    secrets: RoomSecrets,
    opener: Opener,
    addresses: Vec<Multiaddr>,
    /// The person chose the addresses: every server gets them as they are.
    announced: bool,
    next_check: std::time::Instant,
    door: Option<oneshot::Receiver<[u8; DOOR_LEN]>>,
}

impl ServerLinks {
    /// Nothing is dialled before [`ServerLinks::start`]. `announced`: our addresses were chosen by the person.
    pub fn new(
        servers: &[Multiaddr],
        keypair: Keypair,
        secrets: RoomSecrets,
        opener: Opener,
        announced: bool,
    ) -> Self {
        let servers = grouped(servers);
        Self {
            servers,
            links: Vec::new(),
            events: SelectAll::new(),
            keypair,
            secrets,
            opener,
            addresses: Vec::new(),
            announced,
            next_check: std::time::Instant::now() + ROTATION_CHECK,
            door: None,
        }
    }

    /// Goes to every server, with these addresses of ours.
    ///
    /// # Errors
    /// Where a server's address cannot be used at all.
    pub fn start(&mut self, addresses: &[Multiaddr]) -> Result<(), ClientError> {
        self.addresses = addresses.to_vec();
        if self.servers.is_empty() {
            return Ok(());
        }
        // The door is slow to compute on purpose; nobody waits for it.
        let (send, receive) = oneshot::channel();
        let secrets = self.secrets.clone();
        tokio::task::spawn_blocking(move || {
            let mut door = [0; DOOR_LEN];
            door.copy_from_slice(&secrets.door()[..DOOR_LEN]);
            let _ = send.send(door);
        });
        self.door = Some(receive);
        self.register_names()
    }

    /// Looks at the calendar: registers tomorrow's name in time, and drops yesterday's.
    ///
    /// # Errors
    /// As [`ServerLinks::start`].
    pub fn rotate(&mut self) -> Result<(), ClientError> {
        if let Some(Ok(door)) = self.door.as_mut().map(oneshot::Receiver::try_recv) {
            self.door = None;
            self.links.iter().for_each(|link| link.client.set_door(door));
        }
        if std::time::Instant::now() < self.next_check {
            return Ok(());
        }
        self.next_check = std::time::Instant::now() + ROTATION_CHECK;
        self.register_names()
    }

    fn register_names(&mut self) -> Result<(), ClientError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let names = self.secrets.namespaces(now.as_secs(), CLOCK_TOLERANCE.as_secs());
        self.links.retain(|link| names.contains(&link.namespace));
        for server in 0..self.servers.len() {
            for namespace in &names {
                if self.links.iter().any(|link| link.server == server && link.namespace == *namespace) {
                    continue;
                }
                let (client, events) = self.client(server, namespace)?;
                self.links.push(Link { server, namespace: namespace.clone(), client });
                let events = futures::stream::unfold(events, move |mut events| async move {
                    let event = events.recv().await?;
                    Some(((server, event), events))
                });
                self.events.push(events.boxed());
            }
        }
        Ok(())
    }

    fn client(
        &self,
        server: usize,
        namespace: &str,
    ) -> Result<(Client, tokio::sync::mpsc::Receiver<ClientEvent>), ClientError> {
        let target = self.servers[server].target.clone();
        let mut config = ClientConfig::new(target, self.keypair.clone(), namespace.to_owned(), None);
        config.ttl = REGISTRATION_TTL;
        config.addresses = self.addresses_for(server);
        Client::spawn(config, self.opener.clone())
    }

    /// The next thing that a server said, and which one. `None` while there are no servers.
    pub async fn next(&mut self) -> Option<(usize, ClientEvent)> {
        self.events.next().await
    }

    /// Our addresses changed.
    pub fn set_addresses(&mut self, addresses: &[Multiaddr]) {
        self.addresses = addresses.to_vec();
        for link in &self.links {
            link.client.set_addresses(self.addresses_for(link.server));
        }
    }

    fn addresses_for(&self, server: usize) -> Vec<Multiaddr> {
        if self.announced {
            return self.addresses.clone();
        }
        let server = &self.servers[server];
        let scope = server.reached.as_ref().and_then(scope_of).or_else(|| scope_of(&server.addr));
        tellable(&self.addresses, scope.unwrap_or(Scope::Public))
    }

    /// The network may be back: servers that are lost are tried at once.
    pub fn retry_now(&self) {
        self.links
            .iter()
            .filter(|link| self.servers[link.server].state == State::Lost)
            .for_each(|link| link.client.retry_now());
    }

    /// The server's address as the person gave it.
    pub fn address(&self, server: usize) -> Multiaddr {
        self.servers[server].addr.clone()
    }

    /// Who the server proved to be, or should be.
    pub fn peer(&self, server: usize) -> Option<PeerId> {
        self.servers[server].peer
    }

    /// The address that answered.
    pub fn reached_at(&self, server: usize) -> Option<Multiaddr> {
        self.servers[server].reached.clone()
    }

    /// The servers' addresses for QUIC, and who should answer there.
    pub fn quic_addresses(&self) -> Vec<(Option<PeerId>, Multiaddr)> {
        let of = |server: &Server| {
            let quic = server.target.addresses.iter().filter(|addr| to_socket_addr(addr).is_some());
            quic.map(|addr| (server.peer, addr.clone())).collect::<Vec<_>>()
        };
        self.servers.iter().flat_map(of).collect()
    }

    /// Whether this peer is one of the servers.
    pub fn is_server(&self, peer: &PeerId) -> bool {
        self.servers.iter().any(|server| server.peer.as_ref() == Some(peer))
    }

    /// The server answered.
    pub fn reached(&mut self, server: usize, peer: PeerId, addr: Multiaddr) {
        self.servers[server].peer = Some(peer);
        self.servers[server].reached = Some(addr);
    }

    /// True the first time after launch or after a loss. A link that is opened anew to tell more is no news.
    pub fn newly_connected(&mut self, server: usize) -> bool {
        let state = &mut self.servers[server].state;
        let news = matches!(state, State::New | State::Lost);
        if news {
            *state = State::Connected;
        }
        news
    }

    /// True the first time after launch or after a loss.
    pub fn newly_registered(&mut self, server: usize) -> bool {
        std::mem::replace(&mut self.servers[server].state, State::Registered) != State::Registered
    }

    /// True the first time after launch or after a registration.
    pub fn newly_lost(&mut self, server: usize) -> bool {
        std::mem::replace(&mut self.servers[server].state, State::Lost) != State::Lost
    }

    /// Says goodbye to all of them.
    pub async fn leave(&mut self) {
        let leaving = self.links.drain(..).map(|link| link.client.leave());
        futures::future::join_all(leaving).await;
    }
}

/// Addresses that end in one PeerId are addresses of one server.
fn grouped(addrs: &[Multiaddr]) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for addr in addrs {
        let target = Target::from_multiaddr(addr);
        let known = servers.iter_mut().find(|server| server.peer.is_some() && server.peer == target.peer);
        match known {
            Some(server) => {
                let news =
                    target.addresses.into_iter().filter(|addr| !server.target.addresses.contains(addr));
                server.target.addresses.extend(news.collect::<Vec<_>>());
            }
            None => servers.push(Server {
                addr: addr.clone(),
                reached: None,
                peer: target.peer,
                target,
                state: State::New,
            }),
        }
    }
    servers
}

/// What a server that is so far away is told: the addresses of this machine or its network say something about us to a
/// server on the internet, and are of no use to whoever it tells.
fn tellable(addresses: &[Multiaddr], server: Scope) -> Vec<Multiaddr> {
    addresses.iter().filter(|addr| dialable(addr, server)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Multiaddr> {
        [
            "/ip4/127.0.0.1/udp/1/quic-v1",
            "/ip4/192.168.1.7/udp/1/quic-v1",
            "/ip6/fe80::1/udp/1/quic-v1",
            "/ip4/8.8.8.8/udp/1/quic-v1",
        ]
        .map(|addr| addr.parse().unwrap())
        .to_vec()
    }

    #[test]
    fn a_server_on_the_internet_hears_of_public_addresses_only() {
        assert_eq!(tellable(&all(), Scope::Public), all()[3..]);
        assert_eq!(tellable(&all(), Scope::Private), all()[1..]);
        assert_eq!(tellable(&all(), Scope::Loopback), all());
    }

    fn links(servers: &[&str], announced: bool) -> ServerLinks {
        let servers: Vec<Multiaddr> = servers.iter().map(|addr| addr.parse().unwrap()).collect();
        let (_, opener) = crate::rendezvous::Behaviour::client();
        let secrets = "kitchen".parse::<crate::invite::Invite>().unwrap().secrets();
        let mut links = ServerLinks::new(&servers, Keypair::generate_ed25519(), secrets, opener, announced);
        links.addresses = all();
        links
    }

    #[test]
    fn a_server_known_by_name_counts_as_far_away_until_it_was_reached() {
        let mut far = links(&["/dns4/server.example/tcp/1"], false);
        assert_eq!(far.addresses_for(0), all()[3..]);
        far.reached(0, PeerId::random(), "/ip4/10.0.0.1/tcp/1".parse().unwrap());
        assert_eq!(far.addresses_for(0), all()[1..]);
        let chosen = links(&["/dns4/server.example/tcp/1"], true);
        assert_eq!(chosen.addresses_for(0), all(), "what was announced on purpose is told");
    }

    #[test]
    fn a_connection_is_news_after_the_launch_and_after_a_loss_only() {
        let mut links = links(&["/ip4/8.8.8.8/tcp/1"], false);
        assert!(links.newly_connected(0) && !links.newly_connected(0));
        assert!(links.newly_registered(0) && !links.newly_registered(0));
        assert!(!links.newly_connected(0), "opened anew for the door");
        assert!(!links.newly_registered(0));
        assert!(links.newly_lost(0) && !links.newly_lost(0));
        assert!(links.newly_connected(0) && links.newly_registered(0));
    }
}
