//! Voice processing between the microphone and the encoder: echo cancellation, noise suppression and automatic gain,
//! by WebRTC's algorithms in Rust (`sonora`). Runs on the media thread, never in a callback.
//!
//! 1. [`VoiceProcessor::rendered`] is told everything that is played, in order.
//! 2. [`VoiceProcessor::process`] takes each captured period and gives one back, [`VoiceProcessor::delay`] later.
//!
//! With nothing to do it does nothing: no delay, no copy. The algorithms work on 10 ms at once, so what is captured in
//! shorter periods waits to make one up; with the filters' own delay that is all they add.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use sonora::config::{
    AdaptiveDigital, EchoCanceller, GainController2, HighPassFilter, MaxProcessingRate, NoiseSuppression,
    NoiseSuppressionLevel, Pipeline,
};
use sonora::{AudioProcessing, Config, StreamConfig};

use super::clock::{NS_PER_MS, RATE_HZ, frames_to_ns};
use super::device::Reach;

/// What the algorithms take at once: 10 ms.
const BLOCK: usize = RATE_HZ as usize / 100;
/// Delay of the filters that split the voice into bands and put it together again, frames. Measured by a test.
const FILTER_DELAY: usize = 237;
/// Most sound that may wait to become a block, frames: periods are no longer than this.
const MAX_WAITING: usize = super::MAX_PERIOD as usize + BLOCK;

/// Whether a kind of processing is wanted.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Switch {
    /// On where the others play through a loudspeaker that the microphone hears, off where they play into an ear or
    /// nowhere.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl Switch {
    fn is_on(self, reach: Reach) -> bool {
        match self {
            Self::Auto => reach == Reach::Room,
            Self::On => true,
            Self::Off => false,
        }
    }
}

/// What is wanted of each kind. By default each decides for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct VoiceChoice {
    /// Takes what the loudspeaker plays out of what the microphone hears.
    #[serde(rename = "echo_cancel")]
    pub echo: Switch,
    /// Takes steady noise out. Costs a little of soft speech.
    #[serde(rename = "noise_suppression")]
    pub noise: Switch,
    /// Brings quiet and loud people to one level.
    pub gain: Switch,
}

impl VoiceChoice {
    /// Nothing at all, as for music.
    pub const OFF: Self = Self { echo: Switch::Off, noise: Switch::Off, gain: Switch::Off };
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct VoiceActive {
    /// Echo is cancelled.
    pub echo_cancel: bool,
    /// Noise is suppressed.
    pub noise_suppression: bool,
    /// Gain is automatic.
    pub gain: bool,
}

impl VoiceActive {
    /// Anything at all.
    pub fn any(self) -> bool {
        self.echo_cancel || self.noise_suppression || self.gain
    }
}

/// Processes one voice, mono.
pub struct VoiceProcessor {
    choice: VoiceChoice,
    reach: Reach,
    active: VoiceActive,
    period: usize,
    works: Option<Works>,
}

impl fmt::Debug for VoiceProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VoiceProcessor").field("choice", &self.choice).field("active", &self.active).finish()
    }
}

impl VoiceProcessor {
    /// For periods of so many frames at 48 kHz.
    pub fn new(choice: VoiceChoice, period: u32) -> Self {
        let mut this = Self {
            choice,
            reach: Reach::Nowhere,
            active: VoiceActive::default(),
            period: period as usize,
            works: None,
        };
        this.decide();
        this
    }

    /// Chooses anew, during the call.
    pub fn choose(&mut self, choice: VoiceChoice) {
        self.choice = choice;
        self.decide();
    }

    /// Who hears the output now: `auto` follows it.
    pub fn set_reach(&mut self, reach: Reach) {
        if reach != self.reach {
            self.reach = reach;
            self.decide();
        }
    }

    /// What is done now.
    pub fn active(&self) -> VoiceActive {
        self.active
    }

    /// How much later a sound comes out than it went in.
    pub fn delay(&self) -> Duration {
        Duration::from_nanos(frames_to_ns(self.delay_frames() as u64))
    }

    /// What [`VoiceProcessor::delay`] is where anything is done, however much of it.
    pub fn price(&self) -> Duration {
        Duration::from_nanos(frames_to_ns((wait_frames(self.period) + FILTER_DELAY) as u64))
    }

    fn delay_frames(&self) -> usize {
        if self.works.is_some() { wait_frames(self.period) + FILTER_DELAY } else { 0 }
    }

    /// What was played, after all that was played before; of several channels the mean.
    pub fn rendered(&mut self, pcm: &[f32], channels: usize) {
        if let Some(works) = self.works.as_mut().filter(|_| self.active.echo_cancel) {
            works.render(pcm, channels);
        }
    }

    /// A captured period, `lag` after its first sample was in the air plus the time until what is written now is heard.
    /// Gives back as many samples, [`VoiceProcessor::delay`] older.
    pub fn process<'a>(&'a mut self, pcm: &'a [f32], lag: Duration) -> &'a [f32] {
        match &mut self.works {
            Some(works) => works.capture(pcm, lag),
            None => pcm,
        }
    }

