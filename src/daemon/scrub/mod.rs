//! Scrubs: reads all files of the drive, compares them with the hashes that the index has, and
//! repairs what is damaged where the right bytes are known.
//!
//! Drives lose bits, and controllers write to the wrong place. Size and time of such a file stay as
//! they are, so no look for changes of others finds it, and the damage is copied into every backup.
//! A file whose size or time differs is no damage: others have changed it, and the next look takes
//! it in. Nothing here writes to the drive: a damaged file is marked as dirty, with the right bytes
//! in the cache ([`crate::vfs::Fs::rewrite_cached`]), and the next flush replaces it like any
//! other.
//!
//! A file of which no hash is known gets one from its first scrub, so that the next one compares.
//!
//! One thread does all of it, and no request waits for it. It reads at a limited rate, past the
//! page cache. It rests while a flush runs, and nearly rests while programs read from the drive.
//!
//! State: [`Memory`], in a file of the cache, with the last file that a scrub is done with. Files
//! are taken in the order of directory and name, which stays, so a scrub that was stopped by a
//! command, the end of the daemon or the loss of the drive goes on there. What it has repaired is
//! in the index. A crash costs at most what was read since the last write of the file.
//!
//! Lock order: the state of the scrubs, then that of the schedule. The index is not locked under
//! them, but for [`Scrubber::lines`].

mod copies;
mod file;
mod memory;
mod pace;
mod pass;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::memory::{Current, Found, Memory, Problem};
use self::pass::{Halt, Pass};
use super::monitor::Presence;
use super::service::Service;
use super::stop::Stop;
use super::when::{Schedule, Timing};
use crate::control::protocol::{Amount, ScrubReport, ScrubStatus, ScrubWish};
use crate::core::{Clock, Phase, Progress, Timestamp};
use crate::daemon::service::rfc3339;
use crate::index::{Flags, Index};
use crate::plan::planner::NameKey;
use crate::vfs::FsError;

/// How often it is considered whether to begin or to go on.
const CONSIDER_EVERY: Duration = Duration::from_millis(500);

/// The pause after the cache or the drive has failed.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// How often the progress is stored.
const STORE_EVERY: Duration = Duration::from_secs(5);

/// The file with the progress of the schedule.
const WHEN: &str = "scrub-when.json";

/// The most damaged files that the user is reminded of one by one.
const NAMED: usize = 20;

/// The scrubs of a drive.
pub(super) struct Scrubber {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    timing: Timing,
    state: Mutex<State>,
}

struct State {
    memory: Memory,
    /// The number of the present scrub, or of the next one.
    round: u64,
    /// Scrubs up to this number have come to their end.
    ended: u64,
    /// What the present one waits for.
    waits_for: Option<String>,
    /// All files that it is about; zero before it is known.
    total: Amount,
    /// The bytes of the file under way that have been read.
    reading: u64,
    stored: Instant,
}

impl Scrubber {
    /// Reads the state from the cache in `dir`.
    pub(super) fn open(dir: &Path, clock: Arc<dyn Clock>) -> Scrubber {
        let path = memory::file(dir);
        let state = State {
            memory: Memory::read(&path),
            round: 1,
            ended: 0,
            waits_for: None,
            total: Amount::default(),
            reading: 0,
            stored: Instant::now(),
        };
        Scrubber {
            path,
            timing: Timing::at(dir.join(WHEN), clock.clone()),
            clock,
            state: Mutex::new(state),
        }
    }

    /// Begins a scrub, or lets the one that is there go on. Returns its number.
    pub(super) fn begin(&self, wish: ScrubWish) -> u64 {
        let mut state = self.state.lock();
        if wish.restart && state.memory.current.take().is_some() {
            state.round += 1;
        }
        let now = self.clock.now().0;
        let current = state.memory.current.get_or_insert_with(|| new(now));
        current.is_wanted = true;
        current.is_scheduled = false;
        current.only_looks = wish.only_look;
        current.repairs_steady = wish.repair_steady;
        current.rate = wish.rate;
        state.memory.write(&self.path);
        state.round
    }

