//! The content of an open inode: the object that its reads and writes go to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::core::{Ino, ObjectId, Timestamp};
use crate::index::Location;
use crate::sys;
use crate::vfs::drive_files::Reader;
use crate::vfs::object_files::{Descriptor, ObjectFile};
use crate::vfs::open_files::OpenFiles;
use crate::vfs::{Ctx, FsError, Result, known};

/// How long a worker waits for a content's lock before it checks again whether the holder waits for
/// the backend.
const LOCK_SLICE: Duration = Duration::from_millis(20);

/// The target of an open inode's reads and writes.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// The object, after its first use.
    pub(super) object: Option<Arc<ObjectFile>>,
    /// The object may be written in place: the row has WRITING set, and no batch reads the object.
    pub(super) prepared: bool,
    /// Number of handles open for writing.
    pub(super) writers: u32,
}

impl Content {
    /// Returns the object if it may be written in place.
    pub(crate) fn prepared(&self) -> Option<&Arc<ObjectFile>> {
        self.object.as_ref().filter(|_| self.prepared)
    }

    /// Records that `object` may be written in place from now on. The caller has committed a row
    /// that says so.
    pub(crate) fn prepare(&mut self, object: Arc<ObjectFile>) {
        self.object = Some(object);
        self.prepared = true;
    }

    /// Returns whether a handle is open for writing.
    pub(crate) fn has_writers(&self) -> bool {
        self.writers > 0
    }

    /// Forgets the object of a file that has none any more, unless it is being written.
    pub(crate) fn forget_object(&mut self) {
        if !self.prepared {
            self.object = None;
        }
    }
}

/// An inode that is open.
#[derive(Debug)]
pub(crate) struct OpenInode {
    ino: Ino,
    content: RwLock<Content>,
    /// The holder of the content's write lock waits for the backend.
    fetching: AtomicBool,
    /// Number of handles with writes since their last close or sync.
    pub(super) unacknowledged: AtomicU32,
    /// When it was opened for writing while no other handle was.
    begun: Mutex<Instant>,
    reader: Reader,
    /// When a batch last included it while it was open; before that, when it was opened.
    copied: Mutex<Instant>,
}

impl OpenInode {
    pub(super) fn new(ino: Ino) -> OpenInode {
        OpenInode {
            ino,
            content: RwLock::default(),
            fetching: AtomicBool::new(false),
            unacknowledged: AtomicU32::new(0),
            begun: Mutex::new(Instant::now()),
            reader: Reader::default(),
            copied: Mutex::new(Instant::now()),
        }
    }

    pub(crate) fn ino(&self) -> Ino {
        self.ino
    }

    /// Returns the backend's file, while reads go there.
    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Records that it is opened for writing while no other handle is.
    pub(super) fn note_begun(&self) {
        *self.begun.lock() = Instant::now();
    }

    /// Returns whether programs opened the file for writing less than `young` ago, and have neither
    /// closed nor synced what they wrote. They may be in the middle of it.
    pub(super) fn is_just_begun(&self, young: Duration) -> bool {
        self.unacknowledged.load(Ordering::Acquire) > 0 && self.begun.lock().elapsed() < young
    }

    /// Returns how long ago a batch included the file while it was open, or else how long it has
    /// been open.
    pub(super) fn since_copied(&self) -> Duration {
        self.copied.lock().elapsed()
    }

    /// Records that a batch includes the file while it is open.
    pub(super) fn note_copied(&self) {
        *self.copied.lock() = Instant::now();
    }

