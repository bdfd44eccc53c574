//! The media thread's side of a loudspeaker. The queue in front of the device is kept at what the next callback
//! takes plus a margin, and filled as late as is safe: just before that callback is foreseen. Underruns widen margin
//! and lead; quiet time narrows them again, more slowly after each relapse.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender};

use rtrb::{Producer, RingBuffer};

use super::super::card::SimPlayback;
use super::super::clock::{NS_PER_MS, NS_PER_SECOND, RATE_HZ, monotonic_ns};
use super::super::convert::Live;
use super::super::event::{End, Events, Xruns};
use super::find::{self, Device};
use super::keeper::{Kind, Note, Opened};
use super::tap::{PlaybackTap, Stamp};
use super::track::{LowerEdge, Track};
use super::{Facts, Reach, Shape, frames_ns, ns_frames};

/// Most sound that can be queued in front of a device.
const RING_SECONDS_TENTHS: u32 = 5;
const STAMPS: usize = 4_096;
/// Least and most sound kept beyond what the next callback takes.
const MARGIN_NS: std::ops::RangeInclusive<u64> = 0..=40 * NS_PER_MS;
/// Least and most time before a foreseen callback at which the queue is filled.
const LEAD_NS: std::ops::RangeInclusive<u64> = NS_PER_MS..=2 * NS_PER_MS;
/// An underrun adds half of this to the lead, which costs little; all of it to the margin once the lead is at its most.
const WIDEN_NS: u64 = NS_PER_MS;
/// At most one widening in this time: one stall makes many underruns.
const WIDEN_EVERY_NS: u64 = 100 * NS_PER_MS;
/// A lone underrun in this time is forgiven: the click is over when it is known, more delay would stay.
const HABIT_NS: u64 = 10 * NS_PER_SECOND;
/// Quiet time takes a quarter of the margin away, no less than this; then half of this from the lead.
const NARROW_NS: u64 = 500_000;
/// Quiet time before a narrowing; doubled by an underrun that follows one so soon, up to the second.
const QUIET_NS: std::ops::RangeInclusive<u64> = 10 * NS_PER_SECOND..=80 * NS_PER_SECOND;
/// A device latency above this is not believed.
const MAX_LATENCY_NS: u64 = 500 * NS_PER_MS;
/// A device this late for a callback stands still: a sound server calls once for its first fill and then may take
/// most of a second to start, or a card is suspended.
const STALL_NS: u64 = 100 * NS_PER_MS;
/// Shortest sleep when a callback is later than foreseen; a quarter of its lateness if that is more.
const NAP_NS: u64 = 250_000;

/// Opens playback streams.
#[derive(Debug)]
pub(crate) struct Loudspeaker;

impl Kind for Loudspeaker {
    const END: End = End::Output;
    type Live = LivePlayback;

    fn open(device: &Device, shape: Shape, notes: Sender<Note>) -> Result<Opened<LivePlayback>, cpal::Error> {
        find::build_output(device, shape, notes, |facts| {
            let frames = facts.rate_hz * RING_SECONDS_TENTHS / 10;
            let (sound, ring) = RingBuffer::new(frames as usize * usize::from(shape.channels));
            let (stamps, told) = RingBuffer::new(STAMPS);
            let beat = Arc::new(AtomicU64::new(monotonic_ns()));
            let tap = PlaybackTap::new(ring, stamps, beat.clone(), facts.channels, shape.channels);
            LivePlayback::new(sound, told, facts, shape).map(|live| (tap, live, beat))
        })
    }
}

/// An open loudspeaker.
#[derive(Debug)]
pub(crate) struct LivePlayback {
    ring: Producer<f32>,
    stamps: rtrb::Consumer<Stamp>,
    facts: Facts,
    shape: Shape,
    channels: usize,
    convert: Option<Live>,
    pending: Vec<f32>,
    converted: Vec<f32>,
    track: Track,
    last: Stamp,
    /// Largest callbacks of late, as the lower edge of their negative.
    largest: LowerEdge,
    /// Frames of the callback before the last.
    before: u32,
    /// When which device frame is heard, by the device's latency reports. They overshoot now and then, as callbacks are
    /// late now and then, so they are followed in the same way.
    heard: Track,
    /// Device frames given to the ring.
    given: u64,
    pace: Pace,
    underruns: u64,
    /// Device frames for which nothing was there, not yet told.
    unheard: u64,
}

/// How far ahead the queue is filled.
#[derive(Debug)]
struct Pace {
    margin_ns: u64,
    lead_ns: u64,
    quiet_ns: u64,
    calm_since_ns: u64,
    underrun_at_ns: Option<u64>,
    narrowed_at_ns: u64,
}

