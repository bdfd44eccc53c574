//! The command line: what can be typed, and which exit code follows.
//!
//! Exit codes: 0 left in order; 2 wrong usage; 3 no rendezvous or no peer in time; 4 sound device; 5 refused; 1 anything
//! else. The last line on standard error says what happened and what to do next.

mod choices;
mod config;
mod ctl;
mod doctor;
mod echo;
mod info;
mod join;
mod layers;
mod lines;
mod relay;
mod serve;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{ArgMatches, Args, FromArgMatches as _, Parser, Subcommand, parser::ValueSource};

use crate::{bench, logs};

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

    /// What clap says, in one line, after all of it was printed. Help and version are no failure: code 0.
    fn clap(error: &clap::Error) -> Self {
        let _ = error.print();
        if !error.use_stderr() {
            return Self { code: 0, message: String::new(), hint: String::new() };
        }
        let rendered = error.render().to_string();
        let paragraph: Vec<&str> =
            rendered.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        let paragraph = paragraph.join(" ");
        let what = paragraph.strip_prefix("error: ").unwrap_or("no command was given");
        Self::usage(what, "`hallway help` and `hallway help COMMAND` show what can be typed")
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
    /// The configuration file, instead of config.toml in the configuration folder, or in --data-dir where that is named
    #[arg(long, value_name = "FILE", env = "HALLWAY_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// What is written to the log file of a call
    #[arg(long, value_name = "LEVEL", value_enum, default_value = "info", global = true)]
    log_level: logs::Level,
    /// Where the log file is
    #[arg(long, value_name = "FILE", global = true)]
    log_file: Option<PathBuf>,
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
    /// Control a call that runs: mute, say something, see who is there, follow events
    Ctl(ctl::CtlArgs),
    /// Write, show and check the configuration
    Config(config::ConfigArgs),
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
    /// The folder, where one was named.
    pub fn named(&self) -> Option<&std::path::Path> {
        self.data_dir.as_deref()
    }

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
    match parsed().and_then(|(cli, matches)| obey(cli, &matches)) {
        Ok(code) => code,
        Err(Failure { code: 0, .. }) => ExitCode::SUCCESS,
        Err(failure) => {
            last_word(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// What was typed, with environment and configuration beneath it.
fn parsed() -> Result<(Cli, ArgMatches), Failure> {
    let matches = layers::matches(std::env::args_os().collect())?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|error| Failure::clap(&error))?;
    if let (Command::Join(args), Some((_, inner))) = (&mut cli.command, matches.subcommand()) {
        args.at_is_typed = inner.value_source("at") == Some(ValueSource::CommandLine);
    }
    Ok((cli, matches))
}

fn obey(cli: Cli, matches: &ArgMatches) -> Result<ExitCode, Failure> {
    // Calls have a log by themselves; a server has the one of the system, unless a file is named.
    let in_a_call = matches!(cli.command, Command::Join(_));
    let file = match cli.log_file {
        Some(file) => Some(file),
        None if in_a_call => logs::default_file(layers::data_dir(matches).as_deref()),
        None => None,
    };
    let _log = logs::start(cli.verbose, file.as_deref(), cli.log_level);
    match cli.command {
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
        Command::Ctl(args) => ctl::run(&args),
        Command::Config(args) => config::run(&args, matches),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut layers::command(), "hallway", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => info::man(&dir, layers::command()),
    }
}

/// Says what happened and what to do next, in one line.
fn last_word(failure: &Failure) {
    // Nobody would read it, and it might never be written.
    if crate::tui::terminal::is_stuck() {
        return;
    }
    let what = finished(&failure.message);
    let mut hint = failure.hint.chars();
    let line = match hint.next() {
        Some(first) => format!("{what} {}{}", first.to_uppercase(), finished(hint.as_str())),
        None => what,
    };
    // Some of it was typed, or came from elsewhere.
    let _ = writeln!(std::io::stderr(), "hallway: {}", crate::text::clean_line(&line));
}

/// With a full stop at the end.
fn finished(text: &str) -> String {
    let end = if text.ends_with(['.', '?', '!']) { "" } else { "." };
    format!("{text}{end}")
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
