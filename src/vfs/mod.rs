//! File-system semantics: the effect of each kernel request on the index and the objects.
//!
//! [`Fs`] is the facade. Its requests are in the files of this directory that are named after them
//! (`namespace`, `rename`, `open`, `read`, `write`, `attributes`, `directories` ...), and what the
//! daemon's threads ask for in `maintenance`. The state belongs to parts, and only a part's own
//! methods touch it:
//!
//! | part | owns |
//! |---|---|
//! | [`open_files::OpenFiles`] | open inodes, their contents and handles, the marks of closes |
//! | [`object_files::ObjectFiles`] | the descriptors of objects |
//! | [`directories::OpenDirs`] | handles of open directories |
//! | [`durability::Durability`] | objects that no fsync has covered; one sync at a time |
//! | [`cache_space::CacheSpace`] | how full the SSD is; one eviction at a time; the reserve |
//! | [`drive_files::DriveFiles`] | when files of the drive are opened and closed |
//! | [`drive_space::DriveSpace`] | the space that waiting changes need on the drive |
//! | [`import::Importer`] | directories being imported, and the progress of the import |
//! | [`Invalidations`] | what the kernel has to be told |
//!
//! A part knows the index, the store and the drive as far as it needs them, and the parts above it
//! in this table. A method that needs several parts for one request belongs to [`Fs`], which has no
//! state but these parts and what all of them share.
//!
//! Every operation gets a [`Ctx`]. An operation that would have to copy a whole object, or wait for
//! a thread that copies one, returns [`FsError::WouldBlock`] unless the context allows it. An
//! operation that would have to wait for the backend, or for a thread that does, returns
//! [`FsError::WouldWait`]. Invariant: an operation that returns either error has changed nothing
//! that a second run from the start would not find in order. The `fuse` module runs operations on
//! its event threads without these permissions, and repeats them with the missing permission on
//! workers of two kinds. So no event thread waits for the drive, and no copy within the SSD queues
//! behind requests that do.
//!
//! Lock order: one open inode's content; then the lock of evictions; then that of syncs; then the
//! table of open inodes; then the index. No backend call is made while the index or the table is
//! locked.

pub(crate) mod acl;
mod attributes;
mod bring;
mod cache_space;
mod directories;
pub(crate) mod drive_files;
mod drive_space;
mod durability;
mod error;
mod expire;
pub(crate) mod import;
mod invalidation;
mod maintenance;
pub(crate) mod measured;
mod namespace;
mod object_files;
mod open;
pub(crate) mod open_files;
mod prepare;
pub(crate) mod privileges;
mod read;
mod rename;
mod repair;
mod write;

use std::sync::Arc;
use std::time::Duration;

use crate::cache::Store;
use crate::core::{Capabilities, Clock, Ino};
use crate::drive::connection::Drive;
use crate::index::{Index, IndexWriter, Inode};
use crate::plan::names::NameRules;
use crate::vfs::cache_space::CacheSpace;
use crate::vfs::directories::OpenDirs;
use crate::vfs::drive_files::{DriveFiles, DrivePaths};
use crate::vfs::drive_space::DriveSpace;
use crate::vfs::durability::Durability;
use crate::vfs::import::Importer;
use crate::vfs::object_files::ObjectFiles;
use crate::vfs::open_files::OpenFiles;

pub use crate::vfs::attributes::{SetAttr, SetTime, SetXattr};
pub use crate::vfs::bring::Brought;
pub use crate::vfs::cache_space::CacheLimits;
pub use crate::vfs::directories::{DirEntry, OpenedDir};
pub use crate::vfs::drive_space::StatFs;
pub use crate::vfs::durability::Syncer;
pub use crate::vfs::error::{FsError, Result};
pub use crate::vfs::expire::OlderThan;
pub use crate::vfs::import::ImportProgress;
pub use crate::vfs::invalidation::{Invalidation, Invalidations};
pub use crate::vfs::namespace::NewNode;
pub use crate::vfs::open_files::{Handle, OpenMode};
pub use crate::vfs::privileges::CAPABILITY;
pub use crate::vfs::read::SeekFor;
pub use crate::vfs::rename::RenameMode;
pub use crate::vfs::repair::{Damage, Rewritten};

