//! Detects whether the backend answers.
//!
//! It is *stalled* when a call has shown no sign of life for the whole timeout. It stays stalled
//! until it is known to answer again: a stuck call returns with an answer, or a probe gets a prompt
//! answer. Calls that change the backend are never abandoned (see [`super`]). A slow one is a stall
//! only if a probe beside it gets no answer either, since a sync of much data to a slow drive may
//! take minutes.
//!
//! The only thread here does nothing but probe, and may be stuck for any time. Other threads
//! conclude from the start time of its probe.
//!
//! Lock order: `state` is the only lock, and it is not held during a probe.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use crate::drive::Backend;
use crate::drive::supervised::threads::Ticket;

/// The longest time between two checks whether a probe is needed, or between two probes.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A period in which the drive does not answer.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    begun: Instant,
    /// Its begin by the wall clock.
    pub since: SystemTime,
}

impl Stall {
    fn since(begun: Instant) -> Stall {
        let now = SystemTime::now();
        Stall {
            begun,
            since: now.checked_sub(begun.elapsed()).unwrap_or(now),
        }
    }

    /// Returns how long it has lasted.
    pub fn lasts(&self) -> Duration {
        self.begun.elapsed()
    }
}

#[derive(Default)]
struct HealthState {
    stalled: Option<Stall>,
    /// Start time of the probe in progress.
    probing: Option<Instant>,
    /// The calls in progress without a deadline.
    patient: Vec<Arc<Ticket>>,
    target: Option<Arc<dyn Backend>>,
    closed: bool,
}

impl HealthState {
    /// Returns the last sign of life of the call without a deadline that has been silent the
    /// longest.
    fn quietest(&self) -> Option<Instant> {
        self.patient.iter().map(|call| call.last_sign()).min()
    }
}

/// The state of the backend's health. See the head of this file.
pub(super) struct Health {
    timeout: Duration,
    state: Mutex<HealthState>,
    wake: Condvar,
}

impl Health {
    /// Creates the health of a backend that answers, as far as is known. A call may be silent for
    /// `timeout`.
    pub(super) fn new(timeout: Duration) -> Health {
        Health {
            timeout,
            state: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Watches another backend, about which nothing is known yet; or none.
    pub(super) fn watch(&self, target: Option<Arc<dyn Backend>>) {
        let mut state = self.state.lock();
        state.target = target;
        state.stalled = None;
    }

    /// Registers a call that will never be abandoned.
    pub(super) fn begin(&self, call: &Arc<Ticket>) {
        self.state.lock().patient.push(call.clone());
    }

    /// Removes such a call at its end.
    pub(super) fn end(&self, call: &Arc<Ticket>) {
        let patient = &mut self.state.lock().patient;
        if let Some(at) = patient.iter().position(|other| Arc::ptr_eq(other, call)) {
            patient.swap_remove(at);
        }
    }

    /// Records that a call has been abandoned that was silent since `begun`.
    pub(super) fn gave_up(&self, begun: Instant) {
        self.stall(&mut self.state.lock(), begun);
        self.wake.notify_all();
    }

    fn stall(&self, state: &mut HealthState, begun: Instant) {
        if state.stalled.is_none() && state.target.is_some() {
            state.stalled = Some(Stall::since(begun));
            tracing::warn!(
                seconds = begun.elapsed().as_secs(),
                "the drive does not answer; calls that need it fail until it does"
            );
        }
    }

    /// Records that a stuck call has returned; `well` if its answer shows that the backend works.
    /// An error shows nothing: some shares answer each call with one, after a long time.
    pub(super) fn returned(&self, well: bool) {
        if well {
            self.recover(&mut self.state.lock());
        }
    }

    fn recover(&self, state: &mut HealthState) {
        if let Some(stall) = state.stalled.take() {
            tracing::info!(seconds = stall.lasts().as_secs(), "the drive answers again");
        }
    }

    /// Returns the stall, if the drive does not answer.
    pub(super) fn stalled(&self) -> Option<Stall> {
        let mut state = self.state.lock();
        let unanswered = |begun: Instant| begun.elapsed() >= self.timeout / 2;
        if state.stalled.is_none()
            && state.probing.is_some_and(unanswered)
            && let Some(silent) = state.quietest()
            && silent.elapsed() >= self.timeout
        {
            self.stall(&mut state, silent);
        }
        state.stalled
    }

    /// Ends the probing thread at its next check.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.target = None;
        self.wake.notify_all();
    }

    /// Probes whenever that gives information, until `close`.
    pub(super) fn probe_for_ever(&self) {
        while let Some(target) = self.next_probe() {
            let answer = catch_unwind(AssertUnwindSafe(|| target.answers()));
            let well = answer.is_ok_and(|answer| answer.is_ok());
            drop(target);
            let mut state = self.state.lock();
            let took = state.probing.take().map(|begun| begun.elapsed());
            // A prompt error is an answer too: callers can get that error.
            if well || took.is_some_and(|took| took < self.timeout / 2) {
                self.recover(&mut state);
            }
            let pause = LOOK_EVERY.min(self.timeout / 4);
            self.wake.wait_for(&mut state, pause);
        }
    }

    /// Waits until a probe is due, and records its start.
    fn next_probe(&self) -> Option<Arc<dyn Backend>> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            let doubtful = state.stalled.is_some()
                || state
                    .quietest()
                    .is_some_and(|sign| sign.elapsed() >= self.timeout / 2);
            if doubtful && let Some(target) = state.target.clone() {
                state.probing = Some(Instant::now());
                return Some(target);
            }
            let look = LOOK_EVERY.min(self.timeout / 4);
            self.wake.wait_for(&mut state, look);
        }
    }
}
