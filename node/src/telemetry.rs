//! What two nodes tell each other about time and loss, sealed, a few times a second, and never sent again when lost.

use hallway_codec::Report;
use serde::{Deserialize, Serialize};

/// One unreliable message of a session. New kinds are added at the end; old nodes ignore what they cannot read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Telemetry {
    /// "What does your clock say?" Asked at `sent_us` of our clock.
    Ping {
        /// Our clock, µs.
        sent_us: u64,
    },
    /// The answer.
    Pong {
        /// The asker's clock, as it came.
        sent_us: u64,
        /// Our clock when the question arrived, µs.
        arrived_us: u64,
        /// Our clock when this answer left, µs.
        answered_us: u64,
    },
    /// How the peer's voice arrives here.
    Report(Report),
    /// How long our packets take from the encoder into QUIC: sealing, and the members before this one. Microseconds,
    /// the mean of a second.
    SendDelay(u32),
    /// "Does this path work?" Answered on the path that it came on.
    PathPing(u32),
    /// The answer, with the number of the question.
    PathPong(u32),
    /// So many packets did not come in the time of the report that follows, which does not count them: this side hears over
    /// TCP, where copies would only lengthen the queue. It may still be better to take another path.
    Missed(u32),
}

impl Telemetry {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        // Serializing plain fields into memory has no way to fail; an empty message is ignored by every reader.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Reads a message; `None` for kinds we do not know and for garbage.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn garbage_is_ignored_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Telemetry::decode(&bytes);
        }
    }

    #[test]
    fn a_ping_survives_the_round_trip() {
        let ping = Telemetry::Ping { sent_us: 42 };
        assert_eq!(Telemetry::decode(&ping.encode()), Some(ping));
    }
}
