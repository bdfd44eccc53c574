//! Takes the terminal over and gives it back, whatever happens: at the end, on an error, on a signal, in a panic.
//!
//! While it is taken, standard error leads into the log of the screen: a line of ours, or a scolding of a sound library,
//! would tear the picture apart.

use std::{
    collections::VecDeque,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write},
    os::fd::OwnedFd,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use ratatui::crossterm::{
    cursor, event, execute, queue,
    terminal::{self, EnterAlternateScreen},
};
use rustix::stdio;

/// Lines of standard error kept for the time after; the oldest go first.
pub const MAX_KEPT_LINES: usize = 50;

static TAKEN: AtomicBool = AtomicBool::new(false);
static KEYS_PUSHED: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();
/// Where standard error leads to: the terminal, and the screen's log.
static ERRORS: Mutex<Option<[OwnedFd; 2]>> = Mutex::new(None);
static KEPT: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// End of a synchronised frame, mouse, paste and focus off, cursor on, plain colours, the screen that was there before.
const GIVE_BACK: &[u8] =
    b"\x1b[?2026l\x1b[?1006l\x1b[?1015l\x1b[?1003l\x1b[?1002l\x1b[?1000l\x1b[?2004l\x1b[?1004l\x1b[0m\x1b[?25h\x1b[?1049l";
const POP_KEYS: &[u8] = b"\x1b[<1u";

/// Whether the screen can be used at all: a person on both ends, and a terminal that can place a cursor.
pub fn is_usable() -> bool {
    let term = std::env::var("TERM").unwrap_or_default();
    io::stdout().is_terminal()
        && io::stdin().is_terminal()
        && !matches!(term.as_str(), "" | "dumb" | "unknown")
        && !matches!(terminal::size(), Ok((0, _) | (_, 0)))
}

/// Takes the terminal. `complain` is handed each line of standard error, where that is the terminal too.
///
/// # Errors
/// Where the terminal refuses; it is given back then.
pub fn take(complain: impl Fn(String) + Send + 'static) -> io::Result<()> {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
        }));
    });
    TAKEN.store(true, Ordering::SeqCst);
    let taken = set_up();
    if taken.is_err() {
        give_back();
        return taken;
    }
    if io::stderr().is_terminal() {
        return divert(complain).inspect_err(|_| give_back());
    }
    Ok(())
}

fn set_up() -> io::Result<()> {
    terminal::enable_raw_mode()?;
    execute!(
        io::stdout(),
        EnterAlternateScreen,
        event::EnableMouseCapture,
        event::EnableBracketedPaste,
        event::EnableFocusChange,
        cursor::Hide
    )
}

/// Takes it again after the process was suspended.
///
/// # Errors
/// Where the terminal refuses.
pub fn take_again() -> io::Result<()> {
    let pushed = KEYS_PUSHED.load(Ordering::SeqCst);
    TAKEN.store(true, Ordering::SeqCst);
    set_up()?;
    if let Some([_, screen]) = &*ERRORS.lock().unwrap_or_else(PoisonError::into_inner) {
        stdio::dup2_stderr(screen)?;
    }
    if pushed {
        // Asked for once, however often it was taken again.
        put(POP_KEYS);
        tell_releases()?;
    }
    Ok(())
}

/// True while it is ours. False after a panic somewhere: nothing may be drawn any more.
pub fn is_taken() -> bool {
    TAKEN.load(Ordering::SeqCst)
}

/// Gives it back; the second time nothing happens. Takes no lock of the output: a panic may come while one is held.
pub fn give_back() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    if KEYS_PUSHED.load(Ordering::SeqCst) {
        put(POP_KEYS);
    }
    put(GIVE_BACK);
    let _ = terminal::disable_raw_mode();
    if let Some([real, _]) = &*ERRORS.lock().unwrap_or_else(PoisonError::into_inner) {
        let _ = stdio::dup2_stderr(real);
    }
}

/// Empties the screen.
pub fn wipe() {
    if is_taken() {
        put(b"\x1b[0m\x1b[2J");
    }
}

/// Asks the terminal to tell when keys are let go, where it can. May wait two seconds for an answer; only the thread that
/// reads the keyboard may call it.
pub fn ask_for_releases() -> bool {
    let can = matches!(terminal::supports_keyboard_enhancement(), Ok(true)) && is_taken();
    can && tell_releases().is_ok()
}

fn tell_releases() -> io::Result<()> {
    use event::KeyboardEnhancementFlags as Flags;
    let flags = Flags::DISAMBIGUATE_ESCAPE_CODES | Flags::REPORT_EVENT_TYPES;
    let mut bytes = Vec::new();
    queue!(bytes, event::PushKeyboardEnhancementFlags(flags))?;
    put(&bytes);
    KEYS_PUSHED.store(true, Ordering::SeqCst);
    Ok(())
}

/// What was written to standard error while the terminal was taken, the newest lines.
pub fn kept_lines() -> Vec<String> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
}

/// Leads standard error into the screen's log.
fn divert(complain: impl Fn(String) + Send + 'static) -> io::Result<()> {
    let (reading, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let real = rustix::io::fcntl_dupfd_cloexec(stdio::stderr(), 3)?;
    stdio::dup2_stderr(&writing)?;
    *ERRORS.lock().unwrap_or_else(PoisonError::into_inner) = Some([real, writing]);
    std::thread::Builder::new().name("screen errors".into()).spawn(move || {
        let mut lines = BufReader::new(std::fs::File::from(reading));
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            let text = crate::text::clean_line(&String::from_utf8_lossy(&line));
            let blank = line.iter().all(u8::is_ascii_whitespace);
            line.clear();
            if blank {
                continue;
            }
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() >= MAX_KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(text.clone());
            drop(kept);
            complain(text);
        }
    })?;
    Ok(())
}

/// Writes to standard output past all buffers and locks; what cannot be written is lost.
fn put(mut bytes: &[u8]) {
    while let Ok(written @ 1..) = rustix::io::write(stdio::stdout(), bytes) {
        bytes = bytes.get(written..).unwrap_or_default();
        if bytes.is_empty() {
            return;
        }
    }
}

/// Collects a frame and writes it at once, so that no terminal shows half of one.
#[derive(Debug, Default)]
pub struct Frames {
    frame: Vec<u8>,
}

impl Write for Frames {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.frame.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.frame.is_empty() || !is_taken() {
            self.frame.clear();
            return Ok(());
        }
        let mut all = Vec::with_capacity(self.frame.len() + 16);
        all.extend_from_slice(b"\x1b[?2026h");
        all.append(&mut self.frame);
        all.extend_from_slice(b"\x1b[?2026l");
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(stdio::stdout(), rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
