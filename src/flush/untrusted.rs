//! Reading what is ours on the drive as if it were anybody's, because it may be: a drive comes from anywhere.

use super::report::{FlushError, Result};
use crate::backend::{Backend, BackendError, Metadata, ReadFile};
use crate::base::{ContentHash, FileKind, RelPath};
use crate::rules::record::{CHECKSUM_BYTES, MAGIC, MAX_RECORD_BYTES};
use crate::rules::trust::Trust;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// What stands where a record belongs.
pub(super) enum Sealed {
    /// Nothing.
    Nothing,
    /// A file, and no whole record.
    Torn,
    /// What says that it is one, and has more bytes than any.
    TooLong(usize),
    /// All bytes of it; its checksum was right.
    Whole(Vec<u8>),
    /// Its beginning, as far as asked for; its checksum was right.
    Part {
        /// The first bytes.
        head: Vec<u8>,
        /// The checksum.
        hash: ContentHash,
        /// How many bytes it has.
        bytes: u64,
    },
}

/// What stands at `path`, which is to be a file of ours, before it is opened; `None` for nothing.
///
/// # Errors
/// [`FlushError::NotOurs`] if it is a link, a pipe, a directory or the like.
pub(super) fn look(backend: &dyn Backend, path: &RelPath) -> Result<Option<Metadata>> {
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
    Err(FlushError::NotOurs {
        path: path.clone(),
        found,
    })
}

/// A file of our own on the backend, whole, or one byte more than `limit` of it; `None` if there is none.
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

/// The record at `path`, and whose word it is. Its bytes are taken into memory only once the checksum has been found right: a file of
/// any size may stand there.
///
/// # Errors
/// If it is no file, or cannot be read.
pub(super) fn read_sealed(backend: &dyn Backend, path: &RelPath) -> Result<(Sealed, Trust)> {
    read_sealed_as(backend, path, &MAGIC, MAX_RECORD_BYTES, None)
}

/// The same for any file of ours that begins with `expected`, has at most `longest` bytes, and ends in the checksum of all before it.
/// With `head`, all of it is verified and only so many bytes are given.
///
/// # Errors
/// As [`read_sealed`].
pub(super) fn read_sealed_as(
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

/// The checksum at the end of a file of that size, if it is right.
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
