//! The thread behind the screen: takes in keys, news and signals, draws when something changed, at most fifteen times a
//! second, and sends what is asked to the node.

use std::{
    io::{self, Write as _},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ratatui::{
    Terminal, TerminalOptions, Viewport,
    backend::CrosstermBackend,
    crossterm::{
        event::{self, KeyCode, KeyEventKind, KeyModifiers},
        terminal::size,
    },
};
use signal_hook::{
    consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP},
    iterator::Signals,
};
use tokio::sync::mpsc;

use super::{
    Input, Theme, View, draw,
    terminal::{self, Frames},
    update,
};
use crate::{
    events::{self, Event, Stamped},
    meters::Meters,
    node::{Answer, Command, Order},
};

/// Inputs that may wait; whoever has more waits for the screen.
pub const MAX_WAITING_INPUTS: usize = 1_024;
/// Shortest time between two frames.
const FRAME: Duration = Duration::from_millis(66);
/// The same after a key: what is typed appears at once.
const FRAME_AFTER_KEY: Duration = Duration::from_millis(16);
/// How long the node may take to leave before the program ends without it.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long the last news may take, once the node has ended.
const LAST_NEWS: Duration = Duration::from_millis(400);
/// How long the screen may take to show them.
const LAST_FRAME: Duration = Duration::from_millis(600);
/// Whoever asks twice within this time has asked once.
const NOT_AGAIN: Duration = Duration::from_millis(500);

/// What the screen's thread is told.
enum Happening {
    Input(Input),
    Meters(Meters),
    Suspend,
    Continue,
    End,
}

/// What the screen shows before the node tells anything.
pub struct Screen {
    /// The room's name.
    pub room: String,
    /// Anyone who knows it can join.
    pub open_room: bool,
    /// Our own name.
    pub me: String,
    /// What is captured and where it is played, as asked for.
    pub sound: (String, String),
    /// When the program began.
    pub started: Instant,
    /// Looks.
    pub theme: Theme,
}

/// A screen that is open. Closed, and the terminal given back, at the latest when dropped.
pub struct ScreenHandle {
    inbox: SyncSender<Happening>,
    thread: Option<JoinHandle<Option<String>>>,
    /// Disconnected when the thread has ended.
    running: Receiver<Never>,
    /// The same of the one that passes news on, and ends with the last.
    news: Option<Receiver<Never>>,
}

/// Nothing is sent: that the other end is gone is the message.
enum Never {}

impl Screen {
    /// Takes the terminal and draws the first frame. `happened` is the node's; `orders` goes to it.
    ///
    /// # Errors
    /// Where the terminal refuses; it is given back then.
    pub fn open(
        self,
        happened: mpsc::Receiver<Stamped>,
        orders: mpsc::Sender<Order>,
    ) -> io::Result<ScreenHandle> {
        let (inbox, told) = sync_channel(MAX_WAITING_INPUTS);
        // Before the terminal is taken: a signal that comes from now on must find somebody who gives it back.
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGTSTP, SIGCONT])?;
        // A full inbox must not hold up whoever writes to standard error.
        let complaints = inbox.clone();
        terminal::take(move |line| drop(complaints.try_send(Happening::Input(Input::Complaint(line)))))?;
        let frames = Frames::default();
        let terminal = match open_terminal(&frames) {
            Ok(terminal) => terminal,
            Err(error) => {
                terminal::give_back();
                return Err(error);
            }
        };
        let mut view = View::new(&self.room, self.open_room, &self.me, self.theme);
        (view.input.name, view.output.name) = self.sound;
        let (width, height) = size().unwrap_or((80, 24));
        update(&mut view, Input::Resize(width, height));
        let running = Running {
            view,
            terminal,
            frames,
            told,
            inbox: inbox.clone(),
            orders,
            meters: None,
            started: self.started,
            drawn: None,
            due: Instant::now(),
            farewell: None,
            leaving: None,
            suspended: false,
        };
        let (alive, until_ended) = sync_channel::<Never>(0);
        let thread = std::thread::Builder::new().name("screen".into()).spawn(move || {
            let _alive = alive;
            running.run()
        });
        let thread = Some(thread.inspect_err(|_| terminal::give_back())?);
        let mut open = ScreenHandle { inbox: inbox.clone(), thread, running: until_ended, news: None };
        let keys = inbox.clone();
        std::thread::Builder::new().name("screen keys".into()).spawn(move || read_keys(&keys))?;
        let news = inbox.clone();
        let passing = std::thread::Builder::new().name("screen news".into());
        let (alive, until_passed_on) = sync_channel::<Never>(0);
        passing.spawn(move || {
            let _alive = alive;
            forward(happened, &news);
        })?;
        open.news = Some(until_passed_on);
        std::thread::Builder::new()
            .name("screen signals".into())
            .spawn(move || hear_signals(signals, &inbox))?;
        Ok(open)
    }
}

