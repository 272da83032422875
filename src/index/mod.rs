//! The index: names, attributes, where bytes are, what waits for the backend, and the journal of batches. The only room that
//! names `rusqlite`.
//!
//! One writer connection lives in [`State`] behind a mutex; it is held for the time of a few point look-ups, never across I/O
//! on objects or on the backend. Long reads (planning a batch, counting what waits) run on [`Snapshot`]s, connections of their
//! own that see the last commit and block nobody.
//!
//! Lock order: an open inode's content lock (`fs`), then this one. Nothing is locked while this one is held.

mod batch;
mod catalog;
mod check;
mod counters;
mod depth;
mod elsewhere;
mod guard;
mod inode;
mod names;
mod replaced;
mod salvage;
mod schema;
mod snapshot;
mod state;
mod tree;
mod undo;
mod wal;
mod ways;
mod xattrs;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::base::ForeignText;
use crate::base::steps::{CacheStep, CacheSteps};
use crate::rules::names::NameRules;

pub use batch::{ActiveBatch, BatchState, BatchSummary, Confirmed};
pub use catalog::{LinkGroup, Mirror};
pub use check::{Checked, check};
pub use counters::Totals;
pub use guard::StateGuard;
pub use inode::{Flags, Inode, Location};
pub use replaced::Replaced;
pub use salvage::{Salvaged, salvage};
pub use snapshot::{Snapshot, Waiting};
pub use state::State;
pub use tree::{Dirent, PlacedEntry};
pub use wal::Relief;
pub(crate) use ways::path_upwards;
pub use xattrs::XattrSizes;

/// What went wrong in the index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// SQLite said no.
    #[error("index: {operation}: {source}")]
    Sql {
        /// What was being done.
        operation: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file system said no.
    #[error("index: {operation} {}: {source}", path.escaped())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The index was written by a newer ferryfs.
    #[error(
        "the index has format {0}, which this version of ferryfs does not know; use a newer ferryfs"
    )]
    Newer(i64),
    /// A row contradicts another.
    #[error("index: {0}")]
    Corrupt(String),
    /// The file must not be used as it is.
    #[error("the index {} is damaged: {problem}", path.escaped())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not hold together.
        problem: String,
    },
    /// An fsync has failed before: nothing can be promised any more.
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
    /// Whether the SSD has no room for this.
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

/// The outcome of a call to the index.
pub type Result<T> = std::result::Result<T, IndexError>;

/// Names the operation in an error of SQLite.
trait Context<T> {
    fn context(self, operation: &'static str) -> Result<T>;
}

impl<T> Context<T> for rusqlite::Result<T> {
    fn context(self, operation: &'static str) -> Result<T> {
        self.map_err(|source| {
            guard::note_failure();
            IndexError::Sql { operation, source }
        })
    }
}

/// Frames (of 4 KiB and a header) beyond which the WAL is made to begin anew: 32 MiB.
const LONG_WAL: u64 = 8192;

/// Commits after which a checkpoint should not wait; each writes about six frames.
const MANY_COMMITS: u64 = 2000;

/// The index of one cache.
pub struct Index {
    path: PathBuf,
    state: Mutex<State>,
    wal: Arc<wal::Wal>,
    /// How many of the commits since opening are known to be durable.
    durable: AtomicU64,
    /// The connection that copies the WAL, and the commits that there were when it last began to.
    copier: Mutex<Connection>,
    copied: AtomicU64,
    steps: CacheSteps,
}

impl Index {
    /// Opens the index in the file `path`, making it if it is not there.
    ///
    /// # Errors
    /// If the file cannot be opened, is no index, or has a newer format.
    pub fn open(path: &Path, rules: NameRules) -> Result<Index> {
        wal::forget_cached_pages(path, &wal_path(path));
        let conn = connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
        let version: i64 = conn
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .context("read the format version")?;
        match version {
            0 => create(&conn)?,
            schema::VERSION => {}
            older @ 1.. if older < schema::VERSION => extend(&conn, older)?,
            newer => return Err(IndexError::Newer(newer)),
        }
        names::refold(&conn, &rules)?;
        // The first write makes the WAL file, whose descriptor is then held: an fsync of it is what durability rests on.
        conn.execute(
            "INSERT OR REPLACE INTO meta VALUES('opened', unixepoch())",
            [],
        )
        .context("write the first row")?;
        let wal = Arc::new(wal::Wal::open(wal_path(path))?);
        let mut state = State::new(conn, rules, wal.clone())?;
        // From the first change on: what an open batch has placed, or reads, is to be known even before the backend is back.
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

    /// Where a test may stop what is done to the index.
    pub fn steps(&self) -> &CacheSteps {
        &self.steps
    }

    /// The state, for reading and changing it.
    pub fn lock(&self) -> StateGuard<'_> {
        StateGuard::new(self.state.lock())
    }

