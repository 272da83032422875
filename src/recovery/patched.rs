//! Replays patches of large files ([`crate::apply::patch`]).
//!
//! A patch is written again only into a file that is as the batch has left it. It is looked at once
//! more right before each write, because the replay of other files may have taken hours. Where
//! others have written into it, or where the drive refuses the blocks or returns other bytes
//! afterwards, the whole file is written into its slot from the SSD, and replaces what is under the
//! name. Nothing is taken from the name before all of it is on the drive. If there is no space for
//! it, the name keeps what it has, and is named: the rest of the batch does not wait for that.
//!
//! A crash in the middle leaves the note that the patch was begun, and perhaps a part of the file
//! in its slot. The next replay judges both anew.

use crate::apply::Applied;
use crate::apply::blocked::Blocked;
use crate::apply::explain::explain_alone;
use crate::apply::patch;
use crate::apply::patch::{Access, Begun, Failure, Patch};
use crate::apply::refused::{Why, errno_of};
use crate::core::{Metadata, RelPath};
use crate::drive::{BackendError, WRITE, hash_file};
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::format::steps::FileContent;
use crate::recovery::judge::{Task, Wanted};
use crate::recovery::locate::Slots;
use crate::recovery::replay::{Redo, look};

/// What came of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    Done,
    /// Others have written into the file.
    Theirs,
}

