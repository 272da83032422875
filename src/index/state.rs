//! The writer's side of the index: the open transaction, the numbers that are handed out, the inodes at hand.
//!
//! Changes gather in one open transaction. Inodes that change are kept in `pending` and written once, right before the commit.
//! If SQLite fails in between, the whole transaction is undone, and the cached rows are those of the last commit: what was acknowledged as having
//! survived was committed before, so nothing that was promised is lost.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use lru::LruCache;
use rusqlite::{Connection, OptionalExtension, params};

use super::catalog::DescribedWay;
use super::counters::{Counter, Sums, Totals, load_allocation};
use super::guard::note_failure;
use super::inode::{COLUMNS, Flags, Inode};
use super::wal::Wal;
use super::ways::Ways;
use super::{ActiveBatch, Context, IndexError, Result, int};
use crate::base::steps::{CacheStep, CacheSteps};
use crate::base::{Ino, Name, ObjectId, Seq};
use crate::rules::names::NameRules;
use crate::rules::space::Allocation;

/// Inodes kept at hand: about 12 MB.
const CACHED_INODES: NonZeroUsize = match NonZeroUsize::new(50_000) {
    Some(count) => count,
    None => NonZeroUsize::MIN,
};

/// The writer's side of the index. Obtained from [`super::Index::lock`].
pub struct State {
    pub(super) conn: Connection,
    pub(super) rules: NameRules,
    wal: Arc<Wal>,
    pub(super) totals: Sums,
    /// As of the last commit.
    pub(super) committed_totals: Sums,
    /// How the backend allocates space, for the totals.
    pub(super) allocation: Allocation,
    pub(super) in_transaction: bool,
    commits: u64,
    pub(super) pending: HashMap<Ino, Inode>,
    pub(super) cache: LruCache<Ino, Inode>,
    pub(super) inos: Counter,
    pub(super) objects: Counter,
    pub(super) seqs: Counter,
    /// Places of names in listings, see [`super::schema::V4`].
    pub(super) cookies: Counter,
    /// The places of names that were taken away since the last commit: whoever puts a name back in the same moment gives it its
    /// place back, so that a listing under way does not pass it by.
    pub(super) left_places: HashMap<(Ino, Name), u64>,
    /// How directories hang from each other in the mount, and on the backend.
    pub(super) mount_ways: Ways,
    pub(super) backend_ways: Ways,
    /// The last way that was gone through the mirror of the catalog.
    pub(super) described_way: DescribedWay,
    /// The inodes that are open for writing right now.
    pub(super) writing: HashSet<Ino>,
    /// Inodes without a name that somebody still uses.
    pub(super) orphans: HashSet<Ino>,
    /// What has become (true) or ceased to be (false) an orphan since the last commit.
    pub(super) orphans_since: Vec<(Ino, bool)>,
    pub(super) active: Option<ActiveBatch>,
    /// The inodes that rows of `replaced` are about; may hold more than that, never less.
    pub(super) replacing: HashSet<Ino>,
    /// Something has been undone: what was noted of files being written may be out of date.
    pub(super) undone: bool,
    /// The same since [`State::take_unsettled`] last asked.
    pub(super) unsettled: bool,
    /// The same since [`State::take_unmeasured`] last asked.
    pub(super) unmeasured: bool,
    /// When something last began to wait for the backend, and when the oldest of it did. Without what
    /// the last flush has tried and left behind.
    dirty_since: Option<(Instant, Instant)>,
    /// Counts what has come to wait for the backend since the index was opened.
    changes: u64,
    /// The same at the last cut.
    changes_at_cut: u64,
    /// Where a test may stop it.
    pub(super) steps: CacheSteps,
}

