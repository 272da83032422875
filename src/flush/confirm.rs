//! What the index concludes of a batch: derived from the plan's outcomes when the batch is committed, noted when it is applied.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::Flusher;
use super::apply::Applied;
use super::gather::Gathered;
use super::journal::Journal;
use super::refused::{Back, Refusal, StepNo, explain};
use super::report::{FlushError, Result};
use super::stage::Staged;
use crate::base::steps::CacheStep;
use crate::base::{ForeignText, Ino, Name, RelPath, Seq, Timestamp};
use crate::index::{BatchState, BatchSummary, Confirmed, PlacedEntry, State};
use crate::rules::delta::NOBODY;
use crate::rules::known::Believed;
use crate::rules::plan::{NameKey, Outcome, Placed, Plan};
use crate::rules::steps::{ClearStep, FileContent, PlaceStep, PlainKind, SlotNo};

/// How long automatic flushes leave a file alone that the backend has refused.
const REFUSED_FOR: Duration = Duration::from_secs(3600);

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

/// What the index is to conclude from a batch.
pub(super) struct Concluded {
    pub(super) names: Vec<Confirmed>,
    /// Inodes whose attributes are what they were at the cut.
    pub(super) attributes: Vec<Ino>,
}

impl Concluded {
    /// All that the journal says, where nothing was refused.
    pub(super) fn all(journal: &Journal) -> Concluded {
        Concluded {
            names: journal.confirmed.clone(),
            attributes: journal.attributes.clone(),
        }
    }
}

/// The names of a batch that are not as its journal says, because steps of it were refused.
struct Exceptions<'a> {
    /// Names that have what they had: the index is right about them, and they stay marked.
    as_before: HashSet<&'a NameKey>,
    /// Names whose old entry is gone and whose new one has not come.
    emptied: HashSet<&'a NameKey>,
    /// Inodes that a name was refused to.
    inodes: HashSet<Ino>,
}

impl Exceptions<'_> {
    fn of<'a>(journal: &'a Journal, applied: &Applied) -> Exceptions<'a> {
        let keys = &journal.keys;
        let mut cleared: HashMap<&NameKey, usize> = HashMap::new();
        for (number, (key, _)) in keys.clear.iter().enumerate() {
            cleared.insert(key, number);
        }
        let back: HashSet<usize> = (applied.refused.back.iter())
            .filter(|(_, back)| *back == Back::There)
            .map(|(number, _)| *number)
            .collect();
        let is_back = |number: usize| back.contains(&number);
        let mut exceptions = Exceptions {
            as_before: HashSet::new(),
            emptied: HashSet::new(),
            inodes: HashSet::new(),
        };
        for refusal in &applied.refused.steps {
            match refusal.step {
                StepNo::Clear(number) => {
                    exceptions
                        .as_before
                        .extend(keys.clear.get(number).map(|(key, _)| key));
                }
                StepNo::Place(number) => {
                    let Some((key, ino)) = keys.place.get(number) else {
                        continue;
                    };
                    exceptions.inodes.insert(*ino);
                    let was_cleared = cleared.get(key).is_some_and(|number| {
                        !is_back(*number) && !applied.refused.has(StepNo::Clear(*number))
                    });
                    match was_cleared {
                        true => exceptions.emptied.insert(key),
                        false => exceptions.as_before.insert(key),
                    };
                }
            }
        }
        for (number, (key, _)) in keys.clear.iter().enumerate() {
            if is_back(number) {
                exceptions.as_before.insert(key);
            }
        }
        exceptions
    }
}