    /// Locks the content for a change. Only a worker waits, because the holder may be copying the
    /// object. If the holder waits for the backend, only a worker that may do so waits.
    pub(crate) fn lock(&self, ctx: &Ctx) -> Result<RwLockWriteGuard<'_, Content>> {
        if ctx.may_wait {
            return Ok(self.content.write());
        }
        self.wait_for(ctx, |content, patience| content.try_write_for(patience))
    }

    /// Locks the content for use, with the same rules for waiting.
    pub(crate) fn share(&self, ctx: &Ctx) -> Result<RwLockReadGuard<'_, Content>> {
        if ctx.may_wait {
            return Ok(self.content.read());
        }
        self.wait_for(ctx, |content, patience| content.try_read_for(patience))
    }

    /// Locks the content for a change, however long that takes.
    pub(super) fn lock_always(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write()
    }

    /// Locks the content for use, however long that takes.
    pub(super) fn share_always(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read()
    }

    /// Locks the content for a change if that takes at most `patience`.
    pub(crate) fn lock_within(&self, patience: Duration) -> Option<RwLockWriteGuard<'_, Content>> {
        self.content.try_write_for(patience)
    }

    /// Locks the content for use if no thread changes it.
    pub(crate) fn try_share(&self) -> Option<RwLockReadGuard<'_, Content>> {
        self.content.try_read()
    }

    /// Records, while the result lives, that the holder of the content's lock waits for the
    /// backend.
    pub(crate) fn begin_fetch(&self) -> Fetching<'_> {
        self.fetching.store(true, Ordering::Release);
        Fetching(&self.fetching)
    }

    /// Takes the content's lock as the context allows: at once, or after waiting while the holder
    /// does not wait for the backend.
    fn wait_for<'a, G>(
        &'a self,
        ctx: &Ctx,
        lock: impl Fn(&'a RwLock<Content>, Duration) -> Option<G>,
    ) -> Result<G> {
        if !ctx.may_block {
            return lock(&self.content, Duration::ZERO).ok_or(FsError::WouldBlock);
        }
        loop {
            if let Some(guard) = lock(&self.content, LOCK_SLICE) {
                return Ok(guard);
            }
            if self.fetching.load(Ordering::Acquire) {
                return Err(FsError::WouldWait);
            }
        }
    }
}

/// While this lives, the holder of the content's lock waits for the backend.
pub(crate) struct Fetching<'a>(&'a AtomicBool);

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl OpenFiles {
    /// Returns the object of an open file with its descriptor, if it has one. While the descriptor
    /// lives the object can be read, even if the file gets another object meanwhile.
    pub(in crate::vfs) fn object_of(
        &self,
        ctx: &Ctx,
        open: &OpenInode,
    ) -> Result<Option<(ObjectId, Arc<Descriptor>)>> {
        let opened = |object: &Arc<ObjectFile>| Ok(Some((object.id(), object.file()?)));
        if let Some(content) = open.try_share()
            && let Some(object) = &content.object
        {
            return opened(object);
        }
        let mut content = open.lock(ctx)?;
        let inode = known(&mut self.index.lock(), open.ino)?;
        match inode.location() {
            Location::Object(object) => opened(&self.open_object(&mut content, object)?),
            Location::Empty | Location::Backend => Ok(None),
        }
    }

    /// Returns the object's open file, the current one if it is the same object.
    pub(in crate::vfs) fn open_object(
        &self,
        content: &mut Content,
        object: ObjectId,
    ) -> Result<Arc<ObjectFile>> {
        match &content.object {
            Some(at_hand) if at_hand.id() == object => Ok(at_hand.clone()),
            _ => {
                let file = self.objects.existing(object);
                file.file()?; // Fails if it does not exist.
                content.object = Some(file.clone());
                Ok(file)
            }
        }
    }

    /// Sets the modification time of the object too, because a file being written takes its time
    /// from there.
    pub(in crate::vfs) fn set_object_time(
        &self,
        ctx: &Ctx,
        ino: Ino,
        mtime: Timestamp,
    ) -> Result<()> {
        if let Some(open) = self.find(ino)
            && let Some(object) = open.share(ctx)?.prepared()
        {
            sys::time::set_modified_fd(&**object.file()?, mtime)?;
            object.note_changed();
        }
        Ok(())
    }
}
