//! Servers that forward: which rooms are open where, and the members that are reached through them.

use super::*;
use crate::forward::{
    Inlets, Link, LinkConfig, LinkEvent, RelayedPath, Uplink, link::MAX_NEWS, path::Carrier, wire::Refusal,
};

/// A server is told anew on which connection our datagrams come, at first and while a path through it is in use this often:
/// the last time may have got lost, and a NAT may have given us another port.
const BIND_EVERY: Duration = Duration::from_secs(1);
/// So many times at first,
const BINDS_AT_FIRST: u32 = 4;
/// later this often, while nothing goes through it.
const BIND_LATER: Duration = Duration::from_secs(5);
/// Where voice goes to a server over TCP, UDP is tried again after this, twice as long each time, up to the most.
const UDP_AGAIN: Duration = Duration::from_secs(1);
const UDP_AGAIN_MOST: Duration = Duration::from_secs(8);
/// A connection to a forwarding server on which nothing came for this long is given up: what we send is acknowledged.
const SERVER_SILENT: Duration = Duration::from_millis(1200);
/// How long a room whose server shuts down stays open after the last path has left it: the others are leaving too.
const LEAVE_AFTER: Duration = Duration::from_millis(300);

/// Links to all forwarding servers.
pub(super) struct Relays {
    sender: mpsc::Sender<(usize, LinkEvent)>,
    news: mpsc::Receiver<(usize, LinkEvent)>,
    /// Where members' datagrams go.
    pub(super) inlets: Inlets,
    links: Vec<RelayLink>,
    next_key: usize,
    told_rate: bool,
}

struct RelayLink {
    key: usize,
    server: usize,
    namespace: String,
    link: Link,
    open: Option<OpenRoom>,
}

struct OpenRoom {
    run: u64,
    server: PeerId,
    uplink: Arc<Uplink>,
    members: Vec<(u8, PeerId)>,
    /// Whether the server has said who is in it.
    listed: bool,
    next_bind: Instant,
    binds: u32,
    udp_again: Instant,
    udp_wait: Duration,
    /// Since when no path uses it, while its server shuts down.
    unused_since: Option<Instant>,
}

impl Drop for OpenRoom {
    fn drop(&mut self) {
        self.uplink.close();
    }
}

impl Relays {
    pub(super) fn new() -> Self {
        let (sender, news) = mpsc::channel(MAX_NEWS);
        Self { sender, news, inlets: Inlets::default(), links: Vec::new(), next_key: 0, told_rate: false }
    }

    /// The next thing that happened on a link.
    pub(super) async fn next(&mut self) -> Option<(usize, LinkEvent)> {
        self.news.recv().await
    }

    fn open_rooms(&mut self) -> impl Iterator<Item = &mut OpenRoom> {
        self.links.iter_mut().filter_map(|link| link.open.as_mut())
    }

    /// Says goodbye to all forwarders. The swarm must be polled to carry it.
    pub(super) fn leave(&self) {
        self.links.iter().for_each(|link| link.link.leave());
    }

    /// When something is to be done next.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.links.iter().filter_map(|link| link.open.as_ref()).map(|room| room.next_bind).min()
    }
}

impl Node {
    /// This node is listed at a server: the room is opened at its forwarder too.
    pub(super) fn open_relays(&mut self, server: usize) {
        if !self.config.path.relay() {
            return;
        }
        for namespace in self.links.namespaces(server) {
            let same = |link: &RelayLink| link.server == server && link.namespace == namespace;
            if !self.relays.links.iter().any(same) {
                self.open_relay(server, namespace);
            }
        }
        let current = &self.links;
        self.relays.links.retain(|link| current.namespaces(link.server).contains(&link.namespace));
    }

    fn open_relay(&mut self, server: usize, namespace: String) {
        self.relays.next_key += 1;
        let key = self.relays.next_key;
        let (inlets, control) = (self.relays.inlets.clone(), self.control_sender.clone());
        let doorman = std::sync::Mutex::new(Doorman::default());
        let config = LinkConfig {
            key,
            news: self.relays.sender.clone(),
            data: Box::new(move |server, datagram| {
                if let (Some(from), Ok(mut doorman)) = (inlets.resolve(&server, &datagram), doorman.lock()) {
                    let datagram = Datagram { arrived: clock::now(), bytes: from.datagram, relayed: true };
                    doorman.deliver(from.peer, from.via, datagram, &from.inbox, &control);
                }
            }),
            target: self.links.target(server),
            namespace: namespace.clone(),
            opener: self.links.opener(),
            seed: rand::random(),
        };
        let link = Link::spawn(config);
        self.relays.links.push(RelayLink { key, server, namespace, link, open: None });
    }

