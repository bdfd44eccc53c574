//! A node's side of one rendezvous server and one namespace: found, registered, watched, and found again when lost.
//!
//! One message asks for everything, so that a newcomer knows the room after one round trip on the stream; then the server
//! pushes. A server that does not speak our protocol is asked every few seconds in libp2p's (see `polling`).

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    convert::Infallible,
    io,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _, stream};
use libp2p::{Multiaddr, PeerId, identity::Keypair};
use prost::Message;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use crate::session::bucket::Bucket;

use super::{
    backoff::{Backoff, LONGEST, SHORTEST},
    limits::{KEEP_ALIVE, STREAM_PATIENCE, WATCH_IDLE},
    people::{People, RELIST_GRACE},
    policy::{Scope, scope_of},
    record::{self, Form},
    streams::{OpenError, Opened, Opener, Target},
    wire::{
        self, DOOR_LEN, Empty, MAX_NAMESPACE, MAX_RESPONSE, Presence, ReadError, RegisterResponse, Status,
        WATCH_PROTOCOL, Watch, WatchEvent, WatchRequest,
    },
};

/// Events waiting for the node. Past it the client stops reading, and the server drops and lists anew.
pub const MAX_EVENTS: usize = 256;

/// Longest wait for a stream, a dial included.
pub const OPEN_PATIENCE: Duration = Duration::from_secs(12);

/// Longest wait in [`Client::leave`] until the goodbye is out.
pub const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// A refused registration is tried again after this at the earliest, [`LONGEST`] at the latest.
const REFUSED_LEAST: Duration = Duration::from_secs(4);

/// Server messages read: this many at once …
const MESSAGE_BURST: u32 = 512;

/// … and this many a second for long. A server that pushes more is read slowly.
const MESSAGES_PER_SECOND: u32 = 64;

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The server.
    pub server: Target,
    /// Our identity: signs the record, and must be that of the Swarm.
    pub keypair: Keypair,
    /// Blinded name and secret of the room for this period; 1 to 255 bytes.
    pub namespace: String,
    /// Blinded name of the room without its secret. `None` while it is not known: it is slow to compute.
    pub door: Option<[u8; DOOR_LEN]>,
    /// Lifetime of a registration at a server that cannot watch. Default 120 s; such a server may insist on 2 h.
    pub ttl: Duration,
    /// Where others may reach us; the first 8 are published. More can be told later.
    pub addresses: Vec<Multiaddr>,
    /// How our record is signed. Default [`Form::Legacy`], which every rust-libp2p reads.
    pub form: Form,
    /// Spreads retries; best random.
    pub seed: u64,
}

impl ClientConfig {
    /// With the defaults named at the fields.
    pub fn new(
        server: Target,
        keypair: Keypair,
        namespace: String,
        door: impl Into<Option<[u8; DOOR_LEN]>>,
    ) -> Self {
        Self {
            server,
            keypair,
            namespace,
            door: door.into(),
            ttl: Duration::from_secs(120),
            addresses: Vec::new(),
            form: Form::Legacy,
            seed: rand::random(),
        }
    }
}

/// A configuration that cannot work. Only the caller can mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Empty, or longer than 255 bytes.
    #[error("a namespace of 1 to 255 bytes is needed")]
    Namespace,
    /// The server has neither address nor identity.
    #[error("the server has no address")]
    NoAddress,
}

/// How we know of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// Listed when we came, or came back.
    Initial,
    /// The server told us as it happened.
    Pushed,
    /// We asked again.
    Polled,
}

