//! Which devices there are, by which names people may call them, and how each is asked to run. PulseAudio and PipeWire
//! are spoken to by [`super::pulse`], everything else by cpal.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Sender;
use std::time::Duration;

use cpal::traits::{DeviceTrait, HostTrait};
use cpal::{BufferSize, ErrorKind, HostId, I24, SampleFormat, StreamConfig, SupportedBufferSize};

use super::super::clock::{RATE_HZ, monotonic_ns};
use super::super::convert::{ConvertError, Live};
use super::super::error::Error;
use super::super::event::End;
use super::keeper::{Note, Opened, Stream};
use super::tap::{CaptureTap, PlaybackTap};
use super::{Facts, Reach, Shape, SharedReach, jack, pulse};

/// Longest wait for a sound server to create a stream.
const BUILD_TIMEOUT: Duration = Duration::from_secs(2);
/// Formats in the order in which they are asked for.
const FORMATS: [SampleFormat; 6] = [
    SampleFormat::F32,
    SampleFormat::I32,
    SampleFormat::I24,
    SampleFormat::I16,
    SampleFormat::U16,
    SampleFormat::U8,
];
/// Buffers that are tried, in periods: the smallest that the device takes.
const BUFFER_PERIODS: [u32; 4] = [1, 2, 4, 8];

/// Which device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    Default,
    Named(String),
}

/// One line of `hallway devices`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DeviceInfo {
    /// Sound system: `pulseaudio`, `alsa`.
    pub host: String,
    /// What `--input` and `--output` take without doubt, as `pulseaudio:alsa_input.usb`.
    pub id: String,
    /// The name for people; `--input` and `--output` take it too.
    pub name: String,
    /// It captures.
    pub input: bool,
    /// It plays.
    pub output: bool,
    /// It is what `--input default` takes.
    pub default_input: bool,
    /// It is what `--output default` takes.
    pub default_output: bool,
    /// Its usual rate, hertz.
    pub rate_hz: Option<u32>,
    /// Its usual channels.
    pub channels: Option<u16>,
}

/// A sound system that devices belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// PulseAudio, or PipeWire in its stead.
    Pulse,
    /// JACK, or PipeWire in its stead. Only by name.
    Jack,
    /// One that cpal knows.
    Cpal(HostId),
}

impl System {
    /// In the order in which their defaults are taken.
    fn all() -> impl Iterator<Item = Self> {
        [Self::Pulse].into_iter().chain(cpal::ALL_HOSTS.iter().copied().map(Self::Cpal))
    }
}

impl std::fmt::Display for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pulse => f.write_str("pulseaudio"),
            Self::Jack => f.write_str("jack"),
            Self::Cpal(id) => id.fmt(f),
        }
    }
}

/// A device that can be opened.
pub(crate) enum Device {
    /// A sink or a source.
    Pulse(pulse::Device),
    /// Ports.
    Jack(jack::Ports),
    /// One that cpal opens.
    Cpal(cpal::Device),
}

/// Every sound device of every sound system that answers, in no more than a few seconds.
pub fn list_devices() -> Vec<DeviceInfo> {
    // ALSA's complaints are silenced per thread: this one is ours.
    let listing = std::thread::Builder::new().name("sound list".into()).spawn(|| {
        let _quiet = quiet_alsa();
        let mut list =
            pulse::devices(pulse::PATIENCE).unwrap_or_default().iter().map(of_pulse).collect::<Vec<_>>();
        list.extend(jack::is_there().then(of_jack));
        for id in cpal::ALL_HOSTS {
            let Ok(host) = cpal::host_from_id(*id) else { continue };
            // The first system that answers is the one whose default we take.
            let has = |wanted: fn(&DeviceInfo) -> bool| list.iter().any(wanted);
            let taken = (has(|d| d.default_input), has(|d| d.default_output));
            let called = |device: Option<cpal::Device>| device.and_then(|d| d.id().ok());
            let (input, output) = (called(host.default_input_device()), called(host.default_output_device()));
            for device in host.devices().into_iter().flatten() {
                let Ok(id) = device.id() else { continue };
                if noisy(&id) {
                    continue;
                }
                let mut info = describe(&device, &id);
                info.default_input = !taken.0 && info.input && input.as_ref() == Some(&id);
                info.default_output = !taken.1 && info.output && output.as_ref() == Some(&id);
                list.push(info);
            }
        }
        list
    });
    listing.ok().and_then(|thread| thread.join().ok()).unwrap_or_default()
}

