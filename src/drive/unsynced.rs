//! The changes since the last sync that one `syncfs` of the backend's root does not reach.
//!
//! Two kinds of backends need more than that:
//!
//! - **FUSE without a block device** (JuiceFS, sshfs, rclone, a pool such as mergerfs): the kernel
//!   answers `syncfs` by itself and sends nothing to the FUSE process. Only `fsync` reaches that
//!   process, for one file or directory. So each file is synced before it is closed. The next sync
//!   also syncs each directory in which a name appeared, disappeared or changed, and each file
//!   whose attributes changed. FUSE on a block device (`fuseblk`: exfat-fuse, ntfs-3g) needs none
//!   of this: its process writes to the kernel's cache of the device, and `syncfs` writes that
//!   back.
//! - **A file system mounted inside the backend**: `syncfs` of the root covers the root's file
//!   system only. Each one that was written to is synced.
//!
//! For a FUSE process without `fsync` the kernel reports success after the first ENOSYS: it is then
//! unknown whether such a file system has written anything.
//!
//! Lock order: `syncing`, then `known` or `pending`, which are never held together. Failure order:
//! when a sync fails, the paths that are not synced go back to `pending`; a file system inside the
//! backend is tried once only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::OnceLock;

use nix::fcntl::OFlag;
use parking_lot::{Mutex, MutexGuard};

use crate::core::RelPath;
use crate::drive::kept::OpenDir;
use crate::sys;
use crate::sys::mounts::Place;

/// The most paths in memory. With more, they are synced at once, which is safe: a sync may come
/// early.
const MOST: usize = 4096;

/// The kind of sync that a file system needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// `syncfs` of the root covers it, too.
    WithRoot,
    /// It needs a `syncfs` of its own.
    Own,
    /// It needs an `fsync` of everything that changed.
    Each,
}

/// The changes that need a sync.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Paths below the root, as bytes. When a directory moves, the paths below it follow.
    paths: BTreeSet<Vec<u8>>,
    /// Other file systems by device number, each with one of its mounts.
    devices: BTreeMap<u64, Place>,
}

/// The result of [`Unsynced::note`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Noted {
    /// Files in the directory must be synced one by one.
    pub(super) each: bool,
    /// So many changes are pending that the caller should sync now.
    pub(super) too_many: bool,
}

/// The unsynced changes of a backend. See the head of this file.
#[derive(Debug)]
pub(super) struct Unsynced {
    /// `st_dev` of the root.
    device: u64,
    known: Mutex<HashMap<Place, Reach>>,
    /// The same for the mount of the root.
    at_root: OnceLock<(Place, Reach)>,
    pending: Mutex<Pending>,
    /// Held during a sync: a second caller must not return early because `pending` is empty.
    syncing: Mutex<()>,
}

impl Unsynced {
    /// Creates it for a backend whose root is on `device`.
    pub(super) fn new(device: u64) -> Unsynced {
        Unsynced {
            device,
            known: Mutex::default(),
            at_root: OnceLock::new(),
            pending: Mutex::default(),
            syncing: Mutex::default(),
        }
    }

