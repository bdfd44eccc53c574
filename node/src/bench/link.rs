//! One direction of a bad network, as arithmetic: what becomes of a packet sent now.
//!
//! Three streams of luck per direction. One advances with time alone (Gilbert-Elliott state, delay spikes), so outages
//! fall at the same instants whatever the packet rate of the program under test: sending more and smaller packets into
//! an outage gains nothing. One advances per packet (jitter, loss). One serves the faults that a healthy network does
//! not have (copies, flipped bits), so that switching them on leaves everything else as it was.
//!
//! Time is a `Duration` since an epoch that the caller chooses: a real clock in [`super::proxy`], a virtual one in tests.

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::luck::Luck;

/// What one direction of a link does to packets. The default is a perfect wire: no delay, nothing lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkConfig {
    /// Base one-way delay, ms.
    pub delay_ms: f64,
    /// Shape of the delay that varies from packet to packet.
    pub jitter: Jitter,
    /// Normal jitter: standard deviation in ms, cut at ±3 sigma; the whole delay never falls below zero.
    pub jitter_ms: f64,
    /// Pareto jitter: scale in ms of the extra delay `scale * (u^(-1/shape) - 1)`.
    pub pareto_scale_ms: f64,
    /// Pareto jitter: shape; the smaller, the heavier the tail.
    pub pareto_shape: f64,
    /// Most extra delay of Pareto jitter, ms; 0 = no limit.
    pub jitter_max_ms: f64,
    /// May a packet overtake an earlier one? Default no: most real paths keep the order of one flow.
    pub reorder: bool,
    /// Delay spikes: how many a second on average.
    pub spike_per_s: f64,
    /// Extra delay at the onset of a spike, ms.
    pub spike_ms: f64,
    /// How long a spike takes to fall to nothing (linearly), ms.
    pub spike_decay_ms: f64,
    /// Independent loss, 0 to 1.
    pub loss: f64,
    /// Gilbert-Elliott channel in continuous time: mean stay in the bad state, ms; 0 = no such channel.
    pub ge_bad_ms: f64,
    /// Mean stay in the good state, ms.
    pub ge_good_ms: f64,
    /// Loss in the bad state, 0 to 1.
    pub ge_loss_bad: f64,
    /// Loss in the good state, 0 to 1.
    pub ge_loss_good: f64,
    /// Bottleneck in bits of IP packets a second; 0 = none.
    pub rate_bps: f64,
    /// The bottleneck's drop-tail queue, in ms of its rate.
    pub queue_ms: f64,
    /// Share of packets delivered twice, 0 to 1. The copy comes up to 20 ms later.
    pub duplicate: f64,
    /// Share of packets delivered with one bit turned, 0 to 1.
    pub flip: f64,
    /// Spans of the link's own time in which nothing passes.
    pub blackouts: Vec<Window>,
    /// Packets lost by number (the first packet is 0), for tests that want exact gaps.
    pub lose: Vec<Range<u64>>,
}

/// Shape of per-packet jitter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Jitter {
    /// Every packet takes the base delay.
    #[default]
    None,
    /// Bell-shaped about the base delay.
    Normal,
    /// Never less than the base delay, with a heavy tail: Wi-Fi.
    Pareto,
}

/// A span of time, in ms since the link's epoch; the end is not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// First instant inside, ms.
    pub from_ms: f64,
    /// First instant after it, ms.
    pub to_ms: f64,
}

impl Default for LinkConfig {
    fn default() -> Self {
        LinkConfig {
            delay_ms: 0.0,
            jitter: Jitter::None,
            jitter_ms: 0.0,
            pareto_scale_ms: 0.0,
            pareto_shape: 1.5,
            jitter_max_ms: 0.0,
            reorder: false,
            spike_per_s: 0.0,
            spike_ms: 0.0,
            spike_decay_ms: 0.0,
            loss: 0.0,
            ge_bad_ms: 0.0,
            ge_good_ms: 0.0,
            ge_loss_bad: 0.0,
            ge_loss_good: 0.0,
            rate_bps: 0.0,
            queue_ms: 200.0,
            duplicate: 0.0,
            flip: 0.0,
            blackouts: Vec::new(),
            lose: Vec::new(),
        }
    }
}

impl LinkConfig {
    /// A switch between two machines: 0.2 ms and nothing else.
    pub fn wired() -> Self {
        Self::delayed(0.2)
    }

