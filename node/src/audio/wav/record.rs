//! The recording behind a `file:` output. The media thread pushes into a ring and never waits; a writer thread turns
//! it into a 48 kHz 16-bit WAV that is valid at every moment: the header follows the data once a second, and what a
//! full disk did not take is cut off at a whole frame.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rtrb::{Consumer, Producer, RingBuffer};

use super::super::clock::{RATE_HZ, monotonic_ns};
use super::super::error::Error;
use super::super::event::{AudioEvent, Events};

/// Most sound bytes in one recording: what the 32-bit sizes of WAV can count, 12 hours of mono.
pub const MAX_RECORDING_BYTES: u64 = u32::MAX as u64 - HEADER_BYTES - 64;
/// Sound kept while the disk is slow, seconds. A longer stall is heard as silence in the file.
const RING_SECONDS: usize = 4;
/// How often the ring is emptied to the disk.
const DRAIN_EVERY: Duration = Duration::from_millis(100);
/// How often the header is brought up to date.
const HEADER_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for the disk when the recording ends.
const FINISH_PATIENCE: Duration = Duration::from_secs(1);
const HEADER_BYTES: u64 = 44;
const BYTES_PER_SAMPLE: u64 = 2;

/// The media thread's end of a recording.
#[derive(Debug)]
pub(crate) struct Recording {
    path: PathBuf,
    ring: Producer<f32>,
    /// Silence to be written before anything else, samples: time that did not fit into the ring.
    owed: u64,
    writer: Thread,
    stop: Arc<AtomicBool>,
    done: Receiver<()>,
}

impl Recording {
    /// Creates or replaces the file and starts the writer.
    ///
    /// # Errors
    /// What the system says when the file cannot be created, is no regular file, or takes no header.
    pub(crate) fn create(path: &Path, channels: u16, events: Events) -> io::Result<Self> {
        if std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        Self::start(WavFile::new(file, channels)?, path, events)
    }

    fn start<D: Disk>(file: WavFile<D>, path: &Path, events: Events) -> io::Result<Self> {
        let (ring, pcm) = RingBuffer::new(RATE_HZ as usize * RING_SECONDS * usize::from(file.channels));
        let (finished, done) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let job = Writer { file, pcm, stop: stop.clone(), path: path.into(), events };
        let writer = thread::Builder::new().name("recording".into()).spawn(move || {
            job.run();
            let _ = finished.send(());
        })?;
        Ok(Self { path: path.into(), ring, owed: 0, writer: writer.thread().clone(), stop, done })
    }

    /// Adds interleaved samples. Never waits: what a stalled disk leaves no room for becomes silence of equal length.
    pub(crate) fn write(&mut self, pcm: &[f32]) {
        if self.ring.is_abandoned() {
            return;
        }
        self.pay();
        if self.owed > 0 || self.ring.push_entire_slice(pcm).is_err() {
            self.owed = self.owed.saturating_add(pcm.len() as u64);
        }
    }

    /// Adds that many samples of silence.
    pub(crate) fn write_silence(&mut self, samples: u64) {
        self.owed = self.owed.saturating_add(samples);
        self.pay();
    }

    /// Writes what is left and closes the file.
    ///
    /// # Errors
    /// [`Error::Unfinished`] if the disk is still busy after a second; the file stays valid up to its last header.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        self.close()
    }

    fn pay(&mut self) {
        let room = usize::try_from(self.owed).unwrap_or(usize::MAX).min(self.ring.slots());
        if let Ok(chunk) = self.ring.write_chunk_uninit(room) {
            self.owed -= chunk.fill_from_iter(std::iter::repeat_n(0.0, room)) as u64;
        }
    }

    fn close(&mut self) -> Result<(), Error> {
        self.pay();
        self.stop.store(true, Ordering::Release);
        self.writer.unpark();
        match self.done.recv_timeout(FINISH_PATIENCE) {
            // Disconnected: the writer ended earlier, and said why in an event.
            Ok(()) | Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Ok(()),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                Err(Error::Unfinished { path: self.path.clone(), waited: FINISH_PATIENCE })
            }
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.stop.load(Ordering::Acquire) {
            let _ = self.close();
        }
    }
}

/// The writer thread's part.
struct Writer<D> {
    file: WavFile<D>,
    pcm: Consumer<f32>,
    stop: Arc<AtomicBool>,
    path: PathBuf,
    events: Events,
}

impl<D: Disk> Writer<D> {
    fn run(mut self) {
        let outcome = self.drain_until_stopped();
        let closed = self.file.close();
        if let Err(e) = outcome.and(closed) {
            let (at_ns, reason) = (monotonic_ns(), e.to_string());
            self.events.send(AudioEvent::WriteFailed { at_ns, path: self.path.clone(), reason });
        }
    }

