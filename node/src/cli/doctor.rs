//! `hallway doctor`: examines, and says what it found.

use std::{io::Write, process::ExitCode, time::Duration};

use clap::Args;
use libp2p::Multiaddr;
use serde_json::json;

use super::{Failure, server_runtime};
use crate::{
    doctor::{self, Options},
    invite::Invite,
    transport,
};

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// An invite whose rendezvous servers are asked
    invite: Option<Invite>,
    /// An address of a rendezvous server (repeatable): two tell what kind of NAT there is
    #[arg(long, value_name = "MULTIADDR")]
    at: Vec<Multiaddr>,
    /// How long a server may take to answer
    #[arg(long, default_value = "6s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Do not ask the router for a port (UPnP, PCP, NAT-PMP)
    #[arg(long)]
    no_port_map: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Code 3 where servers were named and none answered.
pub fn run(args: DoctorArgs) -> Result<ExitCode, Failure> {
    if let Some(addr) = args.at.iter().find(|addr| !transport::is_dialable(addr)) {
        return Err(Failure::usage(
            format!("{addr} is no address of a rendezvous server"),
            "It looks like /ip4/192.0.2.1/udp/4001/quic-v1/p2p/PEERID.",
        ));
    }
    let invited = args.invite.map(|invite| invite.rendezvous).unwrap_or_default();
    let servers: Vec<Multiaddr> = args.at.into_iter().chain(invited).collect();
    let options = Options { servers, patience: args.timeout, map_port: !args.no_port_map };
    let facts = server_runtime()?.block_on(doctor::examine(&options)).map_err(|e| Failure::other(e, ""))?;
    let verdict = doctor::verdict(&facts);
    let text = if args.json {
        let mut value = json!(facts);
        if let Some(object) = value.as_object_mut() {
            object.insert("udp".into(), json!(facts.udp()));
            object.insert("tcp".into(), json!(facts.tcp()));
            object.insert("verdict".into(), json!(verdict));
        }
        format!("{value}\n")
    } else {
        doctor::in_words(&facts, &verdict)
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::other(e, ""))?;
    if facts.udp() != Some(true) && facts.tcp() != Some(true) && !facts.servers.is_empty() {
        return Err(Failure {
            code: 3,
            message: "no rendezvous server answers".into(),
            hint: "Check the addresses, and that the server runs.".into(),
        });
    }
    Ok(ExitCode::SUCCESS)
}
