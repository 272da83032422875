//! The pool of threads that make system calls on the backend, and the tickets of their calls.
//!
//! A call is a job with a ticket. The caller waits for the answer, or abandons the call. A call
//! that has not begun then never runs. A call in progress is then *stuck*: its thread is lost until
//! the system call returns, and its answer is dropped there. A job owns everything it uses, so an
//! abandoned call has no buffer of its caller. Only calls that change nothing may run here: an
//! abandoned one may still take effect at any later time.
//!
//! Lock order: `queue` is the only lock. No other code is called while it is held, except the drop
//! of a job for which no thread could be created.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The most threads in the pool, and so the most that can be stuck in the kernel.
pub(super) const MAX_THREADS: usize = 16;

const WAITING: u8 = 0;
const RUNNING: u8 = 1;
const DONE: u8 = 2;
const GIVEN_UP: u8 = 3;

/// One call: its state, and its last sign of life.
#[derive(Debug)]
pub(super) struct Ticket {
    state: AtomicU8,
    begun: Instant,
    /// Milliseconds after `begun`.
    sign: AtomicU64,
}

/// The fate of an abandoned call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// It has not begun and never will.
    NotBegun,
    /// It is in the kernel.
    Stuck,
    /// It ended just now; its answer is there.
    Done,
}

impl Ticket {
    pub(super) fn new() -> Arc<Ticket> {
        Arc::new(Ticket {
            state: AtomicU8::new(WAITING),
            begun: Instant::now(),
            sign: AtomicU64::new(0),
        })
    }

    /// Returns the time of its last sign of life; its begin counts as one.
    pub(super) fn last_sign(&self) -> Instant {
        self.begun + Duration::from_millis(self.sign.load(Ordering::Relaxed))
    }

    fn begin(&self) -> bool {
        self.step(WAITING, RUNNING)
    }

    /// Ends the call. Returns `true` if its caller had abandoned it.
    fn end(&self) -> bool {
        self.state.swap(DONE, Ordering::AcqRel) == GIVEN_UP
    }

    fn step(&self, from: u8, to: u8) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

thread_local! {
    /// The current call of this thread.
    static CURRENT: RefCell<Option<Arc<Ticket>>> = const { RefCell::new(None) };
}

/// Reports that the current call of this thread makes progress. A call that consists of many system
/// calls, such as the listing of a large directory, may take longer than the timeout of a single
/// one. Without effect outside of a guarded call.
pub(crate) fn sign_of_life() {
    CURRENT.with_borrow(|ticket| {
        if let Some(ticket) = ticket {
            let after = ticket.begun.elapsed().as_millis();
            ticket
                .sign
                .store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    });
}

/// Sets the current call of this thread and returns the previous one.
pub(super) fn enter(ticket: Option<Arc<Ticket>>) -> Option<Arc<Ticket>> {
    CURRENT.replace(ticket)
}

/// The work of a job; it returns whether the backend answered as one that works.
pub(super) type Work = Box<dyn FnOnce() -> bool + Send>;

struct Job {
    ticket: Arc<Ticket>,
    work: Work,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// Threads whose call was abandoned and has not returned.
    stuck: usize,
    closed: bool,
}

/// The pool. Threads start on demand and stay.
pub(super) struct Threads {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Called when an abandoned call returns, with whether its answer was good.
    returned: Box<dyn Fn(bool) + Send + Sync>,
}

impl Threads {
    /// Creates a pool without threads. A pool thread calls `returned` when an abandoned call
    /// returns.
    pub(super) fn new(returned: impl Fn(bool) + Send + Sync + 'static) -> Arc<Threads> {
        Arc::new(Threads {
            queue: Mutex::default(),
            wake: Condvar::new(),
            returned: Box::new(returned),
        })
    }

    /// Queues `work` for the next free thread.
    ///
    /// # Errors
    /// ETIMEDOUT if every thread is stuck; else what the system said when it could not create a
    /// thread.
    pub(super) fn submit(self: &Arc<Self>, ticket: Arc<Ticket>, work: Work) -> io::Result<()> {
        if self.stuck() >= MAX_THREADS {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        self.submit_for_later(ticket, work)
    }

    /// The same, also while every thread is stuck: for work for which no caller waits.
    ///
    /// # Errors
    /// What the system said when it could not create a thread.
    pub(super) fn submit_for_later(
        self: &Arc<Self>,
        ticket: Arc<Ticket>,
        work: Work,
    ) -> io::Result<()> {
        let mut queue = self.queue.lock();
        queue.jobs.push_back(Job { ticket, work });
        if queue.idle < queue.jobs.len() && queue.threads < MAX_THREADS {
            let threads = self.clone();
            let spawned = thread::Builder::new()
                .name(format!("ferryfs-io-{}", queue.threads))
                .spawn(move || threads.serve());
            match spawned {
                Ok(_) => queue.threads += 1,
                // The existing threads will run it.
                Err(_) if queue.threads > 0 => {}
                Err(error) => {
                    queue.jobs.pop_back();
                    return Err(error);
                }
            }
        }
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    /// Abandons the call of `ticket`.
    pub(super) fn give_up(&self, ticket: &Ticket) -> GivenUp {
        if ticket.step(WAITING, GIVEN_UP) {
            return GivenUp::NotBegun;
        }
        // Under the lock, so that a thread that is just returning decrements the count only after
        // this increments it.
        let mut queue = self.queue.lock();
        if ticket.step(RUNNING, GIVEN_UP) {
            queue.stuck += 1;
            return GivenUp::Stuck;
        }
        GivenUp::Done
    }

    /// Returns the number of stuck threads.
    pub(super) fn stuck(&self) -> usize {
        self.queue.lock().stuck
    }

    /// Ends threads without work.
    pub(super) fn close(&self) {
        self.queue.lock().closed = true;
        self.wake.notify_all();
    }

    fn serve(&self) {
        while let Some(job) = self.next() {
            if !job.ticket.begin() {
                continue;
            }
            enter(Some(job.ticket.clone()));
            let well = catch_unwind(AssertUnwindSafe(job.work)).unwrap_or_else(|_| {
                tracing::error!("a call to the backend panicked; its caller gets EIO");
                false
            });
            enter(None);
            if job.ticket.end() {
                self.queue.lock().stuck -= 1;
                (self.returned)(well);
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                queue.threads -= 1;
                return None;
            }
            queue.idle += 1;
            self.wake.wait(&mut queue);
            queue.idle -= 1;
        }
    }
}
