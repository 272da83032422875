//! How much of the waiting changes goes into one batch.
//!
//! A batch is held in memory and written as one record, and both have bounds. If more waits than
//! [`BATCH_BYTES`], the cheapest changes are taken first, and the rest follows in further batches.
//! Each batch writes whole files and leaves a tree on the drive in which every directory of a name
//! exists: a new name comes after its directory, a move together with whatever replaces it, and a
//! directory is removed together with its contents or after them. Between the parts the drive has
//! the tree of no cut, so this is done only if one batch is not enough.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::catalog::candidates::NewDirs;
use crate::core::{Ino, RelPath};
use crate::error::Result;
use crate::format::steps::{Node, PlainKind};
use crate::index::{Flags, Inode, Snapshot, path_upwards};
use crate::plan::batch_parts::{Fate, WaitingChanges};
use crate::plan::names::NameRules;
use crate::plan::planner::{NOBODY, NameChange, NameKey, NewContent};
use crate::plan::units;

/// The size limit of a batch, as it is estimated here: no less than what its record takes, whose
/// limit is four times as much. In memory a batch takes at most about six times as much.
pub(crate) const BATCH_BYTES: u64 = 256 << 20;

/// The longest path that a batch accepts, in bytes: half of what a record can hold. A directory
/// whose move waits for the next part may be under a new path with the rest of its old one.
const PATH_BYTES: u64 = 32_768;

/// The same for the present path of something that is moved or removed. A record can hold a little
/// more.
const OLD_PATH_BYTES: u64 = 2 * PATH_BYTES - 2_048;

/// The cost of a change beside its paths: a step, another step for its attributes, its description.
const CHANGE: u64 = 512;

/// How often a path is written: in a step, with attributes, in the catalog, in the journal.
const PATHS: u64 = 4;

/// The weight of an extended attribute: it is written twice in the record, and kept in memory
/// meanwhile.
const XATTRS: u64 = 4;

/// The most holes that are described of a file, and the cost of each.
const HOLES: u64 = 16_384;
const HOLE: u64 = 16;

const TOO_LONG: &str =
    "its path on the drive has more than 32,768 bytes; move it to a directory further up";

const HELD: &str = "it was moved to a name that stays on this computer, but its bytes are only on the \
    drive; the drive keeps it under its old name until they are in the cache";

const TOO_MUCH: &str = "with its names, its extended attributes and the changes that must go with \
    it, it exceeds a batch; remove some of them";

/// The changes that go into a batch.
pub(super) struct Portion {
    /// For each change, whether it is taken.
    pub(super) names: Vec<bool>,
    /// Inodes whose attributes are not taken.
    pub(super) without: BTreeSet<Ino>,
    /// Names that fit into no batch, with the reason.
    pub(super) unfit: Vec<(NameKey, &'static str)>,
    /// The estimated number of further batches.
    pub(super) more: u64,
    /// Where directories are after the batch.
    pub(super) dir_places: DirPlaces,
}

/// Where directories are after a batch.
pub(crate) enum DirPlaces {
    /// Where the cut has them.
    AsInCut,
    /// Where the backend has them, except for these, which have a new name or none.
    Moved(HashMap<Ino, Option<NameKey>>),
}

impl NewDirs for DirPlaces {
    fn path(&self, snapshot: &Snapshot, dir: Ino) -> Result<Option<RelPath>> {
        let DirPlaces::Moved(moved) = self else {
            return Ok(snapshot.mount_dir(dir)?);
        };
        Ok(path_upwards(dir, |at| match moved.get(&at) {
            Some(link) => Ok(link.clone()),
            None => snapshot.backend_link(at),
        })?)
    }
}

/// All waiting changes.
pub(super) struct Waiting<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) rules: &'a NameRules,
    pub(super) changes: &'a [NameChange],
    pub(super) inodes: &'a BTreeMap<Ino, Option<Inode>>,
    /// Inodes whose attributes the catalog or the backend must get.
    pub(super) attributes: &'a BTreeSet<Ino>,
    /// Inodes that stay on the backend as they are.
    pub(super) held: &'a HashSet<Ino>,
}

