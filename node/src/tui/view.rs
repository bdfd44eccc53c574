//! What the screen knows: plain data, changed by `update` alone, drawn by `draw`.

use std::{collections::VecDeque, time::Duration};

use libp2p::PeerId;
use ratatui::{crossterm::event::KeyCode, layout::Rect};

use super::Theme;
use crate::{
    audio::{DeviceInfo, End},
    controls::{Controls, Hearing},
    events::{Outlook, PathKind, PeerState, PeerStats, Processing, RendezvousState},
    names,
    trust::Standing,
};

/// Lines of conversation and of the log that are kept; the oldest go first.
pub const MAX_LINES: usize = 1_000;
/// Seconds of delay that are remembered of one person, for the plot.
pub const MAX_HISTORY: usize = 240;
/// People shown; as many as a node knows.
pub const MAX_PEOPLE: usize = crate::node::MAX_PEERS;
/// Longest line that can be typed, in bytes: what the room takes.
pub const MAX_DRAFT: usize = crate::room::control::MAX_CHAT_BYTES;

/// Everything that is drawn.
#[derive(Debug)]
pub struct View {
    /// The room's name, cleaned.
    pub room: String,
    /// Anyone who knows the name can join.
    pub open_room: bool,
    /// Nobody new is let in from then on, since launch.
    pub closes: Option<Duration>,
    /// The invite is for one guest.
    pub single_use: bool,
    /// The file that what is said in writing is kept in.
    pub history: Option<String>,
    /// The node is in the room.
    pub joined: bool,
    /// Our own name, cleaned.
    pub me: String,
    /// Since launch.
    pub elapsed: Duration,
    /// Loudness of our microphone, dB below full scale.
    pub level_dbov: f32,
    /// What it captures is sent.
    pub speaking: bool,
    /// What is set about our voice and ears, as asked for: keys follow each other faster than the node answers.
    pub controls: Controls,
    /// The same, as the node told last.
    pub told: Controls,
    /// What is done to our voice, and what it costs.
    pub processing: Processing,
    /// What is captured and where it is played.
    pub input: Device,
    /// See `input`.
    pub output: Device,
    /// Where rendezvous servers stand.
    pub servers: Vec<(String, RendezvousState)>,
    /// The others, in the order in which they came.
    pub people: Vec<Person>,
    /// The person that keys speak of.
    pub selected: Option<PeerId>,
    /// What was said, and what happened meanwhile.
    pub talk: VecDeque<Line>,
    /// Everything that happened.
    pub log: VecDeque<Line>,
    /// What stands in the way of the conversation.
    pub pane: Pane,
    /// The stages of the selected person's delay are shown.
    pub stages: bool,
    /// What is being typed.
    pub draft: Option<Draft>,
    /// Rows scrolled back from the newest; in the list of keys, on from the first.
    pub scroll: usize,
    /// The terminal tells when a key is let go.
    pub releases: bool,
    /// The key that is held down to talk, where its end is told.
    pub held: Option<KeyCode>,
    /// We are on the way out.
    pub leaving: bool,
    /// Colours and signs.
    pub theme: Theme,
    /// The terminal.
    pub area: Rect,
    /// Something changed since it was drawn last.
    pub stale: bool,
}

/// What lies over the conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Pane {
    /// Nothing: the conversation.
    #[default]
    Talk,
    /// Everything that happened.
    Log,
    /// The keys.
    Help,
    /// The sound devices.
    Devices(Devices),
    /// What is set about our voice, by the row that keys speak of.
    Settings(usize),
    /// Who is who: words to compare, and whose key is known. The row is the person selected.
    Who,
}

/// The list of sound devices.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Devices {
    /// `None` while the sound systems are asked.
    pub rows: Option<Vec<DeviceRow>>,
    /// Which one.
    pub at: usize,
}

/// What can be set about our voice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Voice or music.
    Profile,
    /// How much delay for how much clarity.
    Delay,
    /// Echo cancellation.
    Echo,
    /// Noise suppression.
    Noise,
    /// Automatic gain.
    Gain,
    /// When the microphone is open.
    Speak,
    /// From which loudness.
    Threshold,
}

