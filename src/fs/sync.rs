//! Durability: data before metadata, many callers at once.
//!
//! [`Fs::sync`] first syncs every object with bytes that no fsync has covered, then the index. So a row that survives a power
//! cut vouches for bytes that did, too. What is written, closed and committed while a sync runs is looked for again, a few
//! times; under a steady stream of small files a row of the last moment may still pass by its bytes, as if it had been written
//! after the sync. An object whose sync fails is damaged from then on ([`crate::cache::Damage`]): the failure is told to all who
//! wait for this sync, and after it to whoever syncs that file. [`Syncer`] is the one thread that calls it: requests that arrive while it works share the next run.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::files::ObjectFile;
use super::{Fs, FsError, Result};
use crate::base::{Ino, ObjectId};
use crate::cache::Damage;
use crate::index::Flags;
use crate::sys;

/// With more unsynced objects than this, one syncfs is cheaper than an fsync for each.
const MANY: usize = 16;

/// How often a sync looks for objects that were written while it ran.
const ROUNDS: usize = 3;

/// Prefix of the index's settings that name damaged objects.
const DAMAGED: &str = "damaged/";

/// Damaged files that are named one by one.
const NAMED: usize = 5;

fn damage_key(object: ObjectId) -> String {
    format!("{DAMAGED}{object}")
}

/// The objects with bytes that no fsync has covered yet. Their files are not held open for it: there may be thousands.
/// By number, so that a seeded test meets them in the same order each time.
#[derive(Debug, Default)]
pub(super) struct Unsynced(Mutex<BTreeMap<ObjectId, Weak<ObjectFile>>>);

impl Unsynced {
    pub(super) fn add(&self, object: &Arc<ObjectFile>) {
        self.0.lock().insert(object.object, Arc::downgrade(object));
    }

    fn take(&self) -> BTreeMap<ObjectId, Weak<ObjectFile>> {
        let taken = std::mem::take(&mut *self.0.lock());
        for object in taken.values().filter_map(Weak::upgrade) {
            // Before the sync: what is written from here on adds it again.
            object.unsynced.store(false, Ordering::Release);
        }
        taken
    }

    /// Puts back what could not be synced.
    fn put_back(&self, objects: BTreeMap<ObjectId, Weak<ObjectFile>>) {
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
    /// If any object or the index cannot be synced. An error of the disk is told only once by the system, so it is told to
    /// everybody who waits, and remembered: of an object, for whoever syncs its file, see [`Fs::sync_verdict`]; of the index,
    /// for everybody.
    pub fn sync(&self) -> Result<()> {
        // One at a time: whoever finds nothing left to sync must not answer before it is synced by whoever took it.
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
        // What was replaced before this began was replaced by bytes that are durable now. Noted before anybody is told, so
        // that a note which is still there speaks of bytes that nobody was promised.
        if let (Some(upto), Ok(())) = (replaced, &damage) {
            let mut state = self.index.lock();
            state.forget_replaced(upto)?;
            state.commit()?;
        }
        damage
    }

    /// Syncs each of `objects`. An error is one that may pass, and after which the index may not be synced; an error within
    /// says that bytes are lost, and has been taken note of.
    fn sync_objects(
        &self,
        objects: &BTreeMap<ObjectId, Weak<ObjectFile>>,
    ) -> Result<std::result::Result<(), FsError>> {
        if objects.len() > MANY {
            let all: Vec<ObjectId> = objects.keys().copied().collect();
            match self.store.sync_all(&all) {
                Ok(()) => return Ok(Ok(())),
                // Somebody's bytes are lost, perhaps not ours: each object is asked.
                Err(error) => tracing::error!(%error, "the SSD has refused bytes"),
            }
        }
        let mut damage = Ok(());
        for (object, file) in objects {
            let known = self.store.damage(*object).is_some();
            let synced = match file.upgrade() {
                Some(open) => {
                    let file = open.file()?;
                    self.store.sync_object(*object, &file)
                }
                None => self.store.sync_closed_object(*object),
            };
            match synced {
                Err(_) if known => {}
                Err(error) if self.store.damage(*object).is_some() => {
                    tracing::error!(%error, "bytes of a file are lost unless it is written anew");
                    damage = Err(error.into());
                }
                result => result?,
            }
        }
        Ok(damage)
    }

    /// Notes in the index which objects are damaged, so that the next start knows.
    fn note_damage(&self) {
        for (object, damage, noted) in self.store.damaged() {
            if noted {
                continue;
            }
            let errno = damage.errno.to_string();
            let written = self.index.lock().set_meta(&damage_key(object), &errno);
            match written {
                Ok(()) => self.store.note_damage(object, damage),
                Err(error) => tracing::error!(%object, %error, "the damage cannot be noted"),
            }
        }
    }

    /// Takes up what an earlier daemon has noted.
    pub(super) fn recall_damage(&self) -> Result<()> {
        let noted = self.index.lock().metas(DAMAGED)?;
        for (object, errno) in noted {
            if let (Ok(object), Ok(errno)) = (u64::from_str_radix(&object, 16), errno.parse()) {
                self.store.note_damage(ObjectId(object), Damage { errno });
            }
        }
        Ok(())
    }

    /// The object's bytes are new, or it is gone.
    pub(super) fn forget_damage(&self, object: ObjectId) -> Result<()> {
        if self.store.forget_damage(object) {
            self.index.lock().set_meta(&damage_key(object), "")?;
        }
        Ok(())
    }

    /// Whether a sync has made the file `ino` durable: the answer of its fsync, after [`Fs::sync`] has succeeded.
    ///
    /// # Errors
    /// `EIO` if bytes of it were lost and have not been written anew.
    pub fn sync_verdict(&self, ino: Ino) -> Result<()> {
        let inode = self.index.lock().inode(ino)?;
        match inode.and_then(|inode| inode.object) {
            Some(object) if self.store.damage(object).is_some() => Err(FsError::Errno(libc::EIO)),
            _ => Ok(()),
        }
    }

    /// What is wrong with the SSD and stays so until somebody does something about it, a line each.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> = self.files.trouble().into_iter().collect();
        if self.index.is_sealed() {
            troubles.push(
                "the SSD has failed to keep the index; nothing more is changed: copy what you need, unmount, look at the SSD, mount again"
                    .into(),
            );
        }
        let damaged = self.store.damaged();
        for (object, damage, _) in damaged.iter().take(NAMED) {
            let path = self.path_of_object(*object);
            let path = path.unwrap_or_else(|| format!("object {object}"));
            troubles.push(format!(
                "{path}: {damage}; write it anew from another copy, and look at the SSD"
            ));
        }
        if damaged.len() > NAMED {
            troubles.push(format!("and {} more files", damaged.len() - NAMED));
        }
        troubles
    }

