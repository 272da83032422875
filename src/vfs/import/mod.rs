//! Import of the backend's directories into the index, at their first visit and by a background
//! walk, with what the catalog says of their entries.
//!
//! [`Importer`] owns the list of directories that are being imported, the progress that `status`
//! reports, and the files that the backend has under several names. All of it is in memory; the
//! index has the rows, and the counts of imported directories and entries.
//!
//! Invariant: a directory is visible only if it has LISTED set, and then all its entries are in the
//! index. Failure order: the rows are committed in several transactions, and LISTED in the last
//! one. A crash before that leaves rows that the next import finds by name and keeps.
//!
//! Lock order: the list of directories being imported; names on the drive; the index. The locks of
//! the progress and of the files with several names are held for one access. The kernel's caches
//! are invalidated without a lock, or by a call that does not wait.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

mod descriptions;
pub(super) mod holes;
mod links;
mod listing;
mod progress;
mod refresh;

pub use progress::ImportProgress;

use crate::core::{Capabilities, Clock, Entry, FileKind, Ino, MAX_DEPTH, Name, RelPath};
use crate::format::layout;
use crate::format::steps::PlainKind;
use crate::index::{Flags, Index, IndexWriter, Inode, PlacedEntry};
use crate::plan::names::{NameRules, system_names};
use crate::plan::planner::NameKey;
use crate::vfs::drive_files::{DrivePaths, note_backend_error};
use crate::vfs::import::descriptions::{Described, Descriptions, Found};
use crate::vfs::import::links::count_links;
use crate::vfs::import::listing::{Linked, Listed};
use crate::vfs::import::progress::{IMPORTED, Progress};
use crate::vfs::{Ctx, FsError, FsParts, Invalidations, Result, known, known_dir};

/// Entries imported under one hold of the index lock.
const CHUNK: usize = 256;

/// Longest period, in levels, of a tree that repeats itself and is detected.
const LONGEST_PERIOD: usize = 8;

/// The import of the backend's tree.
pub(crate) struct Importer {
    index: Arc<Index>,
    clock: Arc<dyn Clock>,
    rules: NameRules,
    capabilities: Capabilities,
    /// User and group that own files found on a backend without owners.
    owner: (u32, u32),
    invalidations: Arc<Invalidations>,
    paths: DrivePaths,
    claims: Claims,
    linked: Linked,
    progress: Progress,
    /// Directories that other systems reserve on the drive are visible.
    shows_system: AtomicBool,
}

/// The directories that are being imported.
#[derive(Default)]
struct Claims {
    dirs: Mutex<HashSet<Ino>>,
    done: Condvar,
}

/// Removes the directory from the list when the import ends, with any result.
pub(crate) struct Claim<'a>(&'a Claims, Ino);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.dirs.lock().remove(&self.1);
        self.0.done.notify_all();
    }
}

impl Claims {
    fn claim(&self, dir: Ino) -> Claim<'_> {
        let mut dirs = self.dirs.lock();
        while !dirs.insert(dir) {
            self.done.wait(&mut dirs);
        }
        Claim(self, dir)
    }
}

impl Importer {
    pub(super) fn new(
        parts: &FsParts,
        paths: DrivePaths,
        invalidations: Arc<Invalidations>,
    ) -> Importer {
        Importer {
            index: parts.index.clone(),
            clock: parts.clock.clone(),
            rules: NameRules::new(&parts.capabilities),
            capabilities: parts.capabilities.clone(),
            owner: parts.owner,
            invalidations,
            paths,
            claims: Claims::default(),
            linked: Linked::default(),
            progress: Progress::default(),
            shows_system: AtomicBool::new(false),
        }
    }

    /// Takes up the counts of an earlier daemon.
    pub(super) fn recall_progress(&self) -> Result<()> {
        let imported = self.index.lock().meta(IMPORTED)?;
        self.progress.begin(imported.as_deref());
        Ok(())
    }

    /// Also imports, from now on, the directories that other systems reserve on the drive.
    pub(super) fn show_system(&self) {
        self.shows_system.store(true, Ordering::Release);
    }

