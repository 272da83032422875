//! Reads what can still be read of a damaged index.
//!
//! It works on a copy that the caller made, as SQLite may have to write beside it. Rows are read in
//! ranges of their keys; a range that cannot be read is halved until a single key is left of it, so
//! that a damaged page costs only the rows on it. The results are trusted only for naming files:
//! rows may contradict each other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Row};

use super::inode::{COLUMNS, Inode};
use super::redo::replay_earlier;
use super::tree::name_from_row;
use super::{VFS, connect, create, wal_path};
use crate::core::{Ino, Name, ObjectId};

/// How many queries may fail before the rest of a table is given up.
const FAILURES: usize = 20_000;

/// The largest key that is tried if the table does not say.
const FAR: i64 = 1 << 40;

/// Bytes of a page.
const PAGE: usize = 4096;

/// The tables that are read, the key of each, and its columns.
const TABLES: [(&str, &str, &str); 3] = [
    ("inodes", "ino", COLUMNS),
    ("dirents", "parent", "parent, name, ino"),
    ("dead_objects", "object", "object"),
];

/// The readable contents of an index.
#[derive(Debug, Default)]
pub struct Salvaged {
    /// The inodes.
    pub inodes: BTreeMap<Ino, Inode>,
    /// The names of the mount: directory and name, and their inode.
    pub names: BTreeMap<(Ino, Name), Ino>,
    /// Objects that no inode needed any more.
    pub dead: BTreeSet<ObjectId>,
    /// What could not be read; empty if everything could.
    pub problems: Vec<String>,
}

/// Reads what can be read of the index in the file `copy`, beside which copies of its WAL and its
/// redo log may be.
pub fn salvage(copy: &Path) -> Salvaged {
    let mut salvaged = Salvaged::default();
    let Some(conn) = open_somehow(copy, &mut salvaged.problems) else {
        salvaged
            .problems
            .push("nothing in the index can be read".into());
        return salvaged;
    };
    if let Err(error) = replay_earlier(&conn, copy) {
        let what = format!("what was done in the last moment is missing: {error}");
        salvaged.problems.push(what);
    }
    let mut sweep = Sweep {
        conn: &conn,
        problems: Vec::new(),
    };
    let (inodes, names, dead) = (
        &mut salvaged.inodes,
        &mut salvaged.names,
        &mut salvaged.dead,
    );
    sweep.read(TABLES[0], |row| {
        let inode = Inode::from_row(row)?;
        inodes.insert(inode.ino, inode);
        Ok(())
    });
    sweep.read(TABLES[1], |row| {
        let parent = Ino(row.get::<_, i64>(0)? as u64);
        let ino = Ino(row.get::<_, i64>(2)? as u64);
        names.insert((parent, name_from_row(row, 1)?), ino);
        Ok(())
    });
    sweep.read(TABLES[2], |row| {
        dead.insert(ObjectId(row.get::<_, i64>(0)? as u64));
        Ok(())
    });
    salvaged.problems.append(&mut sweep.problems);
    salvaged
}

fn open(copy: &Path) -> rusqlite::Result<Connection> {
    let conn = super::open_database(copy, OpenFlags::SQLITE_OPEN_READ_WRITE, VFS)?;
    conn.execute_batch("PRAGMA cell_size_check=ON; PRAGMA temp_store=MEMORY;")?;
    // Somebody who has edited an index may have replaced a table by something that computes its
    // rows, without end for example.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    for (table, _, _) in TABLES {
        if !is_plain(&conn, table)? {
            return Err(rusqlite::Error::InvalidParameterName(format!(
                "{table} is no plain table"
            )));
        }
    }
    // The head describes the tables and their columns: it is whole enough if it has everything that
    // will be asked for.
    for (table, _, columns) in TABLES {
        conn.prepare(&format!("SELECT {columns} FROM {table}"))?;
    }
    Ok(conn)
}

/// Returns whether it is a table that stores its rows: no view, no virtual table, no computed
/// column.
fn is_plain(conn: &Connection, table: &str) -> rusqlite::Result<bool> {
    let kind: String = conn.query_row(
        "SELECT type FROM pragma_table_list WHERE schema = 'main' AND name = ?",
        [table],
        |row| row.get(0),
    )?;
    let computed: i64 = conn.query_row(
        "SELECT count(*) FROM pragma_table_xinfo(?) WHERE hidden <> 0",
        [table],
        |row| row.get(0),
    )?;
    Ok(kind == "table" && computed == 0)
}

/// Opens the copy as it is; if its head is damaged, with the head of a new index, which is the same
/// for all.
fn open_somehow(copy: &Path, problems: &mut Vec<String>) -> Option<Connection> {
    match open(copy) {
        Ok(conn) => return Some(conn),
        Err(error) => problems.push(format!("the head of the index is damaged: {error}")),
    }
    let transplanted = transplant_head(copy).map_err(|error| error.to_string());
    match transplanted.and_then(|()| open(copy).map_err(|error| error.to_string())) {
        Ok(conn) => Some(conn),
        Err(error) => {
            problems.push(format!("a new head does not help: {error}"));
            None
        }
    }
}

