//! Words that two people compare aloud: three words that only the two of them see alike, if nobody stands in between.
//!
//! In each session both sides draw 32 random bytes. The side with the smaller PeerId commits to its own first, learns
//! the other's, then reveals; both hash both with both PeerIds, and show 33 bits of that as words (ZRTP, RFC 6189 section
//! 4.4: without the commitment whoever comes last could search for bytes that give the words it wants). Somebody in the
//! middle has one try in 2^33, and each failed one is seen as words that differ.

use aws_lc_rs::digest::{Context, SHA256};
use libp2p_identity::PeerId;

use crate::words;

/// Words shown: 3 of 2,048, so 33 bits.
pub const WORDS: usize = 3;
/// Bytes drawn by each side.
pub const NONCE: usize = 32;

const COMMIT: &[u8] = b"hallway compare words, commitment v1";
const HASH: &[u8] = b"hallway compare words v1";

/// What is said between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    /// The hash of the first side's bytes.
    Commit([u8; 32]),
    /// The bytes themselves: the second side's as answer to the commitment, then the first side's.
    Reveal([u8; NONCE]),
}

/// One side in one session.
#[derive(Debug, Clone)]
pub struct Compare {
    /// Smaller PeerId first.
    peers: [PeerId; 2],
    first: bool,
    ours: [u8; NONCE],
    /// The first side's commitment, at the second side.
    commitment: Option<[u8; 32]>,
    words: Option<[&'static str; WORDS]>,
    done: bool,
}

impl Compare {
    /// A session begins. What is to be said first, if anything.
    pub fn begin(me: PeerId, peer: PeerId, ours: [u8; NONCE]) -> (Self, Option<Say>) {
        let first = me.to_bytes() < peer.to_bytes();
        let peers = if first { [me, peer] } else { [peer, me] };
        let compare = Self { peers, first, ours, commitment: None, words: None, done: false };
        (compare, first.then(|| Say::Commit(commitment(&peers, &ours))))
    }

    /// What the other side said. Gives what to answer. Anything out of turn ends the matter without words.
    pub fn handle(&mut self, said: Say) -> Option<Say> {
        if self.done {
            return None;
        }
        match said {
            Say::Commit(commitment) if !self.first && self.commitment.is_none() => {
                self.commitment = Some(commitment);
                Some(Say::Reveal(self.ours))
            }
            Say::Reveal(theirs) if self.first => {
                self.finish(self.ours, theirs);
                Some(Say::Reveal(self.ours))
            }
            Say::Reveal(theirs) if self.commitment == Some(commitment(&self.peers, &theirs)) => {
                self.finish(theirs, self.ours);
                None
            }
            _ => {
                self.done = true;
                None
            }
        }
    }

    /// The words, once both have revealed.
    pub fn words(&self) -> Option<[&'static str; WORDS]> {
        self.words
    }

    fn finish(&mut self, first: [u8; NONCE], second: [u8; NONCE]) {
        self.done = true;
        let digest = hash(HASH, &self.peers, &[&first, &second]);
        self.words = Some(words::from_bits(&digest));
    }
}

fn commitment(peers: &[PeerId; 2], nonce: &[u8; NONCE]) -> [u8; 32] {
    hash(COMMIT, peers, &[nonce])
}

fn hash(label: &[u8], peers: &[PeerId; 2], parts: &[&[u8; NONCE]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(label);
    for peer in peers {
        let peer = peer.to_bytes();
        context.update(&(peer.len() as u64).to_be_bytes());
        context.update(&peer);
    }
    parts.iter().for_each(|part| context.update(*part));
    let mut out = [0u8; 32];
    out.iter_mut().zip(context.finish().as_ref()).for_each(|(out, byte)| *out = *byte);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (PeerId, PeerId) {
        let (a, b) = (PeerId::random(), PeerId::random());
        if a.to_bytes() < b.to_bytes() { (a, b) } else { (b, a) }
    }

    /// Lets two sides talk to the end.
    fn talk(one: &mut Compare, say: Option<Say>, other: &mut Compare) {
        let (mut say, mut to_other) = (say, true);
        while let Some(said) = say {
            say = if to_other { other.handle(said) } else { one.handle(said) };
            to_other = !to_other;
        }
    }

    #[test]
    fn both_see_the_same_words_whoever_begins() {
        let (a, b) = pair();
        let (mut one, say) = Compare::begin(a, b, [1; NONCE]);
        let (mut other, nothing) = Compare::begin(b, a, [2; NONCE]);
        assert_eq!(nothing, None);
        talk(&mut one, say, &mut other);
        assert!(one.words().is_some());
        assert_eq!(one.words(), other.words());
        let (mut again, say) = Compare::begin(a, b, [1; NONCE]);
        let (mut other, _) = Compare::begin(b, a, [3; NONCE]);
        talk(&mut again, say, &mut other);
        assert_ne!(again.words(), one.words(), "other words in every session");
    }

    #[test]
    fn somebody_in_the_middle_cannot_have_the_same_words_on_both_sides() {
        // Ten thousand middlemen, each with an identity and bytes of its own: two sessions, one on each side.
        let (a, b) = pair();
        let mut alike = 0;
        for n in 0..10_000u32 {
            let middle = PeerId::random();
            let mut nonce = [0u8; NONCE];
            nonce[..4].copy_from_slice(&n.to_be_bytes());
            let words = |left: PeerId, ours: [u8; NONCE], right: PeerId, theirs: [u8; NONCE]| {
                let (mut one, first) = Compare::begin(left, right, ours);
                let (mut other, second) = Compare::begin(right, left, theirs);
                if first.is_some() {
                    talk(&mut one, first, &mut other)
                } else {
                    talk(&mut other, second, &mut one)
                }
                one.words().unwrap()
            };
            alike += usize::from(words(a, [1; NONCE], middle, nonce) == words(b, [2; NONCE], middle, nonce));
        }
        assert_eq!(alike, 0);
    }

    #[test]
    fn who_reveals_other_bytes_than_it_committed_to_gets_no_words() {
        let (a, b) = pair();
        let (_, say) = Compare::begin(a, b, [1; NONCE]);
        let (mut other, _) = Compare::begin(b, a, [2; NONCE]);
        // The middleman learns the other's bytes first, and would like to change its own.
        assert_eq!(other.handle(say.unwrap()), Some(Say::Reveal([2; NONCE])));
        assert_eq!(other.handle(Say::Reveal([9; NONCE])), None);
        assert_eq!(other.words(), None);
        assert_eq!(other.handle(Say::Reveal([1; NONCE])), None, "there is no second try");
        assert_eq!(other.words(), None);
    }

    #[test]
    fn nothing_is_revealed_without_a_commitment_and_nothing_twice() {
        let (a, b) = pair();
        let (mut other, _) = Compare::begin(b, a, [2; NONCE]);
        assert_eq!(other.handle(Say::Reveal([1; NONCE])), None);
        assert_eq!(other.handle(Say::Commit([0; 32])), None, "out of turn: the matter is ended");
        let (mut one, say) = Compare::begin(a, b, [1; NONCE]);
        let (mut other, _) = Compare::begin(b, a, [2; NONCE]);
        talk(&mut one, say, &mut other);
        let words = one.words();
        assert_eq!(one.handle(Say::Reveal([7; NONCE])), None);
        assert_eq!(one.handle(Say::Commit([7; 32])), None);
        assert_eq!(one.words(), words);
    }
}
