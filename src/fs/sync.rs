//! Durability: data before metadata, many callers at once.
//!
//! [`Fs::sync`] first syncs every object with bytes that no fsync has covered, then the index. So no row that survives a power
//! cut vouches for bytes that did not, save for what was written while the sync itself ran, whose rows say that they were
//! being written. [`Syncer`] is the one thread that calls it: requests that arrive while it works share the next run.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::open::ObjectFile;
use super::{Fs, FsError, Result};
use crate::base::{Ino, ObjectId};
use crate::sys;

/// With more unsynced objects than this, one syncfs is cheaper than an fsync for each.
const MANY: usize = 16;

/// The objects with bytes that no fsync has covered yet.
#[derive(Debug, Default)]
pub(super) struct Unsynced(Mutex<HashMap<ObjectId, Arc<ObjectFile>>>);

impl Unsynced {
    pub(super) fn add(&self, object: Arc<ObjectFile>) {
        self.0.lock().insert(object.object, object);
    }

    fn take(&self) -> Vec<Arc<ObjectFile>> {
        let taken = std::mem::take(&mut *self.0.lock());
        taken.into_values().collect()
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    fn find(&self, object: ObjectId) -> Option<Arc<ObjectFile>> {
        self.0.lock().get(&object).cloned()
    }
}

impl Fs {
    /// Makes everything that was done before this call durable.
    ///
    /// # Errors
    /// If any object or the index cannot be synced. What was not synced stays noted as such, so that the next call does not
    /// pass it by; but an error of the disk is told only once by the system, so it is told to everybody who waits.
    pub fn sync(&self) -> Result<()> {
        let objects = self.unsynced.take();
        for object in &objects {
            object.unsynced.store(false, Ordering::Release);
        }
        let mut result = if objects.len() > MANY {
            self.store
                .sync_all(objects.iter().map(|o| o.object), &objects[0].file)
        } else {
            objects
                .iter()
                .try_for_each(|o| self.store.sync_object(o.object, &o.file))
        }
        .map_err(FsError::from);
        if result.is_ok() {
            result = self.index.sync().map_err(FsError::from);
        }
        if result.is_err() {
            for object in objects {
                self.note_unsynced(&object);
            }
        }
        result
    }

    /// Whether there are bytes that no fsync has covered.
    pub fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
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
        Ok(self.index.commit()?)
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
        let result = fs.sync().map_err(|error| {
            tracing::error!(%error, "sync failed");
            error.errno()
        });
        for waiter in waiters {
            waiter(result);
        }
    }
}
