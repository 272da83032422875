//! What the changes of a catalog act on: a tree of names, each with a description or without.

use super::{CatalogChange, Description};
use crate::base::RelPath;
use crate::rules::steps::SlotNo;

/// A tree of names of which some are described. Every operation takes about as long as its path is deep, however much is below
/// it, but for what is forgotten.
pub trait CatalogStore {
    /// What can go wrong.
    type Error;

    /// Nothing is known of anything from here on; the slots are empty.
    ///
    /// # Errors
    /// If the store fails.
    fn clear(&mut self) -> Result<(), Self::Error>;

    /// Moves what is known of `from` and all below it into the empty `slot`; the slot stays empty if nothing is.
    ///
    /// # Errors
    /// If the store fails.
    fn detach(&mut self, from: &RelPath, slot: SlotNo) -> Result<(), Self::Error>;

    /// Forgets what is known of `to` and all below it, and moves there what is in `slot`, if anything.
    ///
    /// # Errors
    /// If the store fails.
    fn attach(&mut self, slot: SlotNo, to: &RelPath) -> Result<(), Self::Error>;

    /// Forgets what is known of `path` and all below it.
    ///
    /// # Errors
    /// If the store fails.
    fn remove(&mut self, path: &RelPath) -> Result<(), Self::Error>;

    /// Describes `path`; what is known below it stays.
    ///
    /// # Errors
    /// If the store fails.
    fn set(&mut self, path: &RelPath, description: &Description) -> Result<(), Self::Error>;

    /// Takes one change.
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

/// What one name takes in the whole of a catalog, in bytes: `name` bytes long, with a description of `description` encoded bytes,
/// or 0 without one. The sum of it over all names is what a full segment takes, or a little more.
pub fn live_bytes(name: usize, description: usize) -> u64 {
    /// A tag, two lengths and a slash.
    const OVERHEAD: u64 = 1 + 2 + 4 + 1;
    OVERHEAD + name as u64 + description as u64
}
