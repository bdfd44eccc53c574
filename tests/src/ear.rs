//! What a listener got, counted by the laboratory and not by the program under test.

use hallway_codec::{Played, Samples, Sound};

/// Delays up to this are told apart, ms.
const LONGEST_MS: f64 = 2000.0;
const BUCKETS_PER_MS: f64 = 20.0;
const BUCKETS: usize = (LONGEST_MS * BUCKETS_PER_MS) as usize;
/// A change of delay from one block to the next by more than this is a jump, ms: time stretching moves less in a block,
/// and resampling for drift far less.
const JUMP_MS: f64 = 4.0;

/// What was played into one ear.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Everything played since the first audio.
    pub played: Samples,
    /// Of that, made up because nothing fitting had come.
    pub concealed: Samples,
    /// Of that, silence: a long gap or a sender that went quiet.
    pub silent: Samples,
    /// Times the delay changed by more than 4 ms from one block to the next.
    pub jumps: u32,
    /// Longest unbroken run of made-up or silent blocks.
    pub longest_gap: Samples,
    /// Virtual time of the first audio, ms since the call began.
    pub first_audio_ms: Option<f64>,
    /// Loudest sample, 0 to 1.
    pub loudest: f32,
    gap: Samples,
    last_delay_ms: Option<f64>,
    delays: Histogram,
}

/// Percentiles of the true mouth-to-ear delay, ms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delays {
    /// Least.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 95th.
    pub p95: f64,
    /// 99th.
    pub p99: f64,
    /// Most.
    pub max: f64,
}

impl Heard {
    /// Share of played time that was made up or silent, percent.
    pub fn missing_pct(&self) -> f64 {
        100.0 * (f64::from(self.concealed.0) + f64::from(self.silent.0)) / f64::from(self.played.0.max(1))
    }

    pub(crate) fn add(
        &mut self,
        now_ms: f64,
        played: &Played,
        delay_ms: Option<f64>,
        block: &[f32],
        frames: Samples,
    ) {
        self.loudest = block.iter().fold(self.loudest, |top, x| top.max(x.abs()));
        if played.first_audio && self.first_audio_ms.is_none() {
            self.first_audio_ms = Some(now_ms);
        }
        if self.first_audio_ms.is_none() {
            return;
        }
        self.played.0 += frames.0;
        self.concealed.0 += played.concealed.0;
        match played.sound {
            Sound::Voice => {}
            Sound::Concealed => {}
            Sound::Silence | Sound::Nothing => self.silent.0 += frames.0 - played.concealed.0.min(frames.0),
        }
        if played.sound == Sound::Voice {
            self.gap = Samples(0);
        } else {
            self.gap.0 += frames.0;
            self.longest_gap = self.longest_gap.max(self.gap);
        }
        // Of made-up sound nobody can say when it was said.
        let Some(delay_ms) = delay_ms.filter(|_| played.sound == Sound::Voice) else { return };
        if self.last_delay_ms.is_some_and(|last| (delay_ms - last).abs() > JUMP_MS) {
            self.jumps += 1;
        }
        self.last_delay_ms = Some(delay_ms);
        self.delays.add(delay_ms);
    }

    pub(crate) fn delays(&self) -> Option<Delays> {
        let at = |share: f64| self.delays.quantile(share);
        Some(Delays { min: at(0.0)?, p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)?, max: at(1.0)? })
    }

    /// Counts from nothing again, as if listening had just begun.
    pub(crate) fn restart(&mut self) {
        // Field by field and not from the default: counting memory must not count the laboratory's.
        (self.played, self.concealed, self.silent) = (Samples(0), Samples(0), Samples(0));
        (self.longest_gap, self.gap, self.jumps, self.loudest) = (Samples(0), Samples(0), 0, 0.0);
        self.last_delay_ms = None;
        self.delays.counts.fill(0);
    }
}

/// Delays in buckets of 0.05 ms: an hour of call takes no more memory than a minute.
#[derive(Clone, Debug)]
struct Histogram {
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS] }
    }
}

impl Histogram {
    fn add(&mut self, ms: f64) {
        let bucket = ((ms.max(0.0) * BUCKETS_PER_MS) as usize).min(BUCKETS - 1);
        self.counts[bucket] += 1;
    }

    fn quantile(&self, share: f64) -> Option<f64> {
        let total: u64 = self.counts.iter().sum();
        let rank = (share * total.checked_sub(1)? as f64).round() as u64;
        let mut below = 0;
        let bucket = self.counts.iter().position(|count| {
            below += count;
            below > rank
        })?;
        Some((bucket as f64 + 0.5) / BUCKETS_PER_MS)
    }
}
