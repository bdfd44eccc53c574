//! Fuzz targets for everything that reads bytes of strangers, on the stable toolchain.
//!
//! Each target takes valid bytes of our own and edits them: bits turned, numbers replaced by extreme ones, parts cut out,
//! put in, or swapped between messages; and plain noise beside that. `cargo test` tries a second of random edits, drawn
//! anew each time, and everything that once failed (`__fuzz__/TARGET/crashes`, kept in the repository); `scripts/fuzz`
//! tries for as long as it is told to. That is no search for new paths through the code: where `cargo-bolero` is
//! installed, the same targets run under libFuzzer, which does search.

// All of this file is test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::str::FromStr as _;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bolero::{TypeGenerator, check};
use bytes::Bytes;
use hallway::forward::wire::{self, ForwardEvent, ForwardRequest};
use hallway::invite::Invite;
use hallway::rendezvous::{record, wire as rendezvous};
use hallway::room::chat::Place;
use hallway::room::compare::{NONCE, Say};
use hallway::room::control::{CONTROL_VERSION, Control, Hello, Listed, RoomRefusal};
use hallway::session::keys::{Opener, OwnKey, Sealer};
use hallway::session::{Local, Session, sframe};
use hallway::telemetry::Telemetry;
use hallway::transport::wss;
use hallway_codec::frame::{self, MAX_PACKET_BYTES, Packet};
use hallway_codec::jitter::packets::{MAX_STEPS, Offer, Packets, Trace};
use hallway_codec::jitter::sequence::Sequence;
use hallway_codec::opus::{PacketInfo, inspect};
use hallway_codec::{
    ClockOffset, Delay, Micros, Receiver, ReceiverConfig, Report, Samples, Sender, SenderConfig,
};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;

/// One change to bytes that were valid.
#[derive(Debug, Clone, TypeGenerator)]
enum Edit {
    Flip { at: u16, mask: u8 },
    Set { at: u16, value: u8 },
    Number { at: u16, bytes: u8, which: u8 },
    Cut { at: u16 },
    Remove { at: u16, count: u8 },
    Insert { at: u16, value: u8, count: u8 },
    Splice { other: u8, at: u16 },
}

/// Bytes to be read: mostly ours with edits, sometimes noise.
#[derive(Debug, Clone, TypeGenerator)]
enum Input {
    Edited { which: u8, edits: Vec<Edit> },
    Noise(Vec<u8>),
}

/// Longest input, beyond every bound.
const LONGEST: usize = 70_000;
/// Numbers at which code breaks.
const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0x80, 0x7fff_ffff, 0x8000_0000, u32::MAX as u64, u64::MAX];

impl Input {
    fn bytes(&self, valid: &[Vec<u8>]) -> Vec<u8> {
        let (which, edits) = match self {
            Self::Noise(bytes) => return bytes.clone(),
            Self::Edited { which, edits } => (which, edits),
        };
        let pick =
            |which: u8| valid.get(usize::from(which) % valid.len().max(1)).cloned().unwrap_or_default();
        let mut bytes = pick(*which);
        for edit in edits.iter().take(12) {
            let place = |at: u16| usize::from(at) % (bytes.len() + 1);
            match *edit {
                Edit::Flip { at, mask } => {
                    let at = place(at);
                    bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
                }
                Edit::Set { at, value } => {
                    let at = place(at);
                    bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
                }
                Edit::Number { at, bytes: count, which } => {
                    let number = NUMBERS[usize::from(which) % NUMBERS.len()].to_be_bytes();
                    let (at, from) = (place(at), 8 - usize::from(count % 9));
                    bytes.iter_mut().skip(at).zip(&number[from..]).for_each(|(byte, n)| *byte = *n);
                }
                Edit::Cut { at } => bytes.truncate(place(at)),
                Edit::Remove { at, count } => {
                    let (at, length) = (place(at), bytes.len());
                    bytes.drain(at..(at + usize::from(count)).min(length));
                }
                Edit::Insert { at, value, count } => {
                    let at = place(at);
                    bytes.splice(at..at, std::iter::repeat_n(value, count.into()));
                }
                Edit::Splice { other, at } => {
                    let (at, other) = (place(at), pick(other));
                    bytes.truncate(at);
                    bytes.extend(other.iter().skip(at));
                }
            }
        }
        bytes.truncate(LONGEST);
        bytes
    }
}

