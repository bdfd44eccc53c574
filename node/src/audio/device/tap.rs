//! The bodies of sound card callbacks. Real-time safe: arithmetic on memory that they own or that the caller lends,
//! lock-free rings, no allocation, no lock, no log, no system call. A test counts allocations and expects none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cpal::{FromSample, Sample};
use rtrb::{Consumer, Producer};

/// What one underrun's end sounds like: the last sample fades by this factor a frame instead of breaking off.
const FADE: f32 = 0.93;

/// One callback as the media thread hears of it. All frames at the device's rate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Frames that the device has moved so far, with this callback.
    pub frames: u64,
    /// Of those, frames that found no room in the ring (capture) or no sound in it (playback).
    pub lost: u64,
    /// Times that a sound server's own queue in front of the device ran empty (playback).
    pub starved: u64,
    /// Frames of this callback.
    pub count: u32,
    /// When it ran.
    pub at_ns: u64,
    /// What the device says lies between itself and the air, nanoseconds.
    pub latency_ns: u64,
}

/// Carries sound from a capture callback to the media thread.
pub(crate) struct CaptureTap {
    ring: Producer<f32>,
    stamps: Producer<Stamp>,
    beat: Arc<AtomicU64>,
    device_channels: usize,
    channels: usize,
    last: Stamp,
}

impl CaptureTap {
    pub(crate) fn new(
        ring: Producer<f32>,
        stamps: Producer<Stamp>,
        beat: Arc<AtomicU64>,
        device_channels: u16,
        channels: u16,
    ) -> Self {
        let (device_channels, channels) = (usize::from(device_channels.max(1)), usize::from(channels));
        Self { ring, stamps, beat, device_channels, channels, last: Stamp::default() }
    }

    /// Takes one buffer of interleaved device samples. What finds no room is lost and counted: the media thread has
    /// been away for as long as the ring lasts, and throws the oldest away when it returns.
    pub(crate) fn deliver<T: Copy>(&mut self, data: &[T], at_ns: u64, latency_ns: u64)
    where
        f32: FromSample<T>,
    {
        let frames = data.len() / self.device_channels;
        let room = (self.ring.slots() / self.channels).min(frames);
        let (device_channels, channels) = (self.device_channels, self.channels);
        if let Ok(chunk) = self.ring.write_chunk_uninit(room * channels) {
            chunk.fill_from_iter(
                data.chunks_exact(device_channels)
                    .flat_map(|frame| ours(frame, channels).into_iter().take(channels)),
            );
        }
        self.last.frames += frames as u64;
        self.last.lost += (frames - room) as u64;
        self.last.count = frames as u32;
        self.last.at_ns = at_ns;
        self.last.latency_ns = latency_ns;
        let _ = self.stamps.push(self.last);
        self.beat.store(at_ns, Ordering::Relaxed);
    }
}

/// Carries sound from the media thread into a playback callback.
pub(crate) struct PlaybackTap {
    ring: Consumer<f32>,
    stamps: Producer<Stamp>,
    beat: Arc<AtomicU64>,
    device_channels: usize,
    channels: usize,
    last: Stamp,
    tail: (f32, f32),
}

impl PlaybackTap {
    pub(crate) fn new(
        ring: Consumer<f32>,
        stamps: Producer<Stamp>,
        beat: Arc<AtomicU64>,
        device_channels: u16,
        channels: u16,
    ) -> Self {
        let (device_channels, channels) = (usize::from(device_channels.max(1)), usize::from(channels));
        let last = Stamp::default();
        Self { ring, stamps, beat, device_channels, channels, last, tail: (0.0, 0.0) }
    }

    /// The queue at the sound server ran empty; the next callback tells.
    pub(crate) fn starved(&mut self) {
        self.last.starved += 1;
    }

