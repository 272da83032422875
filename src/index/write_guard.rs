//! The lock on the [`IndexWriter`], which ensures that a failed operation leaves nothing half done.
//!
//! An operation changes several rows, then is finished. If SQLite fails in the middle, or the
//! operation panics, its changes so far must not be finished along with the next one. So when the
//! lock is released after an error of SQLite, or in a panic, all unfinished changes are undone.
//! Unfinished changes of other threads are undone with them: these are only attributes of the last
//! moment, as everything that must survive is finished.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

use parking_lot::MutexGuard;

use crate::index::IndexWriter;

thread_local! {
    /// SQLite has failed on this thread since it last took the lock.
    static FAILED: Cell<bool> = const { Cell::new(false) };
}

/// Notes that SQLite has failed on this thread.
pub(super) fn note_failure() {
    FAILED.set(true);
}

/// The locked writer's side, for reading and changing. Its drop releases the lock.
pub struct WriteGuard<'a> {
    state: MutexGuard<'a, IndexWriter>,
    /// The guard was taken during another panic, so a panic at its drop says nothing about this
    /// operation.
    unwinding: bool,
}

impl<'a> WriteGuard<'a> {
    pub(super) fn new(state: MutexGuard<'a, IndexWriter>) -> WriteGuard<'a> {
        FAILED.set(false);
        WriteGuard {
            state,
            unwinding: std::thread::panicking(),
        }
    }
}

impl Deref for WriteGuard<'_> {
    type Target = IndexWriter;

    fn deref(&self) -> &IndexWriter {
        &self.state
    }
}

impl DerefMut for WriteGuard<'_> {
    fn deref_mut(&mut self) -> &mut IndexWriter {
        &mut self.state
    }
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        let broken = FAILED.take() || (std::thread::panicking() && !self.unwinding);
        if broken && self.state.has_unfinished() {
            self.state.undo();
        }
    }
}
