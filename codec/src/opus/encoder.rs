//! One Opus encoder at 48 kHz.

use super::{Application, check, checked_channels};
use crate::{
    error::Error,
    time::{SAMPLE_RATE, Samples},
};
use opusic_sys as sys;
use std::{ffi::c_int, ptr::NonNull};

/// Longest Opus packet that the encoder is given room for, in bytes (RFC 6716 section 3.4 allows up to 1,275 a frame).
const MAX_OPUS_BYTES: usize = 640;

/// Knobs of an encoder. Taken over at the next frame, in the middle of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderSettings {
    /// Only read when the encoder is made.
    pub application: Application,
    /// Bits a second, 6,000..=510,000.
    pub bitrate: u32,
    /// Constant rate: sizes then say nothing of what is said (RFC 6562). Default true.
    pub constant_rate: bool,
    /// 0..=10; every step costs processor time and gains a little quality.
    pub complexity: u8,
    /// Puts a coarse copy of each frame into the next packet, out of the same bits. Needs `loss_percent` above 0.
    pub fec: bool,
    /// Loss that the encoder prepares for, 0..=100.
    pub loss_percent: u8,
    /// Past that DRED describes, in ms, 0..=1,040 in steps of 10; 0 is off.
    pub dred_ms: u16,
    /// Codes every frame without reference to those before. Ruins quality per bit: only around a switch of encoders.
    pub independent: bool,
}

impl Default for EncoderSettings {
    fn default() -> Self {
        Self {
            application: Application::LowDelay,
            bitrate: 64_000,
            constant_rate: true,
            complexity: 5,
            fec: false,
            loss_percent: 0,
            dred_ms: 0,
            independent: false,
        }
    }
}

/// An Opus encoder. Owns its state; may move between threads.
#[derive(Debug)]
pub struct Encoder {
    state: NonNull<sys::OpusEncoder>,
    channels: usize,
    lookahead: Samples,
}

// SAFETY: the state is plain memory owned by this value alone; libopus keeps no thread-local data.
unsafe impl Send for Encoder {}

impl Encoder {
    /// An encoder for 1 or 2 channels.
    ///
    /// # Errors
    /// [`Error::Channels`] for another number, [`Error::Opus`] where memory is short.
    pub fn new(channels: u8, application: Application) -> Result<Self, Error> {
        let mut code: c_int = 0;
        // SAFETY: `code` outlives the call; rate, channels and application are values that libopus documents.
        let state = unsafe {
            sys::opus_encoder_create(
                SAMPLE_RATE as i32,
                checked_channels(channels)?,
                application.code(),
                &raw mut code,
            )
        };
        check("create an encoder", code)?;
        let state = NonNull::new(state)
            .ok_or(Error::Opus { doing: "create an encoder", code: sys::OPUS_ALLOC_FAIL })?;
        let mut encoder = Self { state, channels: usize::from(channels), lookahead: Samples::ZERO };
        let mut lookahead: c_int = 0;
        // SAFETY: this request writes one `opus_int32` through the pointer, which is valid for that.
        let code = unsafe {
            sys::opus_encoder_ctl(encoder.state.as_ptr(), sys::OPUS_GET_LOOKAHEAD_REQUEST, &raw mut lookahead)
        };
        check("read the lookahead", code)?;
        encoder.lookahead = Samples(u32::try_from(lookahead).unwrap_or(0));
        Ok(encoder)
    }

    /// Takes new settings over.
    ///
    /// # Errors
    /// [`Error::Opus`] for a value outside its range.
    pub fn configure(&mut self, settings: &EncoderSettings) -> Result<(), Error> {
        self.set("set the bitrate", sys::OPUS_SET_BITRATE_REQUEST, settings.bitrate.min(510_000) as c_int)?;
        self.set("set the rate mode", sys::OPUS_SET_VBR_REQUEST, c_int::from(!settings.constant_rate))?;
        self.set("set the complexity", sys::OPUS_SET_COMPLEXITY_REQUEST, settings.complexity.into())?;
        self.set(
            "set the expected loss",
            sys::OPUS_SET_PACKET_LOSS_PERC_REQUEST,
            settings.loss_percent.into(),
        )?;
        self.set("set FEC", sys::OPUS_SET_INBAND_FEC_REQUEST, settings.fec.into())?;
        self.set("set DRED", sys::OPUS_SET_DRED_DURATION_REQUEST, c_int::from(settings.dred_ms / 10))?;
        self.set("set the prediction", sys::OPUS_SET_PREDICTION_DISABLED_REQUEST, settings.independent.into())
    }

    /// Forgets the past, keeps the settings.
    ///
    /// # Errors
    /// None that libopus documents.
    pub fn reset(&mut self) -> Result<(), Error> {
        // SAFETY: this request takes no argument.
        let code = unsafe { sys::opus_encoder_ctl(self.state.as_ptr(), sys::OPUS_RESET_STATE) };
        check("reset", code).map(drop)
    }

    /// How far what is heard lies behind what was put in: 2.5 ms for low delay, 6.5 ms for speech.
    #[must_use]
    pub fn lookahead(&self) -> Samples {
        self.lookahead
    }

    /// Encodes one frame of 2.5, 5, 10 or 20 ms of interleaved samples; the packet replaces what `packet` held.
    ///
    /// # Errors
    /// [`Error::Opus`] where the number of samples is no such frame.
    pub fn encode(&mut self, pcm: &[f32], packet: &mut Vec<u8>) -> Result<(), Error> {
        packet.clear();
        packet.resize(MAX_OPUS_BYTES, 0);
        let frame = pcm.len() / self.channels;
        if pcm.len() != frame * self.channels {
            return Err(Error::Opus { doing: "encode", code: sys::OPUS_BAD_ARG });
        }
        // SAFETY: libopus reads `frame` samples for each of the channels it was made with, which is `pcm`'s length, and
        // writes at most `MAX_OPUS_BYTES`, which is `packet`'s length. Lengths it cannot encode it refuses unread.
        let written = unsafe {
            sys::opus_encode_float(
                self.state.as_ptr(),
                pcm.as_ptr(),
                frame as c_int,
                packet.as_mut_ptr(),
                MAX_OPUS_BYTES as i32,
            )
        };
        match check("encode", written) {
            Ok(written) => {
                packet.truncate(written as usize);
                Ok(())
            }
            Err(error) => {
                packet.clear();
                Err(error)
            }
        }
    }

    fn set(&mut self, doing: &'static str, request: c_int, value: c_int) -> Result<(), Error> {
        // SAFETY: every request passed here takes one `opus_int32` by value.
        check(doing, unsafe { sys::opus_encoder_ctl(self.state.as_ptr(), request, value) }).map(drop)
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        // SAFETY: made by `opus_encoder_create`, destroyed once.
        unsafe { sys::opus_encoder_destroy(self.state.as_ptr()) };
    }
}
