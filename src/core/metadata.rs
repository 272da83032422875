//! What a backend reports about its files and its space.

use std::collections::BTreeMap;

use crate::core::{FileKind, Name, Timestamp};

/// Extended attributes: names with their values.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// An entry of a directory of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, as the backend spells it.
    pub name: Name,
    /// Its metadata, without opening it.
    pub meta: Metadata,
}

/// The metadata of a file or directory on the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The kind.
    pub kind: FileKind,
    /// Size in bytes; 0 except for regular files and symbolic links.
    pub size: u64,
    /// Time of the last change of its bytes, as exactly as the backend stores it.
    pub modified: Timestamp,
    /// Permission bits (`0o7777`), as far as the backend stores them.
    pub permissions: u32,
    /// Target of a symbolic link; `None` for other kinds.
    pub target: Option<Vec<u8>>,
    /// Number of the owner as the backend reports it; often the same for all files.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Device number, in the kernel's 32-bit form; 0 for other kinds.
    pub rdev: u32,
    /// Number of names; 1 for directories, and where the backend does not count names.
    pub nlink: u32,
    /// A number common to all names of one file, valid while the file exists; `None` for a file
    /// with one name.
    pub file: Option<u64>,
}

/// Space on the backend, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Space {
    /// Total space.
    pub total: u64,
    /// Space that ferryfs may use for the user's files.
    pub available: u64,
    /// Space that this process could use: as root, also the blocks that a file system such as ext4
    /// reserves for root. The user's files are not written there.
    pub usable: u64,
    /// Size of an allocation unit: a cluster of exFAT, a block. 0 if the backend does not report
    /// it.
    pub unit: u64,
}
