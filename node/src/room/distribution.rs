//! Who gets our sending key, and when it changes: the seam behind which MLS (RFC 9420) could stand in large rooms.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use libp2p_identity::PeerId;

use crate::session::keys::{OwnKey, SenderKey};

/// Longest that frames are still sealed under a key which somebody who left has.
pub const SWITCH_AFTER: Duration = Duration::from_millis(500);
/// Longest that one random key and what is ratcheted from it are used while anybody listens: at 400 frames a second some
/// 48,000 frames, far below the 2^32 that its cipher bears.
pub const RENEW_AFTER: Duration = Duration::from_secs(120);
/// How long before the end of [`RENEW_AFTER`] the next key is announced: nobody left, so that nobody need lose a frame
/// over it, and on a bad path the acknowledgements take their time.
pub const RENEW_NOTICE: Duration = Duration::from_secs(10);

/// What a way of distributing keys is told, and asked. After any `handle_*`: `poll_output` until `None`, and again at
/// `poll_timeout`.
pub trait KeyDistribution: Send {
    /// A member is there, new or restarted: it must be able to read what comes, and nothing that was.
    fn handle_joined(&mut self, now: Instant, peer: PeerId);
    /// A member is gone: it must not read on for longer than [`SWITCH_AFTER`].
    fn handle_left(&mut self, now: Instant, peer: PeerId);
    /// A member has the key of this id.
    fn handle_ack(&mut self, now: Instant, peer: PeerId, kid: u64);
    /// What to do next.
    fn poll_output(&mut self, now: Instant) -> Option<KeyOutput>;
    /// When to ask again if nothing else happens.
    fn poll_timeout(&self) -> Option<Instant>;
}

/// What follows from a change of members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOutput {
    /// Tell one member the key, inside its session.
    Send {
        /// Whom.
        to: PeerId,
        /// The key.
        key: SenderKey,
    },
    /// Seal under this key from now on.
    Seal(SenderKey),
}

/// Every member gets the key inside its own pairwise session: N-1 messages of some 50 bytes for each change.
///
/// Join: ratchet at once; members can follow by themselves, and are told all the same so that nobody who heard nothing
/// for long falls behind. Leave: a fresh random key goes to those who remain, and is used once all of them have it or
/// [`SWITCH_AFTER`] has passed. Time: the same every [`RENEW_AFTER`], announced [`RENEW_NOTICE`] before.
pub struct PairwiseKeys {
    current: OwnKey,
    /// Since when somebody has had the present random key.
    since: Option<Instant>,
    pending: Option<Pending>,
    members: BTreeSet<PeerId>,
    outputs: VecDeque<KeyOutput>,
}

struct Pending {
    key: OwnKey,
    waiting: BTreeSet<PeerId>,
    at: Instant,
}

impl Default for PairwiseKeys {
    fn default() -> Self {
        Self::new()
    }
}

impl PairwiseKeys {
    /// A fresh random key and no members; the first output says to seal under it.
    pub fn new() -> Self {
        let current = OwnKey::random();
        let outputs = VecDeque::from([KeyOutput::Seal(current.export())]);
        Self { current, since: None, pending: None, members: BTreeSet::new(), outputs }
    }

    /// Announces a fresh key to all members, to be used at `at` at the latest. An announced one that is not in use yet is
    /// replaced; the earlier end holds.
    fn renew(&mut self, now: Instant, at: Instant) {
        let (mut key, at) = match self.pending.take() {
            Some(pending) => (pending.key, pending.at.min(at)),
            None => (self.current.clone(), at),
        };
        key.renew();
        self.announce(&key);
        self.pending = Some(Pending { key, waiting: self.members.clone(), at });
        self.switch_if_due(now);
    }

    /// Within half a second, because somebody may no longer listen, or nothing else helps.
    fn renew_soon(&mut self, now: Instant) {
        self.renew(now, now.checked_add(SWITCH_AFTER).unwrap_or(now));
    }

    /// When the present key is old enough for the next one to be announced.
    fn renewal(&self) -> Option<Instant> {
        let since = self.since.filter(|_| self.pending.is_none() && !self.members.is_empty())?;
        since.checked_add(RENEW_AFTER.saturating_sub(RENEW_NOTICE))
    }

