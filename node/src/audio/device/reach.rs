//! Who hears what a device plays: everybody in the room, its microphone included, or one ear.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Where a loudspeaker's sound goes. Only sound in the room comes back through a microphone as an echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Loudspeakers, a screen's or a television's: the microphone hears it too.
    Room,
    /// Headphones, a headset, a handset.
    Ear,
    /// Nothing that sounds: a file, nowhere, a virtual device of other programs.
    #[default]
    Nowhere,
}

/// Parts of names of ports and devices that sit on an ear.
const EARS: [&str; 6] = ["headphone", "headset", "handset", "earpiece", "earbud", "airpods"];

/// The reach of an open device, which may change while it plays: headphones are pulled, another default is taken.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedReach(Arc<AtomicU8>);

impl SharedReach {
    pub(crate) fn new(reach: Reach) -> Self {
        let shared = Self::default();
        shared.set(reach);
        shared
    }

    pub(crate) fn set(&self, reach: Reach) {
        self.0.store(reach as u8, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Reach {
        let now = self.0.load(Ordering::Relaxed);
        [Reach::Room, Reach::Ear].into_iter().find(|reach| *reach as u8 == now).unwrap_or(Reach::Nowhere)
    }
}

impl Reach {
    /// By the form that the hardware states (`headphone`, `speaker`, `internal`, …), and by the name of the port in use
    /// or of the device. Hardware that says nothing is taken for a loudspeaker: an echo nobody cancels is worse for
    /// the others than a canceller with nothing to do.
    pub(crate) fn of(form: Option<&str>, name: Option<&str>, hardware: bool) -> Self {
        let says_ear = |text: &str| {
            let text = text.to_ascii_lowercase();
            EARS.iter().any(|ear| text.contains(ear))
        };
        if form.into_iter().chain(name).any(says_ear) {
            Self::Ear
        } else if hardware || form.is_some() {
            Self::Room
        } else {
            Self::Nowhere
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_reach_is_what_it_was_set_to() {
        for reach in [Reach::Room, Reach::Ear, Reach::Nowhere] {
            assert_eq!(SharedReach::new(reach).get(), reach);
        }
        assert_eq!(SharedReach::default().get(), Reach::Room, "what is not known is taken for a loudspeaker");
    }

    #[test]
    fn a_port_with_headphones_in_it_makes_a_laptop_an_ear() {
        let of = |form, port| Reach::of(Some(form), Some(port), true);
        assert_eq!(of("internal", "analog-output-speaker"), Reach::Room);
        assert_eq!(of("internal", "analog-output-headphones"), Reach::Ear);
        assert_eq!(of("headset", "analog-output"), Reach::Ear);
        assert_eq!(Reach::of(None, Some("Jabra Headset"), true), Reach::Ear);
        assert_eq!(Reach::of(None, Some("hw:0,0"), true), Reach::Room, "hardware that says nothing");
        assert_eq!(Reach::of(None, None, false), Reach::Nowhere, "a virtual sink");
    }
}
