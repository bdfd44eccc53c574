//! What a node does when it is asked: each command, and what comes of it.

use tokio::sync::oneshot;

use super::*;
use crate::{
    audio::{self, CaptureEnd, InputSpec, OutputSpec, PlaybackEnd},
    controls::{Hearing, THRESHOLDS, VOLUMES_DB},
    events::DeviceState,
    text,
};

/// Devices that may be opened at once: a sound system may take seconds for each. Who asks faster is told to wait.
pub const MAX_OPENING: usize = 4;

/// The sound devices in use, and those that are being opened.
pub(super) struct Devices {
    pub input: InUse,
    pub output: InUse,
    opening: mpsc::Sender<Opened>,
    opened: mpsc::Receiver<Opened>,
    /// Under way now.
    waited_for: usize,
}

/// What one end is.
pub(super) struct InUse {
    /// As it was asked for.
    pub asked: String,
    /// The device that it turned out to be; `None` where it is no device, or is lost now.
    pub device: Option<String>,
    /// Counts what was asked for: the last one wins, however long it takes to open.
    wanted: u64,
    /// The last of these that was taken.
    taken: u64,
}

impl InUse {
    /// Whether a device that was opened for this order is, or will be, in use: others were asked for since.
    fn is_current(&self, order: u64) -> bool {
        order == self.wanted || order == self.taken
    }
}

/// An end that was opened in the background, or not.
pub(super) struct Opened {
    number: u64,
    asked: String,
    end: End,
    made: Result<Made, audio::Error>,
    outcome: Option<oneshot::Sender<Result<Answer, Notice>>>,
}

enum Made {
    Capture(Box<CaptureEnd>),
    Playback(Box<PlaybackEnd>),
}

impl Devices {
    pub(super) fn new(input: &str, output: &str) -> Self {
        let (opening, opened) = mpsc::channel(MAX_OPENING);
        let in_use = |asked: &str| InUse { asked: asked.to_owned(), device: None, wanted: 0, taken: 0 };
        Self { input: in_use(input), output: in_use(output), opening, opened, waited_for: 0 }
    }

    /// The next end that was opened. Never ends.
    pub(super) async fn opened(&mut self) -> Option<Opened> {
        self.opened.recv().await
    }

    fn end(&mut self, end: End) -> &mut InUse {
        match end {
            End::Input => &mut self.input,
            End::Output => &mut self.output,
        }
    }
}

impl Node {
    /// Does what is asked and answers, at once or when it is done.
    pub(super) fn handle_order(&mut self, order: Order) {
        let Order { command, outcome } = order;
        let came_of_it = match command {
            Command::Device { end, name } => return self.open_device(end, name, outcome),
            Command::Devices => return list_devices(outcome),
            Command::Snapshot => Ok(Answer::Snapshot(Box::new(self.snapshot()))),
            command => self.handle_command(command).map(|()| Answer::Done),
        };
        self.answer(outcome, came_of_it);
    }

    fn handle_command(&mut self, command: Command) -> Result<(), Notice> {
        let mut controls = self.controls;
        match command {
            Command::Leave => self.ended = Some(Ended::Left),
            Command::Mute { on } => controls.muted = on,
            Command::Deafen { on } => controls.deafened = on,
            Command::Speak { when } => (controls.speak, controls.pressed) = (when, false),
            Command::Threshold { dbov } => {
                controls.threshold_dbov = dbov.clamp(*THRESHOLDS.start(), *THRESHOLDS.end());
            }
            Command::Press { down } => controls.pressed = down,
            Command::Processing { echo_cancel, noise_suppression, gain } => {
                let processing = &mut controls.processing;
                processing.echo = echo_cancel.unwrap_or(processing.echo);
                processing.noise = noise_suppression.unwrap_or(processing.noise);
                processing.gain = gain.unwrap_or(processing.gain);
            }
            Command::Profile { to } => controls.profile = to,
            Command::Delay { to } => controls.delay = to,
            Command::Volume { peer_id, volume_db } => {
                let volume_db = volume_db.clamp(*VOLUMES_DB.start(), *VOLUMES_DB.end());
                self.set_hearing(peer_id, |hearing| hearing.volume_db = volume_db)?;
            }
            Command::MutePerson { peer_id, on } => self.set_hearing(peer_id, |hearing| hearing.muted = on)?,
            Command::Chat { text } => match self.room.say(Instant::now(), &text) {
                Ok(id) => self.emit(Event::Said { text: text::clean_line(&text), id }),
                Err(error) => {
                    return Err(notice("chat", format!("not sent: {error}."), "Say it in several lines."));
                }
            },
            Command::Name { name } => self.room.rename(&name),
            Command::Verify { peer_id, on } => self.verify(peer_id, on)?,
            Command::Device { .. } | Command::Devices | Command::Snapshot => {}
        }
        if controls != self.controls {
            self.controls = controls;
            self.command_media(MediaCommand::Controls(controls));
            self.emit(Event::Controls(controls));
        }
        Ok(())
    }

