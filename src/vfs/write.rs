//! Writes: the operations that change bytes.
//!
//! Each change runs on the object of a file that was prepared for writes in place
//! (`vfs/prepare.rs`). Once a file is prepared, a write takes its content's lock for reading, and
//! not the index. Lock order: as in `vfs/prepare.rs`.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::core::Ino;
use crate::core::cache_step::CacheStep;
use crate::sys;
use crate::vfs::object_files::ObjectFile;
use crate::vfs::open_files::{Handle, OpenInode};
use crate::vfs::prepare::OldBytes;
use crate::vfs::{Ctx, Fs, FsError, Result};

/// Most bytes that one request copies from file to file.
const COPY_AT_ONCE: usize = 64 << 20;

impl Fs {
    /// Prepares the file for writing and runs `change` on its object, which changes bytes in
    /// `range` only; `by` is the handle of the request, if there is one.
    fn change<T>(
        &self,
        ctx: &Ctx,
        (open, by): (&OpenInode, Option<&Handle>),
        (old, range): (OldBytes, Range<u64>),
        change: impl FnOnce(&ObjectFile, &File) -> Result<T>,
    ) -> Result<T> {
        {
            let content = open.share(ctx)?;
            if old == OldBytes::Keep
                && let Some(object) = content.prepared()
            {
                return self.change_object(ctx, object, by, range, change);
            }
        }
        let mut content = open.lock(ctx)?;
        let object = self.prepare(ctx, open, &mut content, old)?;
        let result = self.change_object(ctx, &object, by, range, change);
        if !content.has_writers() {
            self.open_files.settle(open.ino(), &mut content)?;
        }
        result
    }

    fn change_object<T>(
        &self,
        ctx: &Ctx,
        object: &Arc<ObjectFile>,
        by: Option<&Handle>,
        range: Range<u64>,
        change: impl FnOnce(&ObjectFile, &File) -> Result<T>,
    ) -> Result<T> {
        // The descriptor is held until the object counts as unsynced, so that it is not closed with
        // bytes that no sync would cover.
        let file = object.file()?;
        if let Some(handle) = by {
            handle.note_write(ctx);
        }
        self.store.keep_before(object.id(), &file, range);
        // A failure must not skip the notes below: the next sync then shows whether the SSD has
        // failed.
        let result = object
            .begin_change(&file)
            .and_then(|()| change(object, &file));
        object.note_changed();
        self.durability.note_unsynced(object);
        result
    }

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// If the SSD has no space; if the file is only on the backend and cannot be fetched.
    pub fn write(&self, ctx: &Ctx, handle: u64, offset: u64, data: &[u8]) -> Result<usize> {
        let handle = self.open_files.handle(handle)?;
        self.space.hold_back(ctx, data.len())?;
        self.space.with_space(ctx, || {
            let range = offset..offset.saturating_add(data.len() as u64);
            self.change(
                ctx,
                written(&handle),
                (OldBytes::Keep, range),
                |object, file| {
                    self.store.steps().before(CacheStep::WriteObject)?;
                    self.store.check_fault("write", object.id())?;
                    Ok(file.write_all_at(data, offset)?)
                },
            )
        })?;
        self.space.count_written(data.len());
        Ok(data.len())
    }

    /// Sets the length of an open file to `size`.
    pub(super) fn truncate_open(&self, ctx: &Ctx, open: &OpenInode, size: u64) -> Result<()> {
        let prepared = (open.try_share()).is_some_and(|content| content.prepared().is_some());
        // A file that is being written keeps its object. Otherwise truncation to zero needs neither
        // copy nor fetch, only a new object.
        let old = if size == 0 && !prepared {
            OldBytes::Discard
        } else {
            OldBytes::Keep
        };
        let now = self.clock.now();
        self.change(ctx, (open, None), (old, size..u64::MAX), |object, file| {
            file.set_len(size)?;
            if size == 0 {
                // Bytes that the SSD has lost are not needed any more.
                self.durability.forget_damage(object.id())?;
            }
            Ok(sys::time::set_modified_fd(file, now)?)
        })
    }

    /// Sets the length of the file `ino` to `size`.
    ///
    /// # Errors
    /// As [`Fs::write`].
    pub(super) fn truncate(&self, ctx: &Ctx, ino: Ino, size: u64) -> Result<()> {
        let open = self.open_files.acquire(ino);
        let result = self
            .space
            .with_reserve(|| self.truncate_open(ctx, &open, size));
        self.open_files.put(&open)?;
        result
    }

    /// Allocates, punches or zeroes a range, with `mode` as in fallocate(2).
    ///
    /// # Errors
    /// `EOPNOTSUPP` for modes that shift bytes or that the SSD's file system does not support.
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
        let handle = self.open_files.handle(handle)?;
        self.drop_privileges_of_others(ctx, handle.open().ino())?;
        let allocate = || {
            let range = offset..offset.saturating_add(length);
            self.change(ctx, written(&handle), (OldBytes::Keep, range), |_, file| {
                Ok(sys::file::allocate(file, mode, offset, length)?)
            })
        };
        if mode.contains(Flag::FALLOC_FL_PUNCH_HOLE) {
            return self.space.with_reserve(allocate); // Frees space.
        }
        self.space.with_space(ctx, allocate)?;
        self.space
            .count_written(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(())
    }

    /// Copies up to `length` bytes from one open file to another within the SSD.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the source is not in the cache: the kernel then copies by reading and
    /// writing.
    pub fn copy_range(
        &self,
        ctx: &Ctx,
        from: (u64, u64),
        to: (u64, u64),
        length: u64,
    ) -> Result<usize> {
        let source = self.open_files.handle(from.0)?;
        let (_, source) =
            (self.open_files.object_of(ctx, source.open())?).ok_or(FsError::NOT_SUPPORTED)?;
        let target = self.open_files.handle(to.0)?;
        let length = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(COPY_AT_ONCE);
        self.drop_privileges_of_others(ctx, target.open().ino())?;
        let copied = self.space.with_space(ctx, || {
            let range = to.1..to.1.saturating_add(length as u64);
            self.change(ctx, written(&target), (OldBytes::Keep, range), |_, file| {
                Ok(sys::file::copy_range(&source, from.1, file, to.1, length)?)
            })
        })?;
        self.space.count_written(copied);
        Ok(copied)
    }
}

/// Returns the arguments for a change through a handle.
fn written(handle: &Handle) -> (&OpenInode, Option<&Handle>) {
    (handle.open(), Some(handle))
}
