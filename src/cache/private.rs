//! Whether a cache is its user's alone, and how its files are opened.
//!
//! What the cache holds is believed: which file of the mount has which bytes, and what may be removed. Somebody who could write to
//! it could have planted a symbolic link in the place of a file, so that a start as root would write elsewhere, or an index that
//! says what he wants. So all of this is checked before the first file of a cache is opened. Once the
//! directory is the user's and nobody else may write to it, nobody can change what has been checked.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use crate::base::ForeignText;

/// Permission bits that let others write.
const OTHERS_WRITE: u32 = 0o022;

/// Permission bits that let others reach what is in a directory.
const OTHERS_REACH: u32 = 0o011;

/// Directories of a cache in which others could plant something as well.
const INNER: [&str; 3] = ["batches", "objects", "lost+found"];

/// Why a cache is not used.
#[derive(Debug, thiserror::Error)]
pub enum PrivacyError {
    /// Its directory is another user's.
    #[error("the cache {} belongs to user {owner}, not to user {}", dir.escaped(), Uid::effective())]
    OthersCache {
        /// The cache.
        dir: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Something in it is another user's.
    #[error("{} in the cache belongs to user {owner}", path.escaped())]
    OthersFile {
        /// What is in it.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Others may change it.
    #[error("the cache is not private: others may write to {}", .0.escaped())]
    Writable(PathBuf),
    /// A symbolic link, or a directory in the place of a file.
    #[error("{} is in the cache, but is no plain file or directory of ferryfs", .0.escaped())]
    Planted(PathBuf),
    /// It cannot be looked at.
    #[error("cannot look at the cache: {}: {source}", path.escaped())]
    Io {
        /// What could not be looked at.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PrivacyError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            PrivacyError::OthersCache { .. } => {
                "nothing was opened. Run it as the user whose cache it is, or choose another directory with --cache DIR".into()
            }
            PrivacyError::OthersFile { path, .. } | PrivacyError::Planted(path) => format!(
                "nothing was opened: somebody else may have put it there. Find out who, then move it away: {}",
                path.escaped()
            ),
            PrivacyError::Writable(path) => format!(
                "nothing was opened: somebody else may have changed what is in it. Choose a directory of your own; or, if nobody else \
                 uses this machine, take that right away: chmod go-w {}",
                path.escaped()
            ),
            PrivacyError::Io { .. } => "check the path, and who may use it".into(),
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> PrivacyError {
    let path = path.to_path_buf();
    move |source| PrivacyError::Io { path, source }
}

/// Checks that the cache in `dir` and what is in it are this user's, and that nobody else may change them. A cache that is not
/// there passes.
///
/// # Errors
/// What is not as it should be, first of all of the directory itself.
pub fn check(dir: &Path) -> Result<(), PrivacyError> {
    let held = match open_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        held => held.map_err(failed(dir))?,
    };
    let meta = held.metadata().map_err(failed(dir))?;
    if meta.uid() != Uid::effective().as_raw() {
        return Err(PrivacyError::OthersCache {
            dir: dir.to_path_buf(),
            owner: meta.uid(),
        });
    }
    if meta.mode() & OTHERS_WRITE != 0 {
        return Err(PrivacyError::Writable(dir.to_path_buf()));
    }
    let reachable = meta.mode() & OTHERS_REACH != 0;
    check_entries(dir, reachable, |name| INNER.contains(&name))?;
    // Directories of objects, and what a batch keeps, are in these.
    check_entries(&dir.join("batches"), reachable, |_| true)?;
    check_entries(&dir.join("objects"), reachable, |_| true)
}

/// Checks what is in `dir`, which others can reach or not. What `may_be_dir` names may be a directory.
fn check_entries(
    dir: &Path,
    reachable: bool,
    may_be_dir: impl Fn(&str) -> bool,
) -> Result<(), PrivacyError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed(dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(failed(dir))?;
        let path = entry.path();
        let meta = match entry.metadata() {
            // The socket of a daemon that is just ending.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            meta => meta.map_err(failed(&path))?,
        };
        let name = entry.file_name();
        check_entry(path, &meta, reachable, may_be_dir(&name.to_string_lossy()))?;
    }
    Ok(())
}

fn check_entry(
    path: PathBuf,
    meta: &Metadata,
    reachable: bool,
    may_be_dir: bool,
) -> Result<(), PrivacyError> {
    let owner = meta.uid();
    // Root needs no plant.
    if owner != Uid::effective().as_raw() && owner != 0 {
        return Err(PrivacyError::OthersFile { path, owner });
    }
    let kind = meta.file_type();
    if kind.is_symlink() || (kind.is_dir() && !may_be_dir && is_name_of_ours(&path)) {
        return Err(PrivacyError::Planted(path));
    }
    let has_bits = kind.is_file() || kind.is_dir();
    if has_bits && reachable && meta.mode() & OTHERS_WRITE != 0 {
        return Err(PrivacyError::Writable(path));
    }
    Ok(())
}

/// Whether this is the name of a file of ours. Directories of other names are nobody's business.
fn is_name_of_ours(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let of_index = name.starts_with("index.db");
    of_index || ["lock", "cache.json", "mountpoint.json", "ferryfs.log"].contains(&&*name)
}

fn open_dir(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(dir)
}

/// Options for opening a file of ours: no symbolic link in its place is followed, and a pipe there is
/// not waited for.
pub fn own() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .mode(0o600);
    options
}

