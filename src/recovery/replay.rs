//! Replays a committed batch after any interruption: an unplugged drive, a power cut, an error
//! halfway, a run elsewhere.
//!
//! The replay trusts only sizes and hashes. If the backend's rename is not atomic (exFAT: the new
//! entry is written, then the old one removed, in any order on the disk), a file that was being
//! moved may be under the old name, the new one, both or neither:
//!
//! - *both*: the two names share clusters. Removing one frees bytes that the other still claims,
//!   and a later write damages them. So both are removed before anything is written, and the file
//!   is written again from the SSD. Without the SSD (a file too large to be backed up, or another
//!   machine) a copy is made first, on clusters of its own, and synced; see
//!   [`cross_linked`](super::cross_linked);
//! - *neither*: the file, or the directory with its contents, is written again from the SSD;
//!   otherwise it is named as missing.
//!
//! A directory that moves takes changes of its own entries along: a file may still be in it
//! although it was cleared, under the directory's other name. So old and new paths are looked up
//! where their directories are now ([`locate`](super::locate)).
//!
//! The order separates removals from writes: first every file is judged and nothing is touched,
//! then stale names are removed, then a sync; directories; files that must be written again, then a
//! sync; only then names are given. A replay that is itself interrupted leaves states that the next
//! one judges in the same way: a file that it has removed from both names is at neither, and the
//! SSD has it.
//!
//! Files that the batch had set aside to replace or remove them ([`crate::apply::place`]) are
//! compared once more: a file that differs from the expectation is somebody else's, and is kept. A
//! step that the backend refuses, while the rest of it works, is set aside
//! ([`crate::apply::refused`]); the mark between the phases says which steps of the first phase
//! were.

use crate::apply::journal::Journal;
use crate::apply::move_backup::Tree;
use crate::apply::place::{Manners, Placer};
use crate::apply::refused::{StepNo, Why};
use crate::apply::staging::{SlotSource, restage};
use crate::apply::{
    Applied, mark_cleared, move_backup, patch, read_mark, refused_list, spare_slot,
};
use crate::cache::Store;
use crate::catalog;
use crate::core::{BatchNo, FileKind, Metadata, RelPath};
use crate::drive::{Backend, exists, is_absent, matches};
use crate::error::{FlushError, Result};
use crate::format::catalog::CatalogBatch;
use crate::format::expectations::{Expectations, ExpectedFile};
use crate::format::layout;
use crate::format::steps::{ClearStep, FileContent, PlaceStep, SlotNo, Steps};

use uuid::Uuid;

use crate::recovery::locate::Slots;

/// Where a replay finds bytes that the backend has lost.
pub(crate) struct Ssd<'a> {
    pub(crate) store: &'a Store,
    pub(crate) journal: &'a Journal,
    pub(crate) journals: &'a std::path::Path,
    /// The backups of the directories that the batch moves.
    pub(crate) trees: Vec<Tree>,
}

impl Ssd<'_> {
    pub(crate) fn tree(&self, slot: SlotNo) -> Option<&Tree> {
        self.trees.iter().find(|tree| tree.slot == slot)
    }
}

/// Takes the steps of one batch again.
pub(crate) struct Redo<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) batch: BatchNo,
    pub(crate) steps: &'a Steps<FileContent>,
    pub(crate) known: &'a Expectations,
    pub(crate) volume: Uuid,
    pub(crate) catalog: Option<&'a CatalogBatch>,
    pub(crate) manners: &'a Manners,
    /// `None` if there is no cache at hand.
    pub(crate) ssd: Option<Ssd<'a>>,
}

/// How the file under a name compares with the one that belongs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Nothing,
    Good,
    Bad,
}

