//! WebSocket over TLS over TCP: the way out of a network that lets nothing else pass. Noise and yamux go inside.
//!
//! It does not imitate web traffic: ALPN is `libp2p`, the request names hallway. TLS is what such networks want to see on
//! port 443; who is at the other end is proven by Noise inside, so any certificate is taken, unless the address names its
//! hash (`/tls/certhash/…/ws`): then it must be that one.
//!
//! Why not libp2p's own WebSocket transport: it brings a second crypto provider, verifies by the web's authorities or not
//! at all, sets no ALPN, and takes messages of 256 MiB.

use std::{
    fmt, io,
    net::IpAddr,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use async_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest, protocol::WebSocketConfig},
};
use futures::{AsyncRead, AsyncWrite, FutureExt, Sink, Stream, TryFutureExt, future::BoxFuture};
use futures_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use libp2p::{
    Multiaddr,
    core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent},
    multiaddr::Protocol,
};
use quinn::rustls::{
    self, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use rw_stream_sink::RwStreamSink;

/// What TLS names the protocol inside.
pub const ALPN: &[u8] = b"libp2p";
/// What the WebSocket request asks for.
pub const REQUEST_PATH: &str = "/hallway";
/// Longest WebSocket message sent and taken, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Bytes that may wait to be written into the TLS stream; beyond it the connection fails.
pub const MAX_UNSENT: usize = 512 * 1024;
/// The name in our own certificate. It says nothing about the machine.
const NAME: &str = "hallway";
/// Multihash code of SHA2-256.
const SHA2_256: u64 = 0x12;

/// Why there is no WebSocket connection.
#[derive(Debug, thiserror::Error)]
pub enum Error<E: std::error::Error + 'static> {
    /// TCP did not connect: nobody listens there, or a firewall drops it.
    #[error(transparent)]
    Tcp(E),
    /// TLS failed: something else listens there, or stands between.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// What answers speaks TLS but no WebSocket.
    #[error("WebSocket: {0}")]
    WebSocket(Box<tungstenite::Error>),
}

/// Why the certificate of a server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read or written.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
    /// The files do not fit together, or are no certificate.
    #[error("certificate: {0}")]
    Unusable(String),
}

/// What a server shows in TLS.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// Its address names its hash: nobody but us vouches for it.
    pinned: bool,
}

impl Certificate {
    /// The operator's, from PEM files.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn from_files(chain: &Path, key: &Path) -> Result<Self, CertificateError> {
        let fail = |path: &Path, reason: &dyn fmt::Display| CertificateError::File {
            path: path.display().to_string(),
            reason: reason.to_string(),
        };
        let certificates = CertificateDer::pem_file_iter(chain).map_err(|e| fail(chain, &e))?;
        let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|e| fail(chain, &e))?;
        if certificates.is_empty() {
            return Err(fail(chain, &"no certificate in it"));
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(|e| fail(key, &e))?;
        Ok(Self { chain: certificates, key: private, pinned: false })
    }

    /// Our own, self-signed; made at the first time and kept in `dir`, so that its hash stays the same.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn own(dir: &Path) -> Result<Self, CertificateError> {
        let files = ["tls-certificate.der", "tls-key.der"].map(|name| dir.join(name));
        let fail = |path: &Path, e: io::Error| CertificateError::File {
            path: path.display().to_string(),
            reason: e.to_string(),
        };
        if !files.iter().all(|file| file.exists()) {
            let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]);
            let made = made.map_err(|e| CertificateError::Unusable(e.to_string()))?;
            let (certificate, key) = (made.cert.der().to_vec(), made.key_pair.serialize_der());
            // The certificate last: where it stands, the key does too.
            for (file, bytes) in files.iter().zip([&certificate, &key]).rev() {
                write_private(file, bytes).map_err(|e| fail(file, e))?;
            }
        }
        let read = |file: &Path| std::fs::read(file).map_err(|e| fail(file, e));
        let key = PrivateKeyDer::try_from(read(&files[1])?);
        Ok(Self {
            chain: vec![read(&files[0])?.into()],
            key: key.map_err(|e| CertificateError::Unusable(e.to_owned()))?,
            pinned: true,
        })
    }

    /// What an address of this server has between `/tls` and `/ws`.
    fn hash(&self) -> Option<Protocol<'static>> {
        let certificate = self.chain.first().filter(|_| self.pinned)?;
        Some(Protocol::Certhash(multihash(certificate)?))
    }
}

type Hash = libp2p::multihash::Multihash<64>;

