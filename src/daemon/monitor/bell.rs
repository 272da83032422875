//! Wakes the thread that watches the drive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::drive::mounted::MountedDir;
use crate::drive::revocable::Watched;

/// Asks the watching thread to look at once.
pub(in crate::daemon) struct Bell {
    pub(super) wake: (Sender<()>, Receiver<()>),
    /// The backend has returned an error that may mean that it is gone.
    pub(super) suspicious: AtomicBool,
}

impl Bell {
    pub(in crate::daemon) fn new() -> Arc<Bell> {
        Arc::new(Bell {
            wake: bounded(1),
            suspicious: AtomicBool::new(false),
        })
    }

    /// Asks for a look.
    pub(super) fn ring(&self) {
        // Fails if a look is requested already, which is enough.
        let _ = self.wake.0.try_send(());
    }

    /// Asks for a look that reads from the drive.
    pub(super) fn suspect(&self) {
        self.suspicious.store(true, Ordering::Release);
        self.ring();
    }

    /// `dir` as it is attached: an error that may mean that the drive is gone rings this bell.
    pub(in crate::daemon) fn watch(self: &Arc<Bell>, dir: MountedDir) -> Arc<Watched> {
        let bell = self.clone();
        Arc::new(Watched::new(
            Arc::new(dir),
            Box::new(move || bell.suspect()),
        ))
    }
}
