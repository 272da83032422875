//! How the daemon comes to its end although a flush may be under way, and the backend may not answer.

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::run::PATIENCE;
use super::service::Service;
use crate::flush::FlushError;

/// How long the flush may take that a signal causes: systemd sends SIGKILL 90 s after SIGTERM.
const SIGNAL_FLUSH: Duration = Duration::from_secs(60);

/// Waits for a flush that is still under way, unless it sits in a call that is not answered. Whether there is none any more.
pub(super) fn wait_for_flush(service: &Service, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while service.flusher.is_running() {
        if Instant::now() > end || service.drive.stalled().is_some() {
            tracing::warn!(
                "ending in the middle of a flush; what was not carried waits in the cache, and the next mount goes on with it"
            );
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A signal asks for an end: what waits is carried if the drive is there, for a bounded time and until a second signal, and
/// the mount taken away even if it is in use. Gives how long a flush that is still under way may be waited for.
pub(super) fn on_signal(service: &Service, mountpoint: &Path, signals: &Receiver<()>) -> Duration {
    tracing::info!("ending on a signal; a second one ends the flush");
    let again = || signals.try_recv().is_ok();
    let deadline = Some(Instant::now() + SIGNAL_FLUSH);
    let outcome = service.flush_before_end(deadline, &again, &|_| {});
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
    if super::tasks::unmount(mountpoint).is_err()
        && let Err(error) = super::dead_mount::detach(mountpoint)
    {
        tracing::error!(%error, "the mount could not be taken away");
    }
    patience
}
