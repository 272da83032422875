//! A file that has other bytes than it had.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::open::OpenInode;
use super::super::{Fs, Result, privileges};
use super::compare::believed;
use super::gather::{Changed, Differences, hash_of};
use super::vanish::here;
use super::{HASH_BUDGET, HASH_LIMIT, Taking};
use crate::backend::{Entry, Metadata};
use crate::base::{ContentHash, FileKind, ForeignText, Ino, ObjectId, RelPath, Timestamp};
use crate::index::{Flags, Inode, PlacedEntry, State};
use crate::rules::merge::{Here, Standing, There, Verdict, compare, decide};
use crate::rules::plan::NameKey;
use crate::rules::steps::PlainKind;
use crate::rules::trust::SET_IDS;

/// How long somebody is waited for who is copying the very file.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often an inode is looked for that is just being opened or closed.
const ATTEMPTS: usize = 3;

/// How it is known that only the time of a file is another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unchanged {
    /// Its bytes have been compared.
    Compared,
    /// The drive's clock is read in another zone.
    ByTheClock,
}

/// What is to be done about it, found with the index locked.
enum Outcome {
    Done,
    /// The other version gets a name of its own, unless its bytes are these.
    KeepBoth(Option<(ObjectId, crate::base::Seq)>),
    /// It is no regular file on both sides.
    OtherKind,
    /// Its name in the mount is one of several, whose bytes are not changed.
    Split,
}

