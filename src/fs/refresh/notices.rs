//! What the kernel has to be told of: a bounded queue that coalesces, emptied by a thread of the kernel room.
//!
//! Telling the kernel takes locks of it that a request may hold while it waits for us; so whoever finds a change only puts it
//! here, and only that thread, which holds nothing, tells.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::base::{Ino, Name};

/// Notices that wait before whoever has more is held up.
const MANY: usize = 65_536;

/// How long he is held up at most. The kernel must not go untold, so beyond that the queue grows.
const HOLD_UP: Duration = Duration::from_secs(5);

/// Something that the kernel may have remembered and that is not so any more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// What stands under a name.
    Entry {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Name,
    },
    /// The attributes and bytes of an inode.
    Inode {
        /// Which.
        ino: Ino,
    },
}

#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<Notice>,
    waiting: HashSet<Notice>,
    /// One is being told right now.
    busy: bool,
    /// There is a kernel to be told.
    heard: bool,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Notices {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Notices {
    /// Says that there is somebody who takes notices, so that they are kept.
    pub fn listen(&self) {
        self.queue.lock().heard = true;
    }

    /// Says that there is nobody any more.
    pub fn stop_listening(&self) {
        *self.queue.lock() = Queue::default();
        self.changed.notify_all();
    }

    /// Puts notices into the queue; waits a bounded time for room. Not to be called with anything locked.
    pub(crate) fn push(&self, notices: Vec<Notice>) {
        let end = Instant::now() + HOLD_UP;
        let mut queue = self.queue.lock();
        for notice in notices {
            while queue.heard && queue.order.len() >= MANY {
                if self.changed.wait_until(&mut queue, end).timed_out() {
                    break;
                }
            }
            queue.put(notice);
        }
        drop(queue);
        self.changed.notify_all();
    }

    /// The same for one, where nobody may wait.
    pub(crate) fn push_now(&self, notice: Notice) {
        self.queue.lock().put(notice);
        self.changed.notify_all();
    }

    /// The next notice, waited for at most for `patience`. To be followed by [`Notices::told`].
    pub fn next(&self, patience: Duration) -> Option<Notice> {
        let mut queue = self.queue.lock();
        if queue.order.is_empty() {
            self.changed.wait_for(&mut queue, patience);
        }
        let notice = queue.order.pop_front()?;
        // From here on the same may be put in anew: it may speak of a later change.
        queue.waiting.remove(&notice);
        queue.busy = true;
        Some(notice)
    }

    /// The kernel has been told.
    pub fn told(&self) {
        self.queue.lock().busy = false;
        self.changed.notify_all();
    }

    /// Waits, at most for `patience`, until the kernel has been told of everything. False if it has not.
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
    fn put(&mut self, notice: Notice) {
        if self.heard && self.waiting.insert(notice.clone()) {
            self.order.push_back(notice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(number: u64) -> Notice {
        Notice::Inode { ino: Ino(number) }
    }

    #[test]
    fn the_same_notice_waits_once_and_is_taken_anew_after_it_was_told() {
        let notices = Notices::default();
        notices.push(vec![inode(1)]);
        assert_eq!(notices.next(Duration::ZERO), None, "nobody listens");
        notices.listen();
        notices.push(vec![inode(1), inode(2), inode(1)]);
        assert_eq!(notices.next(Duration::ZERO), Some(inode(1)));
        // While it is being told something changes again.
        notices.push_now(inode(1));
        notices.told();
        assert!(!notices.wait_until_told(Duration::from_millis(1)));
        assert_eq!(notices.next(Duration::ZERO), Some(inode(2)));
        notices.told();
        assert_eq!(notices.next(Duration::ZERO), Some(inode(1)));
        notices.told();
        assert!(notices.wait_until_told(Duration::ZERO));
    }

    #[test]
    fn whoever_finds_more_than_the_kernel_takes_is_held_up_but_not_for_ever() {
        let notices = Notices::default();
        notices.listen();
        let begun = Instant::now();
        notices.push((0..MANY as u64 + 10).map(inode).collect());
        assert!(begun.elapsed() >= HOLD_UP - Duration::from_millis(100));
        let mut taken = 0;
        while notices.next(Duration::ZERO).is_some() {
            notices.told();
            taken += 1;
        }
        assert_eq!(taken, MANY + 10, "none is forgotten");
    }
}
