//! The files of the lease on the backend: read as anybody's, written whole.

use std::io;

use super::{LeaseFailure, Result};
use crate::backend::{Backend, BackendError};
use crate::base::{RelPath, Timestamp};
use crate::flush::free_reserve;
use crate::rules::layout;
use crate::rules::lease::{self, Lease, LeaseError, MAX_BYTES};

/// What stands where the lease belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing: nobody has the directory.
    Nothing,
    /// A lease, and its bytes.
    Whole(Box<Lease>, Vec<u8>),
    /// A file that is no lease, or not a whole one. Somebody may be writing it, or hold it all the same.
    Damaged(Vec<u8>),
}

impl Standing {
    /// The bytes of what stands there.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Standing::Nothing => &[],
            Standing::Whole(_, bytes) | Standing::Damaged(bytes) => bytes,
        }
    }
}

/// Reads the lease. The file is opened first and then read to its end: on a network file system opening is what asks the server,
/// while what stat says may be of a lease that stood there a minute ago.
///
/// # Errors
/// If it cannot be read, is no file, or is a newer one's.
pub(super) fn read(backend: &dyn Backend) -> Result<Standing> {
    let path = layout::lease_path();
    let bytes = match read_whole(backend, &path) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok(Standing::Nothing),
        Err(error) => return Err(not_ours(backend, &path).unwrap_or_else(|| error.into())),
    };
    match lease::decode(&bytes) {
        Ok(lease) => Ok(Standing::Whole(Box::new(lease), bytes)),
        Err(LeaseError::Damaged { .. }) => Ok(Standing::Damaged(bytes)),
        Err(newer @ LeaseError::Newer { .. }) => Err(LeaseFailure::Newer(newer)),
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

/// Whether something stands at `path` that is no file: a link, a directory, a pipe. It is not followed, opened or removed.
fn not_ours(backend: &dyn Backend, path: &RelPath) -> Option<LeaseFailure> {
    let meta = backend.metadata(path).ok()?;
    (meta.kind != crate::base::FileKind::Regular)
        .then(|| LeaseFailure::NotOurs { path: path.clone() })
}

/// Whether somebody has knocked and has not been answered. By a listing: opening a directory is what asks a server, while a name
/// that was not there a moment ago is remembered to be missing for a minute.
///
/// # Errors
/// If our directory cannot be listed, or the knock is no file.
pub(super) fn is_knocked(backend: &dyn Backend) -> Result<bool> {
    let knock = layout::knock_path();
    let name = knock.split_last().map(|(_, name)| name);
    let entries = backend.read_dir(&layout::dir())?;
    match entries
        .iter()
        .find(|entry| Some(&entry.name) == name.as_ref())
    {
        None => Ok(false),
        Some(entry) if entry.meta.kind == crate::base::FileKind::Regular => Ok(true),
        Some(_) => Err(LeaseFailure::NotOurs { path: knock }),
    }
}

/// Knocks, unless somebody else has already: one answer serves all.
///
/// # Errors
/// If the backend cannot be written.
pub(super) fn knock(backend: &dyn Backend) -> Result<()> {
    match create(backend, &layout::knock_path(), b"") {
        Err(error) if already(&error) => Ok(()),
        answer => Ok(answer?),
    }
}

/// Answers a knock: by taking it away, which works on a full disk as well.
///
/// # Errors
/// If the backend refuses.
pub(super) fn answer(backend: &dyn Backend) -> Result<()> {
    remove(backend, &layout::knock_path())
}

/// Writes the lease where there is none. False if there is one by now.
///
/// # Errors
/// If the backend cannot be written.
pub(super) fn write_first(backend: &dyn Backend, bytes: &[u8]) -> Result<bool> {
    match create(backend, &layout::lease_path(), bytes) {
        Err(error) if already(&error) => Ok(false),
        answer => answer.map(|()| true).map_err(LeaseFailure::from),
    }
}

/// Puts the lease in the place of what stands there: of two who do so at once the later one has it.
///
/// # Errors
/// If the backend cannot be written.
pub(super) fn write_over(backend: &dyn Backend, bytes: &[u8]) -> Result<()> {
    let new = layout::lease_new_path();
    remove(backend, &new)?;
    create(backend, &new, bytes)?;
    Ok(backend.rename(&new, &layout::lease_path())?)
}

/// Takes the lease away.
///
/// # Errors
/// If the backend refuses.
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

/// Writes a small file, on a full backend in the space that is held there.
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

/// Not synced: closing a file of a share hands its bytes to the server, and a lease that a power cut of the server takes along is
/// written anew by whoever holds it.
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
        let error = BackendError::new("write", path, source);
        if error.is_full() {
            // A part of a lease would pass for somebody's.
            let _ = backend.remove_file(path);
        }
        error
    })
}

fn already(error: &BackendError) -> bool {
    error.source.kind() == io::ErrorKind::AlreadyExists
}
