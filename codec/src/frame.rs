//! The voice packet: what lies inside a sealed media datagram.
//!
//! ```text
//!   0        kind           1 = voice; other kinds are ignored
//!   1        version        high nibble: 1; low nibble: channels that the speaker captures, 1 or 2
//!   2..6     sequence       counts packets of this speaker, wraps
//!   6..10    media_time     position of the first sample heard from the main frame, speaker's 48 kHz clock, wraps
//!  10..14    captured       moment that sample was captured, speaker's monotonic clock, us, low 32 bits
//!  14..16    capture_delay  from there to the start of encoding, 10 us
//!  16..18    encode_delay   from there until the packet was done, lookahead counted, 10 us
//!  18        level          low seven bits: dB below full scale (RFC 6464 section 3); high bit: the speaker is quiet, and a
//!                           pause may follow
//!  19        span           age of a frame's first sample once the frame is complete, 2.5 ms steps, rounded up
//!  20        coming         the span that is in force soon; as `span` where nothing changes
//!  21        frames         1..=9: the main frame, then whole older frames
//!  22..      each frame     back (1), length (2), then that many bytes of one Opus packet (RFC 6716)
//!            padding        anything after the last frame: makes all packets of one policy equally long (RFC 6562)
//! ```
//!
//! Where packets carry no copies, most of them are *brief*: what is left out changes slowly, or stands in the first byte of
//! the Opus packet. A whole one comes now and then ([`WHOLE_EVERY`]), and wherever anything changes.
//!
//! ```text
//!   0        kind           2 = brief voice
//!   1..3     sequence       its low 16 bits
//!   3..5     media_time     its low 16 bits
//!   5..      one Opus packet, to the end
//! ```
//!
//! All numbers are big-endian. `back` says in 2.5 ms steps how far a frame lies before `media_time`; it is 0 for the main
//! frame and only for it. Channels and duration of a frame stand in its own first byte (RFC 6716 section 3.1).
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::{
    levels::Dbov,
    opus::inspect,
    time::{MediaTime, Samples},
};

/// Longest packet, in bytes, before sealing. Leaves room for sealing and QUIC within 1,100 bytes.
pub const MAX_PACKET_BYTES: usize = 1_000;
/// Most copies of older frames in a packet.
pub const MAX_COPIES: usize = 8;
/// Bytes before the first frame.
pub const HEADER_BYTES: usize = 22;
/// Bytes of a brief packet before its frame.
pub const BRIEF_HEADER_BYTES: usize = 5;
/// Of packets without copies one in so many is whole: a newcomer knows of its delay after a third of a second.
pub const WHOLE_EVERY: u32 = 64;
/// Bytes before each frame.
pub const FRAME_HEADER_BYTES: usize = 3;
/// Payload kind of voice.
pub const KIND_VOICE: u8 = 1;
/// Payload kind of voice in a brief packet.
pub const KIND_BRIEF: u8 = 2;
/// Version of the layout above.
pub const VERSION: u8 = 1;
/// Bit of the level that says that a pause may follow.
const QUIET: u8 = 0x80;
/// Unit of `span`, `coming` and `back`.
pub const STEP: Samples = Samples::MS_2_5;

/// A packet that cannot be played. The call goes on: count it, read the next.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// Ends before its own lengths do.
    #[error("packet of {0} bytes is cut short")]
    Truncated(usize),
    /// Longer than [`MAX_PACKET_BYTES`].
    #[error("packet of {0} bytes is too long")]
    Oversize(usize),
    /// A kind of payload that this version does not know. Not a fault: the peer may be newer.
    #[error("payload kind {0} is unknown")]
    UnknownKind(u8),
    /// A voice packet of another version. Not a fault: the peer may be newer.
    #[error("voice version {0} is unknown")]
    UnknownVersion(u8),
    /// Neither one channel nor two.
    #[error("{0} channels")]
    Channels(u8),
    /// No frame, or more than [`MAX_COPIES`] copies.
    #[error("{0} frames in a packet")]
    FrameCount(u8),
    /// An empty frame, a copy that is not older than the main frame, or a main frame that is.
    #[error("a frame has no place in time")]
    Misplaced,
    /// Not an Opus packet of 2.5, 5, 10 or 20 ms.
    #[error("a frame is not Opus of 2.5 to 20 ms")]
    NotOpus,
}

