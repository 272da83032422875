//! Backups of files that a batch moves, on the SSD until the batch is confirmed.
//!
//! If a rename is not atomic (exFAT), unplugging the drive can leave a file or directory that was
//! being moved under neither name: the kernel writes dirty blocks in the order in which they lie on
//! the disk, so the old entry may be removed long before the new one is written. Then the bytes
//! must be on the SSD. `<batch>.keep/` beside the journal holds them: `<slot>` for a file, and
//! `<slot>-<number>` for each file in a directory that moves, with `trees.json` to describe them.
//! Each is a hard link to the object if the cache has one, so that evicting the object loses
//! nothing, else a copy from the backend, up to a bound. The backup is made and synced before the
//! journal, and removed with it. A crash before the journal leaves a backup without a journal; it
//! is removed when the batch is given up, or at the next attach. Only in one point is it best
//! effort: if the SSD has no space, the batch goes on without a backup, because writing the batch
//! is what frees space.

mod tree;

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::apply::refused::is_local;
use crate::cache::{Store, private};
use crate::core::{BatchNo, FileKind, ForeignText, Ino, ObjectId, RelPath};
use crate::drive::{Backend, BackendError};
use crate::error::{FlushError, Result};
use crate::format::steps::SlotNo;
use crate::index::{Flags, Index};

pub(crate) use crate::apply::move_backup::tree::{Tree, TreeEntry};

/// The most bytes that are copied from the backend for one batch: half a minute of a USB disk's
/// time.
const COPY_TOTAL: u64 = 4 << 30;

/// The longest time that copying takes: many small files take a disk longer than their size
/// suggests.
const COPY_TIME: Duration = Duration::from_secs(60);

/// The copies of one batch take no more than this part of the SSD's free space.
const FREE_PART: u64 = 4;

/// Bytes copied at a time.
const BUFFER: usize = 1 << 20;

/// Returns the directory of a batch's backup.
pub(crate) fn dir(journals: &Path, batch: BatchNo) -> PathBuf {
    journals.join(format!("{:016x}.keep", batch.0))
}

/// Opens the backup of a slot's file, if there is one.
pub(crate) fn open(journals: &Path, batch: BatchNo, slot: SlotNo) -> Option<File> {
    open_kept(&dir(journals, batch).join(slot.file_name()))
}

/// Returns the backups of the directories that a batch moves.
///
/// # Errors
/// If the SSD fails, or has damaged the description.
pub(crate) fn trees(journals: &Path, batch: BatchNo) -> Result<Vec<Tree>> {
    tree::read(&dir(journals, batch))
}

/// Opens the backup of a file in the directory of `slot`, by its number in the tree.
pub(crate) fn open_in_tree(
    journals: &Path,
    batch: BatchNo,
    slot: SlotNo,
    number: usize,
) -> Option<File> {
    open_kept(&dir(journals, batch).join(tree::file_name(slot, number)))
}

fn open_kept(path: &Path) -> Option<File> {
    private::own().read(true).open(path).ok()
}

/// Removes the backup of a batch; no error if there is none.
///
/// # Errors
/// If the SSD fails.
pub(crate) fn remove(journals: &Path, batch: BatchNo) -> Result<()> {
    let dir = dir(journals, batch);
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &dir, error)),
        _ => Ok(()),
    }
}

fn failed(operation: &str, path: &Path, source: io::Error) -> FlushError {
    FlushError::Cache {
        operation: format!("{operation} {}", path.escaped()),
        source,
    }
}

/// A file that is moved: its present path, and its inode.
pub(crate) struct MovedFile<'a> {
    pub(crate) slot: SlotNo,
    pub(crate) from: &'a RelPath,
    pub(crate) ino: Ino,
    pub(crate) size: u64,
}

/// A directory that is moved: its present path, its new path, and its inode.
pub(crate) struct MovedDir<'a> {
    pub(crate) slot: SlotNo,
    pub(crate) from: &'a RelPath,
    pub(crate) to: &'a RelPath,
    pub(crate) ino: Ino,
}

/// The parts of the cache that a backup is made from and kept in.
#[derive(Clone, Copy)]
pub(crate) struct CacheSide<'a> {
    pub(crate) index: &'a Index,
    pub(crate) store: &'a Store,
    /// Directory of the journals, in which the backups are.
    pub(crate) journals: &'a Path,
}

/// What a batch moves, for [`keep`].
pub(crate) struct Moves<'a> {
    /// Files without a pinned object.
    pub(crate) files: Vec<MovedFile<'a>>,
    /// Directories that move with their contents.
    pub(crate) dirs: Vec<MovedDir<'a>>,
    /// Paths before the batch that its steps clear themselves.
    pub(crate) cleared: HashSet<&'a RelPath>,
    /// Paths after the batch at which it installs a file.
    pub(crate) installed: HashSet<&'a RelPath>,
}

/// Makes the backup of the files that a batch moves.
///
/// # Errors
/// If the SSD fails, unless it is full, or if the backend cannot be read.
pub(crate) fn keep(
    cache: CacheSide<'_>,
    backend: &dyn Backend,
    batch: BatchNo,
    moves: &Moves<'_>,
) -> Result<()> {
    // A backup from an earlier attempt at this batch may be of other slots.
    remove(cache.journals, batch)?;
    if (moves.files.is_empty() && moves.dirs.is_empty()) || backend.renames_atomically() {
        return Ok(());
    }
    match Keeper::new(cache, backend, batch).and_then(|mut keeper| keeper.keep(moves)) {
        Err(FlushError::Cache { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
            tracing::warn!(
                "no space on the SSD for backups of the files that are moved on the drive"
            );
            remove(cache.journals, batch)
        }
        other => other,
    }
}

struct Keeper<'a> {
    cache: CacheSide<'a>,
    backend: &'a dyn Backend,
    batch: BatchNo,
    dir: PathBuf,
    /// Bytes that may still be copied.
    room: u64,
    /// When copying ends.
    until: Instant,
}

