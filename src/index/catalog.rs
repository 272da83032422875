//! The mirror of the drive's catalog: what replaying its segments gives, one row per name.
//!
//! The rows are those of the head that stands beside them: the segment up to which they were brought, and its hash. A batch's
//! changes are taken in by its confirmation, in several transactions; how far it has come is noted in each, and the head moves in
//! the last. A crash in between leaves the journal of the batch, and its confirmation goes on where it was. Rows that have no head
//! are worth nothing and are read anew from the drive.
//!
//! Moving a directory is one row, as a row names its parent. Forgetting one is one row as well: what was below it hangs from
//! [`GONE`] and is removed bit by bit ([`State::sweep_catalog`]).

mod entry;
mod links;
mod read;

use rusqlite::params;

use super::{Context, Result, State};
use crate::base::{ContentHash, RelPath};
use crate::rules::catalog::{CatalogChange, Description};
use crate::rules::steps::SlotNo;

pub use links::LinkGroup;

/// The node of the volume's own directory.
const ROOT: i64 = 1;

/// Parent of what waits in a slot, under the slot's number.
const SLOTS: i64 = -2;

/// Parent of what is forgotten and still to be removed, under its own number.
const GONE: i64 = -1;

/// Keys of the settings that belong to the mirror.
const HEAD: &str = "catalog_head";
const LOG_BYTES: &str = "catalog_log_bytes";
const TAKEN: &str = "catalog_taken";
const LAST_FULL: &str = "catalog_last_full";

/// The segment that the mirror is the state after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogHead {
    /// Its number.
    pub segment: u64,
    /// The hash of its file.
    pub hash: ContentHash,
}

impl CatalogHead {
    fn to_text(self) -> String {
        use std::fmt::Write;
        let mut text = format!("{}:", self.segment);
        for byte in self.hash.0 {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    fn parse(text: &str) -> Option<CatalogHead> {
        let (segment, hex) = text.split_once(':')?;
        let mut hash = [0; 32];
        for (at, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        (hex.len() == 64).then_some(CatalogHead {
            segment: segment.parse().ok()?,
            hash: ContentHash(hash),
        })
    }
}

/// How large the log on the drive is, and what the whole of the catalog came to when it was last written as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CatalogSizes {
    /// Bytes of all segments that count.
    pub log: u64,
    /// About how many a segment with everything in it would have.
    pub live: u64,
}

impl State {
    /// The segment that the mirror is the state after; `None` if it is of none, and worth nothing.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn catalog_head(&self) -> Result<Option<CatalogHead>> {
        read::head(&self.conn)
    }

    /// Notes that the mirror is the state after `head`, and that the segments that count have `log_bytes` in all.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn set_catalog_head(&mut self, head: Option<CatalogHead>, log_bytes: u64) -> Result<()> {
        let text = head.map(CatalogHead::to_text).unwrap_or_default();
        self.set_meta(HEAD, &text)?;
        self.set_meta(LOG_BYTES, &log_bytes.to_string())?;
        self.set_meta(TAKEN, "")
    }

