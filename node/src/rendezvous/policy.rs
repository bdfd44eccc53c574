//! Which addresses that others told us of may be dialled, and how often. Pure.
//!
//! A record is signed by its peer, but that peer may name anybody's address, and a rendezvous may show the record to a
//! thousand nodes. So: a server on the internet cannot send us into our own network, and no address gets more than a
//! few handshakes from us, whoever names it.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use super::record::MAX_PEER_ADDRESSES;

/// Handshakes begun to one address and port in [`DIAL_WINDOW`].
pub const DIALS_PER_ADDRESS: usize = 3;

/// Handshakes begun to one IP address in [`DIAL_WINDOW`], whatever the ports: eight people behind one router.
pub const DIALS_PER_IP: usize = 24;

/// The window of both.
pub const DIAL_WINDOW: Duration = Duration::from_secs(10 * 60);

/// Dials remembered. At the bound further dials are refused until old ones leave the window.
pub const MAX_DIALS: usize = 4096;

/// How far an address reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// This machine.
    Loopback,
    /// A private or link-local network.
    Private,
    /// The internet.
    Public,
}

/// How far an IP address reaches; `None` where nobody may dial (unspecified, multicast, broadcast, reserved).
pub fn scope_of_ip(ip: IpAddr) -> Option<Scope> {
    match ip {
        IpAddr::V4(ip) => scope_of_v4(ip),
        IpAddr::V6(ip) => scope_of_v6(ip),
    }
}

fn scope_of_v4(ip: Ipv4Addr) -> Option<Scope> {
    let [first, second, ..] = ip.octets();
    if ip.is_loopback() {
        return Some(Scope::Loopback);
    }
    if first == 0 || ip.is_multicast() || first >= 240 {
        return None;
    }
    let carrier = first == 100 && (64..128).contains(&second); // RFC 6598
    Some(if ip.is_private() || ip.is_link_local() || carrier { Scope::Private } else { Scope::Public })
}

fn scope_of_v6(ip: Ipv6Addr) -> Option<Scope> {
    if ip.is_loopback() {
        return Some(Scope::Loopback);
    }
    if ip.is_unspecified() || ip.is_multicast() {
        return None;
    }
    let low = || Ipv4Addr::from_bits(ip.to_bits() as u32);
    let translated = ip.to_bits() >> 32 == 0x0064_ff9b << 64; // RFC 6052
    let compatible = ip.to_bits() >> 32 == 0; // RFC 4291 section 2.5.5.1
    if ip.to_ipv4_mapped().is_some() || translated || compatible {
        return scope_of_v4(low());
    }
    let site_local = ip.to_bits() >> 118 == 0xfec0 >> 6; // RFC 3879
    let private = ip.is_unique_local() || ip.is_unicast_link_local() || site_local;
    Some(if private { Scope::Private } else { Scope::Public })
}

/// How far an address reaches, by its first hop. `None` for names (what they resolve to is not known here), for
/// addresses without a port, and where nobody may dial. Memory addresses are of this machine.
pub fn scope_of(addr: &Multiaddr) -> Option<Scope> {
    let mut parts = addr.iter();
    let scope = match parts.next()? {
        Protocol::Ip4(ip) => scope_of_v4(ip)?,
        Protocol::Ip6(ip) => scope_of_v6(ip)?,
        Protocol::Memory(port) => return (port != 0).then_some(Scope::Loopback),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Udp(port) | Protocol::Tcp(port) if port != 0 => Some(scope),
        _ => None,
    }
}

/// Whether an address in somebody's record may be dialled, given how far the server that showed it is away. A server on
/// this machine may name every address, one in a private network all but loopback, one on the internet public ones.
pub fn dialable(addr: &Multiaddr, server: Scope) -> bool {
    scope_of(addr).is_some_and(|scope| scope >= server)
}

/// What of a peer's record may be dialled: at most [`MAX_PEER_ADDRESSES`], without repetition, none that names another
/// peer as its end. A trailing `/p2p/…` is taken off.
pub fn usable(peer: &PeerId, addresses: &[Multiaddr], server: Scope) -> Vec<Multiaddr> {
    let mut usable: Vec<Multiaddr> = Vec::new();
    for addr in addresses {
        let mut addr = addr.clone();
        if let Some(Protocol::P2p(end)) = addr.iter().last() {
            if end != *peer {
                continue;
            }
            addr.pop();
        }
        if dialable(&addr, server) && !usable.contains(&addr) {
            usable.push(addr);
        }
        if usable.len() >= MAX_PEER_ADDRESSES {
            break;
        }
    }
    usable
}

