//! What was captured, and when: the newest half second of it.

use crate::{
    frame::STEP,
    time::{Micros, SAMPLE_RATE, Samples},
};

/// Captured audio kept: history to prime encoders with, and what waits to be encoded.
pub const MAX_CAPTURED: Samples = Samples::from_ms(500);
/// A capture time so far from where it should be is a gap or a new clock, not jitter.
const CLOCK_JUMP_US: f64 = 100_000.0;
/// A silence longer than this is not kept in the timeline sample by sample.
const MAX_JUMP: f64 = 3600.0 * SAMPLE_RATE as f64;

/// The newest [`MAX_CAPTURED`] of what was captured, by position since the start.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) channels: usize,
    pcm: Vec<f32>,
    /// Position after the newest sample.
    pub(super) end: u64,
    /// A position and when it was captured, in microseconds.
    anchor: Option<(u64, f64)>,
}

impl Ring {
    pub(super) fn new(channels: usize) -> Self {
        Self { channels, pcm: vec![0.0; MAX_CAPTURED.interleaved(channels)], end: 0, anchor: None }
    }

    /// Notes when the sample after the newest was captured. Jitter of that statement is averaged away. Gives the number
    /// of samples (whole steps) that are missing before it, where capture stood still.
    pub(super) fn place(&mut self, captured_at: Micros) -> u64 {
        let stated = captured_at.0 as f64;
        let Some(expected) = self.time_of(self.end) else {
            self.anchor = Some((self.end, stated));
            return 0;
        };
        let error = stated - expected;
        if error.abs() < CLOCK_JUMP_US {
            self.anchor = Some((self.end, expected + error / 16.0));
            return 0;
        }
        let steps = (error * f64::from(SAMPLE_RATE) / 1e6).clamp(0.0, MAX_JUMP) / f64::from(STEP.0);
        let gap = steps as u64 * u64::from(STEP.0);
        self.anchor = Some((self.end + gap, stated));
        gap
    }

    pub(super) fn skip(&mut self, gap: u64) {
        self.pcm.fill(0.0);
        self.end += gap;
    }

    /// Adds whole samples.
    pub(super) fn push(&mut self, pcm: &[f32], gain: f32) {
        for part in pcm.chunks(self.pcm.len()) {
            let (samples, at) = (part.len() / self.channels, self.index(self.end));
            let (first, second) = part.split_at((self.pcm.len() - at).min(samples * self.channels));
            for (from, part) in [(at, first), (0, second)] {
                for (slot, s) in self.pcm.iter_mut().skip(from).zip(part) {
                    *slot = if s.is_finite() { s.clamp(-1.0, 1.0) * gain } else { 0.0 };
                }
            }
            self.end += samples as u64;
        }
    }

    /// Copies `length` from position `at` on; what lies outside the ring is silence.
    pub(super) fn read(&self, at: u64, length: Samples, out: &mut Vec<f32>) {
        out.clear();
        let oldest = self.end.saturating_sub(u64::from(MAX_CAPTURED.0));
        let until = at + u64::from(length.0);
        let (from, to) = (at.clamp(oldest, self.end), until.clamp(oldest, self.end));
        out.resize(from.min(until).saturating_sub(at) as usize * self.channels, 0.0);
        let begin = self.index(from);
        let end = begin + (to - from) as usize * self.channels;
        out.extend(self.pcm.iter().take(end).skip(begin));
        out.extend(self.pcm.iter().take(end.saturating_sub(self.pcm.len())));
        out.resize(length.interleaved(self.channels), 0.0);
    }

    pub(super) fn captured_at(&self, position: u64) -> Micros {
        Micros(self.time_of(position).map_or(0, |us| us.max(0.0).round() as u64))
    }

    fn time_of(&self, position: u64) -> Option<f64> {
        let (anchor, us) = self.anchor?;
        Some(us + (position as f64 - anchor as f64) * 1e6 / f64::from(SAMPLE_RATE))
    }

    fn index(&self, position: u64) -> usize {
        (position % u64::from(MAX_CAPTURED.0)) as usize * self.channels
    }
}
