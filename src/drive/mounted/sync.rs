//! Syncs a mounted directory, and notes changes in file systems mounted inside it.

use std::os::fd::AsFd;

use std::io;

use crate::core::RelPath;
use crate::drive::kept::OpenDir;
use crate::drive::mounted::MountedDir;
use crate::drive::unsynced;

impl MountedDir {
    pub(super) fn sync_all(&self) -> io::Result<()> {
        let _one_at_a_time = self.unsynced.one_at_a_time();
        self.sync_unsynced()?;
        unsynced::sync_whole(self.open_directory(&RelPath::root())?)
    }

    /// Syncs what one `syncfs` of the root would miss. The caller holds the sync lock.
    fn sync_unsynced(&self) -> io::Result<()> {
        let mut pending = self.unsynced.take();
        let result = self.root().and_then(|root| pending.sync(root.as_fd()));
        self.unsynced.put_back(pending);
        result
    }

    /// Records that the entries or the attributes of `paths` have changed, in or at `dir`.
    pub(super) fn note(&self, dir: &OpenDir, paths: &[&RelPath]) -> io::Result<()> {
        self.note_change(dir, paths).map(drop)
    }

    /// The same. Returns whether files in `dir` must be synced one by one.
    fn note_change(&self, dir: &OpenDir, paths: &[&RelPath]) -> io::Result<bool> {
        let noted = self.unsynced.note(dir, paths)?;
        if noted.too_many {
            let _one_at_a_time = self.unsynced.one_at_a_time();
            self.sync_unsynced()?;
        }
        Ok(noted.each)
    }

    /// Records that a name has appeared or disappeared at `path`, which is in `dir`.
    pub(super) fn note_name(&self, dir: &OpenDir, path: &RelPath) -> io::Result<()> {
        self.note_new(dir, path).map(drop)
    }

    /// The same. Returns whether files in `dir` must be synced one by one.
    pub(super) fn note_new(&self, dir: &OpenDir, path: &RelPath) -> io::Result<bool> {
        let parent = path.split_last().map(|(parent, _)| parent);
        self.note_change(dir, &[&parent.unwrap_or_else(RelPath::root)])
    }
}
