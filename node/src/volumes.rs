//! How each person is heard here, remembered between calls in the file `volumes.toml` of the data directory.
//!
//! A preference, not a secret: a file that cannot be read or written costs the memory, never the call.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use libp2p::PeerId;

use crate::controls::{Hearing, VOLUMES_DB};

/// Name of the file in the data directory.
pub const VOLUMES_FILE: &str = "volumes.toml";
/// People remembered. Of more, those of the file's order come first.
pub const MAX_VOLUMES: usize = 1_000;
/// Largest file read.
pub const MAX_VOLUMES_BYTES: u64 = 1 << 20;
/// A change is written after this time, so that a held key writes once.
const SAVE_AFTER: Duration = Duration::from_millis(500);

/// What is remembered. Whoever is not in it is heard as sent.
#[derive(Debug, Default)]
pub struct Volumes {
    people: BTreeMap<String, Hearing>,
    path: Option<PathBuf>,
    changed: Option<Instant>,
}

impl Volumes {
    /// What is remembered in this data directory.
    pub fn load(data_dir: &Path) -> Self {
        let path = data_dir.join(VOLUMES_FILE);
        let people = read(&path).unwrap_or_else(|reason| {
            tracing::warn!(path = %path.display(), reason, "remembered volumes not read; they start afresh");
            BTreeMap::new()
        });
        Self { people, path: Some(path), changed: None }
    }

    /// How this person is heard.
    pub fn of(&self, peer: &PeerId) -> Hearing {
        self.people.get(&peer.to_string()).copied().unwrap_or_default()
    }

    /// Remembers.
    pub fn set(&mut self, now: Instant, peer: PeerId, hearing: Hearing) {
        let peer = peer.to_string();
        if hearing == Hearing::default() {
            self.people.remove(&peer);
        } else if self.people.len() < MAX_VOLUMES || self.people.contains_key(&peer) {
            self.people.insert(peer, hearing);
        }
        self.changed.get_or_insert(now);
    }

    /// Writes changes of a while ago. Call it now and then, and it is called once more when dropped.
    pub fn save_soon(&mut self, now: Instant) {
        if self.changed.is_some_and(|since| now.saturating_duration_since(since) >= SAVE_AFTER) {
            self.save();
        }
    }

    fn save(&mut self) {
        let (Some(path), Some(_)) = (&self.path, self.changed.take()) else { return };
        if let Err(error) = write(path, &self.people) {
            tracing::warn!(path = %path.display(), %error, "volumes are not remembered");
        }
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        self.save();
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, Hearing>, String> {
    let text = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.to_string()),
        Ok(facts) if !facts.is_file() || facts.len() > MAX_VOLUMES_BYTES => {
            return Err("no small plain file".into());
        }
        Ok(_) => std::fs::read_to_string(path).map_err(|error| error.to_string())?,
    };
    let mut people: BTreeMap<String, Hearing> =
        toml::from_str(&text).map_err(|error| error.message().to_owned())?;
    people.retain(|peer, hearing| peer.parse::<PeerId>().is_ok() && VOLUMES_DB.contains(&hearing.volume_db));
    while people.len() > MAX_VOLUMES {
        people.pop_last();
    }
    Ok(people)
}

/// Beside, then over the old one: a crash leaves one or the other.
fn write(path: &Path, people: &BTreeMap<String, Hearing>) -> std::io::Result<()> {
    let text = toml::to_string(people).map_err(std::io::Error::other)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut beside = tempfile::Builder::new().prefix(".volumes.").tempfile_in(folder)?;
    beside.write_all(text.as_bytes())?;
    beside.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_is_there_in_the_next_call() {
        let dir = tempfile::tempdir().unwrap();
        let (ana, ben, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let quiet = Hearing { volume_db: -12, muted: true };
        let mut volumes = Volumes::load(dir.path());
        volumes.set(now, ana, quiet);
        volumes.set(now, ben, Hearing { volume_db: 3, muted: false });
        volumes.save_soon(now);
        assert!(!dir.path().join(VOLUMES_FILE).exists(), "a held key is not written again and again");
        volumes.save_soon(now + SAVE_AFTER);
        assert_eq!(Volumes::load(dir.path()).of(&ana), quiet);
        volumes.set(now, ana, Hearing::default());
        drop(volumes);
        let again = Volumes::load(dir.path());
        assert_eq!((again.of(&ana), again.of(&ben).volume_db), (Hearing::default(), 3));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_damaged_file_costs_the_memory_and_not_the_call() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(VOLUMES_FILE);
        let peer = PeerId::random();
        for text in [
            "what is this".to_owned(),
            format!("[{peer}]\nvolume_db = 99\nmuted = false\n"),
            "[nobody]\nvolume_db = 1\nmuted = true\n".to_owned(),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Volumes::load(dir.path()).of(&peer), Hearing::default());
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(Volumes::load(dir.path()).of(&peer), Hearing::default());
    }
}
