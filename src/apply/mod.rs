//! Applies a committed batch for the first time: clear, mark, place, one sync. It trusts what it
//! has just staged. If anything interrupts it, [`crate::recovery::replay`] finishes the batch. The
//! mark between the phases records that clearing is over; see [`Steps::needs_barrier`] for when it
//! is needed.

pub(crate) mod blocked;
pub(crate) mod explain;
pub(crate) mod journal;
pub(crate) mod limited;
pub(crate) mod move_backup;
pub(crate) mod moves;
pub(crate) mod patch;
pub(crate) mod place;
pub(crate) mod put_back;
pub(crate) mod refused;
pub(crate) mod refused_list;
pub(crate) mod reserve;
pub(crate) mod special_files;
pub(crate) mod staging;
pub(crate) mod versions;

use std::collections::{BTreeSet, HashSet};

use uuid::Uuid;

use crate::apply::blocked::Blocked;
use crate::apply::patch::{Failure, Patch};
use crate::apply::place::{Manners, Placer, is_across};
use crate::apply::put_back::put_back;
use crate::apply::refused::{Refused, StepNo, Why};
use crate::catalog;
use crate::core::{BatchNo, FileKind, ForeignText, RelPath};
use crate::drive::create_with;
use crate::drive::exists;
use crate::drive::has_moved;
use crate::drive::is_absent;
use crate::drive::set_time;
use crate::drive::{Backend, BackendError};
use crate::error::{FlushError, Result};
use crate::format::catalog::CatalogBatch;
use crate::format::expectations::{Expectations, ExpectedFile};
use crate::format::layout;
use crate::format::steps::{
    AttributeStep, ClearStep, FileContent, PatchFile, PlaceStep, PlainKind, SlotNo, Steps,
};

/// What a batch has met on the drive that it could not have known.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Directories that could not be removed, because they hold unknown files or are files now.
    pub(crate) kept: Vec<RelPath>,
    /// New names of files that were to be moved and are nowhere: somebody else has removed them, or
    /// the drive has lost them.
    pub(crate) vanished: Vec<RelPath>,
    /// Files whose attributes the backend has refused.
    pub(crate) not_set: Vec<RelPath>,
    /// New names of files that were moved and keep their old time.
    pub(crate) not_touched: Vec<RelPath>,
    /// New names of directories that were to be moved and are nowhere: the drive has lost them with
    /// their contents. Each was made again, and holds only what the batch places there.
    pub(crate) lost_dirs: Vec<RelPath>,
    /// Steps that the backend has refused, and what became of their files.
    pub(crate) refused: Refused,
    /// Other programs' versions that were in the way: their name, and their present name.
    pub(crate) conflicts: Vec<(RelPath, RelPath)>,
    /// Files that were to be removed and that others have changed. They stay.
    pub(crate) theirs: Vec<RelPath>,
    /// The segment of the catalog could not be written, so its contents must be written again.
    pub(crate) catalog_refused: bool,
    /// Files in the staging directory, or beside their names, that end with the batch.
    pub(crate) garbage: Vec<RelPath>,
}

const NOT_EMPTY: &str =
    "removed in the mount, but on the drive it holds files that other programs have put there";

const VANISHED: &str = "moved in the mount, but the drive has it no more; if the cache has it, \
    the next flush puts it back";

const LOST_DIR: &str = "moved in the mount, but the drive has lost the directory with what was in \
    it; what the cache has of it the next flush puts back, for the rest run fsck on the drive";

const NOT_SET: &str = "the drive does not take all of its attributes (mode, owner, time, extended \
    attributes); they wait in the cache, and the next flush tries again";

/// Returns a path on the drive as a report names it.
fn named(path: &RelPath) -> String {
    match path.is_root() {
        true => "the drive's top directory".into(),
        false => path.to_text(),
    }
}

const THEIRS: &str =
    "removed in the mount, but another program has changed it on the drive; it stays there";

