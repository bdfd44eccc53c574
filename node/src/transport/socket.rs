//! A node's UDP socket: marks what it sends as voice for routers, counts it, and keeps the user's ceiling.
//!
//! quinn's own socket sets the whole traffic class of each packet from its ECN bits, which clears the DSCP, so packets
//! are sent from here, with both. What comes in is quinn's affair.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use socket2::{MsgHdr, SockAddr, Socket};

/// Expedited forwarding (RFC 3246), as RFC 4594 asks of telephony; in the upper six bits of the traffic class.
pub const EXPEDITED: u8 = 46 << 2;
/// IPv4 and UDP headers; IPv6 is 20 B more.
const HEADERS: u64 = 28;
/// What may be sent at once under a ceiling, in seconds of its rate: with the rate itself less than 5 % over in any 5 s.
const BURST_S: f64 = 0.15;
/// Least burst: three full packets, or a handshake could not begin.
const LEAST_BURST: f64 = 4_500.0;

/// Counts what a node sends over UDP, IP headers included, and lets no more pass than the user allows.
#[derive(Debug)]
pub struct Ceiling {
    /// Bytes a second; `None` counts only.
    per_second: Option<f64>,
    have: Mutex<(f64, Instant)>,
    sent: AtomicU64,
    held_back: AtomicU64,
}

impl Ceiling {
    /// At most this many kb/s.
    pub fn new(kbps: Option<u32>) -> Self {
        let per_second = kbps.map(|kbps| f64::from(kbps) * 125.0);
        let have = per_second.map_or(0.0, burst);
        Self { per_second, have: Mutex::new((have, Instant::now())), sent: 0.into(), held_back: 0.into() }
    }

    /// Whether a packet of so many bytes may be sent now; counts it if so.
    pub fn admit(&self, now: Instant, bytes: u64) -> bool {
        if let Some(per_second) = self.per_second {
            let mut state = self.have.lock().unwrap_or_else(PoisonError::into_inner);
            let (have, at) = *state;
            let gained = now.saturating_duration_since(at).as_secs_f64() * per_second;
            let have = (have + gained).min(burst(per_second));
            *state = (have, now.max(at));
            if have < bytes as f64 {
                self.held_back.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            state.0 = have - bytes as f64;
        }
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// The ceiling, kb/s.
    pub fn kbps(&self) -> Option<u32> {
        self.per_second.map(|bytes| (bytes / 125.0) as u32)
    }

    /// Bytes sent, and packets held back, since the start.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.held_back.load(Ordering::Relaxed))
    }
}

fn burst(per_second: f64) -> f64 {
    (per_second * BURST_S).max(LEAST_BURST)
}

/// See the module's text.
pub(super) struct Marked {
    inner: Arc<dyn AsyncUdpSocket>,
    socket: Socket,
    ceiling: Arc<Ceiling>,
}

impl Marked {
    /// `inner` receives; `socket` is the same one, to send on.
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>, socket: UdpSocket, ceiling: Arc<Ceiling>) -> Self {
        Self { inner, socket: socket.into(), ceiling }
    }
}

impl fmt::Debug for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Marked").field(&self.inner).finish()
    }
}

