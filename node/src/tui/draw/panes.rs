//! Lists to choose from: devices, settings, who is who.

use hallway_codec::{Delay, Profile};
use ratatui::{buffer::Buffer, layout::Rect, style::Style};

use super::{Pen, Regions, people::mark, talk::titled};
use crate::{
    audio::{End, Switch},
    controls::Speak,
    events,
    tui::view::{Devices, Pane, SETTINGS, Setting, View},
};

/// The list's row that is drawn at this height, by its number.
pub fn row_at(view: &View, regions: &Regions, y: u16) -> Option<usize> {
    let (_, area) = titled(regions.talk);
    let at = usize::from(y.checked_sub(area.y).filter(|at| *at < area.height)?);
    let (first, count) = match &view.pane {
        Pane::Devices(devices) => {
            let count = devices.rows.as_ref().map_or(0, Vec::len);
            (first(devices.at, area), count)
        }
        Pane::Settings(chosen) => (first(*chosen, area), SETTINGS.len()),
        Pane::Who => (first(selected(view), area), view.people.len()),
        Pane::Talk | Pane::Log | Pane::Help => return None,
    };
    Some(first + at).filter(|row| *row < count)
}

/// The first row shown: the chosen one stays in sight.
fn first(chosen: usize, area: Rect) -> usize {
    (chosen + 1).saturating_sub(usize::from(area.height))
}

fn selected(view: &View) -> usize {
    view.people.iter().position(|person| Some(person.peer) == view.selected).unwrap_or(0)
}

fn row<'a>(area: Rect, at: usize, first: usize, buffer: &'a mut Buffer) -> Pen<'a> {
    Pen::new(buffer, Rect { y: area.y + (at - first) as u16, height: 1, ..area })
}

pub(super) fn devices(view: &View, devices: &Devices, area: Rect, buffer: &mut Buffer) {
    let theme = &view.theme;
    let Some(rows) = &devices.rows else {
        Pen::new(buffer, area).write("  asking the sound systems ...", theme.dim);
        return;
    };
    let first = first(devices.at, area);
    for (at, device) in rows.iter().enumerate().skip(first).take(area.height.into()) {
        let mut pen = row(area, at, first, buffer);
        let chosen = at == devices.at;
        pen.column(if chosen { theme.signs.selected } else { "" }, 2, "", theme.accent);
        let end = if device.end == End::Input { "microphone" } else { "loudspeaker" };
        pen.column(end, 13, "", theme.dim);
        let used = match device.end {
            End::Input => &view.input.name,
            End::Output => &view.output.name,
        };
        pen.write(&device.name, if chosen { theme.name } else { Style::new() });
        if device.is_default {
            pen.write("  default", theme.dim);
        }
        if *used == crate::text::clean_name(&device.id) {
            pen.write("  in use", theme.good);
        }
    }
}

pub(super) fn settings(view: &View, chosen: usize, area: Rect, buffer: &mut Buffer) {
    let theme = &view.theme;
    let first = first(chosen, area);
    for (at, setting) in SETTINGS.iter().enumerate().skip(first).take(area.height.into()) {
        let mut pen = row(area, at, first, buffer);
        pen.column(if at == chosen { theme.signs.selected } else { "" }, 2, "", theme.accent);
        pen.column(setting.name(), 12, "", if at == chosen { theme.name } else { Style::new() });
        let (value, about) = described(view, *setting);
        pen.column(&value, 14, "", theme.accent);
        pen.write(&about, theme.dim);
    }
    let mut facts = vec![String::new()];
    facts.push(match view.controls.profile {
        Profile::Music => "your sound is sent as it is captured".to_owned(),
        Profile::Talk => events::processing_in_words(&view.processing),
    });
    facts.push(match &view.history {
        Some(path) => format!("what is said in writing is kept in {}", crate::text::clean_line(path)),
        None => "what is said in writing is not kept; --history FILE does".to_owned(),
    });
    let rest = usize::from(area.height).saturating_sub(SETTINGS.len() - first);
    for (at, fact) in facts.iter().enumerate().take(rest) {
        row(area, SETTINGS.len() + at, first, buffer).write(&format!("  {fact}"), theme.dim);
    }
}

