//! Safety words: an identity as six words that two people can read to each other (66 bits of a hash).

use bip39::Language;
use libp2p_identity::PeerId;

/// Words shown for one identity: 6 of 2,048, so 66 bits. Finding another key with the same words takes 2^66 tries.
pub const SAFETY_WORDS: usize = 6;

/// The words of an identity, from the first 66 bits of SHA-256 over its PeerId.
pub fn safety_words(peer: &PeerId) -> [&'static str; SAFETY_WORDS] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    context.update(b"hallway safety words v1");
    context.update(&peer.to_bytes());
    from_bits(context.finish().as_ref())
}

/// The first bits of a hash as words, 11 each; at most 11 words.
pub fn from_bits<const WORDS: usize>(hash: &[u8]) -> [&'static str; WORDS] {
    let mut bits = 0u128;
    for byte in hash.iter().take(16) {
        bits = (bits << 8) | u128::from(*byte);
    }
    let list = Language::English.word_list();
    std::array::from_fn(|word| {
        let index = (bits >> (128 - 11 * (word + 1))) & 0x7ff;
        list.get(index as usize).copied().unwrap_or_default()
    })
}

/// [`safety_words`] in one line, separated by spaces.
pub fn safety_line(peer: &PeerId) -> String {
    safety_words(peer).join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p_identity::Keypair;

    #[test]
    fn the_words_of_an_identity_never_change() {
        let key = Keypair::ed25519_from_bytes([7u8; 32]).unwrap();
        assert_eq!(safety_line(&key.public().to_peer_id()), GOLDEN);
    }

    #[test]
    fn two_identities_have_different_words() {
        let words =
            |seed: u8| safety_words(&Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id());
        let all: std::collections::HashSet<_> = (0..200).map(words).collect();
        assert_eq!(all.len(), 200);
        assert!(all.iter().flatten().all(|word| word.len() >= 3));
    }

    const GOLDEN: &str = "tomato credit tube tornado rule often";
}
