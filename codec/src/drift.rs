//! Two sound cards never run at one speed. Here the difference is measured ([`Estimator`]) and made good ([`Resampler`]).
//!
//! Measured: each frame's availability, which is our playout count minus its position, has a minimum over any second that
//! queues and jitter hardly touch. The slope of those minima is the drift; their scatter says how well it is known.

use crate::{stretch::Audio, time::SAMPLE_RATE};
use std::{collections::VecDeque, f64::consts::PI, sync::LazyLock};

/// Greatest drift that is believed, ppm. Sound cards stay within a third of it.
pub const MAX_DRIFT_PPM: f64 = 500.0;
/// Minima remembered. When they are full, each two become one, up to [`LONGEST_BLOCK`].
const MAX_BLOCKS: usize = 64;
/// Blocks before anything is said.
const MIN_BLOCKS: usize = 5;
/// Fewer than this say little of their own scatter.
const FEW_BLOCKS: usize = 24;
/// Length of a block, in samples: at the start, and at most. So the slope is taken from up to eight minutes.
const BLOCK: i64 = SAMPLE_RATE as i64;
const LONGEST_BLOCK: i64 = 8 * BLOCK;
/// Minima so far from the line, in samples, or in their own scatter, three times in a row: a new path, not drift.
const SHIFT: f64 = 192.0;
const SHIFT_SCATTER: f64 = 6.0;
const SHIFT_TIMES: u32 = 3;
/// Standard error, in ppm, up to which the drift is shown.
const SHOWN_WITHIN_PPM: f64 = 25.0;
/// So many standard errors must a drift be to be followed at all; beyond, more and more of it.
const FOLLOWED_BEYOND: f64 = 1.5;

/// Estimates how fast availability grows. Feed every packet's availability.
#[derive(Debug)]
pub struct Estimator {
    blocks: VecDeque<(f64, f64)>,
    slopes: Vec<f64>,
    current: Option<(i64, f64, f64)>,
    length: i64,
    slope: f64,
    error: f64,
    scatter: f64,
    /// Minima in a row beyond the scatter; negative where below the line.
    strays: i32,
}

impl Default for Estimator {
    fn default() -> Self {
        Self {
            blocks: VecDeque::with_capacity(MAX_BLOCKS + 1),
            slopes: Vec::with_capacity(MAX_BLOCKS * MAX_BLOCKS / 2),
            current: None,
            length: BLOCK,
            slope: 0.0,
            error: f64::INFINITY,
            scatter: 0.0,
            strays: 0,
        }
    }
}

