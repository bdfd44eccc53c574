//! Text that others wrote, made safe to draw, log and print: one function for names, one for lines.
//!
//! Whatever a peer sends, what comes out has no control, format, private, unassigned or line-separating character,
//! at most [`MAX_MARKS`] combining marks in a row, is in Unicode normal form C, bounded in length, and never empty.
//! Imitations ("(you)", another's name) stay: they are told apart by layout and fingerprint, not by cleaning.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_normalization::UnicodeNormalization;
use unicode_width::UnicodeWidthChar;

/// Widest name, in terminal columns.
pub const MAX_NAME_COLUMNS: usize = 64;
/// Longest line of chat, in bytes of UTF-8 after cleaning.
pub const MAX_LINE_BYTES: usize = 4096;
/// Combining marks kept in a row; more would climb over the neighbouring lines.
pub const MAX_MARKS: usize = 4;
/// Times that marks are dropped and the rest normalised again; a text that is not settled then loses all of them.
const MAX_ROUNDS: usize = 8;
/// Bytes of input looked at for a name; the rest is not even read.
pub const MAX_NAME_INPUT: usize = 1024;
/// What a name is called that has nothing left to show.
pub const NAMELESS: &str = "nameless";
/// What stands for a line that has nothing left to show.
pub const EMPTY_LINE: &str = "(nothing printable)";

/// A peer's display name: at most [`MAX_NAME_COLUMNS`] columns, one line, never empty.
pub fn clean_name(raw: &str) -> String {
    let cleaned = clean(truncated(raw, MAX_NAME_INPUT), usize::MAX, MAX_NAME_COLUMNS);
    if visible(&cleaned) { cleaned } else { NAMELESS.to_owned() }
}

/// A line of chat: at most [`MAX_LINE_BYTES`] bytes, one line, never empty.
pub fn clean_line(raw: &str) -> String {
    let cleaned = clean(truncated(raw, MAX_LINE_BYTES * 2), MAX_LINE_BYTES, usize::MAX);
    if visible(&cleaned) { cleaned } else { EMPTY_LINE.to_owned() }
}

/// Whether a character may be drawn at all. Tabs and line ends are turned into spaces before this is asked.
pub fn is_drawable(c: char) -> bool {
    use GeneralCategory::*;
    let hidden_letter = matches!(
        c,
        // Letters and symbols by category, blanks by look: Hangul fillers, Khmer inherent vowels, the empty
        // Braille cell, the grapheme joiner and variation selectors.
        '\u{115F}' | '\u{1160}' | '\u{3164}' | '\u{FFA0}' | '\u{17B4}' | '\u{17B5}' | '\u{2800}' | '\u{034F}'
            | '\u{FE00}'..='\u{FE0F}' | '\u{E0100}'..='\u{E01EF}' | '\u{180B}'..='\u{180F}'
    );
    !hidden_letter
        && !matches!(
            get_general_category(c),
            Control | Format | Surrogate | PrivateUse | Unassigned | LineSeparator | ParagraphSeparator
        )
}

fn is_mark(c: char) -> bool {
    use GeneralCategory::{EnclosingMark, NonspacingMark, SpacingMark};
    matches!(get_general_category(c), NonspacingMark | EnclosingMark | SpacingMark)
}

/// Something to see: not only blanks and marks that hang on nothing.
fn visible(text: &str) -> bool {
    text.chars().any(|c| !c.is_whitespace() && !is_mark(c) && c.width().unwrap_or(0) > 0)
}

/// The longest start of `raw` within `limit` bytes that ends between characters.
fn truncated(raw: &str, limit: usize) -> &str {
    let mut end = raw.len().min(limit);
    while !raw.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    raw.get(..end).unwrap_or_default()
}

/// In normal form C with at most [`MAX_MARKS`] marks in a row. Normalising moves marks in and out of letters, so that
/// dropping some is followed by normalising again.
fn settled(text: &str) -> String {
    let mut text: String = text.nfc().collect();
    for _ in 0..MAX_ROUNDS {
        let mut marks = 0usize;
        let few = |c: &char| {
            marks = if is_mark(*c) { marks.saturating_add(1) } else { 0 };
            marks <= MAX_MARKS
        };
        let next = text.chars().filter(few).nfc().collect();
        if next == text {
            return text;
        }
        text = next;
    }
    text.chars().filter(|c| !is_mark(*c)).nfc().filter(|c| !is_mark(*c)).collect()
}

