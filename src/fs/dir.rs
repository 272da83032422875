//! Listing directories, with offsets that stay valid while entries come and go.
//!
//! Each name has a number in the index that no other name ever has, and entries are listed in the order of these: an entry's offset
//! is its number, and listing goes on with the next larger one. So an offset means the same to every open of the directory, to a
//! server of NFS, and to the next daemon; an entry that is there all the time is listed exactly once, whatever else is made or
//! removed meanwhile; and an open directory remembers nothing of what it has handed out.
//!
//! What is made while a directory is being listed gets a larger number than all there are. Were it listed too, whoever renames each
//! entry that he reads would never come to the end: a listing ends where the numbers ended when it began.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Ctx, Fs, FsError, Result};
use crate::base::Ino;
use crate::index::{Dirent, Inode};

/// Names read from the index at first, and from then on; bounds how long its lock is held. The kernel's usual buffer takes few
/// entries with their attributes, and many without.
const FIRST_CHUNK: u32 = 32;
const CHUNK: u32 = 128;

/// Offsets of the entries `.` and `..`; those of names are larger.
const AFTER_DOT: u64 = 1;
const AFTER_DOTDOT: u64 = 2;

/// An open directory.
#[derive(Debug)]
pub(super) struct DirHandle {
    ino: Ino,
    /// Where the listing ends.
    end: AtomicU64,
}

/// An entry as it is listed.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Its name; `.` and `..` are such, too.
    pub name: Vec<u8>,
    /// What it is.
    pub inode: Inode,
    /// Where listing goes on after it.
    pub offset: u64,
}

impl Fs {
    /// Opens a directory and gives the handle's number.
    ///
    /// # Errors
    /// If its entries are only on the backend and that is away.
    pub fn opendir(&self, ctx: &Ctx, ino: Ino) -> Result<u64> {
        self.ensure_listed(ctx, ino)?;
        let number = self.new_handle();
        let handle = DirHandle {
            ino,
            end: AtomicU64::new(self.index.lock().end_of_listings()),
        };
        self.dirs.write().insert(number, Arc::new(handle));
        Ok(number)
    }

    /// Ends a directory's handle.
    pub fn releasedir(&self, number: u64) {
        self.dirs.write().remove(&number);
    }

    /// Lists from `offset` on until `accept` returns false for an entry, which then counts as not listed. `.` and `..` are
    /// given first.
    ///
    /// # Errors
    /// If the index fails.
    pub fn readdir(
        &self,
        number: u64,
        offset: u64,
        mut accept: impl FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        let handle = self
            .dirs
            .read()
            .get(&number)
            .cloned()
            .ok_or(FsError::BAD_HANDLE)?;
        if offset == 0 {
            // It begins anew, and what has been made meanwhile is in it.
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
            *inode = self.with_current_size(inode.clone())?;
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
            inode: self.known(&mut state, ino)?,
            offset,
        })
    }
}
