//! A rendezvous server that means no good. It withholds who is there, tells forged and old records, people who do not exist
//! and a victim's address for everybody's; of voice it passes on one datagram in [`DROPS`], and that changed, repeated and
//! under another's number too. Whatever else members send each other through it, it passes on, and old datagrams after it,
//! so that the way through it seems to be a good one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncReadExt as _, StreamExt as _};
use hallway::forward::wire::{
    self as forward, FORWARD_PROTOCOL, ForwardEvent, ForwardRequest, MAX_CONTROL, Member, Members, Opened,
    Refusal, down, is_voice, read_bind, read_up,
};
use hallway::node::swarm;
use hallway::rendezvous::Behaviour;
use hallway::rendezvous::record::{Form, sign, verify};
use hallway::rendezvous::streams::Inbound;
use hallway::rendezvous::wire::{
    self, MAX_REQUEST, RegisterResponse, Snapshot, Status, WATCH_PROTOCOL, WatchEvent, WatchRequest,
};
use hallway::transport::Authenticated;
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId};
use tokio::runtime::Runtime;

use crate::process::SOON;

/// Of so many datagrams of voice one is passed on: once changed, once under another's number, three times as it is.
const DROPS: u64 = 20;
/// Datagrams kept to be sent again later.
const KEPT: usize = 64;
/// How often it tells something new that is not true.
const LIES_EVERY: Duration = Duration::from_millis(500);

/// The server. Ends when it is dropped.
pub struct Liar {
    /// Its address with its PeerId, for `--at`.
    pub at: String,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

/// What it did.
#[derive(Debug, Default)]
pub struct Deeds {
    /// Voice that it was given to pass on.
    pub voice: AtomicU64,
    /// Datagrams that hold no voice, passed on once and as they were.
    pub honest: AtomicU64,
    /// Datagrams that it sent besides: changed, again, or under another's number.
    pub forged: AtomicU64,
    /// Untrue records, lists and addresses that it told.
    pub told: AtomicU64,
}

struct Shared {
    deeds: Deeds,
    /// Whom it names as the address of everybody.
    victim: Multiaddr,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// A member's number is its place.
    members: Vec<PeerId>,
    connections: HashMap<PeerId, quinn::Connection>,
    records: HashMap<PeerId, Vec<u8>>,
    kept: Vec<(u8, Bytes)>,
}

impl Liar {
    /// Listens on loopback. Whoever asks is told that others are at `victim`.
    pub fn start(victim: Multiaddr) -> Liar {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared =
            Arc::new(Shared { deeds: Deeds::default(), victim, state: Mutex::new(State::default()) });
        let (keypair, (behaviour, mut incoming)) = (Keypair::generate_ed25519(), Behaviour::server());
        let setup = swarm::Setup::plain(behaviour);
        let (ready, listens) = std::sync::mpsc::channel();
        let of_loop = shared.clone();
        let id = keypair.public().to_peer_id();
        runtime.spawn(async move {
            let (mut swarm, mut connections) = swarm::build(&keypair, setup).unwrap();
            swarm.listen_on(crate::hall::QUIC4.parse().unwrap()).unwrap();
            loop {
                tokio::select! {
                    event = swarm.select_next_some() => {
                        if let SwarmEvent::NewListenAddr { address, .. } = event {
                            let _ = ready.send(address);
                        }
                    }
                    Some(connection) = connections.recv() => {
                        tokio::spawn(carry(of_loop.clone(), connection));
                    }
                    Some(inbound) = incoming.next() => {
                        tokio::spawn(serve(of_loop.clone(), inbound));
                    }
                }
            }
        });
        let address = listens.recv_timeout(SOON).expect("an address");
        Liar { at: format!("{address}/p2p/{id}"), shared, _runtime: runtime }
    }