/// What a node should know.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent {
    /// A server of ours was reached and asked to list us. What else is wanted of it can go out in the same flight.
    Asked {
        /// Its identity, proven.
        server: PeerId,
        /// Where we reached it.
        addr: Multiaddr,
    },
    /// The server answers.
    Connected {
        /// Its identity, proven.
        server: PeerId,
        /// Where we reached it.
        addr: Multiaddr,
        /// It pushes; otherwise it is polled.
        push: bool,
    },
    /// We are listed.
    Registered {
        /// At a polled server for this long, then again; at one that pushes, as long as we are connected.
        ttl: Duration,
    },
    /// We are not listed, or no longer. Tried again by itself.
    RegisterRefused {
        /// Why, in the protocol's terms.
        why: Status,
    },
    /// Somebody is there, or has new addresses.
    Peer {
        /// Proven by signature.
        peer: PeerId,
        /// At most 8, as signed by the peer, that may be dialled (see [`policy`](super::policy)). May be empty.
        addresses: Vec<Multiaddr>,
        /// How we know.
        via: Via,
    },
    /// Somebody is no longer listed; may well be still in the call.
    PeerGone {
        /// Who.
        peer: PeerId,
    },
    /// Registrations for a room of this name under another secret.
    OtherKeys {
        /// How many; as the server claims.
        count: u32,
    },
    /// How the server sees us: raw, port included.
    Observed {
        /// As the server claims.
        addr: Multiaddr,
    },
    /// The server is lost, or was not found; people known stay known.
    Lost {
        /// Why.
        why: LostWhy,
        /// When it is tried again.
        retry_in: Duration,
    },
}

/// Why a server is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LostWhy {
    /// Nobody answers.
    #[error("it cannot be reached: {detail}")]
    Unreachable {
        /// Every address with its error.
        detail: String,
    },
    /// Another identity answers. Tell the user: retries go on, but only a change at the server or of the address helps.
    #[error("expected {expected}, but {obtained} answers")]
    WrongIdentity {
        /// As configured.
        expected: PeerId,
        /// As proven.
        obtained: PeerId,
    },
    /// Somebody answers who is no rendezvous server.
    #[error("no rendezvous server answers there")]
    NotARendezvous,
    /// It said that it shuts down.
    #[error("it shuts down")]
    Closing,
    /// It will not have us.
    #[error("it refuses: {}", why.in_words())]
    Refused {
        /// Why.
        why: Status,
    },
    /// The stream or connection broke, or what came was malformed.
    #[error("the connection broke: {detail}")]
    Broken {
        /// How.
        detail: String,
    },
    /// Nothing came for too long.
    #[error("it has fallen silent")]
    Silent,
}

/// A running client. Dropping it ends the stream without a goodbye; [`Client::leave`] is better.
#[derive(Debug)]
pub struct Client {
    wish: watch::Sender<Wish>,
    retry: Arc<Notify>,
    task: JoinHandle<()>,
}

#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) addresses: Vec<Multiaddr>,
    pub(super) door: Option<[u8; DOOR_LEN]>,
    pub(super) leave: bool,
}

