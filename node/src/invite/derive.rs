//! Every key and name that derives from a room's secret or name, in one place.
//!
//! | what | from | seen by |
//! | --- | --- | --- |
//! | psk | secret (open room: name) | nobody; mixed into each Noise handshake |
//! | namespace | secret (open room: name) and day | rendezvous servers |
//! | room tag | name and both PeerIds | the peer that a handshake is sent to |
//! | door | name alone, slowly | rendezvous servers |
//!
//! HKDF-SHA256 (RFC 5869); one salt for the project, one label per purpose, variable parts with their length.
//! What derives from the name alone can be found by guessing names: an open room hides nothing from who guesses it.

use std::sync::Arc;

use aws_lc_rs::{hkdf, hmac};
use libp2p_identity::PeerId;
use pbkdf2::{pbkdf2_hmac_array, sha2::Sha256};
use zeroize::Zeroizing;

use super::{RoomName, Secret};

/// How long a rendezvous namespace lives, in seconds: one day of UTC.
pub const NAMESPACE_PERIOD: u64 = 24 * 3600;
/// Iterations of PBKDF2-HMAC-SHA256 behind [`RoomSecrets::door`]: 0.07 s on a processor with SHA instructions, some
/// 0.3 s without; once per room and process here, and once for every name that a server guesses.
pub const DOOR_ITERATIONS: u32 = 600_000;

const SALT: &[u8] = b"hallway room derivations, version 1";

/// What keys and public names of one room derive from. Cheap to clone; the key is erased with the last clone.
#[derive(Clone)]
pub struct RoomSecrets {
    name: RoomName,
    open: bool,
    root: Arc<Zeroizing<[u8; 32]>>,
}

impl RoomSecrets {
    /// `terms` are those of the invite, empty where there are none: who changes them is in another room.
    pub(super) fn new(name: &RoomName, secret: Option<&Secret>, terms: &[u8]) -> Self {
        let room = name.as_str().as_bytes();
        let root = match secret {
            Some(secret) if terms.is_empty() => expand(secret.as_bytes(), b"private room", &[room]),
            Some(secret) => expand(secret.as_bytes(), b"private room under terms", &[room, terms]),
            None => expand(room, b"open room", &[room]),
        };
        Self { name: name.clone(), open: secret.is_none(), root: Arc::new(root) }
    }

    /// The room's name.
    pub fn name(&self) -> &RoomName {
        &self.name
    }

    /// Whether there is no secret: these derivations can then be repeated by anyone who guesses the name.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The pre-shared key of every session in the room.
    pub fn psk(&self) -> Zeroizing<[u8; 32]> {
        expand(self.root.as_slice(), b"session psk", &[])
    }

    /// The name under which the room is found at a rendezvous server during the day of `unix_seconds`:
    /// 64 hexadecimal digits that say nothing about the room, and nothing about other days.
    pub fn namespace(&self, unix_seconds: u64) -> String {
        self.namespace_of(unix_seconds / NAMESPACE_PERIOD)
    }

    /// The names to be found under now, the present one first, where members' clocks may be apart by so many seconds:
    /// one, and two around midnight.
    pub fn namespaces(&self, unix_seconds: u64, apart: u64) -> Vec<String> {
        let times = [unix_seconds, unix_seconds.saturating_sub(apart), unix_seconds.saturating_add(apart)];
        let mut days = times.map(|time| time / NAMESPACE_PERIOD).to_vec();
        days.dedup();
        if days.len() == 3 && days.first() == days.last() {
            days.pop();
        }
        days.into_iter().map(|day| self.namespace_of(day)).collect()
    }

    fn namespace_of(&self, day: u64) -> String {
        let name = expand(self.root.as_slice(), b"rendezvous namespace", &[&day.to_be_bytes()]);
        name.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A slow hash of the room's name alone. A server that keeps it can say "others use this name with another
    /// secret" without showing whom. Takes 0.07 to 0.3 s of computing: not on a thread that others wait for.
    pub fn door(&self) -> [u8; 32] {
        let name = self.name.as_str().as_bytes();
        pbkdf2_hmac_array::<Sha256, 32>(name, b"hallway room door, version 1", DOOR_ITERATIONS)
    }

    /// What names the room in the clear to a peer, in the first message from `from` to `to`. Proves nothing; it
    /// tells "another room" from "this room with another secret".
    pub fn room_tag(&self, from: &PeerId, to: &PeerId) -> [u8; 16] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.name.as_str().as_bytes());
        let mut context = hmac::Context::with_key(&key);
        context.update(b"hallway room tag, version 1");
        for peer in [from, to] {
            let bytes = peer.to_bytes();
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(&bytes);
        }
        let mut out = [0u8; 16];
        out.iter_mut().zip(context.sign().as_ref()).for_each(|(out, byte)| *out = *byte);
        out
    }
}

