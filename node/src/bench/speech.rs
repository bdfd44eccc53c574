//! Something speech-like to say, where no recorded speech is at hand.
//!
//! A source and a filter, as in a throat: a train of pulses with a gliding pitch, or noise, or both, through three gliding
//! resonances, in syllables of 120 to 300 ms with short pauses. It never repeats, so a delay found in it is the only one
//! that fits; and codecs built for speech treat it as speech. All of it follows from a seed.

use super::luck::Luck;

/// Sampling rate, Hz.
pub const RATE_HZ: u32 = 48_000;
/// Level while speaking, root mean square of full scale (about -24 dBFS).
pub const SPEAKING_RMS: f32 = 0.063;

const RATE: f64 = RATE_HZ as f64;
/// Centre frequencies of the first three resonances of some vowels (a, e, i, o, u and two between), Hz.
const VOWELS: [[f64; 3]; 7] = [
    [730.0, 1090.0, 2440.0],
    [530.0, 1840.0, 2480.0],
    [270.0, 2290.0, 3010.0],
    [570.0, 840.0, 2410.0],
    [300.0, 870.0, 2240.0],
    [660.0, 1720.0, 2410.0],
    [490.0, 1350.0, 1690.0],
];
const BANDWIDTHS: [f64; 3] = [70.0, 100.0, 150.0];
/// Largest change from one period of the voice to the next, as a share of it.
const SHIMMER: f64 = 0.04;
/// Filters and pitch move this often, samples.
const CONTROL: usize = 48;

/// An endless talker.
#[derive(Clone, Debug)]
pub struct Speech {
    luck: Luck,
    voice_hz: f64,
    formants: [Resonator; 3],
    hiss: Resonator,
    place: [f64; 3],
    syllable: Syllable,
    at: usize,
    phase: f64,
    gain: f64,
}

#[derive(Clone, Debug)]
struct Syllable {
    samples: usize,
    pause: usize,
    /// Part at the beginning that is noise only, samples: a consonant.
    consonant: usize,
    consonant_hz: f64,
    pitch: (f64, f64),
    target: [f64; 3],
    loud: f64,
}

impl Speech {
    /// A talker whose every word follows from `seed`; another seed has another voice too.
    pub fn new(seed: u64) -> Speech {
        let mut luck = Luck::seeded(seed ^ 0x5EEC_4000);
        let voice_hz = luck.between(95.0, 210.0);
        let syllable = Syllable::draw(&mut luck, voice_hz);
        let mut speech = Speech {
            luck,
            voice_hz,
            formants: [Resonator::default(); 3],
            hiss: Resonator::default(),
            place: VOWELS[0],
            syllable,
            at: 0,
            phase: 0.0,
            gain: 1.0,
        };
        // The level of a voice depends on its pitch and vowels: two seconds of it tell the gain.
        let mut trial = speech.clone();
        let mut heard = vec![0.0; 2 * RATE_HZ as usize];
        trial.fill(&mut heard);
        let loud: Vec<f64> = heard.iter().map(|x| f64::from(*x).powi(2)).filter(|x| *x > 1e-8).collect();
        let rms = (loud.iter().sum::<f64>() / loud.len().max(1) as f64).sqrt();
        if rms > 0.0 {
            speech.gain = f64::from(SPEAKING_RMS) / rms;
        }
        speech
    }

    /// The next `out.len()` samples, mono at [`RATE_HZ`].
    pub fn fill(&mut self, out: &mut [f32]) {
        for chunk in out.chunks_mut(CONTROL) {
            self.steer();
            for sample in chunk {
                *sample = self.next_sample();
            }
        }
    }

    /// Moves the throat towards the vowel.
    fn steer(&mut self) {
        for ((place, target), (formant, width)) in
            self.place.iter_mut().zip(self.syllable.target).zip(self.formants.iter_mut().zip(BANDWIDTHS))
        {
            *place += (target - *place) * 0.03;
            formant.tune(*place, width);
        }
        self.hiss.tune(self.syllable.consonant_hz, 1500.0);
    }

    fn next_sample(&mut self) -> f32 {
        let s = &self.syllable;
        if self.at >= s.samples + s.pause {
            self.syllable = Syllable::draw(&mut self.luck, self.voice_hz);
            self.at = 0;
            self.steer();
        }
        let s = &self.syllable;
        let at = self.at;
        self.at += 1;
        if at >= s.samples {
            return 0.0;
        }
        let through = at as f64 / s.samples as f64;
        // Rises in 15 ms, falls in 40.
        let rise = (at as f64 / (0.015 * RATE)).min(1.0);
        let fall = ((s.samples - at) as f64 / (0.040 * RATE)).min(1.0);
        let envelope = s.loud * rise * fall;
        let noise = self.luck.normal();
        let sound = if at < s.consonant {
            0.35 * self.hiss.step(noise)
        } else {
            let pitch = s.pitch.0 + (s.pitch.1 - s.pitch.0) * through;
            self.phase += pitch / RATE;
            // A pulse each period, with a little breath.
            let pulse = if self.phase >= 1.0 {
                // No two periods of a voice are equally long.
                self.phase -= 1.0 + self.luck.between(-SHIMMER, SHIMMER);
                (RATE / pitch).sqrt()
            } else {
                0.0
            };
            let source = pulse + 0.08 * noise;
            let [first, second, third] = &mut self.formants;
            first.step(source) + 0.6 * second.step(source) + 0.3 * third.step(source)
        };
        ((sound * envelope * self.gain) as f32).clamp(-0.95, 0.95)
    }
}

