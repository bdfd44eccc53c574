use super::*;
use crate::invite::{Invite, Secret};
use proptest::prelude::*;

fn local(seed: u8, secret: u8) -> Local {
    let room = Invite {
        room: "kitchen".parse().unwrap(),
        secret: Some(Secret::from_bytes([secret; 32])),
        rendezvous: vec![],
        terms: Default::default(),
    };
    Local::new(&Keypair::ed25519_from_bytes([seed; 32]).unwrap(), &room.secrets()).unwrap()
}

fn body(datagram: &[u8]) -> &[u8] {
    match Datagram::parse(datagram).unwrap() {
        Datagram::Hello { noise, .. } | Datagram::Answer { noise, .. } | Datagram::Proof { noise, .. } => {
            noise
        }
        Datagram::Refusal { .. } => panic!("a refusal"),
    }
}

fn call(ana: &Local, ben: &Local) -> (Hello, Answer) {
    let hello = Hello::new(ana, &ben.peer()).unwrap();
    let answer = Answer::new(ben, &ana.peer(), hello.id, body(&hello.datagram)).unwrap();
    (hello, answer)
}

#[test]
fn both_ends_arrive_at_the_same_keys_and_name() {
    let (ana, ben) = (local(1, 7), local(2, 7));
    let (hello, answer) = call(&ana, &ben);
    let lengths = (hello.datagram.len(), answer.datagram.len());
    let Step::Done(proof) = hello.handle_answer(body(&answer.datagram), &ben.peer()) else { panic!() };
    assert_eq!((lengths, proof.datagram.len()), ((75, 207), 175), "as docs/wire.md says");
    let Step::Done(keys) = answer.handle_proof(body(&proof.datagram)) else { panic!() };
    assert_eq!((proof.keys.send, proof.keys.receive, proof.keys.id), (keys.receive, keys.send, keys.id));
}

#[test]
fn a_handshake_costs_about_a_millisecond() {
    let (ana, ben) = (local(1, 7), local(2, 7));
    let start = std::time::Instant::now();
    for _ in 0..50 {
        let (hello, answer) = call(&ana, &ben);
        let Step::Done(proof) = hello.handle_answer(body(&answer.datagram), &ben.peer()) else { panic!() };
        assert!(matches!(answer.handle_proof(body(&proof.datagram)), Step::Done(_)));
    }
    println!("handshake, both ends: {} us", start.elapsed().as_micros() / 50);
}

#[test]
fn a_forged_answer_leaves_the_call_as_it_was() {
    let (ana, ben) = (local(1, 7), local(2, 7));
    let (mut hello, answer) = call(&ana, &ben);
    let good = body(&answer.datagram).to_vec();
    for at in 0..good.len() {
        let mut forged = good.clone();
        forged[at] ^= 1;
        match hello.handle_answer(&forged, &ben.peer()) {
            Step::Again { this, .. } => hello = this,
            _ => panic!("byte {at} is not covered"),
        }
    }
    assert!(matches!(hello.handle_answer(&good, &ben.peer()), Step::Done(_)));
}

#[test]
fn a_wrong_secret_shows_in_the_third_message_as_proven_and_garbage_does_not() {
    let (ana, ben) = (local(1, 8), local(2, 7));
    let (hello, answer) = call(&ana, &ben);
    let Step::Done(proof) = hello.handle_answer(body(&answer.datagram), &ben.peer()) else { panic!() };
    let Step::Again { this, proven: false } = answer.handle_proof(&[1; 165]) else { panic!() };
    assert!(matches!(this.handle_proof(body(&proof.datagram)), Step::Again { proven: true, .. }));
}

#[test]
fn a_forged_proof_leaves_the_answer_as_it_was() {
    let (ana, ben) = (local(1, 7), local(2, 7));
    let (hello, mut answer) = call(&ana, &ben);
    let Step::Done(proof) = hello.handle_answer(body(&answer.datagram), &ben.peer()) else { panic!() };
    let good = body(&proof.datagram).to_vec();
    for at in 0..good.len() {
        let mut forged = good.clone();
        forged[at] ^= 1;
        match answer.handle_proof(&forged) {
            Step::Again { this, .. } => answer = this,
            _ => panic!("byte {at} is not covered"),
        }
    }
    assert!(matches!(answer.handle_proof(&good), Step::Done(_)));
}

