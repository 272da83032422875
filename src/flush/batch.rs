//! One batch from its difference to its end: planned, staged, committed, applied, confirmed.

use std::collections::{BTreeMap, HashSet};

use crate::apply::journal::Journal;
use crate::apply::named_conflicts;
use crate::apply::patch;
use crate::apply::place::Manners;
use crate::apply::refused::is_local;
use crate::apply::staging::{discard, make_own_dirs};
use crate::apply::{Applied, Applier, move_backup};
use crate::catalog;
use crate::catalog::update::{self, CatalogSpace, Sources};
use crate::core::cache_step::CacheStep;
use crate::core::{Capabilities, ForeignText, Ino, Phase, Progress, RelPath};
use crate::drive::connection::Withheld;
use crate::drive::throttle::without_rests;
use crate::drive::{Backend, BackendError, create_with, exists};
use crate::error::{FlushError, Result};
use crate::flush::batch_budget::BATCH_BYTES;
use crate::flush::check::{Foreign, changed_elsewhere, find_foreign, unchangeable};
use crate::flush::conclusions::{Concluded, conclusions};
use crate::flush::diff::Gathered;
use crate::flush::expectations::Before;
use crate::flush::flusher::phase;
use crate::flush::note::removed_and_moved;
use crate::flush::patches::Bases;
use crate::flush::refused_names::refused_names;
use crate::flush::report::{Report, Wish};
use crate::flush::space_check::Granted;
use crate::flush::stage::{Staged, Stager};
use crate::flush::versions::is_of_drive;
use crate::flush::{
    Flusher, FlusherParts, across, attributes, open_copies, patches, space_check, verify,
};
use crate::format::record::BatchRecord;
use crate::format::steps::Steps;
use crate::format::{layout, record};
use crate::index::{ActiveBatch, BatchEnd, Flags, IndexWriter};
use crate::plan::planner::{LeftReason, NameKey, Placed, Plan, StageSource, plan};
use crate::plan::touched::Touched;

/// How often a batch is planned again because files were changed in place while it was staged.
const PLANS: usize = 4;

const FOREIGN: &str =
    "another program has put a file there on the drive, or changed it; rename one of them";

const KEPT: &str =
    "removed in the mount, but another program has changed it on the drive; it stays there";

const INTERRUPTED: &str = "was being written when the daemon died, and may be incomplete; write \
    it again, or flush it as it is: ferryfs flush --include-interrupted";

const OPEN: &str = "open for writing; it is written once it is closed, or by a later flush";

const UNIT: &str =
    "it belongs to a database or journal that is left behind, and means nothing without it";

/// The outcome of one plan.
enum Attempt {
    Done(Report),
    /// These files were changed in place meanwhile; plan again without them.
    Again(HashSet<Ino>),
}

/// Writes one batch.
pub(super) struct BatchWriter<'a> {
    pub(super) parts: &'a FlusherParts,
    pub(super) flusher: &'a Flusher,
    pub(super) backend: &'a dyn Backend,
    pub(super) active: &'a ActiveBatch,
    pub(super) wish: &'a Wish,
    pub(super) progress: &'a dyn Fn(Progress),
    /// External changes may be imported before anything is written.
    pub(super) may_look_again: bool,
    /// What the batch may give to the backend, of what it can hold.
    pub(super) capabilities: &'a Capabilities,
}

