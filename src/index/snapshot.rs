//! A view of the index as of one commit, for long reads that must not block writers.

use std::cell::RefCell;

use rusqlite::{Connection, OptionalExtension, params};

use super::inode::{COLUMNS, Inode};
use super::tree::{
    PLACED_COLUMNS, PlacedEntry, key_from_row, name_from_row, placed_from_row, placed_in,
    places_of, stored_names_of,
};
use super::{Context, Result, int};
use crate::core::{Ino, Name, RelPath, Seq};
use crate::index::mirror::DescribedWay;
use crate::index::paths::{FixedWays, path_upwards};
use crate::index::stored_names::{look_up_stored, mount_name_of};
use crate::plan::planner::NameKey;
use crate::plan::space::Allocation;

/// How much waits for the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WaitingCounts {
    /// Known directories whose entries were never read from the backend.
    pub unlisted_dirs: u64,
    /// Names that were made, moved or removed.
    pub names: u64,
    /// Files and directories that the backend has in an older version.
    pub inodes: u64,
    /// Special files and links that only the index can store, and that do not wait to be described.
    pub kept_local: u64,
}

/// A view as of the moment it was opened. See the methods of the same name on
/// [`super::IndexWriter`].
pub struct Snapshot {
    pub(super) conn: Connection,
    pub(super) mount_ways: FixedWays,
    pub(super) backend_ways: FixedWays,
    pub(super) described_way: RefCell<DescribedWay>,
}

/// Links and special files that the drive does not have and that wait for nothing. The first two
/// terms are those of the index `inodes_kept_local`, so that it is used.
const KEPT_LOCAL: &str = "SELECT count(*) FROM inodes i
  WHERE mode & 61440 NOT IN (32768, 16384) AND flags & 16 = 0 AND flags & 512 = 0 AND nlink > 0
  AND NOT EXISTS(SELECT 1 FROM dirents d
    JOIN dirty_names n ON n.parent=d.parent AND n.name=coalesce(d.stored, d.name)
    WHERE d.ino=i.ino)";

impl Snapshot {
    pub(super) fn open(conn: Connection) -> Result<Snapshot> {
        // The read transaction begins with the first read, so one is made at once.
        conn.execute_batch("BEGIN; SELECT 1 FROM meta LIMIT 1;")
            .context("open a snapshot")?;
        Ok(Snapshot {
            conn,
            mount_ways: FixedWays::default(),
            backend_ways: FixedWays::default(),
            described_way: RefCell::default(),
        })
    }

