//! The writer's side of the index: the open transaction, the counters, the cached inodes.
//!
//! Changes collect in one open transaction. Changed inodes are kept in `pending` and written once,
//! right before the commit. A finished operation ([`IndexWriter::finish`]) is in the redo log, see
//! [`crate::index::redo`]. If SQLite fails in between, the whole transaction is undone and the
//! finished operations are replayed: only the failed operation is lost.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use rusqlite::{Connection, OptionalExtension, Row, ToSql};

use crate::core::cache_step::{CacheStep, CacheSteps};
use crate::core::{Ino, Name, Seq};
use crate::index::counters::{Counter, Sums, load_allocation};
use crate::index::inode::Inode;
use crate::index::local::LocalState;
use crate::index::mirror::DescribedWay;
use crate::index::paths::Ways;
use crate::index::redo::{self, Changes, RedoLog};
use crate::index::waiting::WaitingSince;
use crate::index::wal::Wal;
use crate::index::write_guard::note_failure;
use crate::index::{ActiveBatch, Context, IndexError, Result, int, statements};
use crate::plan::names::NameRules;
use crate::plan::space::Allocation;

/// Operations between two checks of the WAL's space; a commit of one writes about six frames, 24
/// KiB.
const LOOK_EVERY: u64 = 64;

/// The number of cached inodes: about 12 MB.
const CACHED_INODES: NonZeroUsize = match NonZeroUsize::new(50_000) {
    Some(count) => count,
    None => NonZeroUsize::MIN,
};

/// The writer's side of the index. Obtained from [`crate::index::Index::lock`].
pub struct IndexWriter {
    pub(super) conn: Connection,
    pub(super) rules: NameRules,
    pub(super) wal: Arc<Wal>,
    pub(super) totals: Sums,
    /// As of the last finished operation.
    pub(super) finished_totals: Sums,
    /// How the backend allocates space, for the totals.
    pub(super) allocation: Allocation,
    pub(super) in_transaction: bool,
    pub(super) redo: Option<RedoLog>,
    /// The statements since the last finished operation.
    pub(super) unfinished: Changes,
    /// The inodes that were put since then.
    pub(super) unfinished_inodes: HashSet<Ino>,
    /// Finished operations have been undone and are not replayed yet.
    pub(super) must_replay: bool,
    /// The SSD is nearly full: each operation is committed, so that its space is known to exist.
    commit_each: bool,
    commits: u64,
    /// Counts finished operations and commits.
    operations: u64,
    /// The same count when the space of the WAL was last checked.
    topped_up: u64,
    pub(super) pending: HashMap<Ino, Inode>,
    pub(super) cache: LruCache<Ino, Inode>,
    pub(super) inos: Counter,
    pub(super) objects: Counter,
    pub(super) seqs: Counter,
    /// Places of names in listings, see [`crate::index::schema::TABLES`].
    pub(super) cookies: Counter,
    /// The places of names that the present operation has removed. A name that is added again in
    /// the same moment gets its place back, so that a listing in progress does not skip it.
    pub(super) left_places: HashMap<(Ino, Name), u64>,
    /// The links of directories in the mount, and on the backend.
    pub(super) mount_ways: Ways,
    pub(super) backend_ways: Ways,
    /// The way that was last followed through the mirror of the catalog.
    pub(super) described_way: DescribedWay,
    /// The inodes that are open for writing right now.
    pub(super) writing: HashSet<Ino>,
    /// Those of them whose bytes are being changed, so that their rows lag behind.
    pub(super) changing: HashSet<Ino>,
    /// Inodes without a name that are still in use.
    pub(super) orphans: HashSet<Ino>,
    /// Inodes that have become (true) or ceased to be (false) orphans since the last finished
    /// operation.
    pub(super) orphans_since: Vec<(Ino, bool)>,
    pub(super) active: Option<ActiveBatch>,
    /// The inodes in rows of `replaced`; it may have more, never fewer.
    pub(super) replacing: HashSet<Ino>,
    /// Something was undone, so rows of files that are being written may be out of date.
    pub(super) undone: bool,
    /// The same since [`IndexWriter::take_unsettled`] last asked.
    pub(super) unsettled: bool,
    /// The same since [`IndexWriter::take_unmeasured`] last asked.
    pub(super) unmeasured: bool,
    pub(super) waiting: WaitingSince,
    pub(super) local: LocalState,
    /// Where a test may stop it.
    pub(super) steps: CacheSteps,
}

