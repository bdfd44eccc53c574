//! What is played is captured again: the far end of a call with oneself.

use std::time::Duration;

use rtrb::{Consumer, Producer, RingBuffer};

use super::Error;
use super::clock::RATE_HZ;

/// Longest time that a mirror keeps sound back.
pub const MAX_MIRROR: Duration = Duration::from_secs(10);
/// Sound that may wait beyond that, for ends that are not served in the same moment: what cards make up for, twice.
const SLACK_FRAMES: usize = 2 * super::MAX_LATE_FRAMES as usize + super::MAX_PERIOD as usize;

/// The side that is played at.
#[derive(Debug)]
pub(crate) struct Glass(Producer<f32>);

/// The side that is captured.
#[derive(Debug)]
pub(crate) struct Reflection(Consumer<f32>);

/// Both sides. What is written comes out `after` so long.
///
/// # Errors
/// [`Error::Range`] for more than [`MAX_MIRROR`].
pub(crate) fn mirror(channels: u16, after: Duration) -> Result<(Glass, Reflection), Error> {
    let ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
    if after > MAX_MIRROR {
        let allowed = format!("0 to {} ms", MAX_MIRROR.as_millis());
        return Err(Error::Range { what: "a mirror's delay in ms", value: ms, allowed });
    }
    let frames = (after.as_secs_f64() * f64::from(RATE_HZ)).round() as usize;
    let channels = usize::from(channels);
    let (mut glass, reflection) = RingBuffer::new((frames + SLACK_FRAMES) * channels);
    for _ in 0..frames * channels {
        let _ = glass.push(0.0);
    }
    Ok((Glass(glass), Reflection(reflection)))
}

impl Glass {
    /// What does not fit is not reflected. Real-time safe.
    pub(crate) fn write(&mut self, pcm: &[f32]) {
        for sample in pcm {
            let _ = self.0.push(*sample);
        }
    }

    pub(crate) fn write_silence(&mut self, samples: u64) {
        for _ in 0..samples.min(self.0.slots() as u64) {
            let _ = self.0.push(0.0);
        }
    }
}

impl Reflection {
    /// Silence where nothing was played. Real-time safe.
    pub(crate) fn fill(&mut self, out: &mut [f32]) {
        for sample in out {
            *sample = self.0.pop().unwrap_or(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_played_comes_back_after_so_long_and_nothing_is_silence() {
        let (mut glass, mut reflection) = mirror(1, Duration::from_millis(1)).unwrap();
        glass.write(&[0.5; 30]);
        let mut out = [9.0; 100];
        reflection.fill(&mut out);
        assert!(out[..48].iter().all(|s| *s == 0.0) && out[48..78].iter().all(|s| *s == 0.5));
        assert!(out[78..].iter().all(|s| *s == 0.0));
        assert!(mirror(1, MAX_MIRROR + Duration::from_millis(1)).is_err());
    }
}
