//! Per-sender media keys in the shape of RFC 9605: every sender seals its frames once, for everybody in the room.
//!
//! [`OwnKey`] lives with the room (it decides when keys change), [`Sealer`] and [`Opener`] on the media thread (they
//! use what they are given). Datagram: `[0x01][SFrame header][ciphertext][16-byte tag]`, the header authenticated.
//!
//! Key id (RFC 9605 section 5.1): the generation in the upper bits, the ratchet step in the lower
//! [`RATCHET_BITS`]. A *ratchet* step (someone joins) derives the next base key, which members can follow by
//! themselves and which says nothing of the past. A *renewal* (someone leaves) is a fresh random base key under the
//! next generation, which only those learn who are sent it.

use std::time::{Duration, Instant};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::replay::ReplayWindow;
use super::sframe::{BASE_KEY, FrameKey, Header, MAX_HEADER, TAG, ratchet};

pub use super::sframe::Suite;

/// First byte of a media datagram.
pub const MEDIA: u8 = 0x01;
/// Most that sealing adds to a packet, in bytes: kind, header, tag.
pub const MAX_OVERHEAD: usize = 1 + MAX_HEADER + TAG;
/// Bits of the key id that count ratchet steps.
pub const RATCHET_BITS: u32 = 4;
/// Most ratchet steps under one generation; the next join takes a renewal instead.
pub const MAX_STEP: u64 = (1 << RATCHET_BITS) - 1;
/// Ratchet steps that an [`Opener`] follows by itself beyond the newest key it has.
pub const MAX_STEPS_AHEAD: u64 = 8;
/// Keys of one sender held at once: the current one, one on its way in, and those of the last moments.
pub const MAX_KEYS: usize = 4;
/// How long a sender's older keys still open late frames, from the first frame under a newer key.
pub const KEY_GRACE: Duration = Duration::from_secs(2);
/// Frames sealed under one process's counter; 2^48 frames of 2.5 ms are 22,000 years.
pub const MAX_COUNTER: u64 = 1 << 48;

/// A sender's key as it travels to one member, inside that member's session. Erased on drop, never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct SenderKey {
    #[zeroize(skip)]
    suite: Suite,
    kid: u64,
    base: [u8; BASE_KEY],
}

impl SenderKey {
    /// The key id that frames under this key carry.
    pub fn kid(&self) -> u64 {
        self.kid
    }

    fn frame_key(&self) -> FrameKey {
        FrameKey::derive(self.suite, &self.base, self.kid)
    }

    /// One ratchet step on; `None` where the generation has no step left.
    fn next(&self) -> Option<Self> {
        if step(self.kid) >= MAX_STEP {
            return None;
        }
        Some(Self { suite: self.suite, kid: self.kid.checked_add(1)?, base: *ratchet(&self.base) })
    }
}

impl std::fmt::Debug for SenderKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SenderKey")
            .field("suite", &self.suite)
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

fn step(kid: u64) -> u64 {
    kid & MAX_STEP
}

fn generation(kid: u64) -> u64 {
    kid >> RATCHET_BITS
}

/// This node's own sending key: a fresh random one in every process, since a counter must never repeat under a key.
#[derive(Debug, Clone)]
pub struct OwnKey {
    key: SenderKey,
}

/// The generation has no ratchet step left: renew instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {MAX_STEP} ratchet steps are used; renew the key")]
pub struct Exhausted;

impl OwnKey {
    /// A new random key under a random generation, so that frames of two processes are not taken for each other.
    pub fn random() -> Self {
        let mut generation = [0u8; 2];
        fill_random(&mut generation);
        // 12 bits: with the step, a key id of two bytes.
        Self { key: random_key(u64::from(u16::from_be_bytes(generation) & 0x0fff)) }
    }

    /// Derives the next base key: whoever gets it cannot read what was sealed before.
    ///
    /// # Errors
    /// [`Exhausted`] after [`MAX_STEP`] steps; the key is unchanged.
    pub fn ratchet(&mut self) -> Result<(), Exhausted> {
        self.key = self.key.next().ok_or(Exhausted)?;
        Ok(())
    }

    /// Replaces the key by a fresh random one: whoever had the old one reads nothing more.
    pub fn renew(&mut self) {
        self.key = random_key(generation(self.key.kid).saturating_add(1) & (u64::MAX >> RATCHET_BITS));
    }

    /// The key id of the present key.
    pub fn kid(&self) -> u64 {
        self.key.kid
    }

    /// The present key: for the [`Sealer`], and for each member's [`Opener`].
    pub fn export(&self) -> SenderKey {
        self.key.clone()
    }
}

