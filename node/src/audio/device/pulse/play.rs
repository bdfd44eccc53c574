//! A playback stream. The server asks for sound as it is played and keeps a queue; how full that queue is, is up to us:
//! we hold back what would only lie in the queue. A queue that runs empty is made longer; after quiet time it is made
//! shorter again.
//!
//! PulseAudio is answered at once. PipeWire works in rounds: it asks right after it has taken what it needs, and takes
//! the answer a round later. The answer is held back until shortly before that, which saves most of a round.

use std::sync::mpsc::Sender;
use std::time::SystemTime;

use pulseaudio::protocol::stream::{BufferAttr, StreamFlags};
use pulseaudio::protocol::{
    self, Command, CorkStreamParams, CreatePlaybackStreamReply, LatencyParams, PlaybackLatency,
    PlaybackStreamParams, ServerInfo, SetPlaybackStreamBufferAttrParams, SetPlaybackStreamBufferAttrReply,
    TagStructReader,
};

use super::super::find::Made;
use super::super::keeper::{self, Note, Opened};
use super::super::tap::PlaybackTap;
use super::super::{Facts, Shape, SharedReach};
use super::connection::{Connection, Error, Message, PATIENCE};
use super::watch::Watch;
use super::{Device, SAMPLE_BYTES, Stream, bytes_ns, channel_map, frame_bytes, props, refused, spec};
use crate::audio::clock::{NS_PER_SECOND, RATE_HZ, frames_to_ns, monotonic_ns};

/// How often the server is asked when its sound will be heard.
const ASK_EVERY_NS: u64 = 200_000_000;
/// Most sound sent at once, frames.
const MAX_FILL: usize = 9_600;
/// Longest queue that a server may hold for us, frames: 100 ms.
const MAX_QUEUE: u32 = 4_800;
/// What the queue holds at first beyond one request, frames: 2 ms to answer in.
const FIRST_MARGIN: u32 = 96;
/// The same where answers are held back, frames.
const FIRST_MARGIN_HOLDING: u32 = 48;
/// An answer that is held back goes out so long before it is taken…
const FIRST_GUARD_NS: u64 = 1_500_000;
/// …and so much earlier after each time that it was too late…
const GUARD_STEP_NS: u64 = 500_000;
/// …but never later than this.
const LEAST_GUARD_NS: u64 = 1_000_000;
/// Rounds shorter than this are answered at once.
const LEAST_ROUND_NS: u64 = 4_000_000;
/// A queue that ran empty becomes longer by this, frames…
const WIDEN: u32 = 48;
/// …at most once in this time: one stall empties it many times…
const WIDEN_EVERY_NS: u64 = 100_000_000;
/// …and only if it ran empty once before in this time. A lone click, as when another program begins to play, is over when
/// it is known; more delay would stay.
const HABIT_NS: u64 = 10 * NS_PER_SECOND;
/// Time from the first request on in which an empty queue means that the server starts, not that we were late.
const STARTING_NS: u64 = NS_PER_SECOND;
/// After quiet time it becomes shorter by this, frames.
const NARROW: u32 = 24;
/// Quiet time before that; doubled where it was too soon.
const QUIET_NS: std::ops::RangeInclusive<u64> = 15 * NS_PER_SECOND..=240 * NS_PER_SECOND;

