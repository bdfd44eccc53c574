//! What follows from a key, a click, or news of the node: another view, and sometimes a command.

use std::time::Duration;

use hallway_codec::{Delay, Profile};
use libp2p::PeerId;
use ratatui::{
    crossterm::event::{
        KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
    },
    layout::{Position, Rect},
};

use super::{
    draw::{most_scroll, regions, row_at},
    view::{Devices, Draft, MAX_DRAFT, MAX_PEOPLE, Pane, Person, SETTINGS, Setting, View, Voice},
};
use crate::{
    audio::{DeviceInfo, End, Switch},
    controls::{Controls, Hearing, Speak, THRESHOLDS, VOLUMES_DB},
    events::{self, DeviceState, Event, PeerState},
    links,
    node::Command,
    text,
    trust::Standing,
    typed::{self, Toggle, Typed},
};

/// How far one key turns a person's volume, dB.
pub const VOLUME_STEP: i8 = 2;
/// How far one key moves the threshold of voice activation, dB.
pub const THRESHOLD_STEP: i8 = 2;

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A key, down, repeated or up.
    Key(KeyEvent),
    /// Text was pasted.
    Paste(String),
    /// The mouse.
    Mouse(MouseEvent),
    /// The terminal has another size.
    Resize(u16, u16),
    /// The terminal went to the background.
    FocusLost,
    /// The terminal tells when a key is let go, or does not.
    Releases(bool),
    /// News of the node.
    Happened(Box<Event>),
    /// How loud everybody is now.
    Levels {
        /// Our microphone, dB below full scale.
        own: f32,
        /// What it captures is sent.
        open: bool,
        /// The others.
        voices: Vec<(PeerId, f32)>,
    },
    /// Since launch.
    Elapsed(Duration),
    /// The sound devices of this machine.
    Found(Vec<DeviceInfo>),
    /// Somebody wrote a line on standard error.
    Complaint(String),
    /// A signal asks us to leave.
    Leave,
}

/// Takes in what happened. The command, if any, is the caller's to send.
pub fn update(view: &mut View, input: Input) -> Option<Command> {
    let command = decide(view, input);
    if let Some(command) = &command {
        foresee(view, command);
    }
    command
}

/// Shows what a command will do: the next key may come before the node has answered.
fn foresee(view: &mut View, command: &Command) {
    let controls = &mut view.controls;
    let mut turn = |peer: &PeerId, how: &dyn Fn(&mut Hearing)| {
        if let Some(person) = view.people.iter_mut().find(|person| person.peer == *peer) {
            how(&mut person.hearing);
        }
    };
    let within = |value: i8, range: &std::ops::RangeInclusive<i8>| value.clamp(*range.start(), *range.end());
    match command {
        Command::Mute { on } => controls.muted = *on,
        Command::Deafen { on } => controls.deafened = *on,
        Command::Speak { when } => (controls.speak, controls.pressed) = (*when, false),
        Command::Threshold { dbov } => controls.threshold_dbov = within(*dbov, &THRESHOLDS),
        Command::Press { down } => controls.pressed = *down,
        Command::Profile { to } => controls.profile = *to,
        Command::Delay { to } => controls.delay = *to,
        Command::Processing { echo_cancel, noise_suppression, gain } => {
            let processing = &mut controls.processing;
            processing.echo = echo_cancel.unwrap_or(processing.echo);
            processing.noise = noise_suppression.unwrap_or(processing.noise);
            processing.gain = gain.unwrap_or(processing.gain);
        }
        Command::Volume { peer_id, volume_db } => {
            turn(peer_id, &|hearing| hearing.volume_db = within(*volume_db, &VOLUMES_DB));
        }
        Command::MutePerson { peer_id, on } => turn(peer_id, &|hearing| hearing.muted = *on),
        _ => return,
    }
    view.stale = true;
}

