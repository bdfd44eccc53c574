//! The rendezvous servers of a node: one client for each server and each name that the room bears today.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt, stream::BoxStream, stream::SelectAll};
use libp2p::{Multiaddr, PeerId, identity::Keypair};
use tokio::sync::oneshot;

use crate::{
    invite::RoomSecrets,
    rendezvous::{Client, ClientConfig, ClientError, ClientEvent, Opener, Scope, Target, scope_of, wire::DOOR_LEN},
};

/// How long a registration holds without being renewed. Short: a crashed node should not stay listed.
pub const REGISTRATION_TTL: Duration = Duration::from_secs(120);
/// Clocks of two members may be apart by this much around midnight, when the room's name changes.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(600);
/// How often the day is looked up.
const ROTATION_CHECK: Duration = Duration::from_secs(60);

struct Server {
    addr: Multiaddr,
    /// The address that answered; shows how far away it is where `addr` is a name.
    reached: Option<Multiaddr>,
    peer: Option<PeerId>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
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
    next_check: std::time::Instant,
    door: Option<oneshot::Receiver<[u8; DOOR_LEN]>>,
}

impl ServerLinks {
    /// Nothing is dialled before [`ServerLinks::start`].
    pub fn new(servers: &[Multiaddr], keypair: Keypair, secrets: RoomSecrets, opener: Opener) -> Self {
        let servers = servers
            .iter()
            .map(|addr| Server { addr: addr.clone(), reached: None, peer: super::peer_of(addr), state: State::New })
            .collect();
        Self {
            servers,
            links: Vec::new(),
            events: SelectAll::new(),
            keypair,
            secrets,
            opener,
            addresses: Vec::new(),
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
        let names: HashSet<String> = [now.saturating_sub(CLOCK_TOLERANCE), now, now + CLOCK_TOLERANCE]
            .into_iter()
            .map(|time| self.secrets.namespace(time.as_secs()))
            .collect();
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
        let addr = &self.servers[server].addr;
        let target = Target::from_multiaddr(addr);
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

    /// A server on the internet has no use for the addresses of this machine's own loopback or network.
    fn addresses_for(&self, server: usize) -> Vec<Multiaddr> {
        let server = &self.servers[server];
        let scope = server.reached.as_ref().and_then(scope_of).or_else(|| scope_of(&server.addr));
        let useful = |addr: &&Multiaddr| match scope {
            Some(Scope::Loopback) => true,
            _ => scope_of(addr) != Some(Scope::Loopback),
        };
        self.addresses.iter().filter(useful).cloned().collect()
    }

    /// The server's address as the person gave it.
    pub fn address(&self, server: usize) -> Multiaddr {
        self.servers[server].addr.clone()
    }

    /// Who the server proved to be, or should be.
    pub fn peer(&self, server: usize) -> Option<PeerId> {
        self.servers[server].peer
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
