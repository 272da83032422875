//! Times for the user: those of the protocol are UTC, these are local.

use crate::core::{Timestamp, Utc, printable};
use crate::sys::time::{Local, local};

/// The time `text` (RFC 3339, UTC, to the second) as a local date and time. Any other text is not
/// changed.
pub(super) fn date_and_time(text: &str) -> String {
    match parse(text).and_then(local) {
        Some(Local { at, .. }) => format!("{} {}:{:02}", date(at), clock(at), at.second),
        None => printable(text),
    }
}

/// The same as a time of day, after "at", and with its date unless that is the date of `now`.
pub(super) fn at(text: &str, now: Timestamp) -> String {
    let Some(Local { at, .. }) = parse(text).and_then(local) else {
        return format!("at {}", printable(text));
    };
    let today = local(now).is_some_and(|now| date(now.at) == date(at));
    match today {
        true => format!("at {}", clock(at)),
        false => format!("on {} at {}", date(at), clock(at)),
    }
}

fn date(at: Utc) -> String {
    format!("{:04}-{:02}-{:02}", at.year, at.month, at.day)
}

fn clock(at: Utc) -> String {
    format!("{:02}:{:02}", at.hour, at.minute)
}

fn parse(text: &str) -> Option<Timestamp> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, between: char| -> Option<[i64; 3]> {
        let parts: Option<Vec<i64>> = text.split(between).map(|part| part.parse().ok()).collect();
        parts?.try_into().ok()
    };
    let ([year, month, day], [hour, minute, second]) = (numbers(date, '-')?, numbers(time, ':')?);
    let is_plausible = (0..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..61).contains(&second);
    is_plausible.then(|| {
        let secs = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
        Timestamp::from_parts(secs, 0)
    })
}

/// Days since 1970-01-01, by Howard Hinnant's `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let yoe = year.rem_euclid(400);
    let doy = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_the_protocol_is_read_back_exactly() {
        for (text, secs) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T00:00:00Z", 951_782_400),
            ("2026-11-20T00:00:01Z", 1_795_132_801),
            ("1969-12-31T23:59:59Z", -1),
        ] {
            assert_eq!(parse(text), Some(Timestamp::from_parts(secs, 0)), "{text}");
        }
        for bad in [
            "",
            "Z",
            "2026-11-20T00:00Z",
            "2026-13-01T00:00:00Z",
            "now",
            "2026-11-20T00:00:00",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_time_of_today_needs_no_date_and_what_is_no_time_is_shown_as_it_is() {
        let now = Timestamp::from_parts(1_795_176_000, 0);
        let text = "2026-11-20T12:00:00Z";
        let shown = at(text, now);
        assert!(shown.starts_with("at ") && shown.len() == 8, "{shown}");
        let shown = at(text, Timestamp::from_parts(1_795_976_000, 0));
        assert!(shown.starts_with("on 2026-11-"), "{shown}");
        assert_eq!(date_and_time("a\x1bb"), "a\\x1bb");
    }
}
