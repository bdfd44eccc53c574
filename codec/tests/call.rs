//! Whole calls under virtual time: what a listener hears, and how late.

mod lab;

use hallway_codec::{Application, JitterConfig, Profile, ReceiverConfig, Samples, SenderConfig, Sound};
use lab::{Call, Link};

#[test]
fn a_clean_path_costs_its_own_delay_and_a_few_milliseconds_and_nothing_is_made_up() {
    let mut call = Call::new(1, Link::of_ms(5));
    call.run_for(3.0);
    call.receiver.stats();
    call.run_for(17.0);
    let stats = call.receiver.stats();
    println!("{stats:#?}");
    assert_eq!(stats.totals.concealed_samples, 0);
    assert_eq!((stats.totals.lost, stats.totals.late, stats.totals.malformed), (0, 0, 0));
    assert_eq!(stats.loss_pct, Some(0.0));
    assert_eq!(stats.frame_ms, Some(5.0));
    let stages = stats.mouth_to_ear_stages_ms.unwrap();
    let whole = stats.mouth_to_ear_ms.unwrap();
    assert!((stages.total() - whole).abs() < 0.01);
    assert!((stages.network - 5.0).abs() < 0.1, "{stages:?}");
    assert!(stages.jitter_buffer <= 5.0, "{stages:?}");
    let (measured, like) = call.measured_ms(15.0);
    println!("measured {measured:.2} ms, likeness {like:.3}");
    assert!(like > 0.9);
    assert!((measured - f64::from(whole)).abs() < 1.0, "truth {measured}, estimate {whole}");
    assert!(measured < 5.0 + 7.5 + 5.0, "{measured}");
}
