//! QUIC driven by the sound card's clock.
//!
//! A packet that wakes a thread costs more than what it carries: on a call of 5 ms frames the network's own wake-ups
//! would be half of all the work. So a node's QUIC tasks live on the media thread, which is awake once a period anyway:
//!
//! 1. [`drive`] makes a [`Driver`], which the media thread owns, and a [`Drive`], which everybody else holds.
//! 2. The media thread runs inside [`Driver::run`]. With each period of the card it calls [`turn`] to take in what the
//!    sockets hold, plays and speaks, and calls [`flush`], which sends what was spoken.
//! 3. When another thread has something for QUIC to do (a dial, a message of the room), the media thread is woken at
//!    once: see [`Drive::hurry`]. Datagrams that arrive wait for the next period, when they could be played at the
//!    earliest.
//!
//! A flood must not keep the media thread from its work: a turn runs a bounded number of QUIC's tasks, receiving bounds
//! its own time (quinn: 50 µs), and what does not fit is dropped by the kernel's socket buffer. The dearest thing that a
//! stranger can ask for is a handshake: see [`HANDSHAKES_AT_ONCE`](super::HANDSHAKES_AT_ONCE).

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::Instant,
};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::{Builder, Handle};

/// Tasks run between two looks of the media thread at its own work.
pub const MAX_TASKS_A_TURN: u32 = 24;

/// The media thread's end: runs QUIC's tasks.
#[derive(Debug)]
pub struct Driver {
    runtime: Foreground,
    thread: Arc<OnceLock<Thread>>,
}

/// Everybody else's end: brings tasks to the driver, and wakes it for them.
#[derive(Debug, Clone)]
pub struct Drive {
    handle: Handle,
    thread: Arc<OnceLock<Thread>>,
}

/// A driver that nobody runs yet, and the end for all others.
///
/// # Errors
/// Where the system grants no more descriptors.
pub fn drive() -> io::Result<(Driver, Drive)> {
    let runtime = Builder::new_current_thread().enable_all().event_interval(MAX_TASKS_A_TURN).build()?;
    let thread = Arc::new(OnceLock::new());
    let drive = Drive { handle: runtime.handle().clone(), thread: thread.clone() };
    Ok((Driver { runtime: Foreground(Some(runtime)), thread }, drive))
}

/// A runtime that may be dropped anywhere: a driver that nobody ran is dropped by asynchronous code, where tokio's own
/// drop would wait and therefore panics.
#[derive(Debug)]
struct Foreground(Option<tokio::runtime::Runtime>);

impl Foreground {
    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        match &self.0 {
            Some(runtime) => runtime.block_on(work),
            None => unreachable!("only its drop takes it"),
        }
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Driver {
    /// Runs `work` on the calling thread, which is the only one that QUIC's tasks run on from now on, and only while
    /// `work` awaits [`turn`] or [`flush`]. Ends with it; unfinished tasks are dropped.
    pub fn run<T>(self, work: impl Future<Output = T>) -> T {
        let _ = self.thread.set(std::thread::current());
        self.runtime.block_on(work)
    }
}

/// Takes in what the sockets hold and lets the tasks work on it. Sleeps never.
pub async fn turn() {
    // The first look finds what has arrived and the timers that are due, the second comes after the tasks' work.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
}

/// Lets the tasks send what was handed to them since the last turn. Sleeps never.
pub async fn flush() {
    tokio::task::yield_now().await;
}

impl Drive {
    /// Ends the media thread's sleep, which must be a [`std::thread::park_timeout`].
    pub fn hurry(&self) {
        hurry(&self.thread);
    }

    /// Runs a task beside QUIC's own. It must never block.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(Hurrying::new(Box::pin(task), self.thread.clone()));
        self.hurry();
    }
}

impl Runtime for Drive {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _guard = self.handle.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.handle.spawn(Hurrying::new(task, self.thread.clone()));
        self.hurry();
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _guard = self.handle.enter();
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

fn hurry(thread: &OnceLock<Thread>) {
    if let Some(thread) = thread.get()
        && thread.id() != std::thread::current().id()
    {
        thread.unpark();
    }
}

/// A task that, woken from another thread, wakes the media thread too.
struct Hurrying {
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
    thread: Arc<OnceLock<Thread>>,
    /// The waker given to the task, and the task's own behind it.
    waker: Option<(Waker, Waker)>,
}

impl Hurrying {
    fn new(task: Pin<Box<dyn Future<Output = ()> + Send>>, thread: Arc<OnceLock<Thread>>) -> Self {
        Self { task, thread, waker: None }
    }
}

impl Future for Hurrying {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let given = match &this.waker {
            Some((given, own)) if own.will_wake(cx.waker()) => given,
            _ => {
                let bell = Bell { own: cx.waker().clone(), thread: this.thread.clone() };
                &this.waker.insert((Arc::new(bell).into(), cx.waker().clone())).0
            }
        };
        this.task.as_mut().poll(&mut Context::from_waker(given))
    }
}

struct Bell {
    own: Waker,
    thread: Arc<OnceLock<Thread>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.own.wake_by_ref();
        hurry(&self.thread);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use std::time::Duration;

    use super::*;

    #[test]
    fn a_task_woken_from_another_thread_ends_the_sleep_of_the_driving_one() {
        let (driver, drive) = drive().unwrap();
        let (bell, heard) = tokio::sync::oneshot::channel::<()>();
        let (done, finished) = mpsc::channel();
        drive.spawn(async move {
            let _ = heard.await;
            let _ = done.send(());
        });
        let ringer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let _ = bell.send(());
        });
        let began = Instant::now();
        driver.run(async {
            loop {
                turn().await;
                if finished.try_recv().is_ok() {
                    break;
                }
                assert!(began.elapsed() < Duration::from_secs(20), "the bell was not heard");
                std::thread::park_timeout(Duration::from_secs(30));
            }
        });
        ringer.join().unwrap();
    }

    #[test]
    fn one_turn_takes_a_datagram_from_the_socket_through_quic_to_its_reader() {
        use libp2p::identity::Keypair;

        let (driver, drive) = drive().unwrap();
        let (ana, ben) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let config = |keypair: &Keypair| super::super::Config::new(keypair).unwrap();
        let endpoint = |keypair: &Keypair| {
            let config = config(keypair);
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let runtime = Arc::new(drive.clone());
            quinn::Endpoint::new(config.endpoint, Some(config.server), socket, runtime).unwrap()
        };
        let (caller, listener) = (endpoint(&ana), endpoint(&ben));
        let at = listener.local_addr().unwrap();
        let connecting = caller.connect_with(config(&ana).client, at, "l").unwrap();
        let (heard, news) = mpsc::channel();
        drive.spawn(async move {
            let connection = listener.accept().await.unwrap().await.unwrap();
            while let Ok(bytes) = connection.read_datagram().await {
                let _ = heard.send(bytes);
            }
        });
        let (up, connected) = mpsc::channel();
        drive.spawn(async move {
            let _ = up.send(connecting.await.unwrap());
        });
        driver.run(async {
            let began = Instant::now();
            let connection = loop {
                assert!(began.elapsed() < Duration::from_secs(20), "no connection");
                turn().await;
                if let Ok(connection) = connected.try_recv() {
                    break connection;
                }
                std::thread::park_timeout(Duration::from_millis(1));
            };
            turn().await;
            connection.send_datagram("hello".into()).unwrap();
            flush().await;
            turn().await;
            assert_eq!(news.try_recv().unwrap(), "hello");
        });
    }
}
