//! Decides what to do for each file that a batch places, from what is at its names.

use std::collections::HashMap;

use crate::apply::patch;
use crate::apply::patch::{Access, Begun, Patch};
use crate::apply::refused::StepNo;
use crate::core::{Metadata, RelPath, Timestamp};
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::format::steps::{FileContent, PatchFile, SlotNo};
use crate::recovery::locate::{Slots, Standing};
use crate::recovery::replay::{Redo, State, is_file, look};

/// A file that the batch places, as far as it is known.
pub(crate) struct Wanted<'a> {
    /// The number of its step.
    pub(crate) number: usize,
    pub(crate) slot: SlotNo,
    pub(crate) to: &'a RelPath,
    /// `None` for a moved file without an expectation.
    pub(crate) content: Option<ExpectedFile>,
    /// The patch of the slot, and what the file is with it, if the batch only patches it.
    pub(crate) patch: Option<(&'a PatchFile, &'a FileContent)>,
}

impl Wanted<'_> {
    pub(crate) fn step(&self) -> StepNo {
        StepNo::Place(self.number)
    }
}

/// What to do for one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// It is whole under its name.
    Done,
    /// The file in its slot goes to its name, which has an older version, or nothing.
    Move,
    /// The same, but the name has somebody else's file.
    MoveAside,
    /// Both names are removed, and it is written again from the SSD. Its name has no file of
    /// others.
    Rebuild,
    /// The same, but the name has somebody else's file.
    RebuildAside,
    /// It is under both names, and the SSD does not have it.
    CopyApart,
    /// The blocks of its patch are written into the file under its name.
    Patch,
    /// The patch cannot be written: the whole file is written into its slot from the SSD, and
    /// replaces what is under the name, which is the old version or a part of the new one.
    Replace,
    /// The same, but others have written into what is under the name.
    ReplaceTheirs,
    /// Its name has somebody else's file, which the patch does not fit, or nothing, and the SSD is
    /// not at hand.
    LeaveTheirs,
    /// It is nowhere.
    Vanished,
    /// The backend refuses it: its name keeps its file.
    Refused,
}

/// The names in directories, each with the number of its entries: after a crash there may be two of
/// one name.
#[derive(Default)]
pub(crate) struct Counts(HashMap<RelPath, HashMap<Vec<u8>, usize>>);

