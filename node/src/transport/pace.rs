//! How often strangers' handshakes are answered where QUIC runs on the media thread: each costs it part of a millisecond.
//! What is beyond is ignored, and tries again.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::Multiaddr;

use crate::{rendezvous::store::Prefix, session::bucket::Bucket};

/// Handshakes of all that are answered at once …
pub const HANDSHAKES_AT_ONCE: u32 = 64;
/// … and this often for long.
pub const HANDSHAKE_EVERY: Duration = Duration::from_millis(20);
/// Of one public IPv4 address or IPv6 /64 so many at once …
pub const HANDSHAKES_AT_ONCE_PER_ORIGIN: u32 = 24;
/// … and this often for long: others get through beside one that floods.
pub const HANDSHAKE_EVERY_PER_ORIGIN: Duration = Duration::from_millis(50);
/// Origins that are told apart at a time.
pub const MAX_PACED_ORIGINS: usize = 1024;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Pace {
    all: Bucket,
    origins: HashMap<Prefix, Bucket>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        let all = Bucket::new(HANDSHAKES_AT_ONCE, HANDSHAKE_EVERY, now);
        Self { all, origins: HashMap::new() }
    }

    /// Whether a handshake from this address may begin now.
    pub(super) fn take(&mut self, now: Instant, from: &Multiaddr) -> bool {
        self.of_origin(now, Prefix::of(from)) && self.all.take(now)
    }

    fn of_origin(&mut self, now: Instant, origin: Prefix) -> bool {
        if origin == Prefix::Local {
            return true;
        }
        if !self.origins.contains_key(&origin) && self.origins.len() >= MAX_PACED_ORIGINS {
            self.origins.retain(|_, bucket| !bucket.is_full(now));
            if self.origins.len() >= MAX_PACED_ORIGINS {
                // A flood from everywhere: what is left is the bound of all.
                self.origins.clear();
            }
        }
        let fresh = || Bucket::new(HANDSHAKES_AT_ONCE_PER_ORIGIN, HANDSHAKE_EVERY_PER_ORIGIN, now);
        self.origins.entry(origin).or_insert_with(fresh).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_floods_leaves_room_for_others() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let from = |ip: &str| format!("{ip}/udp/1/quic-v1").parse::<Multiaddr>().unwrap();
        let flood = (0..1000).filter(|_| pace.take(now, &from("/ip4/8.8.8.8"))).count();
        assert_eq!(flood, 24);
        let customer =
            (0..1000).filter(|n| pace.take(now, &from(&format!("/ip6/2a00:1:2:3::{n:x}")))).count();
        assert_eq!(customer, 24, "a /64 is one origin");
        assert!(pace.take(now, &from("/ip4/9.9.9.9")));
        let near = (0..1000).filter(|_| pace.take(now, &from("/ip4/192.168.1.7"))).count();
        assert_eq!(near, 15, "private addresses share what all have");
    }

    #[test]
    fn the_origins_told_apart_are_bounded_and_forgotten() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let from = |n: usize| format!("/ip4/9.{}.{}.1/udp/1/quic-v1", n / 250, n % 250).parse().unwrap();
        for n in 0..MAX_PACED_ORIGINS + 10 {
            let address: Multiaddr = from(n);
            pace.take(now, &address);
            assert!(pace.origins.len() <= MAX_PACED_ORIGINS);
        }
        let later = now + HANDSHAKE_EVERY_PER_ORIGIN * 2;
        pace.take(later, &from(MAX_PACED_ORIGINS + 20));
        assert!(pace.origins.len() < 20, "{}", pace.origins.len());
    }
}
