//! A room as people pass it on: a plain ID (`kitchen`, open to anyone who knows it) or an invite with a secret,
//! `hallway:kitchen?secret=…&at=…`.
//!
//! The secret is 256 random bits in Crockford's base32 (no case, no look-alikes) with a 32-bit checksum over room and
//! secret, so a slip of the pen is an error that says so and never a different secret.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod derive;
mod terms;

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use libp2p::Multiaddr;
use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_normalization::UnicodeNormalization as _;
use zeroize::Zeroize;

pub use derive::RoomSecrets;
pub use terms::Terms;

/// Longest room name, in characters.
pub const MAX_ROOM_CHARS: usize = 64;
/// Longest invite read, in bytes.
pub const MAX_INVITE_BYTES: usize = 4096;
/// Most rendezvous addresses kept from one invite; the first ones stay.
pub const MAX_RENDEZVOUS: usize = 8;
/// Bytes of a room's secret.
pub const SECRET_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 4;
const SCHEME: &str = "hallway:";

/// Why a room or invite was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// Nothing is left of the room's name.
    #[error("the room has no name; write one, as in `hallway join kitchen`")]
    NoRoom,
    /// The name has a character that rooms do not have.
    #[error("a room's name has letters, digits, '-', '_' and '.', not {0:?}")]
    BadCharacter(char),
    /// The name, or the whole invite, is too long.
    #[error(
        "too long: a room's name has at most {MAX_ROOM_CHARS} characters, an invite {MAX_INVITE_BYTES} bytes"
    )]
    TooLong,
    /// The secret is mistyped or cut off, or belongs to another room.
    #[error(
        "the invite is mistyped or cut off: its checksum does not match; copy it again, whole and in quotes"
    )]
    Mistyped,
    /// `expires=` or `host=` is cut off or mistyped.
    #[error("the invite's terms are mistyped or cut off; copy it again, whole and in quotes")]
    BadTerms,
    /// An address after `at=` is no multiaddr.
    #[error("the invite names a rendezvous that is no address: {0}; ask for the invite again")]
    BadAddress(String),
}

/// The name of a room: 1 to [`MAX_ROOM_CHARS`] letters, digits, marks, `-`, `_`, `.`, in lower case (NFKC), so that
/// people who say it aloud arrive in the same place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomName(String);

impl RoomName {
    /// The name, cleaned.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RoomName {
    type Err = InviteError;

