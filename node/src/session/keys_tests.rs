use super::*;
use proptest::prelude::*;

fn sealed(sealer: &mut Sealer, packet: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal(packet, &mut out).unwrap();
    out
}

fn opened(opener: &mut Opener, now: Instant, datagram: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut out = vec![9; 9];
    opener.open(now, datagram, &mut out).map(|_| out)
}

fn pair() -> (OwnKey, Sealer, Opener, Instant) {
    let (key, now) = (OwnKey::random(), Instant::now());
    let mut opener = Opener::new();
    opener.install(now, key.export());
    (key.clone(), Sealer::new(&key.export()), opener, now)
}

#[test]
fn frames_open_once_each_whatever_their_order() {
    let (_, mut sealer, mut opener, now) = pair();
    let mut frames: Vec<_> = (0..2000u32).map(|n| (n, sealed(&mut sealer, &n.to_be_bytes()))).collect();
    frames.chunks_mut(40).for_each(<[_]>::reverse);
    for (n, datagram) in &frames {
        assert_eq!(datagram[0], MEDIA);
        assert!(datagram.len() <= 4 + MAX_OVERHEAD);
        assert_eq!(opened(&mut opener, now, datagram).unwrap(), n.to_be_bytes());
    }
    for (n, datagram) in &frames {
        assert_eq!(opened(&mut opener, now, datagram), Err(OpenError::Replayed { counter: u64::from(*n) }));
    }
    assert_eq!(opener.stats(), OpenStats { opened: 2000, replayed: 2000, ..OpenStats::default() });
}

#[test]
fn a_forgery_is_counted_and_its_original_still_opens() {
    let (_, mut sealer, mut opener, now) = pair();
    let datagram = sealed(&mut sealer, b"speech");
    for at in 1..datagram.len() {
        let mut forged = datagram.clone();
        forged[at] ^= 0x11;
        let mut out = vec![1];
        assert!(opener.open(now, &forged, &mut out).is_err());
        assert!(out.is_empty(), "nothing unauthenticated is handed out");
    }
    assert!(opener.stats().forged > 20);
    assert_eq!(opened(&mut opener, now, &datagram).unwrap(), b"speech");
}

#[test]
fn members_follow_a_ratchet_by_themselves_and_a_newcomer_cannot_read_the_past() {
    let (mut key, mut sealer, mut member, now) = pair();
    let past = sealed(&mut sealer, b"before");
    key.ratchet().unwrap();
    sealer.use_key(&key.export());
    let mut newcomer = Opener::new();
    newcomer.install(now, key.export());
    let present = sealed(&mut sealer, b"after");
    assert_eq!(opened(&mut newcomer, now, &past), Err(OpenError::UnknownKey { kid: key.kid() - 1 }));
    for opener in [&mut member, &mut newcomer] {
        assert_eq!(opened(opener, now, &present).unwrap(), b"after");
    }
    assert_eq!(
        opened(&mut member, now, &past).unwrap(),
        b"before",
        "late frames of the step before still open"
    );
}

#[test]
fn ratchet_steps_are_followed_only_so_far_and_then_need_the_key() {
    let (mut key, mut sealer, mut opener, now) = pair();
    for _ in 0..=MAX_STEPS_AHEAD {
        key.ratchet().unwrap();
    }
    sealer.use_key(&key.export());
    let datagram = sealed(&mut sealer, b"x");
    assert_eq!(opened(&mut opener, now, &datagram), Err(OpenError::UnknownKey { kid: key.kid() }));
    opener.install(now, key.export());
    assert_eq!(opened(&mut opener, now, &datagram).unwrap(), b"x");
    let mut fresh = OwnKey::random();
    assert_eq!((0..100).take_while(|_| fresh.ratchet().is_ok()).count() as u64, MAX_STEP);
    assert_eq!(fresh.ratchet(), Err(Exhausted));
}

#[test]
fn whoever_has_the_old_key_reads_nothing_after_a_renewal() {
    let (mut key, mut sealer, mut leaver, now) = pair();
    let mut member = Opener::new();
    member.install(now, key.export());
    key.renew();
    member.install(now, key.export());
    sealer.use_key(&key.export());
    let datagram = sealed(&mut sealer, b"secret");
    assert!(matches!(opened(&mut leaver, now, &datagram), Err(OpenError::UnknownKey { .. })));
    assert_eq!(opened(&mut member, now, &datagram).unwrap(), b"secret");
}