    /// Claims the directory, after waiting for a thread that has it; that thread waits for the
    /// backend for a bounded time.
    pub(crate) fn claim(&self, dir: Ino) -> Claim<'_> {
        self.claims.claim(dir)
    }

    /// Ensures that all entries of `dir` are in the index.
    pub(super) fn ensure_listed(&self, ctx: &Ctx, dir: Ino) -> Result<()> {
        let inode = known(&mut self.index.lock(), dir)?;
        if !inode.is_dir() || inode.flags.has(Flags::LISTED) {
            return Ok(());
        }
        self.paths.check_attached()?;
        ctx.wait()?;
        self.import_dir(dir)
    }

    /// Imports the entries of `dir`, unless they are in the index. Called where waiting for the
    /// backend is allowed.
    ///
    /// # Errors
    /// If the backend cannot be read.
    fn import_dir(&self, dir: Ino) -> Result<()> {
        let _claim = self.claim(dir);
        let path = {
            let mut state = self.index.lock();
            if known(&mut state, dir)?.flags.has(Flags::LISTED) {
                return Ok(());
            }
            state.backend_path(dir)?
        };
        let mut listed = match path {
            Some(path) => self.read_sound_dir(dir, &path)?,
            None => Listed::default(), // Not on the backend: all entries are in the index.
        };
        let in_root = dir == Ino::ROOT;
        // The names in the mount must depend neither on the backend's order nor on the point where
        // an earlier import was interrupted.
        let Listed {
            entries,
            descriptions,
            ..
        } = &mut listed;
        entries.sort_by_cached_key(|entry| {
            let exact = descriptions.of(&entry.name, entry.meta.kind);
            let exact = exact.is_some_and(|described| described.it.name.is_some());
            let foreign = self.rules.decode(&entry.name, in_root).is_none();
            (!exact, foreign, entry.name.clone())
        });
        let entries = &listed.entries;
        for chunk in entries.chunks(CHUNK) {
            let mut state = self.index.lock();
            // The directory may have been removed meanwhile.
            known_dir(&mut state, dir)?;
            for entry in chunk {
                self.import_entry(&mut state, dir, entry, &listed)?;
            }
            state.commit()?;
            drop(state);
            // Threads that wait for the index go first.
            std::thread::yield_now();
        }
        let specials: Vec<_> = listed.descriptions.specials().collect();
        for chunk in specials.chunks(CHUNK) {
            let mut state = self.index.lock();
            for (name, described) in chunk {
                self.import_special(&mut state, dir, name, described, &listed.descriptions)?;
            }
            state.commit()?;
        }
        let mut state = self.index.lock();
        count_links(&mut state, dir, &listed.descriptions)?;
        if let Some((meta, xattrs)) = &listed.root {
            state.take_root(meta, xattrs)?;
        }
        if dir == Ino::ROOT {
            self.apply_root_description(&mut state, &listed.descriptions)?;
        }
        let counted = self.progress.counted().and(entries.len());
        state.set_meta(IMPORTED, &counted.text())?;
        let mut inode = known(&mut state, dir)?;
        let subdirs = entries
            .iter()
            .filter(|e| e.meta.kind == FileKind::Directory && !is_own(dir, e))
            .count();
        inode.nlink = u32::try_from(subdirs).map_or(u32::MAX, |count| count.saturating_add(2));
        inode.flags.set(Flags::LISTED);
        state.put_inode(inode);
        state.commit()?;
        self.progress.done(dir, counted);
        Ok(())
    }

    /// Returns the visible entries of `dir`, which the backend has at `path`.
    ///
    /// A damaged drive may have a directory that contains itself, and following it would fill the
    /// SSD: ELOOP. A directory deeper than the mount allows is not entered: ENAMETOOLONG.
    fn read_sound_dir(&self, dir: Ino, path: &RelPath) -> Result<Listed> {
        if path.depth() > MAX_DEPTH {
            return Err(FsError::Errno(libc::ENAMETOOLONG));
        }
        let mut listed = self.read_backend_dir(dir)?;
        if self.repeats(dir, &listed.entries)? {
            return Err(FsError::Errno(libc::ELOOP));
        }
        listed.entries.retain(|entry| !self.is_hidden(dir, entry));
        Ok(listed)
    }

    /// Returns whether `entries`, those of `dir`, equal the entries of one of its ancestors, and of
    /// another one the same distance further up: same names, file types, sizes and times. Copies
    /// made by users do not look like that, because the innermost copy of a tree lacks the copy. A
    /// chain of directories with no other entries may look like it and is not detected, which is
    /// harmless: it grows only as fast as it is followed.
    fn repeats(&self, dir: Ino, entries: &[Entry]) -> Result<bool> {
        if entries.len() < 2 || !entries.iter().any(|e| e.meta.kind == FileKind::Directory) {
            return Ok(false);
        }
        let mut state = self.index.lock();
        let mut above = Vec::new();
        let mut at = dir;
        while above.len() < 2 * LONGEST_PERIOD
            && let Some((key, _)) = state.a_place_of(at)?
        {
            at = key.parent;
            above.push(at);
        }
        for period in 1..=above.len() / 2 {
            if same_as_placed(&mut state, above[period - 1], entries)?
                && same_as_placed(&mut state, above[2 * period - 1], entries)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns whether an entry belongs to another system and is not visible.
    fn is_hidden(&self, dir: Ino, entry: &Entry) -> bool {
        if dir != Ino::ROOT || self.shows_system.load(Ordering::Acquire) {
            return false;
        }
        let name = entry.name.as_bytes();
        if system_names::is_lost_found(name) {
            return self.capabilities.permissions && entry.meta.permissions == 0o700;
        }
        system_names::is_system_name(name)
    }

    /// Reads a directory of the backend and its descriptions in the catalog, both as of the same
    /// moment.
    fn read_backend_dir(&self, dir: Ino) -> Result<Listed> {
        let backend = self.paths.backend()?;
        let (_names, path) = self
            .paths
            .settled(dir, |touched, path| touched.concerns_inside(path))?;
        let mut listed =
            Listed::read(&*backend, &path, &self.capabilities).map_err(note_backend_error)?;
        listed.descriptions = self.descriptions_in(&path)?;
        Ok(listed)
    }

    /// Imports one new entry of `dir`.
    pub(crate) fn import_found(
        &self,
        state: &mut IndexWriter,
        dir: Ino,
        entry: &Entry,
    ) -> Result<()> {
        let mut listed = Listed::default();
        if let Some(path) = state.backend_path(dir)?
            && let Some(it) = state.description(&path.join(&entry.name))?
        {
            let is_strangers = state.catalog_is_strangers()?;
            listed.descriptions = Descriptions::of_one(path, &entry.name, it, is_strangers);
        }
        self.import_entry(state, dir, entry, &listed)
    }

    fn import_entry(
        &self,
        state: &mut IndexWriter,
        dir: Ino,
        entry: &Entry,
        listed: &Listed,
    ) -> Result<()> {
        if self.is_left_out(dir, entry)
            || state.placed(dir, &entry.name)?.is_some()
            || state.lookup_stored(dir, &entry.name)?.is_some()
        {
            return Ok(());
        }
        if self.import_further_name(state, dir, entry)? {
            return Ok(());
        }
        let meta = &entry.meta;
        let key = NameKey {
            parent: dir,
            name: entry.name.clone(),
        };
        let described = listed.descriptions.of(&entry.name, meta.kind);
        let links = match described {
            Some(it) => self.one_of_links(state, it, Some(Found::new(meta)))?,
            None => None,
        };
        let placed = match links {
            Some(ino) => placed_as(ino, entry),
            None => {
                let (mut inode, placed) = self.found_inode(state, entry)?;
                listed.put_xattrs(state, &entry.name, &mut inode)?;
                if let Some(it) = described {
                    self.apply_description(state, &mut inode, it, Some(Found::new(meta)))?;
                    let path = listed.descriptions.path(&entry.name);
                    self.first_of_links(state, &mut inode, it, Some(Found::new(meta)), &path)?;
                }
                self.linked.note(meta, inode.ino);
                state.put_inode(inode);
                placed
            }
        };
        state.put_placed(&key, Some(&placed))?;
        let exact = described.and_then(|described| described.it.name.as_ref());
        let name = state.mount_name_for(dir, &entry.name, exact)?;
        Ok(state.add_clean_name(dir, &name, &entry.name, placed.ino)?)
    }

    /// Creates the inode of a file found on the backend, and the placed entry for it.
    pub(crate) fn found_inode(
        &self,
        state: &mut IndexWriter,
        entry: &Entry,
    ) -> Result<(Inode, PlacedEntry)> {
        let meta = &entry.meta;
        let permissions = match (self.capabilities.permissions, meta.kind) {
            (true, _) => meta.permissions & 0o7777,
            (false, FileKind::Directory) => 0o755,
            (false, _) => 0o644,
        };
        let mode = meta.kind.mode_bits() | permissions;
        let (uid, gid) = self.owner_of(meta);
        let mut inode = Inode::new(state.new_ino()?, mode, uid, gid, meta.modified);
        inode.flags.set(Flags::ON_BACKEND);
        inode.rdev = meta.rdev;
        inode.size = meta.size;
        inode.blocks = meta.size.div_ceil(512);
        inode.target = meta.target.clone().map(Vec::into_boxed_slice);
        let placed = placed_as(inode.ino, entry);
        Ok((inode, placed))
    }

    /// Imports an entry that exists only in the catalog, unless the drive unexpectedly has an entry
    /// of that name.
    fn import_special(
        &self,
        state: &mut IndexWriter,
        dir: Ino,
        stored: &Name,
        described: &Described,
        descriptions: &Descriptions,
    ) -> Result<()> {
        if state.placed(dir, stored)?.is_some() || state.lookup_stored(dir, stored)?.is_some() {
            return Ok(());
        }
        let ino = match self.one_of_links(state, described, None)? {
            Some(ino) => ino,
            None => {
                let mut inode = self.special_inode(state, described)?;
                let path = descriptions.path(stored);
                self.first_of_links(state, &mut inode, described, None, &path)?;
                let ino = inode.ino;
                state.put_inode(inode);
                ino
            }
        };
        let name = state.mount_name_for(dir, stored, described.it.name.as_ref())?;
        Ok(state.add_clean_name(dir, &name, stored, ino)?)
    }

    /// Returns whether an entry of the backend is not part of the mount.
    pub(crate) fn is_left_out(&self, dir: Ino, entry: &Entry) -> bool {
        is_own(dir, entry) || self.is_hidden(dir, entry)
    }

    /// Imports the next directory after `after` that is not listed. Returns its number, or `None`
    /// when there are no more.
    ///
    /// # Errors
    /// As [`Importer::import_dir`]; the walk may go on after the directory that failed.
    pub(super) fn import_next(
        &self,
        after: Ino,
    ) -> std::result::Result<Option<Ino>, (Ino, FsError)> {
        let next = self
            .index
            .lock()
            .an_unlisted_dir(after)
            .map_err(|error| (after, error.into()))?;
        match next {
            Some(dir) => self.import_dir(dir).map(|()| Some(dir)).map_err(|error| {
                if self.paths.is_attached() {
                    self.note_unreadable(dir, &error);
                }
                (dir, error)
            }),
            None => Ok(None),
        }
    }
}

/// Returns the placed entry of `ino` for an entry of the backend.
fn placed_as(ino: Ino, entry: &Entry) -> PlacedEntry {
    PlacedEntry {
        ino,
        kind: match entry.meta.kind {
            FileKind::Directory => PlainKind::Directory,
            _ => PlainKind::File,
        },
        size: entry.meta.size,
        mtime: entry.meta.modified,
        hash: None,
    }
}

/// Returns whether `entries` equal those found in the directory `dir` before. Stops at the first
/// that differs.
fn same_as_placed(state: &mut IndexWriter, dir: Ino, entries: &[Entry]) -> Result<bool> {
    for entry in entries.iter().filter(|entry| !is_own(dir, entry)) {
        let same = state.placed(dir, &entry.name)?.is_some_and(|placed| {
            let is_dir = entry.meta.kind == FileKind::Directory;
            (placed.kind == PlainKind::Directory) == is_dir
                && (placed.size, placed.mtime) == (entry.meta.size, entry.meta.modified)
        });
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns whether this is ferryfs' own directory at the root of the backend.
fn is_own(dir: Ino, entry: &Entry) -> bool {
    let is_reserved = || layout::is_reserved(&RelPath::root().join(&entry.name));
    layout::is_near_name(&entry.name) || (dir == Ino::ROOT && is_reserved())
}