impl ScreenHandle {
    /// From now on the levels are drawn.
    pub fn show_levels(&self, meters: Meters) {
        let _ = self.inbox.send(Happening::Meters(meters));
    }

    /// Gives the terminal back. What there is to say after a call, if there was one, and what was written to standard error
    /// meanwhile; nothing, where the terminal hangs.
    pub fn close(mut self) -> (Option<String>, Vec<String>) {
        let farewell = self.end();
        if terminal::is_stuck() { (None, Vec::new()) } else { (farewell, terminal::kept_lines()) }
    }

    fn end(&mut self) -> Option<String> {
        let thread = self.thread.take()?;
        // The last news are on their way through the same queue.
        if let Some(news) = self.news.take() {
            let _ = news.recv_timeout(LAST_NEWS);
        }
        // Which may be full: whoever waits for room in it must not be this thread.
        let inbox = self.inbox.clone();
        let ending = std::thread::Builder::new().name("screen end".into());
        let _ = ending.spawn(move || drop(inbox.send(Happening::End)));
        let ended = self.running.recv_timeout(LAST_FRAME);
        terminal::give_back();
        match ended {
            Err(RecvTimeoutError::Disconnected) => thread.join().ok().flatten(),
            _ => None,
        }
    }
}

impl Drop for ScreenHandle {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // Who gives the news may outlive the screen.
            self.news = None;
            self.end();
            if terminal::is_stuck() {
                return;
            }
            terminal::kept_lines().iter().for_each(|line| drop(writeln!(io::stderr(), "{line}")));
        }
    }
}

fn open_terminal(frames: &Frames) -> io::Result<Terminal<CrosstermBackend<Frames>>> {
    let options = TerminalOptions { viewport: Viewport::Fullscreen };
    Terminal::with_options(CrosstermBackend::new(frames.clone()), options)
}

struct Running {
    view: View,
    terminal: Terminal<CrosstermBackend<Frames>>,
    /// What the terminal has not taken yet.
    frames: Frames,
    told: Receiver<Happening>,
    inbox: SyncSender<Happening>,
    orders: mpsc::Sender<Order>,
    meters: Option<Meters>,
    started: Instant,
    drawn: Option<Instant>,
    /// When the next frame may be drawn.
    due: Instant,
    farewell: Option<String>,
    leaving: Option<Instant>,
    /// The terminal is the shell's for the time being.
    suspended: bool,
}

