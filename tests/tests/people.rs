//! Who is who, with the real program: words to compare, keys that change, invites with terms.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use hallway_tests::Hall;
use hallway_tests::hall::{NodeArgs, control, node};
use hallway_tests::process::{Process, SOON, run};
use serde_json::{Value, json};

fn words(node: &Process, peer: &Process) -> String {
    let id = peer.peer_id();
    let told = node.wait("words to compare", SOON, |e| e["event"] == "compare" && e["peer_id"] == *id);
    told["words"].as_str().unwrap().to_owned()
}

fn trust(node: &Process, mark: usize, peer: &Process) -> Value {
    let id = peer.peer_id();
    let is_it = |e: &Value| e["event"] == "trust" && e["peer_id"] == *id;
    node.wait_after(mark, "trust", SOON, is_it)["trust"].clone()
}

#[test]
fn two_people_see_the_same_three_words_and_every_two_see_others() {
    let hall = Hall::open();
    let mut people = ["ana", "ben", "cem"].map(|name| hall.node("words", name, NodeArgs::default()));
    let mut seen = Vec::new();
    for (i, j) in [(0, 1), (0, 2), (1, 2)] {
        let ours = words(&people[i], &people[j]);
        assert_eq!(ours, words(&people[j], &people[i]));
        assert_eq!(ours.split(' ').count(), 3, "33 bits");
        seen.push(ours);
    }
    let printed = run(
        hall.dir.path(),
        ["ctl", "--data-dir", hall.path("home-ana").to_str().unwrap(), "words", "ben"],
        &[],
    );
    assert!(printed.out.contains(&seen[0]) && printed.out.contains("ben"), "{}", printed.out);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3);
    people.iter_mut().for_each(Process::leave);
}

#[test]
fn a_known_name_with_another_key_is_told_loudly_until_somebody_vouches_for_it() {
    let hall = Hall::open();
    let dir = hall.dir.path();
    let mut ana = hall.node("study", "ana", NodeArgs::default());
    let mut ben = hall.node("study", "ben", NodeArgs::default());
    assert_eq!(trust(&ana, 0, &ben), "new");
    ben.leave();
    let mark = ana.mark();
    let mut ben = hall.node("study", "ben", NodeArgs::default());
    assert_eq!(trust(&ana, mark, &ben), "known");
    let mark = ana.mark();
    control(dir, "ana").ask(json!({ "command": "verify", "peer_id": ben.peer_id(), "on": true })).unwrap();
    assert_eq!(trust(&ana, mark, &ben), "verified");
    ben.leave();
    // The same name from another home: another key.
    for come in 0..2 {
        let mark = ana.mark();
        let mut eve = hall.node("study", "Ben", NodeArgs::default());
        assert_eq!(trust(&ana, mark, &eve), "other_key");
        let warning =
            ana.wait_after(mark, "a warning", SOON, |e| e["event"] == "warning" && e["code"] == "other_key");
        let told = warning["message"].as_str().unwrap();
        assert!(told.contains("LOOK OUT") && told.contains("verified"), "time {come}: {told}");
        let tail = |id: String| id[id.len() - 6..].to_owned();
        assert!(told.contains(&tail(eve.peer_id())) && told.contains(&tail(ben.peer_id())), "{told}");
        eve.leave();
    }
    ana.leave();
    // A damaged memory is said, and left as it is.
    let people = hall.path("home-ana/people.json");
    assert!(std::fs::read_to_string(&people).unwrap().contains(&ben.peer_id()));
    std::fs::write(&people, "{ broken").unwrap();
    let mut ana = hall.node("study", "ana", NodeArgs::default());
    let warning = ana.wait("a warning", SOON, |e| e["event"] == "warning" && e["code"] == "people");
    assert!(warning["message"].as_str().unwrap().contains("people.json"), "{warning}");
    let mut ben = hall.node("study", "ben", NodeArgs::default());
    ana.wait_peer(&ben.peer_id(), "connected");
    let verify =
        control(dir, "ana").ask(json!({ "command": "verify", "peer_id": ben.peer_id(), "on": true }));
    assert!(verify.unwrap_err().to_string().contains("people.json"));
    ana.leave();
    ben.leave();
    assert_eq!(std::fs::read_to_string(&people).unwrap(), "{ broken");
}