impl AsyncUdpSocket for Marked {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let v6 = if transmit.destination.is_ipv6() { 20 } else { 0 };
        if !self.ceiling.admit(Instant::now(), transmit.contents.len() as u64 + HEADERS + v6) {
            // As if the network had lost it: QUIC repeats what must arrive.
            return Ok(());
        }
        let class = EXPEDITED | transmit.ecn.map_or(0, |ecn| ecn as u8);
        let Some(control) = control(transmit.destination, class, transmit.src_ip) else {
            return self.inner.try_send(transmit);
        };
        let to: SockAddr = transmit.destination.into();
        let contents = [io::IoSlice::new(transmit.contents)];
        let message = MsgHdr::new().with_addr(&to).with_buffers(&contents).with_control(&control);
        match self.socket.sendmsg(&message, 0) {
            Ok(_) => Ok(()),
            // Where the kernel will not have it like this (a full socket too), quinn's own way decides.
            Err(_) => self.inner.try_send(transmit),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Control messages of sendmsg(2): the traffic class, and which of our addresses to send from. `None` where their layout
/// is not known here.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn control(to: SocketAddr, class: u8, from: Option<IpAddr>) -> Option<Vec<u8>> {
    // include/uapi/linux/in.h and in6.h; cmsghdr is length (8), level (4), type (4), data, padded to 8.
    const IPPROTO_IP: i32 = 0;
    const IP_TOS: i32 = 1;
    const IP_PKTINFO: i32 = 8;
    const IPPROTO_IPV6: i32 = 41;
    const IPV6_PKTINFO: i32 = 50;
    const IPV6_TCLASS: i32 = 67;
    let mut out = Vec::with_capacity(72);
    let mut push = |level: i32, kind: i32, data: &[u8]| {
        out.extend_from_slice(&(16 + data.len()).to_ne_bytes());
        out.extend_from_slice(&level.to_ne_bytes());
        out.extend_from_slice(&kind.to_ne_bytes());
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(8), 0);
    };
    let class = i32::from(class).to_ne_bytes();
    match (to, from) {
        (SocketAddr::V4(_), None) => push(IPPROTO_IP, IP_TOS, &class),
        (SocketAddr::V4(_), Some(IpAddr::V4(from))) => {
            push(IPPROTO_IP, IP_TOS, &class);
            // Interface (any), address to send from, and one that only counts in receiving.
            let octets = from.octets();
            push(IPPROTO_IP, IP_PKTINFO, &[&[0; 4][..], &octets, &[0; 4]].concat());
        }
        (SocketAddr::V6(to), _) if to.ip().to_ipv4_mapped().is_some() => return None,
        (SocketAddr::V6(_), None) => push(IPPROTO_IPV6, IPV6_TCLASS, &class),
        (SocketAddr::V6(_), Some(IpAddr::V6(from))) => {
            push(IPPROTO_IPV6, IPV6_TCLASS, &class);
            push(IPPROTO_IPV6, IPV6_PKTINFO, &[&from.octets()[..], &[0; 4]].concat());
        }
        _ => return None,
    }
    Some(out)
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn control(_: SocketAddr, _: u8, _: Option<IpAddr>) -> Option<Vec<u8>> {
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_ceiling_holds_within_five_percent_over_any_five_seconds() {
        for kbps in [64, 500, 5000] {
            let ceiling = Ceiling::new(Some(kbps));
            let start = Instant::now();
            let mut sent: Vec<(u64, u64)> = Vec::new();
            // Bursts of everything that fits, every 10 ms, after a pause in which tokens gather.
            for ms in (0..30_000u64).step_by(10).filter(|ms| !(10_000..14_000).contains(ms)) {
                let now = start + Duration::from_millis(ms);
                let bytes: u64 = (0..100).filter(|_| ceiling.admit(now, 200)).count() as u64 * 200;
                sent.push((ms, bytes));
            }
            let worst = (0..25_000)
                .step_by(100)
                .map(|from| {
                    let window = sent.iter().filter(|(ms, _)| (from..from + 5000).contains(ms));
                    window.map(|(_, bytes)| bytes * 8).sum::<u64>() as f64 / 5000.0
                })
                .fold(0.0, f64::max);
            let allowed = f64::from(kbps) * 1.05;
            let tiny = f64::from(kbps) * 5.0 * 0.05 * 125.0 < LEAST_BURST;
            assert!(worst <= if tiny { f64::from(kbps) * 1.12 } else { allowed }, "{worst} of {kbps}");
            assert!(worst > f64::from(kbps) * 0.95, "{worst} of {kbps}: what is allowed can be used");
        }
    }

    #[test]
    fn without_a_ceiling_everything_passes_and_is_counted() {
        let ceiling = Ceiling::new(None);
        assert!((0..1000).all(|_| ceiling.admit(Instant::now(), 1500)));
        assert_eq!((ceiling.kbps(), ceiling.counts()), (None, (1_500_000, 0)));
    }

    /// A raw socket shows the IP header of what arrives; for that one has to be root.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_is_sent_carries_expedited_forwarding() {
        use std::io::Read;
        let raw = Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::UDP));
        let Ok(mut raw) = raw else {
            println!("skipped: only root may see the headers of packets");
            return;
        };
        raw.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = sender.local_addr().unwrap();
        let inner =
            quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, sender.try_clone().unwrap()).unwrap();
        let marked = Marked::new(inner, sender, Arc::new(Ceiling::new(None)));
        for (src_ip, ecn) in [(None, None), (Some(to.ip()), Some(quinn::udp::EcnCodepoint::Ect0))] {
            let transmit = Transmit { destination: to, ecn, contents: b"voice", segment_size: None, src_ip };
            marked.try_send(&transmit).unwrap();
            let class = loop {
                let mut packet = [0u8; 256];
                let len = raw.read(&mut packet).unwrap();
                let udp = 4 * usize::from(packet[0] & 15);
                if len > udp + 8 && packet[udp..udp + 2] == from.port().to_be_bytes() {
                    assert_eq!(&packet[udp + 8..len], b"voice");
                    break packet[1];
                }
            };
            assert_eq!(class, EXPEDITED | ecn.map_or(0, |ecn| ecn as u8), "{src_ip:?}");
        }
    }

    #[test]
    fn ipv6_goes_out_too() {
        let Ok(receiver) = UdpSocket::bind("[::1]:0") else {
            println!("skipped: this machine has no IPv6");
            return;
        };
        let sender: Socket = UdpSocket::bind("[::1]:0").unwrap().into();
        let to = receiver.local_addr().unwrap();
        for from in [None, Some(to.ip())] {
            let control = control(to, EXPEDITED, from).unwrap();
            let (addr, contents) = (SockAddr::from(to), [io::IoSlice::new(b"voice")]);
            let message = MsgHdr::new().with_addr(&addr).with_buffers(&contents).with_control(&control);
            assert_eq!(sender.sendmsg(&message, 0).unwrap(), 5);
            let mut came = [0; 16];
            receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            assert_eq!(receiver.recv(&mut came).unwrap(), 5);
        }
    }
}
