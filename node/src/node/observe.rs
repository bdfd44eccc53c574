//! Asking servers how they see us, at several of their addresses from the one socket that peers will write to.
//!
//! The rendezvous stream tells it for the connection that it is on; that may be TCP, and one observer cannot tell a NAT
//! that gives each destination another port. So each QUIC address of a server is dialled once for this alone. libp2p's
//! identify tells the raw address on each connection (what it makes of it for others is not used: it puts our listening
//! port in place of the one seen). Then the connection is closed.

use std::net::SocketAddr;

use libp2p::{identify, swarm::ConnectionId};

use super::*;
use crate::nat::Mapping;

/// Observers asked at a time, in addition to the servers' own connections.
pub const MAX_OBSERVERS: usize = 6;
/// Waited for at a time, those included who let [`OBSERVER_PATIENCE`] pass.
pub const MAX_ASKED: usize = 4 * MAX_OBSERVERS;
/// One that has not answered after this time, handshake included, is hung up on.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(20);
/// They are asked again after a change of our addresses, but no sooner than this.
const OBSERVE_EVERY: Duration = Duration::from_secs(5);
/// One that has not answered after this time is asked anew: the network it was asked through may be gone.
const OBSERVER_PATIENCE: Duration = Duration::from_millis(500);

/// Who is being asked.
#[derive(Default)]
pub(super) struct Observers {
    asked: HashMap<ConnectionId, (SocketAddr, Instant)>,
    last: Option<Instant>,
}

impl Observers {
    /// Those who are not waited for any longer.
    fn given_up(&self, now: Instant) -> Vec<ConnectionId> {
        let old = |at: &Instant| now.saturating_duration_since(*at) >= GIVEN_UP_AFTER;
        self.asked.iter().filter(|(_, (_, at))| old(at)).map(|(id, _)| *id).collect()
    }

    /// Whether this one may be asked now.
    fn may_ask(&self, now: Instant, observer: SocketAddr) -> bool {
        let young = |at: &Instant| now.saturating_duration_since(*at) < OBSERVER_PATIENCE;
        let asked = || self.asked.values().filter(|(_, at)| young(at));
        self.asked.len() < MAX_ASKED
            && asked().count() < MAX_OBSERVERS
            && !asked().any(|(asked, _)| *asked == observer)
    }
}

impl Node {
    /// Asks every QUIC address of the servers that was not heard from yet, but the one that `tells` without being asked.
    pub(super) fn ask_observers(&mut self, tells: Option<SocketAddr>) {
        let now = Instant::now();
        if self.observers.last.is_none_or(|last| now.duration_since(last) >= OBSERVE_EVERY) {
            self.ask_those(now, |observations, observer| {
                tells != Some(observer) && !observations.heard_from(observer)
            });
        }
    }

    fn ask_those(&mut self, now: Instant, wanted: impl Fn(&Observations, SocketAddr) -> bool) {
        self.observers.last = Some(now);
        for id in self.observers.given_up(now) {
            self.swarm.close_connection(id);
            self.observer_failed(id);
        }
        for (peer, addr) in self.links.quic_addresses() {
            let Some(observer) = transport::to_socket_addr(&addr) else { continue };
            if !wanted(&self.observations, observer) || !self.observers.may_ask(now, observer) {
                continue;
            }
            let opts = match peer {
                Some(peer) => {
                    DialOpts::peer_id(peer).addresses(vec![addr]).condition(PeerCondition::Always).build()
                }
                None => DialOpts::unknown_peer_id().address(addr).build(),
            };
            let id = opts.connection_id();
            self.swarm.behaviour_mut().rendezvous.leave_alone(id);
            self.observers.asked.insert(id, (observer, now));
            if let Err(error) = self.swarm.dial(opts) {
                tracing::debug!(%observer, %error, "no observer");
                self.observer_failed(id);
            }
        }
    }

    /// What was seen is forgotten: everybody is asked, however short ago that was.
    pub(super) fn ask_observers_anew(&mut self) {
        self.observations.clear();
        self.ask_those(Instant::now(), |_, _| true);
    }

