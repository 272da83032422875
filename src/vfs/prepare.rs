//! Preparing a file for writes in place: it gets an object that no batch reads.
//!
//! Invariant: before the first byte of an open file changes, a committed row has WRITING set
//! ([`Fs::prepare`]). After a crash at any later moment the flag is found, and size and mtime come
//! from the object.
//!
//! Failure order: bytes into a new object (fetched from the backend, or copied because a batch
//! reads the old one), then the row. A crash in between leaves an object without a row, which goes
//! to lost+found, and a row with the old object: the file as it was.
//!
//! It uses the index, the objects, the drive's files and what is not durable yet, so it belongs to
//! none of these parts. Lock order: one open inode's content; names on the drive (for a fetch); an
//! object's descriptor; the index.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::core::{ContentHash, FileKind, Ino, ObjectId};
use crate::drive::ReadFile;
use crate::format::catalog::Extent;
use crate::index::{Flags, IndexWriter, Inode, Location, PlacedEntry};
use crate::sys;
use crate::vfs::import::holes::{described_holes, write_around_holes};
use crate::vfs::measured::measure;
use crate::vfs::object_files::ObjectFile;
use crate::vfs::open_files::{Content, OpenInode};
use crate::vfs::{Ctx, Fs, FsError, Result, known};

/// A file up to this size, in bytes, is copied when it is changed while a batch reads it. Of a
/// larger one only what changes is kept ([`crate::cache::Store::begin_image`]).
const COPY_LIMIT: u64 = 1 << 20;

/// Buffer of a copy from the backend.
const FETCH_BUFFER: usize = 1 << 20;

/// Treatment of a file's old bytes when it is prepared for writing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OldBytes {
    Keep,
    Discard,
}

