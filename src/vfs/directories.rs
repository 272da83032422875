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
//! [`OpenDirs`] owns the handles, under a lock that is held for one look-up. They are in memory and
//! end with the daemon.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::core::Ino;
use crate::index::{Dirent, Inode};
use crate::vfs::{Ctx, Fs, FsError, Result, known};

/// Names read from the index at first, and in later reads; this bounds how long the index is
/// locked. The kernel's usual buffer takes few entries with attributes, and many without.
const FIRST_CHUNK: u32 = 32;
const CHUNK: u32 = 128;

/// Offsets of the entries `.` and `..`; names have larger offsets.
const AFTER_DOT: u64 = 1;
const AFTER_DOTDOT: u64 = 2;

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
    /// Opens a directory and returns the handle's number.
    ///
    /// # Errors
    /// If its entries are only on the backend and the backend is detached.
    pub fn opendir(&self, ctx: &Ctx, ino: Ino) -> Result<u64> {
        self.importer.ensure_listed(ctx, ino)?;
        let end = self.index.lock().end_of_listings();
        Ok(self.dirs.insert(DirHandle {
            ino,
            end: AtomicU64::new(end),
        }))
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
