//! One voice from the microphone to packets.
//!
//! 1. Captured samples go into a ring, with the moment they were captured.
//! 2. The stream's timeline is what the *listener* hears: `next` is the first position not yet sent. An encoder whose
//!    lookahead is L is given the samples from `next + L` on, since its output lies L behind its input. So encoders of
//!    different lookahead and frame length follow each other in one stream without gap or overlap.
//! 3. Before frames grow, the packets announce it for [`ANNOUNCE_US`]: the listener makes room first. A new encoder is
//!    primed with what came before; its first frame is coded without reference to the past.
//! 4. A packet carries its frame and whole copies of older ones. Half a frame later another one may follow, with the same
//!    frame and copies again: one more chance where a burst of loss lets some through. Of each of the two kinds all
//!    packets of one policy are equally long.

use crate::{
    error::Error,
    frame::{self, FRAME_HEADER_BYTES, Frame, HEADER_BYTES, Header, MAX_COPIES, STEP},
    levels::{Dbov, Meter},
    opus::{Application, Encoder, EncoderSettings},
    policy::{Controller, Delay, Policy, Profile},
    report::{PathStats, Report},
    time::{MediaTime, Micros, SAMPLE_RATE, Samples},
};
use std::collections::VecDeque;

/// Captured audio kept: history to prime encoders with, and what waits to be encoded.
pub const MAX_CAPTURED: Samples = Samples::from_ms(500);
/// Audio that may wait to be encoded. Beyond it the oldest is dropped: better a gap than a lag.
pub const MAX_BACKLOG: Samples = Samples::from_ms(200);
/// Longer frames are announced for so long before they come.
pub const ANNOUNCE_US: u64 = 200_000;
/// A capture time so far from where it should be is a gap or a new clock, not jitter.
const CLOCK_JUMP_US: f64 = 100_000.0;
/// A silence longer than this is not kept in the timeline sample by sample.
const MAX_JUMP: f64 = 3600.0 * SAMPLE_RATE as f64;
/// Length of history that a newly chosen encoder hears before its first frame.
const PRIMING: Samples = Samples::from_ms(40);
/// Muting fades over so many samples.
const MUTE_FADE: f32 = 240.0;

/// How to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderConfig {
    /// What the call is for. Default talk.
    pub profile: Profile,
    /// Channels captured, 1 or 2. Default 1.
    pub channels: u8,
    /// Position of the first sample. Default 0; any other only to test the wrap.
    pub start: MediaTime,
    /// Most that one listener's copy of this voice may take on the wire, in kb/s. Default none. The least that is sent is
    /// about 54 kb/s, whatever is asked.
    pub max_kbps: Option<u32>,
    /// How much delay is taken for how much clarity, where no listener has its own wish. Default balanced.
    pub delay: Delay,
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            profile: Profile::Talk,
            channels: 1,
            start: MediaTime(0),
            max_kbps: None,
            delay: Delay::default(),
        }
    }
}

/// What [`Sender::poll_packet`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// The packet's number.
    pub sequence: u32,
    /// Position of the first sample heard from it.
    pub media_time: MediaTime,
    /// When that sample was captured.
    pub captured_at: Micros,
    /// Length of its main frame.
    pub frame: Samples,
    /// Its loudness.
    pub level: Dbov,
    /// When its encoding began: the `now` of the call.
    pub started_at: Micros,
    lookahead: Samples,
}

impl Encoded {
    /// Adds the time that encoding took to the packet's own account. Call it right after `poll_packet`, with the clock
    /// read anew; without it the packet accounts for the lookahead alone.
    pub fn stamp_done(&self, packet: &mut [u8], done: Micros) {
        let delay = self.lookahead.as_micros().saturating_add(done.since(self.started_at));
        frame::set_encode_delay(packet, tens(delay));
    }
}

