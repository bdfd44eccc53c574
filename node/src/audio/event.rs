//! What happens at the sound edge and others want to know. Bounded: when nobody listens, news are dropped, never
//! queued without end, and no sender ever waits.

use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::clock::{NS_PER_SECOND, RATE_HZ, frames_to_ns};

/// Events kept for a listener that is late; more are dropped.
pub const MAX_EVENTS: usize = 256;

/// Which end of the sound edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Microphone, `file:` input, `tone:`, `silence`.
    Input,
    /// Loudspeaker, `file:` output, `null`.
    Output,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Output => "output",
        })
    }
}

/// News from the sound edge. `at_ns` is CLOCK_MONOTONIC.
#[derive(Debug, Clone, PartialEq)]
pub enum AudioEvent {
    /// `at_ns`: the first sample was captured (of the file, if the input is one).
    InputStarted {
        /// When.
        at_ns: u64,
        /// Frames a second as handed over: always 48,000.
        rate_hz: u32,
        /// 1 or 2.
        channels: u16,
        /// Length of a period, milliseconds.
        period_ms: f64,
    },
    /// `at_ns`: the first sample was played.
    OutputStarted {
        /// When.
        at_ns: u64,
        /// Frames a second as taken: always 48,000.
        rate_hz: u32,
        /// 1 or 2.
        channels: u16,
        /// Length of a period, milliseconds.
        period_ms: f64,
    },
    /// Sound was lost because somebody was late. At most one a second and end; `count` is new since the last.
    Xrun {
        /// When it was noticed.
        at_ns: u64,
        /// Where.
        end: End,
        /// How many since the last such event.
        count: u64,
    },
    /// A device was opened, at the start or instead of another.
    DeviceOpened {
        /// When.
        at_ns: u64,
        /// Which end.
        end: End,
        /// The device.
        name: String,
        /// For whom: the number that [`EndOpener`](super::EndOpener) was given, 0 at the start.
        order: u64,
    },
    /// The device went away. Silence goes on in its place and it is tried again without end.
    DeviceLost {
        /// When it was noticed.
        at_ns: u64,
        /// Which end.
        end: End,
        /// The device.
        name: String,
        /// What the system said.
        reason: String,
    },
    /// A device is back: the same, or the system's default in its place.
    DeviceReopened {
        /// When.
        at_ns: u64,
        /// Which end.
        end: End,
        /// The device that plays or captures now.
        name: String,
    },
    /// The `file:` input has been played to its end; silence follows.
    InputFinished {
        /// When its last sample was captured.
        at_ns: u64,
    },
    /// The recording stopped. The file is closed and playable; the call goes on.
    WriteFailed {
        /// When.
        at_ns: u64,
        /// The recording.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

/// Sends without ever waiting.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    sender: SyncSender<AudioEvent>,
    /// For which order an end is opened that tells its news here.
    pub(crate) order: u64,
}

impl Events {
    pub(crate) fn new() -> (Self, Receiver<AudioEvent>) {
        let (sender, receiver) = sync_channel(MAX_EVENTS);
        (Self { sender, order: 0 }, receiver)
    }

    pub(crate) fn send(&self, event: AudioEvent) {
        // A full queue means that nobody listens: old news would help nobody either.
        let _ = self.sender.try_send(event);
    }

    pub(crate) fn started(&self, end: End, at_ns: u64, channels: u16, period: u32) {
        let (rate_hz, period_ms) = (RATE_HZ, frames_to_ns(u64::from(period)) as f64 / 1e6);
        self.send(match end {
            End::Input => AudioEvent::InputStarted { at_ns, rate_hz, channels, period_ms },
            End::Output => AudioEvent::OutputStarted { at_ns, rate_hz, channels, period_ms },
        });
    }
}

/// Counts losses of one end and tells about them at most once a second.
#[derive(Debug)]
pub(crate) struct Xruns {
    end: End,
    total: u64,
    told: u64,
    told_at_ns: Option<u64>,
}

impl Xruns {
    pub(crate) fn new(end: End) -> Self {
        Self { end, total: 0, told: 0, told_at_ns: None }
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn add(&mut self, count: u64) {
        self.total += count;
    }

    pub(crate) fn tell(&mut self, now_ns: u64, events: &Events) {
        let quiet = self.told_at_ns.is_none_or(|at| now_ns.saturating_sub(at) >= NS_PER_SECOND);
        if self.total > self.told && quiet {
            events.send(AudioEvent::Xrun { at_ns: now_ns, end: self.end, count: self.total - self.told });
            self.told = self.total;
            self.told_at_ns = Some(now_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_losses_becomes_one_event_a_second_and_none_is_forgotten() {
        let (events, heard) = Events::new();
        let mut xruns = Xruns::new(End::Output);
        for ms in 0..3000u64 {
            xruns.add(1);
            xruns.tell(ms * 1_000_000, &events);
        }
        xruns.tell(10 * NS_PER_SECOND, &events);
        let counts: Vec<u64> = heard
            .try_iter()
            .map(|e| match e {
                AudioEvent::Xrun { count, .. } => count,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(counts, [1, 1000, 1000, 999]);
    }

    #[test]
    fn news_that_nobody_reads_are_dropped_and_the_sender_never_waits() {
        let (events, heard) = Events::new();
        for at_ns in 0..(MAX_EVENTS as u64 + 50) {
            events.send(AudioEvent::InputFinished { at_ns });
        }
        assert_eq!(heard.try_iter().count(), MAX_EVENTS);
    }
}
