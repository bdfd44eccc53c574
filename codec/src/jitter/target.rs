//! How much delay the path needs: where one more millisecond costs the ear more than the frames that it would save.
//!
//! Availability is kept less the speaker's own span (frame and lookahead), so that a change of frame length changes the
//! target at once; and it is moved along with the drift. A frame that only a copy brought counts as of when the copy
//! came, so the target follows what the copies in use bring, and when. A lone stall of the path is no reason to lag: it
//! is left out until it becomes a habit.
//!
//! What was chosen is kept until another choice is clearly better: at once where that is more delay, after quiet seconds
//! where it is less. Each move is heard a little, so a target that swings costs more than one that is too high.

use super::JitterConfig;
use crate::{
    drift::LEAD,
    policy::Delay,
    time::{SAMPLE_RATE, Samples},
};
use std::collections::VecDeque;

/// Arrivals remembered.
pub const MAX_ARRIVALS: usize = 4_096;
/// The target is taken from this time, in samples.
const WINDOW: i64 = 20 * SAMPLE_RATE as i64;
/// The present level of the path is the least lateness of this time.
const RECENT: i64 = SAMPLE_RATE as i64;
/// Fewer arrivals than this in that time say nothing of it.
const LEAST_RECENT: usize = 20;
/// A second whose fastest packet lies so far from the present level, beyond the present spread, was another path, or a queue
/// that has gone.
const OTHER_LEVEL: i64 = 15 * 48;
/// The highest level of late is kept for so long, as what the ceiling stands on.
const LEVEL_STANDS: i64 = 10 * SAMPLE_RATE as i64;
/// Share of arrivals, in 1/1000, beyond the spread that is shown.
const LATE_OF_JITTER: usize = 50;
/// What missing sound costs, in ms of delay, times the square root of its share in percent: measured by PESQ, the first
/// missing frames hurt most. Low-delay frames that come too late are mended, so that they cost less than lost ones.
const COST: [Cost; 3] = [
    Cost { of: Delay::Quick, fragile: 15.0, speech: 150.0 },
    Cost { of: Delay::Balanced, fragile: 40.0, speech: 56.0 },
    Cost { of: Delay::Safe, fragile: 140.0, speech: 200.0 },
];
/// Most delay beyond the fastest packet that is taken where one wishes to be quick.
const QUICK_CEILING: i64 = 56 * 48;
/// Where so great a part of the frames comes so much later than the fastest by itself, not as a copy, delay buys more: what
/// is late there is late together, and is missed in one piece. Missing speech then costs so many times more.
const WILD_SHARE: f64 = 0.05;
const WILD: i64 = 60 * 48;
const WILD_COSTS: f64 = 1.8;
/// Share in percent below which more hardly counts: the odd frame in a minute.
const HARMLESS: f64 = 0.005;
/// A greater delay must save so much of that cost, in ms.
const WORTH_RAISING_FRAGILE: f64 = 3.0;
const WORTH_RAISING_SPEECH: f64 = 10.0;
/// A lower one must be lower by so much, and be wanted for so long.
const WORTH_LOWERING: i64 = 72;
const LOWER_AFTER_FRAGILE: i64 = 8 * SAMPLE_RATE as i64;
const LOWER_AFTER_SPEECH: i64 = 15 * SAMPLE_RATE as i64;
/// Of a lower one, half is taken each time, and so much at least.
const LOWER_AT_LEAST: i64 = 25 * 48;
/// A path whose arrivals spread by no more than this for so long is a calm one.
const CALM_FOR: i64 = 6 * SAMPLE_RATE as i64;
const CALM_SPREAD: i64 = 14 * 48;
/// A spread, over all that is remembered, below which a lower target is taken all at once.
const CALM: i64 = 20 * 48;
/// A far lower one is taken sooner: a queue has drained, or another path is in use.
const FAR_LOWER: i64 = 15 * 48;
const FAR_LOWER_AFTER: i64 = SAMPLE_RATE as i64;
const CHANGED_FOR: i64 = 5 * SAMPLE_RATE as i64;
/// Lateness beyond the present need that makes a stall.
const STALL: i64 = 25 * 48;
/// A stall is over when lateness is back within this.
const STALL_OVER: i64 = 2 * 48;
/// A stall that goes on for so long is the new state of the path.
const STALL_ENDS: i64 = 300 * 48;
/// So many stalls in so much time are a habit, and are provided for.
const HABIT: usize = 3;
const HABIT_WINDOW: i64 = 15 * SAMPLE_RATE as i64;
/// A card that was out of step is in step again after so many samples.
const IN_STEP_AFTER: i64 = 30 * 48;
/// Until this much was seen of the path, the delay of the start is kept.
const KNOWN_AFTER: i64 = SAMPLE_RATE as i64 / 2;
/// The target is worked out anew after so many samples, and sooner where something came late.
const EVERY: i64 = 250 * 48;
const EVERY_LATE: i64 = 40 * 48;
const STEP: i64 = Samples::MS_2_5.0 as i64;

