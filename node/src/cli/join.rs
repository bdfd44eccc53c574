//! `hallway join`: from what was typed to a running node, and from its end to an exit code.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use clap::{Args, ValueEnum};
use libp2p::Multiaddr;
use tokio::sync::{mpsc, oneshot};

use super::{
    DataDir, Failure,
    choices::{DelayChoice, ProfileChoice, SpeakChoice},
    info, lines, node_runtime,
    relay::relay,
};
use crate::{
    audio::{
        self, Audio, AudioConfig, InputSpec, InputStart, OpeningDevices, OutputSpec, Switch, VoiceChoice,
    },
    controls::Controls,
    ctl,
    events::{self, Event, Format, Notice, Stamped},
    history::History,
    invite::Invite,
    node::{self, Command, Ended, Node, Order},
    priority, text, transport,
    trust::Trust,
    tui::{Screen, ScreenHandle, Theme, terminal, theme::Ground},
    volumes::Volumes,
};

#[derive(Args, Debug)]
pub struct JoinArgs {
    /// A room's name (kitchen) or an invite (hallway:kitchen?...)
    room: Invite,
    /// A rendezvous server (repeatable); with /p2p/PEERID at the end its identity is checked
    #[arg(long, value_name = "MULTIADDR", value_parser = server_address)]
    at: Vec<Multiaddr>,
    /// Whether `at` comes from the command line, and not from environment or configuration.
    #[arg(skip)]
    pub at_is_typed: bool,
    /// How others see you
    #[arg(long)]
    name: Option<String>,
    /// default, a device's name, file:PATH.wav, pipe:PATH, tone:HZ or silence
    #[arg(long, default_value = "default", value_name = "SOURCE")]
    input: InputSpec,
    /// default, a device's name, file:PATH.wav, pipe:PATH or null
    #[arg(long, default_value = "default", value_name = "SINK")]
    output: OutputSpec,
    /// When a file: input starts to play
    #[arg(long, default_value = "now", value_name = "WHEN", value_parser = ["now", "first-peer"])]
    input_start: String,
    /// Time between two calls of the sound card, in milliseconds. Less is quicker and costs more
    #[arg(long = "period-ms", default_value = "2.5", value_name = "MS", value_parser = period_frames)]
    period_ms: u32,
    /// Voice, or music: stereo, full band, no processing, shortest frames
    #[arg(long, value_enum, default_value = "talk")]
    profile: ProfileChoice,
    /// How much delay is taken for how much clarity, where the path makes one choose: quick (under about 110 ms, words may get
    /// lost), balanced (up to 190 ms), safe (every word, 220 ms and more). Nothing on a clean path
    #[arg(long, value_enum, default_value = "balanced", value_name = "WHAT")]
    delay: DelayChoice,
    /// When the microphone is open: always, while the key is held, or while you speak
    #[arg(long, value_enum, default_value = "always", value_name = "WHEN")]
    speak: SpeakChoice,
    /// The loudness from which --speak voice opens the microphone, dB below full scale
    #[arg(long, default_value = "-45", value_name = "DB", allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-80..=-10))]
    threshold: i8,
    /// Take what the loudspeaker plays out of what the microphone hears. auto: where the output is a loudspeaker, not where it is
    /// headphones, a file or null. Any of the three processings adds about 12 ms; none is ever done to music
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    echo_cancel: Switch,
    /// Take steady noise out of the voice: auto as for the echo, on or off
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    noise_suppression: Switch,
    /// Bring the voice to a common level: auto as for the echo, on or off
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    gain: Switch,
    /// Send only ten packets a second while you are quiet (discontinuous transmission). It saves most of the rate and of the work,
    /// and shows whoever watches the path when you speak
    #[arg(long, default_value = "off", value_name = "on|off", value_parser = ["on", "off"])]
    dtx: String,
    /// Leave by itself after this time (20s, 2m)
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    leave_after: Option<Duration>,
    /// Where to listen (repeatable); by default every interface, IPv4 and IPv6, on a free port
    #[arg(long, value_name = "MULTIADDR", value_parser = listen_address)]
    listen: Vec<Multiaddr>,
    /// Tell others this address instead of those listened on (repeatable), behind a forwarded port
    #[arg(long, value_name = "MULTIADDR")]
    announce: Vec<Multiaddr>,
    /// Which rung of the path ladder may be used
    #[arg(long, value_enum, default_value = "auto")]
    path: PathChoice,
    /// Never use TCP, neither towards servers nor for voice
    #[arg(long)]
    no_tcp: bool,
    /// Do not ask the router for a port (UPnP, PCP, NAT-PMP)
    #[arg(long)]
    no_port_map: bool,
    /// Most that this node may send over UDP to everybody together, IP headers included, in kilobits a second
    #[arg(long, value_name = "KBPS")]
    max_rate: Option<u32>,
    /// End with code 3 where nobody came within --timeout
    #[arg(long)]
    require_peer: bool,
    /// How long --require-peer waits
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Wait here although others in a room of this name use another secret
    #[arg(long)]
    wait: bool,
    /// Keep what is said in writing in this file (mode 0600), one JSON object a line
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// The control socket: auto, off, or a path
    #[arg(long, value_name = "WHERE", default_value = "auto")]
    ctl: ctl::Place,
    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
    /// No screen and no keyboard: plain lines only. Implied where standard output is no terminal
    #[arg(long)]
    headless: bool,
    /// Lines instead of the screen, with commands typed as lines: for screen readers and simple terminals
    #[arg(long)]
    plain: bool,
    /// What the screen's colours are for; auto suits both
    #[arg(long, value_enum, default_value = "auto", value_name = "GROUND")]
    theme: Ground,
    #[command(flatten)]
    data_dir: DataDir,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum PathChoice {
    Auto,
    Direct,
    Relay,
    Tcp,
}

/// Joins, talks, leaves.
pub fn run(args: JoinArgs) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    if args.room.terms.is_over(SystemTime::now()) {
        return Err(Failure {
            code: 5,
            message: "this invite's time is over".into(),
            hint: "Ask for another one; if it should still be good, check this machine's clock.".into(),
        });
    }
    let name = text::clean_name(&args.name.clone().unwrap_or_else(default_name));
    check_standard_streams(&args)?;
    let history = open_history(&args, &name)?;
    let (shown, happened) = mpsc::channel(events::MAX_WAITING_EVENTS);
    let (commands, orders) = mpsc::channel(node::MAX_WAITING_ORDERS);
    // What is heard goes to standard output; words for people go beside it.
    let on_stderr = matches!(&args.output, OutputSpec::Pipe(pipe) if pipe.is_standard());
    let piped_in = matches!(&args.input, InputSpec::Pipe(pipe) if pipe.is_standard());
    let wants_screen = !(args.json || args.headless || args.plain || piped_in) && terminal::is_usable();
    // First of all, so that the person sees something while sound and network come up.
    let face = if wants_screen {
        let screen = Screen {
            room: args.room.room.to_string(),
            open_room: args.room.is_open(),
            me: name.clone(),
            sound: (args.input.to_string(), args.output.to_string()),
            started,
            theme: Theme::from_env(args.theme),
        };
        let open = screen.open(happened, commands.clone());
        Face::Screen(open.map_err(|e| Failure::other(format!("no screen: {e}"), "Try --plain."))?)
    } else {
        let format = if args.json { Format::Json } else { Format::Plain };
        // In the background of a shell whoever reads the terminal is stopped.
        let person = args.plain || std::io::stdout().is_terminal();
        let keyboard = format == Format::Plain
            && !args.headless
            && !piped_in
            && person
            && std::io::stdin().is_terminal();
        if keyboard {
            let orders = commands.clone();
            std::thread::spawn(move || lines::read(&orders));
        }
        let (done, printed) = oneshot::channel();
        std::thread::spawn(move || {
            print(happened, format, on_stderr);
            let _ = done.send(());
        });
        Face::Lines(printed)
    };
    let data_dir = args.data_dir.path()?;
    let keypair = info::load_identity(&data_dir)?;
    let music = args.profile == ProfileChoice::Music;
    let channels: u8 = if music { 2 } else { 1 };
    let audio = AudioConfig {
        input: args.input.clone(),
        output: args.output.clone(),
        channels: channels.into(),
        period: args.period_ms,
        input_start: if args.input_start == "first-peer" { InputStart::FirstPeer } else { InputStart::Now },
    };
    // Devices are opened while the node finds the others.
    let (audio, devices) = Audio::begin(audio).map_err(without_sound)?;
    // What is named with the room is used; with nothing named the configured servers are, and the local network.
    let is_named = args.at_is_typed || !args.room.rendezvous.is_empty();
    let at: &[Multiaddr] = if args.at_is_typed || !is_named { &args.at } else { &[] };
    let mut named: Vec<Multiaddr> = at.iter().chain(&args.room.rendezvous).cloned().collect();
    let some_named = !named.is_empty();
    // On a path that is to be direct nothing is gained by the last way out of a closed network.
    let forbidden = |addr: &Multiaddr| {
        args.no_tcp && transport::is_tcp(addr)
            || args.path == PathChoice::Direct && transport::wss::is_wss(addr)
    };
    named.retain(|addr| !forbidden(addr));
    if some_named && named.is_empty() {
        return Err(Failure::usage(
            "every rendezvous server named is reached over TCP only, and that is forbidden here",
            "Name a /udp/…/quic-v1 address with --at, or leave out --no-tcp or --path direct.",
        ));
    }
    let through_server = matches!(args.path, PathChoice::Relay | PathChoice::Tcp);
    if through_server && named.is_empty() {
        return Err(Failure::usage(
            "--path relay and --path tcp need a server that passes voice on",
            "Name one with --at, or use an invite that names one.",
        ));
    }
    // Who hides behind a server neither listens nor announces.
    let listen = match args.listen {
        _ if through_server => Vec::new(),
        listen if listen.is_empty() => everywhere(),
        listen => listen,
    };
    let config = node::Config {
        keypair,
        name,
        lan: !is_named && !through_server,
        rendezvous: named,
        invite: args.room,
        listen,
        announce: args.announce,
        path: match args.path {
            PathChoice::Auto => node::PathChoice::Auto,
            PathChoice::Direct => node::PathChoice::Direct,
            PathChoice::Relay => node::PathChoice::Relay,
            PathChoice::Tcp => node::PathChoice::Tcp,
        },
        tcp: !args.no_tcp,
        map_port: !args.no_port_map,
        channels,
        max_kbps: args.max_rate,
        dtx: args.dtx == "on",
        started,
        leave_after: args.leave_after,
        require_peer: args.require_peer.then_some(args.timeout),
        peers: Vec::new(),
        wait_anyway: args.wait,
        input: args.input.to_string(),
        output: args.output.to_string(),
        controls: Controls {
            processing: VoiceChoice {
                echo: args.echo_cancel,
                noise: args.noise_suppression,
                gain: args.gain,
            },
            profile: args.profile.into(),
            delay: args.delay.into(),
            speak: args.speak.into(),
            threshold_dbov: args.threshold,
            ..Controls::default()
        },
        history: args.history.clone(),
        volumes: Volumes::load(&data_dir),
        trust: Trust::load(&data_dir),
    };
    let socket = args.ctl.path(args.data_dir.named());
    let wires = Wires { shown, commands, orders, face, history, socket };
    let runtime = node_runtime()?;
    // This thread becomes the network's: what it reads late is heard late.
    priority::hurried();
    let ended = runtime.block_on(talk(config, audio, devices, wires));
    // A sound system that hangs while it opens a device must not keep the person.
    runtime.shutdown_background();
    ended
}

