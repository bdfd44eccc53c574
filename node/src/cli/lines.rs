//! The keyboard of `join --plain`: what is typed is said in writing, unless it is a command.

use std::io::{BufRead as _, Write as _};

use tokio::sync::mpsc;

use crate::{
    names,
    node::{Answer, Command, Order, Snapshot},
    text,
    typed::{self, About, COMMANDS, Toggle, Typed, Unclear},
};

/// Reads commands until standard input ends. Blocks: for a thread of its own.
pub fn read(orders: &mpsc::Sender<Order>) {
    let (mut keyboard, mut line) = (std::io::stdin().lock(), Vec::new());
    while matches!(keyboard.read_until(b'\n', &mut line), Ok(1..)) {
        if obey(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']), orders).is_none() {
            return;
        }
        line.clear();
    }
}

/// The commonest commands are one letter here: there is no screen to press keys on.
fn parse(line: &str) -> Typed {
    match line.trim() {
        "q" => Typed::Do(Command::Leave),
        "m" => Typed::Toggle(Toggle::Mute),
        "d" => Typed::Toggle(Toggle::Deafen),
        "t" => Typed::Toggle(Toggle::Talk),
        "?" => Typed::Help,
        line => typed::parse(line),
    }
}

/// `None` where the node has ended.
fn obey(line: &str, orders: &mpsc::Sender<Order>) -> Option<()> {
    let command = match parse(line) {
        Typed::Nothing => return Some(()),
        Typed::Do(command) => command,
        Typed::Toggle(toggle) => {
            let controls = snapshot(orders)?.controls;
            match toggle {
                Toggle::Mute => Command::Mute { on: !controls.muted },
                Toggle::Deafen => Command::Deafen { on: !controls.deafened },
                Toggle::Talk => Command::Press { down: !controls.pressed },
            }
        }
        Typed::For(who, about) => match person(snapshot(orders)?.as_ref(), &who, about) {
            Ok(command) => command,
            Err(unclear) => {
                say(&unclear.to_string());
                return Some(());
            }
        },
        Typed::Who => {
            let snapshot = snapshot(orders)?;
            say(&who(&snapshot));
            return Some(());
        }
        Typed::Devices => {
            let (order, answered) = Order::asking(Command::Devices);
            orders.blocking_send(order).ok()?;
            if let Ok(Answer::Devices(found)) = answered.blocking_recv().ok()? {
                let clean = text::clean_line;
                let line = |device: &crate::audio::DeviceInfo| {
                    format!("  {} ({})", clean(&device.id), clean(&device.name))
                };
                found.iter().for_each(|device| say(&line(device)));
            }
            return Some(());
        }
        Typed::Help => {
            say("q m d t: /quit /mute /deafen /talk");
            COMMANDS.iter().for_each(|(command, what)| say(&format!("{command:<18} {what}")));
            return Some(());
        }
        Typed::Wrong(what) => {
            say(&what);
            return Some(());
        }
    };
    let (order, answered) = Order::asking(command);
    orders.blocking_send(order).ok()?;
    if let Err(notice) = answered.blocking_recv().ok()? {
        // It may repeat what was typed, or a device's name.
        say(&text::clean_line(&format!("{} {}", notice.message, notice.hint)));
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

fn person(snapshot: &Snapshot, who: &str, about: About) -> Result<Command, Unclear> {
    let people = snapshot.people.iter().map(|person| (person.peer_id, person.name.as_deref()));
    let peer_id = typed::meant(who, &snapshot.name, people)?;
    let person = snapshot.people.iter().find(|person| person.peer_id == peer_id);
    Ok(about.command(peer_id, person.map(|person| person.hearing).unwrap_or_default()))
}

fn who(snapshot: &Snapshot) -> String {
    let labels = labels(snapshot);
    let mut lines =
        vec![format!("{} people are here, you are {}", labels.len() + 1, text::clean_name(&snapshot.name))];
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
        let trust = person.trust.map_or("", |trust| trust.in_words());
        let words = person.compare.as_ref().map_or(String::new(), |words| format!("; words: {words}"));
        lines.push(format!(
            "  {label} ({}), {path}{delay}{heard}; {trust}{words}",
            crate::events::short(&person.peer_id)
        ));
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
    fn single_letters_are_commands_and_words_that_begin_with_them_are_said() {
        assert_eq!(parse(" q "), Typed::Do(Command::Leave));
        assert_eq!(parse("m"), Typed::Toggle(Toggle::Mute));
        assert_eq!(parse("mute me"), Typed::Do(Command::Chat { text: "mute me".into() }));
    }
}
