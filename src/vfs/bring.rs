//! Bringing files of the drive into the cache before a program asks for them: those that are
//! pinned, and those that were moved to a name that stays local.
//!
//! A file is fetched as for its first write. It stays clean, so nothing is written for it. Lock
//! order: one open inode's content; names on the drive; the index.

use crate::core::{FileKind, Ino};
use crate::index::{Inode, Location};
use crate::vfs::{Ctx, Fs, Result};

/// The caller is the daemon, on a thread of its own.
pub(super) const CTX: Ctx = Ctx {
    uid: 0,
    gid: 0,
    pid: 0,
    umask: 0,
    may_block: true,
    may_wait: true,
};

/// What became of a file that was to be brought into the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brought {
    /// All of it is there, and was already; or it is no file of the drive any more.
    There,
    /// It was fetched: so many bytes.
    Fetched(u64),
    /// It does not fit: so many bytes.
    TooLarge(u64),
}

impl Fs {
    /// Brings the bytes of a file into the cache, or the names of a directory into the index. Other
    /// clean files make way for it, if that helps, and the cache's size is not exceeded.
    ///
    /// # Errors
    /// If the drive is away or fails, or the SSD does.
    pub fn bring(&self, ino: Ino) -> Result<Brought> {
        let inode = self.index.lock().inode(ino)?;
        if inode.as_ref().is_some_and(Inode::is_dir) {
            self.importer.ensure_listed(&CTX, ino)?;
        }
        let Some(inode) = inode.filter(is_away) else {
            self.index.lock().note_arrived(ino);
            return Ok(Brought::There);
        };
        if !self.space.make_space_for(inode.size)? {
            return Ok(Brought::TooLarge(inode.size));
        }
        let open = self.open_files.acquire(ino);
        let brought = (|| {
            let _content = open.lock(&CTX)?;
            let inode = self.index.lock().inode(ino)?;
            let Some(inode) = inode.filter(is_away) else {
                self.index.lock().note_arrived(ino);
                return Ok(Brought::There);
            };
            let fetching = open.begin_fetch();
            self.fetch(ino)?;
            drop(fetching);
            self.space
                .count_written(usize::try_from(inode.size).unwrap_or(usize::MAX));
            self.space.count_brought(ino, inode.size);
            let mut state = self.index.lock();
            state.note_arrived(ino);
            state.finish()?;
            Ok(Brought::Fetched(inode.size))
        })();
        self.open_files.put(&open)?;
        brought
    }
}

/// Returns whether only the drive has the bytes.
fn is_away(inode: &Inode) -> bool {
    inode.kind() == FileKind::Regular
        && inode.nlink > 0
        && inode.size > 0
        && inode.location() == Location::Backend
}
