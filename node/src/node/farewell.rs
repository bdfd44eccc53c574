//! Leaving in order.

use super::*;

/// How long goodbyes may take.
const FAREWELL: Duration = Duration::from_millis(400);
/// How long the sound and the goodbyes may take together.
const LAST_MOMENT: Duration = Duration::from_secs(1);

impl Node {
    /// Says goodbye to everybody, waits a moment for it to get out, and sums the call up.
    pub(super) async fn say_goodbye(mut self) {
        let now = Instant::now();
        self.room.leave();
        while let Some(output) = self.room.poll_output(now) {
            if let Output::Send { .. } = output {
                self.handle_output(output);
            }
        }
        for peer in self.peers.values_mut() {
            peer.session.close(now);
            peer.transmit(now);
        }
        self.relays.leave();
        let media_done = async {
            self.media.command(MediaCommand::Stop);
            while let Some(event) = self.media_events.recv().await {
                match event {
                    MediaEvent::Stats(stats) => self.last_stats = Some(*stats),
                    // The thread itself goes on: it still has to send the goodbyes.
                    MediaEvent::Stopped(stats) => return self.last_stats = Some(*stats),
                    _ => {}
                }
            }
        };
        let farewell = async {
            let port = async {
                if let Some(map) = self.port_map.take() {
                    map.leave().await;
                }
            };
            let _ = tokio::time::timeout(FAREWELL, async { tokio::join!(self.links.leave(), port) }).await;
        };
        // The swarm carries the goodbye to the servers; it must be polled for that.
        let swarm = &mut self.swarm;
        let polling = async {
            loop {
                swarm.select_next_some().await;
            }
        };
        let both = async {
            tokio::join!(media_done, farewell);
        };
        tokio::select! {
            () = async { let _ = tokio::time::timeout(LAST_MOMENT, both).await; } => {}
            () = polling => {}
        }
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.remember(id);
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.paths.close_all(CloseReason::Goodbye);
            }
        }
        self.emit_summary().await;
    }
}
