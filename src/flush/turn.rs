//! The turn: one flush, one recovery, or one look for external changes at a time.
//!
//! [`Turn`] owns the lock that separates them, outermost of all locks. It also knows whether the
//! holder is a look that writes nothing: such a look is no flush for `status`, and it yields to a
//! flush that waits ([`LookTurn::let_flush_pass`]). All of it is in memory.
//!
//! Invariant: `writes_nothing` is set only while a [`LookTurn`] exists and no batch is open.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::drive::Backend;
use crate::error::{FlushError, Result};
use crate::flush::Hooks;
use crate::flush::report::Wish;

/// How long a flush waits for its turn before it checks whether it may continue.
const FLUSH_SLICE: Duration = Duration::from_millis(50);

/// How long a look waits for its turn before it checks whether it has taken long enough.
const LOOK_SLICE: Duration = Duration::from_millis(200);

#[derive(Default)]
pub(super) struct Turn {
    taken: Mutex<()>,
    /// The holder is a look for external changes, which writes nothing now.
    writes_nothing: AtomicBool,
}

/// The turn of a flush or a recovery, until it is dropped.
pub(super) struct FlushTurn<'a> {
    _taken: MutexGuard<'a, ()>,
}

/// The turn of a look for external changes, until it is dropped.
pub(super) struct LookTurn<'a> {
    turn: &'a Turn,
    taken: MutexGuard<'a, ()>,
}

/// The time in which the holder of a turn may write to the backend, until it is dropped.
pub(super) struct Writing<'a> {
    hooks: &'a dyn Hooks,
    backend: &'a dyn Backend,
}

impl<'a> Writing<'a> {
    /// Begins it. The caller has the turn.
    pub(super) fn begin(hooks: &'a dyn Hooks, backend: &'a dyn Backend) -> Writing<'a> {
        hooks.begin_writing(backend);
        Writing { hooks, backend }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.hooks.end_writing(self.backend);
    }
}

impl Turn {
    /// Waits for the turn of a flush.
    ///
    /// # Errors
    /// [`FlushError::TimedOut`] or [`FlushError::Cancelled`], as `wish` says.
    pub(super) fn for_flush(&self, wish: &Wish) -> Result<FlushTurn<'_>> {
        let taken = loop {
            if let Some(taken) = self.taken.try_lock_for(FLUSH_SLICE) {
                break taken;
            }
            wish.check()?;
        };
        wish.check()?;
        Ok(FlushTurn { _taken: taken })
    }

    /// Waits for the turn of a recovery.
    pub(super) fn for_recovery(&self) -> FlushTurn<'_> {
        FlushTurn {
            _taken: self.taken.lock(),
        }
    }

    /// Waits for the turn of a look, until `enough` says so.
    ///
    /// # Errors
    /// [`FlushError::TimedOut`].
    pub(super) fn for_look(&self, enough: &dyn Fn() -> bool) -> Result<LookTurn<'_>> {
        loop {
            match self.taken.try_lock_for(LOOK_SLICE) {
                Some(taken) => return Ok(LookTurn { turn: self, taken }),
                None if enough() => return Err(FlushError::TimedOut),
                None => {}
            }
        }
    }

    /// Returns whether a flush or a recovery is running, also one that a look has begun with.
    pub(super) fn is_flush_running(&self) -> bool {
        self.taken.is_locked() && !self.writes_nothing.load(Ordering::Acquire)
    }
}

impl LookTurn<'_> {
    /// Notes that no batch is open, so the look writes nothing from here on.
    pub(super) fn note_no_batch(&self) {
        self.turn.writes_nothing.store(true, Ordering::Release);
    }

    /// Yields to a flush that waits, and waits for it. A batch may be open afterwards.
    pub(super) fn let_flush_pass(&mut self) {
        self.turn.writes_nothing.store(false, Ordering::Release);
        MutexGuard::bump(&mut self.taken);
    }
}

impl Drop for LookTurn<'_> {
    fn drop(&mut self) {
        // The lock is released after this, as a field of the turn.
        self.turn.writes_nothing.store(false, Ordering::Release);
    }
}
