//! All that has to be seen before anything is concluded: the directories that differ, what is below directories that are gone,
//! and what is in directories that have appeared and may be them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::super::{Fs, FsError, Result};
use super::compare::{Compared, own_dir};
use super::{HASH_BUDGET, HASH_LIMIT};
use crate::backend::{Backend, Entry, Metadata};
use crate::base::{ContentHash, FileKind, ForeignText, Ino, MAX_DEPTH, Name, RelPath};
use crate::index::PlacedEntry;
use crate::rules::merge::{Shift, Trace, pair, shift_of};
use crate::rules::plan::NameKey;
use crate::rules::steps::PlainKind;

/// Directories that have appeared and are looked into at once, to find what has moved there; others when they are visited.
const LOOKED_INTO: usize = 512;

/// The directory that something was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// One that the index knows.
    Known(Ino),
    /// One that has appeared, by its position among those.
    Appeared(usize),
}

/// Something that is not known.
#[derive(Debug)]
pub(super) struct Appeared {
    pub(super) parent: Parent,
    pub(super) entry: Entry,
    pub(super) path: RelPath,
    /// A directory all of whose entries are here, too.
    pub(super) listed: bool,
    /// It has been taken in.
    pub(super) done: bool,
}

/// A file that stands where it stood, and is not what it was.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) key: NameKey,
    pub(super) was: PlacedEntry,
    pub(super) meta: Metadata,
    pub(super) path: RelPath,
    /// Only its time differs.
    pub(super) touched: bool,
    /// By how much all files in its directory seem to be older or younger than they were.
    shift: Option<Shift>,
    /// That is because the drive's clock is read in another zone: nobody has touched it.
    pub(super) shifted: bool,
}

/// Something that was under one name and is under another.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) from: NameKey,
    pub(super) was: PlacedEntry,
    pub(super) parent: Parent,
    pub(super) entry: Entry,
    /// Its position among what has appeared, unless it was only spelled anew.
    pub(super) appeared: Option<usize>,
    /// The bytes are those that it had.
    pub(super) certain: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Differences {
    pub(super) dirs_moved: Vec<Moved>,
    pub(super) files_moved: Vec<Moved>,
    /// With the order in which they were found: a directory before what was in it.
    pub(super) vanished: BTreeMap<NameKey, (usize, PlacedEntry)>,
    pub(super) changed: Vec<Changed>,
    /// A directory before what is in it.
    pub(super) appeared: Vec<Appeared>,
    pub(super) skipped: Vec<(String, String)>,
}

impl Differences {
    pub(super) fn vanished_children_first(&self) -> Vec<(NameKey, PlacedEntry)> {
        let mut all: Vec<_> = self.vanished.iter().collect();
        all.sort_by_key(|(_, (order, _))| std::cmp::Reverse(*order));
        all.into_iter()
            .map(|(key, (_, was))| (key.clone(), was.clone()))
            .collect()
    }
}

/// Lists and compares, and changes nothing.
pub(super) struct Gatherer<'a> {
    fs: &'a Fs,
    backend: &'a dyn Backend,
    found: Differences,
    order: usize,
    seen: HashSet<Ino>,
    /// Whether all that is below is to be compared, too: nobody has looked into what was moved.
    queue: VecDeque<(Ino, RelPath, bool)>,
    /// Directories that have vanished, by the names in them.
    by_content: HashMap<Name, Vec<NameKey>>,
    /// Bytes that may still be read to prove that the clock was shifted.
    proof_budget: u64,
}

