//! Ctrl-C while a command waits for the daemon.
//!
//! The first one makes the command ask the daemon to cancel the request; the second one ends the
//! command as usual. A command that ends in another way (by SIGTERM, or because its terminal is
//! closed) cancels nothing: the daemon continues.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From here on the first Ctrl-C is only noted.
pub(super) fn watch() {
    crate::sys::signal::note_once(&INTERRUPTED);
}

/// Whether there was one.
pub(super) fn has_come() -> bool {
    INTERRUPTED.load(Ordering::Acquire)
}
