//! Calls under virtual time: delay, damage and stability of the media engine.

use std::time::Duration;

use hallway_codec::{Profile as Media, Samples};
use hallway_tests::{Lab, LinkConfig, Profile};

const S: Duration = Duration::from_secs(1);

/// Milliseconds of sound.
fn ms(samples: Samples) -> f64 {
    f64::from(samples.0) / 48.0
}

#[test]
fn on_a_wire_nothing_is_made_up_and_twenty_milliseconds_are_enough() {
    let mut call = Lab::seeded(1).link(LinkConfig::wired()).call("ana", "ben");
    call.run_for(20 * S);
    for name in ["ana", "ben"] {
        let (heard, delay) = (call.heard_by(name), call.mouth_to_ear(name));
        assert_eq!((heard.concealed, heard.silent), (Samples(0), Samples(0)), "{name}");
        assert!(delay.p50 < 15.0 && delay.p95 < 15.0 && delay.max < 25.0, "{name}: {delay:?}");
        assert!(heard.first_audio_ms.is_some_and(|ms| ms < 60.0), "{name}: {:?}", heard.first_audio_ms);
        assert!(heard.loudest > 0.1 && heard.loudest <= 1.0, "{name}: {}", heard.loudest);
    }
}

#[test]
fn the_signal_the_laboratory_and_the_node_itself_agree_about_the_delay() {
    for (link, seed) in [(LinkConfig::wired(), 2), (LinkConfig::delayed(40.0).jittered(5.0), 3)] {
        let mut call = Lab::seeded(seed).link(link.clone()).call("ana", "ben");
        call.run_for(15 * S);
        call.forget("ben");
        let signal = call.record("ben", 10 * S).measure().unwrap().lag_ms.p50;
        let counted = call.mouth_to_ear("ben").p50;
        let told = call.stats("ben").total_mouth_to_ear_ms.unwrap().p50;
        assert!((signal - counted).abs() < 1.5, "{link:?}: signal {signal}, counted {counted}");
        assert!((f64::from(told) - signal).abs() < 3.0, "{link:?}: told {told}, signal {signal}");
    }
}

#[test]
fn three_lost_packets_are_concealed_and_the_delay_recovers() {
    let mut call = Lab::seeded(7).link(LinkConfig::wired().losing(400..403)).one_way().call("ana", "ben");
    call.run_for(12 * S);
    let heard = call.heard_by("ben");
    assert!((5.0..40.0).contains(&ms(heard.concealed)), "{} ms made up", ms(heard.concealed));
    assert!(ms(heard.longest_gap) <= 40.0, "{} ms", ms(heard.longest_gap));
    assert!(call.mouth_to_ear("ben").p95 < 60.0, "{:?}", call.mouth_to_ear("ben"));
    call.forget("ben");
    call.run_for(5 * S);
    assert_eq!(call.heard_by("ben").concealed, Samples(0));
    assert!(call.mouth_to_ear("ben").p95 < 25.0, "{:?}", call.mouth_to_ear("ben"));
}

#[test]
fn a_seed_makes_the_same_call_twice() {
    let run = || {
        let mut call = Lab::seeded(11).over(&Profile::named("lossy20").unwrap()).call("ana", "ben");
        call.run_for(10 * S);
        (format!("{:?}", call.heard_by("ben")), format!("{:?}", call.heard_by("ana")), call.link_from("ana"))
    };
    assert_eq!(run(), run());
}

