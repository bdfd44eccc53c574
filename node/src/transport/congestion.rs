//! A congestion controller for voice: it follows delay, and random loss never shrinks it.
//!
//! Loss-based control (Cubic, the default of QUIC libraries) delivers 16 to 46 % where 70 % could arrive, and fills
//! queues for seconds. Voice needs little and needs it now, so the window is generous while the round trip stays near
//! its minimum and shrinks only while a queue stands in the way. The standing round trip is the least of the last
//! [`STANDING_WINDOW`], as in Copa (Arun and Balakrishnan, NSDI 2018), so that jitter is not taken for a queue.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use crate::least::Least;

/// Settings of the controller.
#[derive(Debug, Clone)]
pub struct MediaControllerConfig {
    /// Window before anything is known, bytes. Default 64 KiB: a second of the most that voice sends.
    pub initial_window: u64,
    /// Least window, bytes. Default 4 KiB: below it a call could not even carry its own reports.
    pub min_window: u64,
    /// Most window, bytes. Default 1 MiB.
    pub max_window: u64,
    /// Standing queue above which the window shrinks. Default 40 ms. Less reacts to Wi-Fi, more lets a lag stand.
    pub queue_target: Duration,
}

impl Default for MediaControllerConfig {
    fn default() -> Self {
        Self {
            initial_window: 64 * 1024,
            min_window: 4 * 1024,
            max_window: 1024 * 1024,
            queue_target: Duration::from_millis(40),
        }
    }
}

impl ControllerFactory for MediaControllerConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(MediaController::new(self, now, current_mtu))
    }
}

/// What the controller learned about a path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathMetrics {
    /// Bytes that may be in flight.
    pub window: u64,
    /// Least round trip of the last 10 to 20 s; `None` before the first acknowledgement.
    pub min_rtt: Option<Duration>,
    /// How long packets stand in queues now: standing round trip less the least one.
    pub queue_delay: Duration,
    /// What the far end acknowledged over the last second, in bits per second.
    pub delivery_rate_bps: u64,
}

/// How far back the standing round trip looks: over several acknowledgements, which come up to 80 ms apart, so that a spike
/// is no queue.
pub const STANDING_WINDOW: Duration = Duration::from_millis(300);
/// Half of how long the least round trip is remembered, so that a longer route becomes the new normal.
const MIN_RTT_HALF_LIFE: Duration = Duration::from_secs(10);
/// Slots of the delivery rate's one-second window.
const RATE_SLOTS: usize = 10;
const RATE_SLOT: Duration = Duration::from_millis(100);

/// The controller of one connection.
#[derive(Debug, Clone)]
pub struct MediaController {
    config: Arc<MediaControllerConfig>,
    window: u64,
    mtu: u64,
    min_rtt: Least<Duration>,
    standing: Least<Duration>,
    next_decision: Instant,
    delivered: [u64; RATE_SLOTS],
    slot: usize,
    slot_started: Instant,
}

impl MediaController {
    fn new(config: Arc<MediaControllerConfig>, now: Instant, mtu: u16) -> Self {
        Self {
            window: config.initial_window,
            config,
            mtu: u64::from(mtu),
            min_rtt: Least::new(now, MIN_RTT_HALF_LIFE),
            standing: Least::new(now, STANDING_WINDOW),
            next_decision: now,
            delivered: [0; RATE_SLOTS],
            slot: 0,
            slot_started: now,
        }
    }

    /// What is known about the path now.
    pub fn path_metrics(&self) -> PathMetrics {
        PathMetrics {
            window: self.window,
            min_rtt: self.min_rtt.get(),
            queue_delay: self.queue_delay(),
            delivery_rate_bps: self.delivered.iter().sum::<u64>().saturating_mul(8),
        }
    }

    fn queue_delay(&self) -> Duration {
        match (self.standing.get(), self.min_rtt.get()) {
            (Some(standing), Some(least)) => standing.saturating_sub(least),
            _ => Duration::ZERO,
        }
    }

    fn acknowledged(&mut self, now: Instant, sample: Duration, bytes: u64, app_limited: bool, rtt: Duration) {
        self.min_rtt.insert(now, sample);
        self.standing.insert(now, sample);
        self.count_delivered(now, bytes);
        if now < self.next_decision {
            return;
        }
        self.next_decision = now + rtt.max(STANDING_WINDOW);
        if self.queue_delay() > self.config.queue_target {
            self.window = self.window - self.window / 8;
        } else if !app_limited {
            self.window = self.window.saturating_add(self.window / 4).saturating_add(self.mtu);
        } else if self.window < self.config.initial_window {
            self.window = self.window.saturating_add(2 * self.mtu).min(self.config.initial_window);
        }
        self.window = self.window.clamp(self.config.min_window, self.config.max_window);
    }

