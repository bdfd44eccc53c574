//! One member behind a forwarder, as a [`Path`], and where its datagrams come in.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hallway_codec::PathStats;
use libp2p::{Multiaddr, PeerId};

use super::{
    queue::Queue,
    wire::{ForwardRequest, UP_HEADER, bind, is_voice, read_down, up},
};
use crate::{
    events::PathKind,
    media::Inbox,
    path::{CloseReason, LEAST_KBPS, Path, Route, SendError},
};

/// Members behind all forwarders of a node at a time.
pub const MAX_INLETS: usize = 1024;
/// Round trip assumed until one was measured.
const UNKNOWN_RTT: Duration = Duration::from_millis(400);

/// How datagrams reach the server.
#[derive(Clone)]
pub enum Carrier {
    /// As QUIC datagrams on whichever connection to the server is best.
    Datagrams(Route),
    /// In the control stream.
    Stream(Arc<Queue<ForwardRequest>>),
}

/// One open room at one server, shared by the paths through it.
pub struct Uplink {
    server: Multiaddr,
    handle: u32,
    carrier: Carrier,
    open: AtomicBool,
    leaving: AtomicBool,
}

impl Uplink {
    /// A room that `server` has opened.
    pub fn new(server: Multiaddr, handle: u32, carrier: Carrier) -> Self {
        Self { server, handle, carrier, open: AtomicBool::new(true), leaving: AtomicBool::new(false) }
    }

    /// Names the room in datagrams.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// Whether the server is reached over TCP.
    pub fn is_stream(&self) -> bool {
        matches!(self.carrier, Carrier::Stream(_))
    }

    /// Tells the server which connection this room's datagrams are to come on. Repeated now and then: it may get lost.
    pub fn bind(&self) {
        if let Carrier::Datagrams(route) = &self.carrier {
            // Without a connection there is nothing to be bound yet.
            let _ = route.send(bind(self.handle));
        }
    }

    /// The room is closed: its paths are.
    pub fn close(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    /// The server ends soon.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether the server ends soon.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Whether datagrams can be sent.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
            && match &self.carrier {
                Carrier::Datagrams(route) => route.path().is_some_and(|path| path.is_open()),
                Carrier::Stream(_) => true,
            }
    }

    /// Sends one datagram up for several members: one upload, whatever their number. `to` must ascend.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&self, to: &[u8], datagram: &Bytes) -> Result<(), SendError> {
        if !self.open.load(Ordering::Relaxed) {
            return Err(SendError::Closed);
        }
        let framed = up(self.handle, to, datagram);
        match &self.carrier {
            Carrier::Datagrams(route) => route.send(framed),
            Carrier::Stream(queue) => {
                let voice = is_voice(datagram, 0);
                if queue.push_data(Instant::now(), framed, voice) { Ok(()) } else { Err(SendError::Closed) }
            }
        }
    }
}

/// One member behind a forwarder.
pub struct RelayedPath {
    uplink: Arc<Uplink>,
    to: u8,
    id: usize,
    dialer: bool,
    open: AtomicBool,
    rtt_us: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// Numbers of relayed paths: the upper half, so that none is that of a QUIC connection.
static NEXT_ID: AtomicUsize = AtomicUsize::new(usize::MAX / 2 + 1);

impl RelayedPath {
    /// The way to member number `to`. `dialer`: we are the side that dials first.
    pub fn new(uplink: Arc<Uplink>, to: u8, dialer: bool) -> Self {
        Self {
            uplink,
            to,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            dialer,
            open: AtomicBool::new(true),
            rtt_us: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }

    /// The room it leads through, and the member's number there.
    pub fn uplink(&self) -> (&Arc<Uplink>, u8) {
        (&self.uplink, self.to)
    }

    fn count(&self, sent: usize) {
        self.sent.fetch_add(sent as u64, Ordering::Relaxed);
    }
}

impl Path for RelayedPath {
    fn send(&self, datagram: Bytes) -> Result<(), SendError> {
        if !self.open.load(Ordering::Relaxed) {
            return Err(SendError::Closed);
        }
        self.count(datagram.len().saturating_add(UP_HEADER));
        self.uplink.send(&[self.to], &datagram)
    }

    fn relay(&self) -> Option<(&Arc<Uplink>, u8)> {
        (self.open.load(Ordering::Relaxed)).then_some((&self.uplink, self.to))
    }

    fn counted(&self, bytes: usize) {
        self.count(bytes.saturating_add(UP_HEADER));
    }

    fn rtt(&self) -> Duration {
        match self.rtt_us.load(Ordering::Relaxed) {
            0 => UNKNOWN_RTT,
            us => Duration::from_micros(us),
        }
    }

