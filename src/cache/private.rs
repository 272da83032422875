//! Checks that a cache belongs to its user alone, and opens its files.
//!
//! The daemon trusts the contents of the cache: which file of the mount has which bytes, and what
//! may be removed. Another user with write access could plant a symbolic link in place of a file,
//! so that a daemon of root writes elsewhere, or an index with contents of his choice. So all of
//! this is checked before the first file of a cache is opened. Once the directory belongs to the
//! user and no other user may write to it, no other user can change what has been checked.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::Uid;
use serde::de::DeserializeOwned;

use crate::core::{ForeignText, quoted};
use crate::sys::mounts::facts_of;
use crate::sys::way;
use crate::sys::way::{Exposed, Way};

/// Permission bits that let others write.
const OTHERS_WRITE: u32 = 0o022;

/// Permission bits that let others reach the entries of a directory.
const OTHERS_REACH: u32 = 0o011;

/// Only owners may remove or rename entries of the directory.
const STICKY: u32 = 0o1000;

/// Directories of a cache in which others could also plant something.
const INNER: [&str; 5] = ["batches", "blocks", "changes", "objects", "lost+found"];

/// The reason why a cache is not used.
#[derive(Debug, thiserror::Error)]
pub enum PrivacyError {
    /// Its directory belongs to another user.
    #[error("the cache {} belongs to user {owner}, not to user {}", dir.escaped(), Uid::effective())]
    OthersCache {
        /// The cache.
        dir: PathBuf,
        /// The owner.
        owner: u32,
    },
    /// An entry in it belongs to another user.
    #[error("{} in the cache belongs to user {owner}", path.escaped())]
    OthersFile {
        /// The entry.
        path: PathBuf,
        /// The owner.
        owner: u32,
    },
    /// Others may change it.
    #[error("the cache is not private: others may write to {}", .0.escaped())]
    Writable(PathBuf),
    /// A symbolic link, or a directory in place of a file.
    #[error("{} is in the cache, but is no plain file or directory of ferryfs", .0.escaped())]
    Planted(PathBuf),
    /// For root: another user can redirect its path.
    #[error("{0}")]
    Exposed(#[from] Exposed),
    /// It cannot be inspected.
    #[error("cannot look at the cache: {}: {source}", path.escaped())]
    Io {
        /// The path that could not be inspected.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PrivacyError {
    /// Returns what the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            PrivacyError::OthersCache { .. } => {
                "nothing was opened. Run it as the user whose cache it is, or choose another directory with --cache DIR".into()
            }
            PrivacyError::OthersFile { path, .. } | PrivacyError::Planted(path) => format!(
                "nothing was opened: another user may have put it there. Find out who, then move it away: {}",
                path.escaped()
            ),
            PrivacyError::Writable(path) => format!(
                "nothing was opened: another user may have changed its contents. Choose a directory of your own; or, if no other user \
                 uses this machine, remove that permission: chmod go-w {}",
                quoted(path)
            ),
            PrivacyError::Exposed(_) => {
                "nothing was opened. As root, choose a place that only root can change with --cache DIR; or run it as the user whose directory it is".into()
            }
            PrivacyError::Io { .. } => "check the path, and who may use it".into(),
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> PrivacyError {
    let path = path.to_path_buf();
    move |source| PrivacyError::Io { path, source }
}

/// Checks that the cache in `dir` and its entries belong to this user, and that no other user may
/// change them. A missing cache passes.
///
/// # Errors
/// The first problem found, beginning with the directory itself.
pub fn check(dir: &Path) -> Result<(), PrivacyError> {
    check_link(dir)?;
    let way = match way::walk(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return check_way(dir),
        way => way.map_err(failed(dir))?,
    };
    let facts = facts_of(&way.dir).map_err(failed(dir))?;
    if facts.uid != Uid::effective().as_raw() {
        return Err(PrivacyError::OthersCache {
            dir: dir.to_path_buf(),
            owner: facts.uid,
        });
    }
    safe(way)?;
    if facts.mode & OTHERS_WRITE != 0 {
        return Err(PrivacyError::Writable(dir.to_path_buf()));
    }
    let reachable = facts.mode & OTHERS_REACH != 0;
    check_entries(dir, reachable, |name| INNER.contains(&name))?;
    // These contain the directories of objects, and the backups of a batch.
    check_entries(&dir.join("batches"), reachable, |_| true)?;
    check_entries(&dir.join("objects"), reachable, |_| true)
}

/// Refuses a symbolic link of another user in place of the cache. In a directory like /tmp he could
/// lead it to a directory of this user.
fn check_link(dir: &Path) -> Result<(), PrivacyError> {
    match fs::symlink_metadata(dir) {
        Ok(meta) if meta.is_symlink() && !is_trusted(meta.uid()) => {
            Err(PrivacyError::Planted(dir.to_path_buf()))
        }
        // The later checks report any other problem.
        _ => Ok(()),
    }
}

/// Returns whether the user is this one or root, who has no need to plant anything.
fn is_trusted(uid: u32) -> bool {
    uid == Uid::effective().as_raw() || uid == 0
}

/// Checks, for root, that no other user can redirect the existing part of the path of `dir`.
///
/// # Errors
/// [`PrivacyError::Exposed`] if one can.
pub fn check_way(dir: &Path) -> Result<(), PrivacyError> {
    existing(dir).map(drop)
}

fn safe(way: Way) -> Result<OwnedFd, PrivacyError> {
    match way.danger() {
        Some(exposed) => Err(exposed.clone().into()),
        None => Ok(way.dir),
    }
}

/// Returns the last existing directory on the way to `dir`, and the names that are missing after
/// it.
fn existing(dir: &Path) -> Result<(OwnedFd, Vec<OsString>), PrivacyError> {
    let mut missing = Vec::new();
    let mut at = std::path::absolute(dir).map_err(failed(dir))?;
    loop {
        match way::walk(&at) {
            Ok(way) => {
                let place = way.place.clone();
                let held = safe(way)?;
                if !missing.is_empty() {
                    check_parent(&held, &place)?;
                }
                return Ok((held, missing));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&at)(error)),
        }
        let (Some(name), Some(parent)) = (at.file_name(), at.parent()) else {
            return Err(failed(dir)(io::ErrorKind::NotFound.into()));
        };
        missing.insert(0, name.to_owned());
        at = parent.to_path_buf();
    }
}

/// Checks, for root, that a new directory may be created here: only root may change the parent, or
/// the sticky bit keeps users from removing what they do not own.
fn check_parent(held: &OwnedFd, place: &Path) -> Result<(), PrivacyError> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let facts = facts_of(held).map_err(failed(place))?;
    let is_shared = facts.mode & OTHERS_WRITE != 0 && facts.mode & STICKY == 0;
    match facts.uid {
        0 if !is_shared => Ok(()),
        0 => Err(PrivacyError::Writable(place.to_path_buf())),
        owner => Err(PrivacyError::OthersCache {
            dir: place.to_path_buf(),
            owner,
        }),
    }
}

