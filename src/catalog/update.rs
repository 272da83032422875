//! Decides what a batch writes to the catalog: which names it describes, and how. It runs when the
//! contents of the batch are known.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;

use crate::cache::Store;
use crate::catalog::candidates::{NameOfCut, Subjects};
use crate::core::{Capabilities, Ino, RelPath};
use crate::error::Result;
use crate::format::catalog::store::CatalogStore;
use crate::format::catalog::{
    CatalogBatch, CatalogChange, CatalogTree, Description, Extent, check_description,
};
use crate::format::steps::{FileContent, Steps};
use crate::index::{Flags, Index, Inode, Snapshot};
use crate::plan::describe::{Facts, changes, describe, describes};
use crate::plan::planner::{NameKey, Placed, Plan};
use crate::sys;

/// The most holes that are looked for in one file.
const HOLES: usize = 16_384;

/// The sources of facts about files.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) index: &'a Index,
    pub(crate) store: &'a Store,
    pub(crate) capabilities: &'a Capabilities,
}

/// Space for the catalog.
#[derive(Clone, Copy)]
pub(crate) struct CatalogSpace {
    /// Free bytes on the backend in addition to the batch.
    pub(crate) left: u64,
    /// The longest catalog that is rewritten as a whole, in bytes.
    pub(crate) longest: u64,
}

/// Returns the catalog changes of the batch that takes `steps`; `None` if the backend stores
/// everything itself, or nothing has changed. A log that has only become long is not rewritten if
/// the rewrite needs more than a part of the free space.
pub(crate) fn catalog_of(
    sources: Sources<'_>,
    plan: &Plan,
    steps: &Steps<FileContent>,
    (subjects, room): (&Subjects, CatalogSpace),
) -> Result<Option<CatalogBatch>> {
    // Only a confirmation changes the mirror, and confirmations run on this thread.
    let snapshot = sources.index.snapshot()?;
    let sets = descriptions(sources, plan, subjects);
    if sets.is_empty() && snapshot.catalog_is_empty()? {
        return Ok(None);
    }
    let changes = changes(steps, &subjects.gone, sets);
    if changes.is_empty() {
        return Ok(None);
    }
    let live = snapshot.catalog_bytes()?;
    // The bytes go once into the record and once into a segment; the rest is a margin.
    let may_rewrite = live.saturating_mul(4) <= room.left && live <= room.longest;
    let log = snapshot.catalog_log()?;
    let next = log.next(if may_rewrite { live } else { u64::MAX });
    Ok(Some(CatalogBatch {
        segment: next.number,
        after: next.after,
        full: next.full,
        changes: match next.full {
            true => whole(&snapshot, &changes)?,
            false => changes,
        },
    }))
}

/// Returns all entries after `changes`. They are held in memory: their size is bounded by what they
/// describe, and a rewrite is rare.
fn whole(snapshot: &Snapshot, changes: &[CatalogChange]) -> Result<Vec<CatalogChange>> {
    let mut tree = CatalogTree::new();
    snapshot.whole_catalog(|path, description| {
        let Ok(()) = tree.set(&path, &description);
        Ok(())
    })?;
    for change in changes {
        let Ok(()) = tree.take(change);
    }
    Ok(tree.whole())
}

/// Returns the description of each name that the batch brings up to date.
fn descriptions(
    sources: Sources<'_>,
    plan: &Plan,
    subjects: &Subjects,
) -> Vec<(RelPath, Description)> {
    let updated = Updated::new(plan);
    let owners = sys::owners::system();
    let mut sets = Vec::new();
    for subject in subjects.names.iter().filter(|it| updated.has(it)) {
        let facts = facts(sources, subject);
        let needed = subject.known.is_some() || subject.inode.flags.has(Flags::ATTR_REFUSED);
        let Some(description) = describe(facts, needed, sources.capabilities, owners) else {
            continue;
        };
        match check_description(&description) {
            Ok(()) => sets.push((subject.path.clone(), description)),
            // One odd name must not keep the others from the drive.
            Err(problem) => {
                let path = &subject.path;
                tracing::error!(%path, problem, "cannot write its attributes to the catalog");
            }
        }
    }
    sets
}