impl Client {
    /// Starts looking for the server. Must be called inside a tokio runtime; the Swarm with the
    /// [`Behaviour`](super::Behaviour) must be polled, and the events taken.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn spawn(
        config: ClientConfig,
        opener: Opener,
    ) -> Result<(Self, mpsc::Receiver<ClientEvent>), ClientError> {
        if config.namespace.is_empty() || config.namespace.len() > MAX_NAMESPACE {
            return Err(ClientError::Namespace);
        }
        if config.server.addresses.is_empty() && config.server.peer.is_none() {
            return Err(ClientError::NoAddress);
        }
        let (events, receiver) = mpsc::channel(MAX_EVENTS);
        let (wish, wished) =
            watch::channel(Wish { addresses: config.addresses.clone(), door: config.door, leave: false });
        let retry = Arc::new(Notify::new());
        let session = Session {
            people: People::new(config.keypair.public().to_peer_id()),
            backoff: Backoff::new(config.seed),
            form: config.form,
            config,
            opener,
            wish: wished,
            events,
            found_before: false,
            server: None,
        };
        let task = tokio::spawn(session.run(Arc::clone(&retry)));
        Ok((Self { wish, retry, task }, receiver))
    }

    /// Our addresses have changed: a new record is signed and sent.
    pub fn set_addresses(&self, addresses: Vec<Multiaddr>) {
        self.wish.send_if_modified(|wish| {
            let changed = wish.addresses != addresses;
            wish.addresses = addresses;
            changed
        });
    }

    /// The room's door is known now: the watch is opened anew to stand at it.
    pub fn set_door(&self, door: [u8; DOOR_LEN]) {
        self.wish.send_if_modified(|wish| wish.door.replace(door) != Some(door));
    }

    /// The network is back: do not wait for the next try.
    pub fn retry_now(&self) {
        self.retry.notify_one();
    }

    /// Takes our registration away and ends; takes at most [`LEAVE_PATIENCE`].
    pub async fn leave(mut self) {
        self.wish.send_modify(|wish| wish.leave = true);
        if timeout(LEAVE_PATIENCE, &mut self.task).await.is_err() {
            tracing::debug!("the rendezvous server did not take our goodbye in time");
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// ---- session ------------------------------------------------------------------------------------------------------

/// How a session with a server ends.
#[derive(Debug)]
pub(super) enum End {
    /// We left, or nobody takes the events any more.
    Left,
    /// To be tried again.
    Lost(Box<LostWhy>),
    /// To be opened anew at once, by our own wish.
    Again,
}

impl<E: Into<LostWhy>> From<E> for End {
    fn from(why: E) -> Self {
        Self::Lost(Box::new(why.into()))
    }
}

pub(super) struct Session {
    pub(super) config: ClientConfig,
    pub(super) opener: Opener,
    pub(super) wish: watch::Receiver<Wish>,
    events: mpsc::Sender<ClientEvent>,
    pub(super) people: People,
    pub(super) backoff: Backoff,
    pub(super) form: Form,
    /// We have had a list, so that people missing from the next one may only be late.
    found_before: bool,
    /// Who answered last, or who should.
    pub(super) server: Option<PeerId>,
}

/// The runtime's clock, so that tests may stop it.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Session {
    async fn run(mut self, retry: Arc<Notify>) {
        loop {
            let began = now();
            let why = match self.once().await {
                Err(End::Left) => return,
                Err(End::Again) => continue,
                Err(End::Lost(why)) => *why,
            };
            // A server that takes us in and throws us out again is not asked faster for it.
            if now().saturating_duration_since(began) > LONGEST.saturating_add(OPEN_PATIENCE) {
                self.backoff.reset();
            }
            let retry_in = self.backoff.next();
            if self.emit(ClientEvent::Lost { why, retry_in }).await.is_err() {
                return;
            }
            sleep(SHORTEST).await;
            tokio::select! {
                () = sleep(retry_in.saturating_sub(SHORTEST)) => {}
                () = retry.notified() => {}
                _ = self.wish.wait_for(|wish| wish.leave) => return,
            }
        }
    }

    async fn once(&mut self) -> Result<Infallible, End> {
        let opening = timeout(OPEN_PATIENCE, self.opener.open(&self.config.server, WATCH_PROTOCOL));
        let opened = tokio::select! {
            opened = opening => opened,
            // Whoever was listed and is between two streams opens the next one to say goodbye on it.
            _ = self.wish.wait_for(|wish| wish.leave), if !self.found_before => return Err(End::Left),
        };
        match opened {
            Ok(Ok(opened)) => {
                let server = opened.peer;
                self.server = Some(server);
                let end = self.watch(opened).await;
                match &end {
                    Err(End::Lost(why)) if **why == LostWhy::Silent => {
                        self.opener.close(server).await;
                        end
                    }
                    // It may still speak libp2p's.
                    Err(End::Lost(why)) if **why == LostWhy::NotARendezvous => self.poll_plainly().await,
                    _ => end,
                }
            }
            Ok(Err(OpenError::Unsupported)) => self.poll_plainly().await,
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(self.give_up_on_connection().await.into()),
        }
    }

    /// Not even a stream could be opened: whatever connection there is, is dead.
    pub(super) async fn give_up_on_connection(&self) -> LostWhy {
        if let Some(server) = self.config.server.peer.or(self.server) {
            self.opener.close(server).await;
        }
        LostWhy::Silent
    }

    /// On our own protocol, as long as it lasts.
    async fn watch(&mut self, opened: Opened) -> Result<Infallible, End> {
        let Opened { peer, stream, addr } = opened;
        let mut relation = Relation {
            server: peer,
            scope: scope_of(&addr.borrow()).unwrap_or(Scope::Public),
            addr: addr.borrow().clone(),
            connected: false,
            listing: false,
            listed: false,
            again_at: None,
        };
        let (reader, mut writer) = stream.split();
        // One future reads all messages, so that losing a race in `select!` never loses half a message.
        let mut messages = pin!(stream::unfold(reader, |mut reader| async {
            let read = timeout(WATCH_IDLE, wire::read::<WatchEvent, _>(&mut reader, MAX_RESPONSE)).await;
            Some((read, reader))
        }));
        let door = self.wish.borrow().door;
        let watch = Watch {
            namespace: self.config.namespace.clone(),
            door: door.map(Vec::from).unwrap_or_default(),
            presence: Some(self.presence()?),
        };
        send(&mut writer, &WatchRequest { watch: Some(watch), ..WatchRequest::default() }).await?;
        self.emit(ClientEvent::Asked { server: peer, addr: relation.addr.clone() }).await?;

        let mut pace = Bucket::per_second(MESSAGE_BURST, MESSAGES_PER_SECOND, now());
        let mut keep_alive = interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        keep_alive.tick().await;
        loop {
            let (overdue, again) = (self.people.next_overdue(), relation.again_at);
            let leaves = self.wish.borrow().leave;
            let wished = async { if leaves { Ok(()) } else { self.wish.changed().await } };
            tokio::select! {
                biased;
                wished = wished => {
                    if wished.is_err() || self.wish.borrow_and_update().leave {
                        let goodbye = WatchRequest { leave: Some(Empty {}), ..WatchRequest::default() };
                        send(&mut writer, &goodbye).await?;
                        let _ = writer.close().await;
                        // The server ends its side when it has taken the goodbye: a connection closed before that would
                        // take with it what is still on its way.
                        while let Some(Ok(Ok(_))) = messages.next().await {}
                        return Err(End::Left);
                    }
                    if self.wish.borrow().door != door {
                        return Err(End::Again);
                    }
                    self.refresh(&mut writer).await?;
                }
                message = messages.next() => {
                    let message = match message {
                        Some(Ok(Ok(message))) => message,
                        Some(Ok(Err(error))) => return Err(error.into()),
                        Some(Err(_)) | None => return Err(LostWhy::Silent.into()),
                    };
                    while !pace.take(now()) {
                        sleep(Duration::from_millis(50)).await;
                    }
                    self.heard(&mut relation, message).await?;
                }
                () = at(overdue) => {
                    for event in self.people.overdue(now()) {
                        self.emit(event).await?;
                    }
                }
                () = at(again) => {
                    relation.again_at = None;
                    self.refresh(&mut writer).await?;
                }
                _ = keep_alive.tick() => {
                    send(&mut writer, &WatchRequest { keep_alive: Some(Empty {}), ..WatchRequest::default() }).await?;
                }
            }
        }
    }

    async fn refresh<S: AsyncWrite + Unpin>(&mut self, to: &mut S) -> Result<(), End> {
        let refresh = Some(self.presence()?);
        send(to, &WatchRequest { refresh, ..WatchRequest::default() }).await
    }

    /// Handles one message, field by field in their order.
    async fn heard(&mut self, relation: &mut Relation, message: WatchEvent) -> Result<(), End> {
        if let Some(bye) = message.bye {
            let why = Status::try_from(bye.status).unwrap_or(Status::InternalError);
            let why = if why == Status::Ok { LostWhy::Closing } else { LostWhy::Refused { why } };
            return Err(why.into());
        }
        if !relation.connected {
            relation.connected = true;
            let (server, addr) = (relation.server, relation.addr.clone());
            self.emit(ClientEvent::Connected { server, addr, push: true }).await?;
        }
        if let Some(registered) = message.registered {
            let event = outcome(&registered);
            if matches!(event, ClientEvent::RegisterRefused { .. }) {
                let wait = self.backoff.between(REFUSED_LEAST, LONGEST);
                relation.again_at = now().checked_add(wait);
            }
            self.emit(event).await?;
        }
        if let Some(Ok(addr)) = message.observed.map(Multiaddr::try_from) {
            self.emit(ClientEvent::Observed { addr }).await?;
        }
        if let Some(snapshot) = message.snapshot {
            if !std::mem::replace(&mut relation.listing, true) {
                self.people.list_begins();
            }
            for record in &snapshot.records {
                self.told(record, Via::Initial, relation.scope).await?;
            }
            if !snapshot.more {
                relation.listing = false;
                let late = self.found_before && !std::mem::replace(&mut relation.listed, true);
                self.found_before = true;
                let gone_at = if late { now().checked_add(RELIST_GRACE) } else { None };
                for event in self.people.list_ends(gone_at) {
                    self.emit(event).await?;
                }
            }
        }
        if let Some(record) = message.arrived {
            self.told(&record, Via::Pushed, relation.scope).await?;
        }
        if let Some(Ok(peer)) = message.gone.map(|peer| PeerId::from_bytes(&peer))
            && let Some(event) = self.people.gone(peer)
        {
            self.emit(event).await?;
        }
        if let Some(count) = message.other_keys {
            self.emit(ClientEvent::OtherKeys { count }).await?;
        }
        Ok(())
    }

    pub(super) async fn told(&mut self, record: &[u8], via: Via, server: Scope) -> Result<(), End> {
        match self.people.told(record, via, server) {
            Some(event) => self.emit(event).await,
            None => Ok(()),
        }
    }

    pub(super) async fn emit(&self, event: ClientEvent) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Left)
    }

    pub(super) fn presence(&self) -> Result<Presence, End> {
        let addresses = self.wish.borrow().addresses.clone();
        let signed_peer_record = record::sign(&self.config.keypair, &addresses, self.form)
            .map_err(|e| LostWhy::Broken { detail: format!("our key does not sign: {e}") })?;
        Ok(Presence { signed_peer_record, ttl: self.config.ttl.as_secs() })
    }
}

