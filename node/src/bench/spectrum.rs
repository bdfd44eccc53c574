//! Whole-recording filters that shift nothing in time, done in the frequency domain.
//!
//! A measurement of delay must not have a delay of its own: every filter here has zero phase, so the group delay is
//! exactly nothing at every frequency.

use realfft::num_complex::Complex;
use realfft::{FftError, RealFftPlanner};

/// Silence put behind a recording so that its end does not leak into its beginning, s.
const GUARD_S: f64 = 0.1;
/// Where the passband of a rate change ends and where the stopband begins, as shares of the smaller Nyquist frequency.
const PASS: f64 = 0.93;
const STOP: f64 = 1.0;

/// The same sound at another sampling rate. Rates in Hz; either at 0 gives nothing back.
pub fn resample(x: &[f32], from_hz: u32, to_hz: u32) -> Vec<f32> {
    if from_hz == to_hz || x.is_empty() {
        return x.to_vec();
    }
    let common = gcd(from_hz, to_hz);
    if common == 0 || from_hz == 0 || to_hz == 0 {
        return Vec::new();
    }
    let (down, up) = ((from_hz / common) as usize, (to_hz / common) as usize);
    // Lengths before and after are whole multiples of the reduced ratio, even, and products of small factors.
    let guard = (GUARD_S * f64::from(from_hz)) as usize;
    let blocks = (x.len() + guard).div_ceil(down).next_power_of_two().max(2);
    let (n_in, n_out) = (blocks * down, blocks * up);
    let edge = from_hz.min(to_hz) as f64 / 2.0;
    let bin_hz = f64::from(from_hz) / n_in as f64;

    let spectrum = forward(x, n_in);
    let mut out = vec![Complex::default(); n_out / 2 + 1];
    let scale = 1.0 / n_in as f32;
    for (k, (to, from)) in out.iter_mut().zip(&spectrum).enumerate() {
        *to = from * (fade(k as f64 * bin_hz / edge) as f32 * scale);
    }
    let mut y = inverse(out, n_out);
    y.truncate((x.len() * up).div_ceil(down));
    y
}

/// 1 below [`PASS`], 0 above [`STOP`], half a cosine between.
fn fade(f: f64) -> f64 {
    let t = ((f - PASS) / (STOP - PASS)).clamp(0.0, 1.0);
    0.5 + 0.5 * (std::f64::consts::PI * t).cos()
}

/// Only what lies between two frequencies: the magnitude of a fourth-order Butterworth band-pass run forwards and
/// backwards.
pub fn band_pass(x: &[f32], rate_hz: u32, low_hz: f64, high_hz: f64) -> Vec<f32> {
    if x.is_empty() {
        return Vec::new();
    }
    let guard = (GUARD_S * f64::from(rate_hz)) as usize;
    let n = (x.len() + guard).next_power_of_two();
    let mut spectrum = forward(x, n);
    let bin_hz = f64::from(rate_hz) / n as f64;
    for (k, bin) in spectrum.iter_mut().enumerate() {
        let f = k as f64 * bin_hz;
        let gain = if k == 0 {
            0.0
        } else {
            // The low-pass prototype 1/(1+w^8), mapped to the band.
            let w = (f * f - low_hz * high_hz) / (f * (high_hz - low_hz));
            1.0 / (1.0 + w.powi(8))
        };
        *bin *= gain as f32 / n as f32;
    }
    let mut y = inverse(spectrum, n);
    y.truncate(x.len());
    y
}

/// Finds one short piece of sound in a longer one; made once per pair of lengths.
pub struct Finder {
    piece: usize,
    stretch: usize,
    forward: std::sync::Arc<dyn realfft::RealToComplex<f32>>,
    inverse: std::sync::Arc<dyn realfft::ComplexToReal<f32>>,
}

