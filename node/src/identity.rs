//! Who this node is: an ed25519 key in the file `identity` of the data directory.
//!
//! Made once, never replaced silently: a lost identity looks like a stranger to everyone who compared safety words.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use libp2p_identity::{KeyType, Keypair};
use zeroize::Zeroizing;

/// Name of the key's file in the data directory.
pub const IDENTITY_FILE: &str = "identity";
/// Largest identity file read; a real one has 68 bytes.
pub const MAX_IDENTITY_BYTES: u64 = 1024;

/// Why there is no identity to work with. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file holds no ed25519 key, or one that contradicts itself.
    #[error(
        "the identity in {} is damaged; restore it from a backup, or move it away to start as somebody new",
        path.display()
    )]
    Corrupt {
        /// The damaged file, left as it is.
        path: PathBuf,
    },
    /// Others on this machine could read the key, or exchange it.
    #[error(
        "{} can be used by others on this machine (mode {mode:03o}); close it with: chmod {wanted:03o} '{}'",
        path.display(), path.display()
    )]
    TooOpen {
        /// The file or directory with too many permissions.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The permission bits it should have.
        wanted: u32,
    },
    /// Neither a plain file nor absent.
    #[error("{} is not a plain file; move it away, hallway keeps its key there", path.display())]
    NotAFile {
        /// What stands in the way.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}; name a directory that works with --data-dir", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The identity of `data_dir`, made on first use. The directory gets mode 0700 when made here, the file 0600.
///
/// # Errors
/// [`IdentityError`], naming the file and what to do. An existing file is never written.
pub fn load_or_create(data_dir: &Path) -> Result<Keypair, IdentityError> {
    make_dir(data_dir)?;
    let path = data_dir.join(IDENTITY_FILE);
    match load(&path)? {
        Some(key) => Ok(key),
        None => {
            create(data_dir, &path)?;
            // Read back what stands on disk: another process may have been first, and one identity must win.
            load(&path)?.ok_or(IdentityError::Corrupt { path })
        }
    }
}

fn load(path: &Path) -> Result<Option<Keypair>, IdentityError> {
    let failed = |action| move |source| IdentityError::Io { action, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("look at")(error)),
        Ok(meta) if !meta.is_file() => return Err(IdentityError::NotAFile { path: path.to_owned() }),
        Ok(_) => {}
    }
    let file = File::open(path).map_err(failed("read"))?;
    check_mode(path, &file.metadata().map_err(failed("look at"))?, 0o077, 0o600)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(128));
    file.take(MAX_IDENTITY_BYTES).read_to_end(&mut bytes).map_err(failed("read"))?;
    match Keypair::from_protobuf_encoding(&bytes) {
        Ok(key) if key.key_type() == KeyType::Ed25519 => Ok(Some(key)),
        _ => Err(IdentityError::Corrupt { path: path.to_owned() }),
    }
}

/// Writes a new key beside `path`, to the disk, then links it into place: `path` is whole or absent, never replaced.
fn create(dir: &Path, path: &Path) -> Result<(), IdentityError> {
    let draft = dir.join(format!(".{IDENTITY_FILE}.{:016x}", rand::random::<u64>()));
    let failed = |action| {
        let path = draft.clone();
        move |source| IdentityError::Io { action, path, source }
    };
    let corrupt = |_| IdentityError::Corrupt { path: path.to_owned() };
    let bytes = Zeroizing::new(Keypair::generate_ed25519().to_protobuf_encoding().map_err(corrupt)?);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&draft).map_err(failed("create"))?;
    let written = file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed("write"));
    let placed = written.and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // File systems without links (FAT): a rename, after one more look.
        Err(_) if !path.exists() => fs::rename(&draft, path).map_err(failed("move")),
        Err(error) => Err(failed("link")(error)),
        Ok(()) => Ok(()),
    });
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(error)),
        _ => placed?,
    }
    let io = |source| IdentityError::Io { action: "write", path: dir.to_owned(), source };
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

fn make_dir(dir: &Path) -> Result<(), IdentityError> {
    let failed = |action| move |source| IdentityError::Io { action, path: dir.to_owned(), source };
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(failed("create"))?;
    // Who may write here may exchange the key; who may only list it cannot read the file.
    check_mode(dir, &fs::metadata(dir).map_err(failed("look at"))?, 0o022, 0o700)
}

#[cfg(unix)]
fn check_mode(path: &Path, meta: &fs::Metadata, forbidden: u32, wanted: u32) -> Result<(), IdentityError> {
    let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777;
    if mode & forbidden == 0 {
        Ok(())
    } else {
        Err(IdentityError::TooOpen { path: path.to_owned(), mode, wanted })
    }
}

#[cfg(not(unix))]
fn check_mode(_: &Path, _: &fs::Metadata, _: u32, _: u32) -> Result<(), IdentityError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn dir() -> (tempfile::TempDir, PathBuf) {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("deep/data");
        (outer, inner)
    }

    #[test]
    fn an_identity_is_made_once_and_found_again() {
        let (_outer, dir) = dir();
        let first = load_or_create(&dir).unwrap();
        let second = load_or_create(&dir).unwrap();
        assert_eq!(first.public(), second.public());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join(IDENTITY_FILE)), 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no draft is left behind");
    }

    #[test]
    fn a_damaged_identity_is_named_and_never_replaced() {
        let (_outer, dir) = dir();
        load_or_create(&dir).unwrap();
        let path = dir.join(IDENTITY_FILE);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[10] ^= 1;
        for damaged in [Vec::new(), whole[..30].to_vec(), flipped, vec![0xff; 5000]] {
            fs::write(&path, &damaged).unwrap();
            let error = load_or_create(&dir).unwrap_err();
            assert!(matches!(error, IdentityError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()));
            assert_eq!(fs::read(&path).unwrap(), damaged, "the file is untouched");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_command_that_closes_it() {
        let (_outer, dir) = dir();
        load_or_create(&dir).unwrap();
        let path = dir.join(IDENTITY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let said = load_or_create(&dir).unwrap_err().to_string();
        assert!(said.contains("chmod 600") && said.contains("identity"), "{said}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        let said = load_or_create(&dir).unwrap_err().to_string();
        assert!(said.contains("chmod 700"), "{said}");
    }

    #[test]
    fn a_link_or_directory_in_the_place_of_the_key_is_refused() {
        let (outer, dir) = dir();
        make_dir(&dir).unwrap();
        let path = dir.join(IDENTITY_FILE);
        std::os::unix::fs::symlink(outer.path().join("elsewhere"), &path).unwrap();
        assert!(matches!(load_or_create(&dir), Err(IdentityError::NotAFile { .. })));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(load_or_create(&dir), Err(IdentityError::NotAFile { .. })));
    }

    #[test]
    fn two_processes_starting_together_agree_on_one_identity() {
        let (_outer, dir) = dir();
        let start = std::sync::Barrier::new(8);
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        load_or_create(&dir).unwrap().public()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
