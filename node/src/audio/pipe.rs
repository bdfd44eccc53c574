//! Raw sound from and to other programs: `pipe:` inputs and outputs.
//!
//! 48 kHz, interleaved, as many channels as the call (1; 2 in `music`), 16-bit or 32-bit float, little-endian, no header.
//! The clock is ours, as for every simulated card: a writer that is faster waits, one that is slower is heard with gaps;
//! a reader that is slower loses what does not fit, one that went away is not waited for. A thread per end does what may
//! block; the media thread touches a ring.
//!
//! A FIFO outlives those who use it: writers and readers come and go, each time anew.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rtrb::{Consumer, Producer, RingBuffer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::clock::{RATE_HZ, monotonic_ns};
use super::event::{AudioEvent, Events};

/// Sound kept of a writer that is faster than the clock, milliseconds. What the system's pipe holds comes on top (64 KiB
/// on Linux: 0.7 s of 16-bit mono).
pub const MAX_AHEAD_MS: usize = 100;
/// Sound kept for a reader that is late, milliseconds, beside what the system's pipe holds.
pub const MAX_BEHIND_MS: usize = 1000;
/// Bytes moved at once: a pipe that has room for one has room for these (POSIX: `PIPE_BUF`).
const CHUNK: usize = 4096;
/// How often a thread looks whether it is to end, and whether anybody opened the other end.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often the ring is emptied into the pipe.
const DRAIN_EVERY: Duration = Duration::from_millis(2);
/// Longest wait for the reader to take the last of it.
const FINISH_PATIENCE: Duration = Duration::from_millis(200);

/// How samples are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Signed 16-bit integers, little-endian.
    S16,
    /// 32-bit floating point, little-endian, full scale ±1.
    F32,
}

impl Format {
    fn bytes(self) -> usize {
        match self {
            Self::S16 => 2,
            Self::F32 => 4,
        }
    }

    /// What is no number is silence; beyond full scale is clipped.
    fn decode(self, bytes: &[u8]) -> f32 {
        let sample = match (self, bytes) {
            (Self::S16, &[a, b]) => f32::from(i16::from_le_bytes([a, b])) / 32_768.0,
            (Self::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            _ => 0.0,
        };
        if sample.is_nan() { 0.0 } else { sample.clamp(-1.0, 1.0) }
    }

    fn encode(self, sample: f32, out: &mut Vec<u8>) {
        match self {
            Self::S16 => out.extend_from_slice(&((sample * 32_767.0).round() as i16).to_le_bytes()),
            Self::F32 => out.extend_from_slice(&sample.to_le_bytes()),
        }
    }
}

/// Which pipe, and how its samples are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeSpec {
    /// `-` is standard input or output.
    pub path: PathBuf,
    /// How samples are written.
    pub format: Format,
}

impl PipeSpec {
    /// Whether this is standard input or output.
    pub fn is_standard(&self) -> bool {
        self.path == Path::new("-")
    }
}

/// What the media thread holds of an input.
#[derive(Debug)]
pub(crate) struct PipeSource {
    ring: Consumer<f32>,
    shared: Arc<Shared>,
    /// Samples taken so far.
    taken: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Samples that had come when a writer last went away; 0 before.
    ended_at: AtomicU64,
}

impl PipeSource {
    /// Opens the pipe and starts its reader.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn open(spec: &PipeSpec, channels: u16) -> io::Result<Self> {
        let (file, is_fifo) = if spec.is_standard() {
            (File::from(io::stdin().as_fd().try_clone_to_owned()?), false)
        } else {
            let is_fifo = std::fs::metadata(&spec.path)?.file_type().is_fifo();
            // Without O_NONBLOCK a FIFO would not open before it has a writer.
            let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
            (OpenOptions::new().read(true).custom_flags(flags).open(&spec.path)?, is_fifo)
        };
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let (into, ring) = RingBuffer::new(MAX_AHEAD_MS * RATE_HZ as usize / 1000 * usize::from(channels));
        let shared = Arc::new(Shared::default());
        let reader = Reader {
            file,
            is_fifo,
            format: spec.format,
            channels: usize::from(channels),
            into,
            shared: shared.clone(),
        };
        thread::Builder::new().name("pipe-in".into()).spawn(move || reader.run())?;
        Ok(Self { ring, shared, taken: 0 })
    }

    /// Fills what has come into `out`, silence behind it. `Some(frames)`: a writer went away, and its last frame is the
    /// one before this position.
    pub(crate) fn fill(&mut self, out: &mut [f32], channels: usize) -> Option<usize> {
        let ended_at = self.shared.ended_at.load(Ordering::Acquire);
        let ready = self.ring.slots().min(out.len()) / channels * channels;
        let (played, rest) = out.split_at_mut(ready);
        if let Ok(chunk) = self.ring.read_chunk(ready) {
            let (first, second) = chunk.as_slices();
            let (a, b) = played.split_at_mut(first.len());
            a.copy_from_slice(first);
            b.copy_from_slice(second);
            chunk.commit_all();
        }
        rest.fill(0.0);
        let before = self.taken;
        self.taken += ready as u64;
        let end = ended_at.checked_sub(before).filter(|left| *left > 0 && *left <= ready as u64)?;
        Some(end as usize / channels)
    }
}

