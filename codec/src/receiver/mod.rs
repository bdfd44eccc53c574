//! One speaker from packets to sound.
//!
//! 1. `handle_packet` reads a packet, counts its number, and puts its frames on the table of waiting frames.
//! 2. `play_into` is the sound card asking for samples. The offset between what was pulled and what is played is moved
//!    towards what the path needs: by the resampler, or by leaving out and repeating periods of the voice.
//! 3. Where audio is short, the next piece is made: the frame that waits (its own packet's or a copy), else the coarse
//!    copy in the packet after it (FEC), else the decoder's guess. All go through the one decoder, in order.
//! 4. A loss moves the timeline on by exactly its length; the delay stays where it is.
//! 5. Each frame that is played is entered in the latency ledger.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod mend;
mod playout;

use crate::{
    concealment::Concealment,
    drift::{Estimator, LEAD, Resampler},
    error::Error,
    frame::{self, Header, Packet},
    jitter::{
        JitterConfig,
        decision::Decision,
        packets::{MAX_DISTANCE, Offer, Packets, Trace},
        sequence::{Counts, Number, Sequence},
        target::{FirstSight, Manner, Need, Target},
    },
    ledger::Ledger,
    levels::{Dbov, Meter},
    opus::{Decoder, PacketInfo, inspect},
    policy::Delay,
    report::{ReceiverStats, Report, Totals},
    stretch::Audio,
    time::{ClockOffset, MediaTime, Micros, SAMPLE_RATE, Samples},
};
use std::collections::VecDeque;

/// Longest piece played at once; longer blocks are played piece by piece.
const PIECE: usize = 480;
/// Samples of one step of 2.5 ms.
const STEP: i64 = Samples::MS_2_5.0 as i64;
/// Gap after which all that comes late may set a new offset, and for how long it must have come late.
const LOST_TOUCH: i64 = 500 * 48;
/// FEC counts as in use for so long after it was seen.
const FEC_IN_USE: i64 = 5 * SAMPLE_RATE as i64;
/// Copies count as in use for so long after the last that reached back so far.
const REACH_IN_USE: i64 = SAMPLE_RATE as i64;
/// Packets far off that agree with each other before the stream starts anew.
const STRAYS: u32 = 4;
/// A stream of which more than this came before anything of it was asked for begins with the newest: what piled up while
/// nobody played would be a lag from then on.
const PILED_UP: i64 = 100 * 48;
/// Frames whose moment of play is still to come; more are not entered in the ledger.
const MAX_MARKS: usize = 64;
/// A speaker from whom nothing came for so long is not playing: no gap is counted.
const PAUSED: i64 = 2 * SAMPLE_RATE as i64;

/// How to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiverConfig {
    /// Channels of the output, 1 or 2, whatever the speaker sends. Default 1.
    pub channels: u8,
    /// Bounds of the delay.
    pub jitter: JitterConfig,
    /// Effort of the decoder, 0..=10. Default 5: gaps are filled by a neural network. Below 5 they sound metallic, and
    /// save 0.3 ms of processor time for each 20 ms of gap.
    pub complexity: u8,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        Self { channels: 1, jitter: JitterConfig::default(), complexity: 5 }
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Its frame waits to be played.
    Kept,
    /// Its own frame was of no use, but a copy in it is.
    Repaired,
    /// Seen before.
    Duplicate,
    /// Its moment has passed.
    Late {
        /// By so much.
        by: Samples,
    },
    /// Too far from what is played now; some more like it and the stream starts anew.
    OutOfRange,
    /// Of a kind or version that is not known here.
    Ignored,
}

/// What was heard in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sound {
    /// No stream yet.
    Nothing,
    /// The speaker.
    Voice,
    /// In part the decoder's guess.
    Concealed,
    /// A long gap, or a pause of the speaker: the quiet noise of the room.
    Silence,
}

