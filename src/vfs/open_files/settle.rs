//! From the object to the row: the sizes of files that are being written, and the end of writing.
//!
//! A row with WRITING set may lag behind its object; the object counts. When the last handle open
//! for writing is released, the file is *settled*: the row gets the object's values, and a cut may
//! include the file.

use std::sync::Arc;
use std::time::Duration;

use crate::core::Ino;
use crate::index::{Flags, Inode};
use crate::vfs::measured::measure;
use crate::vfs::object_files::ObjectFile;
use crate::vfs::open_files::{Content, OpenFiles, OpenInode};
use crate::vfs::{Ctx, Result, known};

/// How often a file's row is read again while another thread is about to settle the file.
const SETTLING: usize = 1000;

impl OpenFiles {
    /// Counts one more handle open for writing.
    pub(in crate::vfs) fn begin_writer(&self, ctx: &Ctx, open: &OpenInode) -> Result<()> {
        let mut content = open.lock(ctx)?;
        if content.writers == 0 {
            open.note_begun();
        }
        content.writers += 1;
        self.index.lock().start_writing(open.ino());
        Ok(())
    }

    /// Makes a new file's object that of its content, with one handle open for writing. The row
    /// says so already.
    pub(in crate::vfs) fn begin_new_file(&self, open: &OpenInode, file: Arc<ObjectFile>) {
        open.note_begun();
        // No other thread knows the inode yet, so this cannot block.
        *open.lock_always() = Content {
            object: Some(file),
            prepared: true,
            writers: 1,
        };
    }

    /// Takes back [`OpenFiles::begin_writer`] after a failure of the open. The lock is not held for
    /// long: its previous holder has just failed, or runs on a worker.
    pub(in crate::vfs) fn take_back_writer(&self, open: &OpenInode) -> Result<()> {
        self.drop_writer(open.ino(), &mut open.lock_always())
    }

    /// Counts one handle less, as the context allows.
    pub(super) fn release_writer(&self, ctx: &Ctx, open: &OpenInode) -> Result<()> {
        let mut content = open.lock(ctx)?;
        self.drop_writer(open.ino(), &mut content)
    }

    fn drop_writer(&self, ino: Ino, content: &mut Content) -> Result<()> {
        content.writers = content.writers.saturating_sub(1);
        if content.writers > 0 {
            return Ok(());
        }
        self.settle(ino, content)
    }

    /// Ends writing: records the object's size and time in the row, and lets a cut include the
    /// file.
    pub(in crate::vfs) fn settle(&self, ino: Ino, content: &mut Content) -> Result<()> {
        let prepared = std::mem::take(&mut content.prepared);
        let measured = match &content.object {
            Some(object) if prepared => object.file().and_then(|file| measure(&file)).map(Some),
            _ => Ok(None),
        };
        let mut state = self.index.lock();
        if measured.is_err() {
            // There is no writer any more; the row is corrected when the object can be examined.
            state.end_writing(ino);
            state.note_unsettled();
        }
        let measured = measured?;
        if let Some(mut inode) = state.inode(ino)?
            && (measured.is_some() || inode.flags.has(Flags::INTERRUPTED))
        {
            if let Some(measured) = measured {
                measured.apply(&mut inode);
            }
            inode.flags.clear(Flags::WRITING);
            // A program that opens it for writing and closes it vouches for its contents.
            inode.flags.clear(Flags::INTERRUPTED);
            state.put_inode(inode);
            // If the channel is full, the receiver will wake up anyway.
            let _ = self.closes.0.try_send(());
        }
        state.end_writing(ino);
        Ok(())
    }

    /// Waits, at most `limit`, until a written file has been closed. Returns whether one was.
    pub(in crate::vfs) fn wait_for_close(&self, limit: Duration) -> bool {
        self.closes.1.recv_timeout(limit).is_ok()
    }

