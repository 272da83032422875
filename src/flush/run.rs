//! One flush from beginning to end.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::apply::{Applier, Run, create_with};
use super::confirm::conclusions;
use super::gather::{Gathered, gather};
use super::journal::Journal;
use super::preflight::find_foreign;
use super::report::{FlushError, Report, Result};
use super::stage::{Staged, Stager, discard};
use super::{Flusher, recover};
use crate::backend::Backend;
use crate::base::{BatchNo, Ino};
use crate::control::protocol::{Phase, Progress};
use crate::index::{ActiveBatch, BatchState, BatchSummary, Snapshot, State};
use crate::rules::layout;
use crate::rules::plan::{LeftReason, NameKey, Placed, Plan, plan};
use crate::rules::record::{self, BatchRecord};
use crate::rules::steps::Steps;

/// How often a batch is planned anew because files were changed in place while it was staged.
const PLANS: usize = 4;

/// The kernel tells of the last close of a file a moment after close(2) has returned; that long a flush waits for it.
const SETTLE: Duration = Duration::from_millis(100);

const FOREIGN: &str =
    "somebody else has put another file there on the drive, or changed it; rename one of them";

const KEPT: &str =
    "removed in the mount, but somebody else has changed it on the drive; it stays there";

/// Whether all of the cut is carried, or only what makes room on the backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    RemovalsOnly,
}

