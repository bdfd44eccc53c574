//! How a voice is sent: frame length, coder, rate, and how much of the past goes along. A pure state machine: reports and
//! path figures in, one [`Policy`] out, made for the worst-off listener since all hear the same packets.
//!
//! 1. Loss per peer, over the last seconds, from the listener's reports and from the path's own acknowledgements. What was
//!    lost is forgotten slowly, and more slowly by a path that went bad again soon after: each change of frame length and
//!    delay is heard a little.
//! 2. A grade per peer, from the loss remembered and from whether it comes in bursts.
//! 3. A limit per peer: where the path says that it is full, the rate goes down at once; it is tried upwards in steps, the
//!    more rarely the sooner the last try failed.
//! 4. The worst grade and the smallest limit of all peers pick the best plan that fits.

mod limit;
mod loss;
mod plans;

pub use loss::MAX_SAMPLES;

use self::{
    limit::Limit,
    loss::{Grade, Loss},
    plans::{plan, plans},
};
use crate::{
    frame::{BRIEF_HEADER_BYTES, FRAME_HEADER_BYTES, HEADER_BYTES, MAX_PACKET_BYTES, STEP},
    opus::Application,
    report::{PathStats, Report},
    time::{Micros, SAMPLE_RATE, Samples},
};
use serde::{Deserialize, Serialize};

/// Peers whose reports are remembered; a further one is not listened to until another is forgotten.
pub const MAX_PEERS: usize = 256;
/// What a packet costs beyond its plaintext: sealing, QUIC, UDP and IP headers, in bytes.
pub const WIRE_OVERHEAD_BYTES: usize = 81;
/// Most that goes on the wire against loss where the user sets no limit, in kb/s: more gains little, and fills what may be
/// the reason of the loss. A user's own limit takes its place.
pub const LOSSY_KBPS: u32 = 205;
/// The same where the listener wishes to be quick: only more packets make up for less delay.
pub const QUICK_KBPS: u32 = 275;
/// Part of the rate that a richer plan may fill: the rest keeps a wobbling estimate from switching to and fro.
const CLIMB_PERCENT: u32 = 85;

/// What the call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Speech: 5 ms frames on a clean path.
    #[default]
    Talk,
    /// Music and playing together: 2.5 ms frames, three times the packets.
    Music,
}

/// How much delay is taken for how much clarity, where the path makes one choose. On a clean path all are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delay {
    /// Under about 110 ms even on a path that loses 30 %; words get lost there, and it takes up to [`QUICK_KBPS`].
    Quick,
    /// Clear speech at up to 190 ms.
    #[default]
    Balanced,
    /// Every word, at up to 220 ms and more.
    Safe,
}

/// How the voice is sent now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Length of a frame: 2.5, 5, 10 or 20 ms.
    pub frame: Samples,
    /// Which of Opus's coders.
    pub application: Application,
    /// Of the main frames alone, in bits a second.
    pub bitrate: u32,
    /// Effort of the encoder, 0..=10.
    pub complexity: u8,
    /// In-band FEC (LBRR).
    pub fec: bool,
    /// Loss that the encoder prepares for, in %.
    pub loss_perc: u8,
    /// Past described by DRED, in ms; 0 is off.
    pub dred_ms: u16,
    /// How many frames back each copy lies, nearest first; at most [`crate::frame::MAX_COPIES`].
    pub copies: Vec<u8>,
    /// The same for the extra packet half a frame later, which repeats the frame too. Empty: there is none.
    #[serde(default)]
    pub half: Vec<u8>,
}

