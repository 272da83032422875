//! Applying a committed batch: clear, mark, place, one sync. Every step tolerates having been done already.
//!
//! The first run trusts what it has just staged. A redo trusts nothing but sizes and hashes: a slot that does not match its
//! record is staged anew from the SSD, and so is a file that is neither in its slot nor whole under its name. The mark between
//! the phases makes it known that clearing is over; see [`Steps::needs_barrier`] for when it is needed.

use std::collections::BTreeMap;

use super::report::{FlushError, Result};
use super::stage::stage_file;
use crate::backend::{Backend, BackendError, ReadFile};
use crate::base::{BatchNo, ContentHash, FileKind, RelPath, Timestamp};
use crate::cache::Store;
use crate::rules::layout;
use crate::rules::plan::StageSource;
use crate::rules::steps::{ClearStep, FileContent, PlaceStep, SlotNo, Steps};

/// Bytes read at a time when a file is verified.
const BUFFER: usize = 1 << 20;

/// Whether the steps are taken for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Right after staging and committing.
    First,
    /// After something went wrong at an unknown point.
    Redo,
}

/// Where a redo finds bytes that the backend has lost.
pub(super) struct Rebuild<'a> {
    pub(super) store: &'a Store,
    pub(super) sources: &'a BTreeMap<SlotNo, StageSource>,
}

/// What a batch has met that it could not have known.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Directories that were to be removed but hold something that ferryfs does not know, or that is what they are now.
    pub(super) kept: Vec<RelPath>,
    /// What was to be moved, by its new name, but is nowhere: somebody else has removed it, or the drive has lost it.
    pub(super) vanished: Vec<RelPath>,
}

const NOT_EMPTY: &str =
    "removed in the mount, but on the drive it holds files that somebody else has put there";

const VANISHED: &str = "moved in the mount, but the drive has it no more; if the cache has it, the next flush puts it back";

impl Applied {
    /// The same for people: path and reason.
    pub(super) fn surprises(&self) -> impl Iterator<Item = (String, String)> {
        let kept = self.kept.iter().map(|path| (path, NOT_EMPTY));
        let vanished = self.vanished.iter().map(|path| (path, VANISHED));
        kept.chain(vanished)
            .map(|(path, reason)| (path.to_string(), reason.to_string()))
    }
}

/// Applies one batch.
pub(super) struct Applier<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) batch: BatchNo,
    pub(super) steps: &'a Steps<FileContent>,
    pub(super) run: Run,
    /// `None` where there is no cache at hand.
    pub(super) rebuild: Option<Rebuild<'a>>,
}

impl Applier<'_> {
    /// Takes all steps and syncs.
    pub(super) fn apply(&self, mut done: impl FnMut(usize)) -> Result<Applied> {
        let mut applied = Applied::default();
        let barrier = self.steps.needs_barrier();
        if !(barrier && self.run == Run::Redo && self.exists(&layout::barrier_path(self.batch))?) {
            for step in &self.steps.clear {
                self.clear(step, &mut applied)?;
            }
            if barrier {
                self.mark_cleared()?;
            }
        }
        for (count, step) in self.steps.place.iter().enumerate() {
            self.place(step, &mut applied)?;
            done(count + 1);
        }
        self.backend.sync()?;
        Ok(applied)
    }

    fn mark_cleared(&self) -> Result<()> {
        self.backend.sync()?;
        let mark = layout::barrier_path(self.batch);
        if !self.exists(&mark)? {
            create_with(self.backend, &mark, b"")?;
        }
        Ok(self.backend.sync()?)
    }

    fn clear(&self, step: &ClearStep, applied: &mut Applied) -> Result<()> {
        match step {
            ClearStep::Detach { from, slot, .. } => {
                let slot = layout::slot_path(self.batch, *slot);
                if self.run == Run::Redo && self.exists(&slot)? {
                    return Ok(());
                }
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

    fn place(&self, step: &PlaceStep<FileContent>, applied: &mut Applied) -> Result<()> {
        match step {
            PlaceStep::MakeDir { path } => match self.backend.make_dir(path) {
                Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {
                    self.must_be_dir(path)
                }
                result => Ok(result?),
            },
            PlaceStep::Attach { slot, to, .. } => {
                let from = layout::slot_path(self.batch, *slot);
                if !self.exists(&from)? {
                    if self.run == Run::First || !self.exists(to)? {
                        applied.vanished.push(to.clone());
                    }
                    return Ok(());
                }
                Ok(self.backend.rename(&from, to)?)
            }
            PlaceStep::Install { slot, to, content } => self.install(*slot, to, content),
            PlaceStep::Touch { path, modified } => self.touch(path, *modified),
        }
    }

    fn install(&self, slot: SlotNo, to: &RelPath, content: &FileContent) -> Result<()> {
        let from = layout::slot_path(self.batch, slot);
        if self.run == Run::First {
            return Ok(self.backend.rename(&from, to)?);
        }
        if !self.exists(&from)? {
            if matches(self.backend, to, content)? {
                return Ok(());
            }
            self.rebuild(slot, &from, to, content)?;
        } else if !matches(self.backend, &from, content)? {
            self.backend.remove_file(&from)?;
            self.rebuild(slot, &from, to, content)?;
        }
        Ok(self.backend.rename(&from, to)?)
    }

    /// Stages a file anew whose staged copy is damaged or lost.
    fn rebuild(
        &self,
        slot: SlotNo,
        from: &RelPath,
        to: &RelPath,
        content: &FileContent,
    ) -> Result<()> {
        let unfinished = |problem: String| FlushError::Unfinished {
            batch: self.batch,
            problem,
        };
        let source = self.rebuild.as_ref().and_then(|rebuild| {
            rebuild
                .sources
                .get(&slot)
                .map(|source| (rebuild.store, source))
        });
        let Some((store, source)) = source else {
            return Err(unfinished(format!(
                "the staged copy of {to} is damaged or missing; only the machine that wrote it can finish the batch"
            )));
        };
        tracing::warn!(path = %to, "a staged file is damaged or missing; it is written anew from the cache");
        let mut buffer = vec![0; BUFFER];
        let measured = stage_file(
            self.backend,
            store,
            source,
            from,
            Some(content.size),
            &mut buffer,
            |_| Ok(()),
        )?;
        if (measured.size, measured.hash) != (content.size, content.hash) {
            return Err(unfinished(format!(
                "the cache has other bytes for {to} than the batch"
            )));
        }
        Ok(())
    }

    fn touch(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        match self.backend.set_modified(path, modified) {
            // A time that cannot be set on the backend is kept in the index.
            Err(error)
                if matches!(
                    error.source.raw_os_error(),
                    Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)
                ) =>
            {
                Ok(())
            }
            result => Ok(result?),
        }
    }

    fn exists(&self, path: &RelPath) -> Result<bool> {
        exists(self.backend, path)
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

/// Nothing stands there: the name is not there, or what should be a directory on the way is none.
fn is_absent(error: &BackendError) -> bool {
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
