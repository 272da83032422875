//! The mirror of the drive's catalog: what replaying its segments gives, one row per name.
//!
//! The rows are those of the head that stands beside them: the segment up to which they were brought, and its hash. A batch's
//! changes are taken in by its confirmation, in several transactions; how far it has come is noted in each, and the head moves in
//! the last. A crash in between leaves the journal of the batch, and its confirmation goes on where it was. Rows that have no head
//! are worth nothing and are read anew from the drive.
//!
//! Moving a directory is one row, as a row names its parent. Forgetting one is one row as well: what was below it hangs from
//! [`GONE`] and is removed bit by bit ([`State::sweep_catalog`]).

mod links;
mod read;

use rusqlite::params;

use super::{Context, Index, IndexError, Result, State};
use crate::base::RelPath;
use crate::rules::catalog::chain::LogState;
use crate::rules::catalog::store::CatalogStore;
use crate::rules::catalog::{Description, encode_description};
use crate::rules::steps::SlotNo;

pub use links::LinkGroup;

/// The node of the volume's own directory.
const ROOT: i64 = 1;

/// Parent of what waits in a slot, under the slot's number.
const SLOTS: i64 = -2;

/// Parent of what is forgotten and still to be removed, under its own number.
const GONE: i64 = -1;

/// Keys of the settings that belong to the mirror: its head, how the log stands, how far a confirmation has come.
const HEAD: &str = "catalog_head";
const LOG: &str = "catalog_log";
const TAKEN: &str = "catalog_taken";

/// Key of the setting that says whether others could have written what the mirror says.
const STRANGERS: &str = "catalog_strangers";

/// Changes taken in by one transaction of a [`Mirror`].
const CHUNK: usize = 256;

impl State {
    /// How the log stands that the mirror is the state of; without a head the mirror is worth nothing.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn catalog_log(&self) -> Result<LogState> {
        read::log(&self.conn)
    }

    /// Notes that the mirror is the state of this log.
    ///
    /// # Errors
    /// If SQLite cannot.
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

    /// Whether somebody else than this cache's user and root could have written what the mirror says; see [`crate::rules::trust`].
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn catalog_is_strangers(&self) -> Result<bool> {
        Ok(self.meta(STRANGERS)?.as_deref() == Some("1"))
    }

    /// Notes that.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn set_catalog_is_strangers(&mut self, are: bool) -> Result<()> {
        self.set_meta(STRANGERS, if are { "1" } else { "" })
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

    pub(super) fn detach_described(&mut self, from: &RelPath, slot: SlotNo) -> Result<()> {
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
                encode_description(description),
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
            .and_then(|mut s| {
                s.query_map(params![GONE, limit], |row| row.get(0))?
                    .collect()
            })
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

impl CatalogStore for State {
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

/// The mirror while a log is replayed into it: the lock is held for one change at a time. Until the log is noted at the end, the
/// mirror is of none, so that a crash in between has it replayed anew.
pub struct Mirror<'a> {
    index: &'a Index,
    uncommitted: usize,
}

impl<'a> Mirror<'a> {
    /// Begins.
    ///
    /// # Errors
    /// If SQLite cannot.
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

    /// Ends: the mirror is the state of `log`.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn end(self, log: &LogState) -> Result<()> {
        {
            let mut state = self.index.lock();
            state.empty_catalog_slots()?;
            state.set_catalog_log(log)?;
            state.commit()?;
        }
        self.index.sweep_catalog()
    }

    fn change(&mut self, change: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
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
        self.change(State::clear_catalog)
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
    /// Removes the rows of what is forgotten, a few at a time.
    ///
    /// # Errors
    /// If SQLite cannot.
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
