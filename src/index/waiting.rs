//! How long something has waited for the drive. In memory: after a start the time begins again.

use std::time::Instant;

use crate::index::{IndexWriter, Result};

/// How long something has waited for the drive.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WaitingSince {
    /// When something last began to wait, and when the oldest of it did. Without changes that the
    /// last flush has left behind.
    since: Option<(Instant, Instant)>,
    /// Counts changes that wait, since the index was opened.
    changes: u64,
    /// The same count at the last cut.
    changes_at_cut: u64,
}

impl WaitingSince {
    /// Returns whether something waits that no flush has tried.
    pub(super) fn has_begun(&self) -> bool {
        self.since.is_some()
    }
}

impl IndexWriter {
    /// Notes that something began to wait for the backend.
    pub(super) fn touch_dirty(&mut self) {
        let now = Instant::now();
        self.waiting.changes += 1;
        self.waiting.since = Some((now, self.waiting.since.map_or(now, |(_, oldest)| oldest)));
    }

    /// Notes that everything up to now is part of a cut.
    pub fn note_cut(&mut self) {
        self.waiting.changes_at_cut = self.waiting.changes;
    }

    /// Returns when something last began to wait for the backend, and when the oldest of it did;
    /// `None` if nothing waits, or only what the last flush has left behind: another flush would
    /// leave it behind again.
    pub fn dirty_since(&self) -> Option<(Instant, Instant)> {
        self.waiting.since
    }

    /// Notes that nothing waits, after all.
    pub(super) fn note_nothing_waits(&mut self) {
        self.waiting.since = None;
    }

    /// Notes that the flush that `began` then has succeeded: waiting changes that are not newer
    /// than its cut were left behind. They are tried again together with the next change, when a
    /// file is closed, or when the drive is attached.
    pub fn note_flushed(&mut self, began: Instant) {
        self.waiting.since = match self.waiting.since {
            Some((latest, _)) if self.waiting.changes > self.waiting.changes_at_cut => {
                Some((latest, began))
            }
            _ => None,
        };
    }

    /// Runs `mark`, which marks what a batch leaves behind: it waits, but no flush is due for it
    /// alone.
    pub fn mark_left_behind<T>(&mut self, mark: impl FnOnce(&mut IndexWriter) -> T) -> T {
        let before = self.waiting;
        let marked = mark(self);
        self.waiting = before;
        marked
    }

    /// Makes everything that waits count as waiting from now, if no flush is due for it yet: what
    /// was left behind must be tried again, or it is unknown since when it waits.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn try_again(&mut self) -> Result<()> {
        if self.waiting.since.is_none() && self.anything_dirty()? {
            let now = Instant::now();
            self.waiting.since = Some((now, now));
        }
        Ok(())
    }
}