impl Drop for PipeSource {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

/// The reading thread.
struct Reader {
    file: File,
    is_fifo: bool,
    format: Format,
    channels: usize,
    into: Producer<f32>,
    shared: Arc<Shared>,
}

impl Reader {
    fn run(mut self) {
        let mut bytes = [0u8; CHUNK];
        // Bytes of a sample that is not whole yet.
        let mut held: Vec<u8> = Vec::with_capacity(CHUNK + 4);
        let mut pushed = 0u64;
        while !self.shared.stop.load(Ordering::Acquire) {
            if self.into.slots() < CHUNK / 2 {
                thread::sleep(DRAIN_EVERY);
                continue;
            }
            match wait(&self.file, PollFlags::IN) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_) => return,
            }
            match self.file.read(&mut bytes) {
                Ok(0) => {
                    held.clear();
                    // A frame that was cut off is completed, so that channels stay in their place.
                    while !pushed.is_multiple_of(self.channels as u64) && self.into.push(0.0).is_ok() {
                        pushed += 1;
                    }
                    self.shared.ended_at.store(pushed, Ordering::Release);
                    if !self.is_fifo {
                        return;
                    }
                    thread::sleep(LOOK_EVERY);
                }
                Ok(count) => {
                    held.extend_from_slice(bytes.get(..count).unwrap_or_default());
                    let whole = held.len() / self.format.bytes() * self.format.bytes();
                    for sample in held.get(..whole).unwrap_or_default().chunks_exact(self.format.bytes()) {
                        if self.into.push(self.format.decode(sample)).is_ok() {
                            pushed += 1;
                        }
                    }
                    held.drain(..whole);
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                    thread::sleep(DRAIN_EVERY);
                }
                Err(error) => return tracing::warn!(%error, "the input pipe cannot be read on"),
            }
        }
    }
}

/// What the media thread holds of an output.
#[derive(Debug)]
pub(crate) struct PipeSink {
    ring: Producer<f32>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
    /// Samples that found no room, since this was last asked.
    lost: u64,
}

impl PipeSink {
    /// Opens the pipe and starts its writer. A FIFO need not have a reader yet.
    ///
    /// # Errors
    /// What the system says, or that this is no pipe.
    pub(crate) fn open(spec: &PipeSpec, channels: u16, events: Events) -> io::Result<Self> {
        let open = if spec.is_standard() {
            Some(File::from(io::stdout().as_fd().try_clone_to_owned()?))
        } else {
            let kind = std::fs::metadata(&spec.path)?.file_type();
            if kind.is_file() || kind.is_dir() {
                let why = "this is no pipe: make one with mkfifo, or write a recording with file:PATH.wav";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            open_for_writing(&spec.path)?
        };
        let (ring, from) = RingBuffer::new(MAX_BEHIND_MS * RATE_HZ as usize / 1000 * usize::from(channels));
        let stop = Arc::new(AtomicBool::new(false));
        let path = (!spec.is_standard()).then(|| spec.path.clone());
        let writer = Writer {
            file: open,
            path,
            format: spec.format,
            channels: usize::from(channels),
            from,
            stop: stop.clone(),
            bytes: Vec::with_capacity(CHUNK),
            events,
        };
        let thread = thread::Builder::new().name("pipe-out".into()).spawn(move || writer.run())?;
        Ok(Self { ring, stop, thread: Some(thread), lost: 0 })
    }

    /// Hands interleaved samples over. Never waits: what finds no room is lost.
    pub(crate) fn write(&mut self, pcm: &[f32]) {
        if self.ring.push_entire_slice(pcm).is_err() {
            self.lost = self.lost.saturating_add(pcm.len() as u64);
        }
    }

    /// Hands that many samples of silence over.
    pub(crate) fn write_silence(&mut self, samples: u64) {
        let room = usize::try_from(samples).unwrap_or(usize::MAX).min(self.ring.slots());
        if let Ok(chunk) = self.ring.write_chunk_uninit(room) {
            chunk.fill_from_iter(std::iter::repeat_n(0.0, room));
        }
        self.lost = self.lost.saturating_add(samples - room as u64);
    }

    /// Samples lost since the last call, because the reader was late.
    pub(crate) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Gives the reader a moment to take the last of it.
    pub(crate) fn finish(mut self) {
        self.close();
    }

    fn close(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let until = Instant::now() + FINISH_PATIENCE + LOOK_EVERY * 2;
            while !thread.is_finished() && Instant::now() < until {
                thread::sleep(DRAIN_EVERY);
            }
        }
    }
}

