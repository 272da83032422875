//! Checks the contents of a directory that moves, and restores them from its backup. The directory
//! may be lost; or it was under two names, and its entries were being moved to a third when the
//! drive was removed again; or a check of the file system has truncated files that it took for
//! damaged.

use crate::apply::move_backup::TreeEntry;
use crate::apply::staging::{SlotSource, restage};
use crate::apply::{Applied, move_backup};
use crate::core::{Name, RelPath};
use crate::drive::is_absent;
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::format::steps::SlotNo;
use crate::recovery::replay::{Redo, look};

/// A file that was written again and does not have its final name yet.
pub(crate) struct Restored {
    staged: RelPath,
    to: RelPath,
}

impl Redo<'_> {
    /// Writes the missing contents of the directory of `slot` below `to`, which exists; `is_lost`
    /// if it was made again itself. The files get their names by [`Redo::name_restored`], after a
    /// sync. An earlier attempt may have restored a part: a file that is whole under its name and
    /// nowhere else was named after a sync.
    pub(crate) fn restore_tree(
        &self,
        slot: SlotNo,
        to: &RelPath,
        is_lost: bool,
        applied: &mut Applied,
    ) -> Result<Vec<Restored>> {
        let tree = self.ssd.as_ref().and_then(|ssd| ssd.tree(slot));
        let Some(tree) = tree else {
            if is_lost {
                applied.lost_dirs.push(to.clone());
            }
            return Ok(Vec::new());
        };
        let mut restored = Vec::new();
        for (number, entry) in tree.entries.iter().enumerate() {
            let path = to.join_path(&entry.path);
            match self.restore_entry(slot, number, entry, &path, applied) {
                Ok(file) => restored.extend(file),
                // One entry that the backend refuses must not keep the others away; but bytes that
                // only the SSD has are not dropped.
                Err(FlushError::Backend(error))
                    if !entry.kept && self.manners.is_local(self.backend, self.batch, &error) =>
                {
                    tracing::warn!(%error, "an entry of a directory that was moved");
                    applied.vanished.push(path);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(restored)
    }

    fn restore_entry(
        &self,
        slot: SlotNo,
        number: usize,
        entry: &TreeEntry,
        path: &RelPath,
        applied: &mut Applied,
    ) -> Result<Option<Restored>> {
        if entry.is_dir {
            self.make_dir(path, applied)?;
            return Ok(None);
        }
        let restored = self.restore_file(slot, number, entry, path)?;
        if restored.is_none() && !self.is_there(entry, path)? {
            applied.vanished.push(path.clone());
        }
        Ok(restored)
    }

    /// Returns whether the file is there as it was, or as somebody else has changed it since.
    fn is_there(&self, entry: &TreeEntry, path: &RelPath) -> Result<bool> {
        let known = ExpectedFile {
            size: entry.size,
            modified: entry.modified,
            hash: None,
        };
        let found = look(self.backend, path)?;
        Ok(found.is_some_and(|meta| meta.size == entry.size || !known.may_be(&meta)))
    }

    /// Writes a file again from its backup, if there is one and the file is not there yet.
    fn restore_file(
        &self,
        slot: SlotNo,
        number: usize,
        entry: &TreeEntry,
        path: &RelPath,
    ) -> Result<Option<Restored>> {
        let (Some(ssd), true) = (&self.ssd, entry.kept) else {
            return Ok(None);
        };
        let name = format!("t{}-{number}", slot.file_name());
        let name = Name::new(name.as_bytes()).expect("names formed here are well formed");
        let staged = layout::staging_dir(self.batch).join(&name);
        let begun = look(self.backend, &staged)?.is_some();
        if !begun && self.is_there(entry, path)? {
            return Ok(None);
        }
        let Some(file) = move_backup::open_in_tree(ssd.journals, self.batch, slot, number) else {
            return Ok(None);
        };
        // The two may be one file under two names.
        self.remove_all(&staged)?;
        self.remove_all(path)?;
        let source = SlotSource::Kept(file, entry.modified);
        restage(self.backend, None, source, &staged, Some(entry.size))?;
        let to = path.clone();
        Ok(Some(Restored { staged, to }))
    }

    /// Gives files that are written and synced their names.
    pub(crate) fn name_restored(&self, restored: &[Restored], applied: &mut Applied) -> Result<()> {
        for file in restored {
            match self.backend.rename(&file.staged, &file.to) {
                Err(error) if is_absent(&error) => {}
                // A file that was put there meanwhile is somebody else's.
                Err(error) if error.is_taken() => {
                    self.placer().keep_theirs(&file.to, &file.to, applied)?;
                    self.backend.rename_new(&file.staged, &file.to)?;
                }
                result => result?,
            }
        }
        Ok(())
    }
}
