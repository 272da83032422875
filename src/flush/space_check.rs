//! Checks, before anything is staged, that the backend has space for a batch.
//!
//! A batch is written as a whole or not at all (P4). So all new files must fit beside all old ones
//! until the record is committed: only after that the batch frees the space of what it removes or
//! replaces. A batch that does not fit is not begun, and the flush says how much is missing. A part
//! that fits would leave the drive in a state that no cut ever had, and so would the removals
//! alone. A user who wants the removals all the same asks for them (`flush --removals-first`): then
//! they go in a batch of their own, and the drive has that mixed state until the rest has followed.
//!
//! The check counts what the drive will allocate ([`crate::plan::space`]): staged files in whole
//! clusters, a copy for each name if the backend has no links, new directories and the growth of
//! others, the staging directory, the record, the catalog's segment. The space for the part after
//! the commit (`later`) is held by then: by the reserve on the drive if that is large enough, else
//! by a spare file of the batch ([`crate::apply::reserve`]). A batch that meets ENOSPC before its
//! commit all the same is given up.

use std::collections::{HashMap, HashSet};

use crate::apply::reserve;
use crate::apply::reserve::Held;
use crate::catalog::candidates::Subjects;
use crate::core::{Capabilities, Ino, RelPath, Space, Xattrs};
use crate::drive::Backend;
use crate::error::{FlushError, Result};
use crate::flush::diff::Gathered;
use crate::flush::patches::{Bases, most_bytes};
use crate::format::steps::{AttributeStep, Node, PlaceStep, PlainKind, Steps};
use crate::plan::planner::{NameChange, Plan, StageSource};
use crate::plan::space::{Allocation, entry_bytes};

/// A spare larger than this is not written if the drive has so much space that nobody fills it
/// meanwhile:
const LARGE_SPARE: u64 = 2 << 20;

/// this many times the spare,
const ROOMY_TIMES: u64 = 16;

/// and this much.
const ROOMY: u64 = 1 << 30;

/// The most bytes that a step takes in a record, without its path; with the expectation of a file
/// that it replaces.
const STEP: u64 = 192;

/// Bytes of a description in the catalog, without name and attributes.
const DESCRIPTION: u64 = 96;

/// A symbolic link of at most this many bytes is stored in its inode.
const SHORT_TARGET: usize = 59;

/// The files of a batch that may be patched.
#[derive(Clone, Copy)]
struct Patches<'a> {
    bases: &'a Bases,
    /// They are counted as patches, not as whole files.
    are_used: bool,
}

/// The space that a batch will take on the drive, in bytes.
struct Need<'a> {
    /// Before the commit: files, nodes, the staging directory.
    staged: u64,
    /// From the commit on: the record, the segment, directories, what patched files grow by.
    later: u64,
    /// What files may grow by if they are patched.
    grown: u64,
    /// The largest file.
    largest: Option<(&'a RelPath, u64)>,
    /// The batch only removes and renames.
    makes_nothing: bool,
}

/// The space that a batch may use.
pub(super) struct Granted {
    /// What it must write beside its files.
    pub(super) held: Holding,
    /// It may use the reserve before its commit.
    pub(super) may_use_reserve: bool,
    /// The space on the drive beside it, as far as is known.
    pub(super) left: u64,
}

/// What a batch must hold for the part after its commit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Holding {
    /// What that part needs, without patches.
    later: u64,
    /// The reserve that is there.
    reserve: u64,
    /// The reserve that is made.
    wanted: u64,
    /// The space beside the batch.
    left: u64,
    space: Space,
    /// Blocks that are written over take new space.
    copies_on_write: bool,
}

impl Holding {
    /// Returns what the batch must write beside its files, if their patches write over `patched`
    /// bytes.
    pub(crate) fn beside(&self, patched: u64) -> Held {
        let over = if self.copies_on_write { patched } else { 0 };
        let later = self.later.saturating_add(over);
        let left = self.left.saturating_sub(over);
        Held {
            spare: spare(later, self.reserve, left, &self.space),
            reserve: self.wanted,
        }
    }
}

/// Returns whether blocks that are written over may need new space: on btrfs, bcachefs, ZFS and
/// F2FS always, on XFS if other files share them, and behind a network or a pool anything may be.
/// It is not so on exFAT, also in user space.
fn copies_on_write(backend: &dyn Backend) -> bool {
    backend.renames_atomically() || backend.links_may_be_copies()
}

