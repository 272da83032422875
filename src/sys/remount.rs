//! Making a mounted file system read-only, or writable again, without a change of anything else.
//!
//! mount(2) with `MS_REMOUNT` replaces all options of the file system and of the mount by those of
//! the call. fsconfig(2) changes one flag of the file system and leaves the rest, so that owners
//! and permissions stay as they were mounted. The flags of the single mounts are not touched: a
//! mount that was made read-only stays so.

use std::io;
use std::path::Path;

use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick};

use super::mounts::mount_root;

/// Checks that this process may change the options of a file system that is mounted at
/// `mount_point`.
///
/// # Errors
/// EPERM if it may not; ENODEV if a file system with another `st_dev` than `device` is there.
pub fn check_allowed(mount_point: &Path, device: u64) -> io::Result<()> {
    pick(mount_point, device).map(drop)
}

/// Makes the file system with the `st_dev` `device`, of which a directory is mounted at
/// `mount_point`, read-only or writable, for all its mounts. What was written is synced before it
/// becomes read-only.
///
/// # Errors
/// EBUSY if a file is open for writing, or a deleted one is open; EPERM without CAP_SYS_ADMIN;
/// ENODEV if another file system is there; else what the system said.
pub fn set_read_only(mount_point: &Path, device: u64, read_only: bool) -> io::Result<()> {
    let picked = pick(mount_point, device)?;
    fsconfig_set_flag(&picked, if read_only { c"ro" } else { c"rw" })?;
    Ok(fsconfig_reconfigure(&picked)?)
}

fn pick(mount_point: &Path, device: u64) -> io::Result<std::os::fd::OwnedFd> {
    let place = super::path::open_place(mount_point)?;
    // Something may have been mounted over it a moment ago.
    let (found, is_root) = mount_root(&place)?;
    if found.device != device || !is_root {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    Ok(fspick(&place, c"", flags)?)
}
