//! Reading: from the object where there is one, else through from the backend.

use std::fmt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLockReadGuard};

use super::files::Counted;
use super::open::OpenInode;
use super::{Ctx, Fs, FsError, Result};
use crate::backend::drive::Withheld;
use crate::backend::{BackendError, ReadFile};
use crate::base::{Ino, RelPath};
use crate::index::Location;
use crate::rules::touched::Touched;
use crate::sys;

/// A file of the backend that has not been read for this long is closed: a descriptor would keep the drive from being ejected.
const IDLE: Duration = Duration::from_secs(2);

/// How long files that the drive is let go of with may take to be closed.
const CLOSING: Duration = Duration::from_secs(2);

/// The backend's file of an open inode, while it is being read from there.
#[derive(Default)]
pub(super) struct BackendReader {
    file: Mutex<Option<Reader>>,
}

struct Reader {
    file: Arc<dyn ReadFile>,
    used: Instant,
    /// A batch removes it from the backend: closed, it could not be opened again.
    kept: bool,
    _counted: Counted,
}

impl fmt::Debug for BackendReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackendReader(open: {})", self.file.lock().is_some())
    }
}

impl BackendReader {
    fn get(&self) -> Option<Arc<dyn ReadFile>> {
        let mut reader = self.file.lock();
        let reader = reader.as_mut()?;
        reader.used = Instant::now();
        Some(reader.file.clone())
    }

    fn put(&self, file: Arc<dyn ReadFile>, kept: bool, counted: Counted) {
        *self.file.lock() = Some(Reader {
            file,
            used: Instant::now(),
            kept,
            _counted: counted,
        });
    }

    /// When it was last read, if it is open and may be closed.
    fn last_read(&self) -> Option<Instant> {
        let reader = self.file.lock();
        let reader = reader.as_ref().filter(|reader| !reader.kept)?;
        Some(reader.used)
    }

    pub(super) fn close_if(&self, idle: Duration) {
        let mut file = self.file.lock();
        if file
            .as_ref()
            .is_some_and(|reader| reader.used.elapsed() >= idle)
        {
            *file = None;
        }
    }
}

/// The answer to a request for the next data or hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekFor {
    /// The next byte that is not in a hole.
    Data,
    /// The next byte that is.
    Hole,
}

impl Fs {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// `ENOMEDIUM` if the bytes are only on the backend and that is away.
    pub fn read(&self, ctx: &Ctx, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let handle = self.opens.handle(handle)?;
        if let Some((object, file)) = self.object_at_hand(ctx, &handle.open)? {
            return read_full(buffer, |part, done| {
                self.store.check_fault("read", object)?;
                file.read_at(part, offset + done)
            })
            .map_err(FsError::Object);
        }
        let inode = self.known(&mut self.index.lock(), handle.open.ino)?;
        match inode.location() {
            Location::Backend if inode.size > 0 => {
                ctx.wait()?;
                self.read_through(&handle.open, offset, buffer)
            }
            _ => Ok(0),
        }
    }

    fn read_through(&self, open: &OpenInode, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if !self.drive.is_attached() {
            return Err(FsError::Detached);
        }
        let file = match open.backend.get() {
            Some(file) => file,
            None => {
                self.close_surplus_readers();
                let file = self.open_on_backend(open.ino)?;
                open.backend
                    .put(file.clone(), false, self.files.count_reader());
                file
            }
        };
        read_full(buffer, |part, done| file.read_at(part, offset + done)).map_err(|source| {
            open.backend.close_if(Duration::ZERO);
            FsError::Backend(BackendError::new("read", &RelPath::root(), source))
        })
    }

    /// Closes some of the backend's files, those that have not been read for longest, if there are too many.
    fn close_surplus_readers(&self) {
        let surplus = self.files.surplus_readers();
        if surplus == 0 {
            return;
        }
        let all = self.opens.all().into_iter();
        let mut open: Vec<_> = all
            .filter_map(|open| Some((open.backend.last_read()?, open)))
            .collect();
        open.sort_by_key(|(used, _)| *used);
        for (_, open) in open.into_iter().take(surplus) {
            open.backend.close_if(Duration::ZERO);
        }
    }

