//! The client at a server that speaks only libp2p's rendezvous protocol: register, ask every few seconds, register again.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId};
use tokio::time::{sleep, timeout};

use super::{
    client::{ClientEvent, End, LostWhy, OPEN_PATIENCE, Session, Via, now, outcome},
    limits::STREAM_PATIENCE,
    policy::{Scope, scope_of},
    record::Form,
    streams::Opened,
    wire::{
        self, DEFAULT_TTL_SECS, Discover, MAX_RESPONSE, RENDEZVOUS_PROTOCOL, Register, Request, Response,
        Status,
    },
};

/// Shortest wait between two questions.
pub const POLL_LEAST: Duration = Duration::from_secs(2);

/// Longest wait between two questions.
pub const POLL_MOST: Duration = Duration::from_secs(5);

/// Entries asked for at once: with room to spare below [`MAX_RESPONSE`].
pub const POLL_PAGE: u64 = 48;

/// Pages read of one list.
pub const POLL_PAGES: usize = 8;

/// A registration is renewed at the latest after this, or half its lifetime.
const RENEW_LATEST: Duration = Duration::from_secs(60 * 60);

/// How soon a refused registration is tried again.
const REFUSED_WAIT: Duration = Duration::from_secs(30);

/// Why a question had no answer.
enum AskError {
    /// Nothing can be asked there now.
    Lost(LostWhy),
    /// The stream ended instead: rust-libp2p does so when it cannot verify a record.
    HungUp,
}

struct Answer {
    response: Response,
    server: PeerId,
    addr: Multiaddr,
}

impl From<AskError> for End {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Lost(why) => why.into(),
            AskError::HungUp => {
                LostWhy::Broken { detail: "the server ended the stream without an answer".into() }.into()
            }
        }
    }
}

impl Session {
    pub(super) async fn poll_plainly(&mut self) -> Result<Infallible, End> {
        let mut connected = false;
        let mut register_at = now();
        loop {
            if register_at <= now() {
                register_at = self.register().await?;
            }
            self.discover(&mut connected).await?;
            let wait = self.backoff.between(POLL_LEAST, POLL_MOST);
            tokio::select! {
                () = sleep(wait) => {}
                wished = self.wish.changed() => {
                    if wished.is_err() || self.wish.borrow_and_update().leave {
                        let goodbye = Request::unregister(self.config.namespace.clone());
                        // It has no answer, and we are going in any case.
                        let _ = self.ask(goodbye).await;
                        return Err(End::Left);
                    }
                    register_at = now();
                }
            }
        }
    }

    /// Registers; returns when to do it again. Gives way where a server insists on another form or a longer life.
    async fn register(&mut self) -> Result<Instant, End> {
        let mut ttl = self.config.ttl.as_secs();
        let mut refused = ClientEvent::RegisterRefused { why: Status::InternalError };
        for _ in 0..4 {
            let register = Register {
                ns: Some(self.config.namespace.clone()),
                signed_peer_record: Some(self.presence()?.signed_peer_record),
                ttl: Some(ttl),
            };
            let event = match self.ask(Request::register(register)).await {
                Ok(answer) => outcome(&answer.response.register_response.unwrap_or_default()),
                Err(AskError::HungUp) => {
                    ClientEvent::RegisterRefused { why: Status::InvalidSignedPeerRecord }
                }
                Err(error) => return Err(error.into()),
            };
            match event {
                ClientEvent::Registered { ttl: granted } => {
                    self.emit(ClientEvent::Registered { ttl: granted }).await?;
                    let renew = granted.div_f64(2.0).clamp(POLL_MOST, RENEW_LATEST);
                    return Ok(now().checked_add(renew).unwrap_or_else(now));
                }
                ClientEvent::RegisterRefused { why: Status::InvalidTtl } => ttl = DEFAULT_TTL_SECS,
                ClientEvent::RegisterRefused { why: Status::InvalidSignedPeerRecord } => {
                    self.form = match self.form {
                        Form::Standard => Form::Legacy,
                        Form::Legacy => Form::Standard,
                    };
                }
                _ => {
                    refused = event;
                    break;
                }
            }
            refused = event;
        }
        self.emit(refused).await?;
        Ok(now().checked_add(REFUSED_WAIT).unwrap_or_else(now))
    }

    /// Reads the whole list.
    async fn discover(&mut self, connected: &mut bool) -> Result<(), End> {
        let mut cookie = None;
        self.people.list_begins();
        for _ in 0..POLL_PAGES {
            let question =
                Discover { ns: Some(self.config.namespace.clone()), limit: Some(POLL_PAGE), cookie };
            let Answer { response, server, addr } = self.ask(Request::discover(question)).await?;
            self.server = Some(server);
            if !std::mem::replace(connected, true) {
                let addr = addr.clone();
                self.emit(ClientEvent::Connected { server, addr, push: false }).await?;
            }
            let page = response.discover_response.unwrap_or_default();
            let status = page.status.and_then(|s| Status::try_from(s).ok()).unwrap_or(Status::InternalError);
            if status != Status::Ok {
                return Err(LostWhy::Refused { why: status }.into());
            }
            let scope = scope_of(&addr).unwrap_or(Scope::Public);
            let empty = page.registrations.is_empty();
            for entry in page.registrations {
                if let Some(record) = entry.signed_peer_record {
                    self.told(&record, Via::Polled, scope).await?;
                }
            }
            cookie = page.cookie;
            if empty || cookie.is_none() {
                break;
            }
        }
        for event in self.people.list_ends(None) {
            self.emit(event).await?;
        }
        Ok(())
    }

    /// One question on a stream of its own.
    async fn ask(&self, request: Request) -> Result<Answer, AskError> {
        let wants_answer = request.unregister.is_none();
        let opening = self.opener.open(&self.config.server, RENDEZVOUS_PROTOCOL);
        let Opened { peer, mut stream, addr } = match timeout(OPEN_PATIENCE, opening).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return Err(AskError::Lost(error.into())),
            Err(_) => return Err(AskError::Lost(self.give_up_on_connection().await)),
        };
        let exchange = async {
            wire::write(&mut stream, &request).await.map_err(|_| AskError::HungUp)?;
            if !wants_answer {
                return Ok(Response::default());
            }
            match wire::read(&mut stream, MAX_RESPONSE).await {
                Ok(response) => Ok(response),
                Err(error) if error.is_not_spoken() => Err(AskError::Lost(error.into())),
                Err(wire::ReadError::Ended | wire::ReadError::Io(_)) => Err(AskError::HungUp),
                Err(error) => Err(AskError::Lost(error.into())),
            }
        };
        match timeout(STREAM_PATIENCE, exchange).await {
            Ok(Ok(response)) => {
                let addr = addr.borrow().clone();
                Ok(Answer { response, server: peer, addr })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                self.opener.close(peer).await;
                Err(AskError::Lost(LostWhy::Silent))
            }
        }
    }
}