fn decide(view: &mut View, input: Input) -> Option<Command> {
    match input {
        Input::Key(key) => return handle_key(view, key),
        Input::Paste(pasted) if pasted.trim().is_empty() => {}
        Input::Paste(pasted) => {
            begin_line(view).insert(&text::clean_line(&pasted));
            view.stale = true;
        }
        Input::Mouse(mouse) => return handle_mouse(view, mouse),
        Input::Resize(width, height) => {
            view.area = Rect::new(0, 0, width, height);
            // What was read is laid out anew.
            view.scroll = view.scroll.min(most_scroll(view));
            view.stale = true;
        }
        Input::FocusLost if view.releases && view.controls.pressed => {
            return Some(Command::Press { down: false });
        }
        Input::FocusLost => {}
        Input::Releases(releases) => {
            view.stale |= view.releases != releases;
            view.releases = releases;
        }
        Input::Happened(event) => handle_event(view, *event),
        Input::Levels { own, open, voices } => handle_levels(view, own, open, &voices),
        Input::Elapsed(elapsed) => {
            view.stale |= elapsed.as_secs() != view.elapsed.as_secs();
            view.elapsed = elapsed;
        }
        Input::Found(found) => {
            if let Pane::Devices(devices) = &mut view.pane {
                devices.rows = Some(Devices::list(&found));
                devices.at = 0;
                view.stale = true;
            }
        }
        Input::Complaint(line) => view.note(Voice::Trouble, text::clean_line(&line), false),
        Input::Leave => return leave(view),
    }
    None
}

fn leave(view: &mut View) -> Option<Command> {
    view.leaving = true;
    view.stale = true;
    Some(Command::Leave)
}

// --- keys ---------------------------------------------------------------------------------------------------------

fn handle_key(view: &mut View, key: KeyEvent) -> Option<Command> {
    if key.kind == KeyEventKind::Release {
        // Whatever was done meanwhile, writing a line too: whoever lets go is no longer heard.
        let lets_go = view.held.take_if(|held| *held == key.code).is_some();
        return (lets_go && view.controls.pressed).then_some(Command::Press { down: false });
    }
    view.stale = true;
    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
        return leave(view);
    }
    match key.code {
        KeyCode::F(1) => {
            toggle_pane(view, Pane::Help);
            return None;
        }
        KeyCode::F(2) => return Some(mute(view)),
        KeyCode::F(3) => return Some(deafen(view)),
        KeyCode::F(4) => return talk(view, key),
        _ => {}
    }
    if view.draft.is_some() {
        return write(view, key);
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        match key.code {
            KeyCode::Up => scroll(view, 1),
            KeyCode::Down => scroll(view, -1),
            _ => {}
        }
        return None;
    }
    if key.modifiers.contains(KeyModifiers::ALT) {
        return None;
    }
    if let Some(outcome) = choose(view, key.code) {
        return outcome;
    }
    // A row of the last page stays.
    let page = isize::try_from(regions(view).talk.height.saturating_sub(2).max(1)).unwrap_or(1);
    match key.code {
        KeyCode::Char('q') => return leave(view),
        KeyCode::Char('m') => return Some(mute(view)),
        KeyCode::Char('d') => return Some(deafen(view)),
        KeyCode::Char('v') => return Some(Command::Speak { when: after(view.controls.speak) }),
        KeyCode::Char(' ') if view.controls.speak == Speak::PushToTalk => return talk(view, key),
        KeyCode::Char('[') => return Some(threshold(view, -THRESHOLD_STEP)),
        KeyCode::Char(']') => return Some(threshold(view, THRESHOLD_STEP)),
        KeyCode::Up | KeyCode::Char('k') => select(view, -1),
        KeyCode::Down | KeyCode::Char('j') => select(view, 1),
        KeyCode::Left | KeyCode::Char('-') => return volume(view, -VOLUME_STEP),
        KeyCode::Right | KeyCode::Char('+' | '=') => return volume(view, VOLUME_STEP),
        KeyCode::Char('0') => {
            let person = view.selected()?;
            return Some(Command::Volume { peer_id: person.peer, volume_db: 0 });
        }
        KeyCode::Char('x') => {
            let person = view.selected()?;
            return Some(Command::MutePerson { peer_id: person.peer, on: !person.hearing.muted });
        }
        KeyCode::Char('s') => view.stages = !view.stages,
        KeyCode::Char('l') => toggle_pane(view, Pane::Log),
        KeyCode::Char('p') => toggle_pane(view, Pane::Settings(0)),
        KeyCode::Char('w') => toggle_pane(view, Pane::Who),
        KeyCode::Char('?' | 'h') => toggle_pane(view, Pane::Help),
        KeyCode::Char('o') => {
            toggle_pane(view, Pane::Devices(Devices::default()));
            return matches!(view.pane, Pane::Devices(_)).then_some(Command::Devices);
        }
        KeyCode::Enter | KeyCode::Char('t' | '/') => {
            let draft = begin_line(view);
            if key.code == KeyCode::Char('/') {
                draft.insert("/");
            }
        }
        KeyCode::Esc => show(view, Pane::Talk),
        KeyCode::PageUp => scroll(view, page),
        KeyCode::PageDown => scroll(view, -page),
        KeyCode::Home => scroll(view, isize::MAX),
        KeyCode::End => scroll(view, isize::MIN),
        _ => {}
    }
    None
}