/// Packets of a real sender: 5 ms frames, then 20 ms frames with copies.
fn packets() -> &'static [Vec<u8>] {
    static PACKETS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    PACKETS.get_or_init(|| {
        let mut sender = Sender::new(SenderConfig::default()).unwrap();
        let (mut packets, mut buffer) = (Vec::new(), Vec::new());
        for period in 0..600u64 {
            let pcm: Vec<f32> = (0..120)
                .map(|i| ((period * 120 + i) as f32 * 0.02).sin() * 0.3 * (period as f32 * 0.1).cos())
                .collect();
            if period == 100 {
                sender.handle_report(Micros(0), 1, &Report { received: 50, lost: 50, ..Report::default() });
            }
            sender.handle_capture(&pcm, Micros(period * 2_500));
            while sender.poll_packet(Micros(period * 2_500 + 2_500), &mut buffer).is_some() {
                packets.push(buffer.clone());
            }
        }
        packets
    })
}

#[test]
fn packets_of_voice() {
    check!().with_type::<Input>().for_each(|input| {
        let bytes = input.bytes(packets());
        let Ok(packet) = Packet::parse(&bytes) else { return };
        assert!(bytes.len() <= MAX_PACKET_BYTES);
        let frames: Vec<_> = packet.frames().collect();
        assert_eq!(frames.len(), usize::from(packet.copies()) + 1);
        frames.iter().for_each(|frame| _ = inspect(frame.opus));
        // What was read is written the same; padding aside.
        let mut again = Vec::new();
        if packet.is_brief() {
            frame::write_brief(&packet.header, frames[0].opus, &mut again);
            assert_eq!(again, bytes);
        } else {
            frame::write(&packet.header, frames.iter().copied(), bytes.len(), &mut again);
        }
        let reread = Packet::parse(&again).unwrap();
        assert_eq!((reread.header, reread.frames().collect::<Vec<_>>()), (packet.header, frames));
    });
}

#[derive(Debug, TypeGenerator)]
enum Heard {
    Packet { input: Input, late_us: u16 },
    Next { skip: u8 },
    Play { samples: u16, later_us: u32 },
    Clock { offset_us: i64, error_us: u32 },
    NoClock,
    Delay(u8),
    Stats,
    Report,
}

#[test]
fn a_receiver_with_its_jitter_buffer_and_decoder() {
    check!().with_type::<(bool, Vec<Heard>)>().for_each(|(stereo, events)| {
        let channels = 1 + u8::from(*stereo);
        let mut receiver = Receiver::new(ReceiverConfig { channels, ..ReceiverConfig::default() }).unwrap();
        let (mut now, mut next, mut out) = (0u64, 0usize, Vec::new());
        for event in events {
            match event {
                Heard::Packet { input, late_us } => {
                    let bytes = input.bytes(packets());
                    let _ = receiver.handle_packet(Micros(now.wrapping_sub(u64::from(*late_us))), &bytes);
                }
                Heard::Next { skip } => {
                    for packet in packets().iter().cycle().skip(next + usize::from(skip % 4)).take(4) {
                        let _ = receiver.handle_packet(Micros(now), packet);
                    }
                    next = (next + 4) % packets().len();
                }
                Heard::Play { samples, later_us } => {
                    now = now.wrapping_add(u64::from(*later_us));
                    out.clear();
                    out.resize(usize::from(samples % 3_000) * usize::from(channels), 9.0);
                    receiver.play_into(Micros(now), *later_us, &mut out);
                    assert!(out.iter().all(|s| s.is_finite() && s.abs() < 3.0));
                }
                Heard::Clock { offset_us, error_us } => {
                    receiver.set_clock(Some(ClockOffset { offset_us: *offset_us, error_us: *error_us }));
                }
                Heard::NoClock => receiver.set_clock(None),
                Heard::Delay(which) => {
                    receiver.set_delay([Delay::Quick, Delay::Balanced, Delay::Safe][usize::from(*which) % 3])
                }
                Heard::Stats => drop(receiver.stats()),
                Heard::Report => drop(receiver.report(Micros(now))),
            }
        }
    });
}

