//! Messages over datagrams that get lost: fragments with sequence numbers, cumulative and selective
//! acknowledgement, retransmission by timer and by gaps. In order, exactly once.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// Bytes of message in one fragment.
pub const FRAGMENT: usize = 1024;
/// Fragments in flight at once, and fragments held out of order; the size of an acknowledgement's map plus one.
pub const WINDOW: u32 = 64;
/// Bytes waiting to be acknowledged, each message counted with [`MESSAGE_COST`]. Full means an error for the caller:
/// control messages are never dropped silently.
pub const MAX_QUEUED: usize = 256 * 1024;
/// What a queued message costs beside its bytes.
pub const MESSAGE_COST: usize = 64;
/// Least time before a fragment is sent again.
pub const MIN_RTO: Duration = Duration::from_millis(100);
/// Most time before a fragment is sent again, however often it was lost: the path may be back any moment.
pub const MAX_RTO: Duration = Duration::from_secs(2);
const FIRST_WINDOW: u32 = 10;
/// How far behind what arrived a fragment is merely late.
const REORDER: usize = 2;

/// Smoothed round-trip time (RFC 6298).
#[derive(Debug, Clone, Copy, Default)]
pub struct Rtt {
    smoothed: Option<(Duration, Duration)>,
    hint: Option<Duration>,
}

impl Rtt {
    /// What another layer measured, used until the first sample.
    pub fn hint(&mut self, rtt: Duration) {
        self.hint = Some(rtt.min(MAX_RTO));
    }

    pub fn sample(&mut self, rtt: Duration) {
        let rtt = rtt.min(MAX_RTO);
        self.smoothed = Some(match self.smoothed {
            None => (rtt, scaled(rtt, 1, 2)),
            Some((mean, var)) => {
                let var = scaled(var.saturating_mul(3).saturating_add(mean.abs_diff(rtt)), 1, 4);
                (scaled(mean.saturating_mul(7).saturating_add(rtt), 1, 8), var)
            }
        });
    }

    pub fn get(&self) -> Option<Duration> {
        self.smoothed.map(|(mean, _)| mean).or(self.hint)
    }

    /// When to send again what was not acknowledged.
    pub fn timeout(&self) -> Duration {
        let timeout = match (self.smoothed, self.hint) {
            (Some((mean, var)), _) => mean.saturating_add(var.saturating_mul(4)),
            // The first words of a session are small, and everybody waits for them.
            (None, Some(hint)) => scaled(hint, 3, 2),
            (None, None) => MIN_RTO,
        };
        timeout.clamp(MIN_RTO, MAX_RTO)
    }
}

/// `time` times `by` over `over`, which is not zero.
pub fn scaled(time: Duration, by: u32, over: u32) -> Duration {
    time.saturating_mul(by).checked_div(over).unwrap_or(time)
}

/// A fragment to put into a datagram.
pub struct Fragment<'a> {
    pub sequence: u32,
    pub last: bool,
    pub bytes: &'a [u8],
}

/// What is acknowledged: everything before `next`, and `next + 1 + i` for each bit `i` of `map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub next: u32,
    pub map: u64,
}

/// No room: see [`MAX_QUEUED`].
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// The sending side.
#[derive(Default)]
pub struct Sender {
    /// In sequence; the front is the oldest not acknowledged.
    fragments: VecDeque<Outgoing>,
    /// Sequence of the front.
    base: u32,
    queued: usize,
    window: u32,
    backoff: u32,
    backed_off: Option<Instant>,
}

struct Outgoing {
    bytes: Vec<u8>,
    last: bool,
    acked: bool,
    /// Due again: its time ran out, or later ones arrived before it.
    lost: bool,
    sent: Option<Instant>,
    times: u32,
}

impl Outgoing {
    fn is_due(&self) -> bool {
        !self.acked && (self.sent.is_none() || self.lost)
    }
}

impl Sender {
    pub fn new() -> Self {
        Self { window: FIRST_WINDOW, ..Self::default() }
    }