fn random_key(generation: u64) -> SenderKey {
    let mut base = [0u8; BASE_KEY];
    fill_random(&mut base);
    let key = SenderKey { suite: Suite::fastest(), kid: generation << RATCHET_BITS, base };
    base.zeroize();
    key
}

fn fill_random(out: &mut [u8]) {
    // The system's generator fails only where the machine cannot do cryptography at all.
    #[expect(clippy::expect_used)]
    SystemRandom::new().fill(out).expect("the system has no random numbers");
}

/// No frame can be sealed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The counter has reached [`MAX_COUNTER`]: restart.
    #[error("all frame counters are used; restart hallway")]
    Exhausted,
    /// The cipher refused the frame, which is longer than 2^36 bytes.
    #[error("the frame is too long to seal")]
    TooLong,
}

/// Packets in, datagrams out. One per process, on the media thread: its counter runs on over every change of key, so
/// that (sender, counter) names a frame, and no key ever meets a counter twice. Allocates nothing in [`Sealer::seal`]
/// but what the caller's buffer lacks.
pub struct Sealer {
    key: FrameKey,
    kid: u64,
    counter: u64,
}

impl Sealer {
    /// A sealer that starts with `key`.
    pub fn new(key: &SenderKey) -> Self {
        Self { key: key.frame_key(), kid: key.kid, counter: 0 }
    }

    /// Seals under `key` from the next frame on.
    pub fn use_key(&mut self, key: &SenderKey) {
        self.key = key.frame_key();
        self.kid = key.kid;
    }

    /// Puts the whole datagram for `packet` into `out` (cleared first) and gives the frame's counter.
    ///
    /// # Errors
    /// [`SealError`]; `out` is then empty.
    pub fn seal(&mut self, packet: &[u8], out: &mut Vec<u8>) -> Result<u64, SealError> {
        out.clear();
        let counter = self.counter;
        if counter >= MAX_COUNTER {
            return Err(SealError::Exhausted);
        }
        self.counter = counter.saturating_add(1);
        let mut header = [0u8; MAX_HEADER];
        let length = Header { kid: self.kid, counter }.encode(&mut header);
        let header = header.get(..length).unwrap_or_default();
        out.push(MEDIA);
        out.extend_from_slice(header);
        out.extend_from_slice(packet);
        let body = out.get_mut(1usize.saturating_add(length)..).unwrap_or_default();
        match self.key.seal(counter, header, body) {
            Ok(tag) => {
                out.extend_from_slice(&tag);
                Ok(counter)
            }
            Err(_) => {
                out.clear();
                Err(SealError::TooLong)
            }
        }
    }
}

/// A datagram we would not play. The call goes on: count it, read the next. Nothing was changed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not a media datagram, or cut off.
    #[error("not a sealed frame")]
    Malformed,
    /// Sealed under a key that we were not given (yet, or any more). Normal for a moment after someone joins or leaves.
    #[error("no key {kid:#x}")]
    UnknownKey {
        /// The key id it names.
        kid: u64,
    },
    /// Seen before, or older than the window of RFC 6479. A few are normal on a path that duplicates.
    #[error("counter {counter} already used")]
    Replayed {
        /// The frame's counter.
        counter: u64,
    },
    /// Wrong key or changed on the way. Never answered: a stranger gets no work out of us.
    #[error("counter {counter} does not authenticate")]
    Forged {
        /// The counter it claims.
        counter: u64,
    },
}

/// What became of one sender's datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenStats {
    /// Opened and handed on.
    pub opened: u64,
    /// Not even a header and a tag.
    pub malformed: u64,
    /// Under a key that is not known.
    pub unknown_key: u64,
    /// Used before, or too old to tell.
    pub replayed: u64,
    /// Did not authenticate.
    pub forged: u64,
}

impl OpenStats {
    /// Datagrams that were not played.
    pub fn rejected(&self) -> u64 {
        self.malformed
            .saturating_add(self.unknown_key)
            .saturating_add(self.replayed)
            .saturating_add(self.forged)
    }
}

/// One sender's datagrams in, packets out, each at most once. Lives on the media thread; allocates only when a key is
/// installed or a ratchet step followed.
#[derive(Default)]
pub struct Opener {
    /// Newest first; at most [`MAX_KEYS`].
    keys: Vec<OpenKey>,
    stats: OpenStats,
}

struct OpenKey {
    sender: SenderKey,
    frame: FrameKey,
    window: ReplayWindow,
    retire_at: Option<Instant>,
}

impl OpenKey {
    fn new(sender: SenderKey) -> Self {
        Self { frame: sender.frame_key(), sender, window: ReplayWindow::default(), retire_at: None }
    }
}

