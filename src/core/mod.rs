//! Types that all modules share: identifiers, names, paths, times, attributes. No I/O.

pub mod acl;
pub mod cache_step;
mod capabilities;
mod escape;
mod exit;
mod metadata;
mod name;
mod owners;
mod privileges;
mod progress;
mod time;
pub(crate) mod time_match;
mod units;
mod while_open;

pub use crate::core::capabilities::{
    Capabilities, MAX_TARGET_BYTES, PROBE_VERSION, XATTR_UNBOUNDED,
};
pub use crate::core::escape::{
    Escaped, EscapingWriter, ForeignText, is_hidden, path_of_text, printable, printable_bytes,
    printable_json, printable_lines, quoted,
};
pub use crate::core::exit::{Exit, Failure};
pub use crate::core::metadata::{Entry, Metadata, Space, Xattrs};
pub use crate::core::name::{MAX_DEPTH, NAME_MAX, Name, NameError, RelPath, STORED_NAME_MAX};
pub use crate::core::owners::Owners;
pub use crate::core::privileges::{SET_IDS, is_privileged, without_set_ids};
pub use crate::core::progress::{Phase, Progress, Slowed};
pub use crate::core::time::{Clock, SystemClock, Timestamp, Utc};
pub use crate::core::time_match::{SLACK_NS, is_time_of, is_told_oddly};
pub use crate::core::units::human_bytes;
pub use crate::core::while_open::{Pace, WhileOpen};

use std::fmt;

/// Number of an inode of the mount. Persistent, ascending, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory of the mount; FUSE reserves the number 1 for it.
    pub const ROOT: Ino = Ino(1);
}

/// Number of an object: a file in the cache with the bytes of one version of one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub u64);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Position in the history of changes. Each change of the tree gets the next number; a cut names
/// the last one that it contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seq(pub u64);

/// Number of a batch, counted per volume from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchNo(pub u64);

impl fmt::Display for BatchNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// BLAKE3 hash of a file's whole content, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..6] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("..")
    }
}

/// The kind of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix-domain socket's name.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl FileKind {
    /// Returns the kind for the file-type bits of `mode` (`S_IFMT`), if they are valid.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => FileKind::Regular,
            libc::S_IFDIR => FileKind::Directory,
            libc::S_IFLNK => FileKind::Symlink,
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            libc::S_IFCHR => FileKind::CharDevice,
            libc::S_IFBLK => FileKind::BlockDevice,
            _ => return None,
        })
    }

    /// Returns the file-type bits (`S_IFMT`) of this kind, as the index stores them.
    pub fn mode_bits(self) -> u32 {
        match self {
            FileKind::Regular => libc::S_IFREG,
            FileKind::Directory => libc::S_IFDIR,
            FileKind::Symlink => libc::S_IFLNK,
            FileKind::Fifo => libc::S_IFIFO,
            FileKind::Socket => libc::S_IFSOCK,
            FileKind::CharDevice => libc::S_IFCHR,
            FileKind::BlockDevice => libc::S_IFBLK,
        }
    }

    /// Returns whether every backend can store such an entry: regular files and directories.
    pub fn is_plain(self) -> bool {
        matches!(self, FileKind::Regular | FileKind::Directory)
    }
}
