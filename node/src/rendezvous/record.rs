//! Signed peer records: who says that they are reachable where (libp2p RFC 0003 inside the envelope of RFC 0002).
//!
//! Two forms are about: the one of the specification, spoken by go and js, and the one that rust-libp2p signed for years
//! with a domain of its own. We read both. We sign the older by default, because rust clients that meet one record they
//! cannot verify throw the whole list away.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use libp2p::{
    Multiaddr, PeerId,
    core::{PeerRecord, SignedEnvelope, peer_record::FromEnvelopeError, signed_envelope::ReadPayloadError},
    identity::Keypair,
};

/// Longest signed record in bytes that a server stores or a client reads.
pub const MAX_RECORD: usize = 4096;

/// Most addresses in a record that a server stores.
pub const MAX_RECORD_ADDRESSES: usize = 16;

/// Longest address in bytes. A relayed address with two PeerIds and a name needs about 200.
pub const MAX_ADDRESS: usize = 512;

/// Addresses of one peer that a client keeps or puts into its own record.
pub const MAX_PEER_ADDRESSES: usize = 8;

/// Which of the two domains a record was signed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `libp2p-peer-record`, of the specification.
    Standard,
    /// `libp2p-routing-state`, of rust-libp2p.
    Legacy,
}

/// A record whose signature and PeerId have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Who signed it, about themselves.
    pub peer: PeerId,
    /// At most [`MAX_RECORD_ADDRESSES`].
    pub addresses: Vec<Multiaddr>,
    /// How it was signed.
    pub form: Form,
}

/// A record that nobody should act on. A server answers `InvalidSignedPeerRecord`; a client skips it and reads the next.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Longer than [`MAX_RECORD`].
    #[error("a record of {0} bytes, at most {MAX_RECORD} are accepted")]
    TooLong(usize),
    /// More than [`MAX_RECORD_ADDRESSES`], or one longer than [`MAX_ADDRESS`].
    #[error("too many or too long addresses")]
    Addresses,
    /// Not an envelope, or a key of an unknown kind.
    #[error("not a signed envelope")]
    Malformed,
    /// The signature is wrong, in either form.
    #[error("the signature does not verify")]
    Forged,
    /// Correctly signed, but not a peer record about the signer.
    #[error("not a peer record of the signer")]
    NotOfSigner,
}

/// Checks a signed record in either form.
///
/// # Errors
/// See [`RecordError`].
pub fn verify(bytes: &[u8]) -> Result<Verified, RecordError> {
    if bytes.len() > MAX_RECORD {
        return Err(RecordError::TooLong(bytes.len()));
    }
    let envelope = SignedEnvelope::from_protobuf_encoding(bytes).map_err(|_| RecordError::Malformed)?;
    let (record, form) = match PeerRecord::from_signed_envelope_interop(envelope.clone()) {
        Ok(record) => (record, Form::Standard),
        Err(FromEnvelopeError::BadPayload(ReadPayloadError::UnexpectedPayloadType { .. })) => {
            (PeerRecord::from_signed_envelope(envelope).map_err(refused)?, Form::Legacy)
        }
        Err(error) => return Err(refused(error)),
    };
    let addresses = record.addresses();
    if addresses.len() > MAX_RECORD_ADDRESSES || addresses.iter().any(|a| a.len() > MAX_ADDRESS) {
        return Err(RecordError::Addresses);
    }
    Ok(Verified { peer: record.peer_id(), addresses: addresses.to_vec(), form })
}

fn refused(error: FromEnvelopeError) -> RecordError {
    match error {
        FromEnvelopeError::BadPayload(ReadPayloadError::InvalidSignature) => RecordError::Forged,
        FromEnvelopeError::BadPayload(_) => RecordError::Malformed,
        _ => RecordError::NotOfSigner,
    }
}

