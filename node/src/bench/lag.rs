//! `hallway bench lag`: two whole nodes call each other over a bad network, and the signal tells how late each was heard.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use super::command::Out;
use super::log::EventLog;
use super::nodes::Program;
use super::profile::Profile;
use super::proxy::{Proxy, ProxyConfig};
use super::report::{CallReport, DirectionReport};
use super::signal::{Track, WindowLag, measure, median};
use super::speech::{RATE_HZ, speech};

/// Which links.
#[derive(Clone, Debug, clap::Args)]
pub struct LagArgs {
    /// A link by name (lan, metro, wan, wifi, lossy10, lossy20, lossy30, mobile, narrow); repeatable [default: lan, wan]
    #[arg(long = "profile", value_name = "NAME", value_parser = Profile::named)]
    pub profiles: Vec<Profile>,
    /// A link spelt out, as delay=40,jitter=5,loss=1; repeatable
    #[arg(long = "link", value_name = "SPEC", value_parser = str::parse::<Profile>)]
    pub links: Vec<Profile>,
    #[command(flatten)]
    /// How each is measured.
    pub calls: CallArgs,
}

/// How a link is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct CallArgs {
    /// How long each call lasts
    #[arg(long = "for", value_name = "DURATION", default_value = "20s", value_parser = humantime::parse_duration)]
    pub duration: Duration,
    /// Calls over each link, with other luck each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub reps: u64,
    /// Seed of the link's luck instead of the link's own
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Speech to say instead of the built-in kind of it (any WAV; repeated if short)
    #[arg(long, value_name = "FILE")]
    pub wav: Option<PathBuf>,
    /// Period of the nodes' sound cards in ms instead of their default
    #[arg(long, value_name = "MS")]
    pub period_ms: Option<f64>,
    /// One more argument for both nodes, as --node-arg=--profile --node-arg=music; repeatable
    #[arg(long = "node-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub node_args: Vec<String>,
    #[command(flatten)]
    /// Where the figures go.
    pub out: Out,
    /// Leaves recordings, events and error output of every call in this directory
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

/// Shortest call that can be measured: the nodes need a moment to meet.
pub const SHORTEST_CALL: Duration = Duration::from_secs(4);
/// Longest: the recordings are held in memory.
pub const LONGEST_CALL: Duration = Duration::from_secs(super::signal::MAX_TRACK_S as u64);

/// Speech ends this long before the call, so that all of it can arrive, s.
const QUIET_END_S: f64 = 2.0;
/// Nodes leave by themselves; this long after their time they are made to.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
/// What a node says in its last moments may not have left it, ns.
const LEAVING_NS: u64 = 500_000_000;
/// Fewer packets than this a second through the link, and the nodes did not use it.
const LEAST_PACKETS_PER_S: f64 = 10.0;
const SEEDS_OF_VOICES: [u64; 2] = [11, 22];

impl LagArgs {
    /// The links asked for; the default pair where none was.
    pub fn links(&self) -> anyhow::Result<Vec<Profile>> {
        let mut all = self.profiles.clone();
        all.extend(self.links.iter().cloned());
        if all.is_empty() {
            all = vec![Profile::named("lan")?, Profile::named("wan")?];
        }
        self.calls.seed(&mut all);
        Ok(all)
    }
}

impl CallArgs {
    /// Gives the links the seed asked for.
    pub fn seed(&self, links: &mut [Profile]) {
        if let Some(seed) = self.seed {
            links.iter_mut().for_each(|link| link.seed = seed);
        }
    }

    /// Refuses what cannot be measured, before anything is started.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.duration < SHORTEST_CALL || self.duration > LONGEST_CALL {
            bail!("--for must be between {SHORTEST_CALL:?} and {LONGEST_CALL:?}");
        }
        if self.period_ms.is_some_and(|ms| !(0.1..=1000.0).contains(&ms)) {
            bail!("--period-ms must be between 0.1 and 1000");
        }
        Ok(())
    }
}

/// What the two nodes say.
pub struct Voices {
    tracks: [Vec<f32>; 2],
}

impl Voices {
    /// Speech for calls of this length: from a WAV, each voice another part of it, or made up.
    pub fn new(wav: Option<&Path>, call: Duration) -> anyhow::Result<Voices> {
        let seconds = call.as_secs_f64() - QUIET_END_S;
        let tracks = match wav {
            None => SEEDS_OF_VOICES.map(|seed| speech(seed, seconds)),
            Some(path) => {
                let said = Track::read(path, 0)?.samples;
                if said.is_empty() {
                    bail!("{} holds no sound", path.display());
                }
                let length = (seconds * f64::from(RATE_HZ)) as usize;
                [0, said.len() / 2].map(|from| said.iter().copied().cycle().skip(from).take(length).collect())
            }
        };
        Ok(Voices { tracks })
    }

