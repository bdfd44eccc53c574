//! RFC 9605 (SFrame): header, key derivation and cipher suites. No state but the expanded key.
//!
//! Suites: `AES_128_GCM_SHA256_128` (0x0004) where the sender's processor has AES instructions, else
//! ChaCha20-Poly1305 with SHA-256 under a number from the private range, since RFC 9605 registers none.
//! The sender chooses and announces its choice with the key; receivers do both.

use aws_lc_rs::{aead, hkdf};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Longest header: the config byte, an 8-byte key id, an 8-byte counter (RFC 9605 section 4.3).
pub const MAX_HEADER: usize = 17;
/// Bytes of tag: never truncated.
pub const TAG: usize = 16;
/// Bytes of a base key: the Nh of both suites, so that a ratchet step has the size of a fresh key.
pub const BASE_KEY: usize = 32;
/// Bytes of nonce and salt (Nn).
pub const NONCE: usize = 12;

/// The SFrame header: which key, which frame (RFC 9605 section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Key id (KID).
    pub kid: u64,
    /// Counter (CTR).
    pub counter: u64,
}

impl Header {
    /// Writes the header into `out` and gives its length.
    pub fn encode(&self, out: &mut [u8; MAX_HEADER]) -> usize {
        let mut at = 1usize;
        let mut field = |value: u64| -> u8 {
            if value < 8 {
                return value as u8;
            }
            let bytes = value.to_be_bytes();
            let skip = (value.leading_zeros() / 8) as usize;
            let significant = bytes.get(skip..).unwrap_or_default();
            for byte in significant {
                if let Some(slot) = out.get_mut(at) {
                    *slot = *byte;
                }
                at = at.saturating_add(1);
            }
            8 | (significant.len() as u8).saturating_sub(1)
        };
        let config = field(self.kid) << 4;
        let config = config | field(self.counter);
        out[0] = config;
        at
    }

    /// Reads a header and gives its length. `None` where bytes are missing or a number is not in its shortest form.
    pub fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let (config, _) = bytes.split_first()?;
        let mut at = 1usize;
        let mut field = |nibble: u8| -> Option<u64> {
            if nibble & 8 == 0 {
                return Some(u64::from(nibble));
            }
            let end = at.checked_add(usize::from(nibble & 7))?.checked_add(1)?;
            let significant = bytes.get(at..end)?;
            at = end;
            let value = significant.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
            (value >= 8 && significant.first() != Some(&0)).then_some(value)
        };
        let kid = field(config >> 4)?;
        let counter = field(config & 15)?;
        Some((Self { kid, counter }, at))
    }
}

/// How a sender seals its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub enum Suite {
    /// 0x0004 of RFC 9605 section 4.5.
    Aes128Gcm,
    /// 0xF001, ours, in the private range.
    ChaCha20Poly1305,
}

impl Suite {
    /// The faster one on this processor; both are as safe.
    pub fn fastest() -> Self {
        #[cfg(target_arch = "x86_64")]
        let aes =
            std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
        #[cfg(target_arch = "aarch64")]
        let aes = std::arch::is_aarch64_feature_detected!("aes");
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let aes = false;
        if aes { Self::Aes128Gcm } else { Self::ChaCha20Poly1305 }
    }

    fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }
}

impl From<Suite> for u16 {
    fn from(suite: Suite) -> u16 {
        match suite {
            Suite::Aes128Gcm => 0x0004,
            Suite::ChaCha20Poly1305 => 0xF001,
        }
    }
}

/// A cipher suite that this version does not know.
#[derive(Debug, thiserror::Error)]
#[error("cipher suite {0:#06x} is unknown; the peer may be newer")]
pub struct UnknownSuite(u16);

impl TryFrom<u16> for Suite {
    type Error = UnknownSuite;

    fn try_from(number: u16) -> Result<Self, UnknownSuite> {
        match number {
            0x0004 => Ok(Self::Aes128Gcm),
            0xF001 => Ok(Self::ChaCha20Poly1305),
            other => Err(UnknownSuite(other)),
        }
    }
}

/// The key and salt of one key id, ready to use (RFC 9605 section 4.4.2).
pub struct FrameKey {
    aead: aead::LessSafeKey,
    salt: [u8; NONCE],
}

/// The AEAD said no: wrong key or changed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAuthentic;