    /// A constant one-way delay in ms.
    pub fn delayed(delay_ms: f64) -> Self {
        LinkConfig { delay_ms, ..Self::default() }
    }

    /// With normal jitter of this standard deviation, ms.
    pub fn jittered(self, jitter_ms: f64) -> Self {
        LinkConfig { jitter: Jitter::Normal, jitter_ms, ..self }
    }

    /// Without the packets of these numbers (the first packet sent is 0).
    pub fn losing(mut self, packets: Range<u64>) -> Self {
        self.lose.push(packets);
        self
    }

    /// With independent loss, 0 to 1.
    pub fn losing_at_random(self, loss: f64) -> Self {
        LinkConfig { loss, ..self }
    }

    /// Dead during this span of ms since the link's epoch.
    pub fn blacked_out(mut self, ms: Range<f64>) -> Self {
        self.blackouts.push(Window { from_ms: ms.start, to_ms: ms.end });
        self
    }

    /// Average share of packets that the random parts of this link lose, 0 to 1: neither the queue nor blackouts.
    pub fn expected_loss(&self) -> f64 {
        let mut kept = 1.0 - self.loss;
        if self.has_bursts() {
            let bad = self.ge_bad_ms / (self.ge_bad_ms + self.ge_good_ms);
            kept *= 1.0 - (bad * self.ge_loss_bad + (1.0 - bad) * self.ge_loss_good);
        }
        1.0 - kept
    }

    fn has_bursts(&self) -> bool {
        self.ge_bad_ms > 0.0 && self.ge_good_ms > 0.0
    }
}

/// What becomes of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives.
    Deliver {
        /// When, on the caller's clock.
        at: Duration,
        /// Which of its bits arrives turned.
        flip: Option<usize>,
        /// When it arrives a second time.
        copy_at: Option<Duration>,
    },
    /// It does not.
    Lost(Loss),
}

/// Why a packet was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Independent loss.
    Random,
    /// The Gilbert-Elliott channel.
    Burst,
    /// The bottleneck's queue, or the bound of [`super::pipe::MAX_IN_FLIGHT`], was full.
    QueueFull,
    /// The link was dead.
    Blackout,
    /// Named in [`LinkConfig::lose`].
    Scripted,
}

/// The state of one direction. Ask it once per packet, in the order of time.
#[derive(Clone, Debug)]
pub struct Link {
    config: LinkConfig,
    weather: Luck,
    spikes: Luck,
    packets: Luck,
    faults: Luck,
    sent: u64,
    bad: bool,
    bad_until: i64,
    spike_at: i64,
    next_spike: i64,
    bottleneck_free: i64,
    last_out: i64,
    dead_until: i64,
}

const NS_PER_MS: f64 = 1e6;
/// Longest wait between a packet and its copy, ms.
const COPY_WITHIN_MS: f64 = 20.0;
/// A packet is let into a full queue if the excess is only its own time on the wire, up to this, ms: else a queue
/// shorter than one packet would pass nothing.
const QUEUE_GRACE_MS: f64 = 5.0;

impl Link {
    /// A direction whose every draw follows from `seed`.
    pub fn new(config: LinkConfig, seed: u64) -> Link {
        let mut link = Link {
            weather: Luck::seeded(seed ^ 0xA5A5),
            spikes: Luck::seeded(seed ^ 0x5A5A_0000),
            packets: Luck::seeded(seed ^ 0x1234_5678),
            faults: Luck::seeded(seed ^ 0x0F0F_C0DE_0000),
            config,
            sent: 0,
            bad: false,
            bad_until: 0,
            spike_at: i64::MIN / 2,
            next_spike: i64::MAX,
            bottleneck_free: 0,
            last_out: 0,
            dead_until: 0,
        };
        link.begin_weather(0);
        link
    }

    /// Becomes another link at `now`; what it has delivered and queued stays as it is.
    pub fn change(&mut self, now: Duration, config: LinkConfig) {
        let now = nanos(now);
        self.advance(now);
        self.config = config;
        self.begin_weather(now);
    }

    fn begin_weather(&mut self, now: i64) {
        self.bad = false;
        if self.config.has_bursts() {
            self.bad_until = now + span(self.weather.exponential(self.config.ge_good_ms));
        }
        self.next_spike = if self.config.spike_per_s > 0.0 {
            now + span(self.spikes.exponential(1e3 / self.config.spike_per_s))
        } else {
            i64::MAX
        };
    }

