//! What can be done with open files beyond reading and writing: making them durable, reserving and punching, cloning,
//! finding holes, and hints to the page cache.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{self, FallocateFlags, PosixFadviseAdvice};
use nix::unistd::{self, Whence};

pub use nix::fcntl::FallocateFlags as FallocateMode;

/// What a reader or writer is about to do, for [`advise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Read front to back: read ahead more.
    Sequential,
    /// Will be read soon.
    WillNeed,
    /// Will not be read again: clean pages may go.
    DontNeed,
}

/// Writes back the whole file system that `file` is on, and waits for it.
///
/// The kernel tells an error of an earlier write to the first `syncfs` that asks after it, once: to this descriptor if
/// it was open at the time, or to the first one opened later if nobody has been told yet.
///
/// # Errors
/// Any write-back error not told before.
pub fn sync_file_system(file: impl AsFd) -> io::Result<()> {
    Ok(unistd::syncfs(file)?)
}

/// Makes the file's bytes and size durable, though not its times.
///
/// # Errors
/// Any write-back error not told before; what was written since the last success is then of unknown state.
pub fn sync_data(file: impl AsFd) -> io::Result<()> {
    Ok(unistd::fdatasync(file)?)
}

/// Makes a file, or a directory's names, durable.
///
/// # Errors
/// Any write-back error not told before.
pub fn sync_all(file: impl AsFd) -> io::Result<()> {
    Ok(unistd::fsync(file)?)
}