fn of_pulse(device: &pulse::Device) -> DeviceInfo {
    let (input, output) = (device.end == End::Input, device.end == End::Output);
    DeviceInfo {
        host: System::Pulse.to_string(),
        id: pulse_id(device),
        name: device.description.clone(),
        input,
        output,
        default_input: input && device.default,
        default_output: output && device.default,
        rate_hz: Some(device.rate_hz),
        channels: Some(device.channels),
    }
}

fn of_jack() -> DeviceInfo {
    DeviceInfo {
        host: System::Jack.to_string(),
        id: System::Jack.to_string(),
        name: "JACK's own devices; ports by name as jack:system:capture_1".into(),
        input: true,
        output: true,
        default_input: false,
        default_output: false,
        rate_hz: None,
        channels: None,
    }
}

fn pulse_id(device: &pulse::Device) -> String {
    format!("{}:{}", System::Pulse, device.id())
}

fn describe(device: &cpal::Device, id: &cpal::DeviceId) -> DeviceInfo {
    let (as_input, as_output) = (device.default_input_config().ok(), device.default_output_config().ok());
    let usual = as_input.as_ref().or(as_output.as_ref());
    DeviceInfo {
        host: id.host().to_string(),
        id: id.to_string(),
        name: name_of(device),
        input: as_input.is_some(),
        output: as_output.is_some(),
        default_input: false,
        default_output: false,
        rate_hz: usual.map(|c| c.sample_rate()),
        channels: usual.map(|c| c.channels()),
    }
}

fn may(device: &cpal::Device, end: End) -> bool {
    use cpal::DeviceDirection::{Duplex, Input, Output, Unknown};
    let direction = device.description().map_or(Unknown, |d| d.direction());
    match end {
        End::Input => matches!(direction, Input | Duplex | Unknown),
        End::Output => matches!(direction, Output | Duplex | Unknown),
    }
}

/// ALSA's way to JACK: asked what it can do, it scolds on standard error when no JACK server runs, past every handler.
/// It is left out of lists and still opens by its name.
fn noisy(id: &cpal::DeviceId) -> bool {
    id.host() == HostId::Alsa && id.id() == "jack"
}

fn name_of(device: &cpal::Device) -> String {
    device.description().map_or_else(|_| "unnamed".into(), |d| d.name().to_owned())
}

/// A device that may be meant.
pub(crate) struct Candidate {
    pub device: Device,
    /// Its id.
    pub name: String,
    pub system: System,
}

/// Devices to be tried in order, and why some sound systems offered none.
#[derive(Default)]
pub(crate) struct Candidates {
    pub devices: Vec<Candidate>,
    pub reasons: Vec<String>,
    known: Vec<String>,
}

/// The devices that `wanted` may mean. `only` leaves out all other sound systems; a sound server has `patience` to answer.
///
/// # Errors
/// [`Error::NotFound`] for a name that none has, [`Error::NoDevice`] if no sound system has a default.
pub(crate) fn candidates(
    wanted: &Wanted,
    end: End,
    only: Option<System>,
    patience: Duration,
) -> Result<Candidates, Error> {
    let mut found = Candidates::default();
    if let Wanted::Named(name) = wanted
        && let Some(ports) = jack::Ports::named(name)
    {
        let (name, system) = (ports.id(), System::Jack);
        found.devices.push(Candidate { device: Device::Jack(ports), name, system });
        return Ok(found);
    }
    for system in System::all().filter(|system| only.is_none_or(|only| only == *system)) {
        match system {
            System::Pulse => found.add_pulse(wanted, end, patience),
            System::Jack => {}
            System::Cpal(id) => found.add_cpal(id, wanted, end),
        }
    }
    match wanted {
        _ if !found.devices.is_empty() => Ok(found),
        Wanted::Default => Err(Error::NoDevice { end, reason: found.reasons.join("; ") }),
        Wanted::Named(name) => Err(Error::NotFound { end, name: name.clone(), known: found.known }),
    }
}