/// Opens a stream that plays into this sink, not running yet.
///
/// # Errors
/// What the server said, or what `make` did.
pub(crate) fn open_playback<L>(
    device: &Device,
    shape: Shape,
    notes: Sender<Note>,
    make: impl Fn(&Facts) -> Made<PlaybackTap, L>,
) -> Result<Opened<L>, cpal::Error> {
    let mut connection = Connection::open(PATIENCE).map_err(refused)?;
    let frame = frame_bytes(shape);
    let wanted = PlaybackStreamParams {
        sample_spec: spec(shape.channels),
        channel_map: channel_map(shape.channels),
        sink_name: device.called(),
        buffer_attr: attributes(3 * shape.period, shape.period, frame),
        cvolume: Some(protocol::ChannelVolume::norm(shape.channels.clamp(1, 2) as u8)),
        flags: StreamFlags { start_corked: true, adjust_latency: true, ..StreamFlags::default() },
        props: props(),
        ..PlaybackStreamParams::default()
    };
    let about: ServerInfo = connection.ask(&Command::GetServerInfo).map_err(refused)?;
    let in_rounds = about.server_name.is_some_and(|name| name.to_string_lossy().contains("PipeWire"));
    let reply: CreatePlaybackStreamReply =
        connection.ask(&Command::CreatePlaybackStream(wanted)).map_err(refused)?;
    let request = (reply.buffer_attr.minimum_request_length / frame as u32).min(MAX_QUEUE);
    let queue = (reply.buffer_attr.target_length / frame as u32).min(MAX_QUEUE);
    tracing::debug!(request, queue, "the sound server plays, frames");
    let reach = SharedReach::new(device.reach);
    let watch = Watch::begin(&mut connection, reply.sink_index, reach.clone()).map_err(refused)?;
    let facts = Facts { rate_hz: RATE_HZ, channels: shape.channels, buffer: request, reach };
    let (tap, live, beat) = make(&facts)?;
    let play = Play {
        channel: reply.channel,
        frame,
        notes: notes.clone(),
        watch,
        tap,
        samples: vec![0.0; MAX_FILL * usize::from(shape.channels)],
        bytes: vec![0; protocol::DESCRIPTOR_SIZE + MAX_FILL * frame],
        wanted: u64::from(reply.requested_bytes) / frame as u64,
        level: Level::new(request, queue, in_rounds),
        held: None,
        sent: 0,
        heard_ns: None,
        question: None,
        resizing: None,
        asked_at_ns: 0,
        asked_about_ns: None,
    };
    let stream = Stream::new(connection, notes, move |connection| play.run(connection)).map_err(refused)?;
    Ok(Opened { stream: keeper::Stream::Pulse(stream), live, beat })
}

fn attributes(queue: u32, request: u32, frame: usize) -> BufferAttr {
    let frame = frame as u32;
    BufferAttr {
        max_length: 2 * MAX_QUEUE * frame,
        target_length: queue * frame,
        minimum_request_length: request * frame,
        // Playing never stops for want of sound: what comes late would stay late.
        pre_buffering: 0,
        ..BufferAttr::default()
    }
}

/// How much the server's queue shall hold, frames.
#[derive(Debug)]
struct Level {
    /// The least that a request asks for.
    request: u32,
    /// The most that the server will hold.
    queue: u32,
    /// What we let it hold.
    target: u32,
    /// How long before it is taken an answer goes out, where the server works in rounds.
    guard_ns: Option<u64>,
    quiet_ns: u64,
    calm_since_ns: u64,
    emptied_at_ns: Option<u64>,
    narrowed_at_ns: Option<u64>,
    started_at_ns: Option<u64>,
}

impl Level {
    fn new(request: u32, queue: u32, in_rounds: bool) -> Self {
        let margin = if in_rounds { FIRST_MARGIN_HOLDING } else { FIRST_MARGIN };
        let target = (request + margin).min(queue);
        let quiet_ns = *QUIET_NS.start();
        Self {
            request,
            queue,
            target,
            guard_ns: in_rounds.then_some(FIRST_GUARD_NS),
            quiet_ns,
            calm_since_ns: 0,
            emptied_at_ns: None,
            narrowed_at_ns: None,
            started_at_ns: None,
        }
    }

    /// What of the requested frames is not to be sent.
    fn held(&self) -> u64 {
        u64::from(self.queue.saturating_sub(self.target))
    }

