//! One flush from beginning to end: recovery of what was interrupted, then one batch or several.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use crate::apply::journal::Journal;
use crate::apply::staging::{make_own_dirs, staging_trust};
use crate::catalog::candidates;
use crate::core::cache_step::CacheStep;
use crate::core::{BatchNo, Capabilities, Phase, Progress};
use crate::drive::Backend;
use crate::drive::connection::Withheld;
use crate::error::{FlushError, Result};
use crate::flush::batch::BatchWriter;
use crate::flush::diff::{Gathered, gather};
use crate::flush::open_batch::OpenBatch;
use crate::flush::report::{Report, Wish};
use crate::flush::turn::Writing;
use crate::flush::{Flusher, space_check};
use crate::format::layout;
use crate::index::{ActiveBatch, BatchEnd, BatchSummary, Snapshot};
use crate::recovery::interrupted;

/// The kernel reports the last close of a file a moment after close(2) has returned. A flush waits
/// this long for it.
const SETTLE: Duration = Duration::from_millis(100);

/// The longest wait while more and more closes are reported.
const SETTLE_AT_MOST: Duration = Duration::from_secs(10);

/// How often a flush imports external changes before it goes on without them.
const LOOKS: usize = 3;

/// The log message for a batch that has ended without touching anything.
const GIVEN_UP: &str = "batch given up; everything in it still waits";

const FASTER: &str = "more has come meanwhile than one batch can hold; it waits for the next flush";

const UNTIDY: &str = "all files of the batch are on the drive, but it refuses to remove what the \
    finished batch has left in .ferryfs; with that on it the drive is not to be used with another \
    computer's ferryfs. The next flush tries again";

/// Which part of the cut a batch takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    /// Only what frees space on the backend.
    RemovalsOnly,
}

/// The backend, the options and the listener of one flush.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) wish: &'a Wish,
    pub(super) progress: &'a dyn Fn(Progress),
}

impl Flusher {
    /// Writes everything that waits to the backend, as `wish` says, and returns when it is durable
    /// there. `then` runs before any other flush can begin, so that the backend can be released
    /// with nothing being written to it.
    ///
    /// # Errors
    /// Why not. What was dirty still is, and `then` has not been run.
    pub fn flush(
        &self,
        wish: &Wish,
        progress: &dyn Fn(Progress),
        then: impl FnOnce(),
    ) -> Result<Report> {
        let _turn = self.turn.for_flush(wish)?;
        let started = Instant::now();
        let _throttled = self.parts.drive.throttle().enter(wish.manner);
        let backend = &*self.backend()?;
        if self.parts.hooks.prepares_writing() {
            self.check_marker(backend)?;
        }
        let writing = Writing::begin(&*self.parts.hooks, backend);
        let run = Run {
            backend,
            wish,
            progress,
        };
        let mut report = loop {
            match self.attempt(run) {
                // The reserve on the SSD is held for the notes of a batch. The flush starts again,
                // with the batch that it has left open.
                Err(error) if error.is_cache_full() && self.parts.hooks.give_up_reserve() => {
                    tracing::warn!(%error, "the SSD is full; trying again with a part of the \
                        reserve");
                }
                result => {
                    let has_batch = matches!(&result, Ok(report) if report.batch.is_some());
                    if has_batch {
                        self.prune_versions(backend);
                    }
                    self.reserve.restore(backend);
                    if has_batch {
                        self.parts.hooks.tidied_up(backend);
                    }
                    break result.map_err(|error| self.explain_missing(backend, error))?;
                }
            }
        };
        report.conflicts.append(&mut self.conflicts.take());
        if self.leftovers.are_there() {
            report.left_behind.push((".ferryfs".into(), UNTIDY.into()));
        }
        self.parts.drive.refresh_space();
        // Before the backend may be released.
        drop(writing);
        then();
        report.took = started.elapsed();
        Ok(report)
    }

    /// Replaces the `error` of a missing file of `.ferryfs` if the whole directory was deleted
    /// meanwhile: then this is not the volume any more.
    fn explain_missing(&self, backend: &dyn Backend, error: FlushError) -> FlushError {
        let is_ours_missing = matches!(&error, FlushError::Backend(error)
            if error.is_not_found() && layout::is_reserved(&error.path));
        if !is_ours_missing {
            return error;
        }
        self.check_marker(backend).err().unwrap_or(error)
    }

