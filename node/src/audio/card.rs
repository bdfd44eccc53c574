//! Simulated sound cards: an exact 48 kHz clock in front of a [`Source`] or behind a recording.
//!
//! With the card started at t0 and periods of P frames, capture frame i happens at t0 + i/48000 and period n is handed
//! over when complete, at t0 + (n+1)·P/48000. Playback wants period n at t0 + n·P/48000, and that is also when it
//! plays: what is written late has still been heard on time, as file positions are the truth here. Sample count and
//! time never part: whoever comes late finds every missed period waiting, up to [`MAX_LATE_FRAMES`]; beyond that the
//! oldest are lost (captured unheard, played as silence) and counted.

use super::clock::{frames_to_ns, ns_to_frames};
use super::error::Error;
use super::event::{AudioEvent, End, Events, Xruns};
use super::mirror::Glass;
use super::pipe::PipeSink;
use super::source::Source;
use super::wav::Recording;

/// Most a simulated card makes up for when its reader or writer was late: 200 ms.
pub const MAX_LATE_FRAMES: u64 = 9_600;

/// Position and time of a card that started at `t0_ns`.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    t0_ns: u64,
    period: u64,
}

impl Ticks {
    fn time_of(&self, frame: u64) -> u64 {
        self.t0_ns.saturating_add(frames_to_ns(frame))
    }

    fn frames_at(&self, now_ns: u64) -> u64 {
        ns_to_frames(now_ns.saturating_sub(self.t0_ns))
    }
}

/// The capturing half of a simulated card.
#[derive(Debug)]
pub(crate) struct SimCapture {
    ticks: Ticks,
    channels: u16,
    source: Source,
    next: u64,
    block: Vec<f32>,
    /// Whether its start is news.
    announce: bool,
    pub(super) xruns: Xruns,
    events: Events,
}

impl SimCapture {
    pub(crate) fn new(source: Source, t0_ns: u64, period: u32, channels: u16, events: Events) -> Self {
        let block = vec![0.0; period as usize * usize::from(channels)];
        let ticks = Ticks { t0_ns, period: u64::from(period) };
        let xruns = Xruns::new(End::Input);
        Self { ticks, channels, source, next: 0, block, announce: true, xruns, events }
    }

    /// A card of silence that stands in for a device, whose own start is the news.
    pub(crate) fn standing_in(t0_ns: u64, period: u32, channels: u16, events: Events) -> Self {
        Self { announce: false, ..Self::new(Source::Silence, t0_ns, period, channels, events) }
    }

    /// Lets a waiting clip begin with the next period.
    pub(crate) fn start(&mut self) {
        self.source.start();
    }

    /// When the next period is complete.
    pub(crate) fn ready_at_ns(&self) -> u64 {
        self.ticks.time_of(self.next + self.ticks.period).saturating_add(1)
    }

    /// The next complete period and the time of its first sample.
    pub(crate) fn read(&mut self, now_ns: u64) -> Option<(&[f32], u64)> {
        let due = self.ticks.frames_at(now_ns).saturating_sub(self.next);
        if due > MAX_LATE_FRAMES + self.ticks.period {
            for _ in 1..due / self.ticks.period {
                self.capture();
                self.xruns.add(1);
            }
        } else if due < self.ticks.period {
            self.xruns.tell(now_ns, &self.events);
            return None;
        }
        let at_ns = self.capture();
        Some((&self.block, at_ns))
    }

    fn capture(&mut self) -> u64 {
        let at = self.next;
        self.next += self.ticks.period;
        let met = self.source.fill(&mut self.block, usize::from(self.channels));
        let time = |offset: usize| self.ticks.time_of(at + offset as u64);
        let live = matches!(self.source, Source::Silence | Source::Pipe(_));
        let began = (at == 0 && live).then_some(0);
        if let Some(offset) = met.first.or(began).filter(|_| self.announce) {
            self.events.started(End::Input, time(offset), self.channels, self.ticks.period as u32);
        }
        if let Some(offset) = met.end {
            self.events.send(AudioEvent::InputFinished { at_ns: time(offset) });
        }
        time(0)
    }
}

/// Where a simulated card plays.
#[derive(Debug)]
pub(crate) enum Sink {
    /// A recording.
    File(Recording),
    /// Another program.
    Pipe(PipeSink),
}

impl Sink {
    fn write(&mut self, pcm: &[f32]) {
        match self {
            Self::File(recording) => recording.write(pcm),
            Self::Pipe(pipe) => pipe.write(pcm),
        }
    }

    fn write_silence(&mut self, samples: u64) {
        match self {
            Self::File(recording) => recording.write_silence(samples),
            Self::Pipe(pipe) => pipe.write_silence(samples),
        }
    }

