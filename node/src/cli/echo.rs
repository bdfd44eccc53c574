//! `hallway echo`: a call with oneself. Two nodes on this machine, with all that a call has: QUIC, sealing, jitter buffers both
//! ways. The far one plays before a mirror; what it hears it says again.

use std::{
    io::Write as _,
    process::ExitCode,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    time::{Duration, Instant},
};

use clap::Args;
use libp2p::{Multiaddr, PeerId, identity::Keypair};
use tokio::sync::mpsc;

use super::{Failure, join, node_runtime};
use crate::{
    audio::{Audio, AudioConfig, InputSpec, InputStart, OutputSpec},
    controls::Controls,
    events::{self, Event, PeerStats, Stamped},
    invite::Invite,
    node::{self, Command, Node, Order},
    priority,
    trust::Trust,
    volumes::Volumes,
};

/// Where both nodes listen: nobody else can reach them.
const LOOPBACK: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
/// How long the two may take to meet.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Args, Debug)]
pub struct EchoArgs {
    /// default, a device's name, file:PATH.wav, tone:HZ or silence
    #[arg(long, default_value = "default", value_name = "SOURCE")]
    input: InputSpec,
    /// default, a device's name, file:PATH.wav or null
    #[arg(long, default_value = "default", value_name = "SINK")]
    output: OutputSpec,
    /// How long the far end keeps your words back (0s to 10s): 0s to feel the lag itself, with headphones
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    after: Duration,
    /// Time between two calls of the sound card, in milliseconds
    #[arg(long = "period-ms", default_value = "2.5", value_name = "MS", value_parser = join::period_frames)]
    period_ms: u32,
    /// End by itself after this time (20s, 2m)
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    leave_after: Option<Duration>,
    /// One JSON object a second
    #[arg(long)]
    json: bool,
}

/// What a second measured, ms. `None` before the clocks are compared.
#[derive(Debug, Default, serde::Serialize)]
struct Lag {
    /// From your mouth to the far ear.
    there_ms: Option<f64>,
    /// Kept back by the far end.
    kept_ms: f64,
    /// From the far mouth to your ear.
    back_ms: Option<f64>,
    /// From your mouth to your ear.
    echo_ms: Option<f64>,
}

/// Talks to itself until told to stop.
pub fn run(args: &EchoArgs) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    let period = args.period_ms;
    let sound = |error: crate::audio::Error| Failure {
        code: if error.is_device() { 4 } else { 2 },
        message: error.to_string(),
        hint: error.hint(),
    };
    let near = Audio::open(AudioConfig {
        input: args.input.clone(),
        output: args.output.clone(),
        channels: 1,
        period,
        // Nothing of a recording is lost while the two meet.
        input_start: InputStart::FirstPeer,
    })
    .map_err(sound)?;
    let far = Audio::mirror(period, 1, args.after).map_err(sound)?;
    let runtime = node_runtime()?;
    priority::hurried();
    let ended = runtime.block_on(talk(args, started, near, far));
    // A sound system that hangs while it opens a device must not keep the person.
    runtime.shutdown_background();
    ended
}

async fn talk(args: &EchoArgs, started: Instant, near: Audio, far: Audio) -> Result<ExitCode, Failure> {
    let invite = Invite::generate("echo".parse().map_err(|e| Failure::other(e, ""))?, Vec::new());
    let (keys, far_keys) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let far_id = far_keys.public().to_peer_id();
    let printer = Printer::start();

    let (far_events, mut far_told) = mpsc::channel(events::MAX_WAITING_EVENTS);
    let (far_orders, far_asked) = mpsc::channel(node::MAX_WAITING_ORDERS);
    let far = Node::start(config("echo", far_keys, &invite, started, Vec::new())?, far, far_events);
    let far = far.await.map_err(join::failed)?;
    let mut far = std::pin::pin!(far.run(far_asked));
    let listen = tokio::select! {
        ended = &mut far => return Err(gone(ended)),
        listen = ready(&mut far_told) => listen?,
    };

    let (events, mut told) = mpsc::channel(events::MAX_WAITING_EVENTS);
    let (orders, asked) = mpsc::channel::<Order>(node::MAX_WAITING_ORDERS);
    join::spawn_signals(orders.clone());
    let mut config = config("you", keys, &invite, started, vec![(far_id, listen)])?;
    config.leave_after = args.leave_after;
    let near = Node::start(config, near, events).await.map_err(join::failed)?;
    let mut near = std::pin::pin!(near.run(asked));

    if !args.json {
        let kept = humantime::format_duration(args.after);
        printer.print(format!(
            "Speak: you hear yourself {kept} after the lag of a call. Ctrl-C ends. Headphones help."
        ))?;
    }
    let mut lag = Lag { kept_ms: events::ms(args.after), ..Lag::default() };
    let mut echoes = Vec::new();
    loop {
        let event = tokio::select! {
            ended = &mut near => { ended.map_err(join::failed)?; break }
            ended = &mut far => return Err(gone(ended)),
            Some(stamped) = far_told.recv() => {
                if let Some(there) = figures(&stamped) {
                    lag.there_ms = there.mouth_to_ear_ms;
                }
                continue;
            }
            Some(Stamped { event, .. }) = told.recv() => event,
            () = tokio::time::sleep_until((started + PATIENCE).into()), if lag.there_ms.is_none() && echoes.is_empty() && lag.back_ms.is_none() => {
                return Err(Failure::other("the two ends did not meet", "Loopback must carry UDP; look at the firewall."));
            }
        };
        match event {
            Event::Stats(back) => {
                lag.back_ms = back.mouth_to_ear_ms;
                lag.echo_ms = lag.there_ms.zip(lag.back_ms).map(|(there, back)| there + lag.kept_ms + back);
                echoes.extend(lag.echo_ms);
                tell(&printer, args.json, &lag)?;
            }
            Event::Warning(_) | Event::Error(_) if !args.json => {
                events::sentence(&event).map_or(Ok(()), |line| printer.print(line))?;
            }
            _ => {}
        }
    }
    let _ = far_orders.try_send(Command::Leave.into());
    let _ = tokio::time::timeout(Duration::from_secs(2), &mut far).await;
    echoes.sort_by(f64::total_cmp);
    let median = echoes.get(echoes.len() / 2);
    if let Some(median) = median.filter(|_| !args.json) {
        let kept = lag.kept_ms;
        let _ = printer.print(format!(
            "You heard yourself {median:.0} ms after you spoke, {kept:.0} ms of it kept back."
        ));
    }
    printer.finish();
    match median {
        Some(_) => Ok(ExitCode::SUCCESS),
        None => Err(Failure::other("ended before anything was measured", "Let it run for a few seconds.")),
    }
}

