//! What members tell each other inside their sessions: `[kind u16, big-endian][body, postcard]`.
//!
//! Unknown kinds are ignored, and so are bytes after a body that is understood: a later version may append fields.
//! Kinds 1 to 15 are the room's, 16 to 31 what people say.

use libp2p::Multiaddr;
use libp2p_identity::PeerId;
use serde::{Deserialize, Serialize};

use super::chat::Place;
use super::compare::{NONCE, Say};
use crate::session::keys::SenderKey;

/// Version of the control messages, in [`Hello`].
pub const CONTROL_VERSION: u16 = 1;
/// In [`Hello::features`]: the sender sits behind a NAT that gave it no port over IPv4.
pub const FEATURE_BEHIND_NAT: u64 = 1;
/// Members listed in one message.
pub const MAX_LISTED: usize = 16;
/// Addresses kept of one member; the first ones stay.
pub const MAX_ADDRESSES: usize = 8;
/// Longest text of a chat line on the wire, in bytes.
pub const MAX_CHAT_BYTES: usize = 4096;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Who I am: first in every session, and again when it changes.
    Hello(Hello),
    /// The key under which I seal.
    Key(SenderKey),
    /// I have the key of this id.
    KeyAck {
        /// Its key id.
        kid: u64,
    },
    /// Others in the room.
    Members(Vec<Listed>),
    /// I am going.
    Leave,
    /// You cannot come in.
    Refused(RoomRefusal),
    /// A line of chat.
    Chat {
        /// Made up by the sender, one per line.
        id: u64,
        /// As the sender wrote it: not clean yet.
        text: String,
        /// Where it stands among those told to this recipient.
        place: Place,
    },
    /// I have all lines of this run up to this number.
    ChatAck {
        /// See [`Place::run`].
        run: u64,
        /// See [`Place::number`].
        number: u64,
    },
    /// Towards words to compare.
    Compare(Say),
}

/// Who somebody is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`CONTROL_VERSION`] of the sender.
    pub version: u16,
    /// What the sender's later features are; bits unknown here are ignored.
    pub features: u64,
    /// Display name: not clean yet.
    pub name: String,
    /// Where others may dial the sender.
    pub addresses: Vec<Multiaddr>,
}

/// A member as another one knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Who.
    pub peer: PeerId,
    /// Where it may be dialled: claims, to be proven by the handshake.
    pub addresses: Vec<Multiaddr>,
}

/// Why a member does not let us in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomRefusal {
    /// There are as many members as a room holds.
    Full,
    /// The invite's time is over.
    Closed,
    /// The invite was for one, and somebody has used it.
    Used,
    /// A reason of a later version.
    Other(u8),
}

/// Bytes that are no message of their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a malformed control message; the peer may be newer, or broken")]
pub struct Malformed;

