//! What can be typed, rightly and wrongly: output, exit code and last words.

// All of this file is test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::Command;

use hallway_tests::hall::{NodeArgs, QUIC4, file, node, quic};
use hallway_tests::process::{Printed, run};
use hallway_tests::skipped;
use hallway_tests::sound::{Recording, amplitude};

fn ask(dir: &Path, args: &[&str]) -> Printed {
    run(dir, args, &[])
}

/// Runs it and expects success.
fn told(dir: &Path, args: &[&str]) -> String {
    let printed = ask(dir, args);
    assert_eq!(printed.code, Some(0), "{args:?}: {}", printed.last_words);
    printed.out
}

#[test]
fn an_identity_is_made_once_and_shown_with_words_to_compare() {
    let dir = tempfile::tempdir().unwrap();
    let home = |name: &str| dir.path().join(name).display().to_string();
    let first = told(dir.path(), &["id", "--data-dir", &home("a")]);
    assert_eq!(first, told(dir.path(), &["id", "--data-dir", &home("a")]), "the same every time");
    assert_ne!(first, told(dir.path(), &["id", "--data-dir", &home("b")]), "another home, another identity");
    let json: serde_json::Value =
        serde_json::from_str(&told(dir.path(), &["id", "--json", "--data-dir", &home("a")])).unwrap();
    assert!(first.contains(json["peer_id"].as_str().unwrap()));
    let words = json["safety_words"].as_str().unwrap();
    assert!(first.contains(words) && words.split(' ').count() >= 4, "{words}");
}

#[test]
fn every_invite_has_another_secret_and_carries_the_servers() {
    let dir = tempfile::tempdir().unwrap();
    let at = "/ip4/192.0.2.1/udp/4001/quic-v1";
    let [a, b] = [0, 1].map(|_| told(dir.path(), &["invite", "kitchen", "--at", at]));
    assert!(a.starts_with("hallway:kitchen?secret=") && a.contains(at), "{a}");
    assert_eq!(a.lines().count(), 1, "one line, to be copied");
    let secret = |invite: &str| invite.split(['=', '&']).nth(1).unwrap().to_owned();
    assert_ne!(secret(&a), secret(&b));
    // Base32: five bits a character.
    assert!(secret(&a).trim().len() * 5 >= 128, "{a}");
}

#[test]
fn devices_are_listed_for_people_and_for_scripts() {
    let dir = tempfile::tempdir().unwrap();
    let text = told(dir.path(), &["devices"]);
    assert!(text.contains("file:PATH.wav"), "a way on without a card: {text}");
    let json: serde_json::Value = serde_json::from_str(&told(dir.path(), &["devices", "--json"])).unwrap();
    let all = json.as_array().unwrap();
    assert!(all.iter().all(|device| device["id"].is_string() && device["name"].is_string()), "{json}");
}

#[test]
fn help_names_every_command_and_every_option_of_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let help = told(dir.path(), &["help"]);
    for command in ["join", "invite", "rendezvous", "bench", "devices", "id", "completions", "man"] {
        assert!(help.contains(command), "{command} is not in\n{help}");
        assert!(!told(dir.path(), &["help", command]).is_empty());
    }
    let join = told(dir.path(), &["help", "join"]);
    for option in [
        "--at",
        "--name",
        "--input",
        "--output",
        "--input-start",
        "--profile",
        "--for",
        "--listen",
        "--data-dir",
        "--path",
        "--json",
        "--headless",
        "--timeout",
        "--require-peer",
    ] {
        assert!(join.contains(option), "{option} is not in\n{join}");
    }
    assert!(told(dir.path(), &["--version"]).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_and_man_pages_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = told(dir.path(), &["completions", shell]);
        assert!(script.contains("rendezvous") && script.contains("data-dir"), "{shell}");
        let path = dir.path().join(format!("completions.{shell}"));
        std::fs::write(&path, script).unwrap();
        // `-n` reads without running; a shell that is not installed cannot say.
        if let Ok(status) = Command::new(shell).arg("-n").arg(&path).status() {
            assert!(status.success(), "{shell} does not understand its completions");
        }
    }
    let pages = dir.path().join("pages");
    std::fs::create_dir(&pages).unwrap();
    told(dir.path(), &["man", pages.to_str().unwrap()]);
    for page in ["hallway.1", "hallway-join.1", "hallway-rendezvous.1"] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".TH") && text.contains("hallway"), "{page}");
    }
}