/// The ids of the devices that `wanted` may mean now.
pub(crate) fn names(wanted: &Wanted, end: End) -> Vec<String> {
    let found = candidates(wanted, end, None, pulse::PATIENCE);
    found.map_or_else(|_| Vec::new(), |found| found.devices.into_iter().map(|one| one.name).collect())
}

impl Candidates {
    fn add_pulse(&mut self, wanted: &Wanted, end: End, patience: Duration) {
        let system = System::Pulse;
        let devices = match pulse::devices(patience) {
            Ok(devices) => devices,
            Err(error) => {
                self.reasons.push(error.to_string());
                return;
            }
        };
        let before = self.devices.len();
        for mut device in devices.into_iter().filter(|device| device.end == end) {
            device.follow = *wanted == Wanted::Default;
            let id = pulse_id(&device);
            let meant = match wanted {
                Wanted::Default => device.default,
                Wanted::Named(name) => {
                    [&id, &device.id(), &device.description].into_iter().any(|n| n.eq_ignore_ascii_case(name))
                }
            };
            if meant {
                self.devices.push(Candidate { device: Device::Pulse(device), name: id, system });
            } else {
                self.known.push(id);
            }
        }
        if *wanted == Wanted::Default && self.devices.len() == before {
            self.reasons.push(format!("{system} has no default {end}"));
        }
    }

    fn add_cpal(&mut self, id: HostId, wanted: &Wanted, end: End) {
        let system = System::Cpal(id);
        let host = match cpal::host_from_id(id) {
            Ok(host) => host,
            Err(error) => {
                self.reasons.push(error.to_string());
                return;
            }
        };
        match wanted {
            Wanted::Default => {
                let device = match end {
                    End::Input => host.default_input_device(),
                    End::Output => host.default_output_device(),
                };
                match device {
                    Some(device) => {
                        let name = device.id().map_or_else(|_| name_of(&device), |id| id.to_string());
                        self.devices.push(Candidate { device: Device::Cpal(device), name, system });
                    }
                    None => self.reasons.push(format!("{system} has no default {end}")),
                }
            }
            Wanted::Named(name) => {
                for device in host.devices().into_iter().flatten() {
                    let Ok(device_id) = device.id() else { continue };
                    let names = [device_id.to_string(), device_id.id().to_owned(), name_of(&device)];
                    // What a device says of itself costs nothing; asking whether it really can opens it.
                    if !may(&device, end) {
                        continue;
                    }
                    if names.iter().any(|n| n.eq_ignore_ascii_case(name)) {
                        let name = device_id.to_string();
                        self.devices.push(Candidate { device: Device::Cpal(device), name, system });
                    } else if !noisy(&device_id) {
                        self.known.extend(names.into_iter().next());
                    }
                }
            }
        }
    }
}

/// What the callback's side, the media thread's side and the keeper hold of a device: its tap, its live end, and the
/// time of its last callback.
pub(crate) type Made<Tap, Live> = Result<(Tap, Live, Arc<AtomicU64>), cpal::Error>;

/// The converter between a device and 48 kHz, none if it runs at 48 kHz itself.
pub(crate) fn converter(
    facts: &Facts,
    make: impl FnOnce() -> Result<Live, ConvertError>,
) -> Result<Option<Live>, cpal::Error> {
    if facts.rate_hz == RATE_HZ {
        return Ok(None);
    }
    make().map(Some).map_err(|e| cpal::Error::with_message(ErrorKind::UnsupportedConfig, e.to_string()))
}

