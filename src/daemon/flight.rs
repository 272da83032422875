//! A flush on a thread of its own, so that whoever asked for it can stop waiting.
//!
//! The flush itself never gives a call to the backend up (see [`crate::backend::guard`]): it sits in it until it is answered,
//! and then goes on by itself. Whoever asked waits here instead, is told now and then how it stands, and may give up. What is
//! to be done when the flush has succeeded is done only for somebody who still waits for it: nobody wants a drive ejected an
//! hour after `eject` has failed.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select, unbounded};

use crate::backend::drive::Drive;
use crate::control::protocol::{Phase, Progress};
use crate::control::server::Asker;
use crate::flush::{Cancel, FlushError, Flusher, Report, Wish};

/// How often it is looked whether to go on waiting, and whether the backend answers.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Steps within one phase are told no more often than this.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// A flush keeps its deadline itself, as far as it can: how much later it is no longer waited for.
const GRACE: Duration = Duration::from_secs(1);

/// How long a flush that was cancelled is waited for: it may sit in a call to the backend, and can no longer be committed.
const CANCELLING: Duration = Duration::from_secs(2);

/// How long whoever asked for a flush waits.
pub(super) struct Patience<'a> {
    /// Until when.
    pub(super) deadline: Option<Instant>,
    /// Asked now and then, with how long the backend has not answered: whether that is enough.
    pub(super) enough: &'a dyn Fn(Option<Duration>) -> bool,
}

const AWAITED: u8 = 0;
const DONE: u8 = 1;
const GIVEN_UP: u8 = 2;

/// Whether anybody still waits, decided once.
#[derive(Clone, Default)]
struct Verdict(Arc<AtomicU8>);

impl Verdict {
    fn decide(&self, verdict: u8) -> bool {
        self.0
            .compare_exchange(AWAITED, verdict, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

type Outcome = Result<Report, FlushError>;

/// Flushes. `then` runs as the last thing of a flush that succeeded, before any other can begin, if it is still waited for;
/// `after` runs however it ends, also if nobody waits any more.
///
/// # Errors
/// The flush's own, or [`FlushError::StillRunning`] if it is no longer waited for.
pub(super) fn flush(
    (flusher, drive): (&Arc<Flusher>, &Drive),
    wish: Wish,
    patience: &Patience<'_>,
    asker: &Asker<'_>,
    then: impl FnOnce() + Send + 'static,
    after: impl FnOnce(&Outcome) + Send + 'static,
) -> Outcome {
    let verdict = Verdict::default();
    let cancel = wish.cancel.clone();
    let (steps, stepped) = unbounded();
    let (end, ended) = bounded(1);
    let (theirs, flusher) = (verdict.clone(), flusher.clone());
    let spawned = thread::Builder::new()
        .name("ferryfs-flush".into())
        .spawn(move || {
            let last = Cell::new(None);
            let teller = Teller { steps, last };
            let outcome = flusher.flush_as(&wish, &|step| teller.tell(step), || {
                if theirs.decide(DONE) {
                    then();
                }
            });
            after(&outcome);
            // Nobody takes it who does not wait any more.
            let _ = end.send(outcome);
        });
    if let Err(source) = spawned {
        return Err(FlushError::Cache {
            operation: "start a thread".into(),
            source,
        });
    }
    let waiting = Waiting {
        verdict: &verdict,
        cancel: &cancel,
        drive,
        patience,
        asker,
    };
    waiting.wait(&stepped, &ended)
}

/// Passes on the steps of a flush, not more than anybody can look at: each wakes the thread that waits.
struct Teller {
    steps: Sender<Progress>,
    last: Cell<Option<(Phase, Instant)>>,
}

impl Teller {
    fn tell(&self, step: Progress) {
        let known = self.last.get();
        if known.is_some_and(|(phase, at)| phase == step.phase && at.elapsed() < TELL_EVERY) {
            return;
        }
        self.last.set(Some((step.phase, Instant::now())));
        // Fails only when nobody waits any more.
        let _ = self.steps.send(step);
    }
}

/// The one who waits for a flush.
struct Waiting<'a> {
    verdict: &'a Verdict,
    cancel: &'a Cancel,
    drive: &'a Drive,
    patience: &'a Patience<'a>,
    asker: &'a Asker<'a>,
}

impl Waiting<'_> {
    fn wait(&self, stepped: &Receiver<Progress>, ended: &Receiver<Outcome>) -> Outcome {
        let mut last = crate::flush::phase(Phase::Cut);
        let mut looked = Instant::now();
        let mut cancelled = None;
        let mut talking = true;
        let never = crossbeam_channel::never();
        loop {
            let stepped = if talking { stepped } else { &never };
            select! {
                recv(ended) -> outcome => return outcome.unwrap_or_else(|_| Err(broken())),
                recv(stepped) -> step => match step {
                    Ok(step) => {
                        last = step;
                        self.asker.tell(last);
                    }
                    Err(_) => talking = false,
                },
                default(LOOK_EVERY) => {}
            }
            if looked.elapsed() < LOOK_EVERY {
                continue;
            }
            looked = Instant::now();
            if let Some(error) = self.look(last, &mut cancelled)
                && self.verdict.decide(GIVEN_UP)
            {
                // It may just have ended.
                return ended.try_recv().unwrap_or(Err(error));
            }
        }
    }

    /// Looks whether to go on waiting, and says why not. `cancelled` is when the flush was cancelled in time.
    fn look(&self, last: Progress, cancelled: &mut Option<Instant>) -> Option<FlushError> {
        if cancelled.is_none() && self.asker.has_cancelled() {
            if !self.cancel.cancel() {
                return Some(FlushError::TooLate);
            }
            *cancelled = Some(Instant::now());
        }
        if cancelled.is_some_and(|at| at.elapsed() > CANCELLING) {
            return Some(FlushError::Cancelled);
        }
        let silent = self.drive.stalled().map(|stall| stall.lasts());
        if let Some(silent) = silent {
            self.asker.tell(Progress {
                silent_seconds: silent.as_secs().max(1),
                ..last
            });
        }
        let late = (self.patience.deadline).is_some_and(|deadline| deadline.elapsed() > GRACE);
        (late || (self.patience.enough)(silent)).then_some(FlushError::StillRunning { silent })
    }
}

fn broken() -> FlushError {
    FlushError::Cache {
        operation: "flush".into(),
        source: std::io::Error::other("the flush panicked; see the log"),
    }
}

/// Runs `work` on a thread of its own and waits for it until `enough`; `None` if it was not done by then, and whatever it
/// comes to is dropped.
pub(super) fn within<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    enough: impl Fn() -> bool,
) -> Option<T> {
    let (end, ended) = bounded(1);
    let thread = thread::Builder::new()
        .name("ferryfs-start".into())
        .spawn(move || {
            let _ = end.send(work());
        })
        .ok()?;
    loop {
        match ended.recv_timeout(LOOK_EVERY) {
            Ok(outcome) => return Some(outcome),
            Err(RecvTimeoutError::Timeout) if enough() => return None,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => return None,
            },
        }
    }
}
