//! The staging directory of a batch on the backend: how bytes get there, and how it is discarded.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;

use crossbeam_channel::bounded;

use crate::cache::Store;
use crate::core::ObjectId;
use crate::core::{BatchNo, ContentHash, Metadata, Name, RelPath, Timestamp};
use crate::drive::{Backend, BackendError, CLOSE, ReadFile, WRITE, WriteFile};
use crate::error::{FlushError, Result};
use crate::format::layout;
use crate::format::steps::FileContent;
use crate::plan::planner::StageSource;
use crate::plan::trust::Trust;
use crate::sys;

/// Bytes read and written at a time.
pub(crate) const BUFFER: usize = 1 << 20;

/// Files of at least this size are read ahead while they are written.
const LARGE: u64 = 8 << 20;

/// Buffers of a file that is read ahead.
const AHEAD: usize = 4;

/// The object number of an empty file without an object.
pub(crate) const EMPTY: ObjectId = ObjectId(0);

/// An opened source of bytes to be staged.
pub(crate) enum Source<'a> {
    Empty,
    /// An object, as it was at the cut.
    Object(&'a Store, ObjectId, File),
    File(File),
    Backend(Box<dyn ReadFile>),
}

impl<'a> Source<'a> {
    pub(crate) fn open(
        backend: &dyn Backend,
        store: &'a Store,
        source: &StageSource,
    ) -> Result<Source<'a>> {
        Ok(match source {
            StageSource::Object { object, .. } if *object == EMPTY => Source::Empty,
            StageSource::Object { object, .. } => {
                let file = store.open_object(*object)?;
                // Only advice; reading works without it.
                let _ = sys::file::advise(&file, 0, 0, sys::file::Advice::Sequential);
                Source::Object(store, *object, file)
            }
            StageSource::Backend { path, .. } => Source::Backend(backend.open(path)?),
        })
    }

    /// Whether what was read is not what it was at the cut.
    pub(crate) fn is_torn(&self) -> bool {
        matches!(self, Source::Object(store, object, _) if store.is_torn(*object))
    }

    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64, path: &RelPath) -> Result<usize> {
        let failed = |source| FlushError::Cache {
            operation: format!("read the object of {path}"),
            source,
        };
        match self {
            Source::Empty => Ok(0),
            Source::Object(store, object, file) => store
                .read_as_of_cut(*object, file, buffer, offset)
                .map_err(failed),
            Source::File(file) => file.read_at(buffer, offset).map_err(failed),
            Source::Backend(file) => file
                .read_at(buffer, offset)
                .map_err(|source| BackendError::new("read", path, source).into()),
        }
    }

    /// Passes all bytes to `append`, in order, and returns their number and hash.
    pub(crate) fn copy(
        &self,
        path: &RelPath,
        buffer: &mut [u8],
        append: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<(u64, ContentHash)> {
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        loop {
            let got = self.read_at(buffer, size, path)?;
            if got == 0 {
                return Ok((size, ContentHash(*hasher.finalize().as_bytes())));
            }
            hasher.update(&buffer[..got]);
            append(&buffer[..got])?;
            size += got as u64;
        }
    }

    /// The same, but a thread of its own reads and hashes ahead while the bytes before are being
    /// written.
    pub(crate) fn copy_ahead(
        &self,
        path: &RelPath,
        append: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<(u64, ContentHash)> {
        let (filled, full) = bounded::<Vec<u8>>(AHEAD);
        let (emptied, empty) = bounded::<Vec<u8>>(AHEAD);
        for _ in 0..AHEAD {
            // The channel holds all of them.
            let _ = emptied.send(vec![0; BUFFER]);
        }
        thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut hasher = blake3::Hasher::new();
                let mut size = 0;
                while let Ok(mut buffer) = empty.recv() {
                    buffer.resize(BUFFER, 0);
                    let got = self.read_at(&mut buffer, size, path)?;
                    buffer.truncate(got);
                    hasher.update(&buffer);
                    size += got as u64;
                    if got == 0 || filled.send(buffer).is_err() {
                        break;
                    }
                }
                Ok((size, ContentHash(*hasher.finalize().as_bytes())))
            });
            let written = full.iter().try_for_each(|buffer| {
                append(&buffer)?;
                // The reader may have ended.
                let _ = emptied.send(buffer);
                Ok(())
            });
            // Ends a reader that is still running.
            drop((full, emptied));
            let read = reader.join().unwrap_or_else(|_| {
                Err(FlushError::Cache {
                    operation: format!("read the bytes of {path}"),
                    source: std::io::Error::other("the reading thread panicked"),
                })
            });
            written.and(read)
        })
    }
}