    /// There is another network: whoever saw us before may see us elsewhere now.
    pub(super) fn ask_observers_again(&mut self) {
        if self.observers.last.is_some() {
            self.ask_those(Instant::now(), |_, _| true);
        }
    }

    pub(super) fn observer_failed(&mut self, id: ConnectionId) {
        self.observers.asked.remove(&id);
        self.swarm.behaviour_mut().rendezvous.forget(id);
    }

    /// A peer told how it sees us. Only those who were asked are believed.
    pub(super) fn handle_identified(&mut self, id: ConnectionId, info: &identify::Info) {
        let Some((observer, _)) = self.observers.asked.remove(&id) else { return };
        self.swarm.close_connection(id);
        if let Some(seen) = transport::to_socket_addr(&info.observed_addr) {
            self.observed(observer, seen);
        }
    }

    /// A server sees us there.
    pub(super) fn observed(&mut self, observer: SocketAddr, seen: SocketAddr) {
        if self.observations.add(observer, seen) {
            tracing::debug!(%observer, %seen, "observed");
            self.addresses_changed();
            self.ask_router();
        }
    }

    /// How our ports are mapped in the family of this address.
    pub(super) fn mapping(&self, v6: bool) -> Mapping {
        let listening: Vec<SocketAddr> =
            self.listening.iter().filter_map(transport::to_socket_addr).collect();
        self.observations.mapping(v6, &listening)
    }

    /// Whether strangers cannot reach us over IPv4 unless we write to them first: there is a NAT, and nobody gave us a port
    /// of it.
    pub(super) fn is_behind_nat(&self) -> bool {
        self.config.announce.is_empty() && self.mapping(false).is_nat() && self.mapped().is_none()
    }

    /// A direct IPv4 path over the internet between two who are both behind NATs goes through holes in both.
    pub(super) fn mark_punched(&mut self, id: PeerId) {
        if !self.is_behind_nat() || !self.room.members().any(|m| m.peer == id && m.is_behind_nat()) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let used = peer.paths.mark_punched(|path| {
            let remote = path.remote();
            transport::ip_of(&remote).is_some_and(|ip| ip.is_ipv4())
                && scope_of(&remote) == Some(Scope::Public)
        });
        if used && matches!(peer.told, Some(PeerState::Connected | PeerState::PathChanged)) {
            self.tell_peer(id, PeerState::PathChanged, Some("both sides turned out to be behind NATs"));
        }
    }

    /// Where a member says that it can be reached, as far as it may be dialled: addresses of private networks only where
    /// it is seen from outside at the same address as we are, so that we are neighbours.
    pub(super) fn said_by(&self, id: &PeerId) -> Vec<Multiaddr> {
        let Some(member) = self.room.members().find(|member| member.peer == *id) else { return Vec::new() };
        let ours = self.observations.public_ips();
        let neighbours = member.addresses.iter().filter_map(transport::ip_of).any(|ip| ours.contains(&ip));
        let scope = if neighbours { Scope::Private } else { Scope::Public };
        let mut said = policy::usable(id, &member.addresses, scope);
        said.retain(|addr| transport::to_socket_addr(addr).is_some());
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observers_who_never_answer_are_bounded_and_given_up() {
        let (mut observers, start) = (Observers::default(), Instant::now());
        let observer = |n: usize| SocketAddr::from(([192, 0, 2, 1], n as u16));
        let mut now = start;
        for n in 0..1000 {
            if observers.may_ask(now, observer(n)) {
                observers.asked.insert(ConnectionId::new_unchecked(n), (observer(n), now));
                assert!(!observers.may_ask(now, observer(n)), "nobody is asked twice at a time");
            }
            now += Duration::from_millis(5);
        }
        assert_eq!(observers.asked.len(), MAX_ASKED);
        assert!(observers.given_up(now).is_empty());
        let later = start + GIVEN_UP_AFTER;
        assert_eq!(observers.given_up(later), [ConnectionId::new_unchecked(0)]);
        assert_eq!(observers.given_up(now + GIVEN_UP_AFTER).len(), MAX_ASKED);
    }
}
