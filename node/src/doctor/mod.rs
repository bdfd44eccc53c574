//! `hallway doctor`: what this machine's networks and sound allow, which rung of the ladder a call would use, and what
//! would improve it.
//!
//! `probe` gathers [`Facts`]; [`verdict`] judges them and is pure; this file says it in words.

mod filtering;
mod probe;

use std::{fmt::Write, time::Duration};

use libp2p::{Multiaddr, Swarm, identity::Keypair};
use serde::Serialize;
use tokio::sync::mpsc::Receiver;

use crate::{
    audio::DeviceInfo,
    events::display,
    nat::{Filtering, Mapping},
    node::swarm::{self, Behaviour, Setup},
    rendezvous::{self, Opener},
    transport::Authenticated,
};
pub use probe::{MAX_ADDRESSES, Options, examine};

/// How long sockets may take to be there.
const SOCKET_PATIENCE: Duration = Duration::from_millis(200);

/// Somebody whom nobody is to recognize: a swarm under an identity of its own, its connections, and what opens streams.
fn stranger() -> Result<(Swarm<Behaviour>, Receiver<Authenticated>, Opener), swarm::Error> {
    let (behaviour, opener) = rendezvous::Behaviour::client();
    let (swarm, authenticated) = swarm::build(&Keypair::generate_ed25519(), Setup::plain(behaviour))?;
    Ok((swarm, authenticated, opener))
}

/// What was found out. A figure that is not known is `null`.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // docs/events.md describes each
pub struct Facts {
    pub version: &'static str,
    pub ipv4: Family,
    pub ipv6: Family,
    pub router: Option<Router>,
    pub servers: Vec<Server>,
    pub rtt_ms: Option<f64>,
    pub jitter_ms: Option<f64>,
    /// Largest UDP payload that got through.
    pub mtu_bytes: Option<u16>,
    pub clock: Clock,
    pub sound: Vec<DeviceInfo>,
}

/// One IP family.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct Family {
    /// This machine's addresses, loopback and link-local ones aside.
    pub addresses: Vec<std::net::IpAddr>,
    /// Where servers see its port.
    pub seen_at: Vec<std::net::SocketAddr>,
    /// RFC 5780 section 4.3.
    pub mapping: Mapping,
    /// RFC 5780 section 4.4.
    pub filtering: Filtering,
}

/// What the router offers.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[allow(missing_docs)]
pub struct Router {
    pub upnp: bool,
    pub pcp: bool,
    pub nat_pmp: bool,
    /// The port that it gave for the time of the examination.
    pub external: Option<std::net::SocketAddrV4>,
}

/// One address of a server.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Server {
    #[serde(serialize_with = "display")]
    pub addr: Multiaddr,
    pub transport: Transport,
    /// `null`: it did not answer.
    pub connected_after_ms: Option<f64>,
    pub error: Option<String>,
}

/// How a server is reached at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Transport {
    Quic,
    Tcp,
    /// WebSocket over TLS over TCP.
    Wss,
}

/// The system's clock: rooms change their name at midnight UTC, and two members may be 10 min apart.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs)]
pub struct Clock {
    pub unix_s: u64,
    /// Not before this program was made, nor decades after.
    pub plausible: bool,
}

/// The rung that a call with somebody on an ordinary network would use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Rung {
    Direct,
    Punched,
    Relayed,
    Tcp,
    /// Only with people on the same network.
    Lan,
    None,
    /// No server was asked, or none over UDP.
    Unknown,
}

/// What follows from the facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Of a call.
    pub rung: Rung,
    /// Why this one.
    pub why: String,
    /// What would make it better, most useful first.
    pub improve: Vec<String>,
}

impl Family {
    /// Whether strangers are kept out.
    fn is_closed(&self) -> bool {
        matches!(self.filtering, Filtering::AddressDependent | Filtering::AddressAndPortDependent)
    }
}

impl Facts {
    fn answered(&self, transport: impl Fn(Transport) -> bool) -> Option<bool> {
        let of: Vec<&Server> = self.servers.iter().filter(|server| transport(server.transport)).collect();
        (!of.is_empty()).then(|| of.iter().any(|server| server.connected_after_ms.is_some()))
    }

    /// Whether UDP gets to a server and back; `None` where that was not tried.
    pub fn udp(&self) -> Option<bool> {
        self.answered(|transport| transport == Transport::Quic)
    }

    /// Whether TCP gets to a server; `None` where that was not tried.
    pub fn tcp(&self) -> Option<bool> {
        self.answered(|transport| transport != Transport::Quic)
    }

