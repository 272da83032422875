//! Ends the daemon, also while a flush is under way, and if the drive does not answer.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::{Condvar, Mutex};

use crate::control::server::Asker;
use crate::daemon::run::PATIENCE;
use crate::daemon::service::{Place, Service};
use crate::error::FlushError;
use crate::fuse::Session;

/// How long the flush after a signal may take: systemd sends SIGKILL 90 s after SIGTERM.
const SIGNAL_FLUSH: Duration = Duration::from_secs(60);

/// How long the flush may take that follows the last use of a file system that was in use after its
/// unmount.
const LAST_FLUSH: Duration = Duration::from_secs(60);

/// How long a flush may take to give up.
const GIVING_UP: Duration = Duration::from_secs(3);

/// How often to check whether the file system has ended: while the end is expected, and otherwise.
const SOON: Duration = Duration::from_millis(10);
const NOW_AND_THEN: Duration = Duration::from_millis(500);

/// How long the file system may take to end after the mount is gone.
pub(super) const LAST_BREATH: Duration = Duration::from_secs(2);

/// A request to the thread that waits for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The mount is gone; the file system should follow at once.
    Look,
    /// Cut off the programs that still use the file system.
    CutOff,
}

/// Why the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing uses the file system any more.
    Unmounted,
    /// A signal came.
    Signal,
    /// A request to cut off the programs that use it.
    CutOff,
}

/// Whether the kernel has ended the file system. An unmount removes it from one mount namespace
/// only.
#[derive(Default)]
pub(super) struct Life {
    over: Mutex<bool>,
    changed: Condvar,
}

impl Life {
    fn end(&self) {
        *self.over.lock() = true;
        self.changed.notify_all();
    }

    /// Waits until it has ended, at most for `patience`. Returns whether it has.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut over = self.over.lock();
        while !*over && !self.changed.wait_until(&mut over, end).timed_out() {}
        *over
    }
}

/// Waits for the end of the file system, or for a request or signal to end it.
pub(super) fn wait_for_end(
    session: &Session,
    life: &Life,
    asked: &Receiver<Asked>,
    signals: &Receiver<()>,
) -> End {
    let mut awaited = Instant::now();
    loop {
        let pause = match awaited > Instant::now() {
            true => SOON,
            false => NOW_AND_THEN,
        };
        crossbeam_channel::select! {
            recv(asked) -> what => match what {
                Ok(Asked::CutOff) => return End::CutOff,
                _ => awaited = Instant::now() + LAST_BREATH,
            },
            recv(signals) -> _ => return End::Signal,
            default(pause) => {}
        }
        if session.is_over() {
            life.end();
            return End::Unmounted;
        }
    }
}

/// Flushes what was written through other mounts after an unmount that has flushed.
pub(super) fn flush_the_rest(service: &Service) {
    if !service.flush_at_end.load(Ordering::Acquire) {
        return;
    }
    let deadline = Some(Instant::now() + LAST_FLUSH);
    match service.flush_before_end(deadline, &|| false, &nobody()) {
        Some(Ok(report)) if report.left_behind.is_empty() => {}
        outcome => tracing::warn!(
            ?outcome,
            "not everything that was written after the unmount was flushed; the rest waits in the \
             cache"
        ),
    }
}

/// The caller of a flush for which no command waits.
pub(super) fn nobody() -> Asker<'static> {
    Asker::new(&|_| {}, &|| false)
}

/// Waits for a flush that is still under way. If its drive does not answer, it gives up, unless its
/// batch is committed. Returns whether no flush is under way any more.
pub(super) fn wait_for_flush(service: &Service, patience: Duration) -> bool {
    if is_at_rest_within(service, patience) {
        return true;
    }
    service.closing.store(true, Ordering::Release);
    let at_rest = is_at_rest_within(service, patience.min(GIVING_UP));
    if !at_rest {
        tracing::warn!(
            "ending during a flush; what was not flushed waits in the cache, and the next mount \
             finishes it"
        );
    }
    at_rest
}

fn is_at_rest_within(service: &Service, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while service.flusher.is_running() {
        if Instant::now() > end || service.drive.stalled().is_some() {
            return false;
        }
        std::thread::sleep(SOON);
    }
    true
}

/// Ends the mount after a signal: flushes if the drive is there, for a bounded time and until a
/// second signal, and takes the mount away even if it is in use. Returns how long to wait for a
/// flush that is still under way.
pub(super) fn on_signal(service: &Service, mountpoint: &Path, signals: &Receiver<()>) -> Duration {
    tracing::info!("ending on a signal; a second one ends the flush");
    service.ending.store(true, Ordering::Release);
    let again = || signals.try_recv().is_ok();
    let deadline = Some(Instant::now() + SIGNAL_FLUSH);
    let outcome = service.flush_before_end(deadline, &again, &nobody());
    let patience = match &outcome {
        Some(Err(FlushError::StillRunning { .. })) => Duration::ZERO,
        _ => PATIENCE,
    };
    match outcome {
        Some(Ok(report)) if report.left_behind.is_empty() => {}
        Some(Ok(report)) => tracing::warn!(
            files = report.left_behind.len(),
            "not everything was flushed; the rest waits in the cache and is flushed after the next \
             mount"
        ),
        Some(Err(error)) => {
            tracing::warn!(
                %error,
                "not flushed; what was not flushed waits in the cache and is flushed after the \
                 next mount"
            );
        }
        None => tracing::warn!(
            "the drive is away or does not answer; what was not flushed waits in the cache and is \
             flushed after the next mount"
        ),
    }
    let device = service.device.get().copied();
    if service.place() != Place::Gone
        && crate::daemon::tasks::unmount(mountpoint, device).is_err()
        && let Err(error) = crate::daemon::dead_mount::detach_device(mountpoint, device)
    {
        tracing::error!(%error, "the mount cannot be removed");
    }
    patience
}