    /// Holds `bytes` on the SSD for commits that are to come, also while it is full otherwise; `relief` is asked to free some when
    /// there are none to be had.
    pub fn keep_margin(&self, bytes: u64, relief: Relief) {
        self.wal.keep_margin(bytes, relief);
    }

    /// Sees to it that the margin is there, if there is room.
    pub fn top_up(&self) {
        self.wal.top_up();
    }

    /// Whether an fsync has failed: every further sync then fails, and nothing is changed any more.
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

    /// For tests: the database may grow by no more than `pages` pages; `None` for as far as the disk goes.
    ///
    /// # Errors
    /// If SQLite cannot.
    #[doc(hidden)]
    pub fn limit_growth(&self, pages: Option<u32>) -> Result<()> {
        self.lock().limit_growth(pages)
    }

    /// Commits what is pending, so that it survives the daemon's death.
    ///
    /// # Errors
    /// If SQLite cannot; what was pending is then undone.
    pub fn commit(&self) -> Result<()> {
        self.lock().commit().map(|_| ())
    }

    /// Makes everything that was changed before this call durable. The lock is not held while the disk works, so that many
    /// callers share one fsync.
    ///
    /// # Errors
    /// If the commit or the fsync fails: nothing new may then be taken as durable. After a failed fsync each call fails.
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

    /// Copies the WAL into the database file. To be called after a sync of everything that its rows vouch for.
    ///
    /// The bulk is copied while writers go on; what they have added meanwhile is copied under the lock, if the WAL has become
    /// long, so that it can begin anew. Were it never to, it would grow without end, and its pages would have to be read back
    /// before they are overwritten.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn checkpoint(&self) -> Result<()> {
        let copier = self.copier.lock();
        self.copied.store(self.lock().commits(), Ordering::Relaxed);
        if copy_wal(&copier)? > LONG_WAL {
            let mut state = self.lock();
            state.commit()?;
            copy_wal(&copier)?;
        }
        Ok(())
    }

    /// Whether so much has been committed since the last checkpoint that the next should not wait.
    pub fn wants_checkpoint(&self) -> bool {
        self.lock().commits() > self.copied.load(Ordering::Relaxed) + MANY_COMMITS
    }

    /// A view of the last commit, on a connection of its own.
    ///
    /// # Errors
    /// If SQLite cannot open one.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let conn = connect(&self.path, OpenFlags::empty())?;
        // It is read once through and closed, often on a thread of its own, whose memory the allocator may keep.
        conn.execute_batch("PRAGMA cache_size=-2000;")
            .context("configure")?;
        Snapshot::open(conn)
    }
}

/// Locks within this process only, and none of the ten system calls a commit that locks for others would cost: the cache's own
/// lock keeps other daemons out. Whoever opens the file with another tool meanwhile is told that it is locked.
const VFS: &std::ffi::CStr = c"unix-excl";

/// The file of the WAL that belongs to the database `path`.
fn wal_path(path: &Path) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(
        &[path.as_os_str().as_bytes(), b"-wal"].concat(),
    ))
}

/// Opens a database that is no symbolic link. SQLite would refuse a link above it as well, so the way to it is resolved before.
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
         PRAGMA cache_size=-16000; PRAGMA temp_store=MEMORY; PRAGMA busy_timeout=10000;",
    )
    .context("configure")?;
    Ok(conn)
}

/// Copies what can be copied and gives the number of frames in the WAL.
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
        return Err(IndexError::Corrupt(
            "the file is a database, but no index of ferryfs".into(),
        ));
    }
    let tables = [
        schema::V1,
        schema::V2,
        schema::V3,
        schema::V3_CATALOG,
        schema::V4,
        schema::V5,
    ]
    .concat();
    become_version(conn, &tables).context("create the tables")
}

/// Makes an index of an earlier `version` one of this, in one transaction. A crash leaves the old one.
fn extend(conn: &Connection, version: i64) -> Result<()> {
    let steps = [
        (1, schema::V2),
        (2, schema::V3),
        (2, schema::V3_CATALOG),
        (2, schema::V3_UNTOLD),
        (3, schema::V4),
        (4, schema::V5),
    ];
    let missing = steps.iter().filter(|(from, _)| version <= *from);
    let sql: String = missing.map(|(_, sql)| *sql).collect();
    become_version(conn, &sql).context("add tables")
}

fn become_version(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.execute_batch(&format!(
        "BEGIN; {sql} PRAGMA user_version={}; COMMIT;",
        schema::VERSION
    ))
}

/// SQLite's integers are signed; ours count up from zero and stay far below the edge.
fn int(value: u64) -> i64 {
    value as i64
}
