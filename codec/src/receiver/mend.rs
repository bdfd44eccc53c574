//! What comes too late to be heard still mends what follows. A decoder that had to guess goes on from its guess, and with
//! low-delay frames that is heard long after the gap. So its state is kept where a gap begins; if the missing frames come
//! before much else was decoded, the decoder goes back, hears them, and goes on as if they had been in time.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::Receiver;
use crate::{
    error::Error,
    opus::{Decoder, Saved},
    time::Samples,
};

/// A gap that began longer ago is not mended.
pub const MEND_WITHIN: Samples = Samples::from_ms(60);
/// Length of the transition from what the spoiled decoder makes of a frame to what the mended one does.
const FADE: usize = 120;

/// Where the gap began, and the decoder as it was then.
#[derive(Debug)]
pub(super) struct Mend {
    at: Option<i64>,
    state: Saved,
    /// The frame as the spoiled decoder gives it.
    spoiled: Vec<f32>,
}

impl Mend {
    pub(super) fn new(channels: u8) -> Result<Self, Error> {
        let room = Samples::MS_20.interleaved(channels.into());
        Ok(Self { at: None, state: Saved::new(channels)?, spoiled: vec![0.0; room] })
    }

    /// A gap begins at this position.
    pub(super) fn begin(&mut self, at: i64, decoder: &Decoder) {
        decoder.save(&mut self.state);
        self.at = Some(at);
    }

    /// What was kept is of another stream.
    pub(super) fn forget(&mut self) {
        self.at = None;
    }

    /// Fades from the spoiled frame into the same frame mended.
    pub(super) fn blend(&self, frame: &mut [f32], channels: usize) {
        let pairs = frame.chunks_exact_mut(channels).zip(self.spoiled.chunks_exact(channels));
        for (i, (mended, spoiled)) in pairs.take(FADE).enumerate() {
            let weight = (i + 1) as f32 / (FADE + 1) as f32;
            for (m, s) in mended.iter_mut().zip(spoiled) {
                *m = *m * weight + s * (1.0 - weight);
            }
        }
    }
}

impl Receiver {
    /// Before the frame at `at` is decoded: takes the decoder back and through all that has come since the gap began, if
    /// all of it has. True where that was done.
    pub(super) fn mend(&mut self, at: i64) -> bool {
        let Some(from) = self.mend.at else { return false };
        if at < from || at - from > i64::from(MEND_WITHIN.0) {
            self.mend.at = None;
            return false;
        }
        let mut reached = from;
        while reached < at {
            let Some((length, _)) = self.packets.came(reached) else { return false };
            reached += i64::from(length.0);
        }
        let Some((_, opus)) = self.packets.came(at).filter(|_| reached == at) else { return false };
        self.mend.at = None;
        let from_guess = self.stream.is_some_and(|s| at < s.decoded);
        let spoiled = if from_guess {
            // Part of the frame is past: the guess goes on a little, to fade out of.
            let most =
                if self.stream.is_some_and(|s| s.speech_mode) { Samples::MS_10 } else { Samples::MS_2_5 };
            let room = self.mend.spoiled.get_mut(..most.interleaved(self.channels)).unwrap_or_default();
            self.decoder.conceal(room)
        } else {
            self.decoder.decode(opus, &mut self.mend.spoiled)
        };
        if spoiled.is_err() {
            return false;
        }
        self.decoder.restore(&self.mend.state);
        let mut reached = from;
        while let Some((length, opus)) = self.packets.came(reached).filter(|_| reached < at) {
            let _ = self.decoder.decode(opus, &mut self.scratch);
            reached += i64::from(length.0);
        }
        self.totals.mended += 1;
        true
    }
}
