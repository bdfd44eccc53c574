//! A [`Link`] with the packets inside it: bytes go in at one instant and come out at another.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use serde::Serialize;

use super::link::{Fate, Link, LinkConfig, Loss};

/// Packets on their way at once; one more is lost as if a queue were full. At 400 packets a second it takes 20 s of
/// delay to get there.
pub const MAX_IN_FLIGHT: usize = 8192;

/// What went through one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PipeCounts {
    /// Packets put in.
    pub sent: u64,
    /// Bytes of those, headers included.
    pub sent_bytes: u64,
    /// Packets that came out, copies included.
    pub delivered: u64,
    /// Bytes of those, headers included.
    pub delivered_bytes: u64,
    /// Lost independently.
    pub lost_random: u64,
    /// Lost in outages of the Gilbert-Elliott channel.
    pub lost_burst: u64,
    /// Lost at a full queue.
    pub lost_queue: u64,
    /// Lost while the link was dead.
    pub lost_blackout: u64,
    /// Lost because a test asked for it.
    pub lost_scripted: u64,
    /// Delivered a second time.
    pub duplicated: u64,
    /// Delivered with a bit turned.
    pub flipped: u64,
    /// Most packets on their way at once.
    pub most_in_flight: u64,
}

impl PipeCounts {
    /// Packets lost, for whatever reason.
    pub fn lost(&self) -> u64 {
        self.lost_random + self.lost_burst + self.lost_queue + self.lost_blackout + self.lost_scripted
    }

    /// Share of packets lost, percent; none sent, none lost.
    pub fn loss_pct(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { 100.0 * self.lost() as f64 / self.sent as f64 }
    }
}

/// One direction with its packets. After any `handle_packet`, ask `poll_packet` when `poll_timeout` says.
#[derive(Debug)]
pub struct Pipe {
    link: Link,
    overhead: usize,
    queue: BinaryHeap<Reverse<InFlight>>,
    order: u64,
    counts: PipeCounts,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    at: Duration,
    order: u64,
    bytes: Vec<u8>,
}

impl Pipe {
    /// A direction whose packets carry no headers beyond the bytes given.
    pub fn new(link: Link) -> Pipe {
        Self::with_overhead(link, 0)
    }

    /// A direction that counts `overhead` bytes of headers (28 for UDP over IPv4, 48 over IPv6) with every packet:
    /// rate, queue and byte counts are those of IP packets.
    pub fn with_overhead(link: Link, overhead: usize) -> Pipe {
        Pipe { link, overhead, queue: BinaryHeap::new(), order: 0, counts: PipeCounts::default() }
    }

    /// Puts a packet in; says why if it is lost.
    pub fn handle_packet(&mut self, now: Duration, bytes: &[u8]) -> Option<Loss> {
        let len = bytes.len() + self.overhead;
        self.counts.sent += 1;
        self.counts.sent_bytes += len as u64;
        let fate = match self.link.send(now, len) {
            Fate::Deliver { .. } if self.queue.len() >= MAX_IN_FLIGHT => Fate::Lost(Loss::QueueFull),
            fate => fate,
        };
        match fate {
            Fate::Deliver { at, flip, copy_at } => {
                let mut bytes = bytes.to_vec();
                // A bit of the headers would be caught by a checksum on the way: only payload arrives damaged.
                if let Some(bit) = flip
                    && let Some(byte) = bytes.get_mut(bit / 8)
                {
                    *byte ^= 1 << (bit % 8);
                    self.counts.flipped += 1;
                }
                if let Some(copy_at) = copy_at {
                    self.counts.duplicated += 1;
                    self.push(copy_at, bytes.clone());
                }
                self.push(at, bytes);
                self.counts.most_in_flight = self.counts.most_in_flight.max(self.queue.len() as u64);
                None
            }
            Fate::Lost(loss) => {
                *match loss {
                    Loss::Random => &mut self.counts.lost_random,
                    Loss::Burst => &mut self.counts.lost_burst,
                    Loss::QueueFull => &mut self.counts.lost_queue,
                    Loss::Blackout => &mut self.counts.lost_blackout,
                    Loss::Scripted => &mut self.counts.lost_scripted,
                } += 1;
                Some(loss)
            }
        }
    }

    /// The next packet due at `now` or before, with the instant it was due.
    pub fn poll_packet(&mut self, now: Duration) -> Option<(Duration, Vec<u8>)> {
        if self.poll_timeout()? > now {
            return None;
        }
        let Reverse(packet) = self.queue.pop()?;
        self.counts.delivered += 1;
        self.counts.delivered_bytes += (packet.bytes.len() + self.overhead) as u64;
        Some((packet.at, packet.bytes))
    }

    /// When the next packet comes out.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.queue.peek().map(|Reverse(packet)| packet.at)
    }

    /// Lets nothing in before `until`; what is on its way still arrives.
    pub fn black_out(&mut self, until: Duration) {
        self.link.black_out(until);
    }

    /// Becomes another link at `now`; what is on its way still arrives as decided.
    pub fn change(&mut self, now: Duration, config: LinkConfig) {
        self.link.change(now, config);
    }

    /// What went through so far.
    pub fn counts(&self) -> PipeCounts {
        self.counts
    }

    fn push(&mut self, at: Duration, bytes: Vec<u8>) {
        self.queue.push(Reverse(InFlight { at, order: self.order, bytes }));
        self.order += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn bytes_come_out_after_the_delay_and_in_order() {
        let mut pipe = Pipe::new(Link::new(LinkConfig::delayed(40.0), 1));
        for i in 0..5u8 {
            assert_eq!(pipe.handle_packet(MS * u32::from(i), &[i]), None);
        }
        assert_eq!(pipe.poll_timeout(), Some(40 * MS));
        assert_eq!(pipe.poll_packet(39 * MS), None);
        let out: Vec<_> = std::iter::from_fn(|| pipe.poll_packet(43 * MS)).collect();
        assert_eq!(out, (0..4u8).map(|i| ((40 + u32::from(i)) * MS, vec![i])).collect::<Vec<_>>());
        assert_eq!((pipe.counts().sent, pipe.counts().delivered), (5, 4));
    }

    #[test]
    fn a_pipe_holds_no_more_than_its_bound() {
        let mut pipe = Pipe::new(Link::new(LinkConfig::delayed(1e9), 1));
        for _ in 0..MAX_IN_FLIGHT {
            assert_eq!(pipe.handle_packet(MS, b"x"), None);
        }
        assert_eq!(pipe.handle_packet(MS, b"x"), Some(Loss::QueueFull));
        assert_eq!(pipe.counts().most_in_flight, MAX_IN_FLIGHT as u64);
    }

    #[test]
    fn copies_and_turned_bits_are_counted_and_seen() {
        let config = LinkConfig { duplicate: 1.0, flip: 1.0, ..LinkConfig::delayed(5.0) };
        let mut pipe = Pipe::new(Link::new(config, 3));
        for _ in 0..100 {
            pipe.handle_packet(MS, &[0; 50]);
        }
        let out: Vec<_> = std::iter::from_fn(|| pipe.poll_packet(100 * MS)).collect();
        assert_eq!(out.len(), 200);
        assert!(out.iter().all(|(_, b)| b.iter().map(|x| x.count_ones()).sum::<u32>() == 1));
        assert_eq!((pipe.counts().flipped, pipe.counts().duplicated), (100, 100));
    }
}
