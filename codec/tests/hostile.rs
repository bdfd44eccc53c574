//! Bad input and faults under virtual time: whatever a speaker, a card or a clock does, nothing panics, memory stays what
//! it was, and two seconds after it is over the delay is what it was before.
#![allow(unsafe_code, reason = "an allocator that counts is the only way to see memory grow")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test stands or falls with it"
)]

mod lab;

use hallway_codec::{
    ClockOffset, MAX_PACKET_BYTES, Report,
    frame::{self, BRIEF_HEADER_BYTES, Error, FRAME_HEADER_BYTES, Frame, HEADER_BYTES, Packet},
    opus::inspect,
};
use lab::{Call, Link};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    rc::Rc,
};

/// Bytes in use, of this thread.
struct InUse;

thread_local! {
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

fn add(bytes: i64) {
    let _ = BYTES.try_with(|b| b.set(b.get() + bytes));
}

// SAFETY: every call is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for InUse {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as i64);
        // SAFETY: as promised by our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        add(-(layout.size() as i64));
        // SAFETY: as promised by our caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size as i64 - layout.size() as i64);
        // SAFETY: as promised by our caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: InUse = InUse;

/// A fault lasts from here to there, in seconds of the call.
const FAULT: std::ops::Range<f64> = 5.0..7.0;
/// Delay that may remain two seconds after a fault, ms. Steering and a more careful target take longer than that.
const REMAINS_MS: f32 = 12.0;

/// A voice that never pauses, whose pitch runs up and down so quickly that no stretch of it is like another.
fn voice(sample: u64) -> f32 {
    let t = sample as f64 / 48_000.0;
    let phase = std::f64::consts::TAU * (170.0 * t + 60.0 / 7.0 * (t * 7.0).sin() + 3.0 * (t * 1.3).sin());
    (0.12 * (1..10).map(|h| (phase * f64::from(h)).sin() / f64::from(h).sqrt()).sum::<f64>()) as f32
}

/// A call on a good path. The speaker hears nothing of how it goes: what he does about losses takes longer to be taken
/// back, by its own rules.
fn call() -> Call {
    Call::new(21, Link::of_ms(20)).saying(voice).without_reports()
}

/// Changes packets during the fault, and lets the others alone.
fn tampered(mut change: impl FnMut(&mut Vec<u8>) + 'static) -> Call {
    let mut call = call();
    call.tamper = Some(Box::new(move |at, packet, out| {
        let mut packet = packet.to_vec();
        if FAULT.contains(&at) {
            change(&mut packet);
        }
        out.push(packet);
    }));
    call
}

/// Runs to the fault, through it, and to two seconds after it; then the delay must be what it was, nothing made up, and
/// what is heard what was said.
fn is_survived(what: &str, call: Call, fault: impl FnOnce(&mut Call)) -> Call {
    is_survived_with(REMAINS_MS, what, call, fault)
}

fn is_survived_with(remains_ms: f32, what: &str, mut call: Call, fault: impl FnOnce(&mut Call)) -> Call {
    call.run_for(4.0);
    call.receiver.stats();
    call.run_for(FAULT.start - 4.0);
    let before = call.receiver.stats().mouth_to_ear_ms.expect("a call that runs");
    let (_, like_before) = call.measured_ms(call.seconds() - 0.5);
    fault(&mut call);
    call.run_for(2.0);
    call.receiver.stats();
    call.run_for(2.0);
    let after = call.receiver.stats();
    let ms = after.mouth_to_ear_ms.expect("a call that runs");
    let (measured, like) = call.measured_ms(call.seconds() - 0.5);
    println!(
        "{what}: {before:.1} ms before, {ms:.1} ms after (by the signal {measured:.1}, likeness {like:.2})"
    );
    println!("    {:?}", after.totals);
    assert!(ms < before + remains_ms, "{what}: {before} ms before, {ms} ms after");
    assert!(after.concealed_pct.is_some_and(|pct| pct < 1.0), "{what}: {after:?}");
    assert!(like > like_before - 0.15, "{what}: likeness {like_before} before, {like} after");
    // Where the delay is still on its way down, a window of 200 ms has no one delay.
    let moving = f64::from(ms - before).max(0.0);
    assert!((measured - f64::from(ms)).abs() < 2.0 + moving, "{what}: heard {measured} ms late, not {ms}");
    call
}

fn through(call: &mut Call) {
    call.run_for(FAULT.end - FAULT.start);
}

/// Where the main frame's Opus packet begins.
fn main_at(packet: &[u8]) -> usize {
    if is_brief(packet) { BRIEF_HEADER_BYTES } else { HEADER_BYTES + FRAME_HEADER_BYTES }
}

fn is_brief(packet: &[u8]) -> bool {
    packet[0] == frame::KIND_BRIEF
}

/// The main frame's Opus packet is replaced; copies go.
fn with_main(packet: &mut Vec<u8>, opus: &[u8]) {
    let parsed = Packet::parse(packet).unwrap();
    let header = parsed.header;
    if parsed.is_brief() {
        frame::write_brief(&header, opus, packet);
    } else {
        frame::write(&header, [Frame { back: 0, opus }], 0, packet);
    }
}

#[test]
fn malformed_opus_costs_its_own_frame_and_nothing_after_it() {
    let mut n = 0usize;
    let broken = tampered(move |packet| {
        n += 1;
        if n.is_multiple_of(3) {
            match n % 12 {
                // Bits turned all over the frame; the first byte stays, so it still looks like one.
                0 => {
                    let after_first = main_at(packet) + 1;
                    packet.iter_mut().skip(after_first).for_each(|byte| *byte ^= 0xa5);
                }
                // A frame of one byte: nothing to decode.
                3 => with_main(packet, &[0xe4]),
                // Two frames of unequal length, of which the first is longer than the packet.
                6 => with_main(packet, &[0xe0 | 2, 251, 255, 1, 2, 3]),
                // As many frames as the byte says, of which none is there.
                _ => with_main(packet, &[0xe0 | 3, 0x80 | 48]),
            }
        }
    });
    let mut call = is_survived("malformed Opus", broken, through);
    assert!(call.refused > 30 && call.receiver.stats().totals.malformed > call.refused, "{}", call.refused);
}

#[test]
fn every_first_byte_of_an_opus_packet_is_played_or_refused_in_mid_stream() {
    let mut toc = 0u8;
    let tried = Rc::new(Cell::new([0u32; 2]));
    let counts = tried.clone();
    let changing = tampered(move |packet| {
        let at = main_at(packet);
        packet[at] = toc;
        toc = toc.wrapping_add(7);
        let [whole, brief] = counts.get();
        counts.set(if is_brief(packet) { [whole, brief + 1] } else { [whole + 1, brief] });
    });
    // Some of those bytes say that coarse copies of frames are sent (FEC): room for one frame more is kept for some seconds.
    let mut call = is_survived_with(20.0 + REMAINS_MS, "TOC changes", changing, through);
    call.run_for(15.0);
    call.receiver.stats();
    call.run_for(1.0);
    let ms = call.receiver.stats().mouth_to_ear_ms.expect("a call that runs");
    assert!(ms < 31.0 + REMAINS_MS, "{ms} ms");
    let [whole, brief] = tried.get();
    assert!(whole > 0 && brief >= 256, "each byte once at least: {whole} whole and {brief} brief packets");
}

#[test]
fn a_speaker_that_changes_its_coder_all_the_time_is_heard_without_a_gap() {
    let mut call = call().without_reports();
    call.run_for(3.0);
    call.receiver.stats();
    for _ in 0..6 {
        let lossy = Report { received: 80, lost: 20, ..Report::default() };
        call.sender.handle_report(hallway_codec::Micros(0), 7, &lossy);
        call.run_for(0.4);
        call.sender.forget_peer(7);
        call.run_for(0.4);
    }
    let stats = call.receiver.stats();
    println!("{:?} {:?}", stats.totals, call.sender.stats());
    assert!(call.sender.stats().switches > 8);
    assert_eq!((stats.totals.concealed_samples, stats.totals.malformed, stats.totals.anchors), (0, 0, 1));
}

#[test]
fn frames_longer_than_20_ms_are_refused_and_cost_only_themselves() {
    // 5 times 5 ms of CELT; one frame of 60 ms of SILK; two of them: 25, 60 and 120 ms (RFC 6716 section 3.2).
    let long: [&[u8]; 3] = [&[0xe8 | 3, 5, 1, 2, 3, 4, 5], &[0x18, 1, 2, 3, 4], &[0x18 | 1, 1, 2, 3, 4]];
    for opus in long {
        assert_eq!(inspect(opus), None);
        let mut n = 0;
        let some = tampered(move |packet| {
            n += 1;
            if n % 5 == 0 {
                with_main(packet, opus);
            }
        });
        let mut call = is_survived("every fifth too long", some, through);
        assert_eq!(call.refused, call.receiver.stats().totals.malformed);
        let all = tampered(move |packet| with_main(packet, opus));
        is_survived("all too long", all, through);
        let mut packet = Vec::new();
        let header = frame::Header {
            channels: 1,
            sequence: 0,
            media_time: hallway_codec::MediaTime(0),
            captured_us: 0,
            capture_delay: 0,
            encode_delay: 0,
            level: hallway_codec::Dbov::SILENCE,
            span: 3,
            coming: 3,
            quiet: false,
        };
        frame::write(&header, [Frame { back: 0, opus }], 0, &mut packet);
        let mut receiver = call.receiver;
        assert_eq!(receiver.handle_packet(hallway_codec::Micros(0), &packet), Err(Error::NotOpus));
    }
}

/// Moves a packet's position on the speaker's clock.
fn moved(packet: &mut [u8], by: i64) {
    let field = if is_brief(packet) { 3..5 } else { 6..10 };
    shift(&mut packet[field], by as u32);
}

/// Moves a packet's place in the count of packets.
fn renumbered(packet: &mut [u8], by: u32) {
    let field = if is_brief(packet) { 1..3 } else { 2..6 };
    shift(&mut packet[field], by);
}

/// Adds to a big-endian number of any length.
fn shift(field: &mut [u8], by: u32) {
    let mut number = [0; 4];
    let skip = 4 - field.len();
    number[skip..].copy_from_slice(field);
    let sum = u32::from_be_bytes(number).wrapping_add(by).to_be_bytes();
    field.copy_from_slice(&sum[skip..]);
}

#[test]
fn timestamps_that_jump_are_followed_within_two_seconds() {
    for ms in [-3_600_000, -10_000, -1_200, -1_000, -300, -50, 50, 300, 1_000, 1_200, 10_000, 3_600_000i64] {
        let mut call = call();
        call.tamper = Some(Box::new(move |at, packet, out| {
            let mut packet = packet.to_vec();
            if at >= FAULT.start {
                moved(&mut packet, ms * 48);
            }
            out.push(packet);
        }));
        is_survived(&format!("timestamps jump by {ms} ms"), call, |_| ());
    }
}

#[test]
fn timestamps_that_run_backwards_or_anywhere_are_forgotten_within_two_seconds() {
    let mut back = 0i64;
    let backwards = tampered(move |packet| {
        back -= 480;
        moved(packet, back);
    });
    is_survived("timestamps run backwards", backwards, through);
    let mut n = 0i64;
    let anywhere = tampered(move |packet| {
        n += 1;
        moved(packet, n.wrapping_mul(0x9e37_79b9) % 60_000 * 120);
    });
    is_survived("timestamps run anywhere", anywhere, through);
}

#[test]
fn the_count_of_packets_wraps_without_a_loss() {
    let mut call = call();
    call.tamper = Some(Box::new(|_, packet, out| {
        let mut packet = packet.to_vec();
        renumbered(&mut packet, u32::MAX - 1_100);
        out.push(packet);
    }));
    let mut call = is_survived("sequence wraps", call, through);
    let totals = call.receiver.stats().totals;
    assert_eq!((totals.lost, totals.duplicates, totals.concealed_samples), (0, 0, 0), "{totals:?}");
    assert!(totals.packets > 1_500, "{totals:?}");
}

#[test]
fn a_flood_costs_no_memory_and_its_end_brings_the_voice_back() {
    let mut luck = 1u32;
    let mut call = call();
    call.tamper = Some(Box::new(move |at, packet, out| {
        out.push(packet.to_vec());
        if FAULT.contains(&at) {
            for n in 0..200u32 {
                luck ^= luck << 13;
                luck ^= luck >> 17;
                luck ^= luck << 5;
                let mut other = packet.to_vec();
                other.resize(MAX_PACKET_BYTES, n as u8);
                renumbered(&mut other, luck);
                // Half of them near what is played, the others anywhere.
                let by = if n % 2 == 0 { i64::from(luck % 1_024) * 120 - 60_000 } else { i64::from(luck) };
                moved(&mut other, by);
                out.push(other);
            }
        }
    }));
    // Nothing that the laboratory keeps by itself counts.
    call.keep_sound = true;
    let receiver_bytes = |call: &mut Call, seconds: f64| {
        let before = BYTES.get();
        call.keep_sound = false;
        call.run_for(seconds);
        let own = call.played.capacity() * size_of::<hallway_codec::Played>()
            + call.packet_sizes.capacity() * size_of::<usize>();
        (BYTES.get() - before, own)
    };
    call.run_for(FAULT.start);
    let (_, own_before) = receiver_bytes(&mut call, 0.5);
    let (grown, own_after) = receiver_bytes(&mut call, 1.4);
    let grown = grown - (own_after - own_before) as i64;
    println!("a flood of 40,000 packets a second: {grown} bytes more");
    assert!(grown < 600 * 1024, "{grown} bytes");
    call.run_for(2.1);
    call.receiver.stats();
    call.run_for(2.0);
    let after = call.receiver.stats();
    println!("{:?} {:?} {:?}", after.mouth_to_ear_ms, after.concealed_pct, after.totals);
    assert!(after.mouth_to_ear_ms.is_some_and(|ms| ms < 33.0 + REMAINS_MS), "{after:?}");
    assert!(after.concealed_pct.is_some_and(|pct| pct < 1.0), "{after:?}");
}

#[test]
fn copies_that_contradict_the_frame_itself_do_not_replace_it() {
    // A lossy path's packets, of which each copy holds another sound, or sound of another length.
    let mut n = 0usize;
    let lies = Rc::new(Cell::new(0u32));
    let told = lies.clone();
    let mut lying = tampered(move |packet| {
        let parsed = Packet::parse(packet).unwrap();
        if parsed.copies() == 0 {
            return;
        }
        told.set(told.get() + u32::from(parsed.copies()));
        let (header, size) = (parsed.header, packet.len());
        let frames: Vec<(u8, Vec<u8>)> = parsed
            .frames()
            .map(|frame| {
                n += 1;
                let opus = match n % 3 {
                    _ if frame.back == 0 => frame.opus.to_vec(),
                    0 => vec![0xe0, 9, 9, 9],
                    _ => frame
                        .opus
                        .iter()
                        .enumerate()
                        .map(|(i, b)| if i == 0 { *b } else { b ^ 0x5a })
                        .collect(),
                };
                (frame.back, opus)
            })
            .collect();
        let frames = frames.iter().map(|(back, opus)| Frame { back: *back, opus });
        frame::write(&header, frames, size, packet);
    });
    let lossy = Report { received: 80, lost: 20, ..Report::default() };
    lying.sender.handle_report(hallway_codec::Micros(0), 7, &lossy);
    let mut call = is_survived("copies that lie", lying, through);
    let totals = call.receiver.stats().totals;
    assert_eq!((totals.concealed_samples, totals.recovered_samples), (0, 0), "{totals:?}");
    println!("{} copies lied", lies.get());
    assert!(lies.get() > 100, "{} copies lied", lies.get());
}

#[test]
fn cards_of_odd_periods_and_of_44100_hz_cost_their_own_length_and_no_sound() {
    for (period, pull) in [(441, 441), (113, 97), (1_000, 7), (7, 1_000), (1, 120), (2_880, 2_880)] {
        let mut call = call();
        (call.period, call.pull) = (period, pull);
        call.run_for(3.0);
        call.receiver.stats();
        call.run_for(9.0);
        let stats = call.receiver.stats();
        let ms = stats.mouth_to_ear_ms.unwrap();
        println!("periods of {period}, pulls of {pull}: {ms:.1} ms, {:?}", stats.concealed_pct);
        assert_eq!(stats.concealed_pct, Some(0.0), "{period} {pull}: {stats:?}");
        let own = (period + pull) as f32 / 48.0;
        assert!(ms < 20.0 + 20.0 + 1.2 * own, "{period} {pull}: {ms} ms");
    }
}

#[test]
fn clocks_that_jump_are_no_reason_to_lag() {
    for (speaker_us, listener_us) in
        [(3_600_000_000, 0), (-3_600_000_000, 0), (0, 3_600_000_000), (0, -900_000), (700_000, -40_000)]
    {
        let what = format!("clocks jump by {speaker_us} and {listener_us} us");
        is_survived(&what, call(), |call| {
            (call.speaker_clock_us, call.listener_clock_us) = (speaker_us, listener_us);
            // The comparison of the clocks finds out.
            let offset_us = lab::CLOCK_OFFSET_US + speaker_us - listener_us;
            call.receiver.set_clock(Some(ClockOffset { offset_us, error_us: 100 }));
        });
    }
}

#[test]
fn after_a_minute_of_suspend_of_either_or_both_the_call_is_as_it_was() {
    is_survived("the speaker slept", call(), |call| {
        call.suspend_speaker(60.0);
        call.run_for(60.0);
    });
    is_survived("the listener slept", call(), |call| call.suspend_listener(60.0));
    is_survived("both slept", call(), |call| {
        call.suspend_speaker(60.0);
        call.suspend_listener(60.0);
    });
    // A clock that stands still while its machine sleeps, as Linux' does.
    is_survived("the speaker slept, and its clock", call(), |call| {
        call.suspend_speaker(60.0);
        call.speaker_clock_us -= 60_000_000;
        call.run_for(60.0);
        let offset_us = lab::CLOCK_OFFSET_US - 60_000_000;
        call.receiver.set_clock(Some(ClockOffset { offset_us, error_us: 100 }));
    });
    is_survived("the listener slept, and its clock", call(), |call| {
        call.suspend_listener(60.0);
        call.listener_clock_us -= 60_000_000;
        let offset_us = lab::CLOCK_OFFSET_US + 60_000_000;
        call.receiver.set_clock(Some(ClockOffset { offset_us, error_us: 100 }));
    });
}