impl<'a> Need<'a> {
    fn of(
        plan: &'a Plan,
        gathered: &Gathered,
        allocation: Allocation,
        patches: Patches<'_>,
    ) -> Need<'a> {
        let steps = &plan.steps;
        let mut need = Need {
            staged: staging_dir(steps, allocation, patches),
            later: 0,
            grown: 0,
            largest: None,
            makes_nothing: true,
        };
        for step in &steps.place {
            need.add_staged(step, gathered, allocation, patches);
        }
        let catalog = catalog_bytes(&gathered.subjects);
        need.later = directories(steps, allocation)
            .saturating_add(allocation.file(record_bytes(steps).saturating_add(catalog)))
            .saturating_add(allocation.file(catalog))
            .saturating_add(attributes(&steps.attributes, allocation))
            .saturating_add(need.grown)
            // Our directories may grow, and that of the catalog may be new.
            .saturating_add(allocation.unit.saturating_mul(2));
        need
    }

    fn add_staged(
        &mut self,
        step: &'a PlaceStep<StageSource>,
        gathered: &Gathered,
        allocation: Allocation,
        patches: Patches<'_>,
    ) {
        match step {
            PlaceStep::Install { slot, to, content } => {
                let size = size_of(content, gathered);
                let base = patches.bases.get(slot);
                let staged = match base {
                    Some(_) if patches.are_used => most_bytes(size),
                    _ => size,
                };
                self.staged = self.staged.saturating_add(allocation.file(staged));
                if let Some(base) = base {
                    let grown = allocation
                        .file(size)
                        .saturating_sub(allocation.file(base.size));
                    self.grown = self.grown.saturating_add(grown);
                }
                self.makes_nothing = false;
                if self.largest.is_none_or(|(_, most)| size > most) {
                    self.largest = Some((to, size));
                }
            }
            PlaceStep::InstallNode { node, .. } => {
                self.makes_nothing = false;
                if matches!(node, Node::Symlink { target } if target.len() > SHORT_TARGET) {
                    self.staged = self.staged.saturating_add(allocation.directory(1));
                }
            }
            PlaceStep::MakeDir { .. } => self.makes_nothing = false,
            PlaceStep::Attach { .. }
            | PlaceStep::Patch { .. }
            | PlaceStep::Link { .. }
            | PlaceStep::Touch { .. } => {}
        }
    }

    fn total(&self) -> u64 {
        self.staged.saturating_add(self.later)
    }

    fn full(&self, available: u64, gathered: &Gathered) -> FlushError {
        let (path, size) = match self.largest {
            Some((path, size)) => (Some(path.clone()), size),
            None => (None, 0),
        };
        FlushError::Full {
            path,
            size,
            available,
            needed: self.total(),
            freed: freed_by_removals(gathered),
        }
    }
}

/// Returns the size of the source of a staged file, also of a further copy of an unchanged file.
fn size_of(content: &StageSource, gathered: &Gathered) -> u64 {
    let (StageSource::Object { ino, .. } | StageSource::Backend { ino, .. }) = content;
    let known = gathered.sizes.get(ino).copied();
    known
        .or_else(|| gathered.inodes.get(ino).map(|inode| inode.size))
        .unwrap_or(0)
}

/// Returns the space of the batch's own directory, with an entry for each slot.
fn staging_dir(steps: &Steps<StageSource>, allocation: Allocation, patches: Patches<'_>) -> u64 {
    let slots = steps.clear.len().saturating_add(steps.place.len()) as u64;
    // A patch has a note beside it.
    let slots = slots.saturating_add(patches.bases.len() as u64);
    allocation.directory(slots.saturating_mul(entry_bytes("s00000000".len())))
}

/// Returns the space of new directories, and of the growth of those that get new names.
fn directories(steps: &Steps<StageSource>, allocation: Allocation) -> u64 {
    let mut entries: HashMap<&[u8], u64> = HashMap::new();
    let mut new: HashSet<&[u8]> = HashSet::new();
    for step in &steps.place {
        let path = step.path().as_bytes();
        match step {
            PlaceStep::Touch { .. } => continue,
            PlaceStep::MakeDir { .. } => drop(new.insert(path)),
            _ => {}
        }
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = slash.map_or((&path[..0], path), |at| (&path[..at], &path[at + 1..]));
        let entries = entries.entry(dir).or_default();
        *entries = entries.saturating_add(entry_bytes(name.len()));
    }
    let of_new = new.iter().map(|dir| {
        let entries = entries.get(dir).copied().unwrap_or(0);
        allocation.directory(entries)
    });
    let in_old = entries.iter().filter(|(dir, _)| !new.contains(**dir));
    let grown = in_old.map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
    of_new.fold(allocation.growth(grown), u64::saturating_add)
}