fn mute(view: &View) -> Command {
    Command::Mute { on: !view.controls.muted }
}

fn deafen(view: &View) -> Command {
    Command::Deafen { on: !view.controls.deafened }
}

/// A key that is held to talk repeats; where its end is not told, each stroke switches.
fn talk(view: &mut View, key: KeyEvent) -> Option<Command> {
    if key.kind != KeyEventKind::Press {
        return None;
    }
    if view.releases {
        view.held = Some(key.code);
    }
    (!(view.releases && view.controls.pressed)).then(|| press(view))
}

fn press(view: &View) -> Command {
    Command::Press { down: !view.controls.pressed }
}

fn after(speak: Speak) -> Speak {
    match speak {
        Speak::Always => Speak::PushToTalk,
        Speak::PushToTalk => Speak::Voice,
        Speak::Voice => Speak::Always,
    }
}

fn threshold(view: &View, by: i8) -> Command {
    Command::Threshold { dbov: view.controls.threshold_dbov.saturating_add(by) }
}

fn volume(view: &View, by: i8) -> Option<Command> {
    let person = view.selected()?;
    Some(Command::Volume { peer_id: person.peer, volume_db: person.hearing.volume_db.saturating_add(by) })
}

fn toggle_pane(view: &mut View, pane: Pane) {
    let same = std::mem::discriminant(&view.pane) == std::mem::discriminant(&pane);
    show(view, if same { Pane::Talk } else { pane });
}

/// Each pane begins at its own end.
fn show(view: &mut View, pane: Pane) {
    view.pane = pane;
    view.scroll = 0;
    view.stale = true;
}

/// What is written is written beside the conversation, as far back as it is read.
fn begin_line(view: &mut View) -> &mut Draft {
    if view.draft.is_none() && view.pane != Pane::Talk {
        show(view, Pane::Talk);
    }
    view.draft.get_or_insert_default()
}

fn select(view: &mut View, by: isize) {
    let at = view.people.iter().position(|person| Some(person.peer) == view.selected);
    let last = view.people.len().saturating_sub(1);
    let next = at.map_or(0, |at| at.saturating_add_signed(by).min(last));
    view.selected = view.people.get(next).map(|person| person.peer);
}

/// Up, towards what was before. The keys begin at the top, all else at the end.
fn scroll(view: &mut View, by: isize) {
    let by = if view.pane == Pane::Help { by.saturating_neg() } else { by };
    view.scroll = view.scroll.saturating_add_signed(by).min(most_scroll(view));
    view.stale = true;
}

