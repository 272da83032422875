//! One flush from beginning to end: what is under way is recovered first, then a cut is taken and carried.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::apply::is_absent;
use super::carry::Carrier;
use super::gather::{Gathered, gather};
use super::journal::Journal;
use super::refused::is_local;
use super::report::{FlushError, Report, Result, Wish};
use super::reserve::{self, Relieved};
use super::stage::{discard, discard_ended};
use super::{Flusher, recover, room, subjects};
use crate::backend::drive::Withheld;
use crate::backend::{Backend, Capabilities};
use crate::base::steps::CacheStep;
use crate::base::{BatchNo, RelPath};
use crate::control::protocol::{Phase, Progress};
use crate::index::{ActiveBatch, BatchState, BatchSummary, Snapshot};
use crate::rules::layout;

/// The kernel tells of the last close of a file a moment after close(2) has returned; that long a flush waits for it.
const SETTLE: Duration = Duration::from_millis(100);

/// The most that it waits while more and more of them are told.
const SETTLE_AT_MOST: Duration = Duration::from_secs(10);

/// How long a flush waits for another one before it looks whether it is still wanted.
const WAIT_FOR_TURN: Duration = Duration::from_millis(50);

/// How often a flush takes in what others have changed meanwhile before it goes on without that.
const LOOKS: usize = 3;

const FASTER: &str = "more has come meanwhile than one batch can hold; it waits for the next flush";

/// Whether all of the cut is carried, or only what makes room on the backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    RemovalsOnly,
}

impl Flusher {
    /// Carries over everything that waits, and returns when it is on the backend. With a `deadline`, gives up when it passes
    /// before the batch is committed.
    ///
    /// # Errors
    /// Why not; what was dirty still is.
    pub fn flush(&self, deadline: Option<Instant>, progress: &dyn Fn(Progress)) -> Result<Report> {
        self.flush_and(deadline, progress, || {})
    }

    /// The same, and runs `then` before any other flush can begin: to let go of the backend with nothing being written to it.
    ///
    /// # Errors
    /// As [`Flusher::flush`]; `then` has not been run.
    pub fn flush_and(
        &self,
        deadline: Option<Instant>,
        progress: &dyn Fn(Progress),
        then: impl FnOnce(),
    ) -> Result<Report> {
        let wish = Wish {
            deadline,
            retry_refused: true,
            ..Wish::default()
        };
        self.flush_as(&wish, progress, then)
    }

    /// The same, done as `wish` says.
    ///
    /// # Errors
    /// As [`Flusher::flush_and`].
    pub fn flush_as(
        &self,
        wish: &Wish,
        progress: &dyn Fn(Progress),
        then: impl FnOnce(),
    ) -> Result<Report> {
        let _one_at_a_time = loop {
            if let Some(guard) = self.running.try_lock_for(WAIT_FOR_TURN) {
                break guard;
            }
            wish.check()?;
        };
        wish.check()?;
        let started = Instant::now();
        let backend = self.backend()?;
        // Who wants removals to come through does not wait for a batch that finds no space.
        self.full_is_refusal
            .store(wish.removals_first, Ordering::Release);
        let mut report = loop {
            match self.attempt(&*backend, wish, progress) {
                // What it takes to note a batch on the SSD is held for it. It begins anew, with what it has left open.
                Err(error) if error.is_cache_full() && self.parts.hooks.give_up_reserve() => {
                    tracing::warn!(%error, "once more, with a part of the reserve");
                }
                result => {
                    self.restore_reserve(&*backend);
                    break result?;
                }
            }
        };
        report.conflicts.append(&mut self.conflicts_met.lock());
        self.parts.drive.refresh_space();
        then();
        report.took = started.elapsed();
        Ok(report)
    }

    fn attempt(
        &self,
        backend: &dyn Backend,
        wish: &Wish,
        progress: &dyn Fn(Progress),
    ) -> Result<Report> {
        recover::check_marker(backend, self.parts.volume, self.nonce())?;
        self.may_write(backend)?;
        self.recover_open_batch(backend)?;
        self.sweep_journals()?;
        self.catch_up_if_lost(backend)?;
        self.parts.drive.withhold(Withheld::Nothing);
        self.wait_for_closes();
        if let Err(error) = self.parts.hooks.settle() {
            tracing::warn!(error, "before the cut");
        }
        match self.run_parts(backend, wish, progress) {
            Err(full @ FlushError::Full { .. }) if wish.removals_first => {
                // Where only the record found no space, its batch is open yet.
                self.recover_open_batch(backend)?;
                let freed = self.run_batches(backend, Scope::RemovalsOnly, wish, progress)?;
                if freed.batch.is_none() {
                    return Err(full);
                }
                self.run_parts(backend, wish, progress)
            }
            result => result,
        }
    }

