//! Copies directories that the backend cannot move: from one file system inside the drive to
//! another, or between the disks of a pool (`EXDEV`).
//!
//! A batch sets the refused move of a directory aside, like any other refusal. Then a batch of its
//! own copies what the drive has of the directory, file by file, to its new name. For the index the
//! copy is a *second directory*, which the mount does not have, with further copies of the same
//! files. When the copy is complete, the index exchanges the two in one transaction: the copy
//! becomes the directory, and the old one becomes a directory that the mount does not have. The
//! next batch removes that and writes what else differs. So nothing is removed before its copy is
//! on the drive and confirmed.
//!
//! | a crash after | leaves | repaired by |
//! |---|---|---|
//! | any phase of the copying batch | the same as any batch that makes a directory | its recovery |
//! | its end | both; the copy is marked as absent from the mount | the next flush removes the copy and begins again |
//! | the exchange | both; the old one is marked as absent from the mount | the next flush removes the old one |
//!
//! A copy that is incomplete, because something was refused, is removed again. A file that is being
//! written or has changed is not copied: the batch that removes the old directory moves or writes
//! it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::apply::Applied;
use crate::apply::journal::Journal;
use crate::apply::refused::{StepNo, Why};
use crate::core::{Capabilities, FileKind, ForeignText, Ino, Name, RelPath};
use crate::error::{FlushError, Result};
use crate::flush::Flusher;
use crate::flush::batch_budget::DirPlaces;
use crate::flush::diff::{Gathered, node};
use crate::flush::flusher::Run;
use crate::flush::report::Report;
use crate::format::steps::{ClearStep, PlaceStep, PlainKind};
use crate::index::{ActiveBatch, Confirmed, Flags, Index, Inode, PlacedEntry, Snapshot};
use crate::plan::delta::{Delta, DirPaths};
use crate::plan::names::NameRules;
use crate::plan::planner::{NameChange, NameKey, NewContent, NewEntry, StageSource};
use crate::plan::representable;

/// How often external changes are imported before the directory is left where it is.
const LOOKS: usize = 8;

/// What a name costs in a batch beside its path, see [`crate::flush::batch_budget`].
const NAME: u64 = 1024;

const NO_SPACE: &str = "the drive cannot move it between two file systems, and has not enough \
    space for a copy; it stays where it was on the drive, and the change waits in the cache. Make \
    space and flush again";

/// A directory that is copied.
#[derive(Clone, Debug)]
pub(super) struct CopiedDir {
    /// Which one.
    pub(super) ino: Ino,
    /// The number of its copy.
    pub(super) copy: Ino,
    /// Its path on the backend.
    pub(super) old: RelPath,
    /// The name of the copy.
    pub(super) name: NameKey,
    /// Its entries, as the index knows them.
    pub(super) known: BTreeMap<Name, PlacedEntry>,
}

/// Returns the conclusions with every name of the cut left marked.
pub(super) fn unsettled(mut confirmed: Vec<Confirmed>) -> Vec<Confirmed> {
    for name in &mut confirmed {
        (name.settled, name.inode_settled) = (false, false);
    }
    confirmed
}

/// Returns the directories that the backend has refused to move because two file systems are
/// concerned.
pub(super) fn not_movable(journal: &Journal, applied: &Applied) -> BTreeSet<Ino> {
    let (keys, steps) = (&journal.keys, &journal.record.steps);
    let mut dirs = BTreeSet::new();
    for refusal in &applied.refused.steps {
        if refusal.why != Why::Errno(libc::EXDEV) {
            continue;
        }
        let (kind, key) = match refusal.step {
            StepNo::Clear(number) => match steps.clear.get(number) {
                Some(ClearStep::Detach { kind, .. }) => (kind, keys.clear.get(number)),
                _ => continue,
            },
            StepNo::Place(number) => match steps.place.get(number) {
                Some(PlaceStep::Attach { kind, .. }) => (kind, keys.place.get(number)),
                _ => continue,
            },
        };
        if let (PlainKind::Directory, Some((_, ino))) = (kind, key) {
            dirs.insert(*ino);
        }
    }
    dirs
}