#[derive(Debug, TypeGenerator)]
enum Kept {
    Offer { steps: i16, off_grid: bool, length: u8, copy: bool, bytes: u16 },
    Anywhere { at: i64, playout: i64 },
    Play,
    Number(u32),
    Restart(i64),
}

#[test]
fn the_table_of_waiting_frames_and_the_count_of_packets() {
    check!().with_type::<Vec<Kept>>().for_each(|events| {
        let (mut table, mut sequence, mut playout, mut offered) =
            (Packets::default(), Sequence::default(), 0i64, 0u64);
        let info = |length: u8| PacketInfo {
            duration: [Samples::MS_2_5, Samples::MS_5, Samples::MS_10, Samples::MS_20]
                [usize::from(length) % 4],
            speech_mode: false,
            has_fec: false,
        };
        for event in events {
            match *event {
                Kept::Offer { steps, off_grid, length, copy, bytes } => {
                    let at = playout.saturating_add(i64::from(steps) * 120 + i64::from(off_grid));
                    let opus = vec![7; usize::from(bytes) % MAX_PACKET_BYTES];
                    let offer = table.offer(at, playout, info(length), copy, Trace::default(), &opus);
                    assert!(!off_grid || offer == Offer::OutOfRange);
                    if offer == Offer::Kept {
                        assert!(table.covering(at.max(playout)).is_some() && table.knows(at));
                    }
                }
                Kept::Anywhere { at, playout } => {
                    table.offer(at, playout, info(0), false, Trace::default(), &[1]);
                    let _ = table.covering(at).or(table.next_after(at)).map(|w| w.opus.len());
                    table.done(at);
                }
                Kept::Play => {
                    if let Some(at) = table.covering(playout).map(|waiting| waiting.at) {
                        table.done(at);
                    }
                    playout = playout.saturating_add(240);
                }
                Kept::Number(number) => {
                    sequence.insert(number);
                    offered += 1;
                }
                Kept::Restart(origin) => {
                    table.restart(origin);
                    sequence.restart();
                    playout = origin;
                }
            }
        }
        assert!(table.bytes() <= MAX_STEPS as usize * 2 * MAX_PACKET_BYTES, "{} bytes", table.bytes());
        let counts = sequence.counts();
        assert_eq!(counts.received + counts.duplicates, offered);
    });
}

#[test]
fn sealed_frames() {
    let key = OwnKey::random().export();
    let mut sealer = Sealer::new(&key);
    let said: Vec<Vec<u8>> = (0..8u8).map(|n| vec![n; 40 + usize::from(n)]).collect();
    let sealed: Vec<Vec<u8>> = said
        .iter()
        .map(|packet| {
            let mut sealed = Vec::new();
            sealer.seal(packet, &mut sealed).unwrap();
            sealed
        })
        .collect();
    let now = Instant::now();
    check!().with_type::<Vec<Input>>().for_each(|inputs| {
        let mut opener = Opener::new();
        opener.install(now, key.clone());
        let (mut out, mut opened) = (Vec::new(), Vec::new());
        for input in inputs {
            let bytes = input.bytes(&sealed);
            if opener.open(now, &bytes, &mut out).is_ok() {
                assert!(said.contains(&out) && !opened.contains(&out), "only what was sealed, and once");
                opened.push(out.clone());
            }
            if let Some((header, length)) = bytes.get(1..).and_then(sframe::Header::decode) {
                let mut again = [0; sframe::MAX_HEADER];
                assert_eq!(header.encode(&mut again), length, "one form only");
                assert_eq!(bytes.get(1..=length), again.get(..length));
            }
        }
    });
}

