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
    let (mut tap, live, beat) = make(&facts)?;
    let mine = register::<AudioIn>(&client, shape, "in")?;
    let names: Vec<String> = mine.iter().filter_map(|port| port.name().ok()).collect();
    let beyond = Arc::new(AtomicU32::new(0));
    let (rate_hz, told) = (facts.rate_hz, beyond.clone());
    let mut block = vec![0.0f32; MAX_CYCLE * mine.len()];
    let process = move |_: &Client, scope: &jack::ProcessScope| {
        let frames = (scope.n_frames() as usize).min(MAX_CYCLE);
        let channels = mine.len();
        for (channel, port) in mine.iter().enumerate() {
            let samples = block.iter_mut().skip(channel).step_by(channels);
            samples.zip(port.as_slice(scope)).for_each(|(to, from)| *to = *from);
        }
        // JACK counts the cycle itself as latency of a capturing port.
        let age_ns = frames_ns(u64::from(told.load(Ordering::Relaxed)), rate_hz);
        tap.deliver(block.get(..frames * channels).unwrap_or_default(), monotonic_ns(), age_ns);
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
    let (mut tap, live, beat) = make(&facts)?;
    let mut mine = register::<AudioOut>(&client, shape, "out")?;
    let names: Vec<String> = mine.iter().filter_map(|port| port.name().ok()).collect();
    let (beyond, misses) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (rate_hz, told, missed) = (facts.rate_hz, beyond.clone(), misses.clone());
    let (mut block, mut seen) = (vec![0.0f32; MAX_CYCLE * mine.len()], 0);
    let process = move |_: &Client, scope: &jack::ProcessScope| {
        let frames = (scope.n_frames() as usize).min(MAX_CYCLE);
        let channels = mine.len();
        let now = missed.load(Ordering::Relaxed);
        if now != seen {
            seen = now;
            tap.starved();
        }
        let latency_ns = frames_ns(u64::from(told.load(Ordering::Relaxed)), rate_hz);
        if let Some(block) = block.get_mut(..frames * channels) {
            tap.fill(block, monotonic_ns(), latency_ns);
        }
        for (channel, port) in mine.iter_mut().enumerate() {
            let samples = block.iter().skip(channel).step_by(channels).take(frames);
            port.as_mut_slice(scope).iter_mut().zip(samples).for_each(|(to, from)| *to = *from);
        }
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