    /// How many changes of `segment` have been taken in by a confirmation that was interrupted.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn catalog_taken(&self, segment: u64) -> Result<usize> {
        let noted = self.meta(TAKEN)?;
        let taken = noted.as_deref().and_then(|noted| noted.split_once(':'));
        Ok(taken
            .filter(|(of, _)| *of == segment.to_string())
            .and_then(|(_, count)| count.parse().ok())
            .unwrap_or(0))
    }

    /// Notes that, in the same transaction as the changes themselves.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn set_catalog_taken(&mut self, segment: u64, count: usize) -> Result<()> {
        self.set_meta(TAKEN, &format!("{segment}:{count}"))
    }

    /// Notes that a segment with everything in it has just come to `bytes`.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn note_full_catalog(&mut self, bytes: u64) -> Result<()> {
        let nodes = read::count(&self.conn)?;
        self.set_meta(LAST_FULL, &format!("{bytes}:{nodes}"))
    }

    /// Takes one change in.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn change_catalog(&mut self, change: &CatalogChange) -> Result<()> {
        match change {
            CatalogChange::Detach { from, slot } => self.detach_described(from, *slot),
            CatalogChange::Attach { slot, to } => self.attach_described(*slot, to),
            CatalogChange::Remove { path } => self.forget_described(path),
            CatalogChange::Set { path, description } => self.set_described(path, description),
        }
    }

    fn detach_described(&mut self, from: &RelPath, slot: SlotNo) -> Result<()> {
        let Some(node) = read::find(&self.conn, from)?.filter(|node| *node != ROOT) else {
            return Ok(());
        };
        self.hang_from(node, SLOTS, &slot.0.to_be_bytes())
    }

    fn attach_described(&mut self, slot: SlotNo, to: &RelPath) -> Result<()> {
        self.forget_described(to)?;
        let slot = slot.0.to_be_bytes();
        let (Some(node), Some((dir, name))) =
            (read::child(&self.conn, SLOTS, &slot)?, to.split_last())
        else {
            return Ok(());
        };
        let parent = self.described_dir(&dir)?;
        self.hang_from(node, parent, name.as_bytes())
    }

    fn forget_described(&mut self, path: &RelPath) -> Result<()> {
        match read::find(&self.conn, path)? {
            Some(ROOT) => self.clear_catalog(),
            Some(node) => self.hang_from(node, GONE, node.to_string().as_bytes()),
            None => Ok(()),
        }
    }

    fn set_described(&mut self, path: &RelPath, description: &Description) -> Result<()> {
        let node = self.described_dir(path)?;
        self.change(
            "describe a name",
            "UPDATE catalog_nodes SET entry=?, link=? WHERE node=?",
            params![
                entry::encode(description),
                description.link.map(u64::cast_signed),
                node
            ],
        )?;
        Ok(())
    }

    /// Forgets everything. The rows go bit by bit.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn clear_catalog(&mut self) -> Result<()> {
        self.change(
            "clear the catalog",
            "UPDATE catalog_nodes SET parent=?, name=CAST(node AS BLOB) WHERE parent IN (?, ?)",
            params![GONE, ROOT, SLOTS],
        )?;
        self.change(
            "clear the catalog",
            "UPDATE catalog_nodes SET entry=NULL, link=NULL WHERE node=?",
            [ROOT],
        )?;
        Ok(())
    }

    /// Forgets what is still in slots: no change of the batch has taken it out.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn empty_catalog_slots(&mut self) -> Result<()> {
        self.change(
            "empty the slots",
            "UPDATE catalog_nodes SET parent=?, name=CAST(node AS BLOB) WHERE parent=?",
            params![GONE, SLOTS],
        )?;
        Ok(())
    }

    /// Removes up to about `limit` rows of what is forgotten; true if there are more.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn sweep_catalog(&mut self, limit: u32) -> Result<bool> {
        let gone: Vec<i64> = self
            .conn
            .prepare_cached("SELECT node FROM catalog_nodes WHERE parent=? LIMIT ?")
            .and_then(|mut s| s.query_map(params![GONE, limit], |row| row.get(0))?.collect())
            .context("look for what is forgotten")?;
        let mut left = limit as usize;
        for node in &gone {
            // What is in it goes as it does, later.
            let moved = self.change(
                "forget a described name",
                "UPDATE catalog_nodes SET parent=?, name=CAST(node AS BLOB) WHERE node IN
                 (SELECT node FROM catalog_nodes WHERE parent=? LIMIT ?)",
                params![GONE, node, left as i64],
            )?;
            left = left.saturating_sub(moved + 1);
            if moved as u64 >= left as u64 {
                return Ok(true);
            }
            self.change(
                "forget a described name",
                "DELETE FROM catalog_nodes WHERE node=?",
                [node],
            )?;
        }
        Ok(!gone.is_empty())
    }

    /// The node of `path`; it and those above it are made if they are not there.
    fn described_dir(&mut self, path: &RelPath) -> Result<i64> {
        let mut node = ROOT;
        for name in path.components() {
            node = match read::child(&self.conn, node, name)? {
                Some(child) => child,
                None => {
                    self.change(
                        "add a described name",
                        "INSERT INTO catalog_nodes(parent, name) VALUES(?,?)",
                        params![node, name],
                    )?;
                    self.conn.last_insert_rowid()
                }
            };
        }
        Ok(node)
    }

    fn hang_from(&mut self, node: i64, parent: i64, name: &[u8]) -> Result<()> {
        self.change(
            "move a described name",
            "UPDATE catalog_nodes SET parent=?, name=? WHERE node=?",
            params![parent, name, node],
        )?;
        Ok(())
    }
}
