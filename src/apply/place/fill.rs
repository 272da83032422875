//! Gives a file a name that nothing is expected to have, also on another file system than its slot.

use crate::apply::Applied;
use crate::apply::place::{Placer, TRIES, is_across};
use crate::apply::special_files::{make_node, node_of};
use crate::apply::staging::{SlotSource, give_attributes, restage};
use crate::core::{FileKind, RelPath};
use crate::drive::{BackendError, create_with, exists, is_absent};
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::format::steps::SlotNo;

impl Placer<'_> {
    /// Moves the file at `from` to `to`, where nothing is expected.
    pub(super) fn fill(
        &self,
        slot: SlotNo,
        from: &RelPath,
        to: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        for _ in 0..TRIES {
            match self.backend.rename_new(from, to) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_taken() && exists(self.backend, to)? => {
                    self.keep_theirs(to, to, applied)?;
                }
                Err(error) if is_across(&error) => {
                    return self.fill_across(slot, from, to, applied);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(self.taken(to))
    }

    /// The same to another file system: the file is copied to a name beside `to` first.
    fn fill_across(
        &self,
        slot: SlotNo,
        from: &RelPath,
        to: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        let near = self.near(slot, to)?;
        let copied = self.copy(from, &near);
        self.fill_from_near(copied, &near, to, applied)?;
        applied.garbage.push(from.clone());
        Ok(())
    }

    /// Returns a name of ours beside `to`, on its file system. The replay and the end of the batch
    /// know it.
    fn near(&self, slot: SlotNo, to: &RelPath) -> Result<RelPath> {
        let (dir, _) = to.split_last().ok_or_else(|| self.taken(to))?;
        self.note_across()?;
        Ok(layout::near_path(&dir, self.batch, slot))
    }

    /// Moves the file that was `made` at `near` to `to`, where nothing is expected.
    fn fill_from_near(
        &self,
        made: Result<()>,
        near: &RelPath,
        to: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        let placed = made.and_then(|()| {
            for _ in 0..TRIES {
                match self.backend.rename_new(near, to) {
                    Ok(()) => return Ok(()),
                    Err(error) if error.is_taken() && exists(self.backend, to)? => {
                        self.keep_theirs(to, to, applied)?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Err(self.taken(to))
        });
        let placed = placed.map_err(|error| match error {
            FlushError::Backend(error) if error.is_full() => {
                FlushError::FullThere { path: to.clone() }
            }
            error => error,
        });
        if placed.is_err() {
            // If it stays, the replay or the end of the batch recognizes its name and removes it.
            let _ = self.backend.remove_file(near);
        }
        placed
    }

    /// Gives the file at `from` the further name `to`, in place of `expected`, or of nothing, if
    /// the staging directory or `from` is on another file system than `to`. Then `to` gets a copy.
    /// Names are not exchanged: a file found under a name of ours is always superfluous.
    pub(crate) fn link_across(
        &self,
        slot: SlotNo,
        (from, to): (&RelPath, &RelPath),
        expected: Option<&ExpectedFile>,
        applied: &mut Applied,
    ) -> Result<()> {
        let near = self.near(slot, to)?;
        match self.backend.remove_file(&near) {
            Err(error) if !is_absent(&error) => return Err(error.into()),
            _ => {}
        }
        let made = match self.backend.make_hard_link(from, &near) {
            Err(error) if is_across(&error) => self.copy(from, &near),
            linked => linked.map_err(FlushError::from),
        };
        let Some(expected) = expected else {
            return self.fill_from_near(made, &near, to, applied);
        };
        let old = made.and_then(|()| Ok(self.set_aside(slot, to)?));
        let old = match old {
            Ok(old) => old,
            Err(error) => return self.fill_from_near(Err(error), &near, to, applied),
        };
        let placed = self.fill_from_near(Ok(()), &near, to, applied);
        match (old, &placed) {
            (Some(old), Err(_)) => self.back_or_aside(&old, to, applied)?,
            (Some(old), Ok(())) => self.keep_or_drop(&old, to, expected, applied)?,
            (None, _) => {}
        }
        placed
    }

    /// Copies a file or node to a name of ours. A file that is there is part of an earlier attempt.
    /// Directories are not copied.
    pub(crate) fn copy(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        let meta = self.backend.metadata(from)?;
        if meta.kind == FileKind::Directory {
            let source = std::io::Error::from_raw_os_error(libc::EXDEV);
            return Err(BackendError::new("rename", from, source).into());
        }
        match self.backend.remove_file(to) {
            Err(error) if !is_absent(&error) => return Err(error.into()),
            _ => {}
        }
        if let Some(node) = node_of(&meta) {
            return Ok(make_node(self.backend, &node, to)?);
        }
        let file = self.backend.open(from)?;
        let source = SlotSource::OnBackend(file, meta.modified);
        let copied = restage(self.backend, None, source, to, Some(meta.size))
            .and_then(|_| give_attributes(self.backend, from, &meta, to));
        if copied.is_err() {
            let _ = self.backend.remove_file(to);
        }
        copied
    }

    /// Notes, durably, that there may be names of ours in the user's directories.
    pub(crate) fn note_across(&self) -> std::result::Result<(), BackendError> {
        let note = layout::across_path(self.batch);
        match self.backend.metadata(&note) {
            Ok(_) => return Ok(()),
            Err(error) if !is_absent(&error) => return Err(error),
            Err(_) => {}
        }
        create_with(self.backend, &note, b"")?;
        self.backend.sync()
    }
}
