//! What a node tells of itself: events as they happen, figures every second, the summary at the end.

use super::*;
use crate::{events::DeviceState, path::THIN_KBPS};

impl Node {
    pub(super) fn handle_media(&mut self, event: MediaEvent) {
        match event {
            MediaEvent::Audio(event) => self.handle_audio(event),
            MediaEvent::FirstAudio { peer, at_ns } => {
                let late = Duration::from_nanos(clock::now_ns().abs_diff(at_ns));
                let since = if at_ns > clock::now_ns() {
                    self.config.started.elapsed() + late
                } else {
                    self.config.started.elapsed().saturating_sub(late)
                };
                let since_start_ms = ms(since);
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.first_audio_ms = Some(since_start_ms);
                }
                self.emit_at(at_ns, Event::FirstAudio { peer_id: peer, since_start_ms });
            }
            MediaEvent::Report { peer, mut report } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    if known.uses_tcp() {
                        let missed = Telemetry::Missed(report.lost).encode();
                        let _ = known.session.send_unreliable(Instant::now(), &missed);
                        lossless(&mut report);
                    }
                    let message = Telemetry::Report(report).encode();
                    let _ = known.session.send_unreliable(Instant::now(), &message);
                }
            }
            MediaEvent::Stats(stats) => self.handle_stats(*stats),
            MediaEvent::Stopped(_) => {}
        }
    }

    pub(super) fn handle_audio(&mut self, event: AudioEvent) {
        let card = |rate_hz, channels, period_ms| Card { sample_rate_hz: rate_hz, channels, period_ms };
        match event {
            AudioEvent::InputStarted { at_ns, rate_hz, channels, period_ms } => {
                self.emit_at(at_ns, Event::InputStarted(card(rate_hz, channels, period_ms)));
            }
            AudioEvent::OutputStarted { at_ns, rate_hz, channels, period_ms } => {
                self.emit_at(at_ns, Event::OutputStarted(card(rate_hz, channels, period_ms)));
            }
            AudioEvent::InputFinished { at_ns } => self.emit_at(at_ns, Event::InputFinished),
            AudioEvent::Xrun { end, count, .. } => {
                let which = if end == End::Input { "microphone" } else { "loudspeaker" };
                tracing::info!(which, count, "xruns");
            }
            AudioEvent::DeviceOpened { at_ns, end, name, order } => {
                self.device_opened(at_ns, end, name, order);
            }
            AudioEvent::DeviceLost { at_ns, end, name, reason } => {
                self.tell_device(at_ns, end, name.clone(), DeviceState::Lost);
                let which = if end == End::Input { "input" } else { "output" };
                self.warn(
                    "device_lost",
                    format!("the sound {which} {name} is gone ({reason})."),
                    "It is opened again as soon as it is back, or the default one in its place; the call goes on.",
                );
            }
            AudioEvent::DeviceReopened { at_ns, end, name } => {
                self.tell_device(at_ns, end, name.clone(), DeviceState::Reopened);
                self.warn("device_reopened", format!("sound again through {name}."), "");
            }
            AudioEvent::WriteFailed { path, reason, .. } => self.warn(
                "recording_stopped",
                format!("the recording {} stopped: {reason}.", path.display()),
                "What was written is a valid file; the call goes on. Make room on the disk and join again to record.",
            ),
        }
    }

    pub(super) fn handle_stats(&mut self, stats: MediaStats) {
        self.look_after_paths(Instant::now());
        let share = self.allowance.share(self.uploads());
        let processing = Processing {
            active: stats.processing,
            delay_ms: ms(stats.processing_delay),
            price_ms: ms(stats.processing_price),
        };
        if processing != std::mem::replace(&mut self.processing, processing) {
            self.emit(Event::Processing(processing));
        }
        for voice in &stats.voices {
            let outlook = self.outlook(&voice.peer, Instant::now());
            let Some(peer) = self.peers.get_mut(&voice.peer) else { continue };
            let path = peer.paths.route().path();
            if let Some(us) = stats.send_delay_us {
                let _ = peer.session.send_unreliable(Instant::now(), &Telemetry::SendDelay(us).encode());
            }
            let (mut send_kbps, mut recv_kbps) = (None, None);
            if let Some(path) = &path {
                let (sent, received) = path.bytes();
                if let Some((id, sent_before, received_before)) = peer.counted
                    && id == path.id()
                {
                    let kbps = |bytes: u64| bytes as f64 * 8.0 / 1000.0 / media::STATS_EVERY.as_secs_f64();
                    send_kbps = Some(kbps(sent.saturating_sub(sent_before)));
                    recv_kbps = Some(kbps(received.saturating_sub(received_before)));
                }
                peer.counted = Some((path.id(), sent, received));
            }
            let path_stats = path.as_ref().map(|path| path.stats());
            peer.is_thin = stats.policy.wire_kbps() <= THIN_KBPS;
            let r = &voice.receiver;
            if let Some(stages) = r.mouth_to_ear_stages_ms {
                peer.stages.add(&stages);
            }
            let number = |value: Option<f32>| value.map(f64::from);
            let event = PeerStats {
                peer_id: voice.peer,
                name: peer.name.clone().unwrap_or_default(),
                path: path.as_ref().map(|path| path.kind()),
                outlook,
                remote: path.as_ref().map(|path| path.remote()),
                rtt_ms: path.as_ref().map(|path| ms(path.rtt())),
                one_way_ms: r.mouth_to_ear_stages_ms.map(|stages| f64::from(stages.network)),
                clock_error_ms: peer.clock.min_rtt_us().map(|us| us as f64 / 2000.0),
                jitter_ms: number(r.jitter_ms),
                loss_pct: number(r.loss_pct),
                recovered_pct: number(r.recovered_pct),
                concealed_pct: number(r.concealed_pct),
                late_pct: number(r.late_pct),
                target_delay_ms: number(r.target_delay_ms),
                buffer_ms: number(r.buffer_ms),
                mouth_to_ear_ms: number(r.mouth_to_ear_ms),
                mouth_to_ear_stages_ms: r.mouth_to_ear_stages_ms,
                drift_ppm: number(r.drift_ppm),
                send_kbps,
                recv_kbps,
                frame_ms: number(r.frame_ms),
                level_dbov: r.level_dbov.map(|level| f64::from(level.db())),
                processing,
                policy: stats.sending(),
                xruns: stats.xruns,
                rejected: voice.rejected(),
            };
            peer.figures = Some(Box::new(event.clone()));
            self.emit(Event::Stats(Box::new(event)));
            if let Some(mut path_stats) = path_stats {
                path_stats.max_kbps = [path_stats.max_kbps, share].into_iter().flatten().min();
                self.command_media(MediaCommand::Path { peer: voice.peer, stats: path_stats });
            }
        }
        self.last_stats = Some(stats);
    }

    /// How often each frame is sent: once for each member with a path of its own, once for all behind one server.
    fn uploads(&self) -> u32 {
        let paths: Vec<_> =
            self.peers.values().filter(|p| p.name.is_some()).filter_map(|p| p.paths.used()).collect();
        let direct = paths.iter().filter(|path| path.relay().is_none()).count();
        let rooms: HashSet<_> =
            paths.iter().filter_map(|path| path.relay()).map(|(uplink, _)| Arc::as_ptr(uplink)).collect();
        u32::try_from(direct + rooms.len()).unwrap_or(u32::MAX)
    }

    /// Keeps the figures of a peer's whole call for the summary.
    pub(super) fn remember(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else { return };
        let Some(name) = peer.name.clone() else { return };
        let Some(voice) = self.last_stats.as_ref().and_then(|s| s.voices.iter().find(|v| v.peer == id))
        else {
            return;
        };
        if self.summaries.len() >= MAX_PEERS {
            self.summaries.remove(0);
        }
        let r = &voice.receiver;
        let percentiles = |p: hallway_codec::Percentiles| Percentiles {
            p50: f64::from(p.p50),
            p95: f64::from(p.p95),
            p99: f64::from(p.p99),
        };
        let totals = &r.totals;
        let percent = |part: u64, whole: u64| (whole > 0).then(|| part as f64 * 100.0 / whole as f64);
        self.summaries.push(PeerSummary {
            peer_id: id,
            name,
            mouth_to_ear_ms: r.total_mouth_to_ear_ms.map(percentiles),
            mouth_to_ear_stages_ms: peer.stages.mean(),
            first_audio_ms: peer.first_audio_ms,
            loss_pct: percent(totals.lost, totals.packets + totals.lost),
            recovered_pct: percent(totals.recovered_samples, totals.played_samples),
            concealed_pct: percent(totals.concealed_samples, totals.played_samples),
            packets_received: voice.received.packets,
            bytes_received: voice.received.bytes,
            packets_rejected: voice.rejected(),
        });
    }

    pub(super) async fn emit_summary(mut self) {
        let (sent, xruns) = self.last_stats.as_ref().map(|s| (s.sent, s.xruns)).unwrap_or_default();
        let summary = Summary {
            peers: std::mem::take(&mut self.summaries),
            since_start_ms: self.since_start(),
            cpu_s: cpu_seconds(),
            max_rss_kb: max_rss_kb(),
            packets_sent: sent.packets,
            bytes_sent: sent.bytes,
            xruns,
        };
        let stamped = Stamped::now(Event::Summary(Box::new(summary)));
        let _ = tokio::time::timeout(Duration::from_millis(200), self.events.send(stamped)).await;
    }

    pub(super) fn tell_peer(&mut self, id: PeerId, state: PeerState, reason: Option<&'static str>) {
        if !self.peers.get_mut(&id).is_some_and(|peer| peer.is_news(state)) {
            return;
        }
        let Some(peer) = self.peers.get(&id) else { return };
        let path = peer.paths.route().path().map(|path| path.kind());
        let name = peer.name.clone();
        let verified = self.is_verified(peer);
        let outlook = self.outlook(&id, Instant::now());
        let since_start_ms = self.since_start();
        self.emit(Event::Peer { peer_id: id, name, state, path, outlook, verified, since_start_ms, reason });
    }

    /// Whether it holds the room's secret and the key of its PeerId.
    pub(super) fn is_verified(&self, peer: &Peer) -> bool {
        peer.session.is_established() && !self.config.invite.is_open()
    }

    /// Tells where a rendezvous server stands with us, and remembers it for those who come late.
    pub(super) fn tell_server(&mut self, state: RendezvousState, peer_id: Option<PeerId>, addr: Multiaddr) {
        let now = Server { addr: addr.clone(), peer_id, state };
        match self.servers.iter_mut().find(|known| known.addr == addr) {
            Some(known) => *known = now,
            None => self.servers.push(now),
        }
        self.emit(Event::Rendezvous { state, peer_id, addr });
    }

    pub(super) fn warn(&self, code: &'static str, message: String, hint: &str) {
        self.emit(Event::Warning(Notice { code, message, hint: hint.to_owned() }));
    }

    pub(super) fn emit(&self, event: Event) {
        self.emit_at(clock::now_ns(), event);
    }

    pub(super) fn emit_at(&self, at_ns: u64, event: Event) {
        event.log();
        if events::has_room(&self.events, &event) {
            let _ = self.events.try_send(Stamped { event, at_ns });
        }
    }

    pub(super) fn since_start(&self) -> f64 {
        ms(self.config.started.elapsed())
    }
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The most memory this process ever held, where the system tells (Linux).
fn max_rss_kb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