impl<'a> Keeper<'a> {
    fn new(cache: CacheSide<'a>, backend: &'a dyn Backend, batch: BatchNo) -> Result<Keeper<'a>> {
        let dir = dir(cache.journals, batch);
        let made = DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(|error| failed("make", &dir, error))?;
        let (_, free) = cache.store.space()?;
        Ok(Keeper {
            cache,
            backend,
            batch,
            dir,
            room: COPY_TOTAL.min(free / FREE_PART),
            until: Instant::now() + COPY_TIME,
        })
    }

    fn keep(&mut self, moves: &Moves<'_>) -> Result<()> {
        for file in &moves.files {
            self.keep_file(file.from, Some(file.ino), file.size, &file.slot.file_name())?;
        }
        let mut trees = Vec::new();
        for dir in &moves.dirs {
            trees.push(self.keep_tree(dir, moves)?);
        }
        tree::write(&self.dir, &trees)?;
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| failed("sync", &self.dir, error))
    }

    /// Backs one file up under `name`. Returns false if that is not possible.
    fn keep_file(
        &mut self,
        from: &RelPath,
        ino: Option<Ino>,
        size: u64,
        name: &str,
    ) -> Result<bool> {
        let to = self.dir.join(name);
        let object = match ino {
            Some(ino) => clean_object(self.cache.index, ino)?,
            None => None,
        };
        if object.is_some_and(|object| fs::hard_link(self.cache.store.path(object), &to).is_ok()) {
            return Ok(true);
        }
        if size > self.room || Instant::now() > self.until {
            return Ok(false);
        }
        self.room -= size;
        self.or_without(copy(self.backend, from, &to), from, false)
    }

    /// A file that cannot be read is moved without a backup: it is no worse off under its new name.
    fn or_without<T>(&self, result: Result<T>, path: &RelPath, without: T) -> Result<T> {
        match result {
            Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => {
                tracing::warn!(%path, %error, "is moved without a backup on the SSD");
                Ok(without)
            }
            result => result,
        }
    }

    /// Backs up the contents of a directory that move along with it, as the backend has them: the
    /// index may not know all of them yet.
    fn keep_tree(&mut self, moved: &MovedDir<'_>, moves: &Moves<'_>) -> Result<Tree> {
        let mut entries = Vec::new();
        let mut open = vec![(RelPath::root(), Some(moved.ino))];
        while let Some((below, ino)) = open.pop() {
            let listed = match self.backend.read_dir(&moved.from.join_path(&below)) {
                Ok(listed) => listed,
                Err(error) if error.is_not_found() => continue,
                Err(error) => {
                    self.or_without(Err(error.into()), moved.from, ())?;
                    continue;
                }
            };
            for entry in listed {
                let path = below.join(&entry.name);
                let (old, new) = (moved.from.join_path(&path), moved.to.join_path(&path));
                if moves.cleared.contains(&old) || moves.installed.contains(&new) {
                    continue;
                }
                let known = match ino {
                    Some(ino) => self.cache.index.lock().placed(ino, &entry.name)?,
                    None => None,
                };
                let is_dir = entry.meta.kind == FileKind::Directory;
                let number = entries.len();
                let kept = !is_dir
                    && entry.meta.kind == FileKind::Regular
                    && self.keep_file(
                        &old,
                        known.as_ref().map(|known| known.ino),
                        entry.meta.size,
                        &tree::file_name(moved.slot, number),
                    )?;
                if is_dir {
                    open.push((path.clone(), known.as_ref().map(|known| known.ino)));
                }
                entries.push(TreeEntry {
                    path,
                    is_dir,
                    size: entry.meta.size,
                    modified: entry.meta.modified,
                    kept,
                });
            }
        }
        Ok(Tree {
            slot: moved.slot,
            entries,
        })
    }
}

/// Returns the object with the bytes that the backend has; not one that is being changed.
fn clean_object(index: &Index, ino: Ino) -> Result<Option<ObjectId>> {
    let inode = index.lock().inode(ino)?;
    Ok(inode
        .filter(|inode| !inode.flags.has(Flags::DATA_DIRTY) && !inode.flags.has(Flags::WRITING))
        .and_then(|inode| inode.object))
}

/// Copies a file of the backend. Returns false if it is not there; that is reported when it is
/// missing under its new name.
fn copy(backend: &dyn Backend, path: &RelPath, to: &Path) -> Result<bool> {
    let from = match backend.open(path) {
        Ok(from) => from,
        Err(error) if error.is_not_found() => return Ok(false),
        // Links and special files have no bytes to back up.
        Err(error)
            if matches!(
                error.source.raw_os_error(),
                Some(libc::ELOOP | libc::EINVAL)
            ) =>
        {
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    let write_failed = |error| failed("write", to, error);
    let mut out = private::make_new(to).map_err(write_failed)?;
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    loop {
        let got = from
            .read_at(&mut buffer, at)
            .map_err(|source| BackendError::new("read", path, source))?;
        if got == 0 {
            out.sync_all().map_err(write_failed)?;
            return Ok(true);
        }
        out.write_all(&buffer[..got]).map_err(write_failed)?;
        at += got as u64;
    }
}
