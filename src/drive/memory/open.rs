//! Open files of a [`MemoryBackend`].

use std::io;

use crate::core::{Metadata, Timestamp};
use crate::drive::memory::tree::MemoryTree;
use crate::drive::memory::{MemoryBackend, MemoryOptions, errno};
use crate::drive::{ModifyFile, ReadFile, WriteFile};

/// An open file. It is found by its number, so it may be renamed meanwhile. After a removal or a
/// crash its calls fail with EIO. That is stricter than Linux, and equals a drive that was pulled
/// out.
pub(super) struct OpenFile {
    backend: MemoryBackend,
    id: u64,
    epoch: u64,
}

impl MemoryBackend {
    pub(super) fn handle(&self, id: u64, epoch: u64) -> OpenFile {
        OpenFile {
            backend: self.clone(),
            id,
            epoch,
        }
    }
}

impl OpenFile {
    fn with<T>(&self, work: impl FnOnce(&mut MemoryTree) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.backend.state.lock();
        if state.epoch != self.epoch {
            return Err(errno(libc::EIO));
        }
        work(&mut state.tree)
    }

    fn mutate<T>(&self, work: impl FnOnce(&mut MemoryTree) -> io::Result<T>) -> io::Result<T> {
        let done = self.with(work);
        let mut state = self.backend.state.lock();
        state.note_moment(&self.backend.options);
        done
    }
}

impl ReadFile for OpenFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|tree| {
            let bytes = tree.bytes(self.id)?;
            let start = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let length = buf.len().min(bytes.len() - start);
            buf[..length].copy_from_slice(&bytes[start..start + length]);
            Ok(length)
        })
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.with(|tree| tree.open_metadata(self.id))
    }
}

impl WriteFile for OpenFile {
    /// As the trait says; on a full backend it writes the bytes that still fit.
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let options = self.backend.options.clone();
        self.mutate(|tree| {
            let room = room(tree, &options, self.id)?;
            let fits = usize::try_from(room).unwrap_or(usize::MAX).min(data.len());
            tree.append(self.id, &data[..fits])?;
            if fits < data.len() {
                return Err(errno(libc::ENOSPC));
            }
            Ok(())
        })
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let modified = self.backend.cut(modified);
        self.mutate(|tree| tree.set_open_time(self.id, modified))
    }
}

impl ModifyFile for OpenFile {
    /// As the trait says; on a full backend it writes the bytes that still fit.
    fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        let options = self.backend.options.clone();
        self.mutate(|tree| {
            let size = tree.open_metadata(self.id)?.size;
            let end = size.saturating_add(room(tree, &options, self.id)?);
            let fits = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
            let fits = fits.min(data.len());
            tree.write_at(self.id, &data[..fits], offset)?;
            if fits < data.len() {
                return Err(errno(libc::ENOSPC));
            }
            Ok(())
        })
    }

    fn set_size(&mut self, size: u64) -> io::Result<()> {
        self.mutate(|tree| tree.set_size(self.id, size))
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        WriteFile::finish(self, modified)
    }
}

/// Returns the number of bytes that the open file can grow by.
fn room(tree: &MemoryTree, options: &MemoryOptions, id: u64) -> io::Result<u64> {
    let used = || tree.medium.used(options);
    let mut room = (options.capacity).map_or(u64::MAX, |all| all.saturating_sub(used()));
    if let Some(cluster) = options.cluster {
        let size = tree.open_metadata(id)?.size;
        let last = size.next_multiple_of(cluster) - size;
        room = (room / cluster * cluster).saturating_add(last);
    }
    Ok(room)
}
