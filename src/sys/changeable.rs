//! Checks, without an attempt, that names can be created, replaced or removed.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};

/// Attributes that restrict even root (`chattr +i`, `chattr +a`), from `linux/stat.h`.
const IMMUTABLE: u64 = libc::STATX_ATTR_IMMUTABLE as u64;
const APPEND: u64 = libc::STATX_ATTR_APPEND as u64;

/// Checks that names in `dir` can be created and removed. It looks at permissions, at a read-only
/// file system and at the directory's attributes.
///
/// # Errors
/// EACCES, EROFS, EPERM: the error that the attempt would give.
pub fn check_dir(dir: impl AsFd) -> io::Result<()> {
    let mode = AccessFlags::W_OK | AccessFlags::X_OK;
    faccessat(dir.as_fd(), ".", mode, AtFlags::AT_EACCESS)?;
    check_attributes(dir, OsStr::new("."), IMMUTABLE)
}

/// Checks that no attribute forbids changes of `name` in `dir`. A missing name passes.
///
/// # Errors
/// EPERM if it is immutable or append-only.
pub fn check_name(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    check_attributes(dir, name, IMMUTABLE | APPEND)
}

fn check_attributes(dir: impl AsFd, name: &OsStr, fixed: u64) -> io::Result<()> {
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: statx is plain data, for which all zeros is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the name ends in a zero byte, the buffer is as large as the call expects, and both
    // outlive it.
    let result = unsafe {
        libc::statx(
            dir.as_fd().as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_DONT_SYNC,
            libc::STATX_TYPE,
            &raw mut found,
        )
    };
    match Errno::result(result) {
        Ok(_) if found.stx_attributes & fixed != 0 => Err(Errno::EPERM.into()),
        // The attempt itself reports any other error.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_that_may_be_changed_passes_and_a_missing_name_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"x").unwrap();
        let opened = File::open(dir.path()).unwrap();
        check_dir(&opened).unwrap();
        check_name(&opened, OsStr::new("file")).unwrap();
        check_name(&opened, OsStr::new("missing")).unwrap();
    }

    #[test]
    fn a_directory_without_the_right_to_write_is_refused_to_an_ordinary_user() {
        if nix::unistd::geteuid().is_root() {
            return; // Root passes everywhere.
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o555)).unwrap();
        let error = check_dir(File::open(dir.path()).unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
