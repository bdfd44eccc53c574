//! PulseAudio's protocol, spoken by ourselves to PulseAudio and to PipeWire. One connection and one thread per stream
//! instead of a client library: what the server hands over is in our ring one wake-up later, and the queue at the
//! server holds what we want it to hold.
//!
//! [`Connection`] asks and is answered; `capture` and `play` are the two kinds of stream; [`devices`] lists.

mod capture;
mod connection;
mod play;
mod watch;

use std::ffi::CString;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use cpal::ErrorKind;
use pulseaudio::protocol::{self, ChannelMap, Prop, Props, SampleFormat, SampleSpec};

use super::super::clock::{RATE_HZ, frames_to_ns};
use super::super::event::End;
use super::keeper::Note;
use super::{Reach, Shape};

pub(crate) use capture::open_capture;
pub(crate) use connection::{Connection, Error, PATIENCE};
pub(crate) use play::open_playback;

/// A sink or a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// What the server calls it.
    pub name: CString,
    /// What people call it.
    pub description: String,
    pub end: End,
    /// It is what the server takes where no other is named.
    pub default: bool,
    /// It is wanted for being the default: its streams follow when the server takes another.
    pub follow: bool,
    pub rate_hz: u32,
    pub channels: u16,
    /// Who hears what it plays.
    pub reach: Reach,
}

impl Device {
    pub(crate) fn id(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    /// The name to ask for, none where the server shall choose and go on choosing.
    fn called(&self) -> Option<CString> {
        (!self.follow).then(|| self.name.clone())
    }
}

/// All sinks and sources, if the server tells them within `patience`.
///
/// # Errors
/// [`Error`] where no server answers in time.
pub(crate) fn devices(patience: Duration) -> Result<Vec<Device>, Error> {
    let mut server = Connection::open(patience)?;
    let info: protocol::ServerInfo = server.ask(&protocol::Command::GetServerInfo)?;
    let sinks: protocol::SinkInfoList = server.ask(&protocol::Command::GetSinkInfoList)?;
    let sources: protocol::SourceInfoList = server.ask(&protocol::Command::GetSourceInfoList)?;
    let said =
        |text: &Option<CString>, name: &CString| text.as_ref().unwrap_or(name).to_string_lossy().into_owned();
    let sinks = sinks.into_iter().map(|sink| Device {
        description: said(&sink.description, &sink.name),
        end: End::Output,
        default: info.default_sink_name.as_ref() == Some(&sink.name),
        follow: false,
        rate_hz: sink.sample_spec.sample_rate,
        channels: u16::from(sink.sample_spec.channels),
        reach: reach(&sink),
        name: sink.name,
    });
    let sources = sources.into_iter().map(|source| Device {
        description: said(&source.description, &source.name),
        end: End::Input,
        default: info.default_source_name.as_ref() == Some(&source.name),
        follow: false,
        rate_hz: source.sample_spec.sample_rate,
        channels: u16::from(source.sample_spec.channels),
        reach: Reach::Nowhere,
        name: source.name,
    });
    Ok(sinks.chain(sources).collect())
}

/// Whether a sink plays into a room or into an ear, by the form that its hardware states and by its active port.
fn reach(sink: &protocol::SinkInfo) -> Reach {
    let form = sink.props.get(Prop::DeviceFormFactor).map(|form| String::from_utf8_lossy(form).into_owned());
    let port = sink.ports.get(sink.active_port).map(|port| port.name.to_string_lossy().into_owned());
    let hardware = sink.flags.contains(protocol::SinkFlags::HARDWARE);
    Reach::of(form.as_deref(), port.as_deref(), hardware)
}

/// A stream of this connection. Dropping it ends its thread.
pub(crate) struct Stream {
    socket: UnixStream,
    stopping: Arc<AtomicBool>,
    idle: Option<Box<dyn FnOnce() + Send>>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// A stream whose thread will do `work` with the connection, which ends when the socket is shut down.
    fn new(
        mut connection: Connection,
        notes: Sender<Note>,
        work: impl FnOnce(Connection) -> Result<(), Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let socket = connection.socket()?;
        connection.patient()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let told = stopping.clone();
        let idle = Box::new(move || {
            // Without it the stream goes on, and may be late on a busy machine.
            crate::priority::real_time();
            if let Err(error) = work(connection)
                && !told.load(Ordering::Relaxed)
            {
                let _ = notes.send(Note::Broken(error.to_string()));
            }
        });
        Ok(Self { socket, stopping, idle: Some(idle), thread: None })
    }

    /// Lets it run.
    ///
    /// # Errors
    /// No thread to be had.
    pub(crate) fn play(&mut self) -> std::io::Result<()> {
        if let Some(work) = self.idle.take() {
            self.thread = Some(std::thread::Builder::new().name("sound stream".into()).spawn(work)?);
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // A socket that is gone already needs no shutting down.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Bytes of one sample as we send and receive it.
const SAMPLE_BYTES: usize = size_of::<f32>();

fn spec(channels: u16) -> SampleSpec {
    let channels = if channels == 2 { 2 } else { 1 };
    SampleSpec { format: SampleFormat::Float32Le, channels, sample_rate: RATE_HZ }
}

fn channel_map(channels: u16) -> ChannelMap {
    if channels == 2 { ChannelMap::stereo() } else { ChannelMap::mono() }
}

fn props() -> Props {
    let mut props = Props::new();
    props.set(Prop::MediaName, c"voice");
    props
}

/// In the words of the other sound systems.
fn refused(error: Error) -> cpal::Error {
    let kind = match error {
        Error::Absent | Error::Gone(_) => ErrorKind::HostUnavailable,
        Error::Refused(_) => ErrorKind::DeviceNotAvailable,
    };
    cpal::Error::with_message(kind, error.to_string())
}

fn frame_bytes(shape: Shape) -> usize {
    SAMPLE_BYTES * usize::from(shape.channels)
}

fn bytes_ns(bytes: i64, frame: usize) -> i64 {
    let frames = bytes.unsigned_abs() / frame.max(1) as u64;
    frames_to_ns(frames).cast_signed() * bytes.signum()
}
