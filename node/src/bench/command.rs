//! `hallway bench`: its arguments, and what it prints.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::codec::{self, CodecArgs};
use super::lag::{self, CallArgs, LagArgs, Voices};
use super::log::EventLog;
use super::loss::LossArgs;
use super::page::Page;
use super::pages;
use super::profile::Profile;
use super::report::{BenchReport, CallReport, Machine};
use super::room::{self, RoomArgs};

/// Measures.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// What to measure.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum BenchCommand {
    /// Two whole nodes over a bad network: mouth-to-ear delay and damage from the signal
    Lag(LagArgs),
    /// The same over links that lose more and more: delay, damage and quality per loss rate
    Loss(LossArgs),
    /// Many nodes in one room on this machine: gaps, processor, memory
    Room(RoomArgs),
    /// Time per frame of encoding, sealing, playing and mixing, beside a baseline
    Codec(CodecArgs),
    /// The figures of `lag` from recordings and event logs that exist already
    Signal(SignalArgs),
}

/// Where figures go besides standard output.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Out {
    /// Writes every figure to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes plots for a browser to this file
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
}

impl Out {
    fn write(&self, figures: &impl serde::Serialize, page: impl FnOnce() -> Page) -> anyhow::Result<()> {
        if let Some(path) = &self.json {
            let mut text = serde_json::to_string_pretty(figures)?;
            text.push('\n');
            std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        if let Some(path) = &self.report {
            std::fs::write(path, page().html()).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

/// Recordings to measure. Repeat all four for each direction.
#[derive(Clone, Debug, clap::Args)]
pub struct SignalArgs {
    /// What was said: the WAV given as --input file:
    #[arg(long, value_name = "WAV", required = true)]
    pub sent: Vec<PathBuf>,
    /// What was heard: the WAV written by --output file:
    #[arg(long, value_name = "WAV", required = true)]
    pub heard: Vec<PathBuf>,
    /// The JSON events of the node that spoke
    #[arg(long, value_name = "JSONL", required = true)]
    pub sent_events: Vec<PathBuf>,
    /// The JSON events of the node that listened
    #[arg(long, value_name = "JSONL", required = true)]
    pub heard_events: Vec<PathBuf>,
    /// What to call each direction [default: the names of the recordings]
    #[arg(long, value_name = "NAME")]
    pub name: Vec<String>,
    /// Where the figures go.
    #[command(flatten)]
    pub out: Out,
}

/// Does what was asked, prints a table on standard output. The exit code is 1 if somebody heard nothing.
pub async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    // Leaving early drops the children, which ends them, and the directory they wrote to.
    tokio::select! {
        done = measure(&args.command) => done,
        stopped = interrupted() => { stopped?; bail!("stopped before the measurement was over") }
    }
}

async fn measure(command: &BenchCommand) -> anyhow::Result<ExitCode> {
    let (report, out) = match command {
        BenchCommand::Lag(args) => (of_links(&args.links()?, &args.calls).await?, &args.calls.out),
        BenchCommand::Loss(args) => (of_links(&args.links()?, &args.calls).await?, &args.calls.out),
        BenchCommand::Signal(args) => (signal_report(args)?, &args.out),
        BenchCommand::Room(args) => {
            let place = Place::new(None, "room", 0)?;
            let report = room::measure(args, place.path()).await?;
            print(&report.table())?;
            args.out.write(&report, || report.page())?;
            let all_heard = report.nodes.iter().all(|node| node.heard as u64 + 1 >= args.nodes);
            return Ok(ExitCode::from(u8::from(!all_heard)));
        }
        BenchCommand::Codec(args) => {
            let wanted = args.clone();
            let report = tokio::task::spawn_blocking(move || codec::measure(&wanted)).await??;
            print(&report.table())?;
            args.out.write(&report, || report.page())?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    print(&report.table())?;
    out.write(&report, || pages::calls(&report))?;
    let unheard = report.unheard();
    if unheard.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!(
        "nothing was heard: {}; the notes above say why, --keep DIR keeps the recordings and logs",
        unheard.join(", ")
    )
}

async fn of_links(links: &[Profile], args: &CallArgs) -> anyhow::Result<BenchReport> {
    args.check()?;
    let voices = Voices::new(args.wav.as_deref(), args.duration)?;
    let mut calls = Vec::new();
    for link in links {
        for rep in 0..args.reps {
            let place = Place::new(args.keep.as_deref(), &link.name, rep)?;
            tracing::info!(link = link.name, rep, "calling for {:?}", args.duration);
            calls.push(lag::call(args, link, rep, &voices, place.path()).await?);
        }
    }
    Ok(report(calls))
}

fn signal_report(args: &SignalArgs) -> anyhow::Result<BenchReport> {
    let n = args.sent.len();
    if [args.heard.len(), args.sent_events.len(), args.heard_events.len()].iter().any(|len| *len != n) {
        bail!(
            "--sent, --heard, --sent-events and --heard-events belong together: give each as often as the others"
        );
    }
    if !args.name.is_empty() && args.name.len() != n {
        bail!("--name must be given for each direction, or for none");
    }
    let read = |path: &PathBuf| EventLog::read(path).with_context(|| format!("reading {}", path.display()));
    let stem =
        |path: &Path| path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let mut directions = Vec::new();
    let mut warnings = Vec::new();
    for (i, (((sent, heard), sent_events), heard_events)) in
        args.sent.iter().zip(&args.heard).zip(&args.sent_events).zip(&args.heard_events).enumerate()
    {
        let name = args.name.get(i).cloned().unwrap_or_else(|| format!("{} > {}", stem(sent), stem(heard)));
        let (talker, listener) = (read(sent_events)?, read(heard_events)?);
        directions.push(lag::direction(&name, sent, heard, &talker, &listener));
        warnings.extend(listener.complaint());
    }
    let link = "recorded".to_owned();
    Ok(report(vec![CallReport {
        link,
        about: String::new(),
        rep: 0,
        seed: 0,
        directions,
        timing: None,
        warnings,
    }]))
}

fn report(calls: Vec<CallReport>) -> BenchReport {
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    BenchReport { version: env!("CARGO_PKG_VERSION"), machine: Machine::here(), command, calls }
}

/// Where a call leaves its files: in a directory that stays, or in one that goes when it is over.
enum Place {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Place {
    fn new(keep: Option<&Path>, link: &str, rep: u64) -> anyhow::Result<Place> {
        let Some(keep) = keep else {
            let dir = tempfile::Builder::new().prefix("hallway-bench-").tempdir();
            return Ok(Place::Temporary(dir.context("creating a temporary directory")?));
        };
        let safe: String = link.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let dir = keep.join(format!("{safe}.{rep}"));
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Place::Kept(std::path::absolute(dir)?))
    }

    fn path(&self) -> &Path {
        match self {
            Place::Kept(path) => path,
            Place::Temporary(dir) => dir.path(),
        }
    }
}

async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ctrl_c = tokio::signal::ctrl_c() => ctrl_c?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Prints to standard output; whoever closed it has read enough.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever read the table has read enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.bench)
    }

    fn lag(line: &str) -> LagArgs {
        match parse(line).unwrap().command {
            BenchCommand::Lag(args) => args,
            other => panic!("not lag: {other:?}"),
        }
    }

    #[test]
    fn links_come_by_name_and_spelt_out() {
        let args =
            lag("bench lag --profile wan --profile lossy20 --link delay=40,jitter=5 --for 5s --seed 9");
        let links = args.links().unwrap();
        assert_eq!(
            links.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(),
            ["wan", "lossy20", "delay=40,jitter=5"]
        );
        assert!(links.iter().all(|link| link.seed == 9));
        assert_eq!(lag("bench lag").links().unwrap().len(), 2);
        let args = lag("bench lag --node-arg=--profile --node-arg=music");
        assert_eq!(args.calls.node_args, ["--profile", "music"]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused_with_the_reason() {
        let error = parse("bench lag --profile moon").err().unwrap().to_string();
        assert!(error.contains("lossy20"), "{error}");
        assert!(lag("bench lag --for 1s").calls.check().unwrap_err().to_string().contains("--for"));
        assert!(lag("bench lag --period-ms 0").calls.check().is_err());
        assert!(parse("bench lag --reps 0").is_err());
    }

    #[tokio::test]
    async fn recordings_that_are_not_there_end_in_an_error_that_names_them() {
        let args =
            parse("bench signal --sent /no/a.wav --heard /no/b.wav --sent-events /no/a --heard-events /no/b")
                .unwrap();
        assert!(run(args).await.unwrap_err().to_string().contains("/no/a"));
        let args =
            parse("bench signal --sent a --sent b --heard a --sent-events a --heard-events b").unwrap();
        assert!(run(args).await.unwrap_err().to_string().contains("belong together"));
    }
}
