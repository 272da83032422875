//! Reads of files that only the drive has.
//!
//! [`DriveFiles`] owns the rules by which files of the backend are opened and closed. The open file
//! itself is part of the open inode ([`Reader`]), under a mutex that is not held during a read of
//! the drive. Nothing of it survives a crash.
//!
//! Invariant: a file that a batch removes from the backend stays open as long as it is open in the
//! mount, idle or not, because it could not be opened again. Only a release of the drive closes it.
//! Failure order: a failed read closes any other file, so the next read opens it again.
//!
//! Lock order: names on the drive, then the index. The mutex of a [`Reader`] is held for one
//! access, and no other lock is taken meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::core::{Capabilities, Clock, FileKind, Ino, RelPath};
use crate::drive::{BackendError, ReadFile};
use crate::index::{Index, Inode, Location};
use crate::vfs::object_files::ObjectFiles;
use crate::vfs::open_files::{OpenFiles, OpenInode};
use crate::vfs::{FsError, FsParts, Invalidations, Result, known};

mod changed;
mod paths;
mod reader;

pub(crate) use changed::{expected, seen, take_bytes};
pub(crate) use paths::{DrivePaths, note_backend_error};
pub(crate) use reader::Reader;

/// Idle time after which a file of the backend is closed: an open descriptor keeps the drive from
/// being ejected.
const IDLE: Duration = Duration::from_secs(2);

/// How long closing all files may take when the drive is released.
const CLOSING: Duration = Duration::from_secs(2);

/// The bytes that were read together with an open.
type First = std::io::Result<Vec<u8>>;

/// The files that are read from the backend.
pub(crate) struct DriveFiles {
    index: Arc<Index>,
    clock: Arc<dyn Clock>,
    capabilities: Capabilities,
    invalidations: Arc<Invalidations>,
    open_files: Arc<OpenFiles>,
    objects: Arc<ObjectFiles>,
    paths: DrivePaths,
    /// How many reads programs have made.
    reads: AtomicU64,
}

impl DriveFiles {
    pub(super) fn new(
        parts: &FsParts,
        paths: DrivePaths,
        open_files: Arc<OpenFiles>,
        objects: Arc<ObjectFiles>,
        invalidations: Arc<Invalidations>,
    ) -> DriveFiles {
        DriveFiles {
            index: parts.index.clone(),
            clock: parts.clock.clone(),
            capabilities: parts.capabilities.clone(),
            invalidations,
            open_files,
            objects,
            paths,
            reads: AtomicU64::new(0),
        }
    }

    /// Returns how many reads programs have made, for those that give way to them.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Checks that a file which only the backend has can be read: while the backend is detached the
    /// open fails, rather than the first read.
    pub(super) fn check_readable(&self, inode: &Inode) -> Result<()> {
        let only_there = inode.location() == Location::Backend && inode.kind() == FileKind::Regular;
        if only_there && inode.size > 0 {
            return self.paths.check_attached();
        }
        Ok(())
    }

    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
    pub(super) fn read(&self, open: &OpenInode, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.paths.check_attached()?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        let reader = open.reader();
        let (file, first) = match reader.get() {
            Some(file) => (Some(file), Ok(Vec::new())),
            None => {
                self.close_surplus();
                let (file, first) = self.open_at(open.ino(), offset, buffer.len())?;
                if let Some(file) = &file {
                    reader.put(file.clone(), false, self.objects.count_reader());
                }
                (file, first)
            }
        };
        let read = first.and_then(|first| {
            let (have, rest) = buffer.split_at_mut(first.len());
            have.copy_from_slice(&first);
            let Some(file) = file else {
                return Ok(first.len());
            };
            let at = offset + first.len() as u64;
            let more = read_full(rest, |part, done| file.read_on(part, at + done))?;
            Ok(first.len() + more)
        });
        read.map_err(|source| {
            reader.close_idle(Duration::ZERO);
            FsError::Backend(BackendError::new("read", &RelPath::root(), source))
        })
    }

