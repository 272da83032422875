//! Undoing what could not be committed, and finding what that leaves.

use super::{Context, Result, State};
use crate::base::Ino;

impl State {
    /// Undoes everything since the last commit: rows, and what is kept beside them. The inodes at hand were never more than committed. Numbers that were
    /// handed out stay so; which files are being written is the business of whoever writes them.
    pub fn undo(&mut self) {
        if !self.conn.is_autocommit() {
            // If even this fails, SQLite has undone it already, or refuses to begin anew until it has.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
        self.in_transaction = false;
        self.undone = true;
        self.unsettled = true;
        self.unmeasured = true;
        self.pending.clear();
        self.left_places.clear();
        self.mount_ways.clear();
        self.backend_ways.clear();
        self.described_way.clear();
        self.totals = self.committed_totals;
        for (ino, became) in std::mem::take(&mut self.orphans_since).into_iter().rev() {
            match became {
                true => self.orphans.remove(&ino),
                false => self.orphans.insert(ino),
            };
        }
        if let Ok(replacing) = super::replaced::load(&self.conn) {
            self.replacing = replacing;
        }
        let counters = [
            &mut self.inos,
            &mut self.objects,
            &mut self.seqs,
            &mut self.cookies,
        ];
        for counter in counters {
            // The reservation may have been undone; the numbers may not be handed out again.
            counter.reserved = counter.next;
        }
    }

    /// Whether rows may say of files that are closed that they are being written, because what settled them was undone.
    pub fn take_unsettled(&mut self) -> bool {
        std::mem::take(&mut self.unsettled)
    }

    /// Notes that a file could not be settled, for [`State::take_unsettled`].
    pub fn note_unsettled(&mut self) {
        self.undone = true;
        self.unsettled = true;
    }

    /// Whether rows of files that are being written may be out of date, because what was noted in them was
    /// undone.
    pub fn take_unmeasured(&mut self) -> bool {
        std::mem::take(&mut self.unmeasured)
    }

    /// Notes that not all of these files could be measured, for [`State::take_unmeasured`].
    pub fn note_unmeasured(&mut self) {
        self.unmeasured = true;
    }

    /// The files that rows say are being written, and that nobody is writing.
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
        let nobody = |ino: &Ino| !self.writing.contains(ino);
        Ok(written.into_iter().filter(nobody).collect())
    }
}
