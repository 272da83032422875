//! What the index concludes of a batch: derived from the plan's outcomes when the batch is committed, noted when it is applied.

use std::collections::BTreeMap;

use super::Flusher;
use super::apply::Applied;
use super::gather::Gathered;
use super::journal::Journal;
use super::report::{FlushError, Result};
use super::stage::Staged;
use crate::base::steps::CacheStep;
use crate::base::{Ino, Name, RelPath, Seq, Timestamp};
use crate::index::{BatchState, BatchSummary, Confirmed, PlacedEntry, State};
use crate::rules::delta::NOBODY;
use crate::rules::plan::{NameKey, Outcome, Placed, Plan};
use crate::rules::steps::{FileContent, PlaceStep, PlainKind, SlotNo};

/// Names noted under one hold of the index lock.
const CHUNK: usize = 256;

/// What is in a slot: a file, or a node and the size that is told of it.
enum Staging {
    File(FileContent),
    Node(u64),
}

/// What holds for each name once the steps of `staged` have been taken.
pub(super) fn conclusions(plan: &Plan, gathered: &Gathered, staged: &Staged) -> Vec<Confirmed> {
    let place = staged.steps.place.iter();
    let contents: BTreeMap<SlotNo, Staging> = place
        .filter_map(|step| match step {
            PlaceStep::Install { slot, content, .. } => Some((*slot, Staging::File(*content))),
            PlaceStep::InstallNode { slot, node, .. } => Some((*slot, Staging::Node(node.size()))),
            _ => None,
        })
        .collect();
    let left: std::collections::BTreeSet<_> =
        plan.left_behind.iter().map(|left| &left.key).collect();
    let mut confirmed: Vec<Confirmed> = plan
        .outcomes
        .iter()
        .map(|outcome| {
            let settled = !left.contains(&outcome.key);
            Confirmed {
                key: outcome.key.clone(),
                placed: placed(outcome, gathered, &contents),
                settled,
                inode_settled: settled,
            }
        })
        .collect();
    for key in &plan.leftovers {
        let before = gathered.before.get(key);
        confirmed.push(Confirmed {
            key: key.clone(),
            placed: before.map(|entry| PlacedEntry {
                ino: NOBODY,
                ..entry.clone()
            }),
            settled: false,
            inode_settled: false,
        });
    }
    for key in &gathered.settled {
        confirmed.push(Confirmed {
            key: key.clone(),
            placed: None,
            settled: true,
            inode_settled: false,
        });
    }
    confirmed
}

fn placed(
    outcome: &Outcome,
    gathered: &Gathered,
    contents: &BTreeMap<SlotNo, Staging>,
) -> Option<PlacedEntry> {
    match &outcome.placed {
        Placed::Nothing => None,
        Placed::Directory(ino) => Some(PlacedEntry {
            ino: *ino,
            kind: PlainKind::Directory,
            size: 0,
            mtime: Timestamp(0),
            hash: None,
        }),
        Placed::Kept {
            ino,
            from,
            modified,
        } => {
            let before = gathered.before.get(from)?;
            Some(PlacedEntry {
                ino: *ino,
                mtime: modified.unwrap_or(before.mtime),
                ..before.clone()
            })
        }
        Placed::Staged { ino, slot } => {
            let (size, mtime, hash) = match contents.get(slot)? {
                Staging::File(content) => (content.size, content.modified, Some(content.hash)),
                Staging::Node(size) => {
                    let inode = gathered.inodes.get(ino);
                    let mtime = inode.map_or(Timestamp(0), |inode| inode.mtime);
                    (*size, mtime, None)
                }
            };
            Some(PlacedEntry {
                ino: *ino,
                kind: PlainKind::File,
                size,
                mtime,
                hash,
            })
        }
    }
}

impl Flusher {
    /// Notes what holds for each name, in several transactions. May be repeated.
    pub(super) fn note_conclusions(&self, journal: &Journal, cut: Seq) -> Result<()> {
        for chunk in journal.confirmed.chunks(CHUNK) {
            let mut state = self.parts.index.lock();
            state.confirm_names(cut, chunk)?;
            state.commit()?;
        }
        for chunk in journal.attributes.chunks(CHUNK) {
            let mut state = self.parts.index.lock();
            state.confirm_attributes(cut, chunk)?;
            state.commit()?;
        }
        Ok(())
    }

    /// The backend has nothing at `path`: the name is marked, so that the next batch puts the file there if the cache has it.
    fn note_vanished(&self, path: &RelPath, cut: Seq) -> Result<()> {
        let mut state = self.parts.index.lock();
        let Some((dir, name)) = path.split_last() else {
            return Ok(());
        };
        let Some(parent) = find(&mut state, &dir)? else {
            return Ok(()); // Renamed since; the index finds out when it is read.
        };
        mark_gone(&mut state, NameKey { parent, name }, cut)?;
        Ok(state.commit().map(drop)?)
    }

    /// The backend has lost what was in the directory at `path`: all that the index believes to be there is marked, so that the
    /// next batch puts back what the cache has of it.
    fn note_lost_dir(&self, path: &RelPath, cut: Seq) -> Result<()> {
        let mut state = self.parts.index.lock();
        let Some(dir) = find(&mut state, path)? else {
            return Ok(());
        };
        let mut open = vec![dir];
        while let Some(parent) = open.pop() {
            for (name, entry) in state.placed_in(parent)? {
                if entry.kind == PlainKind::Directory {
                    open.push(entry.ino);
                }
                mark_gone(&mut state, NameKey { parent, name }, cut)?;
            }
        }
        Ok(state.commit().map(drop)?)
    }

    /// Notes what the batch has left on the backend, ends it, and makes that durable. May be repeated.
    pub(super) fn confirm(
        &self,
        journal: &Journal,
        applied: &Applied,
        cut: Seq,
        outcome: &str,
    ) -> Result<()> {
        // What is lost first: what the batch has placed in a directory that was lost is there.
        for path in &applied.lost_dirs {
            self.note_lost_dir(path, cut)?;
        }
        self.note_conclusions(journal, cut)?;
        for path in applied.vanished.iter().chain(&applied.not_linked) {
            self.note_vanished(path, cut)?;
        }
        if let Some(batch) = &journal.record.catalog {
            self.confirm_catalog(batch)?;
        }
        let summary = BatchSummary {
            batch: journal.record.batch,
            time: self.parts.clock.now(),
            files: journal.files,
            bytes: journal.bytes,
            outcome: outcome.into(),
        };
        self.parts
            .index
            .lock()
            .end_batch(BatchState::Done, &summary)?;
        self.parts.hooks.sync_cache().map_err(FlushError::Sync)?;
        self.before(CacheStep::RemoveJournal)?;
        Journal::remove(&self.parts.journals, journal.record.batch)
    }
}

/// Notes that the backend has nothing under a name, and marks it for the next batch.
fn mark_gone(state: &mut State, key: NameKey, cut: Seq) -> Result<()> {
    let gone = Confirmed {
        key: key.clone(),
        placed: None,
        settled: false,
        inode_settled: false,
    };
    state.confirm_names(cut, &[gone])?;
    Ok(state.mark_name(key.parent, &key.name)?)
}

/// The inode that the mount has at `path`, which is spelled as on the backend.
pub(super) fn find(state: &mut State, path: &RelPath) -> Result<Option<Ino>> {
    let mut at = Ino::ROOT;
    for bytes in path.components() {
        let Ok(name) = Name::new(bytes) else {
            return Ok(None);
        };
        match state.lookup_stored(at, &name)? {
            Some(ino) => at = ino,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}
