//! The figures of a measurement, as JSON and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::log::{NodeCost, NodeView, STAGES, Second};
use super::pipe::PipeCounts;
use super::proxy::LinkTiming;
use super::signal::{SignalReport, Spread};

/// Everything of one invocation.
#[derive(Debug, Serialize)]
pub struct BenchReport {
    /// Version of the program.
    pub version: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// What was asked for, to be typed again.
    pub command: String,
    /// Every call, in order.
    pub calls: Vec<CallReport>,
}

/// The machine: numbers without it compare with nothing.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// How many this process may use.
    pub cores: usize,
    /// Kernel.
    pub kernel: String,
    /// When, UTC.
    pub date: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split(": ").nth(1));

        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            cpu: model.unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        }
    }
}

/// One call of two nodes.
#[derive(Debug, Serialize)]
pub struct CallReport {
    /// Name of the link, or its specification.
    pub link: String,
    /// The link in words.
    pub about: String,
    /// Which repetition, the first being 0.
    pub rep: u64,
    /// Seed of the link's luck, before the repetition's offset.
    pub seed: u64,
    /// Both directions.
    pub directions: Vec<DirectionReport>,
    /// How exact the link was.
    pub timing: Option<LinkTiming>,
    /// What went wrong without ending the measurement.
    pub warnings: Vec<String>,
}

/// One voice of one call.
#[derive(Debug, Serialize)]
pub struct DirectionReport {
    /// Who speaks and who listens, as `a > b`.
    pub name: String,
    /// What the signal says.
    pub signal: Option<SignalReport>,
    /// Why it says nothing.
    pub signal_error: Option<String>,
    /// What the listener's node says.
    pub node: NodeView,
    /// The node's estimate minus what the signal says, ms: median over the seconds of the call.
    pub estimate_minus_measured_ms: Option<f64>,
    /// What the listener's node cost.
    pub cost: NodeCost,
    /// What this direction of the link carried.
    pub wire: Option<PipeCounts>,
    /// IP packets the talker put on the link, kbit/s over the call.
    pub wire_kbps: Option<f64>,
    /// The listener's figures, second by second.
    #[serde(skip)]
    pub timeline: Vec<Second>,
}

impl DirectionReport {
    /// Did the listener hear anything of what was said?
    pub fn heard(&self) -> bool {
        self.signal.is_some()
    }
}

impl BenchReport {
    /// Directions in which nothing was heard, as `link: a > b`.
    pub fn unheard(&self) -> Vec<String> {
        let of = |call: &CallReport| {
            let deaf = call.directions.iter().filter(|d| !d.heard());
            deaf.map(|d| format!("{}: {}", call.link, d.name)).collect::<Vec<_>>()
        };
        self.calls.iter().flat_map(of).collect()
    }

    /// The calls by their links, in order.
    pub fn links(&self) -> Vec<(&str, Vec<&CallReport>)> {
        let mut links: Vec<(&str, Vec<&CallReport>)> = Vec::new();
        for call in &self.calls {
            match links.iter_mut().find(|(link, _)| *link == call.link) {
                Some((_, calls)) => calls.push(call),
                None => links.push((&call.link, vec![call])),
            }
        }
        links
    }

    /// One block per link: a line per figure, a column per direction. Over several calls: median, and range.
    pub fn table(&self) -> String {
        let mut out = String::new();
        for (link, calls) in self.links() {
            block(&mut out, link, &calls);
        }
        out
    }
}

