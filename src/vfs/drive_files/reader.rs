//! The backend's file of one open inode.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::drive::ReadFile;
use crate::vfs::object_files::Counted;

/// The backend's file of an open inode, while reads go there.
#[derive(Default)]
pub(crate) struct Reader {
    file: Mutex<Option<OpenedFile>>,
}

struct OpenedFile {
    file: Arc<dyn ReadFile>,
    used: Instant,
    /// A batch removes the file from the backend: after a close it could not be opened again.
    kept: bool,
    _counted: Counted,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader(open: {})", self.file.lock().is_some())
    }
}

impl Reader {
    /// Returns the file for a read, if it is open.
    pub(super) fn get(&self) -> Option<Arc<dyn ReadFile>> {
        let mut opened = self.file.lock();
        let opened = opened.as_mut()?;
        opened.used = Instant::now();
        Some(opened.file.clone())
    }

    /// Makes `file` the open one. If another thread has opened the file too, and it must be kept,
    /// that also applies to this one.
    pub(super) fn put(&self, file: Arc<dyn ReadFile>, kept: bool, counted: Counted) {
        let mut opened = self.file.lock();
        let kept = kept || opened.as_ref().is_some_and(|before| before.kept);
        *opened = Some(OpenedFile {
            file,
            used: Instant::now(),
            kept,
            _counted: counted,
        });
    }

    /// Keeps the file open from now on, because it could not be opened again. Returns whether it is
    /// open.
    pub(super) fn keep(&self) -> bool {
        let mut opened = self.file.lock();
        if let Some(opened) = opened.as_mut() {
            opened.kept = true;
        }
        opened.is_some()
    }

    /// Returns the time of the last read, if the file is open and may be closed.
    pub(super) fn last_read(&self) -> Option<Instant> {
        let opened = self.file.lock();
        let opened = opened.as_ref().filter(|opened| !opened.kept)?;
        Some(opened.used)
    }

    /// Closes the file if it has not been read for `idle`, unless it must be kept.
    pub(super) fn close_idle(&self, idle: Duration) {
        let mut opened = self.file.lock();
        if opened
            .as_ref()
            .is_some_and(|opened| !opened.kept && opened.used.elapsed() >= idle)
        {
            *opened = None;
        }
    }

    /// Closes the file, even if it cannot be opened again.
    pub(crate) fn close(&self) {
        *self.file.lock() = None;
    }
}
