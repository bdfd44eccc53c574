//! Somebody uninvolved whose address is given out in every room: what it gets from the members. Whole nodes, many in this
//! process, each in a room of its own at a real server, where three others claim to be reached at the victim's address.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, HashSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use hallway::audio::{Audio, AudioConfig, InputSpec, MAX_PERIOD, OutputSpec};
use hallway::invite::Invite;
use hallway::node::{self, Command, Node, swarm};
use hallway::rendezvous::{
    Behaviour, Client, ClientConfig, Opener, Target, limits::Limits, policy::DIALS_PER_ADDRESS,
};
use hallway_tests::Hall;
use hallway_tests::hall::{config, quic};
use hallway_tests::stranger::first_packet;
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use tokio::sync::mpsc;

/// Members at a time: what two cores carry.
const BATCH: usize = 30;
/// Liars in each room, all with the victim's address.
const LIARS: usize = 3;
/// How long members are watched after the last one has been told: tries that failed are repeated after 1, 2, 4, 8 and 16 s.
const WATCHED: Duration = Duration::from_secs(34);

/// What came from one socket.
#[derive(Default)]
struct Sender {
    /// QUIC handshakes, told apart by the connection id that they begin with.
    dials: HashSet<Vec<u8>>,
    bytes: usize,
    /// Packets that begin no handshake.
    others: usize,
}

/// By batch and address: a later batch may get the port of a member that has left.
type Senders = BTreeMap<(usize, SocketAddr), Sender>;
/// Said instead of a batch: there are no more.
const END: usize = usize::MAX;

/// Takes everything in and never answers.
fn victim(socket: UdpSocket, batch: Arc<AtomicUsize>) -> std::thread::JoinHandle<Senders> {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    std::thread::spawn(move || {
        let (mut senders, mut packet) = (Senders::new(), [0; 2048]);
        loop {
            let batch = batch.load(Ordering::Relaxed);
            if batch == END {
                break;
            }
            let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
            let sender = senders.entry((batch, from)).or_default();
            sender.bytes += length;
            match first_packet(&packet[..length]) {
                Some(id) => _ = sender.dials.insert(id),
                None => sender.others += 1,
            }
        }
        senders
    })
}

/// Somebody with connections to the server, to register under its own name in many rooms.
fn liar() -> (Keypair, Opener) {
    let (keypair, (behaviour, opener)) = (Keypair::generate_ed25519(), Behaviour::client());
    let setup = swarm::Setup::plain(behaviour);
    let (mut swarm, connections) = swarm::build(&keypair, setup).unwrap();
    tokio::spawn(async move {
        let _connections = connections;
        loop {
            swarm.select_next_some().await;
        }
    });
    (keypair, opener)
}

async fn member(room: &Invite, at: &Multiaddr, until: Instant) {
    let audio = AudioConfig {
        input: InputSpec::Silence,
        output: OutputSpec::Null,
        period: MAX_PERIOD,
        ..AudioConfig::default()
    };
    let config = node::Config {
        rendezvous: vec![at.clone()],
        ..config(Keypair::generate_ed25519(), "somebody", room)
    };
    let (events, mut told) = mpsc::channel(64);
    let (orders, asked) = mpsc::channel(1);
    let node = Node::start(config, Audio::open(audio).unwrap(), events).await.unwrap();
    let reading = tokio::spawn(async move { while told.recv().await.is_some() {} });
    let running = tokio::spawn(node.run(asked));
    tokio::time::sleep_until(until.into()).await;
    let _ = orders.send(Command::Leave.into()).await;
    running.await.unwrap().unwrap();
    reading.await.unwrap();
}

/// So many members are told; gives what each of them sent to the victim.
async fn told(members: usize) -> Senders {
    let hall = Hall::open();
    let at: Multiaddr = hall.at.parse().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let named: Multiaddr = quic(socket.local_addr().unwrap()).parse().unwrap();
    let batch = Arc::new(AtomicUsize::new(0));
    let victim = victim(socket, batch.clone());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for first in (0..members).step_by(BATCH) {
        batch.store(first, Ordering::Relaxed);
        let rooms =
            (first..members.min(first + BATCH)).map(|i| format!("room-{i}").parse::<Invite>().unwrap());
        // The name of a room is slow to compute on purpose.
        let rooms: Vec<(Invite, String)> =
            rooms.map(|room| (room.clone(), room.secrets().namespace(now))).collect();
        let mut claims = Vec::new();
        // A server lets one of them watch eight rooms.
        for rooms in rooms.chunks(Limits::default().watches_per_peer).flat_map(|rooms| [rooms; LIARS]) {
            let (keypair, opener) = liar();
            for (_, namespace) in rooms {
                let server = Target::from_multiaddr(&at);
                let mut config = ClientConfig::new(server, keypair.clone(), namespace.clone(), None);
                config.addresses = vec![named.clone()];
                let (client, mut events) = Client::spawn(config, opener.clone()).unwrap();
                tokio::spawn(async move { while events.recv().await.is_some() {} });
                claims.push(client);
            }
        }
        let until = Instant::now() + WATCHED;
        let nodes = rooms.iter().map(|(room, _)| member(room, &at, until));
        futures::future::join_all(nodes).await;
        println!("{} of {members} members were told", first + rooms.len());
    }
    batch.store(END, Ordering::Relaxed);
    victim.join().unwrap()
}

async fn a_victim_named_to(members: usize) {
    let senders = told(members).await;
    let most = senders.values().map(|sender| sender.dials.len()).max().unwrap_or(0);
    let dials: usize = senders.values().map(|sender| sender.dials.len()).sum();
    let bytes: Vec<usize> = senders.values().map(|sender| sender.bytes).collect();
    println!(
        "{members} members: {} of them dialled, {dials} times in all, one at most {most} times; at most {} bytes of \
         one, {:.0} on average",
        senders.len(),
        bytes.iter().max().unwrap_or(&0),
        bytes.iter().sum::<usize>() as f64 / bytes.len().max(1) as f64,
    );
    assert!(senders.len() * 10 >= members * 9, "they were told of it: {} of {members}", senders.len());
    assert!(senders.len() <= members, "one socket each");
    assert!(most <= DIALS_PER_ADDRESS, "{most} dials of one member");
    assert_eq!(senders.values().map(|sender| sender.others).sum::<usize>(), 0, "nothing but handshakes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bystander_named_to_thirty_members_gets_at_most_three_handshakes_of_each_and_nothing_else() {
    a_victim_named_to(BATCH).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half an hour: cargo test --release --workspace --test bystander -- --ignored --nocapture"]
async fn a_bystander_named_to_a_thousand_members_gets_at_most_three_handshakes_of_each_and_nothing_else() {
    a_victim_named_to(1000).await;
}
