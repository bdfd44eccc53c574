//! Takes the terminal over and gives it back, whatever happens: at the end, on an error, on a signal, in a panic.
//!
//! While it is taken, standard error leads into the log of the screen: a line of ours, or a scolding of a sound library,
//! would tear the picture apart.
//!
//! A terminal may hang: a stalled network, a window that is stopped. It is written to without waiting for it, so that whoever
//! wants to leave can.

use std::{
    collections::VecDeque,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, Once, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ratatui::crossterm::{
    cursor, event, queue,
    terminal::{self, EnterAlternateScreen},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    io::Errno,
    stdio,
};

/// Lines of standard error kept for the time after; the oldest go first.
pub const MAX_KEPT_LINES: usize = 50;

/// How long the terminal may take for what has to be written: taking it over, giving it back.
pub const PATIENCE: Duration = Duration::from_millis(400);

/// How long the screen waits for it before it looks after other things.
const BLINK: Duration = Duration::from_millis(10);

/// The terminal, opened once more so that writing does not wait: standard output's own mode is shared with the shell. `None`
/// where it has no name to open it by.
static OUT: OnceLock<Option<OwnedFd>> = OnceLock::new();
/// It did not take what had to be written when it was given back last.
static STUCK: AtomicBool = AtomicBool::new(false);
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
    let mut bytes = Vec::new();
    queue!(
        bytes,
        EnterAlternateScreen,
        event::EnableMouseCapture,
        event::EnableBracketedPaste,
        event::EnableFocusChange,
        cursor::Hide
    )?;
    match put(&bytes) {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::TimedOut, "the terminal takes nothing")),
    }
}

/// It hangs: whatever else is written to it may never return.
pub fn is_stuck() -> bool {
    STUCK.load(Ordering::SeqCst)
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
    let keys = if KEYS_PUSHED.load(Ordering::SeqCst) { POP_KEYS } else { b"" };
    // One that hung when it was given back before may not hang any more.
    STUCK.store(!put(&[keys, GIVE_BACK].concat()), Ordering::SeqCst);
    let _ = terminal::disable_raw_mode();
    if let Some([real, _]) = &*ERRORS.lock().unwrap_or_else(PoisonError::into_inner) {
        let _ = stdio::dup2_stderr(real);
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

fn out() -> BorrowedFd<'static> {
    let open = || {
        let name = rustix::termios::ttyname(stdio::stdout(), Vec::new()).ok()?;
        rustix::fs::open(
            name,
            OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ok()
    };
    OUT.get_or_init(open).as_ref().map_or_else(stdio::stdout, |out| out.as_fd())
}

/// Writes what the terminal takes now: nothing, where it hangs.
fn write_some(bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::io::write(out(), bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => return Ok(written),
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until the terminal takes more, or the time is up.
fn takes_more(until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    let wait = rustix::time::Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
    let ready = poll(&mut [PollFd::from_borrowed_fd(out(), PollFlags::OUT)], Some(&wait));
    !left.is_zero() && !matches!(ready, Ok(0))
}

/// Writes past all buffers and locks, within [`PATIENCE`]. Whether all was taken.
fn put(mut bytes: &[u8]) -> bool {
    let until = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        match write_some(bytes) {
            Ok(0) if !takes_more(until) => return false,
            Ok(0) => {}
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            // Nobody is there to be kept waiting.
            Err(_) => return true,
        }
    }
    true
}

/// Collects a frame and writes it as one, so that no terminal shows half of one. What a slow terminal does not take at once
/// waits, and no further frame is begun meanwhile.
#[derive(Debug, Default, Clone)]
pub struct Frames(Arc<Mutex<Frame>>);

#[derive(Debug, Default)]
struct Frame {
    /// Being painted.
    next: Vec<u8>,
    /// Begun to be written.
    waiting: Vec<u8>,
    /// Empty the screen first.
    wipe: bool,
}

impl Frames {
    /// The next frame is painted on an empty screen.
    pub fn wipe(&self) {
        self.frame().wipe = true;
    }

    /// Goes on with what waits. True when nothing does any more.
    ///
    /// # Errors
    /// Where the terminal is gone.
    pub fn go_on(&self) -> io::Result<bool> {
        let mut frame = self.frame();
        if !is_taken() {
            frame.waiting.clear();
        }
        let until = Instant::now() + BLINK;
        while !frame.waiting.is_empty() {
            let written = write_some(&frame.waiting)?;
            frame.waiting.drain(..written);
            if written == 0 && !takes_more(until) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn frame(&self) -> std::sync::MutexGuard<'_, Frame> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Frames {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.frame().next.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        {
            let mut frame = self.frame();
            let painted = std::mem::take(&mut frame.next);
            if painted.is_empty() || !is_taken() {
                return Ok(());
            }
            frame.waiting.extend_from_slice(b"\x1b[?2026h");
            if std::mem::take(&mut frame.wipe) {
                frame.waiting.extend_from_slice(b"\x1b[0m\x1b[2J");
            }
            frame.waiting.extend_from_slice(&painted);
            frame.waiting.extend_from_slice(b"\x1b[?2026l");
        }
        self.go_on().map(|_| ())
    }
}
