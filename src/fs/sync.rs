//! Durability: data before metadata, many callers at once.
//!
//! [`Fs::sync`] first syncs every object with bytes that no fsync has covered, then the index. So a row that survives a power
//! cut vouches for bytes that did, too. What is written, closed and committed while a sync runs is looked for again, a few
//! times; under a steady stream of small files a row of the last moment may still pass by its bytes, as if it had been written
//! after the sync. [`Syncer`] is the one thread that calls it: requests that arrive while it works share the next run.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::open::ObjectFile;
use super::{Fs, Result};
use crate::base::{Ino, ObjectId};
use crate::sys;

/// With more unsynced objects than this, one syncfs is cheaper than an fsync for each.
const MANY: usize = 16;

/// How often a sync looks for objects that were written while it ran.
const ROUNDS: usize = 3;

/// The objects with bytes that no fsync has covered yet. Their files are not held open for it: there may be thousands.
#[derive(Debug, Default)]
pub(super) struct Unsynced(Mutex<HashMap<ObjectId, Weak<ObjectFile>>>);

impl Unsynced {
    pub(super) fn add(&self, object: &Arc<ObjectFile>) {
        self.0.lock().insert(object.object, Arc::downgrade(object));
    }

    fn take(&self) -> HashMap<ObjectId, Weak<ObjectFile>> {
        let taken = std::mem::take(&mut *self.0.lock());
        for object in taken.values().filter_map(Weak::upgrade) {
            // Before the sync: what is written from here on adds it again.
            object.unsynced.store(false, Ordering::Release);
        }
        taken
    }

    /// Puts back what could not be synced.
    fn put_back(&self, objects: HashMap<ObjectId, Weak<ObjectFile>>) {
        for object in objects.values().filter_map(Weak::upgrade) {
            object.unsynced.store(true, Ordering::Release);
        }
        self.0.lock().extend(objects);
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    pub(super) fn has(&self, object: ObjectId) -> bool {
        self.0.lock().contains_key(&object)
    }

    fn find(&self, object: ObjectId) -> Option<Arc<ObjectFile>> {
        self.0.lock().get(&object).and_then(Weak::upgrade)
    }
}

impl Fs {
    /// Makes everything that was done before this call durable.
    ///
    /// # Errors
    /// If any object or the index cannot be synced. What was not synced stays noted as such, so that the next call does not
    /// pass it by; but an error of the disk is told only once by the system, so it is told to everybody who waits.
    pub fn sync(&self) -> Result<()> {
        // One at a time: whoever finds nothing left to sync must not answer before it is synced by whoever took it.
        let _one_at_a_time = self.syncing.lock();
        let replaced = self.index.lock().last_replaced();
        for _ in 0..ROUNDS {
            let objects = self.unsynced.take();
            if objects.is_empty() {
                break;
            }
            if let Err(error) = self.sync_objects(&objects) {
                self.unsynced.put_back(objects);
                return Err(error);
            }
        }
        self.index.sync()?;
        // What was replaced before this began was replaced by bytes that are durable now. Noted before anybody is told, so
        // that a note which is still there speaks of bytes that nobody was promised.
        if let Some(upto) = replaced {
            let mut state = self.index.lock();
            state.forget_replaced(upto)?;
            state.commit()?;
        }
        Ok(())
    }

    fn sync_objects(&self, objects: &HashMap<ObjectId, Weak<ObjectFile>>) -> Result<()> {
        if objects.len() > MANY {
            return Ok(self.store.sync_all(objects.keys().copied())?);
        }
        for (object, file) in objects {
            match file.upgrade() {
                Some(open) => self.store.sync_object(*object, &open.file)?,
                None => self.store.sync_closed_object(*object)?,
            }
        }
        Ok(())
    }

    /// Whether there are bytes that no fsync has covered.
    pub fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Whether the object may have bytes that no fsync has covered. While a sync runs nobody knows what it is through with.
    pub(super) fn may_be_unsynced(&self, object: ObjectId) -> bool {
        self.unsynced.has(object) || self.syncing.is_locked()
    }