/// What `play_into` gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Played {
    /// What was heard.
    pub sound: Sound,
    /// Whether the very first sample of this speaker was in it.
    pub first_audio: bool,
    /// How much was made up for it.
    pub concealed: Samples,
    /// The speaker's position at its first sample.
    pub media_time: Option<MediaTime>,
    /// Its loudness.
    pub level: Dbov,
}

/// A voice to be heard. Hand in packets as they come; ask for samples as the sound card does.
#[derive(Debug)]
pub struct Receiver {
    channels: usize,
    decoder: Decoder,
    packets: Packets,
    sequence: Sequence,
    target: Target,
    decision: Decision,
    estimator: Estimator,
    resampler: Resampler,
    audio: Audio,
    concealment: Concealment,
    mend: mend::Mend,
    delay: Delay,
    ledger: Ledger,
    scratch: Vec<f32>,
    /// Samples pulled since the beginning.
    pulled: i64,
    last_pull: Option<(Micros, usize)>,
    stream: Option<Stream>,
    /// The last packet's header, once one was whole: brief packets go by it.
    known: Option<Header>,
    strays: u32,
    stray: i64,
    /// Sound was left out: what comes next is faded into.
    leapt: bool,
    marks: VecDeque<(i64, Trace)>,
    recovered: bool,
    heard_any: bool,
    meter: Meter,
    totals: Totals,
    reported: Totals,
    reported_counts: Counts,
    shown: Totals,
}

/// The timeline of the stream being played. Positions are unwrapped.
#[derive(Debug, Clone, Copy)]
struct Stream {
    wire: MediaTime,
    at: i64,
    /// Samples pulled when it began.
    began: i64,
    /// Position of the next sample to be decoded.
    decoded: i64,
    span: u8,
    coming: u8,
    reach: u8,
    /// When a packet reached back so far last: not every packet does.
    reach_seen: i64,
    duration: Samples,
    speech_mode: bool,
    late_since: Option<i64>,
    last_arrival: i64,
    /// When a packet with FEC came last; pauses of speech have none.
    fec_seen: Option<i64>,
    /// Where the newest frame ends, if it said that a pause may follow.
    quiet_end: Option<i64>,
    /// Whether what was decoded last said so.
    pauses: bool,
}

impl Receiver {
    /// A receiver with all that it will need.
    ///
    /// # Errors
    /// [`Error::Channels`] for other than 1 or 2, [`Error::Opus`] where memory is short.
    pub fn new(config: ReceiverConfig) -> Result<Self, Error> {
        let decoder = Decoder::new(config.channels, config.complexity)?;
        let channels = usize::from(config.channels);
        Ok(Self {
            channels,
            decoder,
            packets: Packets::default(),
            sequence: Sequence::default(),
            target: Target::new(config.jitter),
            decision: Decision::default(),
            estimator: Estimator::default(),
            resampler: Resampler::new(channels),
            audio: Audio::new(channels),
            concealment: Concealment::default(),
            mend: mend::Mend::new(config.channels)?,
            delay: config.jitter.delay,
            ledger: Ledger::default(),
            scratch: vec![0.0; Samples::MS_20.interleaved(channels)],
            pulled: 0,
            last_pull: None,
            stream: None,
            known: None,
            strays: 0,
            stray: 0,
            leapt: false,
            marks: VecDeque::with_capacity(MAX_MARKS),
            recovered: false,
            heard_any: false,
            meter: Meter::default(),
            totals: Totals::default(),
            reported: Totals::default(),
            reported_counts: Counts::default(),
            shown: Totals::default(),
        })
    }

    /// The speaker's clock against ours; `None` while it is not known, and no mouth-to-ear delay is given then.
    pub fn set_clock(&mut self, clock: Option<ClockOffset>) {
        self.ledger.set_clock(clock);
    }

    /// How much delay to take for how much clarity, from now on; the speaker hears of it by the next report.
    pub fn set_delay(&mut self, delay: Delay) {
        self.delay = delay;
        self.target.set_delay(delay);
    }

