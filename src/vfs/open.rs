//! Open, close and release of files, as requests. The state behind them is that of
//! [`crate::vfs::open_files::OpenFiles`].

use crate::core::Ino;
use crate::index::Inode;
use crate::vfs::open_files::OpenInode;
use crate::vfs::{Ctx, Fs, FsError, OpenMode, Result, known};

impl Fs {
    /// Opens a regular file and returns the handle's number.
    ///
    /// # Errors
    /// If `ino` is no regular file; with `truncate`, if it cannot be emptied.
    pub fn open(&self, ctx: &Ctx, ino: Ino, mode: OpenMode) -> Result<u64> {
        let inode = known(&mut self.index.lock(), ino)?;
        if inode.is_dir() {
            return Err(FsError::IS_DIR);
        }
        self.note_use(&inode);
        if mode.truncate {
            self.drop_privileges_of_others(ctx, ino)?;
        }
        let open = self.open_files.acquire(ino);
        let ready = self.make_ready(ctx, &open, &inode, mode);
        if let Err(error) = ready {
            self.open_files.put(&open)?;
            return Err(error);
        }
        Ok(self.open_files.insert(ctx, open, mode, mode.truncate))
    }

    fn make_ready(&self, ctx: &Ctx, open: &OpenInode, inode: &Inode, mode: OpenMode) -> Result<()> {
        if mode.write {
            self.open_files.begin_writer(ctx, open)?;
        }
        let ready = if mode.truncate {
            self.space.with_reserve(|| self.truncate_open(ctx, open, 0))
        } else {
            self.drive_files.check_readable(inode)
        };
        if ready.is_err() && mode.write {
            self.open_files.take_back_writer(open)?;
        }
        ready
    }

    /// Records, at most once a minute, that a clean file's object is in use.
    fn note_use(&self, inode: &Inode) {
        let now = self.clock.now().parts().0;
        if inode.object.is_some() && now.saturating_sub(inode.used) >= 60 {
            let mut state = self.index.lock();
            if let Ok(Some(mut fresh)) = state.inode(inode.ino) {
                fresh.used = now;
                state.put_inode(fresh);
            }
        }
    }

    /// Handles the close of a descriptor: the program vouches for what it wrote. This is recorded
    /// before the reply, so that the file does not count as interrupted if the daemon is killed in
    /// the next moment. The bytes and the row that names them survive the daemon's death in any
    /// case.
    ///
    /// The close counts only if the closing process wrote last. While another handle has written
    /// and has not been closed, the file is still being written.
    ///
    /// # Errors
    /// If there is no such handle, or the operation would have to wait.
    pub fn close_descriptor(&self, ctx: &Ctx, number: u64) -> Result<()> {
        self.open_files.close_descriptor(ctx, number)
    }

    /// Handles an fsync, before its sync: the program vouches for what was written through the
    /// handle.
    ///
    /// # Errors
    /// As [`Fs::close_descriptor`].
    pub fn note_fsync(&self, ctx: &Ctx, number: u64) -> Result<()> {
        self.open_files.note_fsync(ctx, number)
    }

    /// Returns the result of an fsync of the file `ino`, after a sync has succeeded.
    ///
    /// # Errors
    /// `EIO` if bytes of it were lost and have not been rewritten.
    pub fn sync_verdict(&self, ino: Ino) -> Result<()> {
        self.durability.sync_verdict(ino)
    }

    /// Releases a handle. The last handle open for writing settles the file: from then on a batch
    /// may include it.
    ///
    /// # Errors
    /// If the index or the object fails.
    pub fn release(&self, ctx: &Ctx, number: u64) -> Result<()> {
        self.open_files.release(ctx, number)
    }

    /// Handles the kernel's forget of an inode: an orphan is removed.
    ///
    /// # Errors
    /// If the index fails.
    pub fn forget(&self, ino: Ino) -> Result<()> {
        self.open_files.forget(ino)
    }
}
