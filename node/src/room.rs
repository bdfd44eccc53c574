//! Membership as a pure machine: sessions come and go, messages come in; what follows comes out.
//!
//! A mesh: everyone has a session with everyone. A newcomer needs to reach one member; that one tells it of the others
//! and the others of it ([`Control::Members`]). Keys follow membership through [`KeyDistribution`]: a newcomer cannot
//! read the past, who left cannot read on.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod chat;
pub mod compare;
pub mod control;
pub mod distribution;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use libp2p_identity::PeerId;

use crate::session::bucket::Bucket;
use crate::session::keys::SenderKey;
use crate::text;
use chat::{Arrival, Line, Place};
use compare::Compare;
use control::{CONTROL_VERSION, Control, FEATURE_BEHIND_NAT, Hello, Listed, MAX_ADDRESSES, MAX_CHAT_BYTES};
use distribution::{KeyDistribution, KeyOutput, PairwiseKeys};

pub use control::RoomRefusal;

/// People in one room, ourselves included. A full mesh costs each one an upload per listener.
pub const MAX_MEMBERS: usize = 10;
/// How often one peer is dialled on others' word within [`DIAL_PERIOD`]: members may name a victim.
pub const MAX_DIALS: u32 = 3;
/// See [`MAX_DIALS`].
pub const DIAL_PERIOD: Duration = Duration::from_secs(600);
/// Peers remembered for [`MAX_DIALS`]; further ones are not dialled until older ones are forgotten.
pub const MAX_DIALLED: usize = 64;
/// Greatest number of a line: the greatest whole number that every reader of JSON holds exactly.
pub const MAX_CHAT_ID: u64 = (1 << 53) - 1;
/// How long lines wait for a member that was lost without a goodbye.
pub const WAIT_FOR_THE_LOST: Duration = Duration::from_secs(30 * 60);
/// Lost members for whom lines wait. Of more, the one that is away the longest is given up.
pub const MAX_AWAY: usize = 32;
/// Chat lines and changes of name taken from one member at once; beyond, they are dropped and counted.
pub const MAX_TALK: u32 = 30;
/// Keys taken from one member at once, far more than a full room's coming and going makes.
pub const MAX_KEY_CHANGES: u32 = 40;
/// How often a member that used up [`MAX_TALK`] or [`MAX_KEY_CHANGES`] is heard again.
pub const TALK_EVERY: Duration = Duration::from_millis(200);

/// Somebody else in the room.
#[derive(Debug, Clone)]
pub struct Member {
    /// Who.
    pub peer: PeerId,
    /// Display name, cleaned; `None` until the member has said it.
    pub name: Option<String>,
    /// Where it may be dialled: its own word and what we saw, at most [`MAX_ADDRESSES`].
    pub addresses: Vec<Multiaddr>,
    features: u64,
    talk: Bucket,
    key_changes: Bucket,
    compare: Compare,
}

/// Lines between us and somebody who is or was in the room.
#[derive(Debug)]
struct Mail {
    out: chat::Outbox,
    inbox: chat::Inbox,
    /// Since when it is away without a goodbye.
    away: Option<Instant>,
}

/// What the invite says about who may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// From then on nobody comes in who was not in before.
    pub closes: Option<Instant>,
    /// Two people only: this one, and whoever else is the first to come.
    pub host: Option<PeerId>,
}

impl Member {
    /// Whether it says that it sits behind a NAT that gave it no port.
    pub fn is_behind_nat(&self) -> bool {
        self.features & FEATURE_BEHIND_NAT != 0
    }
}

/// How a member went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// It said so.
    Left,
    /// Its session said goodbye.
    Closed,
    /// Its session fell silent.
    Lost,
}

/// A line was not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// Say less at once.
    #[error("{length} bytes are too long for one line, at most {MAX_CHAT_BYTES} fit")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
}

