//! File-system semantics: what each request of the kernel means for the index and the objects.
//!
//! Every operation is given a [`Ctx`]. One that comes to a point where it would have to copy a whole object returns
//! [`FsError::WouldBlock`] unless the context allows it, and one that would have to wait for the backend, or for somebody who
//! does, [`FsError::WouldWait`]; nothing has been changed then that a second run from the start would not find in order. The
//! kernel room runs operations on its event threads without these permissions, and runs them again with the one that was
//! missing, on workers of two kinds. So no event thread ever waits for the drive, and no copy within the SSD waits behind
//! requests that do.
//!
//! Lock order: one open inode's content; then `reaping`; then `syncing`; then the table of open inodes; then the index. No backend call is made under the index
//! lock or the table's.

mod acl;
mod attr;
mod content;
mod described;
mod dir;
mod error;
mod evict;
mod files;
mod import;
mod names;
mod needed;
mod open;
mod pressure;
mod privileges;
mod progress;
mod read;
mod recover;
mod refresh;
mod sync;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Mutex, RwLock};

use crate::backend::{Capabilities, drive::Drive};
use crate::base::{Clock, Ino};
use crate::cache::Store;
use crate::index::{Index, Inode, State};
use crate::rules::names::NameRules;

pub use attr::{SetAttr, SetTime, SetXattr, StatFs};
pub use dir::DirEntry;
pub use error::{FsError, Result};
pub use evict::CacheLimits;
pub use names::{NewNode, RenameMode};
pub use open::{Handle, OpenMode};
pub use privileges::CAPABILITY;
pub use progress::ImportProgress;
pub use read::SeekFor;
pub use recover::{Recovered, UncleanEnd};
pub use refresh::{Look, Notice, Notices};
pub use sync::Syncer;

/// Part of the reserve, as a divisor, that is allocated for the index's WAL besides: 8 MiB of 64.
const WAL_SHARE: u64 = 8;

/// On whose behalf an operation runs, and what it may do.
#[derive(Clone, Copy, Debug)]
pub struct Ctx {
    /// The caller's user.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
    /// The caller's thread, as this system numbers it; 0 if it cannot be seen from here.
    pub pid: u32,
    /// Permission bits that what the caller makes does not get, unless the directory says
    /// otherwise.
    pub umask: u32,
    /// Whether it may copy large objects, and wait for somebody who does.
    pub may_block: bool,
    /// Whether it may wait for the backend, and for somebody who does.
    pub may_wait: bool,
}

impl Ctx {
    /// Passes if work on the SSD that takes its time is allowed.
    ///
    /// # Errors
    /// [`FsError::WouldBlock`] if it is not.
    fn block(&self) -> Result<()> {
        if self.may_block {
            Ok(())
        } else {
            Err(FsError::WouldBlock)
        }
    }

    /// Passes if waiting for the backend is allowed.
    ///
    /// # Errors
    /// [`FsError::WouldWait`] if it is not.
    fn wait(&self) -> Result<()> {
        if self.may_wait {
            Ok(())
        } else {
            Err(FsError::WouldWait)
        }
    }
}

/// What the file system is given to work with.
pub struct Parts {
    /// The index.
    pub index: Arc<Index>,
    /// The objects.
    pub store: Arc<Store>,
    /// The backend's slot.
    pub drive: Arc<Drive>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// What the backend can hold.
    pub capabilities: Capabilities,
    /// Owner of what is found on the backend: user and group.
    pub owner: (u32, u32),
    /// Limits of the cache.
    pub limits: CacheLimits,
    /// How long a request may wait for the backend.
    pub io_timeout: Duration,
    /// Value of the virtual attribute `user.ferryfs.cache` of the root, by which the command line finds the control socket.
    pub cache_path: Vec<u8>,
}

