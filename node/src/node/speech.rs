//! What sessions and the room have to say, and what follows from it.

use super::*;

impl Node {
    /// Lets sessions and room speak until nothing is left to say.
    pub(super) fn pump(&mut self) {
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.drain_session(id, None);
        }
    }

    /// `from` is the path on which something has just come, and when.
    pub(super) fn drain_session(&mut self, id: PeerId, from: Option<(usize, Micros)>) {
        loop {
            let now = Instant::now();
            let Some(peer) = self.peers.get_mut(&id) else { return };
            peer.transmit(now);
            match peer.session.poll_event() {
                Some(event) => self.handle_session(id, event, from),
                None => break,
            }
        }
        self.drain_room();
    }

    pub(super) fn drain_room(&mut self) {
        while let Some(output) = self.room.poll_output(Instant::now()) {
            self.handle_output(output);
        }
    }

    /// Begins with little where the path in use promises to carry no more.
    pub(super) fn begin_thin(&mut self, id: PeerId) {
        if let Some(stats) = self.peers.get_mut(&id).and_then(Peer::begins_thin) {
            self.command_media(MediaCommand::Path { peer: id, stats });
        }
    }

    fn handle_session(&mut self, id: PeerId, event: session::Event, from: Option<(usize, Micros)>) {
        let now = Instant::now();
        let (via, arrived) = from.unwrap_or_else(|| (usize::MAX, clock::now()));
        let Some(peer) = self.peers.get_mut(&id) else { return };
        match event {
            session::Event::Established { .. } => {
                peer.wanted = true;
                (peer.lost_since, peer.dismissed) = (None, None);
                let (route, inbox) = (peer.paths.route(), peer.inbox.clone());
                peer.paths.handle_arrival(now, via);
                peer.prove_used();
                let addresses = peer.addresses.clone();
                let proofs = peer.session.proofs().cloned().map(Box::new);
                if let Some(proofs) = proofs
                    && self.room.handle_established(now, id, addresses)
                {
                    self.elsewhere.remove(&id);
                    self.command_media(MediaCommand::Voice { peer: id, route, inbox, proofs });
                    let hearing = self.config.volumes.of(&id);
                    self.command_media(MediaCommand::Hearing { peer: id, hearing });
                    self.begin_thin(id);
                    // One who called us before anybody told us of it is discovered by its call.
                    if self.peers.get(&id).is_some_and(|peer| peer.told.is_none()) {
                        self.tell_peer(id, PeerState::Discovered, None);
                    }
                } else {
                    // Told so by the room. Not called again for a while, and its connection ends with a stranger's.
                    (peer.wanted, peer.since) = (false, now);
                    self.elsewhere.insert(now, id);
                }
            }
            session::Event::Message(message) => self.room.handle_message(now, id, &message),
            session::Event::Unreliable(message) => match Telemetry::decode(&message) {
                Some(Telemetry::Ping { sent_us }) => {
                    let (arrived_us, answered_us) = (arrived.0, clock::now().0);
                    let pong = Telemetry::Pong { sent_us, arrived_us, answered_us };
                    peer.answer(now, via, &pong);
                }
                Some(Telemetry::PathPing(question)) => {
                    peer.answer(now, via, &Telemetry::PathPong(question));
                }
                Some(Telemetry::PathPong(question)) => {
                    peer.paths.handle_answer(now, via, question);
                    self.choose_path(id);
                }
                Some(Telemetry::Pong { sent_us, arrived_us, answered_us }) => {
                    let exchange = Exchange {
                        sent: sent_us,
                        arrived: arrived_us,
                        answered: answered_us,
                        heard: arrived.0,
                    };
                    peer.clock.handle_exchange(exchange);
                    peer.bottleneck.crossed(now, sent_us, arrived_us);
                    let offset = peer.clock.offset(arrived);
                    self.command_media(MediaCommand::Clock { peer: id, offset });
                }
                Some(Telemetry::SendDelay(us)) => {
                    let us = us.min(MAX_SEND_DELAY_US);
                    self.command_media(MediaCommand::SendDelay { peer: id, us });
                }
                Some(Telemetry::Report(mut report)) => {
                    // What we held back ourselves no path has lost.
                    let own = self.allowance.holds_back();
                    let narrowed = if own { None } else { peer.narrowed(now, &report) };
                    peer.paths.handle_heard(now, report.received, if own { 0 } else { report.lost });
                    if own || peer.uses_tcp() {
                        lossless(&mut report);
                    }
                    self.command_media(MediaCommand::Report { peer: id, report });
                    if let Some(stats) = narrowed {
                        self.command_media(MediaCommand::Path { peer: id, stats });
                    }
                }
                Some(Telemetry::Missed(packets)) if !self.allowance.holds_back() => {
                    peer.paths.handle_missed(now, packets);
                }
                Some(Telemetry::Missed(_)) | None => {}
            },
            session::Event::Refused { reason, .. } => self.handle_refusal(id, reason),
            session::Event::NotThisRoom => {
                tracing::debug!(peer = %id, "in another room");
                self.leave_alone(id);
            }
            session::Event::TimedOut => {
                tracing::debug!(peer = %id, "no answer to the handshake");
                peer.paths.close_all(CloseReason::Stranger);
                peer.dial_failed(now);
            }
            session::Event::Lost => self.call_lost(id, now),
            session::Event::Closed => {
                // Its word may have been lost on a connection that was one too many: a host that lets us in greets first.
                let turned_away = self.config.invite.terms.host == Some(id) && peer.name.is_none();
                self.room.handle_left(now, id, Departure::Closed);
                self.drain_room();
                self.forget(id);
                if turned_away {
                    self.refused(INVITE_USED.0.to_owned(), INVITE_USED.1);
                }
            }
        }
    }

    pub(super) fn handle_output(&mut self, output: Output) {
        let now = Instant::now();
        match output {
            Output::Send { to, message } => {
                if let Some(peer) = self.peers.get_mut(&to)
                    && let Err(error) = peer.session.send_message(now, message)
                {
                    tracing::warn!(peer = %to, %error, "message not sent");
                }
                if let Some(peer) = self.peers.get_mut(&to) {
                    peer.transmit(now);
                }
            }
            Output::Seal(key) => self.command_media(MediaCommand::Seal(key)),
            Output::Open { peer, key } => self.command_media(MediaCommand::Open { peer, key }),
            Output::Forget { peer } => self.command_media(MediaCommand::Forget(peer)),
            Output::Joined { peer, name } | Output::Renamed { peer, name } => {
                self.met_somebody = true;
                if let Some(known) = self.peers.get_mut(&peer)
                    && known.name.replace(name).is_none()
                {
                    known.paths.expect_to_be_heard(now);
                }
                self.mark_punched(peer);
                self.tell_peer(peer, PeerState::Connected, None);
                self.meet(peer);
            }
            Output::Left { peer, departure } => {
                let reason = match departure {
                    Departure::Lost => "connection lost",
                    Departure::Left | Departure::Closed => "said goodbye",
                };
                self.remember(peer);
                self.tell_peer(peer, PeerState::Left, Some(reason));
                if departure != Departure::Lost {
                    self.forget(peer);
                }
            }
            Output::Dial { peer, addresses, by } => self.discovered_by_member(by, peer, &addresses),
            Output::Chat { peer, id, text } => {
                let name = self.peers.get(&peer).and_then(|p| p.name.clone()).unwrap_or_default();
                self.emit(Event::Chat { peer_id: peer, name, text, id });
            }
            Output::GivenUp { peer, lines } => self.warn(
                "chat",
                format!("{} is away and will not get the last {lines} lines.", events::short(&peer)),
                "Say again what matters when it is back.",
            ),
            Output::Words { peer, words } => {
                self.emit(Event::Compare { peer_id: peer, words: words.join(" ") });
            }
            Output::Refused { peer, reason } => {
                let (reason, hint) = match reason {
                    RoomRefusal::Full => (
                        format!("the room is full: {} says that nobody else fits in", events::short(&peer)),
                        "Wait until somebody leaves, or open another room.",
                    ),
                    RoomRefusal::Closed => (
                        "the invite's time is over: nobody new is let in".to_owned(),
                        "Ask for another invite.",
                    ),
                    RoomRefusal::Used => (INVITE_USED.0.to_owned(), INVITE_USED.1),
                    RoomRefusal::Other(code) => (
                        format!("{} does not let this node in (reason {code})", events::short(&peer)),
                        "A newer version of hallway may say more.",
                    ),
                };
                self.forget(peer);
                self.elsewhere.insert(now, peer);
                self.refused(reason, hint);
            }
            // What it was told last must arrive: it leaves by itself when it has heard it.
            Output::Close { peer } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.dismissed = Some(now + DISMISSED_FOR);
                }
            }
        }
    }
}
