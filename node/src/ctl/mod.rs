//! The control socket: what the screen can do and see, for other programs of the same user.
//!
//! A Unix socket of mode 0600 in a folder of mode 0700, one per call; JSON, one object a line, described in
//! `docs/scripting.md`. Requests become [`Order`]s of the node, events are copied to whoever subscribed. A client is
//! bounded in everything: a line that is too long, a client too many, one that stops reading is cut off, and the call
//! goes on.

mod client;
mod place;

use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, broadcast, mpsc},
};

pub use client::{Call, ClientError, calls};
pub use place::{Place, folder};

use crate::{
    events::{Notice, Stamped},
    node::{Answer, Command, Order},
};

/// Clients of one call at a time; a further one is told so and turned away.
pub const MAX_CLIENTS: usize = 16;
/// Longest request, bytes. A longer one ends the connection.
pub const MAX_REQUEST: usize = 32 * 1024;
/// Events that may wait for a client that is slow to read. One that falls further behind is cut off.
pub const MAX_BEHIND: usize = 512;
/// A client that takes nothing for so long is cut off.
pub const READ_PATIENCE: Duration = Duration::from_secs(5);
/// Event names that one client may subscribe to.
pub const MAX_SUBSCRIBED: usize = 32;

/// Where events go in, on their way to all clients.
#[derive(Debug, Clone)]
pub struct Hub(broadcast::Sender<Arc<str>>);

impl Default for Hub {
    fn default() -> Self {
        Self(broadcast::channel(MAX_BEHIND).0)
    }
}

impl Hub {
    /// Tells every client that wants to know. Costs nothing where nobody is connected.
    pub fn tell(&self, stamped: &Stamped) {
        if self.0.receiver_count() > 0
            && let Ok(line) = serde_json::to_string(stamped)
        {
            let _ = self.0.send(line.into());
        }
    }
}

/// What a client is told first.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// The room's name.
    pub room: String,
    /// Our PeerId.
    pub peer_id: String,
}