impl Flusher {
    /// Copies the directories `dirs` to where the mount has them, and exchanges them with their
    /// copies in the index. Returns false if nothing was written.
    pub(super) fn copy_across(
        &self,
        run: Run<'_>,
        dirs: &BTreeSet<Ino>,
        report: &mut Report,
    ) -> Result<bool> {
        let mut is_written = false;
        for dir in dirs {
            run.wish.check()?;
            if !run.wish.retry_refused && self.refusals.was_not_copied_lately(*dir) {
                continue;
            }
            self.refusals.forget_not_copied(*dir);
            let copied = match self.copy_dir(run, *dir) {
                Err(FlushError::Full { .. }) => {
                    let key = self.parts.index.snapshot()?.names_of(*dir)?.pop();
                    let path = match key {
                        Some(key) => self.parts.index.lock().key_path(&key)?,
                        None => None,
                    };
                    if let Some(path) = path {
                        let path = path.to_text();
                        report.left_behind.retain(|(named, _)| *named != path);
                        report.left_behind.push((path, NO_SPACE.into()));
                    }
                    false
                }
                copied => copied?.is_some_and(|later| {
                    let is_whole = later.left_behind.is_empty();
                    report.add(later);
                    is_written = true;
                    is_whole
                }),
            };
            if !copied {
                self.refusals.note_not_copied(*dir);
            }
        }
        Ok(is_written)
    }

    /// Copies one directory. Returns `None` if that cannot be done.
    fn copy_dir(&self, run: Run<'_>, dir: Ino) -> Result<Option<Report>> {
        for _ in 0..LOOKS {
            let mut copied = Vec::new();
            let written = self.run_one(run, true, |active, snapshot, capabilities| {
                let copying = Copying {
                    snapshot: &snapshot,
                    index: &self.parts.index,
                    rules: &self.parts.rules,
                    capabilities,
                    active,
                    budget: self.budget(),
                    sources: HashMap::new(),
                    gathered: Gathered::nothing(capabilities),
                };
                let gathered = copying.gather(dir)?;
                copied = gathered.as_ref().map_or(Vec::new(), |it| it.copied.clone());
                Ok(gathered)
            });
            match written {
                Err(FlushError::ChangedElsewhere { dirs }) => {
                    self.import_meanwhile(run.backend, &dirs)?;
                }
                Err(error) => return Err(error),
                Ok(report) if report.batch.is_none() => return Ok(None),
                Ok(report) => {
                    if report.left_behind.is_empty() {
                        self.exchange(&copied)?;
                    }
                    return Ok(Some(report));
                }
            }
        }
        Ok(None)
    }

    /// Exchanges directories with their copies in the index, in one transaction, and marks all
    /// their names.
    fn exchange(&self, dirs: &[CopiedDir]) -> Result<()> {
        let describes = !self.parts.index.snapshot()?.catalog_is_empty()?;
        let swap: HashMap<Ino, Ino> = (dirs.iter())
            .flat_map(|dir| [(dir.ino, dir.copy), (dir.copy, dir.ino)])
            .collect();
        let mut state = self.parts.index.lock();
        let mut rows: Vec<(NameKey, Option<PlacedEntry>)> = Vec::new();
        for (number, dir) in dirs.iter().enumerate() {
            let placed = state.placed(dir.name.parent, &dir.name.name)?;
            if placed.is_none_or(|placed| placed.ino != dir.copy) {
                return Ok(()); // It has not become what it was to be.
            }
            if number == 0 {
                let place = state.a_place_of(dir.ino)?;
                let copied = state.placed(dir.name.parent, &dir.name.name)?;
                rows.push((dir.name.clone(), copied));
                rows.extend(place.map(|(key, entry)| (key, Some(entry))));
            }
            let (old, new) = (state.placed_in(dir.ino)?, state.placed_in(dir.copy)?);
            let mut names: BTreeMap<Name, [Option<PlacedEntry>; 2]> = BTreeMap::new();
            for (name, entry) in old {
                names.entry(name).or_default()[0] = Some(entry);
            }
            for (name, entry) in new {
                names.entry(name).or_default()[1] = Some(entry);
            }
            for (name, [old, new]) in names {
                for (parent, entry) in [(dir.copy, old), (dir.ino, new)] {
                    let name = name.clone();
                    rows.push((NameKey { parent, name }, entry));
                }
            }
        }
        for (key, mut entry) in rows {
            if let Some(entry) = &mut entry {
                entry.ino = swap.get(&entry.ino).copied().unwrap_or(entry.ino);
            }
            state.put_placed(&key, entry.as_ref())?;
            state.mark_name(key.parent, &key.name)?;
            // The catalog describes it by its old path, which goes away.
            if describes
                && let Some(entry) = entry
                && let Some(mut inode) = state.inode(entry.ino)?
            {
                state.note_attributes(&mut inode)?;
                state.put_inode(inode);
            }
        }
        state.commit()?;
        Ok(())
    }
}