impl Applied {
    /// Returns the same as messages to a user: path and reason. Without the refused steps, which
    /// are named by their names in the mount.
    pub(crate) fn surprises(&self) -> impl Iterator<Item = (String, String)> {
        let kept = self.kept.iter().map(|path| (path, NOT_EMPTY));
        let vanished = self.vanished.iter().map(|path| (path, VANISHED));
        let lost_dirs = self.lost_dirs.iter().map(|path| (path, LOST_DIR));
        let not_set = self.not_set.iter().chain(&self.not_touched);
        let not_set = not_set.map(|path| (path, NOT_SET));
        let theirs = self.theirs.iter().map(|path| (path, THEIRS));
        kept.chain(vanished)
            .chain(lost_dirs)
            .chain(not_set)
            .chain(theirs)
            .map(|(path, reason)| (named(path), reason.to_string()))
    }

    /// Returns the directories in which something differs from the batch, so that they must be
    /// looked at again.
    pub(crate) fn dirs_to_look_at(&self) -> BTreeSet<RelPath> {
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
pub(crate) struct Applier<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) batch: BatchNo,
    pub(crate) volume: Uuid,
    pub(crate) steps: &'a Steps<FileContent>,
    pub(crate) known: &'a Expectations,
    pub(crate) catalog: Option<&'a CatalogBatch>,
    pub(crate) manners: &'a Manners,
}

