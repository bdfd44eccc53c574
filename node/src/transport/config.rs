//! QUIC as voice wants it: small buffers, our congestion controller, quick first packets.

use std::{sync::Arc, time::Duration};

use libp2p::identity::Keypair;
use quinn::{
    VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    rustls::NoKeyLog,
};

use super::{Ceiling, congestion::MediaControllerConfig, tls};

/// How long a handshake may take. At 30 % loss one in a hundred needs more than 8 s.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that heard nothing for so long is over.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Idle time after which a packet is sent, so that NATs keep their mapping (some forget after 30 s).
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Datagrams waiting to be sent, in bytes. When full the oldest audio goes first: better a gap than a lag.
pub const DATAGRAM_SEND_BUFFER: usize = 8 * 1024;
/// Datagrams received and not yet read, in bytes.
pub const DATAGRAM_RECEIVE_BUFFER: usize = 64 * 1024;
/// Streams one peer may hold open on one connection.
pub const MAX_STREAMS: u32 = 64;
/// Unread bytes of one stream, and of all streams of a connection together.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// First guess of the round trip, before any was measured; what is lost before is repeated after three times this. The RFC's
/// 333 ms makes a lost first packet cost a second. Below 135 ms a thin link (64 kb/s, 40 ms), where a handshake takes
/// 400 ms, would carry everything twice and lose the end of it.
pub const INITIAL_RTT: Duration = Duration::from_millis(150);
/// Bytes of the connection id in each packet. What another connection's id picks out, its keys refuse.
pub const CONNECTION_ID_LEN: usize = 4;
/// Packets that come are acknowledged after so many, or so much time, whichever is first (draft-ietf-quic-ack-frequency).
/// Voice is not repeated, so all that waits for it is the view of the path; each acknowledgement costs as much as a header.
pub const ACK_EVERY: u32 = 10;
/// See [`ACK_EVERY`].
pub const ACK_DELAY: Duration = Duration::from_millis(80);
/// Handshakes the endpoint keeps waiting, and the bytes it buffers for one and for all of them.
pub const MAX_INCOMING: usize = 1024;
const INCOMING_BUFFER: u64 = 16 * 1024;
const INCOMING_BUFFER_TOTAL: u64 = 8 * 1024 * 1024;

/// Everything a QUIC endpoint needs, for one identity.
#[derive(Clone)]
pub struct Config {
    pub(super) client: quinn::ClientConfig,
    pub(super) server: quinn::ServerConfig,
    pub(super) endpoint: quinn::EndpointConfig,
    pub(super) runtime: Arc<dyn quinn::Runtime>,
    pub(super) ceiling: Option<Arc<Ceiling>>,
    /// Whether strangers' handshakes are answered at a bounded rate only.
    pub(super) paced: bool,
}

/// The identity cannot be turned into a TLS certificate.
#[derive(Debug, thiserror::Error)]
#[error("no TLS certificate for this identity: {0}")]
pub struct ConfigError(String);

impl Config {
    /// Certificates and settings for `keypair`.
    ///
    /// # Errors
    /// Where the key cannot sign a certificate, or TLS lacks the cipher that QUIC needs.
    pub fn new(keypair: &Keypair) -> Result<Self, ConfigError> {
        let fail = |e: &dyn std::fmt::Display| ConfigError(e.to_string());
        let libp2p = libp2p_tls::make_client_config(keypair, None).map_err(|e| fail(&e))?;
        let tls = tls::client(&libp2p).map_err(|e| fail(&e))?;
        let client_crypto = QuicClientConfig::try_from(tls).map_err(|e| fail(&e))?;
        let mut tls = libp2p_tls::make_server_config(keypair).map_err(|e| fail(&e))?;
        // libp2p-tls always honours SSLKEYLOGFILE; an environment variable must not open a call.
        tls.key_log = Arc::new(NoKeyLog);
        let server_crypto = QuicServerConfig::try_from(tls).map_err(|e| fail(&e))?;

        let transport = Arc::new(transport());
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server_crypto));
        server.transport = transport.clone();
        server.max_incoming(MAX_INCOMING);
        server.incoming_buffer_size(INCOMING_BUFFER);
        server.incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
        let mut client = quinn::ClientConfig::new(Arc::new(client_crypto));
        client.transport_config(transport);
        let mut endpoint = quinn::EndpointConfig::default();
        endpoint.supported_versions(vec![1]);
        endpoint.cid_generator(|| Box::new(quinn_proto::RandomConnectionIdGenerator::new(CONNECTION_ID_LEN)));
        let runtime = Arc::new(quinn::TokioRuntime);
        Ok(Self { client, server, endpoint, runtime, ceiling: None, paced: false })
    }

    /// Marks what is sent as voice, counts it, and keeps it under a ceiling.
    #[must_use]
    pub fn marked(self, ceiling: Arc<Ceiling>) -> Self {
        Self { ceiling: Some(ceiling), ..self }
    }

    /// Runs QUIC's tasks there instead of on the tokio runtime of whoever polls the transport, and answers strangers'
    /// handshakes at a bounded rate.
    #[must_use]
    pub fn driven_by(self, runtime: Arc<dyn quinn::Runtime>) -> Self {
        Self { runtime, paced: true, ..self }
    }
}

fn transport() -> quinn::TransportConfig {
    let mut acknowledged = quinn::AckFrequencyConfig::default();
    // Where every second packet is lost each of the others would be acknowledged at once.
    let never = 0u32.into();
    acknowledged
        .ack_eliciting_threshold(ACK_EVERY.into())
        .max_ack_delay(Some(ACK_DELAY))
        .reordering_threshold(never);
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_uni_streams(0u32.into())
        .max_concurrent_bidi_streams(MAX_STREAMS.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(u64::from(CONNECTION_WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32).into()))
        .initial_rtt(INITIAL_RTT)
        .allow_spin(false)
        // Nothing we send needs more than 1,200 bytes, and each probe for more is a third of a thin link's second.
        .mtu_discovery_config(None)
        .ack_frequency_config(Some(acknowledged))
        .congestion_controller_factory(Arc::new(MediaControllerConfig::default()));
    transport
}
