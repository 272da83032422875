//! The errors of file-system operations, and their errno.

use crate::cache::StoreError;
use crate::core::NameError;
use crate::drive::BackendError;
use crate::index::IndexError;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The operation would have to copy a large object, or wait for a thread that does, and its
    /// [`crate::vfs::Ctx`] does not allow it.
    #[error("would take long")]
    WouldBlock,
    /// The operation would have to wait for the backend, or for a thread that does, and its
    /// [`crate::vfs::Ctx`] does not allow it.
    #[error("would wait for the backend")]
    WouldWait,
    /// The request is invalid; the number is the errno.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// No backend is attached.
    #[error("the drive is not attached")]
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

/// The result of an operation.
pub type Result<T> = std::result::Result<T, FsError>;

impl FsError {
    pub(super) const STALE: FsError = FsError::Errno(libc::ESTALE);
    pub(super) const NOT_DIR: FsError = FsError::Errno(libc::ENOTDIR);
    pub(super) const IS_DIR: FsError = FsError::Errno(libc::EISDIR);
    pub(crate) const INVALID: FsError = FsError::Errno(libc::EINVAL);
    pub(super) const NOT_FOUND: FsError = FsError::Errno(libc::ENOENT);
    pub(super) const EXISTS: FsError = FsError::Errno(libc::EEXIST);
    pub(super) const NOT_EMPTY: FsError = FsError::Errno(libc::ENOTEMPTY);
    pub(super) const BAD_HANDLE: FsError = FsError::Errno(libc::EBADF);
    pub(super) const NOT_SUPPORTED: FsError = FsError::Errno(libc::EOPNOTSUPP);
    pub(super) const NO_SPACE: FsError = FsError::Errno(libc::ENOSPC);

    /// Returns the errno for the caller.
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
            FsError::Backend(error) if error.is_gone() || error.is_not_mounted() => libc::ENOMEDIUM,
            FsError::Backend(error) if error.is_stalled() => libc::ETIMEDOUT,
            FsError::Backend(error) if error.is_shortage() => {
                error.source.raw_os_error().unwrap_or(libc::EIO)
            }
            FsError::Backend(_) => libc::EIO,
        }
    }

    /// Returns whether the error belongs in the log: something failed, as opposed to an invalid
    /// request. A backend that does not answer is logged once, not for each request.
    pub fn is_fault(&self) -> bool {
        match self {
            FsError::WouldBlock | FsError::WouldWait => false,
            FsError::Errno(_) | FsError::Detached => false,
            FsError::Backend(error) => !error.is_stalled(),
            // There may be very many of these; they are reported once a minute.
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