/// See [`COST`].
struct Cost {
    of: Delay,
    fragile: f64,
    speech: f64,
}

#[derive(Debug, Clone, Copy)]
struct Came {
    pulled: i64,
    lateness: i64,
    back: u8,
    steps: u8,
    /// Steps of the pause before it, for which nothing was to come.
    pause: u16,
}

impl Came {
    /// Lateness as it would be now: drift has moved it since.
    fn moved(&self, age: i64, slope: f64) -> i64 {
        self.lateness + (slope * age as f64) as i64
    }
}

/// A frame that came for the first time.
#[derive(Debug, Clone, Copy)]
pub struct FirstSight {
    /// Its availability less the speaker's span.
    pub lateness: i64,
    /// How many steps before its packet's main frame it lies.
    pub back: u8,
    /// Its length.
    pub duration: Samples,
    /// For so long before it nothing was sent.
    pub pause: Samples,
}

/// How the voice is sent at present.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Manner {
    /// How many steps back the copies lie that packets carry.
    pub reach: u8,
    /// Whether gaps in it are filled badly: not coded as speech.
    pub fragile: bool,
}

/// The state of the path, in samples, less the speaker's span; see [`Target::need`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Availability of the fastest.
    pub base: i64,
    /// Offset at which to play.
    pub offset: i64,
    /// 95th percentile less the minimum.
    pub jitter: i64,
}

/// Learns from arrivals what offset is needed.
#[derive(Debug)]
pub struct Target {
    config: JitterConfig,
    came: VecDeque<Came>,
    sorted: Vec<(i64, u8)>,
    need: Option<Need>,
    /// The offset chosen, without margin, and when it was true.
    held: Option<(i64, i64)>,
    /// Since when less is wanted, and the most of it.
    lower: Option<(i64, i64)>,
    manner: Manner,
    /// When arrivals of another level of the path were forgotten last.
    changed: Option<i64>,
    /// What [`Target::level`] gives, and when it was seen.
    level: Option<(i64, i64)>,
    worked_out: i64,
    came_late: bool,
    began: Option<i64>,
    stall: Option<i64>,
    stalls: VecDeque<i64>,
    /// What comes before this is out of step with the card by the card's own fault.
    out_of_step_until: i64,
}

impl Target {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(config: JitterConfig) -> Self {
        Self {
            config,
            came: VecDeque::with_capacity(MAX_ARRIVALS),
            sorted: Vec::with_capacity(MAX_ARRIVALS),
            need: None,
            held: None,
            lower: None,
            manner: Manner::default(),
            changed: None,
            level: None,
            worked_out: i64::MIN,
            came_late: false,
            began: None,
            stall: None,
            stalls: VecDeque::with_capacity(16),
            out_of_step_until: i64::MIN,
        }
    }

    /// The sound card has just missed its moment, and asks for sound a little too early or too late until it is in step again:
    /// what comes meanwhile says nothing of the path.
    pub fn out_of_step(&mut self, pulled: i64) {
        self.out_of_step_until = pulled.saturating_add(IN_STEP_AFTER);
    }