impl Pace {
    fn new(now_ns: u64) -> Self {
        Self {
            margin_ns: *MARGIN_NS.start(),
            lead_ns: *LEAD_NS.start(),
            quiet_ns: *QUIET_NS.start(),
            calm_since_ns: now_ns,
            underrun_at_ns: None,
            narrowed_at_ns: 0,
        }
    }

    fn underrun(&mut self, now_ns: u64) {
        self.calm_since_ns = now_ns;
        let since_ns = self.underrun_at_ns.map_or(u64::MAX, |at| now_ns.saturating_sub(at));
        if since_ns < WIDEN_EVERY_NS {
            return;
        }
        self.underrun_at_ns = Some(now_ns);
        if now_ns.saturating_sub(self.narrowed_at_ns) < *QUIET_NS.start() {
            self.quiet_ns = (self.quiet_ns * 2).min(*QUIET_NS.end());
        } else if since_ns > HABIT_NS {
            return;
        }
        if self.lead_ns < *LEAD_NS.end() {
            self.lead_ns = (self.lead_ns + WIDEN_NS / 2).min(*LEAD_NS.end());
        } else {
            self.margin_ns = (self.margin_ns + WIDEN_NS).min(*MARGIN_NS.end());
        }
    }

    fn quiet(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.calm_since_ns) < self.quiet_ns {
            return;
        }
        self.calm_since_ns = now_ns;
        if self.margin_ns > *MARGIN_NS.start() {
            self.margin_ns -= (self.margin_ns / 4).max(NARROW_NS).min(self.margin_ns);
        } else if self.lead_ns > *LEAD_NS.start() {
            self.lead_ns = self.lead_ns.saturating_sub(NARROW_NS / 2).max(*LEAD_NS.start());
        } else {
            self.quiet_ns = *QUIET_NS.start();
            return;
        }
        self.narrowed_at_ns = now_ns;
    }
}

impl LivePlayback {
    fn new(
        ring: Producer<f32>,
        stamps: rtrb::Consumer<Stamp>,
        facts: &Facts,
        shape: Shape,
    ) -> Result<Self, cpal::Error> {
        let channels = usize::from(shape.channels);
        let convert =
            find::converter(facts, || Live::to_device(facts.rate_hz, shape.period, shape.channels))?;
        let most = convert.as_ref().map_or(0, Live::output_frames_max);
        Ok(Self {
            ring,
            stamps,
            facts: facts.clone(),
            shape,
            channels,
            convert,
            pending: Vec::with_capacity(shape.period as usize * channels * 2),
            converted: vec![0.0; most * channels],
            track: Track::new(facts.rate_hz),
            last: Stamp::default(),
            largest: LowerEdge::default(),
            before: 0,
            heard: Track::new(facts.rate_hz),
            given: 0,
            pace: Pace::new(monotonic_ns()),
            underruns: 0,
            unheard: 0,
        })
    }

    fn gone(&self) -> bool {
        self.ring.is_abandoned()
    }

    fn queued(&self) -> u64 {
        (self.ring.buffer().capacity().saturating_sub(self.ring.slots()) / self.channels) as u64
    }

    fn listen(&mut self, now_ns: u64) {
        while let Ok(stamp) = self.stamps.pop() {
            self.track.observe(stamp.frames, stamp.at_ns);
            // The first one fills the device's whole queue.
            if self.last.count > 0 {
                self.largest.observe(-f64::from(stamp.count), stamp.at_ns);
            }
            if stamp.lost > self.last.lost && self.given > 0 {
                // What was missing before the first sound is the device starting, not us being late.
                if self.last.frames > self.last.lost {
                    self.pace.underrun(stamp.at_ns);
                    self.underruns += 1;
                    self.unheard += stamp.lost - self.last.lost;
                }
            }
            self.underruns += stamp.starved.saturating_sub(self.last.starved);
            let latency = stamp.latency_ns.min(MAX_LATENCY_NS);
            self.heard.observe(stamp.frames - u64::from(stamp.count), stamp.at_ns + latency);
            self.before = self.last.count;
            self.last = stamp;
        }
        self.pace.quiet(now_ns);
    }

    /// Device frames of the largest callback to be expected.
    fn burst(&self) -> u64 {
        let largest = -self.largest.get();
        if largest.is_finite() && largest > 0.0 { largest as u64 } else { u64::from(self.facts.buffer) }
    }

    /// When the next callback is foreseen; it will not come earlier than the device's clock lets it.
    fn next_callback_ns(&self) -> u64 {
        self.track.time_of(self.last.frames + self.usual())
    }