    pub fn push(&mut self, message: &[u8]) -> Result<(), Full> {
        let queued = self.queued.saturating_add(message.len()).saturating_add(MESSAGE_COST);
        let sequences =
            u32::try_from(self.fragments.len()).ok().and_then(|ahead| self.base.checked_add(ahead));
        if queued > MAX_QUEUED || sequences.is_none_or(|last| last >= u32::MAX - WINDOW) {
            return Err(Full);
        }
        self.queued = queued;
        let fresh = |bytes: &[u8]| Outgoing {
            bytes: bytes.to_vec(),
            last: false,
            acked: false,
            lost: false,
            sent: None,
            times: 0,
        };
        if message.is_empty() {
            self.fragments.push_back(fresh(&[]));
        }
        self.fragments.extend(message.chunks(FRAGMENT).map(fresh));
        if let Some(end) = self.fragments.back_mut() {
            end.last = true;
        }
        Ok(())
    }

    /// The next fragment to send now, if it has at most `room` bytes; it then counts as sent.
    pub fn next(&mut self, now: Instant, room: usize) -> Option<Fragment<'_>> {
        let reach = self.window.min(WINDOW) as usize;
        let at = self.fragments.iter().take(reach).position(Outgoing::is_due)?;
        let sequence = self.base.checked_add(u32::try_from(at).ok()?)?;
        let fragment = self.fragments.get_mut(at).filter(|fragment| fragment.bytes.len() <= room)?;
        fragment.sent = Some(now);
        fragment.lost = false;
        fragment.times = fragment.times.saturating_add(1);
        Some(Fragment { sequence, last: fragment.last, bytes: &fragment.bytes })
    }

    /// Whether a fragment waits to be sent now.
    pub fn is_due(&self) -> bool {
        let reach = self.window.min(WINDOW) as usize;
        self.fragments.iter().take(reach).any(Outgoing::is_due)
    }

    /// Takes an acknowledgement; one for what was never sent changes nothing.
    pub fn handle_ack(&mut self, now: Instant, ack: Ack, rtt: &mut Rtt) {
        let sent = self.fragments.iter().take_while(|fragment| fragment.sent.is_some()).count();
        let Some(before) = ack.next.checked_sub(self.base).map(|n| n as usize).filter(|n| *n <= sent) else {
            return;
        };
        let mut newest = None;
        for (at, fragment) in self.fragments.iter_mut().enumerate().take(sent) {
            let bit = at.checked_sub(before.saturating_add(1)).and_then(|bit| u32::try_from(bit).ok());
            let acked =
                at < before || bit.and_then(|bit| ack.map.checked_shr(bit)).is_some_and(|map| map & 1 == 1);
            if acked && !fragment.acked {
                fragment.acked = true;
                self.backoff = 0;
                self.window = self.window.saturating_add(1).min(WINDOW);
                // Karn: a fragment sent twice does not tell which one arrived.
                if let Some(sent) = fragment.sent.filter(|_| fragment.times == 1) {
                    newest = Some(now.saturating_duration_since(sent));
                }
            }
        }
        if let Some(sample) = newest {
            rtt.sample(sample);
        }
        // What lies well before something that arrived is taken for lost, once per round trip.
        if let Some(highest) = self.fragments.iter().take(sent).rposition(|fragment| fragment.acked) {
            let round_trip = rtt.get().unwrap_or(MIN_RTO);
            for fragment in self.fragments.iter_mut().take(highest.saturating_sub(REORDER)) {
                let resting =
                    fragment.sent.is_some_and(|sent| now.saturating_duration_since(sent) >= round_trip);
                fragment.lost |= !fragment.acked && resting;
            }
        }
        while self.fragments.front().is_some_and(|fragment| fragment.acked) {
            if let Some(done) = self.fragments.pop_front() {
                let cost = if done.last { MESSAGE_COST } else { 0 };
                self.queued = self.queued.saturating_sub(done.bytes.len().saturating_add(cost));
                self.base = self.base.saturating_add(1);
            }
        }
    }

    /// Marks what was not acknowledged in time.
    pub fn handle_timeout(&mut self, now: Instant, rtt: &Rtt) {
        let wait = self.wait(rtt);
        let mut expired = false;
        for fragment in self.fragments.iter_mut().take_while(|fragment| fragment.sent.is_some()) {
            let late = fragment.sent.is_some_and(|sent| now.saturating_duration_since(sent) >= wait);
            if late && !fragment.acked && !fragment.lost {
                fragment.lost = true;
                expired = true;
            }
        }
        // Once per wait, however many fragments ran out: they were lost together.
        if expired && self.backed_off.is_none_or(|last| now.saturating_duration_since(last) >= wait) {
            self.backed_off = Some(now);
            self.backoff = self.backoff.saturating_add(1).min(8);
            self.window = (self.window / 2).max(FIRST_WINDOW);
        }
    }

    /// When the oldest fragment in flight is due again, or at once if one waits.
    pub fn timeout(&self, now: Instant, rtt: &Rtt) -> Option<Instant> {
        let reach = self.window.min(WINDOW) as usize;
        let wait = self.wait(rtt);
        let open = self.fragments.iter().take(reach).filter(|fragment| !fragment.acked);
        let due = open.map(|f| f.sent.filter(|_| !f.lost).map_or(Some(now), |sent| sent.checked_add(wait)));
        due.flatten().min()
    }

    fn wait(&self, rtt: &Rtt) -> Duration {
        // Half as long again each time: control traffic is thin, and under 30 % loss a doubling wastes seconds.
        (0..self.backoff).fold(rtt.timeout(), |wait, _| scaled(wait, 3, 2)).min(MAX_RTO)
    }
}

