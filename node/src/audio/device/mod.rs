//! Real sound cards. Five parts: [`find`] names them, [`keeper`] opens them and opens them again, [`pulse`] speaks to
//! PulseAudio and PipeWire, [`jack`] to JACK, cpal to the rest, [`tap`] is what runs inside their callbacks, [`capture`] and
//! [`playback`] are the media thread's side. [`track`] makes smooth time out of callback times.

mod capture;
mod find;
mod jack;
mod keeper;
mod playback;
mod pulse;
mod reach;
mod tap;
mod track;

pub use find::{DeviceInfo, list_devices};
pub use reach::Reach;

pub(crate) use capture::{DeviceCapture, LiveCapture, Microphone};
pub(crate) use find::Wanted;
pub(crate) use keeper::{Keeper, Opening, Outcome, keep};
pub(crate) use playback::{DevicePlayback, LivePlayback, Loudspeaker};
pub(crate) use reach::SharedReach;

/// How sound leaves and enters the media thread: always 48 kHz.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Frames that are handed over at once.
    pub period: u32,
    /// 1 or 2.
    pub channels: u16,
}

/// A device as it was opened.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Its own rate, hertz.
    pub rate_hz: u32,
    /// Its own channels.
    pub channels: u16,
    /// Frames a callback that were asked for, at its own rate.
    pub buffer: u32,
    /// Who hears what it plays.
    pub reach: SharedReach,
}

/// Nanoseconds that `frames` last at `rate_hz`.
fn frames_ns(frames: u64, rate_hz: u32) -> u64 {
    (u128::from(frames) * 1_000_000_000 / u128::from(rate_hz.max(1))) as u64
}

/// Whole frames at `rate_hz` in `ns`.
fn ns_frames(ns: u64, rate_hz: u32) -> u64 {
    (u128::from(ns) * u128::from(rate_hz) / 1_000_000_000) as u64
}
