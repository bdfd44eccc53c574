//! A call of two: two people, two sound cards on their own clocks, two engines, one link.

use std::time::Duration;

use hallway::bench::link::{Link, LinkConfig};
use hallway::bench::pipe::{Pipe, PipeCounts};
use hallway::bench::profile::Profile;
use hallway::bench::signal::{SignalError, SignalReport, Track, measure};
use hallway::bench::spectrum::resample;
use hallway::bench::speech::speech;
use hallway_codec::{
    ClockOffset, Encoded, MediaTime, Micros, PathStats, Profile as Media, Receiver, ReceiverConfig,
    ReceiverStats, Report, Samples, Sender, SenderConfig,
};

use crate::ear::{Delays, Heard};

/// Bytes around a packet on the wire: IPv4 and UDP, QUIC's short header and tag, the datagram frame, our sealing (the byte
/// that says what a datagram is counts as one of the packet here).
const OVERHEAD: usize = 28 + 30 + 3 + 23;
const REPORT_EVERY: Duration = Duration::from_millis(500);
const STATS_EVERY: Duration = Duration::from_secs(1);
/// Share of a bottleneck that the congestion controller is taken to find.
const RATE_FOUND: f64 = 0.9;
const KIND_MEDIA: u8 = 1;
const KIND_REPORT: u8 = 2;
/// Where media clocks begin: 30 s before they wrap, so that every call of the laboratory crosses the edge.
const MEDIA_START: MediaTime = MediaTime(u32::MAX - 30 * 48_000);
/// People say the same again after so long, s: making up speech costs more than coding it.
const VOICE_S: f64 = 30.0;
/// Monotonic clocks of two machines have nothing to do with each other, µs.
const CLOCKS: [u64; 2] = [1_000_000_000, 77_000_000_000];

/// A laboratory: everything about a call that is to be decided before it begins.
#[derive(Clone, Debug)]
pub struct Lab {
    seed: u64,
    links: [LinkConfig; 2],
    card_hz: [u32; 2],
    period: [Samples; 2],
    media: Media,
    speaks: [bool; 2],
    receiver: ReceiverConfig,
    voice: Option<Vec<f32>>,
}

impl Lab {
    /// All luck follows from this number. A perfect wire, exact sound cards with periods of 2.5 ms, both speak.
    pub fn seeded(seed: u64) -> Lab {
        Lab {
            seed,
            links: [LinkConfig::default(), LinkConfig::default()],
            card_hz: [48_000; 2],
            period: [Samples::MS_2_5; 2],
            media: Media::Talk,
            speaks: [true; 2],
            receiver: ReceiverConfig::default(),
            voice: None,
        }
    }

    /// The same link both ways.
    pub fn link(self, link: LinkConfig) -> Lab {
        Lab { links: [link.clone(), link], ..self }
    }

    /// A link of the table, with its own seed.
    pub fn over(self, profile: &Profile) -> Lab {
        Lab { links: [profile.ab.clone(), profile.ba.clone()], seed: self.seed ^ profile.seed, ..self }
    }

    /// What the sound cards really do while they claim 48 000 Hz: 48 010 is 208 ppm fast.
    pub fn cards_hz(self, first: u32, second: u32) -> Lab {
        Lab { card_hz: [first, second], ..self }
    }

    /// Samples per period of the two sound cards.
    pub fn periods(self, first: Samples, second: Samples) -> Lab {
        Lab { period: [first, second], ..self }
    }

    /// Music instead of talk, say.
    pub fn media(self, media: Media) -> Lab {
        Lab { media, ..self }
    }

    /// Only the first one speaks; the second one has no microphone, and its engine sends nothing.
    pub fn one_way(self) -> Lab {
        Lab { speaks: [true, false], ..self }
    }

    /// What both say, over and over, instead of the made-up speech: mono, 48 kHz.
    pub fn voice(self, voice: &[f32]) -> Lab {
        Lab { voice: Some(voice.to_vec()), ..self }
    }

