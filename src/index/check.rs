//! Checks an index before anything is written to it.
//!
//! A damaged index must not be served: contradictory rows make the cache remove or overwrite bytes
//! that exist nowhere else. So a start first checks the index on a connection that cannot write,
//! and refuses a damaged one; [`mod@super::salvage`] then reads what can be read. A crash leaves no
//! damage: SQLite takes the whole commits at the head of the WAL.
//!
//! SQLite has no checksums on its pages, so a bit that has flipped within a value is found only if
//! it contradicts another row.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use super::inode::{COLUMNS, Inode};
use super::tree::{PLACED_COLUMNS, name_from_row, placed_from_row};
use super::{Context, IndexError, Result, schema, wal_path};
use crate::core::{FileKind, Ino};

/// Up to this many bytes of database and WAL, everything is checked at every start. That takes some
/// tenths of a second.
const CHEAP: u64 = 64 << 20;

/// How long a larger index is checked after an unclean end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Length in bytes of the head of a database.
const HEAD: u64 = 100;

/// How many contradictions are reported.
const TOLD: usize = 5;

/// The result of a check, if the index may be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedIndex {
    /// Whether all of it was checked.
    pub complete: bool,
    /// Contradictions that do no harm, for the log.
    pub oddities: Vec<Contradiction>,
}

/// A kind of contradiction between rows, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {count}")]
pub struct Contradiction {
    /// The kind.
    pub what: &'static str,
    /// How many there are.
    pub count: i64,
}

/// Why an index must not be opened.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum IndexDamage {
    /// The cache holds objects, or the database has a WAL, but not even a head.
    #[error("it is empty, cut off or missing")]
    CutOff,
    /// It is a database, but no index.
    #[error("it holds no tables of ferryfs")]
    NoTables,
    /// SQLite cannot read it.
    #[error("{0}")]
    Unreadable(rusqlite::Error),
    /// What SQLite's own check reports.
    #[error("{}", .0.join("; "))]
    Pages(Vec<String>),
    /// An inode has impossible attributes.
    #[error("inode {} has impossible attributes", .0.0)]
    ImpossibleInode(Ino),
    /// Rows contradict each other.
    #[error("{}", list(.0))]
    Contradictions(Vec<Contradiction>),
}

fn list(found: &[Contradiction]) -> String {
    let lines: Vec<String> = found.iter().map(Contradiction::to_string).collect();
    lines.join("; ")
}

/// Contradictions between rows that make it dangerous to continue, and the queries that count them.
const CONTRADICTIONS: [(&str, &str); 11] = [
    (
        "names in a directory that is not there",
        "SELECT count(*) FROM dirents d WHERE NOT EXISTS(SELECT 1 FROM inodes i WHERE i.ino=d.parent AND i.mode & 61440 = 16384)",
    ),
    (
        "names of a file that is not there",
        "SELECT count(*) FROM dirents d WHERE NOT EXISTS(SELECT 1 FROM inodes i WHERE i.ino=d.ino)",
    ),
    (
        "directories with several names or none",
        "SELECT count(*) FROM inodes i WHERE mode & 61440 = 16384 AND ino <> 1 AND nlink > 0
         AND (SELECT count(*) FROM dirents d WHERE d.ino=i.ino) <> 1",
    ),
    (
        // Each directory has one name by now, so a directory that cannot be reached from the root
        // is in a circle.
        "directories inside themselves",
        "WITH RECURSIVE reached(ino) AS (SELECT 1 UNION SELECT d.ino FROM reached r JOIN dirents d ON d.parent=r.ino
         JOIN inodes i ON i.ino=d.ino WHERE i.mode & 61440 = 16384)
         SELECT (SELECT count(*) FROM inodes WHERE mode & 61440 = 16384 AND ino <> 1 AND nlink > 0)
         - (SELECT count(*) - 1 FROM reached)",
    ),
    (
        "objects that two files call theirs",
        "SELECT count(*) FROM (SELECT 1 FROM inodes WHERE object IS NOT NULL GROUP BY object HAVING count(*) > 1)",
    ),
    (
        "objects that are in use and to be removed",
        "SELECT count(*) FROM dead_objects d JOIN inodes i ON i.object=d.object",
    ),
    (
        "inode numbers that were never given out",
        "SELECT count(*) FROM inodes WHERE ino < 1
         OR ino >= max(2, coalesce((SELECT value FROM meta WHERE key='next_ino'), 2))",
    ),
    (
        "object numbers that were never given out",
        "SELECT count(*) FROM (SELECT object FROM inodes WHERE object IS NOT NULL UNION ALL SELECT object FROM dead_objects)
         WHERE object < 1 OR object >= coalesce((SELECT value FROM meta WHERE key='next_object'), 1)",
    ),
    (
        "changes that never were",
        "SELECT count(*) FROM inodes
         WHERE max(data_seq, time_seq) >= max(1, coalesce((SELECT value FROM meta WHERE key='next_seq'), 1))",
    ),
    (
    "names of one directory that the drive would have under one name",
    "SELECT (SELECT count(*) FROM dirents a JOIN dirents b ON b.parent=a.parent AND b.fold=a.stored_fold AND b.name=a.stored
     WHERE a.stored IS NOT NULL AND b.stored IS NULL)
     + (SELECT count(*) FROM (SELECT 1 FROM dirents WHERE stored IS NOT NULL GROUP BY parent, stored HAVING count(*) > 1))",
    ),
    (
    "names with no place in a listing, or with one that was never given out",
    "SELECT count(*) FROM dirents WHERE cookie < 3 OR cookie >= coalesce((SELECT value FROM meta WHERE key='next_cookie'), 3)",
    ),
];

