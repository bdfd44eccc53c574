//! Lines of chat, exactly once and in order, to everybody who was in the room when they were said.
//!
//! A session delivers in order, but what it had not delivered dies with it. So each line waits here, per recipient, until
//! that one has said that it came, and is told again in the next session. A recipient takes the next number only:
//! neither a line told twice nor one that a flood guard dropped can be shown twice or out of turn. Who comes into the room
//! later has no box with older lines in it; who left loses its box.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Lines that wait for one recipient. Beyond, all of them are given up and counted: it has been away for long.
pub const MAX_WAITING_LINES: usize = 64;
/// Bytes of lines that wait for one recipient, in the same way.
pub const MAX_WAITING_BYTES: usize = 96 * 1024;
/// Lines told ahead of an answer: what the recipient's flood guard takes at once is more.
pub const WINDOW: usize = 8;
/// When a line is told again in a session that stands: the session itself delivers, so its flood guard dropped it.
pub const TELL_AGAIN: Duration = Duration::from_secs(3);

/// Where a line stands among those told to one recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// One box: random, so that a box made anew is told from the one before.
    pub run: u64,
    /// From 1 in each run.
    pub number: u64,
    /// The first that this recipient has not acknowledged: where one begins who knows nothing of this run.
    pub first: u64,
}

/// A line on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The same for every recipient.
    pub id: u64,
    /// As it was said.
    pub text: String,
}

/// The lines that one recipient has not acknowledged.
#[derive(Debug)]
pub struct Outbox {
    run: u64,
    lines: VecDeque<Line>,
    bytes: usize,
    /// Number of the first one.
    first: u64,
    /// How many were told in this session.
    told: usize,
    again: Option<Instant>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Outbox {
    /// An empty box.
    pub fn new() -> Self {
        Self { run: rand::random(), lines: VecDeque::new(), bytes: 0, first: 1, told: 0, again: None }
    }

    /// One more line. Gives the number of lines that were given up to make room.
    pub fn push(&mut self, line: Line) -> usize {
        let bytes = self.bytes.saturating_add(line.text.len());
        let mut given_up = 0;
        if self.lines.len() >= MAX_WAITING_LINES || bytes > MAX_WAITING_BYTES {
            given_up = self.lines.len();
            *self = Self::new();
        }
        self.bytes = self.bytes.saturating_add(line.text.len());
        self.lines.push_back(line);
        given_up
    }

    /// A session stands, new or anew: everything that waits is to be told.
    pub fn handle_session(&mut self) {
        (self.told, self.again) = (0, None);
    }

    /// The recipient has all lines of this run up to this number.
    pub fn handle_ack(&mut self, now: Instant, run: u64, number: u64) {
        if run != self.run {
            return;
        }
        while self.first <= number && self.told > 0 {
            let Some(line) = self.lines.pop_front() else { break };
            self.bytes = self.bytes.saturating_sub(line.text.len());
            self.first = self.first.saturating_add(1);
            self.told = self.told.saturating_sub(1);
        }
        self.again = (self.told > 0).then(|| now.checked_add(TELL_AGAIN)).flatten();
    }

    /// The next line to tell now.
    pub fn poll(&mut self, now: Instant) -> Option<(Place, Line)> {
        if self.again.is_some_and(|at| at <= now) {
            self.handle_session();
        }
        if self.told >= WINDOW {
            return None;
        }
        let line = self.lines.get(self.told)?.clone();
        let number = self.first.saturating_add(self.told as u64);
        self.told = self.told.saturating_add(1);
        self.again = now.checked_add(TELL_AGAIN);
        Some((Place { run: self.run, number, first: self.first }, line))
    }

    /// When to ask again if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.again.filter(|_| self.told > 0)
    }
}

/// What came from one sender.
#[derive(Debug, Default)]
pub struct Inbox {
    last: Option<Place>,
}

/// What to do with a line that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The next one: show it, and say that it came.
    New,
    /// Shown before: say again that it came.
    Known,
    /// One before it is missing: say nothing, both will come.
    Early,
}

