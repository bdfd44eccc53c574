//! The configuration file: every key in one table, from which the commented file, `hallway config show` and
//! `docs/configuration.md` are made.
//!
//! A key has the name of the option it stands for, so there is nothing else to learn: `max-rate` in the file,
//! `HALLWAY_MAX_RATE` in the environment, `--max-rate` on the command line, each outweighing the one before. What a
//! value may be is asked of the option itself (`cli/layers.rs`), so file and command line cannot drift apart.

mod file;
mod write;

pub use file::{Entry, MAX_CONFIG_BYTES, Problem, locate, parse, read};
pub use write::{commented_file, page, replace};

/// Name of the file, in the configuration folder or in a data folder that was named.
pub const CONFIG_FILE: &str = "config.toml";

/// What a value looks like in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A whole or fractional number.
    Number,
    /// A list of strings; in the environment they are separated by blanks.
    List,
}

impl Kind {
    /// As a person would say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text in quotes",
            Self::Number => "a number",
            Self::List => "a list of texts, as [\"one\", \"two\"]",
        }
    }
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The table it stands in: empty for the top, else the subcommand that it is for.
    pub section: &'static str,
    /// Its name, and its option's without the dashes.
    pub name: &'static str,
    /// What it looks like.
    pub kind: Kind,
    /// What it does, with unit and price: sentences, lines of at most 110 characters.
    pub about: &'static [&'static str],
    /// What holds where nothing is set, where the option itself names no default.
    pub unset: &'static str,
    /// A value as it stands in the file.
    pub example: &'static str,
}

impl Key {
    /// Its variable in the environment.
    pub fn variable(&self) -> String {
        let name = self.name.replace('-', "_").to_uppercase();
        match self.section {
            "" => format!("HALLWAY_{name}"),
            section => format!("HALLWAY_{}_{name}", section.replace('-', "_").to_uppercase()),
        }
    }

    /// The identifier of its option in clap.
    pub fn id(&self) -> String {
        self.name.replace('-', "_")
    }

    /// With its table: `rendezvous.listen`.
    pub fn path(&self) -> String {
        if self.section.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.section, self.name) }
    }
}

