//! The versions on the drive of a mount, as `versions`, `restore` and `undo` see them.
//!
//! They are read from the drive's directory, without the daemon, and restored through the mount:
//! what is restored is a change like any other, and the next flush writes it. The daemon only says
//! where the drive is.
//!
//! Nothing on the drive is trusted: no link is followed on the way to a version, a list that is
//! damaged counts as none, and a restored file gets no rights beyond its permission bits.

pub(super) mod restore;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;

use super::reach;
use crate::control::mounts;
use crate::control::protocol::{Answer, BackendState, Request, Status};
use crate::core::{Exit, Failure, ForeignText, RelPath, Timestamp, path_of_text};
use crate::format::layout;
use crate::format::versions::{Entry, MAX_LIST_BYTES, VersionList, VersionsId, What};
use crate::sys;

/// A version on the drive.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) id: VersionsId,
    pub(super) entry: Entry,
}

/// The versions on the drive of one mount.
pub(super) struct Store {
    /// The mount point.
    pub(super) mountpoint: PathBuf,
    /// The drive's directory.
    pub(super) drive: PathBuf,
    root: OwnedFd,
    /// New versions are kept.
    pub(super) is_on: bool,
}

/// What one batch has kept, and what else it did.
pub(super) struct Kept {
    pub(super) id: VersionsId,
    pub(super) entries: Vec<Entry>,
}

impl Store {
    /// Opens the versions of the mount that contains `path`, which need not exist, and returns
    /// them with the path below the mount point.
    pub(super) fn of(path: &Path) -> Result<(Store, RelPath), Failure> {
        let whole = resolve(path).map_err(|error| {
            Failure::failed(format!("cannot look at {}: {error}", path.escaped()))
        })?;
        let mount = mounts::find(Some(&whole))?;
        let below = whole
            .strip_prefix(&mount.mountpoint)
            .unwrap_or(Path::new(""));
        let below = RelPath::parse(below.as_os_str().as_bytes())
            .map_err(|error| Failure::failed(format!("{}: {error}", path.escaped())))?;
        let answer = reach::daemon_of(&mount)?.call(&Request::Status, None, &mut |_| {})?;
        let Answer::Status(status) = answer else {
            return Err(reach::unexpected());
        };
        Ok((Store::on(mount.mountpoint, &status)?, below))
    }

    fn on(mountpoint: PathBuf, status: &Status) -> Result<Store, Failure> {
        let drive = path_of_text(&status.backend);
        if status.backend_state != BackendState::Attached {
            return Err(Failure {
                code: Exit::BackendAbsent,
                message: format!("the drive of {} is not attached", mountpoint.escaped()),
                hint: Some("old versions are on the drive: plug it in and mount it".into()),
            });
        }
        let root = File::open(&drive).map_err(|error| {
            Failure::failed(format!("cannot open {}: {error}", drive.escaped()))
        })?;
        Ok(Store {
            mountpoint,
            drive,
            root: root.into(),
            is_on: status.versions,
        })
    }

    /// Returns what batches have kept, oldest first.
    pub(super) fn batches(&self) -> Result<Vec<Kept>, Failure> {
        let mut ids: Vec<VersionsId> = (self.names()?.iter())
            .filter_map(|name| {
                VersionsId::parse(name).or_else(|| VersionsId::parse(name.strip_suffix(b".json")?))
            })
            .collect();
        ids.sort();
        ids.dedup();
        ids.into_iter().map(|id| self.batch(id)).collect()
    }

