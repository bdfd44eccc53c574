//! What one path gives: set at once where the path says that it is full, tried upwards in steps.

use crate::time::Micros;

/// A limit that the path set is kept for so long, then raised by a quarter each step.
const LIMIT_HOLD_US: u64 = 15_000_000;
const LIMIT_STEP_US: u64 = 5_000_000;
/// One that is only presumed is kept for so long, then raised as quickly, until the path sets one.
const PRESUMED_HOLD_US: u64 = 4_000_000;
const PRESUMED_STEP_US: u64 = 1_000_000;
/// If it is set again so soon after a step, it is held twice as long, up to five minutes.
const LIMIT_FAILED_US: u64 = 20_000_000;
const LONGEST_LIMIT_HOLD_US: u64 = 300_000_000;
/// A limit raised beyond this is none, in kb/s.
const LIMIT_GONE_KBPS: u32 = 600;

/// What one path gives.
#[derive(Debug)]
pub(super) struct Limit {
    pub(super) kbps: Option<u32>,
    until: Micros,
    hold_us: u64,
    step_us: u64,
    raised: Option<Micros>,
}

impl Limit {
    /// Nothing is known of the path yet but that it may give no more than this.
    pub(super) fn presume(&mut self, now: Micros, kbps: u32) {
        if self.kbps.is_none() {
            (self.kbps, self.until) = (Some(kbps), now.plus(PRESUMED_HOLD_US));
            self.step_us = PRESUMED_STEP_US;
        }
    }

    pub(super) fn hear(&mut self, now: Micros, stated: Option<u32>) {
        match (self.kbps, stated) {
            (None, None) => {}
            (kbps, Some(stated)) if kbps.is_none_or(|kbps| stated < kbps) => {
                let failed = self.raised.take().is_some_and(|at| now.since(at) < LIMIT_FAILED_US);
                self.hold_us =
                    if failed { (self.hold_us * 2).min(LONGEST_LIMIT_HOLD_US) } else { LIMIT_HOLD_US };
                (self.kbps, self.step_us) = (Some(stated), LIMIT_STEP_US);
                self.until = now.plus(self.hold_us);
            }
            (Some(kbps), stated) if now >= self.until => {
                let raised = kbps.saturating_add(kbps / 4 + 1);
                self.kbps = Some(stated.map_or(raised, |stated| raised.min(stated)));
                self.until = now.plus(self.step_us);
                self.raised = Some(now);
                if stated.is_none() && raised > LIMIT_GONE_KBPS {
                    self.kbps = None;
                }
            }
            _ => {}
        }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self { kbps: None, until: Micros(0), hold_us: LIMIT_HOLD_US, step_us: LIMIT_STEP_US, raised: None }
    }
}
