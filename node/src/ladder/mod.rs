//! The ladder: all paths to one peer, and which of them its datagrams take. Pure: it is told the time.
//!
//! Everything is tried at once; the first path that works carries the voice, the lowest rung ([`rung`]) is kept. After
//! [`Paths::add`] and whenever [`Paths::look_due`] says so: [`Paths::look`], then [`Paths::choose`]. A path works once
//! something came on it end to end: for a QUIC connection its handshake did, another one has to answer a question
//! ([`Paths::poll_probe`], [`Paths::handle_answer`]). Receivers take the first of two equal datagrams, so for
//! [`OVERLAP`] after a change both paths are sent on, and nothing is lost if the new one fails; not over a thin link.
//!
//! One path is a [`Rung`]; [`HeardOfUs`] judges what arrives of our voice, [`Lossy`] remembers where it got lost.

mod heard;
mod lossy;
mod rung;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    events::PathKind,
    forward::Uplink,
    path::{self, CloseReason, Path, Route},
};
use heard::{HEARD_FROM, HeardOfUs};
use lossy::Lossy;
use rung::Rung;

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
/// Where our voice arrives by no path it is not our paths' fault, and not judged again for this long.
const NOBODYS_FAULT_FOR: Duration = Duration::from_secs(60);

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
    lossy: Lossy,
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
            let spare = |entry: &Rung| !entry.is_direct() && Some(entry.path.id()) != used;
            let at = self.open.iter().position(spare).filter(|_| path::rung(path.kind()) == 0);
            let Some(at) = at else { return false };
            self.open.remove(at).path.close(CloseReason::Silent);
        }
        self.open.push(Rung::new(now, path));
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
        self.open.iter_mut().for_each(|rung| rung.look(now));
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
        let rung = self.open.iter_mut().find(|rung| rung.question_due(now))?;
        self.next_question = self.next_question.wrapping_add(1);
        rung.ask(now, self.next_question);
        Some((self.next_question, rung.path.clone()))
    }

    /// The answer to a question came on this path.
    pub fn handle_answer(&mut self, now: Instant, id: usize, question: u32) {
        if let Some(rung) = self.open.iter_mut().find(|rung| rung.path.id() == id) {
            rung.answered(now, question);
        }
    }

    /// The peer is a member from now on, and should hear us.
    pub fn expect_to_be_heard(&mut self, now: Instant) {
        self.heard_of_us.expect(now + HEARD_FROM);
    }

    /// The peer tells how many packets of our voice came, and how many got lost on the way, since it last told.
    pub fn handle_heard(&mut self, now: Instant, packets: u32, lost: u32) {
        self.heard_of_us.told(now, packets, lost);
    }

    /// The peer tells of packets that did not come, which its report leaves out.
    pub fn handle_missed(&mut self, now: Instant, packets: u32) {
        self.heard_of_us.missed(now, packets);
    }

    /// Forgets closed paths and puts the best of the rest in use. Tells why where that is another one than before.
    ///
    /// `prefer` breaks ties the same way on both sides, so that both keep the same one of two equal connections.
    pub fn choose(&mut self, now: Instant, prefer: impl Fn(&dyn Path) -> bool) -> Option<Why> {
        self.drop_closed();
        let before = self.used;
        let current = before.and_then(|id| self.open.iter().position(|rung| rung.path.id() == id));
        let moved = self.voice_moved();
        self.judge(now, moved);
        let speaks = current.is_some_and(|at| self.open[at].is_alive(now, true, moved));
        let current_works = speaks && !self.heard_of_us.too_little();
        if let Some(at) = current
            && !current_works
        {
            // Those that stand by are asked at once.
            let others = self.open.iter_mut().enumerate().filter(|(other, _)| *other != at);
            others.for_each(|(_, rung)| rung.ask_soon(now));
        }
        // Two connections to one place go the same way: one that stands by knows the round trip of another time. Of these
        // both sides take the one they agree on.
        let same_way = current.map(|at| (self.open[at].path.remote(), self.open[at].path.rtt()));
        let silent_since = current.map(|at| (path::rung(self.open[at].path.kind()), self.open[at].heard));
        let key = |at: usize| {
            let entry = &self.open[at];
            let used = current == Some(at);
            let path = entry.path.as_ref();
            let bonus = if prefer(path) { Duration::ZERO } else { SWITCH_MARGIN };
            let same_way = same_way.as_ref().filter(|(remote, _)| *remote == path.remote());
            let stay = if used || same_way.is_some() { Duration::ZERO } else { SWITCH_MARGIN };
            let rtt = same_way.map_or_else(|| path.rtt(), |(_, rtt)| *rtt);
            // What stood by on the same rung may have died of the same: it has to have been heard since.
            let same = !used
                && !speaks
                && silent_since
                    .is_some_and(|(rung, heard)| rung == path::rung(path.kind()) && entry.heard <= heard);
            let alive = if used { speaks } else { entry.is_alive(now, false, moved) && !same };
            let works = if used { current_works } else { alive && !self.is_barred(now, entry) };
            // Of paths that do not work the one in use is kept, it may only be slow; but one that loses a part of our voice is
            // better than one on which nothing comes at all.
            (
                !works,
                !alive,
                !works && !used,
                path.is_leaving(),
                path::rung(path.kind()),
                // Being quick makes up for nothing.
                self.lossy.losses(path),
                rtt + bonus + stay,
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
                    () if path::rung(new.kind()) < path::rung(old.kind()) => Why::Better,
                    () => Why::Quicker,
                }
            }
        };
        let old = current.map(|at| {
            let old = &mut self.open[at];
            match why {
                Why::Silent => old.fell(now),
                Why::Losing => {
                    old.leave();
                    self.lossy.lost(now, old.path.as_ref());
                }
                _ => {}
            }
            old.path.clone()
        });
        let new = &mut self.open[best];
        new.begin(now);
        self.used = Some(new.path.id());
        // A thin link has no room for both.
        let old = old.filter(|_| new.path.leg_rtt() < path::THIN_RTT);
        self.overlap_until = old.is_some().then(|| now + OVERLAP);
        self.heard_of_us.begin(now + OVERLAP + HEARD_FROM);
        self.route.set(Some(new.path.clone()), old);
        Some(why)
    }

    /// Draws the conclusions from what the peer heard of us.
    fn judge(&mut self, now: Instant, moved: bool) {
        let used = self.used;
        let is_used = |rung: &&Rung| Some(rung.path.id()) == used;
        let relayed = self.open.iter().find(is_used).is_some_and(|rung| !rung.is_direct());
        match self.heard_of_us.judge(now, relayed) {
            Some(true) => self.lossy.others_do_better(),
            Some(false) => {
                let mut others = self.open.iter().filter(|rung| !is_used(rung));
                let elsewhere =
                    others.any(|rung| rung.is_alive(now, false, moved) && !self.is_barred(now, rung));
                // Whatever was tried is no better: our own uplink may be what is bad, or the peer's.
                if !elsewhere && self.lossy.take_back(now) {
                    self.heard_of_us.begin(now + NOBODYS_FAULT_FOR);
                }
            }
            None => {}
        }
    }

    fn is_barred(&self, now: Instant, rung: &Rung) -> bool {
        rung.is_barred(now) || self.lossy.barred_until(now, rung.path.as_ref()).is_some()
    }

    /// Whether nothing comes on the path in use.
    pub fn is_silent(&self, now: Instant) -> bool {
        self.used_rung().is_some_and(|rung| rung.is_silent(now, true, self.voice_moved()))
    }

    /// Whether the path in use works: something came on it end to end, and still does.
    pub fn works(&self, now: Instant) -> bool {
        self.used_rung().is_some_and(|rung| rung.is_alive(now, true, self.voice_moved()))
    }

    /// Whether a direct path is among them that works, or would if it did not lose our voice: a fresh one to the same place
    /// would be barred as well.
    pub fn direct_works(&self, now: Instant) -> bool {
        self.open.iter().filter(|entry| entry.is_direct()).any(|entry| {
            let used = self.used == Some(entry.path.id());
            (entry.is_alive(now, used, false) && (used || !entry.is_barred(now)))
                || self.lossy.barred_until(now, entry.path.as_ref()).is_some()
        })
    }

    /// When the first direct path that stands by may be used again.
    pub fn barred_until(&self, now: Instant) -> Option<Instant> {
        let standing_by = |entry: &&Rung| {
            entry.is_direct() && self.used != Some(entry.path.id()) && self.is_barred(now, entry)
        };
        let until = |entry: &Rung| {
            [entry.barred_until, self.lossy.barred_until(now, entry.path.as_ref())]
                .into_iter()
                .flatten()
                .max()
        };
        self.open.iter().filter(standing_by).filter_map(until).min()
    }

    /// How long nothing has come on the path in use.
    pub fn silent_for(&self, now: Instant) -> Option<Duration> {
        self.used_rung().map(|rung| now.saturating_duration_since(rung.heard))
    }

    /// Whether a way through this room of a server, to this number, is among them and open.
    pub fn has_relay(&self, uplink: &Arc<Uplink>, index: u8) -> bool {
        self.relay(uplink, index).is_some()
    }

    /// Whether that way works, and never lost our voice.
    pub fn relay_is_sound(&self, now: Instant, uplink: &Arc<Uplink>, index: u8) -> bool {
        self.relay(uplink, index).is_some_and(|rung| {
            let used = self.used == Some(rung.path.id());
            rung.is_alive(now, used, false)
                && (used || !rung.is_barred(now))
                && self.lossy.losses(rung.path.as_ref()) == 0
        })
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

    /// Closes every direct path but one, the one in use or else the one last heard on: relays cost nothing while they stand
    /// by.
    pub fn close_spare(&mut self) {
        let direct = || self.open.iter().filter(|entry| entry.is_direct());
        let keep = direct().max_by_key(|entry| (Some(entry.path.id()) == self.used, entry.heard));
        let keep = keep.map(|entry| entry.path.id());
        direct()
            .filter(|entry| Some(entry.path.id()) != keep)
            .for_each(|e| e.path.close(CloseReason::Duplicate));
        self.drop_closed();
    }

    /// Closes direct paths on which nothing comes: beside one that is dead a fresh one would never be chosen by its
    /// round trip alone.
    pub fn close_silent(&mut self, now: Instant) {
        let used = self.used;
        for entry in self.open.iter().filter(|entry| entry.is_direct()) {
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
        self.open.iter().filter(|entry| entry.is_direct()).count()
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
            other.path.id() != used.path.id() && path::rung(other.path.kind()) <= path::rung(used.path.kind())
        };
        self.open.iter().filter(better).any(Rung::brings_voice)
    }

    fn used_rung(&self) -> Option<&Rung> {
        self.open.iter().find(|rung| Some(rung.path.id()) == self.used)
    }

    fn drop_closed(&mut self) {
        self.open.retain(|rung| rung.path.is_open());
    }
}

#[cfg(test)]
pub(crate) mod tests;
