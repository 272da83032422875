//! Open files: the table of open inodes, handles, and what happens at open and release.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::files::ObjectFile;
use super::read::BackendReader;
use super::{Ctx, Fs, FsError, Result};
use crate::base::Ino;
use crate::index::{Flags, Inode, Location};

/// How long the mark of a close lasts while the file is still open: the kernel tells of the last close soon
/// after it has told of the descriptor's.
const CLOSE_MARK_LASTS: Duration = Duration::from_secs(1);

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMode {
    /// Bytes may be written through the handle.
    pub write: bool,
    /// The file is emptied first.
    pub truncate: bool,
}

/// What an open inode's reads and writes go to.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// The object, once it has been needed.
    pub(super) object: Option<Arc<ObjectFile>>,
    /// The object may be written in place: its row says so, and no batch reads it.
    pub(super) prepared: bool,
    /// Handles that may write.
    pub(super) writers: u32,
}

/// An inode that somebody has open.
#[derive(Debug)]
pub(super) struct OpenInode {
    pub(super) ino: Ino,
    pub(super) content: RwLock<Content>,
    /// Whoever holds the content's lock for writing waits for the backend.
    pub(super) fetching: AtomicBool,
    /// Handles through which something has been written since they were last closed or synced.
    pub(super) unacknowledged: AtomicU32,
    /// The file on the backend, while it is being read from there.
    pub(super) backend: BackendReader,
}

/// The inodes that are open, with the number of users of each.
#[derive(Debug, Default)]
pub(super) struct OpenTable {
    inodes: Mutex<HashMap<Ino, (Arc<OpenInode>, u32)>>,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
}

impl OpenTable {
    /// The open inode, making it open if it is not.
    pub(super) fn acquire(&self, ino: Ino) -> Arc<OpenInode> {
        let mut inodes = self.inodes.lock();
        let (open, users) = inodes.entry(ino).or_insert_with(|| {
            let open = OpenInode {
                ino,
                content: RwLock::default(),
                fetching: AtomicBool::new(false),
                unacknowledged: AtomicU32::new(0),
                backend: BackendReader::default(),
            };
            (Arc::new(open), 0)
        });
        *users += 1;
        open.clone()
    }

    /// Ends one use; true if it was the last.
    fn release(&self, ino: Ino) -> bool {
        let mut inodes = self.inodes.lock();
        match inodes.get_mut(&ino) {
            Some((_, users)) if *users > 1 => {
                *users -= 1;
                false
            }
            _ => {
                inodes.remove(&ino);
                true
            }
        }
    }

    /// The open inode, if it is open.
    pub(super) fn find(&self, ino: Ino) -> Option<Arc<OpenInode>> {
        self.inodes.lock().get(&ino).map(|(open, _)| open.clone())
    }

    /// Runs `change` while nobody can open `ino`; `None` if somebody has it open.
    pub(super) fn while_closed<T>(&self, ino: Ino, change: impl FnOnce() -> T) -> Option<T> {
        let inodes = self.inodes.lock();
        if inodes.contains_key(&ino) {
            return None;
        }
        Some(change())
    }

    /// Keeps inodes from being opened and closed as long as the guard lives.
    pub(super) fn hold(&self) -> Held<'_> {
        Held(self.inodes.lock())
    }

    /// Everything that is open, by inode number: what is done for each of them is done in the same order in every run.
    pub(super) fn all(&self) -> Vec<Arc<OpenInode>> {
        let mut all: Vec<_> = (self.inodes.lock().values())
            .map(|(open, _)| open.clone())
            .collect();
        all.sort_unstable_by_key(|open| open.ino);
        all
    }

    /// Whether `uid` has opened `ino` for writing.
    pub(super) fn is_written_by(&self, ino: Ino, uid: u32) -> bool {
        let handles = self.handles.read();
        handles
            .values()
            .any(|handle| handle.mode.write && handle.uid == uid && handle.open.ino == ino)
    }

    pub(super) fn handle(&self, number: u64) -> Result<Arc<Handle>> {
        self.handles
            .read()
            .get(&number)
            .cloned()
            .ok_or(FsError::BAD_HANDLE)
    }
}

