//! Checks, without an attempt, that names can be created, replaced or removed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;

use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;

/// Attributes that restrict even root (`chattr +i`, `chattr +a`).
const IMMUTABLE: StatxAttributes = StatxAttributes::IMMUTABLE;
const APPEND: StatxAttributes = StatxAttributes::APPEND;

/// Checks that names in `dir` can be created and removed. It looks at permissions, at a read-only
/// file system and at the directory's attributes.
///
/// # Errors
/// EACCES, EROFS, EPERM: the error that the attempt would give.
pub fn check_dir(dir: impl AsFd) -> io::Result<()> {
    let mode = AccessFlags::W_OK | AccessFlags::X_OK;
    faccessat(dir.as_fd(), ".", mode, nix::fcntl::AtFlags::AT_EACCESS)?;
    check_attributes(dir, OsStr::new("."), IMMUTABLE)
}

/// Checks that no attribute forbids changes of `name` in `dir`. A missing name passes.
///
/// # Errors
/// EPERM if it is immutable or append-only.
pub fn check_name(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    check_attributes(dir, name, IMMUTABLE.union(APPEND))
}

fn check_attributes(dir: impl AsFd, name: &OsStr, fixed: StatxAttributes) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    match statx(dir, name, flags, StatxFlags::TYPE) {
        Ok(found) if found.stx_attributes.intersects(fixed) => Err(Errno::PERM.into()),
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
