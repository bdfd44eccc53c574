//! The two ends that the media thread holds. Each is a simulated card or a real device; the thread sees no difference.

use std::time::Duration;

use super::card::{SimCapture, SimPlayback, Sink};
use super::clock::monotonic_ns;
use super::device::{DeviceCapture, DevicePlayback, Keeper, Reach};
use super::error::Error;

/// One captured period.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block<'a> {
    /// Interleaved samples at 48 kHz, full scale ±1: period × channels.
    pub pcm: &'a [f32],
    /// CLOCK_MONOTONIC nanoseconds at which its first sample was in the air.
    pub captured_at_ns: u64,
}

/// The capturing end.
#[derive(Debug)]
pub struct CaptureEnd(Capture);

#[derive(Debug)]
enum Capture {
    Sim(SimCapture),
    Device(Box<DeviceCapture>, #[allow(dead_code, reason = "holds the device open")] Keeper),
}

impl CaptureEnd {
    pub(super) fn simulated(card: SimCapture) -> Self {
        Self(Capture::Sim(card))
    }

    pub(super) fn device(device: DeviceCapture, keeper: Keeper) -> Self {
        Self(Capture::Device(Box::new(device), keeper))
    }

    /// Lets a `file:` input that waits for the first peer begin with the next period. Otherwise nothing happens.
    pub fn start(&mut self) {
        if let Capture::Sim(card) = &mut self.0 {
            card.start();
        }
    }

    /// The next complete period, if there is one. Call until there is none.
    pub fn read(&mut self) -> Option<Block<'_>> {
        let now_ns = monotonic_ns();
        let (pcm, captured_at_ns) = match &mut self.0 {
            Capture::Sim(card) => card.read(now_ns),
            Capture::Device(device, _) => device.read(now_ns),
        }?;
        Some(Block { pcm, captured_at_ns })
    }

    /// Periods lost so far because nobody read them.
    pub fn xruns(&self) -> u64 {
        match &self.0 {
            Capture::Sim(card) => card.xruns.total(),
            Capture::Device(device, _) => device.xruns.total(),
        }
    }

    pub(super) fn ready_at_ns(&mut self, now_ns: u64) -> u64 {
        match &mut self.0 {
            Capture::Sim(card) => card.ready_at_ns(),
            Capture::Device(device, _) => device.ready_at_ns(now_ns),
        }
    }
}

/// The playing end.
#[derive(Debug)]
pub struct PlaybackEnd(Playback);

#[derive(Debug)]
enum Playback {
    Sim(SimPlayback),
    Device(Box<DevicePlayback>, #[allow(dead_code, reason = "holds the device open")] Keeper),
}

impl PlaybackEnd {
    pub(super) fn simulated(card: SimPlayback) -> Self {
        Self(Playback::Sim(card))
    }

    pub(super) fn device(device: DevicePlayback, keeper: Keeper) -> Self {
        Self(Playback::Device(Box::new(device), keeper))
    }

    /// Frames (samples per channel) that the device went on without, since this was asked last: they were due and not there.
    /// What is written next is heard so much later than it would have been.
    pub fn take_unheard(&mut self) -> u32 {
        match &mut self.0 {
            Playback::Sim(_) => 0,
            Playback::Device(device, _) => device.take_unheard(),
        }
    }

    /// Frames (samples per channel) that are wanted now, 0 if there is nothing to do. A multiple of the period, except for
    /// a device at 48 kHz whose callbacks are all alike.
    pub fn space(&mut self) -> usize {
        let now_ns = monotonic_ns();
        match &mut self.0 {
            Playback::Sim(card) => card.space(now_ns),
            Playback::Device(device, _) => device.space(now_ns),
        }
    }

    /// Plays interleaved samples at 48 kHz after all that was written before. Never waits. Whole frames; normally
    /// one period, or all of [`PlaybackEnd::space`]. More is queued and delays what follows.
    pub fn write(&mut self, pcm: &[f32]) {
        match &mut self.0 {
            Playback::Sim(card) => card.write(pcm),
            Playback::Device(device, _) => device.write(pcm),
        }
    }

    /// From now to when the next sample written is heard. Zero for a simulated card that is written after its tick:
    /// there the file position says when it was heard.
    pub fn delay(&mut self) -> Duration {
        let now_ns = monotonic_ns();
        Duration::from_nanos(self.heard_at(now_ns).saturating_sub(now_ns))
    }

    /// CLOCK_MONOTONIC nanoseconds at which the next sample written is heard. Exact for a simulated card, where it
    /// may lie in the past; for a device as well as its latency report is.
    pub fn heard_at_ns(&mut self) -> u64 {
        self.heard_at(monotonic_ns())
    }

    /// Whether what is written will be heard: by a device that is open and has begun, or a simulated card.
    pub fn sounds(&self) -> bool {
        match &self.0 {
            Playback::Sim(_) => true,
            Playback::Device(device, _) => device.sounds(),
        }
    }

    /// Who hears what is played, as far as the device says; nobody while it is away.
    pub fn reach(&self) -> Reach {
        match &self.0 {
            Playback::Sim(_) => Reach::Nowhere,
            Playback::Device(device, _) => device.reach(),
        }
    }

    /// Times that sound was missing so far: periods for a simulated card, callbacks for a device.
    pub fn xruns(&self) -> u64 {
        match &self.0 {
            Playback::Sim(card) => card.xruns.total(),
            Playback::Device(device, _) => device.xruns.total(),
        }
    }

    pub(super) fn ready_at_ns(&mut self, now_ns: u64) -> u64 {
        match &mut self.0 {
            Playback::Sim(card) => card.ready_at_ns(),
            Playback::Device(device, _) => device.ready_at_ns(now_ns),
        }
    }

    pub(super) fn finish(&mut self) -> Result<(), Error> {
        match &mut self.0 {
            Playback::Sim(card) => card.take_sink().map_or(Ok(()), Sink::finish),
            Playback::Device(..) => Ok(()),
        }
    }

    fn heard_at(&mut self, now_ns: u64) -> u64 {
        match &mut self.0 {
            Playback::Sim(card) => card.heard_at_ns(),
            Playback::Device(device, _) => device.heard_at_ns(now_ns),
        }
    }
}