/// What becomes of directories in the cut, each with the number of the change.
#[derive(Default)]
struct Dirs {
    /// Directories that get a new name.
    coming: HashMap<Ino, usize>,
    /// Those of them that the backend does not have.
    made: HashMap<Ino, usize>,
    removed: HashMap<Ino, usize>,
}

/// Lengths of the paths of directories in one tree; `None` if the tree does not have the directory.
#[derive(Default)]
struct Lengths(HashMap<Ino, Option<u64>>);

impl Lengths {
    /// Returns the length of the path of `dir`. Each directory on the way is looked up once, for
    /// all callers.
    fn of(
        &mut self,
        dir: Ino,
        link_of: impl Fn(Ino) -> crate::index::Result<Option<NameKey>>,
    ) -> Result<Option<u64>> {
        let mut way = Vec::new();
        let mut at = dir;
        let mut length = loop {
            if at == Ino::ROOT {
                break Some(0);
            }
            if let Some(known) = self.0.get(&at) {
                break *known;
            }
            // If the rows form a circle, the directory has no path.
            self.0.insert(at, None);
            match link_of(at)? {
                Some(link) => {
                    way.push((at, link.name.as_bytes().len() as u64));
                    at = link.parent;
                }
                None => break None,
            }
        };
        for (dir, name) in way.into_iter().rev() {
            length = length.map(|length: u64| length.saturating_add(name + 1));
            self.0.insert(dir, length);
        }
        Ok(length)
    }
}

