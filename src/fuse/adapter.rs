//! The adapter: one method for each request, which unpacks it and says what the operation is and
//! how to reply. [`dispatch`] runs it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::core::{Ino, Name, acl};
use crate::fuse::convert::{
    TTL_OF_NOTHING, attr, ctx, errno, file_type, ino, maker, name, nothing, open_mode, rename_mode,
    set_time, ttl,
};
use crate::fuse::dispatch;
use crate::fuse::dispatch::{Fails, answer, guarded};
use crate::fuse::owner_override::Shown;
use crate::fuse::read_buffer::ReadBuffer;
use crate::fuse::request_times::RequestTimes;
use crate::fuse::workers::Workers;
use crate::index::Inode;
use crate::vfs::{
    CAPABILITY, Ctx, Fs, FsError, NewNode, Result, SeekFor, SetAttr, SetXattr, Syncer,
};

/// Pages stay valid across opens, since only the kernel changes them. A file opened for reading
/// needs no flush request at close. A file opened for writing needs one before close(2) returns:
/// from then on the file is whole.
fn open_flags(flags: i32) -> FopenFlags {
    match open_mode(flags).write {
        true => FopenFlags::FOPEN_KEEP_CACHE,
        false => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
    }
}

pub(super) struct Adapter {
    fs: Arc<Fs>,
    workers: Workers,
    syncer: Arc<Syncer>,
    times: RequestTimes,
    shown: Shown,
    numbers: Numbers,
}

/// The generation of inode numbers. A cache never uses a number twice, so one generation serves
/// all. Another cache of the same drive has another generation, so that an NFS client's old file
/// handle does not lead to a different file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers(pub(super) u32);

impl Numbers {
    /// Returns the generation of one inode. The kernel assumes 0 for the root.
    fn generation(self, inode: &Inode) -> Generation {
        match inode.ino {
            Ino::ROOT => Generation(0),
            _ => Generation(self.0.into()),
        }
    }
}

macro_rules! checked {
    ($reply:ident, $value:expr) => {
        match $value {
            Ok(value) => value,
            Err(error) => return $reply.error(errno(&error)),
        }
    };
}

impl Adapter {
    pub(super) fn new(
        fs: Arc<Fs>,
        (workers, syncer, times): (Workers, Arc<Syncer>, RequestTimes),
        shown: Shown,
        numbers: Numbers,
    ) -> Adapter {
        Adapter {
            fs,
            workers,
            syncer,
            times,
            shown,
            numbers,
        }
    }

    /// Returns whether ACLs apply: with one mode for all files they do not.
    fn has_acls(&self) -> bool {
        self.shown.umask.is_none()
    }

    /// Returns whether an extended attribute is invisible to programs.
    fn is_hidden(&self, called: &[u8]) -> bool {
        acl::is_acl(called) && !self.has_acls()
    }

    /// Creates a node without opening it.
    fn make(
        &self,
        request: (&'static str, Ctx),
        parent: INodeNo,
        called: &OsStr,
        node: NewNode,
        reply: ReplyEntry,
    ) {
        let called = checked!(reply, name(called));
        let operation =
            move |fs: &Fs, ctx: &Ctx| fs.make_node(ctx, ino(parent), &called, node.clone());
        self.run(request.0, request.1, reply, operation, self.reply_entry());
    }

    /// Returns the function that replies with an entry, with owner and mode overridden.
    fn reply_entry(&self) -> impl FnOnce(ReplyEntry, Inode) + Send + 'static {
        let (shown, numbers) = (self.shown, self.numbers);
        move |reply, inode| {
            let generation = numbers.generation(&inode);
            reply.entry(&ttl(&inode), &attr(&shown.of(&inode)), generation);
        }
    }

    /// Runs `operation` and replies, on a worker if it would copy or wait.
    fn run<R, T, O, D>(&self, request: &'static str, ctx: Ctx, reply: R, operation: O, done: D)
    where
        R: Fails,
        O: Fn(&Fs, &Ctx) -> Result<T> + Send + 'static,
        D: FnOnce(R, T) + Send + 'static,
    {
        let with = (&self.fs, &self.workers);
        let timer = self.times.start(request);
        dispatch::run(with, (request, timer), ctx, reply, operation, done);
    }

    /// Makes names durable, and no bytes.
    fn sync_names(&self, reply: ReplyEmpty) {
        self.syncer.request_file(None, move |result| match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        });
    }
}

