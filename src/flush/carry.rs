//! One batch from its difference to its end: planned, staged, committed, applied, confirmed.

use std::collections::{BTreeMap, HashSet};

use super::apply::{Applied, Applier, create_with, exists};
use super::confirm::{Concluded, conclusions};
use super::gather::Gathered;
use super::journal::Journal;
use super::keep;
use super::known::Before;
use super::preflight::{Foreign, changed_elsewhere, find_foreign, unchangeable};
use super::refused::is_local;
use super::report::{FlushError, Report, Result, Wish};
use super::run::phase;
use super::stage::{Staged, Stager, discard};
use super::{Flusher, Parts, attributes, catalog, room, told, verify};
use crate::backend::drive::Withheld;
use crate::backend::{Backend, Capabilities};
use crate::base::steps::CacheStep;
use crate::base::{ForeignText, Ino};
use crate::control::protocol::{Phase, Progress};
use crate::index::{ActiveBatch, Flags, State};
use crate::rules::layout;
use crate::rules::plan::{LeftReason, NameKey, Placed, Plan, StageSource, plan};
use crate::rules::record::{self, BatchRecord};
use crate::rules::steps::{ClearStep, Steps};
use crate::rules::touched::Touched;

/// How often a batch is planned anew because files were changed in place while it was staged.
const PLANS: usize = 4;

const FOREIGN: &str =
    "somebody else has put another file there on the drive, or changed it; rename one of them";

const KEPT: &str =
    "removed in the mount, but somebody else has changed it on the drive; it stays there";

const INTERRUPTED: &str = "was being written when the daemon died and is as far as it got; write it anew, or carry it as it is: ferryfs flush --include-interrupted";

/// What came of trying one plan.
enum Attempt {
    Done(Report),
    /// These files were changed in place meanwhile; plan again without them.
    Again(HashSet<Ino>),
}

/// What carries one batch.
pub(super) struct Carrier<'a> {
    pub(super) parts: &'a Parts,
    pub(super) flusher: &'a Flusher,
    pub(super) backend: &'a dyn Backend,
    pub(super) active: &'a ActiveBatch,
    pub(super) wish: &'a Wish,
    pub(super) progress: &'a dyn Fn(Progress),
    /// What others have changed may be taken in before anything is carried.
    pub(super) may_look_again: bool,
    /// What the backend is given, of what it can hold.
    pub(super) capabilities: &'a Capabilities,
}

