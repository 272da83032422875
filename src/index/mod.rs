//! The index: names, attributes, where bytes are, what waits for the backend, and the state of
//! batches. The only module that names `rusqlite`.
//!
//! One writer connection is in [`IndexWriter`] behind a mutex. The mutex is held for a few point
//! look-ups, never during I/O on objects or on the backend. Long reads (planning a batch, counting
//! what waits) use [`Snapshot`]s, connections of their own that see the last commit and block
//! nobody.
//!
//! Lock order: an open inode's content lock (`vfs`), then this one. No other lock is taken while
//! this one is held.

mod batch;
mod being_written;
mod check;
mod counters;
mod depth;
mod external;
mod inode;
mod inodes;
mod leaving;
pub(crate) mod local;
mod mirror;
mod objects;
mod paths;
mod redo;
mod replaced;
mod rollback;
mod salvage;
mod schema;
mod scrub;
mod settings;
mod snapshot;
mod statements;
mod stored_names;
mod tree;
mod waiting;
mod wal;
mod walk;
mod write_guard;
mod writer;
mod xattrs;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::core::cache_step::{CacheStep, CacheSteps};
use crate::core::{ForeignText, Ino, Name};
use crate::plan::names::NameRules;

pub use crate::index::local::{LocalCounts, WantedTogether};
pub use crate::index::mirror::{LinkGroup, Mirror};
pub(crate) use crate::index::paths::path_upwards;
use crate::index::redo::RedoLog;
pub use crate::index::write_guard::WriteGuard;
pub use crate::index::writer::IndexWriter;
pub use batch::{ActiveBatch, BatchEnd, BatchSummary, Confirmed, LeftOut};
pub use check::{CheckedIndex, Contradiction, IndexDamage, check};
pub use counters::Totals;
pub use inode::{Flags, Inode, Location};
pub use leaving::NotPlain;
pub use replaced::Replaced;
pub use salvage::{Salvaged, salvage};
pub use snapshot::{Snapshot, WaitingCounts};
pub use tree::{Dirent, PlacedEntry};
pub use wal::Relief;
pub use walk::WalkedName;
pub use xattrs::XattrSizes;

/// What went wrong in the index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// SQLite failed.
    #[error("index: {operation}: {source}")]
    Sql {
        /// The operation.
        operation: &'static str,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The file system failed.
    #[error("index: {operation} {}: {source}", path.escaped())]
    Io {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The index was written by another version of ferryfs.
    #[error(
        "the index has version {0}, and this ferryfs knows version {only} alone: \
         mount and flush with the ferryfs that made it",
        only = schema::VERSION
    )]
    OtherVersion(i64),
    /// A row contradicts another.
    #[error("index: {0}")]
    Corrupt(Corruption),
    /// The file must not be used as it is.
    #[error("the index {} is damaged: {problem}", path.escaped())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        problem: IndexDamage,
    },
    /// An fsync has failed before, so nothing can be made durable any more.
    #[error(
        "the index could not be made durable before; unmount, look at the SSD, and mount again"
    )]
    NotDurable,
    /// For the same reason nothing is changed any more.
    #[error(
        "the index could not be made durable, so nothing is changed any more; unmount, look at the SSD, and mount again"
    )]
    Sealed,
}

impl IndexError {
    /// Returns whether the SSD has no space for this.
    pub fn is_full(&self) -> bool {
        match self {
            IndexError::Sql { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            IndexError::Io { source, .. } => source.raw_os_error() == Some(libc::ENOSPC),
            _ => false,
        }
    }
}

/// A defect of an index that was found in use, and that ferryfs never makes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// Another program's tables are in it.
    #[error("the file is a database, but no index of ferryfs")]
    ForeignTables,
    /// A row names an inode that does not exist.
    #[error("inode {} is named but not there", .0.0)]
    NoInode(Ino),
    /// A directory is below itself.
    #[error("directory {} is inside itself", .0.0)]
    DirLoop(Ino),
    /// The same in the mirror of the catalog.
    #[error("described name {0} is inside itself")]
    DescribedLoop(i64),
    /// The mirror of the catalog has no end.
    #[error("the catalog has no end")]
    EndlessCatalog,
    /// The redo log holds something that this version does not write.
    #[error(
        "the redo log (index.db-redo) was written by another version of ferryfs: mount with that one"
    )]
    UnknownStatement,
    /// All numbers of a counter are used up: numbers are never used twice.
    #[error("no numbers are left for {0}")]
    NumbersUsedUp(&'static str),
    /// All possible names, here or on the backend, are taken.
    #[error("no name for {name} in directory {} is free", parent.0)]
    NoFreeName {
        /// The directory.
        parent: Ino,
        /// The name to be added.
        name: Name,
    },
}

/// The outcome of a call to the index.
pub type Result<T> = std::result::Result<T, IndexError>;

