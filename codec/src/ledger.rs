//! The latency ledger: every frame that is played gives its mouth-to-ear delay, stage by stage.

use crate::{
    jitter::packets::Trace,
    report::{Percentiles, Stages},
    time::{ClockOffset, Micros, expand_micros},
};

/// Buckets of the histogram: 0.5 ms each, the last takes all beyond.
const BUCKETS: usize = 2_048;
const BUCKET_US: i64 = 500;

/// A bounded histogram of delays. Exact to 0.5 ms up to a second.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u32>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    /// Counts one delay in microseconds; below zero counts as zero.
    pub fn add(&mut self, us: i64) {
        let bucket = usize::try_from(us / BUCKET_US).unwrap_or(0).min(BUCKETS - 1);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count = count.saturating_add(1);
            self.total += 1;
        }
    }

    /// Median, 95th and 99th percentile in ms; `None` while empty.
    #[must_use]
    pub fn percentiles(&self) -> Option<Percentiles> {
        if self.total == 0 {
            return None;
        }
        let at = |share: f64| {
            let rank = (share * self.total as f64).ceil().max(1.0) as u64;
            let mut seen = 0u64;
            let bucket = self.counts.iter().position(|count| {
                seen += u64::from(*count);
                seen >= rank
            });
            (bucket.unwrap_or(BUCKETS - 1) as f32 + 0.5) * BUCKET_US as f32 / 1000.0
        };
        Some(Percentiles { p50: at(0.50), p95: at(0.95), p99: at(0.99) })
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }
}

/// Where a frame's time at our end went.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    /// When its first sample is heard.
    pub at: Micros,
    /// Of that, sound device and mixer, us.
    pub playback_us: u32,
    /// Of that, resampler, us.
    pub decode_us: u32,
}

/// Collects frames between two looks at it.
#[derive(Debug, Default)]
pub struct Ledger {
    clock: Option<ClockOffset>,
    send_us: u32,
    interval: Histogram,
    total: Histogram,
    sums: [f64; 7],
    frames: u32,
}

/// What the ledger says of an interval.
#[derive(Debug, Clone, Copy)]
pub struct Account {
    /// Means of the stages, ms.
    pub stages: Stages,
    /// Percentiles of the whole, ms.
    pub percentiles: Option<Percentiles>,
    /// Half-width of the interval in which it lies, ms.
    pub error_ms: f32,
}

impl Ledger {
    /// The speaker's clock against ours. Without it nothing is entered.
    pub fn set_clock(&mut self, clock: Option<ClockOffset>) {
        self.clock = clock;
    }

    /// The speaker's own word for the time from encoder to socket, us.
    pub fn set_send_delay(&mut self, us: u32) {
        self.send_us = us;
    }

    /// Enters a frame. The stages add up to the whole by construction: the time in the jitter buffer is what the others
    /// leave, and for a copy it holds the wait for the copy as well.
    pub fn enter(&mut self, trace: &Trace, heard: Heard) {
        let Some(clock) = self.clock.filter(|_| trace.is_known) else { return };
        let arrived = i64::try_from(trace.arrived.0).unwrap_or(i64::MAX);
        let captured_there = expand_micros(trace.captured_us, arrived.saturating_add(clock.offset_us));
        let captured = captured_there.saturating_sub(clock.offset_us);
        let whole = i64::try_from(heard.at.0).unwrap_or(i64::MAX).saturating_sub(captured);
        let sent = captured.saturating_add(trace.back_us.into()).saturating_add(
            i64::from(trace.capture_us) + i64::from(trace.encode_us) + i64::from(self.send_us),
        );
        let network = arrived.saturating_sub(sent);
        let known = i64::from(trace.capture_us)
            + i64::from(trace.encode_us)
            + i64::from(self.send_us)
            + i64::from(heard.decode_us)
            + i64::from(heard.playback_us);
        let waited = whole.saturating_sub(known).saturating_sub(network);
        self.interval.add(whole);
        self.total.add(whole);
        self.frames = self.frames.saturating_add(1);
        let stages = [
            i64::from(trace.capture_us),
            trace.encode_us.into(),
            self.send_us.into(),
            network,
            waited,
            heard.decode_us.into(),
            heard.playback_us.into(),
        ];
        for (sum, us) in self.sums.iter_mut().zip(stages) {
            *sum += us as f64;
        }
    }

    /// Closes the interval.
    pub fn take(&mut self) -> Option<Account> {
        let error_ms = self.clock?.error_us as f32 / 1000.0;
        let percentiles = self.interval.percentiles();
        self.interval.clear();
        let frames = f64::from(std::mem::take(&mut self.frames));
        let sums = std::mem::take(&mut self.sums);
        if frames == 0.0 {
            return None;
        }
        let [capture, encode, send, network, jitter_buffer, decode, playback] =
            sums.map(|us| (us / frames / 1000.0) as f32);
        let stages = Stages { capture, encode, send, network, jitter_buffer, decode, playback };
        Some(Account { stages, percentiles, error_ms })
    }

    /// Percentiles since the beginning.
    #[must_use]
    pub fn total(&self) -> Option<Percentiles> {
        self.total.percentiles()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_add_up_to_the_whole_even_when_the_peers_clock_wraps() {
        let offset_us = (7i64 << 32) - 9_000_000;
        let mut ledger = Ledger::default();
        let arrived = Micros(9_000_500);
        let captured_there = arrived.0 as i64 + offset_us - 30_000;
        let trace = Trace {
            is_known: true,
            arrived,
            captured_us: captured_there as u32,
            capture_us: 5_000,
            encode_us: 2_500,
            back_us: 0,
            quiet: false,
        };
        let heard = Heard { at: arrived.plus(12_000), playback_us: 4_000, decode_us: 333 };
        ledger.enter(&trace, heard);
        assert!(ledger.take().is_none(), "nothing is known while the clock is not");
        ledger.set_clock(Some(ClockOffset { offset_us, error_us: 700 }));
        ledger.set_send_delay(100);
        ledger.enter(&trace, heard);
        let account = ledger.take().unwrap();
        assert!((account.stages.total() - 42.0).abs() < 1e-3);
        assert!((account.stages.network - 22.4).abs() < 1e-3);
        assert!((account.stages.jitter_buffer - 7.667).abs() < 1e-3);
        assert!((account.percentiles.unwrap().p50 - 42.0).abs() <= 0.5);
        assert!((account.error_ms - 0.7).abs() < 1e-6);
        assert!(ledger.take().is_none());
        assert!(ledger.total().is_some());
    }

    #[test]
    fn percentiles_are_right_within_a_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentiles(), None);
        (1..=1000).for_each(|i| histogram.add(i * 100));
        histogram.add(i64::MAX);
        histogram.add(-5);
        let p = histogram.percentiles().unwrap();
        assert!(
            (p.p50 - 50.0).abs() < 0.6 && (p.p95 - 95.0).abs() < 0.6 && (p.p99 - 99.0).abs() < 0.6,
            "{p:?}"
        );
    }
}
