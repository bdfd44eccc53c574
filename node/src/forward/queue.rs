//! What waits to be written to a control stream: a few messages in order, and, where datagrams travel in the stream,
//! those, of which old voice is dropped. TCP hands over late what it could not send in time; a voice that waits for
//! that is a lag that never goes away.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Voice waits no longer than this before it is dropped.
pub const MAX_AGE: Duration = Duration::from_millis(80);
/// Bytes of voice that may wait. The oldest goes.
pub const MAX_VOICE: usize = 8 * 1024;
/// Other datagrams that may wait: handshakes, keys, chat. Full, the oldest goes and is counted; its session repeats it.
pub const MAX_OTHER: usize = 64;
/// Control messages that may wait. A reader that lets so many stand is given up.
pub const MAX_MESSAGES: usize = 64;

/// One thing to be written.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<M> {
    /// A control message.
    Message(M),
    /// A datagram.
    Data(Bytes),
}

#[derive(Debug)]
struct State<M> {
    messages: VecDeque<M>,
    other: VecDeque<Bytes>,
    voice: VecDeque<(Instant, Bytes)>,
    voice_bytes: usize,
    /// Bytes written in the present second, in the one before, and when the present one began.
    written: (u64, u64, Option<Instant>),
    dropped_at: Option<Instant>,
    closed: bool,
}

/// A queue with one reader.
#[derive(Debug)]
pub struct Queue<M> {
    state: Mutex<State<M>>,
    news: Notify,
}

impl<M> Default for Queue<M> {
    fn default() -> Self {
        let state = State {
            messages: VecDeque::new(),
            other: VecDeque::new(),
            voice: VecDeque::new(),
            voice_bytes: 0,
            written: (0, 0, None),
            dropped_at: None,
            closed: false,
        };
        Self { state: Mutex::new(state), news: Notify::new() }
    }
}

impl<M> Queue<M> {
    fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A control message. False where [`MAX_MESSAGES`] wait, or it is closed.
    pub fn push_message(&self, message: M) -> bool {
        let mut state = self.lock();
        if state.closed || state.messages.len() >= MAX_MESSAGES {
            return false;
        }
        state.messages.push_back(message);
        drop(state);
        self.news.notify_one();
        true
    }

    /// A datagram; what is too old or too much is dropped. False where it is closed.
    pub fn push_data(&self, now: Instant, datagram: Bytes, voice: bool) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        if voice {
            state.voice_bytes = state.voice_bytes.saturating_add(datagram.len());
            state.voice.push_back((now, datagram));
            while state.voice_bytes > MAX_VOICE && state.voice.len() > 1 {
                state.dropped_at = Some(now);
                state.drop_voice();
            }
        } else {
            if state.other.len() >= MAX_OTHER {
                state.other.pop_front();
                tracing::debug!("a datagram of a session gave way in a full queue; the session repeats it");
            }
            state.other.push_back(datagram);
        }
        drop(state);
        self.news.notify_one();
        true
    }

    /// The next thing to write: messages first, then what sessions say, then voice that is still of use.
    pub fn pop(&self, now: Instant) -> Option<Item<M>> {
        let mut state = self.lock();
        if let Some(message) = state.messages.pop_front() {
            return Some(Item::Message(message));
        }
        if let Some(datagram) = state.other.pop_front() {
            return Some(Item::Data(datagram));
        }
        while let Some((at, _)) = state.voice.front() {
            if now.saturating_duration_since(*at) <= MAX_AGE {
                let (_, datagram) = state.voice.pop_front()?;
                state.voice_bytes = state.voice_bytes.saturating_sub(datagram.len());
                state.count(now, datagram.len());
                return Some(Item::Data(datagram));
            }
            state.dropped_at = Some(now);
            state.drop_voice();
        }
        None
    }

    /// What gets through, kb/s with headers, while voice is being dropped because it waited too long; else no limit is
    /// known.
    pub fn limit_kbps(&self, now: Instant) -> Option<u32> {
        let mut state = self.lock();
        state.count(now, 0);
        let recent =
            state.dropped_at.is_some_and(|at| now.saturating_duration_since(at) < Duration::from_secs(3));
        let bytes = state.written.1;
        recent.then(|| u32::try_from(bytes.saturating_mul(85) / 100 / 125).unwrap_or(u32::MAX))
    }

    /// As [`Queue::pop`], and waits for it. `None` once it is closed and empty.
    pub async fn next(&self) -> Option<Item<M>> {
        loop {
            if let Some(item) = self.pop(Instant::now()) {
                return Some(item);
            }
            if self.lock().closed {
                return None;
            }
            self.news.notified().await;
        }
    }

    /// Nothing more is taken; what waits may still be read.
    pub fn close(&self) {
        self.lock().closed = true;
        self.news.notify_one();
    }
}

impl<M> State<M> {
    fn count(&mut self, now: Instant, bytes: usize) {
        let began = *self.written.2.get_or_insert(now);
        if now.saturating_duration_since(began) >= Duration::from_secs(1) {
            self.written = (0, self.written.0, Some(now));
        }
        // Headers of TCP, its encryption and ours.
        self.written.0 = self.written.0.saturating_add(bytes as u64 + if bytes > 0 { 60 } else { 0 });
    }

    fn drop_voice(&mut self) {
        if let Some((_, datagram)) = self.voice.pop_front() {
            self.voice_bytes = self.voice_bytes.saturating_sub(datagram.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize, mark: u8) -> Bytes {
        vec![mark; len].into()
    }

    #[test]
    fn old_voice_is_dropped_and_never_written_late() {
        let (queue, start) = (Queue::<()>::default(), Instant::now());
        for ms in (0..200).step_by(20) {
            queue.push_data(start + Duration::from_millis(ms), bytes(100, ms as u8), true);
        }
        let now = start + Duration::from_millis(200);
        let left: Vec<u8> = std::iter::from_fn(|| queue.pop(now))
            .map(|item| match item {
                Item::Data(data) => data[0],
                Item::Message(()) => unreachable!("no message was put in"),
            })
            .collect();
        assert_eq!(left, [120, 140, 160, 180]);
    }

    #[test]
    fn a_full_queue_keeps_the_newest_voice_and_all_that_sessions_say() {
        let (queue, now) = (Queue::default(), Instant::now());
        for i in 0..100 {
            queue.push_data(now, bytes(1000, i), true);
        }
        queue.push_data(now, bytes(10, 200), false);
        assert!(queue.push_message("hello"));
        assert_eq!(queue.pop(now), Some(Item::Message("hello")));
        assert_eq!(queue.pop(now), Some(Item::Data(bytes(10, 200))), "before any voice");
        let first = queue.pop(now);
        assert_eq!(first, Some(Item::Data(bytes(1000, 92))));
        assert!(queue.lock().voice_bytes <= MAX_VOICE);
    }

    #[test]
    fn a_reader_that_takes_nothing_is_found_out_and_a_closed_queue_takes_nothing() {
        let queue = Queue::default();
        assert!((0..MAX_MESSAGES).all(|i| queue.push_message(i)));
        assert!(!queue.push_message(0));
        queue.close();
        assert!(!queue.push_data(Instant::now(), bytes(1, 1), true));
    }
}
