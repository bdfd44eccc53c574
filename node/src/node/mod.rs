//! A node in a room: one loop that hears from the network, the sound, the clock and the person, and does what follows.
//!
//! Nothing in it decides about media (the media thread does), keys (the room machine does) or bytes (the session
//! does). It carries what each of them wants to whom it concerns. In the order of the file:
//!
//! 1. [`Node::run`] waits for the next thing to happen.
//! 2. `handle_*` takes it in.
//! 3. `pump` lets sessions and room speak until nothing is left to say.

mod allowance;
mod command;
mod config;
mod elsewhere;
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
/// Longest wait for the first address of each listener.
const LISTENERS_PATIENCE: Duration = Duration::from_millis(250);
/// Those who wait to be dialled are dialled at once at most this often.
const AT_ONCE_EVERY: Duration = Duration::from_secs(1);
/// How long goodbyes may take.
const FAREWELL: Duration = Duration::from_millis(400);

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
            silent_listeners.insert(id);
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

    // --- what follows -------------------------------------------------------------------------------------------

    /// Lets sessions and room speak until nothing is left to say.
    fn pump(&mut self) {
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.drain_session(id, None);
        }
    }

    /// `from` is the path on which something has just come, and when.
    fn drain_session(&mut self, id: PeerId, from: Option<(usize, Micros)>) {
        loop {
            let now = Instant::now();
            let Some(peer) = self.peers.get_mut(&id) else { return };
            peer.transmit(now);
            match peer.session.poll_event() {
                Some(event) => self.handle_session(id, event, from),
                None => break,
            }
        }
        self.drain_room();
    }

    fn drain_room(&mut self) {
        while let Some(output) = self.room.poll_output(Instant::now()) {
            self.handle_output(output);
        }
    }

    fn handle_session(&mut self, id: PeerId, event: session::Event, from: Option<(usize, Micros)>) {
        let now = Instant::now();
        let (via, arrived) = from.unwrap_or_else(|| (usize::MAX, clock::now()));
        let Some(peer) = self.peers.get_mut(&id) else { return };
        match event {
            session::Event::Established { .. } => {
                peer.wanted = true;
                (peer.lost_since, peer.dismissed) = (None, None);
                let (route, inbox) = (peer.paths.route(), peer.inbox.clone());
                peer.paths.handle_arrival(now, via);
                peer.prove_used();
                let addresses = peer.addresses.clone();
                let proofs = peer.session.proofs().cloned().map(Box::new);
                if let Some(proofs) = proofs
                    && self.room.handle_established(now, id, addresses)
                {
                    self.elsewhere.remove(&id);
                    self.command_media(MediaCommand::Voice { peer: id, route, inbox, proofs });
                    let hearing = self.config.volumes.of(&id);
                    self.command_media(MediaCommand::Hearing { peer: id, hearing });
                    // One who called us before anybody told us of it is discovered by its call.
                    if self.peers.get(&id).is_some_and(|peer| peer.told.is_none()) {
                        self.tell_peer(id, PeerState::Discovered, None);
                    }
                } else {
                    // Told so by the room. Not called again for a while, and its connection ends with a stranger's.
                    (peer.wanted, peer.since) = (false, now);
                    self.elsewhere.insert(now, id);
                }
            }
            session::Event::Message(message) => self.room.handle_message(now, id, &message),
            session::Event::Unreliable(message) => match Telemetry::decode(&message) {
                Some(Telemetry::Ping { sent_us }) => {
                    let (arrived_us, answered_us) = (arrived.0, clock::now().0);
                    let pong = Telemetry::Pong { sent_us, arrived_us, answered_us };
                    peer.answer(now, via, &pong);
                }
                Some(Telemetry::PathPing(question)) => {
                    peer.answer(now, via, &Telemetry::PathPong(question));
                }
                Some(Telemetry::PathPong(question)) => {
                    peer.paths.handle_answer(now, via, question);
                    self.choose_path(id);
                }
                Some(Telemetry::Pong { sent_us, arrived_us, answered_us }) => {
                    let exchange = Exchange {
                        sent: sent_us,
                        arrived: arrived_us,
                        answered: answered_us,
                        heard: arrived.0,
                    };
                    peer.clock.handle_exchange(exchange);
                    let offset = peer.clock.offset(arrived);
                    self.command_media(MediaCommand::Clock { peer: id, offset });
                }
                Some(Telemetry::SendDelay(us)) => {
                    let us = us.min(MAX_SEND_DELAY_US);
                    self.command_media(MediaCommand::SendDelay { peer: id, us });
                }
                Some(Telemetry::Report(mut report)) => {
                    // What we held back ourselves no path has lost.
                    let own = self.allowance.holds_back();
                    peer.paths.handle_heard(now, report.received, if own { 0 } else { report.lost });
                    if own || peer.uses_tcp() {
                        lossless(&mut report);
                    }
                    self.command_media(MediaCommand::Report { peer: id, report });
                }
                Some(Telemetry::Missed(packets)) if !self.allowance.holds_back() => {
                    peer.paths.handle_missed(now, packets);
                }
                Some(Telemetry::Missed(_)) | None => {}
            },
            session::Event::Refused { reason, .. } => self.handle_refusal(id, reason),
            session::Event::NotThisRoom => {
                tracing::debug!(peer = %id, "in another room");
                self.leave_alone(id);
            }
            session::Event::TimedOut => {
                tracing::debug!(peer = %id, "no answer to the handshake");
                peer.paths.close_all(CloseReason::Stranger);
                peer.dial_failed(now);
            }
            session::Event::Lost => self.call_lost(id, now),
            session::Event::Closed => {
                // Its word may have been lost on a connection that was one too many: a host that lets us in greets first.
                let turned_away = self.config.invite.terms.host == Some(id) && peer.name.is_none();
                self.room.handle_left(now, id, Departure::Closed);
                self.drain_room();
                self.forget(id);
                if turned_away {
                    self.refused(INVITE_USED.0.to_owned(), INVITE_USED.1);
                }
            }
        }
    }

    fn handle_output(&mut self, output: Output) {
        let now = Instant::now();
        match output {
            Output::Send { to, message } => {
                if let Some(peer) = self.peers.get_mut(&to)
                    && let Err(error) = peer.session.send_message(now, message)
                {
                    tracing::warn!(peer = %to, %error, "message not sent");
                }
                if let Some(peer) = self.peers.get_mut(&to) {
                    peer.transmit(now);
                }
            }
            Output::Seal(key) => self.command_media(MediaCommand::Seal(key)),
            Output::Open { peer, key } => self.command_media(MediaCommand::Open { peer, key }),
            Output::Forget { peer } => self.command_media(MediaCommand::Forget(peer)),
            Output::Joined { peer, name } | Output::Renamed { peer, name } => {
                self.met_somebody = true;
                if let Some(known) = self.peers.get_mut(&peer)
                    && known.name.replace(name).is_none()
                {
                    known.paths.expect_to_be_heard(now);
                }
                self.mark_punched(peer);
                self.tell_peer(peer, PeerState::Connected, None);
                self.meet(peer);
            }
            Output::Left { peer, departure } => {
                let reason = match departure {
                    Departure::Lost => "connection lost",
                    Departure::Left | Departure::Closed => "said goodbye",
                };
                self.remember(peer);
                self.tell_peer(peer, PeerState::Left, Some(reason));
                if departure != Departure::Lost {
                    self.forget(peer);
                }
            }
            Output::Dial { peer, addresses, by } => self.discovered_by_member(by, peer, &addresses),
            Output::Chat { peer, id, text } => {
                let name = self.peers.get(&peer).and_then(|p| p.name.clone()).unwrap_or_default();
                self.emit(Event::Chat { peer_id: peer, name, text, id });
            }
            Output::GivenUp { peer, lines } => self.warn(
                "chat",
                format!("{} is away and will not get the last {lines} lines.", events::short(&peer)),
                "Say again what matters when it is back.",
            ),
            Output::Words { peer, words } => {
                self.emit(Event::Compare { peer_id: peer, words: words.join(" ") });
            }
            Output::Refused { peer, reason } => {
                let (reason, hint) = match reason {
                    RoomRefusal::Full => (
                        format!("the room is full: {} says that nobody else fits in", events::short(&peer)),
                        "Wait until somebody leaves, or open another room.",
                    ),
                    RoomRefusal::Closed => (
                        "the invite's time is over: nobody new is let in".to_owned(),
                        "Ask for another invite.",
                    ),
                    RoomRefusal::Used => (INVITE_USED.0.to_owned(), INVITE_USED.1),
                    RoomRefusal::Other(code) => (
                        format!("{} does not let this node in (reason {code})", events::short(&peer)),
                        "A newer version of hallway may say more.",
                    ),
                };
                self.forget(peer);
                self.elsewhere.insert(now, peer);
                self.refused(reason, hint);
            }
            // What it was told last must arrive: it leaves by itself when it has heard it.
            Output::Close { peer } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.dismissed = Some(now + DISMISSED_FOR);
                }
            }
        }
    }

    async fn say_goodbye(mut self) {
        let now = Instant::now();
        self.room.leave();
        while let Some(output) = self.room.poll_output(now) {
            if let Output::Send { .. } = output {
                self.handle_output(output);
            }
        }
        for peer in self.peers.values_mut() {
            peer.session.close(now);
            peer.transmit(now);
        }
        self.relays.leave();
        let media_done = async {
            self.media.command(MediaCommand::Stop);
            while let Some(event) = self.media_events.recv().await {
                match event {
                    MediaEvent::Stats(stats) => self.last_stats = Some(*stats),
                    // The thread itself goes on: it still has to send the goodbyes.
                    MediaEvent::Stopped(stats) => return self.last_stats = Some(*stats),
                    _ => {}
                }
            }
        };
        let farewell = async {
            let port = async {
                if let Some(map) = self.port_map.take() {
                    map.leave().await;
                }
            };
            let _ = tokio::time::timeout(FAREWELL, async { tokio::join!(self.links.leave(), port) }).await;
        };
        // The swarm carries the goodbye to the servers; it must be polled for that.
        let swarm = &mut self.swarm;
        let polling = async {
            loop {
                swarm.select_next_some().await;
            }
        };
        let both = async {
            tokio::join!(media_done, farewell);
        };
        tokio::select! {
            () = async { let _ = tokio::time::timeout(Duration::from_secs(1), both).await; } => {}
            () = polling => {}
        }
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.remember(id);
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.paths.close_all(CloseReason::Goodbye);
            }
        }
        self.emit_summary().await;
    }

    // --- figures ------------------------------------------------------------------------------------------------

    // --- small things -------------------------------------------------------------------------------------------

    /// Gives each listener a moment to tell its first address, so that `ready` can name one of each.
    async fn wait_for_listeners(&mut self) {
        let patience = tokio::time::sleep(LISTENERS_PATIENCE);
        tokio::pin!(patience);
        while !self.silent_listeners.is_empty() {
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle_swarm(event),
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
