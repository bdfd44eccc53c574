//! The few system calls: TUN, namespaces, clocks, scheduling.
use std::ffi::CString;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

pub static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: i32) {
    STOP.store(true, Ordering::SeqCst);
}

pub fn install_signals() {
    unsafe {
        libc::signal(libc::SIGTERM, on_signal as *const () as usize);
        libc::signal(libc::SIGINT, on_signal as *const () as usize);
    }
}

pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// CLOCK_MONOTONIC in ns.
pub fn now() -> i64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as i64 * 1_000_000_000 + t.tv_nsec as i64
}

pub fn sleep_until(t: i64) {
    let ts = libc::timespec { tv_sec: t / 1_000_000_000, tv_nsec: t % 1_000_000_000 };
    unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &ts, std::ptr::null_mut());
    }
}

/// SCHED_FIFO for the calling thread; falls back silently when not allowed.
pub fn realtime_thread(prio: i32) -> bool {
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1u64, 0, 0, 0);
        let p = libc::sched_param { sched_priority: prio };
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &p) == 0
    }
}

pub fn lock_memory() {
    unsafe {
        libc::mlockall(libc::MCL_CURRENT);
    }
}

/// Moves the calling thread into a named network namespace (`ip netns add NAME`).
pub fn enter_ns(name: &str) {
    let path = if name.contains('/') { name.to_string() } else { format!("/run/netns/{name}") };
    let c = CString::new(path.clone()).unwrap();
    unsafe {
        let fd = libc::open(c.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 || libc::setns(fd, libc::CLONE_NEWNET) != 0 {
            eprintln!("compare-link: cannot enter network namespace {path}: {}", std::io::Error::last_os_error());
            std::process::exit(1);
        }
        libc::close(fd);
    }
}

#[repr(C)]
struct IfReq {
    name: [u8; 16],
    flags: i16,
    pad: [u8; 22],
}

/// Opens a TUN called `ifname` in the calling thread's namespace.
pub fn open_tun(ifname: &str) -> RawFd {
    let c = CString::new("/dev/net/tun").unwrap();
    unsafe {
        let fd = libc::open(c.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        assert!(fd >= 0, "open /dev/net/tun: {}", std::io::Error::last_os_error());
        let mut r = IfReq { name: [0; 16], flags: 0x0001 | 0x1000, pad: [0; 22] }; // IFF_TUN | IFF_NO_PI
        r.name[..ifname.len()].copy_from_slice(ifname.as_bytes());
        const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
        if libc::ioctl(fd, TUNSETIFF as _, &mut r) != 0 {
            panic!("TUNSETIFF {ifname}: {}", std::io::Error::last_os_error());
        }
        fd
    }
}

pub fn read(fd: RawFd, buf: &mut [u8]) -> isize {
    unsafe { libc::read(fd, buf.as_mut_ptr() as *mut _, buf.len()) }
}

pub fn write(fd: RawFd, buf: &[u8]) -> isize {
    unsafe { libc::write(fd, buf.as_ptr() as *const _, buf.len()) }
}

/// Waits for input for at most `ms`.
pub fn poll_in(fd: RawFd, ms: i32) -> bool {
    let mut p = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    unsafe { libc::poll(&mut p, 1, ms) > 0 }
}

/// Runs `ip` in the calling thread's namespace (the child inherits it).
pub fn ip(args: &[&str]) {
    let s = std::process::Command::new("ip").args(args).status().expect("ip");
    if !s.success() {
        eprintln!("compare-link: ip {} failed", args.join(" "));
        std::process::exit(1);
    }
}
