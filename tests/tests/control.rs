//! The control socket and `hallway ctl`, against real calls; and the examples that stand on them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use hallway_tests::hall::{NodeArgs, control, file};
use hallway_tests::process::{Printed, Process, SOON, run, soon};
use hallway_tests::sound::{Recording, amplitude, loudness, write_speech};
use hallway_tests::{Hall, skipped};
use serde_json::{Value, json};

fn ctl(hall: &Hall, name: &str, args: &[&str]) -> Printed {
    let home = hall.path(&format!("home-{name}")).display().to_string();
    run(hall.dir.path(), ["ctl", "--data-dir", &home].iter().chain(args), &[])
}

/// Runs it and expects success.
fn told(hall: &Hall, name: &str, args: &[&str]) -> String {
    let printed = ctl(hall, name, args);
    assert_eq!(printed.code, Some(0), "{args:?}: {}", printed.last_words);
    printed.out
}

fn pair(hall: &Hall, input: &str) -> (Process, Process) {
    let args = || NodeArgs { input: input.to_owned(), ..NodeArgs::default() };
    let (ana, ben) = (hall.node("den", "ana", args()), hall.node("den", "ben", args()));
    ana.wait_peer(&ben.peer_id(), "connected");
    ben.wait_peer(&ana.peer_id(), "connected");
    (ana, ben)
}

#[test]
fn what_the_screen_can_do_a_script_can_do_and_others_hear_and_see_it() {
    let hall = Hall::open();
    let (mut ana, mut ben) = pair(&hall, "tone:440");
    let (ana_id, ben_id) = (ana.peer_id(), ben.peer_id());
    let mut call = control(hall.dir.path(), "ana");
    assert_eq!((call.room.as_str(), &call.peer_id), ("den", &ana_id));
    let mut events = control(hall.dir.path(), "ana");
    events.subscribe(&[]).unwrap();
    let (tell, told) = channel();
    let listening = std::thread::spawn(move || {
        while let Some(event) = events.next_line().unwrap() {
            let _ = tell.send(event);
        }
    });
    let next = |name: &str| loop {
        let event: Value = told.recv_timeout(SOON).expect("the call goes on");
        if event["event"] == name {
            return event;
        }
    };
    ben.wait_hearing(&ana_id);
    call.ask(json!({ "command": "mute", "on": true })).unwrap();
    assert_eq!(next("controls")["muted"], true);
    let quiet = |event: &Value| {
        event["event"] == "stats" && event["level_dbov"].as_f64().is_some_and(|level| level < -90.0)
    };
    ben.wait_after(ben.mark(), "silence", SOON, quiet);
    call.ask(json!({ "command": "mute", "on": false })).unwrap();
    let loud = |event: &Value| event["event"] == "stats" && event["level_dbov"].as_f64() > Some(-60.0);
    ben.wait_after(ben.mark(), "the tone", SOON, loud);
    call.ask(json!({ "command": "volume", "peer_id": ben_id, "volume_db": -6 })).unwrap();
    assert_eq!(next("volume")["volume_db"], -6);
    // What the call is for, how much delay for how much clarity, and what is done to the voice: all while it goes on.
    let frame =
        |ms: f64| move |event: &Value| event["event"] == "stats" && event["frame_ms"].as_f64() == Some(ms);
    for (to, ms) in [("music", 2.5), ("talk", 5.0)] {
        call.ask(json!({ "command": "profile", "to": to })).unwrap();
        assert_eq!(next("controls")["profile"], to);
        ben.wait_after(ben.mark(), to, SOON, frame(ms));
    }
    call.ask(json!({ "command": "delay", "to": "safe" })).unwrap();
    assert_eq!(next("controls")["delay"], "safe");
    call.ask(json!({ "command": "processing", "noise_suppression": "on" })).unwrap();
    assert_eq!(next("controls")["processing"]["noise_suppression"], "on");
    let done = loop {
        let told = next("processing");
        if told["noise_suppression"] == true {
            break told;
        }
    };
    assert!(done["delay_ms"].as_f64() > Some(10.0) && done["delay_ms"] == done["price_ms"], "{done}");
    call.ask(json!({ "command": "processing", "noise_suppression": "off" })).unwrap();
    assert_eq!(next("processing")["delay_ms"], 0.0);
    call.ask(json!({ "command": "name", "name": "anna" })).unwrap();
    ben.wait("the new name", SOON, |event| event["event"] == "peer" && event["name"] == "anna");
    call.ask(json!({ "command": "chat", "text": "tea?" })).unwrap();
    ben.wait("the line", SOON, |event| event["event"] == "chat" && event["text"] == "tea?");
    let snapshot = call.ask(json!({ "command": "snapshot" })).unwrap();
    assert_eq!((&snapshot["name"], &snapshot["people"][0]["name"]), (&json!("anna"), &json!("ben")));
    assert_eq!(snapshot["people"][0]["volume_db"], -6);
    call.ask(json!({ "command": "device", "end": "input", "name": "silence" })).unwrap();
    ben.wait_after(ben.mark(), "silence", SOON, quiet);
    call.ask(json!({ "command": "leave" })).unwrap();
    ben.wait_peer(&ana_id, "left");
    assert_eq!(ana.wait_exit(SOON), Some(0));
    soon("the end of the events", move || listening.join().unwrap());
    ben.leave();
}

