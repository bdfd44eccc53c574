//! `hallway ctl`: a running call, from another terminal or a script.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand, ValueEnum};
use hallway_codec::{Delay, Profile};
use libp2p::PeerId;
use serde_json::{Value, json};

use super::{
    DataDir, Failure,
    choices::{DelayChoice, ProfileChoice, SpeakChoice},
    info::say,
};
use crate::{
    audio,
    controls::Speak,
    ctl::{self, Call, ClientError},
    text, typed,
};

#[derive(Args, Debug)]
pub struct CtlArgs {
    /// Which call, where several run: its room, its process id, or the path of its socket
    #[arg(long, value_name = "ROOM|PID|PATH")]
    call: Option<String>,
    /// The data folder that the call was given, if it was
    #[command(flatten)]
    data_dir: DataDir,
    /// Print what the call answers, as JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Which calls run
    Calls,
    /// Who is there, and how they are heard
    Status,
    /// Be silent, or not
    Mute {
        #[arg(value_enum, default_value = "on")]
        on: Switch,
    },
    /// Hear nobody and be silent, or not
    Deafen {
        #[arg(value_enum, default_value = "on")]
        on: Switch,
    },
    /// When the microphone is open
    Speak {
        /// always, push-to-talk or voice
        #[arg(value_enum)]
        when: SpeakChoice,
    },
    /// Hold or let go of the push-to-talk key
    Press {
        #[arg(value_enum)]
        key: Key,
    },
    /// Voice, or music: full band, no processing, shortest frames
    Profile {
        #[arg(value_enum)]
        to: ProfileChoice,
    },
    /// How much delay is taken for how much clarity
    Delay {
        #[arg(value_enum)]
        to: DelayChoice,
    },
    /// Take the loudspeaker's sound out of the microphone
    Echo {
        #[arg(value_enum)]
        when: audio::Switch,
    },
    /// Take steady noise out of the voice
    Noise {
        #[arg(value_enum)]
        when: audio::Switch,
    },
    /// Bring the voice to a common level
    Gain {
        #[arg(value_enum)]
        when: audio::Switch,
    },
    /// The loudness from which voice activation opens the microphone
    Threshold {
        /// dB below full scale, -80 to -10
        #[arg(allow_negative_numbers = true)]
        dbov: i8,
    },
    /// How loud one person is heard
    Volume {
        /// A name, the end of a PeerId, or all of it
        person: String,
        /// dB over what was sent, -40 to 12
        #[arg(allow_negative_numbers = true)]
        db: i8,
    },
    /// Do not hear one person, or do again
    Hush {
        /// A name, the end of a PeerId, or all of it
        person: String,
        #[arg(value_enum, default_value = "on")]
        on: Switch,
    },
    /// Words to compare aloud with everybody, or with one person: whoever reads you the same ones is whom you hear
    Words {
        /// A name, the end of a PeerId, or all of it
        person: Option<String>,
    },
    /// Remember that a person's key is right, after you compared words
    Verify {
        /// A name, the end of a PeerId, or all of it
        person: String,
        /// Take it back
        #[arg(long)]
        undo: bool,
    },
    /// Capture through another device, or from another source
    Input {
        /// As --input takes it
        name: String,
    },
    /// Play through another device, or into another sink
    Output {
        /// As --output takes it
        name: String,
    },
    /// The sound devices of this machine
    Devices,
    /// Say something in writing
    Say {
        /// Words; what stands in several arguments is joined with blanks
        #[arg(required = true)]
        text: Vec<String>,
    },
    /// Be called something else
    Name {
        /// The new name
        name: String,
    },
    /// Print events as they happen, one JSON object a line, until the call ends
    Events {
        /// Only events of these names
        names: Vec<String>,
    },
    /// Send one request as it stands in docs/scripting.md
    Send {
        /// {"command":...}
        request: String,
    },
    /// Leave the room
    Leave,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Switch {
    On,
    Off,
    Toggle,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Down,
    Up,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let hint = match &error {
            ClientError::Refused { hint, .. } => hint.clone(),
            ClientError::Broken(_) => "`hallway ctl calls` lists the calls that run.".to_owned(),
        };
        Self::other(error, &hint)
    }
}

/// Finds the call and asks it.
pub fn run(args: &CtlArgs) -> Result<ExitCode, Failure> {
    let mut found = find(args)?;
    if let Verb::Calls = args.verb {
        return list(&found, args.json);
    }
    let mut call = match (found.pop(), found.is_empty()) {
        (Some(call), true) => call,
        (None, _) => return Err(nobody(args)),
        (Some(last), false) => {
            let all = found.iter().chain([&last]);
            let all: Vec<_> = all.map(|call| format!("{} (pid {})", call.room, call.pid)).collect();
            return Err(Failure::usage(
                format!("several calls run here: {}", all.join(", ")),
                "Name one with --call ROOM or --call PID.",
            ));
        }
    };
    obey(&mut call, &args.verb, args.json)
}

