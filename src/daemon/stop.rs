//! The signal that ends background threads. A thread that rests sleeps until its time is over or
//! the signal is given: an idle daemon does not wake up to look at a flag.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Whether to stop.
#[derive(Debug, Default)]
pub(super) struct Stop {
    given: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Returns whether the signal has been given.
    pub(super) fn is_given(&self) -> bool {
        *self.given.lock()
    }

    /// Gives the signal.
    pub(super) fn give(&self) {
        *self.given.lock() = true;
        self.changed.notify_all();
    }

    /// Sleeps for `time`, or until the signal is given.
    pub(super) fn rest(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut given = self.given.lock();
        while !*given && !self.changed.wait_until(&mut given, end).timed_out() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_ends_with_its_time_or_with_the_signal() {
        let stop = Stop::default();
        stop.rest(Duration::from_millis(1));
        assert!(!stop.is_given());
        std::thread::scope(|scope| {
            scope.spawn(|| stop.rest(Duration::from_secs(3600)));
            stop.give();
        });
        stop.rest(Duration::from_secs(3600));
        assert!(stop.is_given());
    }
}