/// Makes the file `path` for its owner only. What is there under its name, left over from before, is removed.
///
/// # Errors
/// If it cannot be made.
pub fn make_new(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    own().write(true).create_new(true).open(path)
}

/// Reads a whole file of ours.
///
/// # Errors
/// If it is not there, is a symbolic link or no plain file, or cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = own().read(true).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut file, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn cache() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o700);
        for inner in INNER {
            fs::create_dir(dir.path().join(inner)).unwrap();
        }
        for file in ["lock", "index.db", "index.db-wal", "batches/1.journal"] {
            fs::write(dir.path().join(file), b"").unwrap();
        }
        dir
    }

    #[test]
    fn a_cache_of_ones_own_passes_and_so_does_one_that_is_not_there() {
        let dir = cache();
        check(dir.path()).unwrap();
        check(&dir.path().join("not there")).unwrap();
        // A umask of 002: what others cannot reach they cannot write to.
        set_mode(&dir.path().join("index.db"), 0o664);
        check(dir.path()).unwrap();
        set_mode(dir.path(), 0o755);
        check(dir.path()).unwrap_err();
    }

    #[test]
    fn a_cache_that_others_may_write_to_is_refused() {
        for what in ["", "objects", "batches", "index.db", "batches/1.journal"] {
            for mode in [0o777, 0o720, 0o702, 0o1777] {
                let dir = cache();
                set_mode(dir.path(), 0o755);
                set_mode(&dir.path().join(what), mode);
                let refused = check(dir.path()).unwrap_err();
                assert!(
                    matches!(&refused, PrivacyError::Writable(path) if *path == dir.path().join(what)),
                    "{what} {mode:o}: {refused}"
                );
            }
        }
    }

    #[test]
    fn a_symbolic_link_in_the_place_of_anything_is_refused() {
        for name in [
            "lock",
            "ferryfs.log",
            "objects",
            "cache.json.tmp",
            "batches/7.tmp",
        ] {
            let dir = cache();
            let at = dir.path().join(name);
            let _ = fs::remove_dir(&at);
            let _ = fs::remove_file(&at);
            symlink("/nowhere", &at).unwrap();
            let refused = check(dir.path()).unwrap_err();
            assert!(
                matches!(refused, PrivacyError::Planted(_)),
                "{name}: {refused}"
            );
        }
    }

    #[test]
    fn what_another_user_owns_is_refused_also_by_root() {
        if !Uid::effective().is_root() {
            return;
        }
        for name in ["index.db", "index.db-wal", "batches/1.journal", "objects"] {
            let dir = cache();
            chown(dir.path().join(name), Some(12_345), None).unwrap();
            let refused = check(dir.path()).unwrap_err();
            assert!(
                matches!(refused, PrivacyError::OthersFile { owner: 12_345, .. }),
                "{name}: {refused}"
            );
        }
        let dir = cache();
        chown(dir.path(), Some(12_345), None).unwrap();
        let refused = check(dir.path()).unwrap_err();
        assert!(
            matches!(refused, PrivacyError::OthersCache { owner: 12_345, .. }),
            "{refused}"
        );
    }

    #[test]
    fn files_of_ours_are_never_opened_or_made_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, link) = (dir.path().join("victim"), dir.path().join("link"));
        fs::write(&victim, b"precious").unwrap();
        symlink(&victim, &link).unwrap();
        own().append(true).create(true).open(&link).unwrap_err();
        read(&link).unwrap_err();
        make_new(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
}
