//! The files of the lease on the drive. They are read without trusting them, and written as a
//! whole.

use std::io;

use super::{LeaseFailure, Result};
use crate::apply::reserve::free_reserve;
use crate::core::{RelPath, Timestamp};
use crate::drive::{Backend, BackendError, WRITE};
use crate::format::lease::{Lease, LeaseError, MAX_BYTES};
use crate::format::{layout, lease};

/// The file at the lease's place on the drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LeaseFile {
    /// There is none, so no machine uses the directory.
    Absent,
    /// A lease, and its bytes.
    Whole(Box<Lease>, Vec<u8>),
    /// A file that is no lease, or not a whole one. Another machine may be writing it, or may hold
    /// the lease nevertheless.
    Damaged(Vec<u8>),
}

impl LeaseFile {
    /// The bytes of the file.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            LeaseFile::Absent => &[],
            LeaseFile::Whole(_, bytes) | LeaseFile::Damaged(bytes) => bytes,
        }
    }
}

/// Reads the lease. The file is opened first and then read to its end: on a network file system
/// opening asks the server, while the answer of stat may be a minute old.
///
/// # Errors
/// If it cannot be read, is not a regular file, or is of another version.
pub(super) fn read(backend: &dyn Backend) -> Result<LeaseFile> {
    let path = layout::lease_path();
    let bytes = match read_whole(backend, &path) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok(LeaseFile::Absent),
        Err(error) => return Err(not_ours(backend, &path).unwrap_or_else(|| error.into())),
    };
    match lease::decode(&bytes) {
        Ok(lease) => Ok(LeaseFile::Whole(Box::new(lease), bytes)),
        Err(LeaseError::Damaged { .. }) => Ok(LeaseFile::Damaged(bytes)),
        Err(other @ LeaseError::OtherFormat { .. }) => Err(LeaseFailure::OtherVersion(other)),
    }
}

fn read_whole(backend: &dyn Backend, path: &RelPath) -> std::result::Result<Vec<u8>, BackendError> {
    let file = backend.open(path)?;
    let mut bytes = vec![0; MAX_BYTES + 1];
    let mut at = 0;
    while at < bytes.len() {
        match file.read_at(&mut bytes[at..], at as u64) {
            Ok(0) => break,
            Ok(got) => at += got,
            Err(source) => return Err(BackendError::new("read", path, source)),
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

/// Whether `path` is not a regular file: a link, a directory, a pipe. It is not followed, opened or
/// removed.
fn not_ours(backend: &dyn Backend, path: &RelPath) -> Option<LeaseFailure> {
    let meta = backend.metadata(path).ok()?;
    (meta.kind != crate::core::FileKind::Regular)
        .then(|| LeaseFailure::NotOurs { path: path.clone() })
}

/// Whether there is an unanswered knock. Found by a listing: opening a directory asks the server,
/// while the absence of a name may be cached for a minute.
///
/// # Errors
/// If our own folder cannot be listed, or the knock is not a regular file.
pub(super) fn is_knocked(backend: &dyn Backend) -> Result<bool> {
    let knock = layout::knock_path();
    let name = knock.split_last().map(|(_, name)| name);
    let entries = backend.read_dir(&layout::dir())?;
    match entries
        .iter()
        .find(|entry| Some(&entry.name) == name.as_ref())
    {
        None => Ok(false),
        Some(entry) if entry.meta.kind == crate::core::FileKind::Regular => Ok(true),
        Some(_) => Err(LeaseFailure::NotOurs { path: knock }),
    }
}

/// Knocks, unless there is a knock already: one answer serves all machines.
///
/// # Errors
/// If the drive cannot be written.
pub(super) fn knock(backend: &dyn Backend) -> Result<()> {
    match create(backend, &layout::knock_path(), b"") {
        Err(error) if already(&error) => Ok(()),
        answer => Ok(answer?),
    }
}

/// Answers a knock by removing it, which works on a full disk, too.
///
/// # Errors
/// If the drive refuses.
pub(super) fn answer(backend: &dyn Backend) -> Result<()> {
    remove(backend, &layout::knock_path())
}

/// Writes the lease if there is none. Returns false if there is one now.
///
/// # Errors
/// If the drive cannot be written.
pub(super) fn write_first(backend: &dyn Backend, bytes: &[u8]) -> Result<bool> {
    match create(backend, &layout::lease_path(), bytes) {
        Err(error) if already(&error) => Ok(false),
        answer => answer.map(|()| true).map_err(LeaseFailure::from),
    }
}

/// Replaces the lease file: of two machines that do so at once the later one holds it.
///
/// # Errors
/// If the drive cannot be written.
pub(super) fn write_over(backend: &dyn Backend, bytes: &[u8]) -> Result<()> {
    let new = layout::lease_new_path();
    remove(backend, &new)?;
    create(backend, &new, bytes)?;
    Ok(backend.rename(&new, &layout::lease_path())?)
}

/// Removes the lease.
///
/// # Errors
/// If the drive refuses.
pub(super) fn remove_lease(backend: &dyn Backend) -> Result<()> {
    remove(backend, &layout::lease_path())
}

fn remove(backend: &dyn Backend, path: &RelPath) -> Result<()> {
    match backend.remove_file(path) {
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(not_ours(backend, path).unwrap_or_else(|| error.into())),
        Ok(()) => Ok(()),
    }
}

/// Writes a small file; on a full drive in the space that is reserved there.
fn create(
    backend: &dyn Backend,
    path: &RelPath,
    bytes: &[u8],
) -> std::result::Result<(), BackendError> {
    match create_once(backend, path, bytes) {
        Err(error) if error.is_full() && free_reserve(backend)? => {
            create_once(backend, path, bytes)
        }
        answer => answer,
    }
}

/// Not synced: closing a file on a share sends its bytes to the server, and the holder writes a
/// lease again that a power cut of the server has lost.
fn create_once(
    backend: &dyn Backend,
    path: &RelPath,
    bytes: &[u8],
) -> std::result::Result<(), BackendError> {
    let mut file = backend.create(path)?;
    let written = file
        .append(bytes)
        .and_then(|()| file.finish(Timestamp::from(std::time::SystemTime::now())));
    written.map_err(|source| {
        let error = BackendError::new(WRITE, path, source);
        if error.is_full() {
            // A part of a lease would count as a damaged one.
            let _ = backend.remove_file(path);
        }
        error
    })
}

fn already(error: &BackendError) -> bool {
    error.source.kind() == io::ErrorKind::AlreadyExists
}
