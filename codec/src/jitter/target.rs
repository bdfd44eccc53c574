//! How much delay the path needs: a high quantile of the availability of what came in the last seconds.
//!
//! Availability is kept less the speaker's own span (frame and lookahead), so that a change of frame length changes the
//! target at once; and it is moved along with the drift. A frame that only a copy brought counts as of when the copy
//! came, so the target follows what the copies in use need. A lone stall of the path is no reason to lag: it is left out
//! until it becomes a habit.

use super::JitterConfig;
use crate::{
    drift::LEAD,
    time::{SAMPLE_RATE, Samples},
};
use std::collections::VecDeque;

/// Arrivals remembered.
pub const MAX_ARRIVALS: usize = 4_096;
/// The target is taken from this time, in samples.
const WINDOW: i64 = 10 * SAMPLE_RATE as i64;
/// Lateness of the newest is looked at over this time too, with a lower quantile: an increase shows here first.
const RECENT: i64 = SAMPLE_RATE as i64;
/// Share of arrivals, in 1/1000, that may be late.
const LATE_OF_WINDOW: usize = 2;
const LATE_OF_RECENT: usize = 20;
/// The same for the spread that is shown.
const LATE_OF_JITTER: usize = 50;
/// Lateness beyond the present need that makes a stall.
const STALL: i64 = 25 * 48;
/// A stall is over when lateness is back within this.
const STALL_OVER: i64 = 2 * 48;
/// A stall that goes on for so long is the new state of the path.
const STALL_ENDS: i64 = 300 * 48;
/// So many stalls in so much time are a habit, and are provided for.
const HABIT: usize = 3;
const HABIT_WINDOW: i64 = 15 * SAMPLE_RATE as i64;
/// Until this much was seen of the path, the delay of the start is kept.
const KNOWN_AFTER: i64 = SAMPLE_RATE as i64;
/// The target is worked out anew after so many samples.
const EVERY: i64 = 40 * 48;

#[derive(Debug, Clone, Copy)]
struct Came {
    pulled: i64,
    lateness: i64,
    back: u8,
}

impl Came {
    /// Lateness as it would be now: drift has moved it since.
    fn moved(&self, age: i64, slope: f64) -> i64 {
        self.lateness + (slope * age as f64) as i64
    }
}

/// The state of the path, in samples, less the speaker's span; see [`Target::need`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Availability of the fastest.
    pub base: i64,
    /// Offset at which nearly all are in time.
    pub offset: i64,
    /// 95th percentile less the minimum.
    pub jitter: i64,
}

/// Learns from arrivals what offset is needed.
#[derive(Debug)]
pub struct Target {
    config: JitterConfig,
    came: VecDeque<Came>,
    sorted: Vec<i64>,
    need: Option<Need>,
    worked_out: i64,
    began: Option<i64>,
    stall: Option<i64>,
    stalls: VecDeque<i64>,
}

impl Target {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(config: JitterConfig) -> Self {
        Self {
            config,
            came: VecDeque::with_capacity(MAX_ARRIVALS),
            sorted: Vec::with_capacity(MAX_ARRIVALS),
            need: None,
            worked_out: i64::MIN,
            began: None,
            stall: None,
            stalls: VecDeque::with_capacity(16),
        }
    }

    /// The path is another one: what was learnt does not hold.
    pub fn start_afresh(&mut self) {
        self.came.clear();
        self.need = None;
        self.stall = None;
        self.began = None;
        self.worked_out = i64::MIN;
    }

    /// A frame came for the first time when `pulled` samples had been pulled. `lateness` is its availability less the
    /// span; `back` how many steps before its packet's main frame it lies.
    pub fn insert(&mut self, pulled: i64, lateness: i64, back: u8) {
        self.began.get_or_insert(pulled);
        if self.is_stall(pulled, lateness, back) {
            return;
        }
        if self.came.len() == MAX_ARRIVALS {
            self.came.pop_front();
        }
        self.came.push_back(Came { pulled, lateness, back });
    }

    /// What the path needs now. `slope` is the drift in samples per sample, `reach` how many steps back the copies lie
    /// that packets carry at present.
    pub fn need(&mut self, pulled: i64, slope: f64, reach: u8) -> Option<Need> {
        if pulled.saturating_sub(self.worked_out) < EVERY {
            return self.need;
        }
        self.worked_out = pulled;
        while self.came.front().is_some_and(|c| pulled - c.pulled > WINDOW) {
            self.came.pop_front();
        }
        let (mut base, mut base_now) = (i64::MAX, i64::MAX);
        for came in self.came.iter().filter(|c| c.back == 0) {
            let age = pulled - came.pulled;
            let lateness = came.moved(age, slope);
            base = base.min(lateness);
            base_now = if age <= RECENT { base_now.min(lateness) } else { base_now };
        }
        if base == i64::MAX {
            return None;
        }
        if base_now == i64::MAX {
            base_now = base;
        }
        let long = self.quantile(pulled, WINDOW, slope, reach, LATE_OF_WINDOW)?;
        let jitter = self.quantile(pulled, WINDOW, slope, 0, LATE_OF_JITTER)?;
        let recent = self.quantile(pulled, RECENT, slope, reach, LATE_OF_RECENT).unwrap_or(long);
        let wanted = long.max(recent) + i64::from(self.config.margin.0) + LEAD as i64;
        let is_known = self.began.is_some_and(|began| pulled - began >= KNOWN_AFTER);
        let floor = if is_known { self.config.floor.0 } else { self.start().0 };
        // The ceiling stands on what comes now: a path that has just become longer by more than that is still heard.
        let ceiling = i64::from(self.config.ceiling.0);
        let offset = wanted.clamp(base + i64::from(floor).min(ceiling), base_now + ceiling);
        self.need = Some(Need { base, offset, jitter: jitter - base });
        self.need
    }