    fn attempt(&self, run: Run<'_>) -> Result<Report> {
        let backend = run.backend;
        self.check_marker(backend)?;
        self.may_write(backend)?;
        let open_batch = OpenBatch {
            flusher: self,
            backend,
            full_is_refusal: run.wish.removals_first,
        };
        open_batch.recover()?;
        self.leftovers.tidy_up(backend, &|record, left| {
            self.keep_versions(record, left, true)
        })?;
        self.sweep_journals()?;
        if self.catalog.catch_up_if_lost(backend)? {
            self.show_catalog();
        }
        self.parts.drive.withhold(Withheld::Nothing);
        self.wait_for_closes();
        if let Err(error) = self.parts.hooks.settle() {
            tracing::warn!(%error, "not all rows of written files are up to date at the cut");
        }
        match self.run_all(run) {
            Err(full @ FlushError::Full { .. }) if run.wish.removals_first => {
                // If only the record found no space, its batch is still open.
                open_batch.recover()?;
                let freed = self.run_batches(run, Scope::RemovalsOnly)?;
                if freed.batch.is_none() {
                    return Err(full);
                }
                self.run_all(run)
            }
            result => result,
        }
    }

    /// Writes all that waits. Directories that the backend turns out to be unable to move are
    /// copied, and then the rest of the difference is written.
    fn run_all(&self, run: Run<'_>) -> Result<Report> {
        let mut report = self.run_parts(run)?;
        let mut tried = BTreeSet::new();
        loop {
            let mut dirs = std::mem::take(&mut report.not_movable);
            dirs.retain(|dir| !tried.contains(dir));
            tried.extend(dirs.iter().copied());
            if !self.copy_across(run, &dirs, &mut report)? {
                return Ok(report);
            }
            report.forget_refused();
            report.add(self.run_parts(run)?);
        }
    }

    /// Writes all that waits, in as many batches as that takes; as a rule one. Changes made
    /// meanwhile do not keep it from ending.
    fn run_parts(&self, run: Run<'_>) -> Result<Report> {
        let mut report = self.run_batches(run, Scope::All)?;
        // Small changes that are joined to large ones may make one more batch necessary for each.
        let mut left = report.more.saturating_mul(2);
        while report.more > 0 && left > 0 {
            left -= 1;
            tracing::info!(
                batch = report.batch.map(|batch| batch.0),
                "more waits than one batch can hold; the rest follows in another"
            );
            run.wish.check()?;
            report.add(self.run_batches(run, Scope::All)?);
        }
        if report.more > 0 {
            let named = ("the rest".into(), FASTER.into());
            report.left_behind.push(named);
        }
        Ok(report)
    }

    /// Writes a batch. If others have changed the backend where the batch would write, imports that
    /// and begins again; after some times, files that others keep changing are left behind.
    fn run_batches(&self, run: Run<'_>, scope: Scope) -> Result<Report> {
        for _ in 0..LOOKS {
            match self.run_batch(run, scope, true) {
                Err(FlushError::ChangedElsewhere { dirs }) => {
                    self.import_meanwhile(run.backend, &dirs)?;
                }
                result => return result,
            }
        }
        self.run_batch(run, scope, false)
    }

