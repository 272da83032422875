//! Invalidations of the kernel's caches: a bounded queue that merges duplicates, emptied by a
//! thread of the `fuse` module.
//!
//! An invalidation takes kernel locks that a request may hold while it waits for the daemon. So a
//! thread that finds a change only adds it to this queue. Only the invalidator thread, which holds
//! no lock, calls the kernel. Invariants: an invalidation is never dropped while a kernel is
//! listening, and it is in the queue at most once.
//!
//! The exception are attributes that must be invalid before a request is answered
//! ([`Invalidations::attributes_now`]): the requesting thread calls the kernel itself, without a
//! lock, by a notification that takes none of these kernel locks.
//!
//! [`Invalidations`] owns the queue, under one mutex that is held for one access. A crash loses
//! nothing, since the kernel's caches end with the mount.

use std::collections::{HashSet, VecDeque};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::core::{Ino, Name};

/// Number of waiting invalidations above which a thread that adds more has to wait.
const MANY: usize = 65_536;

/// Longest wait for a shorter queue. Invalidations must not be lost, so beyond that the queue
/// grows.
const HOLD_UP: Duration = Duration::from_secs(5);

/// Something in a kernel cache that is no longer valid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Invalidation {
    /// The dirent of a name.
    Entry {
        /// The directory's inode number.
        parent: Ino,
        /// The name.
        name: Name,
    },
    /// The attributes and bytes of an inode.
    Inode {
        /// The inode number.
        ino: Ino,
    },
}

#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<Invalidation>,
    waiting: HashSet<Invalidation>,
    /// One invalidation is being sent.
    busy: bool,
    /// A kernel receives invalidations.
    listening: bool,
}

/// Invalidates the kernel's attributes of an inode, before it returns.
type InvalidateAttributes = Box<dyn Fn(Ino) + Send + Sync>;

/// The queue of invalidations.
#[derive(Default)]
pub struct Invalidations {
    queue: Mutex<Queue>,
    changed: Condvar,
    at_once: OnceLock<InvalidateAttributes>,
}

impl Invalidations {
    /// Starts to keep invalidations, because a thread now sends them.
    pub fn listen(&self) {
        self.queue.lock().listening = true;
    }

    /// Discards all invalidations, now and from now on, because no kernel receives them.
    pub fn stop_listening(&self) {
        *self.queue.lock() = Queue::default();
        self.changed.notify_all();
    }

    /// Adds invalidations to the queue, and waits a bounded time while it is full. The caller must
    /// not hold a lock.
    pub(crate) fn push(&self, notices: Vec<Invalidation>) {
        let end = Instant::now() + HOLD_UP;
        let mut queue = self.queue.lock();
        for notice in notices {
            while queue.listening && queue.order.len() >= MANY {
                if self.changed.wait_until(&mut queue, end).timed_out() {
                    break;
                }
            }
            queue.put(notice);
        }
        drop(queue);
        self.changed.notify_all();
    }

    /// Adds one invalidation without waiting.
    pub(crate) fn push_now(&self, notice: Invalidation) {
        self.queue.lock().put(notice);
        self.changed.notify_all();
    }

    /// Sets the function that invalidates the kernel's attributes at once.
    pub(super) fn on_attributes(&self, invalidate: impl Fn(Ino) + Send + Sync + 'static) {
        // A file system has only one session.
        let _ = self.at_once.set(Box::new(invalidate));
    }

    /// Invalidates the kernel's attributes of an inode before this returns. The caller must not
    /// hold a lock.
    pub(super) fn attributes_now(&self, ino: Ino) {
        if let Some(invalidate) = self.at_once.get() {
            invalidate(ino);
        }
    }

    /// Returns the next invalidation, after waiting at most `patience` for it. The caller sends it
    /// and then calls [`Invalidations::sent`].
    pub fn next(&self, patience: Duration) -> Option<Invalidation> {
        let mut queue = self.queue.lock();
        if queue.order.is_empty() {
            self.changed.wait_for(&mut queue, patience);
        }
        let notice = queue.order.pop_front()?;
        // The same invalidation may be added again from here on, since it may concern a later
        // change.
        queue.waiting.remove(&notice);
        queue.busy = true;
        Some(notice)
    }

    /// Marks the invalidation that [`Invalidations::next`] returned as sent.
    pub fn sent(&self) {
        self.queue.lock().busy = false;
        self.changed.notify_all();
    }

    /// Waits at most `patience` until all invalidations are sent. Returns whether they are.
    pub fn wait_until_told(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut queue = self.queue.lock();
        while queue.busy || !queue.order.is_empty() {
            if self.changed.wait_until(&mut queue, end).timed_out() {
                return false;
            }
        }
        true
    }
}

impl Queue {
    fn put(&mut self, notice: Invalidation) {
        if self.listening && self.waiting.insert(notice.clone()) {
            self.order.push_back(notice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(number: u64) -> Invalidation {
        Invalidation::Inode { ino: Ino(number) }
    }

    #[test]
    fn a_notice_waits_once_and_is_queued_again_while_it_is_sent() {
        let notices = Invalidations::default();
        notices.push(vec![inode(1)]);
        assert_eq!(notices.next(Duration::ZERO), None, "no kernel listens");
        notices.listen();
        notices.push(vec![inode(1), inode(2), inode(1)]);
        assert_eq!(notices.next(Duration::ZERO), Some(inode(1)));
        // A second change occurs while the invalidation is being sent.
        notices.push_now(inode(1));
        notices.sent();
        assert!(!notices.wait_until_told(Duration::from_millis(1)));
        assert_eq!(notices.next(Duration::ZERO), Some(inode(2)));
        notices.sent();
        assert_eq!(notices.next(Duration::ZERO), Some(inode(1)));
        notices.sent();
        assert!(notices.wait_until_told(Duration::ZERO));
    }

    #[test]
    fn a_producer_waits_for_a_full_queue_but_not_for_ever() {
        let notices = Invalidations::default();
        notices.listen();
        let begun = Instant::now();
        notices.push((0..MANY as u64 + 10).map(inode).collect());
        assert!(begun.elapsed() >= HOLD_UP - Duration::from_millis(100));
        let mut taken = 0;
        while notices.next(Duration::ZERO).is_some() {
            notices.sent();
            taken += 1;
        }
        assert_eq!(taken, MANY + 10, "none is forgotten");
    }
}
