//! The thread that invalidates the kernel's caches.
//!
//! Invariant: it holds no lock. So it may wait for a kernel lock whose holder is a request that
//! waits for the daemon.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use crate::vfs::Fs;
use crate::vfs::Invalidation;

/// Interval at which the thread checks whether to end.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The thread, stopped on drop. Drop does not wait for it: it may be in the kernel until the mount
/// is gone.
pub(super) struct Invalidator {
    stop: Arc<AtomicBool>,
    fs: Arc<Fs>,
}

impl Invalidator {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub(super) fn start(fs: Arc<Fs>, notifier: Notifier) -> io::Result<Invalidator> {
        let stop = Arc::new(AtomicBool::new(false));
        let invalidator = Invalidator {
            stop: stop.clone(),
            fs: fs.clone(),
        };
        fs.invalidations().listen();
        std::thread::Builder::new()
            .name("ferryfs-tell".into())
            .spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    if let Some(notice) = fs.invalidations().next(LOOK_EVERY) {
                        send(&notifier, &notice);
                        fs.invalidations().sent();
                    }
                }
            })?;
        Ok(invalidator)
    }
}

impl Drop for Invalidator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.fs.invalidations().stop_listening();
    }
}

fn send(notifier: &Notifier, notice: &Invalidation) {
    let sent = match notice {
        Invalidation::Entry { parent, name } => notifier.inval_entry(
            INodeNo(parent.0),
            std::ffi::OsStr::from_bytes(name.as_bytes()),
        ),
        // The whole file.
        Invalidation::Inode { ino } => notifier.inval_inode(INodeNo(ino.0), 0, 0),
    };
    if let Err(error) = sent {
        // ENOTDIR, EBUSY and the like: the kernel has nothing cached, or it is in use as a mount
        // point. ENODEV: the mount is gone.
        tracing::debug!(%error, ?notice, "the kernel rejected an invalidation");
    }
}
