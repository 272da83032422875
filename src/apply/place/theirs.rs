//! Keeps other programs' versions: under a conflict name or, if that is refused, in
//! `.ferryfs/lost+found`.

use crate::apply::Applied;
use crate::apply::place::{Manners, Placer, TRIES};
use crate::apply::refused::is_local;
use crate::apply::staging::make_lost_found;
use crate::core::{FileKind, Metadata, RelPath};
use crate::drive::{exists, hash_file, is_absent};
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::format::steps::SlotNo;
use crate::plan::merge::conflict_name;

/// The first of the slots for copies of cross-linked files. No batch has so many slots.
const PARTED: u32 = 1 << 31;

impl Placer<'_> {
    /// Deals with the file that was under `name` and was moved to `aside`: an expected file ends
    /// with the batch, any other is somebody else's version.
    pub(crate) fn keep_or_drop(
        &self,
        aside: &RelPath,
        name: &RelPath,
        expected: &ExpectedFile,
        applied: &mut Applied,
    ) -> Result<()> {
        match self.look(aside) {
            // A file that cannot be looked at may be anybody's.
            Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => {
                self.keep_aside(aside, name, applied)
            }
            found => self.keep_or_drop_found((aside, found?), name, expected, applied),
        }
    }

    pub(super) fn keep_or_drop_found(
        &self,
        (aside, found): (&RelPath, Option<Metadata>),
        name: &RelPath,
        expected: &ExpectedFile,
        applied: &mut Applied,
    ) -> Result<()> {
        let Some(found) = found else {
            return Ok(());
        };
        if self.is_as_expected(aside, &found, expected)? {
            applied.garbage.push(aside.clone());
            return Ok(());
        }
        self.keep_aside(aside, name, applied)
    }

    /// Keeps the file at `aside`, in our own directory, which is another program's version of
    /// `name`: under a conflict name or, if that is refused, in `.ferryfs/lost+found`.
    ///
    /// # Errors
    /// If it can be kept nowhere. This is no refusal: the batch must not end before the file is
    /// kept.
    pub(crate) fn keep_aside(
        &self,
        aside: &RelPath,
        name: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        let refused = match self.keep_theirs(aside, name, applied) {
            Err(FlushError::Backend(error)) if error.is_refusal() => error,
            result => return result,
        };
        let kept = self.to_lost_found(aside).map_err(|error| match error {
            FlushError::Backend(error) if error.is_refusal() => FlushError::NotKept {
                path: name.clone(),
                problem: refused.to_string(),
            },
            other => other,
        })?;
        applied.conflicts.push((name.clone(), kept));
        Ok(())
    }

    /// Moves the file at `at` to `.ferryfs/lost+found`, and returns its path there.
    pub(crate) fn to_lost_found(&self, at: &RelPath) -> Result<RelPath> {
        let dir = layout::lost_found();
        make_lost_found(self.backend)?;
        let kept = self.name_in_lost_found(at);
        if kept.is_err() {
            // Fails if the directory is not empty.
            let _ = self.backend.remove_dir(&dir);
        }
        kept
    }

    fn name_in_lost_found(&self, at: &RelPath) -> Result<RelPath> {
        for number in 0..TRIES {
            let kept = layout::kept_path(self.batch, at, number);
            match self.backend.rename_new(at, &kept) {
                Ok(()) => {
                    tracing::error!(path = %at, kept = %kept, "kept on the drive, not under its \
                        name");
                    return Ok(kept);
                }
                Err(error) if error.is_taken() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(self.taken(at))
    }

    /// Gives the file at `at`, which is another program's version of `name`, a conflict name beside
    /// `name`.
    pub(crate) fn keep_theirs(
        &self,
        at: &RelPath,
        name: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        let Some((dir, last)) = name.split_last() else {
            return Err(self.taken(name));
        };
        let is_dir = match self.look(at) {
            Ok(found) => found.is_some_and(|meta| meta.kind == FileKind::Directory),
            // The time only serves for the name.
            Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => false,
            Err(error) => return Err(error),
        };
        let Manners { time, host, .. } = self.manners;
        for attempt in 0..TRIES {
            let Some(conflict) = conflict_name(&last, *time, host, attempt, is_dir) else {
                break;
            };
            let kept = dir.join(&conflict);
            match self.backend.rename_new(at, &kept) {
                Ok(()) => {
                    tracing::warn!(path = %name, kept = %kept, "another program has changed it on \
                        the drive meanwhile; both are kept");
                    applied.conflicts.push((name.clone(), kept));
                    return Ok(());
                }
                // The other program has removed it itself.
                Err(error) if is_absent(&error) && !exists(self.backend, at)? => return Ok(()),
                Err(error) if error.is_taken() => {
                    if self.is_ghost(at, &kept)? {
                        self.part(at, &kept)?;
                        applied.conflicts.push((name.clone(), kept));
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(self.taken(name))
    }

    /// Returns whether an interrupted rename may have left one file under both names, on the same
    /// clusters.
    fn is_ghost(&self, at: &RelPath, kept: &RelPath) -> Result<bool> {
        if self.backend.renames_atomically() {
            return Ok(false);
        }
        let (Some(one), Some(other)) = (self.look(at)?, self.look(kept)?) else {
            return Ok(false);
        };
        let is_file = one.kind == FileKind::Regular && other.kind == FileKind::Regular;
        if !is_file || (one.size, one.modified) != (other.size, other.modified) {
            return Ok(false);
        }
        let hash = |path: &RelPath| hash_file(&*self.backend.open(path)?, path);
        Ok(hash(at)? == hash(kept)?)
    }

    /// Replaces the cross-linked names `at` and `kept` by the name `kept` with clusters of its own.
    /// A crash leaves both, or a copy in the staging directory, which is kept in
    /// `.ferryfs/lost+found`.
    pub(crate) fn part(&self, at: &RelPath, kept: &RelPath) -> Result<()> {
        for number in 0..TRIES {
            let copy = layout::slot_path(self.batch, SlotNo(PARTED + number));
            if exists(self.backend, &copy)? {
                continue;
            }
            self.copy(at, &copy)?;
            self.backend.sync()?;
            self.backend.remove_file(at)?;
            self.backend.remove_file(kept)?;
            self.backend.sync()?;
            return Ok(self.backend.rename_new(&copy, kept)?);
        }
        Err(self.taken(kept))
    }
}
