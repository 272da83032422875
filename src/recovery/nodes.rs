//! Replays nodes and further names. Files and directories have their names by then.
//!
//! A node that is in its place is done. Otherwise it comes from its slot, or is made there again
//! from the record, so none can be lost. A further name is done if it is of the same file;
//! otherwise it is given again, over the present file. A file in the way that is not the one that
//! the batch replaces is somebody else's, and goes to `.ferryfs/lost+found`.

use crate::apply::blocked::Blocked;
use crate::apply::refused::StepNo;
use crate::apply::special_files::node_of;
use crate::apply::{Applied, spare_slot, special_files};
use crate::core::{Metadata, RelPath};
use crate::error::Result;
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::format::steps::{Node, PlaceStep, SlotNo};
use crate::recovery::locate::Slots;
use crate::recovery::replay::{Redo, look};

impl Redo<'_> {
    pub(crate) fn place_nodes_and_links(
        &self,
        slots: &mut Slots,
        blocked: &Blocked,
        applied: &mut Applied,
    ) -> Result<()> {
        for (number, step) in self.steps.place.iter().enumerate() {
            let no = StepNo::Place(number);
            if !matches!(step, PlaceStep::InstallNode { .. } | PlaceStep::Link { .. }) {
                continue;
            }
            if let Some(why) = blocked.why_not(step, &applied.refused) {
                applied.refused.note(no, step.path(), why);
            }
            if applied.refused.has(no) {
                if let PlaceStep::Link { from, .. } = step {
                    special_files::drop_spare(&self.placer(), spare_slot(number), from, applied);
                }
                continue;
            }
            let placed = match step {
                PlaceStep::InstallNode { slot, to, node } => {
                    self.place_node(*slot, to, node, slots, applied)
                }
                PlaceStep::Link { from, to } => {
                    self.place_link(spare_slot(number), from, to, applied)
                }
                _ => Ok(()),
            };
            self.or_refuse(no, step.path(), placed, applied)?;
        }
        Ok(())
    }

    fn place_node(
        &self,
        slot: SlotNo,
        to: &RelPath,
        node: &Node,
        slots: &mut Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        let is_it = |meta: Option<&Metadata>| meta.and_then(node_of).as_ref() == Some(node);
        let found = look(self.backend, to)?;
        self.see_to_old(slot, to, self.known.replaced.get(&slot), applied)?;
        if is_it(found.as_ref()) {
            for name in slots.all(slot) {
                self.remove_all(&name)?;
            }
            slots.forget(slot);
            return Ok(());
        }
        let staged = layout::slot_path(self.batch, slot);
        if !is_it(look(self.backend, &staged)?.as_ref()) {
            for name in slots.all(slot) {
                self.remove_all(&name)?;
            }
            special_files::make_node(self.backend, node, &staged)?;
        }
        let replaced = found.as_ref().and(self.known.replaced.get(&slot));
        self.placer().place(slot, &staged, to, replaced, applied)?;
        slots.forget(slot);
        Ok(())
    }

    fn place_link(
        &self,
        slot: SlotNo,
        from: &RelPath,
        to: &RelPath,
        applied: &mut Applied,
    ) -> Result<()> {
        if look(self.backend, from)?.is_none() {
            applied.vanished.push(to.clone());
            return Ok(());
        }
        let replaced = self.known.removed.get(to);
        self.see_to_old(slot, to, replaced, applied)?;
        let expected = replaced.unwrap_or(&ExpectedFile::ANYTHING);
        special_files::see_to_link(&self.placer(), slot, (from, to), expected, applied)?;
        special_files::link(&self.placer(), slot, (from, to), replaced, applied)
    }

    /// Deals with a file that an earlier attempt has moved out of the way: the replaced one, or
    /// somebody else's.
    fn see_to_old(
        &self,
        slot: SlotNo,
        to: &RelPath,
        replaced: Option<&ExpectedFile>,
        applied: &mut Applied,
    ) -> Result<()> {
        let expected = replaced.copied().unwrap_or(ExpectedFile::ANYTHING);
        let mut places = vec![layout::replaced_path(self.batch, slot)];
        if let Some((dir, _)) = to.split_last() {
            places.push(layout::near_old_path(&dir, self.batch, slot));
        }
        for old in places {
            self.placer().keep_or_drop(&old, to, &expected, applied)?;
        }
        Ok(())
    }
}
