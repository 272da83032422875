//! Calls by path, for tests that are written by hand.

use ferryfs::core::{Ino, Name, RelPath, Timestamp};
use ferryfs::index::Inode;
use ferryfs::vfs::{FsError, NewNode, OpenMode, RenameMode, SetAttr, SetTime};

use super::{CTX, Engine, call};

/// Opened to be read.
pub const READ: OpenMode = OpenMode {
    write: false,
    truncate: false,
};
/// Opened to be written.
pub const WRITE: OpenMode = OpenMode {
    write: true,
    truncate: false,
};
/// Emptied, then written.
pub const REWRITE: OpenMode = OpenMode {
    write: true,
    truncate: true,
};

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a name")
}

pub fn rel(path: &str) -> RelPath {
    RelPath::parse(path.as_bytes()).expect("a path")
}

impl Engine {
    /// The inode at `path`, if there is one.
    pub fn find(&self, path: &str) -> Option<Inode> {
        let mut at = self.fs.getattr(Ino::ROOT).expect("the root");
        for part in rel(path).components() {
            let part = Name::new(part).expect("a name");
            at = call(|ctx| self.fs.lookup(ctx, at.ino, &part)).expect("look up")?;
        }
        Some(at)
    }

    pub fn ino(&self, path: &str) -> Ino {
        self.find(path)
            .unwrap_or_else(|| panic!("{path} is not there"))
            .ino
    }

    /// The directory that holds `path`, and its last name.
    pub fn place(&self, path: &str) -> (Ino, Name) {
        let (dir, last) = rel(path).split_last().expect("not the root");
        (self.ino(&dir.to_string()), last)
    }

    pub fn mkdir(&self, path: &str) {
        let (parent, name) = self.place(path);
        let node = NewNode {
            mode: libc::S_IFDIR | 0o755,
            rdev: 0,
            target: None,
        };
        call(|ctx| self.fs.make_node(ctx, parent, &name, node.clone())).expect("mkdir");
    }

    /// Opens, making the file if it is not there.
    pub fn open(&self, path: &str, mode: OpenMode) -> u64 {
        let (parent, name) = self.place(path);
        if mode.write {
            let made = call(|ctx| self.fs.create(ctx, parent, &name, 0o644, mode, false));
            return made.expect("create").1;
        }
        call(|ctx| self.fs.open(ctx, self.ino(path), mode)).expect("open")
    }

    pub fn write_at(&self, handle: u64, at: u64, bytes: &[u8]) {
        call(|ctx| self.fs.write(ctx, handle, at, bytes)).expect("write");
    }

    /// As close(2) of the last descriptor.
    pub fn close_handle(&self, handle: u64) {
        call(|ctx| self.fs.close_descriptor(ctx, handle)).expect("flush the handle");
        call(|ctx| self.fs.release(ctx, handle)).expect("release");
    }

    /// Gives the file these bytes, whether it is there or not.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let handle = self.open(path, REWRITE);
        self.write_at(handle, 0, bytes);
        self.close_handle(handle);
    }

    /// Changes bytes in place.
    pub fn edit(&self, path: &str, at: u64, bytes: &[u8]) {
        let handle = self.open(path, WRITE);
        self.write_at(handle, at, bytes);
        self.close_handle(handle);
    }

    pub fn truncate(&self, path: &str, size: u64) {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        call(|ctx| self.fs.setattr(ctx, self.ino(path), &set)).expect("truncate");
    }

    pub fn utimes(&self, path: &str, mtime: Timestamp) {
        let set = SetAttr {
            mtime: Some(SetTime::At(mtime)),
            ..SetAttr::default()
        };
        call(|ctx| self.fs.setattr(ctx, self.ino(path), &set)).expect("set the time");
    }

    /// All bytes of an open file.
    pub fn read_handle(&self, handle: u64, size: u64) -> Result<Vec<u8>, FsError> {
        let mut bytes = vec![0; usize::try_from(size).expect("small") + 1];
        let got = call(|ctx| self.fs.read(ctx, handle, 0, &mut bytes))?;
        bytes.truncate(got);
        Ok(bytes)
    }

    pub fn read_ino(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let handle = call(|ctx| self.fs.open(ctx, ino, READ))?;
        let size = self.fs.getattr(ino)?.size;
        let bytes = self.read_handle(handle, size);
        call(|ctx| self.fs.release(ctx, handle))?;
        bytes
    }

    pub fn read(&self, path: &str) -> Vec<u8> {
        self.read_ino(self.ino(path)).expect("read")
    }

    pub fn unlink(&self, path: &str) {
        let (parent, name) = self.place(path);
        let ino = self.ino(path);
        call(|ctx| self.fs.unlink(ctx, parent, &name)).expect("unlink");
        self.fs.forget(ino).expect("forget");
    }

    pub fn rmdir(&self, path: &str) {
        let (parent, name) = self.place(path);
        let ino = self.ino(path);
        call(|ctx| self.fs.rmdir(ctx, parent, &name)).expect("rmdir");
        self.fs.forget(ino).expect("forget");
    }

    pub fn rename(&self, from: &str, to: &str) {
        self.rename_with(from, to, RenameMode::Replace)
            .expect("rename");
    }

    pub fn rename_with(&self, from: &str, to: &str, mode: RenameMode) -> Result<(), FsError> {
        let (from, to) = (self.place(from), self.place(to));
        call(|ctx| self.fs.rename(ctx, (from.0, &from.1), (to.0, &to.1), mode))
    }

    pub fn link(&self, from: &str, to: &str) {
        let ino = self.ino(from);
        let (parent, name) = self.place(to);
        call(|ctx| self.fs.link(ctx, ino, parent, &name)).expect("link");
    }

    /// Lets go of every clean object that nobody has open, and of every dead one. The world's
    /// limits must be zero.
    pub fn trim(&self) {
        self.fs.trim().expect("trim");
    }

    /// Whether the file at `path` has an object in the cache.
    pub fn is_cached(&self, path: &str) -> bool {
        self.find(path).is_some_and(|inode| inode.object.is_some())
    }
}

/// What [`CTX`] is for where no retry is wanted.
pub fn patient() -> ferryfs::vfs::Ctx {
    CTX
}
