//! Extended attributes: one read by path, and all of an entry of an open directory.
//!
//! Before Linux 6.13 no such call takes a directory and a name. `/proc/self/fd/N/name` does the
//! same: the kernel goes to the directory behind the descriptor, even if it has moved, and the
//! calls that begin with `l` do not follow a link at its end.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::core::Name;

/// The number of attempts for a value that grows between the two calls.
const ATTEMPTS: usize = 8;

/// Returns the value of the extended attribute `name` of `path`. Follows symbolic links.
///
/// # Errors
/// `ENODATA` if there is no such attribute, `ENOTCONN` if `path` is a FUSE mount without a daemon,
/// `InvalidInput` if `path` holds a NUL; else what the system said.
pub fn get(path: &Path, name: &CStr) -> io::Result<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut value = Vec::new();
    // A call with an empty buffer returns the size. The value may grow before the second call,
    // which then fails with ERANGE.
    for _ in 0..ATTEMPTS {
        let size = getxattr(&path, name, &mut [])?;
        value.resize(size, 0);
        match getxattr(&path, name, &mut value) {
            Ok(size) => {
                value.truncate(size);
                return Ok(value);
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ERANGE))
}

fn getxattr(path: &CStr, name: &CStr, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: both strings end in NUL and outlive the call; the kernel writes at most
    // `buffer.len()` bytes into `buffer`.
    let size = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
        )
    };
    usize::try_from(size).map_err(|_| io::Error::last_os_error())
}

/// Returns a path that leads to `name` in `dir`, or to `dir` itself, and nowhere else.
fn spelled(dir: &impl AsFd, name: Option<&Name>) -> io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.map_or(b".", Name::as_bytes));
    Ok(CString::new(path)?)
}

/// Calls `read` first with an empty buffer to get the size, then with a buffer that is large
/// enough. Tries again if the value grew in between.
fn read_all(mut read: impl FnMut(&mut [u8]) -> libc::ssize_t) -> io::Result<Vec<u8>> {
    let checked =
        |size: libc::ssize_t| usize::try_from(size).map_err(|_| io::Error::last_os_error());
    let mut bytes = Vec::new();
    for _ in 0..ATTEMPTS {
        bytes.resize(checked(read(&mut []))?, 0);
        match checked(read(&mut bytes)) {
            Ok(size) => {
                bytes.truncate(size);
                return Ok(bytes);
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ERANGE))
}

/// Returns the names of the extended attributes of `name` in `dir` (of `dir` itself for `None`).
/// Does not follow a link.
///
/// # Errors
/// ENOTSUP if the file system has none; else what the system said.
pub fn list_at(dir: &impl AsFd, name: Option<&Name>) -> io::Result<Vec<Vec<u8>>> {
    let path = spelled(dir, name)?;
    let names = read_all(|buffer| {
        // SAFETY: `path` ends in NUL and outlives the call; the kernel writes at most
        // `buffer.len()` bytes into `buffer`.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })?;
    let names = names.split(|&byte| byte == 0);
    Ok(names
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

/// Returns the value of one of them; `None` if it is gone.
///
/// # Errors
/// What the system said.
pub fn get_at(
    dir: &impl AsFd,
    name: Option<&Name>,
    attribute: &[u8],
) -> io::Result<Option<Vec<u8>>> {
    let (path, attribute) = (spelled(dir, name)?, CString::new(attribute)?);
    let value = read_all(|buffer| {
        // SAFETY: both strings end in NUL and outlive the call; at most `buffer.len()` bytes are
        // written into `buffer`.
        unsafe {
            libc::lgetxattr(
                path.as_ptr(),
                attribute.as_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        }
    });
    match value {
        Err(error) if error.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        value => value.map(Some),
    }
}

/// Sets an extended attribute of `name` in `dir`. Does not follow a link.
///
/// # Errors
/// What the system said.
pub fn set_at(
    dir: &impl AsFd,
    name: Option<&Name>,
    attribute: &[u8],
    value: &[u8],
) -> io::Result<()> {
    let (path, attribute) = (spelled(dir, name)?, CString::new(attribute)?);
    // SAFETY: both strings end in NUL and outlive the call; the kernel reads `value.len()` bytes of
    // `value`.
    let set = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            attribute.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Removes an extended attribute of `name` in `dir`. Does not follow a link. Succeeds if there is
/// none.
///
/// # Errors
/// What the system said.
pub fn remove_at(dir: &impl AsFd, name: Option<&Name>, attribute: &[u8]) -> io::Result<()> {
    let (path, attribute) = (spelled(dir, name)?, CString::new(attribute)?);
    // SAFETY: both strings end in NUL and outlive the call.
    let removed = unsafe { libc::lremovexattr(path.as_ptr(), attribute.as_ptr()) };
    if removed == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENODATA) => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_attribute_and_a_missing_file_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let code = |path: &Path| get(path, c"user.ferryfs.none").unwrap_err().raw_os_error();
        // A file system without user attributes says ENOTSUP, which is the same answer.
        assert!(matches!(
            code(dir.path()),
            Some(libc::ENODATA | libc::ENOTSUP)
        ));
        assert_eq!(code(&dir.path().join("absent")), Some(libc::ENOENT));
    }

    #[test]
    fn a_path_with_a_nul_is_refused() {
        let error = get(Path::new("a\0b"), c"user.x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
