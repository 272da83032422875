//! What an operation answers when it cannot do what it was asked.

use crate::backend::BackendError;
use crate::base::NameError;
use crate::cache::StoreError;
use crate::index::IndexError;

/// Why an operation was not done.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// It would have to copy a large object, or wait for somebody who does, and may not, see [`super::Ctx`].
    #[error("would take long")]
    WouldBlock,
    /// It would have to wait for the backend, or for somebody who does, and may not, see [`super::Ctx`].
    #[error("would wait for the backend")]
    WouldWait,
    /// The caller asked for something that cannot be; the number is the errno.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// The backend is not there.
    #[error("the backend is not attached")]
    Detached,
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// An object failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Reading or writing an object's bytes failed.
    #[error("object: {0}")]
    Object(#[from] std::io::Error),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// The outcome of an operation.
pub type Result<T> = std::result::Result<T, FsError>;

impl FsError {
    pub(super) const STALE: FsError = FsError::Errno(libc::ESTALE);
    pub(super) const NOT_DIR: FsError = FsError::Errno(libc::ENOTDIR);
    pub(super) const IS_DIR: FsError = FsError::Errno(libc::EISDIR);
    pub(super) const INVALID: FsError = FsError::Errno(libc::EINVAL);
    pub(super) const NOT_FOUND: FsError = FsError::Errno(libc::ENOENT);
    pub(super) const EXISTS: FsError = FsError::Errno(libc::EEXIST);
    pub(super) const NOT_EMPTY: FsError = FsError::Errno(libc::ENOTEMPTY);
    pub(super) const BAD_HANDLE: FsError = FsError::Errno(libc::EBADF);
    pub(super) const NOT_SUPPORTED: FsError = FsError::Errno(libc::EOPNOTSUPP);
    pub(super) const NO_SPACE: FsError = FsError::Errno(libc::ENOSPC);

    /// The errno that the caller is given.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::WouldBlock | FsError::WouldWait => libc::EAGAIN,
            FsError::Errno(errno) => *errno,
            FsError::Detached => libc::ENOMEDIUM,
            FsError::Index(error) if error.is_full() => libc::ENOSPC,
            FsError::Index(IndexError::Sealed) => libc::EROFS,
            FsError::Index(IndexError::Io { source, .. }) => {
                source.raw_os_error().unwrap_or(libc::EIO)
            }
            FsError::Index(_) => libc::EIO,
            FsError::Store(error) => error.source.raw_os_error().unwrap_or(libc::EIO),
            FsError::Object(error) => error.raw_os_error().unwrap_or(libc::EIO),
            FsError::Backend(error) if error.is_gone() => libc::ENOMEDIUM,
            FsError::Backend(error) if error.is_stalled() => libc::ETIMEDOUT,
            FsError::Backend(error) if error.is_shortage() => {
                error.source.raw_os_error().unwrap_or(libc::EIO)
            }
            FsError::Backend(_) => libc::EIO,
        }
    }

    /// Whether this is worth a line in the log: something failed, rather than being asked for what cannot be. That the backend
    /// does not answer is logged once, not for each request.
    pub fn is_fault(&self) -> bool {
        match self {
            FsError::WouldBlock | FsError::WouldWait => false,
            FsError::Errno(_) | FsError::Detached => false,
            FsError::Backend(error) => !error.is_stalled(),
            // Of these there may be very many; they are told once a minute.
            FsError::Store(error) => !matches!(
                error.source.raw_os_error(),
                Some(libc::EMFILE | libc::ENFILE)
            ),
            FsError::Index(_) | FsError::Object(_) => true,
        }
    }
}

impl From<NameError> for FsError {
    fn from(error: NameError) -> FsError {
        match error {
            NameError::Invalid => FsError::INVALID,
            NameError::TooLong => FsError::Errno(libc::ENAMETOOLONG),
        }
    }
}
