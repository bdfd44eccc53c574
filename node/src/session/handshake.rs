//! The handshake: `Noise_XXpsk3_25519_ChaChaPoly_BLAKE2s` (Noise revision 34), in three datagrams.
//!
//! ```text
//! [0x10][1][handshake id u64][version u8][room tag 16][e]             initiator > responder
//! [0x10][2][handshake id u64][e, ee, s, es, identity proof]           responder > initiator
//! [0x10][3][handshake id u64][s, se, psk, identity proof]             initiator > responder
//! [0x10][4][handshake id u64][reason u8]                              responder > initiator, instead
//! ```
//!
//! Prologue: protocol, both PeerIds (initiator first) and room, so that nothing said elsewhere can be replayed here.
//! Identity proof: the libp2p public key and its signature over the Noise static key; its PeerId must be the one that
//! the transport has verified. The psk derives from the room's secret and comes last, so the responder learns in the
//! third message whether the initiator knows it, and only then.
//!
//! A phase is a type: [`Hello`] (1 sent), [`Answer`] (2 sent), [`Proof`] (3 sent). A step consumes it or, where the
//! bytes were not authentic, gives it back unharmed. `snow` 0.10 promises that too, but on a failed read restores the
//! hash state and not the cipher, which a half-readable third message has moved on; so [`Answer`] rebuilds itself.

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use libp2p_identity::{Keypair, PeerId, PublicKey};
use snow::{Builder, HandshakeState};
use std::sync::Arc;
use zeroize::Zeroizing;

use super::channel::Keys;
use super::{Error, Refusal};
use crate::invite::RoomSecrets;

/// First byte of a handshake datagram.
pub const HANDSHAKE: u8 = 0x10;
/// Version of everything under a session. A peer with another one is told so.
pub const VERSION: u8 = 1;
const PATTERN: &str = "Noise_XXpsk3_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"hallway session v1";
const SIGNED: &[u8] = b"hallway noise static key v1:";
/// Largest Noise message read or written here: the third has some 170 bytes.
const MAX_NOISE: usize = 512;
const TAG: usize = 16;

/// Who we are, for every session of this process in one room. Cheap to clone.
#[derive(Clone)]
pub struct Local(Arc<Inner>);

struct Inner {
    peer: PeerId,
    /// The libp2p public key and its signature over the static key, as sent.
    proof: Vec<u8>,
    /// The Noise static key: made per process, so that the identity's key signs once and is needed no more.
    static_key: Zeroizing<Vec<u8>>,
    psk: Zeroizing<[u8; 32]>,
    room: RoomSecrets,
}

impl Local {
    /// Makes this process's Noise key for `room` and signs it with `identity`.
    ///
    /// # Errors
    /// [`Error::Crypto`] where the identity cannot sign or the system has no random numbers.
    pub fn new(identity: &Keypair, room: &RoomSecrets) -> Result<Self, Error> {
        let pair = Builder::new(PATTERN.parse().map_err(|_| Error::Crypto)?)
            .generate_keypair()
            .map_err(|_| Error::Crypto)?;
        let public = identity.public().encode_protobuf();
        let signature = identity.sign(&[SIGNED, &pair.public].concat()).map_err(|_| Error::Crypto)?;
        let mut proof = vec![u8::try_from(public.len()).map_err(|_| Error::Crypto)?];
        proof.extend_from_slice(&public);
        proof.extend_from_slice(&signature);
        Ok(Self(Arc::new(Inner {
            peer: identity.public().to_peer_id(),
            proof,
            static_key: Zeroizing::new(pair.private),
            psk: room.psk(),
            room: room.clone(),
        })))
    }

    /// Our own PeerId.
    pub fn peer(&self) -> PeerId {
        self.0.peer
    }

