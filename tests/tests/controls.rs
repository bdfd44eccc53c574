//! What a person sets while talking, in two whole nodes: how soon it takes effect, and what is heard then.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::path::Path;
use std::time::{Duration, Instant};

use hallway::audio::{Audio, AudioConfig, InputSpec, OutputSpec};
use hallway::controls::Speak;
use hallway::events::{Event, Notice, Stamped};
use hallway::invite::Invite;
use hallway::meters::Meters;
use hallway::node::{Answer, Command, Config, Node, Order, PathChoice, Snapshot};
use hallway::volumes::Volumes;
use hallway_tests::hall::config;
use hallway_tests::process::SOON;
use hallway_tests::sound;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// A node in this process, and the person at it.
struct Talker {
    id: PeerId,
    orders: mpsc::Sender<Order>,
    happened: mpsc::Receiver<Stamped>,
    meters: Meters,
    running: tokio::task::JoinHandle<()>,
}

impl Talker {
    async fn start(
        invite: &Invite,
        name: &str,
        input: &str,
        output: &str,
        dir: &Path,
        peers: Vec<(PeerId, Vec<Multiaddr>)>,
    ) -> Talker {
        let keypair = Keypair::generate_ed25519();
        let id = keypair.public().to_peer_id();
        let (input_spec, output_spec): (InputSpec, OutputSpec) =
            (input.parse().unwrap(), output.parse().unwrap());
        let sound = AudioConfig { input: input_spec, output: output_spec, ..AudioConfig::default() };
        let audio = Audio::open(sound).unwrap();
        let config = Config {
            path: PathChoice::Direct,
            tcp: false,
            peers,
            wait_anyway: false,
            input: input.into(),
            output: output.into(),
            volumes: Volumes::load(dir),
            ..config(keypair, name, invite)
        };
        let (events, happened) = mpsc::channel(hallway::events::MAX_WAITING_EVENTS);
        let (orders, asked) = mpsc::channel(hallway::node::MAX_WAITING_ORDERS);
        let node = Node::start(config, audio, events).await.unwrap();
        let meters = node.meters();
        let running = tokio::task::spawn_local(async move { drop(node.run(asked).await.unwrap()) });
        Talker { id, orders, happened, meters, running }
    }

    async fn wait<T>(&mut self, what: &str, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        let found = async {
            loop {
                if let Some(found) = wanted(self.happened.recv().await.expect(what).event) {
                    return found;
                }
            }
        };
        timeout(SOON, found).await.unwrap_or_else(|_| panic!("{what} does not come"))
    }

    async fn ask(&self, command: Command) -> Result<Answer, Notice> {
        let (order, answered) = Order::asking(command);
        self.orders.send(order).await.unwrap();
        timeout(SOON, answered).await.expect("an answer in time").expect("an answer")
    }

    async fn snapshot(&self) -> Box<Snapshot> {
        match self.ask(Command::Snapshot).await {
            Ok(Answer::Snapshot(snapshot)) => snapshot,
            other => panic!("{other:?}"),
        }
    }

    async fn leave(self) {
        self.ask(Command::Leave).await.unwrap();
        timeout(SOON, self.running).await.expect("in time").unwrap();
    }
}

/// Waits until it is so, and says how long that took.
async fn until(what: &str, is_so: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON, "{what} does not come");
        sleep(Duration::from_micros(200)).await;
    }
    begun.elapsed()
}

/// Loudness of the last part of a recording that is being written, dBFS.
fn loudness(path: &Path, seconds: f64) -> f64 {
    let bytes = std::fs::read(path).unwrap();
    let wanted = (seconds * 48_000.0) as usize * 2;
    let tail = &bytes[44.max(bytes.len() - wanted.min(bytes.len()))..];
    let samples: Vec<f32> = tail
        .chunks_exact(2)
        .map(|pair| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32768.0)
        .collect();
    20.0 * sound::loudness(&samples).max(1e-7).log10()
}

async fn settles(path: &Path, what: &str, at: impl Fn(f64) -> bool) -> f64 {
    let (began, mut last) = (Instant::now(), f64::NAN);
    while began.elapsed() < Duration::from_secs(15) {
        // The recording is written in blocks: a new one is waited for.
        sleep(Duration::from_millis(100)).await;
        last = loudness(path, 0.3);
        if at(last) {
            return last;
        }
    }
    panic!("{what}: {last} dB in the end")
}

#[tokio::test(flavor = "current_thread")]
async fn every_control_takes_effect_at_once_and_is_heard() {
    tokio::task::LocalSet::new().run_until(controls()).await;
}