    /// The state as last worked out.
    #[must_use]
    pub fn last(&self) -> Option<Need> {
        self.need
    }

    /// Delay in hand at the start, beyond the first packet.
    #[must_use]
    pub fn start(&self) -> Samples {
        Samples(self.config.start.0.max(self.config.floor.0).min(self.config.ceiling.0))
    }

    /// Lateness that all but `beyond` in 1000 keep, of frames that came within `window` and lie no further back than
    /// `reach`.
    fn quantile(&mut self, pulled: i64, window: i64, slope: f64, reach: u8, beyond: usize) -> Option<i64> {
        self.sorted.clear();
        for came in self.came.iter().rev() {
            let age = pulled - came.pulled;
            if age > window {
                break;
            }
            if came.back <= reach {
                self.sorted.push(came.moved(age, slope));
            }
        }
        let last = self.sorted.len().checked_sub(1)?;
        let at = last - (self.sorted.len() * beyond / 1000).min(last);
        Some(*self.sorted.select_nth_unstable(at).1)
    }

    fn is_stall(&mut self, pulled: i64, lateness: i64, back: u8) -> bool {
        let Some(need) = self.need else { return false };
        if back > 0 {
            return self.stall.is_some();
        }
        // What piled up comes less and less late: all of it belongs to the stall.
        let limit = if self.stall.is_some() { STALL_OVER } else { STALL };
        if lateness <= need.offset + limit {
            self.stall = None;
            return false;
        }
        let began = *self.stall.get_or_insert_with(|| {
            if self.stalls.len() == 16 {
                self.stalls.pop_front();
            }
            self.stalls.push_back(pulled);
            pulled
        });
        let habit = self.stalls.iter().filter(|s| pulled - **s <= HABIT_WINDOW).count() >= HABIT;
        !habit && pulled - began < STALL_ENDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn target() -> Target {
        Target::new(JitterConfig { margin: Samples(0), ..JitterConfig::default() })
    }

    #[test]
    fn a_steady_path_needs_no_more_than_its_own_delay() {
        let mut target = target();
        for i in 0..1000 {
            target.insert(i * 240, 700 + (i % 2) * 120, 0);
        }
        let need = target.need(240_000, 0.0, 0).unwrap();
        assert_eq!((need.base, need.offset - LEAD as i64), (700, 820));
    }

    #[test]
    fn jitter_raises_the_target_to_its_upper_end_and_calm_lowers_it_again() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let mut target = target();
        for i in 0..2000 {
            target.insert(i * 240, 700 + random.random_range(0..960), 0);
        }
        let need = target.need(480_000, 0.0, 0).unwrap();
        assert!((1600..1700).contains(&need.offset), "{need:?}");
        assert!((880..960).contains(&need.jitter), "{need:?}");
        for i in 2000..4100 {
            target.insert(i * 240, 700, 0);
        }
        assert_eq!(target.need(4100 * 240, 0.0, 0).unwrap().offset, 700 + LEAD as i64);
    }

    #[test]
    fn copies_count_only_while_they_are_in_use() {
        let mut target = target();
        for i in 0..1000 {
            let (late, back) = if i % 10 == 0 { (960 * 2, 16) } else { (0, 0) };
            target.insert(i * 240, 700 + late, back);
        }
        assert_eq!(target.need(240_000, 0.0, 16).unwrap().offset, 700 + 1920 + LEAD as i64);
        assert_eq!(target.need(242_000, 0.0, 0).unwrap().offset, 700 + LEAD as i64);
    }

    #[test]
    fn one_stall_is_forgiven_three_are_provided_for_and_a_lasting_one_is_the_new_path() {
        let mut target = target();
        let mut at = 0;
        let mut run = |target: &mut Target, packets: i64, late: i64| {
            for _ in 0..packets {
                at += 240;
                target.insert(at, 700 + late, 0);
                target.need(at, 0.0, 0);
            }
            target.need(at, 0.0, 0).unwrap().offset - 700 - LEAD as i64
        };
        run(&mut target, 800, 0);
        run(&mut target, 20, 9600);
        assert_eq!(run(&mut target, 200, 0), 0);
        run(&mut target, 20, 9600);
        run(&mut target, 200, 0);
        assert!(run(&mut target, 20, 9600) > 4800);
        let mut target = super::tests::target();
        run(&mut target, 800, 0);
        assert_eq!(run(&mut target, 120, 2400), 2400);
    }

    #[test]
    fn drift_moves_what_was_learnt_along_with_it() {
        let mut target = target();
        for i in 0..1000i64 {
            target.insert(i * 240, 700 + i * 240 / 2000, 0);
        }
        let need = target.need(240_000, 1.0 / 2000.0, 0).unwrap();
        assert!((need.offset - LEAD as i64 - 820).abs() <= 2, "{need:?}");
        assert!((need.base - 820).abs() <= 2, "{need:?}");
    }
}
