//! Where the `hallway` program is, built if it is not there or older than its sources.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The program under test, of the same build profile as the test itself.
pub fn hallway() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(find_or_build)
}

fn find_or_build() -> PathBuf {
    // TARGET/PROFILE/deps/TEST-HASH: the program stands two steps up.
    let test = std::env::current_exe().expect("the test's own path");
    let profile_dir = test.ancestors().nth(2).expect("a target directory");
    let binary = profile_dir.join(format!("hallway{}", std::env::consts::EXE_SUFFIX));
    if is_fresh(&binary) {
        return binary;
    }
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let target_dir = profile_dir.parent().expect("a target directory");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--workspace", "--bin", "hallway", "--profile", profile, "--target-dir"])
        .arg(target_dir)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .expect("starting cargo");
    assert!(status.success(), "the hallway program could not be built: {status}");
    assert!(binary.exists(), "cargo built no {}", binary.display());
    binary
}

/// Whether the program is there and no source that cargo lists for it is newer.
fn is_fresh(binary: &Path) -> bool {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let (Some(built), Ok(sources)) = (modified(binary), std::fs::read_to_string(binary.with_extension("d")))
    else {
        return false;
    };
    let sources = sources.split_once(": ").map_or("", |(_, sources)| sources).trim();
    // Spaces in paths are written `\ `.
    let unescaped = sources.replace("\\ ", "\0");
    let newest = unescaped.split(' ').filter_map(|path| modified(Path::new(&path.replace('\0', " "))));
    newest.max().unwrap_or(SystemTime::UNIX_EPOCH) <= built
}
