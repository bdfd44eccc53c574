//! Runs work where the kernel allows no system call, for the tests of code that must make none.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test stands or falls with it")]

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::thread::{SecureComputingMode, set_secure_computing_mode};

/// The environment variable that says that this is the process whose thread may be killed.
const HERE: &str = "HALLWAY_TEST_STRICTLY";

/// What the process of its own says of its thread.
const NONE_MADE: &str = "no system call was made";
const ENDED_AT_ONE: &str = "the thread was ended at a system call";

/// Runs `prepare`, then what it gives on a thread in strict seccomp mode (seccomp(2)): the kernel ends that thread at its
/// first system call but reads and writes of what is open. `test` is the calling test's full name: it is run once more in
/// a process of its own. What is allocated from the heap's own reserve is no system call: `allocations` counts that. The
/// processor's clock cannot be read there either.
pub(crate) fn without_system_calls<W: FnMut() + Send + 'static>(test: &str, prepare: impl FnOnce() -> W) {
    let said = strictly(test, prepare);
    assert!(said.contains(NONE_MADE), "{said}");
}

/// Gives what the process of its own said.
fn strictly<W: FnMut() + Send + 'static>(test: &str, prepare: impl FnOnce() -> W) -> String {
    if std::env::var_os(HERE).is_none() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(HERE, "yes")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        return format!("{status}: {said}");
    }
    let (tell, told) = channel();
    let [entered, done] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    let (mut work, is_entered, is_done) = (prepare(), entered.clone(), done.clone());
    std::thread::spawn(move || {
        tell.send(rustix::thread::gettid()).unwrap();
        set_secure_computing_mode(SecureComputingMode::Strict).unwrap();
        is_entered.store(true, Ordering::Release);
        work();
        is_done.store(true, Ordering::Release);
        // Its end would make calls that are not allowed: the process ends before.
        loop {
            std::hint::spin_loop();
        }
    });
    let alive = PathBuf::from(format!("/proc/self/task/{}", told.recv().unwrap().as_raw_nonzero()));
    while alive.exists() && !done.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // A thread that never came into strict mode has shown nothing.
    if done.load(Ordering::Acquire) {
        println!("{NONE_MADE}");
    } else if entered.load(Ordering::Acquire) {
        println!("{ENDED_AT_ONE}");
    }
    std::process::exit(0);
}

#[test]
fn a_system_call_is_noticed() {
    let said = strictly("audio::strictly::a_system_call_is_noticed", || {
        || {
            let _ = std::fs::metadata("/");
        }
    });
    assert!(said.contains(ENDED_AT_ONE) && !said.contains(NONE_MADE), "{said}");
}
