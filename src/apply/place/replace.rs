//! Replaces a file that the batch expected by a new one.
//!
//! The present file is compared after it was exchanged, linked or moved aside, so that no change by
//! others is lost.

use crate::apply::Applied;
use crate::apply::place::{Placer, is_across};
use crate::apply::refused::is_local;
use crate::core::RelPath;
use crate::drive::{BackendError, is_absent};
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::format::steps::SlotNo;

impl Placer<'_> {
    pub(super) fn replace(
        &self,
        slot: SlotNo,
        from: &RelPath,
        to: &RelPath,
        expected: &ExpectedFile,
        applied: &mut Applied,
    ) -> Result<()> {
        let swapped = match self.backend.renames_atomically() {
            true => self.backend.exchange(from, to),
            false => Ok(false),
        };
        match swapped {
            Ok(true) => {
                match self.look(from) {
                    Err(FlushError::Backend(error))
                        if is_local(self.backend, self.batch, &error) =>
                    {
                        // Undone.
                        return match self.backend.exchange(from, to) {
                            Ok(true) => Err(error.into()),
                            _ => self.keep_aside(from, to, applied),
                        };
                    }
                    found => self.keep_or_drop_found((from, found?), to, expected, applied)?,
                }
                // With a journal, no crash can mix up the freed clusters with a later file's.
                return match applied.garbage.pop_if(|last| last == from) {
                    Some(old) if self.manners.keeps_versions => {
                        self.keep_until_end(slot, old, applied)
                    }
                    Some(old) => self.drop_now(&old, applied),
                    None => Ok(()),
                };
            }
            Ok(false) => {}
            Err(error) if is_absent(&error) || is_across(&error) => {}
            Err(error) => return Err(error.into()),
        }
        if self.backend.renames_atomically()
            && self.replace_linked(slot, (from, to), expected, applied)?
        {
            return Ok(());
        }
        let old = match self.set_aside(slot, to) {
            Ok(Some(old)) => old,
            Ok(None) => return self.fill(slot, from, to, applied),
            // The staging directory cannot grow. The name is empty between these two calls.
            Err(error) if error.is_full() => {
                return self.replace_in_place(from, to, expected, applied);
            }
            Err(error) => return Err(error.into()),
        };
        if let Err(error) = self.fill(slot, from, to, applied) {
            // Its directory may be gone. Then the file ends like any replaced one, as the new
            // version is in the cache.
            if let Err(refused) = self.backend.rename_new(&old, to) {
                tracing::warn!(error = %refused, path = %to, "the old version could not be put \
                    back");
                self.keep_or_drop(&old, to, expected, applied)?;
            }
            return Err(error);
        }
        match self.look(&old) {
            Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => {
                // Undone.
                let undone = (self.backend.rename_new(to, from))
                    .and_then(|()| self.backend.rename_new(&old, to));
                match undone {
                    Ok(()) => Err(error.into()),
                    Err(_) => self.keep_aside(&old, to, applied),
                }
            }
            found => self.keep_or_drop_found((&old, found?), to, expected, applied),
        }
    }

    /// The same where names cannot be exchanged, but one rename replaces a file at once, as on NFS:
    /// the file at `to` gets a second name first, so that the name is never empty. A replacement by
    /// another program between the two calls is not noticed; a write to the file is. Returns false
    /// if the backend has no links, or if there is nothing to replace.
    fn replace_linked(
        &self,
        slot: SlotNo,
        (from, to): (&RelPath, &RelPath),
        expected: &ExpectedFile,
        applied: &mut Applied,
    ) -> Result<bool> {
        let old = layout::replaced_path(self.batch, slot);
        match self.backend.make_hard_link(to, &old) {
            Ok(()) => {}
            Err(error) if error.is_refusal() => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        if let Err(error) = self.backend.rename(from, to) {
            // Only a second name.
            let _ = self.backend.remove_file(&old);
            return match is_across(&error) || error.is_taken() {
                true => Ok(false),
                false => Err(error.into()),
            };
        }
        self.keep_or_drop(&old, to, expected, applied)?;
        Ok(true)
    }

    /// Gives the replaced file at `old`, in the slot, the name of one that ends with the batch.
    pub(crate) fn keep_until_end(
        &self,
        slot: SlotNo,
        old: RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        let aside = layout::replaced_path(self.batch, slot);
        match self.backend.rename_new(&old, &aside) {
            Ok(()) => applied.garbage.push(aside),
            Err(error) if is_local(self.backend, self.batch, &error) => {
                tracing::warn!(%error, "the old version is perhaps not kept");
                // An error may come after the effect.
                applied.garbage.extend([old, aside]);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn drop_now(&self, old: &RelPath, applied: &mut Applied) -> Result<()> {
        match self.backend.remove_file(old) {
            Err(error) if error.is_refusal() && !is_absent(&error) => {
                applied.garbage.push(old.clone());
                Ok(())
            }
            Err(error) if !is_absent(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Moves the file at `path` out of the way of the content of `slot`. Returns `None` if there is
    /// none.
    pub(super) fn set_aside(
        &self,
        slot: SlotNo,
        path: &RelPath,
    ) -> std::result::Result<Option<RelPath>, BackendError> {
        let mut old = layout::replaced_path(self.batch, slot);
        let mut moved = self.backend.rename(path, &old);
        if moved.as_ref().is_err_and(is_across)
            && let Some((dir, _)) = path.split_last()
        {
            self.note_across()?;
            old = layout::near_old_path(&dir, self.batch, slot);
            moved = self.backend.rename(path, &old);
        }
        match moved {
            Ok(()) => Ok(Some(old)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace_in_place(
        &self,
        from: &RelPath,
        to: &RelPath,
        expected: &ExpectedFile,
        applied: &mut Applied,
    ) -> Result<()> {
        let found = self.look(to)?;
        if let Some(found) = &found
            && !self.is_as_expected(to, found, expected)?
        {
            self.keep_theirs(to, to, applied)?;
        }
        Ok(self.backend.rename(from, to)?)
    }
}