impl<'a> Gatherer<'a> {
    pub(super) fn new(fs: &'a Fs, backend: &'a dyn Backend) -> Gatherer<'a> {
        Gatherer {
            fs,
            backend,
            found: Differences::default(),
            order: 0,
            seen: HashSet::new(),
            queue: VecDeque::new(),
            by_content: HashMap::new(),
            proof_budget: HASH_BUDGET,
        }
    }

    pub(super) fn gather(mut self, dirs: &[Ino]) -> Result<Differences> {
        for dir in dirs {
            let path = self.fs.index.lock().backend_path(*dir)?;
            if let Some(path) = path {
                self.queue.push_back((*dir, path, false));
            }
        }
        self.compare_queued()?;
        let mut at = 0;
        let mut looked_into = 0;
        while at < self.found.appeared.len() {
            if looked_into < LOOKED_INTO && self.look_into(at)? {
                looked_into += 1;
            }
            self.compare_queued()?;
            at += 1;
        }
        self.pair_files();
        self.note_shifted();
        Ok(self.found)
    }

    /// A clock that was shifted for one directory was shifted for all of them.
    fn note_shifted(&mut self) {
        let proven: HashSet<i64> = (self.found.changed.iter())
            .filter_map(|changed| changed.shift)
            .filter_map(|shift| shift.proven.then_some(shift.by))
            .collect();
        for changed in &mut self.found.changed {
            let shift = changed.shift.filter(|_| changed.touched);
            changed.shifted = shift.is_some_and(|shift| proven.contains(&shift.by));
        }
    }

    /// By how much the clock seems to have been shifted for a directory. The bytes of one of its files prove or disprove that, if
    /// they are known.
    fn shift_in(&mut self, path: &RelPath, compared: &Compared) -> Option<Shift> {
        let granularity = self.fs.capabilities.time_granularity_ns;
        let mut shift = shift_of(&compared.times, granularity)?;
        let mut known: Vec<_> = (compared.changed.iter())
            .filter(|(_, was, _, touched)| *touched && was.hash.is_some())
            .filter(|(_, was, _, _)| (1..=HASH_LIMIT).contains(&was.size))
            .collect();
        known.sort_by_key(|(_, was, _, _)| was.size);
        let Some((name, was, _, _)) = known.first() else {
            return Some(shift);
        };
        if was.size <= self.proof_budget {
            self.proof_budget -= was.size;
            match hash_of(self.backend, &path.join(name)) {
                Ok(found) if Some(found) == was.hash => shift.proven = true,
                Ok(_) => return None,
                Err(_) => {}
            }
        }
        Some(shift)
    }

    fn compare_queued(&mut self) -> Result<()> {
        while let Some((dir, path, below)) = self.queue.pop_front() {
            if !self.seen.contains(&dir)
                && let Some(entries) = self.list(&path)?
            {
                self.seen.insert(dir);
                self.compare(dir, &path, entries, below)?;
            }
        }
        Ok(())
    }

    /// What stands in a directory; `None`, with a note, if it cannot be read although the backend is there.
    fn list(&mut self, path: &RelPath) -> Result<Option<Vec<Entry>>> {
        let error = match self.backend.read_dir(path) {
            Ok(entries) => return Ok(Some(entries)),
            Err(error) => error,
        };
        // Gone in this moment: whoever lists what it stood in finds that out.
        let is_absent =
            error.is_not_found() || error.source.kind() == std::io::ErrorKind::NotADirectory;
        if is_absent && !path.is_root() {
            return Ok(None);
        }
        let is_there = || self.backend.check_alive(crate::backend::Look::Read).is_ok();
        if path.is_root() || error.is_stalled() || (error.is_gone() && !is_there()) {
            return Err(self.fs.note_backend_error(error));
        }
        tracing::warn!(%path, %error, "a directory of the backend cannot be read; it is left as it is");
        let reason = error.source.to_string();
        self.found.skipped.push((path.to_text(), reason));
        Ok(None)
    }

    fn compare(
        &mut self,
        dir: Ino,
        path: &RelPath,
        entries: Vec<Entry>,
        below: bool,
    ) -> Result<()> {
        let compared = self.fs.compare_listing(dir, entries)?;
        let shift = self.shift_in(path, &compared);
        for (name, ino) in compared.dirs {
            if below && self.fs.is_listed(ino)? {
                self.queue.push_back((ino, path.join(&name), true));
            }
        }
        let key = |name: Name| NameKey { parent: dir, name };
        for (name, was) in compared.vanished {
            self.vanish(key(name), was)?;
        }
        for (name, was, meta, touched) in compared.changed {
            self.found.changed.push(Changed {
                path: path.join(&name),
                key: key(name),
                was,
                meta,
                touched,
                shift,
                shifted: false,
            });
        }
        for (name, was, entry) in compared.respelled {
            let moved = Moved {
                from: key(name),
                parent: Parent::Known(dir),
                appeared: None,
                certain: true,
                entry,
                was,
            };
            self.note_moved(moved, path)?;
        }
        for entry in compared.appeared {
            self.appear(Parent::Known(dir), path, entry);
        }
        Ok(())
    }

    fn note_moved(&mut self, moved: Moved, dir: &RelPath) -> Result<()> {
        if moved.was.kind == PlainKind::File {
            self.found.files_moved.push(moved);
            return Ok(());
        }
        // What has changed in it is found as in any other directory, under its new path.
        if self.fs.is_listed(moved.was.ino)? {
            let path = dir.join(&moved.entry.name);
            self.queue.push_back((moved.was.ino, path, true));
        }
        self.found.dirs_moved.push(moved);
        Ok(())
    }

    fn appear(&mut self, parent: Parent, dir: &RelPath, entry: Entry) {
        self.found.appeared.push(Appeared {
            path: dir.join(&entry.name),
            parent,
            entry,
            listed: false,
            done: false,
        });
    }

    /// Notes what is gone, and with a directory all that was in it.
    fn vanish(&mut self, key: NameKey, was: PlacedEntry) -> Result<()> {
        let mut open = vec![(key, was)];
        while let Some((key, was)) = open.pop() {
            if was.kind == PlainKind::Directory {
                for (name, below) in self.fs.index.lock().placed_in(was.ino)? {
                    let dirs = self.by_content.entry(name.clone()).or_default();
                    dirs.push(key.clone());
                    let parent = was.ino;
                    open.push((NameKey { parent, name }, below));
                }
            }
            self.order += 1;
            self.found.vanished.insert(key, (self.order, was));
        }
        Ok(())
    }

    /// Looks into a directory that has appeared, if something may have moved there: it may be one that has vanished.
    fn look_into(&mut self, at: usize) -> Result<bool> {
        let Appeared {
            parent,
            entry,
            path,
            ..
        } = &self.found.appeared[at];
        // What is deeper than directories of the mount can be is not entered, as when it is imported.
        if entry.meta.kind != FileKind::Directory || path.depth() > MAX_DEPTH {
            return Ok(false);
        }
        let (parent, entry, path) = (*parent, entry.clone(), path.clone());
        if let Some(own) = self.made_here(parent, &entry.name)? {
            // Both sides have made it. What is in it there is compared with what the mount has in its own.
            self.queue.push_back((own, path, true));
            return Ok(true);
        }
        if self.found.vanished.is_empty() {
            return Ok(false);
        }
        let Some(entries) = self.list(&path)? else {
            return Ok(true);
        };
        if let Some((from, was)) = self.recognize(&entries)? {
            self.forget_vanished(&from);
            self.found.appeared[at].done = true;
            let (dir, _) = path.split_last().ok_or(FsError::INVALID)?;
            let moved = Moved {
                appeared: None,
                certain: true,
                from,
                was,
                parent,
                entry,
            };
            self.note_moved(moved, &dir)?;
            return Ok(true);
        }
        self.found.appeared[at].listed = true;
        for entry in entries {
            self.appear(Parent::Appeared(at), &path, entry);
        }
        Ok(true)
    }

    fn made_here(&self, parent: Parent, name: &Name) -> Result<Option<Ino>> {
        let Parent::Known(dir) = parent else {
            return Ok(None);
        };
        let mut state = self.fs.index.lock();
        let key = NameKey {
            parent: dir,
            name: name.clone(),
        };
        own_dir(&mut state, &key)
    }

    /// The vanished directory that has most names in common with `entries`, if these are half of what it had.
    fn recognize(&self, entries: &[Entry]) -> Result<Option<(NameKey, PlacedEntry)>> {
        let mut votes: BTreeMap<&NameKey, usize> = BTreeMap::new();
        for entry in entries {
            for dir in self.by_content.get(&entry.name).into_iter().flatten() {
                let Some((_, was)) = self.found.vanished.get(dir) else {
                    continue;
                };
                let key = NameKey {
                    parent: was.ino,
                    name: entry.name.clone(),
                };
                let had = self.found.vanished.get(&key).map(|(_, had)| had);
                let is_dir = entry.meta.kind == FileKind::Directory;
                let alike = had.is_some_and(|had| {
                    (had.kind == PlainKind::Directory) == is_dir
                        && (is_dir || had.size == entry.meta.size)
                });
                *votes.entry(dir).or_default() += usize::from(alike);
            }
        }
        let Some((key, votes)) = votes.into_iter().max_by_key(|(_, votes)| *votes) else {
            return Ok(None);
        };
        let Some((_, was)) = self.found.vanished.get(key) else {
            return Ok(None);
        };
        let had = self.fs.index.lock().placed_in(was.ino)?.len();
        Ok((votes > 0 && votes * 2 >= had).then(|| (key.clone(), was.clone())))
    }

    /// A directory has not vanished after all, nor what is in it.
    fn forget_vanished(&mut self, key: &NameKey) {
        let mut open = vec![key.clone()];
        while let Some(key) = open.pop() {
            if let Some((_, was)) = self.found.vanished.remove(&key)
                && was.kind == PlainKind::Directory
            {
                // Keys stand in the order of their directories.
                let all = self.found.vanished.range(first_in(was.ino)..);
                let below = all
                    .map(|(key, _)| key)
                    .take_while(|key| key.parent == was.ino);
                open.extend(below.cloned());
            }
        }
    }

    /// Finds files that have only moved.
    fn pair_files(&mut self) {
        let granularity = self.fs.capabilities.time_granularity_ns;
        let gone: Vec<(NameKey, PlacedEntry)> = (self.found.vanished.iter())
            .filter(|(_, (_, was))| was.kind == PlainKind::File)
            .map(|(key, (_, was))| (key.clone(), was.clone()))
            .collect();
        let come: Vec<usize> = (self.found.appeared.iter().enumerate())
            .filter(|(_, found)| !found.done && found.entry.meta.kind == FileKind::Regular)
            .map(|(at, _)| at)
            .collect();
        let vanished: Vec<Trace> = gone.iter().map(|(key, was)| trace(key, was)).collect();
        let appeared: Vec<Trace> = (come.iter())
            .map(|at| {
                let entry = &self.found.appeared[*at].entry;
                Trace {
                    name: entry.name.clone(),
                    size: entry.meta.size,
                    modified: entry.meta.modified.0,
                }
            })
            .collect();
        let mut budget = HASH_BUDGET;
        let mut hashes: HashMap<usize, Option<ContentHash>> = HashMap::new();
        let pairs = pair(&vanished, &appeared, granularity, |from, to| {
            let had = gone[from].1.hash?;
            let found = &self.found.appeared[come[to]];
            let hash = hashes
                .entry(to)
                .or_insert_with(|| hash_there(self.backend, found, &mut budget));
            hash.map(|hash| hash == had)
        });
        for found in pairs {
            let (from, was) = gone[found.vanished].clone();
            let at = come[found.appeared];
            self.found.files_moved.push(Moved {
                parent: self.found.appeared[at].parent,
                entry: self.found.appeared[at].entry.clone(),
                appeared: Some(at),
                certain: found.certain,
                from,
                was,
            });
        }
    }
}

