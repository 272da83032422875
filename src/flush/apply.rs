//! Applying a committed batch for the first time: clear, mark, place, one sync. It trusts what it has just staged. Whatever
//! interrupts it is repaired by [`super::redo`]. The mark between the phases makes it known that clearing is over; see
//! [`Steps::needs_barrier`] for when it is needed.

use std::collections::HashSet;

use uuid::Uuid;

use super::report::{FlushError, Result};
use super::{catalog, real};
use crate::backend::{Backend, BackendError, ReadFile};
use crate::base::{BatchNo, ContentHash, FileKind, RelPath, Timestamp};
use crate::rules::catalog::CatalogBatch;
use crate::rules::layout;
use crate::rules::steps::{ClearStep, FileContent, PlaceStep, Steps};

/// Bytes read at a time when a file is verified.
const BUFFER: usize = 1 << 20;

/// What a batch has met that it could not have known.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Directories that were to be removed but hold something that ferryfs does not know, or that is what they are now.
    pub(super) kept: Vec<RelPath>,
    /// What was to be moved, by its new name, but is nowhere: somebody else has removed it, or the drive has lost it.
    pub(super) vanished: Vec<RelPath>,
    /// Further names of files that the backend does not want to give them.
    pub(super) not_linked: Vec<RelPath>,
    /// What the backend does not want to give its attributes to.
    pub(super) not_set: Vec<RelPath>,
    /// Directories that were to be moved, by their new names, and are nowhere: the drive has lost them with all that was in
    /// them. Each has been made anew, with nothing in it but what the batch places there.
    pub(super) lost_dirs: Vec<RelPath>,
}

const NOT_EMPTY: &str =
    "removed in the mount, but on the drive it holds files that somebody else has put there";

const VANISHED: &str = "moved in the mount, but the drive has it no more; if the cache has it, the next flush puts it back";

const LOST_DIR: &str = "moved in the mount, but the drive has lost the directory with what was in it; what the cache has of it the next flush puts back, for the rest run fsck on the drive";

const NOT_LINKED: &str =
    "the drive does not take it as a further name of its file; make it a copy, or remove it";

const NOT_SET: &str = "the drive does not take all of its attributes (mode, owner, extended attributes); they stay in the cache";

impl Applied {
    /// The same for people: path and reason.
    pub(super) fn surprises(&self) -> impl Iterator<Item = (String, String)> {
        let kept = self.kept.iter().map(|path| (path, NOT_EMPTY));
        let vanished = self.vanished.iter().map(|path| (path, VANISHED));
        let lost_dirs = self.lost_dirs.iter().map(|path| (path, LOST_DIR));
        let not_linked = self.not_linked.iter().map(|path| (path, NOT_LINKED));
        let not_set = self.not_set.iter().map(|path| (path, NOT_SET));
        kept.chain(vanished)
            .chain(lost_dirs)
            .chain(not_linked)
            .chain(not_set)
            .map(|(path, reason)| (path.to_string(), reason.to_string()))
    }
}

/// Applies one batch.
pub(super) struct Applier<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) batch: BatchNo,
    pub(super) volume: Uuid,
    pub(super) steps: &'a Steps<FileContent>,
    pub(super) catalog: Option<&'a CatalogBatch>,
}

