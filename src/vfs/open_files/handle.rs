//! Handles: one for each open of a file. Closes and syncs through them decide whether a file counts
//! as whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::core::Ino;
use crate::vfs::open_files::{OpenFiles, OpenInode};
use crate::vfs::{Ctx, FsError, Result};

/// How long the mark of a close lasts while the file is still open: the kernel reports the last
/// close soon after the close of the descriptor.
const CLOSE_MARK_LASTS: Duration = Duration::from_secs(1);

/// The access mode of an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMode {
    /// Writes are allowed through the handle.
    pub write: bool,
    /// The open truncates the file.
    pub truncate: bool,
}

/// One open of a file.
#[derive(Debug)]
pub struct Handle {
    open: Arc<OpenInode>,
    mode: OpenMode,
    /// The user that opened it.
    uid: u32,
    /// The thread that wrote through it last, as returned by [`writer`]; 0 if there was no write
    /// since the last close or sync.
    writer: AtomicU64,
    /// The time of the close that marked the file as whole, if no write or sync followed.
    closed: Mutex<Option<Instant>>,
}

/// Returns a number above 0 for the calling thread.
fn writer(ctx: &Ctx) -> u64 {
    u64::from(ctx.pid) + 1
}

/// Returns whether two threads belong to one process, as far as can be determined. A forked child
/// also closes the descriptors it inherited, which says nothing about its parent: the parent may
/// still be writing.
fn same_process(one: u64, other: u64) -> bool {
    let unknown = one <= 1 || other <= 1;
    let is_thread = || {
        let thread = format!("/proc/{}/task/{}", one - 1, other - 1);
        std::path::Path::new(&thread).exists()
    };
    one == other || unknown || is_thread()
}

impl Handle {
    /// Returns the inode that the handle refers to.
    pub(crate) fn open(&self) -> &OpenInode {
        &self.open
    }

