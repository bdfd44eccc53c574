//! Between a device's or a file's sample rate and our 48 kHz: a windowed sinc (rubato), whole clips or live.

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Async, FixedAsync, Resampler, SincInterpolationParameters, WindowFunction};

use super::clock::RATE_HZ;

/// Filter length for clips, input frames: quality first, nobody waits.
const CLIP_SINC: usize = 128;
/// Filter length for live sound, input frames. Half of it is delay: 0.7 ms at 44.1 kHz.
const LIVE_SINC: usize = 64;
/// Frames handled at once while a clip is converted.
const CLIP_CHUNK: usize = 1024;

/// A conversion that could not be set up or run: a rate out of range.
#[derive(Debug, thiserror::Error)]
#[error("cannot convert from or to {rate_hz} Hz: {reason}")]
pub(crate) struct ConvertError {
    rate_hz: u32,
    reason: String,
}

impl ConvertError {
    fn new(rate_hz: u32, reason: impl ToString) -> Self {
        Self { rate_hz, reason: reason.to_string() }
    }
}

/// A whole clip of interleaved frames from `rate_hz` to 48 kHz. It starts and ends where it did.
pub(crate) fn resample_clip(pcm: &[f32], channels: u16, rate_hz: u32) -> Result<Vec<f32>, ConvertError> {
    let failed = |e: &dyn ToString| ConvertError::new(rate_hz, e.to_string());
    let channels = usize::from(channels);
    let frames = pcm.len() / channels;
    let ratio = f64::from(RATE_HZ) / f64::from(rate_hz);
    let parameters = SincInterpolationParameters::new(CLIP_SINC, WindowFunction::BlackmanHarris2);
    let mut resampler =
        Async::<f32>::new_sinc(ratio, 1.0, &parameters, CLIP_CHUNK, channels, FixedAsync::Input)
            .map_err(|e| failed(&e))?;
    let room = resampler.process_all_needed_output_len(frames);
    let mut out = vec![0.0; room * channels];
    let input = InterleavedSlice::new(pcm, channels, frames).map_err(|e| failed(&e))?;
    let mut output = InterleavedSlice::new_mut(&mut out, channels, room).map_err(|e| failed(&e))?;
    let (_, made) =
        resampler.process_all_into_buffer(&input, &mut output, frames, None).map_err(|e| failed(&e))?;
    out.truncate(made * channels);
    Ok(out)
}

/// Live conversion in one direction; memory is taken once.
pub(crate) struct Live {
    resampler: Async<f32>,
    channels: usize,
    delay_ns: u64,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("channels", &self.channels).field("delay_ns", &self.delay_ns).finish()
    }
}

impl Live {
    /// From a device at `rate_hz` to exactly `period` frames of 48 kHz a call.
    pub(crate) fn from_device(rate_hz: u32, period: u32, channels: u16) -> Result<Self, ConvertError> {
        Self::new(
            rate_hz,
            f64::from(RATE_HZ) / f64::from(rate_hz),
            period,
            channels,
            FixedAsync::Output,
            RATE_HZ,
        )
    }

    /// From exactly `period` frames of 48 kHz a call to a device at `rate_hz`.
    pub(crate) fn to_device(rate_hz: u32, period: u32, channels: u16) -> Result<Self, ConvertError> {
        Self::new(
            rate_hz,
            f64::from(rate_hz) / f64::from(RATE_HZ),
            period,
            channels,
            FixedAsync::Input,
            rate_hz,
        )
    }

    fn new(
        rate_hz: u32,
        ratio: f64,
        period: u32,
        channels: u16,
        fixed: FixedAsync,
        out_hz: u32,
    ) -> Result<Self, ConvertError> {
        let parameters = SincInterpolationParameters::new(LIVE_SINC, WindowFunction::BlackmanHarris2);
        let channels = usize::from(channels);
        let resampler = Async::new_sinc(ratio, 1.0, &parameters, period as usize, channels, fixed)
            .map_err(|e| ConvertError::new(rate_hz, e))?;
        let delay_ns = (resampler.output_delay() as f64 * 1e9 / f64::from(out_hz)) as u64;
        Ok(Self { resampler, channels, delay_ns })
    }

    /// Frames that the next call takes.
    pub(crate) fn input_frames(&self) -> usize {
        self.resampler.input_frames_next()
    }

    /// Most frames that any call takes.
    pub(crate) fn input_frames_max(&self) -> usize {
        self.resampler.input_frames_max()
    }

    /// Most frames that any call gives.
    pub(crate) fn output_frames_max(&self) -> usize {
        self.resampler.output_frames_max()
    }

    /// How much later a sound comes out than it went in, nanoseconds.
    pub(crate) fn delay_ns(&self) -> u64 {
        self.delay_ns
    }

    /// Converts [`Live::input_frames`] frames; returns how many frames came out. Does not allocate.
    pub(crate) fn convert(&mut self, input: &[f32], out: &mut [f32]) -> usize {
        let (frames_in, frames_out) = (input.len() / self.channels, out.len() / self.channels);
        let (Ok(input), Ok(mut output)) = (
            InterleavedSlice::new(input, self.channels, frames_in),
            InterleavedSlice::new_mut(out, self.channels, frames_out),
        ) else {
            return 0;
        };
        self.resampler.process_into_buffer(&input, &mut output, None).map_or(0, |(_, made)| made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_conversion_there_and_back_keeps_a_tone_and_states_its_delay() {
        let mut to = Live::to_device(44_100, 120, 1).unwrap();
        let mut from = Live::from_device(44_100, 120, 1).unwrap();
        let (mut device, mut back) = (Vec::new(), Vec::new());
        let mut out = vec![0.0; to.output_frames_max()];
        for period in 0..400 {
            let input: Vec<f32> = (0..120)
                .map(|i| (std::f32::consts::TAU * 440.0 * (period * 120 + i) as f32 / 48_000.0).sin())
                .collect();
            assert_eq!(to.input_frames(), 120);
            let made = to.convert(&input, &mut out);
            device.extend_from_slice(&out[..made]);
        }
        let mut at = 0;
        let mut out = [0.0; 120];
        while device.len() - at >= from.input_frames() {
            let take = from.input_frames();
            assert_eq!(from.convert(&device[at..at + take], &mut out), 120);
            back.extend_from_slice(&out);
            at += take;
        }
        assert!(back.len() > 47_000);
        // 440 Hz at 48 kHz has a crossing every 109.09 frames: the delay shows in where they fall.
        let delay = (to.delay_ns() + from.delay_ns()) as f64 * 48e3 / 1e9;
        let crossing = (4_000..).find(|i| back[*i] < 0.0 && back[i + 1] >= 0.0).unwrap() as f64 - delay;
        let phase = (crossing + 0.5).rem_euclid(48_000.0 / 440.0);
        let off = phase.min(48_000.0 / 440.0 - phase);
        assert!(off < 2.0, "the stated delay is {off} frames off");
        assert!(delay < 150.0, "{delay} frames");
    }
}
