//! Opus 1.6 behind a safe face: what the `opus` crate offers for packets, and beside it what that crate lacks (decoder
//! complexity, hence deep concealment; DRED). Both link the same bundled libopus.
//!
//! The only place of the media engine where `unsafe` is allowed: libopus is C. Every pointer passed to it comes from a
//! Rust slice whose length is checked against what libopus will read or write.
#![allow(unsafe_code)]
#![deny(clippy::undocumented_unsafe_blocks)]

mod decoder;
mod encoder;

pub use decoder::{Decoder, Saved};
pub use encoder::{Encoder, EncoderSettings};

use crate::{
    error::Error,
    time::{SAMPLE_RATE, Samples},
};
use std::ffi::c_int;

/// What libopus optimizes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Application {
    /// Speech (SILK and hybrid): most quality per bit, best concealment; 6.5 ms lookahead. Frames of 10 ms and more.
    Voip,
    /// CELT alone: 2.5 ms lookahead, frames from 2.5 ms on; wants 48 kb/s and more.
    LowDelay,
}

impl Application {
    fn code(self) -> c_int {
        match self {
            Self::Voip => opus::Application::Voip as c_int,
            Self::LowDelay => opus::Application::LowDelay as c_int,
        }
    }
}

/// How far what is heard lies behind what was put in, by [`Application`].
const SPEECH_LOOKAHEAD: Samples = Samples(312);
const LOW_DELAY_LOOKAHEAD: Samples = Samples::MS_2_5;

/// What an Opus packet says of itself in its first byte (RFC 6716 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketInfo {
    /// Length of the audio in it.
    pub duration: Samples,
    /// Coded by SILK (alone or hybrid): concealment then goes in steps of 10 ms.
    pub speech_mode: bool,
    /// Whether it carries a coarse copy of the packet before it (LBRR).
    pub has_fec: bool,
}

impl PacketInfo {
    /// Age of the frame's first sample once it is complete, in steps of 2.5 ms, rounded up, if the coder that it was made by
    /// is the one for its mode ([`Encoder::lookahead`]).
    #[must_use]
    pub fn span(&self) -> u8 {
        let lookahead = if self.speech_mode { SPEECH_LOOKAHEAD } else { LOW_DELAY_LOOKAHEAD };
        self.duration.plus(lookahead).0.div_ceil(Samples::MS_2_5.0) as u8
    }
}

/// Reads an Opus packet's own description; `None` where it is none, or not of 2.5, 5, 10 or 20 ms.
#[must_use]
pub fn inspect(packet: &[u8]) -> Option<PacketInfo> {
    let duration = u32::try_from(opus::packet::get_nb_samples(packet, SAMPLE_RATE).ok()?).ok()?;
    if ![120, 240, 480, 960].contains(&duration) {
        return None;
    }
    let speech_mode = *packet.first()? & 0x80 == 0;
    let length = i32::try_from(packet.len()).ok()?;
    // SAFETY: reads at most `length` bytes of `packet`, which is that long and not empty.
    let has_fec = speech_mode && unsafe { opusic_sys::opus_packet_has_lbrr(packet.as_ptr(), length) } == 1;
    Some(PacketInfo { duration: Samples(duration), speech_mode, has_fec })
}

/// The version of libopus in this binary, as it names itself.
#[must_use]
pub fn version() -> &'static str {
    opus::version()
}

fn check(doing: &'static str, code: c_int) -> Result<c_int, Error> {
    if code < 0 { Err(Error::Opus { doing, code }) } else { Ok(code) }
}

