//! The playback side works on memory it already owns.
#![allow(unsafe_code, reason = "an allocator that counts is the only way to see an allocation")]

mod lab;

use lab::{Call, Link};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|c| c.set(c.get() + 1));
        // SAFETY: as promised by our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as promised by our caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = COUNT.try_with(|c| c.set(c.get() + 1));
        // SAFETY: as promised by our caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn playing_a_bad_path_allocates_nothing() {
    let mut link = Link::of_ms(30).jitter_ms(15).losing(0.2);
    link.stalls.push((8_000_000, 8_400_000));
    let mut call = Call::new(1, link).drift_ppm(200.0);
    call.keep_sound = false;
    call.play_counter = Some(|| COUNT.with(Cell::get));
    call.run_for(20.0);
    let stats = call.receiver.stats();
    assert!(stats.totals.concealed_samples > 0 && stats.totals.recovered_samples > 0);
    assert_eq!(call.play_counted, 0, "allocations while playing");
}