/// What one stream's life has brought so far.
struct Relation {
    server: PeerId,
    addr: Multiaddr,
    scope: Scope,
    connected: bool,
    listing: bool,
    listed: bool,
    again_at: Option<Instant>,
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}

async fn send<S: AsyncWrite + Unpin>(to: &mut S, message: &impl Message) -> Result<(), End> {
    match timeout(STREAM_PATIENCE, wire::write(to, message)).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(LostWhy::Silent.into()),
    }
}

/// The event for an answer to a registration.
pub(super) fn outcome(response: &RegisterResponse) -> ClientEvent {
    let status = response.status.map(Status::try_from);
    match status {
        Some(Ok(Status::Ok)) => {
            ClientEvent::Registered { ttl: Duration::from_secs(response.ttl.unwrap_or_default()) }
        }
        Some(Ok(why)) => ClientEvent::RegisterRefused { why },
        Some(Err(_)) | None => ClientEvent::RegisterRefused { why: Status::InternalError },
    }
}

impl From<OpenError> for LostWhy {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Unreachable { detail } => Self::Unreachable { detail },
            OpenError::WrongIdentity { expected, obtained } => Self::WrongIdentity { expected, obtained },
            OpenError::Unsupported => Self::NotARendezvous,
            OpenError::Closed | OpenError::Busy => Self::Broken { detail: error.to_string() },
        }
    }
}

impl From<ReadError> for LostWhy {
    fn from(error: ReadError) -> Self {
        if error.is_not_spoken() {
            return Self::NotARendezvous;
        }
        Self::Broken { detail: error.to_string() }
    }
}

impl From<io::Error> for LostWhy {
    fn from(error: io::Error) -> Self {
        Self::Broken { detail: error.to_string() }
    }
}
