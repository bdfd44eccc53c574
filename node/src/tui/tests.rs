//! The screen's states as texts: what `draw` paints, compared with the files beside it. `HALLWAY_FIXTURES=write` writes them
//! anew; look at the difference before you keep it.
#![allow(clippy::panic)]

use std::{path::PathBuf, time::Duration};

use hallway_codec::{Delay, Profile};
use libp2p::PeerId;
use libp2p_identity::Keypair;
use ratatui::{
    buffer::Buffer,
    crossterm::event::{
        KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
    },
    layout::Rect,
};

use super::{
    Input, Theme, View, draw,
    draw::regions,
    theme::{Depth, Ground},
    update,
    view::{MAX_LINES, Pane, Voice},
};
use crate::{
    audio::{DeviceInfo, End, Switch, VoiceActive},
    controls::{Controls, Hearing, Speak},
    events::{DeviceState, Event, Notice, Outlook, PathKind, PeerState, Processing, RendezvousState},
    node::Command,
    trust::Standing,
};

/// The same people in every run.
fn peer(number: u8) -> PeerId {
    Keypair::ed25519_from_bytes([number; 32]).unwrap().public().to_peer_id()
}

fn view(width: u16, height: u16) -> View {
    let mut view = View::new("kitchen", false, "ana", Theme::new(Depth::None, Ground::Auto, true));
    update(&mut view, Input::Resize(width, height));
    view
}

fn happened(view: &mut View, event: Event) {
    assert_eq!(update(view, Input::Happened(Box::new(event))), None);
}

fn joined(view: &mut View) {
    let (room, open) = ("kitchen".into(), view.open_room);
    let (closes_in_s, single_use, history) = (None, false, None);
    happened(view, Event::Joined { room, open, closes_in_s, single_use, history, since_start_ms: 9.0 });
}

fn person(view: &mut View, number: u8, name: &str, state: PeerState, path: Option<PathKind>) {
    let (peer_id, name) = (peer(number), Some(name.to_owned()));
    let (since_start_ms, verified) = (1.0, true);
    let path_why = path.map(|_| "both are on one network");
    let outlook = Outlook { path_why, next_attempt_ms: path.is_none().then_some(4000.0) };
    happened(
        view,
        Event::Peer { peer_id, name, state, path, outlook, verified, since_start_ms, reason: None },
    );
}

fn trust(view: &mut View, number: u8, trust: Standing) {
    happened(view, Event::Trust { peer_id: peer(number), name: "x".into(), trust });
}

fn figures(view: &mut View, number: u8, ms: f32, loss: f64) {
    let Event::Stats(mut stats) = crate::events::tests::figures() else { panic!("figures") };
    stats.peer_id = peer(number);
    let known = view.people.iter().find(|p| p.peer == peer(number));
    (stats.path, stats.outlook) = known.map(|p| (p.path, p.outlook)).unwrap_or_default();
    let stages = hallway_codec::Stages {
        capture: 5.1,
        encode: 2.5,
        send: 0.1,
        network: ms - 19.0,
        jitter_buffer: 6.0,
        decode: 0.3,
        playback: 5.0,
    };
    stats.mouth_to_ear_ms = Some(stages.total().into());
    stats.mouth_to_ear_stages_ms = Some(stages);
    (stats.loss_pct, stats.rtt_ms, stats.jitter_ms) = (Some(loss), Some(1.5), Some(0.8));
    (stats.recv_kbps, stats.send_kbps, stats.frame_ms) = (Some(96.0), Some(95.2), Some(5.0));
    happened(view, Event::Stats(stats));
}

fn levels(view: &mut View, own: f32, voices: &[(u8, f32)]) {
    let voices = voices.iter().map(|(number, level)| (peer(*number), *level)).collect();
    update(view, Input::Levels { own, open: own > -60.0, voices });
}

