//! The rendezvous servers of a node: one client for each server and each name that the room bears today.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use futures::{StreamExt, stream::BoxStream, stream::SelectAll};
use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use tokio::sync::oneshot;

use super::PathChoice;
use crate::{
    invite::RoomSecrets,
    priority,
    rendezvous::{
        Client, ClientConfig, ClientError, ClientEvent, Opener, Scope, Target, policy::dialable, scope_of,
        streams::is_quic, wire::DOOR_LEN,
    },
    transport::to_socket_addr,
};

/// How long a registration holds without being renewed. Short: a crashed node should not stay listed.
pub const REGISTRATION_TTL: Duration = Duration::from_secs(120);
/// Clocks of two members may be apart by this much around midnight, when the room's name changes.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(600);
/// Servers on which one room lives, of those that are configured.
pub const ROOM_SERVERS: usize = 2;
/// A server that has not answered for this long is replaced by the next one in the room's order.
pub const REPLACED_AFTER: Duration = Duration::from_secs(5);
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
    /// Since when it does not answer.
    lost_since: Option<Instant>,
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
    next_check: Instant,
    /// How many servers were taken for lost when the rooms were last given their homes.
    replaced: usize,
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
        path: PathChoice,
    ) -> Self {
        let servers = grouped(servers, path);
        Self {
            servers,
            links: Vec::new(),
            events: SelectAll::new(),
            keypair,
            secrets,
            opener,
            addresses: Vec::new(),
            announced,
            next_check: Instant::now() + ROTATION_CHECK,
            replaced: 0,
            door: None,
        }
    }

    /// Forgets every address that is reached over TCP, guessed ones too.
    pub fn without_tcp(mut self) -> Self {
        self.servers.iter_mut().for_each(|server| server.target.addresses.retain(is_quic));
        self
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
        // The door is slow to compute on purpose; nobody waits for it, and a call that begins must not either.
        let (send, receive) = oneshot::channel();
        let secrets = self.secrets.clone();
        let work = std::thread::Builder::new().name("door".into());
        let begun = work.spawn(move || {
            priority::patient();
            let mut door = [0; DOOR_LEN];
            door.copy_from_slice(&secrets.door()[..DOOR_LEN]);
            let _ = send.send(door);
        });
        if let Err(error) = begun {
            tracing::warn!(%error, "no thread to compute the room's door on; nobody is told of another secret");
        }
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
        self.replace_lost()?;
        if Instant::now() < self.next_check {
            return Ok(());
        }
        self.next_check = Instant::now() + ROTATION_CHECK;
        self.register_names()
    }

    /// Where a server does not answer any more, the next one in the room's order takes part too.
    fn replace_lost(&mut self) -> Result<(), ClientError> {
        let now = Instant::now();
        let down = |server: &Server| {
            server.lost_since.is_some_and(|since| now.saturating_duration_since(since) >= REPLACED_AFTER)
        };
        let lost = self.servers.iter().filter(|server| down(server)).count();
        if std::mem::replace(&mut self.replaced, lost) == lost { Ok(()) } else { self.register_names() }
    }

    /// The servers on which a room of this name lives: the first two of its order that answer, and whoever comes before.
    fn homes(&self, namespace: &str) -> Vec<usize> {
        let now = Instant::now();
        let mut order: Vec<usize> = (0..self.servers.len()).collect();
        order.sort_by_key(|server| std::cmp::Reverse(weight(&self.servers[*server].key(), namespace)));
        let mut answering = 0;
        order.retain(|server| {
            let needed = answering < ROOM_SERVERS;
            let lost = self.servers[*server].lost_since;
            let up = lost.is_none_or(|since| now.saturating_duration_since(since) < REPLACED_AFTER);
            answering += usize::from(up);
            needed
        });
        order
    }

    fn register_names(&mut self) -> Result<(), ClientError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let names = self.secrets.namespaces(now.as_secs(), CLOCK_TOLERANCE.as_secs());
        self.links.retain(|link| names.contains(&link.namespace));
        for namespace in &names {
            for server in self.homes(namespace) {
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
        let target = self.target(server);
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
            // A server that was named by a name is asked where it was reached.
            let mut quic: Vec<&Multiaddr> = server.target.addresses.iter().chain(&server.reached).collect();
            quic.retain(|addr| to_socket_addr(addr).is_some());
            quic.iter().map(|addr| (server.peer, (*addr).clone())).collect::<Vec<_>>()
        };
        self.servers.iter().flat_map(of).collect()
    }

    /// How a server is reached: its identity, and every address that may be tried.
    pub fn target(&self, server: usize) -> Target {
        self.servers[server].target.clone()
    }

    /// Where a server may be reached over QUIC.
    pub fn quic_addresses_of(&self, server: usize) -> Vec<Multiaddr> {
        self.servers[server].target.addresses.iter().filter(|addr| is_quic(addr)).cloned().collect()
    }

    /// The room's names for which there is a link to this server.
    pub fn namespaces(&self, server: usize) -> Vec<String> {
        let of_server = self.links.iter().filter(|link| link.server == server);
        of_server.map(|link| link.namespace.clone()).collect()
    }

    /// Opens streams to servers.
    pub fn opener(&self) -> Opener {
        self.opener.clone()
    }

    /// Whether this peer is one of the servers.
    pub fn is_server(&self, peer: &PeerId) -> bool {
        self.servers.iter().any(|server| server.peer.as_ref() == Some(peer))
    }

    /// The server answered.
    pub fn reached(&mut self, server: usize, peer: PeerId, addr: Multiaddr) {
        self.servers[server].peer = Some(peer);
        self.servers[server].lost_since = None;
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
        let server = &mut self.servers[server];
        server.lost_since.get_or_insert_with(Instant::now);
        std::mem::replace(&mut server.state, State::Lost) != State::Lost
    }

    /// Says goodbye to all of them.
    pub async fn leave(&mut self) {
        let leaving = self.links.drain(..).map(|link| link.client.leave());
        futures::future::join_all(leaving).await;
    }
}

