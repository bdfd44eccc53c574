//! Sound from and to other programs through pipes, with real calls.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hallway_tests::Hall;
use hallway_tests::hall::{NodeArgs, QUIC4};
use hallway_tests::process::{SOON, run, soon};
use hallway_tests::sound::amplitude;

fn fifo(path: &Path) -> String {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    format!("pipe:{}", path.display())
}

fn tone(hz: f64, seconds: usize) -> Vec<u8> {
    let sample = |n: usize| (std::f64::consts::TAU * hz * n as f64 / 48_000.0).sin() * 6000.0;
    (0..48_000 * seconds).flat_map(|n| (sample(n) as i16).to_le_bytes()).collect()
}

#[test]
fn what_one_program_writes_another_one_reads_at_the_other_end_of_the_call() {
    let hall = Hall::open();
    let [mouth, ear] = ["mouth", "ear"].map(|name| hall.path(name));
    let [input, output] = [fifo(&mouth), fifo(&ear)];
    let mut ana = hall.node("pipes", "ana", NodeArgs { input, ..NodeArgs::default() });
    let mut ben = hall.node("pipes", "ben", NodeArgs { output, ..NodeArgs::default() });
    ben.wait_hearing(&ana.peer_id());
    let writer = std::thread::spawn(move || {
        let mut pipe = OpenOptions::new().write(true).open(&mouth).unwrap();
        pipe.write_all(&tone(700.0, 4)).unwrap();
    });
    // Opening waits for the other end; then three seconds of the call.
    let (pipe, bytes) = soon("sound for another program", move || {
        let mut pipe = std::fs::File::open(&ear).unwrap();
        let mut bytes = vec![0; 48_000 * 2 * 3];
        pipe.read_exact(&mut bytes).unwrap();
        (pipe, bytes)
    });
    let heard: Vec<f32> =
        bytes.chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32_768.0).collect();
    let loudest = heard.chunks_exact(24_000).map(|half| amplitude(half, 700.0)).fold(0.0, f64::max);
    assert!(loudest > 0.1, "{loudest}");
    drop(pipe);
    ana.wait_named("input_finished");
    writer.join().unwrap();
    ana.leave();
    ben.leave();
}

#[test]
fn a_reader_that_stops_reading_does_not_stop_the_call() {
    let hall = Hall::open();
    let ear = hall.path("ear");
    let output = fifo(&ear);
    let mut ana = hall.node("stuck", "ana", NodeArgs::default());
    let args = NodeArgs { input: "tone:440".into(), output, ..NodeArgs::default() };
    let mut ben = hall.node("stuck", "ben", args);
    // Open, whether or not it has a writer yet, and never read.
    let at_once = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let _pipe = OpenOptions::new().read(true).custom_flags(at_once).open(&ear).unwrap();
    ana.wait_hearing(&ben.peer_id());
    std::thread::sleep(Duration::from_secs(5));
    let stats = ana.named("stats").into_iter().rev().take(3);
    let concealed: Vec<f64> = stats.filter_map(|second| second["concealed_pct"].as_f64()).collect();
    assert!(concealed.len() == 3 && concealed.iter().all(|pct| *pct < 20.0), "{concealed:?}");
    ana.leave();
    ben.leave();
}

#[test]
fn standard_input_and_output_carry_sound_and_words_go_to_standard_error() {
    let hall = Hall::open();
    let home = hall.path("home-pipe").display().to_string();
    let ben = hall.node("std", "ben", NodeArgs { input: "tone:500".into(), ..NodeArgs::default() });
    ben.wait_named("joined");
    let mut ana = Command::new(hallway_tests::hallway_program())
        .args(["join", "std", "--at", &hall.at, "--data-dir", &home, "--listen", QUIC4, "--for", "6s"])
        .args(["--input", "pipe:-", "--output", "pipe:-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = ana.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&tone(300.0, 3)));
    let ended = soon("its end", move || ana.wait_with_output().unwrap());
    let _ = writer.join().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("joined std"), "words beside the sound");
    let heard: Vec<f32> = ended
        .stdout
        .chunks_exact(2)
        .map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32_768.0)
        .collect();
    assert!((4.0..7.0).contains(&(heard.len() as f64 / 48_000.0)), "{} samples", heard.len());
    let loudest = heard.chunks_exact(24_000).map(|half| amplitude(half, 500.0)).fold(0.0, f64::max);
    assert!(loudest > 0.05, "{loudest}");
    ben.wait("the tone", SOON, |event| {
        event["event"] == "stats" && event["level_dbov"].as_f64() > Some(-40.0)
    });
}

#[test]
fn a_pipe_that_is_none_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home").display().to_string();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "keep").unwrap();
    let (plain_in, plain_out) = ("pipe:/no/such/pipe".to_owned(), format!("pipe:{}", plain.display()));
    let cases: [(&[&str], &str); 4] = [
        (&["--input", &plain_in, "--output", "null"], "mkfifo"),
        (&["--input", "silence", "--output", &plain_out], "mkfifo"),
        (&["--input", "silence", "--output", "pipe:-", "--json"], "hallway ctl events"),
        (&["--input", "pipe:", "--output", "null"], "mkfifo"),
    ];
    for (args, wanted) in cases {
        let printed = run(dir.path(), ["join", "x", "--data-dir", &home].iter().chain(args), &[]);
        assert_eq!(printed.code, Some(2), "{args:?}: {}", printed.last_words);
        assert!(printed.last_words.contains(wanted), "{args:?}: {}", printed.last_words);
    }
    assert_eq!(std::fs::read(&plain).unwrap(), b"keep");
}
