//! Who is who: the people met, by name and key, in the file `people.json` of the data directory.
//!
//! Trust on first use, by name: whoever is met first under a name keeps it here. Another key under a known name is told
//! loudly and not remembered, until a person says that it is right ([`Trust::verify`]), best after comparing words aloud.
//!
//! The file is replaced as a whole or not at all. One that cannot be read is never written: it may hold what somebody
//! has verified, and an empty one would make everybody new.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use libp2p::PeerId;
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization as _;

use crate::text;

/// Name of the file in the data directory.
pub const TRUST_FILE: &str = "people.json";
/// People remembered. Beyond, whoever was met the longest ago and is not verified is forgotten.
pub const MAX_KNOWN: usize = 2_000;
/// Largest file read.
pub const MAX_TRUST_BYTES: u64 = 4 << 20;
const VERSION: u32 = 1;

/// What we know of somebody who has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Met for the first time.
    New,
    /// Met before under this key.
    Known,
    /// The person said that this key is right.
    Verified,
    /// Somebody else is known under this name.
    OtherKey,
}

impl Standing {
    /// For people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::New => "new to you",
            Self::Known => "met before",
            Self::Verified => "verified by you",
            Self::OtherKey => "ANOTHER KEY than the one known under this name",
        }
    }
}

/// Somebody whose name is used by another key now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The key that is known.
    pub peer: PeerId,
    /// Whether a person has said that it is right.
    pub verified: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    name: String,
    /// Unix seconds.
    first_met: u64,
    last_met: u64,
    verified: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Book {
    version: u32,
    people: BTreeMap<String, Known>,
}

/// Why nothing was remembered.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file is damaged, or of a later version; it is left as it is.
    #[error("{} cannot be read ({reason}); restore it from a backup, or move it away to start afresh", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused.
    #[error("{} cannot be written: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

/// The people met.
#[derive(Debug, Default)]
pub struct Trust {
    people: BTreeMap<String, Known>,
    /// `None`: remembered for this run only.
    path: Option<PathBuf>,
    /// What is wrong with the file.
    unreadable: Option<String>,
}

impl Trust {
    /// What is remembered in this data directory. [`Trust::trouble`] says what is wrong with it, if anything.
    pub fn load(data_dir: &Path) -> Self {
        let path = data_dir.join(TRUST_FILE);
        match read(&path) {
            Ok(people) => Self { people, path: Some(path), unreadable: None },
            Err(reason) => Self { people: BTreeMap::new(), path: Some(path), unreadable: Some(reason) },
        }
    }

    /// Why everybody is new in this run, where that is so because the file cannot be read.
    pub fn trouble(&self) -> Option<TrustError> {
        let reason = self.unreadable.clone()?;
        Some(TrustError::Unreadable { path: self.path.clone()?, reason })
    }

    /// Somebody has come and goes by this name. Remembers who is new, and who was here now.
    ///
    /// # Errors
    /// [`TrustError::Io`]: the standing is right all the same.
    pub fn meet(&mut self, peer: &PeerId, name: &str) -> (Standing, Option<Owner>, Result<(), TrustError>) {
        let (id, now) = (peer.to_string(), unix_seconds());
        let owner = self.owner(peer, name);
        let verified = self.people.get(&id).is_some_and(|known| known.verified.is_some());
        if let Some(owner) = owner.filter(|_| !verified) {
            return (Standing::OtherKey, Some(owner), Ok(()));
        }
        let standing = match self.people.get_mut(&id) {
            Some(known) => {
                (known.last_met, known.name) = (now, text::clean_name(name));
                if verified { Standing::Verified } else { Standing::Known }
            }
            None => {
                self.make_room();
                let known =
                    Known { name: text::clean_name(name), first_met: now, last_met: now, verified: None };
                self.people.insert(id, known);
                Standing::New
            }
        };
        (standing, None, self.save())
    }

    /// A person says that this key is right for this name, or takes it back.
    ///
    /// # Errors
    /// [`TrustError`]; nothing was changed on disk.
    pub fn verify(&mut self, peer: &PeerId, name: &str, on: bool) -> Result<(), TrustError> {
        if let Some(trouble) = self.trouble() {
            return Err(trouble);
        }
        let now = unix_seconds();
        let before = self.people.clone();
        if !self.people.contains_key(&peer.to_string()) {
            self.make_room();
        }
        let known = self.people.entry(peer.to_string()).or_insert_with(|| Known {
            name: text::clean_name(name),
            first_met: now,
            last_met: now,
            verified: None,
        });
        known.verified = on.then_some(now);
        self.save().inspect_err(|_| self.people = before)
    }

    /// How somebody who is here stands, without remembering anything.
    pub fn standing(&self, peer: &PeerId, name: &str) -> Standing {
        match self.people.get(&peer.to_string()) {
            Some(known) if known.verified.is_some() => Standing::Verified,
            _ if self.owner(peer, name).is_some() => Standing::OtherKey,
            Some(_) => Standing::Known,
            None => Standing::New,
        }
    }

    /// Somebody else who is known under this name; a verified one outweighs others.
    fn owner(&self, peer: &PeerId, name: &str) -> Option<Owner> {
        let (id, folded) = (peer.to_string(), folded(name));
        // Who never said a name has none to be mistaken for.
        if folded == folded_nameless() {
            return None;
        }
        let others =
            self.people.iter().filter(|(other, known)| **other != id && self::folded(&known.name) == folded);
        let (other, known) = others.max_by_key(|(_, known)| known.verified.is_some())?;
        Some(Owner { peer: other.parse().ok()?, verified: known.verified.is_some() })
    }

