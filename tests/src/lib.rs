//! hallway's laboratory.
//!
//! | part | what runs | time |
//! | --- | --- | --- |
//! | [`Lab`], [`Call`] | media engines, sound cards, clocks and links in one event loop | virtual: an hour is a short test |
//! | [`Hall`], [`Process`] | the real program, as processes on loopback | real |
//! | `netlab` | the real program in network namespaces behind real NATs (Linux, root) | real |
//!
//! In virtual time a failure repeats from its seed, and nothing sleeps:
//!
//! ```no_run
//! # use std::time::Duration; use hallway_tests::{Lab, LinkConfig};
//! let mut call = Lab::seeded(7).link(LinkConfig::wired().losing(100..103)).call("ana", "ben");
//! call.run_for(Duration::from_secs(4));
//! assert!(call.mouth_to_ear("ben").p95 < 60.0);
//! ```

// All of this crate is test code: where the laboratory cannot go on, the test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod binary;
mod call;
mod ear;
pub mod flood;
pub mod guest;
pub mod hall;
pub mod liar;
#[cfg(target_os = "linux")]
pub mod netlab;
pub mod process;
pub mod sound;
pub mod stranger;
pub mod tmux;

pub use binary::hallway as hallway_program;
pub use call::{Call, Lab, Recording};
pub use ear::{Delays, Heard};
pub use hall::{Hall, NodeArgs};
pub use hallway::bench::link::LinkConfig;
pub use hallway::bench::profile::Profile;
pub use process::Process;

/// Says why a test did nothing; `scripts/check` counts these lines.
pub fn skipped(why: &str) {
    println!("skipped: {why}");
}
