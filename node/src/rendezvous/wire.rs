//! The bytes of both protocols: libp2p's `/rendezvous/1.0.0` and our `/hallway/watch/1`.
//!
//! Every message is protobuf behind an unsigned-varint length (libp2p's usual framing). Unknown fields are skipped, so
//! both sides may grow. Numbers and names of the first protocol follow libp2p/specs `rendezvous/README.md`.
//!
//! A length prefix reserves nothing: memory grows with the bytes that really arrived, up to the reader's bound.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{StreamProtocol, core::upgrade::NegotiationError};
use prost::Message;

/// libp2p's rendezvous protocol: one request and its answer on a stream.
pub const RENDEZVOUS_PROTOCOL: StreamProtocol = StreamProtocol::new("/rendezvous/1.0.0");

/// Our watch protocol: register, discover and be told of arrivals on one long-lived stream.
pub const WATCH_PROTOCOL: StreamProtocol = StreamProtocol::new("/hallway/watch/1");

/// Longest message a server reads. A registration needs at most a name, a record and a few bytes.
pub const MAX_REQUEST: usize = 64 * 1024;

/// Longest message a server sends; a longer list is sent in several messages (watch) or pages (discover).
pub const MAX_REPLY: usize = 64 * 1024;

/// Longest message a client reads. More than [`MAX_REPLY`], because other servers fill more (rust-libp2p up to 1 MiB).
pub const MAX_RESPONSE: usize = 256 * 1024;

/// Longest namespace in bytes (libp2p/specs rendezvous, "Recommendations for Rendezvous Points configurations").
pub const MAX_NAMESPACE: usize = 255;

/// Bytes of a door tag.
pub const DOOR_LEN: usize = 16;

/// Seconds that a registration lasts when the client names none (libp2p/specs rendezvous).
pub const DEFAULT_TTL_SECS: u64 = 2 * 60 * 60;

/// Bytes of the longest length prefix that can stand for an accepted length.
const MAX_PREFIX: usize = 4;

// ---- framing ----------------------------------------------------------------------------------------------------

/// A message that could not be read. The stream is of no more use; the connection is.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The other side ended the stream between two messages: the usual end.
    #[error("the stream has ended")]
    Ended,
    /// The announced length is beyond our bound. Nothing was reserved for it.
    #[error("a message of {announced} bytes, at most {bound} are read")]
    TooLong {
        /// Bytes announced (`u64::MAX` when the prefix itself is longer than any accepted one).
        announced: u64,
        /// Bytes that we read at most.
        bound: usize,
    },
    /// Not protobuf of the expected kind.
    #[error("malformed message: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// The stream broke, or ended inside a message.
    #[error("stream: {0}")]
    Io(#[from] io::Error),
}

impl ReadError {
    /// Whether the other side does not speak the protocol. A protocol that is offered alone is used before it is
    /// agreed upon, so that this shows at the first read only.
    pub fn is_not_spoken(&self) -> bool {
        let Self::Io(error) = self else { return false };
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<NegotiationError>());
        matches!(inner, Some(NegotiationError::Failed))
    }
}

/// Reads one length-prefixed message of at most `bound` bytes.
///
/// Not cancel-safe: dropping the future loses what it had read, so a stream is read from one place only.
///
/// # Errors
/// See [`ReadError`]; after any of them the stream should be dropped.
pub async fn read<M, S>(stream: &mut S, bound: usize) -> Result<M, ReadError>
where
    M: Message + Default,
    S: AsyncRead + Unpin,
{
    let mut prefix = Vec::with_capacity(MAX_PREFIX);
    let length = loop {
        let mut byte = [0u8; 1];
        if stream.read(&mut byte).await? == 0 {
            if prefix.is_empty() {
                return Err(ReadError::Ended);
            }
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        prefix.extend_from_slice(&byte);
        if byte.iter().all(|b| b & 0x80 == 0) {
            break decode_length(&prefix)?;
        }
        if prefix.len() >= MAX_PREFIX {
            return Err(ReadError::TooLong { announced: u64::MAX, bound });
        }
    };
    if length > bound {
        return Err(ReadError::TooLong { announced: length as u64, bound });
    }
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body).await?;
    if body.len() != length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(M::decode(body.as_slice())?)
}

