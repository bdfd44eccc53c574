//! A link with delay, in user space: two TUN devices, and two threads for each direction between them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tun_rs::{DeviceBuilder, SyncDevice};

/// Packets under way in one direction; past it the newest is dropped.
const MAX_UNDER_WAY: usize = 4096;
/// No packet is larger.
const MAX_PACKET: usize = 2048;

/// Lives as long as its two devices do: whoever removes them, or their namespaces, ends it.
pub struct Link {
    ends: [String; 2],
}

impl Link {
    /// Makes two devices named `NAME0` and `NAME1` in this namespace, and carries packets between them.
    ///
    /// # Errors
    /// Where there are no TUN devices, or no right to make one.
    pub fn make(name: &str, mtu: u16, delay: Duration) -> Result<Self> {
        let ends = [0, 1].map(|end| format!("{name}{end}"));
        let device = |name: &String| {
            let built = DeviceBuilder::new().name(name).mtu(mtu).inherit_enable_state().build_sync();
            built.map(Arc::new).with_context(|| format!("making {name}"))
        };
        let devices = [device(&ends[0])?, device(&ends[1])?];
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (devices[from].clone(), devices[to].clone());
            let (queue, under_way) = sync_channel(MAX_UNDER_WAY);
            std::thread::spawn(move || take(&from, &queue, delay));
            std::thread::spawn(move || deliver(&to, &under_way));
        }
        Ok(Self { ends })
    }

    /// The names of its two devices.
    pub fn ends(&self) -> &[String; 2] {
        &self.ends
    }
}

fn take(from: &SyncDevice, queue: &SyncSender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut buffer = [0; MAX_PACKET];
    // An error says that the device is gone.
    while let Ok(len) = from.recv(&mut buffer) {
        let _ = queue.try_send((Instant::now() + delay, buffer[..len].to_vec()));
    }
}

fn deliver(to: &SyncDevice, under_way: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((at, packet)) = under_way.recv() {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        // A device that is not switched on yet takes nothing.
        let _ = to.send(&packet);
    }
}
