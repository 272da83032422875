//! Extended attributes, read by path.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How often a value that grows between the two calls is asked for again.
const ATTEMPTS: usize = 8;

/// The value of the extended attribute `name` of `path`, following symbolic links.
///
/// # Errors
/// `ENODATA` if there is no such attribute, `ENOTCONN` if `path` is a FUSE mount whose daemon is gone,
/// `InvalidInput` if `path` holds a NUL; else what the system said.
pub fn get(path: &Path, name: &CStr) -> io::Result<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut value = Vec::new();
    // Asking with an empty buffer yields the size; the value may grow before the second call, which then says ERANGE.
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
    // SAFETY: both strings end in NUL and outlive the call; the kernel writes at most `buffer.len()` bytes into `buffer`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_attribute_and_a_missing_file_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let code = |path: &Path| get(path, c"user.ferryfs.none").unwrap_err().raw_os_error();
        // A file system without user attributes says ENOTSUP, which is as good a "no".
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
