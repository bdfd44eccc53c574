//! The conversation, the log and the keys.

use std::{collections::VecDeque, time::Duration};

use ratatui::{buffer::Buffer, layout::Rect, style::Style};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::{Pen, Regions, panes, regions, rule};
use crate::{
    tui::view::{Line, Pane, View, Voice},
    typed::COMMANDS,
};

/// Widest name in front of a line.
const NAME: usize = 20;

/// Every key, for the help pane and for the manual.
pub const KEYS: &[(&str, &str)] = &[
    ("m  F2", "mute, unmute"),
    ("d  F3", "deafen: hear nobody, be heard by nobody"),
    ("v", "when the microphone is open: always, push to talk, by voice"),
    ("Space  F4", "push to talk: hold it, or switch where releases are not told"),
    ("[  ]", "threshold of the voice, lower or higher"),
    ("↑ ↓  k j", "choose a person"),
    ("← →  - +", "this person's volume, remembered; 0 resets it"),
    ("x", "hear this person or not, remembered; nobody is told"),
    ("s", "stages of this person's delay, why this path"),
    ("Enter  t  /", "write a line, or a command; Enter sends it, Esc drops it"),
    ("PgUp PgDn", "scroll; by rows with Ctrl and ↑ ↓; Home, End"),
    ("p", "settings: talk or music, delay, processing, and their price"),
    ("w", "who is who: words to compare aloud, keys that you know"),
    ("o", "sound devices, while you talk"),
    ("l", "log: everything that happened"),
    ("?  h  F1", "these keys"),
    ("Ctrl-L", "draw everything anew"),
    ("Ctrl-Z", "suspend: the call stands still meanwhile"),
    ("q  Ctrl-C", "leave; a second time at once"),
    ("mouse", "click a person, a row, your voice to mute; wheel scrolls; Shift selects text"),
    ("", "and in a line that you write:"),
];

/// Keys and commands, as rows.
fn helped() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    KEYS.iter().chain(COMMANDS)
}

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
            panes::devices(view, devices, inner, buffer);
        }
        Pane::Settings(at) => {
            rule(view, title, "settings", buffer);
            panes::settings(view, *at, inner, buffer);
        }
        Pane::Who => {
            rule(view, title, "who is who", buffer);
            panes::who(view, inner, buffer);
        }
    }
    if !regions.side.is_empty() {
        let (title, inner) = titled(regions.side);
        rule(view, title, "log", buffer);
        lines(view, &view.log, 0, inner, buffer);
    }
}

pub(super) fn titled(area: Rect) -> (Rect, Rect) {
    let title = Rect { height: area.height.min(1), ..area };
    (title, Rect { y: area.y + title.height, height: area.height - title.height, ..area })
}

/// A line as it is laid out in a terminal of so many columns.
struct Laid<'a> {
    mark: &'a str,
    who: String,
    style: Style,
    indent: usize,
    rows: Vec<&'a str>,
}

fn laid<'a>(view: &'a View, line: &'a Line, columns: u16) -> Laid<'a> {
    let (mark, who, style) = looks(view, line);
    let indent = 9 + if who.is_empty() { 2 } else { who.width() + 2 };
    let indent = if indent * 2 > usize::from(columns) { 4 } else { indent };
    let rows = wrapped(&line.text, usize::from(columns).saturating_sub(indent + 1));
    Laid { mark, who, style, indent, rows }
}

/// How many rows a line takes where lines are shown now.
pub fn rows_of(view: &View, line: &Line) -> usize {
    laid(view, line, regions(view).talk.width).rows.len()
}

/// How far one can scroll: until the first row stands at the top.
pub fn most_scroll(view: &View) -> usize {
    let (_, area) = titled(regions(view).talk);
    let rows = match view.pane {
        Pane::Talk => view.talk.iter().map(|line| rows_of(view, line)).sum(),
        Pane::Log => view.log.iter().map(|line| rows_of(view, line)).sum(),
        Pane::Help => helped().count(),
        Pane::Devices(_) | Pane::Settings(_) | Pane::Who => 0,
    };
    rows.saturating_sub(area.height.into())
}

/// The newest at the bottom, as many as fit, without the `scroll` newest rows.
fn lines(view: &View, lines: &VecDeque<Line>, scroll: usize, area: Rect, buffer: &mut Buffer) {
    let (mut bottom, mut skip) = (area.bottom(), scroll);
    for line in lines.iter().rev() {
        let Laid { mark, who, style, indent, rows } = laid(view, line, area.width);
        for (at, text) in rows.iter().enumerate().rev() {
            if skip > 0 {
                skip -= 1;
                continue;
            }
            if bottom <= area.y {
                return;
            }
            bottom -= 1;
            let row = Rect { y: bottom, height: 1, ..area };
            let mut pen = Pen::new(buffer, row);
            if at == 0 {
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
        Voice::Alarm => (signs.trouble, String::new(), theme.bad),
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
    let rows = helped().skip(view.scroll.min(most_scroll(view))).take(area.height.into());
    for (at, (key, what)) in rows.enumerate() {
        let mut pen = Pen::new(buffer, Rect { y: area.y + at as u16, height: 1, ..area });
        pen.write("  ", view.theme.dim);
        let width = if key.starts_with('/') { 20 } else { 12 };
        pen.column(key, width, "", view.theme.accent);
        pen.write(what, Style::new());
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
