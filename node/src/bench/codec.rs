//! `hallway bench codec`: processor time per frame of what the media thread does, beside a stated baseline of this same
//! run: a copy of the frame's samples, the plainest thing that could be done with them.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Context;
use hallway_codec::{
    MAX_PACKET_BYTES, Micros, Mixer, Profile, Receiver, ReceiverConfig, Sender, SenderConfig,
};
use serde::Serialize;

use super::command::Out;
use super::page::Page;
use super::plot::{Mark, Plot, Series};
use super::report::{Machine, columns};
use super::signal::Spread;
use super::speech::{RATE_HZ, speech};
use crate::session::keys::{Opener, OwnKey, Sealer};

/// How long to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct CodecArgs {
    /// Seconds of speech that each step is measured over
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub duration: Duration,
    /// Seed of the voice
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Where the figures go.
    #[command(flatten)]
    pub out: Out,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct CodecReport {
    /// Version of the program.
    pub version: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// What was typed.
    pub command: String,
    /// Whether the program was built with full optimisation: figures of a debug build say nothing.
    pub optimised: bool,
    /// Every step.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Serialize)]
pub struct Step {
    /// What is done.
    pub name: String,
    /// How much sound one time is for, ms.
    pub frame_ms: f64,
    /// Time of one, µs.
    pub us: Spread,
    /// Share of real time, percent, by the median.
    pub of_real_time_pct: f64,
    /// How many copies of the frame's samples take as long.
    pub copies: f64,
}

const COLUMNS: [&str; 7] =
    ["", "frame ms", "p50 us", "p95 us", "p99 us", "% of real time", "times a plain copy"];
/// The media thread's period: 2.5 ms.
const PERIOD: usize = 120;

impl Step {
    fn new(name: &str, frame: usize, took: &[Duration], copy_us: f64) -> anyhow::Result<Self> {
        let us: Vec<f64> = took.iter().map(|took| took.as_secs_f64() * 1e6).collect();
        let us =
            Spread::of(&us).with_context(|| format!("{name}: nothing was measured; give a longer --for"))?;
        let frame_ms = frame as f64 * 1e3 / f64::from(RATE_HZ);
        let copies = us.p50 / (copy_us * frame as f64 / PERIOD as f64).max(1e-6);
        Ok(Self { name: name.into(), frame_ms, of_real_time_pct: us.p50 / (frame_ms * 10.0), us, copies })
    }

    fn cells(&self) -> Vec<String> {
        let figures = [self.frame_ms, self.us.p50, self.us.p95, self.us.p99];
        let figures = figures.iter().map(|x| format!("{x:.2}"));
        [self.name.clone()]
            .into_iter()
            .chain(figures)
            .chain([format!("{:.3}", self.of_real_time_pct), format!("{:.0}", self.copies)])
            .collect()
    }
}

impl CodecReport {
    /// A line for each step.
    pub fn table(&self) -> String {
        let rows: Vec<Vec<String>> = self.steps.iter().map(Step::cells).collect();
        let note = if self.optimised {
            ""
        } else {
            "note: this is a debug build; only a release build's figures count\n"
        };
        columns(&COLUMNS, &rows) + note
    }

    /// The same for a browser.
    pub fn page(&self) -> Page {
        let mut page = Page::new("Time per frame", &self.machine, &self.command);
        let rows: Vec<Vec<String>> = self.steps.iter().map(Step::cells).collect();
        page.table(&COLUMNS.map(str::to_owned), &rows);
        page.note("A plain copy is a memcpy of the frame's samples in the same run.");
        if !self.optimised {
            page.note("This is a debug build; only a release build's figures count.");
        }
        let points = self.steps.iter().enumerate().map(|(i, step)| (i as f64 + 1.0, step.of_real_time_pct));
        page.plots(&[Plot {
            title: "Share of real time, median".into(),
            x: "step, in the table's order".into(),
            y: "%".into(),
            mark: Mark::Bars,
            series: vec![Series { name: "share".into(), points: points.collect() }],
        }]);
        page
    }
}

/// Copies that are timed together.
const COPIES: u32 = 1_000;

/// Measures every step.
///
/// # Errors
/// Where the codec refuses its settings.
pub fn measure(args: &CodecArgs) -> anyhow::Result<CodecReport> {
    let voice = speech(args.seed, args.duration.as_secs_f64());
    // A copy is quicker than a look at the clock: many are timed together.
    let copies: Vec<Duration> = timed(&voice, |period, out| {
        (0..COPIES).for_each(|_| black_box(&mut *out).copy_from_slice(black_box(period)));
    })
    .into_iter()
    .map(|took| took / COPIES)
    .collect();
    let copy_us = Spread::of(&copies.iter().map(|took| took.as_secs_f64() * 1e6).collect::<Vec<_>>())
        .context("--for is too short")?
        .p50;
    let mut steps = vec![Step::new("copy (the baseline)", PERIOD, &copies, copy_us)?];

    // 1. Speaking: levels, encoder, copies of earlier frames, header.
    let mut packets: Vec<(Micros, Vec<u8>)> = Vec::new();
    for (name, profile) in [("music: encode", Profile::Music), ("talk: encode", Profile::Talk)] {
        packets.clear();
        let channels: u8 = if profile == Profile::Music { 2 } else { 1 };
        let mut sender = Sender::new(SenderConfig { profile, channels, ..SenderConfig::default() })?;
        let mut pcm = Vec::new();
        let (mut took, mut since, mut frame) = (Vec::new(), Duration::ZERO, PERIOD);
        for (i, period) in voice.chunks_exact(PERIOD).enumerate() {
            let at = Micros((i * 2_500) as u64);
            pcm.clear();
            pcm.extend(period.iter().flat_map(|sample| std::iter::repeat_n(*sample, channels.into())));
            let began = Instant::now();
            sender.handle_capture(&pcm, at);
            let mut packet = Vec::with_capacity(MAX_PACKET_BYTES);
            let made = sender.poll_packet(Micros(at.0 + 2_500), &mut packet);
            since += began.elapsed();
            if let Some(made) = made {
                frame = made.frame.0 as usize;
                took.push(std::mem::take(&mut since));
                packets.push((Micros(at.0 + 2_500), packet));
            }
        }
        steps.push(Step::new(name, frame, &took, copy_us)?);
    }

    // 2. Sealing and opening, as the session does.
    let key = OwnKey::random().export();
    let (mut sealer, mut opener) = (Sealer::new(&key), Opener::new());
    opener.install(Instant::now(), key);
    let (mut seal, mut open) = (Vec::new(), Vec::new());
    for (_, packet) in &packets {
        let (mut sealed, mut opened) = (Vec::with_capacity(2048), Vec::with_capacity(2048));
        let began = Instant::now();
        sealer.seal(packet, &mut sealed).context("sealing")?;
        seal.push(began.elapsed());
        let began = Instant::now();
        opener.open(Instant::now(), &sealed, &mut opened).context("opening")?;
        open.push(began.elapsed());
    }
    let frame = voice.len() / packets.len().max(1);
    steps.push(Step::new("talk: seal", frame, &seal, copy_us)?);
    steps.push(Step::new("talk: open", frame, &open, copy_us)?);

    // 3. Listening: jitter buffer, decoder, concealment, drift. Clean, and with every tenth packet lost.
    for (name, lose) in [("talk: play", 0), ("talk: play, 10 % lost", 10)] {
        let mut receiver = Receiver::new(ReceiverConfig::default())?;
        let mut coming = packets.iter().enumerate().peekable();
        let (mut took, mut out) = (Vec::new(), [0.0; PERIOD]);
        for period in 0..voice.len() / PERIOD {
            let now = Micros((period * 2_500) as u64 + 20_000);
            let began = Instant::now();
            while let Some((i, (at, packet))) = coming.next_if(|(_, (at, _))| at.0 + 10_000 <= now.0) {
                if lose == 0 || i % lose != 0 {
                    receiver.handle_packet(Micros(at.0 + 10_000), packet).context("our own packet")?;
                }
            }
            receiver.play_into(now, 0, &mut out);
            took.push(began.elapsed());
            black_box(&out);
        }
        steps.push(Step::new(name, PERIOD, &took, copy_us)?);
    }

    // 4. Mixing.
    for voices in [10, 50] {
        let mut mixer = Mixer::new(1);
        let took = timed(&voice, |period, out| {
            (0..voices).for_each(|_| {
                mixer.add(period);
            });
            mixer.mix_into(out);
        });
        steps.push(Step::new(&format!("mix {voices} voices"), PERIOD, &took, copy_us)?);
    }
    Ok(CodecReport {
        version: env!("CARGO_PKG_VERSION"),
        machine: Machine::here(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        optimised: !cfg!(debug_assertions),
        steps,
    })
}

fn timed(voice: &[f32], mut work: impl FnMut(&[f32], &mut [f32])) -> Vec<Duration> {
    let mut out = [0.0; PERIOD];
    voice
        .chunks_exact(PERIOD)
        .map(|period| {
            let began = Instant::now();
            work(black_box(period), &mut out);
            let took = began.elapsed();
            black_box(&out);
            took
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_the_media_thread_is_timed_and_costs_more_than_a_copy() {
        let args = CodecArgs { duration: Duration::from_secs(2), seed: 1, out: Out::default() };
        let report = measure(&args).unwrap();
        let names: Vec<&str> = report.steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(names[0], "copy (the baseline)");
        assert!(names.contains(&"talk: seal") && names.contains(&"mix 50 voices"), "{names:?}");
        let of = |name: &str| report.steps.iter().find(|step| step.name == name).unwrap();
        assert!(of("talk: encode").copies > 10.0 && of("mix 50 voices").us.p50 > of("mix 10 voices").us.p50);
        assert!(report.table().lines().count() > report.steps.len());
    }
}
