//! Replays the moves of directories: every directory gets its place, and a lost one is made again.
//!
//! A directory that an interrupted rename has left under two names is made one first
//! ([`cross_linked`](super::cross_linked)). A lost one is noted before it is made again, so that
//! after a crash the empty one is not taken for the one that was moved.

use crate::apply::blocked::Blocked;
use crate::apply::refused::StepNo;
use crate::apply::{Applied, make_dir_kept};
use crate::core::{FileKind, RelPath};
use crate::drive::create_with;
use crate::error::Result;
use crate::format::layout;
use crate::format::steps::{PlaceStep, PlainKind, SlotNo};
use crate::recovery::locate::{Slots, Standing};
use crate::recovery::replay::{Redo, is_dir, look};
use crate::recovery::restore::Restored;

impl Redo<'_> {
    pub(crate) fn moving_directories(&self) -> impl Iterator<Item = (usize, &RelPath, SlotNo)> {
        let steps = self.steps.place.iter().enumerate();
        steps.filter_map(|(number, step)| match step {
            PlaceStep::Attach {
                slot,
                to,
                kind: PlainKind::Directory,
            } => Some((number, to, *slot)),
            _ => None,
        })
    }

    /// Finds out which of the directories that move are still in their slots. One that is under
    /// both names is found under either.
    pub(super) fn directories_to_place(&self, slots: &mut Slots) -> Result<Standing> {
        let moving = self.moving_directories();
        self.locate_in_slots(moving.map(|(_, to, slot)| (to, slot)), slots)
    }

    /// Moves the directories that are under both names into their slots.
    pub(super) fn untangle_placed(
        &self,
        slots: &mut Slots,
        standing: &mut Standing,
        applied: &mut Applied,
    ) -> Result<()> {
        for (number, to, slot) in self.moving_directories() {
            let no = StepNo::Place(number);
            if !applied.refused.has(no) {
                let untangled = self.untangle_one(to, slot, slots, standing);
                self.unless_tangled(no, to, untangled, applied)?;
            }
        }
        Ok(())
    }

    fn untangle_one(
        &self,
        to: &RelPath,
        slot: SlotNo,
        slots: &mut Slots,
        standing: &mut Standing,
    ) -> Result<()> {
        let mut names = slots.all(slot);
        if names.is_empty() {
            return Ok(());
        }
        let here = standing.locate_name(to);
        if is_dir(look(self.backend, &here)?.as_ref()) && self.are_twins(&names, &here)? {
            names.push(here);
        }
        let one = self.one_directory(slot, &names, slots)?;
        standing.note(to, one);
        Ok(())
    }

    pub(super) fn place_directories(
        &self,
        slots: &mut Slots,
        standing: &mut Standing,
        blocked: &mut Blocked,
        applied: &mut Applied,
    ) -> Result<Vec<Restored>> {
        let mut restored = Vec::new();
        for (number, step) in self.steps.place.iter().enumerate() {
            let (no, path) = (StepNo::Place(number), step.path());
            let is_dir = matches!(
                step,
                PlaceStep::MakeDir { .. }
                    | PlaceStep::Attach {
                        kind: PlainKind::Directory,
                        ..
                    }
            );
            if !is_dir {
                continue;
            }
            if let Some(why) = blocked.why(path) {
                applied.refused.note(no, path, why);
            }
            if !applied.refused.has(no) {
                let placed = match step {
                    PlaceStep::Attach { slot, to, .. } => self
                        .place_directory(*slot, to, slots, standing, applied)
                        .and_then(|is_lost| {
                            restored.extend(self.restore_tree(*slot, to, is_lost, applied)?);
                            Ok(())
                        }),
                    _ => self.make_dir(path, applied),
                };
                self.or_refuse(no, path, placed, applied)?;
            }
            if applied.refused.has(no) {
                blocked.note_missing(path);
            }
        }
        Ok(restored)
    }

    /// Moves one directory to its place. Returns true if it is lost, and an empty one was made.
    fn place_directory(
        &self,
        slot: SlotNo,
        to: &RelPath,
        slots: &mut Slots,
        standing: &mut Standing,
        applied: &mut Applied,
    ) -> Result<bool> {
        if let Some(from) = slots.newest(slot) {
            self.make_way(to)?;
            self.placer().place(slot, &from, to, None, applied)?;
            slots.forget(slot);
            standing.settle(to);
            return Ok(false);
        }
        if is_dir(look(self.backend, to)?.as_ref()) {
            return Ok(slots.is_lost(slot));
        }
        self.make_lost_dir(slot, to, applied)?;
        Ok(true)
    }

    /// Makes a lost directory again. This is noted first: after a crash, the next attempt finds an
    /// empty directory and must not take it for the one that was moved.
    fn make_lost_dir(&self, slot: SlotNo, to: &RelPath, applied: &mut Applied) -> Result<()> {
        let note = layout::lost_path(self.batch, slot);
        if look(self.backend, &note)?.is_none() {
            create_with(self.backend, &note, b"")?;
        }
        self.backend.sync()?;
        tracing::warn!(path = %to, "the drive has lost a directory that was being moved; it is \
            made anew");
        self.make_dir(to, applied)
    }

    pub(crate) fn make_dir(&self, path: &RelPath, applied: &mut Applied) -> Result<()> {
        make_dir_kept(self.backend, path, &self.placer(), applied)
    }

    /// Removes an empty directory that somebody has made at `to`. Other files there are dealt with
    /// when the name is given.
    fn make_way(&self, to: &RelPath) -> Result<()> {
        match look(self.backend, to)? {
            Some(found) if found.kind == FileKind::Directory => match self.backend.remove_dir(to) {
                Err(error) if error.is_gone() => Err(error.into()),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
