//! Decoded audio on its way to the ear, and ways to make it shorter or longer without being heard.
//!
//! To shorten, one period of the voice is left out; to lengthen, one is played twice; both times the two ends are faded
//! into each other where they fit best. In silence anything fits.

use crate::time::Samples;

/// Audio kept behind the read mark, to find the voice's period in.
const HISTORY: usize = 1_920;
/// Read audio that may gather before it is moved out.
const SLACK: usize = 4_800;
/// Most audio ahead of the read mark.
pub const MAX_AHEAD: usize = 9_600;
/// Shortest and longest period looked for: 400 Hz and 67 Hz.
const MIN_PERIOD: usize = 120;
const MAX_PERIOD: usize = 720;
/// Length of a fade.
pub const FADE: usize = 96;
/// Audio around a splice that must be alike.
const ALIKE: usize = 384;
/// Samples right behind the read mark belong to the resampler's filter and stay as they are.
const GUARD: usize = crate::drift::LEAD;
/// Power under which audio counts as silence: -50 dB.
const SILENT: f32 = 1e-5;
/// Search grid, in samples; the best place on it is then searched around one by one.
const COARSE: usize = 4;

/// Audio to keep ahead before [`Audio::shorten`] can take out `by` samples.
#[must_use]
pub fn ahead_to_shorten(by: usize) -> usize {
    GUARD + by.clamp(MIN_PERIOD, MAX_PERIOD) + FADE
}

/// Audio to keep ahead before [`Audio::lengthen`] can work.
pub const AHEAD_TO_LENGTHEN: usize = GUARD + FADE;

/// A first-in first-out of decoded samples that remembers a little of what was read. Real-time safe after `new`.
#[derive(Debug)]
pub struct Audio {
    channels: usize,
    pcm: Vec<f32>,
    read: usize,
}

