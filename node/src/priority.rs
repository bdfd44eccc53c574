//! Being woken in time: real-time priority where the system grants it, a friendlier nice value where it does not.

use thread_priority::{RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};

/// Nice value of threads that sound waits for.
const HURRIED: i32 = -15;
/// From the least nice value to the most.
const PATIENT: i32 = 40;

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

/// Lets every other thread come before the calling one, for work that nobody waits for.
pub fn patient() {
    // Raising it is everybody's right, and it goes no further than its end.
    let _ = rustix::process::nice(PATIENT);
}

/// Makes the calling thread come before ordinary ones, where that is granted. For threads whose work strangers can
/// multiply: they must not be able to keep a core from everybody else.
pub fn hurried() {
    let _ = rustix::process::nice(HURRIED);
}