#[test]
fn the_previous_key_opens_late_frames_for_two_seconds_from_the_first_new_one() {
    let (mut key, mut sealer, mut opener, start) = pair();
    let old: Vec<_> = (0..3).map(|_| sealed(&mut sealer, b"old")).collect();
    key.renew();
    opener.install(start, key.export());
    let later = start + Duration::from_secs(60);
    assert!(opened(&mut opener, later, &old[0]).is_ok(), "no new frame yet: the old key is in use");
    sealer.use_key(&key.export());
    let new = sealed(&mut sealer, b"new");
    assert!(opened(&mut opener, later, &new).is_ok());
    assert!(opened(&mut opener, later + KEY_GRACE - Duration::from_millis(1), &old[1]).is_ok());
    assert!(matches!(opened(&mut opener, later + KEY_GRACE, &old[2]), Err(OpenError::UnknownKey { .. })));
    assert!(matches!(opened(&mut opener, later + KEY_GRACE, &new), Err(OpenError::Replayed { .. })));
}

#[test]
fn an_opener_holds_a_bounded_number_of_keys() {
    let (mut key, mut sealer, mut opener, now) = pair();
    for _ in 0..50 {
        key.renew();
        opener.install(now, key.export());
        opener.install(now, key.export());
        assert!(opener.keys.len() <= MAX_KEYS);
    }
    sealer.use_key(&key.export());
    assert!(opened(&mut opener, now, &sealed(&mut sealer, b"x")).is_ok());
}

#[test]
fn a_step_announced_after_it_was_followed_changes_nothing() {
    let (mut key, mut sealer, mut opener, now) = pair();
    let steps: Vec<_> = (0..3)
        .map(|_| {
            key.ratchet().unwrap();
            key.export()
        })
        .collect();
    sealer.use_key(&steps[2]);
    let datagram = sealed(&mut sealer, b"x");
    assert!(opened(&mut opener, now, &datagram).is_ok());
    for step in steps {
        opener.install(now, step);
    }
    assert!(matches!(opened(&mut opener, now, &datagram), Err(OpenError::Replayed { .. })));
    assert!(opened(&mut opener, now, &sealed(&mut sealer, b"y")).is_ok());
}

#[test]
fn counters_run_on_over_key_changes_so_that_a_frame_has_one_name() {
    let (mut key, mut sealer, _, _) = pair();
    let mut out = Vec::new();
    let mut counters = Vec::new();
    for turn in 0..6 {
        counters.push(sealer.seal(b"x", &mut out).unwrap());
        if turn % 2 == 0 {
            key.ratchet().unwrap()
        } else {
            key.renew()
        }
        sealer.use_key(&key.export());
    }
    assert_eq!(counters, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn two_processes_of_one_identity_share_no_key() {
    let keys: std::collections::HashSet<_> = (0..100).map(|_| OwnKey::random().export().base).collect();
    assert_eq!(keys.len(), 100);
    assert!(!format!("{:?}", OwnKey::random()).contains("base"));
}

#[test]
fn seal_and_open_work_in_the_callers_buffers_and_on_any_thread() {
    let (_, mut sealer, mut opener, now) = pair();
    let (mut datagram, mut packet) = (Vec::with_capacity(1200), Vec::with_capacity(1200));
    let places = (datagram.as_ptr(), packet.as_ptr());
    let speech = [5u8; 300];
    let start = std::time::Instant::now();
    let mut sealing = Duration::ZERO;
    for _ in 0..10_000 {
        let from = std::time::Instant::now();
        sealer.seal(&speech, &mut datagram).unwrap();
        sealing += from.elapsed();
        opener.open(now, &datagram, &mut packet).unwrap();
        assert_eq!(packet, speech);
    }
    println!(
        "300 B, 10,000 frames: seal {} ns, seal and open {} ns a frame",
        sealing.as_nanos() / 10_000,
        start.elapsed().as_nanos() / 10_000
    );
    assert_eq!((datagram.as_ptr(), packet.as_ptr()), places);
    fn is_send<T: Send>() {}
    is_send::<Sealer>();
    is_send::<Opener>();
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), media in any::<bool>()) {
        let (_, mut sealer, mut opener, now) = pair();
        let bytes = if media { [&[MEDIA][..], &bytes].concat() } else { bytes };
        prop_assert!(opened(&mut opener, now, &bytes).is_err());
        let datagram = sealed(&mut sealer, b"still fine");
        prop_assert_eq!(opened(&mut opener, now, &datagram).unwrap(), b"still fine");
    }

    #[test]
    fn any_packet_reads_back(packet in proptest::collection::vec(any::<u8>(), 0..1060)) {
        let (_, mut sealer, mut opener, now) = pair();
        let datagram = sealed(&mut sealer, &packet);
        prop_assert!(datagram.len() <= packet.len() + MAX_OVERHEAD);
        prop_assert_eq!(opened(&mut opener, now, &datagram).unwrap(), packet);
    }
}