    /// The listeners' settings.
    pub fn receiver(self, receiver: ReceiverConfig) -> Lab {
        Lab { receiver, ..self }
    }

    /// Connects two people.
    pub fn call(self, first: &str, second: &str) -> Call {
        let end = |i: usize, name: &str| {
            let config = SenderConfig { profile: self.media, start: MEDIA_START, ..SenderConfig::default() };
            End {
                name: name.to_owned(),
                card_hz: self.card_hz[i],
                period: self.period[i],
                clock_us: CLOCKS[i],
                // The second card's ticks fall somewhere between the first one's.
                phase: Duration::from_nanos(i as u64 * (self.seed % 997) * 2_000),
                ticks: 0,
                voice: self
                    .voice
                    .clone()
                    .unwrap_or_else(|| speech(self.seed.wrapping_mul(2).wrapping_add(i as u64), VOICE_S)),
                spoken: 0,
                speaks: self.speaks[i],
                sender: Sender::new(config).expect("a sender of the default settings"),
                receiver: Receiver::new(self.receiver).expect("a receiver of the given settings"),
                next_report: REPORT_EVERY,
                next_stats: STATS_EVERY,
                stats: ReceiverStats::default(),
                sent: 0,
                heard: Heard::default(),
                capture: vec![0.0; self.period[i].0 as usize],
                play: vec![0.0; self.period[i].0 as usize],
                packet: Vec::new(),
                recording: None,
            }
        };
        let mut ends = [end(0, first), end(1, second)];
        for i in 0..2 {
            let offset_us = CLOCKS[1 - i].cast_signed() - CLOCKS[i].cast_signed();
            ends[i].receiver.set_clock(Some(ClockOffset { offset_us, error_us: 200 }));
        }
        let rtt_ms = self.links.iter().map(|link| link.delay_ms as f32).sum();
        let max_kbps = self
            .links
            .each_ref()
            .map(|link| (link.rate_bps > 0.0).then_some((link.rate_bps * 1e-3 * RATE_FOUND) as u32));
        let [there, back] = self.links;
        let pipes = [(there, self.seed), (back, self.seed ^ 0xB00B_0000_0000)]
            .map(|(link, seed)| Pipe::with_overhead(Link::new(link, seed), OVERHEAD));
        Call { now: Duration::ZERO, ends, pipes, rtt_ms, max_kbps }
    }
}

/// A call that goes on for as long as it is told to.
pub struct Call {
    now: Duration,
    ends: [End; 2],
    /// By sender.
    pipes: [Pipe; 2],
    rtt_ms: f32,
    max_kbps: [Option<u32>; 2],
}

struct End {
    name: String,
    card_hz: u32,
    period: Samples,
    clock_us: u64,
    phase: Duration,
    ticks: u64,
    voice: Vec<f32>,
    spoken: usize,
    speaks: bool,
    sender: Sender,
    receiver: Receiver,
    next_report: Duration,
    next_stats: Duration,
    stats: ReceiverStats,
    sent: u64,
    heard: Heard,
    capture: Vec<f32>,
    play: Vec<f32>,
    packet: Vec<u8>,
    recording: Option<Tape>,
}

/// What one end said and heard while a tape ran.
#[derive(Default)]
struct Tape {
    said: Vec<f32>,
    said_from: Option<Duration>,
    heard: Vec<f32>,
    heard_from: Option<Duration>,
}

/// What one person said and the other heard, each on its own card's clock.
pub struct Recording {
    said: Track,
    heard: Track,
}

impl Recording {
    /// What was said, and what was heard.
    pub fn tracks(&self) -> [&Track; 2] {
        [&self.said, &self.heard]
    }

    /// How late and how damaged it was heard.
    pub fn measure(&self) -> Result<SignalReport, SignalError> {
        measure(&self.said, &self.heard)
    }
}

