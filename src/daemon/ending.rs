//! How the daemon comes to its end although a flush may be under way, and the backend may not answer.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::{Condvar, Mutex};

use super::run::PATIENCE;
use super::service::{Place, Service};
use crate::control::server::Asker;
use crate::flush::FlushError;
use crate::kernel::Session;

/// How long the flush may take that a signal causes: systemd sends SIGKILL 90 s after SIGTERM.
const SIGNAL_FLUSH: Duration = Duration::from_secs(60);

/// How long the flush may take that follows the last use of a file system that was in use beyond its unmount.
const LAST_FLUSH: Duration = Duration::from_secs(60);

/// How long a flush that is told to give up may take for it.
const GIVING_UP: Duration = Duration::from_secs(3);

/// How often it is looked whether the file system has come to its end: while that is awaited, and else.
const SOON: Duration = Duration::from_millis(10);
const NOW_AND_THEN: Duration = Duration::from_millis(200);

/// How long it may take to come to its end after the mount is gone.
pub(super) const LAST_BREATH: Duration = Duration::from_secs(2);

/// What is asked of the thread that waits for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The mount is gone; the file system should follow at once.
    Look,
    /// Whoever still uses the file system is to be cut off.
    CutOff,
}

/// Why the daemon comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing uses the file system any more.
    Unmounted,
    /// A signal came.
    Signal,
    /// It was told to cut off whoever uses it.
    CutOff,
}

/// Whether the kernel has ended the file system. Unmounting takes it out of one mount namespace only.
#[derive(Default)]
pub(super) struct Life {
    over: Mutex<bool>,
    told: Condvar,
}

impl Life {
    fn end(&self) {
        *self.over.lock() = true;
        self.told.notify_all();
    }

    /// Waits until it is over, at most for `patience`. Whether it is.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut over = self.over.lock();
        while !*over && !self.told.wait_until(&mut over, end).timed_out() {}
        *over
    }
}

/// Waits for the end of the file system, or for what is to end it.
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

/// What was written through other mounts since an unmount that has flushed is carried as well.
pub(super) fn flush_the_rest(service: &Service) {
    if !service.flush_at_end.load(Ordering::Acquire) {
        return;
    }
    let deadline = Some(Instant::now() + LAST_FLUSH);
    match service.flush_before_end(deadline, &|| false, &nobody()) {
        Some(Ok(report)) if report.left_behind.is_empty() => {}
        outcome => tracing::warn!(
            ?outcome,
            "not all was carried that was written after the unmount; the rest waits in the cache"
        ),
    }
}

/// For flushes that nobody waits for.
pub(super) fn nobody() -> Asker<'static> {
    Asker::new(&|_| {}, &|| false)
}

/// Waits for a flush that is still under way, unless it sits in a call that is not answered; then it is told to give up, which it
/// does if its batch is not committed. Whether there is none any more.
pub(super) fn wait_for_flush(service: &Service, patience: Duration) -> bool {
    if is_at_rest_within(service, patience) {
        return true;
    }
    service.closing.store(true, Ordering::Release);
    let at_rest = is_at_rest_within(service, patience.min(GIVING_UP));
    if !at_rest {
        tracing::warn!(
            "ending in the middle of a flush; what was not carried waits in the cache, and the next mount goes on with it"
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

/// A signal asks for an end: what waits is carried if the drive is there, for a bounded time and until a second signal, and
/// the mount taken away even if it is in use. Gives how long a flush that is still under way may be waited for.
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
            "not all was carried; the rest waits in the cache and follows after the next mount"
        ),
        Some(Err(error)) => {
            tracing::warn!(%error, "not flushed; what was not carried waits in the cache and follows after the next mount");
        }
        None => tracing::warn!(
            "the backend is away or does not answer; what was not carried waits in the cache and follows after the next mount"
        ),
    }
    let device = service.device.get().copied();
    if service.place() != Place::Gone
        && super::tasks::unmount(mountpoint, device).is_err()
        && let Err(error) = super::dead_mount::detach_device(mountpoint, device)
    {
        tracing::error!(%error, "the mount could not be taken away");
    }
    patience
}
