//! What a node said about itself: its `--json` events, read back.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::signal::median;

/// Events kept of one node: more than a day of `stats` with ten peers would bring is a fault, not a log.
pub const MAX_EVENTS: usize = 1_000_000;
/// Longest line, bytes.
pub const MAX_LINE: u64 = 1 << 20;

/// The stages of mouth-to-ear delay, in the order of the way of a voice.
pub const STAGES: [&str; 7] = ["capture", "encode", "send", "network", "jitter_buffer", "decode", "playback"];

/// The events of one node, oldest first.
#[derive(Clone, Debug, Default)]
pub struct EventLog(Vec<Value>);

/// What the listener's node says about one talker: medians over its `stats` events for delays, means for shares. A figure
/// that it never gave is absent, never 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeView {
    /// Its own estimate, ms.
    pub mouth_to_ear_ms: Option<f64>,
    /// The stages of that estimate, ms; in no order.
    pub stages_ms: BTreeMap<String, f64>,
    /// Round trip, ms.
    pub rtt_ms: Option<f64>,
    /// Delay kept in hand, ms.
    pub target_delay_ms: Option<f64>,
    /// Lost on the network, percent.
    pub loss_pct: Option<f64>,
    /// Of the played time, out of copies, FEC or DRED, percent.
    pub recovered_pct: Option<f64>,
    /// Of the played time, made up, percent.
    pub concealed_pct: Option<f64>,
    /// Packets that came too late, percent.
    pub late_pct: Option<f64>,
    /// From the start of the listener's process to the first sample of this talker in its ear, ms.
    pub first_audio_ms: Option<f64>,
    /// Path, at the end.
    pub path: Option<String>,
}

/// What a listener's node said about one talker in one second; what it did not know is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Second {
    /// When, monotonic ns.
    pub at_ns: u64,
    /// Its figures by their names in `stats`, stages by theirs.
    pub figures: BTreeMap<String, f64>,
}

/// What a node cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct NodeCost {
    /// Processor seconds, user and system, per minute of its life.
    pub cpu_s_per_min: Option<f64>,
    /// Largest resident memory, MiB.
    pub max_rss_mib: Option<f64>,
}

impl EventLog {
    /// Reads a file of events. Lines that are no JSON object are left out.
    pub fn read(path: &Path) -> std::io::Result<EventLog> {
        let mut log = EventLog::default();
        let mut lines = BufReader::new(std::fs::File::open(path)?);
        let mut line = Vec::new();
        while (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line)? > 0 {
            log.push(&line);
            line.clear();
        }
        Ok(log)
    }

    /// Adds one line; gives the event back if it is one.
    pub fn push(&mut self, line: &[u8]) -> Option<&Value> {
        let event: Value = serde_json::from_slice(line).ok()?;
        event.get("event")?.as_str()?;
        if self.0.len() >= MAX_EVENTS {
            return None;
        }
        self.0.push(event);
        self.0.last()
    }

