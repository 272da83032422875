//! The descriptors of objects: few, however many files of the mount are open.
//!
//! An [`ObjectFile`] opens its object when it is used. When objects take as many descriptors as they may, those that have not been
//! used for longest are closed, and opened again by their number when they are needed: an object is not removed while its file is
//! open in the mount. What else the daemon needs descriptors for (the index, the drive, the control socket) has its share held
//! free, so a program that opens very many files stands in nobody's way but its own.
//!
//! Linux tells a failed write to those that had the file open then. So an object with bytes that no fsync has covered is synced
//! before it is closed here: a failure is noted as its damage ([`crate::cache::Damage`]), and its next fsync tells of it.
//!
//! Lock order: an object's descriptor, then the list of all; of other objects' descriptors only those that are free are taken.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::{Fs, Result};
use crate::base::ObjectId;
use crate::cache::{Store, StoreError};

/// Descriptors that are held free for all but objects, at most; of a small limit, half.
const RESERVED: usize = 256;

/// Share of the rest that files of the backend may take, as a divisor.
const FOR_READERS: usize = 4;

/// Share of the objects that are closed at once when there are too many, as a divisor.
const AT_ONCE: usize = 8;

/// So many objects stay open also when the system has no more descriptors.
const FEW: usize = 64;

/// With more unsynced objects than this, one syncfs is cheaper than an fsync for each.
const MANY: usize = 16;

/// For so long after an open failed for want of descriptors it is told.
const TOLD: Duration = Duration::from_secs(60);

/// A descriptor, counted as long as it is open.
#[derive(Debug)]
pub(super) struct Descriptor {
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

/// One of those that are counted.
#[derive(Debug)]
pub(super) struct Counted(Arc<AtomicUsize>);

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

/// The file of an object, shared by all handles of its inode.
#[derive(Debug)]
pub(super) struct ObjectFile {
    pub(super) object: ObjectId,
    /// Bytes may have been written that no fsync has covered, and the file is in [`super::sync::Unsynced`] for it.
    pub(super) unsynced: AtomicBool,
    /// Its size or time may be others than they were when they were last noted in the row of a file that is being written.
    pub(super) changed: AtomicBool,
    /// It may bear the mark of what is whole, see [`Store::mark_whole`].
    whole: AtomicBool,
    marking: Mutex<()>,
    files: Arc<Files>,
    held: Mutex<Option<Arc<Descriptor>>>,
    /// Used since it was last looked at for being closed.
    recent: AtomicBool,
}

impl ObjectFile {
    /// The object, open for as long as the answer lives.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn file(&self) -> Result<Arc<Descriptor>> {
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

