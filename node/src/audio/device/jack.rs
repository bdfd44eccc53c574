//! JACK ports, of a JACK server or of PipeWire in its stead: the callback runs inside the server's own cycle, so nothing
//! waits between us and the other programs of the graph. The library is looked for when a port is asked for, so none is
//! needed to run.
//!
//! `jack` means the server's own devices, `jack:PREFIX` the ports whose names begin so, as `jack:system:capture_1`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Sender;

use cpal::ErrorKind;
use jack::{
    AudioIn, AudioOut, Client, ClientOptions, Control, LatencyType, LoggerType, NotificationHandler,
    PortFlags,
};

use super::super::clock::monotonic_ns;
use super::super::event::End;
use super::find::Made;
use super::keeper::{self, Note, Opened};
use super::tap::{CaptureTap, PlaybackTap};
use super::{Facts, Reach, Shape, SharedReach, frames_ns};

/// Longest cycle that is taken, frames; what is beyond it is silence.
const MAX_CYCLE: usize = 8_192;

/// Ports of other programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports {
    /// Their beginning; nothing means the server's own devices.
    prefix: Option<String>,
}

impl Ports {
    /// The ports that a name means, if it speaks of JACK.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name.split_once(':') {
            None if name.eq_ignore_ascii_case("jack") => Some(Self { prefix: None }),
            Some((host, prefix)) if host.eq_ignore_ascii_case("jack") && !prefix.is_empty() => {
                Some(Self { prefix: Some(prefix.to_owned()) })
            }
            _ => None,
        }
    }

    pub(crate) fn id(&self) -> String {
        self.prefix.as_ref().map_or_else(|| "jack".into(), |prefix| format!("jack:{prefix}"))
    }

    /// Those that exist, for as many channels as are wanted; one port serves several.
    fn find(&self, client: &Client, flags: PortFlags, channels: u16) -> Vec<String> {
        let own = if self.prefix.is_none() { PortFlags::IS_PHYSICAL } else { PortFlags::empty() };
        let all = client.ports(None, Some("32 bit float mono audio"), flags | own);
        let begins =
            |port: &String| self.prefix.as_ref().is_none_or(|prefix| port.starts_with(prefix.as_str()));
        all.into_iter().filter(begins).take(usize::from(channels.max(1))).collect()
    }
}

/// Whether a server answers.
pub(crate) fn is_there() -> bool {
    client("hallway-look").is_ok()
}

/// A client that runs until dropped.
trait Running: Send {
    fn has_port(&self, name: &str) -> bool;
}

impl<N, P> Running for jack::AsyncClient<N, P>
where
    N: 'static + Send + Sync + NotificationHandler,
    P: 'static + Send + jack::ProcessHandler,
{
    fn has_port(&self, name: &str) -> bool {
        self.as_client().port_by_name(name).is_some()
    }
}

/// Activates a client and connects its ports.
type Begin = dyn FnOnce() -> Result<Box<dyn Running>, String> + Send;

/// A client, not running yet or running until dropped.
pub(crate) struct Stream {
    idle: Option<Box<Begin>>,
    running: Option<Box<dyn Running>>,
    /// The ports of others that it is connected to.
    theirs: Vec<String>,
}

impl Stream {
    pub(crate) fn play(&mut self) -> Result<(), String> {
        if let Some(begin) = self.idle.take() {
            self.running = Some(begin()?);
        }
        Ok(())
    }

    /// A port that it was connected to and that is gone, as when a card is unplugged or a program ends. One that people
    /// have connected elsewhere is not missing.
    pub(crate) fn missing(&self) -> Option<String> {
        let running = self.running.as_ref()?;
        let gone = self.theirs.iter().find(|port| !running.has_port(port))?;
        Some(format!("the JACK port {gone} is gone"))
    }
}

/// Counts the server's own misses. Told on a thread of its own.
struct Misses(Arc<AtomicU32>);

impl NotificationHandler for Misses {
    fn xrun(&mut self, _: &Client) -> Control {
        self.0.fetch_add(1, Ordering::Relaxed);
        Control::Continue
    }
}

