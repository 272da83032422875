//! What became of a batch, as it is noted in the history: one note for each batch that was written,
//! given up or interrupted, and one when an interrupted batch is finished. A batch that turns out
//! to be empty, or that begins again because others have changed the drive, has none.

use std::time::{Duration, Instant};

use crate::apply::journal::Journal;
use crate::core::BatchNo;
use crate::error::FlushError;
use crate::flush::Flusher;
use crate::flush::report::Report;
use crate::format::steps::{ClearStep, Steps};

/// How a batch ended, for the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotedEnd {
    /// All of it is on the backend.
    Complete,
    /// It is on the backend, and some entries are missing from it.
    LeftBehind,
    /// It was given up before anything under a final name was touched.
    GivenUp,
    /// It was committed and could not be finished; the next recovery finishes it.
    Interrupted,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchNote {
    /// Its number.
    pub batch: BatchNo,
    /// How it ended.
    pub end: NotedEnd,
    /// A recovery has finished it, or has found that it must be given up.
    pub recovered: bool,
    /// Files that it has written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names that it has removed.
    pub removed: u64,
    /// Names that it has moved.
    pub moved: u64,
    /// Conflicts that were found since the last note.
    pub conflicts: u64,
    /// Entries that it has left behind.
    pub left_behind: u64,
    /// How long it took.
    pub took: Duration,
    /// Why it was given up or interrupted.
    pub problem: Option<String>,
}

impl BatchNote {
    /// Returns the note of a batch that has written nothing.
    fn empty(batch: BatchNo, end: NotedEnd) -> BatchNote {
        BatchNote {
            batch,
            end,
            recovered: false,
            files: 0,
            bytes: 0,
            removed: 0,
            moved: 0,
            conflicts: 0,
            left_behind: 0,
            took: Duration::ZERO,
            problem: None,
        }
    }
}

/// Returns how many names the steps remove, and how many they move.
pub(super) fn removed_and_moved<C>(steps: &Steps<C>) -> (u64, u64) {
    let is_move = |step: &&ClearStep| matches!(step, ClearStep::Detach { .. });
    let moved = steps.clear.iter().filter(is_move).count() as u64;
    (steps.clear.len() as u64 - moved, moved)
}

impl Flusher {
    /// Notes the end of a batch that took `took`.
    pub(super) fn note_ended(
        &self,
        batch: BatchNo,
        result: &Result<Report, FlushError>,
        took: Duration,
    ) {
        let note = match result {
            Ok(Report { batch: None, .. }) | Err(FlushError::ChangedElsewhere { .. }) => return,
            Ok(report) => BatchNote {
                files: report.files,
                bytes: report.bytes,
                removed: report.removed,
                moved: report.moved,
                conflicts: self.conflicts.take_unnoted() + report.conflicts.len() as u64,
                left_behind: report.left_behind.len() as u64,
                ..BatchNote::empty(batch, end(report.left_behind.is_empty()))
            },
            Err(error) => {
                let is_open = self.parts.index.lock().active_batch().is_some();
                let end = match is_open {
                    true => NotedEnd::Interrupted,
                    false => NotedEnd::GivenUp,
                };
                BatchNote {
                    problem: Some(error.to_string()),
                    ..BatchNote::empty(batch, end)
                }
            }
        };
        self.parts.hooks.batch_ended(&BatchNote { took, ..note });
    }

    /// Notes that a recovery which `began` then has finished the batch of `journal`.
    pub(super) fn note_recovered(&self, journal: &Journal, left_behind: usize, began: Instant) {
        let (removed, moved) = removed_and_moved(&journal.record.steps);
        self.parts.hooks.batch_ended(&BatchNote {
            recovered: true,
            files: journal.files,
            bytes: journal.bytes,
            removed,
            moved,
            conflicts: self.conflicts.take_unnoted(),
            left_behind: left_behind as u64,
            took: began.elapsed(),
            ..BatchNote::empty(journal.record.batch, end(left_behind == 0))
        });
    }

    /// Notes that a recovery has given up a batch that was interrupted before its commit.
    pub(super) fn note_never_committed(&self, batch: BatchNo, problem: &str) {
        self.parts.hooks.batch_ended(&BatchNote {
            recovered: true,
            problem: Some(problem.into()),
            ..BatchNote::empty(batch, NotedEnd::GivenUp)
        });
    }
}

/// The end of a batch that is on the backend.
fn end(is_all_there: bool) -> NotedEnd {
    match is_all_there {
        true => NotedEnd::Complete,
        false => NotedEnd::LeftBehind,
    }
}