/// Names the operation in an error of SQLite.
trait Context<T> {
    fn context(self, operation: &'static str) -> Result<T>;
}

impl<T> Context<T> for rusqlite::Result<T> {
    fn context(self, operation: &'static str) -> Result<T> {
        self.map_err(|source| {
            crate::index::write_guard::note_failure();
            IndexError::Sql { operation, source }
        })
    }
}

/// Frames (of 4 KiB and a header) above which the WAL is made to start from its beginning: 32 MiB.
const LONG_WAL: u64 = 8192;

/// Operations after which the next checkpoint should not wait. Each writes about 1 KiB if many are
/// committed together.
const MANY_OPERATIONS: u64 = 20_000;

/// The index of one cache.
pub struct Index {
    path: PathBuf,
    state: Mutex<IndexWriter>,
    wal: Arc<wal::Wal>,
    /// The number of commits since the open that are known to be durable.
    durable: AtomicU64,
    /// The connection that copies the WAL, and the count of operations when it last began to.
    copier: Mutex<Connection>,
    copied: AtomicU64,
    steps: CacheSteps,
}

impl Index {
    /// Opens the index in the file `path`, and makes it if it does not exist.
    ///
    /// # Errors
    /// If the file cannot be opened, is no index, or is that of another version.
    pub fn open(path: &Path, rules: NameRules) -> Result<Index> {
        wal::forget_cached_pages(path, &wal_path(path));
        let conn = connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
        let version: i64 = conn
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .context("read the format version")?;
        match version {
            0 => create(&conn)?,
            schema::VERSION => {}
            schema::OLDEST => upgrade(&conn)?,
            other => return Err(IndexError::OtherVersion(other)),
        }
        crate::index::stored_names::refold(&conn, &rules)?;
        let mut redo = RedoLog::open(path, crate::sys::host::boot_id().as_deref())?;
        replay(&conn, redo.as_mut())?;
        // The first write has made the WAL file, whose descriptor is now held: an fsync of it makes
        // commits durable.
        let wal = Arc::new(wal::Wal::open(wal_path(path))?);
        let mut state = IndexWriter::new(conn, rules, wal.clone(), redo)?;
        // The first change needs to know what an open batch has placed or reads, even before the
        // drive is back.
        state.resume_batch()?;
        let index = Index {
            path: path.to_path_buf(),
            steps: state.steps.clone(),
            state: Mutex::new(state),
            wal,
            durable: AtomicU64::new(0),
            copier: Mutex::new(connect(path, OpenFlags::empty())?),
            copied: AtomicU64::new(0),
        };
        index.sync()?;
        wal::remove_marker(path);
        Ok(index)
    }

    /// Returns the steps at which a test may stop the index.
    pub fn steps(&self) -> &CacheSteps {
        &self.steps
    }

    /// Locks the writer's side, for reading and changing.
    pub fn lock(&self) -> WriteGuard<'_> {
        WriteGuard::new(self.state.lock())
    }

    /// Holds `bytes` on the SSD for later commits, also while it is otherwise full. `relief` is
    /// called to free space if there is none.
    pub fn keep_margin(&self, bytes: u64, relief: Relief) {
        self.wal.keep_margin(bytes, relief);
    }

    /// Allocates the margin if there is space.
    pub fn top_up(&self) {
        self.wal.top_up();
    }

    /// Returns whether an fsync has failed: every further sync then fails, and nothing is changed
    /// any more.
    pub fn is_sealed(&self) -> bool {
        self.wal.has_failed()
    }

    /// For tests: the next fsync of the WAL fails with `errno`.
    #[doc(hidden)]
    pub fn fail_next_sync(&self, errno: i32) {
        self.wal.fail_next_sync(errno);
    }

    /// For tests: the next commit fails with `errno`.
    #[doc(hidden)]
    pub fn fail_next_commit(&self, errno: i32) {
        self.wal.fail_next_commit(errno);
    }

    /// For tests: limits the database to `pages` pages; `None` for no limit.
    ///
    /// # Errors
    /// If SQLite fails.
    #[doc(hidden)]
    pub fn limit_growth(&self, pages: Option<u32>) -> Result<()> {
        self.lock().limit_growth(pages)
    }

    /// Finishes the pending operation, so that it survives the daemon's death.
    ///
    /// # Errors
    /// If neither the redo log nor SQLite can store it; the operation is then undone.
    pub fn finish(&self) -> Result<()> {
        self.lock().finish()
    }

    /// Commits what is pending, so that a [`Snapshot`] shows it.
    ///
    /// # Errors
    /// If SQLite fails; what was pending is then undone.
    pub fn commit(&self) -> Result<()> {
        self.lock().commit().map(|_| ())
    }

    /// Makes everything durable that was changed before this call. The lock is not held during the
    /// fsync, so that many callers share one.
    ///
    /// # Errors
    /// If the commit or the fsync fails: nothing new is durable then. After a failed fsync each
    /// call fails.
    pub fn sync(&self) -> Result<()> {
        let goal = {
            let mut state = self.lock();
            state.commit()?;
            state.commits()
        };
        if self.wal.has_failed() {
            return Err(IndexError::NotDurable);
        }
        if self.durable.load(Ordering::Acquire) >= goal {
            return Ok(());
        }
        let stopped = self.steps.before(CacheStep::SyncIndex);
        stopped.map_err(|source| IndexError::Io {
            operation: "fsync",
            path: self.path.clone(),
            source,
        })?;
        self.wal.sync()?;
        self.durable.fetch_max(goal, Ordering::AcqRel);
        Ok(())
    }

