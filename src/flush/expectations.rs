//! What a batch expects of the files that it moves, replaces and removes, read from the gathered
//! difference.

use std::collections::{HashMap, HashSet};

use crate::apply::move_backup::MovedDir;
use crate::apply::move_backup::MovedFile;
use crate::apply::move_backup::Moves;
use crate::core::{Ino, RelPath};
use crate::flush::diff::Gathered;
use crate::flush::stage::Staged;
use crate::format::expectations::{Expectations, ExpectedFile};
use crate::format::steps::{ClearStep, PlaceStep, PlainKind, Steps};
use crate::index::PlacedEntry;
use crate::plan::planner::StageSource;

/// The names of a batch by path.
pub(super) struct Before<'a> {
    old: HashMap<RelPath, &'a PlacedEntry>,
    old_dirs: HashMap<RelPath, Ino>,
    new: HashMap<RelPath, &'a PlacedEntry>,
}

impl<'a> Before<'a> {
    pub(super) fn new(gathered: &'a Gathered) -> Before<'a> {
        let mut before = Before {
            old: HashMap::new(),
            old_dirs: HashMap::new(),
            new: HashMap::new(),
        };
        for (key, entry) in &gathered.before {
            let Some(paths) = gathered.delta.dirs.get(&key.parent) else {
                continue;
            };
            if entry.kind == PlainKind::Directory {
                if let Some(dir) = &paths.old {
                    before.old_dirs.insert(dir.join(&key.name), entry.ino);
                }
                continue;
            }
            if let Some(dir) = &paths.old {
                before.old.insert(dir.join(&key.name), entry);
            }
            if let Some(dir) = &paths.new {
                before.new.insert(dir.join(&key.name), entry);
            }
        }
        before
    }

    /// Returns the file that the backend has at `path`, a path after the batch, if the name is
    /// among those that differ.
    pub(super) fn file_at(&self, path: &RelPath) -> Option<&'a PlacedEntry> {
        self.new.get(path).copied()
    }

    /// Returns what the steps of a batch move.
    pub(super) fn moves<'s>(&self, staged: &'s Staged) -> Moves<'s> {
        let mut moves = Moves {
            files: Vec::new(),
            dirs: Vec::new(),
            cleared: HashSet::new(),
            installed: HashSet::new(),
        };
        let mut attached = HashMap::new();
        for step in &staged.steps.place {
            match step {
                PlaceStep::Install { to, .. }
                | PlaceStep::Patch { to, .. }
                | PlaceStep::InstallNode { to, .. }
                | PlaceStep::Link { to, .. } => {
                    moves.installed.insert(to);
                }
                PlaceStep::Attach { slot, to, kind } => {
                    attached.insert(*slot, to);
                    if *kind == PlainKind::File {
                        moves.installed.insert(to);
                    }
                }
                _ => {}
            }
        }
        for step in &staged.steps.clear {
            match step {
                ClearStep::Detach { from, slot, .. } => {
                    moves.cleared.insert(from);
                    if let Some(entry) = self.old.get(from) {
                        moves.files.push(MovedFile {
                            slot: *slot,
                            from,
                            ino: entry.ino,
                            size: entry.size,
                        });
                    } else if let (Some(ino), Some(to)) =
                        (self.old_dirs.get(from), attached.get(slot))
                    {
                        let (slot, ino) = (*slot, *ino);
                        moves.dirs.push(MovedDir {
                            slot,
                            from,
                            to,
                            ino,
                        });
                    }
                }
                ClearStep::RemoveFile { path } | ClearStep::RemoveDir { path } => {
                    moves.cleared.insert(path);
                }
            }
        }
        for (slot, source) in &staged.sources {
            if let StageSource::Backend { ino, path, .. } = source {
                moves.files.push(MovedFile {
                    slot: *slot,
                    from: path,
                    ino: *ino,
                    size: self.old.get(path).map_or(u64::MAX, |entry| entry.size),
                });
            }
        }
        moves
    }

    /// Returns what the batch expects of the files that its steps touch.
    pub(super) fn known<C>(&self, steps: &Steps<C>) -> Expectations {
        let mut known = Expectations::default();
        for step in &steps.clear {
            match step {
                ClearStep::Detach { from, slot, .. } => {
                    if let Some(entry) = self.old.get(from) {
                        known.moved.insert(*slot, believed(entry));
                    }
                }
                ClearStep::RemoveFile { path } => {
                    if let Some(entry) = self.old.get(path) {
                        known.removed.insert(path.clone(), believed(entry));
                    }
                }
                ClearStep::RemoveDir { .. } => {}
            }
        }
        for step in &steps.place {
            let Some(entry) = self.new.get(step.path()) else {
                continue;
            };
            match step {
                PlaceStep::Install { slot, .. }
                | PlaceStep::Patch { slot, .. }
                | PlaceStep::InstallNode { slot, .. }
                | PlaceStep::Attach { slot, .. } => {
                    known.replaced.insert(*slot, believed(entry));
                }
                // A further name goes through no slot.
                PlaceStep::Link { to, .. } => {
                    let removed = known.removed.entry(to.clone());
                    removed.or_insert_with(|| believed(entry));
                }
                PlaceStep::MakeDir { .. } | PlaceStep::Touch { .. } => {}
            }
        }
        known
    }
}

fn believed(entry: &PlacedEntry) -> ExpectedFile {
    ExpectedFile {
        size: entry.size,
        modified: entry.mtime,
        hash: entry.hash,
    }
}
