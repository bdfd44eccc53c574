//! The secure session with one peer, over datagrams that get lost, on whatever path the node gives.
//!
//! One [`Session`] per peer, not per connection: it survives a change of path. Three layers, each its own file:
//! [`handshake`] agrees on keys and proves who is there, `cipher` seals datagrams, `channel` and `arq` carry messages.
//! Media does not pass here; its keys do ([`keys`]).
//!
//! Rules: bytes that do not authenticate change nothing. A refusal is not authenticated, so it may end a handshake in
//! progress, said twice with the same reason (the first makes us send again, for a bit may have flipped on the way),
//! and never an established session. A peer that restarted shakes hands anew while the old session stands;
//! the old one goes when the new one is proven.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod arq;
pub(crate) mod bucket;
mod channel;
mod cipher;
mod handshake;
pub mod keys;
pub mod proof;
pub mod replay;
mod retry;
pub mod sframe;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use libp2p_identity::PeerId;

use bucket::Bucket;
use channel::{Channel, Said};
use handshake::{Answer, Datagram, Hello, NOT_THIS_ROOM, Proof, Step};
use retry::{ANSWER_EVERY, Attempt, Due, Retry};

pub use arq::{MAX_MESSAGE, MAX_QUEUED};
pub use channel::{KEEP_ALIVE, LOST_AFTER, MAX_UNRELIABLE, MAX_UNRELIABLE_QUEUE};
pub use cipher::CHANNEL;
pub use handshake::{HANDSHAKE, Local, VERSION};
pub use retry::{FIRST_RETRY, HANDSHAKE_TIMEOUT, MAX_RETRY};

/// Longest datagram that a session gives out, in bytes.
pub const MAX_DATAGRAM: usize = 1100;
/// How long a call of the peer's keeps ours back: it may be a late copy of an old one, which gets nowhere.
pub const CALL_ANYWAY: Duration = Duration::from_secs(2);
/// Handshakes that one peer may start at once, each costing us some 0.3 ms; beyond, its calls are dropped unread.
pub const MAX_CALLS: u32 = 8;
/// How often a peer that used up [`MAX_CALLS`] may call again.
pub const CALL_EVERY: Duration = Duration::from_secs(1);
/// No session can be made with this identity on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Key generation or signing failed.
    #[error(
        "cannot make session keys; the identity must be an ed25519 key and the system must give random numbers"
    )]
    Crypto,
}

/// A message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Wait for [`Event::Established`].
    #[error("there is no session with this peer yet")]
    NotEstablished,
    /// Send less at once.
    #[error("{length} bytes are too long, at most {most} fit")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The most that is taken.
        most: usize,
    },
    /// The peer acknowledges too slowly ([`MAX_QUEUED`]): try later, or let the peer go.
    #[error("too much waits for this peer already")]
    QueueFull,
}

/// Why a handshake was turned down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Same room name, other secret: one of the two has a wrong invite.
    WrongSecret,
    /// The peer is not who the transport says: somebody stands in between.
    Identity,
    /// The peer speaks another version.
    Version,
}

impl Refusal {
    fn code(self) -> u8 {
        match self {
            Self::WrongSecret => 1,
            Self::Identity => 2,
            Self::Version => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::WrongSecret, Self::Identity, Self::Version].into_iter().find(|refusal| refusal.code() == code)
    }
}

/// Who turned a handshake down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// We did.
    Us,
    /// The peer did.
    Them,
}

/// What happened in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Both sides have proven themselves: messages pass from now on.
    Established {
        /// Round trip, where known already.
        rtt: Option<Duration>,
        /// An older session was replaced, because the peer restarted or had lost it. What was not acknowledged is
        /// gone; tell it everything anew.
        replaced: bool,
    },
    /// The next reliable message.
    Message(Vec<u8>),
    /// An unreliable message: in any order, at most once.
    Unreliable(Vec<u8>),
    /// A handshake was turned down. An established session, if there is one, stands.
    Refused {
        /// Why.
        reason: Refusal,
        /// By whom.
        by: Side,
    },
    /// The peer is in another room: no alarm.
    NotThisRoom,
    /// Our handshake got no answer for [`HANDSHAKE_TIMEOUT`].
    TimedOut,
    /// An established session heard nothing for [`LOST_AFTER`]; it is gone.
    Lost,
    /// The peer said goodbye; the session is gone.
    Closed,
}