/// What follows from what happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this reliably in the session with `to`.
    Send {
        /// Whom.
        to: PeerId,
        /// The message.
        message: Vec<u8>,
    },
    /// Seal our media under this key from the next frame on. The first output of every room.
    Seal(SenderKey),
    /// A member seals its media under this key.
    Open {
        /// Whose.
        peer: PeerId,
        /// The key.
        key: SenderKey,
    },
    /// The member is gone: drop its keys and whatever is kept of its media.
    Forget {
        /// Whose.
        peer: PeerId,
    },
    /// Somebody is here, and this is its name.
    Joined {
        /// Who.
        peer: PeerId,
        /// Cleaned.
        name: String,
    },
    /// A member has another name now.
    Renamed {
        /// Who.
        peer: PeerId,
        /// Cleaned.
        name: String,
    },
    /// A member that had joined is gone.
    Left {
        /// Who.
        peer: PeerId,
        /// How.
        departure: Departure,
    },
    /// Somebody is said to be in the room: try to reach it. The session's handshake proves whether it is.
    Dial {
        /// Who.
        peer: PeerId,
        /// Where, on the word of `by`.
        addresses: Vec<Multiaddr>,
        /// The member who says so.
        by: PeerId,
    },
    /// A member said a line.
    Chat {
        /// Who.
        peer: PeerId,
        /// The sender's number for it.
        id: u64,
        /// Cleaned.
        text: String,
    },
    /// Lines for somebody who is away for long were given up.
    GivenUp {
        /// For whom.
        peer: PeerId,
        /// How many.
        lines: usize,
    },
    /// Words to compare aloud with this member stand, until its session is replaced.
    Words {
        /// With whom.
        peer: PeerId,
        /// The same at its end.
        words: [&'static str; compare::WORDS],
    },
    /// A member does not let us in.
    Refused {
        /// Who.
        peer: PeerId,
        /// Why.
        reason: RoomRefusal,
    },
    /// End the session with this peer, after what is to be sent to it.
    Close {
        /// Whose.
        peer: PeerId,
    },
}

/// The room as this node sees it. After any `handle_*`, `say`, `leave`: [`poll_output`](Self::poll_output) until
/// `None`, and again at [`poll_timeout`](Self::poll_timeout).
pub struct Room {
    me: PeerId,
    name: String,
    addresses: Vec<Multiaddr>,
    members: BTreeMap<PeerId, Member>,
    dialled: BTreeMap<PeerId, (u32, Instant)>,
    keys: Box<dyn KeyDistribution>,
    features: u64,
    outputs: VecDeque<Output>,
    ignored: u64,
    mail: BTreeMap<PeerId, Mail>,
    terms: Terms,
    /// Everybody who was let in, where terms say who else may be.
    admitted: BTreeSet<PeerId>,
}

impl Room {
    /// An empty room with us in it; its first output is our sealing key.
    pub fn new(me: PeerId, name: &str, addresses: Vec<Multiaddr>) -> Self {
        Self::with_keys(me, name, addresses, Box::new(PairwiseKeys::new()))
    }

    /// A room with another way of distributing keys.
    pub fn with_keys(
        me: PeerId,
        name: &str,
        addresses: Vec<Multiaddr>,
        keys: Box<dyn KeyDistribution>,
    ) -> Self {
        Self {
            me,
            name: text::clean_name(name),
            addresses,
            members: BTreeMap::new(),
            dialled: BTreeMap::new(),
            keys,
            features: 0,
            outputs: VecDeque::new(),
            ignored: 0,
            mail: BTreeMap::new(),
            terms: Terms::default(),
            admitted: BTreeSet::new(),
        }
    }

    /// The same room under the terms of an invite.
    pub fn with_terms(mut self, terms: Terms) -> Self {
        self.terms = terms;
        self
    }

    /// Changes where others should dial us, and tells the members.
    pub fn set_addresses(&mut self, addresses: Vec<Multiaddr>) {
        if addresses != self.addresses {
            self.addresses = addresses;
            self.greet_all();
        }
    }

