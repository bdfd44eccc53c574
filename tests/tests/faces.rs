//! Ten kinds of hostile text, as names and as lines of chat, and every face that a person or a script looks at: the screen, the
//! plain lines, JSON, the control socket, the log file and what is kept of the chat. One member says them all; none of them may reach a terminal, or pass for somebody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::time::{Duration, Instant};

use hallway::invite::Invite;
use hallway::room::control::{CONTROL_VERSION, Control, Hello};
use hallway_tests::hall::quic;
use hallway_tests::process::{SOON, run};
use hallway_tests::stranger::{Member, Stranger};
use hallway_tests::tmux::Tmux;
use hallway_tests::{Hall, Process, hallway_program, skipped};

/// Each kind once: what it is, and the text.
fn hostile() -> [(&'static str, String); 10] {
    [
        ("commands to the terminal", "\u{1b}[2J\u{1b}[31mroot\u{1b}[0m\u{1b}c".into()),
        ("the clipboard, OSC 52", "\u{1b}]52;c;ZWNobyBwd25lZA==\u{7}clip".into()),
        (
            "a link under other words, OSC 8",
            "\u{1b}]8;;http://evil.example\u{1b}\\bank\u{1b}]8;;\u{1b}\\".into(),
        ),
        ("C1 controls", "\u{9b}2J\u{9d}52;c;eA==\u{9c}\u{90}q\u{85}see".into()),
        ("text that runs backwards", "abc\u{202e}gpj.exe\u{2066}x\u{2069}\u{200f}".into()),
        ("nothing to see", "a\u{200b}d\u{200d}m\u{2060}i\u{feff}n\u{ad}\u{e0061}\u{fe0f}".into()),
        ("another's name in other letters", "b\u{435}n".into()),
        ("our own name", "(you)".into()),
        (
            "the program's own words",
            "x\r\n\u{2028}0:00  \u{b7} SYSTEM: the room is closed\n> you: yes".into(),
        ),
        (
            "more than anybody reads",
            format!("{}{}", "Z\u{301}\u{302}\u{303}".repeat(1500), "\u{309}".repeat(900)),
        ),
    ]
}

/// What may not reach a terminal or a log: controls, text that changes the direction or is not there.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        && !matches!(c, '\u{feff}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0000}'..='\u{e0fff}')
}

fn assert_harmless(face: &str, text: &str) {
    for line in text.lines() {
        let bad: Vec<char> = line.chars().filter(|c| !is_harmless(*c) && *c != '\t').collect();
        assert!(bad.is_empty(), "{face}: {bad:?} in {line:?}");
    }
}

/// What is left of a terminal's bytes without the sequences that paint: `ESC [` up to a letter. Any other escape fails.
fn painted_text(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut out = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\u{1b}' {
            out.push(c);
            continue;
        }
        let next = rest.next();
        assert_eq!(next, Some('['), "an escape that paints nothing: ESC {next:?}");
        let end = rest.by_ref().find(|c| c.is_ascii_alphabetic());
        assert!(end.is_some_and(|end| "ABCDGHJKmhlunqsrcdfX".contains(end)), "CSI ... {end:?}");
    }
    out
}

fn strings(value: &serde_json::Value, into: &mut Vec<String>) {
    match value {
        serde_json::Value::String(text) => into.push(text.clone()),
        serde_json::Value::Array(all) => all.iter().for_each(|value| strings(value, into)),
        serde_json::Value::Object(all) => all.values().for_each(|value| strings(value, into)),
        _ => {}
    }
}

/// A node of the room: its PeerId, and where it listens.
struct Place {
    id: String,
    home: String,
    listen: String,
}

impl Place {
    fn new(hall: &Hall, name: &str) -> Place {
        let home = hall.path(&format!("home-{name}")).display().to_string();
        let id = run(hall.dir.path(), ["id", "--json", "--data-dir", &home], &[]).out;
        let id: serde_json::Value = serde_json::from_str(&id).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = quic(socket.local_addr().unwrap());
        Place { id: id["peer_id"].as_str().unwrap().to_owned(), home, listen }
    }