    fn leg_rtt(&self) -> Duration {
        match &self.uplink.carrier {
            Carrier::Datagrams(route) => route.path().map(|path| path.rtt()).unwrap_or_default(),
            Carrier::Stream(_) => Duration::ZERO,
        }
    }

    fn stats(&self) -> PathStats {
        // Losses on our way to the server are QUIC's to see; those behind it are in the member's reports.
        let leg = match &self.uplink.carrier {
            Carrier::Datagrams(route) => route.path().map(|path| path.stats()).unwrap_or_default(),
            Carrier::Stream(queue) => {
                let limit = queue.limit_kbps(Instant::now()).map(|kbps| kbps.max(LEAST_KBPS));
                PathStats { max_kbps: limit, reliable: true, ..PathStats::default() }
            }
        };
        PathStats { rtt_ms: Some(self.rtt().as_secs_f32() * 1000.0), ..leg }
    }

    fn bytes(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }

    fn is_dialer(&self) -> bool {
        self.dialer
    }

    fn kind(&self) -> PathKind {
        if self.uplink.is_stream() { PathKind::Tcp } else { PathKind::Relayed }
    }

    fn remote(&self) -> Multiaddr {
        self.uplink.server.clone().with(libp2p::multiaddr::Protocol::P2pCircuit)
    }

    fn id(&self) -> usize {
        self.id
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) && self.uplink.is_open()
    }

    fn close(&self, _: CloseReason) {
        self.open.store(false, Ordering::Relaxed);
    }

    fn is_leaving(&self) -> bool {
        self.uplink.is_leaving()
    }

    fn measured(&self, rtt: Duration) {
        let rtt = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
        // Smoothed as in RFC 9002 section 5.3.
        let smoothed = match self.rtt_us.load(Ordering::Relaxed) {
            0 => rtt,
            old => old.saturating_mul(7).saturating_add(rtt) / 8,
        };
        self.rtt_us.store(smoothed.max(1), Ordering::Relaxed);
    }
}

/// Where a member's datagrams go that come from a forwarder.
#[derive(Clone)]
pub struct Inlet {
    /// Who sent them, as the server says; their seals prove it.
    pub peer: PeerId,
    /// Where its voice waits for the media thread.
    pub inbox: Inbox,
    path: Arc<RelayedPath>,
}

type Table = HashMap<(PeerId, u32, u8), Inlet>;

/// All members behind forwarders, by server, room and number: read for every datagram, written when somebody comes or
/// goes.
#[derive(Clone, Default)]
pub struct Inlets(Arc<ArcSwap<Table>>);

/// A datagram that came from a member through a forwarder.
pub struct FromMember {
    /// Who, and where its voice goes.
    pub peer: PeerId,
    /// Where its voice goes.
    pub inbox: Inbox,
    /// Number of the path.
    pub via: usize,
    /// As the member sent it.
    pub datagram: Bytes,
}

impl Inlets {
    /// Takes a member's path in: the server it leads through, who it leads to, and where the voice goes. False where there
    /// are [`MAX_INLETS`] already.
    pub fn insert(&self, (server, peer, path, inbox): (PeerId, PeerId, Arc<RelayedPath>, Inbox)) -> bool {
        let key = (server, path.uplink.handle, path.to);
        let mut taken = false;
        self.0.rcu(|table| {
            let mut table = Table::clone(table);
            let lives = |path: &RelayedPath| {
                path.open.load(Ordering::Relaxed) && path.uplink.open.load(Ordering::Relaxed)
            };
            table.retain(|_, inlet| lives(&inlet.path));
            taken = table.len() < MAX_INLETS;
            if taken {
                table.insert(key, Inlet { peer, inbox: inbox.clone(), path: path.clone() });
            }
            table
        });
        taken
    }