    /// Starts to write the file's bytes to the SSD without waiting, so that a later sync has less to do.
    pub(super) fn start_writeback(&self, ino: Ino) {
        let object = self
            .index
            .lock()
            .inode(ino)
            .ok()
            .flatten()
            .and_then(|inode| inode.object);
        if let Some(file) = object.and_then(|object| self.unsynced.find(object)) {
            // Only a hint: the sync that counts comes later and reports its errors.
            let _ = sys::file::start_writeback(&file.file, 0, 0);
        }
    }

    /// Commits what waits to be, and notes the sizes that files being written have reached.
    ///
    /// # Errors
    /// If the index fails.
    pub fn commit_pending(&self) -> Result<()> {
        for open in self.opens.all() {
            let Some(content) = open.content.try_read() else {
                continue;
            };
            if content.prepared
                && let Some(object) = &content.object
            {
                let measured = super::content::measure(&object.file)?;
                let mut state = self.index.lock();
                if let Some(mut inode) = state.inode(open.ino)? {
                    let before = inode.clone();
                    measured.apply(&mut inode);
                    if inode != before {
                        state.put_inode(inode);
                    }
                }
            }
        }
        self.settle_again()?;
        Ok(self.index.commit()?)
    }

    /// After something was undone, rows of files that had been closed may say again that they are being written, with a size
    /// from before: a cut would take them for closed, and find another size. Their objects know.
    fn settle_again(&self) -> Result<()> {
        let left = self.index.lock().take_unsettled_again()?;
        for inode in left {
            let Some(object) = inode.object else { continue };
            let measured = super::content::measure(&self.store.open_object(object)?)?;
            let mut state = self.index.lock();
            let now = state.inode(inode.ino)?;
            // Somebody may have opened it meanwhile, and then it is his.
            if let Some(mut now) = now.filter(|now| now.object == Some(object))
                && !state.is_writing(inode.ino)
            {
                measured.apply(&mut now);
                now.flags.clear(crate::index::Flags::WRITING);
                state.put_inode(now);
            }
        }
        Ok(())
    }

    /// Settles what is still open, so that the next start finds nothing to repair. To be called when no request can come any more.
    ///
    /// # Errors
    /// If the index or an object fails.
    pub fn close_all(&self) -> Result<()> {
        for open in self.opens.all() {
            let mut content = open.content.write();
            self.settle(open.ino, &mut content)?;
        }
        {
            let mut state = self.index.lock();
            for inode in state.unsettled()? {
                if inode.nlink == 0 {
                    state.remove_inode(inode.ino)?;
                }
            }
            state.commit()?;
        }
        self.sync()
    }
}

/// Whoever waits for a sync.
type Waiter = Box<dyn FnOnce(std::result::Result<(), i32>) + Send>;

/// The thread that syncs.
pub struct Syncer {
    queue: Sender<Waiter>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Syncer {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(fs: Arc<Fs>) -> std::io::Result<Syncer> {
        let (queue, requests) = unbounded();
        let thread = std::thread::Builder::new()
            .name("ferryfs-sync".into())
            .spawn(move || serve(&fs, &requests))?;
        Ok(Syncer {
            queue,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Asks for a sync of everything done before this call; `done` is told the errno if it fails.
    pub fn request(&self, done: impl FnOnce(std::result::Result<(), i32>) + Send + 'static) {
        if let Err(back) = self.queue.send(Box::new(done)) {
            (back.0)(Err(libc::EIO));
        }
    }

    /// Ends the thread after what has been asked for.
    pub fn stop(self) {
        drop(self.queue);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

fn serve(fs: &Fs, requests: &Receiver<Waiter>) {
    while let Ok(first) = requests.recv() {
        let mut waiters = vec![first];
        waiters.extend(requests.try_iter());
        // A panic is an error like another: without this thread no fsync would ever be answered again.
        let synced = catch_unwind(AssertUnwindSafe(|| fs.sync()));
        let result = match synced {
            Ok(synced) => synced.map_err(|error| {
                tracing::error!(%error, "sync failed");
                error.errno()
            }),
            Err(_) => {
                tracing::error!("a sync panicked; it is answered with EIO");
                Err(libc::EIO)
            }
        };
        for waiter in waiters {
            waiter(result);
        }
    }
}
