//! Taking the backend's directories into the index, when they are first visited and by a walk in the background.
//!
//! A directory's rows come in several transactions, and the flag that says it is listed in the last. A crash before that leaves
//! rows that the next import finds by name and keeps; nobody is shown the directory before the flag is set.

use std::collections::HashSet;

use parking_lot::{Condvar, Mutex};

mod attributes;

use super::{Ctx, Fs, FsError, Result};
use crate::backend::Entry;
use crate::base::{FileKind, Ino};
use crate::index::{Flags, Inode, PlacedEntry, State};
use crate::rules::layout;
use crate::rules::plan::NameKey;
use crate::rules::steps::PlainKind;
use attributes::{Linked, Listed};

/// Entries taken in under one hold of the index lock.
const CHUNK: usize = 256;

/// The directories that are being imported right now.
#[derive(Default)]
pub(super) struct Importing {
    dirs: Mutex<HashSet<Ino>>,
    done: Condvar,
    linked: Linked,
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
        let mut listed = match path {
            Some(_) => self.read_backend_dir(dir)?,
            None => Listed::default(), // The backend does not have it, so all there is is here.
        };
        let in_root = dir == Ino::ROOT;
        // Who gets which name is to depend neither on the backend's order nor on where an earlier import was cut off.
        listed.entries.sort_by_cached_key(|entry| {
            let foreign = self.rules.decode(&entry.name, in_root).is_none();
            (foreign, entry.name.clone())
        });
        let entries = &listed.entries;
        for chunk in entries.chunks(CHUNK) {
            let mut state = self.index.lock();
            for entry in chunk {
                self.import_entry(&mut state, dir, entry, &listed)?;
            }
            state.commit()?;
        }
        let mut state = self.index.lock();
        if let Some((meta, xattrs)) = &listed.root {
            state.take_root(meta, xattrs)?;
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

    fn read_backend_dir(&self, dir: Ino) -> Result<Listed> {
        let backend = self.drive.get().ok_or(FsError::Detached)?;
        let _names = self
            .drive
            .hold_names(self.io_timeout)
            .ok_or(FsError::Errno(libc::ETIMEDOUT))?;
        let path = self.index.lock().backend_path(dir)?.ok_or(FsError::STALE)?;
        Listed::read(&*backend, &path, &self.capabilities)
            .map_err(|error| self.note_backend_error(error))
    }

    fn import_entry(
        &self,
        state: &mut State,
        dir: Ino,
        entry: &Entry,
        listed: &Listed,
    ) -> Result<()> {
        if is_own(dir, entry)
            || state.placed(dir, &entry.name)?.is_some()
            || state.lookup_stored(dir, &entry.name)?.is_some()
        {
            return Ok(());
        }
        let meta = &entry.meta;
        if self.import_further_name(state, dir, entry)? {
            return Ok(());
        }
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
        let kind = match meta.kind {
            FileKind::Directory => PlainKind::Directory,
            _ => PlainKind::File,
        };
        let key = NameKey {
            parent: dir,
            name: entry.name.clone(),
        };
        let placed = PlacedEntry {
            ino: inode.ino,
            kind,
            size: meta.size,
            mtime: meta.modified,
            hash: None,
        };
        listed.put_xattrs(state, &entry.name, &mut inode)?;
        self.importing.linked.note(meta, inode.ino);
        state.put_inode(inode.clone());
        state.put_placed(&key, Some(&placed))?;
        let name = state.mount_name_for(dir, &entry.name, None)?;
        Ok(state.add_clean_name(dir, &name, &entry.name, inode.ino)?)
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
