//! Finishing what was interrupted: with the cache at hand, or on a machine that has only the drive.

use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use super::Flusher;
use super::apply::Applied;
use super::carry::named_conflicts;
use super::journal::Journal;
use super::keep;
use super::limited::{Limited, no_device};
use super::placing::{Manners, Placer};
use super::redo::{Redo, Ssd};
use super::refused::{Refusal, StepNo, Why, explain_alone, is_local};
use super::report::{FlushError, Result};
use super::reserve::Relieved;
use super::stage::{discard, discard_ended};
use super::untrusted::{Sealed, read_sealed, read_small};
use crate::backend::Backend;
use crate::backend::drive::Withheld;
use crate::base::{BatchNo, ForeignText, RelPath, Timestamp};
use crate::index::ActiveBatch;
use crate::rules::known::SLACK_NS;
use crate::rules::layout;
use crate::rules::marker;
use crate::rules::record::{self, BatchRecord, RecordError};
use crate::rules::steps::{ClearStep, Node, PlaceStep, PlainKind};
use crate::rules::touched::Touched;
use crate::rules::trust::{Author, Subject, Trust};
use crate::sys;
use crate::sys::behalf::OnBehalf;

/// Suffix of a record that was finished without the cache that wrote it; tells that cache so.
const DONE: &str = ".done";

/// Key of the index's setting that names the batch of ours whose record is torn.
const TORN: &str = "torn_record";

/// Names of what was not done of others' batches that are remembered.
const LEFT_NAMED: usize = 20;

/// What became of a batch that was found on a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredBatch {
    /// Its number.
    pub batch: BatchNo,
    /// Whether it was committed, and so is finished now; else it was thrown away.
    pub finished: bool,
    /// Files that it carried.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Paths on the backend that the backend refused to change, with the reason.
    pub left_behind: Vec<(String, String)>,
}

/// Checks that the directory is the volume that it is taken for: P6 hangs on this.
pub(super) fn check_marker(backend: &dyn Backend, volume: Uuid, nonce: [u8; 16]) -> Result<()> {
    let wrong = |problem: String| FlushError::WrongDrive(problem);
    match read_small(backend, &layout::marker_path(), marker::MAX_BYTES)? {
        None => Err(wrong("the directory does not carry the volume's marker (.ferryfs/volume.json): the drive is not mounted there, or it is another one".into())),
        Some(bytes) => match marker::decode(&bytes) {
            Ok(marker) if marker.id == volume && marker.nonce == nonce => Ok(()),
            Ok(marker) => Err(wrong(format!("another volume is mounted there: {}, not {volume}", marker.id))),
            Err(error) => Err(wrong(format!("the volume marker cannot be read: {error}"))),
        },
    }
}

fn done_path(batch: BatchNo) -> Result<RelPath> {
    let name = format!("{:016x}{DONE}", batch.0);
    RelPath::parse(name.as_bytes())
        .ok()
        .and_then(|path| path.split_last())
        .map(|(_, name)| layout::batches_dir().join(&name))
        .ok_or_else(|| FlushError::WrongDrive("a batch number has no file name".into()))
}

/// What stands on the backend as the record of a batch.
enum Found {
    /// Nothing: the batch was not committed, or is over.
    Nothing,
    /// Something that is no whole record. Its writing was interrupted, or it was damaged later; nobody can tell.
    Torn,
    /// A record that belongs there, and whose word it is.
    Record(Box<BatchRecord>, Trust),
}

