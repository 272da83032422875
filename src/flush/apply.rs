//! Applying a committed batch for the first time: clear, mark, place, one sync. It trusts what it has just staged. Whatever
//! interrupts it is repaired by [`super::redo`]. The mark between the phases makes it known that clearing is over; see
//! [`Steps::needs_barrier`] for when it is needed.

use std::collections::{BTreeSet, HashSet};

use uuid::Uuid;

use super::placing::{Manners, Placer, is_across};
use super::refused::{Blocked, Refused, StepNo, Why, errno_of, put_back};
use super::report::{FlushError, Result};
use super::untrusted::read_small;
use super::{catalog, real};
use crate::backend::{Backend, BackendError, ReadFile};
use crate::base::{BatchNo, ContentHash, FileKind, ForeignText, RelPath, Timestamp};
use crate::rules::catalog::CatalogBatch;
use crate::rules::known::Known;
use crate::rules::layout;
use crate::rules::steps::{
    AttributeStep, ClearStep, FileContent, PlaceStep, PlainKind, SlotNo, Steps,
};

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
    /// Steps that the backend refuses, and what became of what they were about.
    pub(super) refused: Refused,
    /// Versions of others that were in the way: the name that they had, and the one that they have now.
    pub(super) conflicts: Vec<(RelPath, RelPath)>,
    /// Files that were to be removed, and that others have changed: they stay.
    pub(super) theirs: Vec<RelPath>,
    /// The segment of the catalog could not be written: what it says is to be said again.
    pub(super) catalog_refused: bool,
    /// What is left in the staging directory, or beside its name, and ends with the batch.
    pub(super) garbage: Vec<RelPath>,
}

const NOT_EMPTY: &str =
    "removed in the mount, but on the drive it holds files that somebody else has put there";

const VANISHED: &str = "moved in the mount, but the drive has it no more; if the cache has it, the next flush puts it back";

const LOST_DIR: &str = "moved in the mount, but the drive has lost the directory with what was in it; what the cache has of it the next flush puts back, for the rest run fsck on the drive";

const NOT_LINKED: &str =
    "the drive does not take it as a further name of its file; make it a copy, or remove it";

const NOT_SET: &str = "the drive does not take all of its attributes (mode, owner, extended attributes); they stay in the cache";

const THEIRS: &str =
    "removed in the mount, but somebody else has changed it on the drive; it stays there";

impl Applied {
    /// The same for people: path and reason. What was refused is not among it: it is named by its name in the mount.
    pub(super) fn surprises(&self) -> impl Iterator<Item = (String, String)> {
        let kept = self.kept.iter().map(|path| (path, NOT_EMPTY));
        let vanished = self.vanished.iter().map(|path| (path, VANISHED));
        let lost_dirs = self.lost_dirs.iter().map(|path| (path, LOST_DIR));
        let not_linked = self.not_linked.iter().map(|path| (path, NOT_LINKED));
        let not_set = self.not_set.iter().map(|path| (path, NOT_SET));
        let theirs = self.theirs.iter().map(|path| (path, THEIRS));
        kept.chain(vanished)
            .chain(lost_dirs)
            .chain(not_linked)
            .chain(not_set)
            .chain(theirs)
            .map(|(path, reason)| (path.to_text(), reason.to_string()))
    }

    /// The directories in which something is not as the batch has it, so that they are to be looked at again.
    pub(super) fn dirs_to_look_at(&self) -> BTreeSet<RelPath> {
        let paths = (self.conflicts.iter().map(|(path, _)| path))
            .chain(&self.theirs)
            .chain(&self.kept)
            .chain(self.refused.steps.iter().map(|refusal| &refusal.path));
        paths
            .filter_map(|path| Some(path.split_last()?.0))
            .collect()
    }
}

/// Applies one batch.
pub(super) struct Applier<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) batch: BatchNo,
    pub(super) volume: Uuid,
    pub(super) steps: &'a Steps<FileContent>,
    pub(super) known: &'a Known,
    pub(super) catalog: Option<&'a CatalogBatch>,
    pub(super) manners: &'a Manners,
}

