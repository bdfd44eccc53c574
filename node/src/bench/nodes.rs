//! Whole programs under measurement: child processes that speak JSON events, and end when we do.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::log::{EventLog, MAX_LINE};

/// How long a program may take to say `ready`.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// How long a program may take to end after it was asked to.
const END_WITHIN: Duration = Duration::from_secs(3);

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: Arc<Mutex<EventLog>>,
    news: watch::Receiver<u64>,
    reader: JoinHandle<()>,
    complaints: PathBuf,
}

impl Program {
    /// Starts `binary` with `args`; its events go to `DIR/NAME.jsonl` and its standard error to `DIR/NAME.stderr`.
    pub fn start(name: &str, binary: &Path, args: &[String], dir: &Path) -> anyhow::Result<Program> {
        Self::start_with(name, binary, args, dir, false)
    }

    /// The same; with `echo` its events go to our standard output too, as they come.
    pub fn start_with(
        name: &str,
        binary: &Path,
        args: &[String],
        dir: &Path,
        echo: bool,
    ) -> anyhow::Result<Program> {
        let complaints = dir.join(format!("{name}.stderr"));
        let stderr = std::fs::File::create(&complaints)
            .with_context(|| format!("creating {}", complaints.display()))?;
        let mut child = Command::new(binary)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let stdout = child.stdout.take().context("the child has no standard output")?;
        let copy = dir.join(format!("{name}.jsonl"));
        let mut copy =
            std::fs::File::create(&copy).with_context(|| format!("creating {}", copy.display()))?;
        let log = Arc::new(Mutex::new(EventLog::default()));
        let (tell, news) = watch::channel(0);
        let into = log.clone();
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(stdout);
            let mut line = Vec::new();
            // An error of the pipe is its end: the exit status tells the rest.
            while let Ok(1..) = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).await {
                use std::io::Write;
                // A full disk loses the copy, not the measurement.
                let _ = copy.write_all(&line);
                if echo {
                    // Whoever closed our output has read enough.
                    let _ = std::io::stdout().lock().write_all(&line);
                }
                into.lock().unwrap_or_else(PoisonError::into_inner).push(&line);
                line.clear();
                tell.send_modify(|n| *n += 1);
            }
        });
        Ok(Program { name: name.to_owned(), child, log, news, reader, complaints })
    }

    /// Waits for the `ready` event.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let until = tokio::time::Instant::now() + READY_WITHIN;
        loop {
            if self.log().first("ready").is_some() {
                return Ok(());
            }
            // The channel closes when the program's standard output does.
            match tokio::time::timeout_at(until, self.news.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => bail!("{} ended before it was ready: {}", self.name, self.last_words()),
                Err(_) => bail!("{} was not ready within {READY_WITHIN:?}: {}", self.name, self.last_words()),
            }
        }
    }

    /// Its events so far.
    pub fn log(&self) -> EventLog {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it ends by itself, at most this long, then ends it. Gives its events, and what went wrong, if anything.
    pub async fn finish(mut self, within: Duration) -> (EventLog, Option<String>) {
        let wrong = match tokio::time::timeout(within, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => None,
            Ok(Ok(status)) => Some(format!("{} ended with {status}: {}", self.name, self.last_words())),
            Ok(Err(error)) => Some(format!("{}: {error}", self.name)),
            Err(_) => {
                self.end().await;
                Some(format!("{} did not leave within {within:?}", self.name))
            }
        };
        // A grandchild might hold the pipe open; what it would say is not waited for.
        let _ = tokio::time::timeout(END_WITHIN, &mut self.reader).await;
        (self.log(), wrong)
    }

    /// Asks it to end, then makes it.
    pub async fn end(&mut self) {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(END_WITHIN, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }

    /// The last line on its standard error, which says what happened and what to do next.
    fn last_words(&self) -> String {
        let all = std::fs::read(&self.complaints).unwrap_or_default();
        let text = String::from_utf8_lossy(&all);
        text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason").to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, dir: &Path) -> Program {
        Program::start("sh", Path::new("/bin/sh"), &["-c".into(), script.into()], dir).unwrap()
    }

    #[tokio::test]
    async fn events_are_read_and_a_clean_end_is_no_complaint() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = shell(
            r#"echo '{"event":"ready","at_ns":4,"peer_id":"p"}'; echo '{"event":"summary","at_ns":9}'"#,
            dir.path(),
        );
        program.ready().await.unwrap();
        let (log, wrong) = program.finish(Duration::from_secs(10)).await;
        assert_eq!((log.peer_id(), log.at_ns("summary"), wrong), (Some("p"), Some(9), None));
        assert_eq!(std::fs::read_to_string(dir.path().join("sh.jsonl")).unwrap().lines().count(), 2);
    }

    #[tokio::test]
    async fn a_program_that_fails_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = shell("echo 'no such room; ask for an invite' >&2; exit 5", dir.path());
        let error = program.ready().await.unwrap_err().to_string();
        assert!(error.contains("no such room; ask for an invite"), "{error}");
        let (_, wrong) = program.finish(Duration::from_secs(10)).await;
        assert!(wrong.unwrap().contains("exit status: 5"));
    }

    #[tokio::test]
    async fn one_that_does_not_leave_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let program = shell("exec sleep 600", dir.path());
        let pid = Pid::from_raw(program.child.id().unwrap().cast_signed()).unwrap();
        let (_, wrong) = program.finish(Duration::from_millis(20)).await;
        assert!(wrong.unwrap().contains("did not leave"));
        assert!(rustix::process::test_kill_process(pid).is_err(), "still there");
    }
}
