//! `hallway bench room`: many nodes in one room on this machine. Who heard whom, how late, with which gaps, at what cost.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;

use super::command::Out;
use super::lag::meeting_point;
use super::log::EventLog;
use super::nodes::Program;
use super::page::Page;
use super::plot::{Mark, Plot, Series};
use super::report::{Machine, columns, number};
use super::signal::median;

/// Most nodes started at once: more than a room holds would measure a refusal.
pub const MAX_NODES: u64 = crate::room::MAX_MEMBERS as u64;
const LEAVE_WITHIN: Duration = Duration::from_secs(15);

/// A full room.
#[derive(Clone, Debug, clap::Args)]
pub struct RoomArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=MAX_NODES))]
    pub nodes: u64,
    /// How many of them speak, a tone each; the others are silent
    #[arg(long, value_name = "N")]
    pub speakers: Option<u64>,
    /// How long they stay
    #[arg(long = "for", value_name = "DURATION", default_value = "20s", value_parser = humantime::parse_duration)]
    pub duration: Duration,
    /// One more argument for all nodes, as --node-arg=--profile --node-arg=music; repeatable
    #[arg(long = "node-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub node_args: Vec<String>,
    /// Where the figures go.
    #[command(flatten)]
    pub out: Out,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct RoomReport {
    /// Version of the program.
    pub version: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// What was typed.
    pub command: String,
    /// Every node.
    pub nodes: Vec<NodeFigures>,
    /// What went wrong without ending the measurement.
    pub warnings: Vec<String>,
}

/// One node's figures.
#[derive(Debug, Serialize)]
pub struct NodeFigures {
    /// Its name.
    pub name: String,
    /// How many of the others it had figures about.
    pub heard: usize,
    /// Its estimate of the delay of the others, ms: median, and the worst of their medians.
    pub lag_ms: Option<f64>,
    /// See there.
    pub worst_lag_ms: Option<f64>,
    /// Of the time played of the worst heard, percent made up.
    pub concealed_pct: Option<f64>,
    /// Times that its sound card was missed.
    pub xruns: Option<f64>,
    /// Processor seconds per minute.
    pub cpu_s_per_min: Option<f64>,
    /// Largest resident memory, MiB.
    pub max_rss_mib: Option<f64>,
}

const COLUMNS: [&str; 8] =
    ["", "heard", "lag p50 ms", "worst lag ms", "concealed %", "xruns", "CPU s/min", "memory MiB"];

impl NodeFigures {
    fn of(name: String, log: &EventLog) -> Self {
        let talkers = log.talkers();
        let views: Vec<_> = talkers.iter().map(|(id, _)| log.view_of(Some(id))).collect();
        let lags: Vec<f64> = views.iter().filter_map(|view| view.mouth_to_ear_ms).collect();
        let concealed = views.iter().filter_map(|view| view.concealed_pct);
        let cost = log.cost();
        Self {
            name,
            heard: views.iter().filter(|view| view.concealed_pct.is_some()).count(),
            lag_ms: median(&lags),
            worst_lag_ms: lags.iter().copied().reduce(f64::max),
            concealed_pct: concealed.reduce(f64::max),
            xruns: log.last("summary").and_then(|event| event.get("xruns").and_then(Value::as_f64)),
            cpu_s_per_min: cost.cpu_s_per_min,
            max_rss_mib: cost.max_rss_mib,
        }
    }

    fn cells(&self) -> Vec<String> {
        let cell = |value: Option<f64>| value.map_or("-".into(), number);
        vec![
            self.name.clone(),
            self.heard.to_string(),
            cell(self.lag_ms),
            cell(self.worst_lag_ms),
            cell(self.concealed_pct),
            self.xruns.map_or("-".into(), |n| format!("{n:.0}")),
            cell(self.cpu_s_per_min),
            cell(self.max_rss_mib),
        ]
    }
}

impl RoomReport {
    /// A line for each node.
    pub fn table(&self) -> String {
        let rows: Vec<Vec<String>> = self.nodes.iter().map(NodeFigures::cells).collect();
        let notes = self.warnings.iter().map(|warning| format!("note: {warning}\n"));
        columns(&COLUMNS, &rows) + &notes.collect::<String>()
    }

