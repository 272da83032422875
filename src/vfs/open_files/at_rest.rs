//! Files at rest: a moment in which no open file changes, for the cut of a batch.
//!
//! The cut holds the locks of all files that are being changed, so each request to write came
//! before it or comes after it. What the cut has is what a program would find if all programs, but
//! not the machine, had died at that moment: databases and their journals fit together, whatever
//! their engine.
//!
//! Each such file is settled as if it had been closed: its row describes its object, and the object
//! is no longer prepared for writes in place. The next write prepares it again, and meets the batch
//! that reads the object ([`crate::vfs::prepare`]). So a writer waits for the cut, and after that
//! for one block at a time.
//!
//! A file that was begun a moment ago, by a copy or an editor, is likely to be closed soon, and
//! half of it is of no use. The cut waits a little for its end; after that a file that is still
//! open counts as one that stays open. Files that were begun meanwhile are left out.
//!
//! A file whose lock cannot be had at once stays as it is, and the batch leaves it out: its holder
//! copies or fetches bytes.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::RwLockWriteGuard;

use crate::core::{Ino, Name, Pace, WhileOpen};
use crate::index::{Flags, IndexWriter, Inode, LeftOut};
use crate::plan::units::{database_of, journals_of};
use crate::vfs::Result;
use crate::vfs::measured::measure;
use crate::vfs::open_files::{Content, OpenFiles, OpenInode};

/// A file whose content cannot change while this lives.
type HeldFile<'a> = (&'a OpenInode, RwLockWriteGuard<'a, Content>);

/// How long writers wait, at most, until all locks are held.
const LOCKS_WITHIN: Duration = Duration::from_millis(50);

/// How often, and for how long in between, the cut waits for databases that are in the middle of a
/// change.
const TRIES: usize = 20;
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// From so many open files on most are settled before the cut.
const MANY: usize = 256;

/// How often the cut looks whether files that were just begun are closed.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

const BEGUN: &str = "a program has just begun to write it; flush again when it is through";

const OPEN: &str = "open for writing; it is written once it is closed, as --wait-closed says";

const LOCKED: &str = "a program holds an exclusive lock of this database and keeps no journal of \
    it, so that only the program knows when it is whole; it is written once the lock is released";

impl OpenFiles {
    /// Runs `cut` while no open file changes, with the locked index. It gets the files that the
    /// batch is to leave out although nobody may be changing them. `locked` tells which files a
    /// program has locked for changes in place, as SQLite does.
    pub(in crate::vfs) fn at_rest<T>(
        &self,
        while_open: WhileOpen,
        locked: &dyn Fn() -> HashSet<Ino>,
        cut: impl FnOnce(LeftOut, &mut IndexWriter) -> T,
    ) -> T {
        let (pace, young) = match while_open {
            WhileOpen::Copy(young) => (None, young),
            WhileOpen::IfDue(pace) => (Some(pace), Duration::ZERO),
            WhileOpen::Leave => {
                let mut state = self.index.lock();
                let open = state.open_for_writing().into_iter();
                return cut(open.map(|ino| (ino, OPEN)).collect(), &mut state);
            }
        };
        self.wait_for_ends(young);
        if pace.is_none() {
            self.settle_ahead(young, locked);
        }
        let mut tries_left = TRIES;
        loop {
            tries_left -= 1;
            // All of them, or those that are due with what belongs to them.
            let wanted = pace.map(|pace| self.units_of(&self.due(pace)));
            let is_wanted = |ino: &Ino| wanted.as_ref().is_none_or(|inos| inos.contains(ino));
            let mut files = self.open_for_writing();
            files.retain(|open| is_wanted(&open.ino()));
            let mut held = hold(&files);
            let mut unknown = self.in_the_middle(&held, locked);
            if !unknown.is_empty() && tries_left > 0 {
                drop(held);
                thread::sleep(TRY_AGAIN);
                continue;
            }
            unknown.extend(self.just_begun(&held, young));
            self.settle_all_open(&mut held, &unknown);
            let mut state = self.index.lock();
            // A file that was opened or made after the list of them was.
            let listed: HashSet<Ino> = files.iter().map(|open| open.ino()).collect();
            let wanted = wanted.map(|_| units_of(&mut state, &listed));
            let is_wanted = |ino: &Ino| wanted.as_ref().is_none_or(|inos| inos.contains(ino));
            let has_missed = (state.changing()).any(|ino| is_wanted(ino) && !listed.contains(ino));
            if has_missed && tries_left > 0 {
                drop(state);
                drop(held);
                continue;
            }
            return cut(unknown, &mut state);
        }
    }

    fn units_of(&self, files: &[Arc<OpenInode>]) -> HashSet<Ino> {
        let inos: HashSet<Ino> = files.iter().map(|open| open.ino()).collect();
        units_of(&mut self.index.lock(), &inos)
    }