    fn from_str(raw: &str) -> Result<Self, InviteError> {
        if raw.len() > MAX_INVITE_BYTES {
            return Err(InviteError::TooLong);
        }
        // Lower case can undo the normal form and the other way round; the second pass settles it.
        let folded: String = raw.trim().nfkc().flat_map(char::to_lowercase).nfkc().collect();
        let mut marks = 0usize;
        for c in folded.chars() {
            use GeneralCategory::{NonspacingMark, SpacingMark};
            let mark = matches!(get_general_category(c), NonspacingMark | SpacingMark);
            marks = if mark { marks.saturating_add(1) } else { 0 };
            let known = c.is_alphanumeric() || mark || matches!(c, '-' | '_' | '.');
            if !known || !crate::text::is_drawable(c) || marks > crate::text::MAX_MARKS {
                return Err(InviteError::BadCharacter(c));
            }
        }
        match folded.chars().count() {
            0 => Err(InviteError::NoRoom),
            1..=MAX_ROOM_CHARS => Ok(Self(folded)),
            _ => Err(InviteError::TooLong),
        }
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A room's secret: 256 random bits. Erased on drop, never printed but by [`Invite`]'s `Display`.
#[derive(Clone, PartialEq, Eq, Zeroize, zeroize::ZeroizeOnDrop)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// A secret from elsewhere; must be uniformly random.
    pub fn from_bytes(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }

    fn random() -> Self {
        let mut bytes = [0u8; SECRET_BYTES];
        // The system's generator fails only where the machine cannot do cryptography at all.
        #[expect(clippy::expect_used)]
        SystemRandom::new().fill(&mut bytes).expect("the system has no random numbers");
        Self(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A way into a room. `Display` writes what [`FromStr`] reads; without a secret and addresses that is the plain name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Which room.
    pub room: RoomName,
    /// Who has it may read and speak. `None` is an open room: anyone who knows or guesses the name.
    pub secret: Option<Secret>,
    /// Where others of the room can be found, at most [`MAX_RENDEZVOUS`].
    pub rendezvous: Vec<Multiaddr>,
    /// How long it is good, and for whom. An open room has no terms.
    pub terms: Terms,
}

impl Invite {
    /// An open room.
    pub fn open(room: RoomName) -> Self {
        Self { room, secret: None, rendezvous: Vec::new(), terms: Terms::default() }
    }

    /// A new private room with a fresh secret.
    pub fn generate(room: RoomName, rendezvous: Vec<Multiaddr>) -> Self {
        Self { room, secret: Some(Secret::random()), rendezvous, terms: Terms::default() }
    }

    /// Whether anyone who knows the name may enter.
    pub fn is_open(&self) -> bool {
        self.secret.is_none()
    }

    /// What keys and names of this room derive from.
    pub fn secrets(&self) -> RoomSecrets {
        RoomSecrets::new(&self.room, self.secret.as_ref(), &self.terms.to_bytes())
    }
}

impl FromStr for Invite {
    type Err = InviteError;

    fn from_str(raw: &str) -> Result<Self, InviteError> {
        let raw = raw.trim();
        if raw.len() > MAX_INVITE_BYTES {
            return Err(InviteError::TooLong);
        }
        let body = match raw.get(..SCHEME.len()) {
            Some(start) if start.eq_ignore_ascii_case(SCHEME) => raw.get(SCHEME.len()..).unwrap_or_default(),
            _ => raw,
        };
        let (name, query) = body.split_once('?').unwrap_or((body, ""));
        let room: RoomName = percent_decoded(name).ok_or(InviteError::Mistyped)?.parse()?;
        let mut invite = Invite::open(room);
        let mut secret = None;
        for parameter in query.split('&') {
            match parameter.split_once('=') {
                Some(("secret", text)) => secret = Some(text),
                Some(("expires" | "host", _)) => {
                    invite.terms.read(parameter).map_err(|()| InviteError::BadTerms)?;
                }
                Some(("at", text)) if invite.rendezvous.len() < MAX_RENDEZVOUS => {
                    let bad = || InviteError::BadAddress(crate::text::clean_name(text));
                    let drawable = |text: &String| text.chars().all(crate::text::is_drawable);
                    let address = percent_decoded(text).filter(drawable).ok_or_else(bad)?;
                    invite.rendezvous.push(address.parse().map_err(|_| bad())?);
                }
                // A private invite cut off after the word must not open the open room of that name.
                None if !parameter.is_empty() && "secret".starts_with(parameter) => {
                    return Err(InviteError::Mistyped);
                }
                _ => {} // A later version's parameter.
            }
        }
        match secret {
            Some(text) => invite.secret = Some(read_secret(&invite.room, &invite.terms, text)?),
            // Terms bind the secret; without one they would be a promise that nobody keeps.
            None if invite.terms != Terms::default() => return Err(InviteError::Mistyped),
            None => {}
        }
        Ok(invite)
    }
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.secret.is_none() && self.rendezvous.is_empty() {
            return write!(f, "{}", self.room);
        }
        write!(f, "{SCHEME}{}", self.room)?;
        let mut separator = '?';
        if let Some(secret) = &self.secret {
            let mut bytes = secret.0.to_vec();
            bytes.extend_from_slice(&checksum(&self.room, &self.terms, secret));
            write!(f, "{separator}secret={}", base32::encode(&bytes))?;
            bytes.zeroize();
            separator = '&';
        }
        self.terms.write(f)?;
        for address in self.rendezvous.iter().take(MAX_RENDEZVOUS) {
            write!(f, "{separator}at={}", percent_encoded(&address.to_string()))?;
            separator = '&';
        }
        Ok(())
    }
}

fn read_secret(room: &RoomName, terms: &Terms, text: &str) -> Result<Secret, InviteError> {
    let mut bytes = base32::decode(text, SECRET_BYTES + CHECKSUM_BYTES).ok_or(InviteError::Mistyped)?;
    let secret =
        bytes.get(..SECRET_BYTES).and_then(|s| s.try_into().ok()).map(Secret).ok_or(InviteError::Mistyped)?;
    let matches = bytes.get(SECRET_BYTES..) == Some(checksum(room, terms, &secret).as_slice());
    bytes.zeroize();
    if matches { Ok(secret) } else { Err(InviteError::Mistyped) }
}

fn checksum(room: &RoomName, terms: &Terms, secret: &Secret) -> [u8; CHECKSUM_BYTES] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"hallway invite checksum v1\0");
    context.update(room.as_str().as_bytes());
    context.update(b"\0");
    context.update(&secret.0);
    context.update(&terms.to_bytes());
    let mut out = [0u8; CHECKSUM_BYTES];
    out.iter_mut().zip(context.finish().as_ref()).for_each(|(out, byte)| *out = *byte);
    out
}

