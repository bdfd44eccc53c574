//! A WAV file as 48 kHz floating point in memory: opened, checked, mixed to our channels, resampled, in that order.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use hound::{SampleFormat, WavReader, WavSpec};

use super::super::clock::RATE_HZ;
use super::super::convert::resample_clip;

/// Longest clip that is taken, seconds. It is held in memory: 173 MB a channel at the limit.
pub const MAX_CLIP_SECONDS: u32 = 900;
/// Lowest sample rate that is taken, hertz.
pub const MIN_RATE_HZ: u32 = 8_000;
/// Highest sample rate that is taken, hertz.
pub const MAX_RATE_HZ: u32 = 192_000;
/// Most channels that are mixed down.
const MAX_CHANNELS: u16 = 32;

/// Why a file is not played. [`LoadError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not there, no permission, a folder, or a failing disk.
    #[error("{0}")]
    Unreadable(io::Error),
    /// Not a WAV file, or its header contradicts itself.
    #[error("not a WAV file that makes sense ({reason})")]
    NotWav {
        /// What is wrong with it.
        reason: String,
    },
    /// A WAV file in a coding other than 8 to 32 bit integers or 32 bit floating point.
    #[error("a kind of WAV that is not supported ({reason})")]
    Unsupported {
        /// Which.
        reason: String,
    },
    /// The header promises more than the file holds.
    #[error("cut off: its header promises {promised} frames, {held} are there")]
    Truncated {
        /// Frames by the header.
        promised: u32,
        /// Frames in the file.
        held: u64,
    },
    /// Outside of [`MIN_RATE_HZ`] to [`MAX_RATE_HZ`].
    #[error("its sample rate is {rate_hz} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ} can be converted")]
    Rate {
        /// Rate by the header.
        rate_hz: u32,
    },
    /// Longer than [`MAX_CLIP_SECONDS`].
    #[error("it lasts {seconds} s; at most {MAX_CLIP_SECONDS} s are held in memory")]
    TooLong {
        /// Length by the header.
        seconds: u32,
    },
}

impl LoadError {
    /// What the person can do: one sentence, no full stop.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "check the path and its permissions",
            Self::NotWav { .. } | Self::Unsupported { .. } | Self::Rate { .. } => {
                "convert it first, as with `sox IN -r 48000 -b 16 OUT.wav`"
            }
            Self::Truncated { .. } => {
                "record or copy it again, or repair it with `sox --ignore-length IN OUT.wav`"
            }
            Self::TooLong { .. } => "cut it first, as with `sox IN OUT.wav trim 0 900`",
        }
    }
}

/// Reads the whole file as interleaved 48 kHz frames of `channels` (1 or 2).
pub(crate) fn load(path: &Path, channels: u16) -> Result<Vec<f32>, LoadError> {
    let file = File::open(path).map_err(LoadError::Unreadable)?;
    if file.metadata().map_err(LoadError::Unreadable)?.is_dir() {
        return Err(LoadError::Unreadable(io::ErrorKind::IsADirectory.into()));
    }
    decode(BufReader::new(file), channels)
}

fn decode<R: Read>(reader: R, channels: u16) -> Result<Vec<f32>, LoadError> {
    let wav = WavReader::new(reader).map_err(refused)?;
    let (spec, frames) = (wav.spec(), wav.duration());
    if !(MIN_RATE_HZ..=MAX_RATE_HZ).contains(&spec.sample_rate) {
        return Err(LoadError::Rate { rate_hz: spec.sample_rate });
    }
    let seconds = frames / spec.sample_rate;
    if seconds >= MAX_CLIP_SECONDS {
        return Err(LoadError::TooLong { seconds });
    }
    if frames == 0 {
        return Err(LoadError::NotWav { reason: "its header promises no sound at all".into() });
    }
    if spec.channels > MAX_CHANNELS {
        return Err(LoadError::Unsupported { reason: format!("{} channels", spec.channels) });
    }
    let pcm = match (spec.sample_format, spec.bits_per_sample) {
        (SampleFormat::Float, 32) => mix(wav.into_samples::<f32>(), &spec, frames, channels)?,
        (SampleFormat::Int, bits @ 1..=32) => {
            let scale = 0.5f32.powi(i32::from(bits) - 1);
            let samples = wav.into_samples::<i32>().map(|s| s.map(|s| s as f32 * scale));
            mix(samples, &spec, frames, channels)?
        }
        (format, bits) => return Err(LoadError::Unsupported { reason: format!("{bits} bit {format:?}") }),
    };
    if spec.sample_rate == RATE_HZ {
        return Ok(pcm);
    }
    resample_clip(&pcm, channels, spec.sample_rate)
        .map_err(|e| LoadError::Unsupported { reason: e.to_string() })
}

