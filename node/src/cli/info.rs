//! Commands that print something and are done: `invite`, `id`, `devices`, `man`.

use std::{
    io::{IsTerminal as _, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use libp2p::Multiaddr;

use super::{DataDir, Failure};
use crate::{
    audio, identity,
    invite::{Invite, RoomName},
    words,
};

#[derive(Args, Debug)]
pub struct InviteArgs {
    /// The room's name
    room: RoomName,
    /// A rendezvous server to name in the invite (repeatable)
    #[arg(long, value_name = "MULTIADDR", value_parser = super::join::server_address)]
    at: Vec<Multiaddr>,
    /// Draw it as a QR code too
    #[arg(long)]
    qr: bool,
    /// Nobody new is let in after this time (2h, 3days)
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires: Option<Duration>,
    /// For one guest of yours: you and whoever comes first, nobody else
    #[arg(long)]
    single_use: bool,
    #[command(flatten)]
    data_dir: DataDir,
}

#[derive(Args, Debug)]
pub struct IdArgs {
    #[command(flatten)]
    data_dir: DataDir,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub struct DevicesArgs {
    /// One JSON array
    #[arg(long)]
    json: bool,
}

/// Makes an invite with a fresh secret.
pub fn invite(args: &InviteArgs) -> Result<ExitCode, Failure> {
    let mut invite = Invite::generate(args.room.clone(), args.at.clone());
    if let Some(time) = args.expires {
        invite.terms = invite.terms.expiring_in(time);
    }
    if args.single_use {
        invite.terms.host = Some(load_identity(&args.data_dir.path()?)?.public().to_peer_id());
    }
    let text = invite.to_string();
    if !args.qr {
        return say(format_args!("{text}\n"));
    }
    let drawn = qr(&text).ok_or_else(|| {
        Failure::usage(
            "the invite is too long for a QR code",
            "Name fewer servers with --at, or leave --qr out.",
        )
    })?;
    say(format_args!("{text}\n\n{drawn}\n"))
}

/// As half blocks. Cameras want dark on light: on a terminal that is asked for, elsewhere a dark background is assumed.
fn qr(text: &str) -> Option<String> {
    use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // `Dark` is where the character has ink.
    let (dark, light) =
        if coloured { (Dense1x2::Dark, Dense1x2::Light) } else { (Dense1x2::Light, Dense1x2::Dark) };
    let drawn = code.render::<Dense1x2>().dark_color(dark).light_color(light).build();
    let line = |line: &str| if coloured { format!("\u{1b}[30;107m{line}\u{1b}[0m") } else { line.to_owned() };
    Some(drawn.lines().map(line).collect::<Vec<_>>().join("\n"))
}

/// Shows who this node is; makes the identity where there is none yet.
pub fn id(args: &IdArgs) -> Result<ExitCode, Failure> {
    let keypair = load_identity(&args.data_dir.path()?)?;
    let peer = keypair.public().to_peer_id();
    let line = words::safety_line(&peer);
    if args.json {
        return say(format_args!(
            "{}\n",
            serde_json::json!({ "peer_id": peer.to_string(), "safety_words": line })
        ));
    }
    say(format_args!(
        "{peer}\nsafety words: {line}\n\nCompare the words aloud: whoever shows the same ones holds the same key.\n"
    ))
}

/// Loads the identity, or makes the first one.
pub fn load_identity(dir: &Path) -> Result<libp2p::identity::Keypair, Failure> {
    identity::load_or_create(dir).map_err(|e| Failure::other(e, ""))
}

/// Lists what can be heard and spoken through.
pub fn devices(args: &DevicesArgs) -> Result<ExitCode, Failure> {
    let found = audio::list_devices();
    if args.json {
        let json = serde_json::to_string_pretty(&found).map_err(|e| Failure::other(e, ""))?;
        return say(format_args!("{json}\n"));
    }
    let mut text = String::new();
    for device in &found {
        let direction = match (device.input, device.output) {
            (true, true) => "in and out",
            (true, false) => "in",
            _ => "out",
        };
        let default = match (device.default_input, device.default_output) {
            (false, false) => "",
            _ => ", default",
        };
        let rate = device.rate_hz.map_or(String::new(), |rate| format!(", {rate} Hz"));
        let channels = device.channels.map_or(String::new(), |n| format!(", {n} ch"));
        // A Bluetooth device chose its name itself.
        let name = crate::text::clean_line(&device.name);
        text += &format!("{name}\n    {} ({direction}{default}{rate}{channels})\n", device.host);
    }
    if found.is_empty() {
        text += "No sound device found.\n";
    }
    text += "Without a card: --input file:PATH.wav | tone:HZ | silence, --output file:PATH.wav | null\n";
    say(format_args!("{text}"))
}

/// Writes a man page for every command.
pub fn man(dir: &Path, command: clap::Command) -> Result<ExitCode, Failure> {
    let hint = "Name a folder that exists and can be written.";
    clap_mangen::generate_to(command, dir)
        .map_err(|e| Failure::other(format!("no man pages in {}: {e}", dir.display()), hint))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints, and is done.
pub fn say(text: std::fmt::Arguments<'_>) -> Result<ExitCode, Failure> {
    let mut out = std::io::stdout().lock();
    out.write_fmt(text).and_then(|()| out.flush()).map_err(|e| Failure::other(e, ""))?;
    Ok(ExitCode::SUCCESS)
}