    /// How long the answer to a request for so many frames is held back.
    fn hold_ns(&self, frames: u64) -> u64 {
        let round_ns = frames_to_ns(frames);
        match self.guard_ns {
            Some(guard_ns) if round_ns >= LEAST_ROUND_NS && frames <= u64::from(self.request) => {
                round_ns.saturating_sub(guard_ns)
            }
            _ => 0,
        }
    }

    /// The queue ran empty. True where the server must be asked for a longer one.
    fn ran_empty(&mut self, now_ns: u64) -> bool {
        self.calm_since_ns = now_ns;
        let starting = self.started_at_ns.is_none_or(|at| now_ns < at + STARTING_NS);
        let since_ns = self.emptied_at_ns.map_or(u64::MAX, |at| now_ns.saturating_sub(at));
        if starting || since_ns < WIDEN_EVERY_NS {
            return false;
        }
        self.emptied_at_ns = Some(now_ns);
        if self.narrowed_at_ns.is_some_and(|at| now_ns.saturating_sub(at) < *QUIET_NS.start()) {
            self.quiet_ns = (self.quiet_ns * 2).min(*QUIET_NS.end());
        } else if since_ns > HABIT_NS {
            return false;
        }
        if self.hold_ns(self.request.into()) > 0
            && let Some(guard_ns) = &mut self.guard_ns
        {
            *guard_ns += GUARD_STEP_NS;
            return false;
        }
        self.target = (self.target + WIDEN).min(MAX_QUEUE);
        self.target > self.queue
    }

    fn quiet(&mut self, now_ns: u64) {
        if self.started_at_ns.is_none() {
            self.started_at_ns = Some(now_ns);
            self.calm_since_ns = now_ns;
        }
        if now_ns.saturating_sub(self.calm_since_ns) < self.quiet_ns {
            return;
        }
        if self.target > self.request {
            self.target = self.target.saturating_sub(NARROW).max(self.request);
        } else if let Some(guard_ns) = self.guard_ns.as_mut().filter(|guard| **guard > LEAST_GUARD_NS) {
            *guard_ns = guard_ns.saturating_sub(GUARD_STEP_NS).max(LEAST_GUARD_NS);
        } else {
            return;
        }
        self.narrowed_at_ns = Some(now_ns);
        self.calm_since_ns = now_ns;
    }
}

struct Play {
    channel: u32,
    /// Bytes of a frame.
    frame: usize,
    notes: Sender<Note>,
    /// Who hears it.
    watch: Watch,
    tap: PlaybackTap,
    samples: Vec<f32>,
    bytes: Vec<u8>,
    /// Frames that the server has asked for and not got.
    wanted: u64,
    level: Level,
    /// When the answer that is held back must go out, and when it is taken.
    held: Option<(u64, u64)>,
    /// Bytes sent so far.
    sent: i64,
    /// When byte 0 of the stream was heard, or would have been, by the server's last word.
    heard_ns: Option<i64>,
    /// The numbers of the questions that are open.
    question: Option<u32>,
    resizing: Option<u32>,
    asked_at_ns: u64,
    /// The moment that the answer is about, where that is not the one of the question.
    asked_about_ns: Option<u64>,
}

impl Play {
    fn run(mut self, mut server: Connection) -> Result<(), Error> {
        self.supply(&mut server)?;
        server.tell(&Command::CorkPlaybackStream(CorkStreamParams { channel: self.channel, cork: false }))?;
        loop {
            if let Some((due_ns, taken_ns)) = self.held
                && !server.speaks_before(due_ns)?
            {
                // A signal wakes it as well; then it goes out a little too early.
                self.held = None;
                self.answer(&mut server, taken_ns)?;
                continue;
            }
            match server.next()? {
                // A playback stream gets none: a server that sends some is out of step.
                Message::Sound(_) => return Err(Error::Refused("sound where none belongs".into())),
                Message::Command => self.obey(&mut server)?,
            }
        }
    }