    /// Samples that its other end was too late for, since the last call.
    fn take_lost(&mut self) -> u64 {
        match self {
            Self::File(_) => 0,
            Self::Pipe(pipe) => pipe.take_lost(),
        }
    }

    /// Writes what is left, and closes.
    ///
    /// # Errors
    /// As [`Recording::finish`].
    pub(crate) fn finish(self) -> Result<(), Error> {
        match self {
            Self::File(recording) => recording.finish(),
            Self::Pipe(pipe) => {
                pipe.finish();
                Ok(())
            }
        }
    }
}

/// The playing half of a simulated card.
#[derive(Debug)]
pub(crate) struct SimPlayback {
    ticks: Ticks,
    channels: u16,
    /// Frames written so far: the position of the next.
    next: u64,
    sink: Option<Sink>,
    /// Where it is captured again.
    glass: Option<Glass>,
    /// Whether its start is news that has not been told.
    announce: bool,
    pub(super) xruns: Xruns,
    events: Events,
}

impl SimPlayback {
    /// A card that plays into `sink`, or nowhere.
    pub(crate) fn new(sink: Option<Sink>, t0_ns: u64, period: u32, channels: u16, events: Events) -> Self {
        let ticks = Ticks { t0_ns, period: u64::from(period) };
        let xruns = Xruns::new(End::Output);
        Self { ticks, channels, next: 0, sink, glass: None, announce: true, xruns, events }
    }

    /// A card that stands in for a device, whose own start is the news.
    pub(crate) fn standing_in(t0_ns: u64, period: u32, channels: u16, events: Events) -> Self {
        Self { announce: false, ..Self::new(None, t0_ns, period, channels, events) }
    }

    /// A card whose sound is captured again.
    pub(crate) fn before(glass: Glass, t0_ns: u64, period: u32, channels: u16, events: Events) -> Self {
        Self { glass: Some(glass), ..Self::new(None, t0_ns, period, channels, events) }
    }

    /// When the next period is wanted.
    pub(crate) fn ready_at_ns(&self) -> u64 {
        // The period before the position that is due: a tick wants a whole period.
        let tick = self.next.div_ceil(self.ticks.period) * self.ticks.period;
        self.ticks.time_of(tick).saturating_add(u64::from(tick > 0))
    }

    /// Frames wanted now, whole periods.
    pub(crate) fn space(&mut self, now_ns: u64) -> usize {
        if now_ns < self.ticks.t0_ns {
            return 0;
        }
        let period = self.ticks.period;
        let due = (self.ticks.frames_at(now_ns) / period + 1) * period;
        let wanted = due.saturating_sub(self.next);
        if wanted > MAX_LATE_FRAMES + period {
            let lost = wanted - period;
            self.xruns.add(lost / period);
            self.play_silence(lost);
        }
        self.xruns.tell(now_ns, &self.events);
        (due.saturating_sub(self.next) / period * period) as usize
    }

    /// When the next frame written is heard.
    pub(crate) fn heard_at_ns(&self) -> u64 {
        self.ticks.time_of(self.next)
    }

    /// Plays interleaved frames at the current position.
    pub(crate) fn write(&mut self, pcm: &[f32]) {
        self.announce_start();
        self.next += (pcm.len() / usize::from(self.channels)) as u64;
        if let Some(sink) = &mut self.sink {
            sink.write(pcm);
            let lost = sink.take_lost() / u64::from(self.channels) / self.ticks.period;
            self.xruns.add(lost);
        }
        if let Some(glass) = &mut self.glass {
            glass.write(pcm);
        }
    }

    /// Hands what it plays into over, to be finished.
    pub(crate) fn take_sink(&mut self) -> Option<Sink> {
        self.sink.take()
    }

    fn play_silence(&mut self, frames: u64) {
        self.announce_start();
        self.next += frames;
        if let Some(sink) = &mut self.sink {
            sink.write_silence(frames * u64::from(self.channels));
        }
        if let Some(glass) = &mut self.glass {
            glass.write_silence(frames * u64::from(self.channels));
        }
    }