/// The receiving side.
#[derive(Default)]
pub struct Receiver {
    next: u32,
    /// Arrived before their turn: at most [`WINDOW`].
    early: BTreeMap<u32, (bool, Vec<u8>)>,
    message: Vec<u8>,
    /// The message under way is longer than [`MAX_MESSAGE`] and is skipped to its end.
    oversize: bool,
}

impl Receiver {
    /// Takes a fragment; whole messages, in order, go to `out`.
    pub fn handle(&mut self, sequence: u32, last: bool, bytes: &[u8], mut out: impl FnMut(Vec<u8>)) {
        let ahead = sequence.checked_sub(self.next);
        if ahead.is_none_or(|ahead| ahead > WINDOW) || bytes.len() > FRAGMENT {
            return;
        }
        self.early.entry(sequence).or_insert_with(|| (last, bytes.to_vec()));
        while let Some((last, bytes)) = self.early.remove(&self.next) {
            self.next = self.next.saturating_add(1);
            self.oversize |= self.message.len().saturating_add(bytes.len()) > MAX_MESSAGE;
            if !self.oversize {
                self.message.extend_from_slice(&bytes);
            }
            if last {
                let message = std::mem::take(&mut self.message);
                if !std::mem::take(&mut self.oversize) {
                    out(message);
                }
            }
        }
    }

