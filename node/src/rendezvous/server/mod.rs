//! A rendezvous server at work: one task for each stream, one that keeps time. What is answered is decided in
//! [`hub`](super::hub); here it is read, written, and given up on when the other side is too slow.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod event;
mod watching;

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _, stream};
use libp2p::{Multiaddr, PeerId};
use prost::Message;
use rand::RngCore as _;
use serde::Serialize;
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};

pub use super::wire::Status;
use crate::{
    forward::{self, Forwarder, wire::FORWARD_PROTOCOL},
    session::bucket::Bucket,
};
pub use event::{Refusal, ServerEvent, Stats};

use super::{
    dial_back::{DIAL_BACK_PROTOCOL, DialBacks},
    hub::{Guest, Happened, Hub, Presented, Watching},
    limits::{KEEP_ALIVE, Limits, MESSAGE_BURST, MESSAGES_PER_SECOND, STREAM_PATIENCE, WATCH_IDLE},
    store::Prefix,
    streams::{Inbound, Incoming},
    watchers::WatchId,
    wire::{
        self, Empty, Kind, MAX_REQUEST, Presence, ReadError, Request, Response, WATCH_PROTOCOL, WatchEvent,
        WatchRequest,
    },
};

/// Events waiting for the operator's side; past it they are dropped and counted.
pub const MAX_EVENTS: usize = 1024;

/// Refusals reported one by one: this many at once …
pub const REFUSALS_BURST: u32 = 20;

/// … and this many a second for long. The statistics count them all.
pub const REFUSALS_PER_SECOND: u32 = 2;

/// The count at a door is pushed at most this often: strangers can change it.
pub const DOOR_PACE: Duration = Duration::from_secs(1);

/// Longest wait in [`Server::shutdown`] for watchers to hear it.
pub const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(1);

/// How a server runs.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// What strangers may make it hold.
    pub limits: Limits,
    /// What its forwarder may be made to carry.
    pub forward: forward::Limits,
    /// Its own addresses, where it listens at certain ones: nodes are dialled back from there.
    pub dial_back_from: Vec<IpAddr>,
    /// How often [`ServerEvent::Stats`] comes. Default 10 s.
    pub stats_every: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            forward: forward::Limits::default(),
            dial_back_from: Vec::new(),
            stats_every: Duration::from_secs(10),
        }
    }
}

// ---- server -------------------------------------------------------------------------------------------------------

/// A running server. Dropping it ends it too, without waiting until the goodbyes are out.
#[derive(Debug)]
pub struct Server {
    forwarder: Forwarder,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    forwarder: Forwarder,
    hub: Mutex<Hub>,
    wakers: Mutex<HashMap<WatchId, Arc<Notify>>>,
    expiry: Notify,
    streams: Arc<Semaphore>,
    streams_total: usize,
    stop: watch::Receiver<bool>,
    news: Arc<NewsDesk>,
    dial_backs: DialBacks,
    refused_streams: AtomicU64,
    pushed: AtomicU64,
}

/// Where events for the operator go.
struct NewsDesk {
    events: mpsc::Sender<ServerEvent>,
    refusals: Mutex<Bucket>,
    events_dropped: AtomicU64,
    forward_refused: AtomicU64,
}

