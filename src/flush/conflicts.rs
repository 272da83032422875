//! Conflicts found outside of a batch: while an interrupted batch was finished, or while external
//! changes were imported.
//!
//! [`Conflicts`] keeps them for the report of the next flush that succeeds. They are in memory: the
//! conflict names are on the drive and in the mount in any case.

use parking_lot::Mutex;

/// The path of a file that both sides have changed, and the conflict name of the other version.
type Conflict = (String, String);

#[derive(Default)]
pub(super) struct Conflicts(Mutex<Vec<Conflict>>);

impl Conflicts {
    pub(super) fn note(&self, found: impl IntoIterator<Item = Conflict>) {
        self.0.lock().extend(found);
    }

    pub(super) fn take(&self) -> Vec<Conflict> {
        std::mem::take(&mut *self.0.lock())
    }
}
