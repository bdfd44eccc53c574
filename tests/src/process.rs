//! One running `hallway`: its events with deadlines, its exit code, its last words. Dropping it kills it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hallway::bench::log::EventLog;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::binary;

/// How long anything may take that ought to happen at once: a bound for a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(30);

/// A child process of a test.
pub struct Process {
    /// How the test calls it.
    pub name: String,
    child: Child,
    said: Arc<Said>,
    reader: Option<JoinHandle<()>>,
    stdout: PathBuf,
    stderr: PathBuf,
    status: Option<ExitStatus>,
}

#[derive(Default)]
struct Said {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    events: Vec<Value>,
    /// Standard output is closed.
    closed: bool,
}

impl Process {
    /// Starts `hallway ARGS`. What it prints is kept in `DIR/NAME.stdout` and `DIR/NAME.stderr`.
    pub fn start(
        dir: &Path,
        name: &str,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        environment: &[(&str, &str)],
    ) -> Process {
        Self::start_command(Command::new(binary::hallway()), dir, name, args, environment)
    }

    /// Starts `hallway ARGS` in a network namespace.
    pub fn start_in(
        namespace: &str,
        dir: &Path,
        name: &str,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Process {
        // `ip netns exec` becomes the program: the process is still our child.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(binary::hallway());
        // What the laboratory's nodes log is asked for by name: nobody's usual setting should fill its stories.
        let log = std::env::var("NETLAB_LOG").ok();
        let environment: Vec<(&str, &str)> = log.iter().map(|log| ("HALLWAY_LOG", log.as_str())).collect();
        Self::start_command(command, dir, name, args, &environment)
    }

    fn start_command(
        mut command: Command,
        dir: &Path,
        name: &str,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        environment: &[(&str, &str)],
    ) -> Process {
        let (stdout, stderr) = (dir.join(format!("{name}.stdout")), dir.join(format!("{name}.stderr")));
        let mut child = without_settings(&mut command)
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .expect("starting hallway");
        let pipe = child.stdout.take().expect("a pipe");
        let mut copy = File::create(&stdout).unwrap();
        let said = Arc::new(Said::default());
        let into = said.clone();
        let reader = std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while let Ok(1..) = pipe.read_until(b'\n', &mut line) {
                copy.write_all(&line).unwrap();
                let event =
                    serde_json::from_slice(&line).ok().filter(|event: &Value| event["event"].is_string());
                line.clear();
                into.lock().events.extend(event);
                into.news.notify_all();
            }
            into.lock().closed = true;
            into.news.notify_all();
        });
        Process { name: name.to_owned(), child, said, reader: Some(reader), stdout, stderr, status: None }
    }

    /// Starts `hallway ARGS` with a standard output that nobody reads and that is closed at once.
    pub fn start_without_reader(
        dir: &Path,
        name: &str,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Process {
        let (stdout, stderr) = (dir.join(format!("{name}.stdout")), dir.join(format!("{name}.stderr")));
        File::create(&stdout).unwrap();
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let child = without_settings(&mut Command::new(binary::hallway()))
            .args(args)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .expect("starting hallway");
        drop(reader);
        let said = Arc::new(Said::default());
        Process { name: name.to_owned(), child, said, reader: None, stdout, stderr, status: None }
    }

    /// Its events so far, oldest first.
    pub fn events(&self) -> Vec<Value> {
        self.said.lock().events.clone()
    }

    /// Its events of this name so far.
    pub fn named(&self, name: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == name).collect()
    }

    /// How many events it has told: a mark for [`Process::wait_after`].
    pub fn mark(&self) -> usize {
        self.said.lock().events.len()
    }

    /// The first event, past or to come, that `wanted` takes. A deadline missed ends the test with all it said.
    pub fn wait(&self, what: &str, within: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait_after(0, what, within, wanted)
    }

    /// As [`Process::wait`], of the events after a [`Process::mark`].
    pub fn wait_after(
        &self,
        mark: usize,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        self.find_after(mark, within, wanted).unwrap_or_else(|why| {
            panic!("{}: {what} did not come, {why} ({within:?})\n{}", self.name, self.story());
        })
    }

    /// The first event that `wanted` takes, if it comes in time.
    pub fn find(&self, within: Duration, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        self.find_after(0, within, wanted).ok()
    }

    fn find_after(
        &self,
        mark: usize,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, &'static str> {
        let until = Instant::now() + within;
        let mut state = self.said.lock();
        let mut seen = mark;
        loop {
            if let Some(event) = state.events.iter().skip(seen).find(|event| wanted(event)) {
                return Ok(event.clone());
            }
            seen = state.events.len().max(mark);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                return Err(if state.closed { "it ended" } else { "time is up" });
            }
            state = self.said.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The first event of this name.
    pub fn wait_named(&self, name: &str) -> Value {
        self.wait(name, SOON, |event| event["event"] == name)
    }

    /// The `peer` event with this state of this peer.
    pub fn wait_peer(&self, peer_id: &str, state: &str) -> Value {
        self.wait_peer_after(0, peer_id, state, SOON)
    }

    /// As [`Process::wait_peer`], of the events after a mark.
    pub fn wait_peer_after(&self, mark: usize, peer_id: &str, state: &str, within: Duration) -> Value {
        self.wait_after(mark, &format!("{state} of {peer_id}"), within, |event| {
            event["event"] == "peer" && event["peer_id"] == peer_id && event["state"] == state
        })
    }

    /// Waits for the first sound of this peer.
    pub fn wait_hearing(&self, peer_id: &str) -> Value {
        self.wait(&format!("the voice of {peer_id}"), SOON, |event| {
            event["event"] == "first_audio" && event["peer_id"] == peer_id
        })
    }

    /// Its PeerId, once it is ready.
    pub fn peer_id(&self) -> String {
        self.wait_named("ready")["peer_id"].as_str().expect("a peer_id").to_owned()
    }

    /// Where it listens, once it is ready.
    pub fn listen(&self) -> Vec<String> {
        let ready = self.wait_named("ready");
        ready["listen"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned()).collect()
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("sending a signal");
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.status.is_none() && self.child.try_wait().expect("the child's status").is_none()
    }

    /// Waits for its end; gives the exit code, `None` where a signal ended it.
    pub fn wait_exit(&mut self, within: Duration) -> Option<i32> {
        let until = Instant::now() + within;
        while self.status.is_none() {
            self.status = self.child.try_wait().expect("the child's status");
            if self.status.is_none() {
                assert!(Instant::now() < until, "{} did not end in {within:?}\n{}", self.name, self.story());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of its output");
        }
        self.status.and_then(|status| status.code())
    }

    /// Asks it to leave and expects that it does, in order.
    pub fn leave(&mut self) {
        self.signal(Signal::TERM);
        let code = self.wait_exit(SOON);
        assert_eq!(code, Some(0), "{} left with {code:?}\n{}", self.name, self.story());
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        assert_eq!(self.wait_exit(SOON), None);
    }

    /// All of its standard output.
    pub fn stdout(&self) -> Vec<u8> {
        std::fs::read(&self.stdout).unwrap()
    }

    /// All of its standard error.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stderr).unwrap()).into_owned()
    }

    /// The last line on its standard error: what happened and what to do next.
    pub fn last_words(&self) -> String {
        let all = self.stderr();
        all.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
    }

    /// Its events as the benches read them.
    pub fn log(&self) -> EventLog {
        EventLog::read(&self.stdout).unwrap()
    }

    /// Memory in use now, KiB (Linux).
    pub fn rss_kb(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// What it said, for a test that failed; `stats` are left out.
    pub fn story(&self) -> String {
        let events = self.events();
        let told =
            events.iter().filter(|event| event["event"] != "stats").map(|event| format!("  {event}\n"));
        format!("{} said:\n{}and on standard error:\n{}", self.name, told.collect::<String>(), self.stderr())
    }
}

/// What the person who runs the tests has set must not change them.
fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HALLWAY_")) {
        command.env_remove(name);
    }
    command
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            // It may have ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Said {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does on a thread of its own what could wait for ever; after [`SOON`] the test fails and leaves it behind.
pub fn soon<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || _ = tell.send(work()));
    match told.recv_timeout(SOON) {
        Ok(done) => done,
        Err(RecvTimeoutError::Timeout) => panic!("{what} did not come in {SOON:?}"),
        Err(RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().expect_err("what ended without an answer has failed"))
        }
    }
}

/// A finished run of a command that only prints.
pub struct Printed {
    /// Exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// The last line of standard error.
    pub last_words: String,
}

/// Runs `hallway ARGS` to its end.
pub fn run(
    dir: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    environment: &[(&str, &str)],
) -> Printed {
    let name = format!("run-{}", std::fs::read_dir(dir).unwrap().count());
    let mut process = Process::start(dir, &name, args, environment);
    let code = process.wait_exit(SOON);
    let out = String::from_utf8(process.stdout()).expect("text");
    Printed { code, out, last_words: process.last_words() }
}