impl Finder {
    /// For pieces of `piece` samples searched in stretches of `stretch` samples.
    pub fn new(piece: usize, stretch: usize) -> Finder {
        let n = (piece + stretch).next_power_of_two();
        let mut planner = RealFftPlanner::<f32>::new();
        Finder { piece, stretch, forward: planner.plan_fft_forward(n), inverse: planner.plan_fft_inverse(n) }
    }

    /// Normalized cross-correlation, -1 to 1, of `piece` with `stretch` at every shift from 0 to
    /// `stretch.len() - piece.len()`. Empty if a length is not the one promised to [`Finder::new`].
    pub fn correlate(&self, piece: &[f32], stretch: &[f32]) -> Vec<f32> {
        if piece.len() != self.piece || stretch.len() != self.stretch || self.piece > self.stretch {
            return Vec::new();
        }
        let n = self.forward.len();
        let mean = piece.iter().map(|x| f64::from(*x)).sum::<f64>() / piece.len() as f64;
        let piece: Vec<f32> = piece.iter().map(|x| x - mean as f32).collect();
        let energy = piece.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        if energy <= 0.0 {
            return vec![0.0; self.stretch - self.piece + 1];
        }
        let a = transform(&*self.forward, &piece, n);
        let mut b = transform(&*self.forward, stretch, n);
        for (b, a) in b.iter_mut().zip(&a) {
            *b *= a.conj() / n as f32;
        }
        let mut product = vec![0.0; n];
        run(self.inverse.process(&mut b, &mut product));
        // Energy of the stretch under the piece, by running sum in f64. A floor keeps near-silence from dividing by
        // nothing and looking like a match.
        let floor = 1e-6 * energy;
        let mut under = stretch[..self.piece].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        (0..=self.stretch - self.piece)
            .map(|k| {
                let value = f64::from(product[k]) / (under.max(floor) * energy).sqrt();
                if let Some(next) = stretch.get(k + self.piece) {
                    under += f64::from(*next).powi(2) - f64::from(stretch[k]).powi(2);
                }
                value as f32
            })
            .collect()
    }
}

/// Power in bands as wide as an ear's, of windows of one length.
pub struct Bands {
    transform: std::sync::Arc<dyn realfft::RealToComplex<f32>>,
    window: Vec<f32>,
    /// First and last bin of each band.
    edges: Vec<(usize, usize)>,
}

impl Bands {
    /// For windows of `length` samples at `rate_hz`: bands from 100 Hz to 7 kHz, half a Bark to one Bark wide.
    pub fn new(length: usize, rate_hz: u32) -> Bands {
        let hz_per_bin = f64::from(rate_hz) / length as f64;
        // Traunmüller's Bark scale, inverted.
        let hz = |bark: f64| 1960.0 * (bark + 0.53) / (26.28 - bark);
        let edges = (1..=20).map(f64::from).map(|bark| {
            let bin = |bark: f64| (hz(bark) / hz_per_bin).round() as usize;
            (bin(bark), bin(bark + 1.0).max(bin(bark) + 1))
        });
        let hann = |i: usize| (std::f64::consts::PI * (i as f64 + 0.5) / length as f64).sin().powi(2) as f32;
        Bands {
            transform: RealFftPlanner::<f32>::new().plan_fft_forward(length),
            window: (0..length).map(hann).collect(),
            edges: edges.collect(),
        }
    }

    /// The power of each band. Nothing for a window of another length.
    pub fn powers(&self, x: &[f32]) -> Vec<f64> {
        if x.len() != self.window.len() {
            return Vec::new();
        }
        let windowed: Vec<f32> = x.iter().zip(&self.window).map(|(x, w)| x * w).collect();
        let spectrum = transform(&*self.transform, &windowed, x.len());
        let power = |bins: &[Complex<f32>]| bins.iter().map(|bin| f64::from(bin.norm_sqr())).sum();
        self.edges.iter().map(|(from, to)| spectrum.get(*from..*to).map_or(0.0, power)).collect()
    }
}