    /// Excludes other syncs while the guard lives.
    pub(super) fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.syncing.lock()
    }

    /// Returns whether files in `dir` must be synced one by one.
    pub(super) fn is_each(&self, dir: &OpenDir) -> io::Result<bool> {
        Ok(self.reach_of(dir)?.1 == Reach::Each)
    }

    /// Records a change in the directory `dir`: the entries or attributes of `paths`.
    pub(super) fn note(&self, dir: &OpenDir, paths: &[&RelPath]) -> io::Result<Noted> {
        let (place, reach) = self.reach_of(dir)?;
        if reach == Reach::WithRoot {
            return Ok(Noted::default());
        }
        let mut pending = self.pending.lock();
        if place.device != self.device {
            pending.devices.insert(place.device, place);
        }
        if reach == Reach::Each {
            let paths = paths.iter().map(|path| path.as_bytes().to_vec());
            pending.paths.extend(paths);
        }
        Ok(Noted {
            each: reach == Reach::Each,
            too_many: pending.paths.len() > MOST,
        })
    }

    /// Records that `from` has moved to `to`, with everything below it.
    pub(super) fn note_moved(&self, from: &RelPath, to: &RelPath) {
        let (from, to) = (from.as_bytes(), to.as_bytes());
        let mut pending = self.pending.lock();
        for old in pending.at_and_below(from) {
            pending.paths.remove(&old);
            let new = [to, &old[from.len()..]].concat();
            pending.paths.insert(new);
        }
    }

    /// Records that `path` no longer exists.
    pub(super) fn note_gone(&self, path: &RelPath) {
        let mut pending = self.pending.lock();
        for old in pending.at_and_below(path.as_bytes()) {
            pending.paths.remove(&old);
        }
    }

    /// Takes the pending changes. The caller syncs them, or puts them back.
    pub(super) fn take(&self) -> Pending {
        std::mem::take(&mut self.pending.lock())
    }

    /// Adds changes that could not be synced to the pending ones.
    pub(super) fn put_back(&self, rest: Pending) {
        let mut pending = self.pending.lock();
        pending.paths.extend(rest.paths);
        pending.devices.extend(rest.devices);
    }

    fn reach_of(&self, dir: &OpenDir) -> io::Result<(Place, Reach)> {
        if !dir.is_on_root_mount {
            return self.reach(dir);
        }
        match self.at_root.get() {
            Some(known) => Ok(*known),
            None => self
                .reach(dir)
                .map(|found| *self.at_root.get_or_init(|| found)),
        }
    }

    fn reach(&self, dir: &OwnedFd) -> io::Result<(Place, Reach)> {
        let place = sys::mounts::place_of(dir)?;
        if let Some(known) = self.known.lock().get(&place) {
            return Ok((place, *known));
        }
        let reach = self.find_reach(dir, place);
        if reach == Reach::Each {
            tracing::debug!(
                "the drive, or a part of it, is a FUSE file system: its files are synced one by one"
            );
        }
        self.known.lock().insert(place, reach);
        Ok((place, reach))
    }

    /// Finds the file system in the mount table. If it is not there, the file system's type says
    /// whether it is FUSE, and then every file is synced.
    fn find_reach(&self, dir: &OwnedFd, place: Place) -> Reach {
        let is_fuse = sys::file::is_fuse(dir);
        let table = sys::mounts::mounts().unwrap_or_default();
        let mount = table.iter().find(|mount| mount.dev == place.device);
        match mount {
            Some(mount) if is_fuse && mount.fs_type == "fuseblk" => self.whole(place),
            _ if is_fuse => Reach::Each,
            Some(_) => self.whole(place),
            // A subvolume has a device number of its own and is no mount: it is a part of the
            // root's file system.
            None => Reach::WithRoot,
        }
    }

    fn whole(&self, place: Place) -> Reach {
        match place.device == self.device {
            true => Reach::WithRoot,
            false => Reach::Own,
        }
    }
}

impl Pending {
    fn at_and_below(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let is_below = |other: &&Vec<u8>| {
            let rest = other.strip_prefix(path);
            rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        // Paths with a common prefix are adjacent.
        let alike = self.paths.range(path.to_vec()..);
        alike
            .take_while(|other| other.starts_with(path))
            .filter(is_below)
            .cloned()
            .collect()
    }

    /// Syncs everything below `root`. It removes each entry that is done.
    ///
    /// # Errors
    /// What the system said; ENODEV if a file system that was written to is no longer mounted.
    pub(super) fn sync(&mut self, root: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(path) = self.paths.first().cloned() {
            crate::drive::supervised::sign_of_life();
            if let Ok(path) = RelPath::parse(&path) {
                sync_path(root, &path)?;
            } else {
                sync_path(root, &RelPath::root())?;
            }
            self.paths.remove(&path);
        }
        while let Some((device, _)) = self.devices.first_key_value() {
            crate::drive::supervised::sign_of_life();
            let device = *device;
            // Only one attempt, whatever its result: a file system that is gone is also gone the
            // next time.
            self.devices.remove(&device);
            sync_device(device)?;
        }
        Ok(())
    }
}

/// Syncs one file or directory, unless it is gone. A file that cannot be opened for reading because
/// of its new mode had its bytes synced before it got its name.
fn sync_path(root: BorrowedFd<'_>, path: &RelPath) -> io::Result<()> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let open = |flags| sys::path::open_beneath(root, path, flags, 0).map(File::from);
    let opened = open(OFlag::O_PATH).and_then(|looked| {
        let kind = looked.metadata()?.file_type();
        let has_bytes = !(kind.is_symlink() || kind.is_fifo() || kind.is_socket());
        let is_device = kind.is_block_device() || kind.is_char_device();
        match has_bytes && !is_device {
            true => open(OFlag::O_RDONLY | OFlag::O_NONBLOCK).map(Some),
            // Its directory stores its name and its attributes.
            false => Ok(None),
        }
    });
    let file = match opened {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(()),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | PermissionDenied) => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    match sys::file::sync_all(&file) {
        Err(error) if is_not_offered(&error) && file.metadata()?.is_dir() => Ok(()),
        answer => answer,
    }
}

/// Some drivers cannot sync directories, and answer with one of these errors.
pub(super) fn is_not_offered(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS))
}