    fn path_of_object(&self, object: ObjectId) -> Option<String> {
        let mut state = self.index.lock();
        let ino = state.owner_of(object).ok()??;
        Some(state.mount_path(ino).ok()??.to_string())
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
            let _ = file
                .file()
                .map(|file| sys::file::start_writeback(&file, 0, 0));
        }
    }

    /// Commits what waits to be, and notes the sizes that files being written have reached.
    ///
    /// # Errors
    /// If the index fails.
    pub fn commit_pending(&self) -> Result<()> {
        if self.index.is_sealed() {
            return Ok(()); // Told already, and by `status`.
        }
        self.expire_close_marks();
        // What was noted may have been undone.
        let all = self.index.lock().take_unmeasured();
        let reached = self.note_sizes(all);
        if all && !matches!(reached, Ok(true)) {
            self.index.lock().note_unmeasured();
        }
        reached?;
        self.index.commit()?;
        self.settle_again()
    }

    /// Notes the sizes of files being written that have changed, or of `all`; false if one was in use.
    fn note_sizes(&self, all: bool) -> Result<bool> {
        let mut reached = true;
        for open in self.opens.all() {
            let Some(content) = open.content.try_read() else {
                reached = false;
                continue;
            };
            // What has not changed since the last time need not be opened for it: there may be very many.
            if content.prepared
                && let Some(object) = &content.object
                && (object.changed.swap(false, Ordering::AcqRel) || all)
            {
                // One that cannot be asked must not keep the others from being noted.
                let measured = object
                    .file()
                    .and_then(|file| super::content::measure(&file));
                let Ok(measured) = measured else {
                    object.changed.store(true, Ordering::Release);
                    continue;
                };
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
        Ok(reached)
    }

    /// What settled files has been undone: their rows say still that they are being written. Their objects know.
    fn settle_again(&self) -> Result<()> {
        if !self.index.lock().take_unsettled() {
            return Ok(());
        }
        let written = self.index.lock().written_by_nobody();
        let settled = written.and_then(|inos| {
            for ino in inos {
                let mut state = self.index.lock();
                let Some(mut inode) = state.inode(ino)? else {
                    continue;
                };
                let object = inode.object.filter(|_| !state.is_writing(ino));
                if let Some(object) = object
                    && let Ok(file) = self.store.open_object(object)
                    && let Ok(measured) = super::content::measure(&file)
                {
                    measured.apply(&mut inode);
                    inode.flags.clear(Flags::WRITING);
                    state.put_inode(inode);
                }
            }
            self.index.commit()
        });
        if settled.is_err() {
            // Again at the next tick.
            self.index.lock().note_unsettled();
        }
        Ok(settled?)
    }

    /// Settles what is still open, so that the next start finds nothing to repair. To be called when no request can come any more.
    ///
    /// # Errors
    /// If the index or an object fails.
    pub fn close_all(&self) -> Result<()> {
        let mut settled = Ok(());
        for open in self.opens.all() {
            let mut content = open.content.write();
            if let Err(error) = self.settle(open.ino, &mut content) {
                // The others all the same; the next start looks after this one.
                settled = Err(error);
            }
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
        settled.and(self.sync())
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