    pub(super) fn handle_relay(&mut self, key: usize, event: LinkEvent) {
        let now = Instant::now();
        match event {
            LinkEvent::Up { run, server, addr, handle, stream } => {
                let carrier = match stream {
                    Some(queue) => Carrier::Stream(queue),
                    None => match self.peer_entry(server, now) {
                        Some(known) => Carrier::Datagrams(known.paths.route()),
                        None => return,
                    },
                };
                let uplink = Arc::new(Uplink::new(addr, handle, carrier));
                uplink.bind();
                let open = OpenRoom {
                    run,
                    server,
                    uplink,
                    members: Vec::new(),
                    listed: false,
                    next_bind: now + BIND_EVERY / 4,
                    binds: 0,
                    udp_again: now + UDP_AGAIN,
                    udp_wait: UDP_AGAIN,
                    unused_since: None,
                };
                if let Some(link) = self.relays.links.iter_mut().find(|link| link.key == key) {
                    link.open = Some(open);
                }
            }
            LinkEvent::Members { run, members } => {
                let Some(room) = self.relays.open_rooms().find(|room| room.run == run) else { return };
                let before = std::mem::replace(&mut room.members, members.clone());
                let first = !std::mem::replace(&mut room.listed, true);
                let uplink = room.uplink.clone();
                for (index, peer) in before.into_iter().filter(|member| !members.contains(member)) {
                    if let Some(known) = self.peers.get_mut(&peer) {
                        known.paths.close_relay(&uplink, index);
                        self.choose_path(peer);
                    }
                }
                for (_, peer) in members {
                    self.discovered_by_relay(peer, now, first);
                }
            }
            LinkEvent::Draining { run } => {
                let Some(room) = self.relays.open_rooms().find(|room| room.run == run) else { return };
                room.uplink.leave();
                let members: Vec<PeerId> = room.members.iter().map(|(_, peer)| *peer).collect();
                for peer in members {
                    if let Some(known) = self.peers.get_mut(&peer)
                        && known.paths.direct() == 0
                    {
                        known.dial_at(now);
                    }
                    self.choose_path(peer);
                }
            }
            LinkEvent::Refused { why } => self.relay_refused(why),
            LinkEvent::Down { run } => self.relay_down(run),
        }
    }

    fn relay_refused(&mut self, why: Refusal) {
        tracing::info!(why = why.in_words(), "a server does not relay");
        if why == Refusal::Rate && !std::mem::replace(&mut self.relays.told_rate, true) {
            self.warn(
                "relay_rate",
                "the server that relays this call drops a part: more is sent than it allows.".to_owned(),
                "--max-rate sends less; the server's operator may allow more (--forward-sender-rate).",
            );
        }
    }

    fn relay_down(&mut self, run: u64) {
        let of_run = |link: &&mut RelayLink| link.open.as_ref().is_some_and(|room| room.run == run);
        let Some(link) = self.relays.links.iter_mut().find(of_run) else { return };
        let (key, server, namespace) = (link.key, link.server, link.namespace.clone());
        let Some(mut room) = link.open.take() else { return };
        let members = std::mem::take(&mut room.members);
        drop(room);
        // One that replaces another is not needed beside it.
        let replaces = |link: &RelayLink| {
            link.key != key && link.server == server && link.namespace == namespace && link.open.is_some()
        };
        if self.relays.links.iter().any(replaces) {
            self.relays.links.retain(|link| link.key != key);
        }
        for (_, peer) in members {
            self.choose_path(peer);
        }
    }

    /// A server knows of somebody who can be reached through it. Whoever came `first` is called; those who come after us
    /// call, and would not hear a call before their part of the room is open.
    fn discovered_by_relay(&mut self, id: PeerId, now: Instant, first: bool) {
        if id == self.me || self.is_forwarder(&id) || self.elsewhere.contains(now, &id) {
            return;
        }
        let Some(peer) = self.peer_entry(id, now) else { return };
        if !std::mem::replace(&mut peer.wanted, true) {
            self.tell_peer(id, PeerState::Discovered, None);
        }
        self.offer_relays(id, now);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if first {
            peer.call(now);
        } else {
            peer.call_at.get_or_insert(now + DIAL_SECOND);
        }
    }

