//! Metadata of files in a mounted directory, and the trust in them.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, fstatat};
use nix::unistd::Uid;

use crate::core::{FileKind, Metadata, Name, Timestamp};
use crate::plan::trust::{Ownership, Trust};
use crate::sys;

pub(super) fn metadata_at(dir: &OwnedFd, name: &Name) -> io::Result<Metadata> {
    let stat = fstatat(dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    metadata_with_target(dir, Some(name), &stat)
}

pub(super) fn metadata_with_target(
    dir: &OwnedFd,
    name: Option<&Name>,
    stat: &FileStat,
) -> io::Result<Metadata> {
    let mut meta = metadata_from(stat)?;
    if let Some(name) = name
        && meta.kind == FileKind::Symlink
    {
        meta.target = target_of(dir, name)?;
    }
    Ok(meta)
}

/// Returns where a link points; `None` if it is there and the file system does not say, as sshfs
/// does not for targets that lead up or away. One such link must not hide its directory.
fn target_of(dir: &OwnedFd, name: &Name) -> io::Result<Option<Vec<u8>>> {
    match readlinkat(dir, name.as_os_str()) {
        Ok(target) => Ok(Some(target.into_vec())),
        Err(Errno::EPERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

// The width of these fields differs between platforms.
#[allow(clippy::unnecessary_cast)]
pub(super) fn metadata_from(stat: &FileStat) -> io::Result<Metadata> {
    let mode = stat.st_mode as u32;
    let kind = FileKind::from_mode(mode).ok_or(Errno::EUCLEAN)?;
    let has_bytes = matches!(kind, FileKind::Regular | FileKind::Symlink);
    let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
    let is_linked = kind != FileKind::Directory && stat.st_nlink > 1;
    Ok(Metadata {
        kind,
        size: if has_bytes {
            stat.st_size.max(0).cast_unsigned()
        } else {
            0
        },
        modified: Timestamp::from_parts(stat.st_mtime as i64, stat.st_mtime_nsec as u32),
        permissions: mode & 0o7777,
        target: None,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: if is_device { stat.st_rdev as u32 } else { 0 },
        nlink: if is_linked { stat.st_nlink as u32 } else { 1 },
        file: is_linked.then_some(stat.st_ino as u64),
    })
}

// The width of these fields differs between platforms.
#[allow(clippy::unnecessary_cast)]
pub(super) fn holder(stat: &FileStat) -> Ownership {
    Ownership {
        uid: stat.st_uid,
        gid: stat.st_gid,
        permissions: stat.st_mode as u32 & 0o7777,
    }
}

pub(super) fn judge(way: &[Ownership]) -> Trust {
    Trust::judge(Uid::effective().as_raw(), sys::behalf::is_own_group, way)
}