/// `join` with harmless sound and these further arguments.
fn join(dir: &Path, more: &[&str]) -> Printed {
    let home = dir.join("home").display().to_string();
    let mut args = vec!["join", "kitchen", "--data-dir", &home];
    if !more.contains(&"--for") {
        args.extend(["--for", "1s"]);
    }
    if !more.contains(&"--input") {
        args.extend(["--input", "silence"]);
    }
    if !more.contains(&"--output") {
        args.extend(["--output", "null"]);
    }
    if !more.contains(&"--listen") {
        args.extend(["--listen", QUIC4]);
    }
    args.extend(more);
    ask(dir, &args)
}

#[test]
fn nonsense_is_refused_with_code_2_and_a_last_line_that_says_what_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &[&str]); 17] = [
        (&["--listen", "nonsense"], &["nonsense", "--listen"]),
        (&["--listen", "/ip4/127.0.0.1/udp/0"], &["/ip4/127.0.0.1/udp/0", "quic-v1"]),
        (&["--listen", "/ip4/127.0.0.1/tcp/0"], &["/ip4/127.0.0.1/tcp/0", "QUIC"]),
        (&["--at", "nonsense"], &["nonsense", "--at"]),
        (&["--at", "/ip4/127.0.0.1"], &["/ip4/127.0.0.1", "PEERID"]),
        (&["--at", "/ip4/127.0.0.1/udp/4001"], &["/udp/4001", "quic-v1"]),
        (&["--at", "/ip4/127.0.0.1/udp/4001/quic-v1/p2p/nobody"], &["--at"]),
        (&["--input", "tone:1"], &["tone:HZ"]),
        (&["--input", "file:"], &["file:", "path"]),
        (&["--input", "null"], &["null", "output"]),
        (&["--input", ""], &["default"]),
        (&["--output", "tone:440"], &["tone:440", "input"]),
        (&["--output", "silence"], &["silence", "input"]),
        (&["--for", "never"], &["never", "--for"]),
        (&["--period-ms", "9000"], &["9000", "2.5"]),
        (&["--path", "tcp"], &["--path tcp", "--at"]),
        (&["--frobnicate"], &["--frobnicate", "hallway help"]),
    ];
    for (args, wanted) in cases {
        expect(&join(dir.path(), args), 2, wanted, args);
    }
    let wrong: [(&[&str], &[&str]); 7] = [
        (&[], &["hallway help"]),
        (&["join"], &["ROOM", "hallway help"]),
        (&["join", ""], &["no name"]),
        (&["join", "a b"], &["letters"]),
        (&["join", "hallway:kitchen?secret=abc"], &["mistyped"]),
        (&["rendezvous", "--listen", "/ip4/127.0.0.1/udp/4001"], &["quic-v1"]),
        (&["dance"], &["dance", "hallway help"]),
    ];
    for (args, wanted) in wrong {
        expect(&ask(dir.path(), args), 2, wanted, args);
    }
}

