//! What was heard against what was said: how late, and how much of it was damaged. The truth test of every delay that a
//! node estimates.
//!
//! Both recordings carry the monotonic time of their first sample, so no clock is compared with another. Method:
//!
//! 1. Both are brought to 16 kHz without any shift in time.
//! 2. Each 400 ms of speech, every 100 ms, is looked for in the 1.6 s of the other recording that begin where it was said:
//!    normalized cross-correlation, accepted above 0.6, peak refined by a parabola. Windows that are mostly silence are
//!    left out.
//! 3. A lone window that disagrees with the median of its neighbours by 60 ms or more slipped by a period of the voice:
//!    dropped.
//! 4. A 20 ms frame of speech is *damaged* if its waveform (120 to 3400 Hz, 30 ms of it) correlates with what was heard
//!    by less than 0.8 anywhere within ±12 ms of the tracked lag, and *silent* if what was heard there is 20 dB below it.
//!    0.8 was calibrated against the concealment counters of a browser: it agrees within two points of percent and reads
//!    at most 0.4 % on a clean link.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::spectrum::{Bands, Finder, band_pass, peak, resample};

/// Recordings are compared at this rate, Hz; they come at [`TRACK_RATE_HZ`].
const RATE: usize = 16_000;
/// Rate of a [`Track`], Hz.
pub const TRACK_RATE_HZ: u32 = 48_000;
/// Largest delay that is found, ms.
pub const MAX_LAG_MS: f64 = 1600.0;
/// Longest recording taken, s: a bound for memory, not for patience.
pub const MAX_TRACK_S: usize = 1800;

const WINDOW: usize = RATE * 400 / 1000;
const HOP: usize = RATE / 10;
const LAGS: usize = RATE * 16 / 10;
/// A window counts if five of its eight parts are louder than 0.7 of the floor: at least half of it is speech.
const WINDOW_PARTS: usize = 8;
const SPEECH_PARTS: usize = 5;
/// The floor, relative to the level while speaking (20 dB below).
const FLOOR: f64 = 0.1;
const ACCEPTED: f32 = 0.6;
const SLIP_MS: f64 = 60.0;
/// Fewer matched windows than this are luck, not a measurement.
const LEAST_WINDOWS: usize = 5;

const FRAME: usize = RATE * 20 / 1000;
const AROUND_FRAME: usize = RATE * 30 / 1000;
const FRAME_SEARCH: usize = RATE * 12 / 1000;
/// Window of the spectral distance, and the power that is as good as none beside the loudest band (−40 dB).
const FRAME_BANDS: usize = 512;
const UNHEARD: f64 = 1e-4;
const DAMAGED_BELOW: f32 = 0.8;
const SILENT_POWER: f64 = 0.01;
/// Frames softer than this share of the loud ones (90th percentile of their block) are not judged.
const LOUD_SHARE: f64 = 0.35;
const LEVEL_BLOCK: usize = 10 * RATE;

/// First sound: 5 ms louder than this.
const AUDIBLE_RMS: f64 = 0.003;

/// One recording: mono, 48 kHz.
#[derive(Clone, Debug)]
pub struct Track {
    /// Samples, full scale is ±1.
    pub samples: Vec<f32>,
    /// Monotonic time of the first sample, ns.
    pub started_ns: u64,
}

/// A recording that cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// The file is no WAV, or cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        source: hound::Error,
    },
    /// The file is longer than [`MAX_TRACK_S`].
    #[error("{path} is longer than {MAX_TRACK_S} s; cut it first")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The recording of what was said is silent, or shorter than a window.
    #[error("what was said holds no second of sound; give a WAV with speech in it")]
    NothingSaid,
    /// Nothing of what was said was found: another recording, or nothing arrived.
    #[error("nothing of what was said was heard ({matched} of {windows} windows match)")]
    NothingHeard {
        /// Windows of speech looked for.
        windows: usize,
        /// Windows found.
        matched: usize,
    },
}

