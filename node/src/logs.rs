//! The log: a file of bounded size with levels, written by a thread of its own, and standard error for `-v`.
//!
//! What people say, names, room secrets and full keys never stand in it: nothing logs the former, and a run of
//! [`LONGEST_RUN`] or more letters and digits (a PeerId, a secret, a namespace) is cut down in the one place through
//! which every line passes. A disk that is full or slow costs lines, never the call.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// Name of the file in its folder.
pub const LOG_FILE: &str = "hallway.log";
/// Largest log file. With the one before it a node keeps twice as much.
pub const MAX_LOG_BYTES: u64 = 4 * 1024 * 1024;
/// Lines that wait for the disk; further ones are lost.
pub const MAX_WAITING_LINES: usize = 4096;
/// Longest line written, in bytes; the rest of it is cut.
pub const MAX_LINE: usize = 2048;
/// From this length on a run of letters and digits is not written out.
pub const LONGEST_RUN: usize = 40;
/// How much of a PeerId stays: what the screen shows of it too.
const TAIL: usize = 6;
/// How every PeerId of an ed25519 key begins.
const PEER_ID: &str = "12D3KooW";

/// How much is written to the file.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // the usual names
pub enum Level {
    Off,
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl Level {
    /// Ours at this level, libraries one below: they have much to say.
    fn filter(self) -> Option<Targets> {
        let directives = match self {
            Self::Off => return None,
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "hallway=info,hallway_codec=info,warn",
            Self::Debug => "hallway=debug,hallway_codec=debug,info",
            Self::Trace => "hallway=trace,hallway_codec=trace,debug",
        };
        directives.parse().ok()
    }
}

/// The log file where none is named: in the data folder that was named, else in the system's state folder.
pub fn default_file(data_dir: Option<&Path>) -> Option<PathBuf> {
    match data_dir {
        Some(dir) => Some(dir.join(LOG_FILE)),
        None => {
            let dirs = directories::ProjectDirs::from("", "", "hallway")?;
            Some(dirs.state_dir().unwrap_or_else(|| dirs.data_local_dir()).join(LOG_FILE))
        }
    }
}

/// Begins to log; lines reach the file until the guard is dropped. `verbose` counts `-v`; `HALLWAY_LOG` takes a filter
/// for standard error instead.
pub fn start(verbose: u8, file: Option<&Path>, level: Level) -> Option<WorkerGuard> {
    let default = match verbose {
        0 => "error",
        1 => "hallway=info,warn",
        _ => "hallway=debug,info",
    };
    let asked = std::env::var("HALLWAY_LOG").ok().and_then(|filter| filter.parse().ok());
    let filter: Targets = asked.or_else(|| default.parse().ok()).unwrap_or_default();
    let screen =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false).with_filter(filter);
    let (layer, guard) = match (file, level.filter()) {
        (Some(path), Some(filter)) => {
            let (writer, guard) = NonBlockingBuilder::default()
                .lossy(true)
                .buffered_lines_limit(MAX_WAITING_LINES)
                .thread_name("log")
                .finish(Bounded::new(path, MAX_LOG_BYTES));
            let layer =
                tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).with_filter(filter);
            (Some(layer), Some(guard))
        }
        _ => (None, None),
    };
    let _ = tracing_subscriber::registry().with(screen).with(layer).try_init();
    guard
}

/// A file that is moved aside when it is full. Several processes may write the same one.
struct Bounded {
    path: PathBuf,
    most: u64,
    file: Option<File>,
}

impl Bounded {
    fn new(path: &Path, most: u64) -> Self {
        Self { path: path.to_owned(), most, file: None }
    }