/// The names that a plan brings up to date.
struct Updated<'a> {
    outcomes: HashMap<&'a NameKey, Ino>,
    /// Names in the plan without an outcome keep their old state.
    left_names: BTreeSet<&'a NameKey>,
    left: BTreeSet<Ino>,
}

impl<'a> Updated<'a> {
    fn new(plan: &'a Plan) -> Updated<'a> {
        let mut outcomes = HashMap::new();
        for outcome in &plan.outcomes {
            let ino = match &outcome.placed {
                Placed::Nothing => continue,
                Placed::Directory(ino) | Placed::Kept { ino, .. } | Placed::Staged { ino, .. } => {
                    *ino
                }
            };
            outcomes.insert(&outcome.key, ino);
        }
        Updated {
            outcomes,
            left_names: plan.left_behind.iter().map(|left| &left.key).collect(),
            left: plan.left_behind.iter().map(|left| left.ino).collect(),
        }
    }

    /// Returns whether the backend has the cut's version of a name after the steps.
    fn has(&self, subject: &NameOfCut) -> bool {
        let ino = subject.inode.ino;
        let Some(key) = &subject.key else {
            return true;
        };
        match self.outcomes.get(key) {
            Some(placed) => *placed == ino && !self.left_names.contains(key),
            // Not in the plan: the name has no entry on the backend, or only its attributes have
            // changed.
            None => !self.left.contains(&ino),
        }
    }
}

fn facts(sources: Sources<'_>, subject: &NameOfCut) -> Facts {
    let inode = &subject.inode;
    Facts {
        kind: inode.kind(),
        permissions: inode.mode & 0o7777,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size: inode.size,
        modified: inode.mtime,
        target: inode.target.clone(),
        link: subject.link,
        xattrs: subject.xattrs.clone(),
        name: subject.name.clone(),
        holes: holes(sources, inode, subject.known.as_ref()),
    }
}

/// Returns the holes of a file, from its object. Without an object it returns the holes of the last
/// description.
fn holes(sources: Sources<'_>, inode: &Inode, known: Option<&Description>) -> Vec<Extent> {
    if inode.kind() != crate::core::FileKind::Regular
        || inode.blocks.saturating_mul(512) >= inode.size
    {
        return Vec::new();
    }
    if let Some(object) = inode.object
        && let Ok(file) = sources.store.open_object(object)
    {
        let holes = holes_in(&file, inode.size);
        // A clean object may have been changed in place since the cut; its holes are then not those
        // of the cut.
        let now = sources.index.lock().inode(inode.ino).ok().flatten();
        let same =
            now.is_some_and(|now| (now.object, now.data_seq) == (inode.object, inode.data_seq));
        return if same { holes } else { Vec::new() };
    }
    let same = |known: &&Description| describes(known, inode.size, inode.mtime, 0);
    known
        .filter(same)
        .map(|known| known.holes.clone())
        .unwrap_or_default()
}

/// Returns the holes that the file's own file system reports. On an error the rest counts as data
/// and is stored as zeros.
fn holes_in(file: &File, size: u64) -> Vec<Extent> {
    let mut holes = Vec::new();
    let mut at = 0;
    while at < size && holes.len() < HOLES {
        let Ok(Some(hole)) = sys::file::next_hole(file, at) else {
            break;
        };
        let end = match sys::file::next_data(file, hole) {
            Ok(Some(data)) => data.min(size),
            Ok(None) => size,
            Err(_) => break,
        };
        if hole >= size || end <= hole {
            break;
        }
        holes.push(Extent {
            offset: hole,
            length: end - hole,
        });
        at = end;
    }
    holes
}
