//! `hallway rendezvous`: a place where nodes find each other.

use std::{
    io::Write,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use futures::StreamExt;
use libp2p::{Multiaddr, multiaddr::Protocol, swarm::SwarmEvent};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{DataDir, Failure, info, server_runtime};
use crate::{
    clock, forward,
    node::{root_cause, swarm},
    rendezvous::{self, Scope, Server, ServerConfig, ServerEvent, scope_of},
    transport::{self, wss},
};

/// Connections that nobody uses are closed after this time; a watcher's stream keeps its own open.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections of all nodes together.
const MAX_CONNECTIONS: u32 = 20_000;

#[derive(Args, Debug)]
pub struct RendezvousArgs {
    /// Where to listen (repeatable), as /ip4/0.0.0.0/udp/4001/quic-v1 /ip4/0.0.0.0/tcp/4001 or
    /// /ip4/0.0.0.0/tcp/443/tls/ws
    #[arg(long, value_name = "MULTIADDR", value_parser = listen_address)]
    listen: Vec<Multiaddr>,
    /// Most that is passed on between members who cannot reach each other, of all rooms together, in kilobits a second;
    /// 0 passes nothing on
    #[arg(long, value_name = "KBPS", default_value_t = forward::Limits::default().total_kbps)]
    forward_rate: u32,
    /// The same for one room
    #[arg(long, value_name = "KBPS", default_value_t = forward::Limits::default().room_kbps)]
    forward_room_rate: u32,
    /// The same for one member, summed over those it is sent to
    #[arg(long, value_name = "KBPS", default_value_t = forward::Limits::default().sender_kbps)]
    forward_sender_rate: u32,
    /// Rooms for which something may be passed on at a time
    #[arg(long, value_name = "COUNT", default_value_t = forward::Limits::default().rooms)]
    forward_rooms: usize,
    /// Members of one of them
    #[arg(long, value_name = "COUNT", default_value_t = forward::Limits::default().members as u8,
        value_parser = clap::value_parser!(u8).range(1..))]
    forward_members: u8,
    /// Members of all of them
    #[arg(long, value_name = "COUNT", default_value_t = forward::Limits::default().sessions)]
    forward_sessions: usize,
    /// Certificate chain to show on /tls/ws addresses (PEM); without it one of our own, whose hash is in the address
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data_dir: DataDir,
}

/// Serves until SIGTERM, SIGHUP or Ctrl-C.
pub fn run(args: RendezvousArgs) -> Result<ExitCode, Failure> {
    let keypair = info::load_identity(&args.data_dir.path()?)?;
    server_runtime()?.block_on(serve(args, keypair))
}

async fn serve(args: RendezvousArgs, keypair: libp2p::identity::Keypair) -> Result<ExitCode, Failure> {
    let (behaviour, incoming) = rendezvous::Behaviour::server();
    let setup = swarm::Setup {
        certificate: certificate(&args)?,
        idle_timeout: IDLE_TIMEOUT,
        max_connections: MAX_CONNECTIONS,
        max_per_origin: swarm::SERVER_CONNECTIONS_PER_ORIGIN,
        ..swarm::Setup::plain(behaviour)
    };
    let me = keypair.public().to_peer_id();
    let (mut swarm, mut authenticated) = swarm::build(&keypair, setup).map_err(|e| Failure::other(e, ""))?;
    let listen = if args.listen.is_empty() { everywhere() } else { args.listen.clone() };
    for addr in &listen {
        swarm.listen_on(addr.clone()).map_err(|e| {
            Failure::other(
                format!("cannot listen on {addr}: {}", root_cause(&e)),
                "Choose another --listen address or port.",
            )
        })?;
    }
    let defaults = forward::Limits::default();
    let forward = forward::Limits {
        total_kbps: args.forward_rate,
        room_kbps: args.forward_room_rate,
        sender_kbps: args.forward_sender_rate,
        rooms: args.forward_rooms,
        members: args.forward_members.into(),
        sessions: args.forward_sessions,
        sessions_reserved: defaults.sessions_reserved.min(args.forward_sessions / 10),
        ..defaults
    };
    let own = listen.iter().filter_map(transport::ip_of).filter(|ip| !ip.is_unspecified()).collect();
    let config = ServerConfig { forward, dial_back_from: own, ..ServerConfig::default() };
    let (server, mut events) = Server::spawn(config, incoming);
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Failure::other(e, ""))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| Failure::other(e, ""))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(|e| Failure::other(e, ""))?;
    let mut addresses: Vec<Multiaddr> = Vec::new();
    // One line once every socket is up, or when those that come have come.
    let mut ready_at = Some(Instant::now() + Duration::from_millis(300));
    loop {
        if ready_at
            .is_some_and(|at| addresses.len() >= listen.len() && specific(&listen) || Instant::now() >= at)
        {
            ready_at = None;
            ready(args.json, &me, &addresses);
        }
        let wake = ready_at.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
        tokio::select! {
            event = swarm.select_next_some() => match event {
                SwarmEvent::NewListenAddr { address, .. } => addresses.push(address),
                SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listener"),
                _ => {}
            },
            Some(authenticated) = authenticated.recv() => server.forwarder().serve_connection(authenticated),
            Some(event) = events.recv() => tell(args.json, &event),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => break,
            () = tokio::time::sleep_until(wake.into()) => {}
        }
    }
    // Watchers hear a goodbye and look elsewhere; the swarm must be polled to carry it.
    let shutdown = server.shutdown();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = swarm.select_next_some() => {}
            Some(event) = events.recv() => tell(args.json, &event),
        }
    }
    while let Ok(event) = events.try_recv() {
        tell(args.json, &event);
    }
    Ok(ExitCode::SUCCESS)
}