    fn obey(&mut self, server: &mut Connection) -> Result<(), Error> {
        let now_ns = monotonic_ns();
        if let Some(question) = self.question
            && let Some(mut answer) = server.answer_to(question)?
        {
            self.question = None;
            let said: PlaybackLatency = TagStructReader::new(&mut answer, server.version()).read()?;
            let at_ns = self.asked_about_ns.unwrap_or(self.asked_at_ns.midpoint(now_ns)).cast_signed();
            let device_ns = i64::try_from(said.sink_usec).unwrap_or(0).saturating_mul(1_000);
            self.heard_ns = Some(at_ns + device_ns - bytes_ns(said.read_offset, self.frame));
            return Ok(());
        }
        if let Some(question) = self.resizing
            && let Some(mut answer) = server.answer_to(question)?
        {
            self.resizing = None;
            let said: SetPlaybackStreamBufferAttrReply =
                TagStructReader::new(&mut answer, server.version()).read()?;
            self.level.queue = (said.buffer_attr.target_length / self.frame as u32).min(MAX_QUEUE);
            return Ok(());
        }
        if self.watch.answers(server)? {
            return Ok(());
        }
        match server.command() {
            Some(Command::Request(request)) if request.channel == self.channel => {
                let frames = request.length as u64 / self.frame as u64;
                self.wanted += frames;
                self.level.quiet(now_ns);
                let hold_ns = self.level.hold_ns(frames);
                // Whoever asks twice wants the first answer now.
                if self.held.take().is_none() && hold_ns > 0 {
                    self.held = Some((now_ns + hold_ns, now_ns + frames_to_ns(frames)));
                    return Ok(());
                }
                self.answer(server, 0)
            }
            Some(Command::Underflow(at)) if at.channel == self.channel => {
                self.tap.starved();
                tracing::trace!(frames = self.level.target, "the sound server's queue ran empty");
                if self.level.ran_empty(now_ns) && self.resizing.is_none() {
                    let target = self.level.target + self.level.request;
                    let longer = SetPlaybackStreamBufferAttrParams {
                        index: self.channel,
                        buffer_attr: attributes(target, self.level.request, self.frame),
                        adjust_latency: true,
                        early_requests: false,
                    };
                    self.resizing = Some(server.tell(&Command::SetPlaybackStreamBufferAttr(longer))?);
                }
                self.supply(server)
            }
            Some(Command::PlaybackStreamMoved(moved)) => {
                // Another device, another length of queue.
                let in_rounds = self.level.guard_ns.is_some();
                let frames = |bytes: u32| (bytes / self.frame as u32).min(MAX_QUEUE);
                let attributes = &moved.buffer_attr;
                self.level = Level::new(
                    frames(attributes.minimum_request_length),
                    frames(attributes.target_length),
                    in_rounds,
                );
                (self.heard_ns, self.question, self.resizing, self.held) = (None, None, None, None);
                let _ = self.notes.send(Note::Moved);
                self.watch.moved(server, moved.device_index)
            }
            Some(Command::SubscribeEvent(event)) => self.watch.event(server, event),
            Some(Command::PlaybackStreamKilled(channel)) if channel == self.channel => {
                Err(Error::Refused("the device is gone".into()))
            }
            _ => Ok(()),
        }
    }

    /// Answers requests, and asks now and then when what was sent will be heard. What a server that works in rounds has
    /// read it plays until the next round, at `taken_ns`; 0 for others, who know it to the moment.
    fn answer(&mut self, server: &mut Connection, taken_ns: u64) -> Result<(), Error> {
        self.supply(server)?;
        let now_ns = monotonic_ns();
        if now_ns.saturating_sub(self.asked_at_ns) > ASK_EVERY_NS {
            self.asked_at_ns = now_ns;
            self.asked_about_ns = (taken_ns > 0).then_some(taken_ns);
            let about = LatencyParams { channel: self.channel, now: SystemTime::UNIX_EPOCH };
            self.question = Some(server.tell(&Command::GetPlaybackLatency(about))?);
        }
        Ok(())
    }