/// Contradictions that do no harm.
const ODDITIES: [(&str, &str); 1] = [(
    "files whose number of names is miscounted",
    "SELECT count(*) FROM inodes i WHERE mode & 61440 <> 16384 AND nlink <> (SELECT count(*) FROM dirents d WHERE d.ino=i.ino)
     + coalesce((SELECT pending FROM link_groups g WHERE g.ino=i.ino), 0)",
)];

/// Checks the index in the file `path` without writing anything. `needed` says that the cache holds
/// objects, which are useless without an index.
///
/// # Errors
/// [`IndexError::Damaged`] if it must not be opened; others if it cannot be checked.
pub fn check(path: &Path, needed: bool) -> Result<CheckedIndex> {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let (database, wal) = (size(path), size(&wal_path(path)));
    if database < HEAD {
        // SQLite would take the WAL beside an empty database for a leftover, and remove it, even on
        // a connection that may only read.
        return match needed || wal > 0 || database > 0 {
            true => Err(damaged(path, IndexDamage::CutOff)),
            false => Ok(CheckedIndex {
                complete: true,
                oddities: Vec::new(),
            }),
        };
    }
    match look(path, database + wal, needed) {
        Err(IndexError::Sql { source, .. }) if is_damage(&source) => {
            Err(damaged(path, IndexDamage::Unreadable(source)))
        }
        // The daemon died while it made the file. Opening it for writing rolls that back.
        Err(IndexError::Sql { source, .. }) if !needed && is_hot(&source) => Ok(CheckedIndex {
            complete: false,
            oddities: Vec::new(),
        }),
        looked => looked,
    }
}

fn damaged(path: &Path, problem: IndexDamage) -> IndexError {
    IndexError::Damaged {
        path: PathBuf::from(path),
        problem,
    }
}

/// Returns whether SQLite's error is caused by the contents of the file.
fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::SqlInputError { .. }
    ) || matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::Unknown
                | ErrorCode::TypeMismatch
                | ErrorCode::TooBig
        )
    ) || error
        .sqlite_error()
        .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ)
}

/// Returns whether there is a journal of SQLite's own, which only a connection that can write may
/// roll back.
fn is_hot(error: &rusqlite::Error) -> bool {
    error
        .sqlite_error()
        .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_READONLY_ROLLBACK)
}

/// Locks nothing: a lock for writing needs a descriptor that can write. The lock of the cache keeps
/// others out.
const VFS: &std::ffi::CStr = c"unix-none";

/// Opens a connection that writes no rows and does not copy the WAL when it is closed. In the
/// exclusive mode the index of the WAL is in memory, not in a file beside it.
fn connect_to_read(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let conn = super::open_database(path, flags, VFS).context("open")?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .context("configure")?;
    conn.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA temp_store=MEMORY;")
        .context("configure")?;
    Ok(conn)
}