/// An unsigned varint, least group first (multiformats/unsigned-varint).
fn decode_length(prefix: &[u8]) -> Result<usize, ReadError> {
    let mut rest = prefix;
    let length = prost::encoding::decode_varint(&mut rest)?;
    usize::try_from(length).map_err(|_| ReadError::TooLong { announced: length, bound: 0 })
}

/// A message with its length in front.
pub fn framed(message: &impl Message) -> Vec<u8> {
    message.encode_length_delimited_to_vec()
}

/// Writes one length-prefixed message and flushes it.
///
/// # Errors
/// The stream's own; it should then be dropped.
pub async fn write<S: AsyncWrite + Unpin>(stream: &mut S, message: &impl Message) -> io::Result<()> {
    stream.write_all(&framed(message)).await?;
    stream.flush().await
}

// ---- /rendezvous/1.0.0 ------------------------------------------------------------------------------------------

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// I am here.
    Register = 0,
    /// Answer to it.
    RegisterResponse = 1,
    /// I am here no more. Has no answer.
    Unregister = 2,
    /// Who is here?
    Discover = 3,
    /// Answer to it.
    DiscoverResponse = 4,
}

/// How a request ended. Names as in the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Missing, empty or too long.
    InvalidNamespace = 100,
    /// Does not decode, does not verify, too long, or too many addresses.
    InvalidSignedPeerRecord = 101,
    /// Outside the server's bounds.
    InvalidTtl = 102,
    /// From another namespace or an earlier run of the server: discover again without it.
    InvalidCookie = 103,
    /// The record belongs to another peer than the one that asks.
    NotAuthorized = 200,
    /// The request cannot be understood.
    InternalError = 300,
    /// A bound of the server is reached: try later.
    Unavailable = 400,
}

/// REGISTER, and an entry of a DISCOVER answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Register {
    /// Namespace.
    #[prost(string, optional, tag = "1")]
    pub ns: Option<String>,
    /// Signed envelope (libp2p RFC 0002) around a peer record (RFC 0003).
    #[prost(bytes = "vec", optional, tag = "2")]
    pub signed_peer_record: Option<Vec<u8>>,
    /// Seconds.
    #[prost(uint64, optional, tag = "3")]
    pub ttl: Option<u64>,
}

/// Answer to REGISTER.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterResponse {
    /// How it ended.
    #[prost(enumeration = "Status", optional, tag = "1")]
    pub status: Option<i32>,
    /// For people.
    #[prost(string, optional, tag = "2")]
    pub status_text: Option<String>,
    /// Seconds granted.
    #[prost(uint64, optional, tag = "3")]
    pub ttl: Option<u64>,
}

/// UNREGISTER. The record id of older versions is skipped: the connection says who asks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Unregister {
    /// Namespace.
    #[prost(string, optional, tag = "1")]
    pub ns: Option<String>,
}

/// DISCOVER.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Discover {
    /// Namespace. We refuse a request without one.
    #[prost(string, optional, tag = "1")]
    pub ns: Option<String>,
    /// Most entries wanted.
    #[prost(uint64, optional, tag = "2")]
    pub limit: Option<u64>,
    /// What an earlier answer gave: only news since then.
    #[prost(bytes = "vec", optional, tag = "3")]
    pub cookie: Option<Vec<u8>>,
}

/// Answer to DISCOVER.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DiscoverResponse {
    /// Who is here.
    #[prost(message, repeated, tag = "1")]
    pub registrations: Vec<Register>,
    /// To ask for the news since this answer, or the rest of it.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub cookie: Option<Vec<u8>>,
    /// How it ended.
    #[prost(enumeration = "Status", optional, tag = "3")]
    pub status: Option<i32>,
    /// For people.
    #[prost(string, optional, tag = "4")]
    pub status_text: Option<String>,
}