impl Waiting<'_> {
    /// Chooses what goes into a batch of at most `budget` bytes.
    pub(super) fn choose(&self, budget: u64) -> Result<Portion> {
        let mut parts = WaitingChanges::default();
        let mut reasons = Vec::new();
        let (mut old, mut new) = (Lengths::default(), Lengths::default());
        for change in self.changes {
            if inodes_of(change).any(|ino| self.held.contains(&ino)) {
                reasons.push(HELD);
                parts.add(None);
                continue;
            }
            let cost = self.cost(change, &mut old, &mut new)?;
            reasons.push(if cost.is_none() { TOO_LONG } else { TOO_MUCH });
            parts.add(cost);
        }
        let mut told = Vec::new();
        for ino in self.attributes {
            let (cost, key) = self.cost_of_attributes(*ino, &mut new)?;
            reasons.push(if cost.is_none() { TOO_LONG } else { TOO_MUCH });
            told.push((*ino, parts.add(cost), key));
        }
        let total = parts.cost();
        let is_any_bad = reasons.contains(&TOO_LONG) || reasons.contains(&HELD);
        if total <= budget && !is_any_bad {
            return Ok(Portion {
                names: vec![true; self.changes.len()],
                without: BTreeSet::new(),
                unfit: Vec::new(),
                more: 0,
                dir_places: DirPlaces::AsInCut,
            });
        }
        self.bind(&mut parts, &told)?;
        let fates = parts.choose(budget);
        Ok(self.portion(&fates, &told, &reasons, total / budget.max(1)))
    }

    fn portion(
        &self,
        fates: &[Fate],
        told: &[(Ino, usize, Option<NameKey>)],
        reasons: &[&'static str],
        more: u64,
    ) -> Portion {
        let mut portion = Portion {
            names: fates[..self.changes.len()]
                .iter()
                .map(|fate| *fate == Fate::Taken)
                .collect(),
            without: BTreeSet::new(),
            unfit: Vec::new(),
            more: match fates.contains(&Fate::Later) {
                true => more.saturating_add(1),
                false => 0,
            },
            dir_places: DirPlaces::AsInCut,
        };
        for ((change, fate), reason) in self.changes.iter().zip(fates).zip(reasons) {
            if *fate == Fate::Never {
                portion.unfit.push((change.key.clone(), *reason));
            }
        }
        for (ino, number, key) in told {
            if fates[*number] != Fate::Taken {
                portion.without.insert(*ino);
            }
            if let (Fate::Never, Some(key)) = (fates[*number], key) {
                portion.unfit.push((key.clone(), reasons[*number]));
            }
        }
        portion.unfit.sort();
        portion.unfit.dedup_by(|(one, _), (other, _)| one == other);
        portion.dir_places = DirPlaces::Moved(self.moved(&portion.names));
        portion
    }

    /// Returns the directories that the taken changes move or remove.
    fn moved(&self, taken: &[bool]) -> HashMap<Ino, Option<NameKey>> {
        let mut moved = HashMap::new();
        let taken = || self.changes.iter().zip(taken).filter(|(_, taken)| **taken);
        for (change, _) in taken() {
            if let Some(old) = change.old
                && old.kind == PlainKind::Directory
            {
                moved.insert(old.ino, None);
            }
        }
        for (change, _) in taken() {
            if let Some(new) = &change.new
                && new.content == NewContent::Directory
            {
                moved.insert(new.ino, Some(change.key.clone()));
            }
        }
        moved
    }

    /// Returns the cost of a change; `None` if one of its paths is longer than a record can hold.
    fn cost(
        &self,
        change: &NameChange,
        old: &mut Lengths,
        new: &mut Lengths,
    ) -> Result<Option<u64>> {
        let parent = change.key.parent;
        let name = change.key.name.as_bytes().len() as u64 + 1;
        let mut cost = CHANGE;
        if change.old.is_some() {
            let dir = old.of(parent, |dir| self.snapshot.backend_link(dir))?;
            let path = dir.unwrap_or(0) + name;
            if path > OLD_PATH_BYTES {
                return Ok(None);
            }
            cost += PATHS * path;
        }
        if let Some(entry) = &change.new {
            let dir = new.of(parent, |dir| self.snapshot.mount_link(dir))?;
            let path = dir.unwrap_or(0) + name;
            if path > PATH_BYTES {
                return Ok(None);
            }
            cost += PATHS * path;
            if let NewContent::Node(Node::Symlink { target }) = &entry.content {
                cost += PATHS * target.len() as u64;
            }
            if !self.attributes.contains(&entry.ino) {
                cost = cost.saturating_add(self.cost_of_inode(entry.ino)?);
            }
        }
        Ok(Some(cost))
    }

    /// Returns the cost of the attributes of an inode under all its names, and the first of these.
    fn cost_of_attributes(
        &self,
        ino: Ino,
        new: &mut Lengths,
    ) -> Result<(Option<u64>, Option<NameKey>)> {
        let each = CHANGE.saturating_add(self.cost_of_inode(ino)?);
        let names = self.snapshot.names_of(ino)?;
        let mut cost = each;
        for key in &names {
            let dir = new.of(key.parent, |dir| self.snapshot.mount_link(dir))?;
            let path = dir.unwrap_or(0) + key.name.as_bytes().len() as u64 + 1;
            if path > PATH_BYTES {
                return Ok((None, names.into_iter().next()));
            }
            cost = cost.saturating_add(each).saturating_add(PATHS * path);
        }
        Ok((Some(cost), names.into_iter().next()))
    }

    /// Returns the cost of an inode's description under each of its names: its extended attributes,
    /// its holes.
    fn cost_of_inode(&self, ino: Ino) -> Result<u64> {
        let Some(Some(inode)) = self.inodes.get(&ino) else {
            return Ok(0);
        };
        let mut cost = 0;
        if inode.flags.has(Flags::XATTRS) {
            let sizes = self.snapshot.xattr_sizes(ino)?;
            // The count of names covers the fixed cost of each attribute.
            cost = (sizes.bytes.saturating_mul(XATTRS)).saturating_add(4 * sizes.names);
        }
        if inode.blocks.saturating_mul(512) < inode.size {
            cost = cost.saturating_add(HOLE * HOLES.min(inode.blocks / 8 + 1));
        }
        Ok(cost)
    }

    /// Joins changes that must go together, and orders those of which one must come first.
    fn bind(
        &self,
        parts: &mut WaitingChanges,
        told: &[(Ino, usize, Option<NameKey>)],
    ) -> Result<()> {
        let mut by_place: HashMap<(Ino, Vec<u8>), usize> = HashMap::new();
        let mut by_inode: HashMap<Ino, usize> = HashMap::new();
        let mut by_unit: HashMap<(Ino, &[u8]), usize> = HashMap::new();
        for (number, change) in self.changes.iter().enumerate() {
            // Names that the backend considers equal are one place.
            let fold = self.rules.fold(&change.key.name);
            let name = match fold.is_empty() {
                true => change.key.name.as_bytes().to_vec(),
                false => fold.to_vec(),
            };
            let place = by_place.entry((change.key.parent, name)).or_insert(number);
            parts.join(*place, number);
            let database = units::database_of(change.key.name.as_bytes());
            let unit = by_unit
                .entry((change.key.parent, database))
                .or_insert(number);
            parts.join(*unit, number);
            for ino in inodes_of(change) {
                parts.join(*by_inode.entry(ino).or_insert(number), number);
            }
        }
        for (ino, number, _) in told {
            if let Some(change) = by_inode.get(ino) {
                parts.join(*change, *number);
            }
        }
        self.bind_dirs(parts)
    }

    fn bind_dirs(&self, parts: &mut WaitingChanges) -> Result<()> {
        let dirs = self.dirs();
        let mut nearest: HashMap<Ino, Option<usize>> = HashMap::new();
        for (number, change) in self.changes.iter().enumerate() {
            let parent = change.key.parent;
            if let Some(removed) = dirs.removed.get(&parent) {
                parts.need(*removed, number);
            }
            let Some(new) = &change.new else { continue };
            if let Some(made) = dirs.made.get(&parent) {
                parts.need(number, *made);
            }
            // Two directories of which each moves into the other cannot be ordered one before the
            // other.
            if dirs.coming.get(&new.ino) == Some(&number)
                && let Some(above) = self.nearest(parent, &dirs, &mut nearest)?
            {
                parts.need(number, above);
            }
        }
        Ok(())
    }

    fn dirs(&self) -> Dirs {
        let mut dirs = Dirs::default();
        let mut had: HashMap<Ino, usize> = HashMap::new();
        for (number, change) in self.changes.iter().enumerate() {
            if let Some(old) = change.old
                && old.kind == PlainKind::Directory
            {
                had.insert(old.ino, number);
            }
        }
        for (number, change) in self.changes.iter().enumerate() {
            let Some(new) = &change.new else { continue };
            if new.content != NewContent::Directory {
                continue;
            }
            match had.remove(&new.ino) {
                Some(before) if before == number => {}
                Some(_) => drop(dirs.coming.insert(new.ino, number)),
                None => {
                    dirs.coming.insert(new.ino, number);
                    dirs.made.insert(new.ino, number);
                }
            }
        }
        dirs.removed = had;
        dirs
    }

    /// Returns the change that gives `dir`, or the nearest directory above it with a new name, that
    /// name.
    fn nearest(
        &self,
        dir: Ino,
        dirs: &Dirs,
        known: &mut HashMap<Ino, Option<usize>>,
    ) -> Result<Option<usize>> {
        let mut way = Vec::new();
        let mut at = dir;
        let found = loop {
            if let Some(coming) = dirs.coming.get(&at) {
                break Some(*coming);
            }
            if let Some(found) = known.get(&at) {
                break *found;
            }
            match self.snapshot.mount_link(at)? {
                Some(link) if at != Ino::ROOT => {
                    known.insert(at, None);
                    way.push(at);
                    at = link.parent;
                }
                _ => break None,
            }
        };
        for dir in way {
            known.insert(dir, found);
        }
        Ok(found)
    }
}

/// Returns the inodes that a change concerns.
fn inodes_of(change: &NameChange) -> impl Iterator<Item = Ino> {
    let old = change.old.map(|old| old.ino).filter(|ino| *ino != NOBODY);
    let new = change.new.as_ref().map(|new| new.ino);
    old.into_iter().chain(new)
}