impl State {
    pub(super) fn new(conn: Connection, rules: NameRules, wal: Arc<Wal>) -> Result<State> {
        let allocation = load_allocation(&conn)?;
        let totals = Sums::load(&conn, allocation)?;
        Ok(State {
            allocation,
            totals,
            committed_totals: totals,
            replacing: super::replaced::load(&conn)?,
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
            commits: 0,
            pending: HashMap::new(),
            cache: LruCache::new(CACHED_INODES),
            writing: HashSet::new(),
            orphans: HashSet::new(),
            orphans_since: Vec::new(),
            active: None,
            undone: false,
            unsettled: false,
            unmeasured: false,
            dirty_since: None,
            changes: 0,
            changes_at_cut: 0,
            steps: CacheSteps::default(),
        })
    }

    /// How many transactions were committed since the index was opened.
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// Whether there is anything that a commit would write.
    pub fn has_uncommitted(&self) -> bool {
        self.in_transaction || !self.pending.is_empty()
    }

    pub(super) fn begin(&mut self) -> Result<()> {
        if !self.in_transaction {
            self.wal.check().inspect_err(|_| note_failure())?;
            self.run("begin", "BEGIN IMMEDIATE", [])?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Commits; true if there was anything to commit.
    ///
    /// # Errors
    /// If SQLite cannot; everything since the last commit is then undone.
    pub fn commit(&mut self) -> Result<bool> {
        if !self.has_uncommitted() {
            return Ok(false);
        }
        let result = self
            .write_pending()
            .and_then(|()| self.may(CacheStep::Commit))
            .and_then(|()| self.wal.may_commit())
            .and_then(|()| self.run("commit", "COMMIT", []));
        match result {
            Ok(_) => {
                self.in_transaction = false;
                // Only now: what is cached is what is committed, and can be told even when the disk answers no more.
                for (ino, inode) in self.pending.drain() {
                    self.cache.put(ino, inode);
                }
                self.commits += 1;
                self.committed_totals = self.totals;
                self.orphans_since.clear();
                self.left_places.clear();
                self.wal.after_commit(self.commits);
                Ok(true)
            }
            Err(error) => {
                self.undo();
                Err(error)
            }
        }
    }

    fn may(&self, step: CacheStep) -> Result<()> {
        self.steps.before(step).map_err(|source| IndexError::Io {
            operation: "commit",
            path: "index.db".into(),
            source,
        })
    }

    /// Whether something has been undone since the index was opened, so that the next start has to look for what is not settled.
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

    fn write_pending(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.begin()?;
        self.pending
            .values()
            .try_for_each(|inode| self.write_inode(inode))
    }

    fn write_inode(&self, n: &Inode) -> Result<()> {
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO inodes VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            )
            .and_then(|mut s| {
                s.execute(params![
                    int(n.ino.0),
                    n.mode,
                    n.uid,
                    n.gid,
                    n.rdev,
                    n.nlink,
                    int(n.size),
                    int(n.blocks),
                    n.atime.0,
                    n.mtime.0,
                    n.ctime.0,
                    n.btime.0,
                    n.object.map(|o| int(o.0)),
                    n.flags.0,
                    int(n.data_seq.0),
                    int(n.time_seq.0),
                    n.used,
                    n.target.as_deref(),
                ])
            })
            .context("write an inode")
            .map(|_| ())
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
    pub(super) fn change<P: rusqlite::Params>(
        &mut self,
        operation: &'static str,
        sql: &str,
        params: P,
    ) -> Result<usize> {
        self.begin()?;
        self.run(operation, sql, params)
    }

    /// A number for a new inode.
    ///
    /// # Errors
    /// If it cannot be reserved.
    pub fn new_ino(&mut self) -> Result<Ino> {
        self.begin()?;
        self.inos.take(&self.conn).map(Ino)
    }

    /// A number for a new object.
    ///
    /// # Errors
    /// If it cannot be reserved.
    pub fn new_object(&mut self) -> Result<ObjectId> {
        self.begin()?;
        self.objects.take(&self.conn).map(ObjectId)
    }

    /// The next place in the history of changes.
    ///
    /// # Errors
    /// If it cannot be reserved.
    pub fn next_seq(&mut self) -> Result<Seq> {
        self.begin()?;
        self.seqs.take(&self.conn).map(Seq)
    }

    /// The next place in the history of changes, without taking it.
    pub(super) fn seq_at_hand(&self) -> Seq {
        Seq(self.seqs.next)
    }

    /// The inode `ino`, if there is one.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn inode(&mut self, ino: Ino) -> Result<Option<Inode>> {
        if let Some(inode) = self.pending.get(&ino).or_else(|| self.cache.get(&ino)) {
            return Ok(Some(inode.clone()));
        }
        let inode = self
            .conn
            .prepare_cached(&format!("SELECT {COLUMNS} FROM inodes WHERE ino=?"))
            .and_then(|mut s| s.query_row([int(ino.0)], Inode::from_row).optional())
            .context("read an inode")?;
        if let Some(inode) = &inode {
            self.cache.put(ino, inode.clone());
        }
        Ok(inode)
    }

    /// Like [`State::inode`], for one that must be there because another row names it.
    ///
    /// # Errors
    /// Also [`IndexError::Corrupt`] if it is not.
    pub fn expect_inode(&mut self, ino: Ino) -> Result<Inode> {
        self.inode(ino)?
            .ok_or_else(|| IndexError::Corrupt(format!("inode {} is named but not there", ino.0)))
    }

    /// Notes the state of an inode that is new or was read before; written with the next commit.
    pub fn put_inode(&mut self, inode: Inode) {
        let before = match self.pending.get(&inode.ino) {
            Some(before) => Some(before),
            None => self.cache.peek(&inode.ino),
        };
        self.totals.replace(before, Some(&inode), self.allocation);
        self.pending.insert(inode.ino, inode);
    }

    /// Sums over all inodes.
    pub fn totals(&self) -> Totals {
        self.totals.told()
    }

    /// Takes the inode's row out. Its object, if any, becomes dead.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn remove_inode(&mut self, ino: Ino) -> Result<()> {
        let Some(inode) = self.inode(ino)? else {
            return Ok(());
        };
        if let Some(object) = inode.object {
            self.bury_object(&inode, object)?;
        }
        if inode.flags.has(Flags::XATTRS) {
            self.drop_xattrs(ino)?;
        }
        self.change(
            "drop an inode",
            "DELETE FROM inodes WHERE ino=?",
            [int(ino.0)],
        )?;
        if inode.is_dir() {
            self.change(
                "drop an inode",
                "DELETE FROM tall_dirs WHERE ino=?",
                [int(ino.0)],
            )?;
        }
        if inode.flags.has(Flags::ON_BACKEND) {
            self.change(
                "drop an inode",
                "DELETE FROM dirty_inodes WHERE ino=?",
                [int(ino.0)],
            )?;
            self.change(
                "drop an inode",
                "DELETE FROM link_groups WHERE ino=?",
                [int(ino.0)],
            )?;
        }
        self.totals.replace(Some(&inode), None, self.allocation);
        self.pending.remove(&ino);
        self.cache.pop(&ino);
        if self.orphans.remove(&ino) {
            self.orphans_since.push((ino, false));
        }
        Ok(())
    }

