//! Checks that the medium of a mounted directory is present, and its allocation unit.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::fstatat;

use crate::drive::mounted::{DIRECT_ALIGNMENT, MountedDir};
use crate::drive::root::no_medium;
use crate::format::layout;
use crate::sys;

/// A larger unit counts only if a small file uses as much: network file systems report their
/// transfer size here.
const LARGEST_FRAGMENT: u64 = 256 << 10;

/// Returns the allocation unit, from the fragment size of `statfs` and from a small file of `size`
/// bytes that uses `taken` bytes.
pub(super) fn allocation_unit(fragment: u64, size: u64, taken: u64) -> u64 {
    const USUAL: u64 = 4096;
    // File systems that do not know it round the size up to whole sectors.
    if taken > size.next_multiple_of(512) {
        return taken;
    }
    match fragment {
        512..=LARGEST_FRAGMENT => fragment,
        _ => USUAL,
    }
}

impl MountedDir {
    /// Checks the medium without a request to it. A success does not prove that the medium is
    /// there; a failure proves that it is not.
    pub(super) fn glance(&self) -> io::Result<()> {
        // By its path, whatever a phase keeps: others may have mounted something there.
        let root = self.root.hold()?;
        if self.on_block_device && !sys::superblock::device_exists(self.device()) {
            return Err(Errno::ENODEV.into());
        }
        // A FUSE file system must be asked for this; the kernel reports one whose process is gone.
        sys::file::space(root)?;
        Ok(())
    }

    /// Reads the marker from the medium: with O_DIRECT if the file system supports it, else after
    /// dropping it from the page cache.
    pub(super) fn read_marker_from_medium(&self) -> io::Result<()> {
        let mut buffer = vec![0; 2 * DIRECT_ALIGNMENT];
        let start = buffer.as_ptr().align_offset(DIRECT_ALIGNMENT);
        let buffer = &mut buffer[start..start + DIRECT_ALIGNMENT];
        let open = |flags| {
            let path = layout::marker_path();
            let root = self.root()?;
            sys::path::open_beneath(root.as_fd(), &path, flags, 0).map(File::from)
        };
        let direct = open(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_DIRECT)
            .and_then(|file| file.read_at(buffer, 0));
        let read = match direct {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)
                ) =>
            {
                let file = open(OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
                // Only a hint. If the kernel ignores it, the read is worth as much as without it.
                let _ = sys::file::advise(&file, 0, 0, sys::file::Advice::DontNeed);
                file.read_at(buffer, 0)?
            }
            answer => answer?,
        };
        match read {
            // A marker is never empty: this is another file.
            0 => Err(no_medium()),
            _ => Ok(()),
        }
    }

    /// Returns the allocation unit. Where `statfs` does not report it, the marker, a small file,
    /// shows it.
    pub(super) fn unit(&self, root: &OwnedFd) -> io::Result<u64> {
        if let Some(unit) = self.unit.get() {
            return Ok(*unit);
        }
        let fragment = sys::file::fragment_size(root)?;
        let Some((dir, name)) = sys::path::open_parent(root.as_fd(), &layout::marker_path())
            .ok()
            .flatten()
        else {
            return Ok(allocation_unit(fragment, 0, 0));
        };
        Ok(
            match fstatat(&dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(small) => {
                    let size = u64::try_from(small.st_size).unwrap_or(0);
                    let taken = u64::try_from(small.st_blocks)
                        .unwrap_or(0)
                        .saturating_mul(512);
                    *(self.unit).get_or_init(|| allocation_unit(fragment, size, taken))
                }
                Err(_) => allocation_unit(fragment, 0, 0),
            },
        )
    }
}
