//! Events in words, for people.

use std::time::Duration;

use hallway_codec::{Delay, Profile};

use super::{Event, Outlook, PathKind, PeerState, Processing, RendezvousState, short};
use crate::{
    audio::Switch,
    controls::{Controls, Speak},
    links, text,
    trust::Standing,
};

pub(crate) fn sentence(event: &Event) -> Option<String> {
    let ms = |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.0}"));
    Some(match event {
        Event::Ready { peer_id, .. } => format!("this node is {}", short(peer_id)),
        Event::Rendezvous { state, addr, .. } => match state {
            RendezvousState::Connected => return None,
            RendezvousState::Registered => format!("registered at {addr}"),
            RendezvousState::Lost => {
                format!("lost the rendezvous server at {addr}; trying again. Calls go on")
            }
        },
        Event::Joined { room, open, closes_in_s, single_use, .. } => {
            let secrecy = secrecy(*open, *closes_in_s, *single_use);
            format!("joined {room}, {secrecy}. Ctrl-C leaves")
        }
        Event::InputStarted(_) | Event::OutputStarted(_) | Event::InputFinished => return None,
        Event::Peer { peer_id, name, state, path, reason, outlook, .. } => {
            let who = match name {
                Some(name) => format!("{} ({})", text::clean_name(name), short(peer_id)),
                None => short(peer_id),
            };
            let on = path.map_or(String::new(), |path| format!(", {}", path.in_words()));
            let why = reason.map_or(String::new(), |reason| format!(" ({reason})"));
            match state {
                PeerState::Discovered => return None,
                PeerState::Connecting => format!("connecting to {who}"),
                PeerState::Connected => format!("{who} is here{on}"),
                PeerState::PathChanged => {
                    let rung = outlook.path_why.map_or(String::new(), |why| format!(": {why}"));
                    let next = outlook.next_in_words().map_or(String::new(), |next| format!("; {next}"));
                    format!("{who}: another path{on}{why}{rung}{next}")
                }
                PeerState::Reconnecting => match outlook.next_attempt_ms {
                    Some(ms) => format!("{who}: connection lost, trying again in {:.1} s", ms / 1000.0),
                    None => format!("{who}: connection lost, trying again"),
                },
                PeerState::Left => format!("{who} left{why}"),
            }
        }
        Event::FirstAudio { peer_id, since_start_ms } => {
            format!("hearing {}, {since_start_ms:.0} ms after launch", short(peer_id))
        }
        Event::Stats(stats) => format!(
            "  {} ({}): mouth to ear {} ms, network {} ms, buffer {} ms, loss {} %",
            text::clean_name(&stats.name),
            short(&stats.peer_id),
            ms(stats.mouth_to_ear_ms),
            ms(stats.one_way_ms),
            ms(stats.buffer_ms),
            ms(stats.loss_pct),
        ),
        Event::Chat { peer_id, name, text, .. } => {
            format!(
                "<{} {}> {}",
                text::clean_name(name),
                short(peer_id),
                links::revealed(&text::clean_line(text))
            )
        }
        Event::Said { .. } | Event::Device { .. } | Event::Compare { .. } => return None,
        Event::Trust { peer_id, name, trust } => {
            let who = format!("{} ({})", text::clean_name(name), short(peer_id));
            match trust {
                Standing::New => format!("{who} is new to you: compare words aloud to be sure who it is"),
                Standing::Known => return None,
                Standing::Verified => format!("{who} is who you verified"),
                // The warning that follows says it.
                Standing::OtherKey => return None,
            }
        }
        Event::Controls(controls) => own_voice(controls),
        // What was asked for is told with the controls; that nothing is done is no news.
        Event::Processing(processing) if !processing.active.any() => return None,
        Event::Processing(processing) => processing_in_words(processing),
        Event::Volume { peer_id, hearing } => match hearing.muted {
            true => format!("{} is not heard here now", short(peer_id)),
            false => format!("{} is heard at {:+} dB", short(peer_id), hearing.volume_db),
        },
        // Some of it others wrote: addresses in an invite, the reason for which a server closes.
        Event::Warning(notice) => text::clean_line(&format!("warning: {} {}", notice.message, notice.hint)),
        Event::Error(notice) => text::clean_line(&format!("error: {} {}", notice.message, notice.hint)),
        Event::Summary(summary) => {
            let mut line = format!("left after {:.0} s", summary.since_start_ms / 1000.0);
            for peer in &summary.peers {
                if let Some(p) = peer.mouth_to_ear_ms {
                    let name = text::clean_name(&peer.name);
                    line += &format!(
                        "; {name}: mouth to ear p50 {:.1}, p95 {:.1}, p99 {:.1} ms",
                        p.p50, p.p95, p.p99
                    );
                }
            }
            line
        }
    })
}

