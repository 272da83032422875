//! What the end of a cache asks of the index: whether anything is only here, and what a plain tree
//! of files does not show.

use rusqlite::Row;

use crate::core::Name;
use crate::index::tree::name_from_row;
use crate::index::{Context, Result, Snapshot};

/// What the drive's plain tree does not show of the mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotPlain {
    /// Symbolic links without a name on the drive.
    pub symlinks: u64,
    /// Devices, pipes and sockets without one.
    pub special: u64,
    /// Names of files with several names.
    pub linked: u64,
    /// Descriptions in the catalog.
    pub described: u64,
    /// Names that the drive spells in another way.
    pub respelled: u64,
    /// The first of them, with their spelling on the drive.
    pub spellings: Vec<(Name, Name)>,
}

/// The most names that are given one by one.
const NAMED: u32 = 10;

impl Snapshot {
    /// Returns how many files in the mount have bytes or changes that no batch has written. Those
    /// that stay local do not count.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn only_here(&self) -> Result<u64> {
        // Dirty bytes or times, being written, or interrupted; or never placed.
        self.count(
            "SELECT count(*) FROM inodes WHERE nlink > 0 AND flags & 512 = 0
             AND mode & 61440 = 32768
             AND (flags & 71 <> 0 OR size > 0 AND flags & 16 = 0)",
        )
    }

    /// Returns what the drive's plain tree does not show.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn not_plain(&self) -> Result<NotPlain> {
        let without_place = |kind: &str| {
            self.count(&format!(
                "SELECT count(*) FROM dirents d JOIN inodes i ON i.ino=d.ino
                 WHERE {kind} AND i.flags & 512 = 0 AND NOT EXISTS(SELECT 1 FROM placed p
                   WHERE p.parent=d.parent AND p.name=coalesce(d.stored, d.name))"
            ))
        };
        let from = "FROM dirents d JOIN inodes i ON i.ino=d.ino
             WHERE d.stored IS NOT NULL AND i.flags & 512 = 0";
        Ok(NotPlain {
            symlinks: without_place("i.mode & 61440 = 40960")?,
            special: without_place("i.mode & 61440 NOT IN (16384, 32768, 40960)")?,
            linked: self.count(
                "SELECT count(*) FROM dirents d JOIN inodes i ON i.ino=d.ino
                 WHERE i.mode & 61440 = 32768 AND i.nlink > 1 AND i.flags & 512 = 0",
            )?,
            described: self.count("SELECT count(*) FROM catalog_nodes WHERE entry IS NOT NULL")?,
            respelled: self.count(&format!("SELECT count(*) {from}"))?,
            spellings: self.spellings(from)?,
        })
    }

    fn spellings(&self, from: &str) -> Result<Vec<(Name, Name)>> {
        let sql = format!("SELECT d.name, d.stored {from} ORDER BY 1 LIMIT {NAMED}");
        let both = |row: &Row<'_>| Ok((name_from_row(row, 0)?, name_from_row(row, 1)?));
        self.conn
            .prepare(&sql)
            .and_then(|mut s| s.query_map([], both)?.collect())
            .context("list names with another spelling")
    }

    fn count(&self, sql: &str) -> Result<u64> {
        self.conn
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .context("count what is only here")
            .map(|count| count.max(0).cast_unsigned())
    }
}