/// Exit code, and what the last line must hold.
fn expect(printed: &Printed, code: i32, wanted: &[&str], args: &[&str]) {
    let said = &printed.last_words;
    assert_eq!(printed.code, Some(code), "{args:?}: {said}");
    assert!(said.starts_with("hallway: "), "{args:?}: {said}");
    for part in wanted {
        assert!(said.contains(part), "{args:?}: no {part:?} in {said:?}");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = quic(taken.local_addr().unwrap());
    let args: &[&str] = &["--listen", &addr];
    expect(&join(dir.path(), args), 1, &[&addr, "in use", "--listen"], args);
    let home = dir.path().join("server").display().to_string();
    let args: &[&str] = &["rendezvous", "--listen", &addr, "--data-dir", &home];
    expect(&ask(dir.path(), args), 1, &[&addr, "in use", "--listen"], args);
}

#[test]
fn a_recording_that_cannot_be_played_or_written_is_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("junk.wav"), [0x5a; 4096]).unwrap();
    std::fs::write(path("empty.wav"), []).unwrap();
    write_wav(&path("whole.wav"), 48_000, 1, 16, 440.0, 1.0);
    let whole = std::fs::read(path("whole.wav")).unwrap();
    std::fs::write(path("cut.wav"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(path("header.wav"), &whole[..30]).unwrap();
    write_wav(&path("slow.wav"), 4_000, 1, 16, 440.0, 1.0);
    let inputs = [
        ("missing.wav", "No such file"),
        ("junk.wav", "not a WAV"),
        ("empty.wav", "not a WAV"),
        ("header.wav", "not a WAV"),
        ("cut.wav", "cut off"),
        ("slow.wav", "4000 Hz"),
    ];
    for (name, reason) in inputs {
        let input = file(&path(name));
        let args: &[&str] = &["--input", &input];
        expect(&join(dir.path(), args), 2, &[name, reason], args);
    }
    let folder = file(dir.path());
    let nowhere = file(&path("no/such/folder.wav"));
    for output in [&folder, &nowhere] {
        let args: &[&str] = &["--output", output];
        expect(&join(dir.path(), args), 2, &["cannot write", "folder"], args);
    }
    let both = file(&path("whole.wav"));
    let args: &[&str] = &["--input", &both, "--output", &both];
    expect(&join(dir.path(), args), 2, &["both input and output"], args);
    assert_eq!(std::fs::read(path("whole.wav")).unwrap(), whole, "the recording is untouched");
}

fn write_wav(path: &Path, rate: u32, channels: u16, bits: u16, hz: f64, seconds: f64) {
    let spec = hound::WavSpec {
        channels,
        sample_rate: rate,
        bits_per_sample: bits,
        sample_format: hound::SampleFormat::Int,
    };
    let mut wav = hound::WavWriter::create(path, spec).unwrap();
    let full = f64::from((1u32 << (bits - 1)) - 1);
    for i in 0..(seconds * f64::from(rate)) as u32 {
        let x = 0.2 * (std::f64::consts::TAU * hz * f64::from(i) / f64::from(rate)).sin();
        for _ in 0..channels {
            wav.write_sample((x * full) as i32).unwrap();
        }
    }
    wav.finalize().unwrap();
}

#[test]
fn a_recording_of_another_rate_width_and_channel_count_is_heard_at_its_true_pitch() {
    let hall = hallway_tests::Hall::open();
    let (said, heard) = (hall.path("studio.wav"), hall.path("heard.wav"));
    write_wav(&said, 44_100, 2, 24, 700.0, 5.0);
    let args = NodeArgs { input: file(&said), ..NodeArgs::default() };
    let mut ana = hall.node("studio", "ana", args.with(&["--input-start", "first-peer"]));
    let mut ben = hall.node("studio", "ben", NodeArgs { output: file(&heard), ..NodeArgs::default() });
    ana.wait_named("input_finished");
    let first = ben.wait_hearing(&ana.peer_id())["at_ns"].as_u64().unwrap();
    ana.leave();
    ben.leave();
    let recording = Recording::of(&ben, &heard);
    let sound = recording.between(first + 1_500_000_000, first + 2_500_000_000);
    let at = |hz: f64| amplitude(sound, hz);
    // 700 Hz, neither 762 (played at 48 kHz) nor 350 or 1400 (channels taken for time).
    assert!((0.1..0.3).contains(&at(700.0)), "{}", at(700.0));
    assert!(at(761.9) < 0.02 && at(350.0) < 0.02 && at(1400.0) < 0.02);
}

#[test]
fn without_a_sound_card_the_program_says_how_to_join_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home").display().to_string();
    let nothing = dir.path().join("no-sound").display().to_string();
    std::fs::create_dir(&nothing).unwrap();
    let server = format!("unix:{nothing}/pulse");
    let empty = format!("{nothing}/asound.conf");
    std::fs::write(&empty, "").unwrap();
    let environment = [
        ("PULSE_SERVER", server.as_str()),
        ("XDG_RUNTIME_DIR", &nothing),
        ("PIPEWIRE_RUNTIME_DIR", &nothing),
        ("ALSA_CONFIG_PATH", &empty),
    ];
    let args = ["join", "kitchen", "--data-dir", &home, "--for", "1s", "--json"];
    let printed = run(dir.path(), args, &environment);
    expect(&printed, 4, &["no sound input", "--input silence --output null", "hallway devices"], &args);
    let named =
        run(dir.path(), ["join", "kitchen", "--data-dir", &home, "--input", "Moon Mic"], &environment);
    expect(&named, 4, &["Moon Mic", "hallway devices"], &["--input", "Moon Mic"]);
    let listed = run(dir.path(), ["devices"], &environment);
    assert_eq!(listed.code, Some(0));
    assert!(listed.out.contains("--input file:PATH.wav"), "{}", listed.out);
}

