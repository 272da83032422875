//! The backend for readers, and the paths of the mount's files on it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLockReadGuard;

use crate::core::{Ino, RelPath};
use crate::drive::connection::{Drive, Withheld};
use crate::drive::{Backend, BackendError};
use crate::index::Index;
use crate::plan::touched::Touched;
use crate::vfs::{FsError, FsParts, Result};

/// Finds files of the mount on the attached backend. It owns nothing but the longest wait of a
/// request. Lock order: names on the drive, then the index.
#[derive(Clone)]
pub(crate) struct DrivePaths {
    index: Arc<Index>,
    drive: Arc<Drive>,
    /// How long a request may wait for names that a batch is moving.
    io_timeout: Duration,
}

impl DrivePaths {
    pub(in crate::vfs) fn new(parts: &FsParts) -> DrivePaths {
        DrivePaths {
            index: parts.index.clone(),
            drive: parts.drive.clone(),
            io_timeout: parts.io_timeout,
        }
    }

    /// Returns the backend for readers.
    pub(in crate::vfs) fn backend(&self) -> Result<Arc<dyn Backend>> {
        self.drive.get().ok_or(FsError::Detached)
    }

    pub(in crate::vfs) fn is_attached(&self) -> bool {
        self.drive.is_attached()
    }

    /// Checks that a backend is attached.
    pub(in crate::vfs) fn check_attached(&self) -> Result<()> {
        match self.is_attached() {
            true => Ok(()),
            false => Err(FsError::Detached),
        }
    }

    /// Waits, at most `patience`, until released files of the backend are closed.
    pub(super) fn wait_for_closes(&self, patience: Duration) -> bool {
        self.drive.wait_for_closes(patience)
    }

    /// Returns the backend's path of `ino`, which stays valid while the guard lives. `concerned`
    /// says whether a batch that is moving names may move this one.
    ///
    /// # Errors
    /// `ETIMEDOUT` if a batch is moving it, or was interrupted in doing so.
    pub(in crate::vfs) fn settled(
        &self,
        ino: Ino,
        concerned: impl Fn(&Touched, &RelPath) -> bool,
    ) -> Result<(RwLockReadGuard<'_, Withheld>, RelPath)> {
        let find = || self.index.lock().backend_path(ino);
        let is_concerned = |touched: &Touched, found: &crate::index::Result<Option<RelPath>>| matches!(found, Ok(Some(path)) if concerned(touched, path));
        let held = self.drive.hold_names(self.io_timeout, find, is_concerned);
        let (names, path) = held.ok_or(FsError::Errno(libc::ETIMEDOUT))?;
        Ok((names, path?.ok_or(FsError::STALE)?))
    }
}

/// Converts an error of the backend, and logs one that concerns the backend as a whole.
pub(crate) fn note_backend_error(error: BackendError) -> FsError {
    if error.is_gone() {
        tracing::warn!(%error, "the backend has failed");
    }
    FsError::Backend(error)
}