    /// The speaker's own word for the time from its encoder to its socket; it is taken out of `network`. Default 0.
    pub fn set_send_delay(&mut self, us: u32) {
        self.ledger.set_send_delay(us);
    }

    /// Takes a packet that came at `arrived`.
    ///
    /// # Errors
    /// Says which rule the bytes break; it is counted, and the stream goes on.
    pub fn handle_packet(&mut self, arrived: Micros, packet: &[u8]) -> Result<Arrival, frame::Error> {
        let packet = match Packet::parse(packet) {
            Ok(packet) => packet,
            Err(frame::Error::UnknownKind(_) | frame::Error::UnknownVersion(_)) => {
                return Ok(Arrival::Ignored);
            }
            Err(error) => {
                self.totals.malformed += 1;
                return Err(error);
            }
        };
        let packet = self.completed(packet);
        let header = packet.header;
        let at = self.unwrapped(header.media_time);
        let Some(main) = packet.frames().next().and_then(|f| inspect(f.opus)) else {
            self.totals.malformed += 1;
            // It came: the speaker must not take it for lost on the way.
            if self.stream.is_some_and(|stream| self.packets.in_range(at, stream.decoded)) {
                self.sequence.insert(header.sequence);
            }
            return Err(frame::Error::NotOpus);
        };
        if let Some(stream) = &self.stream
            && !self.packets.in_range(at, stream.decoded)
            && !self.is_new_start(at)
        {
            self.totals.out_of_range += 1;
            return Ok(Arrival::OutOfRange);
        }
        let piled_up =
            self.stream.is_some_and(|s| s.began == self.pulled && at.saturating_sub(s.decoded) > PILED_UP);
        if self.strays >= STRAYS || self.stream.is_none() || piled_up {
            self.begin(at, header.media_time, main);
        }
        self.strays = 0;
        if self.sequence.insert(header.sequence) == Number::Duplicate {
            return Ok(Arrival::Duplicate);
        }
        let pause = self.follow(at, &header, &packet, main);
        self.estimator
            .insert(self.pulled_at(arrived), self.pulled_at(arrived) - at as f64 - span_samples(header.span));
        Ok(self.keep(arrived, at, &packet, pause))
    }

    /// Plays the next block into `out` (interleaved, in whole samples). `now` is the moment of the call;
    /// `playback_delay_us` the time from then until the block's first sample is heard.
    pub fn play_into(&mut self, now: Micros, playback_delay_us: u32, out: &mut [f32]) -> Played {
        let concealed_before = self.totals.concealed_samples;
        let media_time = self.stream.map(|s| s.wire.plus(Samples((self.playing(&s) as i64 - s.at) as u32)));
        self.last_pull = Some((now, out.len() / self.channels));
        let mut first_audio = false;
        let mut before = 0;
        for piece in out.chunks_mut(PIECE * self.channels) {
            first_audio |= self.play_piece(now.plus(Samples(before).as_micros()), playback_delay_us, piece);
            before += (piece.len() / self.channels) as u32;
        }
        let mut level = Meter::default();
        level.add(out);
        self.meter.add(out);
        let concealed = Samples((self.totals.concealed_samples - concealed_before) as u32);
        let sound = match (self.heard_any, self.concealment.is_gone(), concealed.0) {
            (false, ..) => Sound::Nothing,
            (_, true, _) => Sound::Silence,
            (_, _, 0) => Sound::Voice,
            _ => Sound::Concealed,
        };
        Played { sound, first_audio, concealed, media_time, level: level.take().unwrap_or(Dbov::SILENCE) }
    }

    /// The sound card went on for so long without anything to play. Nothing is lost by it, but all that follows is later
    /// by as much: it is made up for like any delay that is too long.
    pub fn skip(&mut self, unheard: Samples) {
        self.pulled = self.pulled.saturating_add(unheard.0.into());
        if unheard > Samples::ZERO {
            self.target.out_of_step(self.pulled);
        }
    }

