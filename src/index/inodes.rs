//! Table `inodes`: the rows of inodes, and the inodes kept in memory.
//!
//! A changed inode is kept in `pending` and its row written once, at the next commit. So SQL that
//! reads this table on a request's path does not see changes since then: it either asks `pending`
//! as well or commits first.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, params};

use crate::core::{Ino, ObjectId};
use crate::index::counters::Totals;
use crate::index::inode::{COLUMNS, Flags, Inode};
use crate::index::{Context, Corruption, IndexError, IndexWriter, Result, int, statements};

impl IndexWriter {
    /// Returns a number for a new inode.
    ///
    /// # Errors
    /// If it cannot be reserved.
    pub fn new_ino(&mut self) -> Result<Ino> {
        self.take_number(|state| &mut state.inos).map(Ino)
    }

    /// The inode `ino`, if there is one.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn inode(&mut self, ino: Ino) -> Result<Option<Inode>> {
        if let Some(inode) = self.pending.get(&ino).or_else(|| self.cache.get(&ino)) {
            return Ok(Some(inode.clone()));
        }
        let inode = self
            .conn
            .prepare_cached(&format!("SELECT {COLUMNS} FROM inodes WHERE ino=?"))
            .and_then(|mut s| s.query_row([int(ino.0)], Inode::from_row).optional())
            .context("read an inode")?;
        if let Some(inode) = &inode {
            self.cache.put(ino, inode.clone());
        }
        Ok(inode)
    }

    /// Like [`IndexWriter::inode`], for an inode that another row names, so that it must exist.
    ///
    /// # Errors
    /// Also [`IndexError::Corrupt`] if it does not.
    pub fn expect_inode(&mut self, ino: Ino) -> Result<Inode> {
        self.inode(ino)?
            .ok_or_else(|| IndexError::Corrupt(Corruption::NoInode(ino)))
    }

    /// Stores an inode that is new or was read before. It is written with the next commit.
    pub fn put_inode(&mut self, inode: Inode) {
        let before = match self.pending.get(&inode.ino) {
            Some(before) => Some(before),
            None => self.cache.peek(&inode.ino),
        };
        self.totals.replace(before, Some(&inode), self.allocation);
        self.unfinished_inodes.insert(inode.ino);
        self.pending.insert(inode.ino, inode);
    }

    /// Sums over all inodes.
    pub fn totals(&self) -> Totals {
        self.totals.told()
    }

    /// Removes the inode's row. Its object, if any, becomes dead.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn remove_inode(&mut self, ino: Ino) -> Result<()> {
        let Some(inode) = self.inode(ino)? else {
            return Ok(());
        };
        if let Some(object) = inode.object {
            self.bury_object(&inode, object)?;
        }
        if inode.flags.has(Flags::XATTRS) {
            self.drop_xattrs(ino)?;
        }
        self.change("drop an inode", statements::DROP_INODE, params![int(ino.0)])?;
        if inode.is_dir() {
            self.change(
                "drop an inode",
                statements::DROP_HEIGHT,
                params![int(ino.0)],
            )?;
        }
        if inode.flags.has(Flags::ON_BACKEND) {
            self.change(
                "drop an inode",
                statements::SETTLE_INODE,
                params![int(ino.0)],
            )?;
            self.change(
                "drop an inode",
                statements::DROP_LINK_GROUP,
                params![int(ino.0)],
            )?;
        }
        self.totals.replace(Some(&inode), None, self.allocation);
        self.pending.remove(&ino);
        self.cache.pop(&ino);
        if self.orphans.remove(&ino) {
            self.orphans_since.push((ino, false));
        }
        Ok(())
    }

    /// Notes that `ino` has no name but is still in use.
    pub fn add_orphan(&mut self, ino: Ino) {
        if self.orphans.insert(ino) {
            self.orphans_since.push((ino, true));
        }
    }

    /// Returns whether `ino` has no name but is still in use.
    pub fn is_orphan(&self, ino: Ino) -> bool {
        self.orphans.contains(&ino)
    }

    /// Returns the inode whose bytes are in `object`. Searches all inodes.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn owner_of(&mut self, object: ObjectId) -> Result<Option<Ino>> {
        let holds = |inode: &Inode| inode.object == Some(object);
        if let Some(inode) = self.pending.values().find(|inode| holds(inode)) {
            return Ok(Some(inode.ino));
        }
        self.conn
            .prepare("SELECT ino FROM inodes WHERE object=?")
            .and_then(|mut s| {
                s.query_row([int(object.0)], |row| row.get::<_, i64>(0))
                    .optional()
            })
            .context("find whose object it is")
            .map(|found| found.map(|ino| Ino(ino as u64)))
    }

    /// Returns up to `limit` clean files with an object, least recently used first.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn evictable(&mut self, limit: u32) -> Result<Vec<Inode>> {
        self.commit()?;
        self.conn
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM inodes WHERE object IS NOT NULL AND flags & 3 = 0 ORDER BY used LIMIT ?"
            ))
            .and_then(|mut s| s.query_map([limit], Inode::from_row)?.collect())
            .context("list what can go")
    }

    /// Returns up to `limit` clean files with an object that were last used before `before`, in
    /// seconds since 1970, least recently used first.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn unused_since(&mut self, before: i64, limit: u32) -> Result<Vec<Inode>> {
        self.commit()?;
        self.conn
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM inodes WHERE object IS NOT NULL AND flags & 3 = 0 AND used < ? ORDER BY used LIMIT ?"
            ))
            .and_then(|mut s| s.query_map([before, i64::from(limit)], Inode::from_row)?.collect())
            .context("list what was not used")
    }

    /// Returns the inodes that must be checked after an unclean end: with bytes that the backend
    /// does not have, being written at that time, or without a name.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn unsettled(&mut self) -> Result<Vec<Inode>> {
        self.commit()?;
        self.conn
            .prepare(&format!(
                "SELECT {COLUMNS} FROM inodes WHERE flags & 5 != 0 OR nlink = 0"
            ))
            .and_then(|mut s| s.query_map([], Inode::from_row)?.collect())
            .context("list what was being written")
    }

    /// Returns the inodes that have no name any more.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn nameless(&mut self) -> Result<Vec<Ino>> {
        self.commit()?;
        self.conn
            .prepare("SELECT ino FROM inodes WHERE nlink = 0")
            .and_then(|mut s| {
                let rows = s.query_map([], |row| Ok(Ino(row.get::<_, i64>(0)? as u64)))?;
                rows.collect()
            })
            .context("list what has no name")
    }

    /// Returns the inodes with an object that is not among `present`.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn lacking(&mut self, present: &HashSet<ObjectId>) -> Result<Vec<Ino>> {
        self.commit()?;
        let mut lacking = Vec::new();
        let mut statement = self
            .conn
            .prepare("SELECT ino, object FROM inodes WHERE object IS NOT NULL")
            .context("list objects")?;
        let rows = statement
            .query_map([], |row| {
                let ino = Ino(row.get::<_, i64>(0)? as u64);
                Ok((ino, ObjectId(row.get::<_, i64>(1)? as u64)))
            })
            .context("list objects")?;
        for row in rows {
            let (ino, object) = row.context("list objects")?;
            if !present.contains(&object) {
                lacking.push(ino);
            }
        }
        Ok(lacking)
    }
}
