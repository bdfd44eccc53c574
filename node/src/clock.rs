//! The local monotonic clock, and what a peer's says at the same instant.
//!
//! Peers exchange four timestamps (RFC 5905 section 8): sent and received, answered and received again. Queues only ever
//! add, so each direction goes by its quickest twelfth per slot of time: one minimum alone would make the offset jump
//! with every lucky packet of a jittery path. Half the difference of the two directions is the offset. Once half a minute
//! is known a line through the slots follows the skew of the two clocks too. What remains unknown is how unequal the two
//! directions are: at most half the least round trip, which is the stated error.

use std::collections::VecDeque;

use hallway_codec::{ClockOffset, Micros};

/// Length of a slot of the minimum filter.
pub const SLOT_US: u64 = 5_000_000;
/// Slots remembered: one minute.
pub const SLOTS: usize = 12;
/// Exchanges remembered in a slot; the four a second that hallway makes fill a sixth of it.
pub const MAX_SAMPLES: usize = 128;
/// Slots that the offset is taken from while the skew is not known.
const SLOTS_TOGETHER: usize = 3;
/// Slots needed before the skew is believed.
const SLOTS_FOR_SKEW: usize = 6;
/// Skew above this is noise: crystals are within 100 ppm, bad ones within 300.
const MAX_SKEW: f64 = 500e-6;
/// No drift within what is remembered makes an exchange contradict the others by so much: a clock has jumped, as it does
/// where a machine slept, since CLOCK_MONOTONIC stands still meanwhile.
const JUMP_US: i64 = 50_000;
/// A sample further off than this is not a clock but an attack or a bug.
const MAX_ABS_US: i64 = i64::MAX / 4;

/// Microseconds of CLOCK_MONOTONIC now.
pub fn now() -> Micros {
    Micros(now_ns() / 1000)
}

/// Nanoseconds of CLOCK_MONOTONIC now, the `at_ns` of every event.
pub fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// Four timestamps in µs: `sent` and `heard` on our clock, `arrived` and `answered` on the peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Our clock when the question left.
    pub sent: u64,
    /// The peer's clock when it arrived there.
    pub arrived: u64,
    /// The peer's clock when the answer left.
    pub answered: u64,
    /// Our clock when it arrived here.
    pub heard: u64,
}

#[derive(Debug, Clone)]
struct Slot {
    started: u64,
    /// (Peer's receive − our send): offset plus the way there.
    there: Vec<i64>,
    /// (Our receive − peer's send): the way back less the offset.
    back: Vec<i64>,
}

impl Slot {
    fn new(started: u64) -> Self {
        Self { started, there: Vec::with_capacity(MAX_SAMPLES), back: Vec::with_capacity(MAX_SAMPLES) }
    }

    fn insert(&mut self, there: i64, back: i64) {
        if self.there.len() < MAX_SAMPLES {
            self.there.push(there);
            self.back.push(back);
        }
    }
}

/// Half the difference of the quickest of both directions.
fn offset_of<'a>(slots: impl Iterator<Item = &'a Slot> + Clone) -> f64 {
    let quickest = |samples: &mut dyn Iterator<Item = i64>| {
        let mut all: Vec<i64> = samples.collect();
        all.sort_unstable();
        all.truncate((all.len() / 12).max(1));
        let Some(least) = all.first().copied() else { return 0.0 };
        least as f64 + all.iter().map(|sample| (sample - least) as f64).sum::<f64>() / all.len() as f64
    };
    let there = quickest(&mut slots.clone().flat_map(|slot| slot.there.iter().copied()));
    let back = quickest(&mut slots.flat_map(|slot| slot.back.iter().copied()));
    (there - back) / 2.0
}

/// Estimates a peer's clock. Feed it exchanges, ask it for the offset.
#[derive(Debug, Default)]
pub struct OffsetFilter {
    slots: VecDeque<Slot>,
}

impl OffsetFilter {
    /// An empty filter: nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one exchange. Nonsense (an answer before its question, overflow) is ignored.
    pub fn handle_exchange(&mut self, exchange: Exchange) {
        let Some(there) = difference(exchange.arrived, exchange.sent) else { return };
        let Some(back) = difference(exchange.heard, exchange.answered) else { return };
        if exchange.heard < exchange.sent || there.saturating_add(back) < 0 {
            return;
        }
        // The offset lies between −back and there, for each exchange.
        if self.quickest().is_some_and(|(quickest_there, quickest_back)| {
            there.saturating_add(quickest_back) < -JUMP_US || back.saturating_add(quickest_there) < -JUMP_US
        }) {
            self.slots.clear();
        }
        match self.slots.back_mut() {
            Some(slot) if exchange.heard.saturating_sub(slot.started) < SLOT_US => {
                slot.insert(there, back);
            }
            _ => {
                if self.slots.len() == SLOTS {
                    self.slots.pop_front();
                }
                let mut slot = Slot::new(exchange.heard);
                slot.insert(there, back);
                self.slots.push_back(slot);
            }
        }
    }

    /// Peer clock minus ours at `now`, with its error bound; `None` before the first exchange.
    pub fn offset(&self, now: Micros) -> Option<ClockOffset> {
        let error = self.min_rtt_us()? / 2;
        let offset =
            self.line(now).unwrap_or_else(|| offset_of(self.slots.iter().rev().take(SLOTS_TOGETHER)));
        Some(ClockOffset {
            offset_us: offset.round() as i64,
            error_us: u32::try_from(error).unwrap_or(u32::MAX),
        })
    }

