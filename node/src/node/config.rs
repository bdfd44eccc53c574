//! What a node is told, and how it ends.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use hallway_codec::SenderConfig;
use libp2p::{Multiaddr, PeerId, identity::Keypair};

use super::swarm;
use crate::{
    controls::Controls, events::Notice, invite::Invite, media, rendezvous, session, trust::Trust,
    volumes::Volumes,
};

/// Which rungs of the path ladder may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathChoice {
    /// All of them; the best is kept.
    #[default]
    Auto,
    /// Only direct ones: no voice through a server.
    Direct,
    /// Only through a server, which hides our address from the other members.
    Relay,
    /// Only through a server, and over TCP.
    Tcp,
}

impl PathChoice {
    /// Whether members may be connected to directly, and may connect to us.
    pub fn direct(self) -> bool {
        matches!(self, Self::Auto | Self::Direct)
    }

    /// Whether voice may go through a server.
    pub fn relay(self) -> bool {
        self != Self::Direct
    }
}

/// What a node is to do.
pub struct Config {
    /// Who we are.
    pub keypair: Keypair,
    /// How we are called.
    pub name: String,
    /// The room, its secret, the servers named in the invite.
    pub invite: Invite,
    /// Rendezvous servers to use.
    pub rendezvous: Vec<Multiaddr>,
    /// Where to listen.
    pub listen: Vec<Multiaddr>,
    /// What to tell others instead of where we listen. Empty: where we listen, and what servers saw.
    pub announce: Vec<Multiaddr>,
    /// Which rungs of the path ladder may be used.
    pub path: PathChoice,
    /// Whether servers may be reached over TCP, where UDP does not get through.
    pub tcp: bool,
    /// Whether the router is asked for a port (UPnP, PCP, NAT-PMP), behind a NAT.
    pub map_port: bool,
    /// Whether to look on the local network too.
    pub lan: bool,
    /// 1, or 2 where music is played in stereo.
    pub channels: u8,
    /// Most that one peer is sent, kb/s on the wire.
    pub max_kbps: Option<u32>,
    /// Whether packets pause where nobody speaks.
    pub dtx: bool,
    /// When the program began: `since_start_ms` counts from here.
    pub started: Instant,
    /// Leave by ourselves after this time.
    pub leave_after: Option<Duration>,
    /// End with [`Ended::NoPeer`] where nobody came in this time.
    pub require_peer: Option<Duration>,
    /// Members that are known beforehand, and where they listen: called at once.
    pub peers: Vec<(PeerId, Vec<Multiaddr>)>,
    /// Wait on although others in a room of this name hold another secret.
    pub wait_anyway: bool,
    /// What is captured, as `--input` takes it.
    pub input: String,
    /// Where it is played, as `--output` takes it.
    pub output: String,
    /// What is set about voice and ears at the start.
    pub controls: Controls,
    /// Where what is said in writing is kept, if anywhere. The node only tells of it.
    pub history: Option<PathBuf>,
    /// How each person is heard, from earlier calls.
    pub volumes: Volumes,
    /// Who was met in earlier calls.
    pub trust: Trust,
}

impl Config {
    /// How our voice is sent.
    pub(super) fn voice(&self) -> SenderConfig {
        let Controls { profile, delay, .. } = self.controls;
        let (channels, max_kbps, dtx) = (self.channels, self.max_kbps, self.dtx);
        SenderConfig { profile, channels, max_kbps, delay, dtx, ..SenderConfig::default() }
    }
}

/// Why a node ended, where nothing failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Left in order.
    Left,
    /// Nobody came in time.
    NoPeer {
        /// How long we waited.
        waited: Duration,
    },
    /// Others do not let us in.
    Refused {
        /// Why.
        reason: String,
        /// What to do.
        hint: String,
    },
}

impl Ended {
    /// What a script should know, where this is no ordinary end.
    pub fn notice(&self) -> Option<Notice> {
        let (code, message, hint) = match self {
            Self::Left => return None,
            Self::NoPeer { waited } => (
                "no_peer",
                format!("nobody came within {}", humantime::format_duration(*waited)),
                "Check that the others use the same room, secret and rendezvous server (--at), or wait longer \
                 with --timeout."
                    .to_owned(),
            ),
            Self::Refused { reason, hint } => ("refused", format!("refused: {reason}"), hint.clone()),
        };
        Some(Notice { code, message, hint })
    }
}

/// Why a node could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network could not be set up.
    #[error(transparent)]
    Network(#[from] swarm::Error),
    /// A `--listen` address does not work.
    #[error("cannot listen on {addr}: {reason}")]
    Listen {
        /// Where.
        addr: Multiaddr,
        /// Why not.
        reason: String,
    },
    /// No descriptors left for the sockets' events.
    #[error("cannot wait for the network: {0}")]
    Drive(#[from] std::io::Error),
    /// The handshake could not be prepared.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The media thread could not be started.
    #[error(transparent)]
    Media(#[from] media::Error),
    /// A rendezvous address is of no use.
    #[error(transparent)]
    Rendezvous(#[from] rendezvous::ClientError),
    /// The media thread died.
    #[error("the media thread ended by itself; this is a bug in hallway, please report the log")]
    MediaEnded,
}
