//! What is heard where nothing came: the decoder's guess, for a while; then a fade into the quiet noise of the room that
//! was heard before, so that a dead path does not sound like a dead line, nor a guess like a machine. Where a speaker pauses
//! it is that noise from the first sample on.

use crate::{levels::mean_square, time::Samples};

/// The guess is played in full for so long.
pub const FULL: Samples = Samples::from_ms(80);
/// And is gone after this.
pub const GONE: Samples = Samples::from_ms(200);
/// Loudest comfort noise, as amplitude: -55 dB in a gap, and -45 dB where the speaker said that only the room is heard.
const LOUDEST: f32 = 0.0018;
const LOUDEST_ROOM: f32 = 0.0056;
/// Part of the way to the room's noise that each frame of a pause brings.
const LEARNS: f32 = 0.25;
/// What follows a gap is faded in over so many samples.
const RETURN: f32 = 240.0;

/// Keeps account of a gap and shapes what is played in it. Real-time safe.
#[derive(Debug)]
pub struct Concealment {
    run: u32,
    gain: f32,
    floor: f32,
    seed: u32,
    low: f32,
}

impl Default for Concealment {
    fn default() -> Self {
        Self { run: 0, gain: 1.0, floor: LOUDEST, seed: 0x2545_f491, low: 0.0 }
    }
}

impl Concealment {
    /// Length of the gap so far.
    #[must_use]
    pub fn run(&self) -> Samples {
        Samples(self.run)
    }

    /// Whether the guess has faded, so that the decoder need not be asked for more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gain <= 0.0
    }

    /// Shapes the next part of the gap: the decoder's guess, or nothing where [`Concealment::is_gone`].
    pub fn shape(&mut self, pcm: &mut [f32], channels: usize) {
        let fade = (GONE.0 - FULL.0) as f32;
        for sample in pcm.chunks_exact_mut(channels) {
            self.run = self.run.saturating_add(1);
            self.gain = (1.0 - (self.run.saturating_sub(FULL.0)) as f32 / fade).clamp(0.0, 1.0);
            let noise = self.noise() * (1.0 - self.gain);
            for s in sample {
                *s = *s * self.gain + noise;
            }
        }
    }

    /// The next part of a pause of the speaker.
    pub fn rest(&mut self, pcm: &mut [f32], channels: usize) {
        self.gain = 0.0;
        for sample in pcm.chunks_exact_mut(channels) {
            self.run = self.run.saturating_add(1);
            let noise = self.noise();
            sample.fill(noise);
        }
    }

    /// Takes what was really heard: ends the gap, fades the voice in where it had faded out, learns the room's noise: of
    /// a `quiet` frame the speaker says that nothing else is in it.
    pub fn heard(&mut self, pcm: &mut [f32], channels: usize, quiet: bool) {
        self.run = 0;
        let heard = mean_square(pcm).sqrt();
        if self.gain < 1.0 {
            for sample in pcm.chunks_exact_mut(channels) {
                self.gain = (self.gain + 1.0 / RETURN).min(1.0);
                let noise = self.noise() * (1.0 - self.gain);
                for s in sample {
                    *s = *s * self.gain + noise;
                }
            }
        }
        if quiet {
            self.floor += (heard.min(LOUDEST_ROOM) - self.floor) * LEARNS;
            return;
        }
        // Follows the quietest moments at once, rises by 3 dB in about a second.
        self.floor =
            heard.min(LOUDEST).min(self.floor * (1.0 + pcm.len() as f32 / channels as f32 * 7e-6) + 1e-9);
    }

    /// White noise through a gentle low-pass, at the level of the room.
    fn noise(&mut self) -> f32 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 17;
        self.seed ^= self.seed << 5;
        let white = self.seed as f32 / u32::MAX as f32 * 2.0 - 1.0;
        self.low += 0.2 * (white - self.low);
        // The filter leaves a ninth of the power, and white noise has a third of its peak's.
        self.low * self.floor * 5.2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_fades_into_the_rooms_noise_and_the_voice_comes_back_smoothly() {
        let mut concealment = Concealment::default();
        for _ in 0..400 {
            let mut quiet: Vec<f32> = (0..240).map(|i| if i % 2 == 0 { 3e-4 } else { -3e-4 }).collect();
            concealment.heard(&mut quiet, 1, false);
        }
        let mut heard = Vec::new();
        for _ in 0..60 {
            let mut guess = [0.3f32; 240];
            concealment.shape(&mut guess, 1);
            heard.extend(guess);
        }
        assert!(heard[..FULL.0 as usize].iter().all(|s| *s == 0.3));
        assert!(concealment.is_gone());
        let tail = &heard[GONE.0 as usize..];
        let rms = (tail.iter().map(|s| s * s).sum::<f32>() / tail.len() as f32).sqrt();
        assert!((1e-4..9e-4).contains(&rms), "{rms}");
        let mut back = [0.3f32; 480];
        concealment.heard(&mut back, 1, false);
        assert!(back[0] < 0.01 && back[479] == 0.3);
        assert!(
            heard
                .iter()
                .chain(&back)
                .zip(heard.iter().chain(&back).skip(1))
                .all(|(a, b)| (a - b).abs() < 0.01)
        );
        assert_eq!(concealment.run(), Samples::ZERO);
    }
}
