//! The exclusive lock of a cache: one daemon per cache. The kernel releases the lock when the
//! process that holds it dies.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::private;
use crate::core::ForeignText;

/// The reason why a cache could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon holds the lock.
    #[error("the cache {} is in use by another ferryfs{}", dir.escaped(), pid.as_ref().map(|p| format!(" (pid {p})")).unwrap_or_default())]
    InUse {
        /// The cache directory.
        dir: PathBuf,
        /// The process id in the lock file.
        pid: Option<String>,
    },
    /// The lock file cannot be created or locked.
    #[error("cannot lock the cache {}: {source}", dir.escaped())]
    Io {
        /// The cache directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The lock of a cache directory, held while this value lives.
#[derive(Debug)]
pub struct CacheLock {
    /// `None` if the cache has never been locked.
    _file: Option<File>,
}

impl CacheLock {
    /// Locks the cache in `dir`.
    ///
    /// # Errors
    /// [`LockError::InUse`] if another process holds the lock.
    pub fn acquire(dir: &Path) -> Result<CacheLock, LockError> {
        let failed = |source| LockError::Io {
            dir: dir.to_path_buf(),
            source,
        };
        let mut file = private::own()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("lock"))
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(dir, &mut file)),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(CacheLock { _file: Some(file) })
    }

    /// Keeps daemons from using the cache in `dir` while the returned value lives, and writes
    /// nothing there.
    ///
    /// # Errors
    /// As for [`CacheLock::acquire`].
    pub fn acquire_to_read(dir: &Path) -> Result<CacheLock, LockError> {
        let failed = |source| LockError::Io {
            dir: dir.to_path_buf(),
            source,
        };
        let mut file = match private::own().read(true).open(dir.join("lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(CacheLock { _file: None });
            }
            Err(error) => return Err(failed(error)),
        };
        match file.try_lock() {
            Ok(()) => Ok(CacheLock { _file: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(in_use(dir, &mut file)),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

fn in_use(dir: &Path, file: &mut File) -> LockError {
    let mut pid = String::new();
    // The pid only names the other process; the message is true without it.
    let _ = file.read_to_string(&mut pid);
    let pid = pid.trim().to_string();
    LockError::InUse {
        dir: dir.to_path_buf(),
        pid: (!pid.is_empty()).then_some(pid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_on_the_same_cache_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = CacheLock::acquire(dir.path()).unwrap();
        let second = CacheLock::acquire(dir.path()).unwrap_err();
        assert!(
            second.to_string().contains(&std::process::id().to_string()),
            "{second}"
        );
        CacheLock::acquire_to_read(dir.path()).unwrap_err();
        drop(first);
        CacheLock::acquire_to_read(dir.path()).unwrap();
        CacheLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn locking_to_read_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        CacheLock::acquire_to_read(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