impl BatchWriter<'_> {
    /// Writes the difference to the backend. Files that are changed in place before the batch is
    /// committed are left out of it.
    pub(super) fn write(&self, mut gathered: Gathered) -> Result<Report> {
        self.flusher.check_held(&gathered, self.wish)?;
        let foreign = if self.may_look_again {
            let dirs = changed_elsewhere(self.parts, self.backend, &gathered)?;
            if !dirs.is_empty() {
                return Err(FlushError::ChangedElsewhere { dirs });
            }
            // Every name has been compared, and none is foreign.
            Foreign::default()
        } else {
            find_foreign(self.parts, self.backend, &gathered)?
        };
        gathered.leave_out(&foreign.inos);
        foreign.keep(&mut gathered);
        let mut bad = gathered.damaged(&self.parts.store);
        let mut refused = unchangeable(self.backend, &gathered)?;
        if !self.wish.retry_refused {
            refused.extend(self.flusher.refusals.refused_lately(gathered.sizes.keys()));
        }
        if !refused.is_empty() {
            self.flusher.refusals.note_met();
        }
        bad.extend(refused);
        gathered.leave_out(&bad.keys().copied().collect());
        for _ in 0..PLANS {
            let mut plan = plan(&gathered.delta)?;
            let capabilities = self.capabilities;
            let are_one = capabilities.hard_links && !self.backend.links_may_be_copies();
            plan.steps.attributes = attributes::steps(&plan, &gathered, capabilities, are_one);
            let report = Report {
                left_behind: self.left_behind(&plan, &gathered, &foreign, &bad)?,
                more: gathered.more,
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
            problem: "files are changed in place faster than they can be written".into(),
        })
    }

    fn attempt(&self, plan: &Plan, gathered: &Gathered, mut report: Report) -> Result<Attempt> {
        if plan.steps.is_empty() {
            let journal = self.journal(plan, gathered, &Staged::empty(), u64::MAX)?;
            if journal.record.catalog.is_none() {
                // Nothing differs that the backend could hold: the marks go, and no batch is
                // written.
                let concluded = Concluded::all(&journal);
                self.flusher.note_conclusions(&concluded, self.active.cut)?;
                return Ok(Attempt::Done(report));
            }
        }
        let capabilities = self.capabilities;
        let mut bases = patches::bases(self.parts, self.backend, plan, gathered, capabilities)?;
        self.flusher.leave_versions_whole(plan, &mut bases);
        let granted = self.space_for(plan, gathered, &bases)?;
        let relieved = self
            .flusher
            .reserve
            .relieve(self.backend, self.active.batch);
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
            patching: &self.parts.patching,
            bases: &bases,
            versions: &|steps| self.flusher.versions_of(gathered, steps),
        };
        let staged = stager
            .stage(plan.steps.clone())
            .map_err(|error| self.explain_full(error, plan, gathered, &bases))?;
        if self.wish.verify {
            verify::staged(
                self.backend,
                self.active.batch,
                &staged.steps,
                self.wish,
                self.progress,
            )
            .inspect_err(|_| self.forget_bases(plan, gathered))?;
        }
        // Staging may have taken hours. External changes from here on are met when names are
        // placed.
        if self.may_look_again {
            let dirs = changed_elsewhere(self.parts, self.backend, gathered)?;
            if !dirs.is_empty() {
                return Err(FlushError::ChangedElsewhere { dirs });
            }
        }
        let journal = self.journal(plan, gathered, &staged, granted.left)?;
        let moves = Before::new(gathered).moves(&staged);
        move_backup::keep(
            self.parts.cache_side(),
            self.backend,
            self.active.batch,
            &moves,
        )?;
        self.wish.check()?;
        self.wish.cancel.commit()?;
        if let Some(changed) = self.changed_meanwhile(&staged) {
            self.wish.cancel.reopen();
            return Ok(Attempt::Again(changed));
        }
        // While the batch is applied, names are withheld and patched files are torn.
        let _at_once = without_rests();
        // From here on a full backend is no reason to stop: the space for the rest is held.
        let writer = BatchWriter {
            backend: &relieved,
            ..*self
        };
        (writer.commit(&journal))
            .map_err(|error| self.explain_full(error, plan, gathered, &bases))?;
        self.parts.hooks.hold_open(&going_away(gathered, plan));
        writer.apply_and_confirm(&journal, staged.keeps_versions, &mut report)?;
        report.copied_open = open_copies::of(self.parts, self.active, &staged);
        report.batch = Some(self.active.batch);
        report.files = staged.files;
        report.bytes = staged.bytes;
        (report.removed, report.moved) = removed_and_moved(&journal.record.steps);
        Ok(Attempt::Done(report))
    }

    /// Checks that the batch fits on the drive. Older versions there are removed if it does not.
    fn space_for(&self, plan: &Plan, gathered: &Gathered, bases: &Bases) -> Result<Granted> {
        let check = || space_check::check(self.backend, plan, gathered, self.capabilities, bases);
        let (full, needed) = match check() {
            Err(error @ FlushError::Full { needed, .. }) => (error, needed),
            granted => return granted,
        };
        match (self.flusher).make_version_space(self.backend, needed) {
            Ok(true) => check(),
            Ok(false) => Err(full),
            Err(error) if is_of_drive(self.backend, &error) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "no old versions on the drive are removed for a batch");
                Err(full)
            }
        }
    }

    /// Commits the batch. From then on a recovery finishes it, on whatever machine.
    fn commit(&self, journal: &Journal) -> Result<()> {
        (self.progress)(phase(Phase::Commit));
        // The row of the batch and the bytes that the journal names must outlive a power cut before
        // the record can be found.
        self.parts.hooks.sync_cache()?;
        // Before the journal, because until then the batch can be given up if another machine has
        // taken the volume over.
        self.flusher.may_write(self.backend)?;
        make_own_dirs(self.backend)?;
        self.flusher.before(CacheStep::WriteJournal)?;
        journal.write(&self.parts.journals)?;
        if journal.record.catalog.is_some() {
            catalog::make_dir(self.backend)?;
        }
        let path = layout::record_path(self.active.batch);
        create_with(self.backend, &path, &record::seal(&journal.record)?)
            .inspect_err(|error| self.take_commit_back(error, &path))?;
        Ok(self.backend.sync()?)
    }

    /// After `error` of the record's creation: if the drive refuses it, and has none, the batch was
    /// not committed. It is given up now, so that its journal is not taken for that of an
    /// interrupted batch.
    fn take_commit_back(&self, error: &BackendError, record: &RelPath) {
        let is_refused = error.is_refusal() && !error.is_full();
        if is_refused
            && matches!(exists(self.backend, record), Ok(false))
            && let Some(active) = self.parts.index.lock().active_batch()
        {
            active.committed = false;
            self.wish.cancel.reopen();
        }
    }

    /// Replaces the `error` of a backend that was full before the commit by what is missing there.
    /// Removes what was staged.
    fn explain_full(
        &self,
        error: FlushError,
        plan: &Plan,
        gathered: &Gathered,
        bases: &Bases,
    ) -> FlushError {
        let is_full = matches!(&error, FlushError::Backend(error) if error.is_full());
        // With a record the batch may yet be finished, also by a machine that has only the staged
        // files.
        let has_record = || exists(self.backend, &layout::record_path(self.active.batch));
        if !is_full || has_record().unwrap_or(true) {
            return error;
        }
        // Best effort: this is repeated when the batch is given up.
        let _ = discard(self.backend, &layout::staging_dir(self.active.batch));
        let capabilities = self.capabilities;
        space_check::full(self.backend, plan, gathered, capabilities, bases)
    }

    /// After a failed comparison with the drive: the next batch writes its files whole.
    fn forget_bases(&self, plan: &Plan, gathered: &Gathered) {
        let known = Before::new(gathered).known(&plan.steps);
        for replaced in known.replaced.values() {
            self.parts.patching.forget(replaced.hash);
        }
    }

    /// Returns the journal. `left` is the space that rewriting the catalog may take beside the
    /// batch.
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
                catalog: update::catalog_of(
                    Sources {
                        index: &self.parts.index,
                        store: &self.parts.store,
                        capabilities: self.capabilities,
                    },
                    plan,
                    &staged.steps,
                    (
                        &gathered.subjects,
                        CatalogSpace {
                            left,
                            longest: 2 * BATCH_BYTES,
                        },
                    ),
                )?,
            },
            confirmed: match gathered.copied.is_empty() {
                true => conclusions(plan, gathered, staged),
                // A copy settles no name of the cut.
                false => across::unsettled(conclusions(plan, gathered, staged)),
            },
            attributes: settled_attributes(plan, gathered),
            sources: staged.sources.clone(),
            keys: plan.keys.clone(),
            files: staged.files,
            bytes: staged.bytes,
        })
    }

    /// Fixes the batch: from here on none of its files is changed in place. Returns the files that
    /// were changed since the cut, if there are any; then the batch is not fixed, and they must be
    /// left out.
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

    fn apply_and_confirm(
        &self,
        journal: &Journal,
        keeps_versions: bool,
        report: &mut Report,
    ) -> Result<()> {
        let steps = &journal.record.steps;
        let mut at = Progress {
            files_total: (steps.clear.len() + steps.place.len()) as u64,
            ..phase(Phase::Apply)
        };
        (self.progress)(at);
        let drive = &self.parts.drive;
        let touched = Touched::of(steps);
        drive.withhold(Withheld::Moving(touched.clone()));
        let applied = self.apply(journal, keeps_versions, |done| {
            at.files_done = done as u64;
            (self.progress)(at);
        });
        let ended = applied.and_then(|applied| {
            if self.wish.verify {
                verify::placed(self.backend, self.active.batch, steps, &applied)?;
            }
            patch::forget_begun(self.backend, self.active.batch, steps)?;
            (self.progress)(phase(Phase::Confirm));
            report.left_behind.extend(applied.surprises());
            let refused = refused_names(&self.parts.index, journal, &applied)?;
            (report.refused).extend(refused.iter().map(|(path, _)| path.clone()));
            report.left_behind.extend(refused);
            self.flusher.refusals.note_applied(journal, &applied);
            report
                .not_movable
                .extend(across::not_movable(journal, &applied));
            report.conflicts.extend(named_conflicts(&applied));
            let end = BatchEnd::applied(report.left_behind.is_empty());
            self.flusher
                .confirm(journal, &applied, self.active.cut, end)?;
            Ok(applied)
        });
        let applied = match ended {
            Ok(applied) => applied,
            Err(error) => {
                // If a step has failed, the paths of the batch are unreliable until recovery.
                drive.withhold(Withheld::Unfinished(touched));
                return Err(error);
            }
        };
        drive.withhold(Withheld::Nothing);
        if keeps_versions {
            (self.flusher).keep_versions(&journal.record, &applied.garbage, false)?;
        }
        self.flusher
            .leftovers
            .clean_up(self.backend, self.active.batch, &applied.garbage)?;
        self.flusher.import_met(self.backend, &applied);
        Ok(())
    }

    /// Takes the steps. If an error may concern one name only, the replay takes them again: it
    /// looks where every file is.
    fn apply(
        &self,
        journal: &Journal,
        keeps_versions: bool,
        done: impl FnMut(usize),
    ) -> Result<Applied> {
        let _phase = self.backend.keep_open();
        let manners = Manners {
            keeps_versions,
            ..(self.flusher).manners(journal.record.created, self.wish.removals_first)
        };
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
        tracing::warn!(%error, "a step has failed while the drive answers; the batch is replayed");
        let mut applied = (self.flusher).redo_steps(self.backend, journal, &manners)?;
        // The first run has met external changes, too, and has moved them out of the way.
        applied.conflicts.extend(first.conflicts);
        for path in first.theirs {
            if !applied.theirs.contains(&path) {
                applied.theirs.push(path);
            }
        }
        Ok(applied)
    }

    /// Returns the names that the batch leaves behind, by path and with the reason.
    fn left_behind(
        &self,
        plan: &Plan,
        gathered: &Gathered,
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
                LeftReason::OpenForWriting => self.why_open(left.ino),
                LeftReason::NoSource => "its bytes could not be had for a further name",
            };
            named.push((spell(&mut state, &left.key)?, reason.to_string()));
        }
        for key in &foreign.kept {
            named.push((spell(&mut state, key)?, KEPT.to_string()));
        }
        for (key, reason) in &gathered.unfit {
            named.push((spell(&mut state, key)?, (*reason).to_string()));
        }
        Ok(named)
    }
}

