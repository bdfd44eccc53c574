//! Both ends together, in real time and short.

use super::*;
use hound::{SampleFormat, WavReader, WavSpec, WavWriter};

/// Copies what is captured to the output, as an echo of one period, for `periods` periods.
fn echo(audio: &mut Audio, periods: usize, mut each: impl FnMut(&mut Audio, &Block<'_>)) {
    let mut done = 0;
    while done < periods {
        audio.wait(Duration::from_millis(50));
        while let Some(block) = audio.capture.read() {
            let (pcm, captured_at_ns) = (block.pcm.to_vec(), block.captured_at_ns);
            if audio.playback.space() > 0 {
                audio.playback.write(&pcm);
            }
            each(audio, &Block { pcm: &pcm, captured_at_ns });
            done += 1;
        }
    }
}

fn config(input: &str, output: &str) -> AudioConfig {
    AudioConfig { input: input.parse().unwrap(), output: output.parse().unwrap(), ..AudioConfig::default() }
}

fn ramp(path: &Path, frames: i16) {
    let spec =
        WavSpec { channels: 1, sample_rate: 48_000, bits_per_sample: 16, sample_format: SampleFormat::Int };
    let mut writer = WavWriter::create(path, spec).unwrap();
    for i in 1..=frames {
        writer.write_sample(i).unwrap();
    }
    writer.finalize().unwrap();
}

#[test]
fn a_file_heard_through_the_edge_is_on_disk_where_the_events_say() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.wav"), folder.path().join("out.wav"));
    ramp(&input, 2_400);
    let mut audio =
        Audio::open(config(&format!("file:{}", input.display()), &format!("file:{}", output.display())))
            .unwrap();
    let began = monotonic_ns();
    echo(&mut audio, 40, |_, _| ());
    let took = monotonic_ns() - began;
    assert!((90_000_000..2_000_000_000).contains(&took), "40 periods took {took} ns");
    let news: Vec<AudioEvent> = audio.events.try_iter().collect();
    audio.finish().unwrap();
    let at = |wanted: fn(&AudioEvent) -> Option<u64>| news.iter().find_map(wanted).unwrap();
    let started_in = at(|e| if let AudioEvent::InputStarted { at_ns, .. } = e { Some(*at_ns) } else { None });
    let started_out =
        at(|e| if let AudioEvent::OutputStarted { at_ns, .. } = e { Some(*at_ns) } else { None });
    let finished = at(|e| if let AudioEvent::InputFinished { at_ns } = e { Some(*at_ns) } else { None });
    assert_eq!(finished - started_in, 50_000_000);
    let samples: Vec<i16> = WavReader::open(&output).unwrap().samples().map(Result::unwrap).collect();
    let first = samples.iter().position(|s| *s != 0).unwrap() as u64;
    assert!(samples[first as usize..].starts_with(&[1, 2, 3]), "{:?}", &samples[first as usize..][..8]);
    // Heard one period after it was captured, in the period that began when it was complete, or later by whole
    // periods when this machine was busy.
    let delay_ns = started_out + first * 1_000_000_000 / 48_000 - started_in;
    assert_eq!(delay_ns % 2_500_000, 0);
    assert!(delay_ns < 200_000_000, "{delay_ns}");
}

#[test]
fn captured_times_are_one_period_apart_to_the_nanosecond() {
    let mut audio = Audio::open(config("tone:440", "null")).unwrap();
    let mut times = Vec::new();
    echo(&mut audio, 20, |_, block| times.push(block.captured_at_ns));
    assert!(times.windows(2).all(|w| w[1] - w[0] == 2_500_000), "{times:?}");
}

#[test]
fn a_file_waits_for_the_first_peer_and_the_event_has_its_first_sample() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.wav");
    ramp(&input, 240);
    let mut config = config(&format!("file:{}", input.display()), "null");
    config.input_start = InputStart::FirstPeer;
    let mut audio = Audio::open(config).unwrap();
    let mut first = None;
    let mut periods = 0;
    echo(&mut audio, 20, |audio, block| {
        if block.pcm.iter().any(|s| *s != 0.0) && first.is_none() {
            first = Some(block.captured_at_ns);
        }
        periods += 1;
        if periods == 10 {
            assert_eq!(first, None);
            audio.capture.start();
        }
    });
    let started = audio.events.try_iter().find_map(|e| match e {
        AudioEvent::InputStarted { at_ns, .. } => Some(at_ns),
        _ => None,
    });
    assert!(first.is_some());
    assert_eq!(started, first);
}

#[test]
fn waiting_ends_at_the_given_time_when_nothing_is_due() {
    let mut config = config("silence", "null");
    config.period = MAX_PERIOD;
    let mut audio = Audio::open(config).unwrap();
    audio.playback.write(&vec![0.0; MAX_PERIOD as usize]);
    let before = monotonic_ns();
    audio.wait(Duration::from_millis(5));
    let waited = monotonic_ns() - before;
    assert!((5_000_000..50_000_000).contains(&waited), "{waited}");
}

#[test]
fn a_steady_call_over_simulated_cards_does_not_allocate() {
    let mut audio = Audio::open(config("tone:440", "null")).unwrap();
    let pcm = [0.0; 120];
    let mut call = |periods: usize| {
        let mut done = 0;
        while done < periods {
            audio.wait(Duration::from_millis(50));
            while audio.capture.read().is_some() {
                done += 1;
            }
            while audio.playback.space() > 0 {
                audio.playback.write(&pcm);
            }
        }
    };
    call(4);
    assert_eq!(allocations::count(|| call(20)), 0);
}

#[test]
fn what_makes_no_sense_is_refused_with_a_way_on_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let voice = folder.path().join("voice.wav");
    ramp(&voice, 10);
    let file = format!("file:{}", voice.display());
    let refused = |config: AudioConfig| Audio::open(config).map(|_| ()).unwrap_err();

    assert!(matches!(refused(config(&file, &file)), Error::SameFile { .. }));
    assert_eq!(WavReader::open(&voice).unwrap().duration(), 10);
    let missing = refused(config(&format!("file:{}/none.wav", folder.path().display()), "null"));
    assert!(missing.to_string().contains("none.wav") && missing.hint().contains("path"), "{missing}");
    let unwritable = refused(config("silence", &format!("file:{}/no/out.wav", folder.path().display())));
    assert!(unwritable.to_string().contains("cannot write") && !unwritable.is_device(), "{unwritable}");
    for (period, channels) in [(0, 1), (23, 1), (2_881, 1), (120, 0), (120, 3)] {
        let config = AudioConfig { period, channels, ..config("silence", "null") };
        assert!(matches!(refused(config), Error::Range { .. }));
    }
    let deaf = Error::NoDevice { end: End::Input, reason: "no server".into() };
    assert!(deaf.is_device());
    for way in ["--input silence", "--output null", "file:", "hallway devices"] {
        assert!(deaf.hint().contains(way), "{way}");
    }
}
