//! Counts what is missing. A packet is judged only when some later ones have come, so that reordering is no loss.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::report::{BURST_BUCKETS, BURST_LIMITS};

/// Packets by which one may be overtaken before it counts as lost.
pub const REORDER: i64 = 8;
/// Packets remembered to tell duplicates.
const WINDOW: i64 = 1_024;
/// A step forward beyond this is a new count, not loss.
const MAX_JUMP: i64 = 8_192;
/// Packets in a row from far behind that make a new count.
const MAX_OLD: u32 = 8;

/// What a packet's number says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// Not seen before.
    New,
    /// Seen before, or too old to tell.
    Duplicate,
}

/// Counters, growing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets, without duplicates.
    pub received: u64,
    /// Packets judged as lost.
    pub lost: u64,
    /// Packets that came again.
    pub duplicates: u64,
    /// Runs of lost packets by length.
    pub bursts: [u64; BURST_BUCKETS],
    /// Packets that came between two lost ones.
    pub alone: u64,
}

/// One speaker's packet numbers.
#[derive(Debug)]
pub struct Sequence {
    seen: Vec<u64>,
    newest: Option<i64>,
    judged: i64,
    run: u32,
    /// Packets in a row that came since the last lost one.
    came: u32,
    old: u32,
    counts: Counts,
}

impl Default for Sequence {
    fn default() -> Self {
        Self {
            seen: vec![0; 16],
            newest: None,
            judged: 0,
            run: 0,
            came: u32::MAX,
            old: 0,
            counts: Counts::default(),
        }
    }
}

impl Sequence {
    /// Counts from here on.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The speaker began a new count.
    pub fn restart(&mut self) {
        self.newest = None;
        self.run = 0;
    }

    /// Takes a packet's number (32 bits, wrapping).
    pub fn insert(&mut self, wire: u32) -> Number {
        let Some(newest) = self.newest else {
            self.start(i64::from(wire));
            return Number::New;
        };
        let step = i64::from(wire.wrapping_sub(newest as u32) as i32);
        let number = newest.saturating_add(step);
        self.old = if step <= WINDOW.saturating_neg() { self.old.saturating_add(1) } else { 0 };
        if step > MAX_JUMP || step < MAX_JUMP.saturating_neg() || self.old >= MAX_OLD {
            self.start(i64::from(wire));
            return Number::New;
        }
        if step <= WINDOW.saturating_neg() || step <= 0 && self.is_seen(number) {
            self.counts.duplicates = self.counts.duplicates.saturating_add(1);
            return Number::Duplicate;
        }
        if step > 0 {
            // Judge before the marks of the oldest are taken over by the newest.
            for n in newest.saturating_add(1)..=number {
                self.mark(n, false);
                self.newest = Some(n);
                if n == number {
                    self.mark(n, true);
                }
                self.judge(n.saturating_sub(REORDER));
            }
        } else {
            self.mark(number, true);
            if number < self.judged {
                self.counts.lost = self.counts.lost.saturating_sub(1);
            }
        }
        self.counts.received = self.counts.received.saturating_add(1);
        Number::New
    }

    fn start(&mut self, number: i64) {
        self.seen.fill(0);
        // What came before the first packet is not missing.
        for n in number.saturating_sub(REORDER)..number {
            self.mark(n, true);
        }
        self.mark(number, true);
        self.newest = Some(number);
        self.judged = number;
        self.run = 0;
        self.came = u32::MAX;
        self.old = 0;
        self.counts.received = self.counts.received.saturating_add(1);
    }

    fn judge(&mut self, until: i64) {
        while self.judged < until {
            if self.is_seen(self.judged) {
                self.close_run();
                self.came = self.came.saturating_add(1);
            } else {
                if self.came == 1 {
                    self.counts.alone = self.counts.alone.saturating_add(1);
                }
                self.came = 0;
                self.counts.lost = self.counts.lost.saturating_add(1);
                self.run = self.run.saturating_add(1);
            }
            self.judged = self.judged.saturating_add(1);
        }
    }

