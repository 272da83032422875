//! The batch under way, as the index sees it: what it pins, how it is confirmed or given up.
//!
//! The states that a crash can leave, and who repairs them (the flush room does, on the next attach):
//! - no row with state 0: no batch is under way; a staging directory or record of ours on the backend is garbage;
//! - a row with state 0, no journal file: the cut was taken, nothing was written on the backend but staged files. Given up;
//!   everything that was dirty still is;
//! - a row with state 0 and a journal file: the record on the backend may or may not be there. If it is, the batch is applied
//!   again and confirmed; if it is not, it is given up. The row keeps its dead objects from being removed until then.
//!
//! Confirming runs in several transactions, each of which may be repeated; the row turns to state 1 in the last.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, params};

use super::inode::{Flags, Inode};
use super::tree::PlacedEntry;
use super::{Context, Result, State, int};
use crate::base::{BatchNo, Ino, Seq, Timestamp};
use crate::rules::plan::NameKey;

/// A batch between its cut and its end.
#[derive(Clone, Debug)]
pub struct ActiveBatch {
    /// Its number.
    pub batch: BatchNo,
    /// The last change that it holds.
    pub cut: Seq,
    /// What was being written at the cut and so is not in it.
    pub writing: HashSet<Ino>,
    /// What has been changed in place since, because a copy would have been too large. Not to be committed.
    pub live: HashSet<Ino>,
    /// What has lost a name since: at the cut it may have had several, of which the batch makes copies.
    pub unlinked: HashSet<Ino>,
    /// The steps can no longer be changed.
    pub committed: bool,
}

/// How a batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchState {
    /// Under way.
    Open,
    /// On the backend, synced.
    Done,
    /// Given up before anything under a final name was touched.
    GivenUp,
}

/// What is told of the last batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSummary {
    /// Its number.
    pub batch: BatchNo,
    /// When it ended.
    pub time: Timestamp,
    /// Files that it carried.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// `done`, or what went wrong.
    pub outcome: String,
}

/// What the index may conclude of one name once a batch is on the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// Which name.
    pub key: NameKey,
    /// What the backend has there now; `None` for nothing.
    pub placed: Option<PlacedEntry>,
    /// Whether this is the cut's version of the name, so that it is dirty no more unless changed since.
    pub settled: bool,
    /// Whether this is the cut's version of the inode's bytes and mtime as well.
    pub inode_settled: bool,
}

impl State {
    /// The batch under way.
    pub fn active_batch(&mut self) -> Option<&mut ActiveBatch> {
        self.active.as_mut()
    }

    /// Whether the batch under way reads this inode's object, so that it must not be changed in place. It reads what was dirty
    /// at the cut, and what was clean and had a new name beside others, for which the backend needs one more copy.
    pub fn is_pinned(&self, inode: &Inode) -> bool {
        self.active.as_ref().is_some_and(|active| {
            let may_be_read = inode.flags.has(Flags::DATA_DIRTY)
                || inode.nlink > 1
                || active.unlinked.contains(&inode.ino);
            may_be_read
                && inode.data_seq <= active.cut
                && !active.writing.contains(&inode.ino)
                && !active.live.contains(&inode.ino)
        })
    }

    /// Notes that `ino` loses a name.
    pub fn note_unlinked(&mut self, ino: Ino) {
        if let Some(active) = &mut self.active {
            active.unlinked.insert(ino);
        }
    }