/// What a session has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Datagrams that opened.
    pub opened: u64,
    /// Datagrams that did not: forged, replayed, of an older session, malformed.
    pub rejected: u64,
    /// Calls dropped unread because the peer called too often.
    pub limited: u64,
}

/// The session with one peer: fed and asked, never waiting.
///
/// Order: any of `connect`, `handle_datagram`, `send_*`, `close`; then [`poll_transmit`](Self::poll_transmit) until
/// `None`, [`poll_event`](Self::poll_event) until `None`, and again at [`poll_timeout`](Self::poll_timeout).
pub struct Session {
    local: Local,
    peer: PeerId,
    channel: Option<Channel>,
    calling: Option<Calling>,
    answering: Option<Attempt<Answer>>,
    /// The last handshake that we answered to the end: its repeated proof asks us to speak up.
    answered: Option<u64>,
    /// The last handshake that we turned down, and why: said again whenever it is continued.
    turned_down: Option<(u64, u8)>,
    /// `connect` was called and has had neither success nor an answer yet.
    wanted: bool,
    rtt_hint: Option<Duration>,
    calls: Bucket,
    answered_at: Option<Instant>,
    outgoing: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    stats: Stats,
    now: Instant,
}

/// We called: which message is out.
enum Calling {
    Hello(Attempt<Hello>),
    Proof(Box<(Attempt<Proof>, Channel)>),
}

impl Session {
    /// An idle session with `peer`, whose PeerId the transport has verified.
    pub fn new(local: &Local, peer: PeerId, now: Instant) -> Self {
        Self {
            local: local.clone(),
            peer,
            channel: None,
            calling: None,
            answering: None,
            answered: None,
            turned_down: None,
            wanted: false,
            rtt_hint: None,
            calls: Bucket::new(MAX_CALLS, CALL_EVERY, now),
            answered_at: None,
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            stats: Stats::default(),
            now,
        }
    }

    /// Tells the round trip that another layer measured; it sets the first retransmissions.
    pub fn set_rtt_hint(&mut self, rtt: Duration) {
        self.rtt_hint = Some(rtt);
        if let Some(channel) = &mut self.channel {
            channel.hint_rtt(rtt);
        }
    }

    /// Calls the peer, unless a handshake is under way. An established session stands until the new one is proven.
    pub fn connect(&mut self, now: Instant) {
        self.now = now;
        self.wanted = true;
        if self.calling.is_none() && self.answering.is_none() {
            self.call(now);
        }
    }

    /// There is another way to the peer: what a handshake waits for may have got lost on the others.
    pub fn hurry(&mut self, now: Instant) {
        self.now = now;
        let (retry, datagram) = match (&mut self.calling, &mut self.answering) {
            (Some(Calling::Hello(attempt)), _) => (&mut attempt.retry, &attempt.phase.datagram),
            (Some(Calling::Proof(proof)), _) => (&mut proof.0.retry, &proof.0.phase.datagram),
            (None, Some(attempt)) => (&mut attempt.retry, &attempt.phase.datagram),
            (None, None) => return,
        };
        retry.delay(now);
        self.outgoing.push_back(datagram.clone());
    }