/// Every key, in the order of the file.
pub const KEYS: &[Key] = &[
    Key {
        section: "",
        name: "name",
        kind: Kind::Text,
        about: &["How others see you. At most 64 columns are shown; two people may have the same name."],
        unset: "your login name",
        example: "\"ana\"",
    },
    Key {
        section: "",
        name: "at",
        kind: Kind::List,
        about: &[
            "Rendezvous servers, used where neither the invite nor --at names one. With /p2p/PEERID at the end the",
            "server's identity is checked. The local network is searched as well; with --at it is not.",
            "`hallway invite` writes them into invites.",
        ],
        unset: "none: the local network only",
        example: "[\"/dns4/meet.example.org/udp/4001/quic-v1/p2p/12D3KooW...\"]",
    },
    Key {
        section: "",
        name: "input",
        kind: Kind::Text,
        about: &[
            "Where your voice comes from: default, a device's name as `hallway devices` prints it, file:PATH.wav,",
            "pipe:PATH, tone:HZ or silence.",
        ],
        unset: "",
        example: "\"USB Audio: Mic\"",
    },
    Key {
        section: "",
        name: "output",
        kind: Kind::Text,
        about: &["Where the others are heard: default, a device's name, file:PATH.wav, pipe:PATH or null."],
        unset: "",
        example: "\"USB Audio: Headset\"",
    },
    Key {
        section: "",
        name: "period-ms",
        kind: Kind::Number,
        about: &[
            "Time between two calls of the sound card, milliseconds, 0.5 to 60. Each millisecond more is a",
            "millisecond of delay at both ends; less costs processor time, and crackles where the card cannot follow.",
        ],
        unset: "",
        example: "2.5",
    },
    Key {
        section: "",
        name: "profile",
        kind: Kind::Text,
        about: &[
            "talk: voice. music: stereo, full band, no processing, shortest frames; costs about twice the rate on the wire.",
        ],
        unset: "",
        example: "\"talk\"",
    },
    Key {
        section: "",
        name: "delay",
        kind: Kind::Text,
        about: &[
            "How much delay is taken for how much clarity, where packets are lost or late: quick (under about 110 ms;",
            "words may get lost), balanced (up to 190 ms), safe (every word, 220 ms and more). On a clean path all are",
            "the same. The screen changes it during a call.",
        ],
        unset: "",
        example: "\"quick\"",
    },
    Key {
        section: "",
        name: "dtx",
        kind: Kind::Text,
        about: &[
            "Discontinuous transmission: on sends only ten packets a second while you are quiet or muted. It saves most",
            "of the rate and of the work, and shows whoever watches the path when you speak.",
        ],
        unset: "",
        example: "\"on\"",
    },
    Key {
        section: "",
        name: "speak",
        kind: Kind::Text,
        about: &["When the microphone is open: always, push-to-talk or voice."],
        unset: "",
        example: "\"push-to-talk\"",
    },
    Key {
        section: "",
        name: "threshold",
        kind: Kind::Number,
        about: &[
            "The loudness from which speak = \"voice\" opens the microphone, dB below full scale, -80 to -10.",
        ],
        unset: "",
        example: "-45",
    },
    Key {
        section: "",
        name: "echo-cancel",
        kind: Kind::Text,
        about: &[
            "Take the loudspeaker's sound out of the microphone: auto (where the output is a loudspeaker), on or off.",
            "The screen shows the delay that processing costs.",
        ],
        unset: "",
        example: "\"auto\"",
    },
    Key {
        section: "",
        name: "noise-suppression",
        kind: Kind::Text,
        about: &["Take steady noise out of the voice: auto, on or off, as echo-cancel."],
        unset: "",
        example: "\"auto\"",
    },
    Key {
        section: "",
        name: "gain",
        kind: Kind::Text,
        about: &["Bring the voice to a common level: auto, on or off, as echo-cancel."],
        unset: "",
        example: "\"auto\"",
    },
    Key {
        section: "",
        name: "listen",
        kind: Kind::List,
        about: &["Where to listen for others. A fixed port is for firewalls and forwarded ports."],
        unset: "every interface, IPv4 and IPv6, on a free port",
        example: "[\"/ip4/0.0.0.0/udp/4100/quic-v1\", \"/ip6/::/udp/4100/quic-v1\"]",
    },
    Key {
        section: "",
        name: "announce",
        kind: Kind::List,
        about: &["Tell others these addresses instead of those listened on: for a port forwarded by hand."],
        unset: "where this node listens, and what servers saw",
        example: "[\"/ip4/203.0.113.7/udp/4100/quic-v1\"]",
    },
    Key {
        section: "",
        name: "path",
        kind: Kind::Text,
        about: &["Which ways to others may be used. auto tries all of them and keeps the best."],
        unset: "",
        example: "\"auto\"",
    },
    Key {
        section: "",
        name: "max-rate",
        kind: Kind::Number,
        about: &[
            "Most that this node may send over UDP to everybody together, IP headers included, kilobits a second. For thin",
            "uplinks: too little leaves no room for the copies that mend losses.",
        ],
        unset: "what the path is measured to bear",
        example: "128",
    },
    Key {
        section: "",
        name: "theme",
        kind: Kind::Text,
        about: &["What the screen's colours are for: a light ground, a dark one, or both."],
        unset: "",
        example: "\"dark\"",
    },
    Key {
        section: "",
        name: "history",
        kind: Kind::Text,
        about: &[
            "Keep what is said in writing in this file, one JSON object a line, added at its end; mode 0600. Others in",
            "the room do not see that you do.",
        ],
        unset: "nothing that is said is written down",
        example: "\"/home/ana/said.jsonl\"",
    },
    Key {
        section: "",
        name: "ctl",
        kind: Kind::Text,
        about: &["The control socket of calls, for `hallway ctl` and scripts: auto, off, or a path."],
        unset: "",
        example: "\"off\"",
    },
    Key {
        section: "",
        name: "log-level",
        kind: Kind::Text,
        about: &[
            "What is written to the log file: off, error, warn, info, debug or trace. No level writes what is said,",
            "room secrets or full keys; debug writes network addresses.",
        ],
        unset: "",
        example: "\"info\"",
    },
    Key {
        section: "",
        name: "log-file",
        kind: Kind::Text,
        about: &[
            "The log file. At 4 MiB it is moved to the same name with .1 at the end, in place of the one before.",
        ],
        unset: "hallway.log in the state folder, or in a data folder that was named",
        example: "\"/var/tmp/hallway.log\"",
    },
    Key {
        section: "rendezvous",
        name: "listen",
        kind: Kind::List,
        about: &["Where `hallway rendezvous` listens."],
        unset: "UDP and TCP port 4001 on every interface, IPv4 and IPv6",
        example: "[\"/ip4/0.0.0.0/udp/4001/quic-v1\"]",
    },
];

/// The key of this name in this table.
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// What somebody may have meant who wrote this.
pub fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let same = |c: &str| c.replace('_', "-").to_lowercase();
    known
        .map(|name| (strsim::jaro_winkler(&same(written), &same(name)), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