/// What lies over the conversation takes these keys; `None` where it does not.
fn choose(view: &mut View, code: KeyCode) -> Option<Option<Command>> {
    let step = match code {
        KeyCode::Up | KeyCode::Char('k') => -1,
        KeyCode::Down | KeyCode::Char('j') => 1,
        _ => 0,
    };
    match &mut view.pane {
        Pane::Devices(devices) => {
            let rows = devices.rows.as_deref().unwrap_or_default();
            let last = rows.len().saturating_sub(1);
            match code {
                _ if step != 0 => devices.at = devices.at.saturating_add_signed(step).min(last),
                KeyCode::Enter => {
                    let row = rows.get(devices.at);
                    return Some(row.map(|row| Command::Device { end: row.end, name: row.id.clone() }));
                }
                _ => return None,
            }
        }
        Pane::Settings(at) => match code {
            _ if step != 0 => *at = at.saturating_add_signed(step).min(SETTINGS.len().saturating_sub(1)),
            KeyCode::Left | KeyCode::Char('-') => return Some(change(view, false)),
            KeyCode::Right | KeyCode::Enter | KeyCode::Char('+' | '=') => return Some(change(view, true)),
            _ => return None,
        },
        Pane::Who => match code {
            KeyCode::Enter => {
                let on = |person: &Person| person.trust != Some(Standing::Verified);
                let person = view.selected();
                return Some(person.map(|p| Command::Verify { peer_id: p.peer, on: on(p) }));
            }
            _ => return None,
        },
        Pane::Log | Pane::Help if step != 0 => scroll(view, -step),
        Pane::Talk | Pane::Log | Pane::Help => return None,
    }
    Some(None)
}

/// The next of what the chosen setting can be, or the one before.
fn change(view: &View, on: bool) -> Option<Command> {
    let Pane::Settings(at) = view.pane else { return None };
    let controls = &view.controls;
    let turned = |switch: Switch| match (switch, on) {
        (Switch::Auto, true) | (Switch::Off, false) => Switch::On,
        (Switch::On, true) | (Switch::Auto, false) => Switch::Off,
        (Switch::Off, true) | (Switch::On, false) => Switch::Auto,
    };
    let (mut echo_cancel, mut noise_suppression, mut gain) = (None, None, None);
    match SETTINGS.get(at)? {
        Setting::Profile => {
            let to = if controls.profile == Profile::Talk { Profile::Music } else { Profile::Talk };
            return Some(Command::Profile { to });
        }
        Setting::Delay => {
            let to = match (controls.delay, on) {
                (Delay::Quick, true) | (Delay::Safe, false) => Delay::Balanced,
                (Delay::Balanced, true) | (Delay::Quick, false) => Delay::Safe,
                (Delay::Safe, true) | (Delay::Balanced, false) => Delay::Quick,
            };
            return Some(Command::Delay { to });
        }
        Setting::Echo => echo_cancel = Some(turned(controls.processing.echo)),
        Setting::Noise => noise_suppression = Some(turned(controls.processing.noise)),
        Setting::Gain => gain = Some(turned(controls.processing.gain)),
        Setting::Speak => {
            let next = after(controls.speak);
            return Some(Command::Speak { when: if on { next } else { after(next) } });
        }
        Setting::Threshold => {
            return Some(threshold(view, if on { THRESHOLD_STEP } else { -THRESHOLD_STEP }));
        }
    }
    Some(Command::Processing { echo_cancel, noise_suppression, gain })
}

// --- a line being typed -------------------------------------------------------------------------------------------

