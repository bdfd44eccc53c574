//! What is told of a peer's path beside its name: why this rung of the ladder and no better one, and when a better one is
//! tried next.

use super::*;
use crate::{
    events::{Outlook, PathKind},
    path::rung,
};

/// What decides which rung is possible.
#[derive(Clone, Copy)]
struct Facts {
    kind: PathKind,
    choice: PathChoice,
    /// Of the far end of a direct path.
    scope: Option<Scope>,
    v6: bool,
    /// Our NAT gives each destination another port.
    symmetric: bool,
    /// Nobody knows an address of the peer: it does not say any.
    hides: bool,
    /// A direct path has been dialled at least once.
    tried: bool,
    /// A server in use can be reached over UDP, as far as its addresses say.
    udp_offered: bool,
}

fn why(facts: Facts) -> &'static str {
    match facts.kind {
        PathKind::Direct if facts.scope.is_some_and(|scope| scope < Scope::Public) => {
            "both are on one network"
        }
        PathKind::Direct if facts.v6 => "IPv6 needs no address translation",
        PathKind::Direct => "one of the two can be called from outside",
        PathKind::Punched => "the NATs of both sides let a hole be punched",
        PathKind::Tcp if facts.choice == PathChoice::Tcp => "this node was told to use TCP only",
        PathKind::Tcp if !facts.udp_offered => "no UDP address of a server is known",
        PathKind::Tcp => "UDP does not get through to the server",
        PathKind::Relayed if facts.choice == PathChoice::Relay => {
            "this node was told to hide behind a server"
        }
        PathKind::Relayed if facts.hides => "the other side hides its address",
        PathKind::Relayed if !facts.tried => "no direct path has been tried yet",
        PathKind::Relayed if facts.symmetric => "the NAT here gives each destination another port",
        PathKind::Relayed => "what stands between lets no direct path through",
    }
}

impl Node {
    /// Why this peer's path is the one it is, and when a better one is tried.
    pub(super) fn outlook(&self, id: &PeerId, now: Instant) -> Outlook {
        let Some(peer) = self.peers.get(id) else { return Outlook::default() };
        let used = peer.paths.used();
        let said = self.room.members().find(|member| member.peer == *id).map(|member| &member.addresses);
        let hides = peer.addresses.is_empty() && peer.proven.is_empty() && said.is_none_or(Vec::is_empty);
        let path_why = used.as_ref().map(|path| {
            let remote = path.remote();
            why(Facts {
                kind: path.kind(),
                choice: self.config.path,
                scope: scope_of(&remote),
                v6: transport::ip_of(&remote).is_some_and(|ip| ip.is_ipv6()),
                symmetric: self.mapping(false).is_symmetric(),
                hides,
                tried: peer.has_dialled(),
                udp_offered: !self.links.quic_addresses().is_empty(),
            })
        });
        let better = used.as_ref().is_none_or(|path| rung(path.kind()) > 0);
        let direct = peer.next_attempt(now).filter(|_| self.config.path.direct() && !hides);
        let udp = used.as_ref().and_then(|path| self.udp_again(path.as_ref()));
        let next = [direct, udp].into_iter().flatten().min().filter(|_| better);
        Outlook { path_why, next_attempt_ms: next.map(|at| ms(at.saturating_duration_since(now))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rung_is_explained_by_what_kept_from_a_better_one() {
        let relayed = Facts {
            kind: PathKind::Relayed,
            choice: PathChoice::Auto,
            scope: None,
            v6: false,
            symmetric: false,
            hides: false,
            tried: true,
            udp_offered: true,
        };
        let symmetric = Facts { symmetric: true, ..relayed };
        assert!(why(symmetric).contains("another port"));
        assert!(why(relayed).contains("no direct path through"));
        assert!(why(Facts { tried: false, ..symmetric }).contains("tried yet"));
        assert!(why(Facts { hides: true, ..symmetric }).contains("hides"));
        assert!(why(Facts { choice: PathChoice::Relay, ..symmetric }).contains("told to hide"));
        let tcp = Facts { kind: PathKind::Tcp, ..relayed };
        assert!(why(tcp).contains("UDP does not get through"));
        assert!(why(Facts { udp_offered: false, ..tcp }).contains("no UDP address"));
        assert!(why(Facts { choice: PathChoice::Tcp, ..tcp }).contains("told to use TCP"));
        let direct = Facts { kind: PathKind::Direct, scope: Some(Scope::Public), ..relayed };
        assert!(why(direct).contains("called from outside"));
        assert!(why(Facts { v6: true, ..direct }).contains("IPv6"));
        assert!(why(Facts { scope: Some(Scope::Private), ..direct }).contains("one network"));
        assert!(why(Facts { kind: PathKind::Punched, ..direct }).contains("hole"));
    }
}
