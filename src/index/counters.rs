//! Numbers that are handed out, and sums that are kept.

use rusqlite::{Connection, OptionalExtension, params};

use super::inode::{Flags, Inode};
use super::{Context, Result, State, int};
use crate::base::FileKind;
use crate::rules::space::Allocation;

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
    /// What these take there, with new directories: whole clusters, a copy for each name where the backend has no links.
    pub needed_bytes: u64,
}

impl Totals {
    fn of(inode: &Inode, allocation: Allocation) -> Totals {
        Totals {
            needed_bytes: needed(inode, allocation),
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

    pub(super) fn replace(
        &mut self,
        before: Option<&Inode>,
        after: Option<&Inode>,
        allocation: Allocation,
    ) {
        let of = |inode: Option<&Inode>| inode.map(|it| Totals::of(it, allocation));
        let (before, after) = (
            of(before).unwrap_or_default(),
            of(after).unwrap_or_default(),
        );
        self.cached_bytes =
            (self.cached_bytes + after.cached_bytes).saturating_sub(before.cached_bytes);
        self.dirty_bytes =
            (self.dirty_bytes + after.dirty_bytes).saturating_sub(before.dirty_bytes);
        self.needed_bytes = (self.needed_bytes.saturating_add(after.needed_bytes))
            .saturating_sub(before.needed_bytes);
    }

    /// The sums over the rows. The last is [`needed`] in SQL.
    pub(super) fn load(conn: &Connection, allocation: Allocation) -> Result<Totals> {
        conn.query_row(
            "SELECT coalesce(sum(CASE WHEN object IS NULL THEN 0 ELSE blocks * 512 END), 0),
                    coalesce(sum(CASE WHEN flags & 1 THEN size ELSE 0 END), 0),
                    coalesce(sum(CASE WHEN nlink = 0 THEN 0
                      WHEN mode & 61440 = 32768 AND flags & 1 THEN (size + ?1 - 1) / ?1 * ?1 * (CASE WHEN ?3 THEN 1 ELSE nlink END)
                      WHEN mode & 61440 = 16384 AND flags & 16 = 0 THEN ?2 ELSE 0 END), 0) FROM inodes",
            params![int(allocation.unit.max(1)), int(allocation.unit), allocation.hard_links],
            |row| {
                Ok(Totals {
                    cached_bytes: row.get::<_, i64>(0)? as u64,
                    dirty_bytes: row.get::<_, i64>(1)? as u64,
                    needed_bytes: row.get::<_, i64>(2)? as u64,
                })
            },
        )
        .context("sum up")
    }
}

/// What the backend will take for an inode that it does not have in this version. The further names of a file that it has are
/// counted apart, see [`super::Snapshot::copies_needed`].
fn needed(inode: &Inode, allocation: Allocation) -> u64 {
    match inode.kind() {
        _ if inode.nlink == 0 => 0,
        FileKind::Regular if inode.flags.has(Flags::DATA_DIRTY) => {
            allocation.copies(inode.size, inode.nlink)
        }
        FileKind::Directory if !inode.flags.has(Flags::ON_BACKEND) => allocation.directory(0),
        _ => 0,
    }
}

/// Key of the setting that says how the backend allocates space.
const ALLOCATION: &str = "allocation";

/// How the backend allocates space, as it was last noted.
pub(super) fn load_allocation(conn: &Connection) -> Result<Allocation> {
    let sql = "SELECT CAST(value AS TEXT) FROM meta WHERE key=?";
    let noted: Option<String> = conn
        .query_row(sql, [ALLOCATION], |row| row.get(0))
        .optional()
        .context("read a setting")?;
    let parse = |noted: &str| {
        let (unit, links) = noted.split_once(' ')?;
        Some(Allocation {
            unit: unit.parse().ok()?,
            hard_links: links == "links",
        })
    };
    Ok(noted.as_deref().and_then(parse).unwrap_or_default())
}

impl State {
    /// The totals, summed up from the rows as of the last commit. For checks.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn reckon_totals(&self) -> Result<Totals> {
        Totals::load(&self.conn, self.allocation)
    }

    /// Notes how the backend allocates space, and reckons anew what waits will take there.
    ///
    /// # Errors
    /// If SQLite cannot; then the sums are those from before.
    pub fn set_allocation(&mut self, allocation: Allocation) -> Result<()> {
        if allocation == self.allocation {
            return Ok(());
        }
        let links = if allocation.hard_links {
            "links"
        } else {
            "copies"
        };
        self.set_meta(ALLOCATION, &format!("{} {links}", allocation.unit))?;
        self.commit()?;
        self.totals = Totals::load(&self.conn, allocation)?;
        self.committed_totals = self.totals;
        self.allocation = allocation;
        Ok(())
    }
}