/// The socket of one call. Dropping it removes the file.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Opens the socket.
    ///
    /// # Errors
    /// What the system says; another call's socket at the same path is not touched.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            place::make(dir)?;
        }
        // One that nobody answers is left over from a call that was killed.
        if path.exists() && std::os::unix::net::UnixStream::connect(path).is_err() {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves clients until dropped.
    pub async fn serve(self, greeting: Greeting, hub: Hub, orders: mpsc::Sender<Order>) {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: later there may be some.
                    tracing::warn!(%error, "the control socket takes nobody");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (greeting, hub, orders, places) =
                (greeting.clone(), hub.clone(), orders.clone(), places.clone());
            tokio::spawn(async move {
                let Ok(_place) = places.try_acquire() else {
                    return turn_away(stream, "busy", TOO_MANY).await;
                };
                if !is_ours(&stream) {
                    return turn_away(stream, "refused", STRANGER).await;
                }
                let (read, write) = stream.into_split();
                let client = Client { write, hub: hub.0.subscribe(), wanted: None, orders };
                if let Err(error) = client.run(BufReader::new(read), &greeting).await {
                    tracing::info!(%error, "a client of the control socket is cut off");
                }
            });
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

const TOO_MANY: &str = "too many programs control this call already";
const STRANGER: &str = "this call belongs to another user";

/// Whether the other end is the user whose call this is, or root.
fn is_ours(stream: &UnixStream) -> bool {
    let me = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == me || peer.uid() == 0)
}

async fn turn_away(mut stream: UnixStream, code: &str, why: &str) {
    let line = format!("{}\n", refusal(&Value::Null, code, why, ""));
    let _ = tokio::time::timeout(READ_PATIENCE, stream.write_all(line.as_bytes())).await;
}

fn refusal(id: &Value, code: &str, message: &str, hint: &str) -> Value {
    json!({ "reply": id, "ok": false, "error": { "code": code, "message": message, "hint": hint } })
}

/// One connection.
struct Client {
    write: OwnedWriteHalf,
    hub: broadcast::Receiver<Arc<str>>,
    /// Names of events that it wants; `None`: none at all, empty: all.
    wanted: Option<Vec<String>>,
    orders: mpsc::Sender<Order>,
}

impl Client {
    /// Until the client goes, or has to.
    async fn run(mut self, mut read: BufReader<OwnedReadHalf>, greeting: &Greeting) -> io::Result<()> {
        let hello = json!({
            "event": "hello",
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "room": greeting.room,
            "peer_id": greeting.peer_id,
        });
        self.say(&hello.to_string()).await?;
        let mut line = Vec::new();
        loop {
            // Both arms may be dropped half way: what was read so far stays in `line`.
            let limit = (MAX_REQUEST + 1).saturating_sub(line.len()) as u64;
            let mut limited = (&mut read).take(limit);
            tokio::select! {
                read = limited.read_until(b'\n', &mut line) => {
                    read?;
                    if line.last() == Some(&b'\n') {
                        let reply = self.handle(&line).await;
                        line.clear();
                        self.say(&reply.to_string()).await?;
                    } else if line.len() > MAX_REQUEST {
                        let message = format!("a request has at most {MAX_REQUEST} bytes");
                        return self.say(&refusal(&Value::Null, "too_long", &message, "").to_string()).await;
                    } else {
                        return Ok(());
                    }
                }
                event = self.hub.recv() => match event {
                    Ok(line) if self.wants(&line) => self.say(&line).await?,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(behind)) if self.wanted.is_some() => {
                        return Err(io::Error::other(format!("it is {behind} events behind")));
                    }
                    // It wanted none of them.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
            }
        }
    }

    fn wants(&self, line: &str) -> bool {
        let name = line.strip_prefix(r#"{"event":""#).and_then(|rest| rest.split('"').next());
        self.wanted
            .as_ref()
            .is_some_and(|wanted| wanted.is_empty() || wanted.iter().any(|one| Some(one.as_str()) == name))
    }

    async fn handle(&mut self, line: &[u8]) -> Value {
        let hint =
            r#"A request looks like {"command":"mute","on":true}; docs/scripting.md lists all of them."#;
        let mut request = match serde_json::from_slice::<Value>(line) {
            Ok(Value::Object(request)) => request,
            Ok(_) => return refusal(&Value::Null, "malformed", "a request is a JSON object", hint),
            Err(error) => return refusal(&Value::Null, "malformed", &error.to_string(), hint),
        };
        let id = request.remove("id").unwrap_or(Value::Null);
        if request.get("command").and_then(Value::as_str) == Some("subscribe") {
            return self.subscribe(&id, request.get("events"));
        }
        let command = match serde_json::from_value::<Command>(Value::Object(request)) {
            Ok(command) => command,
            Err(error) => return refusal(&id, "malformed", &error.to_string(), hint),
        };
        let (order, answer) = Order::asking(command);
        let ended = || refusal(&id, "ended", "the call has ended", "Join again.");
        if self.orders.send(order).await.is_err() {
            return ended();
        }
        match answer.await {
            Ok(Ok(answer)) => done(&id, &answer),
            Ok(Err(Notice { code, message, hint })) => refusal(&id, code, &message, &hint),
            Err(_) => ended(),
        }
    }

    fn subscribe(&mut self, id: &Value, events: Option<&Value>) -> Value {
        let names: Option<Vec<String>> = match events {
            None => Some(Vec::new()),
            Some(Value::Array(names)) if names.len() <= MAX_SUBSCRIBED => {
                names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
            }
            Some(_) => None,
        };
        match names {
            Some(names) => {
                self.wanted = Some(names);
                done(id, &Answer::Done)
            }
            None => refusal(
                id,
                "malformed",
                "`events` is a list of at most 32 names",
                "Leave it out for all events.",
            ),
        }
    }

    /// Writes a line; a client that does not take it in time is cut off.
    async fn say(&mut self, line: &str) -> io::Result<()> {
        let line = format!("{line}\n");
        match tokio::time::timeout(READ_PATIENCE, self.write.write_all(line.as_bytes())).await {
            Ok(written) => written,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not read")),
        }
    }
}

fn done(id: &Value, answer: &Answer) -> Value {
    let mut reply = json!({ "reply": id, "ok": true });
    if let (Ok(Value::Object(answer)), Some(reply)) = (serde_json::to_value(answer), reply.as_object_mut()) {
        reply.extend(answer);
    }
    reply
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