    fn settle_all_open(&self, held: &mut [HeldFile<'_>], unknown: &LeftOut) {
        for (open, content) in held {
            if !unknown.contains_key(&open.ino())
                && let Err(error) = self.settle_open(open, content)
            {
                tracing::warn!(ino = open.ino().0, %error, "left out of the batch");
            }
        }
    }

    /// Waits until the files that programs have just begun to write are closed or synced, or are
    /// not `young` any more.
    fn wait_for_ends(&self, young: Duration) {
        let deadline = Instant::now() + young;
        let mut begun = self.open_for_writing();
        loop {
            begun.retain(|open| open.is_just_begun(young));
            if begun.is_empty() || Instant::now() > deadline {
                return;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Settles files one by one if many are open, while others go on, so that little is left for
    /// the moment in which all of them wait.
    fn settle_ahead(&self, young: Duration, locked: &dyn Fn() -> HashSet<Ino>) {
        let files = self.open_for_writing();
        if files.len() < MANY {
            return;
        }
        let locked = locked();
        for open in files {
            if !open.is_just_begun(young)
                && !locked.contains(&open.ino())
                && let Some(mut content) = open.lock_within(Duration::ZERO)
                && let Err(error) = self.settle_open(&open, &mut content)
            {
                // It is tried again at the cut.
                tracing::debug!(ino = open.ino().0, %error, "not settled");
            }
        }
        if let Err(error) = self.index.commit() {
            tracing::debug!(%error, "not committed before the cut");
        }
    }

    /// The files that programs have just begun to write, except databases and their journals: a
    /// journal is made for each transaction.
    fn just_begun(&self, held: &[HeldFile<'_>], young: Duration) -> LeftOut {
        let mut begun: HashSet<Ino> = held
            .iter()
            .filter(|(open, content)| content.prepared().is_some() && open.is_just_begun(young))
            .map(|(open, _)| open.ino())
            .collect();
        let mut state = self.index.lock();
        begun.retain(|ino| units_of(&mut state, &HashSet::from([*ino])).len() == 1);
        begun.into_iter().map(|ino| (ino, BEGUN)).collect()
    }

    /// The databases that are being changed in place without a journal, so that they may be torn.
    fn in_the_middle(&self, held: &[HeldFile<'_>], locked: &dyn Fn() -> HashSet<Ino>) -> LeftOut {
        if held.is_empty() {
            return LeftOut::new();
        }
        let locked = locked();
        let mut state = self.index.lock();
        held.iter()
            .map(|(open, _)| open.ino())
            .filter(|ino| locked.contains(ino))
            // What cannot be read counts as without a journal.
            .filter(|ino| !has_journal(&mut state, *ino).unwrap_or(false))
            .map(|ino| (ino, LOCKED))
            .collect()
    }

    /// Returns whether an open file is being changed and is due.
    pub(in crate::vfs) fn is_any_due(&self, pace: Pace) -> bool {
        self.due(pace).iter().any(|open| {
            let inode = self.index.lock().inode(open.ino());
            matches!(inode, Ok(Some(inode)) if may_be_in_batch(&inode))
        })
    }

    /// Returns the files that may be changing or begin to, in the order of their numbers.
    fn open_for_writing(&self) -> Vec<Arc<OpenInode>> {
        let mut all = self.all();
        all.retain(|open| {
            // One that is locked now may be about to be changed.
            let content = open.try_share();
            content.is_none_or(|content| content.has_writers() || content.prepared().is_some())
        });
        all
    }

    /// Returns the files that are being changed and are due. Other open files cost nothing: an idle
    /// daemon asks for them all the time.
    fn due(&self, pace: Pace) -> Vec<Arc<OpenInode>> {
        let changing: Vec<Ino> = self.index.lock().changing().copied().collect();
        let is_due = |open: &Arc<OpenInode>| {
            let content = open.try_share();
            let object = content.as_ref().and_then(|content| content.prepared());
            object.is_some_and(|object| {
                let size = || {
                    let measured = object.file().and_then(|file| measure(&file));
                    measured.map_or(0, |measured| measured.size())
                };
                pace.is_due(size, open.since_copied(), object.unchanged_for())
            })
        };
        let open = changing.into_iter().filter_map(|ino| self.find(ino));
        open.filter(is_due).collect()
    }

    /// Settles a file that stays open.
    fn settle_open(&self, open: &OpenInode, content: &mut Content) -> Result<()> {
        let Some(object) = content.prepared() else {
            return Ok(());
        };
        let measured = measure(&*object.file()?)?;
        let mut state = self.index.lock();
        let Some(mut inode) = state.inode(open.ino())?.filter(may_be_in_batch) else {
            return Ok(());
        };
        measured.apply(&mut inode);
        inode.flags.clear(Flags::WRITING);
        inode.flags.clear(Flags::INTERRUPTED);
        state.put_inode(inode);
        state.end_changing(open.ino());
        content.prepared = false;
        open.note_copied();
        Ok(())
    }
}

fn may_be_in_batch(inode: &Inode) -> bool {
    inode.nlink > 0 && !inode.flags.has(Flags::LOCAL)
}

/// Locks those of `files` whose locks can be had soon.
fn hold(files: &[Arc<OpenInode>]) -> Vec<HeldFile<'_>> {
    let deadline = Instant::now() + LOCKS_WITHIN;
    let lock = |open| {
        let open: &OpenInode = open;
        let patience = deadline.saturating_duration_since(Instant::now());
        Some((open, open.lock_within(patience)?))
    };
    files.iter().map(Arc::as_ref).filter_map(lock).collect()
}

/// Returns `inos`, and the databases and journals that belong to them. What cannot be read belongs
/// to none.
fn units_of(state: &mut IndexWriter, inos: &HashSet<Ino>) -> HashSet<Ino> {
    let mut all = inos.clone();
    for ino in inos {
        for (parent, name) in state.names_of(*ino).unwrap_or_default() {
            let Ok(database) = Name::new(database_of(name.as_bytes())) else {
                continue;
            };
            for member in journals_of(&database).chain([database.clone()]) {
                all.extend(state.lookup(parent, &member).ok().flatten());
            }
        }
    }
    all
}

/// Whether a file with a name of its journal is beside a database.
fn has_journal(state: &mut IndexWriter, ino: Ino) -> Result<bool> {
    for (parent, name) in state.names_of(ino)? {
        for journal in journals_of(&name) {
            if state.lookup(parent, &journal)?.is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