impl BatchWriter<'_> {
    /// Why a file is left out whose bytes are on the SSD and readable.
    fn why_open(&self, ino: Ino) -> &'static str {
        match self.active.left_out.get(&ino) {
            Some(reason) => reason,
            None if self.active.writing.contains(&ino) => OPEN,
            None => UNIT,
        }
    }
}

impl Staged {
    fn empty() -> Staged {
        Staged {
            steps: Steps::default(),
            sources: BTreeMap::new(),
            files: 0,
            bytes: 0,
            keeps_versions: false,
        }
    }
}

/// Returns the inodes whose attributes the batch brings up to date. Files that are left behind are
/// not described.
fn settled_attributes(plan: &Plan, gathered: &Gathered) -> Vec<Ino> {
    let left: HashSet<Ino> = plan.left_behind.iter().map(|left| left.ino).collect();
    let told = gathered.attributes.iter().copied();
    told.filter(|ino| !left.contains(ino)).collect()
}

/// Returns the path of a name in the mount; the name alone if its directory is gone.
fn spell(state: &mut IndexWriter, key: &NameKey) -> Result<String> {
    let path = state.key_path(key)?;
    Ok(path.map_or_else(|| key.name.to_text(), |path| path.to_text()))
}

/// Returns the inodes that have a listed name on the backend before the batch, and none after it.
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
