//! The mirror of the drive's catalog: the result of replaying its segments, one row for each name.
//!
//! The rows belong to the head that is stored beside them: the segment up to which they were
//! brought, and its hash. The confirmation of a batch applies its changes in several transactions;
//! each stores its progress, and the last moves the head. A crash in between leaves the journal of
//! the batch, and its confirmation continues. Rows without a head are worthless and are read again
//! from the drive.
//!
//! Moving a directory changes one row, since a row names its parent. Forgetting one changes one row
//! as well: everything below it gets the parent [`GONE`] and is removed bit by bit
//! ([`IndexWriter::sweep_catalog`]).

mod links;
mod read;

use rusqlite::params;

use crate::core::RelPath;
use crate::format::catalog::chain::LogState;
use crate::format::catalog::store::CatalogStore;
use crate::format::catalog::{Description, encode_description};
use crate::format::steps::SlotNo;
use crate::index::{Context, Index, IndexError, IndexWriter, Result};

pub use crate::index::mirror::links::LinkGroup;
pub(super) use crate::index::mirror::read::DescribedWay;

/// The node of the volume's own directory.
const ROOT: i64 = 1;

/// Parent of the nodes in slots; the slot's number is the name.
const SLOTS: i64 = -2;

/// Parent of forgotten nodes that are to be removed; their own number is the name.
const GONE: i64 = -1;

/// Keys of the mirror's settings: its head, the state of the log, the progress of a confirmation.
const HEAD: &str = "catalog_head";
const LOG: &str = "catalog_log";
const TAKEN: &str = "catalog_taken";

/// Key of the setting that says whether others could have written the contents of the mirror.
const STRANGERS: &str = "catalog_strangers";

/// Changes in one transaction of a [`Mirror`].
const CHUNK: usize = 256;

impl IndexWriter {
    /// Returns the state of the log that the mirror reflects. Without a head the mirror is
    /// worthless.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn catalog_log(&self) -> Result<LogState> {
        read::log(&self.conn)
    }

    /// Notes that the mirror reflects this log.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn set_catalog_log(&mut self, log: &LogState) -> Result<()> {
        let head = log.head.map(|head| {
            let hex = head.hash.0.map(|byte| format!("{byte:02x}"));
            format!("{}:{}", head.number, hex.concat())
        });
        self.set_meta(HEAD, &head.unwrap_or_default())?;
        let broken = u8::from(log.broken);
        self.set_meta(LOG, &format!("{}:{}:{broken}", log.highest, log.bytes))?;
        self.set_meta(TAKEN, "")
    }

    /// Returns whether somebody else than this cache's user and root could have written the
    /// contents of the mirror; see [`crate::plan::trust`].
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn catalog_is_strangers(&self) -> Result<bool> {
        Ok(self.meta(STRANGERS)?.as_deref() == Some("1"))
    }

    /// Sets that.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn set_catalog_is_strangers(&mut self, are: bool) -> Result<()> {
        self.set_meta(STRANGERS, if are { "1" } else { "" })
    }

    /// Returns how many changes of `segment` an interrupted confirmation has applied.
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

    /// Sets that, in the same transaction as the changes themselves.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn set_catalog_taken(&mut self, segment: u64, count: usize) -> Result<()> {
        self.set_meta(TAKEN, &format!("{segment}:{count}"))
    }

    pub(super) fn detach_described(&mut self, from: &RelPath, slot: SlotNo) -> Result<()> {
        let Some(node) =
            read::find(&self.conn, &mut self.described_way, from)?.filter(|node| *node != ROOT)
        else {
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
        match read::find(&self.conn, &mut self.described_way, path)? {
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
                encode_description(description),
                description.link.map(u64::cast_signed),
                node
            ],
        )?;
        Ok(())
    }

    /// Returns whether the mirror describes any name.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn describes_anything(&self) -> Result<bool> {
        self.conn
            .prepare_cached(
                "SELECT EXISTS(SELECT 1 FROM catalog_nodes WHERE parent IN (?1, ?2))
                 OR EXISTS(SELECT 1 FROM catalog_nodes WHERE node=?1 AND entry IS NOT NULL)",
            )
            .and_then(|mut s| s.query_row(params![ROOT, SLOTS], |row| row.get(0)))
            .context("ask whether anything is described")
    }

    /// Forgets everything. The rows are removed bit by bit.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn clear_catalog(&mut self) -> Result<()> {
        self.described_way.clear();
        self.change(
            "clear the catalog",
            "UPDATE catalog_nodes SET parent=?, name=CAST(node AS BLOB) WHERE parent IN (?, ?)",
            params![GONE, ROOT, SLOTS],
        )?;
        self.change(
            "clear the catalog",
            "UPDATE catalog_nodes SET entry=NULL, link=NULL WHERE node=?",
            params![ROOT],
        )?;
        Ok(())
    }

    /// Forgets the nodes that are still in slots: no change of the batch has taken them out.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn empty_catalog_slots(&mut self) -> Result<()> {
        self.change(
            "empty the slots",
            "UPDATE catalog_nodes SET parent=?, name=CAST(node AS BLOB) WHERE parent=?",
            params![GONE, SLOTS],
        )?;
        Ok(())
    }

    /// Removes up to about `limit` rows of forgotten nodes. Returns true if there are more.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn sweep_catalog(&mut self, limit: u32) -> Result<bool> {
        let gone: Vec<i64> = self
            .conn
            .prepare_cached("SELECT node FROM catalog_nodes WHERE parent=? LIMIT ?")
            .and_then(|mut s| {
                s.query_map(params![GONE, limit], |row| row.get(0))?
                    .collect()
            })
            .context("look for what is forgotten")?;
        let mut left = limit as usize;
        for node in &gone {
            // Its contents are removed later, in the same way.
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
                params![node],
            )?;
        }
        Ok(!gone.is_empty())
    }

    /// Returns the node of `path`. Makes it and those above it if they do not exist.
    fn described_dir(&mut self, path: &RelPath) -> Result<i64> {
        let (mut node, names) = self.described_way.join(path);
        for name in names {
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
            self.described_way.push(name, node);
        }
        Ok(node)
    }

    fn hang_from(&mut self, node: i64, parent: i64, name: &[u8]) -> Result<()> {
        self.described_way.leave(node);
        self.change(
            "move a described name",
            "UPDATE catalog_nodes SET parent=?, name=? WHERE node=?",
            params![parent, name, node],
        )?;
        Ok(())
    }
}

