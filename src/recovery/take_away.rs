//! Replays removals of the second phase: names that must not stay are removed before anything is
//! written, and versions of others are kept.
//!
//! A crash after some of the removals leaves files that are at neither name, and the SSD has them:
//! [`judge`](super::judge) has made sure of that before.

use crate::apply::Applied;
use crate::apply::refused::is_local;
use crate::apply::staging::make_lost_found;
use crate::core::{Metadata, Name, RelPath};
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::recovery::judge::{Task, Wanted};
use crate::recovery::locate::Slots;
use crate::recovery::replay::{Redo, State, look};

impl Redo<'_> {
    /// Removes names that must not stay: older copies of the file, and the file under its name.
    /// Somebody else's file is kept.
    pub(super) fn take_away(
        &self,
        file: &Wanted<'_>,
        task: Task,
        (here, seen): (&RelPath, Option<&Metadata>),
        slots: &mut Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        match task {
            Task::Done | Task::Rebuild | Task::RebuildAside => {
                for name in slots.all(file.slot) {
                    self.remove_own(file, &name, applied)?;
                }
                slots.forget(file.slot);
            }
            // Copies were made of the older names.
            Task::Move | Task::MoveAside => {
                if let Some(newest) = slots.newest(file.slot) {
                    for name in slots.all(file.slot).iter().filter(|name| **name != newest) {
                        self.remove_own(file, name, applied)?;
                    }
                    slots.only(file.slot, &newest);
                }
            }
            Task::Patch
            | Task::Replace
            | Task::ReplaceTheirs
            | Task::LeaveTheirs
            | Task::CopyApart
            | Task::Vanished
            | Task::Refused => {}
        }
        match task {
            Task::Move | Task::Rebuild => self.take_old_away(file, (here, seen), applied)?,
            Task::MoveAside | Task::RebuildAside => {
                self.placer().keep_theirs(here, file.to, applied)?;
            }
            Task::Done
            | Task::Patch
            | Task::Replace
            | Task::ReplaceTheirs
            | Task::LeaveTheirs
            | Task::CopyApart
            | Task::Vanished
            | Task::Refused => {}
        }
        match task {
            Task::Refused => Ok(()),
            _ => self.see_to_set_aside((file, task), here, slots, applied),
        }
    }

    /// Removes the file under the name of `file`, unless it has become somebody else's since it was
    /// `seen`.
    fn take_old_away(
        &self,
        file: &Wanted<'_>,
        (here, seen): (&RelPath, Option<&Metadata>),
        applied: &mut Applied,
    ) -> Result<()> {
        let Some(found) = look(self.backend, here)? else {
            return Ok(());
        };
        if seen != Some(&found) && self.is_foreign(file, &found) {
            return self.placer().keep_theirs(here, file.to, applied);
        }
        if self.manners.keeps_versions && self.keep_old(file, (here, &found))? {
            return Ok(());
        }
        self.remove_all(here)?;
        // A file that was set aside from here may be on the clusters that have just been freed, and
        // must not be removed later.
        let replaced = self.known.replaced.get(&file.slot);
        for old in self.set_aside_for(file) {
            if let Some(aside) = look(self.backend, &old)?
                && !self.backend.renames_atomically()
                && replaced.is_some_and(|known| known.may_be(&aside))
            {
                self.remove_all(&old)?;
            }
        }
        Ok(())
    }

    /// Sets the file at `here` aside, if it is the one that `file` replaces, instead of removing
    /// it. Returns false if it must be removed.
    fn keep_old(&self, file: &Wanted<'_>, (here, found): (&RelPath, &Metadata)) -> Result<bool> {
        let Some(replaced) = self.known.replaced.get(&file.slot) else {
            return Ok(false);
        };
        if self.is_new(file, here, found)?
            || file.patch.is_some()
            || !self.placer().is_as_expected(here, found, replaced)?
        {
            return Ok(false);
        }
        let aside = layout::replaced_path(self.batch, file.slot);
        // If an interrupted rename has left it under both names, both go: a copy might get clusters
        // that were freed a moment ago, and that another name still claims.
        if look(self.backend, &aside)?.is_some() {
            return Ok(false);
        }
        self.backend.rename_new(here, &aside)?;
        // There may be another entry of the same name: of the new file, or of the same one.
        if let Some(again) = look(self.backend, here)? {
            self.remove_all(here)?;
            if replaced.may_be(&again) {
                self.remove_all(&aside)?;
            }
        }
        Ok(true)
    }

    /// Returns whether the file at `path` is the one that the batch places. The replaced one may
    /// have the same size, and nearly the same time.
    fn is_new(&self, file: &Wanted<'_>, path: &RelPath, found: &Metadata) -> Result<bool> {
        match &file.content {
            Some(content) if content.agrees(found) => {
                Ok(self.whole(path, Some(found), Some(content))? == State::Good)
            }
            _ => Ok(false),
        }
    }

    /// Deals with a file that was set aside for `file`: the replaced one, or another program's
    /// version of it.
    fn see_to_set_aside(
        &self,
        (file, task): (&Wanted<'_>, Task),
        here: &RelPath,
        slots: &Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        // What is under the name is not on the clusters of a torn file.
        let is_apart = || match task {
            Task::Done | Task::Move | Task::Rebuild => true,
            Task::Patch => {
                let found = look(self.backend, here);
                let whole =
                    found.and_then(|found| self.whole(here, found.as_ref(), file.content.as_ref()));
                matches!(whole, Ok(State::Good))
            }
            _ => false,
        };
        for old in self.set_aside_for(file) {
            let found = match look(self.backend, &old) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                // It goes back to its name, if that is free, and the step is set aside.
                Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => {
                    match self.backend.rename_new(&old, file.to) {
                        Ok(()) => return Err(error.into()),
                        Err(_) => self.placer().keep_aside(&old, file.to, applied)?,
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            let replaced = self.known.replaced.get(&file.slot);
            let is_cut_off =
                replaced.is_some_and(|known| known.may_be(&found) && found.size != known.size);
            if is_cut_off || (self.is_ours_in_part(file, &old, slots) && is_apart()) {
                self.remove_all(&old)?;
                continue;
            }
            let expected = replaced.copied().unwrap_or(ExpectedFile::ANYTHING);
            self.placer()
                .keep_or_drop(&old, file.to, &expected, applied)?;
        }
        Ok(())
    }

    /// Removes the file in the slot. If names are exchanged it may be the one from the file's name,
    /// and that may be somebody else's version; so may a moved file.
    fn remove_own(&self, file: &Wanted<'_>, name: &RelPath, applied: &mut Applied) -> Result<()> {
        // Written again from the SSD. What it is exchanged with is the torn file.
        if file.patch.is_some() {
            return self.remove_all(name);
        }
        if self.is_theirs(file.slot, name)? {
            return self.placer().keep_aside(name, file.to, applied);
        }
        if self.backend.renames_atomically()
            && let Some(found) = look(self.backend, name)?
        {
            if self.is_foreign(file, &found) {
                return self.placer().keep_aside(name, file.to, applied);
            }
            // The replaced file, exchanged with the new one.
            let aside = layout::replaced_path(self.batch, file.slot);
            if self.manners.keeps_versions
                && let Some(replaced) = self.known.replaced.get(&file.slot)
                && !self.is_new(file, name, &found)?
                && self.placer().is_as_expected(name, &found, replaced)?
                && look(self.backend, &aside)?.is_none()
            {
                let placer = self.placer();
                return placer.keep_until_end(file.slot, name.clone(), applied);
            }
        }
        self.remove_all(name)
    }

    /// Keeps a file in a slot that is not the one that was moved there. It gets no final name.
    pub(super) fn keep_damaged(&self, file: &Wanted<'_>, slots: &mut Slots) -> Result<()> {
        for from in slots.all(file.slot) {
            self.to_lost_found(&from, file.to, &file.slot.file_name(), "damaged")?;
        }
        slots.forget(file.slot);
        Ok(())
    }

    /// Keeps the file at `from`, which is in the way of the name `to`.
    pub(crate) fn to_lost_found(
        &self,
        from: &RelPath,
        to: &RelPath,
        slot: &str,
        what: &str,
    ) -> Result<()> {
        let dir = layout::lost_found();
        make_lost_found(self.backend)?;
        let mut number = 0;
        loop {
            let name = format!("{:016x}-{slot}-{what}{number}", self.batch.0);
            let name = Name::new(name.as_bytes()).expect("names formed here are well formed");
            let kept = dir.join(&name);
            if look(self.backend, &kept)?.is_none() {
                tracing::error!(path = %to, kept = %kept, what, "kept on the drive, not under its \
                    name");
                return Ok(self.backend.rename(from, &kept)?);
            }
            number += 1;
        }
    }
}
