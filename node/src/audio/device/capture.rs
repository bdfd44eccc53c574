//! The media thread's side of a microphone: callbacks of any size in, whole periods at 48 kHz out, each with the
//! time of its first sample. While the device is gone, silence goes on in its place.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender};

use rtrb::{Consumer, RingBuffer};

use super::super::card::SimCapture;
use super::super::clock::{NS_PER_MS, monotonic_ns};
use super::super::convert::Live;
use super::super::event::{End, Events, Xruns};
use super::find::{self, Device};
use super::keeper::{Kind, Note, Opened};
use super::tap::{CaptureTap, Stamp};
use super::track::{LowerEdge, Track};
use super::{Facts, Shape, frames_ns};

/// Sound that waits for a media thread that is away, seconds.
const RING_SECONDS: u32 = 1;
/// Callback reports that wait, at least [`RING_SECONDS`] of the fastest cards seen (2000 a second).
const STAMPS: usize = 4_096;
/// Most captured sound that is made up for: older is thrown away.
const MAX_BACKLOG_NS: u64 = 200 * NS_PER_MS;
/// A device latency above this is not believed.
const MAX_LATENCY_NS: f64 = 200e6;
/// First sleep when a callback is later than foreseen; each further one is twice as long…
const NAP_NS: u64 = 250_000;
/// …up to this.
const MAX_NAP_NS: u64 = 2 * NS_PER_MS;
/// The foreseen lateness moves up by this when a callback was not there yet…
const GUARD_UP_NS: u64 = 20_000;
/// …and down by this when it was.
const GUARD_DOWN_NS: u64 = 2_000;
const MAX_GUARD_NS: u64 = 2 * NS_PER_MS;

/// Opens capture streams.
#[derive(Debug)]
pub(crate) struct Microphone;

impl Kind for Microphone {
    const END: End = End::Input;
    type Live = LiveCapture;

    fn open(device: &Device, shape: Shape, notes: Sender<Note>) -> Result<Opened<LiveCapture>, cpal::Error> {
        find::build_input(device, shape, notes, |facts| {
            let (ring, sound) =
                RingBuffer::new((facts.rate_hz * RING_SECONDS) as usize * usize::from(shape.channels));
            let (stamps, told) = RingBuffer::new(STAMPS);
            let beat = Arc::new(AtomicU64::new(monotonic_ns()));
            let tap = CaptureTap::new(ring, stamps, beat.clone(), facts.channels, shape.channels);
            LiveCapture::new(sound, told, facts, shape).map(|live| (tap, live, beat))
        })
    }
}

/// An open microphone.
#[derive(Debug)]
pub(crate) struct LiveCapture {
    ring: Consumer<f32>,
    stamps: Consumer<Stamp>,
    facts: Facts,
    channels: usize,
    convert: Option<Live>,
    track: Track,
    latency: LowerEdge,
    last: Stamp,
    /// Device frames taken from the ring.
    taken: u64,
    guard_ns: u64,
    nap_ns: u64,
    raw: Vec<f32>,
    block: Vec<f32>,
}

impl LiveCapture {
    fn new(
        ring: Consumer<f32>,
        stamps: Consumer<Stamp>,
        facts: &Facts,
        shape: Shape,
    ) -> Result<Self, cpal::Error> {
        let channels = usize::from(shape.channels);
        let convert =
            find::converter(facts, || Live::from_device(facts.rate_hz, shape.period, shape.channels))?;
        let most = convert.as_ref().map_or(shape.period as usize, Live::input_frames_max);
        Ok(Self {
            ring,
            stamps,
            facts: facts.clone(),
            channels,
            convert,
            track: Track::new(facts.rate_hz),
            latency: LowerEdge::default(),
            last: Stamp::default(),
            taken: 0,
            guard_ns: 100_000,
            nap_ns: NAP_NS,
            raw: vec![0.0; most * channels],
            block: vec![0.0; shape.period as usize * channels],
        })
    }

    fn gone(&self) -> bool {
        self.ring.is_abandoned()
    }