fn find(args: &CtlArgs) -> Result<Vec<Call>, Failure> {
    let wanted = args.call.as_deref();
    if let Some(path) = wanted.filter(|wanted| wanted.contains('/')) {
        let call = Call::connect(&PathBuf::from(path)).map_err(|error| {
            Failure::other(format!("no call at {path}: {error}"), "`hallway ctl calls` lists those that run.")
        })?;
        return Ok(vec![call]);
    }
    let mut calls = ctl::calls(&ctl::folder(args.data_dir.named()));
    if let Some(wanted) = wanted {
        calls.retain(|call| call.room == wanted || call.pid.to_string() == wanted);
    }
    Ok(calls)
}

fn nobody(args: &CtlArgs) -> Failure {
    let what = match &args.call {
        Some(call) => format!("no call {call} runs here"),
        None => "no call runs here".to_owned(),
    };
    Failure::other(
        what,
        "Start one with `hallway join ROOM`; one that was given --data-dir or --ctl is found with the same --data-dir, \
         or with --call PATH.",
    )
}

fn list(calls: &[Call], as_json: bool) -> Result<ExitCode, Failure> {
    if as_json {
        let all: Vec<_> = calls
            .iter()
            .map(|call| json!({ "pid": call.pid, "room": call.room, "peer_id": call.peer_id, "socket": call.path }))
            .collect();
        return say(format_args!("{}\n", json!(all)));
    }
    let lines =
        calls.iter().map(|call| format!("{}  pid {}  {}\n", call.room, call.pid, call.path.display()));
    let lines: String = lines.collect();
    say(format_args!("{}", if lines.is_empty() { "no call runs here\n" } else { &lines }))
}