/// Mono is the mean of all channels, stereo the first two. Samples beyond full scale and not-a-numbers are tamed.
fn mix(
    mut samples: impl Iterator<Item = hound::Result<f32>>,
    spec: &WavSpec,
    promised: u32,
    channels: u16,
) -> Result<Vec<f32>, LoadError> {
    let mut pcm = Vec::new();
    for held in 0..u64::from(promised) {
        let (mut sum, mut left, mut right) = (0.0, 0.0, 0.0);
        for channel in 0..spec.channels {
            let sample = match samples.next() {
                Some(Ok(sample)) if sample.is_finite() => sample.clamp(-1.0, 1.0),
                Some(Ok(_)) => 0.0,
                Some(Err(e)) => return Err(unread(e, promised, held)),
                None => return Err(LoadError::Truncated { promised, held }),
            };
            sum += sample;
            match channel {
                0 => (left, right) = (sample, sample),
                1 => right = sample,
                _ => {}
            }
        }
        match channels {
            1 => pcm.push(sum / f32::from(spec.channels)),
            _ => pcm.extend([left, right]),
        }
    }
    Ok(pcm)
}

fn unread(error: hound::Error, promised: u32, held: u64) -> LoadError {
    match error {
        // hound says `Other` where the file ends within a sample.
        hound::Error::IoError(e)
            if matches!(e.kind(), io::ErrorKind::Other | io::ErrorKind::UnexpectedEof) =>
        {
            LoadError::Truncated { promised, held }
        }
        other => refused(other),
    }
}

