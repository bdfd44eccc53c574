//! How a node meets others: who is said to be there, whom it dials, which path is kept, who is turned away.

use std::net::IpAddr;

use super::*;
use crate::{
    bottleneck::Bottleneck,
    forward::{Inlets, wire::FORWARD},
};

impl Node {
    pub(super) fn handle_rendezvous(&mut self, server: usize, event: ClientEvent) {
        let addr = self.links.address(server);
        match event {
            ClientEvent::Asked { server: peer_id, addr: reached } => {
                self.links.reached(server, peer_id, reached);
                self.open_relays(server);
            }
            ClientEvent::Connected { server: peer_id, addr: reached, push } => {
                // Where it pushes, it tells by itself how it sees us.
                let tells = transport::to_socket_addr(&reached).filter(|_| push);
                self.links.reached(server, peer_id, reached);
                let addresses = self.own_addresses();
                self.links.set_addresses(&addresses);
                self.ask_observers(tells);
                if self.links.newly_connected(server) {
                    self.tell_server(RendezvousState::Connected, Some(peer_id), addr);
                    self.network_is_back();
                }
            }
            ClientEvent::Registered { .. } => {
                let peer_id = self.links.peer(server);
                self.open_relays(server);
                if self.links.newly_registered(server) {
                    self.tell_server(RendezvousState::Registered, peer_id, addr);
                }
            }
            ClientEvent::RegisterRefused { why } => self.warn(
                "registration_refused",
                format!("the rendezvous server at {addr} does not list this node: {}.", why.in_words()),
                "Others can still be found; try another server with --at.",
            ),
            ClientEvent::Peer { peer, addresses, via } => {
                let patience = if via == rendezvous::Via::Initial { Duration::ZERO } else { DIAL_SECOND };
                self.discovered(peer, addresses, patience);
            }
            // One who was never met needs no calling. A member may well be there without the server.
            ClientEvent::PeerGone { peer } => {
                let unmet =
                    |peer: &Peer| peer.name.is_none() && peer.lost_since.is_none() && peer.paths.is_empty();
                if self.peers.get(&peer).is_some_and(unmet) {
                    self.let_go(&peer, "gone before it was met");
                }
            }
            ClientEvent::OtherKeys { count } => self.handle_other_keys(count),
            ClientEvent::Observed { addr } => {
                let observer = self.links.reached_at(server).as_ref().and_then(transport::to_socket_addr);
                if let (Some(observer), Some(seen)) = (observer, transport::to_socket_addr(&addr)) {
                    self.observed(observer, seen);
                }
            }
            ClientEvent::Lost { why, retry_in } => {
                let peer_id = self.links.peer(server);
                if self.links.newly_lost(server) {
                    self.tell_server(RendezvousState::Lost, peer_id, addr.clone());
                    self.warn(
                        "rendezvous_lost",
                        format!("no rendezvous at {addr}: {why}."),
                        "This node tries again by itself; calls that stand go on. Check the address given with --at.",
                    );
                }
                tracing::info!(%addr, %why, ?retry_in, "rendezvous lost");
            }
        }
    }

    /// Others of the same room name hold another secret, or none.
    pub(super) fn handle_other_keys(&mut self, count: u32) {
        if count == 0 || self.other_keys_told || self.room.members().next().is_some() {
            return;
        }
        self.other_keys_told = true;
        self.refused(
            format!("{count} other(s) are in a room named {} with another secret", self.config.invite.room),
            "Ask them for the invite they use (hallway invite), or choose another name. --wait waits here anyway.",
        );
    }

    /// The local network knows of somebody.
    pub(super) fn discovered_nearby(&mut self, id: PeerId, address: &Multiaddr) {
        self.discovered(id, nearby(&id, address, &self.listening), DIAL_SECOND);
    }

    /// A member knows of somebody: it may name addresses at least as far away as it is itself.
    pub(super) fn discovered_by_member(&mut self, by: PeerId, id: PeerId, addresses: &[Multiaddr]) {
        let addresses = policy::usable(&id, addresses, self.scope_of_peer(&by));
        self.discovered(id, addresses, DIAL_SECOND);
    }

    /// How far a peer is away; without a path it counts as far away.
    fn scope_of_peer(&self, id: &PeerId) -> Scope {
        let path = self.peers.get(id).and_then(|peer| peer.paths.used());
        path.and_then(|path| scope_of(&path.remote())).unwrap_or(Scope::Public)
    }

