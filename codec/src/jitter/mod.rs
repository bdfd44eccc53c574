//! When packets come and when they must be played.
//!
//! The measure of everything here is *availability*: how many samples had been pulled when a frame came, minus the
//! frame's position. A frame whose position is `m`, played at an offset `O` (sample `m` at pull count `m + O`), is in
//! time exactly if `O` is no less than its availability. `packets` holds what waits, `sequence` counts what is missing,
//! `target` says which offset the path needs, `decision` how the present one is moved there.

pub mod decision;
pub mod packets;
pub mod sequence;
pub mod target;

use crate::{policy::Delay, time::Samples};

/// Bounds of the delay kept in hand, beyond the fastest packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JitterConfig {
    /// Least delay kept. Default 0: the path decides. More saves a frame where stalls come out of the blue.
    pub floor: Samples,
    /// Most delay tolerated. Default 200 ms. Above it audio is lost instead: better a gap than a lag.
    pub ceiling: Samples,
    /// Delay at the start, before anything is known. Default 10 ms. Less risks a stutter in the first second.
    pub start: Samples,
    /// Added to what the arrivals ask for. Default 0.5 ms. Zero lets every new record in lateness be heard.
    pub margin: Samples,
    /// How much delay is taken for how much clarity. Default balanced.
    pub delay: Delay,
}

impl Default for JitterConfig {
    fn default() -> Self {
        Self {
            floor: Samples::ZERO,
            ceiling: Samples::from_ms(200),
            start: Samples::MS_10,
            margin: Samples(24),
            delay: Delay::Balanced,
        }
    }
}

impl JitterConfig {
    /// A cable: starts as low as it may.
    #[must_use]
    pub fn wired() -> Self {
        Self { ceiling: Samples::from_ms(150), start: Samples::MS_5, margin: Samples(24), ..Self::default() }
    }

    /// Wi-Fi: stalls of some ms are daily bread.
    #[must_use]
    pub fn wifi() -> Self {
        Self { floor: Samples::MS_5, start: Samples::MS_20, margin: Samples::MS_2_5, ..Self::default() }
    }

    /// Mobile networks: much jitter, seldom a calm second.
    #[must_use]
    pub fn mobile() -> Self {
        Self {
            floor: Samples::MS_10,
            ceiling: Samples::from_ms(400),
            start: Samples::from_ms(40),
            margin: Samples::MS_5,
            ..Self::default()
        }
    }
}
