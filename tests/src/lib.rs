//! What hallway's end-to-end tests stand on: the real program as processes of this machine, on loopback.

// A helper that cannot go on is a test that failed: it says why and ends the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod binary;
pub mod hall;
pub mod process;
pub mod sound;
pub mod stranger;

pub use hall::{Hall, NodeArgs};
pub use process::Process;

/// Says why a test did nothing; `scripts/check` counts these lines.
pub fn skipped(why: &str) {
    println!("skipped: {why}");
}