    fn close_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        if run > 0 {
            let bucket = BURST_LIMITS.iter().position(|limit| run <= *limit);
            if let Some(count) = bucket.and_then(|b| self.counts.bursts.get_mut(b)) {
                *count = count.saturating_add(1);
            }
        }
    }

    fn place(number: i64) -> (usize, u64) {
        let bit = number.rem_euclid(WINDOW).unsigned_abs();
        (usize::try_from(bit >> 6).unwrap_or(0), 1u64.wrapping_shl((bit & 63) as u32))
    }

    fn is_seen(&self, number: i64) -> bool {
        let (word, bit) = Self::place(number);
        self.seen.get(word).is_some_and(|w| w & bit != 0)
    }

    fn mark(&mut self, number: i64, seen: bool) {
        let (word, bit) = Self::place(number);
        if let Some(word) = self.seen.get_mut(word) {
            if seen {
                *word |= bit;
            } else {
                *word &= !bit;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counted(numbers: impl IntoIterator<Item = u32>) -> Counts {
        let mut sequence = Sequence::default();
        for n in numbers {
            sequence.insert(n);
        }
        sequence.counts()
    }

    #[test]
    fn runs_of_loss_are_counted_by_length_across_the_wrap() {
        let from = u32::MAX - 20;
        let lost = [3u32, 10, 11, 12, 30, 31, 32, 33, 34];
        let counts = counted((0..100).filter(|n| !lost.contains(n)).map(|n| from.wrapping_add(n)));
        assert_eq!((counts.received, counts.lost, counts.duplicates), (91, 9, 0));
        assert_eq!(counts.bursts, [1, 0, 1, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn reordering_is_no_loss_and_a_very_late_packet_takes_its_loss_back() {
        assert_eq!(
            counted(
                [0, 2, 1, 4, 3, 9, 8, 7, 6, 5, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 30]
                    .into_iter()
                    .chain(31..60)
            )
            .lost,
            9
        );
        let mut sequence = Sequence::default();
        for n in (0..50).filter(|n| *n != 10) {
            sequence.insert(n);
        }
        assert_eq!(sequence.counts().lost, 1);
        assert_eq!(sequence.insert(10), Number::New);
        assert_eq!(sequence.counts().lost, 0);
        assert_eq!(sequence.insert(10), Number::Duplicate);
    }

    #[test]
    fn a_long_stream_without_loss_shows_none() {
        let counts = counted((0..10_000).map(|n| n + u32::MAX / 2));
        assert_eq!(counts, Counts { received: 10_000, ..Counts::default() });
    }

    #[test]
    fn a_number_from_the_future_silences_the_rest_for_a_few_packets_only() {
        let mut sequence = Sequence::default();
        for n in 0..100 {
            sequence.insert(n);
        }
        sequence.insert(8_000);
        let dropped = (100..200).filter(|n| sequence.insert(*n) == Number::Duplicate).count();
        assert_eq!(dropped, MAX_OLD as usize - 1);
    }

    proptest! {
        #[test]
        fn counts_add_up_whatever_the_order(
            mut numbers in proptest::collection::vec(0u32..400, 1..300), offset: u32, shuffle in 0usize..4,
        ) {
            if shuffle > 0 {
                numbers.sort_unstable();
            }
            let mut sequence = Sequence::default();
            for n in &numbers {
                sequence.insert(n.wrapping_add(offset));
            }
            let counts = sequence.counts();
            prop_assert_eq!(counts.received + counts.duplicates, numbers.len() as u64);
            prop_assert!(counts.lost <= 400);
        }

        #[test]
        fn any_numbers_are_survived(numbers in proptest::collection::vec(any::<u32>(), 0..200)) {
            prop_assert!(counted(numbers).lost <= 8_192 * 200);
        }
    }
}
