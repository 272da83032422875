//! The open batch in the index: what it pins, how it is confirmed or given up.
//!
//! The states that a crash can leave; `flush` repairs them on the next attach:
//! - no row with state 0: no batch is open; a staging directory or record of ours on the backend is
//!   garbage;
//! - a row with state 0, no journal file: the cut was taken, and only staged files were written to
//!   the backend. The batch is given up; everything in it is still dirty;
//! - a row with state 0 and a journal file: the record may be on the backend or not. If it is, the
//!   batch is applied again and confirmed; if not, it is given up. Until then the row keeps its
//!   dead objects from being removed.
//!
//! The confirmation takes several transactions, each of which may be repeated. The last one sets
//! state 1.

use std::collections::{HashMap, HashSet};

use rusqlite::{OptionalExtension, params};

use super::inode::{Flags, Inode};
use super::tree::PlacedEntry;
use super::{Context, IndexWriter, Result, int, statements};
use crate::core::{BatchNo, Ino, Seq, Timestamp};
use crate::plan::planner::NameKey;

/// Files that a batch leaves out, with what to tell the user of each.
pub type LeftOut = HashMap<Ino, &'static str>;

/// A batch between its cut and its end.
#[derive(Clone, Debug)]
pub struct ActiveBatch {
    /// Its number.
    pub batch: BatchNo,
    /// The last change in it.
    pub cut: Seq,
    /// Inodes whose bytes were being changed at the cut, and those of `left_out`.
    pub writing: HashSet<Ino>,
    /// Inodes that the flush leaves out for another reason, with the reason.
    pub left_out: LeftOut,
    /// Inodes that are open for writing, and whose bytes are in the batch all the same.
    pub open: HashSet<Ino>,
    /// When the cut was taken.
    pub time: Timestamp,
    /// Inodes that were changed in place since, because their old bytes could not be kept. The
    /// batch must not be committed with them.
    pub live: HashSet<Ino>,
    /// Inodes that are changed in place while the store keeps the bytes that the batch reads.
    pub imaged: HashSet<Ino>,
    /// Inodes that have lost a name since: at the cut they may have had several, of which the batch
    /// makes copies.
    pub unlinked: HashSet<Ino>,
    /// Inodes that were moved to names that stay local, and that only the drive has: they stay on
    /// it as they are. See `index/local.rs`.
    pub held: HashSet<Ino>,
    /// Local names of files with other names: the batch does not make them.
    pub apart: HashSet<NameKey>,
    /// The steps can no longer be changed.
    pub committed: bool,
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchEnd {
    /// All of it is on the backend, synced.
    Complete,
    /// It is on the backend, synced, except for what was left behind, which still waits.
    LeftBehind,
    /// It was ended before anything under a final name was touched, because there was nothing to
    /// write, or because changes made by others are imported first.
    Nothing,
    /// It was given up before anything under a final name was touched. All of it still waits.
    GivenUp,
}

impl BatchEnd {
    /// The end of a batch that was applied, with or without something left behind.
    pub fn applied(is_all_there: bool) -> BatchEnd {
        match is_all_there {
            true => BatchEnd::Complete,
            false => BatchEnd::LeftBehind,
        }
    }

    /// Returns the values of the columns `state` and `outcome`.
    fn stored(self) -> (i64, &'static str) {
        match self {
            BatchEnd::Complete => (1, "complete"),
            BatchEnd::LeftBehind => (1, "left behind"),
            BatchEnd::Nothing => (2, "nothing to write"),
            BatchEnd::GivenUp => (2, "given up"),
        }
    }

    /// Returns the end with these values. An unknown one counts as given up, so that nothing relies
    /// on it.
    fn from_stored(state: i64, outcome: &str) -> BatchEnd {
        [BatchEnd::Complete, BatchEnd::LeftBehind, BatchEnd::Nothing]
            .into_iter()
            .find(|end| end.stored() == (state, outcome))
            .unwrap_or(BatchEnd::GivenUp)
    }
}

/// A batch that has ended, as `status` reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSummary {
    /// Its number.
    pub batch: BatchNo,
    /// When it ended.
    pub time: Timestamp,
    /// Files that it has written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How it ended.
    pub end: BatchEnd,
}

