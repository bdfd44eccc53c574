//! What runs inside an established session: messages (reliable, ordered), datagrams (unreliable), pings, a goodbye.
//!
//! A plaintext is a row of frames, big-endian; the rest of it is ignored from the first unknown type on, so that later
//! versions can append:
//!
//! ```text
//! 1 ping    token u32
//! 2 pong    token u32
//! 3 datagram    length u16, bytes
//! 4 fragment    sequence u32, flags u8 (1 = last of its message), length u16, bytes
//! 5 ack     next u32, map u64          everything before `next`, and next + 1 + i for each bit i
//! 6 goodbye
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::arq::{self, Ack, Rtt};
use super::cipher::{self, ChainKey, Opening, Sealing};
use super::proof::Proofs;
use super::{MAX_DATAGRAM, SendError};

/// Longest unreliable message, in bytes.
pub const MAX_UNRELIABLE: usize = 1000;
/// Unreliable messages waiting for the next datagram; the oldest goes first.
pub const MAX_UNRELIABLE_QUEUE: usize = 32;
/// Silence on our side after which a ping goes out.
pub const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Silence of the peer after which pings come every [`URGENT_PING`].
pub const URGENT_AFTER: Duration = Duration::from_secs(4);
/// Interval of pings while the peer is silent: 26 before it counts as lost, so that 30 % loss each way takes a living
/// peer for lost once in some 10^8 pings, and a killed one is noticed within 15 s.
pub const URGENT_PING: Duration = Duration::from_millis(300);
/// Silence of the peer after which the session is lost.
pub const LOST_AFTER: Duration = Duration::from_secs(12);
const MAX_PLAIN: usize = MAX_DATAGRAM - cipher::HEADER - cipher::TAG;
const FRAGMENT_HEADER: usize = 8;
const DATAGRAM_HEADER: usize = 3;

/// What a handshake leaves behind: one chain key per direction and the name of the session.
pub struct Keys {
    pub id: u32,
    pub send: ChainKey,
    pub receive: ChainKey,
}

/// What the peer said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Message(Vec<u8>),
    Unreliable(Vec<u8>),
    Goodbye,
}

/// One established session's traffic. After any `handle_*`, `send_*`: `poll_transmit` until `None`.
pub struct Channel {
    id: u32,
    sealing: Sealing,
    opening: Opening,
    proofs: Proofs,
    sender: arq::Sender,
    receiver: arq::Receiver,
    rtt: Rtt,
    unreliable: VecDeque<Vec<u8>>,
    ack_due: bool,
    ping_due: bool,
    pong_due: Option<u32>,
    ping: Option<(u32, Instant)>,
    pings: u32,
    goodbyes: u8,
    last_sent: Instant,
    last_heard: Instant,
}

impl Channel {
    pub fn new(keys: &Keys, rtt: Rtt, now: Instant) -> Self {
        Self {
            id: keys.id,
            sealing: Sealing::new(keys.id, &keys.send, now),
            opening: Opening::new(keys.id, &keys.receive),
            proofs: Proofs::new(&keys.send, &keys.receive),
            sender: arq::Sender::new(),
            receiver: arq::Receiver::default(),
            rtt,
            unreliable: VecDeque::new(),
            ack_due: false,
            ping_due: false,
            pong_due: None,
            ping: None,
            pings: 0,
            goodbyes: 0,
            last_sent: now,
            last_heard: now,
        }
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    pub fn proofs(&self) -> &Proofs {
        &self.proofs
    }

    pub fn rtt(&self) -> Option<Duration> {
        self.rtt.get()
    }

    pub fn hint_rtt(&mut self, rtt: Duration) {
        self.rtt.hint(rtt);
    }

    /// Takes a datagram; `None` where it is not authentic or not new, and then nothing has changed.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) -> Option<Vec<Said>> {
        let plain = self.opening.open(now, datagram)?;
        self.last_heard = now;
        let mut said = Vec::new();
        let mut reader = Reader(&plain);
        while self.handle_frame(now, &mut reader, &mut said).is_some() {}
        Some(said)
    }

    /// Reads one frame; `None` at the end, or where the rest cannot be understood.
    fn handle_frame(&mut self, now: Instant, reader: &mut Reader<'_>, said: &mut Vec<Said>) -> Option<()> {
        match reader.u8()? {
            1 => self.pong_due = Some(reader.u32()?),
            2 => {
                let token = reader.u32()?;
                if let Some((_, sent)) = self.ping.take_if(|(expected, _)| *expected == token) {
                    self.rtt.sample(now.saturating_duration_since(sent));
                }
            }
            3 => {
                let length = reader.u16()?;
                said.push(Said::Unreliable(reader.bytes(length)?.to_vec()));
            }
            4 => {
                let (sequence, flags, length) = (reader.u32()?, reader.u8()?, reader.u16()?);
                let bytes = reader.bytes(length)?;
                self.receiver
                    .handle(sequence, flags & 1 == 1, bytes, |message| said.push(Said::Message(message)));
                self.ack_due = true;
            }
            5 => {
                let ack = Ack { next: reader.u32()?, map: reader.u64()? };
                self.sender.handle_ack(now, ack, &mut self.rtt);
            }
            6 => said.push(Said::Goodbye),
            _ => return None,
        }
        Some(())
    }

