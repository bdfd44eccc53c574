//! Real devices, as far as a machine without any can have them: a PulseAudio server with a null sink, whose monitor
//! hears what is played. Measures the loop, pulls the server away and gives it back. Needs the `pulseaudio` binary, and says
//! `skipped: no pulseaudio` otherwise. How long the loop takes depends on what else the machine does: it is printed, not
//! judged. That the ends know how long it takes is judged.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod sound;

use std::time::{Duration, Instant};

use hallway::audio::{
    Audio, AudioConfig, AudioEvent, End, Error, InputSpec, OutputSpec, list_devices, monotonic_ns,
};
use sound::Server;

/// Most by which what one end says of a moment may differ from what the other says of it, ms: a period of either.
const MOST_ERROR_MS: f64 = 5.0;
/// Frames of the click train's period: longer than any loop delay here.
const EVERY: u64 = 24_000;
/// What a busy machine may add to any time.
const BUSY: Duration = Duration::from_millis(1500);

/// Plays one click each half second and notes, by the edge's own clock, when each was to be heard and was captured.
#[derive(Default)]
struct Clicks {
    played: u64,
    heard_at: Vec<u64>,
    written_at: Vec<u64>,
    captured: Vec<(u64, u64)>,
    loud: bool,
    silent_blocks: u64,
    blocks: u64,
    events: Vec<AudioEvent>,
}

impl Clicks {
    fn run(&mut self, audio: &mut Audio, until: impl Fn(&Self) -> bool, at_most: Duration) -> bool {
        let end = Instant::now() + at_most;
        while !until(self) {
            if Instant::now() > end {
                return false;
            }
            audio.wait(Duration::from_millis(20));
            let now = monotonic_ns();
            while let Some(block) = audio.capture.read() {
                self.blocks += 1;
                let loud = block.pcm.iter().position(|s| s.abs() > 0.25);
                if let (Some(at), false) = (loud, self.loud) {
                    self.captured.push((block.captured_at_ns + at as u64 * 1_000_000_000 / 48_000, now));
                }
                self.silent_blocks += u64::from(loud.is_none());
                self.loud = loud.is_some();
            }
            while audio.playback.space() > 0 {
                let mut pcm = [0.0; 120];
                if self.played.is_multiple_of(EVERY) {
                    pcm[0] = 0.9;
                    self.heard_at.push(audio.playback.heard_at_ns());
                    self.written_at.push(now);
                }
                audio.playback.write(&pcm);
                self.played += 120;
            }
            self.events.extend(audio.events.try_iter());
        }
        true
    }

    /// Milliseconds from writing a click to reading it, and from its estimated sounding to its estimated capture.
    fn loops(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut whole, mut estimated) = (Vec::new(), Vec::new());
        for (written, heard) in self.written_at.iter().zip(&self.heard_at) {
            let Some((captured, read)) = self.captured.iter().find(|(_, read)| read > written) else {
                continue;
            };
            if read - written < 300_000_000 {
                whole.push((read - written) as f64 / 1e6);
                estimated.push(*captured as f64 / 1e6 - *heard as f64 / 1e6);
            }
        }
        (whole, estimated)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}

/// What a second of waiting on simulated cards costs, printed beside the device's figure for comparison.
fn simulated_cost() -> f64 {
    let config =
        AudioConfig { input: InputSpec::Tone(440.0), output: OutputSpec::Null, ..AudioConfig::default() };
    let mut audio = Audio::open(config).unwrap();
    let mut clicks = Clicks::default();
    let (cpu, wall) = (cpu_ms(), Instant::now());
    assert!(
        clicks.run(&mut audio, |c| c.blocks >= 400, Duration::from_secs(3) + BUSY),
        "400 periods last a second"
    );
    (cpu_ms() - cpu) / (wall.elapsed().as_secs_f64() * 1e3) * 100.0
}

