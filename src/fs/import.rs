//! Taking the backend's directories into the index, when they are first visited and by a walk in the background.
//!
//! A directory's rows come in several transactions, and the flag that says it is listed in the last. A crash before that leaves
//! rows that the next import finds by name and keeps; nobody is shown the directory before the flag is set.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use parking_lot::{Condvar, Mutex};

mod attributes;

use super::described::{Described, Found, Told};
use super::{Ctx, Fs, FsError, Result};
use crate::backend::Entry;
use crate::base::{FileKind, Ino, Name, RelPath};
use crate::index::{Flags, Inode, PlacedEntry, State};
use crate::rules::hidden;
use crate::rules::layout;
use crate::rules::plan::NameKey;
use crate::rules::steps::PlainKind;
use attributes::{Linked, Listed};

/// Entries taken in under one hold of the index lock.
const CHUNK: usize = 256;

/// How deep directories are followed: deeper than any path that can be spelled in one call.
const MAX_DEPTH: usize = 2100;

/// Over how many levels a tree may repeat itself that is still seen to.
const LONGEST_PERIOD: usize = 8;

/// The directories that are being imported right now.
#[derive(Default)]
pub(super) struct Importing {
    dirs: Mutex<HashSet<Ino>>,
    done: Condvar,
    linked: Linked,
}

/// Takes the directory off the list again, however the import ends.
pub(super) struct Claim<'a>(&'a Importing, Ino);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.dirs.lock().remove(&self.1);
        self.0.done.notify_all();
    }
}

impl Importing {
    /// Claims the directory, waiting for whoever has it; he in turn waits for the backend in bounded time.
    pub(super) fn claim(&self, dir: Ino) -> Claim<'_> {
        let mut dirs = self.dirs.lock();
        while !dirs.insert(dir) {
            self.done.wait(&mut dirs);
        }
        Claim(self, dir)
    }
}

impl Fs {
    /// Sees to it that all entries of `dir` are in the index.
    pub(super) fn ensure_listed(&self, ctx: &Ctx, dir: Ino) -> Result<()> {
        let inode = self.known(&mut self.index.lock(), dir)?;
        if !inode.is_dir() || inode.flags.has(Flags::LISTED) {
            return Ok(());
        }
        if !self.drive.is_attached() {
            return Err(FsError::Detached);
        }
        ctx.wait()?;
        self.import_dir(dir)
    }

    /// Takes the entries of `dir` into the index, if they are not yet. To be called where waiting for the backend is allowed.
    ///
    /// # Errors
    /// If the backend cannot be read.
    pub fn import_dir(&self, dir: Ino) -> Result<()> {
        let _claim = self.importing.claim(dir);
        let path = {
            let mut state = self.index.lock();
            if self.known(&mut state, dir)?.flags.has(Flags::LISTED) {
                return Ok(());
            }
            state.backend_path(dir)?
        };
        let mut listed = match path {
            Some(path) => self.read_sound_dir(dir, &path)?,
            None => Listed::default(), // The backend does not have it, so all there is is here.
        };
        let in_root = dir == Ino::ROOT;
        // Who gets which name is to depend neither on the backend's order nor on where an earlier import was cut off.
        let Listed { entries, told, .. } = &mut listed;
        entries.sort_by_cached_key(|entry| {
            let exact = told.of(&entry.name, entry.meta.kind);
            let exact = exact.is_some_and(|told| told.it.name.is_some());
            let foreign = self.rules.decode(&entry.name, in_root).is_none();
            (!exact, foreign, entry.name.clone())
        });
        let entries = &listed.entries;
        for chunk in entries.chunks(CHUNK) {
            let mut state = self.index.lock();
            // Meanwhile it may have been found to be gone.
            self.known_dir(&mut state, dir)?;
            for entry in chunk {
                self.import_entry(&mut state, dir, entry, &listed)?;
            }
            state.commit()?;
            drop(state);
            // Whoever waits for the index comes first.
            std::thread::yield_now();
        }
        let specials: Vec<_> = listed.told.specials().collect();
        for chunk in specials.chunks(CHUNK) {
            let mut state = self.index.lock();
            for (name, described) in chunk {
                self.import_special(&mut state, dir, name, described, &listed.told)?;
            }
            state.commit()?;
        }
        let mut state = self.index.lock();
        self.count_links(&mut state, dir, &listed.told)?;
        if let Some((meta, xattrs)) = &listed.root {
            state.take_root(meta, xattrs)?;
        }
        if dir == Ino::ROOT {
            self.believe_of_root(&mut state, &listed.told)?;
        }
        let counted = self.progress.counted().and(entries.len());
        state.set_meta(super::progress::IMPORTED, &counted.text())?;
        let mut inode = self.known(&mut state, dir)?;
        let subdirs = entries
            .iter()
            .filter(|e| e.meta.kind == FileKind::Directory && !is_own(dir, e))
            .count();
        inode.nlink = 2 + subdirs as u32;
        inode.flags.set(Flags::LISTED);
        state.put_inode(inode);
        state.commit()?;
        self.progress.done(dir, counted);
        Ok(())
    }

    /// The entries of `dir`, which the backend has at `path`, that are to be shown.
    ///
    /// A damaged drive may have a directory that contains itself, and to follow it would fill the SSD: ELOOP.
    fn read_sound_dir(&self, dir: Ino, path: &RelPath) -> Result<Listed> {
        if path.depth() > MAX_DEPTH {
            return Err(FsError::Errno(libc::ELOOP));
        }
        let mut listed = self.read_backend_dir(dir)?;
        if self.repeats(dir, &listed.entries)? {
            return Err(FsError::Errno(libc::ELOOP));
        }
        listed.entries.retain(|entry| !self.is_hidden(dir, entry));
        Ok(listed)
    }

