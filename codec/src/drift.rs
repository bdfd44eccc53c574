//! Two sound cards never run at one speed. Here the difference is measured ([`Estimator`]) and made good ([`Resampler`]).
//!
//! Measured: each frame's availability, which is our playout count minus its position, has a minimum over any second that
//! queues and jitter hardly touch. The slope of those minima is the drift.

use crate::{stretch::Audio, time::SAMPLE_RATE};
use std::{collections::VecDeque, f64::consts::PI, sync::LazyLock};

/// Greatest drift that is believed, ppm. Sound cards stay within a third of it.
pub const MAX_DRIFT_PPM: f64 = 500.0;
/// Seconds of history that the slope is taken from.
const MAX_BLOCKS: usize = 60;
/// Blocks before anything is said.
const MIN_BLOCKS: usize = 4;
/// Length of a block, in samples.
const BLOCK: i64 = SAMPLE_RATE as i64;
/// A minimum so far from the line is a new path, not drift; in samples.
const SHIFT: f64 = 192.0;

/// Estimates how fast availability grows. Feed every packet's availability.
#[derive(Debug)]
pub struct Estimator {
    blocks: VecDeque<(f64, f64)>,
    slopes: Vec<f64>,
    current: Option<(i64, f64, f64)>,
    slope: f64,
    known: bool,
}

impl Default for Estimator {
    fn default() -> Self {
        Self {
            blocks: VecDeque::with_capacity(MAX_BLOCKS + 1),
            slopes: Vec::with_capacity(MAX_BLOCKS * MAX_BLOCKS / 2),
            current: None,
            slope: 0.0,
            known: false,
        }
    }
}

impl Estimator {
    /// A packet came when `at` samples had been played (with their fraction), and its availability was `availability`.
    pub fn insert(&mut self, at: f64, availability: f64) {
        let block = at as i64 / BLOCK;
        match &mut self.current {
            Some((current, when, least)) if *current == block => {
                if availability < *least {
                    (*when, *least) = (at, availability);
                }
            }
            _ => {
                if let Some((_, when, least)) = self.current.replace((block, at, availability)) {
                    self.close(when, least);
                }
            }
        }
    }

    /// How fast availability grows, in samples per sample; positive where the speaker's clock is slow. Zero until known.
    #[must_use]
    pub fn slope(&self) -> f64 {
        self.slope
    }

    /// The speaker's clock against ours, in ppm, positive where it is fast.
    #[must_use]
    pub fn ppm(&self) -> Option<f64> {
        self.known.then_some(-self.slope * 1e6)
    }

    /// The path's delay changed by itself: what was learnt of the slope stays, its history does not.
    pub fn start_afresh(&mut self) {
        self.blocks.clear();
        self.current = None;
    }

    fn close(&mut self, at: f64, least: f64) {
        if let Some((last_at, last)) = self.blocks.back() {
            let step = least - (last + self.slope * (at - last_at));
            if step.abs() > SHIFT {
                // The old minima move along, so that the slope within them still counts.
                self.blocks.iter_mut().for_each(|b| b.1 += step);
            }
        }
        self.blocks.push_back((at, least));
        if self.blocks.len() > MAX_BLOCKS {
            self.blocks.pop_front();
        }
        if self.blocks.len() < MIN_BLOCKS {
            return;
        }
        // The median of the slopes between all pairs (Theil and Sen): a few bad seconds do not move it.
        self.slopes.clear();
        for (i, a) in self.blocks.iter().enumerate() {
            for b in self.blocks.iter().skip(i + 1) {
                if b.0 > a.0 {
                    self.slopes.push((b.1 - a.1) / (b.0 - a.0));
                }
            }
        }
        let middle = self.slopes.len() / 2;
        if let Some((_, median, _)) =
            (middle < self.slopes.len()).then(|| self.slopes.select_nth_unstable_by(middle, f64::total_cmp))
        {
            let limit = MAX_DRIFT_PPM * 1e-6;
            // Few seconds say little: they are believed in part.
            let trust = if self.known { 1.0 } else { (self.blocks.len() as f64 / 10.0).min(1.0) };
            self.slope = (*median * trust).clamp(-limit, limit);
            self.known |= self.blocks.len() >= 10;
        }
    }
}

/// Taps of the interpolation filter.
pub const TAPS: usize = 32;
/// Samples ahead of the playout position that the filter reads: its delay, 0.33 ms.
pub const LEAD: usize = TAPS / 2;
/// Positions between two samples for which the filter is tabled; between those it is interpolated.
const PHASES: usize = 128;

static FILTER: LazyLock<Vec<[f32; TAPS]>> = LazyLock::new(|| {
    let kaiser = |x: f64| bessel(8.0 * (1.0 - x * x).max(0.0).sqrt()) / bessel(8.0);
    (0..=PHASES)
        .map(|phase| {
            let offset = phase as f64 / PHASES as f64;
            let mut row = [0.0f64; TAPS];
            for (k, tap) in row.iter_mut().enumerate() {
                let t = k as f64 - (LEAD - 1) as f64 - offset;
                let sinc = if t.abs() < 1e-9 { 1.0 } else { (PI * t).sin() / (PI * t) };
                *tap = sinc * kaiser(t / LEAD as f64);
            }
            let sum: f64 = row.iter().sum();
            row.map(|tap| (tap / sum) as f32)
        })
        .collect()
});

/// Modified Bessel function of the first kind, order 0.
fn bessel(x: f64) -> f64 {
    let (mut sum, mut term) = (1.0, 1.0);
    for k in 1..40 {
        term *= (x / 2.0 / f64::from(k)).powi(2);
        sum += term;
    }
    sum
}

