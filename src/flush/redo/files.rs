//! The second phase, again: every name gets what the batch gives it.

use std::collections::{HashMap, HashSet};

use super::super::apply::{
    Applied, allowed_attributes, create_with, follows_move, is_absent, make_dir_kept, set_time,
};
use super::judge::{Counts, Task, Wanted};
use super::standing::{Slots, Standing};
use super::trees::Restored;
use super::{Redo, is_dir, look};
use crate::backend::{BackendError, Metadata};
use crate::base::{FileKind, Name, RelPath};
use crate::flush::real;
use crate::flush::refused::{Back, Blocked, Moves, StepNo, Why, is_local, put_back};
use crate::flush::report::{FlushError, Result};
use crate::flush::stage::make_lost_found;
use crate::rules::known::Believed;
use crate::rules::layout;
use crate::rules::steps::{ClearStep, PlaceStep, PlainKind, SlotNo};

impl Redo<'_> {
    pub(super) fn place(&self, slots: &mut Slots, applied: &mut Applied) -> Result<()> {
        let mut standing = self.directories_to_place(slots)?;
        let mut blocked = Blocked::after_clear(self.steps, &applied.refused);
        self.note_blocked(&blocked, applied);
        self.note_put_back(slots, applied)?;
        let wanted = self.wanted();
        let mut counts = Counts::default();
        let mut tasks = Vec::with_capacity(wanted.len());
        let mut seen = Vec::with_capacity(wanted.len());
        for file in &wanted {
            let here = standing.locate_name(file.to);
            let mut task = Task::Refused;
            if !applied.refused.has(file.step()) {
                let judged = self
                    .uncover(file, &here, slots, &mut counts)
                    .and_then(|()| self.judge(file, &here, slots, &mut counts))
                    .map(|judged| task = judged);
                match slots.newest(file.slot) {
                    // It may stand under both names.
                    Some(_) => self.unless_tangled(file.step(), file.to, judged, applied)?,
                    None => self.or_refuse(file.step(), file.to, judged, applied)?,
                }
            }
            tasks.push(task);
            seen.push(match task {
                Task::Refused => None,
                _ => look(self.backend, &here)?,
            });
        }
        self.note_twins(&wanted, &tasks, &seen, slots)?;
        // Nothing that counts has been touched up to here. What is removed now is gone for good before anything is written.
        for ((file, task), seen) in wanted.iter().zip(&mut tasks).zip(&seen) {
            let here = (&standing.locate_name(file.to), seen.as_ref());
            let may_be_two = matches!(task, Task::Rebuild | Task::RebuildAside | Task::CopyApart);
            let taken = self.take_away(file, *task, here, slots, applied);
            match may_be_two {
                true => self.unless_tangled(file.step(), file.to, taken, applied)?,
                false => self.or_refuse(file.step(), file.to, taken, applied)?,
            }
            if applied.refused.has(file.step()) {
                *task = Task::Refused;
            }
        }
        self.backend.sync()?;
        self.untangle_placed(slots, &mut standing, applied)?;
        let restored = self.place_directories(slots, &mut standing, &mut blocked, applied)?;
        for (file, task) in wanted.iter().zip(&mut tasks) {
            let written = match blocked.why(file.to) {
                Some(why) => {
                    applied.refused.note(file.step(), file.to, why);
                    Ok(())
                }
                // The batch must not end while the SSD is the only one that has a file which was moved.
                None if self.is_moved(file) && *task != Task::CopyApart => {
                    self.write_anew(file, task, slots)?;
                    Ok(())
                }
                None if *task == Task::CopyApart => {
                    let apart = self.write_anew(file, task, slots);
                    self.unless_tangled(file.step(), file.to, apart, applied)
                }
                None => self.write_anew(file, task, slots).map_err(|error| match error {
                    FlushError::Store(_) | FlushError::Cache { .. } => {
                        let source = std::io::Error::from_raw_os_error(libc::EIO);
                        tracing::warn!(%error, path = %file.to, "its bytes cannot be had from the cache");
                        BackendError::new("write", file.to, source).into()
                    }
                    error => error,
                }),
            };
            self.or_set_aside(file, task, written, applied)?;
        }
        // No name is given to bytes that may not be on the medium yet.
        self.backend.sync()?;
        self.name_restored(&restored, applied)?;
        for (file, task) in wanted.iter().zip(&mut tasks) {
            let named = self.give_name(file, *task, slots, applied);
            self.or_set_aside(file, task, named, applied)?;
            if *task == Task::Refused {
                self.leave_as_it_was(file, slots, applied);
            }
        }
        for (number, step) in self.steps.place.iter().enumerate() {
            let no = StepNo::Place(number);
            let PlaceStep::Touch { path, modified } = step else {
                continue;
            };
            if blocked.why(path).is_some() || applied.refused.has(no) {
                continue;
            }
            match set_time(self.backend, path, *modified) {
                Err(FlushError::Backend(error))
                    if follows_move(self.steps, number)
                        && self.manners.is_local(self.backend, self.batch, &error) =>
                {
                    applied.not_set.push(path.clone());
                }
                touched => self.or_refuse(no, path, touched, applied)?,
            }
        }
        self.place_nodes_and_links(slots, &blocked, applied)?;
        put_back(
            &self.placer(),
            self.steps,
            |slot| slots.newest(slot),
            applied,
        )?;
        let attributes = allowed_attributes(self.steps, &blocked, &applied.refused);
        real::set_attributes(self.backend, self.batch, attributes, applied)
    }

    /// Notes, durably, which files are to be written anew though they stand under several names. The first of these that is removed may
    /// mark the clusters of the others free: should this be cut short, the next attempt must not take what is left for whole.
    fn note_twins(
        &self,
        wanted: &[Wanted<'_>],
        tasks: &[Task],
        seen: &[Option<Metadata>],
        slots: &Slots,
    ) -> Result<()> {
        if self.backend.renames_atomically() {
            return Ok(());
        }
        let mut noted = false;
        for ((file, task), seen) in wanted.iter().zip(tasks).zip(seen) {
            let names = slots.all(file.slot).len() + usize::from(seen.is_some());
            let is_rebuilt = matches!(task, Task::Rebuild | Task::RebuildAside);
            if !is_rebuilt || names < 2 || slots.was_twin(file.slot) {
                continue;
            }
            match create_with(self.backend, &layout::twin_path(self.batch, file.slot), b"") {
                // Without the note it takes two losses of power to do harm.
                Err(FlushError::Backend(error)) if error.is_full() => {}
                made => {
                    made?;
                    noted = true;
                }
            }
        }
        if noted {
            self.backend.sync()?;
        }
        Ok(())
    }

    /// Notes the steps that cannot be taken because of what was refused before: their name stays occupied, or what they move has
    /// not been set aside.
    fn note_blocked(&self, blocked: &Blocked, applied: &mut Applied) {
        let kept: HashSet<SlotNo> = (applied.refused.cleared().into_iter())
            .filter_map(|number| match self.steps.clear.get(number) {
                Some(ClearStep::Detach { slot, .. }) => Some(*slot),
                _ => None,
            })
            .collect();
        for (number, step) in self.steps.place.iter().enumerate() {
            let is_kept = matches!(step, PlaceStep::Attach { slot, .. } if kept.contains(slot));
            let why = match is_kept {
                true => Some(Why::Occupied),
                false => blocked.why(step.path()),
            };
            if let Some(why) = why {
                applied
                    .refused
                    .note(StepNo::Place(number), step.path(), why);
            }
        }
    }

    /// An attempt before this one may have put back what it could not move: it stands at its old name, and its slot is empty. On a
    /// drive that may have left it under both names, the one in the slot is one too many.
    fn note_put_back(&self, slots: &mut Slots, applied: &mut Applied) -> Result<()> {
        let moves = Moves::of(self.steps);
        let targets: HashSet<&RelPath> = self.steps.place.iter().map(PlaceStep::path).collect();
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
            let now = moves.new_path(from);
            // What the batch itself puts there is not what was moved from there.
            if targets.contains(&now) || targets.contains(from) || slots.newest(*slot).is_some() {
                continue;
            }
            let is_back = |path: &RelPath| -> Result<bool> {
                let Some(found) = look(self.backend, path)? else {
                    return Ok(false);
                };
                Ok(match kind {
                    PlainKind::Directory => is_dir(Some(&found)),
                    PlainKind::File => self.moved(*slot).is_some_and(|moved| moved.agrees(&found)),
                })
            };
            if look(self.backend, to)?.is_none() && (is_back(&now)? || is_back(from)?) {
                let no = StepNo::Place(number);
                applied.refused.note(no, to, Why::Occupied);
                applied.refused.back.push((*clear, Back::There));
            }
        }
        Ok(())
    }

    /// As [`Redo::or_refuse`] for a file, which nothing more is done for then.
    fn or_set_aside(
        &self,
        file: &Wanted<'_>,
        task: &mut Task,
        result: Result<()>,
        applied: &mut Applied,
    ) -> Result<()> {
        self.or_refuse(file.step(), file.to, result, applied)?;
        if applied.refused.has(file.step()) {
            *task = Task::Refused;
        }
        Ok(())
    }

    /// A file that is refused leaves what stood under its name there, if that was set aside already. What was staged for it is of
    /// no more use; what was to be moved is put back with the rest.
    fn leave_as_it_was(&self, file: &Wanted<'_>, slots: &Slots, applied: &mut Applied) {
        for old in self.set_aside_for(file) {
            if let Err(error) = self.backend.rename_new(&old, file.to)
                && !is_absent(&error)
            {
                tracing::warn!(%error, path = %file.to, "the version before is not put back");
            }
        }
        if !self.is_moved(file) {
            applied.garbage.extend(slots.all(file.slot));
        }
    }

    /// Where what stands under the name of a file may have been moved before it was to get its new content.
    fn set_aside_for(&self, file: &Wanted<'_>) -> Vec<RelPath> {
        let mut places = vec![layout::replaced_path(self.batch, file.slot)];
        if let Some((dir, _)) = file.to.split_last() {
            places.push(layout::near_old_path(&dir, self.batch, file.slot));
        }
        places
    }

    pub(super) fn wanted(&self) -> Vec<Wanted<'_>> {
        let steps = self.steps.place.iter().enumerate();
        let files = steps.filter_map(|(number, step)| match step {
            PlaceStep::Install { slot, to, content } => Some(Wanted {
                number,
                slot: *slot,
                to,
                content: Some(content.into()),
            }),
            PlaceStep::Attach {
                slot,
                to,
                kind: PlainKind::File,
            } => Some(Wanted {
                number,
                slot: *slot,
                to,
                content: self.moved(*slot),
            }),
            _ => None,
        });
        files.collect()
    }

    pub(super) fn moving_directories(&self) -> impl Iterator<Item = (usize, &RelPath, SlotNo)> {
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

    /// Finds out which of the directories that move are still in their slots. One that is under both names is found under either.
    fn directories_to_place(&self, slots: &mut Slots) -> Result<Standing> {
        let mut standing = Standing::default();
        for (_, to, slot) in self.moving_directories() {
            self.drop_hollow_if_it_can(slot, &standing.locate_name(to), slots)?;
            if let Some(name) = slots.newest(slot) {
                standing.note(to, name);
            }
        }
        Ok(standing)
    }

    /// Puts the directories that are under both names into their slots.
    fn untangle_placed(
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

    fn place_directories(
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

    /// Puts one directory that moves into its place; true if it is nowhere, and an empty one was made.
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

    /// Makes a directory anew that is nowhere. It is noted first: should this be cut short, the next attempt finds an empty
    /// directory and must not take it for the one that was moved.
    fn make_lost_dir(&self, slot: SlotNo, to: &RelPath, applied: &mut Applied) -> Result<()> {
        let note = layout::lost_path(self.batch, slot);
        if look(self.backend, &note)?.is_none() {
            create_with(self.backend, &note, b"")?;
        }
        self.backend.sync()?;
        tracing::warn!(path = %to, "the drive has lost a directory that was being moved; it is made anew");
        self.make_dir(to, applied)
    }

    pub(super) fn make_dir(&self, path: &RelPath, applied: &mut Applied) -> Result<()> {
        make_dir_kept(self.backend, path, &self.placer(), applied)
    }

    /// An empty directory that somebody has made where one is to go is taken away. What else is there is met when the name is given.
    fn make_way(&self, to: &RelPath) -> Result<()> {
        match look(self.backend, to)? {
            Some(found) if found.kind == FileKind::Directory => match self.backend.remove_dir(to) {
                Err(error) if error.is_gone() => Err(error.into()),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Takes away what is not to stay: older copies of what the file is to be, and what stands under its name. What is somebody
    /// else's is kept.
    fn take_away(
        &self,
        file: &Wanted<'_>,
        task: Task,
        (here, seen): (&RelPath, Option<&Metadata>),
        slots: &mut Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        match task {
            Task::Done | Task::Rebuild | Task::RebuildAside => {
                for name in slots.all(file.slot) {
                    self.remove_own(file, &name, applied)?;
                }
                slots.forget(file.slot);
            }
            // Copies were made of what the older names had.
            Task::Move | Task::MoveAside => {
                if let Some(newest) = slots.newest(file.slot) {
                    for name in slots.all(file.slot).iter().filter(|name| **name != newest) {
                        self.remove_own(file, name, applied)?;
                    }
                    slots.only(file.slot, &newest);
                }
            }
            Task::CopyApart | Task::Vanished | Task::Refused => {}
        }
        match task {
            Task::Move | Task::Rebuild => self.take_old_away(file, (here, seen), applied)?,
            Task::MoveAside | Task::RebuildAside => {
                self.placer().keep_theirs(here, file.to, applied)?;
            }
            Task::Done | Task::CopyApart | Task::Vanished | Task::Refused => {}
        }
        match task {
            Task::Refused => Ok(()),
            _ => self.see_to_set_aside(file, applied),
        }
    }

    /// Removes what stands under the name of a file, unless it has become somebody else's since it was `seen`.
    fn take_old_away(
        &self,
        file: &Wanted<'_>,
        (here, seen): (&RelPath, Option<&Metadata>),
        applied: &mut Applied,
    ) -> Result<()> {
        let Some(found) = look(self.backend, here)? else {
            return Ok(());
        };
        if seen != Some(&found) && self.is_foreign(file, &found) {
            return self.placer().keep_theirs(here, file.to, applied);
        }
        self.remove_all(here)?;
        // What was set aside from here may be on the clusters that have just been freed, and is not to be removed later.
        let replaced = self.known.replaced.get(&file.slot);
        for old in self.set_aside_for(file) {
            if let Some(aside) = look(self.backend, &old)?
                && !self.backend.renames_atomically()
                && replaced.is_some_and(|known| known.may_be(&aside))
            {
                self.remove_all(&old)?;
            }
        }
        Ok(())
    }

    /// What was set aside for a file is what the batch replaces, or somebody else's version of it.
    fn see_to_set_aside(&self, file: &Wanted<'_>, applied: &mut Applied) -> Result<()> {
        for old in self.set_aside_for(file) {
            let found = match look(self.backend, &old) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                // It goes back to its name, if that is free, and the file is set aside.
                Err(FlushError::Backend(error)) if is_local(self.backend, self.batch, &error) => {
                    match self.backend.rename_new(&old, file.to) {
                        Ok(()) => return Err(error.into()),
                        Err(_) => self.placer().keep_aside(&old, file.to, applied)?,
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            let replaced = self.known.replaced.get(&file.slot);
            if replaced.is_some_and(|known| known.may_be(&found) && found.size != known.size) {
                self.remove_all(&old)?;
                continue;
            }
            let expected = replaced.copied().unwrap_or(Believed::ANYTHING);
            self.placer()
                .keep_or_drop(&old, file.to, &expected, applied)?;
        }
        Ok(())
    }

    /// Removes what stands in the slot of a file. Where names are swapped it may be what stood under the file's name, and that may
    /// be somebody else's version; so may what was moved.
    fn remove_own(&self, file: &Wanted<'_>, name: &RelPath, applied: &mut Applied) -> Result<()> {
        if self.is_theirs(file.slot, name)? {
            return self.placer().keep_aside(name, file.to, applied);
        }
        if self.backend.renames_atomically()
            && let Some(found) = look(self.backend, name)?
            && self.is_foreign(file, &found)
        {
            return self.placer().keep_aside(name, file.to, applied);
        }
        self.remove_all(name)
    }

    /// Keeps what is in a slot and is not what was moved there: it gets no final name.
    fn keep_damaged(&self, file: &Wanted<'_>, slots: &mut Slots) -> Result<()> {
        for from in slots.all(file.slot) {
            self.to_lost_found(&from, file.to, &file.slot.file_name(), "damaged")?;
        }
        slots.forget(file.slot);
        Ok(())
    }

    /// Keeps what stands at `from`, in the way of what is to have the name `to`.
    pub(super) fn to_lost_found(
        &self,
        from: &RelPath,
        to: &RelPath,
        slot: &str,
        what: &str,
    ) -> Result<()> {
        let dir = layout::lost_found();
        make_lost_found(self.backend)?;
        let mut number = 0;
        loop {
            let name = format!("{:016x}-{slot}-{what}{number}", self.batch.0);
            let name = Name::new(name.as_bytes()).expect("names formed here are well formed");
            let kept = dir.join(&name);
            if look(self.backend, &kept)?.is_none() {
                tracing::error!(path = %to, kept = %kept, what, "kept on the drive, not under its name");
                return Ok(self.backend.rename(from, &kept)?);
            }
            number += 1;
        }
    }

    fn write_anew(&self, file: &Wanted<'_>, task: &mut Task, slots: &mut Slots) -> Result<()> {
        match task {
            Task::Rebuild | Task::RebuildAside => {
                let wanted = file.content.unwrap_or(Believed::ANYTHING);
                let path = match self.is_moved(file) {
                    true => slots.next_copy(file.slot),
                    false => layout::slot_path(self.batch, file.slot),
                };
                if self.rebuild(file.slot, &path, file.to, &wanted)? {
                    slots.only(file.slot, &path);
                    *task = Task::Move;
                } else if self.moved(file.slot).is_some() {
                    *task = Task::Vanished;
                } else {
                    return Err(self.unfinished(format!(
                        "the cache has other bytes for {} than the batch",
                        file.to
                    )));
                }
            }
            Task::CopyApart => {
                let mut names = slots.all(file.slot);
                names.push(file.to.clone());
                self.copy_apart(file.slot, &names, slots)?;
                *task = Task::Move;
            }
            _ => {}
        }
        Ok(())
    }

    fn give_name(
        &self,
        file: &Wanted<'_>,
        task: Task,
        slots: &mut Slots,
        applied: &mut Applied,
    ) -> Result<()> {
        match task {
            Task::Move | Task::MoveAside => {
                let from = slots
                    .newest(file.slot)
                    .ok_or_else(|| self.unfinished(format!("nothing is staged for {}", file.to)))?;
                (self.placer()).place(file.slot, &from, file.to, None, applied)?;
                slots.forget(file.slot);
            }
            Task::Refused => return Ok(()),
            Task::Vanished => {
                self.keep_damaged(file, slots)?;
                applied.vanished.push(file.to.clone());
            }
            _ => {}
        }
        // Of a staged file; one that was moved has brought its time along, and another one tells of somebody else's change.
        if let (Some(content), None) = (&file.content, self.moved(file.slot)) {
            set_time(self.backend, file.to, content.modified)?;
        }
        Ok(())
    }
}
