//! A batch of ours that another machine has finished with `ferryfs recover`, without this cache.
//!
//! That machine has left a receipt beside the records
//! ([`crate::recovery::interrupted::done_path`]). Here the drive is compared with the journal, and
//! the index confirms what is really there. The receipt goes after that; a crash before leaves the
//! batch open, and the same is concluded again.

use std::time::Instant;

use crate::apply::blocked::note_blocked;
use crate::apply::refused::{Refused, StepNo, Why, is_local};
use crate::apply::refused_list;
use crate::apply::{Applied, follows_move, special_files};
use crate::core::RelPath;
use crate::drive::{Backend, exists, is_absent};
use crate::error::Result;
use crate::flush::FlusherParts;
use crate::flush::open_batch::JournaledBatch;
use crate::format::layout;
use crate::format::record::BatchRecord;
use crate::format::steps::{PlaceStep, PlainKind};
use crate::index::BatchEnd;
use crate::recovery::interrupted::{Found, done_on, done_path, forget_done, read_record};
use crate::recovery::locate::Slots;
use crate::recovery::replay::look;

impl JournaledBatch<'_> {
    /// Confirms what the other machine has done, and removes its receipt.
    pub(super) fn accept_finished(&self) -> Result<()> {
        let (flusher, backend, batch) = (self.flusher, self.backend, self.active.batch);
        let began = Instant::now();
        tracing::info!(%batch, "the batch was finished elsewhere");
        let mut applied = Applied::default();
        self.note_refused_elsewhere(&mut applied)?;
        note_different(backend, &self.journal.record, &mut applied)?;
        self.note_untouched(&mut applied)?;
        applied.vanished = self.missing(&applied.refused)?;
        flusher.confirm(self.journal, &applied, self.active.cut, BatchEnd::Complete)?;
        flusher.note_recovered(self.journal, applied.refused.steps.len(), began);
        forget_done(backend, batch)?;
        flusher.leftovers.clean_up(backend, batch, &[])?;
        flusher.import_met(backend, &applied);
        Ok(())
    }

    /// Notes the steps that the drive has refused to the other machine, and where that has put back
    /// files that could not be moved.
    fn note_refused_elsewhere(&self, applied: &mut Applied) -> Result<()> {
        let (backend, record) = (self.backend, &self.journal.record);
        let listed = refused_list::read(backend, &layout::left_path(record.batch))?;
        applied.refused.note_listed(&record.steps, &listed);
        let redo = self.flusher.redo_of(backend, self.journal, self.manners)?;
        redo.note_put_back(&mut Slots::read(backend, record.batch)?, applied)?;
        note_blocked(&record.steps, &mut applied.refused);
        Ok(())
    }

    /// Notes the files that do not have the time that the batch was to give them.
    fn note_untouched(&self, applied: &mut Applied) -> Result<()> {
        let steps = &self.journal.record.steps;
        for (number, step) in steps.place.iter().enumerate() {
            let PlaceStep::Touch { path, modified } = step else {
                continue;
            };
            let Some(found) = look(self.backend, path)? else {
                continue;
            };
            if found.modified.0.abs_diff(modified.0) <= self.manners.slack {
                continue;
            }
            match follows_move(steps, number) {
                true => applied.not_touched.push(path.clone()),
                false => {
                    let no = StepNo::Place(number);
                    applied.refused.note(no, path, Why::Occupied);
                }
            }
        }
        Ok(())
    }

    /// Returns the names that the batch has placed and that the drive does not have. Without the
    /// cache the other machine could not write a file again that the drive had lost. A file that
    /// somebody has removed since is put back, too, which does less harm than a lost file.
    fn missing(&self, refused: &Refused) -> Result<Vec<RelPath>> {
        let mut missing = Vec::new();
        for (number, step) in self.journal.record.steps.place.iter().enumerate() {
            if refused.has(StepNo::Place(number)) {
                continue;
            }
            match step {
                PlaceStep::MakeDir { path: to }
                | PlaceStep::Install { to, .. }
                | PlaceStep::Patch { to, .. }
                | PlaceStep::InstallNode { to, .. }
                | PlaceStep::Link { to, .. }
                | PlaceStep::Attach {
                    to,
                    kind: PlainKind::File,
                    ..
                } => {
                    if !exists(self.backend, to)? {
                        missing.push(to.clone());
                    }
                }
                PlaceStep::Attach { to, .. } => self.missing_below(to, &mut missing)?,
                PlaceStep::Touch { .. } => {}
            }
        }
        Ok(missing)
    }

    /// The same for everything that the index knows below the directory at `dir`.
    fn missing_below(&self, dir: &RelPath, missing: &mut Vec<RelPath>) -> Result<()> {
        let mut open = vec![dir.clone()];
        while let Some(at) = open.pop() {
            let known = {
                let mut state = self.flusher.parts.index.lock();
                match state.find_stored(&at)? {
                    Some(ino) => state.placed_in(ino)?,
                    None => continue,
                }
            };
            for (name, entry) in known {
                let path = at.join(&name);
                match (entry.kind, exists(self.backend, &path)?) {
                    (PlainKind::Directory, true) => open.push(path),
                    (_, true) => {}
                    (PlainKind::Directory, false) => {
                        open.push(path.clone());
                        missing.push(path);
                    }
                    (PlainKind::File, false) => missing.push(path),
                }
            }
        }
        Ok(())
    }
}

/// Removes the receipts for batches of this cache. No batch is open, so they have been accepted, or
/// the batch was confirmed before.
pub(super) fn forget_all_done(backend: &dyn Backend, parts: &FlusherParts) -> Result<()> {
    for batch in done_on(backend)? {
        let path = done_path(batch)?;
        if let Found::Record(record, _) = read_record(backend, &path, batch, parts.volume)?
            && record.origin == parts.origin
        {
            forget_done(backend, batch)?;
        }
    }
    Ok(())
}

/// Notes the files that are not what the batch has placed: the step was refused, or somebody else
/// has changed the file since. Their bytes stay in the cache.
fn note_different(
    backend: &dyn Backend,
    record: &BatchRecord,
    applied: &mut Applied,
) -> Result<()> {
    for (number, step) in record.steps.place.iter().enumerate() {
        let (no, to) = (StepNo::Place(number), step.path());
        if applied.refused.has(no) {
            continue;
        }
        let is_it = match step {
            PlaceStep::Install { content, .. } | PlaceStep::Patch { content, .. } => {
                crate::drive::matches(backend, to, content)
            }
            PlaceStep::InstallNode { node, .. } => (backend.metadata(to))
                .map(|found| special_files::node_of(&found).as_ref() == Some(node)),
            PlaceStep::Link { from, .. } => (backend.metadata(from))
                .and_then(|one| Ok(special_files::are_one(&one, &backend.metadata(to)?)))
                .and_then(|is_one| Ok(is_one || special_files::are_alike(backend, from, to)?)),
            _ => continue,
        };
        let is_it = match is_it {
            Err(error) if is_absent(&error) => true,
            Err(error) if is_local(backend, record.batch, &error) => false,
            matched => matched? || !exists(backend, to)?,
        };
        if !is_it {
            applied.refused.note(no, to, Why::Occupied);
        }
    }
    Ok(())
}
