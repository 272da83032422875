//! Reads and seeks: in the object if there is one, otherwise in the drive's file.

use std::os::unix::fs::FileExt;

use crate::index::Location;
use crate::sys;
use crate::vfs::drive_files::read_full;
use crate::vfs::import::holes::described_holes;
use crate::vfs::{Ctx, Fs, FsError, Result, known};

/// The target of a seek, as in lseek(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekFor {
    /// The next byte outside of a hole.
    Data,
    /// The next byte in a hole.
    Hole,
}

impl Fs {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// `ENOMEDIUM` if the bytes are only on the backend and the backend is detached.
    pub fn read(&self, ctx: &Ctx, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let handle = self.open_files.handle(handle)?;
        let open = handle.open();
        if let Some((object, file)) = self.open_files.object_of(ctx, open)? {
            return read_full(buffer, |part, done| {
                self.store.check_fault("read", object)?;
                file.read_at(part, offset + done)
            })
            .map_err(FsError::Object);
        }
        let inode = known(&mut self.index.lock(), open.ino())?;
        match inode.location() {
            Location::Backend if inode.size > 0 => {
                if let Some(got) = self.drive_files.read_ready(open, offset, buffer)? {
                    return Ok(got);
                }
                ctx.wait()?;
                self.drive_files.read(open, offset, buffer)
            }
            _ => Ok(0),
        }
    }

    /// Returns the offset of the next data or hole at or after `offset`.
    ///
    /// # Errors
    /// `ENXIO` beyond the end of the file, or if there is no more data.
    pub fn seek(&self, ctx: &Ctx, handle: u64, offset: u64, seek_for: SeekFor) -> Result<u64> {
        const BEYOND: FsError = FsError::Errno(libc::ENXIO);
        let handle = self.open_files.handle(handle)?;
        let open = handle.open();
        if let Some((_, file)) = self.open_files.object_of(ctx, open)? {
            let found = match seek_for {
                SeekFor::Data => sys::file::next_data(&file, offset)?,
                SeekFor::Hole => sys::file::next_hole(&file, offset)?,
            };
            return found.ok_or(BEYOND);
        }
        let inode = known(&mut self.index.lock(), open.ino())?;
        let size = inode.size;
        if offset >= size {
            return Err(BEYOND);
        }
        let holes = described_holes(&self.index, &inode)?;
        let next = holes.iter().find(|hole| hole.end() > offset);
        match (seek_for, next) {
            (SeekFor::Data, Some(hole)) if hole.offset <= offset => {
                let end = hole.end();
                (end < size).then_some(end).ok_or(BEYOND)
            }
            (SeekFor::Data, _) => Ok(offset),
            (SeekFor::Hole, Some(hole)) => Ok(hole.offset.max(offset)),
            (SeekFor::Hole, None) => Ok(size),
        }
    }
}