    /// Tells the members whether this node sits behind a NAT, where that changed.
    pub fn set_behind_nat(&mut self, behind: bool) {
        let features = if behind { FEATURE_BEHIND_NAT } else { 0 };
        if features != self.features {
            self.features = features;
            self.greet_all();
        }
    }

    /// Changes our name, and tells the members.
    pub fn rename(&mut self, name: &str) {
        self.name = text::clean_name(name);
        self.greet_all();
    }

    /// A session with `peer` stands, for the first time or anew; `addresses` is where we reached it. True where it is a
    /// member now; false where there is no room for it: it is told so, and nothing of ours may reach it.
    pub fn handle_established(&mut self, now: Instant, peer: PeerId, addresses: Vec<Multiaddr>) -> bool {
        let known = self.members.contains_key(&peer);
        let full = !known && self.members.len().saturating_add(1) >= MAX_MEMBERS;
        if let Some(refusal) = self.refusal(now, peer).or(full.then_some(RoomRefusal::Full)) {
            self.send(peer, &Control::Refused(refusal));
            self.outputs.push_back(Output::Close { peer });
            return false;
        }
        if self.terms != Terms::default() {
            self.admitted.insert(peer);
        }
        let (compare, say) = Compare::begin(self.me, peer, rand::random());
        let member = self.members.entry(peer).or_insert_with(|| {
            let talk = Bucket::new(MAX_TALK, TALK_EVERY, now);
            let key_changes = Bucket::new(MAX_KEY_CHANGES, TALK_EVERY, now);
            let compare = Compare::begin(peer, peer, [0; compare::NONCE]).0;
            Member { peer, name: None, addresses: Vec::new(), features: 0, talk, key_changes, compare }
        });
        member.compare = compare;
        merge(&mut member.addresses, addresses);
        self.send(peer, &self.hello());
        if let Some(say) = say {
            self.send(peer, &Control::Compare(say));
        }
        let mail = self.mail.entry(peer).or_insert_with(|| Mail {
            out: chat::Outbox::new(),
            inbox: chat::Inbox::default(),
            away: None,
        });
        mail.away = None;
        mail.out.handle_session();
        self.keys.handle_joined(now, peer);
        let others = self.members.values().filter(|other| other.peer != peer);
        let listed: Vec<_> =
            others.map(|m| Listed { peer: m.peer, addresses: m.addresses.clone() }).collect();
        if !listed.is_empty() {
            self.send(peer, &Control::Members(listed));
        }
        true
    }

    /// A reliable message from `peer`. Strangers' messages and malformed ones change nothing.
    pub fn handle_message(&mut self, now: Instant, peer: PeerId, message: &[u8]) {
        let Ok(Some(control)) = Control::decode(message) else { return self.ignore() };
        if let Control::Refused(reason) = control {
            self.handle_left(now, peer, Departure::Closed);
            self.outputs.push_back(Output::Refused { peer, reason });
            return;
        }
        let Some(member) = self.members.get_mut(&peer) else { return self.ignore() };
        match control {
            Control::Hello(hello) if member.talk.take(now) => self.handle_hello(peer, hello),
            Control::Chat { id, text, place } => self.handle_chat(now, peer, id, &text, place),
            Control::ChatAck { run, number } => {
                if let Some(mail) = self.mail.get_mut(&peer) {
                    mail.out.handle_ack(now, run, number);
                }
            }
            Control::Compare(said) => {
                let answer = member.compare.handle(said);
                let words = member.compare.words();
                if let Some(say) = answer {
                    self.send(peer, &Control::Compare(say));
                }
                match words {
                    Some(words) => self.outputs.push_back(Output::Words { peer, words }),
                    None if answer.is_none() => self.ignore(),
                    None => {}
                }
            }
            Control::Key(key) if member.key_changes.take(now) => {
                self.send(peer, &Control::KeyAck { kid: key.kid() });
                self.outputs.push_back(Output::Open { peer, key });
            }
            Control::KeyAck { kid } => self.keys.handle_ack(now, peer, kid),
            Control::Members(listed) => self.handle_members(now, peer, listed),
            Control::Leave => {
                self.handle_left(now, peer, Departure::Left);
                self.outputs.push_back(Output::Close { peer });
            }
            Control::Hello(_) | Control::Key(_) | Control::Refused(_) => self.ignore(),
        }
    }