async fn controls() {
    let dir = tempfile::tempdir().unwrap();
    let heard = dir.path().join("heard.wav");
    let invite = Invite::generate("kitchen".parse().unwrap(), Vec::new());
    let (homes, null) = (dir.path(), "null");
    let mut ana = Talker::start(&invite, "ana", "tone:400", null, &homes.join("ana"), Vec::new()).await;
    let listen = ana.wait("ready", |event| match event {
        Event::Ready { listen, .. } => Some(listen),
        _ => None,
    });
    let listen = listen.await;
    let peers = vec![(ana.id, listen)];
    std::fs::create_dir(homes.join("ben")).unwrap();
    let output = format!("file:{}", heard.display());
    let mut ben = Talker::start(&invite, "ben", "silence", &output, &homes.join("ben"), peers).await;
    ben.wait("ana's voice", |event| matches!(event, Event::FirstAudio { .. }).then_some(())).await;

    // Muted: from the order to the gate before the encoder.
    until("an open microphone", || ana.meters.is_open()).await;
    let mut took = Vec::new();
    for round in 0..20 {
        let on = round % 2 == 0;
        ana.orders.send(Command::Mute { on }.into()).await.unwrap();
        took.push(until("the gate", || ana.meters.is_open() != on).await);
        sleep(Duration::from_millis(7)).await;
    }
    took.sort();
    println!("mute to the gate before the encoder: median {:?}, longest {:?}", took[10], took[19]);
    // A frame of the encoder is 5 ms; what waits for a beat of a tenth of a second would show even on a busy machine.
    assert!(took[10] < Duration::from_millis(40), "{took:?}");

    // Push to talk, and by voice.
    ana.ask(Command::Speak { when: Speak::PushToTalk }).await.unwrap();
    until("a closed microphone", || !ana.meters.is_open()).await;
    ana.ask(Command::Press { down: true }).await.unwrap();
    until("an open microphone", || ana.meters.is_open()).await;
    ana.ask(Command::Speak { when: Speak::Voice }).await.unwrap();
    ana.ask(Command::Threshold { dbov: -10 }).await.unwrap();
    until("too quiet for the threshold", || !ana.meters.is_open()).await;
    ana.ask(Command::Threshold { dbov: -40 }).await.unwrap();
    until("loud enough", || ana.meters.is_open()).await;
    let told = ana.wait("what is set", |event| match event {
        Event::Controls(controls) if controls.threshold_dbov == -40 => Some(controls),
        _ => None,
    });
    assert_eq!(told.await.speak, Speak::Voice);

    // One person's volume.
    let silent = |loudness: f64| loudness < -80.0;
    let loud = settles(&heard, "the tone of −23 dBFS", |loud| (-26.0..-20.0).contains(&loud)).await;
    ben.ask(Command::Volume { peer_id: ana.id, volume_db: -12 }).await.unwrap();
    let turned = settles(&heard, "12 dB less", |now| (loud - now - 12.0).abs() < 1.0).await;
    ben.ask(Command::MutePerson { peer_id: ana.id, on: true }).await.unwrap();
    settles(&heard, "one person muted", silent).await;
    ben.ask(Command::MutePerson { peer_id: ana.id, on: false }).await.unwrap();
    settles(&heard, "heard again", |now| (now - turned).abs() < 1.5).await;
    ben.ask(Command::Deafen { on: true }).await.unwrap();
    settles(&heard, "deafened", silent).await;
    ben.ask(Command::Deafen { on: false }).await.unwrap();
    settles(&heard, "undeafened", |now| (now - turned).abs() < 1.5).await;
    let snapshot = ben.snapshot().await;
    let person = snapshot.people.iter().find(|person| person.peer_id == ana.id).expect("ana");
    assert_eq!((person.hearing.volume_db, person.name.as_deref()), (-12, Some("ana")));
    assert!(person.stats.is_some() && person.level_dbov > Some(-40.0) && !snapshot.open, "{snapshot:?}");
    let nobody = ben.ask(Command::Volume { peer_id: PeerId::random(), volume_db: 0 }).await;
    assert_eq!(nobody.unwrap_err().code, "nobody");

    // Another device, while talking; one that is not there changes nothing.
    ana.ask(Command::Device { end: hallway::audio::End::Input, name: "silence".into() }).await.unwrap();
    settles(&heard, "a silent input", silent).await;
    let refused =
        ana.ask(Command::Device { end: hallway::audio::End::Input, name: "file:/nowhere.wav".into() });
    assert!(refused.await.unwrap_err().message.contains("stays as it is"));
    ana.ask(Command::Device { end: hallway::audio::End::Input, name: "tone:500".into() }).await.unwrap();
    settles(&heard, "another tone, as loud as the first", |now| (now - turned).abs() < 1.5).await;
    assert_eq!(ana.snapshot().await.input, "tone:500");

    // A line, told to us as well; and all of it is gone in order. The volume is remembered.
    ana.ask(Command::Chat { text: "bye".into() }).await.unwrap();
    let said = ben.wait("a line", |event| match event {
        Event::Chat { text, .. } => Some(text),
        _ => None,
    });
    assert_eq!(said.await, "bye");
    ana.wait("our own line", |event| matches!(event, Event::Said { .. }).then_some(())).await;
    let ana_id = ana.id;
    ana.leave().await;
    ben.leave().await;
    assert_eq!(Volumes::load(&homes.join("ben")).of(&ana_id).volume_db, -12);
}
