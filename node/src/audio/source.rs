//! What a simulated card captures: silence, a tone, or a clip. Arithmetic only; every sample follows from its position.

use super::clock::RATE_HZ;
use super::pipe::PipeSource;

/// Peak of the tone: −20 dB below full scale.
const TONE_PEAK: f64 = 0.1;

/// The sound in front of a simulated microphone. Filled strictly in order.
#[derive(Debug)]
pub(crate) enum Source {
    Silence,
    /// Cycles per frame, frames so far.
    Tone {
        step: f64,
        at: u64,
    },
    /// What is played elsewhere.
    Mirror(super::mirror::Reflection),
    /// Interleaved frames, frames already played; waits while `waiting`.
    Clip {
        pcm: Vec<f32>,
        at: usize,
        waiting: bool,
    },
    /// What another program writes, as far as it has come.
    Pipe(PipeSource),
}

/// What one call of [`Source::fill`] met, as frame offsets into the buffer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Met {
    /// The source's very first frame.
    pub first: Option<usize>,
    /// The frame after the clip's last.
    pub end: Option<usize>,
}

impl Source {
    pub(crate) fn tone(hz: f32) -> Self {
        Self::Tone { step: f64::from(hz) / f64::from(RATE_HZ), at: 0 }
    }

    /// A clip to be played once; `waiting` until [`Source::start`].
    pub(crate) fn clip(pcm: Vec<f32>, waiting: bool) -> Self {
        Self::Clip { pcm, at: 0, waiting }
    }

    /// Lets a waiting clip begin with the next frame filled.
    pub(crate) fn start(&mut self) {
        if let Self::Clip { waiting, .. } = self {
            *waiting = false;
        }
    }

    /// The next `out.len() / channels` frames.
    pub(crate) fn fill(&mut self, out: &mut [f32], channels: usize) -> Met {
        match self {
            Self::Silence => {
                out.fill(0.0);
                Met::default()
            }
            Self::Mirror(reflection) => {
                reflection.fill(out);
                Met::default()
            }
            Self::Tone { step, at } => {
                let met = Met { first: (*at == 0).then_some(0), end: None };
                // Exact where the block begins; from there each frame is the one before, turned on.
                let (mut sine, mut cosine) = ((*step * *at as f64).fract() * std::f64::consts::TAU).sin_cos();
                let (up, on) = (*step * std::f64::consts::TAU).sin_cos();
                for frame in out.chunks_exact_mut(channels) {
                    frame.fill((sine * TONE_PEAK) as f32);
                    (sine, cosine) = (sine * on + cosine * up, cosine * on - sine * up);
                    *at += 1;
                }
                met
            }
            Self::Pipe(pipe) => Met { first: None, end: pipe.fill(out, channels) },
            Self::Clip { waiting: true, .. } => {
                out.fill(0.0);
                Met::default()
            }
            Self::Clip { pcm, at, .. } => {
                let total = pcm.len() / channels;
                let frames = (total - *at).min(out.len() / channels);
                let (played, rest) = out.split_at_mut(frames * channels);
                played.copy_from_slice(&pcm[*at * channels..(*at + frames) * channels]);
                rest.fill(0.0);
                let first = (*at == 0 && frames > 0).then_some(0);
                let before = *at;
                *at += frames;
                Met { first, end: (before < total && *at == total).then_some(frames) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_has_its_frequency_and_twenty_decibels_below_full_scale() {
        let mut out = vec![0.0; RATE_HZ as usize];
        Source::tone(997.0).fill(&mut out, 1);
        let crossings = out.windows(2).filter(|w| w[0] < 0.0 && w[1] >= 0.0).count();
        assert!((996..=997).contains(&crossings), "{crossings}");
        let rms = (out.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>() / out.len() as f64).sqrt();
        let dbfs = 20.0 * (rms * 2f64.sqrt()).log10();
        assert!((dbfs + 20.0).abs() < 0.01, "{dbfs}");
    }

    #[test]
    fn a_clip_waits_plays_once_and_says_where_it_began_and_ended() {
        let mut source = Source::clip(vec![0.1, 0.2, 0.3, 0.4, 0.5], true);
        let mut out = [9.0; 4];
        assert_eq!((source.fill(&mut out, 1), out), (Met::default(), [0.0; 4]));
        source.start();
        assert_eq!(source.fill(&mut out, 1), Met { first: Some(0), end: None });
        assert_eq!(out, [0.1, 0.2, 0.3, 0.4]);
        assert_eq!(source.fill(&mut out, 1), Met { first: None, end: Some(1) });
        assert_eq!(out, [0.5, 0.0, 0.0, 0.0]);
        assert_eq!((source.fill(&mut out, 1), out), (Met::default(), [0.0; 4]));
    }

    #[test]
    fn an_empty_clip_is_silence_without_beginning_or_end() {
        let mut out = [9.0; 4];
        assert_eq!((Source::clip(vec![], false).fill(&mut out, 2), out), (Met::default(), [0.0; 4]));
    }
}