/// Counters of a sender.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SenderStats {
    /// Packets written.
    pub packets: u64,
    /// Times that captured audio was dropped because nobody asked for packets.
    pub overruns: u64,
    /// Times that capture stood still or jumped, and the timeline with it.
    pub capture_gaps: u64,
    /// Times that another encoder took over within the stream.
    pub switches: u64,
}

/// A voice to be sent. Call `handle_capture` with each period, then `poll_packet` until it gives `None`.
#[derive(Debug)]
pub struct Sender {
    config: SenderConfig,
    ring: Ring,
    controller: Controller,
    policy: Policy,
    announced: Option<Micros>,
    speech: Encoder,
    low_delay: Encoder,
    fresh: bool,
    /// First position not yet sent, counted from the start.
    next: u64,
    /// End of captured audio at which the extra packet is due.
    half_due: Option<u64>,
    /// The span that packets announce.
    coming: u8,
    sequence: u32,
    sent: VecDeque<Sent>,
    scratch: Vec<f32>,
    muted: bool,
    gain: f32,
    meter: Meter,
    level: Option<Dbov>,
    stats: SenderStats,
}

#[derive(Debug, Default)]
struct Sent {
    at: u64,
    frame: Samples,
    opus: Vec<u8>,
}

impl Sender {
    /// A sender with all that it will need.
    ///
    /// # Errors
    /// [`Error::Channels`] for other than 1 or 2, [`Error::Opus`] where memory is short.
    pub fn new(config: SenderConfig) -> Result<Self, Error> {
        let mut controller = Controller::new(config.profile, config.channels, config.max_kbps);
        controller.set_delay(config.delay);
        let channels = usize::from(config.channels);
        let mut sender = Self {
            config,
            ring: Ring::new(channels),
            policy: controller.current().clone(),
            controller,
            announced: None,
            speech: Encoder::new(config.channels, Application::Voip)?,
            low_delay: Encoder::new(config.channels, Application::LowDelay)?,
            fresh: true,
            next: 0,
            half_due: None,
            coming: 0,
            sequence: 0,
            sent: VecDeque::with_capacity(MAX_COPIES + 1),
            scratch: Vec::with_capacity(Samples::MS_20.interleaved(channels)),
            muted: false,
            gain: 1.0,
            meter: Meter::default(),
            level: None,
            stats: SenderStats::default(),
        };
        sender.configure(true)?;
        Ok(sender)
    }

    /// Takes interleaved samples; `captured_at` is when the first of them was captured. Samples that are no numbers count
    /// as silence.
    pub fn handle_capture(&mut self, pcm: &[f32], captured_at: Micros) {
        let gap = self.ring.place(captured_at);
        if gap > 0 {
            self.stats.capture_gaps += 1;
            self.next += gap;
            self.ring.skip(gap);
        }
        let target = if self.muted { 0.0 } else { 1.0 };
        let (fading, rest) = if self.gain == target {
            pcm.split_at(0)
        } else {
            pcm.split_at_checked((MUTE_FADE as usize * self.ring.channels).min(pcm.len()))
                .unwrap_or((pcm, &[]))
        };
        for sample in fading.chunks_exact(self.ring.channels) {
            self.gain = if target > self.gain {
                (self.gain + 1.0 / MUTE_FADE).min(1.0)
            } else {
                (self.gain - 1.0 / MUTE_FADE).max(0.0)
            };
            self.ring.push(sample, self.gain);
        }
        self.ring.push(rest, self.gain);
    }

    /// What a listener says of the last interval; see [`Controller::handle_report`].
    pub fn handle_report(&mut self, now: Micros, peer: u32, report: &Report) {
        self.controller.handle_report(now, peer, report);
    }

    /// What the path to a listener looks like; see [`Controller::handle_path`].
    pub fn handle_path(&mut self, now: Micros, peer: u32, path: &PathStats) {
        self.controller.handle_path(now, peer, path);
    }

    /// A listener left: its path no longer counts.
    pub fn forget_peer(&mut self, peer: u32) {
        self.controller.forget_peer(peer);
    }