/// The table, held still.
pub(super) struct Held<'a>(parking_lot::MutexGuard<'a, HashMap<Ino, (Arc<OpenInode>, u32)>>);

impl Held<'_> {
    /// Whether somebody has `ino` open.
    pub(super) fn has(&self, ino: Ino) -> bool {
        self.0.contains_key(&ino)
    }
}

/// One open of a file.
#[derive(Debug)]
pub struct Handle {
    pub(super) open: Arc<OpenInode>,
    mode: OpenMode,
    /// Who opened it.
    uid: u32,
    /// Who has written through it last, as [`writer`] counts; 0 for nobody since it was last closed or synced.
    writer: AtomicU64,
    /// When a close marked the file as whole, if nothing has been written through it or synced since.
    closed: Mutex<Option<Instant>>,
}

/// A thread that writes, as a number above 0.
fn writer(ctx: &Ctx) -> u64 {
    u64::from(ctx.pid) + 1
}

/// Whether both are threads of one process, as far as can be told. A child that is born with a descriptor closes it too, and that
/// says nothing of its parent, who may be in the middle of writing.
fn same_process(one: u64, other: u64) -> bool {
    let unknown = one <= 1 || other <= 1;
    let is_thread = || {
        let thread = format!("/proc/{}/task/{}", one - 1, other - 1);
        std::path::Path::new(&thread).exists()
    };
    one == other || unknown || is_thread()
}

/// Takes the mark of what is whole from the file of `handle`; false if that has to be tried again.
fn take_mark(handle: &Handle) -> bool {
    let Some(content) = handle.open.content.try_read() else {
        return false;
    };
    let Some(object) = content.object.as_ref().filter(|_| content.prepared) else {
        return true;
    };
    let taken = object.file().and_then(|file| object.begin_change(&file));
    match &taken {
        Ok(()) => *handle.closed.lock() = None,
        Err(error) => tracing::debug!(%error, "cannot note that a file is still open"),
    }
    taken.is_ok()
}

