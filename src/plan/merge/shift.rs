//! Decides whether the times of a directory's files differ only because the drive's clock is read
//! in another time zone. A pure function.
//!
//! FAT and exFAT store local time. After a change to summer time, or on a machine in another zone,
//! every file seems to have been modified some hours earlier or later. A job that rewrites its
//! files every quarter of an hour, in the same size, looks the same for a moment. The difference: a
//! zone shifts all files of a directory, also those modified on different days, and by exactly the
//! same time.

/// Zones differ by multiples of a quarter of an hour.
const QUARTER: u64 = 900_000_000_000;

/// The largest difference of two zones with summer time: 15 hours.
const MOST: u64 = 60 * QUARTER;

/// Files modified further apart than this (26 hours) were not rewritten by one run of a program,
/// and by one later run at the same interval.
const APART: u64 = 104 * QUARTER;

/// Times in steps of at most this many nanoseconds are not equal by chance.
const FINE: u64 = 1_000_000;

/// A common difference of the times of all files in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// The difference in nanoseconds, a multiple of a quarter of an hour.
    pub by: i64,
    /// Only the clock explains it. Otherwise a file's bytes, or another directory, must prove it.
    pub proven: bool,
}

/// Finds the shift of files of equal size, each given as expected and found time. `None` unless all
/// have the same one. `granularity` is the drive's step of times in nanoseconds.
pub fn shift_of(files: &[(i64, i64)], granularity: u64) -> Option<Shift> {
    let slack = granularity.max(1);
    if slack > QUARTER / 4 {
        return None; // No time is kept well enough to tell.
    }
    let (first, _) = files.first()?;
    let by = quarters(*files.first()?, slack)?;
    let mut ends = (*first, *first);
    for file in files {
        if quarters(*file, slack)? != by {
            return None;
        }
        ends = (ends.0.min(file.0), ends.1.max(file.0));
    }
    let proven = files.len() > 1 && (slack <= FINE || ends.0.abs_diff(ends.1) > APART);
    Some(Shift { by, proven })
}

/// Returns the shift of the clock that one file shows.
fn quarters((believed, found): (i64, i64), slack: u64) -> Option<i64> {
    let apart = believed.abs_diff(found);
    let whole = (apart.checked_add(QUARTER / 2)? / QUARTER) * QUARTER;
    if whole == 0 || whole > MOST || apart.abs_diff(whole) > slack {
        return None;
    }
    let whole = i64::try_from(whole).ok()?;
    Some(if found > believed { whole } else { -whole })
}
