//! The user's ceiling, divided among the copies of the voice: the codec keeps to its share, so that the socket, which holds
//! back what is beyond, has little to do.

use std::sync::Arc;

use hallway_codec::Report;

use crate::transport::Ceiling;

/// Part of the ceiling that voice may take at first; acknowledgements, questions and headers take the rest.
const FIRST_PART: f64 = 0.75;
/// Least and most part.
const LEAST_PART: f64 = 0.2;
const MOST_PART: f64 = 0.95;
/// Seconds after which everybody has told what was held back.
const OWN_LOSSES_TOLD: u8 = 2;

/// See the module's text.
pub(super) struct Allowance {
    ceiling: Arc<Ceiling>,
    part: f64,
    before: (u64, u64),
    /// Seconds for which losses may still be our own.
    own_losses: u8,
}

impl Allowance {
    pub(super) fn new(ceiling: Arc<Ceiling>) -> Self {
        Self { ceiling, part: FIRST_PART, before: (0, 0), own_losses: 0 }
    }

    /// Whether what others miss may be what was held back here. Copies against such losses would be held back too.
    pub(super) fn holds_back(&self) -> bool {
        self.own_losses > 0 || self.ceiling.counts().1 > self.before.1
    }

    /// Called once a second: what each of so many copies of the voice may take, kb/s with all headers. `None` without a
    /// ceiling.
    pub(super) fn share(&mut self, copies: u32) -> Option<u32> {
        let kbps = self.ceiling.kbps()?;
        let now = self.ceiling.counts();
        let sent_kbps = now.0.saturating_sub(self.before.0) as f64 / 125.0;
        let held_back = now.1 > self.before.1;
        self.before = now;
        self.own_losses = if held_back { OWN_LOSSES_TOLD } else { self.own_losses.saturating_sub(1) };
        if held_back || sent_kbps > f64::from(kbps) * 0.97 {
            self.part *= 0.88;
        } else if sent_kbps < f64::from(kbps) * 0.9 {
            self.part *= 1.04;
        }
        self.part = self.part.clamp(LEAST_PART, MOST_PART);
        Some((f64::from(kbps) * self.part / f64::from(copies.max(1))) as u32)
    }
}

/// Takes the losses out of a report, where copies would only make a queue longer: over TCP, and under a ceiling of our own
/// that is reached.
pub(super) fn lossless(report: &mut Report) {
    (report.lost, report.alone, report.bursts) = (0, 0, Default::default());
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_share_shrinks_while_something_is_held_back_and_grows_again() {
        let ceiling = Arc::new(Ceiling::new(Some(400)));
        let mut allowance = Allowance::new(ceiling.clone());
        let first = allowance.share(2).unwrap();
        assert_eq!(first, 156, "half of three quarters, and a little more as nothing is sent");
        while ceiling.admit(Instant::now(), 1500) {}
        let less = allowance.share(2).unwrap();
        assert!(less < first && allowance.holds_back(), "{less}");
        let more = (0..30).map(|_| allowance.share(2).unwrap()).max().unwrap();
        assert_eq!(more, 190);
        assert!(!allowance.holds_back());
        assert_eq!(Allowance::new(Arc::new(Ceiling::new(None))).share(3), None);
    }
}