/// Counts the handshakes that we begin on others' word. Ask [`DialBudget::allow`] before each, and tell
/// [`DialBudget::succeeded`] of those that led to the peer we wanted.
#[derive(Debug, Default)]
pub struct DialBudget {
    dials: VecDeque<(Instant, Place)>,
    of_place: HashMap<Place, usize>,
    of_ip: HashMap<IpAddr, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    ip: IpAddr,
    udp: bool,
    port: u16,
}

impl DialBudget {
    /// Nothing dialled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether this address may be dialled now; counts it if so. What has no IP address and port may not; memory
    /// addresses, which stay inside the process, always may.
    pub fn allow(&mut self, now: Instant, addr: &Multiaddr) -> bool {
        while let Some((at, place)) = self.dials.front().copied() {
            if now.saturating_duration_since(at) < DIAL_WINDOW {
                break;
            }
            self.dials.pop_front();
            self.give_back(place);
        }
        if matches!(addr.iter().next(), Some(Protocol::Memory(_))) {
            return true;
        }
        let Some(place) = Place::of(addr) else { return false };
        let spent = |count: Option<&usize>, bound| count.is_some_and(|n| *n >= bound);
        if self.dials.len() >= MAX_DIALS
            || spent(self.of_place.get(&place), DIALS_PER_ADDRESS)
            || spent(self.of_ip.get(&place.ip), DIALS_PER_IP)
        {
            return false;
        }
        self.dials.push_back((now, place));
        let of_place = self.of_place.entry(place).or_default();
        *of_place = of_place.saturating_add(1);
        let of_ip = self.of_ip.entry(place.ip).or_default();
        *of_ip = of_ip.saturating_add(1);
        true
    }

    /// The peer we wanted answered there: its address is no third party's, and may be dialled again after a break.
    pub fn succeeded(&mut self, addr: &Multiaddr) {
        let Some(place) = Place::of(addr) else { return };
        let before = self.dials.len();
        self.dials.retain(|(_, p)| *p != place);
        for _ in self.dials.len()..before {
            self.give_back(place);
        }
    }

    fn give_back(&mut self, place: Place) {
        if let Some(n) = self.of_place.get_mut(&place) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                self.of_place.remove(&place);
            }
        }
        if let Some(n) = self.of_ip.get_mut(&place.ip) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                self.of_ip.remove(&place.ip);
            }
        }
    }
}