impl std::fmt::Debug for RoomSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoomSecrets")
            .field("name", &self.name)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

/// HKDF-SHA256 of `secret` under the project's salt; `info` is the label and each part after its length.
fn expand(secret: &[u8], label: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut info = Vec::with_capacity(128);
    for part in std::iter::once(&label).chain(parts) {
        info.extend_from_slice(&(part.len() as u64).to_be_bytes());
        info.extend_from_slice(part);
    }
    let mut out = Zeroizing::new([0u8; 32]);
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret);
    // Fails only where more than 255 hashes of output are asked for.
    #[expect(clippy::expect_used)]
    prk.expand(&[&info], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(out.as_mut_slice()))
        .expect("HKDF gives 32 bytes");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invite::Invite;
    use libp2p_identity::Keypair;

    fn room(text: &str, secret: Option<u8>) -> RoomSecrets {
        let name = text.parse().unwrap();
        Invite {
            room: name,
            secret: secret.map(|b| Secret::from_bytes([b; 32])),
            rendezvous: Vec::new(),
            terms: Default::default(),
        }
        .secrets()
    }

    #[test]
    fn every_derivation_of_every_room_and_secret_differs() {
        let rooms =
            [room("a", None), room("b", None), room("a", Some(1)), room("a", Some(2)), room("b", Some(1))];
        let mut seen = std::collections::HashSet::new();
        for room in &rooms {
            assert!(seen.insert(room.psk().to_vec()));
            for day in 0..3u64 {
                assert!(seen.insert(room.namespace(day * NAMESPACE_PERIOD).into_bytes()));
            }
        }
        assert_eq!(seen.len(), 20);
    }

    #[test]
    fn derivations_are_stable_across_versions() {
        assert_eq!(room("kitchen", Some(7)).namespace(20_000 * NAMESPACE_PERIOD), GOLDEN_NAMESPACE);
    }

    #[test]
    fn clocks_ten_minutes_apart_meet_at_any_time_of_day() {
        let (room, apart) = (room("kitchen", Some(7)), 600);
        let midnight = 20_000 * NAMESPACE_PERIOD;
        for (now, names) in [
            (midnight - 601, 1),
            (midnight - 600, 2),
            (midnight, 2),
            (midnight + 599, 2),
            (midnight + 600, 1),
        ] {
            let mine = room.namespaces(now, apart);
            assert_eq!(mine.len(), names, "{} s after midnight", now as i64 - midnight as i64);
            assert_eq!(mine[0], room.namespace(now));
            for other in [now - apart, now, now + apart] {
                assert!(room.namespaces(other, apart).iter().any(|name| mine.contains(name)));
            }
        }
    }

    #[test]
    fn the_namespace_holds_neither_name_nor_a_plain_hash_of_it() {
        let namespace = room("kitchen", None).namespace(0);
        let plain: String = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"kitchen")
            .as_ref()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert!(!namespace.contains("kitchen") && namespace != plain && namespace.len() == 64);
    }

    #[test]
    fn the_door_depends_on_the_name_and_not_on_the_secret() {
        let start = std::time::Instant::now();
        room("kitchen", None).door();
        println!("door: {} ms", start.elapsed().as_millis());
        assert_eq!(room("kitchen", Some(1)).door(), room("kitchen", Some(2)).door());
        assert_ne!(room("kitchen", None).door(), room("garden", None).door());
    }

    #[test]
    fn the_room_tag_names_the_room_and_the_direction_but_not_the_secret() {
        let peer = |seed: u8| Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id();
        let (ana, ben) = (peer(1), peer(2));
        assert_eq!(room("a", Some(1)).room_tag(&ana, &ben), room("a", Some(2)).room_tag(&ana, &ben));
        assert_ne!(room("a", None).room_tag(&ana, &ben), room("b", None).room_tag(&ana, &ben));
        assert_ne!(room("a", None).room_tag(&ana, &ben), room("a", None).room_tag(&ben, &ana));
    }

    const GOLDEN_NAMESPACE: &str = "e7f7c684d500cc325bc5c040d51a25b4f25a3f0bc16f36b59a0c3d7fa25e9fa6";
}