#[test]
fn an_invite_for_one_guest_lets_in_the_first_and_the_same_one_again_and_nobody_else() {
    let hall = Hall::open();
    let dir = hall.dir.path();
    let home = hall.path("home-ana").display().to_string();
    let printed = run(dir, ["invite", "tea", "--at", &hall.at, "--single-use", "--data-dir", &home], &[]);
    let invite = printed.out.trim().to_owned();
    let mut ana = node(dir, &invite, "ana", NodeArgs::default());
    assert!(invite.contains(&format!("host={}", ana.peer_id())), "{invite}");
    let mut ben = node(dir, &invite, "ben", NodeArgs::default());
    ana.wait_peer(&ben.peer_id(), "connected");
    for name in ["cem", "dora"] {
        let mut late = node(dir, &invite, name, NodeArgs::default());
        assert_eq!(late.wait_exit(SOON), Some(5), "{}", late.story());
        assert!(late.last_words().contains("one guest"), "{}", late.last_words());
    }
    ben.leave();
    let mark = ana.mark();
    let mut ben = node(dir, &invite, "ben", NodeArgs::default());
    ana.wait_peer_after(mark, &ben.peer_id(), "connected", SOON);
    ana.leave();
    ben.leave();
}

#[test]
fn after_its_time_an_invite_is_good_for_those_who_are_in_and_for_nobody_new() {
    let hall = Hall::open();
    let dir = hall.dir.path();
    let printed = run(dir, ["invite", "tea", "--at", &hall.at, "--expires", "20s"], &[]);
    let invite = printed.out.trim().to_owned();
    let expires: u64 = invite.split("expires=").nth(1).unwrap().split('&').next().unwrap().parse().unwrap();
    let mut ana = node(dir, &invite, "ana", NodeArgs::default());
    let mut ben = node(dir, &invite, "ben", NodeArgs::default());
    ana.wait_peer(&ben.peer_id(), "connected");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    std::thread::sleep(Duration::from_secs(expires + 1).saturating_sub(now));
    let mut late = node(dir, &invite, "cem", NodeArgs::default());
    assert_eq!(late.wait_exit(SOON), Some(5));
    assert!(late.last_words().contains("time is over"), "{}", late.last_words());
    // Who says otherwise holds the key of another room.
    let forged = invite.replace(&format!("expires={expires}"), &format!("expires={}", expires + 9999));
    assert_eq!(run(dir, ["join", &forged], &[]).code, Some(2));
    assert!(ana.is_running() && ben.is_running());
    ana.leave();
    ben.leave();
}

#[test]
fn an_invite_drawn_as_a_code_reads_back_as_the_invite() {
    let dir = tempfile::tempdir().unwrap();
    let at =
        "/dns4/meet.example.org/udp/4001/quic-v1/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
    let printed = run(dir.path(), ["invite", "kitchen", "--at", at, "--qr"], &[]);
    assert_eq!(printed.code, Some(0), "{}", printed.last_words);
    let (invite, code) = printed.out.split_once("\n\n").unwrap();
    // Half blocks, light where there is ink: a dark terminal.
    let rows: Vec<Vec<[bool; 2]>> = code
        .lines()
        .map(|line| {
            line.chars()
                .map(|c| match c {
                    ' ' => [true, true],
                    '\u{2580}' => [false, true],
                    '\u{2584}' => [true, false],
                    '\u{2588}' => [false, false],
                    other => panic!("{other:?}"),
                })
                .collect()
        })
        .collect();
    let (width, height) = (rows[0].len(), rows.len() * 2);
    assert!(rows.iter().all(|row| row.len() == width) && width < 100, "it fits a terminal");
    let dark =
        |x: usize, y: usize| rows.get(y / 2).and_then(|row| row.get(x)).is_some_and(|cell| cell[y % 2]);
    let scale = 4;
    let mut image = rqrr::PreparedImage::prepare_from_greyscale(width * scale, height * scale, |x, y| {
        if dark(x / scale, y / scale) { 0 } else { 255 }
    });
    let grids = image.detect_grids();
    assert_eq!(grids.len(), 1, "{code}");
    assert_eq!(grids[0].decode().unwrap().1, invite);
}
