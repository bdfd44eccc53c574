//! From the node to everybody who wants to know: printer or screen, control socket, written history.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::{
    ctl::Hub,
    events::{self, Event, Stamped},
    history::History,
};

/// How long the last event waits for a reader that is slow.
const LAST_PATIENCE: Duration = Duration::from_millis(200);

/// Passes events on until the node has ended. A reader that is slow loses figures first, then everything but the last.
pub async fn relay(
    mut from: mpsc::Receiver<Stamped>,
    to: mpsc::Sender<Stamped>,
    hub: Hub,
    mut history: Option<History>,
) {
    while let Some(stamped) = from.recv().await {
        hub.tell(&stamped);
        if let Some(history) = &mut history {
            history.handle(&stamped.event);
        }
        if matches!(stamped.event, Event::Summary(_)) {
            let _ = tokio::time::timeout(LAST_PATIENCE, to.send(stamped)).await;
        } else if events::has_room(&to, &stamped.event) {
            let _ = to.try_send(stamped);
        }
    }
}
