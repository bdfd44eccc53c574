use super::*;
use proptest::prelude::*;
use zeroize::Zeroizing;

fn pair(now: Instant) -> (Channel, Channel) {
    let keys = |send: u8, receive: u8| Keys {
        id: 5,
        send: Zeroizing::new([send; 32]),
        receive: Zeroizing::new([receive; 32]),
    };
    (Channel::new(&keys(1, 2), Rtt::default(), now), Channel::new(&keys(2, 1), Rtt::default(), now))
}

#[test]
fn small_messages_share_a_datagram() {
    let now = Instant::now();
    let (mut ana, mut ben) = pair(now);
    for n in 0..5u8 {
        ana.send_message(&[n]).unwrap();
        ana.send_unreliable(&[n]).unwrap();
    }
    let datagram = ana.poll_transmit(now).unwrap();
    assert!(ana.poll_transmit(now).is_none());
    assert_eq!(ben.handle_datagram(now, &datagram).unwrap().len(), 10);
}

#[test]
fn a_ping_measures_the_round_trip() {
    let now = Instant::now();
    let (mut ana, mut ben) = pair(now);
    ana.speak_up();
    let ping = ana.poll_transmit(now).unwrap();
    let later = now + Duration::from_millis(80);
    ben.handle_datagram(later, &ping).unwrap();
    let pong = ben.poll_transmit(later).unwrap();
    ana.handle_datagram(later, &pong).unwrap();
    assert_eq!(ana.rtt(), Some(Duration::from_millis(80)));
}

#[test]
fn frames_of_later_versions_are_skipped_with_what_follows_them() {
    let now = Instant::now();
    let (mut ana, mut ben) = pair(now);
    let plain = [&[3, 0, 1, b'x'][..], &[200, 1, 2, 3], &[3, 0, 1, b'y']].concat();
    let datagram = ana.sealing.seal(now, &plain).unwrap();
    assert_eq!(ben.handle_datagram(now, &datagram).unwrap(), [Said::Unreliable(b"x".to_vec())]);
}

#[test]
fn a_quiet_channel_pings_every_two_seconds_and_is_lost_after_twelve() {
    let start = Instant::now();
    let (mut ana, _) = pair(start);
    assert_eq!(ana.poll_timeout(start), Some(start + KEEP_ALIVE));
    assert!(ana.poll_transmit(start + KEEP_ALIVE - Duration::from_millis(1)).is_none());
    assert!(ana.poll_transmit(start + KEEP_ALIVE).is_some());
    assert!(!ana.is_lost(start + LOST_AFTER - Duration::from_millis(1)));
    assert!(ana.is_lost(start + LOST_AFTER));
}

proptest! {
    #[test]
    fn any_sealed_bytes_of_a_member_never_panic(plains in proptest::collection::vec(
        proptest::collection::vec(prop_oneof![0u8..8, any::<u8>()], 0..200), 1..20)) {
        let now = Instant::now();
        let (mut ana, mut ben) = pair(now);
        for plain in plains {
            let datagram = ana.sealing.seal(now, &plain).unwrap();
            ben.handle_datagram(now, &datagram).unwrap();
            while ben.poll_transmit(now).is_some() {}
        }
        // Nothing that was acknowledged or sent out of turn blocks what comes next from the other side.
        ben.send_message(b"after").unwrap();
        prop_assert!(ben.poll_transmit(now).is_some());
    }
}