impl Drop for PipeSink {
    fn drop(&mut self) {
        self.close();
    }
}

/// The writing thread.
struct Writer {
    file: Option<File>,
    /// A FIFO, to be opened again when its reader went away. `None`: standard output.
    path: Option<PathBuf>,
    format: Format,
    channels: usize,
    from: Consumer<f32>,
    stop: Arc<AtomicBool>,
    bytes: Vec<u8>,
    events: Events,
}

impl Writer {
    fn run(mut self) {
        let mut stopping_since: Option<Instant> = None;
        let mut tried = Instant::now();
        loop {
            if self.stop.load(Ordering::Acquire) {
                let since = *stopping_since.get_or_insert_with(Instant::now);
                let done = self.from.is_empty() && self.bytes.is_empty();
                if self.file.is_none() || done || since.elapsed() >= FINISH_PATIENCE {
                    return;
                }
            }
            let Some(file) = &mut self.file else {
                // Nobody reads: what would have been heard is gone, as from a loudspeaker.
                let count = self.from.slots() / self.channels * self.channels;
                if let Ok(chunk) = self.from.read_chunk(count) {
                    chunk.commit_all();
                }
                let Some(path) = &self.path else { return };
                if tried.elapsed() >= LOOK_EVERY {
                    tried = Instant::now();
                    self.file = open_for_writing(path).ok().flatten();
                }
                thread::sleep(DRAIN_EVERY);
                continue;
            };
            if self.bytes.is_empty() {
                let most = CHUNK / self.format.bytes();
                let count = self.from.slots().min(most) / self.channels * self.channels;
                if let Ok(chunk) = self.from.read_chunk(count) {
                    let (first, second) = chunk.as_slices();
                    first
                        .iter()
                        .chain(second)
                        .for_each(|sample| self.format.encode(*sample, &mut self.bytes));
                    chunk.commit_all();
                }
                if self.bytes.is_empty() {
                    thread::sleep(DRAIN_EVERY);
                    continue;
                }
            }
            let written = match wait(file, PollFlags::OUT) {
                Ok(true) => file.write(&self.bytes),
                Ok(false) => continue,
                Err(error) => Err(error),
            };
            match written {
                Ok(count) => drop(self.bytes.drain(..count)),
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                    thread::sleep(DRAIN_EVERY);
                }
                Err(error) => {
                    self.bytes.clear();
                    self.file = None;
                    if self.path.is_none() {
                        let (at_ns, reason) = (monotonic_ns(), error.to_string());
                        self.events.send(AudioEvent::WriteFailed { at_ns, path: "-".into(), reason });
                    }
                }
            }
        }
    }
}

