//! Loudness of a voice, as RFC 6464 counts it.

use serde::{Deserialize, Serialize};

/// Loudness in dB below full scale: 0 is full scale, -127 is silence (RFC 6464 section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dbov(i8);

impl Dbov {
    /// Full scale.
    pub const MAX: Self = Self(0);
    /// Silence.
    pub const SILENCE: Self = Self(-127);

    /// From a number of dB; values outside -127..=0 are moved to the nearer end.
    #[must_use]
    pub const fn new(db: i8) -> Self {
        Self(if db > 0 {
            0
        } else if db < -127 {
            -127
        } else {
            db
        })
    }

    /// From the mean square of samples in -1.0..=1.0.
    #[must_use]
    pub fn from_mean_square(mean_square: f32) -> Self {
        if mean_square > 0.0 {
            Self((10.0 * mean_square.log10()).round().clamp(-127.0, 0.0) as i8)
        } else {
            Self::SILENCE
        }
    }

    /// -127..=0 dB.
    #[must_use]
    pub const fn db(self) -> i8 {
        self.0
    }

    /// The seven bits of RFC 6464: dB below full scale, without the sign.
    #[must_use]
    pub const fn to_wire(self) -> u8 {
        self.0.unsigned_abs()
    }

    /// Reads the seven bits; the eighth is not looked at.
    #[must_use]
    pub const fn from_wire(bits: u8) -> Self {
        Self(((bits & 0x7f) as i8).wrapping_neg())
    }
}

/// Mean square of samples; 0 where there are none.
#[must_use]
pub fn mean_square(pcm: &[f32]) -> f32 {
    pcm.iter().map(|s| s * s).sum::<f32>() / pcm.len().max(1) as f32
}

/// Collects samples until asked for their loudness. Real-time safe.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    sum: f64,
    count: u64,
}

impl Meter {
    /// Adds samples, of any number of channels.
    pub fn add(&mut self, pcm: &[f32]) {
        for block in pcm.chunks(256) {
            let sum: f32 = block.iter().map(|s| s * s).sum();
            if sum.is_finite() {
                self.sum += f64::from(sum);
            }
        }
        self.count += pcm.len() as u64;
    }

    /// Loudness since the last call, or `None` where nothing was added.
    pub fn take(&mut self) -> Option<Dbov> {
        if self.count == 0 {
            return None;
        }
        let level = Dbov::from_mean_square((self.sum / self.count as f64) as f32);
        *self = Self::default();
        Some(level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_scale_sine_is_three_below_full_scale() {
        let mut meter = Meter::default();
        let sine: Vec<f32> = (0..4800).map(|i| (i as f32 * std::f32::consts::TAU / 48.0).sin()).collect();
        meter.add(&sine);
        assert_eq!(meter.take(), Some(Dbov::new(-3)));
        assert_eq!(meter.take(), None, "the meter starts afresh");
    }

    #[test]
    fn silence_and_nonsense_stay_on_the_scale() {
        assert_eq!(Dbov::from_mean_square(0.0), Dbov::SILENCE);
        assert_eq!(Dbov::from_mean_square(f32::NAN), Dbov::SILENCE);
        assert_eq!(Dbov::from_mean_square(9.0), Dbov::MAX);
        assert_eq!(Dbov::new(i8::MIN), Dbov::SILENCE);
        for bits in 0..=255u8 {
            assert_eq!(Dbov::from_wire(bits).to_wire(), bits & 0x7f);
        }
        let mut meter = Meter::default();
        meter.add(&[f32::NAN; 10]);
        assert_eq!(meter.take(), Some(Dbov::SILENCE));
    }
}
