//! Being woken in time: real-time priority where the system grants it, a friendlier nice value where it does not.

use thread_priority::{RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};

/// Nice value of threads that sound waits for.
const HURRIED: i32 = -15;

/// Puts the calling thread on the least real-time priority (SCHED_FIFO), or makes it nice to nobody, or neither: an
/// ordinary user may be granted none of both. True where it is real-time.
///
/// For threads that do a little, often, and wait for no lock but those that are held for microseconds.
pub fn real_time() -> bool {
    let granted = thread_priority::set_thread_priority_and_policy(
        thread_priority::thread_native_id(),
        ThreadPriority::Min,
        ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo),
    )
    .is_ok();
    if !granted {
        hurried();
    }
    granted
}

/// Makes the calling thread come before ordinary ones, where that is granted. For threads whose work strangers can
/// multiply: they must not be able to keep a core from everybody else.
pub fn hurried() {
    let _ = rustix::process::nice(HURRIED);
}