/// What is true of one name once a batch is on the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The name.
    pub key: NameKey,
    /// What the backend has there now; `None` for nothing.
    pub placed: Option<PlacedEntry>,
    /// Whether this is the cut's version of the name, which is then clean unless changed since.
    pub settled: bool,
    /// Whether this is the cut's version of the inode's bytes and mtime as well.
    pub inode_settled: bool,
}

impl IndexWriter {
    /// Returns the open batch.
    pub fn active_batch(&mut self) -> Option<&mut ActiveBatch> {
        self.active.as_mut()
    }

    /// Returns whether the open batch reads this inode's object, so that it must not be changed in
    /// place. The batch reads inodes that were dirty at the cut, and clean ones with a new name
    /// beside others, for which the backend needs one more copy.
    pub fn is_pinned(&self, inode: &Inode) -> bool {
        self.active.as_ref().is_some_and(|active| {
            let may_be_read = inode.flags.has(Flags::DATA_DIRTY)
                || inode.nlink > 1
                || active.unlinked.contains(&inode.ino);
            may_be_read
                && inode.data_seq <= active.cut
                && !active.writing.contains(&inode.ino)
                && !active.live.contains(&inode.ino)
                && !active.imaged.contains(&inode.ino)
        })
    }

    /// Notes that `ino` loses a name.
    pub fn note_unlinked(&mut self, ino: Ino) {
        self.sort_inode_later(ino);
        if let Some(active) = &mut self.active {
            active.unlinked.insert(ino);
        }
    }

    /// Returns whether any name or inode is marked.
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

    /// Begins a batch of everything up to now, except for the bytes of files that are being
    /// changed, and of those in `left_out`. Commits, so that a snapshot taken before the lock is
    /// released sees exactly the cut. The number of the batch is the next one, and higher than
    /// `above`.
    ///
    /// # Errors
    /// If SQLite fails; no batch is open then.
    pub fn begin_batch(
        &mut self,
        now: Timestamp,
        above: Option<BatchNo>,
        left_out: LeftOut,
    ) -> Result<ActiveBatch> {
        self.sort_local()?;
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
        let mut writing = self.changing.clone();
        writing.extend(left_out.keys());
        let (held, apart) = self.held_and_apart();
        let active = ActiveBatch {
            batch,
            held,
            apart,
            cut,
            open: self.writing.difference(&writing).copied().collect(),
            time: now,
            writing,
            left_out,
            live: HashSet::new(),
            imaged: HashSet::new(),
            unlinked: HashSet::new(),
            committed: false,
        };
        self.active = Some(active.clone());
        Ok(active)
    }