    fn drain_until_stopped(&mut self) -> io::Result<()> {
        let mut header_at = Instant::now();
        loop {
            // Read before the ring: what was pushed before the stop is in the ring then.
            let stopping = self.stop.load(Ordering::Acquire);
            if let Ok(chunk) = self.pcm.read_chunk(self.pcm.slots()) {
                let (first, second) = chunk.as_slices();
                self.file.append(first)?;
                self.file.append(second)?;
                chunk.commit_all();
            }
            if stopping {
                return Ok(());
            }
            if header_at.elapsed() >= HEADER_EVERY {
                self.file.seal()?;
                header_at = Instant::now();
            }
            thread::park_timeout(DRAIN_EVERY);
        }
    }
}

/// What a recording needs of a file.
trait Disk: Write + Seek + Send + 'static {
    /// Cuts everything from `length` on.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

impl Disk for File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

/// A 48 kHz 16-bit WAV that grows. Its header never counts more than what is there.
struct WavFile<D> {
    disk: D,
    channels: u16,
    /// Sound bytes that the disk has taken.
    taken: u64,
    bytes: Vec<u8>,
}

impl<D: Disk> WavFile<D> {
    fn new(disk: D, channels: u16) -> io::Result<Self> {
        let mut file = Self { disk, channels, taken: 0, bytes: Vec::new() };
        file.seal()?;
        Ok(file)
    }