/// What a client sends. Answers are left out on purpose: a server that never decodes lists cannot be made to hold one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Which of the fields counts.
    #[prost(enumeration = "Kind", optional, tag = "1")]
    pub kind: Option<i32>,
    /// For [`Kind::Register`].
    #[prost(message, optional, tag = "2")]
    pub register: Option<Register>,
    /// For [`Kind::Unregister`].
    #[prost(message, optional, tag = "4")]
    pub unregister: Option<Unregister>,
    /// For [`Kind::Discover`].
    #[prost(message, optional, tag = "5")]
    pub discover: Option<Discover>,
}

/// What a server sends.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// Which of the fields counts.
    #[prost(enumeration = "Kind", optional, tag = "1")]
    pub kind: Option<i32>,
    /// For [`Kind::RegisterResponse`].
    #[prost(message, optional, tag = "3")]
    pub register_response: Option<RegisterResponse>,
    /// For [`Kind::DiscoverResponse`].
    #[prost(message, optional, tag = "6")]
    pub discover_response: Option<DiscoverResponse>,
}

impl Request {
    /// A REGISTER.
    pub fn register(register: Register) -> Self {
        Self { kind: Some(Kind::Register.into()), register: Some(register), ..Self::default() }
    }

    /// An UNREGISTER.
    pub fn unregister(ns: String) -> Self {
        Self {
            kind: Some(Kind::Unregister.into()),
            unregister: Some(Unregister { ns: Some(ns) }),
            ..Self::default()
        }
    }

    /// A DISCOVER.
    pub fn discover(discover: Discover) -> Self {
        Self { kind: Some(Kind::Discover.into()), discover: Some(discover), ..Self::default() }
    }
}

impl Response {
    /// Answer to REGISTER: the seconds granted, or why not.
    pub fn registered(outcome: Result<u64, Status>) -> Self {
        let response = match outcome {
            Ok(ttl) => {
                RegisterResponse { status: Some(Status::Ok.into()), status_text: None, ttl: Some(ttl) }
            }
            Err(status) => RegisterResponse {
                status: Some(status.into()),
                status_text: Some(status.in_words().into()),
                ttl: None,
            },
        };
        Self {
            kind: Some(Kind::RegisterResponse.into()),
            register_response: Some(response),
            discover_response: None,
        }
    }

    /// Answer to DISCOVER: entries and cookie, or why not.
    pub fn discovered(outcome: Result<(Vec<Register>, Vec<u8>), Status>) -> Self {
        let response = match outcome {
            Ok((registrations, cookie)) => DiscoverResponse {
                registrations,
                cookie: Some(cookie),
                status: Some(Status::Ok.into()),
                status_text: None,
            },
            Err(status) => DiscoverResponse {
                status: Some(status.into()),
                status_text: Some(status.in_words().into()),
                ..DiscoverResponse::default()
            },
        };
        Self {
            kind: Some(Kind::DiscoverResponse.into()),
            register_response: None,
            discover_response: Some(response),
        }
    }
}

impl Status {
    /// What a person should know.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::InvalidNamespace => "a namespace of 1 to 255 bytes is needed",
            Self::InvalidSignedPeerRecord => "the signed record is missing, malformed or too large",
            Self::InvalidTtl => "the lifetime is outside this server's bounds",
            Self::InvalidCookie => "the cookie is not of this namespace and run; ask again without it",
            Self::NotAuthorized => "the record belongs to another peer",
            Self::InternalError => "the request cannot be understood",
            Self::Unavailable => "a limit of this server is reached; try again later",
        }
    }
}

// ---- /hallway/watch/1 -------------------------------------------------------------------------------------------