/// Where a replay takes the bytes of a slot from.
pub(crate) enum SlotSource<'a> {
    /// From the source of the first staging.
    Staged(&'a StageSource),
    /// From a file on the SSD, with this time.
    Kept(File, Timestamp),
    /// From a file on the backend, with this time.
    OnBackend(Box<dyn ReadFile>, Timestamp),
}

/// Writes the bytes of `source` to `slot`, which is empty, and returns what they are; they may be
/// anything. `expected` is the expected size in bytes.
pub(crate) fn restage(
    backend: &dyn Backend,
    store: Option<&Store>,
    source: SlotSource<'_>,
    slot: &RelPath,
    expected: Option<u64>,
) -> Result<FileContent> {
    let (from, time) = match (source, store) {
        (SlotSource::Staged(source), Some(store)) => {
            (Source::open(backend, store, source)?, modified(source))
        }
        (SlotSource::Staged(source), None) => {
            return Err(FlushError::Cache {
                operation: format!("read the object of {slot} without a cache: {source:?}"),
                source: std::io::Error::from(std::io::ErrorKind::NotFound),
            });
        }
        (SlotSource::Kept(file, time), _) => (Source::File(file), time),
        (SlotSource::OnBackend(file, time), _) => (Source::Backend(file), time),
    };
    let mut buffer = vec![0; BUFFER];
    loop {
        let done = |_| Ok(());
        // The owner of the bytes is not known here. The file gets its mode with its name, or from
        // the file that it is a copy of.
        let to = create_hidden(backend, slot)?;
        match write_slot((to, slot), &from, time, expected, &mut buffer, done) {
            // It is written again after held space was freed.
            Err(FlushError::Backend(error)) if error.is_full() => {
                remove_part(backend, slot)?;
                if !backend.relieve()? {
                    return Err(error.into());
                }
            }
            result => return result,
        }
    }
}