    /// Device frames between this callback and the next: as many as it took, or, where it took several times what the one
    /// before did, to make up for lost time, as many as that.
    fn usual(&self) -> u64 {
        let caught_up = self.before > 0 && self.last.count.is_multiple_of(self.before);
        u64::from(if caught_up { self.before } else { self.last.count })
    }

    /// The device runs again: what it missed while it stood still is not our lateness.
    fn resume(&mut self, now_ns: u64) {
        self.listen(now_ns);
        (self.underruns, self.unheard) = (0, 0);
        self.pace = Pace::new(now_ns);
    }

    /// Since when the device stands still, if it does.
    fn stalled_since_ns(&self, now_ns: u64) -> Option<u64> {
        let due_ns = self.next_callback_ns();
        let patience_ns = STALL_NS.max(3 * frames_ns(u64::from(self.last.count), self.facts.rate_hz));
        (self.last.count > 0 && self.stamps.is_empty() && now_ns > due_ns + patience_ns).then_some(due_ns)
    }

    /// Frames at 48 kHz that are wanted now. Just what is short where callbacks are all alike, as more would be older when it
    /// is heard; else whole periods.
    fn space(&mut self, now_ns: u64) -> usize {
        self.listen(now_ns);
        let margin = ns_frames(self.pace.margin_ns, self.facts.rate_hz);
        let soon = now_ns + self.pace.lead_ns >= self.next_callback_ns();
        let level = if soon { self.burst() + margin } else { margin };
        let short = level.saturating_sub(self.queued());
        if self.convert.is_none() && self.last.count == self.before {
            return short as usize;
        }
        let period = u64::from(self.shape.period);
        let short_48k = (short * u64::from(RATE_HZ)).div_ceil(u64::from(self.facts.rate_hz));
        (short_48k.div_ceil(period) * period) as usize
    }

    fn ready_at_ns(&mut self, now_ns: u64) -> u64 {
        if self.space(now_ns) > 0 {
            return now_ns;
        }
        // Filled already for the callback that is foreseen: the one after it is next.
        let count = self.usual();
        [1, 2]
            .map(|ahead| {
                self.track.time_of(self.last.frames + ahead * count).saturating_sub(self.pace.lead_ns)
            })
            .into_iter()
            .find(|fill_at| *fill_at > now_ns)
            .unwrap_or_else(|| now_ns + NAP_NS.max(now_ns.saturating_sub(self.next_callback_ns()) / 4))
    }

    fn heard_at_ns(&self, now_ns: u64) -> u64 {
        let behind = self.convert.as_ref().map_or(0, Live::delay_ns)
            + super::super::clock::frames_to_ns((self.pending.len() / self.channels) as u64);
        let at = match self.last.count {
            0 => now_ns + frames_ns(self.queued() + u64::from(self.facts.buffer), self.facts.rate_hz),
            _ => self.heard.time_of(self.given + self.last.lost),
        };
        at.max(now_ns) + behind
    }

    fn write(&mut self, pcm: &[f32]) {
        let Some(convert) = &mut self.convert else {
            self.given += push(&mut self.ring, pcm, self.channels);
            return;
        };
        let period = self.shape.period as usize * self.channels;
        for part in pcm.chunks(period) {
            self.pending.extend_from_slice(part);
            if self.pending.len() >= period {
                let made = convert.convert(&self.pending[..period], &mut self.converted) * self.channels;
                self.given += push(&mut self.ring, &self.converted[..made], self.channels);
                self.pending.drain(..period);
            }
        }
    }
}

/// Queues whole frames; the caller has written half a second too much if some find no room, and they are dropped.
fn push(ring: &mut Producer<f32>, pcm: &[f32], channels: usize) -> u64 {
    let frames = (ring.slots() / channels).min(pcm.len() / channels);
    match pcm.get(..frames * channels).map(|pcm| ring.push_entire_slice(pcm)) {
        Some(Ok(())) => frames as u64,
        _ => 0,
    }
}

/// A loudspeaker that may come and go.
#[derive(Debug)]
pub(crate) struct DevicePlayback {
    live: Option<LivePlayback>,
    /// Open, before its first callback.
    starting: Option<LivePlayback>,
    arriving: Receiver<LivePlayback>,
    /// Runs while the device does not.
    idle: SimPlayback,
    shape: Shape,
    started: bool,
    pub(in super::super) xruns: Xruns,
    events: Events,
}

