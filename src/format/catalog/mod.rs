//! The catalog: facts about entries that a drive cannot store itself, kept in `.ferryfs/catalog/`.
//!
//! These are its types. A [`Description`] holds what the backend's own entry does not store of one
//! name. A [`CatalogChange`] is one step from the catalog of one cut to that of the next. Paths are
//! those on the backend, in the backend's spelling.

pub mod chain;
mod check;
pub mod segment;
pub mod store;
mod tree;
pub(crate) mod wire;

use crate::core::{ContentHash, FileKind, Name, RelPath, Timestamp, Xattrs};
use crate::format::codec::Reader;
use crate::format::steps::SlotNo;

pub use crate::format::catalog::check::{
    BadChange, MAX_HOLES, MAX_PRINCIPAL_BYTES, MAX_XATTR_NAME_BYTES, check_changes,
    check_description,
};
pub(crate) use crate::format::catalog::check::{check_bytes, check_xattr};
pub use crate::format::catalog::tree::CatalogTree;
pub use crate::format::catalog::wire::MAX_XATTR_BYTES;

/// An owner or group: number and name on the machine that wrote them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Principal {
    /// Its number on the machine that wrote it.
    pub id: u32,
    /// The name there; `None` if the number has none. On a machine that knows the name, the name
    /// takes precedence.
    pub name: Option<Box<[u8]>>,
}

/// A range of bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// The beginning, in bytes.
    pub offset: u64,
    /// The length in bytes; never 0.
    pub length: u64,
}

impl Extent {
    /// Returns the end, saturating: an extent from a drive may exceed the range of numbers.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// The facts about a name beyond the backend's own entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The kind. Links and special files may exist in the catalog only, without an entry on the
    /// backend.
    pub kind: FileKind,
    /// Permission bits, `0o7777`.
    pub permissions: u32,
    /// The owner.
    pub owner: Principal,
    /// The group.
    pub group: Principal,
    /// Modification time, to the nanosecond.
    pub modified: Timestamp,
    /// Size of a regular file in bytes, else 0. Size and `modified` show whether the bytes on the
    /// backend are still those described.
    pub size: u64,
    /// Target of a symbolic link.
    pub target: Option<Box<[u8]>>,
    /// Device number, or 0.
    pub rdev: u32,
    /// Number of the group of hard links that the name belongs to, random and therefore unique
    /// across machines; `None` for a file with one name.
    pub link: Option<u64>,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// The name in the mount, if the backend's spelling does not determine it.
    pub name: Option<Name>,
    /// Holes of a regular file, ascending, not adjacent.
    pub holes: Vec<Extent>,
}

/// One step from the catalog before a batch to the catalog after it. Steps are taken in order. Each
/// names a path of the tree as it is at that point; slots hold what moves, as in
/// [`crate::format::steps`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogChange {
    /// Moves the descriptions of `from` and below into `slot`, from which a
    /// [`CatalogChange::Attach`] of the same batch takes them. There may be none.
    Detach {
        /// The old path.
        from: RelPath,
        /// An empty slot.
        slot: SlotNo,
    },
    /// Moves the descriptions in `slot` to `to`, and discards those of `to` and below.
    Attach {
        /// A slot filled by a detach.
        slot: SlotNo,
        /// The new path.
        to: RelPath,
    },
    /// Discards the descriptions of `path` and below. There may be none.
    Remove {
        /// The path.
        path: RelPath,
    },
    /// Describes `path`; descriptions below it stay.
    Set {
        /// The path; empty for the root of the volume.
        path: RelPath,
        /// The description.
        description: Box<Description>,
    },
}

impl CatalogChange {
    /// Returns the path that the change concerns.
    pub fn path(&self) -> &RelPath {
        match self {
            CatalogChange::Detach { from: path, .. }
            | CatalogChange::Attach { to: path, .. }
            | CatalogChange::Remove { path }
            | CatalogChange::Set { path, .. } => path,
        }
    }
}

/// The changes of a batch to the catalog: the segment that it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogBatch {
    /// Number of the segment, from 1.
    pub segment: u64,
    /// Hash of the segment before it (the checksum at its end); `None` only for a full segment
    /// without a known predecessor.
    pub after: Option<ContentHash>,
    /// Whether the changes begin with an empty catalog, so that earlier segments no longer count.
    /// They are then one [`CatalogChange::Set`] for each described name, in tree order.
    pub full: bool,
    /// The changes, in order.
    pub changes: Vec<CatalogChange>,
}

/// Encodes a description as in records and segments. Equal descriptions have equal bytes.
pub fn encode_description(description: &Description) -> Vec<u8> {
    let mut out = Vec::new();
    wire::put_description(&mut out, description);
    out
}

/// Decodes the output of [`encode_description`]; `None` if it is something else or invalid.
pub fn decode_description(bytes: &[u8]) -> Option<Description> {
    let mut reader = Reader::new(bytes, 0);
    let description = wire::read_description(&mut reader).ok()?;
    let is_sound = reader.is_at_end() && check_description(&description).is_ok();
    is_sound.then_some(description)
}
