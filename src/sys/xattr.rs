//! Extended attributes: one read by path, and all of an entry of an open directory.
//!
//! Before Linux 6.13 no such call takes a directory and a name. `/proc/self/fd/N/name` does the
//! same: the kernel goes to the directory behind the descriptor, even if it has moved, and the
//! calls that begin with `l` do not follow a link at its end.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use crate::core::Name;

/// The size of most values and lists, in bytes, and of the largest (`XATTR_SIZE_MAX` and
/// `XATTR_LIST_MAX` in `linux/limits.h`).
const USUAL: usize = 256;
const LARGEST: usize = 64 << 10;

/// Returns the value of the extended attribute `name` of `path`. Follows symbolic links.
///
/// # Errors
/// `ENODATA` if there is no such attribute, `ENOTCONN` if `path` is a FUSE mount without a daemon,
/// `InvalidInput` if `path` holds a NUL; else what the system said.
pub fn get(path: &Path, name: &CStr) -> io::Result<Vec<u8>> {
    read_all(|buffer| fs::getxattr(path, name, buffer))
}

/// Returns a path that leads to `name` in `dir`, or to `dir` itself, and nowhere else.
fn spelled(dir: &impl AsFd, name: Option<&Name>) -> io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.map_or(b".", Name::as_bytes));
    Ok(CString::new(path)?)
}

/// Calls `read` with a buffer that is large enough for most, then with one for the largest value or
/// list that the kernel passes on.
fn read_all(mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; USUAL];
    let size = match read(&mut bytes) {
        Err(Errno::RANGE) => {
            bytes.resize(LARGEST, 0);
            read(&mut bytes)?
        }
        size => size?,
    };
    bytes.truncate(size);
    Ok(bytes)
}

/// Returns the names of the extended attributes of `name` in `dir` (of `dir` itself for `None`).
/// Does not follow a link.
///
/// # Errors
/// ENOTSUP if the file system has none; else what the system said.
pub fn list_at(dir: &impl AsFd, name: Option<&Name>) -> io::Result<Vec<Vec<u8>>> {
    let path = spelled(dir, name)?;
    let names = read_all(|buffer| fs::llistxattr(&path, buffer))?;
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
    let value = read_all(|buffer| fs::lgetxattr(&path, &attribute, buffer));
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
    Ok(fs::lsetxattr(path, attribute, value, XattrFlags::empty())?)
}

/// Removes an extended attribute of `name` in `dir`. Does not follow a link. Succeeds if there is
/// none.
///
/// # Errors
/// What the system said.
pub fn remove_at(dir: &impl AsFd, name: Option<&Name>, attribute: &[u8]) -> io::Result<()> {
    let (path, attribute) = (spelled(dir, name)?, CString::new(attribute)?);
    match fs::lremovexattr(path, attribute) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
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
    fn values_of_every_size_and_long_lists_are_read_whole() {
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let opened = std::fs::File::open(dir.path()).unwrap();
        let set = |name: &str, value: &[u8]| set_at(&opened, None, name.as_bytes(), value);
        if set("user.size", b"").is_err() {
            return;
        }
        for size in [0, 1, USUAL - 1, USUAL, USUAL + 1, 2000] {
            let value = vec![7; size];
            set("user.size", &value).unwrap();
            assert_eq!(get(dir.path(), c"user.size").unwrap(), value);
            assert_eq!(get_at(&opened, None, b"user.size").unwrap(), Some(value));
        }
        remove_at(&opened, None, b"user.size").unwrap();
        let names: Vec<Vec<u8>> = (0..40)
            .map(|n| format!("user.a-name-of-some-length-{n}").into_bytes())
            .collect();
        for name in &names {
            set_at(&opened, None, name, b"").unwrap();
        }
        let listed = list_at(&opened, None).unwrap();
        assert!(names.iter().all(|name| listed.contains(name)));
        remove_at(&opened, None, &names[0]).unwrap();
        assert_eq!(get_at(&opened, None, &names[0]).unwrap(), None);
    }

    #[test]
    fn a_path_with_a_nul_is_refused() {
        let error = get(Path::new("a\0b"), c"user.x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
