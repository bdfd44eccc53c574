//! The keyboard of `join --plain`: what is typed is said in writing, unless it is a command.

use std::io::{BufRead as _, Write as _};

use tokio::sync::mpsc;

use crate::{
    audio::{End, Switch},
    controls::Speak,
    names,
    node::{Answer, Command, Order, Snapshot},
};

/// What `/help` says.
const HELP: &str = "\
q /quit            leave
m /mute            mute, unmute
d /deafen          hear nobody, be heard by nobody; and back
t /talk            push to talk: open or close the microphone
/voice WHEN        when the microphone is open: always, push or voice
/threshold DB      where voice opens it, -80 to -10
/who               who is here, and how they fare
/volume NAME DB    how loud one person is heard, -40 to 12
/hear NAME         hear one person or not
/devices           sound devices
/input NAME        speak through another device
/output NAME       listen through another device
/name NAME         be called something else
/echo /noise /gain auto, on or off: echo cancellation, noise suppression, automatic gain
//...              say a line that begins with a slash";

/// A line, understood.
#[derive(Debug, PartialEq)]
enum Line {
    Nothing,
    Say(Command),
    Toggle(Toggle),
    /// For somebody, by name: volume, or hear or not.
    Person(String, Option<i8>),
    Who,
    Devices,
    Help,
    Wrong(String),
}

#[derive(Debug, PartialEq)]
enum Toggle {
    Mute,
    Deafen,
    Talk,
}

fn parse(line: &str) -> Line {
    let line = line.trim();
    if let Some(said) = line.strip_prefix("//") {
        return Line::Say(Command::Chat { text: format!("/{said}") });
    }
    let (word, rest) = line.split_once(' ').map_or((line, ""), |(word, rest)| (word, rest.trim()));
    match (word, rest) {
        ("", _) => Line::Nothing,
        ("q" | "/quit" | "/q", "") => Line::Say(Command::Leave),
        ("m" | "/mute", "") => Line::Toggle(Toggle::Mute),
        ("d" | "/deafen", "") => Line::Toggle(Toggle::Deafen),
        ("t" | "/talk", "") => Line::Toggle(Toggle::Talk),
        ("/voice", when) => match when {
            "always" => Line::Say(Command::Speak { when: Speak::Always }),
            "push" => Line::Say(Command::Speak { when: Speak::PushToTalk }),
            "voice" => Line::Say(Command::Speak { when: Speak::Voice }),
            _ => Line::Wrong("/voice always, /voice push or /voice voice".into()),
        },
        ("/threshold", db) => match db.parse() {
            Ok(dbov) => Line::Say(Command::Threshold { dbov }),
            Err(_) => Line::Wrong("/threshold -45".into()),
        },
        ("/echo" | "/noise" | "/gain", when) => processing(word, when),
        ("/who", "") => Line::Who,
        ("/volume", rest) => {
            match rest.rsplit_once(' ').and_then(|(who, db)| Some((who, db.parse().ok()?))) {
                Some((who, db)) => Line::Person(who.trim().to_owned(), Some(db)),
                None => Line::Wrong("/volume NAME -6".into()),
            }
        }
        ("/hear", who) if !who.is_empty() => Line::Person(who.to_owned(), None),
        ("/devices", "") => Line::Devices,
        ("/input", name) if !name.is_empty() => device(End::Input, name),
        ("/output", name) if !name.is_empty() => device(End::Output, name),
        ("/name", name) if !name.is_empty() => Line::Say(Command::Name { name: name.to_owned() }),
        ("/help" | "?", "") => Line::Help,
        _ if word.starts_with('/') => {
            Line::Wrong(format!("{word} is no command, or something is missing. /help lists them"))
        }
        _ => Line::Say(Command::Chat { text: line.to_owned() }),
    }
}

fn processing(word: &str, when: &str) -> Line {
    let Ok(switch) = <Switch as clap::ValueEnum>::from_str(when, true) else {
        return Line::Wrong(format!("{word} auto, {word} on or {word} off"));
    };
    let only = |name: &str| (word == name).then_some(switch);
    Line::Say(Command::Processing {
        echo_cancel: only("/echo"),
        noise_suppression: only("/noise"),
        gain: only("/gain"),
    })
}

fn device(end: End, name: &str) -> Line {
    Line::Say(Command::Device { end, name: name.to_owned() })
}

/// Reads lines until the keyboard or the node ends.
pub fn read(orders: &mpsc::Sender<Order>) {
    let (mut keyboard, mut line) = (std::io::stdin().lock(), Vec::new());
    while matches!(keyboard.read_until(b'\n', &mut line), Ok(1..)) {
        if obey(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']), orders).is_none() {
            return;
        }
        line.clear();
    }
}

