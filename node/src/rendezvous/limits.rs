//! Everything that a stranger can make a rendezvous server hold, and how much of it.

use std::time::Duration;

/// Bounds of a server. The defaults suit one small machine: about 100 MiB when everything is full.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Registrations of one peer, in all namespaces. Default 32, as rust-libp2p.
    pub per_peer: usize,
    /// Registrations in one namespace. Default 256: more people than a mesh carries.
    pub per_namespace: usize,
    /// Registrations from one public IPv4 address or IPv6 /64. Default 1,024, so that a carrier's shared address works.
    /// Private and loopback addresses are not counted: there the operator knows everybody, or is behind one proxy.
    pub per_prefix: usize,
    /// Registrations in all. Default 10,000, as rust-libp2p. When full, the peer that holds most gives way to one that
    /// holds at least two fewer; among equals the newcomer is refused.
    pub total: usize,
    /// Shortest lifetime that may be asked for. Default 10 s.
    pub min_ttl: Duration,
    /// Longest lifetime granted. Default 2 h; more is granted this much, as a crashed peer stays listed for it.
    pub max_ttl: Duration,
    /// Open watches of one peer. Default 8: nobody sits in more rooms at once.
    pub watches_per_peer: usize,
    /// Open watches from one public IPv4 address or IPv6 /64. Default 1,024.
    pub watches_per_prefix: usize,
    /// Open watches in all. Default 10,000.
    pub watches_total: usize,
    /// News kept for a watcher that reads slowly. Default 64. Past it they are dropped and it gets a whole new list.
    pub pending: usize,
    /// Streams being served at once, in all. Default 16,384.
    pub streams_total: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_peer: 32,
            per_namespace: 256,
            per_prefix: 1024,
            total: 10_000,
            min_ttl: Duration::from_secs(10),
            max_ttl: Duration::from_secs(2 * 60 * 60),
            watches_per_peer: 8,
            watches_per_prefix: 1024,
            watches_total: 10_000,
            pending: 64,
            streams_total: 16_384,
        }
    }
}

/// Longest lifetime that may be asked for (libp2p/specs rendezvous: 72 h).
pub const MAX_TTL_ASKED: Duration = Duration::from_secs(72 * 60 * 60);

/// How long a registration outlives the stream that held it, when that ended without a goodbye: long enough to come
/// back over a changed network, short enough that the dead leave the list.
pub const STREAM_GRACE: Duration = Duration::from_secs(4);

/// A watch that says nothing for this long is dead. With [`STREAM_GRACE`] a killed process is gone within 15 s.
pub const WATCH_IDLE: Duration = Duration::from_secs(10);

/// Both sides of a watch say something this often.
pub const KEEP_ALIVE: Duration = Duration::from_secs(4);

/// How long a stream may take to deliver its first message, and a reader to take one of ours.
pub const STREAM_PATIENCE: Duration = Duration::from_secs(10);

/// Streams open at once on one connection.
pub const STREAMS_PER_CONNECTION: usize = 16;

/// New streams on one connection: this many at once …
pub const STREAM_BURST: u32 = 32;

/// … and this many a second for long.
pub const STREAMS_PER_SECOND: u32 = 8;

/// Messages on one watch: this many at once, beside the keep-alives …
pub const MESSAGE_BURST: u32 = 16;

/// … and this many a second for long.
pub const MESSAGES_PER_SECOND: u32 = 2;

/// Connections of one peer to a server.
pub const CONNECTIONS_PER_PEER: usize = 8;

/// Streams accepted and not yet taken up by the server; more are dropped, and their clients come back.
pub const ACCEPT_BACKLOG: usize = 1024;
