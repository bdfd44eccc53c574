//! Discontinuous transmission: a voice that pauses, heard under virtual time.

mod lab;

use hallway_codec::{PAUSE_EVERY, ReceiverConfig, Samples, SenderConfig, Sound};
use lab::{Call, Link, speech};

/// Three seconds of speech, six of a quiet room, and so on.
fn turns(sample: u64) -> f32 {
    let second = sample / 48_000;
    if second % 9 < 3 { speech(sample) } else { room(sample) }
}

/// Noise of -58 dB.
fn room(sample: u64) -> f32 {
    let mut hash = sample.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((hash >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.0044
}

fn call(seed: u64, link: Link) -> Call {
    let sender = SenderConfig { dtx: true, ..SenderConfig::default() };
    Call::with(seed, link, sender, ReceiverConfig::default()).saying(turns)
}

/// Loudness of each tenth of a second, in dB.
fn tenths(heard: &[f32]) -> Vec<f64> {
    let power = |pcm: &[f32]| pcm.iter().map(|s| f64::from(s * s)).sum::<f64>() / pcm.len() as f64;
    heard.chunks_exact(4_800).map(|pcm| 10.0 * (power(pcm) + 1e-12).log10()).collect()
}

#[test]
fn in_a_pause_ten_packets_a_second_go_out_and_nothing_counts_as_lost_or_made_up() {
    let mut call = call(1, Link::of_ms(30).jitter_ms(3));
    call.run_for(5.0);
    let before = call.packet_sizes.len();
    call.run_for(3.0);
    let paused = call.packet_sizes.len() - before;
    assert!((28..=32).contains(&paused), "{paused} packets in three seconds");
    assert!(call.sender.rests());
    call.run_for(46.0);
    let stats = call.receiver.stats();
    println!("{stats:?}");
    assert_eq!((stats.totals.lost, stats.totals.late, stats.totals.concealed_samples), (0, 0, 0));
    let delay = stats.total_mouth_to_ear_ms.unwrap();
    assert!(delay.p50 < 55.0 && delay.p95 < 60.0, "{delay:?}");
}

#[test]
fn the_room_is_heard_through_a_pause_and_the_first_word_after_it_is_whole() {
    let mut call = call(2, Link::of_ms(30));
    call.run_for(36.0);
    let heard = tenths(&call.heard);
    for second in [14, 15, 16, 23, 24, 25] {
        for (i, level) in heard[second * 10..second * 10 + 10].iter().enumerate() {
            assert!((-62.0..-52.0).contains(level), "{level} dB at {second}.{i} s");
        }
    }
    // The voice comes back 18 s after the beginning, and is heard in full from its first syllable on.
    for second in [18.1, 27.1] {
        let (delay, like) = call.measured_ms(second);
        assert!(like > 0.9 && delay < 60.0, "likeness {like} after {delay} ms");
    }
    assert!(call.played.iter().any(|p| p.sound == Sound::Silence));
}

#[test]
fn packets_of_a_pause_are_as_long_as_others() {
    let mut call = call(3, Link::of_ms(10));
    call.run_for(3.5);
    let speaking: std::collections::BTreeSet<_> = call.packet_sizes.iter().copied().collect();
    call.run_for(20.0);
    let all: std::collections::BTreeSet<_> = call.packet_sizes.iter().copied().collect();
    assert_eq!(all, speaking);
}

#[test]
fn what_was_learnt_of_a_lossy_path_outlasts_a_pause() {
    let mut call = call(4, Link::of_ms(30).losing(0.2)).saying(|sample| {
        // Twelve seconds of speech, then a minute of the room, then speech again.
        let second = sample / 48_000;
        if (12..72).contains(&second) { room(sample) } else { speech(sample) }
    });
    call.run_for(12.0);
    let policy = call.sender.policy().clone();
    assert!(policy.copies.len() >= 4 && policy.frame == Samples::MS_20, "{policy:?}");
    call.run_for(60.0);
    assert_eq!(*call.sender.policy(), policy);
    call.receiver.stats();
    call.run_for(5.0);
    let stats = call.receiver.stats();
    assert!(stats.concealed_pct.unwrap() < 8.0, "{stats:?}");
}

#[test]
fn drift_and_a_longer_path_are_followed_through_pauses() {
    let mut link = Link::of_ms(20).jitter_ms(2);
    // In the middle of a pause.
    link.longer = Some((16_500_000, 60_000));
    let mut call = call(5, link).drift_ppm(200.0);
    call.run_for(18.6);
    call.receiver.stats();
    call.run_for(200.0);
    let stats = call.receiver.stats();
    println!("{stats:?}");
    assert!((stats.drift_ppm.unwrap() - 200.0).abs() < 60.0, "{stats:?}");
    // The first words over the longer path come 60 ms later than those before.
    assert!(stats.totals.concealed_samples < 100 * 48 && stats.totals.lost == 0, "{stats:?}");
    let heard = [207.6, 208.1, 208.6].map(|second| call.measured_ms(second));
    assert!(heard.iter().any(|(delay, like)| *like > 0.9 && *delay < 120.0), "{heard:?}");
}

#[test]
fn of_a_quiet_room_one_frame_in_a_tenth_of_a_second_is_encoded_and_the_rest_is_not() {
    let mut call = call(6, Link::of_ms(10)).saying(room);
    call.run_for(20.0);
    let sent = call.sender.stats();
    assert!(sent.rested_samples > 17 * 48_000, "{sent:?}");
    let expected = 200 + 19 * 48_000 / u64::from(PAUSE_EVERY.0);
    assert!(sent.packets.abs_diff(expected) < 8, "{sent:?}");
}