    fn renew_if_old(&mut self, now: Instant) {
        if self.renewal().is_some_and(|at| at <= now) {
            self.renew(now, now.checked_add(RENEW_NOTICE).unwrap_or(now));
        }
    }

    fn announce(&mut self, key: &OwnKey) {
        self.outputs.extend(self.members.iter().map(|to| KeyOutput::Send { to: *to, key: key.export() }));
    }

    fn switch_if_due(&mut self, now: Instant) {
        if let Some(pending) = self.pending.take_if(|pending| pending.waiting.is_empty() || pending.at <= now)
        {
            self.current = pending.key;
            self.since = (!self.members.is_empty()).then_some(now);
            self.outputs.push_back(KeyOutput::Seal(self.current.export()));
        }
    }
}

impl KeyDistribution for PairwiseKeys {
    fn handle_joined(&mut self, now: Instant, peer: PeerId) {
        self.members.insert(peer);
        self.since.get_or_insert(now);
        if let Some(pending) = &self.pending {
            // Nothing was sealed under this key yet: it says nothing of the past.
            self.outputs.push_back(KeyOutput::Send { to: peer, key: pending.key.export() });
        } else if self.current.ratchet().is_ok() {
            self.outputs.push_back(KeyOutput::Seal(self.current.export()));
            let key = self.current.clone();
            self.announce(&key);
        } else {
            self.renew_soon(now);
        }
    }

    fn handle_left(&mut self, now: Instant, peer: PeerId) {
        if self.members.remove(&peer) {
            self.renew_soon(now);
        }
    }

    fn handle_ack(&mut self, now: Instant, peer: PeerId, kid: u64) {
        if let Some(pending) = self.pending.as_mut().filter(|pending| pending.key.kid() == kid) {
            pending.waiting.remove(&peer);
        }
        self.switch_if_due(now);
    }

