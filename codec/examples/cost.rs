//! Prints what one voice costs in processor time, sending and receiving. `cargo run --release --example cost`
#![allow(clippy::print_stdout, clippy::expect_used, reason = "a program for people")]

use hallway_codec::{Micros, Profile, Receiver, ReceiverConfig, Report, Sender, SenderConfig};
use std::time::{Duration, Instant};

const SECONDS: u64 = 60;

fn main() {
    for (name, profile, lossy) in [
        ("talk, clean", Profile::Talk, false),
        ("talk, lossy", Profile::Talk, true),
        ("music", Profile::Music, false),
    ] {
        let (sending, receiving) = cost(profile, lossy);
        let share = |t: Duration| t.as_secs_f64() / SECONDS as f64 * 100.0;
        println!("{name}: sending {:.2} % of a core, receiving {:.2} %", share(sending), share(receiving));
    }
}

fn cost(profile: Profile, lossy: bool) -> (Duration, Duration) {
    let mut sender = Sender::new(SenderConfig { profile, ..SenderConfig::default() }).expect("a sender");
    let mut receiver = Receiver::new(ReceiverConfig::default()).expect("a receiver");
    let (mut sending, mut receiving) = (Duration::ZERO, Duration::ZERO);
    let (mut packet, mut out) = (Vec::new(), [0.0; 120]);
    // A fifth of a percent of drift keeps the resampler at work.
    let mut clock = 0.0;
    for period in 0..SECONDS * 400 {
        let now = Micros(period * 2_500);
        let pcm: Vec<f32> = (0..120).map(|i| voice(period * 120 + i)).collect();
        if lossy && period % 400 == 0 {
            sender.handle_report(now, 1, &Report { received: 80, lost: 20, ..Report::default() });
        }
        clock += 2_500.25;
        let start = Instant::now();
        sender.handle_capture(&pcm, Micros(clock as u64));
        let mut packets = Vec::new();
        while sender.poll_packet(Micros(clock as u64 + 2_500), &mut packet).is_some() {
            packets.push(packet.clone());
        }
        sending += start.elapsed();
        let start = Instant::now();
        for packet in packets {
            if !(lossy && period % 50 < 12) {
                receiver.handle_packet(now, &packet).expect("our own packet");
            }
        }
        receiver.play_into(now, 0, &mut out);
        receiving += start.elapsed();
    }
    (sending, receiving)
}

fn voice(sample: u64) -> f32 {
    let t = sample as f64 / 48_000.0;
    let phase = std::f64::consts::TAU * (130.0 * t + 6.0 * (t * 1.9).sin());
    (0.2 * (t * 12.0).sin().abs() * ((phase).sin() + 0.5 * (2.0 * phase).sin() + 0.3 * (5.0 * phase).sin()))
        as f32
}
