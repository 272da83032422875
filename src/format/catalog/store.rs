//! The tree of names that changes of the catalog are applied to.

use crate::core::RelPath;
use crate::format::catalog::{CatalogChange, Description};
use crate::format::steps::SlotNo;

/// A tree of names, some of them with descriptions. The time of an operation depends on the depth
/// of its path, not on the number of entries below it, except for discards.
pub trait CatalogStore {
    /// The error of the store.
    type Error;

    /// Discards all descriptions; the slots are empty.
    ///
    /// # Errors
    /// If the store fails.
    fn clear(&mut self) -> Result<(), Self::Error>;

    /// Moves the descriptions of `from` and below into the empty `slot`. The slot stays empty if
    /// there are none.
    ///
    /// # Errors
    /// If the store fails.
    fn detach(&mut self, from: &RelPath, slot: SlotNo) -> Result<(), Self::Error>;

    /// Discards the descriptions of `to` and below, and moves the contents of `slot` there.
    ///
    /// # Errors
    /// If the store fails.
    fn attach(&mut self, slot: SlotNo, to: &RelPath) -> Result<(), Self::Error>;

    /// Discards the descriptions of `path` and below.
    ///
    /// # Errors
    /// If the store fails.
    fn remove(&mut self, path: &RelPath) -> Result<(), Self::Error>;

    /// Describes `path`; descriptions below it stay.
    ///
    /// # Errors
    /// If the store fails.
    fn set(&mut self, path: &RelPath, description: &Description) -> Result<(), Self::Error>;

    /// Applies one change.
    ///
    /// # Errors
    /// If the store fails.
    fn take(&mut self, change: &CatalogChange) -> Result<(), Self::Error> {
        match change {
            CatalogChange::Detach { from, slot } => self.detach(from, *slot),
            CatalogChange::Attach { slot, to } => self.attach(*slot, to),
            CatalogChange::Remove { path } => self.remove(path),
            CatalogChange::Set { path, description } => self.set(path, description),
        }
    }
}

/// Returns the bytes that one name takes in a full segment: for a name of `name` bytes, with a
/// description of `description` encoded bytes, or 0 without one. The sum over all names is at least
/// the size of a full segment.
pub fn live_bytes(name: usize, description: usize) -> u64 {
    /// A tag, two lengths and a slash.
    const OVERHEAD: u64 = 1 + 2 + 4 + 1;
    OVERHEAD + name as u64 + description as u64
}