impl IndexWriter {
    pub(super) fn new(
        conn: Connection,
        rules: NameRules,
        wal: Arc<Wal>,
        redo: Option<RedoLog>,
    ) -> Result<IndexWriter> {
        let allocation = load_allocation(&conn)?;
        let totals = Sums::load(&conn, allocation)?;
        Ok(IndexWriter {
            allocation,
            totals,
            finished_totals: totals,
            replacing: crate::index::replaced::load(&conn)?,
            rules,
            wal,
            inos: Counter::load(&conn, "next_ino", Ino::ROOT.0 + 1)?,
            objects: Counter::load(&conn, "next_object", 1)?,
            seqs: Counter::load(&conn, "next_seq", 1)?,
            cookies: Counter::load(&conn, "next_cookie", 3)?,
            left_places: HashMap::new(),
            mount_ways: Ways::default(),
            backend_ways: Ways::default(),
            described_way: DescribedWay::default(),
            conn,
            in_transaction: false,
            redo,
            unfinished: Changes::default(),
            unfinished_inodes: HashSet::new(),
            must_replay: false,
            commit_each: false,
            commits: 0,
            operations: 0,
            topped_up: 0,
            pending: HashMap::new(),
            cache: LruCache::new(CACHED_INODES),
            writing: HashSet::new(),
            changing: HashSet::new(),
            orphans: HashSet::new(),
            orphans_since: Vec::new(),
            active: None,
            undone: false,
            unsettled: false,
            unmeasured: false,
            waiting: WaitingSince::default(),
            local: LocalState::default(),
            steps: CacheSteps::default(),
        })
    }

    /// Returns the number of transactions that were committed since the index was opened.
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// Returns the number of operations that were finished, and transactions committed, since the
    /// index was opened.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Returns whether a commit would write anything.
    pub fn has_uncommitted(&self) -> bool {
        self.in_transaction || self.must_replay || !self.pending.is_empty()
    }

