//! What stops a call from getting sound, and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use super::event::End;
use super::spec::SpecError;
use super::wav::LoadError;

/// Why [`Audio::open`](super::Audio::open) or [`Audio::finish`](super::Audio::finish) failed. [`Error::hint`] says
/// what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine has no usable sound card for this direction, or its sound server does not answer.
    #[error("no sound {end}: {reason}")]
    NoDevice {
        /// Which end.
        end: End,
        /// What each host said.
        reason: String,
    },
    /// No device of that name. The names there are come with it.
    #[error("no sound {end} is called `{name}`")]
    NotFound {
        /// Which end.
        end: End,
        /// The name that was asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The device is there and will not open.
    #[error("the sound {end} `{name}` does not open: {reason}")]
    Refused {
        /// Which end.
        end: End,
        /// The device.
        name: String,
        /// What the system said.
        reason: String,
    },
    /// The `file:` input cannot be played.
    #[error("cannot play {}: {source}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LoadError,
    },
    /// The `file:` output cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A `pipe:` cannot be opened.
    #[error("cannot use the pipe {} as {end}: {source}", path.display())]
    Pipe {
        /// Which end.
        end: End,
        /// The pipe.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Input and output are one file.
    #[error("{} is both input and output", path.display())]
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// The disk did not take the last of the recording in time; what is there is playable.
    #[error("{} was still being written after {} s", path.display(), waited.as_secs())]
    Unfinished {
        /// The file.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// A period outside of [`MIN_PERIOD`](super::MIN_PERIOD) to [`MAX_PERIOD`](super::MAX_PERIOD), or channels other
    /// than 1 and 2.
    #[error("{what} of {value} is out of range ({allowed})")]
    Range {
        /// What it is.
        what: &'static str,
        /// The value given.
        value: u32,
        /// What may be given.
        allowed: String,
    },
    /// The text of an input or output made no sense.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

impl Error {
    /// What the person can do about it: one sentence, no full stop.
    pub fn hint(&self) -> String {
        match self {
            Self::NoDevice { .. } => "to join without a sound card use `--input silence --output null`, or `file:PATH.wav` for either; `hallway devices` lists what is there".into(),
            Self::NotFound { known, .. } if known.is_empty() => {
                "`hallway devices` lists what is there; `--input silence --output null` and `file:PATH.wav` need no sound card".into()
            }
            Self::NotFound { known, .. } => format!("there is: {} (see `hallway devices`)", known.join(", ")),
            Self::Refused { .. } => "close what else uses it, or pick another of `hallway devices`; `--input silence --output null` and `file:PATH.wav` need no sound card".into(),
            Self::Input { source, .. } => source.hint().into(),
            Self::Output { .. } => "name a file in a folder you may write to, with room left; or `--output null`".into(),
            Self::Pipe { .. } => "make it with `mkfifo PATH`, or use `pipe:-` for standard input and output".into(),
            Self::SameFile { .. } => "give the recording another name".into(),
            Self::Unfinished { .. } => "check the disk; the file holds all but the last seconds".into(),
            Self::Range { allowed, .. } => format!("choose {allowed}"),
            Self::Spec(_) => "see `hallway help join`".into(),
        }
    }

    /// True if a sound device is at fault (exit code 4 of the contract); false if a file or an option is.
    pub fn is_device(&self) -> bool {
        matches!(self, Self::NoDevice { .. } | Self::NotFound { .. } | Self::Refused { .. })
    }
}
