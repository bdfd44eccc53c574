//! What one listener's path loses: how much as of late, how much is remembered, and what grade follows.
//!
//! Bad times come back, and each change of frame length and delay is heard a little, so loss is forgotten slowly: unless
//! the path has been quiet for so long that, at the rate of its losses, this cannot be chance.

use crate::{
    report::{BURST_BUCKETS, BURST_LIMITS, Report},
    time::{Micros, Samples},
};
use std::collections::VecDeque;

/// Loss reports remembered of each peer and source.
pub const MAX_SAMPLES: usize = 32;
/// Loss is judged over this time.
const WINDOW_US: u64 = 3_000_000;
/// Time in which remembered loss falls to a third.
const FORGET_US: u64 = 8_000_000;
/// A path that goes bad again within this time after it was taken for good remembers longer, up to so many times.
const AGAIN_US: u64 = 60_000_000;
const LONGEST_MEMORY: u64 = 8;
/// Share lost in long runs from which loss counts as bursty, and length of a long run.
const BURSTY: f64 = 0.005;
const LONG_RUN: Samples = Samples::from_ms(15);
/// Losses in the window below which nothing is concluded: one short burst on a clean path is no trend.
const MIN_LOST: u64 = 5;
/// Lost packets to be seen before bursts are judged, and the share of packets alone among losses below which bursts let
/// nothing through. Bursts that lose 85 % show 0.13, outages hardly any.
const OUTAGES_AFTER: f64 = 60.0;
const OUTAGES_BELOW: f64 = 0.05;
/// Reports over which that is judged: each one that follows weighs a little less.
const OUTAGES_MEMORY: f64 = 0.97;
/// A quiet time in which, by their rate before it, so many runs of loss should have come is no chance.
const QUIET_RUNS: f64 = 10.0;
/// And it is at least so long.
const QUIET_US: u64 = 3_500_000;

/// How bad a path is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Grade {
    #[default]
    Clean,
    /// A packet now and then.
    Light,
    /// Bursts, or more than one copy makes good.
    Lossy,
    /// Bursts in which nothing comes through are a good part of the time.
    Bad,
}

impl Grade {
    /// Grade of a share of lost packets, 0.0..=1.0.
    fn entered_at(loss: f64, bursty: bool) -> Self {
        match loss {
            l if l >= 0.33 => Self::Bad,
            l if l >= 0.05 || bursty && l >= 0.007 => Self::Lossy,
            l if l >= 0.006 => Self::Light,
            _ => Self::Clean,
        }
    }

    /// Remembered loss under which this grade is left downwards.
    fn left_below(self) -> f64 {
        match self {
            Self::Clean => 0.0,
            Self::Light => 0.002,
            Self::Lossy => 0.03,
            Self::Bad => 0.15,
        }
    }
}

/// Losses of one source over [`WINDOW_US`].
#[derive(Debug, Default)]
pub(super) struct Losses(VecDeque<(Micros, u64, u64)>);

impl Losses {
    fn add(&mut self, now: Micros, sent: u64, lost: u64) {
        if self.0.len() == MAX_SAMPLES {
            // The two oldest become one: the window keeps its sum however often reports come.
            if let (Some(a), Some(b)) = (self.0.pop_front(), self.0.front_mut()) {
                *b = (b.0, b.1.saturating_add(a.1), b.2.saturating_add(a.2));
            }
        }
        self.0.push_back((now, sent, lost.min(sent)));
    }

    /// Share and number of lost packets.
    fn loss(&mut self, now: Micros) -> Option<(f64, u64)> {
        while self.0.front().is_some_and(|s| now.since(s.0) > WINDOW_US) {
            self.0.pop_front();
        }
        let sent = self.0.iter().fold(0u64, |n, s| n.saturating_add(s.1));
        let lost = self.0.iter().fold(0u64, |n, s| n.saturating_add(s.2));
        (sent > 0).then(|| (lost as f64 / sent as f64, lost))
    }
}

/// What one listener and the path to it lose.
#[derive(Debug, Default)]
pub(super) struct Loss {
    reported: Losses,
    acknowledged: Losses,
    totals: Option<(u64, u64)>,
    grade: Grade,
    memory: Memory,
    runs: Runs,
    /// Packets lost, and packets that came alone between them, as of late.
    lost: f64,
    alone: f64,
}

/// Loss as it is remembered.
#[derive(Debug, Default)]
struct Memory {
    loss: f64,
    /// Share lost in long runs.
    in_runs: f64,
    at: Micros,
    /// How many times longer than at first.
    length: u64,
    became_clean: Option<Micros>,
}

impl Memory {
    fn fade(&mut self, now: Micros) {
        let span = (FORGET_US * self.length.max(1)) as f64;
        let kept = (-(now.since(self.at) as f64) / span).exp();
        self.at = now;
        self.loss *= kept;
        self.in_runs *= kept;
    }
}

/// How often loss comes.
#[derive(Debug, Default)]
struct Runs {
    /// Runs of loss, those of [`FORGET_US`] ago weighing a third.
    count: f64,
    /// When the last came.
    at: Option<Micros>,
}

