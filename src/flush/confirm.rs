//! Confirmation: what a batch has left on the backend is noted in the index, and the batch ends.
//!
//! Each step of it may be repeated: until the batch has ended in the index, a crash leaves its
//! journal and its record, and the next recovery takes the steps again and confirms again.

use std::collections::HashSet;

use crate::apply::Applied;
use crate::apply::journal::Journal;
use crate::apply::refused::{Back, StepNo};
use crate::core::cache_step::CacheStep;
use crate::core::{Ino, RelPath, Seq};
use crate::error::Result;
use crate::flush::Flusher;
use crate::flush::changes::changes_of;
use crate::flush::conclusions::Concluded;
use crate::format::expectations::ExpectedFile;
use crate::format::steps::{ClearStep, PlaceStep, PlainKind};
use crate::index::{BatchEnd, BatchSummary, Confirmed, Flags, IndexWriter, PlacedEntry};
use crate::plan::delta::NOBODY;
use crate::plan::planner::NameKey;

/// Names noted under one hold of the index lock.
const CHUNK: usize = 256;

impl Flusher {
    /// Forgets the blocks of files that could not be patched. The next batch writes them whole.
    fn forget_unpatched(&self, journal: &Journal, applied: &Applied) {
        let record = &journal.record;
        for refusal in &applied.refused.steps {
            if let StepNo::Place(number) = refusal.step
                && let Some(PlaceStep::Patch { slot, .. }) = record.steps.place.get(number)
            {
                let replaced = record.known.replaced.get(slot);
                self.parts.patching.forget(replaced.and_then(|it| it.hash));
            }
        }
    }

    /// Derives what the index is to conclude from a batch, and marks the names that were refused.
    fn conclude(&self, journal: &Journal, applied: &Applied) -> Result<Concluded> {
        let (mut concluded, exceptions) = Concluded::of(journal, applied)?;
        let placed: HashSet<Ino> = concluded
            .names
            .iter()
            .filter_map(|name| Some(name.placed.as_ref()?.ino))
            .collect();
        let mut state = self.parts.index.lock();
        for key in exceptions.as_before.iter().chain(&exceptions.emptied) {
            // The mark may have been that of the inode, which another name settles.
            state.mark_left_behind(|state| state.mark_name(key.parent, &key.name))?;
        }
        for key in exceptions.as_before {
            let Some(entry) = state.placed(key.parent, &key.name)? else {
                continue;
            };
            // An older version of a file that has newer bytes under another name must not be taken
            // for it.
            if entry.kind == PlainKind::File && placed.contains(&entry.ino) {
                concluded.names.push(Confirmed {
                    key: key.clone(),
                    placed: Some(PlacedEntry {
                        ino: NOBODY,
                        ..entry
                    }),
                    settled: false,
                    inode_settled: false,
                });
            }
        }
        Ok(concluded)
    }

    /// Notes the places of files that could neither be moved nor put back. Comes before the other
    /// conclusions, because the bytes of these files are on the backend all the time.
    fn note_relocated(&self, journal: &Journal, applied: &Applied, cut: Seq) -> Result<()> {
        for put in &applied.refused.back {
            let (Some((key, ino)), Some(step)) = (
                journal.keys.clear.get(put.step),
                journal.record.steps.clear.get(put.step),
            ) else {
                continue;
            };
            let key = match &put.back {
                Back::There | Back::LostFound => continue,
                Back::Beside(name) => NameKey {
                    parent: key.parent,
                    name: name.clone(),
                },
                Back::AtRoot(name) => NameKey {
                    parent: Ino::ROOT,
                    name: name.clone(),
                },
            };
            let ClearStep::Detach { slot, kind, .. } = step else {
                continue;
            };
            let known = journal.record.known.moved.get(slot);
            let known = known.copied().unwrap_or(ExpectedFile::ANYTHING);
            let there = Confirmed {
                key: key.clone(),
                placed: Some(PlacedEntry {
                    ino: *ino,
                    kind: *kind,
                    size: known.size,
                    mtime: known.modified,
                    hash: known.hash,
                }),
                settled: false,
                inode_settled: false,
            };
            let mut state = self.parts.index.lock();
            state.confirm_names(cut, &[there])?;
            state.mark_left_behind(|state| state.mark_name(key.parent, &key.name))?;
            state.commit()?;
        }
        Ok(())
    }

    /// Marks the attributes that the backend has refused, for the next batch. They count as changed
    /// after the cut, because the conclusions settle everything before it.
    fn keep_attributes(&self, applied: &Applied) -> Result<()> {
        for path in applied.not_set.iter().chain(&applied.not_touched) {
            let mut state = self.parts.index.lock();
            let Some(ino) = state.find_placed(path)? else {
                continue;
            };
            if let Some(mut inode) = state.inode(ino)? {
                inode.flags.set(Flags::ATTR_REFUSED);
                state.mark_left_behind(|state| state.note_attributes(&mut inode))?;
                state.put_inode(inode);
            }
            state.commit()?;
        }
        Ok(())
    }

