//! Keys, where no line is being written: what they ask for, and what they choose in the lists.

use hallway_codec::{Delay, Profile};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{begin_line, deafen, leave, line, mute, press, scroll, show};
use crate::{
    audio::Switch,
    controls::Speak,
    node::Command,
    trust::Standing,
    tui::{
        draw::regions,
        view::{Devices, Pane, Person, SETTINGS, Setting, View},
    },
};

/// How far one key turns a person's volume, dB.
pub const VOLUME_STEP: i8 = 2;
/// How far one key moves the threshold of voice activation, dB.
pub const THRESHOLD_STEP: i8 = 2;

pub(super) fn handle_key(view: &mut View, key: KeyEvent) -> Option<Command> {
    if key.kind == KeyEventKind::Release {
        // Whatever was done meanwhile, writing a line too: whoever lets go is no longer heard.
        let lets_go = view.held.take_if(|held| *held == key.code).is_some();
        return (lets_go && view.controls.pressed).then_some(Command::Press { down: false });
    }
    view.stale = true;
    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
        return leave(view);
    }
    match key.code {
        KeyCode::F(1) => {
            toggle_pane(view, Pane::Help);
            return None;
        }
        KeyCode::F(2) => return Some(mute(view)),
        KeyCode::F(3) => return Some(deafen(view)),
        KeyCode::F(4) => return talk(view, key),
        _ => {}
    }
    if view.draft.is_some() {
        return line::write(view, key);
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        match key.code {
            KeyCode::Up => scroll(view, 1),
            KeyCode::Down => scroll(view, -1),
            _ => {}
        }
        return None;
    }
    if key.modifiers.contains(KeyModifiers::ALT) {
        return None;
    }
    if let Some(outcome) = choose(view, key.code) {
        return outcome;
    }
    // A row of the last page stays.
    let page = isize::try_from(regions(view).talk.height.saturating_sub(2).max(1)).unwrap_or(1);
    match key.code {
        KeyCode::Char('q') => return leave(view),
        KeyCode::Char('m') => return Some(mute(view)),
        KeyCode::Char('d') => return Some(deafen(view)),
        KeyCode::Char('v') => return Some(Command::Speak { when: after(view.controls.speak) }),
        KeyCode::Char(' ') if view.controls.speak == Speak::PushToTalk => return talk(view, key),
        KeyCode::Char('[') => return Some(threshold(view, -THRESHOLD_STEP)),
        KeyCode::Char(']') => return Some(threshold(view, THRESHOLD_STEP)),
        KeyCode::Up | KeyCode::Char('k') => select(view, -1),
        KeyCode::Down | KeyCode::Char('j') => select(view, 1),
        KeyCode::Left | KeyCode::Char('-') => return volume(view, -VOLUME_STEP),
        KeyCode::Right | KeyCode::Char('+' | '=') => return volume(view, VOLUME_STEP),
        KeyCode::Char('0') => {
            let person = view.selected()?;
            return Some(Command::Volume { peer_id: person.peer, volume_db: 0 });
        }
        KeyCode::Char('x') => {
            let person = view.selected()?;
            return Some(Command::MutePerson { peer_id: person.peer, on: !person.hearing.muted });
        }
        KeyCode::Char('s') => view.stages = !view.stages,
        KeyCode::Char('l') => toggle_pane(view, Pane::Log),
        KeyCode::Char('p') => toggle_pane(view, Pane::Settings(0)),
        KeyCode::Char('w') => toggle_pane(view, Pane::Who),
        KeyCode::Char('?' | 'h') => toggle_pane(view, Pane::Help),
        KeyCode::Char('o') => {
            toggle_pane(view, Pane::Devices(Devices::default()));
            return matches!(view.pane, Pane::Devices(_)).then_some(Command::Devices);
        }
        KeyCode::Enter | KeyCode::Char('t' | '/') => {
            let draft = begin_line(view);
            if key.code == KeyCode::Char('/') {
                draft.insert("/");
            }
        }
        KeyCode::Esc => show(view, Pane::Talk),
        KeyCode::PageUp => scroll(view, page),
        KeyCode::PageDown => scroll(view, -page),
        KeyCode::Home => scroll(view, isize::MAX),
        KeyCode::End => scroll(view, isize::MIN),
        _ => {}
    }
    None
}

/// A key that is held to talk repeats; where its end is not told, each stroke switches.
fn talk(view: &mut View, key: KeyEvent) -> Option<Command> {
    if key.kind != KeyEventKind::Press {
        return None;
    }
    if view.releases {
        view.held = Some(key.code);
    }
    (!(view.releases && view.controls.pressed)).then(|| press(view))
}

