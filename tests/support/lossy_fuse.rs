//! A FUSE file system that keeps what it was given in memory until it is asked, for that very file
//! or directory, to sync it: what the daemons of network and pooled file systems do. The kernel
//! never tells it of `syncfs`. It can crash.

#![allow(dead_code, unreachable_pub)] // Each test crate uses its own part of this.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

const TTL: Duration = Duration::ZERO;
const ROOT: u64 = 1;

#[derive(Clone, Debug)]
enum Body {
    File(Vec<u8>),
    /// What each name stands for, and whether that is a directory.
    Dir(BTreeMap<OsString, (u64, bool)>),
}

#[derive(Clone, Debug)]
struct Node {
    perm: u16,
    owner: (u32, u32),
    modified: SystemTime,
    body: Body,
}

impl Node {
    fn new(is_dir: bool, mode: u32) -> Node {
        Node {
            perm: (mode & 0o7777) as u16,
            owner: (0, 0),
            modified: SystemTime::now(),
            body: match is_dir {
                true => Body::Dir(BTreeMap::new()),
                false => Body::File(Vec::new()),
            },
        }
    }

    fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir(_))
    }

    fn attr(&self, number: u64) -> FileAttr {
        let size = match &self.body {
            Body::File(bytes) => bytes.len() as u64,
            Body::Dir(_) => 0,
        };
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: self.modified,
            mtime: self.modified,
            ctime: self.modified,
            crtime: UNIX_EPOCH,
            kind: match self.is_dir() {
                true => FileType::Directory,
                false => FileType::RegularFile,
            },
            perm: self.perm,
            nlink: if self.is_dir() { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// All of it: as it is shown, and as it would be found after a crash.
#[derive(Debug)]
struct Disk {
    live: BTreeMap<u64, Node>,
    durable: BTreeMap<u64, Node>,
    next: u64,
    syncs: u64,
    /// Files of which the medium returns nothing any more.
    bad: BTreeSet<u64>,
}

type Answer<T> = Result<T, Errno>;

impl Disk {
    fn new() -> Disk {
        let root = BTreeMap::from([(ROOT, Node::new(true, 0o755))]);
        Disk {
            live: root.clone(),
            durable: root,
            next: ROOT + 1,
            syncs: 0,
            bad: BTreeSet::new(),
        }
    }

    fn node(&mut self, number: u64) -> Answer<&mut Node> {
        self.live.get_mut(&number).ok_or(Errno::ENOENT)
    }

    fn names(&mut self, dir: u64) -> Answer<&mut BTreeMap<OsString, (u64, bool)>> {
        match &mut self.node(dir)?.body {
            Body::Dir(names) => Ok(names),
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn bytes(&mut self, file: u64) -> Answer<&mut Vec<u8>> {
        let node = self.node(file)?;
        node.modified = SystemTime::now();
        match &mut node.body {
            Body::File(bytes) => Ok(bytes),
            Body::Dir(_) => Err(Errno::EISDIR),
        }
    }

    fn find(&mut self, dir: u64, name: &OsStr) -> Answer<u64> {
        let found = self.names(dir)?.get(name).copied();
        found.map(|(number, _)| number).ok_or(Errno::ENOENT)
    }

    fn make(&mut self, dir: u64, name: &OsStr, node: Node) -> Answer<FileAttr> {
        let (number, is_dir) = (self.next, node.is_dir());
        if self.names(dir)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.names(dir)?.insert(name.into(), (number, is_dir));
        self.next += 1;
        let attr = node.attr(number);
        self.live.insert(number, node);
        Ok(attr)
    }

    fn remove(&mut self, dir: u64, name: &OsStr, wants_dir: bool) -> Answer<()> {
        let number = self.find(dir, name)?;
        match &self.node(number)?.body {
            Body::Dir(_) if !wants_dir => return Err(Errno::EISDIR),
            Body::Dir(names) if !names.is_empty() => return Err(Errno::ENOTEMPTY),
            Body::File(_) if wants_dir => return Err(Errno::ENOTDIR),
            _ => {}
        }
        self.names(dir)?.remove(name);
        Ok(())
    }

    fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Answer<()> {
        let number = self.find(from.0, from.1)?;
        let is_dir = self.node(number)?.is_dir();
        if self.find(to.0, to.1).is_ok() {
            self.remove(to.0, to.1, is_dir)?;
        }
        self.names(from.0)?.remove(from.1);
        self.names(to.0)?.insert(to.1.into(), (number, is_dir));
        Ok(())
    }

    /// Only this file or directory becomes durable: not the name of the one, nor what is in the
    /// other.
    fn sync(&mut self, number: u64) -> Answer<()> {
        let node = self.node(number)?.clone();
        self.durable.insert(number, node);
        self.syncs += 1;
        Ok(())
    }

    /// What has never been synced is empty, if its name is there at all.
    fn crash(&mut self) {
        let mut found = BTreeMap::new();
        let mut open = vec![(ROOT, true)];
        while let Some((number, is_dir)) = open.pop() {
            let node = self.durable.get(&number).cloned();
            let node = node.unwrap_or_else(|| Node::new(is_dir, 0o755));
            if let Body::Dir(names) = &node.body {
                open.extend(names.values());
            }
            found.insert(number, node);
        }
        self.durable.clone_from(&found);
        self.live = found;
    }
}

/// A mounted one. Dropping it unmounts it.
pub struct LossyFuse {
    disk: Arc<Mutex<Disk>>,
    place: PathBuf,
    session: Option<BackgroundSession>,
}

impl LossyFuse {
    /// Mounts an empty one at `place`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn mount(place: &Path) -> std::io::Result<LossyFuse> {
        let mut drive = LossyFuse {
            disk: Arc::new(Mutex::new(Disk::new())),
            place: place.into(),
            session: None,
        };
        drive.remount()?;
        Ok(drive)
    }

    fn remount(&mut self) -> std::io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("lossy".into()),
            MountOption::Subtype("lossy".into()),
        ];
        let server = Server(self.disk.clone());
        self.session = Some(fuser::spawn_mount(server, &self.place, &config)?);
        Ok(())
    }

    /// The machine that it runs on loses power, and starts again: what was not synced is lost.
    pub fn crash(&mut self) {
        if let Some(session) = self.session.take() {
            session.umount_and_join().expect("unmount the FUSE drive");
        }
        self.disk.lock().crash();
        self.remount().expect("mount the FUSE drive again");
    }

    /// From now on every read of this file at the top fails.
    pub fn break_reads(&self, name: &str) {
        let mut disk = self.disk.lock();
        let number = disk.find(ROOT, name.as_ref()).expect("such a file");
        disk.bad.insert(number);
    }

    /// How many files and directories it was asked to sync.
    pub fn syncs(&self) -> u64 {
        self.disk.lock().syncs
    }
}

struct Server(Arc<Mutex<Disk>>);

/// Answers with what `$answer` says, or with its error.
macro_rules! reply {
    ($reply:ident, $answer:expr, |$value:pat_param| $say:expr) => {
        match $answer {
            Ok($value) => $say,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut disk = self.0.lock();
        let found = disk.find(parent.0, name);
        let found = found.and_then(|number| Ok(disk.node(number)?.attr(number)));
        reply!(reply, found, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self.0.lock().node(ino.0).map(|node| node.attr(ino.0));
        reply!(reply, attr, |attr| reply.attr(&TTL, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = self.0.lock();
        let mut set = || {
            if let Some(size) = size {
                disk.bytes(ino.0)?.resize(size as usize, 0);
            }
            let node = disk.node(ino.0)?;
            node.perm = mode.map_or(node.perm, |mode| (mode & 0o7777) as u16);
            node.owner = (uid.unwrap_or(node.owner.0), gid.unwrap_or(node.owner.1));
            match mtime {
                Some(TimeOrNow::SpecificTime(time)) => node.modified = time,
                Some(TimeOrNow::Now) => node.modified = SystemTime::now(),
                None => {}
            }
            Ok(node.attr(ino.0))
        };
        reply!(reply, set(), |attr| reply.attr(&TTL, &attr));
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let node = Node::new(true, mode & !umask);
        let made = self.0.lock().make(parent.0, name, node);
        reply!(reply, made, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.0.lock().remove(parent.0, name, false);
        reply!(reply, removed, |()| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.0.lock().remove(parent.0, name, true);
        reply!(reply, removed, |()| reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut disk = self.0.lock();
        let renamed = disk.rename((parent.0, name), (newparent.0, newname));
        reply!(reply, renamed, |()| reply.ok());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let node = Node::new(false, mode & !umask);
        let made = self.0.lock().make(parent.0, name, node);
        reply!(reply, made, |attr| {
            reply.created(
                &TTL,
                &attr,
                Generation(0),
                FileHandle(0),
                FopenFlags::empty(),
            );
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.0.lock().bad.contains(&ino.0) {
            return reply.error(Errno::EIO);
        }
        match self.0.lock().live.get(&ino.0).map(|node| &node.body) {
            Some(Body::File(bytes)) => {
                let from = bytes.len().min(offset as usize);
                let to = bytes.len().min(from + size as usize);
                reply.data(&bytes[from..to]);
            }
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut disk = self.0.lock();
        let write = || {
            let bytes = disk.bytes(ino.0)?;
            let (from, to) = (offset as usize, offset as usize + data.len());
            bytes.resize(bytes.len().max(to), 0);
            bytes[from..to].copy_from_slice(data);
            Ok(())
        };
        let mut write = write;
        reply!(reply, write(), |()| reply.written(data.len() as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.0.lock().sync(ino.0);
        reply!(reply, synced, |()| reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.0.lock().sync(ino.0);
        reply!(reply, synced, |()| reply.ok());
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut disk = self.0.lock();
        let names = match disk.names(ino.0) {
            Ok(names) => names.clone(),
            Err(error) => return reply.error(error),
        };
        let dots = [".", ".."].map(|name| (OsString::from(name), (ino.0, true)));
        let all = dots.into_iter().chain(names).enumerate();
        for (at, (name, (number, is_dir))) in all.skip(offset as usize) {
            let kind = match is_dir {
                true => FileType::Directory,
                false => FileType::RegularFile,
            };
            if reply.add(INodeNo(number), at as u64 + 1, kind, &name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 22, 1 << 21, 1 << 21, 0, 0, 4096, 255, 4096);
    }
}