impl Running {
    /// Until told to end. Gives the last word about the call.
    fn run(mut self) -> Option<String> {
        while terminal::is_taken() || self.suspended {
            let now = Instant::now();
            let drawn = match self.frames.go_on() {
                Ok(true) if self.view.stale && !self.suspended && now >= self.due => self.draw(now),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if drawn.is_err() {
                // The terminal is gone; so is the person.
                if self.leaving.is_none() {
                    self.leave();
                }
                return self.farewell;
            }
            // One that hangs is asked again at the pace of frames.
            let wait = match self.view.stale && !self.suspended && now < self.due {
                true => self.due.saturating_duration_since(now),
                false => FRAME_AFTER_KEY.max(if self.view.stale { Duration::ZERO } else { FRAME }),
            };
            match self.told.recv_timeout(wait) {
                Ok(happening) => {
                    if !self.take_in(happening) {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.look_at_the_clock();
        }
        self.farewell
    }

    /// False when it is time to end.
    fn take_in(&mut self, happening: Happening) -> bool {
        match happening {
            Happening::Input(Input::Key(key)) => {
                let control = key.modifiers.contains(KeyModifiers::CONTROL);
                match key.code {
                    KeyCode::Char('z') if control && key.kind == KeyEventKind::Press => self.suspend(),
                    KeyCode::Char('l') if control => self.redraw_all(),
                    _ => self.ask(Input::Key(key)),
                }
                let soon = self.drawn.map_or(self.due, |drawn| drawn + FRAME_AFTER_KEY);
                self.due = self.due.min(soon);
            }
            Happening::Input(Input::Happened(event)) => {
                if let Event::Summary(_) = *event {
                    self.farewell = events::sentence(&event);
                }
                self.ask(Input::Happened(event));
            }
            Happening::Input(input) => self.ask(input),
            Happening::Meters(meters) => self.meters = Some(meters),
            Happening::Suspend => self.suspend(),
            Happening::Continue => {
                // The shell may have changed everything meanwhile.
                self.suspended = false;
                let _ = terminal::take_again();
                self.redraw_all();
            }
            Happening::End => {
                if let Ok(true) = self.frames.go_on() {
                    let _ = self.draw(Instant::now());
                }
                return false;
            }
        }
        true
    }

    fn ask(&mut self, input: Input) {
        let Some(command) = update(&mut self.view, input) else { return };
        let order = match command {
            Command::Leave => return self.leave(),
            Command::Devices => self.ask_for_devices(),
            command => Some(Order::from(command)),
        };
        if let Some(order) = order
            && self.orders.try_send(order).is_err()
        {
            // Nothing is shown that did not happen, an open microphone least of all.
            self.view.put_back();
            self.view.note(super::view::Voice::Trouble, "busy: that was not done. Try again.".into(), true);
        }
    }

    /// The second time the program ends at once; a key that repeats is no second time.
    fn leave(&mut self) {
        match self.leaving {
            Some(since) if since.elapsed() < NOT_AGAIN => return,
            Some(_) => self.give_up(),
            None => self.leaving = Some(Instant::now()),
        }
        let _ = self.orders.try_send(Command::Leave.into());
    }

    /// The node does not end: a sound system may hang. The terminal must not.
    fn give_up(&self) -> ! {
        terminal::give_back();
        std::process::exit(0);
    }

    fn ask_for_devices(&self) -> Option<Order> {
        let (order, answered) = Order::asking(Command::Devices);
        let inbox = self.inbox.clone();
        let waiting = std::thread::Builder::new().name("screen devices".into()).spawn(move || {
            if let Ok(Ok(Answer::Devices(found))) = answered.blocking_recv() {
                let _ = inbox.send(Happening::Input(Input::Found(found)));
            }
        });
        waiting.ok().map(|_| order)
    }

    fn look_at_the_clock(&mut self) {
        if self.leaving.is_some_and(|since| since.elapsed() > PATIENCE) {
            self.give_up();
        }
        update(&mut self.view, Input::Elapsed(self.started.elapsed()));
        if let Some(meters) = &self.meters {
            let voices =
                self.view.people.iter().filter_map(|p| Some((p.peer, meters.voice(&p.peer)?))).collect();
            let levels = Input::Levels { own: meters.own().dbov(), open: meters.is_open(), voices };
            update(&mut self.view, levels);
        }
    }

    fn draw(&mut self, now: Instant) -> io::Result<()> {
        let view = &mut self.view;
        self.terminal.draw(|frame| {
            let area = frame.area();
            if area != view.area {
                update(view, Input::Resize(area.width, area.height));
            }
            draw(view, frame.buffer_mut());
        })?;
        view.stale = false;
        self.drawn = Some(now);
        self.due = now + FRAME;
        Ok(())
    }

    fn redraw_all(&mut self) {
        // Ratatui's own `clear` would ask the terminal where the cursor is, and wait for what the key reader takes away.
        if let Ok(terminal) = open_terminal(&self.frames) {
            // The one before shows the cursor when it goes, and takes a wipe for its own.
            self.terminal = terminal;
            self.frames.wipe();
        }
        self.view.stale = true;
        self.due = Instant::now();
    }

    /// Gives the terminal back and stops the process, until somebody continues it. This thread may run on for a moment before
    /// it is stopped, so the terminal is taken again when the process is told to continue, not after this.
    fn suspend(&mut self) {
        terminal::give_back();
        self.suspended = true;
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
    }
}

fn read_keys(inbox: &SyncSender<Happening>) {
    let releases = terminal::ask_for_releases();
    let mut happening = Some(Input::Releases(releases));
    loop {
        if let Some(input) = happening.take()
            && inbox.send(Happening::Input(input)).is_err()
        {
            return;
        }
        happening = match event::read() {
            Ok(event::Event::Key(key)) => Some(Input::Key(key)),
            Ok(event::Event::Mouse(mouse)) => Some(Input::Mouse(mouse)),
            Ok(event::Event::Paste(text)) => Some(Input::Paste(text)),
            Ok(event::Event::Resize(width, height)) => Some(Input::Resize(width, height)),
            Ok(event::Event::FocusLost) => Some(Input::FocusLost),
            Ok(event::Event::FocusGained) => None,
            // The terminal is gone.
            Err(_) => {
                let _ = inbox.send(Happening::Input(Input::Leave));
                return;
            }
        };
    }
}

fn forward(mut happened: mpsc::Receiver<Stamped>, inbox: &SyncSender<Happening>) {
    while let Some(stamped) = happened.blocking_recv() {
        if inbox.send(Happening::Input(Input::Happened(Box::new(stamped.event)))).is_err() {
            return;
        }
    }
}

fn hear_signals(mut signals: Signals, inbox: &SyncSender<Happening>) {
    for signal in signals.forever() {
        let happening = match signal {
            SIGTSTP => Happening::Suspend,
            SIGCONT => Happening::Continue,
            _ => Happening::Input(Input::Leave),
        };
        if inbox.send(happening).is_err() {
            return;
        }
    }
}