impl Track {
    /// Reads a WAV of any rate, any number of channels (mixed to one), 8 to 32 bits or float.
    pub fn read(path: &Path, started_ns: u64) -> Result<Track, SignalError> {
        let unreadable = |source| SignalError::Unreadable { path: path.to_owned(), source };
        let mut wav = hound::WavReader::open(path).map_err(unreadable)?;
        let spec = wav.spec();
        if u64::from(wav.duration()) > MAX_TRACK_S as u64 * u64::from(spec.sample_rate) {
            return Err(SignalError::TooLong { path: path.to_owned() });
        }
        let samples: Vec<f32> = match spec.sample_format {
            hound::SampleFormat::Float => wav.samples::<f32>().collect::<Result<_, _>>(),
            hound::SampleFormat::Int => {
                let scale = 1.0 / (1u64 << spec.bits_per_sample.clamp(1, 32).saturating_sub(1)) as f32;
                wav.samples::<i32>().map(|x| x.map(|x| x as f32 * scale)).collect::<Result<_, _>>()
            }
        }
        .map_err(unreadable)?;
        let channels = usize::from(spec.channels.max(1));
        let mono: Vec<f32> = samples
            .chunks_exact(channels)
            .map(|frame| {
                frame.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).sum::<f32>() / channels as f32
            })
            .collect();
        Ok(Track { samples: resample(&mono, spec.sample_rate, TRACK_RATE_HZ), started_ns })
    }

    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(TRACK_RATE_HZ)
    }
}

/// The delay of one window of speech.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WindowLag {
    /// Middle of the window, ms of the recording of what was said.
    pub at_ms: f64,
    /// From mouth to ear, ms.
    pub lag_ms: f64,
    /// How well it fits, 0 to 1.
    pub fit: f32,
}

/// What the listener got of one direction.
#[derive(Clone, Debug, Serialize)]
pub struct SignalReport {
    /// Mouth to ear, ms, over the matched windows.
    pub lag_ms: Spread,
    /// Windows of speech looked for, from the first that was found on.
    pub windows: usize,
    /// Windows found.
    pub matched: usize,
    /// Frames of speech judged.
    pub frames: usize,
    /// Of those, percent whose waveform did not arrive.
    pub damaged_pct: f64,
    /// Of those, percent that were silent at the listener.
    pub silent_pct: f64,
    /// How far the spectrum of those frames is from what was said, dB: root mean square over bands, mean over frames. Under
    /// 3 dB is a clean codec, over 8 dB hurts.
    pub distance_db: f64,
    /// From the first sample said to the middle of the first window that was found, ms: how much was said to nobody.
    pub unheard_start_ms: f64,
    /// First sound in the ear after the first sample was said: its monotonic time, ns.
    pub first_sound_ns: Option<u64>,
    /// Delay in the last quarter of the matched windows minus that in the first, medians, ms: does it grow?
    pub growth_ms: f64,
    /// Every matched window.
    #[serde(skip)]
    pub track: Vec<WindowLag>,
}

/// How a set of numbers is spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// 5th percentile.
    pub p5: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of these numbers; of none, there is none.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Spread {
            min: *sorted.first()?,
            p5: percentile(&sorted, 5.0),
            p50: percentile(&sorted, 50.0),
            p95: percentile(&sorted, 95.0),
            p99: percentile(&sorted, 99.0),
            max: *sorted.last()?,
        })
    }
}

/// Linear interpolation between the ranks of sorted numbers.
fn percentile(sorted: &[f64], pct: f64) -> f64 {
    let rank = pct / 100.0 * sorted.len().saturating_sub(1) as f64;
    let below = sorted.get(rank.floor() as usize).copied().unwrap_or(0.0);
    let above = sorted.get(rank.ceil() as usize).copied().unwrap_or(below);
    below + (above - below) * rank.fract()
}

/// Median; of none, nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    Spread::of(values).map(|spread| spread.p50)
}

