//! The slow side: a directory on a USB drive or a NAS share, behind a small trait.
//!
//! An implementation of [`Backend`] promises only what exFAT can promise: no call is durable before
//! the next [`Backend::sync`] has returned, and a crash may leave a rename half done. Nothing here
//! retries.

pub mod connection;
pub mod exchanged;
#[cfg(any(test, feature = "testing"))]
pub mod faulty;
mod helpers;
pub(crate) mod inner_mounts;
mod kept;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
pub mod mounted;
pub(crate) mod pass_on;
pub mod probe;
pub mod revocable;
mod root;
pub(crate) mod sealed_file;
pub mod supervised;
pub mod throttle;
mod unsynced;

use std::fmt;
use std::io;

pub use kept::KeptOpen;

pub(crate) use helpers::{
    create_with, exists, has_moved, hash_file, is_absent, matches, open_and_read, set_time,
};

use crate::core::{Entry, FileKind, Metadata, Name, RelPath, Space, Timestamp, Xattrs};
use crate::plan::trust::Trust;

/// A failed call to the backend: the operation, the path, and what the system said.
#[derive(Debug)]
pub struct BackendError {
    /// The operation, as a verb ("rename", "create").
    pub operation: &'static str,
    /// The path below the backend's root.
    pub path: RelPath,
    /// What the system said.
    pub source: io::Error,
}

/// The operation of an error of [`Backend::sync`], see [`BackendError::is_of_sync`].
pub(crate) const SYNC: &str = "sync";

/// The operation of an error of [`WriteFile::append`], see [`BackendError::is_of_contents`].
pub(crate) const WRITE: &str = "write";

/// The operation of an error of [`WriteFile::finish`], see [`BackendError::is_of_contents`].
pub(crate) const CLOSE: &str = "close";

impl BackendError {
    /// Returns an error of `operation` on `path`.
    pub fn new(operation: &'static str, path: &RelPath, source: io::Error) -> BackendError {
        BackendError {
            operation,
            path: path.clone(),
            source,
        }
    }

    /// A sync failed: everything that it was to make durable is in an unknown state, whatever the
    /// name.
    pub fn is_of_sync(&self) -> bool {
        self.operation == SYNC
    }

    /// The bytes of a new file could not be written.
    pub fn is_of_contents(&self) -> bool {
        matches!(self.operation, WRITE | CLOSE)
    }

    /// The path does not exist. Never `true` when the medium itself is gone.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// The backend has no space for this, and may have some later.
    pub fn is_full(&self) -> bool {
        full(&self.source)
    }

    /// The file is too large for the backend, regardless of free space.
    pub fn is_too_large(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EFBIG)
    }

    /// The name already exists.
    pub fn is_taken(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(libc::EEXIST | libc::ENOTEMPTY | libc::EISDIR)
        )
    }

    /// The backend refuses this very name or change, and a retry does not help. Other operations
    /// may still succeed.
    ///
    /// An error of the medium ([`BackendError::is_gone`]) is no refusal, although it may also
    /// concern one name only: only a check of the rest of the drive can decide that.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(
                libc::EPERM
                    | libc::EACCES
                    | libc::EXDEV
                    | libc::EBUSY
                    | libc::ETXTBSY
                    | libc::EFBIG
                    | libc::EINVAL
                    | libc::ENAMETOOLONG
                    | libc::EMLINK
                    | libc::ELOOP
                    | libc::EEXIST
                    | libc::ENOTEMPTY
                    | libc::EISDIR
                    | libc::ENOTDIR
                    | libc::ENOENT
                    | libc::EOPNOTSUPP
                    | libc::ENOSYS
                    | libc::E2BIG
                    | libc::ERANGE
                    | libc::EILSEQ
                    | libc::EOVERFLOW
                    | libc::EDEADLK
                    | libc::EAGAIN
                    | libc::ENOSPC
                    | libc::EDQUOT
                    | inner_mounts::NOT_MOUNTED
                    | inner_mounts::WRITES_LATER
            )
        )
    }

    /// Something was mounted there and is not now: nothing may be concluded from what shows there.
    pub fn is_not_mounted(&self) -> bool {
        self.source.raw_os_error() == Some(inner_mounts::NOT_MOUNTED)
    }

    /// The medium is gone or no longer reliable: callers must conclude nothing from it until it is
    /// attached again.
    pub fn is_gone(&self) -> bool {
        gone(&self.source)
    }

    /// This process, or the system, has no more descriptors or memory for the call. That says
    /// nothing about the backend.
    pub fn is_shortage(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
        )
    }

    /// The backend has not answered in time. It may do so later, so this is no reason to detach it,
    /// nor to conclude anything.
    pub fn is_stalled(&self) -> bool {
        self.source.raw_os_error() == Some(libc::ETIMEDOUT)
    }
}