impl Taking<'_> {
    /// Takes in that what stands under a name has changed.
    pub(super) fn change(&mut self, changed: &Changed, all: &Alike<'_>) -> Result<()> {
        let same = self.unchanged_bytes(changed);
        let ino = changed.was.ino;
        let outcome = 'opened: {
            for _ in 0..ATTEMPTS {
                if let Some(open) = self.fs.opens.find(ino) {
                    break 'opened self.change_open(changed, same, all, &open)?;
                }
                let table = self.fs.opens.hold();
                if !table.has(ino) {
                    let mut state = self.fs.index.lock();
                    break 'opened self.change_row(&mut state, changed, same, all)?;
                }
            }
            Outcome::Done // The next look finds it again.
        };
        match outcome {
            Outcome::Done => Ok(()),
            Outcome::KeepBoth(object) => self.keep_both_or_adopt(changed, object),
            Outcome::OtherKind => {
                self.vanish(&changed.key, &changed.was)?;
                self.appear_as(&changed.key, &entry(changed), &changed.path)
            }
            Outcome::Split => self.split(changed),
        }
    }

    /// Whoever reads it sees the new bytes from here on; whoever is changing it keeps his.
    fn change_open(
        &mut self,
        changed: &Changed,
        same: Option<Unchanged>,
        all: &Alike<'_>,
        open: &Arc<OpenInode>,
    ) -> Result<Outcome> {
        let Some(mut content) = open.content.try_write_for(PATIENCE) else {
            let why = "it is being copied into the cache; the next look takes it in".to_string();
            self.changes.skipped.push((changed.path.to_text(), why));
            return Ok(Outcome::Done);
        };
        let outcome = {
            let mut state = self.fs.index.lock();
            let outcome = self.change_row(&mut state, changed, same, all)?;
            let inode = state.inode(open.ino)?;
            if !content.prepared && inode.is_none_or(|inode| inode.object.is_none()) {
                content.object = None;
            }
            outcome
        };
        drop(content);
        open.backend.close_if(Duration::ZERO);
        Ok(outcome)
    }

    fn change_row(
        &mut self,
        state: &mut State,
        changed: &Changed,
        same: Option<Unchanged>,
        all: &Alike<'_>,
    ) -> Result<Outcome> {
        let (key, was) = (&changed.key, &changed.was);
        if !Self::is_still(state, key, Some(was))? {
            return Ok(Outcome::Done);
        }
        let inode = state.inode(was.ino)?;
        let is_file = inode
            .as_ref()
            .is_none_or(|inode| inode.kind() == FileKind::Regular);
        if !is_file || changed.meta.kind != FileKind::Regular {
            return Ok(Outcome::OtherKind);
        }
        if let Some(unchanged) = same {
            let hash = was.hash.filter(|_| unchanged == Unchanged::Compared);
            state.put_placed(key, Some(&seen(was, &changed.meta, hash)))?;
            if let Some(mut inode) = inode.filter(|inode| !is_dirty(inode)) {
                inode.mtime = changed.meta.modified;
                self.tell_inode(inode.ino);
                state.put_inode(inode);
            }
            return Ok(Outcome::Done);
        }
        let here = match here(state, key, inode.as_ref())? {
            // What is open for writing and not written yet takes its bytes from the backend when it is.
            Here::File {
                renamed, cached, ..
            } => Here::File {
                dirty: inode
                    .as_ref()
                    .is_some_and(|inode| inode.flags.has(Flags::DATA_DIRTY)),
                renamed,
                cached,
            },
            other => other,
        };
        match (decide(There::Changed, here), inode) {
            (Verdict::Update, Some(inode)) => {
                let places = state.places_of(inode.ino)?;
                if !all.has_all(changed, &places) {
                    return Ok(Outcome::Split);
                }
                let places = places.into_iter().map(|(key, was)| {
                    let entry = seen(&was, &changed.meta, None);
                    (key, entry)
                });
                for (key, entry) in places {
                    state.put_placed(&key, Some(&entry))?;
                }
                let is_native = self.fs.capabilities.permissions;
                take_bytes(state, inode, (&changed.meta, is_native), self.now)?;
                self.tell_inode(was.ino);
                self.changes.changed += 1;
                Ok(Outcome::Done)
            }
            (_, inode) => {
                let object = inode
                    .filter(|inode| !inode.flags.has(Flags::WRITING))
                    .and_then(|inode| Some((inode.object?, inode.data_seq)));
                Ok(Outcome::KeepBoth(object))
            }
        }
    }

    /// Both sides have changed it; perhaps to the same.
    fn keep_both_or_adopt(
        &mut self,
        changed: &Changed,
        object: Option<(ObjectId, crate::base::Seq)>,
    ) -> Result<()> {
        let hash = match object {
            Some((object, _)) => self.same_bytes(object, &changed.path, &changed.meta),
            None => None,
        };
        let (key, was) = (&changed.key, &changed.was);
        let mut state = self.fs.index.lock();
        if !Self::is_still(&mut state, key, Some(was))? {
            return Ok(());
        }
        let inode = state.inode(was.ino)?;
        if let (Some(hash), Some((object, seq)), Some(inode)) = (hash, object, inode)
            && (inode.object, inode.data_seq) == (Some(object), seq)
        {
            // The next batch carries it all the same, over the same bytes.
            let entry = seen(was, &changed.meta, Some(hash));
            state.put_placed(key, Some(&entry))?;
            return Ok(());
        }
        self.keep_both(&mut state, key, Some(was), &entry(changed))?;
        Ok(())
    }

    /// The hash of the object and of the file on the backend, if it is one and can be had cheaply.
    pub(super) fn same_bytes(
        &mut self,
        object: ObjectId,
        path: &RelPath,
        meta: &Metadata,
    ) -> Option<ContentHash> {
        let file = self.fs.store.open_object(object).ok()?;
        let size = file.metadata().ok()?.len();
        if size != meta.size || size > HASH_LIMIT || size > self.budget {
            return None;
        }
        self.budget -= size;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).ok()?;
        let ours = ContentHash(*hasher.finalize().as_bytes());
        (hash_of(self.backend, path).ok()? == ours).then_some(ours)
    }

    /// Whether the file has the bytes that it had, although its time is another, and how that is known. Its bytes have the last
    /// word where they are known and something hangs on it; else the clock of the drive, if that was shifted.
    fn unchanged_bytes(&mut self, changed: &Changed) -> Option<Unchanged> {
        if !changed.touched {
            return None;
        }
        match self.compare_bytes(changed) {
            Some(same) => same.then_some(Unchanged::Compared),
            None => changed.shifted.then_some(Unchanged::ByTheClock),
        }
    }

    /// Compares the bytes with those that were there. `None` if these are not known, the file is too large to be read for that, or it
    /// does not matter, as nothing is lost if the file is taken for changed.
    fn compare_bytes(&mut self, changed: &Changed) -> Option<bool> {
        let (was, size) = (&changed.was, changed.meta.size);
        let inode = self.fs.index.lock().inode(was.ino).ok()?;
        let is_gone = inode.as_ref().is_none_or(|inode| inode.nlink == 0);
        let object = inode.as_ref().and_then(|inode| inode.object);
        let is_dirty = inode.is_some_and(|inode| inode.flags.has(Flags::DATA_DIRTY));
        let limit = match is_gone || is_dirty {
            true => HASH_BUDGET,
            false => HASH_LIMIT,
        };
        if !(is_gone || object.is_some()) || size > limit || size > self.budget {
            return None;
        }
        let had = match (was.hash, object) {
            (Some(hash), _) => hash,
            // A clean object has the very bytes that were fetched from there.
            (None, Some(object)) if !is_dirty => {
                let mut hasher = blake3::Hasher::new();
                let object = self.fs.store.open_object(object).ok()?;
                hasher.update_reader(object).ok()?;
                ContentHash(*hasher.finalize().as_bytes())
            }
            (None, _) => return None,
        };
        Some(self.hash_once(changed)? == had)
    }

    /// The hash of the file on the backend. A file with many names there is read once.
    fn hash_once(&mut self, changed: &Changed) -> Option<ContentHash> {
        let meta = &changed.meta;
        let file = meta.file.map(|file| (file, meta.size, meta.modified));
        if let Some(known) = file.and_then(|file| self.hashed.get(&file)) {
            return Some(*known);
        }
        self.budget = self.budget.saturating_sub(meta.size);
        let hash = hash_of(self.backend, &changed.path).ok()?;
        if let Some(file) = file {
            self.hashed.insert(file, hash);
        }
        Some(hash)
    }

    /// One of several names of a file has other bytes now: it becomes a file of its own.
    fn split(&mut self, changed: &Changed) -> Result<()> {
        let (key, was) = (&changed.key, &changed.was);
        {
            let mut state = self.fs.index.lock();
            if !Self::is_still(&mut state, key, Some(was))? {
                return Ok(());
            }
            let here = super::spelling::at(&mut state, key)?;
            let Some((name, _)) = here.filter(|(_, ino)| *ino == was.ino) else {
                // Renamed here: as if it were gone, and another had come.
                drop(state);
                self.vanish(key, was)?;
                return self.appear_as(key, &entry(changed), &changed.path);
            };
            state.put_placed(key, None)?;
            // It has other names, so nothing goes with this one.
            self.remove(&mut state, (key.parent, &name), |_| true)?;
            self.fs
                .import_found(&mut state, key.parent, &entry(changed))?;
            self.tell_entry(key.parent, &name);
        }
        self.changes.changed += 1;
        Ok(())
    }
}

