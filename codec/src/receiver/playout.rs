//! Samples out: moves the offset, makes the audio that is asked for, and enters it in the ledger.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::{MAX_MARKS, PAUSED, Receiver, STEP, Stream, goal};
use crate::{
    drift::LEAD,
    jitter::{
        decision::{MAX_STEER_PPM, Step, speed},
        packets::Trace,
    },
    ledger::Heard,
    opus::PacketInfo,
    stretch::{AHEAD_TO_LENGTHEN, ahead_to_shorten},
    time::{Micros, SAMPLE_RATE, Samples},
};

/// Loudest sample taken from the decoder: it overshoots full scale a little, and without bound where packets are broken.
const LOUDEST: f32 = 1.25;

/// Too much delay beyond this is left out at once: period by period it would take longer than two seconds.
const LEAP: f64 = 200.0 * 48.0;

impl Receiver {
    /// Plays one piece; true if the first sample of all is in it.
    pub(super) fn play_piece(&mut self, now: Micros, playback_delay_us: u32, out: &mut [f32]) -> bool {
        let outputs = out.len() / self.channels;
        let Some(stream) = self.stream else {
            out.fill(0.0);
            self.pulled += outputs as i64;
            return false;
        };
        let slope = self.estimator.slope();
        let mut step = 1.0 - slope;
        let mut wanted = None;
        if let Some(need) = self.target.need(self.pulled, slope, stream.manner()) {
            let goal = goal(&need, &stream);
            wanted = Some(goal);
            self.leap(&stream, goal);
            // Leaping and decoding ahead move the stream on.
            self.stretch(self.offset(&self.stream.unwrap_or(stream)) - goal);
            let error = self.offset(&self.stream.unwrap_or(stream)) - goal;
            step = if self.decision.rests(slope, error) {
                self.resampler.step_to_rest(outputs, MAX_STEER_PPM)
            } else {
                speed(slope, error)
            };
        }
        let needed = self.resampler.needed(outputs, step);
        while self.audio.ahead() < needed {
            self.produce(wanted);
        }
        let from = self.stream.map_or(0.0, |s| self.playing(&s));
        self.resampler.process(&mut self.audio, step, out);
        self.pulled += outputs as i64;
        if self.heard_any && self.pulled - stream.last_arrival < PAUSED {
            self.totals.played_samples += outputs as u64;
        }
        self.enter(now, playback_delay_us, from)
    }

    /// Enters the frames that have begun to play; true if the first of all is among them.
    fn enter(&mut self, now: Micros, playback_delay_us: u32, from: f64) -> bool {
        let Some(until) = self.stream.map(|s| self.playing(&s)) else { return false };
        let mut first = false;
        while let Some((at, trace)) = self.marks.front().copied()
            && (at as f64) < until
        {
            self.marks.pop_front();
            first |= !std::mem::replace(&mut self.heard_any, true);
            let later = ((at as f64 - from).max(0.0) * 1e6 / f64::from(SAMPLE_RATE)) as u64;
            let heard = Heard {
                at: now.plus(later).plus(playback_delay_us.into()),
                playback_us: playback_delay_us,
                decode_us: Samples(LEAD as u32).as_micros() as u32,
            };
            self.ledger.enter(&trace, heard);
        }
        first
    }

    /// Position of the next sample to be heard.
    pub(super) fn playing(&self, stream: &Stream) -> f64 {
        stream.decoded as f64 - self.audio.ahead() as f64 + self.resampler.fraction()
    }

    pub(super) fn offset(&self, stream: &Stream) -> f64 {
        self.pulled as f64 - self.playing(stream)
    }

    /// Far more delay than is needed, as after a speaker's clock has jumped or while everything waits behind a long gap:
    /// playing goes on at the first frame that waits where it should be, and what lies before is left out.
    fn leap(&mut self, stream: &Stream, goal: f64) {
        let error = self.offset(stream) - goal;
        if error < LEAP {
            return;
        }
        let steps = (error / STEP as f64) as i64;
        let to = stream.decoded.saturating_add(steps.saturating_mul(STEP));
        let Some(at) = self.packets.covering(to).or_else(|| self.packets.next_after(to)).map(|w| w.at) else {
            return;
        };
        if let Some(stream) = &mut self.stream {
            stream.decoded = at;
        }
        self.mend.forget();
        self.leapt = true;
        self.totals.accelerated_samples += u64::try_from(at - stream.decoded).unwrap_or(0);
    }