fn clean(raw: &str, max_bytes: usize, max_columns: usize) -> String {
    let mut kept = String::with_capacity(raw.len().min(max_bytes));
    for c in raw.nfc() {
        if c.is_whitespace() || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}') {
            if !kept.is_empty() && !kept.ends_with(' ') {
                kept.push(' ');
            }
        } else if is_drawable(c) {
            kept.push(c);
        }
    }
    // A mark with nothing before it would decorate whatever stands left of the name.
    let kept = settled(kept.trim_start_matches(|c| is_mark(c) || c == ' '));
    let mut out = String::with_capacity(kept.len());
    let mut columns = 0usize;
    for c in kept.chars() {
        columns = columns.saturating_add(c.width().unwrap_or(0));
        if columns > max_columns || out.len().saturating_add(c.len_utf8()) > max_bytes {
            break;
        }
        out.push(c);
    }
    out.truncate(out.trim_end().len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr;

    fn assert_clean(text: &str) {
        assert!(!text.is_empty());
        assert!(text.chars().all(|c| c == ' ' || is_drawable(c)), "{text:?}");
        assert!(!text.contains('\u{1b}') && !text.contains('\n') && !text.contains('\u{202e}'));
        let mut run = 0;
        for c in text.chars() {
            run = if is_mark(c) { run + 1 } else { 0 };
            assert!(run <= MAX_MARKS, "{text:?}");
        }
        assert_eq!(text, text.nfc().collect::<String>());
    }

    #[test]
    fn marks_that_move_out_of_their_letter_are_counted_too() {
        let raw = "Â\u{300}\u{1b}\u{344}\u{325}\u{300}";
        assert_clean(&clean_name(raw));
        assert_eq!(clean_name(&clean_name(raw)), clean_name(raw));
    }

    #[test]
    fn ordinary_names_stay_as_they_are() {
        for name in ["Ana", "José", "Иван Петров", "山田 太郎", "O'Brien-Smith", "नमस्ते", "😀 Bo"]
        {
            assert_eq!(clean_name(name), name.nfc().collect::<String>());
        }
    }

    #[test]
    fn every_class_of_hostile_text_comes_out_clean() {
        let zalgo = format!("a{}b", "\u{0301}".repeat(40));
        let huge = "W".repeat(1 << 20);
        let wide = "漢".repeat(500);
        let hostile = [
            ("terminal escape", "\u{1b}[2J\u{1b}[31mroot\u{1b}[0m"),
            ("clipboard, OSC 52", "\u{1b}]52;c;ZWNobyBwd25lZA==\u{07}"),
            ("hyperlink, OSC 8", "\u{1b}]8;;http://evil.example\u{1b}\\click\u{1b}]8;;\u{1b}\\"),
            ("C1 controls", "\u{9b}2J\u{90}x\u{9c}\u{85}name"),
            ("direction override", "abc\u{202e}gpj.exe\u{2066}x\u{2069}"),
            ("zero width", "a\u{200b}d\u{200d}m\u{2060}i\u{feff}n"),
            ("line ends", "one\r\nSYSTEM: two\u{2028}three\u{2029}four\u{0b}five"),
            ("private and unassigned", "\u{e000}\u{f8ff}\u{10ffff}\u{378}ok"),
            ("stacked marks", &zalgo),
            ("tags and selectors", "flag\u{e0067}\u{e007f}\u{fe0f}\u{e0101}"),
            ("huge", &huge),
            ("wide", &wide),
            ("nul", "a\0b"),
        ];
        for (class, text) in hostile {
            let (name, line) = (clean_name(text), clean_line(text));
            assert_clean(&name);
            assert_clean(&line);
            assert!(name.width() <= MAX_NAME_COLUMNS, "{class}");
            assert!(line.len() <= MAX_LINE_BYTES, "{class}");
        }
        assert_eq!(clean_name("a\u{200b}d\u{200d}m\u{2060}i\u{feff}n"), "admin");
        assert_eq!(clean_line("one\r\nSYSTEM: two"), "one SYSTEM: two");
    }

    #[test]
    fn a_name_of_nothing_visible_is_called_nameless() {
        for empty in
            ["", "   ", "\u{200b}\u{200b}", "\u{3164}\u{3164}", "\u{2800}", "\u{0301}\u{0302}", "\u{ad}"]
        {
            assert_eq!(clean_name(empty), NAMELESS, "{empty:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_becomes_clean_bounded_and_stays_so(raw in "\\PC*|.*|(.|[\u{300}-\u{36f}]|\u{1b}){0,300}") {
            let (name, line) = (clean_name(&raw), clean_line(&raw));
            assert_clean(&name);
            assert_clean(&line);
            prop_assert!(name.width() <= MAX_NAME_COLUMNS);
            prop_assert!(line.len() <= MAX_LINE_BYTES);
            prop_assert_eq!(clean_name(&name), name.clone());
            prop_assert_eq!(clean_line(&line), line.clone());
        }

        #[test]
        fn any_string_of_any_characters_is_cleaned(raw in proptest::collection::vec(any::<char>(), 0..400)) {
            let raw: String = raw.into_iter().collect();
            assert_clean(&clean_name(&raw));
            assert_clean(&clean_line(&raw));
        }
    }
}
