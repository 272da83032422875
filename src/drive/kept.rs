//! Descriptors that are kept open for the length of a phase of a batch, so that its calls do not
//! open the same directories again and again.
//!
//! Kept are the root, which was identified when it was opened, and the staging directory of the
//! batch. All other directories are opened by each call, below the kept root and without following
//! links, since others may move or replace them at any moment. A kept root leads to the same
//! directory of the same mount, whatever is done to its path meanwhile; the next phase identifies
//! the path again.
//!
//! While a descriptor is kept the drive cannot be unmounted. [`crate::drive::revocable`] closes
//! them when the drive goes.

use std::any::Any;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::core::RelPath;
use crate::format::layout;

/// An open directory of the drive.
#[derive(Debug)]
pub(super) struct OpenDir {
    fd: OwnedFd,
    /// It is known to be on the mount of the root.
    pub(super) is_on_root_mount: bool,
}

impl OpenDir {
    pub(super) fn root(fd: OwnedFd) -> OpenDir {
        OpenDir {
            fd,
            is_on_root_mount: true,
        }
    }

    pub(super) fn below((fd, is_on_root_mount): (OwnedFd, bool)) -> OpenDir {
        OpenDir {
            fd,
            is_on_root_mount,
        }
    }
}

impl Deref for OpenDir {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.fd
    }
}

impl AsFd for OpenDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Keeps descriptors open until it is dropped.
pub type KeptOpen = Box<dyn Any + Send + Sync>;

/// The kept descriptors of one backend, shared by its clones.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The number of phases under way.
    phases: usize,
    root: Option<Arc<OpenDir>>,
    staging: Option<(RelPath, Arc<OpenDir>)>,
}

/// A phase.
struct Phase(Arc<Kept>);

impl Drop for Phase {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.phases -= 1;
        if state.phases == 0 {
            *state = State::default();
        }
    }
}

impl Kept {
    /// Begins a phase. It opens nothing by itself.
    pub(super) fn begin(self: &Arc<Self>) -> KeptOpen {
        self.0.lock().phases += 1;
        Box::new(Phase(self.clone()))
    }

    /// Returns the kept root, or opens it, and keeps it if a phase is under way. No lock is held
    /// while it is opened: that may wait for the drive.
    pub(super) fn root(
        &self,
        open: impl FnOnce() -> io::Result<OpenDir>,
    ) -> io::Result<Arc<OpenDir>> {
        if let Some(root) = &self.0.lock().root {
            return Ok(root.clone());
        }
        let root = Arc::new(open()?);
        let mut state = self.0.lock();
        if state.phases > 0 {
            state.root = Some(root.clone());
        }
        Ok(root)
    }

    /// The same for the directory `dir`, if it is a staging directory.
    pub(super) fn staging(
        &self,
        dir: &RelPath,
        open: impl FnOnce() -> io::Result<OpenDir>,
    ) -> io::Result<Arc<OpenDir>> {
        if !layout::is_staging_dir(dir) {
            return open().map(Arc::new);
        }
        if let Some((path, kept)) = &self.0.lock().staging
            && path == dir
        {
            return Ok(kept.clone());
        }
        let opened = Arc::new(open()?);
        let mut state = self.0.lock();
        if state.phases > 0 {
            state.staging = Some((dir.clone(), opened.clone()));
        }
        Ok(opened)
    }

    /// Closes what is kept at or below `path`, which is about to be moved or removed.
    pub(super) fn forget(&self, path: &RelPath) {
        let mut state = self.0.lock();
        state.staging.take_if(|(dir, _)| dir.is_in_or_at(path));
    }
}