impl Applier<'_> {
    /// Takes all steps and syncs. A step that the backend refuses is set aside. `done` is told how many of them, of both
    /// kinds, are taken.
    ///
    /// # Errors
    /// If it may be the drive itself that failed: what has been done is for a redo to find out.
    pub(super) fn apply(&self, applied: &mut Applied, mut done: impl FnMut(usize)) -> Result<()> {
        if let Some(catalog) = self.catalog {
            self.write_catalog(catalog, applied)?;
        }
        for (number, step) in self.steps.clear.iter().enumerate() {
            let cleared = self.clear(number, step, applied);
            self.or_refuse(StepNo::Clear(number), step.path(), cleared, applied)?;
            done(number + 1);
        }
        if self.steps.needs_barrier() {
            self.backend.sync()?;
            mark_cleared(self.backend, self.batch, &applied.refused)?;
            self.backend.sync()?;
        } else if self.steps.needs_sync_between() {
            self.backend.sync()?;
        }
        let private = self.private_paths();
        let mut blocked = Blocked::after_clear(self.steps, &applied.refused);
        for (number, step) in self.steps.place.iter().enumerate() {
            let (no, path) = (StepNo::Place(number), step.path());
            if let Some(why) = blocked.why_not(step, &applied.refused) {
                applied.refused.note(no, path, why);
                if let PlaceStep::Install { slot, .. } | PlaceStep::InstallNode { slot, .. } = step
                {
                    (applied.garbage).push(layout::slot_path(self.batch, *slot));
                }
            } else {
                let placed = self.place(number, step, &private, applied);
                self.or_refuse(no, path, placed, applied)?;
            }
            if applied.refused.has(no) {
                blocked.note_missing(path);
            }
            done(self.steps.clear.len() + number + 1);
        }
        self.put_back(applied)?;
        let attributes = allowed_attributes(self.steps, &blocked, &applied.refused);
        real::set_attributes(self.backend, self.batch, attributes, applied)?;
        self.backend.sync()?;
        // What a full segment supersedes is gone for good before the record goes: a redo that finds no record looks for none.
        if let Some(catalog) = self.catalog
            && !applied.catalog_refused
            && catalog::remove_superseded(self.backend, self.volume, (self.batch, catalog))?
        {
            self.backend.sync()?;
        }
        Ok(())
    }

    /// The segment of the catalog. The rest of the batch does not wait for it: what it says is said again by the next one.
    fn write_catalog(&self, catalog: &CatalogBatch, applied: &mut Applied) -> Result<()> {
        match catalog::write(self.backend, self.volume, catalog) {
            Err(FlushError::Backend(error)) if self.manners.is_refusal(&error) => {
                tracing::warn!(%error, "the catalog cannot be written; attributes are told by a later batch");
                applied.catalog_refused = true;
                // Part of a segment is none.
                let _ = self
                    .backend
                    .remove_file(&layout::segment_path(catalog.segment));
                Ok(())
            }
            result => result,
        }
    }

    fn or_refuse(
        &self,
        step: StepNo,
        path: &RelPath,
        result: Result<()>,
        applied: &mut Applied,
    ) -> Result<()> {
        match result {
            Err(FlushError::FullThere { path }) => {
                applied.refused.note(step, &path, Why::Errno(libc::ENOSPC));
                Ok(())
            }
            Err(FlushError::Backend(error)) if self.manners.is_refusal(&error) => {
                tracing::debug!(%error, "refused");
                applied
                    .refused
                    .note(step, path, Why::Errno(errno_of(&error)));
                Ok(())
            }
            result => result,
        }
    }

    fn placer(&self) -> Placer<'_> {
        Placer {
            backend: self.backend,
            batch: self.batch,
            manners: self.manners,
        }
    }

    fn clear(&self, number: usize, step: &ClearStep, applied: &mut Applied) -> Result<()> {
        match step {
            ClearStep::Detach { from, slot, .. } => {
                let to = layout::slot_path(self.batch, *slot);
                match self.backend.rename(from, &to) {
                    // Told when it is missed at its new name.
                    Err(error) if is_absent(&error) => Ok(()),
                    Err(error) if is_across(&error) => {
                        self.detach_across(number, from, *slot, applied)
                    }
                    result => Ok(result?),
                }
            }
            ClearStep::RemoveFile { path } => {
                let expected = self.known.removed.get(path);
                self.placer().remove(number, path, expected, applied)
            }
            ClearStep::RemoveDir { path } => match self.backend.remove_dir(path) {
                Err(error) if error.is_not_found() => Ok(()),
                Err(error) if is_in_use_by_names(&error) => {
                    // It holds what was to be removed and could not be, or what somebody else has put there; or it is a file now.
                    match applied.refused.holds(path) {
                        true => Err(error.into()),
                        false => {
                            applied.kept.push(path.clone());
                            Ok(())
                        }
                    }
                }
                result => Ok(result?),
            },
        }
    }

    /// Sets a file aside that is on another file system than the staging directory: a copy goes there, and is durable before the
    /// file is removed.
    fn detach_across(
        &self,
        number: usize,
        from: &RelPath,
        slot: SlotNo,
        applied: &mut Applied,
    ) -> Result<()> {
        let placer = self.placer();
        placer.note_across()?;
        let to = layout::slot_path(self.batch, slot);
        placer.copy(from, &to)?;
        self.backend.sync()?;
        let expected = self.known.moved.get(&slot);
        let removed = placer.remove(number, from, expected, applied);
        let stays = applied.theirs.last() == Some(from);
        if removed.is_err() || stays {
            // It stands where it stood; the copy is one too many.
            let _ = self.backend.remove_file(&to);
        }
        removed
    }

    fn place(
        &self,
        number: usize,
        step: &PlaceStep<FileContent>,
        private: &HashSet<&RelPath>,
        applied: &mut Applied,
    ) -> Result<()> {
        match step {
            PlaceStep::MakeDir { path } => self.make_dir(path, private, applied),
            PlaceStep::Attach { slot, to, kind } => {
                let from = layout::slot_path(self.batch, *slot);
                // A directory replaces nothing.
                let expected = match kind {
                    PlainKind::File => self.known.replaced.get(slot),
                    PlainKind::Directory => None,
                };
                match self.placer().place(*slot, &from, to, expected, applied) {
                    Err(FlushError::Backend(error))
                        if is_absent(&error) && !exists(self.backend, &from)? =>
                    {
                        self.not_there(*slot, to, applied)
                    }
                    result => result,
                }
            }
            PlaceStep::Install { slot, to, .. } | PlaceStep::InstallNode { slot, to, .. } => {
                self.install(*slot, to, applied)
            }
            PlaceStep::Link { from, to } => {
                let expected = self.known.removed.get(to);
                let slot = spare_slot(number);
                real::link(&self.placer(), slot, (from, to), expected, applied)
            }
            PlaceStep::Touch { path, modified } => match set_time(self.backend, path, *modified) {
                Err(FlushError::Backend(error))
                    if self.manners.is_refusal(&error) && follows_move(self.steps, number) =>
                {
                    applied.not_set.push(path.clone());
                    Ok(())
                }
                result => result,
            },
        }
    }

    fn install(&self, slot: SlotNo, to: &RelPath, applied: &mut Applied) -> Result<()> {
        let from = layout::slot_path(self.batch, slot);
        let expected = self.known.replaced.get(&slot);
        let placed = self.placer().place(slot, &from, to, expected, applied);
        let error = match &placed {
            Err(FlushError::FullThere { .. }) => {
                applied.garbage.push(from);
                return placed;
            }
            Err(FlushError::Backend(error)) if self.manners.is_refusal(error) => error,
            _ => return placed,
        };
        if is_absent(error) && !exists(self.backend, &from)? {
            // Not the name is refused: what was staged is gone. The redo writes it anew.
            return Err(FlushError::Unfinished {
                batch: self.batch,
                problem: format!("the staged copy of {to} has vanished from the drive"),
            });
        }
        applied.garbage.push(from);
        placed
    }

    /// What was to be moved is not in its slot: it was refused before, or it is nowhere.
    fn not_there(&self, slot: SlotNo, to: &RelPath, applied: &mut Applied) -> Result<()> {
        let kept = applied.refused.cleared();
        let is_it = |number: &usize| matches!(self.steps.clear.get(*number), Some(ClearStep::Detach { slot: other, .. }) if *other == slot);
        if kept.iter().any(is_it) {
            let source = std::io::Error::from_raw_os_error(libc::EPERM);
            return Err(BackendError::new("rename", to, source).into());
        }
        applied.vanished.push(to.clone());
        Ok(())
    }

    fn put_back(&self, applied: &mut Applied) -> Result<()> {
        if applied.refused.is_empty() {
            return Ok(());
        }
        let standing = |slot| {
            let path = layout::slot_path(self.batch, slot);
            // What cannot be looked at is there.
            (!matches!(exists(self.backend, &path), Ok(false))).then_some(path)
        };
        put_back(&self.placer(), self.steps, standing, applied)
    }

    fn make_dir(
        &self,
        path: &RelPath,
        private: &HashSet<&RelPath>,
        applied: &mut Applied,
    ) -> Result<()> {
        make_dir_kept(self.backend, path, &self.placer(), applied)?;
        // Closed before there is anything in it.
        if private.contains(path) {
            self.backend.set_permissions(path, 0o700)?;
        }
        Ok(())
    }

    /// What others may not look into once it has its attributes.
    fn private_paths(&self) -> HashSet<&RelPath> {
        let is_private = |mode: u32| mode & 0o055 != 0o055;
        let steps = self.steps.attributes.iter();
        let private = steps.filter(|step| step.mode.is_some_and(is_private));
        private.map(|step| &step.path).collect()
    }
}

