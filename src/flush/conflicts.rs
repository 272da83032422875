//! Conflicts found outside of a batch: while an interrupted batch was finished, or while external
//! changes were imported.
//!
//! [`Conflicts`] keeps them for the report of the next flush that succeeds. They are in memory: the
//! conflict names are on the drive and in the mount in any case.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// The path of a file that both sides have changed, and the conflict name of the other version.
type Conflict = (String, String);

#[derive(Default)]
pub(super) struct Conflicts {
    found: Mutex<Vec<Conflict>>,
    /// How many of them no note of a batch has counted.
    unnoted: AtomicU64,
}

impl Conflicts {
    pub(super) fn note(&self, found: impl IntoIterator<Item = Conflict>) {
        let mut kept = self.found.lock();
        let before = kept.len();
        kept.extend(found);
        let new = (kept.len() - before) as u64;
        self.unnoted.fetch_add(new, Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> Vec<Conflict> {
        std::mem::take(&mut *self.found.lock())
    }

    /// Returns how many were found since the last call, for the note of a batch.
    pub(super) fn take_unnoted(&self) -> u64 {
        self.unnoted.swap(0, Ordering::Relaxed)
    }
}
