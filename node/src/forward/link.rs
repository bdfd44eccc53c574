//! A node's side of one forwarder and one room: opened, kept, and opened again when lost.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{AsyncReadExt as _, StreamExt as _, stream};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    queue::{Item, Queue},
    wire::{self, Empty, FORWARD_PROTOCOL, ForwardEvent, ForwardRequest, MAX_CONTROL, Open, Refusal},
};
use crate::rendezvous::{
    Opener, Target,
    backoff::{self, Backoff},
    client::OPEN_PATIENCE,
    limits::{KEEP_ALIVE, STREAM_PATIENCE, WATCH_IDLE},
    streams::Opened,
    wire as framing,
};

/// News of one link that may wait for the node loop. Past it the stream is not read.
pub const MAX_NEWS: usize = 64;
/// Members of a room at one server that are looked at: as many as have numbers.
pub const MAX_LISTED: usize = 255;
/// A server with another idea of us is asked again after this at the earliest.
const REFUSED_LEAST: Duration = Duration::from_secs(2);
/// A room that was tried or open for longer than this is opened again without having to wait for earlier failures.
const LASTED: Duration = Duration::from_secs(10);

/// What a node should know of a link. `run` tells one opening of the room from the next.
pub enum LinkEvent {
    /// The room is open.
    Up {
        /// Which opening.
        run: u64,
        /// The server.
        server: PeerId,
        /// Where it is reached.
        addr: Multiaddr,
        /// The room in datagrams.
        handle: u32,
        /// Where datagrams travel in the stream, instead of as QUIC datagrams.
        stream: Option<Arc<Queue<ForwardRequest>>>,
    },
    /// Everybody in it.
    Members {
        /// Which opening.
        run: u64,
        /// Number and identity, as the server says.
        members: Vec<(u8, PeerId)>,
    },
    /// The server ends soon.
    Draining {
        /// Which opening.
        run: u64,
    },
    /// The server refuses something.
    Refused {
        /// Why.
        why: Refusal,
    },
    /// It is closed, and tried again.
    Down {
        /// Which opening.
        run: u64,
    },
}

/// What a link needs.
pub struct LinkConfig {
    /// Tells this link's news from those of others.
    pub key: usize,
    /// Where the news of all links go.
    pub news: mpsc::Sender<(usize, LinkEvent)>,
    /// Takes datagrams that come in the stream, from which server, in the task of the link: it must not block.
    pub data: Box<dyn Fn(PeerId, Bytes) + Send + Sync>,
    /// The server.
    pub target: Target,
    /// The room.
    pub namespace: String,
    /// Opens streams.
    pub opener: Opener,
    /// Spreads retries; best random.
    pub seed: u64,
}

/// A link at work. Dropping it ends it.
pub struct Link {
    task: JoinHandle<()>,
    again: Arc<Notify>,
    leave: Arc<Notify>,
}