impl End {
    /// Virtual time of a tick of the card.
    fn tick_at(&self, tick: u64) -> Duration {
        self.phase
            + Duration::from_nanos(tick * u64::from(self.period.0) * 1_000_000_000 / u64::from(self.card_hz))
    }

    fn period_time(&self) -> Duration {
        self.tick_at(1) - self.tick_at(0)
    }

    /// What this machine's monotonic clock shows.
    fn clock(&self, now: Duration) -> Micros {
        Micros(self.clock_us + now.as_micros() as u64)
    }

    /// When the sample of this media time was at this end's microphone, ms of virtual time.
    fn said_at_ms(&self, media_time: MediaTime) -> f64 {
        let samples = f64::from(media_time.since(MEDIA_START));
        self.phase.as_secs_f64() * 1e3 + samples * 1e3 / f64::from(self.card_hz)
    }

    /// The card has captured a period, and wants one to play.
    fn tick(&mut self, now: Duration, out: &mut Pipe) {
        self.ticks += 1;
        let began = now - self.period_time();
        if self.speaks {
            for sample in &mut self.capture {
                *sample = self.voice[self.spoken];
                self.spoken = (self.spoken + 1) % self.voice.len();
            }
            self.sender.handle_capture(&self.capture, self.clock(began));
            if let Some(tape) = &mut self.recording {
                tape.said_from.get_or_insert(began);
                tape.said.extend_from_slice(&self.capture);
            }
            while let Some(Encoded { .. }) = self.sender.poll_packet(self.clock(now), &mut self.packet) {
                self.packet.insert(0, KIND_MEDIA);
                self.sent += 1;
                out.handle_packet(now, &self.packet);
            }
        }
        if now >= self.next_report {
            self.next_report += REPORT_EVERY;
            let report = self.receiver.report(self.clock(now));
            let mut packet = vec![KIND_REPORT];
            packet.extend(postcard::to_stdvec(&report).expect("a report is plain numbers"));
            out.handle_packet(now, &packet);
        }
        if now >= self.next_stats {
            self.next_stats += STATS_EVERY;
            self.stats = self.receiver.stats();
        }
    }

    /// Plays one period; `talker` tells when what is played was said.
    fn play(&mut self, now: Duration, said_at_ms: impl Fn(MediaTime) -> f64) {
        // One period is written ahead of the loudspeaker, as cards do.
        let ahead = self.period_time();
        let played = self.receiver.play_into(self.clock(now), ahead.as_micros() as u32, &mut self.play);
        let heard_at = now + ahead;
        let heard_at_ms = heard_at.as_secs_f64() * 1e3;
        let delay_ms = played.media_time.map(|media_time| heard_at_ms - said_at_ms(media_time));
        self.heard.add(heard_at_ms, &played, delay_ms, &self.play, self.period);
        if let Some(tape) = &mut self.recording {
            tape.heard_from.get_or_insert(heard_at);
            tape.heard.extend_from_slice(&self.play);
        }
    }

    fn receive(&mut self, now: Duration, packet: &[u8]) {
        match packet.split_first() {
            // Damaged packets are refused by the engine and counted there.
            Some((&KIND_MEDIA, media)) => drop(self.receiver.handle_packet(self.clock(now), media)),
            Some((&KIND_REPORT, report)) => {
                if let Ok(report) = postcard::from_bytes::<Report>(report) {
                    self.sender.handle_report(self.clock(now), 1, &report);
                }
            }
            _ => {}
        }
    }
}

impl Call {
    /// Lets virtual time pass.
    pub fn run_for(&mut self, span: Duration) {
        let until = self.now + span;
        loop {
            let ticks = [0, 1].map(|i| self.ends[i].tick_at(self.ends[i].ticks + 1));
            let arrivals = [0, 1].map(|i| self.pipes[i].poll_timeout().unwrap_or(Duration::MAX));
            let next = ticks.into_iter().chain(arrivals).min().unwrap_or(Duration::MAX);
            if next > until {
                break;
            }
            self.now = next;
            for from in 0..2 {
                while let Some((at, packet)) = self.pipes[from].poll_packet(next) {
                    self.ends[1 - from].receive(at, &packet);
                }
            }
            for (i, tick) in ticks.into_iter().enumerate() {
                if tick == next {
                    self.tick(i, next);
                }
            }
        }
        self.now = until;
    }

