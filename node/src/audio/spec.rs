//! What `--input` and `--output` may say. Text in, text out: `parse` and `to_string` are inverse.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::pipe::{Format, PipeSpec};

/// Lowest tone offered, hertz.
pub const MIN_TONE_HZ: f32 = 20.0;
/// Highest tone offered, hertz: above it a 48 kHz card has no clean sine and people hear nothing.
pub const MAX_TONE_HZ: f32 = 20_000.0;

/// Where the voice comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum InputSpec {
    /// The system's default microphone.
    #[default]
    Default,
    /// A device by its name or id, as `hallway devices` prints them.
    Device(String),
    /// A WAV file played once in real time, then silence.
    File(PathBuf),
    /// A sine at −20 dBFS, hertz ([`MIN_TONE_HZ`] to [`MAX_TONE_HZ`]).
    Tone(f32),
    /// Digital silence.
    Silence,
    /// Raw sound that another program writes.
    Pipe(PipeSpec),
}

/// Where the voices of the others go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum OutputSpec {
    /// The system's default loudspeaker.
    #[default]
    Default,
    /// A device by its name or id, as `hallway devices` prints them.
    Device(String),
    /// A 48 kHz 16-bit WAV file of all that would have been heard.
    File(PathBuf),
    /// Nowhere; played in real time all the same.
    Null,
    /// Raw sound for another program.
    Pipe(PipeSpec),
}

/// When a `file:` input begins. Other inputs always run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InputStart {
    /// With the first period.
    #[default]
    Now,
    /// With the first period after [`CaptureEnd::start`](super::CaptureEnd::start); silence before.
    FirstPeer,
}

/// Text that names no input, output or start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// `tone:` without a usable frequency.
    #[error("`{text}` is no tone: write `tone:HZ` with {MIN_TONE_HZ} to {MAX_TONE_HZ} hertz, as `tone:440`")]
    Tone {
        /// What was given.
        text: String,
    },
    /// `file:` without a path.
    #[error("`file:` needs a path, as `file:voice.wav`")]
    NoPath,
    /// `pipe:` without a path.
    #[error(
        "`pipe:` needs a path, as `pipe:/tmp/voice` (made with mkfifo) or `pipe:-`; raw 48 kHz, 16 bits; `pipe-f32:` for floats"
    )]
    NoPipe,
    /// Nothing at all.
    #[error("an empty sound source or sink: write `default`, a device's name, or `file:PATH.wav`")]
    Empty,
    /// An output was asked of something that only produces sound, or the other way round.
    #[error("`{text}` is an {is}, not an {wanted}")]
    WrongWay {
        /// What was given.
        text: String,
        /// `input` or `output`.
        is: &'static str,
        /// `output` or `input`.
        wanted: &'static str,
    },
    /// Neither `now` nor `first-peer`.
    #[error("`{text}` is no moment to start: write `now` or `first-peer`")]
    Start {
        /// What was given.
        text: String,
    },
}

impl FromStr for InputSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "" => Err(SpecError::Empty),
            "default" => Ok(Self::Default),
            "silence" => Ok(Self::Silence),
            "null" => Err(SpecError::WrongWay { text: text.into(), is: "output", wanted: "input" }),
            _ => match text.split_once(':') {
                Some(("file", path)) => file(path).map(Self::File),
                Some(("pipe", path)) => pipe(path, Format::S16).map(Self::Pipe),
                Some(("pipe-f32", path)) => pipe(path, Format::F32).map(Self::Pipe),
                Some(("tone", hz)) => hz
                    .parse::<f32>()
                    .ok()
                    .filter(|hz| (MIN_TONE_HZ..=MAX_TONE_HZ).contains(hz))
                    .map(Self::Tone)
                    .ok_or_else(|| SpecError::Tone { text: text.into() }),
                _ => Ok(Self::Device(text.into())),
            },
        }
    }
}

impl FromStr for OutputSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "" => Err(SpecError::Empty),
            "default" => Ok(Self::Default),
            "null" => Ok(Self::Null),
            "silence" => Err(SpecError::WrongWay { text: text.into(), is: "input", wanted: "output" }),
            _ => match text.split_once(':') {
                Some(("file", path)) => file(path).map(Self::File),
                Some(("pipe", path)) => pipe(path, Format::S16).map(Self::Pipe),
                Some(("pipe-f32", path)) => pipe(path, Format::F32).map(Self::Pipe),
                Some(("tone", _)) => {
                    Err(SpecError::WrongWay { text: text.into(), is: "input", wanted: "output" })
                }
                _ => Ok(Self::Device(text.into())),
            },
        }
    }
}

impl FromStr for InputStart {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "now" => Ok(Self::Now),
            "first-peer" => Ok(Self::FirstPeer),
            _ => Err(SpecError::Start { text: text.into() }),
        }
    }
}

impl fmt::Display for InputSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Device(name) => f.write_str(name),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Tone(hz) => write!(f, "tone:{hz}"),
            Self::Silence => f.write_str("silence"),
            Self::Pipe(pipe) => pipe.fmt(f),
        }
    }
}

impl fmt::Display for OutputSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Device(name) => f.write_str(name),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Null => f.write_str("null"),
            Self::Pipe(pipe) => pipe.fmt(f),
        }
    }
}

impl fmt::Display for InputStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now => "now",
            Self::FirstPeer => "first-peer",
        })
    }
}

impl fmt::Display for PipeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.format {
            Format::S16 => "pipe",
            Format::F32 => "pipe-f32",
        };
        write!(f, "{scheme}:{}", self.path.display())
    }
}

fn pipe(path: &str, format: Format) -> Result<PipeSpec, SpecError> {
    if path.is_empty() { Err(SpecError::NoPipe) } else { Ok(PipeSpec { path: path.into(), format }) }
}

fn file(path: &str) -> Result<PathBuf, SpecError> {
    if path.is_empty() { Err(SpecError::NoPath) } else { Ok(PathBuf::from(path)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_the_contract_is_read_and_written_back_the_same() {
        for text in [
            "default",
            "silence",
            "tone:440",
            "tone:997.5",
            "file:a/b c.wav",
            "file:C:x.wav",
            "USB Audio: Mic",
            "pipe:/tmp/voice",
            "pipe-f32:-",
        ] {
            assert_eq!(text.parse::<InputSpec>().map(|s| s.to_string()), Ok(text.to_owned()));
        }
        for text in ["default", "null", "file:out.wav", "pipe:-", "pipe-f32:a b", "alsa:hw:0,0"] {
            assert_eq!(text.parse::<OutputSpec>().map(|s| s.to_string()), Ok(text.to_owned()));
        }
        for text in ["now", "first-peer"] {
            assert_eq!(text.parse::<InputStart>().map(|s| s.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("alsa:hw:0,0".parse(), Ok(OutputSpec::Device("alsa:hw:0,0".into())));
    }

    #[test]
    fn nonsense_is_refused_with_what_to_write_instead() {
        for text in [
            "",
            "file:",
            "pipe:",
            "tone:",
            "tone:abc",
            "tone:19",
            "tone:20001",
            "tone:NaN",
            "tone:inf",
            "tone:-440",
            "null",
        ] {
            let error = text.parse::<InputSpec>().unwrap_err().to_string();
            assert!(
                error.contains("write") || error.contains("needs") || error.contains("not an"),
                "{text}: {error}"
            );
        }
        for text in ["", "file:", "pipe-f32:", "tone:440", "silence"] {
            assert!(text.parse::<OutputSpec>().is_err(), "{text}");
        }
        assert!("later".parse::<InputStart>().is_err());
    }
}
