//! The bytes of files that a batch moves, kept on the SSD until the batch is confirmed.
//!
//! Where a rename is not atomic (exFAT) a yank can leave a file that was being moved under neither name. Its bytes must then be
//! on the SSD. `<batch>.keep/<slot>` beside the journal holds them: a hard link to the object if the cache has one, so that
//! evicting the object takes nothing away, else a copy from the backend, up to a bound. Made and synced before the journal;
//! removed with it. A directory without a journal is what a crash before the journal leaves; it is removed when the batch is given up,
//! or at the next attach. It is best effort in one point only: where the SSD has no room the batch goes on without, as carrying it is what
//! makes room.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Parts;
use super::known::MovedFile;
use super::report::{FlushError, Result};
use crate::backend::{Backend, BackendError};
use crate::base::{BatchNo, ObjectId};
use crate::index::Flags;
use crate::rules::steps::SlotNo;

/// Most bytes that are copied from the backend for one batch: half a minute of a USB disk's time.
const COPY_TOTAL: u64 = 4 << 30;

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
    File::open(dir(journals, batch).join(slot.file_name())).ok()
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
        operation: format!("{operation} {}", path.display()),
        source,
    }
}

/// Keeps the bytes of `moved` until the batch is over.
///
/// # Errors
/// If the SSD fails otherwise than by being full, or the backend cannot be read.
pub(super) fn keep(
    parts: &Parts,
    backend: &dyn Backend,
    batch: BatchNo,
    moved: &[MovedFile<'_>],
) -> Result<()> {
    // What an earlier attempt at this batch has kept may be of other slots.
    remove(&parts.journals, batch)?;
    if moved.is_empty() || backend.renames_atomically() {
        return Ok(());
    }
    let dir = dir(&parts.journals, batch);
    let (_, free) = parts.store.space()?;
    let mut room = COPY_TOTAL.min(free / FREE_PART);
    let kept = (|| {
        fs::create_dir(&dir).map_err(|error| failed("make", &dir, error))?;
        for file in moved {
            let to = dir.join(file.slot.file_name());
            let object = clean_object(parts, file)?;
            if object.is_some_and(|object| fs::hard_link(parts.store.path(object), &to).is_ok()) {
                continue;
            }
            if file.size <= room {
                room -= file.size;
                copy(backend, file, &to)?;
            }
        }
        let synced = File::open(&dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| failed("sync", &dir, error))
    })();
    match kept {
        Err(FlushError::Cache { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
            tracing::warn!(
                "no room on the SSD to keep copies of the files that are moved on the drive"
            );
            remove(&parts.journals, batch)
        }
        other => other,
    }
}

/// The object with the bytes that the backend has; not one that is being changed.
fn clean_object(parts: &Parts, file: &MovedFile<'_>) -> Result<Option<ObjectId>> {
    let inode = parts.index.lock().inode(file.ino)?;
    Ok(inode
        .filter(|inode| !inode.flags.has(Flags::DATA_DIRTY) && !inode.flags.has(Flags::WRITING))
        .and_then(|inode| inode.object))
}

fn copy(backend: &dyn Backend, file: &MovedFile<'_>, to: &Path) -> Result<()> {
    let from = match backend.open(file.from) {
        Ok(from) => from,
        // Told when it is missed at its new name.
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let write_failed = |error| failed("write", to, error);
    let mut out = File::create(to).map_err(write_failed)?;
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    loop {
        let got = from
            .read_at(&mut buffer, at)
            .map_err(|source| BackendError::new("read", file.from, source))?;
        if got == 0 {
            return out.sync_all().map_err(write_failed);
        }
        out.write_all(&buffer[..got]).map_err(write_failed)?;
        at += got as u64;
    }
}
