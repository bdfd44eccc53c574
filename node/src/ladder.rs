//! The ladder: all paths to one peer, and which of them its datagrams take. Pure: it is told the time.
//!
//! Everything is tried at once; the first path that works carries the voice, the lowest rung ([`rung`]) is kept. After
//! [`Paths::add`] and whenever [`Paths::look_due`] says so: [`Paths::look`], then [`Paths::choose`]. A path works once
//! something came on it end to end: for a QUIC connection its handshake did, another one has to answer a question
//! ([`Paths::poll_probe`], [`Paths::handle_answer`]). Receivers take the first of two equal datagrams, so for
//! [`OVERLAP`] after a change both paths are sent on, and nothing is lost if the new one fails.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    events::PathKind,
    forward::Uplink,
    path::{CloseReason, Path, Route, rung},
};

/// A better path of the same rung must be better by this much, or the call would flap between two equal ones.
pub const SWITCH_MARGIN: Duration = Duration::from_millis(5);
/// Paths to one peer at a time. More than that is an attack or a bug: the newest is refused.
pub const MAX_PATHS: usize = 8;
/// How often it is looked whether something came.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A path on which something came at nearly every look is silent after this time: a voice never pauses for so long.
pub const BUSY_SILENT: Duration = Duration::from_millis(300);
/// Any other path in use is silent after this time: questions are answered on it four times a second.
pub const SILENT_AFTER: Duration = Duration::from_millis(1200);
/// A path that only stands by is asked once a second, and not relied on after this time without an answer.
pub const SPARE_SILENT: Duration = Duration::from_millis(3500);
/// How long both paths are sent on when one takes over.
pub const OVERLAP: Duration = Duration::from_millis(1000);
/// A path that fell silent in use is not used again for this long, twice as long each time, up to the most.
const BARRED_FOR: Duration = Duration::from_secs(2);
const BARRED_MOST: Duration = Duration::from_secs(8);
/// One that lost our voice is not used again for this long, four times as long each time, up to the most: it costs seconds of
/// speech to find out again.
const LOSING_BARRED_FOR: Duration = Duration::from_secs(8);
const LOSING_BARRED_MOST: Duration = Duration::from_secs(600);
/// Questions on a path that never answered come this often at first, then every [`PROBE_EVERY`].
const FIRST_PROBES_EVERY: Duration = Duration::from_millis(200);
const FIRST_PROBES: u32 = 10;
/// Questions of one path whose answers are waited for: those of the first two seconds.
const MAX_ASKED: usize = 10;
/// How often a path is asked.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// A path on which the peer got less than this share of our voice is left, where another one works: whoever passes it on
/// may answer every question and drop what matters.
pub const LEAST_HEARD: f32 = 0.5;
/// What the peer heard is judged over this time, which begins so long after a path was taken: reports tell of the past.
pub const HEARD_OVER: Duration = Duration::from_secs(2);
const HEARD_FROM: Duration = Duration::from_millis(1500);

/// Why another path is used than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There was none.
    First,
    /// A better rung works now.
    Better,
    /// Another one of the same rung is quicker.
    Quicker,
    /// Nothing came any more on the one before.
    Silent,
    /// Most of our voice got lost on the one before.
    Losing,
    /// The one before was closed.
    Closed,
    /// The server of the one before shuts down.
    Leaving,
    /// None is left.
    Gone,
}

impl Why {
    /// For people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::First => "the first that works",
            Self::Better => "a better one works now",
            Self::Quicker => "this one is quicker",
            Self::Silent => "the one before fell silent",
            Self::Losing => "most of the voice got lost on the one before",
            Self::Closed => "the one before was closed",
            Self::Leaving => "the server of the one before shuts down",
            Self::Gone => "none is left",
        }
    }
}

