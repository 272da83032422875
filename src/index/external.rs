//! What the import of external changes needs of the index: names and places of one inode, and the
//! consequences for a file that the backend no longer has.

use rusqlite::{OptionalExtension, params};

use crate::core::{Ino, Name};
use crate::index::inode::{Flags, Inode};
use crate::index::tree::{PlacedEntry, name_from_row, places_of, stored_names_of};
use crate::index::{Context, IndexWriter, Result, int, statements};
use crate::plan::planner::NameKey;

/// Prefix of the settings that name inodes made for the other version of a file.
const CONFLICT: &str = "conflict/";

impl IndexWriter {
    /// Returns all names of `ino` in the mount.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn names_of(&mut self, ino: Ino) -> Result<Vec<(Ino, Name)>> {
        self.conn
            .prepare_cached("SELECT parent, name FROM dirents WHERE ino=? ORDER BY parent, name")
            .and_then(|mut s| {
                s.query_map([int(ino.0)], |row| {
                    Ok((Ino(row.get::<_, i64>(0)? as u64), name_from_row(row, 1)?))
                })?
                .collect()
            })
            .context("list the names of an inode")
    }

    /// Returns all names under which the backend has `ino`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn places_of(&mut self, ino: Ino) -> Result<Vec<(NameKey, PlacedEntry)>> {
        places_of(&self.conn, ino)
    }

    /// Notes that the backend has `entry` under `key`, in place of the inode of `before`, with the
    /// consequences for `before`: see [`IndexWriter::lose_place`].
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn replace_placed(
        &mut self,
        key: &NameKey,
        before: Option<&PlacedEntry>,
        entry: Option<&PlacedEntry>,
    ) -> Result<()> {
        self.put_placed(key, entry)?;
        match before {
            Some(before) => self.lose_place(before.ino),
            None => Ok(()),
        }
    }

    /// If the backend has no name of `ino` any more: its bytes must not be looked for there, and
    /// whatever the mount has of it is marked, so that the next batch writes it. A file without any
    /// bytes left stays as it is, and reads of it fail.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn lose_place(&mut self, ino: Ino) -> Result<()> {
        if self.a_place_of(ino)?.is_some() {
            return Ok(());
        }
        let Some(mut inode) = self.inode(ino)? else {
            return Ok(());
        };
        let is_nowhere = !inode.is_dir()
            && inode.object.is_none()
            && !inode.flags.has(Flags::DATA_DIRTY)
            && inode.size > 0;
        if !is_nowhere && inode.kind().is_plain() {
            inode.flags.clear(Flags::ON_BACKEND);
            if !inode.is_dir() {
                inode.flags.set(Flags::DATA_DIRTY);
            }
            self.put_inode(inode);
            // Its names are marked, so it is written.
            self.settle_dirty_inode(ino)?;
        }
        self.mark_names_of(ino)
    }

    /// Notes that the backend may have another file under every name of `ino`.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn mark_names_of(&mut self, ino: Ino) -> Result<()> {
        for key in stored_names_of(&self.conn, ino)? {
            self.mark_name(key.parent, &key.name)?;
        }
        Ok(())
    }

    /// Returns the name of `parent` that is stored under `stored`, or under a spelling that the
    /// backend considers equal, and its inode.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn at_spelling(&mut self, parent: Ino, stored: &Name) -> Result<Option<(Name, Ino)>> {
        let fold = self.rules.fold(stored);
        let (sql, key) = match fold.is_empty() {
            true => (
                "SELECT name, ino FROM dirents WHERE parent=?1 AND fold=x'' AND name=?2 AND stored IS NULL
                 UNION ALL SELECT name, ino FROM dirents WHERE parent=?1 AND stored=?2 LIMIT 1",
                stored.as_bytes(),
            ),
            false => (
                "SELECT name, ino FROM dirents WHERE parent=?1 AND fold=?2 AND stored IS NULL
                 UNION ALL SELECT name, ino FROM dirents WHERE parent=?1 AND stored_fold=?2 LIMIT 1",
                &fold[..],
            ),
        };
        self.conn
            .prepare_cached(sql)
            .and_then(|mut s| {
                s.query_row(params![int(parent.0), key], |row| {
                    Ok((name_from_row(row, 0)?, Ino(row.get::<_, i64>(1)? as u64)))
                })
                .optional()
            })
            .context("look for what is stored under a name")
    }

    /// Unmarks `ino` if the backend has it unchanged.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn settle_dirty_inode(&mut self, ino: Ino) -> Result<()> {
        let differs =
            |inode: &Inode| inode.flags.has(Flags::ON_BACKEND) && inode.flags.any(Flags::DIRTY);
        if !self.inode(ino)?.is_some_and(|inode| differs(&inode)) {
            self.change(
                "settle an inode",
                statements::SETTLE_INODE,
                params![int(ino.0)],
            )?;
        }
        Ok(())
    }

    /// Notes that `ino` has a name again.
    pub fn no_orphan(&mut self, ino: Ino) {
        if self.orphans.remove(&ino) {
            self.orphans_since.push((ino, false));
        }
    }

    /// Notes that `ino` is the other version of a file that both sides have changed.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn note_conflict(&mut self, ino: Ino) -> Result<()> {
        self.set_meta(&format!("{CONFLICT}{}", ino.0), "1")
    }

    /// Returns how many of those still exist.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn count_conflicts(&mut self) -> Result<u64> {
        let mut count = 0;
        for (number, _) in self.metas(CONFLICT)? {
            let ino = Ino(number.parse().unwrap_or(0));
            if self.inode(ino)?.is_some_and(|inode| inode.nlink > 0) {
                count += 1;
            } else {
                self.set_meta(&format!("{CONFLICT}{number}"), "")?;
            }
        }
        Ok(count)
    }
}
