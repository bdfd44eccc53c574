//! The one clock of the sound edge: CLOCK_MONOTONIC in nanoseconds, and exact conversions to 48 kHz frames.

use std::time::Duration;

/// Frames (samples per channel) in a second on every card that hallway sees; other rates are converted at the edge.
pub const RATE_HZ: u32 = 48_000;

pub(crate) const NS_PER_SECOND: u64 = 1_000_000_000;
pub(crate) const NS_PER_MS: u64 = 1_000_000;
const RATE: u64 = RATE_HZ as u64;

/// Now, in nanoseconds of CLOCK_MONOTONIC: the timeline of every `at_ns`. Answered without a system call (vDSO),
/// so sound card callbacks may ask too.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * NS_PER_SECOND + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Sleeps until `at_ns` of CLOCK_MONOTONIC or until somebody unparks the thread; returns at once if that has passed.
pub(crate) fn sleep_until(at_ns: u64) {
    let left = at_ns.saturating_sub(monotonic_ns());
    if left > 0 {
        std::thread::park_timeout(Duration::from_nanos(left));
    }
}

/// Length of `frames` at 48 kHz, rounded down to a nanosecond. Exact for whole periods over any uptime.
pub(crate) fn frames_to_ns(frames: u64) -> u64 {
    (frames / RATE) * NS_PER_SECOND + (frames % RATE) * NS_PER_SECOND / RATE
}

/// Whole frames that fit in `ns` at 48 kHz.
pub(crate) fn ns_to_frames(ns: u64) -> u64 {
    (ns / NS_PER_SECOND) * RATE + (ns % NS_PER_SECOND) * RATE / NS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_of_frames_converts_without_drift() {
        let month = 31 * 24 * 3600 * RATE + 120;
        assert_eq!(frames_to_ns(month), 31 * 24 * 3600 * NS_PER_SECOND + 2_500_000);
        assert_eq!(ns_to_frames(frames_to_ns(month)), month);
    }

    #[test]
    fn sleeping_until_the_past_returns_at_once_and_until_the_future_in_the_end() {
        let start = monotonic_ns();
        sleep_until(start - NS_PER_SECOND);
        while monotonic_ns() < start + 3 * NS_PER_MS {
            sleep_until(start + 3 * NS_PER_MS);
        }
        assert!(monotonic_ns() >= start + 3 * NS_PER_MS);
    }
}