    /// Fills one buffer of interleaved device samples. What the ring does not hold fades into silence and counts as
    /// lost.
    pub(crate) fn fill<T: Sample + FromSample<f32>>(&mut self, out: &mut [T], at_ns: u64, latency_ns: u64) {
        let wanted = out.len() / self.device_channels;
        let have = (self.ring.slots() / self.channels).min(wanted);
        let (sounding, missing) = out.split_at_mut(have * self.device_channels);
        if let Ok(chunk) = self.ring.read_chunk(have * self.channels) {
            let mut samples = chunk.into_iter();
            for frame in sounding.chunks_exact_mut(self.device_channels) {
                let left = samples.next().unwrap_or(0.0);
                let right = if self.channels == 2 { samples.next().unwrap_or(0.0) } else { left };
                theirs(frame, left, right);
                self.tail = (left, right);
            }
        }
        for frame in missing.chunks_exact_mut(self.device_channels) {
            self.tail = (self.tail.0 * FADE, self.tail.1 * FADE);
            theirs(frame, self.tail.0, self.tail.1);
        }
        self.last.frames += wanted as u64;
        self.last.lost += (wanted - have) as u64;
        self.last.count = wanted as u32;
        self.last.at_ns = at_ns;
        self.last.latency_ns = latency_ns;
        let _ = self.stamps.push(self.last);
        self.beat.store(at_ns, Ordering::Relaxed);
    }
}

/// A device frame as left and right, or as mono twice: the mean of the first two channels. Further channels of a
/// large interface are not the voice.
fn ours<T: Copy>(frame: &[T], channels: usize) -> [f32; 2]
where
    f32: FromSample<T>,
{
    let left = frame.first().map_or(0.0, |s| f32::from_sample_(*s));
    let right = frame.get(1).map_or(left, |s| f32::from_sample_(*s));
    if channels == 1 { [(left + right) * 0.5; 2] } else { [left, right] }
}