    fn decide(&mut self) {
        let active = VoiceActive {
            echo_cancel: self.choice.echo.is_on(self.reach),
            noise_suppression: self.choice.noise.is_on(self.reach),
            gain: self.choice.gain.is_on(self.reach),
        };
        if active == self.active {
            return;
        }
        self.active = active;
        match &mut self.works {
            _ if !active.any() => self.works = None,
            // What is in the works goes on: no gap where one switch is turned.
            Some(works) => works.processing.apply_config(config(active)),
            None => self.works = Some(Works::new(active, self.period)),
        }
    }
}

struct Works {
    processing: AudioProcessing,
    /// Captured, not yet a block.
    captured: Vec<f32>,
    /// Played, not yet a block.
    played: Vec<f32>,
    /// Processed, not yet given back.
    ready: VecDeque<f32>,
    out: Vec<f32>,
    block: Vec<f32>,
}

impl Works {
    fn new(active: VoiceActive, period: usize) -> Self {
        let stream = StreamConfig::new(RATE_HZ, 1);
        let processing = AudioProcessing::builder()
            .config(config(active))
            .capture_config(stream)
            .render_config(stream)
            .build();
        let mut ready = VecDeque::with_capacity(2 * MAX_WAITING);
        ready.extend(std::iter::repeat_n(0.0, wait_frames(period)));
        Self {
            processing,
            captured: Vec::with_capacity(MAX_WAITING),
            played: Vec::with_capacity(MAX_WAITING),
            ready,
            out: Vec::with_capacity(MAX_WAITING),
            block: vec![0.0; BLOCK],
        }
    }

    fn render(&mut self, pcm: &[f32], channels: usize) {
        for frame in pcm.chunks_exact(channels.max(1)) {
            self.played.push(frame.iter().sum::<f32>() / frame.len() as f32);
            if self.played.len() == BLOCK {
                // A block of the right length is never refused.
                let _ = self.processing.process_render_f32(&[&self.played], &mut [&mut self.block]);
                self.played.clear();
            }
        }
    }

    fn capture(&mut self, pcm: &[f32], lag: Duration) -> &[f32] {
        for sample in pcm {
            // The filters remember: what is no number would never leave them again.
            self.captured.push(if sample.is_finite() { *sample } else { 0.0 });
            if self.captured.len() == BLOCK {
                let lag_ms = i32::try_from(lag.as_millis()).unwrap_or(i32::MAX);
                // Clamped where it is absurd: the canceller finds the true delay by itself.
                let _ = self.processing.set_stream_delay_ms(lag_ms);
                let done = self.processing.process_capture_f32(&[&self.captured], &mut [&mut self.block]);
                self.ready.extend(if done.is_ok() { &self.block } else { &self.captured });
                self.captured.clear();
            }
        }
        self.out.clear();
        let ready = pcm.len().min(self.ready.len());
        // Only where a period is not what was promised is there too little; silence keeps time.
        self.out.resize(pcm.len() - ready, 0.0);
        self.out.extend(self.ready.drain(..ready));
        &self.out
    }
}