fn key(view: &mut View, code: KeyCode) -> Option<Command> {
    update(view, Input::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn typed(view: &mut View, text: &str) {
    text.chars().for_each(|c| assert_eq!(key(view, KeyCode::Char(c)), None));
}

/// A call of four in its thirteenth minute.
fn call(width: u16, height: u16) -> View {
    let mut view = view(width, height);
    joined(&mut view);
    person(&mut view, 1, "ben", PeerState::Connected, Some(PathKind::Direct));
    person(&mut view, 2, "Cleo", PeerState::Connected, Some(PathKind::Relayed));
    person(&mut view, 3, "山田 太郎", PeerState::Connected, Some(PathKind::Direct));
    person(&mut view, 4, "dora", PeerState::Reconnecting, None);
    trust(&mut view, 1, Standing::Verified);
    trust(&mut view, 2, Standing::New);
    trust(&mut view, 3, Standing::Known);
    trust(&mut view, 4, Standing::OtherKey);
    view.log.clear();
    for second in 0..12u16 {
        figures(&mut view, 1, 20.0 + f32::from(second % 3), 0.0);
        figures(&mut view, 2, 60.0 + f32::from(second * second % 23) * 6.0, 2.1);
        figures(&mut view, 3, 31.0, 0.4);
    }
    update(&mut view, Input::Elapsed(Duration::from_secs(754)));
    happened(&mut view, Event::Volume { peer_id: peer(2), hearing: Hearing { volume_db: -6, muted: false } });
    happened(
        &mut view,
        Event::Device { end: End::Input, name: "USB Headset".into(), state: DeviceState::Opened },
    );
    let chat = |text: &str| Event::Chat { peer_id: peer(1), name: "ben".into(), text: text.into(), id: 1 };
    happened(&mut view, chat("shall we?"));
    happened(&mut view, Event::Said { text: "two minutes, the kettle is on".into(), id: 2 });
    happened(
        &mut view,
        chat("the notes are at https://bücher.example/notes, they are long enough to need a second row"),
    );
    levels(&mut view, -24.0, &[(1, -18.0), (2, -64.0), (3, -127.0)]);
    view
}

fn painted(view: &View) -> Buffer {
    let mut buffer = Buffer::empty(view.area);
    draw(view, &mut buffer);
    buffer
}

/// Rows of text without the blanks at their ends. A wide character stands alone, as in a terminal.
fn text(buffer: &Buffer) -> String {
    let mut out = String::new();
    for y in buffer.area.rows().map(|row| row.y) {
        let (mut row, mut skip) = (String::new(), 0usize);
        for x in 0..buffer.area.width {
            if skip > 0 {
                skip -= 1;
                continue;
            }
            let symbol = buffer[(x, y)].symbol();
            skip = unicode_width::UnicodeWidthStr::width(symbol).saturating_sub(1);
            row += symbol;
        }
        out += row.trim_end();
        out.push('\n');
    }
    out
}

fn assert_looks(name: &str, view: &View) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("src/tui/fixtures/{name}.txt"));
    let seen = text(&painted(view));
    if std::env::var_os("HALLWAY_FIXTURES").is_some_and(|what| what == "write") {
        std::fs::write(&path, &seen).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(seen == wanted, "{name} looks like this now:\n{seen}\nand should look like this:\n{wanted}");
}

#[test]
fn every_state_looks_as_it_should() {
    assert_looks("launch", &view(80, 24));
    let mut alone = view(80, 24);
    alone.open_room = true;
    joined(&mut alone);
    assert_looks("alone", &alone);
    assert_looks("call-80x24", &call(80, 24));
    assert_looks("call-160x45", &call(160, 45));
    assert_looks("call-40x12", &call(40, 12));
    assert_looks("call-18x3", &call(18, 3));
    let mut stages = call(80, 24);
    key(&mut stages, KeyCode::Char('s'));
    assert_looks("stages-80x24", &stages);
    stages.area = Rect::new(0, 0, 120, 30);
    assert_looks("stages-120x30", &stages);
    let mut help = call(80, 24);
    key(&mut help, KeyCode::Char('?'));
    assert_looks("help", &help);
    let mut ascii = call(80, 24);
    ascii.theme = Theme::new(Depth::Sixteen, Ground::Auto, false);
    assert_looks("ascii", &ascii);
}

#[test]
fn our_own_voice_says_what_others_hear() {
    let mut view = call(80, 14);
    let set = |view: &mut View, controls: Controls| happened(view, Event::Controls(controls));
    let own = |view: &View| text(&painted(view)).lines().rev().nth(2).unwrap().to_owned();
    let quiet = Controls::default();
    assert!(own(&view).contains("● open  always"), "{}", own(&view));
    set(&mut view, Controls { muted: true, ..quiet });
    assert!(own(&view).contains("○ muted"), "{}", own(&view));
    set(&mut view, Controls { deafened: true, ..quiet });
    assert!(own(&view).contains("○ deafened"), "{}", own(&view));
    set(&mut view, Controls { speak: Speak::PushToTalk, ..quiet });
    levels(&mut view, -70.0, &[]);
    assert!(own(&view).contains("○ closed  push to talk: space"), "{}", own(&view));
    set(&mut view, Controls { speak: Speak::Voice, ..quiet });
    assert!(own(&view).contains("|") && own(&view).contains("by voice from -45 dB"), "{}", own(&view));
    let lost = Event::Device { end: End::Input, name: "USB Headset".into(), state: DeviceState::Lost };
    happened(&mut view, Event::Controls(quiet));
    happened(&mut view, lost);
    assert!(own(&view).contains("no microphone") && own(&view).contains("(gone)"), "{}", own(&view));
}

#[test]
fn every_key_asks_for_what_the_help_says() {
    let mut view = call(80, 24);
    let (ben, cleo) = (peer(1), peer(2));
    for on in [true, false, true, false] {
        assert_eq!(
            key(&mut view, KeyCode::Char('m')),
            Some(Command::Mute { on }),
            "faster than the node answers"
        );
    }
    assert_eq!(key(&mut view, KeyCode::Char('d')), Some(Command::Deafen { on: true }));
    assert_eq!(key(&mut view, KeyCode::Char('v')), Some(Command::Speak { when: Speak::PushToTalk }));
    assert_eq!(key(&mut view, KeyCode::Char(']')), Some(Command::Threshold { dbov: -43 }));
    assert_eq!(key(&mut view, KeyCode::Char(']')), Some(Command::Threshold { dbov: -41 }));
    assert_eq!(view.selected, Some(ben));
    assert_eq!(key(&mut view, KeyCode::Right), Some(Command::Volume { peer_id: ben, volume_db: 2 }));
    assert_eq!(key(&mut view, KeyCode::Down), None);
    assert_eq!(key(&mut view, KeyCode::Left), Some(Command::Volume { peer_id: cleo, volume_db: -8 }));
    assert_eq!(key(&mut view, KeyCode::Char('0')), Some(Command::Volume { peer_id: cleo, volume_db: 0 }));
    assert_eq!(key(&mut view, KeyCode::Char('x')), Some(Command::MutePerson { peer_id: cleo, on: true }));
    assert_eq!(key(&mut view, KeyCode::Char('o')), Some(Command::Devices));
    assert_eq!(key(&mut view, KeyCode::Esc), None);
    assert_eq!(view.pane, Pane::Talk);
    assert_eq!(key(&mut view, KeyCode::Char('q')), Some(Command::Leave));
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    view.draft = Some(Default::default());
    assert_eq!(update(&mut view, Input::Key(control_c)), Some(Command::Leave));
}

#[test]
fn push_to_talk_follows_the_key_where_its_end_is_told_and_switches_elsewhere() {
    let mut view = call(80, 24);
    let event = |kind| Input::Key(KeyEvent::new_with_kind(KeyCode::Char(' '), KeyModifiers::NONE, kind));
    let set = |view: &mut View, pressed| {
        let controls = Controls { speak: Speak::PushToTalk, pressed, ..Controls::default() };
        happened(view, Event::Controls(controls));
    };
    set(&mut view, false);
    assert_eq!(update(&mut view, event(KeyEventKind::Press)), Some(Command::Press { down: true }));
    assert_eq!(update(&mut view, event(KeyEventKind::Press)), Some(Command::Press { down: false }));
    set(&mut view, true);
    update(&mut view, Input::Releases(true));
    assert_eq!(update(&mut view, event(KeyEventKind::Press)), None, "it is held already");
    assert_eq!(update(&mut view, event(KeyEventKind::Repeat)), None);
    assert_eq!(update(&mut view, event(KeyEventKind::Release)), Some(Command::Press { down: false }));
    set(&mut view, true);
    assert_eq!(
        update(&mut view, Input::FocusLost),
        Some(Command::Press { down: false }),
        "nobody would tell"
    );
    set(&mut view, false);
    assert_eq!(update(&mut view, event(KeyEventKind::Release)), None);
}

#[test]
fn a_line_is_written_mended_and_sent() {
    let mut view = call(80, 24);
    key(&mut view, KeyCode::Enter);
    typed(&mut view, "heló m wrld");
    for code in
        [KeyCode::Left, KeyCode::Left, KeyCode::Left, KeyCode::Char('o'), KeyCode::Home, KeyCode::Delete]
    {
        key(&mut view, code);
    }
    typed(&mut view, "H");
    assert_eq!(key(&mut view, KeyCode::F(2)), Some(Command::Mute { on: true }), "mute works while writing");
    let control = |c| Input::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL));
    update(&mut view, control('e'));
    update(&mut view, control('w'));
    update(&mut view, Input::Paste("wor\u{1b}[31mld\nq".into()));
    let sent = key(&mut view, KeyCode::Enter);
    assert_eq!(sent, Some(Command::Chat { text: "Heló m wor[31mld q".into() }));
    assert_eq!(view.draft, None);
    key(&mut view, KeyCode::Enter);
    assert_eq!(key(&mut view, KeyCode::Enter), None, "an empty line is not sent");
    key(&mut view, KeyCode::Enter);
    update(&mut view, Input::Paste("x".repeat(9_000)));
    assert!(matches!(key(&mut view, KeyCode::Enter), Some(Command::Chat { text }) if text.len() == 4_096));
}