/// How the person is spoken to.
enum Face {
    Screen(ScreenHandle),
    /// Told when the last line is printed.
    Lines(oneshot::Receiver<()>),
}

/// What connects the node with the person and with other programs.
struct Wires {
    /// Events for the person.
    shown: mpsc::Sender<Stamped>,
    commands: mpsc::Sender<Order>,
    orders: mpsc::Receiver<Order>,
    face: Face,
    history: Option<History>,
    /// Where the control socket is to be.
    socket: Option<PathBuf>,
}

async fn talk(
    config: node::Config,
    audio: Audio,
    devices: OpeningDevices,
    wires: Wires,
) -> Result<ExitCode, Failure> {
    let Wires { shown, commands, orders, face, history, socket } = wires;
    let (events, told) = mpsc::channel(events::MAX_WAITING_EVENTS);
    spawn_signals(commands.clone());
    let hub = ctl::Hub::default();
    let control = socket.and_then(|path| match ctl::Socket::open(&path) {
        Ok(socket) => Some(socket),
        Err(error) => {
            let message = format!("no control socket at {}: {error}.", path.display());
            let hint =
                "The call goes on without; `--ctl PATH` names another place, `--ctl off` asks for none."
                    .into();
            let _ = events.try_send(Stamped::now(Event::Warning(Notice { code: "control", message, hint })));
            None
        }
    });
    let greeting = ctl::Greeting {
        room: config.invite.room.to_string(),
        peer_id: config.keypair.public().to_peer_id().to_string(),
    };
    let serving = control.map(|socket| tokio::spawn(socket.serve(greeting, hub.clone(), commands.clone())));
    let relaying = tokio::spawn(relay(told, shown, hub, history));
    let node = Node::start(config, audio, events).await.map_err(failed)?;
    if let Face::Screen(screen) = &face {
        screen.show_levels(node.meters());
    }
    let leave = commands.clone();
    let (refuse, mut refused) = oneshot::channel();
    tokio::spawn(async move {
        if let Ok(Err(error)) = tokio::task::spawn_blocking(|| devices.wait()).await {
            let _ = refuse.send(error);
            let _ = leave.send(Command::Leave.into()).await;
        }
    });
    let ended = node.run(orders).await.map_err(failed)?;
    drop(commands);
    if let Some(serving) = serving {
        serving.abort();
    }
    // The last event has been passed on when this ends.
    let _ = tokio::time::timeout(Duration::from_millis(500), relaying).await;
    match face {
        Face::Screen(screen) => {
            let (farewell, complaints) = screen.close();
            let mut out = std::io::stdout();
            let _ = farewell.map(|line| writeln!(out, "{line}"));
            complaints.iter().for_each(|line| drop(writeln!(std::io::stderr(), "{line}")));
        }
        Face::Lines(printed) => {
            // The printer ends with the last event; a reader that does not read must not keep us.
            let _ = tokio::time::timeout(Duration::from_millis(500), printed).await;
        }
    }
    if let Ok(error) = refused.try_recv() {
        return Err(without_sound(error));
    }
    let code = match ended {
        Ended::Left => 0,
        Ended::NoPeer { .. } => 3,
        Ended::Refused { .. } => 5,
    };
    match ended.notice() {
        Some(Notice { message, hint, .. }) => Err(Failure { code, message, hint }),
        None => Ok(ExitCode::from(code)),
    }
}

