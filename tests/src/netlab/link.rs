//! A link in user space: two TUN devices, and between them the packets of a [`Pipe`] each way.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hallway::bench::pipe::{Pipe, PipeCounts};
use tun_rs::{DeviceBuilder, SyncDevice};

/// No packet is larger.
const MAX_PACKET: usize = 2048;
/// Bytes that are kept of what passes, where that is asked for. What comes later is not kept.
pub const MAX_CAPTURE: usize = 64 << 20;
/// Longest sleep of a direction in which nothing is under way.
const IDLE: Duration = Duration::from_secs(1);

/// Lives as long as its two devices do: whoever removes them, or their namespaces, ends it.
pub struct Link {
    ends: [String; 2],
    directions: [Arc<Direction>; 2],
}

struct Direction {
    began: Instant,
    state: Mutex<State>,
    earlier: Condvar,
}

struct State {
    pipe: Pipe,
    captured: Option<Vec<Vec<u8>>>,
    captured_bytes: usize,
    ended: bool,
    late_most: Duration,
}

impl Link {
    /// Makes two devices named `NAME0` and `NAME1` in this namespace, and carries packets between them: from the first to
    /// the second through the first pipe.
    ///
    /// # Errors
    /// Where there are no TUN devices, or no right to make one.
    pub fn make(name: &str, mtu: u16, pipes: [Pipe; 2]) -> Result<Self> {
        let ends = [0, 1].map(|end| format!("{name}{end}"));
        let device = |name: &String| {
            let built = DeviceBuilder::new().name(name).mtu(mtu).inherit_enable_state().build_sync();
            built.map(Arc::new).with_context(|| format!("making {name}"))
        };
        let devices = [device(&ends[0])?, device(&ends[1])?];
        let began = Instant::now();
        let directions = pipes.map(|pipe| {
            let state =
                State { pipe, captured: None, captured_bytes: 0, ended: false, late_most: Duration::ZERO };
            let state = Mutex::new(state);
            Arc::new(Direction { began, state, earlier: Condvar::new() })
        });
        for (from, to) in [(0, 1), (1, 0)] {
            let (source, sink) = (devices[from].clone(), devices[to].clone());
            let (taken, due) = (directions[from].clone(), directions[from].clone());
            std::thread::spawn(move || taken.take(&source));
            std::thread::spawn(move || due.deliver(&sink));
        }
        Ok(Self { ends, directions })
    }

    /// The names of its two devices.
    pub fn ends(&self) -> &[String; 2] {
        &self.ends
    }

    /// Keeps every packet from now on, at most [`MAX_CAPTURE`] bytes each way.
    pub fn capture(&self) {
        self.directions.iter().for_each(|direction| direction.lock().captured = Some(Vec::new()));
    }

    /// What was kept of each direction.
    pub fn captured(&self) -> [Vec<Vec<u8>>; 2] {
        self.directions.each_ref().map(|direction| direction.lock().captured.clone().unwrap_or_default())
    }

    /// What went through each direction, and how much too late the latest packet came out.
    pub fn counts(&self) -> [(PipeCounts, Duration); 2] {
        self.directions.each_ref().map(|direction| {
            let state = direction.lock();
            (state.pipe.counts(), state.late_most)
        })
    }
}

impl Direction {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, from: &SyncDevice) {
        let mut buffer = [0; MAX_PACKET];
        // An error says that the device is gone.
        while let Ok(len) = from.recv(&mut buffer) {
            let mut state = self.lock();
            if state.captured_bytes + len <= MAX_CAPTURE
                && let Some(captured) = &mut state.captured
            {
                captured.push(buffer[..len].to_vec());
                state.captured_bytes += len;
            }
            state.pipe.handle_packet(self.began.elapsed(), &buffer[..len]);
            drop(state);
            self.earlier.notify_one();
        }
        self.lock().ended = true;
        self.earlier.notify_one();
    }

    fn deliver(&self, to: &SyncDevice) {
        let mut state = self.lock();
        while !state.ended {
            if let Some((due, packet)) = state.pipe.poll_packet(self.began.elapsed()) {
                drop(state);
                // A device that is not switched on yet takes nothing.
                let _ = to.send(&packet);
                state = self.lock();
                state.late_most = state.late_most.max(self.began.elapsed().saturating_sub(due));
                continue;
            }
            let due = state.pipe.poll_timeout();
            let wait = due.map_or(IDLE, |due| due.saturating_sub(self.began.elapsed()).min(IDLE));
            state = self.earlier.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