    /// The file, with room for `length` bytes.
    fn file(&mut self, length: usize) -> io::Result<&mut File> {
        if let Some(file) = &self.file {
            let ours = file.metadata()?;
            let full =
                ours.len().saturating_add(length as u64) > self.most && ours.is_file() && ours.len() > 0;
            // Another process may have moved it aside, or somebody has deleted it.
            let there = std::fs::metadata(&self.path).is_ok_and(|meta| meta.ino() == ours.ino());
            if full && there {
                let mut aside = self.path.clone().into_os_string();
                aside.push(".1");
                std::fs::rename(&self.path, aside)?;
            }
            if full || !there {
                self.file = None;
            }
        }
        if self.file.is_none() {
            if let Some(dir) = self.path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            }
            self.file = Some(OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?);
        }
        self.file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Write for Bounded {
    /// Takes a whole line, as the subscriber gives it. What the disk does not take is lost.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let clean = redacted(&String::from_utf8_lossy(line));
        let length = clean.len();
        if self.file(length).and_then(|file| file.write_all(clean.as_bytes())).is_err() {
            // Perhaps it can be opened again for the next line.
            self.file = None;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line without control characters and long runs of letters and digits, with one end of line.
fn redacted(line: &str) -> String {
    let mut out = String::with_capacity(line.len().min(MAX_LINE));
    let mut run = String::new();
    for c in line.trim_end().chars().chain(std::iter::once('\n')) {
        if c.is_ascii_alphanumeric() {
            run.push(c);
            continue;
        }
        if out.len() + run.len() > MAX_LINE {
            out.push_str(" ...");
            break;
        }
        match run.len() {
            0..LONGEST_RUN => out.push_str(&run),
            length if run.starts_with(PEER_ID) => {
                out.push('~');
                out.push_str(run.get(length - TAIL..).unwrap_or_default());
            }
            length => out.push_str(&format!("[{length} characters]")),
        }
        run.clear();
        if c != '\n' {
            out.push(if c.is_control() { ' ' } else { c });
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_secrets_and_control_characters_do_not_get_through() {
        let peer = libp2p::PeerId::from(libp2p::identity::Keypair::generate_ed25519().public()).to_base58();
        let secret = "3v8k".repeat(14);
        let line =
            format!("dialling /ip4/192.0.2.1/udp/4001/p2p/{peer} with secret={secret}&at=x \u{1b}[31mred\n");
        let clean = redacted(&line);
        assert!(!clean.contains(&peer) && !clean.contains(&secret) && !clean.contains('\u{1b}'), "{clean}");
        assert!(clean.contains(&format!("/p2p/~{}", &peer[peer.len() - 6..])), "{clean}");
        assert!(clean.contains("secret=[56 characters]&at=x") && clean.ends_with("red\n"), "{clean}");
        assert_eq!(redacted("nothing to hide: 192.0.2.1\n"), "nothing to hide: 192.0.2.1\n");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let clean = redacted(&"many words ".repeat(10_000));
        assert!(clean.len() < MAX_LINE + 64 && clean.ends_with(" ...\n"), "{}", clean.len());
        assert!(redacted(&"x".repeat(1 << 20)).len() < MAX_LINE);
    }

    #[test]
    fn the_log_and_the_one_before_it_stay_within_their_bound_whoever_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/hallway.log");
        let (mut one, mut other) = (Bounded::new(&path, 1000), Bounded::new(&path, 1000));
        for n in 0..200 {
            let line = format!("line {n} of a log that two processes write\n");
            let writer = if n % 3 == 0 { &mut one } else { &mut other };
            assert_eq!(writer.write(line.as_bytes()).unwrap(), line.len());
        }
        let mut files: Vec<_> = std::fs::read_dir(dir.path().join("state")).unwrap().flatten().collect();
        files.sort_by_key(|file| file.file_name());
        assert_eq!(files.len(), 2, "the log and the one before it");
        assert!(files.iter().all(|file| file.metadata().unwrap().len() <= 1000));
        assert!(std::fs::read_to_string(&path).unwrap().contains("line 199"), "the newest stays");
        assert_eq!(files[0].metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_full_disk_costs_lines_and_nothing_else() {
        let mut log = Bounded::new(Path::new("/dev/full"), 1000);
        for _ in 0..100 {
            assert_eq!(log.write(b"hello\n").unwrap(), 6);
        }
        let mut log = Bounded::new(Path::new("/proc/no/such/folder"), 1000);
        assert_eq!(log.write(b"hello\n").unwrap(), 6);
    }
}
