//! The file of the WAL, on which durability rests: its fsync, what is remembered of one that failed, and its room.
//!
//! **A failed fsync is final.** Linux tells it once and may mark the pages clean without their being on the disk; a second
//! fsync would then succeed and lie. Worse, once the pages are dropped from memory, SQLite would read what the disk has: an
//! older page, or half of one, taken for the latest. So nothing is tried again. From then on every sync fails, nothing more is
//! changed ([`Wal::check`]), and no batch is carried: a plan made from rows of unknown age might remove files from the backend.
//! Reading goes on. A marker file beside the index tells the next start, which drops from memory what the kernel holds of the
//! index before it opens it ([`forget_cached_pages`]): it then begins with what really reached the disk, as after a power cut. Should the
//! marker not be written either, as is likely, a start on the same boot may believe pages that are in memory only; the sync
//! before every start ([`super::Index::open`]) is then told nothing. `ferryfs status` says what to do meanwhile.
//!
//! **Room.** A commit that finds no room is undone, with whatever else was in the transaction. So that it does find room, even when
//! somebody else has filled the SSD to the last byte, blocks are allocated beyond the end of the WAL ahead of time
//! ([`Wal::top_up`]), without changing its size. Nobody else can take them. Beginning anew, SQLite writes over the old frames and
//! keeps the file's size, so what has been had once is had for good. File systems that write elsewhere instead (btrfs, ZFS) or
//! have no such call give less: there the reserve file has to do, see [`crate::cache::Reserve`].

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use super::{IndexError, Result};
use crate::base::ForeignText;
use crate::sys::file::{Advice, FallocateMode, advise, allocate};

/// Commits between two looks at the room that is left; each writes about six frames, 24 KiB.
const LOOK_EVERY: u64 = 64;

/// Name of the marker that tells the next start of a failed fsync.
const MARKER: &str = "index.fsync-failed";

/// Frees some space on the SSD for the index; false if there is nothing more to give.
pub type Relief = Box<dyn Fn() -> bool + Send + Sync>;

/// The WAL's file.
pub(super) struct Wal {
    path: PathBuf,
    file: File,
    failed: AtomicBool,
    /// Bytes beyond the end that are to be allocated; 0 for none.
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

    /// Whether an fsync has failed since the start.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Passes unless an fsync has failed.
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

    /// After commit number `commits`.
    pub(super) fn after_commit(&self, commits: u64) {
        if commits.is_multiple_of(LOOK_EVERY) {
            self.top_up();
        }
    }

    /// Allocates the margin beyond the end, giving up the reserve for it if need be. If that fails too, commits may begin to.
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
                tracing::debug!(%error, "no room can be held for the index");
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

    /// Before each commit.
    pub(super) fn may_commit(&self) -> Result<()> {
        injected(&self.fail_commit).map_err(failed("commit", &self.path))
    }
}

/// What a test has put there, once.
fn injected(fault: &AtomicI32) -> std::io::Result<()> {
    match fault.load(Ordering::Relaxed) {
        0 => Ok(()),
        errno => {
            fault.store(0, Ordering::Relaxed);
            Err(std::io::Error::from_raw_os_error(errno))
        }
    }
}

/// Before the index is opened: has the kernel forget what it holds of the WAL, and after a failed fsync of the database too, so
/// that what is read is what the disk has. Everything has been synced before, so only clean pages go.
pub(super) fn forget_cached_pages(index: &Path, wal: &Path) {
    let marked = index.with_file_name(MARKER).exists();
    if marked {
        tracing::error!(
            "the index could not be made durable when it was last in use; it is what reached the disk"
        );
    }
    for path in [wal, index].iter().take(if marked { 2 } else { 1 }) {
        if let Ok(file) = crate::cache::private::own().read(true).open(path) {
            // A hint; file systems without pages to drop take none.
            let _ = advise(&file, 0, 0, Advice::DontNeed);
        }
    }
}

/// After the index has been opened and synced.
pub(super) fn remove_marker(index: &Path) {
    // If it stays, the next start reads the disk once more.
    let _ = std::fs::remove_file(index.with_file_name(MARKER));
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> IndexError {
    let path = path.to_path_buf();
    move |source| IndexError::Io {
        operation,
        path,
        source,
    }
}