/// Two members of one room.
fn members() -> [Local; 2] {
    let room = Invite::open("kitchen".parse().unwrap());
    [1, 2].map(|seed| {
        let identity = Keypair::ed25519_from_bytes([seed; 32]).unwrap();
        Local::new(&identity, &room.secrets()).unwrap()
    })
}

/// Everything that two sessions send each other from the first greeting to a few messages.
fn dialogue(locals: &[Local; 2], now: Instant) -> Vec<Vec<u8>> {
    let mut ends = [0, 1].map(|at| Session::new(&locals[at], locals[1 - at].peer(), now));
    let mut tape = Vec::new();
    ends[0].connect(now);
    for round in 0..12 {
        for at in [0, 1] {
            while let Some(datagram) = ends[at].poll_transmit(now) {
                ends[1 - at].handle_datagram(now, &datagram);
                tape.push(datagram);
            }
        }
        if round > 6 {
            let _ = ends[0].send_message(now, vec![round; 300 * usize::from(round)]);
            let _ = ends[1].send_unreliable(now, &[round; 30]);
        }
    }
    assert!(ends.iter().all(Session::is_established));
    tape
}

#[test]
fn datagrams_of_a_session() {
    let start = Instant::now();
    let locals = members();
    let tape = dialogue(&locals, start);
    assert!(tape.len() > 8, "{}", tape.len());
    check!().with_type::<(bool, Vec<(Input, u16)>)>().for_each(|(calls, inputs)| {
        let mut session = Session::new(&locals[1], locals[0].peer(), start);
        if *calls {
            session.connect(start);
        }
        let mut now = start;
        for (input, ms) in inputs.iter().take(24) {
            now += Duration::from_millis(u64::from(*ms));
            session.handle_datagram(now, &input.bytes(&tape));
            let sent: usize =
                std::iter::from_fn(|| session.poll_transmit(now)).take(64).map(|d| d.len()).sum();
            assert!(sent < 16_000, "{sent} bytes for one datagram");
            while session.poll_event().is_some() {}
        }
    });
}

#[test]
fn messages_between_members() {
    let peer = Keypair::ed25519_from_bytes([5; 32]).unwrap().public().to_peer_id();
    let addresses: Vec<Multiaddr> = vec!["/ip4/192.0.2.1/udp/4001/quic-v1".parse().unwrap()];
    let hello =
        Hello { version: CONTROL_VERSION, features: 3, name: "ana".into(), addresses: addresses.clone() };
    let valid = [
        Control::Hello(hello),
        Control::KeyAck { kid: 77 },
        Control::Members(vec![Listed { peer, addresses }]),
        Control::Leave,
        Control::Refused(RoomRefusal::Used),
        Control::Chat { id: 9, text: "hello \u{1f375}".into(), place: Place { run: 7, number: 2, first: 1 } },
        Control::ChatAck { run: 1, number: 2 },
        Control::Compare(Say::Commit([3; 32])),
        Control::Compare(Say::Reveal([4; NONCE])),
        Control::Key(OwnKey::random().export()),
    ]
    .map(|message| message.encode());
    check!().with_type::<Input>().for_each(|input| {
        if let Ok(Some(message)) = Control::decode(&input.bytes(&valid)) {
            let again = Control::decode(&message.encode());
            assert_eq!(again, Ok(Some(message)), "what was read can be said");
        }
    });
}