impl Opener {
    /// An opener without a key: every frame is of an unknown key until [`install`](Self::install).
    pub fn new() -> Self {
        Self { keys: Vec::with_capacity(MAX_KEYS.saturating_add(1)), stats: OpenStats::default() }
    }

    /// Takes a key that the sender announced. One that is there already, or was overtaken by ratcheting, changes
    /// nothing; older keys stay until a frame comes under this one, and [`KEY_GRACE`] longer.
    pub fn install(&mut self, now: Instant, key: SenderKey) {
        self.retire(now);
        let overtaken = |have: &OpenKey| {
            have.sender == key
                || (generation(have.sender.kid) == generation(key.kid) && have.sender.kid > key.kid)
        };
        if self.keys.iter().any(overtaken) {
            return;
        }
        self.keys.retain(|have| have.sender.kid != key.kid);
        self.insert(0, OpenKey::new(key));
    }

    /// Puts the packet of `datagram` into `out` (cleared first) and gives the frame's counter. `now` lets old keys go.
    ///
    /// # Errors
    /// [`OpenError`]; `out` is then empty and nothing but a count has changed.
    pub fn open(&mut self, now: Instant, datagram: &[u8], out: &mut Vec<u8>) -> Result<u64, OpenError> {
        self.retire(now);
        let result = self.try_open(now, datagram, out);
        let count = match result {
            Ok(_) => &mut self.stats.opened,
            Err(OpenError::Malformed) => &mut self.stats.malformed,
            Err(OpenError::UnknownKey { .. }) => &mut self.stats.unknown_key,
            Err(OpenError::Replayed { .. }) => &mut self.stats.replayed,
            Err(OpenError::Forged { .. }) => &mut self.stats.forged,
        };
        *count = count.saturating_add(1);
        if result.is_err() {
            out.clear();
        }
        result
    }

    /// What became of the datagrams so far.
    pub fn stats(&self) -> OpenStats {
        self.stats
    }

    fn try_open(&mut self, now: Instant, datagram: &[u8], out: &mut Vec<u8>) -> Result<u64, OpenError> {
        out.clear();
        let Some((&MEDIA, object)) = datagram.split_first() else { return Err(OpenError::Malformed) };
        let (Header { kid, counter }, length) = Header::decode(object).ok_or(OpenError::Malformed)?;
        let (header, body) = object.split_at_checked(length).ok_or(OpenError::Malformed)?;
        if body.len() < TAG {
            return Err(OpenError::Malformed);
        }
        out.extend_from_slice(body);

        if let Some(at) = self.keys.iter().position(|key| key.sender.kid == kid) {
            let key = self.keys.get_mut(at).ok_or(OpenError::UnknownKey { kid })?;
            if !key.window.check(counter) {
                return Err(OpenError::Replayed { counter });
            }
            let plain = key.frame.open(counter, header, out).map_err(|_| OpenError::Forged { counter })?;
            key.window.accept(counter);
            out.truncate(plain);
            self.retire_older_than(at, now);
            return Ok(counter);
        }

        // Not a key we have: perhaps a few ratchet steps ahead. Kept only if the frame proves it.
        let (at, key) = self.ahead(kid).ok_or(OpenError::UnknownKey { kid })?;
        let mut key = OpenKey::new(key);
        let plain = key.frame.open(counter, header, out).map_err(|_| OpenError::Forged { counter })?;
        key.window.accept(counter);
        out.truncate(plain);
        self.insert(at, key);
        self.retire_older_than(at, now);
        Ok(counter)
    }

    /// The key `kid` by ratcheting from the newest key of its generation, and that one's place.
    fn ahead(&self, kid: u64) -> Option<(usize, SenderKey)> {
        let at = self.keys.iter().position(|key| generation(key.sender.kid) == generation(kid))?;
        let known = &self.keys.get(at)?.sender;
        let steps = kid.checked_sub(known.kid).filter(|steps| (1..=MAX_STEPS_AHEAD).contains(steps))?;
        Some((at, (0..steps).try_fold(known.clone(), |key, _| key.next())?))
    }

    fn insert(&mut self, at: usize, key: OpenKey) {
        self.keys.insert(at.min(self.keys.len()), key);
        self.keys.truncate(MAX_KEYS);
    }

    fn retire_older_than(&mut self, at: usize, now: Instant) {
        for key in self.keys.iter_mut().skip(at.saturating_add(1)) {
            if key.retire_at.is_none() {
                key.retire_at = now.checked_add(KEY_GRACE);
            }
        }
    }

    fn retire(&mut self, now: Instant) {
        if self.keys.iter().any(|key| key.retire_at.is_some_and(|at| at <= now)) {
            self.keys.retain(|key| key.retire_at.is_none_or(|at| at > now));
        }
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
