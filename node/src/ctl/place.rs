//! Where control sockets are: one folder per user, or one per data folder.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

/// Longest path of a Unix socket on Linux, its end included.
const MAX_PATH: usize = 107;

/// Where a call's socket is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the folder where `hallway ctl` looks.
    Auto,
    /// Nowhere.
    Off,
    /// Here.
    At(PathBuf),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("write auto, off, or a path".to_owned()),
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path => Ok(Self::At(path.into())),
        }
    }
}

impl Place {
    /// The path of this process's socket; `None` where there is to be none.
    pub fn path(&self, data_dir: Option<&Path>) -> Option<PathBuf> {
        match self {
            Self::Off => None,
            Self::At(path) => Some(path.clone()),
            Self::Auto => Some(folder(data_dir).join(format!("{}.sock", std::process::id()))),
        }
    }
}

/// The folder of sockets: in the data folder that was named, else in the user's runtime folder, else in one of our own
/// under the system's temporary folder.
pub fn folder(data_dir: Option<&Path>) -> PathBuf {
    if let Some(dir) = data_dir {
        let inner = dir.join("run");
        // A socket's path is short by law: where the data folder lies too deep, the user's own folder is used.
        if inner.as_os_str().len() + "/4194304.sock".len() <= MAX_PATH {
            return inner;
        }
    }
    match directories::BaseDirs::new().and_then(|dirs| dirs.runtime_dir().map(Path::to_owned)) {
        Some(dir) => dir.join("hallway"),
        None => std::env::temp_dir().join(format!("hallway-{}", rustix::process::geteuid().as_raw())),
    }
}

/// Makes the folder for us alone; one that is there must be ours alone.
pub(super) fn make(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = std::fs::symlink_metadata(dir)?;
    let ours = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o022 == 0;
    if ours {
        return Ok(());
    }
    let why =
        format!("{} can be written by others; close it with: chmod 700 '{}'", dir.display(), dir.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        make(&inner).unwrap();
        assert_eq!(std::fs::metadata(&inner).unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&inner, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert!(make(&inner).unwrap_err().to_string().contains("chmod 700"));
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert!(make(&dir.path().join("link")).is_err(), "a link may lead anywhere");
    }

    #[test]
    fn a_data_folder_too_deep_for_a_socket_leaves_it_to_the_user_s_folder() {
        let deep = PathBuf::from("/x".repeat(60));
        assert!(!folder(Some(&deep)).starts_with(&deep));
        assert_eq!(folder(Some(Path::new("/d"))), Path::new("/d/run"));
        assert_eq!("off".parse::<Place>().unwrap().path(None), None);
        assert_eq!("/a/b".parse::<Place>().unwrap().path(None), Some("/a/b".into()));
    }
}