    /// Whose datagram this is that came from `server`. `None` for what belongs to nobody.
    pub fn resolve(&self, server: &PeerId, datagram: &Bytes) -> Option<FromMember> {
        let (handle, sender, payload) = read_down(datagram)?;
        let table = self.0.load();
        let Inlet { peer, inbox, path } = table.get(&(*server, handle, sender))?;
        path.received.fetch_add(datagram.len() as u64, Ordering::Relaxed);
        Some(FromMember { peer: *peer, inbox: inbox.clone(), via: path.id, datagram: payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        forward::{
            queue::Item,
            wire::{down, read_up},
        },
        session::proof::Proofs,
    };
    use zeroize::Zeroizing;

    fn over_tcp() -> (Arc<Uplink>, Arc<Queue<ForwardRequest>>) {
        let queue = Arc::new(Queue::default());
        let server = "/ip4/192.0.2.1/tcp/4001".parse().unwrap();
        (Arc::new(Uplink::new(server, 9, Carrier::Stream(queue.clone()))), queue)
    }

    #[test]
    fn a_datagram_goes_up_for_its_member_and_one_that_comes_down_is_its() {
        let (uplink, queue) = over_tcp();
        let path = Arc::new(RelayedPath::new(uplink.clone(), 3, true));
        path.send(Bytes::from_static(b"sealed")).unwrap();
        let Some(Item::Data(sent)) = queue.pop(Instant::now()) else { panic!("nothing was sent") };
        assert_eq!(read_up(&sent).unwrap().receivers, [3]);
        let (inlets, server, ben) = (Inlets::default(), PeerId::random(), PeerId::random());
        assert!(inlets.insert((server, ben, path.clone(), Inbox::default())));
        let from = inlets.resolve(&server, &down(9, 3, b"back")).unwrap();
        assert_eq!((from.peer, from.via, &from.datagram[..]), (ben, path.id(), &b"back"[..]));
        for (server, handle, index) in [(PeerId::random(), 9, 3), (server, 8, 3), (server, 9, 4)] {
            assert!(inlets.resolve(&server, &down(handle, index, b"back")).is_none());
        }
        assert!(path.bytes().0 > 6 && path.bytes().1 > 4);
    }

    #[test]
    fn the_members_of_rooms_that_were_opened_and_lost_for_days_take_no_place() {
        let (inlets, server) = (Inlets::default(), PeerId::random());
        for handle in 0..3_000 {
            let queue = Arc::new(Queue::default());
            let addr = "/ip4/192.0.2.1/tcp/4001".parse().unwrap();
            let uplink = Arc::new(Uplink::new(addr, handle, Carrier::Stream(queue)));
            let path = Arc::new(RelayedPath::new(uplink.clone(), 1, true));
            assert!(inlets.insert((server, PeerId::random(), path, Inbox::default())), "room {handle}");
            uplink.close();
        }
    }

    #[test]
    fn one_upload_serves_all_members_behind_a_server() {
        let (uplink, queue) = over_tcp();
        let routes: Vec<Route> = [7, 2, 5]
            .map(|to| {
                let route = Route::default();
                route.set(Some(Arc::new(RelayedPath::new(uplink.clone(), to, true))), None);
                route
            })
            .into();
        let (mut fan, voice) = (crate::path::Fan::default(), Bytes::from_static(b"voice"));
        let key = |n: u8| Zeroizing::new([n; 32]);
        let ours = [1, 2, 3].map(|n| Proofs::new(&key(n), &key(n + 10)));
        for _ in 0..2 {
            let mut each = routes.iter().zip(&ours);
            each.try_for_each(|(route, proofs)| route.send_by(&mut fan, proofs, &voice)).unwrap();
            fan.flush(&voice);
            let Some(Item::Data(sent)) = queue.pop(Instant::now()) else { panic!("nothing was sent") };
            let up = read_up(&sent).unwrap();
            assert_eq!(up.receivers, [2, 5, 7]);
            for n in [1, 2, 3] {
                let theirs = Proofs::new(&key(n + 10), &key(n));
                let came = sent.slice(up.payload_at..);
                assert_eq!(theirs.verified(came).as_ref(), Some(&voice), "each is given a proof");
            }
            assert!(queue.pop(Instant::now()).is_none());
        }
        uplink.close();
        assert_eq!(routes[0].send_by(&mut fan, &ours[0], &voice), Err(SendError::Closed));
    }

    #[test]
    fn a_closed_room_closes_its_paths_and_a_closed_path_only_itself() {
        let (uplink, _) = over_tcp();
        let (one, two) =
            (RelayedPath::new(uplink.clone(), 1, true), RelayedPath::new(uplink.clone(), 2, true));
        one.close(CloseReason::Goodbye);
        assert!(!one.is_open() && two.is_open());
        assert_eq!(one.send(Bytes::from_static(b"x")), Err(SendError::Closed));
        uplink.close();
        assert!(!two.is_open());
        assert_eq!(two.send(Bytes::from_static(b"x")), Err(SendError::Closed));
    }

    #[test]
    fn its_round_trip_is_what_was_measured_end_to_end() {
        let path = RelayedPath::new(over_tcp().0, 1, true);
        assert_eq!(path.rtt(), UNKNOWN_RTT);
        path.measured(Duration::from_millis(80));
        assert_eq!(path.rtt(), Duration::from_millis(80));
        path.measured(Duration::from_millis(160));
        assert_eq!(path.rtt(), Duration::from_millis(90));
    }
}
