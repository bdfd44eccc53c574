//! What the peer hears of our voice on the path in use, as it tells: whoever passes it on may answer every question and
//! drop what matters.

use std::time::{Duration, Instant};

/// A path on which the peer got less than this share of our voice is left, where another one works.
const LEAST_HEARD: f32 = 0.5;
/// What the peer heard is judged over this time, which begins so long after a path was taken: reports tell of the past.
const HEARD_OVER: Duration = Duration::from_secs(2);
pub(super) const HEARD_FROM: Duration = Duration::from_millis(1500);
/// So many times in a row nothing was told: the reports themselves may have got lost.
const UNTOLD: u8 = 2;

/// See the module's text.
#[derive(Default)]
pub(super) struct HeardOfUs {
    /// Since when it is counted; `None` while nobody expects to be heard.
    since: Option<Instant>,
    packets: u32,
    lost: u32,
    reports: u32,
    /// This member has told something before.
    reported: bool,
    untold: u8,
    too_little: bool,
}

impl HeardOfUs {
    /// The peer is a member, and should hear us from then on.
    pub(super) fn expect(&mut self, from: Instant) {
        *self = Self { since: Some(from), ..Self::default() };
    }

    /// Another path is taken, or the same is given time: what was told so far says nothing of what comes. Where it was to
    /// be counted only later, that stands.
    pub(super) fn begin(&mut self, from: Instant) {
        if let Some(since) = self.since {
            *self = Self { since: Some(from.max(since)), reported: self.reported, ..Self::default() };
        }
    }

    /// The peer told how much came since it last told, and how much did not.
    pub(super) fn told(&mut self, now: Instant, packets: u32, lost: u32) {
        self.reported = true;
        if self.since.is_some_and(|since| since <= now) {
            self.packets = self.packets.saturating_add(packets);
            self.lost = self.lost.saturating_add(lost);
            self.reports = self.reports.saturating_add(1);
        }
    }

    /// It told of packets that did not come, and that its report leaves out.
    pub(super) fn missed(&mut self, now: Instant, packets: u32) {
        if self.since.is_some_and(|since| since <= now) {
            self.lost = self.lost.saturating_add(packets);
        }
    }

    /// Whether too little of our voice arrives on the path in use.
    pub(super) fn too_little(&self) -> bool {
        self.too_little
    }

    /// Judges where it is time to: whether enough was heard. `None` before, and while that is not known. `relayed`: somebody
    /// passes our voice on, so that a member who never said that it hears us may well not.
    pub(super) fn judge(&mut self, now: Instant, relayed: bool) -> Option<bool> {
        self.since.filter(|since| now.saturating_duration_since(*since) >= HEARD_OVER)?;
        let sent = self.packets.saturating_add(self.lost);
        let enough = match self.reports {
            0 => {
                self.untold = self.untold.saturating_add(1);
                (self.untold >= UNTOLD && (self.reported || relayed)).then_some(false)
            }
            _ => {
                self.untold = 0;
                Some(sent > 0 && self.packets as f32 >= sent as f32 * LEAST_HEARD)
            }
        };
        tracing::trace!(heard = self.packets, lost = self.lost, reports = self.reports, "of our voice");
        (self.packets, self.lost, self.reports, self.since) = (0, 0, 0, Some(now));
        self.too_little = enough.map_or(self.too_little, |enough| !enough);
        enough
    }
}