    fn join<'a>(&'a self, invite: &'a str, name: &'a str) -> Vec<&'a str> {
        let fixed = ["join", invite, "--name", name, "--data-dir", &self.home, "--listen", &self.listen];
        [&fixed[..], &["--input", "silence", "--output", "null"]].concat()
    }
}

async fn says(members: &mut [Member], message: &Control) {
    for member in members {
        member.say(message.encode());
        member.listen(Duration::from_millis(120)).await;
    }
}

fn hello(name: &str) -> Control {
    Control::Hello(Hello { version: CONTROL_VERSION, features: 0, name: name.into(), addresses: vec![] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_hostile_texts_come_out_clean_on_every_face_and_imitate_nobody() {
    let hall = Hall::open();
    let invite = Invite::generate("kitchen".parse().unwrap(), vec![hall.at.parse().unwrap()]);
    let text = invite.to_string();
    let dir = hall.dir.path();
    let [ben_place, cleo_place, ana_place] = ["ben", "cleo", "ana"].map(|name| Place::new(&hall, name));
    let log = [("HALLWAY_LOG", "trace")];
    let kept = hall.path("kept.jsonl").display().to_string();
    let level = ["--log-level", "trace"];
    let keep = ["--json", "--history", &kept];
    let ben = Process::start(dir, "ben", [&ben_place.join(&text, "ben")[..], &level, &keep].concat(), &log);
    let plain = [&cleo_place.join(&text, "cleo")[..], &level, &["--headless"]].concat();
    let cleo = Process::start(dir, "cleo", plain, &log);
    let args = [&ana_place.join(&text, "ana")[..], &level].concat();
    let quoted: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
    let command = format!("HALLWAY_LOG=debug {} {}", hallway_program().display(), quoted.join(" "));
    let Some(ana) = Tmux::start(dir, "ana", (150, 50), &command) else {
        return skipped("hostile text on the screen: no tmux");
    };
    ben.wait_named("joined");
    let home = hall.path("home-ben").display().to_string();
    let listener = Process::start(dir, "listener", ["ctl", "--data-dir", &home, "events"], &[]);
    // It listens from its first event on: figures come every second.
    listener.wait_named("stats");
    ana.wait("three of them", |screen| screen.contains("3 here"));

    let mut eve = Stranger::new();
    let mut members = Vec::new();
    for place in [&ben_place, &cleo_place, &ana_place] {
        let connection = eve.dial(&place.listen).await;
        members.push(eve.join(connection, &invite, place.id.parse().unwrap()).await);
    }
    // Each line begins a run of its own: one that is refused holds up no other.
    let place = |run| hallway::room::chat::Place { run, number: 1, first: 1 };
    for (run, (kind, text)) in (1..).zip(hostile()) {
        says(&mut members, &hello(&text)).await;
        says(&mut members, &Control::Chat { id: 1, text, place: place(run) }).await;
        match kind {
            // Both are told apart then, by what they cannot choose.
            "another's name in other letters" => {
                let screen = ana.wait("both of them apart", |screen| screen.contains("b\u{435}n·"));
                assert!(screen.contains("ben·"), "{screen}");
            }
            "our own name" => drop(ana.wait("who says to be us", |screen| screen.contains("(you)·"))),
            "the program's own words" => {
                let screen = ana.wait_for("the room is closed");
                for line in screen.lines().filter(|line| line.contains("the room is closed")) {
                    let before = line.split("SYSTEM").next().unwrap();
                    // In our own sentences about names, or behind a name with its key.
                    assert!(before.contains('·') || before.contains("is called"), "{line}");
                }
                assert!(!screen.contains("› you:"), "{screen}");
            }
            _ => {}
        }
    }
    says(&mut members, &hello("eve")).await;
    says(&mut members, &Control::Chat { id: 2, text: "that was all".into(), place: place(0) }).await;
    ana.wait_for("eve:  that was all");
    ana.keys(&["l"]);
    ana.wait_for("─ log ");

    let until = Instant::now() + SOON;
    while !String::from_utf8_lossy(&cleo.stdout()).contains("that was all") {
        assert!(Instant::now() < until, "cleo's lines: {}", String::from_utf8_lossy(&cleo.stdout()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let is_last = |event: &serde_json::Value| event["event"] == "chat" && event["text"] == "that was all";
    ben.wait("the last line", SOON, is_last);
    listener.wait("the last line", SOON, is_last);
    // The names as somebody reads them who asks once; the last of them is eve's own again.
    let ctl = |verb: &str| run(dir, ["ctl", "--data-dir", &home, verb], &[]).out;
    let mut asked = ctl("status") + &ctl("words");
    // As a name she says each of them once more, and each time somebody asks.
    for (_, text) in hostile() {
        says(&mut members, &hello(&text)).await;
        asked += &(ctl("status")
            + &ctl("words")
            + &run(dir, ["ctl", "--data-dir", &home, "--json", "status"], &[]).out);
    }
    assert!(asked.contains("the room is closed"), "{asked}");
    says(&mut members, &hello("eve")).await;
    // A line says that what came before it has come.
    says(&mut members, &Control::Chat { id: 3, text: "goodbye".into(), place: place(100) }).await;
    ana.keys(&["Escape"]);
    ana.wait_for("eve:  goodbye");

    let (screen, raw) = (ana.screen(), painted_text(&ana.raw()));
    assert_harmless("the screen", &screen);
    assert_harmless("what the screen was painted with", &raw.replace(['\r', '\u{8}'], ""));
    assert_harmless("plain lines", &String::from_utf8(cleo.stdout()).unwrap());
    assert_harmless("JSON lines", &String::from_utf8(ben.stdout()).unwrap());
    let mut all = Vec::new();
    ben.events().iter().for_each(|event| strings(event, &mut all));
    assert!(all.iter().any(|text| text.contains("the room is closed")), "they did come");
    all.iter().for_each(|text| assert_harmless("a string in JSON", text));
    assert_harmless("what the control socket answers", &asked);
    assert_harmless("the control socket's lines", &String::from_utf8(listener.stdout()).unwrap());
    let mut told = Vec::new();
    listener.events().iter().for_each(|event| strings(event, &mut told));
    assert!(told.iter().any(|text| text.contains("the room is closed")), "they came there too");
    told.iter().for_each(|text| assert_harmless("a string from the control socket", text));
    assert!(all.iter().all(|text| text.len() <= 4_200), "nothing huge");
    for (who, log) in [("ben", ben.stderr()), ("cleo", cleo.stderr())] {
        assert!(log.len() > 1_000, "{who} kept a log");
        assert_harmless(who, &log);
    }
    for who in ["ana", "ben", "cleo"] {
        let log = std::fs::read_to_string(hall.path(&format!("home-{who}")).join("hallway.log")).unwrap();
        assert!(log.len() > 1_000, "{who} has a log file");
        assert_harmless("the log file", &log);
        assert!(!log.contains("the room is closed"), "nothing that was said is in it");
    }
    let kept = std::fs::read_to_string(&kept).unwrap();
    assert_harmless("what is kept of the chat", &kept);
    let kept: Vec<serde_json::Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut said = Vec::new();
    kept.iter().for_each(|line| strings(line, &mut said));
    assert!(said.iter().any(|text| text == "that was all"));
    said.iter().for_each(|text| assert_harmless("a string of it", text));
    // Names of the others are no longer imitated, so they stand alone again.
    assert!(screen.contains("eve") && !screen.contains("eve·"), "{screen}");
}