impl Runs {
    fn add(&mut self, now: Micros, runs: u32) {
        if runs > 0 {
            let since = self.at.map_or(0, |at| now.since(at));
            self.count = self.count * (-(since as f64) / FORGET_US as f64).exp() + f64::from(runs);
            self.at = Some(now);
        }
    }

    /// Loss was seen of which it is not known how it came.
    fn go_on(&mut self, now: Micros) {
        self.at = self.at.map(|at| at.max(now));
    }

    /// Whether it has stopped, and that is no chance. `again` is how many times surer one must be.
    fn have_stopped(&self, now: Micros, again: u64) -> bool {
        let Some(at) = self.at else { return false };
        let quiet = now.since(at);
        let missed = quiet as f64 * self.count / FORGET_US as f64;
        quiet >= QUIET_US && missed >= QUIET_RUNS * again.max(1) as f64
    }
}

impl Loss {
    /// How bad it is.
    pub(super) fn grade(&self) -> Grade {
        self.grade
    }

    /// A listener's report, of packets sent so far apart.
    pub(super) fn handle_report(&mut self, now: Micros, report: &Report, spacing: Samples) {
        let sent = u64::from(report.received) + u64::from(report.lost);
        self.reported.add(now, sent, report.lost.into());
        // One stay in a bad state is many runs, so a report with any counts once.
        self.runs.add(now, u32::from(report.lost > 0));
        self.note_runs(now, report, spacing);
        self.judge(now);
    }

    /// The path's own totals; a smaller one than before means a new path.
    pub(super) fn handle_totals(&mut self, now: Micros, sent: u64, lost: u64) {
        if let Some((sent_before, lost_before)) = self.totals.replace((sent, lost))
            && sent >= sent_before
        {
            let fresh = lost.saturating_sub(lost_before);
            self.acknowledged.add(now, sent - sent_before, fresh);
            if fresh > 0 {
                self.runs.go_on(now);
            }
            self.judge(now);
        }
    }

    pub(super) fn judge(&mut self, now: Micros) {
        let recent = match (self.reported.loss(now), self.acknowledged.loss(now)) {
            (None, None) => return,
            (a, b) => [a, b].into_iter().flatten().fold(0.0, |most: f64, (share, lost)| {
                // On a clean path a few are no trend; on a bad one they are the rest of it.
                if lost >= MIN_LOST || self.grade > Grade::Clean { most.max(share) } else { most }
            }),
        };
        self.memory.fade(now);
        if self.grade > Grade::Clean && self.runs.have_stopped(now, self.memory.length) {
            (self.memory.loss, self.memory.in_runs) = (0.0, 0.0);
            self.runs = Runs::default();
        }
        self.memory.loss = self.memory.loss.max(recent);
        let loss = self.memory.loss;
        let entered = Grade::entered_at(loss, self.memory.in_runs >= BURSTY);
        if entered > self.grade {
            let again = self.memory.became_clean.take().is_some_and(|at| now.since(at) < AGAIN_US);
            if self.grade == Grade::Clean {
                let length = self.memory.length.max(1);
                self.memory.length = if again { (length * 2).min(LONGEST_MEMORY) } else { 1 };
            }
            self.grade = entered;
        } else if loss < self.grade.left_below() && entered < self.grade {
            self.grade = entered;
            if entered == Grade::Clean {
                self.memory.became_clean = Some(now);
            }
        }
    }

    /// Notes how the losses of a report, of frames of this length, hang together.
    fn note_runs(&mut self, now: Micros, report: &Report, spacing: Samples) {
        let mut in_runs = 0u64;
        for (runs, limit) in report.bursts.iter().zip(BURST_LIMITS) {
            // The last bucket knows no upper end; what is beyond the one before it is long enough to count as that.
            let length = limit.min(BURST_LIMITS[BURST_BUCKETS - 2]);
            if length.saturating_mul(spacing.0) >= LONG_RUN.0 && length > 1 {
                in_runs += u64::from(*runs) * u64::from(length);
            }
        }
        let sent = u64::from(report.received) + u64::from(report.lost);
        if sent > 0 && in_runs >= MIN_LOST {
            self.memory.fade(now);
            // A report is half a second or a second of a window of three.
            let share = (in_runs as f64 / sent as f64).min(1.0) / 3.0;
            self.memory.in_runs = self.memory.in_runs.max(share);
        }
        self.lost = self.lost * OUTAGES_MEMORY + f64::from(report.lost);
        self.alone = self.alone * OUTAGES_MEMORY + f64::from(report.alone);
    }

    /// Whether bursts of loss let nothing through, so that more packets within them gain nothing.
    pub(super) fn has_outages(&self) -> bool {
        self.lost >= OUTAGES_AFTER && self.alone < OUTAGES_BELOW * self.lost
    }
}

#[cfg(test)]
impl Loss {
    /// Reports and acknowledgements held, for tests of the bound.
    pub(super) fn samples(&self) -> usize {
        self.reported.0.len().max(self.acknowledged.0.len())
    }
}