    fn tick(&mut self, i: usize, now: Duration) {
        let (first, second) = self.ends.split_at_mut(1);
        let (me, other) = if i == 0 { (&mut first[0], &second[0]) } else { (&mut second[0], &first[0]) };
        let counts = self.pipes[i].counts();
        if now >= me.next_report {
            // What QUIC's acknowledgements tell.
            let path = PathStats {
                rtt_ms: Some(self.rtt_ms),
                sent: counts.sent,
                lost: counts.lost(),
                max_kbps: self.max_kbps[i],
                reliable: false,
                presumed: false,
            };
            me.sender.handle_path(me.clock(now), 1, &path);
        }
        me.tick(now, &mut self.pipes[i]);
        me.play(now, |media_time| other.said_at_ms(media_time));
    }

    /// Both ways become another link.
    pub fn change_link(&mut self, link: &LinkConfig) {
        for pipe in &mut self.pipes {
            pipe.change(self.now, link.clone());
        }
    }

    /// How long the call has gone on.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// What this person heard so far.
    pub fn heard_by(&self, name: &str) -> &Heard {
        &self.end(name).heard
    }

    /// The true delay of what this person heard so far, from capture to loudspeaker.
    pub fn mouth_to_ear(&self, name: &str) -> Delays {
        self.heard_by(name).delays().unwrap_or_else(|| panic!("{name} heard no voice"))
    }

    /// What this person's engine said about itself in the last whole second.
    pub fn stats(&self, name: &str) -> &ReceiverStats {
        &self.end(name).stats
    }

    /// Forgets what this person heard, to count only what follows.
    pub fn forget(&mut self, name: &str) {
        self.end_mut(name).heard.restart();
    }

    /// Media packets this person sent.
    pub fn sent_by(&self, name: &str) -> u64 {
        self.end(name).sent
    }

    /// What the link did to everything this person sent.
    pub fn link_from(&self, name: &str) -> PipeCounts {
        self.pipes[self.index(name)].counts()
    }

    /// This person's sender, to be told things.
    pub fn sender(&mut self, name: &str) -> &mut Sender {
        &mut self.end_mut(name).sender
    }

    /// Goes on for `span` and records what the other one says and this person hears.
    pub fn record(&mut self, listener: &str, span: Duration) -> Recording {
        for end in &mut self.ends {
            end.recording = Some(Tape::default());
        }
        self.run_for(span);
        let listener = self.index(listener);
        let tapes = [0, 1].map(|i| self.ends[i].recording.take().unwrap_or_default());
        // A card that runs at another rate than it claims is brought to true time.
        let track = |samples: &[f32], hz: u32, from: Option<Duration>| Track {
            samples: resample(samples, hz, 48_000),
            started_ns: from.unwrap_or_default().as_nanos() as u64,
        };
        let talker = 1 - listener;
        Recording {
            said: track(&tapes[talker].said, self.ends[talker].card_hz, tapes[talker].said_from),
            heard: track(&tapes[listener].heard, self.ends[listener].card_hz, tapes[listener].heard_from),
        }
    }

    fn index(&self, name: &str) -> usize {
        self.ends
            .iter()
            .position(|end| end.name == name)
            .unwrap_or_else(|| panic!("{name} is not in this call"))
    }

    fn end(&self, name: &str) -> &End {
        &self.ends[self.index(name)]
    }

    fn end_mut(&mut self, name: &str) -> &mut End {
        let index = self.index(name);
        &mut self.ends[index]
    }
}
