//! One thread per device end: it opens the device, watches it, and opens it again when it goes: the same for a
//! while, then the system's default. It owns the stream, whose drop may wait for a sound server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use cpal::traits::StreamTrait;

use super::super::clock::monotonic_ns;
use super::super::error::Error;
use super::super::event::{AudioEvent, End, Events};
use super::Shape;
use super::find::{self, Candidate, Device, System, Wanted};
use super::{jack, pulse};

/// Longest wait for the first opening: a sound server may take its time to wake a device.
const OPEN_PATIENCE: Duration = Duration::from_secs(6);
/// Longest wait for a stream to close; a hung sound server may never let it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// How often a running device is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// A device without a callback for so long is taken for lost. With what follows, another plays within two seconds.
const SILENT_FOR: Duration = Duration::from_millis(800);
/// A device that fell silent and was opened again shows life within this, or another is taken.
const REVIVES_WITHIN: Duration = Duration::from_millis(500);
/// A device is given so long to start: a sound server may finish seconds of silence first.
const STARTS_WITHIN: Duration = Duration::from_secs(4);
/// How often the device that was asked for is looked for while another stands in for it.
const RETURN_EVERY: Duration = Duration::from_millis(1_000);
/// The longest pause between such looks, where the device opens and stands still.
const MAX_RETURN_EVERY: Duration = Duration::from_secs(30);
/// Pause between tries to open a lost device again.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// How long only the device that was lost is tried, before the default in its place: a restarted sound server needs
/// a moment, and taking its hardware meanwhile would keep it out.
const SAME_FOR: Duration = Duration::from_millis(1_250);
/// How long a sound server may take to answer the first try to open a lost device again. Each further try it may take twice
/// as long, up to what it may at the start.
const FIRST_PATIENCE: Duration = Duration::from_millis(300);

/// Microphone or loudspeaker: what the keeper opens.
pub(crate) trait Kind: 'static {
    /// Which end it is.
    const END: End;
    /// What the media thread holds of an open device.
    type Live: Send + 'static;
    /// Opens the device, stopped.
    fn open(device: &Device, shape: Shape, notes: Sender<Note>) -> Result<Opened<Self::Live>, cpal::Error>;
}

/// A stream of one of the sound systems. Dropping it closes it.
pub(crate) enum Stream {
    Pulse(pulse::Stream),
    Jack(jack::Stream),
    Cpal(cpal::Stream),
}

impl Stream {
    fn play(&mut self) -> Result<(), String> {
        match self {
            Self::Pulse(stream) => stream.play().map_err(|e| e.to_string()),
            Self::Jack(stream) => stream.play(),
            Self::Cpal(stream) => stream.play().map_err(|e| e.to_string()),
        }
    }

    /// What the stream was connected to and is no longer there, where nobody tells by himself.
    fn missing(&self) -> Option<String> {
        match self {
            Self::Jack(stream) => stream.missing(),
            Self::Pulse(_) | Self::Cpal(_) => None,
        }
    }
}

/// An open stream.
pub(crate) struct Opened<L> {
    pub stream: Stream,
    pub live: L,
    /// CLOCK_MONOTONIC of its last callback.
    pub beat: Arc<AtomicU64>,
}

/// What the keeper is told.
#[derive(Debug)]
pub(crate) enum Note {
    /// The stream has failed for good.
    Broken(String),
    /// The sound server has moved the stream to another device.
    Moved,
    /// Close and end.
    Stop,
}

/// Holds a device open until dropped.
#[derive(Debug)]
pub(crate) struct Keeper {
    notes: Sender<Note>,
    ended: Receiver<()>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.notes.send(Note::Stop);
        let _ = self.ended.recv_timeout(CLOSE_PATIENCE);
    }
}

/// A device that is being opened.
pub(crate) struct Opening<L> {
    pub keeper: Keeper,
    /// Where its live end arrives, as it does each time it is opened again.
    pub arriving: Receiver<L>,
    pub outcome: Outcome,
}

/// Whether a device could be opened, once that is known.
#[derive(Debug)]
pub(crate) struct Outcome {
    opened: Receiver<Result<(), Error>>,
    end: End,
}

impl Outcome {
    /// Waits until the device is open.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::NotFound`] or [`Error::Refused`].
    pub(crate) fn wait(self) -> Result<(), Error> {
        self.opened.recv_timeout(OPEN_PATIENCE).unwrap_or_else(|_| {
            let reason = format!("the sound system did not answer within {} s", OPEN_PATIENCE.as_secs());
            Err(Error::NoDevice { end: self.end, reason })
        })
    }
}

