//! Conversion between the types of `fuser` and ferryfs.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, INodeNo, OpenFlags, RenameFlags, Request, TimeOrNow};

use crate::core::{FileKind, Ino, Name, Timestamp};
use crate::index::{Flags, Inode};
use crate::vfs::{Ctx, FsError, OpenMode, RenameMode, Result, SetTime};

/// How long the kernel may cache names and attributes: only the kernel itself changes them.
const TTL: Duration = Duration::from_secs(3600);

/// How long the kernel may cache the attributes of an inode. Not at all for an unlisted directory:
/// the number of its subdirectories is known only after it is listed, and the kernel would not be
/// notified. Not at all for a file with privileges either: an execution must not use a privilege
/// that a write has removed.
pub(super) fn ttl(inode: &Inode) -> Duration {
    if is_unlisted(inode) || gives_privileges(inode) {
        Duration::ZERO
    } else {
        TTL
    }
}

/// How long the kernel may cache a negative entry: only the kernel itself can change that.
pub(super) const TTL_OF_NOTHING: Duration = TTL;

fn is_unlisted(inode: &Inode) -> bool {
    inode.is_dir() && !inode.flags.has(Flags::LISTED)
}

fn gives_privileges(inode: &Inode) -> bool {
    !inode.is_dir() && inode.mode & (libc::S_ISUID | libc::S_ISGID) != 0
}

/// Value of `st_blksize`: a good size for one request.
const BLOCK_SIZE: u32 = 128 << 10;

pub(super) fn ctx(request: &Request) -> Ctx {
    Ctx {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
        umask: 0,
        may_block: false,
        may_wait: false,
    }
}

/// Returns the context of a request that creates a file.
pub(super) fn maker(request: &Request, umask: u32) -> Ctx {
    Ctx {
        umask,
        ..ctx(request)
    }
}

pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

pub(super) fn name(name: &OsStr) -> Result<Name> {
    Ok(Name::of_mount(name.as_bytes())?)
}

pub(super) fn errno(error: &FsError) -> Errno {
    Errno::from_i32(error.errno())
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn attr(inode: &Inode) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode.ino.0),
        size: inode.size,
        blocks: inode.blocks,
        atime: inode.atime.into(),
        mtime: inode.mtime.into(),
        ctime: inode.ctime.into(),
        crtime: inode.btime.into(),
        kind: file_type(inode.kind()),
        perm: (inode.mode & 0o7777) as u16,
        // 2 would mean no subdirectories, and programs rely on that; 1 means an unknown number.
        nlink: if is_unlisted(inode) { 1 } else { inode.nlink },
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Returns the attributes of a negative entry; the kernel uses the inode number only.
pub(super) fn nothing() -> FileAttr {
    attr(&Inode::new(Ino(0), libc::S_IFREG, 0, 0, Timestamp(0)))
}

pub(super) fn open_mode(flags: i32) -> OpenMode {
    OpenMode {
        write: OpenFlags(flags).acc_mode() != fuser::OpenAccMode::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(time) => SetTime::At(unfold(time)),
        TimeOrNow::Now => SetTime::Now,
    }
}

/// Corrects a time before 1970: `fuser` 0.18.0 counts its nanoseconds backwards, the kernel
/// forwards.
fn unfold(time: SystemTime) -> Timestamp {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(_) => time.into(),
        Err(before) => {
            let distance = before.duration();
            let secs = i64::try_from(distance.as_secs()).unwrap_or(i64::MAX);
            Timestamp::from_parts(-secs, distance.subsec_nanos())
        }
    }
}

pub(super) fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else {
        Err(FsError::Errno(libc::EINVAL))
    }
}
