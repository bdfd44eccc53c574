//! `/hallway/watch/1`: one watch from its first message to its end.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;

fn checked(guest: Guest, presence: &Presence) -> Result<Presented, Status> {
    let ttl = (presence.ttl != 0).then_some(presence.ttl);
    Presented::check(&guest.peer, Some(&presence.signed_peer_record), ttl)
}

/// Serves one stream.
pub(super) async fn serve_watch(shared: &Shared, mut inbound: Inbound) -> Result<(), StreamError> {
    let guest = guest(&inbound);
    let first: WatchRequest =
        timeout(STREAM_PATIENCE, wire::read(&mut inbound.stream, MAX_REQUEST)).await??;
    let watch = first.watch.ok_or(StreamError::NoWatch)?;
    let presented = watch.presence.as_ref().map(|presence| checked(guest, presence));
    let seen = inbound.addr.borrow_and_update().clone();
    let opened =
        shared.with(|hub| hub.open_watch(now(), guest, &watch.namespace, &watch.door, presented, &seen));
    let (watching, messages) = match opened {
        Ok(opened) => opened,
        Err(status) => {
            send(&mut inbound.stream, &WatchEvent::bye(status)).await?;
            return Ok(timeout(STREAM_PATIENCE, inbound.stream.close()).await??);
        }
    };
    let mut watch = OpenWatch { shared, watching, goodbye: false };
    watch.run(inbound, messages).await
}

/// A watch while its stream lives; its end, however it comes, is told to the hub.
struct OpenWatch<'a> {
    shared: &'a Shared,
    watching: Watching,
    goodbye: bool,
}

impl Drop for OpenWatch<'_> {
    fn drop(&mut self) {
        locked(&self.shared.wakers).remove(&self.watching.id);
        self.shared.with(|hub| hub.close_watch(now(), &self.watching, self.goodbye));
    }
}

impl OpenWatch<'_> {
    async fn run(&mut self, inbound: Inbound, first: Vec<WatchEvent>) -> Result<(), StreamError> {
        let Inbound { peer, stream, mut addr, permit: _permit, .. } = inbound;
        let guest = Guest { peer, prefix: Prefix::of(&addr.borrow()) };
        let unheard = Arc::new(Notify::new());
        locked(&self.shared.wakers).insert(self.watching.id, Arc::clone(&unheard));
        // Whatever changed before the waker stood is asked for once by hand.
        unheard.notify_one();

        let (reader, mut writer) = stream.split();
        // One future reads all messages, so that losing a race in `select!` never loses half a message.
        let mut requests = pin!(stream::unfold(reader, |mut reader| async {
            let read = timeout(WATCH_IDLE, wire::read::<WatchRequest, _>(&mut reader, MAX_REQUEST)).await;
            Some((read, reader))
        }));
        for message in first {
            self.push(&mut writer, &message).await?;
        }

        let mut stop = self.shared.stop.clone();
        let mut pace = Bucket::per_second(MESSAGE_BURST, MESSAGES_PER_SECOND, now());
        let mut keep_alive = interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut door_told = now();
        let mut door_due: Option<Instant> = None;
        loop {
            let door = async {
                match door_due {
                    Some(when) => sleep_until(when.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {
                    self.push(&mut writer, &WatchEvent::bye(Status::Ok)).await?;
                    return Ok(timeout(STREAM_PATIENCE, writer.close()).await??);
                }
                request = requests.next() => {
                    let request = match request {
                        Some(Ok(Ok(request))) => request,
                        Some(Ok(Err(ReadError::Ended))) | None => return Ok(()),
                        Some(Ok(Err(error))) => return Err(error.into()),
                        Some(Err(silent)) => return Err(silent.into()),
                    };
                    if request.leave.is_some() {
                        self.goodbye = true;
                        return Ok(timeout(STREAM_PATIENCE, writer.close()).await??);
                    }
                    if !pace.take(now()) {
                        return Err(StreamError::TooMany);
                    }
                    if let Some(presence) = &request.refresh {
                        let presented = checked(guest, presence);
                        let registered = self.shared.with(|hub| hub.present(now(), &self.watching, presented));
                        let event = WatchEvent { registered: Some(registered), ..WatchEvent::default() };
                        self.push(&mut writer, &event).await?;
                    }
                }
                () = unheard.notified() => {
                    let (messages, door) = self.shared.with(|hub| hub.unheard(&self.watching));
                    for message in messages {
                        self.push(&mut writer, &message).await?;
                    }
                    if door && door_due.is_none() {
                        door_due = Some(door_told.checked_add(DOOR_PACE).unwrap_or(door_told));
                    }
                }
                () = door => {
                    (door_due, door_told) = (None, now());
                    let other_keys = self.shared.with(|hub| hub.other_keys(&self.watching));
                    self.push(&mut writer, &WatchEvent { other_keys, ..WatchEvent::default() }).await?;
                }
                changed = addr.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let observed: Multiaddr = addr.borrow_and_update().clone();
                    let event = WatchEvent { observed: Some(observed.to_vec()), ..WatchEvent::default() };
                    self.push(&mut writer, &event).await?;
                }
                _ = keep_alive.tick() => {
                    let event = WatchEvent { keep_alive: Some(Empty {}), ..WatchEvent::default() };
                    self.push(&mut writer, &event).await?;
                }
            }
        }
    }

    async fn push<S: AsyncWrite + Unpin>(&self, to: &mut S, event: &WatchEvent) -> Result<(), StreamError> {
        send(to, event).await?;
        self.shared.pushed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