/// The file system.
pub struct Fs {
    index: Arc<Index>,
    store: Arc<Store>,
    drive: Arc<Drive>,
    clock: Arc<dyn Clock>,
    rules: NameRules,
    capabilities: Capabilities,
    owner: (u32, u32),
    limits: CacheLimits,
    io_timeout: Duration,
    cache_path: Vec<u8>,
    opens: open::OpenTable,
    dirs: RwLock<std::collections::HashMap<u64, Arc<dir::DirHandle>>>,
    next_handle: AtomicU64,
    importing: import::Importing,
    notices: Notices,
    progress: progress::Progress,
    /// What other systems keep for themselves on the drive is shown.
    shows_system: AtomicBool,
    files: Arc<files::Files>,
    unsynced: sync::Unsynced,
    pressure: pressure::Pressure,
    copies: needed::Copies,
    /// One eviction at a time; when it last looked at damaged objects.
    reaping: Mutex<Option<std::time::Instant>>,
    syncing: Mutex<()>,
    closes: (Sender<()>, Receiver<()>),
    /// Handles whose close has marked a file as whole, and when.
    close_marks: Mutex<Vec<(u64, std::time::Instant)>>,
    /// Tells the kernel at once that attributes of an inode are not what it was told.
    stale: OnceLock<privileges::Tell>,
}

impl Fs {
    /// The file system over `parts`. Makes the root directory if the index is new.
    ///
    /// # Errors
    /// If the index cannot be read or written.
    pub fn new(parts: Parts) -> Result<Fs> {
        let fs = Fs {
            rules: NameRules::new(&parts.capabilities),
            index: parts.index,
            files: files::Files::new(parts.store.clone()),
            store: parts.store,
            drive: parts.drive,
            clock: parts.clock,
            capabilities: parts.capabilities,
            owner: parts.owner,
            limits: parts.limits,
            io_timeout: parts.io_timeout,
            cache_path: parts.cache_path,
            opens: open::OpenTable::default(),
            dirs: RwLock::default(),
            next_handle: AtomicU64::new(1),
            importing: import::Importing::default(),
            notices: Notices::default(),
            progress: progress::Progress::default(),
            shows_system: AtomicBool::new(false),
            unsynced: sync::Unsynced::default(),
            pressure: pressure::Pressure::default(),
            copies: needed::Copies::default(),
            reaping: Mutex::new(None),
            syncing: Mutex::new(()),
            closes: bounded(1),
            close_marks: Mutex::default(),
            stale: OnceLock::new(),
        };
        fs.recall_damage()?;
        fs.hold_reserve();
        fs.make_root()?;
        let imported = fs.index.lock().meta(progress::IMPORTED)?;
        fs.progress.begin(imported.as_deref());
        Ok(fs)
    }

    /// Sees to the space that is held for when the SSD is full.
    fn hold_reserve(&self) {
        if self.limits.reserve > 0 {
            self.store.reserve().want(self.limits.reserve);
            let store = self.store.clone();
            let margin = self.limits.reserve / WAL_SHARE;
            self.index
                .keep_margin(margin, Box::new(move || store.reserve().give_up()));
            self.refill_reserve();
        }
    }

    fn make_root(&self) -> Result<()> {
        let mut state = self.index.lock();
        if state.inode(Ino::ROOT)?.is_none() {
            let mode = libc::S_IFDIR | 0o755;
            let mut root = Inode::new(
                Ino::ROOT,
                mode,
                self.owner.0,
                self.owner.1,
                self.clock.now(),
            );
            root.flags.set(crate::index::Flags::ON_BACKEND);
            state.put_inode(root);
            state.commit()?;
        }
        Ok(())
    }

    /// From now on what other systems keep for themselves on the drive is taken in as well.
    pub fn show_system(&self) {
        self.shows_system.store(true, Ordering::Release);
    }

    fn new_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// The inode `ino`, which the kernel must have from us.
    fn known(&self, state: &mut State, ino: Ino) -> Result<Inode> {
        state.inode(ino)?.ok_or(FsError::STALE)
    }

    /// The directory `ino`.
    fn known_dir(&self, state: &mut State, ino: Ino) -> Result<Inode> {
        let inode = self.known(state, ino)?;
        if inode.is_dir() {
            Ok(inode)
        } else {
            Err(FsError::NOT_DIR)
        }
    }
}