    /// The first event of this name.
    pub fn first(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|event| is(event, name))
    }

    /// The last event of this name.
    pub fn last(&self, name: &str) -> Option<&Value> {
        self.0.iter().rev().find(|event| is(event, name))
    }

    /// Monotonic time of the first event of this name, ns.
    pub fn at_ns(&self, name: &str) -> Option<u64> {
        self.first(name)?.get("at_ns")?.as_u64()
    }

    /// The node's identity.
    pub fn peer_id(&self) -> Option<&str> {
        self.first("ready")?.get("peer_id")?.as_str()
    }

    /// The last `error` or `warning`, in the node's words.
    pub fn complaint(&self) -> Option<String> {
        let event = self.last("error").or_else(|| self.last("warning"))?;
        let part = |key| event.get(key).and_then(Value::as_str).unwrap_or_default();
        Some(format!("{}: {} {}", part("code"), part("message"), part("hint")).trim_end().to_owned())
    }

    /// What this node, as listener, says about `talker`; about everybody, if no talker is named.
    pub fn view_of(&self, talker: Option<&str>) -> NodeView {
        let about =
            |event: &&Value| talker.is_none() || event.get("peer_id").and_then(Value::as_str) == talker;
        let stats: Vec<&Value> = self.named("stats").filter(about).collect();
        let values = |path: &[&str]| -> Vec<f64> {
            let get =
                |event: &&Value| path.iter().try_fold(*event, |v, key| v.get(key)).and_then(Value::as_f64);
            stats.iter().filter_map(get).collect()
        };
        let middle = |key: &str| median(&values(&[key]));
        let stages_ms = STAGES
            .iter()
            .filter_map(|stage| {
                Some(((*stage).to_owned(), median(&values(&["mouth_to_ear_stages_ms", stage]))?))
            })
            .collect();
        NodeView {
            mouth_to_ear_ms: middle("mouth_to_ear_ms"),
            stages_ms,
            rtt_ms: middle("rtt_ms"),
            target_delay_ms: middle("target_delay_ms"),
            loss_pct: mean(&values(&["loss_pct"])),
            recovered_pct: mean(&values(&["recovered_pct"])),
            concealed_pct: mean(&values(&["concealed_pct"])),
            late_pct: mean(&values(&["late_pct"])),
            first_audio_ms: self
                .named("first_audio")
                .find(about)
                .and_then(|e| e.get("since_start_ms")?.as_f64()),
            path: stats.last().and_then(|e| Some(e.get("path")?.as_str()?.to_owned())),
        }
    }

    /// The mouth-to-ear estimates of the listener's node for `talker`: when each was told (ns), and ms.
    pub fn estimates(&self, talker: Option<&str>) -> Vec<(u64, f64)> {
        self.named("stats")
            .filter(|event| talker.is_none() || event.get("peer_id").and_then(Value::as_str) == talker)
            .filter_map(|event| {
                Some((event.get("at_ns")?.as_u64()?, event.get("mouth_to_ear_ms")?.as_f64()?))
            })
            .collect()
    }

    /// Everything that this node, as listener, said about `talker` once a second.
    pub fn timeline(&self, talker: Option<&str>) -> Vec<Second> {
        let numbers = |value: &Value| {
            let fields = value.as_object().into_iter().flatten();
            fields.filter_map(|(key, value)| Some((key.clone(), value.as_f64()?))).collect::<Vec<_>>()
        };
        self.named("stats")
            .filter(|event| talker.is_none() || event.get("peer_id").and_then(Value::as_str) == talker)
            .map(|event| {
                let stages = event.get("mouth_to_ear_stages_ms").map(numbers).unwrap_or_default();
                let figures = numbers(event).into_iter().chain(stages).collect();
                Second { at_ns: event.get("at_ns").and_then(Value::as_u64).unwrap_or(0), figures }
            })
            .collect()
    }

    /// Everybody this node told figures about, with the names they go by, in order of appearance.
    pub fn talkers(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = Vec::new();
        for event in self.named("stats") {
            let text = |key| event.get(key).and_then(Value::as_str);
            if let Some(id) = text("peer_id")
                && !all.iter().any(|(known, _)| known == id)
            {
                all.push((id.to_owned(), text("name").unwrap_or(id).to_owned()));
            }
        }
        all
    }

    /// What this node cost.
    pub fn cost(&self) -> NodeCost {
        let of = |key: &str| self.last("summary").and_then(|event| event.get(key)?.as_f64());
        let minutes = of("since_start_ms").map(|ms| ms / 60e3).filter(|minutes| *minutes > 0.0);
        NodeCost {
            cpu_s_per_min: of("cpu_s").zip(minutes).map(|(cpu, minutes)| cpu / minutes),
            max_rss_mib: of("max_rss_kb").map(|kb| kb / 1024.0),
        }
    }

    fn named(&self, name: &'static str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |event| is(event, name))
    }
}

fn is(event: &Value, name: &str) -> bool {
    event.get("event").and_then(Value::as_str) == Some(name)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &str) -> EventLog {
        let mut log = EventLog::default();
        for line in lines.lines() {
            log.push(line.as_bytes());
        }
        log
    }

    #[test]
    fn figures_of_the_right_talker_are_summed_up_and_unknown_ones_stay_unknown() {
        let log = log(concat!(
            r#"{"event":"ready","at_ns":5,"peer_id":"me","listen":[]}"#,
            "\nnot json\n{\"no\":\"event\"}\n",
            r#"{"event":"first_audio","at_ns":7,"peer_id":"b","since_start_ms":210.5}"#,
            "\n",
            r#"{"event":"stats","at_ns":8,"peer_id":"b","mouth_to_ear_ms":null,"loss_pct":null}"#,
            "\n",
            r#"{"event":"stats","at_ns":9,"peer_id":"b","mouth_to_ear_ms":20.0,"loss_pct":1.0,"path":"direct","mouth_to_ear_stages_ms":{"network":4.0}}"#,
            "\n",
            r#"{"event":"stats","at_ns":9,"peer_id":"c","mouth_to_ear_ms":900.0,"loss_pct":50.0}"#,
            "\n",
            r#"{"event":"stats","at_ns":9,"peer_id":"b","mouth_to_ear_ms":22.0,"loss_pct":3.0,"path":"direct","mouth_to_ear_stages_ms":{"network":6.0}}"#,
            "\n",
            r#"{"event":"summary","at_ns":10,"since_start_ms":30000,"cpu_s":0.5,"max_rss_kb":20480}"#,
        ));
        let view = log.view_of(Some("b"));
        assert_eq!(
            (view.mouth_to_ear_ms, view.loss_pct, view.first_audio_ms),
            (Some(21.0), Some(2.0), Some(210.5))
        );
        assert_eq!(
            (view.stages_ms["network"], view.rtt_ms, view.path.as_deref()),
            (5.0, None, Some("direct"))
        );
        assert_eq!(log.cost(), NodeCost { cpu_s_per_min: Some(1.0), max_rss_mib: Some(20.0) });
        assert_eq!((log.peer_id(), log.at_ns("ready")), (Some("me"), Some(5)));
    }

    #[test]
    fn a_file_of_anything_is_read_without_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        std::fs::write(&path, b"\xff\xfe{}\n\n[1]\n{\"event\":3}\n{\"event\":\"ready\",\"at_ns\":-1}")
            .unwrap();
        let log = EventLog::read(&path).unwrap();
        assert_eq!((log.0.len(), log.at_ns("ready"), log.peer_id()), (1, None, None));
        assert_eq!(log.view_of(None), NodeView::default());
    }
}
