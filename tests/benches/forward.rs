//! What a datagram costs the forwarder, against a bare QUIC echo in the same run: `cargo bench --bench forward`.
//!
//! Both are processes of their own, measured by their processor time (Linux), so that what else the machine does falls
//! out; the clients are in this one. A datagram takes the same two hops in both: client, process, client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hallway::forward::wire::{read_down, up};
use hallway::transport::{Authenticated, Config, QuicTransport};
use hallway_tests::guest::Guest;
use hallway_tests::process::Process;
use hallway_tests::stranger::Stranger;
use libp2p::core::transport::{ListenerId, Transport, TransportEvent};
use libp2p::identity::Keypair;

/// Bytes of one datagram's payload: a frame of voice with its headers.
const PAYLOAD: usize = 160;
/// How long each load lasts.
const SPAN: Duration = Duration::from_secs(5);
/// Datagrams a second offered, one load after the other.
const LOADS: [u64; 3] = [5_000, 15_000, 35_000];
/// Pairs of clients that share the load.
const PAIRS: u64 = 4;

fn main() {
    if std::env::args().any(|arg| arg == "echo-server") {
        return echo_server();
    }
    if !std::path::Path::new("/proc/self/stat").exists() {
        println!("skipped: no /proc here, so no processor time of other processes");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        println!(
            "| load, 1/s | what | delivered, 1/s | CPU, us each | 1/s per core | delay p50, ms | p99, ms |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for load in LOADS {
            let echo = echo(load).await;
            let forward = forward(load).await;
            for (what, run) in [("bare echo", &echo), ("forwarder", &forward)] {
                println!(
                    "| {load} | {what} | {:.0} | {:.1} | {:.0} | {:.2} | {:.2} |",
                    run.per_second,
                    run.cpu_us,
                    1e6 / run.cpu_us,
                    run.p50_ms,
                    run.p99_ms
                );
            }
            println!(
                "| {load} | ratio | | {:.2} | {:.2} | +{:.2} | +{:.2} |",
                forward.cpu_us / echo.cpu_us,
                echo.cpu_us / forward.cpu_us,
                forward.p50_ms - echo.p50_ms,
                forward.p99_ms - echo.p99_ms
            );
        }
    });
}

