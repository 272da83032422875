//! Replays the second phase: every name gets its file from the batch.

use crate::apply::blocked::note_blocked;
use crate::apply::put_back::put_back;
use crate::apply::refused::{StepNo, Why};
use crate::apply::{Applied, allowed_attributes, follows_move, special_files};
use crate::core::{Metadata, RelPath};
use crate::drive::{BackendError, WRITE, create_with, is_absent, set_time};
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::format::steps::{PlaceStep, PlainKind};
use crate::recovery::judge::{Counts, Task, Wanted};
use crate::recovery::locate::Slots;
use crate::recovery::replay::{Redo, look};

impl Redo<'_> {
    pub(crate) fn place(&self, slots: &mut Slots, applied: &mut Applied) -> Result<()> {
        let mut standing = self.directories_to_place(slots)?;
        note_blocked(self.steps, &mut applied.refused);
        self.note_put_back(slots, applied)?;
        let mut blocked = note_blocked(self.steps, &mut applied.refused);
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
                    // It may be under both names.
                    Some(_) => self.unless_tangled(file.step(), file.to, judged, applied)?,
                    None => self.or_refuse(file.step(), file.to, judged, applied)?,
                }
            }
            if task == Task::LeaveTheirs {
                let why = match slots.was_begun(file.slot) {
                    true => Why::Torn,
                    false => Why::Occupied,
                };
                applied.refused.note(file.step(), file.to, why);
                task = Task::Refused;
            }
            tasks.push(task);
            seen.push(match task {
                Task::Refused => None,
                _ => look(self.backend, &here)?,
            });
        }
        self.note_twins(&wanted, &tasks, &seen, slots)?;
        self.note_begun(&wanted, &mut tasks, slots, applied)?;
        // Up to here only superfluous files were touched. Removals from here on are durable before
        // anything is written.
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
        if tasks.contains(&Task::Patch) {
            let both = (&mut tasks[..], &mut seen[..]);
            self.grow_patches(&wanted, both, (&blocked, slots), applied)?;
        }
        for ((file, task), seen) in wanted.iter().zip(&mut tasks).zip(&mut seen) {
            let is_patched = matches!(task, Task::Patch | Task::Replace | Task::ReplaceTheirs);
            if is_patched && blocked.why(file.to).is_none() {
                self.write_patched(file, (task, seen), slots, applied)?;
                continue;
            }
            let written = match blocked.why(file.to) {
                Some(why) => {
                    applied.refused.note(file.step(), file.to, why);
                    Ok(())
                }
                // The batch must not end while only the SSD has a file that was moved.
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
                        tracing::warn!(%error, path = %file.to, "its bytes cannot be had from the \
                            cache");
                        BackendError::new(WRITE, file.to, source).into()
                    }
                    error => error,
                })};
            self.or_set_aside(file, task, written, applied)?;
        }
        // No name is given to bytes that may not be on the medium yet.
        self.backend.sync()?;
        let both = (&mut tasks[..], &mut seen[..]);
        self.check_patched(&wanted, both, slots, applied)?;
        self.name_restored(&restored, applied)?;
        for ((file, task), seen) in wanted.iter().zip(&mut tasks).zip(&seen) {
            let named = self.give_name(file, (*task, seen.as_ref()), slots, applied);
            self.or_set_aside(file, task, named, applied)?;
            if *task == Task::Refused {
                self.leave_as_it_was(file, slots, applied);
            }
        }
        self.check_refused_patches(&wanted, slots, applied)?;
        for (number, step) in self.steps.place.iter().enumerate() {
            let no = StepNo::Place(number);
            let PlaceStep::Touch { path, modified } = step else {
                continue;
            };
            if blocked.why(path).is_some() || applied.refused.has(no) {
                continue;
            }
            match set_time(self.backend, path, *modified) {
                Err(error)
                    if follows_move(self.steps, number)
                        && self.manners.is_local(self.backend, self.batch, &error) =>
                {
                    applied.not_touched.push(path.clone());
                }
                touched => self.or_refuse(no, path, touched.map_err(FlushError::from), applied)?,
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
        special_files::set_attributes(self.backend, self.batch, attributes, applied)
    }

    /// Notes, durably, which files are written again although they are under several names.
    /// Removing the first of these may mark the clusters of the others free: after a crash, the
    /// next attempt must not trust the others.
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
                Err(error) if error.is_full() => {}
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

    /// As [`Redo::or_refuse`] for a file that then needs nothing more.
    pub(super) fn or_set_aside(
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

    /// Leaves a refused file: its name keeps the present file, also if that was set aside already.
    /// Its staged bytes are of no more use; a moved file is put back with the others.
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

    /// Returns the names to which the file under the name of `file` may have been set aside.
    pub(super) fn set_aside_for(&self, file: &Wanted<'_>) -> Vec<RelPath> {
        let mut places = vec![layout::replaced_path(self.batch, file.slot)];
        if let Some((dir, _)) = file.to.split_last() {
            places.push(layout::near_old_path(&dir, self.batch, file.slot));
        }
        places
    }

    pub(crate) fn wanted(&self) -> Vec<Wanted<'_>> {
        let steps = self.steps.place.iter().enumerate();
        let files = steps.filter_map(|(number, step)| match step {
            PlaceStep::Install { slot, to, content } => Some(Wanted {
                number,
                slot: *slot,
                to,
                content: Some(content.into()),
                patch: None,
            }),
            PlaceStep::Patch {
                slot,
                to,
                content,
                patch,
            } => Some(Wanted {
                number,
                slot: *slot,
                to,
                content: Some(content.into()),
                patch: Some((patch, content)),
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
                patch: None,
            }),
            _ => None,
        });
        files.collect()
    }

    fn write_anew(&self, file: &Wanted<'_>, task: &mut Task, slots: &mut Slots) -> Result<()> {
        match task {
            Task::Rebuild | Task::RebuildAside => {
                let wanted = file.content.unwrap_or(ExpectedFile::ANYTHING);
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
        (task, seen): (Task, Option<&Metadata>),
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
            // It got its time with its last block. Another time is somebody else's change.
            Task::Patch => {
                applied.garbage.extend(slots.all(file.slot));
                slots.forget(file.slot);
                return Ok(());
            }
            Task::Replace | Task::ReplaceTheirs => {
                self.replace_patched(file, (task, seen), slots, applied)?;
            }
            Task::Refused => return Ok(()),
            Task::Vanished => {
                self.keep_damaged(file, slots)?;
                applied.vanished.push(file.to.clone());
            }
            _ => {}
        }
        // This holds for a staged file. A moved file has its own time, and another time is somebody
        // else's change.
        if let (Some(content), None) = (&file.content, self.moved(file.slot)) {
            set_time(self.backend, file.to, content.modified)?;
        }
        Ok(())
    }
}