    /// Counts what waits.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn waiting(&self) -> Result<WaitingCounts> {
        let count = |sql: &str| -> Result<u64> {
            self.conn
                .query_row(sql, [], |row| row.get::<_, i64>(0))
                .context("count what waits")
                .map(|n| n as u64)
        };
        Ok(WaitingCounts {
            unlisted_dirs: self.unlisted_dirs()?,
            names: count("SELECT count(*) FROM dirty_names")?,
            // For a directory with waiting names it is not worth reporting that its time has
            // changed.
            inodes: count(
                "SELECT count(*) FROM dirty_inodes d LEFT JOIN inodes i ON i.ino=d.ino
                 WHERE i.mode IS NULL OR i.mode & 61440 <> 16384 OR NOT EXISTS(SELECT 1 FROM dirty_names n WHERE n.parent=d.ino)",
            )?,
            kept_local: count(KEPT_LOCAL)?,
        })
    }

    /// Returns the space that the backend will need for further names of files that it has, if it
    /// has no hard links: each is a copy there. Reads all changed inodes.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn copies_needed(&self, allocation: Allocation) -> Result<u64> {
        if allocation.hard_links {
            return Ok(0);
        }
        let sql = "SELECT i.size, i.nlink - (SELECT count(*) FROM placed p WHERE p.ino=i.ino) FROM dirty_inodes d JOIN inodes i ON i.ino=d.ino
                   WHERE i.mode & 61440 = 32768 AND i.nlink > 1 AND i.flags & 1 = 0";
        let mut statement = self.conn.prepare(sql).context("count copies")?;
        let rows =
            statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
        let mut needed: u64 = 0;
        for row in rows.context("count copies")? {
            let (size, names) = row.context("count copies")?;
            let (size, names) = (
                size.max(0).cast_unsigned(),
                u32::try_from(names).unwrap_or(0),
            );
            needed = needed.saturating_add(allocation.copies(size, names));
        }
        Ok(needed)
    }

    /// Returns the number of known directories whose entries were never read from the backend.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn unlisted_dirs(&self) -> Result<u64> {
        // The condition is that of the index `inodes_unlisted`, word for word.
        let sql = "SELECT count(*) FROM inodes WHERE mode & 61440 = 16384 AND flags & 8 = 0";
        self.conn
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .context("count the directories to list")
            .map(|count| count as u64)
    }

    /// Every marked name, in order, with the change that marked it.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn dirty_names(&self) -> Result<Vec<(NameKey, Seq)>> {
        self.conn
            .prepare("SELECT parent, name, seq FROM dirty_names ORDER BY parent, name")
            .and_then(|mut s| {
                s.query_map([], |row| {
                    let key = NameKey {
                        parent: Ino(row.get::<_, i64>(0)? as u64),
                        name: name_from_row(row, 1)?,
                    };
                    Ok((key, Seq(row.get::<_, i64>(2)? as u64)))
                })?
                .collect()
            })
            .context("list dirty names")
    }

    /// Every marked inode.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn dirty_inodes(&self) -> Result<Vec<Ino>> {
        self.conn
            .prepare("SELECT ino FROM dirty_inodes ORDER BY ino")
            .and_then(|mut s| {
                s.query_map([], |row| Ok(Ino(row.get::<_, i64>(0)? as u64)))?
                    .collect()
            })
            .context("list dirty inodes")
    }

    /// The inode `ino`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn inode(&self, ino: Ino) -> Result<Option<Inode>> {
        self.conn
            .prepare_cached(&format!("SELECT {COLUMNS} FROM inodes WHERE ino=?"))
            .and_then(|mut s| s.query_row([int(ino.0)], Inode::from_row).optional())
            .context("read an inode")
    }

    /// Every name of `ino` in the mount, as it is stored.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn names_of(&self, ino: Ino) -> Result<Vec<NameKey>> {
        stored_names_of(&self.conn, ino)
    }

    /// One of the names that `ino` has in the mount and on the backend alike.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn kept_name_of(&self, ino: Ino) -> Result<Option<NameKey>> {
        // The first common one is looked for among the names, each by its key: `+` keeps SQLite
        // from reading all places of an inode that has many.
        let sql = "SELECT p.parent, p.name FROM dirents d CROSS JOIN placed p
             ON p.parent=d.parent AND p.name=coalesce(d.stored, d.name)
             WHERE d.ino=?1 AND +p.ino=?1 LIMIT 1";
        self.conn
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row([int(ino.0)], key_from_row).optional())
            .context("find a name that an inode keeps")
    }

    /// Every name under which the backend has `ino`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn places_of(&self, ino: Ino) -> Result<Vec<(NameKey, PlacedEntry)>> {
        places_of(&self.conn, ino)
    }

    /// Returns the inode of the mount's name that is stored under `key`, whose canonical key is
    /// `fold`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn lookup(&self, key: &NameKey, fold: &[u8]) -> Result<Option<Ino>> {
        look_up_stored(&self.conn, key.parent, &key.name, fold)
    }

    /// Returns the mount's name that is stored under `key`, whose canonical key is `fold`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn mount_name(&self, key: &NameKey, fold: &[u8]) -> Result<Option<Name>> {
        mount_name_of(&self.conn, key, fold)
    }

    /// Returns what the backend has under a name.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn placed(&self, key: &NameKey) -> Result<Option<PlacedEntry>> {
        self.conn
            .prepare_cached(&format!(
                "SELECT {PLACED_COLUMNS} FROM placed WHERE parent=? AND name=?"
            ))
            .and_then(|mut s| {
                s.query_row(
                    params![int(key.parent.0), key.name.as_bytes()],
                    placed_from_row,
                )
                .optional()
            })
            .context("look up what the backend has")
            .map(|found| found.map(|(_, entry)| entry))
    }

    /// Returns what the backend has in the directory `parent`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn placed_in(&self, parent: Ino) -> Result<Vec<(Name, PlacedEntry)>> {
        placed_in(&self.conn, parent)
    }

    /// Returns how many files are known to be on the backend.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn placed_files(&self) -> Result<u64> {
        let count: i64 = (self.conn)
            .query_row("SELECT count(*) FROM placed WHERE kind <> 1", [], |row| {
                row.get(0)
            })
            .context("count the files on the drive")?;
        Ok(count.max(0).cast_unsigned())
    }

    /// Returns the path of the directory `dir` on the backend.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn backend_dir(&self, dir: Ino) -> Result<Option<RelPath>> {
        path_upwards(dir, |at| self.backend_link(at))
    }

    /// Returns the path of the directory `dir` in the mount, in stored names: its future path on
    /// the backend.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn mount_dir(&self, dir: Ino) -> Result<Option<RelPath>> {
        path_upwards(dir, |at| self.mount_link(at))
    }

    /// Returns the parent and name of the directory `dir` on the backend; looked up once.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn backend_link(&self, dir: Ino) -> Result<Option<NameKey>> {
        if let Some(known) = self.backend_ways.borrow().get(&dir) {
            return Ok(known.clone());
        }
        let found = self.places_of(dir)?.into_iter().next().map(|(key, _)| key);
        (self.backend_ways.borrow_mut()).insert(dir, found.clone());
        Ok(found)
    }

    /// Returns the same of the mount, with the stored name.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn mount_link(&self, dir: Ino) -> Result<Option<NameKey>> {
        if let Some(known) = self.mount_ways.borrow().get(&dir) {
            return Ok(known.clone());
        }
        let found = self.names_of(dir)?.into_iter().next();
        (self.mount_ways.borrow_mut()).insert(dir, found.clone());
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::KEPT_LOCAL;
    use crate::index::schema;

    #[test]
    fn counting_what_stays_does_not_read_all_inodes() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(schema::TABLES).unwrap();
        conn.execute_batch(schema::SINCE_2).unwrap();
        let mut plan = conn
            .prepare(&format!("EXPLAIN QUERY PLAN {KEPT_LOCAL}"))
            .unwrap();
        let first: String = plan.query_row([], |row| row.get(3)).unwrap();
        assert_eq!(first, "SCAN i USING INDEX inodes_kept_local");
    }
}
