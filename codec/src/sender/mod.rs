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

mod pauses;
mod ring;

pub use pauses::{PAUSE_AFTER, PAUSE_EVERY};
pub use ring::MAX_CAPTURED;

use self::{
    pauses::{Pauses, Turn},
    ring::Ring,
};
use crate::{
    error::Error,
    frame::{self, Frame, Header, MAX_COPIES, STEP, WHOLE_EVERY},
    levels::{Dbov, Meter},
    opus::{Application, Encoder, EncoderSettings, inspect},
    policy::{Controller, Delay, Policy, Profile},
    report::{PathStats, Report},
    time::{MediaTime, Micros, Samples},
};
use std::collections::VecDeque;

/// Audio that may wait to be encoded. Beyond it the oldest is dropped: better a gap than a lag.
pub const MAX_BACKLOG: Samples = Samples::from_ms(200);
/// Longer frames are announced for so long before they come.
pub const ANNOUNCE_US: u64 = 200_000;
/// Length of history that a newly chosen encoder hears before its first frame.
const PRIMING: Samples = Samples::from_ms(40);
/// Packets that are whole at the start and after every change, in case some of them are lost.
const WHOLE_FIRST: u32 = 4;
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
    /// Discontinuous transmission: after [`PAUSE_AFTER`] of quiet only one packet goes out each [`PAUSE_EVERY`], until
    /// something is said. It tells whoever watches the path who takes turns. Default off (RFC 6562).
    pub dtx: bool,
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            profile: Profile::Talk,
            channels: 1,
            start: MediaTime(0),
            max_kbps: None,
            delay: Delay::default(),
            dtx: false,
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
    /// Samples that were not sent, since the speaker paused.
    pub rested_samples: u64,
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
    /// Packets that are to be whole before brief ones follow.
    whole: u32,
    pauses: Pauses,
    /// Whether packets say that a pause may follow.
    quiet: bool,
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
            whole: WHOLE_FIRST,
            pauses: Pauses::default(),
            quiet: false,
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
            self.whole = WHOLE_FIRST;
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
    /// In a pause nothing is learnt: too little is sent to tell.
    pub fn handle_report(&mut self, now: Micros, peer: u32, report: &Report) {
        if !self.pauses.rests() {
            self.controller.handle_report(self.spoken(now), peer, report);
        }
    }

    /// What the path to a listener looks like; see [`Controller::handle_path`].
    pub fn handle_path(&mut self, now: Micros, peer: u32, path: &PathStats) {
        if !self.pauses.rests() {
            let nobody_heard = path.presumed && !self.controller.has_listeners();
            self.controller.handle_path(self.spoken(now), peer, path);
            if nobody_heard {
                // Nobody needs to make room for longer frames: it was announced long ago, as it were.
                self.announced = Some(Micros(now.0.saturating_sub(ANNOUNCE_US)));
            }
        }
    }

    /// A listener left: its path no longer counts.
    pub fn forget_peer(&mut self, peer: u32) {
        self.controller.forget_peer(peer);
    }

    /// Silences the voice, or lets it be heard again, with a fade of 5 ms. Packets go on as before, so that nobody can
    /// tell from them, unless [`SenderConfig::dtx`] lets them pause.
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

    /// Whether the speaker pauses, and packets with it.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.pauses.rests()
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
        let (frame, lookahead) = loop {
            if !self.pauses.rests() {
                self.coming = self.follow_controller(self.spoken(now));
            }
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
            if self.takes_turn(frame) {
                break (frame, lookahead);
            }
            self.next += u64::from(frame.0);
            self.stats.rested_samples += u64::from(frame.0);
        };

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

        if !self.policy.half.is_empty() && !self.quiet {
            self.half_due = Some(self.next + u64::from(lookahead.0 + frame.0 / 2));
        }
        self.write(now, false, out)
    }

    /// Whether the frame in `scratch` is sent.
    fn takes_turn(&mut self, frame: Samples) -> bool {
        let turn = if self.config.dtx { self.pauses.judge(&self.scratch, frame) } else { Turn::Speaks };
        if self.quiet && turn == Turn::Speaks {
            self.whole = WHOLE_FIRST;
        }
        self.quiet = turn != Turn::Speaks;
        turn != Turn::Rests
    }

    /// The moment on a clock that stands still in pauses: what was learnt of the paths is not forgotten in them.
    fn spoken(&self, now: Micros) -> Micros {
        Micros(now.0.saturating_sub(self.stats.rested_samples * 125 / 6))
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
            quiet: self.quiet,
        };
        if self.may_be_brief(&header) {
            frame::write_brief(&header, &main.opus, out);
            return Some(self.count(now, &header, captured_at, frame, lookahead));
        }
        let offsets = if half { &self.policy.half } else { &self.policy.copies };
        let size = if half { self.policy.half_bytes() } else { self.policy.whole_bytes() };
        let copies = offsets.iter().filter_map(|back| {
            let distance = u64::from(*back) * u64::from(frame.0);
            let copy =
                self.sent.iter().find(|s| Some(s.at) == at.checked_sub(distance) && s.frame == frame)?;
            Some(Frame { back: u8::try_from(distance / u64::from(STEP.0)).ok()?, opus: &copy.opus })
        });
        frame::write(&header, std::iter::once(Frame { back: 0, opus: &main.opus }).chain(copies), size, out);
        Some(self.count(now, &header, captured_at, frame, lookahead))
    }

    /// Whether the packet says nothing that the last whole one did not.
    fn may_be_brief(&self, header: &Header) -> bool {
        let is_due = header.sequence.is_multiple_of(WHOLE_EVERY);
        let is_known = self.whole == 0 && header.span == header.coming && !header.quiet;
        let says_span = |sent: &Sent| inspect(&sent.opus).is_some_and(|info| info.span() == header.span);
        self.policy.is_plain() && is_known && !is_due && self.sent.back().is_some_and(says_span)
    }

    /// Counts a packet that was written.
    fn count(
        &mut self,
        now: Micros,
        header: &Header,
        captured_at: Micros,
        frame: Samples,
        lookahead: Samples,
    ) -> Encoded {
        self.sequence = self.sequence.wrapping_add(1);
        self.whole = self.whole.saturating_sub(1);
        self.stats.packets += 1;
        Encoded {
            sequence: header.sequence,
            media_time: header.media_time,
            captured_at,
            frame,
            level: header.level,
            started_at: now,
            lookahead,
        }
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
            self.whole = WHOLE_FIRST;
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
            constant_rate: !self.policy.varies_within(),
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

#[cfg(test)]
mod tests;