    /// Device frames that the next period needs.
    fn needed(&self) -> usize {
        self.convert.as_ref().map_or(self.block.len() / self.channels, Live::input_frames)
    }

    fn waiting(&self) -> usize {
        self.ring.slots() / self.channels
    }

    fn listen(&mut self) {
        while let Ok(stamp) = self.stamps.pop() {
            self.last = stamp;
            self.track.observe(stamp.frames, stamp.at_ns);
            // Some hosts count the buffer itself as latency, some do not: what is beyond it lies before the device.
            let buffer = frames_ns(u64::from(stamp.count), self.facts.rate_hz);
            let beyond = stamp.latency_ns.saturating_sub(buffer) as f64;
            self.latency.observe(beyond.min(MAX_LATENCY_NS), stamp.at_ns);
        }
    }

    fn ready_at_ns(&mut self, now_ns: u64) -> u64 {
        self.listen();
        // Asked once: the callback may add to it at any moment.
        let short = self.needed().saturating_sub(self.waiting()) as u64;
        if short == 0 {
            return now_ns;
        }
        let count = u64::from(self.last.count.max(1));
        let callbacks = short.div_ceil(count);
        let foreseen = self.track.time_of(self.last.frames + callbacks * count) + self.guard_ns;
        if foreseen > now_ns {
            return foreseen;
        }
        if self.nap_ns == NAP_NS {
            self.guard_ns = (self.guard_ns + GUARD_UP_NS).min(MAX_GUARD_NS);
        }
        let nap_ns = self.nap_ns;
        self.nap_ns = (nap_ns * 2).min(MAX_NAP_NS);
        now_ns + nap_ns
    }

    /// The next period and the time of its first sample; how many were thrown away before it.
    fn read(&mut self) -> Option<(u64, u64)> {
        self.listen();
        let needed = self.needed();
        let waiting = self.waiting();
        let mut thrown = 0;
        let most = needed.max(super::ns_frames(MAX_BACKLOG_NS, self.facts.rate_hz) as usize);
        if waiting > most + needed {
            thrown = waiting - needed;
            if let Ok(chunk) = self.ring.read_chunk(thrown * self.channels) {
                chunk.commit_all();
            }
            self.taken += thrown as u64;
        }
        let raw = self.raw.get_mut(..needed * self.channels)?;
        self.ring.pop_entire_slice(raw).ok()?;
        self.guard_ns = self.guard_ns.saturating_sub(GUARD_DOWN_NS);
        self.nap_ns = NAP_NS;
        // Frames that found no room happened before everything in the ring that is read after a loss.
        let first = self.track.time_of(self.taken + self.last.lost);
        let latency = self.latency.get();
        let mut before = if latency.is_finite() { latency as u64 } else { 0 };
        self.taken += needed as u64;
        match &mut self.convert {
            None => self.block.copy_from_slice(raw),
            Some(convert) => {
                convert.convert(raw, &mut self.block);
                before += convert.delay_ns();
            }
        }
        Some((first.saturating_sub(before), (thrown / needed.max(1)) as u64))
    }
}

/// A microphone that may come and go.
#[derive(Debug)]
pub(crate) struct DeviceCapture {
    live: Option<LiveCapture>,
    /// Open, before its first sound.
    starting: Option<LiveCapture>,
    arriving: Receiver<LiveCapture>,
    /// Runs while the device does not.
    idle: SimCapture,
    shape: Shape,
    started: bool,
    pub(in super::super) xruns: Xruns,
    events: Events,
}