/// Gathers the difference that copies a directory.
struct Copying<'a> {
    snapshot: &'a Snapshot,
    index: &'a Index,
    rules: &'a NameRules,
    capabilities: &'a Capabilities,
    active: &'a ActiveBatch,
    budget: u64,
    /// Where the bytes of each file come from.
    sources: HashMap<Ino, StageSource>,
    gathered: Gathered,
}

impl Copying<'_> {
    /// Gathers a copy of the directory `dir` under its name in the mount. Returns `None` if that
    /// name is not free on the backend, or if the copy exceeds a batch.
    fn gather(mut self, dir: Ino) -> Result<Option<Gathered>> {
        let snapshot = self.snapshot;
        let Some(key) = snapshot.names_of(dir)?.into_iter().next() else {
            return Ok(None);
        };
        let (from, into) = (
            snapshot.backend_dir(dir)?,
            snapshot.backend_dir(key.parent)?,
        );
        let (Some(from), Some(into)) = (from, into) else {
            return Ok(None);
        };
        if into.is_in_or_at(&from) || snapshot.placed(&key)?.is_some() {
            return Ok(None);
        }
        let dirs = &mut self.gathered.delta.dirs;
        let stays = DirPaths {
            old: Some(into.clone()),
            new: Some(into.clone()),
        };
        dirs.insert(key.parent, stays);
        if let Some(above) = snapshot.inode(key.parent)? {
            self.gathered.inodes.insert(key.parent, above);
        }
        let mut open = vec![(dir, key, from, into)];
        let mut moved = HashMap::new();
        let mut cost: u64 = 0;
        while let Some((dir, key, old, into)) = open.pop() {
            let path = into.join(&key.name);
            let copy = self.copy_dir(dir, &key, &old, &path)?;
            moved.insert(copy, Some(key));
            let known = snapshot.placed_in(dir)?;
            for (name, entry) in &known {
                let lengths = old.as_bytes().len() + path.as_bytes().len();
                cost = cost.saturating_add(NAME + 4 * (lengths + 2 * name.as_bytes().len()) as u64);
                if cost > self.budget {
                    return Ok(None);
                }
                let inner = NameKey {
                    parent: copy,
                    name: name.clone(),
                };
                match self.copied(dir, name, entry)? {
                    Some(inode) if inode.is_dir() => {
                        open.push((inode.ino, inner, old.join(name), path.clone()));
                    }
                    Some(inode) => self.copy_file(inode, inner, &old.join(name))?,
                    None => {}
                }
            }
            let known = known.into_iter().collect();
            if let Some(copied) = self.gathered.copied.last_mut() {
                copied.known = known;
            }
        }
        self.gathered.dir_places = DirPlaces::Moved(moved);
        self.mark()?;
        Ok(Some(self.gathered))
    }

    /// Returns the inode of a name on the backend, if the mount has it under the same name and
    /// unchanged.
    fn copied(&self, dir: Ino, name: &Name, entry: &PlacedEntry) -> Result<Option<Inode>> {
        let key = NameKey {
            parent: dir,
            name: name.clone(),
        };
        let here = self.snapshot.lookup(&key, &self.rules.fold(name))?;
        if here != Some(entry.ino) {
            return Ok(None);
        }
        let inode = self.snapshot.inode(entry.ino)?;
        Ok(inode.filter(|inode| {
            let waits = self.active.writing.contains(&inode.ino)
                || inode.flags.has(Flags::DATA_DIRTY)
                || inode.flags.has(Flags::INTERRUPTED);
            inode.is_dir() || !waits
        }))
    }

    fn copy_dir(&mut self, dir: Ino, key: &NameKey, old: &RelPath, new: &RelPath) -> Result<Ino> {
        let copy = self.index.lock().new_ino()?;
        self.add(key, copy, NewContent::Directory);
        let paths = DirPaths {
            old: None,
            new: Some(new.clone()),
        };
        self.gathered.delta.dirs.insert(copy, paths);
        if let Some(inode) = self.snapshot.inode(dir)? {
            self.describe(inode, copy)?;
        }
        self.gathered.copied.push(CopiedDir {
            ino: dir,
            copy,
            old: old.clone(),
            name: key.clone(),
            known: BTreeMap::new(),
        });
        Ok(copy)
    }

    fn copy_file(&mut self, inode: Inode, key: NameKey, old: &RelPath) -> Result<()> {
        let ino = inode.ino;
        let content = match inode.kind() {
            FileKind::Regular => NewContent::Changed(self.source(&inode, old)),
            kind if representable::has_kind(self.capabilities, kind, inode.size) => {
                match node(&inode) {
                    Some(node) => NewContent::Node(node),
                    None => return Ok(()),
                }
            }
            _ => return Ok(()),
        };
        self.add(&key, ino, content);
        self.describe(inode, ino)
    }

    fn source(&mut self, inode: &Inode, old: &RelPath) -> StageSource {
        let (ino, modified) = (inode.ino, inode.mtime);
        if inode.object.is_some() {
            self.gathered.sizes.insert(ino, inode.size);
        }
        let source = || match inode.object {
            Some(object) => StageSource::Object {
                ino,
                object,
                modified,
            },
            None => StageSource::Backend {
                ino,
                path: old.clone(),
                modified,
            },
        };
        self.sources.entry(ino).or_insert_with(source).clone()
    }

    fn add(&mut self, key: &NameKey, ino: Ino, content: NewContent) {
        self.gathered.delta.names.push(NameChange {
            key: key.clone(),
            old: None,
            new: Some(NewEntry { ino, content }),
        });
    }

    /// Gives the attributes of `inode` to `copy`.
    fn describe(&mut self, inode: Inode, copy: Ino) -> Result<()> {
        if inode.flags.has(Flags::XATTRS) {
            let xattrs = self.snapshot.xattrs(inode.ino)?;
            self.gathered.xattrs.insert(copy, xattrs);
        }
        self.gathered.inodes.insert(copy, inode);
        Ok(())
    }

    /// Marks the names of the copies, durably before the batch. Whatever becomes of the batch, a
    /// later one removes these names if the mount does not have them.
    fn mark(&self) -> Result<()> {
        let mut state = self.index.lock();
        for change in &self.gathered.delta.names {
            state.mark_name(change.key.parent, &change.key.name)?;
        }
        state.commit()?;
        Ok(())
    }
}

impl Gathered {
    fn nothing(capabilities: &Capabilities) -> Gathered {
        Gathered {
            delta: Delta {
                hard_links: capabilities.hard_links,
                ..Delta::default()
            },
            before: BTreeMap::new(),
            sizes: BTreeMap::new(),
            settled: Vec::new(),
            attributes: BTreeSet::new(),
            subjects: Default::default(),
            inodes: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            told_dirs: BTreeMap::new(),
            apart: HashSet::new(),
            unfit: Vec::new(),
            changed: (0, 0),
            more: 0,
            dir_places: DirPlaces::AsInCut,
            copied: Vec::new(),
        }
    }
}