impl Flusher {
    /// What the journal of a batch says, less what was refused.
    fn without_refused(&self, journal: &Journal, applied: &Applied) -> Result<Concluded> {
        let mut concluded = Concluded::all(journal);
        if applied.catalog_refused {
            // What the backend cannot say itself has not been said: every name is looked at again by the next batch.
            concluded.attributes.clear();
            for name in &mut concluded.names {
                (name.settled, name.inode_settled) = (false, false);
            }
        }
        if applied.refused.is_empty() {
            return Ok(concluded);
        }
        let (keys, steps) = (&journal.keys, &journal.record.steps);
        if (keys.clear.len(), keys.place.len()) != (steps.clear.len(), steps.place.len()) {
            return Err(FlushError::Unfinished {
                batch: journal.record.batch,
                problem: "its journal does not tell which names its steps are about".into(),
            });
        }
        let exceptions = Exceptions::of(journal, applied);
        // What is in a directory that is not where it was to be has not got its attributes.
        let lacks_dir = applied
            .refused
            .steps
            .iter()
            .any(|refusal| match refusal.step {
                StepNo::Place(number) => matches!(
                    steps.place.get(number),
                    Some(
                        PlaceStep::MakeDir { .. }
                            | PlaceStep::Attach {
                                kind: PlainKind::Directory,
                                ..
                            }
                    )
                ),
                StepNo::Clear(_) => false,
            });
        if lacks_dir {
            concluded.attributes.clear();
        }
        concluded
            .attributes
            .retain(|ino| !exceptions.inodes.contains(ino));
        concluded
            .names
            .retain(|name| !exceptions.as_before.contains(&name.key));
        for name in &mut concluded.names {
            if exceptions.emptied.contains(&name.key) {
                name.placed = None;
                (name.settled, name.inode_settled) = (false, false);
            }
        }
        let placed: HashSet<Ino> = concluded
            .names
            .iter()
            .filter_map(|name| Some(name.placed.as_ref()?.ino))
            .collect();
        let mut state = self.parts.index.lock();
        for key in exceptions.as_before.iter().chain(&exceptions.emptied) {
            // The mark may have been that of the inode, which another name settles.
            state.mark_name(key.parent, &key.name)?;
        }
        for key in exceptions.as_before {
            let Some(entry) = state.placed(key.parent, &key.name)? else {
                continue;
            };
            // An older version of a file that has newer bytes under another name must not be taken for it.
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

    /// Notes where that is which could neither be moved nor put back. Comes before the other conclusions: its bytes are on the
    /// backend all the time.
    fn note_relocated(&self, journal: &Journal, applied: &Applied, cut: Seq) -> Result<()> {
        for (number, back) in &applied.refused.back {
            let (Some((key, ino)), Some(step)) = (
                journal.keys.clear.get(*number),
                journal.record.steps.clear.get(*number),
            ) else {
                continue;
            };
            let key = match back {
                Back::There | Back::LostFound(_) => continue,
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
            let known = known.copied().unwrap_or(Believed::ANYTHING);
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
            state.mark_name(key.parent, &key.name)?;
            state.commit()?;
        }
        Ok(())
    }

    /// The catalog says of what was refused what would be true if it had been placed. It is described again by the next batch,
    /// with all that is in it.
    fn describe_again(&self, journal: &Journal, applied: &Applied) -> Result<()> {
        let clear = applied.refused.back.iter();
        let moved = clear.filter_map(|(number, _)| journal.keys.clear.get(*number));
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
                state.note_attributes(&mut inode)?;
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

    /// Remembers the files that were refused, so that automatic flushes do not write them to the drive again and again.
    pub(super) fn remember_refused(&self, journal: &Journal, applied: &Applied) {
        let mut refused = self.refused.lock();
        for (_, ino) in &journal.keys.place {
            // It is refused again now, or placed.
            refused.remove(ino);
        }
        for refusal in &applied.refused.steps {
            if let StepNo::Place(number) = refusal.step
                && let Some((_, ino)) = journal.keys.place.get(number)
            {
                let reason = explain(refusal.step, &refusal.why);
                refused.insert(*ino, (Instant::now(), reason));
                self.note_refusal();
            }
        }
    }

    /// Notes that something stays behind because the backend refuses it.
    pub(super) fn note_refusal(&self) {
        self.refusal_met.lock().get_or_insert_with(Instant::now);
    }

    /// Whether it is time to try again what the backend refused: true once an hour while flushes
    /// meet a refusal. What makes it pass is done on the drive, and nothing here tells of it.
    pub fn is_retry_due(&self) -> bool {
        let mut met = self.refusal_met.lock();
        met.take_if(|since| since.elapsed() >= REFUSED_FOR)
            .is_some()
    }

    /// Forgets what was refused, so that the next flush tries all of it: the drive was attached.
    pub fn forget_refused(&self) {
        self.refused.lock().clear();
    }

    /// Files of the batch that were refused within the last hour, with the reason.
    pub(super) fn refused_lately(&self, gathered: &Gathered) -> BTreeMap<Ino, String> {
        let mut refused = self.refused.lock();
        refused.retain(|_, (since, _)| since.elapsed() < REFUSED_FOR);
        let files = gathered.sizes.keys();
        files
            .filter_map(|ino| Some((*ino, refused.get(ino)?.1.clone())))
            .collect()
    }

    /// What was refused, by its path in the mount and with the reason.
    pub(super) fn name_refused(
        &self,
        journal: &Journal,
        applied: &Applied,
    ) -> Result<Vec<(String, String)>> {
        let mut named = BTreeMap::new();
        let mut state = self.parts.index.lock();
        for Refusal { step, path, why } in &applied.refused.steps {
            let key = match step {
                StepNo::Clear(number) => journal.keys.clear.get(*number),
                StepNo::Place(number) => journal.keys.place.get(*number),
            };
            let spelled = match key {
                Some((key, _)) => state.key_path(key)?.map(|path| path.to_text()),
                None => None,
            };
            let reason = explain(*step, why);
            named
                .entry(spelled.unwrap_or_else(|| path.to_text()))
                .or_insert(reason);
        }
        for (number, back) in &applied.refused.back {
            if let (Back::LostFound(kept), Some(step)) =
                (back, journal.record.steps.clear.get(*number))
            {
                let reason = format!(
                    "could neither be moved nor put back on the drive; it is kept there as {kept}"
                );
                named.insert(step.path().to_text(), reason);
            }
        }
        Ok(named.into_iter().collect())
    }

    /// Notes what holds for each name, in several transactions. May be repeated.
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

    /// The backend has nothing at `path`: the name is marked, so that the next batch puts the file there if the cache has it. With
    /// a directory all that was in it is gone from there.
    fn note_vanished(&self, path: &RelPath, cut: Seq) -> Result<()> {
        let mut state = self.parts.index.lock();
        let Some((dir, name)) = path.split_last() else {
            return Ok(());
        };
        let Some(parent) = find(&mut state, &dir)? else {
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

    /// The backend has lost what was in the directory at `path`: all that the index believes to be there is marked, so that the
    /// next batch puts back what the cache has of it.
    fn note_lost_dir(&self, path: &RelPath, cut: Seq) -> Result<()> {
        let mut state = self.parts.index.lock();
        let Some(dir) = find(&mut state, path)? else {
            return Ok(());
        };
        mark_contents_gone(&mut state, dir, cut)?;
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
        let concluded = self.without_refused(journal, applied)?;
        self.note_relocated(journal, applied, cut)?;
        self.note_conclusions(&concluded, cut)?;
        if journal.record.catalog.is_some() {
            self.describe_again(journal, applied)?;
        }
        for path in applied.vanished.iter().chain(&applied.not_linked) {
            self.note_vanished(path, cut)?;
        }
        if let Some(batch) = &journal.record.catalog
            && !applied.catalog_refused
        {
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

/// The same for all that is in a directory.
fn mark_contents_gone(state: &mut State, dir: Ino, cut: Seq) -> Result<()> {
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
