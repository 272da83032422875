//! The flush under way, as far as it has reported its progress.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use crate::core::Progress;

/// The progress of the flush under way.
pub(in crate::daemon) struct Running {
    step: Mutex<Option<(Progress, Instant)>>,
    ended: Sender<()>,
    heard: Receiver<()>,
}

impl Running {
    pub(in crate::daemon) fn new() -> Running {
        let (ended, heard) = bounded(1);
        Running {
            step: Mutex::new(None),
            ended,
            heard,
        }
    }

    /// Notes a step of the flush.
    pub(in crate::daemon) fn note(&self, step: Progress) {
        let mut known = self.step.lock();
        let began = known.map_or_else(Instant::now, |(_, began)| began);
        *known = Some((step, began));
    }

    /// Notes that the flush has ended.
    pub(in crate::daemon) fn end(&self) {
        *self.step.lock() = None;
        // Full: the writer of the file has not looked yet.
        let _ = self.ended.try_send(());
    }

    /// The last step of the flush under way, and for how long it has been under way.
    pub(in crate::daemon) fn get(&self) -> Option<(Progress, Duration)> {
        let step = *self.step.lock();
        step.map(|(step, began)| (step, began.elapsed()))
    }

    /// Waits until a flush ends, at most for `patience`.
    ///
    /// # Errors
    /// If none has ended.
    pub(super) fn wait(&self, patience: Duration) -> Result<(), RecvTimeoutError> {
        self.heard.recv_timeout(patience)
    }
}