    fn names(&self) -> Result<Vec<Vec<u8>>, Failure> {
        match self.list_dir(&layout::versions_root()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(self.unreadable(&error)),
            Ok(names) => Ok(names),
        }
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        let failure = Failure::failed(format!(
            "cannot read the old versions on {}: {error}",
            self.drive.escaped()
        ));
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                failure.hint("run this as the user who mounted the drive, or as root")
            }
            _ => failure,
        }
    }

    fn batch(&self, id: VersionsId) -> Result<Kept, Failure> {
        let list = match self.read(&id.list()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(self.unreadable(&error));
            }
            read => read.ok().and_then(|bytes| VersionList::decode(&bytes).ok()),
        };
        Ok(match list {
            Some(list) => Kept {
                id,
                entries: list.entries,
            },
            None => Kept {
                id,
                entries: self.walk(id),
            },
        })
    }

    /// Returns the files in a directory that has no list.
    fn walk(&self, id: VersionsId) -> Vec<Entry> {
        let (mut open, mut found) = (vec![RelPath::root()], Vec::new());
        while let Some(dir) = open.pop() {
            for name in self.list_dir(&id.dir().join_path(&dir)).unwrap_or_default() {
                let Ok(name) = crate::core::Name::new(&name) else {
                    continue;
                };
                let path = dir.join(&name);
                match self.metadata(&id.dir().join_path(&path)) {
                    Ok(meta) if meta.is_dir() => open.push(path),
                    Ok(meta) => found.push(Entry {
                        path,
                        name: None,
                        what: What::Removed,
                        size: meta.len(),
                        modified: meta.modified().map_or(Timestamp(0), Timestamp::from),
                        from: None,
                        is_excluded: false,
                        about: None,
                    }),
                    Err(_) => {}
                }
            }
        }
        found.sort_by(|one, other| one.path.cmp(&other.path));
        found
    }

    /// Returns the versions of `path` in the mount and, if `below` is set, of what was below it:
    /// newest first.
    pub(super) fn versions(&self, path: &RelPath, below: bool) -> Result<Vec<Version>, Failure> {
        let mut found = Vec::new();
        for kept in self.batches()? {
            for entry in kept.entries {
                let is_it = entry.in_mount() == path || (below && is_below(entry.in_mount(), path));
                if entry.what.is_version() && is_it && self.is_there(kept.id, &entry) {
                    found.push(Version { id: kept.id, entry });
                }
            }
        }
        found.reverse();
        Ok(found)
    }

    /// Returns whether a version can be restored. Its file may have been removed meanwhile, to make
    /// space or by hand, or was never kept.
    pub(super) fn is_there(&self, id: VersionsId, entry: &Entry) -> bool {
        let has_file = || self.metadata(&id.dir().join_path(&entry.path)).is_ok();
        !entry.is_excluded && (!entry.what.is_file() || has_file())
    }

    /// Returns the path of `below` in the mount.
    pub(super) fn in_mount(&self, below: &RelPath) -> PathBuf {
        self.mountpoint
            .join(std::ffi::OsStr::from_bytes(below.as_bytes()))
    }

    fn read(&self, path: &RelPath) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.open(path)?;
        file.take(MAX_LIST_BYTES as u64 + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Opens a regular file on the drive. Follows no link.
    pub(super) fn open(&self, path: &RelPath) -> io::Result<File> {
        // A pipe must not hold the command up.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let file = File::from(sys::path::open_beneath(self.root.as_fd(), path, flags, 0)?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("it is no regular file")),
        }
    }

    /// Returns the metadata of a name on the drive, also of a link itself.
    pub(super) fn metadata(&self, path: &RelPath) -> io::Result<fs::Metadata> {
        let (_dir, way) = self.way(path)?;
        fs::symlink_metadata(way)
    }

    /// Returns the target of a link on the drive.
    pub(super) fn target(&self, path: &RelPath) -> io::Result<PathBuf> {
        let (_dir, way) = self.way(path)?;
        fs::read_link(way)
    }

    /// Returns a path that leads to `path` on the drive, and follows no link before its last name.
    /// It is valid as long as the directory is open.
    fn way(&self, path: &RelPath) -> io::Result<(OwnedFd, PathBuf)> {
        let (dir, name) = path
            .split_last()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let (dir, mut way) = self.way_of_dir(&dir)?;
        way.push(name.as_os_str());
        Ok((dir, way))
    }

    fn way_of_dir(&self, dir: &RelPath) -> io::Result<(OwnedFd, PathBuf)> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let dir = sys::path::open_beneath(self.root.as_fd(), dir, flags, 0)?;
        let way = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        Ok((dir, way))
    }

    fn list_dir(&self, dir: &RelPath) -> io::Result<Vec<Vec<u8>>> {
        let (_dir, way) = self.way_of_dir(dir)?;
        let entries = fs::read_dir(way)?;
        entries
            .map(|entry| Ok(entry?.file_name().into_vec()))
            .collect()
    }
}