impl Policy {
    /// Bytes of the main frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        (u64::from(self.bitrate) * u64::from(self.frame.0)).div_ceil(u64::from(SAMPLE_RATE) * 8) as usize
    }

    /// Bytes of most packets before sealing.
    #[must_use]
    pub fn packet_bytes(&self) -> usize {
        if self.is_plain() {
            BRIEF_HEADER_BYTES + self.frame_bytes()
        } else {
            self.bytes_with(self.copies.len())
        }
    }

    /// Bytes of a packet with all that it may say, before sealing.
    #[must_use]
    pub fn whole_bytes(&self) -> usize {
        self.bytes_with(self.copies.len())
    }

    /// The same of the packet half a frame later.
    #[must_use]
    pub fn half_bytes(&self) -> usize {
        self.bytes_with(self.half.len())
    }

    /// Whether frames may differ in length, since packets do not: a short one leaves room for a long one beside it. Short
    /// speech frames gain much by it (0.2 of PESQ at 10 ms), those of 20 ms nothing.
    #[must_use]
    pub fn varies_within(&self) -> bool {
        !self.copies.is_empty() && self.application == Application::Voip && self.frame < Samples::MS_20
    }

    /// Whether no packet carries copies: most are brief then.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.copies.is_empty() && self.half.is_empty()
    }

    fn bytes_with(&self, copies: usize) -> usize {
        (HEADER_BYTES + (1 + copies) * (FRAME_HEADER_BYTES + self.frame_bytes())).min(MAX_PACKET_BYTES)
    }

    /// Rate on the wire with all headers, in kb/s.
    #[must_use]
    pub fn wire_kbps(&self) -> u32 {
        let half =
            if self.half.is_empty() { 0 } else { self.bytes_with(self.half.len()) + WIRE_OVERHEAD_BYTES };
        let bits = (self.packet_bytes() + WIRE_OVERHEAD_BYTES + half) as u64 * 8 * u64::from(SAMPLE_RATE);
        (bits / u64::from(self.frame.0.max(1)) / 1000) as u32
    }

    /// Age of a frame's first sample once the frame can be encoded, `lookahead` counted, in steps of 2.5 ms, rounded up.
    #[must_use]
    pub fn span(&self, lookahead: Samples) -> u8 {
        (self.frame.0.saturating_add(lookahead.0)).div_ceil(STEP.0).min(255) as u8
    }

    /// How far back the oldest copy starts, from the main frame.
    #[must_use]
    pub fn reach(&self) -> Samples {
        let furthest = self.copies.iter().chain(&self.half).copied().max().unwrap_or(0);
        Samples(self.frame.0 * u32::from(furthest))
    }
}

#[derive(Debug, Default)]
struct Peer {
    id: u32,
    loss: Loss,
    limit: Limit,
    /// Its last wish.
    delay: Option<Delay>,
    /// The path loses nothing: what is late there is late, and copies only come later still.
    reliable: bool,
}

impl Peer {
    fn grade(&self) -> Grade {
        if self.reliable { Grade::Clean } else { self.loss.grade() }
    }
}

/// Picks the policy. Call `handle_*` as news comes and [`Controller::policy`] before each packet.
#[derive(Debug)]
pub struct Controller {
    profile: Profile,
    channels: u8,
    max_kbps: Option<u32>,
    /// Wished for where no listener says anything.
    own_delay: Delay,
    peers: Vec<Peer>,
    grade: Grade,
    delay: Delay,
    plan: usize,
    policy: Policy,
    judged_at: Option<Micros>,
}

impl Controller {
    /// Starts as for a clean path.
    #[must_use]
    pub fn new(profile: Profile, channels: u8, max_kbps: Option<u32>) -> Self {
        let mut controller = Self {
            profile,
            channels,
            max_kbps,
            own_delay: Delay::default(),
            peers: Vec::new(),
            grade: Grade::Clean,
            delay: Delay::default(),
            plan: 0,
            policy: plan(profile, channels, Grade::Clean, Delay::default(), 0),
            judged_at: None,
        };
        controller.update();
        controller
    }

    /// A listener's view of the last interval.
    pub fn handle_report(&mut self, now: Micros, peer: u32, report: &Report) {
        let spacing = Samples(self.policy.frame.0 / if self.policy.half.is_empty() { 1 } else { 2 });
        if let Some(peer) = self.peer(peer) {
            peer.delay = Some(report.delay);
            peer.loss.handle_report(now, report, spacing);
            self.update();
        }
    }

    /// The path's own view.
    pub fn handle_path(&mut self, now: Micros, peer: u32, path: &PathStats) {
        if let Some(peer) = self.peer(peer) {
            peer.reliable = path.reliable;
            match path.max_kbps.filter(|_| path.presumed) {
                Some(kbps) => peer.limit.presume(now, kbps),
                None => peer.limit.hear(now, path.max_kbps),
            }
            peer.loss.handle_totals(now, path.sent, path.lost);
            self.update();
        }
    }

    /// What the user wishes; a listener's own wish, in its reports, goes before it.
    pub fn set_delay(&mut self, delay: Delay) {
        self.own_delay = delay;
        self.update();
    }

    /// What the call is for from now on.
    pub fn set_profile(&mut self, profile: Profile) {
        if profile != self.profile {
            (self.profile, self.plan) = (profile, 0);
            self.policy = plan(profile, self.channels, self.grade, self.delay, 0);
            self.update();
        }
    }

