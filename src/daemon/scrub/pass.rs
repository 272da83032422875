//! One run over the files, from where the scrub was to the last one, or until something halts it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::file::Seen;
use super::memory::{Current, Problem};
use super::pace::{Busy, Pace};
use crate::control::protocol::Amount;
use crate::core::{ForeignText, RelPath};
use crate::daemon::monitor::Presence;
use crate::daemon::scrub::copies::Repair;
use crate::daemon::service::Service;
use crate::daemon::stop::Stop;
use crate::drive::Backend;
use crate::index::PlacedEntry;
use crate::plan::planner::NameKey;
use crate::vfs::FsError;

/// So many files are looked up at once.
const AT_A_TIME: u32 = 500;

/// How often it is looked whether to go on.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why a run over the files has not come to its end.
#[derive(Debug)]
pub(super) enum Halt {
    /// It is not wanted any more, or the mount ends.
    Over,
    /// The drive is not there.
    Away,
    /// The cache or the drive has failed.
    Failed(FsError),
}

impl<E: Into<FsError>> From<E> for Halt {
    fn from(error: E) -> Halt {
        Halt::Failed(error.into())
    }
}

/// A run over the files.
pub(super) struct Pass<'a> {
    pub(super) service: &'a Service,
    pub(super) stop: &'a Stop,
    pub(super) backend: Arc<dyn Backend>,
    round: u64,
    pace: Pace,
    busy: Busy,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        service: &'a Service,
        stop: &'a Stop,
        round: u64,
        backend: Arc<dyn Backend>,
    ) -> Pass<'a> {
        let now = Instant::now();
        Pass {
            service,
            stop,
            backend,
            round,
            pace: Pace::new(now),
            busy: Busy::new(now, service.fs.drive_reads()),
        }
    }

    /// Looks at all files behind the one that the scrub is done with.
    ///
    /// # Errors
    /// Why it has not come to its end.
    pub(super) fn run(mut self) -> Result<(), Halt> {
        self.wait_for_import()?;
        let mut after = self.current(|current| current.position())?;
        self.count_rest(after.as_ref())?;
        loop {
            let files = self.next_files(after.as_ref())?;
            let Some((last, _, _)) = files.last() else {
                return Ok(());
            };
            after = Some(last.clone());
            for (key, entry, path) in files {
                self.gate()?;
                let Some(path) = path else {
                    // Its directory is gone.
                    self.note(&key, &entry, |current| current.found.left_out += 1);
                    continue;
                };
                let seen = match self.begin_file(&key) {
                    None => self.look_at(&key, &entry, &path)?,
                    Some(why) => Seen::Unreadable(why),
                };
                self.take(&key, &entry, &path, seen)?;
            }
        }
    }

    /// Notes that a file is begun. Returns why it is to be left out, if it is.
    fn begin_file(&self, key: &NameKey) -> Option<String> {
        let mut why = None;
        let scrubber = &self.service.scrubber;
        scrubber.change(self.round, |current, _, _| why = current.begin_file(key));
        why
    }

    /// Returns something of the state of this scrub.
    fn current<T>(&self, read: impl FnOnce(&Current) -> T) -> Result<T, Halt> {
        let state = self.service.scrubber.state.lock();
        let current = state.memory.current.as_ref();
        let current = current.filter(|_| state.round == self.round);
        current.map(read).ok_or(Halt::Over)
    }

    fn next_files(
        &self,
        after: Option<&NameKey>,
    ) -> Result<Vec<(NameKey, PlacedEntry, Option<RelPath>)>, Halt> {
        self.service.index.commit()?;
        let snapshot = self.service.index.snapshot()?;
        let files = snapshot.placed_after(after, AT_A_TIME)?.into_iter();
        let mut found = Vec::new();
        for (key, entry) in files {
            let dir = snapshot.backend_dir(key.parent)?;
            let path = dir.map(|dir| dir.join(&key.name));
            found.push((key, entry, path));
        }
        Ok(found)
    }

    /// Counts the files that are left.
    fn count_rest(&self, after: Option<&NameKey>) -> Result<(), Halt> {
        self.service.index.commit()?;
        let (files, bytes) = self.service.index.snapshot()?.placed_amount(after)?;
        self.service
            .scrubber
            .change(self.round, |current, _, total| {
                *total = Amount {
                    files: current.visited.files + files,
                    bytes: current.visited.bytes.saturating_add(bytes),
                };
            });
        Ok(())
    }

    /// Notes what was seen of a file, and repairs it.
    fn take(
        &mut self,
        key: &NameKey,
        entry: &PlacedEntry,
        path: &RelPath,
        seen: Seen,
    ) -> Result<(), Halt> {
        let shown = path.as_os_str().to_text();
        let problem = |text, repaired| Problem::new((key, entry), shown.clone(), text, repaired);
        match seen {
            Seen::LeftOut => self.note(key, entry, |current| current.found.left_out += 1),
            Seen::Whole { compared, recorded } => self.note(key, entry, |current| {
                current.found.read.add(entry.size);
                current.found.compared += u64::from(compared);
                current.found.recorded += u64::from(recorded);
            }),
            Seen::Unreadable(text) => self.note(key, entry, |current| {
                current.found.unreadable += 1;
                current.found.add_problem(problem(text, false));
            }),
            Seen::Unsteady(text) => self.note(key, entry, |current| {
                current.found.read.add(entry.size);
                current.found.unsteady += 1;
                current.found.add_problem(problem(text, true));
            }),
            Seen::Damaged(damage, what) => {
                let repair = self.repair(&damage, path)?;
                tracing::warn!(%path, %what, ?repair, "damaged on the drive");
                let (repaired, then) = match repair {
                    Repair::Waits(from) => (true, format!("a flush writes it again, {from}")),
                    Repair::Not(why) => (false, why),
                    Repair::Changed => {
                        self.note(key, entry, |current| current.found.left_out += 1);
                        return Ok(());
                    }
                };
                self.note(key, entry, |current| {
                    current.found.read.add(entry.size);
                    current.found.damaged += 1;
                    current.found.repaired += u64::from(repaired);
                    let text = format!("{what}; {then}");
                    let problem = problem(text, repaired);
                    current.found.add_problem(match repaired {
                        true => problem.marked(),
                        false => problem,
                    });
                });
            }
        }
        Ok(())
    }

    /// Notes that the scrub is done with a file.
    fn note(&self, key: &NameKey, entry: &PlacedEntry, change: impl FnOnce(&mut Current)) {
        self.service
            .scrubber
            .change(self.round, |current, reading, _| {
                change(current);
                current.end_file(key, entry.size);
                *reading = 0;
            });
    }

    /// Returns whether damaged files are to be repaired.
    pub(super) fn repairs(&self) -> Result<bool, Halt> {
        let only_looks = self.current(|current| current.only_looks)?;
        Ok(!only_looks && !self.service.read_only)
    }

    /// Returns whether files are to be repaired that may have been changed on purpose.
    pub(super) fn repairs_steady(&self) -> Result<bool, Halt> {
        self.current(|current| current.repairs_steady)
    }

    /// Notes that `bytes` of a file have been read, `at` in all.
    pub(super) fn note_read(&mut self, at: u64, bytes: u64) -> Result<(), Halt> {
        let rate = self.current(|current| current.rate)?;
        let rate = rate.unwrap_or_else(|| self.service.live.read().scrub_rate);
        self.pace.note(Instant::now(), bytes, rate);
        self.service
            .scrubber
            .change(self.round, |_, reading, _| *reading = at);
        Ok(())
    }

    /// Waits until the next block may be read.
    ///
    /// # Errors
    /// If none is to be read any more.
    pub(super) fn gate(&mut self) -> Result<(), Halt> {
        loop {
            self.check()?;
            let reason = self.what_to_wait_for();
            self.service.scrubber.set_waits_for(reason);
            let now = Instant::now();
            let left = self.pace.wait(now);
            if reason.is_none() && left.is_zero() {
                self.busy.note_block(now);
                return Ok(());
            }
            let rest = match reason {
                Some(_) => LOOK_EVERY,
                None => left.min(LOOK_EVERY),
            };
            self.stop.rest(rest);
        }
    }

    /// Checks that the scrub is wanted and that the drive is the one that it began with.
    fn check(&self) -> Result<(), Halt> {
        let service = self.service;
        let is_ending = self.stop.is_given() || service.ending.load(Ordering::Acquire);
        if is_ending || !service.scrubber.goes_on(self.round) {
            return Err(Halt::Over);
        }
        let is_it = (service.drive.get()).is_some_and(|now| Arc::ptr_eq(&now, &self.backend));
        match is_it && service.monitor.presence() == Presence::Attached {
            true => Ok(()),
            false => Err(Halt::Away),
        }
    }

    fn what_to_wait_for(&mut self) -> Option<&'static str> {
        let service = self.service;
        let is_scheduled = self.current(|current| current.is_scheduled);
        if service.flusher.is_running() {
            Some("a flush")
        } else if service.drive.stalled().is_some() {
            Some("the drive, which does not answer")
        } else if service.monitor.is_unfinished() {
            Some("an interrupted batch, which must be finished first")
        } else if is_scheduled.is_ok_and(|it| it) && service.hold().is_some() {
            Some("the end of a pause, of quiet hours, or of battery power")
        } else if (self.busy).gives_way(Instant::now(), service.fs.drive_reads()) {
            Some("programs that read from the drive")
        } else {
            None
        }
    }

    /// Waits until the index knows all files. Directories that cannot be read are left out.
    fn wait_for_import(&mut self) -> Result<(), Halt> {
        loop {
            self.check()?;
            let progress = self.service.fs.import_progress()?;
            if progress.dirs_left <= progress.unreadable_count {
                return Ok(());
            }
            let reason = "the import of the drive's directories";
            self.service.scrubber.set_waits_for(Some(reason));
            self.stop.rest(LOOK_EVERY);
        }
    }
}