impl FrameKey {
    /// Derives key and salt from a base key.
    pub fn derive(suite: Suite, base_key: &[u8], kid: u64) -> Self {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(base_key);
        let (kid, number) = (kid.to_be_bytes(), u16::from(suite).to_be_bytes());
        let mut key = Zeroizing::new([0u8; 32]);
        let mut salt = [0u8; NONCE];
        let (key, _) = key.split_at_mut(suite.algorithm().key_len().min(32));
        expand(&secret, &[b"SFrame 1.0 Secret key ", &kid, &number], key);
        expand(&secret, &[b"SFrame 1.0 Secret salt ", &kid, &number], &mut salt);
        // The key has the length that its own algorithm asks for.
        #[expect(clippy::expect_used)]
        let key = aead::UnboundKey::new(suite.algorithm(), key).expect("a key of the algorithm's length");
        Self { aead: aead::LessSafeKey::new(key), salt }
    }

    /// Encrypts `frame` in place and gives the tag. The caller never uses a counter twice.
    pub fn seal(&self, counter: u64, header: &[u8], frame: &mut [u8]) -> Result<[u8; TAG], NotAuthentic> {
        let tag = self
            .aead
            .seal_in_place_separate_tag(self.nonce(counter), aead::Aad::from(header), frame)
            .map_err(|_| NotAuthentic)?;
        tag.as_ref().try_into().map_err(|_| NotAuthentic)
    }

    /// Decrypts ciphertext and tag in place and gives the plaintext's length.
    pub fn open(&self, counter: u64, header: &[u8], sealed: &mut [u8]) -> Result<usize, NotAuthentic> {
        let opened = self.aead.open_in_place(self.nonce(counter), aead::Aad::from(header), sealed);
        opened.map(|plain| plain.len()).map_err(|_| NotAuthentic)
    }

    /// The salt XOR the counter, right-aligned (RFC 9605 section 4.4.3).
    fn nonce(&self, counter: u64) -> aead::Nonce {
        let mut nonce = self.salt;
        for (byte, counter) in nonce.iter_mut().rev().zip(counter.to_be_bytes().iter().rev()) {
            *byte ^= counter;
        }
        aead::Nonce::assume_unique_for_key(nonce)
    }
}

/// The next base key of a sender (RFC 9605 section 5.1). One way: the new one says nothing about the old.
pub fn ratchet(base_key: &[u8; BASE_KEY]) -> Zeroizing<[u8; BASE_KEY]> {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(base_key);
    let mut next = Zeroizing::new([0u8; BASE_KEY]);
    expand(&secret, &[b"SFrame 1.0 Ratchet"], next.as_mut_slice());
    next
}

