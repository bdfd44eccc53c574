//! The bytes of the forwarder: its datagrams, and the control stream `/hallway/forward/1`.
//!
//! ```text
//! up    0x20  room handle (4)  count n (1)  receivers (n, ascending)  payload
//! down  0x20  room handle (4)  sender (1)                             payload
//! bind  0x21  room handle (4)                                         "my datagrams of this room go here"
//! ```
//!
//! The payload is a datagram as members send each other on a direct path.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{BufMut as _, Bytes, BytesMut};
use libp2p::StreamProtocol;

use crate::session::keys::MEDIA;

/// The control stream's protocol.
pub const FORWARD_PROTOCOL: StreamProtocol = StreamProtocol::new("/hallway/forward/1");
/// First byte of a forwarded datagram.
pub const FORWARD: u8 = 0x20;
/// First byte of a datagram that says where a member's datagrams are to go.
pub const BIND: u8 = 0x21;
/// Bytes in front of the payload on the way down.
pub const DOWN_HEADER: usize = 6;
/// Bytes in front of the payload on the way up, for one receiver.
pub const UP_HEADER: usize = 7;
/// Longest message of the control stream, read by either side: a datagram of any path, or a list of all members.
pub const MAX_CONTROL: usize = 16 * 1024;
/// Longest payload that is forwarded.
pub const MAX_PAYLOAD: usize = 1_500;

/// A datagram on its way up.
#[derive(Debug, PartialEq, Eq)]
pub struct Up<'a> {
    /// Which room.
    pub handle: u32,
    /// Members to pass it on to, in ascending order.
    pub receivers: &'a [u8],
    /// Where the payload begins.
    pub payload_at: usize,
}

/// Reads what a member sends up; `None` where it is malformed.
pub fn read_up(datagram: &[u8]) -> Option<Up<'_>> {
    let (&FORWARD, rest) = datagram.split_first()? else { return None };
    let (handle, rest) = rest.split_first_chunk::<4>()?;
    let (&count, rest) = rest.split_first()?;
    let (receivers, payload) = rest.split_at_checked(usize::from(count))?;
    let ascending = receivers.iter().zip(receivers.iter().skip(1)).all(|(a, b)| a < b);
    let payload_at = UP_HEADER.checked_add(receivers.len())?.checked_sub(1)?;
    let fits = !payload.is_empty() && payload.len() <= MAX_PAYLOAD;
    (ascending && count > 0 && fits).then_some(Up {
        handle: u32::from_be_bytes(*handle),
        receivers,
        payload_at,
    })
}

/// Reads a datagram that names where to send to.
pub fn read_bind(datagram: &[u8]) -> Option<u32> {
    let (&BIND, rest) = datagram.split_first()? else { return None };
    Some(u32::from_be_bytes(rest.try_into().ok()?))
}

/// Room handle, sender, and payload of a datagram that came down.
pub fn read_down(datagram: &Bytes) -> Option<(u32, u8, Bytes)> {
    let (&FORWARD, rest) = datagram.split_first()? else { return None };
    let (handle, rest) = rest.split_first_chunk::<4>()?;
    let (&sender, payload) = rest.split_first()?;
    (!payload.is_empty()).then(|| (u32::from_be_bytes(*handle), sender, datagram.slice_ref(payload)))
}

/// Puts the header of the way up in front of a payload. `receivers` must ascend; at most 255.
pub fn up(handle: u32, receivers: &[u8], payload: &[u8]) -> Bytes {
    let mut out =
        BytesMut::with_capacity(UP_HEADER.saturating_add(receivers.len()).saturating_add(payload.len()));
    out.put_u8(FORWARD);
    out.put_u32(handle);
    out.put_u8(u8::try_from(receivers.len()).unwrap_or(u8::MAX));
    out.put_slice(receivers);
    out.put_slice(payload);
    out.freeze()
}

/// Puts the header of the way down in front of a payload.
pub fn down(handle: u32, sender: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(DOWN_HEADER.saturating_add(payload.len()));
    out.put_u8(FORWARD);
    out.put_u32(handle);
    out.put_u8(sender);
    out.put_slice(payload);
    out.freeze()
}

/// "My datagrams of this room go here."
pub fn bind(handle: u32) -> Bytes {
    let mut out = BytesMut::with_capacity(5);
    out.put_u8(BIND);
    out.put_u32(handle);
    out.freeze()
}

/// Whether a forwarded datagram, with its header, holds voice: what may be dropped because the next frame is on its way.
pub fn is_voice(datagram: &[u8], payload_at: usize) -> bool {
    datagram.get(payload_at) == Some(&MEDIA)
}

// ---- control stream -----------------------------------------------------------------------------------------------

/// How a member's datagrams travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Carrier {
    /// As QUIC datagrams, on the connection that a bind comes on.
    Datagrams = 0,
    /// As messages of this stream.
    Stream = 1,
}