impl DevicePlayback {
    pub(crate) fn new(arriving: Receiver<LivePlayback>, shape: Shape, events: Events) -> Self {
        let idle = idle(monotonic_ns(), shape, &events);
        Self {
            live: None,
            starting: None,
            arriving,
            idle,
            shape,
            started: false,
            xruns: Xruns::new(End::Output),
            events,
        }
    }

    /// Who hears it. A device that is away will be heard as it was.
    pub(crate) fn reach(&self) -> Reach {
        self.live.as_ref().or(self.starting.as_ref()).map_or(Reach::Nowhere, |live| live.facts.reach.get())
    }

    /// Whether a device takes what is written.
    pub(crate) fn sounds(&self) -> bool {
        self.live.is_some()
    }

    pub(crate) fn ready_at_ns(&mut self, now_ns: u64) -> u64 {
        self.renew();
        match &mut self.live {
            Some(live) => live.ready_at_ns(now_ns),
            None => self.idle.ready_at_ns(),
        }
    }

    /// Frames at 48 kHz that the device played as silence since this was asked last, as nothing was there for them.
    pub(crate) fn take_unheard(&mut self) -> u32 {
        let Some(live) = &mut self.live else { return 0 };
        let frames = std::mem::take(&mut live.unheard) * u64::from(RATE_HZ) / u64::from(live.facts.rate_hz);
        u32::try_from(frames).unwrap_or(u32::MAX)
    }

    pub(crate) fn space(&mut self, now_ns: u64) -> usize {
        self.renew();
        let space = match &mut self.live {
            Some(live) => {
                let space = live.space(now_ns);
                self.xruns.add(std::mem::take(&mut live.underruns));
                if !self.started && live.last.frames > live.last.lost {
                    self.started = true;
                    let at_ns = live.heard.time_of(live.last.lost);
                    self.events.started(End::Output, at_ns, self.shape.channels, self.shape.period);
                }
                space
            }
            None => self.idle.space(now_ns),
        };
        self.xruns.tell(now_ns, &self.events);
        space
    }

    pub(crate) fn heard_at_ns(&mut self, now_ns: u64) -> u64 {
        match &mut self.live {
            Some(live) => {
                live.listen(now_ns);
                live.heard_at_ns(now_ns)
            }
            None => self.idle.heard_at_ns(),
        }
    }

    pub(crate) fn write(&mut self, pcm: &[f32]) {
        match &mut self.live {
            Some(live) => live.write(pcm),
            None => self.idle.write(pcm),
        }
    }

    /// Takes a device that has arrived; lets one go that has left.
    fn renew(&mut self) {
        if let Ok(live) = self.arriving.try_recv() {
            self.starting = Some(live);
        }
        // A device may take seconds from open to its first callback; what is written meanwhile would be stale.
        if self.starting.as_ref().is_some_and(|live| !live.stamps.is_empty()) {
            self.live = self.starting.take();
            if let Some(live) = &mut self.live {
                live.resume(monotonic_ns());
            }
        }
        let Some(live) = &self.live else { return };
        if live.gone() {
            self.live = None;
            self.idle = idle(monotonic_ns(), self.shape, &self.events);
        } else if let Some(since_ns) = live.stalled_since_ns(monotonic_ns()) {
            // Playing time passes all the same. Were it to stand still with the device, every voice would be heard
            // that much later from then on.
            self.starting = self.live.take();
            self.idle = idle(since_ns, self.shape, &self.events);
        }
    }
}

fn idle(since_ns: u64, shape: Shape, events: &Events) -> SimPlayback {
    SimPlayback::standing_in(since_ns, shape.period, shape.channels, events.clone())
}

#[cfg(test)]
mod tests {
    use super::super::SharedReach;
    use super::super::tap::PlaybackTap;
    use super::*;

    const T0: u64 = 9_000_000_000;
    const SHAPE: Shape = Shape { period: 120, channels: 1 };

    fn live(rate_hz: u32, buffer: u32) -> (PlaybackTap, LivePlayback) {
        let (sound, ring) = RingBuffer::new(rate_hz as usize / 2);
        let (stamps, told) = RingBuffer::new(STAMPS);
        let facts = Facts { rate_hz, channels: 1, buffer, reach: SharedReach::default() };
        let tap = PlaybackTap::new(ring, stamps, Arc::default(), 1, 1);
        let mut live = LivePlayback::new(sound, told, &facts, SHAPE).unwrap();
        live.pace = Pace::new(T0);
        (tap, live)
    }

