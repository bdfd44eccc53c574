//! Moves the present offset to the target without being heard: small errors by the resampler's speed, larger ones by
//! leaving out or repeating periods of the voice. Up quickly, since each late frame is heard; down slowly.

use crate::drift::MAX_DRIFT_PPM;

/// Speed that steering may add to the drift's own, ppm. Half a percent would be heard in music; this is a fifth of it.
pub const MAX_STEER_PPM: f64 = 1_000.0;
/// Steering per sample of error: 1 ms of error is steered at 400 ppm.
const STEER_PPM_PER_SAMPLE: f64 = 400.0 / 48.0;
/// So near to the target a voice whose clock equals ours is left alone, and so near it is brought before that.
const RESTS_WITHIN: f64 = 24.0;
const RESTS_FROM: f64 = 2.0;
/// A drift below this is steered against now and then, ppm.
const NO_DRIFT_PPM: f64 = 2.0;
/// Too much delay is cut out from here on, in samples.
const SHORTEN_ABOVE: f64 = 192.0;
/// Too little is put in from here on. Below, steering is soon there.
const LENGTHEN_ABOVE: f64 = 48.0;
/// A period of most voices; too little delay may become too much by that.
const LENGTHEN_AT_LEAST: f64 = 480.0;
/// Far too much delay: after a bad time it must be gone within two seconds.
const FAR: f64 = 30.0 * 48.0;
/// Least time between cuts, in samples: near the target, and far above it.
const SHORTEN_EVERY: i64 = 150 * 48;
const SHORTEN_EVERY_FAR: i64 = 50 * 48;
/// Least time between insertions, and between tries that found no good place.
const LENGTHEN_EVERY: i64 = 20 * 48;
const RETRY: i64 = 15 * 48;
/// After so many tries in vain the next is made wherever it is.
const PATIENCE: u32 = 8;

/// What to do before the next samples are played.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// Leave out at most so many samples.
    Shorten {
        /// Upper bound, in samples.
        most: usize,
        /// Even where it may be heard.
        force: bool,
    },
    /// Repeat at most so many samples.
    Lengthen {
        /// Upper bound, in samples.
        most: usize,
        /// Even where it may be heard.
        force: bool,
    },
}

/// Decides; remembers only when it last acted.
#[derive(Debug, Default)]
pub struct Decision {
    next: i64,
    in_vain: u32,
    rests: bool,
}

impl Decision {
    /// `error` is the present offset less the target, in samples; `pulled` counts samples played.
    pub fn step(&self, pulled: i64, error: f64) -> Step {
        if pulled < self.next {
            return Step::Keep;
        }
        let force = self.in_vain >= PATIENCE;
        if error > SHORTEN_ABOVE {
            Step::Shorten { most: error as usize, force: force && error > FAR }
        } else if error < -LENGTHEN_ABOVE {
            Step::Lengthen { most: LENGTHEN_AT_LEAST.max(-error) as usize, force }
        } else {
            Step::Keep
        }
    }

    /// Whether to play as it comes: no drift, and the offset as good as on target.
    pub fn rests(&mut self, slope: f64, error: f64) -> bool {
        let within = if self.rests { RESTS_WITHIN } else { RESTS_FROM };
        self.rests = slope.abs() < NO_DRIFT_PPM * 1e-6 && error.abs() < within;
        self.rests
    }

    /// Says whether the step could be made.
    pub fn done(&mut self, pulled: i64, error: f64, made: bool) {
        if made {
            self.in_vain = 0;
            self.next = pulled
                + if error < 0.0 {
                    LENGTHEN_EVERY
                } else if error > FAR {
                    SHORTEN_EVERY_FAR
                } else {
                    SHORTEN_EVERY
                };
        } else {
            self.in_vain = self.in_vain.saturating_add(1);
            self.next = pulled + RETRY;
        }
    }
}

/// Input samples to be played for each output sample: the drift (availability's slope) and a touch towards the target.
#[must_use]
pub fn speed(slope: f64, error: f64) -> f64 {
    let drift = -slope.clamp(-MAX_DRIFT_PPM * 1e-6, MAX_DRIFT_PPM * 1e-6);
    1.0 + drift + (error * STEER_PPM_PER_SAMPLE).clamp(-MAX_STEER_PPM, MAX_STEER_PPM) * 1e-6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_errors_are_steered_and_large_ones_cut_or_filled() {
        let decision = Decision::default();
        assert_eq!(decision.step(0, 100.0), Step::Keep);
        assert_eq!(decision.step(0, -40.0), Step::Keep);
        assert!(speed(0.0, 48.0) > 1.0003 && speed(0.0, 48.0) < 1.0005);
        assert_eq!(decision.step(0, 480.0), Step::Shorten { most: 480, force: false });
        assert_eq!(decision.step(0, -60.0), Step::Lengthen { most: 480, force: false });
        assert_eq!(decision.step(0, -700.0), Step::Lengthen { most: 700, force: false });
        assert!(speed(-300e-6, 0.0) > 1.00029, "a fast speaker is played faster");
    }

    #[test]
    fn equal_clocks_are_left_alone_once_the_target_is_met() {
        let mut decision = Decision::default();
        assert!(!decision.rests(0.0, 10.0));
        assert!(decision.rests(0.0, 1.0) && decision.rests(1e-6, -20.0));
        assert!(!decision.rests(0.0, 30.0) && !decision.rests(0.0, 20.0));
        assert!(!decision.rests(5e-6, 0.0));
    }

    #[test]
    fn cuts_are_rare_near_the_target_and_insertions_insist() {
        let mut decision = Decision::default();
        decision.done(0, 480.0, true);
        assert_eq!(decision.step(SHORTEN_EVERY - 1, 480.0), Step::Keep);
        let mut at = SHORTEN_EVERY;
        for _ in 0..PATIENCE {
            assert_eq!(decision.step(at, -480.0), Step::Lengthen { most: 480, force: false });
            decision.done(at, -480.0, false);
            at += RETRY;
        }
        assert_eq!(decision.step(at, -480.0), Step::Lengthen { most: 480, force: true });
    }
}