    /// What the speaker should know about the time since the last report.
    pub fn report(&mut self, _now: Micros) -> Report {
        let totals = self.totals();
        let before = std::mem::replace(&mut self.reported, totals);
        let counts = self.sequence.counts();
        let counts_before = std::mem::replace(&mut self.reported_counts, counts);
        let mut report = Report {
            received: since(totals.packets, before.packets),
            lost: since(totals.lost, before.lost),
            late: since(totals.late, before.late),
            concealed_ms: since(totals.concealed_samples, before.concealed_samples) / 48,
            recovered_ms: since(totals.recovered_samples, before.recovered_samples) / 48,
            alone: since(counts.alone, counts_before.alone),
            delay: self.delay,
            ..Report::default()
        };
        let bursts = counts.bursts.into_iter().zip(counts_before.bursts);
        for (bucket, (now, before)) in report.bursts.iter_mut().zip(bursts) {
            *bucket = u16::try_from(now.saturating_sub(before)).unwrap_or(u16::MAX);
        }
        if let (Some(need), Some(stream)) = (self.target.last(), &self.stream) {
            report.jitter_ms = need.jitter as f32 / 48.0;
            report.target_delay_ms = ((goal(&need, stream) - least(&need, stream)) / 48.0) as f32;
        }
        report
    }

    /// Figures since the last call, and totals.
    pub fn stats(&mut self) -> ReceiverStats {
        let totals = self.totals();
        let before = std::mem::replace(&mut self.shown, totals);
        let played = since(totals.played_samples, before.played_samples);
        let packets = since(totals.packets, before.packets);
        let share =
            |part: u32, whole: u32| (whole > 0).then(|| (part as f32 / whole as f32 * 100.0).min(100.0));
        let lost = since(totals.lost, before.lost);
        let account = self.ledger.take();
        let path = self.stream.and_then(|s| Some((s, self.target.last()?)));
        ReceiverStats {
            loss_pct: share(lost, packets.saturating_add(lost)),
            recovered_pct: share(since(totals.recovered_samples, before.recovered_samples), played),
            concealed_pct: share(since(totals.concealed_samples, before.concealed_samples), played),
            late_pct: share(since(totals.late, before.late), packets),
            jitter_ms: path.map(|(_, need)| need.jitter as f32 / 48.0),
            target_delay_ms: path.map(|(s, need)| ((goal(&need, &s) - least(&need, &s)) / 48.0) as f32),
            buffer_ms: path.map(|(s, need)| ((self.offset(&s) - least(&need, &s)) / 48.0) as f32),
            mouth_to_ear_ms: account.map(|a| a.stages.total()),
            mouth_to_ear_percentiles_ms: account.and_then(|a| a.percentiles),
            mouth_to_ear_stages_ms: account.map(|a| a.stages),
            mouth_to_ear_error_ms: account.map(|a| a.error_ms),
            drift_ppm: self.estimator.ppm().map(|ppm| ppm as f32),
            frame_ms: self.stream.map(|s| s.duration.as_ms()),
            level_dbov: self.meter.take().filter(|_| self.heard_any),
            total_mouth_to_ear_ms: self.ledger.total(),
            totals,
        }
    }

    // Packets in.