/// Implements [`BackendError::is_full`] for the system's own error.
pub(crate) fn full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Implements [`BackendError::is_gone`] for the system's own error.
pub(crate) fn gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENOMEDIUM
                | libc::ENODEV
                | libc::ENXIO
                | libc::EIO
                | libc::EROFS
                | libc::ESTALE
                | libc::ENOTCONN
                | libc::ESHUTDOWN
                | libc::EHOSTDOWN
                | libc::ECONNABORTED
        )
    )
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.operation, self.path, self.source)
    }
}

impl std::error::Error for BackendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// How thorough [`Backend::check_alive`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Checks what the system knows by itself, so that a sleeping disk stays asleep. Detects much,
    /// but not everything.
    Glance,
    /// Reads the volume's marker from the medium and bypasses every cache: a file system whose disk
    /// is gone still answers stat and statfs from memory.
    Read,
}

/// What [`Backend::remount`] makes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read-only: everything is synced, and it is as after an unmount.
    ReadOnly,
    /// Writable. The caller has made it read-only.
    Writable,
    /// Writable, unless it is read-only and marked as not clean: the system may have made it
    /// read-only after an error.
    WritableIfClean,
}

/// The result of a call to the backend.
pub type Result<T> = std::result::Result<T, BackendError>;

/// A file of the backend that is open for reading. Its drop closes it.
pub trait ReadFile: Send + Sync {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// What the system said.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// As [`ReadFile::read_at`], for a reader that may read on from there: the file may be read
    /// ahead, and the bytes may have been read a moment before. May return fewer bytes, but none
    /// only at the end of the file.
    ///
    /// # Errors
    /// What the system said.
    fn read_on(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }

    /// Copies up to `buf.len()` bytes at `offset`, fewer only at the end of the file, if they have
    /// been read ahead. Never waits for the backend.
    fn read_ready(&self, buf: &mut [u8], offset: u64) -> Option<usize> {
        let _ = (buf, offset);
        None
    }

    /// Returns the current metadata: size and time.
    ///
    /// # Errors
    /// What the system said.
    fn metadata(&self) -> io::Result<Metadata>;
}

/// A file that was opened for a reader, by [`Backend::open_at`].
pub struct Opened {
    /// The file; `None` if all of it is in `first`, so that it need not stay open.
    pub file: Option<Box<dyn ReadFile>>,
    /// Its metadata after the open.
    pub metadata: Metadata,
    /// The bytes that the reader wants first; fewer only at the end of the file.
    pub first: io::Result<Vec<u8>>,
}

/// How far the system has to come with what was written to a file. Neither makes it durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOut {
    /// It begins to write all of it to the medium, after what it has begun with before is there.
    Begin,
    /// All of it has been passed to the medium.
    Finish,
}

/// A new file of the backend, written from front to back.
pub trait WriteFile: Send {
    /// Appends all of `data`.
    ///
    /// # Errors
    /// What the system said; the file then has an unknown length.
    fn append(&mut self, data: &[u8]) -> io::Result<()>;

    /// Has the system write out what it holds of the file in its memory, if it can. A file around
    /// another passes this on.
    ///
    /// # Errors
    /// An error of the medium: the bytes written so far are then in an unknown state.
    fn write_out(&mut self, how: WriteOut) -> io::Result<()> {
        let _ = how;
        Ok(())
    }

