//! Changed elsewhere: what others have done on the backend is taken into the index.
//!
//! Who calls this sees to it that no batch is under way (the flush room does), so that names on the backend stay what the index
//! says while it is compared with them. Two calls: [`Fs::look_at`] compares one directory and changes nothing; [`Fs::take_in`]
//! lists the directories that differ, and whatever has to be seen besides to tell a move from a removal, *then* asks whether all
//! that was the right volume, and only then changes the index. So nothing is concluded from a directory that was not listed
//! whole, nor from one that is not there.
//!
//! What is concluded is in [`crate::rules::merge`]. Each name is taken in under one hold of the index lock, in which everything
//! that the conclusion rests on is looked at again; several make a transaction. A crash in between leaves names that are not
//! taken in yet, which the next look finds again: the backend itself is what is compared with.
//!
//! Lock order: that of the whole room. The kernel is told afterwards, by [`Notices`], with nothing locked.

mod appear;
mod compare;
mod gather;
mod moved;
mod notices;
mod revive;
mod single;
mod spelling;
mod vanish;

use std::collections::HashMap;

use super::{Fs, FsError, Result};
use crate::backend::Backend;
use crate::base::{ContentHash, Ino, Timestamp};
use crate::index::State;
use crate::rules::merge::Changes;
use crate::rules::plan::NameKey;

pub use notices::{Notice, Notices};

use gather::{Differences, Gatherer};
use single::Alike;

/// Names taken in between two commits.
const CHUNK: usize = 128;

/// A file of up to this size is read on the backend to tell whether its bytes are those that were there.
const HASH_LIMIT: u64 = 64 << 20;

/// Bytes read for that in one go of [`Fs::take_in`].
const HASH_BUDGET: u64 = 1 << 30;

/// What one look at a directory of the backend shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Something in it is not as the index believes.
    pub differs: bool,
    /// The directories in it of which the index knows what they hold.
    pub dirs: Vec<Ino>,
}

impl Fs {
    /// Compares a directory of the backend with what the index believes of it.
    ///
    /// # Errors
    /// If the backend or the index cannot be read.
    pub fn look_at(&self, backend: &dyn Backend, dir: Ino) -> Result<Look> {
        let Some(path) = self.index.lock().backend_path(dir)? else {
            return Ok(Look::default());
        };
        let entries = backend.read_dir(&path)?;
        let compared = self.compare_listing(dir, entries)?;
        let mut dirs = Vec::new();
        for (_, ino) in compared.dirs {
            if self.is_listed(ino)? {
                dirs.push(ino);
            }
        }
        Ok(Look {
            differs: compared.differs,
            dirs,
        })
    }

    /// Whether the index knows what `dir` holds. What was removed in the mount it knew.
    fn is_listed(&self, dir: Ino) -> Result<bool> {
        let inode = self.index.lock().inode(dir)?;
        Ok(inode.is_none_or(|inode| inode.flags.has(crate::index::Flags::LISTED)))
    }

    /// Takes what others have changed in `dirs` into the index, and in what has moved there or elsewhere. No batch may be under
    /// way. Before anything is changed, `still_right` is asked whether what was listed was the volume.
    ///
    /// # Errors
    /// `ECANCELED` if it was not; if the backend is gone or does not answer, or the index fails. What was taken in by then stays.
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
        // The kernel is told also of what was taken in before an error.
        let notices = std::mem::take(&mut taking.notices);
        let committed = self.index.commit();
        self.notices.push(notices);
        taken?;
        committed?;
        Ok(taking.changes)
    }

    /// What the kernel has to be told of.
    pub fn notices(&self) -> &Notices {
        &self.notices
    }
}

/// Taking in what was found. The index is changed a name at a time.
struct Taking<'a> {
    fs: &'a Fs,
    backend: &'a dyn Backend,
    now: Timestamp,
    /// Bytes of the backend that may still be read to compare them.
    budget: u64,
    changes: Changes,
    notices: Vec<Notice>,
    /// The directories that have been made for what appeared, by position.
    made: HashMap<usize, Ino>,
    uncommitted: usize,
    /// Hashes of files of the backend with several names, by their number there, size and time.
    hashed: HashMap<(u64, u64, Timestamp), ContentHash>,
}

impl Taking<'_> {
    /// The order: what makes room for something else comes first. What is in the way all the same is taken for a removal and
    /// something new; nothing is lost by that but what the cache had of it.
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

    /// Commits now and then. What a commit of somebody else takes along is whole, too.
    fn step(&mut self) -> Result<()> {
        self.uncommitted += 1;
        if self.uncommitted >= CHUNK {
            self.uncommitted = 0;
            self.fs.index.commit()?;
        }
        Ok(())
    }

    fn tell_entry(&mut self, parent: Ino, name: &crate::base::Name) {
        self.notices.push(Notice::Entry {
            parent,
            name: name.clone(),
        });
        self.notices.push(Notice::Inode { ino: parent });
    }

    fn tell_inode(&mut self, ino: Ino) {
        self.notices.push(Notice::Inode { ino });
    }

    /// Changes the number of a directory's subdirectories, and its times.
    fn touch_parent(&mut self, state: &mut State, parent: Ino, subdirs: i32) -> Result<()> {
        if let Some(mut dir) = state.inode(parent)? {
            dir.nlink = dir.nlink.saturating_add_signed(subdirs);
            dir.mtime = self.now;
            dir.ctime = self.now;
            state.put_inode(dir);
        }
        Ok(())
    }

    /// What the index believes to stand under `key` still is `was`.
    fn is_still(
        state: &mut State,
        key: &NameKey,
        was: Option<&crate::index::PlacedEntry>,
    ) -> Result<bool> {
        Ok(state.placed(key.parent, &key.name)?.as_ref() == was)
    }
}
