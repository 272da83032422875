//! The descriptors of objects, bounded in number however many files of the mount are open.
//!
//! [`ObjectFiles`] owns the list of all object files that are in use, the number of descriptors
//! that they may have, and the counts of open ones. Nothing of it survives a crash or needs to.
//!
//! An [`ObjectFile`] opens its object on first use. When objects use as many descriptors as they
//! may, the least recently used ones are closed, and opened again by object number on the next use.
//! Invariant: an object is not removed while its file is open in the mount, so it can be opened
//! again. A share of the descriptors is reserved for the index, the drive and the control socket,
//! so a program that opens very many files slows down only itself.
//!
//! Linux reports a failed write to the descriptors that were open at that time. So an object with
//! bytes that no fsync has covered is synced before its descriptor is closed here. A failure is
//! recorded as the object's damage ([`crate::cache::Damage`]), and the next fsync of the file
//! reports it.
//!
//! Lock order: an object's descriptor, then the list of all. The descriptors of other objects are
//! only tried.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::cache::{Store, StoreError};
use crate::core::ObjectId;
use crate::vfs::Result;

/// Descriptors reserved for other uses than objects, at most; of a small limit, half.
const RESERVED: usize = 256;

/// Divisor: share of the rest that files of the backend may use.
const FOR_READERS: usize = 4;

/// Divisor: share of the objects that are closed at once when there are too many.
const AT_ONCE: usize = 8;

/// Objects that stay open even if the system has no more descriptors.
const FEW: usize = 64;

/// With more unsynced objects than this, one syncfs is cheaper than an fsync for each.
const MANY: usize = 16;

/// How long a shortage of descriptors is reported after an open failed.
const REPORTED: Duration = Duration::from_secs(60);

/// A descriptor, counted while it is open.
#[derive(Debug)]
pub(crate) struct Descriptor {
    file: File,
    _counted: Counted,
}

impl Deref for Descriptor {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// One unit of a counter, released on drop.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Counted {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The object's open file, shared by all handles of its inode.
#[derive(Debug)]
pub(crate) struct ObjectFile {
    object: ObjectId,
    /// Bytes may have been written that no fsync has covered; the object is then in the set of
    /// [`crate::vfs::durability::Durability`].
    unsynced: AtomicBool,
    /// Size or time may differ from the values last recorded in the row of a file that is being
    /// written.
    changed: AtomicBool,
    /// When that was last recorded, in milliseconds after `files.since`.
    changed_at: AtomicU64,
    /// The object may have the mark of a whole file, see [`Store::mark_whole`].
    whole: AtomicBool,
    marking: Mutex<()>,
    files: Arc<ObjectFiles>,
    held: Mutex<Option<Arc<Descriptor>>>,
    /// Used since the last search for descriptors to close.
    recent: AtomicBool,
}

impl ObjectFile {
    pub(crate) fn id(&self) -> ObjectId {
        self.object
    }

    /// Returns whether no fsync covers the object's bytes.
    pub(super) fn is_unsynced(&self) -> bool {
        self.unsynced.load(Ordering::Acquire)
    }

    /// Records that no fsync covers the object's bytes, or that the next one will. Returns what was
    /// recorded before.
    pub(super) fn set_unsynced(&self, unsynced: bool) -> bool {
        self.unsynced.swap(unsynced, Ordering::AcqRel)
    }

    /// Records that size or time may differ from the row's.
    pub(super) fn note_changed(&self) {
        self.changed_at
            .store(self.files.milliseconds(), Ordering::Relaxed);
        self.changed.store(true, Ordering::Release);
    }

    /// Returns how long ago [`ObjectFile::note_changed`] was called.
    pub(super) fn unchanged_for(&self) -> Duration {
        let changed = self.changed_at.load(Ordering::Relaxed);
        Duration::from_millis(self.files.milliseconds().saturating_sub(changed))
    }