    fn write(&self, dir: &Path) -> anyhow::Result<()> {
        for (track, name) in self.tracks.iter().zip(["a", "b"]) {
            write_wav(&dir.join(format!("{name}.wav")), track)?;
        }
        Ok(())
    }
}

/// One call over `link`; recordings and events go to `dir`, which must exist.
pub async fn call(
    args: &CallArgs,
    link: &Profile,
    rep: u64,
    voices: &Voices,
    dir: &Path,
) -> anyhow::Result<CallReport> {
    let binary = std::env::current_exe().context("finding this program's own file")?;
    voices.write(dir)?;
    let proxy = Proxy::start(ProxyConfig { rep, ..ProxyConfig::new(link.clone()) })
        .context("opening the link's sockets")?;

    // 1. A rendezvous server.
    let text = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    let home = |name: &str| dir.join(format!("home-{name}")).display().to_string();
    let server = text(&[
        "rendezvous",
        "--listen",
        "/ip4/127.0.0.1/udp/0/quic-v1",
        "--data-dir",
        &home("rendezvous"),
        "--json",
    ]);
    let mut server = Program::start("rendezvous", &binary, &server, dir)?;
    server.ready().await?;
    let meeting_point = meeting_point(&server.log())?;

    // 2. Two nodes at the same moment, each told to others by the address of its stand-in.
    let node = |name: &str, stand_in: SocketAddr| {
        let path = |file: &str| format!("file:{}", dir.join(file).display());
        let mut node =
            text(&["join", "bench-lag", "--at", &meeting_point, "--name", name, "--data-dir", &home(name)]);
        node.extend(text(&["--input", &path(&format!("{name}.wav")), "--input-start", "first-peer"]));
        node.extend(text(&[
            "--output",
            &path(&format!("{name}-heard.wav")),
            "--listen",
            "/ip4/127.0.0.1/udp/0/quic-v1",
        ]));
        node.extend(text(&["--announce", &quic(stand_in).to_string(), "--json"]));
        node.extend(text(&["--for", &humantime::format_duration(args.duration).to_string()]));
        // The server is reached past the link: through it the call would be quicker than the link lets it.
        if !args.node_args.iter().any(|arg| arg.starts_with("--path")) {
            node.extend(text(&["--path", "direct"]));
        }
        if let Some(ms) = args.period_ms {
            node.extend(text(&["--period-ms", &ms.to_string()]));
        }
        node.extend(args.node_args.iter().cloned());
        Program::start(name, &binary, &node, dir)
    };
    let mut a = node("a", proxy.addr_of_a()?)?;
    let mut b = node("b", proxy.addr_of_b()?)?;
    for (program, set) in [(&mut a, Proxy::set_a as fn(&Proxy, SocketAddr)), (&mut b, Proxy::set_b)] {
        program.ready().await?;
        set(&proxy, listening(&program.log())?);
    }

    // 3. They talk, and leave by themselves.
    let within = args.duration + LEAVE_WITHIN;
    let ((a_log, a_wrong), (b_log, b_wrong)) = tokio::join!(a.finish(within), b.finish(within));
    server.end().await;
    let counts = proxy.counts();
    drop(proxy);

    // 4. Who heard what. Number work for seconds: not on the runtime's threads.
    let logs = [a_log, b_log];
    let heard = {
        let (dir, logs) = (dir.to_owned(), logs.clone());
        tokio::task::spawn_blocking(move || {
            ["a > b", "b > a"].map(|name| {
                let [talker, listener] = if name == "a > b" { [0, 1] } else { [1, 0] };
                let file = |node: usize, end: &str| dir.join(format!("{}{end}.wav", ["a", "b"][node]));
                direction(name, &file(talker, ""), &file(listener, "-heard"), &logs[talker], &logs[listener])
            })
        })
        .await?
    };
    let mut warnings: Vec<String> = [a_wrong, b_wrong].into_iter().flatten().collect();
    warnings.extend(logs.iter().filter_map(EventLog::complaint));
    let seconds = args.duration.as_secs_f64();
    let mut directions = Vec::from(heard);
    for (direction, wire) in directions.iter_mut().zip([counts.ab, counts.ba]) {
        direction.wire = Some(wire);
        direction.wire_kbps = Some(wire.sent_bytes as f64 * 8e-3 / seconds);
        if direction.heard() && (wire.sent as f64) < LEAST_PACKETS_PER_S * seconds {
            warnings.push(format!(
                "{}: only {} packets took the link; the nodes found a way around it, so its delay does not count",
                direction.name, wire.sent
            ));
        }
    }
    if counts.timing.late_share > 1.0 {
        warnings.push(format!(
            "the link itself was late: {:.1} % of packets by more than 0.3 ms, p99 {} µs; is the machine busy?",
            counts.timing.late_share, counts.timing.late_p99_us
        ));
    }
    Ok(CallReport {
        link: link.name.clone(),
        about: link.about.clone(),
        rep,
        seed: link.seed,
        directions,
        timing: Some(counts.timing),
        warnings,
    })
}