#[test]
fn ctl_finds_the_call_says_what_is_wrong_and_names_people_as_people_do() {
    let hall = Hall::open();
    let nobody = ctl(&hall, "ana", &["status"]);
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.last_words.contains("no call runs here") && nobody.last_words.contains("hallway join"));
    let (mut ana, mut ben) = pair(&hall, "silence");
    let status = told(&hall, "ana", &["status"]);
    assert!(
        status.contains("den, open room") && status.contains("you are ana") && status.contains("ben ("),
        "{status}"
    );
    told(&hall, "ana", &["mute"]);
    assert!(told(&hall, "ana", &["status"]).contains("muted"));
    told(&hall, "ana", &["mute", "toggle"]);
    assert!(!told(&hall, "ana", &["status"]).contains("muted"));
    told(&hall, "ana", &["say", "two", "words"]);
    ben.wait("the line", SOON, |event| event["event"] == "chat" && event["text"] == "two words");
    let id = ben.peer_id();
    for (person, db) in [("ben", "-3"), (&id[id.len() - 6..], "4"), (&id, "-40")] {
        told(&hall, "ana", &["volume", person, db]);
        let shown: Value = serde_json::from_str(&told(&hall, "ana", &["--json", "status"])).unwrap();
        assert_eq!(shown["people"][0]["volume_db"].to_string(), db);
    }
    let who = ctl(&hall, "ana", &["volume", "dora", "3"]);
    assert!(who.code == Some(2) && who.last_words.contains("there is: ben"), "{}", who.last_words);
    let calls: Value = serde_json::from_str(&told(&hall, "ana", &["--json", "calls"])).unwrap();
    assert_eq!((calls.as_array().unwrap().len(), &calls[0]["room"]), (1, &json!("den")));
    assert_eq!(told(&hall, "ana", &["send", r#"{"command":"press","down":true}"#]).trim(), "null");
    let wrong = ctl(&hall, "ana", &["send", r#"{"command":"sing"}"#]);
    assert!(wrong.code == Some(1) && wrong.last_words.contains("sing"), "{}", wrong.last_words);
    // A second call of the same home: one has to be named.
    let mut other = hall.node("attic", "ana", NodeArgs::default());
    other.wait_named("joined");
    let several = ctl(&hall, "ana", &["status"]);
    assert!(several.code == Some(2) && several.last_words.contains("attic"), "{}", several.last_words);
    assert!(told(&hall, "ana", &["--call", "attic", "status"]).starts_with("attic"));
    told(&hall, "ana", &["--call", "attic", "leave"]);
    assert_eq!(other.wait_exit(SOON), Some(0));
    // Events, until the call ends.
    let home = hall.path("home-ana").display().to_string();
    let mut events =
        Process::start(hall.dir.path(), "events", ["ctl", "--data-dir", &home, "events", "peer"], &[]);
    // Until it listens nothing is told.
    let until = Instant::now() + SOON;
    for name in ["ben", "benjamin"].into_iter().cycle() {
        told(&hall, "ben", &["name", name]);
        if !events.named("peer").is_empty() || Instant::now() > until {
            break;
        }
    }
    ben.leave();
    events.wait_peer(&id, "left");
    told(&hall, "ana", &["leave"]);
    assert_eq!(ana.wait_exit(SOON), Some(0));
    assert_eq!(events.wait_exit(SOON), Some(0));
    assert!(!hall.path("home-ana/run").read_dir().unwrap().flatten().any(|entry| entry.path().exists()));
}

#[test]
fn clients_that_do_not_read_talk_nonsense_or_never_end_do_the_call_no_harm() {
    let hall = Hall::open();
    let heard = hall.path("heard.wav");
    let mut ana = hall.node("den", "ana", NodeArgs { input: "tone:440".into(), ..NodeArgs::default() });
    let mut ben = hall.node("den", "ben", NodeArgs { output: file(&heard), ..NodeArgs::default() });
    let began = ben.wait_hearing(&ana.peer_id())["at_ns"].as_u64().unwrap();
    let path = control(hall.dir.path(), "ben").path;
    let mut lazy: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(&path).unwrap()).collect();
    for (n, stream) in lazy.iter_mut().enumerate() {
        stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        stream.write_all(b"{\"command\":\"subscribe\"}\n").unwrap();
        // Half of them ask for whole snapshots without ever reading one.
        let until = Instant::now() + Duration::from_millis(300);
        while n % 2 == 0
            && Instant::now() < until
            && stream.write_all(b"{\"command\":\"snapshot\"}\n").is_ok()
        {}
    }
    let mut endless = UnixStream::connect(&path).unwrap();
    endless.set_write_timeout(Some(SOON)).unwrap();
    let mut noise = vec![b'{'; 1 << 20];
    noise.extend([0xff; 1000]);
    let _ = endless.write_all(&noise);
    // Those that do not read what they asked for are cut off; the others of the room notice nothing.
    let mut call = control(hall.dir.path(), "ben");
    assert_eq!(call.ask(json!({ "command": "snapshot" })).unwrap()["room"], "den");
    std::thread::sleep(Duration::from_secs(7));
    let mut rest = Vec::new();
    lazy[0].set_read_timeout(Some(SOON)).unwrap();
    let cut = lazy[0].read_to_end(&mut rest);
    assert!(
        cut.is_ok() || cut.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
        "it was cut off"
    );
    assert_eq!(call.ask(json!({ "command": "snapshot" })).unwrap()["room"], "den");
    let ended = hallway::clock::now_ns();
    ana.leave();
    ben.leave();
    let recording = Recording::of(&ben, &heard);
    for second in 1..(ended - began) / 1_000_000_000 {
        let at = began + second * 1_000_000_000;
        assert!(amplitude(recording.between(at, at + 900_000_000), 440.0) > 0.05, "second {second}");
    }
}

struct Script(Child);

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts an example, where there is a Python for it.
fn example(name: &str, args: &[&Path]) -> Option<Script> {
    let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/examples")).join(name);
    let started = Command::new("python3").arg(script).args(args).stdin(Stdio::null()).spawn();
    if started.is_err() {
        skipped("there is no python3 to run the examples with");
    }
    started.ok().map(Script)
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn the_announcer_speaks_a_recording_when_it_is_told_to() {
    let hall = Hall::open();
    let [pipe, socket, sounds, heard] =
        ["voice", "a.sock", "sounds", "heard.wav"].map(|name| hall.path(name));
    std::fs::create_dir(&sounds).unwrap();
    write_speech(&sounds.join("lunch.wav"), 5, 2.0);
    fifo(&pipe);
    let input = format!("pipe:{}", pipe.display());
    let args = NodeArgs { input, ..NodeArgs::default() };
    let mut bot = hall.node("lobby", "announcer", args.with(&["--ctl", socket.to_str().unwrap()]));
    let mut ana = hall.node("lobby", "ana", NodeArgs { output: file(&heard), ..NodeArgs::default() });
    ana.wait_hearing(&bot.peer_id());
    bot.wait_peer(&ana.peer_id(), "connected");
    let Some(_script) = example("announcer.py", &[&socket, &pipe, &sounds]) else { return };
    let line = |text: &'static str| move |event: &Value| event["event"] == "chat" && event["text"] == text;
    // Until the script listens nobody answers.
    let mut call = control(hall.dir.path(), "ana");
    let until = Instant::now() + SOON;
    while !ana.named("chat").iter().any(line("there is no tea; there is: lunch")) && Instant::now() < until {
        call.ask(json!({ "command": "chat", "text": "announce tea" })).unwrap();
        std::thread::sleep(Duration::from_millis(500));
    }
    call.ask(json!({ "command": "chat", "text": "announce lunch" })).unwrap();
    ana.wait("the end", SOON, line("that was lunch"));
    let spoken = bot.wait_named("input_finished")["at_ns"].as_u64().unwrap();
    bot.leave();
    ana.leave();
    let recording = Recording::of(&ana, &heard);
    let speech = loudness(recording.between(spoken - 1_800_000_000, spoken - 200_000_000));
    let before = loudness(recording.between(spoken - 3_500_000_000, spoken - 2_500_000_000));
    assert!(speech > 0.01 && before < speech / 10.0, "{speech} while it spoke, {before} before");
}

#[test]
fn the_tap_leaves_the_sound_of_the_room_and_what_was_written() {
    let hall = Hall::open();
    let [pipe, socket, out] = ["tap", "t.sock", "out"].map(|name| hall.path(name));
    fifo(&pipe);
    let output = format!("pipe:{}", pipe.display());
    let args = NodeArgs { output, ..NodeArgs::default() };
    let mut bot = hall.node("lobby", "transcriber", args.with(&["--ctl", socket.to_str().unwrap()]));
    bot.wait_named("joined");
    let Some(script) = example("tap.py", &[&socket, &pipe, &out]) else { return };
    // It follows the call from then on.
    let until = Instant::now() + SOON;
    while !out.join("said.jsonl").exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut ana = hall.node("lobby", "ana", NodeArgs { input: "tone:440".into(), ..NodeArgs::default() });
    bot.wait_hearing(&ana.peer_id());
    control(hall.dir.path(), "ana").ask(json!({ "command": "chat", "text": "for the \"minutes\"" })).unwrap();
    bot.wait_named("chat");
    // Into the second piece.
    let until = Instant::now() + SOON * 2;
    while !out.join("00001.wav").exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
    }
    ana.leave();
    bot.leave();
    let mut script = script;
    let until = Instant::now() + SOON;
    while script.0.try_wait().unwrap().is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut first = hound::WavReader::open(out.join("00000.wav")).unwrap();
    assert_eq!((first.spec().sample_rate, first.spec().channels, first.duration()), (48_000, 1, 480_000));
    let samples: Vec<f32> = first.samples::<i16>().map(|x| f32::from(x.unwrap()) / 32_768.0).collect();
    assert!(amplitude(&samples[432_000..], 440.0) > 0.05, "the tone at the end of the first piece");
    let lines = std::fs::read_to_string(out.join("said.jsonl")).unwrap();
    let said: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = said.iter().find(|event| event["event"] == "chat").unwrap();
    assert_eq!((&line["text"], &line["name"]), (&json!("for the \"minutes\""), &json!("ana")));
    assert!(line["at_s"].as_f64().is_some_and(|at| (-1.0..60.0).contains(&at)), "{line}");
}