/// Who can be in a room, in words.
pub(crate) fn secrecy(open: bool, closes_in_s: Option<u64>, single_use: bool) -> String {
    if open {
        return "an open room: anyone who knows its name can join and listen. `hallway invite` makes a private one"
            .to_owned();
    }
    let mut words = match single_use {
        true => "a private room for one guest".to_owned(),
        false => "a private room: only who holds the invite can join".to_owned(),
    };
    if let Some(seconds) = closes_in_s {
        words += &format!(", for {}", humantime::format_duration(Duration::from_secs(seconds)));
    }
    words
}

/// What is set about our voice, in words.
fn own_voice(controls: &Controls) -> String {
    let when = match controls.speak {
        _ if controls.deafened => "deafened: you hear nobody and nobody hears you".to_owned(),
        _ if controls.muted => "muted: nobody hears you".to_owned(),
        Speak::Always => "your microphone is open".to_owned(),
        Speak::PushToTalk if controls.pressed => "your microphone is open: push to talk".to_owned(),
        Speak::PushToTalk => "your microphone is closed: push to talk".to_owned(),
        Speak::Voice => format!("your microphone opens when you speak, from {} dB", controls.threshold_dbov),
    };
    let profile = if controls.profile == Profile::Music { "; music" } else { "" };
    let delay = match controls.delay {
        Delay::Quick => "; quick rather than clear",
        Delay::Balanced => "",
        Delay::Safe => "; clear rather than quick",
    };
    let mut processing = String::new();
    for (name, switch) in [
        ("echo cancellation", controls.processing.echo),
        ("noise suppression", controls.processing.noise),
        ("gain", controls.processing.gain),
    ] {
        match switch {
            Switch::Auto => {}
            Switch::On => processing += &format!("; {name} on"),
            Switch::Off => processing += &format!("; {name} off"),
        }
    }
    format!("you: {when}{profile}{delay}{processing}")
}

/// What is done to our voice, in words, with its price.
pub(crate) fn processing_in_words(processing: &Processing) -> String {
    let active = &processing.active;
    let done: Vec<&str> = [
        (active.echo_cancel, "without its echo"),
        (active.noise_suppression, "without noise"),
        (active.gain, "at a common level"),
    ]
    .into_iter()
    .filter_map(|(on, words)| on.then_some(words))
    .collect();
    match done.is_empty() {
        true => "your voice is sent as it is captured".to_owned(),
        false => format!("your voice is sent {}, {:.1} ms later", done.join(", "), processing.delay_ms),
    }
}

impl PathKind {
    /// For people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Punched => "direct, through a punched hole",
            Self::Relayed => "by the server's relay",
            Self::Tcp => "by the server's relay over TCP",
        }
    }
}

impl Outlook {
    /// For people: what will be tried, and when.
    pub fn next_in_words(self) -> Option<String> {
        let ms = self.next_attempt_ms?;
        // Without a reason there is no path, and none to be better than.
        let what = if self.path_why.is_some() { "a better path" } else { "a path" };
        Some(match ms {
            ms if ms < 950.0 => format!("{what} is tried now"),
            ms => format!("{what} is tried in {:.0} s", ms / 1000.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;

    #[test]
    fn a_hostile_name_cannot_write_to_the_terminal() {
        let name = Some("\u{1b}]52;c;aGk=\u{7}\u{202e}ana\n[you]".to_owned());
        let line = sentence(&Event::Peer {
            peer_id: PeerId::random(),
            name: name.clone(),
            state: PeerState::Connected,
            path: Some(PathKind::Direct),
            outlook: Outlook::default(),
            verified: true,
            since_start_ms: 0.0,
            reason: None,
        })
        .unwrap();
        assert!(line.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{line:?}");
    }
}