/// Compares what was said with what was heard.
pub fn measure(said: &Track, heard: &Track) -> Result<SignalReport, SignalError> {
    // 1. Same rate, same timeline: sample i of both was said, or heard, at the same instant, up to `rest_ms`.
    let said16 = resample(&said.samples, TRACK_RATE_HZ, RATE as u32);
    let ahead_ns = i128::from(heard.started_ns) - i128::from(said.started_ns);
    let ahead = ahead_ns as f64 * 1e-9 * RATE as f64;
    let whole = ahead.floor();
    let rest_ms = (ahead - whole) * 1e3 / RATE as f64;
    let heard16 =
        shifted(&resample(&heard.samples, TRACK_RATE_HZ, RATE as u32), whole, said16.len() + LAGS + WINDOW);

    // 2. and 3. The lag of each window.
    let floor = FLOOR * speaking_rms(&said16).ok_or(SignalError::NothingSaid)?;
    let windows = speech_windows(&said16, floor);
    if windows.is_empty() {
        return Err(SignalError::NothingSaid);
    }
    // Where listening ended, nothing more could be heard.
    let heard_end = (whole + (heard.seconds() * RATE as f64)).max(0.0) as usize;
    let finder = Finder::new(WINDOW, WINDOW + LAGS);
    let found: Vec<WindowLag> = windows
        .iter()
        .filter_map(|start| {
            let stretch = heard16.get(*start..start + WINDOW + LAGS)?;
            let (lag, fit) = peak(&finder.correlate(&said16[*start..start + WINDOW], stretch))?;
            let at_ms = ms(start + WINDOW / 2);
            (fit > ACCEPTED).then_some(WindowLag { at_ms, lag_ms: lag * 1e3 / RATE as f64 + rest_ms, fit })
        })
        .collect();
    let track = without_slips(found);
    let (Some(first), true) = (track.first(), track.len() >= LEAST_WINDOWS) else {
        return Err(SignalError::NothingHeard { windows: windows.len(), matched: track.len() });
    };
    let lags: Vec<f64> = track.iter().map(|w| w.lag_ms).collect();
    let Some(lag_ms) = Spread::of(&lags) else {
        return Err(SignalError::NothingHeard { windows: windows.len(), matched: 0 });
    };
    let begin = (first.at_ms * 1e-3 * RATE as f64) as usize - WINDOW / 2;
    let end = heard_end.saturating_sub((lag_ms.p95 * 1e-3 * RATE as f64) as usize).min(said16.len());
    let asked = windows.iter().filter(|start| **start >= begin && *start + WINDOW <= end).count();

    // 4. Frame by frame.
    let judged = judge_frames(&said16, &heard16, &track, rest_ms, begin..end);
    let quarter = lags.len().div_ceil(4);
    let growth_ms =
        median(&lags[lags.len() - quarter..]).unwrap_or(0.0) - median(&lags[..quarter]).unwrap_or(0.0);
    Ok(SignalReport {
        lag_ms,
        windows: asked.max(track.len()),
        matched: track.len(),
        frames: judged.frames,
        damaged_pct: judged.percent(judged.damaged),
        silent_pct: judged.percent(judged.silent),
        distance_db: judged.distance_db / judged.frames.max(1) as f64,
        unheard_start_ms: first.at_ms,
        first_sound_ns: first_sound(heard, said.started_ns),
        growth_ms,
        track,
    })
}

/// `x` laid on a timeline that begins `by` samples before it (or after, if negative), `len` long.
fn shifted(x: &[f32], by: f64, len: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    let (skip, put) = if by < 0.0 { ((-by) as usize, 0) } else { (0, by as usize) };
    if let (Some(from), Some(to)) = (x.get(skip..), out.get_mut(put..)) {
        let n = from.len().min(to.len());
        to[..n].copy_from_slice(&from[..n]);
    }
    out
}

fn rms(x: &[f32]) -> f64 {
    (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len().max(1) as f64).sqrt()
}

fn ms(samples: usize) -> f64 {
    samples as f64 * 1e3 / RATE as f64
}

/// Level of the frames that are not pauses: those within 20 dB of the loud ones.
fn speaking_rms(x: &[f32]) -> Option<f64> {
    let mut frames: Vec<f64> = x.chunks_exact(FRAME).map(rms).collect();
    frames.sort_by(f64::total_cmp);
    let loud = percentile(&frames, 95.0);
    if loud < 1e-4 {
        return None;
    }
    let speaking: Vec<f64> = frames.into_iter().filter(|r| *r > 0.1 * loud).collect();
    Some((speaking.iter().map(|r| r * r).sum::<f64>() / speaking.len().max(1) as f64).sqrt())
}

/// Beginnings of the windows that hold speech.
fn speech_windows(x: &[f32], floor: f64) -> Vec<usize> {
    let last = x.len().saturating_sub(WINDOW);
    (0..last)
        .step_by(HOP)
        .filter(|start| {
            let window = &x[*start..start + WINDOW];
            let spoken =
                window.chunks_exact(WINDOW / WINDOW_PARTS).filter(|part| rms(part) > 0.7 * floor).count();
            rms(window) >= floor && spoken >= SPEECH_PARTS
        })
        .collect()
}

fn without_slips(found: Vec<WindowLag>) -> Vec<WindowLag> {
    if found.len() < LEAST_WINDOWS {
        return found;
    }
    let near = |i: usize| {
        let around: Vec<f64> =
            found[i.saturating_sub(2)..(i + 3).min(found.len())].iter().map(|w| w.lag_ms).collect();
        median(&around).unwrap_or(0.0)
    };
    (0..found.len()).filter(|i| (found[*i].lag_ms - near(*i)).abs() < SLIP_MS).map(|i| found[i]).collect()
}

#[derive(Default)]
struct Judged {
    frames: usize,
    damaged: usize,
    silent: usize,
    /// Sum over the frames.
    distance_db: f64,
}