/// The rows of [`Pane::Settings`].
pub const SETTINGS: [Setting; 7] = [
    Setting::Profile,
    Setting::Delay,
    Setting::Echo,
    Setting::Noise,
    Setting::Gain,
    Setting::Speak,
    Setting::Threshold,
];

impl Setting {
    /// As it is called on the screen.
    pub fn name(self) -> &'static str {
        match self {
            Self::Profile => "profile",
            Self::Delay => "delay",
            Self::Echo => "echo",
            Self::Noise => "noise",
            Self::Gain => "gain",
            Self::Speak => "microphone",
            Self::Threshold => "threshold",
        }
    }
}

/// One way to capture or play.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceRow {
    /// Which end.
    pub end: End,
    /// What the command takes.
    pub id: String,
    /// For people.
    pub name: String,
    /// The sound system's own choice.
    pub is_default: bool,
}

/// One end of the sound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Name of the device, or what stands in for one.
    pub name: String,
    /// It went away and is looked for.
    pub lost: bool,
}

/// Somebody else.
#[derive(Debug)]
pub struct Person {
    /// Who.
    pub peer: PeerId,
    /// The name said, cleaned; `None` before.
    pub name: Option<String>,
    /// The name as shown, told apart from all others.
    pub label: String,
    /// Where it stands.
    pub state: PeerState,
    /// How its voice travels.
    pub path: Option<PathKind>,
    /// What is known of its name and key; `None` before it has said its name.
    pub trust: Option<Standing>,
    /// Words to compare aloud.
    pub words: Option<String>,
    /// Why this path, and when a better one is tried.
    pub outlook: Outlook,
    /// Loudness now.
    pub level_dbov: f32,
    /// How it is heard here, as asked for.
    pub hearing: Hearing,
    /// The same, as the node told last.
    pub told: Hearing,
    /// The newest figures.
    pub stats: Option<Box<PeerStats>>,
    /// Mouth-to-ear delay of the last seconds, ms, oldest first; `None` where there was none.
    pub delays: VecDeque<Option<f32>>,
}

/// A line of the conversation or the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Since launch.
    pub at: Duration,
    /// Whose.
    pub voice: Voice,
    /// Cleaned.
    pub text: String,
}

/// Who speaks in a line. Decides where it stands and how it looks: text alone cannot imitate it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Voice {
    /// Somebody else, by the name shown then.
    Person(String),
    /// Ourselves.
    Own,
    /// The program, about what happened.
    System,
    /// The program, about what went wrong.
    Trouble,
    /// The program, about somebody who may not be whom one thinks.
    Alarm,
}

/// A line being typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    /// So far.
    pub text: String,
    /// Where the next character goes, in bytes.
    pub at: usize,
}

impl View {
    /// Before anything happened.
    pub fn new(room: &str, open_room: bool, me: &str, theme: Theme) -> Self {
        Self {
            room: room.to_owned(),
            open_room,
            closes: None,
            single_use: false,
            history: None,
            joined: false,
            me: me.to_owned(),
            elapsed: Duration::ZERO,
            level_dbov: -127.0,
            speaking: false,
            controls: Controls::default(),
            told: Controls::default(),
            processing: Processing::default(),
            input: Device::default(),
            output: Device::default(),
            servers: Vec::new(),
            people: Vec::new(),
            selected: None,
            talk: VecDeque::new(),
            log: VecDeque::new(),
            pane: Pane::Talk,
            stages: false,
            draft: None,
            scroll: 0,
            releases: false,
            held: None,
            leaving: false,
            theme,
            area: Rect::ZERO,
            stale: true,
        }
    }

    /// The person that keys speak of.
    pub fn selected(&self) -> Option<&Person> {
        let id = self.selected?;
        self.people.iter().find(|person| person.peer == id)
    }

