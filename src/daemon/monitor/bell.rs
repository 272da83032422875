//! Wakes the thread that watches the drive.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use crate::drive::mounted::MountedDir;
use crate::drive::revocable::Watched;
use crate::sys::time;

/// Asks the watching thread to look at once.
pub(in crate::daemon) struct Bell {
    /// Readable while a look is requested: one call waits for it and for the mount table.
    wake: OwnedFd,
    /// The backend has returned an error that may mean that it is gone.
    pub(super) suspicious: AtomicBool,
}

impl Bell {
    /// A bell that has not been rung.
    ///
    /// # Errors
    /// If the system gives no descriptor.
    pub(in crate::daemon) fn new() -> io::Result<Arc<Bell>> {
        Ok(Arc::new(Bell {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            suspicious: AtomicBool::new(false),
        }))
    }

    /// The descriptor that is readable while a look is requested.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Asks for a look.
    pub(super) fn ring(&self) {
        // Fails only if 2^64 looks are requested already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Whether a look has been requested since the last call.
    pub(super) fn take_ring(&self) -> bool {
        rustix::io::read(&self.wake, &mut [0; 8]).is_ok()
    }

    /// Asks for a look that reads from the drive.
    pub(super) fn suspect(&self) {
        self.suspicious.store(true, Ordering::Release);
        self.ring();
    }

    /// `dir` as it is attached: an error that may mean that the drive is gone rings this bell, and
    /// after a sleep of the machine the drive is looked at before it is used.
    pub(in crate::daemon) fn watch(self: &Arc<Bell>, dir: MountedDir) -> Arc<Watched> {
        let bell = self.clone();
        Arc::new(Watched::with_sleep(
            Arc::new(dir),
            Box::new(move || bell.suspect()),
            Box::new(time::asleep),
        ))
    }
}