/// What came of trying one plan.
enum Attempt {
    Done(Report),
    /// These files were changed in place meanwhile; plan again without them.
    Again(HashSet<Ino>),
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
        let _one_at_a_time = match deadline {
            Some(deadline) => self
                .running
                .try_lock_until(deadline)
                .ok_or(FlushError::TimedOut)?,
            None => self.running.lock(),
        };
        let started = Instant::now();
        let backend = self.parts.drive.get().ok_or(FlushError::Detached)?;
        recover::check_marker(&*backend, self.parts.volume, self.parts.nonce)?;
        self.recover_open_batch(&*backend)?;
        self.wait_for_closes();
        let mut report = match self.run_batch(&*backend, Scope::All, deadline, progress) {
            Err(full @ FlushError::Full { .. }) => {
                // What was removed in the mount may be what is needed: it goes first, in a batch of its own.
                let freed = self.run_batch(&*backend, Scope::RemovalsOnly, deadline, progress)?;
                if freed.batch.is_none() {
                    return Err(full);
                }
                self.run_batch(&*backend, Scope::All, deadline, progress)?
            }
            other => other?,
        };
        self.parts.drive.refresh_space();
        then();
        report.took = started.elapsed();
        Ok(report)
    }

    fn wait_for_closes(&self) {
        let end = Instant::now() + SETTLE;
        while self.parts.index.lock().writing_count() > 0 && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn run_batch(
        &self,
        backend: &dyn Backend,
        scope: Scope,
        deadline: Option<Instant>,
        progress: &dyn Fn(Progress),
    ) -> Result<Report> {
        progress(phase(Phase::Cut));
        // Another cache of this volume may have used higher numbers; ours must not meet what it has left.
        let above = recover::batches_on(backend)?.into_iter().max();
        let Some((active, snapshot)) = self.cut(above)? else {
            return Ok(Report::default());
        };
        let result = self.plan_and_carry(backend, scope, &active, snapshot, deadline, progress);
        // A batch that has not come to its journal is given up here; else it stays open, for recovery to finish.
        let committed = self
            .parts
            .index
            .lock()
            .active_batch()
            .is_some_and(|active| active.committed);
        if !committed && self.parts.index.lock().active_batch().is_some() {
            let outcome = match &result {
                Ok(_) => "nothing to carry".to_string(),
                Err(error) => error.to_string(),
            };
            self.give_up(backend, active.batch, &outcome, result.is_ok())?;
        }
        result
    }

    /// Takes the cut: the number of the last change in it, and a view of the index as of that moment. `None` if nothing waits.
    fn cut(&self, above: Option<BatchNo>) -> Result<Option<(ActiveBatch, Snapshot)>> {
        let mut state = self.parts.index.lock();
        state.commit()?;
        if !state.anything_dirty()? {
            return Ok(None);
        }
        let active = state.begin_batch(self.parts.clock.now(), above)?;
        let snapshot = self.parts.index.snapshot()?;
        Ok(Some((active, snapshot)))
    }

    fn plan_and_carry(
        &self,
        backend: &dyn Backend,
        scope: Scope,
        active: &ActiveBatch,
        snapshot: Snapshot,
        deadline: Option<Instant>,
        progress: &dyn Fn(Progress),
    ) -> Result<Report> {
        let mut gathered = gather(&snapshot, &self.parts.rules, active)?;
        // While it lives the index's WAL cannot begin anew.
        drop(snapshot);
        if scope == Scope::RemovalsOnly {
            keep_removals(&mut gathered);
        }
        let foreign = find_foreign(
            backend,
            &gathered,
            &self.parts.rules,
            self.parts.time_granularity_ns,
        )?;
        if let Some(path) = foreign.in_the_way {
            return Err(FlushError::Foreign { path });
        }
        gathered.leave_out(&foreign.inos);
        foreign.keep(&mut gathered);
        for _ in 0..PLANS {
            let plan = plan(&gathered.delta)?;
            let mut left_behind = self.name_left_behind(&plan, &foreign.inos)?;
            for key in &foreign.kept {
                left_behind.push((self.name_key(key)?, KEPT.into()));
            }
            match self.carry(
                backend,
                active,
                plan,
                &gathered,
                left_behind,
                deadline,
                progress,
            )? {
                Attempt::Done(report) => return Ok(report),
                Attempt::Again(changed) => {
                    discard(backend, &layout::staging_dir(active.batch))?;
                    gathered.leave_out(&changed);
                }
            }
        }
        Err(FlushError::Unfinished {
            batch: active.batch,
            problem: "files are changed in place faster than they can be carried".into(),
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn carry(
        &self,
        backend: &dyn Backend,
        active: &ActiveBatch,
        plan: Plan,
        gathered: &Gathered,
        left_behind: Vec<(String, String)>,
        deadline: Option<Instant>,
        progress: &dyn Fn(Progress),
    ) -> Result<Attempt> {
        let mut report = Report {
            left_behind,
            ..Report::default()
        };
        let stager = Stager {
            backend,
            store: &self.parts.store,
            batch: active.batch,
            sizes: &gathered.sizes,
            deadline,
            progress,
        };
        let nothing_to_do = plan.steps.is_empty();
        let (plan, staged) = match nothing_to_do {
            true => (plan, Staged::empty()),
            false => {
                let steps = plan.steps.clone();
                (plan, stager.stage(steps)?)
            }
        };
        let journal = self.journal(active, &plan, gathered, &staged);
        if nothing_to_do {
            self.conclude_without_batch(&journal, active)?;
            return Ok(Attempt::Done(report));
        }
        if let Some(changed) = self.changed_meanwhile(&staged) {
            return Ok(Attempt::Again(changed));
        }
        progress(phase(Phase::Commit));
        // The row of the batch and the bytes that the journal names must outlive a power cut before the record can be found.
        self.parts.hooks.sync_cache().map_err(FlushError::Sync)?;
        journal.write(&self.parts.journals)?;
        create_with(
            backend,
            &layout::record_path(active.batch),
            &record::seal(&journal.record)?,
        )?;
        backend.sync()?;
        self.apply_and_confirm(
            backend,
            active,
            &journal,
            gathered,
            &plan,
            &mut report,
            progress,
        )?;
        report.batch = Some(active.batch);
        report.files = staged.files;
        report.bytes = staged.bytes;
        Ok(Attempt::Done(report))
    }

    fn journal(
        &self,
        active: &ActiveBatch,
        plan: &Plan,
        gathered: &Gathered,
        staged: &Staged,
    ) -> Journal {
        Journal {
            record: BatchRecord {
                volume: self.parts.volume,
                batch: active.batch,
                created: self.parts.clock.now(),
                origin: self.parts.origin,
                steps: staged.steps.clone(),
            },
            confirmed: conclusions(plan, gathered, staged),
            sources: staged.sources.clone(),
            files: staged.files,
            bytes: staged.bytes,
        }
    }

    /// The point at which the batch becomes fixed: from here on nobody changes a file of it in place any more. If somebody
    /// has since the cut, these files must be left out.
    fn changed_meanwhile(&self, staged: &Staged) -> Option<HashSet<Ino>> {
        let mut state = self.parts.index.lock();
        let active = state.active_batch()?;
        let changed: HashSet<Ino> = staged
            .sources
            .values()
            .map(|source| match source {
                crate::rules::plan::StageSource::Object { ino, .. }
                | crate::rules::plan::StageSource::Backend { ino, .. } => *ino,
            })
            .filter(|ino| active.live.contains(ino))
            .collect();
        if changed.is_empty() {
            active.committed = true;
            return None;
        }
        Some(changed)
    }

    #[allow(clippy::too_many_arguments)]
    fn apply_and_confirm(
        &self,
        backend: &dyn Backend,
        active: &ActiveBatch,
        journal: &Journal,
        gathered: &Gathered,
        plan: &Plan,
        report: &mut Report,
        progress: &dyn Fn(Progress),
    ) -> Result<()> {
        self.parts.hooks.hold_open(&going_away(gathered, plan));
        let total = journal.record.steps.place.len() as u64;
        let mut at = Progress {
            files_total: total,
            ..phase(Phase::Apply)
        };
        progress(at);
        {
            let _moving = self.parts.drive.move_names();
            // Should a step fail, paths lead astray until the batch has been recovered.
            self.parts.drive.names_are_settled(false);
            let applier = Applier {
                backend,
                batch: active.batch,
                steps: &journal.record.steps,
                run: Run::First,
                rebuild: None,
            };
            let kept = applier.apply(|done| {
                at.files_done = done as u64;
                progress(at);
            })?;
            for path in kept {
                let reason = "removed in the mount, but on the drive it holds files that somebody else has put there";
                report.left_behind.push((path.to_string(), reason.into()));
            }
            progress(phase(Phase::Confirm));
            let outcome = if report.left_behind.is_empty() {
                "complete"
            } else {
                "left behind"
            };
            self.confirm(journal, active.cut, outcome)?;
            self.parts.drive.names_are_settled(true);
        }
        self.clean_up(backend, active.batch)
    }

    /// Nothing differs that the backend could hold: the marks go, and no batch is written.
    fn conclude_without_batch(&self, journal: &Journal, active: &ActiveBatch) -> Result<()> {
        self.note_conclusions(journal, active.cut)
    }

    /// Removes what a finished batch leaves in our own directory: the record first, and only when it is surely gone the
    /// staging directory with its mark; a record without its mark would be cleared again.
    pub(super) fn clean_up(&self, backend: &dyn Backend, batch: BatchNo) -> Result<()> {
        match backend.remove_file(&layout::record_path(batch)) {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        backend.sync()?;
        discard(backend, &layout::staging_dir(batch))
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
        Journal::remove(&self.parts.journals, batch)?;
        // Another cache may have used the same number since; where there is a record, what is staged belongs to it. Best
        // effort: what stays is garbage that the next attach removes.
        if super::apply::exists(backend, &layout::record_path(batch)).is_ok_and(|record| !record)
            && let Err(error) = discard(backend, &layout::staging_dir(batch))
        {
            tracing::debug!(%error, "staging directory not removed");
        }
        Ok(())
    }

    fn name_left_behind(
        &self,
        plan: &Plan,
        foreign: &HashSet<Ino>,
    ) -> Result<Vec<(String, String)>> {
        let mut state = self.parts.index.lock();
        let mut named = Vec::new();
        for left in &plan.left_behind {
            let path = spell(&mut state, &left.key)?;
            let reason = match left.reason {
                _ if foreign.contains(&left.ino) => FOREIGN,
                LeftReason::OpenForWriting => "open for writing; close it, or flush again later",
                LeftReason::NoSource => "its bytes could not be had for a further name",
            };
            named.push((path, reason.to_string()));
        }
        Ok(named)
    }

    fn name_key(&self, key: &NameKey) -> Result<String> {
        spell(&mut self.parts.index.lock(), key)
    }

    /// The backend's slot, for those who wait for it.
    pub(super) fn backend(&self) -> Result<Arc<dyn Backend>> {
        self.parts.drive.get().ok_or(FlushError::Detached)
    }
}

impl Staged {
    fn empty() -> Staged {
        Staged {
            steps: Steps::default(),
            sources: std::collections::BTreeMap::new(),
            files: 0,
            bytes: 0,
        }
    }
}

/// The path of a name in the mount; the name alone if its directory is gone.
fn spell(state: &mut State, key: &NameKey) -> Result<String> {
    let path = state.key_path(key)?;
    Ok(path.map_or_else(|| key.name.to_string(), |path| path.to_string()))
}

fn phase(phase: Phase) -> Progress {
    Progress {
        phase,
        files_done: 0,
        files_total: 0,
        bytes_done: 0,
        bytes_total: 0,
    }
}

/// Inodes that the backend has before the batch under a listed name and under none after it.
fn going_away(gathered: &Gathered, plan: &Plan) -> Vec<Ino> {
    let stays: HashSet<Ino> = plan
        .outcomes
        .iter()
        .filter_map(|outcome| match &outcome.placed {
            Placed::Nothing => None,
            Placed::Directory(ino) | Placed::Kept { ino, .. } | Placed::Staged { ino, .. } => {
                Some(*ino)
            }
        })
        .collect();
    let before: HashSet<Ino> = gathered.before.values().map(|entry| entry.ino).collect();
    before.difference(&stays).copied().collect()
}

/// Leaves of the difference only the files that are gone from the cut and from every other name.
fn keep_removals(gathered: &mut Gathered) {
    use crate::rules::steps::PlainKind;
    let wanted: HashSet<Ino> = gathered
        .delta
        .names
        .iter()
        .filter_map(|change| change.new.as_ref().map(|new| new.ino))
        .collect();
    gathered.delta.names.retain(|change| {
        change.new.is_none()
            && change
                .old
                .is_some_and(|old| old.kind == PlainKind::File && !wanted.contains(&old.ino))
    });
    gathered.settled.clear();
    // The directories stay where they are in this batch.
    let parents: HashSet<Ino> = gathered
        .delta
        .names
        .iter()
        .map(|change| change.key.parent)
        .collect();
    gathered.delta.dirs.retain(|dir, _| parents.contains(dir));
    for paths in gathered.delta.dirs.values_mut() {
        paths.new.clone_from(&paths.old);
    }
}
