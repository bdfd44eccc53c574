//! Paints a view. From the top: the room, its people, the conversation, ourselves, the keys.
//!
//! A small terminal loses the least important first: the keys, the plot, the loss, the key's tail. A wide one shows the log
//! beside the conversation.

mod panes;
mod people;
mod talk;

pub use panes::row_at;
pub use talk::{most_scroll, rows_of};

use hallway_codec::{Delay, Profile};
use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Modifier, Style},
};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::view::{Pane, View};
use crate::controls::Speak;

/// Least width at which the log stands beside the conversation.
const WIDE: u16 = 132;
/// Least size at which anything but one line is drawn.
const LEAST: (u16, u16) = (20, 6);
/// The quietest that a meter shows, dB below full scale.
const METER_FLOOR: f32 = -60.0;

/// Where everything stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Regions {
    /// Room and clock.
    pub header: Rect,
    /// One row a person.
    pub people: Rect,
    /// The person in its first row: a long list moves with the selection.
    pub first_person: usize,
    /// The selected person's delay, stage by stage.
    pub stages: Rect,
    /// The conversation, or what lies over it.
    pub talk: Rect,
    /// The log, beside it.
    pub side: Rect,
    /// Our own voice.
    pub own: Rect,
    /// The line being typed.
    pub draft: Rect,
    /// The keys.
    pub keys: Rect,
}

/// Divides the terminal.
pub fn regions(view: &View) -> Regions {
    let Rect { width, height, .. } = view.area;
    if width < LEAST.0 || height < LEAST.1 {
        return Regions { own: Rect { height: height.min(1), ..view.area }, ..Regions::default() };
    }
    let mut rest = view.area;
    let from_top = |rows: u16, rest: &mut Rect| {
        let rows = rows.min(rest.height);
        let taken = Rect { height: rows, ..*rest };
        (rest.y, rest.height) = (rest.y + rows, rest.height - rows);
        taken
    };
    let header = from_top(if height >= 12 { 2 } else { 1 }, &mut rest);
    let count = view.people.len().max(1) as u16;
    // The conversation keeps at least half of what is left.
    let shown = count.min((rest.height.saturating_sub(3) / 2).max(1));
    let people = from_top(shown, &mut rest);
    let stages = match view.stages && view.selected().is_some() && rest.height >= 10 {
        true => from_top(if rest.height >= 12 { 5 } else { 4 }, &mut rest),
        false => Rect::default(),
    };
    let from_bottom = |rows: u16, rest: &mut Rect| {
        rest.height -= rows.min(rest.height);
        Rect { y: rest.y + rest.height, height: rows, ..*rest }
    };
    let keys = if height >= 10 { from_bottom(1, &mut rest) } else { Rect::default() };
    let draft = match view.draft.is_some() || height >= 14 {
        true => from_bottom(1, &mut rest),
        false => Rect::default(),
    };
    let own = from_bottom(1, &mut rest);
    let side = match width >= WIDE && view.pane == Pane::Talk {
        true => Rect { x: rest.x + rest.width * 3 / 5, width: rest.width - rest.width * 3 / 5, ..rest },
        false => Rect::default(),
    };
    let talk = Rect { width: rest.width - side.width, ..rest };
    let at = view.people.iter().position(|person| Some(person.peer) == view.selected).unwrap_or(0);
    let first_person = (at + 1).saturating_sub(usize::from(shown));
    Regions { header, people, first_person, stages, talk, side, own, draft, keys }
}

/// Paints everything over what was there.
pub fn draw(view: &View, buffer: &mut Buffer) {
    buffer.reset();
    if view.area.is_empty() || view.area != *buffer.area() {
        return;
    }
    let regions = regions(view);
    if regions.header.is_empty() {
        return draw_line(view, regions.own, buffer);
    }
    header(view, regions.header, buffer);
    people::draw(view, &regions, buffer);
    talk::draw(view, &regions, buffer);
    own(view, regions.own, buffer);
    draft(view, regions.draft, buffer);
    keys(view, regions.keys, buffer);
}

