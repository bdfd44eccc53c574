//! One Opus decoder at 48 kHz. A voice has one for its whole life: every frame and every concealment goes through it, in
//! order, since a frame played elsewhere leaves it spoiled.

use super::{check, checked_channels};
use crate::{
    error::Error,
    time::{SAMPLE_RATE, Samples},
};
use opusic_sys as sys;
use std::{ffi::c_int, ptr::NonNull};

/// An Opus decoder. Owns its state; may move between threads. Real-time safe after `new`.
#[derive(Debug)]
pub struct Decoder {
    state: NonNull<sys::OpusDecoder>,
    channels: usize,
}

// SAFETY: the state is plain memory owned by this value alone; libopus keeps no thread-local data.
unsafe impl Send for Decoder {}

impl Decoder {
    /// A decoder that gives `channels` (1 or 2) whatever the packets hold. `complexity` 0..=10: from 5 on gaps are filled
    /// by a neural network (0.3 ms of processor time for 20 ms of gap).
    ///
    /// # Errors
    /// [`Error::Channels`] for another number, [`Error::Opus`] where memory is short.
    pub fn new(channels: u8, complexity: u8) -> Result<Self, Error> {
        let mut code: c_int = 0;
        // SAFETY: `code` outlives the call; rate and channels are values that libopus documents.
        let state = unsafe {
            sys::opus_decoder_create(SAMPLE_RATE as i32, checked_channels(channels)?, &raw mut code)
        };
        check("create a decoder", code)?;
        let state = NonNull::new(state)
            .ok_or(Error::Opus { doing: "create a decoder", code: sys::OPUS_ALLOC_FAIL })?;
        let decoder = Self { state, channels: usize::from(channels) };
        // SAFETY: this request takes one `opus_int32` by value.
        let code = unsafe {
            sys::opus_decoder_ctl(
                decoder.state.as_ptr(),
                sys::OPUS_SET_COMPLEXITY_REQUEST,
                c_int::from(complexity),
            )
        };
        check("set the decoder's complexity", code)?;
        Ok(decoder)
    }

    /// Decodes a packet into the front of `out` (interleaved) and says how many samples per channel it gave.
    ///
    /// # Errors
    /// [`Error::Opus`] for a broken packet, or one longer than `out`; the decoder goes on working.
    pub fn decode(&mut self, packet: &[u8], out: &mut [f32]) -> Result<Samples, Error> {
        if packet.is_empty() {
            return Err(Error::Opus { doing: "decode", code: sys::OPUS_INVALID_PACKET });
        }
        self.run("decode", Some(packet), false, out)
    }

    /// Fills `out` with the frame *before* `packet`, from the coarse copy within it.
    ///
    /// # Errors
    /// [`Error::Opus`] for a broken packet, or where `out` is no multiple of 2.5 ms.
    pub fn decode_fec(&mut self, packet: &[u8], out: &mut [f32]) -> Result<Samples, Error> {
        if packet.is_empty() {
            return Err(Error::Opus { doing: "decode FEC", code: sys::OPUS_INVALID_PACKET });
        }
        self.run("decode FEC", Some(packet), true, out)
    }

    /// Fills `out` with a guess at what a lost packet held. After speech-mode packets, ask for 10 ms or 20 ms.
    ///
    /// # Errors
    /// [`Error::Opus`] where `out` is no multiple of 2.5 ms.
    pub fn conceal(&mut self, out: &mut [f32]) -> Result<Samples, Error> {
        self.run("conceal", None, false, out)
    }

    /// Forgets the past, as for a new stream.
    ///
    /// # Errors
    /// None that libopus documents.
    pub fn reset(&mut self) -> Result<(), Error> {
        // SAFETY: this request takes no argument.
        let code = unsafe { sys::opus_decoder_ctl(self.state.as_ptr(), sys::OPUS_RESET_STATE) };
        check("reset", code).map(drop)
    }

    /// Keeps the whole state, to come back to it by [`Decoder::restore`].
    pub fn save(&self, to: &mut Saved) {
        if to.channels == self.channels {
            // SAFETY: a decoder's state is one block of `opus_decoder_get_size` bytes that a plain copy takes (opus.h says
            // so of `opus_decoder_create`); `to` was made for as many channels and is that long.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    self.state.as_ptr().cast::<u8>(),
                    to.bytes.as_mut_ptr().cast::<u8>(),
                    to.length,
                );
            }
            to.full = true;
        }
    }

    /// Goes back to a state that was saved from this decoder; does nothing where none was.
    pub fn restore(&mut self, from: &Saved) {
        if from.channels == self.channels && from.full {
            // SAFETY: as above, the other way; the bytes are a state since `full` says that one was saved.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    from.bytes.as_ptr().cast::<u8>(),
                    self.state.as_ptr().cast::<u8>(),
                    from.length,
                );
            }
        }
    }

    fn run(
        &mut self,
        doing: &'static str,
        packet: Option<&[u8]>,
        fec: bool,
        out: &mut [f32],
    ) -> Result<Samples, Error> {
        let (data, length) = packet.map_or((std::ptr::null(), 0), |p| (p.as_ptr(), p.len()));
        let length =
            i32::try_from(length).map_err(|_| Error::Opus { doing, code: sys::OPUS_INVALID_PACKET })?;
        let frame = c_int::try_from(out.len() / self.channels)
            .map_err(|_| Error::Opus { doing, code: sys::OPUS_BAD_ARG })?;
        // SAFETY: libopus reads `length` bytes of `data` (none where it is null) and writes at most `frame` samples for
        // each of the channels it was made with, which `out` holds.
        let given = unsafe {
            sys::opus_decode_float(self.state.as_ptr(), data, length, out.as_mut_ptr(), frame, fec.into())
        };
        Ok(Samples(check(doing, given)?.unsigned_abs()))
    }
}

/// Room for a decoder's state.
#[derive(Debug)]
pub struct Saved {
    channels: usize,
    /// In words, so that it is aligned as the state is.
    bytes: Vec<u64>,
    length: usize,
    full: bool,
}

impl Saved {
    /// Empty, for decoders of `channels`.
    ///
    /// # Errors
    /// [`Error::Channels`] for other than 1 or 2.
    pub fn new(channels: u8) -> Result<Self, Error> {
        // SAFETY: takes a number and gives a number.
        let length = unsafe { sys::opus_decoder_get_size(checked_channels(channels)?) };
        let length = usize::try_from(length).unwrap_or(0);
        Ok(Self { channels: channels.into(), bytes: vec![0; length.div_ceil(8)], length, full: false })
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: made by `opus_decoder_create`, destroyed once.
        unsafe { sys::opus_decoder_destroy(self.state.as_ptr()) };
    }
}
