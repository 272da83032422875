//! Looks for external changes, as the flusher runs them: between batches the backend is compared
//! with the index, and what others have changed is imported. The served file system compares and
//! imports ([`crate::flush::Hooks`]); this module decides when.
//!
//! The look holds the turn, and yields to a waiting flush after each directory. A batch that is
//! written in between does no harm: [`crate::flush::Hooks::take_in`] lists the differing
//! directories again, without yielding. The marker is read before and after that, so another
//! directory in the drive's place is never taken for a volume that somebody has emptied.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::apply::Applied;
use crate::core::Ino;
use crate::drive::Backend;
use crate::error::{FlushError, Result};
use crate::flush::Flusher;
use crate::flush::open_batch::OpenBatch;
use crate::flush::turn::{LookTurn, Writing};
use crate::plan::merge::Changes;

/// How many directories are imported together. A file that was moved between two of them is
/// recognized as moved.
const TOGETHER: usize = 1024;

impl Flusher {
    /// Looks for external changes in `from` and, if `below`, in everything below it that the index
    /// knows, and imports them. Stops when `enough` says so; what was imported by then stays.
    ///
    /// # Errors
    /// If there is no backend, it is the wrong one, does not answer, or the index fails;
    /// [`FlushError::TimedOut`] if `enough` stopped it.
    pub fn refresh(&self, from: Ino, below: bool, enough: &dyn Fn() -> bool) -> Result<Changes> {
        let mut turn = self.turn.for_look(enough)?;
        let refreshed = self.refresh_between(&mut turn, from, below, enough);
        if refreshed.is_ok() && from == Ino::ROOT && below {
            self.show_news();
        }
        refreshed
    }

    /// Shows what the catalog says of files that were unknown so far, and of the directories above
    /// them: a look at everything has found them now.
    fn show_news(&self) {
        if self.catalog.take_news() {
            self.show_catalog();
        }
    }

    fn refresh_between(
        &self,
        turn: &mut LookTurn<'_>,
        from: Ino,
        below: bool,
        enough: &dyn Fn() -> bool,
    ) -> Result<Changes> {
        self.finish_open_batch(turn)?;
        let mut open = vec![from];
        let mut differing = Vec::new();
        while let Some(dir) = open.pop() {
            if enough() {
                return Err(FlushError::TimedOut);
            }
            let backend = self.for_reading()?;
            match self.parts.hooks.look_at(&*backend, dir) {
                Ok((differs, dirs)) => {
                    if differs {
                        differing.push(dir);
                    }
                    if below {
                        open.extend(dirs);
                    }
                }
                // The directory may be damaged, or gone: the import finds out, and names it.
                Err(FlushError::Backend(error)) if !error.is_stalled() => {
                    tracing::debug!(%error, "the directory cannot be compared; it is listed again");
                    differing.push(dir);
                }
                Err(error) => return Err(error),
            }
            self.let_flush_pass(turn)?;
        }
        let mut changes = Changes::default();
        for together in differing.chunks(TOGETHER) {
            let backend = self.for_reading()?;
            changes.add(self.take_in(&*backend, together)?);
            self.let_flush_pass(turn)?;
        }
        Ok(changes)
    }

    /// Imports the external changes in `dirs`. The caller has the turn, and no batch is open.
    pub(crate) fn take_in(&self, backend: &dyn Backend, dirs: &[Ino]) -> Result<Changes> {
        let check = || self.check_marker(backend);
        check()?;
        let dirs = self.with_those_above(dirs)?;
        let mut wrong = None;
        let taken = self.parts.hooks.take_in(backend, &dirs, &mut || {
            wrong = check().err();
            wrong.is_none()
        });
        match wrong {
            Some(wrong) => Err(wrong),
            None => taken,
        }
    }

    /// Imports the external changes that a batch has met, so that the mount shows both versions.
    /// What cannot be read now is found by the next look.
    pub(super) fn import_met(&self, backend: &dyn Backend, applied: &Applied) {
        let mut dirs = Vec::new();
        for path in applied.dirs_to_look_at() {
            match self.parts.index.lock().find_stored(&path) {
                Ok(Some(dir)) => dirs.push(dir),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "external changes cannot be imported now"),
            }
        }
        if dirs.is_empty() {
            return;
        }
        match self.take_in(backend, &dirs) {
            Ok(changes) => tracing::info!(?changes, "others have changed the drive meanwhile"),
            Err(error) => tracing::warn!(%error, "external changes cannot be imported now"),
        }
    }

    /// Imports the external changes in `dirs`, which a batch met before its commit. Their conflicts
    /// are named by the next report.
    pub(super) fn import_meanwhile(&self, backend: &dyn Backend, dirs: &[Ino]) -> Result<()> {
        let changes = self.take_in(backend, dirs)?;
        self.conflicts.note(changes.named.clone());
        tracing::info!(?changes, "others have changed the drive");
        Ok(())
    }

    /// Adds the directories above `dirs`: if a directory is gone, that shows in its parent.
    fn with_those_above(&self, dirs: &[Ino]) -> Result<Vec<Ino>> {
        let mut all: BTreeSet<Ino> = dirs.iter().copied().collect();
        for dir in dirs {
            let mut at = *dir;
            while at != Ino::ROOT {
                let place = self.parts.index.lock().a_place_of(at)?;
                match place {
                    Some((key, _)) if all.insert(key.parent) => at = key.parent,
                    _ => break,
                }
            }
        }
        Ok(all.into_iter().collect())
    }

    /// Finishes the batch that is open, so that names on the backend are what the index says.
    fn finish_open_batch(&self, turn: &LookTurn<'_>) -> Result<()> {
        let backend = &*self.backend()?;
        self.check_marker(backend)?;
        let is_open = self.parts.index.lock().resume_batch()?.is_some();
        let _writing = is_open.then(|| Writing::begin(&*self.parts.hooks, backend));
        let open_batch = OpenBatch {
            flusher: self,
            backend,
            full_is_refusal: false,
        };
        open_batch.recover()?;
        turn.note_no_batch();
        Ok(())
    }

    /// Yields to a flush that waits. If that leaves a batch open, finishes the batch.
    fn let_flush_pass(&self, turn: &mut LookTurn<'_>) -> Result<()> {
        turn.let_flush_pass();
        if self.parts.index.lock().active_batch().is_some() {
            return self.finish_open_batch(turn);
        }
        turn.note_no_batch();
        Ok(())
    }

    /// Returns the backend for readers, whose calls end in bounded time: a look is given up where a
    /// flush would wait.
    fn for_reading(&self) -> Result<Arc<dyn Backend>> {
        self.parts.drive.get().ok_or(FlushError::Detached)
    }
}