/// One path and what is known of it.
struct Rung {
    path: Arc<dyn Path>,
    /// Something came on it end to end.
    proven: bool,
    received: u64,
    heard: Instant,
    /// Whether something came, look by look, the newest in the lowest bit; as it was when something last came.
    looks: u16,
    busy: bool,
    falls: u32,
    losses: u32,
    barred_until: Option<Instant>,
    /// Questions without an answer yet, oldest first, at most [`MAX_ASKED`].
    asked: VecDeque<(u32, Instant)>,
    questions: u32,
    next_question: Instant,
}

impl Rung {
    fn is_silent(&self, now: Instant, used: bool, moved: bool) -> bool {
        let patience = match (used, self.busy && !moved) {
            (true, true) => BUSY_SILENT,
            (true, false) => SILENT_AFTER,
            (false, _) => SPARE_SILENT,
        };
        now.saturating_duration_since(self.heard) >= patience
    }

    fn works(&self, now: Instant, used: bool, moved: bool) -> bool {
        self.proven
            && self.path.is_open()
            && !self.is_silent(now, used, moved)
            && (used || self.barred_until.is_none_or(|until| until <= now))
    }

    fn heard(&mut self, now: Instant) {
        (self.heard, self.proven) = (now, true);
    }
}

/// What the peer heard of our voice on the path in use.
#[derive(Default)]
struct HeardOfUs {
    /// Since when it is counted; `None` while nobody expects to be heard.
    since: Option<Instant>,
    packets: u32,
    lost: u32,
    too_little: bool,
}

impl HeardOfUs {
    fn begin(&mut self, at: Instant) {
        *self = Self { since: Some(at), ..Self::default() };
    }

    fn judge(&mut self, now: Instant) {
        let Some(since) = self.since.filter(|since| now.saturating_duration_since(*since) >= HEARD_OVER)
        else {
            return;
        };
        let sent = self.packets.saturating_add(self.lost);
        let too_little = sent == 0 || (self.packets as f32) < sent as f32 * LEAST_HEARD;
        tracing::trace!(heard = self.packets, lost = self.lost, over = ?(now - since), "of our voice");
        self.begin(now);
        self.too_little = too_little;
    }
}

/// All paths to one peer. One is in use; the others stand by.
#[derive(Default)]
pub struct Paths {
    open: Vec<Rung>,
    route: Route,
    used: Option<usize>,
    overlap_until: Option<Instant>,
    next_look: Option<Instant>,
    next_question: u32,
    heard_of_us: HeardOfUs,
}

impl Paths {
    /// What the media thread holds on to.
    pub fn route(&self) -> Route {
        self.route.clone()
    }

    /// The path in use.
    pub fn used(&self) -> Option<Arc<dyn Path>> {
        self.route.path()
    }

    /// Whether another path fits in.
    pub fn has_room(&mut self) -> bool {
        self.drop_closed();
        self.open.len() < MAX_PATHS
    }

    /// Takes a new path in. False where there are [`MAX_PATHS`] already. A direct one takes the place of a relay that is
    /// not used: servers must not be able to keep direct paths out.
    pub fn add(&mut self, now: Instant, path: Arc<dyn Path>) -> bool {
        if !self.has_room() {
            let used = self.used;
            let spare = |entry: &Rung| rung(entry.path.kind()) > 0 && Some(entry.path.id()) != used;
            let at = self.open.iter().position(spare).filter(|_| rung(path.kind()) == 0);
            let Some(at) = at else { return false };
            self.open.remove(at).path.close(CloseReason::Silent);
        }
        self.open.push(Rung {
            proven: rung(path.kind()) == 0,
            received: path.bytes().1,
            heard: now,
            looks: 0,
            busy: false,
            falls: 0,
            losses: 0,
            barred_until: None,
            asked: VecDeque::new(),
            questions: 0,
            next_question: now,
            path,
        });
        self.next_look = Some(now);
        true
    }

    /// When [`Paths::look`] is due. `None` without paths.
    pub fn look_due(&self) -> Option<Instant> {
        self.next_look.filter(|_| !self.open.is_empty())
    }