/// Everything in a packet but its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Channels that the speaker captures, 1 or 2.
    pub channels: u8,
    /// Counts this speaker's packets; wraps.
    pub sequence: u32,
    /// Position of the first sample heard from the main frame.
    pub media_time: MediaTime,
    /// When that sample was captured: low 32 bits of the speaker's monotonic clock in microseconds.
    pub captured_us: u32,
    /// From there to the start of encoding, in units of 10 us (at most 655 ms).
    pub capture_delay: u16,
    /// From there until the packet was done, lookahead counted, in units of 10 us.
    pub encode_delay: u16,
    /// Loudness of the main frame.
    pub level: Dbov,
    /// Frame and lookahead: age of a frame's first sample once it is complete, in steps of 2.5 ms, rounded up.
    pub span: u8,
    /// The span that is in force soon, so that the listener can make room before the frames grow.
    pub coming: u8,
    /// The speaker is quiet: where nothing comes for what follows the main frame, it is a pause.
    pub quiet: bool,
}

impl Header {
    /// What a brief packet with a frame of this length means after `known`, the header of a packet shortly before: the high
    /// bits of its numbers, and when it was captured. Its position is the one nearest to where the stream would be had it
    /// gone on, frame by frame.
    #[must_use]
    fn completed(self, known: &Self, frame: Samples) -> Self {
        let ahead = i32::from((self.sequence.wrapping_sub(known.sequence) as u16).cast_signed());
        let length = i32::try_from(frame.0).unwrap_or(0);
        let expected = MediaTime(known.media_time.0.wrapping_add_signed(ahead.saturating_mul(length)));
        let media_time =
            MediaTime(expected.0.wrapping_add_signed(self.media_time.since_low(expected).into()));
        let media = media_time.since(known.media_time);
        // 125 us are 6 samples.
        let captured = i64::from(media).saturating_mul(125).wrapping_div(6);
        Self {
            sequence: known.sequence.wrapping_add_signed(ahead),
            media_time,
            captured_us: known.captured_us.wrapping_add(captured as u32),
            capture_delay: known.capture_delay,
            encode_delay: known.encode_delay,
            level: known.level,
            ..self
        }
    }
}

/// One Opus packet within a voice packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// How far before the packet's `media_time` it starts, in steps of 2.5 ms; 0 is the main frame.
    pub back: u8,
    /// The Opus packet (RFC 6716 section 3), never empty.
    pub opus: &'a [u8],
}