/// A line of the table: its label and where its figure comes from.
type Line = (&'static str, fn(&DirectionReport) -> Option<f64>);

const BEFORE_STAGES: [Line; 8] = [
    ("mouth to ear, p50 ms", |d| d.signal.as_ref().map(|s| s.lag_ms.p50)),
    ("              p95 ms", |d| d.signal.as_ref().map(|s| s.lag_ms.p95)),
    ("              p99 ms", |d| d.signal.as_ref().map(|s| s.lag_ms.p99)),
    ("first audio, ms after launch", |d| d.node.first_audio_ms),
    ("speech damaged, %", |d| d.signal.as_ref().map(|s| s.damaged_pct)),
    ("speech silent, %", |d| d.signal.as_ref().map(|s| s.silent_pct)),
    ("spectrum off by, dB", |d| d.signal.as_ref().map(|s| s.distance_db)),
    ("the node's own estimate, ms", |d| d.node.mouth_to_ear_ms),
];
const AFTER_STAGES: [Line; 9] = [
    ("  minus measured, ms", |d| d.estimate_minus_measured_ms),
    ("lost on the network, %", |d| d.node.loss_pct),
    ("recovered, % of played", |d| d.node.recovered_pct),
    ("concealed, % of played", |d| d.node.concealed_pct),
    ("late packets, %", |d| d.node.late_pct),
    ("link lost, %", |d| d.wire.map(|w| w.loss_pct())),
    ("on the wire, kbit/s", |d| d.wire_kbps),
    ("listener: CPU s/min", |d| d.cost.cpu_s_per_min),
    ("listener: memory, MiB", |d| d.cost.max_rss_mib),
];

const LABEL_WIDTH: usize = 30;
const COLUMN_WIDTH: usize = 24;

/// The figures of one link: a label, and a cell for each direction.
pub type Rows = Vec<(String, Vec<String>)>;

/// The names of the directions of these calls, and their figures. Over several calls: median, and range.
pub fn figures(calls: &[&CallReport]) -> (Vec<String>, Rows) {
    let mut columns: Vec<(&str, Vec<&DirectionReport>)> = Vec::new();
    for direction in calls.iter().flat_map(|call| &call.directions) {
        match columns.iter_mut().find(|(name, _)| *name == direction.name) {
            Some((_, reports)) => reports.push(direction),
            None => columns.push((&direction.name, vec![direction])),
        }
    }
    let mut rows = Rows::new();
    let mut line = |label: &str, figure: &dyn Fn(&DirectionReport) -> Option<f64>| {
        let cells: Vec<Option<String>> = columns
            .iter()
            .map(|(_, reports)| cell(&reports.iter().filter_map(|d| figure(d)).collect::<Vec<_>>()))
            .collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
            rows.push((label.to_owned(), cells.collect()));
        }
    };
    for (label, figure) in BEFORE_STAGES {
        line(label, &figure);
    }
    for stage in STAGES {
        line(&format!("  {}", stage.replace('_', " ")), &|d| d.node.stages_ms.get(stage).copied());
    }
    for (label, figure) in AFTER_STAGES {
        line(label, &figure);
    }
    (columns.into_iter().map(|(name, _)| name.to_owned()).collect(), rows)
}

/// What went wrong in these calls, each thing once.
pub fn notes(calls: &[&CallReport]) -> Vec<String> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let errors =
        calls.iter().flat_map(|call| call.directions.iter().filter_map(|d| d.signal_error.as_deref()));
    for warning in calls.iter().flat_map(|call| call.warnings.iter().map(String::as_str)).chain(errors) {
        *seen.entry(warning).or_default() += 1;
    }
    let times = |times: usize| if times > 1 { format!(" ({times} times)") } else { String::new() };
    seen.into_iter().map(|(warning, n)| format!("{warning}{}", times(n))).collect()
}

/// A link by its name and in words.
pub fn title(link: &str, calls: &[&CallReport]) -> String {
    let about = calls.first().map_or("", |call| call.about.as_str());
    let title = if about.is_empty() || about == link { link.to_owned() } else { format!("{link} ({about})") };
    let times =
        if calls.len() == 1 { String::new() } else { format!(", {} calls: median (range)", calls.len()) };
    title + &times
}

fn block(out: &mut String, link: &str, calls: &[&CallReport]) {
    let (columns, rows) = figures(calls);
    // Writing into a String cannot fail.
    let _ = writeln!(out, "{}", title(link, calls));
    let _ = write!(out, "{:LABEL_WIDTH$}", "");
    for name in &columns {
        let _ = write!(out, " {name:>COLUMN_WIDTH$}");
    }
    out.push('\n');
    for (label, cells) in rows {
        let _ = write!(out, "{label:LABEL_WIDTH$}");
        for cell in cells {
            let _ = write!(out, " {cell:>COLUMN_WIDTH$}");
        }
        out.push('\n');
    }
    for note in notes(calls) {
        let _ = writeln!(out, "note: {note}");
    }
    out.push('\n');
}