impl Applier<'_> {
    /// Takes all steps and syncs. A step that the backend refuses is set aside. `done` gets the
    /// number of steps taken, of both kinds.
    ///
    /// # Errors
    /// If the drive itself may have failed. A replay finds out what was done.
    pub(crate) fn apply(&self, applied: &mut Applied, mut done: impl FnMut(usize)) -> Result<()> {
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
        let patchable = self.begin_patches(&blocked, applied)?;
        let grown = self.grow_patches(&patchable, applied)?;
        for (number, step) in self.steps.place.iter().enumerate() {
            let (no, path) = (StepNo::Place(number), step.path());
            if applied.refused.has(no) {
                // A patch for which there is no space.
            } else if let Some(why) = blocked.why_not(step, &applied.refused) {
                applied.refused.note(no, path, why);
                if let PlaceStep::Install { slot, .. } | PlaceStep::InstallNode { slot, .. } = step
                {
                    (applied.garbage).push(layout::slot_path(self.batch, *slot));
                }
            } else {
                let placed = match step {
                    PlaceStep::Patch {
                        slot,
                        to,
                        content,
                        patch,
                    } if patchable.contains(slot) => {
                        self.patch(*slot, to, (content, patch), grown.contains(slot))
                    }
                    _ => self.place(number, step, &private, applied),
                };
                self.or_refuse(no, path, placed, applied)?;
            }
            if applied.refused.has(no) {
                blocked.note_missing(path);
            }
            done(self.steps.clear.len() + number + 1);
        }
        self.put_back(applied)?;
        let attributes = allowed_attributes(self.steps, &blocked, &applied.refused);
        special_files::set_attributes(self.backend, self.batch, attributes, applied)?;
        self.backend.sync()?;
        // The segments that a full one supersedes must be gone for good before the record goes: a
        // replay that finds no record does not look for them.
        if let Some(catalog) = self.catalog
            && !applied.catalog_refused
            && catalog::remove_superseded(self.backend, self.volume, (self.batch, catalog))?
        {
            self.backend.sync()?;
        }
        Ok(())
    }

    /// Writes the segment of the catalog. If it is refused, the batch goes on without it, and the
    /// next batch writes its contents.
    fn write_catalog(&self, catalog: &CatalogBatch, applied: &mut Applied) -> Result<()> {
        match catalog::write(self.backend, self.volume, catalog) {
            Err(FlushError::Backend(error)) if self.manners.is_refusal(&error) => {
                tracing::warn!(%error, "the catalog cannot be written; a later batch writes the \
                    attributes");
                applied.catalog_refused = true;
                // A part of a segment counts as none.
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
                let why = Why::of(self.steps, step, &error);
                applied.refused.note(step, path, why);
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
                    // It is reported when it is missing under its new name.
                    Err(error) if is_absent(&error) => Ok(()),
                    Err(error) if is_across(&error) => {
                        self.detach_across(number, from, *slot, applied)
                    }
                    // An error may come after the effect. Then nothing was refused: the file must
                    // not be looked for under its old name.
                    Err(error) if has_moved(self.backend, from, &to) => {
                        tracing::debug!(%error, "an error after the effect");
                        Ok(())
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
                    // It holds something that could not be removed, or files of others; or it is a
                    // file now.
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

    /// Sets a file aside that is on another file system than the staging directory. Its copy there
    /// is durable before the file is removed.
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
        // An error may come after the effect: then the copy is the only one.
        let is_there = || removed.is_err() && matches!(exists(self.backend, from), Ok(true));
        if stays || is_there() {
            // The file is still there; the copy is superfluous.
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
                        // Nothing is in the slot, and nothing was refused: the file is lost.
                        applied.vanished.push(to.clone());
                        Ok(())
                    }
                    result => result,
                }
            }
            PlaceStep::Install { slot, to, .. } | PlaceStep::InstallNode { slot, to, .. } => {
                self.install(*slot, to, applied)
            }
            // The file is another one than the batch expects. The replay decides.
            PlaceStep::Patch { to, .. } => Err(self.not_patched(to)),
            PlaceStep::Link { from, to } => {
                let expected = self.known.removed.get(to);
                let slot = spare_slot(number);
                special_files::link(&self.placer(), slot, (from, to), expected, applied)
            }
            PlaceStep::Touch { path, modified } => match set_time(self.backend, path, *modified) {
                Err(error)
                    if self.manners.is_refusal(&error) && follows_move(self.steps, number) =>
                {
                    applied.not_touched.push(path.clone());
                    Ok(())
                }
                result => Ok(result?),
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
            // The name is not refused: the staged file is gone. The replay writes it again.
            return Err(FlushError::Unfinished {
                batch: self.batch,
                problem: format!("the staged copy of {to} has vanished from the drive"),
            });
        }
        applied.garbage.push(from);
        placed
    }

    /// Compares the files that are patched with what the batch expects of them, and notes, durably,
    /// that the patches of those that are so may be written from now on. Returns their slots.
    fn begin_patches(&self, blocked: &Blocked, applied: &Applied) -> Result<HashSet<SlotNo>> {
        let mut patchable = HashSet::new();
        for step in &self.steps.place {
            let PlaceStep::Patch { slot, to, .. } = step else {
                continue;
            };
            if blocked.why_not(step, &applied.refused).is_some() {
                continue;
            }
            match self.begin_patch(*slot, to) {
                Ok(true) => drop(patchable.insert(*slot)),
                Ok(false) => {}
                // Without the note nothing is patched; the replay tries again.
                Err(FlushError::Backend(error)) if self.manners.is_refusal(&error) => {
                    tracing::debug!(%error, path = %to, "not patched");
                }
                Err(error) => return Err(error),
            }
        }
        if !patchable.is_empty() {
            self.backend.sync()?;
        }
        Ok(patchable)
    }

    fn begin_patch(&self, slot: SlotNo, to: &RelPath) -> Result<bool> {
        let Some(expected) = self.known.replaced.get(&slot) else {
            return Ok(false);
        };
        let is_as_before = self.is_as_before(to, expected)?;
        if is_as_before {
            patch::note_begun(self.backend, self.batch, slot)?;
        }
        Ok(is_as_before)
    }

    /// Returns whether the file at `to` is the one that is to be patched, and may be.
    fn is_as_before(&self, to: &RelPath, expected: &ExpectedFile) -> Result<bool> {
        let found = match self.backend.metadata(to) {
            Err(error) if is_absent(&error) => return Ok(false),
            found => found?,
        };
        let may_be_patched = patch::may_be_patched(&found)
            && patch::Access::given(&self.steps.attributes, to).may_be_given_later(&found);
        Ok(may_be_patched && self.placer().is_as_expected(to, &found, expected)?)
    }

    /// Writes, durably, what patched files grow by, before any of their old bytes is written over.
    /// Returns the slots of those that have grown.
    fn grow_patches(
        &self,
        patchable: &HashSet<SlotNo>,
        applied: &mut Applied,
    ) -> Result<HashSet<SlotNo>> {
        let mut grown = HashSet::new();
        for (number, step) in self.steps.place.iter().enumerate() {
            let PlaceStep::Patch {
                slot, to, patch, ..
            } = step
            else {
                continue;
            };
            if !patchable.contains(slot) {
                continue;
            }
            let done = self.grow_patch(*slot, to, patch);
            if let Ok(true) = done {
                grown.insert(*slot);
            }
            self.or_refuse(StepNo::Place(number), to, done.map(drop), applied)?;
        }
        if !grown.is_empty() {
            self.backend.sync()?;
        }
        Ok(grown)
    }

    fn grow_patch(&self, slot: SlotNo, to: &RelPath, wanted: &PatchFile) -> Result<bool> {
        let Some(before) = self.known.replaced.get(&slot) else {
            return Err(self.not_patched(to));
        };
        let opened = self.open_patch(slot, to, wanted)?;
        if !opened.grows() {
            return Ok(false);
        }
        // Once more: the notes, the sync, and other files may have taken a while.
        if !self.is_as_before(to, before)? {
            return Err(self.not_patched(to));
        }
        let grown = opened.grow(self.backend, to, before.modified);
        grown.map_err(|failure| self.explain_failure(failure, to))?;
        Ok(true)
    }

    fn open_patch(&self, slot: SlotNo, to: &RelPath, wanted: &PatchFile) -> Result<Patch> {
        let from = layout::patch_path(self.batch, slot);
        let opened = Patch::open(self.backend, &patch::usual, &from, wanted)?;
        opened.ok_or_else(|| self.not_patched(to))
    }

    /// Writes the patch in `slot` over the old bytes of the file at `to`, which `has_grown` to its
    /// new size. If it is not as it was then, the replay finds out what others have written.
    fn patch(
        &self,
        slot: SlotNo,
        to: &RelPath,
        (content, wanted): (&FileContent, &PatchFile),
        has_grown: bool,
    ) -> Result<()> {
        let Some(before) = self.known.replaced.get(&slot) else {
            return Err(self.not_patched(to));
        };
        let opened = self.open_patch(slot, to, wanted)?;
        let expected = match has_grown {
            true => ExpectedFile {
                size: content.size,
                hash: None,
                ..*before
            },
            false => *before,
        };
        if !self.is_as_before(to, &expected)? {
            return Err(self.not_patched(to));
        }
        let written = opened.write(self.backend, to, content.modified);
        written.map_err(|failure| match failure {
            Failure::Unchanged(error) if has_grown => {
                let shrunk = opened.shrink(self.backend, to, before.modified);
                self.explain_failure(
                    match shrunk {
                        Ok(()) => Failure::Unchanged(error),
                        Err(_) => Failure::Torn(error),
                    },
                    to,
                )
            }
            failure => self.explain_failure(failure, to),
        })
    }

    /// Returns the error of a patch that was not written. Only if the file at `to` is as it was may
    /// it be taken for the refusal of one name.
    fn explain_failure(&self, failure: Failure, to: &RelPath) -> FlushError {
        match failure {
            Failure::Unchanged(error) if !is_absent(&error) => error.into(),
            Failure::Unchanged(error) | Failure::Torn(error)
                if error.is_refusal() && !error.is_full() =>
            {
                tracing::warn!(%error, path = %to, "not patched");
                self.not_patched(to)
            }
            Failure::Unchanged(error) | Failure::Torn(error) => error.into(),
            Failure::Foreign => {
                tracing::warn!(path = %to, "another program writes into it; not patched");
                self.not_patched(to)
            }
        }
    }

    fn not_patched(&self, path: &RelPath) -> FlushError {
        FlushError::Unfinished {
            batch: self.batch,
            problem: format!("the changed blocks of {path} could not be written into it"),
        }
    }

    fn put_back(&self, applied: &mut Applied) -> Result<()> {
        if applied.refused.is_empty() {
            return Ok(());
        }
        let standing = |slot| {
            let path = layout::slot_path(self.batch, slot);
            // If it cannot be looked at it counts as there.
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
        // Closed to others before there is anything in it.
        if private.contains(path) {
            self.backend.set_permissions(path, 0o700)?;
        }
        Ok(())
    }

    /// Returns the directories that others may not look into once they have their attributes.
    fn private_paths(&self) -> HashSet<&RelPath> {
        let is_private = |mode: u32| mode & 0o055 != 0o055;
        let steps = self.steps.attributes.iter();
        let private = steps.filter(|step| step.mode.is_some_and(is_private));
        private.map(|step| &step.path).collect()
    }
}

/// Returns whether the place step with this number sets the time of the file that the step before
/// it moves. That file has its name even if the time is refused.
pub(crate) fn follows_move(steps: &Steps<FileContent>, number: usize) -> bool {
    let before = number
        .checked_sub(1)
        .and_then(|before| steps.place.get(before));
    matches!(
        (before, steps.place.get(number)),
        (Some(PlaceStep::Attach { to, .. }), Some(PlaceStep::Touch { path, .. })) if to == path
    )
}

/// Returns a slot that no batch uses, for the place step with this number: slots are counted from
/// 0.
pub(crate) fn spare_slot(number: usize) -> SlotNo {
    SlotNo(u32::MAX - u32::try_from(number).unwrap_or(u32::MAX))
}

/// Makes a directory, or accepts the one that is there. A file that somebody else has put there
/// gets a conflict name.
pub(crate) fn make_dir_kept(
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

/// Returns the attribute steps of the files that the batch has placed. A file under a refused name
/// keeps its attributes.
pub(crate) fn allowed_attributes<'a>(
    steps: &'a Steps<FileContent>,
    blocked: &Blocked,
    refused: &Refused,
) -> Vec<&'a AttributeStep> {
    (steps.attributes.iter())
        .filter(|step| !refused.has_name(&step.path) && blocked.why(&step.path).is_none())
        .collect()
}