fn multihash(certificate: &CertificateDer<'_>) -> Option<Hash> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    Hash::wrap(SHA2_256, digest.as_ref()).ok()
}

/// Whole or not at all, and for nobody else to read.
fn write_private(file: &Path, bytes: &[u8]) -> io::Result<()> {
    // Made with mode 0600, whatever the file that it replaces had.
    let mut draft = tempfile::NamedTempFile::new_in(file.parent().unwrap_or(Path::new(".")))?;
    io::Write::write_all(&mut draft, bytes)?;
    draft.as_file().sync_all()?;
    draft.persist(file)?;
    Ok(())
}

/// The transport over a TCP one.
pub struct Wss<T> {
    tcp: T,
    provider: Arc<CryptoProvider>,
    acceptor: Option<TlsAcceptor>,
    hash: Option<Protocol<'static>>,
}

impl<T> Wss<T> {
    /// Dials; listens too where there is a certificate.
    ///
    /// # Errors
    /// Where the certificate's key does not belong to it.
    pub fn new(tcp: T, certificate: Option<Certificate>) -> Result<Self, CertificateError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let hash = certificate.as_ref().and_then(Certificate::hash);
        let fail = |e: rustls::Error| CertificateError::Unusable(e.to_string());
        let acceptor = match certificate {
            Some(Certificate { chain, key, .. }) => {
                let config = ServerConfig::builder_with_provider(provider.clone())
                    .with_protocol_versions(&[&rustls::version::TLS13])
                    .map_err(fail)?;
                let mut config = config.with_no_client_auth().with_single_cert(chain, key).map_err(fail)?;
                config.alpn_protocols = vec![ALPN.to_vec()];
                Some(TlsAcceptor::from(Arc::new(config)))
            }
            None => None,
        };
        Ok(Self { tcp, provider, acceptor, hash })
    }

    /// An address of the TCP listener as others are to dial it.
    fn full(&self, mut tcp: Multiaddr) -> Multiaddr {
        tcp.push(Protocol::Tls);
        if let Some(hash) = &self.hash {
            tcp.push(hash.clone());
        }
        tcp.with(Protocol::Ws("/".into()))
    }

    fn connector(&self, pins: Vec<Hash>) -> Result<TlsConnector, rustls::Error> {
        let verifier = Arc::new(Pinned { pins, provider: self.provider.clone() });
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// An address of this transport, taken apart.
#[derive(Debug, PartialEq)]
struct Parts {
    tcp: Multiaddr,
    host: String,
    name: Option<String>,
    ip: Option<IpAddr>,
    pins: Vec<Hash>,
}

/// Whether an address is one of this transport.
pub fn is_wss(addr: &Multiaddr) -> bool {
    parse(addr).is_some()
}

/// `/ip4|ip6|dns…/…/tcp/…/tls[/sni/…][/certhash/…]/ws[/p2p/…]`; `None` for anything else.
fn parse(addr: &Multiaddr) -> Option<Parts> {
    let mut parts = addr.iter();
    let host = parts.next()?;
    let (name, ip, text) = match &host {
        Protocol::Ip4(ip) => (None, Some(IpAddr::from(*ip)), ip.to_string()),
        Protocol::Ip6(ip) => (None, Some(IpAddr::from(*ip)), format!("[{ip}]")),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
            (Some(name.to_string()), None, name.to_string())
        }
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else { return None };
    let Protocol::Tls = parts.next()? else { return None };
    let tcp = Multiaddr::empty().with(host.clone()).with(Protocol::Tcp(port));
    let mut found = Parts { tcp, host: format!("{text}:{port}"), name, ip, pins: Vec::new() };
    for part in parts.by_ref() {
        match part {
            Protocol::Sni(name) => found.name = Some(name.to_string()),
            Protocol::Certhash(hash) => found.pins.push(hash),
            Protocol::Ws(_) => {
                return parts.all(|part| matches!(part, Protocol::P2p(_))).then_some(found);
            }
            _ => return None,
        }
    }
    None
}

/// A connection as libp2p sees it: bytes.
pub type Connection<S> = RwStreamSink<Messages<TlsStream<S>>>;

impl<T> Transport for Wss<T>
where
    T: Transport + Send + Unpin + 'static,
    T::Error: Send + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send + 'static,
    T::Output: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = Connection<T::Output>;
    type Error = Error<T::Error>;
    type ListenerUpgrade = BoxFuture<'static, Result<Self::Output, Self::Error>>;
    type Dial = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        let parts = parse(&addr).filter(|_| self.acceptor.is_some());
        let Some(parts) = parts else { return Err(TransportError::MultiaddrNotSupported(addr)) };
        self.tcp.listen_on(id, parts.tcp).map_err(|e| e.map(Error::Tcp))?;
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.tcp.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let parts = parse(&addr).ok_or(TransportError::MultiaddrNotSupported(addr))?;
        let tls = |e: &dyn fmt::Display| TransportError::Other(Error::Tls(io::Error::other(e.to_string())));
        let connector = self.connector(parts.pins).map_err(|e| tls(&e))?;
        let name = match (parts.name, parts.ip) {
            (Some(name), _) => ServerName::try_from(name).map_err(|e| tls(&e))?,
            (None, Some(ip)) => ServerName::IpAddress(ip.into()),
            (None, None) => return Err(tls(&"no name")),
        };
        let tcp = self.tcp.dial(parts.tcp, opts).map_err(|e| e.map(Error::Tcp))?;
        Ok(async move {
            let stream = tcp.await.map_err(Error::Tcp)?;
            let stream = connector.connect(name, stream).await.map_err(Error::Tls)?;
            let websocket = |e: tungstenite::Error| Error::WebSocket(Box::new(e));
            // The scheme says what is inside TLS: tungstenite is not asked to do TLS.
            let mut request =
                format!("ws://{}{REQUEST_PATH}", parts.host).into_client_request().map_err(websocket)?;
            if let Ok(agent) = crate::node::swarm::AGENT.parse() {
                request.headers_mut().insert("User-Agent", agent);
            }
            let (stream, _) =
                async_tungstenite::client_async_with_config(request, TlsStream::from(stream), Some(limits()))
                    .await
                    .map_err(websocket)?;
            Ok(RwStreamSink::new(Messages(stream)))
        }
        .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let event = ready!(Pin::new(&mut self.tcp).poll(cx));
        Poll::Ready(match event {
            TransportEvent::NewAddress { listener_id, listen_addr } => {
                TransportEvent::NewAddress { listener_id, listen_addr: self.full(listen_addr) }
            }
            TransportEvent::AddressExpired { listener_id, listen_addr } => {
                TransportEvent::AddressExpired { listener_id, listen_addr: self.full(listen_addr) }
            }
            TransportEvent::Incoming { listener_id, upgrade, local_addr, send_back_addr } => {
                let acceptor = self.acceptor.clone();
                let upgrade = async move {
                    let stream = upgrade.await.map_err(Error::Tcp)?;
                    let acceptor = acceptor.ok_or_else(|| Error::Tls(io::Error::other("no certificate")))?;
                    let stream = acceptor.accept(stream).await.map_err(Error::Tls)?;
                    let stream =
                        async_tungstenite::accept_async_with_config(TlsStream::from(stream), Some(limits()))
                            .map_err(|e| Error::WebSocket(Box::new(e)))
                            .await?;
                    Ok(RwStreamSink::new(Messages(stream)))
                };
                TransportEvent::Incoming {
                    listener_id,
                    upgrade: upgrade.boxed(),
                    local_addr: self.full(local_addr),
                    // Nobody listens there: the peer's hash is not ours.
                    send_back_addr: send_back_addr.with(Protocol::Tls).with(Protocol::Ws("/".into())),
                }
            }
            TransportEvent::ListenerClosed { listener_id, reason } => {
                TransportEvent::ListenerClosed { listener_id, reason: reason.map_err(Error::Tcp) }
            }
            TransportEvent::ListenerError { listener_id, error } => {
                TransportEvent::ListenerError { listener_id, error: Error::Tcp(error) }
            }
        })
    }
}