struct Run {
    per_second: f64,
    cpu_us: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Processor time of a process so far, µs (proc(5): fields 14 and 15, in hundredths of a second).
fn cpu_us(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks * 10_000.0
}

/// Puts in front of a payload what its receiver's address is to the process.
type Frame = Box<dyn Fn(&[u8]) -> Bytes + Send + Sync>;

/// One way through the process: what is sent on, what to put in front of a payload, where it comes out.
struct Way {
    from: quinn::Connection,
    to: quinn::Connection,
    frame: Frame,
    payload: fn(&Bytes) -> Option<Bytes>,
}

/// Offers the load over these ways and measures what becomes of it.
async fn measure(pid: i32, load: u64, ways: Vec<Way>) -> Run {
    let epoch = Instant::now();
    let each = load / ways.len() as u64;
    let before = cpu_us(pid);
    let tasks: Vec<_> = ways
        .into_iter()
        .map(|Way { from, to, frame, payload }| {
            let sending = tokio::spawn(async move {
                let mut beat = tokio::time::interval(Duration::from_millis(1));
                let mut sent = 0;
                while epoch.elapsed() < SPAN {
                    beat.tick().await;
                    let due = (epoch.elapsed().as_secs_f64() * each as f64) as u64;
                    // What a late timer missed is not made up for in one burst.
                    for _ in sent..due.min(sent + each / 250 + 1) {
                        let mut bytes = [1u8; PAYLOAD];
                        bytes[1..9].copy_from_slice(&(epoch.elapsed().as_nanos() as u64).to_be_bytes());
                        let _ = from.send_datagram(frame(&bytes));
                    }
                    sent = due;
                }
            });
            let receiving = tokio::spawn(async move {
                let mut delays = Vec::new();
                let until = SPAN + Duration::from_millis(300);
                while let Some(left) = until.checked_sub(epoch.elapsed()) {
                    let Ok(Ok(datagram)) = tokio::time::timeout(left, to.read_datagram()).await else {
                        break;
                    };
                    let Some(payload) = payload(&datagram) else { continue };
                    let at = u64::from_be_bytes(payload[1..9].try_into().unwrap());
                    delays.push(epoch.elapsed().as_nanos() as u64 - at);
                }
                delays
            });
            (sending, receiving)
        })
        .collect();
    let mut delays = Vec::new();
    for (sending, receiving) in tasks {
        sending.await.unwrap();
        delays.extend(receiving.await.unwrap());
    }
    let cpu = cpu_us(pid) - before;
    delays.sort_unstable();
    let at = |q: f64| delays.get((delays.len() as f64 * q) as usize).map_or(f64::NAN, |ns| *ns as f64 / 1e6);
    Run {
        per_second: delays.len() as f64 / SPAN.as_secs_f64(),
        cpu_us: cpu / delays.len() as f64,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
    }
}

// ---- bare echo ----------------------------------------------------------------------------------------------------

/// Sends back every datagram; prints its address first. The same transport and threads as the server's.
fn echo_server() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut transport, mut connections) =
            QuicTransport::new(Config::new(&Keypair::generate_ed25519()).unwrap());
        transport.listen_on(ListenerId::next(), "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
        let mut muxers = Vec::new();
        loop {
            let event = std::future::poll_fn(|cx| std::pin::Pin::new(&mut transport).poll(cx));
            tokio::select! {
                event = event => match event {
                    TransportEvent::NewAddress { listen_addr, .. } => println!("{listen_addr}"),
                    event => if let Some((upgrade, _)) = event.into_incoming() {
                        muxers.push(upgrade.await);
                    }
                },
                Some(Authenticated { connection, .. }) = connections.recv() => {
                    tokio::spawn(async move {
                        while let Ok(datagram) = connection.read_datagram().await {
                            let _ = connection.send_datagram(datagram);
                        }
                    });
                }
            }
        }
    });
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn echo(load: u64) -> Run {
    use std::io::BufRead;
    let me = std::env::current_exe().unwrap();
    let child = Command::new(me).arg("echo-server").stdout(Stdio::piped()).spawn().unwrap();
    let mut server = Killed(child);
    let mut line = String::new();
    std::io::BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut strangers = Vec::new();
    let mut ways = Vec::new();
    // As many connections as the forwarder has, half of them used in each direction.
    for _ in 0..PAIRS {
        let mut stranger = Stranger::new();
        let connection = stranger.dial(line.trim()).await;
        strangers.push(stranger);
        let frame = Box::new(|bytes: &[u8]| Bytes::copy_from_slice(bytes));
        let payload = |datagram: &Bytes| Some(datagram.clone());
        ways.push(Way { from: connection.clone(), to: connection, frame, payload });
    }
    measure(server.0.id() as i32, load, ways).await
}

// ---- forwarder ----------------------------------------------------------------------------------------------------

async fn guest(at: &str, room: &str) -> Guest {
    Guest::enter(Keypair::generate_ed25519(), at, room, 2).await
}

async fn forward(load: u64) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home").display().to_string();
    let listen = "/ip4/127.0.0.1/udp/0/quic-v1";
    let rates =
        ["--forward-rate", "4000000", "--forward-room-rate", "4000000", "--forward-sender-rate", "4000000"];
    let args = ["rendezvous", "--listen", listen, "--data-dir", &home, "--json"];
    let server = Process::start(dir.path(), "server", args.iter().chain(&rates), &[]);
    let at = hallway_tests::hall::address(&server);
    let mut pairs = Vec::new();
    for i in 0..PAIRS {
        let room = format!("bench-{i}");
        let (a, b) = tokio::join!(guest(&at, &room), guest(&at, &room));
        pairs.push((a, b));
    }
    let ways = pairs
        .iter()
        .map(|(a, b)| {
            let (index, handle) = (a.number_of(&b.peer), a.handle);
            Way {
                from: a.connection.clone(),
                to: b.connection.clone(),
                frame: Box::new(move |bytes: &[u8]| up(handle, &[index], bytes)),
                payload: |datagram| read_down(datagram).map(|(_, _, payload)| payload),
            }
        })
        .collect();
    measure(server.pid().as_raw_nonzero().get(), load, ways).await
}