    /// Sees on which paths something came. True where it was time to.
    pub fn look(&mut self, now: Instant) -> bool {
        if self.next_look.is_none_or(|due| now < due) {
            return false;
        }
        self.next_look = Some(now + LOOK_EVERY);
        for rung in &mut self.open {
            let (_, received) = rung.path.bytes();
            let came = received != rung.received;
            rung.received = received;
            rung.looks = rung.looks << 1 | u16::from(came);
            if came {
                rung.heard = now;
                rung.busy = (rung.looks & 0xff).count_ones() >= 6;
            }
        }
        if self.overlap_until.is_some_and(|until| until <= now) {
            self.overlap_until = None;
            let used = self.used();
            self.route.set(used, None);
        }
        true
    }

    /// A datagram of the peer came on this path: it works.
    pub fn handle_arrival(&mut self, now: Instant, id: usize) {
        if let Some(rung) = self.open.iter_mut().find(|rung| rung.path.id() == id) {
            rung.heard(now);
        }
    }

    /// A question to be sent on a path, if one is due: its number, and the path. The peer answers on the same path.
    pub fn poll_probe(&mut self, now: Instant) -> Option<(u32, Arc<dyn Path>)> {
        self.drop_closed();
        let rung = self.open.iter_mut().find(|rung| rung.next_question <= now)?;
        rung.questions = rung.questions.saturating_add(1);
        let quick = !rung.proven && rung.questions < FIRST_PROBES;
        rung.next_question = now + if quick { FIRST_PROBES_EVERY } else { PROBE_EVERY };
        self.next_question = self.next_question.wrapping_add(1);
        if rung.asked.len() >= MAX_ASKED {
            rung.asked.pop_front();
        }
        rung.asked.push_back((self.next_question, now));
        Some((self.next_question, rung.path.clone()))
    }

    /// The answer to a question came on this path.
    pub fn handle_answer(&mut self, now: Instant, id: usize, question: u32) {
        let Some(rung) = self.open.iter_mut().find(|rung| rung.path.id() == id) else { return };
        // It came end to end, however late: where the round trip is long, newer questions are under way already.
        rung.heard(now);
        if let Some(at) = rung.asked.iter().position(|(asked, _)| *asked == question) {
            let (_, at) = rung.asked[at];
            rung.asked.retain(|(_, asked_at)| *asked_at > at);
            rung.path.measured(now.saturating_duration_since(at));
        }
    }

    /// The peer is a member from now on, and should hear us.
    pub fn expect_to_be_heard(&mut self, now: Instant) {
        self.heard_of_us.begin(now + HEARD_FROM);
    }

    /// The peer tells how many packets of our voice came, and how many did not, since it last told.
    pub fn handle_heard(&mut self, now: Instant, packets: u32, lost: u32) {
        if self.heard_of_us.since.is_some_and(|since| since <= now) {
            self.heard_of_us.packets = self.heard_of_us.packets.saturating_add(packets);
            self.heard_of_us.lost = self.heard_of_us.lost.saturating_add(lost);
        }
    }

