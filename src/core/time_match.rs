//! Comparison of two times of one file: backends round times, and some cannot store all of them.

use crate::core::Timestamp;

/// Times that differ by less than this, in nanoseconds, count as equal on any backend: FAT stores
/// steps of two seconds.
pub const SLACK_NS: u64 = 2_000_000_000;

/// The first and the last time that exFAT can store. Times beyond them wrap around in some drivers.
pub(crate) const FIRST: i64 = 315_532_800_000_000_000;
pub(crate) const LAST: i64 = 4_354_819_199_000_000_000;
pub(crate) const DAY: i64 = 86_400_000_000_000;

/// Returns whether a backend that was given the time `meant` may report `found`, with its rounding
/// or within two seconds.
pub fn is_time_of(meant: Timestamp, found: Timestamp, granularity_ns: u64) -> bool {
    meant.0.abs_diff(found.0) <= granularity_ns.max(SLACK_NS) || is_told_oddly(meant, found)
}

/// Returns whether some file systems cannot store `meant` and report `found` instead: the nearest
/// time they can store, or the time after a wrap around. Such times are rare, and not those of
/// files that are changed today.
pub fn is_told_oddly(meant: Timestamp, found: Timestamp) -> bool {
    let slack = SLACK_NS;
    let can_be_told = (FIRST..=LAST).contains(&meant.0);
    let is_odd = found.0 < FIRST.saturating_add(2 * DAY) || found.0 > LAST - 2 * DAY;
    let went_around = || {
        // Once or twice the 128 years of exFAT's seven bits, with 31 or 32 leap days each,
        // depending on the centuries; 2^32 seconds of 32-bit times.
        (46_750..=46_752)
            .chain(93_500..=93_504)
            .map(|days: i64| days * DAY)
            .chain([4_294_967_296_000_000_000])
            .any(|around| meant.0.abs_diff(found.0).abs_diff(around.cast_unsigned()) <= slack)
    };
    !can_be_told && (is_odd || went_around())
}
