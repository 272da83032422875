//! Runs a flush on a thread of its own, so that its caller can stop waiting.
//!
//! The flush itself never gives up a call to the drive (see [`crate::drive::supervised`]): it waits
//! until the call returns, and then continues. Its caller waits here instead, passes the progress
//! on, and may give up. The action after a successful flush runs only if the caller still waits: a
//! drive must not be ejected an hour after `eject` has failed.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select, unbounded};

use crate::control::server::Asker;
use crate::core::{Phase, Progress};
use crate::daemon::metrics::Running;
use crate::drive::connection::Drive;
use crate::error::FlushError;
pub(crate) use crate::flush::{Cancel, Flusher, Report, Wish};

/// How often the caller checks whether to go on waiting, and whether the drive answers.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The shortest time between two reports of progress within one phase.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// How long after its deadline the caller waits for a flush, which keeps the deadline itself unless
/// a call does not return.
const GRACE: Duration = Duration::from_secs(1);

/// How long the caller waits for a cancelled flush, which may be in a call to the drive and can no
/// longer be committed.
const CANCELLING: Duration = Duration::from_secs(2);

/// How long the caller of a flush waits.
pub(super) struct Patience<'a> {
    /// Until when.
    pub(super) deadline: Option<Instant>,
    /// Called regularly with the time for which the drive has not answered: whether to give up.
    pub(super) enough: &'a dyn Fn(Option<Duration>) -> bool,
}

const AWAITED: u8 = 0;
const DONE: u8 = 1;
const GIVEN_UP: u8 = 2;

/// Whether the caller still waits when the flush ends, decided once.
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

/// Flushes. `then` runs at the end of a flush that succeeded, before another one can begin, if the
/// caller still waits; `after` runs in any case.
///
/// # Errors
/// The flush's own, or [`FlushError::StillRunning`] if the caller gave up.
pub(super) fn flush(
    (flusher, drive, running): (&Arc<Flusher>, &Drive, &Arc<Running>),
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
    let (theirs, flusher, running) = (verdict.clone(), flusher.clone(), running.clone());
    let spawned = thread::Builder::new()
        .name("ferryfs-flush".into())
        .spawn(move || {
            let last = Cell::new(None);
            let reporter = Reporter {
                steps,
                last,
                running: &running,
            };
            let outcome = flusher.flush(&wish, &|step| reporter.report(step), || {
                if theirs.decide(DONE) {
                    then();
                }
            });
            after(&outcome);
            // Wakes the writer of the metrics, which shows what was just concluded.
            running.end();
            // Fails if the caller gave up.
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

/// Passes the progress of a flush on, not more often than a user can see: each report wakes the
/// waiting thread.
struct Reporter<'a> {
    steps: Sender<Progress>,
    running: &'a Running,
    last: Cell<Option<(Phase, Instant)>>,
}

impl Reporter<'_> {
    fn report(&self, step: Progress) {
        let known = self.last.get();
        if known.is_some_and(|(phase, at)| phase == step.phase && at.elapsed() < TELL_EVERY) {
            return;
        }
        self.last.set(Some((step.phase, Instant::now())));
        self.running.note(step);
        // Fails if the caller gave up.
        let _ = self.steps.send(step);
    }
}

/// The waiting caller of a flush.
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
                // The flush may have ended just now.
                return ended.try_recv().unwrap_or(Err(error));
            }
        }
    }

    /// Checks whether to go on waiting; returns why not. `cancelled` is when the flush was
    /// cancelled before its commit.
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

/// Runs `work` on a thread of its own and waits for its result until `enough`. Returns `None` if it
/// was not done by then; its result is dropped.
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
