//! A forwarder at work: one task for each connection that brings datagrams, one for each control stream. What is passed
//! on is decided in [`core`](super::core).

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    collections::HashMap,
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{AsyncReadExt as _, StreamExt as _, stream};
use libp2p::PeerId;
use tokio::{
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use super::{
    core::{Core, Dropped, Limits, Relay, Session, SessionId, Stats},
    queue::{Item, Queue},
    wire::{
        Carrier, Empty, FORWARD, ForwardEvent, ForwardRequest, MAX_CONTROL, Member, Members, Opened, Refusal,
        down, is_voice, read_bind,
    },
};
use crate::{
    rendezvous::{
        limits::{KEEP_ALIVE, STREAM_PATIENCE, WATCH_IDLE},
        server::locked,
        store::{Prefix, Room},
        streams::Inbound,
        wire::{self as framing, ReadError},
    },
    transport::Authenticated,
};

/// How long members have to move away from a server that shuts down.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(3);
/// Who is in a room is told at most this often: everybody hears of everybody, and each may come and go as it likes.
pub const MEMBERS_PACE: Duration = Duration::from_millis(200);
/// A peer is told at most this often that it sends too much.
pub const REFUSALS_EVERY: Duration = Duration::from_secs(1);
/// Whoever opens a room may be registered in it a moment later only: it is looked for again after each of these, ms.
pub const LOOKS: [u64; 8] = [2, 4, 8, 16, 32, 64, 128, 256];
/// A datagram read from a connection that brings nothing but what cannot be forwarded is followed by this pause, so that
/// a stranger's flood costs little.
const STRANGER_PAUSE: Duration = Duration::from_millis(10);
/// So many datagrams in a row that could not be forwarded bring that pause.
const STRANGER_PATIENCE: u32 = 64;

/// What happened, for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// The first datagram of this member was passed on.
    Began(PeerId),
    /// A member that had something passed on left: datagrams and bytes.
    Ended(PeerId, u64, u64),
    /// A request was refused, or more was sent than is allowed.
    Refused(PeerId, Refusal),
}

/// Where a member's datagrams go.
#[derive(Clone)]
enum Outlet {
    Datagrams(quinn::Connection),
    Stream(Arc<Queue<ForwardEvent>>),
}

impl Outlet {
    fn send(&self, now: Instant, datagram: Bytes) -> bool {
        match self {
            // Where quinn's buffer is full, the oldest goes. A closed connection's stream ends its session.
            Self::Datagrams(connection) => connection.send_datagram(datagram).is_ok(),
            Self::Stream(queue) => {
                let voice = is_voice(&datagram, super::wire::DOWN_HEADER);
                queue.push_data(now, datagram, voice)
            }
        }
    }
}

/// A session's ends that others reach for.
#[derive(Clone)]
struct Ear {
    queue: Arc<Queue<ForwardEvent>>,
    news: Arc<Notify>,
}

struct Shared {
    core: Mutex<Core<Outlet>>,
    ears: Mutex<HashMap<SessionId, Ear>>,
    /// Sessions by peer, to tell one that it sends too much.
    told: Mutex<HashMap<PeerId, (Instant, SessionId)>>,
    draining: watch::Sender<bool>,
    all_gone: Notify,
    unsent: AtomicU64,
    happened: Box<dyn Fn(Happened) + Send + Sync>,
}

/// Passes datagrams on between members. Cheap to clone.
#[derive(Clone)]
pub struct Forwarder(Arc<Shared>);

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Forwarder").field(&self.stats()).finish()
    }
}

