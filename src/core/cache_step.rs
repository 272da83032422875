//! Fail points of the cache: one before each step that changes the SSD.
//!
//! The code of such a step calls [`CacheSteps`] first. Only tests can set a watch; without the
//! feature `testing` the call compiles to nothing.

#[cfg(any(test, feature = "testing"))]
use std::fmt;
use std::io;
#[cfg(any(test, feature = "testing"))]
use std::sync::{Arc, OnceLock};

/// A step that changes something on the SSD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CacheStep {
    /// Append of a finished operation to the redo log of the index.
    LogOperation,
    /// Commit of an index transaction.
    Commit,
    /// Sync of the index.
    SyncIndex,
    /// Creation of an object.
    CreateObject,
    /// A write to an object.
    WriteObject,
    /// Sync of an object.
    SyncObject,
    /// Removal of an object.
    RemoveObject,
    /// Move of an object to `lost+found`.
    KeepObject,
    /// Write of a batch's journal.
    WriteJournal,
    /// Removal of a batch's journal.
    RemoveJournal,
}

/// Decides whether a step fails.
#[cfg(any(test, feature = "testing"))]
pub trait StepWatch: Send + Sync {
    /// Called before the step.
    ///
    /// # Errors
    /// The error with which the step fails. The step is then not done.
    fn before(&self, step: CacheStep) -> io::Result<()>;
}

/// The place of a watch, which can be set once. Clones share it.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone, Default)]
pub struct CacheSteps(Arc<OnceLock<Arc<dyn StepWatch>>>);

#[cfg(any(test, feature = "testing"))]
impl CacheSteps {
    /// Sets the watch for all later steps. Only the first call has an effect.
    pub fn watch(&self, watch: Arc<dyn StepWatch>) {
        let _ = self.0.set(watch);
    }

    /// Called before each step.
    ///
    /// # Errors
    /// The watch's error; none without a watch.
    pub(crate) fn before(&self, step: CacheStep) -> io::Result<()> {
        self.0.get().map_or(Ok(()), |watch| watch.before(step))
    }
}

#[cfg(any(test, feature = "testing"))]
impl fmt::Debug for CacheSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watched = self.0.get().is_some();
        f.debug_struct("CacheSteps")
            .field("watched", &watched)
            .finish()
    }
}

/// The place of a watch, without the feature `testing`: always empty.
#[cfg(not(any(test, feature = "testing")))]
#[derive(Clone, Debug, Default)]
pub struct CacheSteps(());

#[cfg(not(any(test, feature = "testing")))]
impl CacheSteps {
    pub(crate) fn before(&self, _: CacheStep) -> io::Result<()> {
        Ok(())
    }
}
