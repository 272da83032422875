//! The catalog: what a drive cannot say itself of what it holds, kept in `.ferryfs/catalog/` beside the data.
//!
//! Here are its words. A [`Description`] says of one name what the backend's own entry does not; a [`CatalogChange`] is one step from
//! the catalog of one cut to that of the next. Paths are those of the backend, in the backend's spelling.

pub mod chain;
mod check;
pub mod segment;
pub mod store;
mod tree;
pub(crate) mod wire;

use std::collections::BTreeMap;

use crate::base::{ContentHash, FileKind, Name, RelPath, Timestamp};
use crate::rules::bytes::Reader;
use crate::rules::steps::SlotNo;

pub use check::{
    BadChange, MAX_HOLES, MAX_PRINCIPAL_BYTES, MAX_XATTR_NAME_BYTES, check_changes,
    check_description,
};
pub(crate) use check::{check_bytes, check_xattr};
pub use tree::CatalogTree;
pub use wire::MAX_XATTR_BYTES;

/// An owner or a group: the number that the writing machine used, and what it is called there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Principal {
    /// Its number on the machine that wrote it.
    pub id: u32,
    /// Its name there; `None` where the number has none. Where another machine knows the name, the name counts.
    pub name: Option<Box<[u8]>>,
}

/// Extended attributes: values by name.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// A run of bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes; never 0.
    pub length: u64,
}

impl Extent {
    /// Where it ends. An extent may come from a drive and end beyond what can be counted.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// What is to be known of a name beyond what the backend's own entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// What it is. Links and special files may stand in the catalog only, without an entry on the backend.
    pub kind: FileKind,
    /// Permission bits, `0o7777`.
    pub permissions: u32,
    /// Its owner.
    pub owner: Principal,
    /// Its group.
    pub group: Principal,
    /// Time of last change of its bytes (of a directory: of its names), to the nanosecond.
    pub modified: Timestamp,
    /// Size of a regular file in bytes, else 0. With `modified` it tells whether the bytes on the backend are still those that were
    /// described.
    pub size: u64,
    /// Where a symbolic link points, byte for byte.
    pub target: Option<Box<[u8]>>,
    /// Device number of a device, else 0.
    pub rdev: u32,
    /// Number of the group of hard links that it belongs to, random enough to be one of its own on every machine; `None` if it has
    /// one name only.
    pub link: Option<u64>,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Its name in the mount, where the backend's spelling does not give it.
    pub name: Option<Name>,
    /// Where a regular file has holes, ascending, not touching each other.
    pub holes: Vec<Extent>,
}

/// One step from the catalog before a batch to the one after it, in the order in which they are taken. Each names what it is
/// about by a path of the tree as it is at that point; slots hold what moves, as in [`crate::rules::steps`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogChange {
    /// What is known of `from` and all below it goes into `slot`, from which an [`CatalogChange::Attach`] of the same batch takes it.
    /// Fine if nothing is known.
    Detach {
        /// The old path.
        from: RelPath,
        /// Empty until now.
        slot: SlotNo,
    },
    /// What is in `slot` is known of `to` from here on; what was known of `to` and below it is forgotten.
    Attach {
        /// Filled by a detach before.
        slot: SlotNo,
        /// The new path.
        to: RelPath,
    },
    /// Nothing is known of `path` and all below it any more. Fine if nothing was.
    Remove {
        /// The path.
        path: RelPath,
    },
    /// This is known of `path` now; what is known below it stays.
    Set {
        /// The path; the root, empty, for the volume's own directory.
        path: RelPath,
        /// What is known.
        description: Box<Description>,
    },
}

impl CatalogChange {
    /// The path that it is about.
    pub fn path(&self) -> &RelPath {
        match self {
            CatalogChange::Detach { from: path, .. }
            | CatalogChange::Attach { to: path, .. }
            | CatalogChange::Remove { path }
            | CatalogChange::Set { path, .. } => path,
        }
    }
}

/// What a batch does to the catalog: the segment of its log that it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogBatch {
    /// Number of the segment, counted from 1.
    pub segment: u64,
    /// Hash of the segment before it, that is the checksum at its end; `None` only for a
    /// full one that knows of none.
    pub after: Option<ContentHash>,
    /// Whether the changes begin with nothing known, so that no segment before this one counts any more. They are then one
    /// [`CatalogChange::Set`] for each name that is described, in the order of the paths' names.
    pub full: bool,
    /// The changes, in order.
    pub changes: Vec<CatalogChange>,
}

/// A description as bytes, as it stands in records and segments. Equal ones have equal bytes.
pub fn encode_description(description: &Description) -> Vec<u8> {
    let mut out = Vec::new();
    wire::put_description(&mut out, description);
    out
}

/// Reads what [`encode_description`] has written; `None` if it is something else, or cannot be meant.
pub fn decode_description(bytes: &[u8]) -> Option<Description> {
    let mut reader = Reader::new(bytes, 0);
    let description = wire::read_description(&mut reader).ok()?;
    let is_sound = reader.is_at_end() && check_description(&description).is_ok();
    is_sound.then_some(description)
}
