//! Frames that wait for their moment, in a table indexed by position: inserting, finding and forgetting take one look.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::{
    opus::PacketInfo,
    time::{Micros, Samples},
};

/// Positions that the table spans, in steps of 2.5 ms: half of them ahead of playout, half behind.
pub const MAX_STEPS: i64 = 1_024;
/// Most that a frame may lie ahead of or behind playout, 1.28 s.
pub const MAX_DISTANCE: i64 = (MAX_STEPS / 2).saturating_mul(STEP);
/// Steps of the longest frame, 20 ms.
const LONGEST: i64 = 8;
const STEP: i64 = Samples::MS_2_5.0 as i64;

/// What a packet says of a frame beside its sound: its way, for the latency ledger, and whether a pause may follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trace {
    /// Whether it is known when it was captured: not before the first whole packet came.
    pub is_known: bool,
    /// When the packet it came in arrived here.
    pub arrived: Micros,
    /// When its first sample was captured, speaker's clock, low 32 bits of microseconds.
    pub captured_us: u32,
    /// From there to the start of encoding, us.
    pub capture_us: u32,
    /// From there until the packet was done, us.
    pub encode_us: u32,
    /// How much older than the packet's main frame it is, us; 0 for the main frame.
    pub back_us: u32,
    /// Where nothing comes for what follows, the speaker pauses.
    pub quiet: bool,
}

/// A frame that waits.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// Position of its first sample.
    pub at: i64,
    /// What Opus says of it.
    pub info: PacketInfo,
    /// Only copies of it came so far.
    pub from_copy: bool,
    /// Its way here.
    pub trace: Trace,
    /// The Opus packet.
    pub opus: &'a [u8],
}

/// What became of a frame that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It is new and waits.
    Kept,
    /// It waits, was played, or was seen late already.
    Known,
    /// It is new, but its moment has passed by this much.
    Late(Samples),
    /// It lies too far from playout, or off the grid.
    OutOfRange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Empty,
    Waiting,
    /// Played, or too late: kept as a mark, so that further copies are known.
    Done,
}

#[derive(Debug, Default)]
struct Slot {
    state: State,
    at: i64,
    info: Option<PacketInfo>,
    from_copy: bool,
    trace: Trace,
    opus: Vec<u8>,
}

/// The table. Positions are unwrapped and relative to `origin`.
#[derive(Debug)]
pub struct Packets {
    slots: Vec<Slot>,
    origin: i64,
    /// End of the newest frame ever kept.
    newest: Option<i64>,
}

impl Default for Packets {
    fn default() -> Self {
        let slots =
            (0..MAX_STEPS).map(|_| Slot { opus: Vec::with_capacity(64), ..Slot::default() }).collect();
        Self { slots, origin: 0, newest: None }
    }
}

impl Packets {
    /// Forgets everything; positions are multiples of 2.5 ms from `origin` on.
    pub fn restart(&mut self, origin: i64) {
        self.origin = origin;
        self.newest = None;
        self.slots.iter_mut().for_each(|s| s.state = State::Empty);
    }

    /// Whether a frame at this position could be kept while `playout` is the position played next.
    #[must_use]
    pub fn in_range(&self, at: i64, playout: i64) -> bool {
        self.index(at).is_some() && at.saturating_sub(playout).saturating_abs() < MAX_DISTANCE
    }

    /// Takes a frame, while `playout` is the next position to be decoded.
    pub fn offer(
        &mut self,
        at: i64,
        playout: i64,
        info: PacketInfo,
        from_copy: bool,
        trace: Trace,
        opus: &[u8],
    ) -> Offer {
        if !self.in_range(at, playout) {
            return Offer::OutOfRange;
        }
        let Some(slot) = self.index(at).and_then(|i| self.slots.get_mut(i)) else { return Offer::OutOfRange };
        if slot.at == at && slot.state != State::Empty {
            slot.from_copy &= from_copy;
            return Offer::Known;
        }
        slot.at = at;
        slot.from_copy = from_copy;
        let end = at.saturating_add(info.duration.0.into());
        slot.info = Some(info);
        slot.opus.clear();
        slot.opus.extend_from_slice(opus);
        if end <= playout {
            slot.state = State::Done;
            return Offer::Late(Samples(u32::try_from(playout.saturating_sub(at)).unwrap_or(u32::MAX)));
        }
        slot.state = State::Waiting;
        slot.trace = trace;
        self.newest = Some(self.newest.map_or(end, |n| n.max(end)));
        Offer::Kept
    }

