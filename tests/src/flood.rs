//! Somebody who sends without any regard: QUIC without congestion control, with a large buffer.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::identity::Keypair;
use libp2p::multiaddr::{Multiaddr, Protocol};
use quinn::congestion::{Controller, ControllerFactory};
use quinn::crypto::rustls::QuicClientConfig;

/// Bytes that may wait to be sent: several tenths of a second of any flood.
const BUFFER: usize = 4 << 20;
/// A window that nothing fills.
const WINDOW: u64 = 256 << 20;

/// A connection that takes whatever it is given.
pub struct Flooder {
    _endpoint: quinn::Endpoint,
    /// The connection.
    pub connection: quinn::Connection,
}

impl Flooder {
    /// Dials whoever listens at a QUIC address, under this identity.
    pub async fn dial(keypair: &Keypair, addr: &str) -> Flooder {
        let addr: Multiaddr = addr.parse().unwrap();
        let to = hallway::transport::to_socket_addr(&without_peer(addr)).expect("a QUIC address");
        let crypto = QuicClientConfig::try_from(libp2p_tls::make_client_config(keypair, None).unwrap());
        let mut config = quinn::ClientConfig::new(Arc::new(crypto.unwrap()));
        let mut transport = quinn::TransportConfig::default();
        transport
            .datagram_send_buffer_size(BUFFER)
            .datagram_receive_buffer_size(Some(BUFFER))
            .keep_alive_interval(Some(Duration::from_secs(2)))
            .congestion_controller_factory(Arc::new(Reckless));
        config.transport_config(Arc::new(transport));
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = endpoint.connect_with(config, to, "l").unwrap().await.expect("a connection");
        Flooder { _endpoint: endpoint, connection }
    }

    /// Sends this datagram again and again, so that so much leaves the socket. Gives what did, in Mb/s.
    pub async fn flood(&self, datagram: Bytes, mbps: f64, span: Duration) -> f64 {
        let (began, before) = (Instant::now(), self.connection.stats().udp_tx.bytes);
        let mut beat = tokio::time::interval(Duration::from_millis(1));
        let mut sent = 0u64;
        while began.elapsed() < span {
            beat.tick().await;
            let due = began.elapsed().as_secs_f64() * mbps * 1e6 / 8.0 / datagram.len() as f64;
            while (sent as f64) < due {
                // Only a closed connection refuses.
                let _ = self.connection.send_datagram(datagram.clone());
                sent += 1;
            }
        }
        let bytes = self.connection.stats().udp_tx.bytes - before;
        bytes as f64 * 8e-6 / began.elapsed().as_secs_f64()
    }
}

fn without_peer(addr: Multiaddr) -> Multiaddr {
    addr.into_iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

/// Never holds anything back.
#[derive(Clone)]
struct Reckless;

impl ControllerFactory for Reckless {
    fn build(self: Arc<Self>, _: Instant, _: u16) -> Box<dyn Controller> {
        Box::new(Self)
    }
}

impl Controller for Reckless {
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}
    fn on_mtu_update(&mut self, _: u16) {}
    fn window(&self) -> u64 {
        WINDOW
    }
    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }
    fn initial_window(&self) -> u64 {
        WINDOW
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