#[test]
fn an_identity_that_is_not_the_transports_is_refused_by_either_side() {
    let (ana, ben, eve) = (local(1, 7), local(2, 7), local(3, 7));
    let other = eve.peer();
    // The prologue would stop this before; here both ends are told the expected names, only the proof is Eve's.
    let disguised = |of: &Local, seed: u8| {
        let mut inner = Inner {
            peer: of.peer(),
            proof: of.0.proof.clone(),
            static_key: of.0.static_key.clone(),
            psk: of.0.psk.clone(),
            room: of.0.room.clone(),
        };
        inner.peer = local(seed, 7).peer();
        Local(Arc::new(inner))
    };
    let eve_as_ben = disguised(&eve, 2);
    let (hello, answer) = call(&ana, &eve_as_ben);
    assert!(matches!(
        hello.handle_answer(body(&answer.datagram), &ben.peer()),
        Step::Refuse(Refusal::Identity)
    ));
    let eve_as_ana = disguised(&eve, 1);
    let (hello, answer) = call(&eve_as_ana, &ben);
    let Step::Done(proof) = hello.handle_answer(body(&answer.datagram), &ben.peer()) else { panic!() };
    assert!(matches!(answer.handle_proof(body(&proof.datagram)), Step::Refuse(Refusal::Identity)));
    assert_ne!(other, ana.peer());
}

#[test]
fn an_identity_proof_copied_from_its_owner_does_not_fit_another_noise_key() {
    let (ana, ben, eve) = (local(1, 7), local(2, 7), local(3, 7));
    // Eve has once met Ben and kept the proof that he sent: his public key and his signature over his Noise key.
    let eve_as_ben = Local(Arc::new(Inner {
        peer: ben.peer(),
        proof: ben.0.proof.clone(),
        static_key: eve.0.static_key.clone(),
        psk: eve.0.psk.clone(),
        room: eve.0.room.clone(),
    }));
    let (hello, answer) = call(&ana, &eve_as_ben);
    assert!(matches!(
        hello.handle_answer(body(&answer.datagram), &ben.peer()),
        Step::Refuse(Refusal::Identity)
    ));
    let (hello, answer) = call(&eve_as_ben, &ana);
    let Step::Done(proof) = hello.handle_answer(body(&answer.datagram), &ana.peer()) else { panic!() };
    assert!(matches!(answer.handle_proof(body(&proof.datagram)), Step::Refuse(Refusal::Identity)));
}

#[test]
fn a_first_message_for_somebody_else_is_not_answered_to_the_end() {
    let (ana, ben, eve) = (local(1, 7), local(2, 7), local(3, 7));
    let hello = Hello::new(&ana, &eve.peer()).unwrap();
    assert_ne!(expected_tag(&ben, &ana.peer()), expected_tag(&eve, &ana.peer()));
    assert!(Answer::new(&ben, &ana.peer(), hello.id, body(&hello.datagram)).is_none());
}

proptest! {
    #[test]
    fn any_datagram_is_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 0u8..6) {
        let _ = Datagram::parse(&bytes);
        let framed = [&[HANDSHAKE, kind][..], &bytes].concat();
        if let Some(Datagram::Hello { noise, .. } | Datagram::Answer { noise, .. } | Datagram::Proof { noise, .. })
            = Datagram::parse(&framed) {
            prop_assert!(noise.len() <= MAX_NOISE);
        }
    }

    #[test]
    fn any_identity_payload_is_refused(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(!is_proof_of(&local(1, 7).peer(), &payload, Some(&[1; 32])));
        prop_assert!(!is_proof_of(&local(1, 7).peer(), &payload, None));
    }
}