/// Begins to open a device, which is then kept open.
///
/// # Errors
/// [`Error::NoDevice`] if there is no thread to be had.
pub(crate) fn keep<K: Kind>(wanted: Wanted, shape: Shape, events: Events) -> Result<Opening<K::Live>, Error> {
    let (notes, told) = channel();
    let (arrive, arriving) = channel();
    let (first, opened) = sync_channel(1);
    let (finished, ended) = channel();
    let job = Job::<K> { wanted, shape, events, notes: notes.clone(), told, arrive };
    thread::Builder::new()
        .name(format!("sound {}", K::END))
        .spawn(move || {
            job.run(&first);
            let _ = finished.send(());
        })
        .map_err(|e| Error::NoDevice { end: K::END, reason: e.to_string() })?;
    Ok(Opening { keeper: Keeper { notes, ended }, arriving, outcome: Outcome { opened, end: K::END } })
}

struct Job<K: Kind> {
    wanted: Wanted,
    shape: Shape,
    events: Events,
    notes: Sender<Note>,
    told: Receiver<Note>,
    arrive: Sender<K::Live>,
}

struct Running {
    stream: Stream,
    beat: Arc<AtomicU64>,
    name: String,
    system: System,
    /// It is what was asked for, not what stands in for it.
    wanted: bool,
    /// It fell silent at this moment and was opened again.
    silent_since: Option<Instant>,
}

/// Why a running device is left.
enum Change {
    Stop,
    Lost(String),
    /// It gives no sign of life since this moment.
    Silent(Instant),
    /// What was asked for is back.
    Back(Running),
}

impl<K: Kind> Job<K> {
    fn run(self, first: &SyncSender<Result<(), Error>>) {
        let _quiet = find::quiet_alsa();
        let mut running = match self.open(&self.wanted, None, None, pulse::PATIENCE) {
            Ok(running) => running,
            Err(e) => {
                let _ = first.send(Err(e));
                return;
            }
        };
        let name = running.name.clone();
        let (at_ns, order) = (monotonic_ns(), self.events.order);
        self.events.send(AudioEvent::DeviceOpened { at_ns, end: K::END, name, order });
        let _ = first.send(Ok(()));
        loop {
            // Some devices take seconds to start, so whoever waits for the open device has it already.
            let change = match running.stream.play() {
                Ok(()) => self.watch(&running),
                Err(reason) => Change::Lost(reason),
            };
            let Running { stream, name, system, silent_since, .. } = running;
            let reason = match &change {
                Change::Lost(reason) => Some(reason.clone()),
                Change::Silent(since) => {
                    Some(format!("no sign of life for {} ms", since.elapsed().as_millis()))
                }
                Change::Stop | Change::Back(_) => None,
            };
            if let Some(reason) = reason {
                let (at_ns, name) = (monotonic_ns(), name.clone());
                self.events.send(AudioEvent::DeviceLost { at_ns, end: K::END, name, reason });
            }
            close(stream);
            let again = match change {
                Change::Stop => None,
                Change::Back(back) => Some(back),
                Change::Lost(_) => self.reopen(&name, system, Instant::now(), None),
                Change::Silent(since) => {
                    let dead = silent_since.map(|_| name.as_str());
                    let since = silent_since.unwrap_or(since);
                    self.reopen(&name, system, since, dead).map(|again| {
                        // The same once more: it is given little time to show that it lives.
                        let same = again.name == name && silent_since.is_none();
                        Running { silent_since: same.then_some(since), ..again }
                    })
                }
            };
            let Some(again) = again else { return };
            let (at_ns, name) = (monotonic_ns(), again.name.clone());
            self.events.send(AudioEvent::DeviceReopened { at_ns, end: K::END, name });
            running = again;
        }
    }

    /// Returns when the device is to be left.
    fn watch(&self, running: &Running) -> Change {
        let opened = Instant::now();
        let (mut looked, mut return_every) = (opened, RETURN_EVERY);
        loop {
            match self.told.recv_timeout(LOOK_EVERY) {
                Ok(Note::Stop) | Err(RecvTimeoutError::Disconnected) => return Change::Stop,
                Ok(Note::Broken(reason)) => return Change::Lost(reason),
                // People may move a stream by hand, and a default may change: the stream has gone along already.
                Ok(Note::Moved) if self.is_there(&running.name) => {}
                Ok(Note::Moved) => return Change::Lost("it was taken away".into()),
                Err(RecvTimeoutError::Timeout) => {
                    let beat_ns = running.beat.load(Ordering::Relaxed);
                    let silent = Duration::from_nanos(monotonic_ns().saturating_sub(beat_ns));
                    let (starts_within, silent_for) = match running.silent_since {
                        None => (STARTS_WITHIN, SILENT_FOR),
                        Some(_) => (REVIVES_WITHIN, REVIVES_WITHIN),
                    };
                    if opened.elapsed() > starts_within && silent > silent_for {
                        return Change::Silent(Instant::now().checked_sub(silent).unwrap_or(opened));
                    }
                    if let Some(reason) = running.stream.missing() {
                        return Change::Lost(reason);
                    }
                }
            }
            if !running.wanted && looked.elapsed() > return_every {
                if let Ok(mut back) = self.open(&self.wanted, None, None, FIRST_PATIENCE) {
                    match self.shows_life(&mut back) {
                        Some(true) => return Change::Back(back),
                        Some(false) => close(back.stream),
                        None => return Change::Stop,
                    }
                    // It opens, and stands still: what stands in for it plays on.
                    return_every = (return_every * 2).min(MAX_RETURN_EVERY);
                }
                looked = Instant::now();
            }
        }
    }