    /// What this link is made of.
    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// Lets nothing pass before `until`. A second call replaces the first; a past instant ends it.
    pub fn black_out(&mut self, until: Duration) {
        self.dead_until = nanos(until);
    }

    /// Decides over a packet of `len` bytes (headers included) sent at `now`. `now` must not run backwards.
    pub fn send(&mut self, now: Duration, len: usize) -> Fate {
        let now = nanos(now);
        self.advance(now);
        let number = self.sent;
        self.sent += 1;

        // The same number of draws for every packet whatever its fate, so that one decision never shifts the others.
        let u_loss = self.packets.unit();
        let u_burst = self.packets.unit();
        let bell = self.packets.normal();
        let u_pareto = self.packets.unit();
        let u_copy = self.faults.unit();
        let u_copy_gap = self.faults.unit();
        let u_flip = self.faults.unit();
        let flip_bit = self.faults.bits();

        let config = &self.config;
        if config.lose.iter().any(|gap| gap.contains(&number)) {
            return Fate::Lost(Loss::Scripted);
        }
        let now_ms = now as f64 / NS_PER_MS;
        if now < self.dead_until || config.blackouts.iter().any(|w| (w.from_ms..w.to_ms).contains(&now_ms)) {
            return Fate::Lost(Loss::Blackout);
        }

        // 1. The bottleneck: its queue stands before the lossy, jittery part.
        let mut leaves = now;
        if config.rate_bps > 0.0 {
            let on_wire = span(len as f64 * 8e3 / config.rate_bps);
            let backlog = (self.bottleneck_free - now).max(0);
            if backlog + on_wire > span(config.queue_ms) + on_wire.min(span(QUEUE_GRACE_MS)) {
                return Fate::Lost(Loss::QueueFull);
            }
            self.bottleneck_free = self.bottleneck_free.max(now) + on_wire;
            leaves = self.bottleneck_free;
        }
        // 2. Loss.
        if u_loss <= config.loss {
            return Fate::Lost(Loss::Random);
        }
        if config.has_bursts() && u_burst <= if self.bad { config.ge_loss_bad } else { config.ge_loss_good } {
            return Fate::Lost(Loss::Burst);
        }
        // 3. Delay.
        let mut delay_ms = config.delay_ms;
        match config.jitter {
            Jitter::None => {}
            Jitter::Normal => delay_ms += bell.clamp(-3.0, 3.0) * config.jitter_ms,
            Jitter::Pareto => {
                let extra = config.pareto_scale_ms * (u_pareto.powf(-1.0 / config.pareto_shape) - 1.0);
                delay_ms += if config.jitter_max_ms > 0.0 { extra.min(config.jitter_max_ms) } else { extra };
            }
        }
        if config.spike_decay_ms > 0.0 {
            let since_ms = (now - self.spike_at) as f64 / NS_PER_MS;
            if since_ms < config.spike_decay_ms {
                delay_ms += config.spike_ms * (1.0 - since_ms / config.spike_decay_ms);
            }
        }
        let mut out = leaves + span(delay_ms.max(0.0));
        if !config.reorder {
            out = out.max(self.last_out);
        }
        self.last_out = self.last_out.max(out);
        // 4. Faults.
        let bits = (len as u64).saturating_mul(8);
        Fate::Deliver {
            at: duration(out),
            flip: (u_flip <= config.flip).then(|| flip_bit.checked_rem(bits).unwrap_or(0) as usize),
            copy_at: (u_copy <= config.duplicate).then(|| duration(out + span(u_copy_gap * COPY_WITHIN_MS))),
        }
    }

    fn advance(&mut self, now: i64) {
        if self.config.has_bursts() {
            while self.bad_until <= now {
                self.bad = !self.bad;
                let stay = if self.bad { self.config.ge_bad_ms } else { self.config.ge_good_ms };
                self.bad_until += span(self.weather.exponential(stay)) + 1;
            }
        }
        while self.next_spike <= now {
            self.spike_at = self.next_spike;
            self.next_spike += span(self.spikes.exponential(1e3 / self.config.spike_per_s)) + 1;
        }
    }
}