impl Fs {
    /// Prepares the open file for writes in place and returns its object.
    pub(super) fn prepare(
        &self,
        ctx: &Ctx,
        open: &OpenInode,
        content: &mut Content,
        old: OldBytes,
    ) -> Result<Arc<ObjectFile>> {
        if let Some(object) = content.prepared() {
            return Ok(object.clone());
        }
        loop {
            let mut state = self.index.lock();
            let inode = known(&mut state, open.ino())?;
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
                        let file = self.open_files.open_object(content, object)?;
                        sys::time::set_modified_fd(&**file.file()?, inode.mtime)?;
                        file
                    }
                }
                Location::Backend if old == OldBytes::Keep && inode.size > 0 => {
                    drop(state);
                    ctx.wait()?;
                    let fetching = open.begin_fetch();
                    self.fetch(open.ino())?;
                    drop(fetching);
                    continue;
                }
                _ => {
                    let object = state.new_object()?;
                    drop(state);
                    self.objects.create(object)?
                }
            };
            // Before the row that names it: a sync of the index must not run before the sync of the
            // bytes.
            self.durability.note_unsynced(&file);
            let begun = self.begin_writing(open.ino(), &file);
            if begun.is_err() {
                let mut state = self.index.lock();
                match content.has_writers() {
                    true => state.end_changing(open.ino()),
                    false => state.end_writing(open.ino()),
                }
            }
            if begun.is_err() {
                self.drop_unneeded(open.ino(), file.id())?;
            }
            if begun? {
                content.prepare(file.clone());
                return Ok(file);
            }
        }
    }

    /// Returns whether the inode's object may be changed in place: no batch reads it, or the batch
    /// reads what it was. If the SSD gives no space for that, a large file is taken out of the
    /// batch, as long as that is still possible.
    fn may_change_in_place(&self, state: &mut IndexWriter, inode: &Inode) -> bool {
        if !state.is_pinned(inode) {
            return true;
        }
        let (Some(object), true) = (inode.object, inode.size > COPY_LIMIT) else {
            return false;
        };
        // Under the index lock: the batch cannot end before it has been told.
        let begun = self.store.begin_image(object, inode.size);
        let Some(active) = state.active_batch() else {
            return true;
        };
        match begun {
            Ok(()) => active.imaged.insert(inode.ino),
            Err(_) if active.committed => return false,
            Err(error) => {
                tracing::warn!(ino = inode.ino.0, %error, "left out of the batch");
                active.live.insert(inode.ino)
            }
        };
        true
    }

    /// Records and commits that `file` is the inode's object and is being written from now on.
    /// Returns false if a cut pinned this object after the caller's check.
    fn begin_writing(&self, ino: Ino, file: &ObjectFile) -> Result<bool> {
        let mut state = self.index.lock();
        let mut inode = known(&mut state, ino)?;
        if inode.object == Some(file.id()) && state.is_pinned(&inode) {
            return Ok(false);
        }
        let seq = state.next_seq()?;
        if inode.object == Some(file.id()) {
            state.follow_replaced(ino, inode.data_seq, seq)?;
        } else {
            // The old bytes stay until the new ones are durable; after a power cut before that the
            // file has the old bytes again.
            if inode.size > 0 && inode.location() != Location::Empty {
                state.note_replaced(None, (ino, seq), &inode)?;
            }
            if let Some(old) = inode.object {
                state.bury_object(&inode, old)?;
            }
        }
        inode.object = Some(file.id());
        inode.flags.set(Flags::DATA_DIRTY);
        inode.flags.set(Flags::WRITING);
        inode.data_seq = seq;
        // No flush is due for it before it is closed, or has been open for long enough.
        state.mark_left_behind(|state| state.mark_inode(&inode))?;
        state.start_changing(ino);
        state.put_inode(inode);
        state.finish()?;
        Ok(true)
    }

    /// Removes an object that was created for `ino` if no row names it.
    fn drop_unneeded(&self, ino: Ino, object: ObjectId) -> Result<()> {
        let inode = self.index.lock().inode(ino)?;
        if inode.is_none_or(|inode| inode.object != Some(object)) {
            self.store.remove(object)?;
        }
        Ok(())
    }

    /// Copies an object that a batch reads; the copy is changed instead.
    fn copy_object(
        &self,
        content: &mut Content,
        inode: &Inode,
        from: ObjectId,
        to: ObjectId,
    ) -> Result<Arc<ObjectFile>> {
        let source = self.open_files.open_object(content, from)?;
        let copy = self.objects.clone_of(&source, to)?;
        sys::time::set_modified_fd(&**copy.file()?, inode.mtime)?;
        Ok(copy)
    }

    /// Copies a file that only the backend has into the cache. The caller holds its content's lock,
    /// or keeps the file from changing by other means.
    pub(super) fn fetch(&self, ino: Ino) -> Result<()> {
        // Opening the file may update the row to the current state of the backend.
        let source = self.drive_files.open(ino)?;
        let (inode, object) = {
            let mut state = self.index.lock();
            (known(&mut state, ino)?, state.new_object()?)
        };
        let holes = described_holes(&self.index, &inode)?;
        let target = self.objects.create(object)?;
        let copied = (|| {
            let file = target.file()?;
            let (at, hash) = copy_in(&*source, &file, &holes)?;
            if at != inode.size {
                tracing::warn!(
                    ino = ino.0,
                    expected = inode.size,
                    got = at,
                    "the file on the backend has an unexpected size"
                );
                return Err(FsError::Errno(libc::EIO));
            }
            sys::time::set_modified_fd(&**file, inode.mtime)?;
            Ok((measure(&file)?.blocks(), hash))
        })();
        let (blocks, hash) = match copied {
            Ok(copied) => copied,
            Err(error) => {
                self.store.remove(object)?;
                return Err(error);
            }
        };
        // Unsynced before the row names it: a sync of the index must not run before the sync of the
        // bytes.
        self.durability.note_unsynced(&target);
        let mut state = self.index.lock();
        let mut inode = known(&mut state, ino)?;
        inode.object = Some(object);
        inode.blocks = blocks;
        inode.used = self.clock.now().parts().0;
        // If only the file's time differs later, the hash proves that its bytes have not changed.
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
}

/// Copies all of `source` into the new file of an object, around `holes`. Returns the length and
/// the hash of what was copied.
pub(super) fn copy_in(
    source: &dyn ReadFile,
    file: &File,
    holes: &[Extent],
) -> Result<(u64, ContentHash)> {
    let mut buffer = vec![0; FETCH_BUFFER];
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    loop {
        let got = source.read_on(&mut buffer, at).map_err(backend_read)?;
        if got == 0 {
            break;
        }
        hasher.update(&buffer[..got]);
        write_around_holes(holes, at, &buffer[..got], |at, bytes| {
            file.write_all_at(bytes, at)
        })?;
        at += got as u64;
    }
    file.set_len(at)?; // For a hole at the end.
    Ok((at, ContentHash(*hasher.finalize().as_bytes())))
}

/// Converts an error of a read of the backend's file: the medium is gone, or the file is damaged.
fn backend_read(error: std::io::Error) -> FsError {
    let error = crate::drive::BackendError::new("read", &crate::core::RelPath::root(), error);
    FsError::Backend(error)
}
