//! What a flush needs of the file system that it writes.

use crate::core::{BatchNo, Ino, WhileOpen};
use crate::drive::Backend;
use crate::error::Result;
use crate::flush::changes::Change;
use crate::flush::note::BatchNote;
use crate::index::{IndexWriter, LeftOut};
use crate::plan::merge::Changes;

/// What a flush needs of the file system that it writes. The daemon implements it, so that `flush`
/// and `vfs` need not know each other.
pub trait Hooks: Send + Sync {
    /// Makes everything in the cache durable.
    ///
    /// # Errors
    /// [`crate::error::FlushError::Sync`].
    fn sync_cache(&self) -> Result<()>;

    /// Brings the rows of files that were written up to date with their objects.
    ///
    /// # Errors
    /// If the cache or the backend fails. A file whose row is not up to date is left behind.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    /// Runs `cut` while no open file changes, with the locked index. It gets the files that the
    /// batch must leave out although nobody may be changing them.
    ///
    /// # Errors
    /// Those of `cut`.
    fn at_rest(
        &self,
        while_open: WhileOpen,
        cut: &mut dyn FnMut(LeftOut, &mut IndexWriter) -> Result<()>,
    ) -> Result<()>;

    /// Shows in the mount what another machine has written to the drive's catalog.
    ///
    /// # Errors
    /// If the cache or the backend fails; some of it is then not shown yet.
    fn catalog_changed(&self) -> Result<()> {
        Ok(())
    }

    /// Compares a directory of the backend with the index. Returns whether they differ, and the
    /// directories in it whose contents are known.
    ///
    /// # Errors
    /// If it cannot be read.
    fn look_at(&self, backend: &dyn Backend, dir: Ino) -> Result<(bool, Vec<Ino>)> {
        let _ = (backend, dir);
        Ok((false, Vec::new()))
    }

    /// Imports the external changes in `dirs` into the index, while no batch is open. Before
    /// anything is concluded from the listings, `still_right` checks that they are of the volume.
    ///
    /// # Errors
    /// If they are not, or the backend or the index fails.
    fn take_in(
        &self,
        backend: &dyn Backend,
        dirs: &[Ino],
        still_right: &mut dyn FnMut() -> bool,
    ) -> Result<Changes> {
        let _ = (backend, dirs, still_right);
        Ok(Changes::default())
    }

    /// Opens the files that the batch is about to remove from the backend and that programs still
    /// read.
    fn hold_open(&self, inos: &[Ino]);

    /// Checks that no other machine uses `backend`: before anything of a batch is written to it,
    /// and again before the batch's record.
    ///
    /// # Errors
    /// [`crate::error::FlushError::InUse`] if one does; else why that is unknown.
    fn may_write(&self, backend: &dyn Backend) -> Result<()> {
        let _ = backend;
        Ok(())
    }

    /// Returns whether [`Hooks::begin_writing`] changes anything, so that the backend must be known
    /// to be the volume's before.
    fn prepares_writing(&self) -> bool {
        false
    }

    /// Hears that a batch has been written to `backend`, and what it has left has been tidied up
    /// after its last sync.
    fn tidied_up(&self, backend: &dyn Backend) {
        let _ = backend;
    }

    /// Hears that something is about to be written to `backend`, until [`Hooks::end_writing`]: a
    /// file system that is kept read-only becomes writable. If it does not, the writes fail.
    fn begin_writing(&self, backend: &dyn Backend) {
        let _ = backend;
    }

    /// Hears that everything has been written.
    fn end_writing(&self, backend: &dyn Backend) {
        let _ = backend;
    }

    /// Frees a part of the reserve on the SSD, so that a batch can be noted on a full SSD. Returns
    /// false if nothing is left of it.
    fn give_up_reserve(&self) -> bool {
        false
    }

    /// Hears what a batch has changed on the backend, before it ends in the index, so possibly more
    /// than once. `after` is the batch before it that has changed something. The turn of the flush
    /// is taken.
    fn batch_changed(&self, batch: BatchNo, after: Option<BatchNo>, changes: &[Change]) {
        let _ = (batch, after, changes);
    }

    /// Hears what became of a batch, for the history. The turn of the flush is taken.
    fn batch_ended(&self, note: &BatchNote) {
        let _ = note;
    }
}
