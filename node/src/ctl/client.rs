//! The other end: finds the calls of this user and talks to one. Blocking, for `hallway ctl`.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

/// How long a call may take to answer. Sound systems take seconds to list their devices.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest line taken from a call.
const MAX_LINE: u64 = 4 * 1024 * 1024;

/// Why a call did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The call refused.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The connection broke, or the call said nothing for [`PATIENCE`].
    #[error("the call does not answer: {0}")]
    Broken(#[from] io::Error),
}

/// A connection to a running call.
#[derive(Debug)]
pub struct Call {
    /// Its process.
    pub pid: u64,
    /// Its room.
    pub room: String,
    /// Its PeerId.
    pub peer_id: String,
    /// Its socket.
    pub path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Call {
    /// Connects to the call behind this socket.
    ///
    /// # Errors
    /// Where nobody answers, or with something else.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut call = Self {
            pid: 0,
            room: String::new(),
            peer_id: String::new(),
            path: path.to_owned(),
            stream: BufReader::new(stream),
        };
        let hello = call.next_line()?.ok_or(io::ErrorKind::UnexpectedEof).map_err(io::Error::from)?;
        if hello["ok"] == false {
            return Err(refused(&hello));
        }
        let text = |name: &str| crate::text::clean_name(hello[name].as_str().unwrap_or_default());
        (call.pid, call.room, call.peer_id) =
            (hello["pid"].as_u64().unwrap_or(0), text("room"), text("peer_id"));
        Ok(call)
    }

    /// Asks and waits for the answer; gives its `value`, null where there is none. Events that come meanwhile are skipped.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask(&mut self, mut request: Value) -> Result<Value, ClientError> {
        request["id"] = json!(1);
        let line = format!("{request}\n");
        self.stream.get_mut().write_all(line.as_bytes())?;
        loop {
            let line = self.next_line()?.ok_or(io::ErrorKind::UnexpectedEof).map_err(io::Error::from)?;
            match (line.get("reply"), line["ok"].as_bool()) {
                (Some(_), Some(true)) => return Ok(line.get("value").cloned().unwrap_or(Value::Null)),
                (Some(_), _) => return Err(refused(&line)),
                _ => {}
            }
        }
    }

    /// Waits for events as long as it takes; [`next_line`](Self::next_line) gives them.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn subscribe(&mut self, events: &[String]) -> Result<(), ClientError> {
        self.ask(json!({ "command": "subscribe", "events": events }))?;
        self.stream.get_ref().set_read_timeout(None)?;
        Ok(())
    }

    /// The next line; `None` when the call has ended.
    ///
    /// # Errors
    /// [`ClientError::Broken`].
    pub fn next_line(&mut self) -> Result<Option<Value>, ClientError> {
        let mut line = Vec::new();
        (&mut self.stream).take(MAX_LINE).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(None);
        }
        let value = serde_json::from_slice(&line);
        value.map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error).into())
    }
}

fn refused(line: &Value) -> ClientError {
    let text = |name: &str| crate::text::clean_line(line["error"][name].as_str().unwrap_or_default());
    let hint = if line["error"]["hint"].as_str().is_some_and(|hint| !hint.is_empty()) {
        text("hint")
    } else {
        String::new()
    };
    ClientError::Refused { message: text("message"), hint }
}

/// Every call whose socket is in this folder, by process id.
pub fn calls(folder: &Path) -> Vec<Call> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sockets =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "sock"));
    let mut found: Vec<Call> = sockets.filter_map(|path| Call::connect(&path).ok()).collect();
    found.sort_by_key(|call| call.pid);
    found
}