    /// Whether our datagrams go through this peer. No way to it may lead through a server, or that way could become its own
    /// carrier.
    fn is_forwarder(&self, id: &PeerId) -> bool {
        let open = self.relays.links.iter().filter_map(|link| link.open.as_ref());
        self.links.is_server(id) || open.into_iter().any(|room| room.server == *id)
    }

    /// Adds every way through a server to a peer that it has not yet. True where there is one now.
    pub(super) fn offer_relays(&mut self, id: PeerId, now: Instant) -> bool {
        if self.is_forwarder(&id) {
            return false;
        }
        let Some(peer) = self.peers.get_mut(&id) else { return false };
        let (mut added, mut has) = (false, false);
        for room in self.relays.links.iter().filter_map(|link| link.open.as_ref()) {
            let Some((index, _)) = room.members.iter().find(|(_, member)| *member == id) else { continue };
            has = true;
            if room.uplink.is_leaving() || peer.paths.has_relay(&room.uplink, *index) {
                continue;
            }
            let path = RelayedPath::new(room.uplink.clone(), *index, dials_first(&self.me, &id));
            let path = Arc::new(path);
            let inlet = (room.server, id, path.clone(), peer.inbox.clone());
            if path.is_open() && peer.paths.has_room() && self.relays.inlets.insert(inlet) {
                peer.paths.add(now, path);
                added = true;
            }
        }
        if added {
            peer.relayed(now);
            self.choose_path(id);
        }
        has
    }

    /// Binds, tries UDP again where TCP is used, leaves servers that shut down.
    pub(super) fn look_after_relays(&mut self, now: Instant) {
        let mut dial = Vec::new();
        let mut done = Vec::new();
        for link in &mut self.relays.links {
            let Some(room) = &mut link.open else { continue };
            let used = |(index, peer): &(u8, PeerId)| {
                self.peers.get(peer).is_some_and(|known| known.paths.uses_relay(&room.uplink, *index))
            };
            if room.next_bind <= now {
                room.binds = room.binds.saturating_add(1);
                let often = room.binds < BINDS_AT_FIRST || room.members.iter().any(used);
                room.next_bind = now + if often { BIND_EVERY } else { BIND_LATER };
                room.uplink.bind();
            }
            if room.uplink.is_leaving() {
                let since = *room.unused_since.get_or_insert(now);
                if room.members.iter().any(used) {
                    room.unused_since = None;
                } else if now.saturating_duration_since(since) >= LEAVE_AFTER {
                    done.push(link.key);
                }
            }
            if room.uplink.is_stream() && room.udp_again <= now && self.config.path != PathChoice::Tcp {
                room.udp_again = now + room.udp_wait;
                room.udp_wait = (room.udp_wait * 2).min(UDP_AGAIN_MOST);
                dial.push((link.server, room.server));
            }
        }
        for key in done {
            if let Some(link) = self.relays.links.iter_mut().find(|link| link.key == key) {
                link.link.leave();
                link.open = None;
            }
        }
        for (server, peer) in dial {
            let addresses = self.links.quic_addresses_of(server);
            if !addresses.is_empty() {
                let opts = DialOpts::peer_id(peer).addresses(addresses).condition(PeerCondition::Always);
                if let Err(error) = self.swarm.dial(opts.build()) {
                    tracing::debug!(%peer, %error, "the server was not tried over UDP");
                }
            }
        }
        self.leave_silent_servers(now);
        self.drop_spare_tcp(now);
    }

    /// When a server that this path reaches over TCP is tried over UDP again.
    pub(super) fn udp_again(&self, path: &dyn Path) -> Option<Instant> {
        let (uplink, _) = path.relay().filter(|(uplink, _)| uplink.is_stream())?;
        let mut rooms = self.relays.links.iter().filter_map(|link| Some((link.server, link.open.as_ref()?)));
        let (server, room) = rooms.find(|(_, room)| Arc::ptr_eq(&room.uplink, uplink))?;
        let offered = !self.links.quic_addresses_of(server).is_empty();
        (offered && self.config.path != PathChoice::Tcp).then_some(room.udp_again)
    }

