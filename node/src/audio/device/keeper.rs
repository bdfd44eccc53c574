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
use super::find::{self, Hosts, Wanted};

/// Longest wait for the first opening: the Pulse host alone may take 2 s to find no server.
const OPEN_PATIENCE: Duration = Duration::from_secs(6);
/// Longest wait for a stream to close; a hung sound server may never let it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// How often a running device is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A device without a callback for so long is taken for lost.
const SILENT_FOR: Duration = Duration::from_secs(2);
/// Pause between tries to open a lost device again.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// How long only the device that was lost is tried, before the default in its place: a restarted sound server needs
/// a moment, and taking its hardware meanwhile would keep it out.
const SAME_FOR: Duration = Duration::from_millis(1_500);

/// Microphone or loudspeaker: what the keeper opens.
pub(crate) trait Kind: 'static {
    /// Which end it is.
    const END: End;
    /// What the media thread holds of an open device.
    type Live: Send + 'static;
    /// Opens the device, stopped.
    fn open(
        device: &cpal::Device,
        shape: Shape,
        notes: Sender<Note>,
    ) -> Result<Opened<Self::Live>, cpal::Error>;
}

/// An open stream.
pub(crate) struct Opened<L> {
    pub stream: cpal::Stream,
    pub live: L,
    /// CLOCK_MONOTONIC of its last callback.
    pub beat: Arc<AtomicU64>,
}

/// What the keeper is told.
#[derive(Debug)]
pub(crate) enum Note {
    /// The stream has failed for good.
    Broken(String),
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
    keeper: Keeper,
    arriving: Receiver<L>,
    opened: Receiver<Result<(), Error>>,
    end: End,
}

impl<L> Opening<L> {
    /// Waits until the device is open. Its live end arrives on the receiver, as it does each time it is opened again.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::NotFound`] or [`Error::Refused`].
    pub(crate) fn wait(self) -> Result<(Keeper, Receiver<L>), Error> {
        match self.opened.recv_timeout(OPEN_PATIENCE) {
            Ok(outcome) => outcome.map(|()| (self.keeper, self.arriving)),
            Err(_) => {
                let reason = format!("the sound system did not answer within {} s", OPEN_PATIENCE.as_secs());
                Err(Error::NoDevice { end: self.end, reason })
            }
        }
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
    Ok(Opening { keeper: Keeper { notes, ended }, arriving, opened, end: K::END })
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
    stream: cpal::Stream,
    beat: Arc<AtomicU64>,
    name: String,
    host: cpal::HostId,
}

impl<K: Kind> Job<K> {
    fn run(self, first: &SyncSender<Result<(), Error>>) {
        let _quiet = find::quiet_alsa();
        let mut hosts = Hosts::default();
        let mut running = match self.open(&mut hosts, &self.wanted, None) {
            Ok(running) => running,
            Err(e) => {
                let _ = first.send(Err(e));
                return;
            }
        };
        let name = running.name.clone();
        self.events.send(AudioEvent::DeviceOpened { at_ns: monotonic_ns(), end: K::END, name });
        let _ = first.send(Ok(()));
        loop {
            // Some devices take seconds to start, so whoever waits for the open device has it already.
            let lost = match running.stream.play() {
                Ok(()) => self.watch(&running),
                Err(e) => Some(e.to_string()),
            };
            let Some(reason) = lost else {
                close(running.stream);
                return;
            };
            let (name, host) = (running.name.clone(), running.host);
            close(running.stream);
            self.events.send(AudioEvent::DeviceLost {
                at_ns: monotonic_ns(),
                end: K::END,
                name: name.clone(),
                reason,
            });
            let Some(again) = self.reopen(&mut hosts, &name, host) else { return };
            running = again;
            let name = running.name.clone();
            self.events.send(AudioEvent::DeviceReopened { at_ns: monotonic_ns(), end: K::END, name });
        }
    }

    /// Returns why the device is lost, or nothing when told to stop.
    fn watch(&self, running: &Running) -> Option<String> {
        let opened = Instant::now();
        loop {
            match self.told.recv_timeout(LOOK_EVERY) {
                Ok(Note::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Ok(Note::Broken(reason)) => return Some(reason),
                Err(RecvTimeoutError::Timeout) => {
                    let silent = monotonic_ns().saturating_sub(running.beat.load(Ordering::Relaxed));
                    if opened.elapsed() > SILENT_FOR && u128::from(silent) > SILENT_FOR.as_nanos() {
                        return Some(format!("no sign of life for {} s", SILENT_FOR.as_secs()));
                    }
                }
            }
        }
    }

    /// Tries until a device is open or the keeper is told to stop.
    fn reopen(&self, hosts: &mut Hosts, name: &str, host: cpal::HostId) -> Option<Running> {
        let since = Instant::now();
        loop {
            // Errors of the stream that is gone are no news.
            while let Ok(note) = self.told.try_recv() {
                if matches!(note, Note::Stop) {
                    return None;
                }
            }
            // A host that lost its server never finds it again.
            *hosts = Hosts::default();
            let same = match &self.wanted {
                Wanted::Default => Wanted::Default,
                Wanted::Named(_) => Wanted::Named(name.to_owned()),
            };
            if let Ok(running) = self.open(hosts, &same, (since.elapsed() < SAME_FOR).then_some(host)) {
                return Some(running);
            }
            if since.elapsed() >= SAME_FOR
                && let Ok(running) = self.open(hosts, &Wanted::Default, None)
            {
                return Some(running);
            }
            match self.told.recv_timeout(RETRY_EVERY) {
                Ok(Note::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Ok(Note::Broken(_)) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn open(&self, hosts: &mut Hosts, wanted: &Wanted, only: Option<cpal::HostId>) -> Result<Running, Error> {
        let found = find::candidates(hosts, wanted, K::END, only)?;
        let mut reasons = found.reasons;
        for (device, name, host) in found.devices {
            match K::open(&device, self.shape, self.notes.clone()) {
                Ok(Opened { stream, live, beat }) => {
                    let _ = self.arrive.send(live);
                    return Ok(Running { stream, beat, name, host });
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
fn close(stream: cpal::Stream) {
    let (closed, wait) = channel();
    let closing = thread::Builder::new().name("sound close".into()).spawn(move || {
        drop(stream);
        let _ = closed.send(());
    });
    if closing.is_ok() {
        let _ = wait.recv_timeout(CLOSE_PATIENCE);
    }
}