/// Replies with a value, or with its size if the kernel asks for that.
fn reply_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(error) => {
            if error.is_fault() {
                tracing::error!(request = "xattr", %error, "request failed");
            }
            reply.error(errno(&error));
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not requested: locks (the kernel's own work), writeback cache (its pages are lost with
        // the daemon).
        let mut all = vec![
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Without it the kernel asks for security.capability before every write(2).
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            // `.` and `..` can be looked up by number, so that a file handle stays valid after the
            // kernel has forgotten the inode.
            InitFlags::FUSE_EXPORT_SUPPORT,
        ];
        if self.has_acls() {
            // The kernel checks ACLs, and leaves the umask to the daemon, because a default ACL
            // replaces it.
            all.extend([InitFlags::FUSE_POSIX_ACL, InitFlags::FUSE_DONT_MASK]);
        }
        for wanted in all {
            if config.add_capabilities(wanted).is_err() {
                tracing::info!(?wanted, "the kernel does not support this");
            }
        }
        // A smaller limit set by the kernel is fine.
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_readahead(1 << 20);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, called: &OsStr, reply: ReplyEntry) {
        let reply_entry = self.reply_entry();
        // An NFS server looks up these names to reconnect a file handle.
        match called.as_bytes() {
            b"." => {
                let operation = move |fs: &Fs, _: &Ctx| fs.lookup_number(ino(parent));
                return self.run("lookup", ctx(request), reply, operation, reply_entry);
            }
            b".." => {
                let operation = move |fs: &Fs, _: &Ctx| fs.lookup_parent(ino(parent));
                return self.run("lookup", ctx(request), reply, operation, reply_entry);
            }
            _ => {}
        }
        let called = checked!(reply, name(called));
        let operation = move |fs: &Fs, ctx: &Ctx| fs.lookup(ctx, ino(parent), &called);
        self.run(
            "lookup",
            ctx(request),
            reply,
            operation,
            move |reply, found| match found {
                Some(inode) => reply_entry(reply, inode),
                // Inode 0 is a negative entry that the kernel caches: only the kernel can change
                // that.
                None => reply.entry(&TTL_OF_NOTHING, &nothing(), Generation(0)),
            },
        );
    }

    fn forget(&self, _request: &Request, number: INodeNo, _lookups: u64) {
        if let Err(error) = guarded(|| self.fs.forget(ino(number))) {
            tracing::error!(request = "forget", %error, "request failed");
        }
    }

    fn getattr(
        &self,
        request: &Request,
        number: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let operation = move |fs: &Fs, _: &Ctx| fs.getattr(ino(number));
        let shown = self.shown;
        let done =
            move |reply: ReplyAttr, inode| reply.attr(&ttl(&inode), &attr(&shown.of(&inode)));
        self.run("getattr", ctx(request), reply, operation, done);
    }

    fn setattr(
        &self,
        request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        // A setattr without changes may remove privileges.
        let asks_for_nothing = set == SetAttr::default();
        checked!(reply, self.shown.allow(&mut set));
        let would_show = asks_for_nothing || set != SetAttr::default();
        let operation = move |fs: &Fs, ctx: &Ctx| match would_show {
            true => fs.setattr(ctx, ino(number), &set),
            false => fs.getattr(ino(number)),
        };
        let shown = self.shown;
        let done =
            move |reply: ReplyAttr, inode| reply.attr(&ttl(&inode), &attr(&shown.of(&inode)));
        self.run("setattr", ctx(request), reply, operation, done);
    }

    fn readlink(&self, request: &Request, number: INodeNo, reply: ReplyData) {
        let operation = move |fs: &Fs, _: &Ctx| fs.readlink(ino(number));
        self.run(
            "readlink",
            ctx(request),
            reply,
            operation,
            |reply, target| reply.data(&target),
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        called: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let node = NewNode {
            mode,
            rdev,
            target: None,
        };
        let request = ("mknod", maker(request, umask));
        self.make(request, parent, called, node, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        called: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let node = NewNode {
            mode: libc::S_IFDIR | (mode & 0o7777),
            rdev: 0,
            target: None,
        };
        let request = ("mkdir", maker(request, umask));
        self.make(request, parent, called, node, reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        called: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let node = NewNode {
            mode: libc::S_IFLNK | 0o777,
            rdev: 0,
            target: Some(target.as_os_str().as_bytes().into()),
        };
        self.make(("symlink", ctx(request)), parent, called, node, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, called: &OsStr, reply: ReplyEmpty) {
        let called = checked!(reply, name(called));
        let operation = move |fs: &Fs, ctx: &Ctx| fs.unlink(ctx, ino(parent), &called);
        self.run("unlink", ctx(request), reply, operation, |reply, ()| {
            reply.ok()
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, called: &OsStr, reply: ReplyEmpty) {
        let called = checked!(reply, name(called));
        let operation = move |fs: &Fs, ctx: &Ctx| fs.rmdir(ctx, ino(parent), &called);
        self.run("rmdir", ctx(request), reply, operation, |reply, ()| {
            reply.ok()
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        called: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from: Name = checked!(reply, name(called));
        let to: Name = checked!(reply, name(new_name));
        let mode = checked!(reply, rename_mode(flags));
        let operation = move |fs: &Fs, ctx: &Ctx| {
            fs.rename(ctx, (ino(parent), &from), (ino(new_parent), &to), mode)
        };
        self.run("rename", ctx(request), reply, operation, |reply, ()| {
            reply.ok()
        });
    }

    fn link(
        &self,
        request: &Request,
        number: INodeNo,
        parent: INodeNo,
        called: &OsStr,
        reply: ReplyEntry,
    ) {
        let called = checked!(reply, name(called));
        let operation = move |fs: &Fs, ctx: &Ctx| fs.link(ctx, ino(number), ino(parent), &called);
        self.run("link", ctx(request), reply, operation, self.reply_entry());
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let operation = move |fs: &Fs, ctx: &Ctx| fs.open(ctx, ino(number), open_mode(flags.0));
        let opened = open_flags(flags.0);
        self.run(
            "open",
            ctx(request),
            reply,
            operation,
            move |reply, handle| {
                reply.opened(FileHandle(handle), opened);
            },
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        called: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let called = checked!(reply, name(called));
        let exclusive = flags & libc::O_EXCL != 0;
        let operation = move |fs: &Fs, ctx: &Ctx| {
            fs.create(ctx, ino(parent), &called, mode, open_mode(flags), exclusive)
        };
        let (shown, numbers) = (self.shown, self.numbers);
        self.run(
            "create",
            maker(request, umask),
            reply,
            operation,
            move |reply, (inode, handle)| {
                reply.created(
                    &ttl(&inode),
                    &attr(&shown.of(&inode)),
                    numbers.generation(&inode),
                    FileHandle(handle),
                    open_flags(flags),
                );
            },
        );
    }

    fn read(
        &self,
        request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let operation = move |fs: &Fs, ctx: &Ctx| {
            let mut buffer = ReadBuffer::take(size as usize);
            let got = fs.read(ctx, handle.0, offset, buffer.bytes())?;
            Ok((buffer, got))
        };
        let done = |reply: ReplyData, (mut buffer, got): (ReadBuffer, usize)| {
            reply.data(&buffer.bytes()[..got]);
        };
        self.run("read", ctx(request), reply, operation, done);
    }

    fn write(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let ctx = ctx(request);
        if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
            && let Err(error) = guarded(|| self.fs.drop_privileges(&ctx, ino(number)))
        {
            return reply.error(errno(&error));
        }
        let timer = self.times.start("write");
        match guarded(|| self.fs.write(&ctx, handle.0, offset, data)) {
            Err(FsError::WouldBlock | FsError::WouldWait) => {
                // The bytes are copied only here: the request's buffer belongs to the event thread.
                let data = data.to_vec();
                let operation = move |fs: &Fs, ctx: &Ctx| fs.write(ctx, handle.0, offset, &data);
                let done = |reply: ReplyWrite, written: usize| reply.written(written as u32);
                let with = (&self.fs, &self.workers);
                dispatch::run(with, ("write", timer), ctx, reply, operation, done);
            }
            result => answer("write", reply, result, |reply, written| {
                reply.written(written as u32)
            }),
        }
    }

    fn flush(
        &self,
        request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let operation = move |fs: &Fs, ctx: &Ctx| fs.close_descriptor(ctx, handle.0);
        self.run("flush", ctx(request), reply, operation, |reply, ()| {
            reply.ok()
        });
    }

    fn release(
        &self,
        request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let operation = move |fs: &Fs, ctx: &Ctx| fs.release(ctx, handle.0);
        self.run("release", ctx(request), reply, operation, |reply, ()| {
            reply.ok()
        });
    }

    fn fsync(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // This fails only while the file is being copied. The missing mark then matters only if the
        // daemon is killed.
        let _ = guarded(|| self.fs.note_fsync(&ctx(request), handle.0));
        let fs = self.fs.clone();
        let timer = self.times.start("fsync");
        self.syncer.request_file(Some(ino(number)), move |result| {
            let _timer = timer;
            // This sync's success does not restore bytes that an earlier sync has lost.
            let verdict =
                result.and_then(|()| fs.sync_verdict(ino(number)).map_err(|error| error.errno()));
            match verdict {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(Errno::from_i32(errno)),
            }
        });
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.sync_names(reply);
    }

    fn opendir(&self, request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let operation = move |fs: &Fs, ctx: &Ctx| fs.opendir(ctx, ino(number));
        self.run(
            "opendir",
            ctx(request),
            reply,
            operation,
            |reply, opened| {
                // Without the flags the kernel drops the copy that it has of the listing.
                let flags = match opened.may_cache {
                    true => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
                    false => FopenFlags::empty(),
                };
                reply.opened(FileHandle(opened.handle), flags);
            },
        );
    }

    fn readdir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _timer = self.times.start("readdir");
        let listed = guarded(|| {
            self.fs.readdir(handle.0, offset, |entry| {
                let number = INodeNo(entry.inode.ino.0);
                let kind = file_type(entry.inode.kind());
                !reply.add(number, entry.offset, kind, OsStr::from_bytes(&entry.name))
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _timer = self.times.start("readdir");
        let listed = guarded(|| {
            self.fs.readdir(handle.0, offset, |entry| {
                let number = INodeNo(entry.inode.ino.0);
                let name = OsStr::from_bytes(&entry.name);
                !reply.add(
                    number,
                    entry.offset,
                    name,
                    &ttl(&entry.inode),
                    &attr(&self.shown.of(&entry.inode)),
                    self.numbers.generation(&entry.inode),
                )
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.releasedir(handle.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u32 = 4096;
        // The number of inodes is not limited; programs that check expect free ones.
        const INODES: u64 = 1 << 32;
        let space = match guarded(|| Ok(self.fs.statfs())) {
            Ok(space) => space,
            Err(error) => return reply.error(errno(&error)),
        };
        let unit = u64::from(BLOCK);
        let available = space.available / unit;
        reply.statfs(
            space.total / unit,
            available,
            available,
            INODES,
            INODES,
            BLOCK,
            255,
            BLOCK,
        );
    }

    fn setxattr(
        &self,
        request: &Request,
        number: INodeNo,
        called: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let how = match flags {
            libc::XATTR_CREATE => SetXattr::Create,
            libc::XATTR_REPLACE => SetXattr::Replace,
            _ => SetXattr::Any,
        };
        if self.is_hidden(called.as_bytes()) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let (called, value) = (called.as_bytes().to_vec(), value.to_vec());
        let operation = move |fs: &Fs, ctx: &Ctx| match acl::is_acl(&called) {
            true => fs.set_acl(ctx, ino(number), &called, &value),
            false => fs.setxattr(ino(number), &called, &value, how),
        };
        self.run("setxattr", ctx(request), reply, operation, |reply, ()| {
            reply.ok()
        });
    }

    fn getxattr(
        &self,
        _request: &Request,
        number: INodeNo,
        called: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        if self.is_hidden(called.as_bytes()) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let _timer = self.times.start("getxattr");
        let result = guarded(|| self.fs.getxattr(ino(number), called.as_bytes()));
        reply_xattr(reply, size, result);
    }

    fn listxattr(&self, request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let _timer = self.times.start("listxattr");
        let result = guarded(|| {
            let mut list = self.fs.listxattr(&ctx(request), ino(number))?;
            if !self.has_acls() {
                let names = list.split_inclusive(|&byte| byte == 0);
                let seen = names.filter(|name| !self.is_hidden(&name[..name.len() - 1]));
                list = seen.flatten().copied().collect();
            }
            Ok(list)
        });
        reply_xattr(reply, size, result);
    }

    fn removexattr(&self, request: &Request, number: INodeNo, called: &OsStr, reply: ReplyEmpty) {
        if self.is_hidden(called.as_bytes()) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let called = called.as_bytes().to_vec();
        let operation = move |fs: &Fs, ctx: &Ctx| {
            if called == CAPABILITY && !fs.may_drop_capability(ctx, ino(number))? {
                return Ok(());
            }
            fs.removexattr(ino(number), &called)
        };
        self.run(
            "removexattr",
            ctx(request),
            reply,
            operation,
            |reply, ()| reply.ok(),
        );
    }

    fn access(&self, _request: &Request, _number: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself (default_permissions), without this request.
        reply.ok();
    }

    fn fallocate(
        &self,
        request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let operation = move |fs: &Fs, ctx: &Ctx| fs.fallocate(ctx, handle.0, offset, length, mode);
        self.run("fallocate", ctx(request), reply, operation, |reply, ()| {
            reply.ok()
        });
    }

    fn lseek(
        &self,
        request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek_for = match whence {
            libc::SEEK_DATA => SeekFor::Data,
            libc::SEEK_HOLE => SeekFor::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let operation = move |fs: &Fs, ctx: &Ctx| fs.seek(ctx, handle.0, offset, seek_for);
        self.run("lseek", ctx(request), reply, operation, |reply, at| {
            reply.offset(at as i64)
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _from: INodeNo,
        from_handle: FileHandle,
        from_offset: u64,
        _to: INodeNo,
        to_handle: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let operation = move |fs: &Fs, ctx: &Ctx| {
            fs.copy_range(
                ctx,
                (from_handle.0, from_offset),
                (to_handle.0, to_offset),
                length,
            )
        };
        self.run(
            "copy_file_range",
            ctx(request),
            reply,
            operation,
            |reply, copied| {
                reply.written(copied as u32);
            },
        );
    }
}
