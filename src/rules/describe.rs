//! What is said of a name in the catalog, and what is believed of it on another machine.
//!
//! A name is described if the backend cannot say all of it by itself; the description then says all, so that it can be read
//! without knowing what the backend could. What the backend's own entry says of bytes is believed before the catalog: who has
//! changed a file without ferryfs has not changed its description.

mod changes;

use crate::backend::{Capabilities, Xattrs};
use crate::base::{FileKind, Name, Timestamp};
use crate::rules::catalog::{Description, Extent, Principal};
use crate::rules::given::{Attributes, Given, has_kind, is_carried};
use crate::rules::known::SLACK_NS;

pub use changes::changes;

/// Names of users and groups, as a machine knows them.
pub trait Owners: Send + Sync {
    /// What the user with this number is called.
    fn user(&self, id: u32) -> Option<Box<[u8]>>;

    /// What the group with this number is called.
    fn group(&self, id: u32) -> Option<Box<[u8]>>;

    /// The number of the user who is called so.
    fn user_called(&self, name: &[u8]) -> Option<u32>;

    /// The number of the group that is called so.
    fn group_called(&self, name: &[u8]) -> Option<u32>;
}

/// All that is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, `0o7777`.
    pub permissions: u32,
    /// Number of its owner.
    pub uid: u32,
    /// Number of its group.
    pub gid: u32,
    /// Device number, of a device.
    pub rdev: u32,
    /// Size in bytes, of a regular file.
    pub size: u64,
    /// Time of last change.
    pub modified: Timestamp,
    /// Where it points, for a symbolic link.
    pub target: Option<Box<[u8]>>,
    /// Number of its group of hard links, if it has several names.
    pub link: Option<u64>,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Its name in the mount, where the backend's spelling does not give it.
    pub name: Option<Name>,
    /// Where a regular file has holes.
    pub holes: Vec<Extent>,
}

/// Holes that are told of one file, the largest if it has more; the others read as zeros all the same.
pub const TOLD_HOLES: usize = 4096;

/// The first moment that a file system for Linux is sure to tell: 32 bits of seconds before 1970. The last are far.
const EARLIEST: i64 = -2_147_483_648_000_000_000;

/// Whether the backend says all of this by itself, as it is given all that it can hold. Holes are written as the zeros that they
/// read as, wherever it may be.
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

/// The description of a name, if the backend cannot say all of it by itself, or if one was given before: what that one said may
/// not be true any more.
pub fn describe(
    mut facts: Facts,
    described_before: bool,
    backend: &Capabilities,
    owners: &dyn Owners,
) -> Option<Description> {
    facts.xattrs.retain(|name, _| is_carried(name));
    let needed = described_before || !says_all(&facts, backend);
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
            FileKind::Regular => told_holes(facts.holes, facts.size),
            _ => Vec::new(),
        },
    })
}

/// The holes that are told: whole, in order, within the file, and not too many.
fn told_holes(mut holes: Vec<Extent>, size: u64) -> Vec<Extent> {
    holes.retain(|hole| {
        let end = hole.offset.checked_add(hole.length);
        hole.length > 0 && end.is_some_and(|end| end <= size)
    });
    if holes.len() > TOLD_HOLES {
        holes.sort_by_key(|hole| std::cmp::Reverse((hole.length, hole.offset)));
        holes.truncate(TOLD_HOLES);
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

/// Whether the bytes of a file that the backend gives this size and time are those that were described.
pub fn describes(it: &Description, size: u64, modified: Timestamp, granularity_ns: u64) -> bool {
    it.kind == FileKind::Regular
        && it.size == size
        && is_time_of(it.modified, modified, granularity_ns)
}

/// The first and the last moment that exFAT can tell, and the years that its drivers go around by beyond it.
const FIRST: i64 = 315_532_800_000_000_000;
const LAST: i64 = 4_354_819_199_000_000_000;
const DAY: i64 = 86_400_000_000_000;

/// Whether a backend that is given the time `meant` may tell `found`, in its steps or within two seconds.
pub fn is_time_of(meant: Timestamp, found: Timestamp, granularity_ns: u64) -> bool {
    meant.0.abs_diff(found.0) <= granularity_ns.max(SLACK_NS) || is_told_oddly(meant, found)
}

/// Whether `meant` is a time that some file systems cannot tell, and `found` one that they tell instead: the nearest that they can,
/// or what they come to going around. Such times are seldom enough, and not the times of what is changed today.
pub fn is_told_oddly(meant: Timestamp, found: Timestamp) -> bool {
    let slack = SLACK_NS;
    let can_be_told = (FIRST..=LAST).contains(&meant.0);
    let is_odd = found.0 < FIRST.saturating_add(2 * DAY) || found.0 > LAST - 2 * DAY;
    let went_around = || {
        // Once or twice the 128 years of exFAT's seven bits, with 31 or 32 leap days each as the centuries fall; 2^32 seconds of
        // 32-bit times.
        (46_750..=46_752)
            .chain(93_500..=93_504)
            .map(|days: i64| days * DAY)
            .chain([4_294_967_296_000_000_000])
            .any(|around| meant.0.abs_diff(found.0).abs_diff(around.cast_unsigned()) <= slack)
    };
    !can_be_told && (is_odd || went_around())
}

/// The number of the owner on this machine: his name counts if it is known here.
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

/// Space is given in blocks of this many bytes where holes are known.
const BLOCK: u64 = 4096;

/// The space that a file takes, in units of 512 bytes: whole blocks in its holes take none.
pub fn blocks(size: u64, holes: &[Extent]) -> u64 {
    if holes.is_empty() {
        return size.div_ceil(512);
    }
    // The last block of the largest size ends beyond what can be counted.
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

/// The number of the group of hard links that an inode forms: its own on every machine, as the cache's id is random.
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
