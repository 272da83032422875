//! Files that are open for writing, and those that were when a daemon died.

use std::collections::HashSet;

use crate::core::Ino;
use crate::index::inode::{COLUMNS, Flags, Inode};
use crate::index::{Context, IndexWriter, Result};

impl IndexWriter {
    /// Counts `ino` among those open for writing.
    pub fn start_writing(&mut self, ino: Ino) {
        self.writing.insert(ino);
    }

    /// Counts `ino` among those whose bytes are being changed. Until
    /// [`IndexWriter::end_changing`] or [`IndexWriter::end_writing`] no cut includes its bytes.
    pub fn start_changing(&mut self, ino: Ino) {
        self.start_writing(ino);
        self.changing.insert(ino);
    }

    /// Records that the row of `ino` describes its bytes as they are. The file may stay open for
    /// writing.
    pub fn end_changing(&mut self, ino: Ino) {
        self.changing.remove(&ino);
    }

    /// Ends what [`IndexWriter::start_writing`] began. If the file is dirty, a flush is due for it,
    /// even if an earlier flush left it behind.
    pub fn end_writing(&mut self, ino: Ino) {
        self.changing.remove(&ino);
        let was_open = self.writing.remove(&ino);
        // If the index cannot be read, nothing waits.
        let inode = self.inode(ino).ok().flatten();
        let waits =
            |inode: Inode| inode.flags.has(Flags::DATA_DIRTY) && !inode.flags.has(Flags::LOCAL);
        if was_open && inode.is_some_and(waits) {
            self.touch_dirty();
        }
    }

    /// Returns whether `ino` is open for writing.
    pub fn is_writing(&self, ino: Ino) -> bool {
        self.writing.contains(&ino)
    }

    /// Returns the bytes of files open for writing that the backend does not have, and the largest
    /// of these files.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn dirty_in_writing(&mut self) -> Result<(u64, Option<Inode>)> {
        let (mut bytes, mut largest) = (0_u64, None::<Inode>);
        for ino in self.writing.iter().copied().collect::<Vec<_>>() {
            let inode = self.inode(ino)?;
            let Some(inode) = inode.filter(|inode| inode.flags.has(Flags::DATA_DIRTY)) else {
                continue;
            };
            bytes = bytes.saturating_add(inode.size);
            if largest.as_ref().is_none_or(|known| known.size < inode.size) {
                largest = Some(inode);
            }
        }
        Ok((bytes, largest))
    }

    /// Returns whether the bytes of `ino` are being changed, so that its row lags behind.
    pub fn is_changing(&self, ino: Ino) -> bool {
        self.changing.contains(&ino)
    }

    /// Returns the inodes whose bytes are being changed, so that their rows lag behind.
    pub fn changing(&self) -> impl Iterator<Item = &Ino> {
        self.changing.iter()
    }

    /// Returns the inodes that are open for writing.
    pub fn open_for_writing(&self) -> HashSet<Ino> {
        self.writing.clone()
    }

    /// Returns the number of inodes that are open for writing.
    pub fn writing_count(&self) -> usize {
        self.writing.len()
    }

    /// Returns files that were being written when the daemon died and are held back since: at most
    /// `limit` of them, and their number.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn interrupted(&mut self, limit: u32) -> Result<(Vec<Ino>, u64)> {
        self.commit()?;
        // The condition is that of the index `inodes_interrupted`, word for word.
        let some = self
            .conn
            .prepare_cached("SELECT ino FROM inodes WHERE flags & 64 <> 0 ORDER BY ino LIMIT ?")
            .and_then(|mut s| {
                s.query_map([limit], |row| Ok(Ino(row.get::<_, i64>(0)? as u64)))?
                    .collect()
            })
            .context("list what was interrupted")?;
        let count = self
            .conn
            .prepare_cached("SELECT count(*) FROM inodes WHERE flags & 64 <> 0")
            .and_then(|mut s| s.query_row([], |row| row.get::<_, i64>(0)))
            .context("count what was interrupted")?;
        Ok((some, count as u64))
    }

    /// Lets files that were being written when the daemon died be flushed as they are. Returns
    /// their number. Commits.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn include_interrupted(&mut self) -> Result<u64> {
        self.commit()?;
        let held: Vec<Inode> = self
            .conn
            .prepare(&format!(
                "SELECT {COLUMNS} FROM inodes WHERE flags & {} != 0",
                Flags::INTERRUPTED.0
            ))
            .and_then(|mut s| s.query_map([], Inode::from_row)?.collect())
            .context("list what was interrupted")?;
        let count = held.len() as u64;
        for mut inode in held {
            inode.flags.clear(Flags::INTERRUPTED);
            self.inode(inode.ino)?; // So that the sums know what is replaced.
            self.put_inode(inode);
        }
        self.commit()?;
        if count > 0 {
            // A flush has left them behind; the next one takes them.
            self.touch_dirty();
        }
        Ok(count)
    }
}
