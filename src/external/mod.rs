//! External changes: updates the index after changes that others made on the backend.
//!
//! The caller ensures that no batch is in progress (as the `flush` module does), so that names on
//! the backend match the index during the comparison. There are two calls. [`Fs::look_at`] compares
//! one directory and changes nothing. [`Fs::take_in`] lists the directories that differ, and the
//! directories needed to tell a move from a removal. *Then* it asks whether the listed volume was
//! the right one, and only then it changes the index. Invariant: nothing is concluded from a
//! directory that was not listed completely or does not exist.
//!
//! [`crate::plan::merge`] decides what to conclude. Each name is handled under one hold of the
//! index lock, after everything that the conclusion depends on has been read again. One transaction
//! covers several names.
//!
//! Failure order: a crash in between leaves names that are not handled yet. The next scan finds
//! them again, because it compares with the backend itself.
//!
//! Lock order: as in [`crate::vfs`]. The kernel's caches are invalidated afterwards, by
//! [`crate::vfs::Invalidations`], without a lock.

mod added;
mod compare;
mod deleted;
mod modified;
mod names;
mod renamed;
mod restored;
mod scan;

use std::collections::HashMap;

use crate::core::{ContentHash, Ino, Timestamp};
use crate::drive::Backend;
use crate::index::IndexWriter;
use crate::plan::merge::Changes;
use crate::plan::planner::NameKey;
use crate::vfs::Invalidation;
use crate::vfs::{Fs, FsError, Result};

use crate::external::modified::Alike;
use crate::external::scan::{Differences, Gatherer};

/// Names handled between two commits.
const CHUNK: usize = 128;

/// Files of up to this size are read from the backend to compare their bytes with the previous
/// ones.
const HASH_LIMIT: u64 = 64 << 20;

/// Bytes read for comparisons by one call of [`Fs::take_in`].
const HASH_BUDGET: u64 = 1 << 30;

/// The result of one scan of a directory on the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirLook {
    /// An entry differs from the index.
    pub differs: bool,
    /// The subdirectories whose contents the index knows.
    pub dirs: Vec<Ino>,
}

impl Fs {
    /// Compares a directory of the backend with the index.
    ///
    /// # Errors
    /// If the backend or the index cannot be read.
    pub fn look_at(&self, backend: &dyn Backend, dir: Ino) -> Result<DirLook> {
        let Some(path) = self.index.lock().backend_path(dir)? else {
            return Ok(DirLook::default());
        };
        let entries = backend.read_dir(&path)?;
        let compared = self.compare_listing(dir, entries)?;
        let mut dirs = Vec::new();
        for (_, ino) in compared.dirs {
            if self.is_listed(ino)? {
                dirs.push(ino);
            }
        }
        Ok(DirLook {
            differs: compared.differs,
            dirs,
        })
    }

    /// Returns whether the index knows the contents of `dir`. It knew them if the mount has removed
    /// the directory.
    fn is_listed(&self, dir: Ino) -> Result<bool> {
        let inode = self.index.lock().inode(dir)?;
        Ok(inode.is_none_or(|inode| inode.flags.has(crate::index::Flags::LISTED)))
    }

    /// Updates the index after external changes in `dirs`, including moves to and from other
    /// directories. No batch may be in progress. Before the first change `still_right` is asked
    /// whether the listed directories belong to the volume.
    ///
    /// # Errors
    /// `ECANCELED` if they do not; if the backend is gone or does not answer, or the index fails.
    /// Changes made by then stay.
    pub fn take_in(
        &self,
        backend: &dyn Backend,
        dirs: &[Ino],
        still_right: &mut dyn FnMut() -> bool,
    ) -> Result<Changes> {
        let differences = Gatherer::new(self, backend).gather(dirs)?;
        if !still_right() {
            return Err(FsError::Errno(libc::ECANCELED));
        }
        let mut taking = Taking {
            fs: self,
            backend,
            now: self.clock.now(),
            budget: HASH_BUDGET,
            changes: Changes::default(),
            notices: Vec::new(),
            made: HashMap::new(),
            uncommitted: 0,
            hashed: HashMap::new(),
        };
        let taken = taking.run(differences);
        // The kernel also needs the invalidations of changes made before an error.
        let notices = std::mem::take(&mut taking.notices);
        let committed = self.index.commit();
        self.invalidations().push(notices);
        taken?;
        committed?;
        Ok(taking.changes)
    }
}

/// An update of the index after a scan, one name at a time.
struct Taking<'a> {
    fs: &'a Fs,
    backend: &'a dyn Backend,
    now: Timestamp,
    /// Bytes of the backend that may still be read for comparisons.
    budget: u64,
    changes: Changes,
    notices: Vec<Invalidation>,
    /// The inodes of new directories, by position.
    made: HashMap<usize, Ino>,
    uncommitted: usize,
    /// Hashes of files with several links on the backend, by inode number, size and time.
    hashed: HashMap<(u64, u64, Timestamp), ContentHash>,
}

impl Taking<'_> {
    /// Runs the steps in an order that frees names before they are needed. A move whose target is
    /// still taken is handled as a removal and a new entry, which loses nothing except the cached
    /// object.
    fn run(&mut self, mut found: Differences) -> Result<()> {
        let mut claims = Vec::new();
        self.appear_dirs(&mut found, &mut claims)?;
        self.make_way(&mut found)?;
        self.move_dirs(&mut found)?;
        self.appear_dirs(&mut found, &mut claims)?;
        self.move_files(&mut found)?;
        for (key, was) in found.vanished_children_first() {
            self.vanish(&key, &was)?;
            self.step()?;
        }
        let alike = Alike::new(&found);
        for changed in &found.changed {
            self.change(changed, &alike)?;
            self.step()?;
        }
        self.appear_rest(&mut found, &mut claims)?;
        self.finish_dirs(&found)?;
        self.changes.skipped.append(&mut found.skipped);
        Ok(())
    }

    /// Commits after every chunk of names. A commit by another thread in between is consistent too.
    fn step(&mut self) -> Result<()> {
        self.uncommitted += 1;
        if self.uncommitted >= CHUNK {
            self.uncommitted = 0;
            self.fs.index.commit()?;
        }
        Ok(())
    }

    fn tell_entry(&mut self, parent: Ino, name: &crate::core::Name) {
        self.notices.push(Invalidation::Entry {
            parent,
            name: name.clone(),
        });
        self.notices.push(Invalidation::Inode { ino: parent });
    }

    fn tell_inode(&mut self, ino: Ino) {
        self.notices.push(Invalidation::Inode { ino });
    }

    /// Changes the number of a directory's subdirectories, and its times.
    fn touch_parent(&mut self, state: &mut IndexWriter, parent: Ino, subdirs: i32) -> Result<()> {
        if let Some(mut dir) = state.inode(parent)? {
            dir.nlink = dir.nlink.saturating_add_signed(subdirs);
            dir.mtime = self.now;
            dir.ctime = self.now;
            state.put_inode(dir);
        }
        Ok(())
    }

    /// Returns whether the index still has `was` as the placed entry of `key`.
    fn is_still(
        state: &mut IndexWriter,
        key: &NameKey,
        was: Option<&crate::index::PlacedEntry>,
    ) -> Result<bool> {
        Ok(state.placed(key.parent, &key.name)?.as_ref() == was)
    }
}