fn write(view: &mut View, key: KeyEvent) -> Option<Command> {
    let draft = view.draft.as_mut()?;
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Esc => view.draft = None,
        KeyCode::Enter => {
            let line = view.draft.take()?.text;
            view.scroll = 0;
            return send(view, &line);
        }
        KeyCode::Char('u') if control => draft.text.drain(..std::mem::take(&mut draft.at)).for_each(drop),
        KeyCode::Char('w') if control => draft.erase_word(),
        KeyCode::Char('a') if control => draft.at = 0,
        KeyCode::Char('e') if control => draft.at = draft.text.len(),
        KeyCode::Char(c) if !control && !key.modifiers.contains(KeyModifiers::ALT) => {
            draft.insert(c.encode_utf8(&mut [0; 4]));
        }
        KeyCode::Backspace => draft.erase(),
        KeyCode::Delete if draft.at < draft.text.len() => {
            draft.at = draft.after();
            draft.erase();
        }
        KeyCode::Left => draft.at = draft.before(),
        KeyCode::Right => draft.at = draft.after(),
        KeyCode::Home => draft.at = 0,
        KeyCode::End => draft.at = draft.text.len(),
        _ => {}
    }
    None
}

/// A line is done: it is said, or obeyed.
fn send(view: &mut View, line: &str) -> Option<Command> {
    match typed::parse(line) {
        Typed::Nothing => None,
        Typed::Do(Command::Leave) => leave(view),
        Typed::Do(command) => Some(command),
        Typed::Toggle(Toggle::Mute) => Some(mute(view)),
        Typed::Toggle(Toggle::Deafen) => Some(deafen(view)),
        Typed::Toggle(Toggle::Talk) => Some(press(view)),
        Typed::For(who, about) => {
            let people = view.people.iter().map(|person| (person.peer, person.name.as_deref()));
            match typed::meant(&who, &view.me, people) {
                Ok(peer_id) => {
                    let person = view.people.iter().find(|person| person.peer == peer_id)?;
                    Some(about.command(peer_id, person.hearing))
                }
                Err(unclear) => {
                    view.note(Voice::Trouble, unclear.to_string(), true);
                    None
                }
            }
        }
        Typed::Who => {
            show(view, Pane::Who);
            None
        }
        Typed::Help => {
            show(view, Pane::Help);
            None
        }
        Typed::Devices => {
            show(view, Pane::Devices(Devices::default()));
            Some(Command::Devices)
        }
        Typed::Wrong(what) => {
            view.note(Voice::Trouble, what, true);
            None
        }
    }
}

impl Draft {
    /// Text at the cursor, as far as it fits.
    fn insert(&mut self, text: &str) {
        for c in text.chars().filter(|c| text::is_drawable(*c)) {
            if self.text.len().saturating_add(c.len_utf8()) > MAX_DRAFT {
                return;
            }
            self.text.insert(self.at, c);
            self.at = self.at.saturating_add(c.len_utf8());
        }
    }

    fn erase(&mut self) {
        let before = self.before();
        self.text.drain(before..self.at);
        self.at = before;
    }

    fn erase_word(&mut self) {
        let head = self.text.get(..self.at).unwrap_or_default().trim_end();
        let start = head.rfind(' ').map_or(0, |space| space.saturating_add(1));
        self.text.drain(start..self.at);
        self.at = start;
    }

    fn before(&self) -> usize {
        let head = self.text.get(..self.at).unwrap_or_default();
        head.char_indices().next_back().map_or(0, |(at, _)| at)
    }

    fn after(&self) -> usize {
        let tail = self.text.get(self.at..).unwrap_or_default();
        self.at.saturating_add(tail.chars().next().map_or(0, char::len_utf8))
    }
}

// --- the mouse ----------------------------------------------------------------------------------------------------

fn handle_mouse(view: &mut View, mouse: MouseEvent) -> Option<Command> {
    let at = Position { x: mouse.column, y: mouse.row };
    let regions = regions(view);
    match mouse.kind {
        MouseEventKind::ScrollUp => scroll(view, 3),
        MouseEventKind::ScrollDown => scroll(view, -3),
        MouseEventKind::Down(MouseButton::Left) if regions.own.contains(at) => return Some(mute(view)),
        MouseEventKind::Down(MouseButton::Left) if regions.talk.contains(at) && view.pane != Pane::Talk => {
            let row = row_at(view, &regions, at.y)?;
            view.stale = true;
            return click(view, row);
        }
        MouseEventKind::Down(MouseButton::Left) if regions.people.contains(at) => {
            let row = usize::from(at.y.saturating_sub(regions.people.y)).saturating_add(regions.first_person);
            view.selected = view.people.get(row).map(|person| person.peer).or(view.selected);
        }
        MouseEventKind::Down(MouseButton::Left)
            if regions.draft.contains(at) || (regions.talk.contains(at) && view.pane == Pane::Talk) =>
        {
            begin_line(view);
        }
        _ => return None,
    }
    view.stale = true;
    None
}