fn tell(printer: &Printer, json: bool, lag: &Lag) -> Result<(), Failure> {
    match (json, lag.there_ms, lag.back_ms, lag.echo_ms) {
        (true, ..) => printer.print(serde_json::to_string(lag).map_err(|e| Failure::other(e, ""))?),
        (false, Some(there), Some(back), Some(echo)) => printer.print(format!(
            "  you hear yourself after {echo:.1} ms: there {there:.1}, kept back {:.0}, back {back:.1}",
            lag.kept_ms
        )),
        _ => Ok(()),
    }
}

/// Lines that wait for a terminal that is slow; further ones are lost.
const MAX_WAITING_LINES: usize = 64;

/// How long the last of them may take.
const LAST_LINE: Duration = Duration::from_millis(500);

/// Writes lines on a thread of its own: a terminal that hangs must not hold up the call.
struct Printer {
    lines: SyncSender<String>,
    /// Disconnected when the last line is written.
    written: Receiver<()>,
}

impl Printer {
    fn start() -> Self {
        let (lines, waiting) = sync_channel::<String>(MAX_WAITING_LINES);
        let (writing, written) = sync_channel(0);
        std::thread::spawn(move || {
            let _writing = writing;
            let mut out = std::io::stdout();
            while let Ok(line) = waiting.recv()
                && writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
            {}
        });
        Self { lines, written }
    }

    /// An error where nobody reads any more.
    fn print(&self, line: String) -> Result<(), Failure> {
        match self.lines.try_send(line) {
            Err(TrySendError::Disconnected(_)) => {
                Err(Failure::other("standard output is closed", "Nobody would read how late you are heard."))
            }
            Ok(()) | Err(TrySendError::Full(_)) => Ok(()),
        }
    }

    /// Waits for the last line, within reason.
    fn finish(self) {
        drop(self.lines);
        let _ = self.written.recv_timeout(LAST_LINE);
    }
}

fn figures(stamped: &Stamped) -> Option<&PeerStats> {
    match &stamped.event {
        Event::Stats(stats) => Some(stats),
        _ => None,
    }
}

async fn ready(told: &mut mpsc::Receiver<Stamped>) -> Result<Vec<Multiaddr>, Failure> {
    while let Some(stamped) = told.recv().await {
        if let Event::Ready { listen, .. } = stamped.event {
            return Ok(listen);
        }
    }
    Err(Failure::other("the far end did not start", "Run it again with -vv."))
}

fn gone(ended: Result<node::Ended, node::Error>) -> Failure {
    match ended {
        Err(error) => join::failed(error),
        Ok(_) => Failure::other("the far end left", "Run it again with -vv."),
    }
}

fn config(
    name: &str,
    keypair: Keypair,
    invite: &Invite,
    started: Instant,
    peers: Vec<(PeerId, Vec<Multiaddr>)>,
) -> Result<node::Config, Failure> {
    Ok(node::Config {
        keypair,
        name: name.to_owned(),
        invite: invite.clone(),
        rendezvous: Vec::new(),
        listen: vec![LOOPBACK.parse().map_err(|e| Failure::other(e, ""))?],
        announce: Vec::new(),
        path: node::PathChoice::Direct,
        tcp: false,
        map_port: false,
        lan: false,
        channels: 1,
        max_kbps: None,
        dtx: false,
        started,
        leave_after: None,
        require_peer: None,
        peers,
        wait_anyway: false,
        input: String::new(),
        output: String::new(),
        controls: Controls::default(),
        volumes: Volumes::default(),
        trust: Trust::default(),
        history: None,
    })
}
