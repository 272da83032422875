//! Quiet hours: spans of the local day in which no flush begins by itself.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The minutes of a day.
const DAY: u32 = 24 * 60;

/// A span of the local day, without its end. It may go over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QuietHours {
    /// Its begin, in minutes since midnight.
    from: u32,
    /// Its end, in minutes since midnight.
    to: u32,
}

/// Why text is no span of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuietError {
    /// It has another form.
    #[error("not a span of the day; write it like 19:00-23:30 or 22:00-06:00")]
    Form,
    /// A time that no day has.
    #[error("hours are 00 to 23, minutes 00 to 59")]
    Time,
    /// It is empty.
    #[error("begins when it ends; to never flush without a command use auto_flush = false")]
    Empty,
}

impl QuietHours {
    /// Returns whether `minute`, counted from local midnight, is in it.
    pub fn has(self, minute: u32) -> bool {
        let since_begin = (minute + DAY - self.from) % DAY;
        since_begin < (self.to + DAY - self.from) % DAY
    }

    /// Its end as a time of the day, as in `23:30`.
    pub fn end(self) -> String {
        clock(self.to)
    }
}

fn clock(minute: u32) -> String {
    format!("{:02}:{:02}", minute / 60, minute % 60)
}

fn minute_of(text: &str) -> Result<u32, QuietError> {
    let (hour, minute) = text.trim().split_once(':').ok_or(QuietError::Form)?;
    let number = |text: &str, digits: std::ops::RangeInclusive<usize>| {
        let is_number = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let number = is_number.then(|| text.parse::<u32>().ok()).flatten();
        number.ok_or(QuietError::Form)
    };
    match (number(hour, 1..=2)?, number(minute, 2..=2)?) {
        (hour @ 0..=23, minute @ 0..=59) => Ok(hour * 60 + minute),
        _ => Err(QuietError::Time),
    }
}

impl FromStr for QuietHours {
    type Err = QuietError;

    fn from_str(text: &str) -> Result<QuietHours, QuietError> {
        let (from, to) = text.split_once('-').ok_or(QuietError::Form)?;
        let (from, to) = (minute_of(from)?, minute_of(to)?);
        match from == to {
            true => Err(QuietError::Empty),
            false => Ok(QuietHours { from, to }),
        }
    }
}

impl fmt::Display for QuietHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", clock(self.from), clock(self.to))
    }
}

impl TryFrom<String> for QuietHours {
    type Error = QuietError;

    fn try_from(text: String) -> Result<QuietHours, QuietError> {
        text.parse()
    }
}

impl From<QuietHours> for String {
    fn from(hours: QuietHours) -> String {
        hours.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_its_begin_and_not_its_end_also_over_midnight() {
        let evening: QuietHours = "19:00-23:30".parse().unwrap();
        let night: QuietHours = "22:00-6:05".parse().unwrap();
        for (minute, in_evening, in_night) in [
            (0, false, true),
            (6 * 60 + 4, false, true),
            (6 * 60 + 5, false, false),
            (18 * 60 + 59, false, false),
            (19 * 60, true, false),
            (22 * 60, true, true),
            (23 * 60 + 29, true, true),
            (23 * 60 + 30, false, true),
            (DAY - 1, false, true),
        ] {
            assert_eq!(evening.has(minute), in_evening, "{minute}");
            assert_eq!(night.has(minute), in_night, "{minute}");
        }
        assert_eq!(night.to_string(), "22:00-06:05");
        assert_eq!(night.end(), "06:05");
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for (text, error) in [
            ("19:00", QuietError::Form),
            ("19-23", QuietError::Form),
            ("+9:00-10:00", QuietError::Form),
            ("19:0-20:00", QuietError::Form),
            ("24:00-01:00", QuietError::Time),
            ("00:00-23:60", QuietError::Time),
            ("07:00-7:00", QuietError::Empty),
        ] {
            assert_eq!(text.parse::<QuietHours>(), Err(error), "{text}");
        }
    }
}