fn obey(call: &mut Call, verb: &Verb, as_json: bool) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Events { names } => return follow(call, names),
        Verb::Words { person } => return words(call, person.as_deref(), as_json),
        _ => {}
    }
    let request = request(verb, &mut || Ok(call.ask(json!({ "command": "snapshot" }))?))?;
    let answer = call.ask(request)?;
    if as_json || matches!(verb, Verb::Send { .. }) {
        return say(format_args!("{answer}\n"));
    }
    match verb {
        Verb::Status => say(format_args!("{}", status(&answer))),
        Verb::Devices => {
            let all = answer.as_array().into_iter().flatten();
            let lines: String = all.map(|device| format!("{}\n", shown(&device["name"]))).collect();
            say(format_args!("{lines}"))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// What the call is asked. `snapshot` tells how things stand, where that matters.
fn request(verb: &Verb, snapshot: &mut dyn FnMut() -> Result<Value, Failure>) -> Result<Value, Failure> {
    Ok(match verb {
        Verb::Verify { person, undo } => {
            json!({ "command": "verify", "peer_id": self::person(&snapshot()?, person)?["peer_id"], "on": !undo })
        }
        Verb::Calls | Verb::Status | Verb::Events { .. } | Verb::Words { .. } => {
            json!({ "command": "snapshot" })
        }
        Verb::Mute { on } => json!({ "command": "mute", "on": switched(snapshot, *on, "muted")? }),
        Verb::Deafen { on } => json!({ "command": "deafen", "on": switched(snapshot, *on, "deafened")? }),
        Verb::Speak { when } => json!({ "command": "speak", "when": Speak::from(*when) }),
        Verb::Profile { to } => json!({ "command": "profile", "to": Profile::from(*to) }),
        Verb::Delay { to } => json!({ "command": "delay", "to": Delay::from(*to) }),
        Verb::Echo { when } => json!({ "command": "processing", "echo_cancel": when }),
        Verb::Noise { when } => json!({ "command": "processing", "noise_suppression": when }),
        Verb::Gain { when } => json!({ "command": "processing", "gain": when }),
        Verb::Press { key } => json!({ "command": "press", "down": *key == Key::Down }),
        Verb::Threshold { dbov } => json!({ "command": "threshold", "dbov": dbov }),
        Verb::Volume { person, db } => {
            let person = self::person(&snapshot()?, person)?;
            json!({ "command": "volume", "peer_id": person["peer_id"], "volume_db": db })
        }
        Verb::Hush { person, on } => {
            let person = self::person(&snapshot()?, person)?;
            let on = match on {
                Switch::Toggle => person["muted"] != true,
                on => *on == Switch::On,
            };
            json!({ "command": "mute_person", "peer_id": person["peer_id"], "on": on })
        }
        Verb::Input { name } => json!({ "command": "device", "end": "input", "name": name }),
        Verb::Output { name } => json!({ "command": "device", "end": "output", "name": name }),
        Verb::Devices => json!({ "command": "devices" }),
        Verb::Say { text } => json!({ "command": "chat", "text": text.join(" ") }),
        Verb::Name { name } => json!({ "command": "name", "name": name }),
        Verb::Send { request } => {
            serde_json::from_str(request).ok().filter(Value::is_object).ok_or_else(|| {
                Failure::usage("a request is a JSON object", "docs/scripting.md lists all of them.")
            })?
        }
        Verb::Leave => json!({ "command": "leave" }),
    })
}

/// What a switch comes to, given what is set now.
fn switched(
    snapshot: &mut dyn FnMut() -> Result<Value, Failure>,
    to: Switch,
    name: &str,
) -> Result<bool, Failure> {
    Ok(match to {
        Switch::On => true,
        Switch::Off => false,
        Switch::Toggle => snapshot()?["controls"][name] != true,
    })
}

/// Somebody in the room, by name, by the end of the PeerId, or by all of it.
fn person(snapshot: &Value, wanted: &str) -> Result<Value, Failure> {
    let all = || snapshot["people"].as_array().into_iter().flatten();
    let id = |person: &Value| person["peer_id"].as_str()?.parse::<PeerId>().ok();
    let people = all().filter_map(|person| Some((id(person)?, person["name"].as_str())));
    let meant = typed::meant(wanted, snapshot["name"].as_str().unwrap_or_default(), people)
        .map_err(|unclear| Failure::usage(unclear, "`hallway ctl status` tells who is here."))?;
    Ok(all().find(|person| id(person) == Some(meant)).cloned().unwrap_or_default())
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| "?".to_owned(), text::clean_name)
}

/// A snapshot for people.
fn status(snapshot: &Value) -> String {
    let controls = &snapshot["controls"];
    let voice = match (controls["deafened"] == true, controls["muted"] == true, snapshot["speaking"] == true)
    {
        (true, ..) => "deafened",
        (_, true, _) => "muted",
        (_, _, true) => "microphone open",
        _ => "microphone closed",
    };
    let mut kind = if snapshot["open"] == true { "open room" } else { "private room" }.to_owned();
    if snapshot["single_use"] == true {
        kind += " for one guest";
    }
    if let Some(seconds) = snapshot["closes_in_s"].as_u64() {
        kind += &format!(", open for {seconds} s more");
    }
    let since = snapshot["since_start_ms"].as_f64().unwrap_or(0.0) / 1000.0;
    let mut out = format!(
        "{}, {kind}, {since:.0} s; you are {}, {voice}\n",
        shown(&snapshot["room"]),
        shown(&snapshot["name"])
    );
    let processing = &snapshot["processing"];
    out += &format!(
        "  {}, {} delay; processing takes {:.1} ms (echo {}, noise {}, gain {})\n",
        controls["profile"].as_str().unwrap_or("?"),
        controls["delay"].as_str().unwrap_or("?"),
        processing["delay_ms"].as_f64().unwrap_or(0.0),
        controls["processing"]["echo_cancel"].as_str().unwrap_or("?"),
        controls["processing"]["noise_suppression"].as_str().unwrap_or("?"),
        controls["processing"]["gain"].as_str().unwrap_or("?"),
    );
    for person in snapshot["people"].as_array().into_iter().flatten() {
        let id = person["peer_id"].as_str().unwrap_or_default();
        let tail = id.get(id.len().saturating_sub(6)..).unwrap_or(id);
        let ms =
            person["stats"]["mouth_to_ear_ms"].as_f64().map_or("–".to_owned(), |ms| format!("{ms:.0}"));
        let loss = person["stats"]["loss_pct"].as_f64().map_or("–".to_owned(), |loss| format!("{loss:.1}"));
        out += &format!(
            "  {} ({tail})  {}, {}; mouth to ear {ms} ms, loss {loss} %\n",
            shown(&person["name"]),
            shown(&person["state"]),
            person["path"].as_str().unwrap_or("no path"),
        );
    }
    out
}

/// Words to compare, a line for each person.
fn words(call: &mut Call, wanted: Option<&str>, as_json: bool) -> Result<ExitCode, Failure> {
    let snapshot = call.ask(json!({ "command": "snapshot" }))?;
    let people = match wanted {
        Some(wanted) => vec![person(&snapshot, wanted)?],
        None => snapshot["people"].as_array().cloned().unwrap_or_default(),
    };
    let mut lines = String::new();
    for person in &people {
        if as_json {
            let (peer_id, trust) = (&person["peer_id"], &person["trust"]);
            lines +=
                &format!("{}\n", json!({ "peer_id": peer_id, "words": person["compare"], "trust": trust }));
            continue;
        }
        let id = person["peer_id"].as_str().unwrap_or_default();
        let tail = id.get(id.len().saturating_sub(6)..).unwrap_or(id);
        let words = person["compare"].as_str().unwrap_or("not drawn yet");
        let trust = person["trust"].as_str().unwrap_or("unknown").replace('_', " ");
        lines += &format!("{} ({tail}), {trust}: {words}\n", shown(&person["name"]));
    }
    say(format_args!("{lines}"))
}

/// Prints events until the call ends or nobody reads them.
fn follow(call: &mut Call, names: &[String]) -> Result<ExitCode, Failure> {
    call.subscribe(names)?;
    let mut out = std::io::stdout().lock();
    while let Some(event) = call.next_line()? {
        if event.get("event").is_some() && writeln!(out, "{event}").and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
#[path = "equal_tests.rs"]
mod equal_tests;