impl NewsDesk {
    fn emit(&self, event: ServerEvent) {
        if self.events.try_send(event).is_err() {
            self.events_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn refused(&self, peer: PeerId, why: Refusal) {
        if locked(&self.refusals).take(now()) {
            self.emit(ServerEvent::Refused { peer, why });
        }
    }

    fn forwarded(&self, happened: forward::server::Happened) {
        use forward::server::Happened as What;
        match happened {
            What::Began(peer) => {
                self.emit(ServerEvent::Relayed { peer, began: true, datagrams: 0, bytes: 0 });
            }
            What::Ended(peer, datagrams, bytes) => {
                self.emit(ServerEvent::Relayed { peer, began: false, datagrams, bytes });
            }
            What::Refused(peer, why) => {
                // What is over the rate is counted by the forwarder itself.
                if why != forward::wire::Refusal::Rate {
                    self.forward_refused.fetch_add(1, Ordering::Relaxed);
                }
                self.refused(peer, why.into());
            }
        }
    }
}

impl Server {
    /// Serves the streams that a [`Behaviour::server`](super::Behaviour::server) accepts. Must be called inside a tokio
    /// runtime; the Swarm must be polled.
    pub fn spawn(config: ServerConfig, incoming: Incoming) -> (Self, mpsc::Receiver<ServerEvent>) {
        let (stop, stopped) = watch::channel(false);
        let (events, receiver) = mpsc::channel(MAX_EVENTS);
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        let streams_total = config.limits.streams_total;
        let news = Arc::new(NewsDesk {
            events,
            refusals: Mutex::new(Bucket::per_second(REFUSALS_BURST, REFUSALS_PER_SECOND, now())),
            events_dropped: AtomicU64::new(0),
            forward_refused: AtomicU64::new(0),
        });
        let desk = Arc::clone(&news);
        let forwarder = Forwarder::new(config.forward, move |happened| desk.forwarded(happened));
        let shared = Arc::new(Shared {
            forwarder: forwarder.clone(),
            hub: Mutex::new(Hub::new(config.limits, seed)),
            wakers: Mutex::default(),
            expiry: Notify::new(),
            streams: Arc::new(Semaphore::new(streams_total)),
            streams_total,
            stop: stopped,
            news,
            dial_backs: DialBacks::new(now(), config.dial_back_from),
            refused_streams: AtomicU64::new(0),
            pushed: AtomicU64::new(0),
        });
        let tasks = vec![
            tokio::spawn(accept(Arc::clone(&shared), incoming)),
            tokio::spawn(keep_time(shared, config.stats_every)),
        ];
        (Self { forwarder, stop, tasks }, receiver)
    }

    /// Passes on the datagrams of connections that it is given.
    pub fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    /// Lets members move away whose datagrams pass through here, then says goodbye to every watcher and ends; takes at
    /// most [`DRAIN_PATIENCE`](forward::server::DRAIN_PATIENCE) and [`SHUTDOWN_PATIENCE`]. The Swarm must go on being polled
    /// until this returns.
    pub async fn shutdown(mut self) {
        self.forwarder.drain().await;
        // No receiver left means that everything has ended already.
        let _ = self.stop.send(true);
        let all_gone = async {
            self.stop.closed().await;
            for task in &mut self.tasks {
                let _ = task.await;
            }
        };
        if timeout(SHUTDOWN_PATIENCE, all_gone).await.is_err() {
            tracing::debug!("some watchers did not hear that the server shuts down");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The runtime's clock, so that tests may stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What panicked while it held the lock has left whole entries only.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Asks the hub, then passes on what came of it.
    fn with<T>(&self, ask: impl FnOnce(&mut Hub) -> T) -> T {
        let (answer, happened, woken, sooner) = {
            let mut hub = locked(&self.hub);
            let before = hub.next_expiry();
            let answer = ask(&mut hub);
            let sooner = hub.next_expiry() != before;
            (answer, hub.take_happened(), hub.take_woken(), sooner)
        };
        if sooner {
            self.expiry.notify_one();
        }
        if !woken.is_empty() {
            let wakers = locked(&self.wakers);
            for waker in woken.iter().filter_map(|id| wakers.get(id)) {
                waker.notify_one();
            }
        }
        for event in happened {
            self.report(event);
        }
        answer
    }

    fn report(&self, happened: Happened) {
        match happened {
            Happened::Registered { peer, ttl, of_peer } => {
                self.news.emit(ServerEvent::Registered { peer, ttl_s: ttl.as_secs(), of_peer });
            }
            Happened::Expired { peer, left } => self.news.emit(ServerEvent::Expired { peer, left }),
            Happened::Refused { peer, why } => self.news.refused(peer, why.into()),
        }
    }

    fn stats(&self) -> Stats {
        let (registrations, namespaces, watchers, refused) = locked(&self.hub).counts();
        Stats {
            registrations,
            namespaces,
            watchers,
            streams: self.streams_total.saturating_sub(self.streams.available_permits()),
            refused: refused
                .saturating_add(self.refused_streams.load(Ordering::Relaxed))
                .saturating_add(self.news.forward_refused.load(Ordering::Relaxed)),
            pushed: self.pushed.load(Ordering::Relaxed),
            events_dropped: self.news.events_dropped.load(Ordering::Relaxed),
            forward: self.forwarder.stats(),
        }
    }
}

/// Waits for the end of the server.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the server was dropped: also an end. The guard must not live on.
    drop(stop.wait_for(|stopped| *stopped).await);
}

async fn accept(shared: Arc<Shared>, mut incoming: Incoming) {
    let mut stop = shared.stop.clone();
    loop {
        let inbound = tokio::select! {
            inbound = incoming.next() => inbound,
            () = stopped(&mut stop) => return,
        };
        let Some(inbound) = inbound else { return };
        let Ok(permit) = Arc::clone(&shared.streams).try_acquire_owned() else {
            shared.refused_streams.fetch_add(1, Ordering::Relaxed);
            shared.report(Happened::Refused { peer: inbound.peer, why: Status::Unavailable });
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let peer = inbound.peer;
            if inbound.protocol == FORWARD_PROTOCOL {
                let membership = |namespace: &str| shared.with(|hub| hub.membership(&peer, namespace));
                let still = |room| shared.with(|hub| hub.is_in(room, &peer));
                if let Err(error) = shared.forwarder.serve_stream(inbound, membership, still).await {
                    tracing::debug!(%peer, %error, "a forwarding stream ended badly");
                }
                return;
            }
            if inbound.protocol == DIAL_BACK_PROTOCOL {
                if let Err(error) = shared.dial_backs.serve(inbound).await {
                    tracing::debug!(%peer, %error, "nobody was dialled back");
                }
                return;
            }
            let outcome = if inbound.protocol == WATCH_PROTOCOL {
                watching::serve_watch(&shared, inbound).await
            } else {
                serve_request(&shared, inbound).await
            };
            if let Err(error) = outcome {
                tracing::debug!(%peer, %error, "a rendezvous stream ended badly");
            }
            drop(permit);
        });
    }
}

async fn keep_time(shared: Arc<Shared>, stats_every: Duration) {
    let mut stop = shared.stop.clone();
    let mut stats = interval(stats_every.max(Duration::from_millis(1)));
    stats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stats.tick().await;
    loop {
        let next = locked(&shared.hub).next_expiry();
        let due = async {
            match next {
                Some(when) => sleep_until(when.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => shared.with(|hub| hub.expire(now())),
            () = shared.expiry.notified() => {}
            _ = stats.tick() => shared.news.emit(ServerEvent::Stats(shared.stats())),
            () = stopped(&mut stop) => return,
        }
    }
}

/// Why a stream was given up.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("writing: {0}")]
    Write(#[from] io::Error),
    #[error("nothing came, or nothing was taken, for too long")]
    Patience(#[from] tokio::time::error::Elapsed),
    #[error("the first message opens no watch")]
    NoWatch,
    #[error("too many messages")]
    TooMany,
}

fn guest(inbound: &Inbound) -> Guest {
    Guest { peer: inbound.peer, prefix: Prefix::of(&inbound.addr.borrow()) }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &impl Message) -> Result<(), StreamError> {
    Ok(timeout(STREAM_PATIENCE, wire::write(stream, message)).await??)
}

// ---- /rendezvous/1.0.0 --------------------------------------------------------------------------------------------

async fn serve_request(shared: &Shared, mut inbound: Inbound) -> Result<(), StreamError> {
    let guest = guest(&inbound);
    let request: Request = timeout(STREAM_PATIENCE, wire::read(&mut inbound.stream, MAX_REQUEST)).await??;
    let response = answer(shared, guest, request);
    if let Some(response) = response {
        send(&mut inbound.stream, &response).await?;
    }
    Ok(timeout(STREAM_PATIENCE, inbound.stream.close()).await??)
}

fn answer(shared: &Shared, guest: Guest, request: Request) -> Option<Response> {
    match request.kind.and_then(|kind| Kind::try_from(kind).ok()) {
        Some(Kind::Register) => {
            let asked = request.register.unwrap_or_default();
            let presented = Presented::check(&guest.peer, asked.signed_peer_record.as_deref(), asked.ttl);
            let outcome = shared.with(|hub| hub.register(now(), guest, asked.ns.as_deref(), presented));
            Some(Response::registered(outcome))
        }
        Some(Kind::Unregister) => {
            let asked = request.unregister.unwrap_or_default();
            shared.with(|hub| hub.unregister(guest, asked.ns.as_deref()));
            None
        }
        Some(Kind::Discover) => {
            let asked = request.discover.unwrap_or_default();
            Some(Response::discovered(shared.with(|hub| hub.discover(now(), guest, &asked))))
        }
        Some(Kind::RegisterResponse | Kind::DiscoverResponse) | None => {
            shared.report(Happened::Refused { peer: guest.peer, why: Status::InternalError });
            None
        }
    }
}
