//! What the batches of this daemon have done together.

use std::time::Duration;

use parking_lot::Mutex;

use crate::core::Timestamp;
use crate::daemon::history::Outcome;
use crate::flush::{BatchNote, NotedEnd};

/// Upper bounds of the buckets of durations, in seconds.
pub(super) const BOUNDS: [f64; 8] = [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0];

/// Sums over all batches.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sums {
    /// Batches by outcome, in the order of [`Outcome::ALL`].
    pub(super) by_outcome: [u64; Outcome::ALL.len()],
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) removed: u64,
    pub(super) moved: u64,
    pub(super) conflicts: u64,
    /// Batches by duration: the buckets of [`BOUNDS`], then the rest.
    pub(super) durations: [u64; BOUNDS.len() + 1],
    pub(super) took: Duration,
    /// When the last one that is on the drive has ended.
    pub(super) last_written: Option<Timestamp>,
}

/// Counts batches.
#[derive(Default)]
pub(in crate::daemon) struct Totals(Mutex<Sums>);

impl Totals {
    /// Counts a batch that has ended at `time`.
    pub(in crate::daemon) fn note(&self, note: &BatchNote, time: Timestamp) {
        let mut sums = self.0.lock();
        let outcome = Outcome::from(note.end);
        let place = Outcome::ALL.iter().position(|one| *one == outcome);
        sums.by_outcome[place.unwrap_or(0)] += 1;
        sums.files += note.files;
        sums.bytes += note.bytes;
        sums.removed += note.removed;
        sums.moved += note.moved;
        sums.conflicts += note.conflicts;
        let took = note.took.as_secs_f64();
        sums.durations[BOUNDS.partition_point(|bound| *bound < took)] += 1;
        sums.took += note.took;
        if matches!(note.end, NotedEnd::Complete | NotedEnd::LeftBehind) {
            sums.last_written = Some(time);
        }
    }

    pub(super) fn get(&self) -> Sums {
        self.0.lock().clone()
    }
}
