//! The sound edge: microphones, loudspeakers, and what stands in for them, behind one clock and one pair of ends.
//!
//! 1. [`Audio::open`] opens both ends; real devices run callbacks of their own from then on.
//! 2. The media thread calls [`Audio::wait`], then reads [`CaptureEnd`] until it is empty and writes [`PlaybackEnd`]
//!    until it wants no more. Everything it sees is 48 kHz floating point in periods of one length.
//! 3. [`Audio::finish`] closes a recording.
//!
//! **Time.** Captured sound carries the CLOCK_MONOTONIC time of its first sample, played sound can be asked when it is
//! heard. Simulated cards (`file:`, `tone:`, `silence`, `null`) are exact by definition; see `card`. Devices are
//! followed by the earliest of their callbacks; see `device/track`.
//!
//! **Threads.** Simulated cards have none: their clock is the media thread's own wait. A recording has a writer thread,
//! a device end a keeper thread, and callbacks belong to the sound system. Callbacks make no system call, so nobody
//! wakes the media thread: it sleeps until the next callback is foreseen.

mod card;
mod clock;
mod convert;
mod device;
mod ends;
mod error;
mod event;
mod mirror;
mod pipe;
mod source;
mod spec;
mod switch;
mod voice;
mod wav;

pub use card::MAX_LATE_FRAMES;
pub use clock::{RATE_HZ, monotonic_ns};
pub use device::{DeviceInfo, Reach, list_devices};
pub use ends::{Block, CaptureEnd, PlaybackEnd};
pub use error::Error;
pub use event::{AudioEvent, End, MAX_EVENTS};
pub use mirror::MAX_MIRROR;
pub use pipe::{Format as PipeFormat, MAX_AHEAD_MS, MAX_BEHIND_MS, PipeSpec};
pub use spec::{InputSpec, InputStart, MAX_TONE_HZ, MIN_TONE_HZ, OutputSpec, SpecError};
pub use switch::EndOpener;
pub(crate) use voice::echo_lag;
pub use voice::{Switch, VoiceActive, VoiceChoice, VoiceProcessor};
pub use wav::{LoadError, MAX_CLIP_SECONDS, MAX_RATE_HZ, MAX_RECORDING_BYTES, MIN_RATE_HZ};

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use card::{SimCapture, SimPlayback};
use clock::sleep_until;
use device::{Loudspeaker, Microphone, Outcome, Shape, keep};
use event::Events;
use source::Source;

/// Shortest period, frames: 0.5 ms.
pub const MIN_PERIOD: u32 = 24;
/// Longest period, frames: 60 ms, the longest Opus frame of our streams.
pub const MAX_PERIOD: u32 = 2_880;

/// How sound enters and leaves.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioConfig {
    /// Where the voice comes from. Default: the system's microphone.
    pub input: InputSpec,
    /// Where the others go. Default: the system's loudspeaker.
    pub output: OutputSpec,
    /// 1 (default) or 2, for both ends.
    pub channels: u16,
    /// Frames handed over at once, [`MIN_PERIOD`] to [`MAX_PERIOD`]. Default 120 (2.5 ms). Twice the period costs one
    /// period of delay at each end and saves half of the wake-ups.
    pub period: u32,
    /// When a `file:` input begins.
    pub input_start: InputStart,
}

impl Default for AudioConfig {
    fn default() -> Self {
        Self {
            input: InputSpec::default(),
            output: OutputSpec::default(),
            channels: 1,
            period: 120,
            input_start: InputStart::default(),
        }
    }
}

/// Both ends, open. Owned by the media thread; may be opened on another and moved there.
#[derive(Debug)]
pub struct Audio {
    /// The capturing end.
    pub capture: CaptureEnd,
    /// The playing end.
    pub playback: PlaybackEnd,
    /// What happens, at most [`MAX_EVENTS`] unread.
    pub events: Receiver<AudioEvent>,
    opener: EndOpener,
    sharp: bool,
}

impl Audio {
    /// Opens both ends. Simulated ends share one clock, whose period 0 begins when this returns.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::hint`] says what to do. Nothing stays open and no file has been touched, except that a
    /// recording is created last.
    pub fn open(config: AudioConfig) -> Result<Self, Error> {
        let (audio, devices) = Self::begin(config)?;
        devices.wait().map(|()| audio)
    }

