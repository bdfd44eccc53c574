//! `hallway lag ROOM`: joins a room that people are in, listens for a while, and says how late each of them is heard.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::command::print;
use super::log::{EventLog, Second};
use super::nodes::Program;
use super::pages;
use super::report::{Machine, number};
use super::signal::Spread;
use crate::invite::Invite;

/// A probe into a room.
#[derive(Clone, Debug, clap::Args)]
pub struct LiveArgs {
    /// A room's name (kitchen) or an invite (hallway:kitchen?...)
    #[arg(value_parser = readable)]
    room: String,
    /// A rendezvous server (repeatable); with /p2p/PEERID at the end its identity is checked
    #[arg(long, value_name = "MULTIADDR")]
    at: Vec<String>,
    /// How others see the probe
    #[arg(long, default_value = "lag probe")]
    name: String,
    /// What the probe says: default, a device's name, file:PATH.wav, tone:HZ or silence
    #[arg(long, default_value = "silence", value_name = "SOURCE")]
    input: String,
    /// Where it hears: null, which adds nothing of its own, or as for join, which adds the device
    #[arg(long, default_value = "null", value_name = "SINK")]
    output: String,
    /// How long to listen
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Print the same events as join --json instead of a table
    #[arg(long)]
    json: bool,
    /// Writes plots for a browser to this file
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Identity to join with; by default a new one that is forgotten afterwards
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// The room is checked here and given on as it was typed.
fn readable(text: &str) -> Result<String, String> {
    text.parse::<Invite>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// How late everybody was.
#[derive(Debug, Serialize)]
pub struct LiveReport {
    /// Where it ran.
    pub machine: Machine,
    /// What was typed.
    pub command: String,
    /// Everybody heard.
    pub peers: Vec<PeerLag>,
}

/// How late one member is heard.
#[derive(Debug, Serialize)]
pub struct PeerLag {
    /// Who.
    pub peer_id: String,
    /// The name they go by.
    pub name: String,
    /// How they were reached.
    pub path: Option<String>,
    /// The node's estimates, ms.
    pub lag_ms: Option<Spread>,
    /// Medians, ms.
    pub rtt_ms: Option<f64>,
    /// Means over the time, percent.
    pub loss_pct: Option<f64>,
    /// Of the played time, percent.
    pub concealed_pct: Option<f64>,
    /// Second by second.
    #[serde(skip)]
    pub timeline: Vec<Second>,
}

/// Heads of the table.
pub const COLUMNS: [&str; 8] =
    ["", "lag p50 ms", "p95 ms", "p99 ms", "round trip ms", "lost %", "concealed %", "path"];
/// The node leaves by itself; so much later it is made to.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

impl PeerLag {
    /// Its line of the table.
    pub fn cells(&self) -> Vec<String> {
        let cell = |value: Option<f64>| value.map_or("-".into(), number);
        let lag = |of: fn(&Spread) -> f64| cell(self.lag_ms.as_ref().map(of));
        vec![
            self.name.clone(),
            lag(|s| s.p50),
            lag(|s| s.p95),
            lag(|s| s.p99),
            cell(self.rtt_ms),
            cell(self.loss_pct),
            cell(self.concealed_pct),
            self.path.clone().unwrap_or_else(|| "-".into()),
        ]
    }
}

/// Joins, listens, leaves, and prints. The exit code is 3 where nobody was heard.
///
/// # Errors
/// Where the node cannot be started or ends badly, in its words.
pub async fn run(args: LiveArgs) -> anyhow::Result<ExitCode> {
    let place = tempfile::Builder::new().prefix("hallway-lag-").tempdir()?;
    let binary = std::env::current_exe().context("finding this program's own file")?;
    let home = args.data_dir.clone().unwrap_or_else(|| place.path().join("home"));
    let mut line: Vec<String> =
        ["join", &args.room, "--headless", "--json"].into_iter().map(str::to_owned).collect();
    let options = [
        ("--name", args.name.clone()),
        ("--input", args.input.clone()),
        ("--output", args.output.clone()),
        ("--for", humantime::format_duration(args.duration).to_string()),
        ("--data-dir", home.display().to_string()),
    ];
    let places = args.at.iter().map(|at| ("--at", at.clone()));
    line.extend(options.into_iter().chain(places).flat_map(|(key, value)| [key.to_owned(), value]));
    let probe = Program::start_with("probe", &binary, &line, place.path(), args.json)?;
    // A Ctrl-C reaches the probe too: it leaves, and what it saw is still told.
    let mut ctrl_c = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let told = tokio::spawn(async move { while ctrl_c.recv().await.is_some() {} });
    let (log, wrong) = probe.finish(args.duration + LEAVE_WITHIN).await;
    told.abort();
    if let Some(wrong) = wrong {
        anyhow::bail!("{wrong}");
    }
    let report = LiveReport {
        machine: Machine::here(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        peers: log.talkers().into_iter().map(|(id, name)| peer(&log, id, name)).collect(),
    };
    if !args.json {
        print(&table(&report))?;
    }
    if let Some(path) = &args.report {
        std::fs::write(path, pages::live(&report).html())
            .with_context(|| format!("writing {}", path.display()))?;
    }
    // Members who were never heard have figures too.
    let nobody = report.peers.iter().all(|peer| peer.lag_ms.is_none());
    Ok(ExitCode::from(if nobody { 3 } else { 0 }))
}

fn peer(log: &EventLog, peer_id: String, name: String) -> PeerLag {
    let view = log.view_of(Some(&peer_id));
    let estimates: Vec<f64> = log.estimates(Some(&peer_id)).into_iter().map(|(_, ms)| ms).collect();
    PeerLag {
        timeline: log.timeline(Some(&peer_id)),
        lag_ms: Spread::of(&estimates),
        rtt_ms: view.rtt_ms,
        loss_pct: view.loss_pct,
        concealed_pct: view.concealed_pct,
        path: view.path,
        // It comes from a stranger and goes to a terminal.
        name: crate::text::clean_name(&name),
        peer_id,
    }
}

fn table(report: &LiveReport) -> String {
    if report.peers.is_empty() {
        return "nobody was heard in this room\n".into();
    }
    let rows: Vec<Vec<String>> = report.peers.iter().map(PeerLag::cells).collect();
    super::report::columns(&COLUMNS, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_with_two_people_becomes_a_line_each_and_unknown_stays_unknown() {
        let mut log = EventLog::default();
        for (id, lag) in [("a", "41.5"), ("a", "43.5"), ("b", "null")] {
            let line = format!(
                r#"{{"event":"stats","at_ns":5,"peer_id":"{id}","name":"N{id}","mouth_to_ear_ms":{lag},"rtt_ms":20.0,"path":"direct"}}"#
            );
            log.push(line.as_bytes());
        }
        let peers: Vec<PeerLag> = log.talkers().into_iter().map(|(id, name)| peer(&log, id, name)).collect();
        assert_eq!(peers[0].cells()[..3], ["Na", "42.5", "43.4"]);
        assert_eq!(peers[1].cells()[..3], ["Nb", "-", "-"]);
        let report = LiveReport { machine: Machine::here(), command: String::new(), peers };
        assert!(table(&report).contains("lag p50 ms"), "{}", table(&report));
        assert!(pages::live(&report).html().contains("Lag over time"));
    }
}