impl CatalogStore for IndexWriter {
    type Error = IndexError;

    fn clear(&mut self) -> Result<()> {
        self.clear_catalog()
    }

    fn detach(&mut self, from: &RelPath, slot: SlotNo) -> Result<()> {
        self.detach_described(from, slot)
    }

    fn attach(&mut self, slot: SlotNo, to: &RelPath) -> Result<()> {
        self.attach_described(slot, to)
    }

    fn remove(&mut self, path: &RelPath) -> Result<()> {
        self.forget_described(path)
    }

    fn set(&mut self, path: &RelPath, description: &Description) -> Result<()> {
        self.set_described(path, description)
    }
}

/// The mirror while a log is replayed into it. The index lock is held for a few changes at a time.
/// Until the log is noted at the end, the mirror reflects none, so that after a crash it is
/// replayed again.
pub struct Mirror<'a> {
    index: &'a Index,
    uncommitted: usize,
}

impl<'a> Mirror<'a> {
    /// Begins.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn begin(index: &'a Index) -> Result<Mirror<'a>> {
        let mut state = index.lock();
        state.set_meta(HEAD, "")?;
        state.commit()?;
        drop(state);
        Ok(Mirror {
            index,
            uncommitted: 0,
        })
    }

    /// Ends: the mirror reflects `log`.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn end(self, log: &LogState) -> Result<()> {
        {
            let mut state = self.index.lock();
            state.empty_catalog_slots()?;
            state.set_catalog_log(log)?;
            state.commit()?;
        }
        self.index.sweep_catalog()
    }

    fn change(&mut self, change: impl FnOnce(&mut IndexWriter) -> Result<()>) -> Result<()> {
        let mut state = self.index.lock();
        change(&mut state)?;
        self.uncommitted += 1;
        if self.uncommitted >= CHUNK {
            self.uncommitted = 0;
            state.commit()?;
        }
        Ok(())
    }
}

impl CatalogStore for Mirror<'_> {
    type Error = IndexError;

    fn clear(&mut self) -> Result<()> {
        self.change(IndexWriter::clear_catalog)
    }

    fn detach(&mut self, from: &RelPath, slot: SlotNo) -> Result<()> {
        self.change(|state| state.detach(from, slot))
    }

    fn attach(&mut self, slot: SlotNo, to: &RelPath) -> Result<()> {
        self.change(|state| state.attach(slot, to))
    }

    fn remove(&mut self, path: &RelPath) -> Result<()> {
        self.change(|state| state.remove(path))
    }

    fn set(&mut self, path: &RelPath, description: &Description) -> Result<()> {
        self.change(|state| state.set(path, description))
    }
}

impl Index {
    /// Removes the rows of forgotten nodes, a few at a time.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn sweep_catalog(&self) -> Result<()> {
        loop {
            let mut state = self.lock();
            let more = state.sweep_catalog(CHUNK as u32)?;
            state.commit()?;
            if !more {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
