//! What was said in writing, on disk, for those who asked for it (`--history`): one JSON object a line.
//!
//! A thread of its own writes; a disk that is slow or full costs lines of the history, never the call. Without the option
//! nothing that is said ever touches a disk.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    time::SystemTime,
};

use serde_json::json;

use crate::{events::Event, text};

/// Lines that wait for the disk; further ones are lost.
pub const MAX_WAITING_LINES: usize = 256;

/// The history of one call.
#[derive(Debug)]
pub struct History {
    room: String,
    name: String,
    lines: SyncSender<String>,
    lost: bool,
}

impl History {
    /// Opens the file, with mode 0600 where it is made; lines are added at its end.
    ///
    /// # Errors
    /// What the system says; a file that others may read is refused.
    pub fn open(path: &Path, room: &str, name: &str) -> io::Result<Self> {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        if file.metadata()?.is_file() && mode & 0o077 != 0 {
            let why = format!(
                "others may read it (mode {mode:03o}); close it with: chmod 600 '{}'",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let (lines, waiting) = sync_channel::<String>(MAX_WAITING_LINES);
        std::thread::Builder::new().name("history".into()).spawn(move || {
            let mut told = false;
            while let Ok(line) = waiting.recv() {
                if let Err(error) = write(&mut file, &line)
                    && !std::mem::replace(&mut told, true)
                {
                    tracing::warn!(%error, "the history of what is said cannot be written");
                }
            }
        })?;
        Ok(Self { room: room.to_owned(), name: text::clean_name(name), lines, lost: false })
    }

    /// Keeps what was said; other events are nothing to it.
    pub fn handle(&mut self, event: &Event) {
        let time = || humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let line = match event {
            Event::Chat { peer_id, name, text, .. } => json!({
                "time": time(), "room": self.room, "peer_id": peer_id.to_string(), "name": name, "text": text,
            }),
            Event::Said { text, .. } => json!({
                "time": time(), "room": self.room, "peer_id": null, "name": self.name, "text": text,
            }),
            _ => return,
        };
        if let Err(TrySendError::Full(_)) = self.lines.try_send(format!("{line}\n"))
            && !std::mem::replace(&mut self.lost, true)
        {
            tracing::warn!("the disk is too slow for the history of what is said");
        }
    }
}

/// A whole line or none: what a full disk took of it is cut off again.
fn write(file: &mut File, line: &str) -> io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(line.as_bytes()).inspect_err(|_| {
        let _ = file.set_len(before);
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn each_line_is_one_object_whatever_was_said_and_the_file_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        let mut history = History::open(&path, "kitchen", "ana").unwrap();
        let hostile = "quote \" newline \\n \u{202e} done";
        let peer_id = libp2p::PeerId::random();
        history.handle(&Event::Chat { peer_id, name: "ben".into(), text: hostile.into(), id: 1 });
        history.handle(&Event::Said { text: "yes".into(), id: 2 });
        history.handle(&Event::InputFinished);
        let until = Instant::now() + Duration::from_secs(5);
        let lines = loop {
            let text = std::fs::read_to_string(&path).unwrap();
            if text.lines().count() == 2 || Instant::now() > until {
                break text
                    .lines()
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect::<Vec<serde_json::Value>>();
            }
        };
        assert_eq!((&lines[0]["text"], &lines[0]["name"]), (&json!(hostile), &json!("ben")));
        assert_eq!((&lines[1]["text"], &lines[1]["peer_id"]), (&json!("yes"), &json!(null)));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(History::open(&path, "kitchen", "ana").unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn a_full_disk_costs_the_history_alone() {
        let mut history = History::open(Path::new("/dev/full"), "kitchen", "ana").unwrap();
        for id in 0..1000 {
            history.handle(&Event::Said { text: "x".repeat(4000), id });
        }
    }
}
