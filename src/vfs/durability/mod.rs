//! Durability: fsync and syncfs for many callers at once, data before metadata.
//!
//! [`Durability`] owns the set of objects with bytes that no fsync has covered, and the lock that
//! admits one sync at a time. Both are in memory: after a power cut the index says which bytes may
//! be missing (`index/replaced.rs`). Damage of objects is noted in the index as well.
//!
//! - [`Durability::sync`] first syncs every object with bytes that no fsync has covered, then the
//!   index. It looks a few times for objects that were written, closed and committed while it ran.
//! - [`Durability::sync_files`], for fsync(2), syncs the objects of some files, then the index. It
//!   does not wait for the bytes of other files: a database beside a download would crawl.
//!
//! The index has one log for the rows of all files. So after a power cut a row may be there whose
//! bytes are not: of a file that was written shortly before another one's fsync, or of the last
//! moment of a sync. The next start finds it by the size of the object, which the SSD's file system
//! does not keep without the bytes, and the file is what it was before, or shorter, as any file
//! whose writer did not fsync (`recovery/cache`). Where that would cost the version that a rename
//! or a rewrite has replaced, the object is synced with the file in question.
//!
//! Failures: an object whose sync fails is damaged from then on ([`crate::cache::Damage`]). All
//! callers that wait for this sync get the error, and later every fsync of that file. If the index
//! cannot be synced, every caller gets the error. Linux reports an error once, so an object is
//! synced by one thread at a time (`one_each`), and its damage recorded before the next one looks.
//!
//! [`Syncer`] has two threads that call these two: requests that arrive during a run share the next
//! one. Lock order: `syncing`, one of `one_each`, an object's descriptor, the index. The set of
//! unsynced objects is locked for one access at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::cache::Store;
use crate::core::{Ino, ObjectId, Seq};
use crate::index::Index;
use crate::sys;
use crate::vfs::object_files::ObjectFile;
use crate::vfs::{FsError, FsParts, Result};

mod damage;
mod syncer;

pub use syncer::Syncer;

/// With more unsynced objects than this, one syncfs is cheaper than an fsync for each.
const MANY: usize = 16;

/// Locks for objects that are being synced. Two objects with one lock wait for each other.
const LOCKS: usize = 64;

/// How often a sync looks for objects that were written while it ran.
const ROUNDS: usize = 3;

/// The objects with bytes that no fsync has covered yet. The map does not keep their files open,
/// since there may be thousands. It is ordered by number, so that a seeded test syncs them in the
/// same order each time.
#[derive(Debug, Default)]
struct Unsynced(Mutex<BTreeMap<ObjectId, Weak<ObjectFile>>>);

impl Unsynced {
    fn add(&self, object: &Arc<ObjectFile>) {
        self.0.lock().insert(object.id(), Arc::downgrade(object));
    }

    fn take(&self) -> BTreeMap<ObjectId, Weak<ObjectFile>> {
        let taken = std::mem::take(&mut *self.0.lock());
        for object in taken.values().filter_map(Weak::upgrade) {
            // Before the sync: any later write adds the object again.
            object.set_unsynced(false);
        }
        taken
    }

