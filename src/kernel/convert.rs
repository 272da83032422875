//! Between the words of `fuser` and ours.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, INodeNo, OpenFlags, RenameFlags, Request, TimeOrNow};

use crate::base::{FileKind, Ino, Name, Timestamp};
use crate::fs::{Ctx, FsError, OpenMode, RenameMode, Result, SetTime};
use crate::index::{Flags, Inode};

/// How long the kernel may keep names and attributes: nobody but the kernel itself changes them.
const TTL: Duration = Duration::from_secs(3600);

/// How long the kernel may keep what it is told of an inode. Of a directory whose entries are not
/// known yet, not at all: how many directories are in it shows once it has been listed, and nobody
/// would tell the kernel. Of a file that gives privileges, not at all either: whoever runs it must
/// not be given one that a write has taken away.
pub(super) fn ttl(inode: &Inode) -> Duration {
    if is_unlisted(inode) || gives_privileges(inode) {
        Duration::ZERO
    } else {
        TTL
    }
}

/// How long the kernel may remember that there is nothing: only the kernel itself can change that.
pub(super) const TTL_OF_NOTHING: Duration = TTL;

fn is_unlisted(inode: &Inode) -> bool {
    inode.is_dir() && !inode.flags.has(Flags::LISTED)
}

fn gives_privileges(inode: &Inode) -> bool {
    !inode.is_dir() && inode.mode & (libc::S_ISUID | libc::S_ISGID) != 0
}

/// Unit of `st_blksize`: what one request can carry well.
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

/// The same for a caller who makes something.
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
        // 2 would say that there are no directories in it, and programs believe that; 1 says that nobody knows.
        nlink: if is_unlisted(inode) { 1 } else { inode.nlink },
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// The attributes of what is not there; the kernel looks at the inode number alone.
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

/// `fuser` 0.18.0 takes the nanoseconds of a time before 1970 as going backwards; the kernel means them forwards, as always.
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
