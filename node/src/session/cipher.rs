//! The channel's datagram encryption: one half seals, the other opens, both move to fresh keys every minute.
//!
//! Datagram: `[0x11][session id u32][nonce u64][ciphertext][16-byte tag]`, big-endian, the first 13 bytes
//! authenticated. The nonce is explicit: an epoch (24 bits) and a counter (40 bits).
//!
//! The two directions' first chain keys are the two keys of Noise's `Split()`. Each epoch's key and the next chain
//! key derive from the chain key by HKDF, which is then erased: who steals a key opens nothing older than that epoch.
//! `snow`'s own transport state is not used because it keeps one key, rekeyed in place: trying the next epoch's key
//! on a datagram that may be forged would then move state.

use std::time::{Duration, Instant};

use aws_lc_rs::{aead, hkdf};
use zeroize::Zeroizing;

use super::replay::ReplayWindow;

/// First byte of a channel datagram.
pub const CHANNEL: u8 = 0x11;
/// Bytes before the ciphertext.
pub const HEADER: usize = 13;
/// Bytes of tag after it.
pub const TAG: usize = 16;
/// How long one key seals: threat model, at most 120 s.
pub const EPOCH: Duration = Duration::from_secs(60);
/// How long the previous epoch's key opens late datagrams.
pub const EPOCH_GRACE: Duration = Duration::from_secs(5);
/// Epochs that the opening half follows at once; a peer silent for longer is lost anyway.
pub const MAX_EPOCHS_AHEAD: u64 = 4;
const COUNTER_BITS: u32 = 40;
const MAX_EPOCH: u64 = u64::MAX >> COUNTER_BITS;

/// A direction's chain key.
pub type ChainKey = Zeroizing<[u8; 32]>;

/// Which session, which nonce; `None` where it is no channel datagram.
pub fn parse(datagram: &[u8]) -> Option<(u32, u64)> {
    let header = datagram.get(..HEADER)?;
    let id = header.get(1..5)?.try_into().ok()?;
    let nonce = header.get(5..)?.try_into().ok()?;
    let whole = header.first() == Some(&CHANNEL) && datagram.len() >= HEADER + TAG;
    whole.then_some((u32::from_be_bytes(id), u64::from_be_bytes(nonce)))
}

/// Seals what we send.
pub struct Sealing {
    id: u32,
    key: aead::LessSafeKey,
    next: ChainKey,
    epoch: u64,
    counter: u64,
    renew_at: Option<Instant>,
}

impl Sealing {
    pub fn new(id: u32, chain: &ChainKey, now: Instant) -> Self {
        let (key, next) = derive(chain);
        Self { id, key, next, epoch: 0, counter: 0, renew_at: now.checked_add(EPOCH) }
    }

    /// The datagram for `plain`; `None` once every epoch is used, which takes 31 years.
    pub fn seal(&mut self, now: Instant, plain: &[u8]) -> Option<Vec<u8>> {
        if self.renew_at.is_some_and(|at| at <= now) || self.counter >> COUNTER_BITS != 0 {
            (self.key, self.next) = derive(&self.next);
            self.epoch = self.epoch.checked_add(1).filter(|epoch| *epoch < MAX_EPOCH)?;
            self.counter = 0;
            self.renew_at = now.checked_add(EPOCH);
        }
        let nonce = self.epoch << COUNTER_BITS | self.counter;
        self.counter = self.counter.checked_add(1)?;
        let mut datagram = Vec::with_capacity(plain.len().saturating_add(HEADER + TAG));
        datagram.push(CHANNEL);
        datagram.extend_from_slice(&self.id.to_be_bytes());
        datagram.extend_from_slice(&nonce.to_be_bytes());
        let aad: [u8; HEADER] = datagram.as_slice().try_into().ok()?;
        datagram.extend_from_slice(plain);
        let body = datagram.get_mut(HEADER..)?;
        let tag = self.key.seal_in_place_separate_tag(aead_nonce(nonce), aead::Aad::from(aad), body).ok()?;
        datagram.extend_from_slice(tag.as_ref());
        Some(datagram)
    }
}

/// Opens what the peer sent, each datagram once.
pub struct Opening {
    id: u32,
    current: EpochKey,
    next: ChainKey,
    previous: Option<(EpochKey, Instant)>,
}

struct EpochKey {
    epoch: u64,
    key: aead::LessSafeKey,
    window: ReplayWindow,
}

impl EpochKey {
    fn open(&mut self, nonce: u64, datagram: &[u8]) -> Option<Vec<u8>> {
        let counter = nonce & (u64::MAX >> (u64::BITS - COUNTER_BITS));
        if !self.window.check(counter) {
            return None;
        }
        let (aad, sealed) = datagram.split_at_checked(HEADER)?;
        let mut body = sealed.to_vec();
        let plain = self.key.open_in_place(aead_nonce(nonce), aead::Aad::from(aad), &mut body).ok()?.len();
        self.window.accept(counter);
        body.truncate(plain);
        Some(body)
    }
}

impl Opening {
    pub fn new(id: u32, chain: &ChainKey) -> Self {
        let (key, next) = derive(chain);
        Self {
            id,
            current: EpochKey { epoch: 0, key, window: ReplayWindow::default() },
            next,
            previous: None,
        }
    }

