//! Sums voices without clipping.
//!
//! 1. A slow gain brings a loud sum under [`THRESHOLD`]: down within a part of a block, up again over a second.
//! 2. What still stands out is bent, not cut: nothing leaves the mixer beyond full scale.
//!
//! A single voice below the threshold passes bit for bit.

/// Voices mixed at once; a room may hold many more people. The caller adds the loudest first.
pub const MAX_VOICES: usize = 64;
/// Below this (-1 dBFS) nothing is touched.
pub const THRESHOLD: f32 = 0.891_250_9;
/// Longest block, in interleaved values: 100 ms of stereo.
pub const MAX_BLOCK: usize = 9_600;
/// What the gain regains per sample: from silence to 1 in a second.
const RELEASE: f32 = 1.0 / 48_000.0;

/// Adds voices up. Per tick: [`Mixer::add`] each voice, then [`Mixer::mix_into`]. Real-time safe.
#[derive(Debug)]
pub struct Mixer {
    channels: usize,
    sum: Vec<f32>,
    filled: usize,
    voices: usize,
    gain: f32,
}

impl Mixer {
    /// A mixer of `channels` interleaved channels (0 counts as 1).
    #[must_use]
    pub fn new(channels: u8) -> Self {
        Self {
            channels: usize::from(channels.max(1)),
            sum: vec![0.0; MAX_BLOCK],
            filled: 0,
            voices: 0,
            gain: 1.0,
        }
    }

    /// Adds one voice's block. False where it was left out: more than [`MAX_VOICES`], or longer than [`MAX_BLOCK`].
    pub fn add(&mut self, voice: &[f32]) -> bool {
        let Some(sum) = self.sum.get_mut(..voice.len()) else { return false };
        if self.voices == MAX_VOICES {
            return false;
        }
        let finite = |v: f32| if v.is_finite() { v } else { 0.0 };
        let (added, set) = sum.split_at_mut(self.filled.min(voice.len()));
        let (over, fresh) = voice.split_at(added.len());
        added.iter_mut().zip(over).for_each(|(sum, v)| *sum += finite(*v));
        // The first voice to reach a place sets it: no pass to clear the block is needed.
        set.iter_mut().zip(fresh).for_each(|(sum, v)| *sum = finite(*v));
        self.filled = self.filled.max(voice.len());
        self.voices += 1;
        true
    }

    /// Writes the sum of what was added since the last call over `out`, silence where nothing was, and says how many
    /// voices it holds. No value goes beyond -1.0..=1.0.
    pub fn mix_into(&mut self, out: &mut [f32]) -> usize {
        let filled = self.filled.min(out.len());
        let (sound, silence) = out.split_at_mut(filled);
        silence.fill(0.0);
        let sum = &self.sum[..filled];
        let peak = peak(sum);
        let wanted = if peak > THRESHOLD { THRESHOLD / peak } else { 1.0 };
        let frames = (filled / self.channels).max(1);
        if self.gain == 1.0 && wanted == 1.0 {
            sound.copy_from_slice(sum);
        } else {
            let fall = (self.gain - wanted).max(0.0) / frames.div_ceil(8) as f32;
            for (out, sum) in sound.chunks_mut(self.channels).zip(sum.chunks(self.channels)) {
                self.gain = if fall > 0.0 {
                    (self.gain - fall).max(wanted)
                } else {
                    (self.gain + RELEASE).min(wanted)
                };
                for (out, sum) in out.iter_mut().zip(sum) {
                    *out = bend(sum * self.gain);
                }
            }
        }
        self.filled = 0;
        std::mem::take(&mut self.voices)
    }
}

/// The loudest sample, in lanes that do not wait for each other.
fn peak(pcm: &[f32]) -> f32 {
    let (lanes, rest) = pcm.as_chunks::<8>();
    let mut peaks = [0.0f32; 8];
    for lane in lanes {
        peaks.iter_mut().zip(lane).for_each(|(peak, s)| *peak = peak.max(s.abs()));
    }
    peaks.iter().chain(rest).fold(0.0, |peak, s| peak.max(s.abs()))
}

/// Straight up to the threshold, then ever flatter towards full scale.
fn bend(x: f32) -> f32 {
    let over = x.abs() - THRESHOLD;
    if over <= 0.0 {
        return x;
    }
    let room = 1.0 - THRESHOLD;
    (THRESHOLD + room * (over / room).tanh()).min(1.0).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(amplitude: f32, step: f32, from: usize) -> Vec<f32> {
        (from..from + 240).map(|i| amplitude * (i as f32 * step).sin()).collect()
    }

    #[test]
    fn a_lone_voice_below_the_threshold_passes_bit_for_bit() {
        let mut mixer = Mixer::new(1);
        let voice = tone(0.89, 0.05, 0);
        let mut out = vec![9.0; 240];
        assert!(mixer.add(&voice));
        assert_eq!(mixer.mix_into(&mut out), 1);
        assert_eq!(out, voice);
        assert_eq!(mixer.mix_into(&mut out), 0);
        assert!(out.iter().all(|s| *s == 0.0), "nothing added is silence");
    }

    #[test]
    fn ten_loud_voices_never_clip_and_the_gain_moves_smoothly() {
        let mut mixer = Mixer::new(1);
        let mut heard = Vec::new();
        for block in 0..100 {
            for v in 0..10 {
                mixer.add(&tone(0.9, 0.01 + 0.003 * v as f32, block * 240));
            }
            let mut out = vec![0.0; 240];
            assert_eq!(mixer.mix_into(&mut out), 10);
            heard.extend(out);
        }
        assert!(heard.iter().all(|s| s.abs() <= 1.0));
        let bent = heard[2400..].iter().filter(|s| s.abs() > THRESHOLD).count();
        assert!(bent < heard.len() / 50, "the gain does the work, not the bending: {bent}");
    }

    #[test]
    fn after_a_loud_moment_the_gain_comes_all_the_way_back() {
        let mut mixer = Mixer::new(2);
        let mut out = vec![0.0; 240];
        mixer.add(&[3.0; 240]);
        mixer.mix_into(&mut out);
        assert!(out.iter().all(|s| s.abs() <= 1.0));
        let quiet = tone(0.2, 0.07, 0);
        for _ in 0..2400 {
            mixer.add(&quiet);
            mixer.mix_into(&mut out);
        }
        assert_eq!(out, quiet);
    }

    #[test]
    fn voices_past_the_bound_and_broken_samples_are_left_out() {
        let mut mixer = Mixer::new(1);
        assert!(!mixer.add(&vec![0.0; MAX_BLOCK + 1]));
        for _ in 0..MAX_VOICES {
            assert!(mixer.add(&[f32::NAN, 0.001]));
        }
        assert!(!mixer.add(&[1.0]));
        let mut out = [7.0; 3];
        assert_eq!(mixer.mix_into(&mut out), MAX_VOICES);
        assert_eq!((out[0], out[2]), (0.0, 0.0));
        assert!((out[1] - 0.064).abs() < 1e-6);
    }
}