    /// Whether anything was heard of any listener.
    #[must_use]
    pub fn has_listeners(&self) -> bool {
        !self.peers.is_empty()
    }

    /// A peer left: it no longer counts.
    pub fn forget_peer(&mut self, peer: u32) {
        self.peers.retain(|p| p.id != peer);
        self.update();
    }

    /// Sets the user's own limit for one listener's copy of this voice, in kb/s with all headers.
    pub fn set_max_kbps(&mut self, max_kbps: Option<u32>) {
        self.max_kbps = max_kbps;
        self.update();
    }

    /// The policy in force from `now` on.
    pub fn policy(&mut self, now: Micros) -> &Policy {
        if self.judged_at.is_none_or(|at| now.since(at) >= 100_000) {
            self.judged_at = Some(now);
            self.peers.iter_mut().for_each(|p| p.loss.judge(now));
            self.update();
        }
        &self.policy
    }

    /// The policy as last chosen.
    #[must_use]
    pub fn current(&self) -> &Policy {
        &self.policy
    }

    fn peer(&mut self, id: u32) -> Option<&mut Peer> {
        let at = match self.peers.iter().position(|p| p.id == id) {
            Some(at) => at,
            None if self.peers.len() < MAX_PEERS => {
                self.peers.push(Peer { id, ..Peer::default() });
                self.peers.len() - 1
            }
            None => return None,
        };
        self.peers.get_mut(at)
    }

    fn update(&mut self) {
        let grade = self.peers.iter().map(Peer::grade).max().unwrap_or_default();
        // Those worst off decide; of several the quickest, since a copy that comes too late for it is of no use to it.
        let worst = self.peers.iter().filter(|p| p.grade() == grade);
        let delay = worst.filter_map(|p| p.delay).min().unwrap_or(self.own_delay);
        self.choose(grade, delay);
    }

