//! The state behind the decision whether a flush may begin by itself.
//!
//! Lock order: the memory, then the next run. No other code is called under them but the clock.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::memory::{Memory, Pause, file};
use super::power;
use super::quiet::QuietHours;
use super::schedule::Schedule;
use crate::core::{Clock, Timestamp};
use crate::sys::time::local;

/// A clock that was set back by more than this counts as set, not as corrected. Runs that it shows
/// a second time are made a second time.
const SET_BACK: Duration = Duration::from_secs(15 * 60);

/// How long the next run is remembered: the time zone may change meanwhile.
const REMEMBER: Duration = Duration::from_secs(60);

/// Why no flush begins by itself now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Hold {
    /// The user has paused them, until a time or until they are resumed.
    Paused(Option<Timestamp>),
    /// Quiet hours, until this time of the day.
    Quiet(String),
    /// The machine runs on its battery.
    Battery,
}

impl Hold {
    /// Returns whether a flush begins all the same while the SSD is nearly full. A pause is what
    /// the user has asked for just now, perhaps to use the drive otherwise.
    pub(in crate::daemon) fn yields_to_full_ssd(&self) -> bool {
        !matches!(self, Hold::Paused(_))
    }
}

/// The next run of a schedule, as it was found last.
#[derive(Clone, Debug)]
struct Next {
    schedule: Schedule,
    done_until: Timestamp,
    at: Option<Timestamp>,
    found: Instant,
}

/// Pauses, and the progress of the schedule.
pub(in crate::daemon) struct Timing {
    clock: Arc<dyn Clock>,
    path: PathBuf,
    memory: Mutex<Memory>,
    next: Mutex<Option<Next>>,
}

impl Timing {
    /// Reads the state from the cache in `dir`.
    pub(in crate::daemon) fn open(dir: &Path, clock: Arc<dyn Clock>) -> Timing {
        Timing::at(file(dir), clock)
    }

    /// Reads the state in `path`, a file of the cache.
    pub(in crate::daemon) fn at(path: PathBuf, clock: Arc<dyn Clock>) -> Timing {
        Timing {
            clock,
            memory: Mutex::new(Memory::read(&path)),
            path,
            next: Mutex::new(None),
        }
    }

    /// Pauses automatic flushes for `time`, or until they are resumed.
    ///
    /// # Errors
    /// If the pause would be forgotten with the daemon; it is in force all the same.
    pub(in crate::daemon) fn pause(&self, time: Option<Duration>) -> io::Result<()> {
        let now = self.clock.now();
        let pause = match time {
            Some(time) => {
                let time = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
                Pause::until(Timestamp(now.0.saturating_add(time)))
            }
            None => Pause::UntilResumed,
        };
        let mut memory = self.memory.lock();
        memory.pause = Some(pause);
        memory.write(&self.path)
    }

    /// Ends a pause.
    ///
    /// # Errors
    /// If the pause would come back with the next daemon.
    pub(in crate::daemon) fn resume(&self) -> io::Result<()> {
        let mut memory = self.memory.lock();
        memory.pause = None;
        memory.write(&self.path)
    }

    /// Why no flush may begin by itself now, if there is a reason.
    pub(in crate::daemon) fn hold(
        &self,
        quiet: &[QuietHours],
        only_on_mains: bool,
    ) -> Option<Hold> {
        let now = self.clock.now();
        let minute = local(now).map(|local| (local.at.hour * 60 + local.at.minute) as u32);
        let on_battery = only_on_mains && power::is_on_battery();
        hold(self.memory.lock().pause, now, quiet, minute, on_battery)
    }

    /// Returns whether a run of the schedule is due. It stays due until [`Timing::note_run`]: what
    /// was missed during sleep, or without the drive, is made up once.
    pub(in crate::daemon) fn is_due(&self, schedule: &Schedule) -> bool {
        let now = self.clock.now();
        self.next_run(schedule).is_some_and(|next| next <= now)
    }

    /// The next run of the schedule; one that has passed is due.
    pub(in crate::daemon) fn next_run(&self, schedule: &Schedule) -> Option<Timestamp> {
        let done_until = self.done_until(schedule);
        let mut next = self.next.lock();
        if let Some(next) = &*next
            && next.schedule == *schedule
            && next.done_until == done_until
            && next.found.elapsed() < REMEMBER
        {
            return next.at;
        }
        let at = schedule.next_after(done_until);
        *next = Some(Next {
            schedule: schedule.clone(),
            done_until,
            at,
            found: Instant::now(),
        });
        at
    }

    /// The run that was due has been made.
    pub(in crate::daemon) fn note_run(&self, schedule: &Schedule) {
        self.note(schedule, self.clock.now(), &mut self.memory.lock());
    }

    /// The time up to which all runs are done. A schedule that is new here begins now.
    fn done_until(&self, schedule: &Schedule) -> Timestamp {
        let now = self.clock.now();
        let mut memory = self.memory.lock();
        let is_same = memory.schedule.as_deref() == Some(&schedule.to_string());
        let known = memory.done_until.map(Timestamp).filter(|_| is_same);
        match known.filter(|done| done.since(now) < SET_BACK) {
            Some(done) => done,
            None => {
                self.note(schedule, now, &mut memory);
                now
            }
        }
    }

    fn note(&self, schedule: &Schedule, time: Timestamp, memory: &mut Memory) {
        memory.schedule = Some(schedule.to_string());
        memory.done_until = Some(time.0);
        if let Err(error) = memory.write(&self.path) {
            tracing::warn!(%error, "the progress of the schedule is forgotten with this daemon");
        }
    }
}

