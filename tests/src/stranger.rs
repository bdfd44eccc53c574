//! Somebody who knows the protocols and means no good: raw connections to a node in a call, on our own transport.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hallway::invite::Invite;
use hallway::session::{Event, Local, Session};
use hallway::transport::{Authenticated, Config, Muxer, QuicTransport};
use libp2p::core::Endpoint;
use libp2p::core::transport::{DialOpts, PortUse, Transport};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use crate::process::SOON;

/// Datagrams a second that one of them sends: far above a call's, far below what would merely starve the machine.
pub const DATAGRAMS_PER_S: u32 = 4000;
const BATCH: usize = 20;

/// One identity and its socket.
pub struct Stranger {
    /// Who.
    pub keypair: Keypair,
    transport: QuicTransport,
    authenticated: Receiver<Authenticated>,
    muxers: Vec<Muxer>,
}

impl Stranger {
    /// Somebody new.
    pub fn new() -> Stranger {
        let keypair = Keypair::generate_ed25519();
        let (transport, authenticated) = QuicTransport::new(Config::new(&keypair).unwrap());
        Stranger { keypair, transport, authenticated, muxers: Vec::new() }
    }

    /// Its PeerId.
    pub fn peer_id(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    /// A connection to whoever listens there.
    pub async fn dial(&mut self, addr: &str) -> quinn::Connection {
        let addr: Multiaddr = addr.parse().unwrap();
        let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
        let dialling = timeout(SOON, self.transport.dial(addr, opts).unwrap());
        let (_, muxer) = dialling.await.expect("an answer in time").expect("a connection");
        // Dropping it would close the connection.
        self.muxers.push(muxer);
        self.authenticated.recv().await.expect("the connection itself").connection
    }

    /// The first message of a handshake for this room.
    pub fn hello(&self, invite: &Invite, to: PeerId) -> Vec<u8> {
        let now = Instant::now();
        let mut session = self.session(invite, to);
        session.connect(now);
        session.poll_transmit(now).expect("a hello")
    }

    fn session(&self, invite: &Invite, to: PeerId) -> Session {
        Session::new(&Local::new(&self.keypair, &invite.secrets()).unwrap(), to, Instant::now())
    }

    /// Becomes a member of the room: a whole handshake.
    pub async fn join(&self, connection: quinn::Connection, invite: &Invite, to: PeerId) -> Member {
        let mut member = Member { session: self.session(invite, to), connection, sent: Vec::new() };
        member.session.connect(Instant::now());
        let until = Instant::now() + SOON;
        while !member.session.is_established() {
            assert!(Instant::now() < until, "no session");
            member.listen(Duration::from_millis(100)).await;
        }
        member
    }
}

impl Default for Stranger {
    fn default() -> Self {
        Self::new()
    }
}

/// One inside: holds a session, and says in it what it likes.
pub struct Member {
    session: Session,
    /// The connection under it.
    pub connection: quinn::Connection,
    /// Every session datagram that it sent, to be sent again.
    pub sent: Vec<Vec<u8>>,
}

impl Member {
    /// Takes in what comes for this long, and answers as the session wants.
    pub async fn listen(&mut self, time: Duration) -> Vec<Event> {
        let until = Instant::now() + time;
        let mut events = Vec::new();
        loop {
            let now = Instant::now();
            while let Some(datagram) = self.session.poll_transmit(now) {
                self.sent.push(datagram.clone());
                let _ = self.connection.send_datagram(datagram.into());
            }
            while let Some(event) = self.session.poll_event() {
                events.push(event);
            }
            let left = until.saturating_duration_since(now).min(Duration::from_millis(10));
            if left.is_zero() {
                return events;
            }
            if let Ok(Ok(datagram)) = timeout(left, self.connection.read_datagram()).await {
                self.session.handle_datagram(Instant::now(), &datagram);
            }
        }
    }

    /// Says a control message, whatever it is.
    pub fn say(&mut self, message: Vec<u8>) {
        self.session.send_message(Instant::now(), message).expect("room for one more message");
    }
}

/// Sends datagrams at [`DATAGRAMS_PER_S`]; gives how many. Ends early where the other side closes.
pub async fn pelt(connection: &quinn::Connection, datagrams: impl IntoIterator<Item = Vec<u8>>) -> usize {
    let mut beat = tokio::time::interval(Duration::from_secs(1) * BATCH as u32 / DATAGRAMS_PER_S);
    let mut count = 0;
    for datagram in datagrams {
        if count % BATCH == 0 {
            beat.tick().await;
        }
        // Too large for the path, or the other side had enough: both are answers.
        let _ = connection.send_datagram(Bytes::from(datagram));
        count += 1;
    }
    count
}

/// What tells a QUIC handshake from others, where this is one of its first packets: the connection id that they are sent to
/// (RFC 9000 section 17.2.2). Every handshake has its own, repetitions the same.
pub fn first_packet(packet: &[u8]) -> Option<Vec<u8>> {
    let (first, rest) = packet.split_first()?;
    let (_version, rest) = rest.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first()?;
    (first & 0b1111_0000 == 0b1100_0000).then(|| rest.get(..usize::from(*length)).map(<[u8]>::to_vec))?
}

/// Random bytes behind every kind of first byte, of every length that may be of interest.
pub fn garbage(seed: u64, count: usize) -> Vec<Vec<u8>> {
    const KINDS: [u8; 9] = [0x01, 0x10, 0x11, 0x00, 0x02, 0x12, 0x40, 0x7f, 0xff];
    const LENGTHS: [usize; 14] = [0, 1, 2, 3, 9, 10, 11, 17, 27, 64, 200, 512, 1100, 1180];
    let mut luck = ChaCha8Rng::seed_from_u64(seed);
    let one = |i: usize| {
        let mut bytes = vec![0; LENGTHS[luck.random_range(0..LENGTHS.len())]];
        luck.fill_bytes(&mut bytes);
        if let Some(first) = bytes.first_mut() {
            *first = KINDS[i % KINDS.len()];
        }
        // Handshake messages have a second byte that counts, 1 to 4.
        if let [0x10, second, ..] = &mut bytes[..] {
            *second = luck.random_range(0..6);
        }
        bytes
    };
    (0..count).map(one).collect()
}

/// A datagram again and again, cut off at every length, with every byte changed, and too long.
pub fn variations(seed: u64, datagram: &[u8]) -> Vec<Vec<u8>> {
    let mut luck = ChaCha8Rng::seed_from_u64(seed);
    let mut all = vec![datagram.to_vec(); 20];
    all.extend((0..datagram.len()).map(|length| datagram[..length].to_vec()));
    all.extend((1..datagram.len()).map(|at| {
        let mut changed = datagram.to_vec();
        changed[at] ^= luck.random_range(1..=255u8);
        changed
    }));
    all.push([datagram, &[0x55; 400]].concat());
    all
}
