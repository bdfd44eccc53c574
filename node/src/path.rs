//! A path: one way that datagrams take to one peer. Which of several is used, [`crate::ladder`] decides.
//!
//! The media plane and the session know no QUIC: they send datagrams into a [`Path`]. Datagrams are deduplicated by
//! the session's and the sender keys' counters, so two paths may overlap while one replaces the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use hallway_codec::PathStats;
use libp2p::Multiaddr;

use crate::{
    events::PathKind,
    forward::Uplink,
    session::proof::{PROOF, Proof, Proofs, with_proofs},
    transport::{self, MediaController},
};

/// A queue that stands this long says that the link is full.
pub const QUEUE_MEANS_FULL: Duration = Duration::from_millis(60);
/// Rate below which no voice can be sent, kb/s on the wire. A slower link is overdriven rather than given up.
pub const LEAST_KBPS: u32 = 32;
/// A connection with so long a round trip when it is new leads over a thin link, more likely than not: a handshake's full
/// packets take 400 ms there and back at 64 kb/s. No more than [`BEGIN_KBPS`] is sent until more is known to go through.
pub const THIN_RTT: Duration = Duration::from_millis(300);
/// See [`THIN_RTT`].
pub const BEGIN_KBPS: u32 = 46;
/// A voice of no more than this goes over a thin link, in kb/s.
pub const THIN_KBPS: u32 = 54;

/// A datagram was not sent. Voice is not sent again: the next frame is on its way.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SendError {
    /// The path is gone; another one takes over or the peer reconnects.
    #[error("the path is closed")]
    Closed,
    /// The path cannot carry a datagram of this size now.
    #[error("{len} bytes do not fit into a datagram of this path")]
    TooLarge {
        /// What was to be sent.
        len: usize,
    },
}

/// One way to one peer.
pub trait Path: Send + Sync {
    /// Queues one datagram; never blocks. Where the queue is full the oldest one goes.
    ///
    /// # Errors
    /// See [`SendError`].
    fn send(&self, datagram: Bytes) -> Result<(), SendError>;
    /// Smoothed round trip.
    fn rtt(&self) -> Duration;
    /// Loss, round trip and rate as the path itself saw them.
    fn stats(&self) -> PathStats;
    /// Bytes of UDP payload sent and received since the path was made.
    fn bytes(&self) -> (u64, u64);
    /// Whether we dialled it. The other side's answer is the opposite one.
    fn is_dialer(&self) -> bool;
    /// Round trip over our own connection: to the peer, or to the server that passes things on. Zero where none is known.
    fn leg_rtt(&self) -> Duration {
        self.rtt()
    }
    /// Which rung of the ladder this is.
    fn kind(&self) -> PathKind;
    /// Where it leads.
    fn remote(&self) -> Multiaddr;
    /// Tells two paths apart, stable over the life of the path.
    fn id(&self) -> usize;
    /// False once nothing can be sent any more.
    fn is_open(&self) -> bool;
    /// Ends it, and says why to the other side.
    fn close(&self, why: CloseReason);
    /// It works but will end soon: its server said so. Anything else is better.
    fn is_leaving(&self) -> bool {
        false
    }
    /// It turned out that it goes through a hole in the NATs of both sides.
    fn mark_punched(&self) {}
    /// The server's room that it leads through, and the peer's number there: one upload may serve several members.
    fn relay(&self) -> Option<(&Arc<Uplink>, u8)> {
        None
    }
    /// A datagram of this size was sent for it by its [`Path::relay`].
    fn counted(&self, _bytes: usize) {}
    /// An end-to-end round trip measured on it. A path that measures its own ignores this.
    fn measured(&self, _rtt: Duration) {}
}

/// Why a path is closed. The other side is told, and may log it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// Another path to the same peer is better, and stays.
    Duplicate,
    /// Nobody there shares our room.
    Stranger,
    /// We leave, or said goodbye to this peer.
    Goodbye,
    /// Nothing came on it for too long.
    Silent,
}

impl CloseReason {
    /// What the other side reads.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Duplicate => "another path is better",
            Self::Stranger => "not in this room",
            Self::Goodbye => "goodbye",
            Self::Silent => "silent for too long",
        }
    }
}

/// The rungs of the ladder, best first: a lower one is always preferred, whatever its round trip.
pub fn rung(kind: PathKind) -> u8 {
    match kind {
        PathKind::Direct | PathKind::Punched => 0,
        PathKind::Relayed => 1,
        PathKind::Tcp => 2,
    }
}

/// A direct QUIC connection.
pub struct QuicPath {
    connection: quinn::Connection,
    dialer: bool,
    punched: AtomicBool,
}

impl QuicPath {
    /// A path over an authenticated connection.
    pub fn new(connection: quinn::Connection, dialer: bool) -> Self {
        Self { connection, dialer, punched: AtomicBool::new(false) }
    }
}

impl Path for QuicPath {
    fn send(&self, datagram: Bytes) -> Result<(), SendError> {
        let len = datagram.len();
        self.connection.send_datagram(datagram).map_err(|error| match error {
            quinn::SendDatagramError::TooLarge => SendError::TooLarge { len },
            _ => SendError::Closed,
        })
    }

    fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    fn stats(&self) -> PathStats {
        let stats = self.connection.stats();
        let controller = self.connection.congestion_state().into_any().downcast::<MediaController>().ok();
        let metrics = controller.map(|controller| controller.path_metrics());
        // While a queue stands, less than what gets through is what may be sent; else the path sets no limit.
        let congested = metrics.filter(|m| m.queue_delay > QUEUE_MEANS_FULL);
        PathStats {
            rtt_ms: Some(stats.path.rtt.as_secs_f32() * 1000.0),
            sent: stats.path.sent_packets,
            lost: stats.path.lost_packets,
            max_kbps: congested.map(|m| {
                u32::try_from(m.delivery_rate_bps * 85 / 100_000).unwrap_or(u32::MAX).max(LEAST_KBPS)
            }),
            reliable: false,
            presumed: false,
        }
    }

    fn bytes(&self) -> (u64, u64) {
        let stats = self.connection.stats();
        (stats.udp_tx.bytes, stats.udp_rx.bytes)
    }

    fn is_dialer(&self) -> bool {
        self.dialer
    }

    fn kind(&self) -> PathKind {
        if self.punched.load(Ordering::Relaxed) { PathKind::Punched } else { PathKind::Direct }
    }

    fn remote(&self) -> Multiaddr {
        transport::to_multiaddr(self.connection.remote_address())
    }

    fn id(&self) -> usize {
        self.connection.stable_id()
    }

    fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    fn mark_punched(&self) {
        self.punched.store(true, Ordering::Relaxed);
    }

    fn close(&self, why: CloseReason) {
        self.connection.close(0u32.into(), why.in_words().as_bytes());
    }
}

/// The path in use towards one peer, shared with the media thread, which only ever reads it.
#[derive(Clone, Default)]
pub struct Route(Arc<ArcSwapOption<Used>>);

/// What a route leads over.
struct Used {
    path: Arc<dyn Path>,
    /// While one path takes over from another, both are sent on: receivers take the first of two equal datagrams.
    also: Option<Arc<dyn Path>>,
}

impl Route {
    /// Sends on the present path, if there is one.
    ///
    /// # Errors
    /// [`SendError::Closed`] while there is none.
    pub fn send(&self, datagram: Bytes) -> Result<(), SendError> {
        match &*self.0.load() {
            Some(used) => match &used.also {
                Some(also) => {
                    let first = used.path.send(datagram.clone());
                    also.send(datagram).or(first)
                }
                None => used.path.send(datagram),
            },
            None => Err(SendError::Closed),
        }
    }

    /// Sends voice on the present path; where that leads through a server, `fan` does it, once for all members behind it,
    /// with a proof for each.
    ///
    /// # Errors
    /// As [`Route::send`].
    pub fn send_by(&self, fan: &mut Fan, proofs: &Proofs, sealed: &Bytes) -> Result<(), SendError> {
        let Some(used) = &*self.0.load() else { return Err(SendError::Closed) };
        let first = fan.send(&used.path, proofs, sealed);
        match &used.also {
            Some(also) => fan.send(also, proofs, sealed).or(first),
            None => first,
        }
    }

    /// The path in use.
    pub fn path(&self) -> Option<Arc<dyn Path>> {
        self.0.load().as_ref().map(|used| used.path.clone())
    }

    /// Puts another path, or none, in its place. Takes effect with the next datagram.
    pub fn set(&self, path: Option<Arc<dyn Path>>, also: Option<Arc<dyn Path>>) {
        self.0.store(path.map(|path| Arc::new(Used { path, also })));
    }
}

/// A member's number in a server's room, and the proof for it.
type Receiver = (u8, Proof);

/// Gathers the members behind servers to whom one datagram goes, so that each server gets it once.
#[derive(Default)]
pub struct Fan {
    /// By room of a server, kept from one datagram to the next.
    rooms: Vec<(Arc<Uplink>, Vec<Receiver>)>,
    indices: Vec<u8>,
}

impl Fan {
    fn send(&mut self, path: &Arc<dyn Path>, proofs: &Proofs, sealed: &Bytes) -> Result<(), SendError> {
        let Some((uplink, index)) = path.relay() else { return path.send(sealed.clone()) };
        if !uplink.is_open() {
            return Err(SendError::Closed);
        }
        path.counted(sealed.len() + PROOF);
        let member = (index, proofs.prove(sealed));
        match self.rooms.iter_mut().find(|(known, _)| Arc::ptr_eq(known, uplink)) {
            Some((_, members)) => members.push(member),
            None => self.rooms.push((uplink.clone(), vec![member])),
        }
        Ok(())
    }

    /// Sends the datagram that was gathered for.
    pub fn flush(&mut self, sealed: &Bytes) {
        self.rooms.retain_mut(|(uplink, members)| {
            if members.is_empty() {
                return false;
            }
            members.sort_unstable();
            members.dedup_by_key(|(index, _)| *index);
            self.indices.clear();
            self.indices.extend(members.iter().map(|(index, _)| index));
            let datagram = with_proofs(sealed, members.iter().map(|(_, proof)| *proof));
            if let Err(error) = uplink.send(&self.indices, &datagram) {
                tracing::trace!(%error, "voice not sent through a server");
            }
            members.clear();
            true
        });
    }
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Route").field(&self.path().map(|path| path.remote())).finish()
    }
}
