//! What a node knows of one peer, member of the room or not yet.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hallway_codec::{PathStats, Report, Stages};
use libp2p::{Multiaddr, PeerId};

use crate::{
    bottleneck::Bottleneck,
    clock::OffsetFilter,
    events::{PathKind, PeerState, PeerStats},
    ladder::Paths,
    media::Inbox,
    path::{BEGIN_KBPS, Path, THIN_RTT, rung},
    session::Session,
    telemetry::Telemetry,
};

/// Addresses remembered of one peer.
pub const MAX_ADDRESSES: usize = 8;
/// Clock questions come quickly at first, so that the delay is known when the first word is heard.
pub const FIRST_PINGS: u32 = 20;
const FIRST_PING_EVERY: Duration = Duration::from_millis(50);
const PING_EVERY: Duration = Duration::from_millis(250);
/// Dialling again after a failure: at first after this long, then twice as long each time.
const REDIAL_AFTER: Duration = Duration::from_secs(1);
const REDIAL_AT_MOST: Duration = Duration::from_secs(30);
/// Where nothing may be dialled now, it is asked again after this time.
const ASK_BUDGET_AGAIN: Duration = Duration::from_secs(60);
/// Addresses remembered at which one peer was met. The newest stay.
pub const MAX_PROVEN: usize = 4;
/// How long a member that was lost without a goodbye is called.
pub const CALL_THE_LOST: Duration = Duration::from_secs(30 * 60);
/// Members called after they were lost. Of more the one that is lost the longest is given up.
pub const MAX_LOST: usize = 32;
/// A lost member is dialled after a hundredth of the time that it is away, within these bounds, whether or not an earlier
/// dial still waits: QUIC repeats its first packet at ever longer intervals, a fresh dial speaks at once.
const CALL_LOST_LEAST: Duration = Duration::from_millis(1500);
const CALL_LOST_MOST: Duration = Duration::from_secs(10);

/// A member speaks all the time, muted or not. Where nothing comes on its path, a fresh one is dialled beside it this
/// often: QUIC itself would be silent for as long again after the link is back.
const FRESH_EVERY: Duration = Duration::from_millis(800);
/// A dial that nobody answered for this long gets another one beside it: QUIC repeats its first packet at ever longer
/// intervals, and the hole in the other side's NAT may be open by now.
pub const DIAL_BESIDE_AFTER: Duration = Duration::from_millis(1200);
/// Where voice goes through a server, a direct path is tried again after this long at the most.
const IMPROVE_AT_MOST: Duration = Duration::from_secs(8);

/// One peer.
pub struct Peer {
    pub session: Session,
    pub paths: Paths,
    pub inbox: Inbox,
    pub clock: OffsetFilter,
    /// Of the path in use.
    pub bottleneck: Bottleneck,
    begun_thin: bool,
    /// Little fits on the way to it: its clock is asked for less often.
    pub is_thin: bool,
    pub addresses: Vec<Multiaddr>,
    /// Where it has proven to be a member, newest first: dialled without asking the budget.
    pub proven: Vec<Multiaddr>,
    /// Since when a member has been without a path or a session. `None` while all is well, and for strangers.
    pub lost_since: Option<Instant>,
    /// Somebody said that it is in our room: the rendezvous, the local network, a member.
    pub wanted: bool,
    /// When it is called on whatever paths there are, unless it has called before.
    pub call_at: Option<Instant>,
    /// A member, with this name.
    pub name: Option<String>,
    /// The last state told to the outside.
    pub told: Option<PeerState>,
    /// The name told with it.
    pub told_name: Option<String>,
    /// Since when it has been here without a session: it became known, or its first path came up.
    pub since: Instant,
    pub next_dial: Option<Instant>,
    /// The room does not take it in: its session is closed then.
    pub dismissed: Option<Instant>,
    dials_failed: u32,
    /// Addresses dialled lately, and when.
    dialled: Vec<(Multiaddr, Instant)>,
    /// Dials begun since a path was last up.
    dials: u32,
    ever_dialled: bool,
    next_ping: Instant,
    pings: u32,
    /// UDP bytes of the path at the last figures: sent, received, and of which path.
    pub counted: Option<(usize, u64, u64)>,
    next_fresh: Instant,
    pub first_audio_ms: Option<f64>,
    /// The newest figures.
    pub figures: Option<Box<PeerStats>>,
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
            bottleneck: Bottleneck::new(now, 0),
            begun_thin: false,
            is_thin: false,
            addresses: Vec::new(),
            proven: Vec::new(),
            lost_since: None,
            wanted: false,
            call_at: None,
            name: None,
            told: None,
            told_name: None,
            since: now,
            next_dial: None,
            dismissed: None,
            dials_failed: 0,
            dialled: Vec::new(),
            dials: 0,
            ever_dialled: false,
            next_ping: now,
            pings: 0,
            counted: None,
            next_fresh: now,
            first_audio_ms: None,
            figures: None,
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