/// Runs `$work` with `$data` as a slice of the samples that a device's format has.
macro_rules! in_format {
    ($format:expr, $data:expr, $as_slice:ident, $samples:ident => $work:expr) => {
        match $format {
            SampleFormat::F32 => in_format!(@ f32, $data, $as_slice, $samples => $work),
            SampleFormat::I32 => in_format!(@ i32, $data, $as_slice, $samples => $work),
            SampleFormat::I24 => in_format!(@ I24, $data, $as_slice, $samples => $work),
            SampleFormat::I16 => in_format!(@ i16, $data, $as_slice, $samples => $work),
            SampleFormat::U16 => in_format!(@ u16, $data, $as_slice, $samples => $work),
            _ => in_format!(@ u8, $data, $as_slice, $samples => $work),
        }
    };
    (@ $sample:ty, $data:expr, $as_slice:ident, $samples:ident => $work:expr) => {{
        let $samples = $data.$as_slice::<$sample>().unwrap_or_default();
        $work
    }};
}

/// Opens a capture stream with the smallest buffer that the device takes.
pub(crate) fn build_input<L>(
    device: &Device,
    shape: Shape,
    notes: Sender<Note>,
    make: impl Fn(&Facts) -> Made<CaptureTap, L>,
) -> Result<Opened<L>, cpal::Error> {
    let device = match device {
        Device::Pulse(device) => return pulse::open_capture(device, shape, notes, make),
        Device::Jack(ports) => return jack::open_capture(ports, shape, notes, make),
        Device::Cpal(device) => device,
    };
    let usual = device.default_input_config()?;
    let plan = Plan::choose(device.supported_input_configs()?, usual, shape);
    plan.smallest_buffer(shape, reach_of(device), |config, facts| {
        let (mut tap, live, beat) = make(facts)?;
        let format = plan.format;
        let stream = device.build_input_stream_raw(
            config,
            format,
            move |data, info| {
                let at = info.timestamp();
                let (now, latency) = (monotonic_ns(), ns_between(at.capture, at.callback));
                in_format!(format, data, as_slice, samples => tap.deliver(samples, now, latency));
            },
            on_error(notes.clone()),
            Some(BUILD_TIMEOUT),
        )?;
        Ok(Opened { stream: Stream::Cpal(stream), live, beat })
    })
}

/// Opens a playback stream with the smallest buffer that the device takes.
pub(crate) fn build_output<L>(
    device: &Device,
    shape: Shape,
    notes: Sender<Note>,
    make: impl Fn(&Facts) -> Made<PlaybackTap, L>,
) -> Result<Opened<L>, cpal::Error> {
    let device = match device {
        Device::Pulse(device) => return pulse::open_playback(device, shape, notes, make),
        Device::Jack(ports) => return jack::open_playback(ports, shape, notes, make),
        Device::Cpal(device) => device,
    };
    let usual = device.default_output_config()?;
    let plan = Plan::choose(device.supported_output_configs()?, usual, shape);
    plan.smallest_buffer(shape, reach_of(device), |config, facts| {
        let (mut tap, live, beat) = make(facts)?;
        let format = plan.format;
        let stream = device.build_output_stream_raw(
            config,
            format,
            move |data, info| {
                let at = info.timestamp();
                let (now, latency) = (monotonic_ns(), ns_between(at.callback, at.playback));
                in_format!(format, data, as_slice_mut, samples => tap.fill(samples, now, latency));
            },
            on_error(notes.clone()),
            Some(BUILD_TIMEOUT),
        )?;
        Ok(Opened { stream: Stream::Cpal(stream), live, beat })
    })
}

/// ALSA says nothing about what is plugged in; only the name may.
fn reach_of(device: &cpal::Device) -> Reach {
    Reach::of(None, Some(&name_of(device)), true)
}

