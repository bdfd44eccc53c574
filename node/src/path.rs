//! A path: one way that datagrams take to one peer, and which of several is the best.
//!
//! The media plane and the session know no QUIC: they send datagrams into a [`Path`]. Datagrams are deduplicated by
//! the session's and the sender keys' counters, so two paths may overlap while one replaces the other.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use hallway_codec::PathStats;
use libp2p::Multiaddr;

use crate::{
    events::PathKind,
    transport::{self, MediaController},
};

/// A better path must be better by this much, or the call would flap between two equal ones.
pub const SWITCH_MARGIN: Duration = Duration::from_millis(5);

/// A queue that stands this long says that the link is full.
pub const QUEUE_MEANS_FULL: Duration = Duration::from_millis(60);
/// Rate below which no voice can be sent, kb/s on the wire. A slower link is overdriven rather than given up.
pub const LEAST_KBPS: u32 = 32;

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
    /// Largest datagram that fits now, bytes. Changes with the path's MTU: ask, do not remember.
    fn max_size(&self) -> usize;
    /// Smoothed round trip.
    fn rtt(&self) -> Duration;
    /// Loss, round trip and rate as the path itself saw them.
    fn stats(&self) -> PathStats;
    /// Bytes of UDP payload sent and received since the path was made.
    fn bytes(&self) -> (u64, u64);
    /// Whether we dialled it. The other side's answer is the opposite one.
    fn is_dialer(&self) -> bool;
    /// Which rung of the ladder this is.
    fn kind(&self) -> PathKind;
    /// Where it leads.
    fn remote(&self) -> Multiaddr;
    /// Tells two paths apart, stable over the life of the path.
    fn id(&self) -> usize;
    /// False once nothing can be sent any more.
    fn is_open(&self) -> bool;
    /// Ends it.
    fn close(&self);
}

/// A direct QUIC connection.
pub struct QuicPath {
    connection: quinn::Connection,
    dialer: bool,
}

impl QuicPath {
    /// A path over an authenticated connection.
    pub fn new(connection: quinn::Connection, dialer: bool) -> Self {
        Self { connection, dialer }
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

    fn max_size(&self) -> usize {
        self.connection.max_datagram_size().unwrap_or(0)
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
        PathKind::Direct
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

    fn close(&self) {
        self.connection.close(0u32.into(), b"another path is better");
    }
}

/// The path in use towards one peer, shared with the media thread, which only ever reads it.
#[derive(Clone, Default)]
pub struct Route(Arc<ArcSwapOption<Arc<dyn Path>>>);

impl Route {
    /// Sends on the present path, if there is one.
    ///
    /// # Errors
    /// [`SendError::Closed`] while there is none.
    pub fn send(&self, datagram: Bytes) -> Result<(), SendError> {
        match &*self.0.load() {
            Some(path) => path.send(datagram),
            None => Err(SendError::Closed),
        }
    }

    /// The path in use.
    pub fn path(&self) -> Option<Arc<dyn Path>> {
        self.0.load_full().map(|path| (*path).clone())
    }

    /// Puts another path, or none, in its place. Takes effect with the next datagram.
    pub fn set(&self, path: Option<Arc<dyn Path>>) {
        self.0.store(path.map(Arc::new));
    }
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Route").field(&self.path().map(|path| path.remote())).finish()
    }
}

/// All paths to one peer. One is in use; the others stay for a while, then go.
#[derive(Default)]
pub struct Paths {
    open: Vec<Arc<dyn Path>>,
    route: Route,
}

/// Paths to one peer at a time. More than that is an attack or a bug: the newest is refused.
pub const MAX_PATHS: usize = 8;

impl Paths {
    /// What the media thread holds on to.
    pub fn route(&self) -> Route {
        self.route.clone()
    }

    /// Takes a new path in. False where there are [`MAX_PATHS`] already.
    pub fn add(&mut self, path: Arc<dyn Path>) -> bool {
        self.drop_closed();
        if self.open.len() >= MAX_PATHS {
            return false;
        }
        self.open.push(path);
        true
    }

    /// Forgets closed paths and puts the best of the rest in use. True where the route changed.
    ///
    /// `prefer` breaks ties the same way on both sides, so that both keep the same one of two equal connections.
    pub fn choose(&mut self, prefer: impl Fn(&dyn Path) -> bool) -> bool {
        self.drop_closed();
        let current = self.route.path().filter(|path| path.is_open());
        let best = self.open.iter().min_by_key(|path| {
            let bonus = if prefer(path.as_ref()) { Duration::ZERO } else { SWITCH_MARGIN };
            let stay = if current.as_ref().is_some_and(|c| c.id() == path.id()) {
                Duration::ZERO
            } else {
                SWITCH_MARGIN
            };
            (path.rtt() + bonus + stay, path.id())
        });
        let changed = match (&current, best) {
            (Some(current), Some(best)) => current.id() != best.id(),
            (None, None) => self.route.path().is_some(),
            _ => true,
        };
        if changed {
            self.route.set(best.cloned());
        }
        changed
    }

    /// Closes every path but the one in use.
    pub fn close_spare(&mut self) {
        let used = self.route.path().map(|path| path.id());
        for path in self.open.iter().filter(|path| Some(path.id()) != used) {
            path.close();
        }
        self.drop_closed();
    }

    /// Closes all of them.
    pub fn close_all(&mut self) {
        self.open.drain(..).for_each(|path| path.close());
        self.route.set(None);
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// True where no path is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn drop_closed(&mut self) {
        self.open.retain(|path| path.is_open());
    }
}