    /// The path is another one: what was learnt does not hold.
    pub fn start_afresh(&mut self) {
        self.came.clear();
        self.need = None;
        self.held = None;
        self.lower = None;
        self.stall = None;
        self.level = None;
        self.began = None;
        self.worked_out = i64::MIN;
    }

    /// A frame came for the first time when `pulled` samples had been pulled.
    pub fn insert(&mut self, pulled: i64, mut frame: FirstSight) {
        self.began.get_or_insert(pulled);
        if let Some((held, _)) = self.held.filter(|_| pulled < self.out_of_step_until) {
            frame.lateness = frame.lateness.min(held);
        }
        self.came_late |= self.need.is_some_and(|need| frame.lateness > need.offset);
        if self.is_stall(pulled, frame.lateness, frame.back) {
            return;
        }
        if self.came.len() == MAX_ARRIVALS {
            self.came.pop_front();
        }
        let steps = u8::try_from(i64::from(frame.duration.0) / STEP).unwrap_or(u8::MAX);
        let pause = u16::try_from(i64::from(frame.pause.0) / STEP).unwrap_or(u16::MAX);
        self.came.push_back(Came { pulled, lateness: frame.lateness, back: frame.back, steps, pause });
    }

    /// What the path needs now. `slope` is the drift in samples per sample.
    pub fn need(&mut self, pulled: i64, slope: f64, manner: Manner) -> Option<Need> {
        let every = if self.came_late || manner != self.manner { EVERY_LATE } else { EVERY };
        if pulled.saturating_sub(self.worked_out) < every {
            return self.need;
        }
        self.worked_out = pulled;
        self.came_late = false;
        while self.came.front().is_some_and(|c| pulled - c.pulled > WINDOW) {
            self.came.pop_front();
        }
        let base_now = self.forget_other_levels(pulled, slope);
        let first = self.came.front()?.pulled;
        let (mut base, mut known) = (i64::MAX, 0);
        let (mut mains, mut latest) = (0u32, 0u32);
        self.sorted.clear();
        for came in self.came.iter().filter(|c| c.back <= manner.reach) {
            let lateness = came.moved(pulled - came.pulled, slope);
            base = base.min(lateness);
            known += i64::from(came.steps) + i64::from(came.pause);
            self.sorted.push((lateness, came.steps));
            mains += u32::from(came.back == 0);
            latest += u32::from(came.back == 0 && lateness > base + WILD);
        }
        if self.sorted.is_empty() {
            return None;
        }
        let base_now = base_now.unwrap_or(base);
        self.sorted.sort_unstable_by(|a, b| b.cmp(a));
        let jitter = self.sorted.get(self.sorted.len() * LATE_OF_JITTER / 1000).map_or(0, |s| s.0 - base);
        let expected = known.max((pulled - first) / STEP);
        let changed = self.changed.is_some_and(|at| pulled - at < CHANGED_FOR);
        let wild = f64::from(latest) > WILD_SHARE * f64::from(mains);
        let ceiling = self.level(pulled, base_now) + self.ceiling();
        let chosen = self.choose(
            pulled,
            slope,
            manner,
            Seen { expected, known, base, ceiling, changed, jitter, wild },
        );
        let is_known = self.began.is_some_and(|began| pulled - began >= KNOWN_AFTER);
        let floor = if is_known { self.config.floor.0 } else { self.start().0 };
        let wanted = chosen + i64::from(self.config.margin.0) + LEAD as i64;
        // The ceiling stands on what comes now: a path that has just become longer by more than that is still heard.
        let floor = base + i64::from(floor).min(self.ceiling());
        self.need = Some(Need { base, offset: wanted.clamp(floor, ceiling.max(floor)), jitter });
        self.need
    }

