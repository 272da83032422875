//! Removes a file, unless somebody else has changed it.

use crate::apply::Applied;
use crate::apply::place::Placer;
use crate::apply::refused::is_local;
use crate::core::{FileKind, Metadata, RelPath};
use crate::drive::is_absent;
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::layout;

impl Placer<'_> {
    /// Removes the file at `path`, where `expected` is. A file that somebody else has changed
    /// meanwhile stays, and so does anything that is no file any more.
    ///
    /// # Errors
    /// If the backend refuses, or fails.
    pub(crate) fn remove(
        &self,
        step: usize,
        path: &RelPath,
        expected: Option<&ExpectedFile>,
        applied: &mut Applied,
    ) -> Result<()> {
        let aside = layout::removed_path(self.batch, step);
        match self.backend.rename(path, &aside) {
            Ok(()) => self.removed_or_back(&aside, path, expected, applied),
            Err(error) if is_absent(&error) => Ok(()),
            // Perhaps only the move is refused.
            Err(error) if error.is_refusal() => self.remove_in_place(path, expected, applied),
            Err(error) => Err(error.into()),
        }
    }

    /// Deals with the file that was moved from `path` to `aside` to be removed.
    pub(crate) fn removed_or_back(
        &self,
        aside: &RelPath,
        path: &RelPath,
        expected: Option<&ExpectedFile>,
        applied: &mut Applied,
    ) -> Result<()> {
        let may_go = match self.look(aside) {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => self.may_go(aside, &found, expected),
            Err(error) => Err(error),
        };
        match may_go {
            Ok(true) => {
                applied.garbage.push(aside.clone());
                return Ok(());
            }
            Ok(false) => {}
            // It cannot be looked at: it goes back.
            Err(error) => {
                if let FlushError::Backend(refused) = &error
                    && is_local(self.backend, self.batch, refused)
                {
                    self.back_or_aside(aside, path, applied)?;
                }
                return Err(error);
            }
        }
        match self.backend.rename_new(aside, path) {
            Ok(()) => {
                applied.theirs.push(path.clone());
                Ok(())
            }
            // Another program has made a new file there, or the directory is gone.
            Err(error) if error.is_refusal() => self.keep_aside(aside, path, applied),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves the file that was taken from `path` back there. If that is refused, keeps it beside
    /// `path`.
    pub(crate) fn back_or_aside(
        &self,
        aside: &RelPath,
        path: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        match self.backend.rename_new(aside, path) {
            Err(error) if error.is_refusal() && !is_absent(&error) => {
                self.keep_aside(aside, path, applied)
            }
            Err(error) if !is_absent(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn remove_in_place(
        &self,
        path: &RelPath,
        expected: Option<&ExpectedFile>,
        applied: &mut Applied,
    ) -> Result<()> {
        let Some(found) = self.look(path)? else {
            return Ok(());
        };
        if !self.may_go(path, &found, expected)? {
            applied.theirs.push(path.clone());
            return Ok(());
        }
        match self.backend.remove_file(path) {
            Err(error) if !is_absent(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn may_go(
        &self,
        path: &RelPath,
        found: &Metadata,
        expected: Option<&ExpectedFile>,
    ) -> Result<bool> {
        match expected {
            _ if found.kind == FileKind::Directory => Ok(false),
            Some(expected) => self.is_as_expected(path, found, expected),
            None => Ok(true),
        }
    }
}