    fn builder(
        &self,
        initiator: &PeerId,
        responder: &PeerId,
        run: impl FnOnce(Builder<'_>) -> Noise,
    ) -> Noise {
        let mut prologue = PROLOGUE.to_vec();
        let (initiator, responder) = (initiator.to_bytes(), responder.to_bytes());
        for part in [&initiator[..], &responder, self.0.room.name().as_str().as_bytes()] {
            prologue.extend_from_slice(&(part.len() as u64).to_be_bytes());
            prologue.extend_from_slice(part);
        }
        let builder = Builder::new(PATTERN.parse()?);
        run(builder.prologue(&prologue)?.psk(3, &self.0.psk)?.local_private_key(&self.0.static_key)?)
    }
}

type Noise = Result<HandshakeState, snow::Error>;

/// A handshake datagram, read but not believed.
#[derive(Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    Hello { id: u64, version: u8, tag: [u8; 16], noise: &'a [u8] },
    Answer { id: u64, noise: &'a [u8] },
    Proof { id: u64, noise: &'a [u8] },
    Refusal { id: u64, reason: u8 },
}

impl<'a> Datagram<'a> {
    /// `None` where it is none, or too long for one.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (&[HANDSHAKE, kind], rest) = datagram.split_first_chunk()? else { return None };
        let (id, rest) = rest.split_first_chunk()?;
        let id = u64::from_be_bytes(*id);
        if rest.len() > MAX_NOISE {
            return None;
        }
        match kind {
            1 => {
                let (&version, rest) = rest.split_first()?;
                // What follows the version is that version's own affair.
                if version != VERSION {
                    return Some(Self::Hello { id, version, tag: [0; 16], noise: &[] });
                }
                let (tag, noise) = rest.split_first_chunk()?;
                Some(Self::Hello { id, version, tag: *tag, noise })
            }
            2 => Some(Self::Answer { id, noise: rest }),
            3 => Some(Self::Proof { id, noise: rest }),
            4 => rest.first().map(|&reason| Self::Refusal { id, reason }),
            _ => None,
        }
    }
}

/// Why a handshake is turned down, as a byte on the wire.
pub const NOT_THIS_ROOM: u8 = 0;

/// A refusal's datagram.
pub fn refusal(id: u64, reason: u8) -> Vec<u8> {
    let mut datagram = framed(4, id);
    datagram.push(reason);
    datagram
}

fn framed(kind: u8, id: u64) -> Vec<u8> {
    let mut datagram = vec![HANDSHAKE, kind];
    datagram.extend_from_slice(&id.to_be_bytes());
    datagram
}

/// The tag that a first message from `from` to us carries if it means our room.
pub fn expected_tag(local: &Local, from: &PeerId) -> [u8; 16] {
    local.0.room.room_tag(from, &local.0.peer)
}

/// We called: the first message is out.
pub struct Hello {
    noise: Box<HandshakeState>,
    local: Local,
    pub id: u64,
    pub datagram: Vec<u8>,
}

/// What came of a step.
pub enum Step<Next, This> {
    /// On to the next phase.
    Done(Next),
    /// Not authentic: this phase as it was. `proven` tells that the sender held the handshake's keys, so that what
    /// failed was the psk.
    Again { this: This, proven: bool },
    /// Authentic, and to be refused.
    Refuse(Refusal),
}

impl Hello {
    pub fn new(local: &Local, peer: &PeerId) -> Result<Self, Error> {
        let id = rand::random();
        let mut noise = local
            .builder(&local.0.peer, peer, |builder| builder.build_initiator())
            .map_err(|_| Error::Crypto)?;
        let mut datagram = framed(1, id);
        datagram.push(VERSION);
        datagram.extend_from_slice(&local.0.room.room_tag(&local.0.peer, peer));
        write(&mut noise, &[], &mut datagram)?;
        Ok(Self { noise: Box::new(noise), local: local.clone(), id, datagram })
    }

    /// Takes the second message, writes the third.
    pub fn handle_answer(mut self, noise: &[u8], peer: &PeerId) -> Step<Proof, Self> {
        let Some(payload) = read(&mut self.noise, noise) else {
            return Step::Again { this: self, proven: false };
        };
        if !is_proof_of(peer, &payload, self.noise.get_remote_static()) {
            return Step::Refuse(Refusal::Identity);
        }
        let mut datagram = framed(3, self.id);
        match write(&mut self.noise, &self.local.0.proof, &mut datagram) {
            Ok(()) => Step::Done(Proof { id: self.id, datagram, keys: keys(&mut self.noise) }),
            Err(_) => Step::Refuse(Refusal::Identity),
        }
    }
}

/// We called and proved ourselves: waiting for the first datagram under the new keys.
pub struct Proof {
    pub id: u64,
    pub datagram: Vec<u8>,
    pub keys: Keys,
}

/// We were called and answered: waiting for the proof.
pub struct Answer {
    noise: Box<HandshakeState>,
    local: Local,
    peer: PeerId,
    hello: Vec<u8>,
    /// Our ephemeral key, kept to rebuild `noise`: the same key over the same transcript, never any other.
    ephemeral: Zeroizing<[u8; 32]>,
    pub id: u64,
    pub datagram: Vec<u8>,
}

impl Answer {
    /// `None` where the first message is no Noise message of our room and peers.
    pub fn new(local: &Local, peer: &PeerId, id: u64, message: &[u8]) -> Option<Self> {
        let mut ephemeral = Zeroizing::new([0u8; 32]);
        SystemRandom::new().fill(ephemeral.as_mut_slice()).ok()?;
        let (noise, answer) = Self::build(local, peer, message, &ephemeral)?;
        let mut datagram = framed(2, id);
        datagram.extend_from_slice(&answer);
        let (local, peer, hello) = (local.clone(), *peer, message.to_vec());
        Some(Self { noise, local, peer, hello, ephemeral, id, datagram })
    }