    /// Leaves out or repeats a period, where the offset is far enough from its goal.
    fn stretch(&mut self, error: f64) {
        if self.concealment.run().0 > 0 {
            return;
        }
        let made = match self.decision.step(self.pulled, error) {
            Step::Keep => return,
            Step::Shorten { most, force } => {
                self.decode_ahead(ahead_to_shorten(most));
                let gone = self.audio.shorten(most, force);
                self.totals.accelerated_samples += gone.map_or(0, |s| s.0.into());
                gone.is_some()
            }
            Step::Lengthen { most, force } => {
                self.decode_ahead(AHEAD_TO_LENGTHEN);
                let more = self.audio.lengthen(most, force);
                self.totals.expanded_samples += more.map_or(0, |s| s.0.into());
                more.is_some()
            }
        };
        self.decision.done(self.pulled, error, made);
    }

    /// Decodes frames that wait already, until so many samples lie ahead or there is a gap.
    fn decode_ahead(&mut self, ahead: usize) {
        while self.audio.ahead() < ahead
            && self.stream.is_some_and(|s| self.packets.covering(s.decoded).is_some())
        {
            self.produce(None);
        }
    }

    /// Makes the next piece of audio, whatever it takes. `wanted` is the offset aimed at: in a gap that is not known to be
    /// a loss, time may stand still until it is reached.
    fn produce(&mut self, wanted: Option<f64>) {
        if self.play_waiting() || self.play_fec() {
            return;
        }
        if self.stream.is_some_and(|s| s.pauses) {
            self.rest(wanted);
        } else {
            self.conceal(wanted);
        }
    }

    fn play_waiting(&mut self) -> bool {
        let Some(stream) = self.stream else { return false };
        let Some(frame) = self.packets.covering(stream.decoded) else { return false };
        let (at, info, trace) = (frame.at, frame.info, frame.trace);
        self.recovered = frame.from_copy;
        let quiet = trace.quiet;
        let mended = self.mend(at);
        let Some((_, opus)) = self.packets.came(at) else { return false };
        let decoded = self.decoder.decode(opus, &mut self.scratch);
        self.packets.done(at);
        if mended {
            let past = Samples(u32::try_from(stream.decoded - at).unwrap_or(0)).interleaved(self.channels);
            if let Some(heard) = self.scratch.get_mut(past..) {
                self.mend.blend(heard, self.channels);
            }
        }
        if decoded != Ok(info.duration) {
            self.totals.malformed += 1;
            return false;
        }
        self.mark(at.max(stream.decoded), at, trace);
        self.append(at, info, mended, quiet);
        true
    }

    fn play_fec(&mut self) -> bool {
        let Some(stream) = self.stream else { return false };
        let Some(next) = self.packets.next_after(stream.decoded) else { return false };
        let at = next.at - i64::from(next.info.duration.0);
        if !next.info.has_fec || at > stream.decoded {
            return false;
        }
        let (info, length) = (next.info, next.info.duration.interleaved(self.channels));
        let Some(room) = self.scratch.get_mut(..length) else { return false };
        if self.decoder.decode_fec(next.opus, room) != Ok(info.duration) {
            return false;
        }
        self.recovered = true;
        self.append(at, info, false, false);
        true
    }

    /// Adds the decoded frame that begins at `at`, less what was already played in its place. `quiet`: a pause may follow.
    fn append(&mut self, at: i64, info: PacketInfo, blended: bool, quiet: bool) {
        let Some(stream) = &mut self.stream else { return };
        let skipped = (stream.decoded - at).max(0) as u32;
        let fresh = info.duration.0.saturating_sub(skipped);
        let from = Samples(skipped).interleaved(self.channels);
        let Some(pcm) = self.scratch.get_mut(from..from + Samples(fresh).interleaved(self.channels)) else {
            return;
        };
        if !tame(pcm) {
            let _ = self.decoder.reset();
            self.mend.forget();
        }
        let leapt = std::mem::take(&mut self.leapt);
        if leapt || (skipped > 0 && !blended) {
            self.audio.blend_into(pcm);
        }
        self.concealment.heard(pcm, self.channels, quiet);
        self.audio.push(fresh as usize, |out| out.copy_from_slice(pcm));
        stream.decoded += i64::from(fresh);
        (stream.duration, stream.speech_mode, stream.pauses) = (info.duration, info.speech_mode, quiet);
        if std::mem::take(&mut self.recovered) {
            self.totals.recovered_samples += u64::from(fresh);
        }
    }