    fn set_hearing(&mut self, peer_id: PeerId, change: impl FnOnce(&mut Hearing)) -> Result<(), Notice> {
        if self.peers.get(&peer_id).is_none_or(|peer| peer.name.is_none()) {
            let message = format!("{} is not in this room.", events::short(&peer_id));
            return Err(notice("nobody", message, "A snapshot lists who is."));
        }
        let mut hearing = self.config.volumes.of(&peer_id);
        change(&mut hearing);
        self.config.volumes.set(Instant::now(), peer_id, hearing);
        self.command_media(MediaCommand::Hearing { peer: peer_id, hearing });
        self.emit(Event::Volume { peer_id, hearing });
        Ok(())
    }

    /// Somebody is here under a name: what we know of that name and that key.
    pub(super) fn meet(&mut self, peer_id: PeerId) {
        let Some(name) = self.peers.get(&peer_id).and_then(|peer| peer.name.clone()) else { return };
        let (trust, owner, saved) = self.config.trust.meet(&peer_id, &name);
        if let Err(error) = saved {
            tracing::warn!(%error, "who was met is not remembered");
        }
        self.emit(Event::Trust { peer_id, name: name.clone(), trust });
        if let Some(owner) = owner {
            let known = if owner.verified { "whose key you verified" } else { "whom you met before" };
            self.warn(
                "other_key",
                format!(
                    "LOOK OUT: this {name} ({}) is not the {name} ({}) {known}: same name, another key.",
                    events::short(&peer_id),
                    events::short(&owner.peer)
                ),
                "Somebody may pretend to be your friend, or your friend has a new machine. Compare words aloud, and say \
                 `hallway ctl verify` if they are right.",
            );
        }
    }

    fn verify(&mut self, peer_id: PeerId, on: bool) -> Result<(), Notice> {
        let Some(name) = self.peers.get(&peer_id).and_then(|peer| peer.name.clone()) else {
            let message = format!("{} is not in this room.", events::short(&peer_id));
            return Err(notice("nobody", message, "A snapshot lists who is."));
        };
        let verified = self.config.trust.verify(&peer_id, &name, on);
        verified.map_err(|error| notice("people", format!("{error}."), "Nothing was remembered."))?;
        let trust = self.config.trust.standing(&peer_id, &name);
        self.emit(Event::Trust { peer_id, name, trust });
        Ok(())
    }

    /// Opens a device beside the one in use: a sound system may take seconds to answer.
    fn open_device(
        &mut self,
        end: End,
        asked: String,
        outcome: Option<oneshot::Sender<Result<Answer, Notice>>>,
    ) {
        if self.devices.waited_for >= MAX_OPENING {
            let message = format!("{asked} was not opened: {MAX_OPENING} others are still being opened.");
            return self.answer(outcome, Err(notice("busy", message, "Try again in a moment.")));
        }
        self.devices.waited_for += 1;
        let in_use = self.devices.end(end);
        in_use.wanted += 1;
        let number = in_use.wanted;
        let (opener, opening) = (self.media.opener().of_order(number), self.devices.opening.clone());
        tokio::task::spawn_blocking(move || {
            let made = match end {
                End::Input => asked
                    .parse::<InputSpec>()
                    .map_err(audio::Error::from)
                    .and_then(|spec| opener.capture(&spec))
                    .map(|capture| Made::Capture(Box::new(capture))),
                End::Output => asked
                    .parse::<OutputSpec>()
                    .map_err(audio::Error::from)
                    .and_then(|spec| opener.playback(&spec))
                    .map(|playback| Made::Playback(Box::new(playback))),
            };
            let _ = opening.blocking_send(Opened { number, asked, end, made, outcome });
        });
    }

