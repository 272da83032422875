//! The file of the WAL: its fsync, which makes commits durable, the state after one that failed,
//! and its space.
//!
//! **A failed fsync is final.** Linux reports it once and may mark the pages clean although they
//! are not on the disk; a second fsync would then succeed wrongly. Worse, once the pages are
//! dropped from memory, SQLite would read what the disk has: an older page, or half of one, taken
//! for the latest. So nothing is tried again. From then on every sync fails, nothing more is
//! changed ([`Wal::check`]), and no batch is written: a plan made from rows of unknown age might
//! remove files from the backend. Reading goes on. A marker file beside the index tells the next
//! start, which drops the kernel's pages of the index before it opens it ([`forget_cached_pages`]):
//! it then begins with what really reached the disk, as after a power cut. If the marker cannot be
//! written either, which is likely, a start on the same boot may use pages that are in memory only;
//! the sync before every start ([`super::Index::open`]) then reports nothing. `ferryfs status` says
//! what to do meanwhile.
//!
//! **Space.** A commit that finds no space is undone, with everything else in the transaction. To
//! make sure that it has space, even when others have filled the SSD to the last byte, blocks are
//! allocated beyond the end of the WAL ahead of time ([`Wal::top_up`]), without changing its size.
//! Nobody else can take them. When SQLite starts from the beginning, it overwrites the old frames
//! and keeps the file's size, so the space is never lost again. File systems that write elsewhere
//! instead (btrfs, ZFS) or have no such call give less: there the reserve file has to do, see
//! [`crate::cache::Reserve`].

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use super::{IndexError, Result};
use crate::core::ForeignText;
use crate::sys::file::{Advice, FallocateMode, advise, allocate};

/// Name of the marker of a failed fsync, for the next start.
const MARKER: &str = "index.fsync-failed";

/// Frees some space on the SSD for the index. Returns false if there is no more to free.
pub type Relief = Box<dyn Fn() -> bool + Send + Sync>;

/// The WAL's file.
pub(super) struct Wal {
    path: PathBuf,
    file: File,
    failed: AtomicBool,
    /// Bytes to be allocated beyond the end; 0 for none.
    margin: AtomicU64,
    relief: OnceLock<Relief>,
    /// For tests: the next fsync, and the next commit, fails with this errno.
    fail_sync: AtomicI32,
    fail_commit: AtomicI32,
}

impl Wal {
    pub(super) fn open(path: PathBuf) -> Result<Wal> {
        let file = crate::cache::private::own()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        Ok(Wal {
            path,
            file,
            failed: AtomicBool::new(false),
            margin: AtomicU64::new(0),
            relief: OnceLock::new(),
            fail_sync: AtomicI32::new(0),
            fail_commit: AtomicI32::new(0),
        })
    }

    /// Makes what SQLite has written durable.
    pub(super) fn sync(&self) -> Result<()> {
        if self.has_failed() {
            return Err(IndexError::NotDurable);
        }
        let synced = injected(&self.fail_sync).and_then(|()| self.file.sync_data());
        synced.map_err(|error| {
            self.failed.store(true, Ordering::Release);
            // Best effort: the disk has just refused.
            let marker = self.path.with_file_name(MARKER);
            let marked = crate::cache::private::make_new(&marker).and_then(|f| f.sync_all());
            tracing::error!(path = %self.path.escaped(), %error, marked = marked.is_ok(),
                "the index could not be made durable; nothing more is changed until the next mount");
            failed("fsync", &self.path)(error)
        })
    }

    /// Returns whether an fsync has failed since the start.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Checks that no fsync has failed.
    pub(super) fn check(&self) -> Result<()> {
        if self.has_failed() {
            Err(IndexError::Sealed)
        } else {
            Ok(())
        }
    }

    pub(super) fn keep_margin(&self, bytes: u64, relief: Relief) {
        self.margin.store(bytes, Ordering::Relaxed);
        // Set once, by the one file system that is served.
        let _ = self.relief.set(relief);
        self.top_up();
    }

    /// Allocates the margin beyond the end, and gives up the reserve for it if necessary. If that
    /// fails too, commits may fail.
    pub(super) fn top_up(&self) {
        let margin = self.margin.load(Ordering::Relaxed);
        if margin == 0 {
            return;
        }
        let Ok(meta) = self.file.metadata() else {
            return;
        };
        let (size, had) = (meta.size(), meta.blocks().saturating_mul(512));
        if had >= size.saturating_add(margin / 2) {
            return;
        }
        let more = || allocate(&self.file, FallocateMode::FALLOC_FL_KEEP_SIZE, size, margin);
        while let Err(error) = more() {
            let full = error.raw_os_error() == Some(libc::ENOSPC);
            if !full || !self.relief.get().is_some_and(|relief| relief()) {
                tracing::debug!(%error, "no space can be held for the index");
                return;
            }
        }
    }

    pub(super) fn fail_next_sync(&self, errno: i32) {
        self.fail_sync.store(errno, Ordering::Relaxed);
    }

    pub(super) fn fail_next_commit(&self, errno: i32) {
        self.fail_commit.store(errno, Ordering::Relaxed);
    }

    /// Checks, before each commit, that it may begin.
    pub(super) fn may_commit(&self) -> Result<()> {
        injected(&self.fail_commit).map_err(failed("commit", &self.path))
    }
}

/// Returns the error that a test has injected, once.
fn injected(fault: &AtomicI32) -> std::io::Result<()> {
    match fault.load(Ordering::Relaxed) {
        0 => Ok(()),
        errno => {
            fault.store(0, Ordering::Relaxed);
            Err(std::io::Error::from_raw_os_error(errno))
        }
    }
}

/// Makes the kernel drop its pages of the WAL, and after a failed fsync those of the database too,
/// before the index is opened, so that reads return what the disk has. Everything has been synced
/// before, so only clean pages are dropped.
pub(super) fn forget_cached_pages(index: &Path, wal: &Path) {
    let marked = index.with_file_name(MARKER).exists();
    if marked {
        tracing::error!(
            "the index could not be made durable when it was last in use; it is what reached the disk"
        );
    }
    for path in [wal, index].iter().take(if marked { 2 } else { 1 }) {
        if let Ok(file) = crate::cache::private::own().read(true).open(path) {
            // A hint; file systems without a page cache ignore it.
            let _ = advise(&file, 0, 0, Advice::DontNeed);
        }
    }
}

/// Removes the marker, after the index has been opened and synced.
pub(super) fn remove_marker(index: &Path) {
    // If it stays, the next start reads the disk once more.
    let _ = std::fs::remove_file(index.with_file_name(MARKER));
}

/// Names the operation and the file in an error of the system.
pub(super) fn failed(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> IndexError {
    let path = path.to_path_buf();
    move |source| IndexError::Io {
        operation,
        path,
        source,
    }
}
