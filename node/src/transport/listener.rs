//! One listening socket: its addresses as interfaces come and go, and who knocks.

use std::{
    collections::{HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use futures::{FutureExt, Stream, future::BoxFuture};
use if_watch::{IfEvent, tokio::IfWatcher};
use libp2p::core::transport::{ListenerId, TransportEvent};

use super::{Error, Shared, Upgrade, to_multiaddr};

/// With so many handshakes unfinished, an address must prove itself by a Retry before it costs us anything.
/// Without Retry a spoofed first packet draws 3.2 times its size (RFC 9000 section 8.1 allows 3).
pub const RETRY_ABOVE_HALF_OPEN: usize = 32;
/// With so many handshakes unfinished, newcomers are ignored until some end.
pub const MAX_HALF_OPEN: usize = 512;

type Event = TransportEvent<Upgrade, Error>;

pub(super) struct Listener {
    id: ListenerId,
    endpoint: quinn::Endpoint,
    local: SocketAddr,
    /// Where this socket can be reached; one entry unless it is bound to every interface.
    addresses: HashSet<IpAddr>,
    interfaces: Option<IfWatcher>,
    accept: BoxFuture<'static, Option<quinn::Incoming>>,
    events: VecDeque<Event>,
    closed: bool,
    shared: Shared,
    waker: Option<Waker>,
}

impl Listener {
    pub(super) fn new(id: ListenerId, endpoint: quinn::Endpoint, shared: Shared) -> Result<Self, Error> {
        let local = endpoint.local_addr()?;
        let mut listener = Self {
            id,
            accept: accept(&endpoint),
            endpoint,
            local,
            addresses: HashSet::new(),
            interfaces: None,
            events: VecDeque::new(),
            closed: false,
            shared,
            waker: None,
        };
        if local.ip().is_unspecified() {
            listener.interfaces = Some(IfWatcher::new()?);
        } else {
            listener.address_up(local.ip());
        }
        Ok(listener)
    }

    pub(super) fn id(&self) -> ListenerId {
        self.id
    }

    pub(super) fn endpoint(&self) -> &quinn::Endpoint {
        &self.endpoint
    }

    /// Whether packets from this socket can reach `remote`: same family, and loopback only to loopback.
    pub(super) fn can_dial(&self, remote: SocketAddr) -> bool {
        let everywhere = self.local.ip().is_unspecified();
        !self.closed
            && self.local.is_ipv6() == remote.is_ipv6()
            && (everywhere || self.local.ip().is_loopback() == remote.ip().is_loopback())
    }

    pub(super) fn close(&mut self) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.endpoint.close(0u32.into(), &[]);
        self.events.push_back(TransportEvent::ListenerClosed { listener_id: self.id, reason: Ok(()) });
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn address_up(&mut self, ip: IpAddr) {
        if ip.is_ipv6() == self.local.is_ipv6() && self.addresses.insert(ip) {
            let listen_addr = to_multiaddr(SocketAddr::new(ip, self.local.port()));
            self.events.push_back(TransportEvent::NewAddress { listener_id: self.id, listen_addr });
        }
    }

    fn address_down(&mut self, ip: IpAddr) {
        if self.addresses.remove(&ip) {
            let listen_addr = to_multiaddr(SocketAddr::new(ip, self.local.port()));
            self.events.push_back(TransportEvent::AddressExpired { listener_id: self.id, listen_addr });
        }
    }

    fn poll_interfaces(&mut self, cx: &mut Context<'_>) {
        while let Some(Poll::Ready(event)) = self.interfaces.as_mut().map(|watcher| watcher.poll_if_event(cx))
        {
            match event {
                Ok(IfEvent::Up(net)) => self.address_up(net.addr()),
                Ok(IfEvent::Down(net)) => self.address_down(net.addr()),
                Err(error) => {
                    self.interfaces = None;
                    self.events.push_back(TransportEvent::ListenerError {
                        listener_id: self.id,
                        error: error.into(),
                    });
                }
            }
        }
    }

    fn knock(&mut self, incoming: quinn::Incoming) {
        let half_open = self.shared.half_open();
        if half_open >= MAX_HALF_OPEN {
            incoming.ignore();
            return;
        }
        if half_open >= RETRY_ABOVE_HALF_OPEN && !incoming.remote_address_validated() {
            if let Err(error) = incoming.retry() {
                error.into_incoming().ignore();
            }
            return;
        }
        let remote = incoming.remote_address();
        let send_back_addr = to_multiaddr(remote);
        if !self.shared.may_begin(&send_back_addr) {
            incoming.ignore();
            return;
        }
        match incoming.accept() {
            Ok(connecting) => self.events.push_back(TransportEvent::Incoming {
                listener_id: self.id,
                upgrade: self.shared.clone().finish(connecting, false),
                local_addr: to_multiaddr(self.local),
                send_back_addr,
            }),
            Err(error) => tracing::debug!(%remote, %error, "handshake refused"),
        }
    }
}

impl Stream for Listener {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(event));
            }
            if self.closed {
                return Poll::Ready(None);
            }
            self.poll_interfaces(cx);
            if !self.events.is_empty() {
                continue;
            }
            match self.accept.poll_unpin(cx) {
                Poll::Ready(Some(incoming)) => {
                    self.accept = accept(&self.endpoint);
                    self.knock(incoming);
                }
                Poll::Ready(None) => self.close(),
                Poll::Pending => {
                    self.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }
}

fn accept(endpoint: &quinn::Endpoint) -> BoxFuture<'static, Option<quinn::Incoming>> {
    let endpoint = endpoint.clone();
    async move { endpoint.accept().await }.boxed()
}
