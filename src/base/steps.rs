//! A place where a test may stop the cache: before each step that changes something on the SSD.
//!
//! Whoever takes such steps holds a [`CacheSteps`] and asks it first. Outside tests nobody watches, and asking is one load.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

/// A step that changes something on the SSD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CacheStep {
    /// A transaction of the index is committed.
    Commit,
    /// The index is made durable.
    SyncIndex,
    /// An object is made.
    CreateObject,
    /// Bytes are written to an object.
    WriteObject,
    /// An object is made durable.
    SyncObject,
    /// An object is removed.
    RemoveObject,
    /// An object goes to `lost+found`.
    KeepObject,
    /// The journal of a batch is written.
    WriteJournal,
    /// The journal of a batch is removed.
    RemoveJournal,
}

/// Who is asked before each step.
pub trait StepWatch: Send + Sync {
    /// Called before the step is taken.
    ///
    /// # Errors
    /// What the step is to fail with, without having been taken.
    fn before(&self, step: CacheStep) -> io::Result<()>;
}

/// Where a watch can be set, once. Clones share it.
#[derive(Clone, Default)]
pub struct CacheSteps(Arc<OnceLock<Arc<dyn StepWatch>>>);

impl CacheSteps {
    /// Has `watch` asked before each step from here on. Only the first that is set counts.
    pub fn watch(&self, watch: Arc<dyn StepWatch>) {
        let _ = self.0.set(watch);
    }

    /// To be called before each step.
    ///
    /// # Errors
    /// What the watch says; nothing if there is none.
    pub(crate) fn before(&self, step: CacheStep) -> io::Result<()> {
        self.0.get().map_or(Ok(()), |watch| watch.before(step))
    }
}

impl fmt::Debug for CacheSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watched = self.0.get().is_some();
        f.debug_struct("CacheSteps")
            .field("watched", &watched)
            .finish()
    }
}