    /// The same for the schedule.
    fn begin_scheduled(&self) {
        let mut state = self.state.lock();
        let now = self.clock.now().0;
        let current = state.memory.current.get_or_insert_with(|| new(now));
        if !current.is_wanted {
            current.is_wanted = true;
            current.is_scheduled = true;
            current.rate = None;
            current.only_looks = false;
            current.repairs_steady = false;
        }
        state.memory.write(&self.path);
    }

    /// Stops the present scrub. It goes on with the next command or run of the schedule.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        if let Some(current) = &mut state.memory.current {
            current.is_wanted = false;
            state.memory.write(&self.path);
        }
        state.waits_for = None;
    }

    /// Returns the number of the scrub that is to go on.
    fn wanted(&self) -> Option<u64> {
        let state = self.state.lock();
        let is_wanted = state.memory.current.as_ref().is_some_and(|it| it.is_wanted);
        is_wanted.then_some(state.round)
    }

    /// Returns whether the scrub with this number is to go on.
    pub(super) fn goes_on(&self, round: u64) -> bool {
        self.wanted() == Some(round)
    }

    /// Returns whether the scrub with this number has come to its end.
    pub(super) fn has_ended(&self, round: u64) -> bool {
        self.state.lock().ended >= round
    }

    /// Returns the progress of the present scrub.
    pub(super) fn progress(&self) -> Progress {
        let state = self.state.lock();
        let visited = (state.memory.current.as_ref()).map_or(Amount::default(), |it| it.visited);
        Progress {
            phase: Phase::Scrub,
            files_done: visited.files,
            files_total: state.total.files,
            bytes_done: visited.bytes.saturating_add(state.reading),
            bytes_total: state.total.bytes,
            silent_seconds: 0,
        }
    }

    /// Returns what is known, with the next run of `schedule`.
    pub(super) fn status(&self, schedule: Option<&Schedule>, index: &Index) -> ScrubStatus {
        let next = schedule.and_then(|schedule| self.timing.next_run(schedule));
        let state = self.state.lock();
        let current = state.memory.current.clone();
        let last = state.memory.last.clone();
        let mut status = ScrubStatus {
            last: last.as_ref().map(Found::report),
            current: current.as_ref().map(|it| it.found.report()),
            running: current.as_ref().is_some_and(|it| it.is_wanted),
            waits_for: state.waits_for.clone(),
            total: state.total,
            next_run: next.map(rfc3339),
        };
        drop(state);
        if let (Some(report), Some(found)) = (&mut status.last, &last) {
            report.waiting = waiting(index, &found.problems);
        }
        if let (Some(report), Some(current)) = (&mut status.current, &current) {
            report.waiting = waiting(index, &current.found.problems);
        }
        status
    }

    /// Returns what the last scrub that came to its end has found.
    pub(super) fn last(&self) -> Option<ScrubReport> {
        self.state.lock().memory.last.as_ref().map(Found::report)
    }

    /// Returns when that has ended.
    pub(super) fn last_ended(&self) -> Option<Timestamp> {
        let state = self.state.lock();
        let ended = state.memory.last.as_ref().and_then(|it| it.ended);
        ended.map(Timestamp)
    }

    /// Returns what the user must know, a line each: files that were damaged and still are.
    pub(super) fn lines(&self, index: &Index) -> Vec<String> {
        let (problems, repaired, marked) = {
            let state = self.state.lock();
            let current = state.memory.current.iter().map(|it| &it.found);
            let all = state.memory.last.iter().chain(current);
            let open = all.clone().flat_map(|it| it.problems.iter());
            let open: Vec<Problem> = open.filter(|it| !it.repaired).cloned().collect();
            let marked = all.clone().flat_map(|it| it.problems.iter());
            let marked: Vec<Problem> = marked.filter(|it| it.marked).cloned().collect();
            (open, all.map(|it| it.repaired).sum::<u64>(), marked)
        };
        let mut lines: Vec<String> = Vec::new();
        let waiting = waiting(index, &marked);
        for (count, then) in [
            (waiting, "the next flush writes them again"),
            (repaired.saturating_sub(waiting), "they were written again"),
        ] {
            if count > 0 {
                lines.push(format!(
                    "damaged files that a scrub has found on the drive: {count}; {then}. Check the \
                     drive (smartctl -a), and keep a backup"
                ));
            }
        }
        let mut more = 0_u64;
        for problem in still_open(index, problems) {
            let line = problem.line();
            if lines.contains(&line) {
                continue;
            }
            match lines.len() < NAMED {
                true => lines.push(line),
                false => more += 1,
            }
        }
        if more > 0 {
            lines.push(format!(
                "and {more} more files; `ferryfs status --json` names them"
            ));
        }
        lines
    }

    /// Notes what the present scrub does.
    fn change(&self, round: u64, change: impl FnOnce(&mut Current, &mut u64, &mut Amount)) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.round == round
            && let Some(current) = &mut state.memory.current
        {
            change(current, &mut state.reading, &mut state.total);
            if state.stored.elapsed() >= STORE_EVERY {
                state.memory.write(&self.path);
                state.stored = Instant::now();
            }
        }
    }

    /// Stores the progress.
    fn store(&self) {
        self.state.lock().memory.write(&self.path);
    }

    fn set_waits_for(&self, reason: Option<&str>) {
        let mut state = self.state.lock();
        if state.waits_for.as_deref() != reason {
            state.waits_for = reason.map(Into::into);
        }
    }

    /// Notes that all files have been read.
    fn end(&self, round: u64) {
        let mut state = self.state.lock();
        if state.round != round {
            return;
        }
        if let Some(current) = state.memory.current.take() {
            let mut found = current.found;
            found.ended = Some(self.clock.now().0);
            state.memory.last = Some(found);
        }
        state.memory.write(&self.path);
        state.ended = round;
        state.round += 1;
        state.total = Amount::default();
    }
}