    /// Marks the refused files, and everything below them, to be described again: the catalog
    /// describes them as if they had been placed.
    fn describe_again(&self, journal: &Journal, applied: &Applied) -> Result<()> {
        let clear = applied.refused.back.iter();
        let moved = clear.filter_map(|put| journal.keys.clear.get(put.step));
        let place = applied.refused.steps.iter();
        let refused = place.filter_map(|refusal| match refusal.step {
            StepNo::Place(number) => journal.keys.place.get(number),
            StepNo::Clear(number) => journal.keys.clear.get(number),
        });
        let mut open: Vec<Ino> = moved.chain(refused).map(|(_, ino)| *ino).collect();
        let mut seen = HashSet::new();
        while let Some(ino) = open.pop() {
            if !seen.insert(ino) {
                continue;
            }
            let mut state = self.parts.index.lock();
            if let Some(mut inode) = state.inode(ino)? {
                state.mark_left_behind(|state| state.note_attributes(&mut inode))?;
                state.put_inode(inode);
            }
            open.extend(
                state
                    .placed_in(ino)?
                    .into_iter()
                    .map(|(_, entry)| entry.ino),
            );
            state.commit()?;
        }
        Ok(())
    }

    /// Notes what is true of each name, in several transactions. May be repeated.
    pub(super) fn note_conclusions(&self, concluded: &Concluded, cut: Seq) -> Result<()> {
        for chunk in concluded.names.chunks(CHUNK) {
            let mut state = self.parts.index.lock();
            state.confirm_names(cut, chunk)?;
            state.commit()?;
        }
        for chunk in concluded.attributes.chunks(CHUNK) {
            let mut state = self.parts.index.lock();
            state.confirm_attributes(cut, chunk)?;
            state.commit()?;
        }
        Ok(())
    }

    /// Notes that the backend has nothing at `path`, and marks the name, so that the next batch
    /// puts the file there if the cache has it. For a directory this includes everything in it.
    fn note_vanished(&self, path: &RelPath, cut: Seq) -> Result<()> {
        let mut state = self.parts.index.lock();
        let Some((dir, name)) = path.split_last() else {
            return Ok(());
        };
        let Some(parent) = state.find_stored(&dir)? else {
            return Ok(()); // Renamed since; the index finds out when it is read.
        };
        if let Some(entry) = state.placed(parent, &name)?
            && entry.kind == PlainKind::Directory
        {
            mark_contents_gone(&mut state, entry.ino, cut)?;
        }
        mark_gone(&mut state, NameKey { parent, name }, cut)?;
        Ok(state.commit().map(drop)?)
    }

    /// Notes that the backend has lost the contents of the directory at `path`, and marks all of
    /// them, so that the next batch puts back what the cache has.
    fn note_lost_dir(&self, path: &RelPath, cut: Seq) -> Result<()> {
        let mut state = self.parts.index.lock();
        let Some(dir) = state.find_stored(path)? else {
            return Ok(());
        };
        mark_contents_gone(&mut state, dir, cut)?;
        Ok(state.commit().map(drop)?)
    }

    /// Notes what the batch has left on the backend, ends it, and makes that durable. May be
    /// repeated.
    pub(crate) fn confirm(
        &self,
        journal: &Journal,
        applied: &Applied,
        cut: Seq,
        end: BatchEnd,
    ) -> Result<()> {
        // Losses first: the batch has placed files in a directory that was lost, and these are
        // there.
        for path in &applied.lost_dirs {
            self.note_lost_dir(path, cut)?;
        }
        self.forget_unpatched(journal, applied);
        let concluded = self.conclude(journal, applied)?;
        self.note_relocated(journal, applied, cut)?;
        self.note_conclusions(&concluded, cut)?;
        self.keep_attributes(applied)?;
        if journal.record.catalog.is_some() {
            self.describe_again(journal, applied)?;
        }
        for path in &applied.vanished {
            self.note_vanished(path, cut)?;
        }
        if let Some(batch) = &journal.record.catalog
            && !applied.catalog_refused
        {
            self.catalog.confirm(batch)?;
        }
        let batch = journal.record.batch;
        let after = self.parts.index.lock().last_done_before(batch)?;
        let changes = changes_of(journal, applied);
        self.parts.hooks.batch_changed(batch, after, &changes);
        let summary = BatchSummary {
            batch,
            time: self.parts.clock.now(),
            files: journal.files,
            bytes: journal.bytes,
            end,
        };
        self.parts.end_batch(&summary)?;
        self.parts.hooks.sync_cache()?;
        self.before(CacheStep::RemoveJournal)?;
        Journal::remove(&self.parts.journals, batch)
    }
}

/// Notes that the backend has nothing under a name, and marks it for the next batch.
fn mark_gone(state: &mut IndexWriter, key: NameKey, cut: Seq) -> Result<()> {
    let gone = Confirmed {
        key: key.clone(),
        placed: None,
        settled: false,
        inode_settled: false,
    };
    state.confirm_names(cut, &[gone])?;
    Ok(state.mark_name(key.parent, &key.name)?)
}

/// The same for everything in a directory.
fn mark_contents_gone(state: &mut IndexWriter, dir: Ino, cut: Seq) -> Result<()> {
    let mut open = vec![dir];
    while let Some(parent) = open.pop() {
        for (name, entry) in state.placed_in(parent)? {
            if entry.kind == PlainKind::Directory {
                open.push(entry.ino);
            }
            mark_gone(state, NameKey { parent, name }, cut)?;
        }
    }
    Ok(())
}