impl Redo<'_> {
    /// Takes all steps and syncs.
    ///
    /// # Errors
    /// If the backend or the SSD fails, or if bytes are needed that only the SSD can have and it is
    /// not at hand. Then nothing was removed that the backend had whole.
    pub(crate) fn run(&self) -> Result<Applied> {
        // Reads may come from memory only: an earlier sync may be what failed.
        self.backend.sync()?;
        let mut applied = Applied::default();
        let mut slots = Slots::read(self.backend, self.batch)?;
        if self.ssd.is_none() {
            self.check_at_hand(&slots)?;
        }
        let is_written = self.make_way_for_catalog(&mut applied)?;
        self.remove_near_copies()?;
        match self.read_mark(&slots)? {
            Some(refused) => {
                // They were compared before the mark was made.
                for (number, step) in self.steps.clear.iter().enumerate() {
                    if let ClearStep::RemoveFile { .. } = step {
                        (applied.garbage).push(layout::removed_path(self.batch, number));
                    }
                }
                applied.refused.note_listed(self.steps, &refused);
            }
            None => {
                self.clear(&mut slots, &mut applied)?;
                self.backend.sync()?;
                if self.steps.needs_barrier() {
                    mark_cleared(self.backend, self.batch, &applied.refused)?;
                    self.backend.sync()?;
                }
            }
        }
        self.place(&mut slots, &mut applied)?;
        if !is_written {
            self.write_catalog(&mut applied)?;
        }
        self.backend.sync()?;
        patch::forget_begun(self.backend, self.batch, self.steps)?;
        Ok(applied)
    }

    /// Returns the clear steps that were refused, if clearing is over. A patch is begun after the
    /// mark is durable: its note says the same if the drive has lost the mark.
    fn read_mark(&self, slots: &Slots) -> Result<Option<Vec<StepNo>>> {
        match read_mark(self.backend, self.batch)? {
            None if self.steps.needs_barrier() && slots.is_any_begun() => {
                refused_list::read(self.backend, &layout::refused_path(self.batch)).map(Some)
            }
            mark => Ok(mark),
        }
    }

    /// Prepares the log of the catalog for the batch's segment. Returns true if nothing must be
    /// written.
    fn make_way_for_catalog(&self, applied: &mut Applied) -> Result<bool> {
        let Some(catalog) = self.catalog else {
            return Ok(true);
        };
        let made = catalog::make_way(self.backend, self.volume, (self.batch, catalog));
        self.unless_refused(made, applied)
    }

    fn write_catalog(&self, applied: &mut Applied) -> Result<()> {
        let Some(catalog) = self.catalog else {
            return Ok(());
        };
        let written = catalog::make_dir(self.backend)
            .and_then(|()| catalog::write(self.backend, self.volume, catalog))
            .map(|()| true);
        self.unless_refused(written, applied).map(drop)
    }

    /// Descriptions that the catalog could not get are written by a later batch.
    fn unless_refused(&self, result: Result<bool>, applied: &mut Applied) -> Result<bool> {
        match result {
            Err(FlushError::Backend(error))
                if self.manners.is_local(self.backend, self.batch, &error) =>
            {
                tracing::warn!(%error, "the catalog cannot be written; a later batch writes the \
                    attributes");
                applied.catalog_refused = true;
                Ok(true)
            }
            result => result,
        }
    }

    /// Removes the copies that an earlier attempt has made beside their names, on another file
    /// system. They are made again.
    fn remove_near_copies(&self) -> Result<()> {
        if !exists(self.backend, &layout::across_path(self.batch))? {
            return Ok(());
        }
        for (number, step) in self.steps.place.iter().enumerate() {
            let (slot, to) = match step {
                PlaceStep::Install { slot, to, .. }
                | PlaceStep::Patch { slot, to, .. }
                | PlaceStep::InstallNode { slot, to, .. }
                | PlaceStep::Attach { slot, to, .. } => (*slot, to),
                PlaceStep::Link { to, .. } => (spare_slot(number), to),
                PlaceStep::MakeDir { .. } | PlaceStep::Touch { .. } => continue,
            };
            if let Some((dir, _)) = to.split_last() {
                match self
                    .backend
                    .remove_file(&layout::near_path(&dir, self.batch, slot))
                {
                    Err(error) if !is_absent(&error) => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    pub(crate) fn placer(&self) -> Placer<'_> {
        Placer {
            backend: self.backend,
            batch: self.batch,
            manners: self.manners,
        }
    }

    /// Passes on an error while a file may be under two names that share clusters: the batch must
    /// not end before they are separate. Only if renames are atomic does the error concern one
    /// name.
    pub(crate) fn unless_tangled(
        &self,
        step: StepNo,
        path: &RelPath,
        result: Result<()>,
        applied: &mut Applied,
    ) -> Result<()> {
        match self.backend.renames_atomically() {
            true => self.or_refuse(step, path, result, applied),
            false => result,
        }
    }

    /// Sets a step aside that the backend refuses while the rest of it works.
    pub(crate) fn or_refuse(
        &self,
        step: StepNo,
        path: &RelPath,
        result: Result<()>,
        applied: &mut Applied,
    ) -> Result<()> {
        match result {
            Err(FlushError::FullThere { path }) => {
                applied.refused.note(step, &path, Why::Errno(libc::ENOSPC));
                Ok(())
            }
            Err(FlushError::Backend(error))
                if self.manners.is_local(self.backend, self.batch, &error) =>
            {
                tracing::debug!(%error, "refused");
                let why = Why::of(self.steps, step, &error);
                applied.refused.note(step, path, why);
                Ok(())
            }
            // Without the SSD nothing tells what is safe: the machine that wrote the batch must
            // finish it.
            Err(FlushError::Unfinished { problem, .. }) if self.ssd.is_some() => {
                tracing::warn!(%path, problem, "set aside");
                applied.refused.note(step, path, Why::Occupied);
                Ok(())
            }
            result => result,
        }
    }

    /// Returns the file that was moved through `slot`, if the batch has an expectation of it.
    pub(crate) fn moved(&self, slot: SlotNo) -> Option<ExpectedFile> {
        self.known.moved.get(&slot).copied()
    }

    /// Returns whether the SSD has the bytes of `slot`.
    pub(crate) fn is_kept(&self, slot: SlotNo) -> bool {
        self.ssd.as_ref().is_some_and(|ssd| {
            ssd.journal.sources.contains_key(&slot)
                || move_backup::open(ssd.journals, self.batch, slot).is_some()
        })
    }

    /// Returns whether the file at `name` was moved there from its own name, after somebody else
    /// had changed it. Only the slot itself is filled by a move; a moved file that is written again
    /// gets the name of a copy, so that a part of it is not taken for such a version.
    pub(crate) fn is_theirs(&self, slot: SlotNo, name: &RelPath) -> Result<bool> {
        if *name != layout::slot_path(self.batch, slot) {
            return Ok(false);
        }
        let Some(moved) = self.moved(slot) else {
            return Ok(false);
        };
        let found = look(self.backend, name)?;
        Ok(
            found.is_some_and(|found| match self.backend.renames_atomically() {
                // There, no check of the file system truncates files.
                true => !moved.agrees(&found),
                false => !moved.may_be(&found),
            }),
        )
    }

    /// Writes the file of `slot` again at `path`, which is free, from the SSD. It must turn out to
    /// be `wanted`. Returns false if the SSD has other bytes by now; then there is nothing at
    /// `path`.
    pub(crate) fn rebuild(
        &self,
        slot: SlotNo,
        path: &RelPath,
        to: &RelPath,
        wanted: &ExpectedFile,
    ) -> Result<bool> {
        let Some(ssd) = &self.ssd else {
            return Ok(false);
        };
        let source = match (
            move_backup::open(ssd.journals, self.batch, slot),
            ssd.journal.sources.get(&slot),
        ) {
            (Some(file), _) => SlotSource::Kept(file, wanted.modified),
            (None, Some(source)) => SlotSource::Staged(source),
            (None, None) => return Ok(false),
        };
        tracing::warn!(path = %to, "damaged or missing on the drive; it is written again from the \
            cache");
        let measured = restage(
            self.backend,
            Some(ssd.store),
            source,
            path,
            Some(wanted.size),
        )?;
        let same =
            measured.size == wanted.size && wanted.hash.is_none_or(|hash| hash == measured.hash);
        if !same {
            self.remove_all(path)?;
        }
        Ok(same)
    }

    /// Returns whether the file that was found at `path` is the one that is `wanted` there, whole.
    /// Without an expectation any file is accepted.
    pub(crate) fn whole(
        &self,
        path: &RelPath,
        found: Option<&Metadata>,
        wanted: Option<&ExpectedFile>,
    ) -> Result<State> {
        let (Some(found), Some(wanted)) = (found, wanted) else {
            return Ok(match found {
                Some(_) => State::Good,
                None => State::Nothing,
            });
        };
        if !wanted.may_have_kind(found.kind) || found.size != wanted.size {
            return Ok(State::Bad);
        }
        let Some(hash) = wanted.hash else {
            return Ok(State::Good);
        };
        let content = FileContent {
            size: wanted.size,
            hash,
            modified: wanted.modified,
        };
        Ok(match matches(self.backend, path, &content)? {
            true => State::Good,
            false => State::Bad,
        })
    }

    /// Removes the file at `path`, and further entries that a crash has left under the same name.
    pub(crate) fn remove_all(&self, path: &RelPath) -> Result<()> {
        /// More entries of one name than any interrupted rename leaves.
        const SAME_NAME: usize = 8;
        for _ in 0..SAME_NAME {
            match self.backend.remove_file(path) {
                Err(error) if is_absent(&error) => return Ok(()),
                result => result?,
            }
        }
        Err(self.unfinished(format!(
            "{path} cannot be removed from the drive; run fsck on it"
        )))
    }

    pub(crate) fn unfinished(&self, problem: String) -> FlushError {
        FlushError::Unfinished {
            batch: self.batch,
            problem,
        }
    }
}

/// Returns the metadata of `path`; `None` if there is nothing.
pub(crate) fn look(backend: &dyn Backend, path: &RelPath) -> Result<Option<Metadata>> {
    match backend.metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn is_dir(meta: Option<&Metadata>) -> bool {
    meta.is_some_and(|meta| meta.kind == FileKind::Directory)
}

pub(crate) fn is_file(meta: Option<&Metadata>) -> bool {
    meta.is_some_and(|meta| meta.kind != FileKind::Directory)
}
