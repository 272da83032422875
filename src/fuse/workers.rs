//! Worker threads for operations that take long, so that event threads never block. One kind copies
//! within the SSD, the other waits for the drive, so that copies do not queue behind waits.
//!
//! A worker is made when a job finds none that is idle, and ends when it has been idle for a while:
//! most mounts need few of them, and none most of the time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Most threads that copy. The SSD is the bottleneck, so more would not be faster.
const COPYING: usize = 8;

/// Most threads that wait for the drive. They sleep, so many cost little; each waits for a bounded
/// time.
const WAITING: usize = 32;

/// How long a worker without a job stays.
const IDLE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce() + Send>;

/// The workers of both kinds. Clones share them; they end with the last clone.
#[derive(Clone)]
pub struct Workers {
    copying: Arc<Pool>,
    waiting: Arc<Pool>,
}

impl Workers {
    /// Returns workers of which no thread has started yet.
    pub fn new() -> Workers {
        Workers {
            copying: Arc::new(Pool::new("ferryfs-work", COPYING)),
            waiting: Arc::new(Pool::new("ferryfs-wait", WAITING)),
        }
    }

    /// Runs `job`, which may copy objects but not wait for the drive, on the next free worker. A
    /// job dropped before it runs drops its reply, which answers EIO.
    pub fn copy(&self, job: impl FnOnce() + Send + 'static) {
        self.copying.run(Box::new(job));
    }

    /// Runs `job`, which may also wait for the drive, on the next free worker.
    pub fn wait(&self, job: impl FnOnce() + Send + 'static) {
        self.waiting.run(Box::new(job));
    }
}

impl Default for Workers {
    fn default() -> Workers {
        Workers::new()
    }
}

/// Workers of one kind.
struct Pool {
    name: &'static str,
    most: usize,
    shared: Arc<Shared>,
}

/// What a pool and its threads share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for a job.
    idle: usize,
    closed: bool,
}

impl Pool {
    fn new(name: &'static str, most: usize) -> Pool {
        Pool {
            name,
            most,
            shared: Arc::default(),
        }
    }

    fn run(&self, job: Job) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(job);
        if state.jobs.len() <= state.idle || state.threads == self.most {
            self.shared.changed.notify_one();
            return;
        }
        let shared = self.shared.clone();
        let named = thread::Builder::new().name(self.name.into());
        match named.spawn(move || shared.work()) {
            Ok(_) => state.threads += 1,
            Err(error) if state.threads == 0 => {
                tracing::error!(%error, "no thread for a request; it is answered with EIO");
                state.jobs.clear();
            }
            // Those that there are take it in turn.
            Err(_) => {}
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        while let Some(job) = self.next_job() {
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a request panicked; it is answered with EIO");
            }
        }
    }

    /// Waits for a job. `None` if the thread is to end; it is not counted any more then.
    fn next_job(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            let waited = match state.closed {
                true => true,
                false => self.changed.wait_for(&mut state, IDLE).timed_out(),
            };
            state.idle -= 1;
            if waited && state.jobs.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn each_job_has_a_worker_until_there_are_most_and_the_rest_wait() {
        let pool = Pool::new("test", 3);
        let (started, starts) = mpsc::channel();
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        for number in 0..5 {
            let (started, gate) = (started.clone(), gate.clone());
            pool.run(Box::new(move || {
                started.send(number).unwrap();
                drop(gate.lock());
            }));
        }
        let mut first: Vec<i32> = (0..3).map(|_| starts.recv().unwrap()).collect();
        first.sort_unstable();
        assert_eq!(first, [0, 1, 2]);
        assert_eq!(pool.shared.state.lock().threads, 3);
        starts
            .recv_timeout(Duration::from_millis(100))
            .expect_err("a fourth job ran");
        drop(closed);
        let mut rest: Vec<i32> = (0..2).map(|_| starts.recv().unwrap()).collect();
        rest.sort_unstable();
        assert_eq!(rest, [3, 4]);
    }

    #[test]
    fn a_job_that_panics_takes_no_worker_with_it() {
        let pool = Pool::new("test", 1);
        let (done, ends) = mpsc::channel();
        for _ in 0..3 {
            let done = done.clone();
            pool.run(Box::new(|| panic!("on purpose")));
            pool.run(Box::new(move || done.send(()).unwrap()));
            ends.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        assert_eq!(pool.shared.state.lock().threads, 1);
    }

    #[test]
    fn jobs_are_done_after_the_pool_is_dropped_and_the_threads_end() {
        let pool = Pool::new("test", 2);
        let (done, ends) = mpsc::channel();
        for _ in 0..20 {
            let done = done.clone();
            pool.run(Box::new(move || done.send(()).unwrap()));
        }
        let shared = pool.shared.clone();
        drop((pool, done));
        assert_eq!(ends.iter().count(), 20);
        while shared.state.lock().threads > 0 {
            thread::yield_now();
        }
    }
}
