//! What the daemon's threads and a flush ask of the file system beside requests: commits and syncs,
//! the space of the SSD, the import, and the end of the mount.
//!
//! Each method goes to one part, or says in which order several are used. It has no state.

use std::collections::HashSet;
use std::time::Duration;

use crate::core::{Ino, Pace, Timestamp, WhileOpen};
use crate::index::{IndexWriter, LeftOut};
use crate::vfs::{Fs, FsError, ImportProgress, Result, StatFs};

/// Commits and syncs.
impl Fs {
    /// Returns the time on the clock of file times.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Finishes pending changes, and records the current sizes of files being written.
    ///
    /// # Errors
    /// If the index fails.
    pub fn finish_pending(&self) -> Result<()> {
        self.open_files.finish()
    }

    /// Waits, at most `limit`, until a written file has been closed. The close has to be logged
    /// soon, so that after the daemon's death the file does not count as interrupted. Returns
    /// whether there was one.
    pub fn wait_for_close(&self, limit: Duration) -> bool {
        self.open_files.wait_for_close(limit)
    }

    /// Makes all changes made before this call durable.
    ///
    /// # Errors
    /// If any object or the index cannot be synced. The system reports a disk error only once.
    /// Therefore every waiting caller gets it, and it is recorded: for an object, see
    /// [`Fs::sync_verdict`]; an index that failed fails for every caller.
    pub fn sync(&self) -> Result<()> {
        self.durability.sync()
    }

    /// Makes all names and attributes durable, and the bytes of `inos`, as they are before this
    /// call.
    ///
    /// # Errors
    /// As [`Fs::sync`], for these files.
    pub fn sync_files(&self, inos: &[Ino]) -> Result<()> {
        self.durability.sync_files(inos)
    }

    /// Returns whether there are bytes that no fsync has covered.
    pub fn has_unsynced(&self) -> bool {
        self.durability.has_unsynced()
    }

    /// Updates the index for a batch: the sizes of written files, and all names of files with
    /// several links.
    ///
    /// # Errors
    /// If the index or the backend fails; the files concerned are left behind.
    pub fn settle_for_batch(&self) -> Result<()> {
        self.open_files.finish()?;
        self.importer.complete_links()
    }

    /// Runs `cut` while no open file changes, with the locked index. It gets the files that the
    /// batch is to leave out although nobody may be changing them. `locked` tells which files a
    /// program has locked for changes in place, as SQLite does.
    pub fn at_rest<T>(
        &self,
        while_open: WhileOpen,
        locked: &dyn Fn() -> HashSet<Ino>,
        cut: impl FnOnce(LeftOut, &mut IndexWriter) -> T,
    ) -> T {
        self.open_files.at_rest(while_open, locked, cut)
    }

    /// Returns whether an automatic flush is due for a file that is open and being changed.
    pub fn is_open_file_due(&self, pace: Pace) -> bool {
        self.open_files.is_any_due(pace)
    }

    /// Returns the number of inodes open for writing.
    pub fn writing_count(&self) -> usize {
        self.index.lock().writing_count()
    }

    /// Returns the problems of the SSD that need attention, one line each.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> = self.objects.trouble().into_iter().collect();
        troubles.extend(self.durability.troubles());
        troubles
    }

    /// Sets the number of descriptors that this process may have. Objects get what other uses
    /// leave.
    pub fn limit_descriptors(&self, limit: u64) {
        self.objects.limit_descriptors(limit);
    }

    /// Settles all open files, so that the next start finds nothing to repair. Called after the
    /// last request.
    ///
    /// # Errors
    /// If the index or an object fails.
    pub fn close_all(&self) -> Result<()> {
        let settled = self.open_files.settle_all();
        self.open_files.remove_orphans()?;
        settled.and(self.durability.sync())
    }
}

/// The space of the SSD and of the drive.
impl Fs {
    /// Removes dead objects, then clean ones, least recently used first, until the cache is within
    /// its limits.
    ///
    /// # Errors
    /// If the index or an object fails.
    pub fn trim(&self) -> Result<()> {
        self.space.trim()
    }

    /// Sets the files that are never evicted, and how many of their bytes are in the cache and
    /// clean.
    pub fn set_pinned(&self, pinned: HashSet<Ino>, bytes: u64) {
        self.space.set_pinned(pinned, bytes);
    }

    /// Returns whether `bytes` of clean files would fit into the cache if all that can be evicted
    /// were.
    ///
    /// # Errors
    /// If the SSD cannot be asked for its space.
    pub fn could_hold(&self, bytes: u64) -> Result<bool> {
        self.space.could_hold(bytes)
    }