fn checked_channels(channels: u8) -> Result<c_int, Error> {
    if (1..=2).contains(&channels) { Ok(c_int::from(channels)) } else { Err(Error::Channels(channels)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A voiced sound: harmonics of 140 Hz with a slow swell.
    fn voice(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| {
                let t = i as f32 / 48_000.0;
                let swell = 0.6 + 0.4 * (t * 4.0 * std::f32::consts::TAU).sin();
                (1..8).map(|h| (t * 140.0 * h as f32 * std::f32::consts::TAU).sin() / h as f32).sum::<f32>()
                    * 0.15
                    * swell
            })
            .collect()
    }

    /// SNR in dB of `heard` against `said` delayed by `delay` samples.
    fn snr(said: &[f32], heard: &[f32], delay: usize) -> f32 {
        let (mut signal, mut noise) = (0.0, 0.0);
        for i in 4800..heard.len() {
            signal += said[i - delay].powi(2);
            noise += (heard[i] - said[i - delay]).powi(2);
        }
        10.0 * (signal / noise).log10()
    }

    fn through(settings: EncoderSettings, frame: Samples, said: &[f32]) -> (Vec<f32>, Vec<usize>, Samples) {
        let mut encoder = Encoder::new(1, settings.application).unwrap();
        encoder.configure(&settings).unwrap();
        let mut decoder = Decoder::new(1, 5).unwrap();
        let (mut heard, mut sizes) = (Vec::new(), Vec::new());
        let mut packet = Vec::new();
        for pcm in said.chunks_exact(frame.0 as usize) {
            encoder.encode(pcm, &mut packet).unwrap();
            assert_eq!(inspect(&packet).unwrap().duration, frame);
            sizes.push(packet.len());
            let mut out = vec![0.0; frame.0 as usize];
            assert_eq!(decoder.decode(&packet, &mut out).unwrap(), frame);
            heard.extend(out);
        }
        (heard, sizes, encoder.lookahead())
    }

    #[test]
    fn voice_comes_back_after_exactly_the_lookahead() {
        let said = voice(48_000);
        for (application, frame, lookahead, bitrate) in [
            (Application::LowDelay, Samples::MS_2_5, 120, 128_000),
            (Application::LowDelay, Samples::MS_5, 120, 64_000),
            (Application::Voip, Samples::MS_10, 312, 32_000),
            (Application::Voip, Samples::MS_20, 312, 24_000),
        ] {
            let settings = EncoderSettings { application, bitrate, ..EncoderSettings::default() };
            let (heard, sizes, measured) = through(settings, frame, &said);
            assert_eq!(measured.0, lookahead);
            assert!(sizes.iter().all(|s| *s == sizes[0]), "constant rate means constant sizes");
            let best = (lookahead as usize - 48..lookahead as usize + 48)
                .max_by(|a, b| snr(&said, &heard, *a).total_cmp(&snr(&said, &heard, *b)))
                .unwrap();
            // The speech coder's own resampler shifts phases a little, by frequency.
            assert!(best.abs_diff(lookahead as usize) <= 16, "{application:?} {frame:?}: aligned at {best}");
            let quality = snr(&said, &heard, best);
            assert!(
                quality > if application == Application::Voip { 4.0 } else { 8.0 },
                "{application:?} {frame:?}: {quality} dB"
            );
        }
    }

    #[test]
    fn a_coarse_copy_of_the_packet_before_can_be_heard() {
        let said = voice(48_000);
        let settings = EncoderSettings {
            application: Application::Voip,
            bitrate: 32_000,
            fec: true,
            loss_percent: 20,
            ..EncoderSettings::default()
        };
        let mut encoder = Encoder::new(1, Application::Voip).unwrap();
        encoder.configure(&settings).unwrap();
        let packets: Vec<Vec<u8>> = said
            .chunks_exact(960)
            .map(|pcm| {
                let mut packet = Vec::new();
                encoder.encode(pcm, &mut packet).unwrap();
                packet
            })
            .collect();
        assert!(inspect(&packets[30]).unwrap().has_fec);
        let mut decoder = Decoder::new(1, 5).unwrap();
        let mut out = vec![0.0; 960];
        for packet in &packets[..29] {
            decoder.decode(packet, &mut out).unwrap();
        }
        assert_eq!(decoder.decode_fec(&packets[30], &mut out).unwrap(), Samples::MS_20);
        assert!(out.iter().map(|s| s * s).sum::<f32>() / 960.0 > 1e-3, "the lost frame is audible");
    }

    #[test]
    fn concealment_sounds_on_and_garbage_is_an_error() {
        let said = voice(24_000);
        let mut encoder = Encoder::new(1, Application::LowDelay).unwrap();
        encoder.configure(&EncoderSettings::default()).unwrap();
        let mut decoder = Decoder::new(1, 5).unwrap();
        let mut out = vec![0.0; 240];
        let mut packet = Vec::new();
        for pcm in said.chunks_exact(240) {
            encoder.encode(pcm, &mut packet).unwrap();
            decoder.decode(&packet, &mut out).unwrap();
        }
        decoder.conceal(&mut out[..120]).unwrap();
        assert!(out[..120].iter().map(|s| s * s).sum::<f32>() / 120.0 > 1e-4);
        assert!(decoder.decode(&[], &mut out).is_err());
        assert!(decoder.decode(&[0xff, 0xff, 0xff], &mut out).is_err());
        assert!(decoder.conceal(&mut out[..100]).is_err(), "not a multiple of 2.5 ms");
        assert_eq!(inspect(&[]), None);
        assert_eq!(inspect(&[0x1b, 0x05]), None, "5 frames of 60 ms");
    }

    #[test]
    fn a_decoder_taken_back_to_an_earlier_state_decodes_as_if_nothing_had_been_between() {
        let said = voice(24_000);
        let mut encoder = Encoder::new(1, Application::LowDelay).unwrap();
        encoder.configure(&EncoderSettings::default()).unwrap();
        let mut packets = vec![Vec::new(); 100];
        for (pcm, packet) in said.chunks_exact(240).zip(&mut packets) {
            encoder.encode(pcm, packet).unwrap();
        }
        let (mut straight, mut back) = (Decoder::new(1, 5).unwrap(), Decoder::new(1, 5).unwrap());
        let mut saved = Saved::new(1).unwrap();
        let (mut wanted, mut got) = (vec![0.0; 240], vec![0.0; 240]);
        for (n, packet) in packets.iter().enumerate() {
            if n == 50 {
                back.save(&mut saved);
                for _ in 0..5 {
                    back.conceal(&mut got).unwrap();
                }
                back.restore(&saved);
            }
            straight.decode(packet, &mut wanted).unwrap();
            back.decode(packet, &mut got).unwrap();
            assert_eq!(wanted, got, "packet {n}");
        }
    }

    #[test]
    fn only_one_and_two_channels_exist() {
        assert_eq!(Encoder::new(3, Application::Voip).err(), Some(Error::Channels(3)));
        assert_eq!(Decoder::new(0, 5).err(), Some(Error::Channels(0)));
        assert!(version().contains("1.6"));
    }
}
