//! Decides what the catalog says of a name, and what another machine believes of it.
//!
//! A name is described if the backend cannot store all its facts. The description then contains all
//! of them, so that a reader need not know the backend's capabilities. For a file's bytes the
//! backend's own entry takes precedence: a program without ferryfs may have changed the file, but
//! not its description.

mod changes;

use crate::core::{Capabilities, FileKind, Name, Owners, Timestamp, Xattrs, is_time_of};
use crate::format::catalog::{Description, Extent, Principal};
use crate::plan::representable::{Attributes, Given, has_kind, is_carried};

pub use crate::plan::describe::changes::changes;

/// All facts about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The kind.
    pub kind: FileKind,
    /// Permission bits, `0o7777`.
    pub permissions: u32,
    /// Number of the owner.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Device number, of a device.
    pub rdev: u32,
    /// Size in bytes, of a regular file.
    pub size: u64,
    /// Modification time.
    pub modified: Timestamp,
    /// Target of a symbolic link.
    pub target: Option<Box<[u8]>>,
    /// Number of the group of hard links, if it has several names.
    pub link: Option<u64>,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// The name in the mount, if the backend's spelling does not determine it.
    pub name: Option<Name>,
    /// Holes of a regular file.
    pub holes: Vec<Extent>,
}

/// The most holes described of one file: the largest. The others read as zeros all the same.
pub const MAX_DESCRIBED_HOLES: usize = 4096;

/// The earliest time that every Linux file system can store: 32-bit seconds before 1970. The latest
/// is far away.
const EARLIEST: i64 = -2_147_483_648_000_000_000;

/// Returns whether the backend stores all of this itself. Holes do not count as stored, because
/// they are written as zeros.
fn says_all(facts: &Facts, backend: &Capabilities) -> bool {
    let attributes = Attributes {
        kind: facts.kind,
        permissions: facts.permissions,
        uid: facts.uid,
        gid: facts.gid,
        xattrs: facts.xattrs.clone(),
    };
    let step = i64::try_from(backend.time_granularity_ns).unwrap_or(i64::MAX);
    has_kind(backend, facts.kind, facts.size)
        && Given::new(backend, &attributes).is_all()
        && (facts.link.is_none() || backend.hard_links)
        && facts.modified.0 % step.max(1) == 0
        && facts.modified.0 >= EARLIEST
        && facts.holes.is_empty()
        && facts.name.is_none()
}

/// Returns the description of a name, if the backend cannot store all its facts, or if `needed`:
/// because an earlier description may be outdated now.
pub fn describe(
    mut facts: Facts,
    needed: bool,
    backend: &Capabilities,
    owners: &dyn Owners,
) -> Option<Description> {
    // A link of the drive whose target cannot be read. The drive has all that is known of it.
    if facts.kind == FileKind::Symlink && facts.target.is_none() {
        return None;
    }
    facts.xattrs.retain(|name, _| is_carried(name));
    let needed = needed || !says_all(&facts, backend);
    needed.then(|| Description {
        kind: facts.kind,
        permissions: facts.permissions & 0o7777,
        owner: Principal {
            id: facts.uid,
            name: owners.user(facts.uid),
        },
        group: Principal {
            id: facts.gid,
            name: owners.group(facts.gid),
        },
        modified: facts.modified,
        size: match facts.kind {
            FileKind::Regular => facts.size,
            _ => 0,
        },
        target: facts.target,
        rdev: match facts.kind {
            FileKind::CharDevice | FileKind::BlockDevice => facts.rdev,
            _ => 0,
        },
        link: facts
            .link
            .filter(|_| facts.kind != FileKind::Directory && !backend.hard_links),
        xattrs: facts.xattrs,
        name: facts.name,
        holes: match facts.kind {
            FileKind::Regular => described_holes(facts.holes, facts.size),
            _ => Vec::new(),
        },
    })
}

/// Returns the holes to describe: in order, within the file, not adjacent, and not too many.
fn described_holes(mut holes: Vec<Extent>, size: u64) -> Vec<Extent> {
    holes.retain(|hole| {
        let end = hole.offset.checked_add(hole.length);
        hole.length > 0 && end.is_some_and(|end| end <= size)
    });
    if holes.len() > MAX_DESCRIBED_HOLES {
        holes.sort_by_key(|hole| std::cmp::Reverse((hole.length, hole.offset)));
        holes.truncate(MAX_DESCRIBED_HOLES);
    }
    holes.sort();
    let mut free_from = None;
    holes.retain(|hole| {
        let apart = free_from.is_none_or(|end| hole.offset > end);
        if apart {
            free_from = Some(hole.end());
        }
        apart
    });
    holes
}

/// Returns whether a file with this size and time on the backend still has the described bytes.
pub fn describes(it: &Description, size: u64, modified: Timestamp, granularity_ns: u64) -> bool {
    it.kind == FileKind::Regular
        && it.size == size
        && is_time_of(it.modified, modified, granularity_ns)
}

/// Returns the owner's number on this machine: the name takes precedence if it is known here.
pub fn owner_here(owner: &Principal, owners: &dyn Owners) -> u32 {
    let called = owner.name.as_ref();
    called
        .and_then(|name| owners.user_called(name))
        .unwrap_or(owner.id)
}

/// The same for a group.
pub fn group_here(group: &Principal, owners: &dyn Owners) -> u32 {
    let called = group.name.as_ref();
    called
        .and_then(|name| owners.group_called(name))
        .unwrap_or(group.id)
}

/// The allocation unit of a file system that knows holes, in bytes.
const BLOCK: u64 = 4096;

/// Returns the space of a file in units of 512 bytes: complete blocks in holes take none.
pub fn blocks(size: u64, holes: &[Extent]) -> u64 {
    if holes.is_empty() {
        return size.div_ceil(512);
    }
    // The end of the last block may exceed the range of numbers.
    let up = |at: u64| at.div_ceil(BLOCK).saturating_mul(BLOCK);
    let whole = up(size);
    let empty = |hole: &Extent| {
        let end = hole.end();
        let to = match end >= size {
            true => whole,
            false => end / BLOCK * BLOCK,
        };
        to.saturating_sub(up(hole.offset))
    };
    let empty = holes.iter().map(empty).fold(0, u64::saturating_add);
    whole.saturating_sub(empty) / 512
}

/// Returns the number of an inode's group of hard links. It is unique across machines, because the
/// cache's id is random.
pub fn link_group(origin: &[u8; 16], ino: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(origin);
    hasher.update(&ino.to_le_bytes());
    let hash = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests;
