//! The file system that a volume is on. It is compared in addition to the marker, because a marker
//! can be copied, with the files or with the disk.
//!
//! The identity must be the same under another device node, after a reboot, for root and for other
//! users, and with and without udev: it is the UUID (serial number) of the file system. Without one
//! nothing is concluded.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use crate::sys::mounts::Mount;
use crate::sys::{mounts, superblock};

/// The identity of a file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FsIdentity {
    /// UUID or serial number, as blkid(8) writes it: from the superblock, else from udev's
    /// database.
    uuid: Option<String>,
    /// `f_fsid` of statfs(2), in hexadecimal, if the file system derives it from its UUID and not
    /// from the device number.
    fsid: Option<String>,
}

/// Whether two file systems are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Same {
    /// The numbers are the same. A block-by-block copy has the same, too.
    Yes,
    /// They are different.
    No,
    /// Too little is known of one of them.
    Unknown,
}

impl FsIdentity {
    /// The identity of the file system that `mount` shows.
    pub(super) fn of(mount: &Mount) -> FsIdentity {
        let device = mount.block_device().unwrap_or(mount.dev);
        let from_disk = superblock::read(device).ok().flatten();
        FsIdentity {
            uuid: from_disk
                .map(|found| found.uuid)
                .or_else(|| uuid_from_udev(device)),
            fsid: stable_fsid(mount),
        }
    }

    /// Whether `self`, which was stored, and `now` are the same file system.
    pub(super) fn compare(&self, now: &FsIdentity) -> Same {
        let same = |a: &Option<String>, b: &Option<String>| match (a, b) {
            (Some(a), Some(b)) if a.eq_ignore_ascii_case(b) => Some(Same::Yes),
            (Some(_), Some(_)) => Some(Same::No),
            _ => None,
        };
        same(&self.uuid, &now.uuid)
            .or_else(|| same(&self.fsid, &now.fsid))
            .unwrap_or(Same::Unknown)
    }

    /// `self`, with what it does not know taken from `older`: root can read more than other users,
    /// and not every daemon runs as root.
    pub(super) fn or(self, older: &FsIdentity) -> FsIdentity {
        FsIdentity {
            uuid: self.uuid.or_else(|| older.uuid.clone()),
            fsid: self.fsid.or_else(|| older.fsid.clone()),
        }
    }

    /// Whether nothing is known of it.
    pub(super) fn is_unknown(&self) -> bool {
        *self == FsIdentity::default()
    }

    /// For the user.
    pub(super) fn words(&self) -> &str {
        self.uuid
            .as_deref()
            .or(self.fsid.as_deref())
            .unwrap_or("unknown")
    }
}

fn uuid_from_udev(dev: u64) -> Option<String> {
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    if let Ok(facts) = fs::read_to_string(format!("/run/udev/data/b{major}:{minor}")) {
        let uuid = facts.lines().find_map(|l| l.strip_prefix("E:ID_FS_UUID="));
        if let Some(uuid) = uuid {
            return Some(uuid.to_owned());
        }
    }
    let links = fs::read_dir("/dev/disk/by-uuid").ok()?;
    links
        .flatten()
        .find(|link| fs::metadata(link.path()).is_ok_and(|node| node.rdev() == dev))
        .and_then(|link| link.file_name().into_string().ok())
}

fn stable_fsid(mount: &Mount) -> Option<String> {
    if !mount.fs_type.starts_with("ext") && mount.fs_type != "btrfs" {
        return None;
    }
    let id = statvfs(&mount.mount_point).ok()?.filesystem_id();
    (id != 0).then(|| format!("{id:x}"))
}

/// The directories on all mounted block devices that correspond to `path` on `mount`. Network
/// mounts are left out, because an access may block for long.
pub(super) fn same_places(table: &[Mount], mount: &Mount, path: &Path) -> Vec<(Mount, PathBuf)> {
    let Ok(below) = path.strip_prefix(&mount.mount_point) else {
        return Vec::new();
    };
    let on_its_own = mount.root.join(below);
    mounts::visible(table)
        .into_iter()
        .filter(|other| is_on_disk(other))
        .filter_map(|other| {
            let below = on_its_own.strip_prefix(&other.root).ok()?;
            Some((other.clone(), plain_join(&other.mount_point, below)))
        })
        .collect()
}

/// `base.join(below)` without the trailing slash that an empty `below` gives.
fn plain_join(base: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() {
        base.to_path_buf()
    } else {
        base.join(below)
    }
}

fn is_on_disk(mount: &Mount) -> bool {
    mount.block_device().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(uuid: Option<&str>, fsid: Option<&str>) -> FsIdentity {
        FsIdentity {
            uuid: uuid.map(str::to_owned),
            fsid: fsid.map(str::to_owned),
        }
    }

    #[test]
    fn what_is_unknown_is_neither_the_same_nor_another() {
        let (a, b) = (
            identity(Some("AB-1"), Some("7")),
            identity(Some("CD-2"), Some("7")),
        );
        let user = identity(None, Some("7"));
        assert_eq!(a.compare(&a), Same::Yes);
        assert_eq!(a.compare(&identity(Some("ab-1"), None)), Same::Yes);
        assert_eq!(a.compare(&b), Same::No, "the UUID counts most");
        assert_eq!(a.compare(&user), Same::Yes);
        assert_eq!(a.compare(&FsIdentity::default()), Same::Unknown);
        assert_eq!(user.or(&a), a);
    }

    #[test]
    fn the_same_place_is_found_on_other_disks_only() {
        let disk = fs::read_dir("/sys/dev/block")
            .ok()
            .and_then(|mut all| all.next()?.ok()?.file_name().into_string().ok());
        let Some(disk) = disk else {
            return;
        };
        let table = format!(
            "27 1 0:999 / / rw - ext4 x rw\n\
             30 27 0:998 / /media/HDD rw - exfat /dev/sdb1 rw\n\
             31 27 {disk} / /media/HDD1 rw - exfat /dev/sdc1 rw\n\
             32 27 {disk} /data /srv rw - exfat /dev/sdc1 rw\n\
             33 27 0:996 / /nas rw - nfs4 nas:/x rw\n"
        );
        let table = mounts::parse(table.as_bytes());
        let places: Vec<PathBuf> = same_places(&table, &table[1], Path::new("/media/HDD/data"))
            .into_iter()
            .map(|(_, path)| path)
            .collect();
        assert_eq!(
            places,
            [PathBuf::from("/media/HDD1/data"), PathBuf::from("/srv")]
        );
    }
}
