//! Batches that other machines have left unfinished on the drive.
//!
//! A recovery finishes them from their records alone. [`OthersBatches`] owns what came of that: the
//! names of a batch that could not be finished, which the mount must not read, and one line for
//! each step that was not done, for `status`. Both are in memory; the next recovery finds again
//! what is still on the drive. Each lock is held for one access; no other lock is taken under it.

use parking_lot::Mutex;

use crate::core::BatchNo;
use crate::drive::Backend;
use crate::error::Result;
use crate::format::record::BatchRecord;
use crate::plan::touched::Touched;
use crate::plan::trust::Trust;
use crate::recovery::interrupted::finish_alone;

/// How many lines are remembered.
const MAX_LINES: usize = 20;

#[derive(Default)]
pub(super) struct OthersBatches {
    /// The names of the batch that could not be finished.
    unfinished: Mutex<Touched>,
    not_done: Mutex<Vec<String>>,
}

impl OthersBatches {
    /// Forgets the names of unfinished batches, because a recovery begins.
    pub(super) fn forget_unfinished(&self) {
        *self.unfinished.lock() = Touched::default();
    }

    /// Finishes `batch` of another machine from its `record`.
    ///
    /// # Errors
    /// If it cannot be finished. Then nothing may be written beside it, and its names must be left
    /// alone, until it is.
    pub(super) fn finish(
        &self,
        backend: &dyn Backend,
        batch: BatchNo,
        record: &BatchRecord,
        trust: Trust,
    ) -> Result<()> {
        tracing::info!(%batch, ?trust, "finishing a batch of another machine");
        let not_done = finish_alone(backend, record, trust).inspect_err(|_| {
            *self.unfinished.lock() = Touched::of(&record.steps);
        })?;
        for (path, reason) in not_done {
            tracing::warn!(path, reason, "differs from the batch");
            self.note_not_done(batch, &path, &reason);
        }
        Ok(())
    }

    fn note_not_done(&self, batch: BatchNo, path: &str, reason: &str) {
        let mut lines = self.not_done.lock();
        match lines.len() {
            ..MAX_LINES => lines.push(format!(
                "{path}, of batch {batch} that another machine had begun: {reason}"
            )),
            MAX_LINES => lines.push("there is more of that kind in the log".into()),
            _ => {}
        }
    }

    /// Returns the names of the batch that the last recovery could not finish.
    pub(super) fn unfinished(&self) -> Touched {
        self.unfinished.lock().clone()
    }

    /// Returns what was not done of the batches that were finished since the start, a line each.
    pub(super) fn not_done(&self) -> Vec<String> {
        self.not_done.lock().clone()
    }
}