/// What runs in each cycle of the server. Real-time safe.
struct Cycle<Tap> {
    tap: Tap,
    block: Vec<f32>,
    channels: usize,
    rate_hz: u32,
    /// What JACK says lies between our ports and the air, frames.
    beyond: Arc<AtomicU32>,
}

impl<Tap> Cycle<Tap> {
    fn new(tap: Tap, channels: usize, rate_hz: u32, beyond: Arc<AtomicU32>) -> Self {
        Self { tap, block: vec![0.0; MAX_CYCLE * channels], channels, rate_hz, beyond }
    }

    fn latency_ns(&self) -> u64 {
        frames_ns(u64::from(self.beyond.load(Ordering::Relaxed)), self.rate_hz)
    }
}

impl Cycle<CaptureTap> {
    /// Takes what each port holds.
    fn capture<'a>(&mut self, frames: usize, ports: impl Iterator<Item = &'a [f32]>, at_ns: u64) {
        for (channel, port) in ports.enumerate() {
            let samples = self.block.iter_mut().skip(channel).step_by(self.channels);
            samples.zip(port).for_each(|(to, from)| *to = *from);
        }
        // JACK counts the cycle itself as latency of a capturing port.
        let age_ns = self.latency_ns();
        let whole = self.block.get(..frames.min(MAX_CYCLE) * self.channels).unwrap_or_default();
        self.tap.deliver(whole, at_ns, age_ns);
    }
}

impl Cycle<PlaybackTap> {
    /// Fills each port.
    fn play<'a>(&mut self, frames: usize, ports: impl Iterator<Item = &'a mut [f32]>, at_ns: u64) {
        let (frames, latency_ns) = (frames.min(MAX_CYCLE), self.latency_ns());
        if let Some(block) = self.block.get_mut(..frames * self.channels) {
            self.tap.fill(block, at_ns, latency_ns);
        }
        for (channel, port) in ports.enumerate() {
            let samples = self.block.iter().skip(channel).step_by(self.channels).take(frames);
            port.iter_mut().zip(samples).for_each(|(to, from)| *to = *from);
        }
    }
}

/// Opens a client that captures, not running yet.
///
/// # Errors
/// No server, or no such ports.
pub(crate) fn open_capture<L>(
    ports: &Ports,
    shape: Shape,
    _notes: Sender<Note>,
    make: impl Fn(&Facts) -> Made<CaptureTap, L>,
) -> Result<Opened<L>, cpal::Error> {
    let (client, facts, theirs) = prepare(ports, shape, End::Input)?;
    let (tap, live, beat) = make(&facts)?;
    let mine = register::<AudioIn>(&client, shape, "in")?;
    let names: Vec<String> = mine.iter().filter_map(|port| port.name().ok()).collect();
    let beyond = Arc::new(AtomicU32::new(0));
    let mut cycle = Cycle::new(tap, mine.len(), facts.rate_hz, beyond.clone());
    let process = move |_: &Client, scope: &jack::ProcessScope| {
        let ports = mine.iter().map(|port| port.as_slice(scope));
        cycle.capture(scope.n_frames() as usize, ports, monotonic_ns());
        Control::Continue
    };
    let ports = theirs.clone();
    let begin = move || {
        let process = jack::contrib::ClosureProcessHandler::new(process);
        let running = client.activate_async((), process).map_err(|e| e.to_string())?;
        connect(running.as_client(), ports.iter().zip(names.iter().cycle()))?;
        let mine = names.first().and_then(|name| running.as_client().port_by_name(name));
        let range = mine.map_or((0, 0), |port| port.get_latency_range(LatencyType::Capture));
        beyond.store(range.1, Ordering::Relaxed);
        Ok(Box::new(running) as Box<dyn Running>)
    };
    let stream = Stream { idle: Some(Box::new(begin)), running: None, theirs };
    Ok(Opened { stream: keeper::Stream::Jack(stream), live, beat })
}