    pub(super) fn handle_opened(&mut self, opened: Opened) {
        let Opened { number, asked, end, made, outcome } = opened;
        self.devices.waited_for = self.devices.waited_for.saturating_sub(1);
        if self.devices.end(end).wanted != number {
            let message = format!("{asked} was not taken: another device was asked for since.");
            return self.answer(outcome, Err(notice("device", message, "")));
        }
        let came_of_it = match made {
            Ok(made) => {
                self.command_media(match made {
                    Made::Capture(capture) => MediaCommand::Capture(capture),
                    Made::Playback(playback) => MediaCommand::Playback(playback),
                });
                // A device has told its name before; what is none has no name of its own.
                let is_device = match end {
                    End::Input => !matches!(
                        asked.parse(),
                        Ok(InputSpec::File(_) | InputSpec::Pipe(_) | InputSpec::Tone(_) | InputSpec::Silence)
                    ),
                    End::Output => !matches!(
                        asked.parse(),
                        Ok(OutputSpec::File(_) | OutputSpec::Pipe(_) | OutputSpec::Null)
                    ),
                };
                let in_use = self.devices.end(end);
                in_use.asked.clone_from(&asked);
                in_use.taken = number;
                if !is_device {
                    in_use.device = None;
                    self.emit(Event::Device { end, name: asked, state: DeviceState::Opened });
                }
                Ok(Answer::Done)
            }
            Err(error) => {
                let message = format!("the sound {end} stays as it is: {error}.");
                Err(notice("device", message, &error.hint()))
            }
        };
        self.answer(outcome, came_of_it);
    }

    /// A device was opened. One that was overtaken meanwhile is closed again, and no news.
    pub(super) fn device_opened(&mut self, at_ns: u64, end: End, name: String, order: u64) {
        if self.devices.end(end).is_current(order) {
            self.tell_device(at_ns, end, name, DeviceState::Opened);
        }
    }

    pub(super) fn tell_device(&mut self, at_ns: u64, end: End, name: String, state: DeviceState) {
        self.devices.end(end).device = (state != DeviceState::Lost).then(|| name.clone());
        self.emit_at(at_ns, Event::Device { end, name, state });
    }

    /// To whoever asked; a refusal that nobody waits for is a warning to all.
    fn answer(
        &self,
        outcome: Option<oneshot::Sender<Result<Answer, Notice>>>,
        came_of_it: Result<Answer, Notice>,
    ) {
        match (outcome, came_of_it) {
            // One who no longer waits has gone away.
            (Some(outcome), came_of_it) => drop(outcome.send(came_of_it)),
            (None, Err(notice)) => self.emit(Event::Warning(notice)),
            (None, Ok(_)) => {}
        }
    }
}

fn notice(code: &'static str, message: String, hint: &str) -> Notice {
    Notice { code, message, hint: hint.to_owned() }
}

/// Asks every sound system, which may take seconds.
fn list_devices(outcome: Option<oneshot::Sender<Result<Answer, Notice>>>) {
    let Some(outcome) = outcome else { return };
    tokio::task::spawn_blocking(move || drop(outcome.send(Ok(Answer::Devices(audio::list_devices())))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_was_overtaken_is_no_news_but_the_one_in_use_is() {
        let mut devices = Devices::new("default", "default");
        let input = devices.end(End::Input);
        assert!(input.is_current(0), "the one of the start");
        // Two are asked for; the second is there first.
        (input.wanted, input.taken) = (2, 2);
        assert!(!input.is_current(1) && !input.is_current(0) && input.is_current(2));
        // A third cannot be opened: what is in use may still tell that it was.
        input.wanted = 3;
        assert!(input.is_current(2) && !input.is_current(1));
    }
}
