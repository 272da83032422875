//! What has moved on the backend moves in the mount; what has moved on both sides keeps the name that it has here.

use super::super::Result;
use super::gather::{Differences, Moved, Parent};
use super::{Taking, spelling};
use crate::base::{Ino, Name};
use crate::index::{Flags, PlacedEntry, State};
use crate::rules::plan::NameKey;
use crate::rules::steps::PlainKind;

impl Taking<'_> {
    /// A directory may have come to where a file was: that is taken out first.
    pub(super) fn make_way(&mut self, found: &mut Differences) -> Result<()> {
        let targets: Vec<NameKey> = (found.dirs_moved.iter())
            .filter_map(|moved| match moved.parent {
                Parent::Known(parent) => Some(NameKey {
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

    /// What cannot be moved stays among what has vanished and what has appeared.
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
            Parent::Known(dir) => dir,
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
        let open = fs.opens.hold();
        let mut state = fs.index.lock();
        let (from, was) = (&moved.from, &moved.was);
        if !Self::is_still(&mut state, from, Some(was))? || !Self::is_still(&mut state, &to, None)?
        {
            return Ok(false);
        }
        let is_dir = was.kind == PlainKind::Directory;
        let has_name = state.a_name_of(was.ino)?.is_some();
        // What is only spelled anew is the file that was there, whatever the mount has done with it.
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
        let here = spelling::at(&mut state, from)?.filter(|(_, ino)| *ino == was.ino);
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
            // Moved here as well, or something of ours is there: the mount stays as it is, and the backend follows.
            _ => {
                // Its other names are as they were, here and there.
                state.mark_name(to.parent, &to.name)?;
                state.mark_name(from.parent, &from.name)?;
            }
        }
        self.changes.moved += 1;
        Ok(true)
    }

    /// Whether a file may be taken for the one that has vanished: not, if only its looks speak for it, should it be changed or open
    /// here. Nor if it is removed here, as it is there under a name that its remover has not seen; that the caller looks at.
    fn may_move(
        &self,
        state: &mut State,
        moved: &Moved,
        is_open: impl Fn(Ino) -> bool,
    ) -> Result<bool> {
        let Some(inode) = state.inode(moved.was.ino)? else {
            return Ok(false);
        };
        let untouched = !inode.flags.has(Flags::DATA_DIRTY) && !is_open(inode.ino);
        Ok(moved.certain || untouched)
    }

    fn note_file_moved(&mut self, state: &mut State, moved: &Moved) -> Result<()> {
        let Some(mut inode) = state.inode(moved.was.ino)? else {
            return Ok(());
        };
        if let (false, Some(object)) = (moved.certain, inode.object) {
            // Its looks are no promise: its bytes are fetched anew when they are wanted.
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

    /// The name that the mount can show it under; `None` if it has something there, or the place is in what moves.
    fn free_target(
        &self,
        state: &mut State,
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
        // Its own old spelling is not in the way.
        let in_the_way = spelling::in_the_way(state, to)?
            .filter(|(other, _)| from.parent != to.parent || old != other);
        if in_the_way.is_some() {
            return Ok(None);
        }
        // What the backend spells as before the mount shows as before.
        let exact = (from.name == to.name).then_some(old);
        Ok(Some(state.mount_name_for(to.parent, &to.name, exact)?))
    }

    fn rename(
        &mut self,
        state: &mut State,
        from: (Ino, &Name),
        (to, shown): (&NameKey, &Name),
        ino: Ino,
    ) -> Result<()> {
        let is_dir = state.inode(ino)?.is_some_and(|inode| inode.is_dir());
        state.remove_name(from.0, from.1)?;
        state.add_clean_name(to.parent, shown, &to.name, ino)?;
        let moves_away = i32::from(is_dir && from.0 != to.parent);
        self.touch_parent(state, from.0, -moves_away)?;
        self.touch_parent(state, to.parent, moves_away)?;
        self.tell_entry(from.0, from.1);
        self.tell_entry(to.parent, shown);
        self.tell_inode(ino);
        Ok(())
    }
}