    /// Takes a datagram of kind [`HANDSHAKE`] or [`CHANNEL`]; others are ignored.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) {
        self.now = now;
        match datagram.first() {
            Some(&HANDSHAKE) => match Datagram::parse(datagram) {
                Some(Datagram::Hello { id, version, tag, noise }) => {
                    self.handle_hello(now, id, version, tag, noise)
                }
                Some(Datagram::Answer { id, noise }) => self.handle_answer(now, id, noise),
                Some(Datagram::Proof { id, noise }) => self.handle_proof(now, id, noise),
                Some(Datagram::Refusal { id, reason }) => self.handle_refusal(now, id, reason),
                None => self.reject(),
            },
            Some(&CHANNEL) => self.handle_channel(now, datagram),
            _ => {}
        }
    }

    /// The next datagram to send. Runs whatever is due at `now`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.now = now;
        self.run_timers(now);
        self.outgoing.pop_front().or_else(|| self.channel.as_mut()?.poll_transmit(now))
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`poll_transmit`](Self::poll_transmit) if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let at_once = (!self.outgoing.is_empty()).then_some(self.now);
        let calling = self.calling.as_ref().map(|calling| match calling {
            Calling::Hello(attempt) => attempt.retry.next(),
            Calling::Proof(proof) => proof.0.retry.next(),
        });
        let answering = self.answering.as_ref().map(|attempt| attempt.retry.next());
        let anyway = self.call_anyway_at().into_iter().chain(self.call_again_at()).min();
        let channel = self.channel.as_ref().and_then(|channel| channel.poll_timeout(self.now));
        [at_once, calling, answering, anyway, channel].into_iter().flatten().min()
    }

    /// Sends a message reliably and in order, at most [`MAX_MESSAGE`] bytes.
    ///
    /// # Errors
    /// [`SendError`]; the message was not taken.
    pub fn send_message(&mut self, now: Instant, message: Vec<u8>) -> Result<(), SendError> {
        self.now = now;
        self.channel.as_mut().ok_or(SendError::NotEstablished)?.send_message(&message)
    }

    /// Sends a message once, at most [`MAX_UNRELIABLE`] bytes; of those that wait the oldest goes first.
    ///
    /// # Errors
    /// [`SendError`]; the message was not taken.
    pub fn send_unreliable(&mut self, now: Instant, message: &[u8]) -> Result<(), SendError> {
        self.now = now;
        self.channel.as_mut().ok_or(SendError::NotEstablished)?.send_unreliable(message)
    }

    /// Says goodbye and ends everything; [`poll_transmit`](Self::poll_transmit) has the last datagrams.
    pub fn close(&mut self, now: Instant) {
        self.now = now;
        (self.calling, self.answering, self.wanted) = (None, None, false);
        if let Some(channel) = self.channel.take() {
            self.outgoing.extend(channel.goodbye(now));
        }
    }

    /// Whether messages can be sent.
    pub fn is_established(&self) -> bool {
        self.channel.is_some()
    }

    /// What proves the voices of the two where a server passes them on; `None` without an established session.
    pub fn proofs(&self) -> Option<&proof::Proofs> {
        self.channel.as_ref().map(Channel::proofs)
    }

    /// Whether a handshake is under way.
    pub fn is_connecting(&self) -> bool {
        self.calling.is_some() || self.answering.is_some()
    }

    /// Round trip of the session's own datagrams, or the hint.
    pub fn rtt(&self) -> Option<Duration> {
        self.channel.as_ref().and_then(Channel::rtt).or(self.rtt_hint)
    }

    /// With whom.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// What was counted.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn call(&mut self, now: Instant) {
        if let Ok(hello) = Hello::new(&self.local, &self.peer) {
            self.outgoing.push_back(hello.datagram.clone());
            self.calling = Some(Calling::Hello(Attempt { phase: hello, retry: self.retry(now) }));
        }
    }

    fn handle_hello(&mut self, now: Instant, id: u64, version: u8, tag: [u8; 16], noise: &[u8]) {
        // Another call under the same number: a bit has flipped in one of the two.
        let same = |attempt: &&mut Attempt<Answer>| attempt.phase.id == id && attempt.phase.is_to(noise);
        if let Some(attempt) = self.answering.as_mut().filter(same) {
            if attempt.retry.hurry(now) {
                self.outgoing.push_back(attempt.phase.datagram.clone());
            }
            return;
        }
        if self.answered == Some(id) {
            return;
        }
        // Both called at once: the greater PeerId's call counts, and the other one's is dropped below.
        if matches!(self.calling, Some(Calling::Hello(_))) && self.local.peer() > self.peer {
            return;
        }
        if !self.calls.take(now) {
            self.stats.limited = self.stats.limited.saturating_add(1);
            return;
        }
        if version != VERSION {
            self.outgoing.push_back(handshake::refusal(id, Refusal::Version.code()));
            return;
        }
        if tag != handshake::expected_tag(&self.local, &self.peer) {
            self.outgoing.push_back(handshake::refusal(id, NOT_THIS_ROOM));
            return;
        }
        let Some(answer) = Answer::new(&self.local, &self.peer, id, noise) else { return self.reject() };
        self.outgoing.push_back(answer.datagram.clone());
        self.answering = Some(Attempt { phase: answer, retry: self.retry(now) });
        if matches!(self.calling, Some(Calling::Hello(_))) {
            self.calling = None;
        }
    }

    fn handle_answer(&mut self, now: Instant, id: u64, noise: &[u8]) {
        match self.calling.take() {
            Some(Calling::Hello(Attempt { phase, retry })) if phase.id == id => {
                match phase.handle_answer(noise, &self.peer) {
                    Step::Done(proof) => {
                        self.outgoing.push_back(proof.datagram.clone());
                        let channel = Channel::new(&proof.keys, self.first_rtt(), now);
                        let until = retry.until();
                        let mut attempt = Attempt { phase: proof, retry: self.retry(now) };
                        attempt.retry.not_beyond(until);
                        self.calling = Some(Calling::Proof(Box::new((attempt, channel))));
                    }
                    Step::Again { this, .. } => {
                        self.calling = Some(Calling::Hello(Attempt { phase: this, retry }));
                        self.reject();
                    }
                    Step::Refuse(reason) => self.refused(reason, Side::Us),
                }
            }
            Some(Calling::Proof(mut proof)) => {
                // The answer again: our proof was lost on the way.
                if proof.0.phase.id == id && proof.0.retry.hurry(now) {
                    self.outgoing.push_back(proof.0.phase.datagram.clone());
                }
                self.calling = Some(Calling::Proof(proof));
            }
            other => {
                self.calling = other;
                self.reject();
            }
        }
    }

    fn handle_proof(&mut self, now: Instant, id: u64, noise: &[u8]) {
        match self.answering.take() {
            Some(Attempt { phase, mut retry }) if phase.id == id => match phase.handle_proof(noise) {
                Step::Done(keys) => {
                    let mut channel = Channel::new(&keys, self.first_rtt(), now);
                    channel.speak_up();
                    self.answered = Some(id);
                    self.calling = None;
                    self.establish(channel);
                }
                Step::Again { this, proven } => {
                    self.reject();
                    // The same bytes twice were meant so; a bit that flipped on the way is not repeated.
                    if proven && retry.failed_proof.as_deref() == Some(noise) {
                        return self.turn_down(id, Refusal::WrongSecret);
                    }
                    retry.failed_proof = proven.then(|| noise.to_vec());
                    if retry.hurry(now) {
                        self.outgoing.push_back(this.datagram.clone());
                    }
                    self.answering = Some(Attempt { phase: this, retry });
                }
                Step::Refuse(reason) => self.turn_down(id, reason),
            },
            other => {
                self.answering = other;
                if let Some((_, reason)) = self.turned_down.filter(|(turned_down, _)| *turned_down == id) {
                    if self.may_answer(now) {
                        self.outgoing.push_back(handshake::refusal(id, reason));
                    }
                } else if self.answered == Some(id) && self.may_answer(now) {
                    // The peer has not heard us under the new keys yet.
                    if let Some(channel) = &mut self.channel {
                        channel.speak_up();
                    }
                }
            }
        }
    }

    fn handle_refusal(&mut self, now: Instant, id: u64, reason: u8) {
        let (ours, datagram, retry) = match &mut self.calling {
            Some(Calling::Hello(attempt)) => (attempt.phase.id, &attempt.phase.datagram, &mut attempt.retry),
            Some(Calling::Proof(proof)) => (proof.0.phase.id, &proof.0.phase.datagram, &mut proof.0.retry),
            None => return,
        };
        if ours != id {
            return;
        }
        if retry.refusal.replace(reason) != Some(reason) {
            self.outgoing.push_back(datagram.clone());
            retry.delay(now);
            return;
        }
        self.calling = None;
        match (reason, Refusal::from_code(reason)) {
            (NOT_THIS_ROOM, _) => {
                self.wanted = false;
                self.events.push_back(Event::NotThisRoom);
            }
            // A reason of a later version.
            (_, refusal) => self.refused(refusal.unwrap_or(Refusal::Version), Side::Them),
        }
    }

    fn handle_channel(&mut self, now: Instant, datagram: &[u8]) {
        let id = cipher::parse(datagram).map(|(id, _)| id);
        let fresh = matches!(&self.calling, Some(Calling::Proof(proof)) if Some(proof.1.id()) == id);
        if fresh {
            let Some(Calling::Proof(mut proof)) = self.calling.take() else { return };
            match proof.1.handle_datagram(now, datagram) {
                Some(said) => {
                    self.answering = None;
                    self.establish(proof.1);
                    self.hear(said);
                }
                None => {
                    self.calling = Some(Calling::Proof(proof));
                    self.reject();
                }
            }
            return;
        }
        let said = self.channel.as_mut().and_then(|channel| channel.handle_datagram(now, datagram));
        match said {
            Some(said) => self.hear(said),
            None => self.reject(),
        }
    }

    fn hear(&mut self, said: Vec<Said>) {
        self.stats.opened = self.stats.opened.saturating_add(1);
        for said in said {
            match said {
                Said::Message(message) => self.events.push_back(Event::Message(message)),
                Said::Unreliable(message) => self.events.push_back(Event::Unreliable(message)),
                Said::Goodbye => {
                    if self.channel.take().is_some() {
                        self.events.push_back(Event::Closed);
                    }
                }
            }
        }
    }

    fn establish(&mut self, channel: Channel) {
        let rtt = channel.rtt();
        let replaced = self.channel.replace(channel).is_some();
        self.wanted = false;
        self.events.push_back(Event::Established { rtt, replaced });
    }

    fn refused(&mut self, reason: Refusal, by: Side) {
        self.wanted = false;
        self.events.push_back(Event::Refused { reason, by });
    }

    fn turn_down(&mut self, id: u64, reason: Refusal) {
        self.turned_down = Some((id, reason.code()));
        self.outgoing.push_back(handshake::refusal(id, reason.code()));
        self.refused(reason, Side::Us);
    }

    fn reject(&mut self) {
        self.stats.rejected = self.stats.rejected.saturating_add(1);
    }

    fn run_timers(&mut self, now: Instant) {
        let mut gave_up = false;
        let due = match &mut self.calling {
            Some(Calling::Hello(attempt)) => attempt.retry.run(now, &attempt.phase.datagram),
            Some(Calling::Proof(proof)) => proof.0.retry.run(now, &proof.0.phase.datagram),
            None => Due::Nothing,
        };
        match due {
            Due::Send(datagram) => self.outgoing.push_back(datagram),
            Due::GiveUp => (self.calling, gave_up) = (None, true),
            Due::Nothing => {}
        }
        match self.answering.as_mut().map(|attempt| attempt.retry.run(now, &attempt.phase.datagram)) {
            Some(Due::Send(datagram)) => self.outgoing.push_back(datagram),
            Some(Due::GiveUp) => (self.answering, gave_up) = (None, true),
            _ => {}
        }
        if self.call_anyway_at().is_some_and(|at| at <= now) {
            self.call(now);
        }
        if let Some(Calling::Proof(proof)) = &self.calling
            && self.call_again_at().is_some_and(|at| at <= now)
        {
            let until = proof.0.retry.until();
            self.call(now);
            if let Some(Calling::Hello(attempt)) = &mut self.calling {
                attempt.retry.not_beyond(until);
            }
        }
        if gave_up && self.wanted && !self.is_connecting() {
            self.wanted = false;
            self.events.push_back(Event::TimedOut);
        }
        if self.channel.as_ref().is_some_and(|channel| channel.is_lost(now)) {
            self.channel = None;
            self.events.push_back(Event::Lost);
        }
    }

    /// When to stop waiting for the peer's own call to get on, where ours is wanted.
    fn call_anyway_at(&self) -> Option<Instant> {
        let theirs = self.answering.as_ref().filter(|_| self.wanted && self.calling.is_none())?;
        theirs.retry.started().checked_add(CALL_ANYWAY)
    }

    /// When to call again because nobody takes our proof: whoever answered may have started anew meanwhile.
    fn call_again_at(&self) -> Option<Instant> {
        let Some(Calling::Proof(proof)) = &self.calling else { return None };
        proof.0.retry.started().checked_add(CALL_ANYWAY)
    }

    fn may_answer(&mut self, now: Instant) -> bool {
        let free = self.answered_at.is_none_or(|last| now.saturating_duration_since(last) >= ANSWER_EVERY);
        if free {
            self.answered_at = Some(now);
        }
        free
    }

    fn retry(&self, now: Instant) -> Retry {
        Retry::new(now, self.rtt_hint)
    }

    fn first_rtt(&self) -> arq::Rtt {
        let mut rtt = arq::Rtt::default();
        if let Some(hint) = self.rtt_hint {
            rtt.hint(hint);
        }
        rtt
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