impl Redo<'_> {
    /// Checks, before anything is touched, that the SSD is not needed for any staged file: each is
    /// whole in its slot or under its name. Otherwise the drive is better left as it is until the
    /// machine comes that has the bytes.
    pub(crate) fn check_at_hand(&self, slots: &Slots) -> Result<()> {
        let mut standing = Standing::default();
        for (_, to, slot) in self.moving_directories() {
            if let Some(name) = slots.newest(slot) {
                standing.note(to, name);
            }
        }
        for file in self.wanted().iter().filter(|file| !self.is_moved(file)) {
            let here = standing.locate_name(file.to);
            let mut places = slots.all(file.slot);
            places.push(here);
            let mut is_there = false;
            for place in places.iter().rev() {
                let found = look(self.backend, place)?;
                is_there = is_there || self.state(place, found.as_ref(), file)? == State::Good;
            }
            let here = standing.locate_name(file.to);
            let mut counts = Counts::default();
            let judged = |counts: &mut Counts| self.judge_patch(file, &here, slots, counts);
            if !is_there && judged(&mut counts)?.is_none() {
                return Err(self.not_at_hand(file));
            }
        }
        Ok(())
    }

    fn not_at_hand(&self, file: &Wanted<'_>) -> FlushError {
        self.unfinished(format!(
            "the staged copy of {} is damaged or missing; only the machine that wrote it can \
             finish the batch",
            file.to
        ))
    }

    /// Removes an older version that hides the newer one: there may be two entries of one name, of
    /// which only the first is found. It does so only if the newer one is nowhere else. No other
    /// name shares the clusters of the older one.
    pub(crate) fn uncover(
        &self,
        file: &Wanted<'_>,
        here: &RelPath,
        slots: &Slots,
        counts: &mut Counts,
    ) -> Result<()> {
        if slots.newest(file.slot).is_some() || self.is_kept(file.slot) {
            return Ok(());
        }
        while let Some(found) = look(self.backend, here)?
            && is_file(Some(&found))
            && counts.of(self, here)? > 1
            && self.state(here, Some(&found), file)? == State::Bad
        {
            self.backend.remove_file(here)?;
            self.backend.sync()?;
            *counts = Counts::default();
        }
        Ok(())
    }

    /// Returns `None` instead of an error that concerns one name only, if `file` is patched and the
    /// SSD has all of it: a bad sector must not leave a torn file under the name.
    fn if_readable<T>(&self, file: &Wanted<'_>, read: Result<T>) -> Result<Option<T>> {
        match read {
            Err(FlushError::Backend(error))
                if file.patch.is_some()
                    && self.is_kept(file.slot)
                    && self.manners.is_local(self.backend, self.batch, &error) =>
            {
                tracing::warn!(%error, path = %file.to, "cannot be read; it is written whole");
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// Returns whether a file that was begun, and that cannot be read, is ours by its size and
    /// time: it is as it was before its blocks were written, or afterwards.
    fn looks_ours(&self, found: &Metadata, before: &ExpectedFile, content: &FileContent) -> bool {
        let slack = self.manners.slack;
        let has_time = |time: Timestamp| found.modified.0.abs_diff(time.0) <= slack;
        [before.size, content.size].contains(&found.size)
            && (has_time(before.modified) || has_time(content.modified))
    }

    /// Decides for a file that is patched; `None` if it has to be judged as any other, because a
    /// whole one may be in its slot or on its way from there.
    fn judge_patch(
        &self,
        file: &Wanted<'_>,
        here: &RelPath,
        slots: &Slots,
        counts: &mut Counts,
    ) -> Result<Option<Task>> {
        let Some((wanted, content)) = file.patch else {
            return Ok(None);
        };
        let staged = slots.newest(file.slot);
        let from = layout::patch_path(self.batch, file.slot);
        let opened = Patch::open(self.backend, &patch::usual, &from, wanted);
        let patch = self.if_readable(file, opened)?.flatten();
        let found = look(self.backend, here)?;
        let was_begun = slots.was_begun(file.slot);
        if self.state(here, found.as_ref(), file)? == State::Good {
            // After a failed sync the kernel still has bytes that the medium may lack. Written once
            // more, they are a part of the next sync.
            let task = match was_begun && patch.is_some() {
                true => Task::Patch,
                false => Task::Done,
            };
            // A rebuilt file may be under both names.
            return Ok(staged.is_none().then_some(task));
        }
        let begun = if was_begun { Begun::Maybe } else { Begun::No };
        let mut can_be_read = true;
        let is_ours = match (&found, &patch, self.known.replaced.get(&file.slot)) {
            (Some(found), Some(patch), Some(expected)) if patch::may_be_patched(found) => {
                let may_be_ours =
                    was_begun || self.placer().is_as_expected(here, found, expected)?;
                let completes = || {
                    let by = (self.backend, &patch::usual as &patch::Open);
                    self.if_readable(file, patch.completes(by, here, content, begun))
                };
                match may_be_ours.then(completes).transpose()? {
                    Some(None) => {
                        can_be_read = false;
                        !was_begun || self.looks_ours(found, expected, content)
                    }
                    completes => completes.flatten() == Some(true),
                }
            }
            // Its patch is lost.
            (Some(found), None, Some(expected)) if !was_begun => {
                self.placer().is_as_expected(here, found, expected)?
            }
            (None, ..) => true,
            _ => false,
        };
        let is_open_to = |found: &Metadata| {
            Access::given(&self.steps.attributes, file.to).may_be_given_later(found)
        };
        let can_be_patched = patch.is_some() && can_be_read;
        if is_ours && can_be_patched && found.as_ref().is_some_and(is_open_to) {
            return Ok(Some(Task::Patch));
        }
        let is_staged_whole = match &staged {
            Some(path) => {
                let found = look(self.backend, path)?;
                self.state(path, found.as_ref(), file)? == State::Good
            }
            None => true,
        };
        let mut is_tangled = slots.all(file.slot).len() > 1
            || slots.was_twin(file.slot)
            || counts.of(self, here)? > 1;
        for old in self.set_aside_for(file) {
            is_tangled = is_tangled || look(self.backend, &old)?.is_some();
        }
        if is_tangled || !is_staged_whole {
            return Ok(None);
        }
        let has_whole = staged.is_some() || self.is_kept(file.slot);
        Ok(match (has_whole, is_ours) {
            (true, true) => Some(Task::Replace),
            (true, false) => Some(Task::ReplaceTheirs),
            (false, _) if !was_begun && patch.is_some() => Some(Task::LeaveTheirs),
            // Nothing of ours can be completed any more, unless the machine comes that has the
            // bytes: it finds the step refused, and writes the file whole.
            (false, _) if self.ssd.is_none() && found.is_none() && was_begun => {
                Some(Task::LeaveTheirs)
            }
            (false, false) if self.ssd.is_none() && patch.is_some() => Some(Task::LeaveTheirs),
            (false, _) => None,
        })
    }

    /// Decides for one file, and touches nothing.
    pub(crate) fn judge(
        &self,
        file: &Wanted<'_>,
        here: &RelPath,
        slots: &Slots,
        counts: &mut Counts,
    ) -> Result<Task> {
        if let Some(task) = self.judge_patch(file, here, slots, counts)? {
            return Ok(task);
        }
        let found = look(self.backend, here)?;
        let staged = slots.newest(file.slot);
        let is_theirs = match &staged {
            Some(path) => self.is_theirs(file.slot, path)?,
            None => false,
        };
        let there = self.state(here, found.as_ref(), file)?;
        if is_theirs && there == State::Good && self.backend.renames_atomically() {
            // It was exchanged with another program's version of the replaced file.
            return Ok(Task::Done);
        }
        let in_slot = match &staged {
            // It is moved as it is now.
            Some(_) if is_theirs => State::Good,
            Some(path) => self.state(path, look(self.backend, path)?.as_ref(), file)?,
            None => State::Nothing,
        };
        let twice = found.is_some() && counts.of(self, here)? > 1;
        let tangled = match (in_slot, there) {
            (State::Good, State::Good) => true,
            (_, State::Good) => twice || slots.all(file.slot).len() > 1,
            // One of the two may be the one in the slot.
            (State::Good, _) => twice,
            _ => false,
        };
        let kept = self.is_kept(file.slot);
        let aside = found
            .as_ref()
            .is_some_and(|meta| self.is_foreign(file, meta));
        let was_twin = slots.was_twin(file.slot);
        let tangled = tangled
            || was_twin
                && match (in_slot, there) {
                    (_, State::Good) => true,
                    (State::Good, _) => !aside,
                    _ => false,
                };
        Ok(match (in_slot, there) {
            _ if tangled && kept => Task::Rebuild,
            (State::Good, _) if was_twin && kept && aside => Task::RebuildAside,
            (State::Nothing, State::Good) if tangled => Task::CopyApart,
            (State::Good, State::Good)
                if self.is_older(file, found.as_ref(), staged.as_ref())? =>
            {
                Task::Move
            }
            _ if tangled => Task::CopyApart,
            (_, State::Good) => Task::Done,
            (State::Good, _) if aside => Task::MoveAside,
            (State::Good, _) => Task::Move,
            (_, _) if kept && aside => Task::RebuildAside,
            (_, _) if kept => Task::Rebuild,
            (_, _) if self.is_moved(file) => Task::Vanished,
            (_, _) => return Err(self.not_at_hand(file)),
        })
    }

    /// Returns whether it is a file that is moved, not one that was staged.
    pub(crate) fn is_moved(&self, file: &Wanted<'_>) -> bool {
        file.content.is_none() || self.moved(file.slot).is_some()
    }

    fn state(&self, path: &RelPath, found: Option<&Metadata>, file: &Wanted<'_>) -> Result<State> {
        let whole = self.whole(path, found, file.content.as_ref());
        Ok(self.if_readable(file, whole)?.unwrap_or(State::Bad))
    }

    /// Returns whether the file under the name is somebody else's: neither the one that belongs
    /// there nor the one that the batch replaces.
    pub(crate) fn is_foreign(&self, file: &Wanted<'_>, found: &Metadata) -> bool {
        let replaced = self.known.replaced.get(&file.slot);
        let known = [file.content.as_ref(), replaced];
        !known.into_iter().flatten().any(|known| known.may_be(found))
    }

    /// Returns whether the new name of a moved file without an expectation has another, older file.
    fn is_older(
        &self,
        file: &Wanted<'_>,
        found: Option<&Metadata>,
        staged: Option<&RelPath>,
    ) -> Result<bool> {
        if file.content.is_some() {
            return Ok(false);
        }
        let (Some(found), Some(staged)) = (found, staged) else {
            return Ok(false);
        };
        let staged = look(self.backend, staged)?;
        Ok(staged.is_some_and(|s| (s.size, s.modified) != (found.size, found.modified)))
    }
}

impl Counts {
    fn of(&mut self, redo: &Redo<'_>, path: &RelPath) -> Result<usize> {
        let Some((dir, name)) = path.split_last() else {
            return Ok(0);
        };
        if !self.0.contains_key(&dir) {
            let mut names: HashMap<Vec<u8>, usize> = HashMap::new();
            let entries = match redo.backend.read_dir(&dir) {
                Err(error) if error.is_not_found() => Vec::new(),
                entries => entries?,
            };
            for entry in entries {
                *names.entry(entry.name.as_bytes().to_vec()).or_default() += 1;
            }
            self.0.insert(dir.clone(), names);
        }
        Ok(self
            .0
            .get(&dir)
            .and_then(|names| names.get(name.as_bytes()))
            .copied()
            .unwrap_or(0))
    }
}
