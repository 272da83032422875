//! The first phase, again: what goes away is removed, what moves is in its slot.

use super::super::apply::{Applied, is_absent};
use super::standing::{Slots, Standing};
use super::{Redo, State, is_dir, is_file, look};
use crate::base::RelPath;
use crate::flush::report::Result;
use crate::rules::layout;
use crate::rules::steps::{ClearStep, PlainKind, SlotNo};

impl Redo<'_> {
    pub(super) fn clear(&self, slots: &mut Slots, applied: &mut Applied) -> Result<()> {
        let mut standing = self.directories_set_aside(slots)?;
        let copies = self.remove_what_goes(slots, &standing)?;
        self.backend.sync()?;
        self.untangle_directories(slots, &mut standing)?;
        for (slot, here) in copies {
            let names = [slots.all(slot), vec![here]].concat();
            self.copy_apart(slot, &names, slots)?;
        }
        for step in &self.steps.clear {
            match step {
                ClearStep::Detach { from, slot, kind } => {
                    self.detach(from, *slot, *kind, slots, &mut standing)?;
                }
                ClearStep::RemoveFile { .. } => {}
                ClearStep::RemoveDir { path } => {
                    self.remove_dir_again(path, &standing, applied)?;
                }
            }
        }
        Ok(())
    }

    /// The directories that move, with their slots; those that hold others first.
    fn moved_directories(&self) -> Vec<(&RelPath, SlotNo)> {
        let mut moved: Vec<(&RelPath, SlotNo)> = self
            .steps
            .clear
            .iter()
            .filter_map(|step| match step {
                ClearStep::Detach {
                    from,
                    slot,
                    kind: PlainKind::Directory,
                } => Some((from, *slot)),
                _ => None,
            })
            .collect();
        moved.sort_by_key(|(from, _)| from.depth());
        moved
    }

    /// Finds out which of the directories that move are in their slots already. One that is under both names is found under either.
    fn directories_set_aside(&self, slots: &mut Slots) -> Result<Standing> {
        let mut standing = Standing::default();
        for (from, slot) in self.moved_directories() {
            self.drop_hollow(slot, &standing.locate_name(from), slots)?;
            if let Some(name) = slots.newest(slot) {
                standing.note(from, name);
            }
        }
        Ok(standing)
    }

    /// Takes away what is to go, before anything is written. Gives the files that stand in their slots and at their old names, and
    /// that must be copied, with these names.
    fn remove_what_goes(
        &self,
        slots: &mut Slots,
        standing: &Standing,
    ) -> Result<Vec<(SlotNo, RelPath)>> {
        let mut copies = Vec::new();
        for step in &self.steps.clear {
            match step {
                ClearStep::Detach {
                    from,
                    slot,
                    kind: PlainKind::File,
                } => {
                    let here = standing.locate_name(from);
                    if self.detached_twice(*slot, &here, slots)? {
                        copies.push((*slot, here));
                    }
                }
                ClearStep::RemoveFile { path } => self.remove_again(path, standing)?,
                ClearStep::RemoveDir { path } => {
                    // If something is to be moved out of it first, its turn comes again.
                    if let Err(error) = self.backend.remove_dir(&standing.locate_name(path))
                        && !is_absent(&error)
                        && error.source.kind() != std::io::ErrorKind::DirectoryNotEmpty
                    {
                        return Err(error.into());
                    }
                }
                ClearStep::Detach { .. } => {}
            }
        }
        Ok(copies)
    }

    fn untangle_directories(&self, slots: &mut Slots, standing: &mut Standing) -> Result<()> {
        for (from, slot) in self.moved_directories() {
            let mut names = slots.all(slot);
            if names.is_empty() {
                continue;
            }
            let here = standing.locate_name(from);
            if is_dir(look(self.backend, &here)?.as_ref()) {
                if self.are_twins(&names, &here)? {
                    names.push(here);
                } else if self.backend.read_dir(&here)?.is_empty() {
                    // What a check of the file system has left of the old name.
                    self.backend.remove_dir(&here)?;
                }
            }
            let one = self.one_directory(slot, &names, slots)?;
            standing.note(from, one);
        }
        Ok(())
    }

    fn detach(
        &self,
        from: &RelPath,
        slot: SlotNo,
        kind: PlainKind,
        slots: &mut Slots,
        standing: &mut Standing,
    ) -> Result<()> {
        if slots.newest(slot).is_some() {
            return Ok(());
        }
        let here = standing.locate_name(from);
        let found = look(self.backend, &here)?;
        // What is missing here is told when it is missed at its new name; a thing of another kind is somebody else's.
        let is_it = match kind {
            PlainKind::Directory => is_dir(found.as_ref()),
            PlainKind::File => is_file(found.as_ref()),
        };
        if !is_it {
            return Ok(());
        }
        let to = layout::slot_path(self.batch, slot);
        self.backend.rename(&here, &to)?;
        slots.only(slot, &to);
        if kind == PlainKind::Directory {
            standing.note(from, to);
        }
        Ok(())
    }

    /// Sees to a moved file that may be in its slot and at its old name at once. What is not whole goes; if both are whole they
    /// share clusters: both go where the SSD has the bytes, to be written anew when the file is placed. True if it must be
    /// copied instead.
    fn detached_twice(&self, slot: SlotNo, here: &RelPath, slots: &mut Slots) -> Result<bool> {
        let Some(found) = look(self.backend, here)? else {
            return Ok(false);
        };
        let names = slots.all(slot);
        let Some(newest) = slots.newest(slot) else {
            return Ok(false);
        };
        let moved = self.moved(slot);
        let in_slot = look(self.backend, &newest)?;
        let slot_state = self.whole(&newest, in_slot.as_ref(), moved.as_ref())?;
        let here_state = self.whole(here, Some(&found), moved.as_ref())?;
        let same = match (&moved, &in_slot) {
            (None, Some(meta)) => {
                (meta.kind, meta.size, meta.modified) == (found.kind, found.size, found.modified)
            }
            _ => slot_state == State::Good && here_state == State::Good,
        };
        if same && !self.is_kept(slot) {
            return Ok(true);
        }
        // One that was cut short is no more use; another time tells of another file, which is somebody else's.
        let is_ours = moved.is_some_and(|moved| moved.may_be(&found));
        let keeps_slot = !same && slot_state == State::Good;
        if same || (is_ours && (here_state != State::Good || keeps_slot)) {
            self.remove_all(here)?;
        }
        if !keeps_slot && (same || here_state == State::Good || self.is_kept(slot)) {
            for name in &names {
                self.remove_all(name)?;
            }
            slots.forget(slot);
        }
        Ok(false)
    }

    fn remove_again(&self, path: &RelPath, standing: &Standing) -> Result<()> {
        let here = standing.locate_name(path);
        let Some(found) = look(self.backend, &here)? else {
            return Ok(());
        };
        let known = self.known.removed.get(path);
        let is_ours = known.map_or(is_file(Some(&found)), |known| known.may_be(&found));
        if !is_ours {
            // Somebody else has put something there since: the batch has no say in it.
            tracing::warn!(%path, "was to be removed, but somebody else has changed it; it stays");
            return Ok(());
        }
        self.remove_all(&here)
    }

    fn remove_dir_again(
        &self,
        path: &RelPath,
        standing: &Standing,
        applied: &mut Applied,
    ) -> Result<()> {
        match self.backend.remove_dir(&standing.locate_name(path)) {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error)
                if is_absent(&error)
                    || error.source.kind() == std::io::ErrorKind::DirectoryNotEmpty =>
            {
                applied.kept.push(path.clone());
                Ok(())
            }
            result => Ok(result?),
        }
    }
}
