//! Remounts the file system of a mounted directory, for a drive that is clean between batches.

use std::io;

use crate::core::printable;
use crate::drive::Access;
use crate::drive::mounted::MountedDir;
use crate::sys::mounts::Mount;
use crate::sys::{mounts, remount, superblock};

/// The file systems that are clean once they are read-only: tried with the drivers of the kernel.
const CLEANED: [&str; 6] = ["exfat", "vfat", "msdos", "ext2", "ext3", "ext4"];

impl MountedDir {
    /// Returns the mount that it is on.
    ///
    /// # Errors
    /// ENOMEDIUM if its file system is not mounted there any more.
    pub(crate) fn mount(&self) -> io::Result<Mount> {
        let table = mounts::mounts()?;
        mounts::covering(&table, self.place_path())
            .filter(|mount| mount.dev == self.device())
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEDIUM))
    }

    /// Checks that a remount makes its file system clean, and that this process may do that.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn check_remountable(&self) -> io::Result<()> {
        let mount = self.mount()?;
        check_kind(&mount)?;
        remount::check_allowed(&mount.mount_point, mount.dev)
    }

    pub(super) fn remount_as(&self, access: Access) -> io::Result<bool> {
        // The directory is still the one that was attached.
        self.root()?;
        let mount = self.mount()?;
        check_kind(&mount)?;
        let wants_read_only = access == Access::ReadOnly;
        if mount.is_file_system_read_only() == wants_read_only {
            return check_here(&mount, wants_read_only).map(|()| false);
        }
        if !wants_read_only {
            check_here(&mount, false)?;
        }
        if access == Access::WritableIfClean && is_marked(&mount) {
            return Err(io::Error::new(
                io::ErrorKind::ReadOnlyFilesystem,
                "it is read-only and marked as not clean, as after an error: check it with fsck \
                 and mount it again",
            ));
        }
        remount::set_read_only(&mount.mount_point, mount.dev, wants_read_only)?;
        Ok(true)
    }
}

fn check_kind(mount: &Mount) -> io::Result<()> {
    let fs_type = &*mount.fs_type;
    let why = if fs_type.starts_with("fuse") {
        "its driver runs as a program (FUSE), which a remount does not reach: the drive would stay \
         marked as not clean"
    } else if !CLEANED.contains(&fs_type) {
        "only exFAT, FAT and ext2 to ext4 of the kernel are known to be clean after a remount"
    } else if mount.block_device().is_none() {
        "it is on no block device of this machine"
    } else {
        return Ok(());
    };
    let why = format!("its file system is {}: {why}", printable(fs_type));
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

/// Checks that the mount itself is not read-only, which a user has decided.
fn check_here(mount: &Mount, wants_read_only: bool) -> io::Result<()> {
    match mount.is_read_only_itself() && !wants_read_only {
        true => Err(io::Error::from_raw_os_error(libc::EROFS)),
        false => Ok(()),
    }
}

/// Whether the file system says that it is not clean. One that cannot be read says nothing.
fn is_marked(mount: &Mount) -> bool {
    let device = mount.block_device().unwrap_or(mount.dev);
    matches!(superblock::read(device), Ok(Some(found)) if found.dirty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_systems_that_a_remount_cleans_are_accepted() {
        let why = |fs_type: &str| {
            let line = format!("40 27 0:999 / /x rw - {fs_type} y rw\n");
            check_kind(&mounts::parse(line.as_bytes())[0])
                .map_err(|error| error.to_string())
                .unwrap_err()
        };
        assert!(why("fuseblk").contains("FUSE"), "{}", why("fuseblk"));
        assert!(why("fuse.exfat").contains("FUSE"));
        for fs_type in ["nfs4", "cifs", "btrfs", "tmpfs", "f2fs"] {
            assert!(why(fs_type).contains("only exFAT"), "{fs_type}");
        }
        assert!(why("exfat").contains("no block device"));
    }
}