impl Server {
    /// What every member calls this server, whatever else it knows of it.
    fn key(&self) -> String {
        match super::peer_of(&self.addr) {
            Some(peer) => peer.to_string(),
            None => self.addr.to_string(),
        }
    }
}

/// How much a room likes a server (rendezvous hashing): the same for every member that names it.
fn weight(server: &str, namespace: &str) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"hallway home of a room v1");
    context.update(&(server.len() as u64).to_be_bytes());
    context.update(server.as_bytes());
    context.update(namespace.as_bytes());
    let mut weight = [0; 32];
    weight.copy_from_slice(context.finish().as_ref());
    weight
}

/// One entry for each server: addresses that end in one PeerId are one server's. Where the person names no TCP address,
/// the one with the number of the UDP port is tried too, for networks that drop UDP.
fn grouped(addrs: &[Multiaddr], path: PathChoice) -> Vec<Server> {
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
                lost_since: None,
            }),
        }
    }
    for server in &mut servers {
        let addresses = &mut server.target.addresses;
        if addresses.iter().all(is_quic) {
            let guessed: Vec<Multiaddr> = addresses.iter().filter_map(over_tcp).collect();
            addresses.extend(guessed);
        }
        if path == PathChoice::Tcp {
            addresses.retain(|addr| !is_quic(addr));
        }
    }
    servers
}

/// The TCP address with the same host and port number.
fn over_tcp(addr: &Multiaddr) -> Option<Multiaddr> {
    let mut parts = addr.iter();
    let host = parts.next()?;
    let Protocol::Udp(port) = parts.next()? else { return None };
    Some(Multiaddr::empty().with(host).with(Protocol::Tcp(port)))
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
        let mut links = ServerLinks::new(
            &servers,
            Keypair::generate_ed25519(),
            secrets,
            opener,
            announced,
            PathChoice::Auto,
        );
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
    fn a_room_lives_on_two_servers_that_all_members_agree_on_and_moves_on_when_one_is_lost() {
        let names: Vec<String> = (1..=5).map(|i| format!("/ip4/8.8.8.{i}/udp/1/quic-v1")).collect();
        let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut ours = links(&all, false);
        all.reverse();
        let theirs = links(&all, false);
        let named = |links: &ServerLinks, room: &str| -> Vec<String> {
            links.homes(room).iter().map(|server| links.address(*server).to_string()).collect()
        };
        let mut seen = std::collections::HashSet::new();
        for room in 0..64 {
            let homes = named(&ours, &room.to_string());
            assert_eq!((homes.len(), &homes), (ROOM_SERVERS, &named(&theirs, &room.to_string())));
            seen.extend(homes);
        }
        assert_eq!(seen.len(), 5, "rooms spread over all of them");
        let first = ours.homes("kitchen")[0];
        let long_ago = Instant::now().checked_sub(REPLACED_AFTER).unwrap();
        ours.servers[first].lost_since = Some(long_ago);
        assert_eq!(ours.homes("kitchen").len(), ROOM_SERVERS + 1);
        assert_eq!(ours.homes("kitchen")[0], first, "which is still called");
    }

    #[test]
    fn addresses_of_one_server_are_one_server_and_tcp_is_tried_beside_udp() {
        let id = PeerId::random();
        let quic = format!("/ip4/8.8.8.8/udp/4001/quic-v1/p2p/{id}");
        let ws = format!("/ip4/8.8.8.8/tcp/443/p2p/{id}");
        let texts = |links: &ServerLinks| -> Vec<String> {
            links.target(0).addresses.iter().map(Multiaddr::to_string).collect()
        };
        let alone = links(&[&quic], false);
        assert_eq!(texts(&alone), ["/ip4/8.8.8.8/udp/4001/quic-v1", "/ip4/8.8.8.8/tcp/4001"]);
        assert_eq!(alone.target(0).peer, Some(id));
        let both = links(&[&quic, &ws], false);
        assert_eq!(both.servers.len(), 1);
        assert_eq!(texts(&both), ["/ip4/8.8.8.8/udp/4001/quic-v1", "/ip4/8.8.8.8/tcp/443"]);
        assert_eq!(both.quic_addresses_of(0).len(), 1);
        let given: Vec<Multiaddr> =
            [quic.as_str(), "/dns4/x/udp/9/quic-v1"].map(|a| a.parse().unwrap()).into();
        let none = links(&["/ip4/8.8.8.8/udp/4001/quic-v1", "/ip4/8.8.8.8/tcp/443"], false).without_tcp();
        assert!(none.servers.iter().all(|server| server.target.addresses.iter().all(is_quic)));
        let tcp_only = grouped(&given, PathChoice::Tcp);
        assert!(
            tcp_only.len() == 2 && tcp_only.iter().all(|server| !server.target.addresses.iter().any(is_quic))
        );
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
