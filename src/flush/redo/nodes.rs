//! Nodes and further names, again. Files and directories have their names by then.
//!
//! A node that stands where it belongs is done; else it comes from its slot, or is made anew there from the record: so none
//! can be lost. A further name is done if it is of the same file; else it is given again, over what stands there. What stands in the
//! way and is not what the batch replaces is somebody else's and goes to `.ferryfs/lost+found`.

use super::super::apply::Applied;
use super::super::real::{self, are_one, node_of};
use super::standing::Slots;
use super::{Redo, is_dir, look};
use crate::backend::Metadata;
use crate::base::RelPath;
use crate::flush::report::Result;
use crate::rules::known::Believed;
use crate::rules::layout;
use crate::rules::steps::{Node, PlaceStep, SlotNo};

impl Redo<'_> {
    pub(super) fn place_nodes_and_links(
        &self,
        slots: &mut Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        for step in &self.steps.place {
            match step {
                PlaceStep::InstallNode { slot, to, node } => {
                    self.place_node(*slot, to, node, slots)?;
                }
                PlaceStep::Link { from, to } => self.place_link(from, to, applied)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn place_node(&self, slot: SlotNo, to: &RelPath, node: &Node, slots: &mut Slots) -> Result<()> {
        let is_it = |meta: Option<&Metadata>| meta.and_then(node_of).as_ref() == Some(node);
        let found = look(self.backend, to)?;
        if is_it(found.as_ref()) {
            for name in slots.all(slot) {
                self.remove_all(&name)?;
            }
            slots.forget(slot);
            return Ok(());
        }
        let replaced = self.known.replaced.get(&slot);
        self.clear_the_way(to, found.as_ref(), replaced, &slot.file_name())?;
        let staged = layout::slot_path(self.batch, slot);
        if !is_it(look(self.backend, &staged)?.as_ref()) {
            for name in slots.all(slot) {
                self.remove_all(&name)?;
            }
            real::make_node(self.backend, node, &staged)?;
        }
        self.backend.rename(&staged, to)?;
        slots.forget(slot);
        Ok(())
    }

    fn place_link(&self, from: &RelPath, to: &RelPath, applied: &mut Applied) -> Result<()> {
        let Some(file) = look(self.backend, from)? else {
            applied.vanished.push(to.clone());
            return Ok(());
        };
        let found = look(self.backend, to)?;
        if !found.as_ref().is_some_and(|found| are_one(&file, found)) {
            let replaced = self.known.removed.get(to);
            self.clear_the_way(to, found.as_ref(), replaced, layout::LINK)?;
        }
        real::link(self.backend, self.batch, from, to, applied)
    }

    /// What the batch replaces may stay where it is, to be replaced; anything else is kept elsewhere.
    fn clear_the_way(
        &self,
        to: &RelPath,
        found: Option<&Metadata>,
        replaced: Option<&Believed>,
        slot: &str,
    ) -> Result<()> {
        let Some(meta) = found else {
            return Ok(());
        };
        if is_dir(found) {
            return Err(self.unfinished(format!(
                "a directory stands where {to} belongs; move it away"
            )));
        }
        if replaced.is_some_and(|known| known.may_be(meta)) {
            return Ok(());
        }
        self.to_lost_found(to, to, slot, "theirs")
    }
}