impl Audio {
    /// Empty, with silence behind it.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        let mut pcm = Vec::with_capacity((HISTORY + SLACK + MAX_AHEAD + 2 * MAX_PERIOD) * channels);
        pcm.resize(HISTORY * channels, 0.0);
        Self { channels, pcm, read: HISTORY }
    }

    /// Samples per channel not read yet.
    #[must_use]
    pub fn ahead(&self) -> usize {
        (self.pcm.len() / self.channels).saturating_sub(self.read)
    }

    /// Adds `n` samples per channel, which `fill` writes into the (zeroed) interleaved slice. Nothing is added beyond
    /// [`MAX_AHEAD`].
    pub fn push(&mut self, n: usize, fill: impl FnOnce(&mut [f32])) {
        let n = n.min(MAX_AHEAD.saturating_sub(self.ahead()));
        let from = self.pcm.len();
        self.pcm.resize(from + n * self.channels, 0.0);
        if let Some(slice) = self.pcm.get_mut(from..) {
            fill(slice);
        }
    }

    /// Everything from `behind` samples before the read mark on, interleaved.
    #[must_use]
    pub fn around(&self, behind: usize) -> &[f32] {
        self.pcm.get(self.read.saturating_sub(behind) * self.channels..).unwrap_or(&[])
    }

    /// Moves the read mark on.
    pub fn consume(&mut self, n: usize) {
        self.read += n.min(self.ahead());
        if self.read > HISTORY + SLACK {
            let gone = self.read - HISTORY;
            self.pcm.drain(..gone * self.channels);
            self.read = HISTORY;
        }
    }

    /// Takes out one period of at most `most` samples right after the read mark, where that will not be heard, or `force`.
    /// Says how many samples went.
    pub fn shorten(&mut self, most: usize, force: bool) -> Option<Samples> {
        let at = self.read + GUARD;
        let most = most.min(self.ahead().checked_sub(GUARD + FADE)?).min(MAX_PERIOD);
        let period = self.period(at, most, Search::Forward, force)?;
        let c = self.channels;
        for i in 0..FADE {
            let weight = (i + 1) as f32 / (FADE + 1) as f32;
            for ch in 0..c {
                let (old, new) = ((at + i) * c + ch, (at + period + i) * c + ch);
                self.pcm[new] = self.pcm[old] * (1.0 - weight) + self.pcm[new] * weight;
            }
        }
        self.pcm.drain(at * c..(at + period) * c);
        Some(Samples(period as u32))
    }

    /// Plays one period of at most `most` samples twice, where that will not be heard, or `force`. Says how many samples
    /// were added.
    pub fn lengthen(&mut self, most: usize, force: bool) -> Option<Samples> {
        let at = self.read + GUARD;
        self.ahead().checked_sub(AHEAD_TO_LENGTHEN)?;
        let period = self.period(at, most.clamp(MIN_PERIOD, MAX_PERIOD), Search::Back, force)?;
        let c = self.channels;
        let end = self.pcm.len();
        self.pcm.resize(end + period * c, 0.0);
        self.pcm.copy_within(at * c..end, (at + period) * c);
        for i in 0..period {
            let weight = ((i + 1) as f32 / (FADE + 1) as f32).min(1.0);
            for ch in 0..c {
                let again = self.pcm[(at + i - period) * c + ch];
                let natural = if i < FADE { self.pcm[(at + period + i) * c + ch] } else { 0.0 };
                self.pcm[(at + i) * c + ch] = natural * (1.0 - weight) + again * weight;
            }
        }
        Some(Samples(period as u32))
    }

    /// Fades the first samples of `next` in over what the audio so far would go on with, period by period.
    pub fn blend_into(&self, next: &mut [f32]) {
        let end = self.pcm.len() / self.channels;
        let Some(period) = self.period(end, MAX_PERIOD, Search::End, true) else { return };
        for (i, sample) in next.chunks_exact_mut(self.channels).take(FADE).enumerate() {
            let weight = (i + 1) as f32 / (FADE + 1) as f32;
            let from = (end - period + i % period) * self.channels;
            for (ch, s) in sample.iter_mut().enumerate() {
                *s = *s * weight + self.pcm[from + ch] * (1.0 - weight);
            }
        }
    }

    /// The distance at which the audio around `at` is most like itself.
    fn period(&self, at: usize, most: usize, search: Search, force: bool) -> Option<usize> {
        let frames = self.pcm.len() / self.channels;
        // The two stretches compared: [from, from + length) and the same `lag` later or earlier.
        let (from, length) = match search {
            Search::Forward => (at.checked_sub(ALIKE - FADE)?, ALIKE),
            Search::Back => (at.checked_sub(ALIKE - FADE)?, ALIKE),
            Search::End => (at.checked_sub(ALIKE)?, ALIKE),
        };
        if most < MIN_PERIOD || from + length > frames || from < most && search != Search::Forward {
            return None;
        }
        let most =
            if search == Search::Forward { most.min(frames.checked_sub(from + length)?) } else { most };
        let shifted = |lag: usize| if search == Search::Forward { from + lag } else { from - lag };
        let power = self.dot(from, from, length, COARSE) * COARSE as f32 / length as f32;
        if power < SILENT {
            return (most >= MIN_PERIOD).then_some(most);
        }
        let alike = |lag: usize, step: usize| {
            let other = shifted(lag);
            let cross = self.dot(from, other, length, step);
            cross
                / (self.dot(from, from, length, step) * self.dot(other, other, length, step)).sqrt().max(1e-9)
        };
        let best = |lags: &mut dyn Iterator<Item = usize>, step: usize| {
            lags.map(|lag| (lag, alike(lag, step))).max_by(|a, b| a.1.total_cmp(&b.1))
        };
        let (rough, _) = best(&mut (MIN_PERIOD..=most).step_by(COARSE), COARSE)?;
        let near = rough.saturating_sub(COARSE).max(MIN_PERIOD)..=(rough + COARSE).min(most);
        let (lag, likeness) = best(&mut near.into_iter(), 2)?;
        (force || likeness > 0.7).then_some(lag)
    }

    /// Product of two stretches, every `step`th sample, first channel plus second.
    fn dot(&self, a: usize, b: usize, length: usize, step: usize) -> f32 {
        let c = self.channels;
        let (Some(a), Some(b)) =
            (self.pcm.get(a * c..(a + length) * c), self.pcm.get(b * c..(b + length) * c))
        else {
            return 0.0;
        };
        a.chunks_exact(c)
            .step_by(step)
            .zip(b.chunks_exact(c).step_by(step))
            .map(|(a, b)| a.iter().sum::<f32>() * b.iter().sum::<f32>())
            .sum::<f32>()
            / (c * c) as f32
    }
}