/// Replaces the first page of the copy by that of a new index, which describes the tables and where
/// they begin.
fn transplant_head(copy: &Path) -> io::Result<()> {
    let fresh = copy.with_extension("fresh");
    let made = connect(&fresh, OpenFlags::SQLITE_OPEN_CREATE).and_then(|conn| create(&conn));
    made.map_err(io::Error::other)?;
    let mut page = vec![0; PAGE];
    File::open(&fresh)?.read_exact_at(&mut page, 0)?;
    std::fs::remove_file(&fresh)?;
    let file = OpenOptions::new().write(true).open(copy)?;
    let pages = u32::try_from(file.metadata()?.len().div_ceil(PAGE as u64)).unwrap_or(u32::MAX);
    // Offsets of SQLite's file header: the number of pages; no list of free ones.
    page[28..32].copy_from_slice(&pages.to_be_bytes());
    page[32..40].fill(0);
    file.write_all_at(&page, 0)?;
    // The WAL may have a damaged first page, too, and would take precedence.
    match std::fs::metadata(wal_path(copy)) {
        Ok(_) => std::fs::rename(wal_path(copy), copy.with_extension("wal-aside")),
        Err(_) => Ok(()),
    }
}

struct Sweep<'a> {
    conn: &'a Connection,
    problems: Vec<String>,
}

impl Sweep<'_> {
    /// Passes every readable row of `table` to `take`, some of them more than once.
    fn read(
        &mut self,
        (table, key, columns): (&str, &str, &str),
        mut take: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) {
        let edge = |sort: &str, otherwise: i64| {
            let sql = format!("SELECT {key} FROM {table} ORDER BY {key} {sort} LIMIT 1");
            self.conn
                .query_row(&sql, [], |row| row.get::<_, i64>(0))
                .unwrap_or(otherwise)
        };
        let mut ranges = VecDeque::from([(edge("ASC", 0).max(0), edge("DESC", FAR))]);
        let (mut failures, mut lost, mut because) = (0, 0u64, String::new());
        while let Some((low, high)) = ranges.pop_front() {
            if low > high {
                continue;
            }
            let forwards =
                format!("SELECT {columns} FROM {table} WHERE {key} BETWEEN ? AND ? ORDER BY {key}");
            let Err(error) = self.rows(&forwards, low, high, &mut take) else {
                continue;
            };
            failures += 1;
            because = error.to_string();
            if low < high && failures < FAILURES {
                let middle = low + (high - low) / 2;
                ranges.push_back((low, middle));
                ranges.push_back((middle + 1, high));
            } else {
                // Rows behind the damage are reached from the other end.
                let backwards = forwards + " DESC";
                let _ = self.rows(&backwards, low, high, &mut take);
                lost += int_span(low, high);
            }
        }
        if failures > 0 {
            self.problems.push(format!(
                "{table}: up to {lost} keys cannot be read, or not all that belongs to them: {because}"
            ));
        }
    }

    fn rows(
        &self,
        sql: &str,
        low: i64,
        high: i64,
        take: &mut impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query([low, high])?;
        let mut result = Ok(());
        while let Some(row) = rows.next()? {
            // One invalid row must not hold the others back.
            if let Err(error) = take(row) {
                result = Err(error);
            }
        }
        result
    }
}

fn int_span(low: i64, high: i64) -> u64 {
    high.abs_diff(low).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Capabilities;
    use crate::index::Index;
    use crate::plan::names::NameRules;

    fn index(dir: &Path) -> Connection {
        let path = dir.join("index.db");
        let rules = NameRules::new(&Capabilities::everything());
        drop(Index::open(&path, rules).unwrap());
        Connection::open(path).unwrap()
    }

    /// Each would give rows without end, or of any size.
    #[test]
    fn what_computes_its_rows_is_not_read_in_the_place_of_a_table() {
        let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS object, 0 AS batch FROM n";
        for planted in [
            format!("CREATE VIEW dead_objects AS {endless}"),
            "CREATE TABLE dead_objects(object INTEGER PRIMARY KEY, batch AS (zeroblob(1 << 30)))"
                .into(),
            "CREATE VIRTUAL TABLE dead_objects USING dbstat(main)".into(),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let conn = index(dir.path());
            conn.execute_batch("DROP TABLE dead_objects").unwrap();
            // Not every build has every kind of virtual table; then this one is not there at all.
            let _ = conn.execute_batch(&planted);
            drop(conn);
            let salvaged = salvage(&dir.path().join("index.db"));
            assert!(!salvaged.problems.is_empty(), "{planted}");
            assert!(salvaged.dead.len() < 1000, "{planted}");
        }
        let dir = tempfile::tempdir().unwrap();
        drop(index(dir.path()));
        assert_eq!(
            salvage(&dir.path().join("index.db")).problems,
            Vec::<String>::new()
        );
    }
}