    /// Notes that `object` of `inode` is needed no more; a batch under way that may still read it keeps it until its end.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn bury_object(&mut self, inode: &Inode, object: ObjectId) -> Result<()> {
        let batch = match &self.active {
            Some(active) if self.is_pinned(inode) => active.batch.0,
            _ => 0,
        };
        self.change(
            "bury an object",
            "INSERT OR REPLACE INTO dead_objects VALUES(?,?)",
            params![int(object.0), int(batch)],
        )?;
        Ok(())
    }

    /// Up to `limit` dead objects that no batch may still read.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn dead_objects(&mut self, limit: u32) -> Result<Vec<ObjectId>> {
        self.commit()?;
        self.conn
            .prepare_cached("SELECT object FROM dead_objects WHERE batch=0 LIMIT ?")
            .and_then(|mut s| {
                s.query_map([limit], |row| Ok(ObjectId(row.get::<_, i64>(0)? as u64)))?
                    .collect()
            })
            .context("list dead objects")
    }

    /// Notes that the files of `objects` have been removed.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn forget_dead_objects(&mut self, objects: &[ObjectId]) -> Result<()> {
        for object in objects {
            self.change(
                "forget an object",
                "DELETE FROM dead_objects WHERE object=?",
                [int(object.0)],
            )?;
        }
        Ok(())
    }

    /// Notes that `ino` has no name but is still in use.
    pub fn add_orphan(&mut self, ino: Ino) {
        if self.orphans.insert(ino) {
            self.orphans_since.push((ino, true));
        }
    }

    /// Whether `ino` has no name but is still in use.
    pub fn is_orphan(&self, ino: Ino) -> bool {
        self.orphans.contains(&ino)
    }

    /// Notes that something began to wait for the backend.
    pub(super) fn touch_dirty(&mut self) {
        let now = Instant::now();
        self.changes += 1;
        self.dirty_since = Some((now, self.dirty_since.map_or(now, |(_, oldest)| oldest)));
    }

    /// Notes that everything up to now is part of a cut.
    pub fn note_cut(&mut self) {
        self.changes_at_cut = self.changes;
    }

    /// When something last began to wait for the backend, and when the oldest of it did; `None` if nothing waits, or only what
    /// the last flush has left behind: another flush would leave it behind again.
    pub fn dirty_since(&self) -> Option<(Instant, Instant)> {
        self.dirty_since
    }

    /// Notes that a flush that `began` then has ended well: what still waits and is not newer than its cut was left behind. It is
    /// tried again together with the next change, when it is closed, or when the drive is attached.
    pub fn note_flushed(&mut self, began: Instant) {
        self.dirty_since = match self.dirty_since {
            Some((latest, _)) if self.changes > self.changes_at_cut => Some((latest, began)),
            _ => None,
        };
    }

    /// Notes, if anything waits and no flush is due for it yet, that it waits as of now: what was left behind is to be tried again,
    /// or nobody has counted since when it waits.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn try_again(&mut self) -> Result<()> {
        if self.dirty_since.is_none() && self.anything_dirty()? {
            let now = Instant::now();
            self.dirty_since = Some((now, now));
        }
        Ok(())
    }

    /// Counts `ino` among those open for writing. Until [`State::end_writing`] no cut takes it.
    pub fn start_writing(&mut self, ino: Ino) {
        self.writing.insert(ino);
    }

    /// Ends what [`State::start_writing`] began. A file that was written waits from now on, even if a flush has left it behind
    /// before.
    pub fn end_writing(&mut self, ino: Ino) {
        let was_open = self.writing.remove(&ino);
        // An index that cannot be read has nothing to carry.
        let inode = self.inode(ino).ok().flatten();
        if was_open && inode.is_some_and(|inode| inode.flags.has(Flags::DATA_DIRTY)) {
            self.touch_dirty();
        }
    }

    /// Whether `ino` is open for writing.
    pub fn is_writing(&self, ino: Ino) -> bool {
        self.writing.contains(&ino)
    }

    /// How many bytes the backend does not have are in files that are open for writing, and the largest of these files.
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

    /// How many inodes are open for writing.
    pub fn writing_count(&self) -> usize {
        self.writing.len()
    }

    /// A value of the key-value table.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn meta(&self, key: &str) -> Result<Option<String>> {
        self.conn
            .prepare_cached("SELECT CAST(value AS TEXT) FROM meta WHERE key=?")
            .and_then(|mut s| s.query_row([key], |row| row.get(0)).optional())
            .context("read a setting")
    }

    /// Sets a value of the key-value table; an empty one removes it.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn set_meta(&mut self, key: &str, value: &str) -> Result<()> {
        if value.is_empty() {
            self.change("drop a setting", "DELETE FROM meta WHERE key=?", [key])?;
        } else {
            self.change(
                "write a setting",
                "INSERT OR REPLACE INTO meta VALUES(?,?)",
                [key, value],
            )?;
        }
        Ok(())
    }

    /// The settings whose keys begin with `prefix`, without it.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn metas(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        self.conn
            .prepare_cached(
                "SELECT substr(key, length(?1) + 1), CAST(value AS TEXT) FROM meta WHERE substr(key, 1, length(?1)) = ?1",
            )
            .and_then(|mut s| {
                s.query_map([prefix], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .context("read settings")
    }

    /// The inode whose bytes are in `object`. Looks through all of them.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn owner_of(&mut self, object: ObjectId) -> Result<Option<Ino>> {
        let holds = |inode: &Inode| inode.object == Some(object);
        if let Some(inode) = self.pending.values().find(|inode| holds(inode)) {
            return Ok(Some(inode.ino));
        }
        self.conn
            .prepare("SELECT ino FROM inodes WHERE object=?")
            .and_then(|mut s| {
                s.query_row([int(object.0)], |row| row.get::<_, i64>(0))
                    .optional()
            })
            .context("find whose object it is")
            .map(|found| found.map(|ino| Ino(ino as u64)))
    }

    /// Up to `limit` clean files with an object, least recently used first.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn evictable(&mut self, limit: u32) -> Result<Vec<Inode>> {
        self.commit()?;
        self.conn
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM inodes WHERE object IS NOT NULL AND flags & 3 = 0 ORDER BY used LIMIT ?"
            ))
            .and_then(|mut s| s.query_map([limit], Inode::from_row)?.collect())
            .context("list what can go")
    }

    /// Every inode that an unclean end may have left in need of a look: with bytes that the backend does not have, written at
    /// that time, or without a name.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn unsettled(&mut self) -> Result<Vec<Inode>> {
        self.commit()?;
        self.conn
            .prepare(&format!(
                "SELECT {COLUMNS} FROM inodes WHERE flags & 5 != 0 OR nlink = 0"
            ))
            .and_then(|mut s| s.query_map([], Inode::from_row)?.collect())
            .context("list what was being written")
    }

    /// What was being written when the daemon died and is held back since: some of it, at most `limit`, and how many there are.
    ///
    /// # Errors
    /// If SQLite cannot.
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

    /// Lets what was being written when the daemon died be carried as it is; tells how many files that are. Commits.
    ///
    /// # Errors
    /// If SQLite cannot.
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

    /// Every inode with an object that is not among `present`.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn lacking(&mut self, present: &HashSet<ObjectId>) -> Result<Vec<Ino>> {
        self.commit()?;
        let mut lacking = Vec::new();
        let mut statement = self
            .conn
            .prepare("SELECT ino, object FROM inodes WHERE object IS NOT NULL")
            .context("list objects")?;
        let rows = statement
            .query_map([], |row| {
                let ino = Ino(row.get::<_, i64>(0)? as u64);
                Ok((ino, ObjectId(row.get::<_, i64>(1)? as u64)))
            })
            .context("list objects")?;
        for row in rows {
            let (ino, object) = row.context("list objects")?;
            if !present.contains(&object) {
                lacking.push(ino);
            }
        }
        Ok(lacking)
    }

    /// Every object that a row vouches for, live or dead.
    ///
    /// # Errors
    /// If SQLite cannot.
    pub fn known_objects(&mut self) -> Result<HashSet<ObjectId>> {
        self.commit()?;
        self.conn
            .prepare(
                "SELECT object FROM inodes WHERE object IS NOT NULL UNION ALL SELECT object FROM dead_objects",
            )
            .and_then(|mut s| {
                s.query_map([], |row| Ok(ObjectId(row.get::<_, i64>(0)? as u64)))?
                    .collect()
            })
            .context("list objects")
    }
}