    /// Sets the modification time and closes the file. Durable after the next [`Backend::sync`].
    ///
    /// # Errors
    /// What the system said, including an error of an earlier write that the system reports only
    /// now.
    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()>;
}

/// A regular file of the backend that is changed in place. A drop without `finish` closes it as it
/// is.
pub trait ModifyFile: Send {
    /// Writes all of `data` at `offset`, over what is there, or at the end of the file.
    ///
    /// # Errors
    /// What the system said; any part of `data` may have been written then.
    fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file off, or fills it up with zeros, to `size` bytes.
    ///
    /// # Errors
    /// What the system said.
    fn set_size(&mut self, size: u64) -> io::Result<()>;

    /// Sets the modification time and closes the file. Durable after the next [`Backend::sync`].
    ///
    /// # Errors
    /// As for [`WriteFile::finish`].
    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()>;
}

/// A directory on the slow side. All paths are relative to its root; no call follows a symbolic
/// link.
pub trait Backend: Send + Sync {
    /// Returns the entries of the directory `dir`, in the backend's order.
    ///
    /// # Errors
    /// If `dir` is no directory or cannot be read to its end.
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>>;

    /// Returns the metadata of `path`. Does not follow a link.
    ///
    /// # Errors
    /// [`BackendError::is_not_found`] if it does not exist.
    fn metadata(&self, path: &RelPath) -> Result<Metadata>;

    /// Returns the names in the directory `dir`, in the backend's order. Cheaper than
    /// [`Backend::read_dir`], which asks for each of them. A backend around another passes this on.
    ///
    /// # Errors
    /// As for [`Backend::read_dir`].
    fn names_in(&self, dir: &RelPath) -> Result<Vec<Name>> {
        let entries = self.read_dir(dir)?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    /// As [`Backend::metadata`], but a network file system asks its server instead of answering
    /// from this machine's memory. A backend around another passes this on.
    ///
    /// # Errors
    /// As for [`Backend::metadata`].
    fn metadata_now(&self, path: &RelPath) -> Result<Metadata> {
        self.metadata(path)
    }

    /// Opens the regular file at `path` for reading.
    ///
    /// # Errors
    /// If it does not exist, or is no regular file.
    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>>;

    /// Opens the regular file at `path` for reading, and reads up to `length` bytes at `offset`.
    ///
    /// # Errors
    /// As for [`Backend::open`].
    fn open_at(&self, path: &RelPath, offset: u64, length: usize) -> Result<Opened> {
        open_and_read(self.open(path)?, path, offset, length)
    }

    /// Opens the regular file at `path` for reading from the medium; reads bypass every cache that
    /// can be bypassed. Everything must be synced before. A backend around another passes this on.
    ///
    /// # Errors
    /// As for [`Backend::open`].
    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        self.open(path)
    }