impl DeviceCapture {
    pub(crate) fn new(arriving: Receiver<LiveCapture>, shape: Shape, events: Events) -> Self {
        let idle = idle(shape, &events);
        Self {
            live: None,
            starting: None,
            arriving,
            idle,
            shape,
            started: false,
            xruns: Xruns::new(End::Input),
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

    pub(crate) fn read(&mut self, now_ns: u64) -> Option<(&[f32], u64)> {
        self.renew();
        self.xruns.tell(now_ns, &self.events);
        let Some(live) = &mut self.live else {
            return self.idle.read(now_ns);
        };
        let (at_ns, thrown) = live.read()?;
        self.xruns.add(thrown);
        if !self.started {
            self.started = true;
            self.events.started(End::Input, at_ns, self.shape.channels, self.shape.period);
        }
        Some((&live.block, at_ns))
    }

    /// Takes a device that has arrived; lets one go that has left, when all it gave is used.
    fn renew(&mut self) {
        if let Ok(live) = self.arriving.try_recv() {
            self.starting = Some(live);
        }
        // A device may take seconds from open to its first sound: silence goes on until then.
        if self.starting.as_ref().is_some_and(|live| live.waiting() > 0) {
            self.live = self.starting.take();
        }
        if self.live.as_ref().is_some_and(|live| live.gone() && live.waiting() < live.needed()) {
            self.live = None;
            self.idle = idle(self.shape, &self.events);
        }
    }
}

fn idle(shape: Shape, events: &Events) -> SimCapture {
    SimCapture::standing_in(monotonic_ns(), shape.period, shape.channels, events.clone())
}

#[cfg(test)]
mod tests {
    use super::super::SharedReach;
    use super::*;

    const T0: u64 = 9_000_000_000;

    fn live(rate_hz: u32) -> (CaptureTap, LiveCapture) {
        let (ring, sound) = RingBuffer::new(48_000);
        let (stamps, told) = RingBuffer::new(STAMPS);
        let facts = Facts { rate_hz, channels: 1, buffer: 120, reach: SharedReach::default() };
        let tap = CaptureTap::new(ring, stamps, Arc::default(), 1, 1);
        (tap, LiveCapture::new(sound, told, &facts, Shape { period: 120, channels: 1 }).unwrap())
    }

    #[test]
    fn callbacks_of_odd_sizes_become_whole_periods_with_smooth_times() {
        let (mut tap, mut live) = live(48_000);
        let (mut frames, mut read) = (0u64, 0u64);
        for (callback, size) in [320u64, 24, 160, 441, 7].into_iter().cycle().take(5_000).enumerate() {
            let data: Vec<f32> = (frames..frames + size).map(|i| (i % 1_000) as f32).collect();
            frames += size;
            let late = (callback as u64 * 7_919) % 900_000;
            tap.deliver(&data, T0 + frames_ns(frames, 48_000) + late, 0);
            while let Some((at, thrown)) = live.read() {
                assert_eq!(thrown, 0);
                assert_eq!(live.block[0], (read % 1_000) as f32);
                if read > 96_000 {
                    let error = at.abs_diff(T0 + frames_ns(read, 48_000));
                    assert!(error < 200_000, "{error} ns at frame {read}");
                }
                read += 120;
            }
        }
        assert!(frames - read < 120);
    }

    #[test]
    fn after_a_long_absence_the_oldest_goes_and_the_time_is_right() {
        let (mut tap, mut live) = live(48_000);
        for period in 1..=300u64 {
            tap.deliver(&[period as f32; 120], T0 + period * 2_500_000, 0);
        }
        let (at, thrown) = live.read().unwrap();
        assert_eq!((live.block[0], thrown), (300.0, 299));
        assert!(at.abs_diff(T0 + 299 * 2_500_000) < 1_000, "{at}");
    }

    #[test]
    fn a_44100_hz_device_gives_48_khz_periods_in_step_with_the_clock() {
        let (mut tap, mut live) = live(44_100);
        let mut periods = 0u64;
        for callback in 1..=1_000u64 {
            tap.deliver(&[0.1f32; 441], T0 + callback * 10_000_000, 0);
            while let Some((at, _)) = live.read() {
                if periods > 800 {
                    let expected = T0 + periods * 2_500_000;
                    assert!(at.abs_diff(expected) < 1_500_000, "{} ns", at.abs_diff(expected));
                }
                periods += 1;
            }
        }
        assert!(periods.abs_diff(4_000) <= 2, "{periods}");
    }
}
