//! What runs in the background while a mount is up: commits, syncs, eviction, the walk, flushes that nobody asked for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::dead_mount::{self, DetachError};
use super::flight::Patience;
use super::service::Service;
use crate::base::Ino;
use crate::flush::Wish;
use crate::fs::Syncer;

/// How often pending changes are committed, so that little is lost if the daemon dies.
const COMMIT_EVERY: Duration = Duration::from_millis(200);

/// How long after a close it is committed.
const GATHER_CLOSES: Duration = Duration::from_millis(4);

/// How often everything is made durable: what a power cut costs at most (P2).
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// How often the cache's size and the SSD's space are looked at.
const TRIM_EVERY: Duration = Duration::from_secs(5);

/// How often clean objects give way while the SSD is nearly full.
const TRIM_CROWDED_EVERY: Duration = Duration::from_secs(1);

/// How often the need for a flush is considered.
const CONSIDER_EVERY: Duration = Duration::from_millis(500);

/// Pause before a task that panicked begins anew.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// While programs are at work the walk takes a directory at a time, after so many pauses of that length.
const PAUSES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);

/// Pause of the walk after a directory that could not be read.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Longest wait between attempts after flushes that failed.
const MAX_BACKOFF: Duration = Duration::from_secs(600);

/// The flushes that nobody asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct AutoFlush {
    /// Flush when nothing has changed for this long.
    pub(super) after: Duration,
    /// Flush when the oldest change is older than this.
    pub(super) max_age: Duration,
    /// Flush when this many bytes wait.
    pub(super) max_dirty: u64,
}

/// The running background threads. Stopping waits for each of them to come to rest.
pub(super) struct Tasks {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tasks {
    /// Starts them.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn start(
        service: &Arc<Service>,
        syncer: &Arc<Syncer>,
        auto: Option<AutoFlush>,
    ) -> std::io::Result<Tasks> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Tasks {
            stop: stop.clone(),
            threads: Vec::new(),
        };
        let (s, y) = (service.clone(), syncer.clone());
        tasks.spawn("ferryfs-tick", move |stop| tick(&s, &y, stop))?;
        let s = service.clone();
        tasks.spawn("ferryfs-trim", move |stop| trim(&s, stop))?;
        let s = service.clone();
        tasks.spawn("ferryfs-walk", move |stop| walk(&s, stop))?;
        let s = service.clone();
        tasks.spawn("ferryfs-watch", move |stop| {
            while !stop.load(Ordering::Acquire) {
                s.monitor.look();
                s.monitor.wait();
            }
        })?;
        let s = service.clone();
        tasks.spawn("ferryfs-others", move |stop| super::refresh::run(&s, stop))?;
        let s = service.clone();
        tasks.spawn("ferryfs-retry", move |stop| {
            super::starting::retry(&s, stop)
        })?;
        if let Some(auto) = auto {
            let s = service.clone();
            tasks.spawn("ferryfs-auto", move |stop| flush_by_itself(&s, auto, stop))?;
        }
        Ok(tasks)
    }

    fn spawn(
        &mut self,
        name: &str,
        task: impl Fn(&AtomicBool) + Send + 'static,
    ) -> std::io::Result<()> {
        let stop = self.stop.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            // A task that panics begins anew: without the ticks, say, nothing would become durable any more.
            while catch_unwind(AssertUnwindSafe(|| task(&stop))).is_err() {
                tracing::error!("a background task panicked; it begins anew");
                rest(&stop, AFTER_PANIC);
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Stops them all, waiting a while for each. One that is stuck in the backend is left to its fate: what counts is on the SSD.
    pub(super) fn stop(self, patience: Duration) {
        self.stop.store(true, Ordering::Release);
        let end = Instant::now() + patience;
        for task in self.threads {
            while !task.is_finished() && Instant::now() < end {
                thread::sleep(Duration::from_millis(5));
            }
            if task.is_finished() {
                let _ = task.join();
            }
        }
    }
}

/// Sleeps in short steps, so that a stop is not waited for.
pub(super) fn rest(stop: &AtomicBool, time: Duration) {
    let end = Instant::now() + time;
    while !stop.load(Ordering::Acquire) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(Duration::from_millis(100)));
    }
}

fn tick(service: &Service, syncer: &Syncer, stop: &AtomicBool) {
    let mut last_sync = Instant::now();
    let mut last_tick = Instant::now();
    let mut synced_commit = u64::MAX;
    let mut said = String::new();
    while !stop.load(Ordering::Acquire) {
        let closed = service
            .fs
            .wait_for_close(COMMIT_EVERY.saturating_sub(last_tick.elapsed()));
        if closed && last_tick.elapsed() < COMMIT_EVERY {
            // Others that are closed in the same moment share the commit. An error comes back at the next tick.
            thread::sleep(GATHER_CLOSES);
            let _ = service.index.commit();
            continue;
        }
        last_tick = Instant::now();
        match service.fs.commit_pending() {
            Ok(()) => said.clear(),
            // Five times a second it would be, as long as it lasts.
            Err(error) if said == error.to_string() => {}
            Err(error) => {
                tracing::error!(%error, "commit failed");
                said = error.to_string();
                *service.last_error.lock() = Some(said.clone());
            }
        }
        let long = service.index.wants_checkpoint();
        if !long && last_sync.elapsed() < SYNC_EVERY {
            continue;
        }
        last_sync = Instant::now();
        let commits = service.index.lock().commits();
        if long || commits != synced_commit || service.fs.has_unsynced() {
            synced_commit = commits;
            sync_and_checkpoint(service, syncer);
        }
    }
}