    /// Before bytes change: it is not whole any more.
    pub(super) fn begin_change(&self, file: &File) -> Result<()> {
        if !self.whole.load(Ordering::Acquire) {
            return Ok(());
        }
        // Whoever comes second waits until the mark is gone.
        let _marking = self.marking.lock();
        if self.whole.load(Ordering::Acquire) {
            self.files.store.mark_whole(self.object, file, false)?;
            self.whole.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Whether [`ObjectFile::mark`] has nothing to do.
    pub(super) fn is_marked(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// Marks it as whole. The caller sees to it that nobody changes it meanwhile.
    pub(super) fn mark(&self) -> Result<()> {
        let file = self.file()?;
        let _marking = self.marking.lock();
        self.files.store.mark_whole(self.object, &file, true)?;
        self.whole.store(true, Ordering::Release);
        Ok(())
    }

    /// Its descriptor, locked, if it is open and nobody uses it.
    fn idle(&self) -> Option<MutexGuard<'_, Option<Arc<Descriptor>>>> {
        let held = self.held.try_lock()?;
        let unused = held
            .as_ref()
            .is_some_and(|descriptor| Arc::strong_count(descriptor) == 1);
        unused.then_some(held)
    }
}

/// All that have been opened.
#[derive(Debug)]
pub(super) struct Files {
    store: Arc<Store>,
    /// How many descriptors objects may take.
    most: AtomicUsize,
    open: Arc<AtomicUsize>,
    readers: Arc<AtomicUsize>,
    all: Mutex<Vec<Weak<ObjectFile>>>,
    /// How long `all` may get before those that are gone are taken out.
    tidy_at: AtomicUsize,
    turned: AtomicBool,
    short: Mutex<Option<Instant>>,
}

impl Files {
    pub(super) fn new(store: Arc<Store>) -> Arc<Files> {
        Arc::new(Files {
            store,
            most: AtomicUsize::new(usize::MAX),
            open: Arc::default(),
            readers: Arc::default(),
            all: Mutex::default(),
            tidy_at: AtomicUsize::new(1024),
            turned: AtomicBool::new(false),
            short: Mutex::new(None),
        })
    }

    /// Takes up an object that is there. It is opened when it is used.
    pub(super) fn existing(self: &Arc<Files>, object: ObjectId) -> Arc<ObjectFile> {
        // Whether it bears the mark is not known.
        self.take_up(object, None, true)
    }

    /// Makes a new object.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub(super) fn create(self: &Arc<Files>, object: ObjectId) -> Result<Arc<ObjectFile>> {
        let file = self.open(|| self.store.create(object))?;
        Ok(self.take_up(object, Some(Arc::new(file)), false))
    }

    /// Makes the new object `to` a copy of `from`.
    ///
    /// # Errors
    /// As [`Store::clone_object`].
    pub(super) fn clone_of(
        self: &Arc<Files>,
        from: &ObjectFile,
        to: ObjectId,
    ) -> Result<Arc<ObjectFile>> {
        let source = from.file()?;
        let file = self.open(|| self.store.clone_object(&source, to))?;
        Ok(self.take_up(to, Some(Arc::new(file)), false))
    }

    fn take_up(
        self: &Arc<Files>,
        object: ObjectId,
        held: Option<Arc<Descriptor>>,
        whole: bool,
    ) -> Arc<ObjectFile> {
        let file = Arc::new(ObjectFile {
            object,
            unsynced: AtomicBool::new(false),
            changed: AtomicBool::new(true),
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

    /// Opens by `open`, after some others have been closed if there are too many.
    fn open(&self, open: impl Fn() -> std::result::Result<File, StoreError>) -> Result<Descriptor> {
        if self.open.load(Ordering::Relaxed) >= self.most.load(Ordering::Relaxed) {
            self.close_some();
        }
        let opened = match open() {
            // It is others that hold so many; but a few, in use by somebody perhaps, make no difference.
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
        if short.is_none_or(|at| at.elapsed() >= TOLD) {
            let open = self.open.load(Ordering::Relaxed);
            tracing::error!(%error, open, "too many open files");
        }
        *short = Some(Instant::now());
    }

    /// Closes a share of the objects that are open, those that have not been used for longest first.
    fn close_some(&self) {
        if !self.turned.swap(true, Ordering::Relaxed) {
            tracing::info!(
                most = self.most.load(Ordering::Relaxed),
                "more files are in use than may be open at once: they are opened in turn; a higher limit (LimitNOFILE, ulimit -n) is faster"
            );
        }
        let goal = (self.open.load(Ordering::Relaxed) / AT_ONCE).max(1);
        let mut closed = 0;
        let mut unsynced = Vec::new();
        {
            let mut all = self.all.lock();
            all.retain(|file| file.strong_count() > 0);
            // Twice: at first those are spared that were used since the last time.
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
            // Who was spared now is looked at first the next time; who was looked at first, last.
            let rest = all.len().min(goal);
            all.rotate_left(rest);
        }
        if closed < goal {
            self.close_unsynced(&unsynced, goal - closed);
        }
    }

    /// Syncs up to `goal` of `files` and closes them. What fails is noted as damage of the object.
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
                tracing::error!(%error, "bytes of a file that is being closed");
                if self.store.damage(*object).is_none() {
                    continue; // It may pass, and is not told of but by this descriptor.
                }
            }
            **held = None;
        }
    }

    /// How many files of the backend may be open for readers; counts one more.
    pub(super) fn count_reader(&self) -> Counted {
        Counted::new(&self.readers)
    }

    /// How many files of the backend are to be closed before one more is opened.
    pub(super) fn surplus_readers(&self) -> usize {
        let most = (self.most.load(Ordering::Relaxed) / FOR_READERS).max(1);
        match self.readers.load(Ordering::Relaxed) {
            open if open >= most => open - most / 2,
            _ => 0,
        }
    }

    /// What is to be told of files that could not be opened of late.
    pub(super) fn trouble(&self) -> Option<String> {
        let recent = self.short.lock().is_some_and(|at| at.elapsed() < TOLD);
        recent.then(|| {
            format!(
                "too many open files: {} of the cache are open, and the system gave no more; \
                 close some, or raise the limit (LimitNOFILE in the service, ulimit -n, fs.file-max)",
                self.open.load(Ordering::Relaxed)
            )
        })
    }
}

/// Whether there are no more descriptors to be had.
fn is_shortage(error: &StoreError) -> bool {
    matches!(
        error.source.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE)
    )
}

impl Fs {
    /// Tells how many descriptors this process may have: objects take no more than leaves enough for everything else.
    pub fn limit_descriptors(&self, limit: u64) {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let most = limit - RESERVED.min(limit / 2);
        // A part of the rest is for files of the backend.
        let most = (most - most / (FOR_READERS + 1)).max(1);
        self.files.most.store(most, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn few(most: usize) -> (tempfile::TempDir, Arc<Files>) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(Arc::new(Store::open(dir.path()).unwrap()));
        files.most.store(most, Ordering::Relaxed);
        (dir, files)
    }

    fn make(files: &Arc<Files>, numbers: impl IntoIterator<Item = u64>) -> Vec<Arc<ObjectFile>> {
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
        object.unsynced.store(true, Ordering::Release);
        files.store.inject(Some(Box::new(|operation, object| {
            match (operation, object) {
                ("fsync", ObjectId(1000)) => Err(std::io::Error::from_raw_os_error(libc::EIO)),
                _ => Ok(()),
            }
        })));
        let others = make(&files, 0..3);
        for other in &others {
            other.unsynced.store(true, Ordering::Release);
        }
        make(&files, 3..43);
        let closed = object.held.lock().is_none();
        assert!(closed, "it was not closed, so this shows nothing");
        assert!(files.store.damage(ObjectId(1000)).is_some());
        assert!(files.store.damage(ObjectId(0)).is_none());
    }
}
