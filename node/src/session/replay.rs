//! The replay window of RFC 6479: which counters of one key were used, without shifting the whole bitmap.

/// How far behind the newest counter a datagram may arrive and still be told from a replay.
pub const WINDOW: u64 = BITS - 64;
const BITS: u64 = 4096;
const WORDS: usize = 64;
const WORD_MASK: u64 = WORDS as u64 - 1;

/// The counters seen under one key. Ask [`ReplayWindow::check`] first, [`ReplayWindow::accept`] once the datagram has
/// authenticated: a forgery moves nothing.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    /// One past the newest counter accepted; 0 before the first. Counters stay below `u64::MAX`.
    next: u64,
    seen: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, seen: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// Whether `counter` is new: never accepted, and within [`WINDOW`] of the newest.
    pub fn check(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < u64::MAX;
        }
        let age = self.next.saturating_sub(counter); // 1 is the newest.
        age <= WINDOW && self.seen.get(word(counter)).is_some_and(|word| word & bit(counter) == 0)
    }

    /// Marks `counter` as used; false if [`check`](Self::check) says no.
    pub fn accept(&mut self, counter: u64) -> bool {
        if !self.check(counter) {
            return false;
        }
        if counter >= self.next {
            // Words between the old newest and this one hold counters of a lap ago.
            let (from, to) = (self.next.saturating_sub(1) >> 6, counter >> 6);
            let fresh = to.saturating_sub(from).min(WORDS as u64);
            for step in 0..fresh {
                if let Some(word) = self.seen.get_mut(word(to.saturating_sub(step) << 6)) {
                    *word = 0;
                }
            }
            self.next = counter.saturating_add(1);
        }
        if let Some(word) = self.seen.get_mut(word(counter)) {
            *word |= bit(counter);
        }
        true
    }
}

fn word(counter: u64) -> usize {
    ((counter >> 6) & WORD_MASK) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter & 63)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_counter_is_accepted_once() {
        let mut window = ReplayWindow::default();
        for counter in [0, 5, 3, 5000, 4999, 1000 + WINDOW] {
            assert!(window.accept(counter), "{counter}");
            assert!(!window.accept(counter), "{counter} again");
        }
    }

    #[test]
    fn the_window_reaches_exactly_as_far_back_as_it_says() {
        const { assert!(WINDOW >= 2048) };
        let mut window = ReplayWindow::default();
        assert!(window.accept(100_000));
        assert!(window.check(100_001 - WINDOW));
        assert!(!window.check(100_000 - WINDOW));
        assert!(window.accept(100_001 - WINDOW));
        assert!(!window.check(100_001 - WINDOW));
    }

    #[test]
    fn the_last_counter_of_all_is_never_used() {
        let mut window = ReplayWindow::default();
        assert!(!window.accept(u64::MAX));
        assert!(window.accept(u64::MAX - 1));
        assert!(!window.accept(u64::MAX));
        assert!(window.accept(u64::MAX - 2));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_everything_seen(
            moves in proptest::collection::vec((0u64..3, 0u64..6000), 1..400),
        ) {
            let mut window = ReplayWindow::default();
            let (mut seen, mut newest, mut at) = (BTreeSet::new(), None::<u64>, 3000u64);
            for (kind, size) in moves {
                let counter = match kind {
                    0 => { at += size % 70; at }
                    1 => { at += size; at }
                    _ => at.saturating_sub(size),
                };
                let inside = newest.is_none_or(|n| counter > n || n + 1 - counter <= WINDOW);
                prop_assert_eq!(window.accept(counter), inside && !seen.contains(&counter));
                if inside { seen.insert(counter); newest = newest.max(Some(counter)); }
            }
        }
    }
}
