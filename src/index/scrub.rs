//! What a scrub asks of the index: all files that the backend is known to have, part by part.

use rusqlite::params;

use crate::core::ContentHash;
use crate::index::tree::{PLACED_COLUMNS, key_from_row, placed_from_row};
use crate::index::{Context, PlacedEntry, Result, Snapshot, int};
use crate::plan::planner::NameKey;

impl Snapshot {
    /// Returns up to `limit` files and special files that the backend has, in the order of
    /// directory and name, behind `after`. The order does not change with what is added.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn placed_after(
        &self,
        after: Option<&NameKey>,
        limit: u32,
    ) -> Result<Vec<(NameKey, PlacedEntry)>> {
        let (parent, name) = match after {
            Some(key) => (int(key.parent.0), key.name.as_bytes()),
            None => (-1, &b""[..]),
        };
        let sql = format!(
            "SELECT {PLACED_COLUMNS} FROM placed WHERE (parent, name) > (?, ?) AND kind <> 1
             ORDER BY parent, name LIMIT ?"
        );
        self.conn
            .prepare_cached(&sql)
            .and_then(|mut s| {
                s.query_map(params![parent, name, limit], placed_from_row)?
                    .collect()
            })
            .context("list what the backend has")
    }

    /// Returns how many files the backend has behind `after`, in the order of
    /// [`Snapshot::placed_after`], and their bytes.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn placed_amount(&self, after: Option<&NameKey>) -> Result<(u64, u64)> {
        let (parent, name) = match after {
            Some(key) => (int(key.parent.0), key.name.as_bytes()),
            None => (-1, &b""[..]),
        };
        self.conn
            .query_row(
                "SELECT count(*), coalesce(sum(size), 0) FROM placed
                 WHERE (parent, name) > (?, ?) AND kind <> 1",
                params![parent, name],
                |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
            )
            .context("count what the backend has")
            .map(|(files, bytes)| (files.max(0).cast_unsigned(), bytes.max(0).cast_unsigned()))
    }

    /// Returns up to `limit` names under which the backend has a file of this size with these
    /// bytes. Reads all names.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn placed_with(&self, hash: ContentHash, size: u64, limit: u32) -> Result<Vec<NameKey>> {
        self.conn
            .prepare_cached("SELECT parent, name FROM placed WHERE size=? AND hash=? LIMIT ?")
            .and_then(|mut s| {
                s.query_map(params![int(size), hash.0, limit], key_from_row)?
                    .collect()
            })
            .context("look for files with the same bytes")
    }
}
