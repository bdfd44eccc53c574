//! Time per frame of what the media thread does, each beside a baseline in the same run: `cargo bench --bench frame`.
//!
//! In each group the entries named `baseline: …` are what the same work would cost if hallway added nothing: libopus
//! alone with the same settings, a copy of the samples (`memcpy`), a plain FIFO of packets. Sealing and opening are in
//! `node/benches/seal.rs`. `scripts/bench codec` runs both and prints one table.
#![allow(clippy::expect_used, missing_docs, reason = "a program for people")]

#[path = "../tests/lab/mod.rs"]
mod lab;

use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use hallway_codec::{
    Application, MediaTime, Micros, Mixer, Profile, Receiver, ReceiverConfig, Report, SAMPLE_RATE, Samples,
    Sender, SenderConfig,
    frame::Packet,
    jitter::packets::{Packets, Trace},
    opus::{Decoder, Encoder, EncoderSettings, inspect},
};
use lab::speech;
use std::{
    collections::VecDeque,
    hint::black_box,
    time::{Duration, Instant},
};

/// Length of the voice that is spoken over and over.
const SECONDS: u64 = 10;
/// Packets that are put in, or taken out, between two looks at the clock: 100 ms of 5 ms frames.
const BATCH: u64 = 20;

/// One way of talking.
struct Manner {
    name: &'static str,
    config: SenderConfig,
    lossy: bool,
}

impl Manner {
    fn all() -> [Self; 3] {
        let talk = SenderConfig::default();
        let music = SenderConfig { profile: Profile::Music, channels: 2, ..talk };
        [
            Self { name: "talk", config: talk, lossy: false },
            Self { name: "talk on a lossy path", config: talk, lossy: true },
            Self { name: "music in stereo", config: music, lossy: false },
        ]
    }

    /// A sender in this manner, past every change of manner.
    fn speaker(&self) -> Speaker {
        let sender = Sender::new(self.config).expect("a sender");
        let voice: Vec<f32> = (0..SECONDS * u64::from(SAMPLE_RATE))
            .flat_map(|i| std::iter::repeat_n(speech(i), self.config.channels.into()))
            .collect();
        let (channels, packet) = (self.config.channels.into(), Vec::new());
        let mut speaker = Speaker { sender, voice, channels, at: 0, last: None, packet };
        if self.lossy {
            let lossy = Report { received: 80, lost: 20, ..Report::default() };
            speaker.sender.handle_report(Micros(0), 1, &lossy);
        }
        while speaker.at < u64::from(SAMPLE_RATE) {
            speaker.speak(|_, _| ());
        }
        speaker
    }
}

struct Speaker {
    sender: Sender,
    voice: Vec<f32>,
    channels: usize,
    /// Samples spoken.
    at: u64,
    last: Option<MediaTime>,
    packet: Vec<u8>,
}

/// The packets that come with one frame: its own, before it perhaps another one of the frame before.
type Sent = Vec<(Micros, Vec<u8>)>;

impl Speaker {
    /// Captures periods of 2.5 ms until a frame is done, and hands over each packet on the way.
    fn speak(&mut self, mut each: impl FnMut(Micros, &[u8])) {
        loop {
            let now = Micros(self.at * 125 / 6);
            while let Some(made) = self.sender.poll_packet(now, &mut self.packet) {
                each(now, &self.packet);
                if self.last.replace(made.media_time) != Some(made.media_time) {
                    return;
                }
            }
            let from = (self.at % (SECONDS * u64::from(SAMPLE_RATE))) as usize * self.channels;
            let period = self.voice.get(from..from + 120 * self.channels).expect("a whole number of periods");
            self.sender.handle_capture(period, now);
            self.at += 120;
        }
    }

    /// What is sent for so many frames.
    fn frames(&mut self, count: u64) -> Vec<Sent> {
        let mut frame = |_| {
            let mut sent = Vec::new();
            self.speak(|at, packet| sent.push((at, packet.to_vec())));
            sent
        };
        (0..count).map(&mut frame).collect()
    }