    /// Takes up the batch that was open when the daemon ended; `None` if there is none.
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
            // Within one run of the daemon this is still known. It is needed if a copy has to be
            // made again.
            unlinked: before
                .filter(|active| active.batch.0 == batch as u64)
                .map(|active| active.unlinked)
                .unwrap_or_default(),
            batch: BatchNo(batch as u64),
            cut: Seq(cut as u64),
            writing: HashSet::new(),
            open: HashSet::new(),
            held: HashSet::new(),
            apart: HashSet::new(),
            time: Timestamp(0),
            left_out: LeftOut::new(),
            live: HashSet::new(),
            imaged: HashSet::new(),
            committed: true,
        });
        Ok(self.active.clone())
    }

    /// Notes the results of a batch for the names `confirmed`. May be repeated.
    ///
    /// # Errors
    /// If SQLite fails.
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
            // Removed since the cut; its name is marked, so the next batch removes it.
            return Ok(());
        };
        inode.flags.set(Flags::ON_BACKEND);
        if settled && inode.data_seq <= cut && !self.changing.contains(&ino) {
            inode.flags.clear(Flags::DATA_DIRTY);
        }
        if settled && inode.time_seq <= cut {
            inode.flags.clear(Flags::TIME_DIRTY);
            inode.flags.clear(Flags::ATTR_DIRTY);
        }
        self.list_if_dirty(inode)
    }

    /// Keeps an inode with a place on the backend listed as dirty while any part of it is dirty.
    fn list_if_dirty(&mut self, inode: Inode) -> Result<()> {
        if inode.flags.any(Flags::DIRTY) {
            self.change(
                "keep an inode dirty",
                "INSERT OR IGNORE INTO dirty_inodes VALUES(?)",
                params![int(inode.ino.0)],
            )?;
        } else {
            self.change(
                "settle an inode",
                "DELETE FROM dirty_inodes WHERE ino=?",
                params![int(inode.ino.0)],
            )?;
        }
        self.put_inode(inode);
        Ok(())
    }

    /// Notes that the backend has the attributes of these inodes as of the cut of a batch. Does not
    /// concern their bytes and names. May be repeated.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn confirm_attributes(&mut self, cut: Seq, settled: &[Ino]) -> Result<()> {
        for ino in settled {
            let Some(mut inode) = self.inode(*ino)? else {
                continue;
            };
            if !inode.kind().is_plain() {
                // From here on its removal must be noted, see `remove_name`. Noting too many does
                // no harm.
                inode.flags.set(Flags::ON_BACKEND);
            }
            // Later changes belong to the next batch.
            if inode.time_seq <= cut {
                inode.flags.clear(Flags::ATTR_DIRTY);
            }
            // Set again for the attributes that this batch was refused.
            inode.flags.clear(Flags::ATTR_REFUSED);
            self.list_if_dirty(inode)?;
        }
        Ok(())
    }

    /// If the backend has no name of `ino` any more, its bytes must not be looked for there.
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
            // Its names are marked, if it has any.
            let row = params![int(ino.0)];
            self.change("settle an inode", statements::SETTLE_INODE, row)?;
        }
        Ok(())
    }

    /// Ends the batch.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn end_batch(&mut self, summary: &BatchSummary) -> Result<()> {
        let (state, outcome) = summary.end.stored();
        self.change(
            "end a batch",
            "UPDATE batches SET state=?, time=?, files=?, bytes=?, outcome=? WHERE batch=?",
            params![
                state,
                summary.time.0,
                int(summary.files),
                int(summary.bytes.min(i64::MAX.cast_unsigned())),
                outcome,
                int(summary.batch.0)
            ],
        )?;
        self.change(
            "release objects",
            "UPDATE dead_objects SET batch=0 WHERE batch<=?",
            params![int(summary.batch.0)],
        )?;
        self.change(
            "forget old batches",
            "DELETE FROM batches WHERE batch<?",
            params![int(summary.batch.0) - 100],
        )?;
        self.commit()?;
        self.active = None;
        Ok(())
    }

    /// Returns the last batch before `batch` that has changed the backend. Only the last hundred
    /// batches are known.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn last_done_before(&self, batch: BatchNo) -> Result<Option<BatchNo>> {
        self.conn
            .prepare_cached("SELECT max(batch) FROM batches WHERE state=1 AND batch<?")
            .and_then(|mut s| s.query_row([int(batch.0)], |row| row.get::<_, Option<i64>>(0)))
            .map(|found| found.map(|number| BatchNo(number as u64)))
            .context("find the batch before")
    }

    /// The last batch that has ended.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn last_batch(&self) -> Result<Option<BatchSummary>> {
        self.conn
            .prepare_cached(
                "SELECT batch, time, files, bytes, state, outcome FROM batches
                 WHERE state<>0 ORDER BY batch DESC LIMIT 1",
            )
            .and_then(|mut s| {
                s.query_row([], |row| {
                    Ok(BatchSummary {
                        batch: BatchNo(row.get::<_, i64>(0)? as u64),
                        time: Timestamp(row.get(1)?),
                        files: row.get::<_, i64>(2)? as u64,
                        bytes: row.get::<_, i64>(3)? as u64,
                        end: BatchEnd::from_stored(row.get(4)?, &row.get::<_, String>(5)?),
                    })
                })
                .optional()
            })
            .context("read the last batch")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_of_a_batch_is_read_as_it_was_stored() {
        for end in [
            BatchEnd::Complete,
            BatchEnd::LeftBehind,
            BatchEnd::Nothing,
            BatchEnd::GivenUp,
        ] {
            let (state, outcome) = end.stored();
            assert_ne!(state, 0, "that of a batch under way");
            assert_eq!(BatchEnd::from_stored(state, outcome), end);
        }
        assert_eq!(BatchEnd::from_stored(1, "?"), BatchEnd::GivenUp);
    }
}