/// Standard input and output are one thing each.
fn check_standard_streams(args: &JoinArgs) -> Result<(), Failure> {
    let is_standard = |pipe: &audio::PipeSpec| pipe.is_standard();
    if matches!(&args.output, OutputSpec::Pipe(pipe) if is_standard(pipe)) {
        if args.json {
            return Err(Failure::usage(
                "with --json standard output is for events, and cannot carry sound",
                "Take the sound from a FIFO (--output pipe:PATH), or the events from `hallway ctl events`.",
            ));
        }
        if std::io::stdout().is_terminal() {
            return Err(Failure::usage("a terminal is no place for raw sound", "Pipe it into a program."));
        }
    }
    if matches!(&args.input, InputSpec::Pipe(pipe) if is_standard(pipe)) && std::io::stdin().is_terminal() {
        return Err(Failure::usage("no raw sound comes from a terminal", "Pipe it from a program."));
    }
    Ok(())
}

fn open_history(args: &JoinArgs, name: &str) -> Result<Option<History>, Failure> {
    let Some(path) = &args.history else { return Ok(None) };
    History::open(path, args.room.room.as_str(), name).map(Some).map_err(|error| {
        let message = format!("no history can be kept in {}: {error}", path.display());
        Failure::usage(message, "Name a file in a folder that you may write to.")
    })
}