    /// Whether the router's port leads to this machine.
    fn has_port(&self) -> bool {
        self.router
            .and_then(|router| router.external)
            .is_some_and(|port| self.ipv4.seen_at.iter().any(|seen| seen.ip() == *port.ip()))
    }
}

/// Judges.
pub fn verdict(facts: &Facts) -> Verdict {
    let (rung, why) = rung(facts);
    Verdict { rung, why, improve: improve(facts, rung) }
}

fn rung(facts: &Facts) -> (Rung, String) {
    if facts.ipv4.addresses.is_empty() && facts.ipv6.addresses.is_empty() {
        return (Rung::None, "this machine has no network".into());
    }
    if facts.servers.is_empty() {
        return (
            Rung::Unknown,
            "without a rendezvous server nothing beyond this network can be examined".into(),
        );
    }
    match (facts.udp(), facts.tcp()) {
        (Some(true), _) => {}
        (Some(false), Some(true)) => return (Rung::Tcp, "UDP does not get through; TCP does".into()),
        (None, Some(true)) => {
            return (Rung::Unknown, "TCP gets through; no UDP address of a server was tried".into());
        }
        _ => return (Rung::Lan, "no server answers: only people on this network can be reached".into()),
    }
    let v4 = facts.ipv4.mapping;
    if v4 == Mapping::None && facts.ipv4.is_closed() {
        return (
            Rung::Punched,
            "a public IPv4 address, behind a firewall that lets in only who was written to; a hole can be \
             punched"
                .into(),
        );
    }
    if v4 == Mapping::None {
        return (Rung::Direct, "this machine has a public IPv4 address".into());
    }
    if facts.has_port() {
        return (Rung::Direct, "the router gives this machine a port".into());
    }
    if v4.is_symmetric() {
        return (
            Rung::Relayed,
            format!(
                "{}; only people without NAT, or with a port from their router, are reached directly",
                v4.in_words()
            ),
        );
    }
    if v4.is_nat() {
        let only = if v4 == Mapping::Some { "if it keeps one port towards everybody, " } else { "" };
        return (Rung::Punched, format!("{}; {only}a hole can be punched", v4.in_words()));
    }
    match facts.ipv6.mapping {
        Mapping::None => (Rung::Relayed, "IPv6 only: direct with people who have it too".into()),
        _ => (Rung::Relayed, "nobody could see this machine from outside".into()),
    }
}

fn improve(facts: &Facts, rung: Rung) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    let mut add = |wanted: bool, text: &str| {
        if wanted {
            list.push(text.to_owned());
        }
    };
    let (router, asked) = (facts.router.unwrap_or_default(), facts.router.is_some());
    add(
        facts.servers.is_empty() && rung == Rung::Unknown,
        "Name a rendezvous server: hallway doctor --at MULTIADDR.",
    );
    add(
        !facts.servers.is_empty() && facts.udp().is_none(),
        "Name a UDP address of the server too: /ip4/ADDRESS/udp/4001/quic-v1.",
    );
    add(rung == Rung::None, "Connect this machine to a network.");
    add(
        rung == Rung::Lan,
        "Check the server's address, and whether it runs; a firewall may drop everything.",
    );
    add(
        rung == Rung::Tcp,
        "Ask whoever runs this network to let UDP out: over TCP each lost packet delays voice.",
    );
    add(
        facts.ipv4.mapping == Mapping::None && facts.ipv4.is_closed(),
        "Let UDP in to this machine through the firewall, at a port of its own (--listen /ip4/0.0.0.0/udp/PORT/quic-v1).",
    );
    let natted = matches!(rung, Rung::Relayed | Rung::Punched) && facts.ipv4.mapping.is_nat();
    add(
        natted && asked && !(router.upnp || router.pcp || router.nat_pmp),
        "Switch UPnP or PCP on in the router, or forward a UDP port and tell it: --listen /ip4/0.0.0.0/udp/PORT/quic-v1 \
         --announce /ip4/PUBLIC-ADDRESS/udp/PORT/quic-v1.",
    );
    add(
        natted && router.external.is_some() && !facts.has_port(),
        "The router gives a port, but stands itself behind another NAT (the carrier's, or a second router).",
    );
    add(
        facts.ipv4.mapping == Mapping::Some,
        "Name a second address of a server: one alone cannot tell what kind of NAT this is.",
    );
    add(
        facts.ipv6.addresses.is_empty() && !matches!(rung, Rung::Direct | Rung::None | Rung::Unknown),
        "Switch IPv6 on: with it most NATs are out of the way.",
    );
    add(
        facts.tcp().is_none() && !facts.servers.is_empty(),
        "Name a /tcp/443/tls/ws address of the server too, for the day when UDP is blocked.",
    );
    add(
        facts.tcp() == Some(false) && facts.udp() == Some(true),
        "TCP to the server does not get through: no way out where UDP is blocked.",
    );
    add(
        facts.mtu_bytes.is_some_and(|mtu| mtu < 1252),
        "Packets here are small (a tunnel?): voice works, with more packets when copies are sent.",
    );
    add(
        facts.jitter_ms.is_some_and(|jitter| jitter > 10.0),
        "The way to the server jitters: a cable instead of Wi-Fi would take delay away.",
    );
    add(!facts.clock.plausible, "Set this machine's clock: rooms are found by the day.");
    add(!facts.sound.iter().any(|device| device.input), "No microphone was found.");
    add(!facts.sound.iter().any(|device| device.output), "No loudspeaker was found.");
    list
}

