//! Entries removed from the backend. Lock order: the table of open inodes, then the index.

use crate::core::{Ino, Name};
use crate::external::{Taking, names};
use crate::format::steps::PlainKind;
use crate::index::{Flags, IndexWriter, Inode, PlacedEntry};
use crate::plan::merge::{Here, There, Verdict, decide};
use crate::plan::planner::NameKey;
use crate::vfs::Result;

impl Taking<'_> {
    /// Handles the removal of the entry `key`.
    pub(super) fn vanish(&mut self, key: &NameKey, was: &PlacedEntry) -> Result<()> {
        if was.kind == PlainKind::Directory {
            return self.vanish_dir(key, was);
        }
        // Before the index: open inodes can still be read after the removal.
        let fs = self.fs;
        let open = fs.open_files().hold();
        let mut state = fs.index.lock();
        if !Self::is_still(&mut state, key, Some(was))? {
            return Ok(());
        }
        let inode = state.inode(was.ino)?;
        let here = here(&mut state, key, inode.as_ref())?;
        match decide(There::Gone, here) {
            Verdict::Remove => {
                state.put_placed(key, None)?;
                // A further name stays if the backend has a copy under it.
                let elsewhere = state.a_place_of(was.ino)?.is_some();
                let at_key = names::at(&mut state, key)?.filter(|(_, ino)| *ino == was.ino);
                let names = match elsewhere {
                    true => at_key.into_iter().map(|(it, _)| (key.parent, it)).collect(),
                    false => state.names_of(was.ino)?,
                };
                for (parent, name) in names {
                    self.remove(&mut state, (parent, &name), |ino| open.has(ino))?;
                }
                self.changes.deleted += 1;
            }
            _ => {
                state.replace_placed(key, Some(was), None)?;
                if names::at(&mut state, key)?.is_some() {
                    state.mark_name(key.parent, &key.name)?;
                }
            }
        }
        Ok(())
    }

    /// Removes a directory from the mount if it is empty. Otherwise the next batch writes it and
    /// its contents to the backend again.
    fn vanish_dir(&mut self, key: &NameKey, was: &PlacedEntry) -> Result<()> {
        let mut state = self.fs.index.lock();
        let is_still = Self::is_still(&mut state, key, Some(was))?;
        // An entry below could not be handled; the next scan finds it again.
        if !is_still || !state.placed_in(was.ino)?.is_empty() {
            return Ok(());
        }
        let here = names::at(&mut state, key)?;
        match here {
            Some((name, ino)) if ino == was.ino && state.is_empty_dir(ino)? => {
                state.put_placed(key, None)?;
                self.remove(&mut state, (key.parent, &name), |_| false)?;
                self.changes.deleted += 1;
            }
            _ => state.replace_placed(key, Some(was), None)?,
        }
        Ok(())
    }

    /// Removes a name from the mount. An inode without another name that is not open is removed at
    /// once: the kernel may not know it, and then never sends a forget.
    pub(super) fn remove(
        &mut self,
        state: &mut IndexWriter,
        (parent, name): (Ino, &Name),
        is_open: impl Fn(Ino) -> bool,
    ) -> Result<()> {
        let Some(ino) = state.lookup(parent, name)? else {
            return Ok(());
        };
        state.remove_name(parent, name)?;
        let Some(mut inode) = state.inode(ino)? else {
            return Ok(());
        };
        let is_dir = inode.is_dir();
        inode.nlink = match is_dir {
            true => 0,
            false => inode.nlink.saturating_sub(1),
        };
        inode.ctime = self.now;
        let is_last = inode.nlink == 0;
        state.put_inode(inode);
        if is_last && is_open(ino) {
            state.add_orphan(ino);
        } else if is_last {
            state.remove_inode(ino)?;
        } else if let Some(mut inode) = state.inode(ino)? {
            // The catalog entries of the other names contain the number of links.
            state.note_attributes(&mut inode)?;
            state.put_inode(inode);
        }
        self.touch_parent(state, parent, if is_dir { -1 } else { 0 })?;
        self.tell_entry(parent, name);
        self.tell_inode(ino);
        Ok(())
    }
}

/// Returns the mount's state of the file that was at `key`.
pub(super) fn here(state: &mut IndexWriter, key: &NameKey, inode: Option<&Inode>) -> Result<Here> {
    let at_key = names::at(state, key)?.map(|(_, ino)| ino);
    let inode = match inode {
        Some(inode) if state.a_name_of(inode.ino)?.is_some() => inode,
        _ => {
            return Ok(match at_key {
                Some(_) => Here::Other,
                None => Here::Nothing,
            });
        }
    };
    let cached = inode.object.is_some() || inode.size == 0;
    // A program that has it open for writing is about to change it.
    let dirty = inode.flags.has(Flags::DATA_DIRTY) || (cached && state.is_writing(inode.ino));
    Ok(Here::File {
        dirty,
        renamed: at_key != Some(inode.ino),
        cached,
    })
}
