//! Removing a local file or directory that has become too old, as if a program had removed it.
//!
//! A database goes together with its journals and its shared memory, in one operation: a new
//! database would take an old journal for its own.
//!
//! Lock order: the table of open inodes, so that no file is opened meanwhile, then the index.

use crate::core::{Ino, Name, Timestamp};
use crate::index::{Flags, IndexWriter, Inode};
use crate::plan::units::{head_of_unit, unit_of};
use crate::vfs::{Fs, Invalidation, Result};

/// What counts as old.
#[derive(Clone, Debug)]
pub struct OlderThan {
    /// What was changed before this time,
    pub before: Timestamp,
    /// except if it got its time in one of these, bounds included: the clock was behind then.
    pub later: Vec<(Timestamp, Timestamp)>,
}

impl OlderThan {
    /// Returns whether it has a file with these times of last change, of its bytes and of anything.
    pub fn has(&self, mtime: Timestamp, ctime: Timestamp) -> bool {
        let is_later = |(from, until): &(Timestamp, Timestamp)| (*from..=*until).contains(&ctime);
        mtime.max(ctime) < self.before && !self.later.iter().any(is_later)
    }
}

impl Fs {
    /// Removes the name of `ino` if it is local and old: a file that no program has open, together
    /// with the files of the same database if the same is true of all of them, or an empty
    /// directory. Returns how many names it removed.
    ///
    /// # Errors
    /// If the index fails.
    pub fn remove_if_old(
        &self,
        parent: Ino,
        name: &Name,
        ino: Ino,
        age: &OlderThan,
    ) -> Result<u64> {
        let remove = || self.remove_if_closed(parent, name, ino, age);
        let removed = self.space.with_reserve(remove)?;
        let count = removed.len() as u64;
        for (name, ino) in removed {
            self.invalidations.push(vec![
                Invalidation::Entry { parent, name },
                Invalidation::Inode { ino },
                Invalidation::Inode { ino: parent },
            ]);
        }
        Ok(count)
    }

    fn remove_if_closed(
        &self,
        parent: Ino,
        name: &Name,
        ino: Ino,
        age: &OlderThan,
    ) -> Result<Vec<(Name, Ino)>> {
        let open = self.open_files.hold();
        let mut state = self.index.lock();
        let Some(inode) = state.inode(ino)? else {
            return Ok(Vec::new());
        };
        if state.lookup(parent, name)? != Some(ino) {
            return Ok(Vec::new());
        }
        let is_dir = inode.is_dir();
        let going = match is_dir {
            true => vec![(name.clone(), inode)],
            false => files_of_unit(&mut state, parent, name)?,
        };
        for (_, inode) in &going {
            let may_go = inode.flags.has(Flags::LOCAL) && age.has(inode.mtime, inode.ctime);
            if !may_go || open.has(inode.ino) || state.is_writing(inode.ino) {
                return Ok(Vec::new());
            }
            if is_dir && !(inode.flags.has(Flags::LISTED) && state.is_empty_dir(inode.ino)?) {
                return Ok(Vec::new());
            }
        }
        let mut removed = Vec::new();
        for (name, inode) in going {
            match is_dir {
                true => self.rmdir_in(&mut state, parent, &name, ino)?,
                false => self.unlink_in(&mut state, parent, &name)?,
            }
            // It is not open, and the kernel may not know it, and then never sends a forget.
            if state.is_orphan(inode.ino) {
                state.remove_inode(inode.ino)?;
            }
            removed.push((name, inode.ino));
        }
        state.finish()?;
        Ok(removed)
    }
}

/// Returns the files that belong together with `name`, and it.
fn files_of_unit(state: &mut IndexWriter, parent: Ino, name: &Name) -> Result<Vec<(Name, Inode)>> {
    let mut files = Vec::new();
    for name in unit_of(&head_of_unit(name)) {
        if let Some(ino) = state.lookup(parent, &name)?
            && let Some(inode) = state.inode(ino)?
            && !inode.is_dir()
        {
            files.push((name, inode));
        }
    }
    Ok(files)
}
