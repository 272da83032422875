use chrono::{FixedOffset, NaiveDate, Timelike};
use proptest::prelude::*;

use super::*;

/// A zone with the rules of Central Europe for 2026: 29 March from 2 to 3 h, and 25 October from 3
/// to 2 h.
#[derive(Clone, Copy, Debug)]
struct Central;

fn date(month: u32, day: u32, hour: u32) -> NaiveDateTime {
    let day = NaiveDate::from_ymd_opt(2026, month, day).unwrap();
    day.and_hms_opt(hour, 0, 0).unwrap()
}

fn hours(hours: i32) -> FixedOffset {
    FixedOffset::east_opt(hours * 3600).unwrap()
}

impl TimeZone for Central {
    type Offset = FixedOffset;

    fn from_offset(_: &FixedOffset) -> Central {
        Central
    }

    fn offset_from_local_date(&self, _: &NaiveDate) -> LocalResult<FixedOffset> {
        LocalResult::Single(hours(1))
    }

    fn offset_from_local_datetime(&self, local: &NaiveDateTime) -> LocalResult<FixedOffset> {
        let is_within = |from, to| *local >= from && *local < to;
        if is_within(date(3, 29, 2), date(3, 29, 3)) {
            LocalResult::None
        } else if is_within(date(10, 25, 2), date(10, 25, 3)) {
            LocalResult::Ambiguous(hours(2), hours(1))
        } else if is_within(date(3, 29, 3), date(10, 25, 3)) {
            LocalResult::Single(hours(2))
        } else {
            LocalResult::Single(hours(1))
        }
    }

    fn offset_from_utc_date(&self, _: &NaiveDate) -> FixedOffset {
        hours(1)
    }

    fn offset_from_utc_datetime(&self, utc: &NaiveDateTime) -> FixedOffset {
        let is_summer = *utc >= date(3, 29, 1) && *utc < date(10, 25, 1);
        hours(if is_summer { 2 } else { 1 })
    }
}

fn utc(text: &str) -> Timestamp {
    let time = DateTime::parse_from_rfc3339(text).unwrap();
    Timestamp::from_parts(time.timestamp(), 0)
}

/// The next times after `from`, in RFC 3339.
fn times(schedule: &str, from: &str, count: usize) -> Vec<String> {
    let schedule: Schedule = schedule.parse().unwrap();
    let mut at = utc(from);
    let next = std::iter::from_fn(|| {
        at = schedule.next_in(at, &Central)?;
        let (secs, _) = at.parts();
        let time = Central.timestamp_opt(secs, 0).unwrap();
        Some(time.to_rfc3339())
    });
    next.take(count).collect()
}

#[test]
fn fields_names_lists_ranges_and_steps_are_those_of_cron() {
    for (schedule, next) in [
        ("0 2 * * *", "2026-01-02T02:00:00+01:00"),
        ("@daily", "2026-01-02T00:00:00+01:00"),
        ("@hourly", "2026-01-01T13:00:00+01:00"),
        ("*/20 * * * *", "2026-01-01T12:20:00+01:00"),
        ("5,50 13-15 * * *", "2026-01-01T13:05:00+01:00"),
        ("0 4 * FEB MON-WED", "2026-02-02T04:00:00+01:00"),
        ("0 0 13 * FRI", "2026-01-02T00:00:00+01:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00+01:00"),
        ("30 6 * * 7", "2026-01-04T06:30:00+01:00"),
    ] {
        assert_eq!(
            times(schedule, "2026-01-01T12:00:30+01:00", 1),
            [next],
            "{schedule}"
        );
    }
}

#[test]
fn what_is_no_schedule_or_never_comes_is_refused() {
    for text in ["", "0 2 * *", "0 2 * * * *", "60 * * * *", "x * * * *"] {
        let error = text.parse::<Schedule>().unwrap_err();
        assert!(matches!(error, ScheduleError::Form(_)), "{text}: {error}");
    }
    let name = "@reboot".parse::<Schedule>();
    assert_eq!(name.unwrap_err(), ScheduleError::Name);
    for text in ["0 0 30 2 *", "0 0 31 4,6 *"] {
        let never = text.parse::<Schedule>();
        assert_eq!(never.unwrap_err(), ScheduleError::Never, "{text}");
    }
}

#[test]
fn a_time_that_the_clock_skips_comes_at_the_end_of_the_gap() {
    assert_eq!(
        times("30 2 * * *", "2026-03-28T12:00:00+01:00", 2),
        ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]
    );
}

#[test]
fn a_time_that_comes_twice_counts_once() {
    assert_eq!(
        times("30 2 * * *", "2026-10-24T12:00:00+02:00", 2),
        ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    );
    // Asked during the repeated hour, it does not name the one that has passed.
    assert_eq!(
        times("30 2 * * *", "2026-10-25T02:10:00+01:00", 1),
        ["2026-10-26T02:30:00+01:00"]
    );
}

#[test]
fn what_comes_every_half_hour_goes_on_through_both_changes() {
    assert_eq!(
        times("*/30 * * * *", "2026-10-25T02:20:00+02:00", 4),
        [
            "2026-10-25T02:30:00+02:00",
            "2026-10-25T02:00:00+01:00",
            "2026-10-25T02:30:00+01:00",
            "2026-10-25T03:00:00+01:00"
        ]
    );
    assert_eq!(
        times("*/30 * * * *", "2026-03-29T01:20:00+01:00", 2),
        ["2026-03-29T01:30:00+01:00", "2026-03-29T03:00:00+02:00"]
    );
}

proptest! {
    /// The next time is later, matches the clock unless it replaces a skipped one, and asking
    /// again from any moment before it gives the same.
    #[test]
    fn the_next_time_is_the_first_that_matches(
        minute in 0_u32..60,
        hour in 0_u32..24,
        begin in 0_i64..365 * 86_400,
        earlier in 0_i64..86_400,
    ) {
        let schedule: Schedule = format!("{minute} {hour} * * *").parse().unwrap();
        let (year, _) = utc("2026-01-01T00:00:00Z").parts();
        let after = Timestamp::from_parts(year + begin, 0);
        let next = schedule.next_in(after, &Central).unwrap();
        prop_assert!(next > after);
        // A day has 25 hours at most, and a skipped time is made up an hour later.
        prop_assert!(next.since(after).as_secs() <= 26 * 3600);
        let local = Central.timestamp_opt(next.parts().0, 0).unwrap();
        let is_after_gap = local.naive_local() == date(3, 29, 3) && hour == 2;
        prop_assert!(is_after_gap || (local.hour(), local.minute()) == (hour, minute));
        let between = Timestamp::from_parts((next.parts().0 - 1 - earlier).max(after.parts().0), 0);
        prop_assert_eq!(schedule.next_in(between, &Central), Some(next));
    }
}
