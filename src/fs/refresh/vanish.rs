//! What the backend has no more.

use super::super::Result;
use super::{Taking, spelling};
use crate::base::{Ino, Name};
use crate::index::{Flags, Inode, PlacedEntry, State};
use crate::rules::merge::{Here, There, Verdict, decide};
use crate::rules::plan::NameKey;
use crate::rules::steps::PlainKind;

impl Taking<'_> {
    /// Takes in that nothing stands under `key` any more.
    pub(super) fn vanish(&mut self, key: &NameKey, was: &PlacedEntry) -> Result<()> {
        if was.kind == PlainKind::Directory {
            return self.vanish_dir(key, was);
        }
        // Before the index: whether anybody can still read what goes.
        let fs = self.fs;
        let open = fs.opens.hold();
        let mut state = fs.index.lock();
        if !Self::is_still(&mut state, key, Some(was))? {
            return Ok(());
        }
        let inode = state.inode(was.ino)?;
        let here = here(&mut state, key, inode.as_ref())?;
        match decide(There::Gone, here) {
            Verdict::Remove => {
                state.put_placed(key, None)?;
                // A further name of which the backend has a copy stays.
                let elsewhere = state.a_place_of(was.ino)?.is_some();
                let at_key = spelling::at(&mut state, key)?.filter(|(_, ino)| *ino == was.ino);
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
                if spelling::at(&mut state, key)?.is_some() {
                    state.mark_name(key.parent, &key.name)?;
                }
            }
        }
        Ok(())
    }

    /// A directory goes from the mount unless there is something in it, which then is carried to the backend anew, and it too.
    fn vanish_dir(&mut self, key: &NameKey, was: &PlacedEntry) -> Result<()> {
        let mut state = self.fs.index.lock();
        let is_still = Self::is_still(&mut state, key, Some(was))?;
        // Something below could not be taken in: the next look finds it again.
        if !is_still || !state.placed_in(was.ino)?.is_empty() {
            return Ok(());
        }
        let here = spelling::at(&mut state, key)?;
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

    /// Takes a name of the mount away. What has no other, and nobody has open, goes at once: the kernel, which may not even know
    /// of it, will not ask for that.
    pub(super) fn remove(
        &mut self,
        state: &mut State,
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
            // The other names tell how many there are.
            state.note_attributes(&mut inode)?;
            state.put_inode(inode);
        }
        self.touch_parent(state, parent, if is_dir { -1 } else { 0 })?;
        self.tell_entry(parent, name);
        self.tell_inode(ino);
        Ok(())
    }
}

/// What the mount has of the file that stood under `key`.
pub(super) fn here(state: &mut State, key: &NameKey, inode: Option<&Inode>) -> Result<Here> {
    let at_key = spelling::at(state, key)?.map(|(_, ino)| ino);
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
    // Whoever has it open for writing is about to change it.
    let dirty = inode.flags.has(Flags::DATA_DIRTY) || (cached && state.is_writing(inode.ino));
    Ok(Here::File {
        dirty,
        renamed: at_key != Some(inode.ino),
        cached,
    })
}
