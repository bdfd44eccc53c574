//! A port of the router for this node: UPnP-IGD, PCP or NAT-PMP, whichever the router speaks.
//!
//! Asked for only behind a NAT, for IPv4, and taken only where the router's address is the one that servers see: behind a
//! second NAT the port would be nobody's. Given back when the node leaves; the router forgets it by itself within hours.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    num::NonZeroU16,
};

use tokio::sync::watch;

use super::*;

/// A router that was asked less than this ago may have given a port of which we do not know yet …
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// … and has so long to tell when the node leaves: what is not known cannot be given back.
const LAST_WORD: Duration = Duration::from_millis(100);
/// Longest wait for the router to take its port back.
pub(crate) const GIVE_BACK: Duration = Duration::from_millis(300);

/// What the router was asked for.
pub(super) struct PortMap {
    client: portmapper::Client,
    external: watch::Receiver<Option<SocketAddrV4>>,
    /// Finds out what else the router speaks, and asks for the port again.
    again: tokio::task::JoinHandle<()>,
    asked: Instant,
}

impl Drop for PortMap {
    fn drop(&mut self) {
        self.again.abort();
    }
}

/// Which protocols are tried: all of them, for UDP.
pub fn config() -> portmapper::Config {
    portmapper::Config {
        enable_upnp: true,
        enable_pcp: true,
        enable_nat_pmp: true,
        protocol: portmapper::Protocol::Udp,
    }
}

impl PortMap {
    fn ask(port: NonZeroU16) -> Self {
        let client = portmapper::Client::new(config());
        // Unasked, the library tries UPnP alone: what else the router speaks is found out beside it, and then used.
        client.update_local_port(port);
        let external = client.watch_external_address();
        let asking = client.clone();
        let again = tokio::spawn(async move {
            if let Ok(Ok(_)) = asking.probe().await {
                asking.update_local_port(port);
            }
        });
        Self { client, external, again, asked: Instant::now() }
    }

    /// Waits until the router gave another port, or took it away.
    pub(super) async fn changed(map: &mut Option<Self>) {
        if let Some(map) = map
            && map.external.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Gives the port back, also one that is still being asked for.
    pub(super) async fn leave(mut self) {
        self.again.abort();
        if self.asked.elapsed() < ANSWERS_WITHIN {
            let _ = tokio::time::timeout(LAST_WORD, self.external.wait_for(Option::is_some)).await;
        }
        let given = self.external.borrow().is_some();
        self.client.deactivate();
        if given {
            // The library does not tell when the router has heard it.
            tokio::time::sleep(GIVE_BACK).await;
        }
    }
}

impl Node {
    /// Behind a NAT the router is asked for a port, once.
    pub(super) fn ask_router(&mut self) {
        let wanted = self.port_map.is_none()
            && self.config.map_port
            && self.config.path.direct()
            && self.config.announce.is_empty()
            && self.mapping(false).is_nat();
        if !wanted {
            return;
        }
        let private = |addr: &SocketAddr| scope_of(&transport::to_multiaddr(*addr)) == Some(Scope::Private);
        let mut local = self.listening.iter().filter_map(transport::to_socket_addr);
        let port =
            local.find(|addr| addr.is_ipv4() && private(addr)).and_then(|addr| NonZeroU16::new(addr.port()));
        self.port_map = port.map(PortMap::ask);
    }

    /// The port that the router gave us, where it leads to us.
    pub(super) fn mapped(&self) -> Option<SocketAddr> {
        let external = (*self.port_map.as_ref()?.external.borrow())?;
        self.observations.public_ips().contains(&IpAddr::V4(*external.ip())).then_some(external.into())
    }

    /// The router gave us a port, or took it away.
    pub(super) fn handle_port_map(&mut self) {
        tracing::info!(mapped = ?self.mapped(), "the router's answer");
        self.addresses_changed();
    }
}
