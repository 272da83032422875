//! The second phase, again: every name gets what the batch gives it.

use super::super::apply::{Applied, create_with, set_time};
use super::judge::{Counts, Task, Wanted};
use super::standing::{Slots, Standing};
use super::trees::Restored;
use super::{Redo, is_dir, look};
use crate::base::{Name, RelPath};
use crate::flush::real;
use crate::flush::report::Result;
use crate::rules::known::Believed;
use crate::rules::layout;
use crate::rules::steps::{PlaceStep, PlainKind, SlotNo};

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
        self.place_nodes_and_links(slots, applied)?;
        real::set_attributes(self.backend, &self.steps.attributes, applied)
    }

    pub(super) fn wanted(&self) -> Vec<Wanted<'_>> {
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

    pub(super) fn moving_directories(&self) -> impl Iterator<Item = (&RelPath, SlotNo)> {
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
            Task::MoveAside | Task::RebuildAside => {
                self.to_lost_found(here, file.to, &file.slot.file_name(), "theirs")
            }
            _ => Ok(()),
        }
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
        self.make_dir(&dir)?;
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
