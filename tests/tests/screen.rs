//! The screen in a real terminal: a person joins, hears, writes, mutes, is suspended and leaves, and the terminal is as before.
//!
//! Driven through tmux; without it these tests say that they were skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hallway_tests::process::SOON;
use hallway_tests::tmux::Tmux;
use hallway_tests::{Hall, NodeArgs, Process, hallway_program, skipped};
use rustix::process::{Pid, Signal, kill_process};

/// `hallway join` in a terminal, in a shell that says with which code it ended and how the terminal is left.
fn join(hall: &Hall, name: &str, size: (u16, u16), more: &str) -> Option<Tmux> {
    join_with(hall, name, size, "", more)
}

/// The same with this in its environment.
fn join_with(hall: &Hall, name: &str, size: (u16, u16), environment: &str, more: &str) -> Option<Tmux> {
    let (home, program) = (hall.path(&format!("home-{name}")), hallway_program());
    let command = format!(
        "env {environment} {} join kitchen --at {} --name {name} --data-dir {} --output null \
         --listen /ip4/127.0.0.1/udp/0/quic-v1 {more}; echo \"ended $?\"; stty -a; sleep 600",
        program.display(),
        hall.at,
        home.display()
    );
    let tmux = Tmux::start(hall.dir.path(), name, size, &command);
    if tmux.is_none() {
        skipped("the screen in a terminal: no tmux");
    }
    tmux
}

fn assert_restored(tmux: &Tmux, code: i32) {
    let screen = tmux.wait_for("icanon");
    assert!(screen.contains(&format!("ended {code}")), "{screen}");
    assert!(screen.contains(" echo ") && !screen.contains("-icanon"), "{screen}");
    for (fact, wanted) in [("alternate_on", "0"), ("mouse_any_flag", "0"), ("cursor_flag", "1")] {
        assert_eq!(tmux.fact(fact), wanted, "{fact}");
    }
}

