//! The threads that sit in system calls on the backend, and the tickets of what they do.
//!
//! A call is a job with a ticket. Whoever asked waits for the answer, or gives the call up: not begun, it is never run; under
//! way, it is *stuck*: its thread is lost until the system call returns, and its answer is dropped there. Everything a job
//! touches it owns, so a call that was given up has nobody's buffer. Only calls that change nothing may be run here: one that
//! was given up may still take effect, at any later time.
//!
//! Lock order: `queue` is the only lock, and nothing is called while it is held.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The most threads there are, and so the most that can be stuck in the kernel.
pub(super) const MAX_THREADS: usize = 16;

const WAITING: u8 = 0;
const RUNNING: u8 = 1;
const DONE: u8 = 2;
const GIVEN_UP: u8 = 3;

/// One call: how far it is, and when it last showed a sign of life.
#[derive(Debug)]
pub(super) struct Ticket {
    state: AtomicU8,
    begun: Instant,
    /// Milliseconds after `begun`.
    sign: AtomicU64,
}

/// What has become of a call that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// It never began and never will.
    NotBegun,
    /// It sits in the kernel.
    Stuck,
    /// It was done just now; its answer is there.
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

    /// When it last showed a sign of life; its beginning is one.
    pub(super) fn last_sign(&self) -> Instant {
        self.begun + Duration::from_millis(self.sign.load(Ordering::Relaxed))
    }

    fn begin(&self) -> bool {
        self.step(WAITING, RUNNING)
    }

    /// Ends the call; true if somebody had given it up.
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
    /// The call that this thread is in.
    static CURRENT: RefCell<Option<Arc<Ticket>>> = const { RefCell::new(None) };
}

/// Says that the call which this thread is in is getting on: one that consists of many system calls, such as the listing of
/// a large directory, may take longer in all than a single one may. Without effect outside of a guarded call.
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

/// Makes `ticket` the call that this thread is in; gives the one before.
pub(super) fn enter(ticket: Option<Arc<Ticket>>) -> Option<Arc<Ticket>> {
    CURRENT.replace(ticket)
}

/// What a thread is to do; true if the backend answered as one that is well.
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
    /// Threads whose call was given up and has not returned.
    stuck: usize,
    closed: bool,
}

/// The threads. They are started as they are needed and stay.
pub(super) struct Threads {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Told when a call that had been given up returns, and whether it was answered well.
    returned: Box<dyn Fn(bool) + Send + Sync>,
}

impl Threads {
    /// No thread yet. `returned` is called on one when a call that was given up returns.
    pub(super) fn new(returned: impl Fn(bool) + Send + Sync + 'static) -> Arc<Threads> {
        Arc::new(Threads {
            queue: Mutex::default(),
            wake: Condvar::new(),
            returned: Box::new(returned),
        })
    }

    /// Has `work` run by the next free thread.
    ///
    /// # Errors
    /// ETIMEDOUT if every thread is stuck; else what the system said when it gave no thread.
    pub(super) fn submit(self: &Arc<Self>, ticket: Arc<Ticket>, work: Work) -> io::Result<()> {
        if self.stuck() >= MAX_THREADS {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        self.submit_for_later(ticket, work)
    }

    /// The same, also while every thread is stuck: for what nobody waits for.
    ///
    /// # Errors
    /// What the system said when it gave no thread.
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
                // Those that there are will come to it.
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

    /// Gives the call of `ticket` up.
    pub(super) fn give_up(&self, ticket: &Ticket) -> GivenUp {
        if ticket.step(WAITING, GIVEN_UP) {
            return GivenUp::NotBegun;
        }
        // Under the lock, so that a thread that is just returning takes it off the count only after it was put on.
        let mut queue = self.queue.lock();
        if ticket.step(RUNNING, GIVEN_UP) {
            queue.stuck += 1;
            return GivenUp::Stuck;
        }
        GivenUp::Done
    }

    /// How many threads are stuck.
    pub(super) fn stuck(&self) -> usize {
        self.queue.lock().stuck
    }

    /// Lets threads end that have nothing to do any more.
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
                tracing::error!("a call to the backend panicked; it is answered with EIO");
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
