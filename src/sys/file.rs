//! Operations on open files beyond read and write: sync, reserve, punch, clone, seek for holes, and
//! hints to the page cache.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{self, FallocateFlags, PosixFadviseAdvice};
use nix::unistd::{self, Whence};
use rustix::fs::{AtFlags, StatxFlags};

use crate::core::Space;

pub use nix::fcntl::FallocateFlags as FallocateMode;

/// The access pattern that follows, for [`advise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Reads from front to back: the kernel reads ahead more.
    Sequential,
    /// The bytes are read soon.
    WillNeed,
    /// The bytes are not read again: the kernel may drop clean pages.
    DontNeed,
}

/// Writes back the whole file system of `file` and waits for it.
///
/// The kernel reports an error of an earlier write once per descriptor: to each descriptor that was
/// open at the time, or to the first one opened later if no call has seen the error yet.
///
/// # Errors
/// Any write-back error that was not reported before.
pub fn sync_file_system(file: impl AsFd) -> io::Result<()> {
    Ok(unistd::syncfs(file)?)
}

/// Makes the file's bytes and size durable, but not its times.
///
/// # Errors
/// Any write-back error that was not reported before. The state of all bytes written since the last
/// success is then unknown.
pub fn sync_data(file: impl AsFd) -> io::Result<()> {
    Ok(unistd::fdatasync(file)?)
}

/// Makes a file, or a directory's names, durable.
///
/// # Errors
/// Any write-back error that was not reported before.
pub fn sync_all(file: impl AsFd) -> io::Result<()> {
    Ok(unistd::fsync(file)?)
}

/// Starts the write-back of `length` bytes from `offset` (0: to the end) and does not wait, so that
/// a later [`sync_data`] has less to do. It guarantees nothing by itself.
///
/// # Errors
/// What the system said. A file system may ignore the hint.
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

/// Starts the write-back of all of the file's bytes, after the write-back that was started before
/// is done. With `to_its_end` it waits for this one, too. Nothing is durable by that: the disk may
/// hold bytes in its own memory, and the file system the file's place.
///
/// # Errors
/// A write-back error that this descriptor has not reported before; EINVAL, ESPIPE or ENOSYS if the
/// file system does not support it.
pub fn write_back(file: impl AsFd, to_its_end: bool) -> io::Result<()> {
    let mut flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    if to_its_end {
        flags |= libc::SYNC_FILE_RANGE_WAIT_AFTER;
    }
    // SAFETY: passes integers only; the descriptor is borrowed and therefore open.
    let result = unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, flags) };
    Errno::result(result)?;
    Ok(())
}

/// Reserves, punches or zeroes `length` bytes from `offset`, according to `mode`.
///
/// # Errors
/// EOPNOTSUPP if the file system does not support it; ENOSPC; else what the system said.
pub fn allocate(file: impl AsFd, mode: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
    Ok(fcntl::fallocate(
        file,
        mode,
        to_off(offset)?,
        to_off(length)?,
    )?)
}

/// Returns the position of the first byte of data at or after `offset`; `None` if only a hole
/// follows. Moves the file's cursor.
///
/// # Errors
/// What the system said.
pub fn next_data(file: impl AsFd, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, Whence::SeekData)
}

/// Returns the position of the first hole at or after `offset`; `None` if `offset` is beyond the
/// end. The end of the file counts as a hole. Moves the file's cursor.
///
/// # Errors
/// What the system said.
pub fn next_hole(file: impl AsFd, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, Whence::SeekHole)
}

fn seek(file: impl AsFd, offset: u64, origin: Whence) -> io::Result<Option<u64>> {
    match unistd::lseek(file, to_off(offset)?, origin) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Copies up to `length` bytes inside the kernel, from `source_offset` of `source` to
/// `target_offset` of `target`. Returns their number; 0 at the end of `source`.
///
/// # Errors
/// EXDEV, EOPNOTSUPP, EINVAL or ENOSYS if the file systems do not support it: then the caller reads
/// and writes.
pub fn copy_range(
    source: impl AsFd,
    source_offset: u64,
    target: impl AsFd,
    target_offset: u64,
    length: usize,
) -> io::Result<usize> {
    let (mut from, mut to) = (source_offset, target_offset);
    Ok(rustix::fs::copy_file_range(
        source,
        Some(&mut from),
        target,
        Some(&mut to),
        length,
    )?)
}

/// Replaces the bytes of `target` by those of `source`, shared copy-on-write. Returns `false` if
/// these file systems do not support it; `target` is then unchanged.
///
/// # Errors
/// If a supported clone fails, as with ENOSPC or EIO.
pub fn clone_file(source: impl AsFd, target: impl AsFd) -> io::Result<bool> {
    use rustix::io::Errno;
    match rustix::fs::ioctl_ficlone(target, source) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::XDEV | Errno::INVAL) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Gives the page cache a hint about `length` bytes from `offset` (0: to the end). It does not
/// change bytes.
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

/// Returns the space of the file system of `file`, as statvfs(3) counts it.
///
/// # Errors
/// What the system said.
pub fn space(file: impl AsFd) -> io::Result<Space> {
    let stat = nix::sys::statvfs::fstatvfs(file)?;
    // The width of these fields differs between platforms.
    #[allow(clippy::unnecessary_cast)]
    let (unit, total, free, available) = (
        stat.fragment_size() as u64,
        stat.blocks() as u64,
        stat.blocks_free() as u64,
        stat.blocks_available() as u64,
    );
    let usable = match nix::unistd::geteuid().is_root() {
        true => free.max(available),
        false => available,
    };
    Ok(Space {
        total: total.saturating_mul(unit),
        available: available.saturating_mul(unit),
        usable: usable.saturating_mul(unit),
        unit,
    })
}

/// Returns the status of `name` in `dir`, or of `dir` itself; a symbolic link is not followed. A
/// network file system asks its server, as fstatat(2) does not always.
///
/// # Errors
/// What the system said.
pub fn stat_now(dir: impl AsFd, name: Option<&OsStr>) -> io::Result<libc::stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let name = name.unwrap_or_default();
    let found = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)?;
    // SAFETY: stat is plain data, for which all zeros is a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    stat.st_dev = libc::makedev(found.stx_dev_major, found.stx_dev_minor);
    stat.st_ino = found.stx_ino;
    stat.st_mode = found.stx_mode.into();
    stat.st_nlink = found.stx_nlink.into();
    (stat.st_uid, stat.st_gid) = (found.stx_uid, found.stx_gid);
    stat.st_rdev = libc::makedev(found.stx_rdev_major, found.stx_rdev_minor);
    stat.st_size = i64::try_from(found.stx_size).unwrap_or(i64::MAX);
    stat.st_mtime = found.stx_mtime.tv_sec;
    stat.st_mtime_nsec = found.stx_mtime.tv_nsec.into();
    Ok(stat)
}

