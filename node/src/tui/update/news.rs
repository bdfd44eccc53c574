//! News of the node: who came and went, what was said, what changed.

use std::time::Duration;

use libp2p::PeerId;

use crate::{
    audio::End,
    controls::Controls,
    events::{self, DeviceState, Event, PeerState},
    links, text,
    tui::view::{MAX_PEOPLE, Person, View, Voice, path_word},
};

pub(super) fn handle_levels(view: &mut View, own: f32, open: bool, voices: &[(PeerId, f32)]) {
    // What moves a meter by less than its finest step is not drawn.
    let moved = |before: f32, now: f32| (before.max(-70.0) - now.max(-70.0)).abs() >= 0.5;
    view.stale |= moved(view.level_dbov, own) || view.speaking != open;
    (view.level_dbov, view.speaking) = (own, open);
    for person in &mut view.people {
        let now = voices.iter().find(|(peer, _)| *peer == person.peer).map_or(-127.0, |(_, level)| *level);
        view.stale |= moved(person.level_dbov, now);
        person.level_dbov = now;
    }
}

pub(super) fn handle_event(view: &mut View, event: Event) {
    view.stale = true;
    let sentence = events::sentence(&event);
    match event {
        Event::Joined { open, closes_in_s, single_use, history, .. } => {
            (view.joined, view.open_room, view.single_use) = (true, open, single_use);
            view.closes =
                closes_in_s.map(|seconds| view.elapsed.saturating_add(Duration::from_secs(seconds)));
            view.history = history;
            let words = events::secrecy(open, closes_in_s, single_use);
            view.note(Voice::System, format!("joined {}, {words}", view.room), true);
        }
        Event::Rendezvous { state, addr, .. } => {
            let addr = addr.to_string();
            view.servers.retain(|(known, _)| *known != addr);
            view.servers.push((addr, state));
            if let Some(sentence) = sentence {
                view.note(Voice::System, sentence, false);
            }
        }
        Event::Peer { peer_id, name, state, path, outlook, reason, .. } => {
            handle_peer(view, peer_id, name, state, path, reason);
            if let Some(person) = view.people.iter_mut().find(|person| person.peer == peer_id) {
                person.outlook = outlook;
            }
        }
        Event::Trust { peer_id, trust, .. } => {
            if let Some(person) = view.people.iter_mut().find(|person| person.peer == peer_id) {
                person.trust = Some(trust);
            }
            if let Some(sentence) = sentence {
                view.note(Voice::System, sentence, false);
            }
        }
        Event::Compare { peer_id, words } => {
            if let Some(person) = view.people.iter_mut().find(|person| person.peer == peer_id) {
                person.words = Some(words);
            }
        }
        Event::Processing(processing) => {
            view.processing = processing;
            if let Some(sentence) = sentence {
                view.note(Voice::System, sentence, false);
            }
        }
        Event::Stats(stats) => {
            if let Some(person) = view.people.iter_mut().find(|person| person.peer == stats.peer_id) {
                person.path = stats.path.or(person.path);
                person.outlook = stats.outlook;
                person.figures(stats);
            }
        }
        Event::FirstAudio { peer_id, since_start_ms } => {
            let label = view.label(&peer_id);
            view.note(Voice::System, format!("hearing {label}, {since_start_ms:.0} ms after launch"), false);
        }
        Event::Chat { peer_id, text, .. } => {
            let label = view.label(&peer_id);
            view.note(Voice::Person(label), links::revealed(&text::clean_line(&text)), true);
        }
        Event::Said { text, .. } => view.note(Voice::Own, links::revealed(&text), true),
        Event::Controls(controls) => {
            let said = worth_saying(&view.told, &controls);
            (view.controls, view.told) = (controls, controls);
            if let (true, Some(sentence)) = (said, sentence) {
                view.note(Voice::System, sentence, false);
            }
        }
        Event::Volume { peer_id, hearing } => {
            if let Some(person) = view.people.iter_mut().find(|person| person.peer == peer_id) {
                (person.hearing, person.told) = (hearing, hearing);
            }
        }
        Event::Device { end, name, state } => {
            let name = text::clean_name(&name);
            let device = match end {
                End::Input => &mut view.input,
                End::Output => &mut view.output,
            };
            (device.name, device.lost) = (name.clone(), state == DeviceState::Lost);
            let what = match state {
                DeviceState::Opened => "is",
                DeviceState::Lost => "went away:",
                DeviceState::Reopened => "is again",
            };
            view.note(Voice::System, format!("sound {end} {what} {name}"), state != DeviceState::Opened);
        }
        Event::Warning(notice) if notice.code == "other_key" => {
            view.note(Voice::Alarm, sentence.unwrap_or_default(), true);
        }
        Event::Warning(_) | Event::Error(_) => {
            view.note(Voice::Trouble, sentence.unwrap_or_default(), true);
        }
        _ => {
            if let Some(sentence) = sentence {
                view.note(Voice::System, sentence, false);
            }
        }
    }
}

/// A key that is held and let go is no news.
fn worth_saying(before: &Controls, now: &Controls) -> bool {
    Controls { pressed: now.pressed, ..*before } != *now
}

fn handle_peer(
    view: &mut View,
    peer: PeerId,
    name: Option<String>,
    state: PeerState,
    path: Option<events::PathKind>,
    reason: Option<&'static str>,
) {
    let before = view.label(&peer);
    if state == PeerState::Left {
        view.people.retain(|person| person.peer != peer);
        if view.selected == Some(peer) {
            view.selected = view.people.first().map(|person| person.peer);
        }
        view.name_people();
        let why = reason.map_or(String::new(), |why| format!(": {why}"));
        return view.note(Voice::System, format!("{before} left{why}"), true);
    }
    if !view.people.iter().any(|person| person.peer == peer) {
        if view.people.len() >= MAX_PEOPLE {
            return;
        }
        view.people.push(Person::new(peer));
    }
    view.selected.get_or_insert(peer);
    let Some(person) = view.people.iter_mut().find(|person| person.peer == peer) else { return };
    let new = person.name.is_none() && name.is_some();
    let renamed = person.name.is_some() && name.is_some() && person.name != name;
    person.state = state;
    person.path = path;
    if name.is_some() {
        person.name = name.map(|name| text::clean_name(&name));
    }
    view.name_people();
    let label = view.label(&peer);
    let on = path.map_or(String::new(), |path| format!(", {}", path_word(path)));
    match state {
        PeerState::Connected if renamed => {
            view.note(Voice::System, format!("{before} is called {label} now"), true);
        }
        PeerState::Connected if new => view.note(Voice::System, format!("{label} is here{on}"), true),
        PeerState::Connected => view.note(Voice::System, format!("{label} is back{on}"), true),
        PeerState::Connecting => view.note(Voice::System, format!("connecting to {label}"), false),
        PeerState::PathChanged => view.note(Voice::System, format!("{label}: another path{on}"), false),
        PeerState::Reconnecting => {
            view.note(Voice::System, format!("{label}: connection lost, trying again"), true);
        }
        PeerState::Discovered | PeerState::Left => {}
    }
}