    /// Somebody is said to be in the room, at addresses that may be dialled as far as their scope goes.
    pub(super) fn discovered(&mut self, id: PeerId, mut addresses: Vec<Multiaddr>, patience: Duration) {
        let now = Instant::now();
        addresses.retain(carries_voice);
        if !self.config.path.direct()
            || id == self.me
            || addresses.is_empty()
            || self.elsewhere.contains(now, &id)
        {
            return;
        }
        let patience = if dials_first(&self.me, &id) { Duration::ZERO } else { patience };
        let Some(peer) = self.peer_entry(id, now) else { return };
        let new = !peer.wanted;
        peer.wanted = true;
        peer.learn(addresses);
        if peer.paths.direct() == 0 {
            peer.dial_at(now + patience);
        } else {
            // It reached us before we heard of it, and has not begun: it may not know yet that we share a room.
            peer.call(now);
        }
        if new {
            self.tell_peer(id, PeerState::Discovered, None);
        }
    }

    pub(super) fn dial(&mut self, id: PeerId, now: Instant) {
        let said = self.said_by(&id);
        let relayed = self.offer_relays(id, now);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !self.config.path.direct() {
            return peer.dial_failed(now);
        }
        let budget = &mut self.budget;
        peer.learn_later(said);
        let lost = peer.lost_since.is_some();
        let mut addresses = peer.proven.clone();
        addresses.extend(
            peer.addresses.iter().filter(|addr| !peer.proven.contains(addr)).cloned().collect::<Vec<_>>(),
        );
        // Where a dial has just begun another one would say the same at the same moment.
        addresses.retain(|addr| lost || !peer.is_being_dialled(now, addr));
        if addresses.is_empty() && peer.is_dialling(now) {
            return peer.dial_again(now);
        }
        addresses.retain(|addr| peer.proven.contains(addr) || budget.allow(now, addr));
        if addresses.is_empty() {
            tracing::debug!(peer = %id, "no address that may be dialled now");
            if relayed && !peer.session.is_established() {
                peer.dial_failed(now);
            } else {
                peer.dial_denied(now);
            }
            return;
        }
        peer.dialling(now, &addresses);
        // An address that was learned since is dialled beside the ones that still wait.
        let opts = DialOpts::peer_id(id).addresses(addresses).condition(PeerCondition::Always).build();
        match self.swarm.dial(opts) {
            Ok(()) => {
                peer.dial_begun(now);
                let news = peer.told != Some(PeerState::Reconnecting) && !peer.session.is_established();
                if news {
                    self.tell_peer(id, PeerState::Connecting, None);
                }
            }
            Err(error) => {
                tracing::debug!(peer = %id, %error, "not dialled");
                peer.dial_failed(now);
            }
        }
    }

