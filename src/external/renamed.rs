//! Entries renamed on the backend, which are renamed in the mount. An entry renamed on both sides
//! keeps its name in the mount.
//!
//! Lock order: the table of open inodes, then the index.

use crate::core::{Ino, Name};
use crate::external::scan::{Differences, Moved, Parent};
use crate::external::{Taking, names};
use crate::format::steps::PlainKind;
use crate::index::{Flags, IndexWriter, PlacedEntry};
use crate::plan::planner::NameKey;
use crate::vfs::Result;

impl Taking<'_> {
    /// Removes files at the targets of directories: a directory may have replaced a file.
    pub(super) fn make_way(&mut self, found: &mut Differences) -> Result<()> {
        let targets: Vec<NameKey> = (found.dirs_moved.iter())
            .filter_map(|moved| match moved.parent {
                Parent::Indexed(parent) => Some(NameKey {
                    parent,
                    name: moved.entry.name.clone(),
                }),
                Parent::Appeared(_) => None,
            })
            .filter(|key| found.vanished.contains_key(key))
            .collect();
        for key in targets {
            let moves = found.files_moved.iter().position(|moved| moved.from == key);
            let moved = moves.map(|at| found.files_moved.remove(at));
            if let Some(moved) = moved
                && self.move_one(&moved)?
            {
                if let Some(at) = moved.appeared {
                    found.appeared[at].done = true;
                }
            } else if let Some((_, was)) = found.vanished.get(&key) {
                self.vanish(&key, was)?;
            }
            found.vanished.remove(&key);
        }
        Ok(())
    }

    pub(super) fn move_dirs(&mut self, found: &mut Differences) -> Result<()> {
        for moved in std::mem::take(&mut found.dirs_moved) {
            self.move_one(&moved)?;
            self.step()?;
        }
        Ok(())
    }

    /// Renames files. An entry that cannot be renamed stays among the missing and the new entries.
    pub(super) fn move_files(&mut self, found: &mut Differences) -> Result<()> {
        for moved in std::mem::take(&mut found.files_moved) {
            if self.move_one(&moved)? {
                found.vanished.remove(&moved.from);
                if let Some(at) = moved.appeared {
                    found.appeared[at].done = true;
                }
            }
            self.step()?;
        }
        Ok(())
    }

    fn move_one(&mut self, moved: &Moved) -> Result<bool> {
        let parent = match moved.parent {
            Parent::Indexed(dir) => dir,
            Parent::Appeared(at) => match self.made.get(&at) {
                Some(dir) => *dir,
                None => return Ok(false),
            },
        };
        let to = NameKey {
            parent,
            name: moved.entry.name.clone(),
        };
        let fs = self.fs;
        let open = fs.open_files().hold();
        let mut state = fs.index.lock();
        let (from, was) = (&moved.from, &moved.was);
        if !Self::is_still(&mut state, from, Some(was))? || !Self::is_still(&mut state, &to, None)?
        {
            return Ok(false);
        }
        let is_dir = was.kind == PlainKind::Directory;
        let has_name = state.a_name_of(was.ino)?.is_some();
        // An entry with a new spelling is the same file, with any change of the mount.
        let is_elsewhere = moved.appeared.is_some();
        if !is_dir
            && is_elsewhere
            && !(has_name && self.may_move(&mut state, moved, |ino| open.has(ino))?)
        {
            return Ok(false);
        }
        let placed = PlacedEntry {
            mtime: moved.entry.meta.modified,
            hash: was.hash.filter(|_| moved.certain),
            ..was.clone()
        };
        let here = names::at(&mut state, from)?.filter(|(_, ino)| *ino == was.ino);
        state.put_placed(from, None)?;
        state.put_placed(&to, Some(&placed))?;
        if !is_dir {
            self.note_file_moved(&mut state, moved)?;
        }
        let target = match &here {
            Some((name, _)) => self.free_target(&mut state, (from, name), &to, was.ino)?,
            None => None,
        };
        match (here, target) {
            (Some((name, _)), Some(target)) => {
                self.rename(&mut state, (from.parent, &name), (&to, &target), was.ino)?;
            }
            // Renamed locally too, or the target is taken by a local entry: the mount stays as it
            // is, and the next batch changes the backend.
            _ => {
                // The other names are unchanged on both sides.
                state.mark_name(to.parent, &to.name)?;
                state.mark_name(from.parent, &from.name)?;
            }
        }
        self.changes.moved += 1;
        Ok(true)
    }

    /// Returns whether a new file counts as the missing one. If only size, time and name match, it
    /// does not while the file is open or has local changes. The caller checks that the file was
    /// not removed locally: its new name is one that the remover has not seen.
    fn may_move(
        &self,
        state: &mut IndexWriter,
        moved: &Moved,
        is_open: impl Fn(Ino) -> bool,
    ) -> Result<bool> {
        let Some(inode) = state.inode(moved.was.ino)? else {
            return Ok(false);
        };
        let untouched = !inode.flags.has(Flags::DATA_DIRTY) && !is_open(inode.ino);
        Ok(moved.certain || untouched)
    }

    fn note_file_moved(&mut self, state: &mut IndexWriter, moved: &Moved) -> Result<()> {
        let Some(mut inode) = state.inode(moved.was.ino)? else {
            return Ok(());
        };
        if let (false, Some(object)) = (moved.certain, inode.object) {
            // A match without a hash is not certain, so the bytes are fetched again on demand.
            state.bury_object(&inode, object)?;
            inode.object = None;
        }
        if !inode.flags.has(Flags::DATA_DIRTY) && !inode.flags.has(Flags::TIME_DIRTY) {
            inode.mtime = moved.entry.meta.modified;
        }
        inode.ctime = self.now;
        state.put_inode(inode);
        self.tell_inode(moved.was.ino);
        Ok(())
    }

    /// Returns the name for the mount; `None` if the mount has such an entry, or if the target is
    /// below the entry itself.
    fn free_target(
        &self,
        state: &mut IndexWriter,
        (from, old): (&NameKey, &Name),
        to: &NameKey,
        ino: Ino,
    ) -> Result<Option<Name>> {
        let Some(above) = state.mount_way(to.parent)? else {
            return Ok(None);
        };
        if above.contains(&ino) {
            return Ok(None);
        }
        // The entry's own old spelling is no collision.
        let in_the_way = names::in_the_way(state, to)?
            .filter(|(other, _)| from.parent != to.parent || old != other);
        if in_the_way.is_some() {
            return Ok(None);
        }
        // An unchanged spelling on the backend keeps the name in the mount.
        let exact = (from.name == to.name).then_some(old);
        Ok(Some(state.mount_name_for(to.parent, &to.name, exact)?))
    }

    fn rename(
        &mut self,
        state: &mut IndexWriter,
        from: (Ino, &Name),
        (to, shown): (&NameKey, &Name),
        ino: Ino,
    ) -> Result<()> {
        let is_dir = state.inode(ino)?.is_some_and(|inode| inode.is_dir());
        state.remove_name(from.0, from.1)?;
        state.add_clean_name(to.parent, shown, &to.name, ino)?;
        // It may be local by its new name, or not any more, and so may what is in it.
        state.sort_inode_later(ino);
        if is_dir {
            state.note_moved_dir(ino);
        }
        let moves_away = i32::from(is_dir && from.0 != to.parent);
        self.touch_parent(state, from.0, -moves_away)?;
        self.touch_parent(state, to.parent, moves_away)?;
        self.tell_entry(from.0, from.1);
        self.tell_entry(to.parent, shown);
        self.tell_inode(ino);
        Ok(())
    }
}
