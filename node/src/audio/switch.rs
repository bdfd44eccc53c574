//! Opens one end by itself: for [`Audio::open`](super::Audio::open), and for another end while a call goes on.

use super::card::{SimCapture, SimPlayback, Sink};
use super::clock::monotonic_ns;
use super::device::{
    DeviceCapture, DevicePlayback, LiveCapture, LivePlayback, Loudspeaker, Microphone, Opening, Outcome,
    Shape, Wanted, keep,
};
use super::event::{End, Events};
use super::pipe::{PipeSink, PipeSource};
use super::source::Source;
use super::wav::Recording;
use super::{CaptureEnd, Error, InputSpec, InputStart, OutputSpec, PlaybackEnd, wav};

/// Opens ends of the same period and channels for a call that goes on. Waits for sound systems: not for the media thread.
#[derive(Debug, Clone)]
pub struct EndOpener {
    pub(super) shape: Shape,
    pub(super) events: Events,
}

impl EndOpener {
    /// The same, for an order with this number: whether a device that tells that it was opened is still wanted, whoever
    /// counts the orders knows.
    #[must_use]
    pub fn of_order(mut self, order: u64) -> Self {
        self.events.order = order;
        self
    }

    /// Another capturing end. A `file:` begins at once.
    ///
    /// # Errors
    /// As [`Audio::open`](super::Audio::open); the end in use is not touched.
    pub fn capture(&self, input: &InputSpec) -> Result<CaptureEnd, Error> {
        let Shape { period, channels } = self.shape;
        if let Some(wanted) = microphone(input) {
            let opening = keep::<Microphone>(wanted, self.shape, self.events.clone())?;
            let (end, outcome) = self.captured(opening);
            return outcome.wait().map(|()| end);
        }
        let source = source(input, channels, InputStart::Now)?.unwrap_or(Source::Silence);
        Ok(CaptureEnd::simulated(SimCapture::new(
            source,
            monotonic_ns(),
            period,
            channels,
            self.events.clone(),
        )))
    }

    /// Another playing end.
    ///
    /// # Errors
    /// As [`Audio::open`](super::Audio::open); the end in use is not touched.
    pub fn playback(&self, output: &OutputSpec) -> Result<PlaybackEnd, Error> {
        let Shape { period, channels } = self.shape;
        if let Some(wanted) = loudspeaker(output) {
            let opening = keep::<Loudspeaker>(wanted, self.shape, self.events.clone())?;
            let (end, outcome) = self.played(opening);
            return outcome.wait().map(|()| end);
        }
        let sink = sink(output, channels, &self.events)?;
        Ok(PlaybackEnd::simulated(SimPlayback::new(
            sink,
            monotonic_ns(),
            period,
            channels,
            self.events.clone(),
        )))
    }

    /// The end of a microphone that is being opened: silence until it is.
    pub(super) fn captured(&self, opening: Opening<LiveCapture>) -> (CaptureEnd, Outcome) {
        let Opening { keeper, arriving, outcome } = opening;
        (CaptureEnd::device(DeviceCapture::new(arriving, self.shape, self.events.clone()), keeper), outcome)
    }

    /// The end of a loudspeaker that is being opened: heard by nobody until it is.
    pub(super) fn played(&self, opening: Opening<LivePlayback>) -> (PlaybackEnd, Outcome) {
        let Opening { keeper, arriving, outcome } = opening;
        (PlaybackEnd::device(DevicePlayback::new(arriving, self.shape, self.events.clone()), keeper), outcome)
    }
}

/// What a simulated card captures; `None` where a device is meant.
pub(super) fn source(input: &InputSpec, channels: u16, start: InputStart) -> Result<Option<Source>, Error> {
    Ok(match input {
        InputSpec::Silence => Some(Source::Silence),
        InputSpec::Tone(hz) => Some(Source::tone(*hz)),
        InputSpec::File(path) => {
            let pcm =
                wav::load(path, channels).map_err(|source| Error::Input { path: path.clone(), source })?;
            Some(Source::clip(pcm, start == InputStart::FirstPeer))
        }
        InputSpec::Pipe(spec) => {
            Some(Source::Pipe(PipeSource::open(spec, channels).map_err(|source| Error::Pipe {
                end: End::Input,
                path: spec.path.clone(),
                source,
            })?))
        }
        InputSpec::Default | InputSpec::Device(_) => None,
    })
}

/// The device that is meant, if one is.
pub(super) fn microphone(input: &InputSpec) -> Option<Wanted> {
    match input {
        InputSpec::Default => Some(Wanted::Default),
        InputSpec::Device(name) => Some(Wanted::Named(name.clone())),
        _ => None,
    }
}

/// The device that is meant, if one is.
pub(super) fn loudspeaker(output: &OutputSpec) -> Option<Wanted> {
    match output {
        OutputSpec::Default => Some(Wanted::Default),
        OutputSpec::Device(name) => Some(Wanted::Named(name.clone())),
        OutputSpec::File(_) | OutputSpec::Pipe(_) | OutputSpec::Null => None,
    }
}

/// What a simulated card plays into, if anything; a recording's file is created.
pub(super) fn sink(output: &OutputSpec, channels: u16, events: &Events) -> Result<Option<Sink>, Error> {
    match output {
        OutputSpec::File(path) => Recording::create(path, channels, events.clone())
            .map(|recording| Some(Sink::File(recording)))
            .map_err(|source| Error::Output { path: path.clone(), source }),
        OutputSpec::Pipe(spec) => PipeSink::open(spec, channels, events.clone())
            .map(|pipe| Some(Sink::Pipe(pipe)))
            .map_err(|source| Error::Pipe { end: End::Output, path: spec.path.clone(), source }),
        OutputSpec::Default | OutputSpec::Device(_) | OutputSpec::Null => Ok(None),
    }
}