    /// Records the start of a write through the handle.
    pub(crate) fn note_write(&self, ctx: &Ctx) {
        let writer = writer(ctx);
        if self.writer.load(Ordering::Relaxed) != writer
            && self.writer.swap(writer, Ordering::AcqRel) == 0
        {
            *self.closed.lock() = None;
            self.open.unacknowledged.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Records that the writer through this handle has finished for now.
    fn note_end(&self) {
        if self.writer.swap(0, Ordering::AcqRel) != 0 {
            self.open.unacknowledged.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Clears the mark of a whole file; returns false if that has to be tried again.
    fn take_mark(&self) -> bool {
        let Some(content) = self.open.try_share() else {
            return false;
        };
        let Some(object) = content.prepared() else {
            return true;
        };
        let taken = object.file().and_then(|file| object.begin_change(&file));
        match &taken {
            Ok(()) => *self.closed.lock() = None,
            Err(error) => tracing::debug!(%error, "cannot remove the mark of a whole file"),
        }
        taken.is_ok()
    }
}

impl OpenFiles {
    /// Inserts a handle and returns its number. If the open created or emptied the file, the caller
    /// has `begun` to write: the file is not whole before its close or sync.
    pub(in crate::vfs) fn insert(
        &self,
        ctx: &Ctx,
        open: Arc<OpenInode>,
        mode: OpenMode,
        begun: bool,
    ) -> u64 {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let handle = Handle {
            open,
            mode,
            uid: ctx.uid,
            writer: AtomicU64::new(0),
            closed: Mutex::default(),
        };
        if begun && mode.write {
            handle.note_write(ctx);
        }
        self.handles.write().insert(number, Arc::new(handle));
        number
    }

    /// Returns the handle with a number.
    pub(in crate::vfs) fn handle(&self, number: u64) -> Result<Arc<Handle>> {
        self.handles
            .read()
            .get(&number)
            .cloned()
            .ok_or(FsError::BAD_HANDLE)
    }

    /// Returns whether `uid` has `ino` open for writing.
    pub(in crate::vfs) fn is_written_by(&self, ino: Ino, uid: u32) -> bool {
        let handles = self.handles.read();
        handles
            .values()
            .any(|handle| handle.mode.write && handle.uid == uid && handle.open.ino() == ino)
    }

    /// Handles the close of a descriptor. It counts only if the closing process wrote last. While
    /// another handle has written and has not been closed, the file is still being written.
    pub(in crate::vfs) fn close_descriptor(&self, ctx: &Ctx, number: u64) -> Result<()> {
        let handle = self.handle(number)?;
        let last = handle.writer.load(Ordering::Acquire);
        if last != 0 && !same_process(last, writer(ctx)) {
            return Ok(());
        }
        if acknowledge(ctx, &handle)? {
            let now = Instant::now();
            *handle.closed.lock() = Some(now);
            self.close_marks.lock().push((number, now));
        }
        Ok(())
    }

    /// Handles an fsync, before its sync.
    pub(in crate::vfs) fn note_fsync(&self, ctx: &Ctx, number: u64) -> Result<()> {
        let handle = self.handle(number)?;
        // If a close has set the mark already, the mark belongs to the fsync from here on and does
        // not expire.
        *handle.closed.lock() = None;
        acknowledge(ctx, &handle).map(drop)
    }

    /// Removes the mark of a close if the file is still open a while later. The descriptor was then
    /// one of several, as a shell gives them to each program of a group, and more may be written
    /// through the others. The mark only has to last until the kernel reports the last close.
    pub(super) fn expire_close_marks(&self) {
        let old: Vec<(u64, Instant)> = {
            let mut marks = self.close_marks.lock();
            let (old, young) = std::mem::take(&mut *marks)
                .into_iter()
                .partition(|(_, since)| since.elapsed() >= CLOSE_MARK_LASTS);
            *marks = young;
            old
        };
        for (number, since) in old {
            let Ok(handle) = self.handle(number) else {
                continue;
            };
            if *handle.closed.lock() == Some(since) && !handle.take_mark() {
                self.close_marks.lock().push((number, since));
            }
        }
    }

    /// Releases a handle. The last handle open for writing settles the file.
    pub(in crate::vfs) fn release(&self, ctx: &Ctx, number: u64) -> Result<()> {
        let handle = self.handle(number)?;
        let settled = if handle.mode.write {
            match self.release_writer(ctx, &handle.open) {
                // The release is repeated on a worker.
                again @ Err(FsError::WouldBlock | FsError::WouldWait) => return again,
                settled => settled,
            }
        } else {
            Ok(())
        };
        handle.note_end();
        self.handles.write().remove(&number);
        self.put(&handle.open)?;
        settled
    }
}

/// Marks the file as whole if no handle has unacknowledged writes; returns true if the mark is new.
fn acknowledge(ctx: &Ctx, handle: &Handle) -> Result<bool> {
    if !handle.mode.write {
        return Ok(false);
    }
    handle.note_end();
    let open = &handle.open;
    let nothing_to_note = open.try_share().is_some_and(|content| {
        let prepared = content.prepared();
        prepared.is_none_or(|object| object.is_marked())
    });
    if nothing_to_note || open.unacknowledged.load(Ordering::Acquire) > 0 {
        return Ok(false);
    }
    // The write lock keeps other threads from writing meanwhile.
    let content = match open.lock(ctx) {
        // The first write is fetching the file: nothing has been written yet that could be
        // acknowledged.
        Err(FsError::WouldWait) => return Ok(false),
        locked => locked?,
    };
    if let Some(object) = content.prepared()
        && open.unacknowledged.load(Ordering::Acquire) == 0
    {
        match object.mark() {
            Ok(()) => return Ok(true),
            // It matters only if the daemon is killed in the next moment: the file is then held
            // back and reported.
            Err(error) => tracing::debug!(%error, "cannot mark a file as whole"),
        }
    }
    Ok(false)
}
