//! How many connections one origin may hold: without it, one machine with many PeerIds takes all of them.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

use crate::{rendezvous::store::Prefix, transport::RETRY_ABOVE_HALF_OPEN};

/// Unfinished handshakes of one origin: the places for these are few, and are everybody's. More than may be begun in
/// another's name before addresses must prove themselves, so that whoever does that does not keep the other one out.
pub const MAX_PENDING_PER_ORIGIN: usize = 2 * RETRY_ABOVE_HALF_OPEN;

/// One origin has as many connections as one may.
#[derive(Debug, thiserror::Error)]
#[error("at most {0} connections from one address")]
pub struct TooMany(usize);

/// Counts connections towards us, unfinished ones too, by public IPv4 address or IPv6 /64. Loopback and private
/// addresses are not counted: there the operator knows everybody, or is behind one proxy.
pub struct Behaviour {
    most: usize,
    origins: HashMap<ConnectionId, Prefix>,
    counts: HashMap<Prefix, usize>,
    /// Those of them that are not established yet.
    pending: HashMap<Prefix, usize>,
    unfinished: HashSet<ConnectionId>,
}

impl Behaviour {
    /// At most this many from one origin.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            origins: HashMap::new(),
            counts: HashMap::new(),
            pending: HashMap::new(),
            unfinished: HashSet::new(),
        }
    }

    fn opened(&mut self, id: ConnectionId, remote: &Multiaddr) -> Result<(), TooMany> {
        let origin = Prefix::of(remote);
        if origin == Prefix::Local {
            return Ok(());
        }
        for (counts, most) in [(&self.counts, self.most), (&self.pending, MAX_PENDING_PER_ORIGIN)] {
            if counts.get(&origin).copied().unwrap_or_default() >= most {
                return Err(TooMany(most));
            }
        }
        for counts in [&mut self.counts, &mut self.pending] {
            let count = counts.entry(origin).or_default();
            *count = count.saturating_add(1);
        }
        self.unfinished.insert(id);
        self.origins.insert(id, origin);
        Ok(())
    }

    fn established(&mut self, id: ConnectionId) {
        if let Some(origin) = self.origins.get(&id).filter(|_| self.unfinished.remove(&id)) {
            release(&mut self.pending, *origin);
        }
    }

    fn ended(&mut self, id: ConnectionId) {
        self.established(id);
        if let Some(origin) = self.origins.remove(&id) {
            release(&mut self.counts, origin);
        }
    }
}

fn release(counts: &mut HashMap<Prefix, usize>, origin: Prefix) {
    if let Some(count) = counts.get_mut(&origin) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(&origin);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.opened(id, remote).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.established(id);
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionClosed(closed) => self.ended(closed.connection_id),
            FromSwarm::ListenFailure(failed) => self.ended(failed.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knock(origins: &mut Behaviour, id: usize, from: &str) -> bool {
        let (local, from) = (Multiaddr::empty(), from.parse().unwrap());
        origins.handle_pending_inbound_connection(ConnectionId::new_unchecked(id), &local, &from).is_ok()
    }

    #[test]
    fn one_address_holds_so_many_connections_and_another_one_its_own() {
        let mut origins = Behaviour::new(2);
        assert!(knock(&mut origins, 1, "/ip4/8.8.8.8/udp/1/quic-v1"));
        assert!(knock(&mut origins, 2, "/ip4/8.8.8.8/tcp/2"), "the port makes no difference");
        assert!(!knock(&mut origins, 3, "/ip4/8.8.8.8/udp/3/quic-v1"));
        assert!(knock(&mut origins, 4, "/ip4/9.9.9.9/udp/1/quic-v1"));
        origins.ended(ConnectionId::new_unchecked(2));
        // One that was refused gives nothing back.
        origins.ended(ConnectionId::new_unchecked(3));
        assert!(knock(&mut origins, 5, "/ip4/8.8.8.8/udp/3/quic-v1"));
        assert!(!knock(&mut origins, 6, "/ip4/8.8.8.8/udp/3/quic-v1"));
        (1..7).for_each(|id| origins.ended(ConnectionId::new_unchecked(id)));
        assert!(origins.counts.is_empty() && origins.origins.is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn handshakes_begun_in_anothers_name_leave_places_to_that_one() {
        let mut origins = Behaviour::new(usize::MAX);
        let from = "/ip4/8.8.8.8/udp/1/quic-v1";
        // So many may be begun by whoever puts this address on its packets; those after them must answer a Retry.
        (0..RETRY_ABOVE_HALF_OPEN).for_each(|id| assert!(knock(&mut origins, id, from)));
        assert!(knock(&mut origins, 100, from), "the one who really is there");
        assert_eq!((101..200).filter(|id| knock(&mut origins, *id, from)).count(), RETRY_ABOVE_HALF_OPEN - 1);
        assert!(!knock(&mut origins, 200, from));
        origins.established(ConnectionId::new_unchecked(100));
        assert!(knock(&mut origins, 201, from), "what is established is no longer unfinished");
    }

    #[test]
    fn the_addresses_of_one_ipv6_customer_are_one_origin() {
        let mut origins = Behaviour::new(1);
        assert!(knock(&mut origins, 1, "/ip6/2a00:1:2:3::1/udp/1/quic-v1"));
        assert!(!knock(&mut origins, 2, "/ip6/2a00:1:2:3:ffff::2/udp/1/quic-v1"));
        assert!(knock(&mut origins, 3, "/ip6/2a00:1:2:4::1/udp/1/quic-v1"));
    }

    #[test]
    fn this_machine_and_private_networks_are_not_counted() {
        let mut origins = Behaviour::new(1);
        for (id, from) in
            ["/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/10.0.0.1/tcp/1", "/ip6/fd00::1/tcp/1"].iter().enumerate()
        {
            assert!(knock(&mut origins, id, from) && knock(&mut origins, id + 10, from), "{from}");
        }
    }
}
