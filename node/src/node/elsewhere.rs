//! Peers that are not to be called for a moment: they are in another room, or ours had no place for them. Pure.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// Peers remembered here. At the bound the oldest is forgotten: it costs one more handshake at worst.
pub const MAX_ELSEWHERE: usize = 128;
/// How long such a peer is not called. Short: it may come to our room. If it calls, it is heard at any time.
pub const ELSEWHERE_FOR: Duration = Duration::from_secs(60);

/// See the module's text.
#[derive(Debug, Default)]
pub struct Elsewhere(HashMap<PeerId, Instant>);

impl Elsewhere {
    /// Not to be called for [`ELSEWHERE_FOR`] from now.
    pub fn insert(&mut self, now: Instant, peer: PeerId) {
        self.0.retain(|_, since| now.saturating_duration_since(*since) < ELSEWHERE_FOR);
        if self.0.len() >= MAX_ELSEWHERE
            && let Some(oldest) = self.0.iter().min_by_key(|(_, since)| **since).map(|(peer, _)| *peer)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(peer, now);
    }

    /// It is in our room after all.
    pub fn remove(&mut self, peer: &PeerId) {
        self.0.remove(peer);
    }

    /// Whether it should be left alone now.
    pub fn contains(&self, now: Instant, peer: &PeerId) -> bool {
        self.0.get(peer).is_some_and(|since| now.saturating_duration_since(*since) < ELSEWHERE_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_elsewhere_is_called_again_after_a_minute_or_when_it_came() {
        let (now, ana, ben) = (Instant::now(), PeerId::random(), PeerId::random());
        let mut elsewhere = Elsewhere::default();
        elsewhere.insert(now, ana);
        elsewhere.insert(now, ben);
        elsewhere.remove(&ben);
        assert!(!elsewhere.contains(now, &ben));
        assert!(elsewhere.contains(now + ELSEWHERE_FOR - Duration::from_millis(1), &ana));
        assert!(!elsewhere.contains(now + ELSEWHERE_FOR, &ana));
    }

    #[test]
    fn a_crowd_elsewhere_pushes_out_the_oldest_only() {
        let (now, first) = (Instant::now(), PeerId::random());
        let mut elsewhere = Elsewhere::default();
        elsewhere.insert(now, first);
        let later = now + Duration::from_secs(1);
        let crowd: Vec<_> = (0..MAX_ELSEWHERE).map(|_| PeerId::random()).collect();
        crowd.iter().for_each(|peer| elsewhere.insert(later, *peer));
        assert!(!elsewhere.contains(later, &first));
        assert!(crowd.iter().all(|peer| elsewhere.contains(later, peer)));
        assert_eq!(elsewhere.0.len(), MAX_ELSEWHERE);
        // What is over takes no room.
        elsewhere.insert(later + ELSEWHERE_FOR, first);
        assert_eq!(elsewhere.0.len(), 1);
    }
}
