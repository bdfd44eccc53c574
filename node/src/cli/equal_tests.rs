//! Screen, plain lines, `hallway ctl` and the control socket can do the same.

use clap::Parser;
use hallway_codec::{Delay, Profile};
use libp2p::PeerId;
use libp2p_identity::Keypair;
use ratatui::{
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    layout::Rect,
};
use serde_json::json;

use super::{CtlArgs, request};
use crate::{
    audio::{End, Switch},
    controls::Speak,
    events::{Event, Outlook, PathKind, PeerState},
    node::Command,
    tui::{
        Input, Theme, View,
        theme::{Depth, Ground},
        update,
        view::Pane,
    },
    typed::{self, Typed},
};

#[derive(Parser)]
struct Typing {
    #[command(flatten)]
    args: CtlArgs,
}

fn ben() -> PeerId {
    Keypair::ed25519_from_bytes([1; 32]).unwrap().public().to_peer_id()
}

fn processing(
    echo_cancel: Option<Switch>,
    noise_suppression: Option<Switch>,
    gain: Option<Switch>,
) -> Command {
    Command::Processing { echo_cancel, noise_suppression, gain }
}

/// One of each, in all the shades that a face can ask for.
fn all() -> Vec<Command> {
    let peer_id = ben();
    vec![
        Command::Leave,
        Command::Mute { on: true },
        Command::Deafen { on: true },
        Command::Speak { when: Speak::Always },
        Command::Speak { when: Speak::PushToTalk },
        Command::Speak { when: Speak::Voice },
        Command::Threshold { dbov: -40 },
        processing(Some(Switch::Off), None, None),
        processing(None, Some(Switch::On), None),
        processing(None, None, Some(Switch::Auto)),
        Command::Press { down: true },
        Command::Profile { to: Profile::Talk },
        Command::Profile { to: Profile::Music },
        Command::Delay { to: Delay::Quick },
        Command::Delay { to: Delay::Balanced },
        Command::Delay { to: Delay::Safe },
        Command::Volume { peer_id, volume_db: -6 },
        Command::MutePerson { peer_id, on: true },
        Command::Device { end: End::Input, name: "tone:440".into() },
        Command::Device { end: End::Output, name: "null".into() },
        Command::Chat { text: "tea is ready".into() },
        Command::Name { name: "anna".into() },
        Command::Verify { peer_id, on: true },
        Command::Verify { peer_id, on: false },
        Command::Snapshot,
        Command::Devices,
    ]
}

