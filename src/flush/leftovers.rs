//! What ended batches leave in `.ferryfs`: the record, the staging directory, replaced files.
//!
//! A batch that has ended removes them ([`Leftovers::clean_up`]). If the drive refuses that, the
//! batch is over all the same: [`Leftovers`] owns the set of such batches, each flush tries again
//! ([`Leftovers::tidy_up`]) and names them in its report. A recovery looks through all of
//! `.ferryfs` and removes what it finds of ended batches ([`Leftovers::remove_ended`]).
//!
//! The set is in memory; the recovery after a start finds the same on the drive. Only two things
//! are noted in the index, because what is on the drive does not say whose it is: which of our
//! records is torn, and which ended batches still have notes of patches. Without a record such
//! notes say that the drive has lost one.
//!
//! Invariant: the record is removed first, and the staging directory with the barrier mark only
//! when the record is durably gone. A crash in between leaves a staging directory without a record,
//! which the next recovery removes. A record without its mark would be cleared again.
//!
//! The caller holds the turn. The set is locked for one access at a time.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::apply::refused::is_local;
use crate::apply::spare_slot;
use crate::apply::staging::{discard, discard_ended};
use crate::apply::versions::keeps;
use crate::core::{BatchNo, RelPath};
use crate::drive::{Backend, exists, is_absent};
use crate::error::{FlushError, Result};
use crate::flush::FlusherParts;
use crate::format::layout;
use crate::format::record::BatchRecord;
use crate::format::steps::{ClearStep, PlaceStep};
use crate::index::Index;
use crate::recovery::interrupted::{Found, read_record};
use crate::recovery::locate::is_any_begun;

/// Key of the index's setting that names the batch of ours whose record is torn.
const TORN: &str = "torn_record";

/// Key of the setting with the numbers, in decimal and separated by blanks, of ended batches of
/// ours whose notes of patches the drive has refused to remove.
const NOTED: &str = "ended_with_notes";

/// Keeps those of the files at the paths that are versions of files of the batch.
pub(super) type Keep<'a> = &'a dyn Fn(&BatchRecord, &[RelPath]) -> Result<()>;

pub(super) struct Leftovers {
    index: Arc<Index>,
    volume: Uuid,
    origin: [u8; 16],
    /// Ended batches that may have left something in `.ferryfs`.
    batches: Mutex<BTreeSet<BatchNo>>,
}

impl Leftovers {
    pub(super) fn new(parts: &FlusherParts) -> Leftovers {
        Leftovers {
            index: parts.index.clone(),
            volume: parts.volume,
            origin: parts.origin,
            batches: Mutex::default(),
        }
    }

    /// Returns whether the drive has refused to remove what an ended batch has left.
    pub(super) fn are_there(&self) -> bool {
        !self.batches.lock().is_empty()
    }

    /// Removes what `batch`, which has ended, has left in `.ferryfs`: also `garbage`, the files
    /// that it has replaced or given up. What the drive refuses to remove stays for the next flush.
    ///
    /// # Errors
    /// If the drive fails.
    pub(super) fn clean_up(
        &self,
        backend: &dyn Backend,
        batch: BatchNo,
        garbage: &[RelPath],
    ) -> Result<()> {
        self.batches.lock().insert(batch);
        let removed =
            (self.note_notes(backend, batch)).and_then(|()| remove(backend, batch, garbage));
        match removed {
            Err(FlushError::Backend(error)) if is_local(backend, batch, &error) => {
                tracing::warn!(%batch, %error, "something of the batch stays in .ferryfs for now");
                Ok(())
            }
            Ok(()) => self.forget(batch),
            result => result,
        }
    }

    /// Removes what was staged for `batch`, which was given up, unless there is a record: another
    /// cache may have used the same number since, and then the staged files belong to its record.
    /// What cannot be removed stays for the next flush.
    pub(super) fn discard_given_up(&self, backend: &dyn Backend, batch: BatchNo) {
        let has_record = exists(backend, &layout::record_path(batch)).unwrap_or(true);
        if !has_record && let Err(error) = discard(backend, &layout::staging_dir(batch)) {
            self.batches.lock().insert(batch);
            tracing::debug!(%error, "staging directory not removed");
        }
    }

    /// Removes what was `found` of `batch`, which is not open, unless it is another machine's. What
    /// it was to keep as versions is kept first.
    ///
    /// # Errors
    /// If the drive or the index fails.
    pub(super) fn remove_ended(
        &self,
        backend: &dyn Backend,
        batch: BatchNo,
        found: Found,
        keep: Keep<'_>,
    ) -> Result<()> {
        match found {
            Found::Record(record, _) if record.origin != self.origin => {}
            // Ours, and not open: it was confirmed, so the record and the staged files are garbage.
            Found::Record(record, _) => {
                let left = left_by(&record);
                if keeps(backend, batch)? {
                    keep(&record, &left)?;
                }
                return self.clean_up(backend, batch, &left);
            }
            // Another machine's, whose record the drive has lost: it can finish the batch.
            Found::Nothing if !self.has_ended(batch)? && is_any_begun(backend, batch)? => {
                tracing::warn!(%batch, "the drive has lost the record of a batch of another \
                    machine while blocks were written into large files; its staging directory is \
                    left as it is");
            }
            Found::Nothing => match discard(backend, &layout::staging_dir(batch)) {
                Err(FlushError::Backend(error)) if is_local(backend, batch, &error) => {
                    tracing::warn!(%batch, %error, "something of the batch stays in .ferryfs");
                    self.batches.lock().insert(batch);
                    return Ok(());
                }
                discarded => discarded?,
            },
            Found::Torn if self.is_our_torn(batch)? => {
                self.clean_up(backend, batch, &[])?;
                return self.forget_torn(batch);
            }
            Found::Torn => {
                tracing::warn!(%batch, "a damaged record of another machine is left as it is")
            }
        }
        self.forget(batch)
    }