    /// Remembers addresses behind those that are known, at most [`MAX_ADDRESSES`] in all.
    pub fn learn_later(&mut self, addresses: impl IntoIterator<Item = Multiaddr>) {
        for address in addresses {
            if !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
        self.addresses.truncate(MAX_ADDRESSES);
    }

    /// A dial to these begins.
    pub fn dialling(&mut self, now: Instant, addresses: &[Multiaddr]) {
        self.dialled.retain(|(addr, at)| {
            now.saturating_duration_since(*at) < DIAL_BESIDE_AFTER && !addresses.contains(addr)
        });
        self.dials = self.dials.saturating_add(1);
        self.ever_dialled = true;
        self.dialled.extend(addresses.iter().map(|addr| (addr.clone(), now)));
    }

    /// Whether a dial to this address began less than [`DIAL_BESIDE_AFTER`] ago.
    pub fn is_being_dialled(&self, now: Instant, addr: &Multiaddr) -> bool {
        self.dialled
            .iter()
            .any(|(dialled, at)| dialled == addr && now.saturating_duration_since(*at) < DIAL_BESIDE_AFTER)
    }

    /// Whether any dial began less than [`DIAL_BESIDE_AFTER`] ago.
    pub fn is_dialling(&self, now: Instant) -> bool {
        self.dialled.iter().any(|(_, at)| now.saturating_duration_since(*at) < DIAL_BESIDE_AFTER)
    }

    /// Dials again beside what waits: after [`DIAL_BESIDE_AFTER`], then ever later.
    pub fn dial_again(&mut self, now: Instant) {
        let wait = DIAL_BESIDE_AFTER.saturating_mul(1 << self.dials.saturating_sub(1).min(3));
        self.dial_at(now + wait.min(IMPROVE_AT_MOST));
    }

    /// Whether the outside should hear of this state; counts as told if so. The same state under another name is news, and
    /// so is each change of path.
    pub fn is_news(&mut self, state: PeerState) -> bool {
        let known = self.told == Some(state) && self.told_name == self.name;
        self.told = Some(state);
        self.told_name.clone_from(&self.name);
        !known || state == PeerState::PathChanged
    }

    /// Dials no later than at `at`.
    pub fn dial_at(&mut self, at: Instant) {
        self.next_dial = Some(self.next_dial.map_or(at, |planned| planned.min(at)));
    }

    /// It is a member, and this is where we talk with it.
    pub fn prove(&mut self, address: Multiaddr) {
        self.proven.retain(|known| *known != address);
        self.proven.insert(0, address);
        self.proven.truncate(MAX_PROVEN);
    }

    /// A member lost its path or its session. The first loss counts until all is well again.
    pub fn lost(&mut self, now: Instant) {
        self.lost_since.get_or_insert(now);
    }

    /// True where it is time to give a lost member up.
    pub fn is_given_up(&self, now: Instant) -> bool {
        self.lost_since.is_some_and(|since| now.saturating_duration_since(since) >= CALL_THE_LOST)
    }

    /// A dial has begun. A lost member is dialled again without waiting for its end.
    pub fn dial_begun(&mut self, now: Instant) {
        match self.lost_since {
            Some(since) => self.dial_at(now + call_lost_after(now.saturating_duration_since(since))),
            // Both sides of a NAT open a hole by dialling; the first to do so is heard by nobody.
            None => self.dial_again(now),
        }
    }

    /// A dial failed: the next one waits longer.
    pub fn dial_failed(&mut self, now: Instant) {
        if self.lost_since.is_some() {
            return self.dial_begun(now);
        }
        let most = if self.session.is_established() { IMPROVE_AT_MOST } else { REDIAL_AT_MOST };
        let wait = REDIAL_AFTER.saturating_mul(1 << self.dials_failed.min(5)).min(most);
        self.dials_failed = self.dials_failed.saturating_add(1);
        self.dial_at(now + wait);
    }

    /// Nothing may be dialled now.
    pub fn dial_denied(&mut self, now: Instant) {
        self.dial_at(now + ASK_BUDGET_AGAIN);
    }

    /// Calls it where that is due.
    pub fn call_due(&mut self, now: Instant) {
        if self.call_at.is_some_and(|at| at <= now) {
            self.call_at = None;
            self.call(now);
        }
    }

    /// Calls whoever is wanted and neither talks to us nor is about to.
    pub fn call(&mut self, now: Instant) {
        if self.wanted && !self.session.is_established() && !self.session.is_connecting() {
            self.session.connect(now);
        }
    }

    /// Sends what the session wants to say: on the path in use, and before there is a session on all of them, since
    /// nobody knows yet which one works.
    pub fn transmit(&mut self, now: Instant) {
        let route = self.paths.route();
        while let Some(datagram) = self.session.poll_transmit(now) {
            let datagram = Bytes::from(datagram);
            if !self.session.is_established() {
                self.paths.send_everywhere(&datagram);
            } else if let Err(error) = route.send(datagram) {
                tracing::debug!(peer = %self.session.peer(), %error, "control datagram not sent");
            }
        }
    }

    /// Says something on one path, whichever is in use.
    fn say_on(&mut self, now: Instant, path: &dyn Path, message: &Telemetry) {
        self.transmit(now);
        let _ = self.session.send_unreliable(now, &message.encode());
        while let Some(datagram) = self.session.poll_transmit(now) {
            let _ = path.send(datagram.into());
        }
    }

    /// Answers on the path that the question came on.
    pub fn answer(&mut self, now: Instant, via: usize, message: &Telemetry) {
        match self.paths.get(via) {
            Some(path) => self.say_on(now, path.as_ref(), message),
            None => drop(self.session.send_unreliable(now, &message.encode())),
        }
    }

    /// Asks on every path where that is due whether it works.
    pub fn ask_paths(&mut self, now: Instant) {
        while let Some((question, path)) = self.paths.poll_probe(now) {
            self.say_on(now, path.as_ref(), &Telemetry::PathPing(question));
        }
    }

    /// How the path in use stands, where its first round trip says that it is thin. Told once: what follows is measured.
    pub fn begins_thin(&mut self) -> Option<PathStats> {
        let path = self.paths.used().filter(|path| !self.begun_thin && path.leg_rtt() >= THIN_RTT)?;
        (self.begun_thin, self.is_thin) = (true, true);
        Some(PathStats { max_kbps: Some(BEGIN_KBPS), presumed: true, ..path.stats() })
    }

    /// It reports how much of our voice came: how the way through a server stands, where that turns out to be full. Of its
    /// own way QUIC knows by itself.
    pub fn narrowed(&mut self, now: Instant, report: &Report) -> Option<PathStats> {
        let path = self.paths.used().filter(|path| path.kind() == PathKind::Relayed)?;
        let kbps = self.bottleneck.heard(now, report, path.bytes().0)?;
        let stats = path.stats();
        Some(PathStats { max_kbps: Some(stats.max_kbps.map_or(kbps, |own| own.min(kbps))), ..stats })
    }

    /// Whether our voice for it goes over TCP: what is missing there waits behind other bytes and is not lost.
    pub fn uses_tcp(&self) -> bool {
        self.paths.used().is_some_and(|path| path.kind() == PathKind::Tcp)
    }

    /// The path in use has proven to lead to a member. A relay's address proves nothing.
    pub fn prove_used(&mut self) {
        if let Some(path) = self.paths.used().filter(|path| rung(path.kind()) == 0) {
            self.prove(path.remote());
        }
    }

    /// A path is up.
    pub fn connected(&mut self, now: Instant) {
        (self.dials_failed, self.dials) = (0, 0);
        self.next_dial = None;
        if self.session.is_established() {
            self.lost_since = None;
        } else if self.paths.len() <= 1 {
            self.since = now;
        }
    }

    /// A way through a server is there.
    pub fn relayed(&mut self, now: Instant) {
        if self.session.is_established() {
            self.lost_since = None;
        } else if self.paths.len() <= 1 {
            self.since = now;
        }
    }

    /// True when it is time to dial a fresh path beside a silent one; counts as dialled.
    pub fn fresh_due(&mut self, now: Instant) -> bool {
        // Also beside a way through a server, while direct ones stand there dead: they are closed after 15 s.
        let due = now >= self.next_fresh && (self.is_direct_dead(now) || self.paths.is_silent(now));
        if due {
            self.next_fresh = now + FRESH_EVERY;
        }
        due
    }

    fn is_direct_dead(&self, now: Instant) -> bool {
        self.paths.direct() > 0 && !self.paths.direct_works(now)
    }

    /// Whether a direct path was ever dialled.
    pub fn has_dialled(&self) -> bool {
        self.ever_dialled
    }

    /// When a direct path is tried next, or taken again that stands by.
    pub fn next_attempt(&self, now: Instant) -> Option<Instant> {
        let fresh = self.is_direct_dead(now).then_some(self.next_fresh);
        [self.next_dial, self.paths.barred_until(now), fresh].into_iter().flatten().min()
    }

    /// True when it is time to ask the peer for its clock; counts as asked.
    pub fn ping_due(&mut self, now: Instant) -> bool {
        if !self.session.is_established() || now < self.next_ping {
            return false;
        }
        self.pings = self.pings.saturating_add(1);
        let (first, slower) = if self.is_thin { (FIRST_PINGS / 4, 4) } else { (FIRST_PINGS, 1) };
        let every = if self.pings < first { FIRST_PING_EVERY } else { PING_EVERY };
        self.next_ping = now + every * slower;
        true
    }

    /// When something is to be done for this peer next.
    pub fn next_timeout(&self) -> Option<Instant> {
        let established = self.session.is_established();
        let ping = established.then_some(self.next_ping);
        let look = self.paths.look_due().filter(|_| established);
        let session = self.session.poll_timeout();
        [session, self.next_dial, self.call_at, self.dismissed, ping, look].into_iter().flatten().min()
    }
}

fn call_lost_after(away: Duration) -> Duration {
    (away / 100).clamp(CALL_LOST_LEAST, CALL_LOST_MOST)
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

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use super::*;
    use crate::{invite::Invite, session::Local};

    fn peer(now: Instant) -> Peer {
        let room = "kitchen".parse::<Invite>().unwrap().secrets();
        let local = Local::new(&Keypair::generate_ed25519(), &room).unwrap();
        Peer::new(Session::new(&local, Keypair::generate_ed25519().public().to_peer_id(), now), now)
    }

    /// The moments, in seconds from the loss, at which it is dialled although every dial fails.
    fn dials(peer: &mut Peer, lost: Instant, until: Duration) -> Vec<f64> {
        let mut dials = Vec::new();
        while let Some(at) = peer.next_dial.filter(|at| *at <= lost + until) {
            peer.next_dial = None;
            dials.push((at - lost).as_secs_f64());
            peer.dial_begun(at);
        }
        dials
    }

    #[test]
    fn a_lost_member_is_called_soon_enough_after_any_blackout_and_given_up_in_the_end() {
        let lost = Instant::now();
        let mut peer = peer(lost);
        peer.lost(lost);
        peer.dial_at(lost);
        let dials = dials(&mut peer, lost, CALL_THE_LOST);
        let gap_at = |second: f64| {
            let at = dials.partition_point(|dial| *dial < second);
            dials[at] - dials[at - 1]
        };
        // Targets: the voice is back 3 s after a blackout of 30 s, 5 s after one of 300 s.
        assert!(gap_at(18.0) <= 1.6, "{}", gap_at(18.0));
        assert!(gap_at(288.0) <= 3.0, "{}", gap_at(288.0));
        assert!(gap_at(1700.0) <= 10.1 && dials.len() < 600, "{} dials", dials.len());
        assert!(!peer.is_given_up(lost + CALL_THE_LOST - Duration::from_secs(1)));
        assert!(peer.is_given_up(lost + CALL_THE_LOST));
    }

    #[test]
    fn somebody_who_never_answered_is_called_less_and_less() {
        let mut now = Instant::now();
        let mut peer = peer(now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            peer.next_dial = None;
            peer.dial_failed(now);
            let next = peer.next_dial.unwrap();
            waits.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert!(!peer.is_given_up(now + CALL_THE_LOST), "only members are given up by time");
    }

    #[test]
    fn beside_a_silent_path_a_fresh_one_is_dialled_until_something_comes() {
        let start = Instant::now();
        let after = |ms: u64| start + Duration::from_millis(ms);
        let mut peer = peer(start);
        assert!(!peer.fresh_due(start), "no path is no silent path");
        let wire = crate::ladder::tests::wire(1, crate::events::PathKind::Direct, 0);
        peer.paths.add(start, wire.clone());
        peer.paths.choose(start, |_| true);
        let due = |peer: &mut Peer, from: u64, to: u64| {
            let look = |ms: &u64| {
                peer.paths.look(after(*ms));
                peer.fresh_due(after(*ms))
            };
            (from..to).step_by(100).filter(look).collect::<Vec<_>>()
        };
        assert_eq!(due(&mut peer, 0, 3000), [1200, 2000, 2800]);
        wire.received.store(8, std::sync::atomic::Ordering::Relaxed);
        assert!(due(&mut peer, 3000, 4800).iter().all(|ms| *ms >= 4200), "heard again");
    }

    #[test]
    fn a_state_is_told_once_and_again_under_another_name() {
        let mut peer = peer(Instant::now());
        assert!(peer.is_news(PeerState::Connecting) && !peer.is_news(PeerState::Connecting));
        peer.name = Some("ana".into());
        assert!(peer.is_news(PeerState::Connected) && !peer.is_news(PeerState::Connected));
        peer.name = Some("anna".into());
        assert!(peer.is_news(PeerState::Connected) && !peer.is_news(PeerState::Connected));
        assert!(peer.is_news(PeerState::PathChanged) && peer.is_news(PeerState::PathChanged));
    }

    #[test]
    fn the_newest_four_places_where_a_member_was_met_are_remembered() {
        let mut peer = peer(Instant::now());
        let place = |port: u16| format!("/ip4/8.8.8.8/udp/{port}/quic-v1").parse::<Multiaddr>().unwrap();
        [1, 2, 3, 4, 5, 3].into_iter().for_each(|port| peer.prove(place(port)));
        assert_eq!(peer.proven, [3, 5, 4, 2].map(place));
    }
}