    /// Starts a device, beside the one that runs, and says whether it goes on calling; nothing where the keeper is told to
    /// stop. The first calls may be no more than a queue that is filled.
    fn shows_life(&self, running: &mut Running) -> Option<bool> {
        let begun = monotonic_ns() + LOOK_EVERY.as_nanos() as u64;
        if running.stream.play().is_err() {
            return Some(false);
        }
        let until = Instant::now() + STARTS_WITHIN;
        while Instant::now() < until {
            match self.told.recv_timeout(LOOK_EVERY) {
                Ok(Note::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                // Of either device: the one that runs is looked at again after this one.
                Ok(Note::Broken(_) | Note::Moved) | Err(RecvTimeoutError::Timeout) => {}
            }
            if running.beat.load(Ordering::Relaxed) > begun {
                return Some(true);
            }
        }
        Some(false)
    }

    /// Tries until a device is open or the keeper is told to stop. It was lost at the moment `since`; one called `dead` opens
    /// and stands still, so others are tried first.
    fn reopen(&self, name: &str, system: System, since: Instant, mut dead: Option<&str>) -> Option<Running> {
        let mut patience = FIRST_PATIENCE;
        loop {
            // Errors of the stream that is gone are no news.
            while let Ok(note) = self.told.try_recv() {
                if matches!(note, Note::Stop) {
                    return None;
                }
            }
            let same = match &self.wanted {
                Wanted::Default => Wanted::Default,
                Wanted::Named(_) => Wanted::Named(name.to_owned()),
            };
            let only = (since.elapsed() < SAME_FOR).then_some(system);
            if let Ok(mut running) = self.open(&same, only, dead, patience) {
                running.wanted = self.is_wanted(&running);
                return Some(running);
            }
            if since.elapsed() >= SAME_FOR
                && let Ok(mut running) = self.open(&Wanted::Default, None, dead, patience)
            {
                running.wanted = self.wanted == Wanted::Default;
                return Some(running);
            }
            dead = None;
            patience = (patience * 2).min(pulse::PATIENCE);
            match self.told.recv_timeout(RETRY_EVERY) {
                Ok(Note::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Ok(Note::Broken(_) | Note::Moved) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Whether a device is what was asked for: a stand-in that was itself opened again is not.
    fn is_wanted(&self, running: &Running) -> bool {
        self.wanted == Wanted::Default || find::names(&self.wanted, K::END).contains(&running.name)
    }

    fn is_there(&self, name: &str) -> bool {
        self.wanted == Wanted::Default || !find::names(&Wanted::Named(name.to_owned()), K::END).is_empty()
    }

    fn open(
        &self,
        wanted: &Wanted,
        only: Option<System>,
        but: Option<&str>,
        patience: Duration,
    ) -> Result<Running, Error> {
        let found = find::candidates(wanted, K::END, only, patience)?;
        let mut reasons = found.reasons;
        for Candidate { device, name, system } in found.devices {
            if but == Some(name.as_str()) {
                continue;
            }
            match K::open(&device, self.shape, self.notes.clone()) {
                Ok(Opened { stream, live, beat }) => {
                    let _ = self.arrive.send(live);
                    return Ok(Running { stream, beat, name, system, wanted: true, silent_since: None });
                }
                Err(e) => reasons.push(format!("{name}: {e}")),
            }
        }
        let reason = reasons.join("; ");
        Err(match wanted {
            Wanted::Default => Error::NoDevice { end: K::END, reason },
            Wanted::Named(name) => Error::Refused { end: K::END, name: name.clone(), reason },
        })
    }
}

/// Closes a stream on a thread of its own: a hung sound server must not hang the keeper.
fn close(stream: Stream) {
    let (closed, wait) = channel();
    let closing = thread::Builder::new().name("sound close".into()).spawn(move || {
        drop(stream);
        let _ = closed.send(());
    });
    if closing.is_ok() {
        let _ = wait.recv_timeout(CLOSE_PATIENCE);
    }
}
