//! Writing: how a file's object is made ready to be written in place, and the operations that change bytes.
//!
//! Before the first byte of an open file changes, its row says so, committed: [`Fs::prepare`]. A crash at any later moment
//! finds the row's `WRITING` flag and takes size and mtime from the object. The order within `prepare` is: bytes into a new
//! object (fetched from the backend, or copied because a batch reads the old one), then the row. A crash in between leaves an
//! object without a row, which goes to lost+found, and the row with its old object: the file as it was.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::described::write_around_holes;
use super::files::{Descriptor, ObjectFile};
use super::open::{Content, Handle, OpenInode};
use super::{Ctx, Fs, FsError, Result};
use crate::base::steps::CacheStep;
use crate::base::{ContentHash, FileKind, Ino, ObjectId, Timestamp};
use crate::index::{Flags, Inode, Location, PlacedEntry, State};
use crate::sys;

/// A file up to this size is copied when a batch reads it and somebody wants to change it in place; a larger one is left out of
/// the batch instead, as long as that can still be decided.
const COPY_LIMIT: u64 = 64 << 20;

/// Buffer of a copy from the backend.
const FETCH_BUFFER: usize = 1 << 20;

/// How long a worker waits for a content's lock in one go, between two looks whether its holder waits for the backend.
const LOCK_SLICE: Duration = Duration::from_millis(20);

/// What an object's own file says of it.
pub(super) struct Measured {
    size: u64,
    blocks: u64,
    mtime: Timestamp,
}

/// Asks the object's file system.
pub(super) fn measure(file: &File) -> Result<Measured> {
    let meta = file.metadata()?;
    let mtime = Timestamp::from_parts(meta.mtime(), meta.mtime_nsec() as u32);
    Ok(Measured {
        size: meta.size(),
        blocks: meta.blocks(),
        mtime,
    })
}

impl Measured {
    /// Size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Notes it in the inode that is being written.
    pub(super) fn apply(&self, inode: &mut Inode) {
        inode.size = self.size;
        inode.blocks = self.blocks;
        if self.mtime != inode.mtime {
            inode.mtime = self.mtime;
            inode.ctime = inode.ctime.max(self.mtime);
        }
    }
}

/// What is to become of the bytes that a file has when it is made ready for writing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OldBytes {
    Keep,
    Discard,
}