    /// All that waits, in as many batches as that takes; as a rule one. What is changed meanwhile does not keep it from ending.
    fn run_parts(
        &self,
        backend: &dyn Backend,
        wish: &Wish,
        progress: &dyn Fn(Progress),
    ) -> Result<Report> {
        let mut report = self.run_batches(backend, Scope::All, wish, progress)?;
        // Of what a part leaves, little things that are joined to large ones may make another necessary.
        let mut left = report.more.saturating_mul(2);
        while report.more > 0 && left > 0 {
            left -= 1;
            tracing::info!(
                batch = report.batch.map(|batch| batch.0),
                "more waits than one batch can hold; the rest follows in another"
            );
            wish.check()?;
            report.add(self.run_batches(backend, Scope::All, wish, progress)?);
        }
        if report.more > 0 {
            let named = ("the rest".into(), FASTER.into());
            report.left_behind.push(named);
        }
        Ok(report)
    }

    /// A batch; and if others have changed the backend where it was to write, that is taken in and the batch begun anew. If they
    /// are faster than we are, what they change stays behind at last, and is named.
    fn run_batches(
        &self,
        backend: &dyn Backend,
        scope: Scope,
        wish: &Wish,
        progress: &dyn Fn(Progress),
    ) -> Result<Report> {
        for _ in 0..LOOKS {
            match self.run_batch(backend, scope, wish, progress, true) {
                Err(FlushError::ChangedElsewhere { dirs }) => {
                    let changes = self.take_in(backend, &dirs)?;
                    self.conflicts_met.lock().extend(changes.named.clone());
                    tracing::info!(?changes, "others have changed the drive");
                }
                result => return result,
            }
        }
        self.run_batch(backend, scope, wish, progress, false)
    }

    /// Waits for the kernel to tell of closes that have returned: a moment, and on while there is word of more of them.
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

    fn run_batch(
        &self,
        backend: &dyn Backend,
        scope: Scope,
        wish: &Wish,
        progress: &dyn Fn(Progress),
        may_look_again: bool,
    ) -> Result<Report> {
        progress(phase(Phase::Cut));
        // Another cache of this volume may have used higher numbers; ours must not meet what it has left.
        let above = recover::highest_on(backend)?;
        let Some((active, snapshot)) = self.cut(above)? else {
            return Ok(Report::default());
        };
        let capabilities = self.capabilities_on(backend)?;
        let carrier = Carrier {
            parts: &self.parts,
            flusher: self,
            backend,
            active: &active,
            wish,
            progress,
            may_look_again,
            capabilities: &capabilities,
        };
        let result = self
            .difference(scope, &active, snapshot, &capabilities)
            .and_then(|gathered| carrier.carry(gathered));
        // A batch that has not come to its journal is given up here; else it stays open, for recovery to finish.
        let committed = self
            .parts
            .index
            .lock()
            .active_batch()
            .is_some_and(|active| active.committed);
        if !committed && self.parts.index.lock().active_batch().is_some() {
            let is_nothing = matches!(&result, Ok(_) | Err(FlushError::ChangedElsewhere { .. }));
            let outcome = match &result {
                Err(error) if !is_nothing => error.to_string(),
                _ => "nothing to carry".to_string(),
            };
            self.give_up(backend, active.batch, &outcome, is_nothing)?;
        }
        result
    }

    /// Takes the cut: the number of the last change in it, and a view of the index as of that moment. `None` if nothing waits.
    fn cut(&self, above: Option<BatchNo>) -> Result<Option<(ActiveBatch, Snapshot)>> {
        let mut state = self.parts.index.lock();
        state.commit()?;
        if !state.anything_dirty()? {
            state.note_cut();
            return Ok(None);
        }
        let active = state.begin_batch(self.parts.clock.now(), above)?;
        let snapshot = self.parts.index.snapshot()?;
        Ok(Some((active, snapshot)))
    }

    /// What a batch gives to the backend, of what it can hold: nothing that gives rights where others could put something else in the
    /// place of what is staged.
    fn capabilities_on(&self, backend: &dyn Backend) -> Result<Capabilities> {
        let all = &self.parts.capabilities;
        Ok(match recover::staging_trust(backend, None)?.is_ours() {
            true => all.clone(),
            false => all.without_privileges(),
        })
    }