#[test]
fn the_mouse_chooses_people_mutes_and_scrolls() {
    let mut view = call(80, 24);
    let at =
        |kind, column, row| Input::Mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE });
    let regions = regions(&view);
    let click = MouseEventKind::Down(MouseButton::Left);
    assert_eq!(update(&mut view, at(click, 5, regions.people.y + 1)), None);
    assert_eq!(view.selected, Some(peer(2)));
    assert_eq!(update(&mut view, at(click, 9, regions.own.y)), Some(Command::Mute { on: true }));
    update(&mut view, at(MouseEventKind::ScrollUp, 9, regions.talk.y));
    assert_eq!(view.scroll, 0, "all of it is in sight");
    for n in 0..20 {
        happened(&mut view, Event::Said { text: "yes".into(), id: n });
    }
    update(&mut view, at(MouseEventKind::ScrollUp, 9, regions.talk.y));
    assert_eq!(view.scroll, 3);
    update(&mut view, at(MouseEventKind::ScrollDown, 9, regions.talk.y));
    assert_eq!(view.scroll, 0);
}

#[test]
fn devices_are_listed_and_chosen_while_talking() {
    let mut view = call(80, 24);
    key(&mut view, KeyCode::Char('o'));
    let device = |id: &str, input, output| DeviceInfo {
        host: "pulseaudio".into(),
        id: format!("pulseaudio:{id}"),
        name: id.to_uppercase(),
        input,
        output,
        default_input: input,
        default_output: false,
        rate_hz: None,
        channels: None,
    };
    update(&mut view, Input::Found(vec![device("mic", true, false), device("speaker", false, true)]));
    assert_looks("devices", &view);
    key(&mut view, KeyCode::Down);
    let chosen = key(&mut view, KeyCode::Enter);
    assert_eq!(chosen, Some(Command::Device { end: End::Input, name: "pulseaudio:mic".into() }));
    for _ in 0..9 {
        key(&mut view, KeyCode::Down);
    }
    let chosen = key(&mut view, KeyCode::Enter);
    assert_eq!(chosen, Some(Command::Device { end: End::Output, name: "pulseaudio:speaker".into() }));
}