/// What no name in `parent` stands before.
fn first_in(parent: Ino) -> NameKey {
    NameKey {
        parent,
        name: Name::new(&[1]).unwrap_or_else(|_| unreachable!("a single byte is a name")),
    }
}

fn trace(key: &NameKey, was: &PlacedEntry) -> Trace {
    Trace {
        name: key.name.clone(),
        size: was.size,
        modified: was.mtime.0,
    }
}

fn hash_there(backend: &dyn Backend, found: &Appeared, budget: &mut u64) -> Option<ContentHash> {
    let size = found.entry.meta.size;
    if size > HASH_LIMIT || size > *budget {
        return None;
    }
    *budget -= size;
    hash_of(backend, &found.path).ok()
}

/// The hash of a file of the backend.
pub(super) fn hash_of(
    backend: &dyn Backend,
    path: &RelPath,
) -> std::result::Result<ContentHash, crate::backend::BackendError> {
    let file = backend.open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    let mut at = 0;
    loop {
        let got = file
            .read_at(&mut buffer, at)
            .map_err(|source| crate::backend::BackendError::new("read", path, source))?;
        if got == 0 {
            return Ok(ContentHash(*hasher.finalize().as_bytes()));
        }
        hasher.update(&buffer[..got]);
        at += got as u64;
    }
}
