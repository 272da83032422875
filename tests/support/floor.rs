//! The floor of FUSE, for `scripts/bench.sh`: a daemon that keeps names in memory and does nothing
//! but make, write and remove the object of each file. What ferryfs takes beyond that is its own
//! work.
//!
//!     floor OBJECTS MOUNTPOINT        serves until it is unmounted

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

/// As ferryfs answers: nobody else changes it.
const TTL: Duration = Duration::from_secs(3600);

struct Node {
    attr: FileAttr,
    /// Of a regular file that was opened.
    object: Option<File>,
    names: HashMap<OsString, u64>,
}

struct Tree {
    nodes: HashMap<u64, Node>,
    next: u64,
}

struct Floor {
    objects: PathBuf,
    tree: Mutex<Tree>,
}

type Answer<T> = Result<T, Errno>;

fn attr(number: u64, kind: FileType, mode: u32) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: (mode & 0o7777) as u16,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Tree {
    fn node(&mut self, number: u64) -> Answer<&mut Node> {
        self.nodes.get_mut(&number).ok_or(Errno::ENOENT)
    }

    fn find(&mut self, dir: u64, name: &OsStr) -> Answer<u64> {
        self.node(dir)?
            .names
            .get(name)
            .copied()
            .ok_or(Errno::ENOENT)
    }

    fn make(&mut self, dir: u64, name: &OsStr, kind: FileType, mode: u32) -> Answer<FileAttr> {
        let number = self.next;
        self.next += 1;
        self.node(dir)?.names.insert(name.into(), number);
        let attr = attr(number, kind, mode);
        let node = Node {
            attr,
            object: None,
            names: HashMap::new(),
        };
        self.nodes.insert(number, node);
        Ok(attr)
    }
}

impl Floor {
    fn object(&self, number: u64) -> PathBuf {
        self.objects.join(number.to_string())
    }

    fn open_object(&self, node: &mut Node) -> Answer<File> {
        if node.object.is_none() {
            let mut options = File::options();
            let options = options.read(true).write(true).create(true).truncate(false);
            node.object = Some(options.open(self.object(node.attr.ino.0))?);
        }
        let object = node.object.as_ref().ok_or(Errno::EIO)?;
        Ok(object.try_clone()?)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr) -> Answer<()> {
        let mut tree = self.tree.lock();
        let number = tree.find(parent.0, name)?;
        tree.node(parent.0)?.names.remove(name);
        self.drop_node(&mut tree, number)
    }

    fn drop_node(&self, tree: &mut Tree, number: u64) -> Answer<()> {
        let node = tree.nodes.remove(&number).ok_or(Errno::ENOENT)?;
        if node.attr.kind == FileType::RegularFile {
            std::fs::remove_file(self.object(number))?;
        }
        Ok(())
    }
}

/// Answers with what `$answer` says, or with its error.
macro_rules! reply {
    ($reply:ident, $answer:expr, |$value:pat_param| $say:expr) => {
        match $answer {
            Ok($value) => $say,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Floor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for wanted in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut tree = self.tree.lock();
        match tree
            .find(parent.0, name)
            .and_then(|number| tree.node(number))
        {
            Ok(node) => reply.entry(&TTL, &node.attr, Generation(0)),
            // An empty answer, so that the kernel remembers it.
            Err(_) => reply.entry(&TTL, &attr(0, FileType::RegularFile, 0), Generation(0)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.tree.lock().node(ino.0).map(|node| node.attr);
        reply!(reply, found, |attr| reply.attr(&TTL, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut tree = self.tree.lock();
        let set = || {
            let node = tree.node(ino.0)?;
            if let Some(size) = size {
                self.open_object(node)?.set_len(size)?;
                node.attr.size = size;
            }
            node.attr.perm = mode.map_or(node.attr.perm, |mode| (mode & 0o7777) as u16);
            Ok(node.attr)
        };
        let mut set = set;
        reply!(reply, set(), |attr| reply.attr(&TTL, &attr));
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let mut tree = self.tree.lock();
        let made = tree.make(parent.0, name, FileType::Directory, mode);
        reply!(reply, made, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(reply, self.remove(parent, name), |()| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(reply, self.remove(parent, name), |()| reply.ok());
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
        let mut tree = self.tree.lock();
        let rename = || {
            let number = tree.find(parent.0, name)?;
            tree.node(parent.0)?.names.remove(name);
            let names = &mut tree.node(newparent.0)?.names;
            match names.insert(newname.into(), number) {
                Some(replaced) => self.drop_node(&mut tree, replaced),
                None => Ok(()),
            }
        };
        let mut rename = rename;
        reply!(reply, rename(), |()| reply.ok());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mut tree = self.tree.lock();
        let make = || {
            let attr = tree.make(parent.0, name, FileType::RegularFile, mode)?;
            self.open_object(tree.node(attr.ino.0)?)?;
            Ok(attr)
        };
        let mut make = make;
        reply!(reply, make(), |attr| {
            let flags = FopenFlags::FOPEN_KEEP_CACHE;
            reply.created(&TTL, &attr, Generation(0), FileHandle(0), flags);
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
        let object = {
            let mut tree = self.tree.lock();
            tree.node(ino.0).and_then(|node| self.open_object(node))
        };
        let read = object.and_then(|object| {
            let mut bytes = vec![0; size as usize];
            let count = object.read_at(&mut bytes, offset)?;
            bytes.truncate(count);
            Ok(bytes)
        });
        reply!(reply, read, |bytes| reply.data(&bytes));
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
        let object = {
            let mut tree = self.tree.lock();
            tree.node(ino.0).and_then(|node| {
                node.attr.size = node.attr.size.max(offset + data.len() as u64);
                self.open_object(node)
            })
        };
        let written = object.and_then(|object| Ok(object.write_all_at(data, offset)?));
        reply!(reply, written, |()| reply.written(data.len() as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // The kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if let Ok(node) = self.tree.lock().node(ino.0) {
            node.object = None;
        }
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let object = {
            let mut tree = self.tree.lock();
            tree.node(ino.0).and_then(|node| self.open_object(node))
        };
        let synced = object.and_then(|object| Ok(object.sync_data()?));
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
        let mut tree = self.tree.lock();
        let Ok(dir) = tree.node(ino.0) else {
            return reply.error(Errno::ENOENT);
        };
        let names: Vec<(OsString, u64)> = dir.names.iter().map(|(n, i)| (n.clone(), *i)).collect();
        for (place, (name, number)) in names.iter().enumerate().skip(offset as usize) {
            let kind = tree
                .node(*number)
                .map_or(FileType::RegularFile, |node| node.attr.kind);
            if reply.add(INodeNo(*number), place as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(objects), Some(place)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: floor OBJECTS MOUNTPOINT");
        std::process::exit(2);
    };
    let root = Node {
        attr: attr(1, FileType::Directory, 0o755),
        object: None,
        names: HashMap::new(),
    };
    let floor = Floor {
        objects: objects.into(),
        tree: Mutex::new(Tree {
            nodes: HashMap::from([(1, root)]),
            next: 2,
        }),
    };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("floor".into()),
        MountOption::Subtype("floor".into()),
        MountOption::DefaultPermissions,
    ];
    config.n_threads = Some(2);
    fuser::mount(floor, Path::new(&place), &config)
}