    /// What it did so far.
    pub fn deeds(&self) -> &Deeds {
        &self.shared.deeds
    }
}

/// A stream ends when the other side has had enough.
async fn serve(shared: Arc<Shared>, inbound: Inbound) {
    let _ = match &inbound.protocol {
        protocol if *protocol == WATCH_PROTOCOL => watch(&shared, inbound).await,
        protocol if *protocol == FORWARD_PROTOCOL => forward(&shared, inbound).await,
        _ => Ok(()),
    };
}

async fn watch(shared: &Shared, inbound: Inbound) -> std::io::Result<()> {
    let Inbound { peer, stream, permit: _permit, .. } = inbound;
    let (mut reader, mut writer) = stream.split();
    let reading = async {
        while let Ok(request) = wire::read::<WatchRequest, _>(&mut reader, MAX_REQUEST).await {
            let presence = request.watch.and_then(|watch| watch.presence).or(request.refresh);
            if let Some(presence) = presence {
                shared.state.lock().unwrap().records.insert(peer, presence.signed_peer_record);
            }
        }
    };
    let telling = async {
        let status = RegisterResponse { status: Some(Status::Ok.into()), status_text: None, ttl: Some(120) };
        let first = WatchEvent {
            registered: Some(status),
            observed: Some(shared.victim.to_vec()),
            snapshot: Some(Snapshot { records: shared.false_records(&peer), more: false }),
            ..WatchEvent::default()
        };
        wire::write(&mut writer, &first).await?;
        let mut beat = tokio::time::interval(LIES_EVERY);
        loop {
            beat.tick().await;
            for record in shared.false_records(&peer) {
                let arrived = WatchEvent { arrived: Some(record), ..WatchEvent::default() };
                wire::write(&mut writer, &arrived).await?;
            }
            let others: Vec<PeerId> = shared.state.lock().unwrap().records.keys().copied().collect();
            for other in others.iter().filter(|other| **other != peer) {
                let gone = WatchEvent { gone: Some(other.to_bytes()), ..WatchEvent::default() };
                wire::write(&mut writer, &gone).await?;
            }
            let keys = WatchEvent { other_keys: Some(3), ..WatchEvent::default() };
            wire::write(&mut writer, &keys).await?;
        }
    };
    tokio::select! {
        () = reading => Ok(()),
        ended = telling => ended,
    }
}

impl Shared {
    /// Somebody invented who is said to be at the victim's address; the others with a changed record, and as they were
    /// before.
    fn false_records(&self, to: &PeerId) -> Vec<Vec<u8>> {
        let invented = sign(&Keypair::generate_ed25519(), std::slice::from_ref(&self.victim), Form::Legacy);
        let mut records = vec![invented.unwrap()];
        for (peer, record) in &self.state.lock().unwrap().records {
            if peer != to && verify(record).is_ok() {
                let mut forged = record.clone();
                let middle = forged.len() / 2;
                forged[middle] ^= 1;
                records.push(forged);
            }
        }
        self.deeds.told.fetch_add(records.len() as u64, Ordering::Relaxed);
        records
    }
}

async fn forward(shared: &Shared, inbound: Inbound) -> std::io::Result<()> {
    let Inbound { peer, stream, permit: _permit, .. } = inbound;
    let (mut reader, mut writer) = stream.split();
    let number = {
        let mut state = shared.state.lock().unwrap();
        let known = state.members.iter().position(|member| *member == peer);
        known.unwrap_or_else(|| {
            state.members.push(peer);
            state.members.len() - 1
        })
    };
    let reading = async { while forward_read(&mut reader).await.is_some() {} };
    let telling = async {
        let opened = Opened { handle: 7, index: number as u32, rate_kbps: 8_000 };
        wire::write(&mut writer, &ForwardEvent { opened: Some(opened), ..ForwardEvent::default() }).await?;
        let mut beat = tokio::time::interval(LIES_EVERY);
        for lie in 1u32.. {
            beat.tick().await;
            let mut members: Vec<Member> = {
                let state = shared.state.lock().unwrap();
                let numbered = state.members.iter().enumerate();
                numbered.map(|(i, peer)| Member { index: i as u32, peer: peer.to_bytes() }).collect()
            };
            // People who are not there, now and then under the number of somebody who is.
            for index in [40 + lie % 8, 300, if lie % 24 == 0 { 0 } else { 60 }] {
                members.push(Member { index, peer: PeerId::random().to_bytes() });
            }
            shared.deeds.told.fetch_add(1, Ordering::Relaxed);
            let members = Some(Members { members });
            wire::write(&mut writer, &ForwardEvent { members, ..ForwardEvent::default() }).await?;
            wire::write(&mut writer, &ForwardEvent::refusal(Refusal::Rate)).await?;
        }
        Ok(())
    };
    tokio::select! {
        () = reading => Ok(()),
        ended = telling => ended,
    }
}

async fn forward_read(reader: &mut (impl futures::AsyncRead + Unpin)) -> Option<ForwardRequest> {
    wire::read(reader, MAX_CONTROL).await.ok()
}

/// What members give to be passed on.
async fn carry(shared: Arc<Shared>, authenticated: Authenticated) {
    let Authenticated { peer, connection, .. } = authenticated;
    while let Ok(datagram) = connection.read_datagram().await {
        if read_bind(&datagram).is_some() {
            shared.state.lock().unwrap().connections.insert(peer, connection.clone());
        } else if datagram.first() == Some(&forward::FORWARD) {
            shared.pass_on(&peer, &datagram);
        }
    }
}

impl Shared {
    fn pass_on(&self, from: &PeerId, datagram: &Bytes) {
        let Some(up) = read_up(datagram) else { return };
        let payload = datagram.slice(up.payload_at..);
        let mut state = self.state.lock().unwrap();
        let Some(sender) = state.members.iter().position(|member| member == from) else { return };
        let voice = is_voice(datagram, up.payload_at);
        let count = if voice { self.deeds.voice.fetch_add(1, Ordering::Relaxed) } else { 0 };
        for receiver in up.receivers {
            let to =
                state.members.get(usize::from(*receiver)).and_then(|member| state.connections.get(member));
            let Some(to) = to.cloned() else { continue };
            // A full buffer, or a node that has gone.
            let send = |sender: u8, payload: &[u8]| drop(to.send_datagram(down(up.handle, sender, payload)));
            if !voice {
                send(sender as u8, &payload);
                let passed = self.deeds.honest.fetch_add(1, Ordering::Relaxed);
                if let Some((sender, old)) = state.kept.get(passed as usize % KEPT) {
                    send(*sender, old);
                    self.deeds.forged.fetch_add(1, Ordering::Relaxed);
                }
                continue;
            }
            if count % DROPS != 0 {
                continue;
            }
            let mut changed = payload.to_vec();
            if let Some(last) = changed.last_mut() {
                *last ^= 1;
            }
            send(sender as u8, &changed);
            send(sender as u8 ^ 1, &payload);
            (0..3).for_each(|_| send(sender as u8, &payload));
            self.deeds.forged.fetch_add(5, Ordering::Relaxed);
        }
        if state.kept.len() >= KEPT {
            state.kept.remove(0);
        }
        state.kept.push((sender as u8, payload));
    }
}