#[test]
fn what_members_tell_of_time_and_loss() {
    let valid = [
        Telemetry::Ping { sent_us: 42 },
        Telemetry::Pong { sent_us: 42, arrived_us: u64::MAX, answered_us: 1 << 40 },
        Telemetry::Report(Report { received: 50, lost: 3, ..Report::default() }),
        Telemetry::SendDelay(300),
        Telemetry::PathPing(7),
        Telemetry::PathPong(7),
    ]
    .map(|message| message.encode());
    check!().with_type::<Input>().for_each(|input| {
        if let Some(message) = Telemetry::decode(&input.bytes(&valid)) {
            // Bytes, for numbers that are none equal not even themselves.
            let said = message.encode();
            assert_eq!(Telemetry::decode(&said).map(|again| again.encode()), Some(said), "{message:?}");
        }
    });
}

#[test]
fn datagrams_and_streams_of_the_forwarder() {
    use prost::Message as _;
    let valid = [wire::up(9, &[1, 4, 200], b"sealed"), wire::down(9, 3, b"sealed"), wire::bind(9)];
    let mut valid: Vec<Vec<u8>> = valid.iter().map(|bytes| bytes.to_vec()).collect();
    valid.push(ForwardEvent::refusal(wire::Refusal::Rate).encode_to_vec());
    let open = wire::Open { namespace: "n".repeat(64), carrier: 1 };
    valid.push(ForwardRequest { open: Some(open), ..ForwardRequest::default() }.encode_to_vec());
    check!().with_type::<Input>().for_each(|input| {
        let bytes = Bytes::from(input.bytes(&valid));
        if let Some(up) = wire::read_up(&bytes) {
            let payload = bytes.get(up.payload_at..).unwrap();
            assert_eq!(wire::up(up.handle, up.receivers, payload), bytes);
        }
        if let Some((handle, sender, payload)) = wire::read_down(&bytes) {
            assert_eq!(wire::down(handle, sender, &payload), bytes);
        }
        if let Some(handle) = wire::read_bind(&bytes) {
            assert_eq!(wire::bind(handle), bytes);
        }
        let _ = ForwardRequest::decode(bytes.clone());
        let _ = ForwardEvent::decode(bytes);
    });
}