    /// What the batch is to carry.
    fn difference(
        &self,
        scope: Scope,
        active: &ActiveBatch,
        snapshot: Snapshot,
        capabilities: &Capabilities,
    ) -> Result<Gathered> {
        let mut gathered = gather(
            &snapshot,
            &self.parts.rules,
            capabilities,
            active,
            self.batch_bytes.load(Ordering::Relaxed),
        )?;
        gathered.subjects =
            subjects::find(&snapshot, &self.parts.rules, &self.parts.origin, &gathered)?;
        // While it lives the index's WAL cannot begin anew.
        drop(snapshot);
        if scope == Scope::RemovalsOnly {
            room::keep_removals(&mut gathered);
        }
        Ok(gathered)
    }

    /// Removes what a finished batch leaves in our own directory: the record first, and only when it is surely gone the
    /// staging directory with its mark; a record without its mark would be cleared again. `garbage` is what the batch has replaced
    /// or given up, and has no further use for.
    ///
    /// The batch is over: what the backend refuses here stays, and the next attach tries again.
    pub(super) fn clean_up(
        &self,
        backend: &dyn Backend,
        batch: BatchNo,
        garbage: &[RelPath],
    ) -> Result<()> {
        let tidy = || -> Result<()> {
            for path in garbage {
                match backend.remove_file(path) {
                    Err(error) if !is_absent(&error) => return Err(error.into()),
                    _ => {}
                }
            }
            match backend.remove_file(&layout::record_path(batch)) {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
            backend.sync()?;
            discard_ended(backend, &layout::staging_dir(batch))
        };
        match tidy() {
            Err(FlushError::Backend(error)) if is_local(backend, batch, &error) => {
                tracing::warn!(%batch, %error, "what the batch has left in .ferryfs stays for now");
                Ok(())
            }
            result => result,
        }
    }

    /// Ends a batch that has touched nothing under a final name.
    pub(super) fn give_up(
        &self,
        backend: &dyn Backend,
        batch: BatchNo,
        outcome: &str,
        quiet: bool,
    ) -> Result<()> {
        if !quiet {
            tracing::warn!(%batch, outcome, "batch given up; everything in it still waits");
        }
        let summary = BatchSummary {
            batch,
            time: self.parts.clock.now(),
            files: 0,
            bytes: 0,
            outcome: outcome.into(),
        };
        self.parts
            .index
            .lock()
            .end_batch(BatchState::GivenUp, &summary)?;
        self.before(CacheStep::RemoveJournal)?;
        Journal::remove(&self.parts.journals, batch)?;
        // Another cache may have used the same number since; where there is a record, what is staged belongs to it. Best
        // effort: what stays is garbage that the next attach removes.
        // Nor is anything removed where another machine is at work.
        if self.may_write(backend).is_ok()
            && super::apply::exists(backend, &layout::record_path(batch))
                .is_ok_and(|record| !record)
            && let Err(error) = discard(backend, &layout::staging_dir(batch))
        {
            tracing::debug!(%error, "staging directory not removed");
        }
        Ok(())
    }

    /// `backend`, which gives up held space when it is full.
    pub(super) fn relieved<'a>(&'a self, backend: &'a dyn Backend, batch: BatchNo) -> Relieved<'a> {
        Relieved::new(backend, batch, &self.gave_reserve_up)
    }

    /// Takes the space again that was given up, unless a batch that was stopped may need it.
    pub(super) fn restore_reserve(&self, backend: &dyn Backend) {
        if self.parts.index.lock().active_batch().is_some()
            || !self.gave_reserve_up.load(Ordering::Acquire)
        {
            return;
        }
        let restored = self.may_write(backend).and_then(|()| {
            let space = backend.space()?;
            let size = reserve::restored(&space);
            if size > 0 && reserve::size_on(backend)? == 0 {
                reserve::make(backend, size)?;
                // Clusters that were just freed must not be found under two names.
                backend.sync()?;
            }
            Ok(reserve::size_on(backend)? > 0)
        });
        match restored {
            Ok(is_there) => self.gave_reserve_up.store(!is_there, Ordering::Release),
            Err(error) => tracing::debug!(%error, "no space is held on the drive"),
        }
    }

    /// Passes if no other machine has the backend at work.
    pub(super) fn may_write(&self, backend: &dyn Backend) -> Result<()> {
        let allowed = self.parts.hooks.may_write(backend);
        allowed.map_err(FlushError::InUse)
    }

    /// Where a test may stop what is done to the journals.
    pub(super) fn before(&self, step: CacheStep) -> Result<()> {
        let stopped = self.parts.store.steps().before(step);
        stopped.map_err(|source| FlushError::Cache {
            operation: "change a journal".into(),
            source,
        })
    }

    /// The backend, for calls that take as long as they take: one that changes something must not be given up, as it might
    /// take effect after whatever was done instead.
    pub(super) fn backend(&self) -> Result<Arc<dyn Backend>> {
        self.parts.drive.get_patient().ok_or(FlushError::Detached)
    }
}

/// The beginning of a phase of which nothing is known yet.
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
