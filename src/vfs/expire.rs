//! Removing a file or directory that has become too old, as if a program had removed it.
//!
//! Lock order: the table of open inodes, so that the file is not opened meanwhile, then the index.

use crate::core::{Ino, Name, Timestamp};
use crate::index::Flags;
use crate::vfs::{Fs, Invalidation, Result};

impl Fs {
    /// Removes the name of `ino` if it has not changed since `before`: a file that no program has
    /// open and of which nothing waits for the drive, or an empty directory. Returns whether it
    /// did.
    ///
    /// # Errors
    /// If the index fails.
    pub fn remove_if_old(
        &self,
        parent: Ino,
        name: &Name,
        ino: Ino,
        before: Timestamp,
    ) -> Result<bool> {
        let remove = || self.remove_if_closed(parent, name, ino, before);
        let is_removed = self.space.with_reserve(remove)?;
        if is_removed {
            let name = name.clone();
            self.invalidations.push(vec![
                Invalidation::Entry { parent, name },
                Invalidation::Inode { ino },
                Invalidation::Inode { ino: parent },
            ]);
        }
        Ok(is_removed)
    }

    fn remove_if_closed(
        &self,
        parent: Ino,
        name: &Name,
        ino: Ino,
        before: Timestamp,
    ) -> Result<bool> {
        let removed = self.open_files.while_closed(ino, || {
            let mut state = self.index.lock();
            let Some(inode) = state.inode(ino)? else {
                return Ok(false);
            };
            let changed = inode.mtime.max(inode.ctime);
            if changed >= before || state.lookup(parent, name)? != Some(ino) {
                return Ok(false);
            }
            if inode.is_dir() {
                if !inode.flags.has(Flags::LISTED) || !state.is_empty_dir(ino)? {
                    return Ok(false);
                }
                self.rmdir_in(&mut state, parent, name, ino)?;
            } else {
                let waits = inode.flags.any(Flags::DIRTY) && !inode.flags.has(Flags::LOCAL);
                if waits || state.is_writing(ino) {
                    return Ok(false);
                }
                self.unlink_in(&mut state, parent, name)?;
            }
            // It is not open, and the kernel may not know it, and then never sends a forget.
            if state.is_orphan(ino) {
                state.remove_inode(ino)?;
            }
            state.finish()?;
            Ok(true)
        });
        removed.unwrap_or(Ok(false))
    }
}
