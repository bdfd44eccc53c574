//! A node in a room: one loop that hears from the network, the sound, the clock and the person, and does what follows.
//!
//! Nothing in it decides about media (the media thread does), keys (the room machine does) or bytes (the session
//! does). It carries what each of them wants to whom it concerns. In the order of the file:
//!
//! 1. [`Node::run`] waits for the next thing to happen.
//! 2. `handle_*` takes it in.
//! 3. `pump` lets sessions and room speak until nothing is left to say (`speech`).

mod allowance;
mod command;
mod config;
mod elsewhere;
mod farewell;
mod figures;
mod meeting;
mod observe;
mod orders;
pub mod origins;
mod outlook;
mod peer;
pub mod portmap;
mod relays;
mod server_links;
mod snapshot;
mod speech;
pub mod swarm;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures::StreamExt;
use hallway_codec::Micros;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::ListenerId,
    identify, mdns,
    multiaddr::Protocol,
    swarm::{
        SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::mpsc;

use crate::{
    audio::{Audio, AudioEvent, End},
    clock::{self, Exchange},
    controls::Controls,
    events::{
        self, Card, Event, Notice, PeerState, PeerStats, PeerSummary, Percentiles, Processing,
        RendezvousState, Stamped, Summary, ms,
    },
    ladder::Why,
    media::{self, Command as MediaCommand, Datagram, Media, MediaEvent, MediaStats},
    meters::Meters,
    nat::Observations,
    path::{CloseReason, Path, QuicPath},
    rendezvous::{self, ClientEvent, DialBudget, Scope, policy, scope_of},
    room::{Departure, Output, Room, RoomRefusal},
    session::{self, Local, Refusal, Session},
    telemetry::Telemetry,
    transport::{self, Authenticated, Drive},
};
use allowance::{Allowance, lossless};
pub use command::{Answer, Command, MAX_WAITING_ORDERS, Order};
pub use config::{Config, Ended, Error, PathChoice};
use elsewhere::Elsewhere;
use peer::{MAX_LOST, Peer, dials_first};
use portmap::PortMap;
use relays::{Doorman, Relays};
use server_links::ServerLinks;
pub use snapshot::{Person, Server, Snapshot};
use swarm::{Behaviour, BehaviourEvent};

/// Peers known at a time, members and strangers together. Further strangers are turned away.
pub const MAX_PEERS: usize = 128;
/// Connections at a time, those to servers included.
pub const MAX_CONNECTIONS: u32 = 512;
/// A connection that shows no session of our room is closed after this time.
pub const STRANGER_TIMEOUT: Duration = Duration::from_secs(15);
/// Control datagrams that may wait for the node loop.
pub const MAX_WAITING_CONTROL: usize = 1024;
/// Control datagrams taken from one connection in one second; the rest is dropped unread.
pub const MAX_CONTROL_PER_SECOND: u32 = 400;
/// How long after launch a refusal ends the program. Later it is news about somebody else: a stranger with the wrong
/// secret must not be able to end the wait of one who was here first.
pub const ARRIVING: Duration = Duration::from_secs(10);
/// How long a second connection to the same peer is kept beside the one in use.
const SPARE_PATH_TIME: Duration = Duration::from_secs(5);
/// How long somebody whom the room does not take in may take to hear why: told again until it is acknowledged.
const DISMISSED_FOR: Duration = Duration::from_secs(3);
/// The other side dials first; where it does not, we do after this time.
const DIAL_SECOND: Duration = Duration::from_millis(300);
/// Most that a peer's word for its own sending time moves from `network` to `send`, µs.
const MAX_SEND_DELAY_US: u32 = 20_000;
/// Longest time between two looks at everything.
const TICK: Duration = Duration::from_secs(1);
/// Longest wait for the first address of all listeners, and from then on for one of each: a machine may have none of a family.
const LISTENERS_PATIENCE: Duration = Duration::from_millis(250);
const OTHER_LISTENERS_PATIENCE: Duration = Duration::from_millis(15);
/// Those who wait to be dialled are dialled at once at most this often.
const AT_ONCE_EVERY: Duration = Duration::from_secs(1);

/// What whoever comes second with an invite for one guest is told, and what to do.
const INVITE_USED: (&str, &str) = (
    "the invite was for one guest, and somebody has used it",
    "Ask for another invite; if nobody of yours used it, tell the one who gave it to you.",
);

/// A datagram for the node loop, or the end of a connection.
enum FromPath {
    /// `via` is the path that it came on.
    Control {
        peer: PeerId,
        via: usize,
        arrived: Micros,
        bytes: Bytes,
    },
    Closed {
        peer: PeerId,
    },
}

/// A node in a room.
pub struct Node {
    config: Config,
    me: PeerId,
    local: Local,
    swarm: Swarm<Behaviour>,
    authenticated: mpsc::Receiver<Authenticated>,
    links: ServerLinks,
    relays: Relays,
    allowance: Allowance,
    room: Room,
    peers: HashMap<PeerId, Peer>,
    /// Peers that proved to be in another room, or were not taken into ours: left alone for a moment.
    elsewhere: Elsewhere,
    budget: DialBudget,
    media: Media,
    drive: Drive,
    media_events: mpsc::Receiver<MediaEvent>,
    control: mpsc::Receiver<FromPath>,
    control_sender: mpsc::Sender<FromPath>,
    events: mpsc::Sender<Stamped>,
    listening: Vec<Multiaddr>,
    /// Listeners that have not told an address yet.
    silent_listeners: HashSet<ListenerId>,
    /// When everybody was last dialled at once.
    network_back: Option<Instant>,
    observations: Observations,
    observers: observe::Observers,
    port_map: Option<PortMap>,
    summaries: Vec<PeerSummary>,
    last_stats: Option<MediaStats>,
    /// What was told last of what is done to our voice.
    processing: Processing,
    other_keys_told: bool,
    met_somebody: bool,
    controls: Controls,
    devices: orders::Devices,
    servers: Vec<Server>,
    ended: Option<Ended>,
}

impl Node {
    /// Sets everything up and begins to listen. `events` takes what happens; a reader that is too slow loses figures.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(config: Config, audio: Audio, events: mpsc::Sender<Stamped>) -> Result<Self, Error> {
        let me = config.keypair.public().to_peer_id();
        let secrets = config.invite.secrets();
        let local = Local::new(&config.keypair, &secrets)?;
        let (behaviour, opener) = rendezvous::Behaviour::client();
        let (driver, drive) = transport::drive()?;
        let ceiling = Arc::new(transport::Ceiling::new(config.max_kbps));
        let setup = swarm::Setup {
            drive: Some(drive.clone()),
            ceiling: Some(ceiling.clone()),
            lan: config.lan,
            // Media is invisible to libp2p; this node decides itself which connections are of use.
            idle_timeout: Duration::from_secs(365 * 24 * 3600),
            max_connections: MAX_CONNECTIONS,
            ..swarm::Setup::plain(behaviour)
        };
        let (mut swarm, authenticated) = swarm::build(&config.keypair, setup)?;
        let mut silent_listeners = HashSet::new();
        for addr in &config.listen {
            let listening = swarm.listen_on(addr.clone());
            let id = listening.map_err(|e| Error::Listen { addr: addr.clone(), reason: root_cause(&e) })?;
            if transport::may_have_address(addr) {
                silent_listeners.insert(id);
            }
        }
        let (media, media_events) = Media::start(driver, audio, config.voice())?;
        let links = ServerLinks::new(
            &config.rendezvous,
            config.keypair.clone(),
            secrets,
            opener,
            !config.announce.is_empty(),
            config.path,
        );
        let links = if config.tcp { links } else { links.without_tcp() };
        let (control_sender, control) = mpsc::channel(MAX_WAITING_CONTROL);
        let terms = config.invite.terms.at(Instant::now(), SystemTime::now());
        let room = Room::new(me, &config.name, config.announce.clone()).with_terms(terms);
        Ok(Self {
            me,
            local,
            swarm,
            authenticated,
            links,
            relays: Relays::new(),
            allowance: Allowance::new(ceiling),
            room,
            peers: HashMap::new(),
            elsewhere: Elsewhere::default(),
            silent_listeners,
            network_back: None,
            budget: DialBudget::new(),
            media,
            drive,
            media_events,
            control,
            control_sender,
            events,
            listening: Vec::new(),
            observations: Observations::default(),
            observers: observe::Observers::default(),
            port_map: None,
            summaries: Vec::new(),
            last_stats: None,
            processing: Processing::default(),
            other_keys_told: false,
            met_somebody: false,
            controls: config.controls,
            devices: orders::Devices::new(&config.input, &config.output),
            servers: Vec::new(),
            ended: None,
            config,
        })
    }

    /// How loud everybody is, now and from now on.
    pub fn meters(&self) -> Meters {
        self.media.meters()
    }

    /// Runs until the person leaves, the time is up, or others refuse us.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>) -> Result<Ended, Error> {
        self.command_media(MediaCommand::Controls(self.controls));
        self.wait_for_listeners().await;
        let listen = self.listening.clone();
        self.emit(Event::Ready { peer_id: self.me, listen, version: env!("CARGO_PKG_VERSION") });
        self.emit(Event::Joined {
            room: self.config.invite.room.to_string(),
            open: self.config.invite.is_open(),
            closes_in_s: self.closes_in_s(),
            single_use: self.config.invite.terms.host.is_some(),
            history: self.history(),
            since_start_ms: self.since_start(),
        });
        if self.controls != Controls::default() {
            self.emit(Event::Controls(self.controls));
        }
        if let Some(trouble) = self.config.trust.trouble() {
            self.warn("people", format!("{trouble}."), "Until then everybody is new in every call.");
        }
        let addresses = self.own_addresses();
        self.room.set_addresses(addresses.clone());
        self.links.start(&addresses)?;
        for (peer, addresses) in std::mem::take(&mut self.config.peers) {
            self.discovered(peer, addresses, Duration::ZERO);
        }
        loop {
            self.pump();
            if let Some(ended) = self.ended.take() {
                if let Some(notice) = ended.notice() {
                    self.emit(Event::Error(notice));
                }
                self.say_goodbye().await;
                return Ok(ended);
            }
            let deadline = self.next_deadline();
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle_swarm(event),
                Some(authenticated) = self.authenticated.recv() => self.handle_connection(authenticated),
                Some(from_path) = self.control.recv() => self.handle_from_path(from_path),
                Some((server, event)) = self.links.next() => self.handle_rendezvous(server, event),
                Some((link, event)) = self.relays.next() => self.handle_relay(link, event),
                () = PortMap::changed(&mut self.port_map) => self.handle_port_map(),
                event = self.media_events.recv() => match event {
                    Some(event) => self.handle_media(event),
                    None => return Err(Error::MediaEnded),
                },
                order = orders.recv() => self.handle_order(order.unwrap_or(Command::Leave.into())),
                Some(opened) = self.devices.opened() => self.handle_opened(opened),
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
            self.handle_timers(Instant::now());
        }
    }

    // --- what happened ------------------------------------------------------------------------------------------

    fn handle_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = Instant::now();
        match event {
            SwarmEvent::NewListenAddr { listener_id, address } => {
                self.silent_listeners.remove(&listener_id);
                self.listening.push(address);
                self.ask_observers_again();
                self.addresses_changed();
                self.network_is_back();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.listening.retain(|known| *known != address);
                // Whoever saw us at it sees us no longer.
                self.ask_observers_anew();
                self.addresses_changed();
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => self.observer_failed(connection_id),
            SwarmEvent::ListenerError { error, .. } => self.warn(
                "listener",
                format!("a listening socket has trouble: {error}."),
                "The call goes on; others may not be able to reach this node.",
            ),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(mdns::Event::Discovered(found))) => {
                for (peer, address) in found {
                    self.discovered_nearby(peer, &address);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                connection_id,
                info,
                ..
            })) => self.handle_identified(connection_id, &info),
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error, .. } => {
                tracing::debug!(?peer_id, %error, "dial failed");
                self.observer_failed(connection_id);
                let Some(peer) = peer_id else { return };
                if let Some(known) = self.peers.get_mut(&peer)
                    && known.paths.direct() == 0
                {
                    known.dial_failed(now);
                }
            }
            _ => {}
        }
    }

    fn handle_from_path(&mut self, from_path: FromPath) {
        let now = Instant::now();
        match from_path {
            FromPath::Control { peer, via, arrived, bytes } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.session.handle_datagram(now, &bytes);
                    self.drain_session(peer, Some((via, arrived)));
                }
            }
            FromPath::Closed { peer } => self.choose_path(peer),
        }
    }

    fn handle_timers(&mut self, now: Instant) {
        if self.config.leave_after.is_some_and(|after| self.config.started.elapsed() >= after) {
            self.ended = Some(Ended::Left);
        }
        if let Some(patience) = self.config.require_peer
            && !self.met_somebody
            && self.config.started.elapsed() >= patience
        {
            self.ended.get_or_insert(Ended::NoPeer { waited: patience });
        }
        let (mut dial, mut fresh, mut looked) = (Vec::new(), Vec::new(), Vec::new());
        for (id, peer) in &mut self.peers {
            if peer.next_dial.is_some_and(|at| at <= now) {
                peer.next_dial = None;
                if peer.paths.direct() == 0 {
                    dial.push(*id);
                }
            }
            peer.call_due(now);
            if peer.session.is_established() && peer.paths.look(now) {
                looked.push(*id);
                peer.ask_paths(now);
            }
            if peer.dismissed.is_some_and(|at| at <= now) {
                peer.dismissed = None;
                peer.session.close(now);
                peer.transmit(now);
            }
            if peer.ping_due(now) {
                let ping = Telemetry::Ping { sent_us: clock::now().0 };
                let _ = peer.session.send_unreliable(now, &ping.encode());
                if peer.fresh_due(now) {
                    fresh.push(*id);
                }
            }
        }
        for peer in dial {
            self.dial(peer, now);
        }
        for peer in fresh {
            self.dial_fresh(peer, now);
        }
        for peer in looked {
            self.choose_path(peer);
        }
        self.look_after_relays(now);
        self.config.volumes.save_soon(now);
        if let Err(error) = self.links.rotate() {
            tracing::error!(%error, "the room's name of tomorrow could not be registered");
        }
    }

    // --- small things -------------------------------------------------------------------------------------------

    /// Gives each listener a moment to tell its first address, so that `ready` can name one of each.
    async fn wait_for_listeners(&mut self) {
        let patience = tokio::time::sleep(LISTENERS_PATIENCE);
        tokio::pin!(patience);
        while !self.silent_listeners.is_empty() {
            tokio::select! {
                event = self.swarm.select_next_some() => {
                    let none = self.listening.is_empty();
                    self.handle_swarm(event);
                    if none && !self.listening.is_empty() {
                        patience.as_mut().reset(tokio::time::Instant::now() + OTHER_LISTENERS_PATIENCE);
                    }
                }
                () = &mut patience => {
                    tracing::debug!(silent = self.silent_listeners.len(), "not every listener has an address yet");
                    return;
                }
            }
        }
    }

    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        let started = self.config.started;
        let sessions = self.peers.values().filter_map(Peer::next_timeout);
        let ends = [self.config.leave_after, self.config.require_peer.filter(|_| !self.met_somebody)];
        sessions
            .chain(self.room.poll_timeout())
            .chain(self.relays.next_timeout())
            .chain(ends.into_iter().flatten().map(|after| started + after))
            .min()
            .unwrap_or(now + TICK)
            .clamp(now, now + TICK)
    }

    fn command_media(&mut self, command: MediaCommand) {
        if !self.media.command(command) && !self.media.is_running() {
            tracing::error!("the media thread is gone");
        }
    }
}

/// Whether an address ends in a PeerId, and which.
pub fn peer_of(addr: &Multiaddr) -> Option<PeerId> {
    match addr.iter().last()? {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    }
}

/// The innermost reason of an error: libp2p wraps "address already in use" four times.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