    /// Returns whether size or time may differ from the row's; the caller records them now.
    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    /// Returns the object's descriptor, open while the result lives.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn file(&self) -> Result<Arc<Descriptor>> {
        self.recent.store(true, Ordering::Relaxed);
        let mut held = self.held.lock();
        if let Some(descriptor) = &*held {
            return Ok(descriptor.clone());
        }
        let store = &self.files.store;
        let file = self.files.open(|| store.open_object(self.object))?;
        let descriptor = Arc::new(file);
        *held = Some(descriptor.clone());
        Ok(descriptor)
    }

    /// Clears the mark of a whole file before bytes change.
    pub(crate) fn begin_change(&self, file: &File) -> Result<()> {
        if !self.whole.load(Ordering::Acquire) {
            return Ok(());
        }
        // A second caller waits until the mark is removed.
        let _marking = self.marking.lock();
        if self.whole.load(Ordering::Acquire) {
            self.files.store.mark_whole(self.object, file, false)?;
            self.whole.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Returns whether the object has the mark already, so that [`ObjectFile::mark`] does nothing.
    pub(crate) fn is_marked(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// Marks the object as a whole file. The caller ensures that the object does not change
    /// meanwhile.
    pub(crate) fn mark(&self) -> Result<()> {
        let file = self.file()?;
        let _marking = self.marking.lock();
        self.files.store.mark_whole(self.object, &file, true)?;
        self.whole.store(true, Ordering::Release);
        Ok(())
    }

    /// Returns the locked descriptor if it is open and not in use.
    fn idle(&self) -> Option<MutexGuard<'_, Option<Arc<Descriptor>>>> {
        let held = self.held.try_lock()?;
        let unused = held
            .as_ref()
            .is_some_and(|descriptor| Arc::strong_count(descriptor) == 1);
        unused.then_some(held)
    }
}

/// All object files that are in use.
#[derive(Debug)]
pub(crate) struct ObjectFiles {
    store: Arc<Store>,
    /// Number of descriptors that objects may use.
    most: AtomicUsize,
    open: Arc<AtomicUsize>,
    readers: Arc<AtomicUsize>,
    all: Mutex<Vec<Weak<ObjectFile>>>,
    /// Length of `all` at which dropped entries are removed.
    tidy_at: AtomicUsize,
    turned: AtomicBool,
    short: Mutex<Option<Instant>>,
    since: Instant,
}

impl ObjectFiles {
    pub(crate) fn new(store: Arc<Store>) -> Arc<ObjectFiles> {
        Arc::new(ObjectFiles {
            store,
            most: AtomicUsize::new(usize::MAX),
            open: Arc::default(),
            readers: Arc::default(),
            all: Mutex::default(),
            tidy_at: AtomicUsize::new(1024),
            turned: AtomicBool::new(false),
            short: Mutex::new(None),
            since: Instant::now(),
        })
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the file of an existing object. It is opened on first use.
    pub(crate) fn existing(self: &Arc<ObjectFiles>, object: ObjectId) -> Arc<ObjectFile> {
        // It may have the mark from before.
        self.take_up(object, None, true)
    }

    /// Creates an object.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub(crate) fn create(self: &Arc<ObjectFiles>, object: ObjectId) -> Result<Arc<ObjectFile>> {
        let file = self.open(|| self.store.create(object))?;
        Ok(self.take_up(object, Some(Arc::new(file)), false))
    }

    /// Creates the object `to` as a copy of `from`.
    ///
    /// # Errors
    /// As [`Store::clone_object`].
    pub(crate) fn clone_of(
        self: &Arc<ObjectFiles>,
        from: &ObjectFile,
        to: ObjectId,
    ) -> Result<Arc<ObjectFile>> {
        let source = from.file()?;
        let file = self.open(|| self.store.clone_object(&source, to))?;
        Ok(self.take_up(to, Some(Arc::new(file)), false))
    }

    fn take_up(
        self: &Arc<ObjectFiles>,
        object: ObjectId,
        held: Option<Arc<Descriptor>>,
        whole: bool,
    ) -> Arc<ObjectFile> {
        let file = Arc::new(ObjectFile {
            object,
            unsynced: AtomicBool::new(false),
            changed: AtomicBool::new(true),
            changed_at: AtomicU64::new(self.milliseconds()),
            whole: AtomicBool::new(whole),
            marking: Mutex::default(),
            files: self.clone(),
            held: Mutex::new(held),
            recent: AtomicBool::new(true),
        });
        let mut all = self.all.lock();
        if all.len() >= self.tidy_at.load(Ordering::Relaxed) {
            all.retain(|file| file.strong_count() > 0);
            self.tidy_at
                .store((2 * all.len()).max(1024), Ordering::Relaxed);
        }
        all.push(Arc::downgrade(&file));
        file
    }

    /// Calls `open`, after closing other objects if too many are open.
    fn open(&self, open: impl Fn() -> std::result::Result<File, StoreError>) -> Result<Descriptor> {
        if self.open.load(Ordering::Relaxed) >= self.most.load(Ordering::Relaxed) {
            self.close_some();
        }
        let opened = match open() {
            // Other files use up the descriptors then; closing the last few objects, which may be
            // in use, would not help.
            Err(error) if is_shortage(&error) && self.open.load(Ordering::Relaxed) > FEW => {
                self.close_some();
                open()
            }
            opened => opened,
        };
        if let Err(error) = &opened
            && is_shortage(error)
        {
            self.note_shortage(error);
        }
        Ok(Descriptor {
            file: opened?,
            _counted: Counted::new(&self.open),
        })
    }

    fn note_shortage(&self, error: &StoreError) {
        let mut short = self.short.lock();
        if short.is_none_or(|at| at.elapsed() >= REPORTED) {
            let open = self.open.load(Ordering::Relaxed);
            tracing::error!(%error, open, "too many open files");
        }
        *short = Some(Instant::now());
    }

    /// Closes a share of the open objects, the least recently used first.
    fn close_some(&self) {
        if !self.turned.swap(true, Ordering::Relaxed) {
            tracing::info!(
                most = self.most.load(Ordering::Relaxed),
                "more objects are in use than may be open at once; they are opened in turn; a higher limit (LimitNOFILE, ulimit -n) is faster"
            );
        }
        let goal = (self.open.load(Ordering::Relaxed) / AT_ONCE).max(1);
        let mut closed = 0;
        let mut unsynced = Vec::new();
        {
            let mut all = self.all.lock();
            all.retain(|file| file.strong_count() > 0);
            // Twice: the first pass spares objects used since the last time.
            for file in all.iter().chain(all.iter()).filter_map(Weak::upgrade) {
                if closed >= goal {
                    break;
                }
                if file.recent.swap(false, Ordering::Relaxed) {
                    continue;
                }
                if file.unsynced.load(Ordering::Acquire) {
                    if unsynced.len() < goal {
                        unsynced.push(file);
                    }
                } else if let Some(mut held) = file.idle() {
                    *held = None;
                    closed += 1;
                }
            }
            // The objects spared now are examined first the next time, those examined first now are
            // last.
            let rest = all.len().min(goal);
            all.rotate_left(rest);
        }
        if closed < goal {
            self.close_unsynced(&unsynced, goal - closed);
        }
    }

    /// Syncs up to `goal` of `files` and closes them. A failure is recorded as damage of the
    /// object.
    fn close_unsynced(&self, files: &[Arc<ObjectFile>], goal: usize) {
        let mut idle: Vec<_> = files
            .iter()
            .filter_map(|file| Some((file.object, file.idle()?)))
            .take(goal)
            .collect();
        let objects: Vec<ObjectId> = idle.iter().map(|(object, _)| *object).collect();
        let all_synced = objects.len() > MANY && self.store.sync_all(&objects).is_ok();
        for (object, held) in &mut idle {
            let synced = match &**held {
                Some(file) if !all_synced => self.store.sync_object(*object, file),
                _ => Ok(()),
            };
            if let Err(error) = synced {
                tracing::error!(%error, "cannot sync an object before closing it");
                if self.store.damage(*object).is_none() {
                    continue; // Perhaps transient, and only this descriptor reports it.
                }
            }
            **held = None;
        }
    }

    /// Sets the number of descriptors that this process may have. Objects get what other uses
    /// leave.
    pub(super) fn limit_descriptors(&self, limit: u64) {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let most = limit - RESERVED.min(limit / 2);
        // Files of the backend get a part of the rest.
        let most = (most - most / (FOR_READERS + 1)).max(1);
        self.most.store(most, Ordering::Relaxed);
    }

    /// Counts one more open file of the backend.
    pub(crate) fn count_reader(&self) -> Counted {
        Counted::new(&self.readers)
    }

    /// Returns how many files of the backend to close before one more is opened.
    pub(crate) fn surplus_readers(&self) -> usize {
        let most = (self.most.load(Ordering::Relaxed) / FOR_READERS).max(1);
        match self.readers.load(Ordering::Relaxed) {
            open if open >= most => open - most / 2,
            _ => 0,
        }
    }

    /// Returns the text that reports a recent shortage of descriptors.
    pub(crate) fn trouble(&self) -> Option<String> {
        let recent = self.short.lock().is_some_and(|at| at.elapsed() < REPORTED);
        recent.then(|| {
            format!(
                "too many open files: {} of the cache are open, and the system gave no more; \
                 close some, or raise the limit (LimitNOFILE in the service, ulimit -n, fs.file-max)",
                self.open.load(Ordering::Relaxed)
            )
        })
    }
}

/// Returns whether no descriptor was left.
fn is_shortage(error: &StoreError) -> bool {
    matches!(
        error.source.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE)
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn few(most: usize) -> (tempfile::TempDir, Arc<ObjectFiles>) {
        let dir = tempfile::tempdir().unwrap();
        let files = ObjectFiles::new(Arc::new(Store::open(dir.path()).unwrap()));
        files.most.store(most, Ordering::Relaxed);
        (dir, files)
    }

    fn make(
        files: &Arc<ObjectFiles>,
        numbers: impl IntoIterator<Item = u64>,
    ) -> Vec<Arc<ObjectFile>> {
        (numbers.into_iter())
            .map(|n| files.create(ObjectId(n)).unwrap())
            .collect()
    }

    #[test]
    fn no_more_are_open_than_may_be_and_each_has_its_bytes() {
        let (_dir, files) = few(10);
        let all = make(&files, 0..200);
        for (n, object) in all.iter().enumerate() {
            object.file().unwrap().write_all_at(&[n as u8], 0).unwrap();
            assert!(files.open.load(Ordering::Relaxed) <= 10);
        }
        for (n, object) in all.iter().enumerate().rev() {
            let mut byte = [0];
            object.file().unwrap().read_exact_at(&mut byte, 0).unwrap();
            assert_eq!(byte, [n as u8]);
        }
        drop(all);
        assert_eq!(files.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_in_use_stays_open_though_its_object_is_removed() {
        let (_dir, files) = few(4);
        let first = files.create(ObjectId(1000)).unwrap();
        let used = first.file().unwrap();
        used.write_all_at(b"still", 0).unwrap();
        files.store.remove(ObjectId(1000)).unwrap();
        make(&files, 0..50);
        let mut bytes = [0; 5];
        used.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"still");
    }

    #[test]
    fn unsynced_bytes_are_synced_before_their_file_is_closed_and_a_failure_is_told() {
        let (_dir, files) = few(4);
        let object = files.create(ObjectId(1000)).unwrap();
        object.file().unwrap().write_all_at(b"lost", 0).unwrap();
        object.set_unsynced(true);
        files.store.inject(Some(Box::new(|operation, object| {
            match (operation, object) {
                ("fsync", ObjectId(1000)) => Err(std::io::Error::from_raw_os_error(libc::EIO)),
                _ => Ok(()),
            }
        })));
        let others = make(&files, 0..3);
        for other in &others {
            other.set_unsynced(true);
        }
        make(&files, 3..43);
        let closed = object.held.lock().is_none();
        assert!(closed, "it was not closed, so this shows nothing");
        assert!(files.store.damage(ObjectId(1000)).is_some());
        assert!(files.store.damage(ObjectId(0)).is_none());
    }
}
