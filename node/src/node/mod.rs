//! A node in a room: one loop that hears from the network, the sound, the clock and the person, and does what follows.
//!
//! Nothing in it decides about media (the media thread does), keys (the room machine does) or bytes (the session
//! does). It carries what each of them wants to whom it concerns. In the order of the file:
//!
//! 1. [`Node::run`] waits for the next thing to happen.
//! 2. `handle_*` takes it in.
//! 3. `pump` lets sessions and room speak until nothing is left to say.

mod peer;
mod server_links;
pub mod swarm;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt;
use hallway_codec::{Micros, Profile};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    identity::Keypair,
    mdns,
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
    events::{
        self, Card, Event, Notice, PeerState, PeerStats, PeerSummary, Percentiles, RendezvousState, Stamped, Summary, ms,
    },
    invite::Invite,
    media::{self, Command as MediaCommand, Datagram, Media, MediaEvent, MediaStats},
    path::{Path, QuicPath},
    rendezvous::{self, ClientEvent, DialBudget},
    room::{Departure, Output, Room, RoomRefusal},
    session::{self, Local, Refusal, Session},
    telemetry::Telemetry,
    transport::{self, Authenticated},
};
use peer::{Peer, dials_first};
use server_links::ServerLinks;
use swarm::{Behaviour, BehaviourEvent};

/// Peers known at a time, members and strangers together. Further strangers are turned away.
pub const MAX_PEERS: usize = 128;
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
/// The other side dials first; where it does not, we do after this time.
const DIAL_SECOND: Duration = Duration::from_millis(300);
/// Longest time between two looks at everything.
const TICK: Duration = Duration::from_secs(1);
/// How long goodbyes may take.
const FAREWELL: Duration = Duration::from_millis(400);

/// What a node is to do.
pub struct Config {
    /// Who we are.
    pub keypair: Keypair,
    /// How we are called.
    pub name: String,
    /// The room, its secret, the servers named in the invite.
    pub invite: Invite,
    /// Rendezvous servers to use.
    pub rendezvous: Vec<Multiaddr>,
    /// Where to listen.
    pub listen: Vec<Multiaddr>,
    /// What to tell others instead of where we listen. Empty: where we listen, and what servers saw.
    pub announce: Vec<Multiaddr>,
    /// Whether to look on the local network too.
    pub lan: bool,
    /// Voice or music.
    pub profile: Profile,
    /// 1, or 2.
    pub channels: u8,
    /// Most that one peer is sent, kb/s on the wire.
    pub max_kbps: Option<u32>,
    /// When the program began: `since_start_ms` counts from here.
    pub started: Instant,
    /// Leave by ourselves after this time.
    pub leave_after: Option<Duration>,
    /// End with [`Ended::NoPeer`] where nobody came in this time.
    pub require_peer: Option<Duration>,
    /// Wait on although others in a room of this name hold another secret.
    pub wait_anyway: bool,
}

/// What a person asks of a running node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Leave the room.
    Leave,
    /// Be silent, or not.
    Mute(bool),
    /// Say this in writing.
    Chat(String),
}

/// Why a node ended, where nothing failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Left in order.
    Left,
    /// Nobody came in time.
    NoPeer {
        /// How long we waited.
        waited: Duration,
    },
    /// Others do not let us in.
    Refused {
        /// Why.
        reason: String,
        /// What to do.
        hint: String,
    },
}

impl Ended {
    /// What a script should know, where this is no ordinary end.
    pub fn notice(&self) -> Option<Notice> {
        let (code, message, hint) = match self {
            Self::Left => return None,
            Self::NoPeer { waited } => (
                "no_peer",
                format!("nobody came within {}", humantime::format_duration(*waited)),
                "Check that the others use the same room, secret and rendezvous server (--at), or wait longer \
                 with --timeout."
                    .to_owned(),
            ),
            Self::Refused { reason, hint } => ("refused", format!("refused: {reason}"), hint.clone()),
        };
        Some(Notice { code, message, hint })
    }
}

