//! Multiaddresses of QUIC sockets, both ways.

use std::net::{IpAddr, SocketAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};

/// `/ip4|ip6/…/udp/…/quic-v1[/p2p/…]` as a socket address; `None` for anything else.
pub fn to_socket_addr(addr: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = addr.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Protocol::Udp(port) = parts.next()? else { return None };
    let Protocol::QuicV1 = parts.next()? else { return None };
    parts.all(|part| matches!(part, Protocol::P2p(_))).then_some(SocketAddr::new(ip, port))
}

/// Whether an address has the shape of one that this version can reach: a host, then QUIC, TCP, or WebSocket over TLS over TCP,
/// then perhaps an identity.
pub fn is_dialable(addr: &Multiaddr) -> bool {
    use Protocol::{Dns, Dns4, Dns6, Dnsaddr, Ip4, Ip6, P2p, QuicV1, Tcp, Udp};
    let parts: Vec<Protocol<'_>> = addr.iter().filter(|part| !matches!(part, P2p(_))).collect();
    matches!(
        parts.as_slice(),
        [Dnsaddr(_)]
            | [Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_), Udp(_), QuicV1]
            | [Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_), Tcp(_)]
    ) || super::wss::is_wss(addr)
}

/// Whether an address is reached over TCP, in whatever wrapping.
pub fn is_tcp(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| matches!(part, Protocol::Tcp(_)))
}

/// The multiaddress of a QUIC socket.
pub fn to_multiaddr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(addr.ip().into()).with(Protocol::Udp(addr.port())).with(Protocol::QuicV1)
}

/// Whether something that listens there can have an address now: where IPv6 is off, or has nothing but the module loaded, there
/// is not even one of the machine's own.
pub fn may_have_address(addr: &Multiaddr) -> bool {
    match ip_of(addr) {
        Some(IpAddr::V6(ip)) if ip.is_unspecified() => {
            std::net::UdpSocket::bind((std::net::Ipv6Addr::LOCALHOST, 0)).is_ok()
        }
        _ => true,
    }
}

/// Whether this machine has IPv6 at all. Listening on every interface must not fail where it has not.
pub fn has_ipv6() -> bool {
    std::net::UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

/// The IP address a multiaddress starts with, whatever follows.
pub fn ip_of(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quic_address_survives_the_round_trip_in_both_families() {
        for text in ["127.0.0.1:4001", "[::1]:9"] {
            let socket: SocketAddr = text.parse().unwrap();
            assert_eq!(to_socket_addr(&to_multiaddr(socket)), Some(socket));
        }
    }

    #[test]
    fn an_address_that_leads_nowhere_is_told_from_one_that_may() {
        let id = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
        for text in ["/ip4/192.0.2.1/udp/1/quic-v1", "/ip6/::1/tcp/1", "/dns4/x/tcp/1", "/dnsaddr/x.example"]
        {
            assert!(is_dialable(&text.parse().unwrap()), "{text}");
            assert!(is_dialable(&format!("{text}/p2p/{id}").parse().unwrap()), "{text}");
        }
        for text in
            ["/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/1", "/dns4/x", "/memory/7", "/ip4/1.2.3.4/udp/1/quic"]
        {
            assert!(!is_dialable(&text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn other_transports_are_not_taken_for_quic() {
        for text in ["/ip4/127.0.0.1/tcp/4001", "/ip4/127.0.0.1/udp/4001", "/dns4/x/udp/1/quic-v1"] {
            assert_eq!(to_socket_addr(&text.parse().unwrap()), None, "{text}");
        }
    }
}
