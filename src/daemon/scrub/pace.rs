//! How fast a scrub reads.

use std::time::{Duration, Instant};

/// Programs count as reading from the drive for so long after a read.
const BUSY_FOR: Duration = Duration::from_millis(500);

/// While they do, one block is read in so much time: a drive that is always read from would never
/// be scrubbed otherwise.
const BLOCK_EVERY: Duration = Duration::from_secs(1);

/// Keeps reads within a rate. What was not read in a pause is not made up.
pub(super) struct Pace {
    next: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace { next: now }
    }

    /// Notes that so many bytes have been read at `rate` bytes a second.
    pub(super) fn note(&mut self, now: Instant, bytes: u64, rate: u64) {
        let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        self.next = self.next.max(now) + takes;
    }

    /// Returns how long to wait before the next block.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }
}

/// Whether programs read from the drive.
pub(super) struct Busy {
    reads: u64,
    /// When the last of them was seen; `None` for never.
    seen: Option<Instant>,
    block: Instant,
}

impl Busy {
    pub(super) fn new(now: Instant, reads: u64) -> Busy {
        Busy {
            reads,
            seen: None,
            block: now,
        }
    }

    /// Notes that a block is read.
    pub(super) fn note_block(&mut self, now: Instant) {
        self.block = now;
    }

    /// Returns whether to wait, with the number of all `reads` so far.
    pub(super) fn gives_way(&mut self, now: Instant, reads: u64) -> bool {
        if reads != self.reads {
            self.reads = reads;
            self.seen = Some(now);
        }
        let is_busy = self
            .seen
            .is_some_and(|seen| now.duration_since(seen) < BUSY_FOR);
        is_busy && now.duration_since(self.block) < BLOCK_EVERY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn reads_stay_within_the_rate_and_a_pause_is_not_made_up() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.note(start, 1000, 1000);
        pace.note(start, 500, 1000);
        assert_eq!(pace.wait(start), SECOND * 3 / 2);
        assert_eq!(pace.wait(start + SECOND), SECOND / 2);
        let later = start + SECOND * 100;
        assert_eq!(pace.wait(later), Duration::ZERO);
        pace.note(later, 2000, 1000);
        assert_eq!(pace.wait(later), SECOND * 2);
    }

    #[test]
    fn programs_that_read_come_first_and_do_not_starve_a_scrub() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut busy = Busy::new(start, 5);
        assert!(!busy.gives_way(at(0), 5));
        assert!(busy.gives_way(at(100), 6));
        assert!(busy.gives_way(at(400), 6));
        assert!(!busy.gives_way(at(700), 6), "no read for half a second");
        assert!(busy.gives_way(at(800), 7));
        assert!(!busy.gives_way(at(1001), 8), "one block a second");
        busy.note_block(at(1001));
        assert!(busy.gives_way(at(1002), 9));
    }
}