    /// The session with `peer` is gone.
    pub fn handle_left(&mut self, now: Instant, peer: PeerId, departure: Departure) {
        let Some(member) = self.members.remove(&peer) else { return };
        self.keys.handle_left(now, peer);
        match self.mail.get_mut(&peer) {
            Some(mail) if departure == Departure::Lost => mail.away = Some(now),
            _ => drop(self.mail.remove(&peer)),
        }
        self.outputs.push_back(Output::Forget { peer });
        if member.name.is_some() {
            self.outputs.push_back(Output::Left { peer, departure });
        }
    }

    /// Says a line to everybody who is here, or was lost without a goodbye and comes back in time, and gives its number.
    ///
    /// # Errors
    /// [`ChatError`]; nothing was sent.
    pub fn say(&mut self, now: Instant, text: &str) -> Result<u64, ChatError> {
        if text.len() > MAX_CHAT_BYTES {
            return Err(ChatError::TooLong { length: text.len() });
        }
        self.give_up_the_lost(now);
        let id = rand::random_range(0..=MAX_CHAT_ID);
        for (peer, mail) in &mut self.mail {
            let lines = mail.out.push(Line { id, text: text.to_owned() });
            if lines > 0 {
                self.outputs.push_back(Output::GivenUp { peer: *peer, lines });
            }
        }
        Ok(id)
    }

    /// Tells everybody that we go. The sessions are the caller's to close, after what is to be sent.
    pub fn leave(&mut self) {
        self.send_all(&Control::Leave);
    }

