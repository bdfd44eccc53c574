//! QUIC driven by the sound card's clock.
//!
//! A packet that wakes a thread costs more than what it carries: on a call of 5 ms frames the network's own wake-ups
//! would be half of all the work. So a node's QUIC tasks live on the media thread, which is awake once a period anyway:
//!
//! 1. [`drive`] makes a [`Driver`], which the media thread owns, and a [`Drive`], which everybody else holds.
//! 2. The media thread works inside [`Driver::run`], which lends it the [`Tasks`]. With each period of the card it calls
//!    [`Tasks::turn`] to take in what the sockets hold, plays and speaks, and calls [`Tasks::flush`], which sends what was
//!    spoken. Only a turn asks the kernel what has come, and once: tokio's own queue of tasks would ask with each look at
//!    them, so it is used for sockets and timers alone.
//! 3. When another thread has something for QUIC to do (a dial, a message of the room), the media thread is woken at
//!    once: see [`Drive::hurry`]. Datagrams that arrive wait for the next period, when they could be played at the
//!    earliest.
//!
//! A flood must not keep the media thread from its work: each of QUIC's tasks has [`MAX_LOOKS`] goes a turn, receiving bounds
//! its own time (quinn: 50 µs), and what does not fit is dropped by the kernel's socket buffer. The dearest thing that a
//! stranger can ask for is a handshake: see [`HANDSHAKES_AT_ONCE`](super::HANDSHAKES_AT_ONCE).

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::Instant,
};

use crossbeam_queue::SegQueue;
use futures::{Stream, stream::FuturesUnordered};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::{Builder, Handle};

/// Looks at the tasks in one turn or flush: each gives every task that has something to do one go, so that what one hands to
/// another is done in the same turn.
pub const MAX_LOOKS: u32 = 8;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The media thread's end: runs QUIC's tasks.
#[derive(Debug)]
pub struct Driver {
    runtime: Foreground,
    tasks: Tasks,
}

/// QUIC's tasks, lent to the work inside [`Driver::run`].
pub struct Tasks {
    at_work: FuturesUnordered<Task>,
    shared: Arc<Shared>,
    /// Wakes `shared`.
    bell: Waker,
}

/// Everybody else's end: brings tasks to the driver, and wakes it for them.
#[derive(Debug, Clone)]
pub struct Drive {
    handle: Handle,
    shared: Arc<Shared>,
}

/// What both ends know.
#[derive(Default)]
struct Shared {
    /// Tasks that were not looked at yet.
    arriving: SegQueue<Task>,
    /// A task has something to do that had nothing when it was looked at.
    rung: AtomicBool,
    /// The one that drives, once it does.
    thread: OnceLock<Thread>,
    /// Nobody will look at tasks any more.
    ended: AtomicBool,
}

/// A driver that nobody runs yet, and the end for all others.
///
/// # Errors
/// Where the system grants no more descriptors.
pub fn drive() -> io::Result<(Driver, Drive)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let shared = Arc::new(Shared::default());
    let drive = Drive { handle: runtime.handle().clone(), shared: shared.clone() };
    let tasks = Tasks { at_work: FuturesUnordered::new(), bell: shared.clone().into(), shared };
    Ok((Driver { runtime: Foreground(Some(runtime)), tasks }, drive))
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
    /// Does `work` on the calling thread, which is the only one that QUIC's tasks run on from now on, and only while `work`
    /// is in [`Tasks::turn`] or [`Tasks::flush`]. Ends with it; unfinished tasks are dropped.
    pub fn run<T, F: Future<Output = T>>(self, work: impl FnOnce(Tasks) -> F) -> T {
        let Self { runtime, tasks } = self;
        let _ = tasks.shared.thread.set(std::thread::current());
        runtime.block_on(work(tasks))
    }
}

impl Tasks {
    /// Takes in what the sockets hold and lets the tasks work on it. Sleeps never.
    pub async fn turn(&mut self) {
        // tokio looks at sockets and timers, and comes back.
        tokio::task::yield_now().await;
        self.flush();
    }

    /// Lets the tasks do what there is for them to do, such as to send what was handed to them. Sleeps never.
    pub fn flush(&mut self) {
        let mut cx = Context::from_waker(&self.bell);
        for _ in 0..MAX_LOOKS {
            while let Some(task) = self.shared.arriving.pop() {
                self.at_work.push(task);
            }
            self.shared.rung.store(false, Ordering::Release);
            // Pending where nothing is left to do, and where much was done and more is left: the bell rings then.
            while let Poll::Ready(Some(())) = Pin::new(&mut self.at_work).poll_next(&mut cx) {}
            if !self.shared.rung.load(Ordering::Acquire) && self.shared.arriving.is_empty() {
                return;
            }
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.forget();
    }
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks").field("at_work", &self.at_work.len()).finish_non_exhaustive()
    }
}

impl Drive {
    /// Ends the media thread's sleep, which must be a [`std::thread::park_timeout`].
    pub fn hurry(&self) {
        self.shared.hurry();
    }

    /// Runs a task beside QUIC's own. It must never block.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        Runtime::spawn(self, Box::pin(task));
    }
}

impl Runtime for Drive {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _guard = self.handle.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Task) {
        self.shared.arriving.push(task);
        if self.shared.ended.load(Ordering::SeqCst) {
            self.shared.forget();
        }
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

impl Shared {
    /// Wakes the driving thread, from another one.
    fn hurry(&self) {
        if let Some(thread) = self.thread.get()
            && thread.id() != std::thread::current().id()
        {
            thread.unpark();
        }
    }

    /// Drops what waits: tasks hold on to what they are kept in.
    fn forget(&self) {
        while self.arriving.pop().is_some() {}
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("arriving", &self.arriving.len()).finish_non_exhaustive()
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.hurry();
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
        driver.run(async |mut tasks| {
            loop {
                tasks.turn().await;
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
    fn tasks_that_nobody_will_run_are_dropped() {
        let held = Arc::new(());
        let brought = |drive: &Drive| {
            let held = held.clone();
            drive.spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            });
        };
        let (driver, drive) = drive().unwrap();
        brought(&drive);
        drop(driver);
        assert_eq!(Arc::strong_count(&held), 1, "of a driver that never ran");
        brought(&drive);
        assert_eq!(Arc::strong_count(&held), 1, "too late");
        let (driver, drive) = super::drive().unwrap();
        brought(&drive);
        driver.run(async |mut tasks| tasks.turn().await);
        assert_eq!(Arc::strong_count(&held), 1, "of a driver that has ended");
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
        driver.run(async |mut tasks| {
            let began = Instant::now();
            let connection = loop {
                assert!(began.elapsed() < Duration::from_secs(20), "no connection");
                tasks.turn().await;
                if let Ok(connection) = connected.try_recv() {
                    break connection;
                }
                std::thread::park_timeout(Duration::from_millis(1));
            };
            tasks.turn().await;
            connection.send_datagram("hello".into()).unwrap();
            tasks.flush();
            tasks.turn().await;
            assert_eq!(news.try_recv().unwrap(), "hello");
        });
    }
}