    /// Opens what the backend has of `ino`.
    pub(super) fn open_on_backend(&self, ino: Ino) -> Result<Arc<dyn ReadFile>> {
        let backend = self.drive.get().ok_or(FsError::Detached)?;
        let (_names, path) = self.settled_path(ino, |touched, path| touched.concerns(path))?;
        let file: Arc<dyn ReadFile> = match backend.open(&path) {
            Ok(file) => file.into(),
            Err(error) => return Err(self.note_backend_error(error)),
        };
        let found = file
            .metadata()
            .map_err(|source| FsError::Backend(BackendError::new("stat", &path, source)))?;
        self.take_in_opened(ino, &found)?;
        let inode = self.known(&mut self.index.lock(), ino)?;
        let size = inode.size;
        // The size of a file with an object is the object's: it differs from the drive's as soon as
        // the file is written here.
        if inode.location() == Location::Backend && found.size != size {
            tracing::warn!(%path, size, found = found.size, "somebody else has changed this file on the drive");
            return Err(FsError::Errno(libc::EIO));
        }
        Ok(file)
    }

    /// Where the backend has `ino`, which stays so as long as the guard lives. `concerned` tells whether a batch that is moving
    /// names may be moving this one.
    ///
    /// # Errors
    /// ETIMEDOUT if one is, or was interrupted at it.
    pub(super) fn settled_path(
        &self,
        ino: Ino,
        concerned: impl Fn(&Touched, &RelPath) -> bool,
    ) -> Result<(RwLockReadGuard<'_, Withheld>, RelPath)> {
        let find = || self.index.lock().backend_path(ino);
        let is_concerned = |touched: &Touched, found: &crate::index::Result<Option<RelPath>>| matches!(found, Ok(Some(path)) if concerned(touched, path));
        let held = self.drive.hold_names(self.io_timeout, find, is_concerned);
        let (names, path) = held.ok_or(FsError::Errno(libc::ETIMEDOUT))?;
        Ok((names, path?.ok_or(FsError::STALE)?))
    }

    /// Notes what an error of the backend says of the backend itself.
    pub(super) fn note_backend_error(&self, error: BackendError) -> FsError {
        if error.is_gone() {
            tracing::warn!(%error, "the backend does not answer as it should");
        }
        FsError::Backend(error)
    }

    /// Closes files of the backend that nobody has read for a while, or all of them if the drive is to go: then they are
    /// closed when this returns, unless the backend does not answer.
    pub fn close_idle_readers(&self, all: bool) {
        let idle = if all { Duration::ZERO } else { IDLE };
        for open in self.opens.all() {
            open.backend.close_if(idle);
        }
        if all && !self.drive.wait_for_closes(CLOSING) {
            tracing::warn!(
                "files of the backend are still being closed; it cannot be unmounted before"
            );
        }
    }

    /// Keeps the files that a batch is about to remove from the backend readable for those who have them open. A file with an
    /// object is read from that.
    pub fn hold_open_for_readers(&self, inos: &[Ino]) {
        for ino in inos {
            if let Some(open) = self.opens.find(*ino)
                && self.is_on_backend_only(*ino)
                && open.backend.get().is_none()
                && let Ok(file) = self.open_on_backend(*ino)
            {
                open.backend.put(file, true, self.files.count_reader());
            }
        }
    }

    fn is_on_backend_only(&self, ino: Ino) -> bool {
        let inode = self.index.lock().inode(ino);
        inode.is_ok_and(|inode| inode.is_some_and(|it| it.location() == Location::Backend))
    }

    /// The next data or hole at or after `offset`.
    ///
    /// # Errors
    /// `ENXIO` beyond the end of the file, or if there is no more data.
    pub fn seek(&self, ctx: &Ctx, handle: u64, offset: u64, seek_for: SeekFor) -> Result<u64> {
        const BEYOND: FsError = FsError::Errno(libc::ENXIO);
        let handle = self.opens.handle(handle)?;
        if let Some((_, file)) = self.object_at_hand(ctx, &handle.open)? {
            let found = match seek_for {
                SeekFor::Data => sys::file::next_data(&file, offset)?,
                SeekFor::Hole => sys::file::next_hole(&file, offset)?,
            };
            return found.ok_or(BEYOND);
        }
        let inode = self.known(&mut self.index.lock(), handle.open.ino)?;
        let size = inode.size;
        if offset >= size {
            return Err(BEYOND);
        }
        let holes = self.described_holes(&inode)?;
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

/// Reads until `buffer` is full or nothing more comes.
fn read_full(
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
