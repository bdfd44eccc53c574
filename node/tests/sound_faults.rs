//! Devices that hang, vanish, change their headphones, or stand still, tried with a real PulseAudio: the call goes on, and
//! within two seconds another device plays. Says `skipped: no pulseaudio` where there is none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]
#![allow(unsafe_code, reason = "an allocator that counts is the only way to see an allocation")]

mod sound;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hallway::audio::{Audio, AudioConfig, AudioEvent, End, InputSpec, OutputSpec, Reach};
use sound::{Server, pactl};

/// Longest time from a device's last sign of life to another's sound.
const TWO_SECONDS: Duration = Duration::from_secs(2);
/// What a busy machine may add.
const BUSY: Duration = Duration::from_millis(1500);

// ---- allocations of each thread -----------------------------------------------------------------------------------

const THREADS: usize = 1_024;
static TIDS: [AtomicI32; THREADS] = [const { AtomicI32::new(0) }; THREADS];
static COUNTS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MINE: Cell<usize> = const { Cell::new(THREADS) };
}

struct PerThread;

fn one_more() {
    let _ = MINE.try_with(|mine| {
        if mine.get() == THREADS {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % THREADS);
            TIDS[mine.get()].store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        }
        COUNTS[mine.get()].fetch_add(1, Ordering::Relaxed);
    });
}

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for PerThread {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        one_more();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        one_more();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        one_more();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: PerThread = PerThread;

/// Allocations and releases so far of the living threads of this name.
fn allocations_of(name: &str) -> Vec<(i32, u64)> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
    let named = threads.filter(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    });
    let tids: Vec<i32> = named.map(|task| task.file_name().to_string_lossy().parse().unwrap()).collect();
    let count = |tid: &i32| {
        let slot = TIDS.iter().position(|of| of.load(Ordering::Relaxed) == *tid);
        (*tid, slot.map_or(0, |slot| COUNTS[slot].load(Ordering::Relaxed)))
    };
    tids.iter().map(count).collect()
}

// ---- a media thread -----------------------------------------------------------------------------------------------

/// Reads and writes both ends as the media thread does, and keeps the events.
struct Thread {
    audio: Audio,
    events: Vec<(Instant, AudioEvent)>,
    blocks: u64,
}

impl Thread {
    fn open(input: &str, output: &str) -> Self {
        let config = AudioConfig {
            input: input.parse::<InputSpec>().unwrap(),
            output: output.parse::<OutputSpec>().unwrap(),
            ..AudioConfig::default()
        };
        Self { audio: Audio::open(config).unwrap(), events: Vec::new(), blocks: 0 }
    }

    fn turn(&mut self) {
        self.audio.wait(Duration::from_millis(20));
        while self.audio.capture.read().is_some() {
            self.blocks += 1;
        }
        while self.audio.playback.space() > 0 {
            self.audio.playback.write(&[0.1; 120]);
        }
        self.events.extend(self.audio.events.try_iter().map(|event| (Instant::now(), event)));
    }

    fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn();
        }
    }

    /// Runs until `is_so`, and says how long that took.
    fn run_until(&mut self, what: &str, at_most: Duration, is_so: impl Fn(&Self) -> bool) -> Duration {
        let start = Instant::now();
        while !is_so(self) {
            assert!(start.elapsed() < at_most, "{what}: not within {at_most:?}; {:?}", self.events);
            self.turn();
        }
        start.elapsed()
    }

    /// Whether such an event came after `since`.
    fn heard(&self, since: Instant, is_it: impl Fn(&AudioEvent) -> bool) -> bool {
        self.events.iter().any(|(at, event)| *at >= since && is_it(event))
    }
}

fn lost(end: End) -> impl Fn(&AudioEvent) -> bool {
    move |event| matches!(event, AudioEvent::DeviceLost { end: lost, .. } if *lost == end)
}

fn reopened(end: End, device: &str) -> impl Fn(&AudioEvent) -> bool {
    move |event| matches!(event, AudioEvent::DeviceReopened { end: back, name, .. } if *back == end && name.ends_with(device))
}