    /// Forgets what came before the path changed its level, and says what the level is.
    fn forget_other_levels(&mut self, pulled: i64, slope: f64) -> Option<i64> {
        let lateness = |came: &Came| came.moved(pulled - came.pulled, slope);
        let recent = self.came.iter().rev().take_while(|c| pulled - c.pulled <= RECENT);
        let (few, level, most) = recent.fold((0, i64::MAX, i64::MIN), |(n, least, most), c| {
            (n + 1, least.min(lateness(c)), most.max(lateness(c)))
        });
        if few < LEAST_RECENT {
            return None;
        }
        if self.is_calm(pulled, slope) {
            let before = self.came.iter().take_while(|c| pulled - c.pulled > CALM_FOR).count();
            if self.came.range(..before).any(|c| lateness(c) > most + CALM_SPREAD) {
                self.came.drain(..before);
                self.changed = Some(pulled);
            }
        }
        let spread = most - level + OTHER_LEVEL;
        let (mut at, mut forget, mut was_other) = (0, 0, false);
        while let Some(begins) = self.came.get(at).map(|c| c.pulled) {
            let second = self.came.range(at..).take_while(|c| c.pulled - begins < RECENT);
            let (count, least) = second.fold((0, i64::MAX), |(n, least), c| (n + 1, least.min(lateness(c))));
            at += count;
            let is_other = (least - level).abs() > spread;
            // The second after such a one may hold some of it.
            if is_other || was_other && at + LEAST_RECENT <= self.came.len() {
                forget = at;
            }
            was_other = is_other;
        }
        if forget > 0 {
            self.came.drain(..forget);
            self.changed = Some(pulled);
        }
        Some(level)
    }

    /// Whether for [`CALM_FOR`] everything took the same time: what was learnt before is of a queue that has drained, or of
    /// another path.
    fn is_calm(&self, pulled: i64, slope: f64) -> bool {
        let recent = self.came.iter().rev().take_while(|c| pulled - c.pulled <= CALM_FOR);
        let (mut least, mut most) = (i64::MAX, i64::MIN);
        for came in recent {
            let lateness = came.moved(pulled - came.pulled, slope);
            (least, most) = (least.min(lateness), most.max(lateness));
            if most - least > CALM_SPREAD {
                return false;
            }
        }
        self.came.front().is_some_and(|c| pulled - c.pulled > CALM_FOR)
    }

    /// The level of the path that the ceiling stands on: the highest of late, so that a wavering path does not move it.
    fn level(&mut self, pulled: i64, base_now: i64) -> i64 {
        match self.level {
            Some((level, at)) if base_now < level && pulled - at < LEVEL_STANDS => level,
            _ => self.level.insert((base_now, pulled)).0,
        }
    }

    /// Most delay beyond the level of the path.
    fn ceiling(&self) -> i64 {
        let ceiling = i64::from(self.config.ceiling.0);
        if self.config.delay == Delay::Quick { ceiling.min(QUICK_CEILING) } else { ceiling }
    }

    /// Takes another wish over: what was held is weighed anew.
    pub fn set_delay(&mut self, delay: Delay) {
        if delay != self.config.delay {
            self.config.delay = delay;
            self.held = None;
        }
    }

    /// The state as last worked out.
    #[must_use]
    pub fn last(&self) -> Option<Need> {
        self.need
    }

    /// Delay in hand at the start, beyond the first packet.
    #[must_use]
    pub fn start(&self) -> Samples {
        Samples(self.config.start.0.max(self.config.floor.0).min(self.config.ceiling.0))
    }

