//! The least value of the recent past, in constant memory.

use std::time::{Duration, Instant};

/// Least value of the last one to two spans of time.
#[derive(Debug, Clone)]
pub struct Least<T> {
    span: Duration,
    started: Instant,
    current: Option<T>,
    previous: Option<T>,
}

impl<T: Ord + Copy> Least<T> {
    /// Nothing is known yet at `now`.
    pub fn new(now: Instant, span: Duration) -> Self {
        Self { span, started: now, current: None, previous: None }
    }

    /// Takes a value in.
    pub fn insert(&mut self, now: Instant, value: T) {
        let age = now.saturating_duration_since(self.started);
        if age >= self.span {
            self.previous = if age < self.span.saturating_mul(2) { self.current } else { None };
            self.current = None;
            self.started = now;
        }
        self.current = Some(self.current.map_or(value, |least| least.min(value)));
    }

    /// `None` before the first value.
    pub fn get(&self) -> Option<T> {
        self.current.into_iter().chain(self.previous).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_two_spans_no_longer_counts() {
        let (start, span) = (Instant::now(), Duration::from_secs(1));
        let mut least = Least::new(start, span);
        assert_eq!(least.get(), None);
        let seen: Vec<Option<i32>> = [(0, 1), (900, 5), (1100, 7), (2200, 9), (9000, 8)]
            .map(|(ms, value)| {
                least.insert(start + Duration::from_millis(ms), value);
                least.get()
            })
            .into();
        assert_eq!(seen, [Some(1), Some(1), Some(1), Some(7), Some(8)]);
    }
}
