//! A bad network between two real programs on this machine, in user space.
//!
//! ```text
//!   node A  ──▶ [socket B'] ──▶ a→b link ──▶ [socket A'] ──▶  node B
//!           ◀──             ◀── b→a link ◀──             ◀──
//! ```
//!
//! Each socket stands in for one node: to B, the address of A' *is* A. Three threads: one reader per socket, which asks the
//! [`Pipe`] of its direction about each datagram, and one that sleeps until the next datagram is due. Sleeping, not
//! spinning: the programs under test need the processor. Lateness of every delivery is measured and reported.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::link::LinkConfig;
use super::pipe::{Pipe, PipeCounts};
use super::profile::Profile;

/// Largest datagram carried, bytes.
pub const MAX_DATAGRAM: usize = 2048;
/// How often a sleeping thread looks whether it should end.
const WAKE_UP: Duration = Duration::from_millis(50);
/// Socket buffers, bytes: room for a burst while a thread is not scheduled.
const SOCKET_BUFFER: usize = 1 << 20;
/// Later than this counts in [`LinkTiming::late_share`].
const LATE: Duration = Duration::from_micros(300);

/// What stands between two nodes.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// The link.
    pub profile: Profile,
    /// Which repetition of it: another one has other luck.
    pub rep: u64,
    /// Address of both sockets. Default: loopback, IPv4.
    pub bind: IpAddr,
}

impl ProxyConfig {
    /// This link on loopback.
    pub fn new(profile: Profile) -> Self {
        ProxyConfig { profile, rep: 0, bind: IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }
}

/// A running link; dropping it ends its threads.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What went through.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ProxyCounts {
    /// From a to b.
    pub ab: PipeCounts,
    /// From b to a.
    pub ba: PipeCounts,
    /// Datagrams for a node whose address was not known yet: dropped.
    pub unroutable: u64,
    /// Datagrams that came from an address that is neither node's: dropped.
    pub foreign: u64,
    /// How exact the deliveries were.
    pub timing: LinkTiming,
}

/// How much later than due datagrams were handed over, microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LinkTiming {
    /// Median.
    pub late_p50_us: u64,
    /// 99th percentile.
    pub late_p99_us: u64,
    /// Worst.
    pub late_max_us: u64,
    /// Share later than 300 µs, percent.
    pub late_share: f64,
}

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    A,
    B,
}

impl End {
    fn other(self) -> End {
        match self {
            End::A => End::B,
            End::B => End::A,
        }
    }
}

#[derive(Debug)]
struct Shared {
    epoch: Instant,
    state: Mutex<State>,
    /// Something earlier than the sleeper knows of is due, or it should end.
    earlier: Condvar,
}

#[derive(Debug)]
struct State {
    ending: bool,
    a: Side,
    b: Side,
    /// Direction by sender: `to_b` carries what a sends.
    to_b: Pipe,
    to_a: Pipe,
    unroutable: u64,
    foreign: u64,
    lateness: Histogram<u64>,
}

/// One node as the other sees it.
#[derive(Debug)]
struct Side {
    /// The socket that stands in for it.
    stand_in: Arc<UdpSocket>,
    /// Where the node really is; learned from its first datagram unless set.
    real: Option<SocketAddr>,
}

impl State {
    fn side(&mut self, end: End) -> &mut Side {
        match end {
            End::A => &mut self.a,
            End::B => &mut self.b,
        }
    }

    fn pipe_to(&mut self, end: End) -> &mut Pipe {
        match end {
            End::A => &mut self.to_a,
            End::B => &mut self.to_b,
        }
    }

    fn next_due(&self) -> Option<Duration> {
        [self.to_a.poll_timeout(), self.to_b.poll_timeout()].into_iter().flatten().min()
    }
}