    pub fn send_message(&mut self, message: &[u8]) -> Result<(), SendError> {
        if message.len() > arq::MAX_MESSAGE {
            return Err(SendError::TooLong { length: message.len(), most: arq::MAX_MESSAGE });
        }
        self.sender.push(message).map_err(|arq::Full| SendError::QueueFull)
    }

    pub fn send_unreliable(&mut self, message: &[u8]) -> Result<(), SendError> {
        if message.len() > MAX_UNRELIABLE {
            return Err(SendError::TooLong { length: message.len(), most: MAX_UNRELIABLE });
        }
        if self.unreliable.len() >= MAX_UNRELIABLE_QUEUE {
            self.unreliable.pop_front();
        }
        self.unreliable.push_back(message.to_vec());
        Ok(())
    }

    /// Says something at the next chance, which also shows the peer that we have the keys.
    pub fn speak_up(&mut self) {
        self.ping_due = true;
    }

    /// Two datagrams that say goodbye, the first with what else still waits. The peer takes one.
    pub fn goodbye(mut self, now: Instant) -> Vec<Vec<u8>> {
        self.goodbyes = 2;
        let mut datagrams = Vec::new();
        while let Some(datagram) = self.poll_transmit(now).filter(|_| datagrams.len() < 16) {
            datagrams.push(datagram);
        }
        datagrams
    }

    /// Whether the peer has been silent for [`LOST_AFTER`].
    pub fn is_lost(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_heard) >= LOST_AFTER
    }

    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.sender.handle_timeout(now, &self.rtt);
        self.ping_due |= self.ping_at().is_none_or(|at| at <= now);
        let mut plain = Vec::with_capacity(MAX_PLAIN);
        if std::mem::take(&mut self.ack_due) {
            let ack = self.receiver.ack();
            plain.push(5);
            plain.extend_from_slice(&ack.next.to_be_bytes());
            plain.extend_from_slice(&ack.map.to_be_bytes());
        }
        if let Some(token) = self.pong_due.take() {
            plain.push(2);
            plain.extend_from_slice(&token.to_be_bytes());
        }
        if std::mem::take(&mut self.ping_due) {
            self.pings = self.pings.wrapping_add(1);
            self.ping = Some((self.pings, now));
            plain.push(1);
            plain.extend_from_slice(&self.pings.to_be_bytes());
        }
        let fits = |plain: &Vec<u8>, message: &Vec<u8>| {
            plain.len().saturating_add(message.len()).saturating_add(DATAGRAM_HEADER) <= MAX_PLAIN
        };
        while self.unreliable.front().is_some_and(|message| fits(&plain, message)) {
            let Some(message) = self.unreliable.pop_front() else { break };
            plain.push(3);
            plain.extend_from_slice(&u16::try_from(message.len()).unwrap_or_default().to_be_bytes());
            plain.extend_from_slice(&message);
        }
        loop {
            let room = MAX_PLAIN.saturating_sub(plain.len()).saturating_sub(FRAGMENT_HEADER);
            let Some(fragment) = self.sender.next(now, room) else { break };
            plain.push(4);
            plain.extend_from_slice(&fragment.sequence.to_be_bytes());
            plain.push(u8::from(fragment.last));
            plain.extend_from_slice(&u16::try_from(fragment.bytes.len()).unwrap_or_default().to_be_bytes());
            plain.extend_from_slice(fragment.bytes);
        }
        if self.goodbyes > 0 && !self.sender.is_due() && plain.len() < MAX_PLAIN {
            self.goodbyes = self.goodbyes.saturating_sub(1);
            plain.push(6);
        }
        if plain.is_empty() {
            return None;
        }
        self.last_sent = now;
        self.sealing.seal(now, &plain)
    }

    fn ping_at(&self) -> Option<Instant> {
        let usual = self.last_sent.checked_add(KEEP_ALIVE)?;
        let urgent = self.last_heard.checked_add(URGENT_AFTER)?.max(self.last_sent.checked_add(URGENT_PING)?);
        Some(usual.min(urgent))
    }

    /// When the next ping, retransmission or loss is due, if nothing else happens.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let at_once = self.ack_due || self.ping_due || self.pong_due.is_some() || !self.unreliable.is_empty();
        let ping = self.ping_at();
        let lost = self.last_heard.checked_add(LOST_AFTER);
        let now_if = at_once.then_some(now);
        [now_if, ping, lost, self.sender.timeout(now, &self.rtt)].into_iter().flatten().min()
    }
}

/// Reads numbers and bytes from the front; `None` where they are missing.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn bytes(&mut self, length: u16) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Some(head)
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