    /// libopus with the settings that this sender uses.
    fn encoder(&self) -> (Encoder, usize) {
        let policy = self.sender.policy();
        let settings = EncoderSettings {
            application: policy.application,
            bitrate: policy.bitrate,
            complexity: policy.complexity,
            loss_percent: policy.loss_perc,
            ..EncoderSettings::default()
        };
        let mut encoder = Encoder::new(self.channels as u8, policy.application).expect("an encoder");
        encoder.configure(&settings).expect("settings in use");
        (encoder, policy.frame.interleaved(self.channels))
    }
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group
}

fn copy(group: &mut BenchmarkGroup<'_, WallTime>, values: usize) {
    let (from, mut to) = (vec![0.5f32; values], vec![0.0f32; values]);
    group.bench_function("baseline: memcpy of the samples", |b| {
        b.iter(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    });
}

/// A frame from the microphone to a packet with its copies.
fn encode(criterion: &mut Criterion) {
    for manner in Manner::all() {
        let mut speaker = manner.speaker();
        let (mut encoder, values) = speaker.encoder();
        let frame = speaker.sender.policy().frame;
        let mut group = group(criterion, &format!("encode, {}, {} ms", manner.name, frame.as_ms()));
        group
            .bench_function("hallway", |b| b.iter(|| speaker.speak(|_, packet| _ = black_box(packet.len()))));
        let mut packet = Vec::new();
        let mut frames = speaker.voice.chunks_exact(values).cycle();
        group.bench_function("baseline: libopus alone", |b| {
            b.iter(|| encoder.encode(frames.next().expect("endless"), &mut packet));
        });
        copy(&mut group, values);
        group.finish();
    }
}

/// The same with the past described by DRED, against the same without.
fn dred(criterion: &mut Criterion) {
    let voice: Vec<f32> = (0..SECONDS * u64::from(SAMPLE_RATE)).map(speech).collect();
    let mut group = group(criterion, "DRED, encode 20 ms");
    for (name, dred_ms) in [("200 ms described", 200), ("baseline: none", 0)] {
        let settings = EncoderSettings {
            application: Application::Voip,
            bitrate: 32_000,
            complexity: 9,
            loss_percent: 20,
            dred_ms,
            ..EncoderSettings::default()
        };
        let mut encoder = Encoder::new(1, Application::Voip).expect("an encoder");
        encoder.configure(&settings).expect("settings");
        let mut frames = voice.chunks_exact(960).cycle();
        let mut packet = Vec::new();
        group.bench_function(name, |b| {
            b.iter(|| encoder.encode(frames.next().expect("endless"), &mut packet));
        });
    }
    group.finish();
}

/// A packet from the network to samples for the card: parsed, ordered, decoded, at the right speed.
fn decode(criterion: &mut Criterion) {
    for manner in Manner::all() {
        let mut speaker = manner.speaker();
        let frame = speaker.sender.policy().frame;
        let values = frame.interleaved(speaker.channels);
        let mut group = group(criterion, &format!("decode, {}, {} ms", manner.name, frame.as_ms()));
        let config = ReceiverConfig { channels: manner.config.channels, ..ReceiverConfig::default() };
        let mut receiver = Receiver::new(config).expect("a receiver");
        let mut out = vec![0.0; values];
        group.bench_function("hallway", |b| {
            b.iter_custom(|count| timed(speaker.frames(count), |sent| hear(&mut receiver, &sent, &mut out)));
        });
        let mut decoder = Decoder::new(manner.config.channels, 5).expect("a decoder");
        group.bench_function("baseline: libopus alone", |b| {
            b.iter_custom(|count| {
                let frames: Vec<_> =
                    speaker.frames(count).iter().map(|sent| main_frame(sent).to_vec()).collect();
                timed(frames, |opus| decoder.decode(&opus, &mut out))
            });
        });
        copy(&mut group, values);
        group.finish();
    }
}

/// 10 ms of a gap, within the first 60 ms of it.
fn conceal(criterion: &mut Criterion) {
    let manner = Manner { name: "talk", config: SenderConfig::default(), lossy: true };
    let mut group = group(criterion, "conceal, 10 ms of speech");
    let mut speaker = manner.speaker();
    let mut receiver = Receiver::new(ReceiverConfig::default()).expect("a receiver");
    let (mut out, mut piece) = ([0.0; 960], [0.0; 480]);
    group.bench_function("hallway", |b| {
        b.iter_custom(|count| {
            let mut took = Duration::ZERO;
            for _ in 0..count.div_ceil(6) {
                for sent in speaker.frames(10) {
                    hear(&mut receiver, &sent, &mut out);
                }
                // All of these are lost. What waits is played first.
                let mut gap = 0;
                for _ in 0..2 * speaker.frames(15).len() {
                    let began = Instant::now();
                    let played = receiver.play_into(Micros(speaker.at * 125 / 6), 0, &mut piece);
                    let lasted = began.elapsed();
                    if played.concealed == Samples::MS_10 && gap < 6 {
                        took += lasted;
                        gap += 1;
                    }
                }
                assert_eq!(gap, 6, "the gap begins while it is measured");
            }
            took.mul_f64(count as f64 / (count.div_ceil(6) * 6) as f64)
        });
    });
    let mut decoder = Decoder::new(1, 5).expect("a decoder");
    group.bench_function("baseline: libopus alone", |b| {
        b.iter_custom(|count| {
            let mut took = Duration::ZERO;
            for _ in 0..count.div_ceil(6) {
                for sent in speaker.frames(10) {
                    let _ = decoder.decode(main_frame(&sent), &mut out);
                }
                took += timed(0..6, |_| decoder.conceal(&mut piece));
            }
            took.mul_f64(count as f64 / (count.div_ceil(6) * 6) as f64)
        });
    });
    copy(&mut group, 480);
    group.finish();
}

/// The table of waiting frames, and all that a receiver does with a packet before it waits.
fn jitter(criterion: &mut Criterion) {
    let talk = Manner { name: "talk", config: SenderConfig::default(), lossy: false };
    let mut speaker = talk.speaker();
    let mut out = vec![0.0; Samples::MS_5.0 as usize];
    let frames: Vec<_> = speaker.frames(BATCH).iter().map(|sent| main_frame(sent).to_vec()).collect();
    let mut group = group(criterion, "jitter buffer, a packet of 5 ms");
    let mut receiver = Receiver::new(ReceiverConfig::default()).expect("a receiver");
    // Batches since the beginning, whatever is measured: positions never come twice.
    let mut at = 0;
    group.bench_function("insert: parse, count, judge, keep", |b| {
        in_batches(b, &mut at, |_| {
            let sent = speaker.frames(BATCH);
            let took = timed(sent.iter().flatten(), |(at, packet)| receiver.handle_packet(*at, packet));
            for (at, _) in sent.iter().flatten() {
                receiver.play_into(*at, 0, &mut out);
            }
            took
        });
    });
    let mut table = Packets::default();
    let info = frames.first().and_then(|opus| inspect(opus)).expect("our own frame");
    let position = |batch: u64, i: usize| (batch * BATCH) as i64 * 240 + i as i64 * 240;
    let put = |table: &mut Packets, batch: u64| {
        let began = Instant::now();
        for (i, opus) in frames.iter().enumerate() {
            let at = position(batch, i);
            black_box(table.offer(at, position(batch, 0), info, false, Trace::default(), opus));
        }
        began.elapsed()
    };
    let take = |table: &mut Packets, batch: u64| {
        let began = Instant::now();
        for i in 0..BATCH as usize {
            let at = position(batch, i);
            black_box(table.covering(at).map(|waiting| waiting.opus.len()));
            table.done(at);
        }
        began.elapsed()
    };
    group.bench_function("insert: keep alone", |b| {
        in_batches(b, &mut at, |batch| {
            let took = put(&mut table, batch);
            take(&mut table, batch);
            took
        });
    });
    group.bench_function("pull", |b| {
        in_batches(b, &mut at, |batch| {
            put(&mut table, batch);
            take(&mut table, batch)
        });
    });
    let mut fifo = VecDeque::with_capacity(BATCH as usize);
    let mut spare: Vec<Vec<u8>> = frames.iter().map(|opus| Vec::with_capacity(opus.len())).collect();
    group.bench_function("baseline: insert into a plain FIFO", |b| {
        in_batches(b, &mut at, |_| {
            let began = Instant::now();
            for opus in &frames {
                let mut slot = spare.pop().unwrap_or_default();
                slot.clear();
                slot.extend_from_slice(opus);
                fifo.push_back(black_box(slot));
            }
            let took = began.elapsed();
            spare.extend(fifo.drain(..));
            took
        });
    });
    group.bench_function("baseline: pull from a plain FIFO", |b| {
        in_batches(b, &mut at, |_| {
            fifo.extend(spare.drain(..));
            let began = Instant::now();
            while let Some(opus) = fifo.pop_front() {
                spare.push(black_box(opus));
            }
            began.elapsed()
        });
    });
    group.finish();
}

/// 5 ms of many voices into one.
fn mix(criterion: &mut Criterion) {
    for count in [10, 50] {
        let voices: Vec<Vec<f32>> =
            (0..count).map(|v| (0..240).map(|i| speech(v * 48_000 + i) * 0.1).collect()).collect();
        let mut group = group(criterion, &format!("mix of {count} voices, 5 ms"));
        let mut mixer = Mixer::new(1);
        let mut out = vec![0.0; 240];
        group.bench_function("hallway", |b| {
            b.iter(|| {
                for voice in &voices {
                    mixer.add(black_box(voice));
                }
                mixer.mix_into(&mut out)
            });
        });
        group.bench_function("baseline: plain sum", |b| {
            b.iter(|| {
                out.fill(0.0);
                for voice in &voices {
                    black_box(&mut out).iter_mut().zip(black_box(voice)).for_each(|(sum, v)| *sum += v);
                }
            });
        });
        group.bench_function("baseline: memcpy of each voice", |b| {
            b.iter(|| {
                for voice in &voices {
                    black_box(&mut out).copy_from_slice(black_box(voice));
                }
            });
        });
        group.finish();
    }
}

/// The newest frame of what was sent.
fn main_frame(sent: &Sent) -> &[u8] {
    let (_, packet) = sent.last().expect("a packet");
    Packet::parse(packet).expect("our own packet").frames().next().expect("a main frame").opus
}

/// What was sent for a frame comes, and as much is played.
fn hear(receiver: &mut Receiver, sent: &Sent, out: &mut [f32]) {
    let mut now = Micros(0);
    for (at, packet) in sent {
        let _ = receiver.handle_packet(*at, packet);
        now = *at;
    }
    receiver.play_into(now, 0, out);
}

fn timed<T, R>(items: impl IntoIterator<Item = T>, mut work: impl FnMut(T) -> R) -> Duration {
    let began = Instant::now();
    for item in items {
        black_box(work(item));
    }
    began.elapsed()
}

/// Runs whole batches until there were `count` items, and gives their share of the time that `batch` says it took.
fn in_batches(b: &mut criterion::Bencher<'_>, at: &mut u64, mut batch: impl FnMut(u64) -> Duration) {
    b.iter_custom(|count| {
        let batches = count.div_ceil(BATCH);
        let mut took = Duration::ZERO;
        for _ in 0..batches {
            took += batch(*at);
            *at += 1;
        }
        took.mul_f64(count as f64 / (batches * BATCH) as f64)
    });
}

criterion_group!(benches, encode, decode, conceal, dred, jitter, mix);
criterion_main!(benches);
