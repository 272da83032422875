//! Numbers that are handed out, and sums that are kept.

use rusqlite::{Connection, OptionalExtension, params};

use super::inode::{Flags, Inode};
use super::{Context, Result, int};

/// Numbers are reserved in the database in runs of this many, so that handing one out costs no write.
const RESERVE: u64 = 4096;

/// A number that only ever goes up, also over restarts.
pub(super) struct Counter {
    key: &'static str,
    pub(super) next: u64,
    pub(super) reserved: u64,
}

impl Counter {
    pub(super) fn load(conn: &Connection, key: &'static str, first: u64) -> Result<Counter> {
        let next: Option<i64> = conn
            .query_row("SELECT value FROM meta WHERE key=?", [key], |row| {
                row.get(0)
            })
            .optional()
            .context("read a counter")?;
        let next = next.map_or(first, |n| n as u64);
        Ok(Counter {
            key,
            next,
            reserved: next,
        })
    }

    pub(super) fn take(&mut self, conn: &Connection) -> Result<u64> {
        if self.next == self.reserved {
            let reserved = self.next + RESERVE;
            conn.prepare_cached("INSERT OR REPLACE INTO meta VALUES(?,?)")
                .and_then(|mut s| s.execute(params![self.key, int(reserved)]))
                .context("reserve numbers")?;
            self.reserved = reserved;
        }
        self.next += 1;
        Ok(self.next - 1)
    }
}

/// Sums over all inodes, kept up to date with every change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Totals {
    /// Bytes that objects take on the SSD.
    pub cached_bytes: u64,
    /// Bytes of files that the backend does not have in this version.
    pub dirty_bytes: u64,
}

impl Totals {
    fn of(inode: &Inode) -> Totals {
        Totals {
            cached_bytes: if inode.object.is_some() {
                inode.blocks * 512
            } else {
                0
            },
            dirty_bytes: if inode.flags.has(Flags::DATA_DIRTY) {
                inode.size
            } else {
                0
            },
        }
    }

    pub(super) fn replace(&mut self, before: Option<&Inode>, after: Option<&Inode>) {
        let before = before.map(Totals::of).unwrap_or_default();
        let after = after.map(Totals::of).unwrap_or_default();
        self.cached_bytes =
            (self.cached_bytes + after.cached_bytes).saturating_sub(before.cached_bytes);
        self.dirty_bytes =
            (self.dirty_bytes + after.dirty_bytes).saturating_sub(before.dirty_bytes);
    }

    pub(super) fn load(conn: &Connection) -> Result<Totals> {
        conn.query_row(
            "SELECT coalesce(sum(CASE WHEN object IS NULL THEN 0 ELSE blocks * 512 END), 0),
                    coalesce(sum(CASE WHEN flags & 1 THEN size ELSE 0 END), 0) FROM inodes",
            [],
            |row| {
                Ok(Totals {
                    cached_bytes: row.get::<_, i64>(0)? as u64,
                    dirty_bytes: row.get::<_, i64>(1)? as u64,
                })
            },
        )
        .context("sum up")
    }
}