/// A packet that was read: its frames are checked to lie within it.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Everything but the frames.
    pub header: Header,
    brief: bool,
    count: u8,
    frames: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a packet. Never panics, copies nothing, allocates nothing.
    ///
    /// # Errors
    /// Says which rule of the layout the bytes break.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_PACKET_BYTES {
            return Err(Error::Oversize(bytes.len()));
        }
        let mut rest = bytes;
        let short = Error::Truncated(bytes.len());
        let [kind] = take(&mut rest).ok_or(short)?;
        if kind == KIND_BRIEF {
            return Self::parse_brief(rest).ok_or(short)?;
        }
        if kind != KIND_VOICE {
            return Err(Error::UnknownKind(kind));
        }
        let [version] = take(&mut rest).ok_or(short)?;
        let channels = version & 0x0f;
        let version = version.wrapping_shr(4);
        if version != VERSION {
            return Err(Error::UnknownVersion(version));
        }
        if !(1..=2).contains(&channels) {
            return Err(Error::Channels(channels));
        }
        let mut header = Header {
            channels,
            sequence: u32::from_be_bytes(take(&mut rest).ok_or(short)?),
            media_time: MediaTime(u32::from_be_bytes(take(&mut rest).ok_or(short)?)),
            captured_us: u32::from_be_bytes(take(&mut rest).ok_or(short)?),
            capture_delay: u16::from_be_bytes(take(&mut rest).ok_or(short)?),
            encode_delay: u16::from_be_bytes(take(&mut rest).ok_or(short)?),
            level: Dbov::SILENCE,
            span: 0,
            coming: 0,
            quiet: false,
        };
        let [level, span, coming, count] = take(&mut rest).ok_or(short)?;
        (header.level, header.quiet) = (Dbov::from_wire(level), level & QUIET != 0);
        (header.span, header.coming) = (span, coming);
        if count == 0 || usize::from(count) > MAX_COPIES.saturating_add(1) {
            return Err(Error::FrameCount(count));
        }
        let packet = Self { header, brief: false, count, frames: rest };
        let mut frames = packet.frames();
        for i in 0..count {
            let frame = frames.next().ok_or(short)?;
            if frame.opus.is_empty() || (i == 0) != (frame.back == 0) {
                return Err(Error::Misplaced);
            }
        }
        Ok(packet)
    }

    /// What follows the kind of a brief packet; `None` where it is cut short.
    fn parse_brief(mut rest: &'a [u8]) -> Option<Result<Self, Error>> {
        let sequence = u16::from_be_bytes(take(&mut rest)?);
        let media_time = u16::from_be_bytes(take(&mut rest)?);
        let (Some(info), Some(toc)) = (inspect(rest), rest.first()) else {
            return Some(Err(Error::NotOpus));
        };
        let header = Header {
            channels: if toc & 4 == 0 { 1 } else { 2 },
            sequence: sequence.into(),
            media_time: MediaTime(media_time.into()),
            captured_us: 0,
            capture_delay: 0,
            encode_delay: 0,
            level: Dbov::SILENCE,
            span: info.span(),
            coming: info.span(),
            quiet: false,
        };
        Some(Ok(Self { header, brief: true, count: 1, frames: rest }))
    }

    /// Whether the header holds no more than a brief packet says: the low bits of its numbers, and nothing of when it was
    /// captured.
    #[must_use]
    pub fn is_brief(&self) -> bool {
        self.brief
    }

    /// The packet with all that it left out because `known` says it already: a whole header of the same speaker, or one
    /// completed by it.
    #[must_use]
    pub fn after(self, known: &Header) -> Self {
        match inspect(self.frames).filter(|_| self.brief) {
            Some(info) => Self { header: self.header.completed(known, info.duration), ..self },
            None => self,
        }
    }

    /// The main frame, then the copies.
    #[must_use]
    pub fn frames(&self) -> Frames<'a> {
        Frames { rest: self.frames, left: self.count, bare: self.brief }
    }

    /// Number of copies beside the main frame.
    #[must_use]
    pub fn copies(&self) -> u8 {
        self.count.saturating_sub(1)
    }
}

/// Iterator over a packet's frames; see [`Packet::frames`].
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    rest: &'a [u8],
    left: u8,
    /// One frame that begins without a header of its own and ends with the packet.
    bare: bool,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        self.left = self.left.checked_sub(1)?;
        if self.bare {
            return Some(Frame { back: 0, opus: self.rest });
        }
        let [back, high, low] = take(&mut self.rest)?;
        let (opus, rest) = self.rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        self.rest = rest;
        Some(Frame { back, opus })
    }
}

