//! Listing directories, with offsets that stay valid while entries come and go.
//!
//! Entries are listed in the order of the index's key. An open directory remembers each name it has handed out; an entry's
//! offset is the position of its name in that memory, and listing goes on with the first name after it. So an entry that is
//! there all the time is listed exactly once, whatever else is made or removed meanwhile.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Ctx, Fs, FsError, Result};
use crate::base::{Ino, Name};
use crate::index::Inode;

/// Names read from the index at a time; bounds how long its lock is held.
const CHUNK: u32 = 128;

/// Offsets of the entries `.` and `..`; those of names follow.
const AFTER_DOT: u64 = 1;
const AFTER_DOTDOT: u64 = 2;

/// An open directory.
#[derive(Debug)]
pub(super) struct DirHandle {
    ino: Ino,
    handed_out: Mutex<Vec<Name>>,
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
            handed_out: Mutex::default(),
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
        let mut handed_out = handle.handed_out.lock();
        if offset == 0 {
            handed_out.clear();
        }
        for (dot, at) in [(&b"."[..], AFTER_DOT), (b"..", AFTER_DOTDOT)] {
            if offset < at && !accept(&self.dot_entry(handle.ino, dot, at)?) {
                return Ok(());
            }
        }
        let mut after = match offset.checked_sub(AFTER_DOTDOT + 1) {
            Some(position) => Some(
                usize::try_from(position)
                    .ok()
                    .and_then(|position| handed_out.get(position).cloned())
                    .ok_or(FsError::INVALID)?,
            ),
            None => None,
        };
        loop {
            let chunk = self.list_chunk(handle.ino, after.as_ref())?;
            let Some((last, _)) = chunk.last() else {
                return Ok(());
            };
            after = Some(last.clone());
            for (name, inode) in chunk {
                handed_out.push(name.clone());
                let entry = DirEntry {
                    name: name.as_bytes().to_vec(),
                    inode,
                    offset: AFTER_DOTDOT + handed_out.len() as u64,
                };
                if !accept(&entry) {
                    handed_out.pop();
                    return Ok(());
                }
            }
        }
    }

    fn list_chunk(&self, dir: Ino, after: Option<&Name>) -> Result<Vec<(Name, Inode)>> {
        let mut state = self.index.lock();
        let dirents = state.list(dir, after, CHUNK)?;
        let mut chunk = Vec::with_capacity(dirents.len());
        for dirent in dirents {
            chunk.push((dirent.name, state.expect_inode(dirent.ino)?));
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