#[test]
fn settings_are_changed_with_their_price_in_sight() {
    let mut view = call(80, 24);
    let active = VoiceActive { noise_suppression: true, ..VoiceActive::default() };
    happened(&mut view, Event::Processing(Processing { active, delay_ms: 12.44, price_ms: 12.44 }));
    view.history = Some("/home/ana/said.jsonl".into());
    assert_eq!(key(&mut view, KeyCode::Char('p')), None);
    assert_eq!(key(&mut view, KeyCode::Right), Some(Command::Profile { to: Profile::Music }));
    assert_eq!(key(&mut view, KeyCode::Left), Some(Command::Profile { to: Profile::Talk }));
    key(&mut view, KeyCode::Down);
    for to in [Delay::Safe, Delay::Quick, Delay::Balanced] {
        assert_eq!(key(&mut view, KeyCode::Enter), Some(Command::Delay { to }));
    }
    assert_eq!(key(&mut view, KeyCode::Left), Some(Command::Delay { to: Delay::Quick }));
    key(&mut view, KeyCode::Down);
    let echo =
        |switch| Some(Command::Processing { echo_cancel: Some(switch), noise_suppression: None, gain: None });
    for switch in [Switch::On, Switch::Off, Switch::Auto] {
        assert_eq!(key(&mut view, KeyCode::Right), echo(switch));
    }
    for switch in [Switch::Off, Switch::On, Switch::Auto, Switch::Off] {
        assert_eq!(key(&mut view, KeyCode::Left), echo(switch));
    }
    assert_looks("settings", &view);
    for _ in 0..9 {
        key(&mut view, KeyCode::Down);
    }
    assert_eq!(key(&mut view, KeyCode::Left), Some(Command::Threshold { dbov: -47 }));
    key(&mut view, KeyCode::Up);
    assert_eq!(key(&mut view, KeyCode::Left), Some(Command::Speak { when: Speak::Voice }));
}