fn new(now: i64) -> Current {
    let found = Found {
        started: now,
        ..Found::default()
    };
    Current {
        found,
        ..Current::default()
    }
}

/// Leaves out problems of files that have other versions on the drive by now.
fn still_open(index: &Index, mut problems: Vec<Problem>) -> Vec<Problem> {
    if problems.is_empty() {
        return problems;
    }
    let mut state = index.lock();
    problems.retain(|problem| {
        let placed = (problem.key()).map(|NameKey { parent, name }| state.placed(parent, &name));
        match placed {
            Some(Ok(Some(entry))) => problem.is_about(&entry),
            Some(Ok(None)) | None => false,
            Some(Err(_)) => true,
        }
    });
    problems
}

/// Returns how many of the marked files still wait for the flush that writes them again.
fn waiting(index: &Index, problems: &[Problem]) -> u64 {
    let mut marked = problems.iter().filter(|it| it.marked).peekable();
    if marked.peek().is_none() {
        return 0;
    }
    let mut state = index.lock();
    let mut waits = |problem: &Problem| {
        let NameKey { parent, name } = problem.key()?;
        let entry = state.placed(parent, &name).ok()??;
        let inode = state.inode(entry.ino).ok()??;
        Some(problem.is_before_flush(&entry) && inode.flags.has(Flags::DATA_DIRTY))
    };
    marked.filter(|it| waits(it) == Some(true)).count() as u64
}