    /// Dials a member beside its path, which has fallen silent: where it was met, and where it is said to be now.
    pub(super) fn dial_fresh(&mut self, id: PeerId, now: Instant) {
        if !self.config.path.direct() {
            return;
        }
        let said = self.said_by(&id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.learn_later(said);
        let mut addresses = peer.proven.clone();
        let budget = &mut self.budget;
        let new = peer.addresses.iter().filter(|addr| {
            !peer.proven.contains(addr) && !peer.is_being_dialled(now, addr) && budget.allow(now, addr)
        });
        addresses.extend(new.cloned().collect::<Vec<_>>());
        if addresses.is_empty() {
            return;
        }
        peer.dialling(now, &addresses);
        let opts = DialOpts::peer_id(id).addresses(addresses).condition(PeerCondition::Always).build();
        if let Err(error) = self.swarm.dial(opts) {
            tracing::debug!(peer = %id, %error, "no fresh path dialled");
        }
    }

    /// There is a new address, or a server answers again: whoever waits to be dialled is dialled now.
    pub(super) fn network_is_back(&mut self) {
        let now = Instant::now();
        if self.network_back.is_some_and(|last| now.duration_since(last) < AT_ONCE_EVERY) {
            return;
        }
        self.network_back = Some(now);
        let waiting =
            self.peers.values_mut().filter(|peer| peer.lost_since.is_some() && peer.paths.is_empty());
        waiting.for_each(|peer| peer.dial_at(now));
        self.links.retry_now();
    }

    /// A member fell silent: its session is over, and it is called until it is back or given up.
    pub(super) fn call_lost(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get(&id) else { return };
        let (mut addresses, proven, since) = (peer.addresses.clone(), peer.proven.clone(), peer.lost_since);
        let scope = proven.first().and_then(scope_of).unwrap_or(Scope::Public);
        let said =
            self.room.members().find(|member| member.peer == id).map(|member| member.addresses.as_slice());
        let said = policy::usable(&id, said.unwrap_or_default(), scope);
        addresses.extend(said.into_iter().filter(carries_voice));
        self.room.handle_left(now, id, Departure::Lost);
        self.drain_room();
        self.forget(id);
        let lost = |peer: &&Peer| peer.lost_since.is_some() && peer.name.is_none();
        if self.peers.values().filter(lost).count() >= MAX_LOST {
            let waiting = self.peers.iter().filter(|(_, peer)| lost(peer));
            if let Some(longest) = waiting.min_by_key(|(_, peer)| peer.lost_since).map(|(id, _)| *id) {
                self.forget(longest);
            }
        }
        let Some(peer) = self.peer_entry(id, now) else { return };
        (peer.wanted, peer.proven, peer.lost_since) = (true, proven, since.or(Some(now)));
        peer.learn(addresses);
        // Both sides notice at about the same time.
        peer.dial_at(now + DIAL_SECOND);
    }

    pub(super) fn handle_connection(&mut self, authenticated: Authenticated) {
        let Authenticated { peer, connection, dialer } = authenticated;
        let now = Instant::now();
        if peer == self.me {
            connection.close(0u32.into(), b"this is myself");
            return;
        }
        let Some(known) = self.peer_entry(peer, now) else {
            connection.close(0u32.into(), b"too many peers");
            return;
        };
        let path: Arc<dyn Path> = Arc::new(QuicPath::new(connection.clone(), dialer));
        known.session.set_rtt_hint(path.rtt());
        known.paths.look(now);
        known.paths.close_silent(now);
        if !known.paths.add(now, path.clone()) {
            connection.close(0u32.into(), b"too many connections");
            return;
        }
        known.connected(now);
        let (via, inbox) = (path.id(), known.inbox.clone());
        let start = dialer && known.wanted && !known.session.is_established();
        let inlets = self.relays.inlets.clone();
        self.drive.spawn(read(peer, via, connection, inbox, inlets, self.control_sender.clone()));
        self.budget.succeeded(&path.remote());
        self.choose_path(peer);
        if self.links.is_server(&peer) {
            self.server_connected(peer);
        }
        if let Some(known) = self.peers.get_mut(&peer) {
            known.session.hurry(now);
            if start {
                known.session.connect(now);
            }
        }
    }

    /// Puts the best path in use and tells of the change.
    pub(super) fn choose_path(&mut self, id: PeerId) {
        let now = Instant::now();
        let prefer_dialer = dials_first(&self.me, &id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let why = peer.paths.choose(now, |path| path.is_dialer() == prefer_dialer);
        // Above the best rung a direct path is tried for at once, and again and again.
        let above = peer.paths.direct() == 0 && (peer.name.is_some() || peer.wanted);
        if above && (why.is_some() || peer.next_dial.is_none()) {
            peer.dial_at(now + if prefer_dialer { Duration::ZERO } else { DIAL_SECOND });
        }
        let Some(why) = why else { return };
        peer.bottleneck = Bottleneck::new(now, clock::now().0);
        let member = peer.name.is_some();
        if peer.session.is_established() {
            peer.prove_used();
            self.begin_thin(id);
        }
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if why == Why::Gone && member {
            peer.lost(now);
        }
        match (member, why) {
            (true, Why::Gone) => self.tell_peer(id, PeerState::Reconnecting, None),
            (true, why) => self.tell_peer(id, PeerState::PathChanged, Some(why.in_words())),
            _ => {}
        }
    }

    /// Once a second, with the figures: paths are compared, strangers turned out.
    pub(super) fn look_after_paths(&mut self, now: Instant) {
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.mark_punched(id);
            self.choose_path(id);
            let decides = dials_first(&self.me, &id);
            let is_server = self.links.is_server(&id);
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            // Only one side closes, or each might close the path that the other kept.
            if peer.paths.direct() > 1 && decides && !is_server {
                let since = *peer.spare_since.get_or_insert(now);
                if now.duration_since(since) >= SPARE_PATH_TIME {
                    peer.paths.close_spare();
                    peer.spare_since = None;
                }
            } else {
                peer.spare_since = None;
            }
            let idle = !peer.session.is_established() && !peer.session.is_connecting();
            if idle && !is_server && now.duration_since(peer.since) >= STRANGER_TIMEOUT {
                let lost_with_path = peer.lost_since.is_some() && !peer.paths.is_empty();
                peer.paths.close_all(CloseReason::Stranger);
                if !peer.wanted {
                    self.let_go(&id, "not in this room");
                    continue;
                }
                if lost_with_path {
                    peer.dial_at(now);
                }
            }
            if peer.is_given_up(now) && !peer.session.is_established() {
                self.forget(id);
            }
        }
    }

    /// The entry of a peer, made where there is room for it.
    pub(super) fn peer_entry(&mut self, id: PeerId, now: Instant) -> Option<&mut Peer> {
        if !self.peers.contains_key(&id) && self.peers.len() >= MAX_PEERS {
            // Whoever was only named, by a server or a member, has shown nothing yet: a way through a relay is no sign of it.
            let absent = self
                .peers
                .iter()
                .filter(|(_, p)| p.name.is_none() && p.paths.direct() == 0 && !p.session.is_established());
            let stranger =
                absent.min_by_key(|(_, p)| (p.lost_since.is_some(), p.wanted)).map(|(id, _)| *id)?;
            if let Some(mut stranger) = self.let_go(&stranger, "others are nearer") {
                stranger.paths.close_all(CloseReason::Stranger);
            }
        }
        let local = &self.local;
        Some(self.peers.entry(id).or_insert_with(|| Peer::new(Session::new(local, id, now), now)))
    }

    /// Removes an entry. Whoever was told of it is told of its end.
    fn let_go(&mut self, id: &PeerId, why: &'static str) -> Option<Peer> {
        if self.peers.get(id).is_some_and(|peer| peer.told.is_some_and(|told| told != PeerState::Left)) {
            self.tell_peer(*id, PeerState::Left, Some(why));
        }
        self.peers.remove(id)
    }

    pub(super) fn forget(&mut self, id: PeerId) {
        if let Some(mut peer) = self.let_go(&id, "not in this room") {
            let now = Instant::now();
            let why =
                if peer.session.is_established() { CloseReason::Goodbye } else { CloseReason::Stranger };
            peer.session.close(now);
            peer.transmit(now);
            // The goodbye must leave the socket before the connection does.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                peer.paths.close_all(why);
            });
        }
    }

    /// It is in another room, or does not let us in: not called for a while. A member stays one: whoever says so now was
    /// not in its session.
    pub(super) fn leave_alone(&mut self, id: PeerId) {
        if self.peers.get(&id).is_some_and(|peer| peer.session.is_established()) {
            return;
        }
        self.elsewhere.insert(Instant::now(), id);
        self.forget(id);
    }

    pub(super) fn handle_refusal(&mut self, id: PeerId, reason: Refusal) {
        let who = events::short(&id);
        self.leave_alone(id);
        match reason {
            Refusal::WrongSecret => self.refused(
                format!("{who} is in a room named {} with another secret", self.config.invite.room),
                "Use the same invite on both sides (hallway invite). --wait waits here anyway.",
            ),
            Refusal::Identity => self.warn(
                "wrong_identity",
                format!("{who} could not prove who it is."),
                "Somebody may be in the middle of this connection. Do not trust this network.",
            ),
            Refusal::Version => self.warn(
                "version",
                format!("{who} runs a hallway that speaks another protocol."),
                "Use the same version on both sides.",
            ),
        }
    }

    /// We are not let in. Ends the program only for one who has just arrived and met nobody.
    pub(super) fn refused(&mut self, reason: String, hint: &str) {
        let arriving = self.config.started.elapsed() < ARRIVING;
        if arriving && !self.met_somebody && !self.config.wait_anyway {
            self.ended.get_or_insert(Ended::Refused { reason, hint: hint.to_owned() });
        } else {
            self.warn("refused", format!("{reason}."), hint);
        }
    }

    /// What others should dial us at.
    pub(super) fn own_addresses(&self) -> Vec<Multiaddr> {
        if !self.config.announce.is_empty() && self.config.path.direct() {
            return self.config.announce.clone();
        }
        let quic = self.listening.iter().filter(|addr| transport::to_socket_addr(addr).is_some());
        // Others reach us through a server alone, and are not to learn where we are.
        if !self.config.path.direct() {
            return Vec::new();
        }
        let seen = self.observations.candidates().into_iter().map(transport::to_multiaddr);
        let mapped = self.mapped().map(transport::to_multiaddr);
        let mut addresses: Vec<Multiaddr> = mapped.into_iter().chain(seen).chain(quic.cloned()).collect();
        let mut seen = HashSet::new();
        addresses.retain(|addr| seen.insert(addr.clone()));
        addresses
    }

    pub(super) fn addresses_changed(&mut self) {
        let addresses = self.own_addresses();
        self.room.set_behind_nat(self.is_behind_nat());
        self.room.set_addresses(addresses.clone());
        self.links.set_addresses(&addresses);
    }
}

