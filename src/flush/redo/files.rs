//! The second phase, again: every name gets what the batch gives it.

use std::collections::HashMap;

use super::super::apply::{Applied, create_with, set_time};
use super::standing::{Slots, Standing};
use super::trees::Restored;
use super::{Redo, State, is_dir, is_file, look};
use crate::backend::{BackendError, Metadata};
use crate::base::{Name, RelPath};
use crate::flush::report::Result;
use crate::rules::known::Believed;
use crate::rules::layout;
use crate::rules::steps::{PlaceStep, PlainKind, SlotNo};

/// What a file that the batch places must be, as far as it is known.
struct Wanted<'a> {
    slot: SlotNo,
    to: &'a RelPath,
    /// `None` for a file that is moved and of which nothing is known.
    content: Option<Believed>,
}

/// What is to be done for one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// It stands where it belongs, whole.
    Done,
    /// What is in its slot goes to its name; what stands there is an older version, or nothing.
    Move,
    /// The same, and what stands there is somebody else's.
    MoveAside,
    /// Both names go, and it is written anew from the SSD. What stands under its name is ours or nobody's.
    Rebuild,
    /// The same, and what stands there is somebody else's.
    RebuildAside,
    /// It stands under both names, and the SSD does not have it.
    CopyApart,
    /// It is nowhere.
    Vanished,
}

/// The names in directories, each with the number of its entries there: after a crash there may be two of one name.
#[derive(Default)]
struct Counts(HashMap<RelPath, HashMap<Vec<u8>, usize>>);

