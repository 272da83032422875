//! The only room that names `fuser`: it turns requests into calls of [`crate::fs::Fs`] and answers into replies.
//!
//! An operation runs on the event thread that received it, and once more on a worker if it says that it would have to wait for
//! the backend. A panic in one request answers EIO to that request and is logged; it takes nobody along.

mod adapter;
mod convert;
mod workers;

use std::io;
use std::path::Path;
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};

use crate::fs::{Fs, Syncer};

pub use workers::Workers;

/// Options of the mount that the kernel is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Shown as the source in the mount table: the backend's path.
    pub source: String,
    /// Everybody may enter, not only the owner.
    pub allow_other: bool,
    /// Set-user-id bits count.
    pub suid: bool,
    /// Device nodes work.
    pub dev: bool,
    /// Programs may be run.
    pub exec: bool,
}

/// A mounted file system with its event loops running. Dropping it unmounts.
pub struct Session {
    background: BackgroundSession,
}

impl Session {
    /// Mounts `fs` at `mountpoint` and serves it from threads of its own.
    ///
    /// # Errors
    /// If the kernel or fusermount3 refuses.
    pub fn mount(
        fs: Arc<Fs>,
        workers: Workers,
        syncer: Arc<Syncer>,
        mountpoint: &Path,
        options: &SessionOptions,
    ) -> io::Result<Session> {
        let flag = |on, yes, no| if on { yes } else { no };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(options.source.clone()),
            MountOption::Subtype("ferryfs".into()),
            MountOption::DefaultPermissions,
            flag(options.suid, MountOption::Suid, MountOption::NoSuid),
            flag(options.dev, MountOption::Dev, MountOption::NoDev),
            flag(options.exec, MountOption::Exec, MountOption::NoExec),
        ];
        config.acl = if options.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        config.n_threads = Some(
            std::thread::available_parallelism()
                .map_or(2, usize::from)
                .clamp(2, 8),
        );
        config.clone_fd = true;
        let adapter = adapter::Adapter::new(fs, workers, syncer);
        fuser::spawn_mount(adapter, mountpoint, &config).map(|background| Session { background })
    }

    /// Whether the kernel has ended the session, because somebody has unmounted it.
    pub fn is_over(&self) -> bool {
        self.background.guard.is_finished()
    }

    /// Unmounts and waits until the last request is answered.
    ///
    /// # Errors
    /// `EBUSY` if somebody has files open in it.
    pub fn end(self) -> io::Result<()> {
        if self.is_over() {
            return self.background.join();
        }
        self.background.umount_and_join()
    }
}
