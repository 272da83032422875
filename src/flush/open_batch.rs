//! Our own open batch, after anything that may have interrupted it: finished or given up.
//!
//! The index says that a batch is open; the journal and the record say how far it came:
//!
//! | journal | record | barrier mark | then |
//! |---|---|---|---|
//! | none | any | any | given up: it was never committed |
//! | there | none, but a receipt of another machine | any | accepted as that machine left it |
//! | there | ours, or torn | any | finished from the journal |
//! | there | none | there, or a note of a patch | finished from the journal: the record was lost later |
//! | there | none, or of another cache | none | given up: it was never committed |
//!
//! [`OpenBatch`] and [`JournaledBatch`] are values of one recovery. What they conclude is in the
//! index; a crash in between leaves the batch open, and the next recovery concludes the same.

use std::time::Instant;

use crate::apply::journal::Journal;
use crate::apply::limited::Limited;
use crate::apply::place::Manners;
use crate::apply::staging::staging_trust;
use crate::apply::{Applied, move_backup, named_conflicts, versions};
use crate::core::Timestamp;
use crate::drive::connection::Withheld;
use crate::drive::throttle::without_rests;
use crate::drive::{Backend, exists};
use crate::error::Result;
use crate::flush::Flusher;
use crate::flush::refused_names::refused_names;
use crate::format::layout;
use crate::index::{ActiveBatch, BatchEnd};
use crate::plan::touched::Touched;
use crate::recovery::interrupted::{Found, done_path, read_record};
use crate::recovery::locate::is_any_begun;
use crate::recovery::replay::{Redo, Ssd};
use crate::sys;

/// Recovers the batch that the index says is open, if there is one.
#[derive(Clone, Copy)]
pub(super) struct OpenBatch<'a> {
    pub(super) flusher: &'a Flusher,
    pub(super) backend: &'a dyn Backend,
    /// Steps that find no space are set aside, see [`Manners::full_is_refusal`].
    pub(super) full_is_refusal: bool,
}

/// An open batch that has a journal.
pub(super) struct JournaledBatch<'a> {
    pub(super) flusher: &'a Flusher,
    pub(super) backend: &'a dyn Backend,
    pub(super) active: &'a ActiveBatch,
    pub(super) journal: &'a Journal,
    /// How it treats what others have changed.
    pub(super) manners: &'a Manners,
}

impl OpenBatch<'_> {
    /// Finishes or gives up the batch, and lets readers use its names again. If that fails, its
    /// names are withheld.
    ///
    /// # Errors
    /// If the backend or the SSD fails.
    pub(super) fn recover(&self) -> Result<()> {
        // Its names are withheld, and its files may be torn.
        let _at_once = without_rests();
        let recovered = self.finish();
        match &recovered {
            Ok(()) => self.flusher.parts.drive.withhold(Withheld::Nothing),
            Err(_) => self.flusher.withhold_unfinished()?,
        }
        recovered
    }

    /// Finishes or gives up the batch.
    ///
    /// # Errors
    /// If the backend or the SSD fails.
    pub(super) fn finish(&self) -> Result<()> {
        let (flusher, backend) = (self.flusher, self.backend);
        let open = flusher.parts.index.lock().resume_batch()?;
        let Some(active) = open else {
            return Ok(());
        };
        let Some(journal) = Journal::read(&flusher.parts.journals, active.batch)? else {
            return flusher.give_up_interrupted(backend, active.batch);
        };
        let batch = JournaledBatch {
            flusher,
            backend,
            active: &active,
            journal: &journal,
            manners: &Manners {
                keeps_versions: versions::keeps(backend, active.batch)?,
                ..flusher.manners(journal.record.created, self.full_is_refusal)
            },
        };
        if batch.was_finished_elsewhere()? {
            return batch.accept_finished();
        }
        let path = layout::record_path(active.batch);
        match read_record(backend, &path, active.batch, flusher.parts.volume)? {
            // The steps come from the journal, which nobody else can have written.
            Found::Record(record, _) if record.origin == flusher.parts.origin => batch.redo(),
            // If a crash has torn it, nothing was applied; if it was damaged later, something was.
            // Applying it from the journal is right in both cases.
            Found::Torn => {
                flusher.leftovers.note_torn(active.batch)?;
                batch.redo()?;
                flusher.leftovers.forget_torn(active.batch)
            }
            // Applying had begun, so there was a record, and it was lost. The files that were set
            // aside belong under their new names.
            Found::Nothing if exists(backend, &layout::barrier_path(active.batch))? => batch.redo(),
            // The same, without a barrier; a file may be in the middle of its patch.
            Found::Nothing if is_any_begun(backend, active.batch)? => batch.redo(),
            _ => flusher.give_up_interrupted(backend, active.batch),
        }
    }
}