    /// Reads as [`DriveFiles::read`] if the bytes have been read ahead, without waiting.
    pub(super) fn read_ready(
        &self,
        open: &OpenInode,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Option<usize>> {
        self.paths.check_attached()?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        let file = open.reader().get();
        Ok(file.and_then(|file| file.read_ready(buffer, offset)))
    }

    /// Opens the backend's file of `ino`.
    pub(super) fn open(&self, ino: Ino) -> Result<Arc<dyn ReadFile>> {
        // Nothing is read, so the file stays open.
        let (file, _) = self.open_at(ino, 0, 0)?;
        file.ok_or(FsError::STALE)
    }

    /// Opens the backend's file of `ino` and reads up to `length` bytes at `offset`. A file that
    /// was read as a whole need not stay open.
    fn open_at(
        &self,
        ino: Ino,
        offset: u64,
        length: usize,
    ) -> Result<(Option<Arc<dyn ReadFile>>, First)> {
        let backend = self.paths.backend()?;
        let (_names, path) = self
            .paths
            .settled(ino, |touched, path| touched.concerns(path))?;
        let opened = backend.open_at(&path, offset, length);
        let opened = opened.map_err(note_backend_error)?;
        let found = opened.metadata;
        self.take_in_opened(ino, &found)?;
        let inode = known(&mut self.index.lock(), ino)?;
        let size = inode.size;
        // A file with an object has the object's size, which differs from the drive's after the
        // first write.
        if inode.location() == Location::Backend && found.size != size {
            tracing::warn!(%path, size, found = found.size, "this file was changed on the drive by another program");
            return Err(FsError::Errno(libc::EIO));
        }
        Ok((opened.file.map(Arc::from), opened.first))
    }

    /// Closes the least recently read files if there are too many.
    fn close_surplus(&self) {
        let surplus = self.objects.surplus_readers();
        if surplus == 0 {
            return;
        }
        let all = self.open_files.all().into_iter();
        let mut open: Vec<_> = all
            .filter_map(|open| Some((open.reader().last_read()?, open)))
            .collect();
        open.sort_by_key(|(used, _)| *used);
        for (_, open) in open.into_iter().take(surplus) {
            open.reader().close_idle(Duration::ZERO);
        }
    }

    /// Closes idle files.
    pub(super) fn close_idle(&self) {
        for open in self.open_files.all() {
            open.reader().close_idle(IDLE);
        }
    }

    /// Closes all files before the drive is released. They are closed when this returns, unless the
    /// drive does not answer.
    pub(super) fn close_all(&self) {
        for open in self.open_files.all() {
            open.reader().close();
        }
        if !self.paths.wait_for_closes(CLOSING) {
            tracing::warn!(
                "files of the backend are still being closed; the drive cannot be unmounted before that"
            );
        }
    }

    /// Opens files that a batch is about to remove from the backend, and keeps them open, so that
    /// their readers can go on. A file with an object needs no open file on the backend.
    pub(super) fn keep_open(&self, inos: &[Ino]) {
        for ino in inos {
            if let Some(open) = self.open_files.find(*ino)
                && self.is_on_backend_only(*ino)
                && !open.reader().keep()
                && let Ok(file) = self.open(*ino)
            {
                open.reader().put(file, true, self.objects.count_reader());
            }
        }
    }

    fn is_on_backend_only(&self, ino: Ino) -> bool {
        let inode = self.index.lock().inode(ino);
        inode.is_ok_and(|inode| inode.is_some_and(|it| it.location() == Location::Backend))
    }
}

/// Reads until `buffer` is full or the end of the file.
pub(super) fn read_full(
    buffer: &mut [u8],
    mut read: impl FnMut(&mut [u8], u64) -> std::io::Result<usize>,
) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match read(&mut buffer[done..], done as u64) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
