//! A call between one sender and one receiver under virtual time: two sound cards with clocks of their own, and a seeded
//! link between them.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test stands or falls with it")]

use hallway_codec::{
    ClockOffset, MediaTime, Micros, Played, Policy, Receiver, ReceiverConfig, Report, Samples, Sender,
    SenderConfig,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

/// Samples per capture and playback period: 2.5 ms.
pub const PERIOD: usize = 120;
/// Packets that a ring between network and media thread holds.
const RING: usize = 256;
/// The sender's clock reads this much more than the receiver's.
pub const CLOCK_OFFSET_US: i64 = 5_000_000_000;

/// What lies between the two.
#[derive(Clone)]
pub struct Link {
    pub delay_us: u64,
    /// Uniform on top of the delay.
    pub jitter_us: u64,
    /// Share of time spent in the bad state, and its mean length; 85 % are lost there.
    pub bad_share: f64,
    pub bad_us: f64,
    /// From when to when nothing passes; what was sent meanwhile arrives at the end of it.
    pub stalls: Vec<(u64, u64)>,
    /// From when on the path is longer, and by how much.
    pub longer: Option<(u64, u64)>,
    pub duplicate: f64,
    /// Standard deviation of the delay where the path keeps order: whoever is slow holds up those behind.
    pub wavers_us: f64,
}

impl Link {
    pub fn of_ms(delay: u64) -> Self {
        Self {
            delay_us: delay * 1000,
            jitter_us: 0,
            bad_share: 0.0,
            bad_us: 60_000.0,
            stalls: Vec::new(),
            longer: None,
            duplicate: 0.0,
            wavers_us: 0.0,
        }
    }

    pub fn wavering_ms(self, deviation: f64) -> Self {
        Self { wavers_us: deviation * 1e3, ..self }
    }

    pub fn jitter_ms(self, jitter: u64) -> Self {
        Self { jitter_us: jitter * 1000, ..self }
    }

    pub fn losing(self, share: f64) -> Self {
        Self { bad_share: share / 0.85, ..self }
    }
}

/// See [`Call::tamper`].
pub type Tamper = Box<dyn FnMut(f64, &[u8], &mut Vec<Vec<u8>>)>;

pub struct Call {
    pub sender: Sender,
    pub receiver: Receiver,
    link: Link,
    random: ChaCha8Rng,
    ppm: f64,
    channels: usize,
    now: f64,
    next_capture: f64,
    next_pull: f64,
    captured: u64,
    bad: bool,
    bad_until: f64,
    flying: BinaryHeap<Reverse<(u64, u64, Vec<u8>)>>,
    sent: u64,
    last_arrival: u64,
    lost: u64,
    reports: bool,
    next_report: f64,
    buffer: Vec<u8>,
    source: fn(u64) -> f32,
    pub said: Vec<f32>,
    pub heard: Vec<f32>,
    pub played: Vec<Played>,
    pub policies: Vec<(f64, Policy)>,
    pub report: Report,
    pub packet_sizes: Vec<usize>,
    pub keep_sound: bool,
    /// Samples asked for at once, and handed over at once.
    pub pull: usize,
    pub period: usize,
    /// Puts other packets in a packet's place, `seconds` after the call began.
    pub tamper: Option<Tamper>,
    /// Packets that the receiver refused: only where they are tampered with.
    pub refused: u64,
    /// What the two read from their clocks beyond the truth, from now on.
    pub speaker_clock_us: i64,
    pub listener_clock_us: i64,
    /// What comes while the listener's machine sleeps.
    asleep: Option<VecDeque<Vec<u8>>>,
    /// Samples that the card played without any, not yet told.
    starved: u32,
    /// Read before and after each pull; the difference adds up in `play_counted`.
    pub play_counter: Option<fn() -> u64>,
    pub play_counted: u64,
}

impl Call {
    pub fn new(seed: u64, link: Link) -> Self {
        Self::with(seed, link, SenderConfig::default(), ReceiverConfig::default())
    }

    pub fn with(seed: u64, link: Link, sender: SenderConfig, receiver: ReceiverConfig) -> Self {
        let sender = SenderConfig { start: MediaTime(u32::MAX - 48_000 * 3), ..sender };
        let mut call = Self {
            channels: sender.channels.into(),
            sender: Sender::new(sender).unwrap(),
            receiver: Receiver::new(receiver).unwrap(),
            link,
            random: ChaCha8Rng::seed_from_u64(seed),
            ppm: 0.0,
            now: 1_000_000.0,
            next_capture: 1_002_500.0,
            next_pull: 1_001_300.0,
            captured: 0,
            bad: false,
            bad_until: 0.0,
            flying: BinaryHeap::new(),
            sent: 0,
            last_arrival: 0,
            lost: 0,
            reports: true,
            next_report: 1_500_000.0,
            buffer: Vec::new(),
            source: speech,
            said: Vec::new(),
            heard: Vec::new(),
            played: Vec::new(),
            policies: Vec::new(),
            report: Report::default(),
            packet_sizes: Vec::new(),
            keep_sound: true,
            pull: PERIOD,
            period: PERIOD,
            tamper: None,
            refused: 0,
            speaker_clock_us: 0,
            listener_clock_us: 0,
            asleep: None,
            starved: 0,
            play_counter: None,
            play_counted: 0,
        };
        call.receiver.set_clock(Some(ClockOffset { offset_us: CLOCK_OFFSET_US, error_us: 100 }));
        call
    }

    pub fn drift_ppm(mut self, ppm: f64) -> Self {
        self.ppm = ppm;
        self
    }

    pub fn without_reports(mut self) -> Self {
        self.reports = false;
        self
    }

    pub fn saying(mut self, source: fn(u64) -> f32) -> Self {
        self.source = source;
        self
    }

    pub fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Seconds since the call began.
    pub fn seconds(&self) -> f64 {
        (self.now - 1_000_000.0) / 1e6
    }

    pub fn lost_share(&self) -> f64 {
        self.lost as f64 / self.sent.max(1) as f64
    }

    pub fn run_for(&mut self, seconds: f64) {
        let end = self.now + seconds * 1e6;
        loop {
            let arrival = self.flying.peek().map_or(f64::MAX, |Reverse((at, ..))| *at as f64);
            let next = arrival.min(self.next_capture).min(self.next_pull).min(self.next_report);
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            if next == arrival {
                if let Some(Reverse((at, _, packet))) = self.flying.pop() {
                    if let Some(ring) = &mut self.asleep {
                        ring.push_back(packet);
                        if ring.len() > RING {
                            ring.pop_front();
                        }
                    } else {
                        self.arrive(at as f64, &packet);
                    }
                }
            } else if next == self.next_capture {
                self.capture();
            } else if next == self.next_pull {
                self.pull();
            } else {
                self.next_report += 500_000.0;
                if self.asleep.is_some() {
                    continue;
                }
                let report = self.receiver.report(self.here(self.now));
                if self.reports {
                    self.sender.handle_report(self.there(self.now), 1, &report);
                }
                self.report = report;
            }
        }
    }

    /// The speaker's machine stands still for so long: nothing is captured.
    pub fn suspend_speaker(&mut self, seconds: f64) {
        let samples = (seconds * 48_000.0) as u64;
        self.next_capture += seconds * 1e6;
        self.captured += samples;
        self.said.resize(self.said.len() + samples as usize, 0.0);
    }

    /// The listener's machine stands still for so long: nothing is played, and of what comes a ring keeps the newest
    /// [`RING`].
    pub fn suspend_listener(&mut self, seconds: f64) {
        self.asleep = Some(VecDeque::new());
        let pull = std::mem::replace(&mut self.next_pull, f64::MAX);
        self.run_for(seconds);
        self.next_pull = pull + seconds * 1e6;
        self.heard.resize(self.heard.len() + (seconds * 48_000.0) as usize, 0.0);
        for packet in self.asleep.take().unwrap_or_default() {
            self.arrive(self.now, &packet);
        }
    }

    fn arrive(&mut self, at: f64, packet: &[u8]) {
        let outcome = self.receiver.handle_packet(self.here(at), packet);
        self.refused += u64::from(outcome.is_err());
        assert!(outcome.is_ok() || self.tamper.is_some(), "{outcome:?}");
    }

    /// Both clocks at a moment.
    fn here(&self, t: f64) -> Micros {
        Micros((t as i64 + self.listener_clock_us) as u64)
    }

    fn there(&self, t: f64) -> Micros {
        Micros((t as i64 + CLOCK_OFFSET_US + self.speaker_clock_us) as u64)
    }

    fn capture(&mut self) {
        let period = self.period as f64 / 48_000.0 * 1e6 / (1.0 + self.ppm * 1e-6);
        let mut pcm = Vec::with_capacity(self.period * self.channels);
        for i in 0..self.period as u64 {
            let sample = (self.source)(self.captured + i);
            pcm.extend(std::iter::repeat_n(sample, self.channels));
            if self.keep_sound {
                self.said.push(sample);
            }
        }
        self.captured += self.period as u64;
        self.sender.handle_capture(&pcm, self.there(self.next_capture - period));
        self.next_capture += period;
        while self.sender.poll_packet(self.there(self.now), &mut self.buffer).is_some() {
            if self.policies.last().is_none_or(|(_, p)| p != self.sender.policy()) {
                self.policies.push((self.seconds(), self.sender.policy().clone()));
            }
            self.packet_sizes.push(self.buffer.len());
            self.send();
        }
    }

    fn send(&mut self) {
        let now = self.now as u64;
        while self.now >= self.bad_until && self.link.bad_share > 0.0 {
            self.bad = !self.bad;
            let mean = if self.bad {
                self.link.bad_us
            } else {
                self.link.bad_us * (1.0 / self.link.bad_share - 1.0)
            };
            self.bad_until =
                self.now.max(self.bad_until) - mean * self.random.random_range(1e-9..1.0f64).ln();
        }
        self.sent += 1;
        if self.link.bad_share > 0.0 && self.bad && self.random.random_bool(0.85) {
            self.lost += 1;
            return;
        }
        let mut packets = vec![self.buffer.clone()];
        if self.random.random_bool(self.link.duplicate) {
            packets.push(self.buffer.clone());
        }
        if let Some(tamper) = &mut self.tamper {
            packets.clear();
            tamper((self.now - 1_000_000.0) / 1e6, &self.buffer, &mut packets);
        }
        for packet in packets {
            let mut at = now + self.link.delay_us + self.random.random_range(0..=self.link.jitter_us);
            if self.link.wavers_us > 0.0 {
                // Twelve uniform numbers are near enough to a normal one.
                let normal: f64 = (0..12).map(|_| self.random.random::<f64>()).sum::<f64>() - 6.0;
                at = at.saturating_add_signed((self.link.wavers_us * normal) as i64).max(self.last_arrival);
                self.last_arrival = at;
            }
            if let Some((from, more)) = self.link.longer
                && now >= from
            {
                at += more;
            }
            for (from, until) in &self.link.stalls {
                if (*from..*until).contains(&at) {
                    at = *until;
                }
            }
            self.flying.push(Reverse((at, self.sent, packet)));
        }
    }

    /// The listener's card goes on for so many samples without any.
    pub fn starve(&mut self, samples: u32) {
        self.starved += samples;
        self.next_pull += f64::from(samples) / 48_000.0 * 1e6;
        if self.keep_sound {
            self.heard.extend(std::iter::repeat_n(0.0, samples as usize));
        }
    }

    fn pull(&mut self) {
        let mut out = vec![0.0; self.pull * self.channels];
        let count = || self.play_counter.map_or(0, |count| count());
        let before = count();
        let now = self.here(self.now);
        self.receiver.skip(Samples(std::mem::take(&mut self.starved)));
        let played = self.receiver.play_into(now, 0, &mut out);
        self.play_counted += count() - before;
        self.next_pull += self.pull as f64 / 48_000.0 * 1e6;
        if self.keep_sound {
            self.heard.extend(out.iter().step_by(self.channels));
        }
        self.played.push(played);
    }

    /// When the sample at this index was captured or played, in seconds.
    fn said_at(&self, index: f64) -> f64 {
        index / 48_000.0 / (1.0 + self.ppm * 1e-6)
    }

    fn heard_at(index: f64) -> f64 {
        0.0013 + index / 48_000.0
    }

    /// Mouth-to-ear delay measured from the sound around `second`, in ms, and the likeness there (1 is perfect).
    pub fn measured_ms(&self, second: f64) -> (f64, f64) {
        let length = 9_600;
        let from = (second * 48_000.0) as usize;
        let heard = &self.heard[from..from + length];
        let mut best = (0.0, -1.0);
        for lag in (0..24_000usize).step_by(4) {
            let Some(start) = from.checked_sub(lag) else { break };
            let like = likeness(&self.said[start..start + length], heard, 5);
            if like > best.1 {
                best = (start as f64, like);
            }
        }
        let rough = best.0 as usize;
        for start in rough.saturating_sub(5)..rough + 5 {
            let Some(said) = self.said.get(start..start + length) else { continue };
            let like = likeness(said, heard, 1);
            if like > best.1 || start == rough {
                best = (start as f64, like);
            }
        }
        ((Self::heard_at(from as f64) - self.said_at(best.0)) * 1000.0, best.1)
    }
}

/// Correlation of two stretches, every `step`th sample.
fn likeness(a: &[f32], b: &[f32], step: usize) -> f64 {
    let (mut ab, mut aa, mut bb) = (0.0f64, 1e-9f64, 1e-9f64);
    for (x, y) in a.iter().zip(b).step_by(step) {
        let (x, y) = (f64::from(*x), f64::from(*y));
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    ab / (aa * bb).sqrt()
}

/// Something like speech: a voice of wandering pitch, hissing consonants, and pauses, that never repeats itself.
pub fn speech(sample: u64) -> f32 {
    let t = sample as f64 / 48_000.0;
    let noise = hash(sample) - 0.5;
    let syllable = (t * 4.3).fract();
    let word = (t * 0.61 + 0.3 * (t * 0.17).sin()).fract();
    if word > 0.8 {
        return (noise * 1e-4) as f32;
    }
    // The phase is the integral of a pitch of 120 Hz that wanders by 20 %.
    let phase = std::f64::consts::TAU
        * (120.0 * t + 24.0 / 1.9 * (t * 1.9).sin() + 9.0 / 0.7 * (t * 0.7 + 1.0).cos());
    let open = (syllable * std::f64::consts::PI).sin();
    let tract = 2.0 + 1.5 * (t * 2.7).sin();
    let voice: f64 = (1..12)
        .map(|h| {
            let h = f64::from(h);
            (phase * h).sin() / (1.0 + (h - tract).powi(2) * 0.6)
        })
        .sum();
    let hiss = if syllable > 0.85 { noise * 0.15 } else { noise * 0.004 };
    (0.16 * open * voice + hiss) as f32
}

/// A voice that never pauses, of wandering pitch.
pub fn vowel(sample: u64) -> f32 {
    let t = sample as f64 / 48_000.0;
    let phase = std::f64::consts::TAU * (130.0 * t + 8.0 / 1.9 * (t * 1.9).sin());
    let voice: f64 = (1..14)
        .map(|h| {
            let h = f64::from(h);
            (phase * h).sin() / (1.0 + (h - 3.0).powi(2) * 0.4)
        })
        .sum();
    (0.16 * voice) as f32
}

/// A steady tone.
pub fn tone(sample: u64) -> f32 {
    (0.3 * (sample as f64 * 440.0 / 48_000.0 * std::f64::consts::TAU).sin()) as f32
}

fn hash(n: u64) -> f64 {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^= x >> 32;
    x as f64 / u64::MAX as f64
}

/// The worst 10 ms of what was heard, as SNR in dB against what was said, each at the delay that fits best.
pub fn worst_snr(call: &Call, from: f64, until: f64) -> f64 {
    let windows = (from * 100.0) as usize..(until * 100.0) as usize;
    windows
        .map(|window| {
            let start = window * 480;
            let heard = &call.heard[start..start + 480];
            (1_000..4_000usize)
                .map(|lag| {
                    let said = &call.said[start - lag..start - lag + 480];
                    let (mut noise, mut signal) = (1e-9f32, 1e-9f32);
                    for (s, h) in said.iter().zip(heard) {
                        noise += (s - h).powi(2);
                        signal += s * s;
                    }
                    f64::from(10.0 * (signal / noise).log10())
                })
                .fold(f64::MIN, f64::max)
        })
        .fold(f64::MAX, f64::min)
}

pub fn samples_ms(samples: u64) -> f64 {
    Samples(samples as u32).as_micros() as f64 / 1000.0
}