/// All that fits into a terminal of one line.
fn draw_line(view: &View, area: Rect, buffer: &mut Buffer) {
    let (state, style) = microphone(view);
    let mut pen = Pen::new(buffer, area);
    pen.write(state, style);
    pen.write(&format!(" {} {} ", view.theme.signs.dot, here(view)), view.theme.dim);
    pen.write(&view.room, view.theme.name);
}

fn here(view: &View) -> String {
    match view.members() {
        0 if !view.joined => "joining".to_owned(),
        0 => "nobody else here".to_owned(),
        others => format!("{} here", others + 1),
    }
}

fn header(view: &View, area: Rect, buffer: &mut Buffer) {
    let theme = &view.theme;
    let seconds = view.elapsed.as_secs();
    let clock = match seconds / 3600 {
        0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    };
    let right = format!("{}  {clock} ", here(view));
    let row = Rect { height: 1, ..area };
    let right_width = right.width() as u16;
    let mut pen = Pen::new(buffer, Rect { width: row.width.saturating_sub(right_width + 1), ..row });
    pen.write(" hallway ", theme.accent);
    pen.write(&view.room, theme.name);
    let (secrecy, style) = match (view.joined, view.open_room) {
        (false, _) => ("joining", theme.dim),
        (true, true) => ("open room: anyone may listen", theme.fair),
        (true, false) => ("private room", theme.dim),
    };
    let left = view.closes.map(|closes| closes.saturating_sub(view.elapsed).as_secs());
    let ends = match left {
        Some(0) => "closed to anybody new".to_owned(),
        Some(seconds @ 1..60) => format!("open for {seconds} s more"),
        Some(seconds @ 60..7200) => format!("open for {} min more", seconds.div_ceil(60)),
        Some(seconds) => format!("open for {} h more", seconds / 3600),
        None => String::new(),
    };
    let guest = if view.single_use { "for one guest" } else { "" };
    let music = if view.controls.profile == Profile::Music { "music" } else { "" };
    for (words, style) in [(secrecy, style), (guest, theme.dim), (&ends, theme.dim), (music, theme.own)] {
        if !words.is_empty() && usize::from(pen.left()) >= words.len() + 3 {
            pen.write(&format!(" {} ", theme.signs.dot), theme.dim);
            pen.write(words, style);
        }
    }
    let lost =
        view.servers.iter().filter(|(_, state)| *state == crate::events::RendezvousState::Lost).count();
    if lost > 0 {
        pen.write(&format!(" {} {lost} server lost", theme.signs.dot), theme.fair);
    }
    let x = row.right().saturating_sub(right_width);
    Pen::new(buffer, Rect { x, width: right_width.min(row.width), ..row }).write(&right, theme.dim);
    if area.height > 1 {
        rule(view, Rect { y: area.y + 1, height: 1, ..area }, "", buffer);
    }
}

/// What the microphone does, in a word or two.
fn microphone(view: &View) -> (&'static str, Style) {
    let (theme, controls) = (&view.theme, &view.controls);
    match controls.speak {
        _ if view.leaving => ("leaving", theme.dim),
        _ if !view.joined => ("not yet", theme.dim),
        _ if controls.deafened => ("deafened", theme.bad),
        _ if controls.muted => ("muted", theme.bad),
        _ if view.input.lost => ("no microphone", theme.bad),
        Speak::Always => ("open", theme.good),
        _ if view.speaking => ("open", theme.good),
        Speak::PushToTalk | Speak::Voice => ("closed", theme.fair),
    }
}