#[test]
fn a_server_that_hangs_is_left_within_two_seconds_and_found_again_when_it_goes_on() {
    let Some(runtime) =
        sound::here("a_server_that_hangs_is_left_within_two_seconds_and_found_again_when_it_goes_on")
    else {
        return;
    };
    let Some(server) = Server::start(&runtime) else {
        println!("skipped: no pulseaudio (it does not start here)");
        return;
    };
    let mut thread = Thread::open("hall.monitor", "hall");
    thread.run_for(Duration::from_secs(5));
    assert_eq!(thread.events.iter().filter(|(_, event)| lost(End::Output)(event)).count(), 0);
    let hung = Instant::now();
    server.stop();
    let noticed = thread.run_until("both ends noticed", TWO_SECONDS + BUSY, |t| {
        t.heard(hung, lost(End::Input)) && t.heard(hung, lost(End::Output))
    });
    let blocks = thread.blocks;
    thread.run_for(Duration::from_millis(500));
    assert!(thread.blocks >= blocks + 150, "silence goes on in place of the microphone");
    // Who begins a call meanwhile is not kept waiting.
    let asked = Instant::now();
    assert!(Audio::open(AudioConfig::default()).is_err());
    println!("noticed after {noticed:?}; opening fails after {:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(6) + BUSY);
    let going = Instant::now();
    server.go_on();
    let back = thread.run_until("both ends are back", Duration::from_secs(4) + BUSY, |t| {
        t.heard(going, reopened(End::Input, "hall.monitor")) && t.heard(going, reopened(End::Output, "hall"))
    });
    println!("back after {back:?}");
}

#[test]
fn a_device_that_stands_still_or_vanishes_is_replaced_within_two_seconds_and_gone_back_to() {
    let Some(runtime) =
        sound::here("a_device_that_stands_still_or_vanishes_is_replaced_within_two_seconds_and_gone_back_to")
    else {
        return;
    };
    let Some(_server) = Server::start(&runtime) else {
        println!("skipped: no pulseaudio (it does not start here)");
        return;
    };
    pactl(&["load-module", "module-null-sink", "sink_name=other", "rate=48000"]);
    let desk = pactl(&["load-module", "module-null-sink", "sink_name=desk", "rate=48000"]);
    pactl(&["set-default-sink", "other"]);
    let mut thread = Thread::open("silence", "desk");
    thread.run_for(Duration::from_secs(5));
    let stuck = Instant::now();
    pactl(&["suspend-sink", "desk", "1"]);
    let replaced = thread.run_until("the default plays instead", TWO_SECONDS + BUSY, |t| {
        t.heard(stuck, reopened(End::Output, "other"))
    });
    println!("a device that stands still was replaced after {replaced:?}");
    let moving = Instant::now();
    pactl(&["suspend-sink", "desk", "0"]);
    let back = thread.run_until("the device is gone back to", Duration::from_secs(8) + BUSY, |t| {
        t.heard(moving, reopened(End::Output, "desk"))
    });
    println!("gone back to after {back:?}");
    thread.run_for(Duration::from_secs(1));
    let gone = Instant::now();
    pactl(&["unload-module", &desk]);
    let replaced = thread.run_until("the default plays instead", TWO_SECONDS + BUSY, |t| {
        t.heard(gone, reopened(End::Output, "other"))
    });
    println!("a device that vanished was replaced after {replaced:?}");
}

#[test]
fn who_hears_the_output_follows_the_default_and_what_the_device_says_of_itself() {
    let Some(runtime) =
        sound::here("who_hears_the_output_follows_the_default_and_what_the_device_says_of_itself")
    else {
        return;
    };
    let Some(_server) = Server::start(&runtime) else {
        println!("skipped: no pulseaudio (it does not start here)");
        return;
    };
    for (name, form) in [("ears", "headphone"), ("box", "speaker")] {
        let properties = format!("sink_properties=device.form_factor={form}");
        pactl(&["load-module", "module-null-sink", &format!("sink_name={name}"), "rate=48000", &properties]);
    }
    pactl(&["set-default-sink", "ears"]);
    let mut thread = Thread::open("silence", "default");
    thread.run_until("headphones", TWO_SECONDS + TWO_SECONDS, |t| t.audio.playback.reach() == Reach::Ear);
    thread.run_for(Duration::from_secs(1));
    let moved = Instant::now();
    pactl(&["set-default-sink", "box"]);
    thread.run_until("a loudspeaker", TWO_SECONDS + BUSY, |t| t.audio.playback.reach() == Reach::Room);
    let took = moved.elapsed();
    pactl(&["set-default-sink", "ears"]);
    thread.run_until("headphones again", TWO_SECONDS + BUSY, |t| t.audio.playback.reach() == Reach::Ear);
    println!("noticed after {took:?}");
}

#[test]
fn streams_that_run_allocate_nothing() {
    let Some(runtime) = sound::here("streams_that_run_allocate_nothing") else { return };
    let Some(_server) = Server::start(&runtime) else {
        println!("skipped: no pulseaudio (it does not start here)");
        return;
    };
    let mut thread = Thread::open("hall.monitor", "hall");
    thread.run_for(Duration::from_secs(3));
    let before = allocations_of("sound stream");
    let mine = COUNTS[MINE.get()].load(Ordering::Relaxed);
    thread.run_for(Duration::from_secs(2));
    let (after, mine_after) = (allocations_of("sound stream"), COUNTS[MINE.get()].load(Ordering::Relaxed));
    println!("{before:?} {after:?}; this thread {}", mine_after - mine);
    assert_eq!(before.len(), 2, "one thread for each end");
    assert_eq!(before, after);
    assert!(before.iter().all(|(_, count)| *count > 0), "they are the threads that are counted");
}