    /// Whether `entries`, those of `dir`, are those of one of its ancestors, and of another one the same distance further up: the
    /// same names, kinds, sizes and times. Nobody makes that by hand, as the innermost copy of a tree lacks the copy; but a chain of
    /// directories with nothing else in them may look like it, and is let be: it grows no faster than it is followed.
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

    /// Whether this is for another system, and not to be shown.
    pub(super) fn is_hidden(&self, dir: Ino, entry: &Entry) -> bool {
        if dir != Ino::ROOT || self.shows_system.load(Ordering::Acquire) {
            return false;
        }
        let name = entry.name.as_bytes();
        if hidden::is_lost_found(name) {
            return self.capabilities.permissions && entry.meta.permissions == 0o700;
        }
        hidden::is_system_name(name)
    }

    /// What stands in a directory of the backend, and what the catalog says of it, both of the same moment.
    fn read_backend_dir(&self, dir: Ino) -> Result<Listed> {
        let backend = self.drive.get().ok_or(FsError::Detached)?;
        let (_names, path) =
            self.settled_path(dir, |touched, path| touched.concerns_inside(path))?;
        let mut listed = Listed::read(&*backend, &path, &self.capabilities)
            .map_err(|error| self.note_backend_error(error))?;
        listed.told = self.told_in(&path)?;
        Ok(listed)
    }

    /// Takes in one entry of `dir` that has appeared there.
    pub(super) fn import_found(&self, state: &mut State, dir: Ino, entry: &Entry) -> Result<()> {
        let mut listed = Listed::default();
        if let Some(path) = state.backend_path(dir)?
            && let Some(it) = state.description(&path.join(&entry.name))?
        {
            let is_strangers = state.catalog_is_strangers()?;
            listed.told = Told::of_one(path, &entry.name, it, is_strangers);
        }
        self.import_entry(state, dir, entry, &listed)
    }

    fn import_entry(
        &self,
        state: &mut State,
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
        let described = listed.told.of(&entry.name, meta.kind);
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
                    self.believe(state, &mut inode, it, Some(Found::new(meta)))?;
                    let path = listed.told.path(&entry.name);
                    self.first_of_links(state, &mut inode, it, Some(Found::new(meta)), &path)?;
                }
                self.importing.linked.note(meta, inode.ino);
                state.put_inode(inode);
                placed
            }
        };
        state.put_placed(&key, Some(&placed))?;
        let exact = described.and_then(|told| told.it.name.as_ref());
        let name = state.mount_name_for(dir, &entry.name, exact)?;
        Ok(state.add_clean_name(dir, &name, &entry.name, placed.ino)?)
    }

    /// A new inode for what was found on the backend, and what the backend has of it.
    pub(super) fn found_inode(
        &self,
        state: &mut State,
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

    /// Takes in what stands in the catalog only, unless the drive has something there that it should not.
    pub(super) fn import_special(
        &self,
        state: &mut State,
        dir: Ino,
        stored: &Name,
        described: &Described,
        told: &Told,
    ) -> Result<()> {
        if state.placed(dir, stored)?.is_some() || state.lookup_stored(dir, stored)?.is_some() {
            return Ok(());
        }
        let ino = match self.one_of_links(state, described, None)? {
            Some(ino) => ino,
            None => {
                let mut inode = self.special_inode(state, described)?;
                let path = told.path(stored);
                self.first_of_links(state, &mut inode, described, None, &path)?;
                let ino = inode.ino;
                state.put_inode(inode);
                ino
            }
        };
        let name = state.mount_name_for(dir, stored, described.it.name.as_ref())?;
        Ok(state.add_clean_name(dir, &name, stored, ino)?)
    }

    /// Whether something on the backend is none of the mount's business.
    pub(super) fn is_left_out(&self, dir: Ino, entry: &Entry) -> bool {
        is_own(dir, entry) || self.is_hidden(dir, entry)
    }

    /// Imports the next directory after `after` that is not listed. Gives its number; `None` when there are no more.
    ///
    /// # Errors
    /// As [`Fs::import_dir`]; the walk may go on after the directory that failed.
    pub fn import_next(&self, after: Ino) -> std::result::Result<Option<Ino>, (Ino, FsError)> {
        let next = self
            .index
            .lock()
            .an_unlisted_dir(after)
            .map_err(|error| (after, error.into()))?;
        match next {
            Some(dir) => self.import_dir(dir).map(|()| Some(dir)).map_err(|error| {
                if self.drive.is_attached() {
                    self.note_unreadable(dir, &error);
                }
                (dir, error)
            }),
            None => Ok(None),
        }
    }
}

/// What the backend has under the name of an entry that is one of `ino`.
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

/// Whether `entries` are what was found in the directory `dir` before. Ends at the first that is not.
fn same_as_placed(state: &mut State, dir: Ino, entries: &[Entry]) -> Result<bool> {
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

/// Whether this is ferryfs' own directory at the root of the backend.
fn is_own(dir: Ino, entry: &Entry) -> bool {
    let is_reserved = || layout::is_reserved(&RelPath::root().join(&entry.name));
    layout::is_near_name(&entry.name) || (dir == Ino::ROOT && is_reserved())
}
