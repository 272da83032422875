//! Whether the times of a directory's files differ by nothing but the zone that the drive's clock is
//! read in: a pure function.
//!
//! FAT and exFAT store local time. After a change to summer time, or on a machine with another zone,
//! every file seems to have been modified some hours earlier or later. A job that rewrites its files
//! every quarter of an hour, in the same size, looks alike for a moment. What tells the two apart:
//! a zone shifts all files of a directory, also those that were last modified on different days, and
//! it shifts them exactly.

/// Zones differ by whole quarters of an hour.
const QUARTER: u64 = 900_000_000_000;

/// The most that a zone and summer time make together: 15 hours.
const MOST: u64 = 60 * QUARTER;

/// Files that were modified further apart than this have not been rewritten by one run of a program,
/// and one run later by the same time: 26 hours.
const APART: u64 = 104 * QUARTER;

/// Times in steps of at most this many nanoseconds are not equal by chance.
const FINE: u64 = 1_000_000;

/// All files of a directory have times that differ in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// By so many nanoseconds, a whole number of quarters of an hour.
    pub by: i64,
    /// Nothing but the clock explains it. Else the bytes of a file, or another directory, must show
    /// that.
    pub proven: bool,
}

/// Finds the shift of files of equal size, each given by the time that is believed and the time that
/// was found. `None` unless all of them have the same one. `granularity` is the drive's step of times,
/// in nanoseconds.
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

/// By how much the clock would have been shifted for one file.
fn quarters((believed, found): (i64, i64), slack: u64) -> Option<i64> {
    let apart = believed.abs_diff(found);
    let whole = (apart.checked_add(QUARTER / 2)? / QUARTER) * QUARTER;
    if whole == 0 || whole > MOST || apart.abs_diff(whole) > slack {
        return None;
    }
    let whole = i64::try_from(whole).ok()?;
    Some(if found > believed { whole } else { -whole })
}