    /// The offset to keep to, given what is in `sorted`.
    fn choose(&mut self, pulled: i64, slope: f64, manner: Manner, seen: Seen) -> i64 {
        let delay = self.config.delay;
        let cost = COST.iter().find(|cost| cost.of == delay).unwrap_or(&COST[1]);
        let (weight, worth, patience) = if manner.fragile {
            (cost.fragile, WORTH_RAISING_FRAGILE, LOWER_AFTER_FRAGILE)
        } else {
            let wild = if seen.wild { WILD_COSTS } else { 1.0 };
            (cost.speech * wild, WORTH_RAISING_SPEECH, LOWER_AFTER_SPEECH)
        };
        let cost = |offset: i64, missing: i64| {
            let percent = 100.0 * missing as f64 / seen.expected.max(1) as f64;
            offset as f64 / 48.0 + weight * ((percent + HARMLESS).sqrt() - HARMLESS.sqrt())
        };
        let held = self.held.map(|(offset, at)| offset + (slope * (pulled - at) as f64) as i64);
        let mut missing = seen.expected - seen.known;
        let mut best = (f64::INFINITY, seen.ceiling);
        let mut of_held = None;
        for (lateness, steps) in &self.sorted {
            if of_held.is_none() && held.is_some_and(|held| *lateness <= held) {
                of_held = held.map(|held| cost(held, missing));
            }
            let price = cost(*lateness, missing);
            if price < best.0 && *lateness <= seen.ceiling {
                best = (price, *lateness);
            }
            missing += i64::from(*steps);
        }
        let Some(held) = held else { return self.hold(pulled, best.1) };
        let of_held = of_held.unwrap_or_else(|| cost(held, missing));
        // Where copies begin to reach further back, room is made for them before the first is needed.
        let was = std::mem::replace(&mut self.manner, manner);
        if manner.reach > was.reach {
            let middle = self.sorted.get(self.sorted.len() / 2).map_or(held, |s| s.0);
            let level = (seen.base + middle) / 2;
            let room = (level + i64::from(manner.reach) * STEP).min(seen.ceiling);
            return self.hold(pulled, held.max(room).max(best.1));
        }
        if best.1 > held && of_held - best.0 > worth || held > seen.ceiling {
            return self.hold(pulled, best.1);
        }
        if best.1 > held - WORTH_LOWERING {
            self.lower = None;
            return held;
        }
        let (since, most) = self.lower.map_or((pulled, best.1), |(at, most)| (at, most.max(best.1)));
        self.lower = Some((since, most));
        let after = if seen.changed && most < held - FAR_LOWER { FAR_LOWER_AFTER } else { patience };
        if pulled - since < after {
            return held;
        }
        // Not all the way at once: what is rare may only have been absent.
        let all_at_once = after == FAR_LOWER_AFTER || seen.jitter < CALM;
        let half = held - ((held - most) / 2).max(LOWER_AT_LEAST);
        self.hold(pulled, if all_at_once { most } else { most.max(half) }.min(held))
    }

    fn hold(&mut self, pulled: i64, offset: i64) -> i64 {
        self.held = Some((offset, pulled));
        self.lower = None;
        offset
    }

    fn is_stall(&mut self, pulled: i64, lateness: i64, back: u8) -> bool {
        let Some(need) = self.need else { return false };
        if back > 0 {
            return self.stall.is_some();
        }
        // What piled up comes less and less late: all of it belongs to the stall.
        let limit = if self.stall.is_some() { STALL_OVER } else { STALL };
        if lateness <= need.offset + limit {
            self.stall = None;
            return false;
        }
        let began = *self.stall.get_or_insert_with(|| {
            if self.stalls.len() == 16 {
                self.stalls.pop_front();
            }
            self.stalls.push_back(pulled);
            pulled
        });
        let habit = self.stalls.iter().filter(|s| pulled - **s <= HABIT_WINDOW).count() >= HABIT;
        !habit && pulled - began < STALL_ENDS
    }
}

/// Steps of sound that should have come, that did; the least lateness, and the most offset that is allowed.
struct Seen {
    expected: i64,
    known: i64,
    base: i64,
    ceiling: i64,
    jitter: i64,
    /// The path changed its level of late.
    changed: bool,
    /// Frames come far apart by themselves; see [`WILD_SHARE`].
    wild: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn came(lateness: i64, back: u8) -> FirstSight {
        FirstSight { lateness, back, duration: Samples::MS_5, pause: Samples::ZERO }
    }

    fn manner(reach: u8) -> Manner {
        Manner { reach, fragile: true }
    }

    fn target() -> Target {
        Target::new(JitterConfig { margin: Samples(0), ..JitterConfig::default() })
    }