/// Makes everything durable, then copies the WAL: in this order, as the copy makes rows durable, too.
fn sync_and_checkpoint(service: &Service, syncer: &Syncer) {
    let (done, wait) = crossbeam_channel::bounded(1);
    syncer.request(move |result| {
        // Whoever asked may have given up by now.
        let _ = done.send(result);
    });
    if let Ok(Ok(())) = wait.recv()
        && let Err(error) = service.index.checkpoint()
    {
        tracing::warn!(%error, "checkpoint failed");
    }
}

fn trim(service: &Service, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        rest(stop, TRIM_CROWDED_EVERY);
        let end = Instant::now() + (TRIM_EVERY - TRIM_CROWDED_EVERY);
        while !stop.load(Ordering::Acquire) && !service.fs.is_crowded() && Instant::now() < end {
            rest(stop, Duration::from_millis(100));
        }
        service.fs.look_at_space();
        if let Err(error) = service.fs.trim() {
            tracing::error!(%error, "cannot trim the cache");
        }
        service.fs.look_at_space();
        service.fs.close_idle_readers(false);
        service.drive.refresh_space();
        service.fs.count_needed();
    }
}

/// Imports what the backend had before, one directory after another; failed ones are tried again in the next round.
fn walk(service: &Service, stop: &AtomicBool) {
    let mut after = Ino(0);
    while !stop.load(Ordering::Acquire) {
        if !service.drive.is_attached() || service.drive.stalled().is_some() {
            rest(stop, Duration::from_secs(2));
            continue;
        }
        for _ in 0..PAUSES {
            if !service.fs.is_busy() {
                break;
            }
            rest(stop, PAUSE);
        }
        match service.fs.import_next(after) {
            Ok(Some(_)) => {}
            Ok(None) => {
                after = Ino(0);
                rest(stop, Duration::from_secs(30));
            }
            Err((dir, error)) => {
                tracing::debug!(dir = dir.0, %error, "directory not imported yet");
                after = dir;
                rest(stop, AFTER_FAILURE);
            }
        }
    }
}

fn flush_by_itself(service: &Service, auto: AutoFlush, stop: &AtomicBool) {
    let mut backoff = Duration::ZERO;
    let mut not_before = Instant::now();
    // What was left behind is not tried again at once, unless room is needed: a writer at work leaves a file behind each time.
    let mut unhurried_before = not_before;
    let mut carried = true;
    while !stop.load(Ordering::Acquire) {
        let ending = service.ending.load(Ordering::Acquire);
        let now = Instant::now();
        let able = !ending
            && now >= not_before
            && service.drive.is_attached()
            && service.drive.stalled().is_none();
        if service.flusher.is_retry_due()
            && let Err(error) = service.index.lock().try_again()
        {
            tracing::warn!(%error, "the index cannot be asked what waits");
        }
        // After a failure, or if there was nothing to carry but what is being written, whoever waits for room waits in vain.
        let in_vain = is_all_left_behind(service);
        service
            .fs
            .expect_relief(able && !in_vain && (carried || now >= unhurried_before));
        rest(stop, CONSIDER_EVERY);
        let hurried = carried && service.fs.wants_flush();
        let running = service.flusher.is_running();
        if !able || running || !(hurried || now >= unhurried_before) || !is_due(service, &auto) {
            continue;
        }
        let patience = Patience {
            deadline: None,
            enough: &|_| stop.load(Ordering::Acquire),
        };
        service.fs.look_at_space();
        let carriable = service.fs.carriable();
        match service.run_flush(&patience, Wish::default(), &super::ending::nobody()) {
            Ok(report) => {
                backoff = Duration::ZERO;
                service.fs.note_flushed(carriable, report.bytes);
                if report.batch.is_some() {
                    tracing::info!(files = report.files, bytes = report.bytes, "flushed");
                    make_room_for_writers(service);
                }
                carried = report.batch.is_some() || report.left_behind.is_empty();
                if !report.left_behind.is_empty() {
                    unhurried_before = Instant::now() + auto.after;
                }
            }
            Err(_) => {
                backoff = (backoff * 2).clamp(auto.after.min(MAX_BACKOFF), MAX_BACKOFF);
                not_before = Instant::now() + backoff;
            }
        }
    }
}

/// Whether nothing waits but what the last flush has left behind.
fn is_all_left_behind(service: &Service) -> bool {
    let state = service.index.lock();
    state.dirty_since().is_none() && state.anything_dirty().unwrap_or(false)
}

/// Whether a flush is due. What the last one has left behind, and nothing has happened to since, is no reason for another:
/// it would leave it behind again, and wake the drive each time.
fn is_due(service: &Service, auto: &AutoFlush) -> bool {
    let (since, dirty_bytes) = {
        let state = service.index.lock();
        (state.dirty_since(), state.totals().dirty_bytes)
    };
    since.is_some_and(|(latest, oldest)| {
        latest.elapsed() >= auto.after
            || oldest.elapsed() >= auto.max_age
            || dirty_bytes > auto.max_dirty
            || service.fs.wants_flush()
    })
}

/// What has just been carried may go; writers may be waiting for it.
fn make_room_for_writers(service: &Service) {
    if service.fs.is_crowded()
        && let Err(error) = service.fs.trim()
    {
        tracing::error!(%error, "cannot trim the cache");
    }
    service.fs.look_at_space();
}

/// Unmounts the file system with the number `device`, waiting a moment for users that are just leaving.
///
/// # Errors
/// If somebody still uses the mount.
pub(super) fn unmount(mountpoint: &Path, device: Option<u64>) -> Result<(), DetachError> {
    let mut result = dead_mount::unmount(mountpoint, device);
    for _ in 0..10 {
        if result.is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
        result = dead_mount::unmount(mountpoint, device);
    }
    result
}