/// Writes a packet into `out`, which is cleared first. `frames` gives the main frame, then copies; copies that do not fit
/// into `size` bytes are left out, and what is left of `size` is filled with padding.
pub fn write<'a>(
    header: &Header,
    frames: impl IntoIterator<Item = Frame<'a>>,
    size: usize,
    out: &mut Vec<u8>,
) {
    let size = size.min(MAX_PACKET_BYTES);
    out.clear();
    out.extend_from_slice(&[KIND_VOICE, VERSION.wrapping_shl(4) | (header.channels & 0x0f)]);
    out.extend_from_slice(&header.sequence.to_be_bytes());
    out.extend_from_slice(&header.media_time.0.to_be_bytes());
    out.extend_from_slice(&header.captured_us.to_be_bytes());
    out.extend_from_slice(&header.capture_delay.to_be_bytes());
    out.extend_from_slice(&header.encode_delay.to_be_bytes());
    let quiet = if header.quiet { QUIET } else { 0 };
    out.extend_from_slice(&[header.level.to_wire() | quiet, header.span, header.coming, 0]);
    let mut count = 0u8;
    for frame in frames {
        let room = out.len().saturating_add(FRAME_HEADER_BYTES).saturating_add(frame.opus.len()) <= size;
        if usize::from(count) > MAX_COPIES || !(room || count == 0) {
            break;
        }
        let Ok(length) = u16::try_from(frame.opus.len()) else { break };
        out.push(frame.back);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(frame.opus);
        count = count.saturating_add(1);
    }
    if let Some(at) = out.get_mut(HEADER_BYTES.saturating_sub(1)) {
        *at = count;
    }
    if out.len() < size {
        out.resize(size, 0);
    }
}

/// Writes a brief packet into `out`, which is cleared first.
pub fn write_brief(header: &Header, opus: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.push(KIND_BRIEF);
    out.extend_from_slice(&(header.sequence as u16).to_be_bytes());
    out.extend_from_slice(&(header.media_time.0 as u16).to_be_bytes());
    out.extend_from_slice(opus);
}