/// Returns the unit in which the file system of `file` counts its space (`f_frsize`).
///
/// # Errors
/// What the system said.
pub fn fragment_size(file: impl AsFd) -> io::Result<u64> {
    // The width of the field differs between platforms.
    #[allow(clippy::unnecessary_cast)]
    Ok(nix::sys::statvfs::fstatvfs(file)?.fragment_size() as u64)
}

/// Returns whether the file system of `file` stores neither owners nor links (exFAT, FAT). All
/// files then belong to the user that the mount options name.
pub fn has_no_owners(file: impl AsFd) -> bool {
    magic(file).is_some_and(|magic| [0x2011_bab0, 0x4d44].contains(&magic))
}

/// Returns whether `st_ino` of a directory on the file system of `file` stays the same while no
/// process has it open. exFAT, FAT, SMB and drivers behind FUSE may assign another number once the
/// kernel has forgotten it. For the constants see [`is_journaled`].
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

/// Returns the number by which the kernel identifies the type of the file system.
fn magic(file: impl AsFd) -> Option<u32> {
    let stat = nix::sys::statfs::fstatfs(file).ok()?;
    // The width and sign of this field differ between platforms; the number has 32 bits.
    #[allow(clippy::unnecessary_cast)]
    let magic = stat.filesystem_type().0 as u32;
    Some(magic)
}

/// Returns whether `file` is on a file system whose renames are atomic across a crash: one with a
/// journal or a log, or a network file system, whose server takes care of it. Unknown ones count as
/// not atomic, and so do FUSE drivers (exfat-fuse, ntfs-3g): they do not report the file system
/// below them. The constants are from `linux/magic.h` and the file systems' own headers.
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

/// Returns whether `file` is on a FUSE file system, of any kind.
pub fn is_fuse(file: impl AsFd) -> bool {
    const FUSE: u32 = 0x6573_5546;
    magic(file).is_some_and(|magic| magic == FUSE)
}

/// Selects the signal that announces the break of a lease (`linux/fcntl.h`).
const F_SETSIG: libc::c_int = 10;

/// Returns whether no process has the regular file `file` open for writing. `file` is open for
/// reading. Only the owner of the file or root may ask.
///
/// # Errors
/// EACCES for other users; else what the system said.
pub fn is_unwritten(file: impl AsFd) -> io::Result<bool> {
    let file = file.as_fd().as_raw_fd();
    // SAFETY: passes integers only; the descriptor is borrowed and therefore open. An opener in the
    // instant that the lease is held causes a signal, and the default action of this one is to
    // ignore it.
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

/// The inode flag that forbids all changes (`chattr +i`), from `linux/fs.h`.
const IMMUTABLE: libc::c_int = 0x10;

/// Returns whether all changes of `file` are forbidden (`chattr +i`).
///
/// # Errors
/// ENOTTY or EOPNOTSUPP if the file system has no such flag; else what the system said.
pub fn is_immutable(file: impl AsFd) -> io::Result<bool> {
    Ok(inode_flags(&file)? & IMMUTABLE != 0)
}

/// Forbids all changes of `file`, for root too, or allows them again. Needs CAP_LINUX_IMMUTABLE.
///
/// # Errors
/// As for [`is_immutable`], and EPERM.
pub fn set_immutable(file: impl AsFd, on: bool) -> io::Result<()> {
    let flags = inode_flags(&file)?;
    let wanted = if on {
        flags | IMMUTABLE
    } else {
        flags & !IMMUTABLE
    };
    let wanted: Flags = [wanted, 0];
    // SAFETY: the kernel reads an int or a long, which live until the call returns; the descriptor
    // is open.
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

/// The argument of the flag calls. File systems take an int, but the number of the call says long,
/// and before Linux 5.8 the kernel copied a long for a FUSE file system.
type Flags = [libc::c_int; 2];

fn inode_flags(file: &impl AsFd) -> io::Result<libc::c_int> {
    let mut flags = Flags::default();
    // SAFETY: the kernel writes an int or a long, and the array has space for both and lives until
    // the call returns; the descriptor is open.
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
        // A file system without holes reports all of it as data.
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
