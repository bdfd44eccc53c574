//! Configuration and log of the real program: what outweighs what, and what is told where something is wrong.

#![allow(clippy::unwrap_used, clippy::type_complexity)]

use std::path::Path;
use std::time::Duration;

use hallway_tests::hall::{NodeArgs, QUIC4, node};
use hallway_tests::process::{Printed, SOON, run};
use hallway_tests::{Hall, Process};

fn show(dir: &Path, environment: &[(&str, &str)]) -> serde_json::Value {
    let home = dir.join("home").display().to_string();
    let printed = run(dir, ["config", "show", "--json", "--data-dir", &home], environment);
    assert_eq!(printed.code, Some(0), "{}", printed.last_words);
    serde_json::from_str(&printed.out).unwrap()
}

/// A data folder with this configuration.
fn configured(dir: &Path, name: &str, text: &str) -> String {
    let home = dir.join(name);
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(home.join("config.toml"), text).unwrap();
    home.display().to_string()
}

#[test]
fn flags_outweigh_the_environment_and_that_the_file_and_show_says_which_it_was() {
    let hall = Hall::open();
    let dir = hall.dir.path();
    let file =
        format!("name = \"from the file\"\nat = [\"{}\"]\ninput = \"silence\"\noutput = \"null\"\n", hall.at);
    let home = configured(dir, "home", &file);
    let shown = show(dir, &[]);
    assert_eq!(
        (&shown["name"]["value"], &shown["name"]["from"]),
        (&"from the file".into(), &"line 1".into())
    );
    assert_eq!(shown["period-ms"], serde_json::json!({ "value": 2.5, "from": "default" }));
    let shown = show(dir, &[("HALLWAY_NAME", "from the environment")]);
    assert_eq!(shown["name"]["from"], "HALLWAY_NAME");
    // The server stands in the file alone; what the others see is what counts.
    let eve = hall.node("layers", "eve", NodeArgs::default());
    let cases: [(&[&str], &[(&str, &str)], &str); 3] = [
        (&[], &[], "from the file"),
        (&[], &[("HALLWAY_NAME", "from the environment")], "from the environment"),
        (&["--name", "from the flag"], &[("HALLWAY_NAME", "from the environment")], "from the flag"),
    ];
    for (more, environment, wanted) in cases {
        let mut args = vec!["join", "layers", "--json", "--listen", QUIC4, "--data-dir", &home];
        args.extend(more);
        let mark = eve.mark();
        let mut ana = Process::start(dir, wanted, args, environment);
        eve.wait_after(mark, wanted, SOON, |e| {
            e["event"] == "peer" && e["state"] == "connected" && e["name"] == wanted
        });
        ana.leave();
        eve.wait_peer_after(mark, &ana.peer_id(), "left", SOON);
    }
}

#[test]
fn a_slip_in_the_file_ends_the_program_with_its_line_and_what_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("\nmax-rte = 3\n", "line 2", "Did you mean `max-rate`?"),
        ("name = \"ana\"\nlisten = [\"/ip4/127.0.0.1/tcp/1\"]\n", "line 2", "QUIC"),
        ("period-ms = 900\n", "line 1", "0.5 to 60"),
        ("path = \"sideways\"\n", "line 1", "direct"),
        ("[rendezvous]\nlisten = [\"nonsense\"]\n", "line 2", "/ip4/0.0.0.0/udp/4001/quic-v1"),
        ("name = ana\n", "line 1", "quotes"),
    ];
    for (text, line, wanted) in cases {
        let home = configured(dir.path(), "home", text);
        for command in [&["join", "kitchen"][..], &["config", "check"], &["config", "show"], &["rendezvous"]]
        {
            let printed = run(dir.path(), command.iter().chain(&["--data-dir", home.as_str()]), &[]);
            let said = &printed.last_words;
            assert_eq!(printed.code, Some(2), "{text:?}: {said}");
            assert!(
                said.contains("config.toml") && said.contains(line) && said.contains(wanted),
                "{text:?}: {said}"
            );
        }
    }
    // What is wrong in the environment is not blamed on what was typed.
    let home = configured(dir.path(), "home", "");
    let printed = run(dir.path(), ["join", "kitchen", "--data-dir", &home], &[("HALLWAY_MAX_RATE", "much")]);
    assert_eq!(printed.code, Some(2));
    assert!(printed.last_words.contains("HALLWAY_MAX_RATE"), "{}", printed.last_words);
    let printed = run(dir.path(), ["join", "kitchen", "--config", "/no/such/file"], &[]);
    assert!(
        printed.last_words.contains("/no/such/file") && printed.code == Some(2),
        "{}",
        printed.last_words
    );
}