/// Opens a client that plays, not running yet.
///
/// # Errors
/// No server, or no such ports.
pub(crate) fn open_playback<L>(
    ports: &Ports,
    shape: Shape,
    _notes: Sender<Note>,
    make: impl Fn(&Facts) -> Made<PlaybackTap, L>,
) -> Result<Opened<L>, cpal::Error> {
    let (client, facts, theirs) = prepare(ports, shape, End::Output)?;
    let (tap, live, beat) = make(&facts)?;
    let mut mine = register::<AudioOut>(&client, shape, "out")?;
    let names: Vec<String> = mine.iter().filter_map(|port| port.name().ok()).collect();
    let (beyond, misses) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut cycle = Cycle::new(tap, mine.len(), facts.rate_hz, beyond.clone());
    let (missed, mut seen) = (misses.clone(), 0);
    let process = move |_: &Client, scope: &jack::ProcessScope| {
        let now = missed.load(Ordering::Relaxed);
        if now != seen {
            seen = now;
            cycle.tap.starved();
        }
        let ports = mine.iter_mut().map(|port| port.as_mut_slice(scope));
        cycle.play(scope.n_frames() as usize, ports, monotonic_ns());
        Control::Continue
    };
    let ports = theirs.clone();
    let begin = move || {
        let process = jack::contrib::ClosureProcessHandler::new(process);
        let running = client.activate_async(Misses(misses), process).map_err(|e| e.to_string())?;
        connect(running.as_client(), names.iter().cycle().zip(&ports))?;
        let mine = names.first().and_then(|name| running.as_client().port_by_name(name));
        let range = mine.map_or((0, 0), |port| port.get_latency_range(LatencyType::Playback));
        beyond.store(range.1, Ordering::Relaxed);
        Ok(Box::new(running) as Box<dyn Running>)
    };
    let stream = Stream { idle: Some(Box::new(begin)), running: None, theirs };
    Ok(Opened { stream: keeper::Stream::Jack(stream), live, beat })
}

fn client(name: &str) -> Result<Client, cpal::Error> {
    // The library's complaints say nothing that its errors do not.
    jack::set_logger(LoggerType::None);
    let opened = Client::new(name, ClientOptions::NO_START_SERVER);
    let refused = |e: jack::Error| {
        let reason = match e {
            jack::Error::LibraryError(_) => {
                "libjack is not installed; PipeWire's is in the package pipewire-jack".into()
            }
            jack::Error::ClientError(_) => "no JACK server runs here".to_owned(),
            other => other.to_string(),
        };
        cpal::Error::with_message(ErrorKind::HostUnavailable, reason)
    };
    opened.map(|(client, _)| client).map_err(refused)
}

fn prepare(ports: &Ports, shape: Shape, end: End) -> Result<(Client, Facts, Vec<String>), cpal::Error> {
    let client = client("hallway")?;
    // What others put out is what we take in.
    let flags = if end == End::Input { PortFlags::IS_OUTPUT } else { PortFlags::IS_INPUT };
    let theirs = ports.find(&client, flags, shape.channels);
    if theirs.is_empty() {
        let reason = format!("JACK has no such {end} port: {}", ports.id());
        return Err(cpal::Error::with_message(ErrorKind::DeviceNotAvailable, reason));
    }
    let reach = Reach::of(None, theirs.first().map(String::as_str), ports.prefix.is_none());
    let (rate_hz, buffer) = (client.sample_rate(), client.buffer_size());
    Ok((client, Facts { rate_hz, channels: shape.channels, buffer, reach: SharedReach::new(reach) }, theirs))
}

fn register<P: jack::PortSpec + Default>(
    client: &Client,
    shape: Shape,
    name: &str,
) -> Result<Vec<jack::Port<P>>, cpal::Error> {
    (1..=shape.channels)
        .map(|n| {
            let port = client.register_port(&format!("{name}_{n}"), P::default());
            port.map_err(|e| cpal::Error::with_message(ErrorKind::DeviceNotAvailable, e.to_string()))
        })
        .collect()
}