    /// Forgets closed paths and puts the best of the rest in use. Tells why where that is another one than before.
    ///
    /// `prefer` breaks ties the same way on both sides, so that both keep the same one of two equal connections.
    pub fn choose(&mut self, now: Instant, prefer: impl Fn(&dyn Path) -> bool) -> Option<Why> {
        self.drop_closed();
        let before = self.used;
        let current = before.and_then(|id| self.open.iter().position(|rung| rung.path.id() == id));
        let moved = self.voice_moved();
        self.heard_of_us.judge(now);
        let speaks = current.is_some_and(|at| self.open[at].works(now, true, moved));
        let current_works = speaks && !self.heard_of_us.too_little;
        if let Some(at) = current
            && !current_works
        {
            // Those that stand by are asked at once.
            for (_, rung) in self.open.iter_mut().enumerate().filter(|(other, _)| *other != at) {
                let soon = rung.asked.back().map_or(now, |(_, asked)| now.max(*asked + FIRST_PROBES_EVERY));
                rung.next_question = rung.next_question.min(soon);
            }
        }
        let silent_since = current.map(|at| (rung(self.open[at].path.kind()), self.open[at].heard));
        let key = |at: usize| {
            let entry = &self.open[at];
            let used = current == Some(at);
            let path = entry.path.as_ref();
            let bonus = if prefer(path) { Duration::ZERO } else { SWITCH_MARGIN };
            let stay = if used { Duration::ZERO } else { SWITCH_MARGIN };
            // What stood by on the same rung may have died of the same: it has to have been heard since.
            let same = !used
                && !speaks
                && silent_since
                    .is_some_and(|(kind, heard)| kind == rung(path.kind()) && entry.heard <= heard);
            let works = if used { current_works } else { entry.works(now, false, moved) && !same };
            // Of paths that do not work the one in use is kept: it may only be slow.
            (
                !works,
                !works && !used,
                path.is_leaving(),
                rung(path.kind()),
                // Being quick makes up for nothing.
                entry.losses,
                path.rtt() + bonus + stay,
                path.id(),
            )
        };
        let best = (0..self.open.len()).min_by_key(|at| key(*at));
        let Some(best) = best else {
            (self.used, self.overlap_until) = (None, None);
            self.route.set(None, None);
            return before.map(|_| Why::Gone);
        };
        if current == Some(best) {
            return None;
        }
        let why = match (before, current) {
            (None, _) => Why::First,
            (Some(_), None) => Why::Closed,
            (_, Some(at)) => {
                let (old, new) = (&self.open[at].path, &self.open[best].path);
                match () {
                    () if !speaks => Why::Silent,
                    () if !current_works => Why::Losing,
                    () if old.is_leaving() => Why::Leaving,
                    () if rung(new.kind()) < rung(old.kind()) => Why::Better,
                    () => Why::Quicker,
                }
            }
        };
        let old = current.map(|at| {
            let old = &mut self.open[at];
            if matches!(why, Why::Silent | Why::Losing) {
                // Until something comes on it again it is not taken to work.
                old.proven = false;
                let bar = if why == Why::Silent {
                    old.falls = old.falls.saturating_add(1);
                    BARRED_FOR.saturating_mul(1 << (old.falls - 1).min(4)).min(BARRED_MOST)
                } else {
                    old.losses = old.losses.saturating_add(1);
                    LOSING_BARRED_FOR
                        .saturating_mul(1 << (2 * (old.losses - 1)).min(8))
                        .min(LOSING_BARRED_MOST)
                };
                old.barred_until = Some(now + bar);
            }
            old.path.clone()
        });
        let new = &mut self.open[best];
        // It has a moment to show that the peer's datagrams come on it.
        (new.heard, new.busy) = (now, false);
        self.used = Some(new.path.id());
        self.overlap_until = old.is_some().then(|| now + OVERLAP);
        if self.heard_of_us.since.is_some() {
            self.heard_of_us.begin(now + OVERLAP + HEARD_FROM);
        }
        self.route.set(Some(new.path.clone()), old);
        Some(why)
    }

    /// Whether nothing comes on the path in use.
    pub fn is_silent(&self, now: Instant) -> bool {
        self.used_rung().is_some_and(|rung| rung.is_silent(now, true, self.voice_moved()))
    }

    /// Whether the path in use works: something came on it end to end, and still does.
    pub fn works(&self, now: Instant) -> bool {
        self.used_rung().is_some_and(|rung| rung.works(now, true, self.voice_moved()))
    }

    /// Whether a direct path is among them that works.
    pub fn direct_works(&self, now: Instant) -> bool {
        let direct = |entry: &&Rung| rung(entry.path.kind()) == 0;
        self.open
            .iter()
            .filter(direct)
            .any(|entry| entry.works(now, self.used == Some(entry.path.id()), false))
    }

    /// When the first direct path that stands by may be used again after it fell silent.
    pub fn barred_until(&self, now: Instant) -> Option<Instant> {
        let direct = self.open.iter().filter(|entry| rung(entry.path.kind()) == 0);
        direct.filter_map(|entry| entry.barred_until).filter(|until| *until > now).min()
    }