#[test]
fn every_link_of_the_table_keeps_its_bounds() {
    // Link, most delay (median and 95th percentile) over the link's own, ms, most missing, percent.
    const BOUNDS: [(&str, f64, f64, f64); 9] = [
        ("lan", 14.5, 15.0, 0.0),
        ("metro", 18.0, 20.0, 0.1),
        ("wan", 29.0, 32.0, 0.3),
        ("wifi", 88.0, 95.0, 0.6),
        ("lossy10", 135.0, 145.0, 3.0),
        ("lossy20", 150.0, 160.0, 4.5),
        ("lossy30", 155.0, 165.0, 6.0),
        ("mobile", 210.0, 240.0, 8.0),
        ("narrow", 140.0, 245.0, 1.0),
    ];
    let mut broken = Vec::new();
    for (name, p50, p95, missing) in BOUNDS {
        let link = Profile::named(name).unwrap();
        let mut call = Lab::seeded(1).over(&link).call("ana", "ben");
        call.run_for(10 * S);
        call.forget("ben");
        call.run_for(30 * S);
        let (delay, lost) = (call.mouth_to_ear("ben"), call.heard_by("ben").missing_pct());
        let own = link.ab.delay_ms;
        if delay.p50 > own + p50 || delay.p95 > own + p95 || lost > missing {
            broken.push(format!("{name}: {delay:?}, {lost:.2} % missing"));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_delay_comes_down_again_when_the_network_calms() {
    let calm = LinkConfig::delayed(20.0);
    let mut call = Lab::seeded(13).link(calm.clone()).one_way().call("ana", "ben");
    call.run_for(10 * S);
    let before = call.mouth_to_ear("ben").p50;
    call.change_link(&LinkConfig::delayed(30.0).jittered(20.0));
    call.forget("ben");
    call.run_for(20 * S);
    let rough = call.mouth_to_ear("ben").p50;
    assert!(rough > before + 20.0, "{before} {rough}");
    call.change_link(&calm);
    call.run_for(40 * S);
    call.forget("ben");
    call.run_for(10 * S);
    let after = call.mouth_to_ear("ben").p50;
    assert!(after < before + 5.0, "before {before}, rough {rough}, after {after}");
}

#[test]
fn a_second_of_dead_network_is_a_gap_and_not_a_lag() {
    let link = LinkConfig::delayed(20.0).blacked_out(10_000.0..11_000.0);
    let mut call = Lab::seeded(17).link(link).one_way().call("ana", "ben");
    call.run_for(9 * S);
    let before = call.mouth_to_ear("ben").p50;
    call.run_for(4 * S);
    let gap = ms(call.heard_by("ben").longest_gap);
    assert!((800.0..1300.0).contains(&gap), "{gap} ms");
    call.forget("ben");
    call.run_for(10 * S);
    assert!(call.heard_by("ben").missing_pct() < 0.2, "{} %", call.heard_by("ben").missing_pct());
    // A path that was dead for a second is trusted again only after a while.
    call.run_for(90 * S);
    call.forget("ben");
    call.run_for(5 * S);
    assert!(call.mouth_to_ear("ben").p50 < before + 5.0, "{before} {:?}", call.mouth_to_ear("ben"));
}

#[test]
fn copies_and_overtaking_packets_damage_nothing_once_they_are_known() {
    let link = LinkConfig { duplicate: 0.2, reorder: true, ..LinkConfig::delayed(20.0).jittered(4.0) };
    let mut call = Lab::seeded(19).link(link).one_way().call("ana", "ben");
    call.run_for(15 * S);
    call.forget("ben");
    call.run_for(20 * S);
    assert!(call.heard_by("ben").missing_pct() < 0.7, "{} %", call.heard_by("ben").missing_pct());
    let totals = call.stats("ben").totals;
    assert!(totals.duplicates > 100 && totals.lost == 0 && totals.malformed == 0, "{totals:?}");
}

#[test]
fn turned_bits_are_survived() {
    // The sealing would refuse every one of these: here the engine alone has to live with them.
    let link = LinkConfig { flip: 0.3, ..LinkConfig::delayed(5.0) };
    let mut call = Lab::seeded(23).link(link).call("ana", "ben");
    call.run_for(30 * S);
    for name in ["ana", "ben"] {
        assert!(call.heard_by(name).loudest <= 1.5, "{}", call.heard_by(name).loudest);
    }
    call.change_link(&LinkConfig::delayed(5.0));
    call.run_for(15 * S);
    call.forget("ben");
    call.run_for(5 * S);
    assert!(call.mouth_to_ear("ben").p95 < 60.0 && call.heard_by("ben").missing_pct() < 0.5);
}

#[test]
fn cards_of_other_periods_and_rates_stay_in_step() {
    // What the cards really do, their periods, and most missing, percent: a card that wants 20 ms at once finds less ready.
    for (hz, periods, missing) in [
        ((48_010, 48_000), (Samples::MS_10, Samples::MS_2_5), 0.0),
        ((48_000, 48_010), (Samples(256), Samples(1024)), 0.2),
        ((47_990, 48_010), (Samples(64), Samples::MS_20), 0.3),
    ] {
        let lab =
            Lab::seeded(29).link(LinkConfig::wired()).cards_hz(hz.0, hz.1).periods(periods.0, periods.1);
        let mut call = lab.one_way().call("ana", "ben");
        call.run_for(60 * S);
        let early = call.mouth_to_ear("ben");
        call.run_for(60 * S);
        call.forget("ben");
        call.run_for(60 * S);
        let (late, heard) = (call.mouth_to_ear("ben"), call.heard_by("ben"));
        assert!(
            (late.p50 - early.p50).abs() < 3.0 && late.p99 < 80.0,
            "{hz:?} {periods:?}: {early:?} then {late:?}"
        );
        assert!(heard.missing_pct() <= missing, "{hz:?} {periods:?}: {} %", heard.missing_pct());
        let drift = f64::from(call.stats("ben").drift_ppm.unwrap());
        let really = (f64::from(hz.0) / f64::from(hz.1) - 1.0) * 1e6;
        assert!((drift - really).abs() < 40.0, "{hz:?} {periods:?}: {drift} ppm shown, {really} ppm real");
    }
}

#[test]
fn music_is_heard_sooner_than_talk() {
    let delay = |media| {
        let mut call = Lab::seeded(31).link(LinkConfig::wired()).media(media).one_way().call("ana", "ben");
        call.run_for(15 * S);
        assert_eq!(call.heard_by("ben").concealed, Samples(0));
        call.mouth_to_ear("ben").p50
    };
    let (music, talk) = (delay(Media::Music), delay(Media::Talk));
    assert!(music < talk, "music {music}, talk {talk}");
}