/// What the link from a to b of this call is asked to lose, percent; nothing for a link that is no link of a loss series.
pub fn link_loss_pct(call: &CallReport) -> Option<f64> {
    let rate = call.link.split(',').find_map(|part| part.strip_prefix("loss="))?;
    rate.parse().ok()
}

/// The figures of one voice from recordings and event logs.
pub fn direction(
    name: &str,
    said: &Path,
    heard: &Path,
    talker: &EventLog,
    listener: &EventLog,
) -> DirectionReport {
    let node = listener.view_of(talker.peer_id());
    let signal = tracks(said, heard, talker, listener)
        .and_then(|(said, heard)| Ok((measure(&said, &heard)?, said.started_ns)));
    let (signal, spoke_at, signal_error) = match signal {
        Ok((report, spoke_at)) => (Some(report), spoke_at, None),
        Err(error) => (None, 0, Some(format!("{name}: {error:#}"))),
    };
    let estimates = listener.estimates(talker.peer_id());
    DirectionReport {
        name: name.to_owned(),
        estimate_minus_measured_ms: signal
            .as_ref()
            .and_then(|signal| difference(&estimates, &signal.track, spoke_at)),
        signal,
        signal_error,
        node,
        cost: listener.cost(),
        wire: None,
        wire_kbps: None,
        timeline: listener.timeline(talker.peer_id()),
    }
}

/// Each estimate is for the second before it was told, and is compared with what was heard in that second: the median of
/// these differences, ms. The delay changes in a call, so a difference of two medians would say less.
fn difference(estimates: &[(u64, f64)], track: &[WindowLag], spoke_at: u64) -> Option<f64> {
    let heard_at =
        |window: &WindowLag| spoke_at.saturating_add(((window.at_ms + window.lag_ms) * 1e6) as u64);
    let in_its_second = |(told, estimate): &(u64, f64)| {
        let second = told.saturating_sub(1_000_000_000)..*told;
        let lags: Vec<f64> =
            track.iter().filter(|w| second.contains(&heard_at(w))).map(|w| w.lag_ms).collect();
        Some(estimate - median(&lags)?)
    };
    median(&estimates.iter().filter_map(in_its_second).collect::<Vec<_>>())
}

fn tracks(
    said: &Path,
    heard: &Path,
    talker: &EventLog,
    listener: &EventLog,
) -> anyhow::Result<(Track, Track)> {
    let spoke_at = talker.at_ns("input_started").context("the talker never began to speak")?;
    let listened_at = listener.at_ns("output_started").context("the listener never began to listen")?;
    let mut said = Track::read(said, spoke_at)?;
    let heard = Track::read(heard, listened_at)?;
    // What was said while leaving may never have left.
    if let Some(left_at) = talker.at_ns("summary") {
        let spoken_ns = left_at.saturating_sub(LEAVING_NS).saturating_sub(spoke_at);
        said.samples.truncate((spoken_ns as f64 * 1e-9 * f64::from(RATE_HZ)) as usize);
    }
    Ok((said, heard))
}

/// Where the server can be reached, with its identity.
pub(super) fn meeting_point(log: &EventLog) -> anyhow::Result<String> {
    let address = addresses(log).find(|address| socket(address).is_some());
    let address = address.context("the rendezvous server names no QUIC address")?;
    let has_identity = address.iter().any(|part| matches!(part, Protocol::P2p(_)));
    match log.peer_id() {
        Some(peer_id) if !has_identity => Ok(format!("{address}/p2p/{peer_id}")),
        _ => Ok(address.to_string()),
    }
}

/// Where a node really listens.
fn listening(log: &EventLog) -> anyhow::Result<SocketAddr> {
    let all = addresses(log).filter_map(|address| socket(&address)).collect::<Vec<_>>();
    all.into_iter()
        .find(|address| address.ip().is_loopback())
        .context("the node names no QUIC address on loopback")
}

