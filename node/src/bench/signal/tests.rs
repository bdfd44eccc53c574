use super::*;
use crate::bench::luck::Luck;
use crate::bench::speech::speech;

const RATE48: f64 = TRACK_RATE_HZ as f64;

/// `x` heard `delay_ms` later (to a fraction of a sample), by shifting in the frequency domain via a high-rate grid.
fn delayed(x: &[f32], delay_ms: f64) -> Vec<f32> {
    // A 4x grid gives 5.2 us steps; what is left is under 2.6 us.
    let fine = resample(x, 48_000, 192_000);
    let shift = (delay_ms * 192.0).round() as usize;
    let mut late = vec![0.0; shift];
    late.extend_from_slice(&fine);
    resample(&late, 192_000, 48_000)
}

fn track(samples: Vec<f32>, started_ns: u64) -> Track {
    Track { samples, started_ns }
}

fn noise(x: &mut [f32], rms: f64, seed: u64) {
    let mut luck = Luck::seeded(seed);
    x.iter_mut().for_each(|x| *x += (luck.normal() * rms) as f32);
}

#[test]
fn known_delays_are_found_within_twenty_microseconds() {
    let said = speech(1, 6.0);
    for want in [0.0, 0.37, 7.5, 19.81, 63.2, 250.04, 900.5] {
        let report =
            measure(&track(said.clone(), 5_000_000), &track(delayed(&said, want), 5_000_000)).unwrap();
        let got = report.lag_ms;
        assert!((got.p50 - want).abs() < 0.02 && (got.p99 - want).abs() < 0.05, "{want}: {got:?}");
        assert!(
            report.damaged_pct == 0.0 && report.silent_pct == 0.0 && report.growth_ms.abs() < 0.02,
            "{report:?}"
        );
        assert_eq!(report.matched, report.windows, "{want}");
    }
}

#[test]
fn the_clocks_of_the_first_samples_count() {
    let said = speech(2, 5.0);
    let heard = delayed(&said, 30.0);
    // The listener's card ran 0.4321 s earlier than the talker spoke, and the other way round.
    let mut early = vec![0.0; (0.4321 * RATE48) as usize];
    let skipped = early.len() as f64 / RATE48;
    early.extend_from_slice(&heard);
    let t0 = 9_000_000_000u64;
    let began = t0 - (skipped * 1e9).round() as u64;
    let report = measure(&track(said.clone(), t0), &track(early, began)).unwrap();
    assert!((report.lag_ms.p50 - 30.0).abs() < 0.02, "{:?}", report.lag_ms);
    let late = heard[4_801..].to_vec();
    let report = measure(&track(said, t0), &track(late, t0 + (4_801e9 / RATE48) as u64)).unwrap();
    assert!((report.lag_ms.p50 - 30.0).abs() < 0.02, "{:?}", report.lag_ms);
    assert!(report.unheard_start_ms < 500.0);
}

#[test]
fn lost_chunks_are_counted_and_do_not_move_the_delay() {
    let said = speech(3, 20.0);
    let mut heard = delayed(&said, 45.0);
    // 60 ms of every 600 ms are gone.
    for start in (0..heard.len()).step_by(28_800) {
        let end = (start + 2_880).min(heard.len());
        heard[start..end].fill(0.0);
    }
    let report = measure(&track(said, 0), &track(heard, 0)).unwrap();
    assert!(
        (report.lag_ms.p50 - 45.0).abs() < 0.05 && (report.lag_ms.p99 - 45.0).abs() < 0.5,
        "{:?}",
        report.lag_ms
    );
    // A frame is judged by 30 ms about it, so a gap damages a little more than its own length.
    assert!((8.0..17.0).contains(&report.damaged_pct), "{}", report.damaged_pct);
    assert!((5.0..11.0).contains(&report.silent_pct), "{}", report.silent_pct);
}