/// The line that asks for it, and the words after `hallway ctl`. Whoever adds a command adds both.
fn asked_for(command: &Command) -> (&'static str, &'static [&'static str]) {
    match command {
        Command::Leave => ("/quit", &["leave"]),
        Command::Mute { .. } => ("/mute", &["mute", "toggle"]),
        Command::Deafen { .. } => ("/deafen", &["deafen", "on"]),
        Command::Speak { when: Speak::Always } => ("/voice always", &["speak", "always"]),
        Command::Speak { when: Speak::PushToTalk } => ("/voice push", &["speak", "push-to-talk"]),
        Command::Speak { when: Speak::Voice } => ("/voice voice", &["speak", "voice"]),
        Command::Threshold { .. } => ("/threshold -40", &["threshold", "-40"]),
        Command::Processing { echo_cancel: Some(_), .. } => ("/echo off", &["echo", "off"]),
        Command::Processing { noise_suppression: Some(_), .. } => ("/noise on", &["noise", "on"]),
        Command::Processing { .. } => ("/gain auto", &["gain", "auto"]),
        Command::Press { .. } => ("/talk", &["press", "down"]),
        Command::Profile { to: Profile::Talk } => ("/profile talk", &["profile", "talk"]),
        Command::Profile { to: Profile::Music } => ("/profile music", &["profile", "music"]),
        Command::Delay { to: Delay::Quick } => ("/delay quick", &["delay", "quick"]),
        Command::Delay { to: Delay::Balanced } => ("/delay balanced", &["delay", "balanced"]),
        Command::Delay { to: Delay::Safe } => ("/delay safe", &["delay", "safe"]),
        Command::Volume { .. } => ("/volume ben -6", &["volume", "ben", "-6"]),
        Command::MutePerson { .. } => ("/hear ben", &["hush", "ben"]),
        Command::Device { end: End::Input, .. } => ("/input tone:440", &["input", "tone:440"]),
        Command::Device { end: End::Output, .. } => ("/output null", &["output", "null"]),
        Command::Chat { .. } => ("tea is ready", &["say", "tea", "is", "ready"]),
        Command::Name { .. } => ("/name anna", &["name", "anna"]),
        Command::Verify { on: true, .. } => ("/verify ben", &["verify", "ben"]),
        Command::Verify { on: false, .. } => ("/doubt ben", &["verify", "ben", "--undo"]),
        Command::Snapshot => ("/who", &["status"]),
        Command::Devices => ("/devices", &["devices"]),
    }
}

fn screen() -> View {
    let mut view = View::new("kitchen", true, "ana", Theme::new(Depth::None, Ground::Auto, true));
    view.area = Rect::new(0, 0, 80, 24);
    let came = Event::Peer {
        peer_id: ben(),
        name: Some("ben".into()),
        state: PeerState::Connected,
        path: Some(PathKind::Direct),
        outlook: Outlook::default(),
        verified: true,
        since_start_ms: 1.0,
        reason: None,
    };
    update(&mut view, Input::Happened(Box::new(came)));
    view
}

fn strike(view: &mut View, code: KeyCode) -> Option<Command> {
    update(view, Input::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

#[test]
fn whatever_can_be_asked_of_a_call_can_be_asked_from_the_screen_in_lines_and_by_ctl() {
    for command in all() {
        let (line, words) = asked_for(&command);
        // On the screen, as a line that is written there.
        let mut view = screen();
        strike(&mut view, KeyCode::Enter);
        line.chars().for_each(|c| drop(strike(&mut view, KeyCode::Char(c))));
        let asked = strike(&mut view, KeyCode::Enter);
        match command {
            // The screen shows all of it anyway.
            Command::Snapshot => assert!(asked.is_none() && view.pane == Pane::Who),
            _ => assert_eq!(asked.as_ref(), Some(&command), "{line} on the screen"),
        }
        // In plain lines: what needs no look at the call is the command itself.
        let typed = typed::parse(line);
        let is_complete = matches!(&typed, Typed::Do(done) if *done == command);
        assert!(
            is_complete || matches!(typed, Typed::Toggle(_) | Typed::For(..) | Typed::Who | Typed::Devices),
            "{line}"
        );
        // By `hallway ctl`, which writes what the control socket reads.
        let typing =
            Typing::try_parse_from([&["ctl"], words].concat()).unwrap_or_else(|e| panic!("{words:?}: {e}"));
        let people = json!({ "controls": { "muted": false }, "people": [{ "name": "ben", "peer_id": ben().to_string() }] });
        let sent = request(&typing.args.verb, &mut || Ok(people.clone())).unwrap();
        assert_eq!(serde_json::from_value::<Command>(sent).unwrap(), command, "{words:?}");
    }
}

#[test]
fn ctl_asks_for_nobody_where_several_could_be_meant() {
    let mut people = json!({ "name": "ana", "people": [{ "name": "ben", "peer_id": ben().to_string() }] });
    let verify = |who: &str, people: &serde_json::Value| {
        let typing = Typing::try_parse_from(["ctl", "verify", who]).unwrap();
        request(&typing.args.verb, &mut || Ok(people.clone()))
    };
    assert_eq!(verify("ben", &people).unwrap()["peer_id"], ben().to_string());
    let other = json!({ "name": "b\u{435}n", "peer_id": PeerId::random().to_string() });
    people["people"].as_array_mut().unwrap().push(other);
    let refused = verify("ben", &people).unwrap_err();
    assert!(refused.code == 2 && refused.message.contains("several could be ben"), "{}", refused.message);
    assert_eq!(verify(&ben().to_string(), &people).unwrap()["peer_id"], ben().to_string());
    assert!(verify("zoe", &people).unwrap_err().message.contains("nobody here is called zoe"));
}