impl Place {
    fn of(addr: &Multiaddr) -> Option<Self> {
        let mut parts = addr.iter();
        let ip = match parts.next()? {
            Protocol::Ip4(ip) => IpAddr::V4(ip),
            Protocol::Ip6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
            _ => return None,
        };
        match parts.next()? {
            Protocol::Udp(port) => Some(Self { ip, udp: true, port }),
            Protocol::Tcp(port) => Some(Self { ip, udp: false, port }),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_have_the_scope_that_their_rfc_gives_them() {
        use Scope::{Loopback, Private, Public};
        for (ip, expected) in [
            ("127.0.0.1", Some(Loopback)),
            ("127.9.9.9", Some(Loopback)),
            ("10.0.0.1", Some(Private)),
            ("172.16.0.1", Some(Private)),
            ("172.32.0.1", Some(Public)),
            ("192.168.1.1", Some(Private)),
            ("169.254.1.1", Some(Private)),
            ("100.64.0.1", Some(Private)),
            ("100.128.0.1", Some(Public)),
            ("8.8.8.8", Some(Public)),
            ("0.0.0.0", None),
            ("0.1.2.3", None),
            ("224.0.0.251", None),
            ("255.255.255.255", None),
            ("240.0.0.1", None),
            ("::1", Some(Loopback)),
            ("::", None),
            ("::127.0.0.1", Some(Loopback)),
            ("::ffff:127.0.0.1", Some(Loopback)),
            ("::ffff:10.0.0.1", Some(Private)),
            ("::ffff:8.8.8.8", Some(Public)),
            ("64:ff9b::a00:1", Some(Private)),
            ("64:ff9b::808:808", Some(Public)),
            ("fe80::1", Some(Private)),
            ("fec0::1", Some(Private)),
            ("fd00::1", Some(Private)),
            ("ff02::fb", None),
            ("2a00::1", Some(Public)),
        ] {
            assert_eq!(scope_of_ip(ip.parse().unwrap()), expected, "{ip}");
        }
    }

    #[test]
    fn a_server_may_name_addresses_at_least_as_far_as_itself() {
        let (here, home, far) = (
            addr("/ip4/127.0.0.1/udp/4000/quic-v1"),
            addr("/ip4/10.1.1.1/tcp/4000"),
            addr("/ip6/2a00::1/udp/4000/quic-v1"),
        );
        let table = [
            (Scope::Public, [false, false, true]),
            (Scope::Private, [false, true, true]),
            (Scope::Loopback, [true, true, true]),
        ];
        for (server, expected) in table {
            assert_eq!([&here, &home, &far].map(|a| dialable(a, server)), expected, "{server:?}");
        }
    }

    #[test]
    fn names_ports_of_zero_and_bare_addresses_are_never_dialled() {
        for text in [
            "/dns4/localhost/udp/1/quic-v1",
            "/ip4/8.8.8.8",
            "/ip4/8.8.8.8/udp/0/quic-v1",
            "/p2p-circuit",
            "/memory/0",
        ] {
            assert!(!dialable(&addr(text), Scope::Loopback), "{text}");
        }
        assert!(!dialable(&Multiaddr::empty(), Scope::Loopback));
    }

    #[test]
    fn of_a_long_record_eight_addresses_are_used_and_none_that_ends_at_another_peer() {
        let (ana, ben) = (PeerId::random(), PeerId::random());
        let mut told: Vec<Multiaddr> =
            (1..20).map(|i| addr(&format!("/ip4/8.8.8.8/udp/{i}/quic-v1"))).collect();
        told.insert(0, addr(&format!("/ip4/9.9.9.9/udp/1/quic-v1/p2p/{ben}")));
        told.insert(0, addr(&format!("/ip4/8.8.8.8/udp/1/quic-v1/p2p/{ana}")));
        let usable = usable(&ana, &told, Scope::Public);
        assert_eq!(usable, told.get(2..10).unwrap());
    }

    #[test]
    fn an_address_is_dialled_three_times_in_ten_minutes_and_again_when_they_have_passed() {
        let (start, mut budget) = (Instant::now(), DialBudget::new());
        // One port, however it is dressed.
        let dresses =
            ["/ip4/8.8.8.8/udp/9/quic-v1", "/ip4/8.8.8.8/udp/9", "/ip6/::ffff:8.8.8.8/udp/9/quic-v1"];
        let mut allowed = 0;
        for _ in 0..5 {
            allowed += dresses.iter().filter(|a| budget.allow(start, &addr(a))).count();
        }
        assert_eq!(allowed, 3);
        assert!(!budget.allow(start + DIAL_WINDOW - Duration::from_secs(1), &addr(dresses[0])));
        assert!(budget.allow(start + DIAL_WINDOW, &addr(dresses[0])));
    }

    #[test]
    fn many_ports_of_one_victim_share_a_bound() {
        let (start, mut budget) = (Instant::now(), DialBudget::new());
        let dials =
            (1..2000).filter(|port| budget.allow(start, &addr(&format!("/ip4/8.8.8.8/udp/{port}/quic-v1"))));
        assert_eq!(dials.count(), DIALS_PER_IP);
    }

    #[test]
    fn a_peer_that_was_reached_may_be_dialled_again() {
        let (start, mut budget) = (Instant::now(), DialBudget::new());
        let home = addr("/ip4/8.8.8.8/udp/9/quic-v1");
        for _ in 0..40 {
            assert!(budget.allow(start, &home));
            budget.succeeded(&home);
        }
        assert_eq!(budget.of_ip.len() + budget.of_place.len() + budget.dials.len(), 0);
    }

    proptest! {
        #[test]
        fn the_budget_is_bounded_and_its_counts_agree(dials in proptest::collection::vec((any::<u16>(), 0u8..3, 1u16..4, any::<bool>()), 0..400)) {
            let (mut now, mut budget) = (Instant::now(), DialBudget::new());
            for (ms, ip, port, succeeded) in dials {
                now += Duration::from_millis(u64::from(ms));
                let addr = addr(&format!("/ip4/8.8.8.{ip}/udp/{port}/quic-v1"));
                if budget.allow(now, &addr) && succeeded {
                    budget.succeeded(&addr);
                }
                prop_assert!(budget.dials.len() <= MAX_DIALS);
                prop_assert_eq!(budget.of_place.values().sum::<usize>(), budget.dials.len());
                prop_assert_eq!(budget.of_ip.values().sum::<usize>(), budget.dials.len());
                prop_assert!(budget.of_place.values().all(|n| *n <= DIALS_PER_ADDRESS));
            }
        }
    }
}
