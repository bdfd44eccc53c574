//! Who speaks, where a server passes voice on.
//!
//! All members know the key that a voice is sealed with. On a connection between the two it is the connection that proves
//! who speaks; through a server nothing would, and a member who is in league with the server could speak as another one.
//! So what goes up to a server carries a proof for each receiver, which only the speaker and that receiver can make:
//!
//! ```text
//! sealed voice | proof 8 bytes, one per receiver | number of proofs u8
//! ```
//!
//! A proof is the beginning of HMAC-SHA-256 (RFC 2104) over the sealed voice under a key of the session and the direction.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use aws_lc_rs::{constant_time, hmac};
use bytes::Bytes;

use super::cipher::{ChainKey, expand};

/// Bytes of one proof.
pub const PROOF: usize = 8;
const LABEL: &[u8] = b"hallway relayed voice v1";

/// A proof for one receiver.
pub type Proof = [u8; PROOF];

/// Proves our voice to one member, and its voice to us.
#[derive(Debug, Clone)]
pub struct Proofs {
    ours: hmac::Key,
    theirs: hmac::Key,
}

impl Proofs {
    /// From the first chain keys of both directions.
    pub(crate) fn new(send: &ChainKey, receive: &ChainKey) -> Self {
        let key = |chain| hmac::Key::new(hmac::HMAC_SHA256, expand(chain, LABEL).as_slice());
        Self { ours: key(send), theirs: key(receive) }
    }

    /// That we speak.
    pub fn prove(&self, sealed: &[u8]) -> Proof {
        proof(&self.ours, sealed)
    }

    /// The sealed voice, where the member proves that it is its own.
    pub fn verified(&self, mut datagram: Bytes) -> Option<Bytes> {
        let count = usize::from(*datagram.last()?);
        let sealed = datagram.len().checked_sub(1)?.checked_sub(count.checked_mul(PROOF)?)?;
        let trailer = datagram.split_off(sealed);
        let wanted = proof(&self.theirs, &datagram);
        let (proofs, _) = trailer.as_chunks::<PROOF>();
        let is_proven = |given: &Proof| constant_time::verify_slices_are_equal(given, &wanted).is_ok();
        proofs.iter().take(count).any(is_proven).then_some(datagram)
    }
}

fn proof(key: &hmac::Key, sealed: &[u8]) -> Proof {
    hmac::sign(key, sealed).as_ref().first_chunk().copied().unwrap_or_default()
}

/// Sealed voice as it goes up to a server. At most 255 receivers: those beyond get nothing that they could believe.
pub fn with_proofs(sealed: &[u8], proofs: impl ExactSizeIterator<Item = Proof>) -> Bytes {
    let count = u8::try_from(proofs.len()).unwrap_or(u8::MAX);
    let mut datagram =
        Vec::with_capacity(sealed.len().saturating_add(proofs.len().saturating_mul(PROOF)).saturating_add(1));
    datagram.extend_from_slice(sealed);
    proofs.take(count.into()).for_each(|proof| datagram.extend_from_slice(&proof));
    datagram.push(count);
    datagram.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    /// The two ends of the session between two of `ana`, `ben` and `carl`.
    fn pair(secret: u8) -> (Proofs, Proofs) {
        let (to, from) = (Zeroizing::new([secret; 32]), Zeroizing::new([!secret; 32]));
        (Proofs::new(&to, &from), Proofs::new(&from, &to))
    }

    #[test]
    fn each_receiver_finds_the_proof_meant_for_it_and_a_fellow_member_cannot_make_it() {
        let (to_ben, at_ben) = pair(1);
        let (to_carl, at_carl) = pair(2);
        let voice = b"\x01sealed with a key that all members know";
        let sent = with_proofs(voice, [to_ben.prove(voice), to_carl.prove(voice)].into_iter());
        assert_eq!(at_ben.verified(sent.clone()).as_deref(), Some(&voice[..]));
        assert_eq!(at_carl.verified(sent).as_deref(), Some(&voice[..]));
        // What Carl can make: under his own keys with Ben, and under Ana's with him.
        let (_, carl_to_ben) = pair(3);
        for forged in [carl_to_ben.prove(voice), at_carl.prove(voice), to_carl.prove(voice)] {
            assert_eq!(at_ben.verified(with_proofs(voice, [forged].into_iter())), None);
        }
        // A proof of another packet, or our own word back.
        let other = with_proofs(b"\x01another", [to_ben.prove(voice)].into_iter());
        assert_eq!(at_ben.verified(other), None);
        assert_eq!(to_ben.verified(with_proofs(voice, [to_ben.prove(voice)].into_iter())), None);
    }

    #[test]
    fn voice_without_a_proof_is_not_believed() {
        let (_, at_ben) = pair(1);
        for bytes in [&b""[..], b"\x00", b"\x01", b"\x01sealed", b"\x01sealed\x00", &[1; 9], &[255; 300]] {
            assert_eq!(at_ben.verified(Bytes::copy_from_slice(bytes)), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_none_believed(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (_, at_ben) = pair(1);
            prop_assert_eq!(at_ben.verified(bytes.into()), None);
        }
    }
}