    /// Takes the first plan that fits. Within one grade a richer plan must fit with room to spare.
    fn choose(&mut self, grade: Grade, delay: Delay) {
        let against_loss = if delay == Delay::Quick { QUICK_KBPS } else { LOSSY_KBPS };
        let own = self
            .max_kbps
            .or_else(|| (self.profile == Profile::Talk && grade >= Grade::Lossy).then_some(against_loss));
        let cap = self.peers.iter().filter_map(|p| p.limit.kbps).chain(own).min();
        let same = (grade, delay) == (self.grade, self.delay);
        let fits = |at: usize| {
            let limit = cap.map(|cap| {
                let climbs = same && at < self.plan && Some(cap) != own;
                if climbs { (u64::from(cap) * u64::from(CLIMB_PERCENT) / 100) as u32 } else { cap }
            });
            limit.is_none_or(|limit| plan(self.profile, self.channels, grade, delay, at).wire_kbps() <= limit)
        };
        let plans = plans(self.profile, grade, delay);
        let outages = self.peers.iter().any(|p| p.loss.has_outages());
        let helps = |at: usize| !outages || plans.get(at).is_none_or(|plan| plan.5.is_empty());
        let last = plans.len() - 1;
        let at = (0..last).find(|at| helps(*at) && fits(*at)).unwrap_or(last);
        if !same || at != self.plan || self.judged_at.is_none() {
            (self.grade, self.delay, self.plan) = (grade, delay, at);
            self.policy = plan(self.profile, self.channels, grade, delay, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(s: f64) -> Micros {
        Micros((s * 1e6) as u64)
    }

    /// A second of reports of a stream with the given loss.
    fn report(loss_percent: u32) -> Report {
        Report { received: 200 - 2 * loss_percent, lost: 2 * loss_percent, ..Report::default() }
    }

    #[test]
    fn a_clean_path_gets_five_millisecond_frames_and_music_half_of_that() {
        let mut talk = Controller::new(Profile::Talk, 1, None);
        let policy = talk.policy(seconds(0.0)).clone();
        assert_eq!((policy.frame, policy.application), (Samples::MS_5, Application::LowDelay));
        assert!(policy.copies.is_empty());
        let mut music = Controller::new(Profile::Music, 2, None);
        assert_eq!(music.policy(seconds(0.0)).frame, Samples::MS_2_5);
        assert!(music.policy(seconds(0.0)).bitrate >= 128_000);
    }

    #[test]
    fn what_the_call_is_for_may_change_while_it_goes_on() {
        let mut controller = Controller::new(Profile::Talk, 1, Some(90));
        controller.handle_report(seconds(0.1), 1, &report(20));
        for profile in [Profile::Music, Profile::Talk, Profile::Talk, Profile::Music] {
            controller.set_profile(profile);
            let mut fresh = Controller::new(profile, 1, Some(90));
            fresh.handle_report(seconds(0.1), 1, &report(20));
            assert_eq!(controller.policy(seconds(0.2)), fresh.policy(seconds(0.2)), "{profile:?}");
        }
    }

    #[test]
    fn loss_is_answered_by_the_first_report_and_forgotten_after_quiet_seconds() {
        let mut controller = Controller::new(Profile::Talk, 1, None);
        for s in 0..3 {
            controller.handle_report(seconds(s.into()), 1, &report(0));
        }
        controller.handle_report(seconds(3.0), 1, &report(20));
        assert_eq!(controller.policy(seconds(3.0)).copies, [1, 2, 3, 4]);
        assert_eq!(controller.policy(seconds(3.0)).frame, Samples::MS_20);
        let mut back = None;
        for s in 4..60 {
            controller.handle_report(seconds(s.into()), 1, &report(0));
            if controller.policy(seconds(s.into())).frame == Samples::MS_5 {
                back.get_or_insert(s);
            }
        }
        let back = back.unwrap();
        assert!((12..45).contains(&back), "back at {back} s");
    }

    #[test]
    fn steady_loss_that_stops_is_known_to_have_stopped_within_five_seconds() {
        let mut controller = Controller::new(Profile::Talk, 1, None);
        let bursts = [0, 0, 1, 0, 0, 0, 0, 0];
        let bad = Report { received: 22, lost: 3, bursts, ..Report::default() };
        let good = Report { received: 25, ..Report::default() };
        for half in 0..60 {
            controller.handle_report(seconds(f64::from(half) / 2.0), 1, &bad);
        }
        assert!(!controller.policy(seconds(30.0)).copies.is_empty());
        let back = (1..60).find(|half| {
            let now = seconds(29.5 + f64::from(*half) / 2.0);
            controller.handle_report(now, 1, &good);
            controller.policy(now).copies.is_empty()
        });
        assert!(back.is_some_and(|half| half <= 10), "{back:?}");
    }

    #[test]
    fn a_wish_for_less_delay_takes_shorter_frames_and_one_for_clarity_more_copies() {
        for (delay, frame, copies) in [
            (Delay::Quick, Samples::MS_10, 6),
            (Delay::Balanced, Samples::MS_20, 4),
            (Delay::Safe, Samples::MS_20, 6),
        ] {
            let mut controller = Controller::new(Profile::Talk, 1, None);
            controller.handle_report(seconds(0.0), 1, &Report { delay, ..report(20) });
            let policy = controller.policy(seconds(0.0)).clone();
            assert_eq!((policy.frame, policy.copies.len()), (frame, copies), "{delay:?}");
            assert!(policy.wire_kbps() <= if delay == Delay::Quick { QUICK_KBPS } else { 200 }, "{policy:?}");
            // The wish of one who hears well changes nothing for one who does not.
            controller.handle_report(seconds(0.1), 2, &Report { delay: Delay::Quick, ..report(0) });
            assert_eq!(*controller.policy(seconds(0.1)), policy);
        }
    }

    #[test]
    fn a_path_that_loses_nothing_by_itself_gets_no_copies() {
        let mut controller = Controller::new(Profile::Talk, 1, None);
        let path = PathStats { reliable: true, ..PathStats::default() };
        controller.handle_path(seconds(0.0), 1, &path);
        controller.handle_report(seconds(0.5), 1, &report(20));
        assert!(controller.policy(seconds(0.5)).copies.is_empty());
    }

    #[test]
    fn a_limit_that_is_only_presumed_is_gone_after_seconds_and_one_that_was_measured_stays() {
        let thin = PathStats { max_kbps: Some(46), presumed: true, ..PathStats::default() };
        let free = PathStats::default();
        for (full, back) in [(None, 4..12), (Some(5), 20..100)] {
            let mut controller = Controller::new(Profile::Talk, 1, None);
            controller.handle_path(seconds(0.0), 1, &thin);
            assert_eq!(controller.policy(seconds(0.0)).frame, Samples::MS_20);
            let began = (1..120).find(|s| {
                let measured = PathStats { max_kbps: Some(50), ..free };
                let path = if full == Some(*s) { &measured } else { &free };
                controller.handle_path(seconds((*s).into()), 1, path);
                controller.policy(seconds((*s).into())).frame == Samples::MS_5
            });
            assert!(began.is_some_and(|s| back.contains(&s)), "{full:?}: {began:?}");
        }
    }

    #[test]
    fn little_loss_takes_few_copies_and_a_single_burst_none() {
        let mut controller = Controller::new(Profile::Talk, 1, None);
        controller.handle_report(seconds(0.0), 1, &Report { received: 198, lost: 2, ..Report::default() });
        assert_eq!(controller.policy(seconds(0.0)).frame, Samples::MS_5);
        controller.handle_report(seconds(1.0), 1, &report(4));
        assert_eq!(controller.policy(seconds(1.0)).copies, [1]);
    }

    #[test]
    fn acknowledgements_show_loss_before_any_report_does() {
        let mut controller = Controller::new(Profile::Talk, 1, None);
        let path = |sent, lost| PathStats { sent, lost, ..PathStats::default() };
        controller.handle_path(seconds(0.0), 1, &path(1000, 0));
        controller.handle_path(seconds(0.5), 1, &path(1100, 20));
        assert_eq!(controller.policy(seconds(0.5)).copies, [1, 2, 3, 4]);
        controller.handle_path(seconds(0.6), 1, &path(10, 0));
        assert_eq!(
            controller.policy(seconds(0.6)).copies,
            [1, 2, 3, 4],
            "a new path starts its totals afresh"
        );
    }

    #[test]
    fn the_worst_listener_decides_until_it_leaves() {
        let mut controller = Controller::new(Profile::Talk, 1, None);
        controller.handle_report(seconds(0.0), 1, &report(0));
        controller.handle_report(seconds(0.0), 2, &report(30));
        assert_eq!(controller.policy(seconds(0.0)).frame, Samples::MS_20);
        controller.forget_peer(2);
        assert_eq!(controller.policy(seconds(0.0)).frame, Samples::MS_5);
    }

    #[test]
    fn a_thin_uplink_is_respected_and_a_wobbling_one_does_not_flap() {
        for (cap, most) in [(300, 300), (140, 140), (90, 90), (64, 64)] {
            let mut controller = Controller::new(Profile::Talk, 1, Some(cap));
            assert!(controller.policy(seconds(0.0)).wire_kbps() <= most, "{cap}");
            controller.handle_report(seconds(0.0), 1, &report(20));
            assert!(controller.policy(seconds(0.0)).wire_kbps() <= most, "{cap} with loss");
        }
        let mut controller = Controller::new(Profile::Talk, 1, None);
        let mut changes = 0;
        let mut last = controller.policy(seconds(0.0)).clone();
        for i in 0..100u32 {
            let path =
                PathStats { max_kbps: Some(if i % 2 == 0 { 215 } else { 230 }), ..PathStats::default() };
            controller.handle_path(seconds(f64::from(i)), 1, &path);
            let policy = controller.policy(seconds(f64::from(i))).clone();
            changes += u32::from(policy != last);
            last = policy;
        }
        assert!(changes <= 1, "{changes}");
    }

    #[test]
    fn every_plan_fits_a_packet_with_all_its_copies() {
        for profile in [Profile::Talk, Profile::Music] {
            let delays = [Delay::Quick, Delay::Balanced, Delay::Safe];
            let grades = [Grade::Clean, Grade::Light, Grade::Lossy, Grade::Bad];
            for (grade, delay) in grades.into_iter().flat_map(|g| delays.map(|d| (g, d))) {
                for at in 0..plans(profile, grade, delay).len() {
                    for channels in [1, 2] {
                        let policy = plan(profile, channels, grade, delay, at);
                        let whole = HEADER_BYTES
                            + (1 + policy.copies.len()) * (FRAME_HEADER_BYTES + policy.frame_bytes());
                        assert!(whole <= MAX_PACKET_BYTES, "{policy:?} takes {whole}");
                        assert!(policy.reach().0 / STEP.0 <= 255);
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn strange_reports_neither_panic_nor_grow_memory(
            reports in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>()), 0..600),
        ) {
            let mut controller = Controller::new(Profile::Talk, 1, None);
            for (peer, received, lost, sent, at) in reports {
                controller.handle_report(Micros(at), peer, &Report { received, lost, ..Report::default() });
                controller.handle_path(Micros(at), peer, &PathStats { sent, lost: lost.into(), ..PathStats::default() });
                controller.policy(Micros(at));
            }
            prop_assert!(controller.peers.len() <= MAX_PEERS);
            prop_assert!(controller.peers.iter().all(|p| p.loss.samples() <= MAX_SAMPLES));
        }
    }
}
