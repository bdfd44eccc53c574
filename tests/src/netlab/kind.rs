//! Kinds of networks: what their routers let through, and what two of them allow.

use std::fmt;

/// A network that somebody is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A public address, nothing in between.
    Open,
    /// NAT that keeps ports and lets everybody in at them ("full cone").
    Cone,
    /// NAT that keeps ports and lets in only who was written to, as most routers at home.
    Preserving,
    /// As [`Kind::Cone`], but only addresses that were written to are let in. Not in the table: to two people it is one of the
    /// others.
    Restricted,
    /// As [`Kind::Preserving`], and the router gives ports to who asks (UPnP).
    Upnp,
    /// NAT that gives another port, the same one towards everybody, and lets in only who was written to.
    Rewriting,
    /// NAT that gives another random port for each destination ("symmetric").
    Symmetric,
    /// A router at home behind the carrier's NAT, which rewrites ports.
    Double,
    /// NAT as at home, and no UDP passes.
    NoUdp,
    /// Nothing passes but TCP to port 443.
    Only443,
    /// IPv6 without NAT, behind a firewall that lets in only who was written to; no IPv4.
    Ipv6Only,
    /// NAT as at home over a link that carries packets of 1280 bytes at most.
    SmallMtu,
}

/// How two people can talk, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// One of them can simply be called.
    Direct,
    /// Both routers must be opened from inside at about the same time.
    Punched,
    /// By UDP through a forwarder.
    Relayed,
    /// By TCP through a forwarder.
    Tcp,
}

impl Kind {
    /// All of them, in the order of the table.
    pub const ALL: [Kind; 11] = [
        Kind::Open,
        Kind::Cone,
        Kind::Upnp,
        Kind::Preserving,
        Kind::Rewriting,
        Kind::Double,
        Kind::SmallMtu,
        Kind::Symmetric,
        Kind::Ipv6Only,
        Kind::NoUdp,
        Kind::Only443,
    ];

    /// Its name in tables and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Open => "open",
            Kind::Cone => "cone",
            Kind::Restricted => "restricted",
            Kind::Upnp => "upnp",
            Kind::Preserving => "preserving",
            Kind::Rewriting => "rewriting",
            Kind::Symmetric => "symmetric",
            Kind::Double => "double",
            Kind::NoUdp => "no-udp",
            Kind::Only443 => "only-443",
            Kind::Ipv6Only => "ipv6-only",
            Kind::SmallMtu => "mtu-1280",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it has IPv4.
    pub fn has_ipv4(self) -> bool {
        self != Kind::Ipv6Only
    }

    /// Whether it has IPv6.
    pub fn has_ipv6(self) -> bool {
        self == Kind::Ipv6Only
    }

    /// Whether its hosts have public IPv4 addresses.
    pub fn is_public_v4(self) -> bool {
        self == Kind::Open
    }

    fn udp_passes(self) -> bool {
        !matches!(self, Kind::NoUdp | Kind::Only443)
    }

    /// Whether a node there knows an address at which strangers get in. A full cone lets them in too, and nobody knows.
    fn has_open_address(self) -> bool {
        matches!(self, Kind::Open | Kind::Upnp)
    }

    /// The best that is possible between two networks. A symmetric NAT could be met by guessing ports; nobody does.
    pub fn best_with(self, other: Kind) -> Rung {
        if !self.udp_passes() || !other.udp_passes() {
            return Rung::Tcp;
        }
        if self.has_ipv4() != other.has_ipv4() {
            return Rung::Relayed;
        }
        if self.has_open_address() || other.has_open_address() || !self.has_ipv4() {
            return Rung::Direct;
        }
        let cone = self == Kind::Cone || other == Kind::Cone;
        if !cone && (self == Kind::Symmetric || other == Kind::Symmetric) {
            return Rung::Relayed;
        }
        Rung::Punched
    }

    /// What its router does, in nftables' words. `host` is the address inside.
    pub fn rules(self, host: &str) -> String {
        let outgoing = match self {
            Kind::NoUdp => "iifname lan meta l4proto udp drop; iifname lan accept;",
            Kind::Only443 => "iifname lan tcp dport 443 accept; iifname lan drop;",
            Kind::Restricted => "iifname lan add @written { udp sport . ip daddr }; iifname lan accept;",
            _ => "iifname lan accept;",
        };
        let incoming = match self {
            Kind::Open => "iifname wan accept;",
            Kind::Cone => "ct status dnat accept;",
            Kind::Restricted => "ct status dnat udp dport . ip saddr @written accept;",
            Kind::Upnp => "jump miniupnpd;",
            _ => "",
        };
        let source = match self {
            Kind::Open | Kind::Ipv6Only => String::new(),
            Kind::Symmetric => "oifname wan meta l4proto { tcp, udp } masquerade random,fully-random;".into(),
            // A range makes the kernel give one port of it to each inner port, and the same one towards everybody.
            Kind::Rewriting | Kind::Double => {
                "oifname wan meta l4proto { tcp, udp } masquerade to :40000-49999;".into()
            }
            _ => "oifname wan masquerade;".into(),
        };
        let destination = match self {
            Kind::Cone | Kind::Restricted => format!("iifname wan udp dport 1024-65535 dnat to {host};"),
            _ => String::new(),
        };
        // Where miniupnpd writes its own rules.
        let daemon = match self {
            Kind::Upnp => {
                "chain miniupnpd { }
                chain prerouting_miniupnpd { }
                chain postrouting_miniupnpd { }
                chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
                chain postrouting { type nat hook postrouting priority 99; jump postrouting_miniupnpd; }"
            }
            _ => "",
        };
        // What nobody asked for is dropped without an answer, as routers do: an answer would also leave an entry behind
        // that takes the port away from the host inside.
        format!(
            "table inet filter {{
                set written {{ type inet_service . ipv4_addr; flags dynamic, timeout; timeout 1m; }}
                {daemon}
                chain forward {{
                    type filter hook forward priority 0; policy drop;
                    ct state established,related accept; {outgoing} {incoming}
                }}
                chain input {{
                    type filter hook input priority 0; policy drop;
                    ct state established,related accept; iifname lan accept;
                    meta l4proto {{ icmp, ipv6-icmp }} accept;
                }}
            }}
            table ip nat {{
                chain prerouting {{ type nat hook prerouting priority -100; {destination} }}
                chain postrouting {{ type nat hook postrouting priority 100; {source} }}
            }}"
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Rung {
    /// As `path` in events.
    pub fn name(self) -> &'static str {
        match self {
            Rung::Direct => "direct",
            Rung::Punched => "punched",
            Rung::Relayed => "relayed",
            Rung::Tcp => "tcp",
        }
    }

    /// The rung of a `path` in events.
    pub fn named(name: &str) -> Option<Rung> {
        [Rung::Direct, Rung::Punched, Rung::Relayed, Rung::Tcp].into_iter().find(|rung| rung.name() == name)
    }
}
