//! What a typed line means: the same commands for plain lines and for the line that is written on the screen.
//!
//! What begins with a slash is a command, two slashes say one, everything else is said in writing.

use clap::ValueEnum as _;
use hallway_codec::{Delay, Profile};
use libp2p::PeerId;

use crate::{
    audio::{End, Switch},
    controls::{Hearing, Speak},
    events, names,
    node::Command,
    text,
};

/// So much of a key's end, in characters, means its person.
pub const LEAST_OF_KEY: usize = 6;

/// Every command, for `/help` and for the manual.
pub const COMMANDS: &[(&str, &str)] = &[
    ("/quit /q", "leave"),
    ("/mute", "mute, unmute"),
    ("/deafen", "hear nobody, be heard by nobody; and back"),
    ("/talk", "push to talk: open or close the microphone"),
    ("/voice WHEN", "when the microphone is open: always, push or voice"),
    ("/threshold DB", "where voice opens it, -80 to -10"),
    ("/who /words", "who is here, how they fare, and words to compare aloud"),
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
    ("/help", "these commands"),
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

impl About {
    /// The command for a person who is heard like that now.
    pub fn command(self, peer_id: PeerId, now: Hearing) -> Command {
        match self {
            Self::Volume(volume_db) => Command::Volume { peer_id, volume_db },
            Self::Hear => Command::MutePerson { peer_id, on: !now.muted },
            Self::Verify(on) => Command::Verify { peer_id, on },
        }
    }
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
            let word = text::clean_line(word);
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

/// Why nobody is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// No name, and no key's end.
    #[error("nobody here is called {who}{}", there(.here))]
    Nobody {
        /// What was typed, cleaned.
        who: String,
        /// Who is here, as shown.
        here: Vec<String>,
    },
    /// Names are anybody's to choose, and ends of keys can be searched for.
    #[error("several could be {who}: {}. Name one by more of the key's end", .which.join(", "))]
    Several {
        /// What was typed, cleaned.
        who: String,
        /// Each as shown, with the key where that is no part of it.
        which: Vec<String>,
    },
}

fn there(here: &[String]) -> String {
    if here.is_empty() { String::new() } else { format!("; there is: {}", here.join(", ")) }
}

/// Who is meant: the whole key, the name as it is shown, [`LEAST_OF_KEY`] or more of the key's end, or a name that nobody else's
/// looks like. `me` is our own name; the people come with theirs as they said it.
///
/// # Errors
/// Where nobody or more than one person fits: then nobody is meant.
pub fn meant<'a>(
    who: &str,
    me: &str,
    people: impl IntoIterator<Item = (PeerId, Option<&'a str>)>,
) -> Result<PeerId, Unclear> {
    let people: Vec<(PeerId, Option<&str>)> = people.into_iter().collect();
    let labels = names::told_apart(me, people.iter().filter_map(|(peer, name)| Some((*peer, (*name)?))));
    let label = |peer: &PeerId| labels.get(peer).cloned().unwrap_or_else(|| events::short(peer));
    let fits = |fit: &dyn Fn(&PeerId, Option<&str>) -> bool| -> Vec<PeerId> {
        people.iter().filter(|(peer, name)| fit(peer, *name)).map(|(peer, _)| *peer).collect()
    };
    let whole = fits(&|peer, _| peer.to_base58() == who);
    let shown = fits(&|peer, _| {
        labels.get(peer).is_some_and(|label| label == who)
            || who.len() >= LEAST_OF_KEY && peer.to_base58().ends_with(who)
    });
    let mut alike = fits(&|_, name| name.is_some_and(|name| names::look(name) == names::look(who)));
    let is_named =
        |(_, name): &(PeerId, Option<&str>)| name.is_some_and(|name| text::clean_name(name) == who);
    if alike.len() == 1 && !people.iter().any(is_named) {
        alike.clear();
    }
    let found = [whole, shown, alike].into_iter().find(|found| !found.is_empty()).unwrap_or_default();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(Unclear::Nobody {
            who: text::clean_line(who),
            here: people.iter().map(|(peer, _)| label(peer)).collect(),
        }),
        several => Err(Unclear::Several {
            who: text::clean_line(who),
            which: several
                .iter()
                .map(|peer| with_key(label(peer), &names::key_tail(peer, several)))
                .collect(),
        }),
    }
}

/// As shown, with enough of the key to name one by.
fn with_key(label: String, tail: &str) -> String {
    if label.ends_with(tail) { label } else { format!("{label}·{tail}") }
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
    fn somebody_is_meant_by_name_or_key_and_nobody_where_several_could_be() {
        let [ana, ben, cleo] = [1, 2, 3].map(|seed| {
            libp2p::identity::Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id()
        });
        let tail = |peer: &PeerId, length: usize| peer.to_base58()[52 - length..].to_owned();
        let meant = |who: &str, people: &[(PeerId, &str)]| {
            super::meant(
                who,
                "zoe",
                people.iter().map(|(peer, name)| (*peer, (!name.is_empty()).then_some(*name))),
            )
        };
        let several = |who: &str, people: &[(PeerId, &str)]| {
            let found = meant(who, people);
            assert!(matches!(found, Err(Unclear::Several { .. })), "{who}: {found:?}");
            let said = found.unwrap_err().to_string();
            assert!(
                said.starts_with(&format!("several could be {who}: ")) && said.contains(&tail(&ana, 6)),
                "{said}"
            );
        };
        let all = [(ana, "ana"), (ben, "ben"), (cleo, "")];
        assert_eq!(meant("ben", &all), Ok(ben));
        assert_eq!(meant(&tail(&cleo, 6), &all), Ok(cleo), "who has not said a name yet");
        assert_eq!(meant(&ben.to_base58(), &all), Ok(ben));
        assert!(matches!(meant(&tail(&ben, 5), &all), Err(Unclear::Nobody { .. })), "too little of a key");
        let nobody = meant("\u{1b}[2Jeve", &all).unwrap_err().to_string();
        assert_eq!(nobody, format!("nobody here is called [2Jeve; there is: ana, ben, {}", tail(&cleo, 6)));

        // Two of one name, or of names that look alike: each only by what is shown, or by the key.
        for other in ["ana", "Ana", "аnа"] {
            let two = [(ana, "ana"), (ben, other)];
            several("ana", &two);
            assert_eq!(meant(&format!("ana·{}", tail(&ana, 6)), &two), Ok(ana));
            assert_eq!(meant(&tail(&ben, 6), &two), Ok(ben));
        }
        // Another's key for a name.
        let key = tail(&ana, 6);
        several(&key, &[(ana, "ana"), (ben, &key)]);
        several(&key, &[(ana, ""), (ben, &key)]);
        let key = ana.to_base58();
        assert_eq!(meant(&key, &[(ben, &key), (ana, "ana")]), Ok(ana), "a whole key is nobody else's");
        // One who only looks like the one meant, who is away; and one who is shown with the key for another reason.
        assert!(meant("ben", &[(cleo, "bеn")]).is_err());
        assert_eq!(meant("system", &[(cleo, "system")]), Ok(cleo));
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
