//! Files whose contents changed on the backend.
//!
//! Lock order: one open inode's content, or the table of open inodes if the inode is not open; then
//! the index.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::core::{
    ContentHash, Entry, FileKind, ForeignText, Ino, Metadata, ObjectId, RelPath, Timestamp,
};
use crate::external::deleted::here;
use crate::external::scan::{Changed, Differences, hash_of};
use crate::external::{HASH_BUDGET, HASH_LIMIT, Taking};
use crate::index::{Flags, IndexWriter, Inode, PlacedEntry};
use crate::plan::merge::{Here, There, Verdict, decide};
use crate::plan::planner::NameKey;
use crate::vfs::Result;
use crate::vfs::drive_files::{seen, take_bytes};
use crate::vfs::open_files::OpenInode;

/// How long to wait for a thread that is copying the file.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often to look for an inode that is being opened or closed at this moment.
const ATTEMPTS: usize = 3;

/// Why only the time of a file differs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unchanged {
    /// The bytes were compared.
    Compared,
    /// The drive's clock is read in another time zone.
    ByTheClock,
}

/// The next step, decided under the index lock.
enum Outcome {
    Done,
    /// Keep the other version under a name of its own, unless its bytes equal these.
    KeepBoth(Option<(ObjectId, crate::core::Seq)>),
    /// One side has no regular file.
    OtherKind,
    /// Only this one of several names changed.
    Split,
}

impl Taking<'_> {
    /// Handles the change of a file.
    pub(super) fn change(&mut self, changed: &Changed, all: &Alike<'_>) -> Result<()> {
        let same = self.unchanged_bytes(changed);
        let ino = changed.was.ino;
        let outcome = 'opened: {
            for _ in 0..ATTEMPTS {
                if let Some(open) = self.fs.open_files().find(ino) {
                    break 'opened self.change_open(changed, same, all, &open)?;
                }
                let table = self.fs.open_files().hold();
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

    /// Handles the change of an open file: readers see the new bytes from here on, writers keep
    /// theirs.
    fn change_open(
        &mut self,
        changed: &Changed,
        same: Option<Unchanged>,
        all: &Alike<'_>,
        open: &Arc<OpenInode>,
    ) -> Result<Outcome> {
        let Some(mut content) = open.lock_within(PATIENCE) else {
            let why = "it is being copied into the cache; the next look takes it in".to_string();
            self.changes.skipped.push((changed.path.to_text(), why));
            return Ok(Outcome::Done);
        };
        let outcome = {
            let mut state = self.fs.index.lock();
            let outcome = self.change_row(&mut state, changed, same, all)?;
            let inode = state.inode(open.ino())?;
            if inode.is_none_or(|inode| inode.object.is_none()) {
                content.forget_object();
            }
            outcome
        };
        drop(content);
        open.reader().close();
        Ok(outcome)
    }

    fn change_row(
        &mut self,
        state: &mut IndexWriter,
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
            // A file open for writing without a write yet gets the backend's bytes at the first
            // write.
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

    /// Handles a change on both sides: keeps both versions, or merges them if their bytes are
    /// equal.
    fn keep_both_or_adopt(
        &mut self,
        changed: &Changed,
        object: Option<(ObjectId, crate::core::Seq)>,
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
            // The next batch writes the file all the same, over equal bytes.
            let entry = seen(was, &changed.meta, Some(hash));
            state.put_placed(key, Some(&entry))?;
            return Ok(());
        }
        self.keep_both(&mut state, key, Some(was), &entry(changed))?;
        Ok(())
    }

    /// Returns the hash of the object and of the file on the backend if they are equal, and cheap
    /// enough to compute.
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

    /// Returns whether the bytes of a file with another time are unchanged, and the reason. A
    /// comparison of the bytes decides if they are known and the result matters; otherwise a proven
    /// shift of the drive's clock does.
    fn unchanged_bytes(&mut self, changed: &Changed) -> Option<Unchanged> {
        if !changed.touched {
            return None;
        }
        match self.compare_bytes(changed) {
            Some(same) => same.then_some(Unchanged::Compared),
            None => changed.shifted.then_some(Unchanged::ByTheClock),
        }
    }

    /// Compares the current bytes with the previous ones. Returns `None` if the previous ones are
    /// unknown, if the file is too large to read, or if the result does not matter because treating
    /// the file as changed loses nothing.
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
            // A clean object has the bytes that were fetched from the backend.
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

    /// Returns the hash of the file on the backend. A file with several links there is read once.
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

    /// Handles a change under one of several names: it becomes a file of its own.
    fn split(&mut self, changed: &Changed) -> Result<()> {
        let (key, was) = (&changed.key, &changed.was);
        {
            let mut state = self.fs.index.lock();
            if !Self::is_still(&mut state, key, Some(was))? {
                return Ok(());
            }
            let here = crate::external::names::at(&mut state, key)?;
            let Some((name, _)) = here.filter(|(_, ino)| *ino == was.ino) else {
                // Renamed locally: handled as a removal and a new file.
                drop(state);
                self.vanish(key, was)?;
                return self.appear_as(key, &entry(changed), &changed.path);
            };
            state.put_placed(key, None)?;
            // The inode has other names, so it stays.
            self.remove(&mut state, (key.parent, &name), |_| true)?;
            self.fs
                .importer()
                .import_found(&mut state, key.parent, &entry(changed))?;
            self.tell_entry(key.parent, &name);
        }
        self.changes.changed += 1;
        Ok(())
    }
}

fn is_dirty(inode: &Inode) -> bool {
    inode.flags.has(Flags::DATA_DIRTY) || inode.flags.has(Flags::TIME_DIRTY)
}

fn entry(changed: &Changed) -> Entry {
    Entry {
        name: changed.key.name.clone(),
        meta: changed.meta.clone(),
    }
}

/// The changed names by inode, for files with several links on a backend with hard links.
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

    /// Returns whether all `places` of the inode have changed in the same way.
    fn has_all(&self, changed: &Changed, places: &[(NameKey, PlacedEntry)]) -> bool {
        let is_now = (changed.meta.size, changed.meta.modified);
        let names = self.0.get(&changed.was.ino);
        let is_alike = |place: &NameKey| names.and_then(|names| names.get(place)) == Some(&is_now);
        places.iter().all(|(place, _)| is_alike(place))
    }
}