/// Reads one connection's datagrams: voice to the media thread, the rest to the node loop. What a server passes on is the
/// member's who sent it.
async fn read(
    peer: PeerId,
    via: usize,
    connection: quinn::Connection,
    inbox: media::Inbox,
    inlets: Inlets,
    control: mpsc::Sender<FromPath>,
) {
    let (mut doorman, mut relayed) = (Doorman::default(), Doorman::default());
    while let Ok(bytes) = connection.read_datagram().await {
        let arrived = clock::now();
        if bytes.first() != Some(&FORWARD) {
            let datagram = Datagram { arrived, bytes, relayed: false };
            doorman.deliver(peer, via, datagram, &inbox, &control);
        } else if let Some(from) = inlets.resolve(&peer, &bytes) {
            let datagram = Datagram { arrived, bytes: from.datagram, relayed: true };
            relayed.deliver(from.peer, from.via, datagram, &from.inbox, &control);
        }
    }
    let _ = control.send(FromPath::Closed { peer }).await;
}

/// Peers are met over QUIC only: on anything else no voice could be sent.
fn carries_voice(addr: &Multiaddr) -> bool {
    transport::to_socket_addr(addr).is_some()
}

/// What of an address that came over the local network may be dialled: one of that network, or of this machine. Anybody
/// there can claim anything, and a public address would be somebody else's, unless our own one is of the same subnet.
fn nearby(id: &PeerId, address: &Multiaddr, own: &[Multiaddr]) -> Vec<Multiaddr> {
    let mut addresses = policy::usable(id, std::slice::from_ref(address), Scope::Loopback);
    addresses.retain(|addr| {
        let subnet = transport::ip_of(addr).map(subnet);
        scope_of(addr).is_some_and(|scope| scope < Scope::Public)
            || own.iter().any(|mine| subnet.is_some() && transport::ip_of(mine).map(self::subnet) == subnet)
    });
    addresses
}

