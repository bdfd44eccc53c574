//! An hour of call. Alone in its binary: the memory that is counted is this call's alone.
//!
//! The laboratory's only `unsafe`: a global allocator cannot be written without it. It adds two counters to the system's.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use hallway_codec::Samples;
use hallway_tests::{Lab, LinkConfig};

struct Counting;

/// Bytes held now.
static HELD: AtomicI64 = AtomicI64::new(0);
/// Most bytes ever held.
static PEAK: AtomicI64 = AtomicI64::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counters touch no memory that it hands out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size() as i64, Relaxed) + layout.size() as i64;
        PEAK.fetch_max(held, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as i64, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MINUTE: Duration = Duration::from_secs(60);

/// Memory may not grow by more than this in 50 minutes, bytes: a packet or two more may be on their way.
const MOST_GROWTH: i64 = 16 * 1024;

#[test]
fn an_hour_with_drift_jitter_and_loss_grows_neither_memory_nor_delay() {
    // A card 208 ppm fast: uncorrected, that is 750 ms of sound too much by the end.
    let link = LinkConfig::delayed(40.0).jittered(5.0).losing_at_random(0.01);
    let mut call = Lab::seeded(60).link(link).cards_hz(48_010, 48_000).one_way().call("ana", "ben");
    call.run_for(5 * MINUTE);
    let (early, held) = (call.mouth_to_ear("ben"), HELD.load(Relaxed));
    PEAK.store(held, Relaxed);
    call.forget("ben");
    call.run_for(50 * MINUTE);
    let grown = PEAK.load(Relaxed) - held;
    assert!(grown < MOST_GROWTH, "{grown} bytes more at the most crowded moment");
    let between = call.mouth_to_ear("ben");
    assert!(between.max < 150.0, "{between:?}");

    // The end is like the beginning.
    let heard = call.heard_by("ben");
    assert!(heard.missing_pct() < 1.0, "{} % missing of 1 % lost", heard.missing_pct());
    assert!(heard.longest_gap <= Samples::MS_20, "{:?}", heard.longest_gap);
    assert_eq!(heard.silent, Samples(0));
    call.forget("ben");
    call.run_for(5 * MINUTE);
    let late = call.mouth_to_ear("ben");
    assert!(late.p50 < early.p50 + 5.0 && late.p95 < early.p95 + 5.0, "{early:?} then {late:?}");
    // Figures of a second are taken just after it.
    call.run_for(Duration::from_millis(10));
    let totals = call.stats("ben").totals;
    assert_eq!((totals.anchors, totals.out_of_range, totals.malformed), (1, 0, 0));
    // Counted as lost by the engine is what never came, to the last few in flight or not judged yet.
    let lost = call.sent_by("ana") - totals.packets;
    assert!(lost > 2000 && totals.lost.abs_diff(lost) < 30, "{} counted, {lost} lost", totals.lost);

    // And the signal agrees.
    let signal = call.record("ben", Duration::from_secs(10)).measure().unwrap();
    assert!(signal.lag_ms.p50 < late.max + 2.0 && signal.lag_ms.p50 > late.min - 2.0, "{:?}", signal.lag_ms);
    assert!(signal.damaged_pct < 10.0, "{}", signal.damaged_pct);
}