fn look(path: &Path, bytes: u64, needed: bool) -> Result<CheckedIndex> {
    let conn = connect_to_read(path)?;
    let version: i64 = conn
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .context("read the format version")?;
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .context("look for tables")?;
    match version {
        0 if tables == 0 && !needed => {
            return Ok(CheckedIndex {
                complete: true,
                oddities: Vec::new(),
            });
        }
        schema::OLDEST..=schema::VERSION => {}
        0 => return Err(damaged(path, IndexDamage::NoTables)),
        other => return Err(IndexError::OtherVersion(other)),
    }
    let unclean: Option<i64> = conn
        .query_row("SELECT 1 FROM meta WHERE key='unclean'", [], |row| {
            row.get(0)
        })
        .optional()
        .context("read a setting")?;
    if bytes > CHEAP && unclean.is_none() {
        return Ok(CheckedIndex {
            complete: false,
            oddities: Vec::new(),
        });
    }
    let limit = (bytes > CHEAP).then_some(PATIENCE);
    match within(&conn, limit, || examine(&conn, path, limit.is_none())) {
        Err(IndexError::Sql { source, .. })
            if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) =>
        {
            Ok(CheckedIndex {
                complete: false,
                oddities: Vec::new(),
            })
        }
        Err(error) => Err(error),
        Ok(oddities) => Ok(CheckedIndex {
            complete: true,
            oddities,
        }),
    }
}

/// Runs `work` on `conn` and interrupts it after `limit`.
fn within<T>(
    conn: &Connection,
    limit: Option<Duration>,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Some(limit) = limit else { return work() };
    let handle = conn.get_interrupt_handle();
    let (done, waited) = bounded::<()>(0);
    thread::scope(|scope| {
        scope.spawn(move || {
            if waited.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                handle.interrupt();
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// Runs SQLite's own checks, then reads every row, then compares rows.
fn examine(conn: &Connection, path: &Path, thorough: bool) -> Result<Vec<Contradiction>> {
    let pragma = match thorough {
        true => format!("PRAGMA integrity_check({TOLD})"),
        false => format!("PRAGMA quick_check({TOLD})"),
    };
    let said: Vec<String> = conn
        .prepare(&pragma)
        .and_then(|mut s| s.query_map([], |row| row.get(0))?.collect())
        .context("check the pages")?;
    if said != ["ok"] {
        return Err(damaged(path, IndexDamage::Pages(said)));
    }
    read_every_row(conn, path)?;
    let found = count(conn, &CONTRADICTIONS)?;
    if !found.is_empty() {
        return Err(damaged(path, IndexDamage::Contradictions(found)));
    }
    count(conn, &ODDITIES)
}

fn count(conn: &Connection, queries: &[(&'static str, &str)]) -> Result<Vec<Contradiction>> {
    let mut found = Vec::new();
    for (what, sql) in queries {
        let count: i64 = conn
            .query_row(sql, [], |row| row.get(0))
            .context("compare rows")?;
        if count != 0 {
            found.push(Contradiction { what, count });
        }
    }
    Ok(found)
}

/// Checks that every row can be read and has possible values.
fn read_every_row(conn: &Connection, path: &Path) -> Result<()> {
    for_each(conn, &format!("SELECT {COLUMNS} FROM inodes"), |row| {
        let inode = Inode::from_row(row)?;
        let impossible = FileKind::from_mode(inode.mode).is_none()
            || i64::try_from(inode.size).is_err()
            || i64::try_from(inode.blocks).is_err();
        Ok(impossible.then_some(IndexDamage::ImpossibleInode(inode.ino)))
    })
    .and_then(|problem| refuse(path, problem))?;
    for_each(
        conn,
        "SELECT parent, name, ino, stored FROM dirents",
        |row| {
            row.get::<_, i64>(0)?;
            name_from_row(row, 1)?;
            row.get::<_, i64>(2)?;
            let spelled: Option<Vec<u8>> = row.get(3)?;
            spelled.map(|_| name_from_row(row, 3)).transpose()?;
            Ok(None)
        },
    )
    .and_then(|problem| refuse(path, problem))?;
    for_each(
        conn,
        &format!("SELECT {PLACED_COLUMNS} FROM placed"),
        |row| placed_from_row(row).map(|_| None),
    )
    .and_then(|problem| refuse(path, problem))
}

fn refuse(path: &Path, problem: Option<IndexDamage>) -> Result<()> {
    problem.map_or(Ok(()), |problem| Err(damaged(path, problem)))
}

/// Returns the first problem that `look` finds in the rows of `sql`.
fn for_each(
    conn: &Connection,
    sql: &str,
    look: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<Option<IndexDamage>>,
) -> Result<Option<IndexDamage>> {
    let run = || -> rusqlite::Result<Option<IndexDamage>> {
        let mut statement = conn.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(problem) = look(row)? {
                return Ok(Some(problem));
            }
        }
        Ok(None)
    };
    run().context("read the rows")
}