/// Frames that must be in hand so that every period can be given back at once.
fn wait_frames(period: usize) -> usize {
    let common = gcd(period.max(1), BLOCK);
    BLOCK - common
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn config(active: VoiceActive) -> Config {
    Config {
        pipeline: Pipeline {
            maximum_internal_processing_rate: MaxProcessingRate::Rate48kHz,
            ..Pipeline::default()
        },
        high_pass_filter: Some(HighPassFilter::default()),
        echo_canceller: active.echo_cancel.then(EchoCanceller::default),
        noise_suppression: active
            .noise_suppression
            .then(|| NoiseSuppression { level: NoiseSuppressionLevel::Moderate, ..Default::default() }),
        gain_controller2: active.gain.then(|| GainController2 {
            adaptive_digital: Some(AdaptiveDigital::default()),
            ..GainController2::default()
        }),
        ..Config::default()
    }
}

/// How late the echo of what is written now is heard and captured: the playback's delay and the capture's age.
pub(crate) fn echo_lag(playback: Duration, captured_at_ns: u64, now_ns: u64) -> Duration {
    playback + Duration::from_nanos(now_ns.saturating_sub(captured_at_ns).min(500 * NS_PER_MS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::speech::speech;

    const PERIOD: usize = 120;
    const ECHO_ONLY: VoiceChoice = VoiceChoice { echo: Switch::On, noise: Switch::Off, gain: Switch::Off };

    fn power(x: &[f32]) -> f64 {
        x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len().max(1) as f64
    }

    /// A room: what is played comes back after 30 ms by several ways, each softer than the one before.
    fn echo_of(played: &[f32]) -> Vec<f32> {
        let ways =
            [(1_440, 0.35), (1_530, -0.2), (1_811, 0.12), (2_301, -0.08), (3_007, 0.05), (4_409, 0.03)];
        (0..played.len())
            .map(|i| {
                ways.iter().map(|(by, gain)| i.checked_sub(*by).map_or(0.0, |at| played[at] * gain)).sum()
            })
            .collect()
    }

    fn run(voice: &mut VoiceProcessor, played: &[f32], captured: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        for (played, captured) in played.chunks_exact(PERIOD).zip(captured.chunks_exact(PERIOD)) {
            voice.rendered(played, 1);
            out.extend_from_slice(voice.process(captured, Duration::from_millis(30)));
        }
        out
    }

    #[test]
    fn the_echo_of_the_others_is_twenty_decibels_softer_and_the_own_voice_stays() {
        let far = speech(3, 14.0);
        let echo = echo_of(&far);
        let mut voice = VoiceProcessor::new(ECHO_ONLY, PERIOD as u32);
        let heard = run(&mut voice, &far, &echo);
        let settled = 6 * 48_000..14 * 48_000 - 480;
        let erle_db = 10.0 * (power(&echo[settled.clone()]) / power(&heard[settled]).max(1e-12)).log10();
        println!("ERLE {erle_db:.1} dB");
        assert!(erle_db > 20.0, "{erle_db:.1} dB");

        // Somebody speaks here while nobody speaks there: nothing is taken away.
        let near = speech(8, 4.0);
        let silence = vec![0.0; near.len()];
        let kept = run(&mut voice, &silence, &near);
        let loss_db = 10.0 * (power(&near[96_000..]) / power(&kept[96_000..])).log10();
        assert!(loss_db.abs() < 2.0, "{loss_db:.1} dB");
    }

    #[test]
    fn the_stated_delay_is_the_delay() {
        for period in [120, 480, 128, 960] {
            let said = speech(5, 3.0);
            let mut voice = VoiceProcessor::new(ECHO_ONLY, period as u32);
            let heard: Vec<f32> = said
                .chunks_exact(period)
                .flat_map(|captured| voice.process(captured, Duration::ZERO).to_vec())
                .collect();
            let loudness = |from: &usize| power(&said[*from..from + 4_800]);
            let from =
                (48_000..120_000).step_by(480).max_by(|a, b| loudness(a).total_cmp(&loudness(b))).unwrap();
            let (piece, stretch) = (&said[from..from + 4_800], &heard[from - 2_000..from + 6_800]);
            let found =
                crate::bench::spectrum::Finder::new(piece.len(), stretch.len()).correlate(piece, stretch);
            let (at, fit) = crate::bench::spectrum::peak(&found).unwrap();
            let delay = at - 2_000.0;
            assert!(fit > 0.8, "{fit}");
            let stated = voice.delay_frames() as f64;
            assert!((delay - stated).abs() < 24.0, "periods of {period}: {delay} frames, stated {stated}");
        }
    }

    #[test]
    fn auto_follows_the_output_device_and_off_costs_nothing() {
        let mut voice = VoiceProcessor::new(VoiceChoice::default(), 120);
        let pcm = [0.5; 120];
        assert_eq!((voice.active(), voice.delay()), (VoiceActive::default(), Duration::ZERO));
        assert_eq!(voice.process(&pcm, Duration::ZERO).as_ptr(), pcm.as_ptr(), "not even a copy");
        voice.set_reach(Reach::Room);
        assert_eq!(voice.active(), VoiceActive { echo_cancel: true, noise_suppression: true, gain: true });
        assert!(voice.delay() > Duration::from_millis(7) && voice.delay() < Duration::from_millis(13));
        voice.choose(VoiceChoice { gain: Switch::Off, ..VoiceChoice::default() });
        assert!(!voice.active().gain);
        voice.set_reach(Reach::Ear);
        assert_eq!(voice.active(), VoiceActive::default());
        voice.choose(VoiceChoice { noise: Switch::On, ..VoiceChoice::default() });
        assert!(voice.active().noise_suppression && !voice.active().echo_cancel);
    }

    #[test]
    fn noise_goes_down_and_quiet_speech_comes_up() {
        let mut luck = crate::bench::luck::Luck::seeded(4);
        let noise: Vec<f32> = (0..8 * 48_000).map(|_| luck.normal() as f32 * 0.01).collect();
        let choice = VoiceChoice { echo: Switch::Off, noise: Switch::On, gain: Switch::Off };
        let mut voice = VoiceProcessor::new(choice, PERIOD as u32);
        let heard = run(&mut voice, &noise, &noise);
        let less_db = 10.0 * (power(&noise[240_000..]) / power(&heard[240_000..])).log10();
        assert!(less_db > 6.0, "noise: {less_db:.1} dB less");

        let quiet: Vec<f32> = speech(2, 10.0).iter().map(|x| x * 0.05).collect();
        let mut voice =
            VoiceProcessor::new(VoiceChoice { echo: Switch::Off, noise: Switch::Off, gain: Switch::On }, 120);
        let heard = run(&mut voice, &quiet, &quiet);
        let more_db = 10.0 * (power(&heard[240_000..]) / power(&quiet[240_000..])).log10();
        assert!(more_db > 6.0, "speech: {more_db:.1} dB more");
    }
}
