//! The scan before any conclusion: the directories that differ, the contents of missing
//! directories, and the contents of new directories that may be the missing ones. It changes
//! nothing.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::core::{
    ContentHash, Entry, FileKind, ForeignText, Ino, MAX_DEPTH, Metadata, Name, RelPath,
};
use crate::drive::Backend;
use crate::external::compare::{Compared, own_dir};
use crate::external::{HASH_BUDGET, HASH_LIMIT};
use crate::format::steps::PlainKind;
use crate::index::PlacedEntry;
use crate::plan::merge::{Shift, Trace, pair, shift_of};
use crate::plan::planner::NameKey;
use crate::vfs::drive_files::note_backend_error;
use crate::vfs::{Fs, FsError, Result};

/// Number of new directories that are listed at once to find moved entries; others are listed when
/// they are visited.
const LOOKED_INTO: usize = 512;

/// The directory of a found entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// A directory in the index.
    Indexed(Ino),
    /// A new directory, by its position among the new entries.
    Appeared(usize),
}

/// A new entry.
#[derive(Debug)]
pub(super) struct Appeared {
    pub(super) parent: Parent,
    pub(super) entry: Entry,
    pub(super) path: RelPath,
    /// A directory whose entries are all in the list, too.
    pub(super) listed: bool,
    /// The entry has been handled.
    pub(super) done: bool,
}

/// A file that changed without a change of its name.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) key: NameKey,
    pub(super) was: PlacedEntry,
    pub(super) meta: Metadata,
    pub(super) path: RelPath,
    /// Only the time differs.
    pub(super) touched: bool,
    /// Apparent shift of the times of all files in the directory.
    shift: Option<Shift>,
    /// The shift is proven: the drive's clock is read in another time zone, and the file is
    /// unchanged.
    pub(super) shifted: bool,
}

/// An entry with a new name.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) from: NameKey,
    pub(super) was: PlacedEntry,
    pub(super) parent: Parent,
    pub(super) entry: Entry,
    /// Its position among the new entries; `None` if only the spelling changed.
    pub(super) appeared: Option<usize>,
    /// The bytes are known to be unchanged.
    pub(super) certain: bool,
}

/// The result of a scan.
#[derive(Debug, Default)]
pub(super) struct Differences {
    pub(super) dirs_moved: Vec<Moved>,
    pub(super) files_moved: Vec<Moved>,
    /// With the order of discovery: a directory before its contents.
    pub(super) vanished: BTreeMap<NameKey, (usize, PlacedEntry)>,
    pub(super) changed: Vec<Changed>,
    /// A directory before its contents.
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

/// A scan in progress.
pub(super) struct Gatherer<'a> {
    fs: &'a Fs,
    backend: &'a dyn Backend,
    found: Differences,
    order: usize,
    seen: HashSet<Ino>,
    /// With a flag to compare all subdirectories too: the contents of a moved directory are not
    /// compared yet.
    queue: VecDeque<(Ino, RelPath, bool)>,
    /// Missing directories, by the names of their entries.
    by_content: HashMap<Name, Vec<NameKey>>,
    /// Bytes that may still be read to prove a shift of the clock.
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

    /// Applies a shift proven for one directory to all of them.
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

    /// Returns the apparent shift of the clock in a directory. The bytes of one of its files prove
    /// or disprove it, if their hash is known.
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

    /// Lists a directory. Returns `None`, and reports the directory, if it cannot be read although
    /// the backend is attached.
    fn list(&mut self, path: &RelPath) -> Result<Option<Vec<Entry>>> {
        let error = match self.backend.read_dir(path) {
            Ok(entries) => return Ok(Some(entries)),
            Err(error) => error,
        };
        // Removed at this moment: the scan of the parent finds that.
        let is_absent =
            error.is_not_found() || error.source.kind() == std::io::ErrorKind::NotADirectory;
        if is_absent && !path.is_root() {
            return Ok(None);
        }
        let is_there = || self.backend.check_alive(crate::drive::Look::Read).is_ok();
        if path.is_root() || error.is_stalled() || (error.is_gone() && !is_there()) {
            return Err(note_backend_error(error));
        }
        tracing::warn!(%path, %error, "a directory of the backend cannot be read; it is left as it is");
        let reason = match error.is_not_mounted() {
            true => "the file system that was mounted there is not mounted".into(),
            false => error.source.to_string(),
        };
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
            if was.kind == PlainKind::Directory && self.is_not_mounted(&path.join(&name)) {
                continue;
            }
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
                parent: Parent::Indexed(dir),
                appeared: None,
                certain: true,
                entry,
                was,
            };
            self.note_moved(moved, path)?;
        }
        for entry in compared.appeared {
            self.appear(Parent::Indexed(dir), path, entry);
        }
        Ok(())
    }

    /// Returns whether the directory at `path` was a mount point, or held one, and its file system
    /// is not there: some programs remove the directory when they unmount.
    fn is_not_mounted(&self, path: &RelPath) -> bool {
        let looked = self.backend.metadata(path);
        looked.is_err_and(|error| error.is_not_mounted())
    }

    fn note_moved(&mut self, moved: Moved, dir: &RelPath) -> Result<()> {
        if moved.was.kind == PlainKind::File {
            self.found.files_moved.push(moved);
            return Ok(());
        }
        // Changes inside are found as in any other directory, under the new path.
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

    /// Records a missing entry, and all entries below it.
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

    /// Lists a new directory if entries may have moved there, or if it may be a missing one.
    fn look_into(&mut self, at: usize) -> Result<bool> {
        let Appeared {
            parent,
            entry,
            path,
            ..
        } = &self.found.appeared[at];
        // As in an import, a directory deeper than the mount allows is not entered.
        if entry.meta.kind != FileKind::Directory || path.depth() > MAX_DEPTH {
            return Ok(false);
        }
        let (parent, entry, path) = (*parent, entry.clone(), path.clone());
        if let Some(own) = self.made_here(parent, &entry.name)? {
            // Both sides have created the directory. Its contents on the backend are compared with
            // those in the mount.
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
        let Parent::Indexed(dir) = parent else {
            return Ok(None);
        };
        let mut state = self.fs.index.lock();
        let key = NameKey {
            parent: dir,
            name: name.clone(),
        };
        own_dir(&mut state, &key)
    }

    /// Returns the missing directory with the most names in common with `entries`, if they are at
    /// least half of its entries.
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

    /// Removes a directory and its contents from the missing entries.
    fn forget_vanished(&mut self, key: &NameKey) {
        let mut open = vec![key.clone()];
        while let Some(key) = open.pop() {
            if let Some((_, was)) = self.found.vanished.remove(&key)
                && was.kind == PlainKind::Directory
            {
                // Keys are sorted by their directories.
                let all = self.found.vanished.range(first_in(was.ino)..);
                let below = all
                    .map(|(key, _)| key)
                    .take_while(|key| key.parent == was.ino);
                open.extend(below.cloned());
            }
        }
    }

    /// Finds files that were only moved.
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

/// Returns a lower bound of the keys in `parent`.
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

/// Returns the hash of a file on the backend.
pub(super) fn hash_of(
    backend: &dyn Backend,
    path: &RelPath,
) -> std::result::Result<ContentHash, crate::drive::BackendError> {
    let file = backend.open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    let mut at = 0;
    loop {
        let got = file
            .read_at(&mut buffer, at)
            .map_err(|source| crate::drive::BackendError::new("read", path, source))?;
        if got == 0 {
            return Ok(ContentHash(*hasher.finalize().as_bytes()));
        }
        hasher.update(&buffer[..got]);
        at += got as u64;
    }
}
