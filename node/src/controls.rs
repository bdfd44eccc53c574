//! What a person sets while talking, and the gate that follows from it: when our microphone is open.
//!
//! Pure: the gate is fed with the loudness of each captured block and says whether it is sent. A closed gate silences the
//! voice before the encoder; packets go on, so that nobody can tell from them.

use std::ops::RangeInclusive;

use hallway_codec::{Dbov, Delay, Profile};
use serde::{Deserialize, Serialize};

use crate::audio::VoiceChoice;

/// Loudness at which voice activation may open the microphone, dB below full scale.
pub const THRESHOLDS: RangeInclusive<i8> = -80..=-10;
/// How far one person's volume may be turned, dB.
pub const VOLUMES_DB: RangeInclusive<i8> = -40..=12;
/// How long voice activation stays open after the last loud block, in frames of 48 kHz: 400 ms, longer than the pauses
/// between words.
pub const HANG_FRAMES: u32 = 19_200;

/// When the microphone is open, unless muted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speak {
    /// Always.
    #[default]
    Always,
    /// While the key is held.
    PushToTalk,
    /// While somebody speaks into it.
    Voice,
}

/// What is set about our own voice and ears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Controls {
    /// Silent whatever else is set.
    pub muted: bool,
    /// Nobody is heard, and we are silent too.
    pub deafened: bool,
    /// When the microphone is open otherwise.
    pub speak: Speak,
    /// Where voice activation opens, dB below full scale. Default −45: below quiet speech, above a fan.
    pub threshold_dbov: i8,
    /// The push-to-talk key is held.
    pub pressed: bool,
    /// What is done to our voice before it is encoded.
    pub processing: VoiceChoice,
    /// Voice or music.
    pub profile: Profile,
    /// How much delay is taken for how much clarity.
    pub delay: Delay,
}

impl Default for Controls {
    fn default() -> Self {
        Self {
            muted: false,
            deafened: false,
            speak: Speak::Always,
            threshold_dbov: -45,
            pressed: false,
            processing: VoiceChoice::default(),
            profile: Profile::default(),
            delay: Delay::default(),
        }
    }
}

/// The gate before the encoder.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gate {
    controls: Controls,
    /// Frames for which voice activation stays open.
    hanging: u32,
}

impl Gate {
    /// From the next block on.
    pub fn set(&mut self, controls: Controls) {
        self.controls = controls;
    }

    /// What is set.
    pub fn controls(&self) -> Controls {
        self.controls
    }

    /// Whether this block of `frames` frames is sent. Real-time safe.
    pub fn admits(&mut self, level: Dbov, frames: u32) -> bool {
        let loud = level.db() >= self.controls.threshold_dbov;
        self.hanging = if loud { HANG_FRAMES } else { self.hanging.saturating_sub(frames) };
        let Controls { muted, deafened, speak, pressed, .. } = self.controls;
        !muted
            && !deafened
            && match speak {
                Speak::Always => true,
                Speak::PushToTalk => pressed,
                Speak::Voice => self.hanging > 0,
            }
    }
}

/// How one person is heard here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hearing {
    /// dB over what was sent.
    pub volume_db: i8,
    /// Not heard.
    pub muted: bool,
}

impl Hearing {
    /// What the person's samples are multiplied with.
    pub fn gain(self) -> f32 {
        if self.muted { 0.0 } else { 10f32.powf(f32::from(self.volume_db) / 20.0) }
    }
}

/// Multiplies a block with a gain that moves from `from` to `to` over the block, so that turning does not click.
pub fn turn(block: &mut [f32], channels: usize, from: f32, to: f32) {
    if from == 1.0 && to == 1.0 {
        return;
    }
    let frames = (block.len() / channels.max(1)).max(1);
    let step = (to - from) / frames as f32;
    let mut gain = from;
    for frame in block.chunks_mut(channels.max(1)) {
        gain += step;
        for sample in frame {
            *sample *= gain;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOUD: Dbov = Dbov::new(-20);
    const QUIET: Dbov = Dbov::new(-60);

    fn gate(controls: Controls) -> Gate {
        Gate { controls, hanging: 0 }
    }

    #[test]
    fn muted_and_deafened_silence_every_way_of_speaking() {
        for speak in [Speak::Always, Speak::PushToTalk, Speak::Voice] {
            let open = Controls { speak, pressed: true, ..Controls::default() };
            assert!(gate(open).admits(LOUD, 120));
            assert!(!gate(Controls { muted: true, ..open }).admits(LOUD, 120));
            assert!(!gate(Controls { deafened: true, ..open }).admits(LOUD, 120));
        }
    }

    #[test]
    fn push_to_talk_follows_the_key_at_once() {
        let held = Controls { speak: Speak::PushToTalk, pressed: true, ..Controls::default() };
        let mut gate = gate(held);
        assert!(gate.admits(QUIET, 120));
        gate.set(Controls { pressed: false, ..held });
        assert!(!gate.admits(LOUD, 120));
    }

    #[test]
    fn voice_activation_opens_with_the_first_loud_block_and_outlasts_the_pauses_between_words() {
        let mut gate = gate(Controls { speak: Speak::Voice, ..Controls::default() });
        assert!(!gate.admits(QUIET, 120));
        assert!(gate.admits(LOUD, 120));
        let open = (0..400).take_while(|_| gate.admits(QUIET, 120)).count();
        assert_eq!(open, HANG_FRAMES as usize / 120 - 1);
    }

    #[test]
    fn a_turn_has_no_step_and_ends_where_it_should() {
        let mut block = [1.0; 240];
        turn(&mut block, 2, 1.0, 0.0);
        let steps: Vec<f32> = block.chunks(2).map(|f| f[0]).collect();
        assert!(steps.windows(2).all(|w| w[0] - w[1] < 0.01 && w[0] > w[1]));
        assert!(block[238].abs() < 1e-4 && block[238] == block[239]);
        let mut whole = [0.3; 8];
        turn(&mut whole, 1, 1.0, 1.0);
        assert_eq!(whole, [0.3; 8]);
    }

    #[test]
    fn six_decibels_are_twice() {
        assert!((Hearing { volume_db: 6, muted: false }.gain() - 1.995).abs() < 0.01);
        assert_eq!(Hearing { volume_db: 6, muted: true }.gain(), 0.0);
        assert_eq!(Hearing::default().gain(), 1.0);
    }
}
