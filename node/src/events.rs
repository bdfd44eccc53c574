//! What a node tells the outside: one JSON object a line, or plain lines for people.
//!
//! Names and meanings are the project's outer contract: scripts and dashboards hold on to them. Durations are
//! milliseconds, names end in the unit, a figure that is not known yet is `null` and never 0.

use std::{io::Write, time::Duration};

use libp2p::{Multiaddr, PeerId};
use serde::{Serialize, Serializer};
use tokio::sync::mpsc;

use crate::{
    audio::End,
    clock,
    controls::{Controls, Hearing},
    trust::Standing,
};

mod figures;
mod words;

pub use figures::{PeerStats, PeerSummary, Percentiles, Processing, Sending, Summary};
pub(crate) use words::{processing_in_words, secrecy, sentence};

/// Events that may wait for a slow reader. `stats` may take three quarters of them: the next ones follow in a second,
/// while what happened happens once.
pub const MAX_WAITING_EVENTS: usize = 1024;

/// Whether an event may wait in this queue now: figures leave a quarter of it to everything else.
pub fn has_room(queue: &mpsc::Sender<Stamped>, event: &Event) -> bool {
    let reserved = if matches!(event, Event::Stats(_)) { queue.max_capacity() / 4 } else { 0 };
    queue.capacity() > reserved
}

/// An event and the moment it happened.
#[derive(Debug, Clone, Serialize)]
pub struct Stamped {
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// CLOCK_MONOTONIC nanoseconds of this machine.
    pub at_ns: u64,
}

impl Stamped {
    /// Stamps an event with the present moment.
    pub fn now(event: Event) -> Self {
        Self { event, at_ns: clock::now_ns() }
    }
}

/// What happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)] // the fields are the contract's, and documented there and in docs/events.md
pub enum Event {
    Ready {
        #[serde(serialize_with = "display")]
        peer_id: PeerId,
        #[serde(serialize_with = "display_all")]
        listen: Vec<Multiaddr>,
        version: &'static str,
    },
    Rendezvous {
        state: RendezvousState,
        #[serde(serialize_with = "display_option")]
        peer_id: Option<PeerId>,
        #[serde(serialize_with = "display")]
        addr: Multiaddr,
    },
    Joined {
        room: String,
        open: bool,
        /// Until nobody new is let in; `None`: no end.
        closes_in_s: Option<u64>,
        /// The invite is for one guest.
        single_use: bool,
        /// The file that what is said in writing is kept in.
        history: Option<String>,
        since_start_ms: f64,
    },
    InputStarted(Card),
    OutputStarted(Card),
    InputFinished,
    Peer {
        #[serde(serialize_with = "display")]
        peer_id: PeerId,
        name: Option<String>,
        state: PeerState,
        path: Option<PathKind>,
        #[serde(flatten)]
        outlook: Outlook,
        verified: bool,
        since_start_ms: f64,
        reason: Option<&'static str>,
    },
    FirstAudio {
        #[serde(serialize_with = "display")]
        peer_id: PeerId,
        since_start_ms: f64,
    },
    Stats(Box<PeerStats>),
    Chat {
        #[serde(serialize_with = "display")]
        peer_id: PeerId,
        name: String,
        text: String,
        /// At most 2^53 - 1, so that every reader of JSON holds it exactly.
        id: u64,
    },
    /// What we said in writing, after it was sent.
    Said {
        text: String,
        id: u64,
    },
    /// What is set about our voice and ears has changed.
    Controls(Controls),
    /// What is done to our voice has changed.
    Processing(Processing),
    /// How one person is heard here has changed.
    Volume {
        #[serde(serialize_with = "display")]
        peer_id: PeerId,
        #[serde(flatten)]
        hearing: Hearing,
    },
    /// What we know of somebody's name and key.
    Trust {
        #[serde(serialize_with = "display")]
        peer_id: PeerId,
        name: String,
        trust: Standing,
    },
    /// Words to compare aloud: the same at the other end, unless somebody stands in between.
    Compare {
        #[serde(serialize_with = "display")]
        peer_id: PeerId,
        words: String,
    },
    /// A sound device was opened, lost, or opened again.
    Device {
        end: End,
        name: String,
        state: DeviceState,
    },
    Warning(Notice),
    Error(Notice),
    Summary(Box<Summary>),
}