    /// A dead connection to a forwarder is closed, so that another one takes its place.
    fn leave_silent_servers(&mut self, now: Instant) {
        let rooms = self.relays.links.iter().filter_map(|link| Some((link.key, link.open.as_ref()?)));
        let used = rooms.filter(|(_, room)| !room.uplink.is_stream()).filter(|(_, room)| {
            room.members.iter().any(|(index, peer)| {
                self.peers.get(peer).is_some_and(|known| known.paths.uses_relay(&room.uplink, *index))
            })
        });
        let used: Vec<(usize, PeerId)> = used.map(|(key, room)| (key, room.server)).collect();
        for (key, server) in used {
            let Some(known) = self.peers.get_mut(&server) else { continue };
            known.paths.look(now);
            if known.paths.silent_for(now).is_some_and(|silent| silent >= SERVER_SILENT) {
                tracing::info!(%server, "a forwarding server fell silent");
                known.paths.close_all(CloseReason::Silent);
                if let Some(link) = self.relays.links.iter().find(|link| link.key == key) {
                    link.link.retry_now();
                }
            }
        }
    }

    /// A connection to a server is up: where a room is open there over TCP only, it is opened over this one too.
    pub(super) fn server_connected(&mut self, server: PeerId) {
        let rooms = self.relays.links.iter().filter_map(|link| Some((link, link.open.as_ref()?)));
        let of_server = rooms.filter(|(_, room)| room.server == server);
        let (mut over_tcp, mut over_quic) = (Vec::new(), Vec::new());
        for (link, room) in of_server {
            let list = if room.uplink.is_stream() { &mut over_tcp } else { &mut over_quic };
            list.push((link.server, link.namespace.clone()));
            room.uplink.bind();
        }
        for (server, namespace) in over_tcp {
            let waits = |link: &RelayLink| {
                link.open.is_none() && link.server == server && link.namespace == namespace
            };
            let there = over_quic.iter().any(|(s, n)| *s == server && *n == namespace);
            if !there && !self.relays.links.iter().any(waits) && self.config.path != PathChoice::Tcp {
                self.open_relay(server, namespace);
            }
        }
    }

    /// A path over UDP through a server works: the same room over TCP is no longer needed there.
    fn drop_spare_tcp(&mut self, now: Instant) {
        let links = &self.relays.links;
        let open = |link: &RelayLink| link.open.as_ref().map(|room| room.uplink.is_stream());
        let spare: Vec<usize> = links
            .iter()
            .filter(|link| open(link) == Some(true))
            .filter(|tcp| {
                let udp = |link: &&RelayLink| {
                    open(link) == Some(false) && link.server == tcp.server && link.namespace == tcp.namespace
                };
                // Every member that is there has answered over UDP, so none is left behind; where our voice got lost there,
                // TCP stands by. A list without ourselves has not come yet.
                links.iter().find(udp).and_then(|link| link.open.as_ref()).is_some_and(|room| {
                    let listed = room.members.iter().any(|(_, peer)| *peer == self.me);
                    listed
                        && room.members.iter().filter(|(_, peer)| *peer != self.me).all(|(index, peer)| {
                            let known = self.peers.get(peer);
                            known.is_none_or(|known| {
                                !known.session.is_established()
                                    || known.paths.relay_is_sound(now, &room.uplink, *index)
                            })
                        })
                })
            })
            .map(|link| link.key)
            .collect();
        for key in spare {
            let Some(at) = self.relays.links.iter().position(|link| link.key == key) else { continue };
            let link = self.relays.links.swap_remove(at);
            if let Some(mut room) = link.open {
                let members = std::mem::take(&mut room.members);
                drop(room);
                members.into_iter().for_each(|(_, peer)| self.choose_path(peer));
            }
        }
    }
}

/// Lets in what one connection brings: voice to the media thread, the rest to the node loop, at a bounded rate.
pub(super) struct Doorman {
    second: Instant,
    taken: u32,
}

impl Default for Doorman {
    fn default() -> Self {
        Self { second: Instant::now(), taken: 0 }
    }
}

impl Doorman {
    pub(super) fn deliver(
        &mut self,
        peer: PeerId,
        via: usize,
        datagram: Datagram,
        inbox: &media::Inbox,
        control: &mpsc::Sender<FromPath>,
    ) {
        if datagram.bytes.first() == Some(&session::keys::MEDIA) {
            inbox.push(datagram);
            return;
        }
        if self.second.elapsed() >= Duration::from_secs(1) {
            (self.second, self.taken) = (Instant::now(), 0);
        }
        self.taken = self.taken.saturating_add(1);
        if self.taken <= MAX_CONTROL_PER_SECOND {
            let Datagram { arrived, bytes, .. } = datagram;
            let _ = control.try_send(FromPath::Control { peer, via, arrived, bytes });
        }
    }
}