/// Nothing is kept back, and nothing grows without end.
fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_UNSENT)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// The binary messages of a WebSocket.
pub struct Messages<S>(WebSocketStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for Messages<S> {
    type Item = io::Result<Vec<u8>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(Pin::new(&mut self.0).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => return Poll::Ready(Some(Ok(bytes.into()))),
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(None),
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Some(Err(io::ErrorKind::InvalidData.into())));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(io::Error::other(error)))),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<Vec<u8>> for Messages<S> {
    type Error = io::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_ready(cx).map_err(io::Error::other)
    }

    fn start_send(mut self: Pin<&mut Self>, bytes: Vec<u8>) -> io::Result<()> {
        // Writers above gather what they have; the other side takes no message longer than this.
        for part in bytes.chunks(MAX_MESSAGE) {
            let message = Message::Binary(part.to_vec().into());
            Pin::new(&mut self.0).start_send(message).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx).map_err(io::Error::other)
    }
}

/// Takes the certificates that an address names by their hash; any where it names none.
#[derive(Debug)]
struct Pinned {
    pins: Vec<Hash>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pins.is_empty() || multihash(certificate).is_some_and(|hash| self.pins.contains(&hash)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("the certificate is not the one that the address names".into()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
    use libp2p::{core::Endpoint, core::transport::PortUse, tcp};

    use super::*;

    fn opts() -> DialOpts {
        DialOpts { role: Endpoint::Dialer, port_use: PortUse::New }
    }

    fn tcp() -> tcp::tokio::Transport {
        tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
    }

    /// A listener that answers each connection with what it reads, and its address.
    async fn echo(dir: &Path) -> Multiaddr {
        let certificate = Certificate::own(dir).unwrap();
        let mut server = Wss::new(tcp(), Some(certificate)).unwrap().boxed();
        server.listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0/tls/ws".parse().unwrap()).unwrap();
        let addr = server.next().await.unwrap().into_new_address().unwrap();
        tokio::spawn(async move {
            while let Some(event) = server.next().await {
                let Some((upgrade, _)) = event.into_incoming() else { continue };
                tokio::spawn(async move {
                    let Ok(stream) = upgrade.await else { return };
                    let (reader, mut writer) = stream.split();
                    let _ = futures::io::copy(reader, &mut writer).await;
                });
            }
        });
        addr
    }

    async fn dial(addr: &Multiaddr) -> Result<Connection<tcp::tokio::TcpStream>, Error<io::Error>> {
        let mut client = Wss::new(tcp(), None).unwrap();
        client.dial(addr.clone(), opts()).unwrap().await
    }

    #[tokio::test]
    async fn bytes_come_back_through_tls_and_websocket_and_the_address_names_the_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let addr = echo(dir.path()).await;
        assert!(addr.to_string().contains("/tls/certhash/"), "{addr}");
        let mut stream = dial(&addr).await.unwrap();
        let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let (mut reader, mut writer) = (&mut stream).split();
        let mut heard = vec![0; sent.len()];
        let write = async {
            writer.write_all(&sent).await.unwrap();
            writer.flush().await.unwrap();
        };
        let (_, read) = futures::join!(write, reader.read_exact(&mut heard));
        read.unwrap();
        assert!(heard == sent);
    }

    #[tokio::test]
    async fn another_certificate_than_the_named_one_is_refused_and_any_is_taken_where_none_is_named() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (addr, elsewhere) = (echo(dir.path()).await, echo(other.path()).await);
        let port = |addr: &Multiaddr| addr.iter().nth(1).unwrap().acquire();
        let spliced: Multiaddr = addr
            .iter()
            .enumerate()
            .map(|(i, part)| if i == 1 { port(&elsewhere) } else { part.acquire() })
            .collect();
        let refused = dial(&spliced).await.err().unwrap();
        assert!(matches!(refused, Error::Tls(_)), "{refused}");
        let unnamed: Multiaddr = addr.iter().filter(|part| !matches!(part, Protocol::Certhash(_))).collect();
        assert!(dial(&unnamed).await.is_ok());
    }

    #[tokio::test]
    async fn our_own_certificate_stays_the_same_and_its_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let hashes = [(); 2].map(|()| Certificate::own(dir.path()).unwrap().hash().unwrap());
        assert_eq!(hashes[0], hashes[1]);
        let mode = std::fs::metadata(dir.path().join("tls-key.der")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn only_addresses_of_tls_and_websocket_are_its_own() {
        let id = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
        for text in ["/ip4/192.0.2.1/tcp/443/tls/ws", "/dns4/x.example/tcp/443/tls/sni/y.example/ws"] {
            assert!(is_wss(&text.parse().unwrap()), "{text}");
            assert!(is_wss(&format!("{text}/p2p/{id}").parse().unwrap()), "{text}");
        }
        for text in ["/ip4/192.0.2.1/tcp/443", "/ip4/192.0.2.1/tcp/443/ws", "/ip4/192.0.2.1/tcp/443/tls"] {
            assert!(!is_wss(&text.parse().unwrap()), "{text}");
        }
        let parts = parse(&"/dns4/x/tcp/443/tls/sni/y/ws".parse().unwrap()).unwrap();
        assert_eq!((parts.name.as_deref(), parts.host.as_str()), (Some("y"), "x:443"));
    }
}