impl RoomRefusal {
    fn code(self) -> u8 {
        match self {
            Self::Full => 1,
            Self::Closed => 2,
            Self::Used => 3,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Full,
            2 => Self::Closed,
            3 => Self::Used,
            code => Self::Other(code),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct HelloBody {
    version: u16,
    features: u64,
    name: String,
    addresses: Vec<Vec<u8>>,
}

const HELLO: u16 = 1;
const KEY: u16 = 2;
const KEY_ACK: u16 = 3;
const MEMBERS: u16 = 4;
const LEAVE: u16 = 5;
const REFUSED: u16 = 6;
const COMMIT: u16 = 7;
const REVEAL: u16 = 8;
const CHAT: u16 = 16;
const CHAT_ACK: u16 = 17;

impl Control {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => {
                let addresses = address_bytes(&hello.addresses);
                let (version, features, name) = (hello.version, hello.features, hello.name.clone());
                write(HELLO, &HelloBody { version, features, name, addresses })
            }
            Self::Key(key) => write(KEY, key),
            Self::KeyAck { kid } => write(KEY_ACK, kid),
            Self::Members(members) => {
                let listed = members.iter().take(MAX_LISTED);
                let body: Vec<_> = listed.map(|m| (m.peer.to_bytes(), address_bytes(&m.addresses))).collect();
                write(MEMBERS, &body)
            }
            Self::Leave => write(LEAVE, &()),
            Self::Refused(refusal) => write(REFUSED, &refusal.code()),
            Self::Chat { id, text, place } => write(CHAT, &(id, text, place.run, place.number, place.first)),
            Self::ChatAck { run, number } => write(CHAT_ACK, &(run, number)),
            Self::Compare(Say::Commit(hash)) => write(COMMIT, hash),
            Self::Compare(Say::Reveal(nonce)) => write(REVEAL, nonce),
        }
    }

    /// Reads a message; `Ok(None)` is one of a kind that this version does not know.
    ///
    /// # Errors
    /// [`Malformed`] where the body is not what its kind says.
    pub fn decode(message: &[u8]) -> Result<Option<Self>, Malformed> {
        let (kind, body) = message.split_first_chunk().ok_or(Malformed)?;
        Ok(Some(match u16::from_be_bytes(*kind) {
            HELLO => {
                let body: HelloBody = read(body)?;
                let addresses = addresses(body.addresses);
                Self::Hello(Hello {
                    version: body.version,
                    features: body.features,
                    name: body.name,
                    addresses,
                })
            }
            KEY => Self::Key(read(body)?),
            KEY_ACK => Self::KeyAck { kid: read(body)? },
            MEMBERS => {
                let listed: Vec<(Vec<u8>, Vec<Vec<u8>>)> = read(body)?;
                let known = listed.into_iter().take(MAX_LISTED).filter_map(|(peer, at)| {
                    Some(Listed { peer: PeerId::from_bytes(&peer).ok()?, addresses: addresses(at) })
                });
                Self::Members(known.collect())
            }
            LEAVE => Self::Leave,
            REFUSED => Self::Refused(RoomRefusal::from_code(read(body)?)),
            CHAT => {
                let (id, text, run, number, first): (u64, String, u64, u64, u64) = read(body)?;
                if text.len() > MAX_CHAT_BYTES {
                    return Err(Malformed);
                }
                Self::Chat { id, text, place: Place { run, number, first } }
            }
            CHAT_ACK => {
                let (run, number) = read(body)?;
                Self::ChatAck { run, number }
            }
            COMMIT => Self::Compare(Say::Commit(read::<[u8; 32]>(body)?)),
            REVEAL => Self::Compare(Say::Reveal(read::<[u8; NONCE]>(body)?)),
            _ => return Ok(None),
        }))
    }
}

fn write<T: Serialize>(kind: u16, body: &T) -> Vec<u8> {
    let mut message = kind.to_be_bytes().to_vec();
    // Fails only where a type has no length of its own; none here.
    if let Ok(body) = postcard::to_stdvec(body) {
        message.extend_from_slice(&body);
    }
    message
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Malformed> {
    postcard::take_from_bytes(body).map(|(value, _)| value).map_err(|_| Malformed)
}

fn address_bytes(addresses: &[Multiaddr]) -> Vec<Vec<u8>> {
    addresses.iter().take(MAX_ADDRESSES).map(Multiaddr::to_vec).collect()
}

/// The addresses that are ones, at most [`MAX_ADDRESSES`].
fn addresses(raw: Vec<Vec<u8>>) -> Vec<Multiaddr> {
    raw.into_iter().filter_map(|bytes| Multiaddr::try_from(bytes).ok()).take(MAX_ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::keys::OwnKey;
    use proptest::prelude::*;

    fn samples() -> Vec<Control> {
        let addresses: Vec<Multiaddr> = vec!["/ip4/192.0.2.1/udp/4001/quic-v1".parse().unwrap()];
        vec![
            Control::Hello(Hello {
                version: 1,
                features: 5,
                name: "Ana".into(),
                addresses: addresses.clone(),
            }),
            Control::Key(OwnKey::random().export()),
            Control::KeyAck { kid: 0x1234 },
            Control::Members(vec![Listed { peer: PeerId::random(), addresses }]),
            Control::Leave,
            Control::Refused(RoomRefusal::Full),
            Control::Refused(RoomRefusal::Closed),
            Control::Refused(RoomRefusal::Used),
            Control::Chat { id: 9, text: "hello".into(), place: Place { run: 7, number: 2, first: 1 } },
            Control::ChatAck { run: 7, number: 1 },
            Control::Compare(Say::Commit([3; 32])),
            Control::Compare(Say::Reveal([4; NONCE])),
        ]
    }

    #[test]
    fn every_message_reads_back_even_with_fields_of_a_later_version_appended() {
        for message in samples() {
            let mut bytes = message.encode();
            assert_eq!(Control::decode(&bytes), Ok(Some(message.clone())));
            bytes.extend_from_slice(b"later");
            assert_eq!(Control::decode(&bytes), Ok(Some(message)));
        }
    }

    #[test]
    fn unknown_kinds_are_not_errors() {
        assert_eq!(Control::decode(&[0xff, 0xff, 1, 2, 3]), Ok(None));
        assert_eq!(Control::decode(&[0]), Err(Malformed));
    }

    #[test]
    fn lists_and_lines_are_cut_at_their_bounds() {
        let address: Multiaddr = "/ip4/192.0.2.1/udp/1/quic-v1".parse().unwrap();
        let many =
            |n| (0..n).map(|_| (PeerId::random().to_bytes(), vec![address.to_vec(); 20])).collect::<Vec<_>>();
        let Ok(Some(Control::Members(read))) = Control::decode(&write(MEMBERS, &many(100))) else { panic!() };
        assert_eq!((read.len(), read[0].addresses.len()), (MAX_LISTED, MAX_ADDRESSES));
        let chat =
            |length| Control::decode(&write(CHAT, &(1u64, "x".repeat(length), 1u64, 1u64, 1u64))).is_ok();
        assert!(chat(MAX_CHAT_BYTES) && !chat(MAX_CHAT_BYTES + 1));
    }

    proptest! {
        #[test]
        fn any_and_mutated_bytes_are_read_or_refused(
            raw in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u16..20,
            at in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(), flip in 1u8..,
        ) {
            let _ = Control::decode(&raw);
            let _ = Control::decode(&[&kind.to_be_bytes()[..], &raw].concat());
            let samples = samples();
            let mut bytes = at.get(&samples).encode();
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
            if let Ok(Some(message)) = Control::decode(&bytes) {
                prop_assert_eq!(Control::decode(&message.encode()), Ok(Some(message)));
            }
            let _ = Control::decode(&bytes[..place]);
        }
    }
}