/// Makes the mark that records that the first phase is over, after the list of its refused steps.
/// Not durable before the next sync.
///
/// # Errors
/// If the backend fails. There may be a list without a mark then, which the next attempt replaces.
pub(crate) fn mark_cleared(backend: &dyn Backend, batch: BatchNo, refused: &Refused) -> Result<()> {
    let cleared: Vec<StepNo> = refused.cleared().map(StepNo::Clear).collect();
    refused_list::write(backend, &layout::refused_path(batch), &cleared)?;
    Ok(create_with(backend, &layout::barrier_path(batch), b"")?)
}

/// Returns the clear steps that were refused, if the mark is there; `None` if there is no mark.
pub(crate) fn read_mark(backend: &dyn Backend, batch: BatchNo) -> Result<Option<Vec<StepNo>>> {
    match exists(backend, &layout::barrier_path(batch))? {
        true => refused_list::read(backend, &layout::refused_path(batch)).map(Some),
        false => Ok(None),
    }
}

fn is_in_use_by_names(error: &BackendError) -> bool {
    matches!(
        error.source.kind(),
        std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotADirectory
    )
}

/// Returns the other programs' versions that were in the way: the path, and where each is kept.
pub(crate) fn named_conflicts(applied: &Applied) -> impl Iterator<Item = (String, String)> {
    let conflicts = applied.conflicts.iter();
    conflicts.map(|(path, kept)| (path.to_text(), kept.to_text()))
}
