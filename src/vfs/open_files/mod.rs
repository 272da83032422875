//! Open files: the table of open inodes, their contents, their handles, and the marks of closes.
//!
//! | state | guarded by | content |
//! |---|---|---|
//! | open inodes | the table's mutex | each open inode with the number of its users |
//! | [`Content`] | a lock for each open inode | its object; whether it may be written in place |
//! | handles | a lock, held for one look-up | one for each open |
//! | close marks | a mutex, held for one access | handles whose close marked a file as whole |
//!
//! Invariants: an inode in the table is neither evicted nor removed. A file whose row has WRITING
//! set has an object that no batch reads. The mark of a whole file is set only while no handle has
//! unacknowledged writes, and removed before bytes change.
//!
//! All of this is in memory. What survives a crash is in the rows and on the objects: WRITING, and
//! the mark of a whole file. Failure order of a close: mark the object as whole, reply, settle the
//! row, commit. A crash before the mark leaves an interrupted file, which is held back and
//! reported. A crash after it leaves a whole file whose row the next start settles.
//!
//! Lock order: one open inode's content; an object's descriptor; the table of open inodes; the
//! index. The locks of handles and close marks are held for one access, and no other is taken
//! meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::cache::Store;
use crate::core::Ino;
use crate::index::Index;
use crate::vfs::object_files::ObjectFiles;
use crate::vfs::{FsParts, Result};

mod at_rest;
mod content;
mod handle;
mod settle;

pub(crate) use content::{Content, OpenInode};
pub use handle::{Handle, OpenMode};

/// The open inodes, with the number of users of each.
type Inodes = HashMap<Ino, (Arc<OpenInode>, u32)>;

/// The open files.
pub(crate) struct OpenFiles {
    index: Arc<Index>,
    store: Arc<Store>,
    objects: Arc<ObjectFiles>,
    inodes: Mutex<Inodes>,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    /// Handles whose close marked a file as whole, with the time of the close.
    close_marks: Mutex<Vec<(u64, Instant)>>,
    /// Receives a message for each written file that was closed.
    closes: (Sender<()>, Receiver<()>),
}

/// The locked table.
pub(crate) struct Held<'a>(MutexGuard<'a, Inodes>);

impl Held<'_> {
    /// Returns whether `ino` is open.
    pub(crate) fn has(&self, ino: Ino) -> bool {
        self.0.contains_key(&ino)
    }
}

impl OpenFiles {
    pub(super) fn new(parts: &FsParts, objects: Arc<ObjectFiles>) -> OpenFiles {
        OpenFiles {
            index: parts.index.clone(),
            store: parts.store.clone(),
            objects,
            inodes: Mutex::default(),
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            close_marks: Mutex::default(),
            closes: bounded(1),
        }
    }

    /// Returns the open inode with one more user.
    pub(super) fn acquire(&self, ino: Ino) -> Arc<OpenInode> {
        let mut inodes = self.inodes.lock();
        let (open, users) = inodes
            .entry(ino)
            .or_insert_with(|| (Arc::new(OpenInode::new(ino)), 0));
        *users += 1;
        open.clone()
    }

    /// Removes one user of an open inode. An orphan is removed with its last user.
    pub(super) fn put(&self, open: &OpenInode) -> Result<()> {
        if self.remove_user(open.ino()) {
            let mut state = self.index.lock();
            if state.is_orphan(open.ino()) {
                state.end_writing(open.ino());
                state.remove_inode(open.ino())?;
            }
        }
        Ok(())
    }

    /// Removes one user; returns true if it was the last.
    fn remove_user(&self, ino: Ino) -> bool {
        let mut inodes = self.inodes.lock();
        match inodes.get_mut(&ino) {
            Some((_, users)) if *users > 1 => {
                *users -= 1;
                false
            }
            _ => {
                inodes.remove(&ino);
                true
            }
        }
    }

    /// Removes the inode if it is an orphan that is not open.
    pub(super) fn forget(&self, ino: Ino) -> Result<()> {
        if !self.index.lock().is_orphan(ino) {
            return Ok(());
        }
        // The locked table keeps the inode from being opened meanwhile.
        self.while_closed(ino, || self.index.lock().remove_inode(ino))
            .transpose()?;
        Ok(())
    }

    /// Returns the inode if it is open.
    pub(crate) fn find(&self, ino: Ino) -> Option<Arc<OpenInode>> {
        self.inodes.lock().get(&ino).map(|(open, _)| open.clone())
    }

    /// Runs `change` while `ino` cannot be opened; returns `None` if it is open.
    pub(super) fn while_closed<T>(&self, ino: Ino, change: impl FnOnce() -> T) -> Option<T> {
        let inodes = self.inodes.lock();
        if inodes.contains_key(&ino) {
            return None;
        }
        Some(change())
    }

    /// Keeps inodes from being opened and closed while the guard lives.
    pub(crate) fn hold(&self) -> Held<'_> {
        Held(self.inodes.lock())
    }

    /// Returns all open inodes in the order of their numbers, so that every run processes them in
    /// the same order.
    pub(super) fn all(&self) -> Vec<Arc<OpenInode>> {
        let mut all: Vec<_> = (self.inodes.lock().values())
            .map(|(open, _)| open.clone())
            .collect();
        all.sort_unstable_by_key(|open| open.ino());
        all
    }
}
