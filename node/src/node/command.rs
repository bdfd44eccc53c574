//! What may be asked of a running node: the same verbs for the screen and the plain lines.
//!
//! As JSON a command is one object whose `command` names the verb: `{"command":"mute","on":true}`.

use hallway_codec::{Delay, Profile};
use libp2p::PeerId;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::snapshot::Snapshot;
use crate::{
    audio::{DeviceInfo, End, Switch},
    controls::Speak,
    events::Notice,
};

/// Commands that may wait for the node loop.
pub const MAX_WAITING_ORDERS: usize = 64;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Leave the room.
    Leave,
    /// Be silent, or not.
    Mute {
        /// Silent from now on.
        on: bool,
    },
    /// Hear nobody, and be silent as long.
    Deafen {
        /// Deaf from now on.
        on: bool,
    },
    /// When the microphone is open, unless muted.
    Speak {
        /// Always, while the key is held, or while somebody speaks.
        when: Speak,
    },
    /// The loudness at which voice activation opens the microphone.
    Threshold {
        /// dB below full scale, [`crate::controls::THRESHOLDS`]; values outside are moved to the nearer end.
        dbov: i8,
    },
    /// What is done to our voice before it is encoded. Each stays as it is where it is not named.
    Processing {
        /// Echo cancellation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        echo_cancel: Option<Switch>,
        /// Noise suppression.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        noise_suppression: Option<Switch>,
        /// Automatic gain.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gain: Option<Switch>,
    },
    /// Voice or music, from now on. The channels stay as they were at the start: stereo where it began as music.
    Profile {
        /// Which.
        to: Profile,
    },
    /// How much delay is taken for how much clarity, from now on.
    Delay {
        /// Which.
        to: Delay,
    },
    /// The push-to-talk key goes down or up.
    Press {
        /// It is held.
        down: bool,
    },
    /// How loud one person is heard here. Remembered.
    Volume {
        /// Who.
        #[serde(with = "peer_text")]
        peer_id: PeerId,
        /// dB over what was sent, [`crate::controls::VOLUMES_DB`]; values outside are moved to the nearer end.
        volume_db: i8,
    },
    /// Hear one person, or not. Remembered. The person is not told.
    MutePerson {
        /// Who.
        #[serde(with = "peer_text")]
        peer_id: PeerId,
        /// Not heard from now on.
        on: bool,
    },
    /// Capture or play through another device, while talking. Where it cannot be opened the old one stays.
    Device {
        /// Which end.
        end: End,
        /// As `--input` and `--output` take it.
        name: String,
    },
    /// Say this in writing.
    Chat {
        /// At most [`crate::room::control::MAX_CHAT_BYTES`].
        text: String,
    },
    /// Be called this from now on.
    Name {
        /// Cleaned before it is sent.
        name: String,
    },
    /// The key of this person is right: it was compared, by words or otherwise. Remembered; `false` takes it back.
    Verify {
        /// Who.
        #[serde(with = "peer_text")]
        peer_id: PeerId,
        /// Right.
        on: bool,
    },
    /// Everything that is known now, as [`Answer::Snapshot`].
    Snapshot,
    /// The sound devices of this machine, as [`Answer::Devices`]. Takes up to a few seconds.
    Devices,
}

/// What came of a command.
#[derive(Debug, Serialize)]
#[serde(tag = "answer", content = "value", rename_all = "snake_case")]
pub enum Answer {
    /// It is done, or under way: an event will tell.
    Done,
    /// What [`Command::Snapshot`] asked for.
    Snapshot(Box<Snapshot>),
    /// What [`Command::Devices`] asked for.
    Devices(Vec<DeviceInfo>),
}

/// A command and where its outcome goes, if anybody wants to know.
#[derive(Debug)]
pub struct Order {
    /// What is asked.
    pub command: Command,
    /// Answered once; a refusal says what to do instead.
    pub outcome: Option<oneshot::Sender<Result<Answer, Notice>>>,
}

impl Order {
    /// A command whose outcome is waited for. Where the sender is dropped unanswered, the node has ended.
    pub fn asking(command: Command) -> (Self, oneshot::Receiver<Result<Answer, Notice>>) {
        let (outcome, answered) = oneshot::channel();
        (Self { command, outcome: Some(outcome) }, answered)
    }
}

impl From<Command> for Order {
    fn from(command: Command) -> Self {
        Self { command, outcome: None }
    }
}

/// A PeerId as its text.
mod peer_text {
    use libp2p::PeerId;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(peer: &PeerId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(peer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PeerId, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom("this is no PeerId"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_one_json_object_and_comes_back_the_same() {
        let peer_id = PeerId::random();
        for command in [
            Command::Leave,
            Command::Mute { on: true },
            Command::Deafen { on: false },
            Command::Speak { when: Speak::PushToTalk },
            Command::Threshold { dbov: -45 },
            Command::Press { down: true },
            Command::Processing { echo_cancel: Some(Switch::On), noise_suppression: None, gain: None },
            Command::Profile { to: Profile::Music },
            Command::Delay { to: Delay::Quick },
            Command::Volume { peer_id, volume_db: -6 },
            Command::MutePerson { peer_id, on: true },
            Command::Device { end: End::Input, name: "default".into() },
            Command::Chat { text: "hi".into() },
            Command::Name { name: "ana".into() },
            Command::Verify { peer_id, on: true },
            Command::Snapshot,
            Command::Devices,
        ] {
            let json = serde_json::to_string(&command).unwrap();
            assert_eq!(serde_json::from_str::<Command>(&json).unwrap(), command, "{json}");
        }
        let json = serde_json::to_string(&Command::Speak { when: Speak::PushToTalk }).unwrap();
        assert_eq!(json, r#"{"command":"speak","when":"push_to_talk"}"#);
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for json in [
            r#"{"command":"sing"}"#,
            r#"{"command":"mute"}"#,
            r#"{"command":"mute","on":true,"of":false}"#,
            r#"{"command":"volume","peer_id":"ana","volume_db":1}"#,
        ] {
            assert!(serde_json::from_str::<Command>(json).is_err(), "{json}");
        }
    }
}
