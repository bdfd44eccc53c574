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
use super::find;
use super::keeper::{Kind, Note, Opened};
use super::tap::{PlaybackTap, Stamp};
use super::track::{LowerEdge, Track};
use super::{Facts, Shape, frames_ns, ns_frames};

/// Most sound that can be queued in front of a device.
const RING_SECONDS_TENTHS: u32 = 5;
const STAMPS: usize = 4_096;
/// Least and most sound kept beyond what the next callback takes.
const MARGIN_NS: std::ops::RangeInclusive<u64> = 0..=40 * NS_PER_MS;
/// Least and most time before a foreseen callback at which the queue is filled.
const LEAD_NS: std::ops::RangeInclusive<u64> = NS_PER_MS..=2 * NS_PER_MS;
/// An underrun adds half of this to the lead, which costs little; all of it to the margin once the lead is at its most.
const WIDEN_NS: u64 = NS_PER_MS;
/// Quiet time takes this from the margin, then half of it from the lead.
const NARROW_NS: u64 = 500_000;
/// Quiet time before the first narrowing; doubled by each underrun, up to the second.
const QUIET_NS: std::ops::RangeInclusive<u64> = 10 * NS_PER_SECOND..=320 * NS_PER_SECOND;
/// A device latency above this is not believed.
const MAX_LATENCY_NS: u64 = 500 * NS_PER_MS;
/// Share of each new latency report in the estimate.
const SMOOTHING: f64 = 1.0 / 64.0;
/// Difference at which the estimate starts anew.
const JUMP_NS: f64 = 50e6;
/// Shortest sleep when a callback is later than foreseen.
const NAP_NS: u64 = 250_000;

/// Opens playback streams.
#[derive(Debug)]
pub(crate) struct Loudspeaker;

impl Kind for Loudspeaker {
    const END: End = End::Output;
    type Live = LivePlayback;

    fn open(
        device: &cpal::Device,
        shape: Shape,
        notes: Sender<Note>,
    ) -> Result<Opened<LivePlayback>, cpal::Error> {
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
    /// When device frame 0 was heard, on the track's terms.
    heard_offset: Option<f64>,
    /// Device frames given to the ring.
    given: u64,
    pace: Pace,
    underruns: u64,
}

/// How far ahead the queue is filled.
#[derive(Debug)]
struct Pace {
    margin_ns: u64,
    lead_ns: u64,
    quiet_ns: u64,
    calm_since_ns: u64,
}

impl Pace {
    fn new(now_ns: u64) -> Self {
        Self {
            margin_ns: *MARGIN_NS.start(),
            lead_ns: *LEAD_NS.start(),
            quiet_ns: *QUIET_NS.start(),
            calm_since_ns: now_ns,
        }
    }

    fn underrun(&mut self, now_ns: u64) {
        if self.lead_ns < *LEAD_NS.end() {
            self.lead_ns = (self.lead_ns + WIDEN_NS / 2).min(*LEAD_NS.end());
        } else {
            self.margin_ns = (self.margin_ns + WIDEN_NS).min(*MARGIN_NS.end());
        }
        self.quiet_ns = (self.quiet_ns * 2).min(*QUIET_NS.end());
        self.calm_since_ns = now_ns;
    }

    fn quiet(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.calm_since_ns) >= self.quiet_ns {
            if self.margin_ns > *MARGIN_NS.start() {
                self.margin_ns = self.margin_ns.saturating_sub(NARROW_NS).max(*MARGIN_NS.start());
            } else {
                self.lead_ns = self.lead_ns.saturating_sub(NARROW_NS / 2).max(*LEAD_NS.start());
            }
            self.calm_since_ns = now_ns;
        }
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
            heard_offset: None,
            given: 0,
            pace: Pace::new(monotonic_ns()),
            underruns: 0,
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
            self.largest.observe(-f64::from(stamp.count), stamp.at_ns);
            if stamp.lost > self.last.lost && self.given > 0 {
                // What was missing before the first sound is the device starting, not us being late.
                if self.last.frames > self.last.lost {
                    self.pace.underrun(stamp.at_ns);
                    self.underruns += 1;
                }
            }
            let begins = (stamp.frames - u64::from(stamp.count)) as f64;
            let latency = stamp.latency_ns.min(MAX_LATENCY_NS);
            let heard = stamp.at_ns as f64 + latency as f64 - begins * 1e9 / f64::from(self.facts.rate_hz);
            self.heard_offset = Some(match self.heard_offset {
                Some(known) if (heard - known).abs() < JUMP_NS => known + (heard - known) * SMOOTHING,
                _ => heard,
            });
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
        self.track.time_of(self.last.frames + u64::from(self.last.count))
    }

    /// Frames at 48 kHz that are wanted now, whole periods.
    fn space(&mut self, now_ns: u64) -> usize {
        self.listen(now_ns);
        let margin = ns_frames(self.pace.margin_ns, self.facts.rate_hz);
        let soon = now_ns + self.pace.lead_ns >= self.next_callback_ns();
        let level = if soon { self.burst() + margin } else { margin };
        let short = level.saturating_sub(self.queued());
        let period = u64::from(self.shape.period);
        let short_48k = (short * u64::from(RATE_HZ)).div_ceil(u64::from(self.facts.rate_hz));
        (short_48k.div_ceil(period) * period) as usize
    }

    fn ready_at_ns(&mut self, now_ns: u64) -> u64 {
        if self.space(now_ns) > 0 {
            return now_ns;
        }
        // Filled already for the callback that is foreseen: the one after it is next.
        let count = u64::from(self.last.count);
        [1, 2]
            .map(|ahead| {
                self.track.time_of(self.last.frames + ahead * count).saturating_sub(self.pace.lead_ns)
            })
            .into_iter()
            .find(|fill_at| *fill_at > now_ns)
            .unwrap_or(now_ns + NAP_NS)
    }

    fn heard_at_ns(&self, now_ns: u64) -> u64 {
        let behind = self.convert.as_ref().map_or(0, Live::delay_ns)
            + super::super::clock::frames_to_ns((self.pending.len() / self.channels) as u64);
        let position = (self.given + self.last.lost) as f64 * 1e9 / f64::from(self.facts.rate_hz);
        let at = match self.heard_offset {
            Some(offset) => (offset + position) as u64,
            None => now_ns + frames_ns(self.queued() + u64::from(self.facts.buffer), self.facts.rate_hz),
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
        let idle = idle(shape, &events);
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

    pub(crate) fn ready_at_ns(&mut self, now_ns: u64) -> u64 {
        self.renew();
        match &mut self.live {
            Some(live) => live.ready_at_ns(now_ns),
            None => self.idle.ready_at_ns(),
        }
    }

    pub(crate) fn space(&mut self, now_ns: u64) -> usize {
        self.renew();
        let space = match &mut self.live {
            Some(live) => {
                let space = live.space(now_ns);
                self.xruns.add(std::mem::take(&mut live.underruns));
                if !self.started && live.last.frames > live.last.lost {
                    self.started = true;
                    let at_ns = live.heard_offset.map_or(now_ns, |offset| {
                        (offset + live.last.lost as f64 * 1e9 / f64::from(live.facts.rate_hz)) as u64
                    });
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
        }
        if self.live.as_ref().is_some_and(LivePlayback::gone) {
            self.live = None;
            self.idle = idle(self.shape, &self.events);
        }
    }
}

fn idle(shape: Shape, events: &Events) -> SimPlayback {
    SimPlayback::standing_in(monotonic_ns(), shape.period, shape.channels, events.clone())
}
