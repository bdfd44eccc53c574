//! Whether the way to a peer is too narrow for what we send, judged from both its ends.
//!
//! A congestion controller sees its own connection. Where voice goes through a server that is the way to the server, and
//! what lies behind it is seen by the peer alone: how long our packets took, and how many came. Only our direction is
//! looked at, so that a queue in the other one slows nobody down: two clocks that are not set alike do for that, since
//! only the growth counts.

use std::time::{Duration, Instant};

use hallway_codec::Report;

use crate::{
    least::Least,
    path::{LEAST_KBPS, QUEUE_MEANS_FULL},
};

/// Half of how long the shortest time on the way is remembered. Clocks that drift apart by 300 ppm make 6 ms of it.
const LEAST_SPAN: Duration = Duration::from_secs(10);
/// The queue that stands is the least of this time, so that a spike is none.
const STANDING_SPAN: Duration = Duration::from_millis(300);
/// A standing queue without loss is a deep one: it counts from here.
const DEEP_QUEUE: Duration = Duration::from_millis(250);
/// With a standing queue so much loss is the queue's, per cent.
const OVERFLOW_PERCENT: u32 = 8;
/// What was said is given so long to show, since a full queue takes time to drain.
const SETTLE: Duration = Duration::from_millis(1500);
/// Least time between two reports that can be told from a jolt.
const LEAST_INTERVAL: Duration = Duration::from_millis(200);
/// Headers of IP, UDP and QUIC around each packet, in bytes.
const HEADERS: u64 = 28 + 32;

/// What lies between us and one peer on one path.
#[derive(Debug)]
pub struct Bottleneck {
    /// Our clock when it began: what was asked before went another way.
    since: u64,
    least: Least<i64>,
    standing: Least<i64>,
    /// When the last report came, and the bytes sent by then.
    counted: Option<(Instant, u64)>,
    stated: Option<Instant>,
}

impl Bottleneck {
    /// Nothing is known of this path yet, which is used since `since` by our clock, in microseconds.
    pub fn new(now: Instant, since: u64) -> Self {
        Self {
            since,
            least: Least::new(now, LEAST_SPAN),
            standing: Least::new(now, STANDING_SPAN),
            counted: None,
            stated: None,
        }
    }

    /// Something we sent at `sent` by our clock arrived at `arrived` by the peer's, both in microseconds.
    pub fn crossed(&mut self, now: Instant, sent: u64, arrived: u64) {
        if sent < self.since {
            return;
        }
        let took = arrived.wrapping_sub(sent) as i64;
        self.least.insert(now, took);
        self.standing.insert(now, took);
    }

    /// How long our packets stand in queues now.
    pub fn queue(&self) -> Duration {
        match (self.standing.get(), self.least.get()) {
            (Some(standing), Some(least)) => {
                Duration::from_micros(u64::try_from(standing.saturating_sub(least)).unwrap_or(0))
            }
            _ => Duration::ZERO,
        }
    }

    /// The peer reports, after `sent` bytes of ours in all. The most to be sent from now on, in kb/s, where the way is full.
    pub fn heard(&mut self, now: Instant, report: &Report, sent: u64) -> Option<u32> {
        let (before, sent_before) = self.counted.replace((now, sent))?;
        let interval = now.saturating_duration_since(before);
        let packets = report.received.saturating_add(report.lost);
        if interval < LEAST_INTERVAL || packets == 0 {
            return None;
        }
        let queue = self.queue();
        let overflows = report.lost.saturating_mul(100) >= packets.saturating_mul(OVERFLOW_PERCENT);
        let full = queue > DEEP_QUEUE || queue > QUEUE_MEANS_FULL && overflows;
        let settling = self.stated.is_some_and(|at| now.saturating_duration_since(at) < SETTLE);
        if !full || settling {
            return None;
        }
        self.stated = Some(now);
        let bytes = sent.saturating_sub(sent_before).saturating_add(u64::from(packets) * HEADERS);
        let sent_kbps = bytes as f64 * 8.0 / 1000.0 / interval.as_secs_f64();
        let arrives = sent_kbps * f64::from(report.received) / f64::from(packets);
        Some(((arrives * 0.85) as u32).max(LEAST_KBPS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Way {
        bottleneck: Bottleneck,
        start: Instant,
        now: Instant,
        sent: u64,
    }

    impl Way {
        fn new() -> Self {
            let now = Instant::now();
            Self { bottleneck: Bottleneck::new(now, 0), start: now, now, sent: 0 }
        }

        /// Half a second in which packets of 160 bytes with headers, 100 a second, took `ms`, and `lost` of a hundred got lost.
        fn half_second(&mut self, ms: u64, lost: u32) -> Option<u32> {
            for _ in 0..2 {
                self.now += 250 * MS;
                // The peer's clock began at another time.
                let sent = self.now.duration_since(self.start).as_micros() as u64;
                let arrived = sent.wrapping_sub(5_000_000).wrapping_add(ms * 1000);
                self.bottleneck.crossed(self.now, sent, arrived);
            }
            self.sent += 50 * 100;
            let report = Report { received: 50 - lost / 2, lost: lost / 2, ..Report::default() };
            self.bottleneck.heard(self.now, &report, self.sent)
        }
    }

    #[test]
    fn a_way_that_overflows_gives_less_than_what_comes_through_it() {
        let mut way = Way::new();
        assert_eq!((way.half_second(40, 0), way.half_second(40, 0)), (None, None));
        let stated: Vec<u32> = (0..2).filter_map(|_| way.half_second(240, 50)).collect();
        // 128 kb/s are sent, half of it comes.
        assert_eq!(stated, [54]);
        assert_eq!(way.half_second(240, 50), None, "what was said is given time");
    }

    #[test]
    fn loss_without_a_queue_and_a_queue_without_loss_are_none_but_a_deep_one_is() {
        for (ms, lost, full) in [(45, 30, false), (150, 0, false), (150, 4, false), (400, 0, true)] {
            let mut way = Way::new();
            way.half_second(40, 0);
            let stated = (0..6).filter_map(|_| way.half_second(ms, lost)).next();
            assert_eq!(stated.is_some(), full, "{ms} ms, {lost} %");
        }
    }

    #[test]
    fn a_spike_is_no_queue_and_what_stands_is_one() {
        let mut way = Way::new();
        (0..4).for_each(|_| assert_eq!(way.half_second(40, 0), None));
        let sent = 9_000_000;
        way.bottleneck.crossed(way.now + 50 * MS, sent, sent - 5_000_000 + 400_000);
        assert_eq!(way.bottleneck.queue(), Duration::ZERO);
        let deep: Vec<u32> = (0..4).filter_map(|_| way.half_second(440, 0)).collect();
        assert!(!deep.is_empty());
        assert_eq!(way.bottleneck.queue(), 400 * MS);
    }

    #[test]
    fn what_was_asked_on_the_path_before_says_nothing_of_this_one() {
        let now = Instant::now();
        let mut bottleneck = Bottleneck::new(now, 1_000_000);
        bottleneck.crossed(now, 990_000, 1_000_000);
        bottleneck.crossed(now + 250 * MS, 1_200_000, 1_300_000);
        assert_eq!(bottleneck.queue(), Duration::ZERO);
    }
}
