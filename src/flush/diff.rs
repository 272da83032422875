//! The difference between the backend and the cut, read from a snapshot of the index.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::apply::staging::EMPTY;
use crate::cache::Store;
use crate::catalog::candidates::{Concerned, NewDirs, Subjects};
use crate::core::{Capabilities, FileKind, Ino, RelPath, Xattrs};
use crate::error::Result;
use crate::flush::across::CopiedDir;
use crate::flush::batch_budget::{DirPlaces, Portion, Waiting};
use crate::flush::stage::BAD;
use crate::format::steps::{Node, PlainKind};
use crate::index::{ActiveBatch, Flags, Inode, PlacedEntry, Snapshot};
use crate::plan::names::NameRules;
use crate::plan::planner::{
    Delta, DirPaths, NameChange, NameKey, NewContent, NewEntry, OldEntry, StageSource,
};
use crate::plan::{representable, units};

/// The difference, and what the flush needs to know beside it.
pub(crate) struct Gathered {
    pub(crate) delta: Delta,
    /// What the backend had under each name of the delta.
    pub(super) before: BTreeMap<NameKey, PlacedEntry>,
    /// Sizes of the files whose bytes are to be written.
    pub(super) sizes: BTreeMap<Ino, u64>,
    /// Marked names at which there is no difference.
    pub(crate) settled: Vec<NameKey>,
    /// Inodes whose attributes differ from those that the backend, or the catalog on it, has.
    pub(crate) attributes: BTreeSet<Ino>,
    /// What the catalog may describe.
    pub(super) subjects: Subjects,
    /// The rows, as of the cut, of the inodes that have a listed name, hold one, or are among
    /// `attributes`.
    pub(super) inodes: BTreeMap<Ino, Inode>,
    /// Their extended attributes, if there are any.
    pub(super) xattrs: BTreeMap<Ino, Xattrs>,
    /// Paths after the batch of the directories among `attributes`.
    pub(super) told_dirs: BTreeMap<Ino, RelPath>,
    /// Names that fit into no batch, with the reason.
    pub(super) unfit: Vec<(NameKey, &'static str)>,
    /// Names that no batch makes although their files have others that travel.
    pub(super) apart: HashSet<NameKey>,
    /// How many files on the drive the cut removes and how many it rewrites, in this batch and in
    /// further ones.
    pub(super) changed: (u64, u64),
    /// The estimated number of further batches for what does not fit into this one.
    pub(super) more: u64,
    /// Where directories are after the batch.
    pub(crate) dir_places: DirPlaces,
    /// The directories that the batch copies, and nothing else; see [`crate::flush::across`].
    pub(super) copied: Vec<CopiedDir>,
}

impl Gathered {
    /// Returns what the batch concerns, for the catalog.
    pub(crate) fn concerned(&self) -> Concerned<'_> {
        let listed = self.delta.names.iter().map(|change| &change.key);
        Concerned {
            keys: listed.chain(&self.settled).cloned().collect(),
            attributes: &self.attributes,
            new_dirs: &self.dir_places,
            apart: &self.apart,
        }
    }
}

struct Gatherer<'a> {
    snapshot: &'a Snapshot,
    store: &'a Store,
    rules: &'a NameRules,
    capabilities: &'a Capabilities,
    /// Files that change in place, so that no whole version can be read.
    live: &'a HashSet<Ino>,
    /// See [`ActiveBatch::held`].
    held: &'a HashSet<Ino>,
    /// See [`ActiveBatch::apart`].
    apart: &'a HashSet<NameKey>,
    /// The size limit of the batch, see [`crate::flush::batch_budget`].
    budget: u64,
    keys: BTreeSet<NameKey>,
    inodes: BTreeMap<Ino, Option<Inode>>,
    attributes: BTreeSet<Ino>,
}