/// Where the period is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Search {
    /// In what comes after the place.
    Forward,
    /// In what came before the place.
    Back,
    /// In the newest audio of all.
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voiced(frequency: f32, n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| {
                let phase = i as f32 * frequency / 48_000.0 * std::f32::consts::TAU;
                0.3 * (phase.sin() + 0.5 * (2.0 * phase + 0.4).sin() + 0.3 * (5.0 * phase).sin())
            })
            .collect()
    }

    fn filled(pcm: &[f32]) -> Audio {
        let mut audio = Audio::new(1);
        audio.push(pcm.len().min(2400), |out| out.copy_from_slice(&pcm[..2400]));
        audio.consume(1200);
        audio
    }

    /// Greatest jump between neighbours.
    fn roughness(pcm: &[f32]) -> f32 {
        pcm.windows(2).map(|w| (w[1] - w[0]).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn a_voice_gets_shorter_and_longer_by_whole_periods_without_a_jump() {
        for frequency in [90.0, 150.0, 230.0] {
            let pcm = voiced(frequency, 4800);
            let smooth = roughness(&pcm) * 1.1;
            for lengthen in [false, true] {
                let mut audio = filled(&pcm);
                let before = audio.ahead();
                let changed = if lengthen { audio.lengthen(720, false) } else { audio.shorten(720, false) };
                let changed = changed.unwrap().0 as usize;
                let after = if lengthen { before + changed } else { before - changed };
                assert_eq!(audio.ahead(), after);
                let period = 48_000.0 / frequency;
                let periods = changed as f32 / period;
                assert!(
                    (periods - periods.round()).abs() < 0.03,
                    "{frequency} Hz: {changed} is no whole period"
                );
                assert!(roughness(audio.around(1000)) <= smooth, "{frequency} Hz");
            }
        }
    }

    #[test]
    fn noise_is_left_alone_unless_it_must_be_and_silence_gives_way_at_once() {
        use rand::{Rng, SeedableRng};
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let noise: Vec<f32> = (0..4800).map(|_| random.random_range(-0.5..0.5)).collect();
        let mut audio = filled(&noise);
        assert_eq!(audio.shorten(720, false), None);
        assert_eq!(audio.lengthen(720, false), None);
        assert!(audio.shorten(720, true).is_some());
        let mut audio = filled(&[0.0; 4800]);
        assert_eq!(audio.shorten(300, false), Some(Samples(300)));
        assert_eq!(audio.lengthen(500, false), Some(Samples(500)));
    }

    #[test]
    fn too_little_audio_is_not_stretched() {
        let mut audio = Audio::new(2);
        assert_eq!(audio.shorten(720, true), None);
        assert_eq!(audio.lengthen(720, true), None);
        audio.push(AHEAD_TO_LENGTHEN, |_| ());
        assert!(audio.lengthen(720, true).is_some());
    }

    #[test]
    fn memory_stays_where_it_was_however_long_one_listens() {
        let mut audio = Audio::new(2);
        let room = audio.pcm.capacity();
        for i in 0..10_000 {
            audio.push(480, |out| out.fill(0.1));
            if i % 3 == 0 {
                audio.lengthen(720, true);
            }
            let ahead = audio.ahead();
            audio.consume(ahead.saturating_sub(300));
        }
        audio.push(MAX_AHEAD * 2, |_| ());
        assert_eq!(audio.ahead(), MAX_AHEAD);
        assert_eq!(audio.pcm.capacity(), room);
    }
}