impl Judged {
    fn percent(&self, part: usize) -> f64 {
        100.0 * part as f64 / self.frames.max(1) as f64
    }
}

fn judge_frames(
    said: &[f32],
    heard: &[f32],
    track: &[WindowLag],
    rest_ms: f64,
    span: std::ops::Range<usize>,
) -> Judged {
    let (wide_said, wide_heard) = (said, heard);
    let bands = Bands::new(FRAME_BANDS, RATE as u32);
    let said = band_pass(said, RATE as u32, 120.0, 3400.0);
    let heard = band_pass(heard, RATE as u32, 120.0, 3400.0);
    let finder = Finder::new(AROUND_FRAME, AROUND_FRAME + 2 * FRAME_SEARCH);
    let margin = (AROUND_FRAME - FRAME) / 2;
    let mut judged = Judged::default();
    for block in span.clone().step_by(LEVEL_BLOCK) {
        let starts: Vec<usize> =
            (block..(block + LEVEL_BLOCK).min(span.end).saturating_sub(FRAME)).step_by(FRAME).collect();
        let levels: Vec<f64> = starts.iter().map(|i| rms(&said[*i..i + FRAME])).collect();
        let mut sorted = levels.clone();
        sorted.sort_by(f64::total_cmp);
        let loud = LOUD_SHARE * percentile(&sorted, 90.0);
        for (start, _) in starts.iter().zip(levels).filter(|(_, level)| *level >= loud && *level > 0.0) {
            let lag = ((lag_at(track, ms(*start)) - rest_ms) * 1e-3 * RATE as f64).round() as usize;
            let Some(from) = start.checked_sub(margin) else { continue };
            let Some(to) = (from + lag).checked_sub(FRAME_SEARCH) else { continue };
            let (Some(x), Some(y)) =
                (said.get(from..from + AROUND_FRAME), heard.get(to..to + AROUND_FRAME + 2 * FRAME_SEARCH))
            else {
                continue;
            };
            judged.frames += 1;
            let (at, best) = peak(&finder.correlate(x, y)).unwrap_or((FRAME_SEARCH as f64, 0.0));
            // A frame that did not arrive is compared where it should have been.
            let at = if best < DAMAGED_BELOW { FRAME_SEARCH } else { at.round() as usize };
            let whole =
                |wave: &[f32], from: usize| wave.get(from..from + FRAME_BANDS).map(|w| bands.powers(w));
            if let (Some(x), Some(y)) = (whole(wide_said, from), whole(wide_heard, to + at)) {
                judged.distance_db += distance_db(&x, &y);
            }
            judged.damaged += usize::from(best < DAMAGED_BELOW);
            let there = &y[FRAME_SEARCH..FRAME_SEARCH + AROUND_FRAME];
            judged.silent += usize::from(rms(there).powi(2) < SILENT_POWER * rms(x).powi(2));
        }
    }
    judged
}

/// Root mean square difference of two spectra over the bands, dB. Bands far below the loudest are the same to an ear.
fn distance_db(said: &[f64], heard: &[f64]) -> f64 {
    let floor = said.iter().copied().fold(0.0, f64::max) * UNHEARD + f64::MIN_POSITIVE;
    let db = |power: f64| 10.0 * power.max(floor).log10();
    let squares = said.iter().zip(heard).map(|(x, y)| (db(*x) - db(*y)).powi(2)).sum::<f64>();
    (squares / said.len().max(1) as f64).sqrt()
}

/// The accepted lag nearest in time.
fn lag_at(track: &[WindowLag], at_ms: f64) -> f64 {
    let after = track.partition_point(|w| w.at_ms < at_ms);
    let near = [after.checked_sub(1), Some(after)].into_iter().flatten().filter_map(|i| track.get(i));
    near.min_by(|a, b| (a.at_ms - at_ms).abs().total_cmp(&(b.at_ms - at_ms).abs())).map_or(0.0, |w| w.lag_ms)
}

fn first_sound(heard: &Track, from_ns: u64) -> Option<u64> {
    let step = TRACK_RATE_HZ as usize / 200;
    let ns = |sample: usize| {
        heard.started_ns + (sample as u64).saturating_mul(1_000_000_000) / u64::from(TRACK_RATE_HZ)
    };
    heard
        .samples
        .chunks_exact(step)
        .enumerate()
        .map(|(i, chunk)| (ns(i * step), rms(chunk)))
        .find(|(at, level)| *at >= from_ns && *level > AUDIBLE_RMS)
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests;