fn after(speak: Speak) -> Speak {
    match speak {
        Speak::Always => Speak::PushToTalk,
        Speak::PushToTalk => Speak::Voice,
        Speak::Voice => Speak::Always,
    }
}

fn threshold(view: &View, by: i8) -> Command {
    Command::Threshold { dbov: view.controls.threshold_dbov.saturating_add(by) }
}

fn volume(view: &View, by: i8) -> Option<Command> {
    let person = view.selected()?;
    Some(Command::Volume { peer_id: person.peer, volume_db: person.hearing.volume_db.saturating_add(by) })
}

fn toggle_pane(view: &mut View, pane: Pane) {
    let same = std::mem::discriminant(&view.pane) == std::mem::discriminant(&pane);
    show(view, if same { Pane::Talk } else { pane });
}

fn select(view: &mut View, by: isize) {
    let at = view.people.iter().position(|person| Some(person.peer) == view.selected);
    let last = view.people.len().saturating_sub(1);
    let next = at.map_or(0, |at| at.saturating_add_signed(by).min(last));
    view.selected = view.people.get(next).map(|person| person.peer);
}

/// What lies over the conversation takes these keys; `None` where it does not.
pub(super) fn choose(view: &mut View, code: KeyCode) -> Option<Option<Command>> {
    let step = match code {
        KeyCode::Up | KeyCode::Char('k') => -1,
        KeyCode::Down | KeyCode::Char('j') => 1,
        _ => 0,
    };
    match &mut view.pane {
        Pane::Devices(devices) => {
            let rows = devices.rows.as_deref().unwrap_or_default();
            let last = rows.len().saturating_sub(1);
            match code {
                _ if step != 0 => devices.at = devices.at.saturating_add_signed(step).min(last),
                KeyCode::Enter => {
                    let row = rows.get(devices.at);
                    return Some(row.map(|row| Command::Device { end: row.end, name: row.id.clone() }));
                }
                _ => return None,
            }
        }
        Pane::Settings(at) => match code {
            _ if step != 0 => *at = at.saturating_add_signed(step).min(SETTINGS.len().saturating_sub(1)),
            KeyCode::Left | KeyCode::Char('-') => return Some(change(view, false)),
            KeyCode::Right | KeyCode::Enter | KeyCode::Char('+' | '=') => return Some(change(view, true)),
            _ => return None,
        },
        Pane::Who => match code {
            KeyCode::Enter => {
                let on = |person: &Person| person.trust != Some(Standing::Verified);
                let person = view.selected();
                return Some(person.map(|p| Command::Verify { peer_id: p.peer, on: on(p) }));
            }
            _ => return None,
        },
        Pane::Log | Pane::Help if step != 0 => scroll(view, -step),
        Pane::Talk | Pane::Log | Pane::Help => return None,
    }
    Some(None)
}

/// The next of what the chosen setting can be, or the one before.
fn change(view: &View, on: bool) -> Option<Command> {
    let Pane::Settings(at) = view.pane else { return None };
    let controls = &view.controls;
    let turned = |switch: Switch| match (switch, on) {
        (Switch::Auto, true) | (Switch::Off, false) => Switch::On,
        (Switch::On, true) | (Switch::Auto, false) => Switch::Off,
        (Switch::Off, true) | (Switch::On, false) => Switch::Auto,
    };
    let (mut echo_cancel, mut noise_suppression, mut gain) = (None, None, None);
    match SETTINGS.get(at)? {
        Setting::Profile => {
            let to = if controls.profile == Profile::Talk { Profile::Music } else { Profile::Talk };
            return Some(Command::Profile { to });
        }
        Setting::Delay => {
            let to = match (controls.delay, on) {
                (Delay::Quick, true) | (Delay::Safe, false) => Delay::Balanced,
                (Delay::Balanced, true) | (Delay::Quick, false) => Delay::Safe,
                (Delay::Safe, true) | (Delay::Balanced, false) => Delay::Quick,
            };
            return Some(Command::Delay { to });
        }
        Setting::Echo => echo_cancel = Some(turned(controls.processing.echo)),
        Setting::Noise => noise_suppression = Some(turned(controls.processing.noise)),
        Setting::Gain => gain = Some(turned(controls.processing.gain)),
        Setting::Speak => {
            let next = after(controls.speak);
            return Some(Command::Speak { when: if on { next } else { after(next) } });
        }
        Setting::Threshold => {
            return Some(threshold(view, if on { THRESHOLD_STEP } else { -THRESHOLD_STEP }));
        }
    }
    Some(Command::Processing { echo_cancel, noise_suppression, gain })
}