fn refused(error: hound::Error) -> LoadError {
    match error {
        hound::Error::IoError(e)
            if matches!(e.kind(), io::ErrorKind::Other | io::ErrorKind::UnexpectedEof) =>
        {
            LoadError::NotWav { reason: "it ends within its header".into() }
        }
        hound::Error::IoError(e) => LoadError::Unreadable(e),
        hound::Error::FormatError(reason) => LoadError::NotWav { reason: reason.into() },
        other => LoadError::Unsupported { reason: other.to_string() },
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use hound::WavWriter;
    use proptest::prelude::*;
    use std::f32::consts::TAU;
    use std::io::Cursor;

    /// One second of a 1 kHz sine at half scale on every channel, in the format given.
    fn wav(rate: u32, channels: u16, bits: u16, format: SampleFormat) -> Vec<u8> {
        let spec = WavSpec { channels, sample_rate: rate, bits_per_sample: bits, sample_format: format };
        let mut bytes = Cursor::new(Vec::new());
        let mut writer = WavWriter::new(&mut bytes, spec).unwrap();
        for i in 0..rate {
            let sample = 0.5 * (TAU * 1000.0 * i as f32 / rate as f32).sin();
            for _ in 0..channels {
                match format {
                    SampleFormat::Float => writer.write_sample(sample).unwrap(),
                    SampleFormat::Int => {
                        writer
                            .write_sample(
                                (f64::from(sample) * f64::from(2u32).powi(i32::from(bits) - 1)).round()
                                    as i32,
                            )
                            .unwrap();
                    }
                }
            }
        }
        writer.finalize().unwrap();
        bytes.into_inner()
    }

    /// Root mean square of what is left when the best-fitting 1 kHz sine is taken out, and that sine's amplitude.
    fn against_sine(pcm: &[f32]) -> (f64, f64) {
        let (mut s, mut c) = (0.0, 0.0);
        let turn = |i: usize| std::f64::consts::TAU * 1000.0 * i as f64 / f64::from(RATE_HZ);
        for (i, x) in pcm.iter().enumerate() {
            s += f64::from(*x) * turn(i).sin();
            c += f64::from(*x) * turn(i).cos();
        }
        let (s, c) = (2.0 * s / pcm.len() as f64, 2.0 * c / pcm.len() as f64);
        let rest: f64 = pcm
            .iter()
            .enumerate()
            .map(|(i, x)| (f64::from(*x) - s * turn(i).sin() - c * turn(i).cos()).powi(2))
            .sum();
        ((rest / pcm.len() as f64).sqrt(), s.hypot(c))
    }

    #[test]
    fn every_format_rate_and_channel_count_becomes_the_same_sine_at_48_khz() {
        let formats = [(8, SampleFormat::Int), (16, SampleFormat::Int), (24, SampleFormat::Int)];
        let formats = formats.into_iter().chain([(32, SampleFormat::Int), (32, SampleFormat::Float)]);
        for (bits, format) in formats {
            for (rate, channels) in
                [(48_000, 1), (48_000, 2), (44_100, 1), (16_000, 2), (8_000, 6), (96_000, 1)]
            {
                for ours in [1u16, 2] {
                    let what = format!("{bits} bit {format:?}, {rate} Hz, {channels} to {ours} channels");
                    let pcm = decode(Cursor::new(wav(rate, channels, bits, format)), ours).expect(&what);
                    let frames = pcm.len() / usize::from(ours);
                    assert!(frames.abs_diff(48_000) <= 2, "{what}: {frames} frames");
                    for channel in 0..usize::from(ours) {
                        let mono: Vec<f32> =
                            pcm.iter().skip(channel).step_by(usize::from(ours)).copied().collect();
                        let (rest, amplitude) = against_sine(&mono[4_800..43_200]);
                        assert!((amplitude - 0.5).abs() < 0.005, "{what}: amplitude {amplitude}");
                        assert!(rest < if bits == 8 { 0.01 } else { 0.001 }, "{what}: {rest} is no sine");
                    }
                }
            }
        }
    }

    #[test]
    fn a_resampled_clip_stays_where_it_was_in_time() {
        let mut bytes = Cursor::new(Vec::new());
        let spec = WavSpec {
            channels: 1,
            sample_rate: 16_000,
            bits_per_sample: 16,
            sample_format: SampleFormat::Int,
        };
        let mut writer = WavWriter::new(&mut bytes, spec).unwrap();
        for i in 0..8_000 {
            writer.write_sample(if i == 4_000 { 20_000i16 } else { 0 }).unwrap();
        }
        writer.finalize().unwrap();
        let pcm = decode(Cursor::new(bytes.into_inner()), 1).unwrap();
        let peak = (0..pcm.len()).max_by(|a, b| pcm[*a].total_cmp(&pcm[*b])).unwrap();
        assert!(peak.abs_diff(12_000) <= 1, "the click moved to {peak}");
    }

    #[test]
    fn stereo_keeps_its_sides_and_mono_is_their_mean() {
        let mut bytes = Cursor::new(Vec::new());
        let spec = WavSpec {
            channels: 2,
            sample_rate: 48_000,
            bits_per_sample: 32,
            sample_format: SampleFormat::Float,
        };
        let mut writer = WavWriter::new(&mut bytes, spec).unwrap();
        for sample in [0.5f32, -0.25, f32::NAN, 4.0] {
            writer.write_sample(sample).unwrap();
        }
        writer.finalize().unwrap();
        let bytes = bytes.into_inner();
        assert_eq!(decode(Cursor::new(&bytes), 2).unwrap(), [0.5, -0.25, 0.0, 1.0]);
        assert_eq!(decode(Cursor::new(&bytes), 1).unwrap(), [0.125, 0.5]);
    }

    #[test]
    fn what_is_no_wav_or_cut_off_or_out_of_range_is_refused_with_its_reason() {
        let good = wav(48_000, 1, 16, SampleFormat::Int);
        let says = |bytes: &[u8]| decode(Cursor::new(bytes), 1).map(|_| ()).unwrap_err().to_string();
        assert!(says(b"").contains("not a WAV"));
        assert!(says(b"Ogg bytes, and a lot more than a header of forty-four").contains("not a WAV"));
        assert!(says(&good[..30]).contains("ends within its header"));
        assert_eq!(says(&good[..44 + 2_001]), "cut off: its header promises 48000 frames, 1000 are there");
        assert!(says(&wav(4_000, 1, 16, SampleFormat::Int)).contains("4000 Hz"));
        assert!(says(&wav(48_000, 33, 16, SampleFormat::Int)).contains("33 channels"));
        let mut long = good.clone();
        long[40..44].copy_from_slice(&(MAX_CLIP_SECONDS * 96_000).to_le_bytes());
        assert!(says(&long).contains("lasts 900 s"));
        let mut empty = good;
        empty[40..44].copy_from_slice(&0u32.to_le_bytes());
        assert!(says(&empty).contains("no sound at all"));
    }

    #[test]
    fn a_missing_file_and_a_folder_say_so() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(load(&folder.path().join("none.wav"), 1), Err(LoadError::Unreadable(_))));
        assert!(load(folder.path(), 1).unwrap_err().to_string().contains("directory"));
    }

    proptest! {
        #[test]
        fn hostile_headers_end_in_an_error_or_a_bounded_clip(
            edits in proptest::collection::vec((0usize..60, any::<u8>()), 0..12),
            cut in 0usize..400,
            channels in 1u16..=2,
        ) {
            let mut bytes = wav(8_000, 2, 16, SampleFormat::Int);
            bytes.truncate(60 + cut);
            for (at, value) in edits {
                bytes[at] = value;
            }
            if let Ok(pcm) = decode(Cursor::new(&bytes), channels) {
                prop_assert!(pcm.len() <= bytes.len() * 6 * 32);
                prop_assert!(pcm.iter().all(|s| s.is_finite()));
            }
        }

        #[test]
        fn noise_is_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(Cursor::new(&bytes), 1);
            let mut riff = b"RIFF\x00\x01\x00\x00WAVEfmt ".to_vec();
            riff.extend(bytes);
            let _ = decode(Cursor::new(&riff), 2);
        }
    }
}