impl Proxy {
    /// Opens the sockets and starts carrying.
    pub fn start(config: ProxyConfig) -> io::Result<Proxy> {
        let overhead = if config.bind.is_ipv4() { 28 } else { 48 };
        let (ab, ba) = config.profile.links(config.rep);
        let side = || -> io::Result<Side> { Ok(Side { stand_in: open(config.bind)?, real: None }) };
        let lateness = Histogram::new_with_bounds(1, 10_000_000, 2).map_err(io::Error::other)?;
        let state = State {
            ending: false,
            a: side()?,
            b: side()?,
            to_b: Pipe::with_overhead(ab, overhead),
            to_a: Pipe::with_overhead(ba, overhead),
            unroutable: 0,
            foreign: 0,
            lateness,
        };
        let sockets = [(End::A, state.a.stand_in.clone()), (End::B, state.b.stand_in.clone())];
        let shared =
            Arc::new(Shared { epoch: Instant::now(), state: Mutex::new(state), earlier: Condvar::new() });
        let mut proxy = Proxy { shared, threads: Vec::new() };
        for (stand_in_for, socket) in sockets {
            proxy.read(stand_in_for, socket)?;
        }
        let shared = proxy.shared.clone();
        proxy.threads.push(std::thread::Builder::new().name("link".into()).spawn(move || deliver(&shared))?);
        Ok(proxy)
    }

    /// What b must call to reach a.
    pub fn addr_of_a(&self) -> io::Result<SocketAddr> {
        self.shared.lock().a.stand_in.local_addr()
    }

    /// What a must call to reach b.
    pub fn addr_of_b(&self) -> io::Result<SocketAddr> {
        self.shared.lock().b.stand_in.local_addr()
    }

    /// Says where a really is.
    pub fn set_a(&self, real: SocketAddr) {
        self.shared.lock().a.real = Some(real);
    }

    /// Says where b really is.
    pub fn set_b(&self, real: SocketAddr) {
        self.shared.lock().b.real = Some(real);
    }

    /// Lets nothing into either direction for this long from now.
    pub fn black_out(&self, span: Duration) {
        let until = self.shared.epoch.elapsed() + span;
        let mut state = self.shared.lock();
        state.to_a.black_out(until);
        state.to_b.black_out(until);
    }

    /// Becomes another link; what is on its way still arrives as decided.
    pub fn change(&self, ab: LinkConfig, ba: LinkConfig) {
        let now = self.shared.epoch.elapsed();
        let mut state = self.shared.lock();
        state.to_b.change(now, ab);
        state.to_a.change(now, ba);
    }

    /// Gives a another port, as a NAT that forgot its mapping does: b sees a's datagrams come from a new address, and what
    /// it still sends to the old one is lost. Gives the new address.
    pub fn rebind_a(&mut self) -> io::Result<SocketAddr> {
        self.rebind(End::A)
    }

    /// Gives b another port.
    pub fn rebind_b(&mut self) -> io::Result<SocketAddr> {
        self.rebind(End::B)
    }

    fn rebind(&mut self, end: End) -> io::Result<SocketAddr> {
        self.threads.retain(|thread| !thread.is_finished());
        let old = self.shared.lock().side(end).stand_in.local_addr()?;
        let socket = open(old.ip())?;
        let addr = socket.local_addr()?;
        self.shared.lock().side(end).stand_in = socket.clone();
        self.read(end, socket)?;
        Ok(addr)
    }

    /// What went through so far.
    pub fn counts(&self) -> ProxyCounts {
        let state = self.shared.lock();
        let late = &state.lateness;
        let timing = LinkTiming {
            late_p50_us: late.value_at_quantile(0.5),
            late_p99_us: late.value_at_quantile(0.99),
            late_max_us: late.max(),
            late_share: if late.is_empty() {
                0.0
            } else {
                100.0 - late.percentile_below(LATE.as_micros() as u64)
            },
        };
        ProxyCounts {
            ab: state.to_b.counts(),
            ba: state.to_a.counts(),
            unroutable: state.unroutable,
            foreign: state.foreign,
            timing,
        }
    }

