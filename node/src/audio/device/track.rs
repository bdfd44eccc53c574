//! Smooth time from rough callbacks. A callback comes late now and then and hardly ever early, so a low quantile of
//! many tells the true relation of frames to time. It is followed slowly, since crystals drift and do not jump; only
//! when a whole window agrees that time has moved, it is followed at once.
//!
//! A quantile and not the earliest of all: virtual devices that were held up may hand over sound ahead of its time.

/// Length of one window; the last two are looked at.
const WINDOW_NS: u64 = 500_000_000;
/// Fastest change of the estimate towards earlier, relative to time. Towards later it is [`EARLY`] of that: 300 ppm,
/// more than crystals differ by.
const SLEW: f64 = 6e-3;
/// Share of the time in which callbacks may be earlier than the estimate.
const EARLY: f64 = 0.05;
/// A difference beyond which the device has lost or skipped time or changed its buffers, and following slowly would
/// be wrong: 3 ms. No crystal gets there within a window.
const JUMP_NS: f64 = 3e6;

/// The least of what was observed in the last half to whole second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LowerEdge {
    current: f64,
    previous: f64,
    window_ends_ns: u64,
}

impl Default for LowerEdge {
    fn default() -> Self {
        Self { current: f64::INFINITY, previous: f64::INFINITY, window_ends_ns: 0 }
    }
}

impl LowerEdge {
    /// Observes `value` at `now_ns`; returns the least.
    pub(crate) fn observe(&mut self, value: f64, now_ns: u64) -> f64 {
        if now_ns >= self.window_ends_ns {
            self.previous = self.current;
            self.current = f64::INFINITY;
            self.window_ends_ns = now_ns.saturating_add(WINDOW_NS);
        }
        self.current = self.current.min(value);
        self.get()
    }

    /// The least, infinity before the first observation.
    pub(crate) fn get(&self) -> f64 {
        self.current.min(self.previous)
    }
}

/// Frames of a device to CLOCK_MONOTONIC.
#[derive(Debug)]
pub(crate) struct Track {
    ns_per_frame: f64,
    origin_ns: Option<u64>,
    earliest: LowerEdge,
    /// Of the negative: the latest.
    latest: LowerEdge,
    offset: f64,
    moved_at_ns: u64,
    settled_at_ns: u64,
}

impl Track {
    pub(crate) fn new(rate_hz: u32) -> Self {
        let ns_per_frame = 1e9 / f64::from(rate_hz.max(1));
        let (earliest, latest) = (LowerEdge::default(), LowerEdge::default());
        Self {
            ns_per_frame,
            origin_ns: None,
            earliest,
            latest,
            offset: 0.0,
            moved_at_ns: 0,
            settled_at_ns: 0,
        }
    }

    /// A callback at `at_ns` had moved `frames` in all.
    pub(crate) fn observe(&mut self, frames: u64, at_ns: u64) {
        let origin = *self.origin_ns.get_or_insert_with(|| {
            self.moved_at_ns = at_ns;
            self.settled_at_ns = at_ns.saturating_add(3 * WINDOW_NS);
            at_ns
        });
        let seen = at_ns.saturating_sub(origin) as f64 - frames as f64 * self.ns_per_frame;
        let earliest = self.earliest.observe(seen, at_ns);
        let latest = -self.latest.observe(-seen, at_ns);
        let jumped = earliest > self.offset + JUMP_NS || latest < self.offset - JUMP_NS;
        if jumped || at_ns < self.settled_at_ns {
            self.offset = earliest;
        } else {
            let most = at_ns.saturating_sub(self.moved_at_ns) as f64 * SLEW;
            self.offset += (seen - self.offset).clamp(-most * (1.0 - EARLY), most * EARLY);
        }
        self.moved_at_ns = at_ns;
    }

    /// When `frames` had been moved, had the callback been punctual. Zero before the first callback.
    pub(crate) fn time_of(&self, frames: u64) -> u64 {
        match self.origin_ns {
            None => 0,
            Some(origin) => {
                let since = self.offset + frames as f64 * self.ns_per_frame;
                origin.saturating_add_signed(since as i64)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng as _, SeedableRng as _};

    const T0: u64 = 77_000_000_000;

    /// Callbacks of `count` frames for `seconds`, late by up to `late_ns`, of a crystal that is `ppm` fast. Returns
    /// the worst error of the estimate after the first two seconds, nanoseconds.
    fn worst_error(count: u64, seconds: u64, late_ns: u64, ppm: f64) -> f64 {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut track = Track::new(48_000);
        let true_time = |frames: u64| T0 as f64 + frames as f64 * 1e9 / (48_000.0 * (1.0 + ppm * 1e-6));
        let (mut worst, mut at) = (0.0f64, 0);
        for frames in (count..seconds * 48_000).step_by(count as usize) {
            // One in five is late, the others hardly, and they keep their order.
            let late = if rng.random_bool(0.2) { rng.random_range(0..=late_ns) } else { late_ns / 20 };
            at = at.max(true_time(frames) as u64 + late);
            track.observe(frames, at);
            if frames > 96_000 {
                worst = worst.max((track.time_of(frames) as f64 - true_time(frames)).abs());
            }
        }
        worst
    }

    #[test]
    fn callback_jitter_of_two_milliseconds_leaves_less_than_a_third_of_one() {
        for count in [120, 24] {
            let worst = worst_error(count, 20, 2_000_000, 0.0);
            assert!(worst < 300_000.0, "{count} frames a callback: {worst} ns");
        }
    }

    #[test]
    fn a_crystal_two_hundred_ppm_off_is_followed() {
        for ppm in [200.0, -200.0] {
            let worst = worst_error(120, 60, 1_000_000, ppm);
            assert!(worst < 350_000.0, "{ppm} ppm: {worst} ns");
        }
    }

    #[test]
    fn a_device_that_skips_a_second_is_followed_at_once() {
        let mut track = Track::new(48_000);
        let mut at = T0;
        for period in 1..=1_600u64 {
            at += if period == 800 { 1_000_000_000 } else { 2_500_000 };
            track.observe(period * 120, at);
        }
        assert!(track.time_of(1_600 * 120).abs_diff(at) < 1_000_000);
    }

    #[test]
    fn twenty_milliseconds_of_sound_ahead_of_time_move_nothing() {
        let mut track = Track::new(48_000);
        for callback in 1..=8_000u64 {
            let early = if (6_000..6_040).contains(&callback) { (callback - 6_000) * 500_000 } else { 0 };
            track.observe(callback * 24, T0 + callback * 500_000 - early);
            if callback > 3_000 {
                let error = track.time_of(callback * 24).abs_diff(T0 + callback * 500_000);
                assert!(error < 150_000, "{error} ns at callback {callback}");
            }
        }
    }

    #[test]
    fn an_early_burst_at_the_start_is_forgotten_within_two_seconds() {
        let mut track = Track::new(48_000);
        for period in 1..=1_200u64 {
            let at = if period <= 10 { T0 } else { T0 + (period - 5) * 2_500_000 };
            track.observe(period * 120, at);
        }
        let expected = T0 + 1_195 * 2_500_000;
        assert!(track.time_of(1_200 * 120).abs_diff(expected) < 100_000);
    }
}