    /// As [`Backend::open`], and returns the trust in the file, judged by the opened file and by
    /// the directories that led to it. A backend that cannot judge returns [`Trust::ANYBODY`]. A
    /// backend around another passes this on.
    ///
    /// # Errors
    /// As for [`Backend::open`].
    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        Ok((self.open(path)?, Trust::ANYBODY))
    }

    /// Returns the trust in `path`. If it is ours it stays ours, and no other user can replace it.
    ///
    /// # Errors
    /// If it does not exist, or a component of the path is no directory.
    fn trust(&self, path: &RelPath) -> Result<Trust> {
        self.metadata(path).map(|_| Trust::ANYBODY)
    }

    /// Creates a new, empty regular file at `path`.
    ///
    /// # Errors
    /// `AlreadyExists` if the path exists.
    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>>;

    /// Opens the regular file at `path` to be changed in place. Other programs that have it open
    /// see the changes.
    ///
    /// # Errors
    /// If it does not exist, or is no regular file; EMLINK if it has further names, under which it
    /// would change as well.
    fn modify(&self, path: &RelPath) -> Result<Box<dyn ModifyFile>>;

    /// Creates a directory.
    ///
    /// # Errors
    /// `AlreadyExists` if the path exists.
    fn make_dir(&self, path: &RelPath) -> Result<()>;

    /// Moves a file or directory; a regular file replaces a regular file at `to`.
    ///
    /// # Errors
    /// If `from` does not exist, or `to` cannot be replaced.
    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()>;

    /// Moves a file or directory to a name that does not exist.
    ///
    /// If the file system has no such call, this checks the name first: another program may create
    /// it between the two calls.
    ///
    /// # Errors
    /// `AlreadyExists` if `to` exists; else as for [`Backend::rename`].
    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        match self.metadata(to) {
            Ok(_) => Err(BackendError::new(
                "rename",
                to,
                io::Error::from_raw_os_error(libc::EEXIST),
            )),
            Err(error) if error.is_not_found() => self.rename(from, to),
            Err(error) => Err(error),
        }
    }

    /// Exchanges two names in one step. Returns `false`, without effect, if the file system does
    /// not support it.
    ///
    /// # Errors
    /// If one of them does not exist.
    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        let _ = (one, other);
        Ok(false)
    }

    /// Checks, without an attempt, that names in the directory `dir` can be created, replaced and
    /// removed. A file system that is mounted read-only there, for example, forbids it.
    ///
    /// # Errors
    /// The refusal that such a change would meet.
    fn check_changeable(&self, dir: &RelPath) -> Result<()> {
        let _ = dir;
        Ok(())
    }

    /// The same for the file at `path` itself: whether it may be replaced, moved or removed.
    ///
    /// # Errors
    /// The refusal that such a change would meet.
    fn check_replaceable(&self, path: &RelPath) -> Result<()> {
        let _ = path;
        Ok(())
    }

    /// Keeps the directories open that the calls of one phase of a batch use, until the returned
    /// value is dropped, so that each call needs fewer system calls. It changes no answer. A
    /// backend around another passes this on.
    fn keep_open(&self) -> KeptOpen {
        Box::new(())
    }

    /// Returns whether a crash leaves a rename either done or not done. Where it does not, or where
    /// that is unknown, a renamed file may be found under both names or under neither.
    fn renames_atomically(&self) -> bool {
        false
    }

    /// Returns whether there may be several file systems below the root, so that what was to be a
    /// further name of a file may have become a copy of it.
    fn links_may_be_copies(&self) -> bool {
        false
    }

    /// Removes a file of any type except a directory.
    ///
    /// # Errors
    /// [`BackendError::is_not_found`] if it does not exist.
    fn remove_file(&self, path: &RelPath) -> Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`BackendError::is_not_found`] if it does not exist; `DirectoryNotEmpty` if it is not empty.
    fn remove_dir(&self, path: &RelPath) -> Result<()>;

    /// Sets the modification time of a file, a directory, or a symbolic link itself.
    ///
    /// # Errors
    /// If it does not exist.
    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()>;

    /// Makes the file system read-only or writable for everybody, and changes nothing else. Returns
    /// whether it was otherwise before. A backend around another passes this on.
    ///
    /// # Errors
    /// EBUSY if another program has a file open for writing, or a deleted one; EROFS if it cannot
    /// be made writable; EPERM without the right; `Unsupported` if the backend has no such state.
    fn remount(&self, access: Access) -> Result<bool> {
        let _ = access;
        Err(not_supported("remount", &RelPath::root()))
    }

    /// Makes all earlier calls durable: one `syncfs` for the whole file system.
    ///
    /// # Errors
    /// Any write error since the last sync; none of the writes then counts as written.
    fn sync(&self) -> Result<()>;

    /// Returns the space, as far as the backend reports it.
    ///
    /// # Errors
    /// If it does not.
    fn space(&self) -> Result<Space>;

    /// Releases space that is reserved on the backend for the case that it is full, so that a call
    /// that found it full can be repeated. Returns `false` if there is none. Only a batch reserves
    /// space.
    ///
    /// # Errors
    /// If the space may not be free.
    fn relieve(&self) -> Result<bool> {
        Ok(false)
    }

    /// Returns once the slow side itself has answered, as far as a cheap call can show that: an
    /// answer from this machine's memory proves nothing. A `statfs` of a network share asks the
    /// server each time.
    ///
    /// # Errors
    /// If it answered with an error.
    fn answers(&self) -> Result<()> {
        self.space().map(drop)
    }

    /// Checks that the medium is there. The result guarantees nothing for the next moment.
    ///
    /// # Errors
    /// The error that shows that it is not.
    fn check_alive(&self, look: Look) -> Result<()> {
        let _ = look;
        self.metadata(&crate::format::layout::marker_path())
            .map(drop)
    }

    /// Creates a symbolic link at `path` that points to `target`, byte for byte.
    ///
    /// # Errors
    /// EOPNOTSUPP, or another refusal, if the backend has no symbolic links; `AlreadyExists` if the
    /// path exists.
    fn make_symlink(&self, target: &[u8], path: &RelPath) -> Result<()> {
        let _ = target;
        Err(not_supported("symlink", path))
    }

    /// Gives the file at `from` the further name `to`.
    ///
    /// # Errors
    /// EOPNOTSUPP, or another refusal, if the backend has no hard links; `AlreadyExists` if `to`
    /// exists.
    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        let _ = from;
        Err(not_supported("link", to))
    }

    /// Sets the permission bits (`0o7777`) of the file or directory at `path`. Some backends accept
    /// that and keep the old ones: see
    /// [`Capabilities::permissions`](crate::core::Capabilities::permissions).
    ///
    /// # Errors
    /// EOPNOTSUPP, or another refusal, if the backend has none.
    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        let _ = mode;
        Err(not_supported("set permissions of", path))
    }

    /// Creates a special file at `path`: a named pipe, a socket, or the device `rdev`. At first
    /// only its owner may use it.
    ///
    /// # Errors
    /// EOPNOTSUPP, or another refusal, if the backend has none; `AlreadyExists` if the path exists.
    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
        let _ = (kind, rdev);
        Err(not_supported("mknod", path))
    }

    /// Changes the owner, the group, or both of `path`, also of a symbolic link itself. Some
    /// backends accept that and keep the old ones: see
    /// [`Capabilities::owners`](crate::core::Capabilities::owners). The call may clear privilege
    /// bits (set-user-id).
    ///
    /// # Errors
    /// EPERM or another refusal if the backend does not support it.
    fn set_owner(&self, path: &RelPath, owner: Option<u32>, group: Option<u32>) -> Result<()> {
        let _ = (owner, group);
        Err(not_supported("set owner of", path))
    }

    /// Returns the extended attributes of `path`, also of a symbolic link itself, as far as ferryfs
    /// transfers them ([`crate::plan::representable::is_carried`]).
    ///
    /// # Errors
    /// EOPNOTSUPP, or another refusal, if the backend has none.
    fn xattrs(&self, path: &RelPath) -> Result<Xattrs> {
        Err(not_supported("read attributes of", path))
    }

    /// The same for many entries of one directory. Entries that are gone or have no attribute are
    /// left out.
    ///
    /// # Errors
    /// If the medium is gone, or does not answer.
    fn xattrs_in(&self, dir: &RelPath, names: &[Name]) -> Result<Vec<(Name, Xattrs)>> {
        let mut found = Vec::new();
        for name in names {
            crate::drive::supervised::sign_of_life();
            match self.xattrs(&dir.join(name)) {
                Ok(xattrs) if xattrs.is_empty() => {}
                Ok(xattrs) => found.push((name.clone(), xattrs)),
                Err(error) if error.is_gone() || error.is_stalled() => return Err(error),
                Err(_) => {}
            }
        }
        Ok(found)
    }

    /// Replaces the transferable extended attributes of `path` by exactly these. An interrupted
    /// call leaves some of them.
    ///
    /// # Errors
    /// EOPNOTSUPP, or another refusal, if the backend has none; ENOSPC if they are too large for
    /// it.
    fn set_xattrs(&self, path: &RelPath, xattrs: &Xattrs) -> Result<()> {
        let _ = xattrs;
        Err(not_supported("set attributes of", path))
    }
}

fn not_supported(operation: &'static str, path: &RelPath) -> BackendError {
    let source = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
    BackendError::new(operation, path, source)
}
