//! Redoing a committed batch after anything: a yank, a power cut, an error halfway, a run elsewhere.
//!
//! Nothing is trusted but sizes and hashes. Where the backend's rename is not atomic (exFAT: the new entry is written, then the
//! old one removed, in any order on the disk) what was being moved may stand under the old name, the new one, both or neither:
//!
//! - *both*: the two names share clusters. Removing one frees bytes that the other still claims; writing then damages them.
//!   So both are removed before anything is written, and the file is written anew from the SSD. Without the SSD (a file too
//!   large to have been kept, or another machine) a copy is made first, on clusters of its own, and synced; see [`twins`];
//! - *neither*: the file, or the directory with what was in it, is written anew from the SSD, else what is missing is named.
//!
//! A directory that moves takes changes of its own entries along: a file may still be in it although it was cleared from it,
//! under the directory's other name. So old and new paths are looked up where their directories stand now ([`Standing`]).
//!
//! The order keeps what is removed apart from what is written: first every file is judged and nothing is touched, then stale
//! names are removed, then a sync; directories; files that must be written anew, then a sync; only then names are given. A
//! redo that is itself cut short leaves states that the next one judges in the same way: a file that it has removed from
//! both names is neither there nor there, and the SSD has it.
//!
//! What the batch had set aside to replace or remove it ([`super::placing`]) is compared once more: what is not what the batch
//! knew is somebody else's, and is kept. A step that the backend refuses, while the rest of it works, is set aside
//! ([`super::refused`]); the mark between the phases says which of the first were.

mod clear;
mod files;
mod judge;
mod nodes;
mod standing;
mod trees;
mod twins;

use super::apply::{Applied, exists, is_absent, mark_cleared, matches, read_mark};
use super::catalog;
use super::journal::Journal;
use super::keep::{self, Tree};
use super::placing::{Manners, Placer};
use super::refused::{StepNo, Why, errno_of};
use super::report::{FlushError, Result};
use super::stage::{SlotSource, restage};
use crate::backend::{Backend, Metadata};
use crate::base::{BatchNo, FileKind, RelPath};
use crate::cache::Store;
use crate::rules::catalog::CatalogBatch;
use crate::rules::known::{Believed, Known};
use crate::rules::layout;
use crate::rules::steps::{ClearStep, FileContent, PlaceStep, SlotNo, Steps};

use uuid::Uuid;

use standing::Slots;

/// Where a redo finds bytes that the backend has lost.
pub(super) struct Ssd<'a> {
    pub(super) store: &'a Store,
    pub(super) journal: &'a Journal,
    pub(super) journals: &'a std::path::Path,
    /// What is kept of the directories that the batch moves.
    pub(super) trees: Vec<Tree>,
}

impl Ssd<'_> {
    fn tree(&self, slot: SlotNo) -> Option<&Tree> {
        self.trees.iter().find(|tree| tree.slot == slot)
    }
}

/// Takes the steps of one batch again.
pub(super) struct Redo<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) batch: BatchNo,
    pub(super) steps: &'a Steps<FileContent>,
    pub(super) known: &'a Known,
    pub(super) volume: Uuid,
    pub(super) catalog: Option<&'a CatalogBatch>,
    pub(super) manners: &'a Manners,
    /// `None` where there is no cache at hand.
    pub(super) ssd: Option<Ssd<'a>>,
}

/// How a name stands to what it should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Nothing,
    Good,
    Bad,
}

