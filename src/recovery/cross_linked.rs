//! Repairs an interrupted rename that has left two names on the same clusters: makes one file of
//! them again.
//!
//! A copy is made under its own name in the staging directory, on its own clusters, and synced.
//! Then the other names are removed, and that is synced. A crash leaves all old names, and perhaps
//! a part of a copy, which is discarded because nothing has been freed yet; or fewer old names and
//! the copy, which was synced before the first of them was removed, and counts from then on. A
//! directory is not copied: its entries are moved into a new one, and the two old names, empty by
//! then, are removed.

use crate::apply::refused::is_local;
use crate::apply::special_files::{make_node, node_of};
use crate::apply::staging::{SlotSource, give_attributes, restage};
use crate::core::{Entry, Name, RelPath};
use crate::drive::BackendError;
use crate::error::{FlushError, Result};
use crate::format::steps::SlotNo;
use crate::recovery::locate::Slots;
use crate::recovery::replay::{Redo, is_dir, is_file, look};

impl Redo<'_> {
    /// Makes one file of `names`, oldest first, which share clusters.
    pub(crate) fn copy_apart(
        &self,
        slot: SlotNo,
        names: &[RelPath],
        slots: &mut Slots,
    ) -> Result<RelPath> {
        let source = match slots.newest(slot) {
            // Everything that the newest name could be a copy of is still there, so it may be
            // unfinished.
            Some(newest) if names.len() > 2 => {
                self.remove_all(&newest)?;
                names.iter().find(|name| **name != newest)
            }
            Some(newest) => names.iter().find(|name| **name == newest),
            None => names.first(),
        };
        let Some(source) = source else {
            return Err(self.unfinished("a moved file has no name left".into()));
        };
        let copy = slots.next_copy(slot);
        self.remove_all(&copy)?;
        tracing::warn!(path = %source, "has two names on the same clusters of the drive; it is \
            copied, and both are removed");
        if let Some(node) = look(self.backend, source)?.as_ref().and_then(node_of) {
            make_node(self.backend, &node, &copy)?;
        } else {
            self.copy_file(source, &copy)?;
        }
        self.backend.sync()?;
        for name in names.iter().filter(|name| **name != copy) {
            self.remove_all(name)?;
        }
        self.backend.sync()?;
        slots.only(slot, &copy);
        Ok(copy)
    }

    fn copy_file(&self, source: &RelPath, copy: &RelPath) -> Result<()> {
        let file = self.backend.open(source)?;
        let meta = file
            .metadata()
            .map_err(|error| BackendError::new("stat", source, error))?;
        let bytes = SlotSource::OnBackend(file, meta.modified);
        restage(self.backend, None, bytes, copy, None)?;
        give_attributes(self.backend, source, &meta, copy)
    }

    /// Returns whether the directory at `here` is also under one of `names`.
    pub(crate) fn are_twins(&self, names: &[RelPath], here: &RelPath) -> Result<bool> {
        let listed = self.listing(here)?;
        for name in names {
            if is_dir(look(self.backend, name)?.as_ref()) && self.listing(name)? == listed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// As [`Redo::drop_hollow`]; a directory that cannot be read stays.
    pub(crate) fn drop_hollow_if_it_can(
        &self,
        slot: SlotNo,
        here: &RelPath,
        slots: &mut Slots,
    ) -> Result<()> {
        match self.drop_hollow(slot, here, slots) {
            Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => Ok(()),
            result => result,
        }
    }

    /// Removes the directory in the slot if it is hollow: a check of the file system makes one of
    /// two names of a directory an empty one.
    fn drop_hollow(&self, slot: SlotNo, here: &RelPath, slots: &mut Slots) -> Result<()> {
        let names = slots.all(slot);
        let [only] = names.as_slice() else {
            return Ok(());
        };
        let is_full = |path: &RelPath| -> Result<bool> {
            Ok(is_dir(look(self.backend, path)?.as_ref()) && !self.listing(path)?.is_empty())
        };
        if !is_full(here)? || !is_dir(look(self.backend, only)?.as_ref()) || is_full(only)? {
            return Ok(());
        }
        self.backend.remove_dir(only)?;
        slots.forget(slot);
        Ok(())
    }

    fn listing(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        let mut entries = self.backend.read_dir(dir)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Makes one directory of `names`, oldest first, which are names of one.
    pub(crate) fn one_directory(
        &self,
        slot: SlotNo,
        names: &[RelPath],
        slots: &mut Slots,
    ) -> Result<RelPath> {
        if let [only] = names {
            return Ok(only.clone());
        }
        // Only an attempt that has begun to fill a copy has left one beside the slot.
        let one = match slots.all(slot).as_slice() {
            [.., _, begun] => begun.clone(),
            _ => {
                let one = slots.next_copy(slot);
                self.backend.make_dir(&one)?;
                one
            }
        };
        tracing::warn!(path = %names[0], "a directory has two names on the drive; its entries are \
            moved to a new one");
        let old: Vec<&RelPath> = names.iter().filter(|name| **name != one).collect();
        for name in &old {
            for entry in self.backend.read_dir(name)? {
                let (from, to) = (name.join(&entry.name), one.join(&entry.name));
                self.move_over(slot, &entry.name, &from, &to)?;
            }
        }
        self.backend.sync()?;
        for name in &old {
            match self.backend.remove_dir(name) {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        self.backend.sync()?;
        slots.only(slot, &one);
        Ok(one)
    }

    /// Moves one entry of a directory with two names into the new one. After a crash in the middle
    /// it may be under both names: then both are removed if the SSD has the file, which is written
    /// again when the directory is in its place.
    fn move_over(&self, slot: SlotNo, name: &Name, from: &RelPath, to: &RelPath) -> Result<()> {
        match look(self.backend, to)? {
            None => Ok(self.backend.rename(from, to)?),
            Some(found) if is_file(Some(&found)) && self.is_kept_in_tree(slot, name) => {
                self.remove_all(from)?;
                self.remove_all(to)
            }
            Some(_) => Err(self.unfinished(format!(
                "{from} and {to} are one file under two names; run fsck on the drive (`ferryfs \
                 attach --fsck`)"
            ))),
        }
    }

    fn is_kept_in_tree(&self, slot: SlotNo, name: &Name) -> bool {
        let path = RelPath::root().join(name);
        let tree = self.ssd.as_ref().and_then(|ssd| ssd.tree(slot));
        tree.is_some_and(|tree| {
            let mut entries = tree.entries.iter();
            entries.any(|entry| entry.kept && entry.path == path)
        })
    }
}