#[test]
fn noise_of_the_room_moves_the_delay_by_less_than_a_tenth_of_a_millisecond() {
    let said = speech(4, 10.0);
    let mut heard = delayed(&said, 20.0);
    noise(&mut heard, 0.02, 9);
    let report = measure(&track(said, 0), &track(heard, 0)).unwrap();
    assert!((report.lag_ms.p50 - 20.0).abs() < 0.02, "{:?}", report.lag_ms);
    assert!(
        (report.lag_ms.p5 - 20.0).abs() < 0.1 && (report.lag_ms.p95 - 20.0).abs() < 0.1,
        "{:?}",
        report.lag_ms
    );
}

#[test]
fn a_drifting_clock_is_seen_as_growing_delay() {
    let said = speech(5, 20.0);
    // 500 ppm: 48 000 samples said, 48 024 heard.
    let slow = resample(&said, 48_000, 48_024);
    let report = measure(&track(said, 0), &track(slow, 0)).unwrap();
    // The medians of the outer quarters lie about 15 s apart.
    assert!((report.growth_ms - 7.5).abs() < 0.4, "{}", report.growth_ms);
    assert!((report.lag_ms.p50 - 5.0).abs() < 0.4, "{:?}", report.lag_ms);
    assert!(report.damaged_pct < 0.5, "{}", report.damaged_pct);
}

#[test]
fn a_change_of_delay_shows_in_the_percentiles() {
    let said = speech(6, 20.0);
    let mut heard = delayed(&said, 20.0);
    let late = delayed(&said, 90.0);
    let half = heard.len() / 2;
    heard.truncate(half);
    heard.extend_from_slice(&late[half..]);
    let report = measure(&track(said, 0), &track(heard, 0)).unwrap();
    assert!(
        (report.lag_ms.p5 - 20.0).abs() < 0.1 && (report.lag_ms.p95 - 90.0).abs() < 0.1,
        "{:?}",
        report.lag_ms
    );
}

#[test]
fn first_sound_is_when_the_ear_first_got_anything() {
    let said = speech(7, 4.0);
    let mut heard = vec![0.0; 48_000];
    heard.extend_from_slice(&said);
    let begin = heard.iter().position(|x| x.abs() > 0.01).unwrap() as f64 / RATE48;
    let report = measure(&track(said, 1_000_000_000), &track(heard, 0)).unwrap();
    let first = report.first_sound_ns.unwrap() as f64 * 1e-9;
    assert!((first - begin).abs() < 0.011, "{first} {begin}");
}

#[test]
fn silence_and_strangers_are_errors_not_numbers() {
    let said = speech(8, 5.0);
    let silent = track(vec![0.0; said.len()], 0);
    assert!(matches!(measure(&track(said.clone(), 0), &silent), Err(SignalError::NothingHeard { .. })));
    assert!(matches!(measure(&silent, &track(said.clone(), 0)), Err(SignalError::NothingSaid)));
    assert!(matches!(
        measure(&track(said.clone(), 0), &track(speech(99, 5.0), 0)),
        Err(SignalError::NothingHeard { .. })
    ));
    assert!(matches!(
        measure(&track(said.clone(), 0), &track(Vec::new(), 0)),
        Err(SignalError::NothingHeard { .. })
    ));
    assert!(matches!(measure(&track(Vec::new(), 0), &track(said, 0)), Err(SignalError::NothingSaid)));
}

#[test]
fn recordings_of_other_formats_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.wav");
    let said = speech(9, 3.0);
    let at44 = resample(&said, 48_000, 44_100);
    let spec = hound::WavSpec {
        channels: 2,
        sample_rate: 44_100,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut wav = hound::WavWriter::create(&path, spec).unwrap();
    for x in &at44 {
        for _ in 0..2 {
            wav.write_sample((x * 32767.0) as i16).unwrap();
        }
    }
    wav.finalize().unwrap();
    let read = Track::read(&path, 0).unwrap();
    let report = measure(&track(said, 0), &read).unwrap();
    assert!(report.lag_ms.p50.abs() < 0.02 && report.damaged_pct == 0.0, "{report:?}");
    std::fs::write(&path, b"RIFFnonsense").unwrap();
    assert!(matches!(Track::read(&path, 0), Err(SignalError::Unreadable { .. })));
}
