//! File systems that are mounted inside a backend's directory.
//!
//! A mount point that was known as one may be a bare directory later: its disk is not plugged in.
//! Nothing is concluded from such a directory and nothing is written into it, as both would hit
//! what the mount hides: every call for a path in it answers ENOLINK until something is mounted
//! there again. Whether something is, is asked of the kernel at each call, below known mount
//! points only.
//!
//! A file system that writes later than it says is read, and answers EREMOTE to every change.
//!
//! State: in memory, set by whoever attaches the backend; `crate::daemon::inner_mounts` remembers
//! the mount points in the index.

use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use parking_lot::RwLock;

use crate::core::RelPath;
use crate::sys;

/// What a call answers in a directory that was a mount point and is none now.
pub(crate) const NOT_MOUNTED: i32 = libc::ENOLINK;

/// What a change answers on a file system that writes later than it says.
pub(crate) const WRITES_LATER: i32 = libc::EREMOTE;

/// The mount points inside one backend, shared by its clones.
#[derive(Debug, Default)]
pub(super) struct InnerMounts {
    known: RwLock<Vec<RelPath>>,
    writes_later: RwLock<Vec<RelPath>>,
}

impl InnerMounts {
    pub(super) fn set(&self, known: Vec<RelPath>, writes_later: Vec<RelPath>) {
        *self.known.write() = known;
        *self.writes_later.write() = writes_later;
    }

    /// Notes that what was at `from` is at `to` now, and what is in it.
    pub(super) fn note_moved(&self, from: &RelPath, to: &RelPath) {
        for known in self.known.write().iter_mut() {
            if let Some(moved) = moved(known, from, to) {
                *known = moved;
            }
        }
    }

    /// Notes that what was at `one` and what was at `other` have changed places.
    pub(super) fn note_exchanged(&self, one: &RelPath, other: &RelPath) {
        for known in self.known.write().iter_mut() {
            if let Some(moved) = moved(known, one, other).or_else(|| moved(known, other, one)) {
                *known = moved;
            }
        }
    }

    /// Whether none is known. Those that write later are among the known ones.
    pub(super) fn is_empty(&self) -> bool {
        self.known.read().is_empty()
    }

    /// Passes if what stands at `path` is on the file system that belongs there.
    pub(super) fn check_use(&self, root: BorrowedFd<'_>, path: &RelPath) -> io::Result<()> {
        for known in self.known.read().iter() {
            if path.is_in_or_at(known) && !is_mounted(root, known)? {
                return Err(Errno::ENOLINK.into());
            }
        }
        Ok(())
    }

    /// The same for a change at `path`.
    pub(super) fn check_change(&self, root: BorrowedFd<'_>, path: &RelPath) -> io::Result<()> {
        self.check_use(root, path)?;
        let writes_later = self.writes_later.read();
        match writes_later.iter().any(|place| path.is_in_or_at(place)) {
            true => Err(Errno::EREMOTE.into()),
            false => Ok(()),
        }
    }

    /// Whether a known mount point was at or below `path`, where nothing is now. Some programs
    /// remove the directory when they unmount.
    pub(super) fn were_below(&self, path: &RelPath) -> bool {
        self.known
            .read()
            .iter()
            .any(|known| known.is_in_or_at(path))
    }
}

/// Where `path` is after a move of `from` to `to`, if it is in it.
fn moved(path: &RelPath, from: &RelPath, to: &RelPath) -> Option<RelPath> {
    if !path.is_in_or_at(from) {
        return None;
    }
    let below = path.as_bytes().get(from.as_bytes().len()..)?;
    let below = below.strip_prefix(b"/").unwrap_or(below);
    Some(to.join_path(&RelPath::parse(below).ok()?))
}

/// Whether something is mounted at `path` below `root`.
fn is_mounted(root: BorrowedFd<'_>, path: &RelPath) -> io::Result<bool> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    match sys::path::open_beneath(root, path, flags, 0) {
        Ok(dir) => sys::mounts::is_mount_point(root, dir),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_moves_along_with_the_directories_above_it() {
        let path = |text| RelPath::fixed(text);
        let mounts = InnerMounts::default();
        mounts.set(vec![path("a/b/m"), path("ab/m"), path("c")], Vec::new());
        mounts.note_moved(&path("a"), &path("x/y"));
        mounts.note_exchanged(&path("ab/m"), &path("c"));
        let known = mounts.known.read().clone();
        assert_eq!(known, [path("x/y/b/m"), path("c"), path("ab/m")]);
        assert!(mounts.were_below(&path("x")) && !mounts.were_below(&path("a")));
    }
}
