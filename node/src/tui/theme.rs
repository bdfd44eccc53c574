//! Colours and signs, by what the terminal can show.
//!
//! Backgrounds stay the terminal's own, so that light and dark are the person's choice. Where the ground is unknown,
//! colours are of middle lightness and can be read on both. Without colours, weight alone tells things apart.

use ratatui::style::{Color, Modifier, Style};

/// How many colours there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// None: `NO_COLOR`, or a terminal without.
    None,
    /// The terminal's own sixteen.
    Sixteen,
    /// 24 bits.
    True,
}

/// What is behind the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Ground {
    /// Not known: colours for both.
    #[default]
    Auto,
    /// Dark.
    Dark,
    /// Light.
    Light,
}

/// The looks of everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Theme {
    /// The program's name, titles, the selected person.
    pub accent: Style,
    /// Fine: direct paths, an open microphone.
    pub good: Style,
    /// Worth a look.
    pub fair: Style,
    /// Wrong: lost, muted, warnings.
    pub bad: Style,
    /// Labels, rules, what happened.
    pub dim: Style,
    /// Our own lines.
    pub own: Style,
    /// Names.
    pub name: Style,
    /// The signs.
    pub signs: Signs,
}

/// Characters that not every terminal has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signs {
    /// A meter's full cells and the steps to one, least first.
    pub meter: &'static [&'static str],
    /// Its empty cells.
    pub track: &'static str,
    /// The steps of a plot, least first.
    pub plot: &'static [&'static str],
    /// Where a plot knows nothing.
    pub gap: &'static str,
    /// What a bar of stages is made of, by turns.
    pub stages: [&'static str; 2],
    /// Before the selected person.
    pub selected: &'static str,
    /// The person here said that the key is right.
    pub verified: &'static str,
    /// Met before under this key.
    pub known: &'static str,
    /// Met for the first time.
    pub new: &'static str,
    /// The microphone is open, or closed.
    pub open: &'static str,
    /// See `open`.
    pub closed: &'static str,
    /// A horizontal rule.
    pub rule: &'static str,
    /// Before what the program says.
    pub system: &'static str,
    /// Before what went wrong.
    pub trouble: &'static str,
    /// Between our name and our lines.
    pub own: &'static str,
    /// Between other things.
    pub dot: &'static str,
    /// In place of a figure that is not known.
    pub none: &'static str,
    /// Stands for what did not fit.
    pub cut: &'static str,
}

const UNICODE: Signs = Signs {
    meter: &["▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"],
    track: "·",
    plot: &["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"],
    gap: " ",
    stages: ["█", "▓"],
    selected: "▸",
    verified: "✓",
    known: "○",
    new: "?",
    open: "●",
    closed: "○",
    rule: "─",
    system: "·",
    trouble: "!",
    own: "›",
    dot: "·",
    none: "–",
    cut: "…",
};

const ASCII: Signs = Signs {
    meter: &["#"],
    track: ".",
    plot: &["_", ".", "-", "=", "+", "*", "#", "@"],
    gap: " ",
    stages: ["#", "="],
    selected: ">",
    verified: "+",
    known: "o",
    new: "?",
    open: "*",
    closed: "o",
    rule: "-",
    system: "-",
    trouble: "!",
    own: ">",
    dot: "-",
    none: "-",
    cut: "~",
};