/// What is set, and what it means or costs.
fn described(view: &View, setting: Setting) -> (String, String) {
    let controls = &view.controls;
    let active = &view.processing.active;
    let all = [active.echo_cancel, active.noise_suppression, active.gain];
    let switched = |switch: Switch, is_on: bool, what: &str| {
        let value = match (switch, is_on) {
            (Switch::Auto, true) => "auto: on",
            (Switch::Auto, false) => "auto: off",
            (Switch::On, _) => "on",
            (Switch::Off, _) => "off",
        };
        // The three share one pass: the first costs all of it, the others nothing.
        let others = all.iter().filter(|on| **on).count() - usize::from(is_on);
        let price = match others {
            _ if controls.profile == Profile::Music => "never done to music".to_owned(),
            0 if view.processing.price_ms > 0.0 => format!("{:.1} ms", view.processing.price_ms),
            0 => "about 12 ms".to_owned(),
            _ => "no further delay".to_owned(),
        };
        (value.to_owned(), format!("{what}: {price}"))
    };
    let both = |value: &str, about: &str| (value.to_owned(), about.to_owned());
    match setting {
        Setting::Profile => match controls.profile {
            Profile::Talk => both("talk", "a voice, in frames of 5 ms and more"),
            Profile::Music => both("music", "full band, frames of 2.5 ms, twice the packets"),
        },
        Setting::Delay => match controls.delay {
            Delay::Quick => both("quick", "on a bad path under about 110 ms; words may get lost"),
            Delay::Balanced => both("balanced", "on a bad path up to 190 ms for clear speech"),
            Delay::Safe => both("safe", "on a bad path 220 ms and more for every word"),
        },
        Setting::Echo => switched(controls.processing.echo, active.echo_cancel, "takes your loudspeaker out"),
        Setting::Noise => {
            switched(controls.processing.noise, active.noise_suppression, "takes steady noise out")
        }
        Setting::Gain => switched(controls.processing.gain, active.gain, "brings you to a common level"),
        Setting::Speak => match controls.speak {
            Speak::Always => both("always", "when your microphone is open"),
            Speak::PushToTalk => both("push to talk", "when your microphone is open"),
            Speak::Voice => both("by voice", "when your microphone is open"),
        },
        Setting::Threshold => {
            let value = format!("{} dB", controls.threshold_dbov);
            (value, "from which loudness \"by voice\" opens it".to_owned())
        }
    }
}

pub(super) fn who(view: &View, area: Rect, buffer: &mut Buffer) {
    let theme = &view.theme;
    if view.people.is_empty() {
        return Pen::new(buffer, area).write("  nobody else is here", theme.dim);
    }
    let chosen = selected(view);
    let first = first(chosen, area);
    for (at, person) in view.people.iter().enumerate().skip(first).take(area.height.into()) {
        let mut pen = row(area, at, first, buffer);
        pen.column(if at == chosen { theme.signs.selected } else { "" }, 2, "", theme.accent);
        pen.column(&person.label, 20, theme.signs.cut, if at == chosen { theme.name } else { Style::new() });
        pen.write(" ", theme.dim);
        let (sign, style) = mark(view, person);
        pen.column(sign, 2, "", style);
        pen.column(person.words.as_deref().unwrap_or("no words yet"), 27, theme.signs.cut, theme.accent);
        pen.write(person.trust.map_or("", |trust| trust.in_words()), style);
    }
    let advice = [
        "",
        "Read each other the three words, aloud. Whoever shows the same ones is whom",
        "you hear, with nobody between you; Enter remembers the key. Other words mean",
        "that somebody listens in: leave, and meet another way.",
    ];
    let rest = usize::from(area.height).saturating_sub(view.people.len() - first);
    for (at, line) in advice.iter().enumerate().take(rest) {
        row(area, view.people.len() + at, first, buffer).write(&format!("  {line}"), theme.dim);
    }
}