/// Where a sound device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum DeviceState {
    Opened,
    Lost,
    Reopened,
}

impl Event {
    /// What the log keeps of it: nothing that was said, nobody's name, of PeerIds what tells them apart.
    pub fn log(&self) {
        match self {
            Self::Ready { peer_id, version, .. } => tracing::info!(me = short(peer_id), version, "ready"),
            Self::Rendezvous { state, addr, .. } => tracing::info!(?state, %addr, "rendezvous"),
            Self::Joined { open, .. } => tracing::info!(open, "joined"),
            Self::InputStarted(card) => tracing::info!(card.period_ms, card.channels, "input started"),
            Self::OutputStarted(card) => tracing::info!(card.period_ms, card.channels, "output started"),
            Self::Peer { peer_id, state, path, reason, .. } => {
                tracing::info!(peer = short(peer_id), ?state, ?path, reason, "peer");
            }
            Self::FirstAudio { peer_id, since_start_ms } => {
                tracing::info!(peer = short(peer_id), since_start_ms, "first audio");
            }
            Self::Warning(notice) => tracing::warn!(target: "hallway::told", code = notice.code, "warning"),
            Self::Error(notice) => tracing::warn!(target: "hallway::told", code = notice.code, "error"),
            Self::Stats(stats) => tracing::debug!(
                peer = short(&stats.peer_id),
                mouth_to_ear_ms = stats.mouth_to_ear_ms,
                loss_pct = stats.loss_pct,
                concealed_pct = stats.concealed_pct,
                "stats"
            ),
            _ => {}
        }
    }
}

/// Something for a person to know, and what to do about it.
#[derive(Debug, Clone, Serialize)]
pub struct Notice {
    /// A stable name for scripts.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

/// A sound card that began to run.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Card {
    /// Always 48000: the engine's rate, whatever the device's.
    pub sample_rate_hz: u32,
    /// 1, or 2 in `music`.
    pub channels: u16,
    /// Time between two calls of the card.
    pub period_ms: f64,
}

/// Where a rendezvous server stands with us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum RendezvousState {
    Connected,
    Registered,
    Lost,
}

/// Where a peer stands with us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum PeerState {
    Discovered,
    Connecting,
    Connected,
    PathChanged,
    Reconnecting,
    Left,
}

/// The rung of the path ladder that a peer's voice takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum PathKind {
    Direct,
    Punched,
    Relayed,
    Tcp,
}

/// Why a peer's path is the one it is, and when a better one is tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Outlook {
    /// Why this rung of the ladder, and no better one. `None` without a path.
    pub path_why: Option<&'static str>,
    /// Until a better path is tried. `None` where there is none to be tried.
    pub next_attempt_ms: Option<f64>,
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// One readable line, and nothing for the figures of every second but a short one.
    Plain,
}

/// Writes one event. Plain text leaves out what only machines want.
///
/// # Errors
/// Where the output is closed or full.
pub fn write(out: &mut impl Write, format: Format, stamped: &Stamped) -> std::io::Result<()> {
    match format {
        Format::Json => {
            serde_json::to_writer(&mut *out, stamped)?;
            out.write_all(b"\n")?;
        }
        Format::Plain => {
            if let Some(line) = sentence(&stamped.event) {
                writeln!(out, "{line}")?;
            }
        }
    }
    out.flush()
}

/// The tail of a PeerId: enough to tell the people of a room apart, too little to prove who they are.
pub fn short(peer: &PeerId) -> String {
    let text = peer.to_base58();
    let tail = text.len().saturating_sub(6);
    text.get(tail..).unwrap_or(&text).to_owned()
}

/// Milliseconds as the contract wants them.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

pub(crate) fn display<S: Serializer>(
    value: &impl std::fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

pub(crate) fn display_option<S: Serializer>(
    value: &Option<impl std::fmt::Display>,
    s: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => s.collect_str(value),
        None => s.serialize_none(),
    }
}

