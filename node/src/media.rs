//! The media thread: from the microphone to the paths, from the paths to the ear.
//!
//! One thread, woken by the sound card's clock, and by others only where QUIC has something to do for them. QUIC's own
//! tasks run on it too (see [`Drive`](crate::transport::Drive)). In packet order, each round:
//!
//! 1. QUIC takes in what the sockets hold. `obey`: commands of the node loop (a new voice, a key, a clock offset).
//! 2. `receive`: every datagram that came since is opened and put into its speaker's jitter buffer.
//! 3. `play`: each period the card wants is pulled from the jitter buffers, mixed and written.
//! 4. `speak`: each period the card captured is encoded, sealed once, and sent to everybody; QUIC
//!    sends it off.
//! 5. `tell`: reports for the speakers twice a second, figures for people once a second.
//!
//! Nothing here blocks on the network or on a person: paths drop what they cannot send, full event queues drop figures.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc as std_mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use hallway_codec::{
    ClockOffset, Dbov, Micros, Mixer, PathStats, Policy, Profile, Receiver, ReceiverConfig, ReceiverStats,
    Report, Samples, Sender, SenderConfig,
};
use libp2p::PeerId;
use tokio::sync::mpsc;

use crate::{
    audio::{
        self, Audio, AudioEvent, CaptureEnd, EndOpener, PlaybackEnd, VoiceActive, VoiceChoice, VoiceProcessor,
    },
    clock,
    controls::{self, Controls, Gate, Hearing},
    events::Sending,
    meters::{Meter, Meters},
    path::{Fan, Route},
    priority,
    session::{
        keys::{OpenStats, Opener, Sealer, SenderKey},
        proof::Proofs,
    },
    transport::{Driver, Tasks},
};

/// Datagrams of one speaker that wait for the next round. The oldest goes first: better a gap than a lag.
pub const MAX_INBOX: usize = 256;
/// Datagrams of one speaker opened in one round, so that one flooding member cannot starve the others.
pub const MAX_OPENED_PER_ROUND: usize = 48;
/// Commands that may wait for the media thread. It takes them every few milliseconds; more means that it hangs.
pub const MAX_WAITING_COMMANDS: usize = 1024;
/// Events that may wait for the node loop. When it is late, figures are dropped first.
pub const MAX_WAITING_EVENTS: usize = 1024;
/// How often a speaker hears how its voice arrives here.
pub const REPORT_EVERY: Duration = Duration::from_millis(500);
/// How often figures go to people.
pub const STATS_EVERY: Duration = Duration::from_secs(1);
/// Longest sleep of a round, where no card wakes it.
const LONGEST_WAIT: Duration = Duration::from_millis(5);
/// Between two looks at the network once the sound has ended.
const FAREWELL_WAIT: Duration = Duration::from_millis(1);

/// A sealed datagram and the moment it came.
#[derive(Debug, Clone)]
pub struct Datagram {
    /// When the socket gave it to us.
    pub arrived: Micros,
    /// All of it, the kind byte included; from a server with its proofs.
    pub bytes: Bytes,
    /// Whether a server passed it on.
    pub relayed: bool,
}

/// Where the network leaves one speaker's datagrams for the media thread.
#[derive(Debug, Clone)]
pub struct Inbox(Arc<InboxState>);

#[derive(Debug)]
struct InboxState {
    queue: ArrayQueue<Datagram>,
    dropped: AtomicU64,
    bytes: AtomicU64,
}

impl Default for Inbox {
    fn default() -> Self {
        Self(Arc::new(InboxState {
            queue: ArrayQueue::new(MAX_INBOX),
            dropped: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }))
    }
}