impl Gathered {
    /// Returns the files whose bytes the SSD has failed to store, with a message for each. What is
    /// read of them may differ from what was written.
    pub(super) fn damaged(&self, store: &Store) -> BTreeMap<Ino, String> {
        let mut damaged = BTreeMap::new();
        for new in self
            .delta
            .names
            .iter()
            .filter_map(|change| change.new.as_ref())
        {
            let source = match &new.content {
                NewContent::Changed(source) => Some(source),
                NewContent::Touched { copy, .. } | NewContent::Unchanged { copy } => copy.as_ref(),
                NewContent::Directory | NewContent::Node(_) | NewContent::Live => None,
            };
            if let Some(StageSource::Object { ino, object, .. }) = source
                && let Some(damage) = store.damage(*object)
            {
                damaged.insert(*ino, format!("{damage}; {BAD}"));
            }
        }
        damaged
    }

    /// Leaves these files as they are, as if they were changing in place. All their names are
    /// listed, because their bytes differ.
    pub(super) fn leave_out(&mut self, inos: &HashSet<Ino>) {
        for change in &mut self.delta.names {
            if let Some(new) = &mut change.new
                && inos.contains(&new.ino)
            {
                new.content = NewContent::Live;
            }
        }
        self.leave_out_units();
    }

    /// Leaves out databases and journals that belong to what is left out.
    fn leave_out_units(&mut self) {
        if units::leave_out_units(&mut self.delta.names) {
            let listed: HashSet<&NameKey> =
                self.delta.names.iter().map(|change| &change.key).collect();
            self.before.retain(|key, _| listed.contains(key));
        }
    }
}

/// Compares the two trees at all marked names and inodes. Files that were being written at the cut
/// have no whole version.
pub(super) fn gather(
    (snapshot, store): (&Snapshot, &Store),
    rules: &NameRules,
    capabilities: &Capabilities,
    active: &ActiveBatch,
    budget: u64,
) -> Result<Gathered> {
    let mut gatherer = Gatherer {
        snapshot,
        store,
        rules,
        capabilities,
        live: &active.writing,
        held: &active.held,
        apart: &active.apart,
        budget,
        keys: BTreeSet::new(),
        inodes: BTreeMap::new(),
        attributes: BTreeSet::new(),
    };
    gatherer.find_keys()?;
    gatherer.compare()
}