pub(crate) fn display_all<S: Serializer>(values: &[Multiaddr], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(Multiaddr::to_string))
}
#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn json(event: Event) -> serde_json::Value {
        let mut out = Vec::new();
        write(&mut out, Format::Json, &Stamped { event, at_ns: 7 }).unwrap();
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1, "one object a line");
        serde_json::from_slice(&out).unwrap()
    }

    fn policy() -> hallway_codec::Policy {
        hallway_codec::Policy {
            frame: hallway_codec::Samples(120),
            application: hallway_codec::Application::LowDelay,
            bitrate: 64_000,
            complexity: 5,
            fec: false,
            loss_perc: 10,
            dred_ms: 0,
            copies: vec![2],
            half: vec![1],
        }
    }

    pub(crate) fn figures() -> Event {
        Event::Stats(Box::new(PeerStats {
            peer_id: PeerId::random(),
            name: "ana".into(),
            path: None,
            outlook: Outlook::default(),
            remote: None,
            rtt_ms: None,
            one_way_ms: None,
            clock_error_ms: None,
            jitter_ms: None,
            loss_pct: None,
            recovered_pct: None,
            concealed_pct: None,
            late_pct: None,
            target_delay_ms: None,
            buffer_ms: None,
            mouth_to_ear_ms: None,
            mouth_to_ear_stages_ms: None,
            drift_ppm: None,
            send_kbps: None,
            recv_kbps: None,
            frame_ms: None,
            level_dbov: None,
            processing: Processing::default(),
            policy: Sending::of(&policy(), false),
            xruns: 0,
            rejected: 0,
        }))
    }

    #[test]
    fn an_event_carries_its_name_and_moment() {
        let value = json(Event::Joined {
            room: "kitchen".into(),
            open: true,
            closes_in_s: None,
            single_use: false,
            history: None,
            since_start_ms: 1.5,
        });
        assert_eq!(value["event"], "joined");
        assert_eq!(value["at_ns"], 7);
        assert_eq!(value["room"], "kitchen");
        let card = Card { sample_rate_hz: 48_000, channels: 1, period_ms: 2.5 };
        assert_eq!(json(Event::InputStarted(card))["event"], "input_started");
        let value = json(Event::InputStarted(card));
        assert_eq!(
            (value["sample_rate_hz"].as_u64(), value["period_ms"].as_f64()),
            (Some(48_000), Some(2.5))
        );
    }

    #[test]
    fn what_is_unknown_is_null() {
        let peer_id = PeerId::random();
        let value = json(Event::Peer {
            peer_id,
            name: None,
            state: PeerState::PathChanged,
            path: None,
            outlook: Outlook::default(),
            verified: false,
            since_start_ms: 0.0,
            reason: None,
        });
        assert_eq!(value["state"], "path_changed");
        assert!(value["name"].is_null() && value["path"].is_null());
        let object = value.as_object().unwrap();
        assert!(["path_why", "next_attempt_ms"].iter().all(|field| object[*field].is_null()));
        assert_eq!(value["peer_id"], peer_id.to_string());
    }

    #[test]
    fn figures_leave_a_quarter_of_the_queue_to_what_happens_once() {
        let (queue, _reader) = mpsc::channel(8);
        let stats = figures();
        let mut waiting = 0;
        while has_room(&queue, &stats) {
            queue.try_send(Stamped::now(stats.clone())).unwrap();
            waiting += 1;
        }
        assert_eq!(waiting, 6);
        for _ in 0..2 {
            assert!(has_room(&queue, &Event::InputFinished));
            queue.try_send(Stamped::now(Event::InputFinished)).unwrap();
        }
        assert!(!has_room(&queue, &Event::InputFinished));
    }

    #[test]
    fn the_policy_is_told_in_milliseconds_and_kilobits() {
        let value = serde_json::to_value(Sending::of(&policy(), false)).unwrap();
        assert_eq!((value["frame_ms"].as_f64(), value["bitrate_kbps"].as_f64()), (Some(2.5), Some(64.0)));
        assert_eq!((value["loss_pct"].as_u64(), value["dred_ms"].as_u64()), (Some(10), Some(0)));
    }
}
