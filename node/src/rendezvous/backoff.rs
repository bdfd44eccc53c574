//! How long to wait before the next try: never more than two tries a second, never all nodes at once.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Shortest wait between two tries.
pub const SHORTEST: Duration = Duration::from_millis(500);

/// Longest wait. A server that comes back is found again within it.
pub const LONGEST: Duration = Duration::from_secs(8);

/// Waits that double from one second to [`LONGEST`], each drawn from its upper half.
#[derive(Debug)]
pub struct Backoff {
    rng: ChaCha8Rng,
    failures: u32,
}

impl Backoff {
    /// The first wait is a short one. Equal seeds give equal waits.
    pub fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), failures: 0 }
    }

    /// How long to wait after one more failure.
    pub fn next(&mut self) -> Duration {
        let most = SHORTEST.saturating_mul(2u32.saturating_pow(self.failures.saturating_add(1))).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.rng.random_range(most / 2..=most)
    }

    /// It worked: start over with short waits.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// A wait between the two, for things that are repeated anyway.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        self.rng.random_range(least..=most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_than_two_tries_a_second_and_waits_end_at_eight() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(seed);
            let waits: Vec<_> = (0..40).map(|_| backoff.next()).collect();
            assert!(waits.iter().all(|w| (SHORTEST..=LONGEST).contains(w)));
            assert!(waits[0] <= Duration::from_secs(1));
            assert!(waits[4..].iter().all(|w| *w >= LONGEST / 2));
            backoff.reset();
            assert!(backoff.next() <= Duration::from_secs(1));
        }
    }

    #[test]
    fn a_hundred_nodes_do_not_come_back_at_once() {
        let mut waits: Vec<_> = (0..100).map(|seed| Backoff::new(seed).next()).collect();
        waits.sort();
        let busiest = waits.windows(20).map(|w| w[19] - w[0]).min().unwrap();
        assert!(busiest > Duration::from_millis(20), "20 of 100 within {busiest:?}");
    }
}