    /// Whether any name or inode is marked.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn anything_dirty(&self) -> Result<bool> {
        self.conn
            .prepare_cached(
                "SELECT EXISTS(SELECT 1 FROM dirty_names) OR EXISTS(SELECT 1 FROM dirty_inodes)",
            )
            .and_then(|mut s| s.query_row([], |row| row.get(0)))
            .context("look for what waits")
    }

    /// Begins a batch: everything up to now is in it, but for what is being written. Commits, so that a snapshot taken before
    /// the lock is released sees exactly the cut. Its number is the next, and higher than `above`.
    ///
    /// # Errors
    /// If SQLite cannot; no batch is then under way.
    pub fn begin_batch(&mut self, now: Timestamp, above: Option<BatchNo>) -> Result<ActiveBatch> {
        let last: i64 = self
            .conn
            .query_row("SELECT coalesce(max(batch), 0) FROM batches", [], |row| {
                row.get(0)
            })
            .context("number the batch")?;
        let batch = BatchNo((last as u64).max(above.map_or(0, |batch| batch.0)) + 1);
        let cut = self.next_seq()?;
        self.change(
            "begin a batch",
            "INSERT INTO batches VALUES(?,?,0,?,0,0,'under way')",
            params![int(batch.0), int(cut.0), now.0],
        )?;
        self.commit()?;
        self.note_cut();
        let active = ActiveBatch {
            batch,
            cut,
            writing: self.writing.clone(),
            live: HashSet::new(),
            unlinked: HashSet::new(),
            committed: false,
        };
        self.active = Some(active.clone());
        Ok(active)
    }

    /// Takes up a batch that was under way when the daemon ended; `None` if there is none.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn resume_batch(&mut self) -> Result<Option<ActiveBatch>> {
        let found: Option<(i64, i64)> = self
            .conn
            .query_row(
                "SELECT batch, cut FROM batches WHERE state=0 ORDER BY batch LIMIT 1",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()
            .context("look for an open batch")?;
        let before = self.active.take();
        self.active = found.map(|(batch, cut)| ActiveBatch {
            // Within one life of the daemon this is known still, and needed should a copy have to be made anew.
            unlinked: before
                .filter(|active| active.batch.0 == batch as u64)
                .map(|active| active.unlinked)
                .unwrap_or_default(),
            batch: BatchNo(batch as u64),
            cut: Seq(cut as u64),
            writing: HashSet::new(),
            live: HashSet::new(),
            committed: true,
        });
        Ok(self.active.clone())
    }

    /// Notes what a batch has left under the names `confirmed`. May be repeated.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn confirm_names(&mut self, cut: Seq, confirmed: &[Confirmed]) -> Result<()> {
        for c in confirmed {
            let before = self
                .placed(c.key.parent, &c.key.name)?
                .map(|entry| entry.ino);
            self.put_placed(&c.key, c.placed.as_ref())?;
            if c.settled {
                self.change(
                    "settle a name",
                    "DELETE FROM dirty_names WHERE parent=? AND name=? AND seq<=?",
                    params![int(c.key.parent.0), c.key.name.as_bytes(), int(cut.0)],
                )?;
            }
            if let Some(entry) = &c.placed {
                self.settle_inode(entry.ino, cut, c.inode_settled)?;
            }
            if let Some(before) = before {
                self.unplace_inode(before)?;
            }
        }
        Ok(())
    }

    fn settle_inode(&mut self, ino: Ino, cut: Seq, settled: bool) -> Result<()> {
        let Some(mut inode) = self.inode(ino)? else {
            return Ok(()); // Removed since the cut; its name is marked, so the next batch takes it off the backend.
        };
        inode.flags.set(Flags::ON_BACKEND);
        if settled && inode.data_seq <= cut && !self.writing.contains(&ino) {
            inode.flags.clear(Flags::DATA_DIRTY);
        }
        if settled && inode.time_seq <= cut {
            inode.flags.clear(Flags::TIME_DIRTY);
            inode.flags.clear(Flags::ATTR_DIRTY);
        }
        self.list_if_dirty(inode)
    }

    /// Keeps an inode that has a place on the backend listed as dirty as long as anything of it is.
    fn list_if_dirty(&mut self, inode: Inode) -> Result<()> {
        if inode.flags.any(Flags::DIRTY) {
            self.change(
                "keep an inode dirty",
                "INSERT OR IGNORE INTO dirty_inodes VALUES(?)",
                [int(inode.ino.0)],
            )?;
        } else {
            self.change(
                "settle an inode",
                "DELETE FROM dirty_inodes WHERE ino=?",
                [int(inode.ino.0)],
            )?;
        }
        self.put_inode(inode);
        Ok(())
    }

    /// Notes that a batch has brought the attributes of these inodes up to what they were at its cut; their bytes and names are
    /// not its business. May be repeated.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn confirm_attributes(&mut self, cut: Seq, settled: &[Ino]) -> Result<()> {
        for ino in settled {
            let Some(mut inode) = self.inode(*ino)? else {
                continue;
            };
            if !inode.kind().is_plain() {
                // From here on its end has to be told, see `remove_name`. Too often, where nothing can be told, does no harm.
                inode.flags.set(Flags::ON_BACKEND);
            }
            // What was changed since the cut is the next batch's.
            if inode.time_seq <= cut {
                inode.flags.clear(Flags::ATTR_DIRTY);
            }
            self.list_if_dirty(inode)?;
        }
        Ok(())
    }

    /// If the backend has `ino` under no name any more, its bytes must not be looked for there.
    fn unplace_inode(&mut self, ino: Ino) -> Result<()> {
        if self.a_place_of(ino)?.is_some() {
            return Ok(());
        }
        let Some(mut inode) = self.inode(ino)? else {
            return Ok(());
        };
        if !inode.is_dir() && inode.object.is_some() {
            inode.flags.clear(Flags::ON_BACKEND);
            inode.flags.set(Flags::DATA_DIRTY);
            self.put_inode(inode);
        }
        Ok(())
    }

    /// Ends the batch.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn end_batch(&mut self, state: BatchState, summary: &BatchSummary) -> Result<()> {
        let number = match state {
            BatchState::Open => 0,
            BatchState::Done => 1,
            BatchState::GivenUp => 2,
        };
        self.change(
            "end a batch",
            "UPDATE batches SET state=?, time=?, files=?, bytes=?, outcome=? WHERE batch=?",
            params![
                number,
                summary.time.0,
                int(summary.files),
                int(summary.bytes.min(i64::MAX.cast_unsigned())),
                summary.outcome,
                int(summary.batch.0)
            ],
        )?;
        self.change(
            "release objects",
            "UPDATE dead_objects SET batch=0 WHERE batch<=?",
            [int(summary.batch.0)],
        )?;
        self.change(
            "forget old batches",
            "DELETE FROM batches WHERE batch<?",
            [int(summary.batch.0) - 100],
        )?;
        self.commit()?;
        self.active = None;
        Ok(())
    }

    /// The last batch that has ended.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn last_batch(&self) -> Result<Option<BatchSummary>> {
        self.conn
            .prepare_cached(
                "SELECT batch, time, files, bytes, outcome FROM batches WHERE state<>0 ORDER BY batch DESC LIMIT 1",
            )
            .and_then(|mut s| {
                s.query_row([], |row| {
                    Ok(BatchSummary {
                        batch: BatchNo(row.get::<_, i64>(0)? as u64),
                        time: Timestamp(row.get(1)?),
                        files: row.get::<_, i64>(2)? as u64,
                        bytes: row.get::<_, i64>(3)? as u64,
                        outcome: row.get(4)?,
                    })
                })
                .optional()
            })
            .context("read the last batch")
    }
}