fn hold(
    pause: Option<Pause>,
    now: Timestamp,
    quiet: &[QuietHours],
    minute: Option<u32>,
    on_battery: bool,
) -> Option<Hold> {
    if let Some(pause) = pause
        && pause.end().is_none_or(|end| now < end)
    {
        return Some(Hold::Paused(pause.end()));
    }
    let quiet = minute.and_then(|minute| quiet.iter().find(|hours| hours.has(minute)));
    match quiet {
        Some(hours) => Some(Hold::Quiet(hours.end())),
        None => on_battery.then_some(Hold::Battery),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that shows what it was set to.
    struct Set(Mutex<Timestamp>);

    impl Clock for Set {
        fn now(&self) -> Timestamp {
            *self.0.lock()
        }
    }

    impl Set {
        /// Moves it, also back.
        fn pass(&self, seconds: i64) {
            self.0.lock().0 += seconds * 1_000_000_000;
        }
    }

    const HOUR: i64 = 3600;

    fn started() -> (tempfile::TempDir, Arc<Set>, Timing) {
        let dir = tempfile::tempdir().unwrap();
        // A quarter past some hour in every time zone that has whole hours.
        let clock = Arc::new(Set(Mutex::new(Timestamp::from_parts(
            1_795_132_800 + 900,
            0,
        ))));
        let timing = Timing::open(dir.path(), clock.clone());
        (dir, clock, timing)
    }

    fn hourly() -> Schedule {
        "0 * * * *".parse().unwrap()
    }

    #[test]
    fn what_was_missed_is_made_up_once() {
        let (_dir, clock, timing) = started();
        assert!(
            !timing.is_due(&hourly()),
            "a new schedule has missed nothing"
        );
        clock.pass(HOUR);
        assert!(timing.is_due(&hourly()));
        // Asleep for a day, or without the drive.
        clock.pass(24 * HOUR);
        assert!(timing.is_due(&hourly()));
        timing.note_run(&hourly());
        assert!(!timing.is_due(&hourly()));
        clock.pass(HOUR);
        assert!(timing.is_due(&hourly()));
    }

    #[test]
    fn what_was_missed_without_a_daemon_is_made_up_too() {
        let (dir, clock, timing) = started();
        assert!(!timing.is_due(&hourly()));
        drop(timing);
        clock.pass(2 * HOUR);
        let timing = Timing::open(dir.path(), clock.clone());
        assert!(timing.is_due(&hourly()));
        let other: Schedule = "30 * * * *".parse().unwrap();
        assert!(!timing.is_due(&other), "another schedule is new");
    }

    #[test]
    fn a_clock_that_is_set_back_begins_again_and_a_small_correction_does_not() {
        let (_dir, clock, timing) = started();
        clock.pass(45 * 60 + 1);
        timing.note_run(&hourly());
        clock.pass(-2);
        assert!(!timing.is_due(&hourly()), "just before the full hour again");
        clock.pass(3);
        assert!(!timing.is_due(&hourly()), "the hour has had its run");
        clock.pass(-30 * 24 * HOUR);
        assert!(!timing.is_due(&hourly()));
        clock.pass(HOUR);
        assert!(timing.is_due(&hourly()), "not only in a month");
    }

    #[test]
    fn a_pause_ends_by_itself_and_survives_the_daemon() {
        let (dir, clock, timing) = started();
        timing.pause(Some(Duration::from_secs(600))).unwrap();
        let timing_again = Timing::open(dir.path(), clock.clone());
        let until = Timestamp(clock.now().0 + 600_000_000_000);
        assert_eq!(
            timing_again.hold(&[], false),
            Some(Hold::Paused(Some(until)))
        );
        clock.pass(600);
        assert_eq!(timing_again.hold(&[], false), None);
        timing.pause(None).unwrap();
        clock.pass(1_000_000);
        assert_eq!(timing.hold(&[], false), Some(Hold::Paused(None)));
        timing.resume().unwrap();
        assert_eq!(Timing::open(dir.path(), clock).hold(&[], false), None);
    }

    #[test]
    fn a_damaged_memory_is_as_none() {
        let (dir, clock, _) = started();
        std::fs::write(file(dir.path()), b"{\"pause\":").unwrap();
        let timing = Timing::open(dir.path(), clock);
        assert_eq!(timing.hold(&[], false), None);
        assert!(!timing.is_due(&hourly()));
    }

    #[test]
    fn a_pause_counts_more_than_quiet_hours_and_these_more_than_the_battery() {
        let quiet = ["19:00-23:30".parse().unwrap()];
        let now = Timestamp(1000);
        let at = |pause, minute, battery| hold(pause, now, &quiet, Some(minute), battery);
        let end = Timestamp(1001);
        let paused = at(Some(Pause::until(end)), 20 * 60, true);
        assert_eq!(paused, Some(Hold::Paused(Some(end))));
        assert!(!paused.unwrap().yields_to_full_ssd());
        let quiet_now = at(Some(Pause::until(now)), 20 * 60, true);
        assert_eq!(quiet_now, Some(Hold::Quiet("23:30".into())));
        assert!(quiet_now.unwrap().yields_to_full_ssd());
        assert_eq!(at(None, 12 * 60, true), Some(Hold::Battery));
        assert_eq!(at(None, 12 * 60, false), None);
    }
}
