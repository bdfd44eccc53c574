//! One path, and whether something still comes on it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{BARRED_FOR, BARRED_MOST, BUSY_SILENT, SILENT_AFTER, SPARE_SILENT};
use crate::path::{Path, rung};

/// Questions on a path that never answered come this often at first, then every [`PROBE_EVERY`].
pub(super) const FIRST_PROBES_EVERY: Duration = Duration::from_millis(200);
const FIRST_PROBES: u32 = 10;
/// Questions of one path whose answers are waited for: those of the first two seconds.
const MAX_ASKED: usize = 10;
/// How often a path is asked.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// See the module's text.
pub(super) struct Rung {
    pub(super) path: Arc<dyn Path>,
    /// Something came on it end to end.
    proven: bool,
    received: u64,
    pub(super) heard: Instant,
    /// Whether something came, look by look, the newest in the lowest bit; as it was when something last came.
    looks: u16,
    busy: bool,
    falls: u32,
    /// After it fell silent in use.
    pub(super) barred_until: Option<Instant>,
    /// Questions without an answer yet, oldest first, at most [`MAX_ASKED`].
    asked: VecDeque<(u32, Instant)>,
    questions: u32,
    next_question: Instant,
}

impl Rung {
    /// A handshake has proven a QUIC connection; any other path has to answer first.
    pub(super) fn new(now: Instant, path: Arc<dyn Path>) -> Self {
        Self {
            proven: rung(path.kind()) == 0,
            received: path.bytes().1,
            heard: now,
            looks: 0,
            busy: false,
            falls: 0,
            barred_until: None,
            asked: VecDeque::new(),
            questions: 0,
            next_question: now,
            path,
        }
    }

    pub(super) fn is_direct(&self) -> bool {
        rung(self.path.kind()) == 0
    }

    /// `moved`: the peer's voice comes on another path, so that a pause here says little.
    pub(super) fn is_silent(&self, now: Instant, used: bool, moved: bool) -> bool {
        let patience = match (used, self.busy && !moved) {
            (true, true) => BUSY_SILENT,
            (true, false) => SILENT_AFTER,
            (false, _) => SPARE_SILENT,
        };
        now.saturating_duration_since(self.heard) >= patience
    }

    /// Something came on it end to end, and still does.
    pub(super) fn is_alive(&self, now: Instant, used: bool, moved: bool) -> bool {
        self.proven && self.path.is_open() && !self.is_silent(now, used, moved)
    }

    /// It is not to be used although it may be alive.
    pub(super) fn is_barred(&self, now: Instant) -> bool {
        self.barred_until.is_some_and(|until| until > now)
    }

    /// Something came on it end to end.
    pub(super) fn heard(&mut self, now: Instant) {
        (self.heard, self.proven) = (now, true);
    }

    /// Sees whether something came since the last look.
    pub(super) fn look(&mut self, now: Instant) {
        let (_, received) = self.path.bytes();
        let came = received != self.received;
        self.received = received;
        self.looks = self.looks << 1 | u16::from(came);
        if came {
            self.heard = now;
            self.busy = (self.looks & 0xff).count_ones() >= 6;
        }
    }

    /// Whether voice comes on it now, as far as the last four looks say.
    pub(super) fn brings_voice(&self) -> bool {
        (self.looks & 0b1111).count_ones() >= 2
    }

    /// It is put in use, and has a moment to show that the peer's datagrams come on it.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.heard, self.busy) = (now, false);
    }

    /// It is left: until something comes on it again it is not taken to work.
    pub(super) fn leave(&mut self) {
        self.proven = false;
    }

    /// It fell silent in use.
    pub(super) fn fell(&mut self, now: Instant) {
        self.leave();
        let bar = BARRED_FOR.saturating_mul(1 << self.falls.min(4)).min(BARRED_MOST);
        self.falls = self.falls.saturating_add(1);
        self.barred_until = Some(now + bar);
    }

    /// Whether it is time to ask something on it.
    pub(super) fn question_due(&self, now: Instant) -> bool {
        self.next_question <= now
    }

    /// This question is asked on it now.
    pub(super) fn ask(&mut self, now: Instant, question: u32) {
        self.questions = self.questions.saturating_add(1);
        let quick = !self.proven && self.questions < FIRST_PROBES;
        self.next_question = now + if quick { FIRST_PROBES_EVERY } else { PROBE_EVERY };
        if self.asked.len() >= MAX_ASKED {
            self.asked.pop_front();
        }
        self.asked.push_back((question, now));
    }

    /// The next question comes as soon as may be.
    pub(super) fn ask_soon(&mut self, now: Instant) {
        let soon = self.asked.back().map_or(now, |(_, asked)| now.max(*asked + FIRST_PROBES_EVERY));
        self.next_question = self.next_question.min(soon);
    }

    /// An answer came on it: end to end, however late. Where the round trip is long, newer questions are under way already.
    pub(super) fn answered(&mut self, now: Instant, question: u32) {
        self.heard(now);
        if let Some((_, at)) = self.asked.iter().find(|(asked, _)| *asked == question).copied() {
            self.asked.retain(|(_, asked_at)| *asked_at > at);
            self.path.measured(now.saturating_duration_since(at));
        }
    }
}