    /// How long nothing has come on the path in use.
    pub fn silent_for(&self, now: Instant) -> Option<Duration> {
        self.used_rung().map(|rung| now.saturating_duration_since(rung.heard))
    }

    /// Whether a way through this room of a server, to this number, is among them and open.
    pub fn has_relay(&self, uplink: &Arc<Uplink>, index: u8) -> bool {
        self.relay(uplink, index).is_some()
    }

    /// Whether that way works.
    pub fn relay_works(&self, now: Instant, uplink: &Arc<Uplink>, index: u8) -> bool {
        self.relay(uplink, index)
            .is_some_and(|rung| rung.works(now, self.used == Some(rung.path.id()), false))
    }

    /// Whether that way is the one in use.
    pub fn uses_relay(&self, uplink: &Arc<Uplink>, index: u8) -> bool {
        self.relay(uplink, index).is_some_and(|rung| self.used == Some(rung.path.id()))
    }

    /// Closes that way: the peer is no longer there.
    pub fn close_relay(&mut self, uplink: &Arc<Uplink>, index: u8) {
        if let Some(rung) = self.relay(uplink, index) {
            rung.path.close(CloseReason::Silent);
        }
    }

    fn relay(&self, uplink: &Arc<Uplink>, index: u8) -> Option<&Rung> {
        let leads = |rung: &&Rung| {
            rung.path.relay().is_some_and(|(through, to)| Arc::ptr_eq(through, uplink) && to == index)
        };
        self.open.iter().find(leads)
    }

    /// The open path with this number.
    pub fn get(&self, id: usize) -> Option<Arc<dyn Path>> {
        self.open.iter().find(|rung| rung.path.id() == id).map(|rung| rung.path.clone())
    }

    /// Sends on every open path: for the handshake, while it is not known which works.
    pub fn send_everywhere(&self, datagram: &Bytes) {
        for rung in &self.open {
            let _ = rung.path.send(datagram.clone());
        }
    }

    /// Closes every direct path but the best: relays cost nothing while they stand by.
    pub fn close_spare(&mut self) {
        let used = self.used;
        let direct = self.open.iter().filter(|entry| rung(entry.path.kind()) == 0);
        direct
            .filter(|entry| Some(entry.path.id()) != used)
            .for_each(|e| e.path.close(CloseReason::Duplicate));
        self.drop_closed();
    }

    /// Closes direct paths on which nothing comes: beside one that is dead a fresh one would never be chosen by its
    /// round trip alone.
    pub fn close_silent(&mut self, now: Instant) {
        let used = self.used;
        for entry in self.open.iter().filter(|entry| rung(entry.path.kind()) == 0) {
            if entry.is_silent(now, Some(entry.path.id()) == used, false) {
                entry.path.close(CloseReason::Silent);
            }
        }
        self.drop_closed();
    }

    /// Closes all of them.
    pub fn close_all(&mut self, why: CloseReason) {
        self.open.drain(..).for_each(|rung| rung.path.close(why));
        (self.used, self.overlap_until) = (None, None);
        self.route.set(None, None);
    }

    /// Those direct paths of which this is true go through a hole that was punched. True where the one in use turned out
    /// to be one.
    pub fn mark_punched(&mut self, punched: impl Fn(&dyn Path) -> bool) -> bool {
        let mut used = false;
        for entry in self.open.iter().filter(|entry| entry.path.kind() == PathKind::Direct) {
            if punched(entry.path.as_ref()) {
                entry.path.mark_punched();
                used |= self.used == Some(entry.path.id());
            }
        }
        used
    }

