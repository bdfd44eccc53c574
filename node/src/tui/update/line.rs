//! A line being written: how it is changed, and what becomes of it.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{deafen, leave, mute, press, show};
use crate::{
    node::Command,
    text,
    tui::view::{Devices, Draft, MAX_DRAFT, Pane, View, Voice},
    typed::{self, Toggle, Typed},
};

pub(super) fn write(view: &mut View, key: KeyEvent) -> Option<Command> {
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
    pub(super) fn insert(&mut self, text: &str) {
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