fn addresses(log: &EventLog) -> impl Iterator<Item = Multiaddr> {
    let listen = log.first("ready").and_then(|event| event.get("listen")?.as_array());
    listen.into_iter().flatten().filter_map(|address| address.as_str()?.parse().ok())
}

fn socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    let Protocol::Udp(port) = parts.next()? else { return None };
    matches!(parts.next()?, Protocol::QuicV1).then_some(SocketAddr::new(ip, port))
}

fn quic(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Udp(address.port())).with(Protocol::QuicV1)
}

fn write_wav(path: &Path, samples: &[f32]) -> anyhow::Result<()> {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: RATE_HZ,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let fill = || -> Result<(), hound::Error> {
        let mut wav = hound::WavWriter::create(path, spec)?;
        for x in samples {
            wav.write_sample((x.clamp(-1.0, 1.0) * f32::from(i16::MAX)).round() as i16)?;
        }
        wav.finalize()
    };
    fill().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[&str]) -> EventLog {
        let mut log = EventLog::default();
        lines.iter().for_each(|line| assert!(log.push(line.as_bytes()).is_some(), "{line}"));
        log
    }

    #[test]
    fn addresses_are_found_in_the_ready_event() {
        let id = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
        let ready = format!(
            r#"{{"event":"ready","at_ns":1,"peer_id":"{id}","listen":["/ip4/127.0.0.1/tcp/4001","/ip4/127.0.0.1/udp/4002/quic-v1"]}}"#
        );
        let log = log(&[&ready]);
        assert_eq!(meeting_point(&log).unwrap(), format!("/ip4/127.0.0.1/udp/4002/quic-v1/p2p/{id}"));
        assert_eq!(listening(&log).unwrap(), "127.0.0.1:4002".parse().unwrap());
        assert_eq!(quic("[::1]:7".parse().unwrap()).to_string(), "/ip6/::1/udp/7/quic-v1");
    }

    #[test]
    fn recordings_and_events_become_the_figures_of_a_direction() {
        let dir = tempfile::tempdir().unwrap();
        let (said, heard) = (dir.path().join("said.wav"), dir.path().join("heard.wav"));
        let voice = speech(1, 8.0);
        write_wav(&said, &voice).unwrap();
        // The listener's card started 100 ms before the talker spoke; the way took 25 ms.
        let mut ear = vec![0.0; 6_000];
        ear.extend_from_slice(&voice);
        write_wav(&heard, &ear).unwrap();
        let talker = log(&[
            r#"{"event":"ready","at_ns":1,"peer_id":"t"}"#,
            r#"{"event":"input_started","at_ns":2100000000}"#,
            r#"{"event":"summary","at_ns":8600000000}"#,
        ]);
        let listener = log(&[
            r#"{"event":"output_started","at_ns":2000000000}"#,
            r#"{"event":"stats","at_ns":4000000000,"peer_id":"t","mouth_to_ear_ms":26.5}"#,
            r#"{"event":"stats","at_ns":1900000000,"peer_id":"t","mouth_to_ear_ms":90.0}"#,
            r#"{"event":"summary","at_ns":9,"since_start_ms":60000,"cpu_s":1.25,"max_rss_kb":1024}"#,
        ]);
        let report = direction("t > l", &said, &heard, &talker, &listener);
        let signal = report.signal.unwrap();
        assert!((signal.lag_ms.p50 - 25.0).abs() < 0.02, "{:?}", signal.lag_ms);
        assert!(signal.frames < 300, "only the 6 s before the talker left count: {}", signal.frames);
        assert!((report.estimate_minus_measured_ms.unwrap() - 1.5).abs() < 0.02);
        assert_eq!((report.cost.cpu_s_per_min, report.cost.max_rss_mib), (Some(1.25), Some(1.0)));
    }

    #[test]
    fn a_talker_who_never_spoke_is_said_so() {
        let report =
            direction("t > l", Path::new("x"), Path::new("y"), &EventLog::default(), &EventLog::default());
        assert!(!report.heard() && report.signal_error.unwrap().contains("never began to speak"));
    }

    #[test]
    fn each_voice_of_a_short_wav_goes_on_for_the_whole_call() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("short.wav");
        write_wav(&path, &speech(1, 1.0)).unwrap();
        let voices = Voices::new(Some(&path), Duration::from_secs(10)).unwrap();
        assert!(voices.tracks.iter().all(|track| track.len() == 8 * RATE_HZ as usize));
        assert_ne!(voices.tracks[0], voices.tracks[1]);
        write_wav(&path, &[]).unwrap();
        assert!(Voices::new(Some(&path), Duration::from_secs(10)).is_err());
    }
}