    /// Tries again to remove what ended batches have left. What the drive refuses again stays.
    ///
    /// # Errors
    /// If the drive or the index fails.
    pub(super) fn tidy_up(&self, backend: &dyn Backend, keep: Keep<'_>) -> Result<()> {
        let batches: Vec<BatchNo> = self.batches.lock().iter().copied().collect();
        for batch in batches {
            let path = layout::record_path(batch);
            let tidied = read_record(backend, &path, batch, self.volume)
                .and_then(|found| self.remove_ended(backend, batch, found, keep));
            match tidied {
                Err(FlushError::Backend(error)) if is_local(backend, batch, &error) => {
                    tracing::warn!(%batch, %error, "something of the batch stays in .ferryfs");
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Notes, durably, that `batch` has ended, if it still has notes of patches. It comes before
    /// the record goes, which says the same.
    fn note_notes(&self, backend: &dyn Backend, batch: BatchNo) -> Result<()> {
        if !is_any_begun(backend, batch)? {
            return Ok(());
        }
        let mut noted = self.noted()?;
        match noted.insert(batch) {
            true => self.set_noted(&noted),
            false => Ok(()),
        }
    }

    /// Forgets a batch of which nothing is left.
    fn forget(&self, batch: BatchNo) -> Result<()> {
        self.batches.lock().remove(&batch);
        let mut noted = self.noted()?;
        match noted.remove(&batch) {
            true => self.set_noted(&noted),
            false => Ok(()),
        }
    }

    /// Returns whether `batch` is one of ours that has ended.
    fn has_ended(&self, batch: BatchNo) -> Result<bool> {
        Ok(self.batches.lock().contains(&batch) || self.noted()?.contains(&batch))
    }

    fn noted(&self) -> Result<BTreeSet<BatchNo>> {
        let noted = self.index.lock().meta(NOTED)?.unwrap_or_default();
        let numbers = noted.split(' ').filter_map(|number| number.parse().ok());
        Ok(numbers.map(BatchNo).collect())
    }

    fn set_noted(&self, batches: &BTreeSet<BatchNo>) -> Result<()> {
        let numbers: Vec<String> = batches.iter().map(|batch| batch.0.to_string()).collect();
        self.set(NOTED, &numbers.join(" "))
    }

    /// Notes that the record of our own `batch` is torn, while the batch is being finished: if
    /// cleaning up fails, nothing in the record tells the next recovery that it is ours. Becomes
    /// durable with the confirmation; before that the batch is open.
    pub(super) fn note_torn(&self, batch: BatchNo) -> Result<()> {
        self.set(TORN, &batch.to_string())
    }

    /// Forgets that the record of `batch` is torn, unless it is still there.
    pub(super) fn forget_torn(&self, batch: BatchNo) -> Result<()> {
        match self.batches.lock().contains(&batch) {
            true => Ok(()),
            false => self.set(TORN, ""),
        }
    }

    fn set(&self, key: &str, value: &str) -> Result<()> {
        let mut state = self.index.lock();
        state.set_meta(key, value)?;
        state.commit()?;
        Ok(())
    }

    fn is_our_torn(&self, batch: BatchNo) -> Result<bool> {
        let noted = self.index.lock().meta(TORN)?;
        Ok(noted.as_deref() == Some(&*batch.to_string()))
    }
}

/// Removes `garbage`, then the record of `batch`, then its staging directory.
fn remove(backend: &dyn Backend, batch: BatchNo, garbage: &[RelPath]) -> Result<()> {
    for path in garbage {
        match backend.remove_file(path) {
            Err(error) if !is_absent(&error) => return Err(error.into()),
            _ => {}
        }
    }
    match backend.remove_file(&layout::record_path(batch)) {
        Err(error) if !error.is_not_found() => return Err(error.into()),
        _ => {}
    }
    backend.sync()?;
    discard_ended(backend, &layout::staging_dir(batch))
}

/// Returns what a confirmed batch may have left: staged files, which its cache has as well, and
/// files that it has replaced or removed, which were compared before.
fn left_by(record: &BatchRecord) -> Vec<RelPath> {
    let batch = record.batch;
    let mut left = Vec::new();
    for (number, step) in record.steps.clear.iter().enumerate() {
        if let ClearStep::RemoveFile { .. } = step {
            left.push(layout::removed_path(batch, number));
        }
    }
    for (number, step) in record.steps.place.iter().enumerate() {
        let (slot, to, is_staged) = match step {
            PlaceStep::Install { slot, to, .. }
            | PlaceStep::Patch { slot, to, .. }
            | PlaceStep::InstallNode { slot, to, .. } => (*slot, to, true),
            PlaceStep::Attach { slot, to, .. } => (*slot, to, false),
            PlaceStep::Link { to, .. } => (spare_slot(number), to, false),
            _ => continue,
        };
        if is_staged {
            left.push(layout::slot_path(batch, slot));
        }
        left.push(layout::replaced_path(batch, slot));
        if let Some((dir, _)) = to.split_last() {
            left.push(layout::near_old_path(&dir, batch, slot));
        }
    }
    left
}