fn without_sound(error: audio::Error) -> Failure {
    Failure { code: if error.is_device() { 4 } else { 2 }, message: error.to_string(), hint: error.hint() }
}

pub(super) fn failed(error: node::Error) -> Failure {
    match &error {
        node::Error::Listen { .. } => Failure::other(error, "Choose another --listen address or port."),
        node::Error::Rendezvous(_) => {
            Failure::usage(error, "An address looks like /ip4/192.0.2.1/udp/4001/quic-v1/p2p/PEERID.")
        }
        _ => Failure::other(error, ""),
    }
}

/// Writes events as they come. Ends by itself when the output is closed: the call goes on without it.
fn print(mut happened: mpsc::Receiver<Stamped>, format: Format, on_stderr: bool) {
    while let Some(stamped) = happened.blocking_recv() {
        let written = match on_stderr {
            true => events::write(&mut std::io::stderr().lock(), format, &stamped),
            false => events::write(&mut std::io::stdout().lock(), format, &stamped),
        };
        if written.is_err() {
            return;
        }
    }
}

pub(super) fn spawn_signals(commands: mpsc::Sender<Order>) {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let commands = commands.clone();
        match signal(kind) {
            Ok(mut signal) => {
                tokio::spawn(async move {
                    while signal.recv().await.is_some() {
                        let _ = commands.send(Command::Leave.into()).await;
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "a signal cannot be caught"),
        }
    }
}

/// A period in milliseconds, as frames.
pub(super) fn period_frames(text: &str) -> Result<u32, String> {
    let (least, most) = (f64::from(audio::MIN_PERIOD), f64::from(audio::MAX_PERIOD));
    let frames = text.parse::<f64>().map_err(|e| e.to_string())? * 48.0;
    if (least..=most).contains(&frames.round()) {
        return Ok(frames.round() as u32);
    }
    Err(format!("choose {:.1} to {:.0} ms; 2.5 is the default", least / 48.0, most / 48.0))
}

/// An address that voice can come to.
fn listen_address(text: &str) -> Result<Multiaddr, String> {
    let addr: Multiaddr = text.parse().map_err(|e| format!("{e}; {LISTEN_FORM}"))?;
    transport::to_socket_addr(&addr)
        .map(|_| addr)
        .ok_or_else(|| format!("cannot listen there: {LISTEN_FORM}"))
}

const LISTEN_FORM: &str = "voice comes over QUIC, at an address like /ip4/0.0.0.0/udp/0/quic-v1";

/// An address that a rendezvous server can have.
pub fn server_address(text: &str) -> Result<Multiaddr, String> {
    let addr: Multiaddr = text.parse().map_err(|e| format!("{e}; {SERVER_FORM}"))?;
    if transport::is_dialable(&addr) { Ok(addr) } else { Err(SERVER_FORM.into()) }
}

const SERVER_FORM: &str = "a server's address looks like /ip4/192.0.2.1/udp/4001/quic-v1/p2p/PEERID or /dns4/NAME/tcp/4001/p2p/PEERID";

fn everywhere() -> Vec<Multiaddr> {
    let has_ipv6 = transport::has_ipv6();
    ["/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::/udp/0/quic-v1"]
        .iter()
        .filter(|addr| addr.starts_with("/ip4") || has_ipv6)
        .filter_map(|addr| addr.parse().ok())
        .collect()
}

fn default_name() -> String {
    std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "somebody".into())
}