/// `None` while a FIFO has no reader.
fn open_for_writing(path: &Path) -> io::Result<Option<File>> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    match OpenOptions::new().write(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the file can be read or written now; waits a little for it.
fn wait(file: &File, what: PollFlags) -> io::Result<bool> {
    let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY.subsec_nanos().into() };
    let mut fds = [PollFd::new(file, what)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fifo(dir: &Path, name: &str) -> PipeSpec {
        let path = dir.join(name);
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        PipeSpec { path, format: Format::S16 }
    }

    /// Longest time that anything may take that ought to happen at once.
    const SOON: Duration = Duration::from_secs(20);

    /// Reads periods until `count` samples that are not silence came.
    fn heard(source: &mut PipeSource, count: usize) -> (Vec<f32>, usize) {
        let (mut all, mut ends) = (Vec::new(), 0);
        let until = Instant::now() + SOON;
        while (all.len() < count || ends == 0) && Instant::now() < until {
            let mut out = [9.0; 120];
            ends += usize::from(source.fill(&mut out, 1).is_some());
            all.extend(out.into_iter().filter(|sample| *sample != 0.0));
            thread::sleep(Duration::from_millis(1));
        }
        (all, ends)
    }

    #[test]
    fn writers_come_and_go_and_each_one_s_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let spec = fifo(dir.path(), "in");
        let mut source = PipeSource::open(&spec, 1).unwrap();
        for value in [1000i16, 2000] {
            // More than ring and system hold: the writer waits for the clock.
            let path = spec.path.clone();
            let writer = thread::spawn(move || {
                let bytes: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), 48_000).flatten().collect();
                std::fs::write(path, bytes).unwrap();
            });
            let (all, ends) = heard(&mut source, 48_000);
            writer.join().unwrap();
            assert_eq!((all.len(), ends), (48_000, 1));
            assert!(all.iter().all(|sample| (sample - f32::from(value) / 32_768.0).abs() < 1e-6));
        }
    }

    #[test]
    fn a_reader_that_is_not_there_or_does_not_read_costs_sound_and_never_waits() {
        let dir = tempfile::tempdir().unwrap();
        let spec = fifo(dir.path(), "out");
        let (events, _news) = Events::new();
        let mut sink = PipeSink::open(&spec, 1, events).unwrap();
        let began = Instant::now();
        let write =
            |sink: &mut PipeSink, seconds: usize| (0..seconds * 400).for_each(|_| sink.write(&[0.5; 120]));
        write(&mut sink, 3);
        assert!(sink.take_lost() > 0 && began.elapsed() < Duration::from_millis(1_500));
        // Somebody opens it, which waits for the other end, and does not read.
        let mut reader = OpenOptions::new().read(true).open(&spec.path).unwrap();
        let began = Instant::now();
        write(&mut sink, 5);
        assert!(sink.take_lost() > 0 && began.elapsed() < Duration::from_millis(1_500));
        // It reads after all, whole samples in order.
        let mut bytes = [0u8; 9600];
        reader.read_exact(&mut bytes).unwrap();
        assert!(bytes.chunks_exact(2).all(|b| i16::from_le_bytes([b[0], b[1]]) == 16_384));
        // It goes, and another one comes.
        drop(reader);
        let mut reader = OpenOptions::new().read(true).open(&spec.path).unwrap();
        let reading = thread::spawn(move || {
            let mut last = [0u8; 2];
            while i16::from_le_bytes(last) != -16_384 {
                // At its end the writer finds out that the first reader has gone, and opens it again.
                if reader.read_exact(&mut last).is_err() {
                    thread::sleep(LOOK_EVERY);
                }
            }
        });
        let began = Instant::now();
        while !reading.is_finished() {
            assert!(began.elapsed() < SOON, "another reader hears nothing");
            sink.write(&[-0.5; 120]);
            thread::sleep(DRAIN_EVERY);
        }
        reading.join().unwrap();
    }

    #[test]
    fn samples_survive_both_formats_and_nonsense_becomes_silence() {
        for format in [Format::S16, Format::F32] {
            for sample in [0.0, 0.25, -0.5, 1.0, -1.0] {
                let mut bytes = Vec::new();
                format.encode(sample, &mut bytes);
                assert_eq!(bytes.len(), format.bytes());
                assert!((format.decode(&bytes) - sample).abs() < 1e-4, "{format:?} {sample}");
            }
        }
        assert_eq!(Format::F32.decode(&f32::NAN.to_le_bytes()), 0.0);
        assert_eq!(Format::F32.decode(&f32::INFINITY.to_le_bytes()), 1.0);
    }

    #[test]
    fn a_file_or_folder_is_no_output_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plain");
        std::fs::write(&path, "keep").unwrap();
        for path in [path.clone(), dir.path().to_owned()] {
            let (events, _news) = Events::new();
            let error = PipeSink::open(&PipeSpec { path, format: Format::S16 }, 1, events).unwrap_err();
            assert!(error.to_string().contains("mkfifo"), "{error}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"keep");
    }
}