    /// Evicts clean files that were not used since `before`, in seconds since 1970. Returns their
    /// number.
    ///
    /// # Errors
    /// If the index or an object fails.
    pub fn evict_unused(&self, before: i64) -> Result<u64> {
        self.space.evict_unused(before)
    }

    /// Measures how full the SSD is, and updates the marks.
    pub fn look_at_space(&self) {
        self.space.look();
    }

    /// Sets whether flushes start automatically, so that waiting for one makes sense.
    pub fn expect_relief(&self, expected: bool) {
        self.space.expect_relief(expected);
    }

    /// Returns the bytes of dirty files without a writer, as of the last measurement.
    pub fn flushable(&self) -> u64 {
        self.space.flushable()
    }

    /// Records the result of a flush that found `flushable` bytes to write. If it wrote none of
    /// them, the next one will not either.
    pub fn note_flushed(&self, flushable: u64, written: u64) {
        self.space.note_flushed(flushable, written);
    }

    /// Returns the report of a file that did not fit on the SSD, while it waits and for a while
    /// after.
    pub fn refusal(&self) -> Option<String> {
        self.space.refusal()
    }

    /// Releases a part of the reserve for a flush; returns false if there is none.
    pub fn give_up_reserve(&self) -> bool {
        self.space.give_up_reserve()
    }

    /// Returns whether the SSD is so full that writes are refused.
    pub fn is_full(&self) -> bool {
        self.space.is_full()
    }

    /// Returns whether clean objects should be evicted now.
    pub fn is_crowded(&self) -> bool {
        self.space.is_crowded()
    }

    /// Returns whether data that waits for the backend fills the SSD.
    pub fn wants_flush(&self) -> bool {
        self.space.wants_flush()
    }

    /// Returns the bytes that all waiting changes will take on the drive: whole clusters, copies,
    /// new directories. Names and the records of a batch are not included; they take a few
    /// clusters.
    pub fn needed_on_drive(&self) -> u64 {
        self.drive_space.needed()
    }

    /// Updates the allocation unit of the drive, and counts copies if anything has changed. Called
    /// from time to time.
    pub fn count_needed(&self) {
        self.drive_space.count();
    }

    /// Returns the backend's space, less the space that waiting changes will take. Free space of
    /// the SSD is no bound, because clean objects are evicted.
    pub fn statfs(&self) -> StatFs {
        self.drive_space.statfs()
    }
}

/// Files and names of the drive.
impl Fs {
    /// Closes idle files of the backend, or all of them before the drive is released. In the second
    /// case they are closed when this returns, unless the drive does not answer.
    pub fn close_idle_readers(&self, all: bool) {
        match all {
            true => self.drive_files.close_all(),
            false => self.drive_files.close_idle(),
        }
    }

    /// Returns how many reads of the drive programs have made.
    pub fn drive_reads(&self) -> u64 {
        self.drive_files.reads()
    }

    /// Opens files that a batch is about to remove from the backend, so that their readers can go
    /// on.
    pub fn hold_open_for_readers(&self, inos: &[Ino]) {
        self.drive_files.keep_open(inos);
    }

    /// Copies the attributes of the backend's root directory to the mount's root, once. Called
    /// before the root is visible.
    ///
    /// # Errors
    /// If the backend cannot be read; the root then has default attributes until it is listed.
    pub fn take_root(&self) -> Result<()> {
        self.importer.take_root()
    }

    /// Also imports, from now on, the directories that other systems reserve on the drive.
    pub fn show_system(&self) {
        self.importer.show_system();
    }

    /// Imports the next directory after `after` that is not listed. Returns its number, or `None`
    /// when there are no more.
    ///
    /// # Errors
    /// If the backend cannot be read; the walk may go on after the directory that failed.
    pub fn import_next(&self, after: Ino) -> std::result::Result<Option<Ino>, (Ino, FsError)> {
        self.importer.import_next(after)
    }

    /// Applies the catalog's current descriptions to files that are in the index already; local
    /// changes stay.
    ///
    /// # Errors
    /// If the index fails.
    pub fn believe_anew(&self) -> Result<()> {
        self.importer.believe_anew()
    }

    /// Returns the progress of the import.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn import_progress(&self) -> Result<ImportProgress> {
        self.index.commit()?;
        Ok(self.import_progress_with(self.index.snapshot()?.unlisted_dirs()?))
    }

    /// Returns the progress, for a caller that has already counted `dirs_left`.
    pub fn import_progress_with(&self, dirs_left: u64) -> ImportProgress {
        self.importer.progress_with(dirs_left)
    }

    /// Records a request of a program: the background import pauses for a moment.
    pub fn note_request(&self) {
        self.importer.note_request();
    }

    /// Returns whether a program made a request a moment ago.
    pub fn is_busy(&self) -> bool {
        self.importer.is_busy()
    }
}
