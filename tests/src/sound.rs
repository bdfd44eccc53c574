//! What is said and what was heard.

use std::path::Path;

use hallway::bench::lag::direction;
use hallway::bench::report::DirectionReport;
use hallway::bench::signal::{TRACK_RATE_HZ, Track};
use hallway::bench::speech::speech;

use crate::process::Process;

/// Writes `seconds` of speech, a voice for each seed, 48 kHz mono 16 bit.
pub fn write_speech(path: &Path, seed: u64, seconds: f64) {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: TRACK_RATE_HZ,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut wav = hound::WavWriter::create(path, spec).unwrap();
    for x in speech(seed, seconds) {
        wav.write_sample((x * f32::from(i16::MAX)).round() as i16).unwrap();
    }
    wav.finalize().unwrap();
}

/// How `listener` heard what `talker` said.
pub fn heard(talker: &Process, said: &Path, listener: &Process, heard: &Path) -> DirectionReport {
    let name = format!("{} > {}", talker.name, listener.name);
    direction(&name, said, heard, &talker.log(), &listener.log())
}

/// A recording and when it began.
pub struct Recording {
    /// Mono, 48 kHz.
    pub samples: Vec<f32>,
    /// Monotonic time of the first sample, ns.
    pub started_ns: u64,
}

impl Recording {
    /// What this node heard, from `output_started` on.
    pub fn of(listener: &Process, path: &Path) -> Recording {
        let started_ns = listener.wait_named("output_started")["at_ns"].as_u64().unwrap();
        let track = Track::read(path, started_ns).unwrap_or_else(|error| panic!("{error}"));
        Recording { samples: track.samples, started_ns }
    }

    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(TRACK_RATE_HZ)
    }

    /// What was heard in the time between two moments of the machine's monotonic clock.
    pub fn between(&self, from_ns: u64, to_ns: u64) -> &[f32] {
        let at = |ns: u64| {
            let samples = ns.saturating_sub(self.started_ns) as f64 * 1e-9 * f64::from(TRACK_RATE_HZ);
            (samples as usize).min(self.samples.len())
        };
        &self.samples[at(from_ns)..at(to_ns).max(at(from_ns))]
    }
}

/// Amplitude of a tone in a stretch of sound (Hann window): a full-scale sine is 1.
pub fn amplitude(samples: &[f32], hz: f64) -> f64 {
    let (mut re, mut im, mut weight) = (0.0, 0.0, 0.0);
    let length = samples.len().max(1) as f64;
    for (i, x) in samples.iter().enumerate() {
        let window = 0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / length).cos();
        let phase = std::f64::consts::TAU * hz * i as f64 / f64::from(TRACK_RATE_HZ);
        re += f64::from(*x) * window * phase.cos();
        im += f64::from(*x) * window * phase.sin();
        weight += window;
    }
    2.0 * re.hypot(im) / f64::max(weight, 1.0)
}

/// Root mean square of a stretch of sound: a full-scale sine is 0.71.
pub fn loudness(samples: &[f32]) -> f64 {
    (samples.iter().map(|x| f64::from(x * x)).sum::<f64>() / samples.len().max(1) as f64).sqrt()
}

/// Longest silence in a stretch of a voice that hums all the time: of 20 ms windows, those with less than a quarter of the
/// loudness of the whole. Where nobody hums at all the test fails.
pub fn longest_gap(samples: &[f32]) -> std::time::Duration {
    const WINDOW: usize = TRACK_RATE_HZ as usize / 50;
    let whole = loudness(samples);
    assert!(whole > 1e-3, "nothing was heard in {} samples", samples.len());
    let (mut longest, mut silent) = (0u32, 0u32);
    for window in samples.chunks_exact(WINDOW) {
        silent = if loudness(window) < whole / 4.0 { silent + 1 } else { 0 };
        longest = longest.max(silent);
    }
    std::time::Duration::from_millis(20) * longest
}

/// Largest sample, as a share of full scale.
pub fn peak(samples: &[f32]) -> f32 {
    samples.iter().fold(0.0, |peak, x| peak.max(x.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_as_long_as_it_is() {
        let sound: Vec<f32> = (0..96_000)
            .map(|i| if (40_000..49_600).contains(&i) { 0.0 } else { (i as f32 * 0.06).sin() * 0.1 })
            .collect();
        let gap = longest_gap(&sound).as_millis();
        assert!((180..=200).contains(&gap), "{gap} ms");
    }

    #[test]
    fn a_tone_is_found_where_it_is_and_nowhere_else() {
        let tone = |hz: f64| move |i: usize| (std::f64::consts::TAU * hz * i as f64 / 48e3).sin() as f32;
        let (a, b) = (tone(440.0), tone(610.0));
        let sound: Vec<f32> = (0..48_000).map(|i| 0.1 * a(i) + 0.05 * b(i)).collect();
        assert!((amplitude(&sound, 440.0) - 0.1).abs() < 1e-3);
        assert!((amplitude(&sound, 610.0) - 0.05).abs() < 1e-3);
        assert!(amplitude(&sound, 525.0) < 1e-4);
        assert!((0.1..0.1501).contains(&peak(&sound)));
    }
}
