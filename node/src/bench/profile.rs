//! Named bad networks, and networks spelt on the command line.
//!
//! The names and figures are the ones of the laboratory that measured other programs, seeds included: a profile of one
//! name and seed has the same outages at the same instants for every program that ever ran over it.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::link::{Jitter, Link, LinkConfig, Window};

/// A link in both directions. In what follows the ends are called a and b.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// Its name, or the specification it was made from.
    pub name: String,
    /// In words.
    pub about: String,
    /// Where its luck starts; repetition `n` of a measurement adds `n *` [`SEEDS_APART`].
    pub seed: u64,
    /// From a to b.
    pub ab: LinkConfig,
    /// From b to a.
    pub ba: LinkConfig,
}

/// Distance between the seeds of two repetitions.
pub const SEEDS_APART: u64 = 7919;

/// A profile that could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Not in the table: take one of those listed, or spell the link out.
    #[error(
        "no link profile is called '{name}'; there are {known}, or spell one as 'delay=40,jitter=5,loss=1'"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A part of the specification is no `key=value` of a known key.
    #[error("'{part}' is no part of a link; known are {KEYS}")]
    BadPart {
        /// The part.
        part: String,
    },
    /// A value is no number, or makes no sense for its key.
    #[error("'{part}' is out of range; {hint}")]
    BadValue {
        /// The part.
        part: String,
        /// What would do.
        hint: &'static str,
    },
}

const KEYS: &str = "delay=MS, jitter=MS, loss=PCT, burst=MS (mean outage; makes loss bursty), rate=KBIT/S, queue=MS, reorder, \
    duplicate=PCT, flip=PCT, blackout=FROM_MS-TO_MS, heavy=MS (scale of heavy-tailed jitter), spike=MS, spikes=PER_S, seed=N";

/// Share of packets lost inside an outage of a spelt-out bursty link.
const LOSS_IN_BURST: f64 = 0.85;
/// And between outages.
const LOSS_BETWEEN_BURSTS: f64 = 0.01;

const TABLE: &str = include_str!("profiles.toml");

#[derive(Deserialize)]
struct Table {
    profile: BTreeMap<String, Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    about: String,
    seed: u64,
    both: Option<LinkConfig>,
    ab: Option<LinkConfig>,
    ba: Option<LinkConfig>,
}

impl Profile {
    /// Every profile of the table, by base delay and loss.
    pub fn all() -> Vec<Profile> {
        // The table is part of the program and a test reads it: a table that does not parse is an empty one only on
        // a developer's machine.
        let rows = toml::from_str::<Table>(TABLE).map(|table| table.profile).unwrap_or_default();
        let mut all: Vec<Profile> = rows
            .into_iter()
            .map(|(name, row)| {
                let both = row.both.unwrap_or_default();
                let (ab, ba) = (row.ab.unwrap_or_else(|| both.clone()), row.ba.unwrap_or(both));
                Profile { name, about: row.about, seed: row.seed, ab, ba }
            })
            .collect();
        all.sort_by_key(|profile| profile.seed);
        all
    }

    /// The profile of this name.
    pub fn named(name: &str) -> Result<Profile, ProfileError> {
        let all = Self::all();
        let known = || all.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
        all.iter()
            .find(|profile| profile.name == name)
            .cloned()
            .ok_or_else(|| ProfileError::Unknown { name: name.to_owned(), known: known() })
    }

    /// The same link both ways.
    pub fn symmetric(name: &str, link: LinkConfig, seed: u64) -> Profile {
        Profile { name: name.to_owned(), about: name.to_owned(), seed, ab: link.clone(), ba: link }
    }

    /// The two directions (a to b, b to a) of repetition `rep`, the first being 0.
    pub fn links(&self, rep: u64) -> (Link, Link) {
        let seed = self.seed.wrapping_add(SEEDS_APART.wrapping_mul(rep));
        (Link::new(self.ab.clone(), seed), Link::new(self.ba.clone(), seed ^ 0xB00B_0000_0000))
    }
}