impl Redo<'_> {
    /// Takes all steps and syncs.
    ///
    /// # Errors
    /// If the backend or the SSD fails, or something that only the SSD can have is needed and it is not at hand: then nothing
    /// has been removed that the backend had whole.
    pub(super) fn run(&self) -> Result<Applied> {
        // What is read back may be in memory only: the sync before may be what failed.
        self.backend.sync()?;
        let mut applied = Applied::default();
        let mut slots = Slots::read(self.backend, self.batch)?;
        if self.ssd.is_none() {
            self.check_at_hand(&slots)?;
        }
        let is_written = self.make_way_for_catalog(&mut applied)?;
        self.remove_near_copies()?;
        match read_mark(self.backend, self.batch)? {
            Some(refused) => {
                // Compared before the mark was made.
                for (number, step) in self.steps.clear.iter().enumerate() {
                    if let ClearStep::RemoveFile { .. } = step {
                        (applied.garbage).push(layout::removed_path(self.batch, number));
                    }
                }
                for number in refused {
                    if let Some(step) = self.steps.clear.get(number) {
                        let (no, path) = (StepNo::Clear(number), step.path());
                        applied.refused.note(no, path, Why::Occupied);
                    }
                }
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
        Ok(applied)
    }

    /// Prepares the log of the catalog for the batch's segment; true if there is nothing to write.
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

    /// What the catalog could not be told is told by a later batch.
    fn unless_refused(&self, result: Result<bool>, applied: &mut Applied) -> Result<bool> {
        match result {
            Err(FlushError::Backend(error))
                if self.manners.is_local(self.backend, self.batch, &error) =>
            {
                tracing::warn!(%error, "the catalog cannot be written; attributes are told by a later batch");
                applied.catalog_refused = true;
                Ok(true)
            }
            result => result,
        }
    }

    /// Removes what an attempt before this one has copied to beside its name, on another file system. It is copied again.
    fn remove_near_copies(&self) -> Result<()> {
        if !exists(self.backend, &layout::across_path(self.batch))? {
            return Ok(());
        }
        for step in &self.steps.place {
            let (PlaceStep::Install { slot, to, .. }
            | PlaceStep::InstallNode { slot, to, .. }
            | PlaceStep::Attach { slot, to, .. }) = step
            else {
                continue;
            };
            if let Some((dir, _)) = to.split_last() {
                match self
                    .backend
                    .remove_file(&layout::near_path(&dir, self.batch, *slot))
                {
                    Err(error) if !is_absent(&error) => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn placer(&self) -> Placer<'_> {
        Placer {
            backend: self.backend,
            batch: self.batch,
            manners: self.manners,
        }
    }

    /// Passes on what goes wrong while a file may stand under two names that share clusters: the batch must not end before they are
    /// apart. Only where renames are atomic is it a matter of one name.
    fn unless_tangled(
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
    fn or_refuse(
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
                applied
                    .refused
                    .note(step, path, Why::Errno(errno_of(&error)));
                Ok(())
            }
            // Without the SSD nobody knows what is safe: the machine that wrote the batch finishes it.
            Err(FlushError::Unfinished { problem, .. }) if self.ssd.is_some() => {
                tracing::warn!(%path, problem, "set aside");
                applied.refused.note(step, path, Why::Occupied);
                Ok(())
            }
            result => result,
        }
    }

    /// What was moved through `slot`, if the batch knew.
    fn moved(&self, slot: SlotNo) -> Option<Believed> {
        self.known.moved.get(&slot).copied()
    }

    /// Whether the bytes of what belongs into `slot` are on the SSD.
    fn is_kept(&self, slot: SlotNo) -> bool {
        self.ssd.as_ref().is_some_and(|ssd| {
            ssd.journal.sources.contains_key(&slot)
                || keep::open(ssd.journals, self.batch, slot).is_some()
        })
    }

    /// Whether what stands at `name` was moved there from under its own name, and somebody else had changed it before. Only the
    /// slot itself is filled by moving; what is written anew for a moved file gets the name of a copy, so that part of it is not
    /// taken for such a version.
    fn is_theirs(&self, slot: SlotNo, name: &RelPath) -> Result<bool> {
        if *name != layout::slot_path(self.batch, slot) {
            return Ok(false);
        }
        let Some(moved) = self.moved(slot) else {
            return Ok(false);
        };
        let found = look(self.backend, name)?;
        Ok(
            found.is_some_and(|found| match self.backend.renames_atomically() {
                // Nothing cuts files short there.
                true => !moved.agrees(&found),
                false => !moved.may_be(&found),
            }),
        )
    }

    /// Writes a file of `slot` anew at `path`, where nothing is, from the SSD. `wanted` is what it must turn out to be. False if
    /// the SSD has other bytes by now; then there is nothing at `path`.
    fn rebuild(
        &self,
        slot: SlotNo,
        path: &RelPath,
        to: &RelPath,
        wanted: &Believed,
    ) -> Result<bool> {
        let Some(ssd) = &self.ssd else {
            return Ok(false);
        };
        let source = match (
            keep::open(ssd.journals, self.batch, slot),
            ssd.journal.sources.get(&slot),
        ) {
            (Some(file), _) => SlotSource::Kept(file, wanted.modified),
            (None, Some(source)) => SlotSource::Staged(source),
            (None, None) => return Ok(false),
        };
        tracing::warn!(path = %to, "damaged or missing on the drive; it is written anew from the cache");
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

    /// Whether what was found at `path` is what is `wanted` there, whole. Of what nothing is known anything is.
    fn whole(
        &self,
        path: &RelPath,
        found: Option<&Metadata>,
        wanted: Option<&Believed>,
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

    /// Removes the file at `path`, and whatever a crash has left under the same name beside it.
    fn remove_all(&self, path: &RelPath) -> Result<()> {
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

    fn unfinished(&self, problem: String) -> FlushError {
        FlushError::Unfinished {
            batch: self.batch,
            problem,
        }
    }
}

/// What stands at `path`; `None` for nothing.
fn look(backend: &dyn Backend, path: &RelPath) -> Result<Option<Metadata>> {
    match backend.metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_dir(meta: Option<&Metadata>) -> bool {
    meta.is_some_and(|meta| meta.kind == FileKind::Directory)
}

fn is_file(meta: Option<&Metadata>) -> bool {
    meta.is_some_and(|meta| meta.kind != FileKind::Directory)
}