impl Carrier<'_> {
    /// Carries the difference over. Files that are changed in place before the batch is committed are left out of it.
    pub(super) fn carry(&self, mut gathered: Gathered) -> Result<Report> {
        if self.may_look_again {
            let dirs = changed_elsewhere(self.parts, self.backend, &gathered)?;
            if !dirs.is_empty() {
                return Err(FlushError::ChangedElsewhere { dirs });
            }
        }
        let foreign = find_foreign(
            self.backend,
            &gathered,
            &self.parts.rules,
            self.parts.time_granularity_ns,
        )?;
        gathered.leave_out(&foreign.inos);
        foreign.keep(&mut gathered);
        let mut bad = gathered.damaged(&self.parts.store);
        let mut refused = unchangeable(self.backend, &gathered)?;
        if !self.wish.retry_refused {
            refused.extend(self.flusher.refused_lately(&gathered));
        }
        if !refused.is_empty() {
            self.flusher.note_refusal();
        }
        bad.extend(refused);
        gathered.leave_out(&bad.keys().copied().collect());
        for _ in 0..PLANS {
            let mut plan = plan(&gathered.delta)?;
            let capabilities = self.capabilities;
            plan.steps.attributes = attributes::steps(&plan, &gathered, capabilities);
            let report = Report {
                left_behind: self.left_behind(&plan, &foreign, &bad)?,
                ..Report::default()
            };
            let leave_out = match self.attempt(&plan, &gathered, report) {
                Ok(Attempt::Done(report)) => return Ok(report),
                Ok(Attempt::Again(changed)) => changed,
                Err(FlushError::BadObjects(files)) => {
                    let inos = files.iter().map(|(ino, _)| *ino).collect();
                    bad.extend(files);
                    inos
                }
                Err(error) => return Err(error),
            };
            discard(self.backend, &layout::staging_dir(self.active.batch))?;
            gathered.leave_out(&leave_out);
        }
        Err(FlushError::Unfinished {
            batch: self.active.batch,
            problem: "files are changed in place faster than they can be carried".into(),
        })
    }

    fn attempt(&self, plan: &Plan, gathered: &Gathered, mut report: Report) -> Result<Attempt> {
        if plan.steps.is_empty() {
            let journal = self.journal(plan, gathered, &Staged::empty(), u64::MAX)?;
            if journal.record.catalog.is_none() {
                // Nothing differs that the backend could hold: the marks go, and no batch is written.
                let concluded = Concluded::all(&journal);
                self.flusher.note_conclusions(&concluded, self.active.cut)?;
                return Ok(Attempt::Done(report));
            }
        }
        let capabilities = self.capabilities;
        let granted = room::check(self.backend, plan, gathered, capabilities)?;
        let relieved = self.flusher.relieved(self.backend, self.active.batch);
        let stager = Stager {
            backend: match granted.may_use_reserve {
                true => &relieved,
                false => self.backend,
            },
            store: &self.parts.store,
            batch: self.active.batch,
            sizes: &gathered.sizes,
            inodes: &gathered.inodes,
            keeps_permissions: capabilities.permissions,
            hides_all: capabilities.set_ids,
            wish: self.wish,
            progress: self.progress,
            held: granted.held,
        };
        let staged = stager
            .stage(plan.steps.clone())
            .map_err(|error| self.explain_full(error, plan, gathered))?;
        if self.wish.verify {
            verify::staged(
                self.backend,
                self.active.batch,
                &staged.steps,
                self.wish,
                self.progress,
            )?;
        }
        // Staging may have taken hours. What others change from here on is met when names are given.
        if self.may_look_again {
            let dirs = changed_elsewhere(self.parts, self.backend, gathered)?;
            if !dirs.is_empty() {
                return Err(FlushError::ChangedElsewhere { dirs });
            }
        }
        let journal = self.journal(plan, gathered, &staged, granted.left)?;
        let moves = Before::new(gathered).moves(&staged);
        keep::keep(self.parts, self.backend, self.active.batch, &moves)?;
        self.wish.check()?;
        self.wish.cancel.commit()?;
        if let Some(changed) = self.changed_meanwhile(&staged) {
            self.wish.cancel.reopen();
            return Ok(Attempt::Again(changed));
        }
        // From here on a full backend is no reason to stop: what it takes is held.
        let carrier = Carrier {
            backend: &relieved,
            ..*self
        };
        (carrier.commit(&journal)).map_err(|error| self.explain_full(error, plan, gathered))?;
        self.parts.hooks.hold_open(&going_away(gathered, plan));
        carrier.apply_and_confirm(&journal, &mut report)?;
        report.batch = Some(self.active.batch);
        report.files = staged.files;
        report.bytes = staged.bytes;
        let clear = &journal.record.steps.clear;
        report.moved = clear
            .iter()
            .filter(|s| matches!(s, ClearStep::Detach { .. }))
            .count() as u64;
        report.removed = clear.len() as u64 - report.moved;
        Ok(Attempt::Done(report))
    }

    /// After this the batch is redone by whoever finds it.
    fn commit(&self, journal: &Journal) -> Result<()> {
        (self.progress)(phase(Phase::Commit));
        // The row of the batch and the bytes that the journal names must outlive a power cut before the record can be found.
        self.parts.hooks.sync_cache().map_err(FlushError::Sync)?;
        // Before the journal: so far the batch is only given up if somebody else has taken the directory over.
        self.flusher.may_write(self.backend)?;
        self.flusher.before(CacheStep::WriteJournal)?;
        journal.write(&self.parts.journals)?;
        if journal.record.catalog.is_some() {
            catalog::make_dir(self.backend)?;
        }
        let path = layout::record_path(self.active.batch);
        create_with(self.backend, &path, &record::seal(&journal.record)?)?;
        Ok(self.backend.sync()?)
    }

    /// Tells of a backend that was full before the commit what is missing there, once nothing of the batch is on it.
    fn explain_full(&self, error: FlushError, plan: &Plan, gathered: &Gathered) -> FlushError {
        let is_full = matches!(&error, FlushError::Backend(error) if error.is_full());
        // With a record the batch may be finished yet, and on a machine that has only what is staged.
        let has_record = || exists(self.backend, &layout::record_path(self.active.batch));
        if !is_full || has_record().unwrap_or(true) {
            return error;
        }
        // Best effort: it is done again when the batch is given up.
        let _ = discard(self.backend, &layout::staging_dir(self.active.batch));
        let capabilities = self.capabilities;
        room::full(self.backend, plan, gathered, capabilities)
    }

    /// `left` is the space that a rewriting of the catalog may take beside the batch.
    fn journal(
        &self,
        plan: &Plan,
        gathered: &Gathered,
        staged: &Staged,
        left: u64,
    ) -> Result<Journal> {
        Ok(Journal {
            record: BatchRecord {
                volume: self.parts.volume,
                batch: self.active.batch,
                created: self.parts.clock.now(),
                origin: self.parts.origin,
                steps: staged.steps.clone(),
                known: Before::new(gathered).known(&staged.steps),
                catalog: told::catalog_of(
                    (self.parts, self.capabilities),
                    plan,
                    &staged.steps,
                    (&gathered.subjects, left),
                )?,
            },
            confirmed: conclusions(plan, gathered, staged),
            attributes: settled_attributes(plan, gathered),
            sources: staged.sources.clone(),
            keys: plan.keys.clone(),
            files: staged.files,
            bytes: staged.bytes,
        })
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
                StageSource::Object { ino, .. } | StageSource::Backend { ino, .. } => *ino,
            })
            .filter(|ino| active.live.contains(ino))
            .collect();
        if changed.is_empty() {
            active.committed = true;
            return None;
        }
        Some(changed)
    }

    fn apply_and_confirm(&self, journal: &Journal, report: &mut Report) -> Result<()> {
        let steps = &journal.record.steps;
        let mut at = Progress {
            files_total: (steps.clear.len() + steps.place.len()) as u64,
            ..phase(Phase::Apply)
        };
        (self.progress)(at);
        let drive = &self.parts.drive;
        let touched = Touched::of(steps);
        drive.withhold(Withheld::Moving(touched.clone()));
        let applied = self.apply(journal, |done| {
            at.files_done = done as u64;
            (self.progress)(at);
        });
        let ended = applied.and_then(|applied| {
            if self.wish.verify {
                verify::placed(self.backend, self.active.batch, steps, &applied)?;
            }
            (self.progress)(phase(Phase::Confirm));
            report.left_behind.extend(applied.surprises());
            (report.left_behind).extend(self.flusher.name_refused(journal, &applied)?);
            self.flusher.remember_refused(journal, &applied);
            report.conflicts.extend(named_conflicts(&applied));
            let outcome = match report.left_behind.is_empty() {
                true => "complete",
                false => "left behind",
            };
            self.flusher
                .confirm(journal, &applied, self.active.cut, outcome)?;
            Ok(applied)
        });
        let applied = match ended {
            Ok(applied) => applied,
            Err(error) => {
                // Should a step have failed, its paths lead astray until the batch has been recovered.
                drive.withhold(Withheld::Unfinished(touched));
                return Err(error);
            }
        };
        drive.withhold(Withheld::Nothing);
        self.flusher
            .clean_up(self.backend, self.active.batch, &applied.garbage)?;
        self.flusher.look_after(self.backend, &applied);
        Ok(())
    }

    /// The steps, taken; by the redo, if something has failed that may be of one name only: it looks where everything stands.
    fn apply(&self, journal: &Journal, done: impl FnMut(usize)) -> Result<Applied> {
        let manners = self.flusher.manners(journal.record.created);
        let applier = Applier {
            backend: self.backend,
            batch: self.active.batch,
            volume: self.parts.volume,
            steps: &journal.record.steps,
            known: &journal.record.known,
            catalog: journal.record.catalog.as_ref(),
            manners: &manners,
        };
        let mut first = Applied::default();
        let error = match applier.apply(&mut first, done) {
            Ok(()) => return Ok(first),
            Err(error) => error,
        };
        let once_more = match &error {
            FlushError::Backend(error) => is_local(self.backend, self.active.batch, error),
            FlushError::Unfinished { .. } => true,
            _ => false,
        };
        if !once_more {
            return Err(error);
        }
        tracing::warn!(%error, "a step has failed while the drive answers; the batch is taken through again");
        let mut applied = self.flusher.redo_steps(self.backend, journal)?;
        // What the first run has met of others' changes is in its place by now.
        applied.conflicts.extend(first.conflicts);
        for path in first.theirs {
            if !applied.theirs.contains(&path) {
                applied.theirs.push(path);
            }
        }
        Ok(applied)
    }

    /// What the batch does not bring up to date, by path and with the reason.
    fn left_behind(
        &self,
        plan: &Plan,
        foreign: &Foreign,
        bad: &BTreeMap<Ino, String>,
    ) -> Result<Vec<(String, String)>> {
        let mut state = self.parts.index.lock();
        let mut named = Vec::new();
        for left in &plan.left_behind {
            if let Some(problem) = bad.get(&left.ino) {
                named.push((spell(&mut state, &left.key)?, problem.clone()));
                continue;
            }
            let interrupted = state
                .inode(left.ino)?
                .is_some_and(|inode| inode.flags.has(Flags::INTERRUPTED));
            let reason = match left.reason {
                LeftReason::OpenForWriting if interrupted => INTERRUPTED,
                _ if foreign.inos.contains(&left.ino) => FOREIGN,
                LeftReason::OpenForWriting => "open for writing; close it, or flush again later",
                LeftReason::NoSource => "its bytes could not be had for a further name",
            };
            named.push((spell(&mut state, &left.key)?, reason.to_string()));
        }
        for key in &foreign.kept {
            named.push((spell(&mut state, key)?, KEPT.to_string()));
        }
        Ok(named)
    }
}

impl Staged {
    fn empty() -> Staged {
        Staged {
            steps: Steps::default(),
            sources: BTreeMap::new(),
            files: 0,
            bytes: 0,
        }
    }
}

/// The inodes whose attributes the batch brings up to date: of what stays behind, nothing is told.
fn settled_attributes(plan: &Plan, gathered: &Gathered) -> Vec<Ino> {
    let left: HashSet<Ino> = plan.left_behind.iter().map(|left| left.ino).collect();
    let told = gathered.attributes.iter().copied();
    told.filter(|ino| !left.contains(ino)).collect()
}

/// Whose versions were in the way: the path and where it is kept.
pub(super) fn named_conflicts(applied: &Applied) -> impl Iterator<Item = (String, String)> {
    let conflicts = applied.conflicts.iter();
    conflicts.map(|(path, kept)| (path.to_text(), kept.to_text()))
}

/// The path of a name in the mount; the name alone if its directory is gone.
fn spell(state: &mut State, key: &NameKey) -> Result<String> {
    let path = state.key_path(key)?;
    Ok(path.map_or_else(|| key.name.to_text(), |path| path.to_text()))
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
