//! The conversation, the log, the keys and the devices.

use std::{collections::VecDeque, time::Duration};

use ratatui::{buffer::Buffer, layout::Rect, style::Style};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::{Pen, Regions, rule};
use crate::{
    audio::End,
    tui::view::{Devices, Line, Pane, View, Voice},
};

/// Widest name in front of a line.
const NAME: usize = 20;

/// Every key, for the help pane and for the manual.
pub const KEYS: &[(&str, &str)] = &[
    ("m  F2", "mute, unmute"),
    ("d  F3", "deafen: hear nobody, be heard by nobody"),
    ("v", "when the microphone is open: always, push to talk, by voice"),
    ("Space  F4", "push to talk: held, or switched where the terminal does not tell when a key is let go"),
    ("[  ]", "threshold of the voice, lower or higher"),
    ("↑ ↓  k j", "choose a person"),
    ("← →  - +", "this person's volume, remembered; 0 resets it"),
    ("x", "hear this person or not, remembered; nobody is told"),
    ("s", "stages of this person's delay"),
    ("Enter  t", "write a line; Enter sends it, Esc drops it"),
    ("PgUp PgDn", "scroll; Home, End, Esc"),
    ("o", "sound devices, while you talk"),
    ("l", "log: everything that happened"),
    ("?  h  F1", "these keys"),
    ("Ctrl-Z", "suspend: the call stands still meanwhile"),
    ("q  Ctrl-C", "leave"),
    ("mouse", "click a person, click your voice to mute, wheel scrolls; Shift selects text"),
];

pub(super) fn draw(view: &View, regions: &Regions, buffer: &mut Buffer) {
    let area = regions.talk;
    let (title, inner) = titled(area);
    match &view.pane {
        Pane::Talk => {
            let name = if view.scroll > 0 { "conversation, scrolled back" } else { "conversation" };
            rule(view, title, name, buffer);
            lines(view, &view.talk, view.scroll, inner, buffer);
        }
        Pane::Log => {
            rule(view, title, "log", buffer);
            lines(view, &view.log, view.scroll, inner, buffer);
        }
        Pane::Help => {
            rule(view, title, "keys", buffer);
            help(view, inner, buffer);
        }
        Pane::Devices(devices) => {
            rule(view, title, "sound devices", buffer);
            list(view, devices, inner, buffer);
        }
    }
    if !regions.side.is_empty() {
        let (title, inner) = titled(regions.side);
        rule(view, title, "log", buffer);
        lines(view, &view.log, 0, inner, buffer);
    }
}

fn titled(area: Rect) -> (Rect, Rect) {
    let title = Rect { height: area.height.min(1), ..area };
    (title, Rect { y: area.y + title.height, height: area.height - title.height, ..area })
}

/// The newest at the bottom, as many as fit.
fn lines(view: &View, lines: &VecDeque<Line>, scroll: usize, area: Rect, buffer: &mut Buffer) {
    let mut bottom = area.bottom();
    let skip = scroll.min(lines.len().saturating_sub(1));
    for line in lines.iter().rev().skip(skip) {
        let (mark, who, style) = looks(view, line);
        let indent = 9 + if who.is_empty() { 2 } else { who.width() + 2 };
        let indent = if indent * 2 > usize::from(area.width) { 4 } else { indent };
        let rows = wrapped(&line.text, usize::from(area.width).saturating_sub(indent + 1));
        let first = bottom.saturating_sub(rows.len() as u16);
        for (at, text) in rows.iter().enumerate().rev() {
            if bottom <= area.y {
                return;
            }
            bottom -= 1;
            let row = Rect { y: bottom, height: 1, ..area };
            let mut pen = Pen::new(buffer, row);
            if at == 0 && bottom == first {
                pen.write(&format!(" {:>6}  ", clock(line.at)), view.theme.dim);
                match who.is_empty() {
                    true => pen.write(mark, style),
                    false => {
                        let name = if line.voice == Voice::Own { view.theme.own } else { view.theme.name };
                        pen.write(&who, name);
                        pen.write(mark, view.theme.dim);
                    }
                }
                pen.write(" ", style);
                if indent == 4 {
                    pen.write(text, style);
                    continue;
                }
            }
            pen.at = (area.x + indent as u16).min(area.right());
            pen.write(text, style);
        }
    }
}

/// Sign, name and style of a line: by who says it, never by what is said.
fn looks<'a>(view: &'a View, line: &Line) -> (&'a str, String, Style) {
    let (theme, signs) = (&view.theme, &view.theme.signs);
    match &line.voice {
        Voice::Person(name) => ("", super::cut_to(name, NAME, signs.cut) + ":", Style::new()),
        Voice::Own => ("", format!("{} you:", signs.own), theme.own),
        Voice::System => (signs.system, String::new(), theme.dim),
        Voice::Trouble => (signs.trouble, String::new(), theme.fair),
    }
}

fn clock(at: Duration) -> String {
    let seconds = at.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// The text in rows of so many columns, broken between words where there is one to break at.
fn wrapped(text: &str, columns: usize) -> Vec<&str> {
    let columns = columns.max(4);
    let mut rows = Vec::new();
    let mut rest = text;
    while rest.width() > columns {
        let (mut width, mut end, mut space) = (0, rest.len(), None);
        for (at, c) in rest.char_indices() {
            width += c.width().unwrap_or(0);
            if width > columns {
                end = at;
                break;
            }
            if c == ' ' {
                space = Some(at);
            }
        }
        let end = space.filter(|at| *at > 0).unwrap_or(end);
        let (row, after) = rest.split_at(end);
        rows.push(row);
        rest = after.trim_start_matches(' ');
    }
    rows.push(rest);
    rows
}

fn help(view: &View, area: Rect, buffer: &mut Buffer) {
    let most = KEYS.len().saturating_sub(usize::from(area.height));
    let rows = KEYS.iter().skip(view.scroll.min(most)).take(area.height.into());
    for (at, (key, what)) in rows.enumerate() {
        let mut pen = Pen::new(buffer, Rect { y: area.y + at as u16, height: 1, ..area });
        pen.write("  ", view.theme.dim);
        pen.column(key, 12, "", view.theme.accent);
        pen.write(what, Style::new());
    }
}

fn list(view: &View, devices: &Devices, area: Rect, buffer: &mut Buffer) {
    let theme = &view.theme;
    let Some(rows) = &devices.rows else {
        Pen::new(buffer, area).write("  asking the sound systems ...", theme.dim);
        return;
    };
    let first = (devices.at + 1).saturating_sub(usize::from(area.height));
    for (at, row) in rows.iter().enumerate().skip(first).take(area.height.into()) {
        let mut pen = Pen::new(buffer, Rect { y: area.y + (at - first) as u16, height: 1, ..area });
        let chosen = at == devices.at;
        pen.column(if chosen { theme.signs.selected } else { "" }, 2, "", theme.accent);
        let end = if row.end == End::Input { "microphone" } else { "loudspeaker" };
        pen.column(end, 13, "", theme.dim);
        let used = match row.end {
            End::Input => &view.input.name,
            End::Output => &view.output.name,
        };
        pen.write(&row.name, if chosen { theme.name } else { Style::new() });
        if row.is_default {
            pen.write("  default", theme.dim);
        }
        if *used == crate::text::clean_name(&row.id) {
            pen.write("  in use", theme.good);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_break_between_words_and_very_long_words_anywhere() {
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
        assert_eq!(wrapped("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrapped("漢字漢字", 5), ["漢字", "漢字"]);
        assert_eq!(wrapped("", 8), [""]);
    }
}
