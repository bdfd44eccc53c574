//! What follows from a key, a click, or news of the node: another view, and sometimes a command.

use std::time::Duration;

use libp2p::PeerId;
use ratatui::{
    crossterm::event::{KeyEvent, MouseEvent},
    layout::Rect,
};

use super::{
    draw::most_scroll,
    view::{Devices, Draft, Pane, View, Voice},
};
use crate::{
    audio::DeviceInfo,
    controls::{Hearing, THRESHOLDS, VOLUMES_DB},
    events::Event,
    node::Command,
    text,
};

mod keys;
mod line;
mod mouse;
mod news;

pub use keys::{THRESHOLD_STEP, VOLUME_STEP};

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A key, down, repeated or up.
    Key(KeyEvent),
    /// Text was pasted.
    Paste(String),
    /// The mouse.
    Mouse(MouseEvent),
    /// The terminal has another size.
    Resize(u16, u16),
    /// The terminal went to the background.
    FocusLost,
    /// The terminal tells when a key is let go, or does not.
    Releases(bool),
    /// News of the node.
    Happened(Box<Event>),
    /// How loud everybody is now.
    Levels {
        /// Our microphone, dB below full scale.
        own: f32,
        /// What it captures is sent.
        open: bool,
        /// The others.
        voices: Vec<(PeerId, f32)>,
    },
    /// Since launch.
    Elapsed(Duration),
    /// The sound devices of this machine.
    Found(Vec<DeviceInfo>),
    /// Somebody wrote a line on standard error.
    Complaint(String),
    /// A signal asks us to leave.
    Leave,
}

/// Takes in what happened. The command, if any, is the caller's to send.
pub fn update(view: &mut View, input: Input) -> Option<Command> {
    let command = decide(view, input);
    if let Some(command) = &command {
        foresee(view, command);
    }
    command
}

/// Shows what a command will do: the next key may come before the node has answered.
fn foresee(view: &mut View, command: &Command) {
    let controls = &mut view.controls;
    let mut turn = |peer: &PeerId, how: &dyn Fn(&mut Hearing)| {
        if let Some(person) = view.people.iter_mut().find(|person| person.peer == *peer) {
            how(&mut person.hearing);
        }
    };
    let within = |value: i8, range: &std::ops::RangeInclusive<i8>| value.clamp(*range.start(), *range.end());
    match command {
        Command::Mute { on } => controls.muted = *on,
        Command::Deafen { on } => controls.deafened = *on,
        Command::Speak { when } => (controls.speak, controls.pressed) = (*when, false),
        Command::Threshold { dbov } => controls.threshold_dbov = within(*dbov, &THRESHOLDS),
        Command::Press { down } => controls.pressed = *down,
        Command::Profile { to } => controls.profile = *to,
        Command::Delay { to } => controls.delay = *to,
        Command::Processing { echo_cancel, noise_suppression, gain } => {
            let processing = &mut controls.processing;
            processing.echo = echo_cancel.unwrap_or(processing.echo);
            processing.noise = noise_suppression.unwrap_or(processing.noise);
            processing.gain = gain.unwrap_or(processing.gain);
        }
        Command::Volume { peer_id, volume_db } => {
            turn(peer_id, &|hearing| hearing.volume_db = within(*volume_db, &VOLUMES_DB));
        }
        Command::MutePerson { peer_id, on } => turn(peer_id, &|hearing| hearing.muted = *on),
        _ => return,
    }
    view.stale = true;
}

fn decide(view: &mut View, input: Input) -> Option<Command> {
    match input {
        Input::Key(key) => return keys::handle_key(view, key),
        Input::Paste(pasted) if pasted.trim().is_empty() => {}
        Input::Paste(pasted) => {
            begin_line(view).insert(&text::clean_line(&pasted));
            view.stale = true;
        }
        Input::Mouse(mouse) => return mouse::handle_mouse(view, mouse),
        Input::Resize(width, height) => {
            view.area = Rect::new(0, 0, width, height);
            // What was read is laid out anew.
            view.scroll = view.scroll.min(most_scroll(view));
            view.stale = true;
        }
        Input::FocusLost if view.releases && view.controls.pressed => {
            return Some(Command::Press { down: false });
        }
        Input::FocusLost => {}
        Input::Releases(releases) => {
            view.stale |= view.releases != releases;
            view.releases = releases;
        }
        Input::Happened(event) => news::handle_event(view, *event),
        Input::Levels { own, open, voices } => news::handle_levels(view, own, open, &voices),
        Input::Elapsed(elapsed) => {
            view.stale |= elapsed.as_secs() != view.elapsed.as_secs();
            view.elapsed = elapsed;
        }
        Input::Found(found) => {
            if let Pane::Devices(devices) = &mut view.pane {
                devices.rows = Some(Devices::list(&found));
                devices.at = 0;
                view.stale = true;
            }
        }
        Input::Complaint(line) => view.note(Voice::Trouble, text::clean_line(&line), false),
        Input::Leave => return leave(view),
    }
    None
}

// --- what keys, lines and clicks share -----------------------------------------------------------------------------

fn leave(view: &mut View) -> Option<Command> {
    view.leaving = true;
    view.stale = true;
    Some(Command::Leave)
}

fn mute(view: &View) -> Command {
    Command::Mute { on: !view.controls.muted }
}

fn deafen(view: &View) -> Command {
    Command::Deafen { on: !view.controls.deafened }
}

fn press(view: &View) -> Command {
    Command::Press { down: !view.controls.pressed }
}

/// Each pane begins at its own end.
fn show(view: &mut View, pane: Pane) {
    view.pane = pane;
    view.scroll = 0;
    view.stale = true;
}

/// What is written is written beside the conversation, as far back as it is read.
fn begin_line(view: &mut View) -> &mut Draft {
    if view.draft.is_none() && view.pane != Pane::Talk {
        show(view, Pane::Talk);
    }
    view.draft.get_or_insert_default()
}

/// Up, towards what was before. The keys begin at the top, all else at the end.
fn scroll(view: &mut View, by: isize) {
    let by = if view.pane == Pane::Help { by.saturating_neg() } else { by };
    view.scroll = view.scroll.saturating_add_signed(by).min(most_scroll(view));
    view.stale = true;
}
