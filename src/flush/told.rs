//! What a batch tells the catalog: which names it describes, and how. Decided when it is known what it carries.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;

use super::portion::BATCH_BYTES;
use super::subjects::{Subject, Subjects};
use super::{Flusher, Parts, Result};
use crate::backend::Capabilities;
use crate::base::{ContentHash, Ino, RelPath};
use crate::index::{Inode, Snapshot};
use crate::rules::catalog::chain::LogState;
use crate::rules::catalog::store::CatalogStore;
use crate::rules::catalog::{
    CatalogBatch, CatalogChange, CatalogTree, Description, Extent, check_description, segment,
};
use crate::rules::describe::{Facts, changes, describe, describes};
use crate::rules::plan::{NameKey, Placed, Plan};
use crate::rules::steps::{FileContent, Steps};
use crate::sys;

/// Most holes that are looked for in one file.
const HOLES: usize = 16_384;

/// What the batch that takes `steps` does to the catalog; `None` if the backend says all by itself, or nothing has changed.
/// A log that has merely become long is not rewritten where that would take more than a part of the space that is `left`.
pub(super) fn catalog_of(
    (parts, capabilities): (&Parts, &Capabilities),
    plan: &Plan,
    steps: &Steps<FileContent>,
    (subjects, left): (&Subjects, u64),
) -> Result<Option<CatalogBatch>> {
    // Only a confirmation changes the mirror, and this is the thread that confirms.
    let snapshot = parts.index.snapshot()?;
    let sets = descriptions((parts, capabilities), plan, subjects);
    if sets.is_empty() && snapshot.catalog_is_empty()? {
        return Ok(None);
    }
    let changes = changes(steps, &subjects.gone, sets);
    if changes.is_empty() {
        return Ok(None);
    }
    let live = snapshot.catalog_bytes()?;
    // Once in the record and once as a segment, and some to spare.
    let may_rewrite = live.saturating_mul(4) <= left && live <= 2 * BATCH_BYTES;
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

/// All that is known once `changes` have been taken. Held in memory: it is the size of what it describes, and written seldom.
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

/// What is to be said of each name that the batch brings up to date.
fn descriptions(
    (parts, capabilities): (&Parts, &Capabilities),
    plan: &Plan,
    subjects: &Subjects,
) -> Vec<(RelPath, Description)> {
    let carried = Carried::new(plan);
    let owners = sys::owners::system();
    let mut sets = Vec::new();
    for subject in subjects.names.iter().filter(|it| carried.has(it)) {
        let facts = facts(parts, subject);
        let Some(told) = describe(facts, subject.known.is_some(), capabilities, owners) else {
            continue;
        };
        match check_description(&told) {
            Ok(()) => sets.push((subject.path.clone(), told)),
            // One odd name must not keep the others from the drive.
            Err(problem) => {
                let path = &subject.path;
                tracing::error!(%path, problem, "its attributes cannot be written to the catalog");
            }
        }
    }
    sets
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
        name: subject.name.clone(),
        holes: holes(parts, inode, subject.known.as_ref()),
    }
}

/// Where a file has holes: its object knows, and if there is none any more, what was told before.
fn holes(parts: &Parts, inode: &Inode, known: Option<&Description>) -> Vec<Extent> {
    if inode.kind() != crate::base::FileKind::Regular
        || inode.blocks.saturating_mul(512) >= inode.size
    {
        return Vec::new();
    }
    if let Some(object) = inode.object
        && let Ok(file) = parts.store.open_object(object)
    {
        let holes = holes_in(&file, inode.size);
        // A clean object may have been changed in place since the cut: then they are not those of the cut.
        let now = parts.index.lock().inode(inode.ino).ok().flatten();
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

/// Changes taken into the mirror under one hold of the index lock.
const CHUNK: usize = 256;

impl Flusher {
    /// Brings the mirror to where the segment has brought the catalog on the drive. In several transactions, each of which notes how
    /// far it has come, so that this may be interrupted and repeated.
    pub(super) fn confirm_catalog(&self, batch: &CatalogBatch) -> Result<()> {
        let bytes = segment::encode(self.parts.volume, batch);
        let hash = segment::hash_of(&bytes).unwrap_or(ContentHash([0; 32]));
        let (log, taken) = {
            let state = self.parts.index.lock();
            (state.catalog_log()?, state.catalog_taken(batch.segment)?)
        };
        let after = log.with(batch, hash, bytes.len() as u64);
        if after == log {
            return Ok(()); // Noted before.
        }
        if !batch.full && log.head.map(|head| head.hash) != batch.after {
            // Not to be had without looking at the drive: the next flush or attach does.
            tracing::warn!(
                segment = batch.segment,
                "what is known of the catalog is read anew"
            );
            let mut state = self.parts.index.lock();
            state.set_catalog_log(&LogState::default())?;
            state.commit()?;
            return Ok(());
        }
        let mut done = taken.min(batch.changes.len());
        if done == 0 && batch.full {
            self.parts.index.lock().clear_catalog()?;
        }
        for chunk in batch.changes[done..].chunks(CHUNK) {
            let mut state = self.parts.index.lock();
            for change in chunk {
                state.take(change)?;
            }
            done += chunk.len();
            state.set_catalog_taken(batch.segment, done)?;
            state.commit()?;
        }
        {
            let mut state = self.parts.index.lock();
            state.empty_catalog_slots()?;
            state.set_catalog_log(&after)?;
            state.commit()?;
        }
        Ok(self.parts.index.sweep_catalog()?)
    }
}