    /// The plaintext of a datagram that is authentic and new; else `None`, and nothing has changed.
    pub fn open(&mut self, now: Instant, datagram: &[u8]) -> Option<Vec<u8>> {
        self.previous.take_if(|(_, until)| *until <= now);
        let (id, nonce) = parse(datagram)?;
        if id != self.id {
            return None;
        }
        let epoch = nonce >> COUNTER_BITS;
        if epoch == self.current.epoch {
            return self.current.open(nonce, datagram);
        }
        if let Some((previous, _)) = self.previous.as_mut().filter(|(key, _)| key.epoch == epoch) {
            return previous.open(nonce, datagram);
        }
        let ahead = epoch.checked_sub(self.current.epoch).filter(|steps| *steps <= MAX_EPOCHS_AHEAD)?;
        let (mut key, mut next) = derive(&self.next);
        for _ in 1..ahead {
            (key, next) = derive(&next);
        }
        let mut fresh = EpochKey { epoch, key, window: ReplayWindow::default() };
        let plain = fresh.open(nonce, datagram)?;
        let old = std::mem::replace(&mut self.current, fresh);
        self.next = next;
        self.previous = now.checked_add(EPOCH_GRACE).map(|until| (old, until));
        Some(plain)
    }
}

/// An epoch's key and the next epoch's chain key.
fn derive(chain: &ChainKey) -> (aead::LessSafeKey, ChainKey) {
    #[expect(clippy::expect_used)]
    let key =
        aead::UnboundKey::new(&aead::CHACHA20_POLY1305, expand(chain, b"hallway channel key v1").as_slice())
            .expect("a key of 32 bytes");
    (aead::LessSafeKey::new(key), expand(chain, b"hallway channel next v1"))
}

/// HKDF-Expand (RFC 5869) of a chain key.
pub fn expand(chain: &ChainKey, label: &[u8]) -> ChainKey {
    let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, chain.as_slice());
    let mut out = Zeroizing::new([0u8; 32]);
    // Fails only where more than 255 hashes of output are asked for.
    #[expect(clippy::expect_used)]
    prk.expand(&[label], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(out.as_mut_slice()))
        .expect("HKDF gives 32 bytes");
    out
}

fn aead_nonce(nonce: u64) -> aead::Nonce {
    let mut bytes = [0u8; aead::NONCE_LEN];
    bytes.iter_mut().skip(4).zip(nonce.to_be_bytes()).for_each(|(byte, value)| *byte = value);
    aead::Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn halves(now: Instant) -> (Sealing, Opening) {
        let chain = Zeroizing::new([7u8; 32]);
        (Sealing::new(9, &chain, now), Opening::new(9, &chain))
    }

    #[test]
    fn datagrams_open_once_in_any_order() {
        let now = Instant::now();
        let (mut seal, mut open) = halves(now);
        let mut sent: Vec<_> = (0..500u32).map(|n| seal.seal(now, &n.to_be_bytes()).unwrap()).collect();
        sent.reverse();
        for (n, datagram) in (0..500u32).rev().zip(&sent) {
            assert_eq!(open.open(now, datagram).unwrap(), n.to_be_bytes());
            assert_eq!(open.open(now, datagram), None);
        }
    }

    #[test]
    fn keys_change_every_minute_and_late_datagrams_of_the_last_one_still_open() {
        let start = Instant::now();
        let (mut seal, mut open) = halves(start);
        let mut seen = std::collections::HashSet::new();
        for minute in 0..10u32 {
            let now = start + EPOCH * minute + Duration::from_secs(1);
            let (early, late) = (seal.seal(now, b"early").unwrap(), seal.seal(now, b"late").unwrap());
            assert!(seen.insert(parse(&early).unwrap().1 >> COUNTER_BITS));
            assert!(open.open(now, &early).is_some());
            let turn = now + EPOCH;
            let newer = seal.seal(turn, b"newer").unwrap();
            assert!(open.open(turn, &newer).is_some());
            assert!(open.open(turn + EPOCH_GRACE / 2, &late).is_some());
            assert!(open.open(turn + EPOCH_GRACE * 2, &early).is_none());
        }
    }

    #[test]
    fn a_forgery_of_a_later_epoch_moves_no_state() {
        let now = Instant::now();
        let (mut seal, mut open) = halves(now);
        for ahead in 0..6u64 {
            let mut forged = seal.seal(now, b"x").unwrap();
            forged[5..13].copy_from_slice(&(ahead << COUNTER_BITS | 77).to_be_bytes());
            assert_eq!(open.open(now, &forged), None);
            assert_eq!(open.current.epoch, 0);
            let good = seal.seal(now, b"y").unwrap();
            assert!(open.open(now, &good).is_some());
        }
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_refused_and_the_true_datagram_still_opens(at in 0usize..64, flip in 1u8..) {
            let now = Instant::now();
            let (mut seal, mut open) = halves(now);
            let good = seal.seal(now, &[3; 40]).unwrap();
            let mut bad = good.clone();
            let at = at % bad.len();
            bad[at] ^= flip;
            prop_assert_eq!(open.open(now, &bad), None);
            prop_assert!(open.open(now, &good).is_some());
        }

        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let now = Instant::now();
            let bytes = [&[CHANNEL, 0, 0, 0, 9][..], &bytes].concat();
            prop_assert_eq!(halves(now).1.open(now, &bytes), None);
        }
    }
}
