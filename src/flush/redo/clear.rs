//! The first phase, again: what goes away is removed, what moves is in its slot.

use super::super::apply::{Applied, is_absent};
use super::standing::{Slots, Standing};
use super::{Redo, is_dir, is_file, look};
use crate::backend::Metadata;
use crate::base::RelPath;
use crate::flush::report::Result;
use crate::rules::layout;
use crate::rules::steps::{ClearStep, PlainKind, SlotNo};

impl Redo<'_> {
    pub(super) fn clear(&self, slots: &mut Slots, applied: &mut Applied) -> Result<()> {
        let mut standing = self.directories_set_aside(slots)?;
        for step in &self.steps.clear {
            match step {
                ClearStep::Detach { from, slot, kind } => {
                    self.detach(from, *slot, *kind, slots, &mut standing)?;
                }
                ClearStep::RemoveFile { path } => self.remove_again(path, &standing)?,
                ClearStep::RemoveDir { path } => {
                    self.remove_dir_again(path, &standing, applied)?;
                }
            }
        }
        Ok(())
    }

    /// Finds out which of the directories that move are in their slots already. One that is under both names is put into one.
    fn directories_set_aside(&self, slots: &mut Slots) -> Result<Standing> {
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
        // What is inside others is found by way of them.
        moved.sort_by_key(|(from, _)| from.depth());
        let mut standing = Standing::default();
        for (from, slot) in moved {
            let mut names = slots.all(slot);
            let here = standing.locate_name(from);
            if names.is_empty() {
                continue;
            }
            if is_dir(look(self.backend, &here)?.as_ref()) && self.are_twins(&names, &here)? {
                names.push(here);
            }
            let one = self.one_directory(slot, &names, slots)?;
            standing.note(from, one);
        }
        Ok(standing)
    }

    fn detach(
        &self,
        from: &RelPath,
        slot: SlotNo,
        kind: PlainKind,
        slots: &mut Slots,
        standing: &mut Standing,
    ) -> Result<()> {
        let here = standing.locate_name(from);
        let found = look(self.backend, &here)?;
        let names = slots.all(slot);
        if names.is_empty() {
            let to = layout::slot_path(self.batch, slot);
            // What is missing here is told when it is missed at its new name; a thing of another kind is somebody else's.
            let is_it = match kind {
                PlainKind::Directory => is_dir(found.as_ref()),
                PlainKind::File => is_file(found.as_ref()),
            };
            if is_it {
                self.backend.rename(&here, &to)?;
                slots.only(slot, &to);
                if kind == PlainKind::Directory {
                    standing.note(from, to);
                }
            }
            return Ok(());
        }
        match (kind, found) {
            (PlainKind::File, Some(found)) if self.is_same(slot, &names, &found)? => {
                self.one_file(slot, &names, &here, slots)
            }
            // What stands there is another's: the slot has what was moved.
            _ => Ok(()),
        }
    }

    /// Whether what was found at the old name is what the slot has, too.
    fn is_same(&self, slot: SlotNo, names: &[RelPath], found: &Metadata) -> Result<bool> {
        if self.moved(slot).is_some_and(|moved| moved.agrees(found)) {
            return Ok(true);
        }
        for name in names {
            if let Some(meta) = look(self.backend, name)?
                && (meta.kind, meta.size, meta.modified) == (found.kind, found.size, found.modified)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Two names of one moved file: with the SSD at hand both go, and it is written anew when it is placed; else it is copied.
    fn one_file(
        &self,
        slot: SlotNo,
        names: &[RelPath],
        here: &RelPath,
        slots: &mut Slots,
    ) -> Result<()> {
        if !self.is_kept(slot) {
            let all = [names, std::slice::from_ref(here)].concat();
            return self.copy_apart(slot, &all, slots).map(drop);
        }
        for name in names.iter().chain([here]) {
            self.remove_all(name)?;
        }
        slots.forget(slot);
        Ok(())
    }

    fn remove_again(&self, path: &RelPath, standing: &Standing) -> Result<()> {
        let here = standing.locate_name(path);
        let Some(found) = look(self.backend, &here)? else {
            return Ok(());
        };
        let known = self.known.removed.get(path);
        let is_ours = known.map_or(is_file(Some(&found)), |known| known.agrees(&found));
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
