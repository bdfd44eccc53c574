//! What the two ends tell each other and the screen about a voice. Figures that are not known are `None`, never 0.

use crate::{levels::Dbov, policy::Delay};
use serde::{Deserialize, Serialize};

/// Buckets of [`Report::bursts`].
pub const BURST_BUCKETS: usize = 8;

/// Longest run of lost packets that falls into each bucket of [`Report::bursts`]; the last takes all longer runs.
pub const BURST_LIMITS: [u32; BURST_BUCKETS] = [1, 2, 3, 4, 6, 9, 16, u32::MAX];

/// What a listener tells a speaker about the time since its last report. It goes to the sender's
/// [`crate::Sender::handle_report`], which picks the policy from it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Packets that came, duplicates not counted.
    pub received: u32,
    /// Packets that never came (with an allowance for reordering, so the newest few are not judged yet).
    pub lost: u32,
    /// Packets that came after their moment had passed.
    pub late: u32,
    /// Runs of lost packets by length; see [`BURST_LIMITS`].
    pub bursts: [u16; BURST_BUCKETS],
    /// Spread of arrivals: 95th percentile over minimum, in ms.
    pub jitter_ms: f32,
    /// Time the listener keeps in hand beyond its fastest packet, in ms.
    pub target_delay_ms: f32,
    /// Audio that had to be made up, in ms.
    pub concealed_ms: u32,
    /// Audio that came out of copies or FEC, in ms.
    pub recovered_ms: u32,
    /// Packets that came while both their neighbours were lost: many where bursts of loss let some through, hardly any
    /// where they are outages.
    pub alone: u32,
    /// How much delay the listener takes for how much clarity.
    pub delay: Delay,
}

impl Report {
    /// Lost packets among those sent, 0.0..=1.0; `None` where there were none.
    #[must_use]
    pub fn loss(&self) -> Option<f32> {
        let total = self.received.saturating_add(self.lost);
        (total > 0).then(|| self.lost as f32 / total as f32)
    }
}

/// What the path to one peer looks like from here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PathStats {
    /// Smoothed round trip, in ms.
    pub rtt_ms: Option<f32>,
    /// Packets sent on this path since it stands (a total: it only grows, a smaller number means a new path).
    pub sent: u64,
    /// Of those, packets that the acknowledgements show as lost (a total).
    pub lost: u64,
    /// Most that the path gives for this voice, with all headers, in kb/s; `None` where no limit is known.
    pub max_kbps: Option<u32>,
    /// That limit is a guess, not what the path turned out to give: more is tried soon.
    #[serde(default)]
    pub presumed: bool,
    /// The path repeats what it loses (TCP): copies are of no use on it.
    #[serde(default)]
    pub reliable: bool,
}

/// Means of the stages of mouth-to-ear delay, in ms; they add up to the mean of the whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// From the sound at the microphone to the start of encoding: device, period, frame.
    pub capture: f32,
    /// Encoder, its lookahead included.
    pub encode: f32,
    /// From encoder to socket.
    pub send: f32,
    /// On the wire; may be slightly negative, within the clock offset's error.
    pub network: f32,
    /// Kept in hand against jitter and for copies.
    pub jitter_buffer: f32,
    /// Decoder and resampler.
    pub decode: f32,
    /// From the mixer to the ear: rings, device.
    pub playback: f32,
}

impl Stages {
    /// The sum of all stages, in ms.
    #[must_use]
    pub fn total(&self) -> f32 {
        self.capture
            + self.encode
            + self.send
            + self.network
            + self.jitter_buffer
            + self.decode
            + self.playback
    }
}

/// Percentiles of a delay, in ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f32,
    /// 95th.
    pub p95: f32,
    /// 99th.
    pub p99: f32,
}

/// Totals of one voice since its receiver was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Packets that came, duplicates not counted.
    pub packets: u64,
    /// Packets missing by sequence.
    pub lost: u64,
    /// Packets whose frame came after its moment.
    pub late: u64,
    /// Packets that came twice or more.
    pub duplicates: u64,
    /// Packets outside the bounded buffer.
    pub out_of_range: u64,
    /// Packets or Opus frames that could not be read.
    pub malformed: u64,
    /// Samples pulled since the first audio.
    pub played_samples: u64,
    /// Of those, made up.
    pub concealed_samples: u64,
    /// Of those, out of copies or FEC.
    pub recovered_samples: u64,
    /// Of those, comfort noise or silence after a long gap; a part of `concealed_samples`.
    pub silenced_samples: u64,
    /// Gaps whose frames came too late to be heard, but in time to let the decoder go on as if they had not been missing.
    pub mended: u64,
    /// Samples taken out to lower the delay.
    pub accelerated_samples: u64,
    /// Samples put in to raise the delay.
    pub expanded_samples: u64,
    /// Times the playout position was set anew (start, new level of delay, sender started afresh).
    pub anchors: u64,
}

/// One voice over the time since the last call of [`crate::Receiver::stats`]; field names follow the JSON contract.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReceiverStats {
    /// Packets lost on the network, %.
    pub loss_pct: Option<f32>,
    /// Played audio that came out of copies or FEC, %.
    pub recovered_pct: Option<f32>,
    /// Played audio that was made up, %.
    pub concealed_pct: Option<f32>,
    /// Packets that came too late, %.
    pub late_pct: Option<f32>,
    /// Spread of arrivals: 95th percentile over minimum, ms.
    pub jitter_ms: Option<f32>,
    /// Time to be kept in hand beyond the fastest packet, ms.
    pub target_delay_ms: Option<f32>,
    /// Time in hand now, ms.
    pub buffer_ms: Option<f32>,
    /// Mean mouth-to-ear delay, ms.
    pub mouth_to_ear_ms: Option<f32>,
    /// The same, percentiles over the interval.
    pub mouth_to_ear_percentiles_ms: Option<Percentiles>,
    /// Its stages, means, ms.
    pub mouth_to_ear_stages_ms: Option<Stages>,
    /// Half-width of the interval in which the delay lies by the clock offset's error, ms.
    pub mouth_to_ear_error_ms: Option<f32>,
    /// The speaker's sound card against ours, ppm; positive where it runs faster.
    pub drift_ppm: Option<f32>,
    /// Length of the frames that come, ms.
    pub frame_ms: Option<f32>,
    /// Loudness of what was played.
    pub level_dbov: Option<Dbov>,
    /// Mouth-to-ear percentiles since the beginning, ms.
    pub total_mouth_to_ear_ms: Option<Percentiles>,
    /// Counters since the beginning.
    pub totals: Totals,
}