    /// Puts back objects that could not be synced.
    fn put_back(&self, objects: BTreeMap<ObjectId, Weak<ObjectFile>>) {
        for object in objects.values().filter_map(Weak::upgrade) {
            object.set_unsynced(true);
        }
        self.0.lock().extend(objects);
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    fn has(&self, object: ObjectId) -> bool {
        self.0.lock().contains_key(&object)
    }

    /// Returns an object that a sync of it alone begins with; it stays in the map meanwhile.
    fn begin(&self, object: ObjectId) -> Option<Weak<ObjectFile>> {
        let file = self.0.lock().get(&object).cloned()?;
        if let Some(open) = file.upgrade() {
            // Before the sync: any later write sets it again.
            open.set_unsynced(false);
        }
        Some(file)
    }

    /// Takes out an object that was synced alone, unless it has been written meanwhile.
    fn end(&self, object: ObjectId) {
        let mut objects = self.0.lock();
        let written = |file: &Weak<ObjectFile>| file.upgrade().is_some_and(|f| f.is_unsynced());
        if objects.get(&object).is_some_and(|file| !written(file)) {
            objects.remove(&object);
        }
    }

    fn find(&self, object: ObjectId) -> Option<Arc<ObjectFile>> {
        self.0.lock().get(&object).and_then(Weak::upgrade)
    }
}

/// What is not durable yet.
pub(crate) struct Durability {
    index: Arc<Index>,
    store: Arc<Store>,
    unsynced: Unsynced,
    /// Held during a sync of everything.
    syncing: Mutex<()>,
    /// Held during the sync of an object.
    one_each: [Mutex<()>; LOCKS],
}

impl Durability {
    pub(super) fn new(parts: &FsParts) -> Durability {
        Durability {
            index: parts.index.clone(),
            store: parts.store.clone(),
            unsynced: Unsynced::default(),
            syncing: Mutex::new(()),
            one_each: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// Records that an object has bytes that no fsync has covered.
    pub(super) fn note_unsynced(&self, object: &Arc<ObjectFile>) {
        if !object.set_unsynced(true) {
            self.unsynced.add(object);
        }
    }

    /// Makes all changes made before this call durable.
    pub(super) fn sync(&self) -> Result<()> {
        // One at a time: a caller that finds nothing left to sync must not return before the caller
        // that took the objects has synced them.
        let _one_at_a_time = self.syncing.lock();
        let replaced = self.index.lock().last_replaced();
        let mut damage = Ok(());
        for _ in 0..ROUNDS {
            let objects = self.unsynced.take();
            if objects.is_empty() {
                break;
            }
            match self.sync_objects(&objects) {
                Ok(Ok(())) => {}
                Ok(damaged) => damage = damaged,
                Err(error) => {
                    self.unsynced.put_back(objects);
                    return Err(error);
                }
            }
        }
        self.note_damage();
        self.index.sync()?;
        self.forget_replaced(replaced, damage)
    }

    /// Syncs each of `objects`. The outer error may be transient, and the index must not be synced
    /// after it; the inner error means that bytes are lost, which has been recorded.
    fn sync_objects(
        &self,
        objects: &BTreeMap<ObjectId, Weak<ObjectFile>>,
    ) -> Result<std::result::Result<(), FsError>> {
        if objects.len() > MANY {
            let all: Vec<ObjectId> = objects.keys().copied().collect();
            match self.store.sync_all(&all) {
                Ok(()) => return Ok(Ok(())),
                // The error may concern files of other programs, so each object is synced by
                // itself.
                Err(error) => {
                    tracing::error!(%error, "the SSD failed to sync objects; each is synced by itself")
                }
            }
        }
        let mut damage = Ok(());
        for (object, file) in objects {
            if let Err(error) = self.sync_object(*object, file)? {
                damage = Err(error);
            }
        }
        Ok(damage)
    }

    /// Syncs one object, with the two errors of [`Durability::sync_objects`].
    fn sync_object(
        &self,
        object: ObjectId,
        file: &Weak<ObjectFile>,
    ) -> Result<std::result::Result<(), FsError>> {
        let _one = self.one_each[object.0 as usize % LOCKS].lock();
        let known = self.store.damage(object).is_some();
        let synced = match file.upgrade() {
            Some(open) => {
                let file = open.file()?;
                self.store.sync_object(object, &file)
            }
            None => self.store.sync_closed_object(object),
        };
        match synced {
            Err(_) if known => Ok(Ok(())),
            Err(error) if self.store.damage(object).is_some() => {
                tracing::error!(%error, "bytes of a file are lost unless it is written again");
                Ok(Err(error.into()))
            }
            result => Ok(Ok(result?)),
        }
    }

    /// Makes names, attributes, and the bytes of each of `inos` durable, as they are before this
    /// call.
    ///
    /// # Errors
    /// As [`Durability::sync`], for these files.
    pub(super) fn sync_files(&self, inos: &[Ino]) -> Result<()> {
        let Some((objects, replaced)) = self.to_sync(inos)? else {
            return self.sync();
        };
        let mut damage = Ok(());
        for object in objects {
            // Also if it is not in the map: a sync of everything takes it out before it is done
            // with it, and may fail.
            let file = self.unsynced.begin(object);
            match self.sync_object(object, file.as_ref().unwrap_or(&Weak::new())) {
                Ok(synced) => {
                    damage = damage.and(synced);
                    self.unsynced.end(object);
                }
                Err(error) => {
                    self.unsynced
                        .put_back(file.map(|file| (object, file)).into_iter().collect());
                    return Err(error);
                }
            }
        }
        self.note_damage();
        self.index.sync()?;
        self.forget_replaced(replaced, damage)
    }

    /// Returns the objects to sync for an fsync of `inos`: theirs, and those that have replaced
    /// others, with the last of these changes. `None` if these are many.
    fn to_sync(&self, inos: &[Ino]) -> Result<Option<(BTreeSet<ObjectId>, Option<Seq>)>> {
        let mut state = self.index.lock();
        let Some(replacing) = state.replacing(MANY) else {
            return Ok(None);
        };
        let replaced = state.last_replaced();
        let mut objects = BTreeSet::new();
        for ino in inos.iter().copied().chain(replacing) {
            let inode = state.inode(ino)?;
            objects.extend(inode.and_then(|inode| inode.object));
        }
        Ok(Some((objects, replaced)))
    }

    /// Rows that were replaced before a sync began refer to durable bytes after it. Their notes go
    /// before any caller returns, so that a remaining note only concerns bytes that were never
    /// acknowledged as durable.
    fn forget_replaced(&self, upto: Option<Seq>, synced: Result<()>) -> Result<()> {
        if let (Some(upto), Ok(())) = (upto, &synced) {
            let mut state = self.index.lock();
            state.forget_replaced(upto)?;
            state.finish()?;
        }
        synced
    }

    /// Returns whether there are bytes that no fsync has covered.
    pub(super) fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Returns whether the object may have bytes that no fsync has covered. During a sync the
    /// answer is yes, because the objects in progress are not in the map.
    pub(super) fn may_be_unsynced(&self, object: ObjectId) -> bool {
        self.unsynced.has(object) || self.syncing.is_locked()
    }

    /// Starts writeback of the file's bytes to the SSD without waiting, so that a later sync has
    /// less to do.
    pub(super) fn start_writeback(&self, ino: Ino) {
        let object = self
            .index
            .lock()
            .inode(ino)
            .ok()
            .flatten()
            .and_then(|inode| inode.object);
        if let Some(file) = object.and_then(|object| self.unsynced.find(object)) {
            // Only a hint: the later sync reports errors.
            let _ = file
                .file()
                .map(|file| sys::file::start_writeback(&file, 0, 0));
        }
    }
}
