//! Directory listings, with offsets that stay valid while entries come and go.
//!
//! Invariants: each dirent has a number in the index that is never used again, and entries are
//! listed in the order of these numbers. The offset of an entry is its number, and a listing
//! continues with the next larger one. Therefore an offset has the same meaning for every open of
//! the directory, for an NFS server, and for the next daemon. An entry that exists during the whole
//! listing is listed exactly once, whatever is created or removed meanwhile. An open directory
//! needs no record of the entries it has returned.
//!
//! Entries created during a listing get larger numbers than all existing ones. If they were listed
//! too, a program that renames each entry it reads would never reach the end. So a listing ends at
//! the largest number that existed when it began.
//!
//! The kernel may keep the listing of a directory that is at rest ([`Fs::opendir`]): then the next
//! one asks the daemon for nothing. It checks its copy against changes whenever a listing begins,
//! and drops it when it is told of a change by others. It continues a listing in a renewed copy,
//! and asks the daemon if the copy lacks the offset; but not if the copy ends with a page (fs/fuse,
//! readdir.c). So no copy is made while a program may be removing what it lists.
//!
//! [`OpenDirs`] owns the handles, under a lock that is held for one look-up. They are in memory and
//! end with the daemon.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use crate::core::{Ino, Timestamp};
use crate::index::{Dirent, Inode};
use crate::vfs::{Ctx, Fs, FsError, Result, known};

/// Names read from the index at first, and in later reads; this bounds how long the index is
/// locked. The kernel's usual buffer takes few entries with attributes, and many without.
const FIRST_CHUNK: u32 = 32;
const CHUNK: u32 = 128;

/// Offsets of the entries `.` and `..`; names have larger offsets.
const AFTER_DOT: u64 = 1;
const AFTER_DOTDOT: u64 = 2;

/// How long a directory must not have changed before the kernel may keep its listing: longer than a
/// program that lists and removes, or an NFS client, takes between two parts of a listing.
const AT_REST: Duration = Duration::from_secs(10);

/// The answer to an open of a directory.
#[derive(Clone, Copy, Debug)]
pub struct OpenedDir {
    /// The handle's number.
    pub handle: u64,
    /// The kernel may use, and make, a copy of the listing for this handle.
    pub may_cache: bool,
}

/// An open directory.
#[derive(Debug)]
struct DirHandle {
    ino: Ino,
    /// Upper bound of the numbers listed.
    end: AtomicU64,
}

/// An entry of a listing.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Its name, `.` and `..` included.
    pub name: Vec<u8>,
    /// Its inode.
    pub inode: Inode,
    /// The offset at which the listing continues after it.
    pub offset: u64,
}

/// The handles of open directories.
pub(super) struct OpenDirs {
    handles: RwLock<HashMap<u64, Arc<DirHandle>>>,
    next_handle: AtomicU64,
}

impl OpenDirs {
    pub(super) fn new() -> OpenDirs {
        OpenDirs {
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
        }
    }

    fn insert(&self, handle: DirHandle) -> u64 {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.write().insert(number, Arc::new(handle));
        number
    }

    fn handle(&self, number: u64) -> Result<Arc<DirHandle>> {
        let handles = self.handles.read();
        handles.get(&number).cloned().ok_or(FsError::BAD_HANDLE)
    }

    fn remove(&self, number: u64) {
        self.handles.write().remove(&number);
    }
}

impl Fs {
    /// Opens a directory.
    ///
    /// # Errors
    /// If its entries are only on the backend and the backend is detached.
    pub fn opendir(&self, ctx: &Ctx, ino: Ino) -> Result<OpenedDir> {
        self.importer.ensure_listed(ctx, ino)?;
        let (end, inode) = {
            let mut state = self.index.lock();
            (state.end_of_listings(), known(&mut state, ino)?)
        };
        Ok(OpenedDir {
            handle: self.dirs.insert(DirHandle {
                ino,
                end: AtomicU64::new(end),
            }),
            may_cache: is_at_rest(&inode, self.clock.now()),
        })
    }

    /// Releases a directory's handle.
    pub fn releasedir(&self, number: u64) {
        self.dirs.remove(number);
    }

    /// Lists entries from `offset` on until `accept` returns false; the rejected entry counts as
    /// not listed. `.` and `..` come first.
    ///
    /// # Errors
    /// If the index fails.
    pub fn readdir(
        &self,
        number: u64,
        offset: u64,
        mut accept: impl FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        let handle = self.dirs.handle(number)?;
        if offset == 0 {
            // rewinddir(3): the new listing includes entries created since.
            let end = self.index.lock().end_of_listings();
            handle.end.store(end, Ordering::Relaxed);
        }
        for (dot, at) in [(&b"."[..], AFTER_DOT), (b"..", AFTER_DOTDOT)] {
            if offset < at && !accept(&self.dot_entry(handle.ino, dot, at)?) {
                return Ok(());
            }
        }
        let mut after = offset.max(AFTER_DOTDOT);
        let mut count = FIRST_CHUNK;
        loop {
            let chunk = self.list_chunk(&handle, after, count)?;
            for (dirent, inode) in &chunk {
                let entry = DirEntry {
                    name: dirent.name.as_bytes().to_vec(),
                    inode: inode.clone(),
                    offset: dirent.cookie,
                };
                if !accept(&entry) {
                    return Ok(());
                }
                after = dirent.cookie;
            }
            if chunk.len() < count as usize {
                return Ok(());
            }
            count = CHUNK;
        }
    }

    fn list_chunk(
        &self,
        handle: &DirHandle,
        after: u64,
        count: u32,
    ) -> Result<Vec<(Dirent, Inode)>> {
        let end = handle.end.load(Ordering::Relaxed);
        let mut state = self.index.lock();
        let dirents = state.list(handle.ino, after, end, count)?;
        let mut chunk = Vec::with_capacity(dirents.len());
        for dirent in dirents {
            let inode = state.expect_inode(dirent.ino)?;
            chunk.push((dirent, inode));
        }
        drop(state);
        for (_, inode) in &mut chunk {
            *inode = self.open_files.with_current_size(inode.clone())?;
        }
        Ok(chunk)
    }

    fn dot_entry(&self, dir: Ino, name: &[u8], offset: u64) -> Result<DirEntry> {
        let mut state = self.index.lock();
        let ino = if name == b".." {
            state
                .a_name_of(dir)?
                .map_or(Ino::ROOT, |(parent, _)| parent)
        } else {
            dir
        };
        Ok(DirEntry {
            name: name.to_vec(),
            inode: known(&mut state, ino)?,
            offset,
        })
    }
}

/// Returns whether the directory has not changed for a while. One that has changed in the future,
/// as the clock says, may have changed at any time.
fn is_at_rest(dir: &Inode, now: Timestamp) -> bool {
    let (changed, _) = dir.ctime.max(dir.mtime).parts();
    let (now, _) = now.parts();
    now.saturating_sub(changed) >= AT_REST.as_secs() as i64
}