fn own(view: &View, area: Rect, buffer: &mut Buffer) {
    let theme = &view.theme;
    let (state, style) = microphone(view);
    let is_open = state == "open";
    let mut pen = Pen::new(buffer, area);
    pen.write(" you ", theme.accent);
    let width = (area.width / 5).clamp(6, 24);
    let mark = (view.controls.speak == Speak::Voice).then(|| f32::from(view.controls.threshold_dbov));
    let level = if view.controls.muted || view.controls.deafened { -127.0 } else { view.level_dbov };
    pen.meter(view, level, width, is_open, mark);
    pen.write("  ", theme.dim);
    pen.write(if is_open { theme.signs.open } else { theme.signs.closed }, style);
    pen.write(" ", style);
    pen.write(state, style);
    let how = match view.controls.speak {
        Speak::Always => "always".to_owned(),
        Speak::PushToTalk if view.releases => "push to talk: hold space".to_owned(),
        Speak::PushToTalk => "push to talk: space".to_owned(),
        Speak::Voice => format!("by voice from {} dB", view.controls.threshold_dbov),
    };
    pen.write("  ", theme.dim);
    pen.write(&how, theme.dim);
    if view.processing.active.any() {
        pen.write(&format!("  processed, +{:.0} ms", view.processing.delay_ms), theme.dim);
    }
    match view.controls.delay {
        Delay::Quick => pen.write("  quick", theme.dim),
        Delay::Balanced => {}
        Delay::Safe => pen.write("  safe", theme.dim),
    }
    let mut devices = String::new();
    for (what, device) in [("mic", &view.input), ("ear", &view.output)] {
        if !device.name.is_empty() {
            devices += &format!("  {what} {}{}", device.name, if device.lost { " (gone)" } else { "" });
        }
    }
    pen.right(&format!("{} ", devices.trim()), theme.dim);
}

fn draft(view: &View, area: Rect, buffer: &mut Buffer) {
    let theme = &view.theme;
    let mut pen = Pen::new(buffer, area);
    let Some(draft) = &view.draft else {
        pen.write(" Enter writes a line, / a command", theme.dim);
        return;
    };
    pen.write(&format!(" {} ", theme.signs.own), theme.own);
    // The cursor stays in sight: what does not fit is left out at the front.
    let room = usize::from(pen.left()).saturating_sub(2);
    let head = draft.text.get(..draft.at).unwrap_or_default();
    let mut from = 0;
    while head.get(from..).unwrap_or_default().width() > room {
        from += head.get(from..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
    }
    pen.write(head.get(from..).unwrap_or_default(), Style::new());
    let mut tail = draft.text.get(draft.at..).unwrap_or_default().chars();
    let under = tail.next().map_or(" ".to_owned(), String::from);
    pen.write(&under, Style::new().add_modifier(Modifier::REVERSED));
    pen.write(tail.as_str(), Style::new());
}

fn keys(view: &View, area: Rect, buffer: &mut Buffer) {
    let theme = &view.theme;
    let mut pen = Pen::new(buffer, area);
    let keys: &[(&str, &str)] = match (&view.draft, &view.pane) {
        (Some(_), _) => &[("Enter", "send"), ("Esc", "cancel"), ("F2", "mute"), ("F3", "deafen")],
        (None, Pane::Devices(_)) => &[("↑↓", "choose"), ("Enter", "use"), ("Esc", "back")],
        (None, Pane::Settings(_)) => &[("↑↓", "choose"), ("←→ Enter", "change"), ("Esc", "back")],
        (None, Pane::Who) => {
            &[("↑↓", "choose"), ("Enter", "the words were right, or not known to be"), ("Esc", "back")]
        }
        (None, Pane::Help | Pane::Log) => &[("Esc", "back"), ("↑↓ PgUp PgDn", "scroll"), ("q", "leave")],
        (None, Pane::Talk) => &[
            ("?", "keys"),
            ("q", "leave"),
            ("m", "mute"),
            ("d", "deafen"),
            ("v", "voice"),
            ("s", "stages"),
            ("p", "settings"),
            ("w", "who"),
            ("o", "sound"),
            ("l", "log"),
            ("↑↓", "person"),
            ("←→", "volume"),
            ("x", "do not hear"),
        ],
    };
    pen.write(" ", theme.dim);
    for (key, what) in keys {
        if usize::from(pen.left()) < key.width() + what.width() + 2 {
            break;
        }
        pen.write(key, theme.accent);
        pen.write(&format!(" {what}  "), theme.dim);
    }
}

/// A rule with a title in it.
fn rule(view: &View, area: Rect, title: &str, buffer: &mut Buffer) {
    let theme = &view.theme;
    let mut pen = Pen::new(buffer, Rect { height: area.height.min(1), ..area });
    if !title.is_empty() {
        pen.write(theme.signs.rule, theme.dim);
        pen.write(&format!(" {title} "), theme.dim);
    }
    while pen.left() > 0 {
        pen.write(theme.signs.rule, theme.dim);
    }
}

/// Writes from left to right into one row, and never out of it.
struct Pen<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    at: u16,
}