    /// Waits for the kernel to report closes that have returned: a moment, and longer while it
    /// reports more of them.
    fn wait_for_closes(&self) {
        let begun = Instant::now();
        let mut heard = begun;
        let mut fewest = usize::MAX;
        loop {
            let open = self.parts.index.lock().writing_count();
            if open < fewest {
                (fewest, heard) = (open, Instant::now());
            }
            if open == 0 || heard.elapsed() > SETTLE || begun.elapsed() > SETTLE_AT_MOST {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn run_batch(&self, run: Run<'_>, scope: Scope, may_look_again: bool) -> Result<Report> {
        self.run_one(run, may_look_again, |active, snapshot, capabilities| {
            self.difference(scope, active, snapshot, capabilities)
                .map(Some)
        })
    }

    /// Takes a cut and writes what `gather` finds in its snapshot as one batch; no batch, if that
    /// is nothing.
    pub(super) fn run_one(
        &self,
        run: Run<'_>,
        may_look_again: bool,
        gather: impl FnOnce(&ActiveBatch, Snapshot, &Capabilities) -> Result<Option<Gathered>>,
    ) -> Result<Report> {
        let backend = run.backend;
        let began = Instant::now();
        (run.progress)(phase(Phase::Cut));
        // Another cache of this volume may have used higher numbers. The names of this batch must
        // not collide with what that cache has left.
        let above = interrupted::highest_on(backend, self.batches_with_versions(backend)?)?;
        let Some((active, snapshot)) = self.cut(above, run.wish)? else {
            return Ok(Report::default());
        };
        let capabilities = self.capabilities_on(backend)?;
        let writer = BatchWriter {
            parts: &self.parts,
            flusher: self,
            backend,
            active: &active,
            wish: run.wish,
            progress: run.progress,
            may_look_again,
            capabilities: &capabilities,
        };
        let result = make_own_dirs(backend)
            .and_then(|()| gather(&active, snapshot, &capabilities))
            .and_then(|gathered| match gathered {
                Some(gathered) => writer.write(gathered),
                None => Ok(Report::default()),
            });
        let ended = self.end_uncommitted(backend, active.batch, &result);
        self.note_ended(active.batch, &result, began.elapsed());
        ended?;
        result
    }

    /// Ends `batch` if it has not reached its journal. Otherwise it stays open, for recovery to
    /// finish.
    fn end_uncommitted(
        &self,
        backend: &dyn Backend,
        batch: BatchNo,
        result: &Result<Report>,
    ) -> Result<()> {
        let is_uncommitted = {
            let mut state = self.parts.index.lock();
            state.active_batch().is_some_and(|active| !active.committed)
        };
        if !is_uncommitted {
            return Ok(());
        }
        let end = match result {
            Ok(_) | Err(FlushError::ChangedElsewhere { .. }) => BatchEnd::Nothing,
            Err(error) => {
                tracing::warn!(%batch, %error, "{GIVEN_UP}");
                BatchEnd::GivenUp
            }
        };
        self.end_untouched(backend, batch, end)
    }

    /// Takes the cut while no open file changes: begins a batch, and takes a snapshot of the index
    /// under the same lock. `None` if nothing waits.
    fn cut(&self, above: Option<BatchNo>, wish: &Wish) -> Result<Option<(ActiveBatch, Snapshot)>> {
        {
            // Before writers have to wait.
            self.parts.index.sort_local()?;
            let mut state = self.parts.index.lock();
            state.commit()?;
            if !state.anything_dirty()? {
                state.note_cut();
                return Ok(None);
            }
        }
        let mut taken = None;
        self.parts
            .hooks
            .at_rest(wish.while_open, &mut |left_out, state| {
                let active = state.begin_batch(self.parts.clock.now(), above, left_out)?;
                taken = Some((active, self.parts.index.snapshot()?));
                Ok(())
            })?;
        Ok(taken)
    }

    /// Returns what a batch may give to the backend, of what it can hold: nothing that gives rights
    /// where others could replace staged files.
    fn capabilities_on(&self, backend: &dyn Backend) -> Result<Capabilities> {
        let all = &self.parts.capabilities;
        Ok(match staging_trust(backend, None)?.is_ours() {
            true => all.clone(),
            false => all.without_privileges(),
        })
    }

    /// Gathers the difference that the batch writes.
    fn difference(
        &self,
        scope: Scope,
        active: &ActiveBatch,
        snapshot: Snapshot,
        capabilities: &Capabilities,
    ) -> Result<Gathered> {
        let mut gathered = gather(
            (&snapshot, &self.parts.store),
            &self.parts.rules,
            capabilities,
            active,
            self.budget(),
        )?;
        gathered.subjects = candidates::find(
            &snapshot,
            &self.parts.rules,
            &self.parts.origin,
            gathered.concerned(),
        )?;
        // While the snapshot lives the index's WAL cannot start from its beginning.
        drop(snapshot);
        if scope == Scope::RemovalsOnly {
            space_check::keep_removals(&mut gathered);
        }
        Ok(gathered)
    }

    /// Gives up a batch that was interrupted before it was committed.
    pub(super) fn give_up_interrupted(&self, backend: &dyn Backend, batch: BatchNo) -> Result<()> {
        let error = "interrupted before it was committed";
        tracing::warn!(%batch, error, "{GIVEN_UP}");
        self.end_untouched(backend, batch, BatchEnd::GivenUp)?;
        self.note_never_committed(batch, error);
        Ok(())
    }

    /// Ends a batch that has touched nothing under a final name.
    fn end_untouched(&self, backend: &dyn Backend, batch: BatchNo, end: BatchEnd) -> Result<()> {
        let summary = BatchSummary {
            batch,
            time: self.parts.clock.now(),
            files: 0,
            bytes: 0,
            end,
        };
        self.parts.end_batch(&summary)?;
        self.before(CacheStep::RemoveJournal)?;
        Journal::remove(&self.parts.journals, batch)?;
        // Nothing is removed where another machine is at work. What stays is garbage, and the next
        // recovery removes it.
        if self.may_write(backend).is_ok() {
            self.leftovers.discard_given_up(backend, batch);
        }
        Ok(())
    }
}

/// Returns the progress at the beginning of a phase.
pub(crate) fn phase(phase: Phase) -> Progress {
    Progress {
        phase,
        files_done: 0,
        files_total: 0,
        bytes_done: 0,
        bytes_total: 0,
        silent_seconds: 0,
    }
}
