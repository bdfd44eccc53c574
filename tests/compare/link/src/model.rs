//! Link profiles and the random models behind them.
//!
//! Two separate random streams per direction: one that advances with time only (the
//! Gilbert-Elliott channel state and the delay spikes), so that outages fall at the same instants
//! whatever the packet rate of the peer under test, and one that advances per packet
//! (per-packet jitter and loss).
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dir {
    /// Base one-way delay, ms.
    pub delay_ms: f64,
    /// none | normal | pareto
    pub jitter: String,
    /// normal: standard deviation, ms, cut at +-3 sigma (and never below zero delay).
    pub jitter_ms: f64,
    /// pareto: scale (ms) and shape of the extra delay scale*(u^(-1/shape)-1).
    pub pareto_scale_ms: f64,
    pub pareto_shape: f64,
    /// Cap on the extra (pareto) delay, ms; 0 = none.
    pub jitter_max_ms: f64,
    /// May packets overtake one another?
    pub reorder: bool,
    /// Delay spikes: how many a second on average, extra delay at the onset, linear decay time.
    pub spike_per_s: f64,
    pub spike_ms: f64,
    pub spike_decay_ms: f64,
    /// Independent loss, 0..1.
    pub loss: f64,
    /// Gilbert-Elliott in continuous time: mean stay in the bad and the good state (ms) and the loss in each.
    pub ge_bad_ms: f64,
    pub ge_good_ms: f64,
    pub ge_loss_bad: f64,
    pub ge_loss_good: f64,
    /// Bottleneck, bit/s of IP packets (0 = none), and its drop-tail queue in ms of that rate.
    pub rate_bps: f64,
    pub queue_ms: f64,
}

