//! What a node knows of one peer, member of the room or not yet.

use std::time::{Duration, Instant};

use hallway_codec::Stages;
use libp2p::{Multiaddr, PeerId};

use crate::{
    clock::OffsetFilter,
    events::PeerState,
    media::Inbox,
    path::Paths,
    session::Session,
};

/// Addresses remembered of one peer.
pub const MAX_ADDRESSES: usize = 8;
/// Clock questions come quickly at first, so that the delay is known when the first word is heard.
pub const FIRST_PINGS: u32 = 20;
const FIRST_PING_EVERY: Duration = Duration::from_millis(50);
const PING_EVERY: Duration = Duration::from_millis(400);
/// Dialling again after a failure: at first after this long, then twice as long each time.
const REDIAL_AFTER: Duration = Duration::from_secs(1);
const REDIAL_AT_MOST: Duration = Duration::from_secs(30);
/// One who fell silent is called again for this long: a laptop slept, a network was away.
pub const CALL_AGAIN_FOR: Duration = Duration::from_secs(600);

/// One peer.
pub struct Peer {
    pub session: Session,
    pub paths: Paths,
    pub inbox: Inbox,
    pub clock: OffsetFilter,
    pub addresses: Vec<Multiaddr>,
    /// Where it last proved its PeerId: no third party's address, whatever anybody says.
    pub proven: Option<Multiaddr>,
    /// It was a member until it fell silent.
    pub lost_since: Option<Instant>,
    /// Somebody said that it is in our room: the rendezvous, the local network, a member.
    pub wanted: bool,
    /// A member, with this name.
    pub name: Option<String>,
    /// The last state told to the outside.
    pub told: Option<PeerState>,
    pub since: Instant,
    pub next_dial: Option<Instant>,
    dials_failed: u32,
    next_ping: Instant,
    pings: u32,
    /// UDP bytes of the path at the last figures: sent, received, and of which path.
    pub counted: Option<(usize, u64, u64)>,
    pub first_audio_ms: Option<f64>,
    pub stages: MeanStages,
    pub spare_since: Option<Instant>,
}

impl Peer {
    pub fn new(session: Session, now: Instant) -> Self {
        Self {
            session,
            paths: Paths::default(),
            inbox: Inbox::default(),
            clock: OffsetFilter::new(),
            addresses: Vec::new(),
            proven: None,
            lost_since: None,
            wanted: false,
            name: None,
            told: None,
            since: now,
            next_dial: None,
            dials_failed: 0,
            next_ping: now,
            pings: 0,
            counted: None,
            first_audio_ms: None,
            stages: MeanStages::default(),
            spare_since: None,
        }
    }

    /// Remembers addresses, newest knowledge first, at most [`MAX_ADDRESSES`].
    pub fn learn(&mut self, addresses: impl IntoIterator<Item = Multiaddr>) {
        for address in addresses {
            self.addresses.retain(|known| *known != address);
            self.addresses.insert(0, address);
        }
        self.addresses.truncate(MAX_ADDRESSES);
    }

    /// Dials no later than at `at`.
    pub fn dial_at(&mut self, at: Instant) {
        self.next_dial = Some(self.next_dial.map_or(at, |planned| planned.min(at)));
    }

    /// A dial failed: the next one waits longer.
    pub fn dial_failed(&mut self, now: Instant) {
        let wait = REDIAL_AFTER.saturating_mul(1 << self.dials_failed.min(5)).min(REDIAL_AT_MOST);
        self.dials_failed = self.dials_failed.saturating_add(1);
        self.dial_at(now + wait);
    }

    /// A path is up.
    pub fn connected(&mut self) {
        self.dials_failed = 0;
        self.next_dial = None;
    }

    /// True when it is time to ask the peer for its clock; counts as asked.
    pub fn ping_due(&mut self, now: Instant) -> bool {
        if !self.session.is_established() || now < self.next_ping {
            return false;
        }
        self.pings = self.pings.saturating_add(1);
        self.next_ping = now + if self.pings < FIRST_PINGS { FIRST_PING_EVERY } else { PING_EVERY };
        true
    }

    /// When something is to be done for this peer next.
    pub fn next_timeout(&self) -> Option<Instant> {
        let ping = self.session.is_established().then_some(self.next_ping);
        [self.session.poll_timeout(), self.next_dial, ping].into_iter().flatten().min()
    }
}

/// The mean of each stage over a call, from the means of its seconds.
#[derive(Default)]
pub struct MeanStages {
    sum: Stages,
    seconds: u32,
}

impl MeanStages {
    /// Takes in one second.
    pub fn add(&mut self, second: &Stages) {
        self.seconds = self.seconds.saturating_add(1);
        each(&mut self.sum, second, |sum, value| sum + value);
    }

    /// `None` before the first second.
    pub fn mean(&self) -> Option<Stages> {
        let mut mean = self.sum;
        each(&mut mean, &self.sum, |_, sum| sum / self.seconds as f32);
        (self.seconds > 0).then_some(mean)
    }
}

fn each(into: &mut Stages, from: &Stages, f: impl Fn(f32, f32) -> f32) {
    into.capture = f(into.capture, from.capture);
    into.encode = f(into.encode, from.encode);
    into.send = f(into.send, from.send);
    into.network = f(into.network, from.network);
    into.jitter_buffer = f(into.jitter_buffer, from.jitter_buffer);
    into.decode = f(into.decode, from.decode);
    into.playback = f(into.playback, from.playback);
}

/// Which side dials first when both learn of each other at once; the other waits a little and then dials too.
pub fn dials_first(me: &PeerId, other: &PeerId) -> bool {
    me.to_bytes() < other.to_bytes()
}