/// The record of `batch` at `path`, checked to belong there.
fn read_record(
    backend: &dyn Backend,
    path: &RelPath,
    batch: BatchNo,
    volume: Uuid,
) -> Result<Found> {
    let (sealed, trust) = read_sealed(backend, path)?;
    let decoded = match sealed {
        Sealed::Nothing => return Ok(Found::Nothing),
        Sealed::Torn | Sealed::Part { .. } => return Ok(Found::Torn),
        Sealed::TooLong(bytes) => Err(RecordError::TooLong { bytes }),
        Sealed::Whole(bytes) => record::decode(&bytes),
    };
    match decoded {
        Ok(record) if record.volume == volume && record.batch == batch => {
            Ok(Found::Record(Box::new(record), trust))
        }
        Ok(_) => Err(FlushError::Unfinished {
            batch,
            problem: format!(
                "the record {path} belongs to another volume or batch; it was copied there by hand, move it away"
            ),
        }),
        Err(error) if error.is_torn() => Ok(Found::Torn),
        // Whole, and not to be carried out. Nothing has been done for it, nor will be until somebody has looked.
        Err(error) => Err(FlushError::Unfinished {
            batch,
            problem: format!("{error} (the record is {path} on the drive)"),
        }),
    }
}

/// The batches of which something is in our directory on the backend, oldest first.
fn batches_on(backend: &dyn Backend) -> Result<Vec<BatchNo>> {
    let mut found = std::collections::BTreeSet::new();
    for (dir, parse) in [
        (
            layout::batches_dir(),
            layout::parse_record_name as fn(&crate::base::Name) -> Option<BatchNo>,
        ),
        (layout::staging_root(), layout::parse_staging_name),
    ] {
        match backend.read_dir(&dir) {
            Ok(entries) => found.extend(entries.iter().filter_map(|entry| parse(&entry.name))),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found.into_iter().collect())
}

/// Numbers above this are not followed. No cache gets there by counting; a name that somebody has made up would bring ours to
/// the end of what can be counted, and no batch could begin any more.
const FOLLOWED: BatchNo = BatchNo(1 << 62);

/// The highest batch number of which anything is on the backend, as far as it was counted to.
pub(super) fn highest_on(backend: &dyn Backend) -> Result<Option<BatchNo>> {
    let mut all = batches_on(backend)?;
    all.extend(done_on(backend)?);
    let counted = all.iter().filter(|batch| **batch <= FOLLOWED).max();
    let Some(mut highest) = counted.copied() else {
        return Ok(None);
    };
    // What was made up may follow right behind.
    all.sort();
    for batch in all {
        if batch.0 == highest.0 + 1 {
            highest = batch;
        }
    }
    Ok(Some(highest))
}

/// The batches that were finished without their cache and whose cache may not know yet.
fn done_on(backend: &dyn Backend) -> Result<Vec<BatchNo>> {
    let entries = match backend.read_dir(&layout::batches_dir()) {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let batch = |entry: &crate::backend::Entry| {
        let digits = entry.name.as_bytes().strip_suffix(DONE.as_bytes())?;
        layout::parse_staging_name(&crate::base::Name::new(digits).ok()?)
    };
    Ok(entries.iter().filter_map(batch).collect())
}

impl Flusher {
    /// Brings the backend and the index to agree after anything that may have interrupted a batch. To be called after each attach.
    ///
    /// # Errors
    /// If the backend or the SSD fails, or a batch of another cache cannot be finished without it.
    pub fn recover(&self) -> Result<()> {
        let _one_at_a_time = self.running.lock();
        self.refused.lock().clear();
        self.full_is_refusal.store(false, Ordering::Release);
        let backend = self.backend()?;
        check_marker(&*backend, self.parts.volume, self.nonce())?;
        self.may_write(&*backend)?;
        *self.of_others.lock() = Touched::default();
        self.finish_open_batch(&*backend)?;
        // What is of no batch of ours is still as others may have left it.
        self.parts.drive.withhold(Withheld::Everything);
        self.sweep(&*backend)?;
        self.sweep_journals()?;
        self.catch_up(&*backend)?;
        self.restore_reserve(&*backend);
        self.parts.drive.withhold(Withheld::Nothing);
        Ok(())
    }

    /// Lets everything on the backend be used but what a batch that is not finished names. For when [`Flusher::recover`] has
    /// failed, and the drive is there all the same.
    ///
    /// # Errors
    /// If the SSD fails.
    pub fn withhold_unfinished(&self) -> Result<()> {
        let open = self.parts.index.lock().resume_batch()?;
        let journal = match open {
            Some(active) => Journal::read(&self.parts.journals, active.batch)?,
            None => None,
        };
        let mut touched = self.of_others.lock().clone();
        if let Some(journal) = journal {
            touched.extend(&Touched::of(&journal.record.steps));
        }
        self.parts
            .drive
            .withhold(match touched == Touched::default() {
                true => Withheld::Nothing,
                false => Withheld::Unfinished(touched),
            });
        Ok(())
    }

    /// Finishes or gives up the batch that the index says is under way.
    pub(super) fn recover_open_batch(&self, backend: &dyn Backend) -> Result<()> {
        let recovered = self.finish_open_batch(backend);
        match &recovered {
            Ok(()) => self.parts.drive.withhold(Withheld::Nothing),
            Err(_) => self.withhold_unfinished()?,
        }
        recovered
    }

    fn finish_open_batch(&self, backend: &dyn Backend) -> Result<()> {
        let open = self.parts.index.lock().resume_batch()?;
        let Some(active) = open else {
            return Ok(());
        };
        let Some(journal) = Journal::read(&self.parts.journals, active.batch)? else {
            return self.give_up(
                backend,
                active.batch,
                "interrupted before it was committed",
                false,
            );
        };
        let volume = self.parts.volume;
        if let Found::Record(done, _) =
            read_record(backend, &done_path(active.batch)?, active.batch, volume)?
            // Not only by its origin, which anybody can read on the drive: what is concluded here lets go of the cache's bytes.
            && *done == journal.record
        {
            return self.accept_done(backend, &journal, &active);
        }
        match read_record(
            backend,
            &layout::record_path(active.batch),
            active.batch,
            volume,
        )? {
            // What is done is what the journal says, which nobody else can have written.
            Found::Record(record, _) if record.origin == self.parts.origin => {
                self.redo(backend, &journal, &active)
            }
            // If it was torn by a crash, nothing has been applied; if it was damaged later, something has. Applying it from
            // the journal is right either way.
            Found::Torn => {
                self.note_torn(&active.batch.to_string())?;
                self.redo(backend, &journal, &active)?;
                self.note_torn("")
            }
            // Applying had begun, so the record was there and was lost: what was set aside belongs under its new names.
            Found::Nothing
                if super::apply::exists(backend, &layout::barrier_path(active.batch))? =>
            {
                self.redo(backend, &journal, &active)
            }
            _ => self.give_up(
                backend,
                active.batch,
                "interrupted before it was committed",
                false,
            ),
        }
    }

    /// Notes which of our own records is torn while its batch is being finished: should tidying up fail, nothing in the record
    /// tells the next sweep that it is ours. Durable with the confirmation, before which the batch is open all the same.
    fn note_torn(&self, batch: &str) -> Result<()> {
        let mut state = self.parts.index.lock();
        state.set_meta(TORN, batch)?;
        Ok(state.commit().map(|_| ())?)
    }

    fn redo(&self, backend: &dyn Backend, journal: &Journal, active: &ActiveBatch) -> Result<()> {
        tracing::info!(batch = %active.batch, "finishing an interrupted batch");
        let touched = Touched::of(&journal.record.steps);
        self.parts.drive.withhold(Withheld::Moving(touched));
        let relieved = self.relieved(backend, active.batch);
        let applied = match staging_trust(backend, Some(active.batch))?.is_ours() {
            true => self.redo_steps(&relieved, journal)?,
            false => self.redo_limited(&relieved, journal)?,
        };
        for (path, reason) in applied.surprises() {
            tracing::warn!(path, reason, "not as the batch has it");
        }
        let refused = self.name_refused(journal, &applied)?;
        for (path, reason) in &refused {
            tracing::warn!(path, reason, "left behind");
        }
        self.conflicts_met.lock().extend(named_conflicts(&applied));
        let outcome = match refused.is_empty() {
            true => "complete",
            false => "left behind",
        };
        self.confirm(journal, &applied, active.cut, outcome)?;
        self.parts.drive.withhold(Withheld::Nothing);
        self.clean_up(backend, active.batch, &applied.garbage)?;
        self.look_after(backend, &applied);
        Ok(())
    }

    /// The same on a drive that others may write to. What they must not get stays in the cache, for the next batch to describe.
    fn redo_limited(&self, backend: &dyn Backend, journal: &Journal) -> Result<Applied> {
        let limited = Limited::for_own(backend);
        let applied = self.redo_steps(&limited, journal)?;
        let mut state = self.parts.index.lock();
        for (path, reason) in limited.left_out() {
            tracing::warn!(%path, reason, "not as the batch has it");
            // After the batch's cut, so that the confirmation does not take it for done.
            if let Some(ino) = super::confirm::find(&mut state, &path)?
                && let Some(mut inode) = state.inode(ino)?
            {
                state.note_attributes(&mut inode)?;
                state.put_inode(inode);
            }
        }
        state.commit()?;
        drop(state);
        Ok(applied)
    }

    /// Takes the steps of a committed batch again, with the cache at hand.
    pub(super) fn redo_steps(&self, backend: &dyn Backend, journal: &Journal) -> Result<Applied> {
        let batch = journal.record.batch;
        let manners = self.manners(journal.record.created);
        let redo = Redo {
            backend,
            batch,
            volume: journal.record.volume,
            steps: &journal.record.steps,
            known: &journal.record.known,
            catalog: journal.record.catalog.as_ref(),
            manners: &manners,
            ssd: Some(Ssd {
                store: &self.parts.store,
                journal,
                journals: &self.parts.journals,
                trees: keep::trees(&self.parts.journals, batch)?,
            }),
        };
        redo.run()
    }

    /// How the batch that was made at `time` treats what others have changed.
    pub(super) fn manners(&self, time: Timestamp) -> Manners {
        Manners {
            time,
            host: sys::host::name(),
            slack: self.parts.time_granularity_ns.max(1),
            full_is_refusal: self.full_is_refusal.load(Ordering::Acquire),
        }
    }

    /// Takes in what a batch has met of others' changes, so that the mount shows both versions. What cannot be read now is found
    /// by the next look.
    pub(super) fn look_after(&self, backend: &dyn Backend, applied: &Applied) {
        let mut dirs = Vec::new();
        for path in applied.dirs_to_look_at() {
            match super::confirm::find(&mut self.parts.index.lock(), &path) {
                Ok(Some(dir)) => dirs.push(dir),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "looking for what others have changed"),
            }
        }
        if dirs.is_empty() {
            return;
        }
        match self.take_in(backend, &dirs) {
            Ok(changes) => tracing::info!(?changes, "others have changed the drive meanwhile"),
            Err(error) => tracing::warn!(%error, "looking for what others have changed"),
        }
    }

    /// The batch was finished by `ferryfs recover` on a machine without this cache.
    fn accept_done(
        &self,
        backend: &dyn Backend,
        journal: &Journal,
        active: &ActiveBatch,
    ) -> Result<()> {
        tracing::info!(batch = %active.batch, "the batch was finished elsewhere");
        let mut applied = Applied {
            vanished: self.missing(backend, &journal.record)?,
            ..Applied::default()
        };
        note_different(backend, &journal.record, &mut applied)?;
        self.confirm(journal, &applied, active.cut, "complete")?;
        backend.remove_file(&done_path(active.batch)?)?;
        self.clean_up(backend, active.batch, &[])?;
        self.look_after(backend, &applied);
        Ok(())
    }

    /// What a batch has placed and is not there. Without the cache a file that the drive had lost could not be written anew; and
    /// one that somebody has removed since is put back, which is the lesser evil.
    fn missing(&self, backend: &dyn Backend, record: &BatchRecord) -> Result<Vec<RelPath>> {
        let mut missing = Vec::new();
        for step in &record.steps.place {
            match step {
                PlaceStep::Install { to, .. }
                | PlaceStep::InstallNode { to, .. }
                | PlaceStep::Link { to, .. }
                | PlaceStep::Attach {
                    to,
                    kind: PlainKind::File,
                    ..
                } => {
                    if !super::apply::exists(backend, to)? {
                        missing.push(to.clone());
                    }
                }
                PlaceStep::Attach { to, .. } => self.missing_below(backend, to, &mut missing)?,
                PlaceStep::MakeDir { .. } | PlaceStep::Touch { .. } => {}
            }
        }
        Ok(missing)
    }

    /// The same for all that the index knows in the directory at `dir`.
    fn missing_below(
        &self,
        backend: &dyn Backend,
        dir: &RelPath,
        missing: &mut Vec<RelPath>,
    ) -> Result<()> {
        let mut open = vec![dir.clone()];
        while let Some(at) = open.pop() {
            let known = {
                let mut state = self.parts.index.lock();
                match super::confirm::find(&mut state, &at)? {
                    Some(ino) => state.placed_in(ino)?,
                    None => continue,
                }
            };
            for (name, entry) in known {
                let path = at.join(&name);
                match (entry.kind, super::apply::exists(backend, &path)?) {
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

    /// Removes what our own ended batches have left, and finishes those of other caches.
    fn sweep(&self, backend: &dyn Backend) -> Result<()> {
        for batch in batches_on(backend)? {
            match read_record(
                backend,
                &layout::record_path(batch),
                batch,
                self.parts.volume,
            )? {
                Found::Record(record, trust) if record.origin != self.parts.origin => {
                    tracing::info!(%batch, ?trust, "finishing a batch of another machine");
                    match finish_alone(backend, &record, trust) {
                        Ok(left_behind) => {
                            for (path, reason) in left_behind {
                                tracing::warn!(path, reason, "not as the batch has it");
                                self.note_left_of_others(batch, &path, &reason);
                            }
                        }
                        Err(error) => {
                            // Nothing is written beside it, and its names are left alone, until it is finished.
                            *self.of_others.lock() = Touched::of(&record.steps);
                            return Err(error);
                        }
                    }
                }
                // Ours, and not open: confirmed, so the record is a leftover, and so is what was staged.
                Found::Record(record, _) => self.clean_up(backend, batch, &left_by(&record))?,
                Found::Nothing => discard(backend, &layout::staging_dir(batch))?,
                Found::Torn if self.is_our_torn(batch)? => {
                    self.clean_up(backend, batch, &[])?;
                    self.note_torn("")?;
                }
                Found::Torn => {
                    tracing::warn!(%batch, "a damaged record of another machine is left as it is")
                }
            }
        }
        self.sweep_done(backend)
    }

    fn note_left_of_others(&self, batch: BatchNo, path: &str, reason: &str) {
        let mut noted = self.left_of_others.lock();
        match noted.len() {
            ..LEFT_NAMED => noted.push(format!(
                "{path}, of batch {batch} that another machine had begun: {reason}"
            )),
            LEFT_NAMED => noted.push("there is more of that kind in the log".into()),
            _ => {}
        }
    }

    /// What was not done of batches of other machines that this one has finished since it was started, a line each.
    pub fn left_of_others(&self) -> Vec<String> {
        self.left_of_others.lock().clone()
    }

    fn is_our_torn(&self, batch: BatchNo) -> Result<bool> {
        let noted = self.parts.index.lock().meta(TORN)?;
        Ok(noted.as_deref() == Some(&*batch.to_string()))
    }

    /// Removes the notes that told this cache of a batch that was finished elsewhere. No batch is open, so they have been
    /// taken note of, or the batch was confirmed before.
    fn sweep_done(&self, backend: &dyn Backend) -> Result<()> {
        for batch in done_on(backend)? {
            let path = done_path(batch)?;
            if let Found::Record(record, _) = read_record(backend, &path, batch, self.parts.volume)?
                && record.origin == self.parts.origin
            {
                backend.remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Files that a batch has placed and that are not what it placed: it was refused there, or somebody else has changed them since.
/// Their bytes stay in the cache.
fn note_different(
    backend: &dyn Backend,
    record: &BatchRecord,
    applied: &mut Applied,
) -> Result<()> {
    for (number, step) in record.steps.place.iter().enumerate() {
        let PlaceStep::Install { to, content, .. } = step else {
            continue;
        };
        let is_it = match super::apply::matches(backend, to, content) {
            Err(FlushError::Backend(error)) if is_local(backend, record.batch, &error) => false,
            matched => matched? || !super::apply::exists(backend, to)?,
        };
        if !is_it {
            applied
                .refused
                .note(StepNo::Place(number), to, Why::Occupied);
        }
    }
    Ok(())
}

/// Finishes a batch with what is on the backend alone. A stranger's is finished without anything that would give him rights; and
/// by root only as far as he could have done so himself, so that it moves and shows him nothing that he could not reach.
///
/// Gives what was not done, with the reasons.
fn finish_alone(
    backend: &dyn Backend,
    record: &BatchRecord,
    trust: Trust,
) -> Result<Vec<(String, String)>> {
    let (limited, _rights) = match trust {
        Trust::Ours if staging_trust(backend, Some(record.batch))?.is_ours() => {
            return carry_out_alone(backend, record);
        }
        // What is staged could be swapped for something else before it gets its attributes.
        Trust::Ours => (Limited::for_own(backend), None),
        // All of it is ours: nobody else can have made it, but somebody could have put it there.
        Trust::Stranger(None) => (Limited::for_stranger(backend), None),
        Trust::Stranger(Some(author)) if nix::unistd::Uid::effective().is_root() => (
            Limited::for_stranger(backend),
            Some(rights_of(author, record.batch)?),
        ),
        Trust::Stranger(Some(author)) => {
            let author = Subject {
                uid: author.uid,
                groups: sys::behalf::groups(author.uid, author.gid),
            };
            (Limited::for_author(backend, author), None)
        }
    };
    let mut left_behind = carry_out_alone(&limited, record)?;
    let left_out = limited.left_out().into_iter();
    left_behind.extend(left_out.map(|(path, reason)| (path.to_text(), reason)));
    Ok(left_behind)
}

/// Whose word the staging directory of a batch is, or of the next one. One that is not there is made anew.
pub(super) fn staging_trust(backend: &dyn Backend, batch: Option<BatchNo>) -> Result<Trust> {
    let own = batch.map(layout::staging_dir);
    let above = [layout::staging_root(), layout::dir()];
    for dir in own.into_iter().chain(above) {
        match backend.trust(&dir) {
            Err(error) if super::apply::is_absent(&error) => {}
            trust => return Ok(trust?),
        }
    }
    Ok(Trust::ANYBODY)
}

/// Has root do on the drive only what the author of a record may do, until the answer is dropped.
fn rights_of(author: Author, batch: BatchNo) -> Result<OnBehalf> {
    OnBehalf::of(author.uid, author.gid).map_err(|error| FlushError::Unfinished {
            batch,
            problem: format!(
                "another user wrote its record, and root may not act with that user's rights here ({error}); run `ferryfs recover` as that user"
            ),
        })
}

/// Applies a record with what is on the backend alone, and keeps it under another name, so that its cache learns of it.
///
/// Where a crash has left it under both names, it was finished, and stays so until its cache comes: the names share clusters, and
/// removing one, or renaming over it, would free them under the other.
///
/// Gives what the backend refused, with the reasons. What was staged for it is kept in `.ferryfs/lost+found`: its cache may never
/// come back.
fn carry_out_alone(backend: &dyn Backend, record: &BatchRecord) -> Result<Vec<(String, String)>> {
    let done = read_record(
        backend,
        &done_path(record.batch)?,
        record.batch,
        record.volume,
    )?;
    if matches!(done, Found::Record(done, _) if *done == *record) {
        discard(backend, &layout::staging_dir(record.batch))?;
        return Ok(Vec::new());
    }
    let manners = Manners {
        time: record.created,
        host: sys::host::name(),
        slack: SLACK_NS,
        full_is_refusal: false,
    };
    // The reserve is made again by the next batch.
    let gave_reserve_up = AtomicBool::new(false);
    let backend: &dyn Backend = &Relieved::new(backend, record.batch, &gave_reserve_up);
    let redo = Redo {
        backend,
        batch: record.batch,
        volume: record.volume,
        steps: &record.steps,
        known: &record.known,
        catalog: record.catalog.as_ref(),
        manners: &manners,
        ssd: None,
    };
    let applied = redo.run().map_err(|error| match error {
        // The drive is there and does not let it be done: not something that goes away by itself.
        FlushError::Backend(error) if !error.is_gone() => FlushError::Unfinished {
            batch: record.batch,
            problem: format!(
                "{error} (the record is {} on the drive)",
                layout::record_path(record.batch)
            ),
        },
        error => error,
    })?;
    for (path, reason) in applied.surprises() {
        tracing::warn!(path, reason, "not as the batch has it");
    }
    let left_behind = keep_refused(backend, record, &manners, &applied)?;
    backend.rename(
        &layout::record_path(record.batch),
        &done_path(record.batch)?,
    )?;
    backend.sync()?;
    for path in &applied.garbage {
        match backend.remove_file(path) {
            Err(error) if !super::apply::is_absent(&error) => return Err(error.into()),
            _ => {}
        }
    }
    discard_ended(backend, &layout::staging_dir(record.batch))?;
    Ok(left_behind)
}

fn keep_refused(
    backend: &dyn Backend,
    record: &BatchRecord,
    manners: &Manners,
    applied: &Applied,
) -> Result<Vec<(String, String)>> {
    let placer = Placer {
        backend,
        batch: record.batch,
        manners,
    };
    let mut left_behind = Vec::new();
    for Refusal { step, path, why } in &applied.refused.steps {
        let mut reason = explain_alone(why);
        if let StepNo::Place(number) = step
            && let Some(PlaceStep::InstallNode { node, .. }) = record.steps.place.get(*number)
            && matches!(node, Node::CharDevice { .. } | Node::BlockDevice { .. })
            && *why == Why::Errno(libc::EPERM)
        {
            reason = no_device();
        }
        if let StepNo::Place(number) = step
            && let Some(PlaceStep::Install { slot, .. }) = record.steps.place.get(*number)
        {
            let staged = layout::slot_path(record.batch, *slot);
            if super::apply::exists(backend, &staged)? {
                let kept = placer.to_lost_found(&staged)?;
                reason.push_str(&format!("; the new version is kept as {kept}"));
            }
        }
        left_behind.push((path.to_text(), reason));
    }
    Ok(left_behind)
}

/// Finishes the batches on a backend whose cache is elsewhere, and throws away what was never committed.
///
/// # Errors
/// If the backend fails, or a staged file is damaged: then nothing more is touched.
pub fn recover_without_cache(backend: &dyn Backend) -> Result<Vec<RecoveredBatch>> {
    let bytes =
        read_small(backend, &layout::marker_path(), marker::MAX_BYTES)?.ok_or_else(|| {
            FlushError::WrongDrive(
                "this is no volume of ferryfs: there is no .ferryfs/volume.json".into(),
            )
        })?;
    let marker = marker::decode(&bytes).map_err(|error| {
        FlushError::WrongDrive(format!("the volume marker cannot be read: {error}"))
    })?;
    let mut recovered = Vec::new();
    for batch in batches_on(backend)? {
        let found = read_record(backend, &layout::record_path(batch), batch, marker.id)?;
        let mut left_behind = Vec::new();
        let (finished, (files, bytes)) = match &found {
            Found::Record(record, trust) => {
                left_behind = finish_alone(backend, record, *trust)?;
                (true, totals(record))
            }
            Found::Nothing => {
                discard(backend, &layout::staging_dir(batch))?;
                (false, (0, 0))
            }
            // Clearing was over, so files were set aside, and what says where they belong is damaged.
            Found::Torn if super::apply::exists(backend, &layout::barrier_path(batch))? => {
                return Err(FlushError::Unfinished {
                    batch,
                    problem: format!(
                        "its record is damaged and {} holds files; only the machine that wrote it can tell where they belong",
                        layout::staging_dir(batch)
                    ),
                });
            }
            // Most likely its writing was interrupted, and nothing has been touched; nothing is removed all the same.
            Found::Torn => (false, (0, 0)),
        };
        recovered.push(RecoveredBatch {
            batch,
            finished,
            files,
            bytes,
            left_behind,
        });
    }
    Ok(recovered)
}

/// What a batch that is confirmed may have left: what was staged, which its cache has as well, and what it has replaced or removed,
/// which was compared before.
fn left_by(record: &BatchRecord) -> Vec<RelPath> {
    let batch = record.batch;
    let mut left = Vec::new();
    for (number, step) in record.steps.clear.iter().enumerate() {
        if let ClearStep::RemoveFile { .. } = step {
            left.push(layout::removed_path(batch, number));
        }
    }
    for step in &record.steps.place {
        let (slot, to, is_staged) = match step {
            PlaceStep::Install { slot, to, .. } | PlaceStep::InstallNode { slot, to, .. } => {
                (*slot, to, true)
            }
            PlaceStep::Attach { slot, to, .. } => (*slot, to, false),
            _ => continue,
        };
        if is_staged {
            left.push(layout::slot_path(batch, slot));
        }
        left.push(layout::replaced_path(batch, slot));
        if let Some((dir, _)) = to.split_last() {
            left.push(layout::near_old_path(&dir, batch, slot));
        }
    }
    left
}

fn totals(record: &BatchRecord) -> (u64, u64) {
    record
        .steps
        .place
        .iter()
        .fold((0, 0_u64), |(files, bytes), step| match step {
            PlaceStep::Install { content, .. } => (files + 1, bytes.saturating_add(content.size)),
            _ => (files, bytes),
        })
}

/// Writes the records again of the batches whose journals are in `journals`, where they are gone from the backend: somebody has
/// deleted our folder there. The next recovery finishes these batches, or finds that they are over.
///
/// How far a batch had come nobody knows any more. It is taken to have cleared: clearing again could remove what it has placed, while
/// a name that was not cleared stays on the backend as a file of others.
///
/// # Errors
/// If the SSD or the backend fails.
pub(crate) fn restore_records(backend: &dyn Backend, journals: &std::path::Path) -> Result<()> {
    let make_dir = |dir: &RelPath| match backend.make_dir(dir) {
        Err(error) if error.source.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    };
    for batch in super::journal::batches_in(journals)? {
        let path = layout::record_path(batch);
        let Some(journal) = Journal::read(journals, batch)? else {
            continue;
        };
        if super::apply::exists(backend, &path)? {
            continue;
        }
        for dir in [
            layout::dir(),
            layout::staging_root(),
            layout::staging_dir(batch),
            layout::batches_dir(),
        ] {
            make_dir(&dir)?;
        }
        let mark = layout::barrier_path(batch);
        if !super::apply::exists(backend, &mark)? {
            super::apply::create_with(backend, &mark, b"")?;
        }
        super::apply::create_with(backend, &path, &record::seal(&journal.record)?)?;
    }
    Ok(backend.sync()?)
}
