//! Common operations on a backend, made of several of its calls.

use crate::core::{ContentHash, FileKind, RelPath, Timestamp};
use crate::drive::supervised::sign_of_life;
use crate::drive::{Backend, BackendError, Opened, ReadFile, Result, WRITE};
use crate::format::steps::FileContent;

/// The size of one read in bytes when a file is verified.
const BUFFER: usize = 1 << 20;

/// Sets the time of a file. If the backend cannot set it, or the file is gone, the index keeps the
/// time.
pub(crate) fn set_time(backend: &dyn Backend, path: &RelPath, modified: Timestamp) -> Result<()> {
    match backend.set_modified(path, modified) {
        Err(error)
            if error.is_not_found()
                || matches!(
                    error.source.raw_os_error(),
                    Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)
                ) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Returns whether the error means that nothing is there: the name is missing, or a component of
/// the path is no directory.
pub(crate) fn is_absent(error: &BackendError) -> bool {
    error.is_not_found() || error.source.kind() == std::io::ErrorKind::NotADirectory
}

/// Returns whether what was at `from` is at `to` only: a rename that has returned an error may have
/// taken effect before. Says no if that cannot be seen.
pub(crate) fn has_moved(backend: &dyn Backend, from: &RelPath, to: &RelPath) -> bool {
    matches!(exists(backend, from), Ok(false)) && matches!(exists(backend, to), Ok(true))
}

/// Returns whether `path` exists.
pub(crate) fn exists(backend: &dyn Backend, path: &RelPath) -> Result<bool> {
    match backend.metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates a file with these bytes; it is durable after the next sync. If the backend is full, it
/// releases reserved space. If there is none, it removes the partial file.
pub(crate) fn create_with(backend: &dyn Backend, path: &RelPath, bytes: &[u8]) -> Result<()> {
    loop {
        let mut file = backend.create(path)?;
        let written = file
            .append(bytes)
            .and_then(|()| file.finish(Timestamp::from(std::time::SystemTime::now())));
        let Err(source) = written else {
            return Ok(());
        };
        let error = BackendError::new(WRITE, path, source);
        if !error.is_full() {
            return Err(error);
        }
        backend.remove_file(path)?;
        if !backend.relieve()? {
            return Err(error);
        }
    }
}

/// Returns whether the file at `path` has this size and these bytes. Also `false` if the path is
/// missing or no regular file.
pub(crate) fn matches(
    backend: &dyn Backend,
    path: &RelPath,
    content: &FileContent,
) -> Result<bool> {
    let meta = match backend.metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error),
    };
    if meta.kind != FileKind::Regular || meta.size != content.size {
        return Ok(false);
    }
    Ok(hash_file(&*backend.open(path)?, path)? == content.hash)
}

/// Returns an open file with its metadata and its first read of up to `length` bytes at `offset`.
pub(crate) fn open_and_read(
    file: Box<dyn ReadFile>,
    path: &RelPath,
    offset: u64,
    length: usize,
) -> Result<Opened> {
    sign_of_life();
    let found = file.metadata();
    let metadata = found.map_err(|source| BackendError::new("stat", path, source))?;
    let rest = metadata.size.saturating_sub(offset);
    let length = usize::try_from(rest).unwrap_or(usize::MAX).min(length);
    sign_of_life();
    let first = match length {
        0 => Ok(Vec::new()),
        _ => {
            let mut bytes = vec![0; length];
            file.read_at(&mut bytes, offset).map(|got| {
                bytes.truncate(got);
                bytes
            })
        }
    };
    Ok(Opened {
        file: Some(file),
        metadata,
        first,
    })
}

/// Returns the hash of all bytes of an open file.
pub(crate) fn hash_file(file: &dyn ReadFile, path: &RelPath) -> Result<ContentHash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    loop {
        let got = file
            .read_at(&mut buffer, at)
            .map_err(|source| BackendError::new("read", path, source))?;
        if got == 0 {
            return Ok(ContentHash(*hasher.finalize().as_bytes()));
        }
        hasher.update(&buffer[..got]);
        at += got as u64;
    }
}
