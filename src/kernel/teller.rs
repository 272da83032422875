//! The one thread that tells the kernel what is not so any more: it holds no lock, so it may wait for one of the kernel's that a
//! request holds which waits for us.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use crate::fs::{Fs, Notice};

/// How often it looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The thread, until it is dropped. It is not waited for: it may sit in the kernel until the mount is gone.
pub(super) struct Teller {
    stop: Arc<AtomicBool>,
    fs: Arc<Fs>,
}

impl Teller {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub(super) fn start(fs: Arc<Fs>, notifier: Notifier) -> io::Result<Teller> {
        let stop = Arc::new(AtomicBool::new(false));
        let teller = Teller {
            stop: stop.clone(),
            fs: fs.clone(),
        };
        fs.notices().listen();
        std::thread::Builder::new()
            .name("ferryfs-tell".into())
            .spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    if let Some(notice) = fs.notices().next(LOOK_EVERY) {
                        tell(&notifier, &notice);
                        fs.notices().told();
                    }
                }
            })?;
        Ok(teller)
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.fs.notices().stop_listening();
    }
}

fn tell(notifier: &Notifier, notice: &Notice) {
    let told = match notice {
        Notice::Entry { parent, name } => notifier.inval_entry(
            INodeNo(parent.0),
            std::ffi::OsStr::from_bytes(name.as_bytes()),
        ),
        // From the first byte to the last.
        Notice::Inode { ino } => notifier.inval_inode(INodeNo(ino.0), 0, 0),
    };
    if let Err(error) = told {
        // ENOTDIR, EBUSY and the like: there is nothing remembered, or it is in use as a mount point. ENODEV: the mount is gone.
        tracing::debug!(%error, ?notice, "the kernel has not taken a notice");
    }
}