impl Inbox {
    /// Where this line belongs.
    pub fn look(&self, place: Place) -> Arrival {
        match self.last {
            Some(last) if last.run == place.run => match place.number.checked_sub(last.number) {
                Some(1) => Arrival::New,
                Some(2..) => Arrival::Early,
                Some(0) | None => Arrival::Known,
            },
            // Another run, or the first that we hear of.
            _ if place.number == place.first => Arrival::New,
            _ => Arrival::Early,
        }
    }

    /// A new line is shown.
    pub fn take(&mut self, place: Place) {
        self.last = Some(place);
    }

    /// What to acknowledge.
    pub fn place(&self) -> Option<Place> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn line(id: u64) -> Line {
        Line { id, text: format!("line {id}") }
    }

    /// Tells everything that is to be told, to an inbox that takes those for which `takes` says so.
    fn exchange(
        out: &mut Outbox,
        inbox: &mut Inbox,
        now: Instant,
        shown: &mut Vec<u64>,
        takes: &mut impl FnMut() -> bool,
    ) {
        while let Some((place, line)) = out.poll(now) {
            if !takes() {
                continue;
            }
            if inbox.look(place) == Arrival::New {
                inbox.take(place);
                shown.push(line.id);
            }
            if let Some(place) = inbox.place().filter(|_| takes()) {
                out.handle_ack(now, place.run, place.number);
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_is_lost_between_sessions_every_line_comes_once_and_in_order(luck in proptest::collection::vec(any::<bool>(), 0..400)) {
            let (mut out, mut inbox, mut now) = (Outbox::new(), Inbox::default(), Instant::now());
            let mut luck = luck.into_iter();
            let mut shown = Vec::new();
            for id in 0..40 {
                out.push(line(id));
                exchange(&mut out, &mut inbox, now, &mut shown, &mut || luck.next().unwrap_or(true));
                if luck.next().unwrap_or(false) {
                    out.handle_session();
                }
                now += Duration::from_millis(700);
            }
            for _ in 0..20 {
                now += TELL_AGAIN;
                exchange(&mut out, &mut inbox, now, &mut shown, &mut || true);
            }
            prop_assert_eq!(shown, (0..40).collect::<Vec<_>>());
            prop_assert_eq!(out.poll_timeout(), None);
        }
    }

    #[test]
    fn an_acknowledgement_for_what_was_never_told_changes_nothing() {
        let (mut out, now) = (Outbox::new(), Instant::now());
        out.push(line(1));
        out.handle_ack(now, out.run, u64::MAX);
        let (place, told) = out.poll(now).unwrap();
        assert_eq!((place.number, told.id), (1, 1));
        out.handle_ack(now, !place.run, 1);
        assert_eq!(out.poll(now + TELL_AGAIN).unwrap().1.id, 1, "told again");
    }

    #[test]
    fn who_is_away_for_long_costs_a_bounded_number_of_lines_and_hears_the_newest() {
        let (mut out, mut inbox, now) = (Outbox::new(), Inbox::default(), Instant::now());
        let given_up: usize = (0..1000).map(|id| out.push(line(id))).sum();
        assert!(out.lines.len() <= MAX_WAITING_LINES && given_up + out.lines.len() == 1000);
        let big = Line { id: 0, text: "x".repeat(4096) };
        for _ in 0..1000 {
            out.push(big.clone());
            assert!(out.bytes <= MAX_WAITING_BYTES);
        }
        out.push(line(7));
        let mut shown = Vec::new();
        exchange(&mut out, &mut inbox, now, &mut shown, &mut || true);
        assert_eq!(shown.last(), Some(&7));
    }

    #[test]
    fn a_flood_guard_that_drops_lines_delays_them_and_keeps_their_order() {
        let (mut out, mut inbox, mut now) = (Outbox::new(), Inbox::default(), Instant::now());
        (0..30).for_each(|id| assert_eq!(out.push(line(id)), 0));
        let (mut shown, mut luck) = (Vec::new(), ChaCha8Rng::seed_from_u64(3));
        for _ in 0..60 {
            exchange(&mut out, &mut inbox, now, &mut shown, &mut || luck.random_ratio(2, 3));
            now += TELL_AGAIN;
        }
        assert_eq!(shown, (0..30).collect::<Vec<_>>());
    }
}