    /// Appends at the end. After an error only [`WavFile::close`] makes sense.
    fn append(&mut self, pcm: &[f32]) -> io::Result<()> {
        self.bytes.clear();
        self.bytes.extend(pcm.iter().flat_map(|s| ((s * 32_767.0).round() as i16).to_le_bytes()));
        if self.taken + self.bytes.len() as u64 > MAX_RECORDING_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a WAV file holds no more than 4 GiB"));
        }
        let mut rest = self.bytes.as_slice();
        while !rest.is_empty() {
            match self.disk.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.taken += n as u64;
                    rest = rest.get(n..).unwrap_or_default();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes the header for the whole frames taken so far and returns to the end.
    fn seal(&mut self) -> io::Result<()> {
        let header = self.header();
        self.disk.seek(SeekFrom::Start(0))?;
        self.disk.write_all(&header)?;
        self.disk.seek(SeekFrom::Start(HEADER_BYTES + self.taken))?;
        Ok(())
    }

    /// Cuts at the last whole frame and seals.
    fn close(&mut self) -> io::Result<()> {
        self.taken = self.whole_frames();
        self.disk.cut(HEADER_BYTES + self.taken)?;
        self.seal()?;
        self.disk.flush()
    }

    fn frame_bytes(&self) -> u64 {
        u64::from(self.channels) * BYTES_PER_SAMPLE
    }

    fn whole_frames(&self) -> u64 {
        self.taken / self.frame_bytes() * self.frame_bytes()
    }

    /// RIFF with one `fmt ` and one `data` chunk (Multimedia Programming Interface 1.0, "WAVE"), PCM.
    fn header(&self) -> Vec<u8> {
        let data = self.whole_frames() as u32;
        let frame_bytes = self.frame_bytes() as u16;
        let mut header = Vec::with_capacity(HEADER_BYTES as usize);
        header.extend(b"RIFF");
        header.extend((data + HEADER_BYTES as u32 - 8).to_le_bytes());
        header.extend(b"WAVEfmt ");
        header.extend(16u32.to_le_bytes());
        header.extend(1u16.to_le_bytes());
        header.extend(self.channels.to_le_bytes());
        header.extend(RATE_HZ.to_le_bytes());
        header.extend((RATE_HZ * u32::from(frame_bytes)).to_le_bytes());
        header.extend(frame_bytes.to_le_bytes());
        header.extend((8 * BYTES_PER_SAMPLE as u16).to_le_bytes());
        header.extend(b"data");
        header.extend(data.to_le_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use std::sync::Mutex;

    /// A disk with room for `room` bytes, shared so that its content can be looked at any time.
    #[derive(Clone, Default)]
    struct SmallDisk {
        content: Arc<Mutex<Cursor<Vec<u8>>>>,
        room: usize,
    }

    impl SmallDisk {
        fn with_room(room: usize) -> Self {
            Self { room, ..Self::default() }
        }

        fn samples(&self) -> Vec<i16> {
            let bytes = self.content.lock().unwrap().get_ref().clone();
            let wav = hound::WavReader::new(Cursor::new(bytes)).expect("a valid WAV");
            wav.into_samples::<i16>().map(|s| s.expect("a whole WAV")).collect()
        }
    }

    impl Write for SmallDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut content = self.content.lock().unwrap();
            let room = self.room.saturating_sub(content.position() as usize).min(bytes.len());
            if room == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            content.write(&bytes[..room])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for SmallDisk {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.content.lock().unwrap().seek(to)
        }
    }

    impl Disk for SmallDisk {
        fn cut(&mut self, length: u64) -> io::Result<()> {
            self.content.lock().unwrap().get_mut().truncate(length as usize);
            Ok(())
        }
    }

    #[test]
    fn a_recording_holds_every_sample_in_order_and_full_scale_does_not_wrap() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heard.wav");
        let (events, heard) = Events::new();
        let mut recording = Recording::create(&path, 2, events).unwrap();
        recording.write(&[0.0, 0.5, -0.5, 1.0, -1.0, 7.0]);
        recording.write_silence(4);
        recording.write(&[0.25, f32::NAN]);
        recording.finish().unwrap();
        let mut wav = hound::WavReader::open(&path).unwrap();
        assert_eq!(
            (wav.spec().channels, wav.spec().sample_rate, wav.spec().bits_per_sample),
            (2, 48_000, 16)
        );
        let samples: Vec<i16> = wav.samples().map(Result::unwrap).collect();
        assert_eq!(samples, [0, 16384, -16384, 32767, -32767, 32767, 0, 0, 0, 0, 8192, 0]);
        assert_eq!(heard.try_iter().count(), 0);
    }

    #[test]
    fn the_file_is_valid_at_every_header_and_while_it_grows() {
        let disk = SmallDisk::with_room(1 << 20);
        let mut file = WavFile::new(disk.clone(), 1).unwrap();
        assert!(disk.samples().is_empty());
        for second in 1..=3u16 {
            file.append(&vec![0.5; 4_800]).unwrap();
            file.seal().unwrap();
            file.append(&[0.1; 7]).unwrap();
            assert_eq!(disk.samples().len(), usize::from(second) * 4_800 + usize::from(second - 1) * 7);
        }
    }

    #[test]
    fn a_full_disk_leaves_a_playable_file_and_one_event_and_the_call_goes_on() {
        let (events, heard) = Events::new();
        let disk = SmallDisk::with_room(1_001 + HEADER_BYTES as usize);
        let file = WavFile::new(disk.clone(), 2).unwrap();
        let mut recording = Recording::start(file, Path::new("heard.wav"), events).unwrap();
        recording.write(&[0.5; 4_800]);
        let told = heard.recv_timeout(Duration::from_secs(5)).expect("the failure is told");
        assert!(
            matches!(&told, AudioEvent::WriteFailed { reason, .. } if reason.contains("space")),
            "{told:?}"
        );
        for _ in 0..10_000 {
            recording.write(&[0.5; 240]);
        }
        recording.finish().unwrap();
        assert_eq!(disk.samples(), vec![16_384; 500]);
        assert_eq!(heard.try_iter().count(), 0);
    }

    #[test]
    fn a_stalled_disk_costs_silence_of_the_right_length_and_no_waiting() {
        let disk = SmallDisk::with_room(1 << 24);
        let (events, _heard) = Events::new();
        let held = disk.content.clone();
        let mut recording = {
            let file = WavFile::new(disk.clone(), 1).unwrap();
            Recording::start(file, Path::new("heard.wav"), events).unwrap()
        };
        let ring = RATE_HZ as usize * RING_SECONDS;
        let periods = ring / 120 + 100;
        {
            // The lock is the stall: the writer cannot write while the test holds it.
            let _stalled = held.lock().unwrap();
            for _ in 0..periods {
                recording.write(&[0.5; 120]);
            }
        }
        while recording.ring.slots() < ring {
            thread::yield_now();
        }
        recording.write(&[0.25; 120]);
        recording.finish().unwrap();
        let samples = disk.samples();
        assert_eq!(samples.len(), (periods + 1) * 120);
        assert_eq!(samples[samples.len() - 120..], [8_192; 120]);
        assert!(samples.iter().filter(|s| **s == 0).count() >= 120, "what had no room is silent");
    }

    #[test]
    fn what_cannot_be_written_says_so_when_it_is_opened() {
        let (events, _heard) = Events::new();
        let folder = tempfile::tempdir().unwrap();
        assert!(Recording::create(&folder.path().join("no/such/folder.wav"), 1, events.clone()).is_err());
        assert!(Recording::create(folder.path(), 1, events.clone()).is_err());
        let full = Recording::create(Path::new("/dev/full"), 1, events).unwrap_err();
        assert!(full.to_string().contains("regular"), "{full}");
    }
}