impl JournaledBatch<'_> {
    /// Returns whether another machine has left a receipt for the batch.
    fn was_finished_elsewhere(&self) -> Result<bool> {
        let (batch, volume) = (self.active.batch, self.flusher.parts.volume);
        let found = read_record(self.backend, &done_path(batch)?, batch, volume)?;
        // All of it is compared, not only the origin, which anybody can read on the drive: what
        // follows from a receipt frees the bytes in the cache.
        Ok(matches!(found, Found::Record(done, _) if *done == self.journal.record))
    }

    /// Takes the steps of the batch again, and confirms them.
    fn redo(&self) -> Result<()> {
        let (flusher, backend, batch) = (self.flusher, self.backend, self.active.batch);
        let began = Instant::now();
        tracing::info!(%batch, "finishing an interrupted batch");
        let touched = Touched::of(&self.journal.record.steps);
        flusher.parts.drive.withhold(Withheld::Moving(touched));
        let relieved = flusher.reserve.relieve(backend, batch);
        let applied = match staging_trust(backend, Some(batch))?.is_ours() {
            true => flusher.redo_steps(&relieved, self.journal, self.manners)?,
            false => self.redo_limited(&relieved)?,
        };
        for (path, reason) in applied.surprises() {
            tracing::warn!(path, reason, "differs from the batch");
        }
        let refused = refused_names(&flusher.parts.index, self.journal, &applied)?;
        for (path, reason) in &refused {
            tracing::warn!(path, reason, "left behind");
        }
        flusher.refusals.note_applied(self.journal, &applied);
        flusher.conflicts.note(named_conflicts(&applied));
        let end = BatchEnd::applied(refused.is_empty());
        flusher.confirm(self.journal, &applied, self.active.cut, end)?;
        flusher.note_recovered(self.journal, refused.len(), began);
        flusher.parts.drive.withhold(Withheld::Nothing);
        if self.manners.keeps_versions {
            flusher.keep_versions(&self.journal.record, &applied.garbage, true)?;
        }
        flusher
            .leftovers
            .clean_up(backend, batch, &applied.garbage)?;
        flusher.import_met(backend, &applied);
        Ok(())
    }

    /// The same on a drive that others may write to. Attributes that they must not get stay in the
    /// cache, for the next batch to describe.
    fn redo_limited(&self, backend: &dyn Backend) -> Result<Applied> {
        let limited = Limited::for_own(backend);
        let flusher = self.flusher;
        let applied = flusher.redo_steps(&limited, self.journal, self.manners)?;
        let mut state = flusher.parts.index.lock();
        for (path, reason) in limited.left_out() {
            tracing::warn!(%path, reason, "differs from the batch");
            // Marked after the batch's cut, so that the confirmation does not settle it.
            if let Some(ino) = state.find_stored(&path)?
                && let Some(mut inode) = state.inode(ino)?
            {
                state.note_attributes(&mut inode)?;
                state.put_inode(inode);
            }
        }
        state.commit()?;
        drop(state);
        Ok(applied)
    }
}

impl Flusher {
    /// Takes the steps of a committed batch again, with the cache at hand.
    pub(super) fn redo_steps(
        &self,
        backend: &dyn Backend,
        journal: &Journal,
        manners: &Manners,
    ) -> Result<Applied> {
        self.redo_of(backend, journal, manners)?.run()
    }

    /// Returns the replay of a batch, with the cache at hand.
    pub(super) fn redo_of<'a>(
        &'a self,
        backend: &'a dyn Backend,
        journal: &'a Journal,
        manners: &'a Manners,
    ) -> Result<Redo<'a>> {
        let batch = journal.record.batch;
        Ok(Redo {
            backend,
            batch,
            volume: journal.record.volume,
            steps: &journal.record.steps,
            known: &journal.record.known,
            catalog: journal.record.catalog.as_ref(),
            manners,
            ssd: Some(Ssd {
                store: &self.parts.store,
                journal,
                journals: &self.parts.journals,
                trees: move_backup::trees(&self.parts.journals, batch)?,
            }),
        })
    }

    /// Returns how the batch that was made at `time` treats what others have changed.
    pub(super) fn manners(&self, time: Timestamp, full_is_refusal: bool) -> Manners {
        Manners {
            time,
            host: sys::host::name(),
            slack: self.parts.time_granularity_ns.max(1),
            full_is_refusal,
            keeps_versions: false,
        }
    }
}