#[test]
fn whose_key_it_is_is_shown_compared_and_remembered() {
    let mut view = call(100, 24);
    let words = |words: &str| words.to_owned();
    happened(&mut view, Event::Compare { peer_id: peer(1), words: words("tomato credit tube") });
    happened(&mut view, Event::Compare { peer_id: peer(4), words: words("abandon zoo ability") });
    let message = "LOOK OUT: this dora (8L8BQw) is not the dora (xxxxxx) whom you met before.";
    happened(
        &mut view,
        Event::Warning(Notice { code: "other_key", message: message.into(), hint: String::new() }),
    );
    assert_eq!(view.talk.back().unwrap().voice, Voice::Alarm);
    key(&mut view, KeyCode::Char('w'));
    assert_looks("who", &view);
    let verify = |number, on| Some(Command::Verify { peer_id: peer(number), on });
    assert_eq!(key(&mut view, KeyCode::Enter), verify(1, false));
    key(&mut view, KeyCode::Down);
    assert_eq!(key(&mut view, KeyCode::Enter), verify(2, true));
    // By mouse: the first click chooses, the second takes.
    let row = regions(&view).talk.y + 4;
    let click = MouseEventKind::Down(MouseButton::Left);
    let click = || Input::Mouse(MouseEvent { kind: click, column: 9, row, modifiers: KeyModifiers::NONE });
    assert_eq!(update(&mut view, click()), None);
    assert_eq!(update(&mut view, click()), verify(4, true));
}

