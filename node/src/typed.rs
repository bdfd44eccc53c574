//! What a typed line means: the same commands for plain lines and for the line that is written on the screen.
//!
//! What begins with a slash is a command, two slashes say one, everything else is said in writing.

use clap::ValueEnum as _;
use hallway_codec::{Delay, Profile};

use crate::{
    audio::{End, Switch},
    controls::Speak,
    node::Command,
};

/// Every command, for `/help` and for the manual.
pub const COMMANDS: &[(&str, &str)] = &[
    ("/quit", "leave"),
    ("/mute", "mute, unmute"),
    ("/deafen", "hear nobody, be heard by nobody; and back"),
    ("/talk", "push to talk: open or close the microphone"),
    ("/voice WHEN", "when the microphone is open: always, push or voice"),
    ("/threshold DB", "where voice opens it, -80 to -10"),
    ("/who", "who is here, how they fare, and words to compare aloud"),
    ("/volume NAME DB", "how loud one person is heard, -40 to 12"),
    ("/hear NAME", "hear one person or not"),
    ("/verify NAME", "the words were right: remember this person's key"),
    ("/doubt NAME", "take that back"),
    ("/devices", "sound devices"),
    ("/input NAME", "speak through another device"),
    ("/output NAME", "listen through another device"),
    ("/profile WHAT", "talk or music"),
    ("/delay WHAT", "quick, balanced or safe: how much delay for how much clarity"),
    ("/echo /noise /gain", "auto, on or off: echo cancellation, noise suppression, automatic gain"),
    ("/name NAME", "be called something else"),
    ("//...", "say a line that begins with a slash"),
];

/// A line, understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Typed {
    /// An empty line.
    Nothing,
    /// A command that is complete.
    Do(Command),
    /// A switch, the other way from how it stands.
    Toggle(Toggle),
    /// For somebody, by name.
    For(String, About),
    /// Who is here.
    Who,
    /// The sound devices.
    Devices,
    /// The commands.
    Help,
    /// Not understood: what it should have been.
    Wrong(String),
}

/// What can be switched without saying which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toggle {
    /// Silent or not.
    Mute,
    /// Deaf or not.
    Deafen,
    /// The push-to-talk key.
    Talk,
}

/// What is to be done about somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// dB over what was sent.
    Volume(i8),
    /// Hear or not, the other way from how it stands.
    Hear,
    /// The key is right, or not known to be.
    Verify(bool),
}

/// Takes a line apart.
pub fn parse(line: &str) -> Typed {
    let line = line.trim();
    if let Some(said) = line.strip_prefix("//") {
        return Typed::Do(Command::Chat { text: format!("/{said}") });
    }
    let (word, rest) = line.split_once(' ').map_or((line, ""), |(word, rest)| (word, rest.trim()));
    match (word, rest) {
        ("", _) => Typed::Nothing,
        ("/quit" | "/q", "") => Typed::Do(Command::Leave),
        ("/mute", "") => Typed::Toggle(Toggle::Mute),
        ("/deafen", "") => Typed::Toggle(Toggle::Deafen),
        ("/talk", "") => Typed::Toggle(Toggle::Talk),
        ("/voice", when) => match when {
            "always" => Typed::Do(Command::Speak { when: Speak::Always }),
            "push" => Typed::Do(Command::Speak { when: Speak::PushToTalk }),
            "voice" => Typed::Do(Command::Speak { when: Speak::Voice }),
            _ => Typed::Wrong("/voice always, /voice push or /voice voice".into()),
        },
        ("/threshold", db) => match db.parse() {
            Ok(dbov) => Typed::Do(Command::Threshold { dbov }),
            Err(_) => Typed::Wrong("/threshold -45".into()),
        },
        ("/echo" | "/noise" | "/gain", when) => processing(word, when),
        ("/profile", "talk") => Typed::Do(Command::Profile { to: Profile::Talk }),
        ("/profile", "music") => Typed::Do(Command::Profile { to: Profile::Music }),
        ("/profile", _) => Typed::Wrong("/profile talk or /profile music".into()),
        ("/delay", "quick") => Typed::Do(Command::Delay { to: Delay::Quick }),
        ("/delay", "balanced") => Typed::Do(Command::Delay { to: Delay::Balanced }),
        ("/delay", "safe") => Typed::Do(Command::Delay { to: Delay::Safe }),
        ("/delay", _) => Typed::Wrong("/delay quick, /delay balanced or /delay safe".into()),
        ("/who" | "/words", "") => Typed::Who,
        ("/volume", rest) => {
            match rest.rsplit_once(' ').and_then(|(who, db)| Some((who, db.parse().ok()?))) {
                Some((who, db)) => Typed::For(who.trim().to_owned(), About::Volume(db)),
                None => Typed::Wrong("/volume NAME -6".into()),
            }
        }
        ("/hear", who) if !who.is_empty() => Typed::For(who.to_owned(), About::Hear),
        ("/verify", who) if !who.is_empty() => Typed::For(who.to_owned(), About::Verify(true)),
        ("/doubt", who) if !who.is_empty() => Typed::For(who.to_owned(), About::Verify(false)),
        ("/devices", "") => Typed::Devices,
        ("/input", name) if !name.is_empty() => device(End::Input, name),
        ("/output", name) if !name.is_empty() => device(End::Output, name),
        ("/name", name) if !name.is_empty() => Typed::Do(Command::Name { name: name.to_owned() }),
        ("/help", "") => Typed::Help,
        _ if word.starts_with('/') => {
            Typed::Wrong(format!("{word} is no command, or something is missing. /help lists them"))
        }
        _ => Typed::Do(Command::Chat { text: line.to_owned() }),
    }
}