    /// Callbacks of `count` frames on a device with 3 ms of latency; the media thread fills 0.5 ms before each.
    /// Returns what was heard.
    fn play(
        tap: &mut PlaybackTap,
        live: &mut LivePlayback,
        rate_hz: u32,
        count: u32,
        callbacks: u64,
    ) -> Vec<f32> {
        let mut heard = Vec::new();
        let mut out = vec![0.0f32; count as usize];
        for callback in 1..=callbacks {
            let at = T0 + frames_ns(callback * u64::from(count), rate_hz);
            let space = live.space(at - 500_000);
            live.write(&vec![0.5; space]);
            tap.fill(&mut out, at, 3 * NS_PER_MS);
            heard.extend_from_slice(&out);
        }
        heard
    }

    #[test]
    fn callbacks_of_one_period_are_fed_without_a_gap_and_with_nothing_in_hand() {
        let (mut tap, mut live) = live(48_000, 120);
        let heard = play(&mut tap, &mut live, 48_000, 120, 2_000);
        assert!(heard.iter().all(|s| *s == 0.5));
        assert_eq!((live.underruns, live.queued()), (0, 0));
    }

    #[test]
    fn a_callback_that_makes_up_for_lost_time_is_not_the_pace_and_longer_ones_that_stay_are() {
        let (mut tap, mut live) = live(48_000, 256);
        let mut frames = 0;
        let mut call = |live: &mut LivePlayback, count: u64| {
            frames += count;
            tap.fill(&mut vec![0.0f32; count as usize], T0 + frames_ns(frames, 48_000), 0);
            live.listen(T0);
            live.usual()
        };
        let paces = [256, 256, 512, 256, 512, 512, 512].map(|count| call(&mut live, count));
        assert_eq!(paces, [256, 256, 256, 256, 256, 512, 512]);
    }

    #[test]
    fn a_device_that_stands_still_after_its_first_fill_is_noticed_and_time_goes_on() {
        let (mut tap, mut live) = live(48_000, 120);
        play(&mut tap, &mut live, 48_000, 120, 10);
        live.listen(T0);
        let due = live.next_callback_ns();
        assert_eq!(live.stalled_since_ns(due + 50 * NS_PER_MS), None, "a late callback is no stall");
        assert_eq!(live.stalled_since_ns(due + 700 * NS_PER_MS), Some(due));
    }

    #[test]
    fn callbacks_of_odd_sizes_leave_less_than_one_period_in_hand() {
        for count in [24, 320, 441, 1_024] {
            let (mut tap, mut live) = live(48_000, count);
            let heard = play(&mut tap, &mut live, 48_000, count, 500);
            assert!(heard.iter().all(|s| *s == 0.5), "callbacks of {count}");
            assert!(live.queued() < 120, "{} frames in hand with callbacks of {count}", live.queued());
        }
    }

    #[test]
    fn a_44100_hz_device_is_fed_without_a_gap() {
        let (mut tap, mut live) = live(44_100, 441);
        let heard = play(&mut tap, &mut live, 44_100, 441, 500);
        assert_eq!(live.underruns, 0);
        assert!(heard[4_410..].iter().all(|s| (s - 0.5).abs() < 0.01));
    }

    #[test]
    fn the_next_sample_is_said_to_be_heard_after_the_queue_and_the_device() {
        let (mut tap, mut live) = live(48_000, 120);
        play(&mut tap, &mut live, 48_000, 120, 2_000);
        let last = T0 + frames_ns(2_000 * 120, 48_000);
        live.listen(last);
        // The callback at `last` has taken 120 frames that are heard from 3 ms later on; then comes the next sample.
        let expected = last + 3 * NS_PER_MS + 2_500_000;
        assert!(live.heard_at_ns(last).abs_diff(expected) < 50_000);
    }

    #[test]
    fn underruns_widen_once_a_stall_and_quiet_narrows_again() {
        let mut pace = Pace::new(T0);
        let stall = T0 + 2 * NS_PER_SECOND;
        pace.underrun(T0 + NS_PER_SECOND);
        assert_eq!((pace.lead_ns, pace.margin_ns), (NS_PER_MS, 0), "a lone one is forgiven");
        (0..50).for_each(|i| pace.underrun(stall + i * NS_PER_MS));
        assert_eq!((pace.lead_ns, pace.margin_ns), (1_500_000, 0));
        (1..40).for_each(|i| pace.underrun(stall + i * WIDEN_EVERY_NS));
        assert_eq!((pace.lead_ns, pace.margin_ns), (2 * NS_PER_MS, 38 * NS_PER_MS));
        let calm = stall + 4 * NS_PER_SECOND;
        (0..300).for_each(|s| pace.quiet(calm + s * NS_PER_SECOND));
        assert_eq!((pace.lead_ns, pace.margin_ns), (NS_PER_MS, 0));
    }
}