/// Encodes what would end a parameter; slashes stay, they are most of an address.
fn percent_encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/:@,;".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            out.push(u8::try_from(high << 4 | low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// Crockford's base32: no case, `o` read as 0, `i` and `l` as 1, dashes skipped.
mod base32 {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

    pub fn encode(bytes: &[u8]) -> String {
        let mut out = String::with_capacity(bytes.len().saturating_mul(8).div_ceil(5));
        let (mut held, mut bits) = (0u32, 0u32);
        let mut push = |value: u32| {
            out.push(char::from(ALPHABET.get((value & 31) as usize).copied().unwrap_or_default()));
        };
        for byte in bytes {
            held = (held & 0xff) << 8 | u32::from(*byte);
            bits = bits.saturating_add(8);
            while bits >= 5 {
                bits = bits.saturating_sub(5);
                push(held >> bits);
            }
        }
        if bits > 0 {
            push(held << 5u32.saturating_sub(bits));
        }
        out
    }

    /// Exactly `length` bytes, or `None`. Left-over bits must be zero: one secret has one spelling.
    pub fn decode(text: &str, length: usize) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(length);
        let (mut held, mut bits) = (0u32, 0u32);
        for c in text.bytes().filter(|c| *c != b'-') {
            let c = match c.to_ascii_lowercase() {
                b'o' => b'0',
                b'i' | b'l' => b'1',
                other => other,
            };
            let value = ALPHABET.iter().position(|a| *a == c)?;
            held = (held & 0xff) << 5 | u32::try_from(value).ok()?;
            bits = bits.saturating_add(5);
            if bits >= 8 {
                bits = bits.saturating_sub(8);
                if out.len() == length {
                    return None;
                }
                out.push(u8::try_from(held >> bits & 0xff).ok()?);
            }
        }
        let left = held & (1u32 << bits).saturating_sub(1);
        (out.len() == length && bits < 5 && left == 0).then_some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn private() -> Invite {
        let at = ["/dns4/meet.example/udp/4001/quic-v1", "/ip6/::1/tcp/443"].map(|a| a.parse().unwrap());
        Invite::generate("kitchen".parse().unwrap(), at.to_vec())
    }

    #[test]
    fn an_invite_reads_back_as_it_was_written() {
        let invite = private();
        let text = invite.to_string();
        assert!(text.starts_with("hallway:kitchen?secret="), "{text}");
        assert!(text.contains("&at=/dns4/meet.example/udp/4001/quic-v1"), "{text}");
        assert_eq!(text.parse::<Invite>().unwrap(), invite);
        assert_eq!(format!("  {text}\n").parse::<Invite>().unwrap(), invite);
    }

    #[test]
    fn a_plain_name_is_an_open_room() {
        let invite: Invite = "Kitchen".parse().unwrap();
        assert!(invite.is_open() && invite.rendezvous.is_empty());
        assert_eq!(invite.to_string(), "kitchen");
        assert_eq!("hallway:kitchen".parse::<Invite>().unwrap(), invite);
    }