/// Creates the directory `dir` and its missing parents, for the owner only. For root it creates
/// nothing where another user can redirect the path.
///
/// # Errors
/// If it cannot be created, or another user created one of them meanwhile.
pub fn make_dir(dir: &Path) -> Result<(), PrivacyError> {
    let (mut held, missing) = existing(dir)?;
    for name in &missing {
        match mkdirat(&held, name.as_os_str(), Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed(dir)(errno.into())),
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(&held, name.as_os_str(), flags, Mode::empty());
        held = made.map_err(|errno| failed(dir)(errno.into()))?;
        let owner = facts_of(&held).map_err(failed(dir))?.uid;
        if !is_trusted(owner) {
            return Err(PrivacyError::OthersCache {
                dir: dir.to_path_buf(),
                owner,
            });
        }
    }
    Ok(())
}

/// Checks the entries of `dir`; `reachable` says whether others can reach them. Entries accepted by
/// `may_be_dir` may be directories.
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
    if !is_trusted(owner) {
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

/// Returns whether this is the name of one of our files. Directories with other names do no harm.
fn is_name_of_ours(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let of_index = name.starts_with("index.db");
    let others = [
        "lock",
        "cache.json",
        "mountpoint.json",
        "ferryfs.log",
        "history.jsonl",
    ];
    of_index || others.contains(&&*name)
}

/// Returns the options to open a file of the cache. They follow no symbolic link and do not block
/// on a pipe in its place.
pub fn own() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .mode(0o600);
    options
}

