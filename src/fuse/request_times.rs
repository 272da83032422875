//! How many requests of the kernel were answered, and how long they took: counters without a lock,
//! for metrics. A count and its sum may be of slightly different moments.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Upper bounds of the buckets, in microseconds.
pub const BOUNDS_US: [u64; 12] = [
    10, 50, 100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 10_000_000,
];

/// The kinds of requests that are counted apart, in the order of [`RequestTimes::counts`].
pub const KINDS: [&str; 3] = ["read", "write", "other"];

/// The buckets of one kind: those of [`BOUNDS_US`], then the rest.
#[derive(Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    micros: AtomicU64,
}

/// The requests of one kind so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The kind.
    pub kind: &'static str,
    /// How many took at most as long as each of [`BOUNDS_US`] and longer than the one before it;
    /// the last one counts those that took longer than all.
    pub buckets: Vec<u64>,
    /// The time that all of them took together.
    pub sum: Duration,
}

/// Counts requests. Clones share the counters.
#[derive(Clone, Default)]
pub struct RequestTimes(Arc<[Buckets; KINDS.len()]>);

impl RequestTimes {
    /// Starts the clock for a request. It is counted when the returned value is dropped.
    pub(super) fn start(&self, request: &'static str) -> Timer {
        Timer {
            times: self.clone(),
            kind: (KINDS.iter().position(|kind| *kind == request)).unwrap_or(KINDS.len() - 1),
            began: Instant::now(),
        }
    }

    fn count(&self, kind: usize, took: Duration) {
        let buckets = &self.0[kind];
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < micros);
        buckets.counts[bucket].fetch_add(1, Ordering::Relaxed);
        buckets.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Returns the requests so far, by kind.
    pub fn counts(&self) -> Vec<Counts> {
        let one = |(kind, buckets): (&&'static str, &Buckets)| Counts {
            kind,
            buckets: (buckets.counts.iter())
                .map(|count| count.load(Ordering::Relaxed))
                .collect(),
            sum: Duration::from_micros(buckets.micros.load(Ordering::Relaxed)),
        };
        KINDS.iter().zip(self.0.iter()).map(one).collect()
    }
}

/// A request that is being answered.
pub(super) struct Timer {
    times: RequestTimes,
    kind: usize,
    began: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.times.count(self.kind, self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_in_the_bucket_of_its_time_and_kind() {
        let times = RequestTimes::default();
        times.count(0, Duration::from_micros(10));
        times.count(0, Duration::from_micros(11));
        times.count(0, Duration::from_secs(60));
        drop(times.start("getattr"));
        drop(times.start("write"));
        let [read, write, other] = times.counts().try_into().unwrap();
        assert_eq!((read.kind, &read.buckets[..2]), ("read", &[1, 1][..]));
        assert_eq!(read.buckets.last(), Some(&1));
        assert_eq!(read.sum, Duration::from_micros(60_000_021));
        assert_eq!(write.buckets.iter().sum::<u64>(), 1);
        assert_eq!(other.buckets.iter().sum::<u64>(), 1);
    }
}