/// What WebSocket over TLS needs, where some address asks for it.
fn certificate(args: &RendezvousArgs) -> Result<Option<wss::Certificate>, Failure> {
    if !args.listen.iter().any(wss::is_wss) {
        return Ok(None);
    }
    let certificate = match (&args.tls_cert, &args.tls_key) {
        (Some(chain), Some(key)) => wss::Certificate::from_files(chain, key),
        _ => wss::Certificate::own(&args.data_dir.path()?),
    };
    let certificate =
        certificate.map_err(|e| Failure::other(e, "Check --tls-cert, --tls-key and --data-dir."))?;
    Ok(Some(certificate))
}

fn ready(as_json: bool, me: &libp2p::PeerId, addresses: &[Multiaddr]) {
    if as_json {
        let listen: Vec<String> = addresses.iter().map(Multiaddr::to_string).collect();
        line(format_args!(
            "{}",
            json!({ "event": "ready", "at_ns": clock::now_ns(), "peer_id": me.to_string(), "listen": listen,
                    "version": env!("CARGO_PKG_VERSION") })
        ));
        return;
    }
    line(format_args!("rendezvous {me}. Nodes join with one of:"));
    for (addr, reach) in sorted(addresses) {
        line(format_args!("  hallway join ROOM --at {addr}/p2p/{me}{reach}"));
    }
}

/// Those that the most people can use first, with a word for who can; those of one network card alone are left out.
fn sorted(addresses: &[Multiaddr]) -> Vec<(&Multiaddr, &'static str)> {
    let needs_zone = |addr: &Multiaddr| matches!(addr.iter().next(), Some(Protocol::Ip6(ip)) if ip.is_unicast_link_local());
    let mut all: Vec<_> = addresses.iter().filter(|addr| !needs_zone(addr)).collect();
    all.sort_by_key(|addr| (std::cmp::Reverse(scope_of(addr)), transport::is_tcp(addr)));
    let reach = |addr: &Multiaddr| match scope_of(addr) {
        Some(Scope::Loopback) => "   (this machine)",
        Some(Scope::Private) => "   (this network)",
        Some(Scope::Public) | None => "",
    };
    all.into_iter().map(|addr| (addr, reach(addr))).collect()
}

fn tell(as_json: bool, event: &ServerEvent) {
    if as_json {
        let mut value = json!(event);
        if let Some(object) = value.as_object_mut() {
            object.insert("at_ns".into(), clock::now_ns().into());
        }
        line(format_args!("{value}"));
        return;
    }
    match event {
        ServerEvent::Registered { peer, of_peer, .. } => {
            line(format_args!("registered {peer} ({of_peer} of this peer)"));
        }
        ServerEvent::Expired { peer, left } => {
            line(format_args!("{} {peer}", if *left { "left" } else { "expired" }));
        }
        ServerEvent::Relayed { peer, began: true, .. } => line(format_args!("relaying for {peer}")),
        ServerEvent::Relayed { peer, datagrams, bytes, .. } => {
            line(format_args!("relayed {datagrams} datagrams, {bytes} bytes for {peer}"));
        }
        ServerEvent::Refused { peer, why } => line(format_args!("refused {peer}: {why:?}")),
        ServerEvent::Stats(_) => {}
    }
}

/// A closed or full standard output is no reason to stop serving.
fn line(text: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// True where every address names one interface, so that one address each will appear.
fn specific(listen: &[Multiaddr]) -> bool {
    listen.iter().all(|addr| crate::transport::ip_of(addr).is_some_and(|ip| !ip.is_unspecified()))
}

/// An address that a server can have.
fn listen_address(text: &str) -> Result<Multiaddr, String> {
    let form = "an address to listen on looks like /ip4/0.0.0.0/udp/4001/quic-v1 or /ip4/0.0.0.0/tcp/4001";
    let addr: Multiaddr = text.parse().map_err(|e| format!("{e}; {form}"))?;
    if crate::transport::is_dialable(&addr) { Ok(addr) } else { Err(form.into()) }
}

fn everywhere() -> Vec<Multiaddr> {
    let has_ipv6 = crate::transport::has_ipv6();
    ["/ip4/0.0.0.0/udp/4001/quic-v1", "/ip6/::/udp/4001/quic-v1", "/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"]
        .iter()
        .filter(|addr| addr.starts_with("/ip4") || has_ipv6)
        .filter_map(|addr| addr.parse().ok())
        .collect()
}
