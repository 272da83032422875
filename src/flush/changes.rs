//! What a batch has changed on the backend, for those who follow it: a second copy, an audit.
//!
//! The list is made from the steps of the batch and from what became of them, before the batch ends
//! in the index. After a crash in between the recovery confirms the batch again and makes the list
//! again.

use std::collections::{HashMap, HashSet};

use crate::apply::Applied;
use crate::apply::journal::Journal;
use crate::apply::refused::{Back, StepNo};
use crate::core::RelPath;
use crate::format::steps::{ClearStep, PlaceStep, PlainKind, SlotNo};

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A file, link or special file has this name with new content; or a directory was made.
    Written,
    /// What was at `from` has this name. A directory comes with everything in it.
    Moved,
    /// The name is gone.
    Removed,
    /// Time, mode, owner or extended attributes have changed.
    Attributes,
}

/// One change on the backend. Paths are those of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What became of it.
    pub kind: ChangeKind,
    /// The name: before the batch if it was removed, else after it.
    pub path: RelPath,
    /// The name before the batch, if it was moved.
    pub from: Option<RelPath>,
    /// Whether it is a directory.
    pub is_dir: bool,
}

impl Change {
    fn new(kind: ChangeKind, path: &RelPath, is_dir: bool) -> Change {
        Change {
            kind,
            path: path.clone(),
            from: None,
            is_dir,
        }
    }

    fn moved(from: &RelPath, to: &RelPath, kind: PlainKind) -> Change {
        Change {
            from: Some(from.clone()),
            ..Change::new(ChangeKind::Moved, to, kind == PlainKind::Directory)
        }
    }
}

/// Returns what a batch has changed: first what was removed, then what was moved, under names of
/// the tree before the batch, then what was written and what got other attributes.
pub(super) fn changes_of(journal: &Journal, applied: &Applied) -> Vec<Change> {
    let steps = &journal.record.steps;
    let stayed: HashSet<&RelPath> = applied.kept.iter().chain(&applied.theirs).collect();
    let lost: HashSet<&RelPath> = (applied.vanished.iter())
        .chain(&applied.lost_dirs)
        .collect();
    let not_set: HashSet<&RelPath> = applied.not_set.iter().collect();
    let put_back = applied.refused.back.iter();
    let put_back: HashMap<usize, _> = put_back.map(|put| (put.step, put)).collect();
    let mut changes = Vec::new();
    let mut moved = Vec::new();
    let mut written = Vec::new();
    let mut detached: HashMap<SlotNo, (&RelPath, usize)> = HashMap::new();
    for (number, step) in steps.clear.iter().enumerate() {
        if applied.refused.has(StepNo::Clear(number)) || stayed.contains(step.path()) {
            continue;
        }
        match step {
            ClearStep::Detach { from, slot, .. } => {
                detached.insert(*slot, (from, number));
            }
            ClearStep::RemoveFile { path } => {
                changes.push(Change::new(ChangeKind::Removed, path, false));
            }
            ClearStep::RemoveDir { path } => {
                changes.push(Change::new(ChangeKind::Removed, path, true));
            }
        }
    }
    for (number, step) in steps.place.iter().enumerate() {
        let is_refused = applied.refused.has(StepNo::Place(number));
        let to = step.path();
        match step {
            PlaceStep::Attach { slot, kind, .. } => {
                let Some((from, clear)) = detached.get(slot) else {
                    continue;
                };
                let back = put_back.get(clear);
                let is_dir = *kind == PlainKind::Directory;
                let gone = || Change::new(ChangeKind::Removed, from, is_dir);
                match back.map(|put| (&put.back, &put.path)) {
                    Some((Back::There, _)) => {}
                    Some((Back::LostFound, _)) => changes.push(gone()),
                    Some((_, now)) => moved.push(Change::moved(from, now, *kind)),
                    None if is_refused || lost.contains(to) => changes.push(gone()),
                    None => moved.push(Change::moved(from, to, *kind)),
                }
            }
            _ if is_refused => {}
            PlaceStep::MakeDir { path } => {
                written.push(Change::new(ChangeKind::Written, path, true));
            }
            PlaceStep::Touch { path, .. } => {
                written.push(Change::new(ChangeKind::Attributes, path, false));
            }
            PlaceStep::Install { .. }
            | PlaceStep::Patch { .. }
            | PlaceStep::InstallNode { .. }
            | PlaceStep::Link { .. } => written.push(Change::new(ChangeKind::Written, to, false)),
        }
    }
    changes.append(&mut moved);
    changes.append(&mut written);
    let attributes = steps.attributes.iter().map(|step| &step.path);
    let changed = attributes.filter(|path| !not_set.contains(path));
    changes.extend(changed.map(|path| Change::new(ChangeKind::Attributes, path, false)));
    // Other programs' versions, which were in the way of ours.
    let theirs = applied.conflicts.iter();
    changes.extend(theirs.map(|(_, now)| Change::new(ChangeKind::Written, now, false)));
    changes
}