#[test]
fn init_writes_a_closed_file_that_says_nothing_and_never_replaces_one() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folders").display().to_string();
    let environment = [("XDG_CONFIG_HOME", folder.as_str())];
    let printed = run(dir.path(), ["config", "init"], &environment);
    let path = Path::new(printed.out.trim());
    assert_eq!(path, Path::new(&folder).join("hallway/config.toml"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(run(dir.path(), ["config", "check"], &environment).code, Some(0));
    std::fs::write(path, "name = \"mine\"\n").unwrap();
    let again = run(dir.path(), ["config", "init"], &environment);
    assert!(again.code == Some(1) && again.last_words.contains("left as it is"), "{}", again.last_words);
    assert_eq!(std::fs::read_to_string(path).unwrap(), "name = \"mine\"\n");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(path, open).unwrap();
    let refused = run(dir.path(), ["config", "check"], &environment);
    assert!(refused.code == Some(2) && refused.last_words.contains("chmod"), "{}", refused.last_words);
}

#[test]
fn the_log_of_a_call_has_its_course_and_neither_words_nor_names_nor_secrets_nor_full_keys() {
    let hall = Hall::open();
    let dir = hall.dir.path();
    let Printed { out: invite, .. } = run(dir, ["invite", "study", "--at", &hall.at], &[]);
    let invite = invite.trim();
    let secret = invite.split(['=', '&']).nth(1).unwrap();
    let level = ["--log-level", "trace"];
    let mut ana = node(dir, invite, "AnaConda", NodeArgs::default().with(&level));
    let mut ben = node(dir, invite, "BenHur", NodeArgs::default().with(&level));
    ana.wait_peer(&ben.peer_id(), "connected");
    ben.wait_peer(&ana.peer_id(), "connected");
    ana.leave();
    ben.leave();
    for (name, me) in [("AnaConda", &ana), ("BenHur", &ben)] {
        let path = dir.join(format!("home-{name}/hallway.log"));
        let log = std::fs::read_to_string(&path).unwrap();
        assert!(log.contains("joined") && log.contains("Connected"), "the course of the call:\n{log}");
        assert!(log.len() > 2000, "at `trace` much is told");
        for hidden in [ana.peer_id(), ben.peer_id(), hall.server.peer_id()] {
            assert!(!log.contains(&hidden), "a full key in the log of {}", me.name);
        }
        for hidden in [secret, "AnaConda", "BenHur", "study"] {
            assert!(!log.contains(hidden), "{hidden} in the log of {}", me.name);
        }
        let longest = log.split(|c: char| !c.is_ascii_alphanumeric()).map(str::len).max();
        assert!(longest < Some(40), "{longest:?}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_log_on_a_full_disk_costs_nothing_but_the_log() {
    let hall = Hall::open();
    let full = ["--log-level", "trace", "--log-file", "/dev/full"];
    let mut ana = hall.node("full", "ana", NodeArgs::default().with(&full));
    let mut ben = hall.node("full", "ben", NodeArgs { input: "tone:440".into(), ..NodeArgs::default() });
    ana.wait_hearing(&ben.peer_id());
    std::thread::sleep(Duration::from_millis(500));
    ana.leave();
    ben.leave();
}
