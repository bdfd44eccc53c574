//! One cell of the matrix: a server, two people, one call, and how it went.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::kind::Rung;
use super::{Kind, Lab, SERVER_V6, SERVERS_V4};
use crate::process::{Process, SOON};

/// Rooms and names are not what is tested here.
const ROOM: &str = "netlab";
/// How long the first one has to reach the server before the second one is launched.
const SETTLED: Duration = Duration::from_secs(12);

/// How a call went. Times count from the launch of the second one to the later of the two.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The rung that each of them was on in the end.
    pub rungs: [Option<Rung>; 2],
    /// When both heard the other.
    pub first_audio: Option<Duration>,
    /// When both were on their last rung.
    pub settled: Option<Duration>,
    /// Why the rung is what it is, in the first one's words.
    pub why: Option<String>,
}

impl Outcome {
    /// The rung of the call. Through a forwarder each has its own way to it, and the worse one counts; otherwise both must
    /// be on the same one.
    pub fn rung(&self) -> Option<Rung> {
        let (a, b) = (self.rungs[0]?, self.rungs[1]?);
        (a == b || a.min(b) >= Rung::Relayed).then_some(a.max(b))
    }
}

/// Starts the server; gives it and the arguments that lead to it.
pub fn serve(lab: &Lab) -> (Process, Vec<String>) {
    serve_at(lab, "server", &[format!("/ip4/{}", SERVERS_V4[0]), format!("/ip6/{SERVER_V6}")])
}

/// Starts a second server, at an address of its own.
pub fn serve_second(lab: &Lab) -> (Process, Vec<String>) {
    serve_at(lab, "second", &[format!("/ip4/{}", SERVERS_V4[1])])
}

fn serve_at(lab: &Lab, name: &str, ips: &[String]) -> (Process, Vec<String>) {
    let home = lab.scratch().join(name).display().to_string();
    let mut args = vec!["rendezvous".to_owned(), "--json".into(), "--data-dir".into(), home];
    for ip in ips {
        for end in ["/udp/4001/quic-v1", "/udp/443/quic-v1", "/tcp/443/tls/ws"] {
            args.extend(["--listen".into(), format!("{ip}{end}")]);
        }
    }
    let server = lab.hallway("net", name, args);
    let id = server.peer_id();
    let at = server.listen().into_iter().flat_map(|addr| ["--at".to_owned(), format!("{addr}/p2p/{id}")]);
    let at = at.collect();
    (server, at)
}

/// Starts a node on a host that hums and hears.
pub fn node(lab: &Lab, side: &str, at: &[String], more: &[&str]) -> Process {
    let home = lab.scratch().join(side).display().to_string();
    let fixed = ["join", ROOM, "--name", side, "--json", "--input", "tone:440", "--data-dir", &home];
    let output: &[&str] = if more.contains(&"--output") { &[] } else { &["--output", "null"] };
    let args = fixed
        .into_iter()
        .chain(output.iter().copied())
        .chain(at.iter().map(String::as_str))
        .chain(more.iter().copied());
    lab.hallway(&format!("{side}-host"), side, args)
}

/// Makes a call of this length between two kinds of networks.
///
/// # Errors
/// Where the laboratory cannot be built.
pub fn call(kinds: [Kind; 2], delay: Duration, length: Duration) -> Result<Outcome> {
    let lab = Lab::new(kinds, delay)?;
    let (mut server, at) = serve(&lab);
    let mut ana = node(&lab, "a", &at, &[]);
    let registered = |event: &Value| event["event"] == "rendezvous" && event["state"] == "registered";
    let _ = ana.find(SETTLED, registered);
    let mut ben = node(&lab, "b", &at, &["--for", &format!("{}ms", length.as_millis())]);
    ben.wait_exit(length + SOON);
    let launched = ben.named("joined").first().and_then(launch_of);
    ana.leave();
    server.leave();
    let outcome = launched.map_or_else(
        || Outcome { rungs: [None; 2], first_audio: None, settled: None, why: None },
        |launched| outcome(launched, &[ana.events(), ben.events()]),
    );
    if std::env::var_os("NETLAB_STORIES").is_some() {
        println!("{}{}{}", ana.story(), ben.story(), server.story());
    }
    Ok(outcome)
}

/// What `hallway doctor --json` says on one side of a network of this kind, with one server or two.
///
/// # Errors
/// Where the laboratory cannot be built.
pub fn doctor(kind: Kind, servers: usize) -> Result<Value> {
    doctor_in(&Lab::new([kind, Kind::Open], Duration::from_millis(5))?, servers)
}

/// What it says on side A.
///
/// # Errors
/// Where it says nothing.
pub fn doctor_in(lab: &Lab, servers: usize) -> Result<Value> {
    let (mut server, mut at) = serve(lab);
    let second = (servers > 1).then(|| serve_second(lab));
    at.extend(second.iter().flat_map(|(_, at)| at.iter().cloned()));
    let args = ["doctor", "--json", "--timeout", "4s"].into_iter().chain(at.iter().map(String::as_str));
    let mut doctor = lab.hallway("a-host", "doctor", args);
    doctor.wait_exit(SOON);
    server.leave();
    let said = doctor.stdout();
    serde_json::from_slice(&said).map_err(|error| anyhow::anyhow!("{error}: {}", doctor.story()))
}

/// When the program was launched, by an event that counts from there. Nanoseconds.
fn launch_of(event: &Value) -> Option<u64> {
    let since = Duration::from_secs_f64(event["since_start_ms"].as_f64()? / 1000.0);
    event["at_ns"].as_u64()?.checked_sub(u64::try_from(since.as_nanos()).ok()?)
}

fn outcome(launched: u64, stories: &[Vec<Value>; 2]) -> Outcome {
    let after = |event: &Value| {
        Duration::from_nanos(event["at_ns"].as_u64().unwrap_or_default().saturating_sub(launched))
    };
    let first_audio = stories
        .each_ref()
        .map(|events| events.iter().find(|event| event["event"] == "first_audio").map(after));
    let told = stories.each_ref().map(|events| {
        let told = events.iter().filter(|e| e["event"] == "peer" && e["state"] != "left");
        told.filter_map(|e| Some((Rung::named(e["path"].as_str()?)?, e))).collect::<Vec<_>>()
    });
    // The last figures say which path was in use to the end; the events since when.
    let rungs = stories.each_ref().map(|events| {
        let stats = events.iter().rev().find(|event| event["event"] == "stats")?;
        Rung::named(stats["path"].as_str()?)
    });
    let settled = [0, 1].map(|i| {
        let last = rungs[i]?;
        let tail = told[i].iter().rev().take_while(|(rung, _)| *rung == last).last()?;
        Some(after(tail.1))
    });
    let both = |of: [Option<Duration>; 2]| Some(of[0]?.max(of[1]?));
    let why = told[0].last().and_then(|(_, event)| event["reason"].as_str()).map(str::to_owned);
    Outcome { rungs, first_audio: both(first_audio), settled: both(settled), why }
}