/// `None` where the node has ended.
fn obey(line: &str, orders: &mpsc::Sender<Order>) -> Option<()> {
    let command = match parse(line) {
        Line::Nothing => return Some(()),
        Line::Say(command) => command,
        Line::Toggle(toggle) => {
            let controls = snapshot(orders)?.controls;
            match toggle {
                Toggle::Mute => Command::Mute { on: !controls.muted },
                Toggle::Deafen => Command::Deafen { on: !controls.deafened },
                Toggle::Talk => Command::Press { down: !controls.pressed },
            }
        }
        Line::Person(who, volume) => match person(snapshot(orders)?.as_ref(), &who, volume) {
            Some(command) => command,
            None => {
                say(&format!("nobody here is called {who}; /who lists them"));
                return Some(());
            }
        },
        Line::Who => {
            let snapshot = snapshot(orders)?;
            say(&who(&snapshot));
            return Some(());
        }
        Line::Devices => {
            let (order, answered) = Order::asking(Command::Devices);
            orders.blocking_send(order).ok()?;
            if let Ok(Answer::Devices(found)) = answered.blocking_recv().ok()? {
                let clean = crate::text::clean_line;
                let line = |device: &crate::audio::DeviceInfo| {
                    format!("  {} ({})", clean(&device.id), clean(&device.name))
                };
                found.iter().for_each(|device| say(&line(device)));
            }
            return Some(());
        }
        Line::Help => {
            say(HELP);
            return Some(());
        }
        Line::Wrong(what) => {
            say(&what);
            return Some(());
        }
    };
    let (order, answered) = Order::asking(command);
    orders.blocking_send(order).ok()?;
    if let Err(notice) = answered.blocking_recv().ok()? {
        say(&format!("{} {}", notice.message, notice.hint));
    }
    Some(())
}

fn snapshot(orders: &mpsc::Sender<Order>) -> Option<Box<Snapshot>> {
    let (order, answered) = Order::asking(Command::Snapshot);
    orders.blocking_send(order).ok()?;
    match answered.blocking_recv() {
        Ok(Ok(Answer::Snapshot(snapshot))) => Some(snapshot),
        _ => None,
    }
}

/// The names as they are shown, of those who said one.
fn labels(snapshot: &Snapshot) -> std::collections::BTreeMap<libp2p::PeerId, String> {
    let named = snapshot.people.iter().filter_map(|person| Some((person.peer_id, person.name.as_deref()?)));
    names::told_apart(&snapshot.name, named)
}

fn person(snapshot: &Snapshot, who: &str, volume: Option<i8>) -> Option<Command> {
    let labels = labels(snapshot);
    // A name first; else so much of the key that nobody is meant by chance.
    let named = |person: &&crate::node::Person| labels.get(&person.peer_id).is_some_and(|label| label == who);
    let keyed = |person: &&crate::node::Person| who.len() >= 6 && person.peer_id.to_base58().ends_with(who);
    let person = snapshot.people.iter().find(named).or_else(|| snapshot.people.iter().find(keyed))?;
    let peer_id = person.peer_id;
    Some(match volume {
        Some(volume_db) => Command::Volume { peer_id, volume_db },
        None => Command::MutePerson { peer_id, on: !person.hearing.muted },
    })
}

fn who(snapshot: &Snapshot) -> String {
    let labels = labels(snapshot);
    let mut lines = vec![format!("{} people are here, you are {}", labels.len() + 1, snapshot.name)];
    for person in &snapshot.people {
        let Some(label) = labels.get(&person.peer_id) else { continue };
        let path = person.path.map_or("no path now".to_owned(), |path| path.in_words().to_owned());
        let delay = person.stats.as_ref().and_then(|stats| stats.mouth_to_ear_ms);
        let delay = delay.map_or(String::new(), |ms| format!(", mouth to ear {ms:.0} ms"));
        let heard = match person.hearing {
            hearing if hearing.muted => ", not heard here".to_owned(),
            hearing if hearing.volume_db != 0 => format!(", heard at {:+} dB", hearing.volume_db),
            _ => String::new(),
        };
        lines.push(format!("  {label} ({}), {path}{delay}{heard}", crate::events::short(&person.peer_id)));
    }
    lines.join("\n")
}

/// A closed output is no reason to stop listening to the keyboard.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_command_or_is_said() {
        let chat = |text: &str| Line::Say(Command::Chat { text: text.into() });
        for (line, meant) in [
            ("", Line::Nothing),
            ("hello there", chat("hello there")),
            ("mute me", chat("mute me")),
            ("//etc", chat("/etc")),
            (" q ", Line::Say(Command::Leave)),
            ("m", Line::Toggle(Toggle::Mute)),
            ("/deafen", Line::Toggle(Toggle::Deafen)),
            ("t", Line::Toggle(Toggle::Talk)),
            ("/voice push", Line::Say(Command::Speak { when: Speak::PushToTalk })),
            ("/threshold -40", Line::Say(Command::Threshold { dbov: -40 })),
            ("/volume Ana B -6", Line::Person("Ana B".into(), Some(-6))),
            ("/hear ben·Xy12ab", Line::Person("ben·Xy12ab".into(), None)),
            ("/input USB Headset", device(End::Input, "USB Headset")),
            (
                "/noise off",
                Line::Say(Command::Processing {
                    echo_cancel: None,
                    noise_suppression: Some(Switch::Off),
                    gain: None,
                }),
            ),
            ("/who", Line::Who),
            ("/help", Line::Help),
        ] {
            assert_eq!(parse(line), meant, "{line}");
        }
        for wrong in ["/sing", "/voice", "/threshold loud", "/volume ana", "/hear", "/input", "/echo loud"] {
            assert!(matches!(parse(wrong), Line::Wrong(_)), "{wrong}");
        }
    }
}