fn record_bytes(steps: &Steps<StageSource>) -> u64 {
    let path = |path: &RelPath| path.as_bytes().len() as u64;
    // The record has an expectation, by path, of each removed file.
    let clear = steps.clear.iter();
    let clear = clear.map(|step| STEP + 2 * path(step.path()));
    let place = steps.place.iter().map(|step| {
        let also = match step {
            PlaceStep::Link { from, .. } => path(from),
            PlaceStep::InstallNode { node, .. } => node.size(),
            _ => 0,
        };
        (STEP + path(step.path())).saturating_add(also)
    });
    let set = steps.attributes.iter().map(|step| {
        let values = step.xattrs.iter().flatten();
        let values: usize = values
            .map(|(key, value)| key.len() + value.len() + 16)
            .sum();
        STEP + path(&step.path) + values as u64
    });
    clear
        .chain(place)
        .chain(set)
        .fold(STEP, u64::saturating_add)
}

/// Returns the bytes of the catalog's segment, if the batch describes everything that it may.
fn catalog_bytes(subjects: &Subjects) -> u64 {
    let values = |xattrs: &Xattrs| -> usize {
        let values = xattrs.iter();
        values
            .map(|(key, value)| key.len() + value.len() + 16)
            .sum()
    };
    let told = subjects.names.iter().map(|subject| {
        let target = subject.inode.target.as_ref().map_or(0, |it| it.len());
        let name = subject.name.as_ref().map_or(0, |it| it.as_bytes().len());
        let path = subject.path.as_bytes().len();
        DESCRIPTION + (path + name + target + values(&subject.xattrs)) as u64
    });
    let gone = subjects.gone.iter();
    let gone = gone.map(|path| STEP + path.as_bytes().len() as u64);
    told.chain(gone).fold(0, u64::saturating_add)
}

/// Extended attributes take a block of their own if they do not fit into the inode.
fn attributes(steps: &[AttributeStep], allocation: Allocation) -> u64 {
    let with = |step: &&AttributeStep| step.xattrs.as_ref().is_some_and(|it| !it.is_empty());
    let count = steps.iter().filter(with).count() as u64;
    count.saturating_mul(allocation.unit)
}

/// Returns the space on the backend, as far as it is known. Some servers report a total of 0.
fn space_on(backend: &dyn Backend) -> Result<Space> {
    match backend.space() {
        Ok(space) => Ok(space),
        Err(error) if error.is_gone() => Err(error.into()),
        Err(_) => Ok(Space::default()),
    }
}

/// Returns how the backend allocates space.
pub(super) fn allocation(space: &Space, capabilities: &Capabilities) -> Allocation {
    Allocation {
        unit: space.unit,
        hard_links: capabilities.hard_links,
    }
}

/// Returns the size of the spare of a batch that needs `later` bytes after its commit, if the
/// reserve has `reserve` bytes and `left` are free besides; 0 for none.
fn spare(later: u64, reserve: u64, left: u64, space: &Space) -> u64 {
    let is_roomy = later > LARGE_SPARE
        && space.total > 0
        && left >= ROOMY.max(later.saturating_mul(ROOMY_TIMES));
    match later <= reserve || is_roomy || space.unit == 0 {
        true => 0,
        false => later,
    }
}

/// Checks that what `plan` writes to the drive fits. Passes if the backend does not report its
/// space.
pub(super) fn check(
    backend: &dyn Backend,
    plan: &Plan,
    gathered: &Gathered,
    capabilities: &Capabilities,
    bases: &Bases,
) -> Result<Granted> {
    let space = space_on(backend)?;
    let need_of = |are_used| {
        let patches = Patches { bases, are_used };
        Need::of(plan, gathered, allocation(&space, capabilities), patches)
    };
    let mut need = need_of(false);
    let reserve = reserve::size_on(backend)?;
    let available = if space.total > 0 {
        space.available
    } else {
        u64::MAX
    };
    // In doubt there is space for whole files. On a drive without it patches must do.
    if need.total() > available && !bases.is_empty() {
        let patched = need_of(true);
        if patched.total() <= available {
            need = patched;
        }
    }
    if need.total() <= available {
        let left = available - need.total();
        return Ok(Granted {
            held: Holding {
                later: need.later,
                reserve,
                wanted: reserve::wanted(&space, reserve, left),
                left,
                space,
                copies_on_write: !bases.is_empty() && copies_on_write(backend),
            },
            may_use_reserve: need.makes_nothing,
            left,
        });
    }
    // A batch that only frees space or changes names must not wait for space. It may also use the
    // blocks that are reserved for root.
    let usable = available.max(space.usable);
    if need.makes_nothing && need.total() <= usable.saturating_add(reserve) {
        return Ok(Granted {
            held: Holding::default(),
            may_use_reserve: true,
            left: 0,
        });
    }
    Err(need.full(available, gathered))
}