/// Begins scrubs when the schedule says so, and carries out those that are wanted, until `stop`.
pub(super) fn run(service: &Service, stop: &Stop) {
    let scrubber = &service.scrubber;
    while !stop.is_given() {
        stop.rest(CONSIDER_EVERY);
        let is_there = service.monitor.presence() == Presence::Attached
            && service.drive.is_attached()
            && !service.ending.load(Ordering::Acquire);
        let schedule = service.live.read().scrub.clone();
        if let Some(schedule) = schedule.filter(|schedule| scrubber.timing.is_due(schedule))
            && is_there
            && service.hold().is_none()
        {
            scrubber.begin_scheduled();
            scrubber.timing.note_run(&schedule);
        }
        let Some(round) = scrubber.wanted() else {
            continue;
        };
        if !is_there || stop.is_given() {
            scrubber.set_waits_for(Some("the drive"));
            continue;
        }
        let Some(backend) = service.drive.get() else {
            continue;
        };
        let done = Pass::new(service, stop, round, backend).run();
        scrubber.set_waits_for(None);
        match done {
            Ok(()) => {
                scrubber.end(round);
                let last = scrubber.last().unwrap_or_default();
                tracing::info!(
                    files = last.read.files,
                    damaged = last.damaged,
                    repaired = last.repaired,
                    "scrubbed"
                );
            }
            Err(halt) => {
                if let Some(why) = why_halted(&halt, service.monitor.presence()) {
                    scrubber.change(round, |current, _, _| current.note_halt(why));
                }
                scrubber.store();
                if let Halt::Failed(error) = &halt {
                    tracing::warn!(%error, "the scrub is tried again in a while");
                    scrubber.set_waits_for(Some("the drive or the cache, after an error"));
                    stop.rest(AFTER_FAILURE);
                }
            }
        }
    }
}

/// Returns what halted a scrub, if the file under way may have done so.
fn why_halted(halt: &Halt, presence: Presence) -> Option<String> {
    match halt {
        Halt::Over => None,
        // One that was ejected is no failure.
        Halt::Away if presence != Presence::Gone => None,
        Halt::Away => Some("the drive went away while it was read".into()),
        Halt::Failed(FsError::Backend(error)) if error.is_gone() => {
            Some(format!("the drive went away while it was read: {error}"))
        }
        Halt::Failed(error) => Some(format!("it was read or repaired, and failed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::time::CoarseClock;

    fn open(dir: &Path) -> Scrubber {
        Scrubber::open(dir, Arc::new(CoarseClock))
    }

    /// What a pass does with one file.
    fn pass_one(scrubber: &Scrubber, round: u64, name: &[u8]) {
        scrubber.change(round, |current, _, _| {
            current.after = Some((1, name.to_vec()));
            current.visited.add(5);
            current.found.read.add(5);
        });
        scrubber.store();
    }

    #[test]
    fn a_scrub_that_was_stopped_goes_on_where_it_was_also_in_another_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let scrubber = open(dir.path());
        assert_eq!(scrubber.wanted(), None);
        let round = scrubber.begin(ScrubWish::default());
        pass_one(&scrubber, round, b"a");
        scrubber.stop();
        assert!(!scrubber.goes_on(round) && !scrubber.has_ended(round));
        drop(scrubber);

        let scrubber = open(dir.path());
        assert_eq!(scrubber.wanted(), None, "it was stopped by the user");
        let round = scrubber.begin(ScrubWish::default());
        assert_eq!(scrubber.progress().files_done, 1);
        drop(scrubber);

        let scrubber = open(dir.path());
        assert!(scrubber.wanted().is_some(), "it goes on by itself");
        let again = scrubber.begin(ScrubWish {
            restart: true,
            ..ScrubWish::default()
        });
        assert!(again > round && scrubber.progress().files_done == 0);
        scrubber.end(again);
        assert!(scrubber.has_ended(again));
        assert_eq!(scrubber.wanted(), None);
        assert!(open(dir.path()).last().is_some());
    }

    #[test]
    fn the_schedule_lets_a_stopped_scrub_go_on_and_does_not_disturb_one_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        let scrubber = open(dir.path());
        let round = scrubber.begin(ScrubWish {
            rate: Some(7),
            ..ScrubWish::default()
        });
        let rate = |scrubber: &Scrubber| scrubber.state.lock().memory.current.clone()?.rate;
        scrubber.begin_scheduled();
        assert_eq!(rate(&scrubber), Some(7));
        pass_one(&scrubber, round, b"a");
        scrubber.stop();
        scrubber.begin_scheduled();
        assert!(scrubber.goes_on(round));
        assert_eq!((rate(&scrubber), scrubber.progress().files_done), (None, 1));
        assert!(
            scrubber
                .state
                .lock()
                .memory
                .current
                .clone()
                .unwrap()
                .found
                .started
                > 0
        );
    }
}