    /// Silences the voice, or lets it be heard again, with a fade of 5 ms. Packets go on as before, so that nobody can
    /// tell from their sizes.
    pub fn set_muted(&mut self, muted: bool) {
        self.muted = muted;
    }

    /// Sets the user's limit of [`SenderConfig::max_kbps`] anew.
    pub fn set_max_kbps(&mut self, max_kbps: Option<u32>) {
        self.controller.set_max_kbps(max_kbps);
    }

    /// Sets [`SenderConfig::profile`] anew, within the stream. The channels stay.
    pub fn set_profile(&mut self, profile: Profile) {
        self.controller.set_profile(profile);
    }

    /// Sets [`SenderConfig::delay`] anew.
    pub fn set_delay(&mut self, delay: Delay) {
        self.controller.set_delay(delay);
    }

    /// How the voice is sent now.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Loudness of the newest packet.
    #[must_use]
    pub fn level(&self) -> Option<Dbov> {
        self.level
    }

    /// Counters since the beginning.
    #[must_use]
    pub fn stats(&self) -> SenderStats {
        self.stats
    }

    /// Writes the next packet into `out`, replacing what it held, or gives `None` where too little was captured for one.
    pub fn poll_packet(&mut self, now: Micros, out: &mut Vec<u8>) -> Option<Encoded> {
        if self.half_due.is_some_and(|due| self.ring.end >= due) {
            self.half_due = None;
            return self.write(now, true, out);
        }
        self.coming = self.follow_controller(now);
        let lookahead = self.encoder().lookahead();
        let frame = self.policy.frame;
        let backlog = self.ring.end.saturating_sub(self.next + u64::from(lookahead.0));
        if backlog > u64::from(MAX_BACKLOG.0) {
            let steps = (backlog - u64::from(frame.0)) / u64::from(STEP.0);
            self.next += steps * u64::from(STEP.0);
            self.stats.overruns += 1;
        } else if backlog < u64::from(frame.0) {
            return None;
        }
        if std::mem::take(&mut self.fresh) {
            self.prime();
        }

        self.ring.read(self.next + u64::from(lookahead.0), frame, &mut self.scratch);
        self.meter.add(&self.scratch);
        let level = self.meter.take().unwrap_or(Dbov::SILENCE);
        self.level = Some(level);
        let mut sent =
            if self.sent.len() > MAX_COPIES { self.sent.pop_front() } else { None }.unwrap_or_default();
        (sent.at, sent.frame) = (self.next, frame);
        let encoder = match self.policy.application {
            Application::Voip => &mut self.speech,
            Application::LowDelay => &mut self.low_delay,
        };
        let coded = encoder.encode(&self.scratch, &mut sent.opus);
        let was_independent =
            self.stats.packets == 0 || self.sent.back().is_none_or(|last| last.frame != frame);
        if was_independent {
            let _ = self.configure(false);
        }
        self.next += u64::from(frame.0);
        coded.ok()?;
        self.sent.push_back(sent);

        if !self.policy.half.is_empty() {
            self.half_due = Some(self.next + u64::from(lookahead.0 + frame.0 / 2));
        }
        self.write(now, false, out)
    }