impl Fs {
    /// The content's lock for changing it. Only a worker waits for it: whoever holds it may be copying it; and only one that
    /// may wait for the backend if he is waiting for that.
    pub(super) fn lock_content<'a>(
        &self,
        ctx: &Ctx,
        open: &'a OpenInode,
    ) -> Result<RwLockWriteGuard<'a, Content>> {
        if ctx.may_wait {
            return Ok(open.content.write());
        }
        patiently(ctx, open, |content, patience| {
            content.try_write_for(patience)
        })
    }

    /// The content's lock for using it, waited for likewise.
    pub(super) fn share_content<'a>(
        &self,
        ctx: &Ctx,
        open: &'a OpenInode,
    ) -> Result<RwLockReadGuard<'a, Content>> {
        if ctx.may_wait {
            return Ok(open.content.read());
        }
        patiently(ctx, open, |content, patience| {
            content.try_read_for(patience)
        })
    }

    /// Makes the open file ready to be written in place and gives its object.
    fn prepare(
        &self,
        ctx: &Ctx,
        open: &OpenInode,
        content: &mut Content,
        old: OldBytes,
    ) -> Result<Arc<ObjectFile>> {
        if content.prepared
            && let Some(object) = &content.object
        {
            return Ok(object.clone());
        }
        loop {
            let mut state = self.index.lock();
            let inode = self.known(&mut state, open.ino)?;
            if inode.kind() != FileKind::Regular {
                return Err(FsError::INVALID);
            }
            let file = match inode.location() {
                Location::Object(object) if old == OldBytes::Keep => {
                    if !self.may_change_in_place(&mut state, &inode) {
                        let to = state.new_object()?;
                        drop(state);
                        ctx.block()?;
                        self.copy_object(content, &inode, object, to)?
                    } else {
                        drop(state);
                        let file = self.open_object(content, object)?;
                        sys::time::set_modified_fd(&**file.file()?, inode.mtime)?;
                        file
                    }
                }
                Location::Backend if old == OldBytes::Keep && inode.size > 0 => {
                    drop(state);
                    ctx.wait()?;
                    let fetching = Fetching::begin(open);
                    self.fetch(open.ino)?;
                    drop(fetching);
                    continue;
                }
                _ => {
                    let object = state.new_object()?;
                    drop(state);
                    self.files.create(object)?
                }
            };
            // Before the row that names it: no sync of the index may pass its bytes by.
            self.note_unsynced(&file);
            let begun = self.begin_writing(open.ino, &file);
            if begun.is_err() && content.writers == 0 {
                self.index.lock().end_writing(open.ino);
            }
            if begun.is_err() {
                self.drop_unneeded(open.ino, file.object)?;
            }
            if begun? {
                content.object = Some(file.clone());
                content.prepared = true;
                return Ok(file);
            }
        }
    }

    /// Whether no batch reads the inode's object. A large one is taken out of the batch, if that can still be done.
    fn may_change_in_place(&self, state: &mut State, inode: &Inode) -> bool {
        if !state.is_pinned(inode) {
            return true;
        }
        match state.active_batch() {
            Some(active) if inode.size > COPY_LIMIT && !active.committed => {
                active.live.insert(inode.ino);
                true
            }
            _ => false,
        }
    }

    /// Notes, committed, that `file` is the inode's object and is being written from now on. False if a cut was taken since
    /// the caller looked, and now pins the very object.
    fn begin_writing(&self, ino: Ino, file: &ObjectFile) -> Result<bool> {
        let mut state = self.index.lock();
        let mut inode = self.known(&mut state, ino)?;
        if inode.object == Some(file.object) && state.is_pinned(&inode) {
            return Ok(false);
        }
        let seq = state.next_seq()?;
        if inode.object == Some(file.object) {
            state.follow_replaced(ino, inode.data_seq, seq)?;
        } else {
            // The old bytes stay until the new ones are durable; a power cut before that goes back to them.
            if inode.size > 0 && inode.location() != Location::Empty {
                state.note_replaced(None, (ino, seq), &inode)?;
            }
            if let Some(old) = inode.object {
                state.bury_object(&inode, old)?;
            }
        }
        inode.object = Some(file.object);
        inode.flags.set(Flags::DATA_DIRTY);
        inode.flags.set(Flags::WRITING);
        inode.data_seq = seq;
        state.mark_inode(&inode)?;
        state.start_writing(ino);
        state.put_inode(inode);
        state.commit()?;
        Ok(true)
    }

    /// Removes an object that was made for `ino` and that no row has come to name.
    fn drop_unneeded(&self, ino: Ino, object: ObjectId) -> Result<()> {
        let inode = self.index.lock().inode(ino)?;
        if inode.is_none_or(|inode| inode.object != Some(object)) {
            self.store.remove(object)?;
        }
        Ok(())
    }

    /// The object's open file, the one at hand if it is that.
    pub(super) fn open_object(
        &self,
        content: &mut Content,
        object: ObjectId,
    ) -> Result<Arc<ObjectFile>> {
        match &content.object {
            Some(at_hand) if at_hand.object == object => Ok(at_hand.clone()),
            _ => {
                let file = self.files.existing(object);
                file.file()?; // It must be there.
                content.object = Some(file.clone());
                Ok(file)
            }
        }
    }

    /// A copy of what a batch reads, to be changed in its place.
    fn copy_object(
        &self,
        content: &mut Content,
        inode: &Inode,
        from: ObjectId,
        to: ObjectId,
    ) -> Result<Arc<ObjectFile>> {
        let source = self.open_object(content, from)?;
        let copy = self.files.clone_of(&source, to)?;
        sys::time::set_modified_fd(&**copy.file()?, inode.mtime)?;
        Ok(copy)
    }

    /// Brings a file that only the backend has into the cache. The caller holds its content's lock, or has seen to it
    /// otherwise that nobody changes the file meanwhile.
    pub(super) fn fetch(&self, ino: Ino) -> Result<()> {
        // Opening it may bring the row up to what stands there.
        let source = self.open_on_backend(ino)?;
        let (inode, object) = {
            let mut state = self.index.lock();
            (self.known(&mut state, ino)?, state.new_object()?)
        };
        let holes = self.described_holes(&inode)?;
        let target = self.files.create(object)?;
        let copied = (|| {
            let file = target.file()?;
            let mut buffer = vec![0; FETCH_BUFFER];
            let mut hasher = blake3::Hasher::new();
            let mut at = 0;
            loop {
                let got = source.read_at(&mut buffer, at).map_err(backend_read)?;
                if got == 0 {
                    break;
                }
                hasher.update(&buffer[..got]);
                write_around_holes(&holes, at, &buffer[..got], |at, bytes| {
                    file.write_all_at(bytes, at)
                })?;
                at += got as u64;
            }
            file.set_len(at)?; // Where it ends in a hole.
            if at != inode.size {
                tracing::warn!(
                    ino = ino.0,
                    expected = inode.size,
                    got = at,
                    "the file on the backend has another size than it had"
                );
                return Err(FsError::Errno(libc::EIO));
            }
            sys::time::set_modified_fd(&**file, inode.mtime)?;
            let hash = ContentHash(*hasher.finalize().as_bytes());
            Ok((measure(&file)?.blocks, hash))
        })();
        let (blocks, hash) = match copied {
            Ok(copied) => copied,
            Err(error) => {
                self.store.remove(object)?;
                return Err(error);
            }
        };
        // Among the unsynced before the row names it: no sync of the index may pass it by.
        self.note_unsynced(&target);
        let mut state = self.index.lock();
        let mut inode = self.known(&mut state, ino)?;
        inode.object = Some(object);
        inode.blocks = blocks;
        inode.used = self.clock.now().parts().0;
        // Should only its time be found to be another later, this tells that nobody has changed it.
        if let [(key, was)] = state.places_of(ino)?.as_slice()
            && was.hash.is_none()
            && was.size == inode.size
        {
            let hash = Some(hash);
            state.put_placed(key, Some(&PlacedEntry { hash, ..*was }))?;
        }
        state.put_inode(inode);
        Ok(())
    }

    /// Runs `change` on the file's object, ready for writing; `by` is the handle through which it is done, if it is one.
    fn change<T>(
        &self,
        ctx: &Ctx,
        (open, by): (&OpenInode, Option<&Handle>),
        old: OldBytes,
        change: impl FnOnce(&ObjectFile, &File) -> Result<T>,
    ) -> Result<T> {
        {
            let content = self.share_content(ctx, open)?;
            if content.prepared
                && old == OldBytes::Keep
                && let Some(object) = &content.object
            {
                return self.change_object(ctx, object, by, change);
            }
        }
        let mut content = self.lock_content(ctx, open)?;
        let object = self.prepare(ctx, open, &mut content, old)?;
        let result = self.change_object(ctx, &object, by, change);
        if content.writers == 0 {
            self.settle(open.ino, &mut content)?;
        }
        result
    }

    fn change_object<T>(
        &self,
        ctx: &Ctx,
        object: &Arc<ObjectFile>,
        by: Option<&Handle>,
        change: impl FnOnce(&ObjectFile, &File) -> Result<T>,
    ) -> Result<T> {
        // Held until it counts as unsynced: it is not closed with bytes that nobody would sync.
        let file = object.file()?;
        if let Some(handle) = by {
            handle.note_write(ctx);
        }
        // If even that fails, the SSD is to be asked at the next sync what is the matter with it.
        let result = object
            .begin_change(&file)
            .and_then(|()| change(object, &file));
        object.changed.store(true, Ordering::Release);
        self.note_unsynced(object);
        result
    }

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// If the SSD has no room; if the file is only on the backend and cannot be brought over.
    pub fn write(&self, ctx: &Ctx, handle: u64, offset: u64, data: &[u8]) -> Result<usize> {
        let handle = self.opens.handle(handle)?;
        self.hold_back(ctx, data.len())?;
        self.with_room(ctx, || {
            self.change(ctx, written(&handle), OldBytes::Keep, |object, file| {
                self.store.steps().before(CacheStep::WriteObject)?;
                self.store.check_fault("write", object.object)?;
                Ok(file.write_all_at(data, offset)?)
            })
        })?;
        self.count_written(data.len());
        Ok(data.len())
    }

    /// Gives the open file the length `size`.
    pub(super) fn truncate_open(&self, ctx: &Ctx, open: &OpenInode, size: u64) -> Result<()> {
        let prepared = open
            .content
            .try_read()
            .is_some_and(|content| content.prepared);
        // Somebody who is writing it keeps his object; else emptying needs no copy and no fetch, just a new one.
        let old = if size == 0 && !prepared {
            OldBytes::Discard
        } else {
            OldBytes::Keep
        };
        let now = self.clock.now();
        self.change(ctx, (open, None), old, |object, file| {
            file.set_len(size)?;
            if size == 0 {
                // Whatever of it the SSD has lost is not wanted any more.
                self.forget_damage(object.object)?;
            }
            Ok(sys::time::set_modified_fd(file, now)?)
        })
    }

    /// Gives the file `ino` the length `size`.
    ///
    /// # Errors
    /// As [`Fs::write`].
    pub(super) fn truncate(&self, ctx: &Ctx, ino: Ino, size: u64) -> Result<()> {
        let open = self.opens.acquire(ino);
        let result = self.with_reserve(|| self.truncate_open(ctx, &open, size));
        self.put_open(&open)?;
        result
    }

    /// Allocates, punches or zeroes a range, `mode` as in fallocate(2).
    ///
    /// # Errors
    /// `EOPNOTSUPP` for modes that shift bytes or that the SSD's file system lacks.
    pub fn fallocate(
        &self,
        ctx: &Ctx,
        handle: u64,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<()> {
        use nix::fcntl::FallocateFlags as Flag;
        let known =
            Flag::FALLOC_FL_KEEP_SIZE | Flag::FALLOC_FL_PUNCH_HOLE | Flag::FALLOC_FL_ZERO_RANGE;
        let mode = Flag::from_bits(mode)
            .filter(|flags| known.contains(*flags))
            .ok_or(FsError::NOT_SUPPORTED)?;
        let handle = self.opens.handle(handle)?;
        self.drop_privileges_of_others(ctx, handle.open.ino)?;
        let allocate = || {
            self.change(ctx, written(&handle), OldBytes::Keep, |_, file| {
                Ok(sys::file::allocate(file, mode, offset, length)?)
            })
        };
        if mode.contains(Flag::FALLOC_FL_PUNCH_HOLE) {
            return self.with_reserve(allocate); // Gives space back.
        }
        self.with_room(ctx, allocate)?;
        self.count_written(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(())
    }

    /// Copies up to `length` bytes from one open file to another within the SSD.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the source is not in the cache: the kernel then copies by reading and writing.
    pub fn copy_range(
        &self,
        ctx: &Ctx,
        from: (u64, u64),
        to: (u64, u64),
        length: u64,
    ) -> Result<usize> {
        let source = self.opens.handle(from.0)?;
        let (_, source) = self
            .object_at_hand(ctx, &source.open)?
            .ok_or(FsError::NOT_SUPPORTED)?;
        let target = self.opens.handle(to.0)?;
        let length = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(COPY_LIMIT as usize);
        self.drop_privileges_of_others(ctx, target.open.ino)?;
        let copied = self.with_room(ctx, || {
            self.change(ctx, written(&target), OldBytes::Keep, |_, file| {
                Ok(sys::file::copy_range(&source, from.1, file, to.1, length)?)
            })
        })?;
        self.count_written(copied);
        Ok(copied)
    }

    /// The object of an open file, opened; `None` if it has none. As long as the descriptor lives the object can be read, also
    /// should the file get another one meanwhile.
    pub(super) fn object_at_hand(
        &self,
        ctx: &Ctx,
        open: &OpenInode,
    ) -> Result<Option<(ObjectId, Arc<Descriptor>)>> {
        let opened = |object: &Arc<ObjectFile>| Ok(Some((object.object, object.file()?)));
        if let Some(content) = open.content.try_read()
            && let Some(object) = &content.object
        {
            return opened(object);
        }
        let mut content = self.lock_content(ctx, open)?;
        let inode = self.known(&mut self.index.lock(), open.ino)?;
        match inode.location() {
            Location::Object(object) => opened(&self.open_object(&mut content, object)?),
            Location::Empty | Location::Backend => Ok(None),
        }
    }
}

/// The file of a handle, to be changed through it.
fn written(handle: &Handle) -> (&OpenInode, Option<&Handle>) {
    (&handle.open, Some(handle))
}

/// Takes the content's lock as the context allows: at once, or else as long as nobody who holds it waits for the backend.
fn patiently<'a, G>(
    ctx: &Ctx,
    open: &'a OpenInode,
    lock: impl Fn(&'a RwLock<Content>, Duration) -> Option<G>,
) -> Result<G> {
    if !ctx.may_block {
        return lock(&open.content, Duration::ZERO).ok_or(FsError::WouldBlock);
    }
    loop {
        if let Some(guard) = lock(&open.content, LOCK_SLICE) {
            return Ok(guard);
        }
        if open.fetching.load(Ordering::Acquire) {
            return Err(FsError::WouldWait);
        }
    }
}

/// While it lives, whoever holds the content's lock waits for the backend.
struct Fetching<'a>(&'a AtomicBool);

impl Fetching<'_> {
    fn begin(open: &OpenInode) -> Fetching<'_> {
        open.fetching.store(true, Ordering::Release);
        Fetching(&open.fetching)
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A read of the backend's file that failed: the medium is gone, or the file is damaged.
fn backend_read(error: std::io::Error) -> FsError {
    let error = crate::backend::BackendError::new("read", &crate::base::RelPath::root(), error);
    FsError::Backend(error)
}