fn ns_between(earlier: cpal::StreamInstant, later: cpal::StreamInstant) -> u64 {
    later.checked_duration_since(earlier).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// Errors of a running stream, on a thread that is not the callback's. Some are only news.
fn on_error(notes: Sender<Note>) -> impl FnMut(cpal::Error) + Send + 'static {
    move |error| match error.kind() {
        ErrorKind::Xrun | ErrorKind::RealtimeDenied | ErrorKind::DeviceChanged => {
            tracing::debug!(%error, "sound device");
        }
        _ => {
            let _ = notes.send(Note::Broken(error.to_string()));
        }
    }
}

/// How a device is asked to run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    rate_hz: u32,
    channels: u16,
    format: SampleFormat,
    /// Frames a buffer may have.
    buffers: (u32, u32),
}

impl Plan {
    /// 48 kHz before other rates, our channels before more of them, floats before integers.
    fn choose(
        offers: impl Iterator<Item = cpal::SupportedStreamConfigRange>,
        usual: cpal::SupportedStreamConfig,
        shape: Shape,
    ) -> Self {
        let bounds = |size: &SupportedBufferSize| match size {
            SupportedBufferSize::Range { min, max } => ((*min).max(1), *max),
            SupportedBufferSize::Unknown => (1, u32::MAX),
        };
        let price = |plan: &Self| {
            let format = FORMATS.iter().position(|f| *f == plan.format);
            let wrong_rate = u32::from(plan.rate_hz != RATE_HZ) * (1 + u32::from(plan.rate_hz < RATE_HZ));
            let channels = u32::from(plan.channels.abs_diff(shape.channels));
            format.map(|format| (wrong_rate, channels + u32::from(plan.channels < shape.channels), format))
        };
        let usual = Self {
            rate_hz: usual.sample_rate(),
            channels: usual.channels(),
            format: usual.sample_format(),
            buffers: bounds(usual.buffer_size()),
        };
        let usual_rate = usual.rate_hz;
        offers
            .map(|offer| {
                let (least, most) = (offer.min_sample_rate(), offer.max_sample_rate());
                let rate_hz =
                    if (least..=most).contains(&RATE_HZ) { RATE_HZ } else { usual_rate.clamp(least, most) };
                let (channels, format) = (offer.channels(), offer.sample_format());
                Self { rate_hz, channels, format, buffers: bounds(offer.buffer_size()) }
            })
            .chain([usual.clone()])
            .filter_map(|plan| price(&plan).map(|price| (price, plan)))
            .min_by_key(|(price, _)| *price)
            .map_or(usual, |(_, plan)| plan)
    }

    fn smallest_buffer<T>(
        &self,
        shape: Shape,
        reach: Reach,
        mut build: impl FnMut(StreamConfig, &Facts) -> Result<T, cpal::Error>,
    ) -> Result<T, cpal::Error> {
        let mut outcome = Err(ErrorKind::UnsupportedConfig.into());
        for periods in BUFFER_PERIODS {
            let wanted =
                u64::from(shape.period) * u64::from(self.rate_hz) / u64::from(RATE_HZ) * u64::from(periods);
            let (least, most) = self.buffers;
            let buffer = u32::try_from(wanted).unwrap_or(most).clamp(least, most.max(least));
            let config = StreamConfig {
                channels: self.channels,
                sample_rate: self.rate_hz,
                buffer_size: BufferSize::Fixed(buffer),
            };
            let facts = Facts {
                rate_hz: self.rate_hz,
                channels: self.channels,
                buffer,
                reach: SharedReach::new(reach),
            };
            outcome = build(config, &facts);
            match &outcome {
                Err(e) if matches!(e.kind(), ErrorKind::UnsupportedConfig | ErrorKind::InvalidInput) => {}
                _ => break,
            }
        }
        outcome
    }
}

/// Keeps ALSA's complaints about absent devices off standard error for this thread. They say nothing that the error
/// returned does not say.
#[cfg(target_os = "linux")]
pub(crate) fn quiet_alsa() -> Option<impl Sized> {
    alsa::Output::local_error_handler().ok()
}

/// Other systems have nothing to silence.
#[cfg(not(target_os = "linux"))]
pub(crate) fn quiet_alsa() -> Option<impl Sized> {
    None::<()>
}