    fn poll_output(&mut self, now: Instant) -> Option<KeyOutput> {
        self.renew_if_old(now);
        self.switch_if_due(now);
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.at).or_else(|| self.renewal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::keys::RATCHET_BITS;

    fn generation(kid: u64) -> u64 {
        kid >> RATCHET_BITS
    }

    fn drain(keys: &mut PairwiseKeys, now: Instant) -> (Vec<PeerId>, Option<u64>) {
        let (mut told, mut sealing) = (Vec::new(), None);
        while let Some(output) = keys.poll_output(now) {
            match output {
                KeyOutput::Send { to, .. } => told.push(to),
                KeyOutput::Seal(key) => sealing = Some(key.kid()),
            }
        }
        told.sort();
        (told, sealing)
    }

    fn with_members(count: usize) -> (PairwiseKeys, Vec<PeerId>, Instant) {
        let (now, mut keys) = (Instant::now(), PairwiseKeys::new());
        let mut peers: Vec<_> = (0..count).map(|_| PeerId::random()).collect();
        peers.sort();
        for peer in &peers {
            keys.handle_joined(now, *peer);
        }
        drain(&mut keys, now);
        (keys, peers, now)
    }

    #[test]
    fn a_join_takes_the_next_step_at_once_and_everybody_is_told() {
        let (mut keys, mut peers, now) = with_members(3);
        let before = keys.current.kid();
        let newcomer = PeerId::random();
        keys.handle_joined(now, newcomer);
        peers.push(newcomer);
        peers.sort();
        assert_eq!(drain(&mut keys, now), (peers, Some(before + 1)));
    }

    #[test]
    fn after_a_leave_the_new_key_is_used_when_all_have_it() {
        let (mut keys, peers, now) = with_members(3);
        keys.handle_left(now, peers[0]);
        assert_eq!(drain(&mut keys, now), (peers[1..].to_vec(), None));
        let kid = keys.pending.as_ref().unwrap().key.kid();
        keys.handle_ack(now, peers[1], kid);
        keys.handle_ack(now, peers[2], kid - 1);
        keys.handle_ack(now, peers[0], kid);
        assert_eq!(drain(&mut keys, now), (vec![], None));
        keys.handle_ack(now, peers[2], kid);
        assert_eq!(drain(&mut keys, now), (vec![], Some(kid)));
        assert_eq!(keys.poll_timeout(), Some(now + RENEW_AFTER - RENEW_NOTICE), "until it is old");
    }

    #[test]
    fn who_does_not_acknowledge_delays_the_new_key_by_half_a_second_at_most() {
        let (mut keys, peers, now) = with_members(3);
        keys.handle_left(now, peers[0]);
        drain(&mut keys, now);
        // A second leaver must not push the first one's end back, and must not know the key in use then.
        let later = now + Duration::from_millis(400);
        let announced = keys.pending.as_ref().unwrap().key.kid();
        keys.handle_left(later, peers[1]);
        drain(&mut keys, later);
        assert_eq!(keys.poll_timeout(), Some(now + SWITCH_AFTER));
        let (_, sealing) = drain(&mut keys, now + SWITCH_AFTER);
        assert_eq!(sealing, Some(keys.current.kid()));
        assert!(keys.current.kid() > announced);
    }

    #[test]
    fn who_joins_while_a_new_key_is_on_its_way_gets_that_one_only() {
        let (mut keys, peers, now) = with_members(3);
        keys.handle_left(now, peers[0]);
        drain(&mut keys, now);
        let newcomer = PeerId::random();
        keys.handle_joined(now, newcomer);
        let pending = keys.pending.as_ref().unwrap().key.export();
        assert_eq!(keys.poll_output(now), Some(KeyOutput::Send { to: newcomer, key: pending }));
        assert_eq!(keys.poll_output(now), None);
    }

    #[test]
    fn a_key_is_used_for_two_minutes_at_most_and_the_next_one_is_known_before() {
        let (mut keys, peers, start) = with_members(2);
        let first = keys.current.kid();
        let notice = start + RENEW_AFTER - RENEW_NOTICE;
        assert_eq!(keys.poll_timeout(), Some(notice));
        assert_eq!(drain(&mut keys, notice - Duration::from_millis(1)), (vec![], None));
        assert_eq!(drain(&mut keys, notice), (peers.clone(), None), "announced, not used");
        // One acknowledges, the other is silent: the time decides.
        let announced = keys.pending.as_ref().unwrap().key.kid();
        keys.handle_ack(notice, peers[0], announced);
        assert_eq!(drain(&mut keys, notice), (vec![], None));
        assert_eq!(keys.poll_timeout(), Some(start + RENEW_AFTER));
        assert_eq!(drain(&mut keys, start + RENEW_AFTER), (vec![], Some(announced)));
        assert!(generation(announced) > generation(first), "fresh, not derived");
    }

    #[test]
    fn who_leaves_while_a_key_is_renewed_by_time_hears_half_a_second_more() {
        let (mut keys, peers, start) = with_members(3);
        let notice = start + RENEW_AFTER - RENEW_NOTICE;
        drain(&mut keys, notice);
        let known = keys.pending.as_ref().unwrap().key.kid();
        keys.handle_left(notice, peers[0]);
        assert_eq!(keys.poll_timeout(), Some(notice + SWITCH_AFTER));
        let (_, sealing) = drain(&mut keys, notice + SWITCH_AFTER);
        assert!(sealing.unwrap() > known);
    }

    #[test]
    fn joins_do_not_make_an_old_key_young_and_an_empty_room_renews_nothing() {
        let (mut keys, peers, start) = with_members(1);
        keys.handle_joined(start + RENEW_AFTER / 2, PeerId::random());
        drain(&mut keys, start + RENEW_AFTER / 2);
        assert_eq!(keys.poll_timeout(), Some(start + RENEW_AFTER - RENEW_NOTICE));
        let (mut alone, others, _) = with_members(1);
        alone.handle_left(start, others[0]);
        drain(&mut alone, start);
        assert_eq!(alone.poll_timeout(), None);
        assert!(!peers.is_empty());
    }

    #[test]
    fn the_last_one_to_remain_seals_under_a_key_that_nobody_else_has() {
        let (mut keys, peers, now) = with_members(1);
        keys.handle_left(now, peers[0]);
        let (told, sealing) = drain(&mut keys, now);
        assert!(told.is_empty() && sealing == Some(keys.current.kid()));
    }

    #[test]
    fn a_peer_that_restarts_forever_never_runs_the_ratchet_out() {
        let (mut keys, peers, mut now) = with_members(2);
        for _ in 0..100 {
            let before = keys.current.kid();
            keys.handle_joined(now, peers[0]);
            drain(&mut keys, now);
            now += SWITCH_AFTER;
            drain(&mut keys, now);
            assert!(keys.current.kid() > before);
        }
    }
}