/// Why the server does not forward, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Refusal {
    /// Cannot be understood.
    Malformed = 0,
    /// Not registered in this room at this server: register first.
    NotAMember = 1,
    /// As many members as one room may have.
    RoomFull = 2,
    /// As many rooms or sessions as the server, this peer or this network may have: try later, or elsewhere.
    Full = 3,
    /// More was sent than is allowed; what is beyond it is dropped.
    Rate = 4,
    /// The server shuts down: use another.
    Draining = 5,
    /// This server forwards nothing.
    Off = 6,
}

impl Refusal {
    /// For people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Malformed => "the request cannot be understood",
            Self::NotAMember => "not registered in this room",
            Self::RoomFull => "as many members as a room may have",
            Self::Full => "a limit of the server is reached",
            Self::Rate => "more was sent than is allowed",
            Self::Draining => "the server shuts down",
            Self::Off => "this server forwards nothing",
        }
    }
}

/// What a node says.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForwardRequest {
    /// First message.
    #[prost(message, optional, tag = "1")]
    pub open: Option<Open>,
    /// A datagram as above, where the carrier is the stream.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub data: Option<Bytes>,
    /// Every 4 s.
    #[prost(message, optional, tag = "3")]
    pub keep_alive: Option<Empty>,
    /// The node has moved away.
    #[prost(message, optional, tag = "4")]
    pub leave: Option<Empty>,
}

/// Opens a room.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Open {
    /// A namespace in which this peer is registered.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// How datagrams travel.
    #[prost(enumeration = "Carrier", tag = "2")]
    pub carrier: i32,
}

/// Nothing.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Empty {}

/// What the server says.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForwardEvent {
    /// First message, unless refused.
    #[prost(message, optional, tag = "1")]
    pub opened: Option<Opened>,
    /// Everybody in the room who can be forwarded to, ourselves too. Replaces the list before.
    #[prost(message, optional, tag = "2")]
    pub members: Option<Members>,
    /// Why not, or why something was dropped.
    #[prost(enumeration = "Refusal", optional, tag = "3")]
    pub refused: Option<i32>,
    /// The server ends soon: move away. Milliseconds that are left.
    #[prost(uint32, optional, tag = "4")]
    pub draining_ms: Option<u32>,
    /// A datagram as above, where the carrier is the stream.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub data: Option<Bytes>,
    /// Every 4 s.
    #[prost(message, optional, tag = "6")]
    pub keep_alive: Option<Empty>,
}

impl ForwardEvent {
    /// A refusal.
    pub fn refusal(why: Refusal) -> Self {
        Self { refused: Some(why.into()), ..Self::default() }
    }
}

/// A room is open.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Opened {
    /// Names the room in datagrams, for every member the same.
    #[prost(uint32, tag = "1")]
    pub handle: u32,
    /// This node's number in it.
    #[prost(uint32, tag = "2")]
    pub index: u32,
    /// Most that one member may have forwarded, summed over receivers, kb/s.
    #[prost(uint32, tag = "3")]
    pub rate_kbps: u32,
}

/// Who is in the room.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Members {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub members: Vec<Member>,
}

/// One member.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Member {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Binary PeerId.
    #[prost(bytes = "vec", tag = "2")]
    pub peer: Vec<u8>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_goes_up_for_three_comes_down_from_one() {
        let sent = up(7, &[1, 4, 9], b"sealed");
        let read = read_up(&sent).unwrap();
        assert_eq!((read.handle, read.receivers), (7, &[1u8, 4, 9][..]));
        assert_eq!(sent.get(read.payload_at..), Some(&b"sealed"[..]));
        let came = down(7, 3, sent.get(read.payload_at..).unwrap());
        assert_eq!(read_down(&came), Some((7, 3, Bytes::from_static(b"sealed"))));
        assert_eq!(read_bind(&bind(9)), Some(9));
        assert!(is_voice(&up(7, &[1], &[MEDIA, 2]), UP_HEADER) && !is_voice(&sent, UP_HEADER));
    }

    #[test]
    fn a_list_that_repeats_or_does_not_ascend_is_refused() {
        for receivers in [&[][..], &[1, 1], &[2, 1], &[0, 5, 5]] {
            assert_eq!(read_up(&up(1, receivers, b"x")), None, "{receivers:?}");
        }
        assert_eq!(read_up(&up(1, &[1], b"")), None, "nothing to forward");
        assert_eq!(read_up(&up(1, &[1], &[0; MAX_PAYLOAD + 1])), None);
        assert!(read_up(&up(1, &[1], &[0; MAX_PAYLOAD])).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = bytes;
            for first in [FORWARD, BIND, 0] {
                if let Some(at) = bytes.first_mut() {
                    *at = first;
                }
                if let Some(up) = read_up(&bytes) {
                    prop_assert!(bytes.len() > up.payload_at);
                }
                let _ = (read_bind(&bytes), read_down(&Bytes::copy_from_slice(&bytes)));
            }
        }
    }
}