#[test]
fn the_terms_of_the_invite_and_what_is_kept_are_told() {
    let mut view = view(100, 24);
    let (closes_in_s, single_use) = (Some(3_000), true);
    let history = Some("/home/ana/said.jsonl".to_owned());
    let room = "kitchen".into();
    happened(
        &mut view,
        Event::Joined { room, open: false, closes_in_s, single_use, history, since_start_ms: 9.0 },
    );
    update(&mut view, Input::Elapsed(Duration::from_secs(60)));
    let header = |view: &View| text(&painted(view)).lines().next().unwrap().to_owned();
    let seen = header(&view);
    assert!(seen.contains("private room · for one guest · open for 49 min more"), "{seen}");
    update(&mut view, Input::Elapsed(Duration::from_secs(2_990)));
    assert!(header(&view).contains("open for 10 s more"), "{}", header(&view));
    update(&mut view, Input::Elapsed(Duration::from_secs(3_001)));
    assert!(header(&view).contains("closed to anybody new"), "{}", header(&view));
    key(&mut view, KeyCode::Char('p'));
    assert!(text(&painted(&view)).contains("is kept in /home/ana/said.jsonl"));
}

#[test]
fn what_was_said_is_scrolled_by_rows_and_neither_beyond_the_first_nor_away_from_the_reader() {
    let mut view = call(80, 24);
    for n in 0..40 {
        let text = format!("line {n} {}", "and so on ".repeat(12));
        happened(&mut view, Event::Chat { peer_id: peer(1), name: "ben".into(), text, id: n });
    }
    let shown = |view: &View| text(&painted(view));
    let up = |view: &mut View| {
        update(view, Input::Key(KeyEvent::new(KeyCode::Up, KeyModifiers::CONTROL)));
    };
    assert!(shown(&view).contains("line 39 "));
    let newest = |view: &View| {
        let all = shown(view);
        all.lines().rev().nth(3).unwrap().to_owned()
    };
    let last_row = newest(&view);
    up(&mut view);
    assert_ne!(newest(&view), last_row);
    assert!(shown(&view).contains("line 39 "), "a row is gone, not the whole line:\n{}", shown(&view));
    let read = shown(&view).lines().skip(8).take(8).collect::<Vec<_>>().join("\n");
    happened(&mut view, Event::Said { text: "meanwhile".into(), id: 7 });
    assert!(shown(&view).contains(&read), "what is read stays where it is:\n{}", shown(&view));
    key(&mut view, KeyCode::Home);
    let top = shown(&view);
    assert!(top.contains("joined kitchen"), "{top}");
    let scrolled = view.scroll;
    for _ in 0..50 {
        key(&mut view, KeyCode::PageUp);
    }
    assert_eq!(view.scroll, scrolled);
    key(&mut view, KeyCode::PageDown);
    assert!(view.scroll < scrolled && shown(&view) != top);
    key(&mut view, KeyCode::Home);
    // A larger terminal holds more of it: nothing is scrolled past the first row.
    update(&mut view, Input::Resize(200, 90));
    assert!(shown(&view).lines().nth(7).unwrap().contains("joined kitchen"), "{}", shown(&view));
    key(&mut view, KeyCode::End);
    assert!(view.scroll == 0 && shown(&view).contains("meanwhile"));
    // The keys begin at the top and end with the last.
    update(&mut view, Input::Resize(80, 24));
    key(&mut view, KeyCode::Char('?'));
    assert!(shown(&view).contains("mute, unmute"));
    key(&mut view, KeyCode::Down);
    assert!(!shown(&view).contains("mute, unmute"));
    for _ in 0..9 {
        key(&mut view, KeyCode::PageDown);
    }
    assert!(shown(&view).contains("begins with a slash"), "{}", shown(&view));
}

