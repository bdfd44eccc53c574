//! Names told apart: people whose names are alike, or only look alike, are shown with a piece of their key.
//!
//! Nobody owns a name. Two people may choose the same one, one may write it with letters of another script, and
//! somebody may be called "you" or "system". All of those carry a suffix; the key behind it cannot be chosen.

use std::collections::BTreeMap;

use libp2p::PeerId;
use unicode_normalization::UnicodeNormalization;
use unicode_security::confusable_detection::skeleton;

use crate::{events::short, text};

/// What the program itself says; nobody is shown under such a name alone.
const RESERVED: [&str; 9] =
    ["you", "me", "system", "hallway", "error", "warning", "info", "server", text::NAMELESS];

/// What a name looks like, whatever letters it is written with: equal for names that could be mistaken for each other.
pub fn look(name: &str) -> String {
    let plain: String = name.nfkc().flat_map(char::to_lowercase).filter(|c| c.is_alphanumeric()).collect();
    // Digits and letters that the tables of Unicode keep apart, and people do not; then its own tables, whose results
    // are in no fixed case.
    let seen: String = skeleton(&plain).flat_map(char::to_lowercase).collect();
    let seen: String = skeleton(&seen).collect();
    seen.replace("rn", "m").replace("vv", "w").chars().map(twin).collect()
}

fn twin(c: char) -> char {
    match c {
        '0' => 'o',
        '1' | 'i' | '|' => 'l',
        '5' => 's',
        '3' => 'e',
        '8' => 'b',
        other => other,
    }
}

/// The names of a room as they are shown: cleaned, and with `·` and a piece of the key where one could be taken for another,
/// for us, or for the program.
pub fn told_apart<'a>(
    me: &str,
    people: impl IntoIterator<Item = (PeerId, &'a str)>,
) -> BTreeMap<PeerId, String> {
    let people: Vec<(PeerId, String, String)> = people
        .into_iter()
        .map(|(peer, name)| {
            let name = text::clean_name(name);
            let look = look(&name);
            (peer, name, look)
        })
        .collect();
    let all: Vec<PeerId> = people.iter().map(|(peer, ..)| *peer).collect();
    let mine = look(&text::clean_name(me));
    let mut shown = BTreeMap::new();
    for (peer, name, look) in &people {
        let shared = people.iter().any(|(other, _, theirs)| other != peer && theirs == look);
        // What begins with a sign could pass for a line of the program itself.
        let letters = name.starts_with(char::is_alphanumeric);
        let apart = !shared
            && *look != mine
            && letters
            && !look.is_empty()
            && !is_reserved(look)
            && !name.contains('·');
        let label = if apart { name.clone() } else { format!("{name}·{}", key_tail(peer, &all)) };
        shown.insert(*peer, label);
    }
    shown
}

/// One of a kind with the program's own words: exactly so, or with such a word in brackets behind it.
fn is_reserved(look: &str) -> bool {
    RESERVED.iter().any(|word| {
        let word = self::look(word);
        *look == word
            || (word.len() > 2 && look.ends_with(&word))
            || (word.len() > 4 && look.starts_with(&word))
    })
}

/// Enough of the key's end to tell it from everybody else's: six characters, more where somebody made theirs alike.
pub fn key_tail(peer: &PeerId, all: &[PeerId]) -> String {
    let text = peer.to_base58();
    let mut tail = short(peer);
    for other in all.iter().filter(|other| *other != peer) {
        let other = other.to_base58();
        while other.ends_with(&tail) && tail.len() < text.len() {
            let longer = text.len().saturating_sub(tail.len().saturating_add(2));
            tail = text.get(longer..).unwrap_or(&text).to_owned();
        }
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(me: &str, names: &[&str]) -> Vec<String> {
        let people: Vec<(PeerId, &str)> = names.iter().map(|name| (PeerId::random(), *name)).collect();
        let shown = told_apart(me, people.clone());
        people.iter().map(|(peer, _)| shown[peer].clone()).collect()
    }

    #[test]
    fn people_with_names_of_their_own_keep_them() {
        assert_eq!(shown("ana", &["ben", "Cleo", "Иван"]), ["ben", "Cleo", "Иван"]);
    }

    #[test]
    fn one_name_twice_is_two_people() {
        let labels = shown("ana", &["ben", "ben"]);
        assert!(labels[0] != labels[1] && labels.iter().all(|label| label.starts_with("ben·")), "{labels:?}");
    }

    #[test]
    fn names_that_only_look_alike_are_told_apart_and_so_are_those_that_look_like_ours_or_the_program() {
        for (one, other) in [
            ("paypal", "pаypаl"),
            ("ben", "ｂｅｎ"),
            ("Ben", "ben"),
            ("bob", "b0b"),
            ("Ill", "lII"),
            ("modern", "modem"),
            ("ana", "a\u{200b}na"),
            ("ben", "ben."),
        ] {
            let labels = shown("zoe", &[one, other]);
            assert!(labels.iter().all(|label| label.contains('·')), "{one} {other}: {labels:?}");
            assert!(shown(one, &[other])[0].contains('·'), "{one} is our own name");
        }
        for imitation in [
            "you",
            "(you)",
            "zoe (you)",
            "You",
            "YOU",
            "уou",
            "system",
            "SYSTEM:",
            "* hallway",
            "",
            "...",
            "ana·Xy12ab",
        ] {
            assert!(shown("ana", &[imitation])[0].contains('·'), "{imitation}");
        }
    }
}
