//! Who hears a stream, kept true while it plays: the server tells when its sinks change (headphones are plugged in or
//! pulled, which is another port), and when the stream is moved to another one.

use pulseaudio::protocol::{
    Command, GetSinkInfo, SinkInfo, SubscriptionEvent, SubscriptionEventFacility, SubscriptionEventType,
    SubscriptionMask, TagStructReader,
};

use super::super::SharedReach;
use super::connection::{Connection, Error};
use super::reach;

/// Follows the sink of one stream.
pub(super) struct Watch {
    sink: u32,
    reach: SharedReach,
    /// The number of the question that is open.
    question: Option<u32>,
    /// Something changed after it was asked.
    stale: bool,
}

impl Watch {
    /// Asks the server to tell.
    ///
    /// # Errors
    /// [`Error::Gone`]
    pub(super) fn begin(server: &mut Connection, sink: u32, reach: SharedReach) -> Result<Self, Error> {
        // A server that refuses tells nothing, and all stays as it was at the beginning.
        server.tell(&Command::Subscribe(SubscriptionMask::SINK))?;
        Ok(Self { sink, reach, question: None, stale: false })
    }

    /// Takes the last message where it answers our question.
    ///
    /// # Errors
    /// [`Error::Gone`]; a sink that is gone meanwhile is none: the stream is moved, or ends.
    pub(super) fn answers(&mut self, server: &mut Connection) -> Result<bool, Error> {
        let Some(question) = self.question else { return Ok(false) };
        match server.answer_to(question) {
            Ok(None) => return Ok(false),
            Ok(Some(mut answer)) => {
                let sink: Result<SinkInfo, _> = TagStructReader::new(&mut answer, server.version()).read();
                if let Ok(sink) = sink {
                    self.reach.set(reach(&sink));
                }
            }
            Err(_) => {}
        }
        self.question = None;
        if std::mem::take(&mut self.stale) {
            self.ask(server)?;
        }
        Ok(true)
    }

    /// Something changed at the server.
    ///
    /// # Errors
    /// [`Error::Gone`]
    pub(super) fn event(&mut self, server: &mut Connection, event: SubscriptionEvent) -> Result<(), Error> {
        let ours = event.event_facility == SubscriptionEventFacility::Sink
            && event.event_type == SubscriptionEventType::Changed
            && event.index == Some(self.sink);
        if ours { self.ask(server) } else { Ok(()) }
    }

    /// The stream plays into another sink.
    ///
    /// # Errors
    /// [`Error::Gone`]
    pub(super) fn moved(&mut self, server: &mut Connection, sink: u32) -> Result<(), Error> {
        self.sink = sink;
        self.ask(server)
    }

    fn ask(&mut self, server: &mut Connection) -> Result<(), Error> {
        if self.question.is_some() {
            // What is asked for may be of before the change.
            self.stale = true;
            return Ok(());
        }
        let about = GetSinkInfo { index: Some(self.sink), name: None };
        self.question = Some(server.tell(&Command::GetSinkInfo(about))?);
        Ok(())
    }
}
