//! WAV files on both sides of a call: [`load`] a voice, [`Recording`] what was heard.

mod load;
mod record;

pub use load::{LoadError, MAX_CLIP_SECONDS, MAX_RATE_HZ, MIN_RATE_HZ};
pub use record::MAX_RECORDING_BYTES;

pub(crate) use load::load;
pub(crate) use record::Recording;
