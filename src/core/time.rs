//! Points in time, with the resolution and range that Linux file systems use.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time: nanoseconds since 1970-01-01T00:00:00Z, negative before that. The range is 1677
/// to 2262; other times are clamped to the nearer end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

/// A date of the Gregorian calendar and a time of day, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc {
    /// The year; year 0 is the year before year 1.
    pub year: i64,
    /// 1 to 12.
    pub month: i64,
    /// 1 to 31.
    pub day: i64,
    /// 0 to 23.
    pub hour: i64,
    /// 0 to 59.
    pub minute: i64,
    /// 0 to 59.
    pub second: i64,
}

impl Timestamp {
    /// Returns the time `secs` seconds and `nanos` nanoseconds (forward) after the epoch.
    pub fn from_parts(secs: i64, nanos: u32) -> Timestamp {
        let exact = i128::from(secs) * 1_000_000_000 + i128::from(nanos);
        let held = exact.clamp(i64::MIN.into(), i64::MAX.into());
        Timestamp(held as i64)
    }

    /// Returns the seconds since the epoch (rounded down) and the remaining nanoseconds.
    ///
    /// # Examples
    ///
    /// ```
    /// use ferryfs::core::Timestamp;
    ///
    /// assert_eq!(Timestamp(1_500_000_000).parts(), (1, 500_000_000));
    /// assert_eq!(Timestamp(-500_000_000).parts(), (-1, 500_000_000));
    /// ```
    pub fn parts(self) -> (i64, u32) {
        (
            self.0.div_euclid(1_000_000_000),
            self.0.rem_euclid(1_000_000_000) as u32,
        )
    }

    /// Returns the date and time of day in UTC, rounded down to the second. The algorithm is Howard
    /// Hinnant's `civil_from_days`.
    ///
    /// # Examples
    ///
    /// ```
    /// use ferryfs::core::Timestamp;
    ///
    /// let leap_day = Timestamp::from_parts(951_782_400, 0).utc();
    /// assert_eq!((leap_day.year, leap_day.month, leap_day.day), (2000, 2, 29));
    /// ```
    pub fn utc(self) -> Utc {
        let (secs, _) = self.parts();
        let (days, second) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
        let z = days + 719_468;
        let era = z.div_euclid(146_097);
        let doe = z.rem_euclid(146_097);
        let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        Utc {
            year: yoe + era * 400 + i64::from(month <= 2),
            month,
            day: doy - (153 * mp + 2) / 5 + 1,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
        }
    }

    /// Returns the time since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timestamp(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX)),
            Err(before) => Timestamp(
                i64::try_from(-(before.duration().as_nanos() as i128)).unwrap_or(i64::MIN),
            ),
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> SystemTime {
        let distance = Duration::from_nanos(time.0.unsigned_abs());
        if time.0 >= 0 {
            UNIX_EPOCH + distance
        } else {
            UNIX_EPOCH - distance
        }
    }
}

/// The source of the current time, so that a run can be replayed.
pub trait Clock: Send + Sync {
    /// Returns the current time.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_survive_the_way_through_system_time() {
        for ns in [-1_500_000_000, -1, 0, 1, 4_398_046_511_104_000_000] {
            let time = Timestamp(ns);
            assert_eq!(Timestamp::from(SystemTime::from(time)), time);
            let (secs, nanos) = time.parts();
            assert_eq!(Timestamp::from_parts(secs, nanos), time);
        }
    }

    #[test]
    fn times_out_of_range_are_held_at_the_nearer_end() {
        for (secs, nanos, held) in [
            (i64::MIN, 0, i64::MIN),
            (i64::MIN, 999_999_999, i64::MIN),
            (-9_223_372_037, 145_224_191, i64::MIN),
            (-9_223_372_037, 145_224_193, i64::MIN + 1),
            (9_223_372_036, 854_775_806, i64::MAX - 1),
            (9_223_372_036, 854_775_808, i64::MAX),
            (i64::MAX, 999_999_999, i64::MAX),
        ] {
            assert_eq!(Timestamp::from_parts(secs, nanos), Timestamp(held));
        }
    }
}