    /// Copies the WAL into the database file. To be called after a sync of all objects that its
    /// rows name.
    ///
    /// Most of it is copied while writers go on. What they have added meanwhile is copied under the
    /// lock if the WAL has become long, so that it can start from its beginning. Otherwise it would
    /// grow without end, and its pages would have to be read back before they are overwritten.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn checkpoint(&self) -> Result<()> {
        let copier = self.copier.lock();
        self.copied
            .store(self.lock().operations(), Ordering::Relaxed);
        if copy_wal(&copier)? > LONG_WAL {
            let mut state = self.lock();
            state.commit()?;
            copy_wal(&copier)?;
        }
        Ok(())
    }

    /// Returns whether so much has changed since the last checkpoint that the next should not wait.
    pub fn wants_checkpoint(&self) -> bool {
        self.lock().operations() > self.copied.load(Ordering::Relaxed) + MANY_OPERATIONS
    }

    /// Opens a view of the last commit, on a connection of its own.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let conn = connect(&self.path, OpenFlags::empty())?;
        // A snapshot is read through once and closed, often on a thread of its own, whose memory
        // the allocator may keep.
        conn.execute_batch("PRAGMA cache_size=-2000;")
            .context("configure")?;
        Snapshot::open(conn)
    }
}

/// Applies the operations that an earlier daemon has finished and not committed, and starts the log
/// from its beginning.
fn replay(conn: &Connection, redo: Option<&mut RedoLog>) -> Result<()> {
    conn.execute_batch("BEGIN IMMEDIATE")
        .context("replay the redo log")?;
    let replayed = redo
        .as_ref()
        .map_or(Ok(0), |redo| redo.replay_earlier(conn))?;
    let epoch = RedoLog::first_epoch();
    conn.execute(redo::PUT_EPOCH, [int(epoch)])
        .and_then(|_| conn.execute_batch("COMMIT"))
        .context("replay the redo log")?;
    if replayed > 0 {
        tracing::info!(replayed, "replayed operations that were not committed");
    }
    if let Some(redo) = redo {
        redo.begin_anew(epoch);
    }
    Ok(())
}

/// Locks within this process only, which saves the ten system calls of a commit that locks for
/// others: the cache's own lock keeps other daemons out. Another tool that opens the file meanwhile
/// finds it locked.
const VFS: &std::ffi::CStr = c"unix-excl";

/// Returns the WAL file of the database `path`.
fn wal_path(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

/// Returns the file beside the database `path` with its name and a suffix.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Opens a database that is no symbolic link. SQLite would also refuse a link above it, so the path
/// is resolved before.
fn open_database(
    path: &Path,
    flags: OpenFlags,
    vfs: &std::ffi::CStr,
) -> rusqlite::Result<Connection> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let parent = path.parent().and_then(|dir| dir.canonicalize().ok());
    let path = match (parent, path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_path_buf(),
    };
    Connection::open_with_flags_and_vfs(path, flags, vfs)
}

fn connect(path: &Path, extra: OpenFlags) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | extra;
    let conn = open_database(path, flags, VFS).context("open")?;
    conn.set_prepared_statement_cache_capacity(128);
    conn.execute_batch(
        "PRAGMA page_size=4096; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0;
         PRAGMA cache_size=-16000; PRAGMA cache_spill=16000; PRAGMA temp_store=MEMORY; PRAGMA busy_timeout=10000;",
    )
    .context("configure")?;
    Ok(conn)
}

/// Copies what can be copied, and returns the number of frames in the WAL.
fn copy_wal(conn: &Connection) -> Result<u64> {
    conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        row.get::<_, i64>(1)
    })
    .context("checkpoint")
    .map(|frames| u64::try_from(frames).unwrap_or(0))
}

fn create(conn: &Connection) -> Result<()> {
    let tables: Option<i64> = conn
        .query_row("SELECT 1 FROM sqlite_schema LIMIT 1", [], |row| row.get(0))
        .optional()
        .context("look for tables")?;
    if tables.is_some() {
        return Err(IndexError::Corrupt(Corruption::ForeignTables));
    }
    // One transaction: a crash leaves an empty database.
    conn.execute_batch(&format!(
        "BEGIN; {} {} PRAGMA user_version={}; COMMIT;",
        schema::TABLES,
        schema::SINCE_2,
        schema::VERSION
    ))
    .context("create the tables")
}

/// Brings the tables of an older version up to this one, in one transaction.
fn upgrade(conn: &Connection) -> Result<()> {
    conn.execute_batch(&format!(
        "BEGIN; {} PRAGMA user_version={}; COMMIT;",
        schema::SINCE_2,
        schema::VERSION
    ))
    .context("bring the tables up to date")
}

/// SQLite's integers are signed. Ours count up from zero and never reach the limit.
fn int(value: u64) -> i64 {
    value as i64
}