impl Redo<'_> {
    pub(super) fn place(&self, slots: &mut Slots, applied: &mut Applied) -> Result<()> {
        let mut standing = self.directories_to_place(slots)?;
        let wanted = self.wanted();
        let mut counts = Counts::default();
        let mut tasks = Vec::with_capacity(wanted.len());
        for file in &wanted {
            let here = standing.locate_name(file.to);
            self.uncover(file, &here, slots, &mut counts)?;
            tasks.push(self.judge(file, &here, slots, &mut counts)?);
        }
        // Nothing that counts has been touched up to here. What is removed now is gone for good before anything is written.
        for (file, task) in wanted.iter().zip(&tasks) {
            self.take_away(file, *task, &standing.locate_name(file.to), slots)?;
        }
        self.backend.sync()?;
        self.untangle_placed(slots, &mut standing)?;
        let restored = self.place_directories(slots, &mut standing, applied)?;
        for (file, task) in wanted.iter().zip(&mut tasks) {
            self.write_anew(file, task, slots)?;
        }
        // No name is given to bytes that may not be on the medium yet.
        self.backend.sync()?;
        self.name_restored(&restored)?;
        for (file, task) in wanted.iter().zip(&tasks) {
            self.give_name(file, *task, slots, applied)?;
        }
        for step in &self.steps.place {
            if let PlaceStep::Touch { path, modified } = step {
                set_time(self.backend, path, *modified)?;
            }
        }
        Ok(())
    }

    fn wanted(&self) -> Vec<Wanted<'_>> {
        let files = self.steps.place.iter().filter_map(|step| match step {
            PlaceStep::Install { slot, to, content } => Some(Wanted {
                slot: *slot,
                to,
                content: Some(content.into()),
            }),
            PlaceStep::Attach {
                slot,
                to,
                kind: PlainKind::File,
            } => Some(Wanted {
                slot: *slot,
                to,
                content: self.moved(*slot),
            }),
            _ => None,
        });
        files.collect()
    }

    fn moving_directories(&self) -> impl Iterator<Item = (&RelPath, SlotNo)> {
        self.steps.place.iter().filter_map(|step| match step {
            PlaceStep::Attach {
                slot,
                to,
                kind: PlainKind::Directory,
            } => Some((to, *slot)),
            _ => None,
        })
    }

    /// Finds out which of the directories that move are still in their slots. One that is under both names is found under either.
    fn directories_to_place(&self, slots: &mut Slots) -> Result<Standing> {
        let mut standing = Standing::default();
        for (to, slot) in self.moving_directories() {
            self.drop_hollow(slot, &standing.locate_name(to), slots)?;
            if let Some(name) = slots.newest(slot) {
                standing.note(to, name);
            }
        }
        Ok(standing)
    }

    /// Puts the directories that are under both names into their slots.
    fn untangle_placed(&self, slots: &mut Slots, standing: &mut Standing) -> Result<()> {
        for (to, slot) in self.moving_directories() {
            let mut names = slots.all(slot);
            if names.is_empty() {
                continue;
            }
            let here = standing.locate_name(to);
            if is_dir(look(self.backend, &here)?.as_ref()) && self.are_twins(&names, &here)? {
                names.push(here);
            }
            let one = self.one_directory(slot, &names, slots)?;
            standing.note(to, one);
        }
        Ok(())
    }

    fn place_directories(
        &self,
        slots: &mut Slots,
        standing: &mut Standing,
        applied: &mut Applied,
    ) -> Result<Vec<Restored>> {
        let mut restored = Vec::new();
        for step in &self.steps.place {
            match step {
                PlaceStep::MakeDir { path } => self.make_dir(path)?,
                PlaceStep::Attach {
                    slot,
                    to,
                    kind: PlainKind::Directory,
                } => {
                    let is_lost = self.place_directory(*slot, to, slots, standing)?;
                    restored.extend(self.restore_tree(*slot, to, is_lost, applied)?);
                }
                _ => {}
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
    ) -> Result<bool> {
        if let Some(from) = slots.newest(slot) {
            self.make_way(to)?;
            self.backend.rename(&from, to)?;
            slots.forget(slot);
            standing.settle(to);
            return Ok(false);
        }
        if is_dir(look(self.backend, to)?.as_ref()) {
            return Ok(slots.is_lost(slot));
        }
        self.make_lost_dir(slot, to)?;
        Ok(true)
    }

    /// Makes a directory anew that is nowhere. It is noted first: should this be cut short, the next attempt finds an empty
    /// directory and must not take it for the one that was moved.
    fn make_lost_dir(&self, slot: SlotNo, to: &RelPath) -> Result<()> {
        let note = layout::lost_path(self.batch, slot);
        if look(self.backend, &note)?.is_none() {
            create_with(self.backend, &note, b"")?;
        }
        self.backend.sync()?;
        tracing::warn!(path = %to, "the drive has lost a directory that was being moved; it is made anew");
        self.make_dir(to)
    }

    pub(super) fn make_dir(&self, path: &RelPath) -> Result<()> {
        match self.backend.make_dir(path) {
            Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {
                if is_dir(look(self.backend, path)?.as_ref()) {
                    return Ok(());
                }
                Err(self.unfinished(format!(
                    "a file stands where the directory {path} belongs; move it away"
                )))
            }
            result => Ok(result?),
        }
    }

    /// An empty directory that somebody has made where one is to go is taken away.
    fn make_way(&self, to: &RelPath) -> Result<()> {
        if look(self.backend, to)?.is_none() {
            return Ok(());
        }
        self.backend.remove_dir(to).map_err(|_| {
            self.unfinished(format!(
                "somebody else has put something at {to} on the drive, where a directory belongs; move it away"
            ))
        })
    }

    /// An older version may hide the newer one: two entries of one name, of which only the first is found. Where nothing else has
    /// the newer one, the older is removed. Nothing shares its clusters.
    fn uncover(
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

    /// Decides for one file, touching nothing.
    fn judge(
        &self,
        file: &Wanted<'_>,
        here: &RelPath,
        slots: &Slots,
        counts: &mut Counts,
    ) -> Result<Task> {
        let found = look(self.backend, here)?;
        if is_dir(found.as_ref()) {
            return Err(self.unfinished(format!(
                "a directory stands where the file {} belongs; move it away",
                file.to
            )));
        }
        let staged = slots.newest(file.slot);
        let in_slot = match &staged {
            Some(path) => self.state(path, look(self.backend, path)?.as_ref(), file)?,
            None => State::Nothing,
        };
        let there = self.state(here, found.as_ref(), file)?;
        let twice = found.is_some() && counts.of(self, here)? > 1;
        let tangled = match (in_slot, there) {
            (State::Good, State::Good) => true,
            (_, State::Good) => twice || slots.all(file.slot).len() > 1,
            // One of the two may be what is in the slot.
            (State::Good, _) => twice,
            _ => false,
        };
        let kept = self.is_kept(file.slot);
        let aside = found
            .as_ref()
            .is_some_and(|meta| self.is_foreign(file, meta));
        Ok(match (in_slot, there) {
            _ if tangled && kept => Task::Rebuild,
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
            (_, _) => {
                return Err(self.unfinished(format!(
                    "the staged copy of {} is damaged or missing; only the machine that wrote it can finish the batch",
                    file.to
                )));
            }
        })
    }

    /// Whether it is a file that is moved, not one that was staged.
    fn is_moved(&self, file: &Wanted<'_>) -> bool {
        file.content.is_none() || self.moved(file.slot).is_some()
    }

    fn state(&self, path: &RelPath, found: Option<&Metadata>, file: &Wanted<'_>) -> Result<State> {
        self.whole(path, found, file.content.as_ref())
    }

    /// Whether what stands under the name is neither what belongs there nor what the batch replaces: somebody else's.
    fn is_foreign(&self, file: &Wanted<'_>, found: &Metadata) -> bool {
        let replaced = self.known.replaced.get(&file.slot);
        let known = [file.content.as_ref(), replaced];
        !known.into_iter().flatten().any(|known| known.may_be(found))
    }

    /// Whether of a moved file of which nothing is known what stands at its new name is another, older one.
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

    fn take_away(
        &self,
        file: &Wanted<'_>,
        task: Task,
        here: &RelPath,
        slots: &mut Slots,
    ) -> Result<()> {
        match task {
            Task::Done | Task::Rebuild | Task::RebuildAside => {
                for name in slots.all(file.slot) {
                    self.remove_all(&name)?;
                }
                slots.forget(file.slot);
            }
            // Copies were made of what the older names had.
            Task::Move | Task::MoveAside => {
                if let Some(newest) = slots.newest(file.slot) {
                    for name in slots.all(file.slot).iter().filter(|name| **name != newest) {
                        self.remove_all(name)?;
                    }
                    slots.only(file.slot, &newest);
                }
            }
            Task::CopyApart | Task::Vanished => {}
        }
        match task {
            Task::Move | Task::Rebuild => self.remove_all(here),
            Task::MoveAside | Task::RebuildAside => self.set_aside(file, here),
            _ => Ok(()),
        }
    }

    /// Keeps what somebody else has put under a name that the batch fills.
    fn set_aside(&self, file: &Wanted<'_>, here: &RelPath) -> Result<()> {
        self.to_lost_found(here, file, "theirs")
    }

    /// Keeps what is in a slot and is not what was moved there: it gets no final name.
    fn keep_damaged(&self, file: &Wanted<'_>, slots: &mut Slots) -> Result<()> {
        for from in slots.all(file.slot) {
            self.to_lost_found(&from, file, "damaged")?;
        }
        slots.forget(file.slot);
        Ok(())
    }

    fn to_lost_found(&self, from: &RelPath, file: &Wanted<'_>, what: &str) -> Result<()> {
        let dir = layout::lost_found();
        self.make_dir(&dir)?;
        let mut number = 0;
        loop {
            let name = format!(
                "{:016x}-{}-{what}{number}",
                self.batch.0,
                file.slot.file_name()
            );
            let name = Name::new(name.as_bytes()).expect("names formed here are well formed");
            let to = dir.join(&name);
            if look(self.backend, &to)?.is_none() {
                tracing::error!(path = %file.to, kept = %to, what, "kept on the drive, not under its name");
                return Ok(self.backend.rename(from, &to)?);
            }
            number += 1;
        }
    }

    fn write_anew(&self, file: &Wanted<'_>, task: &mut Task, slots: &mut Slots) -> Result<()> {
        match task {
            Task::Rebuild | Task::RebuildAside => {
                let wanted = file.content.unwrap_or(Believed::ANYTHING);
                if self.rebuild(file.slot, file.to, &wanted)? {
                    slots.only(file.slot, &layout::slot_path(self.batch, file.slot));
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
                self.backend.rename(&from, file.to)?;
                slots.forget(file.slot);
            }
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

impl Counts {
    fn of(&mut self, redo: &Redo<'_>, path: &RelPath) -> Result<usize> {
        let Some((dir, name)) = path.split_last() else {
            return Ok(0);
        };
        if !self.0.contains_key(&dir) {
            let mut names: HashMap<Vec<u8>, usize> = HashMap::new();
            let entries = match redo.backend.read_dir(&dir) {
                Err(error) if error.is_not_found() => Vec::new(),
                entries => entries.map_err(|error: BackendError| error)?,
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