/// A row is chosen by the first click, and taken by the next.
fn click(view: &mut View, row: usize) -> Option<Command> {
    let chosen = match &mut view.pane {
        Pane::Devices(devices) => std::mem::replace(&mut devices.at, row),
        Pane::Settings(at) => std::mem::replace(at, row),
        _ => {
            let before = view.selected;
            view.selected = view.people.get(row).map(|person| person.peer);
            if before == view.selected { row } else { usize::MAX }
        }
    };
    if chosen == row { choose(view, KeyCode::Enter)? } else { None }
}

// --- news of the node ---------------------------------------------------------------------------------------------

fn handle_levels(view: &mut View, own: f32, open: bool, voices: &[(PeerId, f32)]) {
    // What moves a meter by less than its finest step is not drawn.
    let moved = |before: f32, now: f32| (before.max(-70.0) - now.max(-70.0)).abs() >= 0.5;
    view.stale |= moved(view.level_dbov, own) || view.speaking != open;
    (view.level_dbov, view.speaking) = (own, open);
    for person in &mut view.people {
        let now = voices.iter().find(|(peer, _)| *peer == person.peer).map_or(-127.0, |(_, level)| *level);
        view.stale |= moved(person.level_dbov, now);
        person.level_dbov = now;
    }
}

fn handle_event(view: &mut View, event: Event) {
    view.stale = true;
    let sentence = events::sentence(&event);
    match event {
        Event::Joined { open, closes_in_s, single_use, history, .. } => {
            (view.joined, view.open_room, view.single_use) = (true, open, single_use);
            view.closes =
                closes_in_s.map(|seconds| view.elapsed.saturating_add(Duration::from_secs(seconds)));
            view.history = history;
            let words = events::secrecy(open, closes_in_s, single_use);
            view.note(Voice::System, format!("joined {}, {words}", view.room), true);
        }
        Event::Rendezvous { state, addr, .. } => {
            let addr = addr.to_string();
            view.servers.retain(|(known, _)| *known != addr);
            view.servers.push((addr, state));
            if let Some(sentence) = sentence {
                view.note(Voice::System, sentence, false);
            }
        }
        Event::Peer { peer_id, name, state, path, outlook, reason, .. } => {
            handle_peer(view, peer_id, name, state, path, reason);
            if let Some(person) = view.people.iter_mut().find(|person| person.peer == peer_id) {
                person.outlook = outlook;
            }
        }
        Event::Trust { peer_id, trust, .. } => {
            if let Some(person) = view.people.iter_mut().find(|person| person.peer == peer_id) {
                person.trust = Some(trust);
            }
            if let Some(sentence) = sentence {
                view.note(Voice::System, sentence, false);
            }
        }
        Event::Compare { peer_id, words } => {
            if let Some(person) = view.people.iter_mut().find(|person| person.peer == peer_id) {
                person.words = Some(words);
            }
        }
        Event::Processing(processing) => {
            view.processing = processing;
            if let Some(sentence) = sentence {
                view.note(Voice::System, sentence, false);
            }
        }
        Event::Stats(stats) => {
            if let Some(person) = view.people.iter_mut().find(|person| person.peer == stats.peer_id) {
                person.path = stats.path.or(person.path);
                person.outlook = stats.outlook;
                person.figures(stats);
            }
        }
        Event::FirstAudio { peer_id, since_start_ms } => {
            let label = view.label(&peer_id);
            view.note(Voice::System, format!("hearing {label}, {since_start_ms:.0} ms after launch"), false);
        }
        Event::Chat { peer_id, text, .. } => {
            let label = view.label(&peer_id);
            view.note(Voice::Person(label), links::revealed(&text::clean_line(&text)), true);
        }
        Event::Said { text, .. } => view.note(Voice::Own, links::revealed(&text), true),
        Event::Controls(controls) => {
            let said = worth_saying(&view.told, &controls);
            (view.controls, view.told) = (controls, controls);
            if let (true, Some(sentence)) = (said, sentence) {
                view.note(Voice::System, sentence, false);
            }
        }
        Event::Volume { peer_id, hearing } => {
            if let Some(person) = view.people.iter_mut().find(|person| person.peer == peer_id) {
                (person.hearing, person.told) = (hearing, hearing);
            }
        }
        Event::Device { end, name, state } => {
            let name = text::clean_name(&name);
            let device = match end {
                End::Input => &mut view.input,
                End::Output => &mut view.output,
            };
            (device.name, device.lost) = (name.clone(), state == DeviceState::Lost);
            let what = match state {
                DeviceState::Opened => "is",
                DeviceState::Lost => "went away:",
                DeviceState::Reopened => "is again",
            };
            view.note(Voice::System, format!("sound {end} {what} {name}"), state != DeviceState::Opened);
        }
        Event::Warning(notice) if notice.code == "other_key" => {
            view.note(Voice::Alarm, sentence.unwrap_or_default(), true);
        }
        Event::Warning(_) | Event::Error(_) => {
            view.note(Voice::Trouble, sentence.unwrap_or_default(), true);
        }
        _ => {
            if let Some(sentence) = sentence {
                view.note(Voice::System, sentence, false);
            }
        }
    }
}

