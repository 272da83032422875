//! The bytes of files that a batch moves, kept on the SSD until the batch is confirmed.
//!
//! Where a rename is not atomic (exFAT) a yank can leave a file or directory that was being moved under neither name: the kernel
//! writes dirty blocks in the order in which they lie on the disk, so the old entry may go long before the new one comes. The bytes
//! must then be on the SSD. `<batch>.keep/` beside the journal holds them: `<slot>` for a file, and for each file in a
//! directory that moves `<slot>-<number>`, with `trees.json` to say what they are. Each is a hard link to the object if the cache
//! has one, so that evicting the object takes nothing away, else a copy from the backend, up to a bound. Made and synced before the journal;
//! removed with it. A directory without a journal is what a crash before the journal leaves; it is removed when the batch is given up,
//! or at the next attach. It is best effort in one point only: where the SSD has no room the batch goes on without, as carrying it is what
//! makes room.

mod tree;

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Parts;
use super::known::{MovedDir, MovedFile};
use super::refused::is_local;
use super::report::{FlushError, Result};
use crate::backend::{Backend, BackendError};
use crate::base::{BatchNo, FileKind, ForeignText, Ino, ObjectId, RelPath};
use crate::cache::private;
use crate::index::Flags;
use crate::rules::steps::SlotNo;

pub(super) use tree::{Tree, TreeEntry};

/// Most bytes that are copied from the backend for one batch: half a minute of a USB disk's time.
const COPY_TOTAL: u64 = 4 << 30;

/// Longest time that copying takes: many small files take a disk longer than their size says.
const COPY_TIME: Duration = Duration::from_secs(60);

/// The copies of one batch take no more than this part of the SSD's free space.
const FREE_PART: u64 = 4;

/// Bytes copied at a time.
const BUFFER: usize = 1 << 20;

/// Where the kept files of a batch are.
pub(super) fn dir(journals: &Path, batch: BatchNo) -> PathBuf {
    journals.join(format!("{:016x}.keep", batch.0))
}

/// The kept file of a slot, if there is one.
pub(super) fn open(journals: &Path, batch: BatchNo, slot: SlotNo) -> Option<File> {
    open_kept(&dir(journals, batch).join(slot.file_name()))
}

/// What is kept of the directories that a batch moves.
///
/// # Errors
/// If the SSD fails, or has damaged what says what the kept files are.
pub(super) fn trees(journals: &Path, batch: BatchNo) -> Result<Vec<Tree>> {
    tree::read(&dir(journals, batch))
}

/// A kept file in the directory of `slot`, by its number in the tree.
pub(super) fn open_in_tree(
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

/// Removes what is kept for a batch; fine if nothing is.
///
/// # Errors
/// If the SSD fails.
pub(super) fn remove(journals: &Path, batch: BatchNo) -> Result<()> {
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

/// What a batch moves, for [`keep`].
pub(super) struct Moves<'a> {
    /// Files whose bytes no object is pinned for.
    pub(super) files: Vec<MovedFile<'a>>,
    /// Directories that move with what is in them.
    pub(super) dirs: Vec<MovedDir<'a>>,
    /// Paths before the batch that its steps clear, and so see to themselves.
    pub(super) cleared: HashSet<&'a RelPath>,
    /// Paths after the batch at which it installs something.
    pub(super) installed: HashSet<&'a RelPath>,
}

/// Keeps the bytes of what a batch moves until the batch is over.
///
/// # Errors
/// If the SSD fails otherwise than by being full, or the backend cannot be read.
pub(super) fn keep(
    parts: &Parts,
    backend: &dyn Backend,
    batch: BatchNo,
    moves: &Moves<'_>,
) -> Result<()> {
    // What an earlier attempt at this batch has kept may be of other slots.
    remove(&parts.journals, batch)?;
    if (moves.files.is_empty() && moves.dirs.is_empty()) || backend.renames_atomically() {
        return Ok(());
    }
    match Keeper::new(parts, backend, batch).and_then(|mut keeper| keeper.keep(moves)) {
        Err(FlushError::Cache { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
            tracing::warn!(
                "no room on the SSD to keep copies of the files that are moved on the drive"
            );
            remove(&parts.journals, batch)
        }
        other => other,
    }
}

struct Keeper<'a> {
    parts: &'a Parts,
    backend: &'a dyn Backend,
    batch: BatchNo,
    dir: PathBuf,
    /// Bytes that may still be copied.
    room: u64,
    /// When copying ends.
    until: Instant,
}

impl<'a> Keeper<'a> {
    fn new(parts: &'a Parts, backend: &'a dyn Backend, batch: BatchNo) -> Result<Keeper<'a>> {
        let dir = dir(&parts.journals, batch);
        let made = DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(|error| failed("make", &dir, error))?;
        let (_, free) = parts.store.space()?;
        Ok(Keeper {
            parts,
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

    /// Keeps the bytes of one file under `name`; false if they are not kept.
    fn keep_file(
        &mut self,
        from: &RelPath,
        ino: Option<Ino>,
        size: u64,
        name: &str,
    ) -> Result<bool> {
        let to = self.dir.join(name);
        let object = match ino {
            Some(ino) => clean_object(self.parts, ino)?,
            None => None,
        };
        if object.is_some_and(|object| fs::hard_link(self.parts.store.path(object), &to).is_ok()) {
            return Ok(true);
        }
        if size > self.room || Instant::now() > self.until {
            return Ok(false);
        }
        self.room -= size;
        self.or_without(copy(self.backend, from, &to), from, false)
    }

    /// What cannot be read is moved without being kept: it is no worse off under its new name.
    fn or_without<T>(&self, result: Result<T>, path: &RelPath, without: T) -> Result<T> {
        match result {
            Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => {
                tracing::warn!(%path, %error, "is moved without a copy on the SSD");
                Ok(without)
            }
            result => result,
        }
    }

    /// Keeps what is in a directory and moves along with it, as the backend has it: the index may not know all of it yet.
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
                    Some(ino) => self.parts.index.lock().placed(ino, &entry.name)?,
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

/// The object with the bytes that the backend has; not one that is being changed.
fn clean_object(parts: &Parts, ino: Ino) -> Result<Option<ObjectId>> {
    let inode = parts.index.lock().inode(ino)?;
    Ok(inode
        .filter(|inode| !inode.flags.has(Flags::DATA_DIRTY) && !inode.flags.has(Flags::WRITING))
        .and_then(|inode| inode.object))
}

/// Copies a file of the backend; false if it is not there, which is told when it is missed at its new name.
fn copy(backend: &dyn Backend, path: &RelPath, to: &Path) -> Result<bool> {
    let from = match backend.open(path) {
        Ok(from) => from,
        Err(error) if error.is_not_found() => return Ok(false),
        // Links and special files have no bytes to keep.
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
