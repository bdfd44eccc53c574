//! Where our voice got lost. A place is remembered, not a connection: a fresh one that leads to the same place is no better.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use libp2p::Multiaddr;

use super::MAX_PATHS;
use crate::path::Path;

/// What lost our voice is not used again for this long, four times as long each time, up to the most: it costs seconds of
/// speech to find out again.
const BARRED_FOR: Duration = Duration::from_secs(8);
const BARRED_MOST: Duration = Duration::from_secs(60);
/// Each time it could have been used for so long, half of its losses are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// One place.
struct Place {
    at: Multiaddr,
    losses: u32,
    until: Instant,
    /// Nothing better was found since it was left.
    blamed: bool,
}

/// The last places, oldest first, at most [`MAX_PATHS`].
#[derive(Default)]
pub(super) struct Lossy(VecDeque<Place>);

impl Lossy {
    /// Our voice got lost on this path. `blamed` as long as no other path is seen to do better.
    pub(super) fn lost(&mut self, now: Instant, path: &dyn Path) {
        let at = path.remote();
        let known = self.0.iter().position(|place| place.at == at).and_then(|known| self.0.remove(known));
        let before = known.map_or(0, |place| {
            let usable = now.saturating_duration_since(place.until).as_secs() / FORGOTTEN_AFTER.as_secs();
            place.losses >> usable.min(31)
        });
        let bar = BARRED_FOR.saturating_mul(1 << (2 * before).min(8)).min(BARRED_MOST);
        if self.0.len() >= MAX_PATHS {
            self.0.pop_front();
        }
        self.0.push_back(Place { at, losses: before.saturating_add(1), until: now + bar, blamed: true });
    }

    /// Another path does better: it was their fault.
    pub(super) fn others_do_better(&mut self) {
        self.0.iter_mut().for_each(|place| place.blamed = false);
    }

    /// No other path did better: it was not their fault. False where nobody was blamed.
    pub(super) fn take_back(&mut self, now: Instant) -> bool {
        let mut any = false;
        for place in self.0.iter_mut().filter(|place| place.blamed) {
            (place.losses, place.until, place.blamed) = (place.losses.saturating_sub(1), now, false);
            any = true;
        }
        any
    }

    fn place(&self, path: &dyn Path) -> Option<&Place> {
        if self.0.is_empty() {
            return None;
        }
        let at = path.remote();
        self.0.iter().find(|place| place.at == at)
    }

    /// How often our voice got lost where this path leads.
    pub(super) fn losses(&self, path: &dyn Path) -> u32 {
        self.place(path).map_or(0, |place| place.losses)
    }

    /// Until when a path that leads there is not used; while it is blamed at least until it is known whose fault it was.
    pub(super) fn barred_until(&self, now: Instant, path: &dyn Path) -> Option<Instant> {
        self.place(path).filter(|place| place.blamed || place.until > now).map(|place| place.until.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{events::PathKind, ladder::tests::wire};

    #[test]
    fn a_place_that_loses_again_and_again_is_barred_for_longer_up_to_a_minute_and_forgiven_in_time() {
        let (mut lossy, mut now) = (Lossy::default(), Instant::now());
        let path = wire(1, PathKind::Direct, 10);
        let mut bar = |now: Instant| {
            lossy.lost(now, path.as_ref());
            lossy.others_do_better();
            lossy.barred_until(now, path.as_ref()).unwrap() - now
        };
        for seconds in [8, 32, 60, 60] {
            assert_eq!(bar(now), Duration::from_secs(seconds));
            now += Duration::from_secs(seconds + 5);
        }
        // It did well for two minutes: of four losses one is left.
        assert_eq!(bar(now + Duration::from_secs(120)), Duration::from_secs(32));
    }

    #[test]
    fn the_last_eight_places_are_remembered() {
        let (mut lossy, now) = (Lossy::default(), Instant::now());
        let paths: Vec<_> = (0..=MAX_PATHS).map(|id| wire(id, PathKind::Direct, 10)).collect();
        paths.iter().for_each(|path| lossy.lost(now, path.as_ref()));
        assert_eq!(lossy.0.len(), MAX_PATHS);
        assert_eq!((lossy.losses(paths[0].as_ref()), lossy.losses(paths[1].as_ref())), (0, 1));
    }
}