impl Handle {
    /// Something is about to be written through it.
    pub(super) fn note_write(&self, ctx: &Ctx) {
        let writer = writer(ctx);
        if self.writer.load(Ordering::Relaxed) != writer
            && self.writer.swap(writer, Ordering::AcqRel) == 0
        {
            *self.closed.lock() = None;
            self.open.unacknowledged.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whoever writes through it has come to an end, for now.
    fn note_end(&self) {
        if self.writer.swap(0, Ordering::AcqRel) != 0 {
            self.open.unacknowledged.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Fs {
    /// Opens a regular file and gives the handle's number.
    ///
    /// # Errors
    /// If it is no regular file; with `truncate`, if it cannot be emptied.
    pub fn open(&self, ctx: &Ctx, ino: Ino, mode: OpenMode) -> Result<u64> {
        let inode = self.known(&mut self.index.lock(), ino)?;
        if inode.is_dir() {
            return Err(FsError::IS_DIR);
        }
        self.note_use(&inode);
        if mode.truncate {
            self.drop_privileges_of_others(ctx, ino)?;
        }
        let open = self.opens.acquire(ino);
        let ready = self.make_ready(ctx, &open, &inode, mode);
        if let Err(error) = ready {
            self.put_open(&open)?;
            return Err(error);
        }
        Ok(self.insert_handle(ctx, open, mode, mode.truncate))
    }

    fn make_ready(&self, ctx: &Ctx, open: &OpenInode, inode: &Inode, mode: OpenMode) -> Result<()> {
        if mode.write {
            let mut content = self.lock_content(ctx, open)?;
            content.writers += 1;
            self.index.lock().start_writing(open.ino);
        }
        let ready = if mode.truncate {
            self.with_reserve(|| self.truncate_open(ctx, open, 0))
        } else {
            self.check_readable(inode)
        };
        if ready.is_err() && mode.write {
            // Nobody holds this lock for long: whoever did has just failed, or runs on a worker.
            self.drop_writer(open.ino, &mut open.content.write())?;
        }
        ready
    }

    /// A new handle. Whoever has made or emptied the file with it, has `begun` to write it: as long as he is not done, it is not
    /// whole.
    pub(super) fn insert_handle(
        &self,
        ctx: &Ctx,
        open: Arc<OpenInode>,
        mode: OpenMode,
        begun: bool,
    ) -> u64 {
        let number = self.new_handle();
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
        self.opens.handles.write().insert(number, Arc::new(handle));
        number
    }

    /// A file that only the backend has cannot be opened while that is away: better said now than at the first read.
    fn check_readable(&self, inode: &Inode) -> Result<()> {
        let only_there =
            inode.location() == Location::Backend && inode.kind() == crate::base::FileKind::Regular;
        if only_there && inode.size > 0 && !self.drive.is_attached() {
            return Err(FsError::Detached);
        }
        Ok(())
    }

    /// A program closes a descriptor: what it has written is as it should be. Noted before the close is answered, so that the file is
    /// not taken for one that was being written should the daemon be killed in the next moment. The bytes themselves, and the
    /// row that names them, survive that already.
    ///
    /// It must be the program that has written last; and while another handle has written and not been closed, the file is
    /// still being written.
    ///
    /// # Errors
    /// If there is no such handle, or it would have to wait.
    pub fn close_descriptor(&self, ctx: &Ctx, number: u64) -> Result<()> {
        let handle = self.opens.handle(number)?;
        let last = handle.writer.load(Ordering::Acquire);
        if last != 0 && !same_process(last, writer(ctx)) {
            return Ok(());
        }
        if self.acknowledge(ctx, &handle)? {
            let now = Instant::now();
            *handle.closed.lock() = Some(now);
            self.close_marks.lock().push((number, now));
        }
        Ok(())
    }

    /// A program asks for the file to be synced, which is to follow: what has been written through the handle is as it should be.
    ///
    /// # Errors
    /// As [`Fs::close_descriptor`].
    pub fn note_fsync(&self, ctx: &Ctx, number: u64) -> Result<()> {
        let handle = self.opens.handle(number)?;
        // Where a close has marked it already, the mark is that of the sync from here on.
        *handle.closed.lock() = None;
        self.acknowledge(ctx, &handle).map(drop)
    }

    /// Marks the file as whole if it is; true if the mark is new.
    fn acknowledge(&self, ctx: &Ctx, handle: &Handle) -> Result<bool> {
        if !handle.mode.write {
            return Ok(false);
        }
        handle.note_end();
        let open = &handle.open;
        let nothing_to_note = open.content.try_read().is_some_and(|content| {
            let marked = |object: &Arc<ObjectFile>| object.is_marked();
            !content.prepared || content.object.as_ref().is_none_or(marked)
        });
        if nothing_to_note || open.unacknowledged.load(Ordering::Acquire) > 0 {
            return Ok(false);
        }
        // Held alone: nobody writes meanwhile.
        let content = match self.lock_content(ctx, open) {
            // Somebody's first write fetches it: nothing has been written yet that could be noted.
            Err(FsError::WouldWait) => return Ok(false),
            locked => locked?,
        };
        if content.prepared
            && open.unacknowledged.load(Ordering::Acquire) == 0
            && let Some(object) = &content.object
        {
            match object.mark() {
                Ok(()) => return Ok(true),
                // Only a kill in the next moment would tell: the file is then held back, and named.
                Err(error) => tracing::debug!(%error, "cannot note that a file is whole"),
            }
        }
        Ok(false)
    }

    /// Takes the mark of a close away where the file is still open a while later: the descriptor was one
    /// of several, as those that a shell gives to each program of a group, and more may be written through
    /// the others. The mark only has to last until the kernel tells of the last close.
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
            let Ok(handle) = self.opens.handle(number) else {
                continue;
            };
            if *handle.closed.lock() == Some(since) && !take_mark(&handle) {
                self.close_marks.lock().push((number, since));
            }
        }
    }

    /// Ends a handle. The last one that could write settles the file: from then on a batch may take it.
    ///
    /// # Errors
    /// If the index or the object fails.
    pub fn release(&self, ctx: &Ctx, number: u64) -> Result<()> {
        let handle = self.opens.handle(number)?;
        let settled = if handle.mode.write {
            match self.release_writer(ctx, &handle.open) {
                // It comes again, on a worker.
                again @ Err(FsError::WouldBlock | FsError::WouldWait) => return again,
                settled => settled,
            }
        } else {
            Ok(())
        };
        handle.note_end();
        self.opens.handles.write().remove(&number);
        self.put_open(&handle.open)?;
        settled
    }

    fn release_writer(&self, ctx: &Ctx, open: &OpenInode) -> Result<()> {
        let mut content = self.lock_content(ctx, open)?;
        self.drop_writer(open.ino, &mut content)
    }

    fn drop_writer(&self, ino: Ino, content: &mut Content) -> Result<()> {
        content.writers = content.writers.saturating_sub(1);
        if content.writers > 0 {
            return Ok(());
        }
        self.settle(ino, content)
    }

    /// Ends writing: what the object has become is noted in the row, and a cut may take the file.
    pub(super) fn settle(&self, ino: Ino, content: &mut Content) -> Result<()> {
        let prepared = std::mem::take(&mut content.prepared);
        let measured = match &content.object {
            Some(object) if prepared => object
                .file()
                .and_then(|file| super::content::measure(&file))
                .map(Some),
            _ => Ok(None),
        };
        let mut state = self.index.lock();
        if measured.is_err() {
            // Nobody writes it any more; its row is set right when its object can be asked.
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
            // Whoever opens it for writing and closes it says that it is as it should be.
            inode.flags.clear(Flags::INTERRUPTED);
            state.put_inode(inode);
            // Full means that somebody has been told already.
            let _ = self.closes.0.try_send(());
        }
        state.end_writing(ino);
        Ok(())
    }

    /// Waits, for at most `limit`, until a file that was written has been closed: that it is closed is then to be committed,
    /// so that after the daemon's death it is not taken for one that was still being written. True if one was.
    pub fn wait_for_close(&self, limit: std::time::Duration) -> bool {
        self.closes.1.recv_timeout(limit).is_ok()
    }

    /// Ends one use of an open inode. An inode without a name goes with its last user.
    pub(super) fn put_open(&self, open: &Arc<OpenInode>) -> Result<()> {
        if self.opens.release(open.ino) {
            let mut state = self.index.lock();
            if state.is_orphan(open.ino) {
                state.end_writing(open.ino);
                state.remove_inode(open.ino)?;
            }
        }
        Ok(())
    }

    /// The kernel has forgotten the inode: if it has no name either, it goes.
    ///
    /// # Errors
    /// If the index fails.
    pub fn forget(&self, ino: Ino) -> Result<()> {
        if !self.index.lock().is_orphan(ino) {
            return Ok(());
        }
        // Under the table's lock nobody can open it meanwhile.
        self.opens
            .while_closed(ino, || self.index.lock().remove_inode(ino))
            .transpose()?;
        Ok(())
    }

    /// Notes, at most once a minute, that a clean file's copy in the cache is in use.
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

    /// How many inodes are open for writing.
    pub fn writing_count(&self) -> usize {
        self.index.lock().writing_count()
    }

    /// Marks bytes as written but not synced.
    pub(super) fn note_unsynced(&self, object: &Arc<ObjectFile>) {
        if !object.unsynced.swap(true, Ordering::AcqRel) {
            self.unsynced.add(object);
        }
    }
}
