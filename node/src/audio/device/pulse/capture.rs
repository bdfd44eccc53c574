//! A recording stream: the server sends fragments, each goes into the ring the moment it is here.

use std::sync::mpsc::Sender;
use std::time::SystemTime;

use pulseaudio::protocol::stream::{BufferAttr, StreamFlags};
use pulseaudio::protocol::{
    Command, CorkStreamParams, CreateRecordStreamReply, LatencyParams, RecordLatency, RecordStreamParams,
    TagStructReader,
};

use super::super::find::Made;
use super::super::keeper::{self, Note, Opened};
use super::super::tap::CaptureTap;
use super::super::{Facts, Reach, Shape, SharedReach, frames_ns};
use super::connection::{Connection, Error, Message, PATIENCE};
use super::{Device, SAMPLE_BYTES, Stream, bytes_ns, channel_map, frame_bytes, props, refused, spec};
use crate::audio::clock::{RATE_HZ, monotonic_ns};

/// How often the server is asked how old its sound is.
const ASK_EVERY_NS: u64 = 200_000_000;
/// Longest fragment handed over at once, frames; longer ones are handed over in parts.
const MAX_FRAGMENT: usize = 4_800;

/// Opens a stream that captures from this source, not running yet.
///
/// # Errors
/// What the server said, or what `make` did.
pub(crate) fn open_capture<L>(
    device: &Device,
    shape: Shape,
    notes: Sender<Note>,
    make: impl Fn(&Facts) -> Made<CaptureTap, L>,
) -> Result<Opened<L>, cpal::Error> {
    let mut connection = Connection::open(PATIENCE).map_err(refused)?;
    let frame = frame_bytes(shape);
    let wanted = RecordStreamParams {
        sample_spec: spec(shape.channels),
        channel_map: channel_map(shape.channels),
        source_name: device.called(),
        buffer_attr: BufferAttr { fragment_size: shape.period * frame as u32, ..BufferAttr::default() },
        // The source is asked to be as quick as the fragments are.
        flags: StreamFlags { start_corked: true, adjust_latency: true, ..StreamFlags::default() },
        props: props(),
        ..RecordStreamParams::default()
    };
    let reply: CreateRecordStreamReply =
        connection.ask(&Command::CreateRecordStream(wanted)).map_err(refused)?;
    let buffer = reply.buffer_attr.fragment_size / frame as u32;
    tracing::debug!(frames = buffer, "the sound server captures in fragments");
    let facts =
        Facts { rate_hz: RATE_HZ, channels: shape.channels, buffer, reach: SharedReach::new(Reach::Nowhere) };
    let (tap, live, beat) = make(&facts)?;
    let capture = Capture {
        channel: reply.channel,
        frame,
        notes: notes.clone(),
        tap,
        samples: vec![0.0; MAX_FRAGMENT * usize::from(shape.channels)],
        bytes: vec![0; MAX_FRAGMENT * frame],
        received: 0,
        heard_ns: None,
        question: None,
        asked_at_ns: 0,
    };
    let stream =
        Stream::new(connection, notes, move |connection| capture.run(connection)).map_err(refused)?;
    Ok(Opened { stream: keeper::Stream::Pulse(stream), live, beat })
}

struct Capture {
    channel: u32,
    /// Bytes of a frame.
    frame: usize,
    notes: Sender<Note>,
    tap: CaptureTap,
    samples: Vec<f32>,
    bytes: Vec<u8>,
    /// Bytes received so far.
    received: i64,
    /// When byte 0 of the stream was in the air, by the server's last word.
    heard_ns: Option<i64>,
    /// The number of the question that is open.
    question: Option<u32>,
    asked_at_ns: u64,
}

impl Capture {
    fn run(mut self, mut server: Connection) -> Result<(), Error> {
        server.tell(&Command::CorkRecordStream(CorkStreamParams { channel: self.channel, cork: false }))?;
        loop {
            match server.next()? {
                Message::Sound(bytes) => {
                    self.take(&mut server, bytes)?;
                    let now_ns = monotonic_ns();
                    if now_ns.saturating_sub(self.asked_at_ns) > ASK_EVERY_NS {
                        self.asked_at_ns = now_ns;
                        let about = LatencyParams { channel: self.channel, now: SystemTime::UNIX_EPOCH };
                        self.question = Some(server.tell(&Command::GetRecordLatency(about))?);
                    }
                }
                Message::Command => self.obey(&server)?,
            }
        }
    }

    fn take(&mut self, server: &mut Connection, mut bytes: usize) -> Result<(), Error> {
        while bytes > 0 {
            let part = bytes.min(self.bytes.len());
            let Some(sound) = self.bytes.get_mut(..part) else { return Ok(()) };
            server.sound(sound)?;
            bytes -= part;
            let samples = part / SAMPLE_BYTES;
            for (sample, bytes) in self.samples.iter_mut().zip(sound.as_chunks::<SAMPLE_BYTES>().0) {
                *sample = f32::from_le_bytes(*bytes);
            }
            self.received += part as i64;
            let now_ns = monotonic_ns();
            // How long ago the part's first sample was in the air.
            let first = self.received - part as i64;
            let age_ns = match self.heard_ns {
                Some(zero) => now_ns.cast_signed() - zero - bytes_ns(first, self.frame),
                None => frames_ns((part / self.frame) as u64, RATE_HZ).cast_signed(),
            };
            self.tap.deliver(
                self.samples.get(..samples).unwrap_or_default(),
                now_ns,
                age_ns.max(0).unsigned_abs(),
            );
        }
        Ok(())
    }

    fn obey(&mut self, server: &Connection) -> Result<(), Error> {
        if let Some(question) = self.question
            && let Some(mut answer) = server.answer_to(question)?
        {
            self.question = None;
            let said: RecordLatency = TagStructReader::new(&mut answer, server.version()).read()?;
            // Between the question and the answer; the server is on this machine.
            let at_ns = self.asked_at_ns.midpoint(monotonic_ns()).cast_signed();
            // A monitor gives what its sink has yet to play.
            let ns = |us: u64| i64::try_from(us).unwrap_or(0).saturating_mul(1_000);
            let device_ns = ns(said.source_usec).saturating_sub(ns(said.sink_usec));
            self.heard_ns = Some(at_ns - device_ns - bytes_ns(said.write_offset, self.frame));
            return Ok(());
        }
        match server.command() {
            Some(Command::RecordStreamMoved(_)) => {
                (self.heard_ns, self.question) = (None, None);
                let _ = self.notes.send(Note::Moved);
                Ok(())
            }
            Some(Command::RecordStreamKilled(channel)) if channel == self.channel => {
                Err(Error::Refused("the device is gone".into()))
            }
            _ => Ok(()),
        }
    }
}