/// A name of the table, or a specification like `delay=40,jitter=5,loss=1`: see [`ProfileError::BadPart`] for the keys.
impl FromStr for Profile {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Profile, ProfileError> {
        if !text.contains('=') && text != "reorder" {
            return Profile::named(text);
        }
        let mut link = LinkConfig::default();
        let (mut burst_ms, mut seed) = (0.0, 1);
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let bad = |hint| ProfileError::BadValue { part: part.to_owned(), hint };
            let number = |range: std::ops::RangeInclusive<f64>, hint| {
                value.parse::<f64>().ok().filter(|x| range.contains(x)).ok_or(bad(hint))
            };
            let ms = || number(0.0..=60_000.0, "milliseconds, 0 to 60000");
            let share = || number(0.0..=100.0, "percent, 0 to 100").map(|pct| pct / 100.0);
            match key {
                "delay" => link.delay_ms = ms()?,
                "jitter" => (link.jitter, link.jitter_ms) = (Jitter::Normal, ms()?),
                "heavy" => (link.jitter, link.pareto_scale_ms) = (Jitter::Pareto, ms()?),
                "loss" => link.loss = share()?,
                "burst" => burst_ms = ms()?,
                "rate" => link.rate_bps = 1e3 * number(1.0..=1e7, "kbit/s of IP packets, 1 or more")?,
                "queue" => link.queue_ms = ms()?,
                "reorder" if value.is_empty() => link.reorder = true,
                "duplicate" => link.duplicate = share()?,
                "flip" => link.flip = share()?,
                "spike" => link.spike_ms = ms()?,
                "spikes" => link.spike_per_s = number(0.0..=100.0, "spikes a second, 0 to 100")?,
                "seed" => seed = value.parse().map_err(|_| bad("a whole number"))?,
                "blackout" => {
                    let hint = "FROM-TO in milliseconds of the link's time";
                    let (from, to) = value.split_once('-').ok_or(bad(hint))?;
                    let edge =
                        |x: &str| x.parse::<f64>().ok().filter(|x| (0.0..=1e9).contains(x)).ok_or(bad(hint));
                    let window = Window { from_ms: edge(from)?, to_ms: edge(to)? };
                    link.blackouts.push(window);
                }
                _ => return Err(ProfileError::BadPart { part: part.to_owned() }),
            }
        }
        if link.spike_ms > 0.0 {
            link.spike_decay_ms = 2.0 * link.spike_ms;
            if link.spike_per_s == 0.0 {
                link.spike_per_s = 0.2;
            }
        }
        if burst_ms > 0.0 {
            // Stays such that the average is the loss asked for.
            let bad = (link.loss - LOSS_BETWEEN_BURSTS) / (LOSS_IN_BURST - LOSS_BETWEEN_BURSTS);
            if !(0.0..1.0).contains(&bad) || bad == 0.0 {
                let hint = "with burst=MS, loss must be over 1 and under 85 percent";
                return Err(ProfileError::BadValue { part: format!("loss={}", link.loss * 100.0), hint });
            }
            link.loss = 0.0;
            link.ge_bad_ms = burst_ms;
            link.ge_good_ms = burst_ms * (1.0 - bad) / bad;
            link.ge_loss_bad = LOSS_IN_BURST;
            link.ge_loss_good = LOSS_BETWEEN_BURSTS;
        }
        Ok(Profile::symmetric(text, link, seed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_of_the_table_is_there_with_its_loss() {
        toml::from_str::<Table>(TABLE).unwrap();
        let names: Vec<String> = Profile::all().into_iter().map(|p| p.name).collect();
        assert_eq!(
            names,
            ["lan", "metro", "wan", "wifi", "lossy10", "lossy20", "lossy30", "mobile", "narrow"]
        );
        for (name, want) in
            [("lan", 0.0), ("wifi", 0.01), ("lossy10", 0.10), ("lossy20", 0.20), ("lossy30", 0.30)]
        {
            let loss = Profile::named(name).unwrap().ab.expected_loss();
            assert!((loss - want).abs() < 0.005, "{name}: {loss}");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = "wann".parse::<Profile>().unwrap_err().to_string();
        assert!(message.contains("'wann'") && message.contains("wan, wifi"), "{message}");
    }

    #[test]
    fn a_link_can_be_spelt() {
        let link =
            "delay=40,jitter=5,loss=1,rate=64,reorder,blackout=5000-5800".parse::<Profile>().unwrap().ab;
        assert_eq!((link.delay_ms, link.jitter_ms, link.loss, link.rate_bps), (40.0, 5.0, 0.01, 64e3));
        assert!(link.reorder && link.blackouts == [Window { from_ms: 5000.0, to_ms: 5800.0 }]);
        let bursty = "delay=30,loss=20,burst=60".parse::<Profile>().unwrap().ab;
        assert!((bursty.expected_loss() - 0.2).abs() < 1e-9);
    }

    #[test]
    fn nonsense_is_refused_with_what_would_do() {
        for text in [
            "delay=x",
            "delay=-1",
            "loss=101",
            "speed=3",
            "burst=60,loss=90",
            "blackout=5",
            "rate=0",
            "delay=nan",
            "seed=x",
        ] {
            let error = text.parse::<Profile>().unwrap_err();
            assert!(!matches!(error, ProfileError::Unknown { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn repetitions_differ_and_repeat() {
        let fates = |rep| {
            let (mut ab, mut ba) = Profile::named("lossy20").unwrap().links(rep);
            let at = |i: u64| std::time::Duration::from_millis(20 * i);
            (0..200).map(|i| (ab.send(at(i), 100), ba.send(at(i), 100))).collect::<Vec<_>>()
        };
        assert_eq!(fates(1), fates(1));
        assert_ne!(fates(1), fates(2));
        assert!(fates(1).iter().any(|(ab, ba)| ab != ba));
    }
}