    /// The packet with what a brief one leaves out, as far as whole ones have said it.
    fn completed<'a>(&mut self, packet: Packet<'a>) -> Packet<'a> {
        if let Some(known) = &self.known {
            let packet = packet.after(known);
            self.known = Some(packet.header);
            return packet;
        }
        // A stream that began with a brief packet knows low bits only.
        let Some(stream) = &mut self.stream else {
            self.known = Some(packet.header).filter(|_| !packet.is_brief());
            return packet;
        };
        let since = i32::from(packet.header.media_time.since_low(stream.wire));
        if packet.is_brief() {
            let mut packet = packet;
            packet.header.media_time = MediaTime(stream.wire.0.wrapping_add_signed(since));
            return packet;
        }
        stream.wire = MediaTime(packet.header.media_time.0.wrapping_add_signed(since.wrapping_neg()));
        self.known = Some(packet.header);
        packet
    }

    /// Position without the wrap, near the newest one.
    fn unwrapped(&self, wire: MediaTime) -> i64 {
        self.stream.map_or(0, |s| s.at.saturating_add(wire.since(s.wire).into()))
    }

    /// Counts packets out of range that agree with each other; true where there are enough to start anew.
    fn is_new_start(&mut self, at: i64) -> bool {
        let agrees = at.saturating_sub(self.stray).saturating_abs() < MAX_DISTANCE;
        self.strays = if agrees { self.strays + 1 } else { 1 };
        self.stray = at;
        self.strays >= STRAYS
    }

    /// Starts the timeline at this packet.
    fn begin(&mut self, at: i64, wire: MediaTime, main: PacketInfo) {
        self.packets.restart(at);
        self.sequence.restart();
        self.estimator.start_afresh();
        let _ = self.decoder.reset();
        self.mend.forget();
        self.stream = Some(Stream {
            wire,
            at,
            began: self.pulled,
            decoded: at,
            span: 0,
            coming: 0,
            reach: 0,
            reach_seen: self.pulled,
            duration: main.duration,
            speech_mode: main.speech_mode,
            late_since: None,
            last_arrival: self.pulled,
            fec_seen: None,
            quiet_end: None,
            pauses: false,
        });
        self.anchor(at);
    }

    /// Sets the offset anew: what lies at `at` is played after the delay kept at a start.
    fn anchor(&mut self, at: i64) {
        self.target.start_afresh();
        self.estimator.start_afresh();
        self.totals.anchors += 1;
        let missing = (self.target.start().0 as usize + LEAD).saturating_sub(self.audio.ahead());
        let (concealment, channels, gap) = (&mut self.concealment, self.channels, self.heard_any);
        self.audio.push(missing, |pcm| {
            if gap {
                concealment.shape(pcm, channels);
            }
        });
        self.marks.clear();
        self.mend.forget();
        if let Some(stream) = &mut self.stream {
            stream.decoded = at;
            stream.late_since = None;
        }
    }

    /// Takes over how the voice is sent. Gives the length of the pause before this packet.
    fn follow(&mut self, at: i64, header: &Header, packet: &Packet<'_>, main: PacketInfo) -> Samples {
        let mut reach = packet.frames().map(|f| f.back).max().unwrap_or(0);
        let (pulled, length) = (self.pulled, i64::from(main.duration.0));
        if main.has_fec && !self.packets.knows(at - length) {
            // A packet with FEC is a copy of the frame before it, should that be missing.
            let lateness = pulled - (at - length) - span_samples(header.span) as i64;
            let back = (length / STEP) as u8;
            let frame = FirstSight { lateness, back, duration: main.duration, pause: Samples::ZERO };
            self.target.insert(pulled, frame);
        }
        let mut pause = Samples::ZERO;
        if let Some(stream) = &mut self.stream {
            stream.last_arrival = pulled;
            if main.has_fec {
                stream.fec_seen = Some(pulled);
            }
            if stream.fec_seen.is_some_and(|seen| pulled - seen < FEC_IN_USE) {
                reach = reach.max((length / STEP) as u8);
            }
            if at >= stream.at {
                (stream.at, stream.wire) = (at, header.media_time);
                (stream.span, stream.coming) = (header.span, header.coming);
                stream.duration = main.duration;
                let quiet_end = stream.quiet_end.take();
                pause = Samples(quiet_end.map_or(0, |end| u32::try_from(at - end).unwrap_or(0)));
                stream.quiet_end = header.quiet.then_some(at + length);
                if reach >= stream.reach || pulled - stream.reach_seen > REACH_IN_USE {
                    (stream.reach, stream.reach_seen) = (reach, pulled);
                }
            }
        }
        pause
    }

    /// Puts the packet's frames on the table. A pause went before the main one.
    fn keep(&mut self, arrived: Micros, at: i64, packet: &Packet<'_>, pause: Samples) -> Arrival {
        let header = packet.header;
        let mut arrival = Arrival::Kept;
        let mut repaired = false;
        for frame in packet.frames() {
            let Some(stream) = self.stream else { break };
            let back = i64::from(frame.back) * STEP;
            let Some(info) = inspect(frame.opus) else {
                self.totals.malformed += 1;
                continue;
            };
            let trace = Trace {
                is_known: self.known.is_some(),
                arrived,
                captured_us: header.captured_us.wrapping_sub(Samples(back as u32).as_micros() as u32),
                capture_us: u32::from(header.capture_delay) * 10,
                encode_us: u32::from(header.encode_delay) * 10,
                back_us: Samples(back as u32).as_micros() as u32,
                quiet: header.quiet && back == 0,
            };
            let start = at.saturating_sub(back);
            let is_copy = frame.back > 0;
            let offer = self.packets.offer(start, stream.decoded, info, is_copy, trace, frame.opus);
            if matches!(offer, Offer::Kept | Offer::Late(_)) {
                let lateness = self.pulled - start - span_samples(header.span) as i64;
                let pause = if is_copy { Samples::ZERO } else { pause };
                let frame = FirstSight { lateness, back: frame.back, duration: info.duration, pause };
                self.target.insert(self.pulled, frame);
            }
            match offer {
                Offer::Kept if is_copy => repaired = true,
                Offer::Late(by) if !is_copy => {
                    self.totals.late += 1;
                    arrival = Arrival::Late { by };
                    if self.has_lost_touch() {
                        self.anchor(start);
                        self.packets.restart(start);
                        self.packets.offer(start, start, info, false, trace, frame.opus);
                        arrival = Arrival::Kept;
                    }
                }
                Offer::OutOfRange if !is_copy => arrival = Arrival::OutOfRange,
                _ => {}
            }
            if !is_copy
                && arrival == Arrival::Kept
                && let Some(stream) = &mut self.stream
            {
                stream.late_since = None;
            }
        }
        if repaired && arrival != Arrival::Kept { Arrival::Repaired } else { arrival }
    }

    /// Whether audio ran out and everything has come late for a while: the path has become a longer one.
    fn has_lost_touch(&mut self) -> bool {
        let pulled = self.pulled;
        let gap = i64::from(self.concealment.run().0) >= LOST_TOUCH;
        let Some(stream) = &mut self.stream else { return false };
        let since = *stream.late_since.get_or_insert(pulled);
        gap && pulled - since >= LOST_TOUCH
    }

    /// Samples pulled at that moment, with their fraction.
    fn pulled_at(&self, moment: Micros) -> f64 {
        let Some((pull, length)) = self.last_pull else { return self.pulled as f64 };
        let since = moment.signed_since(pull) as f64 * f64::from(SAMPLE_RATE) / 1e6;
        self.pulled as f64 + (since - length as f64).clamp(-(length as f64), length as f64)
    }

    fn totals(&self) -> Totals {
        let counts = self.sequence.counts();
        Totals { packets: counts.received, lost: counts.lost, duplicates: counts.duplicates, ..self.totals }
    }
}

impl Stream {
    fn manner(&self) -> Manner {
        Manner { reach: self.reach, fragile: !self.speech_mode }
    }
}

/// Offset aimed at. Frames that are about to grow are made room for beforehand.
fn goal(need: &Need, stream: &Stream) -> f64 {
    need.offset as f64 + span_samples(stream.span.max(stream.coming))
}

/// Offset at which only the fastest packet would be in time.
fn least(need: &Need, stream: &Stream) -> f64 {
    need.base as f64 + span_samples(stream.span)
}

fn span_samples(span: u8) -> f64 {
    (i64::from(span) * STEP) as f64
}

fn since(now: u64, before: u64) -> u32 {
    u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX)
}