/// Whether the place step with this number gives its time to what the step before has moved: that has its name all the same.
pub(super) fn follows_move(steps: &Steps<FileContent>, number: usize) -> bool {
    let before = number
        .checked_sub(1)
        .and_then(|before| steps.place.get(before));
    matches!(
        (before, steps.place.get(number)),
        (Some(PlaceStep::Attach { to, .. }), Some(PlaceStep::Touch { path, .. })) if to == path
    )
}

/// A slot that no batch has, for the place step with this number: slots are counted from 0.
pub(super) fn spare_slot(number: usize) -> SlotNo {
    SlotNo(u32::MAX - u32::try_from(number).unwrap_or(u32::MAX))
}

/// Makes a directory, or takes the one that is there. Another thing that somebody has put there gets the name of a conflict.
pub(super) fn make_dir_kept(
    backend: &dyn Backend,
    path: &RelPath,
    placer: &Placer<'_>,
    applied: &mut Applied,
) -> Result<()> {
    match backend.make_dir(path) {
        Err(error) if error.is_taken() => {}
        result => return Ok(result?),
    }
    if backend.metadata(path)?.kind == FileKind::Directory {
        return Ok(());
    }
    placer.keep_theirs(path, path, applied)?;
    match backend.make_dir(path) {
        Err(error) if error.is_taken() && is_dir(backend, path)? => Ok(()),
        result => Ok(result?),
    }
}