    fn build(
        local: &Local,
        peer: &PeerId,
        hello: &[u8],
        ephemeral: &Zeroizing<[u8; 32]>,
    ) -> Option<(Box<HandshakeState>, Vec<u8>)> {
        let fixed = |builder: Builder<'_>| {
            builder.fixed_ephemeral_key_for_testing_only(ephemeral.as_slice()).build_responder()
        };
        let mut noise = local.builder(peer, &local.0.peer, fixed).ok()?;
        read(&mut noise, hello)?;
        let mut answer = Vec::new();
        write(&mut noise, &local.0.proof, &mut answer).ok()?;
        Some((Box::new(noise), answer))
    }

    /// Whether it answers this first message.
    pub fn is_to(&self, message: &[u8]) -> bool {
        self.hello == message
    }

    /// Takes the third message.
    pub fn handle_proof(mut self, noise: &[u8]) -> Step<Keys, Self> {
        let Some(payload) = read(&mut self.noise, noise) else {
            // The static key in front of the psk was readable: an honest handshake up to there.
            let proven = self.noise.get_remote_static().is_some();
            if let Some((fresh, _)) = Self::build(&self.local, &self.peer, &self.hello, &self.ephemeral) {
                self.noise = fresh;
            }
            return Step::Again { this: self, proven };
        };
        if is_proof_of(&self.peer, &payload, self.noise.get_remote_static()) {
            Step::Done(keys(&mut self.noise))
        } else {
            Step::Refuse(Refusal::Identity)
        }
    }
}

fn read(noise: &mut HandshakeState, message: &[u8]) -> Option<Vec<u8>> {
    let mut payload = vec![0u8; MAX_NOISE];
    let length = noise.read_message(message, &mut payload).ok()?;
    payload.truncate(length);
    Some(payload)
}

fn write(noise: &mut HandshakeState, payload: &[u8], datagram: &mut Vec<u8>) -> Result<(), Error> {
    let mut message = [0u8; MAX_NOISE];
    let length = noise.write_message(payload, &mut message).map_err(|_| Error::Crypto)?;
    datagram.extend_from_slice(message.get(..length).ok_or(Error::Crypto)?);
    Ok(())
}

/// Whether `payload` shows that `peer` owns the Noise static key that came with it.
fn is_proof_of(peer: &PeerId, payload: &[u8], static_key: Option<&[u8]>) -> bool {
    let proven = || {
        let (length, rest) = payload.split_first()?;
        let (key, signature) = rest.split_at_checked(usize::from(*length))?;
        let key = PublicKey::try_decode_protobuf(key).ok()?;
        let signed = key.verify(&[SIGNED, static_key?].concat(), signature);
        Some(signed && key.to_peer_id() == *peer)
    };
    proven().unwrap_or(false)
}

/// The two directions' keys and the session's name. Called once the last message is read or written.
fn keys(noise: &mut HandshakeState) -> Keys {
    let (initiator, responder) = noise.dangerously_get_raw_split();
    let (initiator, responder) = (Zeroizing::new(initiator), Zeroizing::new(responder));
    // The handshake hash is public to whoever knows the transcript, and unique: a good name.
    let name = noise.get_handshake_hash().first_chunk().copied().unwrap_or_default();
    let (send, receive) = if noise.is_initiator() { (initiator, responder) } else { (responder, initiator) };
    Keys { id: u32::from_be_bytes(name), send, receive }
}

const _: () = assert!(MAX_NOISE > 2 * (32 + TAG) + 255);

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