/// What a watching client sends. The first message carries `watch`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchRequest {
    /// Opens the watch; only in the first message.
    #[prost(message, optional, tag = "1")]
    pub watch: Option<Watch>,
    /// New addresses, or a longer life.
    #[prost(message, optional, tag = "2")]
    pub refresh: Option<Presence>,
    /// Goodbye: take the registration away at once.
    #[prost(message, optional, tag = "3")]
    pub leave: Option<Empty>,
    /// Still here.
    #[prost(message, optional, tag = "4")]
    pub keep_alive: Option<Empty>,
}

/// Which room to watch, and whether to be listed in it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Watch {
    /// Blinded name and secret of the room for this period; 1 to 255 bytes.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Blinded name alone, 16 bytes: equal for people who hold different secrets for a room of one name. Empty: none.
    #[prost(bytes = "vec", tag = "2")]
    pub door: Vec<u8>,
    /// Present: be listed. Absent: only watch.
    #[prost(message, optional, tag = "3")]
    pub presence: Option<Presence>,
}

/// A signed record and how long it shall be listed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Presence {
    /// Signed envelope, as in [`Register`].
    #[prost(bytes = "vec", tag = "1")]
    pub signed_peer_record: Vec<u8>,
    /// Seconds; 0 leaves the choice to the server.
    #[prost(uint64, tag = "2")]
    pub ttl: u64,
}

/// What a server pushes. Any number of fields may be set; a client handles them in field order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchEvent {
    /// Outcome of `watch.presence` or `refresh`.
    #[prost(message, optional, tag = "1")]
    pub registered: Option<RegisterResponse>,
    /// The address that the server sees us at: a binary multiaddr.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub observed: Option<Vec<u8>>,
    /// Everybody who is listed, first of all and after pushes were dropped.
    #[prost(message, optional, tag = "3")]
    pub snapshot: Option<Snapshot>,
    /// Somebody came, or changed addresses: signed envelope.
    #[prost(bytes = "vec", optional, tag = "4")]
    pub arrived: Option<Vec<u8>>,
    /// Somebody is no longer listed: binary PeerId.
    #[prost(bytes = "vec", optional, tag = "5")]
    pub gone: Option<Vec<u8>>,
    /// Registrations at the same door in other namespaces.
    #[prost(uint32, optional, tag = "6")]
    pub other_keys: Option<u32>,
    /// Still here.
    #[prost(message, optional, tag = "7")]
    pub keep_alive: Option<Empty>,
    /// The server goes, or refuses the watch; the stream ends after it.
    #[prost(message, optional, tag = "8")]
    pub bye: Option<Bye>,
}

/// Who is listed. May span several messages.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Snapshot {
    /// Signed envelopes.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub records: Vec<Vec<u8>>,
    /// The list goes on in the next message.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// Why a server ends a watch.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Bye {
    /// [`Status::Ok`]: the server shuts down, try another or come back. Otherwise the watch was refused.
    #[prost(enumeration = "Status", tag = "1")]
    pub status: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub text: String,
}

/// Nothing but its presence, so that fields can be added.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Empty {}

impl WatchEvent {
    /// The end of a watch.
    pub fn bye(status: Status) -> Self {
        let text = if status == Status::Ok { "the server shuts down" } else { status.in_words() };
        Self { bye: Some(Bye { status: status.into(), text: text.into() }), ..Self::default() }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use futures::{executor::block_on, io::Cursor};
    use proptest::prelude::*;

    use super::*;

    /// Hands out its bytes in reads of at most `step`, and counts the largest buffer it was offered.
    struct Trickle {
        bytes: Vec<u8>,
        at: usize,
        step: usize,
        offered: usize,
    }

    impl AsyncRead for Trickle {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            self.offered = self.offered.max(out.len());
            let n = out.len().min(self.step).min(self.bytes.len() - self.at);
            let at = self.at;
            out[..n].copy_from_slice(&self.bytes[at..at + n]);
            self.at += n;
            Poll::Ready(Ok(n))
        }
    }

    fn read_all(bytes: Vec<u8>, bound: usize) -> Result<Request, ReadError> {
        block_on(read(&mut Cursor::new(bytes), bound))
    }