#[test]
fn a_null_sink_is_heard_within_milliseconds_and_survives_its_server() {
    let Some(runtime) = sound::here("a_null_sink_is_heard_within_milliseconds_and_survives_its_server")
    else {
        return;
    };
    // Without a server: no device unless this machine has a card of its own, and a way on in words.
    match Audio::open(AudioConfig::default()) {
        Ok(_) => println!("this machine has a sound card of its own"),
        Err(e) => {
            println!("without a server: {e}");
            assert!(matches!(e, Error::NoDevice { .. }) && e.is_device(), "{e:?}");
            assert!(e.hint().contains("--input silence --output null"), "{}", e.hint());
        }
    }
    let unknown = AudioConfig { input: InputSpec::Device("no such card".into()), ..AudioConfig::default() };
    assert!(matches!(Audio::open(unknown), Err(Error::NotFound { end: End::Input, .. })));

    let Some(server) = Server::start(&runtime) else {
        println!("skipped: no pulseaudio (it does not start here)");
        return;
    };

    let devices = list_devices();
    let sink = devices.iter().find(|d| d.output && d.id == "pulseaudio:hall").expect("the sink is listed");
    let monitor =
        devices.iter().find(|d| d.input && d.id == "pulseaudio:hall.monitor").expect("so is its monitor");
    assert!(sink.default_output && monitor.default_input, "{devices:?}");
    assert_eq!((sink.rate_hz, sink.channels), (Some(48_000), Some(2)));

    let mut audio = Audio::open(AudioConfig {
        input: InputSpec::Device("hall.monitor".into()),
        output: OutputSpec::Default,
        ..AudioConfig::default()
    })
    .unwrap();
    let mut clicks = Clicks::default();
    assert!(
        clicks.run(&mut audio, |c| c.captured.len() >= 2, Duration::from_secs(5) + BUSY),
        "nothing was heard"
    );
    let (cpu, wall) = (cpu_ms(), Instant::now());
    assert!(
        clicks.run(&mut audio, |c| c.captured.len() >= 5, Duration::from_secs(5) + BUSY),
        "the clicks stopped"
    );
    let share = (cpu_ms() - cpu) / (wall.elapsed().as_secs_f64() * 1e3) * 100.0;
    let (whole, estimated) = clicks.loops();
    println!("round trip, write to read: {:.1} ms of {whole:.1?}", median(&whole));
    println!("estimated capture minus estimated sounding: {:.1} ms of {estimated:.1?}", median(&estimated));
    // A monitor hears in the same moment what is played: both ends speak of one instant.
    assert!(
        median(&estimated).abs() < MOST_ERROR_MS,
        "the ends disagree about when a click was heard: {estimated:?}"
    );
    println!(
        "media thread: {share:.2} % of a core, xruns {} in, {} out",
        audio.capture.xruns(),
        audio.playback.xruns()
    );
    assert!(clicks.events.iter().any(|e| matches!(e, AudioEvent::InputStarted { rate_hz: 48_000, .. })));
    assert!(clicks.events.iter().any(|e| matches!(e, AudioEvent::OutputStarted { rate_hz: 48_000, .. })));

    println!("media thread on simulated cards: {:.2} % of a core", simulated_cost());

    drop(server);
    let lost = |end: End| {
        move |c: &Clicks| {
            c.events.iter().any(|e| matches!(e, AudioEvent::DeviceLost { end: lost, .. } if *lost == end))
        }
    };
    let both_lost = |c: &Clicks| lost(End::Input)(c) && lost(End::Output)(c);
    assert!(clicks.run(&mut audio, both_lost, Duration::from_secs(3) + BUSY), "{:?}", clicks.events);
    let blocks = clicks.blocks;
    assert!(
        clicks.run(&mut audio, |c| c.blocks >= blocks + 100, Duration::from_secs(2) + BUSY),
        "silence goes on in place of the microphone"
    );

    let back = Instant::now();
    let server = Server::start(&runtime).expect("it started before");
    let again = |end: End| {
        move |c: &Clicks| {
            c.events.iter().any(|e| matches!(e, AudioEvent::DeviceReopened { end: back, .. } if *back == end))
        }
    };
    let both_back = |c: &Clicks| again(End::Input)(c) && again(End::Output)(c);
    assert!(clicks.run(&mut audio, both_back, Duration::from_secs(4) + BUSY), "{:?}", clicks.events);
    println!("open again {} ms after the server's start began", back.elapsed().as_millis());
    let captured = clicks.captured.len();
    assert!(
        clicks.run(&mut audio, |c| c.captured.len() >= captured + 2, Duration::from_secs(4) + BUSY),
        "deaf after reopening"
    );
    drop(server);
    let left = Instant::now();
    audio.finish().unwrap();
    assert!(left.elapsed() < Duration::from_secs(3) + BUSY);
}
