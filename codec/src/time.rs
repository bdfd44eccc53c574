//! Units of time and length. Every conversion between them lives here; each is exact or says how it rounds.
//!
//! Audio is counted at [`SAMPLE_RATE`]; the codec never reads a clock, so [`Micros`] only ever arrives as an argument.

use serde::{Deserialize, Serialize};

/// Samples per second and channel, everywhere in the engine (RFC 7587 section 4.1: Opus's RTP clock is 48 kHz as well).
pub const SAMPLE_RATE: u32 = 48_000;

/// Audio length in samples per channel at 48 kHz.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Samples(pub u32);

impl Samples {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// 2.5 ms: Opus's shortest frame, and the step in which a packet says how far back a copy lies.
    pub const MS_2_5: Self = Self(120);
    /// 5 ms: a frame on a clean path.
    pub const MS_5: Self = Self(240);
    /// 10 ms.
    pub const MS_10: Self = Self(480);
    /// 20 ms: a frame on a lossy path, and the longest that we accept.
    pub const MS_20: Self = Self(960);

    /// From whole milliseconds; saturates at 24.8 hours.
    #[must_use]
    pub const fn from_ms(ms: u32) -> Self {
        Self(ms.saturating_mul(48))
    }

    /// Nearest number of samples; saturates.
    #[must_use]
    pub const fn from_micros(us: u64) -> Self {
        let samples = us.saturating_mul(6).saturating_add(62) / 125;
        Self(if samples > u32::MAX as u64 { u32::MAX } else { samples as u32 })
    }

    /// Microseconds, rounded down.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0 as u64 * 125 / 6
    }

    /// Milliseconds as a number for people and JSON.
    #[must_use]
    pub fn as_ms(self) -> f32 {
        (f64::from(self.0) / 48.0) as f32
    }

    /// Number of interleaved values for `channels` channels.
    #[must_use]
    pub const fn interleaved(self, channels: usize) -> usize {
        (self.0 as usize).saturating_mul(channels)
    }

    /// The sum; saturates.
    #[must_use]
    pub const fn plus(self, more: Self) -> Self {
        Self(self.0.saturating_add(more.0))
    }

    /// The difference, or `None` where it would be negative.
    #[must_use]
    pub const fn checked_sub(self, less: Self) -> Option<Self> {
        match self.0.checked_sub(less.0) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }
}

/// Position on a sender's 48 kHz clock, in samples (RFC 7587 section 4.1). It wraps every 24.8 hours, so two positions are
/// compared by [`MediaTime::since`] and [`MediaTime::is_after`], never by `>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct MediaTime(pub u32);

impl MediaTime {
    /// The position `by` samples later.
    #[must_use]
    pub const fn plus(self, by: Samples) -> Self {
        Self(self.0.wrapping_add(by.0))
    }

    /// The position `by` samples earlier.
    #[must_use]
    pub const fn minus(self, by: Samples) -> Self {
        Self(self.0.wrapping_sub(by.0))
    }

    /// Signed distance from `earlier` to here, in samples; right while the two lie within 12.4 hours.
    #[must_use]
    pub const fn since(self, earlier: Self) -> i32 {
        self.0.wrapping_sub(earlier.0) as i32
    }

    /// The same where only the low 16 bits of one of the two are known; right while they lie within 0.68 s.
    #[must_use]
    pub const fn since_low(self, earlier: Self) -> i16 {
        (self.0.wrapping_sub(earlier.0) as u16).cast_signed()
    }

    /// Whether this position comes later than `other`.
    #[must_use]
    pub const fn is_after(self, other: Self) -> bool {
        self.since(other) > 0
    }
}

/// Microseconds of the local monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Micros(pub u64);

impl Micros {
    /// The moment `us` microseconds later; saturates.
    #[must_use]
    pub const fn plus(self, us: u64) -> Self {
        Self(self.0.saturating_add(us))
    }

    /// The moment `us` microseconds earlier; saturates at zero.
    #[must_use]
    pub const fn minus(self, us: u64) -> Self {
        Self(self.0.saturating_sub(us))
    }

    /// Microseconds since `earlier`, zero where `earlier` is in truth later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Signed microseconds from `other` to here; saturates.
    #[must_use]
    pub const fn signed_since(self, other: Self) -> i64 {
        let d = self.0 as i128 - other.0 as i128;
        if d > i64::MAX as i128 {
            i64::MAX
        } else if d < i64::MIN as i128 {
            i64::MIN
        } else {
            d as i64
        }
    }

    /// What goes on the wire: the low 32 bits (wraps every 71 minutes).
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self.0 as u32
    }
}

/// Expands 32 wire bits of a clock to that moment of the clock which lies nearest to `near`, a reading of the same clock in
/// microseconds. Right while the two lie within 35 minutes.
#[must_use]
pub const fn expand_micros(wire: u32, near: i64) -> i64 {
    near.wrapping_add(wire.wrapping_sub(near as u32) as i32 as i64)
}

/// How a peer's monotonic clock stands against ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffset {
    /// The peer's clock minus ours, in microseconds.
    pub offset_us: i64,
    /// Half-width of the interval in which the offset lies, in microseconds (asymmetry of the path cannot be seen).
    pub error_us: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_convert_both_ways_without_creeping() {
        for n in [0u32, 1, 119, 120, 960, 48_000, 48_001] {
            assert_eq!(Samples::from_micros(Samples(n).as_micros() + 10), Samples(n));
        }
        assert_eq!(Samples::MS_2_5.as_micros(), 2_500);
        assert_eq!(Samples::from_micros(u64::MAX), Samples(u32::MAX));
    }

    #[test]
    fn positions_keep_their_order_across_the_wrap() {
        let before = MediaTime(u32::MAX - 10);
        let after = before.plus(Samples::MS_5);
        assert!(after.is_after(before));
        assert_eq!(after.since(before), 240);
        assert_eq!(before.since(after), -240);
        assert_eq!(after.minus(Samples::MS_5), before);
    }

    #[test]
    fn wire_clocks_expand_to_the_nearest_moment() {
        let now = 3 * (1i64 << 32) + 5;
        for moment in [now - 2_000_000, now, now + 2_000_000] {
            assert_eq!(expand_micros(moment as u32, now), moment);
        }
        assert_eq!(expand_micros(u32::MAX, 0), -1, "a peer's clock may start before ours does");
    }
}