    fn count_delivered(&mut self, now: Instant, bytes: u64) {
        let mut passed = now.saturating_duration_since(self.slot_started).as_millis() / RATE_SLOT.as_millis();
        if passed > 0 {
            self.slot_started = now;
        }
        while passed > 0 {
            self.slot = (self.slot + 1) % RATE_SLOTS;
            self.delivered[self.slot] = 0;
            passed = if passed > RATE_SLOTS as u128 { RATE_SLOTS as u128 } else { passed - 1 };
        }
        self.delivered[self.slot] = self.delivered[self.slot].saturating_add(bytes);
    }
}

impl Controller for MediaController {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.acknowledged(now, now.saturating_duration_since(sent), bytes, app_limited, rtt.get());
    }

    fn on_congestion_event(&mut self, _: Instant, _: Instant, persistent: bool, _: u64) {
        // Loss says nothing about a queue, except where nothing at all arrived for several round trips.
        if persistent {
            self.window = (self.window / 2).max(self.config.min_window);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.config.initial_window
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Path {
        controller: MediaController,
        now: Instant,
    }

    impl Path {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                controller: MediaController::new(Arc::new(MediaControllerConfig::default()), now, 1200),
                now,
            }
        }

        /// Acknowledges a packet of 200 B every 10 ms for `span`, each after `rtt`.
        fn run(&mut self, span: Duration, rtt: Duration, app_limited: bool) {
            for _ in 0..span.as_millis() / 10 {
                self.now += 10 * MS;
                self.controller.acknowledged(self.now, rtt, 200, app_limited, rtt);
            }
        }
    }

    #[test]
    fn random_loss_never_shrinks_the_window() {
        let mut path = Path::new();
        path.run(1000 * MS, 50 * MS, true);
        let before = path.controller.window();
        for _ in 0..1000 {
            path.controller.on_congestion_event(path.now, path.now, false, 1200);
        }
        assert_eq!(path.controller.window(), before);
    }

    #[test]
    fn a_standing_queue_shrinks_the_window_and_its_end_opens_it_again() {
        let mut path = Path::new();
        path.run(1000 * MS, 50 * MS, true);
        path.run(5000 * MS, 250 * MS, true);
        let squeezed = path.controller.window();
        assert!(squeezed < 32 * 1024, "{squeezed}");
        assert!(path.controller.path_metrics().queue_delay >= 190 * MS);
        path.run(5000 * MS, 50 * MS, true);
        assert!(path.controller.window() > squeezed);
        assert_eq!(path.controller.path_metrics().queue_delay, Duration::ZERO);
    }

    #[test]
    fn a_spike_of_a_few_packets_is_no_queue() {
        let mut path = Path::new();
        path.run(1000 * MS, 60 * MS, true);
        path.run(250 * MS, 260 * MS, true);
        assert_eq!(path.controller.path_metrics().queue_delay, Duration::ZERO);
    }

    #[test]
    fn a_longer_route_becomes_the_new_normal() {
        let mut path = Path::new();
        path.run(1000 * MS, 20 * MS, true);
        path.run(25_000 * MS, 120 * MS, true);
        assert_eq!(path.controller.path_metrics().min_rtt, Some(120 * MS));
        assert_eq!(path.controller.path_metrics().queue_delay, Duration::ZERO);
    }

    #[test]
    fn the_window_stays_between_its_bounds() {
        let mut path = Path::new();
        path.run(500 * MS, 10 * MS, false);
        path.run(60_000 * MS, 10 * MS, false);
        assert_eq!(path.controller.window(), MediaControllerConfig::default().max_window);
        for step in 0..400 {
            path.run(200 * MS, (60 + step * 50) * MS, true);
        }
        assert!(path.controller.window() >= MediaControllerConfig::default().min_window);
    }

    #[test]
    fn the_delivery_rate_is_that_of_the_last_second() {
        let mut path = Path::new();
        path.run(3000 * MS, 50 * MS, true);
        let rate = path.controller.path_metrics().delivery_rate_bps;
        assert!((140_000..=180_000).contains(&rate), "{rate} instead of 160,000");
    }
}
