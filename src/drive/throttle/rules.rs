//! When a flush waits, and for how long: rules without I/O. The time is passed in.

use std::time::{Duration, Instant};

use crate::core::Slowed;
use crate::drive::throttle::Settings;

/// How often the counters of reads are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long others count as readers after their last read. A player reads a few seconds ahead, and
/// pauses.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// A reader gets this many times the time that a request of the flush takes. So a flush takes at
/// most five times as long as the drive needs for it beside that reader.
const SHARE: u32 = 4;

/// A rest that is shorter than this is added to the next one: waking up costs more.
const SHORTEST_REST: Duration = Duration::from_millis(10);

/// The longest rest, after a request that took very long.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Bytes that others must have read from the disk in the time of [`LOOK_EVERY`]. What the file
/// system reads to write the flush's own files stays below.
const FEW: u64 = 64 << 10;

/// The same while the flush itself reads: what the kernel reads ahead for it counts as read by
/// others, and a request under way may be counted before or after a look.
const FEW_BESIDE_OURS: u64 = 2 << 20;

/// Bytes that have been read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// From the disk, by anyone; `None` if the system does not count that.
    pub(super) disk: Option<u64>,
    /// By the flush.
    pub(super) ours: u64,
    /// By programs through the mount, from the drive.
    pub(super) mount: u64,
}

/// The state of one flush that may wait.
#[derive(Debug)]
pub(super) struct Rules {
    /// It yields until then.
    yields_until: Instant,
    looked: Instant,
    counts: Counts,
    /// When others have read last, as far as it is known.
    read: Option<Instant>,
    /// The last look saw reads of the disk that are not the flush's.
    was_disk_read: bool,
    /// The rest that the requests so far have earned.
    rest: Duration,
    /// When the bytes so far are within the limit.
    within_limit: Instant,
}

impl Rules {
    /// Begins a flush that yields to readers for at most `yields_for`.
    pub(super) fn new(now: Instant, yields_for: Duration, counts: Counts) -> Rules {
        Rules {
            yields_until: now.checked_add(yields_for).unwrap_or(now),
            looked: now,
            counts,
            read: None,
            was_disk_read: false,
            rest: Duration::ZERO,
            within_limit: now,
        }
    }

    /// Returns whether it is time for [`Rules::note`].
    pub(super) fn is_look_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.looked) >= LOOK_EVERY
    }

    /// Notes what has been read. Reads of the disk count from the second look in a row that sees
    /// them: a burst can be the file system's own, for the flush. Those through the mount count at
    /// once, and so do those of the disk while the flush yields already.
    pub(super) fn note(&mut self, now: Instant, counts: Counts) {
        let before = std::mem::replace(&mut self.counts, counts);
        let since = now.saturating_duration_since(std::mem::replace(&mut self.looked, now));
        let ours = counts.ours.saturating_sub(before.ours);
        let few = match ours {
            0 => few_in(since),
            _ => few_in(since).max(FEW_BESIDE_OURS),
        };
        let by_others = match (before.disk, counts.disk) {
            (Some(before), Some(disk)) => disk.saturating_sub(before).saturating_sub(ours),
            _ => 0,
        };
        let is_disk_read = by_others >= few;
        let was_disk_read = std::mem::replace(&mut self.was_disk_read, is_disk_read);
        let is_known = was_disk_read || self.is_read(now);
        if counts.mount > before.mount || is_disk_read && is_known {
            self.read = Some(now);
        }
    }

    /// Returns whether the flush yields to somebody.
    pub(super) fn yields(&self, now: Instant, settings: &Settings) -> bool {
        settings.polite && now < self.yields_until && self.is_read(now)
    }

    /// Returns whether others count as readers.
    fn is_read(&self, now: Instant) -> bool {
        let is_lately = |read| now.saturating_duration_since(read) < LINGER;
        self.read.is_some_and(is_lately)
    }

    /// Returns how long the next request has to wait, and why.
    pub(super) fn wait(&self, now: Instant, settings: &Settings) -> (Duration, Option<Slowed>) {
        let limited = match settings.limit {
            Some(_) => self.within_limit.saturating_duration_since(now),
            None => Duration::ZERO,
        };
        let yields = self.yields(now, settings);
        let rest = match yields && self.rest >= SHORTEST_REST {
            true => self.rest,
            false => Duration::ZERO,
        };
        let is_limited = limited > Duration::ZERO;
        let why = match yields && rest >= limited {
            true => Some(Slowed::OthersRead),
            false => is_limited.then_some(Slowed::Limit),
        };
        (rest.max(limited), why)
    }

    /// Notes that a request of `bytes` bytes begins, after it has waited for `waited`.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        bytes: u64,
        waited: Duration,
        settings: &Settings,
    ) {
        self.rest = self.rest.saturating_sub(waited);
        if let Some(limit) = settings.limit {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(limit.max(1));
            let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            self.within_limit = (self.within_limit.max(now))
                .checked_add(cost)
                .unwrap_or(now);
        }
    }

    /// Notes that the request took so long.
    pub(super) fn end(&mut self, now: Instant, took: Duration, settings: &Settings) {
        self.rest = match self.yields(now, settings) {
            true => (self.rest + took.saturating_mul(SHARE)).min(LONGEST_REST),
            false => Duration::ZERO,
        };
    }
}

/// Returns [`FEW`] for the time since the last look, which a long request or rest delays.
fn few_in(time: Duration) -> u64 {
    let looks = time.as_millis() / LOOK_EVERY.as_millis();
    FEW.saturating_mul(u64::try_from(looks).unwrap_or(u64::MAX).max(1))
}
