//! What is measured: of a second, and of a whole run.

use libp2p::{Multiaddr, PeerId};
use serde::Serialize;

use super::{Outlook, PathKind, display, display_option};

/// How one peer fares, over the last second unless said otherwise.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // the contract's names; docs/measurement.md defines each
pub struct PeerStats {
    #[serde(serialize_with = "display")]
    pub peer_id: PeerId,
    pub name: String,
    pub path: Option<PathKind>,
    #[serde(flatten)]
    pub outlook: Outlook,
    #[serde(serialize_with = "display_option")]
    pub remote: Option<Multiaddr>,
    pub rtt_ms: Option<f64>,
    pub one_way_ms: Option<f64>,
    /// Most that path asymmetry can have shifted `one_way_ms` and `mouth_to_ear_ms`.
    pub clock_error_ms: Option<f64>,
    pub jitter_ms: Option<f64>,
    pub loss_pct: Option<f64>,
    pub recovered_pct: Option<f64>,
    pub concealed_pct: Option<f64>,
    pub late_pct: Option<f64>,
    pub target_delay_ms: Option<f64>,
    pub buffer_ms: Option<f64>,
    pub mouth_to_ear_ms: Option<f64>,
    pub mouth_to_ear_stages_ms: Option<hallway_codec::Stages>,
    pub drift_ppm: Option<f64>,
    pub send_kbps: Option<f64>,
    pub recv_kbps: Option<f64>,
    pub frame_ms: Option<f64>,
    pub level_dbov: Option<f64>,
    /// What is done to our own voice.
    pub processing: Processing,
    /// What we send to the room.
    pub policy: Sending,
    /// Times that our own sound cards had to do without us since the call began.
    pub xruns: u64,
    /// Datagrams of this peer that we did not play since its session began: forged, replayed, malformed, under no known key.
    pub rejected: u64,
}

/// What is done to our voice between the microphone and the encoder. The delay is part of the `capture` stage that the
/// others see.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[allow(missing_docs)] // docs/events.md defines each
pub struct Processing {
    #[serde(flatten)]
    pub active: crate::audio::VoiceActive,
    pub delay_ms: f64,
    /// What any of the three, or all of them, would add.
    pub price_ms: f64,
}

/// How we send our voice: the codec's policy, in the units of the contract.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // docs/events.md defines each
pub struct Sending {
    pub frame_ms: f64,
    pub application: hallway_codec::Application,
    pub bitrate_kbps: f64,
    pub complexity: u8,
    pub fec: bool,
    pub loss_pct: u8,
    pub dred_ms: u16,
    /// How many frames back each copy lies.
    pub copies: Vec<u8>,
    /// The same for the extra packet half a frame later; empty where there is none.
    pub half_step_copies: Vec<u8>,
    /// Whether packets pause, since nobody speaks here.
    pub paused: bool,
}

impl Sending {
    /// This policy, and whether packets pause.
    pub fn of(policy: &hallway_codec::Policy, paused: bool) -> Self {
        Self {
            frame_ms: f64::from(policy.frame.0) / 48.0,
            application: policy.application,
            bitrate_kbps: f64::from(policy.bitrate) / 1000.0,
            complexity: policy.complexity,
            fec: policy.fec,
            loss_pct: policy.loss_perc,
            dred_ms: policy.dred_ms,
            copies: policy.copies.clone(),
            half_step_copies: policy.half.clone(),
            paused,
        }
    }
}

/// Percentiles of a whole call, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

/// One peer's whole call.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct PeerSummary {
    #[serde(serialize_with = "display")]
    pub peer_id: PeerId,
    pub name: String,
    pub mouth_to_ear_ms: Option<Percentiles>,
    pub mouth_to_ear_stages_ms: Option<hallway_codec::Stages>,
    pub first_audio_ms: Option<f64>,
    pub loss_pct: Option<f64>,
    pub recovered_pct: Option<f64>,
    pub concealed_pct: Option<f64>,
    pub packets_received: u64,
    pub bytes_received: u64,
    pub packets_rejected: u64,
}

/// The last object of a run.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Summary {
    pub peers: Vec<PeerSummary>,
    pub since_start_ms: f64,
    pub cpu_s: f64,
    pub max_rss_kb: Option<u64>,
    pub packets_sent: u64,
    pub bytes_sent: u64,
    pub xruns: u64,
}