    /// What has arrived.
    pub fn ack(&self) -> Ack {
        let bits = self.early.keys().filter_map(|sequence| {
            let bit = sequence.checked_sub(self.next)?.checked_sub(1)?;
            1u64.checked_shl(bit)
        });
        Ack { next: self.next, map: bits.fold(0, |map, bit| map | bit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng as _, SeedableRng as _};

    /// Runs both ends over a link with loss and reordering until all is acknowledged; gives what arrived and how long.
    fn transfer(messages: &[Vec<u8>], loss: f64, one_way: Duration, seed: u64) -> (Vec<Vec<u8>>, Duration) {
        let mut luck = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let start = Instant::now();
        let (mut now, mut sender, mut receiver) = (start, Sender::new(), Receiver::default());
        let (mut rtt, mut arrived, mut waiting) = (Rtt::default(), Vec::new(), messages.iter());
        let mut pending = waiting.next();
        let mut data: Vec<(Instant, u32, bool, Vec<u8>)> = Vec::new();
        let mut acks: Vec<(Instant, Ack)> = Vec::new();
        while pending.is_some() || sender.queued > 0 {
            assert!(now - start < Duration::from_secs(600), "stuck at {:?}", receiver.ack());
            while pending.is_some_and(|message| sender.push(message).is_ok()) {
                pending = waiting.next();
            }
            sender.handle_timeout(now, &rtt);
            while let Some(f) = sender.next(now, FRAGMENT) {
                let arrival = now + one_way.mul_f64(luck.random_range(1.0..1.5));
                if luck.random::<f64>() >= loss {
                    data.push((arrival, f.sequence, f.last, f.bytes.to_vec()));
                }
            }
            let due: Vec<_> = data.extract_if(.., |(at, ..)| *at <= now).collect();
            for (_, sequence, last, bytes) in due {
                receiver.handle(sequence, last, &bytes, |message| arrived.push(message));
                if luck.random::<f64>() >= loss {
                    acks.push((now + one_way, receiver.ack()));
                }
                assert!(receiver.early.len() <= WINDOW as usize);
            }
            for (_, ack) in acks.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
                sender.handle_ack(now, ack, &mut rtt);
            }
            now += Duration::from_millis(5);
        }
        (arrived, now - start)
    }

    #[test]
    fn every_message_arrives_once_and_in_order_whatever_the_loss() {
        for (loss, seed) in [(0.0, 1), (0.1, 2), (0.3, 3), (0.5, 4)] {
            let messages: Vec<Vec<u8>> = (0..200usize).map(|n| vec![n as u8; (n * 97) % 5000]).collect();
            let (arrived, _) = transfer(&messages, loss, Duration::from_millis(60), seed);
            assert!(arrived == messages, "at {loss}");
        }
    }

    #[test]
    fn the_longest_message_passes_and_a_longer_one_is_skipped_whole() {
        let mut receiver = Receiver::default();
        let mut got = Vec::new();
        let mut sequence = 0;
        for length in [MAX_MESSAGE, MAX_MESSAGE + 1, 5] {
            let message = vec![1u8; length];
            let chunks: Vec<_> = message.chunks(FRAGMENT).collect();
            for (at, chunk) in chunks.iter().enumerate() {
                receiver.handle(sequence, at + 1 == chunks.len(), chunk, |message| got.push(message.len()));
                sequence += 1;
                assert!(receiver.message.len() <= MAX_MESSAGE);
            }
        }
        assert_eq!(got, [MAX_MESSAGE, 5]);
    }

    #[test]
    fn a_full_queue_is_an_error_and_empties_again() {
        let mut sender = Sender::new();
        let accepted = (0..100_000).take_while(|_| sender.push(b"x").is_ok()).count();
        assert_eq!(accepted, MAX_QUEUED / (MESSAGE_COST + 1));
        let (now, mut rtt) = (Instant::now(), Rtt::default());
        while sender.next(now, FRAGMENT).is_some() {}
        sender.handle_ack(now, Ack { next: 10, map: 0 }, &mut rtt);
        assert!(sender.push(b"x").is_ok());
    }

    #[test]
    fn one_lost_fragment_among_many_comes_again_without_waiting_for_the_timer() {
        let (mut sender, mut rtt, start) = (Sender::new(), Rtt::default(), Instant::now());
        rtt.sample(Duration::from_millis(50));
        for n in 0..8u8 {
            sender.push(&[n]).unwrap();
        }
        while sender.next(start, FRAGMENT).is_some() {}
        let now = start + Duration::from_millis(50);
        sender.handle_ack(now, Ack { next: 2, map: 0b1111 }, &mut rtt);
        assert_eq!(sender.next(now, FRAGMENT).unwrap().sequence, 2);
        assert!(sender.next(now, FRAGMENT).is_none());
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_changes_nothing() {
        let (mut sender, mut rtt, now) = (Sender::new(), Rtt::default(), Instant::now());
        sender.push(b"a").unwrap();
        for next in [1, 5, u32::MAX] {
            sender.handle_ack(now, Ack { next, map: u64::MAX }, &mut rtt);
            assert_eq!((sender.base, sender.fragments.len()), (0, 1));
        }
        assert!(rtt.get().is_none());
    }

    proptest! {
        #[test]
        fn any_fragments_and_acknowledgements_leave_both_sides_bounded(
            steps in proptest::collection::vec((any::<u32>(), 0u32..200, any::<bool>(), any::<u64>(), 0usize..1200), 0..200),
        ) {
            let (mut sender, mut receiver, mut rtt) = (Sender::new(), Receiver::default(), Rtt::default());
            let mut now = Instant::now();
            for (far, near, last, map, length) in steps {
                let sequence = if last { near } else { far };
                receiver.handle(sequence, last, &vec![0; length], |message| assert!(message.len() <= MAX_MESSAGE));
                prop_assert!(receiver.early.len() <= WINDOW as usize);
                prop_assert!(receiver.message.len() <= MAX_MESSAGE);
                let _ = sender.push(&vec![0; length]);
                sender.handle_timeout(now, &rtt);
                while sender.next(now, FRAGMENT).is_some() {}
                sender.handle_ack(now, Ack { next: sequence, map }, &mut rtt);
                prop_assert!(sender.queued <= MAX_QUEUED);
                now += Duration::from_millis(u64::from(near));
            }
        }
    }
}
