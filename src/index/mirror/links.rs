//! Groups of hard links that are copies on the backend: which inode has their bytes here.
//!
//! An inode that was found as one name of a group has as many names as the catalog says (`nlink`),
//! before names in directories that were never listed are in the index. `pending` counts these:
//! `nlink` = names in `dirents` + `pending`. It is decremented for each name that is found, or
//! found to be another file, in the same transaction.

use rusqlite::{OptionalExtension, params};

use crate::core::{Ino, Name, RelPath, Timestamp};
use crate::index::mirror::read;
use crate::index::{Context, Flags, IndexWriter, Result, Snapshot, int};

/// A group of hard links, as the index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkGroup {
    /// Its number.
    pub link: u64,
    /// The inode of its names.
    pub ino: Ino,
    /// Size of the copies, in bytes.
    pub size: u64,
    /// Their time of last change.
    pub modified: Timestamp,
    /// Names of it in directories that were never listed.
    pub pending: u32,
}

const COLUMNS: &str = "link, ino, size, mtime, pending";

fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<LinkGroup> {
    Ok(LinkGroup {
        link: row.get::<_, i64>(0)?.cast_unsigned(),
        ino: Ino(row.get::<_, i64>(1)? as u64),
        size: row.get::<_, i64>(2)? as u64,
        modified: Timestamp(row.get(3)?),
        pending: row.get(4)?,
    })
}

impl IndexWriter {
    /// Returns the group with this number.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn link_group(&mut self, link: u64) -> Result<Option<LinkGroup>> {
        self.conn
            .prepare_cached(&format!("SELECT {COLUMNS} FROM link_groups WHERE link=?"))
            .and_then(|mut s| s.query_row([link.cast_signed()], from_row).optional())
            .context("look up a group of links")
    }

    /// Stores a group; its inode has no other.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn put_link_group(&mut self, group: &LinkGroup) -> Result<()> {
        self.change(
            "note a group of links",
            "INSERT OR REPLACE INTO link_groups VALUES(?,?,?,?,?)",
            params![
                group.link.cast_signed(),
                int(group.ino.0),
                int(group.size),
                group.modified.0,
                group.pending
            ],
        )?;
        Ok(())
    }

    /// Returns the paths on the backend of a group's names, as the catalog has them.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn described_links(&mut self, link: u64) -> Result<Vec<RelPath>> {
        let nodes: Vec<i64> = self
            .conn
            .prepare_cached("SELECT node FROM catalog_nodes WHERE link=?")
            .and_then(|mut s| {
                s.query_map([link.cast_signed()], |row| row.get(0))?
                    .collect()
            })
            .context("list the names of a group")?;
        let mut paths = Vec::with_capacity(nodes.len());
        for node in nodes {
            paths.extend(read::path_of(&self.conn, node)?);
        }
        Ok(paths)
    }

    /// Returns whether the directory of the backend's name `path` is in the index with all its
    /// entries.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn was_looked_into(&mut self, path: &RelPath) -> Result<bool> {
        let Some((dir, _)) = path.split_last() else {
            return Ok(true);
        };
        let mut at = Ino::ROOT;
        for name in dir.components() {
            let Ok(name) = Name::new(name) else {
                return Ok(true);
            };
            match self.placed(at, &name)? {
                Some(entry) => at = entry.ino,
                None if self.is_listed(at)? => return Ok(true),
                None => return Ok(false),
            }
        }
        self.is_listed(at)
    }

    fn is_listed(&mut self, dir: Ino) -> Result<bool> {
        let inode = self.inode(dir)?;
        Ok(inode.is_some_and(|inode| inode.flags.has(Flags::LISTED)))
    }

    /// Returns the groups that have changed here while not all their names are known. Commits.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn incomplete_links(&mut self) -> Result<Vec<LinkGroup>> {
        self.commit()?;
        self.conn
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM link_groups g WHERE pending > 0
                 AND EXISTS(SELECT 1 FROM inodes i WHERE i.ino=g.ino AND i.flags & 131 <> 0)"
            ))
            .and_then(|mut s| s.query_map([], from_row)?.collect())
            .context("list changed groups of links")
    }
}

impl Snapshot {
    /// Returns the group in which `ino` was found, if any.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn link_group_of(&self, ino: Ino) -> Result<Option<LinkGroup>> {
        self.conn
            .prepare_cached(&format!("SELECT {COLUMNS} FROM link_groups WHERE ino=?"))
            .and_then(|mut s| s.query_row([int(ino.0)], from_row).optional())
            .context("look up a group of links")
    }
}