impl Gatherer<'_> {
    /// Finds all names that may differ: the marked ones, and for files whose content differs every
    /// name on either side.
    fn find_keys(&mut self) -> Result<()> {
        let mut open: Vec<NameKey> = self
            .snapshot
            .dirty_names()?
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        for ino in self.snapshot.dirty_inodes()? {
            self.visit(ino, &mut open)?;
        }
        while let Some(key) = open.pop() {
            if !self.keys.insert(key.clone()) {
                continue;
            }
            let new = self.snapshot.lookup(&key, &self.rules.fold(&key.name))?;
            let old = self.snapshot.placed(&key)?.map(|entry| entry.ino);
            for ino in [new, old].into_iter().flatten() {
                self.visit(ino, &mut open)?;
            }
        }
        Ok(())
    }

    fn visit(&mut self, ino: Ino, open: &mut Vec<NameKey>) -> Result<()> {
        if self.inodes.contains_key(&ino) {
            return Ok(());
        }
        let inode = self.snapshot.inode(ino)?;
        let differs = inode.as_ref().is_some_and(|inode| {
            !inode.is_dir()
                && !inode.flags.has(Flags::LOCAL)
                && (self.live.contains(&ino)
                    || inode.flags.has(Flags::DATA_DIRTY)
                    || inode.flags.has(Flags::TIME_DIRTY)
                    || inode.flags.has(Flags::INTERRUPTED)
                    || (representable::has_attributes(self.capabilities)
                        && inode.flags.has(Flags::ATTR_DIRTY)))
        });
        // If only names of a file have changed, one name that stays is enough, as the source of new
        // ones.
        let is_linked = self.capabilities.hard_links
            && inode
                .as_ref()
                .is_some_and(|inode| !inode.is_dir() && inode.nlink > 1);
        let kept = match is_linked && !differs && !self.has_pending_links(ino)? {
            true => self.snapshot.kept_name_of(ino)?,
            false => None,
        };
        if let Some(key) = kept {
            open.push(key);
        } else if differs || is_linked {
            open.extend(self.snapshot.names_of(ino)?);
            open.extend(
                self.snapshot
                    .places_of(ino)?
                    .into_iter()
                    .map(|(key, _)| key),
            );
        }
        let is_told_of = |inode: &Inode| {
            inode.nlink > 0
                && !inode.flags.has(Flags::LOCAL)
                && (inode.flags.has(Flags::ATTR_DIRTY) || !inode.kind().is_plain())
        };
        if inode.as_ref().is_some_and(is_told_of) {
            self.attributes.insert(ino);
        }
        self.inodes.insert(ino, inode);
        Ok(())
    }

    fn compare(mut self) -> Result<Gathered> {
        let mut settled = Vec::new();
        let mut before = BTreeMap::new();
        let mut changes = Vec::new();
        // Looked up once: an inode may have tens of thousands of names, and may have to be looked
        // for under each of them.
        let mut entries: HashMap<Ino, Option<NewEntry>> = HashMap::new();
        for key in std::mem::take(&mut self.keys) {
            let placed = self.snapshot.placed(&key)?;
            let new = match self.snapshot.lookup(&key, &self.rules.fold(&key.name))? {
                Some(ino) => match entries.entry(ino) {
                    Entry::Occupied(known) => known.get().clone(),
                    Entry::Vacant(unknown) => unknown.insert(self.new_entry(ino)?).clone(),
                },
                None => None,
            };
            let new = new.filter(|_| !self.apart.contains(&key));
            let old = placed.as_ref().map(|entry| OldEntry {
                ino: entry.ino,
                kind: entry.kind,
            });
            if let Some(entry) = placed {
                before.insert(key.clone(), entry);
            }
            match old.is_none() && new.is_none() {
                true => settled.push(key),
                false => changes.push(NameChange { key, old, new }),
            }
        }
        drop(entries);
        let held = self.held_with_bytes_on_drive(&changes)?;
        let portion = Waiting {
            snapshot: self.snapshot,
            rules: self.rules,
            changes: &changes,
            inodes: &self.inodes,
            attributes: &self.attributes,
            held: &held,
        }
        .choose(self.budget)?;
        self.gathered(changes, before, settled, portion)
    }

    /// Returns the inodes that no batch may take off the drive: those that are held, and, which
    /// sorting does not make, local files that lack their only bytes on the SSD, and files that
    /// would have no place left on the drive and get no new one.
    fn held_with_bytes_on_drive(&self, changes: &[NameChange]) -> Result<HashSet<Ino>> {
        // What the SSD has failed to store may be no whole copy.
        let has_object = |inode: &Inode| {
            (inode.object).is_some_and(|object| self.store.damage(object).is_none())
        };
        let lacks_bytes = |ino: &Ino| match self.inodes.get(ino) {
            Some(Some(inode)) => {
                inode.flags.has(Flags::LOCAL)
                    && inode.nlink > 0
                    && inode.kind() == FileKind::Regular
                    && inode.size > 0
                    && !(inode.flags.has(Flags::DATA_DIRTY) && has_object(inode))
            }
            _ => false,
        };
        let old = changes.iter().filter_map(|change| change.old);
        let lacking = old.map(|old| old.ino).filter(lacks_bytes);
        let mut held: HashSet<Ino> = lacking.chain(self.held.iter().copied()).collect();
        held.extend(self.would_vanish(changes)?);
        Ok(held)
    }

    /// Returns the files with names in the mount whose bytes only the drive has, and of which the
    /// changes remove the last place and make none.
    fn would_vanish(&self, changes: &[NameChange]) -> Result<Vec<Ino>> {
        let is_only_there = |ino: &Ino| match self.inodes.get(ino) {
            Some(Some(inode)) => {
                inode.nlink > 0
                    && inode.kind() == FileKind::Regular
                    && inode.size > 0
                    && inode.object.is_none()
                    && !inode.flags.has(Flags::DATA_DIRTY)
            }
            _ => false,
        };
        let is_made = |change: &NameChange| change.new.as_ref().map(|new| new.ino);
        let made: HashSet<Ino> = changes.iter().filter_map(is_made).collect();
        let mut going: HashMap<Ino, usize> = HashMap::new();
        for change in changes {
            if let Some(old) = change.old.filter(|old| !made.contains(&old.ino))
                && is_only_there(&old.ino)
            {
                *going.entry(old.ino).or_default() += 1;
            }
        }
        let mut vanishing = Vec::new();
        for (ino, places) in going {
            if self.snapshot.places_of(ino)?.len() <= places {
                vanishing.push(ino);
            }
        }
        Ok(vanishing)
    }

    /// Returns everything that is known of the changes in the batch.
    fn gathered(
        mut self,
        changes: Vec<NameChange>,
        mut before: BTreeMap<NameKey, PlacedEntry>,
        settled: Vec<NameKey>,
        portion: Portion,
    ) -> Result<Gathered> {
        let mut attributes = std::mem::take(&mut self.attributes);
        attributes.retain(|ino| !portion.without.contains(ino));
        let changed = removed_and_rewritten(&changes, &portion.unfit);
        let mut gathered = Gathered {
            delta: Delta::default(),
            before: BTreeMap::new(),
            sizes: BTreeMap::new(),
            settled,
            attributes,
            subjects: Subjects::default(),
            inodes: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            told_dirs: BTreeMap::new(),
            unfit: portion.unfit,
            apart: self.apart.clone(),
            changed,
            more: portion.more,
            dir_places: portion.dir_places,
            copied: Vec::new(),
        };
        gathered.delta.hard_links = self.capabilities.hard_links;
        let taken = changes.into_iter().zip(portion.names);
        for change in taken.filter_map(|(change, taken)| taken.then_some(change)) {
            if let Some(entry) = before.remove(&change.key) {
                gathered.before.insert(change.key.clone(), entry);
            }
            if let Some(NewEntry {
                ino,
                content: NewContent::Changed(_),
            }) = &change.new
                && let Some(Some(inode)) = self.inodes.get(ino)
            {
                gathered.sizes.insert(*ino, inode.size);
            }
            let parent = change.key.parent;
            if let Entry::Vacant(slot) = gathered.delta.dirs.entry(parent) {
                // One that stays local leaves the backend.
                let inode = self.snapshot.inode(parent)?;
                let new = match inode.is_some_and(|it| it.flags.has(Flags::LOCAL)) {
                    true => None,
                    false => gathered.dir_places.path(self.snapshot, parent)?,
                };
                slot.insert(DirPaths {
                    old: self.snapshot.backend_dir(parent)?,
                    new,
                });
            }
            gathered.delta.names.push(change);
        }
        gathered.leave_out_units();
        self.describe(&mut gathered)?;
        Ok(gathered)
    }

    /// Adds the rows of all inodes whose attributes the batch may have to set.
    fn describe(self, gathered: &mut Gathered) -> Result<()> {
        let snapshot = self.snapshot;
        let names = gathered.delta.names.iter();
        let given: HashSet<Ino> = (names.clone())
            .filter_map(|change| change.new.as_ref().map(|new| new.ino))
            .chain(gathered.attributes.iter().copied())
            .collect();
        let held: HashSet<Ino> = names
            .filter_map(|change| change.old.map(|old| old.ino))
            .collect();
        let known = self.inodes.into_iter();
        gathered.inodes = known
            .filter(|(ino, _)| given.contains(ino) || held.contains(ino))
            .filter_map(|(ino, it)| Some((ino, it?)))
            .collect();
        for dir in gathered.delta.dirs.keys() {
            if !gathered.inodes.contains_key(dir)
                && let Some(inode) = snapshot.inode(*dir)?
            {
                gathered.inodes.insert(*dir, inode);
            }
        }
        for (ino, inode) in &gathered.inodes {
            if inode.flags.has(Flags::XATTRS) && given.contains(ino) {
                gathered.xattrs.insert(*ino, snapshot.xattrs(*ino)?);
            }
            if inode.is_dir()
                && gathered.attributes.contains(ino)
                && let Some(path) = gathered.dir_places.path(snapshot, *ino)?
            {
                gathered.told_dirs.insert(*ino, path);
            }
        }
        Ok(())
    }

    fn new_entry(&self, ino: Ino) -> Result<Option<NewEntry>> {
        let Some(Some(inode)) = self.inodes.get(&ino) else {
            return Ok(None);
        };
        let content = match inode.kind() {
            _ if inode.flags.has(Flags::LOCAL) => return Ok(None),
            FileKind::Directory => NewContent::Directory,
            FileKind::Regular => self.content(inode)?,
            kind if representable::has_kind(self.capabilities, kind, inode.size) => {
                match node(inode) {
                    Some(node) => NewContent::Node(node),
                    None => return Ok(None),
                }
            }
            // The backend cannot hold such a file; unless it was found there.
            _ if self.snapshot.places_of(ino)?.is_empty() => return Ok(None),
            _ => NewContent::Unchanged { copy: None },
        };
        Ok(Some(NewEntry { ino, content }))
    }

    fn has_pending_links(&self, ino: Ino) -> Result<bool> {
        let group = self.snapshot.link_group_of(ino)?;
        Ok(group.is_some_and(|group| group.pending > 0))
    }

    fn content(&self, inode: &Inode) -> Result<NewContent> {
        if self.live.contains(&inode.ino) || inode.flags.has(Flags::INTERRUPTED) {
            return Ok(NewContent::Live);
        }
        // Names of it that are not imported yet would keep the old version, and be another file's
        // from then on.
        if inode.nlink > 1 && self.has_pending_links(inode.ino)? {
            return Ok(NewContent::Live);
        }
        if inode.flags.has(Flags::DATA_DIRTY) {
            return Ok(NewContent::Changed(StageSource::Object {
                ino: inode.ino,
                object: inode.object.unwrap_or(EMPTY),
                modified: inode.mtime,
            }));
        }
        let copy = self.copy_source(inode)?;
        Ok(if inode.flags.has(Flags::TIME_DIRTY) {
            NewContent::Touched {
                modified: inode.mtime,
                copy,
            }
        } else {
            NewContent::Unchanged { copy }
        })
    }

    /// Returns the source of a further copy of a clean file; looked for only where it may be
    /// needed.
    fn copy_source(&self, inode: &Inode) -> Result<Option<StageSource>> {
        if inode.nlink < 2 {
            return Ok(None);
        }
        let (ino, modified) = (inode.ino, inode.mtime);
        if let Some(object) = inode.object {
            return Ok(Some(StageSource::Object {
                ino,
                object,
                modified,
            }));
        }
        for (key, _) in self.snapshot.places_of(ino)? {
            if let Some(dir) = self.snapshot.backend_dir(key.parent)? {
                let path = dir.join(&key.name);
                return Ok(Some(StageSource::Backend {
                    ino,
                    path,
                    modified,
                }));
            }
        }
        Ok(None)
    }
}

