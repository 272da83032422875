//! What a flush does with files that are open for writing.

use std::time::Duration;

/// What a flush does with changed files that are open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhileOpen {
    /// It writes them as they are at the cut. A file that a program has just begun to write gets
    /// this long to be closed or synced; what is begun anew all the time is left behind.
    Copy(Duration),
    /// It writes those that are due, and leaves the others behind.
    IfDue(Pace),
    /// It leaves them behind until they are closed.
    Leave,
}

impl WhileOpen {
    /// What a flush on request does: a copy of a file that takes longer than this to write counts
    /// as one that stays open.
    pub const ON_REQUEST: WhileOpen = WhileOpen::Copy(Duration::from_secs(2));
}

impl Default for WhileOpen {
    fn default() -> WhileOpen {
        WhileOpen::ON_REQUEST
    }
}

/// How often automatic flushes write a file that stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// A file that nobody has changed for this long is due.
    pub quiet: Duration,
    /// A file that goes on changing is due this long after it was opened or last written to the
    /// drive.
    pub max_age: Duration,
}

/// Bytes of an open file per second since it was last written to the drive, at most: a file that
/// changes all the time is written whole each time, and must not keep the drive busy.
const BYTES_PER_SECOND: u64 = 5 << 20;

impl Pace {
    /// Returns whether a file of `size` bytes is due that was opened, or written to the drive,
    /// `since` ago, and was last changed `unchanged` ago.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use ferryfs::core::Pace;
    ///
    /// let seconds = Duration::from_secs;
    /// let pace = Pace { quiet: seconds(30), max_age: seconds(300) };
    /// // A program writes a line now and then.
    /// assert!(pace.is_due(|| 1000, seconds(60), seconds(31)));
    /// assert!(!pace.is_due(|| 1000, seconds(60), seconds(2)));
    /// assert!(pace.is_due(|| 1000, seconds(300), seconds(2)));
    /// // 10 GiB change all the time.
    /// assert!(!pace.is_due(|| 10 << 30, seconds(300), seconds(31)));
    /// assert!(pace.is_due(|| 10 << 30, seconds(3600), seconds(31)));
    /// ```
    pub fn is_due(&self, size: impl FnOnce() -> u64, since: Duration, unchanged: Duration) -> bool {
        (unchanged >= self.quiet || since >= self.max_age)
            && since >= Duration::from_secs(size() / BYTES_PER_SECOND)
    }
}