    /// The same for a browser.
    pub fn page(&self) -> Page {
        let mut page = Page::new(&format!("A room of {}", self.nodes.len()), &self.machine, &self.command);
        let rows: Vec<Vec<String>> = self.nodes.iter().map(NodeFigures::cells).collect();
        page.table(&COLUMNS.map(str::to_owned), &rows);
        self.warnings.iter().for_each(|warning| page.note(warning));
        let plot = |title: &str, unit: &str, of: fn(&NodeFigures) -> Option<f64>| {
            let points = self.nodes.iter().enumerate().filter_map(|(i, node)| Some((i as f64, of(node)?)));
            Plot {
                title: title.into(),
                x: "node".into(),
                y: unit.into(),
                mark: Mark::Bars,
                series: vec![Series { name: title.into(), points: points.collect() }],
            }
        };
        page.plots(&[
            plot("Delay", "ms", |node| node.lag_ms),
            plot("Concealed, worst voice", "% of played time", |node| node.concealed_pct),
            plot("Processor", "s per minute", |node| node.cpu_s_per_min),
            plot("Memory", "MiB", |node| node.max_rss_mib),
        ]);
        page
    }
}

/// Starts everybody, waits, and sums up.
///
/// # Errors
/// Where a program cannot be started.
pub async fn measure(args: &RoomArgs, dir: &Path) -> anyhow::Result<RoomReport> {
    if args.duration < Duration::from_secs(4) {
        bail!("--for must be 4 s or more: the nodes need a moment to meet");
    }
    let binary = std::env::current_exe().context("finding this program's own file")?;
    let home = |name: &str| dir.join(format!("home-{name}")).display().to_string();
    let text = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    let listen = "/ip4/127.0.0.1/udp/0/quic-v1";
    let server = text(&["rendezvous", "--listen", listen, "--data-dir", &home("rendezvous"), "--json"]);
    let mut server = Program::start("rendezvous", &binary, &server, dir)?;
    server.ready().await?;
    let at = meeting_point(&server.log())?;
    let speakers = args.speakers.unwrap_or(args.nodes);
    let mut running = Vec::new();
    for n in 0..args.nodes {
        let name = format!("n{n}");
        let input = if n < speakers { format!("tone:{}", 300 + 100 * n) } else { "silence".into() };
        let mut line =
            text(&["join", "bench-room", "--at", &at, "--name", &name, "--data-dir", &home(&name)]);
        line.extend(text(&["--input", &input, "--output", "null", "--listen", listen, "--json", "--for"]));
        line.push(humantime::format_duration(args.duration).to_string());
        line.extend(args.node_args.iter().cloned());
        running.push((name.clone(), Program::start(&name, &binary, &line, dir)?));
    }
    let (mut nodes, mut warnings) = (Vec::new(), Vec::new());
    for (name, program) in running {
        let (log, wrong) = program.finish(args.duration + LEAVE_WITHIN).await;
        warnings.extend(wrong);
        nodes.push(NodeFigures::of(name, &log));
    }
    server.end().await;
    for node in nodes.iter().filter(|node| node.heard as u64 + 1 < args.nodes) {
        warnings.push(format!("{} heard {} of {}", node.name, node.heard, args.nodes - 1));
    }
    Ok(RoomReport {
        version: env!("CARGO_PKG_VERSION"),
        machine: Machine::here(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        nodes,
        warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_voice_of_a_node_is_told_and_the_deaf_are_counted() {
        let mut log = EventLog::default();
        for (id, concealed, lag) in [("b", "0.5", "20.0"), ("c", "2.0", "24.0"), ("d", "null", "null")] {
            let line = format!(
                r#"{{"event":"stats","at_ns":1,"peer_id":"{id}","concealed_pct":{concealed},"mouth_to_ear_ms":{lag}}}"#
            );
            log.push(line.as_bytes());
        }
        log.push(br#"{"event":"summary","at_ns":2,"xruns":3,"since_start_ms":60000,"cpu_s":0.5,"max_rss_kb":2048}"#);
        let node = NodeFigures::of("a".into(), &log);
        assert_eq!(node.cells(), ["a", "2", "22.0", "24.0", "2.0", "3", "0.50", "2.0"]);
    }
}