/// Returns what is staged for a link or a special file.
pub(super) fn node(inode: &Inode) -> Option<Node> {
    let rdev = inode.rdev;
    Some(match inode.kind() {
        FileKind::Symlink => Node::Symlink {
            target: inode.target.clone()?,
        },
        FileKind::Fifo => Node::Fifo,
        FileKind::Socket => Node::Socket,
        FileKind::CharDevice => Node::CharDevice { rdev },
        FileKind::BlockDevice => Node::BlockDevice { rdev },
        FileKind::Regular | FileKind::Directory => return None,
    })
}

/// Returns how many files on the drive changes remove and how many they rewrite, without names that
/// fit into no batch. A file that moves is neither.
fn removed_and_rewritten(changes: &[NameChange], unfit: &[(NameKey, &'static str)]) -> (u64, u64) {
    let unfit: HashSet<&NameKey> = unfit.iter().map(|(key, _)| key).collect();
    let stay: HashSet<Ino> = (changes.iter())
        .filter_map(|change| Some(change.new.as_ref()?.ino))
        .collect();
    let (mut removed, mut rewritten) = (0, 0);
    for change in changes.iter().filter(|change| !unfit.contains(&change.key)) {
        let Some(old) = change.old.filter(|old| old.kind == PlainKind::File) else {
            continue;
        };
        match &change.new {
            Some(new) if matches!(new.content, NewContent::Changed(_)) => rewritten += 1,
            // A new file has taken its name.
            Some(new) if new.ino != old.ino && !stay.contains(&old.ino) => rewritten += 1,
            None if !stay.contains(&old.ino) => removed += 1,
            _ => {}
        }
    }
    (removed, rewritten)
}