    fn make_room(&mut self) {
        while self.people.len() >= MAX_KNOWN {
            // The verified last of all: what a person has done is the most worth keeping.
            let oldest =
                self.people.iter().min_by_key(|(_, known)| (known.verified.is_some(), known.last_met));
            let Some(id) = oldest.map(|(id, _)| id.clone()) else { return };
            self.people.remove(&id);
        }
    }

    fn save(&self) -> Result<(), TrustError> {
        let (Some(path), None) = (&self.path, &self.unreadable) else { return Ok(()) };
        write(path, &self.people).map_err(|source| TrustError::Io { path: path.clone(), source })
    }
}

/// Names that people would take for one another in speech: no case, no compatibility forms, no blanks.
fn folded(name: &str) -> String {
    name.nfkc().flat_map(char::to_lowercase).nfkc().filter(|c| !c.is_whitespace()).collect()
}

fn folded_nameless() -> String {
    folded(text::NAMELESS)
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn read(path: &Path) -> Result<BTreeMap<String, Known>, String> {
    let bytes = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.to_string()),
        Ok(facts) if !facts.is_file() => return Err("it is no plain file".into()),
        Ok(facts) if facts.len() > MAX_TRUST_BYTES => return Err("it is too long".into()),
        Ok(_) => std::fs::read(path).map_err(|error| error.to_string())?,
    };
    let book: Book = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if book.version != VERSION {
        return Err(format!("it is of version {}, this program knows {VERSION}", book.version));
    }
    if let Some(id) = book.people.keys().find(|id| id.parse::<PeerId>().is_err()) {
        return Err(format!("{} is no PeerId", text::clean_name(id)));
    }
    Ok(book.people)
}

/// Beside, flushed, then over the old one: a crash leaves one or the other, whole. Temporary files have mode 0600.
fn write(path: &Path, people: &BTreeMap<String, Known>) -> std::io::Result<()> {
    let book = Book { version: VERSION, people: people.clone() };
    let text = serde_json::to_vec_pretty(&book).map_err(std::io::Error::other)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut beside = tempfile::Builder::new().prefix(".people.").tempfile_in(folder)?;
    beside.write_all(&text)?;
    beside.as_file().sync_all()?;
    beside.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_met_first_keeps_the_name_and_another_key_is_told_until_somebody_vouches_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let (ben, stranger) = (PeerId::random(), PeerId::random());
        assert_eq!(Trust::load(dir.path()).meet(&ben, "Ben").0, Standing::New);
        assert_eq!(Trust::load(dir.path()).meet(&ben, "Ben").0, Standing::Known);
        for alike in ["Ben", "ben", " BEN ", "Ｂｅｎ"] {
            let (standing, owner, _) = Trust::load(dir.path()).meet(&stranger, alike);
            assert_eq!(
                (standing, owner),
                (Standing::OtherKey, Some(Owner { peer: ben, verified: false })),
                "{alike}"
            );
        }
        let mut trust = Trust::load(dir.path());
        trust.verify(&ben, "Ben", true).unwrap();
        let owner = Trust::load(dir.path()).meet(&stranger, "ben").1.unwrap();
        assert!(owner.verified);
        trust.verify(&stranger, "ben", true).unwrap();
        assert_eq!(Trust::load(dir.path()).meet(&stranger, "ben").0, Standing::Verified);
        trust.verify(&stranger, "ben", false).unwrap();
        assert_eq!(Trust::load(dir.path()).standing(&stranger, "ben"), Standing::OtherKey);
        assert_eq!(Trust::load(dir.path()).standing(&ben, "Ben"), Standing::Verified);
    }

    #[test]
    fn a_friend_who_takes_another_s_name_is_told_and_those_without_names_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (ana, ben) = (PeerId::random(), PeerId::random());
        let mut trust = Trust::load(dir.path());
        assert!(trust.meet(&ana, "ana").2.is_ok() && trust.meet(&ben, "ben").2.is_ok());
        assert_eq!(trust.meet(&ben, "ana").0, Standing::OtherKey);
        assert_eq!(trust.meet(&ben, "benjamin").0, Standing::Known);
        assert_eq!(trust.meet(&PeerId::random(), text::NAMELESS).0, Standing::New);
        assert_eq!(trust.meet(&PeerId::random(), text::NAMELESS).0, Standing::New);
    }

    #[test]
    fn a_damaged_file_is_named_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TRUST_FILE);
        let later = r#"{"version":9,"people":{}}"#;
        let stranger =
            r#"{"version":1,"people":{"ben":{"name":"ben","first_met":1,"last_met":1,"verified":null}}}"#;
        for damaged in ["", "{", "[]", later, stranger] {
            std::fs::write(&path, damaged).unwrap();
            let mut trust = Trust::load(dir.path());
            let trouble = trust.trouble().unwrap().to_string();
            assert!(trouble.contains("people.json") && trouble.contains("backup"), "{trouble}");
            assert_eq!(trust.meet(&PeerId::random(), "ben").0, Standing::New);
            assert!(trust.verify(&PeerId::random(), "ben", true).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn the_file_is_closed_to_others_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut trust = Trust::load(dir.path());
        let friend = PeerId::random();
        trust.verify(&friend, "friend", true).unwrap();
        trust.path = None;
        for n in 0..MAX_KNOWN + 50 {
            trust.meet(&PeerId::random(), &format!("guest {n}")).2.unwrap();
        }
        assert_eq!(trust.people.len(), MAX_KNOWN);
        assert_eq!(trust.standing(&friend, "friend"), Standing::Verified);
        let meta = std::fs::metadata(dir.path().join(TRUST_FILE)).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777, 0o600);
    }
}
