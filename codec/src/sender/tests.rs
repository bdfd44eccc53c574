//! Packets in the order in which a sender makes them.

use super::*;
use crate::frame::Packet;

/// Feeds `ms` of a tone in 2.5 ms periods and collects all packets with their moment.
fn run(
    sender: &mut Sender,
    from: &mut u64,
    ms: u32,
    mut each: impl FnMut(&mut Sender, Micros),
) -> Vec<(Encoded, Vec<u8>)> {
    let mut packets = Vec::new();
    let mut out = Vec::new();
    for _ in 0..ms * 2 / 5 {
        let pcm: Vec<f32> = (0..120).map(|i| ((*from + i) as f32 * 0.03).sin() * 0.3).collect();
        let captured_at = Micros(*from * 125 / 6);
        *from += 120;
        let now = Micros(*from * 125 / 6);
        sender.handle_capture(&pcm, captured_at);
        each(sender, now);
        while let Some(encoded) = sender.poll_packet(now, &mut out) {
            packets.push((encoded, out.clone()));
        }
    }
    packets
}

/// Reads packets in order; brief ones as the whole ones before them complete them.
#[derive(Default)]
struct Reader(Option<Header>);

impl Reader {
    fn read<'a>(&mut self, bytes: &'a [u8]) -> Packet<'a> {
        let packet = Packet::parse(bytes).unwrap();
        if !packet.is_brief() {
            self.0 = Some(packet.header);
        }
        packet.after(&self.0.unwrap())
    }
}

#[test]
fn packets_follow_each_other_without_gap_and_say_when_they_were_captured() {
    let start = MediaTime(u32::MAX - 1000);
    let mut sender = Sender::new(SenderConfig { start, ..SenderConfig::default() }).unwrap();
    let packets = run(&mut sender, &mut 0, 200, |_, _| ());
    assert!(packets.len() >= 38);
    let mut reader = Reader::default();
    for (i, (encoded, bytes)) in packets.iter().enumerate() {
        let header = reader.read(bytes).header;
        assert_eq!(encoded.media_time, start.plus(Samples(i as u32 * 240)));
        assert_eq!(header.media_time, encoded.media_time);
        let captured = Samples(i as u32 * 240).as_micros();
        assert!(captured.abs_diff(header.captured_us.into()) < 20);
        let done = header.captured_us as u64
            + 10 * (u64::from(header.capture_delay) + u64::from(header.encode_delay));
        assert!(done.abs_diff(encoded.started_at.0) < 30, "the account closes");
        assert_eq!(header.encode_delay, 250);
        assert!(header.capture_delay <= 760, "{}", header.capture_delay);
        let whole = i < WHOLE_FIRST as usize || i % WHOLE_EVERY as usize == 0;
        assert_eq!(bytes.len(), packets[if whole { 0 } else { WHOLE_FIRST as usize }].1.len());
        assert_eq!(header.span, 3);
    }
}

#[test]
fn the_first_listener_behind_a_thin_link_is_spoken_to_in_long_frames_at_once() {
    let mut sender = Sender::new(SenderConfig::default()).unwrap();
    let mut at = 0;
    run(&mut sender, &mut at, 500, |_, _| ());
    let thin = PathStats { max_kbps: Some(46), presumed: true, ..PathStats::default() };
    sender.handle_path(Micros(at * 125 / 6), 1, &thin);
    let packets = run(&mut sender, &mut at, 100, |_, _| ());
    assert!(packets.iter().all(|(encoded, _)| encoded.frame == Samples::MS_20), "{}", packets.len());
}

#[test]
fn loss_brings_longer_frames_and_copies_announced_beforehand_in_one_seamless_stream() {
    let mut sender = Sender::new(SenderConfig::default()).unwrap();
    let mut at = 0;
    let mut packets = run(&mut sender, &mut at, 500, |_, _| ());
    let lossy = Report { received: 80, lost: 20, ..Report::default() };
    let asked_at = Micros(at * 125 / 6);
    sender.handle_report(asked_at, 1, &lossy);
    packets.extend(run(&mut sender, &mut at, 2000, |_, _| ()));
    sender.forget_peer(1);
    packets.extend(run(&mut sender, &mut at, 500, |_, _| ()));
    let mut expected = packets[0].0.media_time;
    let mut sizes = Vec::new();
    let mut reader = Reader::default();
    for (encoded, bytes) in &packets {
        assert_eq!(encoded.media_time, expected, "neither gap nor overlap");
        expected = expected.plus(encoded.frame);
        let packet = reader.read(bytes);
        let info = crate::opus::inspect(packet.frames().next().unwrap().opus).unwrap();
        assert_eq!(info.duration, encoded.frame);
        sizes.push(bytes.len());
        if encoded.frame == Samples::MS_20 {
            assert!(encoded.started_at.since(asked_at) >= ANNOUNCE_US);
            assert_eq!(packet.header.span, 11);
        } else if encoded.started_at > asked_at && encoded.started_at.since(asked_at) < ANNOUNCE_US {
            assert_eq!((packet.header.span, packet.header.coming), (3, 11));
        }
    }
    sizes.sort_unstable();
    sizes.dedup();
    assert_eq!(sizes.len(), 3, "one size per policy with copies, two without: {sizes:?}");
    let full = packets.iter().filter(|(_, b)| Packet::parse(b).unwrap().copies() == 4).count();
    assert!(full > 80, "{full}");
    assert_eq!(packets.last().unwrap().0.frame, Samples::MS_5);
    assert_eq!(sender.stats().switches, 2);
}

