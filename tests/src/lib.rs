//! hallway's laboratory: calls under virtual time.
//!
//! An hour of call is a short test, and a failure repeats from its seed: media engines, sound cards, clocks and the links
//! between them are all driven by one event loop that skips from one event to the next. Nothing here sleeps.
//!
//! ```no_run
//! # use std::time::Duration; use hallway_tests::{Lab, LinkConfig};
//! let mut call = Lab::seeded(7).link(LinkConfig::wired().losing(100..103)).call("ana", "ben");
//! call.run_for(Duration::from_secs(4));
//! assert!(call.mouth_to_ear("ben").p95 < 60.0);
//! ```

// All of this crate is test code: where the laboratory cannot go on, the test fails.
#![allow(clippy::expect_used, clippy::panic)]

mod call;
mod ear;

pub use call::{Call, Lab, Recording};
pub use ear::{Delays, Heard};
pub use hallway::bench::link::LinkConfig;
pub use hallway::bench::profile::Profile;
