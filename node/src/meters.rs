//! How loud everybody is now: written by the media thread, read by whoever draws it, at any time and without waiting.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI32, Ordering},
};

use arc_swap::ArcSwap;
use hallway_codec::Dbov;
use libp2p::PeerId;

/// How fast a meter falls after a loud moment, dB a second: slow enough for the eye, fast enough for syllables.
pub const FALL_DB_PER_S: f32 = 60.0;

/// All meters of a call. Clones read and write the same ones.
#[derive(Debug, Clone)]
pub struct Meters(Arc<All>);

#[derive(Debug)]
struct All {
    own: Meter,
    open: AtomicBool,
    voices: ArcSwap<Vec<(PeerId, Meter)>>,
}

/// One meter: jumps up with the sound, falls at [`FALL_DB_PER_S`]. One writer, any readers.
#[derive(Debug, Clone)]
pub struct Meter(Arc<AtomicI32>);

impl Default for Meter {
    fn default() -> Self {
        Self(Arc::new(AtomicI32::new(centi(Dbov::SILENCE))))
    }
}

fn centi(level: Dbov) -> i32 {
    i32::from(level.db()) * 100
}

impl Meter {
    /// A block of `frames` frames of 48 kHz was this loud. Real-time safe.
    pub fn add(&self, level: Dbov, frames: u32) {
        let fall = (FALL_DB_PER_S * 100.0 * frames as f32 / 48_000.0) as i32;
        let fallen = self.0.load(Ordering::Relaxed).saturating_sub(fall.max(1));
        self.0.store(fallen.max(centi(level)).max(centi(Dbov::SILENCE)), Ordering::Relaxed);
    }

    /// dB below full scale, −127 to 0.
    pub fn dbov(&self) -> f32 {
        self.0.load(Ordering::Relaxed) as f32 / 100.0
    }
}

impl Default for Meters {
    fn default() -> Self {
        let voices = ArcSwap::default();
        Self(Arc::new(All { own: Meter::default(), open: AtomicBool::new(false), voices }))
    }
}

impl Meters {
    /// What the microphone captures, sent or not.
    pub fn own(&self) -> &Meter {
        &self.0.own
    }

    /// Whether the microphone is open: what it captures is sent.
    pub fn is_open(&self) -> bool {
        self.0.open.load(Ordering::Relaxed)
    }

    /// The microphone opens or closes. Real-time safe.
    pub fn set_open(&self, open: bool) {
        self.0.open.store(open, Ordering::Relaxed);
    }

    /// How loud this person speaks; `None` for one who is not in the call.
    pub fn voice(&self, peer: &PeerId) -> Option<f32> {
        self.0.voices.load().iter().find(|(known, _)| known == peer).map(|(_, meter)| meter.dbov())
    }

    /// A meter for this person, replacing an earlier one.
    pub fn insert(&self, peer: PeerId) -> Meter {
        let meter = Meter::default();
        let mut voices = self.others(&peer);
        voices.push((peer, meter.clone()));
        self.0.voices.store(Arc::new(voices));
        meter
    }

    /// The person left.
    pub fn remove(&self, peer: &PeerId) {
        self.0.voices.store(Arc::new(self.others(peer)));
    }

    fn others(&self, peer: &PeerId) -> Vec<(PeerId, Meter)> {
        self.0.voices.load().iter().filter(|(known, _)| known != peer).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_jumps_up_and_falls_sixty_decibels_a_second() {
        let meter = Meter::default();
        meter.add(Dbov::new(-20), 120);
        assert_eq!(meter.dbov(), -20.0);
        for _ in 0..200 {
            meter.add(Dbov::SILENCE, 120);
        }
        assert!((meter.dbov() + 50.0).abs() < 0.5, "{}", meter.dbov());
        for _ in 0..1000 {
            meter.add(Dbov::SILENCE, 120);
        }
        assert_eq!(meter.dbov(), -127.0);
    }

    #[test]
    fn people_come_and_go() {
        let (meters, ana, ben) = (Meters::default(), PeerId::random(), PeerId::random());
        let meter = meters.insert(ana);
        meters.insert(ben);
        meter.add(Dbov::new(-9), 120);
        assert_eq!((meters.voice(&ana), meters.voice(&ben)), (Some(-9.0), Some(-127.0)));
        meters.remove(&ana);
        assert_eq!((meters.voice(&ana), meters.voice(&ben)), (None, Some(-127.0)));
    }
}