    /// Members: those who said their name.
    pub fn members(&self) -> usize {
        let here =
            |state| matches!(state, PeerState::Connected | PeerState::PathChanged | PeerState::Reconnecting);
        self.people.iter().filter(|person| person.name.is_some() && here(person.state)).count()
    }

    /// How a peer is called on the screen.
    pub fn label(&self, peer: &PeerId) -> String {
        let known = self.people.iter().find(|person| person.peer == *peer);
        known.map_or_else(|| crate::events::short(peer), |person| person.label.clone())
    }

    /// Adds a line to the log; `talk` too where it concerns the conversation.
    pub fn note(&mut self, voice: Voice, text: String, talk: bool) {
        let line = Line { at: self.elapsed, voice, text };
        // What is read stays where it is.
        let is_below = if self.pane == Pane::Log { true } else { talk && self.pane == Pane::Talk };
        let rows = if self.scroll > 0 && is_below { super::draw::rows_of(self, &line) } else { 0 };
        if talk {
            push(&mut self.talk, line.clone());
        }
        push(&mut self.log, line);
        if rows > 0 {
            self.scroll = self.scroll.saturating_add(rows).min(super::draw::most_scroll(self));
        }
        self.stale = true;
    }

    /// Shows what the node told last: what was asked for since will not come.
    pub fn put_back(&mut self) {
        self.controls = self.told;
        self.people.iter_mut().for_each(|person| person.hearing = person.told);
        self.stale = true;
    }

    /// Tells the names apart anew.
    pub fn name_people(&mut self) {
        let named = self.people.iter().filter_map(|p| Some((p.peer, p.name.as_deref()?)));
        let labels = names::told_apart(&self.me, named);
        for person in &mut self.people {
            let label = labels.get(&person.peer).cloned();
            person.label = label.unwrap_or_else(|| crate::events::short(&person.peer));
        }
    }
}

fn push(lines: &mut VecDeque<Line>, line: Line) {
    if lines.len() >= MAX_LINES {
        lines.pop_front();
    }
    lines.push_back(line);
}

impl Person {
    /// One who has just become known.
    pub fn new(peer: PeerId) -> Self {
        Self {
            peer,
            name: None,
            label: crate::events::short(&peer),
            state: PeerState::Discovered,
            path: None,
            trust: None,
            words: None,
            outlook: Outlook::default(),
            level_dbov: -127.0,
            hearing: Hearing::default(),
            told: Hearing::default(),
            stats: None,
            delays: VecDeque::new(),
        }
    }

    /// Its voice is loud enough to be speech.
    pub fn is_speaking(&self) -> bool {
        self.level_dbov > SPEECH_DBOV
    }

    /// Takes the figures of a second.
    pub fn figures(&mut self, stats: Box<PeerStats>) {
        if self.delays.len() >= MAX_HISTORY {
            self.delays.pop_front();
        }
        self.delays.push_back(stats.mouth_to_ear_ms.map(|ms| ms as f32));
        self.stats = Some(stats);
    }
}

/// How a path is called on the screen.
pub fn path_word(path: PathKind) -> String {
    format!("{path:?}").to_lowercase()
}

/// Louder than this is somebody speaking, not a room.
pub const SPEECH_DBOV: f32 = -50.0;

impl Devices {
    /// The list as it is shown: the system's choice and every device, microphones first.
    pub fn list(found: &[DeviceInfo]) -> Vec<DeviceRow> {
        let mut rows = Vec::new();
        for end in [End::Input, End::Output] {
            rows.push(DeviceRow {
                end,
                id: "default".into(),
                name: "the system's choice".into(),
                is_default: false,
            });
            for device in found {
                let (fits, is_default) = match end {
                    End::Input => (device.input, device.default_input),
                    End::Output => (device.output, device.default_output),
                };
                if fits {
                    let name = format!("{} ({})", crate::text::clean_name(&device.name), device.host);
                    rows.push(DeviceRow { end, id: device.id.clone(), name, is_default });
                }
            }
        }
        rows
    }
}