    /// As [`Audio::open`], but does not wait for the devices: the ends work from now on, with silence and unheard until
    /// theirs is open. A call can be set up meanwhile.
    ///
    /// # Errors
    /// As [`Audio::open`]; of a device only where there is no thread to open it on.
    pub fn begin(config: AudioConfig) -> Result<(Self, OpeningDevices), Error> {
        check(&config)?;
        let (events, news) = Events::new();
        let shape = Shape { period: config.period, channels: config.channels };
        let opener = EndOpener { shape, events: events.clone() };
        let source = switch::source(&config.input, config.channels, config.input_start)?;
        // Both at once: a sound server may take its time for each.
        let microphone = switch::microphone(&config.input)
            .map(|wanted| keep::<Microphone>(wanted, shape, events.clone()))
            .transpose()?;
        let loudspeaker = switch::loudspeaker(&config.output)
            .map(|wanted| keep::<Loudspeaker>(wanted, shape, events.clone()))
            .transpose()?;
        let mut devices = OpeningDevices(Vec::new());
        let microphone = microphone.map(|opening| {
            let (end, outcome) = opener.captured(opening);
            devices.0.push(outcome);
            end
        });
        if loudspeaker.is_none() && !matches!(config.output, OutputSpec::Null) {
            // What is played into is touched only where there is something to hear.
            std::mem::replace(&mut devices, OpeningDevices(Vec::new())).wait()?;
        }
        let sink = switch::sink(&config.output, config.channels, &events)?;
        let t0_ns = monotonic_ns();
        let capture = microphone.unwrap_or_else(|| {
            let source = source.unwrap_or(Source::Silence);
            let card = SimCapture::new(source, t0_ns, config.period, config.channels, events.clone());
            CaptureEnd::simulated(card)
        });
        let playback = match loudspeaker {
            Some(opening) => {
                let (end, outcome) = opener.played(opening);
                devices.0.push(outcome);
                end
            }
            None => {
                PlaybackEnd::simulated(SimPlayback::new(sink, t0_ns, config.period, config.channels, events))
            }
        };
        Ok((Self { capture, playback, events: news, opener, sharp: false }, devices))
    }

    /// A sound card before a mirror: what is played is captured again, `after` so long. Both ends share one clock.
    ///
    /// # Errors
    /// [`Error::Range`] for a period, a channel count or a time ([`MAX_MIRROR`]) out of range.
    pub fn mirror(period: u32, channels: u16, after: Duration) -> Result<Self, Error> {
        let config = AudioConfig {
            input: InputSpec::Silence,
            output: OutputSpec::Null,
            channels,
            period,
            input_start: InputStart::Now,
        };
        let mut audio = Self::open(config)?;
        let (glass, reflection) = mirror::mirror(channels, after)?;
        let (t0_ns, events) = (monotonic_ns(), audio.opener.events.clone());
        let source = Source::Mirror(reflection);
        audio.capture =
            CaptureEnd::simulated(SimCapture::new(source, t0_ns, period, channels, events.clone()));
        audio.playback = PlaybackEnd::simulated(SimPlayback::before(glass, t0_ns, period, channels, events));
        Ok(audio)
    }

    /// Frames handed over at once.
    pub fn period(&self) -> u32 {
        self.opener.shape.period
    }

    /// What opens other ends for this call, on any thread. They take the place of [`Audio::capture`] and
    /// [`Audio::playback`]; dropping the old ones may take a second, so it is done elsewhere than on the media thread.
    pub fn opener(&self) -> EndOpener {
        self.opener.clone()
    }

    /// Sleeps until capture has a period, playback wants one, `max` has passed, or somebody unparks the thread.
    pub fn wait(&mut self, max: Duration) {
        if !self.sharp {
            // The kernel lets timers slip by 50 µs to save power; a fiftieth of a period is better spent on the call.
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
            self.sharp = true;
        }
        let mut now_ns = monotonic_ns();
        let deadline_ns = now_ns.saturating_add(u64::try_from(max.as_nanos()).unwrap_or(u64::MAX));
        while now_ns < deadline_ns {
            let next_ns = self.capture.ready_at_ns(now_ns).min(self.playback.ready_at_ns(now_ns));
            if next_ns <= now_ns {
                return;
            }
            let until_ns = next_ns.min(deadline_ns);
            sleep_until(until_ns);
            now_ns = monotonic_ns();
            if now_ns < until_ns {
                return;
            }
        }
    }

    /// Closes both ends and completes a recording. Dropping does the same and says nothing.
    ///
    /// # Errors
    /// [`Error::Unfinished`] if the disk did not take the last of a recording within a second.
    pub fn finish(mut self) -> Result<(), Error> {
        self.playback.finish()
    }
}

/// Devices that [`Audio::begin`] opens.
#[derive(Debug)]
pub struct OpeningDevices(Vec<Outcome>);

impl OpeningDevices {
    /// Waits until all of them are open.
    ///
    /// # Errors
    /// Why one cannot be opened; its end stays silent.
    pub fn wait(self) -> Result<(), Error> {
        self.0.into_iter().try_for_each(Outcome::wait)
    }
}

fn check(config: &AudioConfig) -> Result<(), Error> {
    if !(MIN_PERIOD..=MAX_PERIOD).contains(&config.period) {
        let allowed = format!("{MIN_PERIOD} to {MAX_PERIOD} frames");
        return Err(Error::Range { what: "a sound period", value: config.period, allowed });
    }
    if !(1..=2).contains(&config.channels) {
        return Err(Error::Range {
            what: "a channel count",
            value: config.channels.into(),
            allowed: "1 or 2".into(),
        });
    }
    if let InputSpec::Tone(hz) = config.input
        && !(MIN_TONE_HZ..=MAX_TONE_HZ).contains(&hz)
    {
        return Err(SpecError::Tone { text: config.input.to_string() }.into());
    }
    if let (InputSpec::File(input), OutputSpec::File(output)) = (&config.input, &config.output)
        && same_file(input, output)
    {
        return Err(Error::SameFile { path: output.clone() });
    }
    Ok(())
}

fn same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod allocations;
#[cfg(all(test, target_os = "linux"))]
mod strictly;
#[cfg(test)]
mod tests;