/// Syncs a file system that is mounted inside the backend, through any reachable mount.
fn sync_device(device: u64) -> io::Result<()> {
    let table = sys::mounts::mounts()?;
    for mount in table.iter().filter(|mount| mount.dev == device) {
        // Anything may be there now: the flags avoid waiting for a pipe and following a link.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
        let Ok(dir) = sys::path::open_place_for(&mount.mount_point, flags).map(File::from) else {
            continue;
        };
        // Another one may be mounted over it.
        if dir.metadata()?.dev() == device {
            return sync_whole(&dir);
        }
    }
    Err(io::Error::from_raw_os_error(libc::ENODEV))
}

/// Syncs the file system that the directory `dir` is on.
pub(super) fn sync_whole(dir: impl AsFd) -> io::Result<()> {
    match sys::file::sync_file_system(&dir) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            // No further call is left, so here even EINVAL is an error.
            return sys::file::sync_all(&dir);
        }
        answer => answer?,
    }
    // Whether the kernel passes syncfs on to a FUSE driver depends on the driver, the kind of mount
    // and the kernel's version; where it does not, it reports success. fsync of a directory does
    // reach the driver.
    match sys::file::sync_all(&dir) {
        // The file system cannot fsync directories; syncfs has done everything possible.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rel(path: &str) -> RelPath {
        RelPath::parse(path.as_bytes()).unwrap()
    }

    fn with(paths: &[&str]) -> Unsynced {
        let unsynced = Unsynced::new(1);
        let paths = paths.iter().map(|path| path.as_bytes().to_vec());
        unsynced.pending.lock().paths.extend(paths);
        unsynced
    }

    fn paths(unsynced: &Unsynced) -> Vec<String> {
        let pending = unsynced.pending.lock();
        let text = |path: &Vec<u8>| String::from_utf8(path.clone()).unwrap();
        pending.paths.iter().map(text).collect()
    }

    #[test]
    fn what_waits_follows_the_directory_that_it_is_in() {
        let unsynced = with(&["a", "a/b", "a-b", "a.b/c", "ab", "c/a"]);
        unsynced.note_moved(&rel("a"), &rel("x/y"));
        assert_eq!(
            paths(&unsynced),
            ["a-b", "a.b/c", "ab", "c/a", "x/y", "x/y/b"]
        );
        unsynced.note_gone(&rel("x"));
        unsynced.note_gone(&rel("c/a"));
        assert_eq!(paths(&unsynced), ["a-b", "a.b/c", "ab"]);
    }

    #[test]
    fn what_cannot_be_synced_waits_on_and_what_is_gone_does_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("here")).unwrap();
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        let unsynced = with(&["gone", "file", "file/below", "here", ""]);
        let mut pending = unsynced.take();
        let root = sys::path::open_place(dir.path()).unwrap();
        pending.sync(root.as_fd()).unwrap();
        assert!(pending.paths.is_empty());
        pending.devices.insert(u64::MAX, Place::default());
        pending.paths.insert(b"here".to_vec());
        let error = pending.sync(root.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        unsynced.put_back(pending);
        assert!(paths(&unsynced).is_empty());
    }
}