impl Link {
    /// Starts. Must be called inside a tokio runtime.
    pub fn spawn(config: LinkConfig) -> Self {
        let (again, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let work = Work { config, leave: leave.clone() };
        let task = tokio::spawn(work.run(again.clone()));
        Self { task, again, leave }
    }

    /// Do not wait for the next try: something changed.
    pub fn retry_now(&self) {
        self.again.notify_one();
    }

    /// Nobody uses this opening any more: say goodbye, and open anew later.
    pub fn leave(&self) {
        self.leave.notify_one();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Numbers of openings.
static NEXT_RUN: AtomicU64 = AtomicU64::new(1);

struct Work {
    config: LinkConfig,
    leave: Arc<Notify>,
}

/// Why an opening ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Broken(String),
    #[error("refused: {}", .0.in_words())]
    Refused(Refusal),
    #[error("left")]
    Left,
    #[error("nobody listens any more")]
    Gone,
}

impl Work {
    async fn run(self, again: Arc<Notify>) {
        let mut backoff = Backoff::new(self.config.seed);
        loop {
            let run = NEXT_RUN.fetch_add(1, Ordering::Relaxed);
            let began = tokio::time::Instant::now();
            let Err(end) = self.once(run).await;
            tracing::debug!(%end, "forwarding ended");
            if self.tell(LinkEvent::Down { run }).await.is_err() {
                return;
            }
            if began.elapsed() > LASTED {
                backoff.reset();
            }
            // Never more than two tries a second, whoever asks.
            let refused = matches!(end, End::Refused(_) | End::Left);
            let least = if refused { REFUSED_LEAST } else { backoff::SHORTEST };
            let wait = backoff.next();
            sleep(least).await;
            tokio::select! {
                () = sleep(wait.saturating_sub(least)) => {}
                () = again.notified() => {}
            }
        }
    }

    async fn tell(&self, event: LinkEvent) -> Result<(), End> {
        self.config.news.send((self.config.key, event)).await.map_err(|_| End::Gone)
    }

    async fn once(&self, run: u64) -> Result<Infallible, End> {
        let broken = |error: &dyn std::fmt::Display| End::Broken(error.to_string());
        let opening = self.config.opener.open(&self.config.target, FORWARD_PROTOCOL);
        let Opened { peer: server, mut stream, addr } = match timeout(OPEN_PATIENCE, opening).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return Err(broken(&error)),
            Err(elapsed) => return Err(broken(&elapsed)),
        };
        let addr: Multiaddr = addr.borrow().clone();
        let over_tcp = addr.iter().any(|part| matches!(part, Protocol::Tcp(_)));
        let carrier = if over_tcp { wire::Carrier::Stream } else { wire::Carrier::Datagrams };
        let open = Open { namespace: self.config.namespace.clone(), carrier: carrier.into() };
        let open = ForwardRequest { open: Some(open), ..ForwardRequest::default() };
        framing::write(&mut stream, &open).await.map_err(|e| broken(&e))?;

        let queue = Arc::new(Queue::<ForwardRequest>::default());
        let (reader, mut writer) = stream.split();
        let mut events = pin!(stream::unfold(reader, |mut reader| async {
            let read = timeout(WATCH_IDLE, framing::read::<ForwardEvent, _>(&mut reader, MAX_CONTROL)).await;
            Some((read, reader))
        }));
        let writing = async {
            while let Some(item) = queue.next().await {
                let request = match item {
                    Item::Message(request) => request,
                    Item::Data(data) => ForwardRequest { data: Some(data), ..ForwardRequest::default() },
                };
                timeout(STREAM_PATIENCE, framing::write(&mut writer, &request))
                    .await
                    .map_err(|e| broken(&e))?
                    .map_err(|e| broken(&e))?;
            }
            Err::<Infallible, End>(End::Left)
        };
        let mut writing = pin!(writing);
        let mut keep_alive = interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        keep_alive.tick().await;
        let mut opened = false;
        let end = loop {
            tokio::select! {
                end = &mut writing => break end,
                () = self.leave.notified() => {
                    queue.push_message(ForwardRequest { leave: Some(Empty {}), ..ForwardRequest::default() });
                    queue.close();
                }
                event = events.next() => {
                    let event = match event {
                        Some(Ok(Ok(event))) => event,
                        Some(Ok(Err(error))) => break Err(broken(&error)),
                        Some(Err(_)) | None => break Err(End::Broken("the server fell silent".into())),
                    };
                    if event.opened.is_some() && std::mem::replace(&mut opened, true) {
                        break Err(End::Broken("the server opened the room twice".into()));
                    }
                    if let Err(end) = self.heard(run, server, &addr, &queue, event).await {
                        break Err(end);
                    }
                }
                _ = keep_alive.tick() => {
                    queue.push_message(ForwardRequest { keep_alive: Some(Empty {}), ..ForwardRequest::default() });
                }
            }
        };
        queue.close();
        end
    }

    async fn heard(
        &self,
        run: u64,
        server: PeerId,
        addr: &Multiaddr,
        queue: &Arc<Queue<ForwardRequest>>,
        event: ForwardEvent,
    ) -> Result<(), End> {
        if let Some(datagram) = event.data {
            (self.config.data)(server, datagram);
        }
        if let Some(opened) = event.opened {
            let over_tcp = addr.iter().any(|part| matches!(part, Protocol::Tcp(_)));
            let (addr, handle) = (addr.clone(), opened.handle);
            let stream = over_tcp.then(|| queue.clone());
            self.tell(LinkEvent::Up { run, server, addr, handle, stream }).await?;
        }
        if let Some(members) = event.members {
            let known = |member: wire::Member| {
                Some((u8::try_from(member.index).ok()?, PeerId::from_bytes(&member.peer).ok()?))
            };
            let members = members.members.into_iter().filter_map(known).take(MAX_LISTED).collect();
            self.tell(LinkEvent::Members { run, members }).await?;
        }
        if event.draining_ms.is_some() {
            self.tell(LinkEvent::Draining { run }).await?;
        }
        if let Some(why) = event.refused {
            let why = Refusal::try_from(why).unwrap_or(Refusal::Malformed);
            self.tell(LinkEvent::Refused { why }).await?;
            if why != Refusal::Rate {
                return Err(End::Refused(why));
            }
        }
        Ok(())
    }
}