/// The process that is called so and has this in its command line.
fn pid_of(argument: &Path) -> Pid {
    let needle = argument.display().to_string();
    let until = Instant::now() + SOON;
    loop {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let args: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let is_hallway = args.first().is_some_and(|program| program.ends_with(b"/hallway"));
            if is_hallway
                && args.contains(&needle.as_bytes())
                && let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            {
                return Pid::from_raw(pid).unwrap();
            }
        }
        assert!(Instant::now() < until, "no process with {needle}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Processor time of the threads whose names begin so.
fn cpu_of(pid: Pid, thread: &str) -> Duration {
    let tasks = PathBuf::from(format!("/proc/{}/task", pid.as_raw_nonzero()));
    let mut sum = 0;
    for task in std::fs::read_dir(tasks).unwrap().flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with(thread) {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            sum += stat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(sum)
}

/// A process that is stopped until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(pid: Pid) -> Stopped {
        kill_process(pid, Signal::STOP).unwrap();
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may be gone.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn is_gone(pid: Pid) -> bool {
    !std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|line| !line.is_empty())
}

fn ben(hall: &Hall) -> Process {
    let ben = hall.node("kitchen", "ben", NodeArgs { input: "tone:440".into(), ..NodeArgs::default() });
    ben.wait_named("joined");
    ben
}

#[test]
fn a_person_hears_writes_mutes_and_leaves_and_the_terminal_is_as_before() {
    let hall = Hall::open();
    let mut ben = ben(&hall);
    let begun = Instant::now();
    let Some(ana) = join(&hall, "ana", (80, 24), "--input tone:300") else { return };
    ana.wait("the first frame", |screen| screen.contains("hallway kitchen"));
    println!("the first frame stood {:?} after tmux was asked for a terminal", begun.elapsed());
    let eva = join(&hall, "eva", (80, 24), "--input tone:300").unwrap();
    let launch = eva.launched_after(|raw| String::from_utf8_lossy(raw).contains("kitchen"));
    println!("the first frame stood {launch:?} after the program was launched");
    eva.keys(&["q"]);
    eva.wait_for("ended 0");
    let screen = ana.wait("ben's delay", |screen| screen.contains("ben ") && screen.contains(" ms "));
    assert!(screen.contains("direct") && screen.contains("2 here"), "{screen}");

    ana.keys(&["Enter"]);
    ana.types("hello, is this on? m q");
    ana.keys(&["Enter"]);
    ana.wait_for("you:  hello, is this on? m q");
    let chat = ben.wait_named("chat");
    assert_eq!(chat["text"], "hello, is this on? m q");

    ana.keys(&["m"]);
    ana.wait_for("muted");
    let ana_id = chat["peer_id"].as_str().unwrap().to_owned();
    ben.wait("silence from ana", SOON, |event| {
        event["event"] == "stats"
            && event["peer_id"] == ana_id.as_str()
            && event["level_dbov"].as_f64().is_some_and(|level| level < -80.0)
    });
    // The mouse: our own voice is the third row from below.
    ana.click(10, 22);
    ana.wait("an open microphone", |screen| screen.contains("● open"));
    ana.click(10, 22);
    ana.wait_for("muted");
    ana.keys(&["m", "v"]);
    ana.wait_for("push to talk");
    ana.keys(&["Space"]);
    ana.wait("an open microphone", |screen| screen.contains("● open"));
    ana.keys(&["v", "v", "Right", "Right"]);
    ana.wait_for("+4 dB");
    ana.keys(&["?"]);
    ana.wait_for("─ keys");
    ana.keys(&["Escape"]);
    ana.wait("the conversation again", |screen| !screen.contains("─ keys"));
    // Settings, and who is who.
    ana.keys(&["p", "Down", "Right"]);
    ana.wait_for("safe");
    ana.keys(&["Down", "Down", "Right"]);
    ana.wait("the price", |screen| screen.contains("processed, +12 ms") && screen.contains("without noise"));
    ana.keys(&["Escape"]);
    ana.wait("the conversation again", |screen| !screen.contains("─ settings"));
    ana.keys(&["w"]);
    let words = ben.wait_named("compare")["words"].as_str().unwrap().to_owned();
    ana.wait_for(&words);
    ana.keys(&["Enter"]);
    ana.wait_for("verified by you");
    ana.keys(&["Escape"]);
    ana.wait("the conversation again", |screen| !screen.contains("who is who"));
    ana.keys(&["/"]);
    ana.types("name anna");
    ana.keys(&["Enter"]);
    ben.wait("another name", SOON, |event| event["event"] == "peer" && event["name"] == "anna");
    for (width, height) in [(20, 4), (30, 9), (200, 60), (80, 24)] {
        ana.resize(width, height);
        ana.wait("the new size", |screen| screen.contains("open") && (width < 80 || screen.contains("ben")));
    }

    let pid = pid_of(&hall.path("home-ana"));
    let before = cpu_of(pid, "screen");
    std::thread::sleep(Duration::from_secs(5));
    let share = (cpu_of(pid, "screen") - before).as_secs_f64() / 5.0 * 100.0;
    println!("the screen's threads take {share:.2} % of a core");
    assert!(share < 2.0, "{share:.2} %");

    ana.keys(&["q"]);
    ana.wait_for("left after");
    assert_restored(&ana, 0);
    ben.wait_peer(&ana_id, "left");
    ben.leave();

    // The volume is remembered.
    let volumes = std::fs::read_to_string(hall.path("home-ana").join("volumes.toml")).unwrap();
    assert!(volumes.contains("volume_db = 4"), "{volumes}");
}

#[test]
fn signals_errors_and_panics_leave_a_terminal_to_work_in() {
    let hall = Hall::open();
    let Some(ana) = join(&hall, "ana", (80, 24), "--input tone:300") else { return };
    ana.wait_for("nobody else here");
    let pid = pid_of(&hall.path("home-ana"));
    kill_process(pid, Signal::TSTP).unwrap();
    ana.wait("the suspended terminal", |_| ana.fact("alternate_on") == "0");
    assert_eq!(ana.fact("mouse_any_flag"), "0");
    kill_process(pid, Signal::CONT).unwrap();
    ana.wait("the screen again", |screen| {
        ana.fact("alternate_on") == "1" && screen.contains("nobody else here")
    });
    kill_process(pid, Signal::TERM).unwrap();
    assert_restored(&ana, 0);

    // No such device: the screen goes, the last line says what to do.
    let cleo = join(&hall, "cleo", (100, 24), "--input no-such-device").unwrap();
    let screen = cleo.wait_for("ended 4");
    assert!(screen.contains("hallway: "), "{screen}");
    assert_restored(&cleo, 4);

    // This test program again, with the one test that takes its terminal and fails.
    let itself = std::env::current_exe().unwrap();
    let command = format!(
        "{} --ignored --exact the_sky_falls --nocapture; echo \"ended $?\"; stty -a; sleep 600",
        itself.display()
    );
    let dora = Tmux::start(hall.dir.path(), "dora", (80, 24), &command).unwrap();
    let screen = dora.wait_for("icanon");
    assert!(screen.contains("the sky is falling") && !screen.contains("a scolding"), "{screen}");
    assert_restored(&dora, 1);
}

#[test]
fn a_terminal_that_hangs_or_goes_away_keeps_nobody() {
    let hall = Hall::open();
    let Some(ana) = join(&hall, "ana", (200, 60), "--input tone:300") else { return };
    ana.wait_for("nobody else here");
    let pid = pid_of(&hall.path("home-ana"));
    kill_process(pid, Signal::HUP).unwrap();
    assert_restored(&ana, 0);

    let ben = join(&hall, "ben", (200, 60), "--input tone:300").unwrap();
    ben.wait_for("nobody else here");
    let pid = pid_of(&hall.path("home-ben"));
    // Nobody reads what is written to the terminal, and much is: each time it is continued, the program draws everything.
    let server = Pid::from_raw(ben.fact("pid").parse().unwrap()).unwrap();
    let stopped = Stopped::stop(server);
    for _ in 0..40 {
        kill_process(pid, Signal::CONT).unwrap();
        std::thread::sleep(Duration::from_millis(70));
    }
    let asked = Instant::now();
    kill_process(pid, Signal::TERM).unwrap();
    while !is_gone(pid) && asked.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = asked.elapsed();
    drop(stopped);
    println!("left {took:?} after it was asked to, in a terminal that hangs");
    assert!(took < Duration::from_secs(10), "{took:?}");
    ben.wait_for("ended 0");

    let cleo = join(&hall, "cleo", (80, 24), "--input tone:300").unwrap();
    cleo.wait_for("nobody else here");
    let pid = pid_of(&hall.path("home-cleo"));
    drop(cleo);
    let until = Instant::now() + SOON;
    while !is_gone(pid) {
        assert!(Instant::now() < until, "without a terminal it goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn colours_are_as_many_as_the_terminal_has_and_none_where_none_are_wanted() {
    let hall = Hall::open();
    let colours = |raw: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(raw).into_owned();
        let sequences =
            text.split("\x1b[").filter_map(|rest| rest.split_once('m')).map(|(sgr, _)| sgr.to_owned());
        sequences.filter(|sgr| sgr.starts_with("38;") || sgr.starts_with("48;")).collect()
    };
    for (name, environment, theme, wanted) in [
        ("none", "NO_COLOR=1 COLORTERM=truecolor", "dark", None),
        ("sixteen", "-u COLORTERM -u NO_COLOR", "auto", Some("38;5;")),
        ("dark", "-u NO_COLOR COLORTERM=truecolor", "dark", Some("38;2;122;162;247")),
        ("light", "-u NO_COLOR COLORTERM=truecolor", "light", Some("38;2;46;92;197")),
    ] {
        let more = format!("--input tone:300 --theme {theme}");
        let Some(terminal) = join_with(&hall, name, (80, 24), environment, &more) else { return };
        terminal.wait_for("joined kitchen");
        terminal.keys(&["q"]);
        terminal.wait_for("ended 0");
        let seen = colours(&terminal.raw());
        match wanted {
            None => assert!(seen.is_empty(), "{name}: {seen:?}"),
            Some(wanted) => {
                let kind: String = wanted.chars().take(5).collect();
                assert!(seen.iter().any(|sgr| sgr.starts_with(wanted)), "{name}: {seen:?}");
                assert!(seen.iter().all(|sgr| sgr.starts_with(&kind)), "{name}: {seen:?}");
                let few = |sgr: &String| {
                    sgr.split(';').nth(2).is_some_and(|n| n.parse::<u8>().is_ok_and(|n| n < 16))
                };
                assert!(kind != "38;5;" || seen.iter().all(few), "{name}: {seen:?}");
            }
        }
    }
}

/// Takes the terminal as the screen does, and fails in another thread.
#[test]
#[ignore = "run by another test, in a terminal of its own"]
fn the_sky_falls() {
    hallway::tui::terminal::take(|_| {}).unwrap();
    eprintln!("a scolding of a sound library");
    let _ = std::thread::spawn(|| panic!("the sky is falling")).join();
    std::process::exit(1);
}

#[test]
fn where_there_is_no_terminal_to_speak_of_lines_are_written() {
    let hall = Hall::open();
    let Some(ana) = join(&hall, "ana", (80, 24), "--input tone:300 --plain") else { return };
    ana.wait_for("joined kitchen");
    assert_eq!(ana.fact("alternate_on"), "0");
    ana.types("/mute");
    ana.keys(&["Enter"]);
    ana.wait_for("you: muted: nobody hears you");
    ana.types("/nonsense");
    ana.keys(&["Enter"]);
    ana.wait_for("/help");
    ana.types("q");
    ana.keys(&["Enter"]);
    ana.wait_for("ended 0");
    let raw = ana.raw();
    assert!(!raw.contains(&0x1b), "no control sequences: {:?}", String::from_utf8_lossy(&raw));
}