    fn conceal(&mut self, wanted: Option<f64>) {
        let Some(stream) = self.stream else { return };
        // Speech-mode decoders guess 10 ms at a time, others as little as is needed.
        let most = if stream.speech_mode { Samples::MS_10.0 } else { Samples::MS_2_5.0 };
        let next = self.packets.next_after(stream.decoded);
        let length = next.map_or(most, |n| most.min(u32::try_from(n.at - stream.decoded).unwrap_or(most)));
        let channels = self.channels;
        if self.concealment.run() == Samples::ZERO && self.heard_any {
            self.mend.begin(stream.decoded, &self.decoder);
        }
        let Some(pcm) = self.scratch.get_mut(..Samples(length).interleaved(channels)) else { return };
        if self.concealment.is_gone() || !self.heard_any || self.decoder.conceal(pcm).is_err() {
            pcm.fill(0.0);
        }
        if !tame(pcm) {
            let _ = self.decoder.reset();
            self.mend.forget();
        }
        let was_gone = self.concealment.is_gone();
        if self.heard_any {
            self.concealment.shape(pcm, channels);
        }
        self.audio.push(length as usize, |out| out.copy_from_slice(pcm));
        let waits = wanted.is_some_and(|goal| self.offset(&stream) < goal);
        if waits && !self.packets.any_after(stream.decoded) {
            self.totals.expanded_samples += u64::from(length);
        } else if let Some(stream) = &mut self.stream {
            stream.decoded += i64::from(length);
        }
        if self.heard_any && self.pulled - stream.last_arrival < PAUSED {
            self.totals.concealed_samples += u64::from(length);
            self.totals.silenced_samples += if was_gone { u64::from(length) } else { 0 };
        }
    }

    /// Makes a piece of a pause: the room's noise. Nothing is missing, so time may stand still in it, or skip, until the
    /// offset is as wanted.
    fn rest(&mut self, wanted: Option<f64>) {
        let Some(stream) = self.stream else { return };
        let next = self.packets.next_after(stream.decoded);
        let left = next.map_or(i64::MAX, |n| n.at.saturating_sub(stream.decoded));
        let length = STEP.min(left);
        let Some(pcm) = self.scratch.get_mut(..Samples(length as u32).interleaved(self.channels)) else {
            return;
        };
        self.concealment.rest(pcm, self.channels);
        self.audio.push(length as usize, |out| out.copy_from_slice(pcm));
        let too_late = wanted.map_or(0.0, |goal| self.offset(&stream) - length as f64 - goal);
        let steps = if too_late <= -(length as f64) {
            self.totals.expanded_samples += length as u64;
            0
        } else if too_late >= STEP as f64 && left > length + STEP {
            self.totals.accelerated_samples += STEP as u64;
            length + STEP
        } else {
            length
        };
        if let Some(stream) = &mut self.stream {
            stream.decoded += steps;
        }
    }

    /// Notes that a frame begins at `at`, to be entered in the ledger once it is heard.
    fn mark(&mut self, at: i64, begins: i64, mut trace: Trace) {
        if self.marks.len() < MAX_MARKS {
            trace.captured_us =
                trace.captured_us.wrapping_add(Samples((at - begins) as u32).as_micros() as u32);
            self.marks.push_back((at, trace));
        }
    }
}

/// Bounds what a broken stream can make of a decoder. False where there was something that is no number.
fn tame(pcm: &mut [f32]) -> bool {
    let mut sane = true;
    for s in pcm {
        sane &= s.is_finite();
        *s = if s.is_finite() { s.clamp(-LOUDEST, LOUDEST) } else { 0.0 };
    }
    sane
}