    /// So many more packets, all so late. How much offset is needed then, beyond that of the fastest.
    fn run(target: &mut Target, at: &mut i64, packets: i64, late: i64) -> i64 {
        for _ in 0..packets {
            *at += 240;
            target.insert(*at, came(700 + late, 0));
            target.need(*at, 0.0, manner(0));
        }
        target.need(*at, 0.0, manner(0)).unwrap().offset - 700 - LEAD as i64
    }

    #[test]
    fn a_steady_path_needs_no_more_than_its_own_delay() {
        let mut target = target();
        for i in 0..1000 {
            target.insert(i * 240, came(700 + (i % 2) * 120, 0));
        }
        let need = target.need(240_000, 0.0, manner(0)).unwrap();
        assert_eq!((need.base, need.offset - LEAD as i64), (700, 820));
    }

    #[test]
    fn jitter_raises_the_target_to_its_upper_end_and_calm_lowers_it_again() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let mut target = target();
        for i in 0..2000 {
            target.insert(i * 240, came(700 + random.random_range(0..960), 0));
        }
        let need = target.need(480_000, 0.0, manner(0)).unwrap();
        assert!((1600..1700).contains(&need.offset), "{need:?}");
        assert!((880..960).contains(&need.jitter), "{need:?}");
        for i in 2000..8000 {
            target.insert(i * 240, came(700, 0));
            target.need(i * 240, 0.0, manner(0));
        }
        assert_eq!(target.need(8000 * 240, 0.0, manner(0)).unwrap().offset, 700 + LEAD as i64);
    }

    #[test]
    fn copies_count_only_while_they_are_in_use() {
        let mut target = target();
        for i in 0..1000 {
            let (late, back) = if i % 10 == 0 { (960 * 2, 16) } else { (0, 0) };
            target.insert(i * 240, came(700 + late, back));
        }
        assert_eq!(target.need(240_000, 0.0, manner(16)).unwrap().offset, 700 + 1920 + LEAD as i64);
        target.need(242_000, 0.0, manner(0));
        let later = 255_000 + LOWER_AFTER_FRAGILE;
        assert_eq!(target.need(later, 0.0, manner(0)).unwrap().offset, 700 + LEAD as i64);
    }

    #[test]
    fn one_stall_is_forgiven_three_are_provided_for_and_a_lasting_one_is_the_new_path() {
        let (mut target, mut at) = (target(), 0);
        run(&mut target, &mut at, 800, 0);
        run(&mut target, &mut at, 20, 1500);
        assert_eq!(run(&mut target, &mut at, 200, 0), 0);
        run(&mut target, &mut at, 20, 1500);
        run(&mut target, &mut at, 200, 0);
        let provided = run(&mut target, &mut at, 60, 1500);
        assert!(provided > 1200, "{provided}");
        let mut target = super::tests::target();
        run(&mut target, &mut at, 800, 0);
        assert_eq!(run(&mut target, &mut at, 240, 2400), 2400);
    }

    #[test]
    fn what_comes_while_the_card_is_out_of_step_buys_no_delay() {
        let (mut target, mut at) = (target(), 0);
        run(&mut target, &mut at, 800, 0);
        target.out_of_step(at);
        run(&mut target, &mut at, 4, 256);
        assert_eq!(run(&mut target, &mut at, 400, 0), 0);
        run(&mut target, &mut at, 4, 256);
        assert_eq!(run(&mut target, &mut at, 400, 0), 256, "by the path's own fault");
    }

    #[test]
    fn drift_moves_what_was_learnt_along_with_it() {
        let mut target = target();
        for i in 0..1000i64 {
            target.insert(i * 240, came(700 + i * 240 / 2000, 0));
        }
        let need = target.need(240_000, 1.0 / 2000.0, manner(0)).unwrap();
        assert!((need.offset - LEAD as i64 - 820).abs() <= 2, "{need:?}");
        assert!((need.base - 820).abs() <= 2, "{need:?}");
    }
}
