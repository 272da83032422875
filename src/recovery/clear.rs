//! Replays the first phase: removed names are gone, moved files are in their slots.

use crate::apply::Applied;
use crate::apply::place::is_across;
use crate::apply::refused::{StepNo, is_local};
use crate::core::{Metadata, RelPath};
use crate::drive::{has_moved, is_absent};
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::format::steps::{ClearStep, PlainKind, SlotNo};
use crate::recovery::locate::{Slots, Standing};
use crate::recovery::replay::{Redo, State, is_dir, is_file, look};

impl Redo<'_> {
    pub(crate) fn clear(&self, slots: &mut Slots, applied: &mut Applied) -> Result<()> {
        let mut standing = self.directories_set_aside(slots)?;
        let copies = self.remove_what_goes(slots, &standing, applied)?;
        self.backend.sync()?;
        self.untangle_directories(slots, &mut standing, applied)?;
        for (number, slot, here) in copies {
            let names = [slots.all(slot), vec![here.clone()]].concat();
            let copied = self.copy_apart(slot, &names, slots).map(drop);
            self.unless_tangled(StepNo::Clear(number), &here, copied, applied)?;
        }
        for (number, step) in self.steps.clear.iter().enumerate() {
            let no = StepNo::Clear(number);
            if applied.refused.has(no) {
                continue;
            }
            let done = match step {
                ClearStep::Detach { from, slot, kind } => {
                    self.detach(from, (*slot, *kind), slots, &mut standing)
                }
                ClearStep::RemoveFile { .. } => Ok(()),
                ClearStep::RemoveDir { path } => self.remove_dir_again(path, &standing, applied),
            };
            self.or_refuse(no, step.path(), done, applied)?;
        }
        Ok(())
    }

    /// Returns the directories that move, with their slots; outer ones first.
    fn moved_directories(&self) -> Vec<(usize, &RelPath, SlotNo)> {
        let mut moved: Vec<(usize, &RelPath, SlotNo)> = (self.steps.clear.iter().enumerate())
            .filter_map(|(number, step)| match step {
                ClearStep::Detach {
                    from,
                    slot,
                    kind: PlainKind::Directory,
                } => Some((number, from, *slot)),
                _ => None,
            })
            .collect();
        moved.sort_by_key(|(_, from, _)| from.depth());
        moved
    }

    /// Finds out which of the directories that move are in their slots already. One that is under
    /// both names is found under either.
    fn directories_set_aside(&self, slots: &mut Slots) -> Result<Standing> {
        let moved = self.moved_directories().into_iter();
        self.locate_in_slots(moved.map(|(_, from, slot)| (from, slot)), slots)
    }

    /// Notes which of these directories, each with its name outside, are in their slots. The outer
    /// ones come first.
    pub(crate) fn locate_in_slots<'a>(
        &self,
        directories: impl Iterator<Item = (&'a RelPath, SlotNo)>,
        slots: &mut Slots,
    ) -> Result<Standing> {
        let mut standing = Standing::default();
        for (path, slot) in directories {
            self.drop_hollow_if_it_can(slot, &standing.locate_name(path), slots)?;
            if let Some(name) = slots.newest(slot) {
                standing.note(path, name);
            }
        }
        Ok(standing)
    }

    /// Removes names, before anything is written. Returns the files that are in their slots and at
    /// their old names, and that must be copied, with the numbers of their steps and these names.
    fn remove_what_goes(
        &self,
        slots: &mut Slots,
        standing: &Standing,
        applied: &mut Applied,
    ) -> Result<Vec<(usize, SlotNo, RelPath)>> {
        let mut copies = Vec::new();
        for (number, step) in self.steps.clear.iter().enumerate() {
            let done = match step {
                ClearStep::Detach {
                    from,
                    slot,
                    kind: PlainKind::File,
                } => {
                    let here = standing.locate_name(from);
                    self.detached_twice(*slot, &here, slots).map(|twice| {
                        if twice {
                            copies.push((number, *slot, here));
                        }
                    })
                }
                ClearStep::RemoveFile { path } => {
                    self.remove_again(number, path, standing, applied)
                }
                ClearStep::RemoveDir { path } => {
                    // If something must be moved out of it first, it is removed later; a refusal is
                    // noted then.
                    match self.backend.remove_dir(&standing.locate_name(path)) {
                        Err(error) if error.is_gone() => Err(error.into()),
                        _ => Ok(()),
                    }
                }
                ClearStep::Detach { .. } => Ok(()),
            };
            self.or_refuse(StepNo::Clear(number), step.path(), done, applied)?;
        }
        Ok(copies)
    }

    fn untangle_directories(
        &self,
        slots: &mut Slots,
        standing: &mut Standing,
        applied: &mut Applied,
    ) -> Result<()> {
        for (number, from, slot) in self.moved_directories() {
            let untangled = self.untangle_directory(from, slot, slots, standing);
            self.unless_tangled(StepNo::Clear(number), from, untangled, applied)?;
        }
        Ok(())
    }

    fn untangle_directory(
        &self,
        from: &RelPath,
        slot: SlotNo,
        slots: &mut Slots,
        standing: &mut Standing,
    ) -> Result<()> {
        let mut names = slots.all(slot);
        if names.is_empty() {
            return Ok(());
        }
        let here = standing.locate_name(from);
        if is_dir(look(self.backend, &here)?.as_ref()) {
            if self.are_twins(&names, &here)? {
                names.push(here);
            } else if self.backend.read_dir(&here)?.is_empty() {
                // A check of the file system may have left a directory under the old name.
                self.backend.remove_dir(&here)?;
            }
        }
        let one = self.one_directory(slot, &names, slots)?;
        standing.note(from, one);
        Ok(())
    }

    fn detach(
        &self,
        from: &RelPath,
        (slot, kind): (SlotNo, PlainKind),
        slots: &mut Slots,
        standing: &mut Standing,
    ) -> Result<()> {
        if slots.newest(slot).is_some() {
            return Ok(());
        }
        let here = standing.locate_name(from);
        let found = look(self.backend, &here)?;
        // A missing file is reported when it is missing under its new name; a file of another kind
        // is somebody else's.
        let is_it = match kind {
            PlainKind::Directory => is_dir(found.as_ref()),
            PlainKind::File => is_file(found.as_ref()),
        };
        if !is_it {
            return Ok(());
        }
        let to = layout::slot_path(self.batch, slot);
        match self.backend.rename(&here, &to) {
            Err(error) if is_across(&error) && kind == PlainKind::File => {
                self.detach_across(&here, &to, slot)?;
            }
            // Nothing was refused.
            Err(error) if has_moved(self.backend, &here, &to) => {
                tracing::debug!(%error, "an error after the effect");
            }
            result => result?,
        }
        slots.only(slot, &to);
        if kind == PlainKind::Directory {
            standing.note(from, to);
        }
        Ok(())
    }

    /// Deals with a moved file that may be in its slot and at its old name at once. A damaged copy
    /// is removed. If both are whole they share clusters: both are removed if the SSD has the
    /// bytes, and the file is written again when it is placed. Returns true if it must be copied
    /// instead.
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
        let is_ours = moved.is_some_and(|moved| moved.may_be(&found));
        // If renames are atomic, it is at both because it is being copied to another file system.
        // The copy may lack its time, or some attributes: it is made again.
        if self.backend.renames_atomically() && is_ours && here_state == State::Good {
            for name in &names {
                self.remove_all(name)?;
            }
            slots.forget(slot);
            return Ok(false);
        }
        // Beside a whole file of ours it is part of a copy, made on the way to another file system.
        if self.is_theirs(slot, &newest)? && !(is_ours && here_state == State::Good) {
            if is_ours {
                self.remove_all(here)?;
            }
            return Ok(false);
        }
        let same = match (&moved, &in_slot) {
            (None, Some(meta)) => {
                (meta.kind, meta.size, meta.modified) == (found.kind, found.size, found.modified)
            }
            _ => slot_state == State::Good && here_state == State::Good,
        };
        if same && !self.is_kept(slot) {
            return Ok(true);
        }
        // A truncated file is useless; another time marks another file, which is somebody else's.
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

    /// Sets a file aside that is on another file system than the staging directory.
    fn detach_across(&self, here: &RelPath, to: &RelPath, slot: SlotNo) -> Result<()> {
        let placer = self.placer();
        placer.note_across()?;
        placer.copy(here, to)?;
        self.backend.sync()?;
        let found = look(self.backend, here)?;
        let is_it =
            |moved: ExpectedFile, found: &Metadata| placer.is_as_expected(here, found, &moved);
        match (self.moved(slot), &found) {
            (Some(moved), Some(found)) if !is_it(moved, found)? => {
                self.remove_all(to)?;
                Err(self.unfinished(format!("somebody else has changed {here} meanwhile")))
            }
            (_, None) => Ok(()),
            _ => {
                let removed = self.remove_all(here);
                // An error may come after the effect: then the copy is the only one.
                if removed.is_err() && look(self.backend, here)?.is_some() {
                    self.remove_all(to)?;
                }
                removed
            }
        }
    }

    /// Removes a file that may be under its name, or set aside already, or both.
    fn remove_again(
        &self,
        number: usize,
        path: &RelPath,
        standing: &Standing,
        applied: &mut Applied,
    ) -> Result<()> {
        let placer = self.placer();
        let here = standing.locate_name(path);
        let aside = layout::removed_path(self.batch, number);
        let known = self.known.removed.get(path);
        let found = look(self.backend, &here)?;
        let set_aside = match look(self.backend, &aside) {
            Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => {
                placer.back_or_aside(&aside, &here, applied)?;
                return Err(error.into());
            }
            looked => looked?,
        };
        let is_ours =
            |meta: &Metadata| known.map_or(is_file(Some(meta)), |known| known.may_be(meta));
        match (set_aside, found) {
            (None, None) => Ok(()),
            // Truncated by a check of the file system.
            (Some(cut), None) if is_ours(&cut) && known.is_some_and(|it| it.size != cut.size) => {
                self.remove_all(&aside)
            }
            (Some(_), None) => placer.removed_or_back(&aside, &here, known, applied),
            // Two names of one file, which share its clusters: both are removed before anything is
            // written.
            (Some(set_aside), Some(found)) if is_ours(&set_aside) && is_ours(&found) => {
                self.remove_all(&here)?;
                self.remove_all(&aside)
            }
            (Some(set_aside), Some(_)) if is_ours(&set_aside) => {
                applied.garbage.push(aside);
                applied.theirs.push(path.clone());
                Ok(())
            }
            (Some(_), Some(_)) => placer.keep_aside(&aside, path, applied),
            (None, Some(found)) if !is_ours(&found) => {
                // Somebody else has put a file there since. The batch does not concern it.
                tracing::warn!(%path, "was removed in the mount, but another program has changed \
                    it; it stays");
                applied.theirs.push(path.clone());
                Ok(())
            }
            // Truncated by a check of the file system, or with another entry of the same name
            // beside it.
            (None, Some(found)) if known.is_none_or(|known| found.size != known.size) => {
                self.remove_all(&here)
            }
            (None, Some(_)) => {
                placer.remove(number, &here, known, applied)?;
                // There may be another entry of the same name.
                match look(self.backend, &here)? {
                    Some(again) if is_ours(&again) => {
                        self.remove_all(&here)?;
                        // What shares its clusters is no version any more.
                        match self.manners.keeps_versions {
                            true => self.remove_all(&aside),
                            false => Ok(()),
                        }
                    }
                    _ => Ok(()),
                }
            }
        }
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
                match applied.refused.holds(path) {
                    true => Err(error.into()),
                    false => {
                        applied.kept.push(path.clone());
                        Ok(())
                    }
                }
            }
            result => Ok(result?),
        }
    }
}
