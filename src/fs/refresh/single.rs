//! A file that has other bytes than it had.

use std::sync::Arc;
use std::time::Duration;

use super::super::open::OpenInode;
use super::super::{Fs, Result};
use super::compare::believed;
use super::gather::{Changed, Differences, hash_of};
use super::vanish::here;
use super::{HASH_LIMIT, Taking};
use crate::backend::{Entry, Metadata};
use crate::base::{ContentHash, FileKind, Ino, ObjectId, RelPath};
use crate::index::{Flags, Inode, PlacedEntry, State};
use crate::rules::merge::{Here, Standing, There, Verdict, compare, decide};
use crate::rules::plan::NameKey;
use crate::rules::steps::PlainKind;

/// How long somebody is waited for who is copying the very file.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often an inode is looked for that is just being opened or closed.
const ATTEMPTS: usize = 3;

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
    pub(super) fn change(&mut self, changed: &Changed, found: &Differences) -> Result<()> {
        let same = changed.touched && self.has_hash(changed);
        let all = places_changed_alike(changed, found);
        let ino = changed.was.ino;
        let outcome = 'opened: {
            for _ in 0..ATTEMPTS {
                if let Some(open) = self.fs.opens.find(ino) {
                    break 'opened self.change_open(changed, same, &all, &open)?;
                }
                let table = self.fs.opens.hold();
                if !table.has(ino) {
                    let mut state = self.fs.index.lock();
                    break 'opened self.change_row(&mut state, changed, same, &all)?;
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
        same: bool,
        all: &[NameKey],
        open: &Arc<OpenInode>,
    ) -> Result<Outcome> {
        let Some(mut content) = open.content.try_write_for(PATIENCE) else {
            let why = "it is being copied into the cache; the next look takes it in".to_string();
            self.changes.skipped.push((changed.path.to_string(), why));
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
        same: bool,
        all: &[NameKey],
    ) -> Result<Outcome> {
        let (key, was) = (&changed.key, &changed.was);
        if !Self::is_still(state, key, Some(was))? {
            return Ok(Outcome::Done);
        }
        let inode = state.inode(was.ino)?;
        let names = state.names_of(was.ino)?;
        let is_file = inode
            .as_ref()
            .is_none_or(|inode| inode.kind() == FileKind::Regular);
        if !is_file || changed.meta.kind != FileKind::Regular {
            return Ok(Outcome::OtherKind);
        }
        if same {
            state.put_placed(key, Some(&seen(was, &changed.meta, was.hash)))?;
            if let Some(mut inode) = inode.filter(|inode| !is_dirty(inode)) {
                inode.mtime = changed.meta.modified;
                self.tell_inode(inode.ino);
                state.put_inode(inode);
            }
            return Ok(Outcome::Done);
        }
        let here = match here(state, key, inode.as_ref(), &names)? {
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
                if !places.iter().all(|(place, _)| all.contains(place)) {
                    return Ok(Outcome::Split);
                }
                let places = places.into_iter().map(|(key, was)| {
                    let entry = seen(&was, &changed.meta, None);
                    (key, entry)
                });
                for (key, entry) in places {
                    state.put_placed(&key, Some(&entry))?;
                }
                take_bytes(state, inode, &changed.meta, self.now)?;
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

    /// Whether the bytes are those that were put there, although the time is another.
    fn has_hash(&mut self, changed: &Changed) -> bool {
        let (was, size) = (&changed.was, changed.meta.size);
        let worth = (self.fs.index.lock().inode(was.ino))
            .is_ok_and(|inode| inode.is_some_and(|inode| inode.object.is_some()));
        let (Some(hash), true) = (was.hash, worth) else {
            return false;
        };
        if size > HASH_LIMIT || size > self.budget {
            return false;
        }
        self.budget -= size;
        hash_of(self.backend, &changed.path).is_ok_and(|found| found == hash)
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
        take_bytes(&mut state, inode, meta, self.clock.now())?;
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
    meta: &Metadata,
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
    state.put_inode(inode);
    Ok(state.settle_dirty_inode(ino)?)
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

/// The places of the same inode that have changed in the same way: those of a file with several names on a backend that has
/// hard links.
fn places_changed_alike(changed: &Changed, found: &Differences) -> Vec<NameKey> {
    let alike = found.changed.iter().filter(|other| {
        other.was.ino == changed.was.ino
            && other.meta.size == changed.meta.size
            && other.meta.modified == changed.meta.modified
    });
    alike.map(|other| other.key.clone()).collect()
}
