//! A terminal with a person in front of it: tmux, without one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::process::SOON;

/// One tmux server with one window. Ends, and all in it, when dropped.
pub struct Tmux {
    socket: PathBuf,
    raw: PathBuf,
}

impl Tmux {
    /// Runs a shell command in a terminal of this size; `None` where there is no tmux. All that the command writes is kept.
    pub fn start(dir: &Path, name: &str, size: (u16, u16), command: &str) -> Option<Tmux> {
        Command::new("tmux").arg("-V").output().ok()?;
        let tmux = Tmux { socket: dir.join(format!("{name}.tmux")), raw: dir.join(format!("{name}.raw")) };
        let (width, height) = (size.0.to_string(), size.1.to_string());
        // The command waits until its output is kept.
        let (raw, launched) = (tmux.raw.display(), tmux.raw.with_extension("launched"));
        let waiting = format!(
            "while [ ! -e {raw} ]; do sleep 0.01; done; date +%s%N > {}; {command}",
            launched.display()
        );
        let shell = ["env", "LANG=C.UTF-8", "sh", "-c", &waiting];
        tmux.run(
            &[&["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height][..], &shell].concat(),
        );
        tmux.run(&["pipe-pane", "-o", &format!("cat > {}", tmux.raw.display())]);
        Some(tmux)
    }

    /// What stands on the terminal.
    pub fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    /// All that was written to the terminal.
    pub fn raw(&self) -> Vec<u8> {
        std::fs::read(&self.raw).unwrap()
    }

    /// How long after the launch of the command all that it wrote so far became as wanted.
    pub fn launched_after(&self, wanted: impl Fn(&[u8]) -> bool) -> Duration {
        let until = Instant::now() + SOON;
        // The file is there once its output is kept.
        while !std::fs::read(&self.raw).is_ok_and(|raw| wanted(&raw)) {
            assert!(Instant::now() < until, "it was never written");
            std::thread::sleep(Duration::from_millis(1));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let launched = std::fs::read_to_string(self.raw.with_extension("launched")).unwrap();
        now.saturating_sub(Duration::from_nanos(launched.trim().parse().unwrap()))
    }

    /// Keys by tmux' names.
    pub fn keys(&self, keys: &[&str]) {
        self.run(&[&["send-keys"][..], keys].concat());
    }

    /// A click of the left button, counted from 1.
    pub fn click(&self, column: u16, row: u16) {
        let bytes = format!("\x1b[<0;{column};{row}M\x1b[<0;{column};{row}m");
        let hex: Vec<String> = bytes.bytes().map(|byte| format!("{byte:02x}")).collect();
        let hex: Vec<&str> = hex.iter().map(String::as_str).collect();
        self.run(&[&["send-keys", "-H"][..], &hex].concat());
    }

    /// Text as it stands.
    pub fn types(&self, text: &str) {
        self.run(&["send-keys", "-l", text]);
    }

    /// A fact about the terminal, by tmux' name: `alternate_on`, `mouse_any_flag`, `cursor_flag`.
    pub fn fact(&self, name: &str) -> String {
        self.run(&["display-message", "-p", &format!("#{{{name}}}")]).trim().to_owned()
    }

    /// Changes the terminal's size.
    pub fn resize(&self, width: u16, height: u16) {
        self.run(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]);
    }

    /// Waits until the screen is as wanted, and gives it.
    pub fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + SOON;
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            assert!(Instant::now() < until, "{what} does not come; the screen shows\n{screen}");
            std::thread::sleep(Duration::from_millis(15));
        }
    }

    /// Waits for these words.
    pub fn wait_for(&self, words: &str) -> String {
        self.wait(words, |screen| screen.contains(words))
    }

    fn run(&self, args: &[&str]) -> String {
        let done = Command::new("tmux").arg("-S").arg(&self.socket).args(args).output().expect("tmux");
        let complaint = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "tmux {args:?}: {complaint}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}