impl Forwarder {
    /// Under these limits. `happened` is called for what the operator may want to see; it must not block.
    pub fn new(limits: Limits, happened: impl Fn(Happened) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared {
            core: Mutex::new(Core::new(limits, rand::random(), Instant::now())),
            ears: Mutex::default(),
            told: Mutex::default(),
            draining: watch::Sender::new(false),
            all_gone: Notify::new(),
            unsent: AtomicU64::new(0),
            happened: Box::new(happened),
        }))
    }

    /// What it holds and did.
    pub fn stats(&self) -> Stats {
        let mut stats = locked(&self.0.core).stats();
        stats.unforwardable = stats.unforwardable.saturating_add(self.0.unsent.load(Ordering::Relaxed));
        stats
    }

    /// Takes the datagrams of a connection until it ends. Must be called inside a tokio runtime.
    pub fn serve_connection(&self, authenticated: Authenticated) {
        let forwarder = self.clone();
        let Authenticated { peer, connection, .. } = authenticated;
        tokio::spawn(async move {
            let (mut to, mut useless) = (Vec::new(), 0u32);
            while let Ok(datagram) = connection.read_datagram().await {
                let used = match datagram.first() {
                    Some(&FORWARD) => forwarder.forward(&peer, &datagram, &mut to),
                    _ => forwarder.bind(&peer, &datagram, &connection),
                };
                useless = if used { 0 } else { useless.saturating_add(1) };
                if useless >= STRANGER_PATIENCE {
                    tokio::time::sleep(STRANGER_PAUSE).await;
                }
            }
        });
    }

    fn bind(&self, peer: &PeerId, datagram: &[u8], connection: &quinn::Connection) -> bool {
        let Some(handle) = read_bind(datagram) else { return false };
        locked(&self.0.core).bind(peer, handle, Outlet::Datagrams(connection.clone()))
    }

    /// Passes one datagram on. `to` is lent, to be used again. False where that is of no use.
    fn forward(&self, peer: &PeerId, datagram: &Bytes, to: &mut Vec<Outlet>) -> bool {
        to.clear();
        let now = Instant::now();
        let outcome = locked(&self.0.core).forward(now, peer, datagram, to);
        match outcome {
            Ok(Relay { handle, sender, payload_at, first }) => {
                let payload = datagram.get(payload_at..).unwrap_or_default();
                let down = down(handle, sender, payload);
                for outlet in to.drain(..) {
                    if !outlet.send(now, down.clone()) {
                        self.0.unsent.fetch_add(1, Ordering::Relaxed);
                    }
                }
                if first {
                    (self.0.happened)(Happened::Began(*peer));
                }
                true
            }
            Err(Dropped::Rate) => {
                self.tell_rate(now, peer);
                false
            }
            Err(Dropped::Malformed | Dropped::NotAMember | Dropped::Nobody) => false,
        }
    }

    /// Tells a peer, now and then, that it sends too much.
    fn tell_rate(&self, now: Instant, peer: &PeerId) {
        let session = match locked(&self.0.told).get_mut(peer) {
            Some((at, session)) if now.saturating_duration_since(*at) >= REFUSALS_EVERY => {
                *at = now;
                *session
            }
            _ => return,
        };
        if let Some(ear) = locked(&self.0.ears).get(&session) {
            // One that does not read will not hear it.
            let _ = ear.queue.push_message(ForwardEvent::refusal(Refusal::Rate));
        }
        (self.0.happened)(Happened::Refused(*peer, Refusal::Rate));
    }

    /// Serves one control stream. `membership` gives the room that a namespace stands for where the peer is registered in
    /// it; `still` asks again later.
    pub(crate) async fn serve_stream(
        &self,
        mut inbound: Inbound,
        membership: impl Fn(&str) -> Option<Room>,
        still: impl Fn(Room) -> bool,
    ) -> Result<(), StreamError> {
        let peer = inbound.peer;
        let first: ForwardRequest =
            timeout(STREAM_PATIENCE, framing::read(&mut inbound.stream, MAX_CONTROL)).await??;
        // Who comes in a hurry asks for both at once, on two streams: what registers it may be a moment behind.
        let mut opened = self.open(peer, Prefix::of(&inbound.addr.borrow()), &first, &membership);
        for after in LOOKS.map(Duration::from_millis) {
            if !matches!(opened, Err(Refusal::NotAMember)) {
                break;
            }
            sleep(after).await;
            opened = self.open(peer, Prefix::of(&inbound.addr.borrow()), &first, &membership);
        }
        let (session, room, queue) = match opened {
            Ok(opened) => opened,
            Err(why) => {
                (self.0.happened)(Happened::Refused(peer, why));
                let answer = ForwardEvent::refusal(why);
                timeout(STREAM_PATIENCE, framing::write(&mut inbound.stream, &answer)).await??;
                return Ok(
                    timeout(STREAM_PATIENCE, futures::AsyncWriteExt::close(&mut inbound.stream)).await??
                );
            }
        };
        let ear = Ear { queue: queue.clone(), news: Arc::new(Notify::new()) };
        locked(&self.0.ears).insert(session.id, ear.clone());
        locked(&self.0.told).insert(peer, (Instant::now(), session.id));
        let serving = Serving { forwarder: self, session, peer };
        self.wake();
        // Somebody else's wake may have taken this session's news before it had an ear.
        ear.news.notify_one();
        let Inbound { stream, permit: _permit, .. } = inbound;
        let (reader, mut writer) = stream.split();
        let rate_kbps = locked(&self.0.core).sender_kbps();
        let opened = Opened { handle: session.handle, index: session.index.into(), rate_kbps };
        queue.push_message(ForwardEvent { opened: Some(opened), ..ForwardEvent::default() });
        let reading = serving.read(reader);
        let telling = serving.tell(&ear, room, still);
        let writing = async {
            while let Some(item) = queue.next().await {
                let event = match item {
                    Item::Message(event) => event,
                    Item::Data(data) => ForwardEvent { data: Some(data), ..ForwardEvent::default() },
                };
                timeout(STREAM_PATIENCE, framing::write(&mut writer, &event)).await??;
            }
            Ok(())
        };
        tokio::select! {
            ended = reading => ended,
            ended = telling => ended,
            ended = writing => ended,
        }
    }

    fn open(
        &self,
        peer: PeerId,
        prefix: Prefix,
        first: &ForwardRequest,
        membership: &impl Fn(&str) -> Option<Room>,
    ) -> Result<(Session, Room, Arc<Queue<ForwardEvent>>), Refusal> {
        let open = first.open.as_ref().ok_or(Refusal::Malformed)?;
        let carrier = Carrier::try_from(open.carrier).map_err(|_| Refusal::Malformed)?;
        let room = membership(&open.namespace).ok_or(Refusal::NotAMember)?;
        let queue = Arc::new(Queue::default());
        let to = (carrier == Carrier::Stream).then(|| Outlet::Stream(queue.clone()));
        let session = locked(&self.0.core).open(Instant::now(), peer, prefix, room, to)?;
        Ok((session, room, queue))
    }

    fn wake(&self) {
        let woken = locked(&self.0.core).take_woken();
        let ears = locked(&self.0.ears);
        woken.iter().filter_map(|id| ears.get(id)).for_each(|ear| ear.news.notify_one());
    }

    /// Tells every member to move away and waits until they have, at most [`DRAIN_PATIENCE`]. The Swarm must go on being
    /// polled until this returns.
    pub async fn drain(&self) {
        locked(&self.0.core).drain();
        self.0.draining.send_replace(true);
        let gone = async {
            loop {
                let notified = self.0.all_gone.notified();
                if locked(&self.0.ears).is_empty() {
                    return;
                }
                notified.await;
            }
        };
        if timeout(DRAIN_PATIENCE, gone).await.is_err() {
            tracing::info!(left = locked(&self.0.ears).len(), "not every member moved away in time");
        }
    }
}