#[test]
fn streams_of_the_rendezvous_and_signed_records() {
    use prost::Message as _;
    let keypair = Keypair::ed25519_from_bytes([6; 32]).unwrap();
    let at: Multiaddr = "/ip4/192.0.2.1/udp/4001/quic-v1".parse().unwrap();
    let signed = record::sign(&keypair, &[at], record::Form::Standard).unwrap();
    let register = rendezvous::Register {
        ns: Some("n".repeat(64)),
        signed_peer_record: Some(signed.clone()),
        ttl: Some(7_200),
    };
    let valid = vec![
        rendezvous::framed(&rendezvous::Request::register(register.clone())),
        rendezvous::framed(&rendezvous::Request::unregister("n".into())),
        rendezvous::framed(&rendezvous::Response::registered(Ok(60))),
        rendezvous::framed(&rendezvous::Response::discovered(Ok((vec![register], vec![1; 16])))),
        signed,
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    check!().with_type::<Input>().for_each(|input| {
        let bytes = input.bytes(&valid);
        if let Ok(verified) = record::verify(&bytes) {
            assert_eq!(verified.peer, keypair.public().to_peer_id(), "nobody else has signed");
        }
        runtime.block_on(async {
            let mut stream = futures::io::Cursor::new(&bytes);
            while rendezvous::read::<rendezvous::Request, _>(&mut stream, rendezvous::MAX_REQUEST)
                .await
                .is_ok()
            {}
            let mut stream = futures::io::Cursor::new(&bytes);
            while rendezvous::read::<rendezvous::Response, _>(&mut stream, rendezvous::MAX_RESPONSE)
                .await
                .is_ok()
            {}
        });
        let _ = rendezvous::Request::decode(bytes.as_slice());
    });
}

#[test]
fn streams_of_those_who_watch_a_room() {
    use prost::Message as _;
    let keypair = Keypair::ed25519_from_bytes([6; 32]).unwrap();
    let at: Multiaddr = "/ip4/192.0.2.1/udp/4001/quic-v1".parse().unwrap();
    let signed = record::sign(&keypair, std::slice::from_ref(&at), record::Form::Legacy).unwrap();
    let presence = rendezvous::Presence { signed_peer_record: signed.clone(), ttl: 120 };
    let watch = rendezvous::Watch {
        namespace: "n".repeat(64),
        door: vec![7; rendezvous::DOOR_LEN],
        presence: Some(presence.clone()),
    };
    let outcome = rendezvous::Response::registered(Ok(60)).register_response;
    let snapshot = rendezvous::Snapshot { records: vec![signed.clone(), signed.clone()], more: true };
    let valid = vec![
        rendezvous::WatchRequest { watch: Some(watch), ..Default::default() }.encode_to_vec(),
        rendezvous::WatchRequest { refresh: Some(presence), ..Default::default() }.encode_to_vec(),
        rendezvous::WatchRequest { leave: Some(rendezvous::Empty {}), ..Default::default() }.encode_to_vec(),
        rendezvous::WatchEvent { registered: outcome, observed: Some(at.to_vec()), ..Default::default() }
            .encode_to_vec(),
        rendezvous::WatchEvent { snapshot: Some(snapshot), other_keys: Some(3), ..Default::default() }
            .encode_to_vec(),
        rendezvous::WatchEvent {
            arrived: Some(signed),
            gone: Some(keypair.public().to_peer_id().to_bytes()),
            ..Default::default()
        }
        .encode_to_vec(),
    ];
    check!().with_type::<Input>().for_each(|input| {
        let bytes = input.bytes(&valid);
        if let Ok(request) = rendezvous::WatchRequest::decode(bytes.as_slice()) {
            let again = rendezvous::WatchRequest::decode(request.encode_to_vec().as_slice());
            assert_eq!(again, Ok(request), "what was read can be said");
        }
        if let Ok(event) = rendezvous::WatchEvent::decode(bytes.as_slice()) {
            for record in event.snapshot.iter().flat_map(|snapshot| &snapshot.records).chain(&event.arrived) {
                let verified = record::verify(record).map(|verified| verified.peer);
                assert!(
                    verified.is_err() || verified.is_ok_and(|peer| peer == keypair.public().to_peer_id())
                );
            }
            let again = rendezvous::WatchEvent::decode(event.encode_to_vec().as_slice());
            assert_eq!(again, Ok(event), "what was read can be said");
        }
    });
}

#[test]
fn invites_and_addresses() {
    let server = Keypair::ed25519_from_bytes([6; 32]).unwrap().public().to_peer_id();
    let at = |text: &str| text.parse::<Multiaddr>().unwrap();
    let over_tls = format!("/dns/hall.example/tcp/443/tls/ws/p2p/{server}");
    let quic = at(&format!("/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{server}"));
    let invite = Invite::generate("kitchen".parse().unwrap(), vec![quic, at(&over_tls)]);
    let valid =
        vec![invite.to_string().into_bytes(), over_tls.into_bytes(), at("/ip4/1.2.3.4/tcp/5").to_vec()];
    check!().with_type::<Input>().for_each(|input| {
        let bytes = input.bytes(&valid);
        if let Ok(addr) = Multiaddr::try_from(bytes.clone()) {
            drop((wss::is_wss(&addr), addr.to_string(), hallway::transport::to_socket_addr(&addr)));
        }
        let Ok(text) = String::from_utf8(bytes) else { return };
        if let Ok(addr) = text.parse::<Multiaddr>() {
            let _ = (wss::is_wss(&addr), hallway::transport::is_dialable(&addr));
        }
        if let Ok(invite) = Invite::from_str(&text) {
            assert_eq!(
                invite.to_string().parse::<Invite>().map(|again| again.to_string()),
                Ok(invite.to_string())
            );
        }
    });
}
