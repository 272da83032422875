//! Taking the backend's directories into the index, when they are first visited and by a walk in the background.
//!
//! A directory's rows come in several transactions, and the flag that says it is listed in the last. A crash before that leaves
//! rows that the next import finds by name and keeps; nobody is shown the directory before the flag is set.

use std::collections::HashSet;

use parking_lot::{Condvar, Mutex};

use super::described::{Described, Found, Told};
use super::{Ctx, Fs, FsError, Result};
use crate::backend::Entry;
use crate::base::{FileKind, Ino, Name};
use crate::index::{Flags, Inode, PlacedEntry, State};
use crate::rules::layout;
use crate::rules::plan::NameKey;
use crate::rules::steps::PlainKind;

/// Entries taken in under one hold of the index lock.
const CHUNK: usize = 256;

/// The directories that are being imported right now.
#[derive(Default)]
pub(super) struct Importing {
    dirs: Mutex<HashSet<Ino>>,
    done: Condvar,
}

/// Takes the directory off the list again, however the import ends.
struct Claim<'a>(&'a Importing, Ino);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.dirs.lock().remove(&self.1);
        self.0.done.notify_all();
    }
}

impl Importing {
    /// Claims the directory, waiting for whoever has it; he in turn waits for the backend in bounded time.
    fn claim(&self, dir: Ino) -> Claim<'_> {
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
        let (mut entries, told) = match path {
            Some(_) => self.read_backend_dir(dir)?,
            None => Default::default(), // The backend does not have it, so all there is is here.
        };
        let in_root = dir == Ino::ROOT;
        // Who gets which name is to depend neither on the backend's order nor on where an earlier import was cut off.
        entries.sort_by_cached_key(|entry| {
            let exact = told.of(&entry.name, entry.meta.kind);
            let exact = exact.is_some_and(|told| told.it.name.is_some());
            let foreign = self.rules.decode(&entry.name, in_root).is_none();
            (!exact, foreign, entry.name.clone())
        });
        for chunk in entries.chunks(CHUNK) {
            let mut state = self.index.lock();
            for entry in chunk {
                self.import_entry(&mut state, dir, entry, &told)?;
            }
            state.commit()?;
        }
        let specials: Vec<_> = told.specials().collect();
        for chunk in specials.chunks(CHUNK) {
            let mut state = self.index.lock();
            for (name, described) in chunk {
                self.import_special(&mut state, dir, name, described, &told)?;
            }
            state.commit()?;
        }
        let mut state = self.index.lock();
        self.count_links(&mut state, dir, &told)?;
        if dir == Ino::ROOT {
            self.believe_of_root(&mut state, &told)?;
        }
        let mut inode = self.known(&mut state, dir)?;
        let subdirs = entries
            .iter()
            .filter(|e| e.meta.kind == FileKind::Directory && !is_own(dir, e))
            .count();
        inode.nlink = 2 + subdirs as u32;
        inode.flags.set(Flags::LISTED);
        state.put_inode(inode);
        state.commit()?;
        Ok(())
    }

    /// What stands in a directory of the backend, and what the catalog says of it, both of the same moment.
    fn read_backend_dir(&self, dir: Ino) -> Result<(Vec<Entry>, Told)> {
        let backend = self.drive.get().ok_or(FsError::Detached)?;
        let _names = self
            .drive
            .hold_names(self.io_timeout)
            .ok_or(FsError::Errno(libc::ETIMEDOUT))?;
        let path = self.index.lock().backend_path(dir)?.ok_or(FsError::STALE)?;
        let entries = backend
            .read_dir(&path)
            .map_err(|error| self.note_backend_error(error))?;
        Ok((entries, self.told_in(&path)?))
    }

    fn import_entry(&self, state: &mut State, dir: Ino, entry: &Entry, told: &Told) -> Result<()> {
        if is_own(dir, entry)
            || state.placed(dir, &entry.name)?.is_some()
            || state.lookup_stored(dir, &entry.name)?.is_some()
        {
            return Ok(());
        }
        let meta = &entry.meta;
        let described = told.of(&entry.name, meta.kind);
        let links = match described {
            Some(it) => self.one_of_links(state, it, Some(Found::new(meta)))?,
            None => None,
        };
        let ino = match links {
            Some(ino) => ino,
            None => self.import_inode(state, entry, described, told)?,
        };
        let kind = match meta.kind {
            FileKind::Directory => PlainKind::Directory,
            _ => PlainKind::File,
        };
        let key = NameKey {
            parent: dir,
            name: entry.name.clone(),
        };
        let placed = PlacedEntry {
            ino,
            kind,
            size: meta.size,
            mtime: meta.modified,
            hash: None,
        };
        state.put_placed(&key, Some(&placed))?;
        let exact = described.and_then(|told| told.it.name.as_ref());
        let name = state.mount_name_for(dir, &entry.name, exact)?;
        Ok(state.add_clean_name(dir, &name, &entry.name, ino)?)
    }

    /// Makes the inode of what was found, as it is described.
    fn import_inode(
        &self,
        state: &mut State,
        entry: &Entry,
        described: Option<&Described>,
        told: &Told,
    ) -> Result<Ino> {
        let meta = &entry.meta;
        let permissions = match (self.capabilities.permissions, meta.kind) {
            (true, _) => meta.permissions & 0o7777,
            (false, FileKind::Directory) => 0o755,
            (false, _) => 0o644,
        };
        let mode = meta.kind.mode_bits() | permissions;
        let mut inode = Inode::new(
            state.new_ino()?,
            mode,
            self.owner.0,
            self.owner.1,
            meta.modified,
        );
        inode.flags.set(Flags::ON_BACKEND);
        inode.size = meta.size;
        inode.blocks = meta.size.div_ceil(512);
        inode.target = meta.target.clone().map(Vec::into_boxed_slice);
        if let Some(it) = described {
            self.believe(state, &mut inode, it, Some(Found::new(meta)))?;
            let path = told.path(&entry.name);
            self.first_of_links(state, &mut inode, it, Some(Found::new(meta)), &path)?;
        }
        let ino = inode.ino;
        state.put_inode(inode);
        Ok(ino)
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
            Some(dir) => self
                .import_dir(dir)
                .map(|()| Some(dir))
                .map_err(|error| (dir, error)),
            None => Ok(None),
        }
    }
}

/// Whether this is ferryfs' own directory at the root of the backend.
fn is_own(dir: Ino, entry: &Entry) -> bool {
    dir == Ino::ROOT && layout::is_reserved(&crate::base::RelPath::root().join(&entry.name))
}
