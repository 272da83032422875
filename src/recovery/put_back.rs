//! Finds files that an earlier attempt has put back ([`mod@crate::apply::put_back`]) because they
//! could not be moved. The drive is the only record of that: such a file is at its old name or near
//! to it, and its slot is empty.

use std::collections::HashMap;

use crate::apply::moves::Moves;
use crate::apply::put_back::places_back;
use crate::apply::refused::{Back, PutBack, StepNo, Why};
use crate::apply::{Applied, follows_move};
use crate::core::RelPath;
use crate::error::Result;
use crate::format::expectations::ExpectedFile;
use crate::format::steps::{ClearStep, PlaceStep, PlainKind, SlotNo};
use crate::recovery::locate::Slots;
use crate::recovery::replay::{Redo, is_dir, look};

impl Redo<'_> {
    /// Notes what an earlier attempt has put back because it could not be moved: it is at its old
    /// name or near to it, and its slot is empty. On a drive that may have left it under both
    /// names, the one in the slot is superfluous.
    pub(crate) fn note_put_back(&self, slots: &mut Slots, applied: &mut Applied) -> Result<()> {
        // In the order in which they were put back: a directory before the files that were moved
        // out of it.
        let mut moves = Moves::without(self.steps, &applied.refused);
        let targets: HashMap<&RelPath, usize> = (self.steps.place.iter().enumerate())
            .filter(|(_, step)| !matches!(step, PlaceStep::Touch { .. }))
            .map(|(number, step)| (step.path(), number))
            .collect();
        let mut origins: HashMap<SlotNo, (usize, &RelPath, PlainKind)> = HashMap::new();
        for (number, step) in self.steps.clear.iter().enumerate() {
            if let ClearStep::Detach { from, slot, kind } = step {
                origins.insert(*slot, (number, from, *kind));
            }
        }
        for (number, step) in self.steps.place.iter().enumerate() {
            let PlaceStep::Attach { slot, to, .. } = step else {
                continue;
            };
            let Some((clear, from, kind)) = origins.get(slot) else {
                continue;
            };
            let now = moves.place_back(from);
            let no = StepNo::Place(number);
            let was_kept = applied.refused.has(StepNo::Clear(*clear));
            if was_kept || slots.newest(*slot).is_some() {
                continue;
            }
            let moved = (*slot, *kind);
            let is_done = !applied.refused.has(no) && self.is_what_moved(number, moved, to)?;
            for (path, back) in places_back(self.batch, *slot, now.as_ref())? {
                // A file that the batch itself places there is not the one that was moved from
                // there: size and time distinguish files. Nothing else has a name of ours.
                let target = targets.get(&path).copied();
                let is_other = target.is_some_and(|number| {
                    !applied.refused.has(StepNo::Place(number))
                        && self.may_place(number, *slot, *kind)
                });
                if (back == Back::There && (is_done || is_other))
                    || !self.is_what_moved(number, moved, &path)?
                {
                    continue;
                }
                if let Some(number) = target {
                    let no = StepNo::Place(number);
                    applied.refused.note(no, &path, Why::Occupied);
                }
                applied.refused.note(no, to, Why::Occupied);
                moves.note(from, path.clone());
                applied.refused.back.push(PutBack {
                    step: *clear,
                    back,
                    path,
                });
                break;
            }
        }
        Ok(())
    }

    /// Returns whether the place step with this number may place a file that looks like the one
    /// that was moved through `slot`.
    fn may_place(&self, number: usize, slot: SlotNo, kind: PlainKind) -> bool {
        let looks = |size, modified| {
            let moved = self.moved(slot);
            moved.is_none_or(|moved| (moved.size, moved.modified) == (size, modified))
        };
        let is_file = kind == PlainKind::File;
        match self.steps.place.get(number) {
            Some(PlaceStep::Install { content, .. } | PlaceStep::Patch { content, .. }) => {
                is_file && looks(content.size, content.modified)
            }
            Some(PlaceStep::Attach {
                slot: other,
                kind: PlainKind::File,
                ..
            }) => {
                let other = self.moved(*other);
                is_file && other.is_none_or(|other| looks(other.size, other.modified))
            }
            Some(PlaceStep::InstallNode { .. } | PlaceStep::Link { .. }) => is_file,
            Some(PlaceStep::MakeDir { .. } | PlaceStep::Attach { .. }) => !is_file,
            Some(PlaceStep::Touch { .. }) | None => false,
        }
    }

    /// Returns whether the file at `path` may be the one that the place step `number` attaches from
    /// `slot`. It may have its new time already, through another name of the same file.
    fn is_what_moved(
        &self,
        number: usize,
        (slot, kind): (SlotNo, PlainKind),
        path: &RelPath,
    ) -> Result<bool> {
        let Some(found) = look(self.backend, path)? else {
            return Ok(false);
        };
        if kind == PlainKind::Directory {
            return Ok(is_dir(Some(&found)));
        }
        let Some(moved) = self.moved(slot) else {
            return Ok(false);
        };
        let touched = match self.steps.place.get(number + 1) {
            Some(PlaceStep::Touch { modified, .. }) if follows_move(self.steps, number + 1) => {
                Some(ExpectedFile {
                    modified: *modified,
                    ..moved
                })
            }
            _ => None,
        };
        Ok(moved.agrees(&found) || touched.is_some_and(|touched| touched.agrees(&found)))
    }
}
