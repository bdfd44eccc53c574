//! A handshake's clock: when a message goes out again, and when to give up.

use std::time::{Duration, Instant};

use super::arq::scaled;

/// A handshake message is sent again after this, before an answer can have come: it is small, and where a burst of loss took
/// the first of them the next has another chance. Half as long again each time up to [`USUAL_RETRY`], a fifth beyond.
pub const FIRST_RETRY: Duration = Duration::from_millis(50);
/// See [`FIRST_RETRY`].
pub const USUAL_RETRY: Duration = Duration::from_millis(100);
/// Where the round trip is known to be as long, each message fills a thin link for a while: again after twice that time.
pub const LONG_RTT: Duration = Duration::from_millis(250);
/// Most time between two sendings of a handshake message.
pub const MAX_RETRY: Duration = Duration::from_millis(600);
/// When a handshake gives up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Least time between answers to repeated handshake messages.
pub const ANSWER_EVERY: Duration = Duration::from_millis(20);

/// A handshake message that is sent until the next one comes.
pub struct Attempt<Phase> {
    pub phase: Phase,
    pub retry: Retry,
}

/// When to send it again, and when to give up.
pub struct Retry {
    started: Instant,
    at: Instant,
    wait: Duration,
    until: Instant,
    /// What the peer refused it with, if it did so once.
    pub refusal: Option<u8>,
    /// A proof that failed, to be told from one that a bit flipped in.
    pub failed_proof: Option<Vec<u8>>,
}

/// What a handshake's clock asks for.
pub enum Due {
    Nothing,
    Send(Vec<u8>),
    GiveUp,
}

impl Retry {
    pub fn new(now: Instant, rtt: Option<Duration>) -> Self {
        let long = rtt.filter(|rtt| *rtt >= LONG_RTT);
        let wait = long.map_or(FIRST_RETRY, |rtt| rtt.saturating_mul(2).min(MAX_RETRY));
        let after = |wait| now.checked_add(wait).unwrap_or(now);
        Self {
            started: now,
            at: after(wait),
            wait,
            until: after(HANDSHAKE_TIMEOUT),
            refusal: None,
            failed_proof: None,
        }
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn until(&self) -> Instant {
        self.until
    }

    /// Gives up at that time, if not sooner.
    pub fn not_beyond(&mut self, until: Instant) {
        self.until = self.until.min(until);
    }

    pub fn next(&self) -> Instant {
        self.at.min(self.until)
    }

    pub fn run(&mut self, now: Instant, datagram: &[u8]) -> Due {
        if now >= self.until {
            return Due::GiveUp;
        }
        if now < self.at {
            return Due::Nothing;
        }
        // No doubling: at 30 % loss it would leave too few tries within 3 s.
        let (by, over) = if self.wait < USUAL_RETRY { (3, 2) } else { (6, 5) };
        self.wait = scaled(self.wait, by, over).min(MAX_RETRY);
        self.delay(now);
        Due::Send(datagram.to_vec())
    }

    /// Puts the next sending off: one went out just now.
    pub fn delay(&mut self, now: Instant) {
        self.at = now.checked_add(self.wait).unwrap_or(self.until);
    }

    /// Whether to send at once because the peer repeated itself, which shows that ours was lost.
    pub fn hurry(&mut self, now: Instant) -> bool {
        let sent = self.at.checked_sub(self.wait).unwrap_or(now);
        let free = now.saturating_duration_since(sent) >= ANSWER_EVERY;
        if free {
            self.delay(now);
        }
        free
    }
}