fn is_dir(backend: &dyn Backend, path: &RelPath) -> Result<bool> {
    match backend.metadata(path) {
        Ok(meta) => Ok(meta.kind == FileKind::Directory),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The attribute steps of what the batch has placed: what stands under a refused name keeps its own.
pub(super) fn allowed_attributes<'a>(
    steps: &'a Steps<FileContent>,
    blocked: &Blocked,
    refused: &Refused,
) -> Vec<&'a AttributeStep> {
    (steps.attributes.iter())
        .filter(|step| !refused.has_name(&step.path) && blocked.why(&step.path).is_none())
        .collect()
}

/// Makes the mark that says that the first phase is over, with the steps of it that were refused. Not durable before the next sync.
///
/// Their numbers, in decimal with a blank between them, then a line feed and the BLAKE3 of that in hexadecimal; empty if there are
/// none.
pub(super) fn mark_cleared(backend: &dyn Backend, batch: BatchNo, refused: &Refused) -> Result<()> {
    let numbers: Vec<String> = refused.cleared().iter().map(ToString::to_string).collect();
    let mut text = numbers.join(" ");
    if !text.is_empty() {
        text = format!("{text}\n{}", blake3::hash(text.as_bytes()).to_hex());
    }
    create_with(backend, &layout::barrier_path(batch), text.as_bytes())
}

/// The clear steps of which the mark says that they were refused; `None` if there is no mark.
pub(super) fn read_mark(backend: &dyn Backend, batch: BatchNo) -> Result<Option<Vec<usize>>> {
    let path = layout::barrier_path(batch);
    if !exists(backend, &path)? {
        return Ok(None);
    }
    let bytes = read_small(backend, &path, MARK_BYTES)?.unwrap_or_default();
    let text = String::from_utf8(bytes).unwrap_or_default();
    let numbers = text
        .split_once('\n')
        .filter(|(numbers, hash)| blake3::hash(numbers.as_bytes()).to_hex().as_str() == *hash);
    let numbers = numbers.map_or("", |(numbers, _)| numbers).split(' ');
    Ok(Some(
        numbers.filter_map(|number| number.parse().ok()).collect(),
    ))
}

/// Most bytes of the mark that are read: as many as a batch of a million steps may need.
const MARK_BYTES: usize = 8 << 20;

fn is_in_use_by_names(error: &BackendError) -> bool {
    matches!(
        error.source.kind(),
        std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotADirectory
    )
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

/// Makes a file with these bytes; not durable before the next sync. On a full backend held space is given up for it; if there
/// is none, no part of it stays.
pub(super) fn create_with(backend: &dyn Backend, path: &RelPath, bytes: &[u8]) -> Result<()> {
    loop {
        let mut file = backend.create(path)?;
        let written = file
            .append(bytes)
            .and_then(|()| file.finish(Timestamp::from(std::time::SystemTime::now())));
        let Err(source) = written else {
            return Ok(());
        };
        let error = BackendError::new("write", path, source);
        if !error.is_full() {
            return Err(error.into());
        }
        backend.remove_file(path)?;
        if !backend.relieve()? {
            return Err(error.into());
        }
    }
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