#[test]
fn a_damaged_identity_is_named_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    told(dir.path(), &["id", "--data-dir", home.to_str().unwrap()]);
    let path = home.join("identity");
    let whole = std::fs::read(&path).unwrap();
    for damaged in [b"".to_vec(), b"garbage".to_vec(), whole[..20].to_vec(), vec![0; 100_000]] {
        std::fs::write(&path, &damaged).unwrap();
        for printed in [
            ask(dir.path(), &["id", "--data-dir", home.to_str().unwrap()]),
            join(dir.path(), &[]),
            ask(dir.path(), &["rendezvous", "--listen", QUIC4, "--data-dir", home.to_str().unwrap()]),
        ] {
            expect(&printed, 1, &[path.to_str().unwrap(), "backup"], &[]);
        }
        assert_eq!(std::fs::read(&path).unwrap(), damaged, "the file is untouched");
    }
}

#[test]
fn a_home_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody can make a folder inside a file, root neither.
    std::fs::write(dir.path().join("file"), "").unwrap();
    let mut homes = vec![dir.path().join("file/home")];
    // Root is stopped by no permission, but by a file system of the kernel's.
    if rustix::process::geteuid().is_root() {
        homes.push(PathBuf::from("/proc/hallway"));
    } else {
        let home = dir.path().join("closed");
        std::fs::create_dir(&home).unwrap();
        std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o500)).unwrap();
        homes.push(home);
    }
    for home in homes {
        let home = home.display().to_string();
        let printed = ask(dir.path(), &["id", "--data-dir", &home]);
        expect(&printed, 1, &[&home, "--data-dir"], &["id", "--data-dir", &home]);
    }
}

#[test]
fn an_identity_in_a_home_that_is_read_only_still_serves() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home-ana");
    told(dir.path(), &["id", "--data-dir", home.to_str().unwrap()]);
    std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o500)).unwrap();
    std::fs::set_permissions(home.join("identity"), std::os::unix::fs::PermissionsExt::from_mode(0o400))
        .unwrap();
    if rustix::process::geteuid().is_root() {
        skipped(
            "root is stopped by no permission: that nothing is written is not shown, only that reading works",
        );
    }
    let mut ana = node(dir.path(), "kitchen", "ana", NodeArgs::default().with(&["--for", "1s"]));
    assert_eq!(ana.wait_exit(hallway_tests::process::SOON), Some(0), "{}", ana.story());
}