impl Inbox {
    /// Puts a datagram in; where there is no room, the oldest one is dropped and counted.
    pub fn push(&self, datagram: Datagram) {
        self.0.bytes.fetch_add(datagram.bytes.len() as u64, Ordering::Relaxed);
        if self.0.queue.force_push(datagram).is_some() {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pop(&self) -> Option<Datagram> {
        self.0.queue.pop()
    }
}

/// What the node loop asks of the media thread.
#[derive(Debug)]
pub enum Command {
    /// A member to speak to and to hear. Replaces an earlier one of the same peer.
    Voice {
        /// Who.
        peer: PeerId,
        /// Where to send.
        route: Route,
        /// Where its datagrams appear.
        inbox: Inbox,
        /// What proves both voices where a server passes them on.
        proofs: Box<Proofs>,
    },
    /// Seal with this key from the next frame on.
    Seal(SenderKey),
    /// A key that this peer seals with.
    Open {
        /// Who.
        peer: PeerId,
        /// The key.
        key: SenderKey,
    },
    /// The peer left: its keys and its voice are forgotten.
    Forget(PeerId),
    /// The peer's clock against ours.
    Clock {
        /// Who.
        peer: PeerId,
        /// Its clock minus ours; `None` while unknown.
        offset: Option<ClockOffset>,
    },
    /// How our voice arrives at this peer, in its own words.
    Report {
        /// Who.
        peer: PeerId,
        /// Its report.
        report: Report,
    },
    /// How long this peer's packets take from its encoder into its QUIC, in its own words.
    SendDelay {
        /// Who.
        peer: PeerId,
        /// Microseconds.
        us: u32,
    },
    /// How the path to this peer fares, as QUIC saw it.
    Path {
        /// Who.
        peer: PeerId,
        /// Its statistics.
        stats: PathStats,
    },
    /// What the person set about voice and ears.
    Controls(Controls),
    /// How this peer is heard here. A new voice is heard as it is sent.
    Hearing {
        /// Who.
        peer: PeerId,
        /// How.
        hearing: Hearing,
    },
    /// Capture through this from now on.
    Capture(Box<CaptureEnd>),
    /// Play through this from now on.
    Playback(Box<PlaybackEnd>),
    /// Ends the thread; the recording is finished.
    Stop,
}

/// What the media thread tells the node loop.
#[derive(Debug)]
pub enum MediaEvent {
    /// Something about the sound card.
    Audio(AudioEvent),
    /// The first sample of this peer is heard.
    FirstAudio {
        /// Who.
        peer: PeerId,
        /// When, CLOCK_MONOTONIC ns.
        at_ns: u64,
    },
    /// To be sent to this peer.
    Report {
        /// Who.
        peer: PeerId,
        /// How its voice arrives here.
        report: Report,
    },
    /// The figures of one second.
    Stats(Box<MediaStats>),
    /// The thread has ended; the last figures.
    Stopped(Box<MediaStats>),
}

/// The figures of all voices.
#[derive(Debug, Clone)]
pub struct MediaStats {
    /// How we speak.
    pub policy: Policy,
    /// Whether we pause, and packets with us.
    pub paused: bool,
    /// What we sent since the start, summed over members.
    pub sent: Traffic,
    /// Mean time from the encoder into QUIC over the last second, µs; `None` where nothing was sent.
    pub send_delay_us: Option<u32>,
    /// Sound card misses since the start.
    pub xruns: u64,
    /// What is done to our voice.
    pub processing: VoiceActive,
    /// What that adds to its delay.
    pub processing_delay: Duration,
    /// What any of it would add.
    pub processing_price: Duration,
    /// One entry a member.
    pub voices: Vec<VoiceStats>,
}

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Datagrams.
    pub packets: u64,
    /// Bytes of datagram payload.
    pub bytes: u64,
}

/// The figures of one member.
#[derive(Debug, Clone)]
pub struct VoiceStats {
    /// Who.
    pub peer: PeerId,
    /// The receiver's figures.
    pub receiver: ReceiverStats,
    /// What could not be opened.
    pub opened: OpenStats,
    /// What a server brought without a proof that it is this member's.
    pub unproven: u64,
    /// Dropped because the media thread was late or the speaker floods.
    pub dropped: u64,
    /// Sent to this member since it came.
    pub sent: Traffic,
    /// Received from it.
    pub received: Traffic,
}

impl MediaStats {
    /// How we speak, as it is told.
    pub fn sending(&self) -> Sending {
        Sending::of(&self.policy, self.paused)
    }
}

impl VoiceStats {
    /// Datagrams that were not played: forged, replayed, malformed, under no known key.
    pub fn rejected(&self) -> u64 {
        let OpenStats { malformed, unknown_key, replayed, forged, .. } = self.opened;
        [unknown_key, replayed, forged, self.unproven].into_iter().fold(malformed, u64::saturating_add)
    }
}

/// The media thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The codec refused its settings.
    #[error(transparent)]
    Codec(#[from] hallway_codec::Error),
    /// No thread to be had.
    #[error("cannot start the media thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The node loop's end of the media thread.
pub struct Media {
    commands: Option<std_mpsc::SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
    meters: Meters,
    opener: EndOpener,
}

impl Media {
    /// Starts the thread on this sound card, and QUIC with it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start(
        driver: Driver,
        audio: Audio,
        voice: SenderConfig,
    ) -> Result<(Self, mpsc::Receiver<MediaEvent>), Error> {
        let (commands, orders) = std_mpsc::sync_channel(MAX_WAITING_COMMANDS);
        let (events, told) = mpsc::channel(MAX_WAITING_EVENTS);
        let channels = voice.channels;
        let sender = Sender::new(voice)?;
        let (meters, opener) = (Meters::default(), audio.opener());
        let processing = VoiceProcessor::new(VoiceChoice::OFF, audio.period());
        let engine = Engine {
            audio,
            meters: meters.clone(),
            gate: Gate::default(),
            deaf: 1.0,
            channels,
            sender,
            sealer: None,
            voices: Vec::with_capacity(crate::room::MAX_MEMBERS),
            mixer: Mixer::new(channels),
            processing,
            fold: (channels == 2).then(Fold::default),
            playback_delay: Duration::ZERO,
            packet: Vec::with_capacity(hallway_codec::MAX_PACKET_BYTES),
            sealed: Vec::with_capacity(hallway_codec::MAX_PACKET_BYTES + 64),
            voice_block: Vec::new(),
            mix_block: Vec::new(),
            fan: Fan::default(),
            sent: Traffic::default(),
            sending: (0, 0),
            next_index: 0,
            orders,
            events,
            next_report: Instant::now(),
            next_stats: Instant::now() + STATS_EVERY,
        };
        let thread = std::thread::Builder::new()
            .name("media".into())
            .spawn(move || driver.run(|quic| engine.run(quic)))?;
        Ok((Self { commands: Some(commands), thread: Some(thread), meters, opener }, told))
    }

    /// Hands over a command. False where the thread is gone or hangs: the call is over then.
    pub fn command(&self, command: Command) -> bool {
        self.commands.as_ref().is_some_and(|commands| commands.try_send(command).is_ok())
    }

    /// How loud everybody is now.
    pub fn meters(&self) -> Meters {
        self.meters.clone()
    }

    /// What opens other ends for this call.
    pub fn opener(&self) -> EndOpener {
        self.opener.clone()
    }

    /// Whether the thread has ended by itself.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Media {
    fn drop(&mut self) {
        // The thread finishes the recording; a hanging one must not keep the person waiting.
        self.command(Command::Stop);
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let deadline = Instant::now() + Duration::from_secs(1);
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

struct Voice {
    peer: PeerId,
    /// The sender's number for this peer: reports and paths are remembered by it.
    index: u32,
    route: Route,
    inbox: Inbox,
    proofs: Proofs,
    /// Datagrams that a server brought and that were not proven to be this speaker's.
    unproven: u64,
    opener: Option<Opener>,
    receiver: Receiver,
    meter: Meter,
    hearing: Hearing,
    /// The gain at the end of the last block.
    gain: f32,
    /// Its first sound was decoded.
    began: bool,
    /// A sound of it was heard: by a card that plays, not by what stands in for one.
    heard: bool,
    sent: Traffic,
    received: Traffic,
}

struct Engine {
    audio: Audio,
    meters: Meters,
    gate: Gate,
    /// Gain of all that is heard at the end of the last block: 0 while deafened.
    deaf: f32,
    channels: u8,
    sender: Sender,
    sealer: Option<Sealer>,
    voices: Vec<Voice>,
    mixer: Mixer,
    processing: VoiceProcessor,
    /// Where two channels are captured.
    fold: Option<Fold>,
    playback_delay: Duration,
    packet: Vec<u8>,
    sealed: Vec<u8>,
    voice_block: Vec<f32>,
    mix_block: Vec<f32>,
    fan: Fan,
    sent: Traffic,
    /// Packets sent since the last figures, and the time they took from the encoder into QUIC, µs.
    sending: (u32, u64),
    next_index: u32,
    orders: std_mpsc::Receiver<Command>,
    events: mpsc::Sender<MediaEvent>,
    next_report: Instant,
    next_stats: Instant,
}

impl Engine {
    async fn run(mut self, mut quic: Tasks) {
        if !priority::real_time() {
            tracing::info!(
                "no real-time priority for the media thread; `ulimit -r` or CAP_SYS_NICE would grant it"
            );
        }
        loop {
            self.audio.wait(LONGEST_WAIT);
            quic.turn().await;
            if !self.obey() {
                break;
            }
            self.receive();
            self.play();
            self.speak();
            quic.flush();
            self.tell();
        }
        let last = Box::new(self.stats());
        // A sound server may take its time to let go. QUIC must not stand still meanwhile: goodbyes are on their way.
        let audio = self.audio;
        let closing = std::thread::Builder::new().name("sound close".into()).spawn(move || audio.finish());
        while closing.as_ref().is_ok_and(|closing| !closing.is_finished()) {
            std::thread::park_timeout(FAREWELL_WAIT);
            quic.turn().await;
        }
        if let Ok(Ok(Err(error))) = closing.map(JoinHandle::join) {
            tracing::warn!(%error, "the recording may be incomplete");
        }
        let _ = self.events.try_send(MediaEvent::Stopped(last));
        // The goodbyes still have to leave: QUIC goes on until the node has let go of it.
        while !matches!(self.orders.try_recv(), Err(std_mpsc::TryRecvError::Disconnected)) {
            std::thread::park_timeout(FAREWELL_WAIT);
            quic.turn().await;
        }
        quic.turn().await;
        quic.flush();
    }

    /// False when it is time to end.
    fn obey(&mut self) -> bool {
        loop {
            let command = match self.orders.try_recv() {
                Ok(Command::Stop) | Err(std_mpsc::TryRecvError::Disconnected) => return false,
                Err(std_mpsc::TryRecvError::Empty) => return true,
                Ok(command) => command,
            };
            match command {
                Command::Voice { peer, route, inbox, proofs } => self.add_voice(peer, route, inbox, *proofs),
                Command::Seal(key) => match &mut self.sealer {
                    Some(sealer) => sealer.use_key(&key),
                    None => self.sealer = Some(Sealer::new(&key)),
                },
                Command::Open { peer, key } => {
                    if let Some(voice) = self.voice(&peer) {
                        voice.opener.get_or_insert_with(Opener::new).install(Instant::now(), key);
                    }
                }
                Command::Forget(peer) => {
                    if let Some(at) = self.voices.iter().position(|voice| voice.peer == peer) {
                        let voice = self.voices.swap_remove(at);
                        self.sender.forget_peer(voice.index);
                        self.meters.remove(&peer);
                    }
                }
                Command::Clock { peer, offset } => {
                    if let Some(voice) = self.voice(&peer) {
                        voice.receiver.set_clock(offset);
                    }
                }
                Command::Report { peer, report } => {
                    if let Some(index) = self.voice(&peer).map(|voice| voice.index) {
                        self.sender.handle_report(clock::now(), index, &report);
                    }
                }
                Command::SendDelay { peer, us } => {
                    if let Some(voice) = self.voice(&peer) {
                        voice.receiver.set_send_delay(us);
                    }
                }
                Command::Path { peer, stats } => {
                    if let Some(index) = self.voice(&peer).map(|voice| voice.index) {
                        self.sender.handle_path(clock::now(), index, &stats);
                    }
                }
                Command::Controls(controls) => self.set_controls(controls),
                Command::Hearing { peer, hearing } => {
                    if let Some(voice) = self.voice(&peer) {
                        voice.hearing = hearing;
                    }
                }
                Command::Capture(end) => retire(std::mem::replace(&mut self.audio.capture, *end)),
                Command::Playback(end) => retire(std::mem::replace(&mut self.audio.playback, *end)),
                Command::Stop => return false,
            }
        }
    }

    fn voice(&mut self, peer: &PeerId) -> Option<&mut Voice> {
        self.voices.iter_mut().find(|voice| voice.peer == *peer)
    }

    fn set_controls(&mut self, controls: Controls) {
        self.gate.set(controls);
        // Music is left as it is.
        let music = controls.profile == Profile::Music;
        self.processing.choose(if music { VoiceChoice::OFF } else { controls.processing });
        self.sender.set_profile(controls.profile);
        self.sender.set_delay(controls.delay);
        for voice in &mut self.voices {
            voice.receiver.set_delay(controls.delay);
        }
    }

    fn add_voice(&mut self, peer: PeerId, route: Route, inbox: Inbox, proofs: Proofs) {
        let config = ReceiverConfig { channels: self.channels, ..ReceiverConfig::default() };
        let receiver = match Receiver::new(config) {
            Ok(mut receiver) => {
                receiver.set_delay(self.gate.controls().delay);
                receiver
            }
            Err(error) => {
                tracing::error!(%peer, %error, "no decoder for this voice");
                return;
            }
        };
        self.voices.retain(|voice| voice.peer != peer);
        if self.voices.len() >= crate::room::MAX_MEMBERS {
            tracing::error!(%peer, "more voices than a room has members; this one is not heard");
            return;
        }
        let (index, traffic) = (self.next_index, Traffic::default());
        self.next_index = self.next_index.wrapping_add(1);
        self.voices.push(Voice {
            peer,
            index,
            route,
            inbox,
            proofs,
            unproven: 0,
            opener: None,
            receiver,
            meter: self.meters.insert(peer),
            hearing: Hearing::default(),
            gain: 1.0,
            began: false,
            heard: false,
            sent: traffic,
            received: traffic,
        });
    }

    fn receive(&mut self) {
        let now = Instant::now();
        for voice in &mut self.voices {
            let Some(opener) = &mut voice.opener else {
                // The key is a few milliseconds behind the first frames; kept, they would pass for a delay.
                while voice.inbox.pop().is_some() {}
                continue;
            };
            for _ in 0..MAX_OPENED_PER_ROUND {
                let Some(datagram) = voice.inbox.pop() else { break };
                let (arrived, length) = (datagram.arrived, datagram.bytes.len() as u64);
                let sealed = match datagram.relayed {
                    true => voice.proofs.verified(datagram.bytes),
                    false => Some(datagram.bytes),
                };
                let Some(sealed) = sealed else {
                    voice.unproven += 1;
                    continue;
                };
                self.packet.clear();
                match opener.open(now, &sealed, &mut self.packet) {
                    Ok(_) => {
                        voice.received.packets += 1;
                        voice.received.bytes += length;
                        if let Err(error) = voice.receiver.handle_packet(arrived, &self.packet) {
                            tracing::debug!(peer = %voice.peer, %error, "packet not understood");
                        }
                    }
                    Err(error) => tracing::trace!(peer = %voice.peer, %error, "datagram not opened"),
                }
            }
        }
    }

    fn play(&mut self) {
        loop {
            let frames = self.audio.playback.space();
            if frames == 0 {
                return;
            }
            let unheard = self.audio.playback.take_unheard();
            if unheard > 0 {
                self.voices.iter_mut().for_each(|voice| voice.receiver.skip(Samples(unheard)));
            }
            let channels = usize::from(self.channels);
            let len = frames * channels;
            let delay = self.audio.playback.delay();
            let delay_us = u32::try_from(delay.as_micros()).unwrap_or(u32::MAX);
            let now = clock::now();
            self.mix_block.resize(len, 0.0);
            self.voice_block.resize(len, 0.0);
            for voice in &mut self.voices {
                let played = voice.receiver.play_into(now, delay_us, &mut self.voice_block);
                voice.began |= played.first_audio;
                if voice.began && !voice.heard && self.audio.playback.sounds() {
                    voice.heard = true;
                    self.audio.capture.start();
                    let at_ns = self.audio.playback.heard_at_ns();
                    let _ = self.events.try_send(MediaEvent::FirstAudio { peer: voice.peer, at_ns });
                }
                voice.meter.add(played.level, frames as u32);
                let gain = voice.hearing.gain();
                controls::turn(&mut self.voice_block, channels, voice.gain, gain);
                voice.gain = gain;
                self.mixer.add(&self.voice_block);
            }
            self.mixer.mix_into(&mut self.mix_block);
            let ears = if self.gate.controls().deafened { 0.0 } else { 1.0 };
            controls::turn(&mut self.mix_block, channels, self.deaf, ears);
            self.deaf = ears;
            self.audio.playback.write(&self.mix_block);
            self.playback_delay = delay;
            self.processing.rendered(&self.mix_block, usize::from(self.channels));
        }
    }

    fn speak(&mut self) {
        let channels = usize::from(self.channels);
        while let Some(block) = self.audio.capture.read() {
            let lag = audio::echo_lag(self.playback_delay, block.captured_at_ns, audio::monotonic_ns());
            let older_ns = u64::try_from(self.processing.delay().as_nanos()).unwrap_or(0);
            let captured_at_ns = block.captured_at_ns.saturating_sub(older_ns);
            let pcm = match &mut self.fold {
                // The processor takes one channel, and gives what both ears get.
                Some(fold) if self.processing.active().any() => {
                    fold.through(&mut self.processing, block.pcm, lag)
                }
                _ => self.processing.process(block.pcm, lag),
            };
            let mut level = hallway_codec::Meter::default();
            level.add(pcm);
            let level = level.take().unwrap_or(Dbov::SILENCE);
            let frames = (pcm.len() / channels) as u32;
            let open = self.gate.admits(level, frames);
            self.meters.own().add(level, frames);
            self.meters.set_open(open);
            self.sender.set_muted(!open);
            self.sender.handle_capture(pcm, Micros(captured_at_ns / 1000));
            while let Some(encoded) = self.sender.poll_packet(clock::now(), &mut self.packet) {
                let Some(sealer) = &mut self.sealer else { continue };
                let done = clock::now();
                encoded.stamp_done(&mut self.packet, done);
                self.sealed.clear();
                if let Err(error) = sealer.seal(&self.packet, &mut self.sealed) {
                    tracing::error!(%error, "frame not sealed, so not sent");
                    continue;
                }
                let datagram = Bytes::copy_from_slice(&self.sealed);
                for voice in &mut self.voices {
                    if voice.route.send_by(&mut self.fan, &voice.proofs, &datagram).is_ok() {
                        for traffic in [&mut voice.sent, &mut self.sent] {
                            traffic.packets += 1;
                            traffic.bytes += datagram.len() as u64;
                        }
                    }
                }
                self.fan.flush(&datagram);
                self.sending.0 += 1;
                self.sending.1 += clock::now().since(done);
            }
        }
    }

    fn tell(&mut self) {
        while let Ok(event) = self.audio.events.try_recv() {
            let _ = self.events.try_send(MediaEvent::Audio(event));
        }
        self.processing.set_reach(self.audio.playback.reach());
        let now = Instant::now();
        // Where the node loop is late, news go before figures.
        let roomy = self.events.capacity() > MAX_WAITING_EVENTS / 4;
        if now >= self.next_report && roomy {
            self.next_report = now + REPORT_EVERY;
            for voice in self.voices.iter_mut().filter(|voice| voice.received.packets > 0) {
                let report = voice.receiver.report(clock::now());
                let _ = self.events.try_send(MediaEvent::Report { peer: voice.peer, report });
            }
        }
        if now >= self.next_stats {
            self.next_stats += STATS_EVERY;
            if roomy {
                let stats = Box::new(self.stats());
                let _ = self.events.try_send(MediaEvent::Stats(stats));
            }
        }
    }

    fn send_delay_us(&mut self) -> Option<u32> {
        let (packets, us) = std::mem::take(&mut self.sending);
        (packets > 0).then(|| u32::try_from(us / u64::from(packets)).unwrap_or(u32::MAX))
    }

    fn stats(&mut self) -> MediaStats {
        MediaStats {
            policy: self.sender.policy().clone(),
            paused: self.sender.rests(),
            sent: self.sent,
            send_delay_us: self.send_delay_us(),
            xruns: self.audio.capture.xruns() + self.audio.playback.xruns(),
            processing: self.processing.active(),
            processing_delay: self.processing.delay(),
            processing_price: self.processing.price(),
            voices: self
                .voices
                .iter_mut()
                .map(|voice| VoiceStats {
                    peer: voice.peer,
                    receiver: voice.receiver.stats(),
                    opened: voice.opener.as_ref().map(Opener::stats).unwrap_or_default(),
                    unproven: voice.unproven,
                    dropped: voice.inbox.0.dropped.load(Ordering::Relaxed),
                    sent: voice.sent,
                    received: voice.received,
                })
                .collect(),
        }
    }
}

/// Two channels through a processor of one.
#[derive(Default)]
struct Fold {
    one: Vec<f32>,
    two: Vec<f32>,
}

impl Fold {
    fn through(&mut self, processor: &mut VoiceProcessor, pcm: &[f32], lag: Duration) -> &[f32] {
        self.one.clear();
        self.one.extend(pcm.chunks_exact(2).map(|frame| frame.iter().sum::<f32>() / 2.0));
        self.two.clear();
        self.two.extend(processor.process(&self.one, lag).iter().flat_map(|sample| [*sample; 2]));
        &self.two
    }
}

/// Closing a device may take a second, finishing a recording as well.
fn retire<E: Send + 'static>(end: E) {
    if let Err(error) = std::thread::Builder::new().name("sound retire".into()).spawn(move || drop(end)) {
        tracing::warn!(%error, "no thread to close the old sound device on");
    }
}