/// Why a node could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network could not be set up.
    #[error(transparent)]
    Network(#[from] swarm::Error),
    /// A `--listen` address does not work.
    #[error("cannot listen on {addr}: {reason}")]
    Listen {
        /// Where.
        addr: Multiaddr,
        /// Why not.
        reason: String,
    },
    /// The handshake could not be prepared.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The media thread could not be started.
    #[error(transparent)]
    Media(#[from] media::Error),
    /// A rendezvous address is of no use.
    #[error(transparent)]
    Rendezvous(#[from] rendezvous::ClientError),
    /// The media thread died.
    #[error("the media thread ended by itself; this is a bug in hallway, please report the log")]
    MediaEnded,
}

/// A datagram for the node loop, or the end of a connection.
enum FromPath {
    Control { peer: PeerId, arrived: Micros, bytes: Bytes },
    Closed { peer: PeerId },
}

/// A node in a room.
pub struct Node {
    config: Config,
    me: PeerId,
    local: Local,
    swarm: Swarm<Behaviour>,
    authenticated: mpsc::Receiver<Authenticated>,
    links: ServerLinks,
    room: Room,
    peers: HashMap<PeerId, Peer>,
    /// Peers that proved to be in another room: not dialled again.
    elsewhere: HashSet<PeerId>,
    budget: DialBudget,
    media: Media,
    media_events: mpsc::Receiver<MediaEvent>,
    control: mpsc::Receiver<FromPath>,
    control_sender: mpsc::Sender<FromPath>,
    events: mpsc::Sender<Stamped>,
    listening: Vec<Multiaddr>,
    observed: Vec<Multiaddr>,
    summaries: Vec<PeerSummary>,
    last_stats: Option<MediaStats>,
    other_keys_told: bool,
    met_somebody: bool,
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
        let setup = swarm::Setup {
            rendezvous: behaviour,
            lan: config.lan,
            // Media is invisible to libp2p; this node decides itself which connections are of use.
            idle_timeout: Duration::from_secs(365 * 24 * 3600),
            max_connections: 512,
        };
        let (mut swarm, authenticated) = swarm::build(&config.keypair, setup)?;
        for addr in &config.listen {
            swarm
                .listen_on(addr.clone())
                .map_err(|e| Error::Listen { addr: addr.clone(), reason: root_cause(&e) })?;
        }
        let (media, media_events) = Media::start(audio, config.profile, config.channels, config.max_kbps)?;
        let links = ServerLinks::new(&config.rendezvous, config.keypair.clone(), secrets, opener);
        let (control_sender, control) = mpsc::channel(MAX_WAITING_CONTROL);
        let room = Room::new(me, &config.name, config.announce.clone());
        Ok(Self {
            me,
            local,
            swarm,
            authenticated,
            links,
            room,
            peers: HashMap::new(),
            elsewhere: HashSet::new(),
            budget: DialBudget::new(),
            media,
            media_events,
            control,
            control_sender,
            events,
            listening: Vec::new(),
            observed: Vec::new(),
            summaries: Vec::new(),
            last_stats: None,
            other_keys_told: false,
            met_somebody: false,
            ended: None,
            config,
        })
    }

    /// Runs until the person leaves, the time is up, or others refuse us.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<Ended, Error> {
        self.wait_for_listeners().await;
        let listen = self.listening.clone();
        self.emit(Event::Ready { peer_id: self.me, listen, version: env!("CARGO_PKG_VERSION") });
        self.emit(Event::Joined {
            room: self.config.invite.room.to_string(),
            open: self.config.invite.is_open(),
            since_start_ms: self.since_start(),
        });
        let addresses = self.own_addresses();
        self.room.set_addresses(addresses.clone());
        self.links.start(&addresses)?;
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
                event = self.media_events.recv() => match event {
                    Some(event) => self.handle_media(event),
                    None => return Err(Error::MediaEnded),
                },
                command = commands.recv() => self.handle_command(command.unwrap_or(Command::Leave)),
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
            self.handle_timers(Instant::now());
        }
    }

    // --- what happened ------------------------------------------------------------------------------------------

    fn handle_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = Instant::now();
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                self.listening.push(address);
                self.addresses_changed();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.listening.retain(|known| *known != address);
                self.addresses_changed();
            }
            SwarmEvent::ListenerError { error, .. } => self.warn(
                "listener",
                format!("a listening socket has trouble: {error}."),
                "The call goes on; others may not be able to reach this node.",
            ),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(mdns::Event::Discovered(found))) => {
                for (peer, address) in found {
                    self.discovered(peer, vec![address], DIAL_SECOND);
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                tracing::debug!(%peer, %error, "dial failed");
                if let Some(known) = self.peers.get_mut(&peer)
                    && known.paths.is_empty()
                {
                    known.dial_failed(now);
                }
            }
            _ => {}
        }
    }

    fn handle_connection(&mut self, authenticated: Authenticated) {
        let Authenticated { peer, connection, dialer } = authenticated;
        let now = Instant::now();
        if peer == self.me || self.elsewhere.contains(&peer) {
            connection.close(0u32.into(), b"not in this room");
            return;
        }
        let Some(known) = self.peer_entry(peer, now) else {
            connection.close(0u32.into(), b"too many peers");
            return;
        };
        let path: Arc<dyn Path> = Arc::new(QuicPath::new(connection.clone(), dialer));
        known.session.set_rtt_hint(path.rtt());
        if !known.paths.add(path.clone()) {
            connection.close(0u32.into(), b"too many connections");
            return;
        }
        known.connected();
        let inbox = known.inbox.clone();
        let start = dialer && known.wanted && !known.session.is_established();
        tokio::spawn(read(peer, connection, inbox, self.control_sender.clone()));
        self.budget.succeeded(&path.remote());
        self.choose_path(peer);
        if let Some(known) = self.peers.get_mut(&peer)
            && start
        {
            known.session.connect(now);
        }
    }

    fn handle_from_path(&mut self, from_path: FromPath) {
        let now = Instant::now();
        match from_path {
            FromPath::Control { peer, arrived, bytes } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.session.handle_datagram(now, &bytes);
                    self.drain_session(peer, arrived);
                }
            }
            FromPath::Closed { peer } => self.choose_path(peer),
        }
    }

    fn handle_rendezvous(&mut self, server: usize, event: ClientEvent) {
        let addr = self.links.address(server);
        match event {
            ClientEvent::Connected { server: peer_id, addr: reached, .. } => {
                self.links.reached(server, peer_id, reached);
                let addresses = self.own_addresses();
                self.links.set_addresses(&addresses);
                self.emit(Event::Rendezvous { state: RendezvousState::Connected, peer_id: Some(peer_id), addr });
            }
            ClientEvent::Registered { .. } => {
                let peer_id = self.links.peer(server);
                if self.links.newly_registered(server) {
                    self.emit(Event::Rendezvous { state: RendezvousState::Registered, peer_id, addr });
                }
            }
            ClientEvent::RegisterRefused { why } => self.warn(
                "registration_refused",
                format!("the rendezvous server at {addr} does not list this node: {}.", why.in_words()),
                "Others can still be found; try another server with --at.",
            ),
            ClientEvent::Peer { peer, addresses, via } => {
                let patience = if via == rendezvous::Via::Initial { Duration::ZERO } else { DIAL_SECOND };
                self.discovered(peer, addresses, patience);
            }
            ClientEvent::PeerGone { .. } => {}
            ClientEvent::OtherKeys { count } => self.handle_other_keys(count),
            ClientEvent::Observed { addr } => {
                if transport::to_socket_addr(&addr).is_some() && !self.observed.contains(&addr) {
                    self.observed.insert(0, addr);
                    self.observed.truncate(2);
                    self.addresses_changed();
                }
            }
            ClientEvent::Lost { why, retry_in } => {
                let peer_id = self.links.peer(server);
                if self.links.newly_lost(server) {
                    self.emit(Event::Rendezvous { state: RendezvousState::Lost, peer_id, addr: addr.clone() });
                    self.warn(
                        "rendezvous_lost",
                        format!("no rendezvous at {addr}: {why}."),
                        "This node tries again by itself; calls that stand go on. Check the address given with --at.",
                    );
                }
                tracing::info!(%addr, %why, ?retry_in, "rendezvous lost");
            }
        }
    }

    /// Others of the same room name hold another secret, or none.
    fn handle_other_keys(&mut self, count: u32) {
        if count == 0 || self.other_keys_told || self.room.members().next().is_some() {
            return;
        }
        self.other_keys_told = true;
        self.refused(
            format!("{count} other(s) are in a room named {} with another secret", self.config.invite.room),
            "Ask them for the invite they use (hallway invite), or choose another name. --wait waits here anyway.",
        );
    }

    fn handle_media(&mut self, event: MediaEvent) {
        match event {
            MediaEvent::Audio(event) => self.handle_audio(event),
            MediaEvent::FirstAudio { peer, at_ns } => {
                let late = Duration::from_nanos(clock::now_ns().abs_diff(at_ns));
                let since = if at_ns > clock::now_ns() {
                    self.config.started.elapsed() + late
                } else {
                    self.config.started.elapsed().saturating_sub(late)
                };
                let since_start_ms = ms(since);
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.first_audio_ms = Some(since_start_ms);
                }
                self.emit_at(at_ns, Event::FirstAudio { peer_id: peer, since_start_ms });
            }
            MediaEvent::Report { peer, report } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    let message = Telemetry::Report(report).encode();
                    let _ = known.session.send_unreliable(Instant::now(), &message);
                }
            }
            MediaEvent::Stats(stats) => self.handle_stats(*stats),
            MediaEvent::Stopped(_) => {}
        }
    }

    fn handle_audio(&mut self, event: AudioEvent) {
        let card = |rate_hz, channels, period_ms| Card { sample_rate_hz: rate_hz, channels, period_ms };
        match event {
            AudioEvent::InputStarted { at_ns, rate_hz, channels, period_ms } => {
                self.emit_at(at_ns, Event::InputStarted(card(rate_hz, channels, period_ms)));
            }
            AudioEvent::OutputStarted { at_ns, rate_hz, channels, period_ms } => {
                self.emit_at(at_ns, Event::OutputStarted(card(rate_hz, channels, period_ms)));
            }
            AudioEvent::InputFinished { at_ns } => self.emit_at(at_ns, Event::InputFinished),
            AudioEvent::Xrun { end, count, .. } => {
                let which = if end == End::Input { "microphone" } else { "loudspeaker" };
                tracing::info!(which, count, "xruns");
            }
            AudioEvent::DeviceLost { end, name, reason, .. } => {
                let which = if end == End::Input { "input" } else { "output" };
                self.warn(
                    "device_lost",
                    format!("the sound {which} {name} is gone ({reason})."),
                    "It is opened again as soon as it is back, or the default one in its place; the call goes on.",
                );
            }
            AudioEvent::DeviceReopened { name, .. } => {
                self.warn("device_reopened", format!("sound again through {name}."), "");
            }
            AudioEvent::WriteFailed { path, reason, .. } => self.warn(
                "recording_stopped",
                format!("the recording {} stopped: {reason}.", path.display()),
                "What was written is a valid file; the call goes on. Make room on the disk and join again to record.",
            ),
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Leave => self.ended = Some(Ended::Left),
            Command::Mute(muted) => self.command_media(MediaCommand::Mute(muted)),
            Command::Chat(text) => {
                if let Err(error) = self.room.say(&text) {
                    self.warn("chat", format!("not sent: {error}."), "");
                }
            }
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
        let mut dial = Vec::new();
        for (id, peer) in &mut self.peers {
            if peer.next_dial.is_some_and(|at| at <= now) {
                peer.next_dial = None;
                if peer.paths.is_empty() {
                    dial.push(*id);
                }
            }
            if peer.ping_due(now) {
                let ping = Telemetry::Ping { sent_us: clock::now().0 };
                let _ = peer.session.send_unreliable(now, &ping.encode());
            }
        }
        for peer in dial {
            self.dial(peer, now);
        }
        if let Err(error) = self.links.rotate() {
            tracing::error!(%error, "the room's name of tomorrow could not be registered");
        }
    }

    /// Once a second, with the figures: paths are compared, strangers turned out.
    fn look_after_paths(&mut self, now: Instant) {
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.choose_path(id);
            let decides = dials_first(&self.me, &id);
            let is_server = self.links.is_server(&id);
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            // Only one side closes, or each might close the path that the other kept.
            if peer.paths.len() > 1 && decides {
                let since = *peer.spare_since.get_or_insert(now);
                if now.duration_since(since) >= SPARE_PATH_TIME {
                    peer.paths.close_spare();
                    peer.spare_since = None;
                }
            } else {
                peer.spare_since = None;
            }
            let idle = !peer.session.is_established() && !peer.session.is_connecting();
            if idle && !is_server && now.duration_since(peer.since) >= STRANGER_TIMEOUT {
                peer.paths.close_all();
                if !peer.wanted {
                    self.peers.remove(&id);
                }
            }
        }
    }

    // --- what follows -------------------------------------------------------------------------------------------

    /// Lets sessions and room speak until nothing is left to say.
    fn pump(&mut self) {
        let arrived = clock::now();
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.drain_session(id, arrived);
        }
    }

    fn drain_session(&mut self, id: PeerId, arrived: Micros) {
        loop {
            let now = Instant::now();
            let Some(peer) = self.peers.get_mut(&id) else { return };
            let route = peer.paths.route();
            while let Some(datagram) = peer.session.poll_transmit(now) {
                if let Err(error) = route.send(datagram.into()) {
                    tracing::debug!(peer = %id, %error, "control datagram not sent");
                }
            }
            match peer.session.poll_event() {
                Some(event) => self.handle_session(id, event, arrived),
                None => break,
            }
        }
        while let Some(output) = self.room.poll_output(Instant::now()) {
            self.handle_output(output);
        }
    }

    fn handle_session(&mut self, id: PeerId, event: session::Event, arrived: Micros) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        match event {
            session::Event::Established { .. } => {
                peer.wanted = true;
                let (route, inbox) = (peer.paths.route(), peer.inbox.clone());
                let addresses = peer.addresses.clone();
                self.command_media(MediaCommand::Voice { peer: id, route, inbox });
                self.room.handle_established(now, id, addresses);
            }
            session::Event::Message(message) => self.room.handle_message(now, id, &message),
            session::Event::Unreliable(message) => match Telemetry::decode(&message) {
                Some(Telemetry::Ping { sent_us }) => {
                    let (arrived_us, answered_us) = (arrived.0, clock::now().0);
                    let pong = Telemetry::Pong { sent_us, arrived_us, answered_us };
                    let _ = peer.session.send_unreliable(now, &pong.encode());
                }
                Some(Telemetry::Pong { sent_us, arrived_us, answered_us }) => {
                    let exchange =
                        Exchange { sent: sent_us, arrived: arrived_us, answered: answered_us, heard: arrived.0 };
                    peer.clock.handle_exchange(exchange);
                    let offset = peer.clock.offset(arrived);
                    self.command_media(MediaCommand::Clock { peer: id, offset });
                }
                Some(Telemetry::Report(report)) => {
                    self.command_media(MediaCommand::Report { peer: id, report });
                }
                None => {}
            },
            session::Event::Refused { reason, .. } => self.handle_refusal(id, reason),
            session::Event::NotThisRoom => {
                tracing::debug!(peer = %id, "in another room");
                if self.elsewhere.len() < MAX_PEERS {
                    self.elsewhere.insert(id);
                }
                self.forget(id);
            }
            session::Event::TimedOut => {
                tracing::debug!(peer = %id, "no answer to the handshake");
                peer.paths.close_all();
                peer.dial_failed(now);
            }
            session::Event::Lost => self.room.handle_left(now, id, Departure::Lost),
            session::Event::Closed => self.room.handle_left(now, id, Departure::Closed),
        }
    }

    fn handle_refusal(&mut self, id: PeerId, reason: Refusal) {
        let who = events::short(&id);
        let (code, message, hint) = match reason {
            Refusal::WrongSecret => (
                "wrong_secret",
                format!("{who} is in a room named {} with another secret", self.config.invite.room),
                "Use the same invite on both sides (hallway invite). --wait waits here anyway.",
            ),
            Refusal::Identity => (
                "wrong_identity",
                format!("{who} could not prove who it is"),
                "Somebody may be in the middle of this connection. Do not trust this network.",
            ),
            Refusal::Version => (
                "version",
                format!("{who} runs a hallway that speaks another protocol"),
                "Use the same version on both sides.",
            ),
        };
        self.forget(id);
        if reason == Refusal::WrongSecret {
            self.refused(message, hint);
        } else {
            self.warn(code, format!("{message}."), hint);
        }
    }

    /// We are not let in. Ends the program only for one who has just arrived and met nobody.
    fn refused(&mut self, reason: String, hint: &str) {
        let arriving = self.config.started.elapsed() < ARRIVING;
        if arriving && !self.met_somebody && !self.config.wait_anyway {
            self.ended.get_or_insert(Ended::Refused { reason, hint: hint.to_owned() });
        } else {
            self.warn("refused", format!("{reason}."), hint);
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
                    let route = peer.paths.route();
                    while let Some(datagram) = peer.session.poll_transmit(now) {
                        let _ = route.send(datagram.into());
                    }
                }
            }
            Output::Seal(key) => self.command_media(MediaCommand::Seal(key)),
            Output::Open { peer, key } => self.command_media(MediaCommand::Open { peer, key }),
            Output::Forget { peer } => self.command_media(MediaCommand::Forget(peer)),
            Output::Joined { peer, name } | Output::Renamed { peer, name } => {
                self.met_somebody = true;
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.name = Some(name);
                }
                self.tell_peer(peer, PeerState::Connected, None);
            }
            Output::Left { peer, departure } => {
                let reason = match departure {
                    Departure::Lost => "connection lost",
                    Departure::Left | Departure::Closed => "said goodbye",
                };
                self.remember(peer);
                self.tell_peer(peer, PeerState::Left, Some(reason));
                self.forget(peer);
            }
            Output::Dial { peer, addresses } => {
                let patience = if dials_first(&self.me, &peer) { Duration::ZERO } else { DIAL_SECOND };
                self.discovered(peer, addresses, patience);
            }
            Output::Chat { peer, id, text } => {
                let name = self.peers.get(&peer).and_then(|p| p.name.clone()).unwrap_or_default();
                self.emit(Event::Chat { peer_id: peer, name, text, id });
            }
            Output::Refused { peer, reason } => {
                let (reason, hint) = match reason {
                    RoomRefusal::Full => (
                        format!("the room is full: {} says that nobody else fits in", events::short(&peer)),
                        "Wait until somebody leaves, or open another room.",
                    ),
                    RoomRefusal::Other(code) => (
                        format!("{} does not let this node in (reason {code})", events::short(&peer)),
                        "A newer version of hallway may say more.",
                    ),
                };
                self.forget(peer);
                self.refused(reason, hint);
            }
            Output::Close { peer } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.session.close(now);
                }
            }
        }
    }

    fn discovered(&mut self, id: PeerId, addresses: Vec<Multiaddr>, patience: Duration) {
        if id == self.me || self.elsewhere.contains(&id) || addresses.is_empty() {
            return;
        }
        let now = Instant::now();
        let patience = if dials_first(&self.me, &id) { Duration::ZERO } else { patience };
        let Some(peer) = self.peer_entry(id, now) else { return };
        let new = !peer.wanted;
        peer.wanted = true;
        peer.learn(addresses);
        if peer.paths.is_empty() {
            peer.dial_at(now + patience);
        } else if !peer.session.is_established() && !peer.session.is_connecting() {
            // It reached us before we heard of it, and has not begun: it may not know yet that we share a room.
            peer.session.connect(now);
        }
        if new {
            self.tell_peer(id, PeerState::Discovered, None);
        }
    }

    fn dial(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let budget = &mut self.budget;
        let addresses: Vec<_> = peer.addresses.iter().filter(|addr| budget.allow(now, addr)).cloned().collect();
        if addresses.is_empty() {
            tracing::debug!(peer = %id, "no address that may be dialled now");
            return;
        }
        let opts =
            DialOpts::peer_id(id).addresses(addresses).condition(PeerCondition::DisconnectedAndNotDialing).build();
        match self.swarm.dial(opts) {
            Ok(()) => {
                if self.peers.get(&id).is_some_and(|peer| peer.told != Some(PeerState::Reconnecting)) {
                    self.tell_peer(id, PeerState::Connecting, None);
                }
            }
            Err(error) => tracing::debug!(peer = %id, %error, "not dialled"),
        }
    }

    /// Puts the best path in use and tells of the change.
    fn choose_path(&mut self, id: PeerId) {
        let prefer_dialer = dials_first(&self.me, &id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let had = peer.paths.route().path().is_some();
        if !peer.paths.choose(|path| path.is_dialer() == prefer_dialer) {
            return;
        }
        let has = peer.paths.route().path().is_some();
        let member = peer.name.is_some();
        if !has && (member || peer.wanted) {
            let patience = if prefer_dialer { Duration::ZERO } else { DIAL_SECOND };
            peer.dial_at(Instant::now() + patience);
        }
        match (member, had, has) {
            (true, _, false) => self.tell_peer(id, PeerState::Reconnecting, None),
            (true, _, true) => self.tell_peer(id, PeerState::PathChanged, None),
            _ => {}
        }
    }

    /// The entry of a peer, made where there is room for it.
    fn peer_entry(&mut self, id: PeerId, now: Instant) -> Option<&mut Peer> {
        if !self.peers.contains_key(&id) && self.peers.len() >= MAX_PEERS {
            let stranger = self.peers.iter().find(|(_, p)| !p.wanted && p.paths.is_empty()).map(|(id, _)| *id)?;
            self.peers.remove(&stranger);
        }
        let local = &self.local;
        Some(self.peers.entry(id).or_insert_with(|| Peer::new(Session::new(local, id, now), now)))
    }

    fn forget(&mut self, id: PeerId) {
        if let Some(mut peer) = self.peers.remove(&id) {
            let now = Instant::now();
            peer.session.close(now);
            let route = peer.paths.route();
            while let Some(datagram) = peer.session.poll_transmit(now) {
                let _ = route.send(datagram.into());
            }
            // The goodbye must leave the socket before the connection does.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                peer.paths.close_all();
            });
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
            let route = peer.paths.route();
            while let Some(datagram) = peer.session.poll_transmit(now) {
                let _ = route.send(datagram.into());
            }
        }
        let media_done = async {
            self.media.command(MediaCommand::Stop);
            while let Some(event) = self.media_events.recv().await {
                match event {
                    MediaEvent::Stopped(stats) | MediaEvent::Stats(stats) => self.last_stats = Some(*stats),
                    _ => {}
                }
            }
        };
        let farewell = async {
            let _ = tokio::time::timeout(FAREWELL, self.links.leave()).await;
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
                peer.paths.close_all();
            }
        }
        self.emit_summary().await;
    }

    // --- figures ------------------------------------------------------------------------------------------------

    fn handle_stats(&mut self, stats: MediaStats) {
        self.look_after_paths(Instant::now());
        for voice in &stats.voices {
            let Some(peer) = self.peers.get_mut(&voice.peer) else { continue };
            let path = peer.paths.route().path();
            let (mut send_kbps, mut recv_kbps) = (None, None);
            if let Some(path) = &path {
                let (sent, received) = path.bytes();
                if let Some((id, sent_before, received_before)) = peer.counted
                    && id == path.id()
                {
                    let kbps = |bytes: u64| bytes as f64 * 8.0 / 1000.0 / media::STATS_EVERY.as_secs_f64();
                    send_kbps = Some(kbps(sent.saturating_sub(sent_before)));
                    recv_kbps = Some(kbps(received.saturating_sub(received_before)));
                }
                peer.counted = Some((path.id(), sent, received));
            }
            let path_stats = path.as_ref().map(|path| path.stats());
            let r = &voice.receiver;
            if let Some(stages) = r.mouth_to_ear_stages_ms {
                peer.stages.add(&stages);
            }
            let number = |value: Option<f32>| value.map(f64::from);
            let event = PeerStats {
                peer_id: voice.peer,
                name: peer.name.clone().unwrap_or_default(),
                path: path.as_ref().map(|path| path.kind()),
                remote: path.as_ref().map(|path| path.remote()),
                rtt_ms: path.as_ref().map(|path| ms(path.rtt())),
                one_way_ms: r.mouth_to_ear_stages_ms.map(|stages| f64::from(stages.network)),
                clock_error_ms: peer.clock.min_rtt_us().map(|us| us as f64 / 2000.0),
                jitter_ms: number(r.jitter_ms),
                loss_pct: number(r.loss_pct),
                recovered_pct: number(r.recovered_pct),
                concealed_pct: number(r.concealed_pct),
                late_pct: number(r.late_pct),
                target_delay_ms: number(r.target_delay_ms),
                buffer_ms: number(r.buffer_ms),
                mouth_to_ear_ms: number(r.mouth_to_ear_ms),
                mouth_to_ear_stages_ms: r.mouth_to_ear_stages_ms,
                drift_ppm: number(r.drift_ppm),
                send_kbps,
                recv_kbps,
                frame_ms: number(r.frame_ms),
                level_dbov: r.level_dbov.map(|level| f64::from(level.db())),
                policy: stats.policy.clone(),
                rejected: voice.rejected(),
            };
            self.emit(Event::Stats(Box::new(event)));
            if let Some(path_stats) = path_stats {
                self.command_media(MediaCommand::Path { peer: voice.peer, stats: path_stats });
            }
        }
        self.last_stats = Some(stats);
    }

    /// Keeps the figures of a peer's whole call for the summary.
    fn remember(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else { return };
        let Some(name) = peer.name.clone() else { return };
        let Some(voice) = self.last_stats.as_ref().and_then(|s| s.voices.iter().find(|v| v.peer == id)) else { return };
        if self.summaries.len() >= MAX_PEERS {
            self.summaries.remove(0);
        }
        let r = &voice.receiver;
        let percentiles = |p: hallway_codec::Percentiles| Percentiles {
            p50: f64::from(p.p50),
            p95: f64::from(p.p95),
            p99: f64::from(p.p99),
        };
        let totals = &r.totals;
        let percent = |part: u64, whole: u64| (whole > 0).then(|| part as f64 * 100.0 / whole as f64);
        self.summaries.push(PeerSummary {
            peer_id: id,
            name,
            mouth_to_ear_ms: r.total_mouth_to_ear_ms.map(percentiles),
            mouth_to_ear_stages_ms: peer.stages.mean(),
            first_audio_ms: peer.first_audio_ms,
            loss_pct: percent(totals.lost, totals.packets + totals.lost),
            recovered_pct: percent(totals.recovered_samples, totals.played_samples),
            concealed_pct: percent(totals.concealed_samples, totals.played_samples),
            packets_received: voice.received.packets,
            bytes_received: voice.received.bytes,
            packets_rejected: voice.rejected(),
        });
    }

    async fn emit_summary(mut self) {
        let (sent, xruns) = self.last_stats.as_ref().map(|s| (s.sent, s.xruns)).unwrap_or_default();
        let summary = Summary {
            peers: std::mem::take(&mut self.summaries),
            since_start_ms: self.since_start(),
            cpu_s: cpu_seconds(),
            max_rss_kb: max_rss_kb(),
            packets_sent: sent.packets,
            bytes_sent: sent.bytes,
            xruns,
        };
        let stamped = Stamped::now(Event::Summary(Box::new(summary)));
        let _ = tokio::time::timeout(Duration::from_millis(200), self.events.send(stamped)).await;
    }

    // --- small things -------------------------------------------------------------------------------------------

    /// Gives the first listening addresses a moment to appear, so that `ready` can name them.
    async fn wait_for_listeners(&mut self) {
        let expected = self.config.listen.len();
        let all_up = async {
            while self.listening.len() < expected {
                let event = self.swarm.select_next_some().await;
                if let SwarmEvent::NewListenAddr { address, .. } = event {
                    self.listening.push(address);
                }
            }
        };
        if tokio::time::timeout(Duration::from_millis(250), all_up).await.is_err() {
            tracing::debug!("not every listening address is up yet");
        }
    }

    /// What others should dial us at.
    fn own_addresses(&self) -> Vec<Multiaddr> {
        if !self.config.announce.is_empty() {
            return self.config.announce.clone();
        }
        let quic = self.listening.iter().filter(|addr| transport::to_socket_addr(addr).is_some());
        let mut addresses: Vec<Multiaddr> = self.observed.iter().chain(quic).cloned().collect();
        let mut seen = HashSet::new();
        addresses.retain(|addr| seen.insert(addr.clone()));
        addresses
    }

    fn addresses_changed(&mut self) {
        let addresses = self.own_addresses();
        self.room.set_addresses(addresses.clone());
        self.links.set_addresses(&addresses);
    }

    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        let started = self.config.started;
        let sessions = self.peers.values().filter_map(Peer::next_timeout);
        let ends = [self.config.leave_after, self.config.require_peer.filter(|_| !self.met_somebody)];
        sessions
            .chain(self.room.poll_timeout())
            .chain(ends.into_iter().flatten().map(|after| started + after))
            .min()
            .unwrap_or(now + TICK)
            .clamp(now, now + TICK)
    }

    fn since_start(&self) -> f64 {
        ms(self.config.started.elapsed())
    }

    fn emit(&self, event: Event) {
        let _ = self.events.try_send(Stamped::now(event));
    }

    fn emit_at(&self, at_ns: u64, event: Event) {
        let _ = self.events.try_send(Stamped { event, at_ns });
    }

    fn warn(&self, code: &'static str, message: String, hint: &str) {
        self.emit(Event::Warning(Notice { code, message, hint: hint.to_owned() }));
    }

    fn tell_peer(&mut self, id: PeerId, state: PeerState, reason: Option<&'static str>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.told == Some(state) && state != PeerState::PathChanged {
            return;
        }
        peer.told = Some(state);
        let path = peer.paths.route().path().map(|path| path.kind());
        let name = peer.name.clone();
        let verified = peer.session.is_established() && !self.config.invite.is_open();
        let since_start_ms = self.since_start();
        self.emit(Event::Peer { peer_id: id, name, state, path, verified, since_start_ms, reason });
    }

    fn command_media(&mut self, command: MediaCommand) {
        if !self.media.command(command) && !self.media.is_running() {
            tracing::error!("the media thread is gone");
        }
    }
}

/// Reads one connection's datagrams: voice to the media thread, the rest to the node loop.
async fn read(peer: PeerId, connection: quinn::Connection, inbox: media::Inbox, control: mpsc::Sender<FromPath>) {
    let (mut second, mut taken) = (Instant::now(), 0u32);
    while let Ok(bytes) = connection.read_datagram().await {
        let arrived = clock::now();
        if bytes.first() == Some(&session::keys::MEDIA) {
            inbox.push(Datagram { arrived, bytes });
            continue;
        }
        if second.elapsed() >= Duration::from_secs(1) {
            (second, taken) = (Instant::now(), 0);
        }
        taken = taken.saturating_add(1);
        if taken <= MAX_CONTROL_PER_SECOND {
            let _ = control.try_send(FromPath::Control { peer, arrived, bytes });
        }
    }
    let _ = control.send(FromPath::Closed { peer }).await;
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

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The most memory this process ever held, where the system tells (Linux).
fn max_rss_kb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