impl Applier<'_> {
    /// Takes all steps and syncs. `done` is told how many of them, of both kinds, are taken.
    pub(super) fn apply(&self, mut done: impl FnMut(usize)) -> Result<Applied> {
        let mut applied = Applied::default();
        if let Some(catalog) = self.catalog {
            catalog::write(self.backend, self.volume, catalog)?;
        }
        for (count, step) in self.steps.clear.iter().enumerate() {
            self.clear(step, &mut applied)?;
            done(count + 1);
        }
        if self.steps.needs_barrier() {
            self.backend.sync()?;
            create_with(self.backend, &layout::barrier_path(self.batch), b"")?;
            self.backend.sync()?;
        } else if self.steps.needs_sync_between() {
            self.backend.sync()?;
        }
        let private = self.private_paths();
        for (count, step) in self.steps.place.iter().enumerate() {
            self.place(step, &private, &mut applied)?;
            done(self.steps.clear.len() + count + 1);
        }
        real::set_attributes(self.backend, &self.steps.attributes, &mut applied)?;
        self.backend.sync()?;
        // What a full segment supersedes is gone for good before the record goes: a redo that finds no record looks for none.
        if let Some(catalog) = self.catalog
            && catalog::remove_superseded(self.backend, self.volume, (self.batch, catalog))?
        {
            self.backend.sync()?;
        }
        Ok(applied)
    }

    fn clear(&self, step: &ClearStep, applied: &mut Applied) -> Result<()> {
        match step {
            ClearStep::Detach { from, slot, .. } => {
                let slot = layout::slot_path(self.batch, *slot);
                match self.backend.rename(from, &slot) {
                    // Told when it is missed at its new name.
                    Err(error) if is_absent(&error) => Ok(()),
                    result => Ok(result?),
                }
            }
            ClearStep::RemoveFile { path } => match self.backend.remove_file(path) {
                Err(error) if !is_absent(&error) => Err(error.into()),
                _ => Ok(()),
            },
            ClearStep::RemoveDir { path } => match self.backend.remove_dir(path) {
                Err(error) if error.is_not_found() => Ok(()),
                // Somebody else has put something into it, or a file in its place.
                Err(error)
                    if matches!(
                        error.source.kind(),
                        std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotADirectory
                    ) =>
                {
                    applied.kept.push(path.clone());
                    Ok(())
                }
                result => Ok(result?),
            },
        }
    }

    fn place(
        &self,
        step: &PlaceStep<FileContent>,
        private: &HashSet<&RelPath>,
        applied: &mut Applied,
    ) -> Result<()> {
        match step {
            PlaceStep::MakeDir { path } => match self.backend.make_dir(path) {
                Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {
                    self.must_be_dir(path)
                }
                // Closed before there is anything in it.
                Ok(()) if private.contains(path) => {
                    Ok(self.backend.set_permissions(path, 0o700)?)
                }
                Ok(()) => Ok(()),
                Err(error) => Err(error.into()),
            },
            PlaceStep::Attach { slot, to, .. } => {
                let from = layout::slot_path(self.batch, *slot);
                match self.backend.rename(&from, to) {
                    Err(error) if is_absent(&error) && !exists(self.backend, &from)? => {
                        applied.vanished.push(to.clone());
                        Ok(())
                    }
                    result => Ok(result?),
                }
            }
            PlaceStep::Install { slot, to, .. } => {
                let from = layout::slot_path(self.batch, *slot);
                Ok(self.backend.rename(&from, to)?)
            }
            PlaceStep::InstallNode { slot, to, .. } => {
                let from = layout::slot_path(self.batch, *slot);
                Ok(self.backend.rename(&from, to)?)
            }
            PlaceStep::Link { from, to } => real::link(self.backend, self.batch, from, to, applied),
            PlaceStep::Touch { path, modified } => set_time(self.backend, path, *modified),
        }
    }

    /// What others may not look into once it has its attributes.
    fn private_paths(&self) -> HashSet<&RelPath> {
        let is_private = |mode: u32| mode & 0o055 != 0o055;
        let steps = self.steps.attributes.iter();
        let private = steps.filter(|step| step.mode.is_some_and(is_private));
        private.map(|step| &step.path).collect()
    }

    fn must_be_dir(&self, path: &RelPath) -> Result<()> {
        if self.backend.metadata(path)?.kind == FileKind::Directory {
            return Ok(());
        }
        Err(FlushError::Unfinished {
            batch: self.batch,
            problem: format!("a file stands where the directory {path} belongs; move it away"),
        })
    }
}

/// Gives a file its time. One that cannot be set on the backend, or whose file is gone, is kept in the index.
pub(super) fn set_time(backend: &dyn Backend, path: &RelPath, modified: Timestamp) -> Result<()> {
    match backend.set_modified(path, modified) {
        Err(error)
            if error.is_not_found()
                || matches!(
                    error.source.raw_os_error(),
                    Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)
                ) =>
        {
            Ok(())
        }
        result => Ok(result?),
    }
}

/// Nothing stands there: the name is not there, or what should be a directory on the way is none.
pub(super) fn is_absent(error: &BackendError) -> bool {
    error.is_not_found() || error.source.kind() == std::io::ErrorKind::NotADirectory
}

/// Whether anything stands at `path`.
pub(super) fn exists(backend: &dyn Backend, path: &RelPath) -> Result<bool> {
    match backend.metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes a file with these bytes; not durable before the next sync.
pub(super) fn create_with(backend: &dyn Backend, path: &RelPath, bytes: &[u8]) -> Result<()> {
    let mut file = backend.create(path)?;
    file.append(bytes)
        .and_then(|()| file.finish(Timestamp::from(std::time::SystemTime::now())))
        .map_err(|source| BackendError::new("write", path, source).into())
}

/// Whether the file at `path` has this size and these bytes. False also if nothing, or no file, stands there.
pub(super) fn matches(
    backend: &dyn Backend,
    path: &RelPath,
    content: &FileContent,
) -> Result<bool> {
    let meta = match backend.metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if meta.kind != FileKind::Regular || meta.size != content.size {
        return Ok(false);
    }
    Ok(hash_file(&*backend.open(path)?, path)? == content.hash)
}

/// The hash of all bytes of an open file.
pub(super) fn hash_file(file: &dyn ReadFile, path: &RelPath) -> Result<ContentHash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    loop {
        let got = file
            .read_at(&mut buffer, at)
            .map_err(|source| BackendError::new("read", path, source))?;
        if got == 0 {
            return Ok(ContentHash(*hasher.finalize().as_bytes()));
        }
        hasher.update(&buffer[..got]);
        at += got as u64;
    }
}