/// Sets a written packet's `encode_delay`, in units of 10 us. Does nothing to one that has no such field.
pub fn set_encode_delay(packet: &mut [u8], encode_delay: u16) {
    if packet.first() == Some(&KIND_VOICE)
        && let Some(field) = packet.get_mut(16..18)
    {
        field.copy_from_slice(&encode_delay.to_be_bytes());
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            channels: 1,
            sequence: 0xdead_beef,
            media_time: MediaTime(u32::MAX - 5),
            captured_us: 77,
            capture_delay: 512,
            encode_delay: 251,
            level: Dbov::new(-31),
            span: 3,
            coming: 11,
            quiet: false,
        }
    }

    #[test]
    fn a_written_packet_reads_back_the_same() {
        let mut out = Vec::new();
        let frames = [Frame { back: 0, opus: &[1, 2, 3] }, Frame { back: 8, opus: &[4; 40] }];
        write(&header(), frames, 200, &mut out);
        assert_eq!(out.len(), 200, "padded to one size");
        let packet = Packet::parse(&out).unwrap();
        assert_eq!(packet.header, header());
        assert_eq!(packet.frames().collect::<Vec<_>>(), frames);
        assert_eq!(packet.copies(), 1);
    }

    #[test]
    fn a_brief_packet_says_after_a_whole_one_what_a_whole_one_would() {
        let opus = [0xe0, 1, 2, 3];
        let mut out = Vec::new();
        for (packets, samples) in
            [(1i32, 120i32), (-1, -120), (60, 7_200), (60, 30_000), (-40, -4_800), (20_000, 2_400_000)]
        {
            let known = header();
            let sent = Header {
                sequence: known.sequence.wrapping_add_signed(packets),
                media_time: MediaTime(known.media_time.0.wrapping_add_signed(samples)),
                captured_us: known.captured_us.wrapping_add_signed(samples / 6 * 125),
                span: 2,
                coming: 2,
                ..known
            };
            write_brief(&sent, &opus, &mut out);
            assert_eq!(out.len(), BRIEF_HEADER_BYTES + opus.len());
            set_encode_delay(&mut out, 9_999);
            let packet = Packet::parse(&out).unwrap();
            assert!(packet.is_brief());
            assert_eq!(packet.after(&known).header, sent);
            assert_eq!(packet.frames().collect::<Vec<_>>(), [Frame { back: 0, opus: &opus }]);
        }
        for n in 1..BRIEF_HEADER_BYTES {
            assert_eq!(Packet::parse(&out[..n]).unwrap_err(), Error::Truncated(n));
        }
        assert_eq!(Packet::parse(&out[..BRIEF_HEADER_BYTES]).unwrap_err(), Error::NotOpus);
    }

    #[test]
    fn copies_that_do_not_fit_are_left_out() {
        let mut out = Vec::new();
        let frames = [
            Frame { back: 0, opus: &[1; 400] },
            Frame { back: 8, opus: &[2; 400] },
            Frame { back: 16, opus: &[3; 400] },
        ];
        write(&header(), frames, MAX_PACKET_BYTES, &mut out);
        assert_eq!(out.len(), MAX_PACKET_BYTES);
        assert_eq!(Packet::parse(&out).unwrap().copies(), 1);
    }

    #[test]
    fn kinds_and_versions_of_tomorrow_are_named_as_such() {
        let mut out = Vec::new();
        write(&header(), [Frame { back: 0, opus: &[1] }], 0, &mut out);
        let mut newer = out.clone();
        newer[0] = 9;
        assert_eq!(Packet::parse(&newer).unwrap_err(), Error::UnknownKind(9));
        out[1] = 0x21;
        assert_eq!(Packet::parse(&out).unwrap_err(), Error::UnknownVersion(2));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let mut out = Vec::new();
        write(
            &header(),
            [Frame { back: 0, opus: &[1; 20] }, Frame { back: 2, opus: &[2; 20] }],
            68,
            &mut out,
        );
        for n in 0..out.len() {
            assert_eq!(Packet::parse(&out[..n]).unwrap_err(), Error::Truncated(n));
        }
        assert!(Packet::parse(&out).is_ok());
        assert_eq!(
            Packet::parse(&[1; MAX_PACKET_BYTES + 1]).unwrap_err(),
            Error::Oversize(MAX_PACKET_BYTES + 1)
        );
    }

    #[test]
    fn frames_without_a_place_in_time_are_refused() {
        let mut out = Vec::new();
        for frames in [
            vec![Frame { back: 1, opus: &[1][..] }],
            vec![Frame { back: 0, opus: &[1][..] }, Frame { back: 0, opus: &[1][..] }],
            vec![Frame { back: 0, opus: &[][..] }],
        ] {
            write(&header(), frames, 30, &mut out);
            assert_eq!(Packet::parse(&out).unwrap_err(), Error::Misplaced);
        }
        write(&header(), [], 0, &mut out);
        assert_eq!(Packet::parse(&out).unwrap_err(), Error::FrameCount(0));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..1100), valid_start: bool) {
            if valid_start && bytes.len() > 21 {
                bytes[0] = KIND_VOICE;
                bytes[1] = 0x11;
                bytes[21] %= 10;
            }
            if let Ok(packet) = Packet::parse(&bytes) {
                let total: usize = packet.frames().map(|f| f.opus.len()).sum();
                prop_assert!(total <= bytes.len());
                prop_assert_eq!(packet.frames().count(), usize::from(packet.copies()) + 1);
            }
        }

        #[test]
        fn any_packet_survives_the_way_through_the_writer(
            sequence: u32, media: u32, captured: u32, delays: (u16, u16), level in -127i8..=0, spans: (u8, u8),
            quiet: bool, frames in proptest::collection::vec((1u8.., proptest::collection::vec(any::<u8>(), 1..100)), 1..=9),
        ) {
            let header = Header {
                channels: 2, sequence, media_time: MediaTime(media), captured_us: captured, capture_delay: delays.0,
                encode_delay: delays.1, level: Dbov::new(level), span: spans.0, coming: spans.1, quiet,
            };
            let given: Vec<_> = frames.iter().enumerate()
                .map(|(i, (back, opus))| Frame { back: if i == 0 { 0 } else { *back }, opus }).collect();
            let mut out = Vec::new();
            write(&header, given.iter().copied(), MAX_PACKET_BYTES, &mut out);
            let packet = Packet::parse(&out).unwrap();
            prop_assert_eq!(packet.header, header);
            prop_assert_eq!(packet.frames().collect::<Vec<_>>(), given);
        }
    }
}
