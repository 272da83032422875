//! A schedule in the syntax of crontab(5), in local time.
//!
//! The crate `croner` parses it and finds the times on the clock that match. Which instants these
//! are is decided here, since a clock on the wall skips and repeats an hour each year:
//! - A time that is skipped is replaced by the end of the gap, if hour and minute are fixed, as in
//!   `30 2 * * *`. A schedule with a `*` or a step in them has other times soon.
//! - Of a time that comes twice the first one counts if hour and minute are fixed; else both do.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Local, LocalResult, NaiveDateTime, TimeDelta, TimeZone, Utc};
use croner::parser::{CronParser, Seconds, Year};
use croner::{Cron, JobType};
use serde::{Deserialize, Serialize};

use crate::core::Timestamp;

/// No clock is set by more than this for daylight-saving time; the largest on record is two hours.
const LARGEST_SHIFT: TimeDelta = TimeDelta::hours(3);

/// A clock that moves to another date line skips a whole day.
const LONGEST_GAP: TimeDelta = TimeDelta::hours(25);

/// The names for usual schedules.
const NAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// The times at which to flush.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schedule {
    text: String,
    cron: Cron,
}

/// Why text is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// It cannot be parsed.
    #[error("not a schedule: {0}; write it like \"0 2 * * *\" (minute, hour, day, month, weekday)")]
    Form(String),
    /// It begins with `@` and is not known.
    #[error("unknown name; known are @hourly, @daily, @weekly, @monthly, @yearly")]
    Name,
    /// No day matches it.
    #[error("never comes: no such day is in the calendar")]
    Never,
}

impl Schedule {
    /// Returns the first time after `after`; `None` if the calendar ends before.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        self.next_in(after, &Local)
    }

    fn next_in<Z: TimeZone>(&self, after: Timestamp, zone: &Z) -> Option<Timestamp> {
        let (secs, nanos) = after.parts();
        let after = DateTime::from_timestamp(secs, nanos)?;
        let is_fixed = self.cron.determine_job_type() == JobType::FixedTime;
        // The clock may show an earlier time later.
        let mut on_clock = after.with_timezone(zone).naive_local() - LARGEST_SHIFT;
        let mut best: Option<DateTime<Utc>> = None;
        loop {
            on_clock = self.matching(on_clock)?;
            let found = instants(on_clock, is_fixed, zone);
            let later = found.into_iter().flatten().filter(|time| *time > after);
            best = best.into_iter().chain(later).min();
            if let Some(best) = best
                && on_clock > best.with_timezone(zone).naive_local() + LARGEST_SHIFT
            {
                return Some(Timestamp::from_parts(best.timestamp(), 0));
            }
            on_clock += TimeDelta::seconds(1);
        }
    }

    /// The first matching time of the clock at or after `from`, in a zone that shifts nothing.
    fn matching(&self, from: NaiveDateTime) -> Option<NaiveDateTime> {
        let found = self.cron.find_next_occurrence(&from.and_utc(), true);
        Some(found.ok()?.naive_utc())
    }
}

/// The instants, at most two, at which a time on the clock counts.
fn instants<Z: TimeZone>(
    on_clock: NaiveDateTime,
    is_fixed: bool,
    zone: &Z,
) -> [Option<DateTime<Utc>>; 2] {
    let utc = |time: DateTime<Z>| Some(time.with_timezone(&Utc));
    match zone.from_local_datetime(&on_clock) {
        LocalResult::Single(time) => [utc(time), None],
        LocalResult::Ambiguous(first, _) if is_fixed => [utc(first), None],
        LocalResult::Ambiguous(first, second) => [utc(first), utc(second)],
        LocalResult::None if is_fixed => [after_gap(on_clock, zone), None],
        LocalResult::None => [None, None],
    }
}

/// The first instant after the gap that `on_clock` is in, to the minute.
fn after_gap<Z: TimeZone>(on_clock: NaiveDateTime, zone: &Z) -> Option<DateTime<Utc>> {
    let mut later = on_clock;
    while later < on_clock + LONGEST_GAP {
        later += TimeDelta::minutes(1);
        if let Some(time) = zone.from_local_datetime(&later).earliest() {
            return Some(time.with_timezone(&Utc));
        }
    }
    None
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Schedule, ScheduleError> {
        let text = text.trim();
        let fields = match NAMES.iter().find(|(name, _)| *name == text) {
            Some((_, fields)) => fields,
            None if text.starts_with('@') => return Err(ScheduleError::Name),
            None => text,
        };
        let parser = CronParser::builder();
        let parser = parser.seconds(Seconds::Disallowed).year(Year::Disallowed);
        let cron = (parser.build().parse(fields)).map_err(|error| form(&error.to_string()))?;
        let schedule = Schedule {
            text: text.into(),
            cron,
        };
        let now = Timestamp::from(std::time::SystemTime::now());
        match schedule.next_in(now, &Utc) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleError::Never),
        }
    }
}

/// The parser's message as the end of a sentence.
fn form(message: &str) -> ScheduleError {
    let message = message.rsplit(": ").next().unwrap_or(message);
    ScheduleError::Form(message.trim_end_matches('.').to_lowercase())
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Schedule) -> bool {
        self.text == other.text
    }
}

impl Eq for Schedule {}

impl TryFrom<String> for Schedule {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Schedule, ScheduleError> {
        text.parse()
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> String {
        schedule.text
    }
}

#[cfg(test)]
mod tests;