impl Syllable {
    fn draw(luck: &mut Luck, voice_hz: f64) -> Syllable {
        let samples = luck.between(0.12, 0.30) * RATE;
        let pause = match luck.unit() {
            u if u < 0.12 => luck.between(0.15, 0.35),
            u if u < 0.5 => luck.between(0.01, 0.05),
            _ => 0.0,
        };
        let consonant = if luck.unit() < 0.6 { luck.between(0.03, 0.09) * RATE } else { 0.0 };
        let vowel = VOWELS[(luck.bits() % VOWELS.len() as u64) as usize];
        let stretch = luck.between(0.9, 1.12);
        Syllable {
            samples: samples as usize,
            pause: (pause * RATE) as usize,
            consonant: consonant as usize,
            consonant_hz: luck.between(2500.0, 6500.0),
            pitch: (voice_hz * luck.between(0.8, 1.4), voice_hz * luck.between(0.75, 1.25)),
            target: vowel.map(|hz| hz * stretch),
            loud: luck.between(0.6, 1.2),
        }
    }
}

/// A second-order resonance with unit gain at its centre.
#[derive(Clone, Copy, Debug, Default)]
struct Resonator {
    a1: f64,
    a2: f64,
    gain: f64,
    y1: f64,
    y2: f64,
}

impl Resonator {
    fn tune(&mut self, hz: f64, width_hz: f64) {
        let r = (-std::f64::consts::PI * width_hz / RATE).exp();
        let angle = std::f64::consts::TAU * hz / RATE;
        self.a1 = 2.0 * r * angle.cos();
        self.a2 = -r * r;
        self.gain = (1.0 - r) * (1.0 - 2.0 * r * (2.0 * angle).cos() + r * r).sqrt();
    }

    fn step(&mut self, x: f64) -> f64 {
        let y = self.gain * x + self.a1 * self.y1 + self.a2 * self.y2;
        (self.y2, self.y1) = (self.y1, y);
        y
    }
}

/// `seconds` of speech.
pub fn speech(seed: u64, seconds: f64) -> Vec<f32> {
    let mut out = vec![0.0; (seconds.max(0.0) * RATE) as usize];
    Speech::new(seed).fill(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::spectrum::{Finder, peak};

    fn rms(x: &[f32]) -> f32 {
        (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt()
    }

    #[test]
    fn a_seed_says_the_same_words_and_another_says_others() {
        assert_eq!(speech(3, 2.0), speech(3, 2.0));
        assert_ne!(speech(3, 2.0), speech(4, 2.0));
        // However it is asked for.
        let mut parts = Speech::new(3);
        let mut whole = vec![0.0; 96_000];
        for chunk in whole.chunks_mut(480) {
            parts.fill(chunk);
        }
        assert_eq!(whole, speech(3, 2.0));
    }

    #[test]
    fn it_is_as_loud_as_speech_and_pauses_like_speech() {
        for seed in 0..8 {
            let x = speech(seed, 10.0);
            let frames: Vec<f32> = x.chunks(960).map(rms).collect();
            let speaking: Vec<f32> = frames.iter().copied().filter(|r| *r > 0.006).collect();
            let share = speaking.len() as f32 / frames.len() as f32;
            assert!((0.75..0.99).contains(&share), "seed {seed} speaks {share}");
            let level = rms(&x);
            assert!((0.03..0.1).contains(&level), "seed {seed} level {level}");
            assert!(x.iter().all(|v| v.abs() <= 0.95));
        }
    }

    #[test]
    fn no_stretch_of_it_is_like_another() {
        // 400 ms of it, looked for in the 2 s around: only its own place fits.
        let x = crate::bench::spectrum::resample(&speech(5, 12.0), 48_000, 16_000);
        let finder = Finder::new(6400, 32_000);
        for start in (0..x.len() - 32_000).step_by(16_000) {
            let mut ncc = finder.correlate(&x[start + 9600..start + 16_000], &x[start..start + 32_000]);
            let (at, top) = peak(&ncc).unwrap();
            assert!((at - 9600.0).abs() < 0.1 && top > 0.98, "{at} {top}");
            // A period of the voice away it is somewhat alike, as any voice is; three and more periods away it is not.
            ncc[9600 - 40..9600 + 40].fill(0.0);
            let (at, second) = peak(&ncc).unwrap();
            assert!(second < 0.85, "at {start} also at {at} with {second}");
            ncc[9600 - 480..9600 + 480].fill(0.0);
            let (at, second) = peak(&ncc).unwrap();
            assert!(second < 0.6, "at {start} also at {at} with {second}");
        }
    }
}