fn connect<'a>(client: &Client, pairs: impl Iterator<Item = (&'a String, &'a String)>) -> Result<(), String> {
    for (from, to) in pairs {
        client.connect_ports_by_name(from, to).map_err(|e| e.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtrb::RingBuffer;

    type Ends<T> = (Cycle<T>, rtrb::Consumer<super::super::tap::Stamp>);

    fn capturing() -> (Ends<CaptureTap>, rtrb::Consumer<f32>) {
        let ((ring, sound), (stamps, told)) = (RingBuffer::new(4_096), RingBuffer::new(64));
        let tap = CaptureTap::new(ring, stamps, Arc::default(), 2, 2);
        ((Cycle::new(tap, 2, 48_000, Arc::new(AtomicU32::new(256))), told), sound)
    }

    fn playing() -> (Ends<PlaybackTap>, rtrb::Producer<f32>) {
        let ((sound, ring), (stamps, told)) = (RingBuffer::new(4_096), RingBuffer::new(64));
        let tap = PlaybackTap::new(ring, stamps, Arc::default(), 2, 2);
        ((Cycle::new(tap, 2, 48_000, Arc::new(AtomicU32::new(256))), told), sound)
    }

    #[test]
    fn ports_become_channels_and_back_and_the_cycle_is_counted_once() {
        let ((mut cycle, mut told), mut sound) = capturing();
        cycle.capture(2, [[0.1f32, 0.2].as_slice(), [-0.1, -0.2].as_slice()].into_iter(), 7);
        let heard: Vec<f32> = std::iter::from_fn(|| sound.pop().ok()).collect();
        assert_eq!(heard, [0.1, -0.1, 0.2, -0.2]);
        assert_eq!(told.pop().map(|stamp| (stamp.count, stamp.latency_ns)), Ok((2, frames_ns(256, 48_000))));
        let ((mut cycle, _told), mut sound) = playing();
        assert!(sound.push_entire_slice(&[0.1, -0.1, 0.2, -0.2]).is_ok());
        let (mut left, mut right) = ([9.0f32; 2], [9.0f32; 2]);
        cycle.play(2, [left.as_mut_slice(), right.as_mut_slice()].into_iter(), 7);
        assert_eq!((left, right), ([0.1, 0.2], [-0.1, -0.2]));
    }

    /// Cycles of both directions, of several lengths; one is longer than is taken.
    fn cycles() -> impl FnMut() + Send + 'static {
        let (((mut ear, mut ear_told), mut heard), ((mut mouth, mut mouth_told), mut sound)) =
            (capturing(), playing());
        let (coming, mut left, mut right) =
            (vec![0.1f32; MAX_CYCLE + 1], vec![0.0; MAX_CYCLE + 1], vec![0.0; MAX_CYCLE + 1]);
        move || {
            for frames in [16, 256, 1_024, MAX_CYCLE + 1] {
                ear.capture(frames, [&coming[..frames], &coming[..frames]].into_iter(), 7);
                let _ = sound.push_entire_slice(&coming[..512]);
                mouth.play(frames, [&mut left[..frames], &mut right[..frames]].into_iter(), 7);
                while heard.pop().is_ok() || ear_told.pop().is_ok() || mouth_told.pop().is_ok() {}
            }
        }
    }

    #[test]
    fn cycles_allocate_nothing() {
        let mut cycles = cycles();
        assert_eq!(crate::audio::allocations::count(&mut cycles), 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn cycles_make_no_system_call() {
        let name = "audio::device::jack::tests::cycles_make_no_system_call";
        crate::audio::strictly::without_system_calls(name, cycles);
    }

    #[test]
    fn a_name_that_speaks_of_jack_is_told_from_others() {
        assert_eq!(Ports::named("jack").map(|ports| ports.id()), Some("jack".into()));
        assert_eq!(
            Ports::named("jack:micA:capture").map(|ports| ports.id()),
            Some("jack:micA:capture".into())
        );
        for other in ["", "jack:", "alsa:jack", "hijack", "pulseaudio:jack"] {
            assert_eq!(Ports::named(other), None, "{other}");
        }
    }
}
