//! Ctrl-C while a command waits for the daemon.
//!
//! The first one is noted, and the daemon asked to give the request up; the second one ends the command as usual. A command that
//! ends otherwise (by SIGTERM, by its terminal going away) cancels nothing: the daemon goes on.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the first Ctrl-C is only noted.
pub(super) fn watch() {
    crate::sys::signal::note_once(&INTERRUPTED);
}

/// Whether it has come.
pub(super) fn has_come() -> bool {
    INTERRUPTED.load(Ordering::Acquire)
}