/// Signs the first [`MAX_PEER_ADDRESSES`] of `addresses` as ours.
///
/// # Errors
/// When the key cannot sign (never with Ed25519).
pub fn sign(
    keypair: &Keypair,
    addresses: &[Multiaddr],
    form: Form,
) -> Result<Vec<u8>, libp2p::identity::SigningError> {
    let addresses =
        addresses.iter().filter(|a| a.len() <= MAX_ADDRESS).take(MAX_PEER_ADDRESSES).cloned().collect();
    let record = match form {
        Form::Standard => PeerRecord::new_interop(keypair, addresses),
        Form::Legacy => PeerRecord::new(keypair, addresses),
    }?;
    Ok(record.into_signed_envelope().into_protobuf_encoding())
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn addresses(count: usize) -> Vec<Multiaddr> {
        (0..count).map(|i| format!("/ip4/203.0.113.7/udp/{}/quic-v1", 1000 + i).parse().unwrap()).collect()
    }

    /// A record with any number of addresses, past what [`sign`] would write.
    pub(crate) fn signed(keypair: &Keypair, addresses: Vec<Multiaddr>) -> Vec<u8> {
        PeerRecord::new_interop(keypair, addresses).unwrap().into_signed_envelope().into_protobuf_encoding()
    }

    #[test]
    fn both_forms_are_accepted_and_told_apart() {
        let keypair = Keypair::generate_ed25519();
        for form in [Form::Standard, Form::Legacy] {
            let record = sign(&keypair, &addresses(3), form).unwrap();
            let verified = verify(&record).unwrap();
            assert_eq!(verified, Verified { peer: keypair.public().into(), addresses: addresses(3), form });
        }
    }

    #[test]
    fn sixteen_addresses_are_accepted_and_seventeen_refused() {
        let keypair = Keypair::generate_ed25519();
        assert_eq!(verify(&signed(&keypair, addresses(MAX_RECORD_ADDRESSES))).unwrap().addresses.len(), 16);
        let one_more = signed(&keypair, addresses(MAX_RECORD_ADDRESSES + 1));
        assert!(matches!(verify(&one_more), Err(RecordError::Addresses)));
    }

    #[test]
    fn a_record_longer_than_the_bound_is_refused_before_it_is_decoded() {
        assert!(matches!(verify(&vec![0; MAX_RECORD + 1]), Err(RecordError::TooLong(4097))));
        assert!(matches!(verify(&vec![0; MAX_RECORD]), Err(RecordError::Malformed)));
    }

    #[test]
    fn a_record_about_somebody_else_is_refused_even_when_well_signed() {
        // The payload of ana's record in an envelope that ben signs.
        let (ana, ben) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let envelope = PeerRecord::new_interop(&ana, addresses(1)).unwrap().into_signed_envelope();
        let (payload, _) =
            envelope.payload_and_signing_key("libp2p-peer-record".into(), &[0x03, 0x01]).unwrap();
        let stolen =
            SignedEnvelope::new(&ben, "libp2p-peer-record".into(), vec![0x03, 0x01], payload.to_vec())
                .unwrap();
        assert!(matches!(verify(&stolen.into_protobuf_encoding()), Err(RecordError::NotOfSigner)));
    }

    #[test]
    fn our_own_record_keeps_the_first_eight_addresses() {
        let keypair = Keypair::generate_ed25519();
        let record = sign(&keypair, &addresses(20), Form::Legacy).unwrap();
        assert_eq!(verify(&record).unwrap().addresses, addresses(8));
    }

    proptest! {
        #[test]
        fn one_changed_byte_never_yields_another_record(at: prop::sample::Index, bit in 0u8..8) {
            let keypair = Keypair::ed25519_from_bytes([7; 32]).unwrap();
            let good = signed(&keypair, addresses(2));
            let expected = verify(&good).unwrap();
            let mut bad = good.clone();
            let at = at.index(bad.len());
            bad[at] ^= 1 << bit;
            if let Ok(verified) = verify(&bad) {
                prop_assert_eq!(verified, expected);
            }
        }

        #[test]
        fn any_bytes_end_in_a_record_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = verify(&bytes);
        }
    }
}