/// The caller of an operation, and what the operation may do.
#[derive(Clone, Copy, Debug)]
pub struct Ctx {
    /// The caller's user ID.
    pub uid: u32,
    /// The caller's group ID.
    pub gid: u32,
    /// The caller's thread ID in the daemon's PID namespace; 0 if it is not visible there.
    pub pid: u32,
    /// Permission bits to remove from new files, unless the directory has a default ACL.
    pub umask: u32,
    /// The operation may copy large objects, and wait for threads that do.
    pub may_block: bool,
    /// The operation may wait for the backend, and for threads that do.
    pub may_wait: bool,
}

impl Ctx {
    /// Checks that long-running work on the SSD is allowed.
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

    /// Checks that waiting for the backend is allowed.
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

/// The components and settings of a file system.
pub struct FsParts {
    /// The index.
    pub index: Arc<Index>,
    /// The store of the objects.
    pub store: Arc<Store>,
    /// The slot of the attached backend.
    pub drive: Arc<Drive>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The capabilities of the backend's file system.
    pub capabilities: Capabilities,
    /// User and group that own files found on the backend.
    pub owner: (u32, u32),
    /// Limits of the cache.
    pub limits: CacheLimits,
    /// How long a request may wait for the backend.
    pub io_timeout: Duration,
    /// Value of the root's virtual attribute `user.ferryfs.cache`. The command line finds the
    /// control socket by it.
    pub cache_path: Vec<u8>,
}

/// The file system.
pub struct Fs {
    // What all parts share; each has locks of its own, or does not change.
    pub(crate) index: Arc<Index>,
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rules: NameRules,
    pub(crate) capabilities: Capabilities,
    pub(crate) owner: (u32, u32),
    cache_path: Vec<u8>,

    objects: Arc<ObjectFiles>,
    open_files: Arc<OpenFiles>,
    dirs: OpenDirs,
    durability: Arc<Durability>,
    space: CacheSpace,
    drive_files: DriveFiles,
    drive_space: DriveSpace,
    importer: Importer,
    invalidations: Arc<Invalidations>,
}

impl Fs {
    /// Creates the file system over `parts`, and the root directory if the index is new.
    ///
    /// # Errors
    /// If the index cannot be read or written.
    pub fn new(parts: FsParts) -> Result<Fs> {
        let fs = Fs::of_parts(parts);
        fs.durability.recall_damage()?;
        fs.space.hold_reserve();
        fs.make_root()?;
        fs.importer.recall_progress()?;
        Ok(fs)
    }

    fn of_parts(parts: FsParts) -> Fs {
        let invalidations = Arc::new(Invalidations::default());
        let objects = ObjectFiles::new(parts.store.clone());
        let open_files = Arc::new(OpenFiles::new(&parts, objects.clone()));
        let durability = Arc::new(Durability::new(&parts));
        let paths = DrivePaths::new(&parts);
        Fs {
            dirs: OpenDirs::new(),
            space: CacheSpace::new(&parts, open_files.clone(), durability.clone()),
            drive_files: DriveFiles::new(
                &parts,
                paths.clone(),
                open_files.clone(),
                objects.clone(),
                invalidations.clone(),
            ),
            drive_space: DriveSpace::new(&parts),
            importer: Importer::new(&parts, paths, invalidations.clone()),
            objects,
            open_files,
            durability,
            invalidations,
            rules: NameRules::new(&parts.capabilities),
            capabilities: parts.capabilities,
            index: parts.index,
            store: parts.store,
            clock: parts.clock,
            owner: parts.owner,
            cache_path: parts.cache_path,
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

    /// Returns the open files, for changes made by others.
    pub(crate) fn open_files(&self) -> &OpenFiles {
        &self.open_files
    }

    /// Returns the importer, for names that others have added.
    pub(crate) fn importer(&self) -> &Importer {
        &self.importer
    }

    /// Returns the queue of invalidations for the kernel.
    pub fn invalidations(&self) -> &Invalidations {
        &self.invalidations
    }
}

/// Returns the inode `ino`, which the kernel names and therefore must have received before.
fn known(state: &mut IndexWriter, ino: Ino) -> Result<Inode> {
    state.inode(ino)?.ok_or(FsError::STALE)
}

/// Returns the inode `ino` if it is a directory.
fn known_dir(state: &mut IndexWriter, ino: Ino) -> Result<Inode> {
    let inode = known(state, ino)?;
    if inode.is_dir() {
        Ok(inode)
    } else {
        Err(FsError::NOT_DIR)
    }
}