#[test]
fn copies_are_the_very_bytes_of_the_older_packets() {
    let mut sender = Sender::new(SenderConfig::default()).unwrap();
    let lossy = Report { received: 90, lost: 10, ..Report::default() };
    sender.handle_report(Micros(0), 1, &lossy);
    let packets = run(&mut sender, &mut 0, 1000, |_, _| ());
    let mut checked = 0;
    for (encoded, bytes) in &packets {
        for copy in Packet::parse(bytes).unwrap().frames().skip(1) {
            let of = encoded.media_time.minus(Samples(u32::from(copy.back) * 120));
            let original = packets.iter().find(|(e, _)| e.media_time == of).unwrap();
            assert_eq!(Packet::parse(&original.1).unwrap().frames().next().unwrap().opus, copy.opus);
            checked += 1;
        }
    }
    assert!(checked > 70);
}

#[test]
fn frames_of_different_length_travel_in_packets_of_one_length() {
    let mut sender = Sender::new(SenderConfig { delay: Delay::Quick, ..SenderConfig::default() }).unwrap();
    let lossy = Report { received: 80, lost: 20, delay: Delay::Quick, ..Report::default() };
    sender.handle_report(Micros(0), 1, &lossy);
    let (mut at, mut packet, mut sizes, mut frames) = (0u64, Vec::new(), Vec::new(), Vec::new());
    for _ in 0..1_600 {
        // Half a second of a voice, half a second of nothing.
        let loud = if (at / 24_000).is_multiple_of(2) { 0.3 } else { 0.0 };
        let pcm: Vec<f32> = (0..120).map(|i| ((at + i) as f32 * 0.03).sin() * loud).collect();
        at += 120;
        sender.handle_capture(&pcm, Micros((at - 120) * 125 / 6));
        while sender.poll_packet(Micros(at * 125 / 6), &mut packet).is_some() {
            let parsed = Packet::parse(&packet).unwrap();
            if sender.policy().frame == Samples::MS_10 && parsed.copies() > 0 {
                sizes.push(packet.len());
                frames.push(parsed.frames().next().unwrap().opus.len());
            }
        }
    }
    assert!(sizes.len() > 300);
    sizes.dedup();
    frames.sort_unstable();
    frames.dedup();
    assert_eq!(sizes.len(), 1, "{sizes:?}");
    assert!(frames.len() > 3, "{frames:?}");
}

#[test]
fn muting_silences_but_keeps_the_packets_coming_and_their_size() {
    let mut sender = Sender::new(SenderConfig::default()).unwrap();
    let mut at = 0;
    let loud = run(&mut sender, &mut at, 100, |_, _| ());
    sender.set_muted(true);
    let muted = run(&mut sender, &mut at, 100, |_, _| ());
    assert_eq!(muted.last().unwrap().0.level, Dbov::SILENCE);
    assert_eq!(muted.last().unwrap().1.len(), loud.last().unwrap().1.len());
    sender.set_muted(false);
    assert!(run(&mut sender, &mut at, 100, |_, _| ()).last().unwrap().0.level > Dbov::new(-20));
}

#[test]
fn a_capture_that_stood_still_moves_the_timeline_and_a_stalled_poller_loses_the_oldest() {
    let mut sender = Sender::new(SenderConfig::default()).unwrap();
    let mut out = Vec::new();
    sender.handle_capture(&[0.1; 4800], Micros(0));
    while sender.poll_packet(Micros(100_000), &mut out).is_some() {}
    let mut first = None;
    sender.handle_capture(&[0.1; 4800], Micros(1_100_000));
    while let Some(encoded) = sender.poll_packet(Micros(1_200_000), &mut out) {
        first.get_or_insert(encoded);
    }
    let first = first.unwrap();
    assert!(first.captured_at.0.abs_diff(1_100_000) < 10_000, "{first:?}");
    assert_eq!(sender.stats().capture_gaps, 1);

    for i in 0..20 {
        sender.handle_capture(&[f32::NAN; 4800], Micros(1_200_000 + i * 100_000));
    }
    let mut waiting = 0;
    while sender.poll_packet(Micros(3_200_000), &mut out).is_some() {
        waiting += 1;
    }
    assert!(waiting <= 2, "{waiting}");
    assert_eq!(sender.stats().overruns, 1);
}
