//! A token bucket: how often something may happen at once, and how soon again.

use std::time::{Duration, Instant};

/// `capacity` at once, one more every `every`.
#[derive(Debug, Clone)]
pub struct Bucket {
    capacity: u32,
    every: Duration,
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(capacity: u32, every: Duration, now: Instant) -> Self {
        Self { capacity, every, tokens: capacity, filled: now }
    }

    /// A full bucket that gives so many a second.
    pub fn per_second(capacity: u32, per_second: u32, now: Instant) -> Self {
        let every = Duration::from_secs(1).checked_div(per_second).unwrap_or(Duration::MAX);
        Self::new(capacity, every, now)
    }

    /// Whether it holds as many tokens as it can: nothing was taken for a while.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.tokens == self.capacity
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let free = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        free
    }

    fn refill(&mut self, now: Instant) {
        while self.tokens < self.capacity {
            let Some(next) = self.filled.checked_add(self.every).filter(|next| *next <= now) else { break };
            self.filled = next;
            self.tokens = self.tokens.saturating_add(1);
        }
        if self.tokens == self.capacity {
            self.filled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, Duration::from_secs(1), start);
        let takes = |bucket: &mut Bucket, at: u64| bucket.take(start + Duration::from_millis(at));
        assert_eq!([0, 0, 0, 0, 999].map(|at| takes(&mut bucket, at)), [true, true, true, false, false]);
        assert_eq!([1000, 1001, 2000].map(|at| takes(&mut bucket, at)), [true, false, true]);
        assert!(!bucket.is_full(start + Duration::from_millis(4500)));
        assert!(bucket.is_full(start + Duration::from_millis(5500)));
        let mut fast = Bucket::per_second(4, 2, start);
        assert_eq!((0..10).filter(|_| takes(&mut fast, 0)).count(), 4);
        assert_eq!((0..10).filter(|_| takes(&mut fast, 1000)).count(), 2);
        assert_eq!([100_000; 4].map(|at| takes(&mut bucket, at)), [true, true, true, false]);
    }
}