    /// Least round trip on the network in µs, without the peer's thinking time.
    pub fn min_rtt_us(&self) -> Option<u64> {
        let (there, back) = self.quickest()?;
        Some(u64::try_from(there.saturating_add(back)).unwrap_or(0))
    }

    /// The least of both directions.
    fn quickest(&self) -> Option<(i64, i64)> {
        let there = self.slots.iter().flat_map(|slot| slot.there.iter()).min()?;
        let back = self.slots.iter().flat_map(|slot| slot.back.iter()).min()?;
        Some((*there, *back))
    }

    /// Least-squares line through the slots, where there are enough.
    fn line(&self, now: Micros) -> Option<f64> {
        if self.slots.len() < SLOTS_FOR_SKEW {
            return None;
        }
        let n = self.slots.len() as f64;
        let origin = self.slots.front()?.started;
        let at = |slot: &Slot| (slot.started - origin) as f64 + SLOT_US as f64 / 2.0;
        let offsets: Vec<f64> = self.slots.iter().map(|slot| offset_of(std::iter::once(slot))).collect();
        let base = *offsets.first()?;
        let mean_x = self.slots.iter().map(at).sum::<f64>() / n;
        let mean_y = offsets.iter().map(|offset| offset - base).sum::<f64>() / n;
        let (mut xy, mut xx) = (0.0, 0.0);
        for (slot, offset) in self.slots.iter().zip(&offsets) {
            let dx = at(slot) - mean_x;
            xy += dx * (offset - base - mean_y);
            xx += dx * dx;
        }
        let skew = (xy / xx).clamp(-MAX_SKEW, MAX_SKEW);
        Some(base + mean_y + skew * (now.0.saturating_sub(origin) as f64 - mean_x))
    }
}

/// `a − b` where it is a sane clock difference.
fn difference(a: u64, b: u64) -> Option<i64> {
    let wide = i128::from(a) - i128::from(b);
    i64::try_from(wide).ok().filter(|d| d.abs() < MAX_ABS_US)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Exchanges every 250 ms for `seconds` with delay 40 ms ± 5 ms each way; returns the last estimate's error in µs.
    fn run(seed: u64, seconds: u64, offset_us: i64, skew: f64) -> i64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut filter = OffsetFilter::new();
        let start = 1_000_000_000u64;
        let peer = |t: u64| (t as i64 + offset_us + ((t - start) as f64 * skew) as i64) as u64;
        let mut t = start;
        while t < start + seconds * 1_000_000 {
            let (there, back) = (rng.random_range(25_000..55_000), rng.random_range(25_000..55_000));
            let exchange = Exchange {
                sent: t,
                arrived: peer(t + there),
                answered: peer(t + there + 300),
                heard: t + there + 300 + back,
            };
            filter.handle_exchange(exchange);
            t += 250_000;
        }
        let truth = peer(t) as i64 - t as i64;
        filter.offset(Micros(t)).unwrap().offset_us - truth
    }

    #[test]
    fn the_offset_is_right_within_two_milliseconds_under_jitter() {
        for seed in 0..20 {
            for seconds in [10, 25, 120] {
                let error = run(seed, seconds, 5_000_000_000, 0.0);
                assert!(error.abs() < 2_500, "seed {seed}, {seconds} s: {error} µs");
            }
        }
    }

    #[test]
    fn a_skew_of_a_hundred_ppm_is_followed() {
        for seed in 0..20 {
            let error = run(seed, 300, -70_000_000, 100e-6);
            assert!(error.abs() < 3_000, "seed {seed}: {error} µs");
        }
    }

    #[test]
    fn after_a_minute_of_sleep_of_either_machine_the_first_exchange_tells_the_new_offset() {
        for (ours, theirs) in [(0, 60_000_000), (60_000_000, 0), (0, 200_000)] {
            let mut filter = OffsetFilter::new();
            let mut exchange = |at: u64, slept: (u64, u64)| {
                let (us, them) = (|t: u64| t - slept.0, |t: u64| t + 7_000_000 - slept.1);
                let (sent, heard) = (us(at), us(at + 60_300));
                let (arrived, answered) = (them(at + 30_000), them(at + 30_300));
                filter.handle_exchange(Exchange { sent, arrived, answered, heard });
                filter.offset(Micros(heard)).unwrap().offset_us
            };
            for n in 0..200 {
                assert_eq!(exchange(100_000_000 + n * 250_000, (0, 0)), 7_000_000);
            }
            let after = exchange(211_000_000, (ours, theirs));
            assert_eq!(after, 7_000_000 + ours as i64 - theirs as i64);
        }
    }

    #[test]
    fn nothing_is_known_before_the_first_answer() {
        assert_eq!(OffsetFilter::new().offset(Micros(5)), None);
    }

    #[test]
    fn hostile_timestamps_are_ignored_and_never_overflow() {
        let mut filter = OffsetFilter::new();
        for (sent, arrived, answered, heard) in
            [(10, u64::MAX, 0, 20), (20, 5, 5, 10), (0, 0, u64::MAX, u64::MAX), (1000, 900, 2000, 1001)]
        {
            filter.handle_exchange(Exchange { sent, arrived, answered, heard });
        }
        let _ = filter.offset(Micros(u64::MAX));
        let _ = filter.offset(Micros(0));
    }

    #[test]
    fn the_error_bound_is_half_the_least_round_trip() {
        let mut filter = OffsetFilter::new();
        filter.handle_exchange(Exchange { sent: 0, arrived: 40_000, answered: 40_100, heard: 80_100 });
        assert_eq!(filter.offset(Micros(100_000)).unwrap().error_us, 40_000);
        assert_eq!(filter.min_rtt_us(), Some(80_000));
    }
}