    /// Returns whether [`IndexWriter::undo`] would undo anything.
    pub(super) fn has_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
            || !self.unfinished_inodes.is_empty()
            || self.in_transaction && self.conn.is_autocommit()
    }

    /// Sets whether each operation is committed instead of logged.
    pub fn commit_each(&mut self, each: bool) {
        self.commit_each = each;
    }

    pub(super) fn begin(&mut self) -> Result<()> {
        if self.must_replay {
            self.replay()?;
        }
        if !self.in_transaction {
            self.wal.check().inspect_err(|_| note_failure())?;
            self.run("begin", "BEGIN IMMEDIATE", [])?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Finishes an operation: everything up to now survives the daemon's death, and is durable
    /// after the next [`crate::index::Index::sync`].
    ///
    /// # Errors
    /// If neither the redo log nor SQLite can store it; the changes since the last finished
    /// operation are then undone.
    pub fn finish(&mut self) -> Result<()> {
        if !self.has_unfinished() {
            return Ok(());
        }
        if self.commit_each || self.redo.is_none() {
            return self.commit().map(drop);
        }
        match self.log_operation() {
            Ok(true) => {
                self.note_finished();
                Ok(())
            }
            Ok(false) => self.commit().map(drop),
            Err(error) => {
                self.undo();
                Err(error)
            }
        }
    }

    /// Appends the unfinished changes to the redo log. Returns false if they cannot be logged.
    fn log_operation(&mut self) -> Result<bool> {
        self.begin()?;
        self.wal.check()?;
        for ino in &self.unfinished_inodes {
            if let Some(inode) = self.pending.get(ino) {
                inode.with_row(|row| self.unfinished.add(statements::PUT_INODE, row));
            }
        }
        self.may(CacheStep::LogOperation)?;
        self.wal.may_commit()?;
        match &mut self.redo {
            Some(redo) => redo.append(&self.unfinished),
            None => Ok(false),
        }
    }

    fn note_finished(&mut self) {
        self.operations += 1;
        self.unfinished.clear();
        self.unfinished_inodes.clear();
        self.finished_totals = self.totals;
        self.orphans_since.clear();
        self.left_places.clear();
    }

    /// Commits. Returns true if there was anything to commit.
    ///
    /// # Errors
    /// If SQLite fails; the changes since the last finished operation are then undone.
    pub fn commit(&mut self) -> Result<bool> {
        if !self.has_uncommitted() {
            return Ok(false);
        }
        if self.wal.has_failed() && !self.has_unfinished() {
            // Finished operations stay in the transaction, for readers, and in the log.
            return Ok(false);
        }
        match self.try_commit() {
            Ok(epoch) => {
                self.in_transaction = false;
                // Only now: cached inodes are committed ones, and can be read even if the disk
                // fails.
                for (ino, inode) in self.pending.drain() {
                    self.cache.put(ino, inode);
                }
                self.commits += 1;
                self.note_finished();
                if let Some(redo) = &mut self.redo {
                    redo.begin_anew(epoch);
                }
                if self.operations >= self.topped_up + LOOK_EVERY {
                    self.topped_up = self.operations;
                    self.wal.top_up();
                }
                Ok(true)
            }
            Err(error) => {
                self.undo_commit();
                Err(error)
            }
        }
    }

    /// Writes everything and commits it. Returns the epoch of the rows.
    fn try_commit(&mut self) -> Result<u64> {
        self.begin()?;
        self.wal.check()?;
        self.write_pending()?;
        let epoch = self.redo.as_mut().map_or(0, RedoLog::next_epoch);
        self.run("commit", redo::PUT_EPOCH, [int(epoch)])?;
        self.may(CacheStep::Commit)?;
        self.wal.may_commit()?;
        self.run("commit", "COMMIT", [])?;
        Ok(epoch)
    }

    fn may(&self, step: CacheStep) -> Result<()> {
        self.steps.before(step).map_err(|source| IndexError::Io {
            operation: "commit",
            path: "index.db".into(),
            source,
        })
    }

    /// Returns whether something has been undone since the index was opened, so that the next start
    /// must look for unsettled files.
    pub fn has_undone(&self) -> bool {
        self.undone
    }

    pub(super) fn limit_growth(&mut self, pages: Option<u32>) -> Result<()> {
        let used: i64 = self
            .conn
            .query_row("PRAGMA page_count", [], |row| row.get(0))
            .context("count pages")?;
        let most = pages.map_or(4_294_967_294, |pages| used + i64::from(pages));
        self.conn
            .query_row(&format!("PRAGMA max_page_count={most}"), [], |_| Ok(()))
            .context("limit growth")
    }

    fn write_pending(&self) -> Result<()> {
        let write = |inode: &Inode| -> Result<()> {
            inode.with_row(|row| {
                self.run("write an inode", statements::PUT_INODE, row)
                    .map(drop)
            })
        };
        self.pending.values().try_for_each(write)
    }

    /// Runs one statement of the writer.
    pub(super) fn run<P: rusqlite::Params>(
        &self,
        operation: &'static str,
        sql: &str,
        params: P,
    ) -> Result<usize> {
        self.conn
            .prepare_cached(sql)
            .and_then(|mut s| s.execute(params))
            .context(operation)
    }

    /// Runs one changing statement, in the open transaction.
    pub(super) fn change(
        &mut self,
        operation: &'static str,
        sql: &'static str,
        params: &[&dyn ToSql],
    ) -> Result<usize> {
        self.begin()?;
        let changed = self.run(operation, sql, params)?;
        self.unfinished.add(sql, params);
        Ok(changed)
    }

    /// As [`IndexWriter::change`], for a statement that returns a row.
    pub(super) fn change_returning<T>(
        &mut self,
        operation: &'static str,
        sql: &'static str,
        params: &[&dyn ToSql],
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        self.begin()?;
        let row = self
            .conn
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row(params, read).optional())
            .context(operation)?;
        self.unfinished.add(sql, params);
        Ok(row)
    }

    /// Returns the next number in the history of changes.
    ///
    /// # Errors
    /// If it cannot be reserved.
    pub fn next_seq(&mut self) -> Result<Seq> {
        self.take_number(|state| &mut state.seqs).map(Seq)
    }

    /// Returns the next number in the history of changes, without using it.
    pub(super) fn seq_at_hand(&self) -> Seq {
        Seq(self.seqs.next)
    }
}