/// Milliseconds as whole nanoseconds; a `f64` beyond the range of `i64` saturates.
fn span(ms: f64) -> i64 {
    ((ms * NS_PER_MS) as i64).min(i64::MAX / 4)
}

fn nanos(t: Duration) -> i64 {
    i64::try_from(t.as_nanos()).unwrap_or(i64::MAX / 4)
}

fn duration(ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    /// Loss rate and the delays in ms of `n` packets of 200 bytes, one each `gap_ms`.
    fn run(config: LinkConfig, seed: u64, n: u32, gap_ms: f64) -> (f64, Vec<f64>) {
        let mut link = Link::new(config, seed);
        let mut delays = Vec::new();
        for i in 0..n {
            let now = at(f64::from(i) * gap_ms);
            if let Fate::Deliver { at, .. } = link.send(now, 200) {
                delays.push((at.as_secs_f64() - now.as_secs_f64()) * 1e3);
            }
        }
        (1.0 - delays.len() as f64 / f64::from(n), delays)
    }

    fn bursty() -> LinkConfig {
        LinkConfig {
            ge_bad_ms: 60.0,
            ge_good_ms: 205.0,
            ge_loss_bad: 0.85,
            ge_loss_good: 0.01,
            ..LinkConfig::default()
        }
    }

    #[test]
    fn bursty_loss_has_the_average_that_its_stays_promise() {
        let want = bursty().expected_loss();
        let (lost, _) = run(bursty(), 7, 400_000, 20.0);
        assert!((want - 0.2).abs() < 0.01, "{want}");
        assert!((lost - want).abs() < 0.01, "{lost} {want}");
    }

    #[test]
    fn outages_fall_at_the_same_instants_whatever_the_packet_rate() {
        let config = LinkConfig { ge_loss_bad: 1.0, ge_loss_good: 0.0, ..bursty() };
        let (mut slow, mut fast) = (Link::new(config.clone(), 3), Link::new(config, 3));
        let mut lost = 0;
        for i in 0..10_000 {
            let now = at(f64::from(i) * 10.0);
            let fate = fast.send(now, 100);
            if i % 2 == 0 {
                let same = slow.send(now, 100);
                assert_eq!(matches!(same, Fate::Lost(_)), matches!(fate, Fate::Lost(_)), "at {now:?}");
                lost += u32::from(matches!(same, Fate::Lost(_)));
            }
        }
        assert!(lost > 500, "{lost}");
    }

    #[test]
    fn a_bottleneck_passes_its_rate_and_delays_by_its_queue() {
        // 100 kbit/s offered to 64 kbit/s: 36 % must go, and the delay settles at the queue.
        let config = LinkConfig { rate_bps: 64_000.0, queue_ms: 200.0, ..LinkConfig::default() };
        let (lost, delays) = run(config, 1, 10_000, 16.0);
        assert!((lost - 0.36).abs() < 0.02, "{lost}");
        let settled = delays.last().copied().unwrap();
        assert!((170.0..230.0).contains(&settled), "{settled}");
    }

    #[test]
    fn packets_overtake_only_where_reordering_is_on() {
        for reorder in [false, true] {
            let config = LinkConfig { reorder, ..LinkConfig::delayed(30.0).jittered(10.0) };
            let mut link = Link::new(config, 9);
            let mut before = Duration::ZERO;
            let mut overtaken = 0;
            for i in 0..2000 {
                if let Fate::Deliver { at, .. } = link.send(at(f64::from(i) * 5.0), 100) {
                    overtaken += u32::from(at < before);
                    before = at;
                }
            }
            assert_eq!(overtaken > 0, reorder, "{overtaken} overtaken");
        }
    }

    #[test]
    fn normal_jitter_is_cut_at_three_sigma() {
        let (_, delays) = run(LinkConfig::delayed(40.0).jittered(5.0), 4, 50_000, 20.0);
        let mean = delays.iter().sum::<f64>() / delays.len() as f64;
        let sigma = (delays.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / delays.len() as f64).sqrt();
        assert!((mean - 40.0).abs() < 0.1 && (sigma - 5.0).abs() < 0.15, "{mean} {sigma}");
        assert!(delays.iter().all(|d| (24.99..55.01).contains(d)));
    }

    #[test]
    fn pareto_jitter_adds_a_heavy_tail_up_to_its_limit() {
        let config = LinkConfig {
            jitter: Jitter::Pareto,
            pareto_scale_ms: 2.0,
            jitter_max_ms: 60.0,
            reorder: true,
            ..LinkConfig::delayed(15.0)
        };
        let (_, mut delays) = run(config, 4, 50_000, 20.0);
        delays.sort_by(f64::total_cmp);
        assert!(delays[0] >= 15.0 - 1e-6 && delays[0] < 15.1, "{}", delays[0]);
        assert!(delays[25_000] < 17.0, "median {}", delays[25_000]);
        assert!((delays[49_999] - 75.0).abs() < 0.01, "worst {}", delays[49_999]);
    }

    #[test]
    fn spikes_come_as_often_as_asked_and_decay() {
        let config = LinkConfig {
            spike_per_s: 0.2,
            spike_ms: 200.0,
            spike_decay_ms: 400.0,
            reorder: true,
            ..LinkConfig::delayed(60.0)
        };
        let (_, delays) = run(config, 5, 500_000, 10.0);
        // 0.2 spikes a second of 400 ms each: the delay is raised a little under 8 % of the time (some overlap).
        let raised = delays.iter().filter(|d| **d > 60.001).count() as f64 / delays.len() as f64;
        assert!((0.07..0.085).contains(&raised), "{raised}");
        assert!(delays.iter().copied().fold(0.0, f64::max) > 255.0);
    }

    #[test]
    fn scripted_gaps_and_blackouts_are_exact() {
        let config = LinkConfig::wired().losing(100..103).blacked_out(4000.0..4100.0);
        let mut link = Link::new(config, 1);
        for i in 0..400u32 {
            let fate = link.send(at(f64::from(i) * 20.0), 100);
            match i {
                100..103 => assert_eq!(fate, Fate::Lost(Loss::Scripted)),
                200..205 => assert_eq!(fate, Fate::Lost(Loss::Blackout)),
                _ => assert!(matches!(fate, Fate::Deliver { .. }), "{i}"),
            }
        }
        link.black_out(at(9_000.0));
        assert_eq!(link.send(at(8_999.0), 100), Fate::Lost(Loss::Blackout));
        assert!(matches!(link.send(at(9_000.0), 100), Fate::Deliver { .. }));
    }

    #[test]
    fn a_link_can_become_another_in_the_middle() {
        let mut link = Link::new(LinkConfig::delayed(10.0), 1);
        assert_eq!(link.send(at(0.0), 100), Fate::Deliver { at: at(10.0), flip: None, copy_at: None });
        link.change(at(5.0), LinkConfig { ge_loss_bad: 1.0, ge_loss_good: 1.0, ..bursty() });
        assert_eq!(link.send(at(6.0), 100), Fate::Lost(Loss::Burst));
        link.change(at(7.0), LinkConfig::delayed(1.0));
        // Not before what was sent earlier.
        assert_eq!(link.send(at(8.0), 100), Fate::Deliver { at: at(10.0), flip: None, copy_at: None });
        assert_eq!(link.send(at(20.0), 100), Fate::Deliver { at: at(21.0), flip: None, copy_at: None });
    }

    #[test]
    fn faults_do_not_move_the_rest_of_the_luck() {
        let plain = LinkConfig { loss: 0.1, ..LinkConfig::delayed(30.0).jittered(5.0) };
        let faulty = LinkConfig { duplicate: 0.2, flip: 0.1, ..plain.clone() };
        let (mut a, mut b) = (Link::new(plain, 11), Link::new(faulty, 11));
        let (mut copies, mut flips) = (0, 0);
        for i in 0..10_000 {
            let now = at(f64::from(i) * 10.0);
            match (a.send(now, 100), b.send(now, 100)) {
                (Fate::Lost(x), Fate::Lost(y)) => assert_eq!(x, y),
                (Fate::Deliver { at: x, .. }, Fate::Deliver { at: y, flip, copy_at }) => {
                    assert_eq!(x, y);
                    assert!(flip.is_none_or(|bit| bit < 800));
                    assert!(copy_at.is_none_or(|copy| copy >= y && copy <= y + at(20.0)));
                    flips += u32::from(flip.is_some());
                    copies += u32::from(copy_at.is_some());
                }
                other => panic!("fates differ at packet {i}: {other:?}"),
            }
        }
        assert!((700..1100).contains(&flips) && (1600..2000).contains(&copies), "{flips} {copies}");
    }
}