impl Theme {
    /// For this terminal.
    pub fn new(depth: Depth, ground: Ground, unicode: bool) -> Self {
        let plain = Style::new();
        let signs = if unicode { UNICODE } else { ASCII };
        let [accent, good, fair, bad, dim, own] = match depth {
            Depth::None => {
                return Self {
                    accent: plain.add_modifier(Modifier::BOLD),
                    good: plain,
                    fair: plain.add_modifier(Modifier::UNDERLINED),
                    bad: plain.add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
                    dim: plain.add_modifier(Modifier::DIM),
                    own: plain.add_modifier(Modifier::ITALIC),
                    name: plain.add_modifier(Modifier::BOLD),
                    signs,
                };
            }
            Depth::Sixteen => {
                [Color::Cyan, Color::Green, Color::Yellow, Color::Red, Color::Reset, Color::Magenta]
            }
            Depth::True => match ground {
                Ground::Dark => [0x7a_a2f7, 0x9e_ce6a, 0xe0_af68, 0xf7_768e, 0x78_82a0, 0xbb_9af7],
                Ground::Light => [0x2e_5cc5, 0x3f_7d20, 0x8f_5e15, 0xc0_304f, 0x6b_7080, 0x7a_3fb5],
                Ground::Auto => [0x3b_82d6, 0x3c_9a4c, 0xb0_7a1a, 0xd9_475c, 0x80_8590, 0x9a_6dd7],
            }
            .map(Color::from_u32),
        };
        // Colours tell the stages apart already.
        let signs = Signs { stages: [signs.stages[0]; 2], ..signs };
        let dim = plain.fg(dim);
        Self {
            accent: plain.fg(accent).add_modifier(Modifier::BOLD),
            good: plain.fg(good),
            fair: plain.fg(fair),
            bad: plain.fg(bad).add_modifier(Modifier::BOLD),
            dim: if depth == Depth::Sixteen { dim.add_modifier(Modifier::DIM) } else { dim },
            own: plain.fg(own),
            name: plain.add_modifier(Modifier::BOLD),
            signs,
        }
    }

    /// As the environment describes the terminal: `NO_COLOR`, `COLORTERM`, `TERM`, `COLORFGBG`, and the locale.
    pub fn from_env(ground: Ground) -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let depth = depth(var("NO_COLOR").is_some(), var("COLORTERM").as_deref(), var("TERM").as_deref());
        let ground = match ground {
            Ground::Auto => var("COLORFGBG").map_or(Ground::Auto, |colors| ground_of(&colors)),
            chosen => chosen,
        };
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| var(name));
        Self::new(depth, ground, locale.is_some_and(|locale| is_utf8(&locale)))
    }
}

fn depth(no_color: bool, colorterm: Option<&str>, term: Option<&str>) -> Depth {
    match (no_color, colorterm, term) {
        (true, ..) => Depth::None,
        (_, Some("truecolor" | "24bit"), _) => Depth::True,
        (_, _, Some(term)) if term.ends_with("-direct") => Depth::True,
        (_, _, Some(term))
            if term.ends_with("-mono") || term.starts_with("vt1") || term.starts_with("vt2") =>
        {
            Depth::None
        }
        _ => Depth::Sixteen,
    }
}

/// `foreground;background`, in the sixteen colours: 0 to 6 and 8 are dark.
fn ground_of(colors: &str) -> Ground {
    match colors.rsplit(';').next().and_then(|ground| ground.parse::<u8>().ok()) {
        Some(0..=6 | 8) => Ground::Dark,
        Some(7 | 9..=15) => Ground::Light,
        _ => Ground::Auto,
    }
}

fn is_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_how_many_colours_there_are() {
        assert_eq!(depth(true, Some("truecolor"), Some("xterm")), Depth::None);
        assert_eq!(depth(false, Some("truecolor"), Some("xterm")), Depth::True);
        assert_eq!(depth(false, None, Some("xterm-direct")), Depth::True);
        assert_eq!(depth(false, None, Some("xterm-256color")), Depth::Sixteen);
        assert_eq!(depth(false, None, Some("vt100")), Depth::None);
        assert_eq!(
            (ground_of("15;0"), ground_of("0;15"), ground_of("0;default;7")),
            (Ground::Dark, Ground::Light, Ground::Light)
        );
        assert!(is_utf8("de_DE.UTF-8") && is_utf8("C.utf8") && !is_utf8("C"));
    }

    #[test]
    fn without_colours_no_colour_is_used_and_no_ground_is_ever_painted() {
        for depth in [Depth::None, Depth::Sixteen, Depth::True] {
            for ground in [Ground::Auto, Ground::Dark, Ground::Light] {
                let theme = Theme::new(depth, ground, true);
                let all = [theme.accent, theme.good, theme.fair, theme.bad, theme.dim, theme.own, theme.name];
                assert!(all.iter().all(|style| style.bg.is_none()));
                assert!(depth != Depth::None || all.iter().all(|style| style.fg.is_none()));
            }
        }
    }
}