#[test]
fn a_line_that_begins_with_a_slash_is_a_command() {
    let mut view = call(80, 24);
    let mut write = |line: &str| {
        key(&mut view, KeyCode::Char('/'));
        typed(&mut view, line);
        (key(&mut view, KeyCode::Enter), view.talk.back().unwrap().text.clone())
    };
    assert_eq!(write("name anna").0, Some(Command::Name { name: "anna".into() }));
    assert_eq!(write("volume Cleo -3").0, Some(Command::Volume { peer_id: peer(2), volume_db: -3 }));
    assert_eq!(write("/etc").0, Some(Command::Chat { text: "/etc".into() }));
    let (nothing, said) = write("volume zoe -3");
    assert!(nothing.is_none() && said.contains("nobody here is called zoe"), "{said}");
    let (nothing, said) = write("sing");
    assert!(nothing.is_none() && said.contains("/sing is no command"), "{said}");
    assert_eq!(write("quit").0, Some(Command::Leave));
}

#[test]
fn a_name_that_several_could_bear_is_nobodys() {
    let mut view = call(80, 24);
    let verify = |view: &mut View, who: &str| {
        key(view, KeyCode::Char('/'));
        typed(view, &format!("verify {who}"));
        (key(view, KeyCode::Enter), view.talk.back().unwrap().text.clone())
    };
    assert_eq!(verify(&mut view, "ben").0, Some(Command::Verify { peer_id: peer(1), on: true }));
    person(&mut view, 5, "b\u{435}n", PeerState::Connected, Some(PathKind::Direct));
    let (nothing, said) = verify(&mut view, "ben");
    assert!(nothing.is_none() && said.contains("several could be ben: ben·"), "{said}");
    let shown = view.label(&peer(1));
    assert_eq!(verify(&mut view, &shown).0, Some(Command::Verify { peer_id: peer(1), on: true }));
    // Somebody takes the end of a key for a name.
    let key_of_ben = crate::events::short(&peer(1));
    person(&mut view, 5, &key_of_ben, PeerState::Connected, Some(PathKind::Direct));
    let (nothing, said) = verify(&mut view, &key_of_ben);
    assert!(nothing.is_none() && said.contains("several could be"), "{said}");
}

#[test]
fn enter_chooses_nothing_where_there_is_nothing_and_stays() {
    let mut view = view(80, 24);
    for letter in ['o', 'w'] {
        key(&mut view, KeyCode::Char(letter));
        let before = view.pane.clone();
        assert_eq!(key(&mut view, KeyCode::Enter), None);
        assert!(view.draft.is_none() && view.pane == before, "{letter}");
    }
}

#[test]
fn each_pane_begins_at_its_own_end() {
    let mut view = call(80, 24);
    for n in 0..40 {
        happened(&mut view, Event::Said { text: "yes".into(), id: n });
    }
    key(&mut view, KeyCode::Char('l'));
    key(&mut view, KeyCode::PageUp);
    assert!(view.scroll > 0);
    key(&mut view, KeyCode::Enter);
    assert_eq!((&view.pane, view.scroll), (&Pane::Talk, 0));
    key(&mut view, KeyCode::Esc);
    key(&mut view, KeyCode::PageUp);
    let scrolled = view.scroll;
    key(&mut view, KeyCode::Char('/'));
    assert!(
        scrolled > 0 && view.scroll == scrolled,
        "what is read stays where it is while an answer is written"
    );
    typed(&mut view, "help");
    key(&mut view, KeyCode::Enter);
    assert_eq!((&view.pane, view.scroll), (&Pane::Help, 0));
}

#[test]
fn what_was_not_done_is_not_shown() {
    let mut view = call(80, 24);
    assert!(key(&mut view, KeyCode::Char('x')).is_some() && key(&mut view, KeyCode::Char('m')).is_some());
    assert!(view.selected().unwrap().hearing.muted && view.controls.muted);
    view.put_back();
    assert!(!view.selected().unwrap().hearing.muted && !view.controls.muted);
    let cleo = view.people.iter().find(|person| person.peer == peer(2)).unwrap();
    assert_eq!(cleo.hearing.volume_db, -6, "what the node told stays");
}