/// Returns whether `path` is below `dir`.
pub(super) fn is_below(path: &RelPath, dir: &RelPath) -> bool {
    let rest = path.as_bytes().strip_prefix(dir.as_bytes());
    rest.is_some_and(|rest| (dir.is_root() && !rest.is_empty()) || rest.starts_with(b"/"))
}

/// Returns `path` as the mount table spells it, also if its end does not exist.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let mut missing = Vec::new();
    let mut at = path.as_path();
    loop {
        if let Ok(found) = fs::canonicalize(at) {
            return Ok(missing.iter().rev().fold(found, |at, name| at.join(name)));
        }
        match (at.parent(), at.components().next_back()) {
            (Some(parent), Some(Component::Normal(name))) => {
                missing.push(name.to_owned());
                at = parent;
            }
            _ => return mounts::resolve(&path),
        }
    }
}

/// Which version of a path: `PATH@TIME`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct When(Option<String>);

impl When {
    /// Separates the path from the time, the beginning of a version's name, or the number of a
    /// batch. An `@` that is followed by something else belongs to the path.
    pub(super) fn split(text: &Path) -> (PathBuf, When) {
        let bytes = text.as_os_str().as_bytes();
        let parts = (bytes.iter().rposition(|byte| *byte == b'@'))
            .map(|at| (&bytes[..at], &bytes[at + 1..]));
        if let Some((path, when)) = parts
            && !path.is_empty()
            && when.first().is_some_and(u8::is_ascii_digit)
            && when
                .iter()
                .all(|byte| byte.is_ascii_digit() || b"-TZ.".contains(byte))
            && let Ok(when) = std::str::from_utf8(when)
            && fs::symlink_metadata(text).is_err()
        {
            let path = std::ffi::OsStr::from_bytes(path);
            return (PathBuf::from(path), When(Some(when.into())));
        }
        (text.to_owned(), When(None))
    }

    /// Returns whether it means the versions of this directory.
    pub(super) fn is(&self, id: VersionsId) -> bool {
        match &self.0 {
            None => true,
            Some(when) => {
                when.parse() == Ok(id.batch.0)
                    || (when.len() >= 4 && id.to_text().starts_with(when.as_str()))
            }
        }
    }

    /// Returns it for people.
    pub(super) fn text(&self) -> String {
        self.0
            .as_ref()
            .map(|it| format!("@{it}"))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::BatchNo;

    #[test]
    fn a_time_is_separated_from_its_path_and_other_at_signs_are_not() {
        let split = |text: &str| {
            let (path, when) = When::split(Path::new(text));
            (path.display().to_string(), when.0)
        };
        let of = |path: &str, when: &str| (path.to_string(), Some(when.to_string()));
        assert_eq!(split("a/b@2026-11-28"), of("a/b", "2026-11-28"));
        assert_eq!(split("a@b@42"), of("a@b", "42"));
        for plain in ["a", "me@home", "a@", "@42", "a@2 b"] {
            assert_eq!(split(plain), (plain.to_string(), None));
        }
    }

    #[test]
    fn a_version_is_meant_by_its_name_the_beginning_of_it_or_its_batch() {
        let id = VersionsId::of(BatchNo(42), Timestamp::from_parts(1_795_868_040, 0));
        let means = |text: &str| When(Some(text.into())).is(id);
        assert!(means("2026-11-28T12-14-00Z-42") && means("2026-11-28") && means("42"));
        assert!(!means("2026-11-29") && !means("4") && !means("202"));
        assert!(When(None).is(id));
    }

    #[test]
    fn below_is_below_and_not_beside() {
        let path = |text: &str| RelPath::parse(text.as_bytes()).unwrap();
        assert!(is_below(&path("a/b"), &path("a")));
        assert!(!is_below(&path("ab"), &path("a")));
        assert!(!is_below(&path("a"), &path("a")));
        assert!(is_below(&path("a"), &path("")));
    }
}