    #[test]
    fn any_single_wrong_character_in_the_secret_is_an_error_and_not_another_secret() {
        let invite = private();
        let text = invite.to_string();
        let start = text.find("secret=").unwrap() + 7;
        for at in start..start + 58 {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'7' { b'8' } else { b'7' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert_eq!(wrong.parse::<Invite>().unwrap_err(), InviteError::Mistyped, "{at}");
        }
        for cut in start - 5..start + 58 {
            assert_eq!(text[..cut].parse::<Invite>().unwrap_err(), InviteError::Mistyped, "{cut}");
        }
    }

    #[test]
    fn a_secret_of_another_room_is_noticed() {
        let text = private().to_string().replace("kitchen", "garden");
        assert_eq!(text.parse::<Invite>().unwrap_err(), InviteError::Mistyped);
    }

    #[test]
    fn capitals_dashes_and_look_alikes_in_a_dictated_secret_do_not_matter() {
        let invite = private();
        let text = invite.to_string();
        let (head, tail) = text.split_once("secret=").unwrap();
        let (secret, rest) = tail.split_once('&').unwrap();
        let dictated = secret.to_uppercase().replace('0', "O").replace('1', "l");
        let dashed: Vec<_> = dictated.as_bytes().chunks(6).map(|c| std::str::from_utf8(c).unwrap()).collect();
        let dictated = format!("{head}secret={}&{rest}", dashed.join("-"));
        assert_eq!(dictated.parse::<Invite>().unwrap(), invite);
    }

    #[test]
    fn parameters_of_later_versions_are_ignored() {
        let invite = private();
        let later = format!("{}&policy=knock&v=9&&=&flag", invite);
        assert_eq!(later.parse::<Invite>().unwrap(), invite);
    }

    #[test]
    fn names_are_cleaned_or_refused_with_the_character_at_fault() {
        let name = |raw: &str| raw.parse::<RoomName>().map(|n| n.to_string());
        assert_eq!(name(" Küche "), Ok("küche".into()));
        assert_eq!(name("Ku\u{308}che"), Ok("küche".into()));
        assert_eq!(name("ＫＩＴＣＨＥＮ"), Ok("kitchen".into()));
        assert_eq!(name(""), Err(InviteError::NoRoom));
        assert_eq!(name("a b"), Err(InviteError::BadCharacter(' ')));
        assert_eq!(name("a/b"), Err(InviteError::BadCharacter('/')));
        assert_eq!(name("a\u{1b}[2J"), Err(InviteError::BadCharacter('\u{1b}')));
        assert_eq!(name("a\u{202e}b"), Err(InviteError::BadCharacter('\u{202e}')));
        assert_eq!(name(&"a".repeat(MAX_ROOM_CHARS)).map(|n| n.len()), Ok(MAX_ROOM_CHARS));
        assert_eq!(name(&"a".repeat(MAX_ROOM_CHARS + 1)), Err(InviteError::TooLong));
    }

    #[test]
    fn a_false_address_says_which() {
        let error = "hallway:kitchen?at=/nonsense/1".parse::<Invite>().unwrap_err();
        assert_eq!(error, InviteError::BadAddress("/nonsense/1".into()));
    }

    #[test]
    fn the_secret_does_not_show_in_debug_output() {
        assert!(format!("{:?}", private()).contains("Secret(..)"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_and_what_it_accepts_reads_back(raw in "(hallway:)?.{0,40}([?&](secret|at|x)=.{0,80}){0,4}") {
            if let Ok(invite) = raw.parse::<Invite>() {
                prop_assert_eq!(invite.to_string().parse::<Invite>().unwrap(), invite);
            }
        }

        #[test]
        fn every_cleaned_name_is_a_fixed_point(raw in "\\PC{0,70}") {
            if let Ok(name) = raw.parse::<RoomName>() {
                prop_assert_eq!(name.as_str().parse::<RoomName>().unwrap(), name);
            }
        }

        #[test]
        fn base32_reads_back(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(base32::decode(&base32::encode(&bytes), bytes.len()), Some(bytes));
        }
    }
}