    /// The waiting frame that covers position `at`.
    #[must_use]
    pub fn covering(&self, at: i64) -> Option<Waiting<'_>> {
        (0..LONGEST).find_map(|back| {
            let start = at.saturating_sub(back.saturating_mul(STEP));
            self.waiting(start).filter(|w| start.saturating_add(w.info.duration.0.into()) > at)
        })
    }

    /// The first waiting frame that starts after `at`, looking as far as one longest frame.
    #[must_use]
    pub fn next_after(&self, at: i64) -> Option<Waiting<'_>> {
        (1..=LONGEST).find_map(|ahead| self.waiting(at.saturating_add(ahead.saturating_mul(STEP))))
    }

    /// Whether the frame at `at` came, in time or late.
    #[must_use]
    pub fn knows(&self, at: i64) -> bool {
        let slot = self.index(at).and_then(|i| self.slots.get(i));
        slot.is_some_and(|s| s.at == at && s.state != State::Empty)
    }

    /// The frame that begins at `at`, whether it waits, was played, or came too late: its length and its Opus packet.
    #[must_use]
    pub fn came(&self, at: i64) -> Option<(Samples, &[u8])> {
        let slot = self.slots.get(self.index(at)?)?;
        let info = slot.info.filter(|_| slot.state != State::Empty && slot.at == at)?;
        Some((info.duration, &slot.opus))
    }

    /// Whether anything at all waits after `at`.
    #[must_use]
    pub fn any_after(&self, at: i64) -> bool {
        self.newest.is_some_and(|newest| newest > at)
    }

    /// The frame at `at` was played.
    pub fn done(&mut self, at: i64) {
        if let Some(slot) = self.index(at).and_then(|i| self.slots.get_mut(i))
            && slot.at == at
        {
            slot.state = State::Done;
        }
    }

    /// Bytes held, for tests of the bound.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.slots.iter().fold(0, |n, s| n.saturating_add(s.opus.capacity()))
    }

    fn waiting(&self, at: i64) -> Option<Waiting<'_>> {
        let slot = self.slots.get(self.index(at)?)?;
        let info = slot.info.filter(|_| slot.state == State::Waiting && slot.at == at)?;
        Some(Waiting { at, info, from_copy: slot.from_copy, trace: slot.trace, opus: &slot.opus })
    }

    fn index(&self, at: i64) -> Option<usize> {
        let distance = at.checked_sub(self.origin)?;
        if distance.checked_rem(STEP)? != 0 {
            return None;
        }
        usize::try_from(distance.checked_div(STEP)?.checked_rem_euclid(MAX_STEPS)?).ok()
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info(duration: Samples) -> PacketInfo {
        PacketInfo { duration, speech_mode: false, has_fec: false }
    }

    fn offer(packets: &mut Packets, at: i64, playout: i64, copy: bool) -> Offer {
        packets.offer(at, playout, info(Samples::MS_5), copy, Trace::default(), &[1, 2, 3])
    }

    #[test]
    fn a_frame_waits_is_found_by_any_position_within_it_and_is_known_ever_after() {
        let mut packets = Packets::default();
        assert_eq!(offer(&mut packets, 480, 240, true), Offer::Kept);
        assert_eq!(packets.covering(600).unwrap().at, 480);
        assert!(packets.covering(600).unwrap().from_copy);
        assert!(packets.covering(720).is_none());
        assert_eq!(offer(&mut packets, 480, 240, false), Offer::Known);
        assert!(!packets.covering(480).unwrap().from_copy, "the frame itself came after its copy");
        assert_eq!(packets.next_after(240).unwrap().at, 480);
        packets.done(480);
        assert!(packets.covering(480).is_none());
        assert_eq!(offer(&mut packets, 480, 720, false), Offer::Known);
        assert!(packets.knows(480) && !packets.knows(720));
        assert_eq!(offer(&mut packets, 0, 720, false), Offer::Late(Samples(720)));
        assert_eq!(offer(&mut packets, 0, 720, false), Offer::Known);
    }

    #[test]
    fn a_frame_whose_first_part_is_past_still_waits_for_the_rest() {
        let mut packets = Packets::default();
        assert_eq!(offer(&mut packets, 480, 600, false), Offer::Kept);
        assert_eq!(packets.covering(600).unwrap().at, 480);
    }

    proptest! {
        #[test]
        fn no_positions_make_it_panic_or_grow(
            offers in proptest::collection::vec((any::<i64>(), any::<i64>(), -2000i64..2000, 0usize..1000), 1..300),
        ) {
            let mut packets = Packets::default();
            for (origin, playout, near, length) in offers {
                if near % 100 == 0 {
                    packets.restart(origin);
                }
                for at in [playout.wrapping_add(near * 120), near, origin] {
                    packets.offer(at, playout, info(Samples::MS_20), false, Trace::default(), &vec![7; length]);
                    let found = packets.covering(at).or(packets.next_after(at));
                    prop_assert!(found.is_none_or(|w| w.opus.len() <= 1000));
                    packets.done(at);
                }
            }
            prop_assert!(packets.bytes() <= MAX_STEPS as usize * 1024);
        }
    }
}
