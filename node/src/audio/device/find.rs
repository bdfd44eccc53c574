//! Which devices there are, by which names people may call them, and how each is asked to run: always with a buffer
//! size, since the default of the Pulse host is two seconds.

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
use super::keeper::{Note, Opened};
use super::tap::{CaptureTap, PlaybackTap};
use super::{Facts, Shape};

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

/// Every sound device of every sound system that answers, in no more than a few seconds.
pub fn list_devices() -> Vec<DeviceInfo> {
    // ALSA's complaints are silenced per thread: this one is ours.
    let listing = std::thread::Builder::new().name("sound list".into()).spawn(|| {
        let _quiet = quiet_alsa();
        let mut hosts = Hosts::default();
        let mut list = Vec::new();
        let mut defaults = (false, false);
        for id in cpal::ALL_HOSTS {
            let Ok(host) = hosts.get(*id) else { continue };
            let called = |device: Option<cpal::Device>| device.and_then(|d| d.id().ok());
            let (input, output) = (called(host.default_input_device()), called(host.default_output_device()));
            for device in host.devices().into_iter().flatten() {
                let Ok(id) = device.id() else { continue };
                if noisy(&id) {
                    continue;
                }
                let mut info = describe(&device, &id);
                // The first system that answers is the one whose default we take.
                info.default_input = !defaults.0 && info.input && input.as_ref() == Some(&id);
                info.default_output = !defaults.1 && info.output && output.as_ref() == Some(&id);
                list.push(info);
            }
            let has = |wanted: fn(&DeviceInfo) -> bool| list.iter().any(wanted);
            defaults = (has(|d| d.default_input), has(|d| d.default_output));
        }
        list
    });
    listing.ok().and_then(|thread| thread.join().ok()).unwrap_or_default()
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

/// Sound systems that have been spoken to; each holds a connection.
#[derive(Default)]
pub(crate) struct Hosts(Vec<(HostId, cpal::Host)>);

impl Hosts {
    fn get(&mut self, id: HostId) -> Result<&cpal::Host, cpal::Error> {
        let at = match self.0.iter().position(|(known, _)| *known == id) {
            Some(at) => at,
            None => {
                self.0.push((id, cpal::host_from_id(id)?));
                self.0.len() - 1
            }
        };
        self.0.get(at).map(|(_, host)| host).ok_or_else(|| ErrorKind::HostUnavailable.into())
    }
}

/// Devices to be tried in order, and why some sound systems offered none.
pub(crate) struct Candidates {
    pub devices: Vec<(cpal::Device, String, HostId)>,
    pub reasons: Vec<String>,
}

/// The devices that `wanted` may mean. `only` leaves out all other sound systems.
///
/// # Errors
/// [`Error::NotFound`] for a name that none has, [`Error::NoDevice`] if no sound system has a default.
pub(crate) fn candidates(
    hosts: &mut Hosts,
    wanted: &Wanted,
    end: End,
    only: Option<HostId>,
) -> Result<Candidates, Error> {
    let mut found = Candidates { devices: Vec::new(), reasons: Vec::new() };
    let mut known = Vec::new();
    for id in cpal::ALL_HOSTS.iter().filter(|id| only.is_none_or(|only| only == **id)) {
        let host = match hosts.get(*id) {
            Ok(host) => host,
            Err(e) => {
                found.reasons.push(e.to_string());
                continue;
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
                        found.devices.push((device, name, *id));
                    }
                    None => found.reasons.push(format!("{id} has no default {end}")),
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
                        found.devices.push((device, device_id.to_string(), *id));
                    } else if !noisy(&device_id) {
                        known.extend(names.into_iter().next());
                    }
                }
            }
        }
    }
    match wanted {
        _ if !found.devices.is_empty() => Ok(found),
        Wanted::Default => Err(Error::NoDevice { end, reason: found.reasons.join("; ") }),
        Wanted::Named(name) => Err(Error::NotFound { end, name: name.clone(), known }),
    }
}

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

/// Opens a capture stream with the smallest buffer that the device takes.
pub(crate) fn build_input<L>(
    device: &cpal::Device,
    shape: Shape,
    notes: Sender<Note>,
    make: impl Fn(&Facts) -> Result<(CaptureTap, L, Arc<AtomicU64>), cpal::Error>,
) -> Result<Opened<L>, cpal::Error> {
    let usual = device.default_input_config()?;
    let plan = Plan::choose(device.supported_input_configs()?, usual, shape);
    plan.smallest_buffer(shape, |config, facts| {
        let (mut tap, live, beat) = make(facts)?;
        let format = plan.format;
        let stream = device.build_input_stream_raw(
            config,
            format,
            move |data, info| {
                let at = info.timestamp();
                let (now, latency) = (monotonic_ns(), ns_between(at.capture, at.callback));
                match format {
                    SampleFormat::F32 => {
                        tap.deliver(data.as_slice::<f32>().unwrap_or_default(), now, latency)
                    }
                    SampleFormat::I32 => {
                        tap.deliver(data.as_slice::<i32>().unwrap_or_default(), now, latency)
                    }
                    SampleFormat::I24 => {
                        tap.deliver(data.as_slice::<I24>().unwrap_or_default(), now, latency)
                    }
                    SampleFormat::I16 => {
                        tap.deliver(data.as_slice::<i16>().unwrap_or_default(), now, latency)
                    }
                    SampleFormat::U16 => {
                        tap.deliver(data.as_slice::<u16>().unwrap_or_default(), now, latency)
                    }
                    _ => tap.deliver(data.as_slice::<u8>().unwrap_or_default(), now, latency),
                }
            },
            on_error(notes.clone()),
            Some(BUILD_TIMEOUT),
        )?;
        Ok(Opened { stream, live, beat })
    })
}

/// Opens a playback stream with the smallest buffer that the device takes.
pub(crate) fn build_output<L>(
    device: &cpal::Device,
    shape: Shape,
    notes: Sender<Note>,
    make: impl Fn(&Facts) -> Result<(PlaybackTap, L, Arc<AtomicU64>), cpal::Error>,
) -> Result<Opened<L>, cpal::Error> {
    let usual = device.default_output_config()?;
    let plan = Plan::choose(device.supported_output_configs()?, usual, shape);
    plan.smallest_buffer(shape, |config, facts| {
        let (mut tap, live, beat) = make(facts)?;
        let format = plan.format;
        let stream = device.build_output_stream_raw(
            config,
            format,
            move |data, info| {
                let at = info.timestamp();
                let (now, latency) = (monotonic_ns(), ns_between(at.callback, at.playback));
                match format {
                    SampleFormat::F32 => {
                        tap.fill(data.as_slice_mut::<f32>().unwrap_or_default(), now, latency)
                    }
                    SampleFormat::I32 => {
                        tap.fill(data.as_slice_mut::<i32>().unwrap_or_default(), now, latency)
                    }
                    SampleFormat::I24 => {
                        tap.fill(data.as_slice_mut::<I24>().unwrap_or_default(), now, latency)
                    }
                    SampleFormat::I16 => {
                        tap.fill(data.as_slice_mut::<i16>().unwrap_or_default(), now, latency)
                    }
                    SampleFormat::U16 => {
                        tap.fill(data.as_slice_mut::<u16>().unwrap_or_default(), now, latency)
                    }
                    _ => tap.fill(data.as_slice_mut::<u8>().unwrap_or_default(), now, latency),
                }
            },
            on_error(notes.clone()),
            Some(BUILD_TIMEOUT),
        )?;
        Ok(Opened { stream, live, beat })
    })
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
            let facts = Facts { rate_hz: self.rate_hz, channels: self.channels, buffer };
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