/// The report for people.
pub fn in_words(facts: &Facts, verdict: &Verdict) -> String {
    let mut text = String::from("network\n");
    let mut line = |name: &str, value: &str| {
        // Addresses come from invites, reasons from whoever answered.
        let _ = writeln!(text, "  {name:<12} {}", crate::text::clean_line(value));
    };
    for (name, family) in [("IPv4", &facts.ipv4), ("IPv6", &facts.ipv6)] {
        let mut value = listed(&family.addresses).unwrap_or_else(|| "none".into());
        if let Some(seen) = listed(&family.seen_at) {
            value += &format!("; seen from outside at {seen}");
        }
        line(name, &value);
        if family.mapping != Mapping::Unknown {
            line("", family.mapping.in_words());
        }
        if family.filtering != Filtering::Unknown {
            line("", family.filtering.in_words());
        }
    }
    let router = facts.router.unwrap_or_default();
    let spoken = [(router.upnp, "UPnP"), (router.pcp, "PCP"), (router.nat_pmp, "NAT-PMP")];
    let spoken: Vec<&str> = spoken.iter().filter(|(speaks, _)| *speaks).map(|(_, name)| *name).collect();
    let ports = match (spoken.is_empty(), router.external) {
        (true, None) if facts.router.is_none() => "not asked".to_owned(),
        (true, None) => "gives no ports (no UPnP, PCP or NAT-PMP)".to_owned(),
        (_, Some(port)) => format!("gave port {port} ({})", spoken.join(", ")),
        (false, None) => format!("speaks {} but gave no port", spoken.join(", ")),
    };
    line("router", &ports);
    let yes = |known: Option<bool>| match known {
        Some(true) => "gets through",
        Some(false) => "does not get through",
        None => "not tried",
    };
    line("UDP", yes(facts.udp()));
    line("TCP", yes(facts.tcp()));
    for server in &facts.servers {
        let value = match (server.connected_after_ms, &server.error) {
            (Some(after), _) => format!("answers after {after:.0} ms"),
            (None, Some(error)) => error.clone(),
            (None, None) => "no answer".to_owned(),
        };
        line("server", &format!("{}: {value}", server.addr));
    }
    if let (Some(rtt), Some(jitter)) = (facts.rtt_ms, facts.jitter_ms) {
        line("round trip", &format!("{rtt:.1} ms, jitter {jitter:.1} ms"));
    }
    if let Some(mtu) = facts.mtu_bytes {
        line("packets", &format!("up to {mtu} bytes get through"));
    }
    line("clock", if facts.clock.plausible { "plausible" } else { "wrong: the date cannot be right" });
    let names = |wanted: fn(&DeviceInfo) -> bool| {
        let names: Vec<&str> =
            facts.sound.iter().filter(|device| wanted(device)).map(|device| device.name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { crate::text::clean_line(&names.join(", ")) }
    };
    text.push_str("sound\n");
    let _ = writeln!(text, "  {:<12} {}", "microphones", names(|device| device.input));
    let _ = writeln!(text, "  {:<12} {}", "loudspeakers", names(|device| device.output));
    let call = match verdict.rung {
        Rung::Direct => "direct",
        Rung::Punched => "direct, through a punched hole",
        Rung::Relayed => "by a server's relay, where the other side is behind a NAT too",
        Rung::Tcp => "by a server's relay over TCP",
        Rung::Lan => "only on this network",
        Rung::None => "impossible",
        Rung::Unknown => "unknown",
    };
    let _ = writeln!(text, "a call would be {call}: {}", verdict.why);
    for advice in &verdict.improve {
        let _ = writeln!(text, "  - {advice}");
    }
    text
}

fn listed<T: ToString>(all: &[T]) -> Option<String> {
    (!all.is_empty()).then(|| all.iter().map(T::to_string).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(mapping: Mapping, udp: bool, tcp: bool) -> Facts {
        let server = |transport, answers: bool| Server {
            addr: "/ip4/192.0.2.1/udp/1/quic-v1".parse().unwrap(),
            transport,
            connected_after_ms: answers.then_some(20.0),
            error: None,
        };
        Facts {
            version: "1",
            ipv4: Family {
                addresses: vec!["192.168.1.2".parse().unwrap()],
                seen_at: vec!["8.8.8.8:5000".parse().unwrap()],
                mapping,
                filtering: Filtering::Unknown,
            },
            ipv6: Family::default(),
            router: Some(Router::default()),
            servers: vec![server(Transport::Quic, udp), server(Transport::Wss, tcp)],
            rtt_ms: None,
            jitter_ms: None,
            mtu_bytes: None,
            clock: Clock { unix_s: 0, plausible: true },
            sound: Vec::new(),
        }
    }

    #[test]
    fn the_rung_follows_from_the_network() {
        let rung = |mapping, udp, tcp| verdict(&facts(mapping, udp, tcp)).rung;
        assert_eq!(rung(Mapping::None, true, true), Rung::Direct);
        assert_eq!(rung(Mapping::EndpointIndependent, true, true), Rung::Punched);
        assert_eq!(rung(Mapping::AddressAndPortDependent, true, true), Rung::Relayed);
        assert_eq!(rung(Mapping::Unknown, false, true), Rung::Tcp);
        assert_eq!(rung(Mapping::Unknown, false, false), Rung::Lan);
    }

    #[test]
    fn a_firewall_without_nat_is_told_and_what_would_help() {
        let mut firewalled = facts(Mapping::None, true, true);
        firewalled.ipv4.filtering = Filtering::AddressAndPortDependent;
        let judged = verdict(&firewalled);
        assert_eq!(judged.rung, Rung::Punched);
        assert!(judged.improve[0].contains("through the firewall"), "{judged:?}");
        assert!(in_words(&firewalled, &judged).contains("only who was written to is let in"));
        firewalled.ipv4.filtering = Filtering::EndpointIndependent;
        assert_eq!(verdict(&firewalled).rung, Rung::Direct);
    }

    #[test]
    fn a_port_of_the_router_counts_only_where_servers_see_its_address() {
        let mut natted = facts(Mapping::AddressAndPortDependent, true, true);
        let router = |external: &str| {
            Some(Router { upnp: true, external: Some(external.parse().unwrap()), ..Router::default() })
        };
        natted.router = router("8.8.8.8:77");
        assert_eq!(verdict(&natted).rung, Rung::Direct);
        natted.router = router("100.64.0.7:77");
        let verdict = verdict(&natted);
        assert_eq!(verdict.rung, Rung::Relayed);
        assert!(verdict.improve[0].contains("behind another NAT"), "{verdict:?}");
    }

    #[test]
    fn nothing_is_said_of_what_was_not_asked() {
        let mut facts = facts(Mapping::EndpointIndependent, true, true);
        facts.router = None;
        let said = in_words(&facts, &verdict(&facts));
        assert!(said.contains("not asked") && !said.contains("Switch UPnP"), "{said}");
        facts.servers.remove(0);
        let judged = verdict(&facts);
        assert_eq!(judged.rung, Rung::Unknown);
        assert!(judged.improve[0].contains("UDP address"), "{judged:?}");
        facts.servers[0].error = Some("closed by peer: \u{1b}[2J".into());
        facts.servers[0].connected_after_ms = None;
        assert!(!in_words(&facts, &judged).contains('\u{1b}'));
    }

    #[test]
    fn without_a_server_it_says_what_to_name() {
        let mut alone = facts(Mapping::Unknown, false, false);
        alone.servers.clear();
        let verdict = verdict(&alone);
        assert_eq!(verdict.rung, Rung::Unknown);
        assert!(verdict.improve[0].contains("--at"), "{verdict:?}");
        assert!(in_words(&alone, &verdict).ends_with(".\n"));
    }
}