#[test]
fn why_a_path_is_taken_is_told_where_there_is_one() {
    let mut view = call(120, 30);
    key(&mut view, KeyCode::Char('s'));
    let shown = |view: &View| text(&painted(view));
    assert!(shown(&view).contains("direct: both are on one network"), "{}", shown(&view));
    let ben = view.people.iter_mut().find(|person| person.peer == peer(1)).unwrap();
    (ben.path, ben.outlook) = (None, Outlook { path_why: None, next_attempt_ms: Some(4000.0) });
    assert!(shown(&view).contains("no path; a path is tried in 4 s"), "{}", shown(&view));
}

#[test]
fn any_size_of_terminal_can_be_drawn_in_any_state() {
    for width in (0..26).step_by(3).chain([31, 47, 79, 80, 132, 300]) {
        for height in (0..16).chain([24, 90]) {
            let lists = [Pane::Devices(Default::default()), Pane::Settings(6), Pane::Who];
            for pane in [Pane::Talk, Pane::Help, Pane::Log].into_iter().chain(lists) {
                let mut view = call(width, height);
                (view.pane, view.stages) = (pane, width % 2 == 0);
                view.draft = (height % 2 == 0).then(Default::default);
                draw(&view, &mut Buffer::empty(view.area));
                for code in [KeyCode::Home, KeyCode::Up, KeyCode::PageDown, KeyCode::Down, KeyCode::End] {
                    key(&mut view, code);
                    draw(&view, &mut Buffer::empty(view.area));
                }
            }
        }
    }
}

#[test]
fn an_hour_of_talk_is_bounded_and_only_what_changed_is_drawn() {
    let mut view = call(80, 24);
    for _ in 0..3_600 {
        figures(&mut view, 1, 21.0, 0.0);
        happened(&mut view, Event::Chat { peer_id: peer(1), name: "ben".into(), text: "hi".into(), id: 1 });
    }
    assert_eq!((view.talk.len(), view.log.len()), (MAX_LINES, MAX_LINES));
    assert!(view.people.iter().all(|person| person.delays.len() <= super::view::MAX_HISTORY));
    let (level, elapsed) = (view.level_dbov, view.elapsed);
    view.stale = false;
    levels(&mut view, level, &[(1, -18.0), (2, -64.0), (3, -127.0)]);
    update(&mut view, Input::Elapsed(elapsed + Duration::from_millis(60)));
    assert!(!view.stale, "nothing changed");
    levels(&mut view, level, &[(1, -30.0), (2, -64.0), (3, -127.0)]);
    assert!(view.stale);
}

#[test]
fn people_come_go_and_are_renamed_in_words() {
    let mut view = call(100, 24);
    person(&mut view, 1, "benno", PeerState::Connected, Some(PathKind::Direct));
    happened(
        &mut view,
        Event::Peer {
            peer_id: peer(4),
            name: Some("dora".into()),
            state: PeerState::Left,
            path: None,
            outlook: Outlook::default(),
            verified: true,
            since_start_ms: 2.0,
            reason: Some("connection lost"),
        },
    );
    let addr = "/ip4/192.0.2.1/udp/4001/quic-v1".parse().unwrap();
    happened(&mut view, Event::Rendezvous { state: RendezvousState::Lost, peer_id: None, addr });
    let notice = Notice { code: "x", message: "the card burns.".into(), hint: "Run.".into() };
    happened(&mut view, Event::Warning(notice));
    let seen = text(&painted(&view));
    for words in [
        "ben is called benno now",
        "dora left: connection lost",
        "! warning: the card burns. Run.",
        "1 server lost",
    ] {
        assert!(seen.contains(words), "{words} in\n{seen}");
    }
    assert_eq!(view.people.len(), 3);
}