/// The /24 of an IPv4 address, the /64 of an IPv6 one: the usual size of one network.
fn subnet(ip: IpAddr) -> (bool, u64) {
    match ip {
        IpAddr::V4(ip) => (false, u64::from(ip.to_bits() >> 8)),
        IpAddr::V6(ip) => (true, (ip.to_bits() >> 64) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_network_names_addresses_of_its_own_only() {
        let (ana, ben) = (PeerId::random(), PeerId::random());
        let taken = |addr: &str| nearby(&ana, &addr.parse().unwrap(), &[]).len();
        for addr in
            ["/ip4/192.168.1.7/udp/1/quic-v1", "/ip6/fe80::1/udp/1/quic-v1", "/ip4/127.0.0.1/udp/1/quic-v1"]
        {
            assert_eq!(taken(addr), 1, "{addr}");
            assert_eq!(taken(&format!("{addr}/p2p/{ana}")), 1, "with its own name at the end");
            assert_eq!(taken(&format!("{addr}/p2p/{ben}")), 0, "with somebody else's");
        }
        for addr in
            ["/ip4/8.8.8.8/udp/1/quic-v1", "/ip4/224.0.0.251/udp/1/quic-v1", "/ip4/0.0.0.0/udp/1/quic-v1"]
        {
            assert_eq!(taken(addr), 0, "{addr}");
        }
    }

    #[test]
    fn a_local_network_of_public_addresses_is_local_where_ours_is_one_of_them() {
        let own: Vec<Multiaddr> = ["/ip4/8.8.8.1/udp/9/quic-v1", "/ip6/2600::1/udp/9/quic-v1"]
            .map(|addr| addr.parse().unwrap())
            .into();
        let taken = |addr: &str| nearby(&PeerId::random(), &addr.parse().unwrap(), &own).len();
        assert_eq!(taken("/ip4/8.8.8.8/udp/1/quic-v1"), 1);
        assert_eq!(taken("/ip6/2600::2/udp/1/quic-v1"), 1);
        assert_eq!(taken("/ip4/8.8.4.4/udp/1/quic-v1"), 0);
        assert_eq!(taken("/ip6/2600:0:0:1::2/udp/1/quic-v1"), 0);
    }

    #[test]
    fn voice_needs_quic() {
        assert!(carries_voice(&"/ip4/8.8.8.8/udp/1/quic-v1".parse().unwrap()));
        for addr in ["/ip4/8.8.8.8/tcp/1", "/ip4/8.8.8.8/udp/1", "/dns4/x/udp/1/quic-v1"] {
            assert!(!carries_voice(&addr.parse().unwrap()), "{addr}");
        }
    }
}
