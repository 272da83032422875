//! Replaced versions whose new bytes are not known to be durable yet.
//!
//! The row that gives a name new bytes may reach the disk before these bytes do. After a power cut
//! the name would be truncated or empty although the old bytes are still on the disk: dead objects
//! are removed only after a sync. So the transaction of each replacement also notes what was there
//! before. [`IndexWriter::forget_replaced`], after a sync that covers the new bytes, removes the
//! notes. A crash between the sync and that finds notes whose new bytes are whole, and which
//! therefore have no effect.
//!
//! A note is valid only for the new bytes that it was made for: `by_seq` is compared with the
//! inode's `data_seq`. A further change of the same bytes before they are durable updates the note
//! ([`IndexWriter::follow_replaced`]).

use std::collections::HashSet;

use rusqlite::{Connection, Row, params};

use super::inode::{COLUMNS, Inode};
use super::tree::name_from_row;
use super::{Context, IndexWriter, Result, int, statements};
use crate::core::{Ino, Seq};
use crate::plan::planner::NameKey;

/// One replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Its number in the history of changes.
    pub change: Seq,
    /// The name that got another file, as the mount spells it; `None` if the file itself got other
    /// bytes.
    pub name: Option<NameKey>,
    /// The inode that has the new bytes.
    pub by: Ino,
    /// The `data_seq` that it had then.
    pub by_seq: Seq,
    /// The inode that had the old ones, as it was then.
    pub before: Inode,
}

/// Returns the inodes with notes.
pub(super) fn load(conn: &Connection) -> Result<HashSet<Ino>> {
    conn.prepare("SELECT DISTINCT by FROM replaced")
        .and_then(|mut s| {
            s.query_map([], |row| Ok(Ino(row.get::<_, i64>(0)? as u64)))?
                .collect()
        })
        .context("list what was replaced")
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Replaced> {
    const OWN: usize = 18;
    let parent: Option<i64> = row.get(OWN + 1)?;
    let name = match parent {
        Some(parent) => Some(NameKey {
            parent: Ino(parent as u64),
            name: name_from_row(row, OWN + 2)?,
        }),
        None => None,
    };
    Ok(Replaced {
        change: Seq(row.get::<_, i64>(OWN)? as u64),
        name,
        by: Ino(row.get::<_, i64>(OWN + 3)? as u64),
        by_seq: Seq(row.get::<_, i64>(OWN + 4)? as u64),
        before: Inode::from_row(row)?,
    })
}

impl IndexWriter {
    /// Notes that the bytes of `before` have been replaced by those of `by`, which are not durable
    /// yet: under `name`, or in the file itself. Called in the transaction that replaces them.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn note_replaced(
        &mut self,
        name: Option<&NameKey>,
        by: (Ino, Seq),
        before: &Inode,
    ) -> Result<()> {
        let change = self.next_seq()?;
        let n = before;
        self.change(
            "note what was replaced",
            statements::NOTE_REPLACED,
            params![
                int(change.0),
                name.map(|key| int(key.parent.0)),
                name.map(|key| key.name.as_bytes()),
                int(by.0.0),
                int(by.1.0),
                int(n.ino.0),
                n.mode,
                n.uid,
                n.gid,
                n.rdev,
                n.nlink,
                int(n.size),
                int(n.blocks),
                n.atime.0,
                n.mtime.0,
                n.ctime.0,
                n.btime.0,
                n.object.map(|o| int(o.0)),
                n.flags.0,
                int(n.data_seq.0),
                int(n.time_seq.0),
                n.used,
                n.target.as_deref(),
            ],
        )?;
        self.replacing.insert(by.0);
        Ok(())
    }

    /// Updates the notes for `ino`, whose bytes are changed in place: the replaced version stays
    /// the same.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn follow_replaced(&mut self, ino: Ino, from: Seq, to: Seq) -> Result<()> {
        if self.replacing.contains(&ino) {
            self.change(
                "note what was replaced",
                statements::FOLLOW_REPLACED,
                params![int(to.0), int(ino.0), int(from.0)],
            )?;
        }
        Ok(())
    }

    /// Returns the last change that is noted as a replacement, if any. To be called before the sync
    /// that must cover it.
    pub fn last_replaced(&mut self) -> Option<Seq> {
        // A number above those of all notes, and below those of all later ones.
        (!self.replacing.is_empty()).then(|| self.seq_at_hand())
    }

    /// Returns the files whose replacement of others is not durable yet; `None` if there are more
    /// than `limit`.
    pub fn replacing(&self, limit: usize) -> Option<Vec<Ino>> {
        (self.replacing.len() <= limit).then(|| self.replacing.iter().copied().collect())
    }

    /// Forgets the replacements before `upto`: the new bytes are durable.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn forget_replaced(&mut self, upto: Seq) -> Result<()> {
        self.change(
            "forget what was replaced",
            statements::FORGET_REPLACED,
            params![int(upto.0)],
        )?;
        self.replacing = load(&self.conn)?;
        Ok(())
    }

    /// Returns the replacements, the latest first.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn replaced(&mut self) -> Result<Vec<Replaced>> {
        self.commit()?;
        self.conn
            .prepare(&format!(
                "SELECT {COLUMNS}, change, parent, name, by, by_seq FROM replaced ORDER BY change DESC"
            ))
            .and_then(|mut s| s.query_map([], from_row)?.collect())
            .context("list what was replaced")
    }

    /// Takes `object` out of the dead objects: an inode has it again.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn unbury_object(&mut self, object: crate::core::ObjectId) -> Result<()> {
        self.change(
            "keep an object",
            statements::FORGET_OBJECT,
            params![int(object.0)],
        )?;
        Ok(())
    }

    /// Removes the row of an inode and leaves its object without one, so that it goes to
    /// lost+found.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn abandon_inode(&mut self, mut inode: Inode) -> Result<()> {
        self.inode(inode.ino)?; // So that the sums know what is replaced.
        inode.object = None;
        let ino = inode.ino;
        self.put_inode(inode);
        self.remove_inode(ino)
    }
}