/// Starts writing back `length` bytes from `offset` (0: to the end) and does not wait: a later [`sync_data`] then has less
/// to do. Promises nothing by itself.
///
/// # Errors
/// What the system said; no file system is obliged to take the hint.
pub fn start_writeback(file: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let (offset, length) = (to_off(offset)?, to_off(length)?);
    // SAFETY: passes integers only; the descriptor is borrowed and therefore open.
    let result = unsafe {
        libc::sync_file_range(
            file.as_fd().as_raw_fd(),
            offset,
            length,
            libc::SYNC_FILE_RANGE_WRITE,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Reserves, punches or zeroes `length` bytes from `offset`, as `mode` says.
///
/// # Errors
/// EOPNOTSUPP where the file system cannot; ENOSPC; what else the system said.
pub fn allocate(file: impl AsFd, mode: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
    Ok(fcntl::fallocate(
        file,
        mode,
        to_off(offset)?,
        to_off(length)?,
    )?)
}

/// Position of the first byte of data at or after `offset`; `None` if only a hole follows. Moves the file's cursor.
///
/// # Errors
/// What the system said.
pub fn next_data(file: impl AsFd, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, Whence::SeekData)
}

/// Position of the first hole at or after `offset`, which the end of the file counts as; `None` if `offset` is beyond the
/// end. Moves the file's cursor.
///
/// # Errors
/// What the system said.
pub fn next_hole(file: impl AsFd, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, Whence::SeekHole)
}

fn seek(file: impl AsFd, offset: u64, whence: Whence) -> io::Result<Option<u64>> {
    match unistd::lseek(file, to_off(offset)?, whence) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Copies up to `length` bytes inside the kernel, from `source_offset` of `source` to `target_offset` of `target`, and
/// tells how many it were; 0 at the end of `source`.
///
/// # Errors
/// EXDEV, EOPNOTSUPP, EINVAL or ENOSYS where the file systems cannot: copy by reading and writing then.
pub fn copy_range(
    source: impl AsFd,
    source_offset: u64,
    target: impl AsFd,
    target_offset: u64,
    length: usize,
) -> io::Result<usize> {
    let (mut from, mut to) = (to_off(source_offset)?, to_off(target_offset)?);
    // SAFETY: both descriptors are borrowed and therefore open; the two offsets live on this stack until the call returns.
    let copied = unsafe {
        libc::copy_file_range(
            source.as_fd().as_raw_fd(),
            &raw mut from,
            target.as_fd().as_raw_fd(),
            &raw mut to,
            length,
            0,
        )
    };
    Ok(Errno::result(copied)?.unsigned_abs())
}

/// Makes `target` share all bytes of `source`, copy on write, in place of its own. `false` if these file systems cannot;
/// `target` is then as before.
///
/// # Errors
/// If it ought to work and did not, as with ENOSPC or EIO.
pub fn clone_file(source: impl AsFd, target: impl AsFd) -> io::Result<bool> {
    // SAFETY: FICLONE takes a descriptor by value, and both are borrowed and therefore open.
    let result = unsafe {
        libc::ioctl(
            target.as_fd().as_raw_fd(),
            libc::FICLONE as _,
            source.as_fd().as_raw_fd(),
        )
    };
    match Errno::result(result) {
        Ok(_) => Ok(true),
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ENOSYS | Errno::EXDEV | Errno::EINVAL) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Tells the page cache what will happen to `length` bytes from `offset` (0: to the end). A hint, without effect on bytes.
///
/// # Errors
/// What the system said; safe to ignore.
pub fn advise(file: impl AsFd, offset: u64, length: u64, advice: Advice) -> io::Result<()> {
    let advice = match advice {
        Advice::Sequential => PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL,
        Advice::WillNeed => PosixFadviseAdvice::POSIX_FADV_WILLNEED,
        Advice::DontNeed => PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    };
    Ok(fcntl::posix_fadvise(
        file,
        to_off(offset)?,
        to_off(length)?,
        advice,
    )?)
}

/// Bytes of the file system that `file` is on: all of them, and what an unprivileged writer may still take.
///
/// # Errors
/// What the system said.
pub fn space(file: impl AsFd) -> io::Result<(u64, u64)> {
    let stat = nix::sys::statvfs::fstatvfs(file)?;
    // The width of these fields differs between platforms.
    #[allow(clippy::unnecessary_cast)]
    let (block, total, available) = (
        stat.fragment_size() as u64,
        stat.blocks() as u64,
        stat.blocks_available() as u64,
    );
    Ok((total.saturating_mul(block), available.saturating_mul(block)))
}

/// The size of the pieces in which the file system of `file` counts its space (`f_frsize`).
///
/// # Errors
/// What the system said.
pub fn fragment_size(file: impl AsFd) -> io::Result<u64> {
    // The width of the field differs between platforms.
    #[allow(clippy::unnecessary_cast)]
    Ok(nix::sys::statvfs::fstatvfs(file)?.fragment_size() as u64)
}

/// Whether `file` is on a file system that keeps neither owners nor links, so that all in it belongs to whom its mount names:
/// exFAT, FAT.
pub fn has_no_owners(file: impl AsFd) -> bool {
    magic(file).is_some_and(|magic| [0x2011_bab0, 0x4d44].contains(&magic))
}

/// Whether `st_ino` of a directory on the file system of `file` stays the same while nobody holds it open. exFAT, FAT, SMB and
/// drivers behind FUSE may number it anew when the kernel has forgotten it. Numbers as in [`is_journaled`].
pub fn keeps_inode_numbers(file: impl AsFd) -> bool {
    const KEEPS: [u32; 14] = [
        0xef53,      // ext2, ext3, ext4
        0x5846_5342, // XFS
        0x9123_683e, // btrfs
        0xf2f5_2010, // F2FS
        0xca45_1a4e, // bcachefs
        0x2fc1_2fc1, // ZFS
        0x0102_1994, // tmpfs
        0x6969,      // NFS
        0x00c3_6400, // Ceph
        0x3153_464a, // JFS
        0x7366_746e, // NTFS, the kernel's ntfs3
        0x0116_1970, // GFS2
        0x7461_636f, // OCFS2
        0x8584_58f6, // ramfs
    ];
    magic(file).is_some_and(|magic| KEEPS.contains(&magic))
}

/// The number by which the kernel tells kinds of file systems.
fn magic(file: impl AsFd) -> Option<u32> {
    let stat = nix::sys::statfs::fstatfs(file).ok()?;
    // The width and sign of this field differ between platforms; the number has 32 bits.
    #[allow(clippy::unnecessary_cast)]
    let magic = stat.filesystem_type().0 as u32;
    Some(magic)
}

/// Whether `file` is on a file system that renames atomically across a crash: one with a journal or a log, or a network file
/// system, whose server sees to it. Unknown ones count as not, and so do FUSE drivers (exfat-fuse, ntfs-3g): they do not tell
/// what is below them. Numbers from `linux/magic.h` and the file systems' own headers.
pub fn is_journaled(file: impl AsFd) -> bool {
    const JOURNALED: [u32; 13] = [
        0xef53,      // ext3, ext4 (and ext2, whose driver is ext4's)
        0x5846_5342, // XFS
        0x9123_683e, // btrfs
        0xf2f5_2010, // F2FS
        0xca45_1a4e, // bcachefs
        0x2fc1_2fc1, // ZFS
        0x0102_1994, // tmpfs: it does not outlive a crash at all
        0x794c_7630, // overlayfs
        0x6969,      // NFS
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x00c3_6400, // Ceph
        0x3153_464a, // JFS
    ];
    magic(file).is_some_and(|magic| JOURNALED.contains(&magic))
}

/// Whether `file` is on a FUSE file system, of any kind.
pub fn is_fuse(file: impl AsFd) -> bool {
    const FUSE: u32 = 0x6573_5546;
    magic(file).is_some_and(|magic| magic == FUSE)
}

/// Which signal tells of a lease that somebody wants broken (`linux/fcntl.h`).
const F_SETSIG: libc::c_int = 10;

/// Whether nobody has the regular file `file`, open for reading, open for writing. Only its owner, or root, may ask.
///
/// # Errors
/// EACCES for others; else what the system said.
pub fn is_unwritten(file: impl AsFd) -> io::Result<bool> {
    let file = file.as_fd().as_raw_fd();
    // SAFETY: passes integers only; the descriptor is borrowed and therefore open. The signal that an opener would cause in the
    // instant that the lease is held is one that is ignored by default.
    let set = unsafe { libc::fcntl(file, F_SETSIG, libc::SIGURG) };
    Errno::result(set)?;
    // SAFETY: as before.
    match Errno::result(unsafe { libc::fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) }) {
        Ok(_) => {}
        Err(Errno::EAGAIN) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    // SAFETY: as before.
    let released = unsafe { libc::fcntl(file, libc::F_SETLEASE, libc::F_UNLCK) };
    Errno::result(released)?;
    Ok(true)
}

/// The number of the inode flag that forbids all changes (`chattr +i`), from `linux/fs.h`.
const IMMUTABLE: libc::c_int = 0x10;

/// Whether all changes of `file` are forbidden (`chattr +i`).
///
/// # Errors
/// ENOTTY or EOPNOTSUPP where the file system has no such flag; else what the system said.
pub fn is_immutable(file: impl AsFd) -> io::Result<bool> {
    Ok(inode_flags(&file)? & IMMUTABLE != 0)
}

/// Forbids all changes of `file`, for root too, or allows them again. Needs CAP_LINUX_IMMUTABLE.
///
/// # Errors
/// As [`is_immutable`], and EPERM.
pub fn set_immutable(file: impl AsFd, on: bool) -> io::Result<()> {
    let flags = inode_flags(&file)?;
    let wanted = if on {
        flags | IMMUTABLE
    } else {
        flags & !IMMUTABLE
    };
    let wanted: Flags = [wanted, 0];
    // SAFETY: the kernel reads an int or a long, which are here until the call returns; the descriptor is open.
    let result = unsafe {
        libc::ioctl(
            file.as_fd().as_raw_fd(),
            libc::FS_IOC_SETFLAGS,
            &raw const wanted,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// File systems take an int, whatever the number of the call says. That says a long, and so much the kernel copied for a FUSE file
/// system before Linux 5.8.
type Flags = [libc::c_int; 2];

fn inode_flags(file: &impl AsFd) -> io::Result<libc::c_int> {
    let mut flags = Flags::default();
    // SAFETY: the kernel writes an int or a long, for which there is room until the call returns; the descriptor is open.
    let result = unsafe {
        libc::ioctl(
            file.as_fd().as_raw_fd(),
            libc::FS_IOC_GETFLAGS,
            &raw mut flags,
        )
    };
    Errno::result(result)?;
    Ok(flags[0])
}

fn to_off(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn data_and_holes_are_told_apart() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[2; 4096], 1 << 19).unwrap();
        assert_eq!(next_data(&file, 0).unwrap(), Some(0));
        let hole = next_hole(&file, 0).unwrap().unwrap();
        assert!(hole >= 4096);
        // A file system without holes says that all of it is data.
        let data = next_data(&file, hole).unwrap();
        assert!(data == Some(1 << 19) || hole == 1 << 20);
        assert_eq!(next_data(&file, 1 << 20).unwrap(), None);
        assert_eq!(next_hole(&file, 1 << 21).unwrap(), None);
    }

    #[test]
    fn a_clone_is_whole_or_reported_unsupported() {
        let source = tempfile::tempfile().unwrap();
        let target = tempfile::tempfile().unwrap();
        source.write_all_at(b"bytes", 0).unwrap();
        target.write_all_at(b"other", 0).unwrap();
        let cloned = clone_file(&source, &target).unwrap();
        let mut seen = [0; 5];
        target.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(&seen, if cloned { b"bytes" } else { b"other" });
    }

    #[test]
    fn a_range_is_copied_to_where_it_was_asked_to_go() {
        let source = tempfile::tempfile().unwrap();
        let target = tempfile::tempfile().unwrap();
        source.write_all_at(b"0123456789", 0).unwrap();
        let mut done = 0;
        while done < 4 {
            let (from, to) = (3 + done as u64, 1 + done as u64);
            let n = copy_range(&source, from, &target, to, 4 - done).unwrap();
            assert!(n > 0);
            done += n;
        }
        let mut seen = [9; 5];
        target.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(&seen, b"\x003456");
    }

    #[test]
    fn an_offset_beyond_what_the_system_counts_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let error = start_writeback(&file, u64::MAX, 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOVERFLOW));
        sync_data(&file).unwrap();
        advise(&file, 0, 0, Advice::DontNeed).unwrap();
        start_writeback(&file, 0, 0).unwrap();
    }
}