impl<'a> Pen<'a> {
    fn new(buffer: &'a mut Buffer, area: Rect) -> Self {
        let area = area.intersection(*buffer.area());
        let area = Rect { height: area.height.min(1), ..area };
        let at = if area.is_empty() { area.right() } else { area.x };
        Self { buffer, area, at }
    }

    fn left(&self) -> u16 {
        self.area.right().saturating_sub(self.at)
    }

    fn write(&mut self, text: &str, style: Style) {
        if self.left() > 0 {
            let (x, _) = self.buffer.set_stringn(self.at, self.area.y, text, self.left().into(), style);
            self.at = x;
        }
    }

    /// A column of fixed width: cut with a sign, or filled up.
    fn column(&mut self, text: &str, width: u16, cut: &str, style: Style) {
        let width = width.min(self.left());
        let end = self.at + width;
        self.write(&cut_to(text, width.into(), cut), style);
        self.at = end;
    }

    /// The same, on the right side of the column.
    fn number(&mut self, text: &str, width: u16, style: Style) {
        let width = width.min(self.left());
        let end = self.at + width;
        self.at = end.saturating_sub(text.width() as u16).max(self.at);
        self.write(text, style);
        self.at = end;
    }

    /// At the right end of the row, where there is room for all of it.
    fn right(&mut self, text: &str, style: Style) {
        let width = text.width() as u16;
        if width + 2 <= self.left() {
            self.at = self.area.right() - width;
            self.write(text, style);
        }
    }

    /// A bar from [`METER_FLOOR`] to full scale. `mark`: where voice activation opens.
    fn meter(&mut self, view: &View, dbov: f32, width: u16, alive: bool, mark: Option<f32>) {
        let (theme, signs) = (&view.theme, &view.theme.signs);
        let cells = |dbov: f32| ((dbov - METER_FLOOR) / -METER_FLOOR).clamp(0.0, 1.0) * f32::from(width);
        let filled = cells(dbov);
        let marked = mark.map(|mark| cells(mark) as u16);
        for cell in 0..width.min(self.left()) {
            let loud = METER_FLOOR * (1.0 - f32::from(cell + 1) / f32::from(width));
            let style = match loud {
                _ if !alive => theme.dim,
                _ if loud > -4.0 => theme.bad,
                _ if loud > -13.0 => theme.fair,
                _ => theme.good,
            };
            let part = filled - f32::from(cell);
            let steps = signs.meter.len() as f32;
            let step = (part.min(1.0) * steps).round() as usize;
            match signs.meter.get(step.wrapping_sub(1)) {
                _ if part <= 0.0 && marked == Some(cell) => self.write("|", theme.fair),
                Some(sign) if part > 0.0 => self.write(sign, style),
                _ => self.write(signs.track, theme.dim),
            }
        }
    }
}

/// The text within so many columns, with a sign where something was left out.
fn cut_to(text: &str, columns: usize, cut: &str) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let room = columns.saturating_sub(cut.width());
    let mut width = 0;
    let mut out: String = text
        .chars()
        .take_while(|c| {
            width += c.width().unwrap_or(0);
            width <= room
        })
        .collect();
    if columns > 0 {
        out.push_str(cut);
    }
    out
}