/// A key that is held and let go is no news.
fn worth_saying(before: &Controls, now: &Controls) -> bool {
    Controls { pressed: now.pressed, ..*before } != *now
}

fn handle_peer(
    view: &mut View,
    peer: PeerId,
    name: Option<String>,
    state: PeerState,
    path: Option<events::PathKind>,
    reason: Option<&'static str>,
) {
    let before = view.label(&peer);
    if state == PeerState::Left {
        view.people.retain(|person| person.peer != peer);
        if view.selected == Some(peer) {
            view.selected = view.people.first().map(|person| person.peer);
        }
        view.name_people();
        let why = reason.map_or(String::new(), |why| format!(": {why}"));
        return view.note(Voice::System, format!("{before} left{why}"), true);
    }
    if !view.people.iter().any(|person| person.peer == peer) {
        if view.people.len() >= MAX_PEOPLE {
            return;
        }
        view.people.push(Person::new(peer));
    }
    view.selected.get_or_insert(peer);
    let Some(person) = view.people.iter_mut().find(|person| person.peer == peer) else { return };
    let new = person.name.is_none() && name.is_some();
    let renamed = person.name.is_some() && name.is_some() && person.name != name;
    person.state = state;
    person.path = path;
    if name.is_some() {
        person.name = name.map(|name| text::clean_name(&name));
    }
    view.name_people();
    let label = view.label(&peer);
    let on = path.map_or(String::new(), |path| format!(", {}", path_word(path)));
    match state {
        PeerState::Connected if renamed => {
            view.note(Voice::System, format!("{before} is called {label} now"), true);
        }
        PeerState::Connected if new => view.note(Voice::System, format!("{label} is here{on}"), true),
        PeerState::Connected => view.note(Voice::System, format!("{label} is back{on}"), true),
        PeerState::Connecting => view.note(Voice::System, format!("connecting to {label}"), false),
        PeerState::PathChanged => view.note(Voice::System, format!("{label}: another path{on}"), false),
        PeerState::Reconnecting => {
            view.note(Voice::System, format!("{label}: connection lost, trying again"), true);
        }
        PeerState::Discovered | PeerState::Left => {}
    }
}

/// How a path is called on the screen.
pub fn path_word(path: events::PathKind) -> String {
    format!("{path:?}").to_lowercase()
}