    /// How many direct ones are open.
    pub fn direct(&self) -> usize {
        self.open.iter().filter(|entry| rung(entry.path.kind()) == 0).count()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// True where no path is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The peer's voice has moved to another path that is at least as good as ours: that ours is quiet says nothing. On a
    /// worse one it says that the peer has given ours up.
    fn voice_moved(&self) -> bool {
        let Some(used) = self.used_rung() else { return false };
        let better = |other: &&Rung| {
            other.path.id() != used.path.id() && rung(other.path.kind()) <= rung(used.path.kind())
        };
        self.open.iter().filter(better).any(|other| (other.looks & 0b1111).count_ones() >= 2)
    }

    fn used_rung(&self) -> Option<&Rung> {
        self.open.iter().find(|rung| Some(rung.path.id()) == self.used)
    }

    fn drop_closed(&mut self) {
        self.open.retain(|rung| rung.path.is_open());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

    use libp2p::Multiaddr;

    use super::*;
    use crate::path::SendError;

    /// A path whose every property a test can set.
    pub(crate) struct Wire {
        id: usize,
        kind: PathKind,
        pub(crate) received: AtomicU64,
        rtt_ms: AtomicU64,
        open: AtomicBool,
        leaving: AtomicBool,
        sent: AtomicUsize,
    }

    pub(crate) fn wire(id: usize, kind: PathKind, rtt_ms: u64) -> Arc<Wire> {
        Arc::new(Wire {
            id,
            kind,
            received: AtomicU64::new(0),
            rtt_ms: AtomicU64::new(rtt_ms),
            open: AtomicBool::new(true),
            leaving: AtomicBool::new(false),
            sent: AtomicUsize::new(0),
        })
    }

    impl Path for Wire {
        fn send(&self, _: Bytes) -> Result<(), SendError> {
            self.sent.fetch_add(1, Relaxed);
            Ok(())
        }
        fn rtt(&self) -> Duration {
            Duration::from_millis(self.rtt_ms.load(Relaxed))
        }
        fn stats(&self) -> hallway_codec::PathStats {
            hallway_codec::PathStats::default()
        }
        fn bytes(&self) -> (u64, u64) {
            (0, self.received.load(Relaxed))
        }
        fn is_dialer(&self) -> bool {
            true
        }
        fn kind(&self) -> PathKind {
            self.kind
        }
        fn remote(&self) -> Multiaddr {
            Multiaddr::empty()
        }
        fn id(&self) -> usize {
            self.id
        }
        fn is_open(&self) -> bool {
            self.open.load(Relaxed)
        }
        fn close(&self, _: CloseReason) {
            self.open.store(false, Relaxed);
        }
        fn is_leaving(&self) -> bool {
            self.leaving.load(Relaxed)
        }
        fn measured(&self, rtt: Duration) {
            self.rtt_ms.store(rtt.as_millis() as u64, Relaxed);
        }
    }

    /// A ladder in virtual time, on whose paths voice comes or not.
    struct Lab {
        now: Instant,
        paths: Paths,
        told: Vec<(u64, Why, usize)>,
        ms: u64,
    }

    impl Lab {
        fn new() -> Self {
            Self { now: Instant::now(), paths: Paths::default(), told: Vec::new(), ms: 0 }
        }

        fn add(&mut self, wire: &Arc<Wire>) {
            assert!(self.paths.add(self.now, wire.clone()));
            self.step(&[]);
        }

        fn step(&mut self, alive: &[&Arc<Wire>]) {
            self.paths.look(self.now);
            while let Some((question, path)) = self.paths.poll_probe(self.now) {
                if alive.iter().any(|wire| wire.id == path.id()) {
                    self.paths.handle_answer(self.now, path.id(), question);
                }
            }
            if let Some(why) = self.paths.choose(self.now, |_| true) {
                self.told.push((self.ms, why, self.paths.used.unwrap_or(0)));
            }
        }

        /// For so long; voice comes on the first of these, answers on all of them.
        fn run(&mut self, ms: u64, alive: &[&Arc<Wire>]) {
            for _ in 0..ms / 20 {
                (self.ms, self.now) = (self.ms + 20, self.now + Duration::from_millis(20));
                if let Some(wire) = alive.first() {
                    wire.received.fetch_add(100, Relaxed);
                }
                self.step(alive);
            }
        }
    }

    #[test]
    fn the_first_that_works_is_used_and_the_best_is_kept() {
        let (tcp, relay, direct) =
            (wire(1, PathKind::Tcp, 30), wire(2, PathKind::Relayed, 60), wire(3, PathKind::Direct, 90));
        let mut lab = Lab::new();
        lab.add(&tcp);
        lab.run(100, &[&tcp]);
        lab.add(&relay);
        lab.run(100, &[&tcp]);
        assert_eq!(lab.paths.used, Some(1), "a relay that never answered is not used");
        lab.run(500, &[&tcp, &relay]);
        assert_eq!(lab.paths.used, Some(2));
        lab.add(&direct);
        lab.run(3000, &[&direct, &relay, &tcp]);
        assert_eq!(lab.paths.used, Some(3), "a lower rung wins although it is slower");
        let whys: Vec<_> = lab.told.iter().map(|(_, why, id)| (*why, *id)).collect();
        assert_eq!(whys, [(Why::First, 1), (Why::Better, 2), (Why::Better, 3)]);
    }

    #[test]
    fn a_path_that_falls_silent_is_left_within_half_a_second_and_taken_again_when_it_is_back() {
        let (relay, direct) = (wire(2, PathKind::Relayed, 60), wire(3, PathKind::Direct, 20));
        let mut lab = Lab::new();
        lab.add(&direct);
        lab.add(&relay);
        lab.run(3000, &[&direct, &relay]);
        lab.told.clear();
        lab.run(4000, &[&relay]);
        let (at, why, id) = lab.told[0];
        assert_eq!((why, id), (Why::Silent, 2));
        assert!(at <= 3500, "left after {} ms", at - 3000);
        lab.run(5000, &[&direct, &relay]);
        assert_eq!(lab.told.last().map(|told| (told.1, told.2)), Some((Why::Better, 3)));
        assert_eq!(lab.told.len(), 2, "{:?}", lab.told);
    }

    #[test]
    fn a_path_that_comes_and_goes_is_barred_for_longer_each_time() {
        let (relay, direct) = (wire(2, PathKind::Relayed, 60), wire(3, PathKind::Direct, 20));
        let mut lab = Lab::new();
        lab.add(&direct);
        lab.add(&relay);
        for _ in 0..60 {
            lab.run(500, &[&direct, &relay]);
            lab.run(500, &[&relay]);
        }
        assert!(lab.told.len() <= 14, "30 s of flapping: {:?}", lab.told);
    }

    #[test]
    fn a_path_that_answers_but_loses_the_voice_is_left_for_one_that_does_not_however_slow() {
        let (liar, honest) = (wire(1, PathKind::Relayed, 10), wire(2, PathKind::Relayed, 90));
        let mut lab = Lab::new();
        lab.add(&liar);
        lab.add(&honest);
        lab.paths.expect_to_be_heard(lab.now);
        let mut on_liar = 0;
        for second in 0..120 {
            let used = lab.paths.used;
            on_liar += u32::from(used == Some(1));
            assert!(second < 4 || lab.paths.heard_of_us.since.is_some());
            // Four reports a second; the liar lets one packet in ten through.
            for _ in 0..4 {
                let heard = if used == Some(1) { (5, 45) } else { (50, 0) };
                lab.paths.handle_heard(lab.now, heard.0, heard.1);
                lab.run(250, &[&honest, &liar]);
            }
        }
        assert_eq!(lab.told.get(1).map(|told| (told.1, told.2)), Some((Why::Losing, 2)), "{:?}", lab.told);
        assert!(lab.told[1].0 <= 5000, "left after {} ms", lab.told[1].0);
        assert!(on_liar < 5, "{on_liar} of 120 s by the liar: {:?}", lab.told);
    }

    #[test]
    fn a_better_rung_that_lost_the_voice_is_tried_again_ever_later() {
        let (direct, relay) = (wire(1, PathKind::Direct, 10), wire(2, PathKind::Relayed, 90));
        let mut lab = Lab::new();
        lab.add(&direct);
        lab.add(&relay);
        lab.paths.expect_to_be_heard(lab.now);
        let mut on_direct = 0;
        for _ in 0..4 * 180 {
            let bad = lab.paths.used == Some(1);
            on_direct += u32::from(bad);
            lab.paths.handle_heard(lab.now, if bad { 5 } else { 50 }, if bad { 45 } else { 0 });
            lab.run(250, &[&relay, &direct]);
        }
        let tries = lab.told.iter().filter(|told| told.1 == Why::Better).count();
        assert!((2..=4).contains(&tries) && on_direct < 4 * 25, "{on_direct} of 720: {:?}", lab.told);
    }

    #[test]
    fn where_there_is_no_other_path_a_lossy_one_is_kept_and_half_of_the_voice_is_enough() {
        let (one, two) = (wire(1, PathKind::Relayed, 10), wire(2, PathKind::Relayed, 90));
        let mut lab = Lab::new();
        lab.add(&one);
        lab.paths.expect_to_be_heard(lab.now);
        lab.run(8000, &[&one]);
        assert_eq!(lab.told.len(), 1, "nobody says that we are heard: {:?}", lab.told);
        lab.add(&two);
        lab.paths.expect_to_be_heard(lab.now);
        for _ in 0..40 {
            lab.paths.handle_heard(lab.now, 30, 20);
            lab.run(250, &[&one, &two]);
        }
        assert_eq!(lab.told.len(), 1, "{:?}", lab.told);
    }

    #[test]
    fn both_paths_are_sent_on_while_one_takes_over() {
        let (relay, direct) = (wire(2, PathKind::Relayed, 60), wire(3, PathKind::Direct, 20));
        let mut lab = Lab::new();
        lab.add(&relay);
        lab.run(1000, &[&relay]);
        lab.add(&direct);
        lab.run(20, &[&direct, &relay]);
        lab.paths.route().send(Bytes::new()).unwrap();
        assert_eq!((relay.sent.load(Relaxed), direct.sent.load(Relaxed)), (1, 1));
        lab.run(OVERLAP.as_millis() as u64 + 200, &[&direct, &relay]);
        lab.paths.route().send(Bytes::new()).unwrap();
        assert_eq!((relay.sent.load(Relaxed), direct.sent.load(Relaxed)), (1, 2));
    }

    #[test]
    fn a_relay_that_shuts_down_is_left_before_it_ends() {
        let (one, two) = (wire(1, PathKind::Relayed, 20), wire(2, PathKind::Tcp, 90));
        let mut lab = Lab::new();
        lab.add(&one);
        lab.add(&two);
        lab.run(1000, &[&one, &two]);
        one.leaving.store(true, Relaxed);
        lab.run(40, &[&one, &two]);
        assert_eq!(lab.told.last().map(|told| (told.1, told.2)), Some((Why::Leaving, 2)));
    }

    #[test]
    fn equal_paths_do_not_flap_and_the_last_one_gone_is_told() {
        let (one, two) = (wire(1, PathKind::Direct, 20), wire(2, PathKind::Direct, 18));
        let mut lab = Lab::new();
        lab.add(&one);
        lab.add(&two);
        lab.run(3000, &[&one, &two]);
        assert_eq!(lab.told, [(0, Why::First, 1)]);
        lab.paths.close_all(CloseReason::Goodbye);
        assert!(lab.paths.is_empty() && lab.paths.used().is_none());
        lab.add(&wire(4, PathKind::Direct, 1));
        lab.paths.open[0].path.close(CloseReason::Goodbye);
        lab.step(&[]);
        assert_eq!(lab.told.last().map(|told| told.1), Some(Why::Gone));
    }

    #[test]
    fn a_ninth_path_is_refused() {
        let mut lab = Lab::new();
        (1..=MAX_PATHS).for_each(|id| lab.add(&wire(id, PathKind::Direct, 1)));
        assert!(!lab.paths.add(lab.now, wire(9, PathKind::Direct, 1)));
    }
}
