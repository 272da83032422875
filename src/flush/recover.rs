//! Recovery, as the flusher runs it after each attach: the drive and the index are brought to
//! agree.
//!
//! In order: our own open batch is finished or given up ([`OpenBatch`]); batches of other machines
//! are finished, and leftovers of ended batches are removed; journals without a batch are removed;
//! the mirror of the catalog is brought up to the drive's log. The steps themselves are taken by
//! [`crate::recovery`].
//!
//! Any of it may be interrupted: the next recovery begins from the start and finds out how far it
//! came.

use crate::apply::journal::Journal;
use crate::core::RelPath;
use crate::drive::Backend;
use crate::drive::connection::Withheld;
use crate::error::Result;
use crate::flush::Flusher;
use crate::flush::done_elsewhere::forget_all_done;
use crate::flush::open_batch::OpenBatch;
use crate::flush::turn::Writing;
use crate::format::layout;
use crate::format::record::BatchRecord;
use crate::plan::touched::Touched;
use crate::recovery::interrupted::{Found, batches_on, read_record};

impl Flusher {
    /// Brings the backend and the index to agree after anything that may have interrupted a batch.
    /// To be called after each attach.
    ///
    /// # Errors
    /// If the backend or the SSD fails, or a batch of another cache cannot be finished without it.
    pub fn recover(&self) -> Result<()> {
        let _turn = self.turn.for_recovery();
        self.refusals.forget_files();
        let backend = &*self.backend()?;
        self.check_marker(backend)?;
        let _writing = Writing::begin(&*self.parts.hooks, backend);
        self.may_write(backend)?;
        self.others.forget_unfinished();
        let open_batch = OpenBatch {
            flusher: self,
            backend,
            full_is_refusal: false,
        };
        open_batch.finish()?;
        // Others may have changed whatever belongs to no batch of ours.
        self.parts.drive.withhold(Withheld::Everything);
        self.sweep(backend)?;
        self.sweep_journals()?;
        if self.catalog.catch_up(backend)? {
            self.show_catalog();
        }
        self.reserve.recall()?;
        self.reserve.restore(backend);
        self.parts.drive.withhold(Withheld::Nothing);
        Ok(())
    }

    /// Lets readers use everything on the backend except the names of an unfinished batch. For an
    /// attached drive whose [`Flusher::recover`] has failed.
    ///
    /// # Errors
    /// If the SSD fails.
    pub fn withhold_unfinished(&self) -> Result<()> {
        let open = self.parts.index.lock().resume_batch()?;
        let journal = match open {
            Some(active) => Journal::read(&self.parts.journals, active.batch)?,
            None => None,
        };
        let mut touched = self.others.unfinished();
        if let Some(journal) = journal {
            touched.extend(&Touched::of(&journal.record.steps));
        }
        self.parts
            .drive
            .withhold(match touched == Touched::default() {
                true => Withheld::Nothing,
                false => Withheld::Unfinished(touched),
            });
        Ok(())
    }

    /// Shows in the mount what another machine wrote to the catalog.
    pub(super) fn show_catalog(&self) {
        if let Err(error) = self.parts.hooks.catalog_changed() {
            tracing::warn!(%error, "what is new in the catalog is not shown yet");
        }
    }

    /// Finishes the batches of other caches, and removes what our own ended batches have left.
    fn sweep(&self, backend: &dyn Backend) -> Result<()> {
        for batch in batches_on(backend)? {
            let path = layout::record_path(batch);
            match read_record(backend, &path, batch, self.parts.volume)? {
                Found::Record(record, trust) if record.origin != self.parts.origin => {
                    self.others.finish(backend, batch, &record, trust)?;
                }
                found => {
                    let keep = |record: &BatchRecord, left: &[RelPath]| {
                        self.keep_versions(record, left, true)
                    };
                    self.leftovers.remove_ended(backend, batch, found, &keep)?;
                }
            }
        }
        forget_all_done(backend, &self.parts)
    }
}