/// Left and right into a device frame; further channels stay silent.
fn theirs<T: Sample + FromSample<f32>>(frame: &mut [T], left: f32, right: f32) {
    match frame {
        [mono] => *mono = T::from_sample((left + right) * 0.5),
        [first, second, rest @ ..] => {
            *first = T::from_sample(left);
            *second = T::from_sample(right);
            rest.fill(T::EQUILIBRIUM);
        }
        [] => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtrb::RingBuffer;

    fn capture(
        ring: usize,
        device_channels: u16,
        channels: u16,
    ) -> (CaptureTap, Consumer<f32>, Consumer<Stamp>) {
        let (ring, sound) = RingBuffer::new(ring);
        let (stamps, told) = RingBuffer::new(64);
        (CaptureTap::new(ring, stamps, Arc::default(), device_channels, channels), sound, told)
    }

    fn playback(
        ring: usize,
        device_channels: u16,
        channels: u16,
    ) -> (PlaybackTap, Producer<f32>, Consumer<Stamp>) {
        let (sound, ring) = RingBuffer::new(ring);
        let (stamps, told) = RingBuffer::new(64);
        (PlaybackTap::new(ring, stamps, Arc::default(), device_channels, channels), sound, told)
    }

    fn drain(sound: &mut Consumer<f32>) -> Vec<f32> {
        std::iter::from_fn(|| sound.pop().ok()).collect()
    }

    #[test]
    fn captured_channels_are_mapped_and_integers_become_floats() {
        let (mut tap, mut sound, mut told) = capture(64, 2, 1);
        tap.deliver(&[0.5f32, 0.25, -1.0, 0.0], 7, 9);
        assert_eq!(drain(&mut sound), [0.375, -0.5]);
        assert_eq!(
            told.pop(),
            Ok(Stamp { frames: 2, lost: 0, starved: 0, count: 2, at_ns: 7, latency_ns: 9 })
        );
        let (mut tap, mut sound, _told) = capture(64, 1, 2);
        tap.deliver(&[i16::MIN, 16_384], 0, 0);
        assert_eq!(drain(&mut sound), [-1.0, -1.0, 0.5, 0.5]);
        let (mut tap, mut sound, _told) = capture(64, 4, 2);
        tap.deliver(&[0.1f32, 0.2, 0.9, 0.9], 0, 0);
        assert_eq!(drain(&mut sound), [0.1, 0.2]);
    }

    #[test]
    fn sound_without_room_is_counted_and_time_goes_on() {
        let (mut tap, mut sound, mut told) = capture(3, 1, 1);
        tap.deliver(&[0.1f32, 0.2, 0.3, 0.4, 0.5], 1, 0);
        assert_eq!(drain(&mut sound), [0.1, 0.2, 0.3]);
        assert_eq!(told.pop().map(|s| (s.frames, s.lost)), Ok((5, 2)));
    }

    #[test]
    fn playback_fades_out_where_sound_is_missing_and_counts_it() {
        let (mut tap, mut sound, mut told) = playback(64, 2, 1);
        let mut out = [9.0f32; 8];
        assert!(sound.push_entire_slice(&[0.5, 0.4]).is_ok());
        tap.fill(&mut out, 1, 0);
        assert_eq!(out[..4], [0.5, 0.5, 0.4, 0.4]);
        assert!(out[4] < 0.4 && out[6] < out[4] && out[6] > 0.0);
        assert_eq!(told.pop().map(|s| (s.frames, s.lost)), Ok((4, 2)));
    }

    #[test]
    fn stereo_becomes_the_mean_on_a_mono_device_and_the_front_pair_on_a_large_one() {
        let (mut tap, mut sound, _told) = playback(64, 1, 2);
        assert!(sound.push_entire_slice(&[0.5, 0.25]).is_ok());
        let mut out = [9.0f32; 1];
        tap.fill(&mut out, 0, 0);
        assert_eq!(out, [0.375]);
        let (mut tap, mut sound, _told) = playback(64, 4, 2);
        assert!(sound.push_entire_slice(&[0.5, -0.5]).is_ok());
        let mut out = [1i16; 4];
        tap.fill(&mut out, 0, 0);
        assert_eq!(out, [16_384, -16_384, 0, 0]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn callbacks_make_no_system_call() {
        let name = "audio::device::tap::tests::callbacks_make_no_system_call";
        crate::audio::strictly::without_system_calls(name, || {
            let (mut microphone, mut heard, mut told) = capture(4_096, 2, 1);
            let (mut loudspeaker, mut sound, mut told_out) = playback(4_096, 2, 1);
            let (data, mut out) = (vec![0.1f32; 2_000], vec![0.0f32; 2_000]);
            move || {
                for size in [240, 480, 0, 2_000].into_iter().cycle().take(400) {
                    microphone.deliver(&data[..size], 7, 1);
                    let _ = sound.push_entire_slice(&data[..size / 2]);
                    loudspeaker.starved();
                    loudspeaker.fill(&mut out[..size], 7, 1);
                    // The rings' other ends, so that none stays full.
                    while heard.pop().is_ok() || told.pop().is_ok() || told_out.pop().is_ok() {}
                }
            }
        });
    }

    #[test]
    fn callbacks_of_any_size_do_not_allocate() {
        let (mut microphone, mut heard, mut told) = capture(4_096, 2, 1);
        let (mut loudspeaker, mut sound, mut told_out) = playback(4_096, 2, 1);
        let (data, mut out) = (vec![0.1f32; 2_000], vec![0.0f32; 2_000]);
        let (ints, mut int_out) = (vec![1i16; 2_000], vec![0i16; 2_000]);
        let counted = crate::audio::allocations::count(|| {
            for size in [2, 24 * 2, 320 * 2, 480 * 2, 0, 1_000 * 2] {
                microphone.deliver(&data[..size], 1, 1);
                microphone.deliver(&ints[..size], 1, 1);
                loudspeaker.fill(&mut out[..size], 1, 1);
                loudspeaker.fill(&mut int_out[..size], 1, 1);
                while heard.pop().is_ok() {}
                while told.pop().is_ok() {}
                while told_out.pop().is_ok() {}
                let _ = sound.push_entire_slice(&data[..size / 2]);
            }
        });
        assert_eq!(counted, 0);
    }
}
