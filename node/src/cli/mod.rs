//! The command line: what can be typed, and which exit code follows.
//!
//! Exit codes: 0 left in order; 2 wrong usage; 3 no rendezvous or no peer in time; 4 sound device; 5 refused; 1 anything
//! else. The last line on standard error says what happened and what to do next.

mod doctor;
mod echo;
mod info;
mod join;
mod lines;
mod serve;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::bench;

/// The end of a command that did not go well: the exit code and the last line on standard error.
#[derive(Debug)]
pub struct Failure {
    /// The contract's exit code.
    pub code: u8,
    /// What happened.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl Failure {
    /// Anything that has no code of its own.
    pub fn other(error: impl std::fmt::Display, hint: &str) -> Self {
        Self { code: 1, message: error.to_string(), hint: hint.to_owned() }
    }

    /// Wrong usage.
    pub fn usage(error: impl std::fmt::Display, hint: &str) -> Self {
        Self { code: 2, message: error.to_string(), hint: hint.to_owned() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::other(format!("{error:#}"), "")
    }
}

/// Private voice rooms between terminals: peer to peer, end-to-end encrypted, with the lag of every stage measured.
#[derive(Parser, Debug)]
#[command(name = "hallway", version, propagate_version = true)]
struct Cli {
    /// Log more on standard error: -v what happens, -vv every detail. HALLWAY_LOG takes a filter instead
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Join a room and talk
    Join(Box<join::JoinArgs>),
    /// Print an invite: a room, a secret that only its holders know, and where to meet
    Invite(info::InviteArgs),
    /// Say what this machine's networks and sound allow, and what would improve it
    Doctor(doctor::DoctorArgs),
    /// Run a rendezvous server, where nodes find each other. It hears nobody
    Rendezvous(serve::RendezvousArgs),
    /// Hear yourself through the real path, and how late
    Echo(echo::EchoArgs),
    /// Measure, and print a table
    Bench(bench::BenchArgs),
    /// Join a room that people are in and measure the lag to each of them
    Lag(bench::live::LiveArgs),
    /// List sound devices
    Devices(info::DevicesArgs),
    /// Print this node's identity and its safety words
    Id(info::IdArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder
    Man {
        /// Where to
        dir: PathBuf,
    },
}

/// Where the identity lives.
#[derive(Args, Debug, Clone)]
pub struct DataDir {
    /// Identity and what is remembered; two nodes on one machine use two
    #[arg(long, value_name = "DIR", env = "HALLWAY_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

impl DataDir {
    /// The folder to use.
    ///
    /// # Errors
    /// Where the system names no home.
    pub fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.data_dir {
            return Ok(dir.clone());
        }
        directories::ProjectDirs::from("", "", "hallway")
            .map(|dirs| dirs.data_dir().to_owned())
            .ok_or_else(|| Failure::usage("no home folder is known here", "Name a folder with --data-dir."))
    }
}

/// Parses, runs, and says the last word.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    start_log(cli.verbose);
    let result = match cli.command {
        Command::Join(args) => join::run(*args),
        Command::Echo(args) => echo::run(&args),
        Command::Doctor(args) => doctor::run(args),
        Command::Invite(args) => info::invite(&args),
        Command::Rendezvous(args) => serve::run(args),
        Command::Bench(args) => server_runtime().and_then(|runtime| Ok(runtime.block_on(bench::run(args))?)),
        Command::Lag(args) => {
            server_runtime().and_then(|runtime| Ok(runtime.block_on(bench::live::run(args))?))
        }
        Command::Devices(args) => info::devices(&args),
        Command::Id(args) => info::id(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "hallway", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => info::man(&dir, Cli::command()),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            last_word(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// Says what happened and what to do next, in one line.
fn last_word(failure: &Failure) {
    let what = finished(&failure.message);
    let mut hint = failure.hint.chars();
    let line = match hint.next() {
        Some(first) => format!("{what} {}{}", first.to_uppercase(), finished(hint.as_str())),
        None => what,
    };
    let _ = writeln!(std::io::stderr(), "hallway: {line}");
}

/// With a full stop at the end.
fn finished(text: &str) -> String {
    let end = if text.ends_with(['.', '?', '!']) { "" } else { "." };
    format!("{text}{end}")
}

/// Help and version as clap prints them; anything else the same, with a last line that stands for the whole.
fn refuse(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let rendered = error.render().to_string();
    let paragraph: Vec<&str> = rendered.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let paragraph = paragraph.join(" ");
    let what = paragraph.strip_prefix("error: ").unwrap_or("no command was given");
    last_word(&Failure::usage(what, "`hallway help` and `hallway help COMMAND` show what can be typed"));
    ExitCode::from(2)
}

/// A node's runtime. One thread: every datagram that wakes a second one costs more than it carries.
fn node_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    build(&mut tokio::runtime::Builder::new_current_thread())
}

/// A server's runtime: a thread for each core.
fn server_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    build(&mut tokio::runtime::Builder::new_multi_thread())
}

fn build(builder: &mut tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, Failure> {
    builder.enable_all().build().map_err(|e| Failure::other(format!("no runtime: {e}"), ""))
}

fn start_log(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let default = match verbose {
        0 => "error",
        1 => "hallway=info,warn",
        _ => "hallway=debug,info",
    };
    let filter = EnvFilter::try_from_env("HALLWAY_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Lines of a call stand between others that have no colours, or on the screen.
        .with_ansi(false)
        .try_init();
}