/// Plays decoded audio a little faster or slower: windowed sinc of any ratio, flat to 18 kHz. Real-time safe.
#[derive(Debug)]
pub struct Resampler {
    channels: usize,
    /// Part of a sample, 0.0..1.0, by which the position lies after the audio's read mark.
    fraction: f64,
}

impl Resampler {
    /// A resampler of `channels` interleaved channels.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        LazyLock::force(&FILTER);
        Self { channels, fraction: 0.0 }
    }

    /// Samples that must lie ahead so that `outputs` can be made at `step` input samples each.
    #[must_use]
    pub fn needed(&self, outputs: usize, step: f64) -> usize {
        (self.fraction + outputs as f64 * step) as usize + 1 + LEAD
    }

    /// Position after the audio's read mark, in samples.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        self.fraction
    }

    /// Fills `out`, moving on by `step` input samples for each output. `audio` must hold [`Resampler::needed`] ahead.
    pub fn process(&mut self, audio: &mut Audio, step: f64, out: &mut [f32]) {
        let outputs = out.len() / self.channels;
        let mut position = self.fraction;
        {
            let window = audio.around(LEAD - 1);
            for sample in out.chunks_exact_mut(self.channels) {
                let whole = position as usize;
                let phase = (position - whole as f64) * PHASES as f64;
                let row = (phase as usize).min(PHASES - 1);
                let weight = (phase - row as f64) as f32;
                let from = whole * self.channels;
                let (Some(a), Some(b), Some(x)) =
                    (FILTER.get(row), FILTER.get(row + 1), window.get(from..from + TAPS * self.channels))
                else {
                    sample.fill(0.0);
                    continue;
                };
                if self.channels == 1 {
                    // Two sums, mixed at the end: the compiler makes vector code of them.
                    let (mut low, mut high) = ([0.0f32; 8], [0.0f32; 8]);
                    for ((x, a), b) in x.chunks_exact(8).zip(a.chunks_exact(8)).zip(b.chunks_exact(8)) {
                        for i in 0..8 {
                            low[i] += x[i] * a[i];
                            high[i] += x[i] * b[i];
                        }
                    }
                    let (low, high) = (low.iter().sum::<f32>(), high.iter().sum::<f32>());
                    sample[0] = low + weight * (high - low);
                } else {
                    for (c, s) in sample.iter_mut().enumerate() {
                        *s = x
                            .iter()
                            .skip(c)
                            .step_by(self.channels)
                            .zip(a.iter().zip(b))
                            .map(|(x, (a, b))| x * (a + weight * (b - a)))
                            .sum();
                    }
                }
                position += step;
            }
        }
        // One product instead of the sum of steps: nothing creeps in over days.
        let end = self.fraction + outputs as f64 * step;
        audio.consume(end as usize);
        self.fraction = end - end.floor();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resampled(step: f64, frequency: f64, n: usize) -> Vec<f32> {
        let mut audio = Audio::new(1);
        let mut resampler = Resampler::new(1);
        let (mut said, mut out) = (0, Vec::new());
        while out.len() < n {
            while audio.ahead() < resampler.needed(120, step) {
                let from = said;
                said += 240;
                audio.push(240, |pcm| {
                    for (i, s) in pcm.iter_mut().enumerate() {
                        *s = (2.0 * PI * frequency * (from + i) as f64 / 48_000.0).sin() as f32;
                    }
                });
            }
            let mut block = [0.0; 120];
            resampler.process(&mut audio, step, &mut block);
            out.extend(block);
        }
        out
    }

    #[test]
    fn equal_clocks_pass_samples_through_unchanged() {
        let out = resampled(1.0, 997.0, 4800);
        for (i, s) in out.iter().enumerate() {
            let wanted = (2.0 * PI * 997.0 * i as f64 / 48_000.0).sin() as f32;
            assert!((s - wanted).abs() < 1e-6, "{i}");
        }
    }

    #[test]
    fn unequal_clocks_bend_the_pitch_by_that_much_and_nothing_else() {
        for (frequency, least) in [(440.0, 85.0), (3_000.0, 80.0), (12_000.0, 65.0), (17_000.0, 55.0)] {
            for ppm in [-300.0, 300.0] {
                let step = 1.0 + ppm * 1e-6;
                let out = resampled(step, frequency, 48_000);
                let (mut signal, mut noise) = (0.0, 0.0);
                for (i, s) in out.iter().enumerate().skip(200) {
                    let wanted = (2.0 * PI * frequency * i as f64 * step / 48_000.0).sin();
                    signal += wanted * wanted;
                    noise += (f64::from(*s) - wanted).powi(2);
                }
                let snr = 10.0 * f64::log10(signal / noise);
                assert!(snr > least, "{frequency} Hz at {ppm} ppm: {snr:.1} dB");
            }
        }
    }

    #[test]
    fn drift_is_found_under_jitter_and_survives_a_change_of_path() {
        use rand::{Rng, SeedableRng};
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        for ppm in [-300.0, 0.0, 300.0] {
            let mut estimator = Estimator::default();
            for packet in 0..12_000 {
                let at = f64::from(packet) * 240.0;
                let path = if packet > 6_000 { 2_000.0 } else { 1_000.0 };
                let jitter = random.random_range(0.0..1.0f64).powi(2) * 480.0;
                estimator.insert(at, path + jitter - at * ppm * 1e-6);
                if packet == 3_000 {
                    assert!((estimator.ppm().unwrap() - ppm).abs() < 40.0, "{ppm}: {:?}", estimator.ppm());
                }
            }
            assert!((estimator.ppm().unwrap() - ppm).abs() < 10.0, "{ppm}: {:?}", estimator.ppm());
        }
    }
}
