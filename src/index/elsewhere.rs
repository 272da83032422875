//! What taking in the changes of others needs of the index: names and places of one inode, and what it means for a file that
//! the backend has it no more.

use rusqlite::{OptionalExtension, params};

use super::inode::{Flags, Inode};
use super::tree::{PlacedEntry, name_from_row, places_of, stored_names_of};
use super::{Context, Result, State, int};
use crate::base::{Ino, Name};
use crate::rules::plan::NameKey;

/// Prefix of the settings that name the inodes which have come to be as the other version of a file.
const CONFLICT: &str = "conflict/";

impl State {
    /// Every name of `ino` in the mount.
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

    /// Every name under which the backend has `ino`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn places_of(&mut self, ino: Ino) -> Result<Vec<(NameKey, PlacedEntry)>> {
        places_of(&self.conn, ino)
    }

    /// Notes that the backend has nothing of the inode of `before` under `key` any more, but `entry`; what that means for
    /// `before` is noted, too: see [`State::lose_place`].
    ///
    /// # Errors
    /// If SQLite cannot.
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

    /// If the backend has `ino` under no name any more: its bytes are not to be looked for there, and whatever the mount has of
    /// it is marked, so that the next batch carries it. A file whose bytes are nowhere stays as it is; whoever reads it is told.
    ///
    /// # Errors
    /// If SQLite cannot.
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
            // Its names say that it is to be carried.
            self.settle_dirty_inode(ino)?;
        }
        self.mark_names_of(ino)
    }

    /// Notes that the backend may have something else under every name of `ino`.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn mark_names_of(&mut self, ino: Ino) -> Result<()> {
        for key in stored_names_of(&self.conn, ino)? {
            self.mark_name(key.parent, &key.name)?;
        }
        Ok(())
    }

    /// The name of `parent` that is stored under `stored`, or under one that the backend cannot tell from it, and its inode.
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

    /// Takes `ino` off the list of what the backend has in another version, if nothing of it differs.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn settle_dirty_inode(&mut self, ino: Ino) -> Result<()> {
        let differs =
            |inode: &Inode| inode.flags.has(Flags::ON_BACKEND) && inode.flags.any(Flags::DIRTY);
        if !self.inode(ino)?.is_some_and(|inode| differs(&inode)) {
            self.change(
                "settle an inode",
                "DELETE FROM dirty_inodes WHERE ino=?",
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

    /// Notes that `ino` is the other version of something that both sides have changed.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn note_conflict(&mut self, ino: Ino) -> Result<()> {
        self.set_meta(&format!("{CONFLICT}{}", ino.0), "1")
    }

    /// How many of those there still are.
    ///
    /// # Errors
    /// If SQLite cannot.
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