impl Fs {
    /// A file that only the backend has was just opened there and is not what the index says: that is taken in, unless the
    /// mount has bytes of its own by now, or somebody else was faster. No batch may be moving names.
    pub(in super::super) fn take_in_opened(&self, ino: Ino, meta: &Metadata) -> Result<()> {
        let mut state = self.index.lock();
        let (Some(inode), places) = (state.inode(ino)?, state.places_of(ino)?) else {
            return Ok(());
        };
        // Of several places only a look at all of them tells which have changed.
        let [(key, was)] = places.as_slice() else {
            return Ok(());
        };
        let is_file = inode.kind() == FileKind::Regular && meta.kind == FileKind::Regular;
        let granularity = self.capabilities.time_granularity_ns;
        let is_same = compare(was.kind, &believed(was), meta, granularity) == Standing::Same;
        if is_same || !is_file || inode.object.is_some() || inode.flags.has(Flags::DATA_DIRTY) {
            return Ok(());
        }
        state.put_placed(key, Some(&seen(was, meta, None)))?;
        let is_native = self.capabilities.permissions;
        take_bytes(&mut state, inode, (meta, is_native), self.clock.now())?;
        state.commit()?;
        drop(state);
        self.notices.push_now(super::Notice::Inode { ino });
        Ok(())
    }
}