    /// Sends what the queue lacks of its level.
    fn supply(&mut self, server: &mut Connection) -> Result<(), Error> {
        loop {
            let frames = self.wanted.saturating_sub(self.level.held()).min(MAX_FILL as u64) as usize;
            let length = frames * self.frame;
            let (Some(samples), Some(message)) = (
                self.samples.get_mut(..length / SAMPLE_BYTES),
                self.bytes.get_mut(..protocol::DESCRIPTOR_SIZE + length),
            ) else {
                return Ok(());
            };
            if frames == 0 {
                return Ok(());
            }
            let now_ns = monotonic_ns();
            let latency_ns = match self.heard_ns {
                Some(zero) => zero + bytes_ns(self.sent, self.frame) - now_ns.cast_signed(),
                None => frames_to_ns(u64::from(self.level.target)).cast_signed(),
            };
            self.tap.fill(samples, now_ns, latency_ns.max(0).unsigned_abs());
            let body = message.get_mut(protocol::DESCRIPTOR_SIZE..).unwrap_or_default();
            for (bytes, sample) in body.as_chunks_mut::<SAMPLE_BYTES>().0.iter_mut().zip(samples) {
                *bytes = sample.to_le_bytes();
            }
            server.send(self.channel, message)?;
            self.sent += length as i64;
            self.wanted -= frames as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = NS_PER_SECOND;

    #[test]
    fn a_queue_that_runs_empty_grows_once_a_stall_and_shrinks_after_quiet_time() {
        let mut level = Level::new(120, 360, false);
        assert_eq!((level.target, level.held()), (216, 144));
        level.quiet(SECOND / 2);
        assert!(!level.ran_empty(SECOND));
        assert_eq!(level.target, 216, "it starts");
        let stall = 3 * SECOND;
        assert!(!level.ran_empty(2 * SECOND));
        assert_eq!(level.target, 216, "a lone click is forgiven");
        (0..50).for_each(|i| assert!(!level.ran_empty(stall + i * 1_000_000)));
        assert_eq!(level.target, 264);
        (1..=91).for_each(|s| level.quiet(stall + s * SECOND));
        assert_eq!(level.target, 120, "no less than one request");
        assert!(!level.ran_empty(stall + 92 * SECOND));
        assert_eq!(level.quiet_ns, 30 * SECOND, "it was narrowed too soon");
    }

    #[test]
    fn answers_to_a_server_that_works_in_rounds_are_held_back_and_go_out_earlier_after_each_that_was_late() {
        let mut level = Level::new(256, 768, true);
        let round_ns = frames_to_ns(256);
        assert_eq!(level.hold_ns(256), round_ns - FIRST_GUARD_NS);
        assert_eq!(level.hold_ns(700), 0, "it fills its queue");
        level.quiet(1);
        (2..11).for_each(|s| assert!(!level.ran_empty(s * SECOND)));
        assert_eq!((level.hold_ns(256), level.target), (0, 256 + FIRST_MARGIN_HOLDING));
        level.ran_empty(11 * SECOND);
        assert_eq!(level.target, 256 + FIRST_MARGIN_HOLDING + WIDEN, "only then the queue grows");
        (12..2_000).for_each(|s| level.quiet(s * SECOND));
        assert_eq!((level.hold_ns(256), level.target), (round_ns - LEAST_GUARD_NS, 256));
        assert_eq!(Level::new(120, 360, true).hold_ns(120), 0, "short rounds are answered at once");
    }

    #[test]
    fn a_queue_longer_than_the_server_holds_is_asked_for_up_to_a_bound() {
        let mut level = Level::new(120, 230, false);
        level.quiet(1);
        level.ran_empty(SECOND + 1);
        assert!(level.ran_empty(2 * SECOND));
        (3..300).for_each(|s| {
            level.ran_empty(s * SECOND);
        });
        assert_eq!(level.target, MAX_QUEUE);
    }
}
