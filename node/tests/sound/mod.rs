//! A sound server for tests, on machines without any card.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The environment variable that says where the server of this test lives.
const SERVER_AT: &str = "HALLWAY_TEST_SOUND_SERVER";

/// A PulseAudio of our own, with one sink called `hall`.
pub struct Server(Child);

impl Server {
    pub fn start(runtime: &Path) -> Option<Self> {
        let child = Command::new("pulseaudio")
            .args([
                "--daemonize=no",
                "--exit-idle-time=-1",
                "--use-pid-file=no",
                "--disable-shm=yes",
                "-n",
                "-F",
                "/dev/null",
            ])
            .arg("-L")
            .arg(format!(
                "module-native-protocol-unix auth-anonymous=1 socket={}",
                runtime.join("native").display()
            ))
            .args(["-L", "module-null-sink sink_name=hall rate=48000"])
            .env("XDG_RUNTIME_DIR", runtime)
            .env("PULSE_RUNTIME_PATH", runtime)
            .env("PULSE_STATE_PATH", runtime)
            .env("HOME", runtime)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut server = Self(child);
        let give_up = Instant::now() + Duration::from_secs(5);
        while std::os::unix::net::UnixStream::connect(runtime.join("native")).is_err() {
            if Instant::now() > give_up || server.0.try_wait().is_ok_and(|s| s.is_some()) {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }
}

impl Server {
    /// It hangs: takes nothing in, says nothing.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// It goes on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the server of this test lives. `None` where the test is over: it was run once more, in a process whose environment
/// names the server, since an environment is set before a program starts and not under its threads; or there is no
/// PulseAudio here.
pub fn here(test: &str) -> Option<PathBuf> {
    if let Some(runtime) = std::env::var_os(SERVER_AT) {
        return Some(runtime.into());
    }
    let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if quiet(Command::new("pulseaudio").arg("--version")).is_err()
        || quiet(Command::new("pactl").arg("--version")).is_err()
    {
        println!("skipped: no pulseaudio");
        return None;
    }
    let runtime = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(SERVER_AT, runtime.path())
        .env("PULSE_SERVER", format!("unix:{}", runtime.path().join("native").display()))
        .env("XDG_RUNTIME_DIR", runtime.path())
        .env("HOME", runtime.path())
        .status()
        .unwrap();
    assert!(status.success(), "see above");
    None
}

/// Asks the server something, as a person would.
pub fn pactl(args: &[&str]) -> String {
    let out = Command::new("pactl").args(args).output().unwrap();
    assert!(out.status.success(), "pactl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
