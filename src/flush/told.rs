//! What a batch tells the catalog: which names it describes, and how. Decided when it is known what it carries.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;

use super::Parts;
use super::subjects::{Subject, Subjects};
use crate::base::Ino;
use crate::index::Inode;
use crate::rules::catalog::{CatalogChange, Description, Extent};
use crate::rules::describe::{Facts, changes, describe, describes};
use crate::rules::plan::{NameKey, Placed, Plan};
use crate::rules::steps::{FileContent, Steps};
use crate::sys;

/// Most holes that are looked for in one file.
const HOLES: usize = 16_384;

/// The changes of the catalog that go with `steps`; none if there is nothing that the backend does not say by itself.
pub(super) fn changes_of(
    parts: &Parts,
    plan: &Plan,
    steps: &Steps<FileContent>,
    subjects: &Subjects,
    catalog_is_empty: bool,
) -> Vec<CatalogChange> {
    let carried = Carried::new(plan);
    let owners = sys::owners::system();
    let mut sets = Vec::new();
    for subject in subjects.names.iter().filter(|it| carried.has(it)) {
        let facts = facts(parts, subject);
        if let Some(told) = describe(facts, subject.described, &parts.capabilities, owners) {
            sets.push((subject.path.clone(), told));
        }
    }
    if sets.is_empty() && catalog_is_empty {
        return Vec::new();
    }
    changes(steps, &subjects.gone, sets)
}

/// What a plan brings up to date.
struct Carried<'a> {
    outcomes: HashMap<&'a NameKey, Ino>,
    /// Names that are in the plan and have no outcome keep what they have.
    left_names: BTreeSet<&'a NameKey>,
    left: BTreeSet<Ino>,
}

impl<'a> Carried<'a> {
    fn new(plan: &'a Plan) -> Carried<'a> {
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
        Carried {
            outcomes,
            left_names: plan.left_behind.iter().map(|left| &left.key).collect(),
            left: plan.left_behind.iter().map(|left| left.ino).collect(),
        }
    }

    /// Whether the backend has the cut's version of a name once the steps are taken.
    fn has(&self, subject: &Subject) -> bool {
        let ino = subject.inode.ino;
        let Some(key) = &subject.key else {
            return true;
        };
        match self.outcomes.get(key) {
            Some(placed) => *placed == ino && !self.left_names.contains(key),
            // Not in the plan: it has no entry there, or nothing but its attributes has changed.
            None => !self.left.contains(&ino),
        }
    }
}

fn facts(parts: &Parts, subject: &Subject) -> Facts {
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
        name: None,
        holes: holes(parts, inode, subject.known.as_ref()),
    }
}

/// Where a file has holes: its object knows, and if there is none any more, what was told before.
fn holes(parts: &Parts, inode: &Inode, known: Option<&Description>) -> Vec<Extent> {
    if inode.kind() != crate::base::FileKind::Regular || inode.blocks * 512 >= inode.size {
        return Vec::new();
    }
    if let Some(object) = inode.object
        && let Ok(file) = parts.store.open_object(object)
    {
        return holes_in(&file, inode.size);
    }
    let same = |known: &&Description| describes(known, inode.size, inode.mtime, 0);
    known
        .filter(same)
        .map(|known| known.holes.clone())
        .unwrap_or_default()
}

/// What the file's own file system calls its holes. A hole that cannot be found out about is none: it is stored as zeros.
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