/// Position of the largest value, refined by a parabola through it and its neighbours.
pub fn peak(values: &[f32]) -> Option<(f64, f32)> {
    let (k, top) = values.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let mut at = k as f64;
    if let (Some(left), Some(right)) = (k.checked_sub(1).and_then(|k| values.get(k)), values.get(k + 1)) {
        let curve = f64::from(*left) - 2.0 * f64::from(top) + f64::from(*right);
        if curve < 0.0 {
            at += 0.5 * (f64::from(*left) - f64::from(*right)) / curve;
        }
    }
    Some((at, top))
}

fn forward(x: &[f32], n: usize) -> Vec<Complex<f32>> {
    transform(&*RealFftPlanner::<f32>::new().plan_fft_forward(n), x, n)
}

fn transform(plan: &dyn realfft::RealToComplex<f32>, x: &[f32], n: usize) -> Vec<Complex<f32>> {
    let mut padded = vec![0.0; n];
    padded[..x.len()].copy_from_slice(x);
    let mut out = plan.make_output_vec();
    run(plan.process(&mut padded, &mut out));
    out
}

fn inverse(mut spectrum: Vec<Complex<f32>>, n: usize) -> Vec<f32> {
    let mut out = vec![0.0; n];
    // A real signal has real ends of its spectrum.
    if let Some(first) = spectrum.first_mut() {
        first.im = 0.0;
    }
    if let Some(last) = spectrum.last_mut() {
        last.im = 0.0;
    }
    run(RealFftPlanner::<f32>::new().plan_fft_inverse(n).process(&mut spectrum, &mut out));
    out
}

/// The only errors of a transform are wrong lengths (ours by construction) and, for the inverse, imaginary parts at the
/// ends of the spectrum, which it sets to nothing itself and then reports.
fn run(result: Result<(), FftError>) {
    debug_assert!(
        !matches!(result, Err(FftError::InputBuffer(..) | FftError::OutputBuffer(..))),
        "{result:?}"
    );
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hz: f64, rate: u32, n: usize) -> Vec<f32> {
        (0..n).map(|i| (std::f64::consts::TAU * hz * i as f64 / f64::from(rate)).sin() as f32).collect()
    }

    fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn a_tone_keeps_its_phase_through_a_change_of_rate() {
        for (from, to) in [(48_000, 16_000), (44_100, 48_000), (8_000, 48_000), (96_000, 48_000)] {
            let x = tone(1000.0, from, from as usize);
            let y = resample(&x, from, to);
            assert_eq!(y.len(), to as usize);
            let want = tone(1000.0, to, to as usize);
            let edge = to as usize / 20;
            let error = largest_difference(&y[edge..y.len() - edge], &want[edge..]);
            assert!(error < 2e-3, "{from} to {to}: {error}");
        }
    }

    #[test]
    fn what_the_new_rate_cannot_hold_is_removed() {
        let y = resample(&tone(9_000.0, 48_000, 48_000), 48_000, 16_000);
        assert!(y[800..15_200].iter().all(|v| v.abs() < 0.01));
    }

    #[test]
    fn a_band_pass_keeps_the_band_in_place() {
        let inside = tone(800.0, 16_000, 16_000);
        let y = band_pass(&inside, 16_000, 120.0, 3400.0);
        assert!(largest_difference(&y[1600..14_400], &inside[1600..]) < 0.02);
        let outside = band_pass(&tone(50.0, 16_000, 16_000), 16_000, 120.0, 3400.0);
        assert!(outside[3200..12_800].iter().all(|v| v.abs() < 0.05));
    }

    #[test]
    fn a_piece_is_found_where_it_is() {
        let mut luck = crate::bench::luck::Luck::seeded(2);
        let stretch: Vec<f32> = (0..4000).map(|_| luck.normal() as f32).collect();
        let ncc = Finder::new(400, 4000).correlate(&stretch[1234..1634], &stretch);
        let (at, top) = peak(&ncc).unwrap();
        assert!((at - 1234.0).abs() < 0.01 && top > 0.99, "{at} {top}");
        assert_eq!(ncc.len(), 3601);
    }
}