impl Default for Dir {
    fn default() -> Self {
        Dir {
            delay_ms: 0.0,
            jitter: "none".into(),
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
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Profile {
    #[serde(default)]
    pub about: String,
    #[serde(default)]
    pub seed: u64,
    /// Both directions, unless `ab` / `ba` say otherwise.
    #[serde(default)]
    pub both: Option<Dir>,
    #[serde(default)]
    pub ab: Option<Dir>,
    #[serde(default)]
    pub ba: Option<Dir>,
}

#[derive(Deserialize)]
struct File {
    profile: BTreeMap<String, Profile>,
}

fn load(path: &str) -> File {
    let s = std::fs::read_to_string(path).unwrap_or_else(|e| {
        eprintln!("compare-link: {path}: {e}");
        std::process::exit(1)
    });
    toml::from_str(&s).unwrap_or_else(|e| {
        eprintln!("compare-link: {path}: {e}");
        std::process::exit(1)
    })
}

pub fn load_profile(path: &str, name: &str) -> Profile {
    match load(path).profile.remove(name) {
        Some(p) => p,
        None => {
            eprintln!("compare-link: no profile {name} in {path}");
            std::process::exit(1)
        }
    }
}

pub fn list_profiles(path: &str) -> Vec<String> {
    load(path).profile.into_keys().collect()
}

/// xoshiro256** seeded by splitmix64: reproducible everywhere.
pub struct Rng([u64; 4]);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        let mut z = seed;
        let mut s = [0u64; 4];
        for x in s.iter_mut() {
            z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut y = z;
            y = (y ^ (y >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            y = (y ^ (y >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            *x = y ^ (y >> 31);
        }
        Rng(s)
    }
    pub fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let r = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        r
    }
    /// (0, 1]
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }
    pub fn exp(&mut self, mean: f64) -> f64 {
        -self.unit().ln() * mean
    }
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fate {
    /// Deliver at this instant (ns on the caller's clock).
    At(i64),
    LostRandom,
    LostBurst,
    QueueFull,
}

/// The state of one direction.
pub struct Channel {
    d: Dir,
    t0: i64,
    time_rng: Rng,
    spike_rng: Rng,
    pkt_rng: Rng,
    bad: bool,
    ge_until: i64,
    next_spike: i64,
    spike_start: i64,
    wire_free: i64,
    last_out: i64,
}

const MS: f64 = 1e6;

impl Channel {
    pub fn new(d: Dir, seed: u64, t0: i64) -> Channel {
        let mut c = Channel {
            d,
            t0,
            time_rng: Rng::new(seed ^ 0xA5A5),
            spike_rng: Rng::new(seed ^ 0x5A5A_0000),
            pkt_rng: Rng::new(seed ^ 0x1234_5678),
            bad: false,
            ge_until: t0,
            next_spike: i64::MAX,
            spike_start: i64::MIN / 2,
            wire_free: 0,
            last_out: 0,
        };
        if c.ge() {
            c.ge_until = c.t0 + (c.time_rng.exp(c.d.ge_good_ms) * MS) as i64;
        }
        if c.d.spike_per_s > 0.0 {
            c.next_spike = c.t0 + (c.spike_rng.exp(1e9 / c.d.spike_per_s)) as i64;
        }
        c
    }

    fn ge(&self) -> bool {
        self.d.ge_bad_ms > 0.0 && self.d.ge_good_ms > 0.0
    }

    /// The average loss that the model must show.
    #[allow(dead_code)]
    pub fn expected_loss(&self) -> f64 {
        let mut keep = 1.0 - self.d.loss;
        if self.ge() {
            let pb = self.d.ge_bad_ms / (self.d.ge_bad_ms + self.d.ge_good_ms);
            keep *= 1.0 - (pb * self.d.ge_loss_bad + (1.0 - pb) * self.d.ge_loss_good);
        }
        1.0 - keep
    }

    fn advance(&mut self, now: i64) {
        if self.ge() {
            while self.ge_until <= now {
                self.bad = !self.bad;
                let mean = if self.bad { self.d.ge_bad_ms } else { self.d.ge_good_ms };
                self.ge_until += (self.time_rng.exp(mean) * MS) as i64 + 1;
            }
        }
        while self.next_spike <= now {
            self.spike_start = self.next_spike;
            self.next_spike += (self.spike_rng.exp(1e9 / self.d.spike_per_s)) as i64 + 1;
        }
    }

    pub fn packet(&mut self, now: i64, bytes: usize) -> Fate {
        self.advance(now);
        // the same number of draws for every packet, whatever its fate
        let u_loss = self.pkt_rng.unit();
        let u_ge = self.pkt_rng.unit();
        let n = self.pkt_rng.normal();
        let u_par = self.pkt_rng.unit();

        // bottleneck first: the queue stands before the lossy, jittery part
        let mut t = now;
        if self.d.rate_bps > 0.0 {
            let tx = (bytes as f64 * 8.0 / self.d.rate_bps * 1e9) as i64;
            let backlog = (self.wire_free - now).max(0);
            if backlog + tx > ((self.d.queue_ms) * MS) as i64 + tx.min((5.0 * MS) as i64) {
                return Fate::QueueFull;
            }
            self.wire_free = self.wire_free.max(now) + tx;
            t = self.wire_free;
        }
        if u_loss <= self.d.loss {
            return Fate::LostRandom;
        }
        if self.ge() {
            let p = if self.bad { self.d.ge_loss_bad } else { self.d.ge_loss_good };
            if u_ge <= p {
                return Fate::LostBurst;
            }
        }
        let mut d = self.d.delay_ms;
        match self.d.jitter.as_str() {
            "normal" => d += n.clamp(-3.0, 3.0) * self.d.jitter_ms,
            "pareto" => {
                let mut e = self.d.pareto_scale_ms * (u_par.powf(-1.0 / self.d.pareto_shape) - 1.0);
                if self.d.jitter_max_ms > 0.0 {
                    e = e.min(self.d.jitter_max_ms);
                }
                d += e;
            }
            _ => {}
        }
        if self.d.spike_per_s > 0.0 && self.d.spike_decay_ms > 0.0 {
            let since = (now - self.spike_start) as f64 / MS;
            if since < self.d.spike_decay_ms {
                d += self.d.spike_ms * (1.0 - since / self.d.spike_decay_ms);
            }
        }
        let mut out = t + (d.max(0.0) * MS) as i64;
        if !self.d.reorder {
            out = out.max(self.last_out);
        }
        self.last_out = self.last_out.max(out);
        Fate::At(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(d: Dir, seed: u64, n: usize, gap_ms: f64) -> (f64, Vec<f64>) {
        let mut c = Channel::new(d, seed, 0);
        let mut lost = 0;
        let mut ds = vec![];
        for i in 0..n {
            let t = (i as f64 * gap_ms * MS) as i64;
            match c.packet(t, 200) {
                Fate::At(o) => ds.push((o - t) as f64 / MS),
                _ => lost += 1,
            }
        }
        (lost as f64 / n as f64, ds)
    }

    #[test]
    fn ge_average() {
        let d = Dir { ge_bad_ms: 60.0, ge_good_ms: 205.0, ge_loss_bad: 0.85, ge_loss_good: 0.01, ..Dir::default() };
        let want = Channel::new(d.clone(), 1, 0).expected_loss();
        let (l, _) = run(d, 7, 400_000, 20.0);
        assert!((want - 0.2).abs() < 0.01, "{want}");
        assert!((l - want).abs() < 0.01, "{l} {want}");
    }

    #[test]
    fn same_seed_same_outages() {
        let d = Dir { ge_bad_ms: 60.0, ge_good_ms: 205.0, ge_loss_bad: 1.0, ..Dir::default() };
        // twice the packet rate sees the same channel state at the same instants
        let mut a = Channel::new(d.clone(), 3, 0);
        let mut b = Channel::new(d, 3, 0);
        for i in 0..10_000i64 {
            let t = i * 10_000_000;
            let fb = b.packet(t, 100);
            if i % 2 == 0 {
                assert_eq!(a.packet(t, 100) == Fate::LostBurst, fb == Fate::LostBurst);
            }
        }
    }

    #[test]
    fn rate_limits() {
        // 100 kbit/s offered to 64 kbit/s: 36% must go, and delay settles at the queue
        let d = Dir { rate_bps: 64_000.0, queue_ms: 200.0, ..Dir::default() };
        let (l, ds) = run(d, 1, 10_000, 16.0);
        assert!((l - 0.36).abs() < 0.02, "{l}");
        assert!(*ds.last().unwrap() > 170.0 && *ds.last().unwrap() < 230.0);
    }

    #[test]
    fn in_order_unless_told() {
        let mut d = Dir { delay_ms: 30.0, jitter: "normal".into(), jitter_ms: 10.0, ..Dir::default() };
        for reorder in [false, true] {
            d.reorder = reorder;
            let mut c = Channel::new(d.clone(), 9, 0);
            let mut prev = 0;
            let mut over = 0;
            for i in 0..2000i64 {
                if let Fate::At(o) = c.packet(i * 5_000_000, 100) {
                    if o < prev {
                        over += 1;
                    }
                    prev = o;
                }
            }
            assert_eq!(over > 0, reorder);
        }
    }
}
