//! What a batch knows of the files that it moves, replaces and removes, read from what was gathered for it.

use std::collections::HashMap;

use super::gather::Gathered;
use super::stage::Staged;
use crate::base::{Ino, RelPath};
use crate::index::PlacedEntry;
use crate::rules::known::{Believed, Known};
use crate::rules::plan::StageSource;
use crate::rules::steps::{ClearStep, PlaceStep, PlainKind, SlotNo, Steps};

/// A file that is moved: where it stands, and whose it is.
pub(super) struct MovedFile<'a> {
    pub(super) slot: SlotNo,
    pub(super) from: &'a RelPath,
    pub(super) ino: Ino,
    pub(super) size: u64,
}

/// The names of a batch by path.
pub(super) struct Before<'a> {
    old: HashMap<RelPath, &'a PlacedEntry>,
    new: HashMap<RelPath, &'a PlacedEntry>,
}

impl<'a> Before<'a> {
    pub(super) fn new(gathered: &'a Gathered) -> Before<'a> {
        let mut before = Before {
            old: HashMap::new(),
            new: HashMap::new(),
        };
        let files = gathered.before.iter();
        for (key, entry) in files.filter(|(_, entry)| entry.kind == PlainKind::File) {
            let Some(paths) = gathered.delta.dirs.get(&key.parent) else {
                continue;
            };
            if let Some(dir) = &paths.old {
                before.old.insert(dir.join(&key.name), entry);
            }
            if let Some(dir) = &paths.new {
                before.new.insert(dir.join(&key.name), entry);
            }
        }
        before
    }

    /// The files whose bytes no object is pinned for: those that are moved, and those that were copied from the backend.
    pub(super) fn to_keep<'s>(&self, staged: &'s Staged) -> Vec<MovedFile<'s>> {
        let moved = staged.steps.clear.iter().filter_map(|step| match step {
            ClearStep::Detach {
                from,
                slot,
                kind: PlainKind::File,
            } => self.old.get(from).map(|entry| MovedFile {
                slot: *slot,
                from,
                ino: entry.ino,
                size: entry.size,
            }),
            _ => None,
        });
        let copied = staged
            .sources
            .iter()
            .filter_map(|(slot, source)| match source {
                StageSource::Backend { ino, path, .. } => Some(MovedFile {
                    slot: *slot,
                    from: path,
                    ino: *ino,
                    size: self.old.get(path).map_or(u64::MAX, |entry| entry.size),
                }),
                StageSource::Object { .. } => None,
            });
        moved.chain(copied).collect()
    }

    /// What is known of the files that the steps touch.
    pub(super) fn known<C>(&self, steps: &Steps<C>) -> Known {
        let mut known = Known::default();
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
            if let PlaceStep::Install { slot, to, .. } | PlaceStep::Attach { slot, to, .. } = step
                && let Some(entry) = self.new.get(to)
            {
                known.replaced.insert(*slot, believed(entry));
            }
        }
        known
    }
}

fn believed(entry: &PlacedEntry) -> Believed {
    Believed {
        size: entry.size,
        modified: entry.mtime,
        hash: entry.hash,
    }
}