/// Rows under their heads, the first column to the left.
pub fn columns(head: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |i: usize| rows.iter().filter_map(move |row| row.get(i)).map(|cell| cell.chars().count());
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(i, name)| cells(i).chain([name.chars().count()]).max().unwrap_or(0))
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (i, (cell, width)) in cells.zip(&widths).enumerate() {
            // Writing into a String cannot fail.
            let _ = if i == 0 { write!(out, "{cell:width$}") } else { write!(out, "  {cell:>width$}") };
        }
        out + "\n"
    };
    let mut out = line(&mut head.iter().copied());
    rows.iter().for_each(|row| out.push_str(&line(&mut row.iter().map(String::as_str))));
    out
}

fn cell(values: &[f64]) -> Option<String> {
    let spread = Spread::of(values)?;
    Some(if values.len() == 1 {
        number(spread.p50)
    } else {
        format!("{} ({}..{})", number(spread.p50), number(spread.min), number(spread.max))
    })
}

/// A figure as it stands in a table.
pub fn number(x: f64) -> String {
    // Minus nothing is nothing.
    let x = if x == 0.0 { 0.0 } else { x };
    if x.abs() >= 1000.0 {
        format!("{x:.0}")
    } else if x.abs() < 2.0 {
        format!("{x:.2}")
    } else {
        format!("{x:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(rep: u64, p50: f64, estimate: Option<f64>) -> CallReport {
        let spread = Spread::of(&[p50 - 1.0, p50, p50 + 1.0]).unwrap();
        let signal = SignalReport {
            lag_ms: spread,
            windows: 3,
            matched: 3,
            frames: 10,
            damaged_pct: 0.5,
            silent_pct: 0.0,
            distance_db: 1.0,
            unheard_start_ms: 0.0,
            first_sound_ns: None,
            growth_ms: 0.0,
            track: Vec::new(),
        };
        let mut node = NodeView { mouth_to_ear_ms: estimate, ..NodeView::default() };
        node.stages_ms.insert("jitter_buffer".into(), 7.25);
        let direction = DirectionReport {
            name: "a > b".into(),
            signal: Some(signal),
            signal_error: None,
            node,
            estimate_minus_measured_ms: estimate.map(|e| e - p50),
            cost: NodeCost::default(),
            wire: None,
            wire_kbps: None,
            timeline: Vec::new(),
        };
        CallReport {
            link: "wan".into(),
            about: "far".into(),
            rep,
            seed: 1,
            directions: vec![direction],
            timing: None,
            warnings: vec!["slow".into()],
        }
    }

    fn report(calls: Vec<CallReport>) -> BenchReport {
        BenchReport { version: "0", machine: Machine::here(), command: String::new(), calls }
    }

    #[test]
    fn several_calls_of_a_link_become_one_block_of_medians_and_ranges() {
        let table =
            report(vec![call(0, 60.0, Some(61.0)), call(1, 64.0, Some(64.0)), call(2, 61.0, None)]).table();
        let line = |label: &str| table.lines().find(|line| line.contains(label)).unwrap().to_owned();
        assert!(table.starts_with("wan (far), 3 calls: median (range)\n"), "{table}");
        assert!(line("p50 ms").ends_with(" 61.0 (60.0..64.0)"), "{table}");
        assert!(line("own estimate").ends_with(" 62.5 (61.0..64.0)"), "{table}");
        assert!(line("minus measured").ends_with(" 0.50 (0.00..1.00)"), "{table}");
        assert!(line("jitter buffer").ends_with("7.2 (7.2..7.2)"), "{table}");
        assert!(table.contains("note: slow (3 times)"), "{table}");
        assert!(!table.contains("CPU"), "a figure nobody gave has no line: {table}");
    }

    #[test]
    fn who_heard_nothing_is_named() {
        let mut deaf = call(0, 1.0, None);
        deaf.directions[0].signal = None;
        assert_eq!(report(vec![call(0, 1.0, None), deaf]).unheard(), ["wan: a > b"]);
    }
}