    #[test]
    fn a_message_as_long_as_the_bound_is_read_and_one_byte_more_is_refused() {
        let mut message = Request::unregister("n".repeat(MAX_REQUEST));
        while message.encoded_len() > MAX_REQUEST {
            message.unregister.as_mut().unwrap().ns.as_mut().unwrap().pop();
        }
        assert_eq!(message.encoded_len(), MAX_REQUEST);
        assert_eq!(read_all(framed(&message), MAX_REQUEST).unwrap(), message);
        message.unregister.as_mut().unwrap().ns.as_mut().unwrap().push('n');
        assert!(matches!(
            read_all(framed(&message), MAX_REQUEST),
            Err(ReadError::TooLong { announced, bound: MAX_REQUEST }) if announced == MAX_REQUEST as u64 + 1
        ));
    }

    #[test]
    fn a_length_prefix_without_its_bytes_reserves_next_to_nothing() {
        let mut stream = Trickle { bytes: vec![0xff, 0xff, 0x03, 0, 0], at: 0, step: 64, offered: 0 };
        let outcome: Result<Request, _> = block_on(read(&mut stream, MAX_REQUEST));
        assert!(matches!(outcome, Err(ReadError::Io(_))));
        assert!(stream.offered <= 1024, "{} bytes were offered", stream.offered);
    }

    #[test]
    fn a_prefix_longer_than_any_accepted_length_is_refused_without_reading_on() {
        for prefix in [vec![0xff; 4], vec![0x80; 40], vec![0xff, 0xff, 0xff, 0xff, 0x0f]] {
            assert!(matches!(read_all(prefix, MAX_REQUEST), Err(ReadError::TooLong { .. })));
        }
    }

    #[test]
    fn a_stream_that_ends_between_messages_has_ended_and_one_that_ends_inside_is_broken() {
        assert!(matches!(read_all(vec![], 10), Err(ReadError::Ended)));
        assert!(matches!(read_all(vec![0x80], 10), Err(ReadError::Io(_))));
        assert!(matches!(read_all(vec![5, 8, 0], 10), Err(ReadError::Io(_))));
    }

    #[test]
    fn fields_of_a_later_version_are_skipped() {
        let mut bytes =
            Request::discover(Discover { ns: Some("a".into()), ..Discover::default() }).encode_to_vec();
        bytes.extend_from_slice(&[0xa2, 0x06, 3, 1, 2, 3]); // field 100, three bytes
        let mut framed = vec![bytes.len() as u8];
        framed.extend(bytes);
        assert_eq!(read_all(framed, 100).unwrap().discover.unwrap().ns.as_deref(), Some("a"));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..600), step in 1usize..50) {
            let mut stream = Trickle { bytes: bytes.clone(), at: 0, step, offered: 0 };
            let _: Result<Request, _> = block_on(read(&mut stream, 512));
            let mut stream = Trickle { bytes: bytes.clone(), at: 0, step, offered: 0 };
            let _: Result<WatchEvent, _> = block_on(read(&mut stream, 512));
            let _ = WatchRequest::decode(bytes.as_slice());
            let _ = Response::decode(bytes.as_slice());
        }

        #[test]
        fn what_is_written_is_read_back(ns in ".{0,80}", record in proptest::collection::vec(any::<u8>(), 0..300), ttl: u64, step in 1usize..40) {
            let message = WatchRequest {
                watch: Some(Watch {
                    namespace: ns, door: vec![7; DOOR_LEN],
                    presence: Some(Presence { signed_peer_record: record, ttl }),
                }),
                keep_alive: Some(Empty {}),
                ..WatchRequest::default()
            };
            let mut stream = Trickle { bytes: framed(&message), at: 0, step, offered: 0 };
            let back: WatchRequest = block_on(read(&mut stream, MAX_REQUEST)).unwrap();
            prop_assert_eq!(back, message);
        }
    }
}