    /// Corrects size and time of a file that is being written: its object has them before its row
    /// does. The kernel caches the result, so a row that was read before the file was settled must
    /// not be returned.
    pub(in crate::vfs) fn with_current_size(&self, mut inode: Inode) -> Result<Inode> {
        for _ in 0..SETTLING {
            if !inode.flags.has(Flags::WRITING) {
                return Ok(inode);
            }
            if let Some(open) = self.find(inode.ino) {
                // A thread that holds this lock while the row has WRITING set releases it soon:
                // fetches and copies happen before the flag is set.
                let content = open.share_always();
                if let Some(object) = content.prepared() {
                    measure(&*object.file()?)?.apply(&mut inode);
                    return Ok(inode);
                }
            }
            // The file is being created, or has just been settled.
            std::thread::yield_now();
            inode = known(&mut self.index.lock(), inode.ino)?;
        }
        // Settling failed or was rolled back. The object still has the current values.
        if let Some(object) = inode.object {
            let file = self.store.open_object(object)?;
            measure(&file)?.apply(&mut inode);
        }
        Ok(inode)
    }

    /// Finishes pending changes, and records the current sizes of files being written.
    pub(in crate::vfs) fn finish(&self) -> Result<()> {
        if self.index.is_sealed() {
            return Ok(()); // Reported already, also by `status`.
        }
        self.expire_close_marks();
        // A rollback may have undone recorded sizes.
        let all = self.index.lock().take_unmeasured();
        let reached = self.note_sizes(all);
        if all && !matches!(reached, Ok(true)) {
            self.index.lock().note_unmeasured();
        }
        reached?;
        self.index.finish()?;
        self.settle_again()
    }

    /// Records the changed sizes of files being written, or of `all`. Returns false if one was in
    /// use.
    fn note_sizes(&self, all: bool) -> Result<bool> {
        let mut reached = true;
        for open in self.all() {
            let Some(content) = open.try_share() else {
                reached = false;
                continue;
            };
            // An unchanged object is not opened: there may be very many.
            if let Some(object) = content.prepared()
                && (object.take_changed() || all)
            {
                // A failure to measure one object must not keep the sizes of the others from being
                // recorded.
                let measured = object.file().and_then(|file| measure(&file));
                let Ok(measured) = measured else {
                    object.note_changed();
                    continue;
                };
                let mut state = self.index.lock();
                if let Some(mut inode) = state.inode(open.ino())? {
                    let before = inode.clone();
                    measured.apply(&mut inode);
                    if inode != before {
                        state.put_inode(inode);
                    }
                }
            }
        }
        Ok(reached)
    }

    /// Settles files again whose settling was rolled back: their rows still say that they are being
    /// written, and their objects have the current values.
    fn settle_again(&self) -> Result<()> {
        if !self.index.lock().take_unsettled() {
            return Ok(());
        }
        let written = self.index.lock().written_by_nobody();
        let settled = written.and_then(|inos| {
            for ino in inos {
                let mut state = self.index.lock();
                let Some(mut inode) = state.inode(ino)? else {
                    continue;
                };
                let object = inode.object.filter(|_| !state.is_changing(ino));
                if let Some(object) = object
                    && let Ok(file) = self.store.open_object(object)
                    && let Ok(measured) = measure(&file)
                {
                    measured.apply(&mut inode);
                    inode.flags.clear(Flags::WRITING);
                    state.put_inode(inode);
                }
            }
            self.index.finish()
        });
        if settled.is_err() {
            // The next tick tries again.
            self.index.lock().note_unsettled();
        }
        Ok(settled?)
    }

    /// Settles all open files, after the last request. Returns the last error, after all were
    /// tried: the next start repairs a file that cannot be settled.
    pub(in crate::vfs) fn settle_all(&self) -> Result<()> {
        let mut settled = Ok(());
        for open in self.all() {
            if let Err(error) = self.settle(open.ino(), &mut open.lock_always()) {
                settled = Err(error);
            }
        }
        settled
    }

    /// Removes files without a name that are still open, after the last request.
    pub(in crate::vfs) fn remove_orphans(&self) -> Result<()> {
        let mut state = self.index.lock();
        for ino in state.nameless()? {
            state.remove_inode(ino)?;
        }
        state.commit()?;
        Ok(())
    }
}