    /// Writes a packet with the newest frame and the copies of a main packet, or of one half a frame later.
    fn write(&mut self, now: Micros, half: bool, out: &mut Vec<u8>) -> Option<Encoded> {
        let lookahead = self.encoder().lookahead();
        let main = self.sent.back()?;
        let (at, frame) = (main.at, main.frame);
        let level = self.level?;
        let captured_at = self.ring.captured_at(at);
        let age = now.since(captured_at).saturating_sub(lookahead.as_micros());
        let header = Header {
            channels: self.config.channels,
            sequence: self.sequence,
            media_time: self.config.start.plus(Samples(at as u32)),
            captured_us: captured_at.to_wire(),
            capture_delay: tens(age),
            encode_delay: tens(lookahead.as_micros()),
            level,
            span: self.policy.span(lookahead),
            coming: self.coming,
        };
        let offsets = if half { &self.policy.half } else { &self.policy.copies };
        let size = HEADER_BYTES + (1 + offsets.len()) * (FRAME_HEADER_BYTES + main.opus.len());
        let copies = offsets.iter().filter_map(|back| {
            let distance = u64::from(*back) * u64::from(frame.0);
            let copy =
                self.sent.iter().find(|s| Some(s.at) == at.checked_sub(distance) && s.frame == frame)?;
            Some(Frame { back: u8::try_from(distance / u64::from(STEP.0)).ok()?, opus: &copy.opus })
        });
        frame::write(&header, std::iter::once(Frame { back: 0, opus: &main.opus }).chain(copies), size, out);
        self.sequence = self.sequence.wrapping_add(1);
        self.stats.packets += 1;
        Some(Encoded {
            sequence: header.sequence,
            media_time: header.media_time,
            captured_at,
            frame,
            level,
            started_at: now,
            lookahead,
        })
    }

    fn encoder(&self) -> &Encoder {
        self.encoder_for(self.policy.application)
    }

    fn encoder_for(&self, application: Application) -> &Encoder {
        match application {
            Application::Voip => &self.speech,
            Application::LowDelay => &self.low_delay,
        }
    }

    /// Takes the controller's policy over, now or after announcing it. Gives the span that the packets announce.
    fn follow_controller(&mut self, now: Micros) -> u8 {
        let wanted = self.controller.policy(now);
        if *wanted != self.policy {
            let wanted = wanted.clone();
            let same_coder =
                (wanted.frame, wanted.application) == (self.policy.frame, self.policy.application);
            let span = self.policy.span(self.encoder().lookahead());
            let coming = wanted.span(self.encoder_for(wanted.application).lookahead());
            if coming > span && self.stats.packets > 0 {
                let since = *self.announced.get_or_insert(now);
                if now.since(since) < ANNOUNCE_US {
                    return coming;
                }
            }
            self.policy = wanted;
            self.half_due = None;
            self.stats.switches += u64::from(!same_coder);
            self.fresh |= !same_coder;
            let _ = self.configure(self.fresh);
        }
        self.announced = None;
        self.policy.span(self.encoder().lookahead())
    }

    fn configure(&mut self, independent: bool) -> Result<(), Error> {
        let settings = EncoderSettings {
            application: self.policy.application,
            bitrate: self.policy.bitrate,
            constant_rate: true,
            complexity: self.policy.complexity,
            fec: self.policy.fec,
            loss_percent: self.policy.loss_perc,
            dred_ms: self.policy.dred_ms,
            independent,
        };
        match settings.application {
            Application::Voip => self.speech.configure(&settings),
            Application::LowDelay => self.low_delay.configure(&settings),
        }
    }

    /// Lets the encoder hear what came before, and throws away what it makes of it.
    fn prime(&mut self) {
        let frame = self.policy.frame;
        let encoder = match self.policy.application {
            Application::Voip => &mut self.speech,
            Application::LowDelay => &mut self.low_delay,
        };
        let from = self.next + u64::from(encoder.lookahead().0);
        if encoder.reset().is_err() {
            return;
        }
        let mut thrown_away = Vec::new();
        for back in (1..=PRIMING.0 / frame.0).rev() {
            if let Some(at) = from.checked_sub(u64::from(back * frame.0)) {
                self.ring.read(at, frame, &mut self.scratch);
                let _ = encoder.encode(&self.scratch, &mut thrown_away);
            }
        }
    }
}

/// Microseconds in the wire's unit of 10, rounded; saturates.
fn tens(us: u64) -> u16 {
    u16::try_from(us.saturating_add(5) / 10).unwrap_or(u16::MAX)
}

/// The newest [`MAX_CAPTURED`] of what was captured, by position since the start.
#[derive(Debug)]
struct Ring {
    channels: usize,
    pcm: Vec<f32>,
    /// Position after the newest sample.
    end: u64,
    /// A position and when it was captured, in microseconds.
    anchor: Option<(u64, f64)>,
}

