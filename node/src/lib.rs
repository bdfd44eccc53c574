//! hallway: private voice rooms between terminals.
//!
//! The library behind the `hallway` program. A packet's way through it is told in `docs/architecture.md`; the media
//! engine itself is the crate `hallway-codec`.

pub mod audio;
pub mod bench;
pub mod bottleneck;
pub mod cli;
pub mod clock;
pub mod config;
pub mod controls;
pub mod ctl;
pub mod doctor;
pub mod events;
pub mod forward;
pub mod history;
pub mod identity;
pub mod invite;
pub mod ladder;
pub mod least;
pub mod links;
pub mod logs;
pub mod media;
pub mod meters;
pub mod names;
pub mod nat;
pub mod node;
pub mod path;
pub mod priority;
pub mod rendezvous;
pub mod room;
pub mod session;
pub mod telemetry;
pub mod text;
pub mod transport;
pub mod trust;
pub mod tui;
pub mod typed;
pub mod volumes;
pub mod words;