/// Creates the file `path` for its owner only. Removes a file left under that name.
///
/// # Errors
/// If it cannot be created.
pub fn make_new(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    own().write(true).create_new(true).open(path)
}

/// Reads the JSON file `path`. One that is missing is as a new one; so is one that cannot be read
/// or decoded, after a warning that says what follows from that.
pub fn read_or_new<T: Default + DeserializeOwned>(path: &Path, what_follows: &str) -> T {
    let name = path.file_name().unwrap_or_default().escaped();
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return T::default(),
        Err(error) => {
            tracing::warn!(%error, "cannot read {name}: {what_follows}");
            return T::default();
        }
    };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot decode {name}: {what_follows}");
        T::default()
    })
}

/// Replaces the file `path` as a whole by one with these bytes. A crash leaves the old or the new
/// one, and perhaps a temporary file, which the next call replaces.
///
/// # Errors
/// What the system said; the old file is still there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = make_new(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// Reads a whole file of the cache.
///
/// # Errors
/// If it is missing, is a symbolic link or no regular file, or cannot be read.
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
        // A umask of 002: others cannot write to what they cannot reach.
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

    const OTHER_USER: u32 = 12_345;

    fn is_root() -> bool {
        Uid::effective().is_root()
    }

    #[test]
    fn root_uses_no_cache_whose_path_another_user_can_change() {
        if !is_root() {
            return;
        }
        let top = tempfile::tempdir().unwrap();
        let theirs = top.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        for inner in ["a", "a/cache"] {
            fs::create_dir(theirs.join(inner)).unwrap();
        }
        symlink(theirs.join("a/cache"), theirs.join("link")).unwrap();
        for path in ["a/cache", "link"] {
            check(&theirs.join(path)).unwrap();
        }
        chown(&theirs, Some(OTHER_USER), None).unwrap();
        for path in ["a/cache", "link", "a/new/cache", "new"] {
            let path = theirs.join(path);
            let refused = check(&path).unwrap_err();
            assert!(
                matches!(
                    refused,
                    PrivacyError::Exposed(_) | PrivacyError::OthersCache { .. }
                ),
                "{refused}"
            );
            make_dir(&path).unwrap_err();
        }
        assert!(!theirs.join("a/new").exists() && !theirs.join("new").exists());
    }

    #[test]
    fn root_makes_no_directory_where_a_planted_link_leads() {
        if !is_root() {
            return;
        }
        let top = tempfile::tempdir().unwrap();
        let (shared, victim) = (top.path().join("shared"), top.path().join("victim"));
        for dir in [&shared, &victim] {
            fs::create_dir(dir).unwrap();
        }
        set_mode(&shared, 0o1777);
        for (name, target) in [("link", "."), ("dangling", "new")] {
            let link = shared.join(name);
            symlink(victim.join(target), &link).unwrap();
            std::os::unix::fs::lchown(&link, Some(OTHER_USER), None).unwrap();
            make_dir(&link.join("cache")).unwrap_err();
            make_dir(&link).unwrap_err();
            check(&link).unwrap_err();
        }
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
        make_dir(&shared.join("mine/cache")).unwrap();
        check(&shared.join("mine/cache")).unwrap();
        let mode = fs::metadata(shared.join("mine")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        // Without the sticky bit others may replace root's directories there.
        set_mode(&shared, 0o777);
        make_dir(&shared.join("other/cache")).unwrap_err();
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
