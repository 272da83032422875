//! Reads files of ferryfs on the drive without trusting them: a drive may come from anywhere.

use crate::core::{ContentHash, FileKind, Metadata, RelPath};
use crate::drive::{Backend, BackendError, ReadFile};
use crate::format::record::{CHECKSUM_BYTES, MAGIC, MAX_RECORD_BYTES};
use crate::plan::trust::Trust;

/// The reason why a file of ferryfs on the drive could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SealedFileError {
    /// Something that ferryfs did not create is at its path.
    #[error("{path} on the drive is {found}, where ferryfs keeps a file of its own")]
    NotOurs {
        /// The path.
        path: RelPath,
        /// Its type ("a symbolic link").
        found: &'static str,
    },
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// The result of reading a file of ferryfs.
pub(crate) type Result<T> = std::result::Result<T, SealedFileError>;

/// The size of one read in bytes.
const CHUNK: usize = 1 << 20;

/// The state of a sealed file: a file that ends in a checksum, such as a record.
pub(crate) enum Sealed {
    /// It does not exist.
    Nothing,
    /// It exists, but is incomplete or damaged.
    Torn,
    /// It begins like a sealed file, but is longer than any.
    TooLong(usize),
    /// All its bytes; the checksum was right.
    Whole(Vec<u8>),
    /// The requested first bytes; the checksum of the whole file was right.
    Part {
        /// The first bytes.
        head: Vec<u8>,
        /// The checksum.
        hash: ContentHash,
        /// The length of the file in bytes.
        bytes: u64,
    },
}

/// Returns the metadata of `path`, the path of a file of ferryfs, before it is opened; `None` if it
/// does not exist.
///
/// # Errors
/// [`SealedFileError::NotOurs`] if it is a link, a pipe, a directory or the like.
pub(crate) fn look(backend: &dyn Backend, path: &RelPath) -> Result<Option<Metadata>> {
    let meta = match backend.metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found = match meta.kind {
        FileKind::Regular => return Ok(Some(meta)),
        FileKind::Directory => "a directory",
        FileKind::Symlink => "a symbolic link",
        _ => "a pipe, a socket or a device",
    };
    Err(SealedFileError::NotOurs {
        path: path.clone(),
        found,
    })
}

/// Reads a whole file of ferryfs from the backend, but at most one byte more than `limit`; `None`
/// if it does not exist.
pub(crate) fn read_small(
    backend: &dyn Backend,
    path: &RelPath,
    limit: usize,
) -> Result<Option<Vec<u8>>> {
    let Some(meta) = look(backend, path)? else {
        return Ok(None);
    };
    let size = usize::try_from(meta.size).map_or(limit + 1, |size| size.min(limit + 1));
    let file = backend.open(path)?;
    let mut bytes = vec![0; size];
    let mut at = 0;
    while at < size {
        match file.read_at(&mut bytes[at..], at as u64) {
            Ok(0) => break,
            Ok(got) => at += got,
            Err(source) => return Err(BackendError::new("read", path, source).into()),
        }
    }
    bytes.truncate(at);
    Ok(Some(bytes))
}

/// Reads the record at `path`, and returns the trust in it. It reads the bytes into memory only
/// after the checksum was right: a file of any size may be there.
///
/// # Errors
/// If it is no regular file, or cannot be read.
pub(crate) fn read_sealed(backend: &dyn Backend, path: &RelPath) -> Result<(Sealed, Trust)> {
    read_sealed_as(backend, path, &MAGIC, MAX_RECORD_BYTES, None)
}

/// The same for any file of ferryfs that begins with `expected`, has at most `longest` bytes, and
/// ends in the checksum of all bytes before it. With `head` it verifies the whole file and returns
/// only that many bytes.
///
/// # Errors
/// As for [`read_sealed`].
pub(crate) fn read_sealed_as(
    backend: &dyn Backend,
    path: &RelPath,
    expected: &[u8; 8],
    longest: usize,
    head: Option<usize>,
) -> Result<(Sealed, Trust)> {
    let Some(meta) = look(backend, path)? else {
        return Ok((Sealed::Nothing, Trust::Ours));
    };
    let (file, trust) = backend.open_judged(path)?;
    let sealed = sealed_in(&*file, meta.size, expected, longest, head)
        .map_err(|source| BackendError::new("read", path, source))?;
    Ok((sealed, trust))
}

fn sealed_in(
    file: &dyn ReadFile,
    size: u64,
    expected: &[u8; 8],
    longest: usize,
    head: Option<usize>,
) -> std::io::Result<Sealed> {
    let mut magic = [0; 8];
    let got = file.read_at(&mut magic, 0)?;
    if got < magic.len() || magic != *expected || size < CHECKSUM_BYTES as u64 {
        return Ok(Sealed::Torn);
    }
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    if length > longest {
        return Ok(Sealed::TooLong(length));
    }
    let Some(hash) = verified(file, length)? else {
        return Ok(Sealed::Torn);
    };
    let mut bytes = vec![0; head.map_or(length, |head| head.min(length - CHECKSUM_BYTES))];
    let got = file.read_at(&mut bytes, 0)?;
    bytes.truncate(got);
    Ok(match head {
        None => Sealed::Whole(bytes),
        Some(_) => Sealed::Part {
            head: bytes,
            hash,
            bytes: size,
        },
    })
}

/// Returns the checksum at the end of a file of that size, if it is right.
fn verified(file: &dyn ReadFile, size: usize) -> std::io::Result<Option<ContentHash>> {
    let body = size - CHECKSUM_BYTES;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK.min(body)];
    let mut at = 0;
    while at < body {
        let wanted = buffer.len().min(body - at);
        let got = file.read_at(&mut buffer[..wanted], at as u64)?;
        if got == 0 {
            return Ok(None);
        }
        hasher.update(&buffer[..got]);
        at += got;
    }
    let mut checksum = [0; CHECKSUM_BYTES];
    let got = file.read_at(&mut checksum, body as u64)?;
    let is_right = got == CHECKSUM_BYTES && hasher.finalize() == checksum;
    Ok(is_right.then_some(ContentHash(checksum)))
}