    fn announce_start(&mut self) {
        if std::mem::take(&mut self.announce) {
            self.events.started(End::Output, self.ticks.t0_ns, self.channels, self.ticks.period as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: u64 = 5_000_000_000;
    const PERIOD_NS: u64 = 2_500_000;

    fn ramp(frames: usize) -> Vec<f32> {
        (0..frames).map(|i| i as f32).collect()
    }

    #[test]
    fn a_period_is_handed_over_when_complete_and_bears_the_time_of_its_first_sample() {
        let (events, heard) = Events::new();
        let mut card = SimCapture::new(Source::clip(ramp(360), false), T0, 120, 1, events);
        assert!(card.read(T0).is_none());
        assert!(card.read(T0 + PERIOD_NS - 1).is_none());
        assert!(card.read(card.ready_at_ns()).is_some());
        let (pcm, at) = card.read(T0 + 2 * PERIOD_NS).expect("the second period is complete");
        assert_eq!((pcm[0], pcm[119], at), (120.0, 239.0, T0 + PERIOD_NS));
        assert!(card.read(T0 + 2 * PERIOD_NS).is_none());
        assert!(card.read(T0 + 3 * PERIOD_NS).is_some());
        let news: Vec<_> = heard.try_iter().collect();
        let period_ms = 2.5;
        assert_eq!(news[0], AudioEvent::InputStarted { at_ns: T0, rate_hz: 48_000, channels: 1, period_ms });
        assert_eq!(news[1], AudioEvent::InputFinished { at_ns: T0 + 3 * PERIOD_NS });
    }

    #[test]
    fn a_reader_that_was_away_150_ms_misses_nothing() {
        let (events, _heard) = Events::new();
        let mut card = SimCapture::new(Source::clip(ramp(48_000), false), T0, 120, 1, events);
        let now = T0 + 60 * PERIOD_NS;
        let mut expected = 0.0;
        while let Some((pcm, at)) = card.read(now) {
            assert_eq!(pcm[0], expected);
            assert_eq!(at, T0 + frames_to_ns(expected as u64));
            expected += 120.0;
        }
        assert_eq!((expected, card.xruns.total()), (7200.0, 0));
    }

    #[test]
    fn a_reader_that_was_away_a_second_loses_the_oldest_and_keeps_the_time() {
        let (events, _heard) = Events::new();
        let mut card = SimCapture::new(Source::clip(ramp(96_000), false), T0, 120, 1, events);
        let (pcm, at) = card.read(T0 + 400 * PERIOD_NS + 1000).expect("there is plenty");
        assert_eq!((pcm[0], at), (399.0 * 120.0, T0 + 399 * PERIOD_NS));
        assert_eq!(card.xruns.total(), 399);
        assert!(card.read(T0 + 400 * PERIOD_NS + 1000).is_none());
    }

    #[test]
    fn a_file_that_waits_for_a_peer_starts_with_the_period_after() {
        let (events, heard) = Events::new();
        let mut card = SimCapture::new(Source::clip(ramp(240), true), T0, 120, 1, events);
        assert_eq!(card.read(T0 + PERIOD_NS).map(|(pcm, _)| pcm[5]), Some(0.0));
        assert_eq!(heard.try_iter().count(), 0);
        card.start();
        assert_eq!(card.read(T0 + 2 * PERIOD_NS).map(|(pcm, at)| (pcm[5], at)), Some((5.0, T0 + PERIOD_NS)));
        assert!(
            matches!(heard.try_recv(), Ok(AudioEvent::InputStarted { at_ns, .. }) if at_ns == T0 + PERIOD_NS)
        );
    }

    #[test]
    fn playback_wants_one_period_at_each_tick_and_plays_it_from_there() {
        let (events, heard) = Events::new();
        let mut card = SimPlayback::new(None, T0, 120, 2, events);
        assert_eq!(card.space(T0 - 1), 0);
        assert_eq!((card.space(T0), card.heard_at_ns()), (120, T0));
        card.write(&[0.0; 240]);
        assert_eq!((card.space(T0 + PERIOD_NS - 1), card.heard_at_ns()), (0, T0 + PERIOD_NS));
        assert_eq!(card.space(card.ready_at_ns()), 120);
        assert_eq!(card.space(T0 + 3 * PERIOD_NS), 360);
        assert!(matches!(heard.try_recv(), Ok(AudioEvent::OutputStarted { at_ns: T0, channels: 2, .. })));
    }

    #[test]
    fn a_writer_that_was_away_a_second_finds_silence_played_and_the_position_right() {
        let (events, _heard) = Events::new();
        let mut card = SimPlayback::new(None, T0, 120, 1, events);
        assert_eq!(card.space(T0 + 400 * PERIOD_NS), 120);
        assert_eq!(card.heard_at_ns(), T0 + 400 * PERIOD_NS);
        assert_eq!(card.xruns.total(), 400);
    }

    #[test]
    fn an_hour_of_ticks_does_not_drift() {
        let (events, _heard) = Events::new();
        let mut card = SimPlayback::new(None, T0, 120, 1, events);
        for tick in 0..(3600 * 400u64) {
            let due = card.ready_at_ns();
            assert!(due.abs_diff(T0 + tick * PERIOD_NS) <= 1);
            assert_eq!(card.space(due), 120);
            card.write(&[0.0; 120]);
        }
    }
}