impl Redo<'_> {
    /// Notes, durably, which patches may be written from now on. The sync after the removals makes
    /// it so. A file whose note the drive does not take, is replaced, or left as it is.
    pub(super) fn note_begun(
        &self,
        wanted: &[Wanted<'_>],
        tasks: &mut [Task],
        slots: &mut Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        for (file, task) in wanted.iter().zip(tasks) {
            if *task != Task::Patch || slots.was_begun(file.slot) {
                continue;
            }
            match patch::note_begun(self.backend, self.batch, file.slot) {
                Ok(()) => slots.note_begun(file.slot),
                Err(error)
                    if error.is_full()
                        || self.manners.is_local(self.backend, self.batch, &error) =>
                {
                    *task = self.do_without_note(file, &error, applied);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn do_without_note(
        &self,
        file: &Wanted<'_>,
        error: &BackendError,
        applied: &mut Applied,
    ) -> Task {
        tracing::warn!(%error, path = %file.to, "not patched");
        if self.is_kept(file.slot) {
            return Task::Replace;
        }
        let why = Why::Patch(errno_of(error));
        applied.refused.note(file.step(), file.to, why);
        Task::Refused
    }

    /// Writes, durably, what patched files grow by, before any of their old bytes is written over.
    pub(super) fn grow_patches(
        &self,
        wanted: &[Wanted<'_>],
        (tasks, seen): (&mut [Task], &mut [Option<Metadata>]),
        (blocked, slots): (&Blocked, &mut Slots),
        applied: &mut Applied,
    ) -> Result<()> {
        for ((file, task), seen) in wanted.iter().zip(tasks).zip(seen) {
            if *task == Task::Patch && blocked.why(file.to).is_none() {
                let tried = self.try_patch(file, seen, |patch, expected, _| {
                    patch.grow(self.backend, file.to, expected.modified)
                });
                self.or_write_whole((file, task), tried, slots, applied)?;
            }
        }
        Ok(self.backend.sync()?)
    }

    /// Writes a file that is patched, or replaced because it cannot be.
    pub(super) fn write_patched(
        &self,
        file: &Wanted<'_>,
        (task, seen): (&mut Task, &mut Option<Metadata>),
        slots: &mut Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        if *task != Task::Patch {
            return self.write_whole((file, task), slots, applied);
        }
        let tried = self.try_patch(file, seen, |patch, _, content| {
            patch.write(self.backend, file.to, content.modified)
        });
        self.or_write_whole((file, task), tried, slots, applied)
    }

    /// Takes the next step of a patch with `write`, if the file is still the one that was `seen`,
    /// or one that the patch completes.
    fn try_patch(
        &self,
        file: &Wanted<'_>,
        seen: &mut Option<Metadata>,
        write: impl FnOnce(&Patch, &ExpectedFile, &FileContent) -> std::result::Result<(), Failure>,
    ) -> Result<Tried> {
        let expected = self.known.replaced.get(&file.slot);
        let (Some((_, content)), Some(expected)) = (file.patch, expected) else {
            return Ok(Tried::Done);
        };
        let Some(opened) = self.open_patch(file)? else {
            return Err(self.unfinished(format!("the staged patch of {} is damaged", file.to)));
        };
        let found = look(self.backend, file.to)?;
        if found != *seen && !self.is_completed(file, found.as_ref(), &opened)? {
            return Ok(Tried::Theirs);
        }
        let written = write(&opened, expected, content);
        // It has another time now, and perhaps another size.
        *seen = look(self.backend, file.to)?;
        match written {
            Ok(()) => Ok(Tried::Done),
            Err(Failure::Foreign) => Ok(Tried::Theirs),
            Err(Failure::Unchanged(error) | Failure::Torn(error)) => Err(error.into()),
        }
    }

    fn open_patch(&self, file: &Wanted<'_>) -> Result<Option<Patch>> {
        let Some((wanted, _)) = file.patch else {
            return Ok(None);
        };
        let from = layout::patch_path(self.batch, file.slot);
        Patch::open(self.backend, &patch::usual, &from, wanted)
    }

    /// Returns whether the file that was `found` under its name is one of ours that `patch`
    /// completes, and may be.
    fn is_completed(
        &self,
        file: &Wanted<'_>,
        found: Option<&Metadata>,
        patch: &Patch,
    ) -> Result<bool> {
        let (Some(found), Some((_, content))) = (found, file.patch) else {
            return Ok(false);
        };
        let access = Access::given(&self.steps.attributes, file.to);
        if !patch::may_be_patched(found) || !access.may_be_given_later(found) {
            return Ok(false);
        }
        let by = (self.backend, &patch::usual as &patch::Open);
        patch.completes(by, file.to, content, Begun::Maybe)
    }

    /// If the drive refuses the patch, or others have written into the file, it is written again as
    /// a whole.
    fn or_write_whole(
        &self,
        (file, task): (&Wanted<'_>, &mut Task),
        tried: Result<Tried>,
        slots: &mut Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        let is_kept = self.is_kept(file.slot);
        let instead = match tried {
            Ok(Tried::Done) => return Ok(()),
            Ok(Tried::Theirs) if is_kept => Task::ReplaceTheirs,
            Ok(Tried::Theirs) => {
                return Err(self.unfinished(format!(
                    "another program writes into {}; only the machine that wrote the batch can \
                     finish it",
                    file.to
                )));
            }
            Err(FlushError::Backend(error))
                if self.manners.is_local(self.backend, self.batch, &error)
                    && !error.is_full()
                    && is_kept =>
            {
                tracing::warn!(%error, path = %file.to, "cannot be patched");
                Task::Replace
            }
            Err(FlushError::Unfinished { problem, .. }) if is_kept => {
                tracing::warn!(problem, path = %file.to, "cannot be patched");
                Task::Replace
            }
            Err(error) => return self.or_set_aside(file, task, Err(error), applied),
        };
        *task = instead;
        self.write_whole((file, task), slots, applied)
    }

    /// Writes the whole file into its slot, unless it is there. If there is no space for it, or it
    /// cannot be had, the name keeps what it has.
    fn write_whole(
        &self,
        (file, task): (&Wanted<'_>, &mut Task),
        slots: &mut Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        match self.fill_slot(file, slots, applied) {
            Err(FlushError::Backend(error)) if error.is_full() => {
                let why = Why::Patch(libc::ENOSPC);
                applied.refused.note(file.step(), file.to, why);
                *task = Task::Refused;
                Ok(())
            }
            written => self.or_set_aside(file, task, written, applied),
        }
    }

    fn fill_slot(&self, file: &Wanted<'_>, slots: &mut Slots, applied: &mut Applied) -> Result<()> {
        if let Some(path) = slots.newest(file.slot)
            && self.is_whole_in(file, &path, &patch::usual)?
        {
            return Ok(());
        }
        let path = match slots.newest(file.slot) {
            Some(_) => slots.next_copy(file.slot),
            None => layout::slot_path(self.batch, file.slot),
        };
        applied.garbage.extend(slots.all(file.slot));
        let wanted = file.content.unwrap_or(ExpectedFile::ANYTHING);
        let rebuilt = self.rebuild(file.slot, &path, file.to, &wanted);
        let rebuilt = rebuilt.map_err(|error| match error {
            FlushError::Store(_) | FlushError::Cache { .. } => {
                let source = std::io::Error::from_raw_os_error(libc::EIO);
                tracing::warn!(%error, path = %file.to, "its bytes cannot be had from the cache");
                BackendError::new(WRITE, file.to, source).into()
            }
            error => error,
        })?;
        if !rebuilt {
            return Err(self.unfinished(format!(
                "the cache has other bytes for {} than the batch",
                file.to
            )));
        }
        slots.only(file.slot, &path);
        Ok(())
    }

    fn is_whole_in(&self, file: &Wanted<'_>, path: &RelPath, open: &patch::Open) -> Result<bool> {
        let Some((_, content)) = file.patch else {
            return Ok(false);
        };
        match look(self.backend, path)? {
            Some(found) if found.size == content.size => {
                Ok(hash_file(&*open(self.backend, path)?, path)? == content.hash)
            }
            _ => Ok(false),
        }
    }

    /// Reads back from the medium what was written into files, because an earlier attempt may have
    /// found other bytes there. All of it must have been synced. A file that is not as it was
    /// written is written whole, elsewhere on the medium, and synced.
    pub(super) fn check_patched(
        &self,
        wanted: &[Wanted<'_>],
        (tasks, seen): (&mut [Task], &mut [Option<Metadata>]),
        slots: &mut Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        let mut rewritten = Vec::new();
        let files = wanted.iter().zip(&mut *tasks).zip(seen).enumerate();
        for (at, ((file, task), seen)) in files {
            if *task != Task::Patch {
                continue;
            }
            let checked = match self.open_patch(file) {
                Ok(Some(opened)) => opened.is_written((self.backend, &patch::uncached), file.to),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            if matches!(checked, Ok(true)) {
                continue;
            }
            let tried = match checked {
                Err(error) => Err(error),
                Ok(_) if look(self.backend, file.to)? != *seen => Ok(Tried::Theirs),
                Ok(_) => {
                    tracing::error!(path = %file.to, "the drive returns other bytes than were \
                        written");
                    Err(other_bytes(file.to))
                }
            };
            self.or_write_whole((file, task), tried, slots, applied)?;
            rewritten.push(at);
        }
        if rewritten.is_empty() {
            return Ok(());
        }
        self.backend.sync()?;
        for at in rewritten {
            let (file, task) = (&wanted[at], &mut tasks[at]);
            if let (Task::Replace | Task::ReplaceTheirs, Some(path)) =
                (*task, slots.newest(file.slot))
                && !self.is_whole_in(file, &path, &patch::uncached)?
            {
                self.or_set_aside(file, task, Err(other_bytes(file.to)), applied)?;
            }
        }
        Ok(())
    }

    /// Returns whether the file that was set aside at `old` is the one that was being patched, has
    /// not all of its new bytes, and was not changed by others. The notes may be gone by now.
    pub(super) fn is_ours_in_part(&self, file: &Wanted<'_>, old: &RelPath, slots: &Slots) -> bool {
        // One that cannot be read may be anybody's.
        let opened = self.open_patch(file).ok().flatten();
        let (Some((_, content)), Some(opened)) = (file.patch, opened) else {
            return false;
        };
        let by = (self.backend, &patch::usual as &patch::Open);
        // Without a note, what is behind the old end of a file that has no new bytes is theirs.
        let has_ours = || {
            let was_begun = slots.was_begun(file.slot);
            was_begun || matches!(opened.is_untouched(self.backend, old), Ok(false))
        };
        matches!(opened.is_written(by, old), Ok(false))
            && has_ours()
            && matches!(opened.completes(by, old, content, Begun::Maybe), Ok(true))
    }

    /// Checks, without the SSD, that no file is torn whose step was refused: only the staged patch
    /// can repair it, so the batch must not end. What others have changed or removed is theirs.
    pub(super) fn check_refused_patches(
        &self,
        wanted: &[Wanted<'_>],
        slots: &Slots,
        applied: &Applied,
    ) -> Result<()> {
        if self.ssd.is_some() {
            return Ok(());
        }
        for file in wanted.iter().filter(|file| slots.was_begun(file.slot)) {
            let refusals = &applied.refused.steps;
            let refusal = refusals.iter().find(|refusal| refusal.step == file.step());
            if let Some(refusal) = refusal
                && refusal.why != Why::Torn
                && self.is_torn(file)?
            {
                return Err(self.unfinished(format!(
                    "{} is changed in part only: {}. Put that right and recover again, or attach \
                     the drive to the machine that wrote the batch",
                    file.to,
                    explain_alone(&refusal.why)
                )));
            }
        }
        Ok(())
    }

    /// Returns whether a file whose patch was begun may have a part of it.
    fn is_torn(&self, file: &Wanted<'_>) -> Result<bool> {
        if look(self.backend, file.to)?.is_none() {
            return Ok(false);
        }
        Ok(match self.open_patch(file)? {
            Some(opened) => !opened.is_unwritten(self.backend, file.to)?,
            None => true,
        })
    }

    /// Puts the file that was written again in the place of the one that could not be patched,
    /// which was `seen` before.
    pub(super) fn replace_patched(
        &self,
        file: &Wanted<'_>,
        (task, seen): (Task, Option<&Metadata>),
        slots: &mut Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        let from = slots
            .newest(file.slot)
            .ok_or_else(|| self.unfinished(format!("nothing is staged for {}", file.to)))?;
        let ours = seen.filter(|_| task == Task::Replace);
        let ours = ours.map(|seen| ExpectedFile {
            size: seen.size,
            modified: seen.modified,
            hash: None,
        });
        (self.placer()).place(file.slot, &from, file.to, ours.as_ref(), applied)?;
        slots.forget(file.slot);
        Ok(())
    }
}

fn other_bytes(path: &RelPath) -> FlushError {
    let source = std::io::Error::from_raw_os_error(libc::EIO);
    BackendError::new("read back", path, source).into()
}
