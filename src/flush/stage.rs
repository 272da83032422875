//! Staging: contents go to the batch's own directory on the backend, hashed on the way.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;

use crossbeam_channel::bounded;

use super::gather::EMPTY;
use super::real;
use super::recover::staging_trust;
use super::refused::{StepNo, Why, errno_of, explain, is_local};
use super::report::{FlushError, Result, Wish};
use super::reserve::Held;
use crate::backend::{Backend, BackendError, Metadata, ReadFile, WriteFile};
use crate::base::{BatchNo, ContentHash, Ino, Name, RelPath, Timestamp};
use crate::cache::Store;
use crate::control::protocol::{Phase, Progress};
use crate::index::Inode;
use crate::rules::layout;
use crate::rules::plan::StageSource;
use crate::rules::steps::{FileContent, Node, PlaceStep, SlotNo, Steps};
use crate::sys;

/// Bytes read and written at a time.
const BUFFER: usize = 1 << 20;

/// Files of at least this size are read ahead while they are written.
const LARGE: u64 = 8 << 20;

/// Buffers of a file that is read ahead.
const AHEAD: usize = 4;

/// A batch whose contents are on the backend, synced, under no final name.
pub(super) struct Staged {
    pub(super) steps: Steps<FileContent>,
    pub(super) sources: BTreeMap<SlotNo, StageSource>,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Where bytes to be staged come from, opened.
enum Source {
    Empty,
    Object(File),
    Backend(Box<dyn ReadFile>),
}

impl Source {
    fn open(backend: &dyn Backend, store: &Store, source: &StageSource) -> Result<Source> {
        Ok(match source {
            StageSource::Object { object, .. } if *object == EMPTY => Source::Empty,
            StageSource::Object { object, .. } => {
                let file = store.open_object(*object)?;
                // Only advice; reading works without it.
                let _ = sys::file::advise(&file, 0, 0, sys::file::Advice::Sequential);
                Source::Object(file)
            }
            StageSource::Backend { path, .. } => Source::Backend(backend.open(path)?),
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64, path: &RelPath) -> Result<usize> {
        match self {
            Source::Empty => Ok(0),
            Source::Object(file) => {
                file.read_at(buffer, offset)
                    .map_err(|source| FlushError::Cache {
                        operation: format!("read the object of {path}"),
                        source,
                    })
            }
            Source::Backend(file) => file
                .read_at(buffer, offset)
                .map_err(|source| BackendError::new("read", path, source).into()),
        }
    }

    /// Hands all bytes to `append`, in order, and gives their number and hash.
    fn copy(
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

    /// The same, reading and hashing some way ahead on a thread of its own while the bytes before are being written.
    fn copy_ahead(
        &self,
        path: &RelPath,
        append: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<(u64, ContentHash)> {
        let (filled, full) = bounded::<Vec<u8>>(AHEAD);
        let (emptied, empty) = bounded::<Vec<u8>>(AHEAD);
        for _ in 0..AHEAD {
            // There is room for them all.
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
                // Nobody waits for it if the reader is through.
                let _ = emptied.send(buffer);
                Ok(())
            });
            // Lets a reader that is still at it end.
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

/// Copies one file into its slot and tells what it was. If it is not of the `expected` size it is not what the index vouches for,
/// and must not take the place of anything. `done` is told the bytes of each step.
fn stage_file(
    backend: &dyn Backend,
    store: &Store,
    source: &StageSource,
    slot: &RelPath,
    expected: Option<u64>,
    buffer: &mut [u8],
    done: impl FnMut(u64) -> Result<()>,
) -> Result<FileContent> {
    let from = Source::open(backend, store, source)?;
    let content = write_slot(
        (backend.create(slot)?, slot),
        &from,
        modified(source),
        expected,
        buffer,
        done,
    )?;
    if expected.is_some_and(|expected| expected != content.size) {
        return Err(FlushError::Cache {
            operation: format!(
                "read the object of {slot}: {} bytes where the index has {}",
                content.size,
                expected.unwrap_or(0)
            ),
            source: std::io::Error::from(std::io::ErrorKind::UnexpectedEof),
        });
    }
    Ok(content)
}

/// Where a redo takes the bytes of a slot from.
pub(super) enum SlotSource<'a> {
    /// As when it was staged.
    Staged(&'a StageSource),
    /// A file on the SSD, and its time.
    Kept(File, Timestamp),
    /// A file on the backend, and its time.
    OnBackend(Box<dyn ReadFile>, Timestamp),
}

/// Writes what `source` has to `slot`, which is empty, and tells what it was; it may be anything. `expected` is the size that is
/// expected, in bytes.
pub(super) fn restage(
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
        (SlotSource::Kept(file, time), _) => (Source::Object(file), time),
        (SlotSource::OnBackend(file, time), _) => (Source::Backend(file), time),
    };
    let mut buffer = vec![0; BUFFER];
    loop {
        let done = |_| Ok(());
        // Whose bytes they are is not known here. It gets its mode when it has its name, or from what it is a copy of.
        let to = create_hidden(backend, slot)?;
        match write_slot((to, slot), &from, time, expected, &mut buffer, done) {
            // It is written anew where held space makes room for it.
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

/// Removes a file that could not be written whole.
fn remove_part(backend: &dyn Backend, path: &RelPath) -> Result<()> {
    match backend.remove_file(path) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Makes an empty file that only its owner may read, where the backend keeps permissions.
fn create_hidden(backend: &dyn Backend, path: &RelPath) -> Result<Box<dyn WriteFile>> {
    let file = backend.create(path)?;
    match backend.set_permissions(path, 0o600) {
        Err(error) if !error.is_refusal() => Err(error.into()),
        _ => Ok(file),
    }
}

/// Gives a copy owner, mode and extended attributes of what it was made of, as far as the backend has them.
pub(super) fn give_attributes(
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

/// Makes `.ferryfs/lost+found` if it is not there. What is kept in it may have been in a directory that others cannot look into.
pub(super) fn make_lost_found(backend: &dyn Backend) -> Result<()> {
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

fn hide_dir(backend: &dyn Backend, dir: &RelPath) -> Result<()> {
    match backend.set_permissions(dir, 0o700) {
        Err(error) if !error.is_refusal() => Err(error.into()),
        _ => Ok(()),
    }
}

fn write_slot(
    (mut to, slot): (Box<dyn WriteFile>, &RelPath),
    from: &Source,
    modified: Timestamp,
    expected: Option<u64>,
    buffer: &mut [u8],
    mut done: impl FnMut(u64) -> Result<()>,
) -> Result<FileContent> {
    let mut append = |bytes: &[u8]| -> Result<()> {
        to.append(bytes)
            .map_err(|source| BackendError::new("write", slot, source))?;
        done(bytes.len() as u64)
    };
    let (size, hash) = if expected.is_some_and(|size| size >= LARGE) {
        from.copy_ahead(slot, &mut append)?
    } else {
        from.copy(slot, buffer, &mut append)?
    };
    to.finish(modified)
        .map_err(|source| BackendError::new("close", slot, source))?;
    Ok(FileContent {
        size,
        hash,
        modified,
    })
}

fn modified(source: &StageSource) -> Timestamp {
    match source {
        StageSource::Object { modified, .. } | StageSource::Backend { modified, .. } => *modified,
    }
}

/// Stages every file of the plan, in the order of its final path, and syncs once.
pub(super) struct Stager<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) store: &'a Store,
    pub(super) batch: BatchNo,
    pub(super) sizes: &'a BTreeMap<Ino, u64>,
    /// Whose files they are.
    pub(super) inodes: &'a BTreeMap<Ino, Inode>,
    /// The backend keeps permissions.
    pub(super) keeps_permissions: bool,
    /// Nobody else could finish the batch, so nobody else needs to look into its staging directory.
    pub(super) hides_all: bool,
    pub(super) wish: &'a Wish,
    pub(super) progress: &'a dyn Fn(Progress),
    /// Space that is taken for what comes after the commit.
    pub(super) held: Held,
}

impl Stager<'_> {
    pub(super) fn stage(&self, plan: Steps<StageSource>) -> Result<Staged> {
        let mut staged = Staged {
            steps: Steps {
                clear: plan.clear,
                place: Vec::with_capacity(plan.place.len()),
                attributes: plan.attributes,
            },
            sources: BTreeMap::new(),
            files: 0,
            bytes: 0,
        };
        self.backend.make_dir(&layout::staging_dir(self.batch))?;
        if self.keeps_permissions && self.hides_all {
            hide_dir(self.backend, &layout::staging_dir(self.batch))?;
        }
        let mut progress = self.totals(&plan.place);
        let mut buffer = vec![0; BUFFER];
        let mut bad = Vec::new();
        for step in plan.place {
            let step = match step {
                PlaceStep::Install { slot, to, content } => {
                    let measured = match self.stage_one(&content, slot, &mut buffer, &mut progress)
                    {
                        // All of them are found in one pass; the batch is then planned without them.
                        Err(FlushError::BadObjects(files)) => {
                            bad.extend(files);
                            continue;
                        }
                        measured => measured?,
                    };
                    self.hide_private(&content, slot)?;
                    staged.files += 1;
                    staged.bytes = staged.bytes.saturating_add(measured.size);
                    staged.sources.insert(slot, content);
                    PlaceStep::Install {
                        slot,
                        to,
                        content: measured,
                    }
                }
                PlaceStep::MakeDir { path } => PlaceStep::MakeDir { path },
                PlaceStep::Attach { slot, to, kind } => PlaceStep::Attach { slot, to, kind },
                PlaceStep::InstallNode { slot, to, node } => {
                    self.stage_node(&node, slot)?;
                    staged.files += 1;
                    PlaceStep::InstallNode { slot, to, node }
                }
                PlaceStep::Link { from, to } => PlaceStep::Link { from, to },
                PlaceStep::Touch { path, modified } => PlaceStep::Touch { path, modified },
            };
            staged.steps.place.push(step);
        }
        if !bad.is_empty() {
            return Err(FlushError::BadObjects(bad));
        }
        self.held.write(self.backend, self.batch)?;
        self.backend.sync()?;
        Ok(staged)
    }

    fn stage_node(&self, node: &Node, slot: SlotNo) -> Result<()> {
        let path = layout::slot_path(self.batch, slot);
        Ok(real::make_node(self.backend, node, &path)?)
    }

    /// What others may not read in the mount they may not read in its slot, nor under its name before it gets its attributes.
    fn hide_private(&self, source: &StageSource, slot: SlotNo) -> Result<()> {
        let (StageSource::Object { ino, .. } | StageSource::Backend { ino, .. }) = source;
        match self.inodes.get(ino) {
            Some(inode) if self.keeps_permissions && inode.mode & 0o044 != 0o044 => {
                let path = layout::slot_path(self.batch, slot);
                Ok(self.backend.set_permissions(&path, 0o600)?)
            }
            _ => Ok(()),
        }
    }

    fn totals(&self, place: &[PlaceStep<StageSource>]) -> Progress {
        let mut progress = super::phase(Phase::Stage);
        for step in place {
            if let PlaceStep::Install { content, .. } = step {
                progress.files_total += 1;
                progress.bytes_total = progress.bytes_total.saturating_add(self.size_of(content));
            }
        }
        progress
    }

    fn expected_size(&self, source: &StageSource) -> Option<u64> {
        match source {
            StageSource::Object { ino, .. } | StageSource::Backend { ino, .. } => {
                self.sizes.get(ino).copied()
            }
        }
    }

    fn size_of(&self, source: &StageSource) -> u64 {
        let (StageSource::Object { ino, .. } | StageSource::Backend { ino, .. }) = source;
        // A further copy of an unchanged file may be read from the drive, where its size may be another by now.
        let known = || self.inodes.get(ino).map(|inode| inode.size);
        self.expected_size(source).or_else(known).unwrap_or(0)
    }

    fn stage_one(
        &self,
        source: &StageSource,
        slot: SlotNo,
        buffer: &mut [u8],
        progress: &mut Progress,
    ) -> Result<FileContent> {
        let path = layout::slot_path(self.batch, slot);
        let expected = self.expected_size(source);
        let result = stage_file(
            self.backend,
            self.store,
            source,
            &path,
            expected,
            buffer,
            |bytes| {
                progress.bytes_done = progress.bytes_done.saturating_add(bytes);
                (self.progress)(*progress);
                self.wish.check()
            },
        );
        progress.files_done += 1;
        (self.progress)(*progress);
        result.map_err(|error| match error {
            // Everything else of a batch can be read from the cache: one bad file must not keep the others from the drive.
            FlushError::Store(error) => bad_object(source, format!("{error}; {BAD}")),
            error @ FlushError::Cache { .. } => bad_object(source, format!("{error}; {BAD}")),
            FlushError::Backend(error) if is_of_this_file(&error) => bad_object(
                source,
                explain(StepNo::Place(0), &Why::Errno(errno_of(&error))),
            ),
            // A further copy is made of what the drive has under another name, and that cannot be read there.
            FlushError::Backend(error)
                if matches!(source, StageSource::Backend { .. })
                    && is_local(self.backend, self.batch, &error) =>
            {
                bad_object(
                    source,
                    explain(StepNo::Place(0), &Why::Errno(errno_of(&error))),
                )
            }
            other => other,
        })
    }
}

/// What is to be done about a file that the SSD has lost.
pub(super) const BAD: &str =
    "write it anew from another copy, or delete it, and look at the health of the SSD";

/// Whether the drive does not take the bytes of this very file, as one that is too large.
fn is_of_this_file(error: &BackendError) -> bool {
    matches!(error.operation, "write" | "close") && error.is_refusal() && !error.is_full()
}

fn bad_object(source: &StageSource, problem: String) -> FlushError {
    let (StageSource::Object { ino, .. } | StageSource::Backend { ino, .. }) = source;
    FlushError::BadObjects(vec![(*ino, problem)])
}

/// Removes a staging directory with what is staged in it; fine if it is not there. What was set aside from under somebody's name
/// is kept in `.ferryfs/lost+found`, whatever has brought it to this: directories, and all once clearing was over.
///
/// Without a record this is what the end of a batch has left: what it has replaced and removed was compared by then, and ends with it.
pub(super) fn discard(backend: &dyn Backend, dir: &RelPath) -> Result<()> {
    discard_but(backend, dir, false)
}

/// The same for a batch that has just ended. Of what it has replaced and removed everything that is to go is gone: what is left was
/// not compared, and is kept as well.
pub(super) fn discard_ended(backend: &dyn Backend, dir: &RelPath) -> Result<()> {
    discard_but(backend, dir, true)
}

fn discard_but(backend: &dyn Backend, dir: &RelPath, keeps_set_aside: bool) -> Result<()> {
    let entries = match backend.read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // With the mark, clearing was over: what is in a slot then was moved there from under its name, unless the batch was finished.
    let cleared = entries
        .iter()
        .any(|entry| entry.name.as_bytes() == layout::BARRIER.as_bytes());
    for entry in entries {
        let path = dir.join(&entry.name);
        match entry.meta.kind {
            kind if !keeps_set_aside
                && layout::is_set_aside_name(&entry.name)
                && kind != crate::base::FileKind::Directory =>
            {
                backend.remove_file(&path)?;
            }
            _ if layout::is_set_aside_name(&entry.name) => {
                keep(backend, dir, &path, &entry.name)?;
            }
            _ if cleared && !layout::is_note_name(&entry.name) => {
                keep(backend, dir, &path, &entry.name)?;
            }
            crate::base::FileKind::Directory => keep(backend, dir, &path, &entry.name)?,
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
    tracing::error!(%path, "something was left in a staging directory; it is kept in .ferryfs/lost+found on the drive");
    Ok(backend.rename(path, &lost_found.join(&name))?)
}
