//! hallway's media engine: Opus, redundancy, jitter buffer, concealment, drift, mixing.
//!
//! Sans-IO: no sockets, threads, clocks, devices or async in here. What happened is handed in by `handle_*`, what follows
//! is asked for by `poll_*` and `play_into`, and time is an argument, so an hour of call is a short test.
//!
//! The way of a voice: [`Sender`] (levels > opus > frame), then on the other side [`Receiver`] (frame > jitter >
//! opus|concealment > drift), then [`Mixer`].

pub mod concealment;
pub mod drift;
pub mod error;
pub mod frame;
pub mod jitter;
pub mod ledger;
pub mod levels;
pub mod mixer;
pub mod opus;
pub mod policy;
pub mod receiver;
pub mod report;
pub mod sender;
pub mod stretch;
pub mod time;

pub use self::opus::Application;
pub use error::Error;
pub use frame::MAX_PACKET_BYTES;
pub use jitter::JitterConfig;
pub use levels::{Dbov, Meter};
pub use mixer::{MAX_VOICES, Mixer};
pub use policy::{Delay, MAX_PEERS, Policy, Profile};
pub use receiver::{Arrival, Played, Receiver, ReceiverConfig, Sound};
pub use report::{PathStats, Percentiles, ReceiverStats, Report, Stages, Totals};
pub use sender::{Encoded, PAUSE_AFTER, PAUSE_EVERY, Sender, SenderConfig, SenderStats};
pub use time::{ClockOffset, MediaTime, Micros, SAMPLE_RATE, Samples, expand_micros};
