//! Which versions of a file are kept, in the words of restic: so many of the last ones, one for
//! each of so many days or weeks, and all within a time. Pure.
//!
//! A clock may be wrong, and what is removed by mistake is gone. So a version counts as at least as
//! new as every version of an earlier batch, and one from the future as made now: a clock that
//! jumps back keeps too much, never too little.

use std::str::FromStr;
use std::time::Duration;

use crate::core::{BatchNo, Timestamp};

/// How much is kept of each file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// So many of the last versions.
    pub last: u32,
    /// The last version of each of so many hours that have one.
    pub hourly: u32,
    /// The same for days.
    pub daily: u32,
    /// Weeks, from Monday.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
    /// All versions that are not older.
    pub within: Option<Duration>,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep {
            last: 3,
            daily: 7,
            weekly: 4,
            within: Some(Duration::from_secs(7 * 86_400)),
            ..Keep::NOTHING
        }
    }
}

/// Why text does not say how much to keep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    /// A part is not a word and a value.
    #[error("'{0}' is not like last=3; write it like last=3,daily=7,weekly=4,within=7d")]
    Form(String),
    /// The word is not known.
    #[error("unknown word '{0}'; known are last, hourly, daily, weekly, monthly, yearly, within")]
    Word(String),
    /// The value is no number.
    #[error("'{0}' is not a whole number up to 4294967295")]
    Number(String),
    /// The value is no time.
    #[error("'{0}' is no time; write it like 7d, 12h, 2w, 3m (months) or 1y")]
    Time(String),
    /// Nothing would be kept.
    #[error("this keeps nothing; to keep no versions leave --versions out")]
    Nothing,
}

impl FromStr for Keep {
    type Err = KeepError;

    fn from_str(text: &str) -> Result<Keep, KeepError> {
        let mut keep = Keep::NOTHING;
        for part in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            let (word, value) = part
                .split_once('=')
                .ok_or_else(|| KeepError::Form(part.into()))?;
            let (word, value) = (word.trim(), value.trim().trim_matches('"'));
            let count = || value.parse().map_err(|_| KeepError::Number(value.into()));
            match word {
                "last" => keep.last = count()?,
                "hourly" => keep.hourly = count()?,
                "daily" => keep.daily = count()?,
                "weekly" => keep.weekly = count()?,
                "monthly" => keep.monthly = count()?,
                "yearly" => keep.yearly = count()?,
                "within" => keep.within = Some(time(value)?),
                _ => return Err(KeepError::Word(word.into())),
            }
        }
        match keep == Keep::NOTHING {
            true => Err(KeepError::Nothing),
            false => Ok(keep),
        }
    }
}

/// Parses restic's durations, such as `7d`, `2w` and `1y6m`. A month has 30 days here.
fn time(text: &str) -> Result<Duration, KeepError> {
    let wrong = || KeepError::Time(text.into());
    let mut secs: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at_checked(end).ok_or_else(wrong)?;
        let mut letters = tail.chars();
        let unit: u64 = match letters.next() {
            Some('h') => 3600,
            Some('d') => 86_400,
            Some('w') => 7 * 86_400,
            Some('m') => 30 * 86_400,
            Some('y') => 365 * 86_400,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        secs = (number.checked_mul(unit))
            .and_then(|it| secs.checked_add(it))
            .ok_or_else(wrong)?;
        rest = letters.as_str();
    }
    match text.is_empty() {
        true => Err(wrong()),
        false => Ok(Duration::from_secs(secs)),
    }
}

impl Keep {
    /// Keeps no version at all.
    pub const NOTHING: Keep = Keep {
        last: 0,
        hourly: 0,
        daily: 0,
        weekly: 0,
        monthly: 0,
        yearly: 0,
        within: None,
    };

    /// Returns which versions of one file are kept. Their `times` are those of [`effective`],
    /// newest first.
    pub fn choose(&self, now: Timestamp, times: &[Timestamp]) -> Vec<bool> {
        let mut buckets = [
            Buckets::new(self.hourly, |at| at.parts().0.div_euclid(3600)),
            Buckets::new(self.daily, |at| at.parts().0.div_euclid(86_400)),
            // The first day of the epoch was a Thursday.
            Buckets::new(self.weekly, |at| {
                (at.parts().0.div_euclid(86_400) + 3).div_euclid(7)
            }),
            Buckets::new(self.monthly, |at| at.utc().year * 12 + at.utc().month),
            Buckets::new(self.yearly, |at| at.utc().year),
        ];
        let oldest = self.within.map(|within| {
            let nanos = i64::try_from(within.as_nanos()).unwrap_or(i64::MAX);
            now.0.saturating_sub(nanos)
        });
        let is_kept = |(number, at): (usize, &Timestamp)| {
            let is_last = number < self.last as usize;
            let is_young = oldest.is_some_and(|oldest| at.0 >= oldest);
            // Each of them counts what it sees.
            let mut is_first = false;
            for bucket in &mut buckets {
                is_first |= bucket.takes(*at);
            }
            is_last || is_young || is_first
        };
        times.iter().enumerate().map(is_kept).collect()
    }
}

