//! Undoes changes that could not be committed, and finds out what that leaves.

use crate::core::Ino;
use crate::index::redo::RedoLog;
use crate::index::{Context, IndexWriter, Result};

impl IndexWriter {
    /// Undoes everything since the last finished operation: rows, and the state in memory. Used
    /// numbers stay used, and the set of files being written is left to their writers.
    pub fn undo(&mut self) {
        if !self.conn.is_autocommit() {
            // If even this fails, SQLite has undone it already, or refuses to begin again until it
            // has.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
        self.in_transaction = false;
        self.undone = true;
        self.unsettled = true;
        self.unmeasured = true;
        // The cached inodes are those of the last commit. Those that were changed since are read
        // again, from what is replayed.
        for (ino, _) in self.pending.drain() {
            self.cache.pop(&ino);
        }
        self.unfinished.clear();
        self.unfinished_inodes.clear();
        self.left_places.clear();
        self.mount_ways.clear();
        self.backend_ways.clear();
        self.described_way.clear();
        self.totals = self.finished_totals;
        for (ino, became) in std::mem::take(&mut self.orphans_since).into_iter().rev() {
            match became {
                true => self.orphans.remove(&ino),
                false => self.orphans.insert(ino),
            };
        }
        let counters = [
            &mut self.inos,
            &mut self.objects,
            &mut self.seqs,
            &mut self.cookies,
        ];
        for counter in counters {
            // The reservation may have been undone, but its numbers must not be used again.
            counter.reserved = counter.next;
        }
        self.must_replay = self.redo.as_ref().is_some_and(RedoLog::has_records);
        if let Err(error) = self.replay() {
            tracing::error!(%error, "undone operations of the index are not replayed yet; nothing \
                is changed until they are");
        }
        if let Ok(replacing) = crate::index::replaced::load(&self.conn) {
            self.replacing = replacing;
        }
    }

    /// Undoes a commit that has failed, but not the operations that were finished before. Its rows
    /// may be in the file all the same: a start after a crash must know that they contain
    /// everything up to here.
    pub(super) fn undo_commit(&mut self) {
        let marked = self
            .redo
            .as_mut()
            .map_or(Ok(()), RedoLog::mark_failed_commit);
        if let Err(error) = marked {
            tracing::error!(%error, "the redo log cannot be written; each operation is committed");
        }
        self.undo();
        // The next attempt needs more space than there was.
        self.wal.top_up();
    }

    /// Runs the finished operations again that [`IndexWriter::undo`] has undone.
    ///
    /// # Errors
    /// If the log or the index cannot be read. The rows are then older than what was acknowledged,
    /// so nothing may be changed.
    pub(super) fn replay(&mut self) -> Result<()> {
        let Some(redo) = self.redo.as_ref().filter(|_| self.must_replay) else {
            return Ok(());
        };
        if self.conn.is_autocommit() {
            self.run("begin", "BEGIN IMMEDIATE", [])?;
        }
        if let Err(error) = redo.replay(&self.conn) {
            let _ = self.conn.execute_batch("ROLLBACK");
            return Err(error);
        }
        self.in_transaction = true;
        self.must_replay = false;
        Ok(())
    }

    /// Returns whether rows may mark closed files as being written, because their settling was
    /// undone.
    pub fn take_unsettled(&mut self) -> bool {
        std::mem::take(&mut self.unsettled)
    }

    /// Notes that a file could not be settled, for [`IndexWriter::take_unsettled`].
    pub fn note_unsettled(&mut self) {
        self.undone = true;
        self.unsettled = true;
    }

    /// Returns whether rows of files that are being written may be out of date, because changes of
    /// them were undone.
    pub fn take_unmeasured(&mut self) -> bool {
        std::mem::take(&mut self.unmeasured)
    }

    /// Notes that not all of these files could be measured, for [`IndexWriter::take_unmeasured`].
    pub fn note_unmeasured(&mut self) {
        self.unmeasured = true;
    }

    /// Returns the files whose rows say that their bytes are being changed, although no program
    /// changes them.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn written_by_nobody(&mut self) -> Result<Vec<Ino>> {
        self.commit()?;
        let written: Vec<Ino> = self
            .conn
            .prepare("SELECT ino FROM inodes WHERE flags & 4 != 0")
            .and_then(|mut s| {
                s.query_map([], |row| Ok(Ino(row.get::<_, i64>(0)? as u64)))?
                    .collect()
            })
            .context("look for files that are not settled")?;
        let nobody = |ino: &Ino| !self.changing.contains(ino);
        Ok(written.into_iter().filter(nobody).collect())
    }
}