/// Why a control stream was given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("writing: {0}")]
    Write(#[from] io::Error),
    #[error("nothing came, or nothing was taken, for too long")]
    Patience(#[from] tokio::time::error::Elapsed),
    #[error("the peer does not read what it is told")]
    Deaf,
}

/// A session while its stream lives; its end, however it comes, is told to the core.
struct Serving<'a> {
    forwarder: &'a Forwarder,
    session: Session,
    peer: PeerId,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let Shared { core, ears, told, all_gone, happened, .. } = &*self.forwarder.0;
        let totals = locked(core).close(self.session.id);
        locked(ears).remove(&self.session.id);
        {
            let mut told = locked(told);
            if told.get(&self.peer).is_some_and(|(_, session)| *session == self.session.id) {
                told.remove(&self.peer);
            }
        }
        if let Some((peer, datagrams, bytes)) = totals.filter(|(_, datagrams, _)| *datagrams > 0) {
            happened(Happened::Ended(peer, datagrams, bytes));
        }
        self.forwarder.wake();
        all_gone.notify_one();
    }
}

impl Serving<'_> {
    /// What the node says, until it leaves or falls silent.
    async fn read(&self, reader: impl futures::AsyncRead + Unpin) -> Result<(), StreamError> {
        let mut requests = pin!(stream::unfold(reader, |mut reader| async {
            let read =
                timeout(WATCH_IDLE, framing::read::<ForwardRequest, _>(&mut reader, MAX_CONTROL)).await;
            Some((read, reader))
        }));
        let mut to = Vec::new();
        while let Some(request) = requests.next().await {
            let request = match request? {
                Ok(request) => request,
                Err(ReadError::Ended) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if request.leave.is_some() {
                return Ok(());
            }
            if let Some(data) = &request.data {
                self.forwarder.forward(&self.peer, data, &mut to);
            }
        }
        Ok(())
    }

    /// Who is in the room, as it changes; that we are alive; that we shut down.
    async fn tell(&self, ear: &Ear, room: Room, still: impl Fn(Room) -> bool) -> Result<(), StreamError> {
        let say =
            |event: ForwardEvent| if ear.queue.push_message(event) { Ok(()) } else { Err(StreamError::Deaf) };
        let mut draining = self.forwarder.0.draining.subscribe();
        let mut told_to_leave = false;
        // When the list is told, and when it was last: members come and go as fast as they like.
        let (mut due, mut told): (Option<tokio::time::Instant>, Option<tokio::time::Instant>) = (None, None);
        let mut keep_alive = interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        keep_alive.tick().await;
        loop {
            tokio::select! {
                () = ear.news.notified() => {
                    if !locked(&self.forwarder.0.core).is_open(self.session.id) {
                        return Ok(());
                    }
                    let now = tokio::time::Instant::now();
                    due = due.or_else(|| Some(told.and_then(|told| told.checked_add(MEMBERS_PACE)).map_or(now, |at| now.max(at))));
                }
                () = sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                    (due, told) = (None, Some(tokio::time::Instant::now()));
                    let members = locked(&self.forwarder.0.core).members(self.session.handle);
                    let members = members
                        .into_iter()
                        .map(|(index, peer)| Member { index: index.into(), peer: peer.to_bytes() })
                        .collect();
                    say(ForwardEvent { members: Some(Members { members }), ..ForwardEvent::default() })?;
                }
                draining = draining.wait_for(|draining| *draining), if !told_to_leave => {
                    // An error means that the forwarder is gone, and this with it.
                    drop(draining);
                    told_to_leave = true;
                    let left = u32::try_from(DRAIN_PATIENCE.as_millis()).unwrap_or(u32::MAX);
                    say(ForwardEvent { draining_ms: Some(left), ..ForwardEvent::default() })?;
                }
                _ = keep_alive.tick() => {
                    if !still(room) {
                        say(ForwardEvent::refusal(Refusal::NotAMember))?;
                        ear.queue.close();
                        continue;
                    }
                    say(ForwardEvent { keep_alive: Some(Empty {}), ..ForwardEvent::default() })?;
                }
            }
        }
    }
}
