//! The datagram forwarder: a rendezvous server passes sealed datagrams between members that cannot reach each other.
//!
//! The server is blind: it checks that both are in the room, bounds what each may send, puts the sender's number in
//! place of the receivers', and passes the rest on as it came. Over QUIC the datagrams travel as such; over TCP inside
//! the control stream, in a queue that never holds old audio.
//!
//! ```text
//! server: wire (bytes) > core (who may send what to whom; pure) > server (streams, connections)
//! node:   link (one stream to one server for one room) > path (one member behind it)
//! ```

pub mod core;
pub mod link;
pub mod path;
pub mod queue;
pub mod server;
pub mod wire;

pub use core::{Limits, Stats};
pub use link::{Link, LinkConfig, LinkEvent};
pub use path::{Inlets, RelayedPath, Uplink};
pub use server::Forwarder;