    /// What to do next.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        while let Some(output) = self.keys.poll_output(now) {
            match output {
                KeyOutput::Seal(key) => self.outputs.push_back(Output::Seal(key)),
                KeyOutput::Send { to, key } => self.send(to, &Control::Key(key)),
            }
        }
        for (peer, mail) in self.mail.iter_mut().filter(|(_, mail)| mail.away.is_none()) {
            while let Some((place, Line { id, text })) = mail.out.poll(now) {
                let message = Control::Chat { id, text, place }.encode();
                self.outputs.push_back(Output::Send { to: *peer, message });
            }
        }
        self.outputs.pop_front()
    }

    /// When to poll if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let lines =
            self.mail.values().filter(|mail| mail.away.is_none()).filter_map(|mail| mail.out.poll_timeout());
        lines.chain(self.keys.poll_timeout()).min()
    }

    /// Words to compare aloud with this member, once both sides have drawn them.
    pub fn words(&self, peer: &PeerId) -> Option<[&'static str; compare::WORDS]> {
        self.members.get(peer)?.compare.words()
    }

    /// The others, by PeerId.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Our own name, cleaned.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Messages that were malformed, too many, of an unknown kind or from strangers.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Why the invite's terms keep somebody out.
    fn refusal(&self, now: Instant, peer: PeerId) -> Option<RoomRefusal> {
        if self.admitted.contains(&peer) {
            return None;
        }
        if self.terms.closes.is_some_and(|at| at <= now) {
            return Some(RoomRefusal::Closed);
        }
        let host = self.terms.host?;
        // The host takes the first who comes, and that one takes nobody but the host.
        let welcome = if host == self.me { self.admitted.is_empty() } else { host == peer };
        (!welcome).then_some(RoomRefusal::Used)
    }

    fn handle_chat(&mut self, now: Instant, peer: PeerId, id: u64, text: &str, place: Place) {
        let (Some(member), Some(mail)) = (self.members.get_mut(&peer), self.mail.get_mut(&peer)) else {
            return self.ignore();
        };
        match mail.inbox.look(place) {
            Arrival::New if member.talk.take(now) => {
                mail.inbox.take(place);
                let text = text::clean_line(text);
                self.outputs.push_back(Output::Chat { peer, id: id & MAX_CHAT_ID, text });
            }
            Arrival::Known => {}
            Arrival::New | Arrival::Early => return self.ignore(),
        }
        if let Some(Place { run, number, .. }) = mail.inbox.place() {
            self.send(peer, &Control::ChatAck { run, number });
        }
    }

    /// Forgets lines for those who are away for too long, or too many.
    fn give_up_the_lost(&mut self, now: Instant) {
        let is_late = |since: Instant| now.saturating_duration_since(since) >= WAIT_FOR_THE_LOST;
        self.mail.retain(|_, mail| !mail.away.is_some_and(is_late));
        let mut away: Vec<_> =
            self.mail.iter().filter_map(|(peer, mail)| Some((mail.away?, *peer))).collect();
        away.sort();
        let surplus = away.len().saturating_sub(MAX_AWAY);
        for (_, peer) in away.into_iter().take(surplus) {
            self.mail.remove(&peer);
        }
    }

    fn handle_hello(&mut self, peer: PeerId, hello: Hello) {
        let name = text::clean_name(&hello.name);
        let Some(member) = self.members.get_mut(&peer) else { return };
        member.features = hello.features;
        let had = member.addresses.len();
        merge(&mut member.addresses, hello.addresses);
        let news = member.name.is_none() || member.addresses.len() != had;
        let before = member.name.replace(name.clone());
        let listed = Listed { peer, addresses: member.addresses.clone() };
        match before {
            None => self.outputs.push_back(Output::Joined { peer, name }),
            Some(before) if before != name => self.outputs.push_back(Output::Renamed { peer, name }),
            Some(_) => {}
        }
        if news {
            let message = Control::Members(vec![listed]).encode();
            let others = self.members.keys().filter(|other| **other != peer);
            self.outputs.extend(others.map(|to| Output::Send { to: *to, message: message.clone() }));
        }
    }

    fn handle_members(&mut self, now: Instant, by: PeerId, listed: Vec<Listed>) {
        self.dialled.retain(|_, (_, since)| now.saturating_duration_since(*since) < DIAL_PERIOD);
        for Listed { peer, addresses } in listed {
            if peer == self.me || self.members.contains_key(&peer) {
                continue;
            }
            if self.dialled.len() >= MAX_DIALLED && !self.dialled.contains_key(&peer) {
                return self.ignore();
            }
            let (times, _) = self.dialled.entry(peer).or_insert((0, now));
            if *times < MAX_DIALS {
                *times = times.saturating_add(1);
                self.outputs.push_back(Output::Dial { peer, addresses, by });
            }
        }
    }

    fn hello(&self) -> Control {
        let addresses = self.addresses.iter().take(MAX_ADDRESSES).cloned().collect();
        Control::Hello(Hello {
            version: CONTROL_VERSION,
            features: self.features,
            name: self.name.clone(),
            addresses,
        })
    }

    fn greet_all(&mut self) {
        self.send_all(&self.hello());
    }

    fn send_all(&mut self, control: &Control) {
        let message = control.encode();
        self.outputs.extend(self.members.keys().map(|to| Output::Send { to: *to, message: message.clone() }));
    }

    fn send(&mut self, to: PeerId, control: &Control) {
        self.outputs.push_back(Output::Send { to, message: control.encode() });
    }

    fn ignore(&mut self) {
        self.ignored = self.ignored.saturating_add(1);
    }
}

/// Adds what is new, up to [`MAX_ADDRESSES`]; the first known stay.
fn merge(known: &mut Vec<Multiaddr>, more: Vec<Multiaddr>) {
    for address in more {
        if known.len() < MAX_ADDRESSES && !known.contains(&address) {
            known.push(address);
        }
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