impl Ring {
    fn new(channels: usize) -> Self {
        Self { channels, pcm: vec![0.0; MAX_CAPTURED.interleaved(channels)], end: 0, anchor: None }
    }

    /// Notes when the sample after the newest was captured. Jitter of that statement is averaged away. Gives the number
    /// of samples (whole steps) that are missing before it, where capture stood still.
    fn place(&mut self, captured_at: Micros) -> u64 {
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

    fn skip(&mut self, gap: u64) {
        self.pcm.fill(0.0);
        self.end += gap;
    }

    /// Adds whole samples.
    fn push(&mut self, pcm: &[f32], gain: f32) {
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
    fn read(&self, at: u64, length: Samples, out: &mut Vec<f32>) {
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

    fn captured_at(&self, position: u64) -> Micros {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Packet;

    /// Feeds `ms` of a tone in 2.5 ms periods and collects all packets with their moment.
    fn run(
        sender: &mut Sender,
        from: &mut u64,
        ms: u32,
        mut each: impl FnMut(&mut Sender, Micros),
    ) -> Vec<(Encoded, Vec<u8>)> {
        let mut packets = Vec::new();
        let mut out = Vec::new();
        for _ in 0..ms * 2 / 5 {
            let pcm: Vec<f32> = (0..120).map(|i| ((*from + i) as f32 * 0.03).sin() * 0.3).collect();
            let captured_at = Micros(*from * 125 / 6);
            *from += 120;
            let now = Micros(*from * 125 / 6);
            sender.handle_capture(&pcm, captured_at);
            each(sender, now);
            while let Some(encoded) = sender.poll_packet(now, &mut out) {
                packets.push((encoded, out.clone()));
            }
        }
        packets
    }

    #[test]
    fn packets_follow_each_other_without_gap_and_say_when_they_were_captured() {
        let start = MediaTime(u32::MAX - 1000);
        let mut sender = Sender::new(SenderConfig { start, ..SenderConfig::default() }).unwrap();
        let packets = run(&mut sender, &mut 0, 200, |_, _| ());
        assert!(packets.len() >= 38);
        for (i, (encoded, bytes)) in packets.iter().enumerate() {
            let header = Packet::parse(bytes).unwrap().header;
            assert_eq!(encoded.media_time, start.plus(Samples(i as u32 * 240)));
            assert_eq!(header.media_time, encoded.media_time);
            let captured = Samples(i as u32 * 240).as_micros();
            assert!(captured.abs_diff(header.captured_us.into()) < 20);
            let done = header.captured_us as u64
                + 10 * (u64::from(header.capture_delay) + u64::from(header.encode_delay));
            assert!(done.abs_diff(encoded.started_at.0) < 30, "the account closes");
            assert_eq!(header.encode_delay, 250);
            assert!(header.capture_delay <= 760, "{}", header.capture_delay);
            assert_eq!(bytes.len(), packets[0].1.len());
            assert_eq!(header.span, 3);
        }
    }

    #[test]
    fn loss_brings_longer_frames_and_copies_announced_beforehand_in_one_seamless_stream() {
        let mut sender = Sender::new(SenderConfig::default()).unwrap();
        let mut at = 0;
        let mut packets = run(&mut sender, &mut at, 500, |_, _| ());
        let lossy = Report { received: 80, lost: 20, ..Report::default() };
        let asked_at = Micros(at * 125 / 6);
        sender.handle_report(asked_at, 1, &lossy);
        packets.extend(run(&mut sender, &mut at, 2000, |_, _| ()));
        sender.forget_peer(1);
        packets.extend(run(&mut sender, &mut at, 500, |_, _| ()));
        let mut expected = packets[0].0.media_time;
        let mut sizes = Vec::new();
        for (encoded, bytes) in &packets {
            assert_eq!(encoded.media_time, expected, "neither gap nor overlap");
            expected = expected.plus(encoded.frame);
            let packet = Packet::parse(bytes).unwrap();
            let info = crate::opus::inspect(packet.frames().next().unwrap().opus).unwrap();
            assert_eq!(info.duration, encoded.frame);
            sizes.push(bytes.len());
            if encoded.frame == Samples::MS_20 {
                assert!(encoded.started_at.since(asked_at) >= ANNOUNCE_US);
                assert_eq!(packet.header.span, 11);
            } else if encoded.started_at > asked_at && encoded.started_at.since(asked_at) < ANNOUNCE_US {
                assert_eq!((packet.header.span, packet.header.coming), (3, 11));
            }
        }
        sizes.dedup();
        assert_eq!(sizes.len(), 3, "one size per policy, first packets without copies too: {sizes:?}");
        let full = packets.iter().filter(|(_, b)| Packet::parse(b).unwrap().copies() == 4).count();
        assert!(full > 80, "{full}");
        assert_eq!(packets.last().unwrap().0.frame, Samples::MS_5);
        assert_eq!(sender.stats().switches, 2);
    }

    #[test]
    fn copies_are_the_very_bytes_of_the_older_packets() {
        let mut sender = Sender::new(SenderConfig::default()).unwrap();
        let lossy = Report { received: 90, lost: 10, ..Report::default() };
        sender.handle_report(Micros(0), 1, &lossy);
        let packets = run(&mut sender, &mut 0, 1000, |_, _| ());
        let mut checked = 0;
        for (encoded, bytes) in &packets {
            for copy in Packet::parse(bytes).unwrap().frames().skip(1) {
                let of = encoded.media_time.minus(Samples(u32::from(copy.back) * 120));
                let original = packets.iter().find(|(e, _)| e.media_time == of).unwrap();
                assert_eq!(Packet::parse(&original.1).unwrap().frames().next().unwrap().opus, copy.opus);
                checked += 1;
            }
        }
        assert!(checked > 70);
    }

    #[test]
    fn muting_silences_but_keeps_the_packets_coming_and_their_size() {
        let mut sender = Sender::new(SenderConfig::default()).unwrap();
        let mut at = 0;
        let loud = run(&mut sender, &mut at, 100, |_, _| ());
        sender.set_muted(true);
        let muted = run(&mut sender, &mut at, 100, |_, _| ());
        assert_eq!(muted.last().unwrap().0.level, Dbov::SILENCE);
        assert_eq!(muted.last().unwrap().1.len(), loud[0].1.len());
        sender.set_muted(false);
        assert!(run(&mut sender, &mut at, 100, |_, _| ()).last().unwrap().0.level > Dbov::new(-20));
    }

    #[test]
    fn a_capture_that_stood_still_moves_the_timeline_and_a_stalled_poller_loses_the_oldest() {
        let mut sender = Sender::new(SenderConfig::default()).unwrap();
        let mut out = Vec::new();
        sender.handle_capture(&[0.1; 4800], Micros(0));
        while sender.poll_packet(Micros(100_000), &mut out).is_some() {}
        let mut first = None;
        sender.handle_capture(&[0.1; 4800], Micros(1_100_000));
        while let Some(encoded) = sender.poll_packet(Micros(1_200_000), &mut out) {
            first.get_or_insert(encoded);
        }
        let first = first.unwrap();
        assert!(first.captured_at.0.abs_diff(1_100_000) < 10_000, "{first:?}");
        assert_eq!(sender.stats().capture_gaps, 1);

        for i in 0..20 {
            sender.handle_capture(&[f32::NAN; 4800], Micros(1_200_000 + i * 100_000));
        }
        let mut waiting = 0;
        while sender.poll_packet(Micros(3_200_000), &mut out).is_some() {
            waiting += 1;
        }
        assert!(waiting <= 2, "{waiting}");
        assert_eq!(sender.stats().overruns, 1);
    }
}