/// The last version of each of some periods.
struct Buckets {
    left: u32,
    period: fn(Timestamp) -> i64,
    last: Option<i64>,
}

impl Buckets {
    fn new(left: u32, period: fn(Timestamp) -> i64) -> Buckets {
        Buckets {
            left,
            period,
            last: None,
        }
    }

    fn takes(&mut self, at: Timestamp) -> bool {
        let period = (self.period)(at);
        if self.left == 0 || self.last == Some(period) {
            return false;
        }
        self.left -= 1;
        self.last = Some(period);
        true
    }
}

/// Returns the times that the directories of versions count as having: each is as new as those of
/// earlier batches, and none is newer than `now`.
pub fn effective(now: Timestamp, made: &[(Timestamp, BatchNo)]) -> Vec<Timestamp> {
    let mut by_batch: Vec<usize> = (0..made.len()).collect();
    by_batch.sort_by_key(|at| made[*at].1);
    let mut times = vec![now; made.len()];
    let mut newest = Timestamp(i64::MIN);
    for at in by_batch {
        let (own, _) = made[at];
        if own <= now {
            newest = newest.max(own);
            times[at] = newest;
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn day(number: i64) -> Timestamp {
        Timestamp::from_parts(1_700_000_000 + number * DAY, 0)
    }

    #[test]
    fn the_words_are_those_of_restic() {
        let keep: Keep = "last=3, daily=7,weekly=4,within=7d".parse().unwrap();
        assert_eq!(keep, Keep::default());
        let within = |text: &str| text.parse::<Keep>().unwrap().within.unwrap();
        assert_eq!(within("within=\"1y2w\""), Duration::from_secs(379 * 86_400));
        assert_eq!("last".parse::<Keep>(), Err(KeepError::Form("last".into())));
        assert_eq!("lst=1".parse::<Keep>(), Err(KeepError::Word("lst".into())));
        assert_eq!(
            "last=-1".parse::<Keep>(),
            Err(KeepError::Number("-1".into()))
        );
        for time in ["", "7", "d", "7x", "99999999999999999999y"] {
            let parsed = format!("within={time}").parse::<Keep>();
            assert_eq!(parsed, Err(KeepError::Time(time.into())));
        }
        assert_eq!("".parse::<Keep>(), Err(KeepError::Nothing));
        assert_eq!("last=0".parse::<Keep>(), Err(KeepError::Nothing));
    }

    #[test]
    fn the_last_and_one_of_each_day_and_all_within_a_time_are_kept() {
        let times: Vec<Timestamp> = [10, 10, 10, 9, 9, 8, 2, 1].map(day).into();
        let chosen = |text: &str| {
            let keep: Keep = text.parse().unwrap();
            let kept = keep.choose(day(10), &times);
            let kept: Vec<usize> = (0..kept.len()).filter(|at| kept[*at]).collect();
            kept
        };
        assert_eq!(chosen("last=2"), [0, 1]);
        assert_eq!(chosen("daily=3"), [0, 3, 5]);
        assert_eq!(chosen("daily=9"), [0, 3, 5, 6, 7]);
        assert_eq!(chosen("within=1d"), [0, 1, 2, 3, 4]);
        assert_eq!(chosen("last=1,within=8d"), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(chosen("yearly=1"), [0]);
    }

    #[test]
    fn a_clock_that_jumps_back_makes_no_version_old() {
        let made = [
            (day(5), BatchNo(5)),
            (Timestamp(0), BatchNo(6)),
            (day(6), BatchNo(7)),
        ];
        // While the clock is wrong nothing counts as old, and afterwards what was made then does
        // not either.
        assert_eq!(effective(Timestamp(1), &made), [1, 0, 1].map(Timestamp));
        assert_eq!(effective(day(6), &made), [day(5), day(5), day(6)]);
        // What was made by a clock that was ahead counts as made now, and makes nothing else new.
        let ahead = [(day(99), BatchNo(1)), (day(1), BatchNo(2))];
        assert_eq!(effective(day(6), &ahead), [day(6), day(1)]);
    }
}