/// Removes a partial file.
pub(crate) fn remove_part(backend: &dyn Backend, path: &RelPath) -> Result<()> {
    match backend.remove_file(path) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Makes an empty file that only its owner may read, if the backend keeps permissions.
pub(crate) fn create_hidden(backend: &dyn Backend, path: &RelPath) -> Result<Box<dyn WriteFile>> {
    let file = backend.create(path)?;
    match backend.set_permissions(path, 0o600) {
        Err(error) if !error.is_refusal() => Err(error.into()),
        _ => Ok(file),
    }
}

/// Gives a copy the owner, mode and extended attributes of its original, as far as the backend has
/// them.
pub(crate) fn give_attributes(
    backend: &dyn Backend,
    from: &RelPath,
    meta: &Metadata,
    to: &RelPath,
) -> Result<()> {
    let unless_refused = |set: std::result::Result<(), BackendError>| match set {
        Err(error) if !error.is_refusal() => Err(error),
        _ => Ok(()),
    };
    unless_refused(backend.set_owner(to, Some(meta.uid), Some(meta.gid)))?;
    unless_refused(backend.set_permissions(to, meta.permissions))?;
    match backend.xattrs(from) {
        Ok(xattrs) if xattrs.is_empty() => Ok(()),
        Ok(xattrs) => Ok(unless_refused(backend.set_xattrs(to, &xattrs))?),
        Err(error) => Ok(unless_refused(Err(error))?),
    }
}

/// Makes the directories again in which batches are staged and recorded. Between batches they are
/// empty, and somebody may have removed them. A crash leaves them empty, as they are after an
/// enrollment.
pub(crate) fn make_own_dirs(backend: &dyn Backend) -> Result<()> {
    for dir in [layout::staging_root(), layout::batches_dir()] {
        if crate::drive::exists(backend, &dir)? {
            continue;
        }
        tracing::warn!(%dir, "was removed from the drive; it is made again");
        match backend.make_dir(&dir) {
            Err(error) if !error.is_taken() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Makes `.ferryfs/lost+found` if it does not exist, closed to others: the files in it may come
/// from directories that others cannot look into.
pub(crate) fn make_lost_found(backend: &dyn Backend) -> Result<()> {
    let dir = layout::lost_found();
    match backend.make_dir(&dir) {
        Err(error) if error.is_taken() => return Ok(()),
        made => made?,
    }
    match staging_trust(backend, None)?.is_ours() {
        true => hide_dir(backend, &dir),
        false => Ok(()),
    }
}

pub(crate) fn hide_dir(backend: &dyn Backend, dir: &RelPath) -> Result<()> {
    match backend.set_permissions(dir, 0o700) {
        Err(error) if !error.is_refusal() => Err(error.into()),
        _ => Ok(()),
    }
}

pub(crate) fn write_slot(
    (mut to, slot): (Box<dyn WriteFile>, &RelPath),
    from: &Source<'_>,
    modified: Timestamp,
    expected: Option<u64>,
    buffer: &mut [u8],
    mut done: impl FnMut(u64) -> Result<()>,
) -> Result<FileContent> {
    let mut append = |bytes: &[u8]| -> Result<()> {
        to.append(bytes)
            .map_err(|source| BackendError::new(WRITE, slot, source))?;
        done(bytes.len() as u64)
    };
    let (size, hash) = if expected.is_some_and(|size| size >= LARGE) {
        from.copy_ahead(slot, &mut append)?
    } else {
        from.copy(slot, buffer, &mut append)?
    };
    to.finish(modified)
        .map_err(|source| BackendError::new(CLOSE, slot, source))?;
    Ok(FileContent {
        size,
        hash,
        modified,
    })
}

pub(crate) fn modified(source: &StageSource) -> Timestamp {
    match source {
        StageSource::Object { modified, .. } | StageSource::Backend { modified, .. } => *modified,
    }
}

/// Returns the trust in the staging directory of a batch, or of the next one. One that does not
/// exist will be made.
pub(crate) fn staging_trust(backend: &dyn Backend, batch: Option<BatchNo>) -> Result<Trust> {
    let own = batch.map(layout::staging_dir);
    let above = [layout::staging_root(), layout::dir()];
    for dir in own.into_iter().chain(above) {
        match backend.trust(&dir) {
            Err(error) if crate::drive::is_absent(&error) => {}
            trust => return Ok(trust?),
        }
    }
    Ok(Trust::ANYBODY)
}

/// Removes a staging directory with everything staged in it; no error if it does not exist. Files
/// that were set aside from a user's name are kept in `.ferryfs/lost+found`, whatever led to this:
/// directories always, and everything if clearing was over.
///
/// Without a record this is what the end of a batch has left: the files that it has replaced or
/// removed were compared by then, and are removed.
pub(crate) fn discard(backend: &dyn Backend, dir: &RelPath) -> Result<()> {
    discard_but(backend, dir, false)
}

/// The same for a batch that has just ended. Of the files that it has replaced or removed, all
/// superfluous ones are gone by now: the rest was not compared, and is kept as well.
pub(crate) fn discard_ended(backend: &dyn Backend, dir: &RelPath) -> Result<()> {
    discard_but(backend, dir, true)
}

fn discard_but(backend: &dyn Backend, dir: &RelPath, keeps_set_aside: bool) -> Result<()> {
    let entries = match backend.read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // With the mark, clearing was over: a file in a slot was moved there from its name, unless the
    // batch was finished.
    let cleared = entries
        .iter()
        .any(|entry| entry.name.as_bytes() == layout::BARRIER.as_bytes());
    for entry in entries {
        let path = dir.join(&entry.name);
        match entry.meta.kind {
            kind if !keeps_set_aside
                && layout::is_set_aside_name(&entry.name)
                && kind != crate::core::FileKind::Directory =>
            {
                backend.remove_file(&path)?;
            }
            _ if layout::is_set_aside_name(&entry.name) => {
                keep(backend, dir, &path, &entry.name)?;
            }
            _ if cleared && !layout::is_note_name(&entry.name) => {
                keep(backend, dir, &path, &entry.name)?;
            }
            crate::core::FileKind::Directory => keep(backend, dir, &path, &entry.name)?,
            _ => backend.remove_file(&path)?,
        }
    }
    Ok(backend.remove_dir(dir)?)
}

fn keep(backend: &dyn Backend, dir: &RelPath, path: &RelPath, slot: &Name) -> Result<()> {
    make_lost_found(backend)?;
    let lost_found = layout::lost_found();
    let batch = dir
        .split_last()
        .map_or_else(Vec::new, |(_, name)| name.as_bytes().to_vec());
    let name = Name::new(&[&batch, &b"-"[..], slot.as_bytes()].concat())
        .map_err(|_| FlushError::WrongDrive(format!("{path} has an impossible name")))?;
    tracing::error!(%path, "something was left in a staging directory; it is kept in \
        .ferryfs/lost+found on the drive");
    Ok(backend.rename(path, &lost_found.join(&name))?)
}