impl Estimator {
    /// A packet came when `at` samples had been played (with their fraction), and its availability was `availability`.
    pub fn insert(&mut self, at: f64, availability: f64) {
        let block = at as i64 / self.length;
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

    /// How fast availability grows, in samples per sample, as far as it is certain; positive where the speaker's clock is
    /// slow. Zero until known.
    #[must_use]
    pub fn slope(&self) -> f64 {
        let doubt = FOLLOWED_BEYOND * self.error / self.slope.abs();
        if doubt < 1.0 { self.slope * (1.0 - doubt * doubt) } else { 0.0 }
    }

    /// The speaker's clock against ours, in ppm, positive where it is fast. `None` while that is not known well.
    #[must_use]
    pub fn ppm(&self) -> Option<f64> {
        (self.error * 1e6 <= SHOWN_WITHIN_PPM).then_some(-self.slope * 1e6)
    }

    /// The path's delay changed by itself: what was learnt of the slope stays, its history does not.
    pub fn start_afresh(&mut self) {
        self.blocks.clear();
        self.current = None;
        self.length = BLOCK;
        self.strays = 0;
    }

    fn close(&mut self, at: f64, least: f64) {
        self.blocks.push_back((at, least));
        self.follow_shifts();
        if self.blocks.len() > MAX_BLOCKS {
            if self.length < LONGEST_BLOCK {
                self.halve();
            } else {
                self.blocks.pop_front();
            }
        }
        if self.blocks.len() >= MIN_BLOCKS {
            self.fit();
        }
    }

    /// Joins each two blocks into one: the lower of the two counts, the drift between them taken out.
    fn halve(&mut self) {
        self.length *= 2;
        let pairs = self.blocks.len() / 2;
        for i in 0..pairs {
            if let (Some(a), Some(b)) = (self.blocks.get(2 * i).copied(), self.blocks.get(2 * i + 1).copied())
                && let Some(slot) = self.blocks.get_mut(i)
            {
                *slot = if b.1 - a.1 < self.slope * (b.0 - a.0) { b } else { a };
            }
        }
        self.blocks.truncate(pairs);
    }

    /// Where minima keep lying beside the line, the older ones move along, so that the slope within them still counts.
    fn follow_shifts(&mut self) {
        let last = self.blocks.len().saturating_sub(1);
        let (Some((at, least)), true) = (self.blocks.back().copied(), self.error.is_finite()) else { return };
        let known = last.saturating_sub(self.strays.unsigned_abs() as usize);
        self.slopes.clear();
        self.slopes.extend(self.blocks.iter().take(known).map(|b| b.1 + self.slope * (at - b.0)));
        let Some(expected) = median(&mut self.slopes) else { return };
        let step = least - expected;
        if step.abs() <= SHIFT.max(SHIFT_SCATTER * self.scatter) {
            self.strays = 0;
        } else {
            let side = if step > 0.0 { 1 } else { -1 };
            self.strays = if self.strays.signum() == side { self.strays + side } else { side };
            if self.strays.unsigned_abs() >= SHIFT_TIMES {
                self.blocks.iter_mut().take(known).for_each(|b| b.1 += step);
                self.strays = 0;
            }
        }
    }

    /// The median of the slopes between all pairs (Theil and Sen), and its standard error from the scatter about it.
    fn fit(&mut self) {
        self.slopes.clear();
        for (i, a) in self.blocks.iter().enumerate() {
            for b in self.blocks.iter().skip(i + 1) {
                if b.0 > a.0 {
                    self.slopes.push((b.1 - a.1) / (b.0 - a.0));
                }
            }
        }
        let Some(slope) = median(&mut self.slopes) else { return };
        self.slopes.clear();
        self.slopes.extend(self.blocks.iter().map(|b| b.1 - slope * b.0));
        let Some(level) = median(&mut self.slopes) else { return };
        self.slopes.iter_mut().for_each(|r| *r = (*r - level).abs());
        let n = self.slopes.len() as f64;
        let squares: f64 = self.slopes.iter().map(|r| r * r).sum();
        // Median absolute deviation to standard deviation; a sample is the least scatter that means anything. The median of
        // a few is near zero by chance too often: with those the outliers count.
        self.scatter = 1.5 * median(&mut self.slopes).unwrap_or(0.0).max(1.0);
        if self.slopes.len() < FEW_BLOCKS {
            self.scatter = self.scatter.max((squares / (n - 2.0)).sqrt());
        }
        let (Some(first), Some(last)) = (self.blocks.front(), self.blocks.back()) else { return };
        self.error = self.scatter * 12f64.sqrt() / ((last.0 - first.0).max(1.0) * n.sqrt());
        let limit = MAX_DRIFT_PPM * 1e-6;
        if slope.abs() > 2.0 * limit {
            // No sound card: a queue that grows or drains.
            (self.slope, self.error) = (0.0, f64::INFINITY);
        } else {
            self.slope = slope.clamp(-limit, limit);
        }
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len() / 2;
    (middle < values.len()).then(|| *values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// Taps of the interpolation filter.
pub const TAPS: usize = 32;
/// Samples ahead of the playout position that the filter reads: its delay, 0.33 ms.
pub const LEAD: usize = TAPS / 2;
/// Outputs that are made at once.
const RUN: usize = 8;
/// So near to a sample is on it.
const ON_A_SAMPLE: f64 = 1e-7;
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
        let window = audio.around(LEAD - 1);
        if step == 1.0 && self.fraction == 0.0 {
            // Equal clocks: nothing lies between two samples.
            let from = (LEAD - 1) * self.channels;
            match window.get(from..from + out.len()) {
                Some(sound) => out.copy_from_slice(sound),
                None => out.fill(0.0),
            }
        } else if self.channels == 1 {
            for (at, run) in out.chunks_mut(RUN).enumerate() {
                interpolate_run(window, self.fraction + (at * RUN) as f64 * step, step, run);
            }
        } else {
            for (at, sample) in out.chunks_exact_mut(self.channels).enumerate() {
                interpolate(window, self.fraction + at as f64 * step, sample);
            }
        }
        // One product instead of the sum of steps: nothing creeps in over days.
        let end = self.fraction + outputs as f64 * step;
        let whole = (end + ON_A_SAMPLE).floor();
        audio.consume(whole as usize);
        self.fraction = if end - whole < ON_A_SAMPLE { 0.0 } else { end - whole };
    }

    /// The step nearest to 1 that brings the position, within some blocks of `outputs`, onto a sample.
    #[must_use]
    pub fn step_to_rest(&self, outputs: usize, most_ppm: f64) -> f64 {
        if self.fraction == 0.0 {
            return 1.0;
        }
        1.0 + ((1.0 - self.fraction) / outputs.max(1) as f64).min(most_ppm * 1e-6)
    }
}

/// The two rows of the filter around a position, and where between them it lies.
fn rows(position: f64) -> Option<(usize, &'static [f32; TAPS], &'static [f32; TAPS], f64)> {
    let whole = position as usize;
    let phase = (position - whole as f64) * PHASES as f64;
    let row = (phase as usize).min(PHASES - 1);
    Some((whole, FILTER.get(row)?, FILTER.get(row + 1)?, phase - row as f64))
}

/// A run of mono samples between two rows of the filter at once: the compiler makes vector code of it.
fn interpolate_run(window: &[f32], position: f64, step: f64, out: &mut [f32]) {
    let last = position + (RUN - 1) as f64 * step;
    let Some((whole, a, b, phase)) = rows(position) else { return out.fill(0.0) };
    let (Some(x), true, RUN) =
        (window.get(whole..whole + RUN + TAPS - 1), last as usize == whole + RUN - 1, out.len())
    else {
        for (at, sample) in out.iter_mut().enumerate() {
            interpolate(window, position + at as f64 * step, std::slice::from_mut(sample));
        }
        return;
    };
    let (mut low, mut high) = ([0.0f32; RUN], [0.0f32; RUN]);
    for (x, (a, b)) in x.windows(RUN).zip(a.iter().zip(b)) {
        for i in 0..RUN {
            low[i] += x[i] * a;
            high[i] += x[i] * b;
        }
    }
    for (i, out) in out.iter_mut().enumerate() {
        // A run may end a little beyond its second row: at 1,000 ppm by 2 % of the distance between rows.
        let weight = (phase + i as f64 * (step - 1.0) * PHASES as f64) as f32;
        *out = low[i] + weight * (high[i] - low[i]);
    }
}

/// One sample of each channel.
fn interpolate(window: &[f32], position: f64, sample: &mut [f32]) {
    let channels = sample.len();
    let Some((whole, a, b, weight)) = rows(position) else { return sample.fill(0.0) };
    let Some(x) = window.get(whole * channels..(whole + TAPS) * channels) else { return sample.fill(0.0) };
    for (c, s) in sample.iter_mut().enumerate() {
        let taps = x.iter().skip(c).step_by(channels).zip(a.iter().zip(b));
        *s = taps.map(|(x, (a, b))| x * (a + weight as f32 * (b - a))).sum();
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
