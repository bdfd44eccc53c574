//! Discontinuous transmission: whoever has been quiet for a while need not be sent packet by packet.
//!
//! A pause begins late, long after the last word, so that neither syllables nor words can be told from when packets are
//! sent (RFC 6562); it ends at once. That somebody takes turns can be told, so it is off unless asked for.

use crate::{levels::mean_square, time::Samples};

/// Quiet for so long, and a pause begins.
pub const PAUSE_AFTER: Samples = Samples::from_ms(1_000);
/// Packets say so beforehand for so long, in case some of them are lost.
const SAID_BEFORE: Samples = Samples::from_ms(100);
/// In a pause a packet goes out so often: it keeps the path and the listener's clock, and brings the room's noise.
pub const PAUSE_EVERY: Samples = Samples::from_ms(100);
/// What is louder than the room by so much, in power, is a voice: 9 dB.
const ABOVE_ROOM: f32 = 8.0;
/// A room is at least so loud, in power: -75 dB. Below it nothing is a voice.
const QUIETEST_ROOM: f32 = 3.2e-8;
/// In a louder room, from -45 dB on, there are no pauses: its noise belongs to what is heard.
const LOUDEST_ROOM: f32 = 3.2e-5;
/// The room is the quietest average over about so much, in samples.
const AVERAGED: f32 = 50.0 * 48.0;
/// What was taken for the room rises by 3 dB a second, should the room become louder.
const RISES: f32 = 0.69 / 48_000.0;

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is sent.
    Speaks,
    /// It is sent, and says that a pause may follow.
    Quiet,
    /// It is not sent.
    Rests,
}

/// Tells voice from room.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    average: Option<f32>,
    room: f32,
    /// Samples since the last that was a voice.
    quiet: u64,
    /// Samples since the last packet.
    unsent: u32,
}

impl Pauses {
    /// Takes each frame in order.
    pub(super) fn judge(&mut self, pcm: &[f32], frame: Samples) -> Turn {
        let power = mean_square(pcm);
        let length = frame.0 as f32;
        let average = self.average.map_or(power, |a| a + (power - a) * (length / AVERAGED).min(1.0));
        self.room = match self.average.replace(average) {
            Some(_) => (self.room * (1.0 + RISES * length)).min(average),
            None => average,
        }
        .max(QUIETEST_ROOM);
        if power > self.room * ABOVE_ROOM || self.room > LOUDEST_ROOM {
            (self.quiet, self.unsent) = (0, 0);
            return Turn::Speaks;
        }
        self.quiet += u64::from(frame.0);
        if self.quiet <= u64::from(PAUSE_AFTER.0) {
            let soon = self.quiet + u64::from(SAID_BEFORE.0) > u64::from(PAUSE_AFTER.0);
            return if soon { Turn::Quiet } else { Turn::Speaks };
        }
        self.unsent += frame.0;
        if self.unsent < PAUSE_EVERY.0 {
            return Turn::Rests;
        }
        self.unsent = 0;
        Turn::Quiet
    }

    /// Whether a pause has begun and not ended.
    pub(super) fn rests(&self) -> bool {
        self.quiet > u64::from(PAUSE_AFTER.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Judges seconds of noise of this amplitude in frames of 5 ms; gives how many were sent.
    fn sent(pauses: &mut Pauses, seconds: f32, amplitude: f32) -> usize {
        let mut seed = 1u32;
        let mut noise = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed as f32 / u32::MAX as f32 * 2.0 - 1.0) * amplitude
        };
        (0..(seconds * 200.0) as usize)
            .filter(|_| {
                let pcm: Vec<f32> = (0..240).map(|_| noise()).collect();
                pauses.judge(&pcm, Samples::MS_5) != Turn::Rests
            })
            .count()
    }

    #[test]
    fn a_quiet_room_is_a_pause_after_a_second_and_a_voice_ends_it_at_once() {
        let mut pauses = Pauses::default();
        assert_eq!(sent(&mut pauses, 1.0, 1e-3), 200);
        assert_eq!(sent(&mut pauses, 10.0, 1e-3), 100);
        assert_eq!(sent(&mut pauses, 1.0, 1e-1), 200);
        assert_eq!(sent(&mut pauses, 0.9, 1e-3), 180, "between words nothing is left out");
        assert_eq!(sent(&mut pauses, 1.0, 3e-2), 200);
    }

    #[test]
    fn a_muted_microphone_pauses_and_a_loud_room_never_does() {
        assert_eq!(sent(&mut Pauses::default(), 11.0, 0.0), 300);
        assert_eq!(sent(&mut Pauses::default(), 11.0, 2e-2), 2_200);
    }

    #[test]
    fn a_room_that_becomes_louder_is_learnt_within_seconds() {
        let mut pauses = Pauses::default();
        sent(&mut pauses, 5.0, 2e-4);
        assert_eq!(sent(&mut pauses, 1.0, 3e-3), 200, "23 dB more are taken for a voice at first");
        sent(&mut pauses, 6.0, 3e-3);
        assert!(sent(&mut pauses, 1.0, 3e-3) <= 11);
    }
}
