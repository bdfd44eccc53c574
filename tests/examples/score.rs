//! Writes what was said and what was heard over links of the table, under virtual time, to be scored by PESQ and the like.
//!
//! `score VOICE.wav OUT-DIRECTORY SEED.. -- PROFILE[_quick|_safe][@MS]..`: @ holds the sound back by so much, come what may,
//! beyond the fastest packet. What is heard then over a range of delays bounds what any choice of delay can reach. PROFILE
//! may be spelt out (`delay=40,jitter=5,loss=1,burst=60`). The voice is mono, 48 kHz. For each profile and seed it is said
//! twice, the second time is written: `PROFILE-SEED.said.wav`, `PROFILE-SEED.heard.wav` and `PROFILE-SEED.json`.
#![allow(clippy::print_stdout, reason = "a program for people")]

use anyhow::{Context, ensure};
use hallway_codec::{Delay, JitterConfig, ReceiverConfig, Samples};
use hallway_tests::{Lab, Profile};
use std::{path::Path, time::Duration};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let voice = arguments.next().context("which voice?")?;
    let out = arguments.next().context("where to?")?;
    let rest: Vec<String> = arguments.collect();
    let middle = rest.iter().position(|a| a == "--").context("seeds -- profiles")?;
    let mut reader = hound::WavReader::open(&voice)?;
    ensure!(
        reader.spec().sample_rate == 48_000 && reader.spec().channels == 1,
        "{voice}: not mono at 48 kHz"
    );
    let voice =
        reader.samples::<i16>().map(|s| s.map(|s| f32::from(s) / 32_768.0)).collect::<Result<Vec<_>, _>>()?;
    std::fs::create_dir_all(&out)?;
    for seed in &rest[..middle] {
        for name in &rest[middle + 1..] {
            run(&voice, Path::new(&out), seed.parse()?, name)?;
        }
    }
    Ok(())
}

fn run(voice: &[f32], out: &Path, seed: u64, name: &str) -> anyhow::Result<()> {
    let length = Duration::from_secs_f64(voice.len() as f64 / 48_000.0);
    let (called, held) = name.split_once('@').unwrap_or((name, ""));
    let (link, wish) = called.split_once('_').unwrap_or((called, "balanced"));
    let delay = match wish {
        "quick" => Delay::Quick,
        "safe" => Delay::Safe,
        _ => Delay::Balanced,
    };
    let mut jitter = JitterConfig { delay, ..JitterConfig::default() };
    if !held.is_empty() {
        let held = Samples::from_micros((held.parse::<f64>()? * 1e3) as u64);
        jitter = JitterConfig { floor: held, ceiling: held, ..jitter };
    }
    let receiver = ReceiverConfig { jitter, ..ReceiverConfig::default() };
    let lab = Lab::seeded(seed).over(&link.parse::<Profile>()?).voice(voice).receiver(receiver);
    let mut call = lab.one_way().call("ana", "ben");
    call.run_for(length);
    call.forget("ben");
    let before = call.link_from("ana");
    let recording = call.record("ben", length + Duration::from_millis(600));
    let counts = call.link_from("ana");
    let [said, heard] = recording.tracks();
    for (track, part) in [(said, "said"), (heard, "heard")] {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 48_000,
            bits_per_sample: 32,
            sample_format: hound::SampleFormat::Float,
        };
        let mut writer = hound::WavWriter::create(out.join(format!("{name}-{seed}.{part}.wav")), spec)?;
        track.samples.iter().try_for_each(|s| writer.write_sample(*s))?;
        writer.finalize()?;
    }
    let policy = call.sender("ana").policy().clone();
    let (delay, listened) = (call.mouth_to_ear("ben"), call.heard_by("ben"));
    let seconds = length.as_secs_f64() + 0.6;
    let json = serde_json::json!({
        "profile": name,
        "seed": seed,
        "p50": delay.p50,
        "p95": delay.p95,
        "p99": delay.p99,
        "missing": listened.missing_pct(),
        "jumps": listened.jumps,
        "kbps": (counts.sent_bytes - before.sent_bytes) as f64 * 8e-3 / seconds,
        "loss": 100.0 * (counts.lost() - before.lost()) as f64 / (counts.sent - before.sent).max(1) as f64,
        "said_ns": said.started_ns,
        "heard_ns": heard.started_ns,
        "policy": format!("{} ms {:?} {} kb/s {:?} {:?}", policy.frame.as_ms(), policy.application, policy.bitrate / 1000, policy.copies, policy.half),
    });
    std::fs::write(out.join(format!("{name}-{seed}.json")), json.to_string())?;
    println!("{json}");
    Ok(())
}