fn expand(secret: &hkdf::Prk, info: &[&[u8]], out: &mut [u8]) {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    // Fails only where more than 255 hashes of output are asked for; we ask for one.
    #[expect(clippy::expect_used)]
    secret.expand(info, Length(out.len())).and_then(|okm| okm.fill(out)).expect("HKDF gives 32 bytes");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn headers_match_rfc_9605_appendix_c1() {
        let vectors: &[(u64, u64, &str)] = &[
            (0, 0, "00"),
            (0, 1, "01"),
            (0, 0xff, "08ff"),
            (0, 0x100, "090100"),
            (0, 0xffff, "09ffff"),
            (0, 0x10000, "0a010000"),
            (0, 0xff_ffff, "0affffff"),
            (0, 0x100_0000, "0b01000000"),
            (0, 0xffff_ffff, "0bffffffff"),
            (0, 0x1_0000_0000, "0c0100000000"),
            (0, 0xff_ffff_ffff, "0cffffffffff"),
            (0, 0x100_0000_0000, "0d010000000000"),
            (0, 0xffff_ffff_ffff, "0dffffffffffff"),
            (0, 0x1_0000_0000_0000, "0e01000000000000"),
            (0, 0xff_ffff_ffff_ffff, "0effffffffffffff"),
            (0, 0x100_0000_0000_0000, "0f0100000000000000"),
            (0, u64::MAX, "0fffffffffffffffff"),
            (1, 0, "10"),
            (1, 1, "11"),
            (1, 0xff, "18ff"),
            (0xff, 0, "80ff"),
            (0xff, 1, "81ff"),
            (0xff, 0xff, "88ffff"),
            (0xff, 0x1_0000, "8aff010000"),
            (0x100, 0, "900100"),
            (0x100, 0x100, "9901000100"),
            (0xffff, 0xffff_ffff, "9bffffffffffff"),
            (0x1_0000, 0x100_0000, "ab01000001000000"),
            (0xff_ffff, 0xff, "a8ffffffff"),
            (0x100_0000, 0xff_ffff, "ba01000000ffffff"),
            (0xffff_ffff, u64::MAX, "bfffffffffffffffffffffffff"),
            (0x1_0000_0000, 0xffff, "c90100000000ffff"),
        ];
        for (kid, counter, encoded) in vectors {
            let header = Header { kid: *kid, counter: *counter };
            let mut out = [0; MAX_HEADER];
            let length = header.encode(&mut out);
            assert_eq!(&out[..length], hex(encoded), "{kid:x} {counter:x}");
            assert_eq!(Header::decode(&hex(encoded)), Some((header, length)));
        }
    }

    #[test]
    fn derivation_and_sealing_match_rfc_9605_appendix_c3_for_aes_128_gcm() {
        let (kid, counter) = (0x123, 0x4567);
        let base_key = hex("000102030405060708090a0b0c0d0e0f");
        let metadata = hex("4945544620534672616d65205747");
        let mut frame = hex("64726166742d696574662d736672616d652d656e63");
        let sealed =
            hex("9901234567b7412c2513a1b66dbb48841bbaf17f598751176ad847681a69c6d0b091c07018ce4adb34eb");

        let key = FrameKey::derive(Suite::Aes128Gcm, &base_key, kid);
        assert_eq!(key.salt.as_slice(), hex("75234edefe07819026751816"));
        assert_eq!(key.nonce(counter).as_ref().as_slice(), hex("75234edefe07819026755d71"));

        let mut header = [0; MAX_HEADER];
        let length = Header { kid, counter }.encode(&mut header);
        let aad = [&header[..length], &metadata].concat();
        assert_eq!(aad, hex("99012345674945544620534672616d65205747"));
        let plaintext = frame.clone();
        let tag = key.seal(counter, &aad, &mut frame).unwrap();
        assert_eq!([&header[..length], &frame, &tag].concat(), sealed);
        let mut body = sealed[length..].to_vec();
        let opened = key.open(counter, &aad, &mut body).unwrap();
        assert_eq!(&body[..opened], plaintext);
    }

    #[test]
    fn both_suites_seal_and_open_and_do_not_mix() {
        let keys =
            [Suite::Aes128Gcm, Suite::ChaCha20Poly1305].map(|suite| FrameKey::derive(suite, &[9; 32], 5));
        for (sealing, other) in [(0, 1), (1, 0)] {
            let mut frame = *b"speech";
            let tag = keys[sealing].seal(3, b"header", &mut frame).unwrap();
            let mut sealed = [&frame[..], &tag].concat();
            assert_eq!(keys[other].open(3, b"header", &mut sealed.clone()), Err(NotAuthentic));
            assert_eq!(keys[sealing].open(4, b"header", &mut sealed.clone()), Err(NotAuthentic));
            assert_eq!(keys[sealing].open(3, b"Header", &mut sealed.clone()), Err(NotAuthentic));
            assert_eq!(keys[sealing].open(3, b"header", &mut sealed), Ok(6));
        }
    }

    #[test]
    fn suite_numbers_read_back_and_unknown_ones_are_refused() {
        for suite in [Suite::Aes128Gcm, Suite::ChaCha20Poly1305] {
            assert_eq!(Suite::try_from(u16::from(suite)).unwrap(), suite);
        }
        assert!(Suite::try_from(0x0001).is_err());
    }

    proptest! {
        #[test]
        fn any_header_reads_back(kid in any::<u64>(), counter in any::<u64>(), shift in 0u32..64, by in 0u32..64) {
            let header = Header { kid: kid >> shift, counter: counter >> by };
            let mut out = [0; MAX_HEADER];
            let length = header.encode(&mut out);
            prop_assert_eq!(Header::decode(&out[..length]), Some((header, length)));
            for cut in 0..length {
                prop_assert_eq!(Header::decode(&out[..cut]), None);
            }
        }

        #[test]
        fn any_bytes_are_a_shortest_header_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
            if let Some((header, length)) = Header::decode(&bytes) {
                let mut out = [0; MAX_HEADER];
                prop_assert_eq!(header.encode(&mut out), length);
                prop_assert_eq!(&out[..length], &bytes[..length]);
            }
        }
    }
}
