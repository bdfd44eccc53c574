//! TLS as libp2p wants it, with a first packet that fits into one datagram.
//!
//! The key exchange that libp2p-tls offers first, X25519MLKEM768, makes both hellos two datagrams long: twice the chance
//! that a lossy link loses one, and more than a thin link's queue holds. We dial with X25519 alone (RFC 7748), and answer
//! whatever a peer offers. What keeps a private room's voice from whoever records it until there are quantum computers is
//! its secret, mixed into every session (see SECURITY.md).

use std::sync::Arc;

use libp2p_tls::certificate;
use quinn::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs::kx_group::X25519},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// What `libp2p_tls::make_client_config` makes, but for the key exchange.
///
/// # Errors
/// Where the cipher suites fit no version of TLS, which a newer libp2p-tls might bring about.
pub(super) fn client(libp2p: &ClientConfig) -> Result<ClientConfig, Error> {
    let provider =
        CryptoProvider { kx_groups: vec![X25519], ..CryptoProvider::clone(libp2p.crypto_provider()) };
    let schemes = libp2p.crypto_provider().signature_verification_algorithms.supported_schemes();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SelfSigned { schemes }))
        .with_client_cert_resolver(libp2p.client_auth_cert_resolver.clone());
    config.alpn_protocols.clone_from(&libp2p.alpn_protocols);
    Ok(config)
}

/// Accepts who proves the key in their own certificate; which PeerId that is, the transport compares.
#[derive(Debug)]
struct SelfSigned {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for SelfSigned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !more.is_empty() {
            return Err(Error::General("more than one certificate".to_owned()));
        }
        certificate::parse(certificate).map_err(|_| CertificateError::BadEncoding)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let parsed = certificate::parse(certificate).map_err(|_| CertificateError::BadEncoding)?;
        let verified = parsed.verify_signature(signed.scheme, message, signed.signature());
        verified.map_err(|_| CertificateError::BadSignature)?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;
    use quinn::rustls::{
        NamedGroup,
        quic::{ClientConnection, ServerConnection, Version},
    };

    use super::*;

    /// A datagram of 1,200 bytes, less the headers and seals of an Initial and a Handshake packet with an acknowledgement.
    const ONE_DATAGRAM: usize = 1200 - 130;

    fn keypair() -> Keypair {
        Keypair::generate_ed25519()
    }

    fn dialler() -> ClientConnection {
        let config = client(&libp2p_tls::make_client_config(&keypair(), None).unwrap()).unwrap();
        let (config, name) = (Arc::new(config), "l".try_into().unwrap());
        // The transport parameters of QUIC take about so much.
        ClientConnection::new(config, Version::V1, name, vec![0; 100]).unwrap()
    }

    /// The dialler's first flight, and the listener's in its parts, each under other keys.
    fn flights(config: rustls::ServerConfig, dialler: &mut ClientConnection) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut listener = ServerConnection::new(Arc::new(config), Version::V1, vec![0; 150]).unwrap();
        let mut hello = Vec::new();
        dialler.write_hs(&mut hello);
        listener.read_hs(&hello).unwrap();
        assert_eq!(listener.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519);
        let answer = std::iter::from_fn(|| {
            let mut part = Vec::new();
            listener.write_hs(&mut part);
            (!part.is_empty()).then_some(part)
        });
        (hello, answer.collect())
    }

    #[test]
    fn each_sides_first_flight_fits_into_one_datagram() {
        let config = libp2p_tls::make_server_config(&keypair()).unwrap();
        let (hello, answer) = flights(config, &mut dialler());
        let answer: usize = answer.iter().map(Vec::len).sum();
        assert!(hello.len() <= ONE_DATAGRAM && answer <= ONE_DATAGRAM, "{} B and {answer} B", hello.len());
    }

    #[test]
    fn one_who_does_not_hold_the_key_of_its_certificate_is_refused() {
        let (theirs, own, mut dialler) = (keypair(), keypair(), dialler());
        let mut thief = libp2p_tls::make_server_config(&own).unwrap();
        let (certificate, _) = certificate::generate(&theirs).unwrap();
        thief.cert_resolver = Arc::new(Stolen { certificate, inner: thief.cert_resolver.clone() });
        let (_, answer) = flights(thief, &mut dialler);
        let read = answer.iter().try_for_each(|part| {
            dialler.read_hs(part)?;
            dialler.write_hs(&mut Vec::new());
            Ok(())
        });
        assert_eq!(read, Err(Error::InvalidCertificate(CertificateError::BadSignature)));
    }

    /// Shows one certificate and signs with the key of another.
    #[derive(Debug)]
    struct Stolen {
        certificate: CertificateDer<'static>,
        inner: Arc<dyn rustls::server::ResolvesServerCert>,
    }

    impl rustls::server::ResolvesServerCert for Stolen {
        fn resolve(&self, hello: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
            let key = self.inner.resolve(hello)?.key.clone();
            Some(Arc::new(rustls::sign::CertifiedKey::new(vec![self.certificate.clone()], key)))
        }
    }
}
