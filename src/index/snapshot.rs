//! A view of the index as of one commit, for long reads that must not hold up writers.

use std::cell::RefCell;

use rusqlite::{Connection, OptionalExtension, params};

use super::catalog::DescribedWay;
use super::inode::{COLUMNS, Inode};
use super::names::{look_up_stored, mount_name_of};
use super::tree::{
    PLACED_COLUMNS, PlacedEntry, name_from_row, placed_from_row, places_of, stored_names_of,
};
use super::ways::{FixedWays, path_upwards};
use super::{Context, Result, int};
use crate::base::{Ino, Name, RelPath, Seq};
use crate::rules::plan::NameKey;
use crate::rules::space::Allocation;

/// How much waits for the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Waiting {
    /// Directories whose entries are only on the backend yet.
    pub unlisted_dirs: u64,
    /// Names that were made, moved or removed.
    pub names: u64,
    /// Files and directories that the backend has in an older version.
    pub inodes: u64,
    /// Special files and links that live in the index only, and do not wait to be told of.
    pub kept_local: u64,
}

/// A view as of the moment it was opened. See the functions of the same name on [`super::State`] for what they tell.
pub struct Snapshot {
    pub(super) conn: Connection,
    pub(super) mount_ways: FixedWays,
    pub(super) backend_ways: FixedWays,
    pub(super) described_way: RefCell<DescribedWay>,
}

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

    /// How much waits.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn waiting(&self) -> Result<Waiting> {
        let count = |sql: &str| -> Result<u64> {
            self.conn
                .query_row(sql, [], |row| row.get::<_, i64>(0))
                .context("count what waits")
                .map(|n| n as u64)
        };
        Ok(Waiting {
            unlisted_dirs: self.unlisted_dirs()?,
            names: count("SELECT count(*) FROM dirty_names")?,
            // Of a directory in which names wait, nobody wants to be told besides that its time has changed.
            inodes: count(
                "SELECT count(*) FROM dirty_inodes d LEFT JOIN inodes i ON i.ino=d.ino
                 WHERE i.mode IS NULL OR i.mode & 61440 <> 16384 OR NOT EXISTS(SELECT 1 FROM dirty_names n WHERE n.parent=d.ino)",
            )?,
            kept_local: count(
                "SELECT count(*) FROM inodes i WHERE mode & 61440 NOT IN (32768, 16384) AND nlink > 0 AND flags & 16 = 0
                 AND NOT EXISTS(SELECT 1 FROM dirents d JOIN dirty_names n ON n.parent=d.parent AND n.name=coalesce(d.stored, d.name) WHERE d.ino=i.ino)",
            )?,
        })
    }

    /// What the backend will take for further names of files that it has, where it has no hard links: each is a copy there.
    /// Looks at all changed inodes.
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

    /// How many directories are known whose entries are only on the backend yet.
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

    /// Every name under which the backend has `ino`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn places_of(&self, ino: Ino) -> Result<Vec<(NameKey, PlacedEntry)>> {
        places_of(&self.conn, ino)
    }

    /// The inode whose name in the mount is stored under `key`, of which `fold` is the canonical key.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn lookup(&self, key: &NameKey, fold: &[u8]) -> Result<Option<Ino>> {
        look_up_stored(&self.conn, key.parent, &key.name, fold)
    }

    /// The name of the mount that is stored under `key`, of which `fold` is the canonical key.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn mount_name(&self, key: &NameKey, fold: &[u8]) -> Result<Option<Name>> {
        mount_name_of(&self.conn, key, fold)
    }

    /// What the backend has under a name.
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

    /// Where the backend has directory `dir`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn backend_dir(&self, dir: Ino) -> Result<Option<RelPath>> {
        path_upwards(dir, |at| self.backend_link(at))
    }

    /// Where the mount has directory `dir`, in stored names: where it will stand on the backend.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn mount_dir(&self, dir: Ino) -> Result<Option<RelPath>> {
        path_upwards(dir, |at| self.mount_link(at))
    }

    /// The name of directory `dir` on the backend, and what holds it; looked up once.
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

    /// The same in the mount, the name as it is stored.
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