fn processing(word: &str, when: &str) -> Typed {
    let Ok(switch) = Switch::from_str(when, true) else {
        return Typed::Wrong(format!("{word} auto, {word} on or {word} off"));
    };
    let only = |name: &str| (word == name).then_some(switch);
    Typed::Do(Command::Processing {
        echo_cancel: only("/echo"),
        noise_suppression: only("/noise"),
        gain: only("/gain"),
    })
}

fn device(end: End, name: &str) -> Typed {
    Typed::Do(Command::Device { end, name: name.to_owned() })
}

/// Whether somebody who is shown as `label` is meant: by that name, or by so much of the key's end that nobody is meant by
/// chance.
pub fn means(who: &str, label: &str, peer: &libp2p::PeerId) -> bool {
    label == who || who.len() >= 6 && peer.to_base58().ends_with(who)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_command_or_is_said() {
        let chat = |text: &str| Typed::Do(Command::Chat { text: text.into() });
        for (line, meant) in [
            ("", Typed::Nothing),
            ("hello there", chat("hello there")),
            ("m", chat("m")),
            ("//etc", chat("/etc")),
            (" /q ", Typed::Do(Command::Leave)),
            ("/deafen", Typed::Toggle(Toggle::Deafen)),
            ("/voice push", Typed::Do(Command::Speak { when: Speak::PushToTalk })),
            ("/threshold -40", Typed::Do(Command::Threshold { dbov: -40 })),
            ("/volume Ana B -6", Typed::For("Ana B".into(), About::Volume(-6))),
            ("/hear ben·Xy12ab", Typed::For("ben·Xy12ab".into(), About::Hear)),
            ("/verify ben", Typed::For("ben".into(), About::Verify(true))),
            ("/doubt ben", Typed::For("ben".into(), About::Verify(false))),
            ("/input USB Headset", device(End::Input, "USB Headset")),
            ("/profile music", Typed::Do(Command::Profile { to: Profile::Music })),
            ("/delay safe", Typed::Do(Command::Delay { to: Delay::Safe })),
            (
                "/noise off",
                Typed::Do(Command::Processing {
                    echo_cancel: None,
                    noise_suppression: Some(Switch::Off),
                    gain: None,
                }),
            ),
            ("/who", Typed::Who),
            ("/help", Typed::Help),
        ] {
            assert_eq!(parse(line), meant, "{line}");
        }
        for wrong in [
            "/sing",
            "/voice",
            "/threshold loud",
            "/volume ana",
            "/hear",
            "/input",
            "/echo loud",
            "/delay",
            "/profile loud",
            "/verify",
        ] {
            assert!(matches!(parse(wrong), Typed::Wrong(_)), "{wrong}");
        }
    }

    #[test]
    fn every_command_that_is_listed_is_understood() {
        for (command, _) in COMMANDS.iter().filter(|(command, _)| !command.starts_with("//")) {
            for word in command.split(' ').filter(|word| word.starts_with('/')) {
                let tries = ["", "ben", "ben -6", "-45", "on", "push", "talk", "quick"];
                let understood = |rest: &&str| !matches!(parse(&format!("{word} {rest}")), Typed::Wrong(_));
                assert!(tries.iter().any(understood), "{word}");
            }
        }
    }
}