    fn read(&mut self, stand_in_for: End, socket: Arc<UdpSocket>) -> io::Result<()> {
        let shared = self.shared.clone();
        let name = format!("link-{stand_in_for:?}").to_lowercase();
        let thread =
            std::thread::Builder::new().name(name).spawn(move || receive(&shared, stand_in_for, &socket))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.earlier.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on standard error; there is nothing left of it to undo.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A thread that panicked with the lock held leaves counters behind, nothing that could be inconsistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(ip: IpAddr) -> io::Result<Arc<UdpSocket>> {
    let socket = UdpSocket::bind((ip, 0))?;
    socket.set_read_timeout(Some(WAKE_UP))?;
    let socket2 = socket2::SockRef::from(&socket);
    socket2.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket2.set_send_buffer_size(SOCKET_BUFFER)?;
    Ok(Arc::new(socket))
}

/// Takes what reaches one stand-in, which is what the *other* node sends.
fn receive(shared: &Shared, stand_in_for: End, socket: &Arc<UdpSocket>) {
    be_prompt();
    let sender = stand_in_for.other();
    let mut buffer = [0u8; MAX_DATAGRAM];
    loop {
        let got = socket.recv_from(&mut buffer);
        let now = shared.epoch.elapsed();
        let mut state = shared.lock();
        if state.ending || !Arc::ptr_eq(&state.side(stand_in_for).stand_in, socket) {
            return;
        }
        // Time-outs, and ICMP errors of a node that is not there (yet, or any more).
        let Ok((len, from)) = got else { continue };
        let Some(datagram) = buffer.get(..len) else { continue };
        match state.side(sender).real {
            None => state.side(sender).real = Some(from),
            Some(real) if real == from => {}
            Some(_) => {
                state.foreign += 1;
                continue;
            }
        }
        let due_before = state.next_due();
        state.pipe_to(stand_in_for).handle_packet(now, datagram);
        let due = state.next_due();
        drop(state);
        if due != due_before {
            shared.earlier.notify_one();
        }
    }
}

/// Hands over what is due, then sleeps until something is.
fn deliver(shared: &Shared) {
    be_prompt();
    let mut state = shared.lock();
    while !state.ending {
        let now = shared.epoch.elapsed();
        for to in [End::A, End::B] {
            while let Some((due, datagram)) = state.pipe_to(to).poll_packet(now) {
                let from = state.side(to.other()).stand_in.clone();
                let Some(real) = state.side(to).real else {
                    state.unroutable += 1;
                    continue;
                };
                // Not delivered to a node that is gone: that is the node's affair, and its peer will notice.
                let _ = from.send_to(&datagram, real);
                let late = shared.epoch.elapsed().saturating_sub(due);
                state.lateness.saturating_record(late.as_micros() as u64);
            }
        }
        let sleep = match state.next_due() {
            Some(due) => due.saturating_sub(shared.epoch.elapsed()).min(WAKE_UP),
            None => WAKE_UP,
        };
        if !sleep.is_zero() {
            state = shared.earlier.wait_timeout(state, sleep).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Asks the kernel to wake this thread on time: no slack on its timers, and ahead of ordinary work where it is allowed. On
/// a busy machine that makes the difference between 0.2 and 3 ms of lateness (99th percentile).
fn be_prompt() {
    // All are favours; lateness is measured and shown either way.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    crate::priority::real_time();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    fn proxy(link: LinkConfig) -> Proxy {
        Proxy::start(ProxyConfig::new(Profile::symmetric("test", link, 1))).unwrap()
    }

    /// Payload and sender of the next datagram.
    fn next(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; MAX_DATAGRAM];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        (buffer[..len].to_vec(), from)
    }

    #[test]
    fn each_node_sees_the_other_at_the_address_of_its_stand_in() {
        let (a, b) = (node(), node());
        let proxy = proxy(LinkConfig::delayed(1.0));
        proxy.set_b(b.local_addr().unwrap());
        a.send_to(b"from a", proxy.addr_of_b().unwrap()).unwrap();
        assert_eq!(next(&b), (b"from a".to_vec(), proxy.addr_of_a().unwrap()));
        // a's address was learned.
        b.send_to(b"from b", proxy.addr_of_a().unwrap()).unwrap();
        assert_eq!(next(&a), (b"from b".to_vec(), proxy.addr_of_b().unwrap()));
        let counts = proxy.counts();
        assert_eq!((counts.ab.delivered, counts.ba.delivered), (1, 1));
        assert_eq!(counts.ab.delivered_bytes, 6 + 28);
    }

    #[test]
    fn deliveries_are_never_early() {
        let (a, b) = (node(), node());
        let proxy = proxy(LinkConfig::delayed(12.0));
        proxy.set_b(b.local_addr().unwrap());
        for i in 0..50u8 {
            let sent = Instant::now();
            a.send_to(&[i], proxy.addr_of_b().unwrap()).unwrap();
            assert_eq!(next(&b).0, [i]);
            assert!(sent.elapsed() >= Duration::from_millis(12), "{:?}", sent.elapsed());
        }
        assert_eq!(proxy.counts().ab.delivered, 50);
    }

    #[test]
    fn strangers_and_unknown_nodes_get_nothing_through() {
        let (a, b, stranger) = (node(), node(), node());
        let proxy = proxy(LinkConfig::default());
        proxy.set_a(a.local_addr().unwrap());
        stranger.send_to(b"hello", proxy.addr_of_b().unwrap()).unwrap();
        // b is not known yet: this one is dropped too, and b's first datagram makes it known.
        a.send_to(b"too early", proxy.addr_of_b().unwrap()).unwrap();
        while proxy.counts().unroutable == 0 {
            std::thread::yield_now();
        }
        b.send_to(b"here I am", proxy.addr_of_a().unwrap()).unwrap();
        assert_eq!(next(&a).0, b"here I am");
        a.send_to(b"now", proxy.addr_of_b().unwrap()).unwrap();
        assert_eq!(next(&b).0, b"now");
        let counts = proxy.counts();
        assert_eq!((counts.foreign, counts.unroutable), (1, 1));
    }

    #[test]
    fn after_a_rebinding_datagrams_come_from_a_new_port_and_the_old_one_is_dead() {
        let (a, b) = (node(), node());
        let mut proxy = proxy(LinkConfig::default());
        proxy.set_a(a.local_addr().unwrap());
        proxy.set_b(b.local_addr().unwrap());
        let old = proxy.addr_of_a().unwrap();
        let new = proxy.rebind_a().unwrap();
        assert_ne!(old, new);
        a.send_to(b"moved", proxy.addr_of_b().unwrap()).unwrap();
        assert_eq!(next(&b), (b"moved".to_vec(), new));
        b.send_to(b"to the old port", old).unwrap();
        b.send_to(b"to the new port", new).unwrap();
        assert_eq!(next(&a).0, b"to the new port");
        assert_eq!(proxy.counts().ba.sent, 1);
    }

    #[test]
    fn a_blackout_loses_what_is_sent_into_it() {
        let (a, b) = (node(), node());
        let proxy = proxy(LinkConfig::default());
        proxy.set_b(b.local_addr().unwrap());
        proxy.black_out(Duration::from_secs(3600));
        a.send_to(b"lost", proxy.addr_of_b().unwrap()).unwrap();
        while proxy.counts().ab.lost_blackout == 0 {
            std::thread::yield_now();
        }
        proxy.black_out(Duration::ZERO);
        a.send_to(b"kept", proxy.addr_of_b().unwrap()).unwrap();
        assert_eq!(next(&b).0, b"kept");
    }

    #[test]
    fn it_carries_ipv6_too() {
        let Ok(a) = UdpSocket::bind("[::1]:0") else {
            println!("skipped: this machine has no IPv6");
            return;
        };
        let b = UdpSocket::bind("[::1]:0").unwrap();
        b.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let config = ProxyConfig {
            bind: std::net::Ipv6Addr::LOCALHOST.into(),
            ..ProxyConfig::new(Profile::symmetric("six", LinkConfig::wired(), 1))
        };
        let proxy = Proxy::start(config).unwrap();
        proxy.set_b(b.local_addr().unwrap());
        a.send_to(b"six", proxy.addr_of_b().unwrap()).unwrap();
        assert_eq!(next(&b).0, b"six");
        assert_eq!(proxy.counts().ab.delivered_bytes, 3 + 48);
    }
}