/// Returns the error of a batch that a full backend has stopped before its commit. Its staged files
/// are gone.
pub(super) fn full(
    backend: &dyn Backend,
    plan: &Plan,
    gathered: &Gathered,
    capabilities: &Capabilities,
    bases: &Bases,
) -> FlushError {
    let space = backend.space().unwrap_or_default();
    let patches = Patches {
        bases,
        are_used: false,
    };
    let allocation = allocation(&space, capabilities);
    Need::of(plan, gathered, allocation, patches).full(space.available, gathered)
}

fn freed_by_removals(gathered: &Gathered) -> u64 {
    let wanted = wanted(gathered);
    let gone = gathered.delta.names.iter();
    gone.filter(|change| is_removal(change, &wanted))
        .filter_map(|change| gathered.before.get(&change.key))
        .map(|entry| entry.size)
        .fold(0, u64::saturating_add)
}

/// Returns the inodes that the cut has under any of the names concerned.
fn wanted(gathered: &Gathered) -> HashSet<Ino> {
    let names = gathered.delta.names.iter();
    names
        .filter_map(|change| change.new.as_ref().map(|new| new.ino))
        .collect()
}

fn is_removal(change: &NameChange, wanted: &HashSet<Ino>) -> bool {
    change.new.is_none()
        && change
            .old
            .is_some_and(|old| old.kind == PlainKind::File && !wanted.contains(&old.ino))
}

/// Leaves in the difference only the removals of files that have no name in the cut any more.
pub(super) fn keep_removals(gathered: &mut Gathered) {
    let wanted = wanted(gathered);
    let names = &mut gathered.delta.names;
    names.retain(|change| is_removal(change, &wanted));
    gathered.settled.clear();
    gathered.attributes.clear();
    gathered.subjects = Subjects::default();
    // The directories keep their places in this batch.
    let parents: HashSet<Ino> = names.iter().map(|change| change.key.parent).collect();
    gathered.delta.dirs.retain(|dir, _| parents.contains(dir));
    for paths in gathered.delta.dirs.values_mut() {
        paths.new.clone_from(&paths.old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_blocks_are_not_written_over_in_place_their_space_is_held_as_well() {
        const MIB: u64 = 1 << 20;
        let holding = Holding {
            later: MIB,
            reserve: 2 * MIB,
            wanted: 0,
            left: 500 * MIB,
            space: Space {
                total: 1 << 30,
                available: 500 * MIB,
                usable: 500 * MIB,
                unit: 4096,
            },
            copies_on_write: true,
        };
        assert_eq!(holding.beside(0).spare, 0);
        assert_eq!(holding.beside(40 * MIB).spare, 41 * MIB);
        let in_place = Holding {
            copies_on_write: false,
            ..holding
        };
        assert_eq!(in_place.beside(40 * MIB).spare, 0);
    }

    #[test]
    fn a_spare_is_written_where_the_reserve_is_too_small_and_the_drive_may_be_filled() {
        const MIB: u64 = 1 << 20;
        let space = Space {
            total: 1 << 40,
            available: 1 << 40,
            usable: 1 << 40,
            unit: 4096,
        };
        assert_eq!(spare(MIB, MIB, 1 << 40, &space), 0, "the reserve covers it");
        assert_eq!(spare(2 * MIB, MIB, 1 << 40, &space), 2 * MIB);
        assert_eq!(
            spare(40 * MIB, MIB, 1 << 40, &space),
            0,
            "nobody fills that"
        );
        assert_eq!(spare(40 * MIB, MIB, 900 * MIB, &space), 40 * MIB);
        assert_eq!(spare(400 * MIB, MIB, 2000 * MIB, &space), 400 * MIB);
        let untold = Space { total: 0, ..space };
        assert_eq!(spare(40 * MIB, 0, u64::MAX, &untold), 40 * MIB);
    }
}
