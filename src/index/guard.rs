//! The lock on the [`State`], which sees to it that an operation that broke off leaves nothing half done.
//!
//! An operation changes several rows, then commits. If SQLite fails it in the middle, or it panics, what it has changed so far
//! must not be committed along with the next one. So when the lock is let go of after an error of SQLite, or in a panic, while
//! something is uncommitted, all of it is undone. What others had left uncommitted goes with it: that is never more than
//! attributes of the last moment, as everything that was promised to survive has been committed.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

use parking_lot::MutexGuard;

use super::State;

thread_local! {
    /// SQLite has failed on this thread since it last took the lock.
    static FAILED: Cell<bool> = const { Cell::new(false) };
}

/// Notes that SQLite has failed on this thread.
pub(super) fn note_failure() {
    FAILED.set(true);
}

/// The state, for reading and changing it. Dropping it lets go of the lock.
pub struct StateGuard<'a> {
    state: MutexGuard<'a, State>,
    /// Somebody else's panic brought us here: that our own work ends in the middle of it says nothing.
    unwinding: bool,
}

impl<'a> StateGuard<'a> {
    pub(super) fn new(state: MutexGuard<'a, State>) -> StateGuard<'a> {
        FAILED.set(false);
        StateGuard {
            state,
            unwinding: std::thread::panicking(),
        }
    }
}

impl Deref for StateGuard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        let broken = FAILED.take() || (std::thread::panicking() && !self.unwinding);
        if broken && self.state.has_uncommitted() {
            self.state.undo();
        }
    }
}