/// The mount's file has the bytes that stand on the backend from here on. What else is known of it stays.
fn take_bytes(
    state: &mut State,
    mut inode: Inode,
    (meta, is_native): (&Metadata, bool),
    now: crate::base::Timestamp,
) -> Result<()> {
    let ino: Ino = inode.ino;
    if let Some(object) = inode.object {
        state.bury_object(&inode, object)?;
    }
    inode.object = None;
    inode.size = meta.size;
    inode.blocks = meta.size.div_ceil(512);
    inode.mtime = meta.modified;
    inode.ctime = now;
    inode.data_seq = state.next_seq()?;
    inode.flags.clear(Flags::TIME_DIRTY);
    if !(is_native && gives_the_same_rights(&inode, meta)) {
        privileges::strip(state, &mut inode, privileges::SetGroupId::Goes)?;
    }
    state.put_inode(inode);
    Ok(state.settle_dirty_inode(ino)?)
}

/// Whether a file on the drive gives the same rights to who runs it as the mount's, so that the new bytes may keep them. As with any
/// other change of its bytes they are gone else: who has changed it on the drive may be anybody.
fn gives_the_same_rights(inode: &Inode, meta: &Metadata) -> bool {
    let bits = |permissions: u32| permissions & SET_IDS;
    (inode.uid, inode.gid, bits(inode.mode)) == (meta.uid, meta.gid, bits(meta.permissions))
}

fn is_dirty(inode: &Inode) -> bool {
    inode.flags.has(Flags::DATA_DIRTY) || inode.flags.has(Flags::TIME_DIRTY)
}

/// What is believed from here on.
fn seen(was: &PlacedEntry, meta: &Metadata, hash: Option<ContentHash>) -> PlacedEntry {
    PlacedEntry {
        ino: was.ino,
        kind: PlainKind::File,
        size: meta.size,
        mtime: meta.modified,
        hash,
    }
}

fn entry(changed: &Changed) -> Entry {
    Entry {
        name: changed.key.name.clone(),
        meta: changed.meta.clone(),
    }
}

/// What has changed, by inode: for files with several names on a backend that has hard links.
pub(super) struct Alike<'a>(HashMap<Ino, HashMap<&'a NameKey, (u64, Timestamp)>>);

impl<'a> Alike<'a> {
    pub(super) fn new(found: &'a Differences) -> Alike<'a> {
        let mut by_ino: HashMap<_, HashMap<_, _>> = HashMap::new();
        for changed in &found.changed {
            let is_now = (changed.meta.size, changed.meta.modified);
            let names = by_ino.entry(changed.was.ino).or_default();
            names.insert(&changed.key, is_now);
        }
        Alike(by_ino)
    }

    /// Whether all `places` of the inode have changed in the same way.
    fn has_all(&self, changed: &Changed, places: &[(NameKey, PlacedEntry)]) -> bool {
        let is_now = (changed.meta.size, changed.meta.modified);
        let names = self.0.get(&changed.was.ino);
        let is_alike = |place: &NameKey| names.and_then(|names| names.get(place)) == Some(&is_now);
        places.iter().all(|(place, _)| is_alike(place))
    }
}
