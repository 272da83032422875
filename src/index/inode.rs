//! One inode of the index.

use rusqlite::{Row, ToSql, params};

use super::int;

use crate::core::{FileKind, Ino, ObjectId, Seq, Timestamp};

/// State of an inode beyond its attributes. The numbers are on disk, and in the partial indexes of
/// the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Flags(pub u32);

impl Flags {
    /// The bytes differ from what the backend has (or the backend has none).
    pub const DATA_DIRTY: Flags = Flags(1);
    /// The time of last change differs from that on the backend.
    pub const TIME_DIRTY: Flags = Flags(2);
    /// Bytes may have been written since size and mtime were last noted here; the object has the
    /// present ones.
    pub const WRITING: Flags = Flags(4);
    /// A directory all of whose entries are in the index.
    pub const LISTED: Flags = Flags(8);
    /// The backend has a version of this inode under at least one name.
    pub const ON_BACKEND: Flags = Flags(16);
    /// There are extended attributes.
    pub const XATTRS: Flags = Flags(32);
    /// The file was being written when the daemon died, and has not been closed since: there is no
    /// whole version to flush.
    pub const INTERRUPTED: Flags = Flags(64);
    /// Attributes that the backend or its catalog has were changed since: mode, owner, xattrs,
    /// number of names, a directory's time of last change.
    pub const ATTR_DIRTY: Flags = Flags(128);

    /// The backend has refused some of the attributes last time, so the catalog must describe all
    /// of them, also those that the backend can store.
    pub const ATTR_REFUSED: Flags = Flags(256);
    /// The inode stays on the SSD: no batch and no catalog includes it, and it does not count as
    /// dirty. A file of which the drive has no version is DATA_DIRTY as long as it has the flag, so
    /// that it is not evicted; see `index/local.rs`.
    pub const LOCAL: Flags = Flags(512);

    /// Everything that a batch can settle.
    pub const DIRTY: Flags = Flags(1 | 2 | 128);

    /// Returns whether all of `other` is set.
    pub fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets all of `other`.
    pub fn set(&mut self, other: Flags) {
        self.0 |= other.0;
    }

    /// Returns whether any of `other` is set.
    pub fn any(self, other: Flags) -> bool {
        self.0 & other.0 != 0
    }

    /// Clears all of `other`.
    pub fn clear(&mut self, other: Flags) {
        self.0 &= !other.0;
    }
}

/// Where the bytes of a regular file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// The file is empty and has none.
    Empty,
    /// In an object of the cache.
    Object(ObjectId),
    /// On the backend only.
    Backend,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    /// File type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, for devices.
    pub rdev: u32,
    /// Number of names; for a directory 2 plus the number of its subdirectories.
    pub nlink: u32,
    /// Size in bytes.
    pub size: u64,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of bytes.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// The cache's copy of its bytes.
    pub object: Option<ObjectId>,
    /// See [`Flags`].
    pub flags: Flags,
    /// When its bytes last changed.
    pub data_seq: Seq,
    /// When its mtime was last set explicitly, or another attribute changed.
    pub time_seq: Seq,
    /// When it was last used, in seconds since 1970.
    pub used: i64,
    /// The target of a symbolic link.
    pub target: Option<Box<[u8]>>,
}

impl Inode {
    /// A new inode with one name (a directory: two), all times `now`.
    pub fn new(ino: Ino, mode: u32, uid: u32, gid: u32, now: Timestamp) -> Inode {
        let nlink = if mode & libc::S_IFMT == libc::S_IFDIR {
            2
        } else {
            1
        };
        Inode {
            ino,
            mode,
            uid,
            gid,
            rdev: 0,
            nlink,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            object: None,
            flags: Flags::default(),
            data_seq: Seq(0),
            time_seq: Seq(0),
            used: now.parts().0,
            target: None,
        }
    }

    /// Returns the file type.
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode).unwrap_or(FileKind::Regular)
    }

    /// Returns whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == FileKind::Directory
    }

    /// Returns where the bytes of a regular file are.
    pub fn location(&self) -> Location {
        match self.object {
            Some(object) => Location::Object(object),
            None if self.flags.has(Flags::ON_BACKEND) && !self.flags.has(Flags::DATA_DIRTY) => {
                Location::Backend
            }
            None => Location::Empty,
        }
    }

    /// Runs `work` with the values of this inode's row, in the order of [`COLUMNS`].
    pub(super) fn with_row<T>(&self, work: impl FnOnce(&[&dyn ToSql]) -> T) -> T {
        work(params![
            int(self.ino.0),
            self.mode,
            self.uid,
            self.gid,
            self.rdev,
            self.nlink,
            int(self.size),
            int(self.blocks),
            self.atime.0,
            self.mtime.0,
            self.ctime.0,
            self.btime.0,
            self.object.map(|o| int(o.0)),
            self.flags.0,
            int(self.data_seq.0),
            int(self.time_seq.0),
            self.used,
            self.target.as_deref(),
        ])
    }

    /// Reads a row of [`COLUMNS`].
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Inode> {
        Ok(Inode {
            ino: Ino(row.get::<_, i64>(0)? as u64),
            mode: row.get(1)?,
            uid: row.get(2)?,
            gid: row.get(3)?,
            rdev: row.get(4)?,
            nlink: row.get(5)?,
            size: row.get::<_, i64>(6)? as u64,
            blocks: row.get::<_, i64>(7)? as u64,
            atime: Timestamp(row.get(8)?),
            mtime: Timestamp(row.get(9)?),
            ctime: Timestamp(row.get(10)?),
            btime: Timestamp(row.get(11)?),
            object: row.get::<_, Option<i64>>(12)?.map(|o| ObjectId(o as u64)),
            flags: Flags(row.get(13)?),
            data_seq: Seq(row.get::<_, i64>(14)? as u64),
            time_seq: Seq(row.get::<_, i64>(15)? as u64),
            used: row.get(16)?,
            target: row
                .get::<_, Option<Vec<u8>>>(17)?
                .map(Vec::into_boxed_slice),
        })
    }
}

/// The columns that [`Inode::from_row`] reads, in its order.
pub(super) const COLUMNS: &str = "ino, mode, uid, gid, rdev, nlink, size, blocks, atime, mtime, ctime, btime, object, \
     flags, data_seq, time_seq, used, target";
