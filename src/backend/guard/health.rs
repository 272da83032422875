//! Whether the backend answers.
//!
//! It is *stalled* from the moment at which a call has gone without a sign of life for the whole time that one is given, until
//! it is known to answer again: a stuck call returns with an answer, or a probe is answered promptly. Calls that change the
//! backend are never given up (see [`super`]); one that takes long is a stall only if a probe beside it is not answered either,
//! for a sync of much data to a slow drive may rightly take minutes.
//!
//! The one thread here does nothing but probe; it may be stuck for as long as it likes. What follows from that is concluded
//! by whoever asks, from when the probe began.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use super::threads::Ticket;
use crate::backend::Backend;

/// Longest time between two looks whether a probe is needed, or between two probes.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Since when the backend has not answered.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    begun: Instant,
    /// By the wall clock.
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

    /// How long it has lasted.
    pub fn lasts(&self) -> Duration {
        self.begun.elapsed()
    }
}

#[derive(Default)]
struct State {
    stalled: Option<Stall>,
    /// When the probe began that is under way.
    probing: Option<Instant>,
    /// The calls under way that are never given up.
    patient: Vec<Arc<Ticket>>,
    target: Option<Arc<dyn Backend>>,
    closed: bool,
}

impl State {
    /// The last sign of life of the patient call that has been silent the longest.
    fn quietest(&self) -> Option<Instant> {
        self.patient.iter().map(|call| call.last_sign()).min()
    }
}

/// See the head of this file.
pub(super) struct Health {
    timeout: Duration,
    state: Mutex<State>,
    wake: Condvar,
}

impl Health {
    /// Of a backend that answers, as far as is known. A call may be silent for `timeout`.
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

    /// Looks after another backend, of which nothing is known yet; or after none.
    pub(super) fn watch(&self, target: Option<Arc<dyn Backend>>) {
        let mut state = self.state.lock();
        state.target = target;
        state.stalled = None;
    }

    /// Notes a call that will never be given up.
    pub(super) fn begin(&self, call: &Arc<Ticket>) {
        self.state.lock().patient.push(call.clone());
    }

    /// The end of such a call.
    pub(super) fn end(&self, call: &Arc<Ticket>) {
        let patient = &mut self.state.lock().patient;
        if let Some(at) = patient.iter().position(|other| Arc::ptr_eq(other, call)) {
            patient.swap_remove(at);
        }
    }

    /// A call has been given up that was silent since `begun`.
    pub(super) fn gave_up(&self, begun: Instant) {
        self.stall(&mut self.state.lock(), begun);
        self.wake.notify_all();
    }

    fn stall(&self, state: &mut State, begun: Instant) {
        if state.stalled.is_none() && state.target.is_some() {
            state.stalled = Some(Stall::since(begun));
            tracing::warn!(
                seconds = begun.elapsed().as_secs(),
                "the backend does not answer; what needs it fails until it does, everything else goes on"
            );
        }
    }

    /// A stuck call has returned, and whether with the answer of a backend that is well. An error says nothing: some shares
    /// answer each call with one, after a long time.
    pub(super) fn returned(&self, well: bool) {
        if well {
            self.recover(&mut self.state.lock());
        }
    }

    fn recover(&self, state: &mut State) {
        if let Some(stall) = state.stalled.take() {
            tracing::info!(
                seconds = stall.lasts().as_secs(),
                "the backend answers again"
            );
        }
    }

    /// Since when the backend has not answered, if it does not.
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

    /// Ends the probing thread when it next looks.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.target = None;
        self.wake.notify_all();
    }

    /// Probes whenever that tells something, until it is closed.
    pub(super) fn probe_for_ever(&self) {
        while let Some(target) = self.next_probe() {
            let answer = catch_unwind(AssertUnwindSafe(|| target.answers()));
            let well = answer.is_ok_and(|answer| answer.is_ok());
            drop(target);
            let mut state = self.state.lock();
            let took = state.probing.take().map(|begun| begun.elapsed());
            // A prompt error is an answer, too: whoever calls may be told what it is.
            if well || took.is_some_and(|took| took < self.timeout / 2) {
                self.recover(&mut state);
            }
            let pause = LOOK_EVERY.min(self.timeout / 4);
            self.wake.wait_for(&mut state, pause);
        }
    }

    /// Waits until a probe is due, and notes that it begins.
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
